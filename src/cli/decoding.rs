//! The options of decoding, the same for `evaluate` and `transcribe`.

use crate::decode::NBest;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::files::write_bytes;
use crate::train::loaded::LoadedModel;
use crate::train::loaded_text::LoadedText;
use crate::train::recognise::{Asked, Decoder};
use clap::Args;
use std::path::PathBuf;

/// Without any of these, decoding is greedy: the best path of CTC. With one of them it is a beam search: for a model with a decoder the joint one of
/// decoder and CTC, else CTC's prefix beam search, which takes --beam and --n-best.
#[derive(Args, Default)]
#[command(next_help_heading = "Decoding (greedy without any of these)")]
pub struct Decoding {
    /// Beam search that keeps so many hypotheses, by decoder and CTC, or by CTC alone where there is no decoder; 10 with only other options below
    #[arg(long, value_name = "N")]
    pub beam: Option<usize>,
    /// Hypotheses of each utterance in --n-best-json, at most the beam [default: 1]
    #[arg(long, value_name = "N")]
    n_best: Option<usize>,
    /// Write the hypotheses of each utterance with their scores, best first
    #[arg(long, value_name = "FILE")]
    n_best_json: Option<PathBuf>,
    /// From 0 (the decoder alone) to 1 (CTC alone) [default: 0.3]
    #[arg(long, value_name = "W")]
    ctc_weight: Option<f64>,
    /// Added to a hypothesis' score for each of its symbols: above 0, longer ones gain [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    penalty: Option<f64>,
    /// Symbols at least, as a part of the encoder's frames [default: 0]
    #[arg(long, value_name = "R")]
    min_length_ratio: Option<f64>,
    /// Symbols at most, as a part of the encoder's frames; 0: until longer ones are hopeless [default: 0]
    #[arg(long, value_name = "R")]
    max_length_ratio: Option<f64>,
    /// The run of an lstm-lm over the same symbols, which scores the hypotheses too (shallow fusion)
    #[arg(long, value_name = "RUN", requires = "lm_weight")]
    lm: Option<String>,
    /// Weight of the language model's ln p; decoder and CTC together have 1
    #[arg(long, value_name = "V", requires = "lm", allow_negative_numbers = true)]
    lm_weight: Option<f64>,
}

/// What a decoder needs as long as it is used.
pub struct Loaded {
    asked: Asked,
    language_model: Option<LoadedText>,
}

impl Decoding {
    /// True if anything but greedy decoding was asked for.
    pub fn is_asked(&self) -> bool {
        self.asked() != Asked::default() || self.n_best_json.is_some()
    }

    fn asked(&self) -> Asked {
        Asked {
            beam: self.beam,
            n_best: self.n_best,
            ctc_weight: self.ctc_weight,
            penalty: self.penalty,
            min_length_ratio: self.min_length_ratio,
            max_length_ratio: self.max_length_ratio,
            language_model_weight: self.lm_weight,
        }
    }

    /// Checks the options before any model is opened, and opens the language model.
    pub fn load(&self, device: &Device) -> Result<Loaded> {
        let mut asked = self.asked();
        if self.n_best_json.is_some() && asked == Asked::default() {
            // A list is a search's.
            asked.beam = Some(asked.options()?.beam);
        }
        asked.options()?;
        let language_model = self.lm.as_ref().map(|run| LoadedText::of_run(device, run)).transpose()?;
        Ok(Loaded { asked, language_model })
    }

    /// Writes the n-best lists where they were asked for.
    pub fn write(&self, lists: &[NBest]) -> Result<()> {
        let Some(path) = &self.n_best_json else { return Ok(()) };
        let text = serde_json::to_string_pretty(lists)
            .map_err(|error| Error::program(format!("the n-best lists cannot be written as JSON: {error}")))?;
        write_bytes(path, text + "\n")
    }
}

impl Loaded {
    pub fn decoder(&self, model: &LoadedModel) -> Result<Decoder<'_>> {
        model.decoder(&self.asked, self.language_model.as_ref())
    }
}
