//! A device in use: its driver, the arena, the kernels found so far, the step that is being recorded, and the first error.
//!
//! Errors are sticky, as on the GPU itself: after the first one nothing runs any more, and whoever next asks [`Context::check`] (the
//! learner does, at the end of every step) gets it. So tensors can be made and dropped without a `Result` in every hand.

use super::arena::Arena;
use super::counted::Counted;
use super::driver::{Argument, Driver, Function, Launch, Pointer, Properties};
use super::matmul::Product;
use super::products::Products;
use super::step::{Cell, List, Recorder};
use crate::error::{Error, Fault, Result, Subject};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The arena grows by at least this much at a time.
const CHUNK: usize = 64 << 20;

pub struct Context {
    name: String,
    driver: Box<dyn Driver>,
    state: Mutex<State>,
    /// Kernels launched since the device was opened.
    launches: AtomicU64,
    uploaded: AtomicU64,
    downloaded: AtomicU64,
    /// Bytes of buffers that own their memory.
    owned: AtomicU64,
}

#[derive(Default)]
struct State {
    arena: Arena,
    /// What the arena's offsets mean: chunks by their first offset.
    chunks: Vec<Chunk>,
    functions: HashMap<(&'static str, &'static str), Function>,
    /// How many blocks fit at the same time, by kernel, threads and shared memory of a block.
    resident: HashMap<(u64, u32, u32), u32>,
    recorder: Recorder,
    failure: Option<Failure>,
}

#[derive(Clone, Copy)]
struct Chunk {
    offset: usize,
    pointer: Pointer,
    bytes: usize,
}

/// An error as data, since every later step reports the same one.
struct Failure {
    problem: String,
    remedy: Option<String>,
    fault: Option<Fault>,
}

/// Memory of a tensor; given back when dropped.
pub struct Buffer {
    pointer: Pointer,
    bytes: usize,
    owner: Owner,
    context: Arc<Context>,
}

#[derive(Clone, Copy)]
enum Owner {
    /// The arena, at this offset.
    Arena(usize),
    /// The buffer: memory that outlives a step and was allocated for itself.
    Buffer,
    /// The recorder: what was brought in for a step is there until the step is over. After an error, nobody.
    Step,
}

/// A step that is being recorded; what is not [run](Recording::run) is forgotten.
pub struct Recording(Arc<Context>);

impl Recording {
    /// Hands the step to the device, which may still be busy with earlier ones.
    pub fn run(self) {
        self.0.with_recorder(Recorder::finish);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.0.state().recorder.abandon();
    }
}

/// Elements that were [fetched](Context::fetch), perhaps not there yet.
#[derive(Debug)]
pub struct Fetched<T> {
    source: Source<T>,
    context: Arc<Context>,
}

#[derive(Debug)]
enum Source<T> {
    Here(Vec<T>),
    /// So many elements.
    Later(Cell, usize),
}

impl<T: bytemuck::Pod> Fetched<T> {
    /// Waits for the step that they belong to; zeros after an error.
    pub fn read(self) -> Vec<T> {
        let (cell, count) = match self.source {
            Source::Here(elements) => return elements,
            Source::Later(cell, count) => (cell, count),
        };
        if cell.bytes.get().is_none() {
            self.context.with_recorder(|recorder, driver| recorder.settle(driver, &cell));
        }
        let mut elements = vec![T::zeroed(); count];
        if let Some(bytes) = cell.bytes.get() {
            bytemuck::cast_slice_mut(&mut elements).copy_from_slice(bytes);
        }
        elements
    }
}

