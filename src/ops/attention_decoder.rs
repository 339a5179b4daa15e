//! An LSTM decoder with location-aware attention (Chorowski et al., 2015), as ESPnet v1's, with teacher forcing: all steps of a batch in one record.
//!
//! Backward keeps the inputs, and of every symbol gates, cell, context and the weights of its attention; what lies between them it computes again.

use crate::backend::cpu::attention::Packing;
use crate::backend::cpu::attention_decoder::{Decoder, Gradients, Initial, Kept, Results, Weights};
use crate::backend::cuda;
use crate::backend::cuda::context::{Buffer, Context};
use crate::device::{Backend, Category, Device};
use crate::error::{Error, Result};
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix};
use crate::primitives::{add_to, workspace};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use std::sync::Arc;

/// What the decoder reads and multiplies with.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a> {
    /// h, `[R', E]`: the frames of the encoder.
    pub frames: &'a Var,
    /// V h + b, `[R', A]`.
    pub encoded: &'a Var,
    /// `[R, D]`, of every symbol that is read.
    pub embedded: &'a Var,
    /// W, `[A, H]`, of the decoder's state.
    pub query: &'a Var,
    /// F, `[channels, 1, 1, taps]`, over the attention of the step before; an odd number of taps.
    pub taps: &'a Var,
    /// U, `[A, channels]`
    pub location: &'a Var,
    /// g, `[1, A]`
    pub energy: &'a Var,
    /// `[4H, D + E]`, gates in PyTorch's order i, f, g, o.
    pub input: &'a Var,
    /// `[4H, H]`
    pub recurrent: &'a Var,
    /// `[4H]`
    pub input_bias: &'a Var,
    /// `[4H]`
    pub recurrent_bias: &'a Var,
}

const NAME: &str = "attention_decoder";
/// How many there are.
const OPERANDS: usize = 11;

impl<'a> Operands<'a> {
    fn all(&self) -> [&'a Var; OPERANDS] {
        let Operands { frames, encoded, embedded, query, taps, location, energy, .. } = *self;
        let Operands { input, recurrent, input_bias, recurrent_bias, .. } = *self;
        [frames, encoded, embedded, query, taps, location, energy, input, recurrent, input_bias, recurrent_bias]
    }
}

/// Which symbols belong to which frames.
#[derive(Debug, Clone)]
pub struct Transcripts {
    /// How the symbols are packed.
    pub tokens: Sequences,
    /// How the frames are packed.
    pub frames: Sequences,
    /// The utterance of every sequence of symbols.
    pub of: Arc<[usize]>,
}

/// The state after a step of every sequence of symbols, or before.
#[derive(Debug, Clone)]
pub struct State {
    /// `[N, H]`
    pub hidden: Tensor,
    /// `[N, H]`
    pub cell: Tensor,
    /// The attention over each sequence's utterance, one behind the other, in one column.
    pub attention: Tensor,
}

struct Sizes {
    transcripts: Transcripts,
    embedding: usize,
    frame: usize,
    attention: usize,
    channels: usize,
    taps: usize,
    hidden: usize,
}

