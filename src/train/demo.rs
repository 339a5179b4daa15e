//! The demo's corpus and recipe: a few generated voices as Kaldi data folders, beside the recipe that trains on them.
//!
//! ```text
//! RUN/demo.toml              recipes/demo.toml, as it stands
//! RUN/data/{train,valid,test}/wav.scp  text  utt2spk  wav/
//! ```
//!
//! From there on nothing is special: features, training, cascade and report are those of any other recipe.

use crate::audio::synthesis::{self, CorpusOptions, Spoken, write_wav};
use crate::error::Result;
use crate::files::{create_folder, write_bytes};
use crate::recipe::Recipe;
use rayon::prelude::*;
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

const RECIPE: &str = include_str!("../../recipes/demo.toml");
const SEED: u64 = 1;
/// In hertz, as in the recipe.
const SAMPLE_RATE: u32 = 16_000;
/// No voice is in two sets.
const SETS: [(&str, Range<usize>); 3] = [("train", 0..8), ("valid", 8..10), ("test", 10..12)];
const UTTERANCES_PER_SPEAKER: usize = 15;

/// What was written.
pub struct Prepared {
    pub recipe: Recipe,
    pub utterances: usize,
    /// Of all recordings together.
    pub seconds: f64,
    /// A recording of the test set, and what is said in it.
    pub example: (PathBuf, String),
}

/// Writes the corpus and the recipe into `folder`, which exists.
///
/// # Errors
/// A folder that cannot be written to.
pub fn prepare(folder: &Path) -> Result<Prepared> {
    let (mut utterances, mut samples, mut example) = (0, 0, None);
    for (set, speakers) in SETS {
        let corpus = synthesis::corpus(SEED, &options(speakers))?;
        let path = folder.join("data").join(set);
        write_set(&path, &corpus)?;
        utterances += corpus.len();
        samples += corpus.iter().map(|spoken| spoken.samples.len()).sum::<usize>();
        // The test set is the last.
        example = corpus.first().map(|spoken| (path.join(wav(spoken)), spoken.text.clone()));
    }
    let path = folder.join("demo.toml");
    write_bytes(&path, RECIPE)?;
    Ok(Prepared {
        recipe: Recipe::load(&path, &[])?,
        utterances,
        seconds: samples as f64 / f64::from(SAMPLE_RATE),
        example: example.unwrap_or_default(),
    })
}

fn options(speakers: Range<usize>) -> CorpusOptions {
    CorpusOptions {
        speakers,
        utterances_per_speaker: UTTERANCES_PER_SPEAKER,
        words_per_utterance: 2..=4,
        sample_rate: SAMPLE_RATE,
    }
}

/// Within its data folder.
fn wav(spoken: &Spoken) -> String {
    format!("wav/{}.wav", spoken.utterance)
}

fn write_set(folder: &Path, corpus: &[Spoken]) -> Result<()> {
    create_folder(&folder.join("wav"))?;
    let write = |spoken: &Spoken| write_wav(&folder.join(wav(spoken)), SAMPLE_RATE, &spoken.samples);
    corpus.par_iter().map(write).collect::<Result<Vec<()>>>()?;
    let table = |name: &str, value: fn(&Spoken) -> String| {
        let mut text = String::new();
        for spoken in corpus {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {}", spoken.utterance, value(spoken));
        }
        write_bytes(folder.join(name), text)
    };
    table("wav.scp", wav)?;
    table("text", |spoken| spoken.text.clone())?;
    table("utt2spk", |spoken| spoken.speaker.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::corpus::Corpus;
    use crate::train::progress::Mode;

    #[test]
    fn what_the_demo_writes_is_data_like_any_other_and_no_voice_is_in_two_sets() {
        let folder = tempfile::tempdir().unwrap();
        let prepared = prepare(folder.path()).unwrap();
        let corpus = Corpus::open(&prepared.recipe, None, false, Mode::Quiet).unwrap();
        let test = corpus.test.unwrap();
        let sets = [&corpus.train, &corpus.valid, &test];
        assert_eq!(sets.map(|set| set.utterances().len()), [120, 30, 30]);
        assert_eq!(prepared.utterances, 180);
        let frames: usize = sets.iter().flat_map(|set| set.utterances()).map(|utterance| utterance.frames).sum();
        assert!((frames as f64 / 100.0 / prepared.seconds - 1.0).abs() < 0.02, "{frames} frames");
        let speakers = |set: usize| {
            let of = |id: &str| id.split('-').next().unwrap().to_string();
            sets[set].utterances().iter().map(|utterance| of(&utterance.id)).collect::<std::collections::BTreeSet<_>>()
        };
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            assert!(speakers(a).is_disjoint(&speakers(b)));
        }
        // Blank, space, and every letter of the lexicon: a validation set with another letter would be refused.
        assert_eq!(corpus.frontend.tokens.len(), 19);
        assert_eq!(prepared.example.1, test.utterances()[0].transcript);
    }

    #[test]
    fn the_same_bytes_are_written_every_time() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let examples = folders.each_ref().map(|folder| prepare(folder.path()).unwrap().example.0);
        assert_eq!(std::fs::read(&examples[0]).unwrap(), std::fs::read(&examples[1]).unwrap());
        let wav_scp = folders.each_ref().map(|folder| std::fs::read(folder.path().join("data/train/wav.scp")).unwrap());
        assert_eq!(wav_scp[0], wav_scp[1]);
    }
}
