//! The model `lstm-lm` against PyTorch, every mask fixed: fixtures/README.md says what the numbers are and how they were made.

use headfirst::data::streams::Streams;
use headfirst::device::Device;
use headfirst::models::Network;
use headfirst::models::lstm_lm::{Dropouts, LstmLm, Sizes};
use headfirst::nn::{Parameters, Scheme};
use headfirst::ops::dropout::Sharing;
use headfirst::optim::{Average, Method};
use headfirst::random::MaskKey;
use headfirst::tensor::Tensor;
use headfirst::train::learner::Learner;
use headfirst::train::text_learner::{Carried, Objective, TextStep};
use headfirst::train::updater::UpdateOptions;
use safetensors::SafeTensors;
use serde_json::Value;

/// One pass: at most 3 layers x 7 times x (sums of 6 and 6 and some 16 roundings) = 590 rounded operations behind a number, as often up as down:
/// sqrt(590) / 2 = 12 epsilons.
const ONE_PASS: f64 = 12.0 * f32::EPSILON as f64;
/// Ten steps: ten times the variance, and states that are carried through all of them.
const TEN_STEPS: f64 = 8.0 * ONE_PASS;

struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Self {
        Fixture(std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/lstm_lm.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = SafeTensors::deserialize(&self.0)
            .unwrap()
            .tensor(name)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .data()
            .to_vec();
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    /// The streams one behind the other.
    fn stream(&self, streams: usize) -> Vec<u32> {
        let bytes = SafeTensors::deserialize(&self.0).unwrap().tensor("tokens").unwrap().data().to_vec();
        let tokens: Vec<u32> =
            bytes.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()) as u32).collect();
        (0..streams).flat_map(|stream| tokens.iter().copied().skip(stream).step_by(streams)).collect()
    }

    fn sizes(&self) -> Value {
        let metadata = SafeTensors::read_metadata(&self.0).unwrap().1.metadata().clone().unwrap();
        serde_json::from_str(&metadata["sizes"]).unwrap()
    }
}

fn model(sizes: &Value, tied: bool) -> LstmLm {
    let whole = |name: &str| sizes[name].as_u64().unwrap() as usize;
    let rate = |name: &str| sizes["dropouts"][name].as_f64().unwrap();
    LstmLm::new(Sizes {
        vocabulary: whole("vocabulary"),
        embedding: whole("embedding"),
        units: whole("units"),
        layers: whole("layers"),
        tied,
        dropouts: Dropouts {
            embedding: rate("embedding"),
            input: rate("input"),
            hidden: rate("hidden"),
            output: rate("output"),
            recurrent: rate("recurrent"),
            sharing: Sharing::Locked,
        },
    })
}

fn assert_close(what: &str, found: impl IntoIterator<Item = f64>, expected: &[f32], tolerance: f64) {
    let found: Vec<f64> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - f64::from(expected)).abs() / f64::from(expected).abs().max(1.0);
        assert!(error <= tolerance, "{what}[{index}] is {found}, not {expected}: {error:e} > {tolerance:e}");
    }
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    tensor.to_vec().into_iter().map(f64::from).collect()
}

/// The CPU, and the GPU that HEADFIRST_TEST_DEVICE names or the emulator.
fn devices() -> Vec<Device> {
    if let Ok(name) = std::env::var("HEADFIRST_TEST_DEVICE") {
        return vec![Device::cpu(), headfirst::device::open(&name).unwrap_or_else(|error| panic!("{error}")).0];
    }
    #[cfg(feature = "emulator")]
    if headfirst::backend::cuda::emulator::AVAILABLE {
        return vec![Device::cpu(), Device::emulator(headfirst::backend::cuda::emulator::Order::Shuffled(1))];
    }
    vec![Device::cpu()]
}

