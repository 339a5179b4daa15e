//! NIST SPHERE files: a header of text lines, then samples. 16-bit PCM in both byte orders and mu-law are read.
//!
//! ```text
//! NIST_1A
//!    1024
//! sample_rate -i 16000
//! sample_byte_format -s2 01
//! end_head
//! ```
//! Source: the header's description in the manual of NIST's SPHERE library.

use std::collections::HashMap;
use std::path::Path;

use crate::audio::reader::Interleaved;
use crate::error::{Error, Result};

/// The length of the first two lines, which say where the samples begin.
const PREAMBLE: usize = 16;

/// More channels than any recording has: the header is broken.
const MOST_CHANNELS: usize = 256;

/// The fields of a header, by name.
struct Header<'a> {
    path: &'a Path,
    fields: HashMap<&'a str, &'a str>,
    /// Where the samples begin.
    length: usize,
}

fn broken(path: &Path, problem: impl Into<String>) -> Error {
    Error::file(path, problem).remedy("Copy or download the file again; if it stays so, repair it with sph2pipe or sox")
}

impl<'a> Header<'a> {
    fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let preamble = bytes.get(..PREAMBLE).and_then(|head| std::str::from_utf8(head).ok());
        let length = preamble
            .and_then(|head| head.strip_prefix("NIST_1A\n"))
            .and_then(|line| line.trim().parse::<usize>().ok())
            .filter(|&length| length > PREAMBLE)
            .ok_or_else(|| broken(path, "the SPHERE header does not begin with NIST_1A and its own length"))?;
        let text = bytes
            .get(PREAMBLE..length)
            .ok_or_else(|| broken(path, format!("the file ends inside its SPHERE header of {length} bytes")))?;
        // What follows end_head is padding of any bytes.
        let end = text
            .windows(8)
            .position(|part| part == b"end_head")
            .ok_or_else(|| broken(path, "the SPHERE header has no line end_head"))?;
        let text = std::str::from_utf8(&text[..end]).map_err(|_| broken(path, "the SPHERE header is not text"))?;
        let mut fields = HashMap::new();
        for line in text.lines() {
            let mut parts = line.splitn(3, ' ');
            // A value may hold spaces: name, type, and all the rest.
            if let (Some(name), Some(_), Some(value)) = (parts.next(), parts.next(), parts.next()) {
                fields.insert(name, value.trim());
            }
        }
        Ok(Header { path, fields, length })
    }

    fn integer(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.fields.get(name) else { return Ok(None) };
        let number = value.parse::<usize>();
        number.map(Some).map_err(|_| broken(self.path, format!("the SPHERE header says {name} = {value:?}, no number")))
    }

    fn required(&self, name: &str) -> Result<usize> {
        self.integer(name)?.ok_or_else(|| broken(self.path, format!("the SPHERE header does not say {name}")))
    }
}

/// How a sample is stored.
#[derive(Clone, Copy, PartialEq)]
enum Coding {
    LittleEndian,
    BigEndian,
    MuLaw,
}

impl Coding {
    fn bytes(self) -> usize {
        if self == Coding::MuLaw { 1 } else { 2 }
    }
}

fn coding(header: &Header) -> Result<Coding> {
    let path = header.path;
    let name = header.fields.get("sample_coding").copied().unwrap_or("pcm");
    if name.contains("shorten") || name.contains("shortpack") || name.contains("wavpack") {
        return Err(Error::file(path, format!("the samples are compressed ({name})"))
            .remedy("Uncompress it with sph2pipe -f wav IN OUT.wav (sox reads no such file)"));
    }
    let width = header.integer("sample_n_bytes")?;
    let order = header.fields.get("sample_byte_format").copied();
    match (name, width, order) {
        ("ulaw" | "mu-law", None | Some(1), _) => Ok(Coding::MuLaw),
        ("pcm", Some(2), Some("01")) => Ok(Coding::LittleEndian),
        ("pcm", Some(2), Some("10")) => Ok(Coding::BigEndian),
        ("pcm", Some(2), _) => {
            let said = order.unwrap_or("nothing");
            Err(broken(path, format!("the SPHERE header must say sample_byte_format 01 or 10, it says {said}")))
        }
        _ => {
            let width = width.map_or("an unknown number of".to_string(), |width| width.to_string());
            Err(Error::file(
                path,
                format!("the samples are stored as {name} of {width} bytes; pcm of 2 and ulaw of 1 are read"),
            )
            .remedy("Convert it with sox IN.sph -b 16 -e signed OUT.wav or sph2pipe -f wav IN.sph OUT.wav"))
        }
    }
}

/// The value of a mu-law byte on the scale of 16-bit integers. Source: ITU-T G.711.
fn mu_law(byte: u8) -> f32 {
    let byte = !byte;
    let magnitude = ((i32::from(byte & 0x0f) << 3) + 0x84) << ((byte >> 4) & 0x07);
    let value = magnitude - 0x84;
    (if byte & 0x80 != 0 { -value } else { value }) as f32
}

