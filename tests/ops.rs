//! One table of operations and shapes, and what is promised of every row.

use crate::reference;
use headfirst::backend::cuda::matmul::Arithmetic;
use headfirst::device::{Category, Device};
use headfirst::ops;
use headfirst::ops::attention::Heads;
use headfirst::ops::attention_decoder::{Operands, Transcripts};
use headfirst::ops::convolution::Patches;
use headfirst::ops::cross_entropy::{LEFT_OUT, Labels, Targets};
use headfirst::ops::dropout::Sharing;
use headfirst::ops::embedding::Rows;
use headfirst::ops::linear::Activation;
use headfirst::ops::linear_cross_entropy::{Top, losses, losses_and_gradients};
use headfirst::ops::lstm::{Direction, State};
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
    embedding(&mut cases);
    for (lengths, inputs, hidden) in [(&[1][..], 1, 1), (&[5, 5, 5], 3, 5), (&[4, 3, 1], 6, 21)] {
        masked_lstm(&mut cases, lengths, inputs, hidden);
    }
    regularisation(&mut cases);
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
    layer_norm(&mut cases);
    cross_entropy(&mut cases);
    for (lengths, columns, heads, causal, dropped) in [
        (&[1][..], 1, 1, false, 0.0),
        (&[5, 3, 3, 1], 6, 2, false, 0.0),
        (&[5, 3, 3, 1], 6, 2, true, 0.3),
        // More queries than are taken at a time.
        (&[70, 66, 2], 8, 1, true, 0.0),
        (&[67, 3], 12, 3, false, 0.5),
    ] {
        attention(&mut cases, lengths, columns, heads, causal, dropped);
    }
    cross_attention(&mut cases);
    for (lengths, bins, channels, filters, patches) in [
        (&[1][..], 1, 1, 1, Patches::All),
        (&[6, 5, 1], 4, 2, 3, Patches::All),
        (&[9, 7, 2, 1], 7, 1, 4, Patches::EverySecond),
        (&[8, 3], 6, 3, 2, Patches::EverySecond),
        // Patches of more than one block.
        (&[40; 40], 40, 2, 3, Patches::All),
    ] {
        convolution(&mut cases, lengths, bins, channels, filters, patches);
    }
    for (lengths, bins, channels) in [(&[1][..], 1, 1), (&[6, 5, 5, 1], 5, 2), (&[7, 4], 4, 3)] {
        pooling(&mut cases, lengths, bins, channels);
    }
    positions(&mut cases);
    for (frames, tokens, of, channels, taps) in [
        (&[1][..], &[1][..], &[0][..], 1, 1),
        (&[6, 4, 1], &[3, 2, 2], &[1, 0, 2], 2, 3),
        (&[9, 5, 3], &[4, 1], &[2, 0], 3, 11),
    ] {
        attention_decoder(&mut cases, frames, tokens, of, channels, taps);
    }
    cases
}

fn attention_decoder(
    cases: &mut Vec<Case>,
    frames: &[usize],
    tokens: &[usize],
    of: &'static [usize],
    channels: usize,
    taps: usize,
) {
    let (frames, tokens) = (Sequences::new(frames).unwrap(), Sequences::new(tokens).unwrap());
    let (embedding, frame, attention, hidden) = (2, 3, 5, 4);
    let shapes: [&[usize]; 11] = [
        &[frames.rows(), frame],
        &[frames.rows(), attention],
        &[tokens.rows(), embedding],
        &[attention, hidden],
        &[channels, 1, 1, taps],
        &[attention, channels],
        &[1, attention],
        &[4 * hidden, embedding + frame],
        &[4 * hidden, hidden],
        &[4 * hidden],
        &[4 * hidden],
    ];
    let transcripts = Transcripts { tokens: tokens.clone(), frames: frames.clone(), of: of.into() };
    cases.push(case(
        format!("attention_decoder of {tokens:?} over {frames:?}, {channels} channels of {taps} taps"),
        &shapes,
        (tokens.steps() + 1) * (frames.steps() + attention + 4 * hidden + taps + 40),
        move |tape, x| {
            let operands = Operands {
                frames: &x[0],
                encoded: &x[1],
                embedded: &x[2],
                query: &x[3],
                taps: &x[4],
                location: &x[5],
                energy: &x[6],
                input: &x[7],
                recurrent: &x[8],
                input_bias: &x[9],
                recurrent_bias: &x[10],
            };
            ops::attention_decoder::attention_decoder(tape, operands, &transcripts).unwrap()
        },
        move |x| {
            let of = reference::AttentionDecoder { tokens: &tokens, frames: &frames, of, channels };
            reference::attention_decoder(x, &of)
        },
    ));
}

