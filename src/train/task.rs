//! What differs between the kinds of data: their batches, the step on one, and how a set is scored. All else about a stage, a run and a
//! plan is the same for every kind.

use crate::data::Unit as TokenUnit;
use crate::data::augment::Draw;
use crate::data::batch::SpeechBatch;
use crate::device::Device;
use crate::error::Result;
use crate::models::Network;
use crate::models::any::AnyRecogniser;
use crate::ops::sequences::Sequences;
use crate::random::MaskKey;
use crate::tensor::Tensor;
use crate::train::corpus::{Corpus, Frontend};
use crate::train::evaluate::{Evaluated, evaluate};
use crate::train::learner::{Batch, Learner, Running, Work};
use crate::train::plan::BatchForecast;
use crate::train::progress::Unit;
use crate::train::recognise::Decoder;
use crate::train::updater::Update;

/// Batches one after the other, each assembled when it is asked for or before.
pub type Batches<'a, B> = Box<dyn Iterator<Item = Result<B>> + 'a>;

/// A held-out set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// The training set where the recipe names none.
    Valid,
    Test,
}

/// Data and the model that is trained on them.
pub trait Task {
    type Model: Network;
    /// What a batch consists of, by its place in the data.
    type Piece: Clone;
    type Batch;
    /// What a batch hands to the next one of its epoch.
    type Carried;
    /// A step that a GPU may still be busy with.
    type Running;

    fn model(&self) -> &Self::Model;
    /// For example `blstm-ctc, 52 symbols`.
    fn model_name(&self) -> String;
    fn unit(&self) -> Unit;
    fn symbols(&self) -> usize;
    /// What a run keeps beside its weights.
    ///
    /// # Errors
    /// If it cannot be written down.
    fn kept(&self) -> Result<Kept>;

