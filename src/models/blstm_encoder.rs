//! ESPnet v1's encoders `blstmp` and `vggblstmp`: perhaps a VGG front end, then layers of BLSTM and projection.
//!
//! Every layer: BLSTM -> every s-th frame -> linear -> tanh -> dropout. Each is a group, and so is the front end.

use crate::error::Result;
use crate::models::declaring::Declaring;
use crate::nn::vgg::Vgg;
use crate::nn::{Blstm, Linear, Parameters};
use crate::ops;
use crate::ops::linear::Activation;
use crate::ops::sequences::Sequences;
use crate::random::{Mask, MaskKey};
use crate::tape::{Tape, Var};

/// The sizes of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSizes {
    /// Features a frame.
    pub inputs: usize,
    /// Channels of the blocks of a VGG front end, if there is one.
    pub vgg: Option<[usize; 2]>,
    /// Hidden units a direction.
    pub units: usize,
    pub projection: usize,
    /// One factor a layer, bottom to top.
    pub subsample: Vec<usize>,
    /// After every projection, in training only.
    pub dropout: f64,
}

#[derive(Debug, Clone)]
pub struct BlstmEncoder {
    sizes: EncoderSizes,
    vgg: Option<Vgg>,
    layers: Vec<(Blstm, Linear)>,
}

impl BlstmEncoder {
    pub(super) fn declare(to: &mut Declaring, sizes: EncoderSizes) -> Self {
        let vgg = sizes.vgg.map(|channels| {
            let vgg = Vgg::declare(&mut to.specs, "encoder.vgg", sizes.inputs, channels);
            to.end_layer("encoder.vgg");
            to.end_group("front-end");
            vgg
        });
        let lowest = vgg.as_ref().map_or(sizes.inputs, Vgg::outputs);
        let mut layers = Vec::new();
        for k in 0..sizes.subsample.len() {
            let inputs = if k == 0 { lowest } else { sizes.projection };
            let name = format!("encoder.blstm.{k}");
            let blstm = Blstm::declare(&mut to.specs, &name, inputs, sizes.units);
            to.end_layer(&name);
            let name = format!("encoder.proj.{k}");
            let (units, projection) = (2 * sizes.units, sizes.projection);
            let projection = Linear::declare(&mut to.specs, &name, units, projection, Activation::Tanh);
            to.end_layer(&name);
            to.end_group(format!("blstm-{}", k + 1));
            layers.push((blstm, projection));
        }
        BlstmEncoder { sizes, vgg, layers }
    }

    /// Frames above it of so many below.
    pub fn frames(&self, frames: usize) -> usize {
        let frames = if self.vgg.is_some() { Vgg::frames(frames) } else { frames };
        self.sizes.subsample.iter().fold(frames, |frames, &factor| frames.div_ceil(factor))
    }

    /// As [`crate::models::recogniser::Recogniser::encode`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        features: Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<(Var, Sequences)> {
        let (mut x, mut sequences) = match &self.vgg {
            Some(vgg) => vgg.forward(tape, parameters, &features, sequences)?,
            None => (features, sequences.clone()),
        };
        for (k, (blstm, projection)) in self.layers.iter().enumerate() {
            let hidden = blstm.forward(tape, parameters, &x, &sequences)?;
            let (kept, kept_sequences) = ops::subsample::subsample(tape, &hidden, &sequences, self.sizes.subsample[k])?;
            x = projection.forward(tape, parameters, &kept)?;
            sequences = kept_sequences;
            if let Some(key) = masks.filter(|_| self.sizes.dropout > 0.0) {
                let mask = Mask::new(key, &format!("encoder.proj.{k}"), self.sizes.dropout)?;
                x = ops::dropout::dropout(tape, &x, &sequences, mask)?;
            }
        }
        Ok((x, sequences))
    }
}
