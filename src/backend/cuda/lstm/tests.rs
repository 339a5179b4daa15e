//! The kernels on the emulator against a plain LSTM in f64 that rounds where the kernels do, under every plan.

use super::super::driver::Launch;
use super::super::testing::{Device, OnDevice, for_all_orders};
use super::plan::{Chip, cores};
use super::*;
use crate::backend::cpu::dropout;
use crate::backend::cpu::testing::{assert_close, offsets, random};
use crate::random::MaskKey;

const ARITHMETICS: [Arithmetic; 3] = [Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16];

/// Sums of up to 4 H = 800 products, each of less than one in the last place of its size, through at most 9 steps whose slopes are below 1;
/// the largest seen is 2e-6.
const TOLERANCE: f64 = 1e-5;

/// A layer's random operands.
struct Case {
    hidden: usize,
    lengths: Vec<usize>,
    offsets: Vec<usize>,
    arithmetic: Arithmetic,
    /// Steps and rows behind the last sequence's, as graphs for rounded-up sizes have them.
    more_steps: usize,
    more_rows: usize,
    directions: Vec<Parameters>,
    with_states: bool,
    mask: Option<Mask>,
    output_gradient: Vec<f32>,
}

/// One direction's: W_hh, biases, W_ih x, states, and the gradients that the loss asks for of the last h and c.
struct Parameters {
    weight: Vec<f32>,
    input_bias: Vec<f32>,
    recurrent_bias: Vec<f32>,
    projections: Vec<f32>,
    initial: [Vec<f32>; 2],
    final_gradient: [Vec<f32>; 2],
}

/// What both passes give, per direction where it says so.
#[derive(Debug, PartialEq)]
struct Results {
    output: Vec<f32>,
    directions: Vec<DirectionResults>,
}

#[derive(Debug, PartialEq)]
struct DirectionResults {
    activations: Vec<f32>,
    cells: Vec<f32>,
    last: [Vec<f32>; 2],
    gradients: Vec<f32>,
    initial_gradient: [Vec<f32>; 2],
    previous: Vec<f32>,
}

impl Case {
    fn new(hidden: usize, lengths: &[usize], directions: usize, with_states: bool, arithmetic: Arithmetic) -> Self {
        let offsets = offsets(lengths);
        let (more_steps, more_rows) = (2, 5);
        let rows = offsets.last().copied().unwrap_or(0) + more_rows;
        let state = lengths.len() * hidden;
        let numbers = |length, seed: usize| random(length, (seed * 7919 + hidden) as u64);
        let scale = 1.0 / (hidden as f32).sqrt();
        let pair = |seed| [numbers(state, seed), numbers(state, seed + 1)];
        let parameters = |direction| Parameters {
            weight: numbers(4 * hidden * hidden, 10 * direction + 1).iter().map(|x| x * scale).collect(),
            input_bias: numbers(4 * hidden, 10 * direction + 2),
            recurrent_bias: numbers(4 * hidden, 10 * direction + 3),
            projections: numbers(rows * 4 * hidden, 10 * direction + 4),
            initial: pair(10 * direction + 5),
            final_gradient: pair(10 * direction + 7),
        };
        Case {
            hidden,
            lengths: lengths.to_vec(),
            offsets,
            arithmetic,
            more_steps,
            more_rows,
            directions: (0..directions).map(parameters).collect(),
            with_states,
            mask: None,
            output_gradient: numbers(rows * directions * hidden, 99),
        }
    }

    /// Rows of the sequences, and of the tensors.
    fn rows(&self) -> (usize, usize) {
        let rows = self.offsets.last().copied().unwrap_or(0);
        (rows, rows + self.more_rows)
    }

    fn problem(&self) -> Problem {
        Problem { hidden: self.hidden, directions: self.directions.len(), sequences: self.lengths.len() }
    }

