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
        let bytes = if self.storage == Storage::Bf16 { 2 } else { 4 };
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

    /// Packs it at `to`; what is bf16 and lies as if packed, stays where it is.
    fn packed(self, context: &Arc<Context>, arithmetic: Arithmetic, to: Pointer) -> Factor {
        let aligned = self.pointer.is_multiple_of(16) && self.stride.is_multiple_of(8);
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
const ROW_BYTES: usize = 64;
const STRIP_ROWS: usize = 16;
const PACKED: usize = 64;

/// What happens to a product's elements before they are written.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue {
    /// `[n]`, added to every row; 0: none.
    pub bias: Pointer,
    pub activation: Activation,
}

impl Epilogue {
    pub const NONE: Epilogue = Epilogue { bias: 0, activation: Activation::Identity };

    fn is_none(&self) -> bool {
        self.bias == 0 && self.activation == Activation::Identity
    }
}

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

/// c = a b, or c += a b: a `[m, k]`, b `[k, n]`, c `[m, n]` of f32 with rows `c_row_stride >= n` apart, which overlaps neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Operand,
    pub b: Operand,
    pub c: Pointer,
    pub c_row_stride: usize,
    pub accumulate: bool,
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
    let product = Product { m, n, k, a, b, c, c_row_stride, accumulate, arithmetic };
    compute(context, product, Epilogue::NONE, Plan::new(m, n, k, arithmetic), workspace, true);
}

/// c = activation(a b + bias), or activation(c + a b + bias), where c's rows lie one behind the other. In one pass by the engine's kernels; where
/// NVIDIA's library computes the product, the rest is a pass of its own.
pub fn matmul_with(context: &Arc<Context>, product: Product, epilogue: Epilogue, workspace: Pointer) {
    let Product { m, n, k, arithmetic, .. } = product;
    compute(context, product, epilogue, Plan::new(m, n, k, arithmetic), workspace, true);
}

/// `library`: whether NVIDIA's is asked first. Tests of the engine's kernels do not ask it.
fn compute(
    context: &Arc<Context>,
    mut product: Product,
    epilogue: Epilogue,
    plan: Plan,
    workspace: Pointer,
    library: bool,
) {
    let Product { m, n, k, a, b, arithmetic, .. } = product;
    if m == 0 || n == 0 {
        return;
    }
    let stored_as_bf16 = [a, b].iter().any(|operand| operand.storage == Storage::Bf16);
    debug_assert!(arithmetic == Arithmetic::Bf16 || !stored_as_bf16, "an exact product of bf16");
    debug_assert!((plan.splits == 1 && !plan.tile.packed) || workspace != 0, "a product without its workspace");
    // The library, too, is faster with bf16 than with f32 to be rounded; it does not mix them.
    let pack_first = plan.tile.packed && arithmetic == Arithmetic::Bf16;
    let by_library = |product: &Product| {
        // SAFETY: the caller answers for the pointers.
        let done = library && unsafe { context.library_product(product) };
        if done && !epilogue.is_none() {
            let bias = (epilogue.bias != 0).then_some(epilogue.bias);
            elementwise::bias_activation(context, product.c, bias, m * n, n, epilogue.activation);
        }
        done
    };
    if !pack_first && by_library(&product) {
        return;
    }
    let mut left = Factor::new(&a, m, k, a.row_stride, a.column_stride);
    let mut right = Factor::new(&b, n, k, b.column_stride, b.row_stride);
    if plan.tile.packed {
        let [sums, left_bytes, _] = plan.workspace(m, n, k, arithmetic);
        let left_packed = workspace + sums as u64;
        left = left.packed(context, arithmetic, left_packed);
        right = right.packed(context, arithmetic, left_packed + left_bytes as u64);
        product.a = left.operand();
        product.b = right.operand().transposed();
    }
    if !(pack_first && by_library(&product)) {
        launch(context, &product, left, right, epilogue, plan, workspace);
    }
}

