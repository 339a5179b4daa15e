//! Steps as lists of work: what is equal is replayed, what is not is run, and nothing is read before it is there.

use super::{KNOWN, KNOWN_BYTES, List, Recorder, Work};
use crate::backend::cuda::context::{Buffer, Context};
use crate::backend::cuda::counted::Counted;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::elementwise::{accumulate, fill, scale};
use crate::backend::cuda::emulated::Emulated;
use crate::backend::cuda::emulator::{AVAILABLE, Order};
use crate::backend::cuda::testing::Device;
use std::sync::Arc;

fn context() -> Option<Arc<Context>> {
    Device::new().map(|device| device.context)
}

/// sum += 2 input, by way of the arena.
fn step(context: &Arc<Context>, sum: &Buffer, input: &[f32]) {
    let there = context.bring(input);
    let doubled = context.take(size_of_val(input));
    scale(context, there.pointer(), 2.0, doubled.pointer(), input.len());
    accumulate(context, sum.pointer(), doubled.pointer(), input.len());
}

fn zeros(context: &Arc<Context>, count: usize) -> Buffer {
    let buffer = context.allocate(count * size_of::<f32>());
    context.clear(&buffer);
    buffer
}

#[test]
fn a_step_that_returns_is_a_graph_and_reads_its_own_input() {
    let Some(context) = context() else { return };
    let sum = zeros(&context, 3);
    for number in 1..=5 {
        let recording = context.record();
        step(&context, &sum, &[number as f32; 3]);
        recording.run();
    }
    assert_eq!(context.download::<f32>(&sum, 3), [30.0; 3]);
    let counters = context.counters();
    assert_eq!((counters.graphs, counters.replays, counters.launches), (1, 4, 10));
    // Another size, then the first again.
    for count in [2, 3, 2, 3] {
        let recording = context.record();
        step(&context, &sum, &vec![1.0; count]);
        recording.run();
    }
    assert_eq!(context.download::<f32>(&sum, 3), [38.0, 38.0, 34.0]);
    assert_eq!((context.counters().graphs, context.counters().replays), (2, 7));
    context.check().unwrap();
}

#[test]
fn more_batches_than_a_corpus_of_eighty_hours_has_become_graphs_in_the_second_epoch() {
    let context =
        Context::new("counted", Box::new(Counted::posing(Emulated::new(Order::Forward).properties().clone())));
    let sum = zeros(&context, 2000);
    for _ in 0..2 {
        for count in 1..=2000 {
            let recording = context.record();
            step(&context, &sum, &vec![1.0; count]);
            recording.run();
        }
    }
    assert_eq!((context.counters().graphs, context.counters().replays), (2000, 2000));
    assert_eq!(context.take_notes(), Vec::<String>::new());
}

#[test]
fn the_list_that_was_not_used_for_longest_is_forgotten_first_and_memory_is_bounded() {
    let driver = Counted::posing(Emulated::new(Order::Forward).properties().clone());
    let mut recorder = Recorder::default();
    let list = |number: u64, works: usize| {
        let mut list = List::default();
        (0..works).for_each(|_| list.fill(number, 0, 1));
        list
    };
    let large = KNOWN_BYTES / size_of::<Work>() / 2;
    for (number, works) in [(1, 1), (2, large), (3, large), (4, 2 * large + 1)] {
        recorder.step = number;
        recorder.remember(&driver, number, list(number, works));
        let bytes: usize = recorder.known.iter().map(|known| known.list.bytes()).sum();
        assert_eq!(recorder.known_bytes, bytes);
    }
    let digests: Vec<u64> = recorder.known.iter().map(|known| known.digest).collect();
    assert_eq!(digests, [4], "one that is larger than the bound is alone");
    for number in 5..5 + KNOWN as u64 {
        recorder.step = number;
        recorder.remember(&driver, number, list(number, 1));
    }
    assert_eq!(recorder.known.len(), KNOWN);
    assert!(recorder.known.iter().all(|known| known.digest >= 5));
}

