//! What can be counted without a GPU: what a training step asks of one. Kernels by name, copies, waits, memory.
//!
//! The counting device says that it is an H200, and does nothing: every launch is noted, nothing runs, and what is read back is zero. So the whole
//! backend runs at full size in a moment, and a kernel launched once more, a copy, or a wait inside a step shows as a changed number.
//! `docs/results/counts.md` holds the numbers; a test compares.

use super::table::{Spec, select};
use super::{Bench, prepare};
use crate::backend::cuda::context::Context;
use crate::backend::cuda::driver::{
    Argument, Driver, Event, Function, Graph, HostPointer, Lane, Launch, Pointer, Properties,
};
use crate::backend::cuda::matmul::Arithmetic;
use crate::bench::limits::precision;
use crate::device::{Backend, Device};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was asked of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Launches that ran, by kernel, those of replayed graphs among them.
    pub kernels: BTreeMap<&'static str, u64>,
    /// Requests of the host: launches, copies and fills that no graph made, and graphs.
    pub requests: u64,
    pub graphs: u64,
    /// Bytes within the device, by copies and fills.
    pub copied: u64,
    pub filled: u64,
    pub uploads: u64,
    pub uploaded: u64,
    pub downloads: u64,
    pub downloaded: u64,
    /// How often the host waited for all work, for a download too.
    pub waits: u64,
    /// How often it waited for an earlier step.
    pub event_waits: u64,
    /// Memory that was asked for, each piece as the driver was asked.
    pub allocations: u64,
    pub allocated: u64,
}

impl Tally {
    pub fn launches(&self) -> u64 {
        self.kernels.values().sum()
    }
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Launch(&'static str),
    Copy(u64),
    Fill(u64),
}

#[derive(Debug, Default)]
struct State {
    tally: Tally,
    names: Vec<&'static str>,
    next: Pointer,
    capturing: Option<Vec<Work>>,
    graphs: Vec<Vec<Work>>,
    /// Memory of the host, which it does write.
    host: Vec<Vec<u64>>,
}

impl State {
    fn submit(&mut self, work: Work) {
        match &mut self.capturing {
            Some(list) => list.push(work),
            None => {
                self.tally.requests += 1;
                self.run(work);
            }
        }
    }

    fn run(&mut self, work: Work) {
        match work {
            Work::Launch(kernel) => *self.tally.kernels.entry(kernel).or_default() += 1,
            Work::Copy(bytes) => self.tally.copied += bytes,
            Work::Fill(bytes) => self.tally.filled += bytes,
        }
    }
}

/// A GPU that does nothing but count.
#[derive(Debug)]
pub struct Counting {
    properties: Properties,
    state: Arc<Mutex<State>>,
}

/// What a counting device has counted.
#[derive(Debug, Clone)]
pub struct Counter(Arc<Mutex<State>>);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counter {
    /// Since the last time that this was asked.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut lock(&self.0).tally)
    }
}

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

/// A counting device with these properties, an H200's unless told otherwise.
pub fn counting(properties: Option<Properties>) -> (Device, Counter) {
    let state = Arc::new(Mutex::new(State { next: 1 << 32, ..State::default() }));
    let driver = Counting { properties: properties.unwrap_or_else(h200), state: state.clone() };
    (Device::cuda(Context::new("counting", Box::new(driver))), Counter(state))
}

impl Counting {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Driver for Counting {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<u64> {
        Ok(self.properties.memory)
    }

    fn allocate(&self, bytes: usize) -> Result<Pointer> {
        let mut state = self.state();
        state.tally.allocations += 1;
        state.tally.allocated += bytes as u64;
        let pointer = state.next;
        state.next += (bytes as u64).next_multiple_of(256) + 256;
        Ok(pointer)
    }

    unsafe fn release(&self, _: Pointer) {}

    unsafe fn upload(&self, _: Pointer, from: &[u8]) -> Result<()> {
        let mut state = self.state();
        state.tally.uploads += 1;
        state.tally.uploaded += from.len() as u64;
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], _: Pointer) -> Result<()> {
        to.fill(0);
        let mut state = self.state();
        state.tally.downloads += 1;
        state.tally.waits += 1;
        state.tally.downloaded += to.len() as u64;
        Ok(())
    }

    unsafe fn fill(&self, _: Pointer, _: u8, bytes: usize) -> Result<()> {
        self.state().submit(Work::Fill(bytes as u64));
        Ok(())
    }

    unsafe fn copy(&self, _: Pointer, _: Pointer, bytes: usize) -> Result<()> {
        self.state().submit(Work::Copy(bytes as u64));
        Ok(())
    }