impl Sizes {
    fn check(device: &Device, operands: &Operands, transcripts: &Transcripts) -> Result<Self> {
        let (_, frame) = matrix(NAME, "the frames", operands.frames.shape())?;
        let (_, attention) = matrix(NAME, "the encoded frames", operands.encoded.shape())?;
        let (_, embedding) = matrix(NAME, "the symbols", operands.embedded.shape())?;
        let (_, hidden) = matrix(NAME, "the recurrent weight", operands.recurrent.shape())?;
        let [channels, 1, 1, taps] = *operands.taps.shape() else {
            let problem =
                format!("the taps have shape {:?} where [channels, 1, 1, taps] is needed", operands.taps.shape());
            return Err(Error::operation(NAME, problem));
        };
        if taps.is_multiple_of(2) {
            return Err(Error::operation(NAME, format!("there are {taps} taps, which have no middle")));
        }
        let Transcripts { tokens, frames, of } = transcripts;
        for (what, input, shape) in [
            ("the frames", operands.frames, &[frames.rows(), frame][..]),
            ("the encoded frames", operands.encoded, &[frames.rows(), attention]),
            ("the symbols", operands.embedded, &[tokens.rows(), embedding]),
            ("the query's weight", operands.query, &[attention, hidden]),
            ("the location's weight", operands.location, &[attention, channels]),
            ("the energy's weight", operands.energy, &[1, attention]),
            ("the input weight", operands.input, &[4 * hidden, embedding + frame]),
            ("the recurrent weight", operands.recurrent, &[4 * hidden, hidden]),
            ("the input bias", operands.input_bias, &[4 * hidden]),
            ("the recurrent bias", operands.recurrent_bias, &[4 * hidden]),
        ] {
            expect_shape(NAME, what, input.shape(), shape)?;
        }
        if of.len() != tokens.count() || of.iter().any(|&of| of >= frames.count()) {
            let problem = format!("{} sequences of symbols are of the utterances {of:?}", tokens.count());
            return Err(Error::operation(NAME, problem));
        }
        let sizes = Sizes { transcripts: transcripts.clone(), embedding, frame, attention, channels, taps, hidden };
        if let Backend::Cuda(context) = device.backend()
            && !sizes.on_device(context, device, 0).fits(context)
        {
            let problem =
                format!("{channels} channels of {taps} taps are more than a GPU's multiprocessor has room for");
            return Err(Error::operation(NAME, problem).remedy("Use fewer channels or taps, or --device cpu"));
        }
        Ok(sizes)
    }

    fn on_host(&self) -> Decoder<'_> {
        let Transcripts { tokens, frames, of } = &self.transcripts;
        Decoder {
            tokens: Packing { offsets: tokens.offsets(), lengths: tokens.lengths() },
            frames: Packing { offsets: frames.offsets(), lengths: frames.lengths() },
            of,
            embedding: self.embedding,
            frame: self.frame,
            attention: self.attention,
            channels: self.channels,
            taps: self.taps,
            hidden: self.hidden,
        }
    }

    /// Who reads what, for kernels: of every sequence of symbols its utterance and where its attention begins; of every utterance its reader.
    fn readers(&self) -> Vec<i32> {
        let Transcripts { tokens, frames, of } = &self.transcripts;
        let mut starts = Vec::with_capacity(of.len());
        let mut readers = vec![-1; frames.count()];
        let mut start = 0;
        for (n, &utterance) in of.iter().enumerate() {
            starts.push(start as i32);
            start += tokens.lengths()[n] * frames.lengths()[utterance];
            readers[utterance] = n as i32;
        }
        of.iter().map(|&utterance| utterance as i32).chain(starts).chain(readers).collect()
    }

    /// With what [`Sizes::readers`] gives at this address.
    fn on_device(&self, context: &Arc<Context>, device: &Device, readers: u64) -> cuda::attention_decoder::Decoder<'_> {
        let Transcripts { tokens, frames, of } = &self.transcripts;
        let starts = readers + (of.len() * size_of::<i32>()) as u64;
        cuda::attention_decoder::Decoder {
            tokens: tokens.on(context),
            frames: frames.on(context),
            token_offsets: tokens.offsets(),
            utterances: readers,
            starts,
            readers: starts + (of.len() * size_of::<i32>()) as u64,
            embedding: self.embedding,
            frame: self.frame,
            attention: self.attention,
            channels: self.channels,
            taps: self.taps,
            hidden: self.hidden,
            arithmetic: device.arithmetic(),
        }
    }

    fn results(&self, device: &Device) -> Forward {
        let rows = self.transcripts.tokens.rows();
        let new = |shape: &[usize]| Tensor::uninitialized(device, shape, Category::Activation);
        // On a GPU the state before each step lies beside the context, as one product reads them.
        let beside = if let Backend::Cuda(_) = device.backend() { self.hidden } else { 0 };
        Forward {
            hidden: new(&[rows, self.hidden]),
            cells: new(&[rows, self.hidden]),
            gates: new(&[rows, 4 * self.hidden]),
            contexts: new(&[rows, self.frame + beside]),
            attention: new(&[self.on_host().attention_length(), 1]),
        }
    }
}

struct Forward {
    hidden: Tensor,
    cells: Tensor,
    gates: Tensor,
    contexts: Tensor,
    attention: Tensor,
}

