//! A 3 x 3 convolution with ReLU that owns a weight and a bias, as PyTorch's `nn.Conv2d` lays them out.

use crate::error::Result;
use crate::nn::initialization::Role;
use crate::nn::parameters::{ParameterSpec, Parameters};
use crate::ops;
use crate::ops::convolution::Patches;
use crate::ops::sequences::Sequences;
use crate::tape::{Tape, Var};

#[derive(Debug, Clone)]
pub struct Convolution {
    /// Index of the weight; the bias follows it.
    weight: usize,
    patches: Patches,
}

impl Convolution {
    /// Declares `{name}.weight`, `[O, C, 3, 3]`, and `{name}.bias`, `[O]`.
    pub fn declare(
        specs: &mut Vec<ParameterSpec>,
        name: &str,
        channels: usize,
        outputs: usize,
        patches: Patches,
    ) -> Self {
        let weight = specs.len();
        for (suffix, shape, role) in
            [("weight", vec![outputs, channels, 3, 3], Role::Weight), ("bias", vec![outputs], Role::Bias)]
        {
            specs.push(ParameterSpec { name: format!("{name}.{suffix}"), shape, role, pytorch_fan: 9 * channels });
        }
        Convolution { weight, patches }
    }

    /// `x: [R, F * C]` packed as `sequences`, gives `[R', F' * O]` and how it is packed.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        x: &Var,
        sequences: &Sequences,
    ) -> Result<(Var, Sequences)> {
        let (weight, bias) = (parameters.var(self.weight), parameters.var(self.weight + 1));
        ops::convolution::convolution(tape, x, sequences, &weight, &bias, self.patches)
    }
}
