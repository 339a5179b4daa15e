//! What a run promises whatever happens to its process: nothing is lost but the time since the last state, a resumed run ends with the
//! bits of one that never stopped, and no run is overwritten.

use crate::corpus::{copy_folder, corpus, fresh_folder, lines, train, trained};
use crate::program::{end, headfirst, limit_file_size, log, result, run_to_end, wait_until};
use crate::tiny::{Tiny, write_folder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Duration;

const GREEDY: &str = r#"cascade.strategy="greedy""#;
/// A state after every batch, so that a kill finds one inside an epoch too.
const SAVE_OFTEN: &str = "training.save_minutes=1e-9";
const FOREVER: &str = "training.max_epochs=1000000";

/// Adadelta keeps two buffers and a decaying epsilon, Adam two buffers and a step count, SGD a momentum.
const ADADELTA: &[&str] = &[GREEDY, r#"optimizer={kind="adadelta",epsilon_decay=0.5}"#];
const ADAM: &[&str] = &[GREEDY];
const MOMENTUM: &[&str] = &[GREEDY, r#"optimizer={kind="sgd",learning_rate=0.01,momentum=0.9}"#];

/// The greedy cascade of `settings`, trained without a stop.
fn uninterrupted(name: &str, settings: &[&str]) -> PathBuf {
    let run = fresh_folder(name);
    let ended = run_to_end(train(&run, settings));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    run
}

fn uninterrupted_adam() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| uninterrupted("uninterrupted", ADAM))
}

/// Whatever a run came to, but for times and memory: the bytes of every stage's weights and transcripts, the log, the result.
fn outcome(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut outcome = BTreeMap::new();
    for stage in stages(run) {
        for name in ["best.safetensors", "valid.hyp.trn", "test.hyp.trn"] {
            outcome.insert(format!("{stage}/{name}"), fs::read(run.join(&stage).join(name)).unwrap());
        }
    }
    let lines: Vec<String> = log(run).iter().map(Value::to_string).collect();
    outcome.insert("log.jsonl".into(), lines.join("\n").into_bytes());
    let mut result = result(run);
    for stage in result["stages"].as_array_mut().unwrap() {
        let stage = stage.as_object_mut().unwrap();
        assert!(stage.remove("seconds").is_some());
        let memory = stage["memory"].as_object_mut().unwrap();
        let bytes = |name: &str| memory[name].as_u64().unwrap();
        let together =
            ["parameters", "gradients", "optimizer_state", "kept_activations"].map(bytes).iter().sum::<u64>();
        // Not forgotten by a stage that was resumed behind its last batch.
        assert!(bytes("peak") >= together, "{memory:?}");
        // These depend on the threads, and on the system.
        assert!(memory.remove("peak").is_some() && memory.remove("process_peak").is_some());
    }
    outcome.insert("result.json".into(), result.to_string().into_bytes());
    outcome
}

fn stages(run: &Path) -> Vec<String> {
    let stages = result(run)["stages"].as_array().unwrap().clone();
    stages.iter().map(|stage| stage["stage"].as_str().unwrap().to_string()).collect()
}

fn assert_same_outcome(run: &Path, reference: &Path) {
    let (found, expected) = (outcome(run), outcome(reference));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, expected) in &expected {
        let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
        assert!(found[name] == *expected, "{name} differs:\n{}\n{}", text(&found[name]), text(expected));
    }
}

