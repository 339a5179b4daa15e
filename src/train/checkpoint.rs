//! The resumable state of a stage: named parts, each a safetensors file (`weights`, `best`, `optimizer`, ...), and
//! `state.json` for all else, which names the parts by checksum.
//!
//! A part's file is called by its content, `state-CHECKSUM.safetensors`, and never changes. `state.json` is renamed into
//! place last, and only after that is durable are the files deleted that it does not name. So a crash at any instant leaves the old
//! state whole or the new one whole; and a part that did not change since the last state costs nothing.
//!
//! `best.safetensors` and `epoch-N.safetensors` are second names of such files ([`publish_part`]), given after the state is
//! durable. After a crash between the two, the trainer publishes them again from the state that it loads.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::weights::write_weights;
pub use super::weights::{NamedTensor, Weights, load_weights, save_weights};
use crate::error::{Error, Result};
use crate::files::{self, ChecksumWriter, Temporary, place_link, write_atomically, write_error};

/// The name of the file that is renamed last.
pub const STATE_FILE: &str = "state.json";
/// A part is written under this name, then called by its checksum.
const PART_FILE: &str = "state-part.safetensors";
/// Digits of the checksum in a part's file name; the whole one stands in `state.json`.
const NAME_DIGITS: usize = 16;
/// Raised when an old state can no longer be read.
const FORMAT: u64 = 1;

/// A part of a state: its name (`weights`, `optimizer`) and where its tensors come from.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    pub name: &'a str,
    pub content: Content<'a>,
}

/// Where the tensors of a part come from.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// These tensors; `metadata` as in [`save_weights`].
    Tensors { tensors: &'a [NamedTensor<'a>], metadata: &'a [(&'a str, &'a str)] },
    /// The same file as the part of that name, which stands earlier in the list (`best` in an epoch that is the best).
    SameAs(&'a str),
    /// As in the state that is there: not written again (`best` in an epoch that is not).
    Kept,
}

/// A state that was loaded and whose checksums are right.
#[derive(Debug)]
pub struct State<T> {
    /// What the caller stored beside the tensors.
    pub rest: T,
    pub parts: BTreeMap<String, Weights>,
}

