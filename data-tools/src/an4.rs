//! CMU's AN4 (the census database): spelled names, numbers and commands, close-talking microphone, 16 kHz.
//!
//! ```text
//! SOURCE/etc/an4_train.transcription    <s> YES </s> (an251-fash-b)
//! SOURCE/etc/an4_train.fileids          an4_clstk/fash/an251-fash-b
//! SOURCE/wav/an4_clstk/fash/an251-fash-b.sph
//! ```
//! The development set is the first 100 utterances of the sorted training set, as in ESPnet's AN4 recipe.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use headfirst::audio::FeatureOptions;
use headfirst::error::{Error, Result};
use headfirst::files::read_text;
use headfirst::train::progress::{Counted, Mode};

use crate::folder::{self, Recording};

/// Utterances of the sorted training set that become the development set.
const DEVELOPMENT: usize = 100;

/// CMU's AN4: data folders train, dev and test with features
///
/// SOURCE is the folder `an4` of an4_sphere.tar.gz, with `etc` and `wav` in it. OUT gets the data folders `train` (848 utterances),
/// `dev` (the first 100 of the sorted training set, as in ESPnet's recipe) and `test` (130), each with wav.scp, text, utt2spk,
/// feats.scp, feats.ark and features.toml. An utterance id begins with the speaker: fash-an251-b.
#[derive(Args)]
pub struct Arguments {
    /// The folder with etc and wav
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// The folder to write train, dev and test to
    #[arg(value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    pub features: FeatureOptions,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Utterance {
    id: String,
    speaker: String,
    transcript: String,
    audio: PathBuf,
}

/// The three sets, each sorted by the bytes of its ids.
struct Corpus {
    train: Vec<Utterance>,
    dev: Vec<Utterance>,
    test: Vec<Utterance>,
}

/// The words and the id of a line `<s> WORDS </s> (id)`; the marks of begin and end may be missing.
fn parse_line(line: &str) -> Option<(String, &str)> {
    let (words, id) = line.trim().strip_suffix(')')?.rsplit_once('(')?;
    let words: Vec<&str> = words.split_whitespace().filter(|word| !matches!(*word, "<s>" | "</s>")).collect();
    (!words.is_empty() && !id.is_empty()).then(|| (words.join(" "), id))
}

/// The speaker of `an251-fash-b` is fash, and the id with the speaker first is `fash-an251-b`.
fn speaker_first(id: &str) -> Option<(String, String)> {
    let mut parts = id.split('-');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(text), Some(speaker), Some(microphone), None)
            if [text, speaker, microphone].iter().all(|part| !part.is_empty()) =>
        {
            Some((speaker.to_string(), format!("{speaker}-{text}-{microphone}")))
        }
        _ => None,
    }
}

fn read_set(source: &Path, set: &str) -> Result<Vec<Utterance>> {
    let etc = source.join("etc");
    let (transcription, file_ids) =
        (etc.join(format!("an4_{set}.transcription")), etc.join(format!("an4_{set}.fileids")));
    for path in [&transcription, &file_ids] {
        if !path.is_file() {
            return Err(Error::file(path, "the file is missing, so this is not AN4 as CMU lays it out")
                .remedy("Give the folder an4 that an4_sphere.tar.gz unpacks to, with etc and wav in it"));
        }
    }
    let file_ids_text = read_text(&file_ids)?;
    let paths: HashMap<&str, &str> = file_ids_text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|path| (path.rsplit('/').next().unwrap_or(path), path))
        .collect();

    let mut utterances = Vec::new();
    let mut lines = HashMap::new();
    for (number, line) in (1..).zip(read_text(&transcription)?.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let error = |problem: String| Error::line(&transcription, number, problem);
        let (transcript, file_id) = parse_line(line).ok_or_else(|| {
            error(format!("{line:?} is no line of the form \"WORDS (id)\"")).remedy("Unpack the corpus again")
        })?;
        let (speaker, id) = speaker_first(file_id).ok_or_else(|| {
            error(format!("the id {file_id} has not the form TEXT-SPEAKER-MICROPHONE"))
                .remedy("Unpack the corpus again")
        })?;
        if let Some(first) = lines.insert(id.clone(), number) {
            return Err(error(format!("the id {file_id} occurs a second time; it stands in line {first} already"))
                .remedy("Keep one line for each utterance"));
        }
        let path = paths.get(file_id).ok_or_else(|| {
            error(format!("the id {file_id} is not in {}", file_ids.display())).remedy("Unpack the corpus again")
        })?;
        let audio = source.join("wav").join(format!("{path}.sph"));
        utterances.push(Utterance { id, speaker, transcript, audio });
    }
    // Strings are ordered by their bytes.
    utterances.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(utterances)
}

