//! Layers: they name their parameters and know how to be computed; the values are in [`Parameters`].

pub mod blstm;
pub mod initialization;
pub mod linear;
pub mod lstm;
pub mod parameters;

pub use blstm::Blstm;
pub use initialization::Scheme;
pub use linear::Linear;
pub use lstm::Lstm;
pub use parameters::{ParameterSpec, Parameters};
