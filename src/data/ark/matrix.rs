//! One matrix as its bytes lie in an archive: its header, and its rows as f32.
//!
//! Problems are plain text here; the archive adds the file, the utterance and the remedy.

use std::ops::Range;

use super::compressed::{COLUMN_HEADER_BYTES, Scale, decode_by_column, decode_one_byte, decode_two_byte};

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Encoding {
    /// FM
    Float,
    /// DM
    Double,
    /// CM
    ByColumn(Scale),
    /// CM2
    TwoByte(Scale),
    /// CM3
    OneByte(Scale),
    Text,
}

/// Where the numbers of a matrix are; its bytes have been found complete.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Header {
    pub encoding: Encoding,
    pub rows: usize,
    pub columns: usize,
    /// The data's first byte, counted from the matrix's first.
    start: usize,
}

impl Header {
    /// Reads the header of the matrix that starts at `bytes[0]`; a text matrix, which has none, is read through.
    pub fn parse(bytes: &[u8]) -> Result<Header, String> {
        let Some(binary) = bytes.strip_prefix(b"\0B") else {
            let (rows, columns) = read_text_matrix(bytes, 0..usize::MAX, |_| {})?;
            return Ok(Header { encoding: Encoding::Text, rows, columns, start: 0 });
        };
        let token_end = binary.iter().take(16).position(|&byte| byte == b' ').ok_or("the header has no type")?;
        let (token, mut rest) = (&binary[..token_end], &binary[token_end + 1..]);
        let (encoding, rows, columns) = match token {
            b"FM" | b"DM" => {
                let rows = sized_count(&mut rest)?;
                let columns = sized_count(&mut rest)?;
                (if token == b"FM" { Encoding::Float } else { Encoding::Double }, rows, columns)
            }
            b"CM" | b"CM2" | b"CM3" => {
                let scale = Scale {
                    minimum: f32::from_le_bytes(take(&mut rest)?),
                    range: f32::from_le_bytes(take(&mut rest)?),
                };
                let (rows, columns) = (count(&mut rest)?, count(&mut rest)?);
                let encoding = match token {
                    b"CM" => Encoding::ByColumn(scale),
                    b"CM2" => Encoding::TwoByte(scale),
                    _ => Encoding::OneByte(scale),
                };
                (encoding, rows, columns)
            }
            other => {
                return Err(format!("its type is \"{}\", not one of FM, DM, CM, CM2 and CM3", other.escape_ascii()));
            }
        };
        let header = Header { encoding, rows, columns, start: bytes.len() - rest.len() };
        let needed = header
            .data_bytes()
            .ok_or_else(|| format!("its header says {rows} x {columns}, more than a file can hold"))?;
        if rest.len() < needed {
            return Err(format!(
                "it is truncated: its header says {rows} x {columns}, which takes {needed} bytes, but the file ends after {}",
                rest.len()
            ));
        }
        Ok(header)
    }

    fn data_bytes(&self) -> Option<usize> {
        let numbers = self.rows.checked_mul(self.columns)?;
        match self.encoding {
            Encoding::Float => numbers.checked_mul(4),
            Encoding::Double => numbers.checked_mul(8),
            Encoding::ByColumn(_) => self.columns.checked_mul(COLUMN_HEADER_BYTES)?.checked_add(numbers),
            Encoding::TwoByte(_) => numbers.checked_mul(2),
            Encoding::OneByte(_) => Some(numbers),
            Encoding::Text => Some(0),
        }
    }

    /// Writes some rows to `into`: [rows.len(), columns]. `bytes` are those that [`parse`](Self::parse) was given, and
    /// `rows` lies within the matrix.
    pub fn decode(&self, bytes: &[u8], rows: Range<usize>, into: &mut [f32]) -> Result<(), String> {
        let columns = self.columns;
        let data = &bytes[self.start..];
        match self.encoding {
            Encoding::Float => {
                // The floats lie at any offset, so they are copied as bytes, never viewed in place.
                let source = data[4 * rows.start * columns..4 * rows.end * columns].chunks_exact(4);
                for (value, bytes) in into.iter_mut().zip(source) {
                    *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            Encoding::Double => {
                let mut source = &data[8 * rows.start * columns..8 * rows.end * columns];
                for value in into.iter_mut() {
                    *value = f64::from_le_bytes(take(&mut source)?) as f32;
                }
            }
            Encoding::ByColumn(scale) => decode_by_column(scale, self.rows, columns, data, rows, into),
            Encoding::TwoByte(scale) => decode_two_byte(scale, columns, data, rows, into),
            Encoding::OneByte(scale) => decode_one_byte(scale, columns, data, rows, into),
            Encoding::Text => {
                let mut values = into.iter_mut();
                read_text_matrix(data, rows, |number| {
                    if let Some(value) = values.next() {
                        *value = number;
                    }
                })?;
            }
        }
        Ok(())
    }
}

/// The next `N` bytes.
fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], String> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or("it is truncated: the file ends within its header")?;
    *rest = tail;
    Ok(*head)
}

fn count(rest: &mut &[u8]) -> Result<usize, String> {
    let number = i32::from_le_bytes(take(rest)?);
    usize::try_from(number).map_err(|_| format!("its header is malformed: {number} rows or columns"))
}

/// A count with its own size in bytes before it, as Kaldi writes every integer outside compressed matrices.
fn sized_count(rest: &mut &[u8]) -> Result<usize, String> {
    let [size] = take(rest)?;
    if size != 4 {
        return Err(format!("its header is malformed: an integer of {size} bytes where one of 4 is expected"));
    }
    count(rest)
}

