//! The CUDA backend trains as the CPU does: whole trainings through the binary, on the emulator, or on the GPU that HEADFIRST_TEST_DEVICE names.

use crate::program::{self, end, log, run_to_end, wait_until};
use crate::tiny::{Run, Tiny};
use headfirst::backend::cuda::context::Recording;
use headfirst::device::{Category, Device};
use headfirst::models::Network;
use headfirst::models::recogniser::{Recogniser, Teaching};
use headfirst::models::transformer::{Sizes, Transformer};
use headfirst::nn::{Parameters, Scheme};
use headfirst::ops::arithmetic::{add, mean_square};
use headfirst::ops::sequences::Sequences;
use headfirst::random::{MaskKey, Philox};
use headfirst::tape::{Tape, Var};
use headfirst::tensor::Tensor;
use headfirst::train::record::EpochRecord;
use serde_json::Value;
use std::fs;
use std::process::Command;

const RECIPE: &[&str] = &["training.max_epochs=3", "cascade={strategy=\"fixed\", compositions=[[1, 2], [1, 1, 1]]}"];

/// What the CUDA backend runs on, if there is anything.
pub fn gpu() -> Option<String> {
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

/// Requires the losses and gradient norms of every epoch to agree as far as the roundings of some updates leave them.
pub fn assert_same_losses(what: &str, on_gpu: &Run, on_cpu: &Run) {
    assert_eq!(on_gpu.stages(), on_cpu.stages());
    assert_eq!(on_gpu.epochs.len(), on_cpu.epochs.len());
    for (gpu, cpu) in on_gpu.epochs.iter().zip(&on_cpu.epochs) {
        let losses = |epoch: &EpochRecord| [epoch.train_loss, epoch.valid_loss, epoch.gradient_norm];
        for (gpu_loss, cpu_loss) in losses(gpu).into_iter().zip(losses(cpu)) {
            // Roundings of 1e-7 that nine updates carry on; other masks or a lost gradient change the second digit.
            let error = (gpu_loss - cpu_loss).abs() / cpu_loss;
            assert!(error < 2e-3, "{what}, {} epoch {}: {gpu_loss}, not {cpu_loss}", cpu.stage, cpu.epoch);
        }
    }
}

/// Requires that a beam search over this run finds the same on the GPU as on the CPU, with the same scores but for roundings.
fn assert_same_hypotheses(tiny: &Tiny, run: &str) {
    let lists = |device: &str| -> Vec<Value> {
        let lists = format!("{run}-{}.json", device.replace(':', "-"));
        let options = ["--beam", "4", "--n-best", "3", "--ctc-weight", "0.3", "--n-best-json", &lists];
        let ended = tiny.headfirst(&[&["evaluate", run, "--device", device], &options[..]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        serde_json::from_slice(&fs::read(tiny.path(&lists)).unwrap()).unwrap()
    };
    let (on_cpu, on_gpu) = (lists("cpu"), lists(&gpu().unwrap_or_default()));
    assert_eq!((on_cpu.len(), on_gpu.len()), (5, 5));
    for (cpu, gpu) in on_cpu.iter().zip(&on_gpu) {
        let [cpu, gpu] = [cpu, gpu].map(|list| list["hypotheses"].as_array().unwrap());
        assert!(!cpu.is_empty() && cpu.len() == gpu.len());
        for (cpu, gpu) in cpu.iter().zip(gpu) {
            assert_eq!(cpu["tokens"], gpu["tokens"]);
            let [cpu, gpu] = [cpu, gpu].map(|hypothesis| hypothesis["score"].as_f64().unwrap());
            assert!((cpu - gpu).abs() < 1e-4 * cpu.abs().max(1.0), "{gpu}, not {cpu}");
        }
    }
}

#[test]
fn a_recogniser_with_convolutions_has_the_losses_of_the_cpu_on_the_gpu_joint_and_with_its_front_end_alone() {
    let tiny = Tiny::new();
    let model = "model={kind=\"blstm-ctc\", frontend=\"vgg\", layers=1, units=8, projection=6}";
    let cascade = "cascade={strategy=\"fixed\", compositions=[[2, 1]]}";
    let changes = [model, cascade, "optimizer.learning_rate=0.001", "training.max_epochs=1", "batch.utterances=6"];
    let Some(on_cpu) = train(&tiny, "cpu", "cpu", &changes) else { return };
    assert_eq!(on_cpu.stages(), ["joint", "2-1"]);
    assert_same_losses("vgg", &train(&tiny, "gpu", "gpu", &changes).unwrap(), &on_cpu);
}

#[test]
fn ctc_with_attention_has_the_losses_of_the_cpu_on_the_gpu_joint_and_below_its_softmax_layers() {
    let tiny = Tiny::new();
    let model = "model={kind=\"ctc-attention\", layers=1, units=8, projection=6, subsample=[2], attention=7, \
                 attention_channels=2, attention_reach=5, decoder_units=8, label_smoothing=0.05}";
    let cascade = "cascade={strategy=\"fixed\", compositions=[[1, 2]]}";
    let changes = [model, cascade, "training.max_epochs=2"];
    let Some(on_cpu) = train(&tiny, "cpu", "cpu", &changes) else { return };
    assert_eq!(on_cpu.stages(), ["joint", "1-2"]);
    assert_same_losses("ctc-attention", &train(&tiny, "gpu", "gpu", &changes).unwrap(), &on_cpu);
    assert_planned_as_trained(&tiny, "gpu", &changes);
    assert_same_hypotheses(&tiny, "gpu");
}

#[test]
fn a_decoder_that_reads_what_it_chose_itself_has_the_losses_of_the_cpu_on_the_gpu() {
    let tiny = Tiny::new();
    let model = "model={kind=\"ctc-attention\", layers=1, units=8, projection=6, subsample=[4], attention=7, attention_channels=2, \
                 attention_reach=5, decoder_units=8, scheduled_sampling=0.5}";
    let changes = [model, "cascade={strategy=\"none\"}", "training.max_epochs=2"];
    let Some(on_cpu) = train(&tiny, "cpu", "cpu", &changes) else { return };
    assert_same_losses("scheduled sampling", &train(&tiny, "gpu", "gpu", &changes).unwrap(), &on_cpu);
    assert_planned_as_trained(&tiny, "gpu", &changes);
}

#[test]
fn a_transformer_has_the_losses_of_the_cpu_on_the_gpu_joint_and_below_its_softmax_layers() {
    let tiny = Tiny::new();
    let model = "model={kind=\"transformer\", encoder_layers=1, decoder_layers=1, units=16, heads=2, feedforward=24, dropout=0.1, \
                 attention_dropout=0.1, label_smoothing=0.1, ctc_weight=0.3}";
    let optimizer = "optimizer={kind=\"adam\", learning_rate=0.4, warmup=40}";
    let cascade = "cascade={strategy=\"fixed\", compositions=[[1, 3]]}";
    let changes = [model, optimizer, cascade, "training.max_epochs=2", "batch.utterances=6"];
    let Some(on_cpu) = train(&tiny, "cpu", "cpu", &changes) else { return };
    assert_eq!(on_cpu.stages(), ["joint", "1-3"]);
    assert_same_losses("transformer", &train(&tiny, "gpu", "gpu", &changes).unwrap(), &on_cpu);
    assert_planned_as_trained(&tiny, "gpu", &changes);
    assert_same_hypotheses(&tiny, "gpu");
}

/// Requires that a model learns the tiny corpus by heart on the GPU.
fn assert_learned_on_the_gpu(changes: &[&str]) {
    let tiny = Tiny::new();
    let changes = [changes, &["cascade={strategy=\"none\"}"]].concat();
    let Some(run) = train(&tiny, "gpu", "run", &changes) else { return };
    let best = &run.result.stages[0].valid;
    assert_eq!((best.cer, best.wer), (Some(0.0), Some(0.0)));
}

#[test]
fn blstms_learn_a_tiny_corpus_to_zero_error_on_the_gpu() {
    assert_learned_on_the_gpu(&["training.max_epochs=40"]);
}

#[test]
fn blstms_above_convolutions_learn_a_tiny_corpus_to_zero_error_on_the_gpu() {
    let model = "model={kind=\"blstm-ctc\", frontend=\"vgg\", layers=1, units=32, projection=24}";
    assert_learned_on_the_gpu(&[
        model,
        "optimizer.learning_rate=0.001",
        "batch.utterances=2",
        "training.max_epochs=60",
    ]);
}

#[test]
fn ctc_with_attention_learns_a_tiny_corpus_to_zero_error_on_the_gpu() {
    let model = "model={kind=\"ctc-attention\", layers=1, units=16, projection=12, subsample=[2], attention=12, \
                 attention_channels=2, attention_reach=5, decoder_units=16, label_smoothing=0.05}";
    assert_learned_on_the_gpu(&[model, "training.max_epochs=60"]);
}

#[test]
fn a_transformer_learns_a_tiny_corpus_to_zero_error_on_the_gpu() {
    let model = "model={kind=\"transformer\", encoder_layers=1, decoder_layers=1, units=32, heads=2, feedforward=64, \
                 dropout=0.0, label_smoothing=0.1, ctc_weight=0.5}";
    let optimizer = "optimizer={kind=\"adam\", learning_rate=0.4, warmup=40}";
    assert_learned_on_the_gpu(&[model, optimizer, "training.max_epochs=60"]);
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
        assert_same_losses(optimizer, &on_gpu, &on_cpu);
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

/// `headfirst train` of the tiny corpus, not started yet.
fn training(tiny: &Tiny, device: &str, run: &str, resume: bool) -> Command {
    let gpu = gpu().unwrap_or_default();
    let device = if device == "gpu" { &gpu } else { device };
    let mut arguments = vec!["train", "recipe.toml", "--quiet", "--device", device, "--out", run];
    RECIPE.iter().chain(&["model.dropout=0.2"]).for_each(|change| arguments.extend(["--set", change]));
    if resume {
        arguments.push("--resume");
    }
    let mut command = program::headfirst(arguments);
    command.current_dir(tiny.path(""));
    command
}

/// Stops a training with SIGTERM once it has logged `epochs`; false if it ended before.
fn stop_after(tiny: &Tiny, device: &str, run: &str, epochs: usize) -> bool {
    let folder = tiny.path(run);
    let mut child = training(tiny, device, run, folder.exists()).spawn().unwrap();
    if wait_until(&mut child, || log(&folder).len() >= epochs) {
        // SAFETY: a plain system call on a process of ours that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
    }
    let ended = end(child);
    assert!(matches!(ended.code, Some(0 | 143)), "{}", ended.errors);
    ended.code == Some(143)
}

#[test]
fn a_training_on_the_gpu_that_was_stopped_goes_on_to_the_same_bits() {
    let tiny = Tiny::new();
    if train(&tiny, "gpu", "whole", &["model.dropout=0.2"]).is_none() {
        return;
    }
    let stops = [1, 2, 4, 5].map(|epochs| stop_after(&tiny, "gpu", "stopped", epochs));
    assert!(stops.contains(&true), "nothing was stopped, so nothing was tested");
    if stops[3] {
        let ended = run_to_end(training(&tiny, "gpu", "stopped", true));
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
    }
    assert_eq!(log(&tiny.path("stopped")), log(&tiny.path("whole")));
    for stage in ["joint", "1-2", "1-1-1"] {
        let weights = |run: &str| fs::read(tiny.path(run).join(stage).join("best.safetensors")).unwrap();
        assert!(weights("stopped") == weights("whole"), "{stage}");
    }
}

#[test]
fn a_run_may_change_its_device_inside_and_between_stages() {
    let tiny = Tiny::new();
    let Some(on_cpu) = train(&tiny, "cpu", "cpu", &["model.dropout=0.2"]) else { return };
    // The third epoch ends the first stage.
    for (device, epochs) in [("cpu", 1), ("gpu", 3), ("cpu", 4), ("gpu", 5)] {
        assert!(stop_after(&tiny, device, "both", epochs), "{device} was not stopped after {epochs} epochs");
    }
    let ended = run_to_end(training(&tiny, "cpu", "both", true));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let both = tiny.run("both");
    assert_eq!(both.epochs.len(), on_cpu.epochs.len());
    for (both, cpu) in both.epochs.iter().zip(&on_cpu.epochs) {
        let error = (both.train_loss - cpu.train_loss).abs() / cpu.train_loss;
        assert!(error < 2e-3, "{} epoch {}: {}, not {}", cpu.stage, cpu.epoch, both.train_loss, cpu.train_loss);
    }
}

#[test]
fn rounded_products_train_too_and_differ_from_exact_ones() {
    let tiny = Tiny::new();
    let Some(exact) = train(&tiny, "gpu", "f32", &[]) else { return };
    // Eight bits of mantissa err by 2^-9 at most, eleven by 2^-12; a few updates carry that on.
    for (precision, bound) in [("bf16", 5e-2), ("tf32", 5e-3)] {
        let changes = [&format!("training.precision={precision}")[..]];
        let rounded = train(&tiny, "gpu", precision, &changes).unwrap();
        for (rounded, exact) in rounded.epochs.iter().zip(&exact.epochs) {
            let error = (rounded.train_loss - exact.train_loss).abs() / exact.train_loss;
            assert!(error < bound, "{precision}, {} epoch {}: off by {error}", exact.stage, exact.epoch);
            assert_ne!(rounded.train_loss, exact.train_loss, "{precision} rounds nothing");
        }
    }
}

#[test]
fn what_is_planned_for_the_gpu_is_what_training_takes_there() {
    let tiny = Tiny::new();
    if train(&tiny, "gpu", "run", &[]).is_some() {
        assert_planned_as_trained(&tiny, "run", &[]);
    }
}

/// Requires that the plan for the GPU has the memory that this training took, category by category.
fn assert_planned_as_trained(tiny: &Tiny, run: &str, changes: &[&str]) {
    let run = tiny.run(run);
    let gpu = gpu().unwrap_or_default();
    let mut arguments = vec!["plan", "recipe.toml", "--json", "--device", &gpu];
    RECIPE.iter().chain(changes).for_each(|change| arguments.extend(["--set", change]));
    let planned: Value = serde_json::from_str(&tiny.headfirst(&arguments).output).unwrap();
    let stages = planned["stages"].as_array().unwrap();
    assert_eq!(stages.len(), run.result.stages.len());
    for (planned, trained) in stages.iter().zip(&run.result.stages) {
        let trained = serde_json::to_value(trained.memory).unwrap();
        for (name, bytes) in planned["memory"].as_object().unwrap() {
            assert_eq!(*bytes, trained[name], "{name} of {}", planned["stage"]);
        }
        // What crosses has regions of 1 MiB; the arena's gaps are smaller.
        let [peak, needed] = [&planned["memory"]["peak"], &planned["device_memory"]].map(|it| it.as_u64().unwrap());
        assert!((peak..peak + (4 << 20)).contains(&needed), "{needed} for a peak of {peak}");
    }
}

#[cfg(feature = "emulator")]
#[test]
fn too_little_memory_is_said_before_training_with_what_would_fit() {
    let tiny = Tiny::new();
    if !headfirst::backend::cuda::emulator::AVAILABLE || std::env::var_os("HEADFIRST_TEST_DEVICE").is_some() {
        println!("skipped: this is about the emulator's memory");
        return;
    }
    let mut arguments = vec!["plan", "recipe.toml", "--json", "--device", "emulator"];
    // As `training` has it.
    RECIPE.iter().chain(&["model.dropout=0.2"]).for_each(|change| arguments.extend(["--set", change]));
    let planned: Value = serde_json::from_str(&tiny.headfirst(&arguments).output).unwrap();
    let needed = planned["stages"][0]["device_memory"].as_u64().unwrap();
    let end_with = |run: &str, bytes: u64| {
        let mut command = training(&tiny, "gpu", run, false);
        command.env("HEADFIRST_EMULATOR_MEMORY", bytes.to_string());
        run_to_end(command)
    };
    let ended_with = |bytes: u64| {
        let ended = end_with("small", bytes);
        assert_eq!(ended.code, Some(1));
        ended.errors
    };
    let ended = end_with("exact", needed);
    assert_eq!(ended.code, Some(0), "what is said to be needed is enough: {}", ended.errors);
    let errors = ended_with(needed - 1);
    for part in ["emulator", "joint", "MiB are free", "batch.utterances = 2 would fit", "top group frozen"] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
    let errors = ended_with(needed / 4);
    assert!(errors.contains("No batch would fit"), "{errors}");
}

#[test]
fn a_run_whose_next_stage_has_its_products_computed_by_others_says_so_once() {
    let tiny = Tiny::new();
    let cascade = "cascade={strategy=\"fixed\", compositions=[[1, 2]]}";
    let changes = [cascade, "training.max_epochs=1"];
    if train(&tiny, "gpu", "run", &changes).is_none() {
        return;
    }
    // As a run is between its stages, the first of which another library helped to train.
    let mut result = program::result(&tiny.path("run"));
    let now = result["stages"][0]["products"].as_str().unwrap().to_string();
    result["stages"][0]["products"] = "a library of long ago".into();
    result["stages"].as_array_mut().unwrap().truncate(1);
    result["finished"] = false.into();
    fs::write(tiny.path("run/result.json"), result.to_string()).unwrap();
    let gpu = gpu().unwrap_or_default();
    let mut arguments = vec!["train", "recipe.toml", "--device", &gpu, "--out", "run", "--resume"];
    changes.iter().for_each(|change| arguments.extend(["--set", change]));
    let ended = tiny.headfirst(&arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let told = format!("products were computed by a library of long ago before and are by {now}");
    assert_eq!((ended.output + &ended.errors).matches(&told).count(), 1);
}

/// What a GPU hands out after it failed is zeros: whenever that happens, in a validation or while a state is read for saving, nothing of it is kept.
#[cfg(feature = "emulator")]
#[test]
fn a_training_whose_gpu_fails_goes_on_from_the_state_before_to_the_same_bits() {
    let tiny = Tiny::new();
    if !headfirst::backend::cuda::emulator::AVAILABLE || std::env::var_os("HEADFIRST_TEST_DEVICE").is_some() {
        println!("skipped: a real GPU cannot be made to fail");
        return;
    }
    let start = |run: &str, resume: bool, failing: Option<u64>| {
        let mut arguments = vec!["train", "recipe.toml", "--quiet", "--device", "emulator", "--out", run];
        ["training.max_epochs=2", "cascade={strategy=\"none\"}"].iter().for_each(|it| arguments.extend(["--set", it]));
        arguments.extend(resume.then_some("--resume"));
        let mut command = program::headfirst(arguments);
        command.current_dir(tiny.path(""));
        if let Some(number) = failing {
            command.env("HEADFIRST_EMULATOR_FAILING_DOWNLOAD", number.to_string());
        }
        run_to_end(command)
    };
    let weights = |run: &str| fs::read(tiny.path(run).join("joint/best.safetensors")).unwrap();
    assert_eq!(start("whole", false, None).code, Some(0));
    let mut epochs_before = Vec::new();
    for failing in [1, 10, 25, 40, 55, 70, 85, 100, 115, 130] {
        let run = format!("failing-{failing}");
        let ended = start(&run, false, Some(failing));
        if ended.code == Some(0) {
            break;
        }
        assert!(ended.errors.contains("emulator") && ended.errors.contains("--resume"), "{}", ended.errors);
        epochs_before.push(log(&tiny.path(&run)).len());
        let ended = start(&run, true, None);
        assert_eq!(ended.code, Some(0), "after download {failing}: {}", ended.errors);
        assert!(weights(&run) == weights("whole"), "after download {failing} failed");
        assert_eq!(log(&tiny.path(&run)), log(&tiny.path("whole")), "after download {failing} failed");
    }
    assert!(epochs_before.contains(&0) && epochs_before.iter().any(|&epochs| epochs > 0), "{epochs_before:?}");
}

#[cfg(feature = "emulator")]
#[test]
fn what_a_gpu_that_fails_was_to_recognise_is_an_error_and_no_silence() {
    let tiny = Tiny::new();
    if train(&tiny, "cpu", "run", &["training.max_epochs=1"]).is_none()
        || std::env::var_os("HEADFIRST_TEST_DEVICE").is_some()
    {
        println!("skipped: a real GPU cannot be made to fail");
        return;
    }
    for options in [&[][..], &["--beam", "2"]] {
        let mut command = program::headfirst([&["evaluate", "run", "--device", "emulator"], options].concat());
        command.current_dir(tiny.path("")).env("HEADFIRST_EMULATOR_FAILING_DOWNLOAD", "1");
        let ended = run_to_end(command);
        assert_eq!(ended.code, Some(1));
        assert!(
            ended.errors.contains("emulator: failed while copying") && !ended.errors.contains("--resume"),
            "{}",
            ended.errors
        );
    }
}

/// A pass over three utterances through the encoder and decoder layers and both softmax layers, with dropout: loss and gradients. The front end
/// stays out of it.
fn pass_through_layers(device: &Device, model: &Transformer, parameters: &mut Parameters, step: u32) -> Vec<Vec<f32>> {
    let masks = MaskKey { seed: 4, stage: "joint".into(), step };
    let sequences = Sequences::new(&[37, 20, 6]).unwrap();
    // Taught longest first, so each reads another utterance's frames than its own number says.
    let teaching = Teaching::new(&[vec![1, 2, 3], vec![4, 5, 6, 7, 1], vec![2]], model.end()).unwrap();
    let shape = [sequences.rows(), model.sizes().units];
    let mut stream = Philox::named(1, "frames").stream();
    let frames = (0..shape[0] * shape[1]).map(|_| stream.normal() as f32).collect();
    let recording = device.record();
    let mut tape = Tape::new(device);
    let frames = Var::constant(Tensor::from_vec(device, &shape, frames, Category::Activation));
    let hidden = model.encode_frames(&mut tape, parameters, frames, &sequences, Some(&masks)).unwrap();
    let Teaching { tokens, sequences: packed, of, .. } = &teaching;
    let read = (&hidden, &sequences);
    let symbols = model.decode(&mut tape, parameters, read, tokens, packed, of, Some(&masks)).unwrap();
    let alignment = model.ctc_logits(&mut tape, parameters, &hidden, &sequences, Some(&masks)).unwrap();
    let [symbols, alignment] = [symbols, alignment].map(|logits| mean_square(&mut tape, &logits).unwrap());
    let loss = add(&mut tape, &symbols, &alignment).unwrap();
    drop((hidden, symbols, alignment));
    parameters.gradients.clear();
    tape.backward(&loss, 1.0, &mut parameters.gradients).unwrap();
    recording.into_iter().for_each(Recording::run);
    let loss = loss.tensor().to_vec();
    device.check().unwrap();
    let gradients = (0..parameters.len()).map(|index| parameters.gradients.get(index).map(Tensor::to_vec));
    std::iter::once(loss).chain(gradients.map(Option::unwrap_or_default)).collect()
}

#[test]
fn the_layers_of_a_transformer_have_the_losses_and_gradients_of_the_cpu_at_every_step() {
    let Some(gpu) = gpu() else { return };
    let model = Transformer::new(Sizes {
        inputs: 7,
        encoder_layers: 2,
        decoder_layers: 2,
        units: 24,
        heads: 2,
        feedforward: 40,
        dropout: 0.1,
        attention_dropout: 0.2,
        ctc_weight: 0.3,
        label_smoothing: 0.1,
        symbols: 9,
    });
    let structure = model.structure();
    let front_end = structure.groups[0].parameters.end;
    let parameters = |device: &Device| {
        let mut parameters = Parameters::initialize(device, &structure.specs, Scheme::Pytorch, 5);
        parameters.set_trainable(device, vec![true; structure.specs.len()]);
        parameters
    };
    let devices = [Device::cpu(), headfirst::device::open(&gpu).unwrap().0];
    let mut parameters = devices.each_ref().map(parameters);
    let mut losses = Vec::new();
    // From the second step on the work may be a graph: what changes from step to step, the masks, must not be part of it.
    for step in 3..7 {
        let [on_cpu, on_gpu] = [0, 1].map(|k| pass_through_layers(&devices[k], &model, &mut parameters[k], step));
        losses.push(on_cpu[0][0]);
        let largest = |values: &[f32]| values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let of_all = on_cpu[1..].iter().map(|gradient| largest(gradient)).fold(0.0, f32::max);
        for (index, (gpu, cpu)) in on_gpu.iter().zip(&on_cpu).enumerate() {
            let name = index.checked_sub(1).map_or("the loss", |index| &structure.specs[index].name);
            assert_eq!(gpu.len(), cpu.len(), "{name}");
            assert_eq!(cpu.is_empty(), (1..=front_end).contains(&index), "{name} has a gradient");
            // Some forty products of 12 to 40 terms behind one another, on either device: as in tests/torch_transformer.rs, and twice. A bias
            // of the keys has no gradient but roundings of what cancels.
            let bound = 40.0 * f32::EPSILON * largest(cpu).max(0.01 * of_all);
            let error = gpu.iter().zip(cpu).fold(0.0_f32, |error, (gpu, cpu)| error.max((gpu - cpu).abs()));
            assert!(error <= bound, "{name} at step {step}: {error} > {bound}");
        }
    }
    losses.dedup();
    assert_eq!(losses.len(), 4, "every step has masks of its own");
}
