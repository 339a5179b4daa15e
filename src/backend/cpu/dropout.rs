//! Dropout on packed rows. Random numbers are drawn for 64 elements at a time, sixteen blocks of Philox side by side, of which the compiler makes
//! vectors.

use super::simd::vectorized;
use crate::random::Mask;
use rayon::prelude::*;

/// Rows a task takes at a time.
const ROWS: usize = 64;
/// Blocks of Philox side by side, and the elements that they decide on.
const BLOCKS: usize = 16;
const ELEMENTS: usize = 4 * BLOCKS;

/// `output = mask * x`, both `[R, columns]`.
pub fn apply(x: &[f32], output: &mut [f32], offsets: &[usize], columns: usize, mask: &Mask) {
    output.copy_from_slice(x);
    apply_in_place(output, offsets, columns, mask);
}

/// `x = mask * x`, `[R, columns]`.
pub fn apply_in_place(x: &mut [f32], offsets: &[usize], columns: usize, mask: &Mask) {
    mask_rows(x, offsets, columns, mask, false);
}

/// The same with one mask for all times of a sequence, that of time 0 (locked dropout).
pub fn apply_locked(x: &mut [f32], offsets: &[usize], columns: usize, mask: &Mask) {
    mask_rows(x, offsets, columns, mask, true);
}

fn mask_rows(x: &mut [f32], offsets: &[usize], columns: usize, mask: &Mask, locked: bool) {
    if columns == 0 {
        return;
    }
    x.par_chunks_mut(ROWS * columns).enumerate().for_each(|(chunk, rows)| {
        vectorized(
            #[inline(always)]
            || {
                let mut time = offsets.partition_point(|&offset| offset <= chunk * ROWS) - 1;
                for (number, elements) in (chunk * ROWS..).zip(rows.chunks_exact_mut(columns)) {
                    while offsets[time + 1] <= number {
                        time += 1;
                    }
                    let drawn_at = if locked { 0 } else { time as u32 };
                    mask_row(elements, drawn_at, (number - offsets[time]) as u32, mask);
                }
            },
        );
    });
}

/// `elements = mask * elements`, those of the place (time, sequence).
pub(super) fn mask_row_at(elements: &mut [f32], time: u32, sequence: u32, mask: &Mask) {
    vectorized(
        #[inline(always)]
        || mask_row(elements, time, sequence, mask),
    );
}

#[inline(always)]
fn mask_row(elements: &mut [f32], time: u32, sequence: u32, mask: &Mask) {
    for (number, elements) in elements.chunks_mut(ELEMENTS).enumerate() {
        let random: [[u32; 4]; BLOCKS] = mask.philox.blocks([(number * BLOCKS) as u32, time, sequence, mask.step]);
        for (element, random) in elements.iter_mut().zip(random.as_flattened()) {
            *element = if *random >= mask.threshold { *element * mask.scale } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::MaskKey;

    #[test]
    fn every_element_has_the_random_number_of_its_place() {
        let key = MaskKey { seed: 1, stage: "joint".into(), step: 9 };
        let mask = Mask::new(&key, "layer", 0.5).unwrap();
        for columns in [1, 3, 64, 65, 200] {
            let offsets = [0, 3, 5];
            for locked in [false, true] {
                let mut x = vec![1.0; 5 * columns];
                if locked {
                    apply_locked(&mut x, &offsets, columns, &mask);
                } else {
                    apply_in_place(&mut x, &offsets, columns, &mask);
                }
                for (row, (time, sequence)) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)].into_iter().enumerate() {
                    for unit in 0..columns {
                        let counter = [unit as u32 / 4, if locked { 0 } else { time }, sequence, 9];
                        let kept = mask.philox.block(counter)[unit % 4] >= mask.threshold;
                        assert_eq!(x[row * columns + unit], if kept { 2.0 } else { 0.0 });
                    }
                }
            }
        }
    }
}
