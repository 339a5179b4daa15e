use super::{refuses, refuses_data, refuses_to_train};
use crate::corpus::{SAMPLE_RATE, copy_folder, copy_of, setting, train, trained};
use crate::program::{headfirst, run_to_end};
use headfirst::audio::FeatureOptions;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// What the corpus says of its features.
fn options() -> FeatureOptions {
    FeatureOptions { sample_frequency: Some(f64::from(SAMPLE_RATE)), ..FeatureOptions::KALDI }
}

/// A copy of a set whose `features.toml` has these options.
fn made_with(set: &str, options: &FeatureOptions) -> TempDir {
    let folder = copy_of(set);
    options.write(folder.path().join("features.toml")).unwrap();
    folder
}

fn evaluate_on(folder: &Path) -> Command {
    let mut command = headfirst(["evaluate".as_ref(), trained().as_os_str()]);
    command.arg("--data").arg(folder);
    command
}

#[test]
fn a_misspelt_feature_option_is_refused_though_features_toml_has_them_all() {
    refuses_to_train(&["features.num_mel_bin=23"], &["features.num_mel_bin:", "features.num_mel_bins"]);
    refuses_to_train(&["features.num_mel_bins=many"], &["features.num_mel_bins: invalid type"]);
}

#[test]
fn feature_options_of_the_recipe_are_held_against_features_toml_by_value() {
    let parts = ["features.num_mel_bins: is 40 in the recipe", "features.toml says 23", "Leave [features] out"];
    refuses_to_train(&["features.num_mel_bins=40"], &parts);
    // A whole number is the same number.
    let folder = tempfile::tempdir().unwrap();
    let settings = ["features.sample_frequency=8000", "features.frame_shift=10", "training.max_epochs=1"];
    let ended = run_to_end(train(&folder.path().join("run"), &settings));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
}

#[test]
fn options_that_make_other_features_than_there_are_are_refused() {
    let wrong = FeatureOptions { num_mel_bins: 80, ..options() };
    let folder = made_with("train", &wrong);
    let parts = ["its features have 23 numbers a frame", "make 80", "features.toml", "data-tools features"];
    refuses_to_train(&[&setting("train", folder.path())], &parts);
    std::fs::remove_file(folder.path().join("features.toml")).unwrap();
    refuses_to_train(&[&setting("train", folder.path()), "features.num_mel_bins=80"], &parts);
    // A run that was trained before this was noticed says so when it first needs them.
    let run = tempfile::tempdir().unwrap();
    copy_folder(trained(), run.path());
    wrong.write(run.path().join("features.toml")).unwrap();
    let mut transcribe = headfirst(["transcribe".as_ref(), run.path().as_os_str()]);
    transcribe.arg("any.wav");
    refuses(transcribe, &["features.toml makes 80 numbers a frame", "the model takes 23"]);
}

#[test]
fn features_made_otherwise_than_those_of_the_model_are_refused_by_file_and_key() {
    let other = FeatureOptions { frame_shift: 12.0, ..options() };
    let parts = ["features.toml", "says frame_shift = 12.0", "have frame_shift = 10.0", "data-tools features"];
    for set in ["valid", "test"] {
        refuses_data(set, made_with(set, &other).path(), &parts);
    }
    refuses(evaluate_on(made_with("test", &other).path()), &parts);
    // Below a classifier from another run, the training set too.
    let folder = made_with("train", &other);
    let from = format!("cascade={{strategy=\"greedy\",classifier_from={:?}}}", trained().to_str().unwrap());
    refuses_to_train(&[&from, &setting("train", folder.path())], &parts);
    refuses_to_train(&[&from, "features.num_mel_bins=40"], &["features.num_mel_bins: is 40", "have 23"]);
    // Noise, and what has no effect, make no other features.
    let same = FeatureOptions { dither: 1.0, min_f0: 60.0, ..options() };
    assert_eq!(run_to_end(evaluate_on(made_with("test", &same).path())).code, Some(0));
}
