//! An LSTM decoder with location-aware attention (Chorowski et al., 2015; ESPnet v1's `AttLoc` and `Decoder`), all steps of a batch.
//!
//! At every step, for the frames h_j of an utterance, with the state z and the weights a' of the step before:
//!
//! ```text
//! e_j = g . tanh(V h_j + W z + U (F * a')_j)    a = softmax(2 e)    c = sum a_j h_j    z = LSTM([y, c], z)
//! ```
//! V h comes ready, as it is the same at all steps. The products with the LSTM's and the query's weights are those of all utterances together, the
//! symbols' part before the first step; the attention of an utterance is a task. It is bounded by T A tangents and 2 T A (channels) operations a
//! step; backward computes the tangents again, since keeping them would take T A numbers for every symbol. Each utterance sums its own part of
//! the gradients of g, U and F, which are then added in the order of the utterances.

use super::attention::{Packing, split};
use super::matmul::{Matrix, column_sums, matmul, rows_per_task};
use super::simd::{WithSimd, apply, exp_nonpositive, load, sigmoid, tanh, vectorized};
use super::softmax::row_max;
use pulp::Simd;
use rayon::prelude::*;

/// ESPnet's factor on the energies.
const SHARPENING: f32 = 2.0;

/// The sizes of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Decoder<'a> {
    pub tokens: Packing<'a>,
    pub frames: Packing<'a>,
    /// The utterance of every sequence of tokens.
    pub of: &'a [usize],
    /// Columns of a symbol.
    pub embedding: usize,
    /// Of a frame.
    pub frame: usize,
    /// Of V h.
    pub attention: usize,
    pub channels: usize,
    /// Taps of F, an odd number.
    pub taps: usize,
    pub hidden: usize,
}

/// What is multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    /// W, `[A, H]`
    pub query: &'a [f32],
    /// F, `[channels, taps]`
    pub taps: &'a [f32],
    /// U, `[A, channels]`
    pub location: &'a [f32],
    /// g, `[A]`
    pub energy: &'a [f32],
    /// `[4H, D + E]`, gates in the order i, f, g, o.
    pub input: &'a [f32],
    /// `[4H, H]`
    pub recurrent: &'a [f32],
    /// `[4H]` each.
    pub biases: [&'a [f32]; 2],
}

/// What a step begins with: h and c of every sequence, `[N, H]`, and its attention over its utterance, one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Initial<'a> {
    pub hidden: &'a [f32],
    pub cell: &'a [f32],
    pub attention: &'a [f32],
}

/// What forward gives.
pub struct Results<'a> {
    /// z, `[R, H]`
    pub hidden: &'a mut [f32],
    /// `[R, H]`
    pub cells: &'a mut [f32],
    /// `[R, 4H]`
    pub gates: &'a mut [f32],
    /// c, `[R, E]`
    pub contexts: &'a mut [f32],
    /// a, by sequence and step.
    pub attention: &'a mut [f32],
}

/// What backward reads of forward.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    pub hidden: &'a [f32],
    pub cells: &'a [f32],
    pub gates: &'a [f32],
    pub contexts: &'a [f32],
    pub attention: &'a [f32],
}

/// Where the gradients that are wanted go; all are overwritten.
pub struct Gradients<'a> {
    /// Of the frames, of V h and of the symbols.
    pub frames: Option<&'a mut [f32]>,
    pub encoded: Option<&'a mut [f32]>,
    pub embedded: Option<&'a mut [f32]>,
    /// As [`Weights`], but for the biases, which share one.
    pub query: Option<&'a mut [f32]>,
    pub taps: Option<&'a mut [f32]>,
    pub location: Option<&'a mut [f32]>,
    pub energy: Option<&'a mut [f32]>,
    pub input: Option<&'a mut [f32]>,
    pub recurrent: Option<&'a mut [f32]>,
    pub bias: Option<&'a mut [f32]>,
}