impl Forward {
    fn on_device(&self) -> cuda::attention_decoder::Results {
        cuda::attention_decoder::Results {
            hidden: self.hidden.pointer(),
            cells: self.cells.pointer(),
            gates: self.gates.pointer(),
            read: self.contexts.pointer(),
            attention: self.attention.pointer(),
        }
    }
}

fn device_inputs(tensors: &[Tensor; OPERANDS]) -> (cuda::attention_decoder::Inputs, cuda::attention_decoder::Weights) {
    let [frames, encoded, embedded, query, taps, location, energy, input, recurrent, input_bias, recurrent_bias] =
        tensors.each_ref().map(Tensor::pointer);
    let biases = [input_bias, recurrent_bias];
    let weights = cuda::attention_decoder::Weights { query, taps, location, energy, input, recurrent, biases };
    (cuda::attention_decoder::Inputs { frames, encoded, embedded }, weights)
}

fn weights<'a>(tensors: &'a [Tensor; OPERANDS]) -> Weights<'a> {
    let [_, _, _, query, taps, location, energy, input, recurrent, input_bias, recurrent_bias] =
        tensors.each_ref().map(Tensor::data);
    Weights { query, taps, location, energy, input, recurrent, biases: [input_bias, recurrent_bias] }
}

/// With who reads what, where a GPU has it.
fn forward(
    device: &Device,
    sizes: &Sizes,
    operands: &[Tensor; OPERANDS],
    initial: Option<&State>,
) -> (Forward, Option<Buffer>) {
    let mut forward = sizes.results(device);
    device.count_operations(sizes.on_host().operations() as u64);
    match device.backend() {
        Backend::Cpu => {
            let inputs = [0, 1, 2].map(|index| operands[index].data());
            let initial = initial.map(|state| Initial {
                hidden: state.hidden.data(),
                cell: state.cell.data(),
                attention: state.attention.data(),
            });
            let results = Results {
                hidden: forward.hidden.data_mut(),
                cells: forward.cells.data_mut(),
                gates: forward.gates.data_mut(),
                contexts: forward.contexts.data_mut(),
                attention: forward.attention.data_mut(),
            };
            sizes.on_host().forward(inputs, &weights(operands), initial, results);
            (forward, None)
        }
        Backend::Cuda(context) => {
            let readers = context.bring(&sizes.readers());
            let of = sizes.on_device(context, device, readers.pointer());
            let initial = initial.map(|state| cuda::attention_decoder::Initial {
                hidden: state.hidden.pointer(),
                cell: state.cell.pointer(),
                attention: state.attention.pointer(),
            });
            let workspace = workspace(device, cuda::attention_decoder::forward_workspace(&of));
            let (inputs, weights) = device_inputs(operands);
            let results = forward.on_device();
            cuda::attention_decoder::forward(context, &of, inputs, &weights, initial, results, workspace.pointer());
            (forward, Some(readers))
        }
        Backend::Plan => (forward, None),
    }
}

/// The gradient of every operand that is wanted; both biases have the same, which is left to the first of them.
type Wanted = [Option<Tensor>; OPERANDS];

fn backward_on_host(
    sizes: &Sizes,
    tensors: &[Tensor; OPERANDS],
    kept: &Forward,
    gradient: &Tensor,
    results: &mut Wanted,
) {
    let kept = Kept {
        hidden: kept.hidden.data(),
        cells: kept.cells.data(),
        gates: kept.gates.data(),
        contexts: kept.contexts.data(),
        attention: kept.attention.data(),
    };
    let [frames, encoded, embedded, query, taps, location, energy, input, recurrent, bias, other_bias] =
        results.each_mut().map(|result| result.as_mut().map(Tensor::data_mut));
    let bias = bias.or(other_bias);
    let gradients = Gradients { frames, encoded, embedded, query, taps, location, energy, input, recurrent, bias };
    let inputs = [0, 1, 2].map(|index| tensors[index].data());
    sizes.on_host().backward(inputs, &weights(tensors), kept, gradient.data(), gradients);
}

