//! Multi-head attention: `kernels/attention.cu`, the same mathematics as `backend::cpu::attention`.

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::run;
use super::matmul::Arithmetic;
use super::sequences::{Packing, mask_arguments};
use crate::error::{Error, Result};
use crate::random::Mask;

const FILE: &str = "attention";
const WARP: usize = 32;
/// Rows of a strip.
const STRIP: usize = 16;
/// Columns that a head may have in the kernels; between them zeros are added.
const DEPTHS: [usize; 3] = [32, 64, 128];
/// The most columns of a head.
pub const MOST_COLUMNS: usize = 128;
/// Behind each row in shared memory.
const PADDING: usize = 16;
/// The most warps of a block, and the fewest unless fewer have all rows.
const MOST_WARPS: usize = 4;
const FEWEST_WARPS: usize = 2;
/// Blocks that fill an H200: with fewer, blocks become smaller. No bit depends on it.
const MULTIPROCESSORS: usize = 132;

/// Who attends to whom, in device memory.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    pub heads: usize,
    /// Columns of a head.
    pub width: usize,
    pub queries: Packing,
    pub keys: Packing,
    /// `[sequences]` of queries, i32: the sequence of keys that each attends to; none: its own.
    pub of: Option<Pointer>,
    /// A query sees no key behind its own time.
    pub causal: bool,
    /// Dropout of the probabilities, at the place (key, query, sequence of queries * heads + head).
    pub mask: Option<Mask>,
    pub arithmetic: Arithmetic,
}

/// What backward reads; q, y, dy: `[Rq, heads * width]`, k, v: `[Rk, heads * width]`, log_sums: `[Rq, heads]`, all f32.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    pub q: Pointer,
    pub k: Pointer,
    /// v and the output; none if the values' gradient alone is wanted.
    pub scored: Option<(Pointer, Pointer)>,
    pub log_sums: Pointer,
}

/// Where backward writes: gradients that are not wanted are none.
#[derive(Debug, Clone, Copy)]
pub struct Gradients {
    pub queries: Option<Pointer>,
    pub keys: Option<Pointer>,
    pub values: Option<Pointer>,
}

#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Forward,
    QueryGradient,
    KeyGradient,
}

/// A kernel, and its tile: strips of a warp, rows of a stage.
struct Kernel {
    name: &'static str,
    strips: usize,
    stage: usize,
}

/// That a head is not too wide for the kernels.
///
/// # Errors
/// If it is.
pub fn check(width: usize) -> Result<()> {
    if width <= MOST_COLUMNS {
        return Ok(());
    }
    let problem = format!("heads of {width} columns, on a GPU at most {MOST_COLUMNS}");
    Err(Error::operation(FILE, problem).remedy("Use more heads, or --device cpu"))
}

impl Attention {
    fn depth(&self) -> usize {
        DEPTHS.into_iter().find(|&depth| self.width <= depth).unwrap_or(MOST_COLUMNS)
    }

    fn is_empty(&self) -> bool {
        self.queries.rows == 0 || self.heads * self.width == 0
    }

    /// Bytes of an operand's element.
    fn element(&self) -> usize {
        if self.arithmetic == Arithmetic::Bf16 { 2 } else { 4 }
    }

    /// Whether an operand can be read as it lies.
    fn in_place(&self, pointer: Pointer) -> bool {
        self.arithmetic == Arithmetic::F32 && self.width == self.depth() && pointer.is_multiple_of(16)
    }

    /// Bytes of an operand for the kernels.
    fn packed(&self, packing: &Packing) -> usize {
        (packing.rows * self.heads * self.depth() * self.element()).next_multiple_of(256)
    }

    /// Bytes of two numbers for every query and head.
    fn statistics(&self) -> usize {
        (self.queries.rows * self.heads * 2 * size_of::<f32>()).next_multiple_of(256)
    }

    /// Bytes that [`Attention::forward`] works in.
    pub fn forward_workspace(&self) -> usize {
        self.packed(&self.queries) + 2 * self.packed(&self.keys)
    }

    /// Bytes that [`Attention::backward`] works in.
    pub fn backward_workspace(&self) -> usize {
        self.statistics() + 2 * self.packed(&self.queries) + 2 * self.packed(&self.keys)
    }