fn send(child: &Child, signal: i32) {
    // SAFETY: a plain system call on a process of ours that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// The batches that the newest saved state of `run` has trained of its epoch; `None` where no stage has a state.
fn saved_batch(run: &Path) -> Option<u64> {
    let stages = fs::read_dir(run).into_iter().flatten();
    let states = stages.filter_map(|entry| fs::read(entry.unwrap().path().join("state.json")).ok());
    states.map(|state| serde_json::from_slice::<Value>(&state).unwrap()["state"]["batch"].as_u64().unwrap()).max()
}

fn resumed(mut command: Command, resume: bool) -> Command {
    if resume {
        command.arg("--resume");
    }
    command
}

/// Trains `settings`, stopped by SIGTERM after each number of logged epochs in `stops`, every other time inside the next epoch, and holds it against
/// `reference`.
fn stopped_and_resumed(settings: &[&str], stops: &[usize], reference: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let settings = &[settings, &[SAVE_OFTEN]].concat();
    let inside = || saved_batch(&run).is_some_and(|batch| batch > 0);
    let mut inside_an_epoch = 0;
    for (number, &epochs) in stops.iter().enumerate() {
        // One epoch more than before at least: then the process is sure to be listening.
        let enough = if number == 0 { epochs } else { epochs.max(log(&run).len() + 1) };
        let mut child = resumed(train(&run, settings), number > 0).spawn().unwrap();
        let process = child.id() as i32;
        // SAFETY: a plain system call on a process of ours that has not been waited for.
        let signal = |signal| assert_eq!(unsafe { libc::kill(process, signal) }, 0);
        let there = || {
            if number % 2 == 0 {
                return log(&run).len() >= enough && run.join("joint").exists();
            }
            // Held behind the first batch, so that it is still there when it is told to stop.
            signal(libc::SIGSTOP);
            let there = log(&run).len() >= enough && saved_batch(&run) == Some(1);
            if !there {
                signal(libc::SIGCONT);
            }
            there
        };
        if wait_until(&mut child, there) {
            signal(libc::SIGTERM);
            signal(libc::SIGCONT);
        }
        let ended = end(child);
        if ended.code == Some(0) {
            break;
        }
        assert_eq!(ended.code, Some(143), "{}", ended.errors);
        inside_an_epoch += usize::from(inside());
    }
    assert!(inside_an_epoch > 0, "no stop fell inside an epoch, so nothing was tested");
    let ended = run_to_end(resumed(train(&run, settings), true));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert_same_outcome(&run, reference);
}

#[test]
fn resume_gives_the_same_bits() {
    let joint_and_cascade = stages(uninterrupted_adam());
    assert!(joint_and_cascade.len() >= 2, "{joint_and_cascade:?} is no cascade");
    // Three epochs a stage: in the first, between two, and from one stage to the next.
    stopped_and_resumed(ADAM, &[0, 1, 2, 3, 5, 6], uninterrupted_adam());
    stopped_and_resumed(ADADELTA, &[1, 3, 5], &uninterrupted("uninterrupted-adadelta", ADADELTA));
    stopped_and_resumed(MOMENTUM, &[2, 4], &uninterrupted("uninterrupted-momentum", MOMENTUM));
}

/// So slow that the second stage is no better than the first: what is tried then is in no outline of the search.
const CUT_SEARCH: &[&str] = &[r#"cascade.strategy="cut-search""#, r#"optimizer={kind="sgd",learning_rate=1e-9}"#];

#[test]
fn a_cut_search_that_was_stopped_in_a_retry_keeps_its_epochs() {
    let reference = uninterrupted("uninterrupted-cut-search", CUT_SEARCH);
    assert_eq!(stages(&reference), ["joint", "1-2", "2-1"]);
    // Three epochs a stage: in the second and in the third of the retry.
    stopped_and_resumed(CUT_SEARCH, &[7, 8], &reference);
}

/// Noam's schedule, dropout, and two batches an update: a stop between them goes on from the first.
const TRANSFORMER: &[&str] = &[
    r#"model={kind="transformer",encoder_layers=1,decoder_layers=1,units=8,heads=2,feedforward=16,attention_dropout=0.1}"#,
    r#"optimizer={kind="adam",learning_rate=1.0,warmup=10}"#,
    r#"cascade={strategy="fixed",compositions=[[1,3]]}"#,
    "training.accumulate=2",
    "batch.utterances=1",
];

#[test]
fn a_resumed_transformer_has_the_same_bits_though_gradients_waited() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let settings = [TRANSFORMER, &[SAVE_OFTEN]].concat();
    let mut inside_an_epoch = 0;
    for stop in 0..5 {
        let enough = if stop == 0 { 0 } else { log(&run).len() + 1 };
        let mut child = resumed(train(&run, &settings), stop > 0).spawn().unwrap();
        let inside = || saved_batch(&run).is_some_and(|batch| batch > 0);
        if wait_until(&mut child, || log(&run).len() >= enough && inside()) {
            send(&child, libc::SIGTERM);
        }
        let ended = end(child);
        if ended.code == Some(0) {
            break;
        }
        assert_eq!(ended.code, Some(143), "{}", ended.errors);
        // After the last update: an even number of batches.
        let saved = saved_batch(&run);
        assert!(saved.is_none_or(|batch| batch % 2 == 0), "{saved:?}");
        inside_an_epoch += usize::from(saved.is_some_and(|batch| batch > 0));
    }
    assert!(inside_an_epoch > 0, "no stop fell inside an epoch, so nothing was tested");
    let ended = run_to_end(resumed(train(&run, &settings), true));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert_same_outcome(&run, &uninterrupted("uninterrupted-transformer", TRANSFORMER));
}

#[test]
fn scheduled_sampling_resumes_to_the_same_bits() {
    let settings = [
        r#"model={kind="ctc-attention",layers=1,units=8,projection=8,subsample=[4],attention=6,attention_channels=2,attention_reach=4,decoder_units=8,scheduled_sampling=0.5}"#,
        r#"cascade={strategy="fixed",compositions=[[1,2]]}"#,
    ];
    let reference = uninterrupted("uninterrupted-sampling", &settings);
    stopped_and_resumed(&settings, &[0, 1, 3], &reference);
    // It does something.
    let without = settings[0].replace("scheduled_sampling=0.5", "scheduled_sampling=0.0");
    let without = uninterrupted("uninterrupted-without-sampling", &[&without, settings[1]]);
    assert_ne!(outcome(&without)["joint/best.safetensors"], outcome(&reference)["joint/best.safetensors"]);
}

#[test]
fn a_run_killed_at_any_instant_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let settings = [ADAM, &[SAVE_OFTEN]].concat();
    let mut inside_an_epoch = 0;
    for kill in 0..12_u64 {
        let is_run = run.join("recipe.toml").exists();
        let mut child = resumed(train(&run, &settings), is_run).spawn().unwrap();
        let (epochs, process) = (log(&run).len(), child.id() as i32);
        // SAFETY: a plain system call on a process of ours that has not been waited for.
        let signal = |signal| assert_eq!(unsafe { libc::kill(process, signal) }, 0);
        let inside = || saved_batch(&run).is_some_and(|batch| batch > 0);
        // Anywhere from the start files to a few steps into the next epoch, and from the last epoch of a stage into the next stage.
        let far_enough = || match kill % 4 {
            0 => run.join("tokens.txt").exists(),
            1 => run.join("joint").exists(),
            2 => log(&run).len() > epochs && log(&run).len().is_multiple_of(3),
            // Held, so that it is still there when the kill comes.
            _ => {
                signal(libc::SIGSTOP);
                let there = log(&run).len() > epochs && inside();
                if !there {
                    signal(libc::SIGCONT);
                }
                there
            }
        };
        if !wait_until(&mut child, far_enough) {
            assert_eq!(end(child).code, Some(0));
            break;
        }
        std::thread::sleep(Duration::from_micros(kill * 7919 % 30_000));
        // It may just have ended, and is then waited for all the same.
        let _ = child.kill();
        end(child);
        inside_an_epoch += usize::from(inside());
    }
    assert!(inside_an_epoch > 0, "no kill left a state inside an epoch, so nothing was tested");
    let ended = run_to_end(resumed(train(&run, &settings), true));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let left_over =
        fs::read_dir(&run).unwrap().any(|entry| entry.unwrap().file_name().to_string_lossy().ends_with(".tmp"));
    assert!(!left_over, "temporaries of killed processes are still there");
    // How often a state is saved is part of no result.
    assert_same_outcome(&run, uninterrupted_adam());
}

