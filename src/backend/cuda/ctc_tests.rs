//! CTC on the emulator against recursions in f64 and at its limits.
//!
//! The bounds: an emission errs by the rounding of x - max (up to 2e-6 beside logits of 30), of exp (2^-22) and of 22 bits (2^-23), as if the
//! logits were as much off; a step rounds three times by 2^-24; occupations are multiples of 2^-30. Losses are rounded to f32.

use super::super::testing::{Device, OnDevice, for_all_orders};
use super::*;
use crate::backend::cpu::ctc::tests::{Case, transcript};

/// A case in a device's memory, with some steps, rows and labels more than it needs, as a graph for rounded-up sizes has them.
struct Placed {
    batch: Batch,
    logits: OnDevice<f32>,
    /// Offsets, lengths, starts, labels.
    integers: [OnDevice<i32>; 4],
}

#[derive(Debug, Clone)]
struct Outcome {
    losses: Vec<f32>,
    gradient: Vec<f32>,
    feasible: Vec<i32>,
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

impl Outcome {
    fn bits(&self) -> (Vec<u32>, Vec<u32>, Vec<i32>) {
        (bits(&self.losses), bits(&self.gradient), self.feasible.clone())
    }

    fn is_finite(&self) -> bool {
        self.losses.iter().chain(&self.gradient).all(|x| x.is_finite())
    }
}

/// Offsets, lengths, starts, labels, for `steps` steps.
fn integers(case: &Case, steps: usize) -> [Vec<i32>; 4] {
    let of = |values: &[usize]| values.iter().map(|&value| value as i32).collect::<Vec<i32>>();
    let mut offsets = of(&case.offsets);
    offsets.resize(steps + 1, offsets.last().copied().unwrap_or(0));
    let mut starts = vec![0];
    for labels in &case.labels {
        starts.push(starts[starts.len() - 1] + labels.len() as i32);
    }
    let labels = case.labels.iter().flatten().map(|&label| label as i32).collect();
    [offsets, of(&case.lengths), starts, labels]
}

impl Placed {
    fn new(device: &Device, case: &Case, spare: usize) -> Self {
        let steps = case.offsets.len() - 1 + spare;
        let mut logits = case.logits.clone();
        logits.resize(logits.len() + spare * case.symbols, 7.0);
        let logits = device.upload(&logits);
        let integers = integers(case, steps).map(|values| {
            let room = device.poisoned(values.len() + spare + 1, 0);
            room.write_bytes(bytemuck::cast_slice(&values));
            room
        });
        let [offsets, lengths, starts, labels] = integers.each_ref().map(OnDevice::pointer);
        let rows = case.offsets.last().copied().unwrap_or(0) + spare;
        let packing = Packing { offsets, lengths, steps, rows, sequences: case.lengths.len() };
        let longest = case.labels.iter().map(Vec::len).max().unwrap_or(0) + spare;
        let batch = Batch { logits: logits.pointer(), symbols: case.symbols, packing, starts, labels, longest };
        Placed { batch, logits, integers }
    }

    fn run(&self, device: &Device, case: &Case) -> Outcome {
        let (batch, sequences) = (&self.batch, case.lengths.len());
        let losses = device.poisoned::<f32>(sequences, 0);
        let gradient = device.poisoned::<f32>(batch.packing.rows * batch.symbols, 0);
        let room = device.poisoned_bytes(workspace(batch, true));
        let output = Some((gradient.pointer(), Scale::ONE));
        ctc(&device.context, batch, losses.pointer(), output, room.pointer()).expect("within the limits");
        let all: Vec<i32> = device.context.download(&room, workspace(batch, true) / size_of::<i32>());
        let place = (feasible(batch, room.pointer()) - room.pointer()) as usize / size_of::<i32>();

        let mut gradient = gradient.values();
        let rest = gradient.split_off(case.logits.len());
        assert!(rest.iter().all(|&x| x == 0.0), "rows behind the last frame's are zero");
        let feasible = all[place..place + sequences].to_vec();
        Outcome { losses: losses.values(), gradient, feasible }
    }

