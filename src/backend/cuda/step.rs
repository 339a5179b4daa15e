//! A training step as a list of work, which is run when the step is complete.
//!
//! Between [`super::context::Context::record`] and the end of the recording, launches, fills and copies are noted. A list that is known, to the
//! byte, from an earlier step is run as a graph, one call for the host; so there is no key that could name the wrong graph, and whatever
//! makes two steps equal (the batches of a corpus return every epoch, a language model has few lengths) makes them a graph. Nothing of
//! a step waits for the device:
//!
//! - What goes in (features, labels, sequence lengths, the step's number) is written to pinned memory of the host while the device works on
//!   the step before, crosses beside the kernels, and lands where the kernels do not read; a copy on the device brings it to its place.
//! - What comes out (losses, the norm) is copied to pinned memory behind the step, and read when somebody asks ([`Fetched`]): one step late.
//!
//! Both have two halves, so the host is at most two steps ahead.

use super::driver::{Argument, Driver, Event, Function, Graph, HostPointer, Lane, Launch, Pointer};
use super::matmul::Product;
use crate::error::Result;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Lists that are remembered; the one that was not used for longest is forgotten first. A corpus has a list for each of its batches, and one that
/// has more than these hardly ever meets a list again.
const KNOWN: usize = 4096;
/// Bytes that they take together, and so, by their number of launches, a bound on what the driver keeps for their graphs.
const KNOWN_BYTES: usize = 128 << 20;
/// The first region for what goes in; a later one has at least twice as much.
const FIRST_REGION: usize = 1 << 20;
/// Bytes of what a step brings out.
const OUTPUT: usize = 1 << 18;
const ALIGNMENT: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    /// With the arguments' places in the list.
    Launch(Function, Launch, Range<usize>),
    Fill(Pointer, u8, usize),
    Copy(Pointer, Pointer, usize),
    Product(Product),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct List {
    work: Vec<Work>,
    arguments: Vec<Argument>,
}

impl List {
    pub fn launch(&mut self, function: Function, launch: &Launch, arguments: &[Argument]) {
        let begin = self.arguments.len();
        self.arguments.extend_from_slice(arguments);
        self.work.push(Work::Launch(function, *launch, begin..self.arguments.len()));
    }

    pub fn fill(&mut self, to: Pointer, byte: u8, bytes: usize) {
        self.work.push(Work::Fill(to, byte, bytes));
    }

    pub fn copy(&mut self, to: Pointer, from: Pointer, bytes: usize) {
        self.work.push(Work::Copy(to, from, bytes));
    }

    pub fn product(&mut self, product: &Product) {
        self.work.push(Work::Product(*product));
    }

    fn bytes(&self) -> usize {
        self.work.len() * size_of::<Work>() + self.arguments.len() * size_of::<Argument>()
    }

    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// # Safety
    /// Whoever noted the work answered for its pointers; their memory is still there.
    unsafe fn run(&self, driver: &dyn Driver) -> Result<()> {
        self.work.iter().try_for_each(|work| {
            // SAFETY: the caller's.
            unsafe {
                match work {
                    Work::Launch(function, launch, arguments) => {
                        driver.launch(*function, launch, &self.arguments[arguments.clone()])
                    }
                    &Work::Fill(to, byte, bytes) => driver.fill(to, byte, bytes),
                    &Work::Copy(to, from, bytes) => driver.copy(to, from, bytes),
                    Work::Product(product) => driver.library_product(product),
                }
            }
        })
    }
}

/// Where the host and the device meet: a place in device memory and, twice, in the host's.
struct Region {
    /// What kernels read.
    device: Pointer,
    /// Where a half arrives while kernels still read the other.
    landing: [Pointer; 2],
    host: [HostPointer; 2],
    bytes: usize,
    used: usize,
    /// Of what is used, what is on its way: a step that somebody could not wait for is sent in parts.
    sent: usize,
}

/// Filled when the step is over.
type Bytes = Arc<OnceLock<Vec<u8>>>;

/// What is in use until the step is over.
#[derive(Default)]
struct Half {
    /// The step's input has arrived; the step is over.
    events: Option<[Event; 2]>,
    /// Where in the output, and for whom.
    fetches: Vec<(Range<usize>, Bytes)>,
    in_flight: bool,
}

/// Bytes that a step brings out; see [`super::context::Context::fetch`].
#[derive(Debug, Clone)]
pub struct Cell {
    pub bytes: Bytes,
    /// Which half has them.
    half: usize,
}

