//! From what a model computed of a batch to what was said: greedily, by CTC's prefix beam search, or by decoder and CTC together.

use crate::data::tokens::TokenList;
use crate::decode::{self, JointOptions, Models, Scored, Symbols, Utterance, joint_beams};
use crate::error::{Error, Result};
use crate::models::recogniser::{Encoded, Recogniser};
use crate::train::learner::Learner;
use crate::train::loaded_text::LoadedText;
use rayon::prelude::*;
use serde::Serialize;
use std::time::Duration;

/// How what a model computed becomes words.
#[derive(Clone, Copy, Default)]
pub enum Decoder<'a> {
    /// The best path of CTC.
    #[default]
    Greedy,
    /// CTC's prefix beam search.
    Prefix { beam: usize, n_best: usize },
    /// Decoder and CTC together, perhaps with a language model.
    Joint { options: JointOptions, language_model: Option<&'a LoadedText> },
}

/// The options of a beam search that a user gave.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Asked {
    pub beam: Option<usize>,
    pub n_best: Option<usize>,
    pub ctc_weight: Option<f64>,
    pub penalty: Option<f64>,
    pub min_length_ratio: Option<f64>,
    pub max_length_ratio: Option<f64>,
    pub language_model_weight: Option<f64>,
}

impl Asked {
    /// With what was not given as [`JointOptions`] has it.
    ///
    /// # Errors
    /// What cannot be, by its option.
    pub fn options(&self) -> Result<JointOptions> {
        let default = JointOptions::default();
        let options = JointOptions {
            beam: self.beam.unwrap_or(default.beam),
            n_best: self.n_best.unwrap_or(default.n_best),
            ctc_weight: self.ctc_weight.unwrap_or(default.ctc_weight),
            language_model_weight: self.language_model_weight.unwrap_or(default.language_model_weight),
            penalty: self.penalty.unwrap_or(default.penalty),
            min_length_ratio: self.min_length_ratio.unwrap_or(default.min_length_ratio),
            max_length_ratio: self.max_length_ratio.unwrap_or(default.max_length_ratio),
        };
        options.check()?;
        Ok(options)
    }

    /// The decoder of a model of this `kind` (`blstm-ctc`), greedy if nothing was asked for.
    ///
    /// # Errors
    /// What cannot be, by its option; an option that only a model with a decoder has.
    pub fn decoder<'a>(
        &self,
        kind: &str,
        has_decoder: bool,
        language_model: Option<&'a LoadedText>,
    ) -> Result<Decoder<'a>> {
        if *self == Asked::default() {
            return Ok(Decoder::Greedy);
        }
        if !has_decoder {
            let of_decoders = [
                ("--ctc-weight", self.ctc_weight),
                ("--penalty", self.penalty),
                ("--min-length-ratio", self.min_length_ratio),
                ("--max-length-ratio", self.max_length_ratio),
                ("--lm", self.language_model_weight),
            ];
            if let Some((option, _)) = of_decoders.iter().find(|(_, given)| given.is_some()) {
                let problem = format!("is for models with a decoder, and a {kind} has none");
                return Err(Error::key(*option, problem)
                    .remedy("Leave it out: --beam N alone is CTC's prefix beam search, without --beam it is greedy"));
            }
        }
        let options = self.options()?;
        let JointOptions { beam, n_best, .. } = options;
        Ok(if has_decoder { Decoder::Joint { options, language_model } } else { Decoder::Prefix { beam, n_best } })
    }
}

/// How long decoding took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Speed {
    pub audio_seconds: f64,
    pub decoding_seconds: f64,
    /// The second over the first: below 1 is faster than speech.
    pub real_time_factor: f64,
}

impl Speed {
    pub fn new(audio_seconds: f64, decoding: Duration) -> Self {
        let decoding_seconds = decoding.as_secs_f64();
        let real_time_factor = if audio_seconds > 0.0 { decoding_seconds / audio_seconds } else { 0.0 };
        Speed { audio_seconds, decoding_seconds, real_time_factor }
    }

    /// For people.
    pub fn describe(&self) -> String {
        let Speed { audio_seconds, decoding_seconds, real_time_factor } = self;
        format!(
            "{audio_seconds:.1} s of audio decoded in {decoding_seconds:.2} s: real-time factor {real_time_factor:.4}"
        )
    }
}

/// What tokens stand for. The symbol that ends a transcript stands for nothing.
pub fn transcript_of(decoded: &[u32], tokens: &TokenList) -> String {
    let spoken: Vec<u32> = decoded.iter().copied().filter(|&token| (token as usize) < tokens.len()).collect();
    tokens.decode(&spoken)
}

