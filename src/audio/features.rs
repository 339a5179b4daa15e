//! All features of an utterance: mel energies and, if asked for, pitch beside them.

use std::path::Path;

use crate::audio::fbank::Filterbank;
use crate::audio::options::FeatureOptions;
use crate::audio::pitch::{PitchExtractor, process};
use crate::audio::reader::{Audio, read_audio};
use crate::audio::resample::resample;
use crate::error::{Error, Result};

/// The features of one utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    pub frames: usize,
    /// Features per frame.
    pub dimension: usize,
    /// [frames, dimension], row by row.
    pub values: Vec<f32>,
}

/// Computes the features of recordings of one sample rate. It may be shared among threads.
pub struct FeatureExtractor {
    options: FeatureOptions,
    sample_rate: u32,
    filterbank: Filterbank,
    pitch: Option<PitchExtractor>,
}

/// An utterance that is shorter than one window.
fn too_short(samples: usize, sample_rate: u32, options: &FeatureOptions) -> (String, &'static str) {
    let milliseconds = samples as f64 * 1000.0 / f64::from(sample_rate);
    let problem = format!(
        "the recording of {samples} samples ({milliseconds:.1} ms) is shorter than one window of {} ms",
        options.frame_length
    );
    (problem, "Leave the utterance out")
}

impl FeatureExtractor {
    /// # Errors
    /// Options that are impossible for `sample_rate`, by their key.
    pub fn new(options: &FeatureOptions, sample_rate: u32) -> Result<Self> {
        Ok(FeatureExtractor {
            filterbank: Filterbank::new(options, sample_rate)?,
            pitch: if options.pitch { Some(PitchExtractor::new(options, sample_rate)?) } else { None },
            options: options.clone(),
            sample_rate,
        })
    }

    /// For recordings of which `first` is one: at the sample rate that the options name, or else at that of `first`. In the second
    /// case a recording of another rate will be an error.
    ///
    /// # Errors
    /// Impossible options; a first recording that cannot be read.
    pub fn for_recordings(options: &FeatureOptions, first: &Path, channel: Option<usize>) -> Result<Self> {
        let rate = match options.wanted_rate()? {
            Some(rate) => rate,
            None => read_audio(first, channel)?.sample_rate,
        };
        Self::new(options, rate)
    }

    /// The options, with the sample rate filled in: what `features.toml` says of these features.
    pub fn options(&self) -> FeatureOptions {
        FeatureOptions { sample_frequency: Some(f64::from(self.sample_rate)), ..self.options.clone() }
    }

    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    pub fn dimension(&self) -> usize {
        self.options.dimension()
    }

    /// The features of `samples`, which have the extractor's sample rate and the scale of 16-bit integers. Mel energies and pitch
    /// are cut to the shorter.
    ///
    /// # Errors
    /// A recording that is shorter than one window, naming the utterance.
    pub fn compute(&self, samples: &[f32], utterance_id: &str) -> Result<Features> {
        self.compute_or_problem(samples, utterance_id)
            .map_err(|(problem, remedy)| Error::utterance(utterance_id, problem).remedy(remedy))
    }

    /// The features of a file. If `sample_frequency` is among the options, a file of another rate is resampled.
    ///
    /// # Errors
    /// What [`read_audio`] reports; another sample rate and no `sample_frequency`; a recording that is shorter than one window.
    /// Each names the file.
    pub fn compute_file(&self, path: impl AsRef<Path>, channel: Option<usize>, utterance_id: &str) -> Result<Features> {
        self.compute_file_at(path, channel, utterance_id, 1.0)
    }

    /// As [`compute_file`](Self::compute_file), of the file played at `speed`: 1.1 is shorter and higher, as `sox IN OUT speed 1.1` makes it.
    ///
    /// # Errors
    /// Those of [`compute_file`](Self::compute_file); a speed at which no filter can be made.
    pub fn compute_file_at(
        &self,
        path: impl AsRef<Path>,
        channel: Option<usize>,
        utterance_id: &str,
        speed: f64,
    ) -> Result<Features> {
        let path = path.as_ref();
        let mut audio: Audio = read_audio(path, channel)?;
        if audio.sample_rate != self.sample_rate {
            if self.options.sample_frequency.is_none() {
                let problem =
                    format!("it has {} samples a second where {} are expected", audio.sample_rate, self.sample_rate);
                let rate = self.sample_rate;
                return Err(Error::file(path, problem).remedy(format!(
                    "Give --sample-frequency {rate}, or in a recipe features.sample_frequency = {rate}.0, to have it resampled"
                )));
            }
            audio = resample(&audio, self.sample_rate)
                .map_err(|error| Error { subject: crate::error::Subject::File(path.into()), ..error })?;
        }
        if speed != 1.0 {
            // Played faster, a recording has more samples a second; brought back to the old rate, it has fewer of them.
            let played = (f64::from(self.sample_rate) * speed).round() as u32;
            audio = resample(&Audio { sample_rate: played, samples: audio.samples }, self.sample_rate)
                .map_err(|error| Error { subject: crate::error::Subject::File(path.into()), ..error })?;
        }
        self.compute_or_problem(&audio.samples, utterance_id).map_err(|(problem, remedy)| {
            Error::file(path, format!("{problem} (utterance {utterance_id})")).remedy(remedy)
        })
    }

