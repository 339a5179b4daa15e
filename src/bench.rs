//! The benchmark: operations and whole training steps at named sizes, on the data that a shape alone determines.

use crate::device::{Category, Device};
use crate::error::{Error, Result};
use crate::models::blstm_ctc::{BlstmCtc, Sizes};
use crate::nn::{Blstm, Parameters, Scheme};
use crate::ops;
use crate::ops::lstm::Direction;
use crate::ops::sequences::Sequences;
use crate::optim::Method;
use crate::random::{MaskKey, Philox};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use crate::train::learner::{Batch, Learner};
use crate::train::updater::UpdateOptions;
use serde::Serialize;
use std::time::{Duration, Instant};

/// What a row measures. Every length is equal, as in the rows of its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// A training step of a `blstm-ctc` with Adadelta: 43 inputs, 50 symbols, 40 labels, no subsampling.
    BlstmCtc { layers: usize, units: usize, batch: usize, frames: usize, frozen: usize },
    /// One LSTM layer with as many inputs as units, forward and backward, with the gradients of all weights and of the input.
    Lstm { units: usize, directions: usize, batch: usize, frames: usize },
    /// Log-softmax and CTC, forward and backward: 60 labels, 50 symbols.
    Ctc { batch: usize, frames: usize },
}

const ROWS: [(&str, Work); 9] = [
    ("blstm-ctc/4x320/B16-T200/joint", Work::BlstmCtc { layers: 4, units: 320, batch: 16, frames: 200, frozen: 0 }),
    ("blstm-ctc/4x320/B16-T200/frozen-1", Work::BlstmCtc { layers: 4, units: 320, batch: 16, frames: 200, frozen: 1 }),
    ("blstm-ctc/4x320/B16-T200/frozen-2", Work::BlstmCtc { layers: 4, units: 320, batch: 16, frames: 200, frozen: 2 }),
    ("blstm-ctc/4x320/B16-T200/frozen-3", Work::BlstmCtc { layers: 4, units: 320, batch: 16, frames: 200, frozen: 3 }),
    ("blstm-ctc/4x320/B16-T200/frozen-4", Work::BlstmCtc { layers: 4, units: 320, batch: 16, frames: 200, frozen: 4 }),
    ("blstm-ctc/4x128/B16-T200/joint", Work::BlstmCtc { layers: 4, units: 128, batch: 16, frames: 200, frozen: 0 }),
    ("lstm/320/bidirectional/B16-T200", Work::Lstm { units: 320, directions: 2, batch: 16, frames: 200 }),
    ("lstm/1150/B20-T35", Work::Lstm { units: 1150, directions: 1, batch: 20, frames: 35 }),
    ("ctc/B32-T400", Work::Ctc { batch: 32, frames: 400 }),
];

/// A measured row.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub name: String,
    pub median_ms: f64,
    pub minimum_ms: f64,
    pub maximum_ms: f64,
    /// Timed repetitions, after the untimed first ones.
    pub repetitions: usize,
    /// Floating-point operations of the products, per repetition.
    pub operations: u64,
    pub gflops_per_second: f64,
    /// The largest sum of tensors on the device at one instant.
    pub peak_bytes: u64,
}

/// How to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Repeat each row for about as long.
    pub duration: Duration,
    /// Run each row a single time, untimed ones left out: for profilers and for peak memory.
    pub once: bool,
}

/// The names of all rows.
pub fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|(name, _)| *name)
}

/// The rows that the patterns name: a row's name, or its beginning (`lstm`); all rows if there is no pattern.
///
/// # Errors
/// If a pattern names no row.
pub fn select(patterns: &[String]) -> Result<Vec<&'static str>> {
    for pattern in patterns {
        if !names().any(|name| name.starts_with(pattern.as_str())) {
            let known: Vec<&str> = names().collect();
            return Err(Error::key("NAME", format!("{pattern:?} names no benchmark"))
                .remedy(format!("Use the beginning of one of {}", known.join(", "))));
        }
    }
    let chosen = |name: &&str| patterns.is_empty() || patterns.iter().any(|pattern| name.starts_with(pattern.as_str()));
    Ok(names().filter(chosen).collect())
}