#[test]
fn a_full_disk_costs_nothing_but_the_time_since_the_last_state() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let weights = fs::metadata(uninterrupted_adam().join("joint/best.safetensors")).unwrap().len();
    let mut limited = train(&run, ADAM);
    // Stands for a disk that is full: no file can grow to the size of the weights.
    limit_file_size(&mut limited, weights - 1);
    let ended = run_to_end(limited);
    assert_eq!(ended.code, Some(1), "{}", ended.errors);
    assert!(ended.errors.contains("cannot be written") && ended.errors.contains("ulimit -f"), "{}", ended.errors);
    let ended = run_to_end(resumed(train(&run, ADAM), true));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert_same_outcome(&run, uninterrupted_adam());
}

#[test]
fn a_signal_is_heard_during_validation_too_and_costs_nothing() {
    let tiny = Tiny::new();
    // Three batches to train on, many to validate.
    write_folder(&tiny.path("long"), 2000, "abcd", 2);
    let start = |run: &str, resume: bool| {
        let mut command = headfirst(["--threads", "1", "train", "recipe.toml", "--quiet", "--out", run]);
        command.args(["--set", SAVE_OFTEN, "--set", r#"data.valid="long""#]).current_dir(tiny.path(""));
        resumed(command, resume)
    };
    let run = tiny.path("stopped");
    let mut child = start("stopped", false).spawn().unwrap();
    let process = child.id() as i32;
    // SAFETY: a plain system call on a process of ours that has not been waited for.
    let signal = |signal| assert_eq!(unsafe { libc::kill(process, signal) }, 0);
    // Held while it is looked at.
    let validates = || {
        signal(libc::SIGSTOP);
        let validates = saved_batch(&run) == Some(3) && log(&run).is_empty();
        if !validates {
            signal(libc::SIGCONT);
        }
        validates
    };
    assert!(wait_until(&mut child, validates), "the validation was over before it was seen, so nothing was tested");
    signal(libc::SIGTERM);
    signal(libc::SIGCONT);
    let ended = end(child);
    assert_eq!(ended.code, Some(143), "{}", ended.errors);
    assert!(log(&run).is_empty(), "it waited for the end of the validation");
    for (name, resume) in [("stopped", true), ("whole", false)] {
        let ended = run_to_end(start(name, resume));
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
    }
    assert_same_outcome(&run, &tiny.path("whole"));
}

#[test]
fn a_signal_saves_the_state_and_says_how_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let signals = [
        (libc::SIGTERM, 143, "SIGTERM"),
        (libc::SIGINT, 130, "Ctrl-C"),
        (libc::SIGUSR1, 128 + libc::SIGUSR1, "SIGUSR1"),
    ];
    for (number, (signal, code, name)) in signals.into_iter().enumerate() {
        let before = log(&run).len();
        let mut child = resumed(train(&run, &[FOREVER]), number > 0).spawn().unwrap();
        assert!(wait_until(&mut child, || log(&run).len() > before));
        send(&child, signal);
        let ended = end(child);
        assert_eq!(ended.code, Some(code), "{}", ended.errors);
        assert!(ended.output.is_empty());
        let go_on = format!("--out {} --resume", run.display());
        assert!(
            ended.errors.contains(&format!("stopped by {name}")) && ended.errors.contains(&go_on),
            "{}",
            ended.errors
        );
        assert!(saved_batch(&run).is_some(), "no state was saved");
    }
}

#[test]
fn a_run_is_never_overwritten_nor_continued_with_another_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    copy_folder(trained(), &run);
    let before = outcome(&run);
    let refused = |command: Command, parts: &[&str]| {
        let ended = run_to_end(command);
        assert_eq!(ended.code, Some(1), "{}", ended.errors);
        parts.iter().for_each(|part| assert!(ended.errors.contains(part), "{part} is not in: {}", ended.errors));
    };
    let own = ["training.max_epochs=2"];
    refused(train(&run, &own), &["holds a run already", "--resume", "--out"]);
    refused(
        resumed(train(&run, &["training.max_epochs=2", "model.units=20", "optimizer.learning_rate=0.5"]), true),
        &["model.units (run: 16, now: 20)", "optimizer.learning_rate", "--out"],
    );
    refused(resumed(train(&folder.path().join("absent"), &own), true), &["absent", "no such run", "without --resume"]);
    let occupied = folder.path().join("occupied");
    fs::create_dir(&occupied).unwrap();
    fs::write(occupied.join("thesis.tex"), "years of work").unwrap();
    refused(train(&occupied, &own), &["thesis.tex", "--out"]);
    assert_eq!(fs::read(occupied.join("thesis.tex")).unwrap(), b"years of work");
    // A finished run that is resumed is finished, and how long to train may change.
    assert_eq!(run_to_end(resumed(train(&run, &own), true)).code, Some(0));
    assert!(outcome(&run) == before, "a refused or finished run has changed");
    // That it changes nothing about what is finished is said.
    let longer = run_to_end(resumed(train(&run, &["training.max_epochs=200"]), true));
    assert_eq!(longer.code, Some(0), "{}", longer.errors);
    assert!(longer.errors.contains("finished stages keep their epochs: joint (2)"), "{}", longer.errors);
    assert!(outcome(&run) == before, "a finished stage has changed");
}

