//! TensorBoard event files: scalars only, written by hand.
//!
//! A file is a sequence of records (TensorFlow's TFRecord): length (u64), masked CRC-32C of the length (u32), the data, masked CRC-32C of the
//! data (u32), all little-endian. The data is a protocol-buffers message `Event`, of which these fields are used:
//!
//! ```text
//! Event        1 wall_time: double   2 step: int64   3 file_version: string   5 summary: Summary   7 session_log: SessionLog
//! Summary      1 value: repeated Value       Value  1 tag: string   2 simple_value: float
//! SessionLog   1 status: enum (1 = START)
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Result;
use crate::files::{create_folder, write_error};

/// An event file that is being written.
#[derive(Debug)]
pub struct TensorBoard {
    path: PathBuf,
    file: BufWriter<File>,
}

impl TensorBoard {
    /// Starts a new event file in `folder`. `first_step` is the first step that will be written: TensorBoard then drops
    /// what an earlier file, of a process that was killed, has from that step on.
    ///
    /// # Errors
    /// The folder or the file cannot be written.
    pub fn create(folder: impl AsRef<Path>, first_step: u64) -> Result<Self> {
        let folder = folder.as_ref();
        create_folder(folder)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Files are read in the order of their names.
        let name = format!(
            "events.out.tfevents.{:010}.headfirst.{:09}.{}",
            now.as_secs(),
            now.subsec_nanos(),
            std::process::id()
        );
        let path = folder.join(name);
        let file =
            OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| write_error(&path, &error))?;
        let mut board = TensorBoard { path, file: BufWriter::new(file) };
        let mut version = event(now.as_secs_f64(), None);
        bytes_field(&mut version, 3, b"brain.Event:2");
        board.write(&version)?;
        let mut start = event(now.as_secs_f64(), Some(first_step));
        bytes_field(&mut start, 7, &[1 << 3, 1]);
        board.write(&start)?;
        board.flush()?;
        Ok(board)
    }

    /// Adds a point to the curve `tag` (`valid/loss`). `wall_time` is in seconds since 1970.
    pub fn scalar(&mut self, tag: &str, step: u64, wall_time: f64, value: f64) -> Result<()> {
        let mut point = Vec::new();
        bytes_field(&mut point, 1, tag.as_bytes());
        key(&mut point, 2, WIRE_32_BITS);
        point.extend((value as f32).to_le_bytes());
        let mut summary = Vec::new();
        bytes_field(&mut summary, 1, &point);
        let mut message = event(wall_time, Some(step));
        bytes_field(&mut message, 5, &summary);
        self.write(&message)
    }

    /// Brings what was written to the disk; call it after each epoch.
    pub fn flush(&mut self) -> Result<()> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        flushed.map_err(|error| write_error(&self.path, &error))
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        write_record(&mut self.file, data).map_err(|error| write_error(&self.path, &error))
    }
}

/// Seconds since 1970, for [`TensorBoard::scalar`].
pub fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn write_record(writer: &mut impl Write, data: &[u8]) -> io::Result<()> {
    let length = (data.len() as u64).to_le_bytes();
    writer.write_all(&length)?;
    writer.write_all(&masked_crc(&length).to_le_bytes())?;
    writer.write_all(data)?;
    writer.write_all(&masked_crc(data).to_le_bytes())
}

/// Rotated and offset, as TFRecord has it, so that a checksum of data that holds checksums is still a good one.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: an epoch writes a few hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let one_bit = |crc: u32| (crc >> 1) ^ (REVERSED_POLYNOMIAL & (crc & 1).wrapping_neg());
    !data.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| one_bit(crc)))
}

const WIRE_VARINT: u64 = 0;
const WIRE_64_BITS: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_32_BITS: u64 = 5;

