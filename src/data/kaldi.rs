//! A Kaldi data folder: `feats.scp` or `wav.scp`, `text`, and `utt2spk` if it is there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::data::ark::FeatureArchive;
use crate::data::table::{Row, read_index, read_table};
use crate::error::{Error, Result};
use crate::files::exists;
use crate::score::trn;

/// One utterance of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utterance {
    pub id: String,
    /// Words with one space between them; it may be empty.
    pub transcript: String,
    /// From `utt2spk`.
    pub speaker: Option<String>,
}

/// Where the features of a folder come from.
pub enum Source {
    /// `feats.scp`, which is taken where both are there.
    Features(FeatureArchive),
    /// `wav.scp`: the audio file of each utterance, in the order of the folder's utterances.
    Audio(Vec<PathBuf>),
}

/// A data folder, read and found consistent.
pub struct DataFolder {
    pub path: PathBuf,
    /// Sorted by id, bytewise, whatever the order in the files.
    pub utterances: Vec<Utterance>,
    pub source: Source,
}

/// How many ids an error lists before it only counts.
const IDS_IN_AN_ERROR: usize = 5;

impl DataFolder {
    /// Reads the tables of a folder; features and audio stay where they are.
    ///
    /// # Errors
    /// Those of [`read_table`] and [`read_index`]; a missing file; an empty folder; ids that one file has and another lacks, or that cannot stand
    /// behind a transcript in a trn file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Err(Error::file(path, "it is not a folder")
                .remedy("Name a Kaldi data folder: feats.scp or wav.scp, and text"));
        }
        let (features, audio, text) = (path.join("feats.scp"), path.join("wav.scp"), path.join("text"));
        let has_features = exists(&features)?;
        if !has_features && !exists(&audio)? {
            return Err(Error::file(path, "the folder has neither feats.scp nor wav.scp")
                .remedy("Make it with data-tools, or write wav.scp with a line \"id path\" for each audio file"));
        }
        if !exists(&text)? {
            return Err(Error::file(path, "the folder has no file text")
                .remedy("Write it with a line \"id transcript\" for each utterance"));
        }
        let mut transcripts = read_table(&text)?;
        check_ids(&text, &transcripts)?;
        transcripts.sort_by(|a, b| a.id.cmp(&b.id));

        let source = if has_features {
            let archive = FeatureArchive::open(&features)?;
            same_ids(&features, archive.ids(), &text, &transcripts)?;
            Source::Features(archive)
        } else {
            Source::Audio(audio_files(&audio, &text, &transcripts)?)
        };
        if transcripts.is_empty() {
            return Err(
                Error::file(path, "the folder has no utterances: its files are empty").remedy("Make the folder again")
            );
        }
        let mut speakers = speakers(&path.join("utt2spk"), &text, &transcripts)?;
        let utterances = transcripts
            .into_iter()
            .map(|row| Utterance {
                speaker: speakers.remove(&row.id),
                transcript: row.value.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
                id: row.id,
            })
            .collect();
        Ok(DataFolder { path: path.to_path_buf(), utterances, source })
    }

    pub fn transcripts(&self) -> impl Iterator<Item = &str> {
        self.utterances.iter().map(|utterance| utterance.transcript.as_str())
    }
}

/// Transcripts are written as trn files, at the end of a stage: what those cannot hold is better said before its first epoch.
fn check_ids(text: &Path, transcripts: &[Row]) -> Result<()> {
    match transcripts.iter().find(|row| !trn::can_hold(&row.id)) {
        None => Ok(()),
        Some(row) => Err(Error::line(
            text,
            row.line,
            format!("the id {:?} has a parenthesis, a control character or a space that is not ASCII, which a trn file cannot hold", row.id),
        )
        .remedy("Rename the utterance in every file of the folder")),
    }
}

/// The files of `wav.scp` in the order of `transcripts`.
fn audio_files(index: &Path, text: &Path, transcripts: &[Row]) -> Result<Vec<PathBuf>> {
    let segments = index.with_file_name("segments");
    if exists(&segments)? {
        return Err(Error::file(segments, "recordings cut into segments are read as features only")
            .remedy("Compute the features with Kaldi, so that the folder has feats.scp, or cut the recordings into one file for each utterance"));
    }
    let mut files = HashMap::new();
    for location in read_index(index)? {
        if location.offset.is_some() || location.rows.is_some() {
            return Err(Error::line(
                index,
                location.line,
                format!("utterance {}: it names a part of a file", location.id),
            )
            .remedy("Write one audio file for each utterance"));
        }
        files.insert(location.id, location.path);
    }
    same_ids(index, files.keys().map(String::as_str), text, transcripts)?;
    // Both have the same ids now, so none is passed over.
    Ok(transcripts.iter().filter_map(|row| files.remove(&row.id)).collect())
}

/// The speaker of each utterance, where `utt2spk` is there.
fn speakers(path: &Path, text: &Path, transcripts: &[Row]) -> Result<HashMap<String, String>> {
    if !exists(path)? {
        return Ok(HashMap::new());
    }
    let rows = read_table(path)?;
    same_ids(path, rows.iter().map(|row| row.id.as_str()), text, transcripts)?;
    if let Some(row) = rows.iter().find(|row| row.value.is_empty()) {
        return Err(Error::line(path, row.line, format!("utterance {} has no speaker", row.id))
            .remedy("Write one behind the id, or remove the file, which is not required"));
    }
    Ok(rows.into_iter().map(|row| (row.id, row.value)).collect())
}

