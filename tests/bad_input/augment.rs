use super::refuses_to_train;
use crate::corpus::{recordings_of, setting, train};
use crate::program::{end, log, run_to_end, wait_until};
use std::fs;

#[test]
fn speeds_of_features_cannot_be_changed() {
    let parts = ["augment.speeds: change recordings", "feats.scp", "wav.scp"];
    refuses_to_train(&["augment.speeds=[0.9, 1.0, 1.1]"], &parts);
    refuses_to_train(&["augment.speeds=[0.9, 1.0]", "data.valid=''"], &["augment.speeds", "Add data.valid"]);
    for wrong in ["[]", "[1.0, 1.0]", "[0.1]", "1.0"] {
        refuses_to_train(&[&format!("augment.speeds={wrong}")], &["augment.speeds", "a list of different numbers"]);
    }
    refuses_to_train(&["augment.time_mask_limit=1.5"], &["augment.time_mask_limit"]);
}

#[test]
fn recordings_are_trained_on_at_every_speed_and_validated_at_their_own() {
    let folder = recordings_of("train");
    let run = folder.path().join("run");
    let settings = [&setting("train", folder.path()), "augment.speeds=[0.9, 1.0, 1.1]", "training.max_epochs=1"];
    let mut command = train(&run, &settings);
    command.arg("--quiet");
    let ended = run_to_end(command);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    // 36 utterances, two in a batch.
    assert_eq!(log(&run)[0]["step"], 18);
}

/// What a run computed, without what a clock measured.
fn computed(run: &std::path::Path) -> Vec<(String, String, u64)> {
    let text = |value: &serde_json::Value| value.to_string();
    log(run)
        .iter()
        .map(|row| (text(&row["train_loss"]), text(&row["valid_loss"]), row["step"].as_u64().unwrap()))
        .collect()
}

#[test]
fn masks_change_the_training_alone_and_a_resumed_run_has_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let masks = "augment={time_warp=3, frequency_masks=2, frequency_mask_width=8, time_masks=2, time_mask_width=10}";
    // A rate so low that no weight moves: then only what is read differs.
    let still = "optimizer={kind='sgd', learning_rate=1e-30}";
    let dry = "model.dropout=0.0";
    let run = |name: &str, settings: &[&str]| {
        let path = folder.path().join(name);
        let ended = run_to_end(train(&path, settings));
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        path
    };
    let plain = computed(&run("plain", &[still, dry, "training.max_epochs=2"]));
    let masked = computed(&run("masked", &[still, dry, masks, "training.max_epochs=2"]));
    assert_eq!(plain[0].1, masked[0].1, "validation is as it was");
    assert_ne!(plain[0].0, masked[0].0, "training is not");
    assert_ne!(masked[0].0, masked[1].0, "each epoch has its own masks");

    // Stopped somewhere in an epoch.
    let cut = folder.path().join("cut");
    let mut child = train(&cut, &[masks, "training.max_epochs=1000000"]).spawn().unwrap();
    assert!(wait_until(&mut child, || !log(&cut).is_empty()));
    // SAFETY: a plain system call on a process of ours that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(end(child).code, Some(143));
    let epochs = format!("training.max_epochs={}", log(&cut).len() + 2);
    let mut resume = train(&cut, &[masks, &epochs]);
    resume.arg("--resume");
    let ended = run_to_end(resume);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let whole = run("whole", &[masks, &epochs]);
    assert_eq!(computed(&whole), computed(&cut));
    let weights = |run: &std::path::Path| fs::read(run.join("joint/best.safetensors")).unwrap();
    assert_eq!(weights(&whole), weights(&cut));
}
