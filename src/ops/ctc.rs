//! Connectionist temporal classification (Graves et al., 2006): the negative log-likelihood of the labels under all alignments,
//! with the log-softmax fused. Symbol 0 is the blank.

use crate::backend::cpu;
use crate::device::Category;
use crate::error::{Error, Result};
use crate::ops::expect_shape;
use crate::ops::matrix;
use crate::ops::sequences::Sequences;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The symbol that stands for nothing.
const BLANK: u32 = 0;

/// What the loss of a batch came to.
pub struct CtcOutput {
    /// The sum of the losses times `scale`, `[1]`.
    pub loss: Var,
    /// -ln p(labels) of every sequence, natural log; 0 where it is infeasible.
    pub losses: Vec<f64>,
    /// False where the labels, with a blank between repeated ones, do not fit the frames: such a sequence has no gradient.
    pub feasible: Vec<bool>,
}

/// `logits: [R, V]` packed as `sequences`, one list of labels (1..V) for each. Backward keeps the gradient to the logits, computed with the loss.
///
/// # Errors
/// If the shapes do not fit or a label is out of range.
pub fn ctc(tape: &mut Tape, logits: &Var, sequences: &Sequences, labels: &[Vec<u32>], scale: f32) -> Result<CtcOutput> {
    let (_, symbols) = matrix("ctc", "the logits", logits.shape())?;
    expect_shape("ctc", "the logits", logits.shape(), &[sequences.rows(), symbols])?;
    if labels.len() != sequences.count() {
        let problem = format!("{} lists of labels for {} sequences", labels.len(), sequences.count());
        return Err(Error::operation("ctc", problem));
    }
    let place = tape.wants(logits);
    let mut gradient = place.map(|_| Tensor::uninitialized(tape.device(), logits.shape(), Category::Activation));
    let label_slices: Vec<&[u32]> = labels.iter().map(Vec::as_slice).collect();
    let batch = cpu::ctc::Batch {
        logits: logits.tensor().data(),
        symbols,
        offsets: sequences.offsets(),
        lengths: sequences.lengths(),
        labels: &label_slices,
        blank: BLANK,
    };
    let mut losses = vec![0.0; sequences.count()];
    let mut feasible = vec![true; sequences.count()];
    let mut workspace = Tensor::uninitialized(tape.device(), &[batch.workspace_length()], Category::Workspace);
    if tape.device().computes() {
        let gradient = gradient.as_mut().map(Tensor::data_mut);
        feasible = cpu::ctc::ctc(&batch, &mut losses, gradient, workspace.data_mut()).map_err(|bad| {
            let problem =
                format!("the label {} of sequence {} is not between 1 and {}", bad.label, bad.sequence, symbols - 1);
            Error::operation("ctc", problem)
        })?;
    }
    drop(workspace);
    let mut loss = Tensor::uninitialized(tape.device(), &[1], Category::Activation);
    loss.data_mut().fill((losses.iter().sum::<f64>() * f64::from(scale)) as f32);
    let loss = tape.record(&[logits], loss, move |upstream, backward| {
        let (Some(place), Some(mut gradient)) = (place, gradient) else { return Ok(()) };
        let factor = upstream.data().first().map_or(0.0, |upstream| upstream * scale);
        gradient.data_mut().iter_mut().for_each(|x| *x *= factor);
        backward.give(place, gradient);
        Ok(())
    });
    Ok(CtcOutput { loss, losses, feasible })
}
