//! Language models from the recipe to the text that they write: what is learned, evaluated, resumed and refused.

use crate::program::{Ended, end, headfirst, run_to_end, wait_until};
use headfirst::data::streams::{Streams, TextBatch};
use headfirst::device::{Category, Device};
use headfirst::models::Network;
use headfirst::models::lstm_lm::{Dropouts, LstmLm, Sizes};
use headfirst::nn::{Parameters, Scheme};
use headfirst::ops::dropout::Sharing;
use headfirst::optim::Method;
use headfirst::random::MaskKey;
use headfirst::train::learner::Learner;
use headfirst::train::text_learner::{Carried, Objective};
use headfirst::train::updater::UpdateOptions;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Three lines in turn: whoever remembers a few words knows the next.
const LINES: [&str; 3] =
    ["the cat sat on the mat", "a dog ran in the park by day", "the owl flew over a tree at night"];

const RECIPE: &str = r#"
name = "tiny-text"
data = { kind = "text", train = "train.txt", valid = "valid.txt", test = "valid.txt" }
batch = { sequences = 4, bptt = 12 }
model = { kind = "lstm-lm", layers = 2, embedding = 12, units = 16 }
optimizer = { kind = "adam", learning_rate = 0.02 }
training = { max_epochs = 6, patience = 0 }
"#;

/// AWD-LSTM with everything that it draws and averages.
const AWD: [&str; 4] = [
    "model={kind='lstm-lm', layers=2, embedding=12, units=16, dropout=0.1, dropout_hidden=0.1, dropout_input=0.1, \
     dropout_embedding=0.1, dropout_recurrent=0.2}",
    "optimizer={kind='nt-asgd', learning_rate=20.0, nonmono=0, clip=0.25, weight_decay=1e-6}",
    "training={max_epochs=5, patience=0, activation_regularization=2.0, temporal_regularization=1.0}",
    "cascade={strategy='fixed', compositions=[[1, 2]]}",
];

struct Tiny {
    folder: tempfile::TempDir,
}

impl Tiny {
    fn new() -> Self {
        let tiny = Tiny { folder: tempfile::tempdir().unwrap() };
        let text = |count: usize| (0..count).map(|line| LINES[line % 3].to_string() + "\n").collect::<String>();
        fs::write(tiny.path("train.txt"), text(150)).unwrap();
        fs::write(tiny.path("valid.txt"), text(12)).unwrap();
        fs::write(tiny.path("recipe.toml"), RECIPE).unwrap();
        tiny
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn headfirst(&self, arguments: &[&str]) -> Ended {
        let mut command = headfirst(["--threads", "1"]);
        command.args(arguments).current_dir(self.folder.path());
        run_to_end(command)
    }

    fn train(&self, run: &str, changes: &[&str]) -> Ended {
        let mut arguments = vec!["train", "recipe.toml", "--out", run, "--quiet"];
        changes.iter().for_each(|change| arguments.extend(["--set", change]));
        self.headfirst(&arguments)
    }

    fn trained(&self, run: &str, changes: &[&str]) -> Value {
        let ended = self.train(run, changes);
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        self.result(run)
    }

    fn result(&self, run: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(run).join("result.json")).unwrap()).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.headfirst(arguments);
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        serde_json::from_str(&ended.output).unwrap()
    }
}

