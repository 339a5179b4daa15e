//! How an LSTM's steps are shared out among a GPU's multiprocessors: from the shape and the device alone, so that the bits are too.
//!
//! The numbers of a [`Core`] are those of `kernels/lstm_product.cuh` and `kernels/lstm.cu`; [`Plan::shared`] counts the same bytes as their
//! `Memory` and `ProductMemory`.

use super::super::driver::Launch;
use super::super::matmul::Arithmetic;
use std::fmt;

/// Columns of a tensor core's tile: sequences are computed in groups of as many.
pub(super) const GROUP: usize = 8;
/// Bytes of a chunk, of a group's part of one, and of the weights that a warp keeps together.
pub(super) const CHUNK_BYTES: usize = 64;
const STAGE_BYTES: usize = GROUP * CHUNK_BYTES;
const WARP_VECTOR: usize = 32 * 16;
const DEPTH: usize = 3;
const JOB_BYTES: usize = 192;
/// Warps of a block: more leave a thread too few registers for its weights.
const WARPS: usize = 8;
/// Chunks that a warp should have if there are so many: fewer warps mean fewer sums to add, more warps shorter chains of products.
const CHUNKS_PER_WARP: usize = 2;
/// Sequences of a slice: their cell states, one per unit, stay in shared memory.
const MOST_COLUMNS: usize = 128;

/// Estimates for a Hopper GPU, in nanoseconds: an exchange between blocks (four crossings of the chip); and a multiprocessor's share of the
/// second-level cache's bandwidth, in bytes for one. Nothing here was measured yet; they only weigh one core against another.
const EXCHANGE: f64 = 1000.0;
const CACHE: f64 = 40.0;

/// One of the kernels, and what it was compiled for.
#[derive(Debug, PartialEq)]
pub struct Core {
    pub kernel: &'static str,
    /// Rows of the stationary matrix that a block multiplies.
    pub rows: usize,
    /// Units whose equations a block applies.
    pub units: usize,
    /// Blocks that share those rows.
    pub parts: usize,
    /// How many H's long a row is.
    pub width: usize,
    /// Elements of a chunk, along a row.
    pub chunk: usize,
    /// Chunks whose weights a warp holds in registers; the most that it multiplies at a time.
    pub(super) held: usize,
    bite: usize,
    /// Vectors of 16 bytes that a lane has of a chunk's weights.
    vectors: usize,
    /// Floats of a column of sums.
    stride: usize,
    /// Floats that a block keeps for one unit of one row; for one unit.
    slots: usize,
    unit_floats: usize,
    /// Products and sums of a multiprocessor in a nanosecond.
    rate: f64,
}

impl Core {
    const fn forward(kernel: &'static str, numbers: Numbers) -> Core {
        Core::new(kernel, numbers, numbers.rows / 4, 1, 1, 5, 4)
    }

    const fn backward(kernel: &'static str, numbers: Numbers, parts: usize) -> Core {
        Core::new(kernel, numbers, numbers.rows / parts, parts, 4 / parts, 7, 0)
    }

    const fn new(
        kernel: &'static str,
        numbers: Numbers,
        units: usize,
        parts: usize,
        width: usize,
        slots: usize,
        unit_floats: usize,
    ) -> Core {
        let Numbers { rows, chunk, held, bite, vectors, stride, rate } = numbers;
        Core { kernel, rows, units, parts, width, chunk, held, bite, vectors, stride, slots, unit_floats, rate }
    }

    /// Bytes of what is exchanged for one sequence and step: h, or the gradients of four gates; each of whole chunks.
    pub fn column_bytes(&self, hidden: usize) -> usize {
        self.width * self.parts * hidden.div_ceil(self.chunk) * CHUNK_BYTES
    }

    /// Chunks of a row.
    fn chunks(&self, hidden: usize) -> usize {
        self.width * hidden.div_ceil(self.chunk)
    }
}

#[derive(Clone, Copy)]
struct Numbers {
    rows: usize,
    chunk: usize,
    held: usize,
    bite: usize,
    vectors: usize,
    stride: usize,
    rate: f64,
}

