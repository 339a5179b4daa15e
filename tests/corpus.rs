//! A small spoken corpus, with features and with recordings, and trainings of it.

use crate::program::{headfirst, run_to_end};
use headfirst::audio::synthesis::{self, CorpusOptions, write_wav};
use headfirst::audio::{FeatureExtractor, FeatureOptions};
use headfirst::data::ArkWriter;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::TempDir;

pub const SAMPLE_RATE: u32 = 8000;

const RECIPE: &str = r#"
name = "spoken"
[data]
kind = "speech"
train = "train"
valid = "valid"
test = "test"
[batch]
utterances = 2
[model]
kind = "blstm-ctc"
layers = 2
units = 16
projection = 12
subsample = [2, 1]
dropout = 0.2
[optimizer]
kind = "adam"
[training]
max_epochs = 3
patience = 0
"#;

/// Where the corpus lies: `recipe.toml`, and the data folders `train` (12 utterances), `valid` and `test`, with features and with
/// recordings (`train/audio/ID.wav`). It is made once per test run, and its files are the same in every run.
pub fn corpus() -> &'static Path {
    static CORPUS: OnceLock<PathBuf> = OnceLock::new();
    CORPUS.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("spoken-corpus");
        for (name, speakers, utterances) in [("train", 0..2, 6), ("valid", 2..3, 3), ("test", 3..4, 2)] {
            write_set(&path.join(name), speakers, utterances);
        }
        // Replaced as a whole: another test run may be reading it.
        headfirst::files::write_bytes(path.join("recipe.toml"), RECIPE).unwrap();
        path
    })
}

fn write_set(folder: &Path, speakers: Range<usize>, utterances_per_speaker: usize) {
    let options =
        CorpusOptions { speakers, utterances_per_speaker, words_per_utterance: 1..=2, sample_rate: SAMPLE_RATE };
    let features = FeatureOptions { sample_frequency: Some(f64::from(SAMPLE_RATE)), ..Default::default() };
    let extractor = FeatureExtractor::new(&features, SAMPLE_RATE).unwrap();
    fs::create_dir_all(folder.join("audio")).unwrap();
    let mut archive = ArkWriter::create(folder.join("feats.ark"), folder.join("feats.scp")).unwrap();
    let mut text = String::new();
    for spoken in synthesis::corpus(1, &options).unwrap() {
        let samples: Vec<f32> = spoken.samples.iter().map(|&sample| f32::from(sample)).collect();
        let computed = extractor.compute(&samples, &spoken.utterance).unwrap();
        archive.write(&spoken.utterance, computed.frames, computed.dimension, &computed.values).unwrap();
        text += &format!("{} {}\n", spoken.utterance, spoken.text);
        write_wav(&folder.join("audio").join(spoken.utterance + ".wav"), SAMPLE_RATE, &spoken.samples).unwrap();
    }
    archive.finish().unwrap();
    headfirst::files::write_bytes(folder.join("text"), text).unwrap();
    features.write(folder.join("features.toml")).unwrap();
}

/// The lines of a file of the corpus, such as `train/text`.
pub fn lines(name: &str) -> Vec<String> {
    fs::read_to_string(corpus().join(name)).unwrap().lines().map(String::from).collect()
}

/// The ids of a set, in their order.
pub fn ids(set: &str) -> Vec<String> {
    lines(&format!("{set}/text")).iter().map(|line| line.split(' ').next().unwrap().to_string()).collect()
}

/// A copy of a set, with features, to be spoilt.
pub fn copy_of(set: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&corpus().join(set), folder.path());
    folder
}

/// A copy of a set that has recordings and no features.
pub fn recordings_of(set: &str) -> TempDir {
    let folder = copy_of(set);
    let index: String = ids(set).iter().map(|id| format!("{id} audio/{id}.wav\n")).collect();
    fs::write(folder.path().join("wav.scp"), index).unwrap();
    fs::remove_file(folder.path().join("feats.scp")).unwrap();
    folder
}

/// The `KEY=VALUE` by which `folder` becomes the set `train`, `valid` or `test`.
pub fn setting(set: &str, folder: &Path) -> String {
    format!("data.{set}={:?}", folder.to_str().unwrap())
}

/// A joint training of two epochs, finished: for the tests that need a model, not what it has learned. Not to be changed.
pub fn trained() -> &'static Path {
    static TRAINED: OnceLock<PathBuf> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let run = fresh_folder("trained");
        let ended = run_to_end(train(&run, &["training.max_epochs=2"]));
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        run
    })
}

/// A place for what several tests read, where nothing stands. What a test run leaves there, the next one clears away.
pub fn fresh_folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        fs::remove_dir_all(&path).unwrap();
    }
    path
}

/// Copies a folder and all below it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A training of the corpus in the folder `run`; each setting is a `KEY=VALUE`.
pub fn train(run: &Path, settings: &[&str]) -> Command {
    let mut command = headfirst(["train"]);
    command.arg(corpus().join("recipe.toml")).arg("--out").arg(run).args(["--threads", "1"]);
    settings.iter().for_each(|setting| {
        command.args(["--set", setting]);
    });
    command
}
