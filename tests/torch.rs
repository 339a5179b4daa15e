//! The model `blstm-ctc` against PyTorch: fixtures/README.md says what the numbers are and how they were made.
//!
//! The fixtures were computed in f64 from f32 inputs, so what is measured here is the error of the engine's f32 arithmetic alone.

use headfirst::device::Device;
use headfirst::models::blstm_ctc::{BlstmCtc, Sizes};
use headfirst::nn::{Parameters, Scheme};
use headfirst::ops::sequences::Sequences;
use headfirst::optim::Method;
use headfirst::random::MaskKey;
use headfirst::train::learner::{Batch, Learner};
use headfirst::train::updater::UpdateOptions;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;

const STEPS: usize = 10;

/// One pass. Behind a logit or a gradient stand at most d = 3 layers x 12 time steps x (a sum of 6 inputs, one of 5 hidden states and
/// about 16 roundings of the cell) = 972 rounded operations, each off by at most half an epsilon and as often up as down: their sum has a
/// deviation of at most sqrt(972) / 2 = 16 epsilons, were they all in the largest number. That is not exceeded by a sum whose terms are smaller.
/// Measured, here and after ten steps: below 5e-7, 4 epsilons.
const ONE_PASS: f64 = 16.0 * f32::EPSILON as f64;

/// Ten steps: ten times the variance of one pass, since each starts from weights that the earlier ones moved.
const TEN_STEPS: f64 = 3.2 * ONE_PASS;

struct Fixture(Vec<u8>);

impl Fixture {
    fn open(name: &str) -> Self {
        let path = format!("{}/tests/fixtures/blstm_ctc.{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Fixture(std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.elements(name, Dtype::F32, f32::from_le_bytes)
    }

    fn integers(&self, name: &str) -> Vec<i64> {
        self.elements(name, Dtype::I64, i64::from_le_bytes)
    }

    fn elements<T, const BYTES: usize>(&self, name: &str, dtype: Dtype, read: fn([u8; BYTES]) -> T) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tensor.dtype(), dtype, "{name}");
        tensor.data().chunks_exact(BYTES).map(|bytes| read(bytes.try_into().unwrap())).collect()
    }

    fn metadata(&self, key: &str) -> String {
        SafeTensors::read_metadata(&self.0).unwrap().1.metadata().clone().unwrap()[key].clone()
    }
}

#[derive(Deserialize)]
struct ModelSizes {
    layers: usize,
    units: usize,
    projection: usize,
    inputs: usize,
    symbols: usize,
    subsample: Vec<usize>,
}

fn model() -> BlstmCtc {
    let sizes: ModelSizes = serde_json::from_str(&Fixture::open("batch").metadata("model")).unwrap();
    assert_eq!(sizes.layers, sizes.subsample.len());
    BlstmCtc::new(Sizes {
        inputs: sizes.inputs,
        vgg: None,
        units: sizes.units,
        projection: sizes.projection,
        subsample: sizes.subsample,
        dropout: 0.0,
        symbols: sizes.symbols,
    })
}

/// The fixture's utterances stand longest first, as the engine wants them; [`Sequences::new`] fails if they do not.
fn batch(model: &BlstmCtc) -> Batch {
    let fixture = Fixture::open("batch");
    let lengths: Vec<usize> = fixture.integers("lengths").iter().map(|&length| length as usize).collect();
    let utterances: Vec<Vec<f32>> = (0..lengths.len()).map(|n| fixture.floats(&format!("frames.{n}"))).collect();
    let labels = |n| fixture.integers(&format!("labels.{n}")).iter().map(|&label| label as u32).collect();
    Batch {
        sequences: Sequences::new(&lengths).unwrap(),
        features: headfirst::data::batch::pack(&utterances, model.sizes().inputs),
        labels: (0..lengths.len()).map(labels).collect(),
    }
}

/// A learner with the fixture's initial weights.
fn learner(frozen_groups: &[usize], options: UpdateOptions) -> Learner {
    let (device, model, initial) = (Device::cpu(), model(), Fixture::open("initial"));
    let mut parameters = Parameters::initialize(&device, &model.structure().specs, Scheme::Espnet, 0);
    for (index, spec) in model.structure().specs.iter().enumerate() {
        parameters.set(index, &initial.floats(&spec.name)).unwrap();
    }
    Learner::with_parameters(&device, model, parameters, frozen_groups, options)
}

