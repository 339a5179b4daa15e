//! WAV and FLAC, decoded by symphonia. What symphonia lets pass is checked here: a file shorter than its header says, and a FLAC
//! checksum that does not agree.

use std::io::Cursor;
use std::path::Path;

use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as DecodeError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

use crate::audio::reader::{CONVERT, Interleaved};
use crate::error::{Error, Result};

/// Full scale of a decoded sample is 1; ours is that of 16-bit integers. A power of two: exact.
const SCALE: f32 = 32768.0;

/// Data lengths from here on are what programs write that do not know the length yet (a pipe); then the file's end counts.
const LENGTH_UNKNOWN: u32 = 0x7fff_f000;

fn truncated(path: &Path, said: u64, present: u64, unit: &str) -> Error {
    Error::file(path, format!("the file is truncated: its header says {said} {unit}, {present} are there"))
        .remedy("Copy or download it again")
}

fn undecodable(path: &Path, error: &DecodeError) -> Error {
    Error::file(path, format!("it cannot be decoded: {error}")).remedy(CONVERT)
}

/// Compares the data chunk with the bytes that are there, and fills in lengths that the writing program did not know.
fn check_wav(path: &Path, bytes: &mut [u8]) -> Result<()> {
    let total = bytes.len();
    let mut position = 12;
    while let Some(header) = bytes.get(position..position + 8) {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        if &header[..4] != b"data" {
            // Chunks begin at even places.
            position = position.saturating_add(8 + length as usize + (length as usize & 1));
            continue;
        }
        let present = total - position - 8;
        if length >= LENGTH_UNKNOWN && length as usize > present {
            let (data, riff) = (u32::try_from(present), u32::try_from(total - 8));
            let (Ok(data), Ok(riff)) = (data, riff) else {
                return Err(Error::file(path, "the recording is longer than a WAV file can say").remedy(CONVERT));
            };
            bytes[position + 4..position + 8].copy_from_slice(&data.to_le_bytes());
            bytes[4..8].copy_from_slice(&riff.to_le_bytes());
        } else if length as usize > present {
            return Err(truncated(path, u64::from(length), present as u64, "bytes of samples"));
        }
        return Ok(());
    }
    Err(Error::file(path, "the WAV file has no samples (no data chunk)").remedy("Copy or download it again"))
}

pub(super) fn decode_wav(path: &Path, mut bytes: Vec<u8>) -> Result<Interleaved> {
    check_wav(path, &mut bytes)?;
    decode(path, bytes, "wav")
}

pub(super) fn decode_flac(path: &Path, bytes: Vec<u8>) -> Result<Interleaved> {
    decode(path, bytes, "flac")
}

fn decode(path: &Path, bytes: Vec<u8>, extension: &str) -> Result<Interleaved> {
    let stream = MediaSourceStream::new(Box::new(Cursor::new(bytes)), Default::default());
    let mut hint = Hint::new();
    hint.with_extension(extension);
    let mut format = symphonia::default::get_probe()
        .probe(&hint, stream, FormatOptions::default(), MetadataOptions::default())
        .map_err(|error| undecodable(path, &error))?;
    let no_audio = || Error::file(path, "the file has no audio track").remedy(CONVERT);
    let track = format.default_track(TrackType::Audio).ok_or_else(no_audio)?;
    let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio()).ok_or_else(no_audio)?;
    let (track_id, said) = (track.id, track.num_frames);
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(parameters, &AudioDecoderOptions::default().verify(true))
        .map_err(|error| undecodable(path, &error))?;
    let declared_rate = parameters.sample_rate;
    let declared_channels = parameters.channels.as_ref().map(|channels| channels.count());

    let mut audio = Interleaved {
        sample_rate: declared_rate.unwrap_or(0),
        channels: declared_channels.unwrap_or(0),
        samples: Vec::new(),
    };
    decode_packets(path, format.as_mut(), decoder.as_mut(), track_id, &mut audio)?;

    let present = audio.samples.len().checked_div(audio.channels).unwrap_or(0) as u64;
    // A FLAC stream may leave its length open (0).
    if let Some(said) = said.filter(|&said| said > present && said > 0) {
        return Err(truncated(path, said, present, "samples"));
    }
    if decoder.finalize().verify_ok == Some(false) {
        return Err(Error::file(path, "the samples do not agree with the file's checksum")
            .remedy("Copy or download it again, or make a new file from the original recording"));
    }
    Ok(audio)
}