fn launch(
    context: &Arc<Context>,
    product: &Product,
    left: Factor,
    right: Factor,
    epilogue: Epilogue,
    plan: Plan,
    workspace: Pointer,
) {
    let Product { m, n, k, c, c_row_stride, accumulate, .. } = *product;
    let Plan { tile, splits, split_length, .. } = plan;
    let partial_sums = if splits == 1 { 0 } else { workspace };
    let wide = c.is_multiple_of(16) && c_row_stride.is_multiple_of(4) && n.is_multiple_of(4);
    let (rows, columns) = (m.div_ceil(tile.height) as u32, n.div_ceil(tile.width) as u32);
    let blocks = if splits == 1 {
        // Bands of tile rows: see the kernel.
        let band = rows.min(8);
        [band, columns, rows.div_ceil(band)]
    } else {
        [rows, columns, splits as u32]
    };
    let activation = Argument::Int(match epilogue.activation {
        Activation::Identity => 0,
        Activation::Tanh => 1,
        Activation::Sigmoid => 2,
        Activation::Relu => 3,
    });
    let output = [Argument::Pointer(c), Argument::long(c_row_stride)];
    let sizes = [Argument::int(m), Argument::int(n)];
    let ends = [Argument::Pointer(epilogue.bias), activation, Argument::flag(accumulate)];
    let parts = [Argument::int(k), Argument::int(split_length), Argument::Pointer(partial_sums)];
    let wide = [Argument::flag(wide)];
    let arguments = [&left.arguments()[..], &right.arguments(), &output, &wide, &sizes, &parts, &ends].concat();
    let shape = Launch { blocks, ..Launch::blocks(1, tile.threads) }.shared(tile.shared());
    // SAFETY: the kernel's arguments; the caller answers for the pointers.
    unsafe { context.launch("matmul", tile.kernel, &shape, &arguments) };
    if splits > 1 {
        let sums = [Argument::Pointer(partial_sums), Argument::int(splits)];
        let arguments = [&sums[..], &output, &sizes, &ends].concat();
        let shape = Launch::over(m * n, 256, 8 * MULTIPROCESSORS as u32);
        // SAFETY: as above.
        unsafe { context.launch("matmul", "matmul_sum", &shape, &arguments) };
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::context::Buffer;
    use super::super::emulator::Order;
    use super::super::testing::Device;
    use super::*;
    use crate::backend::cpu::testing::random;

    const ARITHMETICS: [Arithmetic; 3] = [Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16];
    const ORDERS: [Order; 3] = [Order::Forward, Order::Reversed, Order::Shuffled(5)];

    /// How an operand lies in memory.
    #[derive(Debug, Clone, Copy, Default)]
    struct Layout {
        transposed: bool,
        /// Elements between the end of a row and the next, and before the first.
        gap: usize,
        offset: usize,
        bf16: bool,
    }

    /// A product and all that it is made of; `output` is c before, [m, n + gap].
    #[derive(Debug, Clone)]
    struct Case {
        shape: (usize, usize, usize),
        a: Layout,
        b: Layout,
        c_gap: usize,
        accumulate: bool,
        arithmetic: Arithmetic,
        bias: bool,
        activation: Activation,
        order: Order,
        /// Number of the tile and the splits; chosen by the sizes if not given.
        plan: Option<(usize, usize)>,
        /// On a GPU, whether NVIDIA's library computes it if there is one.
        library: bool,
    }

    impl Case {
        fn new(shape: (usize, usize, usize), arithmetic: Arithmetic) -> Self {
            Case {
                shape,
                a: Layout::default(),
                b: Layout::default(),
                c_gap: 0,
                accumulate: false,
                arithmetic,
                bias: false,
                activation: Activation::Identity,
                order: Order::Forward,
                plan: None,
                library: false,
            }
        }

        fn plan(&self) -> Plan {
            let (m, n, k) = self.shape;
            match self.plan {
                None => Plan::new(m, n, k, self.arithmetic),
                Some((tile, splits)) => Plan::with(&self.arithmetic.tiles()[tile], k, splits),
            }
        }

        fn values(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<f32>) {
            let (m, n, k) = self.shape;
            (random(m * k, 1), random(k * n, 2), random(m * (n + self.c_gap), 3), random(n, 4))
        }

        /// The bits of c, with what is between its rows.
        fn run(&self) -> Vec<f32> {
            let (a, b, c, bias) = self.values();
            self.run_on(&a, &b, &c, &bias)
        }

        fn run_on(&self, a: &[f32], b: &[f32], c: &[f32], bias: &[f32]) -> Vec<f32> {
            let (m, n, k) = self.shape;
            let context = Device::shared(self.order).expect("tests are skipped where there is none").context;
            let (a, _a) = operand(&context, a, m, k, self.a);
            let (b, _b) = operand(&context, b, k, n, self.b);
            let bias = uploaded(&context, bias);
            let output = uploaded(&context, c);
            let plan = self.plan();
            let workspace = context.allocate(plan.workspace(m, n, k, self.arithmetic).iter().sum());
            let bias = if self.bias { bias.pointer() } else { 0 };
            let product = Product {
                m,
                n,
                k,
                a,
                b,
                c: output.pointer(),
                c_row_stride: n + self.c_gap,
                accumulate: self.accumulate,
                arithmetic: self.arithmetic,
            };
            let epilogue = Epilogue { bias, activation: self.activation };
            if self.library {
                matmul_with(&context, product, epilogue, workspace.pointer());
            } else {
                compute(&context, product, epilogue, plan, workspace.pointer(), false);
            }
            let result = context.download(&output, c.len());
            context.check().unwrap();
            result
        }

        /// Holds c against sums in f64 of operands rounded as the arithmetic rounds them.
        fn check(&self) {
            let (_, n, k) = self.shape;
            let (a, b, before, bias) = self.values();
            let result = self.run();
            // How the library rounds is not said: each operand is off by a unit of its last place at most.
            let exact = self.library && self.arithmetic != Arithmetic::F32;
            let kept = if exact { Arithmetic::F32 } else { self.arithmetic };
            let rounded = |x: &[f32]| x.iter().map(|&x| f64::from(rounded(x, kept))).collect::<Vec<f64>>();
            let (a, b) = (rounded(&a), rounded(&b));
            let rounding = match (exact, self.arithmetic) {
                (true, Arithmetic::Tf32) => 2.0_f64.powi(-10),
                (true, Arithmetic::Bf16) => 2.0_f64.powi(-8),
                _ => 0.0,
            };
            let stride = n + self.c_gap;
            for (place, (&result, &before)) in result.iter().zip(&before).enumerate() {
                let (i, j) = (place / stride, place % stride);
                if j >= n {
                    assert_eq!(result, before, "{self:?} wrote between its rows, at ({i}, {j})");
                    continue;
                }
                let (mut sum, mut magnitude) = (0.0, 2.0);
                for l in 0..k {
                    let product = a[i * k + l] * b[l * n + j];
                    sum += product;
                    magnitude += product.abs();
                }
                sum += if self.accumulate { f64::from(before) } else { 0.0 };
                sum += if self.bias { f64::from(bias[j]) } else { 0.0 };
                let expected = match self.activation {
                    Activation::Identity => sum,
                    Activation::Tanh => sum.tanh(),
                    Activation::Sigmoid => 1.0 / (1.0 + (-sum).exp()),
                    Activation::Relu => sum.max(0.0),
                };
                // Half an ulp for each of k products, k sums and what follows, each of at most the sum of magnitudes; no activation is steeper
                // than the identity, and each is right to a few ulp of 1.
                let bound = magnitude * ((2 * k + 8) as f64 * 6e-8 + rounding * (2.0 + rounding));
                assert!((f64::from(result) - expected).abs() <= bound, "{self:?} ({i}, {j}): {result} for {expected}");
            }
        }
    }

    fn rounded(x: f32, arithmetic: Arithmetic) -> f32 {
        match arithmetic {
            Arithmetic::F32 => x,
            // To a multiple of 2^13 in the last place, halves away from zero: the sign is apart in a float.
            Arithmetic::Tf32 => f32::from_bits((x.to_bits() + 0x1000) & !0x1fff),
            Arithmetic::Bf16 => half::bf16::from_f32(x).to_f32(),
        }
    }

    fn uploaded<T: bytemuck::NoUninit>(context: &Arc<Context>, values: &[T]) -> Buffer {
        let buffer = context.allocate(size_of_val(values));
        context.upload(&buffer, values);
        buffer
    }

    /// Puts a matrix [rows, columns] on the device, NaN in the gaps.
    fn operand(
        context: &Arc<Context>,
        values: &[f32],
        rows: usize,
        columns: usize,
        layout: Layout,
    ) -> (Operand, Buffer) {
        let Layout { transposed, gap, offset, bf16 } = layout;
        let (outer, inner) = if transposed { (columns, rows) } else { (rows, columns) };
        let stride = inner + gap;
        let mut memory = vec![f32::NAN; offset + outer * stride];
        for i in 0..rows {
            for j in 0..columns {
                let place = if transposed { j * stride + i } else { i * stride + j };
                memory[offset + place] = values[i * columns + j];
            }
        }
        let bytes = if bf16 { 2 } else { 4 };
        let buffer = if bf16 {
            let memory: Vec<u16> = memory.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect();
            uploaded(context, &memory)
        } else {
            uploaded(context, &memory)
        };
        let operand = Operand::rows(buffer.pointer() + (offset * bytes) as u64, stride);
        let operand = if transposed { operand.transposed() } else { operand };
        (if bf16 { operand.bf16() } else { operand }, buffer)
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    fn skipped() -> bool {
        Device::shared(Order::Forward).is_none()
    }

    fn layouts() -> impl Iterator<Item = (Layout, Layout)> {
        // Gap and offset that leave 16, 8 and 4 bytes of alignment to even sizes.
        [(0, 0), (2, 2), (1, 3)].into_iter().flat_map(|(gap, offset)| {
            [(false, false), (false, true), (true, false), (true, true)].map(|(a, b)| {
                let layout = |transposed| Layout { transposed, gap, offset, bf16: false };
                (layout(a), layout(b))
            })
        })
    }

    #[test]
    fn products_agree_with_sums_in_f64_for_every_arithmetic_layout_and_alignment() {
        if skipped() {
            return;
        }
        let shapes = [(1, 1, 1), (3, 5, 7), (20, 36, 48), (65, 67, 34), (70, 64, 36), (0, 4, 4), (4, 0, 4)];
        for arithmetic in ARITHMETICS {
            for shape in shapes {
                for (a, b) in layouts() {
                    for (c_gap, accumulate) in [(0, false), (3, true)] {
                        Case { a, b, c_gap, accumulate, ..Case::new(shape, arithmetic) }.check();
                    }
                }
            }
        }
    }

    #[test]
    fn products_agree_with_sums_in_f64_whoever_computes_them() {
        if skipped() {
            return;
        }
        // Aligned for the library and not, a product whose operands are packed first, and one that is split.
        for shape in [(64, 64, 64), (35, 41, 37), (260, 300, 96), (16, 24, 1100)] {
            for arithmetic in ARITHMETICS {
                for (a, b) in layouts().take(4) {
                    for (accumulate, bias) in [(false, false), (true, true)] {
                        Case { a, b, accumulate, bias, library: true, ..Case::new(shape, arithmetic) }.check();
                    }
                }
            }
        }
    }

    #[test]
    fn every_tile_covers_the_edges_of_an_output() {
        if skipped() {
            return;
        }
        for arithmetic in ARITHMETICS {
            for (tile, Tile { height, width, .. }) in arithmetic.tiles().iter().enumerate() {
                for shape in [(height + 3, width - 6, 40), (height - 1, width + 2, 20), (9 * height / 4, 4, 16)] {
                    let a = Layout { transposed: shape.2 == 20, ..Layout::default() };
                    let b = Layout { transposed: shape.2 == 40, ..Layout::default() };
                    Case { a, b, plan: Some((tile, 1)), ..Case::new(shape, arithmetic) }.check();
                }
            }
        }
    }

    #[test]
    fn nine_rows_of_tiles_are_two_bands() {
        if skipped() {
            return;
        }
        Case { plan: Some((1, 1)), ..Case::new((9 * 64 - 5, 70, 8), Arithmetic::F32) }.check();
    }

    #[test]
    fn tiles_layouts_and_alignment_do_not_show_in_the_bits() {
        if skipped() {
            return;
        }
        for arithmetic in ARITHMETICS {
            let shape = (70, 66, 50);
            let reference = bits(&Case { plan: Some((0, 1)), ..Case::new(shape, arithmetic) }.run());
            for tile in 1..arithmetic.tiles().len() {
                let case = Case { plan: Some((tile, 1)), ..Case::new(shape, arithmetic) };
                assert_eq!(bits(&case.run()), reference, "{case:?}");
            }
            for (a, b) in layouts() {
                let case = Case { a, b, ..Case::new(shape, arithmetic) };
                assert_eq!(bits(&case.run()), reference, "{case:?}");
            }
        }
    }

    #[test]
    fn the_order_of_threads_does_not_show_in_the_bits() {
        if skipped() {
            return;
        }
        for arithmetic in ARITHMETICS {
            for tile in 0..arithmetic.tiles().len() {
                for splits in [1, 3] {
                    let results = ORDERS.map(|order| {
                        let plan = Some((tile, splits));
                        bits(
                            &Case { plan, order, accumulate: true, bias: true, ..Case::new((67, 70, 70), arithmetic) }
                                .run(),
                        )
                    });
                    assert_eq!(results[0], results[1], "{arithmetic:?} {tile} {splits}");
                    assert_eq!(results[0], results[2], "{arithmetic:?} {tile} {splits}");
                }
            }
        }
    }

    #[test]
    fn splits_of_k_are_added_up_with_what_follows() {
        if skipped() {
            return;
        }
        for arithmetic in ARITHMETICS {
            for (splits, k) in [(2, 64), (3, 65), (4, 97), (5, 1)] {
                for (c_gap, n) in [(0, 12), (1, 13)] {
                    let plan = Some((arithmetic.tiles().len() - 1, splits));
                    let transposed = Layout { transposed: true, ..Layout::default() };
                    let case = Case { plan, c_gap, a: transposed, ..Case::new((66, n, k), arithmetic) };
                    case.check();
                    Case { accumulate: true, bias: true, activation: Activation::Tanh, ..case }.check();
                }
            }
        }
    }

    #[test]
    fn bias_and_activation_follow_the_sum() {
        if skipped() {
            return;
        }
        for activation in [Activation::Identity, Activation::Tanh, Activation::Sigmoid, Activation::Relu] {
            for n in [8, 9] {
                for accumulate in [false, true] {
                    let case = Case::new((17, n, 5), Arithmetic::F32);
                    Case { bias: true, activation, accumulate, ..case.clone() }.check();
                    Case { activation, accumulate, ..case }.check();
                }
            }
        }
    }

    #[test]
    fn a_sum_of_nothing_is_zero_and_the_rest_follows() {
        if skipped() {
            return;
        }
        for (accumulate, bias) in [(false, false), (true, false), (false, true)] {
            for arithmetic in ARITHMETICS {
                Case { accumulate, bias, ..Case::new((5, 6, 0), arithmetic) }.check();
            }
        }
    }

    #[test]
    fn operands_stored_as_bf16_give_the_bits_of_rounded_ones() {
        if skipped() {
            return;
        }
        for shape in [(36, 40, 44), (35, 41, 37)] {
            for (a, b) in layouts() {
                let case = Case { a, b, ..Case::new(shape, Arithmetic::Bf16) };
                let reference = bits(&case.run());
                for (a_bf16, b_bf16) in [(true, false), (false, true), (true, true)] {
                    let a = Layout { bf16: a_bf16, ..a };
                    let b = Layout { bf16: b_bf16, ..b };
                    let case = Case { a, b, ..case.clone() };
                    assert_eq!(bits(&case.run()), reference, "{case:?}");
                }
            }
        }
    }

    #[test]
    fn packed_operands_give_the_bits_of_others() {
        if skipped() {
            return;
        }
        for arithmetic in [Arithmetic::Tf32, Arithmetic::Bf16] {
            let tile = arithmetic.tiles().iter().position(|tile| tile.packed).unwrap();
            // Some stages and many, a padded k and none, an operand that lies as if packed.
            for (shape, splits) in [((36, 40, 44), 1), ((35, 41, 37), 2), ((70, 30, 161), 1), ((20, 12, 96), 2)] {
                for (a, b) in layouts() {
                    let case = Case { a, b, plan: Some((2, splits)), ..Case::new(shape, arithmetic) };
                    let reference = bits(&case.run());
                    for (packed, bf16) in [(tile, false), (tile + 1, arithmetic == Arithmetic::Bf16)] {
                        let a = Layout { bf16, ..a };
                        let case = Case { plan: Some((packed, splits)), a, ..case.clone() };
                        assert_eq!(bits(&case.run()), reference, "{case:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row_and_column() {
        if skipped() {
            return;
        }
        for arithmetic in ARITHMETICS {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let case = Case::new((20, 24, 18), arithmetic);
                let (mut a, b, c, bias) = case.values();
                a[3 * 18 + 7] = value;
                let result = case.run_on(&a, &b, &c, &bias);
                for (place, x) in result.iter().enumerate() {
                    assert_eq!(x.is_finite(), place / 24 != 3, "{arithmetic:?} {value} at {place}");
                    assert!(place / 24 != 3 || value.is_nan() == x.is_nan());
                }
            }
        }
    }

    #[test]
    fn the_plan_covers_k_once_and_splits_long_thin_products_only() {
        for arithmetic in ARITHMETICS {
            for m in [1, 30, 320, 1280, 12_000] {
                for n in [1, 50, 640, 2560, 33_278] {
                    for k in [0, 1, 31, 320, 1150, 12_000, 1 << 20] {
                        let plan = Plan::new(m, n, k, arithmetic);
                        let Plan { splits, split_length, .. } = plan;
                        assert!(
                            splits * split_length >= k && (splits == 1 || (splits - 1) * split_length < k),
                            "{plan:?} {k}"
                        );
                        assert!(split_length % DEPTH_UNIT == 0 && splits >= 1);
                        assert_eq!(workspace(m, n, k, arithmetic) > 0, splits > 1 || plan.tile.packed);
                    }
                }
            }
            // A gradient of weights is split, what has tiles enough is not, and the large one takes the large tiles.
            assert!(Plan::new(320, 640, 12_000, arithmetic).splits > 1);
            let logits = Plan::new(5600, 33_278, 400, arithmetic);
            assert!(logits.splits == 1 && (arithmetic == Arithmetic::F32 || logits.tile.height == 256));
            assert_eq!(Plan::new(12_000, 2560, 640, arithmetic).splits, 1);
        }
    }
}
