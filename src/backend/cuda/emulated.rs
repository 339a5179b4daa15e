//! The emulator as a device: the whole CUDA backend runs on it in tests, kernels thread by thread (see `kernels/emulator/`).
//!
//! Device memory is host memory that starts as NaN. Captured work is noted and run when it is replayed, as on a GPU, and what a GPU refuses
//! meanwhile is refused. What crosses between host and device takes as long as it may (`lanes`). The order in which threads run is chosen when
//! the device is opened: no result may depend on it.

mod lanes;

use super::driver::{Argument, Driver, Event, Function, Graph, HostPointer, Lane, Launch, Pointer, Properties};
use super::emulator::{self, Order};
use crate::error::{Error, Fault, Result, Subject};
use lanes::Lanes;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the emulated device says it has: small numbers, so that tests reach the paths for full machines.
const MULTIPROCESSORS: u32 = 4;
const SHARED_PER_BLOCK: u32 = 227 * 1024;
const MEMORY: u64 = 8 << 30;
/// Bytes that it has instead.
const MEMORY_VARIABLE: &str = "HEADFIRST_EMULATOR_MEMORY";
/// The number of the download that fails, counted from 1, and everything after it, as on a GPU that is lost; none if it is not set.
const FAILURE_VARIABLE: &str = "HEADFIRST_EMULATOR_FAILING_DOWNLOAD";
const ALIGNMENT: usize = 256;
/// Bytes before and behind every allocation that nothing may touch.
const GUARD: usize = 256;
/// Of an even and of an odd address: NaN in f32 and in bf16, so that a stray read shows; not all ones, so that a stray -1 shows too.
const GUARD_BYTES: [u8; 2] = [0xc5, 0xff];
/// Four of these are a NaN.
const POISON: u8 = 0xFF;

#[derive(Debug)]
pub struct Emulated {
    properties: Properties,
    order: Order,
    failing_download: Option<u64>,
    downloads: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Sizes of the live allocations, by address.
    allocations: HashMap<Pointer, usize>,
    /// Those of them that stand for the host's own memory.
    of_host: HashSet<Pointer>,
    allocated: u64,
    /// Kernels that were asked for, and so are loaded.
    loaded: HashSet<&'static str>,
    lanes: Lanes,
    capturing: Option<Vec<Work>>,
    graphs: HashMap<u64, Vec<Work>>,
    next_graph: u64,
}

#[derive(Debug, Clone)]
enum Work {
    Launch(Function, Launch, Vec<Argument>),
    Fill(Pointer, u8, usize),
    Copy(Pointer, Pointer, usize),
}