    /// Both passes and the hidden states moved by a step; the plans are those of the device if none are given.
    fn run(&self, device: &Device, plans: Option<[Plan; 2]>) -> Results {
        let context = &device.context;
        let (hidden, rows, state) = (self.hidden, self.rows().1, self.lengths.len() * self.hidden);
        let mut packed: Vec<i32> = self.offsets.iter().map(|&offset| offset as i32).collect();
        packed.extend(vec![packed.last().copied().unwrap_or(0); self.more_steps]);
        let (packed, lengths) = (device.upload(&packed), device.upload(&[0_i32]));
        let packing = Packing {
            offsets: packed.pointer(),
            lengths: lengths.pointer(),
            steps: self.offsets.len() - 1 + self.more_steps,
            rows,
            sequences: self.lengths.len(),
        };
        let (directions, arithmetic) = (self.directions.len(), self.arithmetic);
        let shape = Shape { hidden, directions, packing, arithmetic, mask: self.mask };
        let [forward_plan, backward_plan] =
            plans.unwrap_or_else(|| [forward_plan(context, &shape), backward_plan(context, &shape)]);

        let up = |values: &[f32]| device.upload(values);
        let empty = |count| device.poisoned::<f32>(count, 0);
        let gates: Vec<OnDevice<f32>> = self.directions.iter().map(|direction| up(&direction.projections)).collect();
        let cells: Vec<OnDevice<f32>> = self.directions.iter().map(|_| empty(rows * hidden)).collect();
        let [weights, input_biases, recurrent_biases]: [Vec<_>; 3] = [
            self.directions.iter().map(|direction| up(&direction.weight)).collect(),
            self.directions.iter().map(|direction| up(&direction.input_bias)).collect(),
            self.directions.iter().map(|direction| up(&direction.recurrent_bias)).collect(),
        ];
        let states = |of: fn(&Parameters) -> &[Vec<f32>; 2]| -> Vec<[OnDevice<f32>; 2]> {
            self.directions.iter().map(|direction| of(direction).each_ref().map(|values| up(values))).collect()
        };
        let initial = states(|direction| &direction.initial);
        let final_gradient = states(|direction| &direction.final_gradient);
        let last: Vec<_> = self.directions.iter().map(|_| [empty(state), empty(state)]).collect();
        let initial_gradient: Vec<_> = self.directions.iter().map(|_| empty(state)).collect();
        let output = empty(rows * self.directions.len() * hidden);
        let output_gradient = up(&self.output_gradient);

        let pointers = |pair: &[OnDevice<f32>; 2]| (pair[0].pointer(), pair[1].pointer());
        let operands: Vec<Forward> = (0..self.directions.len())
            .map(|d| Forward {
                gates: gates[d].pointer(),
                cells: cells[d].pointer(),
                weight: weights[d].pointer(),
                input_bias: input_biases[d].pointer(),
                recurrent_bias: recurrent_biases[d].pointer(),
                initial: self.with_states.then(|| pointers(&initial[d])),
                last: self.with_states.then(|| pointers(&last[d])),
            })
            .collect();
        let workspace = device.poisoned_bytes(forward_plan.workspace());
        forward_as(context, &shape, &forward_plan, &operands, output.pointer(), workspace.pointer());
        let activations: Vec<Vec<f32>> = gates.iter().map(OnDevice::values).collect();

        let operands: Vec<Backward> = (0..self.directions.len())
            .map(|d| {
                if !self.with_states {
                    final_gradient[d][1].write(&vec![0.0; state]);
                }
                Backward {
                    gates: gates[d].pointer(),
                    cells: cells[d].pointer(),
                    weight: weights[d].pointer(),
                    initial_cell: self.with_states.then(|| initial[d][1].pointer()),
                    cell_gradient: final_gradient[d][1].pointer(),
                    final_hidden_gradient: self.with_states.then(|| final_gradient[d][0].pointer()),
                    initial_hidden_gradient: self.with_states.then(|| initial_gradient[d].pointer()),
                }
            })
            .collect();
        let workspace = device.poisoned_bytes(backward_plan.workspace());
        backward_as(context, &shape, &backward_plan, &operands, output_gradient.pointer(), workspace.pointer());

        let previous: Vec<_> = (0..self.directions.len())
            .map(|d| {
                let previous = empty(rows * hidden);
                let initial = self.with_states.then(|| initial[d][0].pointer());
                previous_hidden(context, &shape, d, output.pointer(), initial, previous.pointer());
                previous
            })
            .collect();
        context.check().expect("the emulated device");
        let directions = activations.into_iter().enumerate().map(|(d, activations)| DirectionResults {
            activations,
            cells: cells[d].values(),
            last: last[d].each_ref().map(OnDevice::values),
            gradients: gates[d].values(),
            initial_gradient: [initial_gradient[d].values(), final_gradient[d][1].values()],
            previous: previous[d].values(),
        });
        Results { output: output.values(), directions: directions.collect() }
    }

