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

/// `x: [R, C]`, `gamma, beta: [C]`.
pub fn layer_norm(x: &[f64], gamma: &[f64], beta: &[f64], epsilon: f64) -> Vec<f64> {
    let columns = gamma.len();
    let normalised = |row: &[f64]| -> Vec<f64> {
        let mean = row.iter().sum::<f64>() / columns as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / columns as f64;
        let elements = row.iter().zip(gamma).zip(beta);
        elements.map(|((x, gamma), beta)| gamma * (x - mean) / (variance + epsilon).sqrt() + beta).collect()
    };
    x.chunks(columns).flat_map(normalised).collect()
}

/// The sum over the rows with a label of `-sum q ln softmax(logits)`, q = (1 - smoothing) at the label + smoothing * prior.
pub fn cross_entropy(logits: &[f64], labels: &[Option<usize>], smoothing: f64, prior: &[f64]) -> f64 {
    let rows = log_softmax(logits, prior.len());
    let of_row = |(row, label): (&[f64], &Option<usize>)| {
        let Some(label) = label else { return 0.0 };
        let spread: f64 = row.iter().zip(prior).map(|(log_p, q)| q * log_p).sum();
        -(1.0 - smoothing) * row[*label] - smoothing * spread
    };
    rows.chunks(prior.len()).zip(labels).map(of_row).sum()
}

/// The sum over the rows of `-sum q ln softmax(logits)`; logits and q: `[rows, symbols]`.
pub fn cross_entropy_of_distributions(logits: &[f64], q: &[f64], symbols: usize) -> f64 {
    -log_softmax(logits, symbols).iter().zip(q).map(|(log_p, q)| q * log_p).sum::<f64>()
}

/// Which keys a query sees and what its probabilities are multiplied by.
pub struct Attention<'a> {
    pub heads: usize,
    pub queries: &'a Sequences,
    pub keys: &'a Sequences,
    pub of: &'a [usize],
    pub causal: bool,
    /// Of (key, query, sequence of queries * heads + head).
    pub factor: &'a dyn Fn([usize; 3]) -> f64,
}

/// softmax(q k^T / sqrt(d)) v, head by head; q: `[Rq, D]`, k, v: `[Rk, D]`.
pub fn attention(q: &[f64], k: &[f64], v: &[f64], of: &Attention) -> Vec<f64> {
    let columns = q.len() / of.queries.rows();
    let width = columns / of.heads;
    let mut output = vec![0.0; q.len()];
    for (sequence, &length) in of.queries.lengths().iter().enumerate() {
        let keys = of.of[sequence];
        for (head, time) in (0..of.heads).flat_map(|head| (0..length).map(move |time| (head, time))) {
            let part = |x: &'_ [f64], row: usize| x[row * columns + head * width..][..width].to_vec();
            let query = part(q, of.queries.row(sequence, time));
            let seen = if of.causal { time + 1 } else { of.keys.lengths()[keys] };
            let key_row = |key: usize| of.keys.row(keys, key);
            let scores: Vec<f64> =
                (0..seen).map(|key| dot(&query, &part(k, key_row(key))) / (width as f64).sqrt()).collect();
            let total = log_sum(scores.iter().copied());
            for (key, score) in scores.iter().enumerate() {
                let p = (score - total).exp() * (of.factor)([key, time, sequence * of.heads + head]);
                let start = of.queries.row(sequence, time) * columns + head * width;
                for (output, v) in output[start..start + width].iter_mut().zip(part(v, key_row(key))) {
                    *output += p * v;
                }
            }
        }
    }
    output
}

/// `relu(x * weight + bias)` with frames of `[F, C]`, weight `[O, C, 3, 3]`; a patch begins at `stride * t - padding`, zeros are outside.
pub fn convolution(
    [x, weight, bias]: [&[f64]; 3],
    sequences: &Sequences,
    outputs: &Sequences,
    (bins, output_bins): (usize, usize),
    (stride, padding): (usize, usize),
) -> Vec<f64> {
    let (channels, filters) = (x.len() / sequences.rows() / bins, bias.len());
    let mut output = vec![0.0; outputs.rows() * output_bins * filters];
    for (sequence, &length) in outputs.lengths().iter().enumerate() {
        for (time, bin, filter) in (0..length)
            .flat_map(|time| (0..output_bins).map(move |bin| (time, bin)))
            .flat_map(|(time, bin)| (0..filters).map(move |filter| (time, bin, filter)))
        {
            let mut sum = bias[filter];
            for (channel, i, j) in (0..channels).flat_map(|c| (0..3).flat_map(move |i| (0..3).map(move |j| (c, i, j))))
            {
                let at = (time * stride + i).checked_sub(padding).zip((bin * stride + j).checked_sub(padding));
                let inside = at.filter(|&(t, f)| t < sequences.lengths()[sequence] && f < bins);
                if let Some((t, f)) = inside {
                    let x = x[(sequences.row(sequence, t) * bins + f) * channels + channel];
                    sum += x * weight[((filter * channels + channel) * 3 + i) * 3 + j];
                }
            }
            output[(outputs.row(sequence, time) * output_bins + bin) * filters + filter] = sum.max(0.0);
        }
    }
    output
}

