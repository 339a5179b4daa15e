//! Log-softmax over rows, its backward, and the arg max.
//!
//! One pass finds the maximum, one sums exp(x - max) (in 8 or 16 partial sums by vector lane, then pairwise), one writes
//! x - max - ln(sum); the logarithm of the sum is taken once a row, in f64.

use super::matmul::rows_per_task;
use super::simd::{WithSimd, apply, exp, exp_nonpositive};
use pulp::Simd;
use rayon::prelude::*;

/// y = x - ln sum exp(x) in every row of `columns`; x, y: [rows, columns].
pub fn log_softmax(x: &[f32], y: &mut [f32], columns: usize) {
    assert_eq!(x.len(), y.len(), "log-softmax: input and output differ in length");
    if columns == 0 {
        return;
    }
    let task = rows_per_task(columns) * columns;
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| apply(Forward { x, y, columns }));
}

/// dx = dy - exp(y) sum(dy) in every row; y is what [`log_softmax`] gave. All: [rows, columns].
pub fn log_softmax_backward(y: &[f32], dy: &[f32], dx: &mut [f32], columns: usize) {
    assert!(y.len() == dy.len() && y.len() == dx.len(), "log-softmax backward: lengths differ");
    if columns == 0 {
        return;
    }
    let task = rows_per_task(columns) * columns;
    dx.par_chunks_mut(task)
        .zip(y.par_chunks(task).zip(dy.par_chunks(task)))
        .for_each(|(dx, (y, dy))| apply(Backward { y, dy, dx, columns }));
}

/// The maximum of a row; NaN entries are passed over.
#[inline(always)]
pub(super) fn row_max<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let (vectors, rest) = S::as_simd_f32s(row);
    let mut max = simd.splat_f32s(f32::NEG_INFINITY);
    for &vector in vectors {
        max = simd.select_f32s(simd.greater_than_f32s(vector, max), vector, max);
    }
    rest.iter().fold(simd.reduce_max_f32s(max), |max, &x| if x > max { x } else { max })
}

struct Forward<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    columns: usize,
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (x, y) in self.x.chunks_exact(self.columns).zip(self.y.chunks_exact_mut(self.columns)) {
            let max = row_max(simd, x);
            let (vectors, rest) = S::as_simd_f32s(x);
            let mut sum = simd.splat_f32s(0.0);
            for &vector in vectors {
                sum = simd.add_f32s(sum, exp_nonpositive(simd, simd.sub_f32s(vector, simd.splat_f32s(max))));
            }
            let mut sum = simd.reduce_sum_f32s(sum);
            if !rest.is_empty() {
                let shifted = simd.sub_f32s(simd.partial_load_f32s(rest), simd.splat_f32s(max));
                let mut tail = [0.0; 16];
                let tail = &mut tail[..rest.len()];
                simd.partial_store_f32s(tail, exp_nonpositive(simd, shifted));
                sum += tail.iter().sum::<f32>();
            }
            let log_sum = f64::from(sum).ln() as f32;
            // Two subtractions: max + log_sum would lose the small logarithm beside a large maximum.
            y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - max) - log_sum);
        }
    }
}

struct Backward<'a> {
    y: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    columns: usize,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.y.chunks_exact(self.columns).zip(self.dy.chunks_exact(self.columns));
        for ((y, dy), dx) in rows.zip(self.dx.chunks_exact_mut(self.columns)) {
            let (vectors, rest) = S::as_simd_f32s(dy);
            let mut sum = simd.splat_f32s(0.0);
            for &dy in vectors {
                sum = simd.add_f32s(sum, dy);
            }
            let sum = simd.splat_f32s(simd.reduce_sum_f32s(sum) + rest.iter().sum::<f32>());
            let lanes = S::F32_LANES;
            for ((y, dy), dx) in y.chunks(lanes).zip(dy.chunks(lanes)).zip(dx.chunks_mut(lanes)) {
                let probability = exp(simd, simd.partial_load_f32s(y));
                simd.partial_store_f32s(dx, simd.negate_mul_add_e_f32s(probability, sum, simd.partial_load_f32s(dy)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    fn reference(x: &[f32], columns: usize) -> Vec<f64> {
        let mut y = Vec::new();
        for row in x.chunks_exact(columns) {
            let max = row.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
            let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
            y.extend(row.iter().map(|&x| f64::from(x) - max - sum.ln()));
        }
        y
    }

    #[test]
    fn log_softmax_agrees_with_f64_for_odd_sizes_and_extreme_logits() {
        for (rows, columns, scale) in [(1, 1, 1.0), (7, 5, 3.0), (3, 50, 20.0), (200, 33, 1.0), (2, 1001, 1e4)] {
            let x: Vec<f32> = random(rows * columns, columns as u64).iter().map(|x| x * scale).collect();
            let mut y = vec![f32::NAN; x.len()];
            log_softmax(&x, &mut y, columns);
            // exp, the sum and two subtractions: a few units of the last place of the result, or of the logarithm of the sum.
            assert_close(&y, &reference(&x, columns), 2e-6, 3e-7, "log-softmax");
        }
    }

    #[test]
    fn backward_is_the_derivative_in_f64() {
        for (rows, columns) in [(1, 1), (4, 7), (3, 50)] {
            let (x, dy) = (random(rows * columns, 3), random(rows * columns, 4));
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![f32::NAN; x.len()]);
            log_softmax(&x, &mut y, columns);
            log_softmax_backward(&y, &dy, &mut dx, columns);
            let expected: Vec<f64> = reference(&x, columns)
                .chunks_exact(columns)
                .zip(dy.chunks_exact(columns))
                .flat_map(|(y, dy)| {
                    let sum: f64 = dy.iter().map(|&dy| f64::from(dy)).sum();
                    y.iter().zip(dy).map(move |(y, &dy)| f64::from(dy) - y.exp() * sum).collect::<Vec<_>>()
                })
                .collect();
            assert_close(&dx, &expected, 2e-6, 1e-6, "log-softmax backward");
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let x = random(1000 * 50, 8);
        let run = |threads| {
            in_pool(threads, || {
                let mut y = vec![0.0; x.len()];
                log_softmax(&x, &mut y, 50);
                y
            })
        };
        assert_eq!(run(1), run(3));
    }
}
