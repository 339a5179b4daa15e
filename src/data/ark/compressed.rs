//! Kaldi's compressed matrices, decoded with the arithmetic of its `compressed-matrix.cc`, f32 and f64 where it has them, so that the
//! values are the same bits.
//!
//! ```text
//! CM     per column four u16 (the 0, 25, 75 and 100 per cent points of its values), then u8 codes column by column: 0 to 64 lie
//!        linearly between the first two points, 64 to 192 between the next two, 192 to 255 between the last two
//! CM2    u16 codes row by row, linear from minimum to minimum + range
//! CM3    u8 codes row by row, linear likewise
//! ```

use std::ops::Range;

/// What stands at the head of every compressed matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    pub minimum: f32,
    pub range: f32,
}

/// Bytes of the four points that stand before the codes of a CM, for each column.
pub const COLUMN_HEADER_BYTES: usize = 8;

fn two_bytes(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

/// CM. `data`: [columns, 8] points, then [columns, all_rows] codes; `into`: [rows, columns].
pub fn decode_by_column(
    scale: Scale,
    all_rows: usize,
    columns: usize,
    data: &[u8],
    rows: Range<usize>,
    into: &mut [f32],
) {
    let (points, codes) = data.split_at(columns * COLUMN_HEADER_BYTES);
    // Kaldi's own decimal for 1 / 65535, an f32 there.
    let value_of = |code: u16| scale.minimum + scale.range * 1.525_902_2e-5_f32 * f32::from(code);
    for column in 0..columns {
        let point = |k: usize| value_of(two_bytes(&points[column * COLUMN_HEADER_BYTES + 2 * k..]));
        let (p0, p25, p75, p100) = (point(0), point(1), point(2), point(3));
        // The products are f32, their scaling and the sum f64, as C++ promotes them.
        let between = |low: f32, high: f32, steps: u8, share: f64| {
            (f64::from(low) + f64::from((high - low) * f32::from(steps)) * share) as f32
        };
        for (k, row) in rows.clone().enumerate() {
            into[k * columns + column] = match codes[column * all_rows + row] {
                code @ 0..=64 => between(p0, p25, code, 1.0 / 64.0),
                code @ 65..=192 => between(p25, p75, code - 64, 1.0 / 128.0),
                code => between(p75, p100, code - 192, 1.0 / 63.0),
            };
        }
    }
}

/// CM2. `data`: [all rows, columns] u16; `into`: [rows, columns].
pub fn decode_two_byte(scale: Scale, columns: usize, data: &[u8], rows: Range<usize>, into: &mut [f32]) {
    let increment = (f64::from(scale.range) * (1.0 / 65535.0)) as f32;
    let codes = data[2 * rows.start * columns..2 * rows.end * columns].chunks_exact(2);
    for (value, code) in into.iter_mut().zip(codes) {
        *value = scale.minimum + f32::from(two_bytes(code)) * increment;
    }
}

/// CM3. `data`: [all rows, columns] u8; `into`: [rows, columns].
pub fn decode_one_byte(scale: Scale, columns: usize, data: &[u8], rows: Range<usize>, into: &mut [f32]) {
    let increment = (f64::from(scale.range) * (1.0 / 255.0)) as f32;
    for (value, &code) in into.iter_mut().zip(&data[rows.start * columns..rows.end * columns]) {
        *value = scale.minimum + f32::from(code) * increment;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cm_is_linear_between_its_four_points() {
        // minimum 0 and range 65535 make every point its own code, up to f32 rounding of 1.5259022e-5 * 65535.
        let scale = Scale { minimum: 0.0, range: 65535.0 };
        let mut data = Vec::new();
        for column in [[0_u16, 640, 1920, 2550], [100, 164, 292, 355]] {
            data.extend(column.iter().flat_map(|point| point.to_le_bytes()));
        }
        data.extend([0_u8, 32, 64, 65, 192, 255]); // column 0: 0, 320, 640, 650, 1920, 2550
        data.extend([0_u8, 1, 64, 128, 193, 255]); // column 1: 100, 101, 164, 228, 293, 355
        let mut values = vec![f32::NAN; 12];
        decode_by_column(scale, 6, 2, &data, 0..6, &mut values);
        let expected = [0.0, 100.0, 320.0, 101.0, 640.0, 164.0, 650.0, 228.0, 1920.0, 293.0, 2550.0, 355.0_f32];
        for (value, expected) in values.iter().zip(expected) {
            // A few roundings to f32 on the way.
            assert!((value - expected).abs() <= 4.0 * f32::EPSILON * expected.max(1.0), "{value} {expected}");
        }
        let mut middle = vec![f32::NAN; 4];
        decode_by_column(scale, 6, 2, &data, 2..4, &mut middle);
        assert_eq!(middle, values[4..8]);
    }

    #[test]
    fn cm2_and_cm3_are_linear_from_minimum_to_maximum() {
        let codes = [0_u16, 65535, 13107, 52428]; // 0, 1, 1/5 and 4/5 of the range
        let data: Vec<u8> = codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        let mut values = [f32::NAN; 4];
        decode_two_byte(Scale { minimum: -3.0, range: 10.0 }, 2, &data, 0..2, &mut values);
        for (value, expected) in values.iter().zip([-3.0, 7.0, -1.0, 5.0_f32]) {
            assert!((value - expected).abs() <= 8.0 * f32::EPSILON * 10.0, "{value} {expected}");
        }
        let mut second_row = [f32::NAN; 2];
        decode_two_byte(Scale { minimum: -3.0, range: 10.0 }, 2, &data, 1..2, &mut second_row);
        assert_eq!(second_row, values[2..]);

        // 51 / 255 is one fifth.
        decode_one_byte(Scale { minimum: 1.0, range: 0.5 }, 2, &[0, 255, 51, 204], 0..2, &mut values);
        for (value, expected) in values.iter().zip([1.0, 1.5, 1.1, 1.4_f32]) {
            assert!((value - expected).abs() <= 4.0 * f32::EPSILON, "{value} {expected}");
        }
    }
}