impl Decoder<'_> {
    fn rows(&self) -> usize {
        self.tokens.lengths.iter().sum()
    }

    fn steps(&self) -> usize {
        self.tokens.offsets.len() - 1
    }

    /// Frames that a sequence of tokens attends to.
    fn frames_of(&self, sequence: usize) -> usize {
        self.frames.lengths[self.of[sequence]]
    }

    /// Numbers of [`Results::attention`].
    pub fn attention_length(&self) -> usize {
        self.tokens.lengths.iter().enumerate().map(|(n, length)| length * self.frames_of(n)).sum()
    }

    /// Floating-point operations of the products of a pass forward.
    pub fn operations(&self) -> usize {
        let Decoder { embedding, frame, attention, channels, taps, hidden, .. } = *self;
        let of_token = 8 * hidden * (embedding + frame + hidden) + 2 * attention * hidden;
        let of_pair = 2 * (channels * taps + attention * channels + attention + frame);
        self.rows() * of_token + self.attention_length() * of_pair
    }

    /// frames: `[R', E]`, encoded: `[R', A]`, embedded: `[R, D]`.
    pub fn forward(
        &self,
        [frames, encoded, embedded]: [&[f32]; 3],
        weights: &Weights,
        initial: Option<Initial>,
        results: Results,
    ) {
        let Decoder { embedding: d, frame: e, attention: a, hidden: h, .. } = *self;
        let (by_utterance, encoded) = (self.by_utterance(frames, e), self.by_utterance(encoded, a));
        let Results { hidden, cells, gates, contexts, attention } = results;
        let both: Vec<f32> = weights.biases[0].iter().zip(weights.biases[1]).map(|(x, y)| x + y).collect();
        gates.chunks_exact_mut(4 * h).for_each(|gates| gates.copy_from_slice(&both));
        let of_symbols = Matrix::strided(weights.input, d + e).transposed();
        matmul(self.rows(), 4 * h, d, Matrix::rows(embedded, d), of_symbols, gates, 4 * h, true);
        let sizes = (0..self.tokens.lengths.len()).map(|n| self.tokens.lengths[n] * self.frames_of(n));
        let mut attention = split(attention, sizes);
        let first: Vec<Vec<f32>> = self.first_attention(initial);
        let zeros = vec![0.0; self.tokens.lengths.len() * h];
        let mut queries = vec![0.0; self.tokens.lengths.len() * a];
        for step in 0..self.steps() {
            let (start, active) =
                (self.tokens.offsets[step], self.tokens.offsets[step + 1] - self.tokens.offsets[step]);
            let (before, now) = hidden.split_at_mut(start * h);
            let (cells_before, cells_now) = cells.split_at_mut(start * h);
            let (z, c) = match step.checked_sub(1).map(|step| self.tokens.offsets[step] * h) {
                Some(place) => (&before[place..], &cells_before[place..]),
                None => initial.map_or((&zeros[..], &zeros[..]), |initial| (initial.hidden, initial.cell)),
            };
            let (z, query) = (Matrix::rows(z, h), Matrix::rows(weights.query, h).transposed());
            matmul(active, a, h, z, query, &mut queries, a, false);
            let contexts = &mut contexts[start * e..(start + active) * e];
            let tasks = attention.par_iter_mut().take(active).zip(contexts.par_chunks_exact_mut(e));
            tasks.zip(queries.par_chunks_exact(a)).enumerate().for_each(|(n, ((attention, context), query))| {
                let count = self.frames_of(n);
                let (earlier, rest) = attention.split_at_mut(step * count);
                let previous = if step == 0 { &first[n][..] } else { &earlier[(step - 1) * count..] };
                let tangents = self.tangents(&encoded[self.of[n]], query, &self.padded(previous), weights).0;
                let now = &mut rest[..count];
                apply(Energies { tangents: &tangents, energy: weights.energy, attention: now });
                let (now, frames) = (Matrix::rows(now, count), Matrix::rows(&by_utterance[self.of[n]], e));
                matmul(1, e, count, now, frames, context, e, false);
            });
            let gates = &mut gates[start * 4 * h..(start + active) * 4 * h];
            let of_context = Matrix::strided(&weights.input[d..], d + e).transposed();
            matmul(active, 4 * h, e, Matrix::rows(contexts, e), of_context, gates, 4 * h, true);
            matmul(active, 4 * h, h, z, Matrix::rows(weights.recurrent, h).transposed(), gates, 4 * h, true);
            let rows = gates.par_chunks_exact_mut(4 * h).zip(c.par_chunks_exact(h));
            let results = now.par_chunks_exact_mut(h).zip(cells_now.par_chunks_exact_mut(h));
            rows.zip(results).with_min_len(rows_per_task(4 * h)).for_each(|((gates, before), (hidden, cell))| {
                apply(Cell { gates, before, cell, hidden });
            });
        }
    }

    /// The gradients of all that forward read, from that of z, `[R, H]`. Every utterance has one sequence of tokens at most, which began
    /// with nothing.
    pub fn backward(
        &self,
        [frames, encoded, embedded]: [&[f32]; 3],
        weights: &Weights,
        kept: Kept,
        dy: &[f32],
        gradients: Gradients,
    ) {
        let Decoder { embedding: d, frame: e, attention: a, hidden: h, .. } = *self;
        let (rows, count) = (self.rows(), self.tokens.lengths.len());
        let (by_utterance, encoded) = (self.by_utterance(frames, e), self.by_utterance(encoded, a));
        let first = self.first_attention(None);
        let mut own: Vec<Own> = (0..count).map(|n| Own::new(self, &gradients, n)).collect();
        let mut starts = vec![0];
        (0..count).for_each(|n| starts.push(starts[n] + self.tokens.lengths[n] * self.frames_of(n)));
        let (mut dgates, mut dqueries) = (vec![0.0; rows * 4 * h], vec![0.0; rows * a]);
        let (mut dhidden, mut dcells) = (vec![0.0; count * h], vec![0.0; count * h]);
        let (mut dcontexts, mut before) = (vec![0.0; count * e], vec![0.0; rows * h]);
        for step in (0..self.steps()).rev() {
            let (start, active) =
                (self.tokens.offsets[step], self.tokens.offsets[step + 1] - self.tokens.offsets[step]);
            let zeros = vec![0.0; active * h];
            let (z, c) = match step.checked_sub(1).map(|step| self.tokens.offsets[step] * h) {
                Some(place) => (&kept.hidden[place..][..active * h], &kept.cells[place..][..active * h]),
                None => (&zeros[..], &zeros[..]),
            };
            before[start * h..][..active * h].copy_from_slice(z);
            let dgates = &mut dgates[start * 4 * h..][..active * 4 * h];
            let rows = dcells.par_chunks_exact_mut(h).zip(dgates.par_chunks_exact_mut(4 * h)).enumerate();
            rows.with_min_len(rows_per_task(4 * h)).for_each(|(n, (dcell, dgates))| {
                let row = start + n;
                cell_backward(
                    &kept.gates[row * 4 * h..][..4 * h],
                    &kept.cells[row * h..][..h],
                    &c[n * h..][..h],
                    (&dy[row * h..][..h], &dhidden[n * h..][..h]),
                    dcell,
                    dgates,
                );
            });
            let of_gates = Matrix::rows(dgates, 4 * h);
            let of_context = Matrix::strided(&weights.input[d..], d + e);
            matmul(active, e, 4 * h, of_gates, of_context, &mut dcontexts, e, false);
            let mut queries = vec![0.0; active * a];
            let query = Matrix::rows(weights.query, h);
            matmul(active, a, h, Matrix::rows(z, h), query.transposed(), &mut queries, a, false);
            let dqueries = &mut dqueries[start * a..][..active * a];
            let tasks = own.par_iter_mut().take(active).zip(dqueries.par_chunks_exact_mut(a));
            tasks.zip(queries.par_chunks_exact(a).zip(dcontexts.par_chunks_exact(e))).enumerate().for_each(
                |(n, ((own, dquery), (query, dcontext)))| {
                    let count = self.frames_of(n);
                    let of_sequence = &kept.attention[starts[n]..starts[n + 1]];
                    let now = &of_sequence[step * count..][..count];
                    let previous = if step == 0 { &first[n][..] } else { &of_sequence[(step - 1) * count..][..count] };
                    let (encoded, frames) = (&encoded[self.of[n]], &by_utterance[self.of[n]]);
                    own.step(self, weights, [encoded, frames, query, previous, now, dcontext], dquery);
                },
            );
            let recurrent = Matrix::rows(weights.recurrent, h);
            matmul(active, h, 4 * h, of_gates, recurrent, &mut dhidden, h, false);
            matmul(active, h, a, Matrix::rows(dqueries, a), query, &mut dhidden, h, true);
        }
        let gates = Matrix::rows(&dgates, 4 * h);
        if let Some(embedded) = gradients.embedded {
            matmul(rows, d, 4 * h, gates, Matrix::strided(weights.input, d + e), embedded, d, false);
        }
        let (gates, before) = (gates.transposed(), Matrix::rows(&before, h));
        if let Some(input) = gradients.input {
            matmul(4 * h, d, rows, gates, Matrix::rows(embedded, d), input, d + e, false);
            matmul(4 * h, e, rows, gates, Matrix::rows(kept.contexts, e), &mut input[d..], d + e, false);
        }
        if let Some(recurrent) = gradients.recurrent {
            matmul(4 * h, h, rows, gates, before, recurrent, h, false);
        }
        if let Some(query) = gradients.query {
            matmul(a, h, rows, Matrix::rows(&dqueries, a).transposed(), before, query, h, false);
        }
        if let Some(bias) = gradients.bias {
            column_sums(&dgates, rows, 4 * h, bias, false);
        }
        let sum = |total: Option<&mut [f32]>, of: fn(&Own) -> &[f32]| {
            if let Some(total) = total {
                total.fill(0.0);
                own.iter().for_each(|own| add(total, of(own)));
            }
        };
        sum(gradients.taps, |own| &own.taps);
        sum(gradients.location, |own| &own.location);
        sum(gradients.energy, |own| &own.energy);
        let by_row = |all: Option<&mut [f32]>, columns: usize, of: fn(&Own) -> &[f32]| {
            let Some(all) = all else { return };
            all.fill(0.0);
            for (n, own) in own.iter().enumerate() {
                for (time, values) in of(own).chunks_exact(columns).enumerate() {
                    let row = self.frames.offsets[time] + self.of[n];
                    all[row * columns..][..columns].copy_from_slice(values);
                }
            }
        };
        by_row(gradients.frames, e, |own| &own.frames);
        by_row(gradients.encoded, a, |own| &own.encoded);
    }

    /// Each utterance's rows, one behind the other.
    fn by_utterance(&self, rows: &[f32], columns: usize) -> Vec<Vec<f32>> {
        let utterance = |n: usize| -> Vec<f32> {
            let times = 0..self.frames.lengths[n];
            let row = |time: usize| &rows[(self.frames.offsets[time] + n) * columns..][..columns];
            times.map(row).collect::<Vec<_>>().concat()
        };
        (0..self.frames.lengths.len()).into_par_iter().map(utterance).collect()
    }

    /// The weights before the first step: those that are given, or all alike.
    fn first_attention(&self, initial: Option<Initial>) -> Vec<Vec<f32>> {
        let mut place = 0;
        let sequences = (0..self.of.len()).map(|n| {
            let count = self.frames_of(n);
            place += count;
            match initial {
                Some(initial) => initial.attention[place - count..place].to_vec(),
                None => vec![1.0 / count as f32; count],
            }
        });
        sequences.collect()
    }

    /// tanh(V h + W z + U (F * a')), `[T, A]`, and F * a', `[channels, T]`; `previous` is a', padded.
    fn tangents(&self, encoded: &[f32], query: &[f32], previous: &[f32], weights: &Weights) -> (Vec<f32>, Vec<f32>) {
        let (a, channels) = (self.attention, self.channels);
        let count = previous.len() + 1 - self.taps;
        let mut located = vec![0.0; channels * count];
        let filters = weights.taps.chunks_exact(self.taps);
        located.chunks_exact_mut(count).zip(filters).for_each(|(located, taps)| correlate(located, taps, previous));
        let mut tangents = encoded.to_vec();
        let location = Matrix::rows(weights.location, channels).transposed();
        let by_frame = Matrix::rows(&located, count).transposed();
        matmul(count, a, channels, by_frame, location, &mut tangents, a, true);
        apply(Tangents { sums: &mut tangents, query });
        (tangents, located)
    }

    /// With zeros at both ends, as many as a filter's middle has neighbours.
    fn padded(&self, frames: &[f32]) -> Vec<f32> {
        let mut padded = vec![0.0; frames.len() + self.taps - 1];
        padded[self.taps / 2..][..frames.len()].copy_from_slice(frames);
        padded
    }
}

