//! A device that counts and does nothing: it has the properties of a real one, addresses without memory, and kernels that do not run.
//!
//! So the very code that trains on a GPU says what it will take there: memory, workspaces and the arena's gaps included, launches, bytes
//! that cross. What is read from it is zero.

use super::context::Context;
use super::driver::{Argument, Driver, Event, Function, Graph, HostPointer, Lane, Launch, Pointer, Properties};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const ALIGNMENT: u64 = 256;

#[derive(Debug)]
pub struct Counted {
    /// What is counted for.
    real: Arc<Context>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Sizes of the live allocations, by address.
    allocations: HashMap<Pointer, u64>,
    /// The first address that was never given.
    end: u64,
    host: HashMap<HostPointer, Box<[u8]>>,
    /// By handle: file and name of a kernel.
    functions: Vec<(&'static str, &'static str)>,
}

impl Counted {
    pub fn new(real: Arc<Context>) -> Self {
        Counted { real, state: Mutex::new(State { end: ALIGNMENT, ..State::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Counted {
    fn properties(&self) -> &Properties {
        self.real.properties()
    }

    fn free_memory(&self) -> Result<u64> {
        self.real.driver().free_memory()
    }

    fn allocate(&self, bytes: usize) -> Result<Pointer> {
        let mut state = self.state();
        let pointer = state.end;
        state.end += (bytes as u64).next_multiple_of(ALIGNMENT);
        state.allocations.insert(pointer, bytes as u64);
        Ok(pointer)
    }

    unsafe fn release(&self, pointer: Pointer) {
        self.state().allocations.remove(&pointer);
    }

    unsafe fn upload(&self, _: Pointer, _: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], _: Pointer) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    unsafe fn fill(&self, _: Pointer, _: u8, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn copy(&self, _: Pointer, _: Pointer, _: usize) -> Result<()> {
        Ok(())
    }

    fn function(&self, file: &'static str, name: &'static str) -> Result<Function> {
        let mut state = self.state();
        state.functions.push((file, name));
        Ok(Function(state.functions.len() as u64 - 1))
    }

    fn resident_blocks(&self, function: Function, launch: &Launch) -> Result<u32> {
        let kernel = self.state().functions.get(function.0 as usize).copied();
        let (file, name) = kernel.ok_or_else(|| Error::program("a kernel that was not asked for"))?;
        let blocks = self.real.resident_blocks(file, name, launch);
        self.real.check().map(|()| blocks)
    }

    unsafe fn launch(&self, _: Function, _: &Launch, _: &[Argument]) -> Result<()> {
        Ok(())
    }

    /// Real memory, since the host writes there.
    fn allocate_host(&self, bytes: usize) -> Result<HostPointer> {
        let mut memory = vec![0_u8; bytes].into_boxed_slice();
        let pointer = memory.as_mut_ptr() as HostPointer;
        self.state().host.insert(pointer, memory);
        Ok(pointer)
    }

    unsafe fn release_host(&self, pointer: HostPointer) {
        self.state().host.remove(&pointer);
    }

    unsafe fn send(&self, _: Pointer, _: HostPointer, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn receive(&self, _: HostPointer, _: Pointer, _: usize) -> Result<()> {
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
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn begin_capture(&self) -> Result<()> {
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph> {
        Ok(Graph(0))
    }

    unsafe fn replay(&self, _: Graph) -> Result<()> {
        Ok(())
    }

    fn release_graph(&self, _: Graph) {}
}
