//! The best path: the most probable symbol of every frame, repeats merged, blanks dropped.

use super::{BLANK, Hypothesis, check_shape, normalise};
use crate::error::Result;

const NAME: &str = "greedy decoding";

/// Decodes `scores` [frames, symbols] along the most probable path; between equal scores the lowest id wins. The hypothesis's
/// log probability is that of this single path, a lower bound of its labelling's. No frames give no tokens and log probability 0.
///
/// # Errors
/// Scores that are not whole frames; a frame with a NaN, with plus infinity, or with nothing but minus infinity.
pub fn greedy(scores: &[f32], symbols: usize) -> Result<Hypothesis> {
    check_shape(NAME, scores, symbols)?;
    let mut logs = vec![0.0; symbols];
    let mut hypothesis = Hypothesis { tokens: Vec::new(), log_probability: 0.0 };
    let mut previous = BLANK;
    for (index, frame) in scores.chunks_exact(symbols).enumerate() {
        normalise(NAME, index, frame, &mut logs)?;
        // Compared as they came: rounding in the normalisation must not make or break a tie.
        let best = (1..symbols).fold(0, |best, symbol| if frame[symbol] > frame[best] { symbol } else { best });
        hypothesis.log_probability += logs[best];
        let best = best as u32;
        if best != BLANK && best != previous {
            hypothesis.tokens.push(best);
        }
        previous = best;
    }
    Ok(hypothesis)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{collapse, log_softmax, logits};
    use super::*;

    /// Logits in which the path given is the best one.
    fn along(path: &[usize], symbols: usize) -> Vec<f32> {
        path.iter().flat_map(|&best| (0..symbols).map(move |symbol| if symbol == best { 3.0 } else { 0.0 })).collect()
    }

    #[test]
    fn repeats_are_merged_unless_a_blank_parts_them() {
        let tokens = |path: &[usize]| greedy(&along(path, 4), 4).unwrap().tokens;
        assert_eq!(tokens(&[0, 1, 1, 0, 1, 2, 2, 3, 0, 0]), [1, 1, 2, 3]);
        assert_eq!(tokens(&[2, 1, 2]), [2, 1, 2]);
        assert!(tokens(&[0, 0, 0]).is_empty());
    }

    #[test]
    fn the_path_is_the_most_probable_of_all() {
        for seed in 0..20 {
            let (frames, symbols) = (4, 3);
            let scores = logits(seed, frames, symbols, seed % 2 == 1);
            let logs = log_softmax(&scores, symbols);
            let mut best = (f64::NEG_INFINITY, vec![]);
            for number in 0..symbols.pow(frames as u32) {
                let path: Vec<u32> = (0..frames).map(|t| (number / symbols.pow(t as u32) % symbols) as u32).collect();
                let log: f64 = path.iter().enumerate().map(|(t, &symbol)| logs[t * symbols + symbol as usize]).sum();
                if log > best.0 {
                    best = (log, collapse(&path));
                }
            }
            let hypothesis = greedy(&scores, symbols).unwrap();
            assert_eq!(hypothesis.tokens, best.1);
            assert!((hypothesis.log_probability - best.0).abs() < 1e-12);
        }
    }

    #[test]
    fn between_equal_scores_the_lowest_id_wins() {
        assert_eq!(greedy(&[1.0, 2.0, 2.0, 1.0, 5.0, 5.0], 3).unwrap().tokens, [1]);
        assert!(greedy(&[2.0, 2.0, 2.0], 3).unwrap().tokens.is_empty());
    }

    #[test]
    fn logits_and_their_log_probabilities_decode_alike() {
        let scores = logits(5, 30, 7, false);
        let normalised: Vec<f32> = log_softmax(&scores, 7).iter().map(|&log| log as f32).collect();
        let (first, second) = (greedy(&scores, 7).unwrap(), greedy(&normalised, 7).unwrap());
        assert_eq!(first.tokens, second.tokens);
        assert!((first.log_probability - second.log_probability).abs() < 30.0 * 4e-7);
    }

    #[test]
    fn no_frames_give_no_tokens() {
        assert_eq!(greedy(&[], 5).unwrap(), Hypothesis { tokens: vec![], log_probability: 0.0 });
    }

    #[test]
    fn impossible_symbols_are_never_taken() {
        let hypothesis = greedy(&[f32::NEG_INFINITY, f32::NEG_INFINITY, -80.0], 3).unwrap();
        assert_eq!(hypothesis, Hypothesis { tokens: vec![2], log_probability: 0.0 });
    }

    #[test]
    fn scores_that_are_no_numbers_are_an_error_naming_the_frame() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = greedy(&[0.0, 1.0, 0.0, bad], 2).unwrap_err();
            assert!(error.to_string().contains("frame 1"), "{error}");
        }
        let error = greedy(&[f32::NEG_INFINITY; 2], 2).unwrap_err();
        assert!(error.to_string().contains("no symbol is possible in frame 0"), "{error}");
        assert!(greedy(&[0.0; 5], 2).is_err());
        assert!(greedy(&[0.0; 5], 0).is_err());
    }
}
