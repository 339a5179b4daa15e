//! A device: where tensors live, what they take there, and how much work was asked of it.
//!
//! Three kinds. `cpu` and `cuda` compute. `plan` computes nothing, for one of these: its tensors have shapes and no elements, so that the
//! very code that trains also predicts memory and work (`headfirst plan`), before anything is allocated.

use crate::backend::cuda::context::{Context, Recording};
use crate::backend::cuda::usable::first_usable;
use crate::backend::cuda::{self, matmul::Arithmetic, products::Products};
use crate::error::{Error, Result, Subject};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What a tensor is for; the ledger keeps one account each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    Parameter,
    Gradient,
    OptimizerState,
    /// Data, results of operations and their gradients.
    Activation,
    /// Needed within one operation only.
    Workspace,
    /// What one step hands to the next: the states of a language model.
    Carried,
}

const CATEGORIES: usize = 6;

/// Counts the bytes on a device, now and at the peak.
#[derive(Debug, Default)]
pub struct Ledger {
    live: [AtomicU64; CATEGORIES],
    peak: [AtomicU64; CATEGORIES],
    live_total: AtomicU64,
    peak_total: AtomicU64,
    /// Of every tensor ever made.
    allocated: AtomicU64,
}

impl Ledger {
    pub fn live(&self, category: Category) -> u64 {
        self.live[category as usize].load(Ordering::Relaxed)
    }

    pub fn peak(&self, category: Category) -> u64 {
        self.peak[category as usize].load(Ordering::Relaxed)
    }

    pub fn live_total(&self) -> u64 {
        self.live_total.load(Ordering::Relaxed)
    }

    pub fn peak_total(&self) -> u64 {
        self.peak_total.load(Ordering::Relaxed)
    }

