//! Features for a Kaldi data folder: `wav.scp` in, `feats.scp`, `feats.ark` and `features.toml` out.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use headfirst::audio::FeatureOptions;
use headfirst::data::table::{read_index, read_table};
use headfirst::error::{Error, Result};
use headfirst::files::read_text;
use headfirst::train::progress::{Counted, Mode};

use crate::folder::{self, Recording};

/// Compute features for your own audio: wav.scp -> feats.scp and feats.ark
///
/// DATA_DIR is a Kaldi data folder: `wav.scp` has a line "id path" for each recording (WAV, FLAC or NIST SPHERE), `text` a line
/// "id transcript", `utt2spk` (if there is one) a line "id speaker". OUT becomes a data folder with the features and copies of
/// `text` and `utt2spk`; it may be DATA_DIR itself. features.toml there says how the features were made.
#[derive(Args)]
pub struct Arguments {
    /// The folder with wav.scp and text
    #[arg(value_name = "DATA_DIR")]
    source: PathBuf,
    /// The folder to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// For recordings with several channels: the one to take, from 0
    #[arg(long, value_name = "N")]
    channel: Option<usize>,
    #[command(flatten)]
    pub features: FeatureOptions,
}

/// The recordings of `wav.scp`, in its order.
fn recordings(source: &Path) -> Result<Vec<Recording>> {
    let path = source.join("wav.scp");
    if !source.is_dir() {
        return Err(Error::file(source, "it is not a folder").remedy("Name the folder with wav.scp and text"));
    }
    if !path.is_file() {
        return Err(Error::file(source, "the folder has no wav.scp")
            .remedy("Write one there, with a line \"id path\" for each recording"));
    }
    if source.join("segments").exists() {
        return Err(Error::file(source.join("segments"), "recordings are not cut into segments").remedy(
            "Cut them first, for example with sox IN OUT.wav trim START LENGTH, and delete the file segments",
        ));
    }
    let mut recordings = Vec::new();
    for location in read_index(&path)? {
        if location.offset.is_some() || location.rows.is_some() {
            return Err(Error::line(&path, location.line, format!("utterance {} lies inside an archive", location.id))
                .remedy("Write the path of a WAV, FLAC or NIST SPHERE file"));
        }
        recordings.push(Recording { id: location.id, audio: location.path });
    }
    if recordings.is_empty() {
        return Err(Error::file(&path, "the file has no lines").remedy("Write a line \"id path\" for each recording"));
    }
    Ok(recordings)
}

/// Says so before the work begins if `table` has other ids than `wav.scp`.
fn check_ids(table: &Path, recordings: &[Recording]) -> Result<()> {
    let rows = read_table(table)?;
    let audio: HashSet<&str> = recordings.iter().map(|recording| recording.id.as_str()).collect();
    if let Some(row) = rows.iter().find(|row| !audio.contains(row.id.as_str())) {
        return Err(Error::line(table, row.line, format!("utterance {} is not in wav.scp", row.id))
            .remedy("Add its recording there, or delete this line"));
    }
    let known: HashSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    match recordings.iter().find(|recording| !known.contains(recording.id.as_str())) {
        Some(missing) => Err(Error::file(table, format!("utterance {} of wav.scp has no line", missing.id))
            .remedy("Add one, or delete its line in wav.scp")),
        None => Ok(()),
    }
}