/// Measures one row.
///
/// # Errors
/// If there is no such row, or the device fails.
pub fn measure(device: &Device, name: &str, options: Options) -> Result<Row> {
    let work = ROWS.iter().find(|(row, _)| *row == name).map(|(_, work)| *work);
    let work = work.ok_or_else(|| Error::key("NAME", format!("{name:?} is no benchmark")))?;
    device.ledger().reset_peaks();
    let mut repeat = prepare(device, work)?;
    let untimed = if options.once { 0 } else { 2 };
    for _ in 0..untimed {
        repeat()?;
    }
    let before = device.operations();
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.is_empty() || !options.once && (times.len() < 3 || begin.elapsed() < options.duration) {
        let start = Instant::now();
        repeat()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let operations = (device.operations() - before) / times.len() as u64;
    times.sort_by(f64::total_cmp);
    let median_ms = times[times.len() / 2];
    Ok(Row {
        name: name.into(),
        median_ms,
        minimum_ms: times[0],
        maximum_ms: times[times.len() - 1],
        repetitions: times.len(),
        operations,
        gflops_per_second: operations as f64 / median_ms / 1e6,
        peak_bytes: device.ledger().peak_total(),
    })
}

type Repeat = Box<dyn FnMut() -> Result<()>>;

fn prepare(device: &Device, work: Work) -> Result<Repeat> {
    match work {
        Work::BlstmCtc { layers, units, batch, frames, frozen } => {
            blstm_ctc(device, layers, units, batch, frames, frozen)
        }
        Work::Lstm { units, directions, batch, frames } => lstm(device, units, directions, batch, frames),
        Work::Ctc { batch, frames } => ctc(device, batch, frames),
    }
}

fn blstm_ctc(
    device: &Device,
    layers: usize,
    units: usize,
    batch: usize,
    frames: usize,
    frozen: usize,
) -> Result<Repeat> {
    let (inputs, symbols, labels) = (43, 50, 40);
    let sizes = Sizes { inputs, units, projection: units, subsample: vec![1; layers], dropout: 0.0, symbols };
    let model = BlstmCtc::new(sizes);
    let parameters = Parameters::initialize(device, &model.structure().specs, Scheme::Espnet, 1);
    let frozen_groups: Vec<usize> = (layers + 1 - frozen..layers + 1).collect();
    let options = UpdateOptions {
        method: Method::Adadelta { rho: 0.95 },
        learning_rate: 1.0,
        epsilon: 1e-8,
        epsilon_decay: 1.0,
        weight_decay: 0.0,
        clip: 5.0,
    };
    let mut learner = Learner::with_parameters(device, model, parameters, &frozen_groups, options);
    let sequences = Sequences::new(&vec![frames; batch])?;
    let features = normal("features", sequences.rows() * inputs);
    let batch = Batch { sequences, features, labels: random_labels(batch, labels, symbols) };
    let masks = MaskKey { seed: 1, stage: "bench".into(), step: 0 };
    Ok(Box::new(move || learner.train(&batch, &masks).map(|_| ())))
}

fn lstm(device: &Device, units: usize, directions: usize, batch: usize, frames: usize) -> Result<Repeat> {
    let mut specs = Vec::new();
    Blstm::declare(&mut specs, "layer", units, units);
    specs.truncate(4 * directions);
    let mut parameters = Parameters::initialize(device, &specs, Scheme::Pytorch, 1);
    let trainable = vec![true; specs.len()];
    parameters.set_trainable(device, trainable);
    let sequences = Sequences::new(&vec![frames; batch])?;
    let shape = [sequences.rows(), units];
    let input = upload(device, &shape, "input");
    let weights = upload(device, &[sequences.rows(), directions * units], "output gradient");
    // The input counts as one more parameter, so that its gradient is formed too.
    let shapes: Vec<Option<&[usize]>> =
        specs.iter().map(|spec| Some(&spec.shape[..])).chain([Some(&shape[..])]).collect();
    parameters.gradients = crate::tape::GradientBuffers::allocate(device, shapes);
    let count = specs.len();
    let device = device.clone();
    Ok(Box::new(move || {
        let mut tape = Tape::new(&device);
        let x = Var::parameter(input.clone(), count);
        let directions: Vec<Direction> = (0..count)
            .step_by(4)
            .map(|first| Direction {
                input_weight: parameters.var(first),
                recurrent_weight: parameters.var(first + 1),
                input_bias: parameters.var(first + 2),
                recurrent_bias: parameters.var(first + 3),
            })
            .collect();
        let output = ops::lstm::lstm(&mut tape, &x, &sequences, &directions)?;
        drop(directions);
        parameters.gradients.clear();
        tape.backward_from(&output, weights.clone(), &mut parameters.gradients)
    }))
}

fn ctc(device: &Device, batch: usize, frames: usize) -> Result<Repeat> {
    let (symbols, labels) = (50, 60);
    let sequences = Sequences::new(&vec![frames; batch])?;
    let shape = [sequences.rows(), symbols];
    let logits = upload(device, &shape, "logits");
    let labels = random_labels(batch, labels, symbols);
    let mut gradients = crate::tape::GradientBuffers::allocate(device, [Some(&shape[..])]);
    let device = device.clone();
    Ok(Box::new(move || {
        let mut tape = Tape::new(&device);
        let logits = Var::parameter(logits.clone(), 0);
        let output = ops::ctc::ctc(&mut tape, &logits, &sequences, &labels, 1.0 / labels.len() as f32)?;
        gradients.clear();
        tape.backward(&output.loss, 1.0, &mut gradients)
    }))
}

fn upload(device: &Device, shape: &[usize], name: &str) -> Tensor {
    Tensor::from_vec(device, shape, normal(name, shape.iter().product()), Category::Activation)
}

fn normal(name: &str, count: usize) -> Vec<f32> {
    let mut stream = Philox::named(1, name).stream();
    (0..count).map(|_| stream.normal() as f32).collect()
}

fn random_labels(batch: usize, labels: usize, symbols: usize) -> Vec<Vec<u32>> {
    let mut stream = Philox::named(1, "labels").stream();
    (0..batch).map(|_| (0..labels).map(|_| 1 + stream.below(symbols as u32 - 1)).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_its_beginning_selects_rows_and_an_unknown_one_lists_them() {
        assert_eq!(select(&["lstm".into()]).unwrap().len(), 2);
        assert_eq!(select(&[]).unwrap().len(), ROWS.len());
        let message = select(&["gru".into()]).unwrap_err().to_string();
        assert!(message.contains("gru") && message.contains("ctc/B32-T400"), "{message}");
    }

    #[test]
    fn the_step_counts_the_operations_that_the_reference_names() {
        // 1.275e11 for the joint step of 4x320 at B=16, T=200.
        let device = Device::plan();
        let row = measure(&device, "blstm-ctc/4x320/B16-T200/joint", Options { duration: Duration::ZERO, once: true });
        let operations = row.unwrap().operations as f64;
        assert!((operations / 1.275e11 - 1.0).abs() < 0.01, "{operations:e}");
    }
}
