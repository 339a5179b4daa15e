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
//! The end symbol's score is ln p of g itself. Ψ asks only for g's own probabilities, so a candidate costs T exponentials, and T additions of probabilities
//! three times over only once it is chosen; all in f64.

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

/// A prefix: `blank`, and the sum of `label` and `blank`, [T] each.
#[derive(Debug, Clone)]
pub struct PrefixState {
    blank: Vec<f64>,
    either: Vec<f64>,
}

impl PrefixState {
    fn new(label: &[f64], blank: Vec<f64>) -> Self {
        let either = label.iter().zip(&blank).map(|(&label, &blank)| log_add(label, blank)).collect();
        PrefixState { blank, either }
    }

    /// φ of a candidate, which repeats the prefix's last label or does not.
    fn phi(&self, repeats: bool) -> &[f64] {
        if repeats { &self.blank } else { &self.either }
    }
}

/// What is smaller by this in its logarithm is below the last bit of a sum.
const NOTHING: f64 = -40.0;

/// ln(e^a + e^b).
#[inline]
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    let difference = low - high;
    // Of two impossible ones it is no number, and this is false.
    if difference > NOTHING { high + difference.exp().ln_1p() } else { high }
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
        PrefixState::new(&vec![NEVER; self.frames], blank.collect())
    }

    /// Ψ of `prefix` (its labels alone) with each of `candidates`, none of which is the blank; the end symbol's is ln p of the prefix itself.
    pub fn scores(&self, state: &PrefixState, prefix: &[u32], candidates: &[u32]) -> Vec<f64> {
        let mut terms = Vec::with_capacity(self.frames);
        let mut score = |&candidate: &u32| {
            if candidate == self.symbols.end {
                return state.either[self.frames - 1];
            }
            let phi = state.phi(prefix.last() == Some(&candidate));
            // n labels take n frames at least, so the first paths with one more end in frame n.
            let term = |frame: usize| {
                let before = if frame > 0 { phi[frame - 1] } else { 0.0 };
                before + self.at(frame, candidate)
            };
            terms.clear();
            terms.extend((prefix.len()..self.frames).map(term));
            let largest = terms.iter().copied().fold(NEVER, f64::max);
            // Where all are impossible, their differences to the largest are no numbers and count for nothing.
            let parts = terms.iter().map(|term| term - largest).filter(|&part| part > NOTHING);
            largest + parts.map(f64::exp).sum::<f64>().ln()
        };
        candidates.iter().map(&mut score).collect()
    }

    /// `prefix` with `candidate`, neither the blank nor the end symbol, behind it.
    pub fn extended(&self, state: &PrefixState, prefix: &[u32], candidate: u32) -> PrefixState {
        let phi = state.phi(prefix.last() == Some(&candidate));
        let mut label = vec![NEVER; self.frames];
        let mut blank = vec![NEVER; self.frames];
        if prefix.is_empty() {
            label[0] = self.at(0, candidate);
        }
        for frame in prefix.len().max(1)..self.frames {
            label[frame] = log_add(label[frame - 1], phi[frame - 1]) + self.at(frame, candidate);
            blank[frame] = log_add(label[frame - 1], blank[frame - 1]) + self.at(frame, BLANK);
        }
        PrefixState::new(&label, blank)
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
                let scores = prefix_score.scores(&state, &prefix, &[1, 2, 3]);
                for (candidate, score) in [1, 2].into_iter().zip(&scores) {
                    let longer = [prefix.as_slice(), &[candidate]].concat();
                    let expected: f64 =
                        all.iter().filter(|(labels, _)| labels.starts_with(&longer)).map(|(_, p)| p).sum();
                    let found = score.exp();
                    assert!((found - expected).abs() < 1e-12, "{longer:?}: {found} {expected}");
                    if longer.len() <= frames {
                        prefixes.push((longer, prefix_score.extended(&state, &prefix, candidate)));
                    }
                }
                let alone = all.get(&prefix).copied().unwrap_or(0.0);
                assert!((scores[2].exp() - alone).abs() < 1e-12, "{prefix:?}");
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
