//! `headfirst evaluate`.

use crate::cli::Common;
use crate::cli::decoding::Decoding;
use crate::cli::output::{print, print_json};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::recipe::{DataKind, Recipe};
use crate::score::rate::ErrorCounts;
use crate::table::columns;
use crate::train::evaluate::Evaluated;
use crate::train::loaded::LoadedModel;
use crate::train::loaded_text::{LoadedText, recipe_of_run};
use crate::train::progress::Mode;
use crate::train::recognise::Speed;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Score a data set: loss, CER and WER of speech, perplexity of text
///
/// The weights are a run's, or those of a safetensors file. Speech: the loss is the mean over the utterances of -ln p; CER and WER are edits in
/// per cent of the reference, spaces counted as symbols. Text: one stream, in which every token after the first is predicted from all before
/// it; the loss is the mean of -ln p over these, bits per character compare models with different tokens. Writes nothing but --n-best-json.
///
/// Speech is decoded greedily, by CTC's best path, as in the validation of a training, unless an option below asks for a beam search. The
/// real-time factor is the seconds of encoder and search (not those of features and loss) over those of the audio.
#[derive(Args)]
pub struct Evaluate {
    /// RUN (its best stage), RUN/STAGE or RUN/STAGE@EPOCH
    #[arg(value_name = "RUN", required_unless_present = "weights", conflicts_with_all = ["recipe", "weights"])]
    run: Option<String>,
    /// A recipe, together with --weights
    #[arg(long, value_name = "FILE", requires = "weights")]
    recipe: Option<PathBuf>,
    /// A safetensors file with the weights of the recipe's model
    #[arg(long, value_name = "FILE", requires = "recipe")]
    weights: Option<PathBuf>,
    /// A data folder, or a text file (default: the recipe's test set, or its validation set)
    #[arg(long, value_name = "DIR_OR_TEXT")]
    data: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    decoding: Decoding,
}

/// The scores of a set of speech.
#[derive(Serialize)]
pub struct Output {
    #[serde(with = "crate::train::number::float")]
    loss: f64,
    utterances: usize,
    #[serde(with = "crate::train::number::float")]
    cer: f64,
    #[serde(with = "crate::train::number::float")]
    wer: f64,
    characters: ErrorCounts,
    words: ErrorCounts,
    infeasible_utterances: Vec<String>,
    #[serde(flatten)]
    speed: Speed,
}

impl Output {
    pub fn new(model: &LoadedModel, evaluated: Evaluated) -> Self {
        let Evaluated { scores, characters, words, transcripts, infeasible, frames, decoding, .. } = evaluated;
        Output {
            loss: scores.loss,
            utterances: transcripts.len(),
            cer: characters.rate(),
            wer: words.rate(),
            characters,
            words,
            infeasible_utterances: infeasible,
            speed: Speed::new(model.audio_seconds(frames), decoding),
        }
    }

    /// For people.
    pub fn describe(&self, data: &str) -> String {
        let row = |name: &str, counts: &ErrorCounts| {
            let counts = [counts.reference, counts.substitutions, counts.deletions, counts.insertions];
            let rate = format!("{:.2} %", if name == "CER" { self.cer } else { self.wer });
            let cells = [name.to_string(), rate].into_iter().chain(counts.iter().map(u64::to_string));
            cells.collect::<Vec<_>>()
        };
        let head = ["", "rate", "reference", "sub", "del", "ins"].map(String::from).to_vec();
        let mut text = format!("{data}: {} utterances, loss {:.4}\n", self.utterances, self.loss);
        text += &columns(&[head, row("CER", &self.characters), row("WER", &self.words)]);
        text += &format!("{}\n", self.speed.describe());
        if !self.infeasible_utterances.is_empty() {
            text += &format!(
                "without a loss, since their labels do not fit their frames: {}\n",
                self.infeasible_utterances.join(" ")
            );
        }
        text
    }
}

impl Evaluate {
    pub fn run(self, common: &Common) -> Result<()> {
        let (device, mode) = (common.open_device()?, Mode::choose(common.quiet));
        let loaded = self.decoding.load(&device)?;
        if let Some(model) = self.language_model(&device)? {
            return self.run_text(&model, mode);
        }
        let model = match (&self.run, &self.recipe, &self.weights) {
            (Some(run), ..) => LoadedModel::of_run(&device, run)?,
            (None, Some(recipe), Some(weights)) => LoadedModel::of_files(&device, recipe, weights, mode)?,
            _ => return Err(Error::key("RUN", "is missing").remedy("Name a run, or --recipe and --weights")),
        };
        let data = match self.data.or_else(|| model.sets().pop().map(|(_, path)| path)) {
            Some(data) => data,
            None => return Err(Error::key("--data", "is missing, and the recipe names neither test nor valid")),
        };
        let mut evaluated = model.evaluate(&data, loaded.decoder(&model)?, mode)?;
        let n_best = std::mem::take(&mut evaluated.n_best);
        let output = Output::new(&model, evaluated);
        if self.json {
            print_json(&output)?
        } else {
            print(&output.describe(&data.display().to_string()))?
        }
        // Last: the scores of a long search are not to be lost with the lists.
        self.decoding.write(&n_best)
    }
}

impl Evaluate {
    /// If that is what is to be evaluated.
    fn language_model(&self, device: &Device) -> Result<Option<LoadedText>> {
        match (&self.run, &self.recipe, &self.weights) {
            (Some(run), ..) if recipe_of_run(run)?.data.kind == DataKind::Text => {
                LoadedText::of_run(device, run).map(Some)
            }
            (None, Some(recipe), Some(weights)) if Recipe::load(recipe, &[])?.data.kind == DataKind::Text => {
                LoadedText::of_files(device, recipe, weights).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn run_text(self, model: &LoadedText, mode: Mode) -> Result<()> {
        if self.decoding.is_asked() {
            return Err(Error::key("--beam", "is for speech, as all options of decoding; a text is not decoded")
                .remedy("Leave them out"));
        }
        let data = model.data(self.data)?;
        let scores = model.evaluate(&data, mode)?;
        if self.json { print_json(&scores) } else { print(&scores.describe(&data)) }
    }
}
