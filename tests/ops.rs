//! One table of operations and shapes, and what is promised of every row.

use crate::reference;
use headfirst::device::{Category, Device};
use headfirst::ops;
use headfirst::ops::linear::Activation;
use headfirst::ops::lstm::Direction;
use headfirst::ops::sequences::Sequences;
use headfirst::random::{Mask, MaskKey, Philox};
use headfirst::tape::{GradientBuffers, Tape, Var};
use headfirst::tensor::Tensor;

type Forward = Box<dyn Fn(&mut Tape, &[Var]) -> Var>;
type Reference = Box<dyn Fn(&[Vec<f64>]) -> Vec<f64>>;

/// A row of the table.
struct Case {
    name: String,
    /// Of every input that can have a gradient.
    shapes: Vec<Vec<usize>>,
    forward: Forward,
    reference: Reference,
    /// How many rounded operations stand behind one element of the output or of a gradient, at most: the tolerance grows with it.
    depth: usize,
}

fn case(
    name: impl Into<String>,
    shapes: &[&[usize]],
    depth: usize,
    forward: impl Fn(&mut Tape, &[Var]) -> Var + 'static,
    reference: impl Fn(&[Vec<f64>]) -> Vec<f64> + 'static,
) -> Case {
    Case {
        name: name.into(),
        shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
        forward: Box::new(forward),
        reference: Box::new(reference),
        depth,
    }
}

fn table() -> Vec<Case> {
    let mut cases = Vec::new();
    arithmetic(&mut cases);
    for (rows, inputs, outputs) in [(1, 1, 1), (7, 5, 3), (33, 17, 19), (130, 64, 70)] {
        linear(&mut cases, rows, inputs, outputs);
    }
    for (lengths, inputs, hidden, directions) in [
        (&[1][..], 1, 1, 1),
        (&[5, 3, 3, 1], 3, 5, 1),
        (&[5, 3, 3, 1], 3, 5, 2),
        (&[9, 9, 8, 4, 4, 2, 1], 6, 8, 2),
        (&[4; 13], 2, 19, 2),
        (&[3, 2], 33, 40, 2),
    ] {
        lstm(&mut cases, lengths, inputs, hidden, directions);
    }
    for factor in [1, 2, 3] {
        let sequences = Sequences::new(&[7, 6, 4, 1, 1]).unwrap();
        let packing = sequences.clone();
        cases.push(case(
            format!("subsample by {factor}"),
            &[&[19, 3]],
            1,
            move |tape, x| ops::subsample::subsample(tape, &x[0], &packing, factor).unwrap().0,
            move |x| reference::subsample(&x[0], &sequences, 3, factor),
        ));
    }
    dropout(&mut cases);
    for (rows, symbols) in [(1, 1), (5, 7), (70, 50)] {
        cases.push(case(
            format!("log_softmax {rows} x {symbols}"),
            &[&[rows, symbols]],
            symbols + 16,
            |tape, x| ops::log_softmax::log_softmax(tape, &x[0]).unwrap(),
            move |x| reference::log_softmax(&x[0], symbols),
        ));
    }
    for (lengths, symbols, labels) in [
        (&[1][..], 2, vec![vec![1]]),
        (&[6, 5, 3, 1], 4, vec![vec![1, 1, 2], vec![], vec![2, 2], vec![3]]),
        // The second does not fit: five labels and a repeat need six frames.
        (&[40, 5, 5], 11, vec![(0..19).map(|k| k % 10 + 1).collect(), vec![1, 2, 2, 3, 4], vec![1, 2, 3, 4, 5]]),
    ] {
        ctc(&mut cases, lengths, symbols, labels);
    }
    cases
}

fn arithmetic(cases: &mut Vec<Case>) {
    let shape: &[usize] = &[5, 7];
    cases.push(case(
        "add",
        &[shape, shape],
        1,
        |tape, x| ops::arithmetic::add(tape, &x[0], &x[1]).unwrap(),
        |x| x[0].iter().zip(&x[1]).map(|(a, b)| a + b).collect(),
    ));
    cases.push(case(
        "multiply",
        &[shape, shape],
        1,
        |tape, x| ops::arithmetic::multiply(tape, &x[0], &x[1]).unwrap(),
        |x| x[0].iter().zip(&x[1]).map(|(a, b)| a * b).collect(),
    ));
    cases.push(case(
        "the square of one tensor, whose gradient has two writers",
        &[shape],
        2,
        |tape, x| ops::arithmetic::multiply(tape, &x[0], &x[0]).unwrap(),
        |x| x[0].iter().map(|a| a * a).collect(),
    ));
    cases.push(case(
        "scale",
        &[shape],
        1,
        |tape, x| ops::arithmetic::scale(tape, &x[0], -0.75),
        |x| x[0].iter().map(|a| -0.75 * a).collect(),
    ));
    cases.push(case("sum", &[shape], 35, |tape, x| ops::arithmetic::sum(tape, &x[0]), |x| vec![x[0].iter().sum()]));
}

