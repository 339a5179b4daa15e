//! The front end `vgg` under a `blstm-ctc` against PyTorch: fixtures/README.md says what the numbers are and how they were made.

use headfirst::device::Device;
use headfirst::models::blstm_ctc::{BlstmCtc, Sizes};
use headfirst::nn::{Parameters, Scheme};
use headfirst::ops::sequences::Sequences;
use headfirst::optim::Method;
use headfirst::random::MaskKey;
use headfirst::train::learner::{Batch, Learner};
use headfirst::train::updater::UpdateOptions;
use safetensors::SafeTensors;

/// Behind a number stand at most four convolutions of some 30 roundings, and 5 time steps of a BLSTM of some 40: 320, as often up as down:
/// sqrt(320) / 2 = 9 epsilons.
const TOLERANCE: f64 = 9.0 * f32::EPSILON as f64;

fn assert_close(what: &str, found: impl IntoIterator<Item = f64>, expected: &[f32]) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - f64::from(expected)).abs() / f64::from(expected).abs().max(1.0);
        assert!(error <= TOLERANCE, "{what}[{index}] is {found}, not {expected}: {error:e}");
    }
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> + '_ {
    values.iter().map(|&value| f64::from(value))
}

#[test]
fn logits_losses_and_every_gradient_are_pytorchs() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/vgg.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let model = BlstmCtc::new(Sizes {
        inputs: 7,
        vgg: Some([2, 3]),
        units: 4,
        projection: 5,
        subsample: vec![1],
        dropout: 0.0,
        symbols: 6,
    });
    let structure = model.structure().clone();
    let names: Vec<&str> = structure.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["front-end", "blstm-1", "softmax"]);
    let device = Device::cpu();
    let mut parameters = Parameters::initialize(&device, &structure.specs, Scheme::Espnet, 0);
    for (index, spec) in structure.specs.iter().enumerate() {
        parameters.set(index, &floats(&format!("initial.{}", spec.name))).unwrap();
    }
    let method = Method::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false };
    let (learning_rate, epsilon, epsilon_decay, weight_decay, clip) = (0.0, 0.0, 1.0, 0.0, 0.0);
    let options = UpdateOptions { method, learning_rate, epsilon, epsilon_decay, weight_decay, clip };
    let mut learner = Learner::with_parameters(&device, model, parameters, &[], options);
    let frames: Vec<Vec<f32>> = (0..3).map(|n| floats(&format!("frames.{n}"))).collect();
    let batch = Batch {
        sequences: Sequences::new(&[18, 9, 1]).unwrap(),
        features: headfirst::data::batch::pack(&frames, 7),
        labels: vec![vec![1, 2, 2], vec![3, 4], vec![5]],
    };
    let headfirst::models::recogniser::Encoded { logits, sequences, .. } = learner.encode(&batch).unwrap();
    assert_eq!(sequences.lengths(), [5, 3, 1]);
    for n in 0..3 {
        let found = sequences.unpack(n, logits.tensor().data(), 6);
        assert_close(&format!("logits.{n}"), wide(&found), &floats(&format!("logits.{n}")));
    }
    let masks = MaskKey { seed: 1, stage: "joint".into(), step: 0 };
    let step = learner.train(&batch, &masks).unwrap();
    assert_close("losses", step.losses, &floats("losses"));
    for (index, spec) in structure.specs.iter().enumerate() {
        let found = learner.parameters.gradients.get(index).unwrap();
        let what = format!("gradients.{}", spec.name);
        assert_close(&what, wide(found.data()), &floats(&what));
    }
}
