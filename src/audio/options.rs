//! [`FeatureOptions`]: what the features are. One set of names serves the `[features]` of a recipe, `features.toml` beside an archive and
//! the options of `data-tools`; they are Kaldi's names and defaults (compute-fbank-feats, compute-kaldi-pitch-feats,
//! process-kaldi-pitch-feats), except that `dither` and `delta_pitch_noise_stddev` are 0 and that the sample rate is the file's own.

use std::path::Path;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::data::files::{read_text, replace_file};
use crate::error::{Error, Result};

/// The shape of an analysis window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum WindowType {
    Povey,
    Hamming,
    Hanning,
    Blackman,
    Rectangular,
}

/// What features are computed, and how. A switch is written `--snip-edges=false` on a command line; `--pitch` alone means true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Filterbank")]
pub struct FeatureOptions {
    /// Mel filters, and so log energies, per frame
    #[arg(long, value_name = "N", default_value_t = Self::KALDI.num_mel_bins)]
    pub num_mel_bins: usize,

    /// Add three pitch features per frame: voicing, normalised log pitch, delta log pitch
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value_t = Self::KALDI.pitch)]
    pub pitch: bool,

    /// Samples per second; a file of another rate is resampled [default: the files' own rate]
    #[arg(long, value_name = "HZ")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_frequency: Option<f64>,

    /// Length of a frame in milliseconds
    #[arg(long, value_name = "MS", default_value_t = Self::KALDI.frame_length)]
    pub frame_length: f64,

    /// Distance between frames in milliseconds
    #[arg(long, value_name = "MS", default_value_t = Self::KALDI.frame_shift)]
    pub frame_shift: f64,

    /// Standard deviation of noise added to the samples, on the scale of 16-bit integers (Kaldi: 1); the same for an
    /// utterance id in every run
    #[arg(long, value_name = "X", default_value_t = Self::KALDI.dither)]
    pub dither: f64,

    /// Lowest frequency of the filters in Hz
    #[arg(long, value_name = "HZ", default_value_t = Self::KALDI.low_freq)]
    pub low_freq: f64,

    /// Highest frequency of the filters in Hz; 0 or less is counted from half the sample rate
    #[arg(long, value_name = "HZ", allow_negative_numbers = true, default_value_t = Self::KALDI.high_freq)]
    pub high_freq: f64,

    /// Coefficient of the pre-emphasis
    #[arg(long, value_name = "X", hide_short_help = true, default_value_t = Self::KALDI.preemphasis_coefficient)]
    pub preemphasis_coefficient: f64,

    /// Subtract the mean of every frame
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.remove_dc_offset)]
    pub remove_dc_offset: bool,

    /// Shape of the analysis window
    #[arg(long, value_name = "TYPE", hide_short_help = true, value_enum, default_value_t = Self::KALDI.window_type)]
    pub window_type: WindowType,

    /// Pad frames with zeros to a power of two before the Fourier transform
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.round_to_power_of_two)]
    pub round_to_power_of_two: bool,

    /// Constant of the Blackman window
    #[arg(long, value_name = "X", hide_short_help = true, default_value_t = Self::KALDI.blackman_coeff)]
    pub blackman_coeff: f64,

    /// Only frames that lie in the recording as a whole; false: as many frames as shifts, the edges mirrored
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.snip_edges)]
    pub snip_edges: bool,

    /// Add the log energy of the frame as first feature
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.use_energy)]
    pub use_energy: bool,

    /// Floor on that energy (not its logarithm); 0: none
    #[arg(long, value_name = "X", hide_short_help = true, default_value_t = Self::KALDI.energy_floor)]
    pub energy_floor: f64,

    /// Measure that energy before pre-emphasis and windowing
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.raw_energy)]
    pub raw_energy: bool,

    /// Put that energy last, as HTK does
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.htk_compat)]
    pub htk_compat: bool,

    /// Logarithms of the mel energies; false: the energies
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.use_log_fbank)]
    pub use_log_fbank: bool,

    /// Filter the power spectrum; false: the magnitude
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.use_power)]
    pub use_power: bool,

    /// Lowest pitch that is searched, in Hz
    #[arg(long, value_name = "HZ", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.min_f0)]
    pub min_f0: f64,

    /// Highest pitch that is searched, in Hz
    #[arg(long, value_name = "HZ", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.max_f0)]
    pub max_f0: f64,

    /// Lowest pitch, applied softly, in Hz; must not exceed min-f0
    #[arg(long, value_name = "HZ", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.soft_min_f0)]
    pub soft_min_f0: f64,

    /// Cost of a change of pitch
    #[arg(long, value_name = "X", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.penalty_factor)]
    pub penalty_factor: f64,

    /// Cutoff of the low-pass filter in Hz
    #[arg(long, value_name = "HZ", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.lowpass_cutoff)]
    pub lowpass_cutoff: f64,

    /// Rate at which the pitch is searched; more than twice the cutoff
    #[arg(long, value_name = "HZ", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.resample_frequency)]
    pub resample_frequency: f64,

    /// Smallest relative change of pitch that is measured
    #[arg(long, value_name = "X", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.delta_pitch)]
    pub delta_pitch: f64,

    /// More of it lowers the correlation of quiet frames
    #[arg(long, value_name = "X", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.nccf_ballast)]
    pub nccf_ballast: f64,

    /// Estimate the signal's energy up to the frame, not to the end of the chunk
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, help_heading = "Pitch",
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.nccf_ballast_online)]
    pub nccf_ballast_online: bool,

    /// Width of the low-pass filter, in zeros of its sinc
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.lowpass_filter_width)]
    pub lowpass_filter_width: usize,

    /// Width of the filter that interpolates the correlation, in zeros of its sinc
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.upsample_filter_width)]
    pub upsample_filter_width: usize,

    /// Track in chunks of so many frames, as a live recogniser would; 0: the whole recording at once
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.frames_per_chunk)]
    pub frames_per_chunk: usize,

    /// With chunks: the pitch as it was known when its chunk ended
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, help_heading = "Pitch",
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.simulate_first_pass_online)]
    pub simulate_first_pass_online: bool,

    /// With chunks: the frame at which the beginning is searched again, with the energy known better
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.recompute_frame)]
    pub recompute_frame: usize,

    /// With the simulated first pass: frames by which pitch may come late
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.max_frames_latency)]
    pub max_frames_latency: usize,

    /// Scale of the normalised log pitch
    #[arg(long, value_name = "X", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.pitch_scale)]
    pub pitch_scale: f64,

    /// Scale of the voicing feature
    #[arg(long, value_name = "X", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.pov_scale)]
    pub pov_scale: f64,

    /// Added to the voicing feature
    #[arg(long, value_name = "X", help_heading = "Pitch", hide_short_help = true, allow_negative_numbers = true, default_value_t = Self::KALDI.pov_offset)]
    pub pov_offset: f64,

    /// Scale of the delta log pitch
    #[arg(long, value_name = "X", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.delta_pitch_scale)]
    pub delta_pitch_scale: f64,

    /// Standard deviation of noise added to the delta log pitch before scaling (Kaldi: 0.005)
    #[arg(long, value_name = "X", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.delta_pitch_noise_stddev)]
    pub delta_pitch_noise_stddev: f64,

    /// Frames before the present one over which log pitch is normalised
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.normalization_left_context)]
    pub normalization_left_context: usize,

    /// Frames after it
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.normalization_right_context)]
    pub normalization_right_context: usize,

    /// Frames on each side from which the delta is computed
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.delta_window)]
    pub delta_window: usize,

    /// Frames by which the pitch features are delayed
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.delay)]
    pub delay: usize,

    /// The voicing feature
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, help_heading = "Pitch",
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.add_pov_feature)]
    pub add_pov_feature: bool,

    /// The normalised log pitch
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, help_heading = "Pitch",
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.add_normalized_log_pitch)]
    pub add_normalized_log_pitch: bool,

    /// The delta log pitch
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, help_heading = "Pitch",
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.add_delta_pitch)]
    pub add_delta_pitch: bool,

    /// The log pitch as it is
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, help_heading = "Pitch",
          hide_short_help = true, default_missing_value = "true", default_value_t = Self::KALDI.add_raw_log_pitch)]
    pub add_raw_log_pitch: bool,
}

