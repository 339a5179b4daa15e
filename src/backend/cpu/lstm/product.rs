//! The recurrent product's kernel: scratch[row, 4 vectors] = sum over k of a[row, k] panel[k, 4 vectors].
//!
//! A block of M rows times four vectors stays in registers: M = 3 with 16 registers (12 sums, 3 broadcasts, 1 weight), M = 6 with
//! 32. Per k it loads 4 + M vectors for 4 M multiply-adds, so that the multiply-add units are the limit: 2 M cycles on two of them.
//! The panel is cut along k into chunks that stay in the first-level cache while all rows pass over them; between chunks
//! the sums rest in `scratch`. So the weights come from the outer caches once a time step, whatever the batch; they are asked for a
//! chunk ahead, which saves 8 % of the recurrence where they do not fit the second-level cache (H = 1150).

use crate::backend::cpu::simd::prefetch;
use pulp::Simd;

/// Vectors side by side in a panel: forward the four gates.
pub const VECTORS: usize = 4;
/// Rows that a scratch block holds; larger batches pass over the panel again.
pub const SCRATCH_ROWS: usize = 48;
/// Bytes of a panel's chunk along k: half of a 32 KiB first-level cache (8 KiB cost 3 % more, 12 to 32 are alike).
const CHUNK_BYTES: usize = 16 * 1024;

/// Sums of one panel for up to [`SCRATCH_ROWS`] rows: [rows, 4, lanes], at most 16 lanes.
#[repr(align(64))]
pub struct Scratch(pub [f32; SCRATCH_ROWS * VECTORS * 16]);

impl Scratch {
    pub fn new() -> Self {
        Scratch([0.0; SCRATCH_ROWS * VECTORS * 16])
    }
}

/// What the next panel's pointwise part will read or write: `floats` of each row from `place` on, rows `stride` apart. The product asks for
/// it a block of rows at a time, a panel ahead, so that it has come from memory when it is wanted: no hardware prefetcher sees a pattern in
/// 16 rows of four gates. (2 x 320, forward: 73 ms of a core instead of 80; asked for in its own panel: 81.)
#[derive(Clone, Copy)]
pub struct Ahead {
    pub place: *const f32,
    pub stride: usize,
    pub floats: usize,
}

/// Floats of a cache line.
const LINE: usize = 16;

/// scratch[row] = sum_k a[row, k] panel[k] for `rows` rows, `a_stride` apart, of K = `depth` elements.
///
/// The order of each sum depends on `depth` and the vector width alone, never on which rows are computed together.
///
/// # Safety
/// `a` is valid for reads of `depth` floats at each of `rows` places `a_stride` floats apart, `panel` for `depth` groups of
/// four vectors; `rows <= SCRATCH_ROWS`.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // A product's three operands with their strides.
pub unsafe fn product<S: Simd>(
    simd: S,
    scratch: &mut Scratch,
    rows: usize,
    a: *const f32,
    a_stride: usize,
    panel: *const f32,
    depth: usize,
    ahead: &[Ahead],
) {
    debug_assert!(rows <= SCRATCH_ROWS);
    let group = VECTORS * S::F32_LANES;
    let chunks = (depth * group * size_of::<f32>()).div_ceil(CHUNK_BYTES).max(1);
    for chunk in 0..chunks {
        let (start, end) = (depth * chunk / chunks, depth * (chunk + 1) / chunks);
        // SAFETY: start <= end <= depth, and every block stays below `rows`.
        unsafe {
            let sums = scratch.0.as_mut_ptr();
            let (a, panel) = (a.add(start), panel.add(start * group));
            let depth = end - start;
            // Blocks as even as they go: 16 rows are 3 3 3 3 2 2, since a block of one row would wait for its own sums.
            let largest = if S::REGISTER_COUNT >= 32 { 6 } else { 3 };
            let blocks = rows.div_ceil(largest);
            let mut row = 0;
            for number in 0..blocks {
                let size = (rows - row).div_ceil(blocks - number);
                let (a, sums) = (a.add(row * a_stride), sums.add(row * group));
                if chunk == 0 {
                    for ahead in ahead {
                        for index in row..row + size {
                            for float in (0..ahead.floats).step_by(LINE) {
                                prefetch(ahead.place.wrapping_add(index * ahead.stride + float));
                            }
                        }
                    }
                }
                match size {
                    1 => rows_of::<S, 1>(simd, sums, chunk > 0, a, a_stride, panel, depth),
                    2 => rows_of::<S, 2>(simd, sums, chunk > 0, a, a_stride, panel, depth),
                    4 if S::REGISTER_COUNT >= 32 => rows_of::<S, 4>(simd, sums, chunk > 0, a, a_stride, panel, depth),
                    5 if S::REGISTER_COUNT >= 32 => rows_of::<S, 5>(simd, sums, chunk > 0, a, a_stride, panel, depth),
                    6 if S::REGISTER_COUNT >= 32 => rows_of::<S, 6>(simd, sums, chunk > 0, a, a_stride, panel, depth),
                    _ => rows_of::<S, 3>(simd, sums, chunk > 0, a, a_stride, panel, depth),
                }
                row += size;
            }
        }
    }
}