const SCALAR: Numbers = Numbers { rows: 40, chunk: 16, held: 6, bite: 3, vectors: 5, stride: 40, rate: 200.0 };
const WIDE_BF16: Numbers = Numbers { rows: 80, chunk: 32, held: 4, bite: 4, vectors: 10, stride: 84, rate: 1000.0 };
const NARROW_BF16: Numbers = Numbers { rows: 32, chunk: 32, held: 8, bite: 4, vectors: 4, stride: 36, rate: 1000.0 };
const WIDE_TF32: Numbers = Numbers { rows: 48, chunk: 16, held: 6, bite: 3, vectors: 6, stride: 52, rate: 500.0 };
const NARROW_TF32: Numbers = Numbers { rows: 32, chunk: 16, held: 8, bite: 4, vectors: 4, stride: 36, rate: 500.0 };

static FORWARD_F32: [Core; 1] = [Core::forward("lstm_forward_f32", SCALAR)];
static FORWARD_TF32: [Core; 1] = [Core::forward("lstm_forward_tf32", WIDE_TF32)];
static FORWARD_BF16: [Core; 1] = [Core::forward("lstm_forward_bf16", WIDE_BF16)];
// The first of each needs no second meeting of blocks and can run step by step.
static BACKWARD_F32: [Core; 2] =
    [Core::backward("lstm_backward_f32", SCALAR, 1), Core::backward("lstm_backward_f32_parts", SCALAR, 4)];
static BACKWARD_TF32: [Core; 2] =
    [Core::backward("lstm_backward_tf32", NARROW_TF32, 1), Core::backward("lstm_backward_tf32_parts", WIDE_TF32, 4)];
static BACKWARD_BF16: [Core; 2] =
    [Core::backward("lstm_backward_bf16", NARROW_BF16, 1), Core::backward("lstm_backward_bf16_parts", WIDE_BF16, 4)];

/// The cores of a pass; the first can run step by step.
pub(super) fn cores(backward: bool, arithmetic: Arithmetic) -> &'static [Core] {
    match (backward, arithmetic) {
        (false, Arithmetic::F32) => &FORWARD_F32,
        (false, Arithmetic::Tf32) => &FORWARD_TF32,
        (false, Arithmetic::Bf16) => &FORWARD_BF16,
        (true, Arithmetic::F32) => &BACKWARD_F32,
        (true, Arithmetic::Tf32) => &BACKWARD_TF32,
        (true, Arithmetic::Bf16) => &BACKWARD_BF16,
    }
}

/// The device, as far as it decides.
pub(super) struct Chip<'a> {
    pub multiprocessors: usize,
    /// Bytes of shared memory that a block may have.
    pub shared: usize,
    pub cooperative: bool,
    /// How many blocks of this launch of a kernel run at the same time.
    pub resident: &'a dyn Fn(&'static str, &Launch) -> usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    pub hidden: usize,
    pub directions: usize,
    pub sequences: usize,
}

/// Why the steps are launched one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The device cannot make all blocks of a launch run at the same time.
    NoCooperativeLaunch,
    /// One direction alone needs more blocks than run at the same time.
    TooManyBlocks { needed: usize, resident: usize },
}

/// How a pass runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    pub core: &'static Core,
    pub problem: Problem,
    /// None: one cooperative launch runs all steps.
    pub obstacle: Option<Obstacle>,
    /// Directions of one launch. If it is fewer than there are, one runs after the other.
    pub launched: usize,
    /// Slices of the sequences in one launch, and sequences of a slice (a multiple of [`GROUP`]).
    pub slices: usize,
    pub columns: usize,
    /// Sequences that a block computes at a time.
    pub tile: usize,
    pub warps: usize,
    /// Chunks of a warp's weights in shared memory.
    pub weight_slots: usize,
}

impl Plan {
    /// The best of the cores on this chip.
    pub(super) fn new(cores: &'static [Core], chip: &Chip, problem: Problem) -> Plan {
        if !chip.cooperative {
            return Plan::step_by_step(&cores[0], chip, problem, Obstacle::NoCooperativeLaunch);
        }
        let mut best: Option<Plan> = None;
        let mut obstacle = Obstacle::NoCooperativeLaunch;
        for core in cores {
            match Plan::persistent(core, chip, problem) {
                Ok(plan) if best.is_none_or(|best| plan.step_time() < best.step_time()) => best = Some(plan),
                Ok(_) => {}
                Err(problem) => obstacle = problem,
            }
        }
        best.unwrap_or_else(|| Plan::step_by_step(&cores[0], chip, problem, obstacle))
    }

