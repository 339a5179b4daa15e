//! Layer normalisation of rows (Ba, Kiros, Hinton, 2016): y = gamma n + beta with n = (x - mean) / deviation, where mean and deviation =
//! sqrt(variance + epsilon) are the row's.
//!
//! The variance is taken about the mean, in a pass of its own over a row that is then in the first-level cache, so that nothing cancels. Backward reads
//! x again, and the mean and 1 / deviation of every row.

use super::matmul::rows_per_task;
use super::simd::{WithSimd, apply};
use pulp::Simd;
use rayon::prelude::*;

/// What forward finds of every row and backward needs: both `[rows]`.
#[derive(Debug, Clone, Copy)]
pub struct Statistics<'a> {
    pub means: &'a [f32],
    pub inverse_deviations: &'a [f32],
}

/// y = gamma n + beta in every row; x, y: `[rows, columns]`, gamma, beta: `[columns]`, means, inverse_deviations: `[rows]`.
#[allow(clippy::too_many_arguments)] // What goes in and what comes out: a struct would only rename them.
pub fn forward(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    y: &mut [f32],
    means: &mut [f32],
    inverse_deviations: &mut [f32],
    columns: usize,
) {
    assert!(gamma.len() == columns && beta.len() == columns, "layer norm: a scale and a shift for every column");
    assert!(x.len() == means.len() * columns && y.len() == x.len(), "layer norm: input and output are [rows, columns]");
    assert_eq!(means.len(), inverse_deviations.len(), "layer norm: a mean and a deviation for every row");
    if columns == 0 {
        return;
    }
    let rows = rows_per_task(columns);
    let task = rows * columns;
    let outputs = y.par_chunks_mut(task).zip(means.par_chunks_mut(rows)).zip(inverse_deviations.par_chunks_mut(rows));
    outputs.zip(x.par_chunks(task)).for_each(|(((y, means), inverse_deviations), x)| {
        apply(Forward { x, gamma, beta, epsilon, y, means, inverse_deviations });
    });
}

/// dx = or, accumulating, += (g - mean(g) - n mean(g n)) / deviation in every row, with g = dy gamma; x, dy, dx: `[rows, columns]`.
pub fn backward(x: &[f32], gamma: &[f32], statistics: Statistics, dy: &[f32], dx: &mut [f32], accumulate: bool) {
    let columns = gamma.len();
    check(x, statistics, dy, columns);
    assert_eq!(dx.len(), x.len(), "layer norm: a gradient is as long as its input");
    if columns == 0 {
        return;
    }
    let rows = rows_per_task(columns);
    let task = rows * columns;
    let kept = statistics.means.par_chunks(rows).zip(statistics.inverse_deviations.par_chunks(rows));
    let inputs = x.par_chunks(task).zip(dy.par_chunks(task)).zip(kept);
    dx.par_chunks_mut(task).zip(inputs).for_each(|(dx, ((x, dy), (means, inverse_deviations)))| {
        let statistics = Statistics { means, inverse_deviations };
        apply(Backward { x, gamma, statistics, dy, dx, accumulate });
    });
}

