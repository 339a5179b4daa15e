//! Work that is ready to be repeated, and what it is made of: tensors of random numbers, as many copies as defeat a cache.

use crate::backend::cuda::context::Recording;
use crate::device::{Backend, Category, Device};
use crate::error::Result;
use crate::random::Philox;
use crate::tensor::Tensor;

/// More than twice the second-level cache of any GPU today (a B200 has 126 MB).
const ROTATED: usize = 256 << 20;
const MOST_COPIES: usize = 64;

/// Work that can be repeated.
pub struct Prepared {
    /// Runs it once, on the copy of its operands with this number. Counts its operations on the device.
    pub run: Box<dyn FnMut(usize) -> Result<()>>,
    /// Brings back what the runs overwrote, where another run would otherwise compute something else; not timed.
    pub restore: Option<Box<dyn FnMut()>>,
    pub copies: usize,
    /// That it only launches, so that many runs can be one graph on a GPU.
    pub launches_only: bool,
    /// The least that must move between memory and processor: every operand once, every result once.
    pub bytes: u64,
    /// What a GPU waits for at least: see [`EXCHANGE`] and [`BARRIER`].
    pub waits: f64,
}

/// Seconds until what one multiprocessor of a GPU has computed is read by another: a time step of a recurrence over the whole chip. Not measured
/// here; 0.6 to 0.9 microseconds is what an H200 needs through distributed shared memory, and through the second-level cache it is more.
pub const EXCHANGE: f64 = 0.6e-6;
/// Seconds until a block's threads have met, and read what the others wrote: a time step within a multiprocessor. An estimate too.
pub const BARRIER: f64 = 0.03e-6;

impl Prepared {
    /// Work on one copy.
    pub fn new(bytes: usize, run: impl FnMut(usize) -> Result<()> + 'static) -> Self {
        let run = Box::new(run);
        Prepared { run, restore: None, copies: 1, launches_only: false, bytes: bytes as u64, waits: 0.0 }
    }

    /// A kernel on as many copies as `operands` has.
    pub fn kernel<T: 'static>(bytes: usize, mut operands: Vec<T>, mut run: impl FnMut(&mut T) + 'static) -> Self {
        let copies = operands.len();
        let run = move |copy: usize| {
            run(&mut operands[copy]);
            Ok(())
        };
        Prepared { copies, launches_only: true, ..Self::new(bytes, run) }
    }

    /// Work through the tape on as many copies as `operands` has. It is recorded as the trainer's steps are, so on a GPU the work on each copy is
    /// a graph of its own.
    pub fn recorded<T: 'static>(
        device: &Device,
        bytes: usize,
        mut operands: Vec<T>,
        mut run: impl FnMut(&mut T) -> Result<()> + 'static,
    ) -> Self {
        let (device, copies) = (device.clone(), operands.len());
        let run = move |copy: usize| {
            let recording = device.record();
            run(&mut operands[copy])?;
            recording.into_iter().for_each(Recording::run);
            device.check()
        };
        Prepared { copies, ..Self::new(bytes, run) }
    }

    /// Has so many steps, each of which waits for the one before for so many seconds.
    pub fn waiting(self, steps: usize, seconds: f64) -> Self {
        Prepared { waits: steps as f64 * seconds, ..self }
    }
}

/// Where operands are made, and how often.
#[derive(Clone)]
pub struct Bench {
    pub device: Device,
    /// Whether operands rotate. They do not on the CPU, as its peers' do not, nor where each row runs once.
    pub rotate: bool,
}

impl Bench {
    /// Copies of operands that take `bytes` each: together more than a cache holds.
    pub fn copies<T>(&self, bytes: usize, make: impl Fn(&Self) -> T) -> Vec<T> {
        self.copies_at_least(1, bytes, make)
    }

    /// The same, at least so many: a repetition of work that spoils its operands has no more runs than there are copies.
    pub fn copies_at_least<T>(&self, fewest: usize, bytes: usize, make: impl Fn(&Self) -> T) -> Vec<T> {
        let wanted = (ROTATED.div_ceil(bytes.max(1))).clamp(fewest, MOST_COPIES);
        let rotate = self.rotate && matches!(self.device.backend(), Backend::Cuda(_));
        (0..if rotate { wanted } else { 1 }).map(|_| make(self)).collect()
    }

    pub fn normal(&self, shape: &[usize], name: &str) -> Tensor {
        // Outlives the steps that a graph may be made of.
        Tensor::from_vec(&self.device, shape, self.numbers(name, shape.iter().product()), Category::Parameter)
    }

    /// A result, whose elements are arbitrary.
    pub fn room(&self, shape: &[usize]) -> Tensor {
        Tensor::zeros(&self.device, shape, Category::Parameter)
    }

    /// Standard normal numbers; none on the device `plan`.
    pub fn numbers(&self, name: &str, count: usize) -> Vec<f32> {
        // Drawing a number takes longer than most kernels need for it: a table, begun anywhere, is random enough to measure with.
        const TABLE: usize = 1 << 16;
        let mut stream = Philox::named(1, name).stream();
        let table: Vec<f32> = (0..TABLE.min(count)).map(|_| stream.normal() as f32).collect();
        (0..count).map(|k| table[(k + k / TABLE * 7919) % TABLE]).collect()
    }

    /// Numbers below `bound`, from `first`.
    pub fn below(&self, name: &str, count: usize, first: usize, bound: usize) -> Vec<u32> {
        let mut stream = Philox::named(1, name).stream();
        let span = bound.saturating_sub(first).max(1) as u32;
        (0..count).map(|_| first as u32 + stream.below(span)).collect()
    }

    /// Labels of every sequence; 0 is the blank.
    pub fn labels(&self, sequences: usize, labels: usize, symbols: usize) -> Vec<Vec<u32>> {
        (0..sequences).map(|sequence| self.below(&format!("labels of {sequence}"), labels, 1, symbols)).collect()
    }
}

/// Bytes of so many f32.
pub fn floats(count: usize) -> usize {
    count * size_of::<f32>()
}
