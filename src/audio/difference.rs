//! In which option two sets of [`FeatureOptions`] differ, if features of one set are not those of the other.

use crate::audio::options::{FeatureOptions, WindowType};
use crate::error::{Error, Result};

impl FeatureOptions {
    /// The first key that makes features of these options other features than those of `other`, with both values. Noise that is added is
    /// no such difference, as training on it and testing without it is usual; nor is a sample rate that one of them does not know.
    ///
    /// # Errors
    /// None that a valid set of options can cause.
    pub fn difference(&self, other: &Self) -> Result<Option<(String, toml::Value, toml::Value)>> {
        let (ours, theirs) = (self.effective().table()?, other.effective().table()?);
        let differing = |(key, value): (String, toml::Value)| {
            let found = theirs.get(&key).filter(|&found| *found != value)?.clone();
            Some((key, value, found))
        };
        Ok(ours.into_iter().find_map(differing))
    }

    /// Every key with its value.
    ///
    /// # Errors
    /// None that a valid set of options can cause.
    pub fn table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self)
            .map_err(|error| Error::program(format!("the feature options cannot be written: {error}")))
    }

    /// The same features, but with Kaldi's value wherever an option has no effect.
    fn effective(&self) -> Self {
        let kaldi = Self::KALDI;
        let mut effective = self.clone();
        if !self.pitch {
            effective = FeatureOptions {
                num_mel_bins: self.num_mel_bins,
                sample_frequency: self.sample_frequency,
                frame_length: self.frame_length,
                frame_shift: self.frame_shift,
                low_freq: self.low_freq,
                high_freq: self.high_freq,
                preemphasis_coefficient: self.preemphasis_coefficient,
                remove_dc_offset: self.remove_dc_offset,
                window_type: self.window_type,
                round_to_power_of_two: self.round_to_power_of_two,
                blackman_coeff: self.blackman_coeff,
                snip_edges: self.snip_edges,
                use_energy: self.use_energy,
                energy_floor: self.energy_floor,
                raw_energy: self.raw_energy,
                htk_compat: self.htk_compat,
                use_log_fbank: self.use_log_fbank,
                use_power: self.use_power,
                ..kaldi
            };
        }
        if self.window_type != WindowType::Blackman {
            effective.blackman_coeff = kaldi.blackman_coeff;
        }
        if !self.use_energy {
            effective.energy_floor = kaldi.energy_floor;
            effective.raw_energy = kaldi.raw_energy;
            effective.htk_compat = kaldi.htk_compat;
        }
        FeatureOptions { dither: 0.0, delta_pitch_noise_stddev: 0.0, ..effective }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(one: &FeatureOptions, other: &FeatureOptions) -> Option<String> {
        one.difference(other).unwrap().map(|(key, ..)| key)
    }

    #[test]
    fn only_what_changes_the_features_is_a_difference() {
        let ours = FeatureOptions { sample_frequency: Some(16000.0), ..FeatureOptions::KALDI };
        assert_eq!(key(&ours, &ours), None);
        for (key_that_differs, other) in [
            (Some("num_mel_bins"), FeatureOptions { num_mel_bins: 80, ..ours.clone() }),
            (Some("sample_frequency"), FeatureOptions { sample_frequency: Some(8000.0), ..ours.clone() }),
            (Some("pitch"), FeatureOptions { pitch: true, ..ours.clone() }),
            (Some("window_type"), FeatureOptions { window_type: WindowType::Hamming, ..ours.clone() }),
            // What has no effect, what is noise, and what is not known.
            (None, FeatureOptions { min_f0: 60.0, raw_energy: false, blackman_coeff: 0.4, ..ours.clone() }),
            (None, FeatureOptions { dither: 1.0, ..ours.clone() }),
            (None, FeatureOptions { sample_frequency: None, ..ours.clone() }),
        ] {
            assert_eq!(key(&ours, &other).as_deref(), key_that_differs);
            assert_eq!(key(&other, &ours).as_deref(), key_that_differs);
        }
        let pitch = FeatureOptions { pitch: true, ..ours };
        assert_eq!(key(&pitch, &FeatureOptions { min_f0: 60.0, ..pitch.clone() }).as_deref(), Some("min_f0"));
    }
}
