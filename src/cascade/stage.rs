//! A stage: one training, described without a single weight.

use super::composition::Composition;
use super::id::StageId;

/// Where the frozen groups of a stage get their weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nothing is frozen.
    Nothing,
    /// The best weights of another stage of this run.
    Stage(StageId),
    /// Weights of another run: the entry of the recipe's `cascade.classifier_from` with this index, from 0.
    External(usize),
}

/// One training run of the cascade.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    pub id: StageId,
    /// For people: `joint`, `M(1,4)`, `freeze-bottom`, with the seed or classifier behind it where a run has several.
    pub title: String,
    /// `None` for the control, which freezes from below.
    pub composition: Option<Composition>,
    /// Indices of the groups whose weights stand still, ascending; 0 is the lowest.
    pub frozen: Vec<usize>,
    /// Indices of the groups that are initialised anew and trained, ascending. Together with `frozen` these are all groups.
    pub trained: Vec<usize>,
    pub source: Source,
    /// The seed of the trained groups' new weights; `None` for joint training, which starts from the run's `init_seed`.
    pub reinit_seed: Option<u64>,
}
