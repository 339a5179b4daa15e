//! What can be counted without a GPU: what a training step asks of one. Kernels by name, copies, waits, memory.
//!
//! The counting device says that it is an H200: the whole backend runs at full size in a moment, and a kernel launched once more, a copy, or a wait
//! inside a step shows as a changed number. `docs/results/counts.md` holds the numbers; a test compares.

use super::table::{Spec, select};
use super::{Bench, prepare};
use crate::backend::cuda::context::Context;
use crate::backend::cuda::counted::{Counted, Counter, Tally};
use crate::backend::cuda::driver::Properties;
use crate::backend::cuda::matmul::Arithmetic;
use crate::bench::limits::precision;
use crate::device::{Backend, Device};
use crate::error::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// An H200, as its data sheet and the CUDA C++ Programming Guide have it.
fn h200() -> Properties {
    Properties {
        name: "H200 (counting)".into(),
        capability: (9, 0),
        multiprocessors: 132,
        shared_per_block: 227 * 1024,
        memory: 141_000_000_000,
        cooperative: true,
    }
}

/// A device with these properties that counts and does nothing, an H200's unless told otherwise.
pub fn counting(properties: Option<Properties>) -> (Device, Counter) {
    let driver = Counted::posing(properties.unwrap_or_else(h200));
    let counter = driver.counter();
    (Device::cuda(Context::new("counting", Box::new(driver))), counter)
}

/// What one run of a row asks of an H200, once all that is made only once is there, and the arena's most bytes.
///
/// # Errors
/// If its sizes cannot be.
pub fn count(spec: &Spec, arithmetic: Arithmetic) -> Result<(Tally, u64)> {
    let (device, counter) = counting(None);
    device.set_arithmetic(arithmetic);
    let bench = Bench { device: device.clone(), rotate: false };
    let mut prepared = prepare(&bench, spec)?;
    (0..WARM_UP).try_for_each(|_| (prepared.run)(0))?;
    counter.take();
    (prepared.run)(0)?;
    let tally = counter.take();
    Ok((tally, arena_peak(&device)))
}

/// The first runs make what is made once, and graphs of both halves of what a step takes in.
const WARM_UP: usize = 6;

fn arena_peak(device: &Device) -> u64 {
    match device.backend() {
        Backend::Cuda(context) => context.counters().arena_peak,
        _ => 0,
    }
}

/// The command that writes the report anew.
pub const REFRESH: &str = "headfirst bench --counts > docs/results/counts.md";

/// Every step of two models, and the joint and the deepest frozen step of the others; names of rows, or their beginnings.
const ROWS: [&str; 8] = [
    "blstm-ctc/4x320/",
    "awd-lstm/",
    "ctc-attention/4x320/B16-T200/joint",
    "ctc-attention/4x320/B16-T200/frozen-2",
    "vgg-blstm-ctc/6x320/B16-T400/joint",
    "vgg-blstm-ctc/6x320/B16-T400/frozen-7",
    "transformer/12+6x256/B8-T800/joint",
    "transformer/12+6x256/B8-T800/frozen-7",
];