pub fn run(arguments: &Arguments, quiet: bool) -> Result<()> {
    let (source, out) = (&arguments.source, &arguments.out);
    let recordings = recordings(source)?;
    let tables: Vec<&str> = ["text", "utt2spk"].into_iter().filter(|name| source.join(name).is_file()).collect();
    for table in &tables {
        check_ids(&source.join(table), &recordings)?;
    }
    let extractor = folder::extractor(&recordings, &arguments.features, arguments.channel)?;
    headfirst::files::create_folder(out)?;
    let same_folder = fs::canonicalize(source).ok() == fs::canonicalize(out).ok();
    let copied = tables.into_iter().filter(|_| !same_folder);
    let copied = copied.map(|table| Ok((table, read_text(&source.join(table))?))).collect::<Result<_>>()?;
    let progress = Counted::new(Mode::choose(quiet), &out.display().to_string(), recordings.len());
    folder::write_features(out, &recordings, &extractor, arguments.channel, copied, progress)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::tests::write_wav;
    use headfirst::data::kaldi::DataFolder;

    fn source() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        write_wav(&folder.path().join("audio/b.wav"), 8000, 4000);
        write_wav(&folder.path().join("audio/a.wav"), 8000, 2000);
        fs::write(folder.path().join("wav.scp"), "b audio/b.wav\na audio/a.wav\n").unwrap();
        fs::write(folder.path().join("text"), "a YES\nb NO\n").unwrap();
        folder
    }

    fn arguments(source: &Path, out: &Path) -> Arguments {
        let features = FeatureOptions { num_mel_bins: 20, ..Default::default() };
        Arguments { source: source.into(), out: out.into(), channel: None, features }
    }

    fn error(source: &Path) -> String {
        let out = tempfile::tempdir().unwrap();
        run(&arguments(source, out.path()), true).unwrap_err().to_string()
    }

    #[test]
    fn the_folder_that_comes_out_is_a_data_folder_with_its_features_toml() {
        let source = source();
        for out in [source.path().join("new/folder"), source.path().to_path_buf()] {
            run(&arguments(source.path(), &out), true).unwrap();
            let data = DataFolder::open(&out).unwrap();
            assert_eq!(data.transcripts().collect::<Vec<_>>(), ["YES", "NO"]);
            let options = FeatureOptions::read(out.join("features.toml")).unwrap();
            assert_eq!((options.num_mel_bins, options.sample_frequency), (20, Some(8000.0)));
        }
    }

    #[test]
    fn a_folder_without_wav_scp_and_an_empty_one_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        assert!(error(folder.path()).contains("no wav.scp"));
        fs::write(folder.path().join("wav.scp"), "\n").unwrap();
        assert!(error(folder.path()).contains("no lines"));
    }

    #[test]
    fn a_pipe_and_a_missing_file_are_errors_naming_their_line() {
        let source = source();
        fs::write(source.path().join("wav.scp"), "a audio/a.wav\nb sph2pipe b.sph |\n").unwrap();
        let text = error(source.path());
        assert!(text.contains("wav.scp:2") && text.contains("pipe"), "{text}");
        fs::write(source.path().join("wav.scp"), "a audio/absent.wav\n").unwrap();
        let text = error(source.path());
        assert!(text.contains("wav.scp:1") && text.contains("absent.wav"), "{text}");
    }

    #[test]
    fn ids_that_do_not_agree_are_errors_before_the_work_begins() {
        let source = source();
        fs::write(source.path().join("text"), "a YES\nb NO\nc GO\n").unwrap();
        let text = error(source.path());
        assert!(text.contains("text:3") && text.contains("utterance c"), "{text}");
        fs::write(source.path().join("text"), "a YES\n").unwrap();
        assert!(error(source.path()).contains("utterance b of wav.scp"));
    }

    #[test]
    fn recordings_of_two_rates_are_an_error_unless_a_rate_is_given() {
        let source = source();
        write_wav(&source.path().join("audio/a.wav"), 16000, 2000);
        let text = error(source.path());
        assert!(text.contains("a.wav") && text.contains("--sample-frequency 8000"), "{text}");
        let out = tempfile::tempdir().unwrap();
        let mut arguments = arguments(source.path(), out.path());
        arguments.features.sample_frequency = Some(8000.0);
        run(&arguments, true).unwrap();
    }

    #[test]
    fn segments_are_an_error_rather_than_ignored() {
        let source = source();
        fs::write(source.path().join("segments"), "a1 a 0 0.1\n").unwrap();
        assert!(error(source.path()).contains("segments"));
    }
}