impl FeatureOptions {
    /// Kaldi's defaults, but no random noise and no fixed sample rate.
    pub const KALDI: FeatureOptions = FeatureOptions {
        num_mel_bins: 23,
        pitch: false,
        sample_frequency: None,
        frame_length: 25.0,
        frame_shift: 10.0,
        dither: 0.0,
        low_freq: 20.0,
        high_freq: 0.0,
        preemphasis_coefficient: 0.97,
        remove_dc_offset: true,
        window_type: WindowType::Povey,
        round_to_power_of_two: true,
        blackman_coeff: 0.42,
        snip_edges: true,
        use_energy: false,
        energy_floor: 0.0,
        raw_energy: true,
        htk_compat: false,
        use_log_fbank: true,
        use_power: true,
        min_f0: 50.0,
        max_f0: 400.0,
        soft_min_f0: 10.0,
        penalty_factor: 0.1,
        lowpass_cutoff: 1000.0,
        resample_frequency: 4000.0,
        delta_pitch: 0.005,
        nccf_ballast: 7000.0,
        nccf_ballast_online: false,
        lowpass_filter_width: 1,
        upsample_filter_width: 5,
        frames_per_chunk: 0,
        simulate_first_pass_online: false,
        recompute_frame: 500,
        max_frames_latency: 0,
        pitch_scale: 2.0,
        pov_scale: 2.0,
        pov_offset: 0.0,
        delta_pitch_scale: 10.0,
        delta_pitch_noise_stddev: 0.0,
        normalization_left_context: 75,
        normalization_right_context: 75,
        delta_window: 2,
        delay: 0,
        add_pov_feature: true,
        add_normalized_log_pitch: true,
        add_delta_pitch: true,
        add_raw_log_pitch: false,
    };

