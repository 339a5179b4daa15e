//! The model `ctc-attention` against PyTorch: fixtures/README.md says what the numbers are and how they were made.

use headfirst::device::{Category, Device};
use headfirst::models::Network;
use headfirst::models::blstm_encoder::EncoderSizes;
use headfirst::models::ctc_attention::{CtcAttention, Sizes};
use headfirst::models::recogniser::{Recogniser, Teaching};
use headfirst::nn::{Parameters, Scheme};
use headfirst::ops::sequences::Sequences;
use headfirst::optim::Method;
use headfirst::random::MaskKey;
use headfirst::tape::{Tape, Var};
use headfirst::tensor::Tensor;
use headfirst::train::learner::{Batch, Learner};
use headfirst::train::updater::UpdateOptions;
use safetensors::SafeTensors;

/// Behind a number stand at most 13 steps of a BLSTM and 4 of the decoder, of some 40 roundings: 680, as often up as down: sqrt(680) / 2 = 13
/// epsilons.
const ONE_PASS: f64 = 13.0 * f32::EPSILON as f64;
/// Ten steps: ten times the variance, and Adadelta's quotients. PyTorch's own f32 is held to the same numbers by the script.
const TEN_STEPS: f64 = 10.0 * ONE_PASS;

const LABELS: [&[u32]; 3] = [&[1, 2], &[3, 4, 4], &[5]];
const INPUTS: usize = 5;
const SYMBOLS: usize = 7;

struct Fixture(Vec<u8>);