impl Context {
    /// `name` as a user would give it: `cuda:0`.
    pub fn new(name: &str, driver: Box<dyn Driver>) -> Arc<Self> {
        Arc::new(Context {
            name: name.to_string(),
            driver,
            state: Mutex::default(),
            launches: AtomicU64::new(0),
            uploaded: AtomicU64::new(0),
            downloaded: AtomicU64::new(0),
            owned: AtomicU64::new(0),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn properties(&self) -> &Properties {
        self.driver.properties()
    }

    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// As [`Driver::recall_products`]; gives what is to be told if products were computed elsewhere then.
    pub fn recall_products(&self, earlier: &Products) -> Option<String> {
        self.driver.recall_products(earlier);
        self.other_products(&earlier.by)
    }

    /// What is to be told if products are computed by others here than they were.
    pub fn other_products(&self, earlier_by: &str) -> Option<String> {
        let now = self.driver.products().by;
        (now != earlier_by).then(|| {
            format!("products were computed by {earlier_by} before and are by {now} from here on: results may differ in their last bits")
        })
    }

    /// What works otherwise than it was meant to, without an error: each is told once.
    pub fn take_notes(&self) -> Vec<String> {
        let of_graphs = self.state().recorder.take_note();
        of_graphs.into_iter().chain(self.driver.take_note()).collect()
    }

    /// The first error since the device was opened.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<()> {
        match &self.state().failure {
            None => Ok(()),
            Some(failure) => Err(self.error(failure)),
        }
    }

    fn error(&self, failure: &Failure) -> Error {
        Error {
            remedy: failure.remedy.clone(),
            fault: failure.fault,
            ..Error::new(Subject::Device(self.name.clone()), failure.problem.clone())
        }
    }

    /// Keeps the first error; gives the value otherwise.
    fn sticky<T>(&self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let failure = Failure { problem: error.problem, remedy: error.remedy, fault: error.fault };
                self.state().failure.get_or_insert(failure);
                None
            }
        }
    }

    fn failed(&self) -> bool {
        self.state().failure.is_some()
    }

    /// Nothing after an error.
    fn with_recorder<T>(&self, act: impl FnOnce(&mut Recorder, &dyn Driver) -> Result<T>) -> Option<T> {
        if self.failed() {
            return None;
        }
        // The lock is let go before the result is looked at, which may take it again.
        let result = act(&mut self.state().recorder, &*self.driver);
        self.sticky(result)
    }

    /// Adds to the step that is being recorded; says no if none is.
    fn noted(&self, note: impl FnOnce(&mut List)) -> bool {
        self.state().recorder.list().map(note).is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the state half changed: its methods do not panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory for a tensor that lives within a step, from the arena.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Buffer {
        let place = self.take_from_arena(bytes);
        let (pointer, owner) = place.map_or((0, Owner::Step), |(pointer, offset)| (pointer, Owner::Arena(offset)));
        if pointer != 0 && self.driver.poisons_memory() {
            self.fill_taken(pointer, bytes);
        }
        Buffer { pointer, bytes, owner, context: self.clone() }
    }

    /// A device like this one that counts what it is asked for, and does nothing.
    pub fn counted(self: &Arc<Self>) -> Arc<Self> {
        let counted = Self::new("plan", Box::new(Counted::new(self.clone())));
        // One chunk without an end: how far it is used is what a real one has to have.
        counted.prepare_arena(1 << 60);
        counted
    }

    /// Begins a step: until it is run, work is noted ([`super::step`]).
    pub fn record(self: &Arc<Self>) -> Recording {
        self.with_recorder(Recorder::begin);
        Recording(self.clone())
    }

    /// Which recording is under way, and so what [`Context::bring`] gave belongs to; 0: none.
    pub fn recording(&self) -> u64 {
        self.state().recorder.number()
    }

    /// Elements from the host that a step reads.
    pub fn bring<T: bytemuck::NoUninit>(self: &Arc<Self>, from: &[T]) -> Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(from);
        if self.recording() == 0 || bytes.is_empty() {
            let buffer = self.take(bytes.len());
            self.upload(&buffer, from);
            return buffer;
        }
        self.uploaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let pointer = self.with_recorder(|recorder, driver| recorder.bring(driver, bytes)).unwrap_or(0);
        Buffer { pointer, bytes: bytes.len(), owner: Owner::Step, context: self.clone() }
    }

    /// Room for what a step would bring in, where nothing is computed.
    pub fn reserve(self: &Arc<Self>, bytes: usize) -> Buffer {
        if self.recording() == 0 || bytes == 0 {
            return self.take(bytes);
        }
        let room = self.with_recorder(|recorder, driver| recorder.reserve(driver, bytes));
        Buffer { pointer: room.map_or(0, |(pointer, _)| pointer), bytes, owner: Owner::Step, context: self.clone() }
    }

