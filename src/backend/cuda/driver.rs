//! What the CUDA backend asks of a GPU: memory, launches, graphs. [`super::gpu`] does it with NVIDIA's driver, `super::emulated` on the CPU in tests.
//!
//! Everything runs in order on one stream, but for what is sent in beside it. Errors of a GPU are sticky and may belong to earlier work: see [`super::context::Context`].

use super::matmul::Product;
use super::products::Products;
use crate::error::Result;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::mem::discriminant;

/// An address in device memory.
pub type Pointer = u64;

/// An address in memory of the host that the device reads and writes by itself.
pub type HostPointer = u64;

/// A kernel, as [`Driver::function`] found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Function(pub u64);

/// A list of work that was captured and can be run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Graph(pub u64);

/// A point in the work of a lane, to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event(pub u64);

/// Work of one lane runs in order; lanes run side by side, unless one awaits a signal of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Everything but [`Driver::send`].
    Kernels,
    Copies,
}

/// How many threads run a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Launch {
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// All blocks run at the same time and may meet in `grid_barrier`.
    pub cooperative: bool,
}

impl Launch {
    /// Blocks of `threads` threads, one thread for each of `count` things, at most `blocks` blocks (the kernel strides over the rest).
    pub fn over(count: usize, threads: u32, blocks: u32) -> Self {
        let wanted = u32::try_from(count.div_ceil(threads as usize)).unwrap_or(u32::MAX);
        Self::blocks(wanted.clamp(1, blocks), threads)
    }

    pub fn blocks(blocks: u32, threads: u32) -> Self {
        Launch { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared: 0, cooperative: false }
    }

    pub fn shared(self, bytes: usize) -> Self {
        Launch { shared: u32::try_from(bytes).unwrap_or(u32::MAX), ..self }
    }

    pub fn cooperative(self) -> Self {
        Launch { cooperative: true, ..self }
    }
}

/// A kernel's argument. Each travels in a slot of eight bytes. Equal are those with equal bits.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    Pointer(Pointer),
    Int(i32),
    Unsigned(u32),
    Long(i64),
    Float(f32),
}

impl PartialEq for Argument {
    fn eq(&self, other: &Self) -> bool {
        discriminant(self) == discriminant(other) && self.slot() == other.slot()
    }
}

impl Eq for Argument {}

impl Hash for Argument {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.slot().hash(state);
    }
}

impl Argument {
    /// An absent operand: the null pointer.
    pub const NONE: Argument = Argument::Pointer(0);

    /// What [`Argument::int`] makes of a number that is too large: [`super::context::Context::launch`] runs no kernel with it.
    pub const TOO_LARGE: Argument = Argument::Int(i32::MAX);

    /// A size or index below 2^31 - 1.
    pub fn int(value: usize) -> Self {
        i32::try_from(value).map_or(Argument::TOO_LARGE, Argument::Int)
    }

    pub fn long(value: usize) -> Self {
        Argument::Long(i64::try_from(value).unwrap_or(i64::MAX))
    }

    pub fn flag(value: bool) -> Self {
        Argument::Int(i32::from(value))
    }

    /// The slot: the value in its first bytes (this is a little-endian format, as every machine with an NVIDIA GPU).
    pub fn slot(self) -> u64 {
        match self {
            Argument::Pointer(pointer) => pointer,
            Argument::Int(value) => u64::from(value as u32),
            Argument::Unsigned(value) => u64::from(value),
            Argument::Long(value) => value as u64,
            Argument::Float(value) => u64::from(value.to_bits()),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Argument::Pointer(_) | Argument::Long(_) => 8,
            Argument::Int(_) | Argument::Unsigned(_) | Argument::Float(_) => 4,
        }
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    pub name: String,
    /// Major and minor compute capability.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may ask for.
    pub shared_per_block: u32,
    /// Bytes of device memory.
    pub memory: u64,
    /// Whether all blocks of a launch can be made to run at the same time.
    pub cooperative: bool,
}

pub trait Driver: Debug + Send + Sync {
    fn properties(&self) -> &Properties;

    /// Bytes of device memory that are free now.
    fn free_memory(&self) -> Result<u64>;

    /// Device memory, aligned to 256 bytes, not initialised.
    fn allocate(&self, bytes: usize) -> Result<Pointer>;

    /// Whether what is taken from the arena begins as NaN, so that tests see what is read before it was written.
    fn poisons_memory(&self) -> bool {
        false
    }

    /// # Safety
    /// `pointer` came from [`Driver::allocate`] and nothing uses it any more, work in flight included.
    unsafe fn release(&self, pointer: Pointer);

    /// Copies from the host, in order with the launches; `from` may be changed as soon as this returns.
    ///
    /// # Safety
    /// `to` holds as many bytes.
    unsafe fn upload(&self, to: Pointer, from: &[u8]) -> Result<()>;