    /// q, output: `[Rq, heads * width]`, k, v: `[Rk, heads * width]`, log_sums: `[Rq, heads]`, all f32. Rows of no sequence become zero.
    pub fn forward(
        &self,
        context: &Context,
        [q, k, v]: [Pointer; 3],
        output: Pointer,
        log_sums: Pointer,
        workspace: Pointer,
    ) {
        self.forward_by(context, [q, k, v], output, log_sums, workspace, None);
    }

    fn forward_by(
        &self,
        context: &Context,
        [q, k, v]: [Pointer; 3],
        output: Pointer,
        log_sums: Pointer,
        workspace: Pointer,
        warps: Option<usize>,
    ) {
        if self.is_empty() {
            return;
        }
        let [q, _, k, v] = self.pack(context, [Some(q), None, Some(k), Some(v)], workspace);
        let operands = [output, log_sums, q, k, v].map(Argument::Pointer);
        self.run(context, Pass::Forward, &operands, warps);
    }

    /// The gradients, from what forward read and gave. Rows of no sequence become zero.
    pub fn backward(&self, context: &Context, kept: &Kept, dy: Pointer, gradients: &Gradients, workspace: Pointer) {
        self.backward_by(context, kept, dy, gradients, workspace, None);
    }

    fn backward_by(
        &self,
        context: &Context,
        kept: &Kept,
        dy: Pointer,
        gradients: &Gradients,
        workspace: Pointer,
        warps: Option<usize>,
    ) {
        if self.is_empty() {
            return;
        }
        let (v, y) = kept.scored.unzip();
        let places = self.queries.rows * self.heads;
        let statistics = workspace;
        let from = [Some(kept.q), Some(dy), Some(kept.k), v];
        let [q, packed_dy, k, v] = self.pack(context, from, workspace + self.statistics() as u64);
        let arguments = [
            Argument::Pointer(statistics),
            Argument::Pointer(kept.log_sums),
            Argument::Pointer(dy),
            Argument::Pointer(y.unwrap_or(0)),
            Argument::int(places),
            Argument::int(self.width),
        ];
        run(context, FILE, "attention_statistics", &Launch::over(places * WARP, 256, 2048), &arguments);
        let operands = [q, k, v, packed_dy, statistics];
        if gradients.keys.is_some() || gradients.values.is_some() {
            let results = [gradients.keys.unwrap_or(0), gradients.values.unwrap_or(0)];
            let pointers = results.into_iter().chain(operands).map(Argument::Pointer);
            let operands: Vec<_> = pointers.chain([Argument::int(self.queries.sequences)]).collect();
            self.run(context, Pass::KeyGradient, &operands, warps);
        }
        if let Some(dq) = gradients.queries {
            let operands: Vec<_> = [dq].into_iter().chain(operands).map(Argument::Pointer).collect();
            self.run(context, Pass::QueryGradient, &operands, warps);
        }
    }

    /// q, dy, k and v, those that there are, as the kernels read them: in their place or in the workspace.
    fn pack(&self, context: &Context, from: [Option<Pointer>; 4], workspace: Pointer) -> [Pointer; 4] {
        let mut end = workspace;
        let packing = [&self.queries, &self.queries, &self.keys, &self.keys];
        let mut arguments = Vec::new();
        let mut packed = [0; 4];
        for ((from, packing), packed) in from.into_iter().zip(packing).zip(&mut packed) {
            let moved = from.filter(|&from| !self.in_place(from));
            *packed = if moved.is_some() { end } else { from.unwrap_or(0) };
            arguments.extend([moved.map_or(0, |_| end), moved.unwrap_or(0)].map(Argument::Pointer));
            end += moved.map_or(0, |_| self.packed(packing) as u64);
        }
        if end == workspace {
            return packed;
        }
        let kernel = match self.arithmetic {
            Arithmetic::F32 => "attention_pack_f32",
            Arithmetic::Tf32 => "attention_pack_tf32",
            Arithmetic::Bf16 => "attention_pack_bf16",
        };
        let [queries, keys] = [self.queries.rows, self.keys.rows].map(|rows| rows * self.heads);
        arguments.extend([queries, keys, self.width, self.depth()].map(Argument::int));
        // Each thread a few accesses of four elements.
        let one = Launch::over((queries.max(keys) * self.depth()).div_ceil(4), 256, 1056);
        run(context, FILE, kernel, &Launch { blocks: [one.blocks[0], 4, 1], ..one }, &arguments);
        packed
    }

