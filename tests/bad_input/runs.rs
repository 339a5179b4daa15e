use super::{edit, refuses, refuses_to_train};
use crate::corpus::{copy_folder, corpus, ids, train, trained};
use crate::program::{end, headfirst, log, result, run_to_end, wait_until};
use serde_json::Value;
use std::fs;
use std::path::Path;

#[test]
fn a_recipe_with_a_misspelt_key_or_an_impossible_value_is_refused_by_key_and_line() {
    refuses_to_train(&["optimizer.lerning_rate=1"], &["optimizer.lerning_rate", "optimizer.learning_rate"]);
    refuses_to_train(&["model.dropout=1.5"], &["model.dropout", "1.5"]);
    refuses_to_train(&["model.layers=0"], &["model.layers"]);
    refuses_to_train(&["model.subsample=[2]"], &["model.subsample"]);
    refuses_to_train(&["optimizer.kind=\"sgdd\""], &["optimizer.kind", "sgd"]);
    refuses_to_train(&["optimizer.learning_rate=1e30"], &["optimizer.learning_rate", "1e30"]);
    refuses_to_train(&["training.precision=\"bf16\""], &["training.precision", "f32"]);
    refuses_to_train(&["data.kind=text", "batch={}"], &["data.kind", "reads data.kind = \"speech\""]);

    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("bad.toml");
    let refuses_recipe = |text: &str, parts: &[&str]| {
        fs::write(&recipe, text).unwrap();
        let mut command = headfirst(["train".as_ref(), recipe.as_os_str()]);
        command.arg("--out").arg(folder.path().join("run"));
        refuses(command, parts);
    };
    let good = fs::read_to_string(corpus().join("recipe.toml")).unwrap();
    let misspelt = good.replace("max_epochs", "max_epoch");
    let line = 1 + misspelt.lines().position(|line| line.starts_with("max_epoch")).unwrap();
    refuses_recipe(&misspelt, &[&format!("bad.toml:{line}"), "training.max_epoch", "training.max_epochs"]);
    refuses_recipe(&good.replace("units = 16", "units = -16"), &["bad.toml:", "model.units", "-16"]);
    refuses_recipe(&good.replace("units = 16\n", ""), &["model.units"]);
    refuses_recipe("name = ", &["bad.toml:1"]);
    fs::remove_file(&recipe).unwrap();
    let mut command = headfirst(["train".as_ref(), recipe.as_os_str()]);
    command.arg("--out").arg(folder.path().join("run"));
    refuses(command, &["bad.toml", "cannot be read", "Check the path"]);
}

#[test]
fn weights_of_another_shape_or_of_another_model_are_named_by_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("wide.toml");
    let wide = fs::read_to_string(corpus().join("recipe.toml")).unwrap();
    let absolute = |text: String, set: &str| {
        text.replace(&format!("{set} = \"{set}\""), &format!("{set} = {:?}", corpus().join(set).to_str().unwrap()))
    };
    let wide = ["train", "valid", "test"].into_iter().fold(wide, absolute);
    let evaluate = |recipe: &Path, weights: &Path| {
        let mut command = headfirst(["evaluate", "--recipe"]);
        command.arg(recipe).arg("--weights").arg(weights);
        command
    };
    let weights = trained().join("joint/best.safetensors");
    fs::write(&recipe, wide.replace("units = 16", "units = 20")).unwrap();
    let named =
        ["best.safetensors", "encoder.blstm.0.", "64", "80", "Use the recipe that these weights were trained with"];
    refuses(evaluate(&recipe, &weights), &named);
    fs::write(&recipe, wide.replace("layers = 2", "layers = 3").replace("[2, 1]", "[2, 1, 1]")).unwrap();
    refuses(evaluate(&recipe, &weights), &["best.safetensors", "encoder.blstm.2.", "Use the recipe"]);
    fs::write(&recipe, wide).unwrap();
    refuses(evaluate(&recipe, &folder.path().join("none.safetensors")), &["none.safetensors", "Check the path"]);
    refuses(
        evaluate(&recipe, &corpus().join("recipe.toml")),
        &["recipe.toml", "safetensors", "name another checkpoint"],
    );
}

#[test]
fn a_model_that_no_memory_holds_is_refused_before_the_run_is_there() {
    refuses_to_train(&["model.units=1000000"], &["MiB are free", "make the model smaller"]);
}

#[test]
fn a_run_whose_result_is_gone_is_not_trained_anew_over_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    copy_folder(trained(), &run);
    fs::remove_file(run.join("result.json")).unwrap();
    let weights = fs::read(run.join("joint/best.safetensors")).unwrap();
    let mut resume = headfirst(["train".as_ref(), run.join("recipe.toml").as_os_str()]);
    resume.arg("--out").arg(&run).arg("--resume");
    refuses(resume, &["result.json: is missing, but stages of the run have weights", "Restore it", "--out FOLDER"]);
    assert_eq!(fs::read(run.join("joint/best.safetensors")).unwrap(), weights);
    let mut report = headfirst(["report"]);
    report.arg(&run);
    let go_on = format!("train {0}/recipe.toml --out {0} --resume", run.display());
    refuses(report, &["has no result yet", &go_on]);
}