struct Known {
    digest: u64,
    list: List,
    graph: Option<Graph>,
    last_used: u64,
}

/// The recording, and what stays from step to step.
#[derive(Default)]
pub struct Recorder {
    /// Of the step that is being recorded.
    list: Option<List>,
    /// Steps recorded so far; the parity says which half is filled.
    step: u64,
    regions: Vec<Region>,
    output: Option<(Pointer, [HostPointer; 2])>,
    output_used: usize,
    halves: [Half; 2],
    /// Numbers that were brought in for this step, and where they are.
    numbers: Vec<(u64, Pointer)>,
    /// Memory that was given back while work on it was only noted.
    doomed: Vec<Pointer>,
    known: Vec<Known>,
    known_bytes: usize,
    /// Where the driver cannot capture, steps are run as lists.
    without_graphs: bool,
    /// Why it could not, until that is told.
    note: Option<String>,
    pub graphs: u64,
    pub replays: u64,
}

impl Recorder {
    /// The work noted so far, to which more is added; none while nothing is recorded.
    pub fn list(&mut self) -> Option<&mut List> {
        self.list.as_mut()
    }

    /// Which recording what was brought in belongs to; 0 while nothing is recorded.
    pub fn number(&self) -> u64 {
        if self.list.is_some() { self.step } else { 0 }
    }

    fn half(&self) -> usize {
        (self.step % 2) as usize
    }

    /// Begins a step; one that was not completed is forgotten.
    pub fn begin(&mut self, driver: &dyn Driver) -> Result<()> {
        self.abandon();
        self.step += 1;
        self.harvest(driver, self.half())?;
        self.regions.iter_mut().for_each(|region| (region.used, region.sent) = (0, 0));
        self.output_used = 0;
        self.numbers.clear();
        self.list = Some(List::default());
        Ok(())
    }

    /// Drops what was recorded of a step that will not be completed.
    pub fn abandon(&mut self) {
        if self.list.take().is_some() {
            let half = self.half();
            self.halves[half].fetches.clear();
        }
    }

    /// Brings bytes in for this step; gives where kernels find them.
    pub fn bring(&mut self, driver: &dyn Driver, bytes: &[u8]) -> Result<Pointer> {
        let (pointer, host) = self.reserve(driver, bytes.len())?;
        // SAFETY: the half's last copy was waited for when the step began, and these are bytes of its region.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host as *mut u8, bytes.len()) };
        Ok(pointer)
    }

    /// Room for so many bytes to be brought in: where kernels find them, and where the host writes them.
    pub fn reserve(&mut self, driver: &dyn Driver, bytes: usize) -> Result<(Pointer, HostPointer)> {
        let need = bytes.next_multiple_of(ALIGNMENT);
        let half = self.half();
        let fitting = self.regions.iter().position(|region| region.bytes - region.used >= need);
        let index = match fitting {
            Some(index) => index,
            None => {
                let largest = self.regions.last().map_or(FIRST_REGION / 2, |region| region.bytes);
                self.regions.push(Region::new(driver, (2 * largest).max(need.next_power_of_two()))?);
                self.regions.len() - 1
            }
        };
        let region = &mut self.regions[index];
        let place = region.used as u64;
        region.used += need;
        Ok((region.device + place, region.host[half] + place))
    }

    /// Brings a number in, once a step.
    pub fn bring_number(&mut self, driver: &dyn Driver, number: u64) -> Result<Pointer> {
        if let Some(&(_, pointer)) = self.numbers.iter().find(|(known, _)| *known == number) {
            return Ok(pointer);
        }
        let pointer = self.bring(driver, &number.to_le_bytes())?;
        self.numbers.push((number, pointer));
        Ok(pointer)
    }

    /// Notes that these bytes are wanted after the step; none if there is no room for as many.
    pub fn fetch(&mut self, driver: &dyn Driver, from: Pointer, bytes: usize) -> Result<Option<Cell>> {
        let half = self.half();
        let begin = self.output_used;
        let end = begin + bytes;
        if end > OUTPUT {
            return Ok(None);
        }
        let (device, _) = match self.output {
            Some(output) => output,
            None => {
                let output = (driver.allocate(OUTPUT)?, [driver.allocate_host(OUTPUT)?, driver.allocate_host(OUTPUT)?]);
                *self.output.insert(output)
            }
        };
        let Some(list) = &mut self.list else { return Ok(None) };
        list.copy(device + begin as u64, from, bytes);
        self.output_used = end.next_multiple_of(ALIGNMENT);
        let cell = Cell { bytes: Arc::default(), half };
        self.halves[half].fetches.push((begin..end, cell.bytes.clone()));
        Ok(Some(cell))
    }