    /// All steps in one launch: as many directions and slices at once as the chip has room for.
    pub(super) fn persistent(core: &'static Core, chip: &Chip, problem: Problem) -> Result<Plan, Obstacle> {
        let groups = problem.sequences.div_ceil(GROUP).max(1);
        let mut obstacle = Obstacle::TooManyBlocks { needed: core.group_blocks(problem.hidden), resident: 0 };
        for launched in (1..=problem.directions).rev() {
            let most = chip.multiprocessors / (launched * core.group_blocks(problem.hidden));
            for slices in (1..=most.clamp(1, groups)).rev() {
                let columns = (groups.div_ceil(slices) * GROUP).min(MOST_COLUMNS);
                // Rounding up may leave some slices without a sequence.
                let slices = slices.min((groups * GROUP).div_ceil(columns));
                let plan = Plan { launched, slices, columns, ..Plan::fitted(core, chip, problem, columns) };
                let (needed, resident) = (plan.blocks(), (chip.resident)(core.kernel, &plan.launch()));
                if needed <= resident {
                    return Ok(plan);
                }
                obstacle = Obstacle::TooManyBlocks { needed, resident };
            }
        }
        Err(obstacle)
    }

    fn step_by_step(core: &'static Core, chip: &Chip, problem: Problem, obstacle: Obstacle) -> Plan {
        let groups = problem.sequences.div_ceil(GROUP).max(1);
        let most = chip.multiprocessors / (problem.directions * core.group_blocks(problem.hidden));
        let slices = most.clamp((groups * GROUP).div_ceil(MOST_COLUMNS), groups);
        let columns = groups.div_ceil(slices) * GROUP;
        let slices = (groups * GROUP).div_ceil(columns);
        let plan = Plan::fitted(core, chip, problem, columns);
        Plan { obstacle: Some(obstacle), launched: problem.directions, slices, columns, ..plan }
    }

    /// Warps, and what is in shared memory: all weights that registers do not hold, if there is room beside a tile of one group.
    fn fitted(core: &'static Core, chip: &Chip, problem: Problem, columns: usize) -> Plan {
        let chunks = core.chunks(problem.hidden).max(1);
        let most = chunks.div_ceil(CHUNKS_PER_WARP).min(WARPS);
        let plan = |warps: usize, tile, slots: fn(usize) -> usize| {
            let span = chunks.div_ceil(warps);
            let weight_slots = slots(span.saturating_sub(core.held));
            let (warps, obstacle) = (chunks.div_ceil(span), None);
            Plan { core, problem, obstacle, launched: 1, slices: 1, columns, tile, warps, weight_slots }
        };
        let groups = columns / GROUP;
        let tiles = (1..=groups).map(|count| groups.div_ceil(count) * GROUP);
        let whole = tiles.map(|tile| plan(most, tile, |rest| rest));
        // Otherwise some weights are read at every step, through a slot; fewer warps need fewer of those.
        let through_a_slot = (1..=most).rev().map(|warps| plan(warps, GROUP, |rest| rest.min(1)));
        let fits = |plan: &Plan| plan.shared() <= chip.shared;
        let mut best = whole.chain(through_a_slot).find(fits).unwrap_or_else(|| plan(1, GROUP, |rest| rest.min(1)));
        while best.weight_slots < best.span().saturating_sub(core.held) {
            let more = Plan { weight_slots: best.weight_slots + 1, ..best };
            if !fits(&more) {
                break;
            }
            best = more;
        }
        best
    }

    /// Blocks of one launch.
    pub fn blocks(&self) -> usize {
        self.launched * self.slices * self.core.group_blocks(self.problem.hidden)
    }

    pub fn launch(&self) -> Launch {
        let blocks = u32::try_from(self.blocks()).unwrap_or(u32::MAX);
        let launch = Launch::blocks(blocks, 32 * self.warps as u32).shared(self.shared());
        if self.obstacle.is_none() { launch.cooperative() } else { launch }
    }

