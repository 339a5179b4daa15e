//! Log-softmax, cross entropy and arg max over rows of logits: `kernels/softmax.cu`, the same mathematics as `backend::cpu::softmax` and
//! `backend::cpu::cross_entropy`.

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::run;
use super::matmul::{Operand, Storage};

const FILE: &str = "softmax";
const WARP: usize = 32;
/// Vectors of 16 bytes that a thread reads at once.
const UNROLLED: usize = 4;
/// The most threads that a row gets: more bytes in flight than the memory's latency needs; for bf16 fewer, so that three blocks share a
/// multiprocessor.
const THREADS_F32: usize = 1024;
const THREADS_BF16: usize = 512;
/// Shared memory in which a block meets.
const SCRATCH: usize = 2 * WARP * size_of::<f32>();

/// A factor: a number known when work is submitted, times one in device memory (f32) that is read when it runs.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub value: f32,
    pub factor: Option<Pointer>,
}

impl Scale {
    pub const ONE: Scale = Scale { value: 1.0, factor: None };

    pub(super) fn arguments(self) -> [Argument; 2] {
        [Argument::Float(self.value), optional(self.factor)]
    }
}

fn optional(pointer: Option<Pointer>) -> Argument {
    pointer.map_or(Argument::NONE, Argument::Pointer)
}

/// What the probabilities of a row are drawn to.
#[derive(Debug, Clone, Copy)]
pub enum Targets {
    /// `[rows]`, i32, below `columns`: (1 - smoothing) at the label, and smoothing times the prior. A row with a label below 0
    /// ([`IGNORED`](crate::backend::cpu::cross_entropy::IGNORED) as an i32) is left out: no loss, no gradient.
    Labels {
        labels: Pointer,
        smoothing: f32,
        /// `[columns]`, f32, adds up to 1; none: uniform.
        prior: Option<Pointer>,
    },
    /// `[rows, columns]`, f32, every row adds up to 1.
    Distributions(Pointer),
}

#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy {
    /// `[rows, columns]`, rows one behind the other or further apart.
    pub logits: Operand,
    pub rows: usize,
    pub columns: usize,
    pub targets: Targets,
}

/// -sum of q ln softmax(logits) of every row into `losses`: `[rows]`, f32; with `gradient`, the gradient of the sum of the losses times that
/// scale takes the place of the logits.
pub fn cross_entropy(context: &Context, batch: &CrossEntropy, losses: Pointer, gradient: Option<Scale>) {
    if batch.rows == 0 || batch.columns == 0 {
        return;
    }
    let (kernel, most) = match batch.logits.storage {
        Storage::F32 => ("cross_entropy_f32", THREADS_F32),
        Storage::Bf16 => ("cross_entropy_bf16", THREADS_BF16),
    };
    let (labels, distributions, smoothing, prior) = match batch.targets {
        Targets::Labels { labels, smoothing, prior } => {
            (Argument::Pointer(labels), Argument::NONE, smoothing, optional(prior))
        }
        Targets::Distributions(rows) => (Argument::NONE, Argument::Pointer(rows), 0.0, Argument::NONE),
    };
    let row = (batch.columns * batch.logits.storage.bytes()).next_multiple_of(16);
    // Only what is read a second time is worth keeping.
    let is_dense = smoothing != 0.0 || matches!(batch.targets, Targets::Distributions(_));
    let is_resident =
        (gradient.is_some() || is_dense) && SCRATCH + row <= context.properties().shared_per_block as usize;
    let launch = by_rows(batch.rows, row, most).shared(SCRATCH + if is_resident { row } else { 0 });
    let [scale, factor] = gradient.unwrap_or(Scale::ONE).arguments();
    let arguments = [
        Argument::Pointer(batch.logits.pointer),
        Argument::long(batch.logits.row_stride),
        labels,
        distributions,
        prior,
        Argument::Pointer(losses),
        Argument::Float(smoothing),
        scale,
        factor,
        Argument::int(batch.columns),
        Argument::flag(gradient.is_some()),
        Argument::flag(is_resident),
    ];
    run(context, FILE, kernel, &launch, &arguments);
}

/// A block a row of so many bytes, of at most `most` threads.
fn by_rows(rows: usize, bytes: usize, most: usize) -> Launch {
    let threads = bytes.div_ceil(16 * UNROLLED).next_multiple_of(WARP).min(most);
    Launch::blocks(u32::try_from(rows).unwrap_or(u32::MAX), threads as u32)
}

/// y = x - ln sum exp(x) in every row; x, y: `[rows, columns]`, f32, and they may be the same.
pub fn log_softmax(context: &Context, x: Pointer, y: Pointer, rows: usize, columns: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    let launch = by_rows(rows, columns * size_of::<f32>(), THREADS_F32).shared(SCRATCH);
    let arguments = [Argument::Pointer(x), Argument::Pointer(y), Argument::int(columns)];
    run(context, FILE, "log_softmax_forward", &launch, &arguments);
}

/// dx = dy - exp(y) sum(dy) in every row; y is what [`log_softmax`] gave. All: `[rows, columns]`, f32; dx may be dy.
pub fn log_softmax_backward(context: &Context, y: Pointer, dy: Pointer, dx: Pointer, rows: usize, columns: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    let launch = by_rows(rows, columns * size_of::<f32>(), THREADS_F32).shared(SCRATCH);
    let arguments = [Argument::Pointer(y), Argument::Pointer(dy), Argument::Pointer(dx), Argument::int(columns)];
    run(context, FILE, "log_softmax_backward", &launch, &arguments);
}

/// `scale` times the sum of `count` losses (f32) into `total` (f32), summed in f64 in an order that `count` alone decides.
pub fn total(context: &Context, losses: Pointer, count: usize, scale: f32, total: Pointer) {
    let threads = count.next_multiple_of(WARP).clamp(WARP, THREADS_F32);
    let launch = Launch::blocks(1, threads as u32).shared(WARP * size_of::<f64>());
    let arguments = [Argument::Pointer(losses), Argument::Pointer(total), Argument::Float(scale), Argument::int(count)];
    run(context, FILE, "softmax_total", &launch, &arguments);
}

#[cfg(all(test, feature = "emulator"))]
#[path = "softmax_tests.rs"]
mod tests;