impl Emulated {
    pub fn new(order: Order) -> Self {
        let memory = std::env::var(MEMORY_VARIABLE).ok().and_then(|bytes| bytes.parse().ok()).unwrap_or(MEMORY);
        let properties = Properties {
            name: "emulator".into(),
            capability: (9, 0),
            multiprocessors: MULTIPROCESSORS,
            shared_per_block: SHARED_PER_BLOCK,
            memory,
            cooperative: true,
        };
        let failing_download = std::env::var(FAILURE_VARIABLE).ok().and_then(|number| number.parse().ok());
        Emulated { properties, order, failing_download, downloads: AtomicU64::new(0), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the work if a graph is being captured, runs it otherwise.
    fn submit(&self, work: Work) -> Result<()> {
        let mut state = self.state();
        if let Some(list) = &mut state.capturing {
            list.push(work);
            return Ok(());
        }
        drop(state);
        self.run(&work)
    }

    fn run(&self, work: &Work) -> Result<()> {
        match work {
            Work::Launch(function, launch, arguments) => {
                let slots: Vec<u64> = arguments.iter().map(|argument| argument.slot()).collect();
                // SAFETY: the caller of `launch` answered for the arguments, whose sizes were checked there.
                let done = unsafe {
                    emulator::launch(
                        function.0 as i32,
                        launch.blocks,
                        launch.threads,
                        launch.shared,
                        launch.cooperative,
                        &slots,
                        self.order,
                    )
                };
                done.map_err(error)?;
                self.check_guards()
            }
            &Work::Fill(to, byte, bytes) => {
                // SAFETY: the caller of `fill` answered for it.
                unsafe { std::ptr::write_bytes(to as *mut u8, byte, bytes) };
                Ok(())
            }
            &Work::Copy(to, from, bytes) => {
                // SAFETY: the caller of `copy` answered for it.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
                Ok(())
            }
        }
    }

    /// That no kernel wrote beyond an allocation. AddressSanitizer, if it is at work, ends the program before.
    fn check_guards(&self) -> Result<()> {
        if emulator::sanitizes() {
            return Ok(());
        }
        for (&pointer, &bytes) in &self.state().allocations {
            for start in [pointer - GUARD as u64, pointer + bytes as u64] {
                // SAFETY: every allocation has GUARD bytes on either side.
                let guard = unsafe { std::slice::from_raw_parts(start as *const u8, GUARD) };
                if guard != guard_from(start) {
                    return Err(error(format!("a kernel wrote outside an allocation of {bytes} bytes")));
                }
            }
        }
        Ok(())
    }

    /// Memory with guards around it.
    fn guarded(&self, bytes: usize) -> Result<Pointer> {
        self.forbid_capture("allocating memory")?;
        // SAFETY: the layout is not empty; poison and guards lie inside it.
        let pointer = unsafe {
            let start = alloc(layout(bytes));
            if start.is_null() {
                return Err(error(format!("out of memory: {bytes} bytes more are needed")));
            }
            std::ptr::write_bytes(start.add(GUARD), POISON, bytes);
            for guard in [start, start.add(GUARD + bytes)] {
                std::ptr::copy_nonoverlapping(guard_from(guard as u64).as_ptr(), guard, GUARD);
                emulator::forbid(guard, GUARD);
            }
            start as u64 + GUARD as u64
        };
        self.state().allocations.insert(pointer, bytes);
        Ok(pointer)
    }

    fn forbid_capture(&self, what: &str) -> Result<()> {
        match self.state().capturing {
            Some(_) => Err(error(format!("{what} is not allowed while a graph is captured"))),
            None => Ok(()),
        }
    }
}

/// What the guard that begins at this address holds.
fn guard_from(start: u64) -> &'static [u8] {
    const PATTERN: [u8; GUARD + 1] = {
        let mut pattern = [0; GUARD + 1];
        let mut place = 0;
        while place <= GUARD {
            pattern[place] = GUARD_BYTES[place % 2];
            place += 1;
        }
        pattern
    };
    &PATTERN[(start % 2) as usize..][..GUARD]
}

fn error(problem: impl Into<String>) -> Error {
    Error::new(Subject::Device("emulator".into()), problem)
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + 2 * GUARD, ALIGNMENT).expect("a size below the emulator's memory")
}

impl Driver for Emulated {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<u64> {
        Ok(self.properties.memory - self.state().allocated)
    }

    fn allocate(&self, bytes: usize) -> Result<Pointer> {
        if bytes as u64 > self.free_memory()? {
            return Err(error(format!("out of memory: {bytes} bytes more are needed")).fault(Fault::OutOfMemory));
        }
        let pointer = self.guarded(bytes)?;
        self.state().allocated += bytes as u64;
        Ok(pointer)
    }

    unsafe fn release(&self, pointer: Pointer) {
        let mut state = self.state();
        if let Some(bytes) = state.allocations.remove(&pointer) {
            if !state.of_host.remove(&pointer) {
                state.allocated -= bytes as u64;
            }
            state.lanes.forget(&(pointer..pointer + bytes as u64));
            let start = (pointer - GUARD as u64) as *mut u8;
            // SAFETY: from `guarded`, with this layout, and only once.
            unsafe {
                emulator::permit(start, bytes + 2 * GUARD);
                dealloc(start, layout(bytes));
            }
        }
    }

