//! A language model with all that AWD-LSTM draws, carries and averages trains on the CUDA backend as on the CPU, jointly and below a frozen top.

use crate::emulated::{assert_same_losses, gpu};
use crate::program::{self, end, log, run_to_end, wait_until};
use crate::tiny::Run;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

const RECIPE: &str = r#"
name = "tiny-text"
data = { kind = "text", train = "train.txt", valid = "valid.txt", test = "valid.txt" }
batch = { sequences = 4, bptt = 9 }
training = { max_epochs = 4, patience = 0, activation_regularization = 2.0, temporal_regularization = 1.0 }
optimizer = { kind = "nt-asgd", learning_rate = 10.0, nonmono = 0, clip = 0.25, weight_decay = 1e-6 }
cascade = { strategy = "fixed", compositions = [[1, 2]] }

[model]
kind = "lstm-lm"
layers = 2
embedding = 8
units = 10
dropout = 0.1
dropout_hidden = 0.1
dropout_input = 0.1
dropout_embedding = 0.1
dropout_recurrent = 0.3
"#;

struct Text {
    folder: tempfile::TempDir,
}

impl Text {
    fn new() -> Self {
        let text = Text { folder: tempfile::tempdir().unwrap() };
        let lines =
            ["the cat sat on the mat\n", "a dog ran in the park by day\n", "the owl flew over a tree at night\n"];
        fs::write(text.path("train.txt"), (0..30).map(|line| lines[line % 3]).collect::<String>()).unwrap();
        fs::write(text.path("valid.txt"), [lines[0], lines[2], lines[1]].concat()).unwrap();
        fs::write(text.path("recipe.toml"), RECIPE).unwrap();
        text
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn training(&self, device: &str, run: &str) -> Command {
        let mut command =
            program::headfirst(["--threads", "1", "train", "recipe.toml", "--device", device, "--out", run]);
        command.current_dir(self.folder.path());
        command
    }

    fn run(&self, run: &str) -> Run {
        let read = |name: &str| fs::read_to_string(self.path(run).join(name)).unwrap();
        Run {
            result: serde_json::from_str(&read("result.json")).unwrap(),
            epochs: read("log.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        }
    }
}

#[test]
fn a_language_model_has_the_losses_of_the_cpu_on_the_gpu_and_goes_on_to_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let text = Text::new();
    for (device, run) in [("cpu", "cpu"), (&gpu, "gpu")] {
        let ended = run_to_end(text.training(device, run));
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        assert!(ended.errors.contains("averaged from now on"), "nothing was averaged: {}", ended.errors);
    }
    let on_gpu = text.run("gpu");
    assert_eq!(on_gpu.stages(), ["joint", "1-2"]);
    assert_same_losses("lstm-lm", &on_gpu, &text.run("cpu"));

    // Stopped in the first stage and in the second.
    for (attempt, epochs) in [1, 5].into_iter().enumerate() {
        let mut command = text.training(&gpu, "stopped");
        command.args((attempt > 0).then_some("--resume"));
        let mut child = command.spawn().unwrap();
        assert!(wait_until(&mut child, || log(&text.path("stopped")).len() >= epochs), "it ended before");
        // SAFETY: a plain system call on a process of ours that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
        let ended = end(child);
        assert_eq!(ended.code, Some(143), "{}", ended.errors);
    }
    let mut command = text.training(&gpu, "stopped");
    command.arg("--resume");
    let ended = run_to_end(command);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert_eq!(log(&text.path("stopped")), log(&text.path("gpu")));
    for stage in ["joint", "1-2"] {
        let weights = |run: &str| fs::read(text.path(run).join(stage).join("best.safetensors")).unwrap();
        assert!(weights("stopped") == weights("gpu"), "{stage}");
    }
}