/// `docs/results/counts.md`: whole steps, then the kernels of one of them, and the shared memory of all.
///
/// # Errors
/// If a row cannot be counted.
pub fn report() -> Result<String> {
    let mut text = format!(
        "# What a training step asks of a GPU\n\
         Counted without one, by a device that says it is an H200 and does nothing: the backend's own code runs at full size, launches and copies are noted. \
         `cuBLASLt` is absent there, so every product is the engine's own kernel. Written by\n\n    {REFRESH}\n\n\
         and a test fails where this file is out of date. Registers and occupancy of every kernel: [kernels.md](kernels.md).\n\n\
         | row | precision | kernels | requests of the host | graphs | waits for all work | copied | filled | uploads | downloads | allocations | arena |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n"
    );
    let specs = select(&ROWS.map(String::from))?;
    let mut shared: BTreeMap<&str, u32> = BTreeMap::new();
    for spec in &specs {
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            let (tally, arena) = count(spec, arithmetic)?;
            for (kernel, &bytes) in &tally.shared {
                let most = shared.entry(kernel).or_default();
                *most = bytes.max(*most);
            }
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} B | {} B | {}, {} B | {}, {} B | {} | {} B |",
                spec.name(),
                precision(arithmetic),
                tally.launches(),
                tally.requests,
                tally.graphs,
                tally.waits,
                tally.copied,
                tally.filled,
                tally.uploads,
                tally.uploaded,
                tally.downloads,
                tally.downloaded,
                tally.allocations,
                arena
            );
        }
    }
    let shown = &specs[0];
    let by_arithmetic = |arithmetic| count(shown, arithmetic).map(|(tally, _)| tally.kernels);
    let (exact, rounded) = (by_arithmetic(Arithmetic::F32)?, by_arithmetic(Arithmetic::Bf16)?);
    let _ = write!(text, "\n## Kernels of {}\n| kernel | f32 | bf16 |\n|---|---|---|\n", shown.name());
    let names: BTreeSet<_> = exact.keys().chain(rounded.keys()).collect();
    for name in names {
        let cell = |counts: &BTreeMap<&str, u64>| counts.get(*name).map_or("-".into(), u64::to_string);
        let _ = writeln!(text, "| {name} | {} | {} |", cell(&exact), cell(&rounded));
    }
    text += "\n## Dynamic shared memory\n\
             The most that a block of a kernel is given in these steps. A multiprocessor of an H200 has 228 KiB, of which a block takes 1 KiB more; kernels that \
             are not here have none, or are not run by these steps.\n\n| kernel | bytes |\n|---|---|\n";
    for (kernel, bytes) in shared.into_iter().filter(|&(_, bytes)| bytes > 0) {
        let _ = writeln!(text, "| {kernel} | {bytes} |");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Category;
    use crate::models::Network;
    use crate::models::transformer::{DecoderState, Sizes, Transformer};
    use crate::nn::{Parameters, Scheme};
    use crate::ops::sequences::Sequences;
    use crate::tape::Var;
    use crate::tensor::Tensor;

    #[test]
    fn the_counts_are_those_of_the_committed_report() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/results/counts.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let found = report().unwrap();
        for (found, committed) in found.lines().zip(committed.lines()) {
            assert_eq!(found, committed, "docs/results/counts.md is out of date. If the change is meant: {REFRESH}");
        }
        assert_eq!(found.lines().count(), committed.lines().count(), "to refresh it: {REFRESH}");
    }

    #[test]
    fn a_frozen_step_launches_less_and_keeps_less() {
        let counts = |stage: &str| {
            let specs = select(&[format!("blstm-ctc/4x320/B16-T200/{stage}")]).unwrap();
            count(&specs[0], Arithmetic::F32).unwrap()
        };
        let steps = ["joint", "frozen-1", "frozen-2", "frozen-3", "frozen-4"].map(counts);
        for pair in steps.windows(2) {
            assert!(pair[1].0.launches() < pair[0].0.launches());
            assert!(pair[1].1 <= pair[0].1);
        }
    }

    #[test]
    fn so_does_an_encoders_and_a_step_that_repeats_is_one_graph() {
        let counts = |stage: &str| {
            let specs = select(&[format!("transformer-encoder/12x256/B8-T200{stage}")]).unwrap();
            count(&specs[0], Arithmetic::Bf16).unwrap()
        };
        let steps = ["", "/frozen-3", "/frozen-6", "/frozen-9"].map(counts);
        for pair in steps.windows(2) {
            assert!(pair[1].0.launches() < pair[0].0.launches());
            assert!(pair[1].1 <= pair[0].1);
        }
        // Nothing that changes from step to step is part of the list.
        assert!(steps.iter().all(|(tally, _)| tally.graphs == 1 && tally.allocations == 0), "{:?}", steps[0].0);
    }

    #[test]
    fn a_step_of_a_decoder_brings_what_it_reads_to_the_device_once_for_all_layers() {
        for decoder_layers in [1, 3] {
            let (device, counter) = counting(None);
            let model = Transformer::new(Sizes {
                inputs: 7,
                encoder_layers: 1,
                decoder_layers,
                units: 8,
                heads: 2,
                feedforward: 16,
                dropout: 0.0,
                attention_dropout: 0.0,
                ctc_weight: 0.5,
                label_smoothing: 0.0,
                symbols: 5,
            });
            let parameters = Parameters::initialize(&device, &model.structure().specs, Scheme::Espnet, 1);
            let sequences = Sequences::new(&[9, 7]).unwrap();
            let hidden = Var::constant(Tensor::zeros(&device, &[16, 8], Category::Activation));
            let memory = model.remember(&parameters, &hidden, &sequences).unwrap();
            let step = |state: &DecoderState| model.step(&parameters, &memory, state, &[0, 1], &[model.end(); 2]);
            let (_, state) = step(&model.begin(2)).unwrap();
            counter.take();
            step(&state.select(&[0, 1]).unwrap()).unwrap();
            // The tokens, how queries and how keys are packed, and the rows that go on.
            assert_eq!(counter.take().uploads, 4, "{decoder_layers} layers");
        }
    }

    /// The counting device and the emulator are asked for the same work: the first counts what the second runs.
    #[cfg(feature = "emulator")]
    #[test]
    fn the_counting_device_is_asked_for_what_the_emulator_runs() {
        use crate::backend::cuda::emulator::{AVAILABLE, Order};
        if !AVAILABLE {
            println!("skipped: there is no C++ compiler, so no emulator");
            return;
        }
        for name in ["blstm-ctc/4x320/B16-T200/frozen-2", "transformer-encoder/12x256/B8-T200/frozen-9"] {
            let spec = select(&[name.into()]).unwrap()[0].small();
            let emulator = Device::emulator(Order::Forward);
            let Backend::Cuda(context) = emulator.backend() else { unreachable!("an emulated GPU") };
            let (counting, counter) = counting(Some(context.properties().clone()));
            let Backend::Cuda(counted) = counting.backend() else { unreachable!("a counting GPU") };
            for device in [&emulator, &counting] {
                let mut prepared = prepare(&Bench { device: device.clone(), rotate: false }, &spec).unwrap();
                (prepared.run)(0).unwrap();
            }
            let (counted, emulated) = (counted.counters(), context.counters());
            assert_eq!(counted.launches, emulated.launches);
            assert_eq!(counted.uploaded, emulated.uploaded);
            assert_eq!(counted.downloaded, emulated.downloaded);
            assert_eq!(counter.take().launches(), emulated.launches);
        }
    }
}
