//! What every speech recogniser can do for whoever trains it, scores it or decodes with it.

use crate::decode::Predictor;
use crate::error::Result;
use crate::models::Network;
use crate::nn::Parameters;
use crate::ops::cross_entropy::LEFT_OUT;
use crate::ops::ctc::Losses;
use crate::ops::sequences::Sequences;
use crate::random::MaskKey;
use crate::tape::{Tape, Var};

/// A model from features to symbols, with a CTC softmax over the frames of its encoder.
pub trait Recogniser: Network {
    /// Features a frame.
    fn inputs(&self) -> usize;
    /// Of the softmax, with the blank and, where there is a decoder, the symbol that ends a transcript.
    fn symbols(&self) -> usize;
    /// Frames that the softmax sees of an utterance of so many.
    fn frames_after_subsampling(&self, frames: usize) -> usize;

    /// `features: [R, C]` packed as `sequences`; gives what CTC softmax and decoder take, `[R', D]`, and how it is packed. With `masks` it is
    /// training and drops out.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device cannot compute it.
    fn encode(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        features: Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<(Var, Sequences)>;

    /// The logits of the CTC softmax, `[R', V]`, for what [`Recogniser::encode`] gave.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn ctc_logits(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        hidden: &Var,
        sequences: &Sequences,
        masks: Option<&MaskKey>,
    ) -> Result<Var>;

    /// The loss of a batch with one list of labels for each sequence. With `masks` it is training: then it drops out and smooths labels.
    ///
    /// # Errors
    /// If the shapes do not fit, a label is out of range, or the device cannot compute it.
    fn loss(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        features: Var,
        sequences: &Sequences,
        labels: &[Vec<u32>],
        masks: Option<&MaskKey>,
    ) -> Result<Loss> {
        let (hidden, sequences) = self.encode(tape, parameters, features, sequences, masks)?;
        let logits = self.ctc_logits(tape, parameters, &hidden, &sequences, masks)?;
        self.loss_of(tape, parameters, Encoded { hidden, logits, sequences }, labels, masks)
    }

    /// The same of what is encoded.
    ///
    /// # Errors
    /// As [`Recogniser::loss`].
    fn loss_of(
        &self,
        tape: &mut Tape,
        parameters: &Parameters,
        encoded: Encoded,
        labels: &[Vec<u32>],
        masks: Option<&MaskKey>,
    ) -> Result<Loss>;

    /// The symbol that begins and ends a transcript; none: there is no decoder.
    fn sentence_end(&self) -> Option<u32> {
        None
    }

    /// The decoder, as a search asks it about the utterances of a batch; none: there is none.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device cannot compute it.
    fn predictor<'a>(
        &'a self,
        _parameters: &'a Parameters,
        _hidden: &Var,
        _sequences: &Sequences,
    ) -> Result<Option<Box<dyn Predictor + 'a>>> {
        Ok(None)
    }
}

/// A batch as CTC softmax and decoder see it.
#[derive(Clone)]
pub struct Encoded {
    /// What [`Recogniser::encode`] gave, `[R', D]`.
    pub hidden: Var,
    /// Of the CTC softmax, `[R', V]`.
    pub logits: Var,
    pub sequences: Sequences,
}

/// What the loss of a batch came to.
pub struct Loss {
    /// The sum over the utterances divided by their number, `[1]`.
    pub loss: Var,
    pub losses: UtteranceLosses,
    /// False where the labels do not fit the frames: such an utterance has no loss and no gradient.
    pub feasible: Vec<bool>,
    /// Of the CTC softmax, `[R', V]` packed as `sequences`.
    pub logits: Var,
    pub sequences: Sequences,
}

/// The loss of every utterance: a weighted sum of losses that a GPU may still be busy with.
pub struct UtteranceLosses(pub Vec<WeightedLosses>);

pub struct WeightedLosses {
    pub weight: f64,
    pub losses: Losses,
    /// The utterance of every loss; none: they are the utterances'.
    pub of: Option<Vec<usize>>,
}