#[test]
fn a_tiny_text_is_learned_jointly_and_below_the_frozen_top_and_then_written() {
    let tiny = Tiny::new();
    let result = tiny.trained("run", &["cascade.strategy=greedy", "training.max_epochs=12"]);
    let stages = result["stages"].as_array().unwrap();
    assert!(stages.len() > 1, "{result}");
    for stage in stages {
        let perplexity = stage["valid"]["perplexity"].as_f64().unwrap();
        assert!(perplexity < 1.3, "{} has a perplexity of {perplexity}", stage["stage"]);
        assert!((stage["valid"]["loss"].as_f64().unwrap().exp() - perplexity).abs() < 1e-9);
        // 22 words and 3 ends, four times, the first of which nothing predicts.
        assert_eq!(stage["valid"]["tokens"], 99);
        assert_eq!(stage["criterion"], "perplexity");
    }
    assert_eq!(result["groups"].as_array().unwrap().len(), 3, "two LSTMs, and the softmax with the tied embedding");
    let scores = tiny.json(&["evaluate", "run", "--data", "valid.txt", "--json"]);
    let best = stages.iter().find(|stage| stage["stage"] == result["best"]).unwrap();
    assert!((scores["loss"].as_f64().unwrap() - best["valid"]["loss"].as_f64().unwrap()).abs() < 1e-6, "{scores}");
    let characters = 4 * LINES.iter().map(|line| line.len() + 1).sum::<usize>() - "the ".len();
    let bits = scores["loss"].as_f64().unwrap() * 99.0 / std::f64::consts::LN_2 / characters as f64;
    assert!((scores["bits_per_character"].as_f64().unwrap() - bits).abs() < 1e-9, "{scores}");
    let written = tiny.headfirst(&["generate", "run", "--prompt", "the cat", "--length", "7", "--temperature", "0"]);
    assert_eq!(written.output, "the cat sat on the mat\na dog\n", "{}", written.errors);
    let text = tiny.headfirst(&["generate", "run", "--length", "30", "--top-k", "3", "--temperature", "1.5"]).output;
    assert_eq!(
        text,
        tiny.headfirst(&["generate", "run", "--length", "30", "--top-k", "3", "--temperature", "1.5"]).output
    );
    assert!(tiny.path("run/report.html").is_file());
    assert!(fs::read_to_string(tiny.path("run/report.html")).unwrap().contains("perplexity"));
}

#[test]
fn sentences_are_learned_each_from_its_beginning() {
    let tiny = Tiny::new();
    let settings = [
        "batch={mode='sentences', sequences=10}",
        "model.tied=false",
        "model.locked_dropout=false",
        "training.max_epochs=15",
    ];
    let result = tiny.trained("run", &settings);
    let stage = &result["stages"][0];
    // Which of the three sentences comes cannot be known: its first word is "the" in two of three.
    let perplexity = stage["valid"]["perplexity"].as_f64().unwrap();
    let best = (4.0 * (3.0_f64.ln() * 3.0) / 100.0).exp();
    assert!(perplexity > best && perplexity < 1.1 * best, "{perplexity}, at best {best}");
    assert_eq!(stage["valid"]["tokens"], 100, "the first token is predicted too");
    assert_eq!(result["groups"].as_array().unwrap().len(), 4, "the untied embedding is a group");
    let scores = tiny.json(&["evaluate", "run", "--json"]);
    let loss = scores["loss"].as_f64().unwrap();
    assert!((loss - stage["test"]["loss"].as_f64().unwrap()).abs() < 1e-6);
    let characters = 4 * LINES.iter().map(|line| line.len() + 1).sum::<usize>();
    let bits = loss * scores["tokens"].as_f64().unwrap() / std::f64::consts::LN_2 / characters as f64;
    assert!((scores["bits_per_character"].as_f64().unwrap() - bits).abs() < 1e-9, "{scores}");
}

/// The weights of every stage, and the log without times.
fn outcome(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut outcome = BTreeMap::new();
    for stage in ["joint", "1-2"] {
        outcome.insert(stage.to_string(), fs::read(run.join(stage).join("best.safetensors")).unwrap());
        for epoch in 1..=5 {
            let name = format!("epoch-{epoch}.safetensors");
            outcome.insert(format!("{stage}/{name}"), fs::read(run.join(stage).join(name)).unwrap());
        }
    }
    let log = crate::program::log(run);
    outcome.insert("log".into(), log.iter().map(Value::to_string).collect::<Vec<_>>().join("\n").into_bytes());
    outcome
}

