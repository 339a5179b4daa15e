//! The CUDA backend trains as the CPU does: whole trainings through the binary, on the emulator.

use crate::tiny::{Run, Tiny};
use headfirst::backend::cuda::emulator::AVAILABLE;
use headfirst::train::record::EpochRecord;
use std::fs;

const RECIPE: &[&str] = &["training.max_epochs=3", "cascade={strategy=\"fixed\", compositions=[[1, 2], [1, 1, 1]]}"];

/// Trains on a device; none if there is no emulator.
fn train(tiny: &Tiny, device: &str, run: &str, changes: &[&str]) -> Option<Run> {
    if !AVAILABLE {
        println!("skipped: there is no C++ compiler, so no emulator");
        return None;
    }
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
        let on_gpu = train(&tiny, "emulator", "gpu", &changes).unwrap();
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
        train(&tiny, "emulator", run, &[])?;
        let stages = ["joint", "1-2", "1-1-1"];
        Some(stages.map(|stage| fs::read(tiny.path(run).join(stage).join("best.safetensors")).unwrap()).to_vec())
    };
    assert!(weights("first") == weights("second"));
}
