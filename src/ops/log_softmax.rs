//! The logarithm of the softmax of every row.

use crate::backend::cpu;
use crate::device::Category;
use crate::error::Result;
use crate::ops::matrix;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x: [R, V]`. Backward keeps the output.
///
/// # Errors
/// If `x` is no matrix.
pub fn log_softmax(tape: &mut Tape, x: &Var) -> Result<Var> {
    let (_, columns) = matrix("log_softmax", "the input", x.shape())?;
    let mut output = Tensor::uninitialized(tape.device(), x.shape(), Category::Activation);
    if tape.device().computes() {
        cpu::softmax::log_softmax(x.tensor().data(), output.data_mut(), columns);
    }
    let place = tape.wants(x);
    let kept_output = output.clone();
    Ok(tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let mut input_gradient = Tensor::uninitialized(backward.device(), gradient.shape(), Category::Activation);
        if gradient.device().computes() {
            let output = kept_output.data();
            cpu::softmax::log_softmax_backward(output, gradient.data(), input_gradient.data_mut(), columns);
        }
        backward.give(place, input_gradient);
        Ok(())
    }))
}
