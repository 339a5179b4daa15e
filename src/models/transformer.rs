//! ESPnet v1's Transformer recogniser: convolutional subsampling, encoder and decoder layers with layer normalisation before each part, a CTC
//! softmax over the encoder's frames and the decoder's softmax over the next symbol.
//!
//! ```text
//! features -> conv 3x3/2, ReLU, conv 3x3/2, ReLU, linear -> * sqrt(D) + position -> encoder layers -> norm -> CTC softmax
//! labels   -> embedding                                  -> * sqrt(D) + position -> decoder layers -> norm -> decoder softmax
//! ```
//! A layer adds to its input, one after the other, attention (of a decoder also to the encoder's frames) and a feed-forward part, each of the
//! normalised sum so far, each dropped out. Groups, bottom to top: the front end, each encoder layer (the last with the norm behind it), each
//! decoder layer (the first with the embedding, the last with the norm behind it), and both softmax layers together: the papers' top cut.
//! Tensors have ESPnet v1's names. The last symbol begins and ends a transcript.

use crate::decode::Predictor;
use crate::error::{Error, Result};
use crate::models::declaring::Declaring;
use crate::models::predictors::TransformerPredictor;
use crate::models::recogniser::{Encoded, Loss, Recogniser, Teaching, UtteranceLosses};
use crate::models::{Network, Structure};
use crate::nn::{Attention, Convolution, Embedding, LayerNorm, Linear, ParameterSpec, Parameters};
use crate::ops;
use crate::ops::attention::Heads;
use crate::ops::convolution::Patches;
use crate::ops::cross_entropy::Labels;
use crate::ops::embedding::Rows;
use crate::ops::linear::Activation;
use crate::ops::sequences::Sequences;
use crate::random::{Mask, MaskKey};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The sizes of a `transformer`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Features a frame.
    pub inputs: usize,
    pub encoder_layers: usize,
    pub decoder_layers: usize,
    /// D, of every frame and symbol between the layers.
    pub units: usize,
    pub heads: usize,
    /// Between the two linear layers of a feed-forward part.
    pub feedforward: usize,
    /// Of every part's output, the sums at the bottom and the input of the CTC softmax; in training only.
    pub dropout: f64,
    /// Of the attention's probabilities.
    pub attention_dropout: f64,
    /// Of the CTC loss; the rest is the decoder's.
    pub ctc_weight: f64,
    /// Of the decoder's labels, over all other symbols alike; in training only.
    pub label_smoothing: f64,
    /// With the blank and the end of a transcript.
    pub symbols: usize,
}

/// As ESPnet's.
const EPSILON: f32 = 1e-12;

#[derive(Debug, Clone)]
pub struct Transformer {
    sizes: Sizes,
    convolutions: [Convolution; 2],
    front: Linear,
    encoder: Vec<EncoderLayer>,
    encoder_norm: LayerNorm,
    embedding: Embedding,
    decoder: Vec<DecoderLayer>,
    decoder_norm: LayerNorm,
    output: Linear,
    ctc: Linear,
    structure: Structure,
}

#[derive(Debug, Clone)]
struct EncoderLayer {
    name: String,
    attention: Attention,
    feedforward: FeedForward,
    norms: [LayerNorm; 2],
}

#[derive(Debug, Clone)]
struct DecoderLayer {
    name: String,
    attention: Attention,
    source: Attention,
    feedforward: FeedForward,
    norms: [LayerNorm; 3],
}

#[derive(Debug, Clone)]
struct FeedForward {
    name: String,
    first: Linear,
    second: Linear,
}

/// The encoder's frames as every decoder layer reads them, computed once for all steps: see [`Transformer::remember`].
pub struct Memory {
    sequences: Sequences,
    layers: Vec<[Var; 2]>,
}

/// Keys and values of the symbols read so far, by hypotheses of one length: see [`Transformer::step`].
#[derive(Clone)]
pub struct DecoderState {
    read: usize,
    /// `[read * stored, D]`, by time.
    layers: Vec<[Var; 2]>,
    /// Hypotheses that the last step read a token for.
    stored: usize,
    /// Those of them that go on.
    hypotheses: Vec<usize>,
}

