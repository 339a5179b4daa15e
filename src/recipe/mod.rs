//! Recipes: one TOML file per experiment. This module reads them, fills in every default and refuses what cannot be.
//!
//! The keys stand in one table (`keys.rs`); `form.rs` says what a value may be, `source.rs` reads file and `--set`,
//! `build.rs` makes a [`Recipe`] of it, `text.rs` writes the help and the filled-in recipe.

mod build;
mod form;
mod keys;
mod source;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};

pub use text::help;

use crate::data::augment::SpecAugment;
use crate::error::{Error, Result};
use crate::nn::Scheme;
use crate::optim::Method;

/// A whole experiment, every default filled in and every path absolute. Sections and fields have the names of the keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    pub name: String,
    /// One run for each; the keys `seed` and `seeds`.
    pub seeds: Vec<u64>,
    /// None: the run's own seed. Ask [`Recipe::seeds_for`].
    #[serde(serialize_with = "seed_or_runs")]
    pub init_seed: Option<u64>,
    #[serde(serialize_with = "seed_or_runs")]
    pub reinit_seed: Option<u64>,
    #[serde(serialize_with = "seed_or_runs")]
    pub data_seed: Option<u64>,
    #[serde(serialize_with = "seed_or_runs")]
    pub dropout_seed: Option<u64>,
    pub data: Data,
    /// The options of the feature extraction, as they stand: see [`Recipe::features_as`].
    pub features: toml::Table,
    /// Speech; nothing for text.
    pub augment: Augment,
    pub batch: Batch,
    pub model: Model,
    pub optimizer: Optimizer,
    pub training: Training,
    pub cascade: Cascade,
}

