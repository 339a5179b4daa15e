//! Rows of a table by token, and the table's gradient. A token that is not below the number of rows stands for no token: its output is zero, and
//! nothing comes of it in the gradient.
//!
//! The gradient of a token is the sum over its rows in their order, in pieces of [`PIECE`] rows and then over the pieces, as in
//! `kernels/embedding.cu`: the same bits on every device and with any number of threads, and less rounding than one long sum.

use super::matmul::rows_per_task;
use super::simd::{WithSimd, apply};
use crate::random::Mask;
use pulp::Simd;
use rayon::prelude::*;

/// Rows that are summed before the sum is added to a token's total.
pub const PIECE: usize = 32;

/// y = scales\[token\] weight\[token\] in every row; y: `[tokens, columns]`, weight: `[vocabulary, columns]`, scales: `[vocabulary]`.
pub fn gather(weight: &[f32], columns: usize, tokens: &[u32], scales: Option<&[f32]>, y: &mut [f32]) {
    assert_eq!(y.len(), tokens.len() * columns, "embedding: one row of output for every token");
    if columns == 0 {
        return;
    }
    let rows = rows_per_task(columns);
    y.par_chunks_mut(rows * columns).zip(tokens.par_chunks(rows)).for_each(|(y, tokens)| {
        for (y, &token) in y.chunks_exact_mut(columns).zip(tokens) {
            match weight.chunks_exact(columns).nth(token as usize) {
                None => y.fill(0.0),
                Some(weight) => match scales.map(|scales| scales[token as usize]) {
                    None => y.copy_from_slice(weight),
                    Some(scale) => y.iter_mut().zip(weight).for_each(|(y, weight)| *y = scale * weight),
                },
            }
        }
    });
}

/// Embedding dropout (Merity, Keskar, Socher, 2018): a word is zero in the whole batch with the mask's probability, else it is divided by 1 - p.
/// `scales` has one element for every word: the mask of a single frame of as many units.
pub fn draw_scales(mask: &Mask, scales: &mut [f32]) {
    scales.fill(1.0);
    let units = scales.len();
    super::dropout::apply_in_place(scales, &[0, 1], units, mask);
}

/// The rows of a batch by their token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    /// Rows with a token, those of one token together, in ascending order of tokens and then of rows.
    pub order: Vec<u32>,
    /// Each token that occurs, and where in `order` its rows end; they begin where those of the one before end.
    pub ends: Vec<(u32, usize)>,
}

impl Grouping {
    pub fn new(tokens: &[u32], vocabulary: usize) -> Self {
        let mut order: Vec<u32> =
            (0..).zip(tokens).filter(|&(_, &token)| (token as usize) < vocabulary).map(|(row, _)| row).collect();
        let token_of = |row: u32| tokens[row as usize];
        order.sort_by_key(|&row| token_of(row));
        let mut ends = Vec::new();
        for group in order.chunk_by(|&a, &b| token_of(a) == token_of(b)) {
            let begin = ends.last().map_or(0, |&(_, end)| end);
            ends.push((token_of(group[0]), begin + group.len()));
        }
        Grouping { order, ends }
    }

    /// The tokens that occur, ascending, each with its rows.
    pub fn groups(&self) -> impl Iterator<Item = (u32, &[u32])> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|&(_, end)| end));
        self.ends.iter().zip(begins).map(|(&(token, end), begin)| (token, &self.order[begin..end]))
    }
}

/// dweight\[token\] = or, accumulating, += scales\[token\] times the sum of its rows of dy; dy: `[tokens, columns]`, dweight: `[vocabulary,
/// columns]`. Without accumulating, words that do not occur get zero.
pub fn gradient(
    dy: &[f32],
    columns: usize,
    grouping: &Grouping,
    scales: Option<&[f32]>,
    dweight: &mut [f32],
    accumulate: bool,
) {
    if !accumulate {
        dweight.fill(0.0);
    }
    if columns == 0 {
        return;
    }
    // Every token has a row of its own: cut out of the table one after the other.
    let mut rest = dweight;
    let mut next = 0;
    let mut tasks = Vec::with_capacity(grouping.ends.len());
    for (token, rows) in grouping.groups() {
        let (before, behind) = rest.split_at_mut((token as usize + 1 - next) * columns);
        let place = before.len() - columns;
        tasks.push((&mut before[place..], rows, scales.map(|scales| scales[token as usize])));
        (rest, next) = (behind, token as usize + 1);
    }
    tasks.into_par_iter().with_min_len(rows_per_task(columns)).for_each(|(total, rows, scale)| {
        apply(TokenSum { dy, columns, rows, scale, total });
    });
}

struct TokenSum<'a> {
    dy: &'a [f32],
    columns: usize,
    rows: &'a [u32],
    scale: Option<f32>,
    total: &'a mut [f32],
}

/// Columns that are summed at a time, in memory that is not allocated.
const WIDTH: usize = 512;

