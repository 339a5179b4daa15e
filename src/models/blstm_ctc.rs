//! The papers' speech recogniser: layers of BLSTM and projection, then CTC (ESPnet v1's `blstmp` encoder with `mtlalpha` 1).
//!
//! Every layer: BLSTM -> every s-th frame -> linear -> tanh -> dropout. Then a linear layer to the symbols, whose softmax is in the loss.

use crate::error::Result;
use crate::models::{Group, Layer, Network, Structure};
use crate::nn::{Blstm, Linear, Parameters};
use crate::ops;
use crate::ops::linear::Activation;
use crate::ops::sequences::Sequences;
use crate::random::{Mask, MaskKey};
use crate::tape::{Tape, Var};

/// The sizes of a `blstm-ctc`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Features a frame.
    pub inputs: usize,
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
    layers: Vec<(Blstm, Linear)>,
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
        let mut specs = Vec::new();
        let (mut groups, mut parts, mut layers) = (Vec::new(), Vec::new(), Vec::new());
        for k in 0..sizes.subsample.len() {
            let inputs = if k == 0 { sizes.inputs } else { sizes.projection };
            let first = specs.len();
            let blstm = Blstm::declare(&mut specs, &format!("encoder.blstm.{k}"), inputs, sizes.units);
            let middle = specs.len();
            let name = format!("encoder.proj.{k}");
            let projection = Linear::declare(&mut specs, &name, 2 * sizes.units, sizes.projection, Activation::Tanh);
            parts.push(Layer { name: format!("encoder.blstm.{k}"), parameters: first..middle });
            parts.push(Layer { name, parameters: middle..specs.len() });
            groups.push(Group { name: format!("blstm-{}", k + 1), parameters: first..specs.len() });
            layers.push((blstm, projection));
        }
        let first = specs.len();
        let softmax = Linear::declare(&mut specs, "ctc", sizes.projection, sizes.symbols, Activation::Identity);
        parts.push(Layer { name: "ctc".into(), parameters: first..specs.len() });
        groups.push(Group { name: "softmax".into(), parameters: first..specs.len() });
        BlstmCtc { sizes, layers, softmax, structure: Structure { specs, groups, layers: parts } }
    }

    pub fn structure(&self) -> &Structure {
        &self.structure
    }

    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Frames that the softmax sees of an utterance of so many.
    pub fn frames_after_subsampling(&self, frames: usize) -> usize {
        self.sizes.subsample.iter().fold(frames, |frames, &factor| frames.div_ceil(factor))
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
        let mut x = features.clone();
        let mut sequences = sequences.clone();
        for (k, (blstm, projection)) in self.layers.iter().enumerate() {
            let hidden = blstm.forward(tape, parameters, &x, &sequences)?;
            let (kept, kept_sequences) = ops::subsample::subsample(tape, &hidden, &sequences, self.sizes.subsample[k])?;
            x = projection.forward(tape, parameters, &kept)?;
            sequences = kept_sequences;
            if let Some(key) = masks.filter(|_| self.sizes.dropout > 0.0) {
                let mask = Mask::new(key, &format!("encoder.proj.{k}"), self.sizes.dropout)?;
                x = ops::dropout::dropout(tape, &x, &sequences, mask)?;
            }
        }
        let logits = self.softmax.forward(tape, parameters, &x)?;
        Ok((logits, sequences))
    }
}