impl Network for Transformer {
    fn structure(&self) -> &Structure {
        &self.structure
    }
}

impl FeedForward {
    fn declare(specs: &mut Vec<ParameterSpec>, name: String, sizes: &Sizes) -> Self {
        let (units, inner) = (sizes.units, sizes.feedforward);
        let first = Linear::declare(specs, &format!("{name}.w_1"), units, inner, Activation::Relu);
        let second = Linear::declare(specs, &format!("{name}.w_2"), inner, units, Activation::Identity);
        FeedForward { name, first, second }
    }
}

impl Transformer {
    pub fn new(sizes: Sizes) -> Self {
        let mut to = Declaring::default();
        let units = sizes.units;
        let conv = |to: &mut Declaring, name: &str, channels: usize| {
            Convolution::declare(&mut to.specs, name, channels, units, Patches::EverySecond)
        };
        let convolutions = [conv(&mut to, "encoder.embed.conv.0", 1), conv(&mut to, "encoder.embed.conv.2", units)];
        let columns = units * Patches::EverySecond.count(Patches::EverySecond.count(sizes.inputs));
        let front = Linear::declare(&mut to.specs, "encoder.embed.out.0", columns, units, Activation::Identity);
        to.end_layer("encoder.embed");
        to.end_group("front-end");
        let norm = |to: &mut Declaring, name: &str| LayerNorm::declare(&mut to.specs, name, units, EPSILON);
        let mut encoder = Vec::new();
        let mut encoder_norm = None;
        for k in 0..sizes.encoder_layers {
            let name = format!("encoder.encoders.{k}");
            encoder.push(EncoderLayer {
                attention: Attention::declare(&mut to.specs, &format!("{name}.self_attn"), units),
                feedforward: FeedForward::declare(&mut to.specs, format!("{name}.feed_forward"), &sizes),
                norms: [norm(&mut to, &format!("{name}.norm1")), norm(&mut to, &format!("{name}.norm2"))],
                name: name.clone(),
            });
            if k + 1 == sizes.encoder_layers {
                encoder_norm = Some(norm(&mut to, "encoder.after_norm"));
            }
            to.end_layer(&name);
            to.end_group(format!("encoder-{}", k + 1));
        }
        let embedding = Embedding::declare(&mut to.specs, "decoder.embed.0", sizes.symbols, units);
        let mut decoder = Vec::new();
        let mut decoder_norm = None;
        for k in 0..sizes.decoder_layers {
            let name = format!("decoder.decoders.{k}");
            decoder.push(DecoderLayer {
                attention: Attention::declare(&mut to.specs, &format!("{name}.self_attn"), units),
                source: Attention::declare(&mut to.specs, &format!("{name}.src_attn"), units),
                feedforward: FeedForward::declare(&mut to.specs, format!("{name}.feed_forward"), &sizes),
                norms: [1, 2, 3].map(|n| norm(&mut to, &format!("{name}.norm{n}"))),
                name: name.clone(),
            });
            if k + 1 == sizes.decoder_layers {
                decoder_norm = Some(norm(&mut to, "decoder.after_norm"));
            }
            to.end_layer(&name);
            to.end_group(format!("decoder-{}", k + 1));
        }
        let softmax = |to: &mut Declaring, name: &str| {
            let layer = Linear::declare(&mut to.specs, name, units, sizes.symbols, Activation::Identity);
            to.end_layer(name);
            layer
        };
        let output = softmax(&mut to, "decoder.output_layer");
        let ctc = softmax(&mut to, "ctc.ctc_lo");
        to.end_group("softmax");
        Transformer {
            convolutions,
            front,
            encoder,
            encoder_norm: encoder_norm.expect("there is an encoder layer"),
            embedding,
            decoder,
            decoder_norm: decoder_norm.expect("there is a decoder layer"),
            output,
            ctc,
            structure: to.structure(),
            sizes,
        }
    }

    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The symbol that begins and ends a transcript.
    pub fn end(&self) -> u32 {
        (self.sizes.symbols - 1) as u32
    }

    fn dropped(
        &self,
        tape: &mut Tape,
        x: Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
        name: &str,
    ) -> Result<Var> {
        match masks.filter(|_| self.sizes.dropout > 0.0) {
            Some(key) => ops::dropout::dropout(tape, &x, sequences, Mask::new(key, name, self.sizes.dropout)?),
            None => Ok(x),
        }
    }

