//! Matrix products: which kernel of `kernels/matmul.cu` computes one, with which tiles and splits, and its launch.

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise;
use crate::backend::cpu::activation::Activation;
use std::sync::Arc;

/// What a product computes with. Sums are f32 in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Arithmetic {
    /// Exact products of f32.
    #[default]
    F32,
    /// Operands rounded to 11 bits of mantissa (ties away from zero), on tensor cores.
    Tf32,
    /// Operands rounded to 8 bits of mantissa (ties to even), on tensor cores.
    Bf16,
}

/// How an operand's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Storage {
    #[default]
    F32,
    /// Only in products of [`Arithmetic::Bf16`].
    Bf16,
}

impl Storage {
    /// Of an element.
    pub fn bytes(self) -> usize {
        match self {
            Storage::F32 => 4,
            Storage::Bf16 => 2,
        }
    }
}

/// A strided view of a matrix on the device: element (i, j) is the one at `i * row_stride + j * column_stride`. One of the strides is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    pub pointer: Pointer,
    pub row_stride: usize,
    pub column_stride: usize,
    pub storage: Storage,
}

impl Operand {
    /// Rows of f32, `row_stride` apart.
    pub fn rows(pointer: Pointer, row_stride: usize) -> Self {
        Operand { pointer, row_stride, column_stride: 1, storage: Storage::F32 }
    }

