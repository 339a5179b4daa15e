//! Where a stage stands: what its saved state holds beside the tensors.

use crate::backend::cuda::products::Products;
use crate::optim::{Average, EpsilonDecay};
use crate::train::number;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Whole epochs, validation included.
    pub epochs_done: usize,
    /// Batches of the epoch after these that were trained on.
    pub batch: usize,
    /// Batches trained on since the stage began, skipped updates included: the counter of the dropout masks.
    pub step: u32,
    /// Updates made since the stage began.
    pub updates: u64,
    pub epsilon: Option<EpsilonDecay>,
    /// None in states of versions that never changed it.
    #[serde(default)]
    pub learning_rate: Option<f64>,
    /// On the learning rate, of the last batch and the one before.
    #[serde(default)]
    pub rate_factors: Option<(f64, f64)>,
    /// NT-ASGD's, once it has begun.
    #[serde(default)]
    pub average: Option<Average>,
    /// NT-ASGD: the validation losses before.
    #[serde(default)]
    pub losses_before_averaging: Vec<f64>,
    /// Of the epoch that is under way.
    pub sums: EpochSums,
    pub best: Option<Best>,
    pub epochs_without_improvement: usize,
    /// True if, after the last epoch, the best weights came back: the weights are then not those that the epoch ended with.
    #[serde(default)]
    pub went_back: bool,
    /// Bytes, for the largest batch so far.
    pub kept_activations: u64,
    /// Bytes on the device at most, and in a GPU's arena.
    #[serde(default)]
    pub peak: u64,
    #[serde(default)]
    pub arena: u64,
    /// Training and validation, since the stage began.
    pub seconds: f64,
    /// The SHA-256 checksum of the file that the frozen groups are from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier: Option<String>,
    /// On a GPU: who multiplied matrices, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub products: Option<Products>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub epoch: usize,
    /// Of the training criterion.
    #[serde(with = "number::float")]
    pub value: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochSums {
    #[serde(with = "number::float")]
    pub loss: f64,
    /// Those with a loss; of a text, tokens.
    pub utterances: u64,
    #[serde(with = "number::float")]
    pub gradient_norm: f64,
    pub updates: u64,
    pub skipped: u64,
    pub infeasible: u64,
    pub train_seconds: f64,
}
