//! [`FeatureOptions`]: what the features are. One set of names serves the `[features]` of a recipe, `features.toml` beside an archive and
//! the options of `data-tools`; they are Kaldi's names and defaults (compute-fbank-feats, compute-kaldi-pitch-feats,
//! process-kaldi-pitch-feats), except that `dither` and `delta_pitch_noise_stddev` are 0 and that the sample rate is the file's own.

use std::path::Path;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{read_text, write_bytes};

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
    #[arg(long, value_name = "HZ", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.min_f0)]
    pub min_f0: f64,

    /// Highest pitch that is searched, in Hz
    #[arg(long, value_name = "HZ", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.max_f0)]
    pub max_f0: f64,

    /// Lowest pitch, applied softly, in Hz; must not exceed min-f0
    #[arg(long, value_name = "HZ", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.soft_min_f0)]
    pub soft_min_f0: f64,

    /// Cost of a change of pitch
    #[arg(long, value_name = "X", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.penalty_factor)]
    pub penalty_factor: f64,

    /// Cutoff of the low-pass filter in Hz
    #[arg(long, value_name = "HZ", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.lowpass_cutoff)]
    pub lowpass_cutoff: f64,

    /// Rate at which the pitch is searched; more than twice the cutoff
    #[arg(long, value_name = "HZ", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.resample_frequency)]
    pub resample_frequency: f64,

    /// Smallest relative change of pitch that is measured
    #[arg(long, value_name = "X", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.delta_pitch)]
    pub delta_pitch: f64,

    /// More of it lowers the correlation of quiet frames
    #[arg(long, value_name = "X", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.nccf_ballast)]
    pub nccf_ballast: f64,

    /// Estimate the signal's energy up to the frame, not to the end of the chunk
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          help_heading = "Pitch", hide_short_help = true, default_missing_value = "true",
          default_value_t = Self::KALDI.nccf_ballast_online)]
    pub nccf_ballast_online: bool,

    /// Width of the low-pass filter, in zeros of its sinc
    #[arg(long, value_name = "N", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.lowpass_filter_width)]
    pub lowpass_filter_width: usize,

    /// Width of the filter that interpolates the correlation, in zeros of its sinc
    #[arg(long, value_name = "N", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.upsample_filter_width)]
    pub upsample_filter_width: usize,

    /// Track in chunks of so many frames, as a live recogniser would; 0: the whole recording at once
    #[arg(long, value_name = "N", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.frames_per_chunk)]
    pub frames_per_chunk: usize,

    /// With chunks: the pitch as it was known when its chunk ended
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          help_heading = "Pitch", hide_short_help = true, default_missing_value = "true",
          default_value_t = Self::KALDI.simulate_first_pass_online)]
    pub simulate_first_pass_online: bool,

    /// With chunks: the frame at which the beginning is searched again, with the energy known better
    #[arg(long, value_name = "N", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.recompute_frame)]
    pub recompute_frame: usize,

    /// With the simulated first pass: frames by which pitch may come late
    #[arg(long, value_name = "N", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.max_frames_latency)]
    pub max_frames_latency: usize,

    /// Scale of the normalised log pitch
    #[arg(long, value_name = "X", help_heading = "Pitch",
          hide_short_help = true, allow_negative_numbers = true, default_value_t = Self::KALDI.pitch_scale)]
    pub pitch_scale: f64,

    /// Scale of the voicing feature
    #[arg(long, value_name = "X", help_heading = "Pitch",
          hide_short_help = true, allow_negative_numbers = true, default_value_t = Self::KALDI.pov_scale)]
    pub pov_scale: f64,

    /// Added to the voicing feature
    #[arg(long, value_name = "X", help_heading = "Pitch",
          hide_short_help = true, allow_negative_numbers = true, default_value_t = Self::KALDI.pov_offset)]
    pub pov_offset: f64,

    /// Scale of the delta log pitch
    #[arg(long, value_name = "X", help_heading = "Pitch",
          hide_short_help = true, allow_negative_numbers = true, default_value_t = Self::KALDI.delta_pitch_scale)]
    pub delta_pitch_scale: f64,

    /// Standard deviation of noise added to the delta log pitch before scaling (Kaldi: 0.005)
    #[arg(long, value_name = "X", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.delta_pitch_noise_stddev)]
    pub delta_pitch_noise_stddev: f64,

    /// Frames before the present one over which log pitch is normalised
    #[arg(long, value_name = "N", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.normalization_left_context)]
    pub normalization_left_context: usize,

    /// Frames after it
    #[arg(long, value_name = "N", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.normalization_right_context)]
    pub normalization_right_context: usize,

    /// Frames on each side from which the delta is computed
    #[arg(long, value_name = "N", help_heading = "Pitch",
          hide_short_help = true, default_value_t = Self::KALDI.delta_window)]
    pub delta_window: usize,

    /// Frames by which the pitch features are delayed
    #[arg(long, value_name = "N", help_heading = "Pitch", hide_short_help = true, default_value_t = Self::KALDI.delay)]
    pub delay: usize,

    /// The voicing feature
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          help_heading = "Pitch", hide_short_help = true, default_missing_value = "true",
          default_value_t = Self::KALDI.add_pov_feature)]
    pub add_pov_feature: bool,

    /// The normalised log pitch
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          help_heading = "Pitch", hide_short_help = true, default_missing_value = "true",
          default_value_t = Self::KALDI.add_normalized_log_pitch)]
    pub add_normalized_log_pitch: bool,

    /// The delta log pitch
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          help_heading = "Pitch", hide_short_help = true, default_missing_value = "true",
          default_value_t = Self::KALDI.add_delta_pitch)]
    pub add_delta_pitch: bool,

    /// The log pitch as it is
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true,
          help_heading = "Pitch", hide_short_help = true, default_missing_value = "true",
          default_value_t = Self::KALDI.add_raw_log_pitch)]
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
        write_bytes(path.as_ref(), self.to_toml()?.as_bytes())
    }

    /// Reads `features.toml`.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML; an unknown key; a value of another type.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_text(path)?;
        toml::from_str(&text).map_err(|error| {
            // Of an unknown key, the parser says every key that there is.
            let problem = error.message().split(", expected one of").next().unwrap_or_default();
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            Error::line(path, line, problem).remedy("data-tools features --help lists every key, with '-' for '_'")
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
        assert!(text.contains("features.toml:1") && text.contains("`num_mel_bin`") && text.len() < 200, "{text}");
        // A whole number will do where a fraction could stand.
        std::fs::write(&path, "frame_shift = 12\n").unwrap();
        assert_eq!(FeatureOptions::read(&path).unwrap().frame_shift, 12.0);
    }
}
