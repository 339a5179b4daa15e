//! The model `transformer` against PyTorch: fixtures/README.md says what the numbers are and how they were made.

use headfirst::device::{Category, Device};
use headfirst::models::Network;
use headfirst::models::recogniser::{Recogniser, Teaching};
use headfirst::models::transformer::{Sizes, Transformer};
use headfirst::nn::{Parameters, Scheme};
use headfirst::ops::sequences::Sequences;
use headfirst::optim::{Method, Noam};
use headfirst::random::MaskKey;
use headfirst::tape::{Tape, Var};
use headfirst::tensor::Tensor;
use headfirst::train::learner::{Batch, Learner};
use headfirst::train::updater::UpdateOptions;
use safetensors::SafeTensors;
use serde_json::Value;

/// Behind a number stand at most 2 + 2 layers of 3 parts of some 5 sums of 8 to 12 numbers and 30 roundings, and 16 of the front end's: 1600
/// rounded operations, as often up as down: sqrt(1600) / 2 = 20 epsilons.
const ONE_PASS: f64 = 20.0 * f32::EPSILON as f64;
/// Ten steps: ten times the variance; Adam divides what is small by what is as small, which makes three times as much of it. PyTorch's own f32 is
/// off by up to 3.1e-6.
const TEN_STEPS: f64 = 10.0 * ONE_PASS;

struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Self {
        Fixture(std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/transformer.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn sizes(&self) -> Value {
        let metadata = SafeTensors::read_metadata(&self.0).unwrap().1.metadata().clone().unwrap();
        serde_json::from_str(&metadata["sizes"]).unwrap()
    }
}

fn model(sizes: &Value) -> Transformer {
    let whole = |name: &str| sizes[name].as_u64().unwrap() as usize;
    Transformer::new(Sizes {
        inputs: whole("inputs"),
        encoder_layers: whole("encoder_layers"),
        decoder_layers: whole("decoder_layers"),
        units: whole("units"),
        heads: whole("heads"),
        feedforward: whole("feedforward"),
        dropout: 0.0,
        attention_dropout: 0.0,
        ctc_weight: sizes["ctc_weight"].as_f64().unwrap(),
        label_smoothing: sizes["smoothing"].as_f64().unwrap(),
        symbols: whole("symbols"),
    })
}

/// The first `count` utterances.
fn batch(fixture: &Fixture, count: usize) -> Batch {
    let sizes = fixture.sizes();
    let whole = |value: &Value| value.as_u64().unwrap();
    let lengths: Vec<usize> = sizes["lengths"].as_array().unwrap().iter().map(|n| whole(n) as usize).collect();
    let labels = sizes["labels"].as_array().unwrap().iter();
    let labels = labels.map(|labels| labels.as_array().unwrap().iter().map(|n| whole(n) as u32).collect());
    let frames: Vec<Vec<f32>> = (0..count).map(|n| fixture.floats(&format!("frames.{n}"))).collect();
    Batch {
        sequences: Sequences::new(&lengths[..count]).unwrap(),
        features: headfirst::data::batch::pack(&frames, whole(&sizes["inputs"]) as usize),
        labels: labels.take(count).collect(),
    }
}

fn learner(fixture: &Fixture, frozen: &[usize], options: UpdateOptions) -> Learner<Transformer> {
    let (device, model) = (Device::cpu(), model(&fixture.sizes()));
    let mut parameters = Parameters::initialize(&device, &model.structure().specs, Scheme::Pytorch, 0);
    for (index, spec) in model.structure().specs.iter().enumerate() {
        parameters.set(index, &fixture.floats(&format!("initial.{}", spec.name))).unwrap();
    }
    Learner::with_parameters(&device, model, parameters, frozen, options)
}

fn options(method: Method, learning_rate: f64, epsilon: f64, clip: f64) -> UpdateOptions {
    UpdateOptions { method, learning_rate, epsilon, epsilon_decay: 1.0, weight_decay: 0.0, clip }
}

fn still() -> UpdateOptions {
    options(Method::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false }, 0.0, 0.0, 0.0)
}

fn masks(step: u32) -> MaskKey {
    MaskKey { seed: 1, stage: "joint".into(), step }
}

fn assert_close(what: &str, found: impl IntoIterator<Item = f64>, expected: &[f32], tolerance: f64) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - f64::from(expected)).abs() / f64::from(expected).abs().max(1.0);
        assert!(error <= tolerance, "{what}[{index}] is {found}, not {expected}: {error:e} > {tolerance:e}");
    }
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> + '_ {
    values.iter().map(|&value| f64::from(value))
}

#[test]
fn logits_losses_and_every_gradient_are_pytorchs() {
    let fixture = Fixture::open();
    let mut learner = learner(&fixture, &[], still());
    let batch = batch(&fixture, 3);
    let evaluation = learner.evaluate(&batch).unwrap();
    for n in 0..3 {
        let found = evaluation.sequences.unpack(n, evaluation.logits.data(), learner.model().sizes().symbols);
        let what = format!("logits.{n}");
        assert_close(&what, wide(&found), &fixture.floats(&what), ONE_PASS);
    }
    assert_close("losses", evaluation.losses, &fixture.floats("losses"), ONE_PASS);
    let step = learner.train(&batch, &masks(0)).unwrap();
    assert_eq!(step.feasible, [true; 3]);
    assert_close("loss", [step.losses.iter().sum::<f64>() / 3.0], &fixture.floats("loss"), ONE_PASS);
    for (index, spec) in learner.model().structure().specs.iter().enumerate() {
        let found = learner.parameters.gradients.get(index).unwrap();
        let what = format!("gradients.{}", spec.name);
        assert_close(&what, wide(found.data()), &fixture.floats(&what), ONE_PASS);
    }
}

