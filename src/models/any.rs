//! The recognisers that a recipe can name, as one type.

use crate::decode::Predictor;
use crate::error::Result;
use crate::models::blstm_ctc::BlstmCtc;
use crate::models::ctc_attention::CtcAttention;
use crate::models::recogniser::{Encoded, Loss, Recogniser};
use crate::models::transformer::Transformer;
use crate::models::{Network, Structure};
use crate::nn::Parameters;
use crate::ops::sequences::Sequences;
use crate::random::MaskKey;
use crate::tape::{Tape, Var};

#[derive(Debug, Clone)]
pub enum AnyRecogniser {
    BlstmCtc(BlstmCtc),
    CtcAttention(CtcAttention),
    Transformer(Transformer),
}

/// The same call on whichever it is.
macro_rules! on {
    ($any:expr, $model:ident => $call:expr) => {
        match $any {
            AnyRecogniser::BlstmCtc($model) => $call,
            AnyRecogniser::CtcAttention($model) => $call,
            AnyRecogniser::Transformer($model) => $call,
        }
    };
}

impl AnyRecogniser {
    /// As `model.kind` names it.
    pub fn kind(&self) -> &'static str {
        match self {
            AnyRecogniser::BlstmCtc(_) => "blstm-ctc",
            AnyRecogniser::CtcAttention(_) => "ctc-attention",
            AnyRecogniser::Transformer(_) => "transformer",
        }
    }
}

impl Network for AnyRecogniser {
    fn structure(&self) -> &Structure {
        on!(self, model => Network::structure(model))
    }
}

impl Recogniser for AnyRecogniser {
    fn inputs(&self) -> usize {
        on!(self, model => model.inputs())
    }

    fn symbols(&self) -> usize {
        on!(self, model => model.symbols())
    }

    fn frames_after_subsampling(&self, frames: usize) -> usize {
        on!(self, model => Recogniser::frames_after_subsampling(model, frames))
    }

    fn encode(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        features: Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<(Var, Sequences)> {
        on!(self, model => model.encode(tape, parameters, features, sequences, masks))
    }

    fn ctc_logits(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        hidden: &Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<Var> {
        on!(self, model => model.ctc_logits(tape, parameters, hidden, sequences, masks))
    }

    fn loss_of(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        encoded: Encoded,
        labels: &[Vec<u32>],
        masks: Option<&MaskKey>,
    ) -> Result<Loss> {
        on!(self, model => model.loss_of(tape, parameters, encoded, labels, masks))
    }

    fn sentence_end(&self) -> Option<u32> {
        on!(self, model => model.sentence_end())
    }

    fn predictor<'a>(
        &'a self,
        parameters: &'a Parameters,
        hidden: &Var,
        sequences: &Sequences,
    ) -> Result<Option<Box<dyn Predictor + 'a>>> {
        on!(self, model => model.predictor(parameters, hidden, sequences))
    }
}
