//! Bad input of every kind, given to the program as a user would: exit code 1 (2 for wrong usage), no panic, and a text that names
//! the file, line, utterance or key and what to do. What only `data-tools` reads is tested beside it.

use crate::corpus::{SAMPLE_RATE, copy_folder, corpus, lines, train, trained};
use crate::program::{Ended, end, headfirst, log, result, run_to_end, wait_until};
use headfirst::audio::synthesis::write_wav;
use headfirst::data::{ArkWriter, FeatureArchive};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The command fails with exit code 1, and its errors have all of `parts`.
fn refuses(command: Command, parts: &[&str]) -> Ended {
    let shown = format!("{command:?}");
    let ended = run_to_end(command);
    assert_eq!(ended.code, Some(1), "{shown}: {}", ended.errors);
    assert!(ended.output.is_empty(), "{shown}: {}", ended.output);
    assert!(ended.errors.contains("error: "), "{shown}: {}", ended.errors);
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

/// A training whose set `key` (`train`, `valid`) is `folder` is refused.
fn refuses_data(key: &str, folder: &Path, parts: &[&str]) {
    refuses_to_train(&[&format!("data.{key}={:?}", folder.to_str().unwrap())], parts);
}

fn transcribe(audio: &Path, options: &[&str]) -> Command {
    let mut command = headfirst(["transcribe".as_ref(), trained().as_os_str(), audio.as_os_str()]);
    command.args(options);
    command
}

/// A copy of the set `name`, with features, to be spoilt.
fn copy_of(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&corpus().join(name), folder.path());
    folder
}

/// A copy of the set `train` that has recordings and no features.
fn with_audio() -> TempDir {
    let folder = copy_of("train");
    let index: String = ids("train").iter().map(|id| format!("{id} audio/{id}.wav\n")).collect();
    fs::write(folder.path().join("wav.scp"), index).unwrap();
    fs::remove_file(folder.path().join("feats.scp")).unwrap();
    folder
}

fn ids(name: &str) -> Vec<String> {
    lines(&format!("{name}/text")).iter().map(|line| line.split(' ').next().unwrap().to_string()).collect()
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let mut lines: Vec<String> = fs::read_to_string(path).unwrap().lines().map(String::from).collect();
    change(&mut lines);
    fs::write(path, lines.join("\n") + "\n").unwrap();
}

/// One spoilt recording in a data folder, and given to `transcribe`: `content` of it, and what both errors say.
fn refuses_audio(content: &[u8], parts: &[&str]) {
    let folder = with_audio();
    let audio = folder.path().join("audio").join(format!("{}.wav", ids("train")[3]));
    fs::write(&audio, content).unwrap();
    let name = audio.to_str().unwrap();
    let parts: Vec<&str> = parts.iter().copied().chain([name]).collect();
    refuses_data("train", folder.path(), &parts);
    refuses(transcribe(&audio, &[]), &parts);
}

fn good_audio() -> (PathBuf, Vec<u8>) {
    let path = corpus().join("train/audio").join(format!("{}.wav", ids("train")[3]));
    let content = fs::read(&path).unwrap();
    (path, content)
}