    /// A direction's weights with the mask on them, as the CPU draws it.
    fn connected(&self, weight: &[f32]) -> Vec<f32> {
        let mut weight = weight.to_vec();
        if let Some(mask) = &self.mask {
            let frames: Vec<usize> = (0..=4 * self.hidden).collect();
            dropout::apply_in_place(&mut weight, &frames, self.hidden, mask);
        }
        weight
    }

    /// Rounded as the product's operands are.
    fn round(&self, value: f64) -> f64 {
        let bits = (value as f32).to_bits();
        match self.arithmetic {
            Arithmetic::F32 => value,
            Arithmetic::Tf32 => f64::from(f32::from_bits((bits + 0x1000) & !0x1fff)),
            Arithmetic::Bf16 => f64::from(f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & !0xffff)),
        }
    }

    /// One direction in f64. Where the product's operands are rounded, it takes what the kernels exchanged, h and the gates' gradients, from
    /// their results: a value that lies on the border of two bf16 numbers may be rounded to either.
    fn reference(&self, direction: usize, results: &Results) -> Reference {
        let exact = self.arithmetic == Arithmetic::F32;
        let hidden = self.hidden;
        let parameters = &self.directions[direction];
        let width = self.directions.len() * hidden;
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let weight: Vec<f64> = self.connected(&parameters.weight).iter().map(|&w| self.round(f64::from(w))).collect();
        let wide = |values: &[f32], n: usize| -> Vec<f64> {
            let row = &values[n * hidden..(n + 1) * hidden];
            row.iter().map(|&x| if self.with_states { f64::from(x) } else { 0.0 }).collect()
        };
        let (rows, all_rows) = self.rows();
        let mut result = Reference::zeros(all_rows, hidden, self.lengths.len());
        for (n, &length) in self.lengths.iter().enumerate() {
            let row_of = |number: usize| self.offsets[if direction == 0 { number } else { length - 1 - number }] + n;
            let (mut h, mut c) = (wide(&parameters.initial[0], n), wide(&parameters.initial[1], n));
            for number in 0..length {
                let row = row_of(number);
                let exchanged: Vec<f64> = match number.checked_sub(1).map(row_of) {
                    Some(row) if !exact => {
                        let h = &results.output[row * width + direction * hidden..][..hidden];
                        h.iter().map(|&h| self.round(f64::from(h))).collect()
                    }
                    _ => h.iter().map(|&h| self.round(h)).collect(),
                };
                result.previous[row * hidden..][..hidden].copy_from_slice(&h);
                result.previous_cells[row * hidden..][..hidden].copy_from_slice(&c);
                let sums: Vec<f64> = (0..4 * hidden)
                    .map(|j| {
                        let products = weight[j * hidden..].iter().zip(&exchanged).map(|(w, h)| w * h);
                        let bias = f64::from(parameters.input_bias[j]) + f64::from(parameters.recurrent_bias[j]);
                        f64::from(parameters.projections[row * 4 * hidden + j]) + bias + products.sum::<f64>()
                    })
                    .collect();
                for unit in 0..hidden {
                    let gate = |gate: usize| sums[gate * hidden + unit];
                    let gates = [sigmoid(gate(0)), sigmoid(gate(1)), gate(2).tanh(), sigmoid(gate(3))];
                    c[unit] = gates[1] * c[unit] + gates[0] * gates[2];
                    h[unit] = gates[3] * c[unit].tanh();
                    for (number, gate) in gates.into_iter().enumerate() {
                        result.activations[row * 4 * hidden + number * hidden + unit] = gate;
                    }
                }
                result.cells[row * hidden..][..hidden].copy_from_slice(&c);
                result.output[row * hidden..][..hidden].copy_from_slice(&h);
            }
            result.last[0][n * hidden..][..hidden].copy_from_slice(&h);
            result.last[1][n * hidden..][..hidden].copy_from_slice(&c);

            // The gradients of the last h and c, then step by step those of the steps before.
            let (mut dh, mut dc) = (wide(&parameters.final_gradient[0], n), wide(&parameters.final_gradient[1], n));
            for number in (0..length).rev() {
                let row = row_of(number);
                for unit in 0..hidden {
                    let gate = |gate: usize| result.activations[row * 4 * hidden + gate * hidden + unit];
                    let [i, f, g, o] = [gate(0), gate(1), gate(2), gate(3)];
                    let tanh_c = result.cells[row * hidden + unit].tanh();
                    dh[unit] += f64::from(self.output_gradient[row * width + direction * hidden + unit]);
                    dc[unit] += dh[unit] * o * (1.0 - tanh_c * tanh_c);
                    let gradients = [
                        dc[unit] * g * i * (1.0 - i),
                        dc[unit] * result.previous_cells[row * hidden + unit] * f * (1.0 - f),
                        dc[unit] * i * (1.0 - g * g),
                        dh[unit] * tanh_c * o * (1.0 - o),
                    ];
                    dc[unit] *= f;
                    for (number, gradient) in gradients.into_iter().enumerate() {
                        result.gradients[row * 4 * hidden + number * hidden + unit] = gradient;
                    }
                }
                let places = row * 4 * hidden..(row + 1) * 4 * hidden;
                let exchanged: Vec<f64> = if exact {
                    result.gradients[places].to_vec()
                } else {
                    let gradients = &results.directions[direction].gradients[places];
                    gradients.iter().map(|&gradient| self.round(f64::from(gradient))).collect()
                };
                for (unit, dh) in dh.iter_mut().enumerate() {
                    *dh = exchanged.iter().enumerate().map(|(j, gradient)| weight[j * hidden + unit] * gradient).sum();
                }
            }
            result.initial_gradient[0][n * hidden..][..hidden].copy_from_slice(&dh);
            result.initial_gradient[1][n * hidden..][..hidden].copy_from_slice(&dc);
        }
        assert!(rows <= all_rows);
        result
    }

    /// Holds everything against the reference.
    fn check(&self, results: &Results) {
        let (hidden, count) = (self.hidden, self.directions.len());
        let name = |what: &str, d: usize| {
            format!("{:?}, H {hidden}, lengths {:?}, direction {d}: {what}", self.arithmetic, self.lengths)
        };
        for (d, ours) in results.directions.iter().enumerate() {
            let reference = self.reference(d, results);
            let output: Vec<f32> = results
                .output
                .chunks_exact(count * hidden)
                .flat_map(|row| row[d * hidden..(d + 1) * hidden].to_vec())
                .collect();
            let close = |got: &[f32], expected: &[f64], what: &str| {
                assert_close(got, expected, TOLERANCE, 0.0, &name(what, d));
            };
            close(&output, &reference.output, "output");
            close(&ours.cells, &reference.cells, "cells");
            close(&ours.gradients, &reference.gradients, "gradients of the gates");
            close(&ours.previous, &reference.previous, "previous h");
            close(&ours.initial_gradient[1], &reference.initial_gradient[1], "gradient of the initial c");
            close(&ours.activations, &reference.activations, "activations");
            if self.with_states {
                close(&ours.initial_gradient[0], &reference.initial_gradient[0], "gradient of the initial h");
                for i in 0..2 {
                    close(&ours.last[i], &reference.last[i], "last state");
                }
            }
        }
    }
}