/// All channels of a SPHERE file.
pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Interleaved> {
    let header = Header::parse(path, bytes)?;
    let coding = coding(&header)?;
    let channels = header.integer("channel_count")?.unwrap_or(1);
    let sample_rate = u32::try_from(header.required("sample_rate")?)
        .map_err(|_| broken(path, "the SPHERE header's sample_rate is impossible"))?;
    if !(1..=MOST_CHANNELS).contains(&channels) {
        return Err(broken(path, format!("the SPHERE header says channel_count = {channels}")));
    }
    let order = header.fields.get("channels_interleaved").copied().unwrap_or("TRUE");
    if channels > 1 && order.eq_ignore_ascii_case("false") {
        let problem = format!("its {channels} channels stand one behind the other (channels_interleaved is {order})");
        return Err(Error::file(path, problem).remedy(
            "Write each channel to a file of its own, for example with sph2pipe or sox, and listen to the result",
        ));
    }
    let data = &bytes[header.length..];
    let frame_bytes = coding.bytes() * channels;
    let present = data.len() / frame_bytes;
    // sample_count counts each channel for itself.
    let frames = header.integer("sample_count")?.unwrap_or(present);
    if frames > present {
        let problem = format!("the file is truncated: its header says {frames} samples, {present} are there");
        return Err(Error::file(path, problem).remedy("Copy or download it again"));
    }
    let data = &data[..frames * frame_bytes];
    let samples = match coding {
        Coding::MuLaw => data.iter().map(|&byte| mu_law(byte)).collect(),
        Coding::LittleEndian => data.as_chunks().0.iter().map(|&pair| f32::from(i16::from_le_bytes(pair))).collect(),
        Coding::BigEndian => data.as_chunks().0.iter().map(|&pair| f32::from(i16::from_be_bytes(pair))).collect(),
    };
    Ok(Interleaved { sample_rate, channels, samples })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(fields: &[&str], data: &[u8]) -> Vec<u8> {
        let mut bytes = b"NIST_1A\n   1024\n".to_vec();
        for field in fields.iter().chain(&["end_head"]) {
            bytes.extend_from_slice(field.as_bytes());
            bytes.push(b'\n');
        }
        bytes.resize(1024, b' ');
        bytes.extend_from_slice(data);
        bytes
    }

    fn read(fields: &[&str], data: &[u8]) -> Result<Interleaved> {
        decode(Path::new("speech.sph"), &file(fields, data))
    }

    fn error(fields: &[&str], data: &[u8]) -> String {
        let text = read(fields, data).err().expect("an error").to_string();
        assert!(text.starts_with("speech.sph"), "{text}");
        text
    }

    #[test]
    fn both_byte_orders_are_read() {
        let common = ["sample_rate -i 16000", "sample_n_bytes -i 2", "sample_count -i 2", "channel_count -i 1"];
        let mut fields = common.to_vec();
        fields.push("sample_byte_format -s2 01");
        assert_eq!(read(&fields, &[1, 0, 0xff, 0xff]).unwrap().samples, [1.0, -1.0]);
        fields[4] = "sample_byte_format -s2 10";
        let audio = read(&fields, &[0, 1, 0x80, 0]).unwrap();
        assert_eq!((audio.samples, audio.sample_rate), (vec![1.0, -32768.0], 16000));
    }

    #[test]
    fn mu_law_has_the_values_of_g711() {
        let fields = ["sample_rate -i 8000", "sample_n_bytes -i 1", "sample_coding -s4 ulaw", "channel_count -i 1"];
        let audio = read(&fields, &[0xff, 0x7f, 0x80, 0x00, 0xfe, 0xef]).unwrap();
        assert_eq!(audio.samples, [0.0, 0.0, 32124.0, -32124.0, 8.0, 132.0]);
    }

    #[test]
    fn channels_that_are_not_interleaved_are_an_error_rather_than_mixed_up() {
        let fields = |channels: &'static str, order: &'static str| {
            ["sample_rate -i 8000", "sample_n_bytes -i 1", "sample_coding -s4 ulaw", channels, order]
        };
        let text = error(&fields("channel_count -i 2", "channels_interleaved -s5 FALSE"), &[0xff; 4]);
        assert!(text.contains("channels_interleaved is FALSE") && text.contains("sph2pipe"), "{text}");
        for (channels, order) in [
            ("channel_count -i 2", "channels_interleaved -s4 TRUE"),
            ("channel_count -i 1", "channels_interleaved -s5 FALSE"),
        ] {
            assert_eq!(read(&fields(channels, order), &[0xff; 4]).unwrap().samples, [0.0; 4]);
        }
    }

    #[test]
    fn compressed_samples_are_an_error_naming_sph2pipe() {
        let text = error(&["sample_rate -i 16000", "sample_coding -s26 pcm,embedded-shorten-v2.00"], &[]);
        assert!(text.contains("compressed") && text.contains("sph2pipe"), "{text}");
        let text = error(&["sample_rate -i 8000", "sample_n_bytes -i 1", "sample_coding -s4 alaw"], &[]);
        assert!(text.contains("alaw") && text.contains("sox"), "{text}");
    }

    #[test]
    fn a_truncated_file_and_a_broken_header_are_errors() {
        let fields = ["sample_rate -i 8000", "sample_n_bytes -i 1", "sample_coding -s4 ulaw", "sample_count -i 9"];
        assert!(error(&fields, &[0; 8]).contains("says 9 samples, 8 are there"));
        assert!(error(&["sample_n_bytes -i 1", "sample_coding -s4 ulaw"], &[0]).contains("does not say sample_rate"));
        assert!(error(&["sample_rate -i 16000", "sample_n_bytes -i 2"], &[]).contains("sample_byte_format"));
        let short = decode(Path::new("speech.sph"), b"NIST_1A\n   1024\nsample_rate").err().unwrap().to_string();
        assert!(short.contains("ends inside its SPHERE header"), "{short}");
    }
}
