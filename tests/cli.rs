//! The command line keeps its contract: help, exit codes, JSON, and folders that are never overwritten. Each test starts the program.

use crate::corpus::{recordings_of, setting, train, trained};
use crate::program::{Ended, headfirst, run_to_end};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Standard output of a run that must succeed.
fn succeed(arguments: &[&str]) -> String {
    let ended = run_to_end(headfirst(arguments));
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.errors);
    ended.output
}

/// A run that must fail and print nothing but its error.
fn fail(arguments: &[&str]) -> Ended {
    let ended = run_to_end(headfirst(arguments));
    assert!(ended.output.is_empty(), "{arguments:?} prints {}", ended.output);
    ended
}

/// Every command with the options of its own.
const COMMANDS: [(&str, &[&str]); 9] = [
    ("train", &["--out", "--set", "--resume"]),
    ("evaluate", &["--recipe", "--weights", "--data", "--json", "--beam", "--n-best", "--n-best-json", "--ctc-weight"]),
    ("transcribe", &["--channel", "--json", "--beam", "--penalty", "--lm", "--lm-weight", "--max-length-ratio"]),
    ("import", &["--recipe", "--out", "--data", "--json"]),
    ("plan", &["--set", "--json"]),
    ("report", &["--out"]),
    ("bench", &["--json", "--once", "--seconds", "--set", "--precision", "--compare", "--counts"]),
    ("doctor", &["--json"]),
    ("demo", &["--out"]),
];

#[test]
fn the_help_of_every_command_explains_it_and_each_of_its_options() {
    let overview = succeed(&["--help"]);
    for (command, own) in COMMANDS {
        assert!(overview.contains(&format!("\n  {command} ")), "{command} is not in the overview");
        for help in [succeed(&[command, "--help"]), succeed(&[command, "-h"])] {
            let (about, usage) = help.split_once("Usage: ").expect("a usage line");
            assert!(about.trim().len() > 20, "{command} is not explained: {about:?}");
            assert!(usage.starts_with(&format!("headfirst {command} ")), "{command}: {usage}");
            let options = explained_options(usage);
            for option in own.iter().chain(&["--device", "--threads", "--quiet", "--help"]) {
                assert!(options.contains(&option.to_string()), "{command}: {option} is not explained in\n{help}");
            }
        }
    }
}

/// The options that have an explanation, on their line or on the next.
fn explained_options(help: &str) -> Vec<String> {
    let mut lines = help.lines().peekable();
    let mut options = Vec::new();
    while let Some(line) = lines.next() {
        let text = line.trim_start();
        if !text.starts_with('-') {
            continue;
        }
        let Some(option) = text.split([' ', ',']).find(|word| word.starts_with("--")) else { continue };
        let beside = text.split_once("  ").is_some_and(|(_, explanation)| explanation.trim().len() > 8);
        let below = lines.peek().is_some_and(|next| next.trim().len() > 8 && !next.trim_start().starts_with('-'));
        if beside || below {
            options.push(option.to_string());
        }
    }
    options
}

#[test]
fn the_help_of_train_lists_the_keys_of_a_recipe() {
    let help = succeed(&["train", "--help"]);
    for key in ["data", "max_epochs", "subsample", "strategy", "classifier_from"] {
        assert!(help.contains(key), "{key} is missing");
    }
}

#[test]
fn completions_and_the_man_page_know_every_command() {
    for shell in ["bash", "zsh", "fish", "man"] {
        let text = succeed(&["--generate", shell]);
        for (command, _) in COMMANDS {
            assert!(text.contains(command), "{shell}: {command} is missing");
        }
    }
}

