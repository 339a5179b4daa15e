//! The LSTM against a plain one in f64, and against itself under every split.

use super::*;
use crate::backend::cpu::matmul::{Matrix, matmul};
use crate::backend::cpu::simd::{WithSimd, apply};
use crate::backend::cpu::testing::{assert_close, in_pool, offsets, random};

/// A layer's random operands, and its results.
#[derive(Clone)]
struct Case {
    hidden: usize,
    lengths: Vec<usize>,
    offsets: Vec<usize>,
    /// Per direction: W_hh, W_ih x (its sum with the bias is what the gates see), bias, h0, c0.
    weights: Vec<Vec<f32>>,
    projections: Vec<Vec<f32>>,
    bias: Vec<Vec<f32>>,
    initial: Option<Vec<(Vec<f32>, Vec<f32>)>>,
    /// Gradients that the loss asks for: of the output, and of the final h and c per direction.
    output_gradient: Vec<f32>,
    final_gradient: Vec<(Vec<f32>, Vec<f32>)>,
}

#[derive(Debug, PartialEq)]
struct Results {
    output: Vec<f32>,
    cells: Vec<Vec<f32>>,
    final_states: Vec<(Vec<f32>, Vec<f32>)>,
    dgates: Vec<Vec<f32>>,
    initial_gradient: Vec<(Vec<f32>, Vec<f32>)>,
    weight_gradient: Vec<Vec<f32>>,
}

impl Case {
    fn new(hidden: usize, lengths: &[usize], directions: usize, with_initial: bool) -> Self {
        let offsets = offsets(lengths);
        let rows = offsets.last().copied().unwrap_or(0);
        let state = lengths.len() * hidden;
        let scale = 1.0 / (hidden as f32).sqrt();
        let numbers = |length, seed: usize| random(length, (seed * 7919 + hidden) as u64);
        let scaled = |length, seed| numbers(length, seed).iter().map(|x| x * scale).collect();
        let each = |f: &dyn Fn(usize) -> Vec<f32>| (0..directions).map(f).collect::<Vec<_>>();
        let pairs =
            |seed: usize| (0..directions).map(|d| (numbers(state, seed + d), numbers(state, seed + 5 + d))).collect();
        Case {
            hidden,
            lengths: lengths.to_vec(),
            weights: each(&|d| scaled(4 * hidden * hidden, 1 + d)),
            projections: each(&|d| numbers(rows * 4 * hidden, 11 + d)),
            bias: each(&|d| numbers(4 * hidden, 21 + d)),
            initial: with_initial.then(|| pairs(31)),
            output_gradient: numbers(rows * directions * hidden, 41),
            final_gradient: pairs(51),
            offsets,
        }
    }

