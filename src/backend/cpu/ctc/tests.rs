//! CTC against sums over all paths, against plain log-domain recursions in f64, and at its limits.

use super::*;
use crate::backend::cpu::testing::{in_pool, offsets, random};

pub(crate) struct Case {
    pub symbols: usize,
    pub offsets: Vec<usize>,
    pub lengths: Vec<usize>,
    pub labels: Vec<Vec<u32>>,
    pub logits: Vec<f32>,
}

#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    losses: Vec<f64>,
    gradient: Vec<f32>,
    feasible: Vec<bool>,
}

impl Case {
    pub fn new(symbols: usize, sequences: &[(usize, &[u32])], scale: f32) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.0).collect();
        let offsets = offsets(&lengths);
        let rows = offsets.last().copied().unwrap_or(0);
        let logits = random(rows * symbols, (rows + symbols) as u64).iter().map(|x| x * scale).collect();
        Case { symbols, offsets, lengths, labels: sequences.iter().map(|s| s.1.to_vec()).collect(), logits }
    }

    fn run(&self) -> Outcome {
        self.try_run().expect("legal labels")
    }

    fn try_run(&self) -> Result<Outcome, BadLabel> {
        let labels: Vec<&[u32]> = self.labels.iter().map(Vec::as_slice).collect();
        let (logits, offsets, lengths) = (&self.logits, &self.offsets, &self.lengths);
        let batch = Batch { logits, symbols: self.symbols, offsets, lengths, labels: &labels, blank: 0 };
        let mut losses = vec![f64::NAN; lengths.len()];
        let mut gradient = vec![f32::NAN; logits.len()];
        // Nothing may depend on what the workspace holds.
        let mut workspace = vec![f32::NAN; batch.workspace_length()];
        let feasible = ctc(&batch, &mut losses, Some(&mut gradient), &mut workspace)?;
        let mut alone = losses.clone();
        ctc(&batch, &mut alone, None, &mut workspace)?;
        assert_eq!(alone, losses, "the loss without a gradient is the same loss");
        Ok(Outcome { losses, gradient, feasible })
    }

    pub fn log_probabilities(&self, sequence: usize) -> Vec<Vec<f64>> {
        let row = |t: usize| {
            let logits = &self.logits[(self.offsets[t] + sequence) * self.symbols..][..self.symbols];
            let max = logits.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x)));
            let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
            logits.iter().map(|&x| f64::from(x) - max - sum.ln()).collect()
        };
        (0..self.lengths[sequence]).map(row).collect()
    }

    /// Loss and gradient [T, V] by the textbook recursions over 2 L + 1 states, in logarithms and f64.
    pub fn reference(&self, sequence: usize) -> (f64, Vec<f64>) {
        let y = self.log_probabilities(sequence);
        let labels = &self.labels[sequence];
        let states: Vec<usize> =
            (0..2 * labels.len() + 1).map(|s| if s % 2 == 0 { 0 } else { labels[s / 2] as usize }).collect();
        let (steps, count) = (y.len(), states.len());
        let add = |a: f64, b: f64| {
            let max = a.max(b);
            if max == f64::NEG_INFINITY { max } else { max + ((a - max).exp() + (b - max).exp()).ln() }
        };
        let may_skip = |s: usize| s >= 2 && states[s] != 0 && states[s] != states[s - 2];
        let none = f64::NEG_INFINITY;
        let mut alpha = vec![vec![none; count]; steps];
        let mut beta = vec![vec![none; count]; steps];
        for t in 0..steps {
            for s in 0..count {
                let mut sum = if t == 0 { if s < 2 { 0.0 } else { none } } else { alpha[t - 1][s] };
                if t > 0 && s > 0 {
                    sum = add(sum, alpha[t - 1][s - 1]);
                }
                if t > 0 && may_skip(s) {
                    sum = add(sum, alpha[t - 1][s - 2]);
                }
                alpha[t][s] = sum + y[t][states[s]];
            }
        }
        for t in (0..steps).rev() {
            for s in 0..count {
                let last = t + 1 == steps;
                let mut sum =
                    if last { if s + 2 >= count { 0.0 } else { none } } else { beta[t + 1][s] + y[t + 1][states[s]] };
                for (next, allowed) in [(s + 1, true), (s + 2, s + 2 < count && may_skip(s + 2))] {
                    if !last && next < count && allowed {
                        sum = add(sum, beta[t + 1][next] + y[t + 1][states[next]]);
                    }
                }
                beta[t][s] = sum;
            }
        }
        let total = (0..count).fold(none, |sum, s| add(sum, alpha[0][s] + beta[0][s]));
        let mut gradient: Vec<f64> = y.iter().flatten().map(|y| y.exp()).collect();
        for t in 0..steps {
            for s in 0..count {
                gradient[t * self.symbols + states[s]] -= (alpha[t][s] + beta[t][s] - total).exp();
            }
        }
        (-total, gradient)
    }

    /// -ln of the sum over every path that collapses to the labels.
    fn by_enumeration(&self, sequence: usize) -> f64 {
        let y = self.log_probabilities(sequence);
        let mut total = 0.0;
        let paths = self.symbols.pow(y.len() as u32);
        for number in 0..paths {
            let (mut rest, mut log, mut previous, mut collapsed) = (number, 0.0, 0, vec![]);
            for row in &y {
                let symbol = rest % self.symbols;
                rest /= self.symbols;
                log += row[symbol];
                if symbol != 0 && symbol != previous {
                    collapsed.push(symbol as u32);
                }
                previous = symbol;
            }
            if collapsed == self.labels[sequence] {
                total += f64::exp(log);
            }
        }
        -total.ln()
    }

    /// The rows of one sequence out of a packed gradient.
    pub fn rows(&self, gradient: &[f32], sequence: usize) -> Vec<f32> {
        let row = |t: usize| gradient[(self.offsets[t] + sequence) * self.symbols..][..self.symbols].to_vec();
        (0..self.lengths[sequence]).flat_map(row).collect()
    }

    /// Requires loss and gradient within `relative` of the reference (gradients: of the largest term, 1).
    fn agrees(&self, relative: f64) {
        let outcome = self.run();
        for n in 0..self.lengths.len() {
            assert!(outcome.feasible[n]);
            let (loss, gradient) = self.reference(n);
            let error = (outcome.losses[n] - loss).abs();
            assert!(error <= relative * loss.abs().max(1.0), "loss {} for {loss}", outcome.losses[n]);
            for (i, (ours, exact)) in self.rows(&outcome.gradient, n).iter().zip(gradient).enumerate() {
                let error = (f64::from(*ours) - exact).abs();
                assert!(error <= relative, "sequence {n}, gradient[{i}]: {ours} for {exact}");
            }
        }
    }
}

