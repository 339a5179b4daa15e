//! Connectionist temporal classification (Graves et al., 2006): the negative log-likelihood of the labels under all alignments,
//! with the log-softmax fused. Symbol 0 is the blank.

use crate::backend::cuda::context::{Context, Fetched};
use crate::backend::cuda::softmax::Scale;
use crate::backend::{cpu, cuda};
use crate::device::{Backend, Category, Device};
use crate::error::{Error, Result};
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix};
use crate::primitives::{scale_by, workspace};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use std::sync::Arc;

/// The symbol that stands for nothing.
const BLANK: u32 = 0;

/// What the loss of a batch came to.
pub struct CtcOutput {
    /// The sum of the losses times `scale`, `[1]`.
    pub loss: Var,
    pub losses: Losses,
    /// False where the labels, with a blank between repeated ones, do not fit the frames: such a sequence has no gradient.
    pub feasible: Vec<bool>,
}

/// -ln p(labels) of every sequence, natural log; 0 where it is infeasible.
pub enum Losses {
    Host(Vec<f64>),
    /// f32, not read yet.
    Device(Fetched<f32>),
}

impl Losses {
    /// Waits for the work of a GPU.
    pub fn read(self) -> Vec<f64> {
        match self {
            Losses::Host(losses) => losses,
            Losses::Device(losses) => losses.read().into_iter().map(f64::from).collect(),
        }
    }
}

/// `logits: [R, V]` packed as `sequences`, one list of labels (1..V) for each. Backward keeps the gradient to the logits, computed with the loss.
///
/// # Errors
/// If the shapes do not fit or a label is out of range.
pub fn ctc(tape: &mut Tape, logits: &Var, sequences: &Sequences, labels: &[Vec<u32>], scale: f32) -> Result<CtcOutput> {
    let (_, symbols) = matrix("ctc", "the logits", logits.shape())?;
    expect_shape("ctc", "the logits", logits.shape(), &[sequences.rows(), symbols])?;
    check_labels(labels, sequences, symbols)?;
    let device = tape.device().clone();
    let place = tape.wants(logits);
    let mut gradient = place.map(|_| Tensor::uninitialized(&device, logits.shape(), Category::Activation));
    let mut loss = Tensor::uninitialized(&device, &[1], Category::Activation);
    let batch = Batch { logits: logits.tensor(), symbols, sequences, labels, scale };
    let losses = match device.backend() {
        Backend::Cpu => batch.on_host(&device, gradient.as_mut(), &mut loss),
        Backend::Cuda(context) => batch.on_device(context, &device, gradient.as_mut(), &mut loss)?,
        Backend::Plan => {
            drop(batch.host_workspace(&device));
            Losses::Host(vec![0.0; labels.len()])
        }
    };
    let lengths = sequences.lengths().iter();
    let feasible = lengths.zip(labels).map(|(&length, labels)| cpu::ctc::Batch::feasible(length, labels)).collect();
    let loss = tape.record(&[logits], loss, move |upstream, backward| {
        let (Some(place), Some(mut gradient)) = (place, gradient) else { return Ok(()) };
        scale_by(&mut gradient, &upstream, scale);
        backward.give(place, gradient);
        Ok(())
    });
    Ok(CtcOutput { loss, losses, feasible })
}

fn check_labels(labels: &[Vec<u32>], sequences: &Sequences, symbols: usize) -> Result<()> {
    if labels.len() != sequences.count() {
        let problem = format!("{} lists of labels for {} sequences", labels.len(), sequences.count());
        return Err(Error::operation("ctc", problem));
    }
    for (sequence, labels) in labels.iter().enumerate() {
        if let Some(label) = labels.iter().find(|&&label| label == BLANK || label as usize >= symbols) {
            let problem =
                format!("the label {label} of sequence {sequence} is not between 1 and {}", symbols.saturating_sub(1));
            return Err(Error::operation("ctc", problem));
        }
    }
    Ok(())
}

struct Batch<'a> {
    logits: &'a Tensor,
    symbols: usize,
    sequences: &'a Sequences,
    labels: &'a [Vec<u32>],
    scale: f32,
}

impl Batch<'_> {
    fn host<'a>(&'a self, labels: &'a [&'a [u32]], logits: &'a [f32]) -> cpu::ctc::Batch<'a> {
        let (offsets, lengths) = (self.sequences.offsets(), self.sequences.lengths());
        cpu::ctc::Batch { logits, symbols: self.symbols, offsets, lengths, labels, blank: BLANK }
    }

    fn host_workspace(&self, device: &Device) -> Tensor {
        let labels: Vec<&[u32]> = self.labels.iter().map(Vec::as_slice).collect();
        let length = self.host(&labels, &[]).workspace_length();
        Tensor::uninitialized(device, &[length], Category::Workspace)
    }

    fn on_host(&self, device: &Device, gradient: Option<&mut Tensor>, loss: &mut Tensor) -> Losses {
        let labels: Vec<&[u32]> = self.labels.iter().map(Vec::as_slice).collect();
        let mut losses = vec![0.0; labels.len()];
        let mut workspace = self.host_workspace(device);
        let batch = self.host(&labels, self.logits.data());
        let gradient = gradient.map(Tensor::data_mut);
        cpu::ctc::ctc(&batch, &mut losses, gradient, workspace.data_mut()).expect("the labels were checked");
        loss.data_mut().fill((losses.iter().sum::<f64>() * f64::from(self.scale)) as f32);
        Losses::Host(losses)
    }

    fn on_device(
        &self,
        context: &Arc<Context>,
        device: &Device,
        gradient: Option<&mut Tensor>,
        loss: &mut Tensor,
    ) -> Result<Losses> {
        let packing = self.sequences.on(context);
        // Where each sequence's labels start, then all labels.
        let mut integers = vec![0_i32];
        for labels in self.labels {
            integers.push(integers[integers.len() - 1] + labels.len() as i32);
        }
        integers.extend(self.labels.iter().flatten().map(|&label| label as i32));
        let uploaded = context.bring(&integers);
        let longest = self.labels.iter().map(Vec::len).max().unwrap_or(0);
        let mut losses = Tensor::uninitialized(device, &[self.labels.len()], Category::Activation);
        let batch = cuda::ctc::Batch {
            logits: self.logits.pointer(),
            symbols: self.symbols,
            packing,
            starts: uploaded.pointer(),
            labels: uploaded.pointer() + ((self.labels.len() + 1) * size_of::<i32>()) as u64,
            longest,
        };
        let workspace = workspace(device, cuda::ctc::workspace(&batch, gradient.is_some()));
        let gradient = gradient.map(|gradient| (gradient.pointer_mut(), Scale::ONE));
        cuda::ctc::ctc(context, &batch, losses.pointer_mut(), gradient, workspace.pointer())?;
        cuda::ctc::total(context, losses.pointer(), self.labels.len(), self.scale, loss.pointer_mut());
        Ok(Losses::Device(context.fetch(losses.buffer(), losses.len())))
    }
}
