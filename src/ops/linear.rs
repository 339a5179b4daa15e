//! A linear layer with bias and activation: `y = f(x W^T + b)`.

pub use crate::backend::cpu::activation::Activation;
use crate::backend::cpu::activation::{activation_backward, bias_activation};
use crate::backend::cpu::matmul::{Matrix, column_sums, matmul};
use crate::device::Category;
use crate::error::Result;
use crate::ops::{expect_shape, matrix};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x: [R, C]`, `weight: [O, C]`, `bias: [O]`; gives `[R, O]`.
///
/// Backward keeps the output unless the activation is the identity, `x` if the weight is trainable, the weight if the gradient of `x` is wanted.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(tape: &mut Tape, x: &Var, weight: &Var, bias: &Var, function: Activation) -> Result<Var> {
    let (rows, inputs) = matrix("linear", "the input", x.shape())?;
    let (outputs, _) = matrix("linear", "the weight", weight.shape())?;
    expect_shape("linear", "the weight", weight.shape(), &[outputs, inputs])?;
    expect_shape("linear", "the bias", bias.shape(), &[outputs])?;
    let products = (2 * rows * inputs * outputs) as u64;

    let mut output = Tensor::uninitialized(tape.device(), &[rows, outputs], Category::Activation);
    tape.device().count_operations(products);
    if tape.device().computes() {
        let (x, weight) = (Matrix::rows(x.tensor().data(), inputs), Matrix::rows(weight.tensor().data(), inputs));
        matmul(rows, outputs, inputs, x, weight.transposed(), output.data_mut(), outputs, false);
        bias_activation(output.data_mut(), Some(bias.tensor().data()), outputs, function);
    }

    let [x_place, weight_place, bias_place] = [x, weight, bias].map(|input| tape.wants(input));
    let kept_output = (function != Activation::Identity).then(|| output.clone());
    let kept_weight = x_place.map(|place| (place, weight.tensor().clone()));
    let kept_x = weight_place.map(|place| (place, x.tensor().clone()));
    Ok(tape.record(&[x, weight, bias], output, move |mut gradient, backward| {
        let device = gradient.device().clone();
        if let Some(output) = kept_output
            && device.computes()
        {
            activation_backward(output.data(), gradient.data_mut(), function);
        }
        if let Some(place) = bias_place {
            let sink = backward.sink(place);
            if device.computes() {
                column_sums(gradient.data(), rows, outputs, sink.tensor.data_mut(), sink.add);
            }
        }
        if let Some((place, x)) = kept_x {
            device.count_operations(products);
            let sink = backward.sink(place);
            if device.computes() {
                let (dy, x) = (Matrix::rows(gradient.data(), outputs), Matrix::rows(x.data(), inputs));
                matmul(outputs, inputs, rows, dy.transposed(), x, sink.tensor.data_mut(), inputs, sink.add);
            }
        }
        if let Some((place, weight)) = kept_weight {
            device.count_operations(products);
            let sink = backward.sink(place);
            if device.computes() {
                let (dy, weight) = (Matrix::rows(gradient.data(), outputs), Matrix::rows(weight.data(), inputs));
                matmul(rows, inputs, outputs, dy, weight, sink.tensor.data_mut(), inputs, sink.add);
            }
        }
        Ok(())
    }))
}
