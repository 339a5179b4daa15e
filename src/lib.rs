//! Headfirst trains neural networks from the top down.
//!
//! Train all layers together, freeze the classifier at the top, reinitialise what lies below it, train that again, and go on
//! down while the validation error falls. The floors of this house, top to bottom; nothing imports upwards:
//!
//! ```text
//! cli -> train, cascade, report -> models, decode, score, data, audio -> nn, optim -> ops -> tape -> tensor -> backend
//! ```

pub mod audio;
pub mod backend;
pub mod bench;
pub mod cascade;
pub mod cli;
pub mod data;
pub mod decode;
pub mod device;
pub mod error;
pub mod files;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
mod primitives;
pub mod random;
pub mod recipe;
pub mod report;
pub mod score;
pub mod table;
pub mod tape;
pub mod tensor;
pub mod train;