#[test]
fn a_classifier_that_changed_while_the_stage_below_it_stood_still_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (source, run) = (folder.path().join("source"), folder.path().join("run"));
    copy_folder(trained(), &source);
    // As in a run that is still in that stage.
    fs::remove_file(source.join("result.json")).unwrap();
    let from = format!("cascade={{strategy=\"greedy\",classifier_from={:?}}}", source.join("joint").to_str().unwrap());
    let mut child = train(&run, &[&from, FOREVER]).spawn().unwrap();
    assert!(wait_until(&mut child, || !log(&run).is_empty()));
    send(&child, libc::SIGTERM);
    assert_eq!(end(child).code, Some(143));

    let best = source.join("joint/best.safetensors");
    let mut other = fs::read(&best).unwrap();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&best, other).unwrap();
    let epochs = format!("training.max_epochs={}", log(&run).len() + 1);
    let resume = || run_to_end(resumed(train(&run, &[&from, &epochs]), true));
    let refused = resume();
    assert_eq!(refused.code, Some(1));
    let state = run.join("1-2/state.json");
    for part in [best.to_str().unwrap(), "the classifier that the stage 1-2 began with", state.to_str().unwrap()] {
        assert!(refused.errors.contains(part), "{part} is not in: {}", refused.errors);
    }
    // The remedy works.
    fs::remove_file(state).unwrap();
    let ended = resume();
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
}