#[test]
fn a_damaged_run_is_named_by_file() {
    let folder = tempfile::tempdir().unwrap();
    let spoilt = |number: usize, file: &str, content: &[u8]| {
        let run = folder.path().join(format!("run-{number}"));
        copy_folder(trained(), &run);
        fs::write(run.join(file), content).unwrap();
        run
    };
    let evaluate = |run: &Path| headfirst(["evaluate".as_ref(), run.as_os_str()]);
    let best = fs::read(trained().join("joint/best.safetensors")).unwrap();
    let cut_short = spoilt(0, "joint/best.safetensors", &best[..best.len() - 4]);
    refuses(evaluate(&cut_short), &["best.safetensors", "cut short or damaged", "Copy it anew"]);
    refuses(evaluate(&spoilt(1, "joint/best.safetensors", b"")), &["best.safetensors", "Copy it anew"]);
    refuses(evaluate(&spoilt(2, "joint/best.safetensors", &[255; 200])), &["best.safetensors", "Copy it anew"]);
    refuses(evaluate(&spoilt(3, "result.json", b"{")), &["result.json", "damaged", "Restore it from a copy"]);
    for (number, file) in [(4, "tokens.txt"), (5, "cmvn.safetensors")] {
        let mut content = fs::read(trained().join(file)).unwrap();
        *content.last_mut().unwrap() ^= 1;
        let parts = [file, "is not what the run began with", "result.json", "Restore it from a copy"];
        refuses(evaluate(&spoilt(number, file, &content)), &parts);
    }
    refuses(evaluate(&spoilt(6, "recipe.toml", b"name = 3")), &["recipe.toml"]);
    let run = spoilt(7, "log.jsonl", b"{\"stage\": \"joint\"}\n");
    let mut command = train(&run, &["training.max_epochs=2"]);
    command.arg("--resume");
    refuses(command, &["log.jsonl:1", "no record of an epoch", "delete that line"]);
    let mut absent = headfirst(["evaluate"]);
    absent.arg(trained().join("no-such-stage"));
    refuses(absent, &["no-such-stage", "joint"]);
    let mut absent = headfirst(["evaluate"]);
    absent.arg(trained().join("joint@7"));
    refuses(absent, &["epoch 7"]);
}

/// Changes a number of a tensor; all that can be read without a checksum stays as it was.
fn flip_a_bit(path: &Path) {
    let mut content = fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    // The same epoch under another name, `best.safetensors`, stays whole.
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn weights_that_are_no_longer_those_of_the_finished_stage_are_named_wherever_they_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    copy_folder(trained(), &run);
    let best = run.join("joint/best.safetensors");
    flip_a_bit(&best);
    let parts = [best.to_str().unwrap(), "is not what the stage ended with", "Restore it from a copy"];
    let audio = corpus().join("valid/audio").join(format!("{}.wav", ids("valid")[0]));
    refuses(headfirst(["evaluate".as_ref(), run.as_os_str()]), &parts);
    refuses(headfirst(["evaluate".as_ref(), run.join("joint").as_os_str()]), &parts);
    refuses(headfirst(["transcribe".as_ref(), run.as_os_str(), audio.as_os_str()]), &parts);
    refuses_to_train(
        &[&format!("cascade={{strategy=\"greedy\",classifier_from={:?}}}", run.to_str().unwrap())],
        &parts,
    );
    // On purpose, they can be looked at.
    let mut evaluate = headfirst(["evaluate".as_ref(), "--recipe".as_ref(), run.join("recipe.toml").as_os_str()]);
    evaluate.arg("--weights").arg(&best);
    assert_eq!(run_to_end(evaluate).code, Some(0));
    // A run whose result is without the checksum, as versions before wrote it, is read as it is.
    let mut old = result(&run);
    assert!(old["stages"][0].as_object_mut().unwrap().remove("best_sha256").is_some());
    fs::write(run.join("result.json"), old.to_string()).unwrap();
    assert_eq!(run_to_end(headfirst(["evaluate".as_ref(), run.as_os_str()])).code, Some(0));
}

#[test]
fn a_kept_epoch_that_is_no_longer_what_it_was_is_named_wherever_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let ended = run_to_end(train(&run, &["training.max_epochs=2", "training.keep=all"]));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let first = run.join("joint/epoch-1.safetensors");
    flip_a_bit(&first);
    let named = |epoch: usize| format!("{}/joint@{epoch}", run.display());
    let parts = [first.to_str().unwrap(), "is not what the epoch ended with", "log.jsonl", "Restore it from a copy"];
    let audio = corpus().join("valid/audio").join(format!("{}.wav", ids("valid")[0]));
    refuses(headfirst(["evaluate", &named(1)]), &parts);
    refuses(headfirst(["transcribe", &named(1), audio.to_str().unwrap()]), &parts);
    refuses_to_train(&[&format!("cascade={{strategy=\"greedy\",classifier_from={:?}}}", named(1))], &parts);
    // The other one is whole, and so is the best, which is one of the two.
    for whole in [named(2), run.to_str().unwrap().to_string()] {
        let ended = run_to_end(headfirst(["evaluate", &whole]));
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
    }
    // A log without checksums, as versions before wrote it, is read as it is.
    edit(&run.join("log.jsonl"), |lines| {
        for line in lines {
            let mut record: Value = serde_json::from_str(line).unwrap();
            assert!(record.as_object_mut().unwrap().remove("kept_sha256").is_some());
            *line = record.to_string();
        }
    });
    assert_eq!(run_to_end(headfirst(["evaluate", &named(1)])).code, Some(0));
    // Where only the best epoch is kept, there is no file to have a checksum.
    assert!(log(trained()).iter().all(|record| record.get("kept_sha256").is_none()));
}