#[test]
fn ten_updates_with_noams_rates_of_two_batches_and_frozen_are_pytorchs() {
    let fixture = Fixture::open();
    let clip = fixture.sizes()["clip"].as_f64().unwrap();
    let adam = Method::Adam { beta1: 0.9, beta2: 0.98 };
    let adadelta = Method::Adadelta { rho: 0.95 };
    for (run, frozen, options, noam, batches) in [
        ("noam", &[][..], options(adam, 0.2, 1e-9, clip), Some(Noam { width: 8, warmup: 4 }), &[3][..]),
        ("accumulated", &[], options(adam, 0.01, 1e-9, clip), None, &[3, 2]),
        // The softmax layers and the upper decoder layer.
        ("frozen", &[4, 5], options(adadelta, 1.0, 1e-8, clip), None, &[3]),
    ] {
        let mut learner = learner(&fixture, frozen, options);
        learner.updater.noam = noam;
        learner.accumulate(batches.len());
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for step in 0..10 {
            for (index, &count) in batches.iter().enumerate() {
                let step = learner.train(&batch(&fixture, count), &masks(step)).unwrap();
                losses.push(step.losses.iter().sum::<f64>() / count as f64);
                assert_eq!(step.update.waits, index + 1 < batches.len());
                if !step.update.waits {
                    norms.push(step.update.gradient_norm);
                }
            }
        }
        for (what, found) in [("losses", losses), ("norms", norms)] {
            let what = format!("{run}.{what}");
            assert_close(&what, found, &fixture.floats(&what), TEN_STEPS);
        }
        // A bias of the keys changes no attention: its gradient is rounding alone, which Adam makes into steps.
        let specs = learner.model().structure().specs.iter().enumerate();
        for (index, spec) in specs.filter(|(_, spec)| !spec.name.ends_with("linear_k.bias")) {
            let what = format!("{run}.final.{}", spec.name);
            assert_close(&what, wide(learner.parameters.value(index).data()), &fixture.floats(&what), TEN_STEPS);
        }
    }
}

#[test]
fn the_decoder_step_by_step_gives_the_logits_of_teacher_forcing() {
    let fixture = Fixture::open();
    let learner = learner(&fixture, &[], still());
    let (model, parameters, batch) = (learner.model(), &learner.parameters, batch(&fixture, 3));
    let mut tape = Tape::without_gradients(&Device::cpu());
    let features = Var::constant(Tensor::from_vec(
        &Device::cpu(),
        &[batch.sequences.rows(), model.inputs()],
        batch.features.clone(),
        Category::Activation,
    ));
    let (hidden, sequences) = model.encode(&mut tape, parameters, features, &batch.sequences, None).unwrap();
    let teaching = Teaching::new(&batch.labels, model.end()).unwrap();
    let memory = (&hidden, &sequences);
    let taught = model.decode(&mut tape, parameters, memory, &teaching.tokens, &teaching.sequences, &teaching.of, None);
    let taught = taught.unwrap();
    for (n, &utterance) in teaching.of.iter().enumerate() {
        let found = teaching.sequences.unpack(n, taught.tensor().data(), model.symbols());
        let what = format!("decoder_logits.{utterance}");
        assert_close(&what, wide(&found), &fixture.floats(&what), ONE_PASS);
    }
    // Two hypotheses of each utterance; after every step they change places, and the tokens with them.
    let memory = model.remember(parameters, &hidden, &sequences).unwrap();
    let mut of = vec![0, 1, 2, 0, 1, 2];
    let mut state = model.begin(of.len());
    for step in 0..=1 {
        let token = |&utterance: &usize| match step {
            0 => model.end(),
            _ => batch.labels[utterance][step - 1],
        };
        let tokens: Vec<u32> = of.iter().map(token).collect();
        let (logits, next) = model.step(parameters, &memory, &state, &of, &tokens).unwrap();
        for (n, utterance) in of.iter().enumerate() {
            let found = &logits.data()[n * model.symbols()..][..model.symbols()];
            let expected = fixture.floats(&format!("decoder_logits.{utterance}"));
            let expected = &expected[step * model.symbols()..][..model.symbols()];
            assert_close(&format!("step {step} of hypothesis {n}"), wide(found), expected, ONE_PASS);
        }
        let order = [5, 0, 4, 1, 3, 2];
        state = next.select(&order).unwrap();
        of = order.iter().map(|&n| of[n]).collect();
        assert_eq!(state.read(), step + 1);
    }
    assert!(state.select(&[6]).is_err());
    assert!(model.step(parameters, &memory, &state, &of, &[0]).is_err());
}

#[test]
fn groups_go_from_the_front_end_to_both_softmax_layers() {
    let model = model(&Fixture::open().sizes());
    let structure = model.structure();
    let names: Vec<&str> = structure.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["front-end", "encoder-1", "encoder-2", "decoder-1", "decoder-2", "softmax"]);
    let top = structure.groups[5].parameters.clone();
    let top: Vec<&str> = structure.specs[top].iter().map(|spec| spec.name.as_str()).collect();
    let expected = ["decoder.output_layer.weight", "decoder.output_layer.bias", "ctc.ctc_lo.weight", "ctc.ctc_lo.bias"];
    assert_eq!(top, expected);
}