    /// While a step is recorded: where kernels find this number. It is no argument of theirs, so that the next step can be the same list.
    pub fn bring_number(&self, number: u64) -> Option<Pointer> {
        if self.recording() == 0 {
            return None;
        }
        self.with_recorder(|recorder, driver| recorder.bring_number(driver, number))
    }

    /// A buffer's start as it is now; in a recorded step the host does not wait for it before it is read.
    ///
    /// # Panics
    /// If more is asked for than the buffer holds.
    pub fn fetch<T: bytemuck::Pod>(self: &Arc<Self>, from: &Buffer, count: usize) -> Fetched<T> {
        let bytes = count * size_of::<T>();
        assert!(bytes <= from.bytes, "more is fetched than the buffer holds");
        let wanted = self.recording() > 0 && bytes > 0;
        let fetch = |recorder: &mut Recorder, driver: &dyn Driver| recorder.fetch(driver, from.pointer, bytes);
        let source = match wanted.then(|| self.with_recorder(fetch).flatten()).flatten() {
            Some(cell) => {
                self.downloaded.fetch_add(bytes as u64, Ordering::Relaxed);
                Source::Later(cell, count)
            }
            None => Source::Here(self.download(from, count)),
        };
        Fetched { source, context: self.clone() }
    }

    fn take_from_arena(&self, bytes: usize) -> Option<(Pointer, usize)> {
        if self.failed() {
            return None;
        }
        let mut state = self.state();
        if let Some(offset) = state.arena.take(bytes) {
            return Some((state.pointer(offset), offset));
        }
        // More than is asked for, so that a step settles with few chunks; if that much is not there, just as much.
        let need = Arena::rounded(bytes);
        let wish = need.max(CHUNK).max(state.arena.capacity() / 2);
        drop(state);
        let (pointer, length) = match self.driver.allocate(wish) {
            Ok(pointer) => (pointer, wish),
            Err(_) => (self.sticky(self.allocate_at_any_cost(need))?, need),
        };
        state = self.state();
        state.add_chunk(pointer, length);
        let offset = state.arena.take(bytes).expect("the arena was just extended by as much");
        Some((state.pointer(offset), offset))
    }

    /// Sets all bits of what was taken, with what it was rounded up by.
    fn fill_taken(&self, pointer: Pointer, bytes: usize) {
        let bytes = Arena::rounded(bytes);
        if !self.noted(|list| list.fill(pointer, 0xff, bytes)) {
            // SAFETY: the arena gave as many bytes.
            self.sticky(unsafe { self.driver.fill(pointer, 0xff, bytes) });
        }
    }

    /// Gives an empty arena so many bytes in one piece, so that steps find them there. If they cannot be had, it grows as it is used.
    pub fn prepare_arena(&self, bytes: usize) {
        if bytes == 0 || self.failed() || self.state().arena.capacity() > 0 {
            return;
        }
        let bytes = Arena::rounded(bytes);
        if let Ok(pointer) = self.driver.allocate(bytes) {
            self.state().add_chunk(pointer, bytes);
        }
    }

    /// Gives up the graphs, for which the driver keeps memory, rather than fail.
    fn allocate_at_any_cost(&self, bytes: usize) -> Result<Pointer> {
        let allocated = self.driver.allocate(bytes);
        if allocated.is_ok() || !self.state().recorder.forget(&*self.driver) {
            return allocated;
        }
        self.driver.synchronize()?;
        self.driver.allocate(bytes)
    }

