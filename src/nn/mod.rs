//! Layers: they name their parameters and know how to be computed; the values are in [`Parameters`].

pub mod attention;
pub mod blstm;
pub mod convolution;
pub mod embedding;
pub mod initialization;
pub mod layer_norm;
pub mod linear;
pub mod lstm;
pub mod parameters;
pub mod vgg;

pub use attention::Attention;
pub use blstm::Blstm;
pub use convolution::Convolution;
pub use embedding::Embedding;
pub use initialization::Scheme;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use lstm::Lstm;
pub use parameters::{ParameterSpec, Parameters};
