//! From a network's scores to symbols, after CTC (Graves et al., "Connectionist temporal classification", ICML 2006): a path has one
//! symbol per frame; the labelling it stands for is found by merging repeats and then dropping blanks. T frames, V symbols, blank is 0.
//!
//! Every decoder takes the scores [T, V] of one utterance, without padding, as logits or as log probabilities: frames are
//! normalised here, in f64, which leaves log probabilities as they are. Decoding many utterances in parallel is the caller's part.

mod greedy;
pub mod joint;
mod prefix_beam;
mod prefix_score;

pub use greedy::greedy;
pub use joint::{JointOptions, Models, NBest, Predictor, Scored, Symbols, Utterance, joint_beams};
pub use prefix_beam::prefix_beam;

use crate::error::{Error, Result};

/// The id of the blank.
pub const BLANK: u32 = 0;

/// What was recognised.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Ids of symbols, never the blank.
    pub tokens: Vec<u32>,
    /// Natural logarithm of the probability that the decoder maximised: see there.
    pub log_probability: f64,
}

/// Checks that the scores are whole frames of `symbols` numbers.
fn check_shape(operation: &'static str, scores: &[f32], symbols: usize) -> Result<()> {
    if symbols == 0 || u32::try_from(symbols).is_err() || !scores.len().is_multiple_of(symbols) {
        return Err(Error::operation(
            operation,
            format!("{} scores are not frames of {symbols} symbols", scores.len()),
        )
        .remedy("Give the scores as [frames, symbols]"));
    }
    Ok(())
}

/// Log softmax of frame number `index` into `out`. A score of minus infinity is a symbol that cannot be.
fn normalise(operation: &'static str, index: usize, frame: &[f32], out: &mut [f64]) -> Result<()> {
    let largest = frame.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // The maximum passes over a NaN.
    if !largest.is_finite() || frame.iter().any(|score| score.is_nan()) {
        let problem = if frame.iter().all(|&score| score == f32::NEG_INFINITY) {
            format!("no symbol is possible in frame {index}: all its scores are minus infinity")
        } else {
            format!("frame {index} has a score that is not a number or infinite")
        };
        return Err(Error::operation(operation, problem)
            .remedy("The network's weights or the features are not finite: look into the log of its training"));
    }
    let largest = f64::from(largest);
    let sum: f64 = frame.iter().map(|&score| (f64::from(score) - largest).exp()).sum();
    let normaliser = largest + sum.ln();
    for (to, &score) in out.iter_mut().zip(frame) {
        *to = f64::from(score) - normaliser;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod testing {
    //! Every path of a small utterance, one by one.

    use std::collections::BTreeMap;

    use crate::random::Philox;

    /// Random logits [frames, symbols], some of them minus infinity (never a frame's first).
    pub fn logits(seed: u64, frames: usize, symbols: usize, impossible: bool) -> Vec<f32> {
        let mut random = Philox::named(seed, "logits").stream();
        (0..frames * symbols)
            .map(|index| {
                let logit = 2.0 * random.normal() as f32;
                let never = impossible && index % symbols != 0 && random.below(4) == 0;
                if never { f32::NEG_INFINITY } else { logit }
            })
            .collect()
    }

    pub fn log_softmax(scores: &[f32], symbols: usize) -> Vec<f64> {
        let mut out = vec![0.0; scores.len()];
        for (index, (frame, out)) in scores.chunks(symbols).zip(out.chunks_mut(symbols)).enumerate() {
            super::normalise("test", index, frame, out).unwrap();
        }
        out
    }

    /// Merges repeats, then drops blanks.
    pub fn collapse(path: &[u32]) -> Vec<u32> {
        let mut merged = path.to_vec();
        merged.dedup();
        merged.retain(|&symbol| symbol != 0);
        merged
    }

    /// The probability of every labelling, as a sum over all V^T paths.
    pub fn labellings(scores: &[f32], symbols: usize) -> BTreeMap<Vec<u32>, f64> {
        let logs = log_softmax(scores, symbols);
        let frames = scores.len() / symbols;
        let mut probabilities = BTreeMap::new();
        for number in 0..symbols.pow(frames as u32) {
            let mut rest = number;
            let path: Vec<u32> = (0..frames).map(|_| (rest % symbols, rest /= symbols).0 as u32).collect();
            let log: f64 = path.iter().zip(logs.chunks(symbols)).map(|(&symbol, frame)| frame[symbol as usize]).sum();
            *probabilities.entry(collapse(&path)).or_insert(0.0) += log.exp();
        }
        probabilities
    }
}
