//! Softmax cross entropy of rows of logits: the loss of every row and, in the place of its logits, the gradient.
//!
//! A row's target is a distribution q that adds up to 1: its label, a label smoothed towards a prior, or any. With z = x - max(x),
//!
//! ```text
//! loss = ln sum exp(z) - sum q z        d loss / d x = exp(z) / sum exp(z) - q
//! ```
//! where no term of the loss is negative, so nothing cancels. Three passes over a row, the last two with an exponential (8 or 16 at a time; keeping those of
//! the second would cost as much as computing them again): a row of 33278 logits stays in the second-level cache, so memory is read once and written once.
//!
//! Rows are independent; each is summed in one fixed order.

use super::matmul::rows_per_task;
use super::simd::{WithSimd, apply, exp_nonpositive, load};
use super::softmax::row_max;
use pulp::Simd;
use rayon::prelude::*;

/// The label of a row that is left out: no loss, no gradient.
pub const IGNORED: u32 = u32::MAX;

/// What the probabilities of a row are drawn to.
#[derive(Debug, Clone, Copy)]
pub enum Targets<'a> {
    /// One label for each row, below the number of columns or [`IGNORED`]: (1 - smoothing) at the label, and smoothing times the prior
    /// (Szegedy et al. 2016; uniform, torch.nn.CrossEntropyLoss's `label_smoothing`).
    Labels {
        labels: &'a [u32],
        smoothing: f32,
        /// `[columns]`, adds up to 1; none: uniform. With the labels' frequencies this is unigram smoothing.
        prior: Option<&'a [f32]>,
    },
    /// `[rows, columns]`, every row adds up to 1.
    Distributions(&'a [f32]),
}

#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy<'a> {
    pub columns: usize,
    pub targets: Targets<'a>,
}

impl CrossEntropy<'_> {
    /// The loss of every row, natural log; logits: `[rows, columns]`, losses: `[rows]`.
    ///
    /// # Panics
    /// If a slice has another length, or a label is not below `columns`.
    pub fn losses(&self, logits: &[f32], losses: &mut [f64]) {
        self.check(logits.len(), losses.len());
        if self.columns == 0 {
            return losses.fill(0.0);
        }
        let rows = rows_per_task(self.columns);
        losses
            .par_chunks_mut(rows)
            .zip(logits.par_chunks(rows * self.columns))
            .enumerate()
            .for_each(|(task, (losses, logits))| apply(Losses { of: self, logits, losses, first: task * rows }));
    }

    /// The loss of every row, and the gradient of their sum times `scale` in the place of the logits.
    ///
    /// # Panics
    /// As above.
    pub fn losses_and_gradient(&self, logits: &mut [f32], losses: &mut [f64], scale: f32) {
        self.check(logits.len(), losses.len());
        if self.columns == 0 {
            return losses.fill(0.0);
        }
        let rows = rows_per_task(self.columns);
        losses.par_chunks_mut(rows).zip(logits.par_chunks_mut(rows * self.columns)).enumerate().for_each(
            |(task, (losses, logits))| apply(Gradient { of: self, logits, losses, first: task * rows, scale }),
        );
    }

    fn check(&self, logits: usize, rows: usize) {
        assert_eq!(logits, rows * self.columns, "cross entropy: a loss for every row of logits");
        match self.targets {
            Targets::Labels { labels, prior, .. } => {
                assert_eq!(labels.len(), rows, "cross entropy: a label for every row");
                let legal = |&label: &u32| label == IGNORED || (label as usize) < self.columns;
                assert!(labels.iter().all(legal), "cross entropy: labels are below the number of columns");
                assert!(
                    prior.is_none_or(|prior| prior.len() == self.columns),
                    "cross entropy: a prior for every column"
                );
            }
            Targets::Distributions(rows) => {
                assert_eq!(rows.len(), logits, "cross entropy: a distribution for every row");
            }
        }
    }

    /// The target of a row; none if the row is left out.
    fn target(&self, row: usize) -> Option<Target<'_>> {
        match self.targets {
            Targets::Labels { labels, smoothing, prior } => {
                let label = labels[row];
                if label == IGNORED {
                    return None;
                }
                let spread = match prior {
                    _ if smoothing == 0.0 => Spread::None,
                    None => Spread::Uniform(smoothing / self.columns as f32),
                    Some(prior) => Spread::Over(smoothing, prior),
                };
                Some(Target { label: Some((label as usize, 1.0 - smoothing)), spread })
            }
            Targets::Distributions(rows) => {
                Some(Target { label: None, spread: Spread::Over(1.0, &rows[row * self.columns..][..self.columns]) })
            }
        }
    }
}

/// q of a row.
#[derive(Clone, Copy)]
struct Target<'a> {
    /// A column and what it has beside its part of `spread`.
    label: Option<(usize, f32)>,
    spread: Spread<'a>,
}

/// The part of q that all columns have.
#[derive(Clone, Copy)]
enum Spread<'a> {
    None,
    Uniform(f32),
    /// A factor times a distribution.
    Over(f32, &'a [f32]),
}

