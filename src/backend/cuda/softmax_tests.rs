//! Rows of logits on the emulator against f64.

use super::super::testing::{BOTH_ALIGNMENTS, Device, OnDevice, for_all_orders};
use super::*;
use crate::backend::cpu;
use crate::backend::cpu::cross_entropy::tests::{for_all_targets, reference};
use crate::backend::cpu::testing::{assert_close, random};
use half::bf16;
use std::cell::RefCell;

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The targets of a batch on the CPU, in a device's memory: what keeps them, and the batch.
struct Placed {
    labels: OnDevice<i32>,
    tables: Vec<OnDevice<f32>>,
}

impl Placed {
    fn new(device: &Device, of: &cpu::cross_entropy::CrossEntropy, shift: usize) -> Self {
        let (labels, table): (Vec<i32>, Option<&[f32]>) = match of.targets {
            cpu::cross_entropy::Targets::Labels { labels, prior, .. } => {
                (labels.iter().map(|&label| label.cast_signed()).collect(), prior)
            }
            cpu::cross_entropy::Targets::Distributions(rows) => (vec![], Some(rows)),
        };
        Placed {
            labels: device.shifted(&labels, 1),
            tables: table.iter().map(|table| device.shifted(table, shift)).collect(),
        }
    }

    fn batch(&self, of: &cpu::cross_entropy::CrossEntropy, logits: Operand, rows: usize) -> CrossEntropy {
        let table = self.tables.first().map(OnDevice::pointer);
        let targets = match of.targets {
            cpu::cross_entropy::Targets::Labels { smoothing, .. } => {
                Targets::Labels { labels: self.labels.pointer(), smoothing, prior: table }
            }
            cpu::cross_entropy::Targets::Distributions(_) => Targets::Distributions(table.expect("a table")),
        };
        CrossEntropy { logits, rows, columns: of.columns, targets }
    }
}

/// One column; less than a vector; edges alone; a warp; several; more than one round of a block.
const SHAPES: [(usize, usize, f32); 7] =
    [(1, 1, 1.0), (7, 3, 3.0), (6, 50, 20.0), (5, 129, 1e4), (4, 1003, 8.0), (2, 9001, 3.0), (3, 16, 300.0)];

#[test]
fn cross_entropy_of_f32_logits_agrees_with_f64_for_all_targets() {
    let bits_of_orders = RefCell::new(Vec::new());
    for_all_orders(|device| {
        let mut bits: Vec<u32> = Vec::new();
        for (rows, columns, spread) in SHAPES {
            let logits: Vec<f32> = random(rows * columns, columns as u64).iter().map(|x| x * spread).collect();
            for_all_targets(rows, columns, |of, name| {
                let (expected, gradient) = reference(of, &logits);
                for shift in BOTH_ALIGNMENTS {
                    let placed = Placed::new(device, of, shift);
                    let in_place = device.shifted(&logits, shift);
                    let batch = placed.batch(of, Operand::rows(in_place.pointer(), columns), rows);
                    let losses = [(); 2].map(|()| device.poisoned::<f32>(rows, 0));
                    cross_entropy(&device.context, &batch, losses[0].pointer(), None);
                    assert_eq!(in_place.values(), logits, "{name}: without a gradient the logits stay");

                    let factor = device.upload(&[0.25_f32]);
                    let scale = Scale { value: 2.0, factor: Some(factor.pointer()) };
                    cross_entropy(&device.context, &batch, losses[1].pointer(), Some(scale));
                    // Probabilities below 1: exp errs by about 2^-22, x - max by 2^-24 of it, a sum of few terms a thread by as much.
                    let halves: Vec<f64> = gradient.iter().map(|g| 0.5 * g).collect();
                    assert_close(&in_place.values(), &halves, 1e-6, 1e-6, name);
                    let losses = losses.map(|losses| losses.values());
                    assert_close(&losses[0], &expected, 2e-6, 1e-6, name);
                    assert_eq!(losses[0], losses[1], "{name}: the loss without a gradient is the same loss");
                    bits.extend(in_place.values().iter().chain(&losses[0]).map(|x| x.to_bits()));
                }
            });
        }
        bits_of_orders.borrow_mut().push(bits);
    });
    for pair in bits_of_orders.into_inner().windows(2) {
        assert!(pair[0] == pair[1], "the order of the threads changed bits");
    }
}