/// sums\[i\] += sum over m of filter\[m\] signal\[i + m\], one after the other; signal: `[sums + filter - 1]`.
fn correlate(sums: &mut [f32], filter: &[f32], signal: &[f32]) {
    vectorized(
        #[inline(always)]
        || {
            let (done, rest) = correlate_blocks::<64>(sums, filter, signal);
            let (more, rest) = correlate_blocks::<16>(rest, filter, &signal[done..]);
            correlate_blocks::<1>(rest, filter, &signal[done + more..]);
        },
    );
}

/// As many sums as blocks have, each block in registers; gives their number and the others.
#[inline(always)]
fn correlate_blocks<'a, const BLOCK: usize>(
    sums: &'a mut [f32],
    filter: &[f32],
    signal: &[f32],
) -> (usize, &'a mut [f32]) {
    let (blocks, rest) = sums.as_chunks_mut::<BLOCK>();
    let done = blocks.len() * BLOCK;
    for (number, sums) in blocks.iter_mut().enumerate() {
        let mut block = *sums;
        for (signal, factor) in signal[number * BLOCK..].windows(BLOCK).zip(filter) {
            block.iter_mut().zip(signal).for_each(|(sum, x)| *sum += factor * x);
        }
        *sums = block;
    }
    (done, rest)
}