    fn attention_mask(&self, masks: Option<&MaskKey>, name: &str) -> Result<Option<Mask>> {
        let rate = self.sizes.attention_dropout;
        masks.filter(|_| rate > 0.0).map(|key| Mask::new(key, &format!("{name} probabilities"), rate)).transpose()
    }

    /// `x + part`, dropped out.
    fn add(
        &self,
        tape: &mut Tape,
        x: &Var,
        part: Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
        name: &str,
    ) -> Result<Var> {
        let part = self.dropped(tape, part, sequences, masks, name)?;
        ops::arithmetic::add(tape, x, &part)
    }

    fn feedforward(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        layer: &FeedForward,
        x: &Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<Var> {
        let inner = layer.first.forward(tape, parameters, x)?;
        let inner = self.dropped(tape, inner, sequences, masks, &format!("{}.w_1", layer.name))?;
        layer.second.forward(tape, parameters, &inner)
    }

    /// The encoder layers and the norm behind them: `x: [R, D]` from the front end, gives `[R, D]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn encode_frames(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        mut x: Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<Var> {
        for layer in &self.encoder {
            let normalised = layer.norms[0].forward(tape, parameters, &x)?;
            let own = layer.attention.keys_and_values(tape, parameters, &normalised)?;
            let name = format!("{}.self_attn", layer.name);
            let heads = Heads::within(self.sizes.heads, sequences, false, self.attention_mask(masks, &name)?);
            let part = layer.attention.forward(tape, parameters, &normalised, &own, heads)?;
            drop((normalised, own));
            x = self.add(tape, &x, part, sequences, masks, &name)?;
            let normalised = layer.norms[1].forward(tape, parameters, &x)?;
            let part = self.feedforward(tape, parameters, &layer.feedforward, &normalised, sequences, masks)?;
            drop(normalised);
            x = self.add(tape, &x, part, sequences, masks, &layer.feedforward.name)?;
        }
        self.encoder_norm.forward(tape, parameters, &x)
    }

    /// The decoder with teacher forcing: the logits of the symbol after each token, `[R, V]`. `tokens` are packed as `sequences`, each of which
    /// attends to the sequence `of` it among `memory`, which is `hidden: [R', D]` from [`Recogniser::encode`] and how it is packed.
    ///
    /// # Errors
    /// If the shapes do not fit; on a GPU, if a head has more than 128 columns.
    #[allow(clippy::too_many_arguments)] // What is read, how it is packed, and what belongs to what.
    pub fn decode(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        (hidden, memory): (&Var, &Sequences),
        tokens: &[u32],
        sequences: &Sequences,
        of: &[usize],
        masks: Option<&MaskKey>,
    ) -> Result<Var> {
        let mut x = self.embedded(tape, parameters, tokens, sequences, 0, masks)?;
        for layer in &self.decoder {
            let normalised = layer.norms[0].forward(tape, parameters, &x)?;
            let own = layer.attention.keys_and_values(tape, parameters, &normalised)?;
            let name = format!("{}.self_attn", layer.name);
            let heads = Heads::within(self.sizes.heads, sequences, true, self.attention_mask(masks, &name)?);
            let part = layer.attention.forward(tape, parameters, &normalised, &own, heads)?;
            drop((normalised, own));
            x = self.add(tape, &x, part, sequences, masks, &name)?;
            let source = layer.source.keys_and_values(tape, parameters, hidden)?;
            x = self.upper_parts(tape, parameters, layer, &x, &source, (sequences, memory, of), masks)?;
        }
        self.predict(tape, parameters, &x)
    }

    fn embedded(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        tokens: &[u32],
        sequences: &Sequences,
        first: usize,
        masks: Option<&MaskKey>,
    ) -> Result<Var> {
        let x = self.embedding.forward(tape, parameters, tokens)?;
        let scale = (self.sizes.units as f32).sqrt();
        let x = ops::positions::positions(tape, &x, sequences, scale, first)?;
        self.dropped(tape, x, sequences, masks, "decoder.embed")
    }