#[test]
fn cross_entropy_of_bf16_logits_agrees_with_f64_up_to_the_rounding_of_the_gradient() {
    for_all_orders(|device| {
        for (rows, columns, spread) in SHAPES {
            let logits: Vec<bf16> =
                random(rows * columns, columns as u64).iter().map(|x| bf16::from_f32(x * spread)).collect();
            let exact: Vec<f32> = logits.iter().map(|x| x.to_f32()).collect();
            for_all_targets(rows, columns, |of, name| {
                let (expected, gradient) = reference(of, &exact);
                // The last rows as training has them: each begins at a multiple of 16 bytes.
                for (shift, gap) in [(0, 0), (1, 0), (3, 1), (0, columns.next_multiple_of(8) - columns)] {
                    let stride = columns + gap;
                    let mut raw = vec![bf16::NAN.to_bits(); rows * stride];
                    for (row, logits) in raw.chunks_exact_mut(stride).zip(logits.chunks_exact(columns)) {
                        row.iter_mut().zip(logits).for_each(|(to, x)| *to = x.to_bits());
                    }
                    let placed = Placed::new(device, of, shift);
                    let in_place = device.shifted(&raw, shift);
                    let batch = placed.batch(of, Operand::rows(in_place.pointer(), stride).bf16(), rows);
                    let losses = device.poisoned::<f32>(rows, 0);
                    cross_entropy(&device.context, &batch, losses.pointer(), Some(Scale::ONE));
                    let after = in_place.values();
                    let (ours, between): (Vec<_>, Vec<_>) =
                        after.iter().enumerate().partition(|(place, _)| place % stride < columns);
                    let ours: Vec<f32> = ours.iter().map(|&(_, &bits)| bf16::from_bits(bits).to_f32()).collect();
                    assert_close(&ours, &gradient, 1e-6, 1.0 / 256.0, name);
                    assert_close(&losses.values(), &expected, 2e-6, 1e-6, name);
                    assert!(between.iter().all(|&(_, &bits)| bits == bf16::NAN.to_bits()), "{name}: between rows");
                }
            });
        }
    });
}

#[test]
fn a_row_beyond_shared_memory_is_read_twice_with_the_same_result() {
    let Some(device) = Device::new() else { return };
    // 240 KB in f32, more than a block may have; 120 KB in bf16.
    let columns = 60_001;
    let logits: Vec<f32> = random(columns, 4).iter().map(|x| bf16::from_f32(4.0 * x).to_f32()).collect();
    let of = cpu::cross_entropy::CrossEntropy {
        columns,
        targets: cpu::cross_entropy::Targets::Labels { labels: &[59_999], smoothing: 0.1, prior: None },
    };
    let placed = Placed::new(&device, &of, 0);
    let (expected, gradient) = reference(&of, &logits);
    let losses = device.poisoned::<f32>(1, 0);

    let in_place = device.upload(&logits);
    let batch = placed.batch(&of, Operand::rows(in_place.pointer(), columns), 1);
    cross_entropy(&device.context, &batch, losses.pointer(), Some(Scale::ONE));
    assert_close(&in_place.values(), &gradient, 1e-8, 1e-5, "f32");
    assert_close(&losses.values(), &expected, 0.0, 1e-6, "f32");

    let in_place = device.upload(&logits.iter().map(|&x| bf16::from_f32(x).to_bits()).collect::<Vec<u16>>());
    let batch = placed.batch(&of, Operand::rows(in_place.pointer(), columns).bf16(), 1);
    cross_entropy(&device.context, &batch, losses.pointer(), Some(Scale::ONE));
    let ours: Vec<f32> = in_place.values().iter().map(|&bits| bf16::from_bits(bits).to_f32()).collect();
    assert_close(&ours, &gradient, 1e-8, 1.0 / 250.0, "bf16");
    assert_close(&losses.values(), &expected, 0.0, 1e-6, "bf16");
    device.context.check().expect("the launches were legal");
}

