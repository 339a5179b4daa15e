//! `headfirst transcribe`.

use crate::cli::Common;
use crate::cli::evaluate::decoder;
use crate::cli::output::{print, print_json};
use crate::error::{Error, Result};
use crate::train::loaded::LoadedModel;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Write down what is said in audio files
///
/// WAV, FLAC and NIST SPHERE; the features are those that the model was trained on, another sample rate is resampled.
#[derive(Args)]
pub struct Transcribe {
    /// RUN (its best stage), RUN/STAGE or RUN/STAGE@EPOCH
    #[arg(value_name = "RUN")]
    run: String,
    #[arg(required = true, value_name = "AUDIO")]
    audio: Vec<PathBuf>,
    /// Which channel of a file with several; the first is 0
    #[arg(long, value_name = "N")]
    channel: Option<usize>,
    /// Decode with a prefix beam search of this width instead of greedily
    #[arg(long, value_name = "N")]
    beam: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Transcript {
    audio: String,
    text: String,
}

#[derive(Serialize)]
struct Output {
    transcripts: Vec<Transcript>,
}

impl Transcribe {
    pub fn run(self, common: &Common) -> Result<()> {
        let decoder = decoder(self.beam)?;
        let model = LoadedModel::of_run(&common.open_device()?, &self.run)?;
        let mut transcripts = Vec::new();
        let mut failed = None;
        for path in &self.audio {
            match model.transcribe(path, self.channel, decoder) {
                Ok(text) if self.json => transcripts.push(Transcript { audio: path.display().to_string(), text }),
                Ok(text) if self.audio.len() == 1 => print(&format!("{text}\n"))?,
                Ok(text) => print(&format!("{}\t{text}\n", path.display()))?,
                // The other files are transcribed all the same.
                Err(error) => {
                    crate::train::signals::write_standard_error(&format!("error: {error}"));
                    failed = Some(error);
                }
            }
        }
        if self.json {
            print_json(&Output { transcripts })?;
        }
        match failed {
            None => Ok(()),
            Some(error) if self.audio.len() == 1 => Err(error),
            Some(_) => Err(Error::program("some files could not be transcribed; see above")),
        }
    }
}
