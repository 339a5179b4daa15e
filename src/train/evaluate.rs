//! Scores a data set under a model's weights: loss, decoding, CER and WER.

use crate::data::batch::BatchLimits;
use crate::data::speech::SpeechData;
use crate::data::tokens::TokenList;
use crate::decode;
use crate::error::Result;
use crate::models::recogniser::Recogniser;
use crate::score::rate::ErrorCounts;
use crate::train::learner::{Batch, Learner};
use crate::train::record::{Scores, Transcript};
use rayon::prelude::*;
use std::sync::Arc;

/// How logits become words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoder {
    Greedy,
    /// CTC prefix beam search of this width.
    Beam(usize),
}

impl Decoder {
    /// The most likely labels, `logits: [T, V]`.
    ///
    /// # Errors
    /// If the beam is empty.
    pub fn decode(self, logits: &[f32], symbols: usize) -> Result<Vec<u32>> {
        match self {
            Decoder::Greedy => Ok(decode::greedy(logits, symbols)?.tokens),
            Decoder::Beam(width) => {
                let best = decode::prefix_beam(logits, symbols, width)?.into_iter().next();
                Ok(best.map(|hypothesis| hypothesis.tokens).unwrap_or_default())
            }
        }
    }
}

/// A data set's scores, and what was decoded, in the order of the utterances' ids.
#[derive(Debug, Clone, Default)]
pub struct Evaluated {
    pub scores: Scores,
    pub characters: ErrorCounts,
    pub words: ErrorCounts,
    pub transcripts: Vec<Transcript>,
    /// The utterances whose labels do not fit their frames: they have no loss, but are decoded and scored.
    pub infeasible: Vec<String>,
    /// The utterances for which the model's output is not finite, since its training diverged: nothing is decoded, and no rate is
    /// given for the set.
    pub not_finite: Vec<String>,
}

/// What tokens stand for. The symbol that ends a transcript stands for nothing.
pub fn transcript_of(decoded: &[u32], tokens: &TokenList) -> String {
    let spoken: Vec<u32> = decoded.iter().copied().filter(|&token| (token as usize) < tokens.len()).collect();
    tokens.decode(&spoken)
}

/// Evaluates all of `data`. `after_batch` hears how many utterances are done.
///
/// # Errors
/// If features cannot be read or do not fit the model.
pub fn evaluate<M: Recogniser + Sync>(
    learner: &Learner<M>,
    data: &Arc<SpeechData>,
    tokens: &TokenList,
    limits: BatchLimits,
    decoder: Decoder,
    mut after_batch: impl FnMut(usize),
) -> Result<Evaluated> {
    let symbols = learner.model().symbols();
    let mut decoded: Vec<(usize, Transcript)> = Vec::with_capacity(data.utterances().len());
    let mut losses = vec![None; data.utterances().len()];
    let mut finite = vec![true; data.utterances().len()];
    for batch in data.prefetch(data.plan(limits)?.batches().to_vec(), 0)? {
        let batch = batch?;
        let (ids, indices) = (batch.ids.clone(), batch.utterance_indices.clone());
        let evaluation = learner.evaluate(&Batch::from(batch))?;
        for ((&index, &loss), &feasible) in indices.iter().zip(&evaluation.losses).zip(&evaluation.feasible) {
            losses[index] = feasible.then_some(loss);
        }
        let logits = evaluation.logits.host();
        let transcribe = |sequence: usize| {
            let logits = evaluation.sequences.unpack(sequence, &logits, symbols);
            let is_finite = logits.iter().all(|logit| logit.is_finite());
            let hypothesis = match is_finite {
                true => transcript_of(&decoder.decode(&logits, symbols)?, tokens),
                false => String::new(),
            };
            let index = indices[sequence];
            let reference = data.utterances()[index].transcript.clone();
            Ok((index, is_finite, Transcript { utterance: ids[sequence].clone(), reference, hypothesis }))
        };
        let transcripts: Vec<Result<_>> = (0..ids.len()).into_par_iter().map(transcribe).collect();
        for transcript in transcripts {
            let (index, is_finite, transcript) = transcript?;
            finite[index] = is_finite;
            decoded.push((index, transcript));
        }
        after_batch(ids.len());
    }
    decoded.sort_by_key(|(index, _)| *index);

    let transcripts: Vec<Transcript> = decoded.into_iter().map(|(_, transcript)| transcript).collect();
    let (mut characters, mut words) = (ErrorCounts::default(), ErrorCounts::default());
    for Transcript { reference, hypothesis, .. } in &transcripts {
        characters += ErrorCounts::characters(reference, hypothesis);
        words += ErrorCounts::words(reference, hypothesis);
    }
    let feasible: Vec<f64> = losses.iter().copied().flatten().collect();
    let infeasible = losses.iter().zip(data.utterances()).filter(|(loss, _)| loss.is_none());
    let not_finite = finite.iter().zip(data.utterances()).filter(|(finite, _)| !**finite);
    let not_finite: Vec<String> = not_finite.map(|(_, utterance)| utterance.id.clone()).collect();
    // Empty transcripts would make a diverged model better than one that inserts too much: no rate is worse than any.
    let rate = |counts: &ErrorCounts| if not_finite.is_empty() { counts.rate() } else { f64::NAN };
    let scores = Scores {
        // Not a number where no utterance has one.
        loss: feasible.iter().sum::<f64>() / feasible.len() as f64,
        utterances: Some(transcripts.len() as u64),
        tokens: None,
        cer: Some(rate(&characters)),
        wer: Some(rate(&words)),
        perplexity: None,
    };
    let infeasible = infeasible.map(|(_, utterance)| utterance.id.clone()).collect();
    Ok(Evaluated { scores, characters, words, transcripts, infeasible, not_finite })
}