    /// The transpose, without moving anything.
    pub fn transposed(self) -> Self {
        Operand { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    /// The same places, where bf16 are stored.
    pub fn bf16(self) -> Self {
        Operand { storage: Storage::Bf16, ..self }
    }
}

/// An operand as the kernels see it: rows of m or n beside k.
#[derive(Debug, Clone, Copy)]
struct Factor {
    pointer: Pointer,
    /// Of the index that is not contiguous.
    stride: usize,
    rows: usize,
    k: usize,
    along_k: bool,
    storage: Storage,
}

impl Factor {
    /// `row_stride` is that of m or n.
    fn new(operand: &Operand, rows: usize, k: usize, row_stride: usize, k_stride: usize) -> Factor {
        debug_assert!(k_stride == 1 || row_stride == 1, "an operand of a product has no contiguous index");
        let along_k = k_stride == 1;
        let Operand { pointer, storage, .. } = *operand;
        Factor { pointer, stride: if along_k { row_stride } else { k_stride }, rows, k, along_k, storage }
    }

    fn arguments(&self) -> [Argument; 3] {
        let bytes = self.storage.bytes();
        let length = if self.along_k { self.k } else { self.rows };
        let fits = |width: usize| {
            self.pointer.is_multiple_of((width * bytes) as u64)
                && self.stride.is_multiple_of(width)
                && length.is_multiple_of(width)
        };
        let width = [4, 2].into_iter().find(|&width| fits(width)).unwrap_or(1);
        let contiguous = if self.along_k { CONTIGUOUS_ALONG_K } else { 0 };
        let storage = if self.storage == Storage::Bf16 { STORED_AS_BF16 } else { 0 };
        let form = Argument::Int(width as i32 | contiguous | storage);
        [Argument::Pointer(self.pointer), Argument::long(self.stride), form]
    }

    /// As a matrix [rows, k].
    fn operand(&self) -> Operand {
        let operand = Operand { storage: self.storage, ..Operand::rows(self.pointer, self.stride) };
        if self.along_k { operand } else { operand.transposed() }
    }

    /// Packs it at `to`, unless it is there; what is bf16 and lies as if packed, stays where it is.
    fn packed(self, context: &Arc<Context>, arithmetic: Arithmetic, to: Pointer) -> Factor {
        let aligned = self.pointer.is_multiple_of(16) && self.stride.is_multiple_of(8);
        if self.pointer == to {
            return self;
        }
        if self.storage == Storage::Bf16 && self.along_k && aligned && self.k.is_multiple_of(DEPTH_UNIT) {
            return self;
        }
        let padded = self.k.next_multiple_of(DEPTH_UNIT);
        let (kernel, storage) = match arithmetic {
            Arithmetic::Bf16 => ("matmul_pack_bf16", Storage::Bf16),
            Arithmetic::F32 | Arithmetic::Tf32 => ("matmul_pack_tf32", Storage::F32),
        };
        let rest = [Argument::int(self.rows), Argument::int(self.k), Argument::Pointer(to), Argument::int(padded)];
        let blocks = [padded.div_ceil(PACKED) as u32, self.rows.div_ceil(PACKED) as u32, 1];
        let launch = Launch { blocks, ..Launch::blocks(1, 256) }.shared(PACKED * (PACKED + 1) * size_of::<f32>());
        if padded > 0 {
            // SAFETY: the kernel's arguments; the workspace holds the packed operand.
            unsafe { context.launch("matmul", kernel, &launch, &[&self.arguments()[..], &rest].concat()) };
        }
        Factor { pointer: to, stride: padded, along_k: true, storage, ..self }
    }
}

// As in kernels/matmul.cu.
const CONTIGUOUS_ALONG_K: i32 = 8;
const STORED_AS_BF16: i32 = 16;
const WIDE: i32 = 1;
const WRITTEN_AS_BF16: i32 = 2;
const ROW_BYTES: usize = 64;
const STRIP_ROWS: usize = 16;
const PACKED: usize = 64;

/// One kernel: a block's tile of c.
#[derive(Debug, PartialEq, Eq)]
struct Tile {
    kernel: &'static str,
    height: usize,
    width: usize,
    /// Columns of a warp's part.
    warp_width: usize,
    threads: u32,
    /// Blocks that a multiprocessor holds, as the kernel promises.
    resident: usize,
    /// Whether its operands are packed first.
    packed: bool,
}

const fn tile(
    kernel: &'static str,
    [height, width, warp_width]: [usize; 3],
    threads: u32,
    resident: usize,
    packed: bool,
) -> Tile {
    Tile { kernel, height, width, warp_width, threads, resident, packed }
}

const F32_TILES: [Tile; 2] =
    [tile("matmul_f32_128x64", [128, 64, 64], 128, 3, false), tile("matmul_f32_64x64", [64, 64, 64], 64, 6, false)];
const TF32_TILES: [Tile; 5] = [
    tile("matmul_tf32_256x128", [256, 128, 64], 256, 1, false),
    tile("matmul_tf32_128x128", [128, 128, 64], 128, 2, false),
    tile("matmul_tf32_64x64", [64, 64, 32], 128, 4, false),
    tile("matmul_tf32_packed_256x128", [256, 128, 64], 256, 1, true),
    tile("matmul_tf32_packed_128x128", [128, 128, 64], 128, 2, true),
];
const BF16_TILES: [Tile; 5] = [
    tile("matmul_bf16_256x128", [256, 128, 64], 256, 1, false),
    tile("matmul_bf16_128x128", [128, 128, 64], 128, 2, false),
    tile("matmul_bf16_64x64", [64, 64, 32], 128, 4, false),
    tile("matmul_bf16_packed_256x128", [256, 128, 64], 256, 1, true),
    tile("matmul_bf16_packed_128x128", [128, 128, 64], 128, 2, true),
];

impl Arithmetic {
    fn tiles(self) -> &'static [Tile] {
        match self {
            Arithmetic::F32 => &F32_TILES,
            Arithmetic::Tf32 => &TF32_TILES,
            Arithmetic::Bf16 => &BF16_TILES,
        }
    }

    /// Of an operand's element in shared memory, and packed.
    fn bytes(self) -> usize {
        match self {
            Arithmetic::F32 | Arithmetic::Tf32 => 4,
            Arithmetic::Bf16 => 2,
        }
    }

    /// Products that a multiprocessor makes per clock, about.
    fn rate(self) -> f64 {
        match self {
            Arithmetic::F32 => 128.0,
            Arithmetic::Tf32 => 600.0,
            Arithmetic::Bf16 => 1200.0,
        }
    }
}

impl Tile {
    fn shared(&self) -> usize {
        let stages = if self.packed { 4 } else { 2 } * (self.height + self.width) * ROW_BYTES;
        let strips = self.threads as usize / 32 * STRIP_ROWS * (self.warp_width + 8) * size_of::<f32>();
        stages.max(strips)
    }
}

/// A tile, and how many parts k is cut into.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Plan {
    tile: &'static Tile,
    splits: usize,
    /// Of k; the last split may be shorter.
    split_length: usize,
}

