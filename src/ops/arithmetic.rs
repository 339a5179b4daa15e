//! Sums and products of tensors of one shape, scaling, and the sum of all elements.

use crate::backend::cuda;
use crate::device::{Backend, Category};
use crate::error::Result;
use crate::ops::expect_shape;
use crate::primitives::{self, fill, scale_by};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `a + b`, element by element. Backward keeps nothing.
///
/// # Errors
/// If the shapes differ.
pub fn add(tape: &mut Tape, a: &Var, b: &Var) -> Result<Var> {
    expect_shape("add", "the second input", b.shape(), a.shape())?;
    let output = combine(Combination::Sum, a.tensor(), b.tensor());
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
    let output = combine(Combination::Product, a.tensor(), b.tensor());
    let kept = [(a, b), (b, a)].map(|(input, other)| tape.wants(input).map(|place| (place, other.tensor().clone())));
    Ok(tape.record(&[a, b], output, move |gradient, backward| {
        for (place, other) in kept.into_iter().flatten() {
            backward.give(place, combine(Combination::Product, &gradient, &other));
        }
        Ok(())
    }))
}

/// `factor * x`. Backward keeps nothing.
pub fn scale(tape: &mut Tape, x: &Var, factor: f32) -> Var {
    let output = scaled(x.tensor(), factor);
    let place = tape.wants(x);
    tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        backward.give(place, scaled(&gradient, factor));
        Ok(())
    })
}

/// The sum of all elements, `[1]`, summed in f64 in order. Backward keeps nothing.
pub fn sum(tape: &mut Tape, x: &Var) -> Var {
    let device = tape.device().clone();
    let mut output = Tensor::uninitialized(&device, &[1], Category::Activation);
    match device.backend() {
        Backend::Cpu => {
            let total: f64 = x.tensor().data().iter().map(|&x| f64::from(x)).sum();
            output.data_mut().fill(total as f32);
        }
        Backend::Cuda(context) => {
            let count = x.tensor().len();
            let workspace = primitives::workspace(&device, cuda::elementwise::sum_workspace(count));
            cuda::elementwise::sum(context, x.tensor().pointer(), count, output.pointer_mut(), workspace.pointer());
        }
        Backend::Plan => {}
    }
    let place = tape.wants(x);
    let shape = x.shape().to_vec();
    tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let mut spread = Tensor::uninitialized(backward.device(), &shape, Category::Activation);
        fill(&mut spread, 1.0);
        scale_by(&mut spread, &gradient, 1.0);
        backward.give(place, spread);
        Ok(())
    })
}

/// The mean of the squares of all elements, `[1]`: activation regularisation (Merity, Keskar, Socher, 2018), and, of the differences
/// [`super::temporal::temporal_difference`], the temporal one. Backward keeps `x`.
///
/// # Errors
/// None: the shapes always fit.
pub fn mean_square(tape: &mut Tape, x: &Var) -> Result<Var> {
    let squares = multiply(tape, x, x)?;
    let total = sum(tape, &squares);
    Ok(scale(tape, &total, 1.0 / x.tensor().len().max(1) as f32))
}

#[derive(Clone, Copy)]
enum Combination {
    Sum,
    Product,
}

fn combine(combination: Combination, a: &Tensor, b: &Tensor) -> Tensor {
    let device = a.device().clone();
    let mut output = Tensor::uninitialized(&device, a.shape(), Category::Activation);
    match device.backend() {
        Backend::Cpu => {
            let elements = output.data_mut().iter_mut().zip(a.data()).zip(b.data());
            match combination {
                Combination::Sum => elements.for_each(|((output, a), b)| *output = a + b),
                Combination::Product => elements.for_each(|((output, a), b)| *output = a * b),
            }
        }
        Backend::Cuda(context) => {
            let (count, a, b, output) = (a.len(), a.pointer(), b.pointer(), output.pointer_mut());
            match combination {
                Combination::Sum => cuda::elementwise::add(context, a, b, output, count),
                Combination::Product => cuda::elementwise::multiply(context, a, b, output, count),
            }
        }
        Backend::Plan => {}
    }
    output
}

fn scaled(x: &Tensor, factor: f32) -> Tensor {
    let mut output = Tensor::uninitialized(x.device(), x.shape(), Category::Activation);
    primitives::scale(x, factor, &mut output);
    output
}
