//! An LSTM decoder with location-aware attention, all steps of a batch: `kernels/attention_decoder.cu` and the products around it.

use super::context::Context;
use super::convolution::exchange;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::{THREADS, column_sums, column_sums_workspace, fill, run};
use super::matmul::{Arithmetic, Operand, matmul};
use super::sequences::Packing;
use std::sync::Arc;

const FILE: &str = "attention_decoder";
// As in the kernels.
const FRAMES: usize = 32;
const UNITS: usize = 128;
const COLUMNS: usize = 64;
const WARPS: usize = 8;
/// Blocks of a pass over elements, at most.
const MOST_BLOCKS: u32 = 1024;

/// The sizes of a batch, as [`crate::backend::cpu::attention_decoder::Decoder`] has them.
#[derive(Debug, Clone, Copy)]
pub struct Decoder<'a> {
    pub tokens: Packing,
    pub frames: Packing,
    /// The first row of every step of the symbols, on the host: the loop over the steps is here.
    pub token_offsets: &'a [usize],
    /// i32: of every sequence of symbols its utterance and where its attention begins, of every utterance the sequence that reads it or -1.
    pub utterances: Pointer,
    pub starts: Pointer,
    pub readers: Pointer,
    pub embedding: usize,
    pub frame: usize,
    pub attention: usize,
    pub channels: usize,
    pub taps: usize,
    pub hidden: usize,
    pub arithmetic: Arithmetic,
}

/// What is multiplied with: see [`crate::backend::cpu::attention_decoder::Weights`].
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    pub query: Pointer,
    pub taps: Pointer,
    pub location: Pointer,
    pub energy: Pointer,
    pub input: Pointer,
    pub recurrent: Pointer,
    pub biases: [Pointer; 2],
}

/// Frames `[R', E]`, encoded frames `[R', A]`, symbols `[R, D]`.
#[derive(Debug, Clone, Copy)]
pub struct Inputs {
    pub frames: Pointer,
    pub encoded: Pointer,
    pub embedded: Pointer,
}

/// What a step begins with, `[N, H]` twice, and the attention of the sequences one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Initial {
    pub hidden: Pointer,
    pub cell: Pointer,
    pub attention: Pointer,
}

/// What forward gives, and backward reads.
#[derive(Debug, Clone, Copy)]
pub struct Results {
    /// z and the cells, `[R, H]`.
    pub hidden: Pointer,
    pub cells: Pointer,
    /// `[R, 4H]`
    pub gates: Pointer,
    /// What the LSTM reads beside the symbol: the context and z of the step before, `[R, E + H]`.
    pub read: Pointer,
    /// a, by sequence and step.
    pub attention: Pointer,
}

/// Where the gradients that are wanted go; all are overwritten. Both biases have the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gradients {
    pub frames: Option<Pointer>,
    pub encoded: Option<Pointer>,
    pub embedded: Option<Pointer>,
    pub query: Option<Pointer>,
    pub taps: Option<Pointer>,
    pub location: Option<Pointer>,
    pub energy: Option<Pointer>,
    pub input: Option<Pointer>,
    pub recurrent: Option<Pointer>,
    pub bias: Option<Pointer>,
}

/// One step: its first row, its sequences, and those of the step behind it.
#[derive(Clone, Copy)]
struct Step {
    number: usize,
    row: usize,
    active: usize,
    next: usize,
}

/// Shares out a workspace, in pieces aligned to 16 bytes.
struct Workspace(Pointer);

impl Workspace {
    fn take(&mut self, floats: usize) -> Pointer {
        let pointer = self.0;
        self.0 += (floats * size_of::<f32>()).next_multiple_of(16) as u64;
        pointer
    }
}

