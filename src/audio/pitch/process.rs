//! The features that a recogniser reads, made of pitch and correlation. Matches the behaviour of process-kaldi-pitch-feats.

use crate::audio::options::FeatureOptions;
use crate::audio::pitch::RawPitch;
use crate::random::Philox;

/// Warps a correlation to a feature that is roughly normal: smaller where the frame is voiced.
fn voicing_feature(nccf: f32) -> f32 {
    ((1.0001 - f64::from(nccf.clamp(-1.0, 1.0))).powf(0.15) - 1.0) as f32
}

/// The probability that a frame is voiced, by the formula that the paper's authors fitted.
fn voicing_probability(nccf: f32) -> f64 {
    let n = f64::from(nccf.abs().min(1.0));
    let log_odds =
        -5.2 + 5.4 * (7.5 * (n - 1.0)).exp() + 4.8 * n - 2.0 * (-10.0 * n).exp() + 4.2 * (20.0 * (n - 1.0)).exp();
    1.0 / (1.0 + (-log_odds).exp())
}

/// Log pitch less its mean over a window around each frame, weighted by the probability of voicing.
fn normalised(options: &FeatureOptions, frames: &[RawPitch], log_pitch: &[f32]) -> Vec<f32> {
    let mut weights = Vec::with_capacity(frames.len() + 1);
    let mut weighted = Vec::with_capacity(frames.len() + 1);
    let (mut weight_sum, mut weighted_sum) = (0.0, 0.0);
    weights.push(0.0);
    weighted.push(0.0);
    for (frame, &log_pitch) in frames.iter().zip(log_pitch) {
        let weight = voicing_probability(frame.nccf);
        weight_sum += weight;
        weighted_sum += weight * f64::from(log_pitch);
        weights.push(weight_sum);
        weighted.push(weighted_sum);
    }
    let value = |index: usize| {
        let begin = index.saturating_sub(options.normalization_left_context);
        let end = index.saturating_add(options.normalization_right_context).saturating_add(1).min(frames.len());
        let mean = (weighted[end] - weighted[begin]) / (weights[end] - weights[begin]);
        (f64::from(log_pitch[index]) - mean) as f32
    };
    (0..frames.len()).map(value).collect()
}

/// The slope of the regression line over `window` frames on each side; beyond the ends the outermost value stands.
fn deltas(values: &[f32], window: usize) -> Vec<f32> {
    let normaliser: f64 = (1..=window).map(|offset| 2.0 * (offset * offset) as f64).sum();
    let slope = |index: usize| {
        let last = values.len() - 1;
        let sum: f64 = (1..=window)
            .map(|offset| {
                let after = f64::from(values[(index + offset).min(last)]);
                let before = f64::from(values[index.saturating_sub(offset)]);
                offset as f64 * (after - before)
            })
            .sum();
        if window == 0 { 0.0 } else { (sum / normaliser) as f32 }
    };
    (0..values.len()).map(slope).collect()
}

/// The pitch features of every frame: [frames + `delay`, the number of features that are switched on], row by row.
///
/// Noise, if `delta_pitch_noise_stddev` asks for it, is drawn from a generator of `utterance_id` alone.
pub fn process(options: &FeatureOptions, frames: &[RawPitch], utterance_id: &str) -> Vec<f32> {
    if frames.is_empty() {
        return Vec::new();
    }
    let log_pitch: Vec<f32> = frames.iter().map(|frame| frame.pitch.ln()).collect();
    let normalised = normalised(options, frames, &log_pitch);
    let mut deltas = deltas(&log_pitch, options.delta_window);
    if options.delta_pitch_noise_stddev != 0.0 {
        let mut noise = Philox::named(0, &format!("delta pitch noise {utterance_id}")).stream();
        deltas.iter_mut().for_each(|delta| *delta += (options.delta_pitch_noise_stddev * noise.normal()) as f32);
    }
    let mut values = Vec::with_capacity((frames.len() + options.delay) * options.pitch_dimension());
    for row in 0..frames.len() + options.delay {
        let index = row.saturating_sub(options.delay);
        if options.add_pov_feature {
            let feature = voicing_feature(frames[index].nccf);
            values.push(options.pov_scale as f32 * feature + options.pov_offset as f32);
        }
        if options.add_normalized_log_pitch {
            values.push(normalised[index] * options.pitch_scale as f32);
        }
        if options.add_delta_pitch {
            values.push(deltas[index] * options.delta_pitch_scale as f32);
        }
        if options.add_raw_log_pitch {
            values.push(log_pitch[index]);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glide(frames: usize) -> Vec<RawPitch> {
        (0..frames).map(|index| RawPitch { nccf: 0.9, pitch: 100.0 * (0.01 * index as f32).exp() }).collect()
    }

    #[test]
    fn a_glide_has_a_constant_delta_and_a_centred_log_pitch() {
        let values = process(&FeatureOptions::default(), &glide(301), "");
        let row = |index: usize| &values[3 * index..3 * index + 3];
        assert!((row(150)[1]).abs() < 1e-4 && (row(150)[2] - 0.1).abs() < 1e-4, "{:?}", row(150));
        // At the first frame the window holds frames 0 to 75, whose mean is frame 37.5; its scale is 2.
        assert!((row(0)[1] + 2.0 * 0.375).abs() < 1e-4);
        let last = values[values.len() - 1];
        assert!((last - 10.0 * (0.01 + 2.0 * 0.02) / 10.0).abs() < 1e-4, "{last}");
    }

    #[test]
    fn features_are_switched_and_delayed() {
        let options = FeatureOptions {
            add_pov_feature: false,
            add_normalized_log_pitch: false,
            add_delta_pitch: false,
            add_raw_log_pitch: true,
            delay: 2,
            ..Default::default()
        };
        let values = process(&options, &glide(3), "");
        assert_eq!(values.len(), 5);
        assert_eq!(values[0], values[2]);
        assert!((values[4] - values[2] - 0.02).abs() < 1e-5);
    }

    #[test]
    fn noise_depends_on_the_utterance_and_on_nothing_else() {
        let options = FeatureOptions { delta_pitch_noise_stddev: 0.005, ..Default::default() };
        assert_eq!(process(&options, &glide(9), "a"), process(&options, &glide(9), "a"));
        assert_ne!(process(&options, &glide(9), "a"), process(&options, &glide(9), "b"));
    }
}