/// Splits that are tried.
const SPLITS: [usize; 14] = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48];
/// Of k, for one split at least: below, writing its sums costs more than it gains.
const SHORTEST_SPLIT: usize = 128;
/// A whole multiple of every stage's depth: splits are so long, and so is what packed rows are padded to.
const DEPTH_UNIT: usize = 32;
/// Bytes of sums of splits: a limit on the workspace, and what stays in the cache.
const LARGEST_SPLIT_SUMS: usize = 96 << 20;
const CACHED_SPLIT_SUMS: usize = 32 << 20;

/// The machine that the choice is made for: an H200, in multiprocessors and their clocks. The choice depends on the sizes alone, so that the
/// bits of a product do too: tiles do not show in them, splits do.
const MULTIPROCESSORS: usize = 132;
/// Bytes that a multiprocessor gets from the L2 cache per clock, and from memory, about.
const CACHE_RATE: f64 = 32.0;
const MEMORY_RATE: f64 = 18.0;
/// From a stage's loads to its products, when nothing else runs meanwhile, and what of it a single block cannot cover with its arithmetic.
/// Packed operands come several stages ahead.
const STAGE_LATENCY: f64 = 700.0;
const STAGE_STORE: f64 = 150.0;
const PACKED_STAGE_LATENCY: f64 = 230.0;
/// To begin a block.
const BLOCK_LATENCY: f64 = 1500.0;
/// Of a launch behind another.
const LAUNCH_LATENCY: f64 = 3000.0;

impl Plan {
    fn new(m: usize, n: usize, k: usize, arithmetic: Arithmetic) -> Plan {
        let allowed = |splits: usize| {
            splits == 1 || (k >= splits * SHORTEST_SPLIT && splits * m * n * size_of::<f32>() <= LARGEST_SPLIT_SUMS)
        };
        let tiles = arithmetic.tiles();
        let mut best = (f64::INFINITY, Plan::with(&tiles[0], k, 1));
        for tile in tiles {
            for splits in SPLITS.into_iter().filter(|&splits| allowed(splits)) {
                let plan = Plan::with(tile, k, splits);
                let clocks = plan.clocks(m, n, k, arithmetic);
                // The first of equals: the largest tile, the fewest splits.
                if clocks < best.0 {
                    best = (clocks, plan);
                }
            }
        }
        best.1
    }

    fn with(tile: &'static Tile, k: usize, splits: usize) -> Plan {
        let split_length = k.div_ceil(splits).next_multiple_of(DEPTH_UNIT).max(DEPTH_UNIT);
        Plan { tile, splits: k.div_ceil(split_length).max(1), split_length }
    }

    /// About how long it takes: blocks that share a multiprocessor share its arithmetic and its way to the cache, a block alone waits for
    /// every stage. A model, good for comparing plans only.
    fn clocks(&self, m: usize, n: usize, k: usize, arithmetic: Arithmetic) -> f64 {
        let Tile { height, width, resident, packed, .. } = *self.tile;
        let (area, edges) = ((height * width) as f64, (height + width) as f64);
        let depth = ROW_BYTES / arithmetic.bytes();
        let stages = k.min(self.split_length).div_ceil(depth) as f64;
        let bytes = if packed { arithmetic.bytes() } else { 4 };
        let stage = (area * depth as f64 / arithmetic.rate()).max(edges * (depth * bytes) as f64 / CACHE_RATE);
        let latency = if packed { PACKED_STAGE_LATENCY } else { STAGE_LATENCY };
        let round = |blocks: usize| {
            let store = if packed || blocks > 1 { 0.0 } else { STAGE_STORE };
            let writing = area * 4.0 / CACHE_RATE;
            match blocks {
                0 => 0.0,
                _ => stages * (blocks as f64 * stage + store).max(latency) + BLOCK_LATENCY + blocks as f64 * writing,
            }
        };
        let blocks = (m.div_ceil(height) * n.div_ceil(width) * self.splits).div_ceil(MULTIPROCESSORS);
        let product = (blocks / resident) as f64 * round(resident) + round(blocks % resident);
        let pass = |bytes: usize, rate: f64| LAUNCH_LATENCY + bytes as f64 / (MULTIPROCESSORS as f64 * rate);
        let sum = if self.splits == 1 {
            0.0
        } else {
            let sums = self.splits * m * n * size_of::<f32>();
            let rate = if sums <= CACHED_SPLIT_SUMS { CACHE_RATE } else { MEMORY_RATE };
            pass(sums + m * n * size_of::<f32>(), rate)
        };
        let pack = |elements: usize| pass(elements * (4 + arithmetic.bytes()), MEMORY_RATE);
        let packing = if packed { pack(m * k) + pack(k * n) } else { 0.0 };
        product + sum + packing
    }