fn layer_norm(cases: &mut Vec<Case>) {
    for (rows, columns) in [(2, 6), (7, 5), (70, 33)] {
        cases.push(case(
            format!("layer_norm {rows} x {columns}"),
            &[&[rows, columns], &[columns], &[columns]],
            4 * columns + rows + 32,
            |tape, x| ops::layer_norm::layer_norm(tape, &x[0], &x[1], &x[2], 1e-3).unwrap(),
            |x| reference::layer_norm(&x[0], &x[1], &x[2], 1e-3),
        ));
    }
}

fn cross_entropy(cases: &mut Vec<Case>) {
    for (rows, symbols, smoothing, has_prior) in
        [(1, 2, 0.0, false), (7, 5, 0.0, false), (33, 19, 0.1, false), (33, 19, 0.3, true)]
    {
        let labels: Vec<u32> = (0..rows).map(|row| if row % 4 == 3 { LEFT_OUT } else { row % symbols }).collect();
        let known: Vec<Option<usize>> = labels.iter().map(|&l| (l != LEFT_OUT).then_some(l as usize)).collect();
        let weight = |symbol: u32| if has_prior { 2.0 * f64::from(symbol) + 1.0 } else { 1.0 };
        let total: f64 = (0..symbols).map(weight).sum();
        let prior: Vec<f64> = (0..symbols).map(|symbol| weight(symbol) / total).collect();
        let given: Option<Vec<f32>> = has_prior.then(|| prior.iter().map(|&p| p as f32).collect());
        cases.push(case(
            format!("cross_entropy {rows} x {symbols}, smoothing {smoothing}, prior {has_prior}"),
            &[&[rows as usize, symbols as usize]],
            rows as usize + symbols as usize + 16,
            move |tape, x| {
                let prior = given.as_deref();
                let labels = Labels { labels: &labels, smoothing: smoothing as f32, prior };
                ops::cross_entropy::cross_entropy(tape, &x[0], labels, 0.5).unwrap().loss
            },
            move |x| vec![0.5 * reference::cross_entropy(&x[0], &known, f64::from(smoothing as f32), &prior)],
        ));
    }
    for (rows, symbols) in [(1, 2), (9, 21)] {
        // Another model's probabilities, one of them zero.
        let weight = |row: usize, symbol: usize| ((3 * row + 5 * symbol) % 7) as f32;
        let total = |row: usize| (0..symbols).map(|symbol| weight(row, symbol)).sum::<f32>();
        let q: Vec<f32> =
            (0..rows).flat_map(|row| (0..symbols).map(move |symbol| weight(row, symbol) / total(row))).collect();
        let wide: Vec<f64> = q.iter().map(|&q| f64::from(q)).collect();
        cases.push(case(
            format!("cross_entropy {rows} x {symbols}, soft targets"),
            &[&[rows, symbols]],
            rows + symbols + 16,
            move |tape, x| {
                let targets = Targets::Distributions(&q);
                ops::cross_entropy::cross_entropy(tape, &x[0], targets, 0.5).unwrap().loss
            },
            move |x| vec![0.5 * reference::cross_entropy_of_distributions(&x[0], &wide, symbols)],
        ));
    }
}

fn attention(cases: &mut Vec<Case>, lengths: &[usize], columns: usize, heads: usize, causal: bool, dropped: f64) {
    let sequences = Sequences::new(lengths).unwrap();
    let key = MaskKey { seed: 6, stage: "joint".into(), step: 2 };
    let mask = (dropped > 0.0).then(|| Mask::new(&key, "self_attn", dropped).unwrap());
    let packing = sequences.clone();
    let shape: &[usize] = &[sequences.rows(), columns];
    cases.push(case(
        format!("attention of lengths {lengths:?}, {heads} heads of {columns}, causal {causal}, drop {dropped}"),
        &[shape, shape, shape],
        4 * (sequences.steps() + columns) + 32,
        move |tape, x| {
            let heads = Heads::within(heads, &packing, causal, mask);
            ops::attention::attention(tape, &x[0], &x[1], &x[2], heads).unwrap()
        },
        move |x| {
            let factor = |place| if dropped > 0.0 { mask_factor(&key, "self_attn", dropped, place) } else { 1.0 };
            let of: Vec<usize> = (0..sequences.count()).collect();
            let (queries, keys) = (&sequences, &sequences);
            let of = reference::Attention { heads, queries, keys, of: &of, causal, factor: &factor };
            reference::attention(&x[0], &x[1], &x[2], &of)
        },
    ));
}

