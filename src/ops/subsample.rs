//! Frame subsampling: every `factor`-th frame of every sequence, the first always (ESPnet's `subsample`).

use crate::backend::cpu;
use crate::device::Category;
use crate::error::Result;
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x: [R, C]` packed as `sequences`; gives the kept rows and how they are packed. Backward keeps nothing.
///
/// # Errors
/// If the rows of `x` are not those of `sequences`.
pub fn subsample(tape: &mut Tape, x: &Var, sequences: &Sequences, factor: usize) -> Result<(Var, Sequences)> {
    let (_, columns) = matrix("subsample", "the input", x.shape())?;
    expect_shape("subsample", "the input", x.shape(), &[sequences.rows(), columns])?;
    if factor == 1 {
        return Ok((x.clone(), sequences.clone()));
    }
    let kept = sequences.subsample(factor);
    let mut output = Tensor::uninitialized(tape.device(), &[kept.rows(), columns], Category::Activation);
    if tape.device().computes() {
        let (all, kept) = (sequences.offsets(), kept.offsets());
        cpu::subsample::subsample(x.tensor().data(), output.data_mut(), all, kept, factor, columns);
    }
    let place = tape.wants(x);
    let (all, kept_sequences) = (sequences.clone(), kept.clone());
    let output = tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let sink = backward.sink(place);
        if gradient.device().computes() {
            let (all, kept) = (all.offsets(), kept_sequences.offsets());
            let sums = sink.tensor.data_mut();
            cpu::subsample::subsample_backward(gradient.data(), sums, all, kept, factor, columns, sink.add);
        }
        Ok(())
    });
    Ok((output, kept))
}
