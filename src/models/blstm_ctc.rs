//! The papers' speech recogniser: layers of BLSTM and projection, then CTC (ESPnet v1's `blstmp` encoder with `mtlalpha` 1).
//!
//! The encoder is [`BlstmEncoder`], with a VGG front end below it if the recipe asks for one. Then a linear layer to the symbols, whose softmax is
//! in the loss.

use crate::error::Result;
use crate::models::blstm_encoder::{BlstmEncoder, EncoderSizes};
use crate::models::declaring::Declaring;
use crate::models::recogniser::{Encoded, Loss, Recogniser, UtteranceLosses};
use crate::models::{Network, Structure};
use crate::nn::{Linear, Parameters};
use crate::ops;
use crate::ops::ctc::CtcOutput;
use crate::ops::linear::Activation;
use crate::ops::sequences::Sequences;
use crate::random::MaskKey;
use crate::tape::{Tape, Var};

/// The sizes of a `blstm-ctc`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Features a frame.
    pub inputs: usize,
    /// Channels of the blocks of a VGG front end, if there is one.
    pub vgg: Option<[usize; 2]>,
    /// Hidden units a direction.
    pub units: usize,
    pub projection: usize,
    /// One factor a layer, bottom to top.
    pub subsample: Vec<usize>,
    /// After every projection, in training only.
    pub dropout: f64,
    /// With the blank.
    pub symbols: usize,
}

#[derive(Debug, Clone)]
pub struct BlstmCtc {
    sizes: Sizes,
    encoder: BlstmEncoder,
    softmax: Linear,
    structure: Structure,
}

impl Network for BlstmCtc {
    fn structure(&self) -> &Structure {
        &self.structure
    }
}

impl BlstmCtc {
    pub fn new(sizes: Sizes) -> Self {
        let mut to = Declaring::default();
        let encoder = EncoderSizes {
            inputs: sizes.inputs,
            vgg: sizes.vgg,
            units: sizes.units,
            projection: sizes.projection,
            subsample: sizes.subsample.clone(),
            dropout: sizes.dropout,
        };
        let encoder = BlstmEncoder::declare(&mut to, encoder);
        let softmax = Linear::declare(&mut to.specs, "ctc", sizes.projection, sizes.symbols, Activation::Identity);
        to.end_layer("ctc");
        to.end_group("softmax");
        BlstmCtc { sizes, encoder, softmax, structure: to.structure() }
    }

    pub fn structure(&self) -> &Structure {
        &self.structure
    }

    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Frames that the softmax sees of an utterance of so many.
    pub fn frames_after_subsampling(&self, frames: usize) -> usize {
        self.encoder.frames(frames)
    }

    /// `features: [R, C]` packed as `sequences`; gives logits `[R', V]` and how they are packed. With `masks` it is training and drops out.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        features: &Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<(Var, Sequences)> {
        let (hidden, sequences) = self.encode(tape, parameters, features.clone(), sequences, masks)?;
        let logits = self.softmax.forward(tape, parameters, &hidden)?;
        Ok((logits, sequences))
    }
}

impl Recogniser for BlstmCtc {
    fn inputs(&self) -> usize {
        self.sizes.inputs
    }

    fn symbols(&self) -> usize {
        self.sizes.symbols
    }

    fn frames_after_subsampling(&self, frames: usize) -> usize {
        BlstmCtc::frames_after_subsampling(self, frames)
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
        self.softmax.forward(tape, parameters, hidden)
    }

    fn loss_of(
        &self,
        tape: &mut Tape,
        _: &Parameters,
        Encoded { hidden, logits, sequences }: Encoded,
        labels: &[Vec<u32>],
        _: Option<&MaskKey>,
    ) -> Result<Loss> {
        drop(hidden);
        let scale = 1.0 / labels.len().max(1) as f32;
        let CtcOutput { loss, losses, feasible } = ops::ctc::ctc(tape, &logits, &sequences, labels, scale)?;
        Ok(Loss { loss, losses: UtteranceLosses::of_ctc(losses), feasible, logits, sequences })
    }
}
