//! Bad input of every kind, given to the program as a user would: exit code 1 (2 for wrong usage), no panic, and a text that names
//! the file, line, utterance or key and what to do. What only `data-tools` reads is tested beside it.

/// Recordings that cannot be read, or were made otherwise than those of the corpus.
mod audio;
/// Masks and speeds that cannot be.
mod augment;
/// Data folders, their features and their transcripts.
mod data;
/// Disks that are full, and places that cannot be written.
mod disk;
/// Feature options that are misspelt, or are not those of the features.
mod features;
/// Recipes, runs and weights that cannot be, are damaged or do not fit; a training that diverges.
mod runs;
/// Tokens that a list lacks, pieces that are missing, and kinds of tokens that do not go together.
mod tokens;

use crate::corpus::{setting, train};
use crate::program::{Ended, run_to_end};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The command fails with exit code 1, prints nothing but its error, and that once; it has all of `parts`.
fn refuses(command: Command, parts: &[&str]) -> Ended {
    let shown = format!("{command:?}");
    let ended = run_to_end(command);
    assert_eq!(ended.code, Some(1), "{shown}: {}", ended.errors);
    assert!(ended.output.is_empty(), "{shown}: {}", ended.output);
    let errors = ended.errors.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{shown}: {}", ended.errors);
    for part in parts {
        assert!(ended.errors.contains(part), "{shown}: {part:?} is not in: {}", ended.errors);
    }
    ended
}

/// A training with these settings is refused before it begins: no run is left behind.
fn refuses_to_train(settings: &[&str], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    refuses(train(&run, settings), parts);
    assert!(!run.join("recipe.toml").exists(), "there is a run now, and the next try is refused");
}

/// A training whose set `name` (`train`, `valid`) is `folder` is refused.
fn refuses_data(name: &str, folder: &Path, parts: &[&str]) {
    refuses_to_train(&[&setting(name, folder)], parts);
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let mut lines: Vec<String> = fs::read_to_string(path).unwrap().lines().map(String::from).collect();
    change(&mut lines);
    fs::write(path, lines.join("\n") + "\n").unwrap();
}
