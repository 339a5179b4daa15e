//! A table with a row for each token.

use crate::error::Result;
use crate::nn::initialization::Role;
use crate::nn::parameters::{ParameterSpec, Parameters};
use crate::ops;
use crate::tape::{Tape, Var};

#[derive(Debug, Clone)]
pub struct Embedding {
    weight: usize,
}

impl Embedding {
    /// Declares `{name}.weight`, `[V, C]`.
    pub fn declare(specs: &mut Vec<ParameterSpec>, name: &str, symbols: usize, columns: usize) -> Self {
        let weight = specs.len();
        let (name, shape) = (format!("{name}.weight"), vec![symbols, columns]);
        specs.push(ParameterSpec { name, shape, role: Role::Embedding, pytorch_fan: columns });
        Embedding { weight }
    }

    /// Gives `[R, C]`.
    ///
    /// # Errors
    /// If there is no row for a token.
    pub fn forward(&self, tape: &mut Tape, parameters: &Parameters, tokens: &[u32]) -> Result<Var> {
        ops::embedding::embedding(tape, &parameters.var(self.weight), tokens, None)
    }
}