fn read_corpus(source: &Path) -> Result<Corpus> {
    // Absolute paths in wav.scp serve from any folder.
    let source = std::path::absolute(source).map_err(|error| Error::io(source, "be found", &error))?;
    let (mut dev, test) = (read_set(&source, "train")?, read_set(&source, "test")?);
    if dev.len() <= DEVELOPMENT || test.is_empty() {
        let problem =
            format!("the corpus has {} training and {} test utterances, AN4 has 948 and 130", dev.len(), test.len());
        return Err(Error::file(source.join("etc"), problem).remedy("Unpack the corpus again"));
    }
    let train = dev.split_off(DEVELOPMENT);
    Ok(Corpus { train, dev, test })
}

fn tables(utterances: &[Utterance]) -> Result<Vec<(&'static str, String)>> {
    let mut paths = Vec::with_capacity(utterances.len());
    for utterance in utterances {
        paths.push(utterance.audio.to_str().ok_or_else(|| {
            Error::file(&utterance.audio, "the path is not UTF-8 and cannot stand in wav.scp")
                .remedy("Rename the folder")
        })?);
    }
    let ids = || utterances.iter().map(|utterance| utterance.id.as_str());
    let transcripts = utterances.iter().map(|utterance| utterance.transcript.as_str());
    let speakers = utterances.iter().map(|utterance| utterance.speaker.as_str());
    Ok(vec![
        ("wav.scp", folder::table(ids().zip(paths))),
        ("text", folder::table(ids().zip(transcripts))),
        ("utt2spk", folder::table(ids().zip(speakers))),
    ])
}

