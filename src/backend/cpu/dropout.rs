//! Dropout on packed rows.

use crate::random::Mask;
use rayon::prelude::*;

/// Rows a task takes at a time.
const ROWS: usize = 64;

/// `output = mask * x`, both `[R, columns]`.
pub fn apply(x: &[f32], output: &mut [f32], offsets: &[usize], columns: usize, mask: &Mask) {
    output.copy_from_slice(x);
    apply_in_place(output, offsets, columns, mask);
}

/// `x = mask * x`, `[R, columns]`.
pub fn apply_in_place(x: &mut [f32], offsets: &[usize], columns: usize, mask: &Mask) {
    if columns == 0 {
        return;
    }
    x.par_chunks_mut(ROWS * columns).enumerate().for_each(|(chunk, rows)| {
        let mut time = offsets.partition_point(|&offset| offset <= chunk * ROWS) - 1;
        for (row, elements) in (chunk * ROWS..).zip(rows.chunks_exact_mut(columns)) {
            while offsets[time + 1] <= row {
                time += 1;
            }
            let sequence = row - offsets[time];
            mask_row(elements, time as u32, sequence as u32, mask);
        }
    });
}

fn mask_row(elements: &mut [f32], time: u32, sequence: u32, mask: &Mask) {
    for (quarter, elements) in elements.chunks_mut(4).enumerate() {
        let random = mask.philox.block([quarter as u32, time, sequence, mask.step]);
        for (element, random) in elements.iter_mut().zip(random) {
            *element = if random >= mask.threshold { *element * mask.scale } else { 0.0 };
        }
    }
}