    fn run(&self, context: &Context, pass: Pass, operands: &[Argument], warps: Option<usize>) {
        let Kernel { name, strips, stage } = self.kernel(pass);
        let own = if pass == Pass::KeyGradient { &self.keys } else { &self.queries };
        if own.sequences == 0 {
            return;
        }
        let warp_rows = strips * STRIP;
        let blocks = |warps: usize| own.steps.div_ceil(warps * warp_rows) * self.heads * own.sequences;
        let needed = own.steps.div_ceil(warp_rows).next_power_of_two().min(MOST_WARPS);
        let fewer = if blocks(needed) < MULTIPROCESSORS { FEWEST_WARPS } else { MOST_WARPS };
        let warps = warps.unwrap_or(needed.min(fewer));
        // Forward has one operand's rows for itself, backward two; a stage has two operands, and there are two stages.
        let tiles = if pass == Pass::Forward { 1 } else { 2 } * warps * warp_rows + 4 * stage;
        let shared = tiles * (self.depth() * self.element() + PADDING);
        let launch = Launch::blocks(u32::try_from(blocks(warps)).unwrap_or(u32::MAX), (warps * WARP) as u32);
        let [low, high, threshold, scale, step, counter] = match &self.mask {
            Some(mask) => mask_arguments(context, mask, None),
            None => {
                let none = Argument::Unsigned(0);
                [none, none, none, Argument::Float(1.0), none, Argument::NONE]
            }
        };
        let packings = [self.queries.offsets, self.queries.lengths, self.keys.offsets, self.keys.lengths];
        let mut arguments = operands.to_vec();
        arguments.extend([own.steps, own.rows].map(Argument::int));
        arguments.extend(packings.map(Argument::Pointer));
        arguments.push(Argument::Pointer(self.of.unwrap_or(0)));
        arguments.extend([self.heads, self.width, own.steps.div_ceil(warps * warp_rows)].map(Argument::int));
        arguments.push(Argument::flag(self.causal));
        arguments.push(Argument::Float(1.0 / (self.width as f32).sqrt()));
        arguments.extend([low, high, threshold, scale, step, counter]);
        run(context, FILE, name, &launch.shared(shared), &arguments);
    }

    /// The tiles as kernels/attention.cu has them.
    fn kernel(&self, pass: Pass) -> Kernel {
        let (f32, tf32, bf16) = match pass {
            Pass::Forward => (
                ["attention_forward_f32_32", "attention_forward_f32_64", "attention_forward_f32_128"],
                ["attention_forward_tf32_32", "attention_forward_tf32_64", "attention_forward_tf32_128"],
                ["attention_forward_bf16_32", "attention_forward_bf16_64", "attention_forward_bf16_128"],
            ),
            Pass::QueryGradient => (
                [
                    "attention_query_gradient_f32_32",
                    "attention_query_gradient_f32_64",
                    "attention_query_gradient_f32_128",
                ],
                [
                    "attention_query_gradient_tf32_32",
                    "attention_query_gradient_tf32_64",
                    "attention_query_gradient_tf32_128",
                ],
                [
                    "attention_query_gradient_bf16_32",
                    "attention_query_gradient_bf16_64",
                    "attention_query_gradient_bf16_128",
                ],
            ),
            Pass::KeyGradient => (
                ["attention_key_gradient_f32_32", "attention_key_gradient_f32_64", "attention_key_gradient_f32_128"],
                ["attention_key_gradient_tf32_32", "attention_key_gradient_tf32_64", "attention_key_gradient_tf32_128"],
                ["attention_key_gradient_bf16_32", "attention_key_gradient_bf16_64", "attention_key_gradient_bf16_128"],
            ),
        };
        let names = match self.arithmetic {
            Arithmetic::F32 => f32,
            Arithmetic::Tf32 => tf32,
            Arithmetic::Bf16 => bf16,
        };
        let wide = self.depth() == MOST_COLUMNS;
        let (strips, stage) = match (pass, self.arithmetic == Arithmetic::Bf16) {
            (Pass::Forward, true) => (2, if wide { 32 } else { 64 }),
            (Pass::Forward, false) => (if wide { 1 } else { 2 }, 32),
            (_, true) => (if wide { 1 } else { 2 }, 32),
            (_, false) => (1, if wide { 16 } else { 32 }),
        };
        let name = names[DEPTHS.iter().position(|&depth| depth == self.depth()).unwrap_or(DEPTHS.len() - 1)];
        Kernel { name, strips, stage }
    }
}

#[cfg(all(test, feature = "emulator"))]
#[path = "attention_tests.rs"]
mod tests;