    fn shape(&self) -> Shape<'_> {
        Shape { hidden: self.hidden, directions: self.weights.len(), offsets: &self.offsets }
    }

    fn state(&self, direction: usize) -> Option<State<'_>> {
        self.initial.as_ref().map(|states| State { hidden: &states[direction].0, cell: &states[direction].1 })
    }

    /// Forward and backward with `workers` on `simd`, or as the public functions choose.
    fn run(&self, forced: Option<(usize, bool)>) -> Results {
        let shape = self.shape();
        let (hidden, rows, directions) = (self.hidden, shape.rows(), shape.directions);
        let state = self.lengths.len() * hidden;
        let mut packed = vec![vec![f32::NAN; packed_length(hidden)]; directions];
        let pack = |packed: &mut [f32], weights: &[f32], transposed| match forced {
            Some((_, true)) => pack::Pack { weights, hidden, packed, transposed }.with_simd(pulp::Scalar512b),
            _ if transposed => pack_backward(weights, hidden, packed),
            _ => pack_forward(weights, hidden, packed),
        };
        for (packed, weights) in packed.iter_mut().zip(&self.weights) {
            pack(packed, weights, false);
        }
        let mut gates = self.projections.clone();
        let mut cells = vec![vec![f32::NAN; rows * hidden]; directions];
        let mut output = vec![f32::NAN; rows * directions * hidden];
        let mut operands: Vec<_> = (gates.iter_mut().zip(&mut cells).enumerate())
            .map(|(d, (gates, cells))| Forward {
                weights: &packed[d],
                bias: Some(&self.bias[d]),
                gates,
                cells,
                initial: self.state(d),
            })
            .collect();
        match forced {
            None => forward(&shape, &mut operands, &mut output),
            Some((workers, portable)) => {
                let run = forward::Run { shape: &shape, directions: &mut operands, output: &mut output, workers };
                if portable { run.with_simd(pulp::Scalar512b) } else { apply(run) }
            }
        }
        for (packed, weights) in packed.iter_mut().zip(&self.weights) {
            packed.fill(f32::NAN);
            pack(packed, weights, true);
        }
        let final_states = (0..directions)
            .map(|d| {
                let (mut h, mut c) = (vec![f32::NAN; state], vec![f32::NAN; state]);
                final_state(&shape, d, &output, &cells[d], &mut h, &mut c);
                (h, c)
            })
            .collect();
        let mut initial_gradient: Vec<_> =
            self.final_gradient.iter().map(|(_, cell)| (vec![f32::NAN; state], cell.clone())).collect();
        let mut operands: Vec<_> = (gates.iter_mut().zip(&mut initial_gradient).enumerate())
            .map(|(d, (gates, (h, c)))| Backward {
                weights: &packed[d],
                gates,
                cells: &cells[d],
                initial: self.state(d),
                cell_gradient: c,
                final_hidden_gradient: Some(&self.final_gradient[d].0),
                initial_hidden_gradient: Some(h),
            })
            .collect();
        match forced {
            None => backward(&shape, &mut operands, &self.output_gradient),
            Some((workers, portable)) => {
                let output_gradient = &self.output_gradient;
                let run = backward::Run { shape: &shape, directions: &mut operands, output_gradient, workers };
                if portable { run.with_simd(pulp::Scalar512b) } else { apply(run) }
            }
        }
        let weight_gradient = (0..directions)
            .map(|d| {
                let mut previous = vec![f32::NAN; rows * hidden];
                previous_hidden(&shape, d, &output, self.state(d).map(|state| state.hidden), &mut previous);
                let mut gradient = vec![0.0; 4 * hidden * hidden];
                let dgates = Matrix::rows(&gates[d], 4 * hidden).transposed();
                matmul(4 * hidden, hidden, rows, dgates, Matrix::rows(&previous, hidden), &mut gradient, hidden, false);
                gradient
            })
            .collect();
        Results { output, cells, final_states, dgates: gates, initial_gradient, weight_gradient }
    }

    /// The plain LSTM of one direction in f64: h [R, H], final (h, c) [N, H].
    fn reference(&self, direction: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let hidden = self.hidden;
        let wide = |x: f32| f64::from(x);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut output = vec![0.0; self.shape().rows() * hidden];
        let (mut final_h, mut final_c) = (vec![], vec![]);
        for (n, &length) in self.lengths.iter().enumerate() {
            let start = |values: &[f32]| values[n * hidden..(n + 1) * hidden].iter().map(|&x| wide(x)).collect();
            let (mut h, mut c): (Vec<f64>, Vec<f64>) = match self.state(direction) {
                Some(state) => (start(state.hidden), start(state.cell)),
                None => (vec![0.0; hidden], vec![0.0; hidden]),
            };
            for number in 0..length {
                let row = self.offsets[if direction == 0 { number } else { length - 1 - number }] + n;
                let sums: Vec<f64> = (0..4 * hidden)
                    .map(|j| {
                        let products = self.weights[direction][j * hidden..].iter().zip(&h).map(|(&w, h)| wide(w) * h);
                        let place = row * 4 * hidden + j;
                        wide(self.projections[direction][place]) + wide(self.bias[direction][j]) + products.sum::<f64>()
                    })
                    .collect();
                for unit in 0..hidden {
                    let gate = |gate: usize| sums[gate * hidden + unit];
                    c[unit] = sigmoid(gate(1)) * c[unit] + sigmoid(gate(0)) * gate(2).tanh();
                    h[unit] = sigmoid(gate(3)) * c[unit].tanh();
                }
                output[row * hidden..(row + 1) * hidden].copy_from_slice(&h);
            }
            final_h.extend(h);
            final_c.extend(c);
        }
        (output, final_h, final_c)
    }

    /// The loss whose gradients `run` computes.
    fn loss(&self, direction: usize) -> f64 {
        let (output, h, c) = self.reference(direction);
        let (hidden, width) = (self.hidden, self.shape().output_width());
        let dot = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum::<f64>();
        let rows = output.chunks_exact(hidden).zip(self.output_gradient.chunks_exact(width));
        rows.map(|(h, gradient)| dot(h, &gradient[direction * hidden..])).sum::<f64>()
            + dot(&h, &self.final_gradient[direction].0)
            + dot(&c, &self.final_gradient[direction].1)
    }

    /// d loss / d (one of the operands), by central differences; the step is exact in f32.
    fn slope(&self, direction: usize, place: impl Fn(&mut Case) -> &mut f32) -> f64 {
        let step = 1.0 / 1024.0;
        let moved = |by: f32| {
            let mut case = self.clone();
            let place = place(&mut case);
            *place += by;
            (f64::from(*place), case.loss(direction))
        };
        let ((above, high), (below, low)) = (moved(step), moved(-step));
        (high - low) / (above - below)
    }
}

/// (hidden, lengths, directions, initial state): odd and tiny sizes, equal and unequal lengths, more rows than a scratch block.
fn cases() -> Vec<Case> {
    let many: Vec<usize> = (0..53).map(|n| if n < 50 { 3 } else { 2 }).collect();
    vec![
        Case::new(1, &[1], 1, false),
        Case::new(5, &[4, 4, 2, 1], 2, true),
        Case::new(8, &[7], 2, false),
        Case::new(33, &[5, 4, 4, 3, 1], 2, false),
        Case::new(70, &[3, 3, 3, 2, 2, 2, 1, 1], 1, true),
        Case::new(19, &many, 2, true),
    ]
}