pub fn run(arguments: &Arguments, quiet: bool) -> Result<()> {
    let corpus = read_corpus(&arguments.source)?;
    for (name, utterances) in [("train", &corpus.train), ("dev", &corpus.dev), ("test", &corpus.test)] {
        let folder = arguments.out.join(name);
        let recordings: Vec<Recording> = utterances
            .iter()
            .map(|utterance| Recording { id: utterance.id.clone(), audio: utterance.audio.clone() })
            .collect();
        let extractor = folder::extractor(&recordings, &arguments.features, None)?;
        headfirst::files::create_folder(&folder)?;
        let progress = Counted::new(Mode::choose(quiet), name, recordings.len());
        folder::write_features(&folder, &recordings, &extractor, None, tables(utterances)?, progress)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::tests::write_wav;
    use headfirst::data::kaldi::DataFolder;
    use std::fs;

    #[test]
    fn a_line_gives_plain_words_and_its_id() {
        assert_eq!(parse_line("<s> ENTER SIX </s> (an1-fash-b)"), Some(("ENTER SIX".into(), "an1-fash-b")));
        assert_eq!(parse_line("RUBOUT G M E F (an406-fcaw-b) "), Some(("RUBOUT G M E F".into(), "an406-fcaw-b")));
        assert_eq!(parse_line("<s> </s> (an1-fash-b)"), None);
        assert_eq!(parse_line("YES an1-fash-b"), None);
        assert_eq!(speaker_first("an251-fash-b"), Some(("fash".into(), "fash-an251-b".into())));
        assert_eq!(speaker_first("an251-fash"), None);
    }

    /// A corpus of `train` short recordings and one for the test set.
    fn small_corpus(train: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let etc = folder.path().join("etc");
        fs::create_dir(&etc).unwrap();
        for (set, count) in [("train", train), ("test", 1)] {
            let (mut transcription, mut file_ids) = (String::new(), String::new());
            // The last comes first: the output must be sorted all the same.
            for index in (0..count).rev() {
                let (id, path) =
                    (format!("an{index}-spk{}-b", index % 3), format!("{set}/an{index}-spk{}-b", index % 3));
                transcription += &format!("<s> YES NO </s> ({id})\n");
                file_ids += &format!("{path}\n");
                write_wav(&folder.path().join(format!("wav/{path}.sph")), 16000, 1000);
            }
            fs::write(etc.join(format!("an4_{set}.transcription")), transcription).unwrap();
            fs::write(etc.join(format!("an4_{set}.fileids")), file_ids).unwrap();
        }
        folder
    }

    fn arguments(source: &Path, out: &Path) -> Arguments {
        let features = FeatureOptions { num_mel_bins: 40, pitch: true, ..Default::default() };
        Arguments { source: source.into(), out: out.into(), features }
    }

    #[test]
    fn three_sorted_data_folders_come_out() {
        let source = small_corpus(103);
        let out = tempfile::tempdir().unwrap();
        run(&arguments(source.path(), out.path()), true).unwrap();
        for (name, count) in [("train", 3), ("dev", 100), ("test", 1)] {
            let data = DataFolder::open(out.path().join(name)).unwrap();
            assert_eq!(data.transcripts().collect::<Vec<_>>(), vec!["YES NO"; count]);
            let speakers = fs::read_to_string(out.path().join(name).join("utt2spk")).unwrap();
            let lines: Vec<&str> = speakers.lines().collect();
            assert!(lines.is_sorted() && lines.iter().all(|line| line.split_once(' ').unwrap().0.starts_with("spk")));
            let options = FeatureOptions::read(out.path().join(name).join("features.toml")).unwrap();
            assert_eq!((options.dimension(), options.sample_frequency), (43, Some(16000.0)));
        }
    }

    #[test]
    fn another_layout_a_broken_line_and_a_missing_recording_are_errors() {
        let out = tempfile::tempdir().unwrap();
        let error = |source: &Path| run(&arguments(source, out.path()), true).unwrap_err().to_string();
        let text = error(out.path());
        assert!(text.contains("an4_train.transcription") && text.contains("an4_sphere.tar.gz"), "{text}");
        assert!(error(small_corpus(50).path()).contains("50 training"));

        let source = small_corpus(101);
        fs::remove_file(source.path().join("wav/train/an4-spk1-b.sph")).unwrap();
        assert!(error(source.path()).contains("an4-spk1-b.sph"));
        let path = source.path().join("etc/an4_train.transcription");
        let lines = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{lines}<s> YES </s>\n")).unwrap();
        assert!(error(source.path()).contains("an4_train.transcription:102"));
        fs::write(&path, format!("{lines}<s> YES </s> (an4-spk1-b)\n")).unwrap();
        assert!(error(source.path()).contains("occurs a second time"));
    }

    #[test]
    fn the_real_corpus_has_the_sizes_of_espnets_recipe() {
        let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/an4"));
        if !source.is_dir() {
            eprintln!("skipped: ../shared has no data/an4");
            return;
        }
        let corpus = read_corpus(source).unwrap();
        assert_eq!([&corpus.train, &corpus.dev, &corpus.test].map(Vec::len), [848, 100, 130]);
        let symbols = |utterances: &[Utterance]| -> usize {
            utterances.iter().map(|utterance| utterance.transcript.chars().count()).sum()
        };
        assert_eq!((symbols(&corpus.dev), symbols(&corpus.test)), (1915, 2565));
        assert_eq!(corpus.dev[0].id, "fash-an251-b");
        assert!(corpus.dev.last().unwrap().id < corpus.train[0].id);
    }
}