/// What both passes work in.
struct Room {
    /// The LSTM's weights of context and z, `[4H, E + H]`; backward transposed, as the products of a step want them.
    weights: Pointer,
    /// W z: forward of a step, `[N, A]`, backward of all, `[R, A]`.
    queries: Pointer,
    /// Forward 2 e, backward the gradients of a, `[N, most frames]`.
    energies: Pointer,
    products: Pointer,
}

struct BackwardRoom {
    /// W, transposed: `[H, A]`.
    query: Pointer,
    dqueries: Pointer,
    dgates: Pointer,
    /// `[R, E + H]`
    dread: Pointer,
    dcells: Pointer,
    dlocated: Pointer,
    dquery_parts: Pointer,
    own_sums: Pointer,
}

impl Decoder<'_> {
    fn padded(&self) -> usize {
        self.channels.next_multiple_of(4)
    }

    /// Columns of what the LSTM reads beside the symbol.
    fn reads(&self) -> usize {
        self.frame + self.hidden
    }

    /// Blocks of frames of the longest utterance.
    fn blocks(&self) -> usize {
        self.frames.steps.div_ceil(FRAMES)
    }

    /// Floats of the sums that a block keeps.
    fn own_sums(&self) -> usize {
        self.attention * (1 + self.channels) + self.channels * self.taps
    }

    fn steps(&self) -> impl DoubleEndedIterator<Item = Step> + '_ {
        let at = |number: usize| self.token_offsets.get(number + 1).map_or(0, |end| end - self.token_offsets[number]);
        (0..self.tokens.steps).map(move |number| Step {
            number,
            row: self.token_offsets[number],
            active: at(number),
            next: at(number + 1),
        })
    }

    fn room(&self, rows: usize, workspace: &mut Workspace) -> Room {
        Room {
            weights: workspace.take(4 * self.hidden * self.reads()),
            queries: workspace.take(rows * self.attention),
            energies: workspace.take(self.tokens.sequences * self.frames.steps),
            products: 0,
        }
    }

    fn backward_room(&self, workspace: &mut Workspace) -> BackwardRoom {
        let (rows, sequences, frames) = (self.tokens.rows, self.tokens.sequences, self.frames.steps);
        BackwardRoom {
            query: workspace.take(self.attention * self.hidden),
            dqueries: workspace.take(rows * self.attention),
            dgates: workspace.take(rows * 4 * self.hidden),
            dread: workspace.take(rows * self.reads()),
            dcells: workspace.take(sequences * self.hidden),
            dlocated: workspace.take(sequences * frames * self.padded()),
            dquery_parts: workspace.take(self.blocks() * sequences * self.attention),
            own_sums: workspace.take(sequences * self.blocks() * self.own_sums()),
        }
    }

    /// Bytes of workspace of the products of all symbols.
    fn product_workspace(&self, shapes: &[(usize, usize, usize)]) -> usize {
        let bytes = |&(m, n, k): &_| super::matmul::workspace(m, n, k, self.arithmetic);
        shapes.iter().map(bytes).max().unwrap_or(0)
    }

    /// Bytes of shared memory of the three kernels that know the location.
    fn shared(&self) -> [usize; 3] {
        let (padded, window) = (self.padded(), FRAMES + self.taps - 1);
        let room = (self.taps + (1 + WARPS) * FRAMES + UNITS) * padded + window;
        let backward = room + FRAMES * (UNITS + 1) + FRAMES + 4 * UNITS + 32 + FRAMES;
        let location = self.taps * padded + window * (padded + 1) + THREADS as usize;
        [room, backward, location].map(|floats| floats * size_of::<f32>())
    }

    /// Whether a block's shared memory has room for so many channels and taps.
    pub fn fits(&self, context: &Context) -> bool {
        self.shared().into_iter().all(|bytes| bytes <= context.properties().shared_per_block as usize)
    }

    fn readers(&self) -> [Argument; 4] {
        [self.utterances, self.starts, self.frames.offsets, self.frames.lengths].map(Argument::Pointer)
    }

    fn location(&self) -> [Argument; 4] {
        [self.attention, self.channels, self.taps, self.frames.steps].map(Argument::int)
    }

    fn blocks_of_frames(&self, active: usize) -> Launch {
        Launch { blocks: [self.blocks() as u32, active as u32, 1], ..Launch::blocks(1, THREADS) }
    }

    fn elements(&self, count: usize) -> Launch {
        Launch::over(count, THREADS, MOST_BLOCKS)
    }

    /// The weights that context and z are multiplied with, side by side.
    fn lay_out(&self, context: &Context, weights: &Weights, to: Pointer, transposed: bool) {
        let tensors = [to, weights.input, weights.recurrent].map(Argument::Pointer);
        let sizes = [4 * self.hidden, self.embedding, self.frame, self.hidden].map(Argument::int);
        let launch = self.elements(4 * self.hidden * self.reads());
        let arguments = [&tensors[..], &sizes, &[Argument::flag(transposed)]].concat();
        run(context, FILE, "attention_decoder_weights", &launch, &arguments);
    }

    fn is_empty(&self) -> bool {
        self.tokens.rows == 0 || self.attention * self.hidden * self.frame * self.embedding == 0
    }
}

