//! Training: epochs, checkpoints, the run folder.

pub mod checkpoint;
pub mod files;
pub mod number;
pub mod progress;
pub mod record;
pub mod run_folder;
pub mod signals;
pub mod tensorboard;
pub mod weights;
pub mod weights_reference;