/// dgamma = or, accumulating, += the sum over the rows of dy n, dbeta that of dy; x, dy: `[rows, columns]`, dgamma, dbeta: `[columns]`.
pub fn backward_parameters(
    x: &[f32],
    statistics: Statistics,
    dy: &[f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
    accumulate: bool,
) {
    let columns = dgamma.len();
    assert_eq!(columns, dbeta.len(), "layer norm: as many scales as shifts");
    check(x, statistics, dy, columns);
    let tasks = dgamma.par_chunks_mut(SUM_COLUMNS).zip(dbeta.par_chunks_mut(SUM_COLUMNS)).enumerate();
    tasks.for_each(|(task, (dgamma, dbeta))| {
        let first = task * SUM_COLUMNS;
        apply(ParameterSums { x, statistics, dy, columns, first, dgamma, dbeta, accumulate });
    });
}

fn check(x: &[f32], statistics: Statistics, dy: &[f32], columns: usize) {
    let rows = statistics.means.len();
    assert_eq!(rows, statistics.inverse_deviations.len(), "layer norm: a mean and a deviation for every row");
    assert!(x.len() == rows * columns && dy.len() == x.len(), "layer norm: input and gradient are [rows, columns]");
}

struct Forward<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    epsilon: f32,
    y: &'a mut [f32],
    means: &'a mut [f32],
    inverse_deviations: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Forward { x, gamma, beta, epsilon, y, means, inverse_deviations } = self;
        let columns = gamma.len();
        let rows = x.chunks_exact(columns).zip(y.chunks_exact_mut(columns));
        for ((x, y), (mean, inverse)) in rows.zip(means.iter_mut().zip(inverse_deviations)) {
            let (vectors, rest) = S::as_simd_f32s(x);
            let mut sum = simd.splat_f32s(0.0);
            for &x in vectors {
                sum = simd.add_f32s(sum, x);
            }
            *mean = (simd.reduce_sum_f32s(sum) + rest.iter().sum::<f32>()) / columns as f32;
            let mut squares = simd.splat_f32s(0.0);
            for &x in vectors {
                let deviation = simd.sub_f32s(x, simd.splat_f32s(*mean));
                squares = simd.mul_add_e_f32s(deviation, deviation, squares);
            }
            let mut variance = simd.reduce_sum_f32s(squares);
            for &x in rest {
                variance += (x - *mean) * (x - *mean);
            }
            *inverse = 1.0 / (variance / columns as f32 + epsilon).sqrt();
            let elements = y.iter_mut().zip(x).zip(gamma).zip(beta);
            elements.for_each(|(((y, x), gamma), beta)| *y = *inverse * (x - *mean) * gamma + beta);
        }
    }
}

struct Backward<'a> {
    x: &'a [f32],
    gamma: &'a [f32],
    statistics: Statistics<'a>,
    dy: &'a [f32],
    dx: &'a mut [f32],
    accumulate: bool,
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Backward { x, gamma, statistics, dy, dx, accumulate } = self;
        let (columns, lanes) = (gamma.len(), S::F32_LANES);
        let rows = x.chunks_exact(columns).zip(dy.chunks_exact(columns)).zip(dx.chunks_exact_mut(columns));
        let kept = statistics.means.iter().zip(statistics.inverse_deviations);
        for (((x, dy), dx), (&mean, &inverse)) in rows.zip(kept) {
            // Zeros behind a row's end add nothing: there g is zero.
            let (mut sum, mut sum_with_n) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
            let vectors = x.chunks(lanes).zip(dy.chunks(lanes)).zip(gamma.chunks(lanes));
            for ((x, dy), gamma) in vectors {
                let g = simd.mul_f32s(simd.partial_load_f32s(dy), simd.partial_load_f32s(gamma));
                let deviation = simd.sub_f32s(simd.partial_load_f32s(x), simd.splat_f32s(mean));
                sum = simd.add_f32s(sum, g);
                sum_with_n = simd.mul_add_e_f32s(g, simd.mul_f32s(deviation, simd.splat_f32s(inverse)), sum_with_n);
            }
            let mean_gradient = simd.reduce_sum_f32s(sum) / columns as f32;
            let slope = simd.reduce_sum_f32s(sum_with_n) / columns as f32;
            let elements = dx.iter_mut().zip(x).zip(dy).zip(gamma);
            elements.for_each(|(((dx, x), dy), gamma)| {
                let result = inverse * (dy * gamma - mean_gradient - slope * (inverse * (x - mean)));
                *dx = if accumulate { *dx + result } else { result };
            });
        }
    }
}

/// Columns that one task sums, and rows that it sums before adding to the total, as for other column sums (`matmul.rs`).
const SUM_COLUMNS: usize = 128;
const SUM_ROWS: usize = 64;

struct ParameterSums<'a> {
    x: &'a [f32],
    statistics: Statistics<'a>,
    dy: &'a [f32],
    columns: usize,
    first: usize,
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
    accumulate: bool,
}