#[test]
fn recordings_that_cannot_be_read_are_named() {
    let (_, content) = good_audio();
    refuses_audio(&content[..content.len() / 2], &["truncated", "Copy or download it again"]);
    refuses_audio(&content[..20], &["no samples", "Copy or download it again"]);
    refuses_audio(b"", &["the file is empty", "leave the utterance out"]);
    refuses_audio(b"OggS\0 of another kind", &["no WAV, FLAC or NIST SPHERE file", "Convert it"]);
    // Says that it has no channel.
    let mut wrong_header = content.clone();
    wrong_header[22..24].fill(0);
    refuses_audio(&wrong_header, &["onvert it"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    write_wav(&path, SAMPLE_RATE, &[]).unwrap();
    refuses_audio(&fs::read(&path).unwrap(), &["length of zero", "Leave the utterance out"]);
    // A window has 25 ms, 200 samples.
    write_wav(&path, SAMPLE_RATE, &[1; 199]).unwrap();
    refuses_audio(&fs::read(&path).unwrap(), &["199 samples", "shorter than one window", "Leave the utterance out"]);
}

#[test]
fn a_missing_recording_is_named_with_its_line() {
    let folder = with_audio();
    let id = &ids("train")[1];
    fs::remove_file(folder.path().join(format!("audio/{id}.wav"))).unwrap();
    refuses_data("train", folder.path(), &["wav.scp:2", id, &format!("no file audio/{id}.wav"), "Correct the path"]);
    let absent = folder.path().join("absent.wav");
    refuses(transcribe(&absent, &[]), &["absent.wav", "cannot be read", "Check the path"]);
}

#[test]
fn a_recording_that_was_made_otherwise_is_transcribed_or_refused_with_the_option_that_helps() {
    let (mono, content) = good_audio();
    let ended = run_to_end(transcribe(&mono, &[]));
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""));
    let samples: Vec<i16> = content[44..].chunks(2).map(|bytes| i16::from_le_bytes([bytes[0], bytes[1]])).collect();
    let folder = tempfile::tempdir().unwrap();

    // Silence on the left, speech on the right.
    let stereo = folder.path().join("stereo.wav");
    let interleaved: Vec<i16> = samples.iter().flat_map(|&sample| [0, sample]).collect();
    write_wav(&stereo, SAMPLE_RATE, &interleaved).unwrap();
    let mut bytes = fs::read(&stereo).unwrap();
    (bytes[22], bytes[32]) = (2, 4);
    bytes[28..32].copy_from_slice(&(4 * SAMPLE_RATE).to_le_bytes());
    fs::write(&stereo, bytes).unwrap();
    refuses(transcribe(&stereo, &[]), &["stereo.wav", "2 channels", "--channel N, from 0 to 1"]);
    refuses(transcribe(&stereo, &["--channel", "2"]), &["stereo.wav", "--channel a number from 0 to 1"]);
    assert_eq!(run_to_end(transcribe(&stereo, &["--channel", "1"])).output, ended.output);

    // Twice the rate, every sample between two others.
    let fast = folder.path().join("fast.wav");
    let between = samples.windows(2).flat_map(|pair| [pair[0], ((i32::from(pair[0]) + i32::from(pair[1])) / 2) as i16]);
    write_wav(&fast, 2 * SAMPLE_RATE, &between.collect::<Vec<_>>()).unwrap();
    let resampled = run_to_end(transcribe(&fast, &[]));
    assert_eq!((resampled.code, resampled.errors.as_str()), (Some(0), ""));
    assert_eq!(resampled.output.lines().count(), 1);

    // One bad file does not keep the others from being transcribed.
    let mut both = transcribe(&stereo, &[]);
    both.arg(&mono);
    let both = run_to_end(both);
    assert_eq!(both.code, Some(1));
    assert!(both.output.contains(mono.to_str().unwrap()) && both.errors.contains("--channel"), "{}", both.errors);
}

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
        let setting = format!("data.{set}={:?}", folder.path().to_str().unwrap());
        let run = folder.path().join("run");
        let parts = [bad.as_str(), "NaN in frame 7, column 4", "Compute them again", folder.path().to_str().unwrap()];
        refuses(train(&run, &[&setting]), &parts);
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
fn a_recipe_with_a_misspelt_key_or_an_impossible_value_is_refused_by_key_and_line() {
    refuses_to_train(&["optimizer.lerning_rate=1"], &["optimizer.lerning_rate", "optimizer.learning_rate"]);
    refuses_to_train(&["model.dropout=1.5"], &["model.dropout", "1.5"]);
    refuses_to_train(&["model.layers=0"], &["model.layers"]);
    refuses_to_train(&["model.subsample=[2]"], &["model.subsample"]);
    refuses_to_train(&["optimizer.kind=\"sgdd\""], &["optimizer.kind", "sgd"]);
    refuses_to_train(&["optimizer.learning_rate=1e30"], &["optimizer.learning_rate", "1e30"]);
    refuses_to_train(&["training.precision=\"bf16\""], &["training.precision", "f32"]);

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
    refuses(evaluate(&spoilt(4, "tokens.txt", b"A\nB\n")), &["tokens.txt:1", "<blank>"]);
    refuses(evaluate(&spoilt(5, "cmvn.safetensors", b"x")), &["cmvn.safetensors"]);
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
fn a_full_disk_is_an_error_that_says_what_to_do() {
    if !Path::new("/dev/full").exists() {
        eprintln!("skipped: this system has no /dev/full");
        return;
    }
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for arguments in [&["doctor"][..], &["doctor", "--json"], &["--generate", "man"]] {
        let mut command = headfirst(arguments);
        command.stdout(full());
        refuses(command, &["standard output: cannot be written", "Free some space"]);
    }
    let mut report = headfirst(["report".as_ref(), trained().as_os_str()]);
    report.args(["--out", "/dev/full"]);
    refuses(report, &["/dev/full: cannot be written", "Free some space"]);
    // A disk of 60 KiB, where the user may make one: the weights with their state take more.
    let folder = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size=60k tmpfs {}", folder.path().display());
    let in_namespace = |script: String| {
        let mut command = Command::new("unshare");
        command
            .args(["-rm", "sh", "-c", &script])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        command
    };
    if !in_namespace(mount.clone()).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped in part: this user cannot mount a small disk");
        return;
    }
    let training = train(&folder.path().join("run"), &[]);
    let words: Vec<String> = std::iter::once(training.get_program())
        .chain(training.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let words = words.join(" ");
    refuses(in_namespace(format!("{mount} && {words}")), &["cannot be written", "Free some space"]);
    let read_only = format!("{mount} && mount -o remount,ro {} && {words}", folder.path().display());
    refuses(in_namespace(read_only), &["cannot be written", "mounted for reading only"]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    refuses(train(&file.join("run"), &[]), &["file/run: cannot be written", "A file stands where a folder is needed"]);
    refuses(train(&file, &[]), &["file", "A file stands where a folder is needed"]);
    let mut report = headfirst(["report".as_ref(), trained().as_os_str()]);
    report.arg("--out").arg(folder.path().join("absent/report.html"));
    refuses(report, &["absent/report.html: cannot be written", "Create its folder first"]);

    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut training = train(&locked.join("run"), &[]);
    // Root may write anywhere: it becomes nobody, if nobody may read what the test needs.
    // SAFETY: a system call that only asks.
    if unsafe { libc::geteuid() } == 0 {
        const NOBODY: u32 = 65534;
        let recipe = corpus().join("recipe.toml");
        let mut probe = Command::new("cat");
        probe.arg(recipe).arg(env!("CARGO_BIN_EXE_headfirst")).stdout(std::process::Stdio::null()).uid(NOBODY);
        if !probe.status().is_ok_and(|status| status.success()) {
            eprintln!("skipped in part: root may write in any folder, and nobody may not read this one");
            return;
        }
        training.uid(NOBODY);
    }
    refuses(training, &["locked/run: cannot be written", "Check who may read and write there"]);
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
    let setting = format!("data.train={:?}", folder.path().to_str().unwrap());
    let ended = run_to_end(train(&run, &[&setting, "training.max_epochs=2"]));
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
