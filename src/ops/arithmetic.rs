//! Sums and products of tensors of one shape, scaling, and the sum of all elements.

use crate::device::Category;
use crate::error::Result;
use crate::ops::expect_shape;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `a + b`, element by element. Backward keeps nothing.
///
/// # Errors
/// If the shapes differ.
pub fn add(tape: &mut Tape, a: &Var, b: &Var) -> Result<Var> {
    expect_shape("add", "the second input", b.shape(), a.shape())?;
    let output = zip_with(tape, a.tensor(), b.tensor(), |a, b| a + b);
    let places = [tape.wants(a), tape.wants(b)];
    Ok(tape.record(&[a, b], output, move |gradient, backward| {
        for place in places.into_iter().flatten() {
            backward.give_copy(place, &gradient);
        }
        Ok(())
    }))
}

/// `a * b`, element by element. Backward keeps `b` if the gradient of `a` is wanted, and the other way round.
///
/// # Errors
/// If the shapes differ.
pub fn multiply(tape: &mut Tape, a: &Var, b: &Var) -> Result<Var> {
    expect_shape("multiply", "the second input", b.shape(), a.shape())?;
    let output = zip_with(tape, a.tensor(), b.tensor(), |a, b| a * b);
    let kept = [(a, b), (b, a)].map(|(input, other)| tape.wants(input).map(|place| (place, other.tensor().clone())));
    Ok(tape.record(&[a, b], output, move |gradient, backward| {
        for (place, other) in kept.into_iter().flatten() {
            let mut product = Tensor::uninitialized(backward.device(), gradient.shape(), Category::Activation);
            let elements = product.data_mut().iter_mut().zip(gradient.data()).zip(other.data());
            elements.for_each(|((product, gradient), other)| *product = gradient * other);
            backward.give(place, product);
        }
        Ok(())
    }))
}

/// `factor * x`. Backward keeps nothing.
pub fn scale(tape: &mut Tape, x: &Var, factor: f32) -> Var {
    let mut output = Tensor::uninitialized(tape.device(), x.shape(), Category::Activation);
    output.data_mut().iter_mut().zip(x.tensor().data()).for_each(|(output, x)| *output = factor * x);
    let place = tape.wants(x);
    tape.record(&[x], output, move |mut gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        gradient.data_mut().iter_mut().for_each(|x| *x *= factor);
        backward.give(place, gradient);
        Ok(())
    })
}

/// The sum of all elements, `[1]`, summed in f64 in order. Backward keeps nothing.
pub fn sum(tape: &mut Tape, x: &Var) -> Var {
    let mut output = Tensor::uninitialized(tape.device(), &[1], Category::Activation);
    let total: f64 = x.tensor().data().iter().map(|&x| f64::from(x)).sum();
    output.data_mut().fill(total as f32);
    let place = tape.wants(x);
    tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let upstream = gradient.data().first().copied().unwrap_or_default();
        let sink = backward.sink(place);
        let elements = sink.tensor.data_mut().iter_mut();
        if sink.add {
            elements.for_each(|element| *element += upstream);
        } else {
            elements.for_each(|element| *element = upstream);
        }
        Ok(())
    })
}

fn zip_with(tape: &Tape, a: &Tensor, b: &Tensor, function: impl Fn(f32, f32) -> f32) -> Tensor {
    let mut output = Tensor::uninitialized(tape.device(), a.shape(), Category::Activation);
    let elements = output.data_mut().iter_mut().zip(a.data()).zip(b.data());
    elements.for_each(|((output, &a), &b)| *output = function(a, b));
    output
}