/// All zeros where no sequence is.
struct Reference {
    activations: Vec<f64>,
    cells: Vec<f64>,
    output: Vec<f64>,
    previous: Vec<f64>,
    previous_cells: Vec<f64>,
    last: [Vec<f64>; 2],
    gradients: Vec<f64>,
    initial_gradient: [Vec<f64>; 2],
}

impl Reference {
    fn zeros(rows: usize, hidden: usize, sequences: usize) -> Self {
        let zeros = |count: usize| vec![0.0; count * hidden];
        let states = || [zeros(sequences), zeros(sequences)];
        Reference {
            activations: zeros(4 * rows),
            cells: zeros(rows),
            output: zeros(rows),
            previous: zeros(rows),
            previous_cells: zeros(rows),
            last: states(),
            gradients: zeros(4 * rows),
            initial_gradient: states(),
        }
    }
}

/// A chip as large as wished: the emulator runs what a smaller one could not.
fn chip(multiprocessors: usize, shared: usize, cooperative: bool) -> Chip<'static> {
    Chip { multiprocessors, shared, cooperative, resident: &|_, _| usize::MAX }
}

fn plans(case: &Case, chip: &Chip) -> [Plan; 2] {
    [false, true].map(|backward| Plan::new(cores(backward, case.arithmetic), chip, case.problem()))
}

