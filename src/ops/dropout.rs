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

/// Which elements share a random number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// None.
    Elementwise,
    /// Those of a unit at all times of a sequence: locked dropout (Gal and Ghahramani, 2016), whose counter has time 0.
    Locked,
}

/// `x: [R, C]` packed as `sequences`. Backward keeps nothing.
///
/// # Errors
/// If the rows of `x` are not those of `sequences`.
pub fn dropout(tape: &mut Tape, x: &Var, sequences: &Sequences, mask: Mask) -> Result<Var> {
    dropout_as(tape, x, sequences, mask, Sharing::Elementwise)
}

/// [`dropout`] with or without a mask of its own for every time.
///
/// # Errors
/// As [`dropout`].
pub fn dropout_as(tape: &mut Tape, x: &Var, sequences: &Sequences, mask: Mask, sharing: Sharing) -> Result<Var> {
    let (_, columns) = matrix("dropout", "the input", x.shape())?;
    expect_shape("dropout", "the input", x.shape(), &[sequences.rows(), columns])?;
    let mut output = Tensor::uninitialized(tape.device(), x.shape(), Category::Activation);
    masked(x.tensor(), &mut output, sequences, columns, &mask, sharing);
    let place = tape.wants(x);
    let sequences = sequences.clone();
    Ok(tape.record(&[x], output, move |mut gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        masked_in_place(&mut gradient, &sequences, columns, &mask, sharing);
        backward.give(place, gradient);
        Ok(())
    }))
}

/// `output = mask * x`, both `[R, columns]`.
pub(crate) fn masked(
    x: &Tensor,
    output: &mut Tensor,
    sequences: &Sequences,
    columns: usize,
    mask: &Mask,
    sharing: Sharing,
) {
    match x.device().backend() {
        Backend::Cpu => {
            output.data_mut().copy_from_slice(x.data());
            masked_in_place(output, sequences, columns, mask, sharing);
        }
        Backend::Cuda(context) => {
            let (packing, locked) = (sequences.on(context), sharing == Sharing::Locked);
            let (x, output) = (x.pointer(), output.pointer_mut());
            cuda::sequences::dropout_at(context, x, output, &packing, columns, mask, locked, None);
        }
        Backend::Plan => {}
    }
}

/// `x = mask * x`, `[R, columns]`.
pub(crate) fn masked_in_place(x: &mut Tensor, sequences: &Sequences, columns: usize, mask: &Mask, sharing: Sharing) {
    let device = x.device().clone();
    match device.backend() {
        Backend::Cpu => match sharing {
            Sharing::Elementwise => cpu::dropout::apply_in_place(x.data_mut(), sequences.offsets(), columns, mask),
            Sharing::Locked => cpu::dropout::apply_locked(x.data_mut(), sequences.offsets(), columns, mask),
        },
        Backend::Cuda(context) => {
            let (packing, locked, x) = (sequences.on(context), sharing == Sharing::Locked, x.pointer_mut());
            cuda::sequences::dropout_at(context, x, x, &packing, columns, mask, locked, None);
        }
        Backend::Plan => {}
    }
}