/// Blocks for so many fours of columns, or units, of so many rows.
fn tiles(fours: usize, rows: usize) -> Launch {
    const ROWS: usize = 16;
    const WARPS_OF_ROWS: usize = 4;
    const DEPTH: usize = 256;
    let blocks = [fours.div_ceil(WARPS_OF_ROWS) as u32, rows.div_ceil(ROWS) as u32, 1];
    Launch { blocks, ..Launch::blocks(1, 32 * WARPS_OF_ROWS as u32) }.shared(ROWS * DEPTH * size_of::<f32>())
}

/// y `[rows, columns]` = (or, accumulating, +=) x `[rows, depth]` weights `[columns, depth]`^T, for the rows of a step; y and x with their strides.
fn multiply(
    context: &Context,
    (rows, columns, depth): (usize, usize, usize),
    (x, x_stride): (Pointer, usize),
    weights: Pointer,
    (y, y_stride): (Pointer, usize),
    accumulate: bool,
) {
    let arguments = [
        Argument::Pointer(y),
        Argument::int(y_stride),
        Argument::Pointer(x),
        Argument::int(x_stride),
        Argument::Pointer(weights),
        Argument::int(rows),
        Argument::int(columns),
        Argument::int(depth),
        Argument::flag(accumulate),
    ];
    run(context, FILE, "attention_decoder_product", &tiles(columns.div_ceil(4), rows), &arguments);
}

/// A pointer so many floats behind another.
fn at(pointer: Pointer, floats: usize) -> Pointer {
    pointer + (floats * size_of::<f32>()) as u64
}

/// Bytes of workspace of [`forward`], aligned to 16 bytes.
pub fn forward_workspace(of: &Decoder) -> usize {
    let mut workspace = Workspace(0);
    of.room(of.tokens.sequences, &mut workspace);
    workspace.0 as usize + of.product_workspace(&[(of.tokens.rows, 4 * of.hidden, of.embedding)])
}

