//! Which utterances are trained on together, and how a batch lies in memory.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::random::permutation;

/// The recipe's `[batch]` for speech.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchLimits {
    /// The most utterances in a batch.
    pub utterances: usize,
    /// A batch whose longest utterance reaches k times as many frames has 1 / (k + 1) of the utterances.
    pub max_frames: usize,
    /// The same for the labels of the utterance with the most frames.
    pub max_labels: usize,
}

impl Default for BatchLimits {
    /// ESPnet's for WSJ and AN4.
    fn default() -> Self {
        BatchLimits { utterances: 30, max_frames: 800, max_labels: 150 }
    }
}

/// The batches of a data set: every utterance once, similar lengths together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPlan {
    batches: Vec<Vec<usize>>,
}

impl BatchPlan {
    /// Batches utterances of the given (frames, labels) by ESPnet's rule (`batchfy_by_seq` of its version 1).
    ///
    /// The utterances are taken by falling number of frames, those with equally many in their own order. With
    /// k = max(frames / max_frames, labels / max_labels) of the first one, rounded down, the batch takes the next
    /// utterances / (k + 1), rounded down, but at least one.
    ///
    /// # Errors
    /// A limit of zero, naming its key.
    pub fn new(sizes: &[(usize, usize)], limits: BatchLimits) -> Result<Self> {
        let keys = [
            ("batch.utterances", limits.utterances),
            ("batch.max_frames", limits.max_frames),
            ("batch.max_labels", limits.max_labels),
        ];
        if let Some((key, _)) = keys.into_iter().find(|&(_, limit)| limit == 0) {
            return Err(Error::key(key, "it is 0, so that no batch can be made").remedy("Use a number above 0"));
        }
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|&utterance| std::cmp::Reverse(sizes[utterance].0));
        let mut batches = Vec::new();
        let mut rest = order.as_slice();
        while let Some(&longest) = rest.first() {
            let (frames, labels) = sizes[longest];
            let factor = (frames / limits.max_frames).max(labels / limits.max_labels);
            let size = (limits.utterances / (1 + factor)).max(1).min(rest.len());
            let (batch, tail) = rest.split_at(size);
            batches.push(batch.to_vec());
            rest = tail;
        }
        Ok(BatchPlan { batches })
    }

    /// The batches from the longest utterances to the shortest, each by falling number of frames.
    pub fn batches(&self) -> &[Vec<usize>] {
        &self.batches
    }

    pub fn len(&self) -> usize {
        self.batches.len()
    }

    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The batches in the random order of a training epoch (counted from 1).
    pub fn epoch(&self, data_seed: u64, epoch: usize) -> Vec<Vec<usize>> {
        let order = permutation(data_seed, &format!("batches of epoch {epoch}"), self.batches.len());
        order.into_iter().map(|batch| self.batches[batch].clone()).collect()
    }
}

/// Utterances as the engine takes them: packed, time first, without padding.
///
/// The sequences are sorted by falling length. The rows of time t are those of the sequences that reach t, which are the first
/// ones; the rows of time t + 1 follow. Row of sequence n at time t: the number of rows of all times before t, plus n.
#[derive(Debug, Clone, PartialEq)]
pub struct SpeechBatch {
    pub ids: Vec<String>,
    /// Frames of each sequence, not rising.
    pub lengths: Vec<usize>,
    pub dimension: usize,
    /// [sum of lengths, dimension], packed.
    pub features: Vec<f32>,
    pub labels: Vec<Vec<u32>>,
    /// The place of each sequence in its data set.
    pub utterance_indices: Vec<usize>,
}