fn linear(cases: &mut Vec<Case>, rows: usize, inputs: usize, outputs: usize) {
    for (activation, function) in [(Activation::Identity, (|x| x) as fn(f64) -> f64), (Activation::Tanh, f64::tanh)] {
        cases.push(case(
            format!("linear {rows} x {inputs} x {outputs}, {activation:?}"),
            &[&[rows, inputs], &[outputs, inputs], &[outputs]],
            rows.max(inputs).max(outputs) + 16,
            move |tape, x| ops::linear::linear(tape, &x[0], &x[1], &x[2], activation).unwrap(),
            move |x| reference::linear(&x[0], &x[1], &x[2], function),
        ));
    }
}

fn lstm(cases: &mut Vec<Case>, lengths: &[usize], inputs: usize, hidden: usize, directions: usize) {
    let sequences = Sequences::new(lengths).unwrap();
    let x = vec![sequences.rows(), inputs];
    let direction = [vec![4 * hidden, inputs], vec![4 * hidden, hidden], vec![4 * hidden], vec![4 * hidden]];
    let shapes: Vec<Vec<usize>> = std::iter::once(x).chain((0..directions).flat_map(|_| direction.clone())).collect();
    let packing = sequences.clone();
    cases.push(Case {
        name: format!("lstm of lengths {lengths:?}, {inputs} inputs, {hidden} units, {directions} directions"),
        depth: (sequences.steps() + 1) * (4 * hidden + inputs + 16) + sequences.rows(),
        shapes,
        forward: Box::new(move |tape, x| {
            let directions: Vec<Direction> = x[1..]
                .chunks(4)
                .map(|p| Direction {
                    input_weight: p[0].clone(),
                    recurrent_weight: p[1].clone(),
                    input_bias: p[2].clone(),
                    recurrent_bias: p[3].clone(),
                })
                .collect();
            ops::lstm::lstm(tape, &x[0], &packing, &directions).unwrap()
        }),
        reference: Box::new(move |x| {
            let directions: Vec<_> = x[1..]
                .chunks(4)
                .map(|p| reference::LstmDirection {
                    input_weight: &p[0],
                    recurrent_weight: &p[1],
                    input_bias: &p[2],
                    recurrent_bias: &p[3],
                })
                .collect();
            reference::lstm(&x[0], &sequences, &directions)
        }),
    });
}

fn dropout(cases: &mut Vec<Case>) {
    let sequences = Sequences::new(&[70, 6, 4, 1]).unwrap();
    let (rows, columns) = (sequences.rows(), 9);
    let key = MaskKey { seed: 3, stage: "1-4".into(), step: 17 };
    let mask = Mask::new(&key, "encoder.proj.0", 0.4).unwrap();
    let packing = sequences.clone();
    cases.push(case(
        "dropout",
        &[&[rows, columns]],
        2,
        move |tape, x| ops::dropout::dropout(tape, &x[0], &packing, mask).unwrap(),
        move |x| {
            let mut output = x[0].clone();
            for (sequence, &length) in sequences.lengths().iter().enumerate() {
                for time in 0..length {
                    for unit in 0..columns {
                        let counter = [unit as u32 / 4, time as u32, sequence as u32, 17];
                        let random = key.generator("encoder.proj.0").block(counter)[unit % 4];
                        let kept = f64::from(random) >= (0.4 * 4_294_967_296.0_f64).floor();
                        let element = &mut output[sequences.row(sequence, time) * columns + unit];
                        *element *= if kept { 1.0 / 0.6 } else { 0.0 };
                    }
                }
            }
            output
        },
    ));
}

fn ctc(cases: &mut Vec<Case>, lengths: &[usize], symbols: usize, labels: Vec<Vec<u32>>) {
    let sequences = Sequences::new(lengths).unwrap();
    let packing = sequences.clone();
    let reference_labels = labels.clone();
    cases.push(case(
        format!("ctc of lengths {lengths:?}"),
        &[&[sequences.rows(), symbols]],
        8 * sequences.steps() + symbols,
        move |tape, x| ops::ctc::ctc(tape, &x[0], &packing, &labels, 0.5).unwrap().loss,
        move |x| vec![0.5 * reference::ctc(&x[0], &sequences, symbols, &reference_labels)],
    ));
}

