//! A text cut into streams that are read side by side, and the windows of time in which they are read. And sentences, one by one.
//!
//! ```text
//! ids 0 1 2 3 4 5 6 7, two streams       tokens  0 4 | 1 5 | 2 6      targets  1 5 | 2 6 | 3 7
//! ```
//! A row is a token and, as its target, the one behind it. Rows are packed as everywhere: time by time, all streams of a time together.

use crate::data::batch::{BatchLimits, BatchPlan};
use crate::error::{Error, Result};
use crate::ops::sequences::Sequences;
use crate::random::Philox;
use std::ops::Range;

/// Tokens and what follows each of them.
#[derive(Debug, Clone)]
pub struct TextBatch {
    pub sequences: Sequences,
    /// Below the vocabulary's size, packed.
    pub tokens: Vec<u32>,
    pub targets: Vec<u32>,
}

/// Parts of a text that lie side by side.
#[derive(Debug, Clone)]
pub struct Streams<'a> {
    ids: &'a [u32],
    /// The ids of the rows of each stream, longest first.
    rows: Vec<Range<usize>>,
}

impl<'a> Streams<'a> {
    /// Equally long parts of the text. What is left over at its end, fewer tokens than there are streams, is dropped (awd-lstm-lm's
    /// `batchify`).
    ///
    /// # Errors
    /// A text of fewer than two tokens a stream.
    pub fn equal(ids: &'a [u32], count: usize) -> Result<Self> {
        let length = ids.len() / count.max(1);
        if length < 2 {
            let problem = format!("is {count}, but the text has {} tokens: fewer than two for each", ids.len());
            return Err(Error::key("batch.sequences", problem).remedy("Use fewer streams or a longer text"));
        }
        Ok(Streams { ids, rows: (0..count).map(|stream| stream * length..(stream + 1) * length - 1).collect() })
    }

    /// Every token after the first is predicted once, whatever the number of streams: they differ in length by one at most, and the first
    /// target of a stream is the token behind the last target of the stream before.
    pub fn whole(ids: &'a [u32], count: usize) -> Self {
        let all = ids.len().saturating_sub(1);
        let count = count.clamp(1, all.max(1));
        let mut begin = 0;
        let rows = (0..count).map(|stream| {
            let end = begin + all / count + usize::from(stream < all % count);
            std::mem::replace(&mut begin, end)..end
        });
        Streams { ids, rows: rows.collect() }
    }

    /// The number of streams.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// Rows of the longest stream.
    pub fn steps(&self) -> usize {
        self.rows.first().map_or(0, Range::len)
    }

    /// The rows of all streams in a window of time.
    ///
    /// # Errors
    /// A window that begins where a stream has ended.
    pub fn batch(&self, window: Range<usize>) -> Result<TextBatch> {
        let lengths: Vec<usize> =
            self.rows.iter().map(|rows| window.end.min(rows.len()).saturating_sub(window.start)).collect();
        let sequences = Sequences::new(&lengths)?;
        let places = window
            .flat_map(|time| self.rows.iter().filter(move |rows| time < rows.len()).map(move |rows| rows.start + time));
        let (tokens, targets) = places.map(|place| (self.ids[place], self.ids[place + 1])).unzip();
        Ok(TextBatch { sequences, tokens, targets })
    }

    /// Windows of at most `rows` rows (of all streams together) that cover all of every stream. In the last one every stream has a row.
    pub fn windows(&self, rows: usize) -> Vec<Range<usize>> {
        let (steps, length) = (self.steps(), (rows / self.count().max(1)).max(2));
        let shortest = self.rows.last().map_or(0, Range::len);
        let mut windows: Vec<Range<usize>> =
            (0..steps).step_by(length).map(|start| start..(start + length).min(steps)).collect();
        if let [.., before, last] = &mut windows[..]
            && last.start >= shortest
        {
            before.end = last.end;
            windows.pop();
        }
        windows
    }
}

/// A window of a training epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingWindow {
    pub steps: Range<usize>,
    /// The factor on the learning rate: the length over `bptt`.
    pub scale: f64,
}

/// The windows of an epoch (counted from 1) over streams of `steps` rows, as awd-lstm-lm draws them: of N(bptt, 5) rows, in one of twenty
/// N(bptt / 2, 5), rounded towards zero, at least 5; the last one as many as are left. A single row that is left over at the very end is
/// not trained on. With `random` false all but the last have `bptt` rows and a factor of 1.
pub fn training_windows(steps: usize, bptt: usize, random: bool, seed: u64, epoch: usize) -> Vec<TrainingWindow> {
    let mut stream = Philox::named(seed, &format!("windows of epoch {epoch}")).stream();
    let (mut windows, mut start) = (Vec::new(), 0);
    while start + 1 < steps || (start == 0 && steps == 1) {
        let (length, scale) = if random {
            let base = if stream.uniform() < 0.95 { bptt as f64 } else { bptt as f64 / 2.0 };
            let length = ((base + 5.0 * stream.normal()) as usize).max(5);
            (length, length as f64 / bptt as f64)
        } else {
            (bptt, 1.0)
        };
        let end = (start + length).min(steps);
        windows.push(TrainingWindow { steps: start..end, scale });
        start = end;
    }
    windows
}

/// Sentences of a text, each by itself: it begins with `end`, the token that also ends it.
#[derive(Debug, Clone)]
pub struct Sentences<'a> {
    /// Each with the `end` behind it.
    sentences: Vec<&'a [u32]>,
    end: u32,
}

