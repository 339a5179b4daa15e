//! An LSTM layer in one direction, from a state to a state, with four parameters named and laid out as PyTorch's `nn.LSTM` does.

use crate::error::Result;
use crate::nn::initialization::Role;
use crate::nn::parameters::{ParameterSpec, Parameters};
use crate::ops;
use crate::ops::lstm::{Direction, State};
use crate::ops::sequences::Sequences;
use crate::random::Mask;
use crate::tape::{Tape, Var};

#[derive(Debug, Clone)]
pub struct Lstm {
    /// Index of the input weight; the other three follow in PyTorch's order.
    first: usize,
    hidden: usize,
}

impl Lstm {
    /// Declares `{name}.{weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0}`.
    pub fn declare(specs: &mut Vec<ParameterSpec>, name: &str, inputs: usize, hidden: usize) -> Self {
        let first = specs.len();
        for (parameter, shape, role) in [
            ("weight_ih_l0", vec![4 * hidden, inputs], Role::Weight),
            ("weight_hh_l0", vec![4 * hidden, hidden], Role::Weight),
            ("bias_ih_l0", vec![4 * hidden], Role::Bias),
            ("bias_hh_l0", vec![4 * hidden], Role::Bias),
        ] {
            specs.push(ParameterSpec { name: format!("{name}.{parameter}"), shape, role, pytorch_fan: hidden });
        }
        Lstm { first, hidden }
    }

    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// `x: [R, C]` packed as `sequences`, gives `[R, H]` and the last state. `mask` is DropConnect's.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        x: &Var,
        sequences: &Sequences,
        initial: Option<&State>,
        mask: Option<Mask>,
    ) -> Result<(Var, State)> {
        let direction = Direction {
            input_weight: parameters.var(self.first),
            recurrent_weight: parameters.var(self.first + 1),
            input_bias: parameters.var(self.first + 2),
            recurrent_bias: parameters.var(self.first + 3),
        };
        ops::lstm::lstm_from(tape, x, sequences, &direction, initial, mask)
    }
}