/// Normal numbers, the same every time.
fn values(name: &str, count: usize) -> Vec<f32> {
    let mut stream = Philox::named(1, name).stream();
    (0..count).map(|_| (0.7 * stream.normal()) as f32).collect()
}

/// The inputs of a case as f32, and the weights of its scalar loss `sum(weight * output)`.
fn inputs(case: &Case) -> Vec<Vec<f32>> {
    let name = |index| format!("{} input {index}", case.name);
    case.shapes.iter().enumerate().map(|(index, shape)| values(&name(index), shape.iter().product())).collect()
}

/// Runs a case with some inputs trainable; gives its output and the gradient of each input.
fn run(case: &Case, device: &Device, trainable: &[bool]) -> (Vec<f32>, Vec<Option<Vec<f32>>>) {
    let shapes = case.shapes.iter().zip(trainable).map(|(shape, &trainable)| trainable.then_some(&shape[..]));
    let mut gradients = GradientBuffers::allocate(device, shapes);
    let mut tape = Tape::new(device);
    let variables: Vec<Var> = inputs(case)
        .into_iter()
        .enumerate()
        .map(|(index, values)| {
            let tensor = Tensor::from_vec(device, &case.shapes[index], values, Category::Parameter);
            if trainable[index] { Var::parameter(tensor, index) } else { Var::constant(tensor) }
        })
        .collect();
    let output = (case.forward)(&mut tape, &variables);
    let result = output.tensor().to_vec();
    let weights = Tensor::from_vec(device, output.shape(), loss_weights(case, result.len()), Category::Activation);
    let weighted = ops::arithmetic::multiply(&mut tape, &output, &Var::constant(weights)).unwrap();
    let loss = ops::arithmetic::sum(&mut tape, &weighted);
    drop((variables, output, weighted));
    tape.backward(&loss, 1.0, &mut gradients).unwrap();
    let gradients = (0..trainable.len()).map(|index| gradients.get(index).map(Tensor::to_vec)).collect();
    (result, gradients)
}

fn loss_weights(case: &Case, count: usize) -> Vec<f32> {
    values(&format!("{} loss", case.name), count)
}

/// Requires that the elements agree within the error that `depth` roundings can add up to, relative to the largest element.
fn assert_close(what: &str, found: &[f32], expected: &[f64], depth: usize) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let tolerance = f64::from(f32::EPSILON) * depth as f64 * largest.max(f64::from(f32::MIN_POSITIVE));
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= tolerance, "{what}[{index}] is {found}, not {expected}: {error:e} > {tolerance:e}");
    }
}

fn in_f64(values: Vec<Vec<f32>>) -> Vec<Vec<f64>> {
    values.into_iter().map(|values| values.into_iter().map(f64::from).collect()).collect()
}

/// Every device that there is: the CPU and, with the feature `emulator`, the CUDA backend with its threads in three orders. With
/// HEADFIRST_TEST_DEVICE=cuda: the CPU and that GPU.
fn devices() -> Vec<Device> {
    if let Ok(name) = std::env::var("HEADFIRST_TEST_DEVICE") {
        let (device, _) = headfirst::device::open(&name).unwrap_or_else(|error| panic!("{error}"));
        return vec![Device::cpu(), device];
    }
    #[cfg(not(feature = "emulator"))]
    return vec![Device::cpu()];
    #[cfg(feature = "emulator")]
    {
        use headfirst::backend::cuda::emulator::{AVAILABLE, Order};
        if !AVAILABLE {
            println!("skipped on the emulator: there is no C++ compiler");
            return vec![Device::cpu()];
        }
        let orders = [Order::Forward, Order::Reversed, Order::Shuffled(1)];
        std::iter::once(Device::cpu()).chain(orders.map(Device::emulator)).collect()
    }
}

#[test]
fn every_operation_agrees_with_its_definition() {
    for (device, case) in devices().iter().flat_map(|device| table().into_iter().map(move |case| (device, case))) {
        let (found, _) = run(&case, device, &vec![false; case.shapes.len()]);
        device.check().unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let expected = (case.reference)(&in_f64(inputs(&case)));
        assert_close(&format!("{} on {device}", case.name), &found, &expected, case.depth);
    }
}