    /// Memory for a tensor that outlives steps, of its own.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Buffer {
        let pointer = (!self.failed()).then(|| self.allocate_at_any_cost(Arena::rounded(bytes)));
        let pointer = pointer.and_then(|pointer| self.sticky(pointer)).unwrap_or(0);
        let owner = if pointer == 0 { Owner::Step } else { Owner::Buffer };
        if pointer != 0 {
            self.owned.fetch_add(Arena::rounded(bytes) as u64, Ordering::Relaxed);
        }
        Buffer { pointer, bytes, owner, context: self.clone() }
    }

    /// Gives the arena's memory back to the device, if nothing is in it.
    pub fn trim(&self) {
        let mut state = self.state();
        if state.arena.used() > 0 || state.failure.is_some() || state.recorder.number() > 0 {
            return;
        }
        state.recorder.forget(&*self.driver);
        state.arena = Arena::default();
        let chunks = std::mem::take(&mut state.chunks);
        drop(state);
        self.sticky(self.driver.synchronize());
        for chunk in chunks {
            // SAFETY: the arena was empty, so no tensor is in the chunk, and no work is in flight.
            unsafe { self.driver.release(chunk.pointer) };
        }
    }

    /// Runs a kernel of `kernels/FILE.cu`.
    ///
    /// # Safety
    /// The arguments are those that the kernel declares, and its pointers hold what it reads and writes.
    pub unsafe fn launch(&self, file: &'static str, kernel: &'static str, launch: &Launch, arguments: &[Argument]) {
        if arguments.contains(&Argument::TOO_LARGE) {
            self.sticky::<()>(Err(self.too_large(kernel)));
        }
        let Some(function) = self.function(file, kernel) else { return };
        self.launches.fetch_add(1, Ordering::Relaxed);
        if self.noted(|list| list.launch(function, launch, arguments)) {
            return;
        }
        // SAFETY: the caller's.
        self.sticky(unsafe { self.driver.launch(function, launch, arguments) });
    }

    fn too_large(&self, kernel: &str) -> Error {
        let problem = format!("the kernel {kernel} was asked to count to 2^31 or beyond, which it cannot");
        Error::new(Subject::Device(self.name.clone()), problem)
            .remedy("Take smaller batches, or a model with smaller layers")
    }

    /// Has the vendor's library compute a product, if it does. After an error nothing is left to be computed.
    ///
    /// # Safety
    /// The product's pointers hold what it reads and writes.
    pub unsafe fn library_product(&self, product: &Product) -> bool {
        if self.failed() {
            return true;
        }
        let Some(takes) = self.sticky(self.driver.library_takes(product)) else { return true };
        if !takes {
            return false;
        }
        self.launches.fetch_add(1, Ordering::Relaxed);
        if !self.noted(|list| list.product(product)) {
            // SAFETY: the caller's.
            self.sticky(unsafe { self.driver.library_product(product) });
        }
        true
    }

    /// The most blocks of this launch that run at the same time; 0 after an error.
    pub fn resident_blocks(&self, file: &'static str, kernel: &'static str, launch: &Launch) -> u32 {
        let Some(function) = self.function(file, kernel) else { return 0 };
        let key = (function.0, launch.threads.iter().product(), launch.shared);
        if let Some(&blocks) = self.state().resident.get(&key) {
            return blocks;
        }
        let Some(blocks) = self.sticky(self.driver.resident_blocks(function, launch)) else { return 0 };
        self.state().resident.insert(key, blocks);
        blocks
    }

    fn function(&self, file: &'static str, kernel: &'static str) -> Option<Function> {
        if self.failed() {
            return None;
        }
        if let Some(&function) = self.state().functions.get(&(file, kernel)) {
            return Some(function);
        }
        let function = self.sticky(self.driver.function(file, kernel))?;
        self.state().functions.insert((file, kernel), function);
        Some(function)
    }

    /// Brings elements to a buffer's start.
    ///
    /// # Panics
    /// If they are more than it holds.
    pub fn upload<T: bytemuck::NoUninit>(&self, to: &Buffer, from: &[T]) {
        let from: &[u8] = bytemuck::cast_slice(from);
        assert!(from.len() <= to.bytes, "an upload of more than the buffer holds");
        if from.is_empty() || self.failed() {
            return;
        }
        self.uploaded.fetch_add(from.len() as u64, Ordering::Relaxed);
        if self.recording() > 0 {
            if let Some(pointer) = self.with_recorder(|recorder, driver| recorder.bring(driver, from)) {
                self.noted(|list| list.copy(to.pointer, pointer, from.len()));
            }
            return;
        }
        // SAFETY: held against the buffer's length.
        self.sticky(unsafe { self.driver.upload(to.pointer, from) });
    }

    /// Waits for all work and brings a buffer's start to the host; zeros after an error.
    ///
    /// # Panics
    /// If more is asked for than it holds.
    pub fn download<T: bytemuck::Pod>(&self, from: &Buffer, count: usize) -> Vec<T> {
        let mut elements = vec![T::zeroed(); count];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut elements);
        assert!(bytes.len() <= from.bytes, "a download of more than the buffer holds");
        if !bytes.is_empty() && !self.failed() {
            self.downloaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.with_recorder(Recorder::flush);
            // SAFETY: held against the buffer's length.
            self.sticky(unsafe { self.driver.download(bytes, from.pointer) });
        }
        elements
    }

    /// All bits zero.
    pub fn clear(&self, buffer: &Buffer) {
        if !self.failed() && buffer.bytes > 0 {
            if self.noted(|list| list.fill(buffer.pointer, 0, buffer.bytes)) {
                return;
            }
            // SAFETY: the buffer's own length.
            self.sticky(unsafe { self.driver.fill(buffer.pointer, 0, buffer.bytes) });
        }
    }

    /// # Panics
    /// If either is shorter than `bytes`.
    pub fn copy(&self, to: &Buffer, from: &Buffer, bytes: usize) {
        assert!(bytes <= to.bytes && bytes <= from.bytes, "a copy of more than a buffer holds");
        if !self.failed() && bytes > 0 {
            if self.noted(|list| list.copy(to.pointer, from.pointer, bytes)) {
                return;
            }
            // SAFETY: held against both lengths.
            self.sticky(unsafe { self.driver.copy(to.pointer, from.pointer, bytes) });
        }
    }

    pub fn counters(&self) -> Counters {
        let state = self.state();
        Counters {
            launches: self.launches.load(Ordering::Relaxed),
            uploaded: self.uploaded.load(Ordering::Relaxed),
            downloaded: self.downloaded.load(Ordering::Relaxed),
            lasting: self.owned.load(Ordering::Relaxed) + state.recorder.bytes(),
            arena_used: state.arena.used() as u64,
            arena_peak: state.arena.peak() as u64,
            arena_reach: state.arena.reach() as u64,
            arena_capacity: state.arena.capacity() as u64,
            graphs: state.recorder.graphs,
            replays: state.recorder.replays,
        }
    }
}

