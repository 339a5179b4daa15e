//! The logarithm of the softmax of every row.

use crate::backend::{cpu, cuda};
use crate::device::{Backend, Category};
use crate::error::Result;
use crate::ops::matrix;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x: [R, V]`. Backward keeps the output.
///
/// # Errors
/// If `x` is no matrix.
pub fn log_softmax(tape: &mut Tape, x: &Var) -> Result<Var> {
    let (rows, columns) = matrix("log_softmax", "the input", x.shape())?;
    let mut output = Tensor::uninitialized(tape.device(), x.shape(), Category::Activation);
    match tape.device().backend() {
        Backend::Cpu => cpu::softmax::log_softmax(x.tensor().data(), output.data_mut(), columns),
        Backend::Cuda(context) => {
            cuda::softmax::log_softmax(context, x.tensor().pointer(), output.pointer_mut(), rows, columns);
        }
        Backend::Plan => {}
    }
    let place = tape.wants(x);
    let kept_output = output.clone();
    Ok(tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let mut input_gradient = Tensor::uninitialized(backward.device(), gradient.shape(), Category::Activation);
        match gradient.device().backend() {
            Backend::Cpu => {
                let (output, input_gradient) = (kept_output.data(), input_gradient.data_mut());
                cpu::softmax::log_softmax_backward(output, gradient.data(), input_gradient, columns);
            }
            Backend::Cuda(context) => {
                let (output, input_gradient) = (kept_output.pointer(), input_gradient.pointer_mut());
                let gradient = gradient.pointer();
                cuda::softmax::log_softmax_backward(context, output, gradient, input_gradient, rows, columns);
            }
            Backend::Plan => {}
        }
        backward.give(place, input_gradient);
        Ok(())
    }))
}