pub(crate) fn transcript(length: usize, symbols: u32, seed: u64) -> Vec<u32> {
    random(length, seed).iter().map(|x| 1 + ((x + 1.0) * 0.5 * (symbols - 1) as f32) as u32 % (symbols - 1)).collect()
}

#[test]
fn losses_are_the_sum_over_all_paths() {
    let sequences: [(usize, &[u32]); 8] =
        [(6, &[]), (6, &[1]), (5, &[1, 1, 2]), (5, &[2, 1]), (4, &[1, 1, 2]), (3, &[1, 2, 1]), (3, &[2, 2]), (1, &[1])];
    let case = Case::new(3, &sequences, 2.0);
    let outcome = case.run();
    for n in 0..sequences.len() {
        let exact = case.by_enumeration(n);
        assert!((outcome.losses[n] - exact).abs() < 1e-6 * exact.max(1.0), "{n}: {} for {exact}", outcome.losses[n]);
    }
    case.agrees(1e-6);
}

#[test]
fn loss_and_gradient_agree_with_f64_for_odd_sizes_and_unequal_lengths() {
    let labels: Vec<Vec<u32>> = [60, 33, 8, 7, 1, 0].iter().map(|&l| transcript(l, 50, l as u64)).collect();
    let lengths = [400, 150, 149, 15, 2, 2];
    let sequences: Vec<(usize, &[u32])> = lengths.iter().zip(&labels).map(|(&t, l)| (t, l.as_slice())).collect();
    for scale in [0.1, 3.0, 30.0] {
        Case::new(50, &sequences, scale).agrees(4e-6);
    }
}

#[test]
fn gradients_keep_their_accuracy_over_two_thousand_frames() {
    let labels = transcript(250, 50, 3);
    let many = transcript(1900, 50, 4);
    for scale in [0.5, 8.0] {
        Case::new(50, &[(2000, &labels), (2000, &many)], scale).agrees(1e-5);
    }
}

#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let mut case = Case::new(5, &[(7, &[1, 1, 4]), (5, &[2, 3])], 1.5);
    let gradient = case.run().gradient;
    for (i, &ours) in gradient.iter().enumerate() {
        let before = case.logits[i];
        let mut at = |x: f32| {
            case.logits[i] = x;
            case.run().losses.iter().sum::<f64>()
        };
        let step = 1.0 / 64.0;
        let slope = (at(before + step) - at(before - step)) / (f64::from(before + step) - f64::from(before - step));
        case.logits[i] = before;
        // The third derivative times step^2 / 6, and the loss's own f32 roundings over twice the step.
        assert!((f64::from(ours) - slope).abs() < 1e-4, "{i}: {ours} for {slope}");
    }
}

