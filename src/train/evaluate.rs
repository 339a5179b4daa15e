//! Scores a data set under a model's weights: loss, decoding, CER and WER.

use crate::data::batch::BatchLimits;
use crate::data::speech::SpeechData;
use crate::data::tokens::TokenList;
use crate::decode::NBest;
use crate::error::Result;
use crate::models::recogniser::Recogniser;
use crate::score::rate::ErrorCounts;
use crate::train::learner::{Batch, Learner};
use crate::train::recognise::{Decoder, recognise, transcript_of};
use crate::train::record::{Scores, Transcript};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A data set's scores, and what was decoded, in the order of the utterances' ids.
#[derive(Debug, Clone, Default)]
pub struct Evaluated {
    pub scores: Scores,
    pub characters: ErrorCounts,
    pub words: ErrorCounts,
    /// As they are scored: without non-linguistic symbols.
    pub transcripts: Vec<Transcript>,
    /// The utterances whose labels do not fit their frames: they have no loss, but are decoded and scored.
    pub infeasible: Vec<String>,
    /// The utterances for which the model's output is not finite, since its training diverged: nothing is decoded, and no rate is
    /// given for the set.
    pub not_finite: Vec<String>,
    /// What a beam search found of every utterance.
    pub n_best: Vec<NBest>,
    /// Frames of features that were decoded.
    pub frames: u64,
    /// What encoder, CTC softmax and search took: neither features nor the loss.
    pub decoding: Duration,
}

/// Evaluates all of `data`. `after_batch` hears how many utterances are done.
///
/// # Errors
/// If features cannot be read or do not fit the model, or what `after_batch` says.
pub fn evaluate<M: Recogniser + Sync>(
    learner: &Learner<M>,
    data: &Arc<SpeechData>,
    tokens: &TokenList,
    limits: BatchLimits,
    decoder: Decoder<'_>,
    mut after_batch: impl FnMut(usize) -> Result<()>,
) -> Result<Evaluated> {
    let mut decoded: Vec<(usize, Transcript, Option<NBest>)> = Vec::with_capacity(data.utterances().len());
    let mut losses = vec![None; data.utterances().len()];
    let mut finite = vec![true; data.utterances().len()];
    let (mut frames, mut decoding) = (0, Duration::ZERO);
    let keeps_lists = !matches!(decoder, Decoder::Greedy);
    for batch in data.prefetch(data.plan(limits)?.batches().to_vec(), 0)? {
        let batch = batch?;
        let (ids, indices) = (batch.ids.clone(), batch.utterance_indices.clone());
        frames += batch.lengths.iter().sum::<usize>() as u64;
        let batch = Batch::from(batch);
        let began = Instant::now();
        let encoded = learner.encode(&batch)?;
        let found = recognise(learner, &encoded, &ids, tokens, decoder)?;
        decoding += began.elapsed();
        let (of_batch, feasible) = learner.losses(encoded, &batch.labels)?;
        for ((&index, &loss), &feasible) in indices.iter().zip(&of_batch).zip(&feasible) {
            losses[index] = feasible.then_some(loss);
        }
        for ((&index, id), found) in indices.iter().zip(&ids).zip(found) {
            finite[index] = found.is_some();
            let found = found.unwrap_or_default();
            let hypothesis = found.first().map_or_else(String::new, |best| transcript_of(&best.tokens, tokens));
            let (reference, hypothesis) =
                (tokens.scored(&data.utterances()[index].transcript), tokens.scored(&hypothesis));
            let list = keeps_lists.then(|| NBest::new(id, found, |decoded| transcript_of(decoded, tokens)));
            decoded.push((index, Transcript { utterance: id.clone(), reference, hypothesis }, list));
        }
        after_batch(ids.len())?;
    }
    decoded.sort_by_key(|(index, ..)| *index);

    let n_best = decoded.iter_mut().filter_map(|(.., list)| list.take()).collect();
    let transcripts: Vec<Transcript> = decoded.into_iter().map(|(_, transcript, _)| transcript).collect();
    let (mut characters, mut words) = (ErrorCounts::default(), ErrorCounts::default());
    for Transcript { reference, hypothesis, .. } in &transcripts {
        characters += ErrorCounts::between(&tokens.characters(reference), &tokens.characters(hypothesis));
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
    Ok(Evaluated { scores, characters, words, transcripts, infeasible, not_finite, n_best, frames, decoding })
}
