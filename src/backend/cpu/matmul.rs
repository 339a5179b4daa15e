//! Matrix products through the `gemm` crate, and the row operations around them: bias rows and column sums.
//!
//! The output is split among threads, never the sum over `k`, so one thread and many give the same bits (held by a test for shapes
//! of every kind that the engine uses). The threads meet once a product: the crate's own threads meet after every block of `k` and share
//! one packed operand, which cost 4 % (H = 1150, 20 x 35) and nothing at H = 320.
//!
//! A bias is added in a pass of its own ([`add_bias`], or [`super::activation`] together with the nonlinearity): output and bias are
//! then still in the last-level cache, and 3,200 x 320 elements cost 0.13 ms beside the product's 8 ms.

use super::simd::{WithSimd, apply};
use gemm::Parallelism;
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// A strided view of a matrix: element (i, j) is `data[i * row_stride + j * column_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one behind the other, each of `columns` elements.
    pub fn rows(data: &'a [f32], columns: usize) -> Self {
        Matrix { data, row_stride: columns, column_stride: 1 }
    }

    /// Rows `row_stride` apart.
    pub fn strided(data: &'a [f32], row_stride: usize) -> Self {
        Matrix { data, row_stride, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn transposed(self) -> Self {
        Matrix { data: self.data, row_stride: self.column_stride, column_stride: self.row_stride }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.data.len()
    }
}

/// c = a b, or c += a b: a [m, k], b [k, n], c [m, n] with rows `c_row_stride >= n` apart.
///
/// # Panics
/// If a slice is shorter than its shape and strides ask for.
#[allow(clippy::too_many_arguments)] // The shape of a product and its three operands: a struct would only rename them.
pub fn matmul(
    m: usize,
    n: usize,
    k: usize,
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    c_row_stride: usize,
    accumulate: bool,
) {
    assert!(a.holds(m, k), "the left operand of a product is shorter than [{m}, {k}]");
    assert!(b.holds(k, n), "the right operand of a product is shorter than [{k}, {n}]");
    assert!(
        m == 0 || n == 0 || (c_row_stride >= n && (m - 1) * c_row_stride + n <= c.len()),
        "the output of a product is shorter than [{m}, {n}]"
    );
    let output = Output(c.as_mut_ptr());
    let part = |rows: Range<usize>, columns: Range<usize>| {
        // SAFETY: the three assertions keep every element that the strides reach inside its slice, strides are not negative, the
        // rows of `c` do not overlap, and neither do the parts.
        unsafe {
            gemm::gemm(
                rows.len(),
                columns.len(),
                k,
                output.at(rows.start * c_row_stride + columns.start),
                1,
                c_row_stride as isize,
                accumulate,
                a.data.as_ptr().wrapping_add(rows.start * a.row_stride),
                a.column_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr().wrapping_add(columns.start * b.column_stride),
                b.column_stride as isize,
                b.row_stride as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    };
    // The longer side is split, so that what every thread packs for itself is the smaller operand.
    if m >= n {
        stripes(m, n, 6).for_each(|rows| part(rows, 0..n));
    } else {
        stripes(n, m, 16).for_each(|columns| part(0..m, columns));
    }
}

/// Cuts a product's longer side for the threads of this pool, near multiples of `unit` (rows or columns of the crate's register blocks).
///
/// The crate picks other kernels, with another order of sums, for vectors, for outputs of up to 16 x 16 and up to 64 x 64: no stripe is so
/// narrow unless the whole is, so that the cuts never show in the bits.
fn stripes(long: usize, short: usize, unit: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    let count = if short < 16 { 1 } else { rayon::current_num_threads().min(long / 128).max(1) };
    let cut = move |number: usize| if number == count { long } else { long * number / count / unit * unit };
    (0..count).into_par_iter().with_max_len(1).map(move |number| cut(number)..cut(number + 1))
}

/// The output of a product, for threads that write disjoint parts of it.
struct Output(*mut f32);

impl Output {
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

// SAFETY: only the pointer is shared; who dereferences it answers for disjoint writes.
unsafe impl Sync for Output {}

/// Rows handed to a task at a time by the elementwise passes: 16 KiB or so each, so that small batches stay on one thread.
pub(super) fn rows_per_task(columns: usize) -> usize {
    (4096 / columns.max(1)).max(1)
}

/// Adds `bias` [n] to every row of `c` [rows, n].
pub fn add_bias(c: &mut [f32], bias: &[f32]) {
    if bias.is_empty() {
        return;
    }
    c.par_chunks_mut(rows_per_task(bias.len()) * bias.len()).for_each(|rows| {
        for row in rows.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
        }
    });
}

/// Columns that one task of [`column_sums`] owns, and rows that it sums before adding to the total: sums of sums keep the
/// rounding error of long columns near that of 64 additions.
const SUM_COLUMNS: usize = 128;
const SUM_ROWS: usize = 64;

/// sums[j] = (or, accumulating, +=) sum over rows of a[row, j]; a: [rows, sums.len()], rows `row_stride` apart.
///
/// The order of each sum depends on `rows` alone.
pub fn column_sums(a: &[f32], rows: usize, row_stride: usize, sums: &mut [f32], accumulate: bool) {
    assert!(rows == 0 || (rows - 1) * row_stride + sums.len() <= a.len(), "column sums over more rows than there are");
    sums.par_chunks_mut(SUM_COLUMNS).enumerate().for_each(|(task, sums)| {
        apply(ColumnSums { a, rows, row_stride, first: task * SUM_COLUMNS, sums, accumulate });
    });
}

struct ColumnSums<'a> {
    a: &'a [f32],
    rows: usize,
    row_stride: usize,
    first: usize,
    sums: &'a mut [f32],
    accumulate: bool,
}

impl WithSimd for ColumnSums<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let ColumnSums { a, rows, row_stride, first, sums, accumulate } = self;
        let width = sums.len();
        if !accumulate {
            sums.fill(0.0);
        }
        let mut partial = [0.0; SUM_COLUMNS];
        for block in (0..rows).step_by(SUM_ROWS) {
            let partial = &mut partial[..width];
            partial.fill(0.0);
            for row in block..rows.min(block + SUM_ROWS) {
                let row = &a[row * row_stride + first..][..width];
                partial.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            sums.iter_mut().zip(partial).for_each(|(sum, partial)| *sum += *partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{in_pool, random};
    use super::*;

    /// (m, n, k, a transposed, b transposed): the products of the engine in small, vectors, and nothing.
    const SHAPES: [(usize, usize, usize, bool, bool); 15] = [
        (1, 1, 1, false, false),
        (3, 5, 7, false, true),
        (300, 320, 64, false, true),
        (320, 64, 700, true, false),
        (257, 129, 1025, false, false),
        (1, 300, 400, false, true),
        (400, 1, 300, false, false),
        (64, 50, 2, false, true),
        (700, 50, 320, false, true),
        (1280, 43, 600, true, false),
        (64, 385, 1030, false, true),
        (385, 64, 1030, true, false),
        (512, 16, 1030, false, false),
        (0, 4, 4, false, false),
        (4, 4, 0, false, false),
    ];

    fn product(
        shape: (usize, usize, usize, bool, bool),
        a: &[f32],
        b: &[f32],
        c: &mut [f32],
        stride: usize,
        accumulate: bool,
    ) {
        let (m, n, k, a_transposed, b_transposed) = shape;
        let a = if a_transposed { Matrix::rows(a, m).transposed() } else { Matrix::rows(a, k) };
        let b = if b_transposed { Matrix::rows(b, k).transposed() } else { Matrix::rows(b, n) };
        matmul(m, n, k, a, b, c, stride, accumulate);
    }

    #[test]
    fn products_agree_with_sums_in_f64_for_every_layout() {
        for (number, shape) in SHAPES.into_iter().enumerate() {
            let (m, n, k, a_transposed, b_transposed) = shape;
            let (a, b) = (random(m * k, number as u64), random(k * n, 77));
            let stride = n + 3;
            let start = random(m * stride, 5);
            for accumulate in [false, true] {
                let mut c = start.clone();
                product(shape, &a, &b, &mut c, stride, accumulate);
                for i in 0..m {
                    for j in 0..stride {
                        let before = f64::from(start[i * stride + j]);
                        if j >= n {
                            assert_eq!(f64::from(c[i * stride + j]), before, "a product wrote between its rows");
                            continue;
                        }
                        let terms = (0..k).map(|l| {
                            let a = a[if a_transposed { l * m + i } else { i * k + l }];
                            let b = b[if b_transposed { j * k + l } else { l * n + j }];
                            f64::from(a) * f64::from(b)
                        });
                        let sum: f64 = terms.clone().sum();
                        let expected = sum + if accumulate { before } else { 0.0 };
                        // Half an ulp for each of k + 1 additions, each of at most the sum of magnitudes.
                        let bound = (terms.map(f64::abs).sum::<f64>() + 1.0) * (k + 2) as f64 * 6e-8;
                        assert!((f64::from(c[i * stride + j]) - expected).abs() <= bound, "{shape:?} ({i}, {j})");
                    }
                }
            }
        }
    }

    #[test]
    fn one_thread_and_many_give_the_same_bits() {
        for shape in SHAPES {
            let (m, n, k, ..) = shape;
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let run = |threads| {
                in_pool(threads, || {
                    let mut c = vec![0.5; m * n];
                    product(shape, &a, &b, &mut c, n, true);
                    c.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                })
            };
            let one = run(1);
            assert!((2..=4).all(|threads| run(threads) == one), "{shape:?}");
        }
    }

    #[test]
    fn column_sums_agree_with_f64_and_do_not_depend_on_threads() {
        for (rows, columns) in [(0, 3), (1, 1), (130, 5), (1000, 300)] {
            let stride = columns + 2;
            let a = random(rows * stride, 9);
            let run = |threads| {
                in_pool(threads, || {
                    let mut sums = vec![1.0; columns];
                    column_sums(&a, rows, stride, &mut sums, true);
                    sums
                })
            };
            let sums = run(1);
            assert_eq!(sums, run(3));
            for (j, &sum) in sums.iter().enumerate() {
                let exact = 1.0 + (0..rows).map(|i| f64::from(a[i * stride + j])).sum::<f64>();
                assert!((f64::from(sum) - exact).abs() < 1e-4, "{sum} {exact}");
            }
        }
    }

    #[test]
    fn a_bias_reaches_every_row() {
        let mut c = random(3000, 4);
        let before = c.clone();
        add_bias(&mut c, &[1.0, 2.0, 3.0]);
        assert!(c.iter().zip(before).enumerate().all(|(i, (after, before))| *after == before + (i % 3 + 1) as f32));
    }
}
