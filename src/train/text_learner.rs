//! The steps of a language model: training on a batch of a text, the losses of one, the logits of what comes next.

use crate::backend::cuda::context::Recording;
use crate::data::streams::TextBatch;
use crate::device::{Category, Device};
use crate::error::Result;
use crate::models::lstm_lm::{Forward, LstmLm};
use crate::ops;
use crate::ops::linear::Activation;
use crate::ops::linear_cross_entropy::{Losses, Top, losses, losses_and_gradients};
use crate::ops::lstm::State;
use crate::ops::sequences::Sequences;
use crate::primitives::add_to;
use crate::random::MaskKey;
use crate::tape::Tape;
use crate::tensor::Tensor;
use crate::train::learner::{Learner, Work};
use crate::train::updater::{Update, Updating};

/// The state of every LSTM between two batches of the same streams.
pub struct Carried {
    states: Vec<State>,
}

impl Carried {
    /// Before the first batch: zeros for so many streams.
    pub fn zeros(device: &Device, model: &LstmLm, streams: usize) -> Self {
        let state = |units| {
            let zeros = || Tensor::zeros(device, &[streams, units], Category::Carried);
            State { hidden: zeros(), cell: zeros() }
        };
        Carried { states: model.widths().map(state).collect() }
    }

    /// In place, so that the states keep their addresses.
    fn take(&mut self, last: &[State]) {
        for (carried, last) in self.states.iter_mut().zip(last) {
            add_to(&mut carried.hidden, &last.hidden, false);
            add_to(&mut carried.cell, &last.cell, false);
        }
    }

    /// h and c of each LSTM with their names in a saved state, `rnns.K.hidden` and `rnns.K.cell`.
    pub fn named(&self) -> Vec<(String, &Tensor)> {
        let mut named = Vec::with_capacity(2 * self.states.len());
        for (k, State { hidden, cell }) in self.states.iter().enumerate() {
            named.extend([(format!("rnns.{k}.hidden"), hidden), (format!("rnns.{k}.cell"), cell)]);
        }
        named
    }

    /// The same, to be overwritten when a stage is resumed.
    pub fn named_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut named = Vec::with_capacity(2 * self.states.len());
        for (k, State { hidden, cell }) in self.states.iter_mut().enumerate() {
            named.extend([(format!("rnns.{k}.hidden"), hidden), (format!("rnns.{k}.cell"), cell)]);
        }
        named
    }
}

/// What a training loss has beside the cross entropy, and what it is divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Times the mean square of the last LSTM's output after dropout (activation regularisation).
    pub activation: f64,
    /// Times the mean square of the difference between that output, before dropout, at one time and the next.
    pub temporal: f64,
    /// The sum of the cross entropies is divided by the number of sequences instead of tokens.
    pub per_sequence: bool,
}

/// A training step that a device may still be busy with.
pub struct TextRunning {
    losses: Losses,
    tokens: usize,
    update: Updating,
    kept: u64,
    work: Work,
}

/// What a training step came to.
pub struct TextStep {
    /// The sum of -ln p over all tokens, natural log, without regularisation.
    pub loss: f64,
    pub tokens: usize,
    pub update: Update,
    /// Bytes kept between forward and backward.
    pub kept: u64,
    /// All products of the softmax, whose passes are one, count as backward.
    pub work: Work,
}

