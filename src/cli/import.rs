//! `headfirst import`.

use crate::cli::Common;
use crate::cli::output::{print, print_json};
use crate::error::Result;
use crate::train::import::import;
use crate::train::loaded_text::LoadedText;
use crate::train::progress::Mode;
use clap::Args;
use std::path::PathBuf;

/// Bring in the weights of an awd-lstm-lm model, saved as safetensors
///
/// Tensors get Headfirst's names (rnns.0.module.weight_hh_l0_raw becomes rnns.0.weight_hh_l0) and are held against the recipe's model; then the
/// perplexity of the recipe's test set, or of --data, shows if they are what they should be. Afterwards: headfirst evaluate --recipe FILE
/// --weights OUT. In Python: safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items() if k != "decoder.weight"}, FILE).
#[derive(Args)]
pub struct Import {
    /// A safetensors file of an awd-lstm-lm model's state_dict
    #[arg(value_name = "WEIGHTS")]
    weights: PathBuf,
    /// The recipe of the same model and the same token list
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// The safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A text to compute the perplexity of (default: the recipe's test set, or its validation set)
    #[arg(long, value_name = "TEXT")]
    data: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Import {
    pub fn run(self, common: &Common) -> Result<()> {
        import(&self.weights, &self.recipe, &self.out)?;
        let model = LoadedText::of_files(&common.open_device()?, &self.recipe, &self.out)?;
        let data = model.data(self.data)?;
        let scores = model.evaluate(&data, Mode::choose(common.quiet))?;
        if self.json { print_json(&scores) } else { print(&scores.describe(&data)) }
    }
}