    /// Features per frame: mel energies, the frame's energy if asked for, pitch features if asked for.
    pub fn dimension(&self) -> usize {
        self.filterbank_dimension() + if self.pitch { self.pitch_dimension() } else { 0 }
    }

    pub(super) fn filterbank_dimension(&self) -> usize {
        self.num_mel_bins + usize::from(self.use_energy)
    }

    pub(super) fn pitch_dimension(&self) -> usize {
        let parts = [self.add_pov_feature, self.add_normalized_log_pitch, self.add_delta_pitch, self.add_raw_log_pitch];
        parts.into_iter().filter(|&part| part).count()
    }

    /// The wanted sample rate as a whole number, if one is set.
    ///
    /// # Errors
    /// A rate that is not a positive whole number.
    pub fn wanted_rate(&self) -> Result<Option<u32>> {
        let Some(rate) = self.sample_frequency else { return Ok(None) };
        if rate.fract() != 0.0 || !(1.0..=4e6).contains(&rate) {
            return Err(Error::key("sample_frequency", format!("{rate} is no sample rate"))
                .remedy("Give a whole number of samples per second, for example 16000"));
        }
        Ok(Some(rate as u32))
    }

    /// Checks every value, for recordings of `sample_rate`.
    ///
    /// # Errors
    /// An impossible value, by its key.
    pub fn validate(&self, sample_rate: u32) -> Result<()> {
        if let Some(wanted) = self.wanted_rate()?.filter(|&wanted| wanted != sample_rate) {
            return Err(Error::key("sample_frequency", format!("{wanted} is wanted, the samples have {sample_rate}"))
                .remedy("Resample them first"));
        }
        self.validate_signs()?;
        let rate = f64::from(sample_rate);
        if (self.frame_length * rate / 1000.0).floor() < 2.0 || (self.frame_shift * rate / 1000.0).floor() < 1.0 {
            return Err(Error::key(
                "frame_length",
                format!(
                    "frames of {} ms every {} ms have no samples at {rate} Hz",
                    self.frame_length, self.frame_shift
                ),
            )
            .remedy("Give frame_length and frame_shift in milliseconds, for example 25 and 10"));
        }
        let nyquist = rate / 2.0;
        let high = if self.high_freq > 0.0 { self.high_freq } else { nyquist + self.high_freq };
        if !(self.low_freq < high && high <= nyquist) {
            return Err(Error::key("high_freq", format!("the filters go from {} to {high} Hz", self.low_freq))
                .remedy(format!("Choose low_freq below high_freq, and both within 0 and {nyquist}")));
        }
        if self.pitch { self.validate_pitch(rate) } else { Ok(()) }
    }