#[test]
fn the_forward_pass_agrees_with_a_plain_lstm_in_f64() {
    for case in cases() {
        let results = case.run(None);
        for d in 0..case.weights.len() {
            let (output, h, c) = case.reference(d);
            let width = case.shape().output_width();
            let ours: Vec<f32> = results
                .output
                .chunks_exact(width)
                .flat_map(|row| row[d * case.hidden..(d + 1) * case.hidden].to_vec())
                .collect();
            // Sums of up to 70 terms below 1, through slopes of at most 1, for at most 7 steps.
            assert_close(&ours, &output, 5e-6, 0.0, "h");
            assert_close(&results.final_states[d].0, &h, 5e-6, 0.0, "final h");
            assert_close(&results.final_states[d].1, &c, 1e-5, 0.0, "final c");
        }
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    for case in cases() {
        let results = case.run(None);
        for d in 0..case.weights.len() {
            // Some sixty places of each, spread by a stride without common factors.
            let places = |length: usize| (0..length.min(60)).map(move |i| i * 7919 % length);
            let check = |what: &str, ours: &[f32], place: &dyn Fn(&mut Case) -> &mut Vec<f32>| {
                for i in places(ours.len()) {
                    let expected = case.slope(d, |case| &mut place(case)[i]);
                    let error = (f64::from(ours[i]) - expected).abs();
                    // The third derivative times h^2 / 6, and f32 rounding over the sums.
                    assert!(
                        error < 3e-5 + 1e-5 * expected.abs(),
                        "H {} {what}[{i}]: {} for {expected}",
                        case.hidden,
                        ours[i]
                    );
                }
            };
            check("dgates", &results.dgates[d], &|case| &mut case.projections[d]);
            check("dW_hh", &results.weight_gradient[d], &|case| &mut case.weights[d]);
            if case.initial.is_some() {
                check("dh0", &results.initial_gradient[d].0, &|case| &mut case.initial.as_mut().expect("states")[d].0);
                check("dc0", &results.initial_gradient[d].1, &|case| &mut case.initial.as_mut().expect("states")[d].1);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_workers_or_threads() {
    for case in cases() {
        let one = case.run(Some((1, false)));
        for workers in 2..=5 {
            assert_eq!(case.run(Some((workers, false))), one, "H {} with {workers} workers", case.hidden);
        }
        for threads in 1..=3 {
            assert_eq!(in_pool(threads, || case.run(None)), one, "H {} with {threads} threads", case.hidden);
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_any_batch() {
    let batch = Case::new(21, &[6, 5, 5, 4, 3, 2, 2, 1], 2, true);
    let results = batch.run(None);
    let (hidden, width) = (21, 42);
    for (n, &length) in batch.lengths.iter().enumerate() {
        let mut alone = Case::new(hidden, &[length], 2, true);
        let pick = |values: &[f32], columns: usize| -> Vec<f32> {
            (0..length).flat_map(|t| values[(batch.offsets[t] + n) * columns..][..columns].to_vec()).collect()
        };
        let state = |values: &Vec<f32>| values[n * hidden..(n + 1) * hidden].to_vec();
        let pairs =
            |pairs: &[(Vec<f32>, Vec<f32>)]| pairs.iter().map(|(h, c)| (state(h), state(c))).collect::<Vec<_>>();
        alone.projections = batch.projections.iter().map(|values| pick(values, 4 * hidden)).collect();
        alone.weights.clone_from(&batch.weights);
        alone.bias.clone_from(&batch.bias);
        alone.initial = batch.initial.as_ref().map(|states| pairs(states));
        alone.output_gradient = pick(&batch.output_gradient, width);
        alone.final_gradient = pairs(&batch.final_gradient);
        let single = alone.run(None);
        assert_eq!(single.output, pick(&results.output, width));
        for d in 0..2 {
            assert_eq!(single.dgates[d], pick(&results.dgates[d], 4 * hidden));
        }
        assert_eq!(single.initial_gradient, pairs(&results.initial_gradient));
    }
}

#[test]
fn the_portable_kernel_with_sixteen_lanes_agrees_with_this_machines() {
    for case in cases() {
        let (ours, portable) = (case.run(None), case.run(Some((2, true))));
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        assert_close(&portable.output, &wide(&ours.output), 1e-5, 0.0, "output");
        for d in 0..case.weights.len() {
            assert_close(&portable.dgates[d], &wide(&ours.dgates[d]), 2e-5, 1e-5, "dgates");
        }
    }
}

#[test]
fn more_workers_than_cores_meet_at_every_barrier() {
    let case = Case::new(96, &[40; 4], 1, false);
    assert_eq!(case.run(Some((12, false))), case.run(Some((1, false))));
}

#[test]
fn an_empty_batch_is_no_work() {
    let case = Case::new(4, &[], 2, false);
    assert!(case.run(None).output.is_empty());
}

#[test]
#[should_panic(expected = "another worker of this LSTM failed")]
fn a_worker_that_fails_frees_the_others() {
    team::run(1, |_, barrier| barrier.wait());
    team::run(2, |worker, barrier| {
        assert!(worker == 0, "this worker fails on purpose");
        barrier.wait();
    });
}
