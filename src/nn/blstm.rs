//! A bidirectional LSTM layer that owns eight parameters, named and laid out as PyTorch's `nn.LSTM` does.

use crate::error::Result;
use crate::nn::initialization::Role;
use crate::nn::parameters::{ParameterSpec, Parameters};
use crate::ops;
use crate::ops::lstm::Direction;
use crate::ops::sequences::Sequences;
use crate::tape::{Tape, Var};

#[derive(Debug, Clone)]
pub struct Blstm {
    /// Index of the forward direction's input weight; the other seven follow in PyTorch's order.
    first: usize,
}

impl Blstm {
    /// Declares `{name}.{weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0}` and the same with `_reverse`.
    pub fn declare(specs: &mut Vec<ParameterSpec>, name: &str, inputs: usize, hidden: usize) -> Self {
        let first = specs.len();
        for direction in ["", "_reverse"] {
            for (parameter, shape, role) in [
                ("weight_ih_l0", vec![4 * hidden, inputs], Role::Weight),
                ("weight_hh_l0", vec![4 * hidden, hidden], Role::Weight),
                ("bias_ih_l0", vec![4 * hidden], Role::Bias),
                ("bias_hh_l0", vec![4 * hidden], Role::Bias),
            ] {
                let name = format!("{name}.{parameter}{direction}");
                specs.push(ParameterSpec { name, shape, role, pytorch_fan: hidden });
            }
        }
        Blstm { first }
    }

    /// `x: [R, C]` packed as `sequences`, gives `[R, 2H]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, tape: &mut Tape, parameters: &Parameters, x: &Var, sequences: &Sequences) -> Result<Var> {
        let direction = |first: usize| Direction {
            input_weight: parameters.var(first),
            recurrent_weight: parameters.var(first + 1),
            input_bias: parameters.var(first + 2),
            recurrent_bias: parameters.var(first + 3),
        };
        ops::lstm::lstm(tape, x, sequences, &[direction(self.first), direction(self.first + 4)])
    }
}