/// The best hypotheses of every utterance of a batch, best first; none of an utterance for which the model's output is not finite, and then none of
/// the others of its batch from a joint search. `ids` name the utterances in errors.
///
/// # Errors
/// Options that cannot be; a language model with other symbols; an utterance to which every hypothesis gives the probability 0; what the device says.
pub fn recognise<M: Recogniser + Sync>(
    learner: &Learner<M>,
    encoded: &Encoded,
    ids: &[String],
    tokens: &TokenList,
    decoder: Decoder<'_>,
) -> Result<Vec<Option<Vec<Scored>>>> {
    let symbols = learner.model().symbols();
    let logits = encoded.logits.tensor().host();
    // Of a device that failed they are zeros, which would be heard as silence.
    learner.device().check()?;
    let of_utterance = |utterance: usize| {
        let logits = encoded.sequences.unpack(utterance, &logits, symbols);
        logits.iter().all(|logit| logit.is_finite()).then_some(logits)
    };
    let logits: Vec<Option<Vec<f32>>> = (0..ids.len()).into_par_iter().map(of_utterance).collect();
    if let Decoder::Joint { options, language_model } = decoder {
        return joint(learner, encoded, ids, tokens, &logits, &options, language_model);
    }
    let decoded = logits.par_iter().zip(ids).map(|(logits, id)| {
        let decoded = logits.as_ref().map(|logits| by_ctc(logits, symbols, decoder)).transpose();
        decoded.map_err(|error| Error { subject: crate::error::Subject::Utterance(id.clone()), ..error })
    });
    decoded.collect::<Vec<_>>().into_iter().collect()
}

fn by_ctc(logits: &[f32], symbols: usize, decoder: Decoder<'_>) -> Result<Vec<Scored>> {
    let mut hypotheses = match decoder {
        Decoder::Prefix { beam, .. } => decode::prefix_beam(logits, symbols, beam)?,
        Decoder::Greedy | Decoder::Joint { .. } => vec![decode::greedy(logits, symbols)?],
    };
    if let Decoder::Prefix { n_best, .. } = decoder {
        hypotheses.truncate(n_best);
    }
    let scored = |decode::Hypothesis { tokens, log_probability }| Scored {
        tokens,
        score: log_probability,
        attention: None,
        ctc: Some(log_probability),
        language_model: None,
    };
    Ok(hypotheses.into_iter().map(scored).collect())
}

fn joint<M: Recogniser>(
    learner: &Learner<M>,
    encoded: &Encoded,
    ids: &[String],
    tokens: &TokenList,
    logits: &[Option<Vec<f32>>],
    options: &JointOptions,
    language_model: Option<&LoadedText>,
) -> Result<Vec<Option<Vec<Scored>>>> {
    let model = learner.model();
    let Some(end) = model.sentence_end() else {
        return Err(Error::program("the model has no decoder to search with"));
    };
    if logits.iter().any(Option::is_none) {
        return Ok(logits.iter().map(|logits| logits.as_ref().map(|_| Vec::new())).collect());
    }
    let symbols = Symbols { count: model.symbols(), end };
    let utterances: Vec<Utterance> = encoded
        .sequences
        .lengths()
        .iter()
        .zip(logits)
        .map(|(&frames, logits)| Utterance { frames, ctc: logits.as_deref() })
        .collect();
    let decoder = match options.ctc_weight < 1.0 {
        true => model.predictor(&learner.parameters, &encoded.hidden, &encoded.sequences)?,
        false => None,
    };
    let models = Models {
        decoder,
        language_model: language_model.map(|language_model| language_model.predictor(tokens, symbols)).transpose()?,
    };
    let found = joint_beams(&utterances, models, symbols, options)?;
    let named = found.into_iter().zip(ids).map(|(hypotheses, id)| match hypotheses.is_empty() {
        true => Err(Error::utterance(id, "every hypothesis has the probability 0")
            .remedy("Lower --min-length-ratio; if it is 0, the model's outputs are those of a training that failed")),
        false => Ok(Some(hypotheses)),
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_is_as_the_search_has_it() {
        assert!(matches!(Asked::default().decoder("transformer", true, None).unwrap(), Decoder::Greedy));
        let asked = Asked { ctc_weight: Some(0.5), ..Asked::default() };
        let Decoder::Joint { options, .. } = asked.decoder("transformer", true, None).unwrap() else {
            panic!("no joint search")
        };
        assert_eq!(options, JointOptions { ctc_weight: 0.5, ..JointOptions::default() });
        let asked = Asked { n_best: Some(3), ..Asked::default() };
        let Decoder::Prefix { beam, n_best } = asked.decoder("blstm-ctc", false, None).unwrap() else {
            panic!("no prefix search")
        };
        assert_eq!((beam, n_best), (10, 3));
    }

    #[test]
    fn the_real_time_factor_is_decoding_over_audio() {
        let speed = Speed::new(8.0, Duration::from_millis(500));
        assert_eq!(speed.real_time_factor, 0.0625);
        assert_eq!(speed.describe(), "8.0 s of audio decoded in 0.50 s: real-time factor 0.0625");
        assert_eq!(Speed::new(0.0, Duration::ZERO).real_time_factor, 0.0);
    }
}