impl WithSimd for TokenSum<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let TokenSum { dy, columns, rows, scale, total } = self;
        let (mut sums, mut partials) = ([0.0; WIDTH], [0.0; WIDTH]);
        for (strip, total) in total.chunks_mut(WIDTH).enumerate() {
            let width = total.len();
            let (sums, partials) = (&mut sums[..width], &mut partials[..width]);
            sums.fill(0.0);
            for piece in rows.chunks(PIECE) {
                partials.fill(0.0);
                for &row in piece {
                    let row = &dy[row as usize * columns + strip * WIDTH..][..width];
                    partials.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
                }
                sums.iter_mut().zip(&*partials).for_each(|(sum, partial)| *sum += partial);
            }
            if let Some(scale) = scale {
                sums.iter_mut().for_each(|sum| *sum *= scale);
            }
            total.iter_mut().zip(&*sums).for_each(|(total, sum)| *total += sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, in_pool, random};
    use super::*;
    use crate::random::Philox;

    /// Tokens of a skewed distribution, as words are; every thirteenth is none.
    fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
        let skewed = |u: f32| ((u.abs().powi(4)) * vocabulary as f32) as u32;
        let tokens = random(count, 8).into_iter().map(skewed).map(|token| token.min(vocabulary as u32 - 1));
        tokens.enumerate().map(|(i, token)| if i % 13 == 12 { u32::MAX } else { token }).collect()
    }

    #[test]
    fn rows_of_the_table_are_gathered_and_scaled() {
        for (count, vocabulary, columns) in [(1, 1, 1), (50, 7, 13), (3, 100, 600), (0, 3, 4)] {
            let (weight, scales) = (random(vocabulary * columns, 1), random(vocabulary, 2));
            let tokens = tokens(count, vocabulary);
            for scales in [None, Some(&scales[..])] {
                let mut y = vec![f32::NAN; count * columns];
                gather(&weight, columns, &tokens, scales, &mut y);
                for (row, &token) in tokens.iter().enumerate() {
                    for j in 0..columns {
                        let weight = weight.get(token as usize * columns + j).filter(|_| token != u32::MAX);
                        let scale = scales.map_or(1.0, |scales| scales.get(token as usize).copied().unwrap_or(0.0));
                        assert_eq!(y[row * columns + j], weight.map_or(0.0, |weight| scale * weight));
                    }
                }
            }
        }
    }

    #[test]
    fn the_gradient_agrees_with_sums_in_f64() {
        for (count, vocabulary, columns) in [(1, 1, 1), (200, 3, 5), (700, 50, 13), (40, 90, 1100), (0, 3, 4)] {
            let (dy, before) = (random(count * columns, 1), random(vocabulary * columns, 2));
            let scales = random(vocabulary, 3);
            let tokens = tokens(count, vocabulary);
            let grouping = Grouping::new(&tokens, vocabulary);
            for (scales, accumulate) in [(None, false), (Some(&scales[..]), true), (Some(&scales[..]), false)] {
                let mut dweight = before.clone();
                gradient(&dy, columns, &grouping, scales, &mut dweight, accumulate);
                let start = |i: usize| if accumulate { f64::from(before[i]) } else { 0.0 };
                let mut expected: Vec<f64> = (0..before.len()).map(start).collect();
                for (row, &token) in tokens.iter().enumerate().filter(|&(_, &token)| token != u32::MAX) {
                    let scale = scales.map_or(1.0, |scales| f64::from(scales[token as usize]));
                    for j in 0..columns {
                        expected[token as usize * columns + j] += scale * f64::from(dy[row * columns + j]);
                    }
                }
                // Pieces of 32 additions, as many pieces as there are, two operations more; terms of at most 1.
                let roundings = (PIECE + count / PIECE + 2) as f64;
                let tolerance = roundings * f64::from(f32::EPSILON) / 2.0 * count.max(1) as f64;
                assert_close(&dweight, &expected, tolerance, 0.0, "embedding gradient");
            }
        }
    }

    #[test]
    fn groups_hold_every_row_with_a_token_once_in_order() {
        let grouping = Grouping::new(&[5, 2, 9, 2, 5, 5, 0], 6);
        let groups: Vec<(u32, &[u32])> = grouping.groups().collect();
        assert_eq!(groups, [(0, &[6][..]), (2, &[1, 3]), (5, &[0, 4, 5])]);
        assert_eq!(Grouping::new(&[], 6).groups().count(), 0);
    }

    #[test]
    fn scales_are_the_dropout_mask_of_one_frame() {
        let mask = Mask { philox: Philox::new(5), step: 3, threshold: 1 << 31, scale: 2.0 };
        let mut scales = vec![f32::NAN; 1001];
        draw_scales(&mask, &mut scales);
        let kept = scales.iter().filter(|&&scale| scale == 2.0).count();
        assert_eq!(kept + scales.iter().filter(|&&scale| scale == 0.0).count(), 1001);
        // Five standard deviations of a binomial count.
        assert!((420..=580).contains(&kept), "{kept}");
        let mut again = vec![1.0; 1001];
        super::super::dropout::apply(&vec![1.0; 1001], &mut again, &[0, 1], 1001, &mask);
        assert_eq!(scales, again);
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let (count, vocabulary, columns) = (3000, 40, 70);
        let dy = random(count * columns, 1);
        let grouping = Grouping::new(&tokens(count, vocabulary), vocabulary);
        let run = |threads| {
            in_pool(threads, || {
                let mut dweight = vec![f32::NAN; vocabulary * columns];
                gradient(&dy, columns, &grouping, None, &mut dweight, false);
                dweight
            })
        };
        assert_eq!(run(1), run(3));
    }
}
