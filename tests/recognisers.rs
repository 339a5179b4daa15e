//! The recognisers with a decoder, small: each learns a tiny corpus by heart, and a cascade freezes what it says. All through the binary.

use crate::tiny::{Run, Tiny};
use headfirst::train::weights::load_weights;

const TRANSFORMER: &str = "model={kind=\"transformer\", encoder_layers=1, decoder_layers=1, units=32, heads=2, \
                           feedforward=64, dropout=0.0, label_smoothing=0.1, ctc_weight=0.5}";

fn bits(tiny: &Tiny, file: &str, tensor: &str) -> Vec<u32> {
    let weights = load_weights(tiny.path(file)).unwrap();
    let shape = weights.shape(tensor).unwrap().to_vec();
    weights.get(tensor, &shape).unwrap().iter().map(|x| x.to_bits()).collect()
}

fn assert_learned(run: &Run) {
    for stage in &run.result.stages {
        assert_eq!((stage.valid.cer, stage.valid.wer), (Some(0.0), Some(0.0)), "{}", stage.stage);
    }
}

#[test]
fn a_transformer_learns_a_tiny_corpus_to_zero_error_jointly_and_below_its_softmax_layers() {
    let tiny = Tiny::new();
    let run = tiny.train(
        "run",
        &[
            TRANSFORMER,
            "optimizer={kind=\"adam\", learning_rate=0.4, warmup=40}",
            "training.max_epochs=60",
            "cascade={strategy=\"fixed\", compositions=[[1, 3]]}",
        ],
    );
    assert_eq!(run.stages(), ["joint", "1-3"]);
    assert_learned(&run);
    let groups: Vec<&str> = run.result.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(groups, ["front-end", "encoder-1", "decoder-1", "softmax"]);
    assert_eq!(run.result.stages[1].frozen_groups, [3]);
    for (tensor, is_frozen) in
        [("ctc.ctc_lo.weight", true), ("decoder.output_layer.bias", true), ("encoder.embed.conv.0.weight", false)]
    {
        let [joint, cut] = ["joint", "1-3"].map(|stage| bits(&tiny, &format!("run/{stage}/best.safetensors"), tensor));
        assert_eq!(joint == cut, is_frozen, "{tensor}");
    }
    // What was trained can be used: the same scores from the run's files.
    let ended = tiny.headfirst(&["evaluate", "run", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert!(ended.output.contains("\"cer\": 0.0") || ended.output.contains("\"cer\":0.0"), "{}", ended.output);
}

#[test]
fn a_front_end_is_a_group_of_its_own_and_can_be_retrained_under_all_the_rest() {
    let tiny = Tiny::new();
    let model = "model={kind=\"blstm-ctc\", frontend=\"vgg\", layers=1, units=32, projection=24}";
    let cascade = "cascade={strategy=\"fixed\", compositions=[[2, 1]]}";
    let run = tiny.train(
        "run",
        &[model, "optimizer.learning_rate=0.001", "batch.utterances=2", "training.max_epochs=60", cascade],
    );
    assert_eq!(run.stages(), ["joint", "2-1"]);
    assert_learned(&run);
    assert_eq!(run.result.stages[1].frozen_groups, [1, 2]);
    let moved: Vec<&str> = run.result.stages[1].movement.iter().map(|movement| movement.layer.as_str()).collect();
    assert_eq!(moved, ["encoder.vgg"]);
    assert_eq!(tiny.headfirst(&["evaluate", "run"]).code, Some(0));
}

#[test]
fn ctc_with_attention_learns_a_tiny_corpus_to_zero_error_jointly_and_below_its_softmax_layers() {
    let tiny = Tiny::new();
    let model = "model={kind=\"ctc-attention\", layers=1, units=16, projection=12, subsample=[2], attention=12, \
                 attention_channels=2, attention_reach=5, decoder_units=16, label_smoothing=0.05}";
    let cascade = "cascade={strategy=\"fixed\", compositions=[[1, 2]]}";
    let run = tiny.train("run", &[model, "training.max_epochs=60", cascade]);
    assert_eq!(run.stages(), ["joint", "1-2"]);
    assert_learned(&run);
    let groups: Vec<&str> = run.result.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(groups, ["blstm-1", "decoder", "softmax"]);
    for (tensor, is_frozen) in [("ctc.ctc_lo.weight", true), ("dec.output.bias", true), ("att.gvec.weight", false)] {
        let [joint, cut] = ["joint", "1-2"].map(|stage| bits(&tiny, &format!("run/{stage}/best.safetensors"), tensor));
        assert_eq!(joint == cut, is_frozen, "{tensor}");
    }
    assert_eq!(tiny.headfirst(&["evaluate", "run"]).code, Some(0));
}

#[test]
fn the_average_of_the_last_epochs_takes_the_place_of_the_best() {
    let tiny = Tiny::new();
    let changes = ["training={max_epochs=3, patience=0, keep=\"all\", average_epochs=2}"];
    let run = tiny.train("run", &[&changes[..], &["cascade={strategy=\"fixed\", compositions=[[1, 2]]}"]].concat());
    for stage in run.stages() {
        let of = |file: &str| bits(&tiny, &format!("run/{stage}/{file}.safetensors"), "encoder.proj.0.weight");
        let (second, third) = (of("epoch-2"), of("epoch-3"));
        let mean = |(a, b): (&u32, &u32)| {
            let [a, b] = [a, b].map(|&bits| f64::from(f32::from_bits(bits)));
            (((a + b) / 2.0) as f32).to_bits()
        };
        assert!(run.result.stages.iter().all(|stage| stage.averaged_epochs == Some(2)));
        assert_eq!(of("best"), second.iter().zip(&third).map(mean).collect::<Vec<_>>(), "{stage}");
    }
    let ended = tiny.try_train("refused", &["training.average_epochs=2"]);
    assert!(ended.errors.contains("Add training.keep = \"all\""), "{}", ended.errors);
}

#[test]
fn what_a_transformer_cannot_be_is_refused() {
    let tiny = Tiny::new();
    for (change, problem) in [
        ("model.heads=3", "model.heads is 3, and model.units is 32"),
        ("model.ctc_weight=1.0", "model.ctc_weight"),
        ("model.layers=2", "model.layers"),
    ] {
        let ended = tiny.try_train("refused", &[TRANSFORMER, change]);
        assert_eq!(ended.code, Some(1));
        assert!(ended.errors.contains(problem), "{}", ended.errors);
    }
    let ended = tiny.try_train("refused", &["optimizer.warmup=10"]);
    assert!(ended.errors.contains("use model.kind = \"transformer\""), "{}", ended.errors);
}