    fn function(&self, _: &'static str, name: &'static str) -> Result<Function> {
        let mut state = self.state();
        state.names.push(name);
        Ok(Function(state.names.len() as u64 - 1))
    }

    fn resident_blocks(&self, _: Function, launch: &Launch) -> Result<u32> {
        // By threads and shared memory; registers are the compiler's, and the kernels promise to leave room for a block.
        let threads: u32 = launch.threads.iter().product();
        let shared = self.properties.shared_per_block / launch.shared.max(1);
        Ok(self.properties.multiprocessors * (2048 / threads.max(1)).min(shared))
    }

    unsafe fn launch(&self, function: Function, _: &Launch, _: &[Argument]) -> Result<()> {
        let mut state = self.state();
        let name = usize::try_from(function.0).ok().and_then(|index| state.names.get(index).copied());
        let name = name.ok_or_else(|| Error::program("a kernel was launched that was never looked for"))?;
        state.submit(Work::Launch(name));
        Ok(())
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPointer> {
        let mut memory = vec![0_u64; bytes.div_ceil(size_of::<u64>())];
        let pointer = memory.as_mut_ptr() as HostPointer;
        self.state().host.push(memory);
        Ok(pointer)
    }

    unsafe fn release_host(&self, pointer: HostPointer) {
        self.state().host.retain(|memory| memory.as_ptr() as HostPointer != pointer);
    }

    unsafe fn send(&self, _: Pointer, _: HostPointer, bytes: usize) -> Result<()> {
        let mut state = self.state();
        state.tally.uploads += 1;
        state.tally.uploaded += bytes as u64;
        Ok(())
    }

    unsafe fn receive(&self, _: HostPointer, _: Pointer, bytes: usize) -> Result<()> {
        let mut state = self.state();
        state.tally.downloads += 1;
        state.tally.downloaded += bytes as u64;
        Ok(())
    }

    fn event(&self) -> Result<Event> {
        Ok(Event(0))
    }

    fn release_event(&self, _: Event) {}

    fn signal(&self, _: Event, _: Lane) -> Result<()> {
        Ok(())
    }

    fn await_signal(&self, _: Event, _: Lane) -> Result<()> {
        Ok(())
    }

    fn wait_for(&self, _: Event) -> Result<()> {
        self.state().tally.event_waits += 1;
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.state().tally.waits += 1;
        Ok(())
    }

    fn begin_capture(&self) -> Result<()> {
        self.state().capturing = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        let mut state = self.state();
        let work = state.capturing.take().unwrap_or_default();
        state.graphs.push(work);
        Ok(Graph(state.graphs.len() as u64 - 1))
    }

    unsafe fn replay(&self, graph: Graph) -> Result<()> {
        let mut state = self.state();
        state.tally.requests += 1;
        state.tally.graphs += 1;
        let work = usize::try_from(graph.0).ok().and_then(|index| state.graphs.get(index).cloned()).unwrap_or_default();
        work.into_iter().for_each(|work| state.run(work));
        Ok(())
    }

    fn release_graph(&self, _: Graph) {}
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

/// `docs/results/counts.md`: whole steps, then the kernels of one of them.
///
/// # Errors
/// If a row cannot be counted.
pub fn report() -> Result<String> {
    let mut text = format!(
        "# What a training step asks of a GPU\n\
         Counted without one, by a device that says it is an H200 and does nothing: the backend's own code runs at full size, launches and copies are noted. \
         `cuBLASLt` is absent there, so every product is the engine's own kernel. Written by\n\n    {REFRESH}\n\n\
         and a test fails where this file is out of date. Registers, shared memory and occupancy of every kernel: [kernels.md](kernels.md).\n\n\
         | row | precision | kernels | requests of the host | graphs | waits for all work | copied | filled | uploads | downloads | allocations | arena |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n"
    );
    let specs = select(&["blstm-ctc/4x320/".into()])?;
    for spec in &specs {
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            let (tally, arena) = count(spec, arithmetic)?;
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
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// The counting device and the emulator are asked for the same work: the first counts what the second runs.
    #[cfg(feature = "emulator")]
    #[test]
    fn the_counting_device_is_asked_for_what_the_emulator_runs() {
        use crate::backend::cuda::emulator::{AVAILABLE, Order};
        if !AVAILABLE {
            println!("skipped: there is no C++ compiler, so no emulator");
            return;
        }
        let spec = select(&["blstm-ctc/4x320/B16-T200/frozen-2".into()]).unwrap()[0].small();
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
