//! 3 x 3 convolution over time and frequency of packed sequences, as products of gathered patches and the weights.
//!
//! A frame is `[F, C]`: the channels of a bin lie together. What lies outside a sequence or a frame is zero. The patches of some time steps are
//! gathered at a time, at most [`MOST`] numbers unless one step alone has more, in the order (time, bin, channel) of a patch, in which also the
//! weights are laid out once a pass. The product, 2 * 9 C O operations for every output bin, bounds it: a patch is read from caches. Backward
//! gathers the patches again for the weights' gradient; that of the input is gathered from the gradients of the patches, so that nothing is
//! written by two threads.

use super::attention::split;
use super::matmul::{Matrix, matmul};
use rayon::prelude::*;
use std::ops::Range;

/// Numbers of gathered patches at a time: 4 MiB.
const MOST: usize = 1 << 20;
/// Places of a patch, along each side and in all.
const SIDE: usize = 3;
const PLACES: usize = SIDE * SIDE;

/// The sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct Convolution<'a> {
    /// The first row of every time step of the input, and of the output, and the number of rows behind.
    pub offsets: &'a [usize],
    pub output_offsets: &'a [usize],
    /// Of a frame of the input and of the output.
    pub bins: usize,
    pub output_bins: usize,
    pub channels: usize,
    pub output_channels: usize,
    pub stride: usize,
    /// Zeros around.
    pub padding: usize,
}

