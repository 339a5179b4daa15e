//! The layout of a run on disk, and who may change it.
//!
//! ```text
//! RUN/recipe.toml            every key filled in; written last of the start files, so a folder with it is a run
//! RUN/tokens.txt  features.toml  cmvn.safetensors
//! RUN/log.jsonl              one EpochRecord a line, with the checksum of its epoch-N.safetensors
//! RUN/STAGE/best.safetensors  epoch-N.safetensors (keep = "all")
//! RUN/STAGE/state.json  state-CHECKSUM.safetensors       see `checkpoint`
//! RUN/STAGE/valid.hyp.trn  valid.ref.trn  test.hyp.trn  test.ref.trn
//! RUN/result.json  report.html
//! RUN/skipped.jsonl          the batches whose update was skipped, if there were any
//! RUN/.lock                  held by the process that trains
//! ```

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::{EpochRecord, RunResult};
use super::signals::command_line;
use super::summary;
use crate::error::{Error, Result};
use crate::files::{self, Lock, create_folder, write_atomically, write_bytes, write_error};

pub const RECIPE: &str = "recipe.toml";
pub const TOKENS: &str = "tokens.txt";
pub const FEATURES: &str = "features.toml";
pub const CMVN: &str = "cmvn.safetensors";
/// What splits words, if the tokens are pieces.
pub const PIECES: &str = "pieces.json";
pub const LOG: &str = "log.jsonl";
pub const RESULT: &str = "result.json";
pub const REPORT: &str = "report.html";
const SKIPPED: &str = "skipped.jsonl";
const LOCK: &str = ".lock";

/// Keys that may differ when a run goes on: they say how long to train and what to write, not what is computed.
const MAY_CHANGE: [&str; 4] =
    ["training.max_epochs", "training.patience", "training.save_minutes", "training.tensorboard"];

/// Those of them that say when a stage is over.
const HOW_LONG: [&str; 2] = ["training.max_epochs", "training.patience"];

/// What a run writes before its first epoch. `recipe` has every key filled in.
#[derive(Debug, Clone, Copy, Default)]
pub struct StartFiles<'a> {
    pub recipe: &'a str,
    pub tokens: Option<&'a str>,
    pub features: Option<&'a str>,
    pub cmvn: Option<&'a [u8]>,
    pub pieces: Option<&'a str>,
}

/// A run's folder. Created or resumed it is locked until dropped; opened it is for reading.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    _lock: Option<Lock>,
}

/// A stage's folder within a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageFolder {
    pub path: PathBuf,
}

impl StageFolder {
    pub fn best(&self) -> PathBuf {
        self.path.join("best.safetensors")
    }

    /// `epoch` counts from 1.
    pub fn epoch(&self, epoch: usize) -> PathBuf {
        self.path.join(format!("epoch-{epoch}.safetensors"))
    }

    /// `set` is `valid` or `test`.
    pub fn hypotheses(&self, set: &str) -> PathBuf {
        self.path.join(format!("{set}.hyp.trn"))
    }

    pub fn references(&self, set: &str) -> PathBuf {
        self.path.join(format!("{set}.ref.trn"))
    }

    /// The epochs whose weights were kept, in order.
    pub fn kept_epochs(&self) -> Vec<usize> {
        let number = |name: &str| name.strip_prefix("epoch-")?.strip_suffix(".safetensors")?.parse().ok();
        let mut epochs: Vec<_> = names_in(&self.path).iter().filter_map(|name| number(name)).collect();
        epochs.sort_unstable();
        epochs
    }
}