/// The largest of every 2 x 2 frames and bins.
pub fn max_pool(x: &[f64], sequences: &Sequences, bins: usize, channels: usize) -> Vec<f64> {
    let outputs = sequences.subsample(2);
    let frame = bins.div_ceil(2) * channels;
    let mut output = vec![f64::NEG_INFINITY; outputs.rows() * frame];
    for (sequence, &length) in sequences.lengths().iter().enumerate() {
        for (time, bin) in (0..length).flat_map(|time| (0..bins).map(move |bin| (time, bin))) {
            for channel in 0..channels {
                let y = &mut output[outputs.row(sequence, time / 2) * frame + bin / 2 * channels + channel];
                *y = y.max(x[(sequences.row(sequence, time) * bins + bin) * channels + channel]);
            }
        }
    }
    output
}

/// The sizes of an LSTM decoder with location-aware attention, and which utterance each sequence of symbols is of.
pub struct AttentionDecoder<'a> {
    pub tokens: &'a Sequences,
    pub frames: &'a Sequences,
    pub of: &'a [usize],
    pub channels: usize,
}

/// x: frames `[R', E]`, encoded `[R', A]`, embedded `[R, D]`, W `[A, H]`, taps `[channels, K]`, U `[A, channels]`, g `[A]`, LSTM weights
/// `[4H, D + E]`, `[4H, H]` and biases `[4H]` twice; gives `[R, H]`. ESPnet's `AttLoc` in its `Decoder`.
pub fn attention_decoder(x: &[Vec<f64>], of: &AttentionDecoder) -> Vec<f64> {
    let [frames, encoded, embedded, query, taps, location, energy, input, recurrent, b1, b2] = x else {
        panic!("eleven inputs")
    };
    let (hidden, attention) = (b1.len() / 4, energy.len());
    let (frame, embedding) = (frames.len() / of.frames.rows(), embedded.len() / of.tokens.rows());
    let width = taps.len() / of.channels;
    let mut output = vec![0.0; of.tokens.rows() * hidden];
    for (n, &length) in of.tokens.lengths().iter().enumerate() {
        let utterance = of.of[n];
        let count = of.frames.lengths()[utterance];
        let row = |j: usize| of.frames.row(utterance, j);
        let (mut z, mut c, mut a) = (vec![0.0; hidden], vec![0.0; hidden], vec![1.0 / count as f64; count]);
        for step in 0..length {
            let energies: Vec<f64> = (0..count)
                .map(|j| {
                    let located = |channel: usize| -> f64 {
                        let at = |k: usize| (j + k).checked_sub(width / 2).and_then(|i| a.get(i)).unwrap_or(&0.0);
                        (0..width).map(|k| taps[channel * width + k] * at(k)).sum()
                    };
                    let located: Vec<f64> = (0..of.channels).map(located).collect();
                    let unit = |unit: usize| {
                        let sum = encoded[row(j) * attention + unit]
                            + dot(&query[unit * hidden..], &z)
                            + dot(&location[unit * of.channels..], &located);
                        energy[unit] * sum.tanh()
                    };
                    2.0 * (0..attention).map(unit).sum::<f64>()
                })
                .collect();
            let total = log_sum(energies.iter().copied());
            a = energies.iter().map(|e| (e - total).exp()).collect();
            let token = of.tokens.row(n, step);
            let context = |unit: usize| (0..count).map(|j| a[j] * frames[row(j) * frame + unit]).sum::<f64>();
            let mut read = embedded[token * embedding..][..embedding].to_vec();
            read.extend((0..frame).map(context));
            let gate = |gate: usize| {
                b1[gate] + b2[gate] + dot(&input[gate * read.len()..], &read) + dot(&recurrent[gate * hidden..], &z)
            };
            let gates: Vec<f64> = (0..4 * hidden).map(gate).collect();
            for unit in 0..hidden {
                let [i, f, g, o] = [0, 1, 2, 3].map(|gate| gates[gate * hidden + unit]);
                c[unit] = sigmoid(f) * c[unit] + sigmoid(i) * g.tanh();
                z[unit] = sigmoid(o) * c[unit].tanh();
            }
            output[token * hidden..][..hidden].copy_from_slice(&z);
        }
    }
    output
}
