//! Which values of [`FeatureOptions`] are possible. Whatever passes here can be computed; an impossible value is an error by its key.

use crate::audio::options::FeatureOptions;
use crate::error::{Error, Result};

/// Samples of a frame or between frames, at most: a frame of 16 seconds at 1 MHz.
const MOST_SAMPLES: f64 = 16_777_216.0;

/// Lags that the search can number.
const MOST_LAGS: f64 = 60_000.0;

impl FeatureOptions {
    /// The wanted sample rate as a whole number, if one is set.
    ///
    /// # Errors
    /// A rate that is not a positive whole number.
    pub fn wanted_rate(&self) -> Result<Option<u32>> {
        let Some(rate) = self.sample_frequency else { return Ok(None) };
        if rate.fract() != 0.0 || !(1.0..=1e6).contains(&rate) {
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
        self.validate_ranges()?;
        let rate = f64::from(sample_rate);
        for (key, milliseconds, fewest) in
            [("frame_length", self.frame_length, 2.0), ("frame_shift", self.frame_shift, 1.0)]
        {
            let samples = (milliseconds * rate / 1000.0).floor();
            if !(fewest..=MOST_SAMPLES).contains(&samples) {
                let problem = format!("{milliseconds} ms are {samples} samples at {rate} Hz");
                return Err(
                    Error::key(key, problem).remedy("Give milliseconds; 25 for a frame and 10 for a shift are common")
                );
            }
        }
        let nyquist = rate / 2.0;
        let high = if self.high_freq > 0.0 { self.high_freq } else { nyquist + self.high_freq };
        if !(self.low_freq < high && high <= nyquist) {
            return Err(Error::key("high_freq", format!("the filters go from {} to {high} Hz", self.low_freq))
                .remedy(format!("Choose low_freq below high_freq, and both within 0 and {nyquist}")));
        }
        if self.pitch { self.validate_pitch(rate) } else { Ok(()) }
    }

    /// The numbers that each option may have by itself. The bounds are far beyond what is useful; within them nothing overflows.
    fn validate_ranges(&self) -> Result<()> {
        let ranges = [
            ("num_mel_bins", self.num_mel_bins as f64, 3.0, 1e5),
            ("dither", self.dither, 0.0, 1e5),
            ("low_freq", self.low_freq, 0.0, 1e6),
            ("high_freq", self.high_freq, -1e6, 1e6),
            ("preemphasis_coefficient", self.preemphasis_coefficient, 0.0, 1.0),
            ("blackman_coeff", self.blackman_coeff, 0.0, 1.0),
            ("energy_floor", self.energy_floor, 0.0, 1e30),
            ("min_f0", self.min_f0, 1.0, 1e5),
            ("max_f0", self.max_f0, 1.0, 1e5),
            ("soft_min_f0", self.soft_min_f0, 0.0, 1e5),
            ("penalty_factor", self.penalty_factor, 0.0, 1e6),
            ("lowpass_cutoff", self.lowpass_cutoff, 1.0, 1e6),
            ("resample_frequency", self.resample_frequency, 1.0, 1e6),
            ("delta_pitch", self.delta_pitch, 1e-4, 1.0),
            ("nccf_ballast", self.nccf_ballast, 0.0, 1e9),
            ("lowpass_filter_width", self.lowpass_filter_width as f64, 1.0, 100.0),
            ("upsample_filter_width", self.upsample_filter_width as f64, 1.0, 100.0),
            ("pitch_scale", self.pitch_scale, -1e6, 1e6),
            ("pov_scale", self.pov_scale, -1e6, 1e6),
            ("pov_offset", self.pov_offset, -1e6, 1e6),
            ("delta_pitch_scale", self.delta_pitch_scale, -1e6, 1e6),
            ("delta_pitch_noise_stddev", self.delta_pitch_noise_stddev, 0.0, 1e6),
            ("delta_window", self.delta_window as f64, 0.0, 1000.0),
            ("delay", self.delay as f64, 0.0, 1e6),
        ];
        match ranges.into_iter().find(|(_, value, low, high)| !(low..=high).contains(&value)) {
            Some((key, value, low, high)) => {
                Err(Error::key(key, format!("{value} is impossible"))
                    .remedy(format!("Give a number from {low} to {high}")))
            }
            None => Ok(()),
        }
    }

    fn validate_pitch(&self, rate: f64) -> Result<()> {
        let error = |key: &str, problem: String, remedy: &str| Err(Error::key(key, problem).remedy(remedy));
        if self.min_f0 >= self.max_f0 {
            let problem = format!("the pitch is searched from {} to {} Hz", self.min_f0, self.max_f0);
            return error("min_f0", problem, "Choose min_f0 below max_f0");
        }
        let lags = (self.max_f0 / self.min_f0).ln() / (1.0 + self.delta_pitch).ln();
        if lags > MOST_LAGS {
            let problem = format!("{} divides the range of the pitch into {lags:.0} lags", self.delta_pitch);
            return error("delta_pitch", problem, "Choose it larger, or the range from min_f0 to max_f0 narrower");
        }
        if self.soft_min_f0 > self.min_f0 {
            let problem = format!("{} exceeds min_f0 = {}", self.soft_min_f0, self.min_f0);
            return error("soft_min_f0", problem, "Choose it at most min_f0");
        }
        if self.resample_frequency.fract() != 0.0 {
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("frame_shift", FeatureOptions { frame_shift: 0.01, ..base.clone() }),
            ("delta_pitch", FeatureOptions { delta_pitch: 1e-9, ..base.clone() }),
            ("soft_min_f0", FeatureOptions { soft_min_f0: 60.0, ..base.clone() }),
            ("resample_frequency", FeatureOptions { resample_frequency: 4000.5, ..base.clone() }),
            ("lowpass_cutoff", FeatureOptions { lowpass_cutoff: 2500.0, ..base.clone() }),
            ("simulate_first_pass_online", FeatureOptions { simulate_first_pass_online: true, ..base.clone() }),
        ];
        for (key, options) in cases {
            let text = options.validate(16000).unwrap_err().to_string();
            assert!(text.starts_with(key), "{key}: {text}");
        }
        let nothing = FeatureOptions {
            add_pov_feature: false,
            add_normalized_log_pitch: false,
            add_delta_pitch: false,
            ..base.clone()
        };
        assert!(nothing.validate(16000).unwrap_err().to_string().starts_with("pitch"));
        base.validate(8000).unwrap();
        base.validate(16000).unwrap();
    }
}
