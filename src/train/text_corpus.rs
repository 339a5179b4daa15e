//! Texts and a language model: what a recipe with `data.kind = "text"` names, its batches, and how a text is scored.

use crate::data::augment::Draw;
use crate::data::streams::{Sentences, Streams, TextBatch, TrainingWindow, training_windows};
use crate::data::text::{TOKENS, is_id_file};
use crate::data::{TextData, Vocabulary};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::models::lstm_lm::LstmLm;
use crate::random::MaskKey;
use crate::recipe::{self, Batch as BatchSection, Recipe, TextMode};
use crate::score::perplexity::perplexity;
use crate::tensor::Tensor;
use crate::train::evaluate::Evaluated;
use crate::train::learner::Learner;
use crate::train::plan::BatchForecast;
use crate::train::progress::Unit;
use crate::train::record::Scores;
use crate::train::task::{Batches, GoOn, Kept, Outcome, Set, Task, token_unit};
use crate::train::text_learner::{Carried, Objective, TextRunning};
use std::path::Path;

/// Rows that are evaluated at a time.
const ROWS: usize = 1024;

#[derive(Clone)]
pub struct TextCorpus {
    pub train: TextData,
    /// None: the training text.
    pub valid: Option<TextData>,
    pub test: Option<TextData>,
    pub vocabulary: Vocabulary,
}

/// Texts and the language model that is trained on them.
#[derive(Clone)]
pub struct TextTask {
    pub corpus: TextCorpus,
    pub model: LstmLm,
    batching: recipe::TextBatch,
    objective: Objective,
}

/// A batch of the training text, by its place.
#[derive(Debug, Clone)]
pub enum TextPiece {
    /// A window of time of all streams.
    Window(TrainingWindow),
    /// Sentences by their numbers, longest first.
    Sentences(Vec<usize>),
}

/// A batch, what it is called, and the factor on its learning rate.
pub struct NamedBatch {
    name: String,
    batch: TextBatch,
    rate_factor: f64,
}

/// A step on one.
pub struct RunningWindow {
    running: TextRunning,
    name: String,
    sequences: usize,
}

/// What a text was found to be worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextScores {
    /// The sum of -ln p over the predicted tokens, natural log.
    pub negative_log_likelihood: f64,
    /// What the loss is a mean over.
    pub tokens: u64,
}

impl TextScores {
    pub fn loss(&self) -> f64 {
        self.negative_log_likelihood / self.tokens as f64
    }
}

/// The list that belongs to a text: the one that is named; that beside an id file; or all symbols of the training text.
///
/// # Errors
/// A file that cannot be read, or is no list.
pub fn vocabulary_of(data: &recipe::Data) -> Result<Vocabulary> {
    let unit = token_unit(data.tokens)?;
    match &data.token_list {
        Some(path) => Vocabulary::load(unit, path),
        None if is_id_file(&data.train)? => Vocabulary::load(unit, data.train.with_file_name(TOKENS)),
        None => Vocabulary::by_first_appearance(unit, [read_text(&data.train)?.as_str()]),
    }
}

impl TextCorpus {
    /// # Errors
    /// Texts that are missing or that the list does not fit.
    pub fn open(recipe: &Recipe, vocabulary: Vocabulary) -> Result<Self> {
        let open = |path: &Path| TextData::open(path, &vocabulary);
        let data = &recipe.data;
        Ok(TextCorpus {
            train: open(&data.train)?,
            valid: data.valid.as_deref().map(open).transpose()?,
            test: data.test.as_deref().map(open).transpose()?,
            vocabulary,
        })
    }
}

impl TextTask {
    /// # Errors
    /// If the recipe is not about text, or its streams are too many for the text.
    pub fn new(recipe: &Recipe, corpus: TextCorpus, model: LstmLm) -> Result<Self> {
        let BatchSection::Text(batching) = &recipe.batch else {
            return Err(Error::key("batch", "has no streams for text"));
        };
        let task = TextTask { corpus, model, batching: *batching, objective: objective(recipe) };
        if batching.mode == TextMode::Stream {
            task.streams()?;
        }
        Ok(task)
    }