#[test]
fn two_processes_cannot_train_in_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut first = train(&run, &[FOREVER]).spawn().unwrap();
    assert!(wait_until(&mut first, || !log(&run).is_empty()));
    let second = run_to_end(resumed(train(&run, &[FOREVER]), true));
    assert_eq!(second.code, Some(1));
    assert!(
        second.errors.contains("another process is training") && second.errors.contains("--out"),
        "{}",
        second.errors
    );
    // Reading is no harm.
    assert_eq!(run_to_end(headfirst(["report".as_ref(), run.as_os_str()])).code, Some(0));
    send(&first, libc::SIGTERM);
    assert_eq!(end(first).code, Some(143));
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_one_thread_and_on_two() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut command = headfirst(["train"]);
    command.arg(corpus().join("recipe.toml")).arg("--out").arg(&run).args(["--threads", "2", "--set", GREEDY]);
    let ended = run_to_end(command);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert_same_outcome(&run, uninterrupted_adam());
    let other = folder.path().join("other");
    assert_eq!(run_to_end(train(&other, &["seed=2", "training.max_epochs=1"])).code, Some(0));
    let weights = |run: &Path| fs::read(run.join("joint/best.safetensors")).unwrap();
    assert!(weights(&other) != weights(&run), "the seed changes nothing");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let run = trained().to_str().unwrap();
    let commands: [&[&str]; 8] = [
        &["--help"],
        &["train", "--help"],
        &["--generate", "man"],
        &["--generate", "bash"],
        &["doctor"],
        &["doctor", "--json"],
        &["evaluate", run],
        &["evaluate", run, "--json"],
    ];
    for arguments in commands {
        // Nobody reads from the very start, whatever is written and when.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = headfirst(arguments);
        command.stdout(writer);
        let ended = run_to_end(command);
        assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{arguments:?}");
    }
    // Nor does a training end because nobody listens to it.
    let folder = tempfile::tempdir().unwrap();
    let mut command = train(&folder.path().join("run"), &["training.max_epochs=1"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer.try_clone().unwrap()).stderr(writer);
    assert_eq!(run_to_end(command).code, Some(0));
}

#[test]
fn json_is_one_object_and_nothing_else() {
    let run = trained().to_str().unwrap();
    let first = lines("valid/text")[0].split(' ').next().unwrap().to_string();
    let audio = corpus().join("valid/audio").join(first + ".wav");
    let commands: [(&[&str], &str); 4] = [
        (&["doctor", "--json"], "auto"),
        (&["evaluate", run, "--json"], "cer"),
        (&["evaluate", run, "--json", "--beam", "3"], "loss"),
        (&["transcribe", run, audio.to_str().unwrap(), "--json"], "transcripts"),
    ];
    for (arguments, key) in commands {
        let ended = run_to_end(headfirst(arguments));
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        let object: Value = serde_json::from_str(&ended.output).expect("standard output is JSON and nothing else");
        assert!(object.as_object().is_some_and(|object| object.contains_key(key)), "{arguments:?}: {object}");
    }
}

#[test]
fn no_color_is_honoured() {
    let help = |no_color: bool| {
        let mut command = headfirst(["train", "--help"]);
        command.env("CLICOLOR_FORCE", "1");
        if no_color {
            command.env("NO_COLOR", "1");
        }
        run_to_end(command).output
    };
    assert!(help(false).contains('\x1b'), "without NO_COLOR there is colour to leave out");
    assert!(!help(true).contains('\x1b'));
}
