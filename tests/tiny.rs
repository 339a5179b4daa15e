//! A corpus without recordings, small enough to be learned by heart in seconds, and trainings of it.
//!
//! A word is a few letters; a letter is some frames around a vector of its own, so features say what is spoken, with a little noise.

use crate::program::{self, Ended, run_to_end};
use headfirst::data::ArkWriter;
use headfirst::random::Philox;
use headfirst::train::record::{EpochRecord, RunResult};
use std::fs;
use std::path::{Path, PathBuf};

/// Features a frame.
const DIMENSION: usize = 8;
const NOISE: f64 = 0.2;

/// Writes a Kaldi data folder with `utterances` utterances over the letters of `alphabet`, each of `fewest` letters to two more.
pub fn write_folder(folder: &Path, utterances: usize, alphabet: &str, fewest: u32) {
    fs::create_dir_all(folder).unwrap();
    let mut archive = ArkWriter::create(folder.join("feats.ark"), folder.join("feats.scp")).unwrap();
    let (mut text, mut speakers) = (String::new(), String::new());
    let letters: Vec<char> = alphabet.chars().collect();
    for number in 0..utterances {
        let mut stream = Philox::named(number as u64, "utterance").stream();
        let count = (fewest + stream.below(3)) as usize;
        // The first letters of the utterances go through the alphabet, so that every letter occurs.
        let spoken: Vec<char> = (0..count)
            .map(|k| {
                if k == 0 {
                    letters[number % letters.len()]
                } else {
                    letters[stream.below(letters.len() as u32) as usize]
                }
            })
            .collect();
        let mut frames = Vec::new();
        for letter in &spoken {
            for frame in 0..6 + stream.below(4) {
                // The letter itself, then the pause that parts it from the next.
                let loudness = if frame < 4 { 1.5 } else { 0.0 };
                let mut sound = Philox::named(u64::from(*letter as u32), "letter").stream();
                frames.extend((0..DIMENSION).map(|_| (loudness * sound.normal() + NOISE * stream.normal()) as f32));
            }
        }
        let id = format!("speaker-{number:03}");
        archive.write(&id, frames.len() / DIMENSION, DIMENSION, &frames).unwrap();
        text += &format!("{id} {}\n", spoken.iter().collect::<String>());
        speakers += &format!("{id} speaker\n");
    }
    archive.finish().unwrap();
    fs::write(folder.join("text"), text).unwrap();
    fs::write(folder.join("utt2spk"), speakers).unwrap();
}

/// Three layer groups: two BLSTMs and the softmax.
const RECIPE: &str = r#"
name = "tiny"
data = { kind = "speech", train = "train", valid = "valid", test = "valid" }
batch = { utterances = 4 }
model = { kind = "blstm-ctc", layers = 2, units = 16, projection = 12, subsample = [1, 2] }
optimizer = { kind = "adam", learning_rate = 0.02 }
training = { max_epochs = 2, patience = 0 }
"#;

/// A folder with data and a recipe, and the runs that come of them.
pub struct Tiny {
    folder: tempfile::TempDir,
}

impl Tiny {
    /// Twelve utterances in `train`, five of them again in `valid`.
    pub fn new() -> Self {
        let tiny = Tiny { folder: tempfile::tempdir().unwrap() };
        write_folder(&tiny.path("train"), 12, "abcd", 2);
        write_folder(&tiny.path("valid"), 5, "abcd", 2);
        fs::write(tiny.path("recipe.toml"), RECIPE).unwrap();
        tiny
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the program in the folder, on one thread: nothing here is large enough for more.
    pub fn headfirst(&self, arguments: &[&str]) -> Ended {
        let mut command = program::headfirst(["--threads", "1"]);
        command.args(arguments).current_dir(self.folder.path());
        run_to_end(command)
    }

    /// Trains `recipe.toml` with these changes into the folder `run`.
    pub fn train(&self, run: &str, changes: &[&str]) -> Run {
        let ended = self.try_train(run, changes);
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        self.run(run)
    }

    pub fn try_train(&self, run: &str, changes: &[&str]) -> Ended {
        let mut arguments = vec!["train", "recipe.toml", "--out", run, "--quiet"];
        changes.iter().for_each(|change| arguments.extend(["--set", change]));
        self.headfirst(&arguments)
    }

    /// What a finished run wrote down.
    pub fn run(&self, run: &str) -> Run {
        let read = |name: &str| fs::read_to_string(self.path(run).join(name)).unwrap();
        Run {
            result: serde_json::from_str(&read("result.json")).unwrap(),
            epochs: read("log.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        }
    }
}

pub struct Run {
    pub result: RunResult,
    pub epochs: Vec<EpochRecord>,
}

impl Run {
    pub fn stages(&self) -> Vec<&str> {
        self.result.stages.iter().map(|stage| stage.stage.as_str()).collect()
    }
}