    /// Bytes of shared memory.
    pub fn shared(&self) -> usize {
        let Plan { core, columns, tile, warps, weight_slots, .. } = *self;
        let bite = self.span().min(core.bite);
        let product = warps * (DEPTH * bite * STAGE_BYTES + weight_slots * core.vectors * WARP_VECTOR);
        let floats =
            warps * tile * core.stride + core.slots * tile * core.units + (columns + core.unit_floats) * core.units;
        JOB_BYTES + product + floats * size_of::<f32>()
    }

    /// The most chunks of a warp.
    fn span(&self) -> usize {
        self.core.chunks(self.problem.hidden).div_ceil(self.warps)
    }

    /// Sequences of one launch.
    pub fn launch_sequences(&self) -> usize {
        self.slices * self.columns
    }

    /// Nanoseconds of a step, by the estimates at the head of this file: only to compare plans.
    fn step_time(&self) -> f64 {
        let Plan { core, problem, columns, launched, .. } = *self;
        let meetings = if core.parts > 1 { 2.0 } else { 1.0 };
        let read = (columns * core.column_bytes(problem.hidden) / core.parts) as f64;
        let products = (core.rows * columns * core.width * problem.hidden) as f64;
        let launches = problem.directions.div_ceil(launched) * problem.sequences.div_ceil(self.launch_sequences());
        launches as f64 * (meetings * EXCHANGE + read / CACHE + products / core.rate)
    }

    /// Bytes of the counters of arrivals: one of 32 bytes for each group, and for each team of [`Core::parts`] blocks.
    pub(super) fn counter_bytes(&self) -> usize {
        let groups = self.launched * self.slices;
        let teams = if self.core.parts > 1 { groups * self.teams() } else { 0 };
        ((groups + teams) * 32).next_multiple_of(256)
    }

    /// Bytes of the two buffers through which blocks exchange h, or the gates' gradients.
    pub(super) fn exchange_bytes(&self) -> usize {
        2 * self.launched * self.launch_sequences() * self.core.column_bytes(self.problem.hidden)
    }

    /// Bytes of the sums that a team of blocks exchanges.
    pub(super) fn parts_bytes(&self) -> usize {
        let Plan { core, launched, .. } = *self;
        if core.parts == 1 {
            return 0;
        }
        launched * self.launch_sequences() * self.teams() * core.parts * core.rows * size_of::<f32>()
    }

    fn teams(&self) -> usize {
        self.problem.hidden.div_ceil(self.core.rows)
    }

    /// Bytes of the whole workspace.
    pub fn workspace(&self) -> usize {
        self.counter_bytes() + self.exchange_bytes() + self.parts_bytes()
    }
}

impl Core {
    /// Blocks that serve one direction and slice.
    fn group_blocks(&self, hidden: usize) -> usize {
        hidden.div_ceil(self.units * self.parts).max(1) * self.parts
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NoCooperativeLaunch => write!(f, "the device has no cooperative launches"),
            Obstacle::TooManyBlocks { needed, resident } => {
                write!(f, "{needed} blocks are needed at the same time, {resident} fit")
            }
        }
    }
}

/// `one launch: 128 blocks (2 directions x 4 slices of 8 sequences x 16 blocks of 20 units), 5 warps; weights in registers`.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { core, problem, launched, slices, columns, warps, weight_slots, .. } = *self;
        match &self.obstacle {
            None => write!(f, "one launch")?,
            Some(obstacle) => write!(f, "one launch a step, since {obstacle}")?,
        }
        let (blocks, group) = (self.blocks(), core.group_blocks(problem.hidden));
        let units = core.units;
        write!(
            f,
            ": {blocks} blocks ({launched} directions x {slices} slices of {columns} sequences x {group} blocks of {units} units)"
        )?;
        let launches =
            problem.directions.div_ceil(launched) * problem.sequences.div_ceil(self.launch_sequences()).max(1);
        if launches > 1 {
            write!(f, ", {launches} times one after the other")?;
        }
        let rest = self.span().saturating_sub(core.held);
        let weights = match (rest, rest.saturating_sub(weight_slots)) {
            (0, _) => "weights in registers",
            (_, 0) => "weights in registers and shared memory",
            _ => "weights in registers and shared memory, and some read at every step",
        };
        write!(f, ", {warps} warps; {weights}")
    }
}
