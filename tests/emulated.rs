//! The CUDA backend trains as the CPU does: whole trainings through the binary, on the emulator, or on the GPU that HEADFIRST_TEST_DEVICE names.

use crate::program;
use crate::tiny::{Run, Tiny};
use headfirst::train::record::EpochRecord;
use std::fs;

const RECIPE: &[&str] = &["training.max_epochs=3", "cascade={strategy=\"fixed\", compositions=[[1, 2], [1, 1, 1]]}"];

/// What the CUDA backend runs on, if there is anything.
fn gpu() -> Option<String> {
    #[cfg(feature = "emulator")]
    let emulator = headfirst::backend::cuda::emulator::AVAILABLE.then(|| "emulator".to_string());
    #[cfg(not(feature = "emulator"))]
    let emulator = None;
    let device = std::env::var("HEADFIRST_TEST_DEVICE").ok().or(emulator);
    if device.is_none() {
        println!(
            "skipped: there is neither an emulator (feature `emulator`, a C++ compiler) nor HEADFIRST_TEST_DEVICE"
        );
    }
    device
}

/// Trains on the CPU or the GPU; none if there is no GPU.
fn train(tiny: &Tiny, device: &str, run: &str, changes: &[&str]) -> Option<Run> {
    let gpu = gpu()?;
    let device = if device == "gpu" { &gpu } else { device };
    let mut arguments = vec!["train", "recipe.toml", "--quiet", "--device", device, "--out", run];
    RECIPE.iter().chain(changes).for_each(|change| arguments.extend(["--set", change]));
    let ended = tiny.headfirst(&arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    Some(tiny.run(run))
}

#[test]
fn a_cascade_on_the_gpu_has_the_losses_of_the_cpu() {
    let tiny = Tiny::new();
    for optimizer in
        ["{kind=\"adam\", learning_rate=0.02}", "{kind=\"adadelta\"}", "{kind=\"sgd\", learning_rate=0.05}"]
    {
        let changes = [&format!("optimizer={optimizer}")[..], "model.dropout=0.2"];
        let Some(on_cpu) = train(&tiny, "cpu", "cpu", &changes) else { return };
        let on_gpu = train(&tiny, "gpu", "gpu", &changes).unwrap();
        assert_eq!(on_gpu.stages(), on_cpu.stages());
        assert_eq!(on_gpu.epochs.len(), on_cpu.epochs.len());
        for (gpu, cpu) in on_gpu.epochs.iter().zip(&on_cpu.epochs) {
            let losses = |epoch: &EpochRecord| [epoch.train_loss, epoch.valid_loss, epoch.gradient_norm];
            for (gpu_loss, cpu_loss) in losses(gpu).into_iter().zip(losses(cpu)) {
                // Roundings of 1e-7 that nine updates carry on; other masks or a lost gradient change the second digit.
                let error = (gpu_loss - cpu_loss).abs() / cpu_loss;
                assert!(error < 2e-3, "{optimizer}, {} epoch {}: {gpu_loss}, not {cpu_loss}", cpu.stage, cpu.epoch);
            }
        }
        for (gpu, cpu) in on_gpu.result.stages.iter().zip(&on_cpu.result.stages) {
            assert_eq!(gpu.memory.gradients, cpu.memory.gradients, "{}: frozen groups have no gradient", cpu.stage);
            assert_eq!(gpu.memory.optimizer_state, cpu.memory.optimizer_state, "{}", cpu.stage);
        }
        fs::remove_dir_all(tiny.path("cpu")).unwrap();
        fs::remove_dir_all(tiny.path("gpu")).unwrap();
    }
}

#[test]
fn the_same_training_on_the_gpu_has_the_same_bits() {
    let tiny = Tiny::new();
    let weights = |run: &str| -> Option<Vec<Vec<u8>>> {
        train(&tiny, "gpu", run, &[])?;
        let stages = ["joint", "1-2", "1-1-1"];
        Some(stages.map(|stage| fs::read(tiny.path(run).join(stage).join("best.safetensors")).unwrap()).to_vec())
    };
    assert!(weights("first") == weights("second"));
}

#[test]
fn a_stopped_training_goes_on_to_the_same_bits_on_the_gpu() {
    let tiny = Tiny::new();
    if train(&tiny, "gpu", "whole", &[]).is_none() {
        return;
    }
    let device = gpu().unwrap();
    let mut arguments = vec!["train", "recipe.toml", "--quiet", "--device", &device, "--out", "stopped"];
    RECIPE.iter().for_each(|change| arguments.extend(["--set", change]));
    // Stopped once in each of its first two stages, wherever the signal finds it.
    for epochs in [1, 4] {
        let mut command = program::headfirst(&arguments);
        command.current_dir(tiny.path(""));
        if tiny.path("stopped").exists() {
            command.arg("--resume");
        }
        let mut child = command.spawn().unwrap();
        let logged = || program::log(&tiny.path("stopped")).len();
        // One epoch more than before at least: then the process is sure to be listening.
        let enough = epochs.max(logged() + 1);
        if program::wait_until(&mut child, || logged() >= enough) {
            // SAFETY: a signal to a child that has not ended.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        }
        let ended = program::end(child);
        assert!(matches!(ended.code, Some(0 | 143)), "{:?}: {}", ended.code, ended.errors);
    }
    arguments.push("--resume");
    let ended = tiny.headfirst(&arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    for stage in ["joint", "1-2", "1-1-1"] {
        let weights = |run: &str| fs::read(tiny.path(run).join(stage).join("best.safetensors")).unwrap();
        assert!(weights("whole") == weights("stopped"), "{stage}");
    }
}
