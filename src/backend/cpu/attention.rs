//! Multi-head attention over packed sequences: `softmax(q k^T / sqrt(d)) v` for every head of d columns (Vaswani et al., 2017).
//!
//! Forward gathers every head of every sequence into rows of its own, so that products read without gaps, and takes a block of queries at a
//! time: their scores to all keys, softmax, dropout, and the sum of the values. Only the logarithm of each row's sum is kept. Backward
//! computes the scores of a block again (Dao et al., 2022), so no T x T matrix outlives its block: scratch memory is at most three
//! blocks of 64 x T numbers a thread. The products, 4 T^2 d operations a head forward and 10 T^2 d backward, bound both.
//!
//! A task is a head of a sequence of queries (forward) or of keys (backward), so every sum runs in an order of its own.

use super::dropout::mask_row_at;
use super::matmul::{Matrix, matmul};
use super::simd::{WithSimd, apply, exp_nonpositive};
use super::softmax::row_max;
use crate::random::Mask;
use pulp::Simd;
use rayon::prelude::*;

/// Queries whose scores exist at a time.
const BLOCK: usize = 64;

/// How the rows of a tensor are packed: see `ops::sequences`.
#[derive(Debug, Clone, Copy)]
pub struct Packing<'a> {
    pub offsets: &'a [usize],
    pub lengths: &'a [usize],
}

impl Packing<'_> {
    fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// Who attends to whom.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    pub heads: usize,
    /// Columns of a head.
    pub width: usize,
    pub queries: Packing<'a>,
    pub keys: Packing<'a>,
    /// The sequence of keys that each sequence of queries attends to.
    pub of: &'a [usize],
    /// A query sees no key behind its own time.
    pub causal: bool,
    /// Dropout of the probabilities, at the place (key, query, sequence of queries * heads + head).
    pub mask: Option<&'a Mask>,
}