impl UtteranceLosses {
    /// Of CTC alone.
    pub fn of_ctc(losses: Losses) -> Self {
        UtteranceLosses(vec![WeightedLosses { weight: 1.0, losses, of: None }])
    }

    /// CTC's with its weight, and with the rest of 1 the decoder's, which is of every row of `teaching`.
    pub fn mixed(ctc_weight: f64, ctc: Losses, decoder: Losses, teaching: Teaching) -> Self {
        UtteranceLosses(vec![
            WeightedLosses { weight: ctc_weight, losses: ctc, of: None },
            WeightedLosses { weight: 1.0 - ctc_weight, losses: decoder, of: Some(teaching.utterances) },
        ])
    }

    /// Of each of so many utterances, natural log; 0 where it is infeasible. Waits for the work of a GPU.
    pub fn read(self, utterances: usize) -> Vec<f64> {
        let mut sums = vec![0.0; utterances];
        for WeightedLosses { weight, losses, of } in self.0 {
            for (index, loss) in losses.read().into_iter().enumerate() {
                sums[of.as_ref().map_or(index, |of| of[index])] += weight * loss;
            }
        }
        sums
    }
}

/// Transcripts as a decoder with teacher forcing reads and predicts them: longest first, rows packed by time.
pub struct Teaching {
    /// The utterance of every sequence of tokens.
    pub of: Vec<usize>,
    pub sequences: Sequences,
    /// What is read: the symbol that begins a transcript, then its labels.
    pub tokens: Vec<u32>,
    /// What is to be predicted: the labels, then the symbol that ends a transcript.
    pub targets: Vec<u32>,
    /// The utterance of every row.
    pub utterances: Vec<usize>,
}

impl Teaching {
    /// `end` begins and ends a transcript.
    ///
    /// # Errors
    /// None: sorted as they are, the lengths fit.
    pub fn new(labels: &[Vec<u32>], end: u32) -> Result<Self> {
        let mut of: Vec<usize> = (0..labels.len()).collect();
        of.sort_by_key(|&utterance| std::cmp::Reverse(labels[utterance].len()));
        let lengths: Vec<usize> = of.iter().map(|&utterance| labels[utterance].len() + 1).collect();
        let sequences = Sequences::new(&lengths)?;
        let rows: Vec<(usize, usize)> =
            (0..sequences.steps()).flat_map(|t| (0..sequences.active(t)).map(move |n| (t, n))).collect();
        let token =
            |time: Option<usize>, n: usize| time.and_then(|time| labels[of[n]].get(time).copied()).unwrap_or(end);
        let tokens = rows.iter().map(|&(time, n)| token(time.checked_sub(1), n)).collect();
        let targets = rows.iter().map(|&(time, n)| token(Some(time), n)).collect();
        let utterances = rows.iter().map(|&(_, n)| of[n]).collect();
        Ok(Teaching { of, sequences, tokens, targets, utterances })
    }

    /// Takes the utterances that are not feasible out of what is to be predicted.
    pub fn leave_out(&mut self, feasible: &[bool]) {
        for (target, &utterance) in self.targets.iter_mut().zip(&self.utterances) {
            if !feasible[utterance] {
                *target = LEFT_OUT;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transcripts_are_taught_longest_first_from_the_end_symbol_to_the_end_symbol() {
        let teaching = Teaching::new(&[vec![], vec![3, 4], vec![5]], 9).unwrap();
        assert_eq!(teaching.of, [1, 2, 0]);
        assert_eq!(teaching.sequences.lengths(), [3, 2, 1]);
        assert_eq!(teaching.tokens, [9, 9, 9, 3, 5, 4]);
        assert_eq!(teaching.targets, [3, 5, 9, 4, 9, 9]);
        assert_eq!(teaching.utterances, [1, 2, 0, 1, 2, 1]);
    }
}
