//! A device that counts and does nothing: it has the properties of a real one, addresses without memory, and kernels that do not run.
//!
//! Every launch is noted, nothing runs, and what is read back is zero. So the very code that trains on a GPU says what it will take there:
//! memory, workspaces and the arena's gaps included, launches, bytes that cross.

use super::context::Context;
use super::driver::{Argument, Driver, Event, Function, Graph, HostPointer, Lane, Launch, Pointer, Properties};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was asked of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Launches that ran, by kernel, those of replayed graphs among them.
    pub kernels: BTreeMap<&'static str, u64>,
    /// The most bytes of dynamic shared memory that a block of each kernel was given.
    pub shared: BTreeMap<&'static str, u32>,
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
    /// With the bytes of dynamic shared memory.
    Launch(&'static str, u32),
    Copy(u64),
    Fill(u64),
}

#[derive(Debug, Default)]
struct State {
    tally: Tally,
    /// Files and names of kernels, by handle.
    functions: Vec<(&'static str, &'static str)>,
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
            Work::Launch(kernel, bytes) => {
                *self.tally.kernels.entry(kernel).or_default() += 1;
                let shared = self.tally.shared.entry(kernel).or_default();
                *shared = bytes.max(*shared);
            }
            Work::Copy(bytes) => self.tally.copied += bytes,
            Work::Fill(bytes) => self.tally.filled += bytes,
        }
    }
}

/// A GPU that does nothing but count.
#[derive(Debug)]
pub struct Counted {
    properties: Properties,
    /// What is counted for, and asked how many blocks fit.
    real: Option<Arc<Context>>,
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

impl Counted {
    /// In the place of a device that is there.
    pub fn new(real: Arc<Context>) -> Self {
        Counted { real: Some(real.clone()), ..Self::posing(real.properties().clone()) }
    }

    /// In the place of one that is not.
    pub fn posing(properties: Properties) -> Self {
        Counted { properties, real: None, state: Arc::new(Mutex::new(State { next: 1 << 32, ..State::default() })) }
    }

    pub fn counter(&self) -> Counter {
        Counter(self.state.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn kernel(&self, function: Function) -> Result<(&'static str, &'static str)> {
        let known = usize::try_from(function.0).ok().and_then(|index| self.state().functions.get(index).copied());
        known.ok_or_else(|| Error::program("a kernel was launched that was never looked for"))
    }
}

impl Driver for Counted {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<u64> {
        self.real.as_ref().map_or(Ok(self.properties.memory), |real| real.driver().free_memory())
    }

    fn library_memory(&self) -> u64 {
        self.real.as_ref().map_or(0, |real| real.driver().library_memory())
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

    fn function(&self, file: &'static str, name: &'static str) -> Result<Function> {
        let mut state = self.state();
        state.functions.push((file, name));
        Ok(Function(state.functions.len() as u64 - 1))
    }

    fn resident_blocks(&self, function: Function, launch: &Launch) -> Result<u32> {
        if let Some(real) = &self.real {
            let (file, name) = self.kernel(function)?;
            let blocks = real.resident_blocks(file, name, launch);
            return real.check().map(|()| blocks);
        }
        // By threads and shared memory; registers are the compiler's, and the kernels promise to leave room for a block.
        let threads: u32 = launch.threads.iter().product();
        let shared = self.properties.shared_per_block / launch.shared.max(1);
        Ok(self.properties.multiprocessors * (2048 / threads.max(1)).min(shared))
    }

    unsafe fn launch(&self, function: Function, launch: &Launch, _: &[Argument]) -> Result<()> {
        let (_, name) = self.kernel(function)?;
        self.state().submit(Work::Launch(name, launch.shared));
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
