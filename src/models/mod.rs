//! The models: a forward pass and a list of layer groups, bottom to top.

pub mod any;
pub mod blstm_ctc;
pub mod blstm_encoder;
pub mod ctc_attention;
mod declaring;
pub mod lstm_lm;
pub mod predictors;
pub mod recogniser;
pub mod transformer;

use crate::nn::ParameterSpec;
use std::ops::Range;

/// The smallest thing that a cut can freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// For example `blstm-1` or `softmax`.
    pub name: String,
    /// Which of the model's parameters it has.
    pub parameters: Range<usize>,
}

/// A part of a group whose movement is logged by itself (ICLR 2020, Table 1): a BLSTM and its projection apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// For example `encoder.blstm.0`.
    pub name: String,
    pub parameters: Range<usize>,
}

/// What every model has.
pub trait Network: Clone {
    fn structure(&self) -> &Structure;
}

/// What is known of a model before it has values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Structure {
    pub specs: Vec<ParameterSpec>,
    /// Bottom to top.
    pub groups: Vec<Group>,
    /// Bottom to top.
    pub layers: Vec<Layer>,
}

impl Structure {
    /// The number of values in a range of parameters.
    pub fn count(&self, parameters: Range<usize>) -> u64 {
        self.specs[parameters].iter().map(|spec| spec.len() as u64).sum()
    }
}
