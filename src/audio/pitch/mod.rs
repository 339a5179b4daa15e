//! Pitch as Kaldi tracks it: Ghahremani et al., "A pitch extraction algorithm tuned for automatic speech recognition", ICASSP 2014.
//! Matches the behaviour of compute-kaldi-pitch-feats and process-kaldi-pitch-feats (feat/pitch-functions.cc).
//!
//! | file | what it owns |
//! |---|---|
//! | `filters` | windowed-sinc filters: the low-pass of the signal, the interpolation of the correlation |
//! | `correlation` | the normalised cross-correlation (NCCF) of a frame with itself, later |
//! | `viterbi` | one step of the search for the cheapest path through the lags |
//! | `tracker` | the search over a recording, in chunks or at once |
//! | `process` | the features that are made of pitch and correlation |

mod correlation;
mod filters;
mod process;
mod tracker;
mod viterbi;

use crate::audio::options::FeatureOptions;
use crate::error::Result;
use correlation::Correlator;
use filters::{Decimator, Interpolator};
use tracker::Tracker;

pub use process::process;

/// What the tracker says of a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RawPitch {
    /// Normalised cross-correlation at the pitch's lag, without ballast: near 1 where the frame is voiced.
    pub nccf: f32,
    /// In Hz. Unvoiced frames have one too: the path goes on through them.
    pub pitch: f32,
}

/// Tracks the pitch of recordings of one sample rate.
pub struct PitchExtractor {
    options: FeatureOptions,
    sample_rate: u32,
    /// In samples at `resample_frequency`.
    frame_shift: usize,
    correlator: Correlator,
    decimator: Decimator,
    interpolator: Interpolator,
    /// The lags among which the path chooses, in seconds, in a geometric sequence.
    lags: Vec<f32>,
}

impl PitchExtractor {
    /// # Errors
    /// Options that are impossible for `sample_rate`, by their key.
    pub fn new(options: &FeatureOptions, sample_rate: u32) -> Result<Self> {
        FeatureOptions { pitch: true, ..options.clone() }.validate(sample_rate)?;
        let rate = options.resample_frequency as f32;
        let width = options.upsample_filter_width;
        let lags = lags(options);
        // The filter that interpolates between lags reaches beyond the shortest and the longest one.
        let reach = width as f64 / (2.0 * f64::from(rate));
        let first_lag = (f64::from(rate) * (1.0 / options.max_f0 - reach)).ceil() as usize;
        let last_lag = (f64::from(rate) * (1.0 / options.min_f0 + reach)).floor() as usize;
        let samples = |milliseconds: f64| (f64::from(rate) * milliseconds / 1000.0) as usize;
        let offset = first_lag as f32 / rate;
        let points: Vec<f32> = lags.iter().map(|lag| lag - offset).collect();
        Ok(PitchExtractor {
            sample_rate,
            frame_shift: samples(options.frame_shift),
            correlator: Correlator { window: samples(options.frame_length), first_lag, last_lag },
            decimator: Decimator::new(
                sample_rate,
                options.resample_frequency as u32,
                options.lowpass_cutoff as f32,
                options.lowpass_filter_width,
            ),
            interpolator: Interpolator::new(last_lag + 1 - first_lag, rate, rate * 0.5, &points, width),
            lags,
            options: options.clone(),
        })
    }

    /// Correlation and pitch of every frame. `samples` are on the scale of 16-bit integers.
    pub fn compute(&self, samples: &[f32]) -> Vec<RawPitch> {
        let FeatureOptions { frames_per_chunk, frame_shift, simulate_first_pass_online, .. } = self.options;
        let seconds = frames_per_chunk as f64 * frame_shift / 1000.0;
        let chunk =
            if frames_per_chunk == 0 { samples.len() } else { (seconds * f64::from(self.sample_rate)) as usize };
        let mut tracker = Tracker::new(self);
        let mut pitch = Vec::new();
        for part in samples.chunks(chunk.max(1)) {
            tracker.accept(part);
            if simulate_first_pass_online {
                // As it is known so far, whatever later chunks will say.
                pitch.extend(tracker.ready_from(pitch.len()));
            }
        }
        tracker.finish();
        pitch.extend(tracker.ready_from(pitch.len()));
        pitch
    }
}