impl Spread<'_> {
    /// That of the columns from `start`; beyond the row anything.
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, start: usize) -> S::f32s {
        match self {
            Spread::None => simd.splat_f32s(0.0),
            Spread::Uniform(share) => simd.splat_f32s(share),
            Spread::Over(factor, distribution) => {
                simd.mul_f32s(simd.splat_f32s(factor), load(simd, distribution, start))
            }
        }
    }
}

/// The maximum of a row, the sum of exp(z), and the loss.
#[inline(always)]
fn statistics<S: Simd>(simd: S, x: &[f32], target: &Target) -> (f32, f32, f64) {
    let max = row_max(simd, x);
    let shift = simd.splat_f32s(max);
    let is_spread = !matches!(target.spread, Spread::None);
    let (mut sum, mut distance) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
    let (vectors, rest) = S::as_simd_f32s(x);
    for (index, &vector) in vectors.iter().enumerate() {
        let z = simd.sub_f32s(vector, shift);
        sum = simd.add_f32s(sum, exp_nonpositive(simd, z));
        if is_spread {
            distance = simd.negate_mul_add_e_f32s(target.spread.at(simd, index * S::F32_LANES), z, distance);
        }
    }
    let (mut sum, mut distance) = (simd.reduce_sum_f32s(sum), simd.reduce_sum_f32s(distance));
    if !rest.is_empty() {
        let z = simd.sub_f32s(simd.partial_load_f32s(rest), shift);
        let mut lanes = [0.0; 16];
        let lanes = &mut lanes[..rest.len()];
        simd.partial_store_f32s(lanes, exp_nonpositive(simd, z));
        sum += lanes.iter().sum::<f32>();
        if is_spread {
            simd.partial_store_f32s(lanes, simd.mul_f32s(target.spread.at(simd, x.len() - rest.len()), z));
            distance -= lanes.iter().sum::<f32>();
        }
    }
    let mut loss = f64::from(sum).ln() + f64::from(distance);
    if let Some((label, weight)) = target.label {
        loss += f64::from(weight) * (f64::from(max) - f64::from(x[label]));
    }
    (max, sum, loss)
}

struct Losses<'a> {
    of: &'a CrossEntropy<'a>,
    logits: &'a [f32],
    losses: &'a mut [f64],
    /// The number of the first row.
    first: usize,
}

impl WithSimd for Losses<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (row, (x, loss)) in self.logits.chunks_exact(self.of.columns).zip(self.losses).enumerate() {
            *loss = match self.of.target(self.first + row) {
                None => 0.0,
                Some(target) => statistics(simd, x, &target).2,
            };
        }
    }
}

