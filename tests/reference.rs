//! Every operation, written down as its definition reads, in f64: slow, and easy to check by eye.
//!
//! Matrices are row-major; sequences are packed, longest first, as `ops::sequences` says.

use headfirst::ops::sequences::Sequences;

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `x: [R, C]`, `weight: [O, C]`, `bias: [O]`.
pub fn linear(x: &[f64], weight: &[f64], bias: &[f64], function: fn(f64) -> f64) -> Vec<f64> {
    let inputs = weight.len() / bias.len();
    let output = |row: &[f64], unit: usize| {
        let weights = &weight[unit * inputs..(unit + 1) * inputs];
        function(bias[unit] + row.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>())
    };
    x.chunks(inputs).flat_map(|row| (0..bias.len()).map(move |unit| output(row, unit))).collect()
}

/// One direction's parameters: `[4H, C]`, `[4H, H]`, `[4H]`, `[4H]`, gates in the order i, f, g, o.
pub struct LstmDirection<'a> {
    pub input_weight: &'a [f64],
    pub recurrent_weight: &'a [f64],
    pub input_bias: &'a [f64],
    pub recurrent_bias: &'a [f64],
}

/// `x: [R, C]`; gives `[R, D * H]`.
pub fn lstm(x: &[f64], sequences: &Sequences, directions: &[LstmDirection<'_>]) -> Vec<f64> {
    let zeros = vec![0.0; sequences.count() * directions[0].input_bias.len() / 4];
    lstm_from(x, sequences, directions, [&zeros, &zeros]).0
}

/// From the initial h and c of every sequence, `[N, H]`; gives the output, and h and c of the last direction after each sequence's last step.
pub fn lstm_from(
    x: &[f64],
    sequences: &Sequences,
    directions: &[LstmDirection<'_>],
    initial: [&[f64]; 2],
) -> (Vec<f64>, [Vec<f64>; 2]) {
    let mut last = initial.map(<[f64]>::to_vec);
    let hidden = directions[0].input_bias.len() / 4;
    let inputs = directions[0].input_weight.len() / (4 * hidden);
    let columns = directions.len() * hidden;
    let mut output = vec![0.0; sequences.rows() * columns];
    for (index, direction) in directions.iter().enumerate() {
        for (sequence, &length) in sequences.lengths().iter().enumerate() {
            let [mut h, mut c] = initial.map(|state| state[sequence * hidden..][..hidden].to_vec());
            for step in 0..length {
                let time = if index == 1 { length - 1 - step } else { step };
                let row = sequences.row(sequence, time);
                let gate = |gate: usize| {
                    direction.input_bias[gate]
                        + direction.recurrent_bias[gate]
                        + dot(&direction.input_weight[gate * inputs..], &x[row * inputs..(row + 1) * inputs])
                        + dot(&direction.recurrent_weight[gate * hidden..], &h)
                };
                let gates: Vec<f64> = (0..4 * hidden).map(gate).collect();
                for unit in 0..hidden {
                    let [i, f, g, o] = [0, 1, 2, 3].map(|gate| gates[gate * hidden + unit]);
                    c[unit] = sigmoid(f) * c[unit] + sigmoid(i) * g.tanh();
                    h[unit] = sigmoid(o) * c[unit].tanh();
                }
                let start = row * columns + index * hidden;
                output[start..start + hidden].copy_from_slice(&h);
            }
            for (last, state) in last.iter_mut().zip([h, c]) {
                last[sequence * hidden..][..hidden].copy_from_slice(&state);
            }
        }
    }
    (output, last)
}

/// -ln softmax(x W^T + b) at the target of every row.
pub fn linear_cross_entropy(x: &[f64], weight: &[f64], bias: &[f64], targets: &[u32]) -> Vec<f64> {
    let logits = linear(x, weight, bias, |x| x);
    let rows = log_softmax(&logits, bias.len());
    rows.chunks(bias.len()).zip(targets).map(|(row, &target)| -row[target as usize]).collect()
}

fn dot(weights: &[f64], x: &[f64]) -> f64 {
    weights.iter().zip(x).map(|(w, x)| w * x).sum()
}

/// `x: [R, C]`: every `factor`-th frame of every sequence, the first always.
pub fn subsample(x: &[f64], sequences: &Sequences, columns: usize, factor: usize) -> Vec<f64> {
    let kept = sequences.subsample(factor);
    let mut output = vec![0.0; kept.rows() * columns];
    for (sequence, &length) in kept.lengths().iter().enumerate() {
        for time in 0..length {
            let (from, to) = (sequences.row(sequence, time * factor), kept.row(sequence, time));
            output[to * columns..(to + 1) * columns].copy_from_slice(&x[from * columns..(from + 1) * columns]);
        }
    }
    output
}

/// `x: [R, V]`.
pub fn log_softmax(x: &[f64], columns: usize) -> Vec<f64> {
    x.chunks(columns)
        .flat_map(|row| {
            let total = log_sum(row.iter().copied());
            row.iter().map(move |x| x - total)
        })
        .collect()
}

/// ln(sum of e^x).
pub fn log_sum(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + values.map(|x| (x - largest).exp()).sum::<f64>().ln()
}

/// The sum over the sequences of -ln p(labels), each by the forward recursion over blank-separated labels; infeasible ones count zero.
pub fn ctc(logits: &[f64], sequences: &Sequences, symbols: usize, labels: &[Vec<u32>]) -> f64 {
    let log_probabilities = log_softmax(logits, symbols);
    let mut total = 0.0;
    for (sequence, (&length, labels)) in sequences.lengths().iter().zip(labels).enumerate() {
        let states: Vec<usize> =
            std::iter::once(0).chain(labels.iter().flat_map(|&label| [label as usize, 0])).collect();
        let emission =
            |time: usize, state: usize| log_probabilities[sequences.row(sequence, time) * symbols + states[state]];
        let mut alpha = vec![f64::NEG_INFINITY; states.len()];
        alpha[0] = emission(0, 0);
        if states.len() > 1 {
            alpha[1] = emission(0, 1);
        }
        for time in 1..length {
            alpha = (0..states.len())
                .map(|state| {
                    let skips = state >= 2 && states[state] != 0 && states[state] != states[state - 2];
                    let from = [Some(state), state.checked_sub(1), state.checked_sub(2).filter(|_| skips)];
                    log_sum(from.into_iter().flatten().map(|state| alpha[state])) + emission(time, state)
                })
                .collect();
        }
        let log_likelihood = log_sum(alpha[states.len().saturating_sub(2)..].iter().copied());
        if log_likelihood > f64::NEG_INFINITY {
            total -= log_likelihood;
        }
    }
    total
}
