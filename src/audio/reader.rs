//! One way to read every kind of audio file: the kind is known by the file's first bytes, never by its name.

use std::fs;
use std::path::Path;

use crate::audio::{containers, sphere};
use crate::error::{Error, Result};

/// One channel of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Audio {
    /// Samples per second.
    pub sample_rate: u32,
    /// In the scale of 16-bit integers, -32768 to 32767, whatever the file's own width is. Kaldi's features are made for this scale.
    pub samples: Vec<f32>,
}

impl Audio {
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(self.sample_rate)
    }
}

/// All channels of a file, as its format stores them: one frame after the other.
pub(super) struct Interleaved {
    pub sample_rate: u32,
    pub channels: usize,
    /// Scale of 16-bit integers; a multiple of `channels` long.
    pub samples: Vec<f32>,
}

/// Above it, a header is taken to be broken.
const HIGHEST_RATE: u32 = 1_000_000;

/// The remedy for a file of a kind that is not read.
pub(super) const CONVERT: &str =
    "Convert it to 16-bit WAV or to FLAC, for example with sox IN OUT.wav or ffmpeg -i IN OUT.wav";

/// Reads one channel of a WAV, FLAC or NIST SPHERE file.
///
/// `channel` counts from 0, as Kaldi's does; without it the file must have one channel.
///
/// # Errors
/// A file that is missing, truncated, empty, of another kind or with a wrong header; several channels and no `channel`; a channel
/// that the file does not have. Each names the file and the remedy.
pub fn read_audio(path: impl AsRef<Path>, channel: Option<usize>) -> Result<Audio> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(|error| Error::io(path, "be read", &error))?;
    let audio = match bytes.get(..4) {
        Some(b"NIST") => sphere::decode(path, &bytes)?,
        Some(b"RIFF") => containers::decode_wav(path, bytes)?,
        Some(b"fLaC") => containers::decode_flac(path, bytes)?,
        // An ID3 tag may stand before the FLAC stream.
        Some([b'I', b'D', b'3', _]) => containers::decode_flac(path, bytes)?,
        _ if bytes.is_empty() => {
            return Err(
                Error::file(path, "the file is empty").remedy("Copy or download it again, or leave the utterance out")
            );
        }
        _ => return Err(Error::file(path, "this is no WAV, FLAC or NIST SPHERE file").remedy(CONVERT)),
    };
    take_channel(path, audio, channel)
}

fn take_channel(path: &Path, audio: Interleaved, channel: Option<usize>) -> Result<Audio> {
    let Interleaved { sample_rate, channels, mut samples } = audio;
    if samples.is_empty() {
        return Err(Error::file(path, "the recording has a length of zero").remedy("Leave the utterance out"));
    }
    if !(1..=HIGHEST_RATE).contains(&sample_rate) || channels == 0 {
        let problem = format!("the header says {sample_rate} samples a second and {channels} channels");
        return Err(Error::file(path, problem).remedy(CONVERT));
    }
    let last = channels - 1;
    match channel {
        None if channels > 1 => {
            return Err(Error::file(path, format!("the recording has {channels} channels")).remedy(format!(
                "Choose one, from 0 to {last}: --channel N of transcribe and of data-tools features"
            )));
        }
        Some(channel) if channel > last => {
            let remedy = match last {
                0 => "Leave out --channel".to_string(),
                last => format!("Give --channel a number from 0 to {last}"),
            };
            let problem = format!("channel {channel} was asked for, the recording has {channels}");
            return Err(Error::file(path, problem).remedy(remedy));
        }
        _ => {}
    }
    if channels > 1 {
        samples = samples.chunks_exact(channels).map(|frame| frame[channel.unwrap_or(0)]).collect();
    }
    if let Some(position) = samples.iter().position(|sample| !sample.is_finite()) {
        return Err(Error::file(path, format!("sample {position} is not a finite number")).remedy(CONVERT));
    }
    Ok(Audio { sample_rate, samples })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::containers::tests::wav_bytes;

    fn error_of(bytes: &[u8], channel: Option<usize>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recording");
        fs::write(&path, bytes).unwrap();
        let text = read_audio(&path, channel).unwrap_err().to_string();
        assert!(text.contains("recording"), "the error must name the file: {text}");
        text
    }

    #[test]
    fn a_missing_file_is_an_error_naming_it() {
        let text = read_audio("absent/yes.wav", None).unwrap_err().to_string();
        assert!(text.contains("absent/yes.wav") && text.contains("Check the path"), "{text}");
    }

    #[test]
    fn an_empty_file_and_another_kind_of_file_are_errors_with_a_remedy() {
        assert!(error_of(b"", None).contains("empty"));
        let text = error_of(b"OggS and more", None);
        assert!(text.contains("no WAV, FLAC or NIST SPHERE") && text.contains("ffmpeg"), "{text}");
    }

    #[test]
    fn stereo_without_a_channel_is_an_error_that_names_the_option() {
        let stereo = wav_bytes(8000, 2, &[1, -1, 2, -2, 3, -3]);
        let text = error_of(&stereo, None);
        assert!(text.contains("2 channels") && text.contains("--channel"), "{text}");
        assert!(error_of(&stereo, Some(2)).contains("from 0 to 1"));
    }

    #[test]
    fn a_chosen_channel_is_read_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stereo.wav");
        fs::write(&path, wav_bytes(8000, 2, &[1, -1, 2, -2, 3, -32768])).unwrap();
        let left = read_audio(&path, Some(0)).unwrap();
        let right = read_audio(&path, Some(1)).unwrap();
        assert_eq!(left, Audio { sample_rate: 8000, samples: vec![1.0, 2.0, 3.0] });
        assert_eq!(right.samples, [-1.0, -2.0, -32768.0]);
    }

    #[test]
    fn a_recording_of_length_zero_is_an_error() {
        assert!(error_of(&wav_bytes(16000, 1, &[]), None).contains("length of zero"));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]
        #[test]
        fn no_bytes_of_a_header_make_the_reader_panic(
            kind in 0usize..4,
            changes in proptest::collection::vec((0usize..80, proptest::prelude::any::<u8>()), 0..6),
            length in 0usize..400,
        ) {
            let mut bytes = match kind {
                0 => wav_bytes(16000, 1, &[5; 150]),
                1 => wav_bytes(8000, 2, &[5; 150]),
                2 => b"NIST_1A\n    128\nsample_rate -i 8000\nsample_n_bytes -i 1\nsample_coding -s4 ulaw\nchannel_count -i 1\nend_head\n".to_vec(),
                _ => b"fLaC\x80\0\0\x22\x01\0\x01\0\0\0\0\0\0\0\x01\xf4\0\xf0\0\0\x04\0".to_vec(),
            };
            bytes.resize(344, 0x11);
            for (place, value) in changes {
                bytes[place] = value;
            }
            bytes.truncate(length);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("recording");
            fs::write(&path, bytes).unwrap();
            let _ = read_audio(&path, Some(0));
        }
    }
}