#[test]
fn a_run_that_is_stopped_again_and_again_ends_with_the_bits_of_one_that_never_was() {
    let tiny = Tiny::new();
    let settings = [&AWD[..], &["training.keep=all", "training.save_minutes=1e-9"]].concat();
    tiny.trained("whole", &settings);
    let log = crate::program::log(&tiny.path("whole"));
    assert_eq!(log.len(), 10);
    let mut arguments = vec!["--threads", "1", "train", "recipe.toml", "--out", "parts", "--quiet"];
    settings.iter().for_each(|change| arguments.extend(["--set", change]));
    let (mut stops, mut inside) = (0, 0);
    for attempt in 0..200 {
        let mut command = headfirst(&arguments);
        if attempt > 0 {
            command.arg("--resume");
        }
        let mut child = command.current_dir(tiny.folder.path()).spawn().unwrap();
        // A few batches further than where the last one stopped.
        let seen = std::time::Instant::now();
        let alive = wait_until(&mut child, || seen.elapsed().as_millis() > 60 + 17 * (attempt % 5));
        if alive {
            // SAFETY: a plain system call on a process of ours that has not been waited for.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        }
        let ended = end(child);
        if ended.code == Some(0) {
            break;
        }
        assert_eq!(ended.code, Some(143), "{}", ended.errors);
        stops += 1;
        for stage in ["joint", "1-2"] {
            let state = fs::read(tiny.path("parts").join(stage).join("state.json")).unwrap_or_default();
            let state: Value = serde_json::from_slice(&state).unwrap_or_default();
            inside += usize::from(state["parts"]["carried"].is_object());
        }
    }
    assert!(stops > 1 && inside > 0, "{stops} stops, {inside} of them inside an epoch");
    let (whole, parts) = (outcome(&tiny.path("whole")), outcome(&tiny.path("parts")));
    for (name, bytes) in &whole {
        assert!(parts[name] == *bytes, "{name} differs");
    }
    // Stopped anywhere, the log has the checksum of every epoch that was kept.
    for record in crate::program::log(&tiny.path("parts")) {
        let kept = &parts[&format!("{}/epoch-{}.safetensors", record["stage"].as_str().unwrap(), record["epoch"])];
        assert_eq!(record["kept_sha256"], headfirst::files::sha256(kept), "{record}");
    }
    // Averaged weights are what an epoch is judged by and what is kept.
    assert!(whole["joint/epoch-5.safetensors"] != whole["joint/epoch-4.safetensors"]);
}

fn dropouts(rate: f64) -> Dropouts {
    Dropouts { embedding: rate, input: rate, hidden: rate, output: rate, recurrent: rate, sharing: Sharing::Locked }
}

fn learner(device: &Device, tied: bool, frozen: &[usize], rate: f64) -> Learner<LstmLm> {
    let sizes = Sizes { vocabulary: 40, embedding: 9, units: 13, layers: 2, tied, dropouts: dropouts(rate) };
    let model = LstmLm::new(sizes);
    let parameters = Parameters::initialize(device, &model.structure().specs, Scheme::Uniform, 3);
    let options = UpdateOptions {
        method: Method::Sgd { momentum: 0.9, dampening: 0.0, nesterov: false },
        learning_rate: 0.1,
        epsilon: 0.0,
        epsilon_decay: 1.0,
        weight_decay: 0.0,
        clip: 0.25,
    };
    Learner::with_parameters(device, model, parameters, frozen, options)
}

fn ids(count: u32) -> Vec<u32> {
    (0..count).map(|k| k * k % 40).collect()
}

#[test]
fn a_stream_has_the_same_losses_wherever_it_is_split() {
    let device = Device::cpu();
    let learner = learner(&device, true, &[], 0.5);
    let ids = ids(31);
    let streams = Streams::whole(&ids, 1);
    let losses = |windows: &[std::ops::Range<usize>]| -> Vec<f64> {
        let mut carried = Carried::zeros(&device, learner.model(), 1);
        let of = |window: &std::ops::Range<usize>| {
            learner.text_losses(&streams.batch(window.clone()).unwrap(), Some(&mut carried)).unwrap()
        };
        windows.iter().flat_map(of).collect()
    };
    let whole = losses(std::slice::from_ref(&(0..30)));
    assert_eq!(whole.len(), 30, "every token after the first");
    for split in 1..30 {
        for (row, (found, expected)) in losses(&[0..split, split..30]).iter().zip(&whole).enumerate() {
            // Products of other sizes sum in another order.
            assert!((found - expected).abs() < 1e-5, "split at {split}, row {row}: {found} for {expected}");
        }
    }
    let one_by_one: Vec<_> = (0..30).map(|row| row..row + 1).collect();
    let sum = |losses: &[f64]| losses.iter().sum::<f64>();
    assert!((sum(&losses(&one_by_one)) - sum(&whole)).abs() < 1e-4);
    // A state that is lost is seen.
    let mut fresh = Carried::zeros(&device, learner.model(), 1);
    let tail = learner.text_losses(&streams.batch(15..30).unwrap(), Some(&mut fresh)).unwrap();
    assert!((sum(&tail) - sum(&whole[15..])).abs() > 1e-4);
}

fn objective() -> Objective {
    Objective { activation: 2.0, temporal: 1.0, per_sequence: false }
}

fn batch(ids: &[u32]) -> TextBatch {
    Streams::equal(ids, 3).unwrap().batch(0..7).unwrap()
}

#[test]
fn frozen_groups_keep_their_bits_and_have_neither_gradients_nor_state_nor_averages() {
    // All of one tied and of one untied model; the groups are counted from the bottom.
    for (tied, frozen) in
        [(true, &[2][..]), (true, &[1, 2]), (true, &[0]), (false, &[0]), (false, &[2, 3]), (false, &[3])]
    {
        let (device, ids) = (Device::cpu(), ids(40));
        let mut learner = learner(&device, tied, frozen, 0.3);
        let values = |learner: &Learner<LstmLm>, trainable: bool| -> Vec<Vec<f32>> {
            let parameters = &learner.parameters;
            let of = (0..parameters.len()).filter(|&index| parameters.is_trainable(index) == trainable);
            of.map(|index| parameters.value(index).to_vec()).collect()
        };
        let (before, moving) = (values(&learner, false), values(&learner, true));
        let trainable: usize = moving.iter().map(Vec::len).sum();
        let mut carried = Carried::zeros(&device, learner.model(), 3);
        let Learner { updater, parameters, .. } = &mut learner;
        updater.begin_average(&device, parameters, headfirst::optim::Average::default());
        for step in 0..3 {
            let key = MaskKey { seed: 1, stage: "1-2".into(), step };
            let step = learner.train_text(&batch(&ids), Some(&mut carried), &objective(), &key).unwrap();
            assert!(step.loss.is_finite() && step.update.non_finite.is_none());
        }
        assert!(values(&learner, false) == before, "tied {tied}, frozen {frozen:?}");
        assert!(values(&learner, true).iter().zip(&moving).all(|(a, b)| a != b), "tied {tied}, frozen {frozen:?}");
        assert_eq!(device.ledger().live(Category::Gradient), 4 * trainable as u64);
        assert_eq!(device.ledger().live(Category::OptimizerState), 2 * 4 * trainable as u64, "momentum and average");
        assert_eq!(device.ledger().live(Category::Activation), 0, "nothing outlives a step but what is carried");
    }
}

#[test]
fn a_frozen_top_and_the_lengths_of_windows_change_no_memory_for_masks_and_logits() {
    let peak = |rate: f64, steps: usize| {
        let (device, ids) = (Device::cpu(), ids(400));
        let mut learner = learner(&device, true, &[2], rate);
        let key = MaskKey { seed: 1, stage: "joint".into(), step: 0 };
        let batch = Streams::equal(&ids, 3).unwrap().batch(0..steps).unwrap();
        let plain = Objective { activation: 0.0, temporal: 0.0, per_sequence: false };
        learner.train_text(&batch, None, &plain, &key).unwrap().kept
    };
    // What dropout adds are the dropped activations themselves, as long as the products keep their inputs anyway: no masks.
    let grows = |rate| peak(rate, 100) - peak(rate, 50);
    assert!(grows(0.5) <= 2 * grows(0.0), "{} for {}", grows(0.5), grows(0.0));
}

#[test]
fn a_plan_has_the_bytes_that_training_has() {
    let tiny = Tiny::new();
    let settings = ["batch.random_bptt=false", "optimizer={kind='sgd', momentum=0.9}", "training.max_epochs=2"];
    let result = tiny.trained("run", &settings);
    let mut arguments = vec!["plan", "recipe.toml", "--json"];
    settings.iter().for_each(|change| arguments.extend(["--set", change]));
    let plan = tiny.json(&arguments);
    let (planned, found) = (&plan["stages"][0]["memory"], &result["stages"][0]["memory"]);
    for what in ["parameters", "gradients", "optimizer_state", "kept_activations", "peak"] {
        assert_eq!(planned[what], found[what], "{what}");
    }
    let text = tiny.headfirst(&["plan", "recipe.toml"]).output;
    assert!(text.contains("training tokens") && text.contains("4 sequences"), "{text}");
}

#[test]
fn the_weights_of_awd_lstm_lm_are_imported_and_score_as_they_did() {
    let tiny = Tiny::new();
    tiny.trained("run", &["training.max_epochs=2"]);
    let best = tiny.path("run/joint/best.safetensors");
    let bytes = fs::read(&best).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let original = |name: &str| match name.split_once(".weight_hh_l0").map(|(layer, _)| layer) {
        Some(layer) => format!("{layer}.module.weight_hh_l0_raw"),
        None if name.starts_with("rnns") => {
            name.replace(".weight_ih", ".module.weight_ih").replace(".bias", ".module.bias")
        }
        None => name.to_string(),
    };
    let mut tensors: Vec<(String, safetensors::tensor::TensorView<'_>)> =
        file.tensors().into_iter().map(|(name, view)| (original(&name), view)).collect();
    tensors.push(("decoder.weight".into(), file.tensor("encoder.weight").unwrap()));
    fs::write(tiny.path("WT2.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    let imported =
        tiny.json(&["import", "WT2.safetensors", "--recipe", "recipe.toml", "--out", "imported.safetensors", "--json"]);
    let scores = tiny.json(&["evaluate", "run", "--json"]);
    assert_eq!(imported, scores);
    let files = ["evaluate", "--recipe", "recipe.toml", "--weights", "imported.safetensors", "--json"];
    assert_eq!(tiny.json(&files), scores);
    // Another model's recipe.
    fs::write(tiny.path("other.toml"), RECIPE.replace("units = 16", "units = 17")).unwrap();
    let refused = tiny.headfirst(&["import", "WT2.safetensors", "--recipe", "other.toml", "--out", "x"]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.errors.contains("expected [68, 12]") || refused.errors.contains("expected [68"),
        "{}",
        refused.errors
    );
}

#[test]
fn what_cannot_be_is_refused_with_its_place_and_remedy() {
    let tiny = Tiny::new();
    tiny.trained("run", &["training.max_epochs=1"]);
    fs::write(tiny.path("latin1.txt"), b"the cat\nna\xEFve\n").unwrap();
    fs::write(tiny.path("other.txt"), "the zebra\n").unwrap();
    fs::write(tiny.path("empty.txt"), "").unwrap();
    fs::write(tiny.path("tokens.txt"), "<eos>\nthe\n").unwrap();
    let refused = |ended: Ended, parts: &[&str]| {
        assert_eq!(ended.code, Some(1), "{}", ended.errors);
        assert!(parts.iter().all(|part| ended.errors.contains(part)), "{}: {parts:?}", ended.errors);
    };
    refused(tiny.headfirst(&["evaluate", "run", "--data", "latin1.txt"]), &["latin1.txt", "offset 10", "iconv"]);
    refused(tiny.headfirst(&["evaluate", "run", "--data", "other.txt"]), &["other.txt:1", "zebra", "<unk>"]);
    refused(tiny.headfirst(&["evaluate", "run", "--data", "empty.txt"]), &["empty.txt", "0 tokens"]);
    refused(tiny.headfirst(&["evaluate", "run", "--data", "absent.txt"]), &["absent.txt"]);
    refused(tiny.headfirst(&["evaluate", "run", "--beam", "3"]), &["--beam", "speech"]);
    refused(tiny.headfirst(&["generate", "run", "--prompt", "zebra"]), &["--prompt", "zebra"]);
    refused(tiny.headfirst(&["generate", "run", "--temperature=-1"]), &["--temperature", "0 or more"]);
    refused(tiny.headfirst(&["generate", "nowhere"]), &["nowhere"]);
    refused(tiny.headfirst(&["transcribe", "run", "a.wav"]), &["run on text", "headfirst generate"]);
    refused(tiny.train("a", &["data.token_list=tokens.txt"]), &["train.txt:1", "\"cat\""]);
    refused(tiny.train("b", &["batch.sequences=900"]), &["batch.sequences", "900", "fewer"]);
    refused(tiny.train("c", &["data.tokens=bpe"]), &["bpe"]);
    refused(tiny.train("d", &["data.train=latin1.txt"]), &["latin1.txt", "offset 10"]);
    refused(tiny.train("run", &[]), &["--resume", "--out"]);
}