impl WithSimd for ParameterSums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let ParameterSums { x, statistics, dy, columns, first, dgamma, dbeta, accumulate } = self;
        let width = dgamma.len();
        if !accumulate {
            dgamma.fill(0.0);
            dbeta.fill(0.0);
        }
        let rows = statistics.means.len();
        let (mut scales, mut shifts) = ([0.0; SUM_COLUMNS], [0.0; SUM_COLUMNS]);
        for block in (0..rows).step_by(SUM_ROWS) {
            let (scales, shifts) = (&mut scales[..width], &mut shifts[..width]);
            scales.fill(0.0);
            shifts.fill(0.0);
            for row in block..rows.min(block + SUM_ROWS) {
                let (mean, inverse) = (statistics.means[row], statistics.inverse_deviations[row]);
                let place = row * columns + first;
                let inputs = x[place..][..width].iter().zip(&dy[place..][..width]);
                let sums = scales.iter_mut().zip(shifts.iter_mut());
                sums.zip(inputs).for_each(|((scale, shift), (x, dy))| {
                    *scale += dy * (inverse * (x - mean));
                    *shift += dy;
                });
            }
            dgamma.iter_mut().zip(&*scales).for_each(|(sum, partial)| *sum += partial);
            dbeta.iter_mut().zip(&*shifts).for_each(|(sum, partial)| *sum += partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    const EPSILON: f32 = 1e-5;
    const SHAPES: [(usize, usize); 7] = [(1, 1), (3, 2), (5, 13), (200, 33), (7, 256), (2, 1001), (0, 4)];

    /// One row in f64: y, its mean and 1 / deviation.
    fn exact(x: &[f64], gamma: &[f32], beta: &[f32]) -> (Vec<f64>, f64, f64) {
        let columns = x.len() as f64;
        let mean = x.iter().sum::<f64>() / columns;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns;
        let inverse = 1.0 / (variance + f64::from(EPSILON)).sqrt();
        let parameters = gamma.iter().zip(beta);
        let y = x.iter().zip(parameters).map(|(x, (&g, &b))| (x - mean) * inverse * f64::from(g) + f64::from(b));
        (y.collect(), mean, inverse)
    }

    fn widened(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    /// (y, means, inverse deviations)
    fn run(x: &[f32], gamma: &[f32], beta: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let rows = x.len() / gamma.len();
        let mut y = vec![f32::NAN; x.len()];
        let (mut means, mut inverse_deviations) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
        forward(x, gamma, beta, EPSILON, &mut y, &mut means, &mut inverse_deviations, gamma.len());
        (y, means, inverse_deviations)
    }

    #[test]
    fn forward_agrees_with_f64_also_far_from_zero() {
        for (rows, columns) in SHAPES {
            for offset in [0.0, 30.0] {
                let x: Vec<f32> = random(rows * columns, 1).iter().map(|x| x + offset).collect();
                let (gamma, beta) = (random(columns, 2), random(columns, 3));
                let (y, means, _) = run(&x, &gamma, &beta);
                let rows = x.chunks_exact(columns).map(|row| exact(&widened(row), &gamma, &beta));
                let (expected, expected_means): (Vec<Vec<f64>>, Vec<f64>) = rows.map(|(y, mean, _)| (y, mean)).unzip();
                // A few roundings of x beside deviations of order 0.5; a single column's are all rounding, against sqrt(epsilon).
                let unit = f64::from(f32::EPSILON) * (1.0 + f64::from(offset));
                let tolerance = 8.0 * unit / if columns < 3 { f64::from(EPSILON).sqrt() } else { 0.2 };
                assert_close(&y, &expected.concat(), tolerance, 2e-6, "layer norm");
                assert_close(&means, &expected_means, 4.0 * unit, 0.0, "means");
            }
        }
    }

    #[test]
    fn backward_is_the_derivative_in_f64() {
        for (rows, columns) in [(1, 1), (3, 2), (5, 13), (70, 33), (2, 300)] {
            let [x, dy, before] = [1, 2, 3].map(|seed| random(rows * columns, seed));
            let (gamma, beta) = (random(columns, 4), random(columns, 5));
            let (_, means, inverse_deviations) = run(&x, &gamma, &beta);
            let statistics = Statistics { means: &means, inverse_deviations: &inverse_deviations };

            // By central differences, one input at a time; the loss is the sum of dy y over the row.
            let mut expected = Vec::new();
            let mut normals = Vec::new();
            for (x, dy) in x.chunks_exact(columns).zip(dy.chunks_exact(columns)) {
                let h = 1e-6;
                let x = widened(x);
                let loss = |x: &[f64]| {
                    let (y, ..) = exact(x, &gamma, &beta);
                    y.iter().zip(dy).map(|(y, &dy)| y * f64::from(dy)).sum::<f64>()
                };
                for j in 0..columns {
                    let (mut above, mut below) = (x.clone(), x.clone());
                    above[j] += h;
                    below[j] -= h;
                    expected.push((loss(&above) - loss(&below)) / (2.0 * h));
                }
                let (_, mean, inverse) = exact(&x, &gamma, &beta);
                normals.extend(x.iter().map(|x| (x - mean) * inverse));
            }
            for accumulate in [false, true] {
                let mut dx = before.clone();
                backward(&x, &gamma, statistics, &dy, &mut dx, accumulate);
                let start = |i: usize| if accumulate { f64::from(before[i]) } else { 0.0 };
                let sums: Vec<f64> = expected.iter().enumerate().map(|(i, dx)| dx + start(i)).collect();
                // Gradients are of the order 1 / deviation; the differences themselves are exact to 1e-8 or so.
                let largest = inverse_deviations.iter().fold(1.0, |largest: f32, &i| largest.max(i));
                assert_close(&dx, &sums, 4e-6 * f64::from(largest), 1e-5, "layer norm backward");

                let (mut dgamma, mut dbeta) = (gamma.clone(), beta.clone());
                backward_parameters(&x, statistics, &dy, &mut dgamma, &mut dbeta, accumulate);
                let sum = |start: &[f32], factor: &dyn Fn(usize) -> f64| -> Vec<f64> {
                    (0..columns)
                        .map(|j| {
                            let terms = (0..rows).map(|row| row * columns + j);
                            let sum: f64 = terms.map(|i| f64::from(dy[i]) * factor(i)).sum();
                            sum + if accumulate { f64::from(start[j]) } else { 0.0 }
                        })
                        .collect()
                };
                let tolerance = rows as f64 * 4e-7;
                assert_close(&dgamma, &sum(&gamma, &|i| normals[i]), tolerance * 4.0, 1e-6, "dgamma");
                assert_close(&dbeta, &sum(&beta, &|_| 1.0), tolerance, 1e-6, "dbeta");
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let (rows, columns) = (1000, 50);
        let (x, dy) = (random(rows * columns, 1), random(rows * columns, 2));
        let (gamma, beta) = (random(columns, 3), random(columns, 4));
        let work = |threads| {
            in_pool(threads, || {
                let (y, means, inverse_deviations) = run(&x, &gamma, &beta);
                let statistics = Statistics { means: &means, inverse_deviations: &inverse_deviations };
                let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; x.len()], gamma.clone(), beta.clone());
                backward(&x, &gamma, statistics, &dy, &mut dx, false);
                backward_parameters(&x, statistics, &dy, &mut dgamma, &mut dbeta, true);
                [y, dx, dgamma, dbeta]
            })
        };
        assert_eq!(work(1), work(3));
    }

    #[test]
    fn a_constant_row_becomes_the_shift() {
        let (y, _, inverse_deviations) = run(&[3.0; 8], &[2.0; 8], &[0.5; 8]);
        assert_eq!(y, [0.5; 8]);
        assert!((inverse_deviations[0] * EPSILON.sqrt() - 1.0).abs() < 1e-6);
    }
}
