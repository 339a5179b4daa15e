//! What freezing promises: frozen weights keep their bits, cost no memory but their own and no work that nobody reads, and
//! the gradients of the others are those of joint training, to the bit.

use headfirst::device::{Category, Device};
use headfirst::models::blstm_ctc::{BlstmCtc, Sizes};
use headfirst::nn::{Parameters, Scheme};
use headfirst::ops::sequences::Sequences;
use headfirst::optim::Method;
use headfirst::random::{MaskKey, Philox};
use headfirst::train::learner::{Batch, Learner, Work};
use headfirst::train::updater::UpdateOptions;

const LAYERS: usize = 3;
const GROUPS: usize = LAYERS + 1;
const SOFTMAX: usize = LAYERS;
const SUBSAMPLE: [usize; LAYERS] = [2, 1, 3];
const INPUTS: usize = 6;
const UNITS: usize = 5;
const PROJECTION: usize = 7;
const SYMBOLS: usize = 9;
const LENGTHS: [usize; 5] = [23, 17, 17, 9, 4];

/// Nothing, every cut from the top, and the lowest one and two groups: the papers' control.
fn frozen_groups() -> Vec<Vec<usize>> {
    let cuts = (0..GROUPS).map(|cut| (GROUPS - cut..GROUPS).collect());
    cuts.chain([vec![0], vec![0, 1]]).collect()
}

fn model(dropout: f64) -> BlstmCtc {
    BlstmCtc::new(Sizes {
        inputs: INPUTS,
        vgg: None,
        units: UNITS,
        projection: PROJECTION,
        subsample: SUBSAMPLE.to_vec(),
        dropout,
        symbols: SYMBOLS,
    })
}

fn learner(device: &Device, dropout: f64, frozen: &[usize]) -> Learner {
    let model = model(dropout);
    let parameters = Parameters::initialize(device, &model.structure().specs, Scheme::Pytorch, 1);
    let options = UpdateOptions {
        method: Method::Adadelta { rho: 0.95 },
        learning_rate: 1.0,
        epsilon: 1e-6,
        epsilon_decay: 1.0,
        // Moves a parameter without a gradient too, were it not frozen.
        weight_decay: 0.01,
        clip: 5.0,
    };
    Learner::with_parameters(device, model, parameters, frozen, options)
}

fn batch() -> Batch {
    let sequences = Sequences::new(&LENGTHS).unwrap();
    let mut stream = Philox::named(1, "features").stream();
    let features = (0..sequences.rows() * INPUTS).map(|_| stream.normal() as f32).collect();
    Batch { sequences, features, labels: vec![vec![1, 2, 2], vec![3], vec![], vec![4, 5], vec![8]] }
}

