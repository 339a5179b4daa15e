//! Frame subsampling: every `factor`-th frame of every sequence, the first always (ESPnet's `subsample`).

use crate::backend::cuda;
use crate::device::{Backend, Category};
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
    match tape.device().backend() {
        Backend::Cpu => {
            for (from, to) in kept_rows(sequences, &kept, factor) {
                let (from, to) = (scaled(from, columns), scaled(to, columns));
                output.data_mut()[to].copy_from_slice(&x.tensor().data()[from]);
            }
        }
        Backend::Cuda(context) => {
            let (all, kept) = (sequences.on(context), kept.on(context));
            let (x, output) = (x.tensor().pointer(), output.pointer_mut());
            cuda::sequences::subsample(context, x, output, &all, &kept, factor, columns);
        }
        Backend::Plan => {}
    }
    let place = tape.wants(x);
    let (all, kept_sequences) = (sequences.clone(), kept.clone());
    let output = tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let sink = backward.sink(place);
        let device = gradient.device().clone();
        match device.backend() {
            Backend::Cpu => {
                let input_gradient = sink.tensor.data_mut();
                if !sink.add {
                    input_gradient.fill(0.0);
                }
                for (from, to) in kept_rows(&all, &kept_sequences, factor) {
                    let (from, to) = (scaled(from, columns), scaled(to, columns));
                    let sums = input_gradient[from].iter_mut();
                    sums.zip(&gradient.data()[to]).for_each(|(sum, x)| *sum += x);
                }
            }
            Backend::Cuda(context) => {
                let (all, kept) = (all.on(context), kept_sequences.on(context));
                let (gradient, sums) = (gradient.pointer(), sink.tensor.pointer_mut());
                cuda::sequences::subsample_backward(context, gradient, sums, &all, &kept, factor, columns, sink.add);
            }
            Backend::Plan => {}
        }
        Ok(())
    });
    Ok((output, kept))
}

type Rows = std::ops::Range<usize>;

/// Where each kept time step's rows are, before and after: one contiguous block each, since the sequences keep their order.
fn kept_rows(all: &Sequences, kept: &Sequences, factor: usize) -> impl Iterator<Item = (Rows, Rows)> {
    (0..kept.steps()).map(move |time| {
        let (from, to) = (all.offsets()[time * factor], kept.offsets()[time]);
        (from..from + kept.active(time), to..to + kept.active(time))
    })
}

fn scaled(rows: Rows, columns: usize) -> Rows {
    rows.start * columns..rows.end * columns
}