    /// Keeps memory until the work that was noted on it has run.
    pub fn doom(&mut self, pointer: Pointer) -> bool {
        let recording = self.list.is_some();
        if recording {
            self.doomed.push(pointer);
        }
        recording
    }

    /// Runs what was recorded so far, for somebody who cannot wait for the end.
    pub fn flush(&mut self, driver: &dyn Driver) -> Result<()> {
        let Some(list) = self.list.take() else { return Ok(()) };
        self.send(driver)?;
        // SAFETY: whoever noted the work answered for it, and memory given back meanwhile is kept until the end.
        let done = unsafe { list.run(driver) };
        // Nothing that was brought in may be overwritten before it has been read.
        let done = done.and_then(|()| driver.synchronize());
        self.list = Some(List::default());
        done
    }

    /// Runs the step, as a graph if it is known.
    pub fn finish(&mut self, driver: &dyn Driver) -> Result<()> {
        let Some(list) = self.list.take() else { return Ok(()) };
        let half = self.half();
        self.send(driver)?;
        self.run(driver, list)?;
        if let Some((device, host)) = self.output
            && self.output_used > 0
        {
            // SAFETY: both have as many bytes.
            unsafe { driver.receive(host[half], device, self.output_used)? };
        }
        let [_, over] = self.halves[half].events(driver)?;
        driver.signal(over, Lane::Kernels)?;
        self.halves[half].in_flight = true;
        if !self.doomed.is_empty() {
            driver.synchronize()?;
            // SAFETY: their owners gave them up, and no work is in flight.
            self.doomed.drain(..).for_each(|pointer| unsafe { driver.release(pointer) });
        }
        Ok(())
    }

    /// Starts the input on its way, beside the kernels of the step before.
    fn send(&mut self, driver: &dyn Driver) -> Result<()> {
        let half = self.half();
        let [arrived, _] = self.halves[half].events(driver)?;
        let filled = || self.regions.iter().filter(|region| region.used > region.sent);
        for region in filled() {
            let (place, bytes) = (region.sent as u64, region.used - region.sent);
            // SAFETY: both have as many bytes, and the step that last used the half is over.
            unsafe { driver.send(region.landing[half] + place, region.host[half] + place, bytes)? };
        }
        driver.signal(arrived, Lane::Copies)?;
        driver.await_signal(arrived, Lane::Kernels)?;
        for region in filled() {
            let (place, bytes) = (region.sent as u64, region.used - region.sent);
            // SAFETY: as above.
            unsafe { driver.copy(region.device + place, region.landing[half] + place, bytes)? };
        }
        self.regions.iter_mut().for_each(|region| region.sent = region.used);
        Ok(())
    }

    fn run(&mut self, driver: &dyn Driver, list: List) -> Result<()> {
        let digest = list.digest();
        let found = self.known.iter().position(|known| known.digest == digest && known.list == list);
        let Some(index) = found else {
            self.remember(driver, digest, list.clone());
            // SAFETY: whoever noted the work answered for it, and memory given back meanwhile is kept until the end.
            return unsafe { list.run(driver) };
        };
        let known = &mut self.known[index];
        known.last_used = self.step;
        if known.graph.is_none() && !self.without_graphs {
            match capture(driver, &list) {
                Ok(graph) => {
                    known.graph = Some(graph);
                    self.graphs += 1;
                }
                Err(error) => {
                    self.without_graphs = true;
                    self.note = Some(format!(
                        "steps run without CUDA graphs from here on, which takes the host longer: {}",
                        error.problem
                    ));
                }
            }
        }
        match known.graph {
            Some(graph) => {
                self.replays += 1;
                // SAFETY: the arena's chunks and the regions are where they were: else the graphs would have been dropped.
                unsafe { driver.replay(graph) }
            }
            // SAFETY: as above.
            None => unsafe { list.run(driver) },
        }
    }

