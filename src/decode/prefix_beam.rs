//! CTC prefix beam search: the most probable labellings, each summed over all the paths that the beam has kept of it.
//!
//! After Graves, "Supervised sequence labelling with recurrent neural networks" (2012), section 7.5, in the frame-synchronous form of Hannun
//! et al., "First-pass large vocabulary continuous speech recognition using bi-directional recurrent DNNs" (2014), without a language
//! model. A prefix is a labelling of the frames so far. Its probability is kept in two parts, the paths that end in a blank
//! and those that end in its last label, because a repeated label makes a new symbol only after a blank:
//!
//! ```text
//! p of a prefix ending in c, at frame t (p_blank and p_label are of frame t-1, y of frame t):
//!   p_blank' = (p_blank + p_label) y(blank)
//!   p_label' = p_label y(c)  +  (p_blank of its parent) y(c)  +  (p_label of its parent) y(c) unless the parent ends in c too
//! ```
//!
//! Nothing is pruned but by the beam's width. Probabilities are f64 logarithms.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::{BLANK, Hypothesis, check_shape, normalise};
use crate::error::{Error, Result};

const NAME: &str = "prefix beam search";
const NEVER: f64 = f64::NEG_INFINITY;

/// The best labellings of `scores` [frames, symbols], most probable first, at most `width` of them. The log probability is that
/// of the labelling, summed over the paths that stayed within the beam: exact where the beam held every prefix, else a lower bound.
///
/// After each frame the `width` most probable prefixes are kept. A width of 1 keeps one prefix, by the sum over its paths: not
/// the same as greedy decoding, which looks at single paths. Ties inside the search go to the prefix that was there before, then
/// to the one whose parent ranked higher, then to the lower id; ties in the result to the smaller sequence of ids. No frames give
/// the empty labelling with log probability 0. Time is frames · width · symbols; memory grows by at most `width` prefixes a frame.
///
/// # Errors
/// A width of 0; scores that are not whole frames; a frame with a NaN, with plus infinity, or with nothing but minus infinity.
pub fn prefix_beam(scores: &[f32], symbols: usize, width: usize) -> Result<Vec<Hypothesis>> {
    if width == 0 {
        return Err(Error::key("--beam", "a beam of width 0 keeps no hypothesis")
            .remedy("Give a width of at least 1, or leave the option out for greedy decoding"));
    }
    check_shape(NAME, scores, symbols)?;
    let mut logs = vec![0.0; symbols];
    let mut search = Search::new(symbols, width);
    for (index, frame) in scores.chunks_exact(symbols).enumerate() {
        normalise(NAME, index, frame, &mut logs)?;
        search.advance(&logs);
    }
    let mut hypotheses: Vec<Hypothesis> = search
        .beam
        .iter()
        .map(|entry| Hypothesis { tokens: search.prefixes.tokens(entry.node), log_probability: entry.total() })
        .collect();
    hypotheses.sort_by(|a, b| b.log_probability.total_cmp(&a.log_probability).then_with(|| a.tokens.cmp(&b.tokens)));
    Ok(hypotheses)
}

/// ln(e^a + e^b).
fn log_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == NEVER { high } else { high + (low - high).exp().ln_1p() }
}

/// All prefixes that were ever in the beam, as a trie: a prefix is its parent and one label more.
struct Prefixes {
    /// (parent, last label); node 0 is the empty prefix, its own parent, and ends in what no label is.
    nodes: Vec<(u32, u32)>,
    /// (parent, label) -> node. Looked up, never iterated: its order cannot matter.
    children: HashMap<(u32, u32), u32>,
}

const ROOT: u32 = 0;

impl Prefixes {
    /// The prefix `parent` + `label`. One that left the beam and comes back is the same node again: its children may
    /// still be in the beam and must find their parent.
    fn child(&mut self, parent: u32, label: u32) -> u32 {
        *self.children.entry((parent, label)).or_insert_with(|| {
            self.nodes.push((parent, label));
            self.nodes.len() as u32 - 1
        })
    }

    fn tokens(&self, mut node: u32) -> Vec<u32> {
        let mut tokens = Vec::new();
        while node != ROOT {
            let (parent, label) = self.nodes[node as usize];
            tokens.push(label);
            node = parent;
        }
        tokens.reverse();
        tokens
    }
}