    fn streams(&self) -> Result<Streams<'_>> {
        Streams::equal(self.corpus.train.ids(), self.batching.sequences)
    }

    fn sentences<'a>(&self, data: &'a TextData) -> Sentences<'a> {
        let end = self.corpus.vocabulary.end();
        Sentences::new(data.sentences(end), end)
    }

    fn batch(&self, piece: &TextPiece, sentences: Option<&Sentences<'_>>) -> Result<NamedBatch> {
        match (piece, sentences) {
            (TextPiece::Window(window), _) => {
                let batch = self.streams()?.batch(window.steps.clone())?;
                let name = format!("tokens {}..{} of every stream", window.steps.start, window.steps.end);
                Ok(NamedBatch { name, batch, rate_factor: window.scale })
            }
            (TextPiece::Sentences(indices), Some(sentences)) => {
                let lines: Vec<String> = indices.iter().map(|index| (index + 1).to_string()).collect();
                let name = format!("lines {}", lines.join(" "));
                Ok(NamedBatch { name, batch: sentences.batch(indices)?, rate_factor: 1.0 })
            }
            (TextPiece::Sentences(_), None) => Err(Error::program("sentences of a text that is read as streams")),
        }
    }

    fn sentences_of_training(&self) -> Option<Sentences<'_>> {
        (self.batching.mode == TextMode::Sentences).then(|| self.sentences(&self.corpus.train))
    }

    fn set(&self, set: Set) -> Option<&TextData> {
        match set {
            Set::Valid => Some(self.corpus.valid.as_ref().unwrap_or(&self.corpus.train)),
            Set::Test => self.corpus.test.as_ref(),
        }
    }

    fn scores(&self, learner: &Learner<LstmLm>, set: Set, go_on: GoOn<'_>) -> Result<Option<TextScores>> {
        let Some(data) = self.set(set) else { return Ok(None) };
        let batching = &self.batching;
        match batching.mode {
            TextMode::Sentences => score_sentences(learner, &self.sentences(data), batching, go_on).map(Some),
            TextMode::Stream if batching.original_evaluation => {
                // awd-lstm-lm: ten streams for validation, one for the test; the tail dropped, and the sum divided by the length.
                let count = if set == Set::Valid { batching.evaluation_streams } else { 1 };
                let streams = Streams::equal(data.ids(), count)?;
                let TextScores { negative_log_likelihood, .. } = score_streams(learner, &streams, |_| go_on())?;
                let tokens = (count * (streams.steps() + 1)) as u64;
                Ok(Some(TextScores { negative_log_likelihood, tokens }))
            }
            TextMode::Stream => {
                let streams = Streams::whole(data.ids(), batching.evaluation_streams);
                score_streams(learner, &streams, |_| go_on()).map(Some)
            }
        }
    }
}

/// What the recipe adds to the cross entropy.
pub fn objective(recipe: &Recipe) -> Objective {
    Objective {
        activation: recipe.training.activation_regularization,
        temporal: recipe.training.temporal_regularization,
        per_sequence: matches!(&recipe.batch, BatchSection::Text(batch) if batch.mode == TextMode::Sentences),
    }
}

/// Every token of the streams, each predicted from all that its stream has before it. `after` hears how many tokens are done.
///
/// # Errors
/// If the text does not fit the model, or what `after` says.
pub fn score_streams(
    learner: &Learner<LstmLm>,
    streams: &Streams<'_>,
    mut after: impl FnMut(usize) -> Result<()>,
) -> Result<TextScores> {
    let mut carried = Carried::zeros(learner.device(), learner.model(), streams.count());
    let (mut sum, mut tokens) = (0.0, 0);
    for window in streams.windows(ROWS) {
        let batch = streams.batch(window)?;
        sum += learner.text_losses(&batch, Some(&mut carried))?.iter().sum::<f64>();
        tokens += batch.targets.len() as u64;
        after(batch.targets.len())?;
    }
    Ok(TextScores { negative_log_likelihood: sum, tokens })
}

/// Every sentence by itself.
///
/// # Errors
/// If the text does not fit the model, or what `go_on` says.
pub fn score_sentences(
    learner: &Learner<LstmLm>,
    sentences: &Sentences<'_>,
    batching: &recipe::TextBatch,
    go_on: GoOn<'_>,
) -> Result<TextScores> {
    let (mut sum, mut tokens) = (0.0, 0);
    for indices in sentences.plan(batching.sequences, batching.max_length)?.batches() {
        let batch = sentences.batch(indices)?;
        sum += learner.text_losses(&batch, None)?.iter().sum::<f64>();
        tokens += batch.targets.len() as u64;
        go_on()?;
    }
    Ok(TextScores { negative_log_likelihood: sum, tokens })
}

impl Task for TextTask {
    type Model = LstmLm;
    type Piece = TextPiece;
    type Batch = NamedBatch;
    type Carried = Option<Carried>;
    type Running = RunningWindow;

    fn model(&self) -> &LstmLm {
        &self.model
    }

    fn model_name(&self) -> String {
        format!("lstm-lm, {} symbols", self.symbols())
    }

    fn unit(&self) -> Unit {
        Unit::Tokens
    }

    fn symbols(&self) -> usize {
        self.corpus.vocabulary.len()
    }

    fn kept(&self) -> Result<Kept> {
        Ok(Kept { tokens: self.corpus.vocabulary.to_text(), ..Kept::default() })
    }

