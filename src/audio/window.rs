//! Frames of a recording: how many there are, where they begin, and the window that tapers them.
//! Matches the behaviour of Kaldi's feat/feature-window.cc.

use std::f64::consts::TAU;

use crate::audio::options::{FeatureOptions, WindowType};

/// The geometry of frames, in samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frames {
    pub length: usize,
    pub shift: usize,
    /// The length that is transformed: zeros follow the frame.
    pub padded: usize,
    pub snip_edges: bool,
}

impl Frames {
    pub fn new(options: &FeatureOptions, sample_rate: u32) -> Self {
        let samples = |milliseconds: f64| (f64::from(sample_rate) * 0.001 * milliseconds) as usize;
        let length = samples(options.frame_length);
        let padded = if options.round_to_power_of_two { length.next_power_of_two() } else { length };
        Frames { length, shift: samples(options.frame_shift), padded, snip_edges: options.snip_edges }
    }

    /// Frames in a recording of `samples` samples.
    pub fn count(&self, samples: usize) -> usize {
        if !self.snip_edges {
            return (samples + self.shift / 2) / self.shift;
        }
        if samples < self.length { 0 } else { 1 + (samples - self.length) / self.shift }
    }

    /// Copies frame `index` of `samples` to the first `length` places of `frame`. Where it reaches over an edge of the recording
    /// (only without `snip_edges`), the recording is mirrored there: -1 becomes 0, -2 becomes 1.
    ///
    /// `samples` must not be empty.
    pub fn copy(&self, samples: &[f32], index: usize, frame: &mut [f32]) {
        let mut start = (index * self.shift) as isize;
        if !self.snip_edges {
            start += (self.shift / 2) as isize - (self.length / 2) as isize;
        }
        let total = samples.len() as isize;
        if start >= 0 && start + self.length as isize <= total {
            let start = start as usize;
            frame[..self.length].copy_from_slice(&samples[start..start + self.length]);
            return;
        }
        for (offset, value) in frame[..self.length].iter_mut().enumerate() {
            // A reflected signal has a period of twice its length.
            let place = (start + offset as isize).rem_euclid(2 * total);
            *value = samples[place.min(2 * total - 1 - place) as usize];
        }
    }
}

/// The window of `length` samples.
pub fn window(options: &FeatureOptions, length: usize) -> Vec<f32> {
    let step = TAU / (length as f64 - 1.0);
    let value = |index: usize| {
        let angle = step * index as f64;
        match options.window_type {
            WindowType::Povey => (0.5 - 0.5 * angle.cos()).powf(0.85),
            WindowType::Hamming => 0.54 - 0.46 * angle.cos(),
            WindowType::Hanning => 0.5 - 0.5 * angle.cos(),
            WindowType::Blackman => {
                options.blackman_coeff - 0.5 * angle.cos() + (0.5 - options.blackman_coeff) * (2.0 * angle).cos()
            }
            WindowType::Rectangular => 1.0,
        }
    };
    (0..length).map(|index| value(index) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_as_kaldi_counts_them() {
        let snipped = Frames::new(&FeatureOptions::default(), 16000);
        assert_eq!(snipped, Frames { length: 400, shift: 160, padded: 512, snip_edges: true });
        assert_eq!([399, 400, 559, 560].map(|samples| snipped.count(samples)), [0, 1, 1, 2]);
        let mirrored = Frames { snip_edges: false, ..snipped };
        assert_eq!([79, 80, 239, 240].map(|samples| mirrored.count(samples)), [0, 1, 1, 2]);
    }

    #[test]
    fn without_snipping_the_edges_are_mirrored() {
        let frames = Frames { length: 8, shift: 4, padded: 8, snip_edges: false };
        let samples = [0.0, 1.0, 2.0, 3.0, 4.0];
        let mut frame = [0.0; 8];
        frames.copy(&samples, 0, &mut frame);
        assert_eq!(frame, [1.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 4.0]);
        // Far beyond the edge it is mirrored again and again.
        frames.copy(&samples[..2], 1, &mut frame);
        assert_eq!(frame, [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn windows_are_symmetric_and_have_their_known_edges() {
        for (window_type, edge) in [
            (WindowType::Povey, 0.0),
            (WindowType::Hamming, 0.08),
            (WindowType::Hanning, 0.0),
            (WindowType::Blackman, 0.0),
            (WindowType::Rectangular, 1.0),
        ] {
            let window = window(&FeatureOptions { window_type, ..Default::default() }, 401);
            assert!((window[0] - edge).abs() < 1e-6 && (window[200] - 1.0).abs() < 1e-6, "{window_type:?}");
            // Cosines of angles near 2 pi carry the rounding of the angle, some 1e-15; the power 0.85 of a square widens it near 0.
            assert!((0..401).all(|index| (window[index] - window[400 - index]).abs() < 1e-6), "{window_type:?}");
        }
    }
}
