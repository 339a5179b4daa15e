//! Log mel energies. Matches the behaviour of Kaldi's compute-fbank-feats (feat/feature-fbank.cc, feat/mel-computations.cc).

use std::sync::Arc;

use realfft::num_complex::Complex32;
use realfft::{RealFftPlanner, RealToComplex};

use crate::audio::options::FeatureOptions;
use crate::audio::window::{Frames, window};
use crate::error::{Error, Result};
use crate::random::{Philox, Stream};

/// What Kaldi takes for the logarithm of nothing.
const SMALLEST_ENERGY: f32 = f32::EPSILON;

/// Mel of a frequency in Hz.
fn mel(frequency: f32) -> f32 {
    1127.0 * (1.0 + frequency / 700.0).ln()
}

/// A triangle over the spectrum: the first Fourier bin that it weighs, and its weights.
#[derive(Debug, Clone, PartialEq)]
struct Filter {
    first: usize,
    weights: Vec<f32>,
}

/// Triangles of equal width on the mel scale, each beginning at the centre of the one before.
fn filters(options: &FeatureOptions, sample_rate: u32, padded: usize) -> Result<Vec<Filter>> {
    let rate = sample_rate as f32;
    let nyquist = 0.5 * rate;
    let high = if options.high_freq > 0.0 { options.high_freq as f32 } else { nyquist + options.high_freq as f32 };
    let lowest = mel(options.low_freq as f32);
    let width = (mel(high) - lowest) / (options.num_mel_bins + 1) as f32;
    let bin_width = rate / padded as f32;
    let mut filters = Vec::new();
    for index in 0..options.num_mel_bins {
        let [left, centre, right] = [0, 1, 2].map(|offset| lowest + (index + offset) as f32 * width);
        // The Nyquist bin belongs to no filter.
        let weights: Vec<(usize, f32)> = (0..padded / 2)
            .filter_map(|bin| {
                let mel = mel(bin_width * bin as f32);
                let rising = (mel > left && mel <= centre).then(|| (mel - left) / (centre - left));
                let falling = (mel > centre && mel < right).then(|| (right - mel) / (right - centre));
                rising.or(falling).map(|weight| (bin, weight))
            })
            .collect();
        let Some(&(first, _)) = weights.first() else {
            let problem = format!(
                "with {} mel bins, bin {} is narrower than the {bin_width:.1} Hz between lines of the spectrum",
                options.num_mel_bins,
                index + 1
            );
            return Err(Error::key("num_mel_bins", problem).remedy("Choose fewer mel bins, or a longer frame_length"));
        };
        filters.push(Filter { first, weights: weights.into_iter().map(|(_, weight)| weight).collect() });
    }
    Ok(filters)
}

/// Computes mel energies of recordings of one sample rate.
pub struct Filterbank {
    options: FeatureOptions,
    frames: Frames,
    window: Vec<f32>,
    filters: Vec<Filter>,
    transform: Arc<dyn RealToComplex<f32>>,
}

impl Filterbank {
    /// # Errors
    /// Options that are impossible for `sample_rate`, by their key.
    pub fn new(options: &FeatureOptions, sample_rate: u32) -> Result<Self> {
        options.validate(sample_rate)?;
        let frames = Frames::new(options, sample_rate);
        if frames.padded % 2 == 1 {
            return Err(Error::key("frame_length", format!("a frame has {} samples, an odd number", frames.length))
                .remedy("Set round_to_power_of_two, or choose a frame_length of an even number of samples"));
        }
        Ok(Filterbank {
            frames,
            window: window(options, frames.length),
            filters: filters(options, sample_rate, frames.padded)?,
            transform: RealFftPlanner::new().plan_fft_forward(frames.padded),
            options: options.clone(),
        })
    }

    pub fn frames(&self) -> &Frames {
        &self.frames
    }

    /// The energies of every frame: [frames, `options.num_mel_bins` + 1 if `use_energy`], row by row.
    ///
    /// `samples` are on the scale of 16-bit integers. Dither is drawn from a generator of `utterance_id` alone.
    pub fn compute(&self, samples: &[f32], utterance_id: &str) -> Vec<f32> {
        let count = self.frames.count(samples.len());
        let mut values = Vec::with_capacity(count * self.options.filterbank_dimension());
        let mut dither = Philox::named(0, &format!("dither {utterance_id}")).stream();
        let mut frame = vec![0.0; self.frames.padded];
        let mut spectrum = self.transform.make_output_vec();
        let mut scratch = self.transform.make_scratch_vec();
        let mut powers = vec![0.0; self.frames.padded / 2];
        for index in 0..count {
            self.frames.copy(samples, index, &mut frame);
            let log_energy = self.taper(&mut frame[..self.frames.length], &mut dither);
            frame[self.frames.length..].fill(0.0);
            self.transform
                .process_with_scratch(&mut frame, &mut spectrum, &mut scratch)
                .expect("the buffers were made by this transform");
            self.powers(&spectrum, &mut powers);
            self.push_row(&powers, log_energy, &mut values);
        }
        values
    }

