//! Writing a Kaldi data folder: `wav.scp`, `text`, `utt2spk`, then `feats.ark` and `feats.scp`, and `features.toml`, which says how the
//! features were made. Every file appears under its name only when it is complete.

use std::path::{Path, PathBuf};

use headfirst::audio::{FeatureExtractor, FeatureOptions, Features};
use headfirst::data::ark::ArkWriter;
use headfirst::error::{Error, Result};
use headfirst::train::progress::Counted;
use rayon::prelude::*;

/// Utterances that are computed side by side before they are written: enough for many cores, little to hold in memory.
const AT_ONCE: usize = 256;

/// One recording and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    pub id: String,
    pub audio: PathBuf,
}

/// The text of a table: a line `id value` for each row.
pub fn table<'a>(rows: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (id, value) in rows {
        text.push_str(id);
        if !value.is_empty() {
            text.push(' ');
            text.push_str(value);
        }
        text.push('\n');
    }
    text
}

/// The extractor for `recordings`, as [`FeatureExtractor::for_recordings`] makes it.
///
/// # Errors
/// Its errors, and no recordings.
pub fn extractor(
    recordings: &[Recording],
    options: &FeatureOptions,
    channel: Option<usize>,
) -> Result<FeatureExtractor> {
    let first = recordings.first().ok_or_else(|| Error::program("there are no recordings"))?;
    FeatureExtractor::for_recordings(options, &first.audio, channel)
}

/// Computes the features of `recordings` and writes them to `folder`: `feats.ark`, `feats.scp`, `features.toml` and, with them, `tables`, each a
/// file's name and its text. The order of the recordings is kept, and the bytes do not depend on the number of threads.
///
/// # Errors
/// Those of [`FeatureExtractor::compute_file`] and [`ArkWriter`]. What stood in the folder before is then still there.
pub fn write_features(
    folder: &Path,
    recordings: &[Recording],
    extractor: &FeatureExtractor,
    channel: Option<usize>,
    tables: Vec<(&str, String)>,
    progress: Counted,
) -> Result<()> {
    let mut writer = ArkWriter::create(folder.join("feats.ark"), folder.join("feats.scp"))?;
    let mut frames = 0;
    for part in recordings.chunks(AT_ONCE) {
        let features: Vec<Result<Features>> =
            part.par_iter().map(|recording| extractor.compute_file(&recording.audio, channel, &recording.id)).collect();
        for (recording, features) in part.iter().zip(features) {
            let features = features?;
            writer.write(&recording.id, features.frames, features.dimension, &features.values)?;
            frames += features.frames;
        }
        progress.advance(part.len());
    }
    let beside = tables.into_iter().chain([("features.toml", extractor.options().to_toml()?)]);
    let beside: Vec<_> = beside.map(|(name, text)| (folder.join(name), text)).collect();
    writer.finish_with(&beside)?;
    let (utterances, dimension) = (recordings.len(), extractor.dimension());
    progress.finish(&format!("{utterances} utterances, {frames} frames of {dimension} features"));
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use headfirst::train::progress::Mode;
    use std::fs;

    /// A WAV file of noise-like 16-bit samples.
    pub fn write_wav(path: &Path, rate: u32, samples: u32) {
        let mut bytes = b"RIFF".to_vec();
        bytes.extend_from_slice(&(36 + 2 * samples).to_le_bytes());
        bytes.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
        bytes.extend_from_slice(&rate.to_le_bytes());
        bytes.extend_from_slice(&(2 * rate).to_le_bytes());
        bytes.extend_from_slice(b"\x02\0\x10\0data");
        bytes.extend_from_slice(&(2 * samples).to_le_bytes());
        for index in 0..samples {
            bytes.extend_from_slice(&((index * index % 2003) as i16 - 1000).to_le_bytes());
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn the_bytes_do_not_depend_on_the_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let recordings: Vec<Recording> = (0..9)
            .map(|index| {
                let audio = folder.path().join(format!("{index}.wav"));
                write_wav(&audio, 16000, 2000 + 300 * index);
                Recording { id: format!("u{index}"), audio }
            })
            .collect();
        let options = FeatureOptions { dither: 1.0, pitch: true, ..Default::default() };
        let archives = [1, 4].map(|threads| {
            let extractor = extractor(&recordings, &options, None).unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let progress = Counted::new(Mode::Quiet, "test", 9);
            pool.install(|| write_features(folder.path(), &recordings, &extractor, None, vec![], progress)).unwrap();
            fs::read(folder.path().join("feats.ark")).unwrap()
        });
        assert!(archives[0].len() > 9 * 26 * 4);
        assert_eq!(archives[0], archives[1]);
    }

    #[test]
    fn a_bad_recording_leaves_the_old_archive_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let audio = folder.path().join("short.wav");
        write_wav(&audio, 16000, 10);
        for name in ["feats.ark", "text"] {
            fs::write(folder.path().join(name), "old").unwrap();
        }
        let recordings = [Recording { id: "a".into(), audio }];
        let extractor = FeatureExtractor::new(&FeatureOptions::default(), 16000).unwrap();
        let (tables, progress) = (vec![("text", "new".to_string())], Counted::new(Mode::Quiet, "test", 1));
        let written = write_features(folder.path(), &recordings, &extractor, None, tables, progress);
        assert!(written.unwrap_err().to_string().contains("short.wav"));
        for name in ["feats.ark", "text"] {
            assert_eq!(fs::read(folder.path().join(name)).unwrap(), b"old", "{name}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }
}