    /// Numbers that must be finite and not negative, or positive.
    fn validate_signs(&self) -> Result<()> {
        let not_negative = [
            ("dither", self.dither),
            ("low_freq", self.low_freq),
            ("energy_floor", self.energy_floor),
            ("soft_min_f0", self.soft_min_f0),
            ("penalty_factor", self.penalty_factor),
            ("nccf_ballast", self.nccf_ballast),
            ("delta_pitch_noise_stddev", self.delta_pitch_noise_stddev),
        ];
        let positive = [
            ("frame_length", self.frame_length),
            ("frame_shift", self.frame_shift),
            ("min_f0", self.min_f0),
            ("max_f0", self.max_f0),
            ("lowpass_cutoff", self.lowpass_cutoff),
            ("resample_frequency", self.resample_frequency),
            ("delta_pitch", self.delta_pitch),
            ("lowpass_filter_width", self.lowpass_filter_width as f64),
            ("upsample_filter_width", self.upsample_filter_width as f64),
        ];
        let finite = [
            ("high_freq", self.high_freq),
            ("blackman_coeff", self.blackman_coeff),
            ("pitch_scale", self.pitch_scale),
            ("pov_scale", self.pov_scale),
            ("pov_offset", self.pov_offset),
            ("delta_pitch_scale", self.delta_pitch_scale),
        ];
        let wrong = |(key, value): &(&'static str, f64), wanted: &str| {
            Error::key(*key, format!("{value} is impossible")).remedy(format!("Give a number {wanted}"))
        };
        if let Some(entry) = not_negative.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
            return Err(wrong(entry, "of 0 or more"));
        }
        if let Some(entry) = positive.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            return Err(wrong(entry, "above 0"));
        }
        if let Some(entry) = finite.iter().find(|(_, value)| !value.is_finite()) {
            return Err(wrong(entry, "that is finite"));
        }
        if !(0.0..=1.0).contains(&self.preemphasis_coefficient) {
            return Err(wrong(&("preemphasis_coefficient", self.preemphasis_coefficient), "from 0 to 1"));
        }
        if self.num_mel_bins < 3 {
            return Err(wrong(&("num_mel_bins", self.num_mel_bins as f64), "of 3 or more"));
        }
        Ok(())
    }

    fn validate_pitch(&self, rate: f64) -> Result<()> {
        let error = |key: &str, problem: String, remedy: &str| Err(Error::key(key, problem).remedy(remedy));
        if self.min_f0 >= self.max_f0 {
            let problem = format!("the pitch is searched from {} to {} Hz", self.min_f0, self.max_f0);
            return error("min_f0", problem, "Choose min_f0 below max_f0");
        }
        if self.soft_min_f0 > self.min_f0 {
            let problem = format!("{} exceeds min_f0 = {}", self.soft_min_f0, self.min_f0);
            return error("soft_min_f0", problem, "Choose it at most min_f0");
        }
        if self.resample_frequency.fract() != 0.0 || self.resample_frequency > 4e6 {
            let problem = format!("{} is no sample rate", self.resample_frequency);
            return error("resample_frequency", problem, "Give a whole number, for example 4000");
        }
        if 2.0 * self.lowpass_cutoff > self.resample_frequency.min(rate) {
            let problem =
                format!("{} Hz is above half of the rates {rate} and {}", self.lowpass_cutoff, self.resample_frequency);
            return error("lowpass_cutoff", problem, "Choose it lower, or resample_frequency higher");
        }
        // The filter that interpolates the correlation reaches so far below the shortest lag.
        let reach = self.upsample_filter_width as f64 / (2.0 * self.resample_frequency);
        if 1.0 / self.max_f0 <= reach {
            let problem =
                format!("a pitch of {} Hz is too high for upsample_filter_width and resample_frequency", self.max_f0);
            return error("max_f0", problem, "Choose max_f0 lower, or resample_frequency higher");
        }
        let step = self.resample_frequency / 1000.0;
        if (self.frame_length * step).floor() < 1.0 || (self.frame_shift * step).floor() < 1.0 {
            let problem = format!("{} Hz leaves a frame without samples", self.resample_frequency);
            return error("resample_frequency", problem, "Choose it higher, or the frames longer");
        }
        if self.simulate_first_pass_online && self.frames_per_chunk == 0 {
            let problem = "a first pass needs chunks".to_string();
            return error("simulate_first_pass_online", problem, "Set frames_per_chunk too, for example to 10");
        }
        if self.pitch_dimension() == 0 {
            let problem = "pitch is asked for, and every pitch feature is switched off".to_string();
            return error("pitch", problem, "Switch one on, for example add_pov_feature, or pitch off");
        }
        Ok(())
    }

    /// The options as `features.toml` holds them: every key, with its value.
    ///
    /// # Errors
    /// None that a valid set of options can cause.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|error| Error::program(format!("the feature options cannot be written: {error}")))
    }

    /// Writes `features.toml`, as a whole or not at all.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        replace_file(path.as_ref(), self.to_toml()?.as_bytes())
    }

    /// Reads `features.toml`.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML; an unknown key; a value of another type.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        toml::from_str(&read_text(path)?).map_err(|error| {
            Error::file(path, error.message().to_string()).remedy("data-tools features --help lists every key")
        })
    }
}

