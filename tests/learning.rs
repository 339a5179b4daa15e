//! The whole of it, small: a corpus is learned by heart, and every strategy and option trains what it promises. All through the binary.

use crate::tiny::{Run, Tiny, write_folder};
use headfirst::train::record::EpochRecord;
use headfirst::train::weights::load_weights;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

/// What is true of every finished run.
fn assert_sensible(run: &Run) {
    let result = &run.result;
    assert!(result.finished);
    let groups: Vec<&str> = result.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(groups, ["blstm-1", "blstm-2", "softmax"]);
    let lowest = result.stages.iter().map(|stage| stage.criterion_value).fold(f64::INFINITY, f64::min);
    let best = result.stages.iter().find(|stage| Some(&stage.stage) == result.best.as_ref()).unwrap();
    assert!(best.accepted && best.criterion_value == lowest, "{:?}", result.best);
    for stage in &result.stages {
        let name = &stage.stage;
        assert_eq!((stage.criterion.as_str(), Some(stage.criterion_value)), ("cer", stage.valid.cer), "{name}");
        // `valid` and `test` are the same folder.
        assert_eq!(stage.test.as_ref(), Some(&stage.valid), "{name}");
        assert_eq!(stage.samples.len(), 5, "{name}");
        let epochs: Vec<_> = run.epochs.iter().filter(|epoch| epoch.stage == *name).collect();
        let numbers: Vec<usize> = epochs.iter().map(|epoch| epoch.epoch).collect();
        assert_eq!(numbers, (1..=stage.epochs).collect::<Vec<_>>(), "{name}");
        // An epoch is marked if it is the best so far; the last one marked is the stage's.
        let mut lowest = f64::INFINITY;
        for epoch in &epochs {
            assert_eq!(epoch.best, epoch.valid_loss < lowest, "{name}, epoch {}", epoch.epoch);
            lowest = lowest.min(epoch.valid_loss);
        }
        assert_eq!(epochs.iter().rfind(|epoch| epoch.best).map(|epoch| epoch.epoch), Some(stage.best_epoch), "{name}");
        assert_eq!(stage.valid.loss, lowest, "{name}: scored with its best epoch's weights");
        // A layer is in the table of movements if and only if it was trained; it moves once there is an epoch after the first.
        let layers = [["encoder.blstm.0", "encoder.proj.0"], ["encoder.blstm.1", "encoder.proj.1"], ["ctc", ""]];
        let trained = layers.iter().enumerate().filter(|(group, _)| !stage.frozen_groups.contains(group));
        let trained: Vec<&str> = trained.flat_map(|(_, layers)| *layers).filter(|layer| !layer.is_empty()).collect();
        let moved: Vec<&str> = stage.movement.iter().map(|movement| movement.layer.as_str()).collect();
        assert_eq!(moved, trained, "{name}");
        assert!(
            stage.movement.iter().all(|layer| (layer.sum_absolute_change > 0.0) == (stage.best_epoch > 1)),
            "{name}"
        );
    }
    assert_eq!(run.epochs.len(), result.stages.iter().map(|stage| stage.epochs).sum::<usize>());
}

#[test]
fn a_tiny_corpus_is_learned_to_zero_error() {
    let tiny = Tiny::new();
    let changes = ["training.max_epochs=40", "cascade={strategy=\"fixed\", compositions=[[1, 2]]}"];
    let run = tiny.train("run", &changes);
    assert_sensible(&run);
    assert_eq!(run.stages(), ["joint", "1-2"]);
    for stage in &run.result.stages {
        assert_eq!((stage.valid.cer, stage.valid.wer), (Some(0.0), Some(0.0)), "{}", stage.stage);
        assert!(stage.samples.iter().all(|sample| sample.hypothesis == sample.reference));
    }
    // The frozen softmax of the second stage has the bits of the first.
    assert_eq!(softmax(&tiny, "run/joint/best.safetensors"), softmax(&tiny, "run/1-2/best.safetensors"));
    let before = run.epochs.iter().find(|epoch| epoch.stage == "1-2").unwrap();
    assert!(before.valid_cer > Some(0.0), "the groups below the cut started anew");
}