#[test]
fn doctor_says_which_device_auto_takes_and_why() {
    let findings: Value = serde_json::from_str(&succeed(&["doctor", "--json", "--threads", "3"])).expect("one object");
    assert_eq!(findings["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(findings["cpu"]["threads"], 3);
    let auto = &findings["auto"];
    assert!(["cpu", "cuda:0"].contains(&auto["device"].as_str().expect("a name")), "{auto}");
    assert!(auto["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{auto}");
    assert!(succeed(&["doctor"]).contains("--device auto"));
}

#[test]
fn bench_names_its_device_and_has_a_median_for_every_row() {
    let ended = run_to_end(headfirst(["bench", "ctc/B32", "--seconds", "0", "--json"]));
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""));
    let bench: Value = serde_json::from_str(&ended.output).expect("one object");
    assert!(bench["device"].as_str().is_some_and(|device| !device.is_empty()), "{bench}");
    let rows = bench["rows"].as_array().expect("rows");
    assert_eq!(rows.iter().map(|row| row["name"].as_str().unwrap_or_default()).collect::<Vec<_>>(), ["ctc/B32-T400"]);
    assert!(rows[0]["median_ms"].as_f64().is_some_and(|median| median > 0.0), "{bench}");
}

#[test]
fn bench_lists_its_rows_as_lines_or_as_one_object() {
    let lines = succeed(&["bench", "ctc/", "--list"]);
    let listed: Value = serde_json::from_str(&succeed(&["bench", "ctc/", "--list", "--json"])).expect("one object");
    let rows = listed["rows"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert!(names.contains(&"ctc/B32-T400"), "{listed}");
    assert_eq!(names, lines.lines().collect::<Vec<_>>());
}

#[test]
fn bench_repeats_for_no_time_that_there_is_not() {
    for seconds in ["-1", "nan", "inf", "1e300"] {
        let Ended { code, errors, .. } = fail(&["bench", "ctc/B32", "--seconds", seconds]);
        assert!(code == Some(1) && errors.starts_with("error: --seconds: "), "{seconds}: {errors}");
    }
}

#[test]
fn a_quiet_report_is_written_and_prints_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("report.html");
    for quiet in [false, true] {
        let mut command = headfirst(["report".as_ref(), trained().as_os_str()]);
        command.arg("--out").arg(&out).args(quiet.then_some("--quiet"));
        let ended = run_to_end(command);
        assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""));
        assert_eq!(ended.output.is_empty(), quiet, "{}", ended.output);
        assert!(!read(&out).is_empty());
        std::fs::remove_file(&out).expect("a file");
    }
}

#[test]
fn bench_lays_an_earlier_result_beside_this_one() {
    let folder = tempfile::tempdir().unwrap();
    let earlier = folder.path().join("earlier.json");
    let old = r#"{"device": "cpu", "rows": [{"name": "add/33x8", "median_ms": 100.0}]}"#;
    std::fs::write(&earlier, old).unwrap();
    let arguments = ["bench", "add", "--set", "R=33,H=8", "--seconds", "0", "--device", "cpu", "--compare"];
    let mut compared = headfirst(arguments);
    compared.arg(&earlier);
    let text = run_to_end(compared).output;
    let line = text.lines().find(|line| line.starts_with("add/33x8")).expect("the row");
    assert!(line.contains("100 ms") && line.contains("-100.0 %"), "{text}");
    let mut compared = headfirst(arguments);
    compared.arg(&earlier).arg("--json");
    let bench: Value = serde_json::from_str(&run_to_end(compared).output).expect("one object");
    assert_eq!(bench["changes"][0]["before_ms"], 100.0);
    assert!(bench["rows"][0]["floor"]["share"].as_f64().is_some_and(|share| share > 0.0), "{bench}");
    std::fs::write(&earlier, "{}").unwrap();
    let mut compared = headfirst(arguments);
    let ended = run_to_end({
        compared.arg(&earlier);
        compared
    });
    assert_eq!(ended.code, Some(1));
    assert!(ended.errors.contains("earlier.json") && ended.errors.contains("bench --json"), "{}", ended.errors);
}

#[test]
fn bench_takes_no_arithmetic_that_the_device_does_not_have() {
    let Ended { code, errors, .. } = fail(&["bench", "add", "--device", "cpu", "--precision", "bf16"]);
    assert!(code == Some(1) && errors.contains("--precision") && errors.contains("f32 alone"), "{errors}");
}

#[test]
fn an_unknown_benchmark_is_an_error_that_lists_the_known_ones() {
    let Ended { code, errors, .. } = fail(&["bench", "cnn"]);
    assert_eq!(code, Some(1));
    assert!(errors.contains("\"cnn\"") && errors.contains("ctc/B32-T400"), "{errors}");
}

#[test]
fn wrong_usage_ends_with_2() {
    let wrong: [&[&str]; 11] = [
        &[],
        &["trian"],
        &["train"],
        &["train", "a.toml", "--outt", "x"],
        &["doctor", "--threads", "many"],
        &["doctor", "--jsn"],
        &["evaluate", "RUN", "--beam", "many"],
        &["transcribe", "RUN"],
        &["evaluate", "--recipe", "a.toml"],
        &["--generate", "tcsh"],
        &["--quiet"],
    ];
    for arguments in wrong {
        let Ended { code, errors, .. } = fail(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains("Usage") || errors.contains("--help"), "{arguments:?}: {errors}");
    }
}