/// From sequences to others, in another order, one of which has two readers and one none.
fn cross_attention(cases: &mut Vec<Case>) {
    let (queries, keys) = (Sequences::new(&[5, 4, 1]).unwrap(), Sequences::new(&[9, 6, 2]).unwrap());
    let of = [2, 0, 0];
    let heads =
        Heads { count: 2, queries: queries.clone(), keys: keys.clone(), of: of.into(), causal: false, mask: None };
    cases.push(case(
        "attention from sequences to others",
        &[&[queries.rows(), 6], &[keys.rows(), 6], &[keys.rows(), 6]],
        100,
        move |tape, x| ops::attention::attention(tape, &x[0], &x[1], &x[2], heads.clone()).unwrap(),
        move |x| {
            let (queries, keys) = (&queries, &keys);
            let of = reference::Attention { heads: 2, queries, keys, of: &of, causal: false, factor: &|_| 1.0 };
            reference::attention(&x[0], &x[1], &x[2], &of)
        },
    ));
}

fn convolution(
    cases: &mut Vec<Case>,
    lengths: &[usize],
    bins: usize,
    channels: usize,
    filters: usize,
    patches: Patches,
) {
    let sequences = Sequences::new(lengths).unwrap();
    let outputs: Vec<usize> = lengths.iter().map(|&length| patches.count(length)).collect();
    let outputs = Sequences::new(&outputs).unwrap();
    let of_reference = match patches {
        Patches::All => (1, 1),
        Patches::EverySecond => (2, 0),
    };
    let packing = sequences.clone();
    cases.push(case(
        format!("convolution of lengths {lengths:?}, {bins} bins, {channels} to {filters} channels, {patches:?}"),
        &[&[sequences.rows(), bins * channels], &[filters, channels, 3, 3], &[filters]],
        9 * channels * filters + outputs.rows() * bins + 16,
        move |tape, x| ops::convolution::convolution(tape, &x[0], &packing, &x[1], &x[2], patches).unwrap().0,
        move |x| {
            let bins = (bins, patches.count(bins));
            reference::convolution([&x[0], &x[1], &x[2]], &sequences, &outputs, bins, of_reference)
        },
    ));
}

fn pooling(cases: &mut Vec<Case>, lengths: &[usize], bins: usize, channels: usize) {
    let sequences = Sequences::new(lengths).unwrap();
    let (shape, packing) = ([sequences.rows(), bins * channels], sequences.clone());
    cases.push(case(
        format!("max_pool of lengths {lengths:?}, {bins} bins, {channels} channels"),
        &[&shape],
        1,
        move |tape, x| ops::convolution::max_pool(tape, &x[0], &packing, channels).unwrap().0,
        move |x| reference::max_pool(&x[0], &sequences, bins, channels),
    ));
    cases.push(case(
        format!("channels_first of {bins} bins, {channels} channels"),
        &[&shape],
        1,
        move |tape, x| ops::convolution::channels_first(tape, &x[0], channels).unwrap(),
        move |x| {
            let frame = |x: &[f64]| (0..x.len()).map(|k| x[k % bins * channels + k / bins]).collect::<Vec<_>>();
            x[0].chunks(bins * channels).flat_map(frame).collect()
        },
    ));
}