#[test]
fn what_a_step_brings_out_is_what_it_was_then_however_late_it_is_read() {
    let Some(context) = context() else { return };
    let sum = zeros(&context, 2);
    let fetched: Vec<_> = (1..=6)
        .map(|number| {
            let recording = context.record();
            step(&context, &sum, &[number as f32, 0.5]);
            let fetched = context.fetch::<f32>(&sum, 2);
            recording.run();
            fetched
        })
        .collect();
    let read: Vec<Vec<f32>> = fetched.into_iter().map(|fetched| fetched.read()).collect();
    assert_eq!(read, [[2., 1.], [6., 2.], [12., 3.], [20., 4.], [30., 5.], [42., 6.]]);
}

#[test]
fn what_is_read_within_a_step_has_the_work_before_it() {
    let Some(context) = context() else { return };
    let sum = zeros(&context, 2);
    let recording = context.record();
    step(&context, &sum, &[1.0, 2.0]);
    let fetched = context.fetch::<f32>(&sum, 2);
    assert_eq!(context.download::<f32>(&sum, 2), [2.0, 4.0]);
    step(&context, &sum, &[1.0, 1.0]);
    assert_eq!(fetched.read(), [2.0, 4.0]);
    recording.run();
    assert_eq!(context.download::<f32>(&sum, 2), [4.0, 6.0]);
}

#[test]
fn a_step_that_is_not_run_leaves_nothing_behind() {
    let Some(context) = context() else { return };
    let sum = zeros(&context, 2);
    let forgotten = context.record();
    step(&context, &sum, &[1.0, 2.0]);
    let fetched = context.fetch::<f32>(&sum, 2);
    drop(forgotten);
    assert_eq!(context.download::<f32>(&sum, 2), [0.0; 2]);
    assert_eq!(fetched.read(), [0.0; 2]);
    // Without a recording, everything runs at once.
    step(&context, &sum, &[1.0, 2.0]);
    assert_eq!(context.download::<f32>(&sum, 2), [2.0, 4.0]);
}

#[test]
fn memory_given_back_within_a_step_is_there_until_it_has_run() {
    let Some(context) = context() else { return };
    let sum = zeros(&context, 2);
    for _ in 0..3 {
        let recording = context.record();
        let short_lived = context.allocate(8);
        fill(&context, short_lived.pointer(), 3.0, 2);
        accumulate(&context, sum.pointer(), short_lived.pointer(), 2);
        drop(short_lived);
        recording.run();
    }
    assert_eq!(context.download::<f32>(&sum, 2), [9.0; 2]);
}

#[test]
fn input_that_is_overwritten_before_its_step_was_waited_for_is_an_error_on_the_emulator() {
    if !AVAILABLE {
        println!("skipped: the emulator was not built");
        return;
    }
    for waits in [true, false] {
        let driver = Emulated::new(Order::Forward);
        let mut recorder = Recorder::default();
        for number in 1..=3 {
            if !waits {
                recorder.halves.iter_mut().for_each(|half| half.in_flight = false);
            }
            recorder.begin(&driver).unwrap();
            recorder.bring(&driver, &[number; 8]).unwrap();
            recorder.finish(&driver).unwrap();
        }
        assert_eq!(driver.synchronize().is_ok(), waits);
        recorder.release(&driver);
    }
}

#[test]
fn a_step_may_bring_in_more_than_any_before() {
    let Some(context) = context() else { return };
    let large = 1 << 19;
    let sum = zeros(&context, large);
    for count in [10, large, 10, large] {
        let recording = context.record();
        step(&context, &sum, &vec![1.0; count]);
        step(&context, &sum, &[1.0]);
        recording.run();
    }
    let sums = context.download::<f32>(&sum, large);
    assert_eq!((sums[0], sums[9], sums[10], sums[large - 1]), (16.0, 8.0, 4.0, 4.0));
    context.trim();
    context.check().unwrap();
}