    fn epoch(&self, seed: u64, epoch: usize) -> Result<Vec<TextPiece>> {
        match self.sentences_of_training() {
            Some(sentences) => {
                let plan = sentences.plan(self.batching.sequences, self.batching.max_length)?;
                Ok(plan.epoch(seed, epoch).into_iter().map(TextPiece::Sentences).collect())
            }
            None => {
                let (steps, random) = (self.streams()?.steps(), self.batching.random_bptt);
                let windows = training_windows(steps, self.batching.bptt, random, seed, epoch);
                Ok(windows.into_iter().map(TextPiece::Window).collect())
            }
        }
    }

    fn size(&self, piece: &TextPiece) -> u64 {
        match piece {
            TextPiece::Window(window) => (window.steps.len() * self.batching.sequences) as u64,
            // The whole text has to be cut for that; batches are then counted instead.
            TextPiece::Sentences(_) => 0,
        }
    }

    fn batches<'a>(&'a self, pieces: &'a [TextPiece], first: usize, _: Draw) -> Result<Batches<'a, NamedBatch>> {
        let sentences = self.sentences_of_training();
        Ok(Box::new(pieces.iter().skip(first).map(move |piece| self.batch(piece, sentences.as_ref()))))
    }

    fn carried(&self, device: &Device) -> Option<Carried> {
        let is_stream = self.batching.mode == TextMode::Stream;
        is_stream.then(|| Carried::zeros(device, &self.model, self.batching.sequences))
    }

    fn named_carried<'a>(&self, carried: &'a Option<Carried>) -> Vec<(String, &'a Tensor)> {
        carried.as_ref().map(Carried::named).unwrap_or_default()
    }

    fn named_carried_mut<'a>(&self, carried: &'a mut Option<Carried>) -> Vec<(String, &'a mut Tensor)> {
        carried.as_mut().map(Carried::named_mut).unwrap_or_default()
    }

    fn start(
        &self,
        learner: &mut Learner<LstmLm>,
        batch: NamedBatch,
        carried: &mut Option<Carried>,
        masks: &MaskKey,
    ) -> Result<RunningWindow> {
        let NamedBatch { name, batch, rate_factor } = batch;
        learner.updater.set_rate_factor(rate_factor);
        let running = learner.start_text(&batch, carried.as_mut(), &self.objective, masks)?;
        Ok(RunningWindow { running, name, sequences: batch.sequences.count() })
    }

    fn settle(&self, learner: &mut Learner<LstmLm>, running: RunningWindow) -> Result<Outcome> {
        let RunningWindow { running, name, sequences } = running;
        let step = learner.settle_text(running)?;
        Ok(Outcome {
            loss: step.loss,
            counted: step.tokens,
            names: vec![name],
            infeasible: Vec::new(),
            items: sequences,
            frames: step.tokens,
            update: step.update,
            kept: step.kept,
            work: step.work,
        })
    }

    fn evaluate(&self, learner: &Learner<LstmLm>, set: Set, go_on: GoOn<'_>) -> Result<Option<Evaluated>> {
        Ok(self.scores(learner, set, go_on)?.map(|text| {
            let scores = Scores {
                loss: text.loss(),
                tokens: Some(text.tokens),
                perplexity: Some(perplexity(text.negative_log_likelihood, text.tokens)),
                ..Scores::default()
            };
            Evaluated { scores, ..Evaluated::default() }
        }))
    }

    fn planned(&self) -> Result<Vec<TextPiece>> {
        self.epoch(0, 1)
    }

    fn outline(&self, piece: &TextPiece) -> Result<NamedBatch> {
        self.batch(piece, self.sentences_of_training().as_ref())
    }

    fn describe(&self, piece: &TextPiece) -> BatchForecast {
        let (utterances, longest_frames, frames) = match piece {
            TextPiece::Window(window) => {
                (self.batching.sequences, window.steps.len(), self.batching.sequences * window.steps.len())
            }
            TextPiece::Sentences(indices) => {
                let sentences = self.sentences(&self.corpus.train);
                (indices.len(), sentences.tokens(&indices[..1.min(indices.len())]), sentences.tokens(indices))
            }
        };
        BatchForecast { utterances, longest_frames, frames, labels: frames, ..BatchForecast::default() }
    }

    fn evaluate_outline(&self, learner: &Learner<LstmLm>, set: Set) -> Result<bool> {
        Ok(self.scores(learner, set, &|| Ok(()))?.is_some())
    }

    fn utterances(&self) -> Option<usize> {
        None
    }

    fn batch_size(&self) -> (&'static str, usize) {
        ("batch.sequences", self.batching.sequences)
    }

    fn with_batch_size(&self, size: usize) -> Self {
        let mut smaller = self.clone();
        smaller.batching.sequences = size;
        smaller
    }
}
