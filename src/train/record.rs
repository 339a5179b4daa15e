//! What a run writes down: one [`EpochRecord`] a line in `log.jsonl`, one [`StageResult`] per stage in `result.json`.
//! The trainer writes them, the report reads them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line of `log.jsonl`: an epoch of a stage, after validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The stage's id (`joint`, `1-4`, `1-1-3`).
    pub stage: String,
    /// Counts from 1.
    pub epoch: usize,
    /// Mean over the training utterances (speech) or tokens (text) of the loss, while training.
    #[serde(with = "crate::train::number::float")]
    pub train_loss: f64,
    #[serde(with = "crate::train::number::float")]
    pub valid_loss: f64,
    /// Per cent; speech only.
    #[serde(default, with = "crate::train::number::optional_float")]
    pub valid_cer: Option<f64>,
    /// Per cent; speech only.
    #[serde(default, with = "crate::train::number::optional_float")]
    pub valid_wer: Option<f64>,
    /// Text only.
    #[serde(default, with = "crate::train::number::optional_float")]
    pub valid_perplexity: Option<f64>,
    /// True if this epoch has the lowest validation loss so far.
    pub best: bool,
    /// The SHA-256 checksum of `epoch-N.safetensors`, if every epoch's weights are kept; versions before did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_sha256: Option<String>,
    /// Batches since the stage began; an optimiser step each, unless `training.accumulate` joins them or an update was skipped.
    pub step: u64,
    #[serde(with = "crate::train::number::float")]
    pub learning_rate: f64,
    /// Mean global gradient norm before clipping.
    #[serde(with = "crate::train::number::float")]
    pub gradient_norm: f64,
    /// Updates skipped because a gradient was not finite.
    pub skipped_updates: u64,
    /// Utterances whose labels cannot fit their frames, left out of the gradient.
    pub infeasible_utterances: u64,
    /// Wall time of training and validation, of this epoch.
    pub train_seconds: f64,
    pub valid_seconds: f64,
}

/// Bytes at their peak within a stage, as counted by the device's ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRecord {
    pub parameters: u64,
    pub gradients: u64,
    pub optimizer_state: u64,
    /// Kept between forward and backward, for the largest batch.
    pub kept_activations: u64,
    /// The largest sum of everything on the device at one instant.
    pub peak: u64,
    /// The most bytes that the arena of a GPU held, which has the tensors that live within a step; 0 on a CPU.
    #[serde(default)]
    pub arena: u64,
    /// The process's peak resident memory so far.
    pub process_peak: u64,
}

/// How far a layer moved: the sum of |change| of its parameters from the end of epoch 1 to the weights that were kept (ICLR
/// 2020, Table 1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerMovement {
    /// For example `encoder.blstm.3` or `ctc`.
    pub layer: String,
    #[serde(with = "crate::train::number::float")]
    pub sum_absolute_change: f64,
}

/// Scores of one data set under one set of weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    #[serde(with = "crate::train::number::float")]
    pub loss: f64,
    pub utterances: Option<u64>,
    pub tokens: Option<u64>,
    /// Per cent.
    #[serde(default, with = "crate::train::number::optional_float")]
    pub cer: Option<f64>,
    /// Per cent.
    #[serde(default, with = "crate::train::number::optional_float")]
    pub wer: Option<f64>,
    #[serde(default, with = "crate::train::number::optional_float")]
    pub perplexity: Option<f64>,
}

/// One decoded utterance, kept as a sample for the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transcript {
    pub utterance: String,
    pub reference: String,
    pub hypothesis: String,
}

/// One layer group of the model, bottom to top.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// For example `blstm-1` or `softmax`.
    pub name: String,
    pub parameters: u64,
}

/// A finished stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    pub stage: String,
    /// The papers' notation: `joint`, `M(1,4)`, `M(1,1,3)`, `freeze-bottom`.
    pub title: String,
    /// Indices of the frozen groups, 0 is the lowest.
    pub frozen_groups: Vec<usize>,
    /// The stage whose weights the frozen groups have.
    pub classifier_from: Option<String>,
    pub seed: u64,
    pub epochs: usize,
    /// Of the lowest validation loss.
    pub best_epoch: usize,
    /// The SHA-256 checksum of `best.safetensors`; versions before did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_sha256: Option<String>,
    /// If the stage kept the average of the weights of its last epochs instead of the best epoch's: of how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub averaged_epochs: Option<usize>,
    /// On the validation set, with the weights that were kept.
    pub valid: Scores,
    /// On the test set, if the recipe names one.
    pub test: Option<Scores>,
    /// The value that the cascade compared, and its name (`cer`, `wer`, `loss`, `perplexity`).
    pub criterion: String,
    #[serde(with = "crate::train::number::float")]
    pub criterion_value: f64,
    /// False if the strategy did not build on this stage because it was worse.
    pub accepted: bool,
    pub seconds: f64,
    /// Where it was trained; versions before wrote only where a run was last opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    pub memory: MemoryRecord,
    /// Who computed the matrix products on a GPU when the stage ended: the engine's kernels, or a library with its version and the GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products: Option<String>,
    pub movement: Vec<LayerMovement>,
    /// A few decoded validation utterances.
    pub samples: Vec<Transcript>,
}

/// `result.json`: what a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    pub name: String,
    pub model: String,
    pub strategy: String,
    /// Where the stages were trained, each device once.
    pub device: String,
    /// Bottom to top.
    pub groups: Vec<GroupRecord>,
    /// In the order in which they were trained.
    pub stages: Vec<StageResult>,
    /// The id of the best stage, `RUN` alone means this one.
    pub best: Option<String>,
    /// The best stage of each of the recipe's seeds that has a finite result, in their order.
    #[serde(default)]
    pub bests: Vec<String>,
    /// By their names, the SHA-256 checksums of the files that the run began with and that are its own for good: token list, pieces, statistics;
    /// versions before did not write them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub start_sha256: BTreeMap<String, String>,
    /// True once the strategy has nothing more to train.
    pub finished: bool,
}