impl<'a> Sentences<'a> {
    pub fn new(sentences: Vec<&'a [u32]>, end: u32) -> Self {
        Sentences { sentences, end }
    }

    /// Batches of similar lengths, ESPnet's rule: at most `count`, divided by 1 + floor(L / max_length) where the longest has L tokens.
    ///
    /// # Errors
    /// A limit of zero.
    pub fn plan(&self, count: usize, max_length: usize) -> Result<BatchPlan> {
        // ESPnet counts the words, without the end.
        let sizes: Vec<(usize, usize)> = self.sentences.iter().map(|tokens| (tokens.len() - 1, 0)).collect();
        BatchPlan::new(&sizes, BatchLimits { utterances: count, max_frames: max_length, max_labels: usize::MAX })
    }

    /// The tokens to be predicted in some sentences.
    pub fn tokens(&self, indices: &[usize]) -> usize {
        indices.iter().map(|&index| self.sentences[index].len()).sum()
    }

    /// Some sentences, longest first.
    ///
    /// # Errors
    /// If they are not sorted.
    pub fn batch(&self, indices: &[usize]) -> Result<TextBatch> {
        let sentences: Vec<&[u32]> = indices.iter().map(|&index| self.sentences[index]).collect();
        let lengths: Vec<usize> = sentences.iter().map(|sentence| sentence.len()).collect();
        let sequences = Sequences::new(&lengths)?;
        let (mut tokens, mut targets) = (Vec::new(), Vec::new());
        for time in 0..sequences.steps() {
            for sentence in &sentences[..sequences.active(time)] {
                tokens.push(time.checked_sub(1).map_or(self.end, |before| sentence[before]));
                targets.push(sentence[time]);
            }
        }
        Ok(TextBatch { sequences, tokens, targets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: u32) -> Vec<u32> {
        (0..count).collect()
    }

    #[test]
    fn equal_streams_drop_what_is_left_over() {
        let ids = ids(9);
        let batch = Streams::equal(&ids, 2).unwrap().batch(0..3).unwrap();
        assert_eq!(batch.tokens, [0, 4, 1, 5, 2, 6]);
        assert_eq!(batch.targets, [1, 5, 2, 6, 3, 7]);
        let error = Streams::equal(&ids, 5).unwrap_err().to_string();
        assert!(error.contains("batch.sequences") && error.contains("9 tokens"), "{error}");
    }

    #[test]
    fn whole_streams_predict_every_token_after_the_first_once_however_they_are_cut() {
        for length in 2..40 {
            let ids = ids(length);
            for count in 1..8 {
                let streams = Streams::whole(&ids, count);
                for rows in [1, 5, 7, 100] {
                    let mut targets: Vec<u32> = streams
                        .windows(rows)
                        .into_iter()
                        .flat_map(|window| {
                            let batch = streams.batch(window).unwrap();
                            assert_eq!(batch.sequences.count(), streams.count(), "no stream has ended before");
                            assert!(
                                batch.tokens.iter().zip(&batch.targets).all(|(token, target)| token + 1 == *target)
                            );
                            batch.targets
                        })
                        .collect();
                    targets.sort_unstable();
                    assert_eq!(targets, ids[1..], "{length} tokens, {count} streams, {rows} rows");
                }
            }
        }
    }

    #[test]
    fn training_windows_cover_the_streams_and_are_as_long_as_the_original_draws_them() {
        let windows = training_windows(1_000_000, 70, true, 1, 1);
        assert!(windows.windows(2).all(|pair| pair[0].steps.end == pair[1].steps.start));
        assert!(windows.last().unwrap().steps.end + 1 >= 1_000_000);
        let lengths: Vec<f64> = windows.iter().map(|window| window.steps.len() as f64).collect();
        let short = lengths.iter().filter(|&&length| length < 52.0).count() as f64 / lengths.len() as f64;
        // Five standard deviations of a share of 0.05 in 14,600 draws.
        assert!((short - 0.05).abs() < 0.009, "{short}");
        let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
        // 0.95 * 70 + 0.05 * 35 and half a row for rounding down; five standard errors of a deviation of 9.1.
        assert!((mean - 67.75).abs() < 0.4, "{mean}");
        assert!(windows[..10].iter().all(|window| window.scale * 70.0 == window.steps.len() as f64));
        assert_eq!(windows, training_windows(1_000_000, 70, true, 1, 1));
        assert_ne!(windows, training_windows(1_000_000, 70, true, 1, 2));
        let plain: Vec<usize> = training_windows(11, 5, false, 1, 1).iter().map(|window| window.steps.len()).collect();
        assert_eq!(plain, [5, 5], "a single last row is not trained on");
        assert_eq!(training_windows(1, 5, false, 1, 1).len(), 1, "unless there is no other");
    }

    #[test]
    fn a_sentence_begins_and_ends_with_the_same_token() {
        let ids = [5, 6, 7, 0, 0, 8, 0];
        let sentences = Sentences::new(ids.split_inclusive(|&id| id == 0).collect(), 0);
        let plan = sentences.plan(3, 40).unwrap();
        let batch = sentences.batch(&plan.batches()[0]).unwrap();
        assert_eq!(batch.sequences.lengths(), [4, 2, 1]);
        assert_eq!(batch.tokens, [0, 0, 0, 5, 8, 6, 7]);
        assert_eq!(batch.targets, [5, 8, 0, 6, 0, 7, 0]);
    }
}