    /// Attention to the encoder's frames and the feed-forward part of a decoder layer.
    #[allow(clippy::too_many_arguments)] // As above.
    fn upper_parts(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        layer: &DecoderLayer,
        x: &Var,
        source: &[Var; 2],
        (sequences, memory, of): (&Sequences, &Sequences, &[usize]),
        masks: Option<&MaskKey>,
    ) -> Result<Var> {
        let name = format!("{}.src_attn", layer.name);
        let heads = Heads {
            count: self.sizes.heads,
            queries: sequences.clone(),
            keys: memory.clone(),
            of: of.into(),
            causal: false,
            mask: self.attention_mask(masks, &name)?,
        };
        let normalised = layer.norms[1].forward(tape, parameters, x)?;
        let part = layer.source.forward(tape, parameters, &normalised, source, heads)?;
        drop(normalised);
        let x = self.add(tape, x, part, sequences, masks, &name)?;
        let normalised = layer.norms[2].forward(tape, parameters, &x)?;
        let part = self.feedforward(tape, parameters, &layer.feedforward, &normalised, sequences, masks)?;
        drop(normalised);
        self.add(tape, &x, part, sequences, masks, &layer.feedforward.name)
    }

    fn predict(&self, tape: &mut Tape, parameters: &Parameters, x: &Var) -> Result<Var> {
        let normalised = self.decoder_norm.forward(tape, parameters, x)?;
        self.output.forward(tape, parameters, &normalised)
    }

    /// What [`Transformer::step`] reads of the encoder's frames, computed once for all steps and hypotheses.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn remember(&self, parameters: &Parameters, hidden: &Var, sequences: &Sequences) -> Result<Memory> {
        let mut tape = Tape::without_gradients(hidden.tensor().device());
        let layers = self.decoder.iter();
        let layers = layers.map(|layer| layer.source.keys_and_values(&mut tape, parameters, hidden));
        Ok(Memory { sequences: sequences.clone(), layers: layers.collect::<Result<_>>()? })
    }

    /// So many hypotheses that have read nothing: their first token is [`Transformer::end`].
    pub fn begin(&self, hypotheses: usize) -> DecoderState {
        DecoderState { read: 0, layers: Vec::new(), stored: hypotheses, hypotheses: (0..hypotheses).collect() }
    }

    /// Every hypothesis reads its next token; gives the logits of the one after it, `[N, V]`, and the state then. Hypothesis n is one of
    /// utterance `of[n]` of `memory`.
    ///
    /// # Errors
    /// If there are not as many tokens and utterances as hypotheses, or one is out of range.
    pub fn step(
        &self,
        parameters: &Parameters,
        memory: &Memory,
        state: &DecoderState,
        of: &[usize],
        tokens: &[u32],
    ) -> Result<(Tensor, DecoderState)> {
        let count = state.hypotheses.len();
        if tokens.len() != count || of.len() != count {
            let problem = format!("{} tokens of {} utterances for {count} hypotheses", tokens.len(), of.len());
            return Err(Error::operation("decoder step", problem));
        }
        let device = parameters.value(0).device();
        let mut tape = Tape::without_gradients(device);
        let sequences = Sequences::new(&vec![1; count])?;
        let keys = Sequences::new(&vec![state.read + 1; count])?;
        let mut x = self.embedded(&mut tape, parameters, tokens, &sequences, state.read, None)?;
        let rows = state.rows();
        // The same in every layer.
        let rows = Rows::new(device, &rows);
        let mut layers = Vec::with_capacity(self.decoder.len());
        for (k, layer) in self.decoder.iter().enumerate() {
            let normalised = layer.norms[0].forward(&mut tape, parameters, &x)?;
            let new = layer.attention.keys_and_values(&mut tape, parameters, &normalised)?;
            let own = match state.layers.get(k) {
                Some([keys, values]) => {
                    let with = |before: &Var, new: &Var| -> Result<Var> {
                        Ok(Var::constant(rows.of(before.tensor(), Some(new.tensor()))?))
                    };
                    [with(keys, &new[0])?, with(values, &new[1])?]
                }
                None => new,
            };
            let heads = Heads {
                count: self.sizes.heads,
                queries: sequences.clone(),
                keys: keys.clone(),
                of: (0..count).collect(),
                causal: false,
                mask: None,
            };
            let part = layer.attention.forward(&mut tape, parameters, &normalised, &own, heads)?;
            x = ops::arithmetic::add(&mut tape, &x, &part)?;
            let packed = (&sequences, &memory.sequences, of);
            x = self.upper_parts(&mut tape, parameters, layer, &x, &memory.layers[k], packed, None)?;
            layers.push(own);
        }
        let logits = self.predict(&mut tape, parameters, &x)?.tensor().clone();
        let state = DecoderState { read: state.read + 1, layers, stored: count, hypotheses: (0..count).collect() };
        Ok((logits, state))
    }
}