fn still() -> UpdateOptions {
    let method = Method::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false };
    UpdateOptions { method, learning_rate: 0.0, epsilon: 0.0, epsilon_decay: 1.0, weight_decay: 0.0, clip: 0.0 }
}

fn no_masks() -> MaskKey {
    MaskKey { seed: 1, stage: "joint".into(), step: 0 }
}

/// |difference| / max(1, |value|), as fixtures/README.md measures PyTorch's own f32.
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
    let fixture = Fixture::open("batch");
    let mut learner = learner(&[], still());
    let batch = batch(learner.model());
    let headfirst::models::recogniser::Encoded { logits, sequences, .. } = learner.encode(&batch).unwrap();
    for n in 0..sequences.count() {
        let found = sequences.unpack(n, logits.tensor().data(), learner.model().sizes().symbols);
        assert_close(
            &format!("logits of utterance {n}"),
            wide(&found),
            &fixture.floats(&format!("logits.{n}")),
            ONE_PASS,
        );
    }
    let step = learner.train(&batch, &no_masks()).unwrap();
    assert_eq!(step.feasible, [true; 4]);
    let mean = step.losses.iter().sum::<f64>() / step.losses.len() as f64;
    assert_close("loss", [mean], &fixture.floats("loss"), ONE_PASS);
    assert_close("losses", step.losses, &fixture.floats("utterance_losses"), ONE_PASS);
    for (index, spec) in learner.model().structure().specs.iter().enumerate() {
        let found = learner.parameters.gradients.get(index).unwrap();
        let what = format!("gradients.{}", spec.name);
        assert_close(&what, wide(found.data()), &fixture.floats(&what), ONE_PASS);
    }
}

/// A run of the fixture, as its metadata describes it.
#[derive(Deserialize)]
struct Run {
    frozen: Vec<String>,
    optimizer: String,
    lr: f64,
    #[serde(default)]
    rho: f64,
    #[serde(default)]
    eps: f64,
    #[serde(default)]
    momentum: f64,
    #[serde(default)]
    betas: [f64; 2],
    clip: f64,
}

impl Run {
    fn options(&self) -> UpdateOptions {
        let method = match self.optimizer.as_str() {
            "adadelta" => Method::Adadelta { rho: self.rho },
            "sgd" => Method::Sgd { momentum: self.momentum, dampening: 0.0, nesterov: false },
            "adam" => Method::Adam { beta1: self.betas[0], beta2: self.betas[1] },
            other => panic!("the fixture has an optimiser {other}"),
        };
        let (learning_rate, epsilon, clip) = (self.lr, self.eps, self.clip);
        UpdateOptions { method, learning_rate, epsilon, epsilon_decay: 1.0, weight_decay: 0.0, clip }
    }

    /// `ctc` is the highest group, `layer.K` is group K.
    fn frozen_groups(&self, groups: usize) -> Vec<usize> {
        let group = |name: &String| match name.strip_prefix("layer.") {
            Some(layer) => layer.parse().unwrap(),
            None => groups - 1,
        };
        self.frozen.iter().map(group).collect()
    }
}

#[test]
fn ten_steps_of_every_optimiser_and_freezing_are_pytorchs() {
    let fixture = Fixture::open("steps");
    let runs: BTreeMap<String, Run> = serde_json::from_str(&fixture.metadata("runs")).unwrap();
    assert_eq!(runs.len(), 6);
    for (name, run) in runs {
        let frozen = run.frozen_groups(model().structure().groups.len());
        let mut learner = learner(&frozen, run.options());
        let batch = batch(learner.model());
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        for _ in 0..STEPS {
            let step = learner.train(&batch, &no_masks()).unwrap();
            assert_eq!(step.update.non_finite, None);
            losses.push(step.losses.iter().sum::<f64>() / step.losses.len() as f64);
            norms.push(step.update.gradient_norm);
        }
        let expected = |what: &str| fixture.floats(&format!("{name}.{what}"));
        assert_close(&format!("{name}.losses"), losses, &expected("losses"), TEN_STEPS);
        assert_close(&format!("{name}.gradient_norms"), norms, &expected("gradient_norms"), TEN_STEPS);
        for (index, spec) in learner.model().structure().specs.iter().enumerate() {
            let what = format!("final.{}", spec.name);
            let found = wide(learner.parameters.value(index).data());
            assert_close(&format!("{name}.{what}"), found, &expected(&what), TEN_STEPS);
        }
    }
}