impl Default for FeatureOptions {
    fn default() -> Self {
        Self::KALDI
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_features_toml() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.toml");
        let options =
            FeatureOptions { num_mel_bins: 40, pitch: true, sample_frequency: Some(16000.0), ..Default::default() };
        options.write(&path).unwrap();
        assert_eq!(FeatureOptions::read(&path).unwrap(), options);
        assert_eq!(options.dimension(), 43);
    }

    #[test]
    fn a_key_that_is_left_out_has_its_default_and_an_unknown_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("features.toml");
        std::fs::write(&path, "num_mel_bins = 80\n").unwrap();
        assert_eq!(FeatureOptions::read(&path).unwrap(), FeatureOptions { num_mel_bins: 80, ..Default::default() });
        std::fs::write(&path, "num_mel_bin = 80\n").unwrap();
        let text = FeatureOptions::read(&path).unwrap_err().to_string();
        assert!(text.contains("features.toml") && text.contains("num_mel_bin"), "{text}");
    }

    #[test]
    fn an_impossible_value_is_an_error_naming_its_key() {
        let base = FeatureOptions { pitch: true, ..Default::default() };
        let cases = [
            ("num_mel_bins", FeatureOptions { num_mel_bins: 2, ..base.clone() }),
            ("frame_length", FeatureOptions { frame_length: 0.0, ..base.clone() }),
            ("high_freq", FeatureOptions { high_freq: 9000.0, ..base.clone() }),
            ("dither", FeatureOptions { dither: f64::NAN, ..base.clone() }),
            ("sample_frequency", FeatureOptions { sample_frequency: Some(0.5), ..base.clone() }),
            ("preemphasis_coefficient", FeatureOptions { preemphasis_coefficient: 1.5, ..base.clone() }),
            ("min_f0", FeatureOptions { min_f0: 500.0, ..base.clone() }),
            ("max_f0", FeatureOptions { max_f0: 2000.0, ..base.clone() }),
            ("simulate_first_pass_online", FeatureOptions { simulate_first_pass_online: true, ..base.clone() }),
        ];
        for (key, options) in cases {
            let text = options.validate(16000).unwrap_err().to_string();
            assert!(text.starts_with(key), "{key}: {text}");
        }
        base.validate(8000).unwrap();
        base.validate(16000).unwrap();
    }
}