/// What each random thing of one run follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeds {
    pub init: u64,
    pub reinit: u64,
    pub data: u64,
    pub dropout: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataKind {
    Speech,
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tokens {
    Char,
    Word,
    Bpe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cmvn {
    /// Mean and variance over the training set.
    Global,
    /// Mean and variance over the utterance itself.
    Utterance,
    /// That of the run that `cascade.classifier_from` names.
    Classifier,
    None,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Data {
    pub kind: DataKind,
    pub train: PathBuf,
    #[serde(serialize_with = "path_or_empty")]
    pub valid: Option<PathBuf>,
    #[serde(serialize_with = "path_or_empty")]
    pub test: Option<PathBuf>,
    pub tokens: Tokens,
    /// None: made from the training set.
    #[serde(serialize_with = "path_or_empty")]
    pub token_list: Option<PathBuf>,
    /// Speech with tokens "bpe": what splits words.
    #[serde(serialize_with = "path_or_empty")]
    pub pieces: Option<PathBuf>,
    /// Speech: symbols that are never split nor scored.
    pub non_linguistic: Vec<String>,
    /// Speech; `None` for text.
    pub cmvn: Cmvn,
    pub subset: Subset,
}

/// The part of the training set to train on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Subset {
    /// Of the whole training set, in (0, 1]; at most what `complement_of` leaves.
    pub fraction: f64,
    pub seed: u64,
    pub nested: bool,
    /// In [0, 1): the subset is drawn from outside the subset of this fraction and the same seed; 0: from all.
    pub complement_of: f64,
}

/// What is made of the training set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Augment {
    /// [1.0]: as it is.
    pub speeds: Vec<f64>,
    #[serde(flatten)]
    pub features: SpecAugment,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Batch {
    Speech { utterances: usize, max_frames: usize, max_labels: usize },
    Text(TextBatch),
}

/// How a text becomes batches.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TextBatch {
    pub mode: TextMode,
    /// Streams, or sentences of a batch.
    pub sequences: usize,
    pub bptt: usize,
    pub random_bptt: bool,
    pub max_length: usize,
    pub evaluation_streams: usize,
    pub original_evaluation: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextMode {
    /// The whole text, cut into streams that are read side by side.
    Stream,
    /// Every line by itself.
    Sentences,
}

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Model {
    BlstmCtc(BlstmCtc),
    CtcAttention(CtcAttention),
    Transformer(Transformer),
    LstmLm(LstmLm),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LstmLm {
    pub layers: usize,
    pub embedding: usize,
    pub units: usize,
    pub tied: bool,
    pub dropout: f64,
    pub dropout_hidden: f64,
    pub dropout_input: f64,
    pub dropout_embedding: f64,
    pub dropout_recurrent: f64,
    pub locked_dropout: bool,
    pub init: Scheme,
}

/// What lies below the lowest BLSTM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontEnd {
    None,
    Vgg,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlstmCtc {
    #[serde(rename = "frontend")]
    pub front_end: FrontEnd,
    pub layers: usize,
    pub units: usize,
    pub projection: usize,
    /// One for each layer, bottom first.
    pub subsample: Vec<usize>,
    pub dropout: f64,
    pub init: Scheme,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CtcAttention {
    #[serde(flatten)]
    pub encoder: BlstmCtc,
    pub attention: usize,
    pub attention_channels: usize,
    pub attention_reach: usize,
    pub decoder_units: usize,
    /// Of the CTC loss; the rest is the decoder's.
    pub ctc_weight: f64,
    pub label_smoothing: f64,
    /// Probability that the decoder reads its own symbol in training.
    pub scheduled_sampling: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Transformer {
    pub encoder_layers: usize,
    pub decoder_layers: usize,
    pub units: usize,
    pub heads: usize,
    pub feedforward: usize,
    pub dropout: f64,
    pub attention_dropout: f64,
    /// Of the CTC loss; the rest is the decoder's.
    pub ctc_weight: f64,
    pub label_smoothing: f64,
    pub init: Scheme,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Optimizer {
    #[serde(flatten)]
    pub method: Method,
    pub learning_rate: f64,
    /// Adam: updates until the learning rate is highest; 0: it stays the same.
    pub warmup: usize,
    /// SGD; 1: none.
    pub learning_rate_decay: f64,
    /// Adadelta and Adam; 0 for SGD, which has none.
    pub epsilon: f64,
    /// Adadelta; 1: none.
    pub epsilon_decay: f64,
    pub epsilon_decay_restores_best: bool,
    pub weight_decay: f64,
    /// 0: off.
    pub clip: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    F32,
    Tf32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    Best,
    All,
}

/// What is compared on the validation set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    Loss,
    Cer,
    Wer,
    Perplexity,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    pub max_epochs: usize,
    /// 0: off.
    pub patience: usize,
    pub criterion: Criterion,
    pub precision: Precision,
    pub keep: Keep,
    /// Epochs whose weights' average is the stage's; 1: the best epoch's are.
    pub average_epochs: usize,
    /// Speech: batches of an update; 1 for text.
    pub accumulate: usize,
    /// 0: a state is written after each epoch only.
    pub save_minutes: f64,
    pub tensorboard: bool,
    /// Language models; 0 for others.
    pub activation_regularization: f64,
    pub temporal_regularization: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    None,
    Greedy,
    CutSearch,
    Exhaustive,
    Fixed,
    FreezeBottom,
}

/// When `cut-search` tries again with one group more frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inner {
    /// In the first round, as the authors ran it.
    First,
    /// In every round, as ICLR 2020's Algorithm 1 is printed.
    Always,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cascade {
    pub strategy: Strategy,
    pub criterion: Criterion,
    pub inner: Inner,
    /// `fixed`: the number of groups of each round, top first; each adds up to the model's groups.
    pub compositions: Vec<Vec<usize>>,
    /// Empty: the classifier comes from this run's own joint training.
    pub classifier_from: Vec<ClassifierSource>,
    pub classifier_groups: usize,
    /// Empty: the run's reinit seed alone.
    pub reinit_seeds: Vec<u64>,
}

/// Where a frozen classifier comes from: RUN, RUN/STAGE or RUN/STAGE@EPOCH.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassifierSource {
    /// A run's folder (its best stage) or a stage's folder.
    pub path: PathBuf,
    /// None: the best epoch.
    pub epoch: Option<usize>,
}

impl fmt::Display for ClassifierSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.epoch {
            Some(epoch) => write!(f, "{}@{epoch}", self.path.display()),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

impl Serialize for ClassifierSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Model {
    /// How many layer groups a cut can freeze: a front end, each BLSTM with its projection or LSTM, the softmax and, if its weights are its own, the
    /// embedding; with attention, the decoder; of a Transformer the front end, each layer, and both softmax layers together.
    pub fn groups(&self) -> usize {
        match self {
            Model::BlstmCtc(model) => model.layers + 1 + usize::from(model.front_end == FrontEnd::Vgg),
            Model::CtcAttention(model) => {
                model.encoder.layers + 2 + usize::from(model.encoder.front_end == FrontEnd::Vgg)
            }
            Model::Transformer(model) => model.encoder_layers + model.decoder_layers + 2,
            Model::LstmLm(model) => model.layers + 1 + usize::from(!model.tied),
        }
    }
}

impl Recipe {
    /// Reads the recipe `path` and then each `KEY=VALUE` of `overrides` (`--set`), whose values are TOML; a word that is not is a text.
    ///
    /// Relative paths, those of `--set` too, start at the recipe's folder. `--set seed=N` replaces the recipe's `seeds`, and the reverse;
    /// `--set 'optimizer={kind="sgd"}'` replaces a whole section.
    ///
    /// # Errors
    /// A file that cannot be read; a key that is unknown, missing or impossible: named with its line, its value and what is allowed.
    pub fn load(path: impl AsRef<Path>, overrides: &[String]) -> Result<Recipe> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, "be read", &error))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            Error::line(path, line, "this is not UTF-8").remedy("A recipe is a text in UTF-8")
        })?;
        // Without its links, so that a leading ".." of a path can be taken off its end.
        let absolute = std::fs::canonicalize(path).map_err(|error| Error::io(path, "be found", &error))?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, path, folder, overrides)
    }

    /// As [`Recipe::load`], from `text`: `file` names it in errors, `folder` (absolute) is where relative paths start.
    pub fn parse(text: &str, file: &Path, folder: &Path, overrides: &[String]) -> Result<Recipe> {
        build::build(&source::Source::read(text, file, overrides)?, folder)
    }

    /// The seeds of the run with `seed`, one of [`Recipe::seeds`].
    pub fn seeds_for(&self, seed: u64) -> Seeds {
        Seeds {
            init: self.init_seed.unwrap_or(seed),
            reinit: self.reinit_seed.unwrap_or(seed),
            data: self.data_seed.unwrap_or(seed),
            dropout: self.dropout_seed.unwrap_or(seed),
        }
    }

    /// The options of the feature extraction as `T`, which refuses unknown fields (`serde(deny_unknown_fields)`) and has its own defaults.
    ///
    /// # Errors
    /// What `T` refuses, naming `features.KEY` where it says which.
    pub fn features_as<T: DeserializeOwned>(&self) -> Result<T> {
        text::features_as(&self.features)
    }

    /// Every key with its value, as TOML with absolute paths: a run's own `recipe.toml`. Loading it gives this recipe again.
    ///
    /// # Errors
    /// A value that TOML cannot hold: a path that is not UTF-8, a seed above 2^63 - 1. A loaded recipe has neither.
    pub fn filled(&self) -> Result<String> {
        text::filled(self)
    }
}

fn seed_or_runs<S: Serializer>(seed: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match seed {
        Some(seed) => serializer.serialize_u64(*seed),
        None => serializer.serialize_str("seed"),
    }
}

fn path_or_empty<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().unwrap_or(Path::new("")).serialize(serializer)
}