/// A prefix in the beam, with the log probabilities of its paths that end in a blank and in its last label.
#[derive(Clone, Copy)]
struct Entry {
    node: u32,
    blank: f64,
    label: f64,
}

impl Entry {
    fn total(&self) -> f64 {
        log_add(self.blank, self.label)
    }
}

/// What may be in the beam after this frame.
struct Candidate {
    /// Log probability of all its paths.
    total: f64,
    /// Its place in the old beam, or its parent's.
    slot: u32,
    /// The label that makes it a new prefix; blank for one that stays.
    label: u32,
}

impl Candidate {
    /// Best first. No two candidates are equal, so that every way of sorting gives the same order.
    fn rank(&self, other: &Self) -> Ordering {
        other
            .total
            .total_cmp(&self.total)
            .then_with(|| (self.label != BLANK).cmp(&(other.label != BLANK)))
            .then_with(|| (self.slot, self.label).cmp(&(other.slot, other.label)))
    }
}

struct Search {
    symbols: usize,
    width: usize,
    prefixes: Prefixes,
    /// Most probable first.
    beam: Vec<Entry>,
    /// node -> its slot in the beam, or `ABSENT`.
    slots: Vec<u32>,
    /// [slot, label]: true if that extension is a prefix of the beam itself, so that its paths are counted there.
    present: Vec<bool>,
    candidates: Vec<Candidate>,
    staying: Vec<Entry>,
}

const ABSENT: u32 = u32::MAX;

impl Search {
    fn new(symbols: usize, width: usize) -> Self {
        Search {
            symbols,
            width,
            prefixes: Prefixes { nodes: vec![(ROOT, BLANK)], children: HashMap::new() },
            beam: vec![Entry { node: ROOT, blank: 0.0, label: NEVER }],
            slots: vec![0],
            present: Vec::new(),
            candidates: Vec::new(),
            staying: Vec::new(),
        }
    }

    /// Moves the beam on by one frame of log probabilities [symbols].
    fn advance(&mut self, logs: &[f64]) {
        self.propose_staying(logs);
        self.propose_extensions(logs);
        if self.candidates.len() > self.width {
            self.candidates.select_nth_unstable_by(self.width, Candidate::rank);
            self.candidates.truncate(self.width);
        }
        self.candidates.sort_unstable_by(Candidate::rank);
        self.replace_beam();
    }

    /// The prefixes of the beam as they are after a blank, after their last label again, and after their parent's extension.
    fn propose_staying(&mut self, logs: &[f64]) {
        self.present.clear();
        self.present.resize(self.beam.len() * self.symbols, false);
        self.staying.clear();
        self.candidates.clear();
        for (slot, &entry) in self.beam.iter().enumerate() {
            let (parent, last) = self.prefixes.nodes[entry.node as usize];
            let mut label = NEVER;
            if entry.node != ROOT {
                label = entry.label + logs[last as usize];
                let parent_slot = self.slots[parent as usize];
                if parent_slot != ABSENT {
                    self.present[parent_slot as usize * self.symbols + last as usize] = true;
                    label = log_add(label, self.extended(parent_slot as usize, last, logs));
                }
            }
            let stays = Entry { node: entry.node, blank: entry.total() + logs[BLANK as usize], label };
            self.staying.push(stays);
            let total = stays.total();
            if total != NEVER {
                self.candidates.push(Candidate { total, slot: slot as u32, label: BLANK });
            }
        }
    }

    /// The prefixes that are not in the beam yet.
    fn propose_extensions(&mut self, logs: &[f64]) {
        for slot in 0..self.beam.len() {
            let all = self.beam[slot].total();
            let (_, last) = self.prefixes.nodes[self.beam[slot].node as usize];
            let present = &self.present[slot * self.symbols..][..self.symbols];
            for (label, (&log, &present)) in (1_u32..).zip(logs[1..].iter().zip(&present[1..])) {
                let total = if label == last { self.beam[slot].blank } else { all } + log;
                if !present && total != NEVER {
                    self.candidates.push(Candidate { total, slot: slot as u32, label });
                }
            }
        }
    }