impl RunFolder {
    /// Creates and locks the folder of a new run. The caller writes the start files next.
    ///
    /// # Errors
    /// There is a run already, or other files; the folder cannot be written; another process is just starting there.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.join(RECIPE).exists() {
            return Err(Error::file(path, "holds a run already")
                .remedy("Go on with it: --resume. Or start another beside it: --out FOLDER"));
        }
        // A start that was killed before its recipe was written leaves some of these; they are written anew.
        let ours = |name: &str| [TOKENS, FEATURES, CMVN, PIECES, LOCK].contains(&name) || files::is_temporary(name);
        if let Some(other) = names_in(path).into_iter().find(|name| !ours(name)) {
            return Err(Error::file(path, format!("is not empty (it holds {other}) and is no run"))
                .remedy("Name an empty or a new folder: --out FOLDER"));
        }
        create_folder(path)?;
        Self::locked(path)
    }

    /// [`RunFolder::create`] at `path`, or at `path-2`, `path-3`, ... if that is taken.
    pub fn create_next_free(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut candidate = path.to_path_buf();
        for number in 2.. {
            if !candidate.exists() {
                break;
            }
            let mut name = path.file_name().unwrap_or_default().to_os_string();
            name.push(format!("-{number}"));
            candidate = path.with_file_name(name);
        }
        Self::create(candidate)
    }

    /// Locks the folder of a run that is to go on, and clears away what a killed process left half-written.
    ///
    /// # Errors
    /// There is no run; another process trains in it; the folder cannot be written.
    pub fn resume(path: impl AsRef<Path>) -> Result<Self> {
        let run = Self::open(path)?;
        Self::locked(&run.path)
    }

    /// Opens a run for reading. Nothing is written, and a process may be training in it.
    ///
    /// # Errors
    /// There is no such folder, or it holds no run.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if files::exists(&path.join(RECIPE))? {
            return Ok(RunFolder { path: path.to_path_buf(), _lock: None });
        }
        let problem = match fs::metadata(path) {
            Err(_) => "there is no such run".to_string(),
            Ok(metadata) if !metadata.is_dir() => "is a file, not a run's folder".to_string(),
            Ok(_) => format!("holds no run: it has no {RECIPE}"),
        };
        Err(Error::file(path, problem).remedy("Name the folder of a run; headfirst train starts one, without --resume"))
    }

    fn locked(path: &Path) -> Result<Self> {
        let Some(lock) = Lock::take(&path.join(LOCK))? else {
            return Err(Error::file(path, "another process is training in this folder")
                .remedy("Wait until it ends, stop it, or name another folder: --out FOLDER"));
        };
        let run = RunFolder { path: path.to_path_buf(), _lock: Some(lock) };
        files::remove_stale_temporaries(path);
        run.folders_below().iter().for_each(|(_, folder)| files::remove_stale_temporaries(folder));
        run.cut_torn_line()?;
        Ok(run)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    pub fn report(&self) -> PathBuf {
        self.path.join(REPORT)
    }

    /// Writes the start files, the recipe last: from then on the folder is a run. What a killed start left and this one does not have is
    /// removed: it would be taken for this run's.
    pub fn write_start(&self, start: &StartFiles) -> Result<()> {
        let optional = [
            (TOKENS, start.tokens.map(str::as_bytes)),
            (FEATURES, start.features.map(str::as_bytes)),
            (PIECES, start.pieces.map(str::as_bytes)),
            (CMVN, start.cmvn),
        ];
        for (name, content) in optional {
            let path = self.path.join(name);
            match content {
                Some(bytes) => write_bytes(path, bytes)?,
                None if path.exists() => {
                    // Durable before the recipe is there.
                    let removed = files::remove_file(&path).and_then(|()| files::sync_folder(&self.path));
                    removed.map_err(|error| Error::io(&path, "be removed", &error))?;
                }
                None => {}
            }
        }
        write_bytes(self.path.join(RECIPE), start.recipe)
    }

    /// The checksums of the start files that are the run's own for good. A recipe takes other keys when a run goes on, and feature options may be
    /// corrected.
    pub fn start_checksums(&self) -> Result<BTreeMap<String, String>> {
        let mut checksums = BTreeMap::new();
        for name in [TOKENS, PIECES, CMVN] {
            let path = self.path.join(name);
            if files::exists(&path)? {
                checksums.insert(name.to_string(), files::sha256_of_file(&path)?);
            }
        }
        Ok(checksums)
    }

    /// # Errors
    /// One of these files is not what the run began with.
    pub fn check_start(&self) -> Result<()> {
        let known = self.read_result()?.map(|result| result.start_sha256).unwrap_or_default();
        let found = self.start_checksums()?;
        match found.iter().find(|(name, found)| known.get(*name).is_some_and(|known| known != *found)) {
            None => Ok(()),
            Some((name, _)) => {
                let problem = format!("is not what the run began with: it does not have the checksum in {RESULT}");
                Err(Error::file(self.path.join(name), problem).remedy("Restore it from a copy"))
            }
        }
    }

    /// The command that trains on in this run. The run's own recipe has every key and absolute paths, so the command works from here, whatever
    /// was given first.
    pub fn go_on(&self, more: &[&str]) -> String {
        let (recipe, run) = (self.path.join(RECIPE).display().to_string(), self.path.display().to_string());
        command_line(&[&["train", &recipe, "--out", &run, "--resume"], more].concat())
    }

    /// The text of the run's recipe.
    pub fn recipe(&self) -> Result<String> {
        let path = self.path.join(RECIPE);
        fs::read_to_string(&path).map_err(|error| Error::io(&path, "be read", &error))
    }

    /// Checks that `recipe` (every key filled in) is the run's own, and takes over the keys that may change
    /// (`training.max_epochs`, `patience`, `save_minutes`, `tensorboard`). Gives what is to be said about it, if anything.
    ///
    /// # Errors
    /// Lists the other keys that differ, with both values.
    pub fn adopt_recipe(&self, recipe: &str) -> Result<Option<String>> {
        let path = self.path.join(RECIPE);
        let own = self.recipe()?;
        let parse = |text: &str, whose: &str| {
            text.parse().map_err(|error| Error::file(&path, format!("{whose} recipe cannot be read: {error}")))
        };
        let (before, now) = (flattened(&parse(&own, "the run's")?), flattened(&parse(recipe, "the given")?));
        let mut keys: Vec<_> = before.keys().chain(now.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let value = |values: &BTreeMap<String, String>, key| values.get(key).cloned().unwrap_or("not set".into());
        let differing = keys.into_iter().filter(|key| before.get(*key) != now.get(*key));
        let refused: Vec<_> = differing
            .filter(|key| !MAY_CHANGE.contains(&key.as_str()))
            .map(|key| format!("{key} (run: {}, now: {})", value(&before, key), value(&now, key)))
            .collect();
        if !refused.is_empty() {
            let problem = format!("the run was started with another recipe; these keys differ: {}", refused.join(", "));
            return Err(Error::file(&path, problem).remedy("Undo these changes, or start a new run: --out FOLDER"));
        }
        if own != recipe {
            write_bytes(&path, recipe)?;
        }
        let is_of_other_length = HOW_LONG.iter().any(|&key| before.get(key) != now.get(key));
        let result = self.read_result()?.filter(|_| is_of_other_length);
        Ok(result.and_then(|result| summary::kept_epochs(&result.stages)))
    }

    /// The folder of the stage `id`, created if it is not there.
    pub fn create_stage(&self, id: &str) -> Result<StageFolder> {
        let stage = self.stage(id);
        create_folder(&stage.path)?;
        Ok(stage)
    }

    /// The folder of the stage `id`, which may not exist.
    pub fn stage(&self, id: &str) -> StageFolder {
        StageFolder { path: self.path.join(id) }
    }

    /// The ids of the stages that have weights, sorted.
    pub fn stages(&self) -> Vec<String> {
        let has_weights = |stage: &StageFolder| stage.best().is_file() || !stage.kept_epochs().is_empty();
        let folders = self.folders_below().into_iter();
        folders.filter(|(_, path)| has_weights(&StageFolder { path: path.clone() })).map(|(id, _)| id).collect()
    }

    /// The folders in the run, each with its name, which is a stage's id; sorted.
    fn folders_below(&self) -> Vec<(String, PathBuf)> {
        let folders = names_in(&self.path).into_iter().map(|name| (self.path.join(&name), name));
        folders.filter(|(path, _)| path.is_dir()).map(|(path, name)| (name, path)).collect()
    }

    /// Adds a line to the log, durably. Call it before the epoch's state is saved: then the log knows at least what
    /// the state knows, and [`RunFolder::cut_log`] makes them agree after a crash.
    pub fn append_log(&self, record: &EpochRecord) -> Result<()> {
        let path = self.log();
        let mut line =
            serde_json::to_vec(record).map_err(|error| Error::file(&path, format!("cannot be written: {error}")))?;
        line.push(b'\n');
        append(&path, &line).map_err(|error| write_error(&path, &error))
    }

    /// Keeps the ids of a batch whose update was skipped because a gradient was not finite.
    pub fn append_skipped(&self, stage: &str, step: u32, parameter: &str, utterances: &[String]) -> Result<()> {
        let path = self.path.join(SKIPPED);
        let record =
            serde_json::json!({ "stage": stage, "step": step, "parameter": parameter, "utterances": utterances });
        append(&path, format!("{record}\n").as_bytes()).map_err(|error| write_error(&path, &error))
    }

    /// Forgets the skipped batches of a stage from `step` on: a stage that goes on from its state trains them again.
    pub fn cut_skipped(&self, stage: &str, step: u32) -> Result<()> {
        let path = self.path.join(SKIPPED);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            read => read.map_err(|error| Error::io(&path, "be read", &error))?,
        };
        // A line that a kill tore is of a batch after the last state.
        let stays = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).is_ok_and(|record| {
                record["stage"] != stage || record["step"].as_u64().is_some_and(|found| found < u64::from(step))
            })
        };
        let kept: String = text.split_inclusive('\n').filter(|line| line.ends_with('\n') && stays(line)).collect();
        if kept == text { Ok(()) } else { write_bytes(&path, kept) }
    }

    /// The records of the log; a torn last line (a process was killed while writing it) is left out.
    ///
    /// # Errors
    /// A line is no record.
    pub fn read_log(&self) -> Result<Vec<EpochRecord>> {
        Ok(self.log_lines()?.into_iter().map(|(_, record)| record).collect())
    }

    /// Keeps of each stage the records up to the epoch that its state (or result) knows, and drops those of other stages.
    pub fn cut_log(&self, known_epochs: &BTreeMap<String, usize>) -> Result<()> {
        let lines = self.log_lines()?;
        let known = |record: &EpochRecord| known_epochs.get(&record.stage).is_some_and(|&epoch| record.epoch <= epoch);
        if lines.iter().all(|(_, record)| known(record)) {
            return Ok(());
        }
        // The lines that stay keep their bytes.
        let kept = lines.iter().filter(|(_, record)| known(record)).map(|(line, _)| line.as_str());
        write_bytes(self.log(), kept.collect::<String>())
    }

    /// Whole lines with their line ends, each with its record.
    fn log_lines(&self) -> Result<Vec<(String, EpochRecord)>> {
        let path = self.log();
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            read => read.map_err(|error| Error::io(&path, "be read", &error))?,
        };
        let whole = bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let lines = whole.enumerate().map(|(index, line)| {
            let parsed = serde_json::from_slice(line).map_err(|error| {
                Error::line(&path, index + 1, format!("is no record of an epoch: {error}"))
                    .remedy("Restore the log from a copy, or delete that line")
            })?;
            Ok((String::from_utf8_lossy(line).into_owned(), parsed))
        });
        lines.collect()
    }

    fn cut_torn_line(&self) -> Result<()> {
        let path = self.log();
        let cut = || -> io::Result<()> {
            let bytes = match fs::read(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                read => read?,
            };
            let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
            if whole == bytes.len() {
                return Ok(());
            }
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(whole as u64)?;
            file.sync_all()
        };
        cut().map_err(|error| write_error(&path, &error))
    }

    pub fn write_result(&self, result: &RunResult) -> Result<()> {
        write_json(self.path.join(RESULT), result)
    }

    /// `result.json`; `None` before the first stage has ended.
    pub fn read_result(&self) -> Result<Option<RunResult>> {
        read_json(self.path.join(RESULT))
    }
}