#[inline(always)]
fn add(sums: &mut [f32], terms: &[f32]) {
    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
}

/// The gradients that one sequence of tokens sums; those that nobody wants are empty, but for what costs nothing beside the rest.
struct Own {
    frames: Vec<f32>,
    encoded: Vec<f32>,
    taps: Vec<f32>,
    location: Vec<f32>,
    energy: Vec<f32>,
    /// Of the attention of the step that is next in time.
    attention: Vec<f32>,
}

impl Own {
    fn new(of: &Decoder, wanted: &Gradients, sequence: usize) -> Self {
        let count = of.frames_of(sequence);
        let zeros = |is_wanted: bool, count: usize| vec![0.0; if is_wanted { count } else { 0 }];
        Own {
            frames: zeros(wanted.frames.is_some(), count * of.frame),
            encoded: vec![0.0; count * of.attention],
            taps: zeros(wanted.taps.is_some(), of.channels * of.taps),
            location: zeros(wanted.location.is_some(), of.attention * of.channels),
            energy: vec![0.0; of.attention],
            attention: vec![0.0; count],
        }
    }

    /// One step, from the gradient of its context to that of its query.
    fn step(
        &mut self,
        of: &Decoder,
        weights: &Weights,
        [encoded, frames, query, previous, now, dcontext]: [&[f32]; 6],
        dquery: &mut [f32],
    ) {
        let (a, e, channels) = (of.attention, of.frame, of.channels);
        let (count, previous) = (now.len(), of.padded(previous));
        let (mut slopes, located) = of.tangents(encoded, query, &previous, weights);
        let dcontext = Matrix::rows(dcontext, e);
        if !self.frames.is_empty() {
            matmul(count, e, 1, Matrix::rows(now, 1), dcontext, &mut self.frames, e, true);
        }
        matmul(count, 1, e, Matrix::rows(frames, e), dcontext.transposed(), &mut self.attention, 1, true);
        let mean: f32 = now.iter().zip(&self.attention).map(|(a, d)| a * d).sum();
        let denergies: Vec<f32> = now.iter().zip(&self.attention).map(|(a, d)| SHARPENING * a * (d - mean)).collect();
        dquery.fill(0.0);
        vectorized(
            #[inline(always)]
            || {
                let rows = slopes.chunks_exact_mut(a).zip(self.encoded.chunks_exact_mut(a));
                for ((slopes, encoded), &denergy) in rows.zip(&denergies) {
                    // Tangents become the gradients of what they were taken of.
                    for ((slope, denergy_weight), weight) in slopes.iter_mut().zip(&mut self.energy).zip(weights.energy)
                    {
                        *denergy_weight += denergy * *slope;
                        *slope = denergy * weight * (1.0 - *slope * *slope);
                    }
                    add(encoded, slopes);
                    add(dquery, slopes);
                }
            },
        );
        let of_slopes = Matrix::rows(&slopes, a).transposed();
        let located = Matrix::rows(&located, count).transposed();
        if !self.location.is_empty() {
            matmul(a, channels, count, of_slopes, located, &mut self.location, channels, true);
        }
        let mut dlocated = vec![0.0; channels * count];
        let location = Matrix::rows(weights.location, channels).transposed();
        matmul(channels, count, a, location, of_slopes, &mut dlocated, count, false);
        self.attention.fill(0.0);
        for (taps, dlocated) in weights.taps.chunks_exact(of.taps).zip(dlocated.chunks_exact(count)) {
            let reversed: Vec<f32> = taps.iter().rev().copied().collect();
            correlate(&mut self.attention, &reversed, &of.padded(dlocated));
        }
        for (dtaps, dlocated) in self.taps.chunks_exact_mut(of.taps).zip(dlocated.chunks_exact(count)) {
            correlate(dtaps, dlocated, &previous);
        }
    }
}