    /// Log probability of the paths of a prefix that go on with `label` in this frame.
    fn extended(&self, slot: usize, label: u32, logs: &[f64]) -> f64 {
        let entry = &self.beam[slot];
        let (_, last) = self.prefixes.nodes[entry.node as usize];
        logs[label as usize] + if label == last { entry.blank } else { entry.total() }
    }

    /// The candidates become the beam. There is always one: some symbol is possible in every frame, and whatever symbol that is,
    /// a possible prefix either stays or is extended by it.
    fn replace_beam(&mut self) {
        for entry in &self.beam {
            self.slots[entry.node as usize] = ABSENT;
        }
        let mut beam = Vec::with_capacity(self.candidates.len());
        for candidate in &self.candidates {
            let slot = candidate.slot as usize;
            beam.push(if candidate.label == BLANK {
                self.staying[slot]
            } else {
                let node = self.prefixes.child(self.beam[slot].node, candidate.label);
                Entry { node, blank: NEVER, label: candidate.total }
            });
        }
        self.slots.resize(self.prefixes.nodes.len(), ABSENT);
        for (slot, entry) in beam.iter().enumerate() {
            self.slots[entry.node as usize] = slot as u32;
        }
        self.beam = beam;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::testing::{labellings, log_softmax, logits};
    use super::*;

    /// The same search as plainly as it can be written: prefixes are sequences in a map, and nothing is clever.
    fn plainly(scores: &[f32], symbols: usize, width: usize) -> Vec<(Vec<u32>, f64)> {
        // prefix -> probabilities of the paths that end in a blank and in its last label
        let mut beam = BTreeMap::from([(vec![], (1.0, 0.0))]);
        for frame in log_softmax(scores, symbols).chunks(symbols) {
            let mut next: BTreeMap<Vec<u32>, (f64, f64)> = BTreeMap::new();
            for (prefix, &(blank, label)) in &beam {
                next.entry(prefix.clone()).or_default().0 += (blank + label) * frame[0].exp();
                for (symbol, log) in (1_u32..).zip(&frame[1..]) {
                    let longer: Vec<u32> = prefix.iter().copied().chain([symbol]).collect();
                    if prefix.last() == Some(&symbol) {
                        next.entry(prefix.clone()).or_default().1 += label * log.exp();
                        next.entry(longer).or_default().1 += blank * log.exp();
                    } else {
                        next.entry(longer).or_default().1 += (blank + label) * log.exp();
                    }
                }
            }
            let mut ranked: Vec<_> = next.into_iter().filter(|(_, (blank, label))| blank + label > 0.0).collect();
            ranked.sort_by(|(_, a), (_, b)| (b.0 + b.1).total_cmp(&(a.0 + a.1)));
            ranked.truncate(width);
            beam = ranked.into_iter().collect();
        }
        let mut found: Vec<_> =
            beam.into_iter().map(|(prefix, (blank, label))| (prefix, (blank + label).ln())).collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        found
    }

    #[test]
    fn a_narrow_beam_agrees_with_the_search_written_plainly() {
        for seed in 0..100 {
            let (symbols, width) = (2 + seed as usize % 5, 1 + seed as usize % 7);
            let scores = logits(seed, 25, symbols, false);
            let expected = plainly(&scores, symbols, width);
            let found = prefix_beam(&scores, symbols, width).unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, (tokens, log_probability)) in found.iter().zip(&expected) {
                assert_eq!(&found.tokens, tokens);
                // 25 frames of a few f64 roundings each.
                assert!((found.log_probability - log_probability).abs() < 1e-11);
            }
        }
    }

    #[test]
    fn a_wide_beam_finds_every_labelling_with_its_exact_probability() {
        for (frames, symbols) in [(1, 2), (2, 4), (3, 3), (4, 4), (5, 4), (5, 2)] {
            for seed in 0..6 {
                let scores = logits(seed, frames, symbols, seed % 2 == 1);
                let expected = labellings(&scores, symbols);
                let possible = expected.values().filter(|&&probability| probability > 0.0).count();
                let found = prefix_beam(&scores, symbols, 1000).unwrap();
                assert_eq!(found.len(), possible);
                for hypothesis in &found {
                    // Sums of at most 4^5 terms in f64.
                    let probability = expected[&hypothesis.tokens];
                    assert!(
                        (hypothesis.log_probability - probability.ln()).abs() < 1e-12,
                        "{hypothesis:?} {probability}"
                    );
                }
                let best = expected.values().copied().fold(0.0, f64::max);
                assert!((found[0].log_probability - best.ln()).abs() < 1e-12);
                assert!(found.is_sorted_by(|a, b| a.log_probability >= b.log_probability));
            }
        }
    }