#[test]
fn an_operation_has_the_same_bits_whenever_it_runs() {
    for (device, case) in devices().iter().flat_map(|device| table().into_iter().map(move |case| (device, case))) {
        let trainable = vec![true; case.shapes.len()];
        let [first, second] = [(), ()].map(|()| {
            let (output, gradients) = run(&case, device, &trainable);
            (bits(&output), gradients.iter().flatten().map(|gradient| bits(gradient)).collect::<Vec<_>>())
        });
        assert!(first == second, "{} on {device}", case.name);
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_order_of_a_kernels_threads_does_not_change_a_bit() {
    for case in table() {
        let trainable = vec![true; case.shapes.len()];
        let results: Vec<_> = devices()[1..]
            .iter()
            .map(|device| {
                let (output, gradients) = run(&case, device, &trainable);
                (bits(&output), gradients.iter().map(|g| bits(g.as_deref().unwrap())).collect::<Vec<_>>())
            })
            .collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{}", case.name);
    }
}

/// The derivative of the scalar loss by central differences of the f64 reference: (f(x + h) - f(x - h)) / 2h, whose own error is of
/// the order of h^2, far below f32's.
#[test]
fn every_gradient_agrees_with_central_differences() {
    const STEP: f64 = 1e-5;
    /// Of each input; evenly spread over the larger ones.
    const MOST_ELEMENTS: usize = 300;
    for (device, case) in devices().iter().flat_map(|device| table().into_iter().map(move |case| (device, case))) {
        let (output, gradients) = run(&case, device, &vec![true; case.shapes.len()]);
        let weights = loss_weights(&case, output.len());
        let loss = |inputs: &[Vec<f64>]| -> f64 {
            (case.reference)(inputs).iter().zip(&weights).map(|(y, &w)| y * f64::from(w)).sum()
        };
        let mut point = in_f64(inputs(&case));
        for input in 0..point.len() {
            let stride = point[input].len().div_ceil(MOST_ELEMENTS);
            let expected: Vec<f64> = (0..point[input].len())
                .step_by(stride)
                .map(|element| {
                    let x = point[input][element];
                    point[input][element] = x + STEP;
                    let above = loss(&point);
                    point[input][element] = x - STEP;
                    let below = loss(&point);
                    point[input][element] = x;
                    (above - below) / (2.0 * STEP)
                })
                .collect();
            let what = format!("{} on {device}, gradient of input {input}", case.name);
            let found = gradients[input].as_ref().unwrap_or_else(|| panic!("{what} is missing"));
            let found: Vec<f32> = found.iter().step_by(stride).copied().collect();
            assert_close(&what, &found, &expected, case.depth.max(16));
        }
    }
}

#[test]
fn freezing_some_inputs_leaves_the_bits_of_the_other_gradients_and_makes_no_buffer() {
    for (device, case) in devices().iter().flat_map(|device| table().into_iter().map(move |case| (device, case))) {
        let count = case.shapes.len();
        let (all_output, all) = run(&case, device, &vec![true; count]);
        // All combinations of few inputs; of an LSTM's nine, each alone, all but each, and every neighbouring pair.
        let combinations: Vec<usize> = if count <= 5 {
            (0..1 << count).collect()
        } else {
            let single = (0..count).map(|k| 1 << k);
            let full = (1 << count) - 1;
            single.clone().chain(single.clone().map(|k| full ^ k)).chain(single.map(|k| (k | k << 1) & full)).collect()
        };
        for combination in combinations {
            let trainable: Vec<bool> = (0..count).map(|k| combination >> k & 1 == 1).collect();
            device.ledger().reset_peaks();
            let (output, gradients) = run(&case, device, &trainable);
            assert_eq!(bits(&output), bits(&all_output), "{}, {trainable:?}", case.name);
            for (index, gradient) in gradients.iter().enumerate() {
                let expected = all[index].as_deref().filter(|_| trainable[index]);
                let what = format!("{}, input {index} of {trainable:?}", case.name);
                assert_eq!(gradient.as_deref().map(bits), expected.map(bits), "{what}");
            }
            let wanted: usize =
                (0..count).filter(|&k| trainable[k]).map(|k| case.shapes[k].iter().product::<usize>()).sum();
            assert_eq!(device.ledger().peak(Category::Gradient), 4 * wanted as u64, "{}", case.name);
            assert_eq!(device.ledger().live_total(), 0, "{}: everything is given back", case.name);
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let run_with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| -> Vec<_> {
            let results = table()
                .iter()
                .map(|case| run(case, &Device::cpu(), &vec![true; case.shapes.len()]))
                .collect::<Vec<_>>();
            results
                .iter()
                .map(|(output, gradients)| {
                    (bits(output), gradients.iter().map(|g| bits(g.as_deref().unwrap())).collect::<Vec<_>>())
                })
                .collect()
        })
    };
    let one = run_with(1);
    for threads in [2, 3, 5] {
        assert!(run_with(threads) == one, "{threads} threads");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