    /// Waits for all work, then copies to the host.
    ///
    /// # Safety
    /// `from` holds as many bytes.
    unsafe fn download(&self, to: &mut [u8], from: Pointer) -> Result<()>;

    /// # Safety
    /// `to` holds as many bytes.
    unsafe fn fill(&self, to: Pointer, byte: u8, bytes: usize) -> Result<()>;

    /// # Safety
    /// Both hold as many bytes.
    unsafe fn copy(&self, to: Pointer, from: Pointer, bytes: usize) -> Result<()>;

    /// The kernel `name` of the file `kernels/FILE.cu`.
    ///
    /// # Errors
    /// If the binary has no code for this device, or no such kernel.
    fn function(&self, file: &'static str, name: &'static str) -> Result<Function>;

    /// How many blocks of this launch the whole device can hold at the same time.
    fn resident_blocks(&self, function: Function, launch: &Launch) -> Result<u32>;

    /// # Safety
    /// The arguments are those that the kernel declares, its pointers hold what it reads and writes.
    unsafe fn launch(&self, function: Function, launch: &Launch, arguments: &[Argument]) -> Result<()>;

    /// Whether the vendor's library is there and takes this matrix product. Asked before the product is run or captured.
    fn library_takes(&self, _: &Product) -> Result<bool> {
        Ok(false)
    }

    /// A product that the vendor's library takes.
    ///
    /// # Safety
    /// The pointers hold what the product reads and writes.
    unsafe fn library_product(&self, _: &Product) -> Result<()> {
        Ok(())
    }

    /// Bytes of device memory that the vendor's library holds, if it is there; it is loaded to answer.
    fn library_memory(&self) -> u64 {
        0
    }

    /// Who computes products here, with the choices made so far.
    fn products(&self) -> Products {
        Products::of_kernels()
    }

    /// Has products computed as they were then, if that was here; else no choice is taken over. Called before the first product.
    fn recall_products(&self, _: &Products) {}

    /// What works otherwise than it was meant to, without an error; told once.
    fn take_note(&self) -> Option<String> {
        None
    }

    /// Memory of the host that the device reads and writes by itself, not initialised.
    fn allocate_host(&self, bytes: usize) -> Result<HostPointer>;

    /// # Safety
    /// `pointer` came from [`Driver::allocate_host`] and nothing uses it any more, work in flight included.
    unsafe fn release_host(&self, pointer: HostPointer);

    /// Copies from such memory, in [`Lane::Copies`].
    ///
    /// # Safety
    /// Both hold as many bytes, which nobody changes before the copy is done.
    unsafe fn send(&self, to: Pointer, from: HostPointer, bytes: usize) -> Result<()>;

    /// Copies to such memory, in [`Lane::Kernels`], without waiting.
    ///
    /// # Safety
    /// Both hold as many bytes, and nobody uses `to` before the copy is done.
    unsafe fn receive(&self, to: HostPointer, from: Pointer, bytes: usize) -> Result<()>;

    fn event(&self) -> Result<Event>;

    fn release_event(&self, event: Event);

    /// The event happens when the lane's work so far is done.
    fn signal(&self, event: Event, lane: Lane) -> Result<()>;

    /// The lane's later work runs after the event.
    fn await_signal(&self, event: Event, lane: Lane) -> Result<()>;

    /// Waits for the event.
    fn wait_for(&self, event: Event) -> Result<()>;

    /// Waits until all work is done.
    fn synchronize(&self) -> Result<()>;

    /// From now on launches, copies on the device and fills are noted and not run. Whatever waits or meets the host is not allowed until the end.
    fn begin_capture(&self) -> Result<()>;

    fn end_capture(&self) -> Result<Graph>;

    /// Runs what was captured.
    ///
    /// # Safety
    /// All memory that the captured work names is still there.
    unsafe fn replay(&self, graph: Graph) -> Result<()>;

    fn release_graph(&self, graph: Graph);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::context::Context;
    use crate::backend::cuda::counted::Counted;

    #[test]
    fn a_size_that_a_kernel_cannot_count_to_is_an_error_that_names_it_and_never_another_size() {
        let properties = Properties {
            name: "counted".into(),
            capability: (9, 0),
            multiprocessors: 4,
            shared_per_block: 227 << 10,
            memory: 8 << 30,
            cooperative: true,
        };
        let context = Context::new("counted", Box::new(Counted::posing(properties)));
        let largest = i32::MAX as usize - 1;
        for (size, is_taken) in [(0, true), (largest, true), (largest + 1, false), (1 << 31, false), (1 << 40, false)] {
            // SAFETY: nothing runs on a device that counts.
            unsafe { context.launch("elementwise", "fill", &Launch::blocks(1, 32), &[Argument::int(size)]) };
            let error = context.check().err().map(|error| error.to_string());
            assert_eq!(error.is_none(), is_taken, "{size}");
            assert!(error.is_none_or(|error| error.contains("kernel fill") && error.contains("2^31")), "{size}");
        }
        assert_eq!(context.counters().launches, 2);
    }
}