/// From the lag of the highest pitch to that of the lowest, each longer than the last by `delta_pitch`.
fn lags(options: &FeatureOptions) -> Vec<f32> {
    let longest = (1.0 / options.min_f0) as f32;
    // In single precision as Kaldi does: the rounding decides whether there is a last lag.
    let growth = 1.0 + f64::from(options.delta_pitch as f32);
    let next = |lag: &f32| Some((f64::from(*lag) * growth) as f32);
    std::iter::successors(Some((1.0 / options.max_f0) as f32), next).take_while(|&lag| lag <= longest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    /// A voice without a mouth: harmonics of `pitch`, for `seconds`.
    fn voice(rate: u32, pitch: f64, seconds: f64) -> Vec<f32> {
        let count = (f64::from(rate) * seconds) as usize;
        let sample = |index: usize| {
            let angle = TAU * pitch * index as f64 / f64::from(rate);
            (1..6).map(|harmonic| 3000.0 / f64::from(harmonic) * (angle * f64::from(harmonic)).sin()).sum::<f64>()
                as f32
        };
        (0..count).map(sample).collect()
    }

    #[test]
    fn the_pitch_of_a_periodic_sound_is_found_at_every_rate() {
        for rate in [8000, 11025, 16000, 44100] {
            let extractor = PitchExtractor::new(&FeatureOptions::default(), rate).unwrap();
            let frames = extractor.compute(&voice(rate, 123.0, 0.5));
            assert_eq!(frames.len(), 48, "{rate}");
            // Lags are 0.5 % apart, so the nearest one is within 0.25 %; the interpolation between samples costs a little more.
            for frame in &frames[2..46] {
                assert!((frame.pitch / 123.0 - 1.0).abs() < 0.005 && frame.nccf > 0.97, "{rate}: {frame:?}");
            }
        }
    }

    #[test]
    fn a_recording_that_is_shorter_than_a_frame_has_no_pitch_and_silence_has_some() {
        let extractor = PitchExtractor::new(&FeatureOptions::default(), 16000).unwrap();
        assert_eq!(extractor.compute(&[1.0; 300]), []);
        let silence = extractor.compute(&[0.0; 1600]);
        assert_eq!(silence.len(), 8);
        assert!(silence.iter().all(|frame| frame.nccf == 0.0 && frame.pitch.is_finite()));
    }

    #[test]
    fn chunks_give_the_frames_of_the_whole_and_nearly_its_pitch() {
        let mut samples = voice(16000, 150.0, 0.4);
        samples.extend(voice(16000, 180.0, 0.6));
        let whole = PitchExtractor::new(&FeatureOptions::default(), 16000).unwrap().compute(&samples);
        for (online, ballast, latency) in [(false, false, 0), (true, false, 0), (true, false, 30), (false, true, 0)] {
            let options = FeatureOptions {
                frames_per_chunk: 10,
                simulate_first_pass_online: online,
                nccf_ballast_online: ballast,
                max_frames_latency: latency,
                recompute_frame: 50,
                ..Default::default()
            };
            let chunks = PitchExtractor::new(&options, 16000).unwrap().compute(&samples);
            assert_eq!(chunks.len(), whole.len());
            let same = whole.iter().zip(&chunks).filter(|(a, b)| (a.pitch / b.pitch - 1.0).abs() < 0.006).count();
            assert!(same * 100 >= whole.len() * 90, "{online} {ballast} {latency}: {same} of {}", whole.len());
        }
    }

    #[test]
    fn without_snipping_there_are_as_many_frames_as_shifts() {
        let options = FeatureOptions { snip_edges: false, ..Default::default() };
        let extractor = PitchExtractor::new(&options, 16000).unwrap();
        let frames = extractor.compute(&voice(16000, 123.0, 0.5));
        assert_eq!(frames.len(), 50);
        assert!(frames[5..45].iter().all(|frame| (frame.pitch / 123.0 - 1.0).abs() < 0.005));
    }
}
