//! Decoders and language models as a beam search asks them: what comes next after each hypothesis, and which hypotheses go on. Each keeps the state of
//! the hypotheses between two steps, and computes a step of all of them, whatever utterance they are of, as one.

use crate::data::streams::TextBatch;
use crate::decode::{BLANK, Predictor};
use crate::error::{Error, Result};
use crate::models::ctc_attention::{self, CtcAttention};
use crate::models::lstm_lm::LstmLm;
use crate::models::transformer::{self, Transformer};
use crate::nn::Parameters;
use crate::ops;
use crate::ops::embedding::Rows;
use crate::ops::linear::Activation;
use crate::ops::lstm::State;
use crate::ops::sequences::Sequences;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// The decoder of a [`CtcAttention`].
pub struct AttentionPredictor<'a> {
    model: &'a CtcAttention,
    parameters: &'a Parameters,
    memory: ctc_attention::Memory,
    state: Option<ctc_attention::State>,
    /// The utterance of every hypothesis of the last step.
    of: Vec<usize>,
}

impl<'a> AttentionPredictor<'a> {
    /// For hypotheses of the utterances in `hidden`, which is packed as `sequences`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        model: &'a CtcAttention,
        parameters: &'a Parameters,
        hidden: &Var,
        sequences: &Sequences,
    ) -> Result<Self> {
        let memory = model.remember(parameters, hidden, sequences)?;
        Ok(AttentionPredictor { model, parameters, memory, state: None, of: Vec::new() })
    }
}

impl Predictor for AttentionPredictor<'_> {
    fn step(&mut self, of: &[usize], hypotheses: &[&[u32]]) -> Result<Vec<f32>> {
        let tokens = last_tokens(hypotheses);
        let (logits, state) = self.model.step(self.parameters, &self.memory, self.state.as_ref(), of, &tokens)?;
        (self.state, self.of) = (Some(state), of.to_vec());
        log_probabilities(&logits)
    }

    fn select(&mut self, parents: &[usize]) -> Result<()> {
        if let Some(state) = &self.state {
            self.state = Some(self.model.select(&self.memory, state, &self.of, parents)?);
        }
        Ok(())
    }
}

/// The decoder of a [`Transformer`].
pub struct TransformerPredictor<'a> {
    model: &'a Transformer,
    parameters: &'a Parameters,
    memory: transformer::Memory,
    state: Option<transformer::DecoderState>,
}

impl<'a> TransformerPredictor<'a> {
    /// As [`AttentionPredictor::new`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(
        model: &'a Transformer,
        parameters: &'a Parameters,
        hidden: &Var,
        sequences: &Sequences,
    ) -> Result<Self> {
        let memory = model.remember(parameters, hidden, sequences)?;
        Ok(TransformerPredictor { model, parameters, memory, state: None })
    }
}

impl Predictor for TransformerPredictor<'_> {
    fn step(&mut self, of: &[usize], hypotheses: &[&[u32]]) -> Result<Vec<f32>> {
        let before = self.state.take().unwrap_or_else(|| self.model.begin(of.len()));
        let tokens = last_tokens(hypotheses);
        let (logits, state) = self.model.step(self.parameters, &self.memory, &before, of, &tokens)?;
        self.state = Some(state);
        log_probabilities(&logits)
    }

    fn select(&mut self, parents: &[usize]) -> Result<()> {
        if let Some(state) = &self.state {
            self.state = Some(state.select(parents)?);
        }
        Ok(())
    }
}

/// A language model beside a recogniser. Every sentence begins as a text does: from zeros, with the symbol that ends a line.
pub struct LanguageModelPredictor<'a> {
    model: &'a LstmLm,
    parameters: &'a Parameters,
    symbols: Vec<Option<u32>>,
    states: Option<Vec<State>>,
}

impl<'a> LanguageModelPredictor<'a> {
    /// `symbols` has the language model's number of each of the recogniser's symbols; what has none, has the probability 0. That of the recogniser's
    /// end symbol is the one that ends a line.
    pub fn new(model: &'a LstmLm, parameters: &'a Parameters, symbols: Vec<Option<u32>>) -> Self {
        LanguageModelPredictor { model, parameters, symbols, states: None }
    }

    fn translated(&self, token: u32) -> Result<u32> {
        let known = self.symbols.get(token as usize).copied().flatten();
        known.ok_or_else(|| Error::operation("language model step", format!("symbol {token} has no probability")))
    }
}

impl Predictor for LanguageModelPredictor<'_> {
    fn step(&mut self, _: &[usize], hypotheses: &[&[u32]]) -> Result<Vec<f32>> {
        let tokens = last_tokens(hypotheses).into_iter().map(|token| self.translated(token));
        let tokens = tokens.collect::<Result<Vec<u32>>>()?;
        let sequences = Sequences::new(&vec![1; tokens.len()])?;
        let batch = TextBatch { sequences, targets: tokens.clone(), tokens };
        let mut tape = Tape::without_gradients(self.parameters.value(0).device());
        let forward = self.model.forward(&mut tape, self.parameters, &batch, self.states.as_deref(), None)?;
        let (weight, bias) = self.model.softmax(self.parameters);
        let logits = ops::linear::linear(&mut tape, &forward.top, &weight, &bias, Activation::Identity)?;
        self.states = Some(forward.states);
        let theirs = log_probabilities(logits.tensor())?;
        let columns = logits.shape()[1];
        let ours = theirs.chunks_exact(columns).flat_map(|row| {
            self.symbols.iter().map(|symbol| symbol.map_or(f32::NEG_INFINITY, |symbol| row[symbol as usize]))
        });
        Ok(ours.collect())
    }

    fn select(&mut self, parents: &[usize]) -> Result<()> {
        let parents: Vec<u32> = parents.iter().map(|&parent| parent as u32).collect();
        let chosen = Rows::new(self.parameters.value(0).device(), &parents);
        for State { hidden, cell } in self.states.iter_mut().flatten() {
            (*hidden, *cell) = (chosen.of(hidden, None)?, chosen.of(cell, None)?);
        }
        Ok(())
    }
}

fn last_tokens(hypotheses: &[&[u32]]) -> Vec<u32> {
    hypotheses.iter().map(|hypothesis| hypothesis.last().copied().unwrap_or(BLANK)).collect()
}

/// ln p of each row of logits, `[N, V]`; sums in f64.
fn log_probabilities(logits: &Tensor) -> Result<Vec<f32>> {
    let (data, columns) = (logits.host(), logits.shape()[1]);
    logits.device().check()?;
    let rows = data.chunks_exact(columns).flat_map(|row| {
        let largest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = row.iter().map(|&logit| (f64::from(logit) - largest).exp()).sum();
        let normaliser = largest + sum.ln();
        row.iter().map(move |&logit| (f64::from(logit) - normaliser) as f32)
    });
    Ok(rows.collect())
}