impl DecoderState {
    /// Tokens that every hypothesis has read.
    pub fn read(&self) -> usize {
        self.read
    }

    /// The hypotheses with these numbers, in this order; one may be taken several times. Nothing is moved before the next step.
    ///
    /// # Errors
    /// If there is no such hypothesis.
    pub fn select(&self, hypotheses: &[usize]) -> Result<Self> {
        let stored = hypotheses.iter().map(|&hypothesis| {
            let problem = || format!("there is no hypothesis {hypothesis} of {}", self.hypotheses.len());
            let stored = self.hypotheses.get(hypothesis).copied();
            stored.ok_or_else(|| Error::operation("decoder step", problem()))
        });
        Ok(DecoderState { hypotheses: stored.collect::<Result<_>>()?, layers: self.layers.clone(), ..*self })
    }

    /// Where the keys and values of the hypotheses are, by token that was read.
    fn rows(&self) -> Vec<u32> {
        let stored = |time| self.hypotheses.iter().map(move |&hypothesis| (time * self.stored + hypothesis) as u32);
        (0..self.read).flat_map(stored).collect()
    }
}

impl Recogniser for Transformer {
    fn inputs(&self) -> usize {
        self.sizes.inputs
    }

    fn symbols(&self) -> usize {
        self.sizes.symbols
    }

    fn frames_after_subsampling(&self, frames: usize) -> usize {
        Patches::EverySecond.count(Patches::EverySecond.count(frames))
    }

    fn encode(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        features: Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<(Var, Sequences)> {
        let (x, sequences) = self.convolutions[0].forward(tape, parameters, &features, sequences)?;
        drop(features);
        let (x, sequences) = self.convolutions[1].forward(tape, parameters, &x, &sequences)?;
        let x = ops::convolution::channels_first(tape, &x, self.sizes.units)?;
        let x = self.front.forward(tape, parameters, &x)?;
        let x = ops::positions::positions(tape, &x, &sequences, (self.sizes.units as f32).sqrt(), 0)?;
        let x = self.dropped(tape, x, &sequences, masks, "encoder.embed")?;
        Ok((self.encode_frames(tape, parameters, x, &sequences, masks)?, sequences))
    }

    fn ctc_logits(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        hidden: &Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<Var> {
        let hidden = self.dropped(tape, hidden.clone(), sequences, masks, "ctc")?;
        self.ctc.forward(tape, parameters, &hidden)
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
        let share = |weight: f64| (weight / labels.len().max(1) as f64) as f32;
        let ctc = ops::ctc::ctc(tape, &logits, &sequences, labels, share(of_ctc))?;
        let mut teaching = Teaching::new(labels, self.end())?;
        let Teaching { of, sequences: packed, tokens, .. } = &teaching;
        let predicted = self.decode(tape, parameters, (&hidden, &sequences), tokens, packed, of, masks)?;
        drop(hidden);
        teaching.leave_out(&ctc.feasible);
        // ESPnet spreads over the other symbols, the operation over all.
        let others = (self.sizes.symbols - 1) as f64;
        let smoothing = if masks.is_some() { self.sizes.label_smoothing * (others + 1.0) / others } else { 0.0 };
        let targets = Labels { labels: &teaching.targets, smoothing: smoothing as f32, prior: None };
        let decoder = ops::cross_entropy::cross_entropy(tape, &predicted, targets, share(of_decoder))?;
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
        Ok(Some(Box::new(TransformerPredictor::new(self, parameters, hidden, sequences)?)))
    }
}