#[test]
fn losses_gradients_ten_steps_and_their_average_are_pytorchs() {
    let (fixture, sizes) = (Fixture::open(), Fixture::open().sizes());
    let number = |name: &str| sizes[name].as_f64().unwrap();
    let whole = |name: &str| sizes[name].as_u64().unwrap() as usize;
    for device in devices() {
        for (run, tied, frozen, original) in [
            ("tied", true, &[][..], false),
            ("tied-original", true, &[], true),
            ("tied-frozen", true, &[3], false),
            ("untied", false, &[], false),
        ] {
            let model = model(&sizes, tied);
            let mut parameters = Parameters::initialize(&device, &model.structure().specs, Scheme::Awd, 0);
            for (index, spec) in model.structure().specs.iter().enumerate() {
                let name = format!("initial.{}.{}", if tied { "tied" } else { "untied" }, spec.name);
                parameters.set(index, &fixture.floats(&name)).unwrap();
            }
            let options = UpdateOptions {
                method: Method::NtAsgd { nonmono: 5, original },
                learning_rate: number("rate"),
                epsilon: 0.0,
                epsilon_decay: 1.0,
                weight_decay: number("weight_decay"),
                clip: number("clip"),
            };
            let mut learner = Learner::with_parameters(&device, model, parameters, frozen, options);
            let objective = Objective { activation: number("alpha"), temporal: number("beta"), per_sequence: false };
            let ids = fixture.stream(whole("streams"));
            let streams = Streams::equal(&ids, whole("streams")).unwrap();
            let mut carried = Carried::zeros(&device, learner.model(), whole("streams"));
            let (mut start, mut losses, mut norms) = (0, Vec::new(), Vec::new());
            for (step, length) in sizes["windows"].as_array().unwrap().iter().enumerate() {
                let length = length.as_u64().unwrap() as usize;
                let key = MaskKey {
                    seed: whole("seed") as u64,
                    stage: sizes["stage"].as_str().unwrap().into(),
                    step: step as u32,
                };
                if step == whole("average_after") {
                    let Learner { updater, parameters, .. } = &mut learner;
                    updater.begin_average(&device, parameters, Average { updates: 0, original });
                }
                learner.updater.set_rate_factor(length as f64 / number("bptt"));
                let batch = streams.batch(start..start + length).unwrap();
                let TextStep { loss, update, .. } =
                    learner.train_text(&batch, Some(&mut carried), &objective, &key).unwrap();
                if step == 0 {
                    for index in learner.parameters.trainable() {
                        let name = format!("{run}.gradients.{}", learner.parameters.specs()[index].name);
                        let found = wide(learner.parameters.gradients.get(index).unwrap());
                        assert_close(&format!("{name} on {device}"), found, &fixture.floats(&name), ONE_PASS);
                    }
                }
                losses.push(loss);
                norms.push(update.gradient_norm);
                start += length;
            }
            assert_close(
                &format!("{run}.losses on {device}"),
                losses,
                &fixture.floats(&format!("{run}.losses")),
                TEN_STEPS,
            );
            assert_close(
                &format!("{run}.norms on {device}"),
                norms,
                &fixture.floats(&format!("{run}.norms")),
                TEN_STEPS,
            );
            for which in ["weights", "averages"] {
                for index in learner.parameters.trainable().collect::<Vec<_>>() {
                    let name = format!("{run}.{which}.{}", learner.parameters.specs()[index].name);
                    let found = wide(learner.parameters.value(index));
                    assert_close(&format!("{name} on {device}"), found, &fixture.floats(&name), TEN_STEPS);
                }
                let Learner { updater, parameters, .. } = &mut learner;
                updater.swap_averages(parameters);
            }
            for (name, tensor) in carried.named() {
                let Some(k) = name.strip_prefix("rnns.").and_then(|name| name.strip_suffix(".hidden")) else {
                    continue;
                };
                let name = format!("{run}.hidden.{k}");
                assert_close(&format!("{name} on {device}"), wide(tensor), &fixture.floats(&name), TEN_STEPS);
            }
        }
    }
}