/// The kernel: M rows, four vectors, `depth` steps.
///
/// # Safety
/// As [`product`], for M rows; `sums` holds M groups.
#[inline(always)]
unsafe fn rows_of<S: Simd, const M: usize>(
    simd: S,
    sums: *mut f32,
    accumulate: bool,
    a: *const f32,
    a_stride: usize,
    panel: *const f32,
    depth: usize,
) {
    let lanes = S::F32_LANES;
    let mut sum = [[simd.splat_f32s(0.0); VECTORS]; M];
    // SAFETY: the caller's; a vector may be read from any address through read_unaligned.
    unsafe {
        if accumulate {
            for (row, sum) in sum.iter_mut().enumerate() {
                for (vector, sum) in sum.iter_mut().enumerate() {
                    *sum = sums.add((row * VECTORS + vector) * lanes).cast::<S::f32s>().read_unaligned();
                }
            }
        }
        let mut rows = [a; M];
        for (row, place) in rows.iter_mut().enumerate() {
            *place = a.add(row * a_stride);
        }
        let mut next = panel.wrapping_add(CHUNK_BYTES / size_of::<f32>());
        let mut panel = panel.cast::<S::f32s>();
        for k in 0..depth {
            for line in 0..VECTORS * lanes / LINE {
                prefetch(next.wrapping_add(LINE * line));
            }
            next = next.wrapping_add(VECTORS * lanes);
            let mut a = [simd.splat_f32s(0.0); M];
            for (a, row) in a.iter_mut().zip(rows) {
                *a = simd.splat_f32s(*row.add(k));
            }
            for vector in 0..VECTORS {
                let weight = panel.add(vector).read_unaligned();
                for (sum, &a) in sum.iter_mut().zip(&a) {
                    sum[vector] = simd.mul_add_e_f32s(a, weight, sum[vector]);
                }
            }
            panel = panel.add(VECTORS);
        }
        for (row, sum) in sum.iter().enumerate() {
            for (vector, &sum) in sum.iter().enumerate() {
                sums.add((row * VECTORS + vector) * lanes).cast::<S::f32s>().write_unaligned(sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::{WithSimd, apply};
    use crate::backend::cpu::testing::random;

    /// Six rows in one block, and one at a time.
    struct Blocks<'a>(&'a [f32], &'a [f32], usize);

    impl WithSimd for Blocks<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Blocks(a, panel, depth) = self;
            let group = VECTORS * S::F32_LANES;
            let mut single = vec![0.0; 6 * group];
            let mut blocks = vec![vec![f32::NAN; 6 * group]; 7];
            // SAFETY: `a` has 6 rows of `depth`, `panel` has `depth` groups, each output 6 groups.
            unsafe {
                for row in 0..6 {
                    let (a, sums) = (a.as_ptr().add(row * depth), single.as_mut_ptr().add(row * group));
                    rows_of::<S, 1>(simd, sums, false, a, depth, panel.as_ptr(), depth);
                }
                let (a, panel) = (a.as_ptr(), panel.as_ptr());
                rows_of::<S, 2>(simd, blocks[2].as_mut_ptr(), false, a, depth, panel, depth);
                rows_of::<S, 3>(simd, blocks[3].as_mut_ptr(), false, a, depth, panel, depth);
                rows_of::<S, 4>(simd, blocks[4].as_mut_ptr(), false, a, depth, panel, depth);
                rows_of::<S, 5>(simd, blocks[5].as_mut_ptr(), false, a, depth, panel, depth);
                rows_of::<S, 6>(simd, blocks[6].as_mut_ptr(), false, a, depth, panel, depth);
            }
            for (rows, block) in blocks.iter().enumerate().skip(2) {
                assert_eq!(block[..rows * group], single[..rows * group], "{rows} rows");
                assert!(block[rows * group..].iter().all(|x| x.is_nan()), "{rows} rows wrote more");
            }
            for (row, sums) in single.chunks_exact(group).enumerate() {
                for (unit, &sum) in sums.iter().enumerate() {
                    let exact: f64 =
                        (0..depth).map(|k| f64::from(a[row * depth + k]) * f64::from(panel[k * group + unit])).sum();
                    assert!((f64::from(sum) - exact).abs() < 1e-5, "{sum} for {exact}");
                }
            }
        }
    }

    #[test]
    fn blocks_of_every_size_give_the_bits_of_single_rows() {
        let depth = 37;
        let (a, panel) = (random(6 * depth, 1), random(depth * VECTORS * 16, 2));
        apply(Blocks(&a, &panel, depth));
        Blocks(&a, &panel, depth).with_simd(pulp::Scalar512b);
    }
}