/// Reads `[ 1 2 \n 3 4 ]`: gives the numbers of `rows` to `sink` and returns (rows, columns) of the whole.
fn read_text_matrix(bytes: &[u8], wanted: Range<usize>, mut sink: impl FnMut(f32)) -> Result<(usize, usize), String> {
    let start = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
    let Some(start) = start.filter(|&start| bytes[start] == b'[') else {
        return Err("it is no matrix: neither a binary header nor \"[\" stands there".into());
    };
    let length =
        bytes[start..].iter().position(|&byte| byte == b']').ok_or("it is truncated: its text has no \"]\"")?;
    let body = std::str::from_utf8(&bytes[start + 1..start + length]).map_err(|_| "its text is not UTF-8")?;
    let (mut rows, mut columns) = (0, 0);
    for line in body.lines() {
        let mut numbers = 0;
        for word in line.split_ascii_whitespace() {
            let number: f32 = word.parse().map_err(|_| format!("\"{word}\" in row {rows} is not a number"))?;
            if wanted.contains(&rows) {
                sink(number);
            }
            numbers += 1;
        }
        if numbers == 0 {
            continue;
        }
        if rows > 0 && numbers != columns {
            return Err(format!("row {rows} has {numbers} numbers, the rows before it {columns}"));
        }
        columns = numbers;
        rows += 1;
    }
    Ok((rows, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> (usize, usize, Vec<f32>) {
        let header = Header::parse(bytes).unwrap();
        let mut values = vec![f32::NAN; header.rows * header.columns];
        header.decode(bytes, 0..header.rows, &mut values).unwrap();
        (header.rows, header.columns, values)
    }

    #[test]
    fn doubles_are_rounded_to_floats() {
        let mut bytes = b"\0BDM \x04\x02\0\0\0\x04\x01\0\0\0".to_vec();
        bytes.extend([0.1_f64, -2.5].iter().flat_map(|value| value.to_le_bytes()));
        assert_eq!(decoded(&bytes), (2, 1, vec![0.1_f32, -2.5]));
    }

    #[test]
    fn the_three_compressed_forms_are_told_apart() {
        let head = |token: &str| {
            let mut bytes = format!("\0B{token} ").into_bytes();
            bytes.extend(1.0_f32.to_le_bytes());
            bytes.extend(255.0_f32.to_le_bytes());
            bytes.extend(2_i32.to_le_bytes());
            bytes.extend(1_i32.to_le_bytes());
            bytes
        };
        let mut three = head("CM3");
        three.extend([0, 2]);
        assert_eq!(decoded(&three), (2, 1, vec![1.0, 3.0]));
        let mut two = head("CM2");
        two.extend([0, 0, 0xff, 0xff]);
        assert_eq!(decoded(&two), (2, 1, vec![1.0, 256.0]));
        let mut one = head("CM");
        one.extend([0, 0, 0, 0, 0, 0, 0xff, 0xff]); // points 1, 1, 1 and 256
        one.extend([10, 255]);
        assert_eq!(decoded(&one), (2, 1, vec![1.0, 256.0]));
    }

    #[test]
    fn text_matrices_are_read_with_kaldis_line_breaks() {
        let (rows, columns, values) = decoded(b" [\n  1 2.5\n  -3e-2 4 ]\nb [ 7 ]");
        assert_eq!((rows, columns, values), (2, 2, vec![1.0, 2.5, -0.03, 4.0]));
        assert_eq!(decoded(b"[ ]").0, 0);
        let header = Header::parse(b"[ 1 2\n3 4\n5 6 ]").unwrap();
        let mut middle = [0.0; 2];
        header.decode(b"[ 1 2\n3 4\n5 6 ]", 1..2, &mut middle).unwrap();
        assert_eq!(middle, [3.0, 4.0]);
    }

    #[test]
    fn malformed_matrices_are_errors_and_never_panics() {
        let cases: [(&[u8], &str); 12] = [
            (b"", "no matrix"),
            (b"\0B", "no type"),
            (b"\0BFV \x04\x01\0\0\0", "type is \"FV\""),
            (b"RIFF....", "no matrix"),
            (b"\0BFM \x08\x01\0\0\0", "an integer of 8 bytes"),
            (b"\0BFM \x04\xff\xff\xff\xff\x04\x01\0\0\0", "-1 rows"),
            (b"\0BFM \x04\x01\0\0", "within its header"),
            (b"\0BFM \x04\x01\0\0\0\x04\x02\0\0\0\0\0\0\0", "takes 8 bytes, but the file ends after 4"),
            (b"\0BCM \0\0\0\0\0\0\0\0\xff\xff\xff\x7f\xff\xff\xff\x7f", "truncated"),
            (b"[ 1 2", "has no \"]\""),
            (b"[ 1 x ]", "\"x\" in row 0"),
            (b"[ 1 2\n 3 ]", "row 1 has 1 numbers"),
        ];
        for (bytes, expected) in cases {
            let problem = Header::parse(bytes).unwrap_err();
            assert!(problem.contains(expected), "{problem:?} lacks {expected:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_header_parser_panic(tail in proptest::collection::vec(proptest::num::u8::ANY, 0..60), kind in 0_usize..7) {
            let mut bytes = [b"\0BFM ".as_slice(), b"\0BDM ", b"\0BCM ", b"\0BCM2 ", b"\0BCM3 ", b"[ ", b""][kind].to_vec();
            bytes.extend(tail);
            if let Ok(header) = Header::parse(&bytes) && header.rows * header.columns < 1000 {
                let mut values = vec![0.0; header.rows * header.columns];
                header.decode(&bytes, 0..header.rows, &mut values).unwrap();
            }
        }
    }
}