    fn remember(&mut self, driver: &dyn Driver, digest: u64, list: List) {
        let bytes = list.bytes();
        while self.known.len() >= KNOWN || (self.known_bytes + bytes > KNOWN_BYTES && !self.known.is_empty()) {
            let oldest = (0..self.known.len()).min_by_key(|&index| self.known[index].last_used).unwrap_or(0);
            let Known { list, graph, .. } = self.known.swap_remove(oldest);
            self.known_bytes -= list.bytes();
            // It may still run: the driver then frees it when it is done (CUDA Driver API, cuGraphExecDestroy).
            graph.into_iter().for_each(|graph| driver.release_graph(graph));
        }
        self.known_bytes += bytes;
        self.known.push(Known { digest, list, graph: None, last_used: self.step });
    }

    /// Waits for the step that a cell belongs to, and fills it. A step that is still being recorded is run first.
    pub fn settle(&mut self, driver: &dyn Driver, cell: &Cell) -> Result<()> {
        if self.list.is_some() && cell.half == self.half() && !self.halves[cell.half].in_flight {
            self.finish(driver)?;
        }
        self.harvest(driver, cell.half)
    }

    /// Waits for the step that last used a half, and hands out what it brought.
    fn harvest(&mut self, driver: &dyn Driver, half: usize) -> Result<()> {
        if !std::mem::take(&mut self.halves[half].in_flight) {
            return Ok(());
        }
        if let Some([_, over]) = self.halves[half].events {
            driver.wait_for(over)?;
        }
        let fetches = std::mem::take(&mut self.halves[half].fetches);
        let Some((_, host)) = self.output else { return Ok(()) };
        for (range, cell) in fetches {
            // SAFETY: within the output, which the step has written and nobody writes now.
            let bytes =
                unsafe { std::slice::from_raw_parts((host[half] + range.start as u64) as *const u8, range.len()) };
            let _ = cell.set(bytes.to_vec());
        }
        Ok(())
    }

    /// Bytes of device memory that what crosses takes.
    pub fn bytes(&self) -> u64 {
        let regions: usize = self.regions.iter().map(|region| region.bytes).sum();
        (3 * regions + self.output.map_or(0, |_| OUTPUT)) as u64
    }

    /// Forgets the graphs, whose memory is about to go or is needed; says whether there were any.
    pub fn forget(&mut self, driver: &dyn Driver) -> bool {
        self.known_bytes = 0;
        let graphs: Vec<Graph> = self.known.drain(..).filter_map(|known| known.graph).collect();
        graphs.iter().for_each(|&graph| driver.release_graph(graph));
        !graphs.is_empty()
    }

    /// Why steps do not become graphs; told once.
    pub fn take_note(&mut self) -> Option<String> {
        self.note.take()
    }

    /// Gives everything back; no work may be in flight.
    pub fn release(&mut self, driver: &dyn Driver) {
        self.forget(driver);
        // SAFETY: no work is in flight, and this was all that names them.
        unsafe {
            for region in self.regions.drain(..) {
                [region.device, region.landing[0], region.landing[1]].into_iter().for_each(|it| driver.release(it));
                region.host.into_iter().for_each(|it| driver.release_host(it));
            }
            if let Some((device, host)) = self.output.take() {
                driver.release(device);
                host.into_iter().for_each(|it| driver.release_host(it));
            }
            self.doomed.drain(..).for_each(|pointer| driver.release(pointer));
        }
        let events = self.halves.iter_mut().filter_map(|half| half.events.take());
        events.flatten().for_each(|event| driver.release_event(event));
    }
}

impl Half {
    fn events(&mut self, driver: &dyn Driver) -> Result<[Event; 2]> {
        match self.events {
            Some(events) => Ok(events),
            None => Ok(*self.events.insert([driver.event()?, driver.event()?])),
        }
    }
}

impl Region {
    fn new(driver: &dyn Driver, bytes: usize) -> Result<Self> {
        Ok(Region {
            device: driver.allocate(bytes)?,
            landing: [driver.allocate(bytes)?, driver.allocate(bytes)?],
            host: [driver.allocate_host(bytes)?, driver.allocate_host(bytes)?],
            bytes,
            used: 0,
            sent: 0,
        })
    }
}

fn capture(driver: &dyn Driver, list: &List) -> Result<Graph> {
    driver.begin_capture()?;
    // SAFETY: nothing runs while it is captured.
    let noted = unsafe { list.run(driver) };
    // Ended in any case: a stream that stays in capture is of no use.
    let graph = driver.end_capture();
    noted.and(graph)
}

#[cfg(all(test, feature = "emulator"))]
#[path = "step_tests.rs"]
mod tests;