/// tanh of every row plus the query.
struct Tangents<'a> {
    sums: &'a mut [f32],
    query: &'a [f32],
}

impl WithSimd for Tangents<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tangents { sums, query } = self;
        for row in sums.chunks_exact_mut(query.len()) {
            for (index, part) in row.chunks_mut(S::F32_LANES).enumerate() {
                let query = load(simd, query, index * S::F32_LANES);
                let sum = simd.add_f32s(simd.partial_load_f32s(part), query);
                simd.partial_store_f32s(part, tanh(simd, sum));
            }
        }
    }
}

/// The softmax of the sharpened energies.
struct Energies<'a> {
    tangents: &'a [f32],
    energy: &'a [f32],
    attention: &'a mut [f32],
}

impl WithSimd for Energies<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Energies { tangents, energy, attention } = self;
        for (row, result) in tangents.chunks_exact(energy.len()).zip(&mut *attention) {
            let mut sum = simd.splat_f32s(0.0);
            for start in (0..energy.len()).step_by(S::F32_LANES) {
                sum = simd.mul_add_e_f32s(load(simd, row, start), load(simd, energy, start), sum);
            }
            *result = SHARPENING * simd.reduce_sum_f32s(sum);
        }
        let max = simd.splat_f32s(row_max(simd, attention));
        for part in attention.chunks_mut(S::F32_LANES) {
            let shifted = simd.sub_f32s(simd.partial_load_f32s(part), max);
            simd.partial_store_f32s(part, exp_nonpositive(simd, shifted));
        }
        let factor = 1.0 / attention.iter().sum::<f32>();
        attention.iter_mut().for_each(|a| *a *= factor);
    }
}