#[test]
fn an_unknown_device_is_an_error_for_every_command() {
    for arguments in [&["doctor"][..], &["bench", "ctc"], &["report", "absent"], &["train", "absent.toml"], &["demo"]] {
        let Ended { code, errors, .. } = fail(&[arguments, &["--device", "gpu"]].concat());
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(
            errors.contains("device gpu") && errors.contains("--device auto, cpu, cuda"),
            "{arguments:?}: {errors}"
        );
    }
    assert_eq!(fail(&["doctor", "--threads", "0"]).code, Some(1));
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    for arguments in [&["train", "absent.toml"][..], &["evaluate", "absent"], &["transcribe", "absent", "a.wav"]] {
        let Ended { code, errors, .. } = fail(arguments);
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(errors.starts_with("error: ") && errors.contains("absent"), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_line_for_each_folder_says_that_features_of_its_recordings_were_computed_unless_it_should_be_quiet() {
    let folder = recordings_of("train");
    std::fs::remove_file(folder.path().join("features.toml")).expect("a file");
    let name = folder.path().display().to_string();
    for quiet in [false, true] {
        let run = folder.path().join(format!("run-{quiet}"));
        let mut command = train(&run, &[&setting("train", folder.path()), &setting("valid", folder.path())]);
        command.args(["--set", "training.max_epochs=1"]).args(quiet.then_some("--quiet"));
        let ended = run_to_end(command);
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        let lines = ended.errors.matches(&format!("{name}: features of 12 utterances in ")).count();
        assert_eq!(lines, if quiet { 0 } else { 2 }, "{}", ended.errors);
        assert!(!quiet || (ended.errors.is_empty() && ended.output.is_empty()));
        // The rate of the recordings is the model's from now on.
        assert!(String::from_utf8_lossy(&read(&run.join("features.toml"))).contains("sample_frequency = 8000.0"));
    }
}

/// The demo takes the next free number. Stopped, it names the command that goes on; that command works, and leaves what a user is promised.
#[test]
fn the_demo_overwrites_nothing_and_goes_on_when_it_was_stopped() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("runs/demo")).expect("a folder");
    std::fs::write(folder.path().join("runs/demo/mine"), "mine").expect("a file");
    let in_folder = |arguments: &[&str]| {
        let mut command = headfirst(arguments);
        command.current_dir(folder.path());
        command
    };
    let mut demo = in_folder(&["demo"]).spawn().expect("it starts");
    let mut lines = BufReader::new(demo.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("epoch 1/")), "no epoch is reported");
    // SAFETY: a plain system call on a process of ours that has not been waited for.
    assert_eq!(unsafe { libc::kill(demo.id() as i32, libc::SIGTERM) }, 0);
    let last = lines.last().expect("an error");
    assert_eq!(demo.wait().expect("it ends").code(), Some(143), "{last}");
    assert_eq!(std::fs::read_dir(folder.path().join("runs/demo")).expect("a folder").count(), 1);

    let go_on = last.split_once("Go on with: ").expect("a command").1.trim_end_matches('.');
    let arguments: Vec<&str> = go_on.split(' ').skip(1).collect();
    assert_eq!(arguments, ["train", "runs/demo-2/recipe.toml", "--out", "runs/demo-2", "--resume", "--device", "cpu"]);
    // Few epochs, for the sake of time: the cascade has up to four stages.
    let ended = run_to_end(in_folder(&[&arguments[..], &["--set", "training.max_epochs=2"]].concat()));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert!(ended.output.contains("runs/demo-2/report.html"));
    let run = folder.path().join("runs/demo-2");
    let result: Value = serde_json::from_slice(&read(&run.join("result.json"))).expect("one object");
    assert_eq!((&result["finished"], &result["strategy"]), (&Value::Bool(true), &Value::from("greedy")));
    assert!(result["stages"].as_array().is_some_and(|stages| stages.len() >= 2), "{result}");
    for name in ["demo.toml", "features.toml", "tokens.txt", "report.html", "data/test/wav.scp"] {
        assert!(!read(&run.join(name)).is_empty(), "{name}");
    }

    let scores = run_to_end(in_folder(&["evaluate", "runs/demo-2", "--json"]));
    let scores: Value = serde_json::from_str(&scores.output).expect("one object");
    let best = result["stages"].as_array().into_iter().flatten().find(|stage| stage["stage"] == result["best"]);
    assert_eq!(scores["cer"], best.expect("a best stage")["test"]["cer"]);
    let transcribe = ["transcribe", "runs/demo-2", "runs/demo-2/data/test/wav/spk010-0000.wav"];
    assert_eq!(run_to_end(in_folder(&transcribe)).code, Some(0));
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