/// What was asked of a device since it was opened: checks that need no GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    pub launches: u64,
    /// Bytes from the host and to it.
    pub uploaded: u64,
    pub downloaded: u64,
    /// Bytes in use that are not the arena's.
    pub lasting: u64,
    pub arena_used: u64,
    pub arena_peak: u64,
    /// Of one chunk, what the same tensors in the same order need: the peak and the gaps below it.
    pub arena_reach: u64,
    pub arena_capacity: u64,
    /// Steps that became graphs, and how often a graph was run.
    pub graphs: u64,
    pub replays: u64,
}

impl State {
    /// A gap lies between chunks, so that no range spans two.
    fn add_chunk(&mut self, pointer: Pointer, bytes: usize) {
        let offset = self.chunks.last().map_or(0, |last| (last.offset + last.bytes + 1).next_multiple_of(CHUNK));
        self.chunks.push(Chunk { offset, pointer, bytes });
        self.arena.extend(offset, bytes);
    }

    fn pointer(&self, offset: usize) -> Pointer {
        let index = self.chunks.partition_point(|chunk| chunk.offset <= offset) - 1;
        let chunk = &self.chunks[index];
        chunk.pointer + (offset - chunk.offset) as u64
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.name, self.driver)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let (chunks, mut recorder) = {
            let mut state = self.state();
            (std::mem::take(&mut state.chunks), std::mem::take(&mut state.recorder))
        };
        let _ = self.driver.synchronize();
        recorder.release(&*self.driver);
        for chunk in chunks {
            // SAFETY: every buffer holds its context, so none is left.
            unsafe { self.driver.release(chunk.pointer) };
        }
    }
}

impl Buffer {
    pub fn pointer(&self) -> Pointer {
        self.pointer
    }

    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.owner {
            // Later work may write there at once: it runs after what is in flight, on the same stream.
            Owner::Arena(offset) => self.context.state().arena.put(offset, self.bytes),
            Owner::Buffer => {
                self.context.owned.fetch_sub(Arena::rounded(self.bytes) as u64, Ordering::Relaxed);
                if self.context.state().recorder.doom(self.pointer) {
                    return;
                }
                let _ = self.context.driver.synchronize();
                // SAFETY: nobody else has this buffer, and no work is in flight.
                unsafe { self.context.driver.release(self.pointer) };
            }
            Owner::Step => {}
        }
    }
}
