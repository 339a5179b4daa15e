//! Differences between one time and the next.

use crate::backend::cuda::elementwise::{self, accumulate};
use crate::device::{Backend, Category};
use crate::error::{Error, Result};
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x[t + 1] - x[t]` of every sequence; `x: [R, C]` packed as `sequences`, all N of which are equally long; gives `[R - N, C]`. Backward keeps
/// nothing.
///
/// # Errors
/// If the rows of `x` are not those of `sequences`, or some are shorter than others.
pub fn temporal_difference(tape: &mut Tape, x: &Var, sequences: &Sequences) -> Result<Var> {
    const NAME: &str = "temporal_difference";
    let (rows, columns) = matrix(NAME, "the input", x.shape())?;
    expect_shape(NAME, "the input", x.shape(), &[sequences.rows(), columns])?;
    let count = sequences.count();
    if rows != count * sequences.steps() {
        return Err(Error::operation(NAME, format!("the sequences have unequal lengths {:?}", sequences.lengths())));
    }
    // One time further is one row of every sequence further.
    let (shift, kept) = (count * columns, rows.saturating_sub(count));
    let length = kept * columns;
    let mut output = Tensor::uninitialized(tape.device(), &[kept, columns], Category::Activation);
    match tape.device().backend() {
        Backend::Cpu => {
            let x = x.tensor().data();
            let pairs = x.get(shift..).unwrap_or_default().iter().zip(x);
            output.data_mut().iter_mut().zip(pairs).for_each(|(y, (after, before))| *y = after - before);
        }
        Backend::Cuda(context) => {
            let (x, y) = (x.tensor().pointer(), output.pointer_mut());
            elementwise::scale(context, x, -1.0, y, length);
            accumulate(context, y, x + (shift * size_of::<f32>()) as u64, length);
        }
        Backend::Plan => {}
    }
    let place = tape.wants(x);
    Ok(tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let mut back = Tensor::zeros(backward.device(), &[rows, columns], Category::Activation);
        let device = gradient.device().clone();
        match device.backend() {
            Backend::Cpu => {
                let (dy, dx) = (gradient.data(), back.data_mut());
                dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx -= dy);
                dx.iter_mut().skip(shift).zip(dy).for_each(|(dx, dy)| *dx += dy);
            }
            Backend::Cuda(context) => {
                let (dy, dx) = (gradient.pointer(), back.pointer_mut());
                elementwise::scale(context, dy, -1.0, dx, length);
                accumulate(context, dx + (shift * size_of::<f32>()) as u64, dy, length);
            }
            Backend::Plan => {}
        }
        backward.give(place, back);
        Ok(())
    }))
}
