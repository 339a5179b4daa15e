//! ESPnet v1's recogniser with CTC and location-aware attention (Kim, Hori, Watanabe, 2017): a BLSTM encoder, perhaps under a VGG front end, a CTC
//! softmax over its frames, and an LSTM decoder that attends to them and predicts the next symbol.
//!
//! The decoder's loss has ESPnet's two oddities: the cross entropies' mean over all symbols is multiplied by their number per utterance less one, and
//! unigram label smoothing adds `-sum prior ln p` of every symbol, divided by the number of utterances. Groups, bottom to top: the encoder's, the
//! decoder with its attention, and both softmax layers together: the papers' top cut. The last symbol begins and ends a transcript. Decoder and
//! CTC softmax have ESPnet's names.

use crate::decode::Predictor;
use crate::error::{Error, Result};
use crate::models::blstm_encoder::{BlstmEncoder, EncoderSizes};
use crate::models::declaring::Declaring;
use crate::models::predictors::AttentionPredictor;
use crate::models::recogniser::{Encoded, Loss, Recogniser, Teaching, UtteranceLosses};
use crate::models::{Network, Structure};
use crate::nn::initialization::Role;
use crate::nn::{Embedding, Linear, ParameterSpec, Parameters};
use crate::ops;
pub use crate::ops::attention_decoder::State;
use crate::ops::attention_decoder::{Operands, Transcripts};
use crate::ops::cross_entropy::Labels;
use crate::ops::embedding::Rows;
use crate::ops::linear::Activation;
use crate::ops::sequences::Sequences;
use crate::random::MaskKey;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use std::sync::Arc;

/// The sizes of a `ctc-attention`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    pub encoder: EncoderSizes,
    /// In which frames and decoder states are compared.
    pub attention: usize,
    /// Filters over the attention of the step before, and their reach to each side.
    pub channels: usize,
    pub reach: usize,
    /// Columns of a symbol, and units of the decoder's LSTM.
    pub decoder_units: usize,
    /// Of the CTC loss; the rest is the decoder's.
    pub ctc_weight: f64,
    /// Of the decoder's labels, over the symbols as `unigrams` has them; in training only.
    pub label_smoothing: f64,
    /// In training the decoder reads, with this probability, the symbol that it found likeliest itself instead of the true one.
    pub scheduled_sampling: f64,
    /// `[symbols]`, adds up to 1; none: all alike.
    pub unigrams: Option<Arc<[f32]>>,
    /// With the blank and the end of a transcript.
    pub symbols: usize,
}

#[derive(Debug, Clone)]
pub struct CtcAttention {
    sizes: Sizes,
    encoder: BlstmEncoder,
    encoded: Linear,
    /// Index of W; taps, U and g follow it.
    attention: usize,
    embedding: Embedding,
    /// Index of the LSTM's input weight; the other three follow.
    lstm: usize,
    output: Linear,
    ctc: Linear,
    structure: Structure,
}

/// The encoder's frames as the decoder reads them, computed once for all steps: see [`CtcAttention::remember`].
pub struct Memory {
    sequences: Sequences,
    frames: Var,
    encoded: Var,
}

impl Network for CtcAttention {
    fn structure(&self) -> &Structure {
        &self.structure
    }
}

