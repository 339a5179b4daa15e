//! A model on a device with its parameters: one training step, one evaluation of a batch. The trainer, the benchmark and the
//! plan all run this, so what they say is about the same work.

use crate::backend::cuda::context::Recording;
use crate::data::SpeechBatch;
use crate::device::{Category, Device};
use crate::error::Result;
use crate::models::Network;
use crate::models::blstm_ctc::BlstmCtc;
use crate::models::recogniser::{Encoded, Loss, Recogniser, UtteranceLosses};
use crate::nn::{Parameters, Scheme};
use crate::ops::sequences::Sequences;
use crate::random::MaskKey;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::train::updater::{Update, UpdateOptions, Updater, Updating};
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// A batch of utterances, longest first.
#[derive(Debug, Clone)]
pub struct Batch {
    pub sequences: Sequences,
    /// `[R, C]` packed; may be empty on the device `plan`.
    pub features: Vec<f32>,
    pub labels: Vec<Vec<u32>>,
}

impl From<SpeechBatch> for Batch {
    fn from(batch: SpeechBatch) -> Self {
        let sequences = Sequences::new(&batch.lengths).expect("a batch is sorted and no utterance is empty");
        Batch { sequences, features: batch.features, labels: batch.labels }
    }
}

/// Its steps for speech are here, those for text in [`super::text_learner`].
pub struct Learner<M = BlstmCtc> {
    device: Device,
    model: M,
    pub parameters: Parameters,
    pub updater: Updater,
    accumulation: Accumulation,
}

/// Gradients of several batches that make one update.
struct Accumulation {
    /// Batches of an update.
    batches: usize,
    /// Those whose gradients wait for the others'.
    waiting: usize,
    /// The next batch makes the update, however many are missing.
    ends: bool,
}

/// A training step that a device may still be busy with: see [`Learner::settle`].
pub struct Running {
    losses: UtteranceLosses,
    feasible: Vec<bool>,
    update: Updating,
    kept: u64,
    work: Work,
}

/// What a training step came to.
#[derive(Debug, Clone)]
pub struct Step {
    /// -ln p(labels) of every utterance; 0 where it is infeasible.
    pub losses: Vec<f64>,
    pub feasible: Vec<bool>,
    pub update: Update,
    /// Bytes kept between forward and backward.
    pub kept: u64,
    pub work: Work,
}

/// Floating-point operations of the products (a multiplication and an addition are two).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub forward: u64,
    pub backward: u64,
}

impl Work {
    pub fn total(&self) -> u64 {
        self.forward + self.backward
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        self.forward += other.forward;
        self.backward += other.backward;
    }
}

/// What a batch evaluates to.
pub struct Evaluation {
    /// `[R', V]` packed as `sequences`.
    pub logits: Tensor,
    pub sequences: Sequences,
    pub losses: Vec<f64>,
    pub feasible: Vec<bool>,
}

impl<M: Network> Learner<M> {
    /// Every parameter has its initial value and is trainable.
    pub fn new(device: &Device, model: M, scheme: Scheme, init_seed: u64, options: UpdateOptions) -> Self {
        let parameters = Parameters::initialize(device, &model.structure().specs, scheme, init_seed);
        Self::with_parameters(device, model, parameters, &[], options)
    }

    /// Freezes the groups with these indices; the others get gradient buffers and fresh optimiser state.
    pub fn with_parameters(
        device: &Device,
        model: M,
        mut parameters: Parameters,
        frozen_groups: &[usize],
        options: UpdateOptions,
    ) -> Self {
        let mut trainable = vec![true; parameters.len()];
        for &group in frozen_groups {
            trainable[model.structure().groups[group].parameters.clone()].fill(false);
        }
        parameters.set_trainable(device, trainable);
        let updater = Updater::new(device, &parameters, options);
        let accumulation = Accumulation { batches: 1, waiting: 0, ends: false };
        Learner { device: device.clone(), model, parameters, updater, accumulation }
    }

    /// From now on so many batches make one update; each batch's gradient is divided by their number.
    pub fn accumulate(&mut self, batches: usize) {
        self.accumulation.batches = batches.max(1);
    }

    /// Batches whose gradients wait for others.
    pub fn waiting(&self) -> usize {
        self.accumulation.waiting
    }