impl<T> State<T> {
    /// The part of that name.
    ///
    /// # Errors
    /// The state has no such part: another version of the program wrote it.
    pub fn part(&self, name: &str) -> Result<&Weights> {
        self.parts.get(name).ok_or_else(|| {
            let problem = format!("the saved state has no part named {name}; it was written by another version");
            Error::program(problem).remedy("Train that stage anew, or go on with the version that wrote it")
        })
    }
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
struct StateFile {
    format: u64,
    parts: BTreeMap<String, PartFile>,
    state: Value,
    /// Of all the above, written without spaces.
    sha256: String,
}

impl StateFile {
    fn checksum(&self) -> String {
        let covered = serde_json::json!([self.format, self.parts, self.state]);
        files::sha256(covered.to_string().as_bytes())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct PartFile {
    file: String,
    bytes: u64,
    sha256: String,
}

/// Saves a state in `folder`, durably, and removes what only the one before it needed. `rest` must not hold a number that
/// is not finite, except in fields marked with [`super::number`].
///
/// # Errors
/// The disk is full or the folder cannot be written: the state before it is whole and remains.
pub fn save_state<T: Serialize>(folder: &Path, parts: &[Part], rest: &T) -> Result<()> {
    let place = folder.join(STATE_FILE);
    let state = serde_json::to_value(rest)
        .map_err(|error| Error::file(&place, format!("the state cannot be written as JSON: {error}")))?;
    let mut written = BTreeMap::new();
    for part in parts {
        let file = match part.content {
            Content::Tensors { tensors, metadata } => save_part(folder, tensors, metadata)?,
            Content::SameAs(other) => written.get(other).cloned().ok_or_else(|| {
                Error::program(format!("the part {} of a state is the same as {other}, which is not in it", part.name))
            })?,
            Content::Kept => kept_part(folder, part.name)?,
        };
        written.insert(part.name.to_string(), file);
    }
    let mut content = StateFile { format: FORMAT, parts: written, state, sha256: String::new() };
    content.sha256 = content.checksum();
    write_atomically(&place, |writer| Ok(serde_json::to_writer_pretty(writer, &content)?))?;
    remove_unnamed(folder, &content.parts);
    Ok(())
}

fn save_part(folder: &Path, tensors: &[NamedTensor], metadata: &[(&str, &str)]) -> Result<PartFile> {
    let beside = folder.join(PART_FILE);
    let mut finished = (String::new(), 0);
    let write = |writer: &mut dyn Write| {
        let mut checksum = ChecksumWriter::new(writer);
        write_weights(&mut checksum, tensors, metadata)?;
        finished = checksum.finish();
        Ok(())
    };
    let temporary = Temporary::write(&beside, write).map_err(|error| write_error(&beside, &error))?;
    let (sha256, bytes) = finished;
    let file = format!("state-{}.safetensors", &sha256[..NAME_DIGITS]);
    let place = folder.join(&file);
    temporary.place(&place).map_err(|error| write_error(&place, &error))?;
    Ok(PartFile { file, bytes, sha256 })
}

fn kept_part(folder: &Path, name: &str) -> Result<PartFile> {
    let state = read_state_file(folder)?;
    state.and_then(|mut state| state.parts.remove(name)).ok_or_else(|| {
        Error::file(folder.join(STATE_FILE), format!("the part {name} is to be kept, but no state with it was saved"))
    })
}

/// Deletes the part files that the durable `state.json` does not name. That one cannot be deleted is no reason to stop a
/// training: the next state tries again.
fn remove_unnamed(folder: &Path, named: &BTreeMap<String, PartFile>) {
    for name in part_files(folder) {
        if named.values().all(|part| part.file != name) {
            let _ = files::remove_file(&folder.join(name));
        }
    }
}

/// The names of all part files in `folder`, of whatever state.
fn part_files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let checksum = name.strip_prefix("state-").and_then(|name| name.strip_suffix(".safetensors"));
            checksum.is_some_and(|text| text.len() == NAME_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        })
        .collect();
    // In one order on every file system, so that tests can count operations.
    names.sort();
    names
}

/// Loads the state in `folder`; `None` if none was ever completed there.
///
/// # Errors
/// `state.json` or a file that it names is missing or damaged. The error says which, and how to train the stage anew.
pub fn load_state<T: DeserializeOwned>(folder: &Path) -> Result<Option<State<T>>> {
    let Some(file) = read_state_file(folder)? else { return Ok(None) };
    let place = folder.join(STATE_FILE);
    let rest = serde_json::from_value(file.state).map_err(|error| {
        damaged(folder, Error::file(&place, format!("was written by another version of the program: {error}")))
    })?;
    let mut parts = BTreeMap::new();
    for (name, part) in file.parts {
        let path = folder.join(&part.file);
        let weights = load_weights(&path).map_err(|error| damaged(folder, error))?;
        if weights.checksum() != (part.sha256, part.bytes) {
            let error = Error::file(&path, format!("is damaged: it does not have the checksum in {STATE_FILE}"));
            return Err(damaged(folder, error));
        }
        parts.insert(name, weights);
    }
    Ok(Some(State { rest, parts }))
}

fn read_state_file(folder: &Path) -> Result<Option<StateFile>> {
    let place = folder.join(STATE_FILE);
    let text = match fs::read_to_string(&place) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(damaged(folder, Error::file(&place, "is damaged: it is not text")));
        }
        Err(error) => return Err(Error::io(&place, "be read", &error)),
    };
    let file: StateFile = serde_json::from_str(&text)
        .map_err(|error| damaged(folder, Error::file(&place, format!("is damaged: {error}"))))?;
    if file.format != FORMAT {
        let problem = format!("has the format {}; this version of the program reads {FORMAT}", file.format);
        return Err(damaged(folder, Error::file(&place, problem)));
    }
    if file.checksum() != file.sha256 {
        return Err(damaged(folder, Error::file(&place, "is damaged: its content does not have its checksum")));
    }
    Ok(Some(file))
}

fn damaged(folder: &Path, error: Error) -> Error {
    error.remedy(format!(
        "Restore it from a copy, or remove {} and go on with --resume: this stage is then trained anew, those before it are kept",
        folder.join(STATE_FILE).display()
    ))
}

/// Gives a part of the newest state a lasting name (`best.safetensors`, `epoch-3.safetensors`) without writing it again.
/// Call it after [`save_state`], and after [`load_state`] for what a crash in between may have missed.
pub fn publish_part(folder: &Path, part: &str, path: &Path) -> Result<()> {
    let file = kept_part(folder, part)?;
    place_link(&folder.join(file.file), path)
}

/// Removes a stage's state, for instance once the stage is finished; published files stay.
pub fn remove_state(folder: &Path) -> Result<()> {
    let place = folder.join(STATE_FILE);
    // `state.json` first: parts without it are nothing, it without its parts would be a damaged state.
    let removed = files::remove_file(&place).and_then(|()| files::sync_folder(folder));
    removed.map_err(|error| Error::io(&place, "be removed", &error))?;
    remove_unnamed(folder, &BTreeMap::new());
    Ok(())
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