fn masks(step: u32) -> MaskKey {
    MaskKey { seed: 1, stage: "joint".into(), step }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn is_frozen(model: &BlstmCtc, frozen: &[usize], parameter: usize) -> bool {
    frozen.iter().any(|&group| model.structure().groups[group].parameters.contains(&parameter))
}

#[test]
fn a_frozen_group_never_changes() {
    for frozen in frozen_groups() {
        let mut learner = learner(&Device::cpu(), 0.3, &frozen);
        let values = |learner: &Learner| -> Vec<Vec<u32>> {
            (0..learner.parameters.len()).map(|index| bits(learner.parameters.value(index).data())).collect()
        };
        let before = values(&learner);
        for step in 0..5 {
            let update = learner.train(&batch(), &masks(step)).unwrap().update;
            assert_eq!(update.non_finite, None);
        }
        for (index, (before, after)) in before.iter().zip(&values(&learner)).enumerate() {
            let name = &learner.parameters.specs()[index].name;
            let is_frozen = is_frozen(learner.model(), &frozen, index);
            assert_eq!(before == after, is_frozen, "{name} with groups {frozen:?} frozen");
        }
    }
}

#[test]
fn the_gradients_of_the_trained_groups_have_the_bits_of_joint_training() {
    for dropout in [0.0, 0.3] {
        let gradients = |frozen: &[usize]| -> Vec<Option<Vec<u32>>> {
            let mut learner = learner(&Device::cpu(), dropout, frozen);
            learner.train(&batch(), &masks(0)).unwrap();
            let gradient = |index| learner.parameters.gradients.get(index).map(|gradient| bits(gradient.data()));
            (0..learner.parameters.len()).map(gradient).collect()
        };
        let joint = gradients(&[]);
        for frozen in frozen_groups() {
            for (index, gradient) in gradients(&frozen).into_iter().enumerate() {
                let expected = joint[index].clone().filter(|_| !is_frozen(&model(dropout), &frozen, index));
                assert!(gradient == expected, "parameter {index} with groups {frozen:?} frozen, dropout {dropout}");
            }
        }
    }
}

/// The sequences that enter each layer, and those that reach the softmax.
fn sequences() -> Vec<Sequences> {
    let mut all = vec![batch().sequences];
    for factor in SUBSAMPLE {
        all.push(all[all.len() - 1].subsample(factor));
    }
    all
}

/// The bytes that backward reads of what forward computed, as design.md says it for each operation.
fn kept_bytes(dropout: bool, frozen: &[usize]) -> u64 {
    let is_trained = |group: &usize| !frozen.contains(group);
    let rows: Vec<usize> = sequences().iter().map(Sequences::rows).collect();
    let lowest = (0..GROUPS).find(is_trained).unwrap();
    let mut elements = 0;
    for layer in lowest..LAYERS {
        let (entering, leaving) = (rows[layer], rows[layer + 1]);
        // Gates and cells of both directions, the projection's output for tanh.
        elements += 2 * entering * (4 * UNITS + UNITS) + leaving * PROJECTION;
        if is_trained(&layer) {
            // The hidden states; if frames are left out, the rest of them for the projection in a tensor of its own.
            elements += entering * 2 * UNITS;
            elements += if SUBSAMPLE[layer] > 1 { leaving * 2 * UNITS } else { 0 };
        }
    }
    for group in (lowest..GROUPS).filter(is_trained) {
        // A trained group's input. That of a group above the lowest is the tanh below, already kept, unless dropout made another.
        let columns = if group == 0 { INPUTS } else { PROJECTION };
        elements += if group == lowest || dropout { rows[group] * columns } else { 0 };
    }
    // The gradient to the logits, and the loss itself.
    elements += rows[SOFTMAX] * SYMBOLS + 1;
    4 * elements as u64
}

/// A fresh one of each kind: the CPU, and the GPU that HEADFIRST_TEST_DEVICE names or the emulator.
fn devices() -> Vec<Device> {
    if let Ok(name) = std::env::var("HEADFIRST_TEST_DEVICE") {
        return vec![Device::cpu(), headfirst::device::open(&name).unwrap_or_else(|error| panic!("{error}")).0];
    }
    #[cfg(feature = "emulator")]
    if headfirst::backend::cuda::emulator::AVAILABLE {
        return vec![Device::cpu(), Device::emulator(headfirst::backend::cuda::emulator::Order::Forward)];
    }
    vec![Device::cpu()]
}

#[test]
fn a_frozen_group_costs_no_gradient_no_optimiser_state_and_no_kept_input() {
    for dropout in [0.0, 0.3] {
        for frozen in frozen_groups() {
            for device in devices() {
                check_costs(&device, dropout, &frozen);
            }
        }
    }
}

fn check_costs(device: &Device, dropout: f64, frozen: &[usize]) {
    let what = format!("groups {frozen:?} frozen, dropout {dropout}, on {device}");
    let mut learner = learner(device, dropout, frozen);
    let structure = model(dropout).structure().clone();
    let count: u64 = (0..GROUPS)
        .filter(|g| !frozen.contains(g))
        .map(|g| structure.count(structure.groups[g].parameters.clone()))
        .sum();
    let all = structure.count(0..structure.specs.len());
    for step in 0..2 {
        let kept = learner.train(&batch(), &masks(step)).unwrap().kept;
        assert_eq!(kept, kept_bytes(dropout > 0.0, frozen), "kept, {what}");
    }
    let peak = |category| device.ledger().peak(category);
    assert_eq!(peak(Category::Parameter), 4 * all, "parameters, {what}");
    assert_eq!(peak(Category::Gradient), 4 * count, "gradients, {what}");
    // Adadelta has two numbers for each parameter.
    assert_eq!(peak(Category::OptimizerState), 8 * count, "optimiser state, {what}");
    assert_eq!(device.ledger().live(Category::Activation), 0, "{what}");
    assert_eq!(device.ledger().live(Category::Workspace), 0, "{what}");
}

/// The products that each layer needs: two operations for every weight and frame.
fn work(frozen: &[usize]) -> Work {
    let rows: Vec<usize> = sequences().iter().map(Sequences::rows).collect();
    let is_trained = |group: &usize| !frozen.contains(group);
    let lowest = (0..GROUPS).find(is_trained).unwrap();
    let mut work = Work::default();
    for layer in 0..LAYERS {
        let columns = if layer == 0 { INPUTS } else { PROJECTION };
        let input = (2 * 2 * rows[layer] * columns * 4 * UNITS) as u64;
        let recurrent = (2 * 2 * rows[layer] * UNITS * 4 * UNITS) as u64;
        let projection = (2 * rows[layer + 1] * 2 * UNITS * PROJECTION) as u64;
        work.forward += input + recurrent + projection;
        if layer >= lowest {
            // The gradients that go back through time and down.
            work.backward += recurrent + projection + if layer > lowest { input } else { 0 };
        }
        if is_trained(&layer) {
            work.backward += input + recurrent + projection;
        }
    }
    let softmax = (2 * rows[SOFTMAX] * PROJECTION * SYMBOLS) as u64;
    work.forward += softmax;
    work.backward += if SOFTMAX > lowest { softmax } else { 0 };
    work.backward += if is_trained(&SOFTMAX) { softmax } else { 0 };
    work
}

#[test]
fn a_frozen_group_forms_no_weight_gradient_and_backward_ends_below_the_lowest_trained() {
    for frozen in frozen_groups() {
        for device in devices() {
            let step = learner(&device, 0.0, &frozen).train(&batch(), &masks(0)).unwrap();
            assert_eq!(step.work, work(&frozen), "groups {frozen:?} frozen, on {device}");
        }
    }
}