    /// Bytes: the sums of the splits, and the packed operands.
    fn workspace(&self, m: usize, n: usize, k: usize, arithmetic: Arithmetic) -> [usize; 3] {
        let sums = if self.splits == 1 { 0 } else { (self.splits * m * n * size_of::<f32>()).next_multiple_of(16) };
        let packed = |rows: usize| {
            if self.tile.packed { rows * k.next_multiple_of(DEPTH_UNIT) * arithmetic.bytes() } else { 0 }
        };
        [sums, packed(m), packed(n)]
    }
}

/// Bytes of workspace that a product takes, aligned to 16 bytes.
pub fn workspace(m: usize, n: usize, k: usize, arithmetic: Arithmetic) -> usize {
    Plan::new(m, n, k, arithmetic).workspace(m, n, k, arithmetic).iter().sum()
}

/// c = a b + bias, or c += a b + bias: a `[m, k]`, b `[k, n]`, c `[m, n]` with rows `c_row_stride >= n` apart, which overlaps neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Operand,
    pub b: Operand,
    pub c: Pointer,
    pub c_row_stride: usize,
    pub c_storage: Storage,
    pub accumulate: bool,
    /// `[n]`, stored as c is, added to every row; 0: none.
    pub bias: Pointer,
    pub arithmetic: Arithmetic,
}

/// c = a b, or c += a b: see [`Product`]. By NVIDIA's library where there is one, else by the engine's kernels.
///
/// The bits depend on shape and arithmetic alone, neither on strides nor on the device; the library's on its version and the device too.
#[allow(clippy::too_many_arguments)] // The shape of a product and its operands.
pub fn matmul(
    context: &Arc<Context>,
    m: usize,
    n: usize,
    k: usize,
    a: Operand,
    b: Operand,
    c: Pointer,
    c_row_stride: usize,
    accumulate: bool,
    arithmetic: Arithmetic,
    workspace: Pointer,
) {
    let c_storage = Storage::F32;
    let product = Product { m, n, k, a, b, c, c_row_stride, c_storage, accumulate, bias: 0, arithmetic };
    matmul_with(context, product, Activation::Identity, workspace);
}

/// c = activation(a b + bias), or activation(c + a b + bias). In one pass by the engine's kernels; where NVIDIA's library computes the product, an
/// activation is a pass of its own (its rectifier would turn NaN into 0).
pub fn matmul_with(context: &Arc<Context>, product: Product, activation: Activation, workspace: Pointer) {
    let Product { m, n, k, arithmetic, .. } = product;
    compute(context, product, activation, Plan::new(m, n, k, arithmetic), workspace, true);
}

/// `library`: whether NVIDIA's is asked first. Tests of the engine's kernels do not ask it.
fn compute(
    context: &Arc<Context>,
    mut product: Product,
    activation: Activation,
    plan: Plan,
    workspace: Pointer,
    library: bool,
) {
    let Product { m, n, k, a, b, arithmetic, .. } = product;
    if m == 0 || n == 0 {
        return;
    }
    let stored_as_bf16 = [a.storage, b.storage, product.c_storage].contains(&Storage::Bf16);
    debug_assert!(arithmetic == Arithmetic::Bf16 || !stored_as_bf16, "an exact product of bf16");
    debug_assert!((plan.splits == 1 && !plan.tile.packed) || workspace != 0, "a product without its workspace");
    // The library, too, is faster with bf16 than with f32 to be rounded; it does not mix them.
    let pack_first = plan.tile.packed && arithmetic == Arithmetic::Bf16;
    if library && !pack_first && by_library(context, &product, activation) {
        return;
    }
    let mut left = Factor::new(&a, m, k, a.row_stride, a.column_stride);
    let mut right = Factor::new(&b, n, k, b.column_stride, b.row_stride);
    if plan.tile.packed {
        let [sums, left_bytes, _] = plan.workspace(m, n, k, arithmetic);
        let left_packed = workspace + sums as u64;
        let right_packed = left_packed + left_bytes as u64;
        if library && pack_first {
            // What is bf16 already the library takes as it lies.
            let rounded = |factor: Factor, to| match factor.storage {
                Storage::F32 => factor.packed(context, arithmetic, to),
                Storage::Bf16 => factor,
            };
            left = rounded(left, left_packed);
            right = rounded(right, right_packed);
            product.a = left.operand();
            product.b = right.operand().transposed();
            if by_library(context, &product, activation) {
                return;
            }
        }
        left = left.packed(context, arithmetic, left_packed);
        right = right.packed(context, arithmetic, right_packed);
    }
    launch(context, &product, left, right, activation, plan, workspace);
}

