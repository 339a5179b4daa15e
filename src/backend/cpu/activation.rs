//! Elementwise nonlinearities after a linear layer, with its bias, and their backward. All work in place where that saves a pass.
//!
//! The derivative is taken from the result y, so nothing else is kept: tanh' = 1 - y^2, sigmoid' = y (1 - y), relu' = [y > 0].

use super::matmul::rows_per_task;
use super::simd::{WithSimd, apply, sigmoid, tanh};
use pulp::Simd;
use rayon::prelude::*;

/// What follows the sum of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Identity,
    Tanh,
    Sigmoid,
    Relu,
}

/// y = activation(y + bias) in every row; y: [rows, columns], bias: [columns] if there is one.
pub fn bias_activation(y: &mut [f32], bias: Option<&[f32]>, columns: usize, activation: Activation) {
    assert!(bias.is_none_or(|bias| bias.len() == columns), "a bias of another length than the row");
    if columns == 0 || (bias.is_none() && activation == Activation::Identity) {
        return;
    }
    y.par_chunks_mut(rows_per_task(columns) * columns).for_each(|y| apply(Forward { y, bias, columns, activation }));
}

/// dx = dy activation'(y), where y is what [`bias_activation`] gave. `dy` becomes `dx` in place; both [rows, columns].
pub fn activation_backward(y: &[f32], dy: &mut [f32], activation: Activation) {
    assert_eq!(y.len(), dy.len(), "an activation and its gradient differ in length");
    if activation == Activation::Identity {
        return;
    }
    dy.par_chunks_mut(4096).zip(y.par_chunks(4096)).for_each(|(dy, y)| apply(Backward { y, dy, activation }));
}

struct Forward<'a> {
    y: &'a mut [f32],
    bias: Option<&'a [f32]>,
    columns: usize,
    activation: Activation,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Forward { y, bias, columns, activation } = self;
        let lanes = S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        for row in y.chunks_exact_mut(columns) {
            for (j, y) in row.chunks_mut(lanes).enumerate() {
                let mut x = simd.partial_load_f32s(y);
                if let Some(bias) = bias {
                    x = simd.add_f32s(x, simd.partial_load_f32s(&bias[j * lanes..][..y.len()]));
                }
                let result = match activation {
                    Activation::Identity => x,
                    Activation::Tanh => tanh(simd, x),
                    Activation::Sigmoid => sigmoid(simd, x),
                    // Written so that a NaN stays one.
                    Activation::Relu => simd.select_f32s(simd.less_than_f32s(x, zero), zero, x),
                };
                simd.partial_store_f32s(y, result);
            }
        }
    }
}

struct Backward<'a> {
    y: &'a [f32],
    dy: &'a mut [f32],
    activation: Activation,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
        for (y, dy) in self.y.chunks(lanes).zip(self.dy.chunks_mut(lanes)) {
            let (y, d) = (simd.partial_load_f32s(y), simd.partial_load_f32s(dy));
            let dx = match self.activation {
                Activation::Identity => d,
                Activation::Tanh => simd.mul_f32s(d, simd.negate_mul_add_e_f32s(y, y, one)),
                Activation::Sigmoid => simd.mul_f32s(d, simd.mul_f32s(y, simd.sub_f32s(one, y))),
                Activation::Relu => simd.select_f32s(simd.greater_than_f32s(y, zero), d, zero),
            };
            simd.partial_store_f32s(dy, dx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, random};
    use super::*;

    const ALL: [Activation; 4] = [Activation::Identity, Activation::Tanh, Activation::Sigmoid, Activation::Relu];

    fn exact(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Identity => x,
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Activation::Relu => x.max(0.0),
        }
    }

    #[test]
    fn forward_and_backward_agree_with_f64_and_central_differences() {
        for (rows, columns) in [(1, 1), (5, 13), (300, 32)] {
            for activation in ALL {
                let (x, bias, dy) = (random(rows * columns, 1), random(columns, 2), random(rows * columns, 3));
                let mut y = x.clone();
                bias_activation(&mut y, Some(&bias), columns, activation);
                let sum = |i: usize| f64::from(x[i] + bias[i % columns]);
                let expected: Vec<f64> = (0..x.len()).map(|i| exact(activation, sum(i))).collect();
                assert_close(&y, &expected, 0.0, 4e-7, "activation");
                let mut dx = dy.clone();
                activation_backward(&y, &mut dx, activation);
                let h = 1e-5;
                let expected: Vec<f64> = (0..x.len())
                    .map(|i| {
                        let slope = (exact(activation, sum(i) + h) - exact(activation, sum(i) - h)) / (2.0 * h);
                        f64::from(dy[i]) * slope
                    })
                    .collect();
                // Relu has no derivative at 0: none of these random sums lies within h of it.
                assert_close(&dx, &expected, 1e-6, 1e-6, "activation backward");
            }
        }
    }

    #[test]
    fn nan_is_passed_on() {
        for activation in ALL {
            let mut y = [f32::NAN; 9];
            bias_activation(&mut y, None, 3, activation);
            assert!(y.iter().all(|y| y.is_nan()), "{activation:?}");
        }
    }
}