fn positions(cases: &mut Vec<Case>) {
    let sequences = Sequences::new(&[900, 3, 1]).unwrap();
    let packing = sequences.clone();
    cases.push(case(
        "positions",
        &[&[sequences.rows(), 7]],
        4,
        move |tape, x| ops::positions::positions(tape, &x[0], &packing, 2.5, 40).unwrap(),
        move |x| {
            let mut output: Vec<f64> = x[0].iter().map(|x| 2.5 * x).collect();
            for (sequence, &length) in sequences.lengths().iter().enumerate() {
                for (time, column) in (0..length).flat_map(|time| (0..7).map(move |column| (time, column))) {
                    let angle = (40 + time) as f64 / 10_000_f64.powf((column - column % 2) as f64 / 7.0);
                    output[sequences.row(sequence, time) * 7 + column] +=
                        if column % 2 == 0 { angle.sin() } else { angle.cos() };
                }
            }
            output
        },
    ));
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
    let parameters = [vec![4 * hidden, inputs], vec![4 * hidden, hidden], vec![4 * hidden], vec![4 * hidden]];
    let shapes: Vec<Vec<usize>> = std::iter::once(x).chain((0..directions).flat_map(|_| parameters.clone())).collect();
    let packing = sequences.clone();
    cases.push(Case {
        name: format!("lstm of lengths {lengths:?}, {inputs} inputs, {hidden} units, {directions} directions"),
        depth: (sequences.steps() + 1) * (4 * hidden + inputs + 16) + sequences.rows(),
        shapes,
        forward: Box::new(move |tape, x| {
            let directions: Vec<Direction> = x[1..].chunks(4).map(direction).collect();
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

/// 0 or 1 / (1 - p), by the counter's place.
fn mask_factor(key: &MaskKey, layer: &str, probability: f64, place: [usize; 3]) -> f64 {
    let [unit, time, sequence] = place;
    let random = key.generator(layer).block([unit as u32 / 4, time as u32, sequence as u32, key.step])[unit % 4];
    let kept = f64::from(random) >= (probability * 4_294_967_296.0_f64).floor();
    if kept { 1.0 / (1.0 - probability) } else { 0.0 }
}

fn dropout(cases: &mut Vec<Case>) {
    for sharing in [Sharing::Elementwise, Sharing::Locked] {
        let sequences = Sequences::new(&[70, 6, 4, 1]).unwrap();
        let (rows, columns) = (sequences.rows(), 9);
        let key = MaskKey { seed: 3, stage: "1-4".into(), step: 17 };
        let mask = Mask::new(&key, "encoder.proj.0", 0.4).unwrap();
        let packing = sequences.clone();
        cases.push(case(
            format!("dropout, {sharing:?}"),
            &[&[rows, columns]],
            2,
            move |tape, x| ops::dropout::dropout_as(tape, &x[0], &packing, mask, sharing).unwrap(),
            move |x| {
                let mut output = x[0].clone();
                for (sequence, &length) in sequences.lengths().iter().enumerate() {
                    for time in 0..length {
                        for unit in 0..columns {
                            let drawn = if sharing == Sharing::Locked { 0 } else { time };
                            output[sequences.row(sequence, time) * columns + unit] *=
                                mask_factor(&key, "encoder.proj.0", 0.4, [unit, drawn, sequence]);
                        }
                    }
                }
                output
            },
        ));
    }
}

fn embedding(cases: &mut Vec<Case>) {
    for (vocabulary, columns, dropped) in [(1, 1, 0.0), (7, 5, 0.0), (9, 6, 0.3)] {
        let tokens: Vec<u32> = (0..90).map(|row| row * row % vocabulary).collect();
        let key = MaskKey { seed: 3, stage: "joint".into(), step: 5 };
        let mask = (dropped > 0.0).then(|| Mask::new(&key, "encoder", dropped).unwrap());
        let read = tokens.clone();
        cases.push(case(
            format!("embedding {vocabulary} x {columns}, dropping {dropped}"),
            &[&[vocabulary as usize, columns]],
            90,
            move |tape, x| ops::embedding::embedding(tape, &x[0], &read, mask).unwrap(),
            move |x| {
                let rows = tokens.iter().map(|&token| token as usize);
                let factor =
                    |token| if dropped > 0.0 { mask_factor(&key, "encoder", dropped, [token, 0, 0]) } else { 1.0 };
                rows.flat_map(|token| x[0][token * columns..][..columns].iter().map(move |w| factor(token) * w))
                    .collect()
            },
        ));
    }
}

/// With an initial state, and DropConnect on the recurrent weights.
fn masked_lstm(cases: &mut Vec<Case>, lengths: &[usize], inputs: usize, hidden: usize) {
    let sequences = Sequences::new(lengths).unwrap();
    let key = MaskKey { seed: 4, stage: "joint".into(), step: 8 };
    let mask = Mask::new(&key, "rnns.0", 0.5).unwrap();
    let state = [sequences.count(), hidden];
    let initial = [values("initial h", state[0] * state[1]), values("initial c", state[0] * state[1])];
    let (packing, given) = (sequences.clone(), initial.clone());
    let shapes: [&[usize]; 5] =
        [&[sequences.rows(), inputs], &[4 * hidden, inputs], &[4 * hidden, hidden], &[4 * hidden], &[4 * hidden]];
    cases.push(case(
        format!("lstm of lengths {lengths:?}, {inputs} inputs, {hidden} units, from a state, with DropConnect"),
        &shapes,
        (sequences.steps() + 1) * (4 * hidden + inputs + 16) + sequences.rows(),
        move |tape, x| {
            let tensor =
                |values: &[f32]| Tensor::from_vec(tape.device(), &state, values.to_vec(), Category::Activation);
            let initial = State { hidden: tensor(&given[0]), cell: tensor(&given[1]) };
            let direction = direction(&x[1..]);
            ops::lstm::lstm_from(tape, &x[0], &packing, &direction, Some(&initial), Some(mask)).unwrap().0
        },
        move |x| {
            let masked: Vec<f64> = x[2]
                .iter()
                .enumerate()
                .map(|(place, w)| w * mask_factor(&key, "rnns.0", 0.5, [place % hidden, place / hidden, 0]))
                .collect();
            let direction = reference::LstmDirection {
                input_weight: &x[1],
                recurrent_weight: &masked,
                input_bias: &x[3],
                recurrent_bias: &x[4],
            };
            let [h, c] = in_f64(initial.to_vec()).try_into().unwrap();
            reference::lstm_from(&x[0], &sequences, &[direction], [&h, &c]).0
        },
    ));
}

fn direction(x: &[Var]) -> Direction {
    Direction {
        input_weight: x[0].clone(),
        recurrent_weight: x[1].clone(),
        input_bias: x[2].clone(),
        recurrent_bias: x[3].clone(),
    }
}

fn regularisation(cases: &mut Vec<Case>) {
    for (count, steps, columns) in [(1, 1, 1), (3, 1, 2), (4, 7, 5)] {
        let sequences = Sequences::new(&vec![steps; count]).unwrap();
        let shape: &[usize] = &[count * steps, columns];
        cases.push(case(
            format!("temporal_difference of {count} x {steps}"),
            &[shape],
            2,
            move |tape, x| ops::temporal::temporal_difference(tape, &x[0], &sequences).unwrap(),
            move |x| x[0].iter().skip(count * columns).zip(&x[0]).map(|(after, before)| after - before).collect(),
        ));
        cases.push(case(
            format!("mean_square of {count} x {steps}"),
            &[shape],
            count * steps * columns + 4,
            |tape, x| ops::arithmetic::mean_square(tape, &x[0]).unwrap(),
            |x| vec![x[0].iter().map(|x| x * x).sum::<f64>() / x[0].len() as f64],
        ));
    }
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

/// Every row of the table on every device.
fn everywhere(devices: &[Device]) -> Vec<(&Device, Case)> {
    devices.iter().flat_map(|device| table().into_iter().map(move |case| (device, case))).collect()
}

#[test]
fn every_operation_agrees_with_its_definition() {
    for (device, case) in everywhere(&devices()) {
        let (found, _) = run(&case, device, &vec![false; case.shapes.len()]);
        device.check().unwrap_or_else(|error| panic!("{}: {error}", case.name));
        let expected = (case.reference)(&in_f64(inputs(&case)));
        assert_close(&format!("{} on {device}", case.name), &found, &expected, case.depth);
    }
}

#[test]
fn an_operation_has_the_same_bits_whenever_it_runs() {
    for (device, case) in everywhere(&devices()) {
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
    for (device, case) in everywhere(&devices()) {
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
    for (device, case) in everywhere(&devices()) {
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
fn the_state_that_an_lstm_ends_with_is_that_of_each_sequences_last_step() {
    for (device, lengths) in
        devices().iter().flat_map(|device| [[5, 5, 5], [4, 2, 1]].map(move |lengths| (device, lengths)))
    {
        let (sequences, inputs, hidden) = (Sequences::new(&lengths).unwrap(), 4, 6);
        let shapes = [vec![sequences.rows(), inputs], vec![24, inputs], vec![24, hidden], vec![24], vec![24]];
        let given: Vec<Vec<f32>> =
            shapes.iter().enumerate().map(|(k, shape)| values(&format!("state {k}"), shape.iter().product())).collect();
        let variable = |(shape, values): (&Vec<usize>, &Vec<f32>)| {
            Var::constant(Tensor::from_vec(device, shape, values.clone(), Category::Parameter))
        };
        let x: Vec<Var> = shapes.iter().zip(&given).map(variable).collect();
        let mut tape = Tape::new(device);
        let (_, state) = ops::lstm::lstm_from(&mut tape, &x[0], &sequences, &direction(&x[1..]), None, None).unwrap();
        let g = in_f64(given);
        let parameters = reference::LstmDirection {
            input_weight: &g[1],
            recurrent_weight: &g[2],
            input_bias: &g[3],
            recurrent_bias: &g[4],
        };
        let zeros = vec![0.0; 3 * hidden];
        let (_, [h, c]) = reference::lstm_from(&g[0], &sequences, &[parameters], [&zeros, &zeros]);
        assert_close(&format!("h on {device}"), &state.hidden.to_vec(), &h, 300);
        assert_close(&format!("c on {device}"), &state.cell.to_vec(), &c, 300);
    }
}

#[test]
fn rows_are_taken_in_any_order_and_more_than_once_and_others_follow_them() {
    for device in devices() {
        let tensor = |rows: usize, first: f32| {
            let elements = (0..rows * 5).map(|i| first + i as f32).collect();
            Tensor::from_vec(&device, &[rows, 5], elements, Category::Activation)
        };
        let (table, then) = (tensor(4, 0.0), tensor(2, 100.0));
        let rows = |numbers: &[u32], table: &Tensor, then| Rows::new(&device, numbers).of(table, then);
        let taken = rows(&[3, 0, 3], &table, Some(&then)).unwrap();
        let row = |first: f32| (0..5).map(move |i| first + i as f32);
        let expected: Vec<f32> = [15.0, 0.0, 15.0, 100.0, 105.0].into_iter().flat_map(row).collect();
        assert_eq!((taken.shape(), taken.to_vec()), (&[5, 5][..], expected), "{device}");
        assert!(rows(&[], &table, None).unwrap().is_empty());
        assert!(rows(&[4], &table, None).is_err());
        let narrow = Tensor::from_vec(&device, &[2, 3], vec![0.0; 6], Category::Activation);
        assert!(rows(&[1], &table, Some(&narrow)).is_err());
    }
}

/// The top of a language model is no record on a tape, so it has promises of its own. The last shape has more logits than exist at a time.
#[test]
fn linear_cross_entropy_agrees_with_its_definition_and_forms_the_gradients_that_are_wanted() {
    const STEP: f64 = 1e-5;
    for (device, (rows, inputs, vocabulary)) in devices()
        .iter()
        .flat_map(|device| [(1, 1, 1), (7, 5, 9), (33, 3, 70), (7, 2, 2_000_000)].map(move |sizes| (device, sizes)))
        .filter(|(device, sizes)| device.to_string() == "cpu" || sizes.2 < 1000)
    {
        let shapes = [vec![rows, inputs], vec![vocabulary, inputs], vec![vocabulary]];
        let given: Vec<Vec<f32>> =
            shapes.iter().enumerate().map(|(k, shape)| values(&format!("top {k}"), shape.iter().product())).collect();
        let targets: Vec<u32> = (0..rows).map(|row| (row * 31 % vocabulary) as u32).collect();
        let run = |trainable: [bool; 3]| {
            let wanted = shapes.iter().zip(trainable).map(|(shape, trainable)| trainable.then_some(&shape[..]));
            let mut gradients = GradientBuffers::allocate(device, wanted);
            let mut tape = Tape::new(device);
            let input = |k: usize| {
                let tensor = Tensor::from_vec(device, &shapes[k], given[k].clone(), Category::Parameter);
                if trainable[k] { Var::parameter(tensor, k) } else { Var::constant(tensor) }
            };
            let inputs: Vec<Var> = (0..3).map(input).collect();
            // An activation, as the output of the layers below is.
            let x = ops::arithmetic::scale(&mut tape, &inputs[0], 1.0);
            let top = Top { x: &x, weight: &inputs[1], bias: &inputs[2], targets: &targets };
            let alone = losses(top).unwrap().read();
            let (losses, dx) = losses_and_gradients(top, 0.5, &mut gradients).unwrap();
            let losses = losses.read();
            assert_eq!(alone, losses, "with and without gradients on {device}");
            assert_eq!(dx.is_some(), trainable[0]);
            if let Some(dx) = dx {
                tape.backward_from(&x, dx, &mut gradients).unwrap();
            }
            (losses, (0..3).map(|k| gradients.get(k).map(Tensor::to_vec)).collect::<Vec<_>>())
        };
        let (found, all) = run([true; 3]);
        let mut point = in_f64(given.clone());
        let definition =
            |point: &[Vec<f64>]| reference::linear_cross_entropy(&point[0], &point[1], &point[2], &targets);
        let found: Vec<f32> = found.iter().map(|&loss| loss as f32).collect();
        let depth = 16 + inputs + vocabulary.min(2000) + rows;
        assert_close(&format!("losses on {device}"), &found, &definition(&point), depth);
        for input in 0..3 {
            let stride = point[input].len().div_ceil(if vocabulary > 1000 { 3 } else { 40 });
            let mut expected = Vec::new();
            for element in (0..point[input].len()).step_by(stride) {
                let x = point[input][element];
                let mut at = |moved: f64| {
                    point[input][element] = moved;
                    0.5 * definition(&point).iter().sum::<f64>()
                };
                let (above, below) = (at(x + STEP), at(x - STEP));
                at(x);
                expected.push((above - below) / (2.0 * STEP));
            }
            let found: Vec<f32> = all[input].as_ref().unwrap().iter().step_by(stride).copied().collect();
            // Differences of sums of about rows * ln V lose 1e-16 * that / 1e-5; gradients may be as small as 1 / V.
            for (found, expected) in found.iter().zip(expected) {
                let tolerance = f64::from(f32::EPSILON) * depth as f64 + 1e-8;
                assert!(
                    (f64::from(*found) - expected).abs() < tolerance,
                    "input {input} on {device}: {found}, {expected}"
                );
            }
        }
        for combination in 0..8 {
            let trainable = [0, 1, 2].map(|k| combination >> k & 1 == 1);
            let (_, gradients) = run(trainable);
            for k in 0..3 {
                let expected = all[k].as_deref().filter(|_| trainable[k]);
                assert_eq!(
                    gradients[k].as_deref().map(bits),
                    expected.map(bits),
                    "input {k} of {trainable:?} on {device}"
                );
            }
        }
        assert_eq!(device.ledger().live_total(), 0);
    }
}

/// Where products are of bf16, logits and their gradient are, too.
#[test]
fn the_top_of_a_language_model_in_bf16_is_the_exact_one_up_to_its_roundings() {
    let devices: Vec<Device> = devices().into_iter().filter(|device| device.to_string() != "cpu").collect();
    if devices.is_empty() {
        println!("skipped: there is no device but the CPU");
    }
    for device in &devices {
        for (rows, inputs, vocabulary) in [(5, 7, 9), (33, 24, 70), (40, 64, 301)] {
            let tensor = |name: &str, shape: &[usize]| {
                let values = values(name, shape.iter().product());
                Tensor::from_vec(device, shape, values, Category::Parameter)
            };
            let weight = Var::parameter(tensor("top 1", &[vocabulary, inputs]), 0);
            let bias = Var::parameter(tensor("top 2", &[vocabulary]), 1);
            let x = Var::parameter(tensor("top 0", &[rows, inputs]), 2);
            let targets: Vec<u32> = (0..rows).map(|row| (row * 31 % vocabulary) as u32).collect();
            let run = |arithmetic| {
                device.set_arithmetic(arithmetic);
                let shapes = [Some(weight.shape()), Some(bias.shape()), None];
                let mut gradients = GradientBuffers::allocate(device, shapes);
                let top = Top { x: &x, weight: &weight, bias: &bias, targets: &targets };
                let (losses, dx) = losses_and_gradients(top, 0.5, &mut gradients).unwrap();
                let losses: Vec<f32> = losses.read().into_iter().map(|loss| loss as f32).collect();
                let of = |index| gradients.get(index).unwrap().to_vec();
                [("losses", losses), ("dx", dx.unwrap().to_vec()), ("dW", of(0)), ("db", of(1))]
            };
            let exact = run(Arithmetic::F32);
            for ((name, exact), (_, rounded)) in exact.iter().zip(run(Arithmetic::Bf16)) {
                let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let off = norm(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b)) / norm(&mut exact.iter().copied());
                // Roundings of 2^-9 in operands, logits and gradients, which do not all go the same way.
                assert!(off > 0.0 && off < 1.0 / 128.0, "{name} of {rows} x {inputs} x {vocabulary}: {off}");
            }
            device.set_arithmetic(Arithmetic::F32);
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
