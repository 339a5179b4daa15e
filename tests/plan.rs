//! `headfirst plan` against what training then takes.

use crate::tiny::{Tiny, write_folder};
use headfirst::device::Device;
use headfirst::recipe::Recipe;
use headfirst::train::plan::forecast;
use headfirst::train::progress::Mode;
use serde_json::Value;
use std::time::{Duration, Instant};

fn plan(tiny: &Tiny, changes: &[&str]) -> Value {
    let mut arguments = vec!["plan", "recipe.toml", "--json"];
    changes.iter().for_each(|change| arguments.extend(["--set", change]));
    let ended = tiny.headfirst(&arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    serde_json::from_str(&ended.output).unwrap()
}

#[test]
fn the_planned_bytes_are_those_that_training_allocates() {
    let tiny = Tiny::new();
    // Twenty times as long as anything in training: the peak is in its evaluation.
    write_folder(&tiny.path("long"), 4, "abcd", 60);
    let exhaustive = "cascade.strategy=exhaustive";
    for (run, changes) in [
        ("adam", &[exhaustive, "model.dropout=0.2"][..]),
        ("adadelta", &["optimizer={kind=\"adadelta\"}", "cascade.strategy=freeze-bottom", "data.cmvn=utterance"]),
        ("sgd", &["optimizer={kind=\"sgd\"}", "model.subsample=[3, 1]", "training.max_epochs=1", exhaustive]),
        ("long-test", &["data.test=long", "cascade.strategy=fixed", "cascade.compositions=[[2, 1]]"]),
    ] {
        let planned = plan(&tiny, changes);
        let result = tiny.train(run, changes).result;
        let stages = planned["stages"].as_array().unwrap();
        assert_eq!(planned["most_stages"], result.stages.len());
        for (planned, trained) in stages.iter().zip(&result.stages) {
            assert_eq!(planned["stage"], trained.stage.as_str());
            assert_eq!(planned["frozen_groups"], serde_json::json!(trained.frozen_groups));
            let trained_memory = serde_json::to_value(trained.memory).unwrap();
            for (name, bytes) in planned["memory"].as_object().unwrap() {
                assert_eq!(*bytes, trained_memory[name], "{name} of {run}/{}", trained.stage);
            }
            let parameters = result.groups.iter().map(|group| group.parameters).sum::<u64>();
            assert_eq!(planned["parameters"], parameters);
            assert_eq!(planned["memory"]["parameters"], 4 * parameters);
            assert_eq!(
                planned["memory"]["gradients"].as_u64(),
                planned["trainable_parameters"].as_u64().map(|n| 4 * n)
            );
        }
        let is_evaluation = stages[0]["memory"]["peak"].as_u64() > stages[0]["largest_batch"]["peak"].as_u64();
        assert_eq!(is_evaluation, run == "long-test");
    }
}

#[test]
fn the_planned_operations_are_those_of_all_batches() {
    let tiny = Tiny::new();
    let planned = plan(&tiny, &["data.valid=train", "cascade.strategy=exhaustive"]);
    let stages = planned["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 4);
    let number = |value: &Value| value.as_u64().unwrap();
    let mut total = 0;
    for stage in stages {
        // Validation is a forward pass over the same utterances.
        assert_eq!(stage["validation_operations"], stage["epoch"]["forward"]);
        let batch = &stage["largest_batch"]["work"];
        assert!(number(&batch["forward"]) < number(&stage["epoch"]["forward"]));
        assert!(number(&batch["backward"]) < number(&stage["epoch"]["backward"]));
        total += 2 * number(&stage["epoch"]["forward"]) + number(&stage["epoch"]["backward"]);
    }
    assert_eq!(number(&planned["operations_of_an_epoch_of_each"]), total);
    // The more is frozen, the less goes back; forward is the same.
    let of = |stage: &str, what: &str| number(&stages.iter().find(|s| s["stage"] == stage).unwrap()["epoch"][what]);
    assert!(of("joint", "backward") > of("1-2", "backward") && of("1-2", "backward") > of("2-1", "backward"));
    assert_eq!(of("joint", "forward"), of("2-1", "forward"));
}

#[test]
fn a_plan_for_people_names_every_stage_and_its_largest_batch() {
    let tiny = Tiny::new();
    let table = tiny.headfirst(&["plan", "recipe.toml", "--set", "cascade.strategy=greedy"]).output;
    for part in ["joint", "M(1,2)", "M(1,1,1)", "MiB", "GFLOP", "Largest batch: 4 utterances", "At most 3 stages"] {
        assert!(table.contains(part), "{part:?} is missing in\n{table}");
    }
    assert!(!table.contains("retry"), "{table}");
    let table = tiny.headfirst(&["plan", "recipe.toml", "--set", "cascade.strategy=cut-search"]).output;
    assert!(table.contains("straight path") && table.contains("A retry"), "{table}");
    assert!(!tiny.path("runs").exists(), "a plan writes nothing");
}

#[test]
fn a_model_that_no_machine_holds_is_planned_at_once() {
    let tiny = Tiny::new();
    let sizes = ["layers=8", "units=100000", "projection=100000", "subsample=[1, 1, 1, 1, 1, 1, 1, 1]"];
    let mut changes: Vec<String> = sizes.iter().map(|size| format!("model.{size}")).collect();
    changes.push("cascade.strategy=exhaustive".into());
    let recipe = Recipe::load(tiny.path("recipe.toml"), &changes).unwrap();
    let begin = Instant::now();
    let planned = forecast(&recipe, &Device::cpu(), Mode::Quiet).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    // Nine groups: every subset of the eight places to cut between them.
    assert_eq!(planned.most_stages, 256);
    assert!(planned.stages.iter().all(|stage| stage.needs.memory.peak > 3 << 40), "less than 3 TiB");
}

#[test]
fn what_makes_a_training_impossible_is_the_same_error_in_its_plan() {
    let tiny = Tiny::new();
    for (run, change) in [
        ("folder", "data.train=nowhere"),
        ("key", "model.unit=3"),
        ("value", "model.units=0"),
        ("cascade", "cascade={strategy=\"fixed\", compositions=[[1, 1]]}"),
        ("precision", "training.precision=bf16"),
        ("classifier", "cascade.classifier_from=nowhere"),
    ] {
        let planned = tiny.headfirst(&["plan", "recipe.toml", "--set", change]);
        let trained = tiny.try_train(run, &[change]);
        assert_eq!(planned.code, Some(1), "{change}");
        assert_eq!(planned.errors, trained.errors, "{change}");
        assert!(planned.errors.starts_with("error: ") && planned.output.is_empty(), "{change}");
    }
}