/// Sums become gates, and the cell takes its step.
struct Cell<'a> {
    gates: &'a mut [f32],
    before: &'a [f32],
    cell: &'a mut [f32],
    hidden: &'a mut [f32],
}

impl WithSimd for Cell<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Cell { gates, before, cell, hidden } = self;
        let units = cell.len();
        for start in (0..units).step_by(S::F32_LANES) {
            let end = units.min(start + S::F32_LANES);
            let i = sigmoid(simd, simd.partial_load_f32s(&gates[start..end]));
            let f = sigmoid(simd, simd.partial_load_f32s(&gates[units + start..units + end]));
            let g = tanh(simd, simd.partial_load_f32s(&gates[2 * units + start..2 * units + end]));
            let o = sigmoid(simd, simd.partial_load_f32s(&gates[3 * units + start..3 * units + end]));
            let c = simd.mul_add_e_f32s(f, simd.partial_load_f32s(&before[start..end]), simd.mul_f32s(i, g));
            simd.partial_store_f32s(&mut gates[start..end], i);
            simd.partial_store_f32s(&mut gates[units + start..units + end], f);
            simd.partial_store_f32s(&mut gates[2 * units + start..2 * units + end], g);
            simd.partial_store_f32s(&mut gates[3 * units + start..3 * units + end], o);
            simd.partial_store_f32s(&mut cell[start..end], c);
            simd.partial_store_f32s(&mut hidden[start..end], simd.mul_f32s(o, tanh(simd, c)));
        }
    }
}

/// The gradient of the gates' sums; that of the cell becomes that of the cell before.
fn cell_backward(
    gates: &[f32],
    cell: &[f32],
    before: &[f32],
    (dy, dhidden): (&[f32], &[f32]),
    dcell: &mut [f32],
    dgates: &mut [f32],
) {
    let units = cell.len();
    for unit in 0..units {
        let [i, f, g, o] = [0, 1, 2, 3].map(|gate| gates[gate * units + unit]);
        let tangent = cell[unit].tanh();
        let dh = dy[unit] + dhidden[unit];
        let dc = dcell[unit] + dh * o * (1.0 - tangent * tangent);
        let slopes = [
            dc * g * i * (1.0 - i),
            dc * before[unit] * f * (1.0 - f),
            dc * i * (1.0 - g * g),
            dh * tangent * o * (1.0 - o),
        ];
        slopes.into_iter().enumerate().for_each(|(gate, slope)| dgates[gate * units + unit] = slope);
        dcell[unit] = dc * f;
    }
}