fn append(path: &Path, line: &[u8]) -> io::Result<()> {
    let new = !path.exists();
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    let before = file.metadata()?.len();
    if let Err(error) = file.write_all(line).and_then(|()| file.sync_data()) {
        // A full disk may have taken a part of the line.
        let _ = file.set_len(before);
        return Err(error);
    }
    if new { files::sync_folder(files::folder_of(path)) } else { Ok(()) }
}

/// Writes `value` as indented JSON, durably.
pub fn write_json<T: Serialize>(path: impl AsRef<Path>, value: &T) -> Result<()> {
    write_atomically(path, |writer| {
        serde_json::to_writer_pretty(&mut *writer, value)?;
        writer.write_all(b"\n")
    })
}

/// Reads a JSON file; `None` if there is none.
///
/// # Errors
/// It cannot be read or is not what is expected.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<Option<T>> {
    let path = path.as_ref();
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| Error::io(path, "be read", &error))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Error::file(path, format!("is damaged or of another version: {error}")).remedy("Restore it from a copy")
    })
}

/// Every key with its value as text: `training.max_epochs` -> `100`.
fn flattened(table: &toml::Table) -> BTreeMap<String, String> {
    fn add(prefix: &str, table: &toml::Table, into: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let key = format!("{prefix}{key}");
            match value {
                toml::Value::Table(inner) => add(&format!("{key}."), inner, into),
                value => drop(into.insert(key, value.to_string())),
            }
        }
    }
    let mut values = BTreeMap::new();
    add("", table, &mut values);
    values
}

/// The names in a folder, sorted; none if it cannot be read.
fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
#[path = "run_folder_tests.rs"]
mod tests;