    unsafe fn upload(&self, to: Pointer, from: &[u8]) -> Result<()> {
        self.forbid_capture("an upload")?;
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], from: Pointer) -> Result<()> {
        let number = self.downloads.fetch_add(1, Ordering::Relaxed) + 1;
        if self.failing_download.is_some_and(|failing| number >= failing) {
            return Err(error(format!("failed while copying from the GPU: download {number} was made to fail"))
                .fault(Fault::Lost));
        }
        self.synchronize()?;
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn fill(&self, to: Pointer, byte: u8, bytes: usize) -> Result<()> {
        self.submit(Work::Fill(to, byte, bytes))
    }

    unsafe fn copy(&self, to: Pointer, from: Pointer, bytes: usize) -> Result<()> {
        self.submit(Work::Copy(to, from, bytes))
    }

    fn function(&self, _file: &'static str, name: &'static str) -> Result<Function> {
        let index = emulator::find(name).ok_or_else(|| error(format!("no kernel is called {name}")))?;
        if !self.state().loaded.contains(name) {
            self.forbid_capture("loading a kernel")?;
            self.state().loaded.insert(name);
        }
        Ok(Function(index as u64))
    }

    fn poisons_memory(&self) -> bool {
        true
    }

    fn resident_blocks(&self, _: Function, launch: &Launch) -> Result<u32> {
        // As if a multiprocessor held 2048 threads and little more than one block's worth of shared memory.
        let threads: u32 = launch.threads.iter().product();
        let by_threads = 2048 / threads.max(1);
        let by_memory = SHARED_PER_BLOCK / launch.shared.max(1);
        Ok(MULTIPROCESSORS * by_threads.min(by_memory))
    }

    unsafe fn launch(&self, function: Function, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        // What a GPU could not see: that each argument has the size that the kernel declares.
        emulator::check_arguments(
            function.0 as i32,
            &arguments.iter().map(|argument| argument.bytes()).collect::<Vec<_>>(),
        )
        .map_err(error)?;
        if launch.cooperative {
            let blocks: u32 = launch.blocks.iter().product();
            if blocks > self.resident_blocks(function, launch)? {
                return Err(error(format!("a cooperative launch of {blocks} blocks, more than fit at the same time")));
            }
        }
        self.submit(Work::Launch(function, *launch, arguments.to_vec()))
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPointer> {
        let pointer = self.guarded(bytes)?;
        self.state().of_host.insert(pointer);
        Ok(pointer)
    }

    unsafe fn release_host(&self, pointer: HostPointer) {
        // SAFETY: the caller's.
        unsafe { self.release(pointer) };
    }

    unsafe fn send(&self, to: Pointer, from: HostPointer, bytes: usize) -> Result<()> {
        self.forbid_capture("sending")?;
        // SAFETY: the caller's.
        unsafe { self.state().lanes.send(to, from, bytes) };
        Ok(())
    }

    unsafe fn receive(&self, to: HostPointer, from: Pointer, bytes: usize) -> Result<()> {
        self.forbid_capture("receiving")?;
        // SAFETY: the caller's.
        unsafe { self.state().lanes.receive(to, from, bytes) };
        Ok(())
    }

    fn event(&self) -> Result<Event> {
        Ok(self.state().lanes.event())
    }

    fn release_event(&self, event: Event) {
        self.state().lanes.release_event(event);
    }

    fn signal(&self, event: Event, lane: Lane) -> Result<()> {
        self.forbid_capture("a signal")?;
        self.state().lanes.signal(event, lane);
        Ok(())
    }

    fn await_signal(&self, event: Event, lane: Lane) -> Result<()> {
        self.forbid_capture("awaiting a signal")?;
        self.state().lanes.await_signal(event, lane);
        Ok(())
    }

    fn wait_for(&self, event: Event) -> Result<()> {
        self.forbid_capture("waiting")?;
        self.state().lanes.wait_for(event).map_err(error)
    }

    fn synchronize(&self) -> Result<()> {
        self.forbid_capture("waiting")?;
        self.state().lanes.synchronize().map_err(error)
    }

    fn begin_capture(&self) -> Result<()> {
        self.forbid_capture("another capture")?;
        self.state().capturing = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        let mut state = self.state();
        let work = state.capturing.take().ok_or_else(|| error("no graph is being captured"))?;
        state.next_graph += 1;
        let number = state.next_graph;
        state.graphs.insert(number, work);
        Ok(Graph(number))
    }

    unsafe fn replay(&self, graph: Graph) -> Result<()> {
        let work = self.state().graphs.get(&graph.0).cloned().ok_or_else(|| error("no such graph"))?;
        work.iter().try_for_each(|work| self.run(work))
    }

    fn release_graph(&self, graph: Graph) {
        self.state().graphs.remove(&graph.0);
    }
}

#[cfg(test)]
#[path = "emulated_tests.rs"]
mod tests;
