//! Training: epochs, checkpoints, the run folder.

pub mod record;