/// What backward reads and where it writes: gradients that are not wanted are none. The bools: add to what is there.
pub struct Gradients<'a> {
    pub queries: Option<(&'a mut [f32], bool)>,
    pub keys: Option<(&'a mut [f32], bool)>,
    pub values: Option<(&'a mut [f32], bool)>,
}

impl Attention<'_> {
    fn columns(&self) -> usize {
        self.heads * self.width
    }

    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    /// Numbers that [`Attention::forward`] works in.
    pub fn forward_workspace(&self) -> usize {
        2 * (self.queries.rows() + self.keys.rows()) * self.columns()
    }

    /// Numbers that [`Attention::backward`] works in.
    pub fn backward_workspace(&self) -> usize {
        (3 * self.queries.rows() + 4 * self.keys.rows()) * self.columns()
    }

    /// Pairs of a query and a key whose score is computed, all sequences of one head together.
    pub fn pairs(&self) -> usize {
        let lengths = self.queries.lengths.iter().zip(self.of);
        lengths
            .map(|(&queries, &of)| self.blocks(queries, self.keys.lengths[of]).map(|b| b.rows * b.keys).sum::<usize>())
            .sum()
    }

    /// q, output: `[Rq, D]`, k, v: `[Rk, D]`, log_sums: `[Rq * heads]`.
    pub fn forward(&self, [q, k, v]: [&[f32]; 3], output: &mut [f32], log_sums: &mut [f32], workspace: &mut [f32]) {
        let (queries, keys) = (self.queries.rows() * self.columns(), self.keys.rows() * self.columns());
        let [q_heads, k_heads, v_heads, o_heads] = parts(workspace, [queries, keys, keys, queries]);
        self.gather(q, self.queries, self.scale(), q_heads);
        self.gather(k, self.keys, 1.0, k_heads);
        self.gather(v, self.keys, 1.0, v_heads);
        let (q, k, v) =
            (self.split(q_heads, self.queries), self.split(k_heads, self.keys), self.split(v_heads, self.keys));
        let sums = split(log_sums, self.queries.lengths.iter().flat_map(|&length| vec![length; self.heads]));
        let outputs = self.split_mut(o_heads, self.queries).into_iter().zip(sums);
        outputs.collect::<Vec<_>>().into_par_iter().enumerate().with_max_len(1).for_each(|(task, (output, sums))| {
            let (sequence, head) = (task / self.heads, task % self.heads);
            let key_task = self.of[sequence] * self.heads + head;
            let (k, v, d) = (k[key_task], v[key_task], self.width);
            let mut scores = Vec::new();
            for block in self.blocks(self.queries.lengths[sequence], self.keys.lengths[self.of[sequence]]) {
                let rows = block.first * d..(block.first + block.rows) * d;
                scores.resize(block.rows * block.keys, 0.0);
                products(&block, d, &q[task][rows.clone()], k, &mut scores);
                let sums = &mut sums[block.first..block.first + block.rows];
                apply(Softmax { block: &block, causal: self.causal, scores: &mut scores, sums });
                self.drop_out(&block, task, &mut scores);
                let (p, v) = (Matrix::rows(&scores, block.keys), Matrix::rows(v, d));
                matmul(block.rows, d, block.keys, p, v, &mut output[rows], d, false);
            }
        });
        self.scatter(o_heads, self.queries, 1.0, (output, false));
    }

    /// The gradients, from what forward read and gave; `output` is read only for those of queries and keys, `v` too.
    pub fn backward(
        &self,
        [q, k, v]: [&[f32]; 3],
        output: &[f32],
        log_sums: &[f32],
        dy: &[f32],
        gradients: Gradients,
        workspace: &mut [f32],
    ) {
        let (queries, keys) = (self.queries.rows() * self.columns(), self.keys.rows() * self.columns());
        let [q_heads, dy_heads, dq_heads, k_heads, v_heads, dk_heads, dv_heads] =
            parts(workspace, [queries, queries, queries, keys, keys, keys, keys]);
        let for_scores = gradients.queries.is_some() || gradients.keys.is_some();
        self.gather(q, self.queries, self.scale(), q_heads);
        self.gather(dy, self.queries, 1.0, dy_heads);
        self.gather(k, self.keys, 1.0, k_heads);
        // dq stands in for the output until it is written: the rows of a block are read before.
        if for_scores {
            self.gather(v, self.keys, 1.0, v_heads);
            self.gather(output, self.queries, 1.0, dq_heads);
        }
        dk_heads.fill(0.0);
        dv_heads.fill(0.0);
        let (q, dy) = (self.split(q_heads, self.queries), self.split(dy_heads, self.queries));
        let (k, v) = (self.split(k_heads, self.keys), self.split(v_heads, self.keys));
        let sums: Vec<&[f32]> = {
            let mut rest = log_sums;
            let lengths = self.queries.lengths.iter().flat_map(|&length| std::iter::repeat_n(length, self.heads));
            lengths.map(|length| rest.split_off(..length).unwrap_or_default()).collect()
        };
        // All heads of queries that attend to a head of keys, in their order.
        let mut readers: Vec<Vec<(usize, &mut [f32])>> = Vec::new();
        readers.resize_with(self.keys.lengths.len() * self.heads, Vec::new);
        for (task, dq) in self.split_mut(dq_heads, self.queries).into_iter().enumerate() {
            readers[self.of[task / self.heads] * self.heads + task % self.heads].push((task, dq));
        }
        let outputs = self.split_mut(dk_heads, self.keys).into_iter().zip(self.split_mut(dv_heads, self.keys));
        let tasks: Vec<_> = outputs.zip(readers).collect();
        tasks.into_par_iter().enumerate().with_max_len(1).for_each(|(key_task, ((dk, dv), readers))| {
            let d = self.width;
            let (k, v) = (Matrix::rows(k[key_task], d), Matrix::rows(v[key_task], d));
            let (mut scores, mut slopes) = (Vec::new(), Vec::new());
            for (task, dq) in readers {
                let keys = self.keys.lengths[key_task / self.heads];
                for block in self.blocks(self.queries.lengths[task / self.heads], keys) {
                    let range = block.first * d..(block.first + block.rows) * d;
                    let (q, dy) = (&q[task][range.clone()], &dy[task][range.clone()]);
                    let (q, dy_rows) = (q, Matrix::rows(dy, d));
                    scores.resize(block.rows * block.keys, 0.0);
                    products(&block, d, q, k.data, &mut scores);
                    let sums = &sums[task][block.first..block.first + block.rows];
                    apply(Probabilities { block: &block, causal: self.causal, scores: &mut scores, sums });
                    if for_scores {
                        slopes.resize(block.rows * block.keys, 0.0);
                        matmul(block.rows, block.keys, d, dy_rows, v.transposed(), &mut slopes, block.keys, false);
                        self.drop_out(&block, task, &mut slopes);
                        let output = &dq[range.clone()];
                        for (row, (slopes, scores)) in
                            slopes.chunks_exact_mut(block.keys).zip(scores.chunks_exact(block.keys)).enumerate()
                        {
                            let place = row * d..(row + 1) * d;
                            let mean: f32 = output[place.clone()].iter().zip(&dy[place]).map(|(y, dy)| y * dy).sum();
                            slopes.iter_mut().zip(scores).for_each(|(slope, p)| *slope = p * (*slope - mean));
                        }
                        let slopes = Matrix::rows(&slopes, block.keys);
                        matmul(block.rows, d, block.keys, slopes, k, &mut dq[range], d, false);
                        matmul(block.keys, d, block.rows, slopes.transposed(), Matrix::rows(q, d), dk, d, true);
                    }
                    if gradients.values.is_some() {
                        self.drop_out(&block, task, &mut scores);
                        let p = Matrix::rows(&scores, block.keys).transposed();
                        matmul(block.keys, d, block.rows, p, dy_rows, dv, d, true);
                    }
                }
            }
        });
        if let Some(dq) = gradients.queries {
            self.scatter(dq_heads, self.queries, self.scale(), dq);
        }
        if let Some(dk) = gradients.keys {
            self.scatter(dk_heads, self.keys, 1.0, dk);
        }
        if let Some(dv) = gradients.values {
            self.scatter(dv_heads, self.keys, 1.0, dv);
        }
    }

    /// The blocks of queries of a sequence.
    fn blocks(&self, queries: usize, keys: usize) -> impl Iterator<Item = Block> + use<> {
        let causal = self.causal;
        (0..queries).step_by(BLOCK).map(move |first| {
            let rows = BLOCK.min(queries - first);
            Block { first, rows, keys: if causal { keys.min(first + rows) } else { keys } }
        })
    }

    fn drop_out(&self, block: &Block, task: usize, probabilities: &mut [f32]) {
        let Some(mask) = self.mask else { return };
        for (row, probabilities) in probabilities.chunks_exact_mut(block.keys).enumerate() {
            mask_row_at(probabilities, (block.first + row) as u32, task as u32, mask);
        }
    }

    /// `scale * rows`, by sequence, head, time.
    fn gather(&self, rows: &[f32], packing: Packing, scale: f32, heads: &mut [f32]) {
        let (columns, d) = (self.columns(), self.width);
        let sequences = split(heads, packing.lengths.iter().map(|length| length * columns));
        sequences.into_par_iter().enumerate().for_each(|(sequence, heads)| {
            let length = packing.lengths[sequence];
            for time in 0..length {
                let row = &rows[(packing.offsets[time] + sequence) * columns..][..columns];
                for (head, row) in row.chunks_exact(d).enumerate() {
                    let to = &mut heads[(head * length + time) * d..][..d];
                    to.iter_mut().zip(row).for_each(|(to, x)| *to = scale * x);
                }
            }
        });
    }

    /// The way back; adds if the bool says so.
    fn scatter(&self, heads: &[f32], packing: Packing, scale: f32, (rows, add): (&mut [f32], bool)) {
        let (columns, d) = (self.columns(), self.width);
        let mut starts = vec![0];
        packing.lengths.iter().for_each(|length| starts.push(starts[starts.len() - 1] + length * columns));
        let times = split(rows, packing.offsets.windows(2).map(|rows| (rows[1] - rows[0]) * columns));
        times.into_par_iter().enumerate().with_min_len(8).for_each(|(time, rows)| {
            for (sequence, row) in rows.chunks_exact_mut(columns).enumerate() {
                for (head, row) in row.chunks_exact_mut(d).enumerate() {
                    let from = &heads[starts[sequence] + (head * packing.lengths[sequence] + time) * d..][..d];
                    if add {
                        row.iter_mut().zip(from).for_each(|(to, x)| *to += scale * x);
                    } else {
                        row.iter_mut().zip(from).for_each(|(to, x)| *to = scale * x);
                    }
                }
            }
        });
    }

    fn split_mut<'a>(&self, heads: &'a mut [f32], packing: Packing) -> Vec<&'a mut [f32]> {
        split(heads, packing.lengths.iter().flat_map(|length| std::iter::repeat_n(length * self.width, self.heads)))
    }

    fn split<'a>(&self, heads: &'a [f32], packing: Packing) -> Vec<&'a [f32]> {
        let mut rest = heads;
        let lengths = packing.lengths.iter().flat_map(|length| std::iter::repeat_n(length * self.width, self.heads));
        lengths.map(|length| rest.split_off(..length).unwrap_or_default()).collect()
    }
}