impl Fixture {
    fn open() -> Self {
        Fixture(
            std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/ctc_attention.safetensors")).unwrap(),
        )
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        tensor.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    fn batch(&self) -> Batch {
        let frames: Vec<Vec<f32>> = (0..3).map(|n| self.floats(&format!("frames.{n}"))).collect();
        Batch {
            sequences: Sequences::new(&[13, 9, 2]).unwrap(),
            features: headfirst::data::batch::pack(&frames, INPUTS),
            labels: LABELS.map(<[u32]>::to_vec).to_vec(),
        }
    }
}

fn learner(fixture: &Fixture, frozen: &[usize], rate: f64) -> Learner<CtcAttention> {
    Learner::with_parameters(&Device::cpu(), model(0.05, 0.0), parameters(fixture), frozen, options(rate))
}

fn model(label_smoothing: f64, scheduled_sampling: f64) -> CtcAttention {
    let encoder = EncoderSizes { inputs: INPUTS, vgg: None, units: 4, projection: 6, subsample: vec![2], dropout: 0.0 };
    CtcAttention::new(Sizes {
        encoder,
        attention: 5,
        channels: 2,
        reach: 2,
        decoder_units: 4,
        ctc_weight: 0.3,
        label_smoothing,
        scheduled_sampling,
        unigrams: Some([0.0, 0.25, 0.125, 0.125, 0.25, 0.0625, 0.1875].into()),
        symbols: SYMBOLS,
    })
}

fn parameters(fixture: &Fixture) -> Parameters {
    let structure = model(0.0, 0.0).structure().clone();
    let mut parameters = Parameters::initialize(&Device::cpu(), &structure.specs, Scheme::Espnet, 0);
    for (index, spec) in structure.specs.iter().enumerate() {
        parameters.set(index, &fixture.floats(&format!("initial.{}", spec.name))).unwrap();
    }
    parameters
}

fn options(rate: f64) -> UpdateOptions {
    UpdateOptions {
        method: Method::Adadelta { rho: 0.95 },
        learning_rate: rate,
        epsilon: 1e-8,
        epsilon_decay: 1.0,
        weight_decay: 0.0,
        clip: 5.0,
    }
}

fn masks() -> MaskKey {
    MaskKey { seed: 1, stage: "joint".into(), step: 0 }
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
    let mut learner = learner(&fixture, &[], 0.0);
    let evaluation = learner.evaluate(&fixture.batch()).unwrap();
    assert_eq!(evaluation.sequences.lengths(), [7, 5, 1]);
    for n in 0..3 {
        let what = format!("logits.{n}");
        let found = evaluation.sequences.unpack(n, evaluation.logits.data(), SYMBOLS);
        assert_close(&what, wide(&found), &fixture.floats(&what), ONE_PASS);
    }
    assert_close("losses", evaluation.losses, &fixture.floats("losses"), ONE_PASS);
    learner.train(&fixture.batch(), &masks()).unwrap();
    for (index, spec) in learner.model().structure().specs.iter().enumerate() {
        let found = learner.parameters.gradients.get(index).unwrap_or_else(|| panic!("{} has no gradient", spec.name));
        let what = format!("gradients.{}", spec.name);
        assert_close(&what, wide(found.data()), &fixture.floats(&what), ONE_PASS);
    }
}

#[test]
fn ten_steps_joint_and_below_the_softmax_layers_are_pytorchs() {
    let fixture = Fixture::open();
    for (run, frozen) in [("joint", &[][..]), ("frozen", &[2])] {
        let mut learner = learner(&fixture, frozen, 1.0);
        let step = |learner: &mut Learner<CtcAttention>| learner.train(&fixture.batch(), &masks()).unwrap();
        let norms: Vec<f64> = (0..10).map(|_| step(&mut learner).update.gradient_norm).collect();
        assert_close(&format!("{run}.norms"), norms, &fixture.floats(&format!("{run}.norms")), TEN_STEPS);
        for (index, spec) in learner.model().structure().specs.iter().enumerate() {
            let what = format!("{run}.final.{}", spec.name);
            assert_close(&what, wide(learner.parameters.value(index).data()), &fixture.floats(&what), TEN_STEPS);
        }
    }
}

#[test]
fn the_decoder_step_by_step_gives_the_logits_of_teacher_forcing() {
    let fixture = Fixture::open();
    let learner = learner(&fixture, &[], 0.0);
    let (model, parameters, batch) = (learner.model(), &learner.parameters, fixture.batch());
    let mut tape = Tape::without_gradients(&Device::cpu());
    let shape = [batch.sequences.rows(), INPUTS];
    let features = Tensor::from_vec(&Device::cpu(), &shape, batch.features.clone(), Category::Activation);
    let (hidden, sequences) =
        model.encode(&mut tape, parameters, Var::constant(features), &batch.sequences, None).unwrap();
    let teaching = Teaching::new(&batch.labels, model.end()).unwrap();
    let Teaching { tokens, sequences: packed, of, .. } = &teaching;
    let taught = model.decode(&mut tape, parameters, (&hidden, &sequences), tokens, packed, of).unwrap();
    for (n, &utterance) in of.iter().enumerate() {
        let what = format!("decoder_logits.{utterance}");
        let found = packed.unpack(n, taught.tensor().data(), SYMBOLS);
        assert_close(&what, wide(&found), &fixture.floats(&what), ONE_PASS);
    }
    // Two hypotheses of each utterance; after every step they change places, and the tokens with them.
    let memory = model.remember(parameters, &hidden, &sequences).unwrap();
    let (mut of, mut state) = (vec![0, 1, 2, 0, 1, 2], None);
    for step in 0..=1 {
        let token = |&utterance: &usize| match step {
            0 => model.end(),
            _ => batch.labels[utterance][step - 1],
        };
        let tokens: Vec<u32> = of.iter().map(token).collect();
        let (logits, next) = model.step(parameters, &memory, state.as_ref(), &of, &tokens).unwrap();
        for (n, utterance) in of.iter().enumerate() {
            let expected = fixture.floats(&format!("decoder_logits.{utterance}"));
            let expected = &expected[step * SYMBOLS..][..SYMBOLS];
            let found = &logits.data()[n * SYMBOLS..][..SYMBOLS];
            assert_close(&format!("step {step} of hypothesis {n}"), wide(found), expected, ONE_PASS);
        }
        let order = [5, 0, 4, 1, 3, 2];
        state = Some(model.select(&memory, &next, &of, &order).unwrap());
        of = order.iter().map(|&n| of[n]).collect();
    }
    let state = state.unwrap();
    assert!(model.select(&memory, &state, &of, &[6]).is_err());
    assert!(model.step(parameters, &memory, Some(&state), &of, &[0]).is_err());
    assert!(model.step(parameters, &memory, None, &[7], &[0]).is_err());
}

/// The losses of a training step with scheduled sampling, without label smoothing.
fn sampled_losses(fixture: &Fixture, probability: f64, step: u32) -> Vec<f64> {
    let model = model(0.0, probability);
    let mut learner = Learner::with_parameters(&Device::cpu(), model, parameters(fixture), &[], options(0.0));
    learner.train(&fixture.batch(), &MaskKey { step, ..masks() }).unwrap().losses
}

#[test]
fn sampled_at_every_symbol_the_decoder_reads_what_it_found_likeliest_itself() {
    let fixture = Fixture::open();
    let learner = learner(&fixture, &[], 0.0);
    let (model, parameters, batch) = (learner.model(), &learner.parameters, fixture.batch());
    let evaluation = learner.evaluate(&batch).unwrap();
    let encoded = learner.encode(&batch).unwrap();
    let memory = model.remember(parameters, &encoded.hidden, &encoded.sequences).unwrap();
    let negative_log_p =
        |logits: &[f32], symbol: u32| wide(logits).map(f64::exp).sum::<f64>().ln() - f64::from(logits[symbol as usize]);
    let mut expected = Vec::new();
    for (utterance, labels) in batch.labels.iter().enumerate() {
        let taught = fixture.floats(&format!("decoder_logits.{utterance}"));
        let (mut state, mut read, mut change) = (None, model.end(), 0.0);
        for (time, &target) in labels.iter().chain([&model.end()]).enumerate() {
            let (logits, next) = model.step(parameters, &memory, state.as_ref(), &[utterance], &[read]).unwrap();
            let logits = logits.data();
            change += negative_log_p(logits, target) - negative_log_p(&taught[time * SYMBOLS..][..SYMBOLS], target);
            read = (0..SYMBOLS as u32).max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize])).unwrap();
            state = Some(next);
        }
        expected.push((evaluation.losses[utterance] + 0.7 * change) as f32);
    }
    let found = sampled_losses(&fixture, 1.0, 0);
    assert_close("losses", found.clone(), &expected, 2.0 * ONE_PASS);
    assert!(found.iter().zip(&evaluation.losses).any(|(found, taught)| (found - taught).abs() > 0.01), "{found:?}");
    assert_close(
        "without",
        sampled_losses(&fixture, 0.0, 0),
        &evaluation.losses.iter().map(|&x| x as f32).collect::<Vec<_>>(),
        ONE_PASS,
    );
}

#[test]
fn the_draws_of_scheduled_sampling_follow_from_the_step() {
    let fixture = Fixture::open();
    let steps: Vec<Vec<f64>> = (0..8).map(|step| sampled_losses(&fixture, 0.5, step)).collect();
    assert!(steps.iter().any(|losses| *losses != steps[0]), "{steps:?}");
    for (step, losses) in steps.iter().enumerate() {
        assert_eq!(*losses, sampled_losses(&fixture, 0.5, step as u32));
    }
}