/// The beginning of every event.
fn event(wall_time: f64, step: Option<u64>) -> Vec<u8> {
    let mut message = Vec::new();
    key(&mut message, 1, WIRE_64_BITS);
    message.extend(wall_time.to_le_bytes());
    if let Some(step) = step {
        key(&mut message, 2, WIRE_VARINT);
        varint(&mut message, step);
    }
    message
}

fn key(message: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(message, field << 3 | wire_type);
}

fn bytes_field(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(message, field, WIRE_BYTES);
    varint(message, bytes.len() as u64);
    message.extend(bytes);
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a message, by a decoder that shares nothing with the writer: (field, number or fixed bits, bytes).
    fn decode(mut message: &[u8]) -> Vec<(u64, u64, &[u8])> {
        fn number(message: &mut &[u8]) -> u64 {
            let length = 1 + message.iter().position(|byte| byte & 128 == 0).unwrap();
            let (digits, rest) = message.split_at(length);
            *message = rest;
            digits.iter().rev().fold(0, |sum, digit| sum * 128 + u64::from(digit % 128))
        }
        let mut fields = Vec::new();
        while !message.is_empty() {
            let key = number(&mut message);
            let length = match key % 8 {
                0 => {
                    fields.push((key / 8, number(&mut message), &[][..]));
                    continue;
                }
                1 => 8,
                2 => number(&mut message) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            let (bytes, rest) = message.split_at(length);
            message = rest;
            fields.push((key / 8, 0, bytes));
        }
        fields
    }

    /// The records of a file, their checksums checked with a table-driven CRC.
    fn records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let table: Vec<u32> = (0..256u32)
            .map(|byte| (0..8).fold(byte, |crc, _| if crc % 2 == 1 { (crc / 2) ^ 0x82F63B78 } else { crc / 2 }))
            .collect();
        let check = |data: &[u8], masked: &[u8]| {
            let mut crc = u32::MAX;
            for byte in data {
                crc = table[((crc ^ u32::from(*byte)) & 255) as usize] ^ (crc >> 8);
            }
            let crc = !crc;
            let expected = crc.rotate_right(15).wrapping_add(0xa282ead8);
            assert_eq!(masked, expected.to_le_bytes());
        };
        let mut found = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            check(&file[..8], &file[8..12]);
            check(&file[12..12 + length], &file[12 + length..16 + length]);
            found.push(file[12..12 + length].to_vec());
            file = &file[16 + length..];
        }
        found
    }

    #[test]
    fn another_decoder_reads_the_curves_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(folder.path().join("tensorboard"), 300).unwrap();
        board.scalar("valid/loss", 300, 1.7e9, 12.25).unwrap();
        board.scalar("valid/cer", 1 << 40, 1.7e9 + 0.5, f64::INFINITY).unwrap();
        board.flush().unwrap();
        let file = std::fs::read(&board.path).unwrap();
        let records = records(&file);
        assert_eq!(records.len(), 4);
        assert_eq!(decode(&records[0])[1], (3, 0, &b"brain.Event:2"[..]));
        let start = decode(&records[1]);
        assert_eq!((start[1], decode(start[2].2)), ((2, 300, &[][..]), vec![(1, 1, &[][..])]));
        let expected = [("valid/loss", 300, 1.7e9, 12.25f32), ("valid/cer", 1 << 40, 1.7e9 + 0.5, f32::INFINITY)];
        for (record, (tag, step, time, value)) in records[2..].iter().zip(expected) {
            let event = decode(record);
            assert_eq!(event[0], (1, 0, &f64::to_le_bytes(time)[..]));
            assert_eq!(event[1], (2, step, &[][..]));
            assert_eq!(event[2].0, 5);
            let point = decode(decode(event[2].2)[0].2);
            assert_eq!(point, [(1, 0, tag.as_bytes()), (2, 0, &value.to_le_bytes()[..])]);
        }
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value of CRC-32C in the catalogues of checksums, and RFC 3720's vector of 32 zeros.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = TensorBoard::create(&file, 0).unwrap_err().to_string();
        assert!(error.contains("cannot be written"), "{error}");
    }
}
