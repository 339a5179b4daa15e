//! A linear layer that owns a weight and a bias.

use crate::error::Result;
use crate::nn::initialization::Role;
use crate::nn::parameters::{ParameterSpec, Parameters};
use crate::ops;
use crate::ops::linear::Activation;
use crate::tape::{Tape, Var};

#[derive(Debug, Clone)]
pub struct Linear {
    /// Index of the weight `[O, C]` in the model's parameters; the bias `[O]` follows it.
    weight: usize,
    activation: Activation,
}

impl Linear {
    /// Declares `{name}.weight` and `{name}.bias`.
    pub fn declare(
        specs: &mut Vec<ParameterSpec>,
        name: &str,
        inputs: usize,
        outputs: usize,
        activation: Activation,
    ) -> Self {
        let weight = specs.len();
        for (suffix, shape, role) in
            [("weight", vec![outputs, inputs], Role::Weight), ("bias", vec![outputs], Role::Bias)]
        {
            specs.push(ParameterSpec { name: format!("{name}.{suffix}"), shape, role, pytorch_fan: inputs });
        }
        Linear { weight, activation }
    }

    /// `x: [R, C]`, gives `[R, O]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, tape: &mut Tape, parameters: &Parameters, x: &Var) -> Result<Var> {
        let (weight, bias) = (parameters.var(self.weight), parameters.var(self.weight + 1));
        ops::linear::linear(tape, x, &weight, &bias, self.activation)
    }
}