#[test]
fn a_damaged_state_is_named_and_the_remedy_works() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let forever = ["training.max_epochs=1000000"];
    let mut child = train(&whole, &forever).spawn().unwrap();
    assert!(wait_until(&mut child, || !log(&whole).is_empty()));
    // SAFETY: a plain system call on a process of ours that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    assert_eq!(end(child).code, Some(143));

    let epochs = format!("training.max_epochs={}", log(&whole).len() + 1);
    let resume = |run: &Path| {
        let mut command = train(run, &[&epochs]);
        command.arg("--resume");
        command
    };
    let state: Value = serde_json::from_slice(&fs::read(whole.join("joint/state.json")).unwrap()).unwrap();
    let part = |name: &str| format!("joint/{}", state["parts"][name]["file"].as_str().unwrap());
    for (number, file) in
        ["joint/state.json".to_string(), part("weights"), part("optimizer"), part("best")].iter().enumerate()
    {
        for damage in ["a changed byte", "cut short", "missing"] {
            let run = folder.path().join(format!("{number}-{damage}"));
            copy_folder(&whole, &run);
            let path = run.join(file);
            let mut content = fs::read(&path).unwrap();
            match damage {
                "a changed byte" => {
                    let middle = content.len() / 2;
                    content[middle] ^= 1;
                    fs::write(&path, content).unwrap();
                }
                "cut short" => fs::write(&path, &content[..content.len() - 9]).unwrap(),
                // Without state.json there is no state: the stage begins anew, as the remedy says.
                _ if number == 0 => continue,
                _ => fs::remove_file(&path).unwrap(),
            }
            let remedy = format!("remove {} and go on with --resume", run.join("joint/state.json").display());
            refuses(resume(&run), &[path.to_str().unwrap(), &remedy]);
            if damage == "cut short" {
                fs::remove_file(run.join("joint/state.json")).unwrap();
                let ended = run_to_end(resume(&run));
                assert_eq!(ended.code, Some(0), "{}", ended.errors);
                assert_eq!(result(&run)["finished"], true);
            }
        }
    }
}

#[test]
fn a_training_that_diverges_skips_updates_keeps_their_batches_and_ends_with_a_result() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    // Each update multiplies every weight by about -1e12: after a few of them they are infinite.
    let sgd = r#"optimizer={kind="sgd",learning_rate=1e6,weight_decay=1e6,clip=0.0}"#;
    let settings = [sgd, r#"cascade.strategy="greedy""#, "training.max_epochs=9", "training.patience=2"];
    let ended = run_to_end(train(&run, &settings));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert!(ended.errors.contains("update skipped: the gradient of "), "{}", ended.errors);

    let log = log(&run);
    let skipped: u64 = log.iter().map(|record| record["skipped_updates"].as_u64().unwrap()).sum();
    assert!(skipped > 0);
    assert!(log.iter().all(|record| record["valid_loss"] == "NaN" && record["valid_cer"] == "NaN"), "{log:?}");
    // Nothing got better, so patience ran out after the first epoch.
    assert_eq!(log.len(), 3);
    let kept: Vec<Value> = fs::read_to_string(run.join("skipped.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(kept.len() as u64, skipped);
    let known = ids("train");
    for batch in &kept {
        assert!(batch["parameter"].as_str().is_some_and(|name| name.contains('.')), "{batch}");
        let utterances = batch["utterances"].as_array().unwrap();
        assert!(!utterances.is_empty());
        for id in utterances {
            assert!(known.iter().any(|known| id == known.as_str()), "{id}");
            assert!(ended.errors.contains(id.as_str().unwrap()));
        }
    }

    let result = result(&run);
    assert_eq!((&result["finished"], &result["best"]), (&Value::Bool(true), &Value::Null));
    assert_eq!(result["stages"].as_array().unwrap().len(), 1, "nothing is built on a result that is not finite");
    assert!(run.join("report.html").is_file());
    // Such weights decode nothing, and say so.
    refuses(headfirst(["evaluate".as_ref(), run.join("joint").as_os_str()]), &["not finite", "log.jsonl"]);
    refuses(headfirst(["evaluate".as_ref(), run.as_os_str()]), &["no stage of this run", "joint"]);
}