fn decode_packets(
    path: &Path,
    format: &mut dyn FormatReader,
    decoder: &mut dyn AudioDecoder,
    track_id: u32,
    audio: &mut Interleaved,
) -> Result<()> {
    let mut packet_samples = Vec::<f32>::new();
    // A recording that was cut out of a longer one may go on counting.
    let mut began = None;
    loop {
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(()),
            // The stream ends inside a packet: the caller compares the lengths and says what is missing.
            Err(DecodeError::IoError(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(undecodable(path, &error)),
        };
        if packet.track_id != track_id {
            continue;
        }
        // A packet that does not decode is passed over by the library; it is missed where the next one says when it begins.
        let so_far = audio.samples.len().checked_div(audio.channels).unwrap_or(0) as i64;
        let at = packet.pts.get() - *began.get_or_insert(packet.pts.get());
        if at != so_far {
            return Err(Error::file(path, format!("it is damaged: samples {so_far} to {at} cannot be decoded"))
                .remedy("Copy or download it again, or make a new file from the original recording"));
        }
        let decoded = decoder.decode(&packet).map_err(|error| undecodable(path, &error))?;
        let spec = decoded.spec();
        let (rate, channels) = (spec.rate(), spec.channels().count());
        if !audio.samples.is_empty() && (rate, channels) != (audio.sample_rate, audio.channels) {
            return Err(
                Error::file(path, "the sample rate or the number of channels changes inside the file").remedy(CONVERT)
            );
        }
        (audio.sample_rate, audio.channels) = (rate, channels);
        decoded.copy_to_vec_interleaved(&mut packet_samples);
        audio.samples.extend(packet_samples.iter().map(|sample| sample * SCALE));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A WAV file of 16-bit samples; `samples` has the channels interleaved.
    pub fn wav_bytes(rate: u32, channels: u16, samples: &[i16]) -> Vec<u8> {
        let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
        wav_bytes_of(rate, channels, 1, 16, &data)
    }

    /// `coding` 1 is PCM, 3 floats, 7 mu-law.
    fn wav_bytes_of(rate: u32, channels: u16, coding: u16, bits: u16, data: &[u8]) -> Vec<u8> {
        let block = channels * bits / 8;
        let mut bytes = b"RIFF".to_vec();
        // Codings other than PCM say the length of what they add: nothing.
        let extension: &[u8] = if coding == 1 { &[] } else { &[0, 0] };
        let format_length = 16 + extension.len() as u32;
        bytes.extend_from_slice(&(20 + format_length + data.len() as u32).to_le_bytes());
        bytes.extend_from_slice(b"WAVEfmt ");
        bytes.extend_from_slice(&format_length.to_le_bytes());
        bytes.extend_from_slice(&coding.to_le_bytes());
        bytes.extend_from_slice(&channels.to_le_bytes());
        bytes.extend_from_slice(&rate.to_le_bytes());
        bytes.extend_from_slice(&(rate * u32::from(block)).to_le_bytes());
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes.extend_from_slice(&bits.to_le_bytes());
        bytes.extend_from_slice(extension);
        bytes.extend_from_slice(b"data");
        bytes.extend_from_slice(&(data.len() as u32).to_le_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn path() -> &'static Path {
        Path::new("yes.wav")
    }

    #[test]
    fn every_width_comes_out_on_the_scale_of_16_bits() {
        let read =
            |coding, bits, data: &[u8]| decode_wav(path(), wav_bytes_of(16000, 1, coding, bits, data)).unwrap().samples;
        assert_eq!(read(1, 16, &[1, 0, 0, 0x80]), [1.0, -32768.0]);
        assert_eq!(read(1, 8, &[128, 129, 0]), [0.0, 256.0, -32768.0]);
        assert_eq!(read(1, 24, &[0, 1, 0, 0x80, 0, 0]), [1.0, 0.5]);
        assert_eq!(read(1, 32, &[0, 0, 1, 0]), [1.0]);
        assert_eq!(read(3, 32, &(-0.5f32).to_le_bytes()), [-16384.0]);
        assert_eq!(read(7, 8, &[0xff, 0x80, 0x00]), [0.0, 32124.0, -32124.0]);
    }

    #[test]
    fn a_truncated_wav_is_an_error_saying_how_much_is_missing() {
        let mut bytes = wav_bytes(16000, 1, &[7; 1000]);
        bytes.truncate(44 + 600);
        let text = decode_wav(path(), bytes).err().unwrap().to_string();
        assert!(text.contains("yes.wav") && text.contains("2000") && text.contains("600"), "{text}");
    }

    #[test]
    fn a_wav_without_samples_and_with_a_wrong_header_is_an_error() {
        let text = decode_wav(path(), b"RIFF\x04\0\0\0WAVE".to_vec()).err().unwrap().to_string();
        assert!(text.contains("no data chunk"), "{text}");
        let mut bytes = wav_bytes(16000, 1, &[7; 10]);
        bytes[20] = 0x55; // MPEG layer 3 inside WAV
        let text = decode_wav(path(), bytes).err().unwrap().to_string();
        assert!(text.contains("cannot be decoded") && text.contains("sox"), "{text}");
    }

    #[test]
    fn a_wav_written_into_a_pipe_is_read_to_its_end() {
        for length in [u32::MAX, 0x7fff_ffff] {
            let mut bytes = wav_bytes(16000, 1, &[7; 5000]);
            bytes[40..44].copy_from_slice(&length.to_le_bytes());
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            assert_eq!(decode_wav(path(), bytes).unwrap().samples, [7.0; 5000]);
        }
    }

    /// A FLAC file of 16-bit mono: verbatim blocks of 256 samples, with the checksums that the format asks for.
    fn flac_bytes(rate: u32, samples: &[i16], said: u64, md5: [u8; 16]) -> Vec<u8> {
        use symphonia::core::checksum::{Crc8Ccitt, Crc16Ansi};
        use symphonia::core::io::Monitor;

        const BLOCK: usize = 256;
        let mut bytes = b"fLaC".to_vec();
        bytes.extend_from_slice(&[0x80, 0, 0, 34]); // the last metadata block: stream information, 34 bytes
        bytes.extend_from_slice(&[1, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // blocks of 256 samples, sizes in bytes unknown
        // Rate (20 bits), channels - 1 (3), bits - 1 (5), samples (36).
        let information = u64::from(rate) << 44 | 15 << 36 | said;
        bytes.extend_from_slice(&information.to_be_bytes());
        bytes.extend_from_slice(&md5);
        for (number, block) in samples.chunks(BLOCK).enumerate() {
            assert!(block.len() == BLOCK && number < 128, "the header below says so");
            // Sync code; block size 256, rate as in the stream information; mono, 16 bits; the block's number.
            let mut frame = vec![0xff, 0xf8, 0x80, 0x08, number as u8];
            let mut checksum = Crc8Ccitt::new(0);
            checksum.process_buf_bytes(&frame);
            frame.push(checksum.crc());
            frame.push(0x02); // verbatim, no wasted bits
            frame.extend(block.iter().flat_map(|sample| sample.to_be_bytes()));
            let mut checksum = Crc16Ansi::new(0);
            checksum.process_buf_bytes(&frame);
            frame.extend_from_slice(&checksum.crc().to_be_bytes());
            bytes.extend(frame);
        }
        bytes
    }

    fn md5(samples: &[i16]) -> [u8; 16] {
        use symphonia::core::io::Monitor;
        let mut md5 = symphonia::core::checksum::Md5::default();
        samples.iter().for_each(|sample| md5.process_buf_bytes(&sample.to_le_bytes()));
        md5.md5()
    }

    #[test]
    fn flac_gives_its_samples() {
        let samples: Vec<i16> = (0..1024).map(|index| (index * 61 % 4001 - 2000) as i16).collect();
        let audio = decode_flac(path(), flac_bytes(8000, &samples, 1024, md5(&samples))).unwrap();
        assert_eq!((audio.sample_rate, audio.channels), (8000, 1));
        assert!(audio.samples.iter().zip(&samples).all(|(ours, sample)| *ours == f32::from(*sample)));
        assert_eq!(audio.samples.len(), 1024);
        // A length of 0 means that the encoder did not know it.
        assert_eq!(decode_flac(path(), flac_bytes(8000, &samples, 0, md5(&samples))).unwrap().samples.len(), 1024);
    }

    #[test]
    fn a_truncated_and_a_corrupt_flac_are_errors() {
        let samples = [123; 1024];
        let whole = flac_bytes(8000, &samples, 1024, md5(&samples));
        // The last two bytes are a checksum, without which the samples are still whole.
        for length in [whole.len() - 3, whole.len() - 600, 100, 42, 20] {
            assert!(decode_flac(path(), whole[..length].to_vec()).is_err(), "{length} of {}", whole.len());
        }
        let text = decode_flac(path(), flac_bytes(8000, &samples, 1024, [7; 16])).err().unwrap().to_string();
        assert!(text.contains("checksum"), "{text}");
        // A block that cannot be read is missed, even where the file does not say how long it is.
        for said in [0, 1024] {
            let mut spoilt = flac_bytes(8000, &samples, said, [0; 16]);
            let middle = spoilt.len() / 2;
            spoilt[middle] ^= 1;
            let text = decode_flac(path(), spoilt).err().unwrap().to_string();
            assert!(text.contains("it is damaged: samples"), "{text}");
        }
    }
}