    /// The batches of a training epoch (counted from 1), in their order.
    ///
    /// # Errors
    /// Limits that allow no batch.
    fn epoch(&self, seed: u64, epoch: usize) -> Result<Vec<Self::Piece>>;
    /// Frames or tokens of a batch.
    fn size(&self, piece: &Self::Piece) -> u64;
    /// The batches from number `first` on. What is random in them follows from `draw`.
    ///
    /// # Errors
    /// If they cannot be assembled; then an item is an error, too.
    fn batches<'a>(&'a self, pieces: &'a [Self::Piece], first: usize, draw: Draw) -> Result<Batches<'a, Self::Batch>>;
    /// Before the first batch of an epoch.
    fn carried(&self, device: &Device) -> Self::Carried;
    /// Its tensors with their names in a saved state.
    fn named_carried<'a>(&self, carried: &'a Self::Carried) -> Vec<(String, &'a Tensor)>;
    fn named_carried_mut<'a>(&self, carried: &'a mut Self::Carried) -> Vec<(String, &'a mut Tensor)>;
    /// Starts a step, without waiting for a GPU.
    ///
    /// # Errors
    /// If the batch does not fit the model.
    fn start(
        &self,
        learner: &mut Learner<Self::Model>,
        batch: Self::Batch,
        carried: &mut Self::Carried,
        masks: &MaskKey,
    ) -> Result<Self::Running>;
    /// Waits for a step. Steps are settled in the order in which they were started.
    ///
    /// # Errors
    /// What the device says.
    fn settle(&self, learner: &mut Learner<Self::Model>, running: Self::Running) -> Result<Outcome>;
    /// None if there is no such set. After every batch `go_on` is asked.
    ///
    /// # Errors
    /// If the data cannot be read or do not fit the model, or what `go_on` says.
    fn evaluate(&self, learner: &Learner<Self::Model>, set: Set, go_on: GoOn<'_>) -> Result<Option<Evaluated>>;

    /// All batches of an epoch, the largest first where that is known: what a plan is made of.
    ///
    /// # Errors
    /// Those of [`Task::epoch`].
    fn planned(&self) -> Result<Vec<Self::Piece>>;
    /// A batch without its contents, for the device `plan`.
    ///
    /// # Errors
    /// If there is no such batch.
    fn outline(&self, piece: &Self::Piece) -> Result<Self::Batch>;
    /// What a plan says about a batch, but for memory and work.
    fn describe(&self, piece: &Self::Piece) -> BatchForecast;
    /// [`Task::evaluate`] on the device `plan`: false if there is no such set.
    ///
    /// # Errors
    /// Those of [`Task::evaluate`].
    fn evaluate_outline(&self, learner: &Learner<Self::Model>, set: Set) -> Result<bool>;
    /// Utterances of the training set; none for text.
    fn utterances(&self) -> Option<usize>;

    /// The recipe's key that limits a batch, and what it is.
    fn batch_size(&self) -> (&'static str, usize);
    /// The same with another limit.
    fn with_batch_size(&self, size: usize) -> Self;
}

/// Asked in the middle of long work; an error ends it.
pub type GoOn<'a> = &'a dyn Fn() -> Result<()>;

/// What a run keeps so that its model can be used: texts and bytes of files.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    pub tokens: String,
    pub features: Option<String>,
    pub cmvn: Option<Vec<u8>>,
    /// What splits words, if the tokens are pieces.
    pub pieces: Option<String>,
}

/// What a training step came to.
pub struct Outcome {
    /// The sum of the losses, natural log, over what is counted.
    pub loss: f64,
    /// Utterances with a loss, or tokens.
    pub counted: usize,
    /// What the batch is called where its update is skipped: utterances, or a place in the text.
    pub names: Vec<String>,
    /// The utterances without a loss.
    pub infeasible: Vec<String>,
    /// Utterances, or sequences, and frames, or tokens: for the speed.
    pub items: usize,
    pub frames: usize,
    pub update: Update,
    /// Bytes kept between forward and backward.
    pub kept: u64,
    pub work: Work,
}

/// Speech and a recogniser.
#[derive(Clone)]
pub struct SpeechTask {
    pub corpus: Corpus,
    pub model: Box<AnyRecogniser>,
}

/// A batch of utterances and what they are called.
pub struct SpeechPiece {
    ids: Vec<String>,
    batch: Batch,
}

pub struct RunningUtterances {
    running: Running,
    ids: Vec<String>,
    frames: usize,
}

impl From<SpeechBatch> for SpeechPiece {
    fn from(batch: SpeechBatch) -> Self {
        SpeechPiece { ids: batch.ids.clone(), batch: Batch::from(batch) }
    }
}

impl SpeechTask {
    fn set(&self, set: Set) -> Option<&std::sync::Arc<crate::data::SpeechData>> {
        match set {
            Set::Valid => Some(&self.corpus.valid),
            Set::Test => self.corpus.test.as_ref(),
        }
    }

    /// A batch as the learner takes it, but for its features. `indices` are by falling length, as a batch plan has them.
    fn sizes_of_batch(data: &crate::data::SpeechData, indices: &[usize]) -> Result<Batch> {
        let utterances: Vec<_> = indices.iter().map(|&index| &data.utterances()[index]).collect();
        let lengths: Vec<usize> = utterances.iter().map(|utterance| utterance.frames).collect();
        Ok(Batch {
            sequences: Sequences::new(&lengths)?,
            features: Vec::new(),
            labels: utterances.iter().map(|utterance| utterance.labels.clone()).collect(),
        })
    }
}

impl Task for SpeechTask {
    type Model = AnyRecogniser;
    type Piece = Vec<usize>;
    type Batch = SpeechPiece;
    type Carried = ();
    type Running = RunningUtterances;

    fn model(&self) -> &AnyRecogniser {
        &self.model
    }

    fn model_name(&self) -> String {
        format!("{}, {} symbols", self.model.kind(), self.symbols())
    }

    fn unit(&self) -> Unit {
        Unit::Utterances
    }

    fn symbols(&self) -> usize {
        self.corpus.frontend.tokens.len()
    }

    fn kept(&self) -> Result<Kept> {
        let Frontend { tokens, features, .. } = &self.corpus.frontend;
        Ok(Kept {
            tokens: tokens.to_text(),
            features: features.as_ref().map(|features| features.to_toml()).transpose()?,
            cmvn: self.corpus.frontend.cmvn().map(|cmvn| cmvn.to_bytes()).transpose()?,
            pieces: tokens.pieces().map(|pieces| pieces.to_json().to_string()),
        })
    }

    fn epoch(&self, seed: u64, epoch: usize) -> Result<Vec<Vec<usize>>> {
        Ok(self.corpus.train.plan(self.corpus.limits)?.epoch(seed, epoch))
    }

    fn size(&self, piece: &Vec<usize>) -> u64 {
        piece.iter().map(|&index| self.corpus.train.utterances()[index].frames as u64).sum()
    }

    fn batches<'a>(&'a self, pieces: &'a [Vec<usize>], first: usize, draw: Draw) -> Result<Batches<'a, SpeechPiece>> {
        let Corpus { train, augment, .. } = &self.corpus;
        let batches = match augment.is_active() {
            true => train.prefetch_augmented(pieces.to_vec(), first, augment, draw)?,
            false => train.prefetch(pieces.to_vec(), first)?,
        };
        Ok(Box::new(batches.map(|batch| batch.map(SpeechPiece::from))))
    }

    fn carried(&self, _: &Device) {}

    fn named_carried<'a>(&self, (): &'a ()) -> Vec<(String, &'a Tensor)> {
        Vec::new()
    }

    fn named_carried_mut<'a>(&self, (): &'a mut ()) -> Vec<(String, &'a mut Tensor)> {
        Vec::new()
    }

    fn start(
        &self,
        learner: &mut Learner<AnyRecogniser>,
        piece: SpeechPiece,
        (): &mut (),
        masks: &MaskKey,
    ) -> Result<RunningUtterances> {
        let SpeechPiece { ids, batch } = piece;
        Ok(RunningUtterances { running: learner.start(&batch, masks)?, ids, frames: batch.sequences.rows() })
    }

    fn settle(&self, learner: &mut Learner<AnyRecogniser>, running: RunningUtterances) -> Result<Outcome> {
        let RunningUtterances { running, ids, frames } = running;
        let step = learner.settle(running)?;
        let infeasible = ids.iter().zip(&step.feasible).filter(|(_, feasible)| !**feasible);
        let infeasible: Vec<String> = infeasible.map(|(id, _)| id.clone()).collect();
        Ok(Outcome {
            loss: step.losses.iter().sum(),
            counted: ids.len() - infeasible.len(),
            items: ids.len(),
            names: ids,
            infeasible,
            frames,
            update: step.update,
            kept: step.kept,
            work: step.work,
        })
    }

    fn evaluate(&self, learner: &Learner<AnyRecogniser>, set: Set, go_on: GoOn<'_>) -> Result<Option<Evaluated>> {
        let Corpus { frontend, limits, .. } = &self.corpus;
        let evaluate = |data| evaluate(learner, data, &frontend.tokens, *limits, Decoder::Greedy, |_| go_on());
        self.set(set).map(evaluate).transpose()
    }

    fn planned(&self) -> Result<Vec<Vec<usize>>> {
        Ok(self.corpus.train.plan(self.corpus.limits)?.batches().to_vec())
    }

    fn outline(&self, piece: &Vec<usize>) -> Result<SpeechPiece> {
        let batch = Self::sizes_of_batch(&self.corpus.train, piece)?;
        Ok(SpeechPiece { ids: vec![String::new(); piece.len()], batch })
    }

    fn describe(&self, piece: &Vec<usize>) -> BatchForecast {
        let utterances = self.corpus.train.utterances();
        let longest = piece.first().map(|&index| &utterances[index]);
        BatchForecast {
            longest_utterance: longest.map(|longest| longest.id.clone()).unwrap_or_default(),
            utterances: piece.len(),
            longest_frames: longest.map_or(0, |longest| longest.frames),
            frames: self.size(piece) as usize,
            labels: piece.iter().map(|&index| utterances[index].labels.len()).sum(),
            ..BatchForecast::default()
        }
    }

    fn evaluate_outline(&self, learner: &Learner<AnyRecogniser>, set: Set) -> Result<bool> {
        let Some(data) = self.set(set) else { return Ok(false) };
        for indices in data.plan(self.corpus.limits)?.batches() {
            learner.evaluate(&Self::sizes_of_batch(data, indices)?)?;
        }
        Ok(true)
    }

    fn utterances(&self) -> Option<usize> {
        Some(self.corpus.train.utterances().len())
    }

    fn batch_size(&self) -> (&'static str, usize) {
        ("batch.utterances", self.corpus.limits.utterances)
    }

    fn with_batch_size(&self, size: usize) -> Self {
        let mut smaller = self.clone();
        smaller.corpus.limits.utterances = size;
        smaller
    }
}

/// What a recipe's `data.tokens` says.
///
/// # Errors
/// A kind that is not there yet.
pub fn token_unit(tokens: crate::recipe::Tokens) -> Result<TokenUnit> {
    TokenUnit::parse(token_word(tokens))
}

/// As a recipe writes it.
pub fn token_word(tokens: crate::recipe::Tokens) -> &'static str {
    match tokens {
        crate::recipe::Tokens::Char => "char",
        crate::recipe::Tokens::Word => "word",
        crate::recipe::Tokens::Bpe => "bpe",
    }
}
