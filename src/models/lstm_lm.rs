//! Language models of LSTMs: embedding, LSTMs, softmax over the next token. With its dropouts this is the AWD-LSTM of Merity, Keskar and
//! Socher ("Regularizing and Optimizing LSTM Language Models", 2018; awd-lstm-lm's `model.py`).
//!
//! ```text
//! tokens -> embedding (drops words) -> dropout_input -> LSTM (DropConnect) -> dropout_hidden -> LSTM -> ... -> dropout -> softmax
//! ```
//! Groups, bottom to top: the embedding, each LSTM, the softmax. With tied weights the embedding is the softmax's weight and belongs to its
//! group: frozen with it, and below every LSTM all the same.

use crate::data::streams::TextBatch;
use crate::error::Result;
use crate::models::{Group, Layer, Network, Structure};
use crate::nn::initialization::Role;
use crate::nn::{Lstm, ParameterSpec, Parameters};
use crate::ops;
use crate::ops::dropout::Sharing;
use crate::ops::lstm::State;
use crate::ops::sequences::Sequences;
use crate::random::{Mask, MaskKey};
use crate::tape::{Tape, Var};

/// The sizes of an `lstm-lm`.
#[derive(Debug, Clone, PartialEq)]
pub struct Sizes {
    /// Symbols of the token list.
    pub vocabulary: usize,
    pub embedding: usize,
    /// Of every LSTM; with tied weights the last one has `embedding` units.
    pub units: usize,
    pub layers: usize,
    /// The softmax's weight is the embedding.
    pub tied: bool,
    pub dropouts: Dropouts,
}

/// Rates, in training only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropouts {
    /// Of whole words.
    pub embedding: f64,
    /// Of the embedding's output.
    pub input: f64,
    /// Between LSTMs.
    pub hidden: f64,
    /// Of the last LSTM's output.
    pub output: f64,
    /// Of recurrent weights: DropConnect.
    pub recurrent: f64,
    /// One mask for all times of a sequence, but for words and weights.
    pub sharing: Sharing,
}

#[derive(Debug, Clone)]
pub struct LstmLm {
    sizes: Sizes,
    layers: Vec<Lstm>,
    /// Index of `encoder.weight`, `[V, E]`.
    embedding: usize,
    /// Index of the softmax's weight, `[V, C]`.
    softmax: usize,
    /// Index of `decoder.bias`, `[V]`.
    bias: usize,
    structure: Structure,
}

/// What a forward pass gives.
pub struct Forward {
    /// What the softmax takes, `[R, C]`.
    pub top: Var,
    /// The last LSTM's output, before dropout: what temporal regularisation is about.
    pub hidden: Var,
    /// Of each LSTM, after its last step.
    pub states: Vec<State>,
}

impl Network for LstmLm {
    fn structure(&self) -> &Structure {
        &self.structure
    }
}