impl CtcAttention {
    pub fn new(sizes: Sizes) -> Self {
        let mut to = Declaring::default();
        let encoder = BlstmEncoder::declare(&mut to, sizes.encoder.clone());
        let (frame, attention, units) = (sizes.encoder.projection, sizes.attention, sizes.decoder_units);
        let encoded = Linear::declare(&mut to.specs, "att.mlp_enc", frame, attention, Activation::Identity);
        let first = to.specs.len();
        let mut weight = |name: &str, shape: Vec<usize>, role: Role, pytorch_fan: usize| {
            to.specs.push(ParameterSpec { name: name.into(), shape, role, pytorch_fan });
        };
        let taps = 2 * sizes.reach + 1;
        weight("att.mlp_dec.weight", vec![attention, units], Role::Weight, units);
        weight("att.loc_conv.weight", vec![sizes.channels, 1, 1, taps], Role::Weight, taps);
        weight("att.mlp_att.weight", vec![attention, sizes.channels], Role::Weight, sizes.channels);
        weight("att.gvec.weight", vec![1, attention], Role::Weight, attention);
        to.end_layer("att");
        let embedding = Embedding::declare(&mut to.specs, "dec.embed", sizes.symbols, units);
        to.end_layer("dec.embed");
        let lstm = to.specs.len();
        for (name, shape, role) in [
            ("weight_ih", vec![4 * units, units + frame], Role::Weight),
            ("weight_hh", vec![4 * units, units], Role::Weight),
            ("bias_ih", vec![4 * units], Role::GateBias),
            ("bias_hh", vec![4 * units], Role::Bias),
        ] {
            to.specs.push(ParameterSpec { name: format!("dec.decoder.0.{name}"), shape, role, pytorch_fan: units });
        }
        to.end_layer("dec.decoder.0");
        to.end_group("decoder");
        let output = Linear::declare(&mut to.specs, "dec.output", units, sizes.symbols, Activation::Identity);
        to.end_layer("dec.output");
        let ctc = Linear::declare(&mut to.specs, "ctc.ctc_lo", frame, sizes.symbols, Activation::Identity);
        to.end_layer("ctc.ctc_lo");
        to.end_group("softmax");
        let structure = to.structure();
        CtcAttention { sizes, encoder, encoded, attention: first, embedding, lstm, output, ctc, structure }
    }

    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The symbol that begins and ends a transcript.
    pub fn end(&self) -> u32 {
        (self.sizes.symbols - 1) as u32
    }

    /// Runs `work` with what the decoder reads and multiplies with.
    fn with_operands<T>(
        &self,
        parameters: &Parameters,
        [frames, encoded, embedded]: [&Var; 3],
        work: impl FnOnce(Operands) -> T,
    ) -> T {
        let [query, taps, location, energy] = [0, 1, 2, 3].map(|k| parameters.var(self.attention + k));
        let [input, recurrent, input_bias, recurrent_bias] = [0, 1, 2, 3].map(|k| parameters.var(self.lstm + k));
        work(Operands {
            frames,
            encoded,
            embedded,
            query: &query,
            taps: &taps,
            location: &location,
            energy: &energy,
            input: &input,
            recurrent: &recurrent,
            input_bias: &input_bias,
            recurrent_bias: &recurrent_bias,
        })
    }