fn backward_on_device(
    context: &Arc<Context>,
    sizes: &Sizes,
    tensors: &[Tensor; OPERANDS],
    kept: &Forward,
    readers: &Buffer,
    gradient: &Tensor,
    results: &mut Wanted,
) {
    let device = gradient.device();
    let of = sizes.on_device(context, device, readers.pointer());
    let [frames, encoded, embedded, query, taps, location, energy, input, recurrent, bias, other_bias] =
        results.each_mut().map(|result| result.as_mut().map(Tensor::pointer_mut));
    let bias = bias.or(other_bias);
    let gradients = cuda::attention_decoder::Gradients {
        frames,
        encoded,
        embedded,
        query,
        taps,
        location,
        energy,
        input,
        recurrent,
        bias,
    };
    let workspace = workspace(device, cuda::attention_decoder::backward_workspace(&of));
    let (inputs, weights) = device_inputs(tensors);
    let (dy, kept, workspace) = (gradient.pointer(), kept.on_device(), workspace.pointer());
    cuda::attention_decoder::backward(context, &of, inputs, &weights, kept, dy, &gradients, workspace);
}

/// The LSTM's output for every symbol, `[R, H]`. With a gradient, each utterance has one sequence of symbols at most.
///
/// # Errors
/// If the shapes do not fit; if there are more channels and taps than a GPU's kernels have room for.
pub fn attention_decoder(tape: &mut Tape, operands: Operands, transcripts: &Transcripts) -> Result<Var> {
    let sizes = Sizes::check(tape.device(), &operands, transcripts)?;
    let device = tape.device().clone();
    let inputs = operands.all();
    let tensors = inputs.map(|input| input.tensor().clone());
    let (kept, readers) = forward(&device, &sizes, &tensors, None);
    let places = inputs.map(|input| tape.wants(input));
    let mut of = transcripts.of.to_vec();
    of.sort_unstable();
    if places.iter().any(Option::is_some) && of.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Error::operation(NAME, "several sequences of symbols of one utterance have no gradient"));
    }
    let output = kept.hidden.clone();
    Ok(tape.record(&inputs, output, move |gradient, backward| {
        // Those of the products, and the tangents once more.
        device.count_operations(3 * sizes.on_host().operations() as u64);
        let new = |x: &Tensor| Tensor::uninitialized(&device, x.shape(), Category::Activation);
        let mut results: Wanted = std::array::from_fn(|operand| places[operand].map(|_| new(&tensors[operand])));
        match (device.backend(), &readers) {
            (Backend::Cpu, _) => backward_on_host(&sizes, &tensors, &kept, &gradient, &mut results),
            (Backend::Cuda(context), Some(readers)) => {
                backward_on_device(context, &sizes, &tensors, &kept, readers, &gradient, &mut results);
            }
            (Backend::Cuda(_), None) | (Backend::Plan, _) => {}
        }
        if let [.., Some(bias), Some(other)] = &mut results {
            add_to(other, bias, false);
        }
        for (place, result) in places.into_iter().zip(results) {
            if let (Some(place), Some(result)) = (place, result) {
                backward.give(place, result);
            }
        }
        Ok(())
    }))
}

/// One step of sequences that have read the same number of symbols: `transcripts.tokens` has one for each. Gives the state then, whose `hidden` is
/// the output.
///
/// # Errors
/// If the shapes do not fit; if there are more channels and taps than a GPU's kernels have room for.
pub fn step(device: &Device, operands: Operands, transcripts: &Transcripts, before: Option<&State>) -> Result<State> {
    let sizes = Sizes::check(device, &operands, transcripts)?;
    let count = transcripts.tokens.count();
    expect_shape(NAME, "the symbols of a step", &[transcripts.tokens.rows()], &[count])?;
    if let Some(State { hidden, cell, attention }) = before {
        expect_shape(NAME, "the state", hidden.shape(), &[count, sizes.hidden])?;
        expect_shape(NAME, "the cell", cell.shape(), &[count, sizes.hidden])?;
        expect_shape(NAME, "the attention", attention.shape(), &[sizes.on_host().attention_length(), 1])?;
    }
    let tensors = operands.all().map(|input| input.tensor().clone());
    let (Forward { hidden, cells, attention, .. }, _) = forward(device, &sizes, &tensors, before);
    Ok(State { hidden, cell: cells, attention })
}
