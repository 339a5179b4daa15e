//! Multi-head attention that owns four linear layers, as ESPnet's `MultiHeadedAttention`.

use crate::error::Result;
use crate::nn::linear::Linear;
use crate::nn::parameters::{ParameterSpec, Parameters};
use crate::ops;
use crate::ops::attention::Heads;
use crate::ops::linear::Activation;
use crate::tape::{Tape, Var};

#[derive(Debug, Clone)]
pub struct Attention {
    queries: Linear,
    keys: Linear,
    values: Linear,
    output: Linear,
}

impl Attention {
    /// Declares `{name}.linear_q`, `linear_k`, `linear_v` and `linear_out`, each with weight and bias.
    pub fn declare(specs: &mut Vec<ParameterSpec>, name: &str, columns: usize) -> Self {
        let mut linear = |part: &str| {
            Linear::declare(specs, &format!("{name}.linear_{part}"), columns, columns, Activation::Identity)
        };
        Attention { queries: linear("q"), keys: linear("k"), values: linear("v"), output: linear("out") }
    }

    /// `x: [Rq, D]` attends to what [`Attention::keys_and_values`] gave; gives `[Rq, D]`.
    ///
    /// # Errors
    /// If the shapes do not fit; on a GPU, if a head has more than 128 columns.
    pub fn forward(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        x: &Var,
        [keys, values]: &[Var; 2],
        heads: Heads,
    ) -> Result<Var> {
        let queries = self.queries.forward(tape, parameters, x)?;
        let context = ops::attention::attention(tape, &queries, keys, values, heads)?;
        drop(queries);
        self.output.forward(tape, parameters, &context)
    }

    /// Of `x: [Rk, D]`, each `[Rk, D]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn keys_and_values(&self, tape: &mut Tape, parameters: &Parameters, x: &Var) -> Result<[Var; 2]> {
        Ok([self.keys.forward(tape, parameters, x)?, self.values.forward(tape, parameters, x)?])
    }
}