/// All steps of a batch; from `initial`, or from zeros and even attention.
pub fn forward(
    context: &Arc<Context>,
    of: &Decoder,
    inputs: Inputs,
    weights: &Weights,
    initial: Option<Initial>,
    results: Results,
    workspace: Pointer,
) {
    if of.is_empty() {
        return;
    }
    let Decoder { embedding, frame, attention, hidden, arithmetic, .. } = *of;
    let mut pieces = Workspace(workspace);
    let mut room = of.room(of.tokens.sequences, &mut pieces);
    room.products = pieces.0;
    let reads = of.reads();
    of.lay_out(context, weights, room.weights, false);
    let symbols = Operand::rows(inputs.embedded, embedding);
    let of_symbols = Operand::rows(weights.input, embedding + frame).transposed();
    let (rows, products) = (of.tokens.rows, room.products);
    let (m, n, k) = (rows, 4 * hidden, embedding);
    matmul(context, m, n, k, symbols, of_symbols, results.gates, n, false, arithmetic, products);
    let first = [Argument::Pointer(results.read), Argument::Pointer(initial.map_or(0, |initial| initial.hidden))];
    let sizes = [of.tokens.sequences, frame, hidden].map(Argument::int);
    let launch = of.elements(of.tokens.sequences * hidden);
    run(context, FILE, "attention_decoder_begin", &launch, &[&first[..], &sizes].concat());
    for step in of.steps() {
        let read = at(results.read, step.row * reads);
        let (z, query) = ((at(read, frame), reads), (room.queries, attention));
        multiply(context, (step.active, attention, hidden), z, weights.query, query, false);
        let tensors = [
            room.energies,
            inputs.encoded,
            room.queries,
            weights.taps,
            weights.location,
            weights.energy,
            results.attention,
            initial.map_or(0, |initial| initial.attention),
        ];
        let number = [Argument::int(step.number)];
        let arguments = [&tensors.map(Argument::Pointer)[..], &of.readers(), &number, &of.location()].concat();
        let launch = of.blocks_of_frames(step.active).shared(of.shared()[0]);
        run(context, FILE, "attention_decoder_energies", &launch, &arguments);

        let tensors = [read, results.attention, room.energies, inputs.frames].map(Argument::Pointer);
        let sizes = [step.number, frame, reads, of.frames.steps].map(Argument::int);
        let blocks = [frame.div_ceil(COLUMNS) as u32, step.active as u32, 1];
        let launch = Launch { blocks, ..Launch::blocks(1, THREADS) };
        let launch = launch.shared((THREADS as usize + 4 * COLUMNS + 32) * size_of::<f32>());
        run(context, FILE, "attention_decoder_contexts", &launch, &[&tensors[..], &of.readers(), &sizes].concat());

        let before = match step.number {
            0 => initial.map_or(0, |initial| initial.cell),
            number => at(results.cells, of.token_offsets[number - 1] * hidden),
        };
        let [cells, state] = [results.cells, results.hidden].map(|tensor| at(tensor, step.row * hidden));
        let next = at(results.read, (step.row + step.active) * reads);
        let (gates, [input_bias, recurrent_bias]) = (at(results.gates, step.row * 4 * hidden), weights.biases);
        let tensors = [gates, read, room.weights, input_bias, recurrent_bias, before, cells, state, next];
        let sizes = [step.active, step.next, hidden, frame].map(Argument::int);
        let arguments = [&tensors.map(Argument::Pointer)[..], &sizes].concat();
        run(context, FILE, "attention_decoder_cell", &tiles(hidden, step.active), &arguments);
    }
}

/// Bytes of workspace of [`backward`].
pub fn backward_workspace(of: &Decoder) -> usize {
    let Decoder { embedding, frame, attention, hidden, .. } = *of;
    let rows = of.tokens.rows;
    let mut workspace = Workspace(0);
    of.room(rows, &mut workspace);
    of.backward_room(&mut workspace);
    let all = [
        (rows, attention, hidden),
        (rows, embedding, 4 * hidden),
        (4 * hidden, embedding, rows),
        (4 * hidden, frame, rows),
        (4 * hidden, hidden, rows),
        (attention, hidden, rows),
    ];
    let products = of.product_workspace(&all);
    workspace.0 as usize + products.max(column_sums_workspace(rows, 4 * hidden))
}

