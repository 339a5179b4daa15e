//! ESPnet v1's front end `VGG2L` (after Simonyan and Zisserman, 2015): two blocks of two 3 x 3 convolutions with ReLU and a pooling of 2 x 2.

use crate::error::Result;
use crate::nn::convolution::Convolution;
use crate::nn::parameters::{ParameterSpec, Parameters};
use crate::ops;
use crate::ops::convolution::Patches;
use crate::ops::sequences::Sequences;
use crate::tape::{Tape, Var};

#[derive(Debug, Clone)]
pub struct Vgg {
    inputs: usize,
    /// Of the blocks.
    channels: [usize; 2],
    convolutions: [Convolution; 4],
}

impl Vgg {
    /// Declares `{name}.conv1_1`, `conv1_2`, `conv2_1` and `conv2_2`, each with weight and bias.
    pub fn declare(specs: &mut Vec<ParameterSpec>, name: &str, inputs: usize, channels: [usize; 2]) -> Self {
        let [first, second] = channels;
        let convolutions = [("1_1", 1, first), ("1_2", first, first), ("2_1", first, second), ("2_2", second, second)];
        let convolutions = convolutions.map(|(place, from, to)| {
            Convolution::declare(specs, &format!("{name}.conv{place}"), from, to, Patches::All)
        });
        Vgg { inputs, channels, convolutions }
    }

    /// Numbers of a frame above it.
    pub fn outputs(&self) -> usize {
        self.inputs.div_ceil(2).div_ceil(2) * self.channels[1]
    }

    /// Frames above it of so many below.
    pub fn frames(frames: usize) -> usize {
        frames.div_ceil(2).div_ceil(2)
    }

    /// `x: [R, C]` packed as `sequences`, gives `[R', outputs]`, the bins of a channel together, and how it is packed.
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
        let (mut x, mut sequences) = (x.clone(), sequences.clone());
        for (block, &channels) in self.convolutions.chunks_exact(2).zip(&self.channels) {
            for convolution in block {
                (x, sequences) = convolution.forward(tape, parameters, &x, &sequences)?;
            }
            (x, sequences) = ops::convolution::max_pool(tape, &x, &sequences, channels)?;
        }
        Ok((ops::convolution::channels_first(tape, &x, self.channels[1])?, sequences))
    }
}
