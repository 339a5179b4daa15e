//! Windowed-sinc filters in the time domain. Matches the behaviour of Kaldi's LinearResample and ArbitraryResample (feat/resample.cc);
//! its single precision is kept, since the tracker's choices depend on it in the last place.

use std::f64::consts::{PI, TAU};

/// Dot product in eight lanes: the order of the sum is fixed, and it vectorises.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..8 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>();
    lanes.iter().sum::<f32>() + rest
}

/// A sinc of `cutoff` Hz under a raised cosine that ends at its `zeros`-th zero; `time` in seconds from the centre.
fn sinc(time: f32, cutoff: f32, zeros: usize) -> f32 {
    let (time, cutoff, zeros) = (f64::from(time), f64::from(cutoff), zeros as f64);
    if time.abs() >= zeros / (2.0 * cutoff) {
        return 0.0;
    }
    let window = (0.5 * (1.0 + (TAU * cutoff / zeros * time).cos())) as f32;
    let filter = if time == 0.0 { 2.0 * cutoff } else { (TAU * cutoff * time).sin() / (PI * time) };
    filter as f32 * window
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Low-pass filters a signal and changes its rate.
pub(super) struct Decimator {
    /// After `input_period` samples of input and `phases.len()` of output, the weights repeat.
    input_period: usize,
    /// For each output sample of a period: its first input sample, and the weights from there.
    phases: Vec<(isize, Vec<f32>)>,
    ticks_per_input: u64,
    ticks_per_output: u64,
    /// Half the filter's width.
    width_ticks: u64,
}

impl Decimator {
    pub fn new(rate_in: u32, rate_out: u32, cutoff: f32, zeros: usize) -> Self {
        let divisor = greatest_common_divisor(rate_in, rate_out);
        let output_period = rate_out / divisor;
        let width = zeros as f64 / (2.0 * f64::from(cutoff));
        let phase = |index: u32| {
            let time = f64::from(index) / f64::from(rate_out);
            let first = ((time - width) * f64::from(rate_in)).ceil() as isize;
            let last = ((time + width) * f64::from(rate_in)).floor() as isize;
            let weight = |input: isize| {
                let distance = input as f64 / f64::from(rate_in) - time;
                sinc(distance as f32, cutoff, zeros) / rate_in as f32
            };
            (first, (first..=last).map(weight).collect())
        };
        let tick_rate = u64::from(rate_in) * u64::from(output_period);
        Decimator {
            input_period: (rate_in / divisor) as usize,
            phases: (0..output_period).map(phase).collect(),
            ticks_per_input: tick_rate / u64::from(rate_in),
            ticks_per_output: tick_rate / u64::from(rate_out),
            width_ticks: (width as f32 * tick_rate as f32).floor() as u64,
        }
    }

    /// Output samples that `inputs` input samples determine; with `flush` also those that reach beyond the end.
    fn output_length(&self, inputs: usize, flush: bool) -> usize {
        let mut ticks = inputs as u64 * self.ticks_per_input;
        if !flush {
            ticks = ticks.saturating_sub(self.width_ticks);
        }
        // The samples in [0, ticks).
        ticks.div_ceil(self.ticks_per_output) as usize
    }

    /// Appends to `output` what `input`, the whole signal so far, now determines. Beyond its ends the signal is zero.
    pub fn extend(&self, input: &[f32], flush: bool, output: &mut Vec<f32>) {
        for index in output.len()..self.output_length(input.len(), flush) {
            let (period, phase) = (index / self.phases.len(), index % self.phases.len());
            let (first, weights) = &self.phases[phase];
            let first = first + (period * self.input_period) as isize;
            let skipped = first.min(0).unsigned_abs().min(weights.len());
            let begin = (first.max(0) as usize).min(input.len());
            let end = (begin + weights.len() - skipped).min(input.len());
            output.push(dot(&input[begin..end], &weights[skipped..skipped + (end - begin)]));
        }
    }
}

/// Reads a short signal at any points in time.
pub(super) struct Interpolator {
    /// For each point: the first sample that it depends on, and the weights from there.
    points: Vec<(usize, Vec<f32>)>,
}

impl Interpolator {
    /// For signals of `length` samples at `rate`; `points` in seconds from the first of them.
    pub fn new(length: usize, rate: f32, cutoff: f32, points: &[f32], zeros: usize) -> Self {
        let width = (zeros as f64 / (2.0 * f64::from(cutoff))) as f32;
        let point = |&time: &f32| {
            let first = (rate * (time - width)).ceil().max(0.0) as usize;
            let last = ((rate * (time + width)).floor() as usize).min(length - 1);
            let weight = |sample: usize| sinc(time - sample as f32 / rate, cutoff, zeros) / rate;
            (first, (first..=last).map(weight).collect())
        };
        Interpolator { points: points.iter().map(point).collect() }
    }

    /// The values of `signal` at the points, appended to `output`.
    pub fn read(&self, signal: &[f32], output: &mut Vec<f32>) {
        output.extend(self.points.iter().map(|(first, weights)| dot(&signal[*first..first + weights.len()], weights)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_decimate_to_the_bits_of_the_whole() {
        let input: Vec<f32> = (0..1000).map(|index| ((index * index) % 701) as f32 - 350.0).collect();
        for rate in [16000, 8000, 11025, 4000] {
            let decimator = Decimator::new(rate, 4000, 1000.0, 1);
            let (mut whole, mut parts) = (Vec::new(), Vec::new());
            decimator.extend(&input, true, &mut whole);
            for end in [1, 5, 17, 400, 999, 1000] {
                decimator.extend(&input[..end], false, &mut parts);
            }
            decimator.extend(&input, true, &mut parts);
            assert_eq!(whole, parts, "{rate}");
            assert_eq!(whole.len(), (1000 * 4000usize).div_ceil(rate as usize), "{rate}");
        }
    }

    #[test]
    fn interpolation_at_the_samples_gives_the_samples() {
        let signal: Vec<f32> = (0..40).map(|index| (index as f32 * 0.3).sin()).collect();
        let points: Vec<f32> = (10..30).map(|index| index as f32 / 4000.0).collect();
        let mut read = Vec::new();
        Interpolator::new(40, 4000.0, 2000.0, &points, 5).read(&signal, &mut read);
        // The other samples lie at the sinc's zeros, up to the rounding of time in single precision (4e-10 s, slope 2 pi 2000).
        assert!(read.iter().zip(&signal[10..30]).all(|(a, b)| (a - b).abs() < 1e-4), "{read:?}");
    }
}