impl Learner<LstmLm> {
    /// Forward, backward, clipping, optimiser, and the state that the next batch starts from. Without `carried` every sequence starts from
    /// zeros and is forgotten.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn train_text(
        &mut self,
        batch: &TextBatch,
        carried: Option<&mut Carried>,
        objective: &Objective,
        masks: &MaskKey,
    ) -> Result<TextStep> {
        let running = self.start_text(batch, carried, objective, masks)?;
        self.settle_text(running)
    }

    /// The same, without waiting for a GPU: the next step can be started before this one is settled.
    ///
    /// # Errors
    /// As [`Learner::train_text`], as far as it is known.
    pub fn start_text(
        &mut self,
        batch: &TextBatch,
        carried: Option<&mut Carried>,
        objective: &Objective,
        masks: &MaskKey,
    ) -> Result<TextRunning> {
        let device = self.device().clone();
        let recording = device.record();
        let before = device.operations();
        let mut tape = Tape::new(&device);
        let initial = carried.as_ref().map(|carried| &carried.states[..]);
        let Forward { top, hidden, states } =
            self.model().forward(&mut tape, &self.parameters, batch, initial, Some(masks))?;
        let mut penalties = Vec::new();
        if objective.activation > 0.0 {
            penalties.push((ops::arithmetic::mean_square(&mut tape, &top)?, objective.activation));
        }
        if objective.temporal > 0.0 {
            let difference = ops::temporal::temporal_difference(&mut tape, &hidden, &batch.sequences)?;
            penalties.push((ops::arithmetic::mean_square(&mut tape, &difference)?, objective.temporal));
        }
        drop(hidden);
        let kept = device.ledger().live(Category::Activation);
        let between = device.operations();
        self.parameters.gradients.clear();
        let (weight, bias) = self.model().softmax(&self.parameters);
        let operands = Top { x: &top, weight: &weight, bias: &bias, targets: &batch.targets };
        let divisor = if objective.per_sequence { batch.sequences.count() } else { batch.targets.len() };
        let scale = 1.0 / divisor.max(1) as f32;
        let (losses, gradient) = losses_and_gradients(operands, scale, &mut self.parameters.gradients)?;
        drop((weight, bias));
        if let Some(gradient) = gradient {
            let mut seeds = vec![(&top, gradient)];
            seeds.extend(penalties.iter().map(|(value, factor)| (value, tape.seed(value, *factor as f32))));
            tape.backward_from_all(seeds, &mut self.parameters.gradients)?;
        }
        if let Some(carried) = carried {
            carried.take(&states);
        }
        drop((top, penalties, states));
        let work = Work { forward: between - before, backward: device.operations() - between };
        let update = self.updater.update(&device, &mut self.parameters);
        recording.into_iter().for_each(Recording::run);
        device.check()?;
        Ok(TextRunning { losses, tokens: batch.targets.len(), update, kept, work })
    }

    /// What a step came to; waits for it. Steps are settled in the order in which they were started.
    ///
    /// # Errors
    /// What the device says.
    pub fn settle_text(&mut self, running: TextRunning) -> Result<TextStep> {
        let TextRunning { losses, tokens, update, kept, work } = running;
        let (loss, update) = (losses.read().iter().sum(), update.read());
        self.device().check()?;
        self.updater.settle(&update);
        Ok(TextStep { loss, tokens, update, kept, work })
    }

    /// -ln p of every token, natural log, without dropout and keeping nothing but the state.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn text_losses(&self, batch: &TextBatch, carried: Option<&mut Carried>) -> Result<Vec<f64>> {
        let mut tape = Tape::without_gradients(self.device());
        let initial = carried.as_ref().map(|carried| &carried.states[..]);
        let Forward { top, states, .. } = self.model().forward(&mut tape, &self.parameters, batch, initial, None)?;
        if let Some(carried) = carried {
            carried.take(&states);
        }
        let (weight, bias) = self.model().softmax(&self.parameters);
        let losses = losses(Top { x: &top, weight: &weight, bias: &bias, targets: &batch.targets })?.read();
        self.device().check()?;
        Ok(losses)
    }

    /// Reads tokens, and gives the logits of the next one, `[V]`.
    ///
    /// # Errors
    /// If there is no token, or one is out of range.
    pub fn next_logits(&self, tokens: &[u32], carried: &mut Carried) -> Result<Vec<f32>> {
        let batch = TextBatch {
            sequences: Sequences::new(&[tokens.len()])?,
            tokens: tokens.to_vec(),
            targets: tokens.to_vec(),
        };
        let mut tape = Tape::without_gradients(self.device());
        let Forward { states, .. } =
            self.model().forward(&mut tape, &self.parameters, &batch, Some(&carried.states), None)?;
        carried.take(&states);
        let last = states.last().map(|state| crate::tape::Var::constant(state.hidden.clone()));
        let (weight, bias) = self.model().softmax(&self.parameters);
        let Some(last) = last else { return Ok(Vec::new()) };
        let logits = ops::linear::linear(&mut tape, &last, &weight, &bias, Activation::Identity)?.tensor().to_vec();
        self.device().check()?;
        Ok(logits)
    }
}