/// Some queries of a sequence, and how many keys they have scores to.
struct Block {
    first: usize,
    rows: usize,
    keys: usize,
}

/// scores `[rows, keys]` = q k^T.
fn products(block: &Block, width: usize, q: &[f32], k: &[f32], scores: &mut [f32]) {
    let (q, k) = (Matrix::rows(q, width), Matrix::rows(k, width).transposed());
    matmul(block.rows, block.keys, width, q, k, scores, block.keys, false);
}

fn parts<const N: usize>(mut rest: &mut [f32], lengths: [usize; N]) -> [&mut [f32]; N] {
    lengths.map(|length| rest.split_off_mut(..length).expect("the workspace was measured"))
}

pub(super) fn split(mut rest: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    lengths.map(|length| rest.split_off_mut(..length).unwrap_or_default()).collect()
}

/// Scores become probabilities; keys behind a causal query have none.
struct Softmax<'a> {
    block: &'a Block,
    causal: bool,
    scores: &'a mut [f32],
    /// ln sum exp(score) of every row.
    sums: &'a mut [f32],
}

/// How many keys a row of a block sees.
#[inline(always)]
fn seen(block: &Block, causal: bool, row: usize) -> usize {
    if causal { block.keys.min(block.first + row + 1) } else { block.keys }
}

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Softmax { block, causal, scores, sums } = self;
        for (row, (scores, log_sum)) in scores.chunks_exact_mut(block.keys).zip(sums).enumerate() {
            let (scores, hidden) = scores.split_at_mut(seen(block, causal, row));
            hidden.fill(0.0);
            let max = row_max(simd, scores);
            let (shift, mut sum) = (simd.splat_f32s(max), simd.splat_f32s(0.0));
            let (vectors, rest) = S::as_mut_simd_f32s(scores);
            for score in vectors {
                *score = exp_nonpositive(simd, simd.sub_f32s(*score, shift));
                sum = simd.add_f32s(sum, *score);
            }
            let mut sum = simd.reduce_sum_f32s(sum);
            if !rest.is_empty() {
                let last = exp_nonpositive(simd, simd.sub_f32s(simd.partial_load_f32s(rest), shift));
                simd.partial_store_f32s(rest, last);
                sum += rest.iter().sum::<f32>();
            }
            *log_sum = max + sum.ln();
            let factor = 1.0 / sum;
            scores.iter_mut().for_each(|score| *score *= factor);
        }
    }
}

/// The same from the sums that forward kept.
struct Probabilities<'a> {
    block: &'a Block,
    causal: bool,
    scores: &'a mut [f32],
    sums: &'a [f32],
}

impl WithSimd for Probabilities<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Probabilities { block, causal, scores, sums } = self;
        for (row, (scores, &log_sum)) in scores.chunks_exact_mut(block.keys).zip(sums).enumerate() {
            let (scores, hidden) = scores.split_at_mut(seen(block, causal, row));
            hidden.fill(0.0);
            let shift = simd.splat_f32s(log_sum);
            let (vectors, rest) = S::as_mut_simd_f32s(scores);
            for score in vectors {
                *score = exp_nonpositive(simd, simd.sub_f32s(*score, shift));
            }
            if !rest.is_empty() {
                let last = exp_nonpositive(simd, simd.sub_f32s(simd.partial_load_f32s(rest), shift));
                simd.partial_store_f32s(rest, last);
            }
        }
    }
}