impl Convolution<'_> {
    fn patch(&self) -> usize {
        PLACES * self.channels
    }

    /// Time steps of the output whose patches exist together.
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let steps = self.output_offsets.len() - 1;
        let of_row = self.output_bins * self.patch();
        let mut first = 0;
        std::iter::from_fn(move || {
            let begin = first;
            (begin < steps).then(|| {
                let fits = |last: usize| (self.output_offsets[last] - self.output_offsets[begin]) * of_row <= MOST;
                first = begin + 1;
                while first < steps && fits(first + 1) {
                    first += 1;
                }
                begin..first
            })
        })
    }

    fn rows(&self, steps: &Range<usize>) -> Range<usize> {
        self.output_offsets[steps.start]..self.output_offsets[steps.end]
    }

    /// Numbers that both passes work in.
    pub fn workspace(&self) -> usize {
        let most = self.blocks().map(|steps| self.rows(&steps).len()).max().unwrap_or(0);
        most * self.output_bins * self.patch() + 2 * self.output_channels * self.patch()
    }

    /// x: `[R, F * C]`, weight: `[O, C, 3, 3]`, y: `[R', F' * O]`.
    pub fn forward(&self, x: &[f32], weight: &[f32], y: &mut [f32], workspace: &mut [f32]) {
        let (patch, outputs) = (self.patch(), self.output_channels);
        let (weights, workspace) = workspace.split_at_mut(outputs * patch);
        self.lay_out(weight, weights);
        for steps in self.blocks() {
            let rows = self.rows(&steps);
            let count = rows.len() * self.output_bins;
            let patches = &mut workspace[..count * patch];
            self.gather(x, &steps, patches);
            let y = &mut y[rows.start * self.output_bins * outputs..][..count * outputs];
            let weights = Matrix::rows(weights, patch).transposed();
            matmul(count, outputs, patch, Matrix::rows(patches, patch), weights, y, outputs, false);
        }
    }

    /// dweight = (or, accumulating, +=) the gradient of the weight; dy: `[R', F' * O]`.
    pub fn backward_weight(&self, x: &[f32], dy: &[f32], dweight: &mut [f32], add: bool, workspace: &mut [f32]) {
        let (patch, outputs) = (self.patch(), self.output_channels);
        let (sums, workspace) = workspace.split_at_mut(outputs * patch);
        sums.fill(0.0);
        for steps in self.blocks() {
            let rows = self.rows(&steps);
            let count = rows.len() * self.output_bins;
            let patches = &mut workspace[..count * patch];
            self.gather(x, &steps, patches);
            let dy = &dy[rows.start * self.output_bins * outputs..][..count * outputs];
            let dy = Matrix::rows(dy, outputs).transposed();
            matmul(outputs, patch, count, dy, Matrix::rows(patches, patch), sums, patch, true);
        }
        let channels = self.channels;
        for (dweight, sums) in dweight.chunks_exact_mut(patch).zip(sums.chunks_exact(patch)) {
            for (index, dweight) in dweight.iter_mut().enumerate() {
                let sum = sums[index % PLACES * channels + index / PLACES];
                *dweight = if add { *dweight + sum } else { sum };
            }
        }
    }

    /// dx += the gradient of the input.
    pub fn backward_input(&self, weight: &[f32], dy: &[f32], dx: &mut [f32], workspace: &mut [f32]) {
        let (patch, outputs) = (self.patch(), self.output_channels);
        let (weights, workspace) = workspace.split_at_mut(outputs * patch);
        self.lay_out(weight, weights);
        for steps in self.blocks() {
            let rows = self.rows(&steps);
            let count = rows.len() * self.output_bins;
            let patches = &mut workspace[..count * patch];
            let dy = &dy[rows.start * self.output_bins * outputs..][..count * outputs];
            let (dy, weights) = (Matrix::rows(dy, outputs), Matrix::rows(weights, patch));
            matmul(count, patch, outputs, dy, weights, patches, patch, false);
            self.take_back(patches, &steps, dx);
        }
    }

    /// `[O, C, 3, 3]` to `[O, 3, 3, C]`.
    fn lay_out(&self, weight: &[f32], to: &mut [f32]) {
        let (patch, channels) = (self.patch(), self.channels);
        for (to, weight) in to.chunks_exact_mut(patch).zip(weight.chunks_exact(patch)) {
            for (index, &weight) in weight.iter().enumerate() {
                to[index % PLACES * channels + index / PLACES] = weight;
            }
        }
    }

    /// The row of a sequence at the place `offset` of the patch of an output's time step.
    fn row_at(&self, step: usize, sequence: usize, offset: usize) -> Option<usize> {
        let time = (step * self.stride + offset).checked_sub(self.padding)?;
        let (first, next) = (*self.offsets.get(time)?, *self.offsets.get(time + 1)?);
        (first + sequence < next).then_some(first + sequence)
    }

    fn gather(&self, x: &[f32], steps: &Range<usize>, patches: &mut [f32]) {
        let (channels, frame) = (self.channels, self.bins * self.channels);
        let of_row = self.output_bins * self.patch();
        let offsets = &self.output_offsets[steps.start..=steps.end];
        patches.par_chunks_mut(of_row).enumerate().for_each(|(row, patches)| {
            let step = offsets.partition_point(|&offset| offset <= offsets[0] + row) - 1;
            let sequence = offsets[0] + row - offsets[step];
            for time in 0..SIDE {
                let frame = self.row_at(steps.start + step, sequence, time).map(|row| &x[row * frame..][..frame]);
                for (output, patch) in patches.chunks_exact_mut(PLACES * channels).enumerate() {
                    for place in 0..SIDE {
                        let to = &mut patch[(time * SIDE + place) * channels..][..channels];
                        let bin = (output * self.stride + place).checked_sub(self.padding);
                        match (frame, bin.filter(|&bin| bin < self.bins)) {
                            (Some(frame), Some(bin)) => to.copy_from_slice(&frame[bin * channels..][..channels]),
                            _ => to.fill(0.0),
                        }
                    }
                }
            }
        });
    }

    /// dx += what each of its elements was in these patches.
    fn take_back(&self, patches: &[f32], steps: &Range<usize>, dx: &mut [f32]) {
        let (channels, frame, patch) = (self.channels, self.bins * self.channels, self.patch());
        let first_row = self.output_offsets[steps.start];
        let times = split(dx, self.offsets.windows(2).map(|rows| (rows[1] - rows[0]) * frame));
        times.into_par_iter().enumerate().with_min_len(8).for_each(|(time, rows)| {
            for offset in 0..SIDE {
                // The step whose patch has this time at `offset`.
                let Some(place) = (time + self.padding).checked_sub(offset) else { continue };
                let step = place / self.stride;
                if !place.is_multiple_of(self.stride) || !steps.contains(&step) {
                    continue;
                }
                let (first, next) = (self.output_offsets[step], self.output_offsets[step + 1]);
                for (sequence, dx) in rows.chunks_exact_mut(frame).take(next - first).enumerate() {
                    let patches = &patches[(first + sequence - first_row) * self.output_bins * patch..];
                    for (output, patch) in patches.chunks_exact(patch).take(self.output_bins).enumerate() {
                        for place in 0..SIDE {
                            let bin = (output * self.stride + place).checked_sub(self.padding);
                            let Some(bin) = bin.filter(|&bin| bin < self.bins) else { continue };
                            let from = &patch[(offset * SIDE + place) * channels..][..channels];
                            let to = &mut dx[bin * channels..][..channels];
                            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                        }
                    }
                }
            }
        });
    }
}