/// Checks that `path` and `text` have the same ids. `transcripts` are sorted.
fn same_ids<'a>(path: &Path, ids: impl Iterator<Item = &'a str>, text: &Path, transcripts: &[Row]) -> Result<()> {
    let mut ids: Vec<&str> = ids.collect();
    ids.sort_unstable();
    let missing_here = transcripts.iter().map(|row| row.id.as_str()).filter(|id| ids.binary_search(id).is_err());
    let missing_in_text =
        ids.iter().copied().filter(|id| transcripts.binary_search_by(|row| row.id.as_str().cmp(id)).is_err());
    for (file, other, missing) in
        [(path, text, missing_here.collect::<Vec<_>>()), (text, path, missing_in_text.collect())]
    {
        if missing.is_empty() {
            continue;
        }
        let shown = missing[..missing.len().min(IDS_IN_AN_ERROR)].join(", ");
        let more = if missing.len() > IDS_IN_AN_ERROR { ", ..." } else { "" };
        let other_name = other.file_name().unwrap_or(other.as_os_str()).display();
        let plural = if missing.len() == 1 { "" } else { "s" };
        return Err(Error::file(
            file,
            format!("it lacks {} utterance{plural} of {other_name}: {shown}{more}", missing.len()),
        )
        .remedy(format!("Add them there, or remove them from {other_name}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn error(files: &[(&str, &[u8])]) -> String {
        let folder = folder(files);
        DataFolder::open(folder.path()).err().expect("the folder is bad").to_string()
    }

    const ARK: (&str, &[u8]) = ("feats.ark", b"[ 1 2 ]\n");

    #[test]
    fn a_folder_need_not_be_sorted() {
        let folder = folder(&[
            ARK,
            ("feats.scp", b"b feats.ark:0\na feats.ark:0\n"),
            ("text", b"b  SEVEN \t EIGHT\na\n"),
            ("utt2spk", b"b s2\na s1\n"),
        ]);
        let data = DataFolder::open(folder.path()).unwrap();
        let utterance = |id: &str, transcript: &str, speaker: &str| Utterance {
            id: id.into(),
            transcript: transcript.into(),
            speaker: Some(speaker.into()),
        };
        assert_eq!(data.utterances, [utterance("a", "", "s1"), utterance("b", "SEVEN EIGHT", "s2")]);
        assert!(matches!(data.source, Source::Features(_)));
    }

    #[test]
    fn without_features_the_audio_files_come_in_the_order_of_the_utterances() {
        let folder =
            folder(&[("x.wav", b""), ("y.wav", b""), ("wav.scp", b"b x.wav\na y.wav\n"), ("text", b"b B\na A\n")]);
        let Source::Audio(files) = DataFolder::open(folder.path()).unwrap().source else { panic!("no audio") };
        assert_eq!(files, [folder.path().join("y.wav"), folder.path().join("x.wav")]);
    }

    #[test]
    fn an_id_that_one_file_lacks_is_an_error_naming_it() {
        let found = error(&[ARK, ("feats.scp", b"a feats.ark:0\n"), ("text", b"a A\nc C\nb B\n")]);
        assert!(found.contains("feats.scp: it lacks 2 utterances of text: b, c. Add them there"), "{found}");
        let found = error(&[ARK, ("feats.scp", b"a feats.ark:0\nb feats.ark:0\n"), ("text", b"a A\n")]);
        assert!(found.contains("text: it lacks 1 utterance of feats.scp: b."), "{found}");
        let text: String = (0..9).map(|k| format!("u{k} A\n")).collect();
        let found = error(&[ARK, ("feats.scp", b""), ("text", text.as_bytes())]);
        assert!(found.contains("lacks 9 utterances of text: u0, u1, u2, u3, u4, ..."), "{found}");
        let found = error(&[ARK, ("feats.scp", b"a feats.ark:0\n"), ("text", b"a A\n"), ("utt2spk", b"b s\n")]);
        assert!(found.contains("utt2spk: it lacks 1 utterance of text: a"), "{found}");
    }

    #[test]
    fn missing_files_are_errors_that_say_which() {
        assert!(error(&[]).contains("neither feats.scp nor wav.scp"));
        assert!(error(&[ARK, ("feats.scp", b"a feats.ark:0\n")]).contains("no file text"));
        assert!(error(&[("feats.scp", b""), ("text", b"")]).contains("no utterances"));
        assert!(error(&[("wav.scp", b"a a.wav\n"), ("text", b"a A\n")]).contains("there is no file a.wav"));
        assert!(error(&[("wav.scp", b""), ("segments", b""), ("text", b"a A\n")]).contains("segments"));
        assert!(error(&[ARK, ("wav.scp", b"a feats.ark:3\n"), ("text", b"a A\n")]).contains("a part of a file"));
        assert!(
            error(&[ARK, ("feats.scp", b"a feats.ark:0\n"), ("text", b"a A\n"), ("utt2spk", b"a\n")])
                .contains("no speaker")
        );
        let absent = DataFolder::open("/absent/folder").err().expect("it is absent").to_string();
        assert!(absent.contains("/absent/folder: it is not a folder"), "{absent}");
    }

    #[test]
    fn a_duplicate_id_and_text_that_is_not_utf8_are_errors_naming_the_line() {
        let found = error(&[ARK, ("feats.scp", b"a feats.ark:0\n"), ("text", b"a A\na B\n")]);
        assert!(found.contains("text:2: the id \"a\""), "{found}");
        let found = error(&[ARK, ("feats.scp", b"a feats.ark:0\n"), ("text", b"a A\nb \xe9\n")]);
        assert!(found.contains("text:2: the byte at offset 6"), "{found}");
    }
}
