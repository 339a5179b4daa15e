//! Layer normalisation that owns a scale and a shift.

use crate::error::Result;
use crate::nn::initialization::Role;
use crate::nn::parameters::{ParameterSpec, Parameters};
use crate::ops;
use crate::tape::{Tape, Var};

#[derive(Debug, Clone)]
pub struct LayerNorm {
    /// Index of the scale; the shift follows it.
    scale: usize,
    epsilon: f32,
}

impl LayerNorm {
    /// Declares `{name}.weight` and `{name}.bias`.
    pub fn declare(specs: &mut Vec<ParameterSpec>, name: &str, columns: usize, epsilon: f32) -> Self {
        let scale = specs.len();
        for (suffix, role) in [("weight", Role::Scale), ("bias", Role::Shift)] {
            let name = format!("{name}.{suffix}");
            specs.push(ParameterSpec { name, shape: vec![columns], role, pytorch_fan: columns });
        }
        LayerNorm { scale, epsilon }
    }

    /// `x: [R, C]`, gives `[R, C]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, tape: &mut Tape, parameters: &Parameters, x: &Var) -> Result<Var> {
        let (scale, shift) = (parameters.var(self.scale), parameters.var(self.scale + 1));
        ops::layer_norm::layer_norm(tape, x, &scale, &shift, self.epsilon)
    }
}