/// The gradients of what forward read, from that of z, `[R, H]`, at `dy`; forward began with nothing, and every utterance has one reader at most.
#[allow(clippy::too_many_arguments)] // What forward took and gave, and where the gradients go.
pub fn backward(
    context: &Arc<Context>,
    of: &Decoder,
    inputs: Inputs,
    weights: &Weights,
    results: Results,
    dy: Pointer,
    gradients: &Gradients,
    workspace: Pointer,
) {
    let frame_rows = of.frames.rows;
    if let Some(encoded) = gradients.encoded {
        fill(context, encoded, 0.0, frame_rows * of.attention);
    }
    if of.is_empty() {
        return without_symbols(context, of, gradients);
    }
    let Decoder { embedding, frame, attention, hidden, arithmetic, .. } = *of;
    let (rows, reads) = (of.tokens.rows, of.reads());
    let mut pieces = Workspace(workspace);
    let mut room = of.room(rows, &mut pieces);
    let own = of.backward_room(&mut pieces);
    room.products = pieces.0;
    let products = room.products;
    let wanted = gradients.energy.or(gradients.location).or(gradients.taps);
    let own_sums = wanted.map_or(0, |_| own.own_sums);
    of.lay_out(context, weights, room.weights, true);
    let states = Operand::rows(at(results.read, frame), reads);
    let queries = Operand::rows(weights.query, hidden).transposed();
    matmul(context, rows, attention, hidden, states, queries, room.queries, attention, false, arithmetic, products);
    exchange(context, weights.query, own.query, 1, attention, hidden);
    for step in of.steps().rev() {
        let before = match step.number {
            0 => 0,
            number => at(results.cells, of.token_offsets[number - 1] * hidden),
        };
        let dread = at(own.dread, step.row * reads);
        let dgates = at(own.dgates, step.row * 4 * hidden);
        let tensors = [
            dgates,
            own.dcells,
            at(results.gates, step.row * 4 * hidden),
            at(results.cells, step.row * hidden),
            before,
            at(dy, step.row * hidden),
            at(own.dread, (step.row + step.active) * reads),
        ];
        let sizes = [step.active, step.next, hidden, frame].map(Argument::int);
        let arguments = [&tensors.map(Argument::Pointer)[..], &sizes].concat();
        let launch = of.elements(step.active * hidden);
        run(context, FILE, "attention_decoder_cell_backward", &launch, &arguments);

        let shape = (step.active, reads, 4 * hidden);
        multiply(context, shape, (dgates, 4 * hidden), room.weights, (dread, reads), false);
        let tensors = [room.energies, inputs.frames, dread].map(Argument::Pointer);
        let sizes = [step.next, frame, reads, of.frames.steps].map(Argument::int);
        let launch = of.blocks_of_frames(step.active);
        run(context, FILE, "attention_decoder_frames_dot", &launch, &[&tensors[..], &of.readers(), &sizes].concat());

        let tensors = [
            room.energies,
            gradients.encoded.unwrap_or(0),
            own.dlocated,
            own.dquery_parts,
            own_sums,
            inputs.encoded,
            at(room.queries, step.row * attention),
            weights.taps,
            weights.location,
            weights.energy,
            results.attention,
        ];
        let numbers = [step.number, step.next, of.tokens.sequences].map(Argument::int);
        let arguments = [&tensors.map(Argument::Pointer)[..], &of.readers(), &numbers, &of.location()].concat();
        let launch = of.blocks_of_frames(step.active).shared(of.shared()[1]);
        run(context, FILE, "attention_decoder_energies_backward", &launch, &arguments);

        let dquery = at(own.dqueries, step.row * attention);
        let dattention = if step.number > 0 { room.energies } else { 0 };
        let tensors = [own.dlocated, dattention, own_sums, own.dquery_parts, dquery, weights.taps, results.attention];
        let arguments = [&tensors.map(Argument::Pointer)[..], &of.readers(), &numbers, &of.location()].concat();
        let launch = of.blocks_of_frames(step.active).shared(of.shared()[2]);
        run(context, FILE, "attention_decoder_location_backward", &launch, &arguments);
        if step.number > 0 {
            let shape = (step.active, hidden, attention);
            multiply(context, shape, (dquery, attention), own.query, (at(dread, frame), reads), true);
        }
    }
    let dgates = Operand::rows(own.dgates, 4 * hidden);
    if let Some(to) = gradients.embedded {
        let of_symbols = Operand::rows(weights.input, embedding + frame);
        matmul(context, rows, embedding, 4 * hidden, dgates, of_symbols, to, embedding, false, arithmetic, products);
    }
    let of_weight = |to: Option<Pointer>, left: Operand, m: usize, (right, n): (Operand, usize), stride: usize| {
        if let Some(to) = to {
            matmul(context, m, n, rows, left.transposed(), right, to, stride, false, arithmetic, products);
        }
    };
    let symbols = (Operand::rows(inputs.embedded, embedding), embedding);
    let contexts = (Operand::rows(results.read, reads), frame);
    of_weight(gradients.input, dgates, 4 * hidden, symbols, embedding + frame);
    let behind = gradients.input.map(|input| at(input, embedding));
    of_weight(behind, dgates, 4 * hidden, contexts, embedding + frame);
    of_weight(gradients.recurrent, dgates, 4 * hidden, (states, hidden), hidden);
    of_weight(gradients.query, Operand::rows(own.dqueries, attention), attention, (states, hidden), hidden);
    if let Some(bias) = gradients.bias {
        column_sums(context, Operand::rows(own.dgates, 4 * hidden), rows, 4 * hidden, bias, false, products);
    }
    if wanted.is_some() {
        let to = [gradients.energy, gradients.location, gradients.taps].map(Option::unwrap_or_default);
        let tensors = [own_sums, to[0], to[1], to[2], of.utterances, of.frames.lengths].map(Argument::Pointer);
        let sizes = [of.tokens.sequences, of.blocks(), attention, of.channels, of.taps].map(Argument::int);
        let launch = of.elements(of.own_sums());
        run(context, FILE, "attention_decoder_sum", &launch, &[&tensors[..], &sizes].concat());
    }
    if let Some(frames) = gradients.frames {
        sum_of_frames(context, of, results.attention, own.dread, frames);
    }
}