struct Gradient<'a> {
    of: &'a CrossEntropy<'a>,
    logits: &'a mut [f32],
    losses: &'a mut [f64],
    first: usize,
    scale: f32,
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (row, (x, loss)) in self.logits.chunks_exact_mut(self.of.columns).zip(self.losses).enumerate() {
            *loss = 0.0;
            let Some(target) = self.of.target(self.first + row) else {
                x.fill(0.0);
                continue;
            };
            let (max, sum, of_row) = statistics(simd, x, &target);
            *loss = of_row;
            let scale = self.scale;
            let (shift, factor, scales) = (simd.splat_f32s(max), simd.splat_f32s(scale / sum), simd.splat_f32s(scale));
            for (index, x) in x.chunks_mut(S::F32_LANES).enumerate() {
                let probability = exp_nonpositive(simd, simd.sub_f32s(simd.partial_load_f32s(x), shift));
                let wanted = simd.mul_f32s(scales, target.spread.at(simd, index * S::F32_LANES));
                simd.partial_store_f32s(x, simd.sub_f32s(simd.mul_f32s(probability, factor), wanted));
            }
            if let Some((label, weight)) = target.label {
                x[label] -= scale * weight;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;

    /// A distribution for every row, all parts positive.
    pub(crate) fn distributions(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
        let mut all: Vec<f32> = random(rows * columns, seed).iter().map(|x| (2.0 * x).exp()).collect();
        for row in all.chunks_exact_mut(columns) {
            let sum: f64 = row.iter().map(|&q| f64::from(q)).sum();
            row.iter_mut().for_each(|q| *q = (f64::from(*q) / sum) as f32);
        }
        all
    }

    /// Labels of all columns in turn, every fifth row left out.
    pub(crate) fn labels(rows: usize, columns: usize) -> Vec<u32> {
        (0..rows).map(|row| if row % 5 == 3 { IGNORED } else { (row * 7 % columns) as u32 }).collect()
    }

    /// Losses and the gradient of their sum, by definition, in f64.
    pub(crate) fn reference(of: &CrossEntropy, logits: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let columns = of.columns;
        let (mut losses, mut gradient) = (Vec::new(), Vec::new());
        for (row, x) in logits.chunks_exact(columns).enumerate() {
            let q: Vec<f64> = match of.targets {
                Targets::Labels { labels, .. } if labels[row] == IGNORED => vec![0.0; columns],
                Targets::Labels { labels, smoothing, prior } => (0..columns)
                    .map(|j| {
                        let prior = prior.map_or(1.0 / columns as f64, |prior| f64::from(prior[j]));
                        let label = f64::from(u8::from(labels[row] as usize == j));
                        (1.0 - f64::from(smoothing)) * label + f64::from(smoothing) * prior
                    })
                    .collect(),
                Targets::Distributions(rows) => {
                    rows[row * columns..][..columns].iter().map(|&q| f64::from(q)).collect()
                }
            };
            let max = x.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
            let sum: f64 = x.iter().map(|&x| (f64::from(x) - max).exp()).sum();
            let total: f64 = q.iter().sum();
            losses.push(q.iter().zip(x).map(|(q, &x)| q * (sum.ln() - (f64::from(x) - max))).sum());
            gradient.extend(x.iter().zip(q).map(|(&x, q)| total * (f64::from(x) - max).exp() / sum - q));
        }
        (losses, gradient)
    }

    /// Every kind of target.
    pub(crate) fn for_all_targets(rows: usize, columns: usize, mut test: impl FnMut(&CrossEntropy, &str)) {
        let (labels, priors, soft) =
            (labels(rows, columns), distributions(1, columns, 1), distributions(rows, columns, 2));
        let smoothed = |smoothing, prior| Targets::Labels { labels: &labels, smoothing, prior };
        for (targets, name) in [
            (smoothed(0.0, None), "labels"),
            (smoothed(0.1, None), "smoothed labels"),
            (smoothed(0.3, Some(&priors[..])), "labels smoothed by a prior"),
            (Targets::Distributions(&soft), "distributions"),
        ] {
            test(&CrossEntropy { columns, targets }, &format!("{name}, {rows} x {columns}"));
        }
    }

    #[test]
    fn losses_and_gradients_agree_with_f64_for_all_targets() {
        for (rows, columns, spread) in
            [(1, 1, 1.0), (7, 5, 3.0), (6, 50, 20.0), (40, 33, 1.0), (4, 2001, 8.0), (3, 17, 1e4)]
        {
            let logits: Vec<f32> = random(rows * columns, columns as u64).iter().map(|x| x * spread).collect();
            for_all_targets(rows, columns, |of, name| {
                let (expected, gradient) = reference(of, &logits);
                let (mut losses, mut ours) = (vec![f64::NAN; rows], logits.clone());
                of.losses_and_gradient(&mut ours, &mut losses, 0.5);
                // Probabilities below 1: exp and x - max err by less than 2^-23 of 1, the sum of up to 250 terms a lane by as much ten times.
                let halves: Vec<f64> = gradient.iter().map(|g| 0.5 * g).collect();
                assert_close(&ours, &halves, 2e-6, 1e-6, name);
                for (&ours, exact) in losses.iter().zip(expected) {
                    assert!((ours - exact).abs() <= 2e-6 * exact.abs().max(1.0), "{name}: loss {ours} for {exact}");
                }
                let mut alone = vec![f64::NAN; rows];
                of.losses(&logits, &mut alone);
                assert_eq!(alone, losses, "{name}: the loss without a gradient is the same loss");
            });
        }
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let (rows, columns) = (3, 6);
        let logits = random(rows * columns, 9);
        for_all_targets(rows, columns, |of, name| {
            let (_, gradient) = reference(of, &logits);
            for (i, exact) in gradient.iter().enumerate() {
                let at = |step: f32| {
                    let (mut moved, mut losses) = (logits.clone(), vec![0.0; rows]);
                    moved[i] += step;
                    of.losses(&moved, &mut losses);
                    (losses.iter().sum::<f64>(), f64::from(moved[i]))
                };
                let ((above, high), (below, low)) = (at(1.0 / 64.0), at(-1.0 / 64.0));
                // The third derivative times step^2 / 6, and f32 roundings over twice the step.
                let slope = (above - below) / (high - low);
                assert!((slope - exact).abs() < 5e-5, "{name}[{i}]: {exact} for a slope of {slope}");
            }
        });
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let (rows, columns) = (300, 70);
        let logits = random(rows * columns, 8);
        for_all_targets(rows, columns, |of, _| {
            let run = |threads| {
                in_pool(threads, || {
                    let (mut gradient, mut losses) = (logits.clone(), vec![0.0; rows]);
                    of.losses_and_gradient(&mut gradient, &mut losses, 1.0);
                    (gradient, losses)
                })
            };
            assert_eq!(run(1), run(3));
        });
    }

    #[test]
    fn a_row_that_is_left_out_may_hold_anything() {
        let mut logits = [1.0, 2.0, f32::NAN, f32::INFINITY, 3.0, f32::NAN];
        let of = CrossEntropy {
            columns: 2,
            targets: Targets::Labels { labels: &[1, IGNORED, IGNORED], smoothing: 0.1, prior: None },
        };
        let mut losses = [f64::NAN; 3];
        of.losses_and_gradient(&mut logits, &mut losses, 1.0);
        assert!(losses[0] > 0.0 && losses[1..] == [0.0; 2] && logits[2..] == [0.0; 4]);
    }
}
