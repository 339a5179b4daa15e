//! Training: a model's steps and epochs, checkpoints, the run folder, and the stages of a cascade.

pub mod checkpoint;
pub mod corpus;
pub mod demo;
pub mod evaluate;
pub mod learner;
pub mod loaded;
pub mod memory;
pub mod number;
pub mod plan;
pub mod position;
pub mod prepare;
pub mod progress;
pub mod record;
pub mod run;
pub mod run_folder;
pub mod seeds;
pub mod signals;
pub mod stage;
pub mod summary;
pub mod tensorboard;
pub mod updater;
pub mod weights;
pub mod weights_reference;
