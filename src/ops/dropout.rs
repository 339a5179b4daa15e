//! Dropout (Srivastava et al., 2014): an element is zero with probability p, the others are divided by 1 - p.
//!
//! The mask is never kept. It comes from Philox, keyed by the dropout seed, the stage and the layer's name, at the counter (unit / 4, time,
//! sequence, step), and is compared as integers: backward draws it again, and every device draws the same.

use crate::backend::{cpu, cuda};
use crate::device::{Backend, Category};
use crate::error::Result;
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix};
use crate::random::Mask;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x: [R, C]` packed as `sequences`. Backward keeps nothing.
///
/// # Errors
/// If the rows of `x` are not those of `sequences`.
pub fn dropout(tape: &mut Tape, x: &Var, sequences: &Sequences, mask: Mask) -> Result<Var> {
    let (_, columns) = matrix("dropout", "the input", x.shape())?;
    expect_shape("dropout", "the input", x.shape(), &[sequences.rows(), columns])?;
    let mut output = Tensor::uninitialized(tape.device(), x.shape(), Category::Activation);
    match tape.device().backend() {
        Backend::Cpu => {
            cpu::dropout::apply(x.tensor().data(), output.data_mut(), sequences.offsets(), columns, &mask);
        }
        Backend::Cuda(context) => {
            let packing = sequences.on(context);
            cuda::sequences::dropout(context, x.tensor().pointer(), output.pointer_mut(), &packing, columns, &mask);
        }
        Backend::Plan => {}
    }
    let place = tape.wants(x);
    let sequences = sequences.clone();
    Ok(tape.record(&[x], output, move |mut gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let device = gradient.device().clone();
        match device.backend() {
            Backend::Cpu => {
                cpu::dropout::apply_in_place(gradient.data_mut(), sequences.offsets(), columns, &mask);
            }
            Backend::Cuda(context) => {
                let (packing, gradient) = (sequences.on(context), gradient.pointer_mut());
                cuda::sequences::dropout(context, gradient, gradient, &packing, columns, &mask);
            }
            Backend::Plan => {}
        }
        backward.give(place, gradient);
        Ok(())
    }))
}