    /// Dither, mean, pre-emphasis and window. Returns the log energy, before or after them as `raw_energy` says.
    fn taper(&self, frame: &mut [f32], dither: &mut Stream) -> f32 {
        let options = &self.options;
        if options.dither != 0.0 {
            for sample in frame.iter_mut() {
                *sample += (options.dither * dither.normal()) as f32;
            }
        }
        if options.remove_dc_offset {
            let mean = frame.iter().sum::<f32>() / frame.len() as f32;
            frame.iter_mut().for_each(|sample| *sample -= mean);
        }
        let log_energy = |frame: &[f32]| {
            let energy = frame.iter().map(|&sample| f64::from(sample) * f64::from(sample)).sum::<f64>();
            (energy as f32).max(SMALLEST_ENERGY).ln()
        };
        let raw = if options.use_energy && options.raw_energy { log_energy(frame) } else { 0.0 };
        let coefficient = options.preemphasis_coefficient as f32;
        for index in (1..frame.len()).rev() {
            frame[index] -= coefficient * frame[index - 1];
        }
        frame[0] -= coefficient * frame[0];
        frame.iter_mut().zip(&self.window).for_each(|(sample, weight)| *sample *= weight);
        if options.use_energy && !options.raw_energy { log_energy(frame) } else { raw }
    }

    /// The power of each line of the spectrum, or its magnitude.
    fn powers(&self, spectrum: &[Complex32], powers: &mut [f32]) {
        for (power, line) in powers.iter_mut().zip(spectrum) {
            *power = line.norm_sqr();
            if !self.options.use_power {
                *power = power.sqrt();
            }
        }
    }

    fn push_row(&self, powers: &[f32], log_energy: f32, values: &mut Vec<f32>) {
        let options = &self.options;
        let floor = if options.energy_floor > 0.0 { (options.energy_floor as f32).ln() } else { f32::NEG_INFINITY };
        let energy = log_energy.max(floor);
        if options.use_energy && !options.htk_compat {
            values.push(energy);
        }
        for filter in &self.filters {
            let covered = &powers[filter.first..];
            let sum = filter.weights.iter().zip(covered).map(|(weight, power)| weight * power).sum::<f32>();
            values.push(if options.use_log_fbank { sum.max(SMALLEST_ENERGY).ln() } else { sum });
        }
        if options.use_energy && options.htk_compat {
            values.push(energy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(samples: usize) -> Vec<f32> {
        let mut stream = Philox::named(7, "noise").stream();
        (0..samples).map(|_| (1000.0 * stream.normal()) as f32).collect()
    }

    fn rows(options: &FeatureOptions, samples: &[f32], id: &str) -> Vec<f32> {
        Filterbank::new(options, 16000).unwrap().compute(samples, id)
    }

    #[test]
    fn dither_depends_on_the_utterance_and_on_nothing_else() {
        let options = FeatureOptions { dither: 1.0, ..Default::default() };
        let silence = vec![0.0; 1600];
        let first = rows(&options, &silence, "a");
        assert_eq!(first, rows(&options, &silence, "a"));
        assert_ne!(first, rows(&options, &silence, "b"));
        let floor = SMALLEST_ENERGY.ln();
        assert!(rows(&FeatureOptions::default(), &silence, "a").iter().all(|&value| value == floor));
        assert!(first.iter().all(|&value| value > floor));
    }

    #[test]
    fn the_energy_stands_first_or_with_htk_last() {
        let samples = noise(400);
        let plain = rows(&FeatureOptions::default(), &samples, "");
        let options = FeatureOptions { use_energy: true, ..Default::default() };
        let first = rows(&options, &samples, "");
        let last = rows(&FeatureOptions { htk_compat: true, ..options.clone() }, &samples, "");
        assert_eq!(first[1..], plain);
        assert_eq!(last[..23], plain);
        assert_eq!(first[0], last[23]);
        let mean = samples.iter().sum::<f32>() / 400.0;
        let expected = samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f32>().ln();
        assert!((first[0] - expected).abs() < 1e-4);
        let after = rows(&FeatureOptions { raw_energy: false, ..options.clone() }, &samples, "");
        assert!(after[0] != first[0]);
        let floored = rows(&FeatureOptions { energy_floor: 1e30, ..options }, &samples, "");
        assert_eq!(floored[0], 1e30f32.ln());
    }

    #[test]
    fn magnitudes_and_energies_without_logarithm_are_what_they_say() {
        let samples = noise(400);
        let logarithms = rows(&FeatureOptions::default(), &samples, "");
        let energies = rows(&FeatureOptions { use_log_fbank: false, ..Default::default() }, &samples, "");
        assert!(logarithms.iter().zip(&energies).all(|(logarithm, energy)| energy.ln() == *logarithm));
        // The magnitude of a line is the root of its power, so a weighted sum of magnitudes of scaled samples scales linearly.
        let options = FeatureOptions { use_log_fbank: false, use_power: false, ..Default::default() };
        let magnitudes = rows(&options, &samples, "");
        let doubled: Vec<f32> = samples.iter().map(|sample| 2.0 * sample).collect();
        assert!(rows(&options, &doubled, "").iter().zip(&magnitudes).all(|(two, one)| (two / one - 2.0).abs() < 1e-5));
    }

    #[test]
    fn too_many_mel_bins_are_an_error_that_says_so() {
        let error = Filterbank::new(&FeatureOptions { num_mel_bins: 300, ..Default::default() }, 16000).err().unwrap();
        assert!(error.to_string().contains("num_mel_bins"), "{error}");
    }

    #[test]
    fn a_frame_that_is_not_padded_has_the_energies_of_its_own_spectrum() {
        let options = FeatureOptions { round_to_power_of_two: false, ..Default::default() };
        assert_eq!(rows(&options, &noise(720), "").len(), 3 * 23);
        let odd = FeatureOptions { frame_length: 25.07, ..options };
        assert!(Filterbank::new(&odd, 16000).err().unwrap().to_string().contains("odd"));
    }
}
