//! The front end `vgg` under a `blstm-ctc` against PyTorch: fixtures/README.md says what the numbers are and how they were made.

use headfirst::device::Device;
use headfirst::models::blstm_ctc::{BlstmCtc, Sizes};
use headfirst::models::recogniser::Encoded;
use headfirst::nn::{Parameters, Scheme};
use headfirst::ops::sequences::Sequences;
use headfirst::optim::Method;
use headfirst::random::MaskKey;
use headfirst::train::learner::{Batch, Learner};
use headfirst::train::updater::UpdateOptions;
use safetensors::SafeTensors;

/// Behind a number stand at most four convolutions of some 30 roundings, and 5 time steps of a BLSTM of some 40: 320, as often up as down:
/// sqrt(320) / 2 = 9 epsilons.
const ONE_PASS: f64 = 9.0 * f32::EPSILON as f64;
/// Ten steps, whose errors may add up: those of each are carried on by Adadelta's quotients. The script holds PyTorch's own f32 to 1e-5 too.
const TEN_STEPS: f64 = 10.0 * ONE_PASS;

fn assert_close(what: &str, found: impl IntoIterator<Item = f64>, expected: &[f32], tolerance: f64) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - f64::from(expected)).abs() / f64::from(expected).abs().max(1.0);
        assert!(error <= tolerance, "{what}[{index}] is {found}, not {expected}: {error:e}");
    }
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> + '_ {
    values.iter().map(|&value| f64::from(value))
}

struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Self {
        Fixture(std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/vgg.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn learner(&self, frozen: &[usize], learning_rate: f64) -> Learner<BlstmCtc> {
        let (units, projection, subsample) = (4, 5, vec![1]);
        let model = BlstmCtc::new(Sizes {
            inputs: 7,
            vgg: Some([2, 3]),
            units,
            projection,
            subsample,
            dropout: 0.0,
            symbols: 6,
        });
        let structure = model.structure().clone();
        let names: Vec<&str> = structure.groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(names, ["front-end", "blstm-1", "softmax"]);
        let mut parameters = Parameters::initialize(&Device::cpu(), &structure.specs, Scheme::Espnet, 0);
        for (index, spec) in structure.specs.iter().enumerate() {
            parameters.set(index, &self.floats(&format!("initial.{}", spec.name))).unwrap();
        }
        let method = Method::Adadelta { rho: 0.95 };
        let (epsilon, epsilon_decay, weight_decay, clip) = (1e-8, 1.0, 0.0, 1.5);
        let options = UpdateOptions { method, learning_rate, epsilon, epsilon_decay, weight_decay, clip };
        Learner::with_parameters(&Device::cpu(), model, parameters, frozen, options)
    }

    fn batch(&self) -> Batch {
        let frames: Vec<Vec<f32>> = (0..3).map(|n| self.floats(&format!("frames.{n}"))).collect();
        Batch {
            sequences: Sequences::new(&[18, 9, 1]).unwrap(),
            features: headfirst::data::batch::pack(&frames, 7),
            labels: vec![vec![1, 2, 2], vec![3, 4], vec![5]],
        }
    }
}

fn masks() -> MaskKey {
    MaskKey { seed: 1, stage: "joint".into(), step: 0 }
}

#[test]
fn logits_losses_and_every_gradient_are_pytorchs() {
    let fixture = Fixture::open();
    let (mut learner, batch) = (fixture.learner(&[], 0.0), fixture.batch());
    let Encoded { logits, sequences, .. } = learner.encode(&batch).unwrap();
    assert_eq!(sequences.lengths(), [5, 3, 1]);
    for n in 0..3 {
        let (what, found) = (format!("logits.{n}"), sequences.unpack(n, logits.tensor().data(), 6));
        assert_close(&what, wide(&found), &fixture.floats(&what), ONE_PASS);
    }
    let step = learner.train(&batch, &masks()).unwrap();
    assert_close("losses", step.losses, &fixture.floats("losses"), ONE_PASS);
    for (index, spec) in learner.model().structure().specs.iter().enumerate() {
        let found = learner.parameters.gradients.get(index).unwrap();
        let what = format!("gradients.{}", spec.name);
        assert_close(&what, wide(found.data()), &fixture.floats(&what), ONE_PASS);
    }
}

#[test]
fn ten_steps_joint_and_of_the_front_end_alone_are_pytorchs() {
    let fixture = Fixture::open();
    for (run, frozen) in [("joint", &[][..]), ("front-end", &[1, 2])] {
        let mut learner = fixture.learner(frozen, 1.0);
        let batch = fixture.batch();
        let norms: Vec<f64> = (0..10).map(|_| learner.train(&batch, &masks()).unwrap().update.gradient_norm).collect();
        assert_close(run, norms, &fixture.floats(&format!("{run}.norms")), TEN_STEPS);
        for (index, spec) in learner.model().structure().specs.iter().enumerate() {
            let what = format!("{run}.final.{}", spec.name);
            if frozen.iter().any(|&group| learner.model().structure().groups[group].parameters.contains(&index)) {
                let initial = fixture.floats(&format!("initial.{}", spec.name));
                assert_eq!(learner.parameters.value(index).data(), initial, "{} is frozen", spec.name);
            }
            assert_close(&what, wide(learner.parameters.value(index).data()), &fixture.floats(&what), TEN_STEPS);
        }
    }
}
