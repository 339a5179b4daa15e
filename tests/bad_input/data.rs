use super::{edit, refuses, refuses_data};
use crate::corpus::{copy_of, corpus, ids, setting, train, trained};
use crate::program::{headfirst, log, run_to_end};
use headfirst::data::{ArkWriter, FeatureArchive};
use serde_json::Value;
use std::fs;

#[test]
fn features_that_are_no_numbers_are_named_by_utterance_and_frame() {
    for set in ["train", "valid"] {
        let folder = copy_of(set);
        let archive = FeatureArchive::open(corpus().join(set).join("feats.scp")).unwrap();
        let mut writer = ArkWriter::create(folder.path().join("feats.ark"), folder.path().join("feats.scp")).unwrap();
        let bad = &ids(set)[2];
        for id in ids(set) {
            let (frames, dimension) = archive.shape(&id).unwrap();
            let mut values = vec![0.0; frames * dimension];
            archive.read_into(&id, &mut values).unwrap();
            if id == *bad {
                values[7 * dimension + 4] = f32::NAN;
            }
            writer.write(&id, frames, dimension, &values).unwrap();
        }
        writer.finish().unwrap();
        let run = folder.path().join("run");
        let parts = [bad.as_str(), "NaN in frame 7, column 4", "Compute them again", folder.path().to_str().unwrap()];
        refuses(train(&run, &[&setting(set, folder.path())]), &parts);
    }
}

#[test]
fn data_folders_that_do_not_agree_with_themselves_are_named() {
    let folder = copy_of("train");
    edit(&folder.path().join("feats.scp"), |lines| lines[4] = ids("train")[4].clone());
    refuses_data(
        "train",
        folder.path(),
        &["feats.scp:5", &ids("train")[4], "no file behind the id", "delete the line"],
    );

    let folder = copy_of("train");
    edit(&folder.path().join("feats.scp"), |lines| drop(lines.remove(4)));
    refuses_data(
        "train",
        folder.path(),
        &["feats.scp: it lacks 1 utterance of text", &ids("train")[4], "Add them there"],
    );

    let folder = copy_of("valid");
    edit(&folder.path().join("text"), |lines| drop(lines.remove(1)));
    refuses_data(
        "valid",
        folder.path(),
        &["text: it lacks 1 utterance of feats.scp", &ids("valid")[1], "remove them from"],
    );

    let folder = copy_of("train");
    edit(&folder.path().join("text"), |lines| lines[2] = lines[1].clone());
    refuses_data("train", folder.path(), &["text:3", &ids("train")[1], "a second time"]);

    let folder = copy_of("train");
    fs::write(folder.path().join("text"), b"a \xff\n").unwrap();
    refuses_data("train", folder.path(), &["text:1", "not UTF-8", "iconv"]);

    let folder = copy_of("train");
    fs::write(folder.path().join("feats.ark"), "").unwrap();
    edit(&folder.path().join("feats.scp"), |lines| {
        for line in lines {
            *line = line.replace(corpus().join("train").to_str().unwrap(), folder.path().to_str().unwrap());
        }
    });
    refuses_data("train", folder.path(), &["feats.ark", &ids("train")[0]]);
}

#[test]
fn an_unknown_character_is_named_with_its_utterance() {
    let folder = copy_of("valid");
    edit(&folder.path().join("text"), |lines| lines[1] += "Ж");
    refuses_data("valid", folder.path(), &[&ids("valid")[1], "character \"Ж\"", "data.token_list"]);
}

#[test]
fn an_id_that_a_transcript_file_cannot_hold_is_refused_before_anything_is_trained() {
    for set in ["train", "valid", "test"] {
        for bad in ["utterance(2)", "utterance\u{a0}2", "utterance\u{7}2"] {
            let folder = copy_of(set);
            for file in ["text", "feats.scp"] {
                edit(&folder.path().join(file), |lines| lines[1] = lines[1].replacen(&ids(set)[1], bad, 1));
            }
            refuses_data(set, folder.path(), &["text:2", &format!("{bad:?}"), "trn file", "Rename the utterance"]);
        }
    }
}

#[test]
fn an_empty_or_missing_data_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().to_str().unwrap();
    refuses_data("train", folder.path(), &[name, "neither feats.scp nor wav.scp", "data-tools"]);
    fs::write(folder.path().join("feats.scp"), "").unwrap();
    fs::write(folder.path().join("text"), "").unwrap();
    refuses_data("valid", folder.path(), &[name, "no utterances", "Make the folder again"]);
    refuses_data("train", &folder.path().join("absent"), &["absent", "not a folder", "Name a Kaldi data folder"]);
}

#[test]
fn an_utterance_whose_labels_do_not_fit_its_frames_is_named_and_counted_and_training_goes_on() {
    let folder = copy_of("train");
    let bad = &ids("train")[5];
    edit(&folder.path().join("text"), |lines| {
        let words = lines[5].split_once(' ').unwrap().1.to_string();
        lines[5] += &format!(" {words}").repeat(60);
    });
    let run = folder.path().join("run");
    let ended = run_to_end(train(&run, &[&setting("train", folder.path()), "training.max_epochs=2"]));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let report = format!("utterance {bad}: its labels do not fit its frames");
    assert_eq!(ended.errors.matches(&report).count(), 1, "{}", ended.errors);
    let log = log(&run);
    assert_eq!(log.len(), 2);
    for record in &log {
        assert_eq!(record["infeasible_utterances"], 1);
        assert_eq!(record["skipped_updates"], 0);
        assert!(record["train_loss"].is_number() && record["valid_loss"].is_number(), "{record}");
    }
    // Scored by the model, it is named too.
    let mut evaluate = headfirst(["evaluate".as_ref(), run.as_os_str()]);
    evaluate.args(["--json", "--data"]).arg(folder.path());
    let scores: Value = serde_json::from_str(&run_to_end(evaluate).output).unwrap();
    assert_eq!(scores["infeasible_utterances"], serde_json::json!([bad]));
    assert!(scores["loss"].is_number() && scores["cer"].is_number());
}

#[test]
fn a_set_without_any_utterance_that_fits_has_no_loss_and_says_so() {
    for set in ["train", "valid"] {
        let folder = copy_of(set);
        edit(&folder.path().join("text"), |lines| {
            lines.iter_mut().for_each(|line| *line += &" A".repeat(200));
        });
        let parts = [folder.path().to_str().unwrap(), "no utterance has labels that fit its frames", "model.subsample"];
        refuses_data(set, folder.path(), &parts);
        let mut evaluate = headfirst(["evaluate".as_ref(), trained().as_os_str()]);
        evaluate.args(["--json", "--data"]).arg(folder.path());
        let scores: Value = serde_json::from_str(&run_to_end(evaluate).output).unwrap();
        assert_eq!(scores["loss"], "NaN", "a loss of 0 would be the best there is");
        assert_eq!(scores["infeasible_utterances"], serde_json::json!(ids(set)));
        assert!(scores["cer"].is_number(), "{scores}");
    }
}
