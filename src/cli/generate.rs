//! `headfirst generate`.

use crate::cli::Common;
use crate::cli::output::print;
use crate::error::{Error, Result};
use crate::train::loaded_text::{LoadedText, Sampling};
use clap::Args;

/// Write text with a language model
///
/// Prints the prompt and what follows it. The same seed writes the same text.
#[derive(Args)]
pub struct Generate {
    /// RUN (its best stage), RUN/STAGE or RUN/STAGE@EPOCH
    #[arg(value_name = "RUN")]
    run: String,
    /// What to begin with, in the tokens of the training text (default: the beginning of a line)
    #[arg(long, value_name = "TEXT", default_value = "")]
    prompt: String,
    /// Tokens to write
    #[arg(long, value_name = "N", default_value_t = 100)]
    length: usize,
    /// Above 1: bolder; below: closer to the most likely; 0: the most likely token always
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f64,
    /// Choose from the K most likely tokens only (0: from all)
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Of what is drawn
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

impl Generate {
    pub fn run(self, common: &Common) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::key("--temperature", format!("is {}", self.temperature)).remedy("Use 0 or more"));
        }
        let model = LoadedText::of_run(&common.open_device()?, &self.run)?;
        let sampling = Sampling { temperature: self.temperature, top_k: self.top_k, seed: self.seed };
        print(&(model.generate(&self.prompt, self.length, &sampling)? + "\n"))
    }
}