    #[test]
    fn a_narrow_beam_never_claims_more_than_the_exact_probability() {
        for seed in 0..40 {
            let scores = logits(seed, 5, 4, seed % 2 == 1);
            let expected = labellings(&scores, 4);
            for width in 1..8 {
                let found = prefix_beam(&scores, 4, width).unwrap();
                assert!(!found.is_empty() && found.len() <= width);
                for (index, hypothesis) in found.iter().enumerate() {
                    assert!(hypothesis.log_probability <= expected[&hypothesis.tokens].ln() + 1e-12);
                    assert!(found[..index].iter().all(|other| other.tokens != hypothesis.tokens), "found twice");
                }
            }
        }
    }

    #[test]
    fn many_paths_outweigh_the_best_one() {
        // Best path: two blanks, 0.36. But the label alone has 0.4 * 0.4 + 2 * 0.24 = 0.64.
        let scores = [0.6_f32.ln(), 0.4_f32.ln()].repeat(2);
        assert!(super::super::greedy(&scores, 2).unwrap().tokens.is_empty());
        let found = prefix_beam(&scores, 2, 10).unwrap();
        assert_eq!(found[0].tokens, [1]);
        assert!((found[0].log_probability.exp() - 0.64).abs() < 1e-7);
    }

    #[test]
    fn a_prefix_that_left_the_beam_and_comes_back_is_the_same_prefix() {
        let mut prefixes = Prefixes { nodes: vec![(ROOT, BLANK)], children: HashMap::new() };
        let first = prefixes.child(ROOT, 3);
        let below = prefixes.child(first, 3);
        assert_eq!(prefixes.child(ROOT, 3), first);
        assert_eq!(prefixes.tokens(below), [3, 3]);
        assert_eq!(prefixes.nodes.len(), 3);
    }

    #[test]
    fn ties_fall_the_same_way_every_time() {
        let scores = vec![0.0; 6 * 5];
        let first = prefix_beam(&scores, 5, 4).unwrap();
        for _ in 0..5 {
            assert_eq!(prefix_beam(&scores, 5, 4).unwrap(), first);
        }
        // One frame, all symbols equal: the empty prefix stays first, then the ids in order.
        let found = prefix_beam(&[0.0; 4], 4, 3).unwrap();
        let tokens: Vec<&[u32]> = found.iter().map(|hypothesis| hypothesis.tokens.as_slice()).collect();
        assert_eq!(tokens, [&[][..], &[1], &[2]]);
    }

    #[test]
    fn no_frames_give_the_empty_labelling() {
        assert_eq!(prefix_beam(&[], 5, 3).unwrap(), [Hypothesis { tokens: vec![], log_probability: 0.0 }]);
    }

    #[test]
    fn impossible_symbols_never_appear_and_never_end_the_search() {
        // Only the label 1 is possible, in every frame: one labelling, certain.
        let scores = [f32::NEG_INFINITY, 4.0, f32::NEG_INFINITY].repeat(50);
        for width in [1, 5] {
            assert_eq!(prefix_beam(&scores, 3, width).unwrap(), [Hypothesis { tokens: vec![1], log_probability: 0.0 }]);
        }
    }

    #[test]
    fn a_long_utterance_does_not_underflow() {
        let scores = logits(1, 2000, 6, false);
        let found = prefix_beam(&scores, 6, 5).unwrap();
        assert!(found[0].log_probability.is_finite() && found[0].log_probability < -500.0);
        let greedy = super::super::greedy(&scores, 6).unwrap();
        assert!(found[0].log_probability > greedy.log_probability);
    }

    #[test]
    fn a_beam_of_zero_is_an_error_naming_the_option() {
        let error = prefix_beam(&[0.0; 4], 2, 0).unwrap_err();
        assert!(error.to_string().starts_with("--beam:"), "{error}");
        assert!(prefix_beam(&[0.0, f32::NAN], 2, 3).unwrap_err().to_string().contains("frame 0"));
        assert!(prefix_beam(&[0.0; 5], 2, 3).is_err());
    }
}
