//! The global gradient norm and the clipping that follows from it.

use crate::backend::cpu::simd::vectorized;
use rayon::prelude::*;

/// Elements per partial sum: fixed, so that the sum's order, and with it every bit, is independent of the threads.
const CHUNK: usize = 16_384;
/// Running sums within a chunk; a multiple of every vector width, combined in index order.
const LANES: usize = 16;

/// What [`gradient_norm`] found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientNorm {
    /// Square root of the sum of squares over all gradients; not finite if any element is not.
    pub norm: f64,
    /// The first gradient, by its index, with an infinite or NaN element: the update is to be skipped.
    pub first_non_finite: Option<usize>,
}

/// The Euclidean norm over all `gradients` together, summed in f64 in a fixed order.
///
/// A square of a finite f32 is at most 1.2e77, so in f64 the sum is finite if and only if every element is.
pub fn gradient_norm(gradients: &[&[f32]]) -> GradientNorm {
    let chunks: Vec<(usize, &[f32])> = gradients
        .iter()
        .enumerate()
        .flat_map(|(index, gradient)| gradient.chunks(CHUNK).map(move |chunk| (index, chunk)))
        .collect();
    let sums: Vec<f64> = chunks.par_iter().map(|(_, chunk)| sum_of_squares(chunk)).collect();

    let first_non_finite = chunks.iter().zip(&sums).find(|(_, sum)| !sum.is_finite()).map(|((index, _), _)| *index);
    GradientNorm { norm: sums.iter().sum::<f64>().sqrt(), first_non_finite }
}

fn sum_of_squares(chunk: &[f32]) -> f64 {
    vectorized(
        #[inline(always)]
        || {
            let mut lanes = [0.0f64; LANES];
            let (whole, rest) = chunk.as_chunks::<LANES>();
            for values in whole {
                for (lane, &value) in lanes.iter_mut().zip(values) {
                    *lane += f64::from(value) * f64::from(value);
                }
            }
            for (lane, &value) in lanes.iter_mut().zip(rest) {
                *lane += f64::from(value) * f64::from(value);
            }
            lanes.iter().sum()
        },
    )
}

/// The factor that brings a gradient of `norm` down to `max_norm`, as torch.nn.utils.clip_grad_norm_ defines it:
/// max_norm / (norm + 1e-6), at most 1. A `max_norm` of 0 means no clipping. For finite norms only.
pub fn clip_coefficient(norm: f64, max_norm: f64) -> f32 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_is_that_of_all_gradients_together() {
        let result = gradient_norm(&[&[3.0], &[], &[0.0, 4.0]]);
        assert_eq!(result, GradientNorm { norm: 5.0, first_non_finite: None });
        assert_eq!(gradient_norm(&[]).norm, 0.0);
    }

    #[test]
    fn a_norm_beyond_f32_is_still_finite() {
        let result = gradient_norm(&[&[f32::MAX; 40]]);
        assert!((result.norm / (f64::from(f32::MAX) * 40f64.sqrt()) - 1.0).abs() < 1e-14);
        assert_eq!(result.first_non_finite, None);
    }

    #[test]
    fn the_first_gradient_that_is_not_finite_is_named() {
        let mut long = vec![1.0f32; 3 * CHUNK + 5];
        long[2 * CHUNK + 7] = f32::NEG_INFINITY;
        let result = gradient_norm(&[&[1.0, 2.0], &long, &[f32::NAN]]);
        assert_eq!(result.first_non_finite, Some(1));
        assert!(!result.norm.is_finite());
        assert_eq!(gradient_norm(&[&[1.0], &[2.0, f32::NAN]]).first_non_finite, Some(1));
    }

    #[test]
    fn the_norm_has_the_same_bits_with_any_number_of_threads() {
        let gradient: Vec<f32> =
            (0..5 * CHUNK + 13).map(|i| ((i * 7919 % 10007) as f32 / 313.0 - 15.0).exp()).collect();
        let with_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| gradient_norm(&[&gradient, &gradient[3..]])).norm.to_bits()
        };
        assert_eq!(with_threads(1), with_threads(2));
        assert_eq!(with_threads(1), with_threads(5));
    }

    #[test]
    fn clipping_follows_pytorch() {
        // 5 / (20 + 1e-6), and never an increase.
        assert_eq!(clip_coefficient(20.0, 5.0), (5.0f64 / 20.000001) as f32);
        assert_eq!(clip_coefficient(0.5, 5.0), 1.0);
        assert_eq!(clip_coefficient(1e30, 0.0), 1.0);
    }
}