#[test]
fn a_row_that_is_left_out_may_hold_anything() {
    for_all_orders(|device| {
        let logits = device.upload(&[1.0, 2.0, f32::NAN, f32::INFINITY, 3.0, f32::NAN]);
        let of = cpu::cross_entropy::CrossEntropy {
            columns: 2,
            targets: cpu::cross_entropy::Targets::Labels {
                labels: &[1, cpu::cross_entropy::IGNORED, cpu::cross_entropy::IGNORED],
                smoothing: 0.1,
                prior: None,
            },
        };
        let placed = Placed::new(device, &of, 0);
        let losses = device.poisoned::<f32>(3, 0);
        let batch = placed.batch(&of, Operand::rows(logits.pointer(), 2), 3);
        cross_entropy(&device.context, &batch, losses.pointer(), Some(Scale::ONE));
        assert!(losses.values()[0] > 0.0 && losses.values()[1..] == [0.0; 2]);
        assert_eq!(logits.values()[2..], [0.0; 4]);
    });
}

#[test]
fn log_softmax_and_its_backward_agree_with_the_cpu() {
    for_all_orders(|device| {
        for (rows, columns, spread) in SHAPES {
            let x: Vec<f32> = random(rows * columns, columns as u64).iter().map(|x| x * spread).collect();
            let dy = random(rows * columns, 2);
            let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            cpu::softmax::log_softmax(&x, &mut y, columns);
            cpu::softmax::log_softmax_backward(&y, &dy, &mut dx, columns);
            // Input and output alike aligned, or not.
            for (shift, other) in [(0, 0), (1, 1), (0, 1), (3, 2)] {
                let (from, to) = (device.shifted(&x, shift), device.poisoned(x.len(), other));
                log_softmax(&device.context, from.pointer(), to.pointer(), rows, columns);
                // exp, the sum and two subtractions: units of the last place of the result, or of the logarithm of the sum.
                assert_close(&to.values(), &widened(&y), 2e-6, 3e-7, "log-softmax");

                let (logs, upstream) = (device.shifted(&y, shift), device.shifted(&dy, shift));
                let gradient = device.poisoned(x.len(), other);
                let (y, dy, to) = (logs.pointer(), upstream.pointer(), gradient.pointer());
                log_softmax_backward(&device.context, y, dy, to, rows, columns);
                // The sum of dy has some columns / 10 roundings of its own size.
                let tolerance = 1e-6 + 1e-8 * columns as f64;
                assert_close(&gradient.values(), &widened(&dx), tolerance, 2e-6, "log-softmax backward");
                log_softmax_backward(&device.context, y, dy, dy, rows, columns);
                assert_eq!(upstream.values(), gradient.values(), "in place");
            }
        }
    });
}

#[test]
fn the_total_is_the_sum_in_f64() {
    for_all_orders(|device| {
        for count in [0, 1, 33, 5600] {
            let (losses, sum) = (random(count, 5), device.poisoned(1, 0));
            let there = device.upload(&losses);
            total(&device.context, there.pointer(), count, 0.125, sum.pointer());
            let exact: f64 = losses.iter().map(|&loss| f64::from(loss)).sum();
            // f64's own roundings may only move the last one.
            assert_close(&sum.values(), &[0.125 * exact], 1e-12, 6e-8, "total");
        }
    });
}