/// Whether NVIDIA's library did it.
fn by_library(context: &Arc<Context>, product: &Product, activation: Activation) -> bool {
    // SAFETY: the caller of the product answers for the pointers.
    let computed = |product: &Product| unsafe { context.library_product(product) };
    if activation == Activation::Identity && computed(product) {
        return true;
    }
    // What follows the product is a pass over f32 that lie one behind the other.
    let Product { m, n, c, c_row_stride, c_storage, bias, .. } = *product;
    let follows = activation != Activation::Identity || bias != 0;
    if !follows || c_row_stride != n || c_storage != Storage::F32 || !computed(&Product { bias: 0, ..*product }) {
        return false;
    }
    elementwise::bias_activation(context, c, (bias != 0).then_some(bias), m * n, n, activation);
    true
}

fn launch(
    context: &Arc<Context>,
    product: &Product,
    left: Factor,
    right: Factor,
    activation: Activation,
    plan: Plan,
    workspace: Pointer,
) {
    let Product { m, n, k, c, c_row_stride, c_storage, accumulate, bias, .. } = *product;
    let Plan { tile, splits, split_length, .. } = plan;
    let partial_sums = if splits == 1 { 0 } else { workspace };
    let wide = c.is_multiple_of(4 * c_storage.bytes() as u64) && c_row_stride.is_multiple_of(4);
    let (rows, columns) = (m.div_ceil(tile.height) as u32, n.div_ceil(tile.width) as u32);
    let blocks = if splits == 1 {
        // Bands of tile rows: see the kernel.
        let band = rows.min(8);
        [band, columns, rows.div_ceil(band)]
    } else {
        [rows, columns, splits as u32]
    };
    let activation = Argument::Int(match activation {
        Activation::Identity => 0,
        Activation::Tanh => 1,
        Activation::Sigmoid => 2,
        Activation::Relu => 3,
    });
    let (written, sum) = match c_storage {
        Storage::F32 => (0, "matmul_sum_f32"),
        Storage::Bf16 => (WRITTEN_AS_BF16, "matmul_sum_bf16"),
    };
    let form = [Argument::Int(written | if wide { WIDE } else { 0 })];
    let output = [Argument::Pointer(c), Argument::long(c_row_stride)];
    let sizes = [Argument::int(m), Argument::int(n)];
    let ends = [Argument::Pointer(bias), activation, Argument::flag(accumulate)];
    let parts = [Argument::int(k), Argument::int(split_length), Argument::Pointer(partial_sums)];
    let arguments = [&left.arguments()[..], &right.arguments(), &output, &form, &sizes, &parts, &ends].concat();
    let shape = Launch { blocks, ..Launch::blocks(1, tile.threads) }.shared(tile.shared());
    // SAFETY: the kernel's arguments; the caller answers for the pointers.
    unsafe { context.launch("matmul", tile.kernel, &shape, &arguments) };
    if splits > 1 {
        let sums = [Argument::Pointer(partial_sums), Argument::int(splits)];
        let arguments = [&sums[..], &output, &sizes, &ends].concat();
        let shape = Launch::over(m * n, 256, 8 * MULTIPROCESSORS as u32);
        // SAFETY: as above.
        unsafe { context.launch("matmul", sum, &shape, &arguments) };
    }
}

#[cfg(all(test, feature = "emulator"))]
#[path = "matmul_tests.rs"]
mod tests;