/// Packs sequences of not rising length: `sequences[n]` is [lengths[n], dimension].
pub fn pack(sequences: &[Vec<f32>], dimension: usize) -> Vec<f32> {
    let mut packed = Vec::with_capacity(sequences.iter().map(Vec::len).sum());
    let longest = sequences.first().map_or(0, |first| first.len() / dimension);
    let mut active = sequences.len();
    for time in 0..longest {
        while sequences[active - 1].len() <= time * dimension {
            active -= 1;
        }
        for sequence in &sequences[..active] {
            packed.extend_from_slice(&sequence[time * dimension..(time + 1) * dimension]);
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(utterances: usize, max_frames: usize, max_labels: usize) -> BatchLimits {
        BatchLimits { utterances, max_frames, max_labels }
    }

    #[test]
    fn the_maxlen_rule_is_espnets() {
        // Frames 1700 give k = 2 and 30 / 3 = 10; labels 300 give k = 2 too; below both limits the batch is full.
        let mut sizes = vec![(1700, 10); 11];
        sizes.extend(vec![(790, 300); 12]);
        sizes.extend(vec![(100, 10); 35]);
        let plan = BatchPlan::new(&sizes, BatchLimits::default()).unwrap();
        let lengths: Vec<usize> = plan.batches().iter().map(Vec::len).collect();
        // 10 of the first kind; the eleventh opens a batch of 10 again; 3 are left of the second kind, whose batch takes 7 of the third.
        assert_eq!(lengths, [10, 10, 10, 28]);
        let plan = BatchPlan::new(&[(8000, 1), (8000, 1)], limits(3, 800, 150)).unwrap();
        assert_eq!(plan.batches(), [[0], [1]]);
    }

    #[test]
    fn equally_long_utterances_keep_their_order() {
        let plan = BatchPlan::new(&[(5, 1), (9, 1), (5, 1), (9, 1), (5, 1)], limits(9, 100, 100)).unwrap();
        assert_eq!(plan.batches(), [[1, 3, 0, 2, 4]]);
    }

    #[test]
    fn a_limit_of_zero_is_an_error_naming_its_key() {
        for (limits, key) in [
            (limits(0, 1, 1), "batch.utterances"),
            (limits(1, 0, 1), "batch.max_frames"),
            (limits(1, 1, 0), "batch.max_labels"),
        ] {
            assert!(BatchPlan::new(&[(1, 1)], limits).unwrap_err().to_string().starts_with(key));
        }
    }

    #[test]
    fn epochs_have_orders_of_their_own_that_can_be_had_again() {
        let plan = BatchPlan::new(&vec![(5, 1); 40], limits(2, 100, 100)).unwrap();
        assert_eq!(plan.epoch(1, 3), plan.epoch(1, 3));
        assert_ne!(plan.epoch(1, 3), plan.epoch(1, 4));
        assert_ne!(plan.epoch(1, 3), plan.epoch(2, 3));
    }

    proptest! {
        #[test]
        fn every_utterance_is_in_exactly_one_batch_and_no_batch_is_too_large(
            sizes in proptest::collection::vec((1_usize..3000, 0_usize..400), 0..200), utterances in 1_usize..40, epoch in 1_usize..9
        ) {
            let plan = BatchPlan::new(&sizes, limits(utterances, 800, 150)).unwrap();
            for batches in [plan.batches().to_vec(), plan.epoch(7, epoch)] {
                let mut all: Vec<usize> = batches.concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..sizes.len()).collect::<Vec<_>>());
                for batch in batches {
                    let (frames, labels) = sizes[batch[0]];
                    let allowed = (utterances / (1 + (frames / 800).max(labels / 150))).max(1);
                    prop_assert!(!batch.is_empty() && batch.len() <= allowed);
                    prop_assert!(batch.windows(2).all(|pair| sizes[pair[0]].0 >= sizes[pair[1]].0));
                }
            }
        }

        #[test]
        fn packing_puts_every_frame_at_its_row(mut lengths in proptest::collection::vec(0_usize..12, 0..8), dimension in 1_usize..4) {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            let value = |n: usize, t: usize, d: usize| (n * 10_000 + t * 10 + d) as f32;
            let sequences: Vec<Vec<f32>> = lengths
                .iter()
                .enumerate()
                .map(|(n, &length)| (0..length * dimension).map(|k| value(n, k / dimension, k % dimension)).collect())
                .collect();
            let packed = pack(&sequences, dimension);
            prop_assert_eq!(packed.len(), lengths.iter().sum::<usize>() * dimension);
            for (n, &length) in lengths.iter().enumerate() {
                for t in 0..length {
                    let before: usize = lengths.iter().map(|&other| other.min(t)).sum();
                    for d in 0..dimension {
                        prop_assert_eq!(packed[(before + n) * dimension + d], value(n, t, d));
                    }
                }
            }
        }
    }
}
