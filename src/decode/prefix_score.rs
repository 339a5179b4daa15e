//! The CTC prefix score: the probability of all labellings that begin with a prefix (Watanabe et al. 2017, algorithm 2). T frames, K candidates.
//!
//! For a prefix g, `label[t]` and `blank[t]` are ln p of all paths over the frames 0..=t that stand for g and end in its last label or in a blank.
//! With a candidate c behind g (y is ln p of a symbol at a frame, ⊕ adds probabilities):
//!
//! ```text
//! φ[t]       = label_g[t] ⊕ blank_g[t], but blank_g[t] alone if c is the last label of g: a repetition needs a blank between
//! label[t]   = (label[t-1] ⊕ φ[t-1]) + y[t][c]
//! blank[t]   = (label[t-1] ⊕ blank[t-1]) + y[t][blank]
//! Ψ(g c ...) = ⊕ over t of φ[t-1] + y[t][c]
//! ```
//!
//! The end symbol's score is ln p of g itself. All candidates of a prefix are computed together, a frame at a time: 3 T K additions of
//! probabilities, in f64.

use super::joint::Symbols;
use super::{BLANK, normalise};
use crate::error::Result;

const NEVER: f64 = f64::NEG_INFINITY;

/// The scores of an utterance: ln p, [T, symbols].
pub struct PrefixScore {
    logs: Vec<f64>,
    frames: usize,
    symbols: Symbols,
}

/// A prefix: `label` and `blank`, [T] each.
#[derive(Debug, Clone)]
pub struct PrefixState {
    label: Vec<f64>,
    blank: Vec<f64>,
}

/// A prefix with each of its candidates.
pub struct Extension {
    /// Ψ of each candidate; the end symbol's is ln p of the prefix itself.
    pub scores: Vec<f64>,
    /// [T, K].
    label: Vec<f64>,
    blank: Vec<f64>,
}

impl Extension {
    /// The prefix with the candidate at `place`.
    pub fn state(&self, place: usize) -> PrefixState {
        let column = |values: &[f64]| values.iter().copied().skip(place).step_by(self.scores.len()).collect();
        PrefixState { label: column(&self.label), blank: column(&self.blank) }
    }
}

/// ln(e^a + e^b). What is smaller by e^-40 is below the last bit.
#[inline]
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    let difference = low - high;
    // Of two impossible ones it is no number, and this is false.
    if difference > -40.0 { high + difference.exp().ln_1p() } else { high }
}

impl PrefixScore {
    /// `scores` [T, symbols], as logits or log probabilities; at least one frame.
    ///
    /// # Errors
    /// A frame with a score that is not a number, or without a possible symbol.
    pub fn new(scores: &[f32], symbols: Symbols) -> Result<Self> {
        let mut logs = vec![0.0; scores.len()];
        let frames = scores.chunks_exact(symbols.count).zip(logs.chunks_exact_mut(symbols.count));
        for (index, (frame, logs)) in frames.enumerate() {
            normalise("CTC prefix score", index, frame, logs)?;
        }
        Ok(PrefixScore { logs, frames: scores.len() / symbols.count, symbols })
    }

    fn at(&self, frame: usize, symbol: u32) -> f64 {
        self.logs[frame * self.symbols.count + symbol as usize]
    }

    /// The empty prefix, whose score is 0.
    pub fn initial(&self) -> PrefixState {
        let mut sum = 0.0;
        let blank = (0..self.frames).map(|frame| {
            sum += self.at(frame, BLANK);
            sum
        });
        PrefixState { label: vec![NEVER; self.frames], blank: blank.collect() }
    }

    /// `prefix` (its labels alone) with each of `candidates`, none of which is the blank.
    pub fn extend(&self, state: &PrefixState, prefix: &[u32], candidates: &[u32]) -> Extension {
        let (frames, count, length) = (self.frames, candidates.len(), prefix.len());
        let mut label = vec![NEVER; frames * count];
        let mut blank = vec![NEVER; frames * count];
        let mut scores = vec![NEVER; count];
        let sums: Vec<f64> =
            state.label.iter().zip(&state.blank).map(|(&label, &blank)| log_add(label, blank)).collect();
        if length == 0 {
            for (place, &candidate) in candidates.iter().enumerate() {
                label[place] = self.at(0, candidate);
                scores[place] = label[place];
            }
        }
        // n labels take n frames at least, so the first paths with one more end in frame n.
        for frame in length.max(1)..frames {
            let (before, now) = ((frame - 1) * count, frame * count);
            let blank_now = self.at(frame, BLANK);
            for (place, &candidate) in candidates.iter().enumerate() {
                let repeats = prefix.last() == Some(&candidate);
                let phi = if repeats { state.blank[frame - 1] } else { sums[frame - 1] };
                let y = self.at(frame, candidate);
                label[now + place] = log_add(label[before + place], phi) + y;
                blank[now + place] = log_add(label[before + place], blank[before + place]) + blank_now;
                scores[place] = log_add(scores[place], phi + y);
            }
        }
        for (place, _) in candidates.iter().enumerate().filter(|&(_, &candidate)| candidate == self.symbols.end) {
            scores[place] = sums[frames - 1];
        }
        Extension { scores, label, blank }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{labellings, logits};
    use super::*;

    #[test]
    fn a_prefixs_score_is_the_sum_of_all_labellings_that_begin_with_it() {
        for seed in 0..12 {
            let (frames, count) = (1 + seed as usize % 5, 4);
            let symbols = Symbols { count, end: 3 };
            let scores = logits(seed, frames, count, seed % 2 == 1);
            let all = labellings(&scores, count);
            let prefix_score = PrefixScore::new(&scores, symbols).unwrap();
            let mut prefixes = vec![(Vec::new(), prefix_score.initial())];
            while let Some((prefix, state)) = prefixes.pop() {
                let extension = prefix_score.extend(&state, &prefix, &[1, 2, 3]);
                for (place, candidate) in [1, 2].into_iter().enumerate() {
                    let longer = [prefix.as_slice(), &[candidate]].concat();
                    let expected: f64 =
                        all.iter().filter(|(labels, _)| labels.starts_with(&longer)).map(|(_, p)| p).sum();
                    let found = extension.scores[place].exp();
                    assert!((found - expected).abs() < 1e-12, "{longer:?}: {found} {expected}");
                    if longer.len() <= frames {
                        prefixes.push((longer, extension.state(place)));
                    }
                }
                let alone = all.get(&prefix).copied().unwrap_or(0.0);
                assert!((extension.scores[2].exp() - alone).abs() < 1e-12, "{prefix:?}");
            }
        }
    }

    #[test]
    fn probabilities_are_added_and_an_impossible_one_adds_nothing() {
        assert_eq!(log_add(NEVER, NEVER), NEVER);
        assert_eq!(log_add(NEVER, -3.0), -3.0);
        assert_eq!(log_add(0.0, -50.0), 0.0);
        assert!((log_add(-1.0, -2.0) - ((-1.0_f64).exp() + (-2.0_f64).exp()).ln()).abs() < 1e-15);
    }
}