/// Odd and tiny sizes, equal and unequal lengths, with and without states.
fn cases(arithmetic: Arithmetic) -> Vec<Case> {
    let case =
        |hidden, lengths: &[usize], directions, states| Case::new(hidden, lengths, directions, states, arithmetic);
    vec![
        case(1, &[1], 1, false),
        case(5, &[4, 4, 2, 1], 2, true),
        case(8, &[7], 2, false),
        case(33, &[5, 4, 4, 3, 1], 2, true),
        case(70, &[3, 3, 3, 2, 2, 2, 1, 1, 1], 1, true),
        case(21, &[9, 9, 9, 8, 7, 6, 6, 5, 4, 4, 3, 2, 2, 2, 2, 2, 1, 1, 1], 2, false),
    ]
}

#[test]
fn both_passes_agree_with_a_plain_lstm_in_f64() {
    let Some(device) = Device::new() else { return };
    for arithmetic in ARITHMETICS {
        for case in cases(arithmetic) {
            case.check(&case.run(&device, None));
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_order_of_threads_nor_on_the_run() {
    for arithmetic in ARITHMETICS {
        let case = Case::new(37, &[5, 4, 4, 3, 3, 2, 2, 2, 1, 1], 2, true, arithmetic);
        let first = std::cell::RefCell::new(None);
        for_all_orders(|device| {
            for _ in 0..2 {
                let results = case.run(device, None);
                let mut first = first.borrow_mut();
                assert_eq!(&results, first.get_or_insert_with(|| case.run(device, None)), "{arithmetic:?}");
            }
        });
    }
}

#[test]
fn steps_launched_one_by_one_give_the_same_results() {
    let Some(device) = Device::new() else { return };
    for arithmetic in ARITHMETICS {
        for case in cases(arithmetic) {
            let plans = plans(&case, &chip(4, 227 << 10, false));
            assert!(plans.iter().all(|plan| plan.obstacle == Some(Obstacle::NoCooperativeLaunch)));
            case.check(&case.run(&device, Some(plans)));
        }
    }
}

/// Slices of sequences, directions one after the other, batches in several launches, tiles of a slice.
#[test]
fn however_the_work_is_shared_out_the_results_are_the_same() {
    let Some(device) = Device::new() else { return };
    let lengths: Vec<usize> = (0..21).map(|n| 4 - n / 7).collect();
    for arithmetic in ARITHMETICS {
        let case = Case::new(23, &lengths, 2, true, arithmetic);
        let [forward, backward] = plans(&case, &chip(64, 227 << 10, true));
        assert!(forward.slices > 1 && backward.slices > 1, "slices: {forward} {backward}");
        case.check(&case.run(&device, Some([forward, backward])));

        let one_slice = |plan: Plan| Plan { slices: 1, columns: 24, tile: 16, ..plan };
        case.check(&case.run(&device, Some([one_slice(forward), one_slice(backward)])));

        let apart = |plan: Plan| Plan { launched: 1, slices: 1, columns: 8, tile: 8, ..plan };
        assert!(apart(forward).to_string().contains("6 times one after the other"));
        case.check(&case.run(&device, Some([apart(forward), apart(backward)])));
    }
}

#[test]
fn four_blocks_that_share_their_rows_give_the_same_gradients() {
    let Some(device) = Device::new() else { return };
    for arithmetic in ARITHMETICS {
        for case in [
            Case::new(29, &[4, 4, 3, 2, 2, 1, 1, 1, 1], 2, true, arithmetic),
            Case::new(85, &[3, 2], 1, false, arithmetic),
        ] {
            let chip = chip(64, 227 << 10, true);
            let [forward, _] = plans(&case, &chip);
            let parts = Plan::persistent(&cores(true, arithmetic)[1], &chip, case.problem()).expect("room");
            assert_eq!(parts.core.parts, 4);
            case.check(&case.run(&device, Some([forward, parts])));
            let tiles = Plan { slices: 1, columns: 16, tile: 8, ..parts };
            case.check(&case.run(&device, Some([forward, tiles])));
        }
    }
}

/// In registers, shared and global memory, whatever the number of columns.
#[test]
fn dropped_connections_are_those_of_the_cpu() {
    let Some(device) = Device::new() else { return };
    let key = MaskKey { seed: 3, stage: "joint".into(), step: 7 };
    for arithmetic in ARITHMETICS {
        for (hidden, lengths) in [(5, &[4, 2, 1][..]), (70, &[3, 3, 2]), (200, &[3, 2])] {
            let mut case = Case::new(hidden, lengths, 1, true, arithmetic);
            let without = case.run(&device, None);
            case.mask = Some(Mask::new(&key, "lstm", 0.5).unwrap());
            let dropped = case.connected(&case.directions[0].weight);
            assert!(dropped.contains(&0.0) && dropped.iter().any(|&w| w != 0.0));
            let with = case.run(&device, None);
            assert_ne!(with.output, without.output);
            case.check(&with);
            let plans = plans(&case, &chip(1000, 227 << 10, true)).map(|plan| {
                let chunks = case.hidden.div_ceil(plan.core.chunk) * plan.core.width;
                Plan { warps: 1, weight_slots: chunks.saturating_sub(plan.core.held).min(2), ..plan }
            });
            case.check(&case.run(&device, Some(plans)));
        }
    }
}

/// One warp with all the weights: more than its registers hold, and more than its slots.
#[test]
fn weights_are_used_from_registers_shared_and_global_memory() {
    let Some(device) = Device::new() else { return };
    for arithmetic in ARITHMETICS {
        // 7 chunks of 32 or 13 of 16, backward four times as many.
        let case = Case::new(200, &[3, 2, 1], 1, false, arithmetic);
        for slots in [1, 2, 60] {
            let plans = plans(&case, &chip(1000, 227 << 10, true)).map(|plan| {
                let chunks = case.hidden.div_ceil(plan.core.chunk) * plan.core.width;
                Plan { warps: 1, weight_slots: slots.min(chunks - plan.core.held), ..plan }
            });
            let streams = plans.map(|plan| plan.to_string().contains("at every step"));
            // Of bf16, the forward pass has three chunks behind the held ones.
            assert_eq!(streams, [slots < 3, slots < 60], "{arithmetic:?}, {slots} slots");
            case.check(&case.run(&device, Some(plans)));
        }
    }
}

#[test]
fn an_empty_batch_gives_zeros() {
    let Some(device) = Device::new() else { return };
    let case = Case::new(4, &[], 2, false, Arithmetic::F32);
    let results = case.run(&device, None);
    assert!(results.output.iter().all(|&h| h == 0.0) && !results.output.is_empty());
    case.check(&results);
}

/// An H200, as its data sheet has it.
fn h200(shared: usize) -> Chip<'static> {
    Chip { multiprocessors: 132, shared, cooperative: true, resident: &|_, _| 132 }
}

#[test]
fn the_layers_that_are_measured_run_in_one_launch_with_all_weights_on_the_chip() {
    let full = h200(227 << 10);
    for (problem, slices) in [
        (Problem { hidden: 320, directions: 2, sequences: 30 }, [2, 2, 4]),
        (Problem { hidden: 1150, directions: 1, sequences: 80 }, [1, 1, 2]),
    ] {
        for (arithmetic, slices) in ARITHMETICS.into_iter().zip(slices) {
            for backward in [false, true] {
                let plan = Plan::new(cores(backward, arithmetic), &full, problem);
                println!("{arithmetic:?} {problem:?} {plan}, {} bytes of shared memory", plan.shared());
                assert!(plan.obstacle.is_none() && plan.launched == problem.directions, "{plan}");
                assert!(!plan.to_string().contains("at every step"), "{plan}");
                assert!(backward || plan.slices == slices, "{plan}");
            }
        }
    }
}

#[test]
fn every_plan_fits_its_chip() {
    for shared in [99 << 10, 163 << 10, 227 << 10] {
        for hidden in [1, 16, 100, 320, 512, 640, 1024, 1150, 1500, 2048, 4096] {
            for (directions, sequences) in [(1, 1), (2, 30), (1, 80), (2, 3000)] {
                for arithmetic in ARITHMETICS {
                    for backward in [false, true] {
                        let problem = Problem { hidden, directions, sequences };
                        let plan = Plan::new(cores(backward, arithmetic), &h200(shared), problem);
                        assert!(plan.shared() <= shared, "{problem:?} {plan}: {} of {shared} bytes", plan.shared());
                        assert!(plan.obstacle.is_some() || plan.blocks() <= 132, "{problem:?} {plan}");
                        assert!(plan.obstacle.is_none() || plan.core.parts == 1, "{problem:?} {plan}");
                        assert!(
                            plan.tile <= plan.columns && plan.columns.is_multiple_of(plan::GROUP),
                            "{problem:?} {plan}"
                        );
                        assert!(plan.obstacle.is_none() || plan.launch_sequences() >= sequences, "{problem:?} {plan}");
                        let same = Plan::new(cores(backward, arithmetic), &h200(shared), problem);
                        assert_eq!(plan, same);
                    }
                }
            }
        }
    }
}

#[test]
fn a_plan_says_why_steps_are_launched_one_by_one() {
    let problem = Problem { hidden: 4096, directions: 1, sequences: 8 };
    let plan = Plan::new(cores(false, Arithmetic::Bf16), &h200(227 << 10), problem);
    assert_eq!(plan.obstacle, Some(Obstacle::TooManyBlocks { needed: 205, resident: 132 }));
    assert!(plan.to_string().contains("205 blocks are needed at the same time, 132 fit"), "{plan}");
    assert!(!plan.launch().cooperative);
    let launch: Launch = plan.launch();
    assert_eq!(launch.blocks, [205, 1, 1]);
}
