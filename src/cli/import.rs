//! `headfirst import`.

use crate::cli::Common;
use crate::cli::evaluate::Output;
use crate::cli::output::{print, print_json};
use crate::error::Result;
use crate::recipe::{DataKind, Recipe};
use crate::train::import::import;
use crate::train::import_espnet;
use crate::train::loaded::LoadedModel;
use crate::train::loaded_text::LoadedText;
use crate::train::progress::Mode;
use crate::train::recognise::Decoder;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Bring in the weights of an awd-lstm-lm model or of ESPnet v1's recognisers, saved as safetensors
///
/// Tensors get Headfirst's names (rnns.0.module.weight_hh_l0_raw becomes rnns.0.weight_hh_l0, enc.enc.0.birnn0.weight_ih_l0 becomes
/// encoder.blstm.0.weight_ih_l0) and are held against the recipe's model: lstm-lm; ctc-attention, blstm-ctc or transformer. Then the perplexity, or the loss
/// and the error rates, of the recipe's test set or of --data show if they are what they should be. Afterwards: headfirst evaluate --recipe FILE
/// --weights OUT. A recogniser's recipe names ESPnet's symbols in data.token_list: <blank>, those of its dictionary, <eos>. In Python:
/// safetensors.torch.save_file({k: v.clone() for k, v in model.state_dict().items() if k != "decoder.weight"}, FILE).
#[derive(Args)]
pub struct Import {
    /// A safetensors file of the model's state_dict
    #[arg(value_name = "WEIGHTS")]
    weights: PathBuf,
    /// The recipe of the same model and the same token list
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A text or a data folder to compute the loss of (default: the recipe's test set, or its validation set)
    #[arg(long, value_name = "DIR_OR_TEXT")]
    data: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was written, where there is no data to score it on.
#[derive(Serialize)]
struct Imported {
    out: String,
    tensors: usize,
}

impl Import {
    pub fn run(self, common: &Common) -> Result<()> {
        let mode = Mode::choose(common.quiet);
        if Recipe::load(&self.recipe, &[])?.data.kind == DataKind::Speech {
            return self.run_speech(common, mode);
        }
        import(&self.weights, &self.recipe, &self.out)?;
        let model = LoadedText::of_files(&common.open_device()?, &self.recipe, &self.out)?;
        let data = model.data(self.data)?;
        let scores = model.evaluate(&data, mode)?;
        if self.json { print_json(&scores) } else { print(&scores.describe(&data)) }
    }

    fn run_speech(self, common: &Common, mode: Mode) -> Result<()> {
        let device = common.open_device()?;
        let tensors = import_espnet::import(&self.weights, &self.recipe, &self.out, mode)?;
        let model = LoadedModel::of_files(&device, &self.recipe, &self.out, mode)?;
        let Some(data) = self.data.or_else(|| model.sets().pop().map(|(_, path)| path)) else {
            let out = self.out.display().to_string();
            return match (self.json, mode) {
                (true, _) => print_json(&Imported { out, tensors }),
                (false, Mode::Quiet) => Ok(()),
                _ => print(&format!("{out}: {tensors} tensors; with --data their loss would show if they are right\n")),
            };
        };
        let output = Output::new(&model, model.evaluate(&data, Decoder::Greedy, mode)?);
        if self.json { print_json(&output) } else { print(&output.describe(&data.display().to_string())) }
    }
}
