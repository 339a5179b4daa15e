//! The cross entropy of rows of logits and their labels, with the softmax fused, and with label smoothing (Szegedy et al., 2016), or of whole
//! distributions: soft targets, as another model's probabilities are (Hinton, Vinyals, Dean, 2015; Tang et al., 2015).

use crate::backend::cpu::cross_entropy::{CrossEntropy, IGNORED, Targets as OnHost};
use crate::backend::cuda::context::{Buffer, Context};
use crate::backend::cuda::matmul::Operand;
use crate::backend::cuda::softmax::{self, Scale};
use crate::device::{Backend, Category};
use crate::error::{Error, Result};
use crate::ops::ctc::Losses;
use crate::ops::{expect_shape, matrix};
use crate::primitives::scale_by;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use std::sync::Arc;

/// What the probabilities of every row are drawn to.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// `[R]`, below V; [`LEFT_OUT`]: the row has no loss and no gradient.
    pub labels: &'a [u32],
    /// The part of the probability that goes to the prior instead of the label.
    pub smoothing: f32,
    /// `[V]`, adds up to 1; none: uniform.
    pub prior: Option<&'a [f32]>,
}

/// What the probabilities of every row are drawn to: labels, or distributions `[R, V]` of which every row adds up to 1.
#[derive(Debug, Clone, Copy)]
pub enum Targets<'a> {
    Labels(Labels<'a>),
    Distributions(&'a [f32]),
}

impl<'a> From<Labels<'a>> for Targets<'a> {
    fn from(labels: Labels<'a>) -> Self {
        Targets::Labels(labels)
    }
}

impl Targets<'_> {
    fn check(&self, name: &'static str, rows: usize, columns: usize) -> Result<()> {
        let labels = match *self {
            Targets::Labels(labels) => labels,
            Targets::Distributions(rows_of) => {
                return expect_shape(name, "the target distributions", &[rows_of.len()], &[rows * columns]);
            }
        };
        expect_shape(name, "the labels", &[labels.labels.len()], &[rows])?;
        if let Some(prior) = labels.prior {
            expect_shape(name, "the prior", &[prior.len()], &[columns])?;
        }
        match labels.labels.iter().find(|&&label| label != LEFT_OUT && label as usize >= columns) {
            Some(label) => Err(Error::operation(name, format!("the label {label} is not below {columns}"))),
            None => Ok(()),
        }
    }

    fn on_host(&self) -> OnHost<'_> {
        match *self {
            Targets::Labels(Labels { labels, smoothing, prior }) => OnHost::Labels { labels, smoothing, prior },
            Targets::Distributions(rows) => OnHost::Distributions(rows),
        }
    }

    /// On a GPU, with what has to be there as long as they are read.
    fn on_device(&self, context: &Arc<Context>) -> (softmax::Targets, [Option<Buffer>; 2]) {
        match *self {
            Targets::Labels(Labels { labels, smoothing, prior }) => {
                let (labels, prior) = (context.bring(labels), prior.map(|prior| context.bring(prior)));
                let at = prior.as_ref().map(Buffer::pointer);
                (softmax::Targets::Labels { labels: labels.pointer(), smoothing, prior: at }, [Some(labels), prior])
            }
            Targets::Distributions(rows) => {
                let rows = context.bring(rows);
                (softmax::Targets::Distributions(rows.pointer()), [Some(rows), None])
            }
        }
    }
}

/// The label of a row that is left out.
pub const LEFT_OUT: u32 = IGNORED;

/// What the loss of all rows came to.
pub struct CrossEntropyOutput {
    /// The sum of the losses times `scale`, `[1]`.
    pub loss: Var,
    /// Of every row, natural log.
    pub losses: Losses,
}

/// `logits: [R, V]`. Backward keeps the gradient to the logits, computed with the loss.
///
/// # Errors
/// If the shapes do not fit or a label is out of range.
pub fn cross_entropy<'a>(
    tape: &mut Tape,
    logits: &Var,
    targets: impl Into<Targets<'a>>,
    scale: f32,
) -> Result<CrossEntropyOutput> {
    const NAME: &str = "cross_entropy";
    let targets = targets.into();
    let (rows, columns) = matrix(NAME, "the logits", logits.shape())?;
    targets.check(NAME, rows, columns)?;
    let device = tape.device().clone();
    let place = tape.wants(logits);
    // The kernels put the gradient in the logits' place.
    let mut work = Tensor::uninitialized(&device, logits.shape(), Category::Activation);
    let mut loss = Tensor::uninitialized(&device, &[1], Category::Activation);
    let losses = match device.backend() {
        Backend::Cpu => {
            let batch = CrossEntropy { columns, targets: targets.on_host() };
            let mut losses = vec![0.0; rows];
            match place {
                Some(_) => {
                    work.data_mut().copy_from_slice(logits.tensor().data());
                    batch.losses_and_gradient(work.data_mut(), &mut losses, scale);
                }
                None => batch.losses(logits.tensor().data(), &mut losses),
            }
            loss.data_mut().fill((losses.iter().sum::<f64>() * f64::from(scale)) as f32);
            Losses::Host(losses)
        }
        Backend::Cuda(context) => {
            let bytes = logits.tensor().len() * size_of::<f32>();
            context.copy(work.buffer(), logits.tensor().buffer(), bytes);
            let (targets, _there) = targets.on_device(context);
            let of_rows = Tensor::uninitialized(&device, &[rows], Category::Activation);
            let batch =
                softmax::CrossEntropy { logits: Operand::rows(work.pointer_mut(), columns), rows, columns, targets };
            let gradient = place.map(|_| Scale { value: scale, factor: None });
            softmax::cross_entropy(context, &batch, of_rows.pointer(), gradient);
            softmax::total(context, of_rows.pointer(), rows, scale, loss.pointer_mut());
            Losses::Device(context.fetch(of_rows.buffer(), rows))
        }
        Backend::Plan => Losses::Host(vec![0.0; rows]),
    };
    let kept = place.map(|place| (place, work));
    let loss = tape.record(&[logits], loss, move |upstream, backward| {
        let Some((place, mut gradient)) = kept else { return Ok(()) };
        // The scale is in the gradient already.
        scale_by(&mut gradient, &upstream, 1.0);
        backward.give(place, gradient);
        Ok(())
    });
    Ok(CrossEntropyOutput { loss, losses })
}