#[test]
fn labels_that_exactly_fill_their_frames_have_one_path() {
    // Three labels, one repeat: 4 frames leave only 1 - 1 2.
    let case = Case::new(3, &[(4, &[1, 1, 2]), (3, &[1, 1])], 3.0);
    let y = case.log_probabilities(0);
    let exact = -(y[0][1] + y[1][0] + y[2][1] + y[3][2]);
    assert!((case.run().losses[0] - exact).abs() < 1e-6 * exact);
    case.agrees(1e-6);
}

#[test]
fn labels_that_do_not_fit_are_flagged_and_leave_no_trace() {
    let case = Case::new(4, &[(4, &[1, 2]), (3, &[1, 1, 2]), (2, &[3, 3]), (1, &[1, 2])], 1.0);
    let outcome = case.run();
    assert_eq!(outcome.feasible, [true, false, false, false]);
    assert!(outcome.losses[0] > 0.0 && outcome.losses[1..] == [0.0; 3]);
    for n in 1..4 {
        assert!(case.rows(&outcome.gradient, n).iter().all(|&x| x == 0.0));
    }
    assert!(case.rows(&outcome.gradient, 0).iter().any(|&x| x != 0.0));
}

#[test]
fn extreme_logits_stay_finite_and_exact() {
    for scale in [1e4, 4e4] {
        let labels = transcript(20, 8, 6);
        let case = Case::new(8, &[(50, &labels), (50, &[]), (45, &labels[..3])], scale);
        case.agrees(2e-3);
        let outcome = case.run();
        assert!(outcome.gradient.iter().all(|x| x.is_finite()) && outcome.losses.iter().all(|x| x.is_finite()));
    }
    // Beyond what an emission's exponent holds: finite all the same.
    let outcome = Case::new(8, &[(50, &[1, 2, 3])], 3e38).run();
    assert!(outcome.gradient.iter().all(|x| x.is_finite()) && outcome.losses.iter().all(|x| x.is_finite()));
    // A certain transcript: loss 0, gradient 0.
    let mut case = Case::new(3, &[(2, &[1])], 0.0);
    case.logits = vec![0.0, 1e4, 0.0, 1e4, 0.0, 0.0];
    let outcome = case.run();
    assert_eq!(outcome.losses, [0.0]);
    assert!(outcome.gradient.iter().all(|x| x.abs() < 1e-6), "{:?}", outcome.gradient);
}

#[test]
fn a_logit_that_is_not_a_number_shows_in_the_loss_of_its_sequence_alone() {
    let mut case = Case::new(4, &[(3, &[1]), (2, &[2])], 1.0);
    case.logits[0] = f32::NAN;
    let losses = case.run_losses();
    assert!(losses[0].is_nan() && losses[1].is_finite());
}

impl Case {
    fn run_losses(&self) -> Vec<f64> {
        let labels: Vec<&[u32]> = self.labels.iter().map(Vec::as_slice).collect();
        let (logits, offsets, lengths) = (&self.logits, &self.offsets, &self.lengths);
        let batch = Batch { logits, symbols: self.symbols, offsets, lengths, labels: &labels, blank: 0 };
        let mut losses = vec![0.0; lengths.len()];
        let (mut gradient, mut workspace) = (vec![0.0; logits.len()], vec![0.0; batch.workspace_length()]);
        ctc(&batch, &mut losses, Some(&mut gradient), &mut workspace).expect("legal labels");
        losses
    }
}

#[test]
fn a_label_out_of_range_or_equal_to_the_blank_is_an_error_that_says_which() {
    let error = |labels: &[u32]| Case::new(4, &[(9, &[1]), (9, labels)], 1.0).try_run().expect_err("a bad label");
    assert_eq!(error(&[1, 4]), BadLabel { sequence: 1, position: 1, label: 4 });
    assert_eq!(error(&[0]), BadLabel { sequence: 1, position: 0, label: 0 });
}

#[test]
fn bits_depend_neither_on_threads_nor_on_the_batch() {
    let labels: Vec<Vec<u32>> = (0..9).map(|n| transcript(9 - n, 20, n as u64)).collect();
    let sequences: Vec<(usize, &[u32])> = labels.iter().enumerate().map(|(n, l)| (40 - 2 * n, l.as_slice())).collect();
    let case = Case::new(20, &sequences, 2.0);
    let one = in_pool(1, || case.run());
    for threads in 2..=4 {
        assert_eq!(in_pool(threads, || case.run()), one);
    }
    for n in 0..9 {
        let mut alone = Case::new(20, &sequences[n..=n], 1.0);
        alone.logits = case.rows(&case.logits, n);
        let single = alone.run();
        assert_eq!(single.losses[0], one.losses[n]);
        assert_eq!(single.gradient, case.rows(&one.gradient, n));
    }
}

#[test]
fn an_empty_batch_is_no_work() {
    assert!(Case::new(5, &[], 1.0).run().losses.is_empty());
}