    /// Lets the next batch make the update, however many are missing.
    pub fn end_update(&mut self) {
        self.accumulation.ends = true;
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn model(&self) -> &M {
        &self.model
    }
}

impl<M: Recogniser> Learner<M> {
    /// Forward, backward, clipping, optimiser. The loss is the sum over the utterances divided by their number, as in ESPnet.
    ///
    /// # Errors
    /// If a batch does not fit the model, or what the device says.
    pub fn train(&mut self, batch: &Batch, masks: &MaskKey) -> Result<Step> {
        let running = self.start(batch, masks)?;
        self.settle(running)
    }

    /// The same, without waiting for a GPU: the next step can be started before this one is settled.
    ///
    /// # Errors
    /// As [`Learner::train`], as far as it is known.
    pub fn start(&mut self, batch: &Batch, masks: &MaskKey) -> Result<Running> {
        let recording = self.device.record();
        let before = self.device.operations();
        let mut tape = Tape::new(&self.device);
        let features = self.upload(batch);
        let Batch { sequences, labels, .. } = batch;
        let Loss { loss, losses, feasible, logits, .. } =
            self.model.loss(&mut tape, &self.parameters, features, sequences, labels, Some(masks))?;
        drop(logits);
        let kept = self.device.ledger().live(Category::Activation);
        let between = self.device.operations();
        if self.accumulation.waiting == 0 {
            self.parameters.gradients.clear();
        }
        let share = 1.0 / self.accumulation.batches as f32;
        tape.backward(&loss, share, &mut self.parameters.gradients)?;
        drop(loss);
        let work = Work { forward: between - before, backward: self.device.operations() - between };
        self.accumulation.waiting += 1;
        let update = if self.accumulation.ends || self.accumulation.waiting >= self.accumulation.batches {
            (self.accumulation.waiting, self.accumulation.ends) = (0, false);
            self.updater.update(&self.device, &mut self.parameters)
        } else {
            Updating::Waits
        };
        recording.into_iter().for_each(Recording::run);
        self.device.check()?;
        Ok(Running { losses, feasible, update, kept, work })
    }

    /// What a step came to; waits for it. Steps are settled in the order in which they were started.
    ///
    /// # Errors
    /// What the device says.
    pub fn settle(&mut self, running: Running) -> Result<Step> {
        let Running { losses, feasible, update, kept, work } = running;
        let (losses, update) = (losses.read(feasible.len()), update.read());
        self.device.check()?;
        self.updater.settle(&update);
        Ok(Step { losses, feasible, update, kept, work })
    }

    /// Logits and losses, without dropout and keeping nothing.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn evaluate(&self, batch: &Batch) -> Result<Evaluation> {
        let encoded = self.encode(batch)?;
        let (logits, sequences) = (encoded.logits.tensor().clone(), encoded.sequences.clone());
        let (losses, feasible) = self.losses(encoded, &batch.labels)?;
        Ok(Evaluation { logits, sequences, losses, feasible })
    }

    /// What CTC softmax and decoder see of a batch, without dropout and keeping nothing.
    ///
    /// # Errors
    /// If a batch does not fit the model.
    pub fn encode(&self, batch: &Batch) -> Result<Encoded> {
        let mut tape = Tape::without_gradients(&self.device);
        let features = self.upload(batch);
        let (hidden, sequences) = self.model.encode(&mut tape, &self.parameters, features, &batch.sequences, None)?;
        let logits = self.model.ctc_logits(&mut tape, &self.parameters, &hidden, &sequences, None)?;
        Ok(Encoded { hidden, logits, sequences })
    }

    /// -ln p(labels) of every utterance, and whether it has one. Waits for a GPU.
    ///
    /// # Errors
    /// If the labels do not fit the model.
    pub fn losses(&self, encoded: Encoded, labels: &[Vec<u32>]) -> Result<(Vec<f64>, Vec<bool>)> {
        let mut tape = Tape::without_gradients(&self.device);
        let Loss { losses, feasible, .. } = self.model.loss_of(&mut tape, &self.parameters, encoded, labels, None)?;
        let losses = losses.read(feasible.len());
        self.device.check()?;
        Ok((losses, feasible))
    }

    fn upload(&self, batch: &Batch) -> Var {
        let shape = [batch.sequences.rows(), self.model.inputs()];
        Var::constant(Tensor::from_vec(&self.device, &shape, batch.features.clone(), Category::Activation))
    }
}
