//! A linear layer with bias and activation: `y = f(x W^T + b)`.

pub use crate::backend::cpu::activation::Activation;
use crate::device::Category;
use crate::error::Result;
use crate::ops::{expect_shape, matrix};
use crate::primitives::{
    Factor, Output, activation_backward, activation_backward_with_sums, affine, column_sums, product,
};
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
    let mut output = Tensor::uninitialized(tape.device(), &[rows, outputs], Category::Activation);
    affine(
        (rows, outputs, inputs),
        Factor::rows(x.tensor(), inputs),
        Factor::rows(weight.tensor(), inputs),
        bias.tensor(),
        function,
        Output::rows(&mut output, outputs),
    );

    let [x_place, weight_place, bias_place] = [x, weight, bias].map(|input| tape.wants(input));
    let kept_output = (function != Activation::Identity).then(|| output.clone());
    let kept_weight = x_place.map(|place| (place, weight.tensor().clone()));
    let kept_x = weight_place.map(|place| (place, x.tensor().clone()));
    Ok(tape.record(&[x, weight, bias], output, move |mut gradient, backward| {
        match (kept_output, bias_place) {
            (Some(output), Some(place)) => {
                let sink = backward.sink(place);
                activation_backward_with_sums(&output, &mut gradient, function, rows, sink.tensor, sink.add);
            }
            (Some(output), None) => activation_backward(&output, &mut gradient, function),
            (None, Some(place)) => {
                let sink = backward.sink(place);
                column_sums(Factor::rows(&gradient, outputs), rows, sink.tensor, sink.add);
            }
            (None, None) => {}
        }
        if let Some((place, x)) = kept_x {
            let sink = backward.sink(place);
            let (dy, x) = (Factor::rows(&gradient, outputs), Factor::rows(&x, inputs));
            product((outputs, inputs, rows), dy.transposed(), x, sink.tensor, sink.add);
        }
        if let Some((place, weight)) = kept_weight {
            let sink = backward.sink(place);
            let (dy, weight) = (Factor::rows(&gradient, outputs), Factor::rows(&weight, inputs));
            product((rows, inputs, outputs), dy, weight, sink.tensor, sink.add);
        }
        Ok(())
    }))
}
