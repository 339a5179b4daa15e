//! `headfirst transcribe`.

use crate::cli::Common;
use crate::cli::decoding::Decoding;
use crate::cli::output::{print, print_json};
use crate::error::{Error, Result};
use crate::train::loaded::{LoadedModel, Transcription};
use crate::train::recognise::Speed;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Write down what is said in audio files
///
/// WAV, FLAC and NIST SPHERE; the features are those that the model was trained on, another sample rate is resampled. A file of more than a minute
/// is cut at its pauses; --n-best-json has a list for each part. The real-time factor is the seconds from samples to text over those of the audio.
#[derive(Args)]
pub struct Transcribe {
    /// RUN (its best stage), RUN/STAGE or RUN/STAGE@EPOCH
    #[arg(value_name = "RUN")]
    run: String,
    /// WAV, FLAC or NIST SPHERE files
    #[arg(required = true, value_name = "AUDIO")]
    audio: Vec<PathBuf>,
    /// Which channel of a file with several; the first is 0
    #[arg(long, value_name = "N")]
    channel: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    decoding: Decoding,
}

#[derive(Serialize)]
struct Transcript {
    audio: String,
    text: String,
    #[serde(flatten)]
    speed: Speed,
}

#[derive(Serialize)]
struct Output {
    transcripts: Vec<Transcript>,
    /// Of all files.
    #[serde(flatten)]
    speed: Speed,
}

impl Transcribe {
    pub fn run(self, common: &Common) -> Result<()> {
        let device = common.open_device()?;
        let loaded = self.decoding.load(&device)?;
        let model = LoadedModel::of_run(&device, &self.run)?;
        let decoder = loaded.decoder(&model)?;
        let (mut transcripts, mut lists) = (Vec::new(), Vec::new());
        let (mut audio_seconds, mut decoding) = (0.0, Duration::ZERO);
        let mut some_failed = false;
        for path in &self.audio {
            let Transcription { text, n_best, speed } = match model.transcribe(path, self.channel, decoder) {
                Ok(transcription) => transcription,
                Err(error) if self.audio.len() == 1 => return Err(error),
                // The other files are transcribed all the same.
                Err(error) => {
                    crate::train::signals::write_standard_error(&format!("error: {error}"));
                    some_failed = true;
                    continue;
                }
            };
            lists.extend(n_best);
            audio_seconds += speed.audio_seconds;
            decoding += Duration::from_secs_f64(speed.decoding_seconds);
            if self.json {
                transcripts.push(Transcript { audio: path.display().to_string(), text, speed });
            } else if self.audio.len() == 1 {
                print(&format!("{text}\n"))?;
            } else {
                print(&format!("{}\t{text}\n", path.display()))?;
            }
        }
        let speed = Speed::new(audio_seconds, decoding);
        if self.json {
            print_json(&Output { transcripts, speed })?;
        } else if audio_seconds > 0.0 && !common.quiet {
            // Beside the transcripts, which are for whoever reads standard output.
            crate::train::signals::write_standard_error(&speed.describe());
        }
        self.decoding.write(&lists)?;
        if some_failed { Err(Error::program("some files could not be transcribed; see above")) } else { Ok(()) }
    }
}