    /// The sum of the sizes of all tensors made since the device was opened.
    pub fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Lets the peaks begin anew at what is live now, for a new stage.
    pub fn reset_peaks(&self) {
        for (live, peak) in self.live.iter().zip(&self.peak) {
            peak.store(live.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.peak_total.store(self.live_total(), Ordering::Relaxed);
    }

    pub(crate) fn open(&self, category: Category, bytes: u64) {
        let live = self.live[category as usize].fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak[category as usize].fetch_max(live, Ordering::Relaxed);
        let total = self.live_total.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak_total.fetch_max(total, Ordering::Relaxed);
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn close(&self, category: Category, bytes: u64) {
        self.live[category as usize].fetch_sub(bytes, Ordering::Relaxed);
        self.live_total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Where a device's tensors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Cpu,
    /// In the memory of a GPU, or of the emulated one.
    Cuda,
    /// Nowhere: shapes only.
    Plan,
}

/// What an operation's arithmetic runs on.
#[derive(Debug, Clone, Copy)]
pub enum Backend<'a> {
    Cpu,
    Cuda(&'a Arc<Context>),
    /// Nothing is to be computed.
    Plan,
}

/// Bytes of a GPU's memory.
#[derive(Debug, Clone, Copy)]
pub struct GpuMemory {
    /// The most that tensors held in the arena at one instant.
    pub arena: u64,
    /// What an arena in one piece has to have for that: gaps included.
    pub reach: u64,
    /// What outlives steps, and what crosses.
    pub lasting: u64,
    /// Held by the vendor's library of products.
    pub library: u64,
}

impl GpuMemory {
    /// What has to be there.
    pub fn needed(&self) -> u64 {
        self.reach + self.lasting + self.library
    }
}

#[derive(Debug)]
struct Inner {
    kind: DeviceKind,
    /// Of the kind `Cuda`, and of `Plan` for it.
    context: Option<Arc<Context>>,
    ledger: Ledger,
    operations: AtomicU64,
    arithmetic: Mutex<Arithmetic>,
    pool: Mutex<Pool>,
}

/// A handle to a device; clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

impl Device {
    pub fn cpu() -> Self {
        Self::of_kind(DeviceKind::Cpu, None)
    }

    pub fn cuda(context: Arc<Context>) -> Self {
        Self::of_kind(DeviceKind::Cuda, Some(context))
    }

    /// The CUDA backend on the CPU, its kernels run thread by thread in this order: for tests.
    #[cfg(feature = "emulator")]
    pub fn emulator(order: cuda::emulator::Order) -> Self {
        Self::cuda(Context::new("emulator", Box::new(cuda::emulated::Emulated::new(order))))
    }

    /// A device that counts what a CPU would do.
    pub fn plan() -> Self {
        Self::of_kind(DeviceKind::Plan, None)
    }

    /// A device that counts what this one would do, with its arithmetic.
    pub fn counting(&self) -> Self {
        let device = Self::of_kind(DeviceKind::Plan, self.0.context.as_ref().map(Context::counted));
        device.set_arithmetic(self.arithmetic());
        device
    }

    /// What was taken of a GPU's memory.
    pub fn memory_on_gpu(&self) -> Option<GpuMemory> {
        let context = self.0.context.as_ref()?;
        let counters = context.counters();
        let library = context.driver().library_memory();
        Some(GpuMemory { arena: counters.arena_peak, reach: counters.arena_reach, lasting: counters.lasting, library })
    }

    /// Gives a GPU's arena, if it is empty, so many bytes in one piece; a CPU has none.
    pub fn prepare_arena(&self, bytes: u64) {
        if let (Some(context), Ok(bytes)) = (&self.0.context, usize::try_from(bytes)) {
            context.prepare_arena(bytes);
        }
    }

    /// Bytes that are free on a GPU.
    ///
    /// # Errors
    /// What the device says.
    pub fn free_memory(&self) -> Result<Option<u64>> {
        self.0.context.as_ref().map(|context| context.driver().free_memory()).transpose()
    }

    fn of_kind(kind: DeviceKind, context: Option<Arc<Context>>) -> Self {
        Device(Arc::new(Inner {
            kind,
            context,
            ledger: Ledger::default(),
            operations: AtomicU64::new(0),
            arithmetic: Mutex::new(Arithmetic::F32),
            pool: Mutex::new(Pool::default()),
        }))
    }

    pub fn kind(&self) -> DeviceKind {
        self.0.kind
    }

    pub fn backend(&self) -> Backend<'_> {
        match (&self.0.context, self.0.kind) {
            (Some(context), _) => Backend::Cuda(context),
            (None, DeviceKind::Plan) => Backend::Plan,
            (None, _) => Backend::Cpu,
        }
    }

    /// How products are computed on a GPU; f32 until told otherwise.
    pub fn arithmetic(&self) -> Arithmetic {
        *self.0.arithmetic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_arithmetic(&self, arithmetic: Arithmetic) {
        *self.0.arithmetic.lock().unwrap_or_else(PoisonError::into_inner) = arithmetic;
    }

    /// Who computes products on a GPU, for a saved state.
    pub fn products(&self) -> Option<Products> {
        self.0.context.as_ref().map(|context| context.driver().products())
    }

    /// Has them computed as they were when a state was saved; gives what is to be told if that cannot be.
    pub fn recall_products(&self, earlier: &Products) -> Option<String> {
        self.0.context.as_ref()?.recall_products(earlier)
    }

    /// What is to be told if products were computed by somebody else earlier, in a stage of the same run.
    pub fn other_products(&self, earlier_by: &str) -> Option<String> {
        self.0.context.as_ref()?.other_products(earlier_by)
    }

    /// What a GPU does otherwise than it was meant to, without an error: each is told once.
    pub fn take_notes(&self) -> Vec<String> {
        self.0.context.as_ref().map(|context| context.take_notes()).unwrap_or_default()
    }

    /// Begins a training step, on a GPU: what is asked of it runs when the recording is run.
    pub fn record(&self) -> Option<Recording> {
        self.0.context.as_ref().map(Context::record)
    }

    /// The first error of a GPU, whose errors are sticky; a CPU has none.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<()> {
        self.0.context.as_ref().map_or(Ok(()), |context| context.check())
    }

    /// False on the device `plan`, where an operation does everything but its arithmetic.
    pub fn computes(&self) -> bool {
        self.kind() != DeviceKind::Plan
    }

    pub fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// Adds to the count of floating-point operations (a multiplication and an addition are two).
    pub fn count_operations(&self, operations: u64) {
        self.0.operations.fetch_add(operations, Ordering::Relaxed);
    }

    pub fn operations(&self) -> u64 {
        self.0.operations.load(Ordering::Relaxed)
    }

    /// Gives memory that no tensor uses back to the system.
    pub fn trim(&self) {
        self.pool().free.clear();
        if let Some(context) = &self.0.context {
            context.trim();
        }
    }

    pub(crate) fn take_buffer(&self, elements: usize) -> Vec<f32> {
        let mut buffer = self.pool().take(elements);
        if cfg!(debug_assertions) {
            buffer.fill(f32::NAN);
        }
        buffer.truncate(elements);
        buffer
    }

    pub(crate) fn return_buffer(&self, buffer: Vec<f32>) {
        self.pool().put(buffer);
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Pool> {
        // A panic elsewhere cannot leave the pool half changed: it only moves whole buffers.
        self.0.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.backend() {
            Backend::Cpu => "cpu",
            Backend::Cuda(context) => context.name(),
            Backend::Plan => "plan", // as the context is called that counts
        })
    }
}

/// Opens the device that `--device` names, and says why if `auto` had to choose: it takes the first GPU that can be used, else the CPU.
///
/// # Errors
/// If the name is unknown or the device is not there.
pub fn open(name: &str) -> Result<(Device, String)> {
    match parse(name)? {
        Name::Cpu => Ok((Device::cpu(), "asked for".into())),
        Name::Cuda(ordinal) => Ok((Device::cuda(open_gpu(ordinal)?), "asked for".into())),
        Name::Auto => Ok(match cuda_available() {
            Ok(()) => match first_usable(cuda::gpu::count(), open_gpu) {
                Ok((context, passed_over)) => {
                    let first = format!("{} is there", context.properties().name);
                    let reasons: Vec<String> = std::iter::once(first).chain(passed_over).collect();
                    (Device::cuda(context), reasons.join("; "))
                }
                Err(reasons) => (Device::cpu(), reasons.join("; ")),
            },
            Err(why) => (Device::cpu(), why),
        }),
        #[cfg(feature = "emulator")]
        Name::Emulator => Ok((Device::emulator(crate::backend::cuda::emulator::Order::Forward), "asked for".into())),
    }
}

/// That the name is one of a device that is there; opens nothing, which on a GPU takes a while.
///
/// # Errors
/// As [`open`].
pub fn check(name: &str) -> Result<()> {
    match parse(name)? {
        Name::Cuda(ordinal) => available(ordinal),
        _ => Ok(()),
    }
}

enum Name {
    Auto,
    Cpu,
    Cuda(u32),
    #[cfg(feature = "emulator")]
    Emulator,
}

fn parse(name: &str) -> Result<Name> {
    match name {
        "auto" => Ok(Name::Auto),
        "cpu" => Ok(Name::Cpu),
        "cuda" => Ok(Name::Cuda(0)),
        #[cfg(feature = "emulator")]
        "emulator" => Ok(Name::Emulator),
        _ => name.strip_prefix("cuda:").and_then(|number| number.parse().ok()).map(Name::Cuda).ok_or_else(|| {
            Error::new(Subject::Device(name.into()), "is no device").remedy("Use --device auto, cpu, cuda or cuda:N")
        }),
    }
}

/// Why no GPU can be used at all, in words that follow "because".
pub fn cuda_available() -> Result<(), String> {
    if cuda::embedded::files().is_empty() {
        return Err("this binary was built without CUDA kernels".into());
    }
    cuda::gpu::driver_version()?;
    if cuda::gpu::count() == 0 { Err("the NVIDIA driver sees no GPU".into()) } else { Ok(()) }
}

fn available(ordinal: u32) -> Result<()> {
    let error = |why: String| Error::new(Subject::Device(format!("cuda:{ordinal}")), why);
    cuda_available()
        .map_err(|why| error(format!("cannot be used: {why}")).remedy("Use --device cpu, or see `headfirst doctor`"))?;
    let count = cuda::gpu::count();
    if ordinal >= count {
        return Err(error(format!("is not there: the driver sees {count} GPUs, numbered from 0"))
            .remedy("See `headfirst doctor`"));
    }
    Ok(())
}

fn open_gpu(ordinal: u32) -> Result<Arc<Context>> {
    available(ordinal)?;
    let gpu = cuda::gpu::Gpu::open(ordinal)?;
    gpu.check_usable()?;
    Ok(Context::new(&format!("cuda:{ordinal}"), Box::new(gpu)))
}

/// Buffers that a dropped tensor left, for the next tensor of about that size: fresh memory from the system costs a page fault
/// for every 4 KiB, which is more than many operations cost.
#[derive(Debug, Default)]
struct Pool {
    /// By capacity; none is empty.
    free: BTreeMap<usize, Vec<Vec<f32>>>,
}

impl Pool {
    /// Smaller buffers are the allocator's business.
    const SMALLEST: usize = 16 * 1024;
    /// A buffer is not spent on a request that needs less than this part of it.
    const LARGEST_EXCESS: usize = 4;

    /// A buffer of at least `elements` initialised, arbitrary elements.
    fn take(&mut self, elements: usize) -> Vec<f32> {
        if elements < Self::SMALLEST {
            return vec![0.0; elements];
        }
        let fitting = self.free.range(elements..=elements.saturating_mul(Self::LARGEST_EXCESS)).next();
        if let Some(capacity) = fitting.map(|(&capacity, _)| capacity) {
            return self.remove(capacity);
        }
        // What is free is too small (or far too large): give up as much of it as is asked for, largest first, so that the process
        // never holds much more than it once needed at the same time.
        let mut given_up = 0;
        while given_up < elements {
            let Some((&capacity, _)) = self.free.range(..elements).next_back() else { break };
            given_up += capacity;
            drop(self.remove(capacity));
        }
        vec![0.0; elements]
    }

    fn remove(&mut self, capacity: usize) -> Vec<f32> {
        let buffers = self.free.get_mut(&capacity).expect("the capacity was just found");
        let buffer = buffers.pop().expect("no empty list is kept");
        if buffers.is_empty() {
            self.free.remove(&capacity);
        }
        buffer
    }

    fn put(&mut self, mut buffer: Vec<f32>) {
        if buffer.capacity() >= Self::SMALLEST {
            let capacity = buffer.capacity();
            // Only the part beyond the old length is written: its elements were initialised once and then cut off.
            buffer.resize(capacity, 0.0);
            self.free.entry(capacity).or_default().push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_brought_in_again_and_again_takes_the_memory_of_one() {
        let device = Device::cpu();
        for _ in 0..10 {
            drop(crate::tensor::Tensor::from_vec(&device, &[20_000], vec![1.0; 20_000], Category::Activation));
        }
        let held: usize = device.pool().free.iter().map(|(capacity, buffers)| capacity * buffers.len()).sum();
        assert_eq!(held, 20_000);
    }

    #[test]
    fn the_ledger_knows_what_is_live_and_what_was_at_the_peak() {
        let ledger = Ledger::default();
        ledger.open(Category::Parameter, 100);
        ledger.open(Category::Activation, 50);
        ledger.close(Category::Activation, 50);
        ledger.open(Category::Workspace, 20);
        assert_eq!(ledger.live_total(), 120);
        assert_eq!(ledger.peak_total(), 150);
        assert_eq!(ledger.live(Category::Activation), 0);
        assert_eq!(ledger.peak(Category::Activation), 50);
        ledger.reset_peaks();
        assert_eq!(ledger.peak_total(), 120);
        assert_eq!(ledger.peak(Category::Activation), 0);
        assert_eq!(ledger.allocated(), 170);
    }

    #[test]
    fn the_pool_reuses_a_buffer_of_about_the_size_and_gives_up_what_is_too_small() {
        let mut pool = Pool::default();
        let large = Pool::SMALLEST * 8;
        let buffer = pool.take(large);
        let address = buffer.as_ptr();
        pool.put(buffer);
        let again = pool.take(large / 2);
        assert_eq!(again.as_ptr(), address);
        pool.put(again);
        let small = pool.take(Pool::SMALLEST);
        assert_ne!(small.as_ptr(), address, "a small request does not spend a large buffer");
        let larger = pool.take(large * 2);
        assert_eq!(larger.len(), large * 2);
        assert!(pool.free.is_empty(), "the buffer that was too small went back to the system");
    }

    #[test]
    fn an_unknown_device_is_an_error_that_lists_the_known() {
        let message = open("gpu").unwrap_err().to_string();
        assert!(message.contains("gpu") && message.contains("--device auto, cpu, cuda"), "{message}");
    }
}