    fn losses_alone(&self, device: &Device, case: &Case) -> Vec<f32> {
        let losses = device.poisoned(case.lengths.len(), 0);
        let room = device.poisoned_bytes(workspace(&self.batch, false));
        ctc(&device.context, &self.batch, losses.pointer(), None, room.pointer()).expect("within the limits");
        losses.values()
    }
}

/// Runs a case in every order, twice in one of them, and requires equal bits.
fn run(case: &Case, spare: usize) -> Option<Outcome> {
    let outcomes = std::cell::RefCell::new(Vec::new());
    for_all_orders(|device| {
        let placed = Placed::new(device, case, spare);
        let outcome = placed.run(device, case);
        let again = if outcomes.borrow().is_empty() { placed.run(device, case) } else { outcome.clone() };
        let alone = placed.losses_alone(device, case);
        assert_eq!(bits(&alone), bits(&outcome.losses), "the loss without a gradient is the same loss");
        outcomes.borrow_mut().extend([outcome, again]);
    });
    let outcomes = outcomes.into_inner();
    for pair in outcomes.windows(2) {
        assert!(pair[0].bits() == pair[1].bits(), "two runs, or two orders of the threads, differ in their bits");
    }
    outcomes.into_iter().next()
}

/// Requires losses within `relative`, and gradients within as much of 1, their largest term.
fn agrees(case: &Case, outcome: &Outcome, relative: f64) {
    for n in 0..case.lengths.len() {
        assert_eq!(outcome.feasible[n], 1);
        let (loss, gradient) = case.reference(n);
        let error = (f64::from(outcome.losses[n]) - loss).abs();
        assert!(error <= relative * loss.abs().max(1.0), "sequence {n}: loss {} for {loss}", outcome.losses[n]);
        for (i, (ours, exact)) in case.rows(&outcome.gradient, n).iter().zip(gradient).enumerate() {
            let error = (f64::from(*ours) - exact).abs();
            assert!(error <= relative, "sequence {n}, gradient[{i}]: {ours} for {exact}");
        }
    }
}

fn check(case: &Case, spare: usize, relative: f64) {
    if let Some(outcome) = run(case, spare) {
        agrees(case, &outcome, relative);
    }
}

#[test]
fn losses_and_gradients_agree_with_f64_for_odd_sizes_and_unequal_lengths() {
    // One warp and several, with and without labels in the last pair; segments of every length.
    let labels: Vec<Vec<u32>> = [60, 56, 33, 8, 7, 1, 1, 0].iter().map(|&l| transcript(l, 50, l as u64)).collect();
    let lengths = [150, 149, 70, 17, 16, 2, 1, 1];
    let sequences: Vec<(usize, &[u32])> = lengths.iter().zip(&labels).map(|(&t, l)| (t, l.as_slice())).collect();
    for (scale, spare) in [(0.1, 0), (3.0, 5), (30.0, 1)] {
        check(&Case::new(50, &sequences, scale), spare, 4e-6);
    }
    check(&Case::new(2, &[(9, &[1, 1, 1]), (1, &[1])], 2.0), 0, 2e-6);
}

#[test]
fn a_thousand_frames_and_five_hundred_labels_keep_their_accuracy() {
    let labels = [transcript(500, 50, 3), transcript(100, 50, 4)];
    for scale in [0.5, 8.0] {
        check(&Case::new(50, &[(1000, &labels[0]), (800, &labels[1])], scale), 0, 1e-5);
    }
}

#[test]
fn transcripts_beyond_a_block_of_short_ones_agree_with_f64() {
    let labels = transcript(930, 300, 5);
    check(&Case::new(300, &[(950, &labels), (37, &labels[..20])], 4.0), 2, 1e-5);
}

#[test]
fn the_longest_transcript_has_its_place_and_one_label_more_is_an_error() {
    // As many frames as labels: one path, the labels themselves.
    let labels: Vec<u32> = (0..MAX_LABELS).map(|l| 1 + l as u32 % 3).collect();
    let case = Case::new(4, &[(MAX_LABELS, &labels)], 1.0);
    let Some(device) = Device::new() else { return };
    let placed = Placed::new(&device, &case, 0);
    let outcome = placed.run(&device, &case);
    let y = case.log_probabilities(0);
    let loss: f64 = labels.iter().zip(&y).map(|(&label, y)| -y[label as usize]).sum();
    assert!((f64::from(outcome.losses[0]) - loss).abs() < 1e-6 * loss, "{} for {loss}", outcome.losses[0]);
    for (t, (row, y)) in outcome.gradient.chunks(4).zip(&y).enumerate() {
        for (k, &ours) in row.iter().enumerate() {
            let exact = y[k].exp() - f64::from(u8::from(labels[t] as usize == k));
            assert!((f64::from(ours) - exact).abs() < 1e-6, "frame {t}, symbol {k}: {ours} for {exact}");
        }
    }

    let batch = Batch { longest: MAX_LABELS + 1, ..placed.batch };
    let error = ctc(&device.context, &batch, 0, None, 0).expect_err("too long");
    assert!(error.to_string().contains("4095"), "{error}");
    device.context.check().expect("nothing was launched");
}

#[test]
fn labels_that_do_not_fit_are_flagged_and_leave_no_trace() {
    let case = Case::new(4, &[(4, &[1, 2]), (3, &[1, 1, 2]), (2, &[3, 3]), (1, &[1, 2]), (1, &[])], 1.0);
    let Some(outcome) = run(&case, 3) else { return };
    assert_eq!(outcome.feasible, [1, 0, 0, 0, 1]);
    assert!(outcome.losses[0] > 0.0 && outcome.losses[1..4] == [0.0; 3] && outcome.losses[4] > 0.0);
    for n in 0..5 {
        assert_eq!(case.rows(&outcome.gradient, n).iter().all(|&x| x == 0.0), (1..4).contains(&n), "sequence {n}");
    }
}

#[test]
fn extreme_logits_stay_finite() {
    let labels = transcript(20, 8, 6);
    for scale in [50.0, 1e4, 3e38] {
        let case = Case::new(8, &[(50, &labels), (50, &[]), (45, &labels[..3])], scale);
        let Some(outcome) = run(&case, 0) else { return };
        assert!(outcome.is_finite(), "logits of {scale}");
        // Within 2 x 350 nats no emission is cut off.
        if scale < 300.0 {
            agrees(&case, &outcome, 1e-5);
        }
    }
    // A certain transcript: loss 0, gradient 0.
    let mut case = Case::new(3, &[(2, &[1])], 0.0);
    case.logits = vec![0.0, 1e4, 0.0, 1e4, 0.0, 0.0];
    let Some(outcome) = run(&case, 0) else { return };
    assert_eq!(outcome.losses, [0.0]);
    assert!(outcome.gradient.iter().all(|x| x.abs() < 1e-6), "{:?}", outcome.gradient);
}

#[test]
fn a_logit_that_is_not_a_number_shows_in_the_loss_of_its_sequence_alone() {
    let mut case = Case::new(4, &[(3, &[1]), (2, &[2])], 1.0);
    case.logits[0] = f32::NAN;
    let Some(outcome) = run(&case, 0) else { return };
    assert!(outcome.losses[0].is_nan() && outcome.losses[1].is_finite());
    assert!(case.rows(&outcome.gradient, 1).iter().all(|x| x.is_finite()));
}

#[test]
fn the_gradient_may_take_the_place_of_the_logits_and_is_scaled_from_host_and_device() {
    let labels = transcript(12, 9, 1);
    let case = Case::new(9, &[(30, &labels), (20, &[])], 2.0);
    for_all_orders(|device| {
        let placed = Placed::new(device, &case, 1);
        let expected = placed.run(device, &case);
        let (batch, losses) = (&placed.batch, device.poisoned::<f32>(2, 0));
        let room = device.poisoned_bytes(workspace(batch, true));
        // Powers of two, so that scaling rounds nothing.
        let factor = device.upload(&[0.25_f32]);
        let output = Some((batch.logits, Scale { value: 2.0, factor: Some(factor.pointer()) }));
        ctc(&device.context, batch, losses.pointer(), output, room.pointer()).unwrap();
        let gradient: Vec<f32> = placed.logits.values().iter().map(|x| 2.0 * x).collect();
        assert_eq!(gradient[..expected.gradient.len()], expected.gradient);
        assert_eq!(losses.values(), expected.losses);

        let sum = device.poisoned::<f32>(1, 0);
        total(&device.context, losses.pointer(), 2, -0.5, sum.pointer());
        let exact: f64 = losses.values().iter().map(|&loss| f64::from(loss)).sum();
        assert_eq!(sum.values(), [(-0.5 * exact) as f32]);
    });
}

#[test]
fn a_captured_graph_serves_other_lengths_and_labels() {
    let labels = [transcript(9, 6, 1), transcript(5, 6, 2), transcript(3, 6, 3)];
    let first = Case::new(6, &[(30, &labels[0]), (21, &labels[1])], 2.0);
    // Fewer rows, shorter sequences, other labels, and one that does not fit.
    let second = Case::new(6, &[(19, &labels[2]), (2, &labels[1])], 2.0);
    let Some(device) = Device::new() else { return };
    let placed = Placed::new(&device, &first, 4);
    let batch = &placed.batch;
    let losses = device.poisoned::<f32>(2, 0);
    let gradient = device.poisoned::<f32>(batch.packing.rows * batch.symbols, 0);
    let room = device.poisoned_bytes(workspace(batch, true));
    let driver = device.context.driver();
    // A kernel's first use loads it, which a GPU refuses while a graph is captured.
    placed.run(&device, &first);
    driver.begin_capture().unwrap();
    let output = Some((gradient.pointer(), Scale::ONE));
    ctc(&device.context, batch, losses.pointer(), output, room.pointer()).unwrap();
    let graph = driver.end_capture().unwrap();
    for case in [&first, &second, &first] {
        let mut logits = case.logits.clone();
        logits.resize(batch.packing.rows * batch.symbols, 7.0);
        placed.logits.write(&logits);
        for (room, values) in placed.integers.iter().zip(integers(case, batch.packing.steps)) {
            room.write_bytes(bytemuck::cast_slice(&values));
        }
        // SAFETY: all memory that was captured is still there.
        unsafe { driver.replay(graph) }.unwrap();
        let fresh = Placed::new(&device, case, 0).run(&device, case);
        let all = gradient.values();
        let (frames, rest) = all.split_at(case.logits.len());
        assert_eq!(bits(frames), bits(&fresh.gradient));
        assert!(rest.iter().all(|&x| x == 0.0), "rows behind the last frame's are zero");
        assert_eq!(losses.values(), fresh.losses);
    }
}

#[test]
fn an_empty_batch_leaves_zeros() {
    let Some(outcome) = run(&Case::new(5, &[], 1.0), 3) else { return };
    assert!(outcome.losses.is_empty() && outcome.gradient.is_empty());
    run(&Case::new(5, &[], 1.0), 0);
}
