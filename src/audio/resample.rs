//! Recordings at another sample rate, by rubato's Fourier resampler: flat up to near half the lower rate, the same bits every time.

use rubato::audioadapter::Adapter;
use rubato::audioadapter_buffers::owned::InterleavedOwned;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};

use crate::audio::reader::Audio;
use crate::error::{Error, Result};

/// Samples per transform, at least: long enough for a steep filter, short beside a recording.
const CHUNK: usize = 2048;

/// Input samples per transform: whole periods of the two rates, and an even number of them. With an odd length the centre of
/// the filter would lie between two samples, and the recording would be shifted by half of one.
fn chunk(from: usize, to: usize) -> usize {
    let (mut divisor, mut rest) = (from, to);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    let period = from / divisor;
    period * CHUNK.div_ceil(period).next_multiple_of(2)
}

/// The recording at `rate` samples per second; the same recording if it has that rate already.
///
/// # Errors
/// Rates that have so little in common that no filter can be made for them.
pub fn resample(audio: &Audio, rate: u32) -> Result<Audio> {
    if audio.sample_rate == rate || audio.samples.is_empty() {
        return Ok(Audio { sample_rate: rate, samples: audio.samples.clone() });
    }
    let failed = |reason: String| {
        Error::program(format!(
            "a recording of {} samples a second cannot be resampled to {rate}: {reason}",
            audio.sample_rate
        ))
        .remedy("Resample it with sox IN -r RATE OUT.wav")
    };
    let count = audio.samples.len();
    let (from, to) = (audio.sample_rate as usize, rate as usize);
    let mut resampler =
        Fft::<f32>::new_custom(from, to, chunk(from, to), 1, 1, WindowFunction::BlackmanHarris2, FixedSync::Input)
            .map_err(|error| failed(error.to_string()))?;
    let input =
        InterleavedOwned::new_from(audio.samples.clone(), 1, count).map_err(|error| failed(error.to_string()))?;
    let output = resampler.process_all(&input, count, None).map_err(|error| failed(error.to_string()))?;
    let frames = output.frames();
    let mut samples = output.take_data();
    samples.truncate(frames);
    Ok(Audio { sample_rate: rate, samples })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::f64::consts::TAU;

    fn tone(rate: u32, frequency: f64, seconds: f64) -> Audio {
        let sample = |index: usize| (10000.0 * (TAU * frequency * index as f64 / f64::from(rate)).sin()) as f32;
        let count = (f64::from(rate) * seconds) as usize;
        Audio { sample_rate: rate, samples: (0..count).map(sample).collect() }
    }

    #[test]
    fn a_tone_keeps_its_frequency_its_phase_and_its_length() {
        for (from, to) in [(44100, 16000), (8000, 16000), (16000, 8000), (48000, 16000), (22050, 8000)] {
            let resampled = resample(&tone(from, 1000.0, 0.5), to).unwrap();
            let expected = tone(to, 1000.0, 0.5);
            assert_eq!((resampled.sample_rate, resampled.samples.len()), (to, expected.samples.len()), "{from} {to}");
            let inner = 1000..expected.samples.len() - 1000;
            let error =
                inner.map(|index| (resampled.samples[index] - expected.samples[index]).abs()).fold(0.0, f32::max);
            // 80 dB below the tone.
            assert!(error < 1.0, "{from} {to}: {error}");
        }
    }

    #[test]
    fn what_the_lower_rate_cannot_hold_is_gone() {
        let resampled = resample(&tone(44100, 12000.0, 0.5), 16000).unwrap();
        let loudest = resampled.samples[1000..7000].iter().fold(0.0f32, |loudest, sample| loudest.max(sample.abs()));
        assert!(loudest < 1.0, "{loudest}");
    }

    #[test]
    fn resampling_gives_the_same_bits_every_time() {
        let audio = tone(11025, 440.0, 0.3);
        assert_eq!(resample(&audio, 16000).unwrap(), resample(&audio, 16000).unwrap());
    }
}