fn sum_of_frames(context: &Context, of: &Decoder, attention: Pointer, dread: Pointer, to: Pointer) {
    if of.frames.rows == 0 {
        return;
    }
    let (tokens, frames) = (&of.tokens, &of.frames);
    let sequences = [of.readers, of.starts, frames.offsets, frames.lengths, tokens.offsets, tokens.lengths];
    let tensors = [to, attention, dread].map(Argument::Pointer);
    let sizes = [of.frame, of.reads()].map(Argument::int);
    let blocks = [of.blocks() as u32, of.frame.div_ceil(COLUMNS) as u32, frames.sequences as u32];
    let launch = Launch { blocks, ..Launch::blocks(1, THREADS) }.shared(FRAMES * (32 + COLUMNS) * size_of::<f32>());
    let arguments = [&tensors[..], &sequences.map(Argument::Pointer), &sizes].concat();
    run(context, FILE, "attention_decoder_frames_backward", &launch, &arguments);
}

/// Where nothing was read, every gradient is zero.
fn without_symbols(context: &Context, of: &Decoder, gradients: &Gradients) {
    let Decoder { embedding, frame, attention, channels, taps, hidden, .. } = *of;
    for (to, count) in [
        (gradients.frames, of.frames.rows * frame),
        (gradients.embedded, of.tokens.rows * embedding),
        (gradients.query, attention * hidden),
        (gradients.taps, channels * taps),
        (gradients.location, attention * channels),
        (gradients.energy, attention),
        (gradients.input, 4 * hidden * (embedding + frame)),
        (gradients.recurrent, 4 * hidden * hidden),
        (gradients.bias, 4 * hidden),
    ] {
        if let Some(to) = to {
            fill(context, to, 0.0, count);
        }
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests;