    /// The decoder with teacher forcing: the logits of the symbol after each token, `[R, V]`. `tokens` are packed as `sequences`, each of which
    /// attends to the sequence `of` it among `memory`, which is `hidden: [R', D]` from [`Recogniser::encode`] and how it is packed.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn decode(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        (hidden, memory): (&Var, &Sequences),
        tokens: &[u32],
        sequences: &Sequences,
        of: &[usize],
    ) -> Result<Var> {
        let encoded = self.encoded.forward(tape, parameters, hidden)?;
        let embedded = self.embedding.forward(tape, parameters, tokens)?;
        let transcripts = Transcripts { tokens: sequences.clone(), frames: memory.clone(), of: of.into() };
        let states = self.with_operands(parameters, [hidden, &encoded, &embedded], |operands| {
            ops::attention_decoder::attention_decoder(tape, operands, &transcripts)
        })?;
        drop((encoded, embedded));
        self.output.forward(tape, parameters, &states)
    }

    /// What [`CtcAttention::step`] reads of the encoder's frames, computed once for all steps and hypotheses.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn remember(&self, parameters: &Parameters, hidden: &Var, sequences: &Sequences) -> Result<Memory> {
        let mut tape = Tape::without_gradients(hidden.tensor().device());
        let encoded = self.encoded.forward(&mut tape, parameters, hidden)?;
        Ok(Memory { sequences: sequences.clone(), frames: hidden.clone(), encoded })
    }

    /// Every hypothesis reads its next token, [`CtcAttention::end`] first, from its state, none before the first step; gives the logits of the
    /// token after it, `[N, V]`, and the state then. Hypothesis n is one of utterance `of[n]` of `memory`.
    ///
    /// # Errors
    /// If there are not as many tokens and utterances as hypotheses, or one is out of range.
    pub fn step(
        &self,
        parameters: &Parameters,
        memory: &Memory,
        state: Option<&State>,
        of: &[usize],
        tokens: &[u32],
    ) -> Result<(Tensor, State)> {
        if tokens.len() != of.len() {
            let problem = format!("{} tokens of {} utterances", tokens.len(), of.len());
            return Err(Error::operation("decoder step", problem));
        }
        let device = parameters.value(0).device();
        let mut tape = Tape::without_gradients(device);
        let embedded = self.embedding.forward(&mut tape, parameters, tokens)?;
        let sequences = Sequences::new(&vec![1; tokens.len()])?;
        let transcripts = Transcripts { tokens: sequences, frames: memory.sequences.clone(), of: of.into() };
        let read = [&memory.frames, &memory.encoded, &embedded];
        let state = self.with_operands(parameters, read, |operands| {
            ops::attention_decoder::step(device, operands, &transcripts, state)
        })?;
        let hidden = Var::constant(state.hidden.clone());
        let logits = self.output.forward(&mut tape, parameters, &hidden)?.tensor().clone();
        Ok((logits, state))
    }

    /// The states of the hypotheses with these numbers, in this order; one may be taken several times. `of` is as it was for the step.
    ///
    /// # Errors
    /// If there is no such hypothesis.
    pub fn select(&self, memory: &Memory, state: &State, of: &[usize], hypotheses: &[usize]) -> Result<State> {
        let mut starts = vec![0];
        for &utterance in of {
            let frames = memory.sequences.lengths().get(utterance).copied().unwrap_or_default();
            starts.push(starts[starts.len() - 1] + frames);
        }
        if let Some(missing) = hypotheses.iter().find(|&&hypothesis| hypothesis >= of.len()) {
            let problem = format!("there is no hypothesis {missing} of {}", of.len());
            return Err(Error::operation("decoder step", problem));
        }
        let numbers: Vec<u32> = hypotheses.iter().map(|&hypothesis| hypothesis as u32).collect();
        let weights = hypotheses.iter().flat_map(|&hypothesis| starts[hypothesis]..starts[hypothesis + 1]);
        let weights: Vec<u32> = weights.map(|weight| weight as u32).collect();
        let device = state.hidden.device();
        let chosen = Rows::new(device, &numbers);
        Ok(State {
            hidden: chosen.of(&state.hidden, None)?,
            cell: chosen.of(&state.cell, None)?,
            attention: Rows::new(device, &weights).of(&state.attention, None)?,
        })
    }

    /// What the decoder reads in a training with scheduled sampling (Bengio et al., 2015; ESPnet's `sampling-probability`, which draws once for a step
    /// of a batch): each symbol behind the first is, with the sampling's probability, the likeliest one after those that were read before it. The
    /// decoder is run step by step for that, without gradient; what it reads then is data. The host chooses, and waits for a GPU at every step.
    fn sampled(
        &self,
        parameters: &Parameters,
        hidden: &Var,
        frames: &Sequences,
        Teaching { of, sequences, tokens, .. }: &Teaching,
        key: &MaskKey,
    ) -> Result<Vec<u32>> {
        let device = hidden.tensor().device();
        let draws = key.generator("dec.embed sampling");
        let reads_own = |utterance: usize, time: usize| {
            let word = draws.block([utterance as u32, time as u32, 0, key.step])[0];
            f64::from(word) < self.sizes.scheduled_sampling * 4_294_967_296.0
        };
        let memory = self.remember(parameters, hidden, frames)?;
        let mut read = tokens.clone();
        let mut state: Option<State> = None;
        for time in 0..sequences.steps() {
            let (first, active) = (sequences.offsets()[time], sequences.active(time));
            // The longest go on, which come first.
            if let Some(before) = &state
                && let was = sequences.active(time - 1)
                && active < was
            {
                state = Some(self.select(&memory, before, &of[..was], &(0..active).collect::<Vec<_>>())?);
            }
            let (logits, after) =
                self.step(parameters, &memory, state.as_ref(), &of[..active], &read[first..first + active])?;
            state = Some(after);
            // A device that computes nothing has no choice to read.
            if time + 1 < sequences.steps() && device.computes() {
                let (next, active) = (sequences.offsets()[time + 1], sequences.active(time + 1));
                let logits = logits.host();
                device.check()?;
                for n in (0..active).filter(|&n| reads_own(of[n], time + 1)) {
                    read[next + n] = likeliest(&logits[n * self.sizes.symbols..][..self.sizes.symbols]);
                }
            }
        }
        Ok(read)
    }

    /// The part of the prior and the factor on the cross entropies whose gradient is ESPnet's.
    fn smoothing_and_scale(&self, tokens: usize, utterances: usize, trains: bool) -> (f32, f32) {
        let (tokens, utterances) = (tokens.max(1) as f64, utterances.max(1) as f64);
        let smoothing = if trains { self.sizes.label_smoothing } else { 0.0 };
        let of_labels = (1.0 - smoothing) * (tokens / utterances - 1.0) / tokens;
        let of_prior = smoothing / utterances;
        let both = of_labels + of_prior;
        (if both > 0.0 { (of_prior / both) as f32 } else { 0.0 }, both as f32)
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    (0..logits.len()).reduce(|best, symbol| if logits[symbol] > logits[best] { symbol } else { best }).unwrap_or(0)
        as u32
}