    fn compute_or_problem(&self, samples: &[f32], utterance_id: &str) -> Result<Features, (String, &'static str)> {
        let (columns, dimension) = (self.options.filterbank_dimension(), self.dimension());
        let energies = if samples.is_empty() { Vec::new() } else { self.filterbank.compute(samples, utterance_id) };
        let mut frames = energies.len() / columns;
        let mut values = energies;
        if let Some(pitch) = &self.pitch {
            let width = self.options.pitch_dimension();
            let pitch = process(&self.options, &pitch.compute(samples), utterance_id);
            frames = frames.min(pitch.len() / width);
            let rows = values.chunks_exact(columns).zip(pitch.chunks_exact(width));
            values = rows.take(frames).flat_map(|(energies, pitch)| energies.iter().chain(pitch).copied()).collect();
        }
        if frames == 0 {
            return Err(too_short(samples.len(), self.sample_rate, &self.options));
        }
        // Only samples far beyond 16 bits, in a file of floats, can do this.
        if let Some(place) = values.iter().position(|value| !value.is_finite()) {
            let problem = format!("frame {} has features that are not finite numbers", place / dimension);
            return Err((problem, "Bring the recording to a common volume, for example with sox --norm IN OUT.wav"));
        }
        Ok(Features { frames, dimension, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::containers::tests::wav_bytes;
    use std::fs;

    fn samples() -> Vec<f32> {
        (0..4000).map(|index| ((index * 37) % 2001) as f32 - 1000.0).collect()
    }

    #[test]
    fn pitch_stands_behind_the_energies() {
        let plain = FeatureOptions { num_mel_bins: 40, ..Default::default() };
        let both = FeatureOptions { pitch: true, ..plain.clone() };
        let energies = FeatureExtractor::new(&plain, 16000).unwrap().compute(&samples(), "a").unwrap();
        let features = FeatureExtractor::new(&both, 16000).unwrap().compute(&samples(), "a").unwrap();
        assert_eq!((energies.dimension, features.dimension, features.frames), (40, 43, energies.frames));
        assert_eq!(features.values.len(), 43 * features.frames);
        for (row, energies) in features.values.chunks(43).zip(energies.values.chunks(40)) {
            assert_eq!(row[..40], *energies);
        }
    }

    #[test]
    fn a_recording_shorter_than_one_window_is_an_error_naming_utterance_or_file() {
        for pitch in [false, true] {
            let extractor = FeatureExtractor::new(&FeatureOptions { pitch, ..Default::default() }, 16000).unwrap();
            for length in [0, 399] {
                let text = extractor.compute(&samples()[..length], "fash-an251-b").unwrap_err().to_string();
                assert!(text.contains("fash-an251-b") && text.contains("25 ms") && text.contains("Leave"), "{text}");
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("short.wav");
            fs::write(&path, wav_bytes(16000, 1, &[5; 399])).unwrap();
            let text = extractor.compute_file(&path, None, "a").unwrap_err().to_string();
            assert!(text.contains("short.wav") && text.contains("shorter than one window"), "{text}");
        }
    }

    #[test]
    fn features_that_are_not_finite_are_an_error() {
        let extractor = FeatureExtractor::new(&FeatureOptions::default(), 16000).unwrap();
        let text = extractor.compute(&[0.0, 1e30].repeat(400), "loud").unwrap_err().to_string();
        assert!(text.contains("loud") && text.contains("not finite"), "{text}");
    }

    #[test]
    fn a_faster_recording_is_shorter_and_higher() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tone.wav");
        let tone = |index: u32| (8000.0 * (f64::from(index) * 1000.0 / 16000.0 * std::f64::consts::TAU).sin()) as i16;
        fs::write(&path, wav_bytes(16000, 1, &(0..16000).map(tone).collect::<Vec<_>>())).unwrap();
        let options = FeatureOptions { num_mel_bins: 80, dither: 0.0, ..Default::default() };
        let extractor = FeatureExtractor::new(&options, 16000).unwrap();
        let at = |speed| extractor.compute_file_at(&path, None, "a", speed).unwrap();
        let loudest = |features: &Features| {
            let row = &features.values[40 * 80..41 * 80];
            (0..80).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
        };
        let (slow, same, fast) = (at(0.9), at(1.0), at(1.1));
        assert_eq!(same, extractor.compute_file(&path, None, "a").unwrap());
        // A second less a window of 25 ms, in steps of 10 ms: 1 / 0.9 s and 1 / 1.1 s are 1.111 s and 0.909 s.
        assert_eq!((slow.frames, same.frames, fast.frames), (109, 98, 89));
        assert!(loudest(&slow) < loudest(&same) && loudest(&same) < loudest(&fast));
    }

    #[test]
    fn another_rate_is_an_error_or_resampled_as_the_options_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("slow.wav");
        fs::write(&path, wav_bytes(8000, 1, &[100; 8000])).unwrap();
        let strict = FeatureExtractor::new(&FeatureOptions::default(), 16000).unwrap();
        let text = strict.compute_file(&path, None, "a").unwrap_err().to_string();
        assert!(text.contains("slow.wav") && text.contains("--sample-frequency 16000"), "{text}");
        let lenient = FeatureExtractor::new(&strict.options(), 16000).unwrap();
        assert_eq!(lenient.compute_file(&path, None, "a").unwrap().frames, 98);
    }
}
