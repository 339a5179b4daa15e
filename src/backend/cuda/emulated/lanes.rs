//! What crosses between host and device, as late as [`super::Driver`] allows: a wait that is missing shows as NaN, or as an error.
//!
//! What is sent arrives when the kernels' lane awaits it, and what is received when the host waits; until then all bits are set where it will
//! be. Memory that is sent must be as it was until the host has waited for the kernels that awaited it: a GPU may not have read it before.

use super::{Event, HostPointer, Lane, POISON, Pointer};
use std::collections::HashMap;
use std::ops::Range;

#[derive(Debug, Default)]
pub struct Lanes {
    /// Nobody has awaited these.
    sends: Vec<Transfer>,
    /// Awaited by the kernels' lane, and perhaps not read yet.
    under_way: Vec<Transfer>,
    /// The host has not waited for these.
    receives: Vec<Transfer>,
    /// Where in its lane each event was signalled last.
    events: HashMap<u64, (Lane, u64)>,
    next_event: u64,
    /// Counts what is submitted, so that an event can tell before from after.
    time: u64,
}

#[derive(Debug)]
struct Transfer {
    time: u64,
    to: u64,
    from: u64,
    bytes: Vec<u8>,
}

impl Transfer {
    /// # Safety
    /// Both hold as many bytes.
    unsafe fn begin(time: u64, to: u64, from: u64, bytes: usize) -> Transfer {
        // SAFETY: the caller's.
        let read = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.to_vec();
        // SAFETY: the caller's.
        unsafe { std::ptr::write_bytes(to as *mut u8, POISON, bytes) };
        Transfer { time, to, from, bytes: read }
    }

    /// # Safety
    /// The memory is still there.
    unsafe fn arrive(&self) {
        // SAFETY: as many bytes as were asked for; the caller's.
        unsafe { std::ptr::copy_nonoverlapping(self.bytes.as_ptr(), self.to as *mut u8, self.bytes.len()) };
    }

    /// # Safety
    /// The memory is still there.
    unsafe fn is_intact(&self) -> bool {
        // SAFETY: as many bytes as were asked for; the caller's.
        unsafe { std::slice::from_raw_parts(self.from as *const u8, self.bytes.len()) == &self.bytes[..] }
    }
}

impl Lanes {
    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    pub fn event(&mut self) -> Event {
        self.next_event += 1;
        Event(self.next_event)
    }

    pub fn release_event(&mut self, event: Event) {
        self.events.remove(&event.0);
    }

    /// # Safety
    /// Both hold as many bytes, until [`Lanes::forget`] says that they do not.
    pub unsafe fn send(&mut self, to: Pointer, from: HostPointer, bytes: usize) {
        let time = self.now();
        // SAFETY: the caller's.
        self.sends.push(unsafe { Transfer::begin(time, to, from, bytes) });
    }

    /// # Safety
    /// As for [`Lanes::send`].
    pub unsafe fn receive(&mut self, to: HostPointer, from: Pointer, bytes: usize) {
        let time = self.now();
        // SAFETY: the caller's.
        self.receives.push(unsafe { Transfer::begin(time, to, from, bytes) });
    }

    pub fn signal(&mut self, event: Event, lane: Lane) {
        let time = self.now();
        self.events.insert(event.0, (lane, time));
    }

    /// An event that was never signalled holds nobody up, as on a GPU.
    pub fn await_signal(&mut self, event: Event, lane: Lane) {
        if let (Lane::Kernels, Some(&(Lane::Copies, time))) = (lane, self.events.get(&event.0)) {
            self.arrive(time);
        }
    }

    /// # Errors
    /// If memory of the host has changed while it was sent.
    pub fn wait_for(&mut self, event: Event) -> Result<(), String> {
        match self.events.get(&event.0) {
            None => Ok(()),
            Some(&(Lane::Copies, time)) => {
                self.arrive(time);
                self.settle(self.time)
            }
            Some(&(Lane::Kernels, time)) => self.settle(time),
        }
    }

    /// Waits for the kernels' lane.
    ///
    /// # Errors
    /// As [`Lanes::wait_for`].
    pub fn synchronize(&mut self) -> Result<(), String> {
        self.settle(self.time)
    }

    /// Nothing arrives any more in memory that is given back.
    pub fn forget(&mut self, memory: &Range<u64>) {
        for transfers in [&mut self.sends, &mut self.under_way, &mut self.receives] {
            transfers.retain(|transfer| !memory.contains(&transfer.to) && !memory.contains(&transfer.from));
        }
    }

    /// What was sent until then is where kernels read it.
    fn arrive(&mut self, until: u64) {
        let now = self.now();
        for transfer in self.sends.extract_if(.., |transfer| transfer.time <= until) {
            // SAFETY: what was given back is forgotten.
            unsafe { transfer.arrive() };
            self.under_way.push(Transfer { time: now, ..transfer });
        }
    }

    /// What the kernels' lane had to do until then is done.
    fn settle(&mut self, until: u64) -> Result<(), String> {
        for transfer in self.receives.extract_if(.., |transfer| transfer.time <= until) {
            // SAFETY: as above.
            unsafe { transfer.arrive() };
        }
        let mut intact = true;
        for transfer in self.under_way.extract_if(.., |transfer| transfer.time <= until) {
            // SAFETY: as above.
            intact &= unsafe { transfer.is_intact() };
        }
        if intact { Ok(()) } else { Err("memory of the host was changed while it was being sent".into()) }
    }
}