fn softmax(tiny: &Tiny, file: &str) -> Vec<u32> {
    let weights = load_weights(tiny.path(file)).unwrap();
    let shape = weights.shape("ctc.weight").unwrap().to_vec();
    weights.get("ctc.weight", &shape).unwrap().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn joint_training_of_all_strategies_runs() {
    let tiny = Tiny::new();
    for (strategy, keys, stages) in [
        ("none", "", &["joint"][..]),
        ("exhaustive", "", &["joint", "1-2", "2-1", "1-1-1"]),
        ("fixed", ", compositions=[[2, 1], [1, 1, 1]]", &["joint", "2-1", "1-2", "1-1-1"]),
        ("freeze-bottom", "", &["joint", "bottom-1"]),
        ("greedy", "", &["joint", "1-2", "1-1-1"]),
        ("cut-search", ", inner=\"always\"", &["joint", "1-2", "2-1", "1-1-1"]),
    ] {
        let run = tiny.train(strategy, &[&format!("cascade={{strategy=\"{strategy}\"{keys}}}")]);
        assert_sensible(&run);
        assert_eq!(run.result.strategy, strategy);
        let trained = run.stages();
        let frozen: BTreeMap<&str, &[usize]> = BTreeMap::from([
            ("joint", &[][..]),
            ("1-2", &[2]),
            ("1-1-1", &[1, 2]),
            ("2-1", &[1, 2]),
            ("bottom-1", &[0]),
        ]);
        for stage in &run.result.stages {
            assert_eq!(stage.frozen_groups, frozen[stage.stage.as_str()], "{strategy}");
        }
        let value = |name: &str| run.result.stages.iter().find(|stage| stage.stage == name).unwrap();
        match strategy {
            // Freezes one group more while the error does not rise: all but the last stage were accepted.
            "greedy" => {
                assert!(stages.starts_with(&trained) && trained.len() >= 2, "{trained:?}");
                for pair in trained.windows(2) {
                    let accepted = value(pair[1]).criterion_value <= value(pair[0]).criterion_value;
                    assert_eq!(value(pair[1]).accepted, accepted, "{trained:?}");
                }
                assert!(trained[..trained.len() - 1].iter().all(|name| value(name).accepted));
                assert!(trained.len() == 3 || !value(trained[1]).accepted);
            }
            // Goes on to 1-1-1 if freezing one group is strictly better, to 2-1 if it is not.
            "cut-search" => {
                let improved = value("1-2").criterion_value < value("joint").criterion_value;
                assert_eq!(value("1-2").accepted, improved);
                assert_eq!(trained, ["joint", "1-2", if improved { "1-1-1" } else { "2-1" }]);
            }
            _ => {
                let sorted = |names: &[&str]| {
                    let mut names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
                    names.sort();
                    names
                };
                assert_eq!(sorted(&trained), sorted(stages), "{strategy}");
                assert!(run.result.stages.iter().all(|stage| stage.accepted), "{strategy}");
            }
        }
    }
}

#[test]
fn a_classifier_comes_from_another_run_and_must_fit() {
    let tiny = Tiny::new();
    tiny.train("first", &["training.max_epochs=3", "training.keep=all"]);
    let from = |source: &str| format!("cascade={{strategy=\"greedy\", classifier_from=\"{source}\"}}");
    let run = tiny.train("second", &[&from("first/joint@2")]);
    assert_sensible(&run);
    assert_eq!(run.stages()[0], "1-2");
    let source = run.result.stages[0].classifier_from.clone().unwrap();
    assert!(source.ends_with("first/joint@2"), "{source}");
    assert_eq!(softmax(&tiny, "second/1-2/best.safetensors"), softmax(&tiny, "first/joint/epoch-2.safetensors"));
    assert_ne!(softmax(&tiny, "second/1-2/best.safetensors"), softmax(&tiny, "first/joint/epoch-3.safetensors"));

    let fails = |run: &str, changes: &[&str], parts: &[&str]| {
        let ended = tiny.try_train(run, changes);
        assert_eq!(ended.code, Some(1));
        assert!(parts.iter().all(|part| ended.errors.contains(part)), "{parts:?} in {}", ended.errors);
    };
    fails("shape", &[&from("first"), "model.projection=10"], &["ctc.weight", "12", "10"]);
    fs::write(tiny.path("tokens.txt"), "<blank>\na\nb\nx\nd\n").unwrap();
    fails("list", &[&from("first"), "data.token_list=tokens.txt"], &["data.token_list", "symbol 3", "\"x\"", "\"c\""]);
    write_folder(&tiny.path("others"), 12, "abce", 2);
    fails("letter", &[&from("first"), "data.train=others"], &["speaker-003", "\"e\""]);
    tiny.train("third", &["data.train=others", "data.valid=others", "data.test=others", "training.max_epochs=1"]);
    let two = "cascade={strategy=\"greedy\", classifier_from=[\"first\", \"third\"]}";
    fails("two", &[two], &["cascade.classifier_from", "third", "symbol 4", "\"e\"", "\"d\""]);
}

#[test]
fn weights_below_a_classifier_are_evaluated_by_recipe_as_their_run_evaluates_them() {
    let tiny = Tiny::new();
    tiny.train("first", &["training.max_epochs=1"]);
    // A list made from these letters would have one symbol less, and no statistics are those of the first run.
    write_folder(&tiny.path("fewer"), 8, "abc", 2);
    let from = "cascade={strategy=\"greedy\", classifier_from=\"first\"}";
    tiny.train("second", &[from, "data.train=fewer", "data.cmvn=classifier", "training.max_epochs=1"]);
    let scores = |weights: &[&str]| -> Value {
        let ended = tiny.headfirst(&[&["evaluate", "--data", "valid", "--json"], weights].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        serde_json::from_str(&ended.output).unwrap()
    };
    let of_run = scores(&["second/1-2"]);
    let of_files = scores(&["--recipe", "second/recipe.toml", "--weights", "second/1-2/best.safetensors"]);
    assert_eq!((&of_files["loss"], &of_files["cer"]), (&of_run["loss"], &of_run["cer"]));
}

#[test]
fn several_seeds_are_several_cascades() {
    let tiny = Tiny::new();
    let run = tiny.train("run", &["seeds=[1, 2]", "cascade.strategy=freeze-bottom"]);
    assert_sensible(&run);
    let stages = ["joint.seed1", "bottom-1.seed1", "joint.seed2", "bottom-1.seed2"];
    assert_eq!(run.stages(), stages);
    assert_eq!(run.result.stages.iter().map(|stage| stage.seed).collect::<Vec<_>>(), [1, 1, 2, 2]);
    assert_ne!(run.epochs[0].train_loss, run.epochs[4].train_loss);
    // What is said at the end: a mean over both seeds of each stage, and of the best of each.
    let ended = tiny.headfirst(&["train", "run/recipe.toml", "--out", "run", "--resume"]);
    let losses: Vec<f64> = run.result.stages.iter().step_by(2).map(|stage| stage.valid.loss).collect();
    let (mean, half) = ((losses[0] + losses[1]) / 2.0, (losses[0] - losses[1]).abs() / 2.0);
    // The standard deviation of two numbers is their distance divided by the root of 2.
    let joint = format!("{mean:.3} ± {:.3}", half * 2f64.sqrt());
    let line = |name: &str| ended.output.lines().rfind(|line| line.starts_with(name)).unwrap_or_default().to_string();
    assert!(line("joint ").contains(&joint), "{joint} is not in\n{}", ended.output);
    assert!(line("freeze-bottom ").contains('±') && line("best of each seed").contains('±'), "{}", ended.output);
    assert_eq!(run.result.bests.len(), 2);
    assert!(run.result.bests.contains(run.result.best.as_ref().unwrap()));
    // The first seed alone gives the same numbers.
    let alone = tiny.train("alone", &["seed=1", "cascade.strategy=freeze-bottom"]);
    assert_eq!(losses_of(&alone), losses_of(&run)[..4]);
}

/// Of every epoch, while training and after it.
fn losses_of(run: &Run) -> Vec<[f64; 2]> {
    run.epochs.iter().map(|epoch| [epoch.train_loss, epoch.valid_loss]).collect()
}

#[test]
fn what_decides_a_cascade_is_what_its_table_shows() {
    let tiny = Tiny::new();
    for (criterion, shown) in [("wer", "WER"), ("cer", "CER"), ("loss", "CER")] {
        tiny.train(criterion, &[&format!("cascade.criterion={criterion}"), "training.max_epochs=1"]);
        let ended = tiny.headfirst(&["train", &format!("{criterion}/recipe.toml"), "--out", criterion, "--resume"]);
        let head = ["valid loss", &format!("valid {shown}"), &format!("test {shown}")].join("  ");
        assert!(ended.output.contains(&head), "{head} is not in\n{}", ended.output);
    }
}

#[test]
fn batches_and_masks_follow_their_seeds_and_not_what_else_a_recipe_lists() {
    let tiny = Tiny::new();
    let once = ["training.max_epochs=1", "model.dropout=0.2"];
    let train = |run: &str, changes: &[&str]| losses_of(&tiny.train(run, &[&once, changes].concat()));
    let fixed = train("fixed", &["seeds=[1, 2]", "init_seed=5", "data_seed=5", "dropout_seed=5"]);
    assert_eq!(fixed[0], fixed[1]);
    tiny.train("first", &["training.max_epochs=1", "training.keep=all"]);
    // The same weights twice.
    let from = |list: &str| format!("cascade.classifier_from={list}");
    let both = train("both", &[&from("[\"first/joint\", \"first/joint@1\"]")]);
    let one = train("one", &[&from("\"first/joint\"")]);
    assert_eq!(both, [one[0], one[0]]);
    let reinitialised = |seeds: &str| [from("\"first/joint\""), format!("cascade.reinit_seeds={seeds}")];
    let again = |run: &str, seeds: &str| train(run, &reinitialised(seeds).each_ref().map(String::as_str));
    let (three, seven) = (again("three", "[3]"), again("three-and-seven", "[3, 7]"));
    assert_eq!(three[0], seven[0]);
    assert_ne!(seven[0], seven[1]);
}

/// The weights that were kept of an epoch have the scores that the log says.
fn assert_kept(tiny: &Tiny, run: &str, epoch: &EpochRecord) {
    let weights = format!("{run}/{}@{}", epoch.stage, epoch.epoch);
    let ended = tiny.headfirst(&["evaluate", &weights, "--data", "valid", "--json"]);
    let scores: Value = serde_json::from_str(&ended.output).unwrap();
    assert_eq!(scores["loss"].as_f64(), Some(epoch.valid_loss), "{weights}");
    assert_eq!((scores["cer"].as_f64(), scores["wer"].as_f64()), (epoch.valid_cer, epoch.valid_wer), "{weights}");
    assert_eq!(scores["utterances"], 5);
}

#[test]
fn every_kept_epoch_can_be_evaluated_and_has_the_loss_of_the_log() {
    let tiny = Tiny::new();
    let run = tiny.train("run", &["training.max_epochs=3", "training.keep=all", "model.dropout=0.2"]);
    run.epochs.iter().for_each(|epoch| assert_kept(&tiny, "run", epoch));
    let ended = tiny.headfirst(&["evaluate", "run/joint@4"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.errors.contains("1, 2, 3"), "{}", ended.errors);
}

/// A learning rate at which losses rise and fall.
const WILD: &str = "optimizer={kind=\"adadelta\", learning_rate=60, epsilon=1e-6, clip=0}";

#[test]
fn epsilon_decays_and_the_best_weights_come_back_when_validation_gets_worse() {
    let tiny = Tiny::new();
    let train = |run: &str, keys: &str| {
        let optimizer = WILD.replace('}', &format!(", {keys}}}"));
        tiny.train(run, &[&optimizer, "training.max_epochs=8", "training.keep=all"])
    };
    let without = train("without", "epsilon_decay=1.0");
    let decayed = train("decayed", "epsilon_decay=0.01, epsilon_decay_restores_best=false");
    let restored = train("restored", "epsilon_decay=0.01");
    let worse = without.epochs.iter().position(|epoch| !epoch.best).expect("the losses rise and fall");
    assert!((1..7).contains(&worse), "there is an epoch after epoch {}", worse + 1);
    // The same up to the first worse epoch and different from the next one on.
    for (a, b) in [(&without, &decayed), (&without, &restored), (&decayed, &restored)] {
        let losses = |run: &Run| run.epochs.iter().map(|epoch| epoch.valid_loss).collect::<Vec<_>>();
        let (a, b) = (losses(a), losses(b));
        assert_eq!(a[..=worse], b[..=worse]);
        assert_ne!(a[worse + 1], b[worse + 1]);
    }
    // What is kept of the worse epoch is what it ended with, not what came back.
    assert_kept(&tiny, "restored", &restored.epochs[worse]);
}

#[test]
fn patience_ends_a_stage_that_gets_no_better() {
    let tiny = Tiny::new();
    let run = tiny.train("run", &[WILD, "training.max_epochs=60", "training.patience=2"]);
    assert_sensible(&run);
    let stage = &run.result.stages[0];
    assert!(stage.epochs < 60);
    assert_eq!(stage.epochs, stage.best_epoch + 2);
}

#[test]
fn a_subset_is_trained_on_alone() {
    let tiny = Tiny::new();
    // Batches of four: three of them in all twelve utterances, two in half of them, one in a quarter.
    for (run, fraction, steps) in [("all", "1.0", 3), ("half", "0.5", 2), ("quarter", "0.25", 1)] {
        let run = tiny.train(run, &[&format!("data.subset={{fraction={fraction}, seed=3}}")]);
        assert_sensible(&run);
        assert_eq!(run.epochs[0].step, steps, "{fraction}");
        assert_eq!(run.result.stages[0].valid.utterances, Some(5));
    }
}