impl LstmLm {
    pub fn new(sizes: Sizes) -> Self {
        let (mut specs, mut groups) = (Vec::new(), Vec::new());
        let embedding = |specs: &mut Vec<ParameterSpec>| {
            let shape = vec![sizes.vocabulary, sizes.embedding];
            specs.push(ParameterSpec {
                name: "encoder.weight".into(),
                shape,
                role: Role::Embedding,
                pytorch_fan: sizes.embedding,
            });
            specs.len() - 1
        };
        let mut group = |name: String, first: usize, specs: &[ParameterSpec]| {
            groups.push(Group { name, parameters: first..specs.len() });
        };
        let untied = (!sizes.tied).then(|| {
            let index = embedding(&mut specs);
            group("embedding".into(), index, &specs);
            index
        });
        let mut layers = Vec::new();
        for k in 0..sizes.layers {
            let (first, inputs) = (specs.len(), if k == 0 { sizes.embedding } else { sizes.units });
            let hidden = if sizes.tied && k + 1 == sizes.layers { sizes.embedding } else { sizes.units };
            layers.push(Lstm::declare(&mut specs, &format!("rnns.{k}"), inputs, hidden));
            group(format!("lstm-{}", k + 1), first, &specs);
        }
        let first = specs.len();
        let (embedding, softmax) = match untied {
            None => {
                let index = embedding(&mut specs);
                (index, index)
            }
            Some(index) => {
                let fan = layers.last().map_or(sizes.embedding, Lstm::hidden);
                specs.push(ParameterSpec {
                    name: "decoder.weight".into(),
                    shape: vec![sizes.vocabulary, fan],
                    role: Role::SoftmaxWeight,
                    pytorch_fan: fan,
                });
                (index, specs.len() - 1)
            }
        };
        let pytorch_fan = specs[softmax].shape[1];
        specs.push(ParameterSpec {
            name: "decoder.bias".into(),
            shape: vec![sizes.vocabulary],
            role: Role::SoftmaxBias,
            pytorch_fan,
        });
        group("softmax".into(), first, &specs);
        let bias = specs.len() - 1;
        let named = groups.iter().map(|group| {
            let name = specs[group.parameters.start].name.clone();
            let (name, _) = name.rsplit_once('.').unwrap_or((&name, ""));
            Layer { name: name.into(), parameters: group.parameters.clone() }
        });
        let parts = named.collect();
        LstmLm { sizes, layers, embedding, softmax, bias, structure: Structure { specs, groups, layers: parts } }
    }

    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The units of each LSTM.
    pub fn widths(&self) -> impl Iterator<Item = usize> + '_ {
        self.layers.iter().map(Lstm::hidden)
    }

    /// From `initial`, the state of every LSTM (zeros without one), to what the softmax takes. With `masks` it is training and drops out.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        batch: &TextBatch,
        initial: Option<&[State]>,
        masks: Option<&MaskKey>,
    ) -> Result<Forward> {
        let Dropouts { embedding, input, hidden, output, recurrent, .. } = self.sizes.dropouts;
        let mask =
            |layer: &str, rate: f64| masks.filter(|_| rate > 0.0).map(|key| Mask::new(key, layer, rate)).transpose();
        let sequences = &batch.sequences;
        let words = parameters.var(self.embedding);
        let mut x = ops::embedding::embedding(tape, &words, &batch.tokens, mask("encoder words", embedding)?)?;
        x = self.dropped(tape, x, sequences, mask("encoder", input)?)?;
        let (mut raw, mut states) = (x.clone(), Vec::with_capacity(self.layers.len()));
        for (k, layer) in self.layers.iter().enumerate() {
            let initial = initial.and_then(|states| states.get(k));
            let weights = mask(&format!("rnns.{k} weights"), recurrent)?;
            let (y, state) = layer.forward(tape, parameters, &x, sequences, initial, weights)?;
            states.push(state);
            let rate = if k + 1 == self.layers.len() { output } else { hidden };
            x = self.dropped(tape, y.clone(), sequences, mask(&format!("rnns.{k}"), rate)?)?;
            raw = y;
        }
        Ok(Forward { top: x, hidden: raw, states })
    }

    /// The weight and the bias of the softmax.
    pub fn softmax(&self, parameters: &Parameters) -> (Var, Var) {
        (parameters.var(self.softmax), parameters.var(self.bias))
    }

    fn dropped(&self, tape: &mut Tape, x: Var, sequences: &Sequences, mask: Option<Mask>) -> Result<Var> {
        match mask {
            Some(mask) => ops::dropout::dropout_as(tape, &x, sequences, mask, self.sizes.dropouts.sharing),
            None => Ok(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(tied: bool) -> LstmLm {
        let dropouts =
            Dropouts { embedding: 0.0, input: 0.0, hidden: 0.0, output: 0.0, recurrent: 0.0, sharing: Sharing::Locked };
        LstmLm::new(Sizes { vocabulary: 33_278, embedding: 400, units: 1150, layers: 3, tied, dropouts })
    }

    #[test]
    fn tied_weights_belong_to_the_softmax_and_untied_ones_are_the_lowest_group() {
        let names = |model: &LstmLm| -> Vec<String> {
            model.structure().groups.iter().map(|group| group.name.clone()).collect()
        };
        let tied = model(true);
        assert_eq!(names(&tied), ["lstm-1", "lstm-2", "lstm-3", "softmax"]);
        // As awd-lstm-lm counts them for WikiText-2.
        assert_eq!(tied.structure().count(0..tied.structure().specs.len()), 33_556_078);
        assert_eq!(tied.widths().collect::<Vec<_>>(), [1150, 1150, 400]);
        let top = tied.structure().specs[tied.structure().groups[3].parameters.clone()].iter();
        assert_eq!(top.map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["encoder.weight", "decoder.bias"]);
        let untied = model(false);
        assert_eq!(names(&untied), ["embedding", "lstm-1", "lstm-2", "lstm-3", "softmax"]);
        assert_eq!(untied.widths().collect::<Vec<_>>(), [1150, 1150, 1150]);
        let top = untied.structure().specs[untied.structure().groups[4].parameters.clone()].iter();
        assert_eq!(top.map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["decoder.weight", "decoder.bias"]);
    }
}