/// The largest of every 2 x 2 frames and bins of each channel, those that there are at the ends.
#[derive(Debug, Clone, Copy)]
pub struct Pooling<'a> {
    /// As of a [`Convolution`].
    pub offsets: &'a [usize],
    pub output_offsets: &'a [usize],
    pub bins: usize,
    pub channels: usize,
}

impl Pooling<'_> {
    fn output_frame(&self) -> usize {
        self.bins.div_ceil(2) * self.channels
    }

    /// x: `[R, F * C]`, y: `[R', ceil(F / 2) * C]`.
    pub fn forward(&self, x: &[f32], y: &mut [f32]) {
        let frame = self.output_frame();
        y.par_chunks_mut(frame).enumerate().for_each(|(row, y)| {
            for (index, y) in y.iter_mut().enumerate() {
                *y = x[self.largest(x, row, index)];
            }
        });
    }

    /// dx = the gradient where x is the largest, the first of equals, else 0.
    pub fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let (frame, output) = (self.bins * self.channels, self.output_frame());
        let times = split(dx, self.offsets.windows(2).map(|rows| (rows[1] - rows[0]) * frame));
        let mut pairs: Vec<Vec<&mut [f32]>> = Vec::new();
        times.into_iter().enumerate().for_each(|(time, rows)| match time % 2 {
            0 => pairs.push(vec![rows]),
            _ => pairs.last_mut().expect("time 0 came before").push(rows),
        });
        pairs.into_par_iter().enumerate().with_min_len(8).for_each(|(step, mut times)| {
            times.iter_mut().for_each(|rows| rows.fill(0.0));
            for row in self.output_offsets[step]..self.output_offsets[step + 1] {
                for (index, &dy) in dy[row * output..][..output].iter().enumerate() {
                    let place = self.largest(x, row, index);
                    let (in_row, element) = (place / frame, place % frame);
                    let later = usize::from(in_row >= self.offsets[2 * step + 1]);
                    times[later][(in_row - self.offsets[2 * step + later]) * frame + element] += dy;
                }
            }
        });
    }

    /// Where in x the largest is of which an output element was taken.
    fn largest(&self, x: &[f32], row: usize, index: usize) -> usize {
        let step = self.output_offsets.partition_point(|&offset| offset <= row) - 1;
        let sequence = row - self.output_offsets[step];
        let (bin, channel) = (index / self.channels * 2, index % self.channels);
        let mut best: Option<usize> = None;
        for time in 2 * step..(2 * step + 2).min(self.offsets.len() - 1) {
            if self.offsets[time] + sequence >= self.offsets[time + 1] {
                continue;
            }
            for bin in bin..(bin + 2).min(self.bins) {
                let place = ((self.offsets[time] + sequence) * self.bins + bin) * self.channels + channel;
                if best.is_none_or(|best| x[place] > x[best]) {
                    best = Some(place);
                }
            }
        }
        best.expect("a sequence that has an output has a frame for it")
    }
}

/// `[R, F, C]` to `[R, C, F]`.
pub fn exchange(x: &[f32], y: &mut [f32], rows_of_x: usize, columns_of_x: usize) {
    let frame = rows_of_x * columns_of_x;
    if frame == 0 {
        return;
    }
    y.par_chunks_exact_mut(frame).zip(x.par_chunks_exact(frame)).for_each(|(y, x)| {
        for (column, y) in y.chunks_exact_mut(rows_of_x).enumerate() {
            y.iter_mut().enumerate().for_each(|(row, y)| *y = x[row * columns_of_x + column]);
        }
    });
}