impl Recogniser for CtcAttention {
    fn inputs(&self) -> usize {
        self.sizes.encoder.inputs
    }

    fn symbols(&self) -> usize {
        self.sizes.symbols
    }

    fn frames_after_subsampling(&self, frames: usize) -> usize {
        self.encoder.frames(frames)
    }

    fn encode(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        features: Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<(Var, Sequences)> {
        self.encoder.forward(tape, parameters, features, sequences, masks)
    }

    fn ctc_logits(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        hidden: &Var,
        _: &Sequences,
        _: Option<&MaskKey>,
    ) -> Result<Var> {
        self.ctc.forward(tape, parameters, hidden)
    }

    fn loss_of(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        Encoded { hidden, logits, sequences }: Encoded,
        labels: &[Vec<u32>],
        masks: Option<&MaskKey>,
    ) -> Result<Loss> {
        let (of_ctc, of_decoder) = (self.sizes.ctc_weight, 1.0 - self.sizes.ctc_weight);
        let share = (of_ctc / labels.len().max(1) as f64) as f32;
        let ctc = ops::ctc::ctc(tape, &logits, &sequences, labels, share)?;
        let mut teaching = Teaching::new(labels, self.end())?;
        if let Some(key) = masks.filter(|_| self.sizes.scheduled_sampling > 0.0) {
            teaching.tokens = self.sampled(parameters, &hidden, &sequences, &teaching, key)?;
        }
        let Teaching { of, sequences: packed, tokens, .. } = &teaching;
        let predicted = self.decode(tape, parameters, (&hidden, &sequences), tokens, packed, of)?;
        drop(hidden);
        teaching.leave_out(&ctc.feasible);
        let (smoothing, scale) = self.smoothing_and_scale(teaching.targets.len(), labels.len(), masks.is_some());
        let targets = Labels { labels: &teaching.targets, smoothing, prior: self.sizes.unigrams.as_deref() };
        let decoder =
            ops::cross_entropy::cross_entropy(tape, &predicted, targets, (of_decoder * f64::from(scale)) as f32)?;
        let loss = ops::arithmetic::add(tape, &ctc.loss, &decoder.loss)?;
        let losses = UtteranceLosses::mixed(of_ctc, ctc.losses, decoder.losses, teaching);
        Ok(Loss { loss, losses, feasible: ctc.feasible, logits, sequences })
    }

    fn sentence_end(&self) -> Option<u32> {
        Some(self.end())
    }

    fn predictor<'a>(
        &'a self,
        parameters: &'a Parameters,
        hidden: &Var,
        sequences: &Sequences,
    ) -> Result<Option<Box<dyn Predictor + 'a>>> {
        Ok(Some(Box::new(AttentionPredictor::new(self, parameters, hidden, sequences)?)))
    }
}
