//! Connectionist temporal classification (Graves et al. 2006), log-softmax fused: loss and gradient to the logits in one pass.
//!
//! Per sequence of T frames and L labels: states are blank 0, label 0, blank 1, ..., label L - 1, blank L, kept as two arrays, blanks
//! b [L + 1] and labels a [L], so that every transition is a neighbour in memory:
//!
//! ```text
//! alpha: b_t[l] = (b[l] + a[l-1]) y_t(blank)        a_t[l] = (a[l] + b[l] + skip[l] a[l-1]) y_t(label l)
//! beta (emission of its own frame left out), u = beta y of the next frame:
//!        b_t[l] = ub[l] + ua[l]                     a_t[l] = ua[l] + ub[l+1] + skip[l+1] ua[l+1]
//! d loss / d logit_t(k) = y_t(k) - sum of alpha beta / p over the states of k
//! ```
//! skip[l] is 1 where label l differs from label l - 1, else 0.
//!
//! Numbers are a mantissa in [1, 2) and an integer exponent of their own: a probability as small as 2^(-2^28) keeps the relative error of an f32,
//! sums need no exp and no log, and nothing overflows or vanishes beside a larger neighbour. Every number here is a sum of
//! products of nonnegative ones, so relative errors only add up: one rounding for each of some 3 T operations, less than 1e-5
//! at T = 2000 by their random signs. (Logarithms in f32 would err by 1e-5 at a single -200.) Emissions are exp(x - max), the
//! softmax's denominators enter the loss alone: they cancel in alpha beta / p.
//!
//! Work: at L = 60 and 8 lanes a frame has 8 vectors of each kind, some 400 instructions for alpha, 600 for beta and the
//! posteriors, 500 for the softmax of 50 symbols, the gathers and the scatter: 0.2 microseconds if all overlapped, 0.45 measured. 32 x 400
//! frames take 5.7 ms of a core, and the workspace of a sequence stays in its cache.
//!
//! Sequences are independent tasks; each runs in one fixed order.

mod kernel;
#[cfg(test)]
pub(crate) mod tests;

use super::simd::apply;
use kernel::{Alignment, Frames};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

/// What is wrong with a label: its sequence, its place, its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadLabel {
    pub sequence: usize,
    pub position: usize,
    pub label: u32,
}

/// A batch of logits with its transcripts.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// [R, V], packed: frame t of sequence n is row `offsets[t] + n`.
    pub logits: &'a [f32],
    /// V.
    pub symbols: usize,
    pub offsets: &'a [usize],
    /// Frames of each sequence, descending.
    pub lengths: &'a [usize],
    /// Symbols of each transcript, without the blank.
    pub labels: &'a [&'a [u32]],
    pub blank: u32,
}

impl Batch<'_> {
    /// Floats of workspace that [`ctc`] needs: one part for each thread of the current pool, large enough for any sequence. (Shorter
    /// ones will do, down to one part; then threads wait for each other.)
    pub fn workspace_length(&self) -> usize {
        rayon::current_num_threads().min(self.lengths.len()) * self.part_length()
    }

    fn part_length(&self) -> usize {
        let need = |(&length, labels): (&usize, &&[u32])| kernel::workspace_length(length, labels.len(), self.symbols);
        self.lengths.iter().zip(self.labels).map(need).max().unwrap_or(0)
    }

    /// True if `labels` can be aligned with `length` frames: a label repeated at once needs a blank between.
    pub fn feasible(length: usize, labels: &[u32]) -> bool {
        labels.len() + labels.windows(2).filter(|pair| pair[0] == pair[1]).count() <= length
    }
}

/// -ln p(labels | logits) of each sequence into `losses` and, if asked for, its gradient to the logits into `gradient` [R, V].
///
/// Returns for each sequence whether its labels fit its frames; where not, the loss is 0 and the rows of the gradient are 0. Finite
/// logits give finite losses and gradients: beside a frame's largest, emissions below 2^-f, f = min(2^20, 2^28 / T), count as 2^-f
/// (7.2e5 nats; 9.3e4 at T = 2000).
///
/// # Errors
/// The first label that is the blank or not below V; nothing is computed then.
///
/// # Panics
/// If a slice has not the length that the batch asks for.
pub fn ctc(
    batch: &Batch,
    losses: &mut [f64],
    gradient: Option<&mut [f32]>,
    workspace: &mut [f32],
) -> Result<Vec<bool>, BadLabel> {
    check(batch, losses, gradient.as_deref(), workspace);
    for (sequence, labels) in batch.labels.iter().enumerate() {
        for (position, &label) in labels.iter().enumerate() {
            if label == batch.blank || label as usize >= batch.symbols {
                return Err(BadLabel { sequence, position, label });
            }
        }
    }
    let gradient = gradient.map(|gradient| Rows(gradient.as_mut_ptr()));
    // A thread takes one sequence at a time and nothing inside it is parallel, so with a part for every thread no lock is ever waited
    // for; and a part is small enough to stay in that core's cache.
    let parts: Vec<Mutex<&mut [f32]>> =
        workspace.chunks_exact_mut(batch.part_length().max(1)).map(Mutex::new).collect();
    let run = |(sequence, loss): (usize, &mut f64)| {
        let (length, labels) = (batch.lengths[sequence], batch.labels[sequence]);
        let frames = Frames {
            logits: batch.logits,
            gradient,
            symbols: batch.symbols,
            offsets: &batch.offsets[..length],
            sequence,
        };
        let feasible = Batch::feasible(length, labels);
        *loss = 0.0;
        if !feasible {
            frames.clear_gradient();
        } else if length > 0 {
            let part = &parts[rayon::current_thread_index().unwrap_or(0) % parts.len()];
            // A poisoned part is as good as any: its contents are never read before they are written.
            let mut workspace = part.lock().unwrap_or_else(PoisonError::into_inner);
            *loss = apply(Alignment { frames, labels, blank: batch.blank as usize, workspace: &mut workspace });
        }
        feasible
    };
    Ok(losses.par_iter_mut().enumerate().map(run).collect())
}

/// The gradient's rows, written by several threads: a task writes the rows of its own sequence only.
#[derive(Debug, Clone, Copy)]
struct Rows(*mut f32);

// SAFETY: only the pointer moves between threads; rows of different sequences are disjoint.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

fn check(batch: &Batch, losses: &[f64], gradient: Option<&[f32]>, workspace: &[f32]) {
    let rows = batch.offsets.last().copied().unwrap_or(0);
    assert_eq!(batch.logits.len(), rows * batch.symbols, "CTC logits: [R, V]");
    assert!((batch.blank as usize) < batch.symbols || rows == 0, "the blank is one of the symbols");
    assert_eq!(batch.labels.len(), batch.lengths.len(), "a transcript for every sequence");
    assert_eq!(losses.len(), batch.lengths.len(), "a loss for every sequence");
    assert!(gradient.is_none_or(|gradient| gradient.len() == batch.logits.len()), "CTC gradient: [R, V]");
    assert!(workspace.len() >= batch.part_length(), "the CTC workspace is too short");
    // The rows that a sequence names are then its own: the tasks below may write them side by side.
    for (n, &length) in batch.lengths.iter().enumerate() {
        assert!(length < batch.offsets.len().max(1) && (n == 0 || length <= batch.lengths[n - 1]), "lengths descend");
    }
    for (t, pair) in batch.offsets.windows(2).enumerate() {
        let active = batch.lengths.partition_point(|&length| length > t);
        assert_eq!(pair[0] + active, pair[1], "offsets and lengths disagree at time {t}");
    }
}
