//! Beam search by an attention decoder and CTC together (Watanabe et al., "Hybrid CTC/attention architecture for end-to-end speech recognition",
//! IEEE JSTSP 2017; its algorithm 2 scores prefixes, see `prefix_score.rs`), with a language model beside them if there is one (shallow fusion).
//!
//! The score of a hypothesis with n labels, over its labels and the end symbol:
//!
//! ```text
//! (1 - w) ln p(attention)  +  w ln p(CTC)  +  v ln p(language model)  +  penalty (n + 1)
//! ```
//!
//! The search goes label by label. As in ESPnet version 1 (`decoders.py`, `recognize_beam`) each hypothesis is extended by the 1.5 beam labels that
//! the attention decoder likes best, or by every label where CTC decides alone, and the best `beam` of all extensions are kept; a hypothesis
//! that takes the end symbol is complete. Three things differ:
//!
//! - At the greatest length only the end symbol can follow, and it is scored like any other.
//! - Below the least length the end symbol cannot follow; ESPnet drops the hypothesis.
//! - Where CTC leaves none of the 1.5 beam labels a probability, all labels are tried.
//!
//! Several utterances are searched side by side: the hypotheses of all that are not done yet, which have equally many labels, are one call of the
//! decoder and one of the language model, so that a label costs few products, and large ones. CTC's part is each utterance's own, in parallel.
//!
//! Scores are f64. Ties go to the extension of the better hypothesis, then to the lower id, so that the same scores give the same result.

use std::cmp::Ordering;
use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;

use super::prefix_score::{PrefixScore, PrefixState};
use super::{BLANK, check_shape};
use crate::error::{Error, Result};

const NAME: &str = "joint beam search";
const NEVER: f64 = f64::NEG_INFINITY;

/// An attention decoder or a language model: what comes next after each of several hypotheses.
pub trait Predictor {
    /// ln p of the next symbol, [hypotheses, symbols]; the blank's is not looked at. Hypothesis h is one of utterance `of[h]`, and those of an utterance
    /// stand together. Each begins with the start symbol and has one symbol more than in the step before; the states after the step are
    /// those of these hypotheses.
    ///
    /// # Errors
    /// What the model says.
    fn step(&mut self, of: &[usize], hypotheses: &[&[u32]]) -> Result<Vec<f32>>;

    /// Hypothesis h of the next step goes on from the state of hypothesis `parents[h]` of this one. Some have several followers, some have none.
    ///
    /// # Errors
    /// What the model says.
    fn select(&mut self, parents: &[usize]) -> Result<()>;
}

/// How to search. The names are those of ESPnet's decoding options.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JointOptions {
    /// Hypotheses that are kept; 1 is greedy.
    pub beam: usize,
    /// Hypotheses in the result, at most the beam.
    pub n_best: usize,
    /// w, from 0 (attention alone) to 1 (CTC alone).
    pub ctc_weight: f64,
    /// v.
    pub language_model_weight: f64,
    /// Added for every symbol: above 0, longer hypotheses gain.
    pub penalty: f64,
    /// Labels at least, as a part of the frames.
    pub min_length_ratio: f64,
    /// Labels at most, as a part of the frames, but never below 1. 0: as many as frames, and the search ends when longer hypotheses are hopeless.
    pub max_length_ratio: f64,
}

impl Default for JointOptions {
    /// ESPnet's for WSJ, but for its beam of 30.
    fn default() -> Self {
        JointOptions {
            beam: 10,
            n_best: 1,
            ctc_weight: 0.3,
            language_model_weight: 0.0,
            penalty: 0.0,
            min_length_ratio: 0.0,
            max_length_ratio: 0.0,
        }
    }
}

impl JointOptions {
    /// # Errors
    /// What cannot be, by its option.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, problem: String, remedy: &str| Err(Error::key(key, problem).remedy(remedy));
        let JointOptions { beam, n_best, .. } = *self;
        if beam == 0 {
            return refuse("--beam", "is 0, which keeps no hypothesis".into(), "Use 1 or more");
        }
        if n_best == 0 || n_best > beam {
            let problem = format!("is {n_best}, but a beam of {beam} keeps at most {beam} hypotheses");
            return refuse("--n-best", problem, &format!("Use a number from 1 to {beam}, or a wider --beam"));
        }
        if !(0.0..=1.0).contains(&self.ctc_weight) {
            let problem = format!("is {}", self.ctc_weight);
            return refuse("--ctc-weight", problem, "Use a number from 0 (attention alone) to 1 (CTC alone)");
        }
        for (key, value) in
            [("--min-length-ratio", self.min_length_ratio), ("--max-length-ratio", self.max_length_ratio)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                return refuse(key, format!("is {value}"), "Use a number from 0");
            }
        }
        if self.max_length_ratio > 0.0 && self.min_length_ratio > self.max_length_ratio {
            let problem =
                format!("is {}, more than --max-length-ratio {}", self.min_length_ratio, self.max_length_ratio);
            return refuse("--min-length-ratio", problem, "Lower it");
        }
        if !(self.language_model_weight >= 0.0 && self.language_model_weight.is_finite()) {
            return refuse("--lm-weight", format!("is {}", self.language_model_weight), "Use a number from 0 (none)");
        }
        if !self.penalty.is_finite() {
            return refuse("--penalty", format!("is {}", self.penalty), "Use a finite number");
        }
        Ok(())
    }
}

/// One utterance to decode.
#[derive(Debug, Clone, Copy)]
pub struct Utterance<'a> {
    /// Frames of the encoder's output.
    pub frames: usize,
    /// The scores of CTC, [frames, symbols], as logits or log probabilities. Needed if its weight is above 0.
    pub ctc: Option<&'a [f32]>,
}

/// What predicts the next symbol, one for all utterances.
#[derive(Default)]
pub struct Models<'a> {
    /// Needed if CTC's weight is below 1.
    pub decoder: Option<Box<dyn Predictor + 'a>>,
    /// Its weight is an option; it gives ln p over the recogniser's symbols.
    pub language_model: Option<Box<dyn Predictor + 'a>>,
}

/// The symbols that all scores are of: the blank is 0, the last one begins and ends a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbols {
    pub count: usize,
    /// Starts and ends every hypothesis: ESPnet's `<sos/eos>`.
    pub end: u32,
}

/// A complete hypothesis with its score and the parts of it, natural logarithms without their weights. A part that was not asked for is None.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scored {
    /// Without start, end and blank.
    pub tokens: Vec<u32>,
    pub score: f64,
    pub attention: Option<f64>,
    pub ctc: Option<f64>,
    pub language_model: Option<f64>,
}

/// A hypothesis of an n-best list with what it says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NBestEntry {
    pub text: String,
    #[serde(flatten)]
    pub scored: Scored,
}

/// An utterance's n-best list as it is written in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NBest {
    pub utterance: String,
    /// Begin and end within a recording that was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<[f64; 2]>,
    /// Best first.
    pub hypotheses: Vec<NBestEntry>,
}

impl NBest {
    pub fn new(utterance: impl Into<String>, hypotheses: Vec<Scored>, text: impl Fn(&[u32]) -> String) -> Self {
        let entry = |scored: Scored| NBestEntry { text: text(&scored.tokens), scored };
        NBest { utterance: utterance.into(), seconds: None, hypotheses: hypotheses.into_iter().map(entry).collect() }
    }
}

/// The best hypotheses of each utterance, best first, at most `n_best`; fewer where the search has completed fewer, and none where every hypothesis
/// has the probability 0. Each utterance has the result that it has alone.
///
/// # Errors
/// Impossible options; an utterance without frames; a missing decoder or missing CTC scores; scores that are not numbers.
pub fn joint_beams(
    utterances: &[Utterance<'_>],
    models: Models<'_>,
    symbols: Symbols,
    options: &JointOptions,
) -> Result<Vec<Vec<Scored>>> {
    options.check()?;
    let Models { decoder, language_model } = models;
    let mut decoder = decoder.filter(|_| options.ctc_weight < 1.0);
    let mut language_model = language_model.filter(|_| options.language_model_weight != 0.0);
    if options.ctc_weight < 1.0 && decoder.is_none() {
        return Err(Error::operation(NAME, "there is no attention decoder").remedy("Use --ctc-weight 1: CTC alone"));
    }
    let has = [decoder.is_some(), language_model.is_some()];
    let searches = utterances.par_iter().map(|utterance| Search::new(*utterance, has, symbols, options));
    let mut searches: Vec<Search> = searches.collect::<Vec<_>>().into_iter().collect::<Result<_>>()?;
    for length in 0.. {
        let mut of = Vec::new();
        let mut prefixes: Vec<&[u32]> = Vec::new();
        let mut rows = Vec::with_capacity(searches.len());
        for (number, search) in searches.iter().enumerate() {
            let first = prefixes.len();
            prefixes.extend(search.live.iter().map(|hypothesis| hypothesis.tokens.as_slice()));
            of.resize(prefixes.len(), number);
            rows.push(first..prefixes.len());
        }
        if prefixes.is_empty() {
            break;
        }
        let attention = predicted(&mut decoder, &of, &prefixes, symbols.count)?;
        let fluency = predicted(&mut language_model, &of, &prefixes, symbols.count)?;
        let advanced = searches.par_iter_mut().zip(&rows).map(|(search, rows)| {
            search.advance(length, Rows::of(&attention, rows, symbols), Rows::of(&fluency, rows, symbols))
        });
        let parents: Vec<Vec<usize>> = advanced.collect();
        let parents: Vec<usize> = rows
            .iter()
            .zip(parents)
            .flat_map(|(rows, parents)| parents.into_iter().map(move |parent| rows.start + parent))
            .collect();
        if parents.is_empty() {
            break;
        }
        for model in [&mut decoder, &mut language_model].into_iter().flatten() {
            model.select(&parents)?;
        }
    }
    Ok(searches.into_iter().map(Search::finish).collect())
}

/// End detection: the search is over when the best hypotheses of the last so many lengths are worse than the best of all by this.
const LENGTHS: usize = 3;
const HOPELESS: f64 = -10.0;

/// A hypothesis that goes on.
struct Live {
    /// Begins with the start symbol.
    tokens: Vec<u32>,
    parts: Parts,
    state: Option<PrefixState>,
}

/// Sums of natural logarithms.
#[derive(Debug, Clone, Copy, Default)]
struct Parts {
    score: f64,
    attention: f64,
    /// Of all labellings with this prefix; when complete, of this labelling.
    ctc: f64,
    language_model: f64,
}

/// A hypothesis and one symbol more.
struct Candidate {
    parent: usize,
    token: u32,
    parts: Parts,
}

impl Candidate {
    /// Best first. No two are equal.
    fn rank(&self, other: &Self) -> Ordering {
        let by_score = other.parts.score.total_cmp(&self.parts.score);
        by_score.then_with(|| (self.parent, self.token).cmp(&(other.parent, other.token)))
    }
}

/// ln p of the next symbol after each hypothesis of one utterance.
#[derive(Clone, Copy)]
struct Rows<'a> {
    scores: &'a [f32],
    symbols: usize,
}

impl<'a> Rows<'a> {
    fn of(scores: &'a Option<Vec<f32>>, rows: &Range<usize>, Symbols { count, .. }: Symbols) -> Option<Self> {
        scores.as_ref().map(|scores| Rows { scores: &scores[rows.start * count..rows.end * count], symbols: count })
    }

    fn at(&self, hypothesis: usize, token: u32) -> f64 {
        f64::from(self.scores[hypothesis * self.symbols + token as usize])
    }
}

/// The search of one utterance.
struct Search {
    ctc: Option<PrefixScore>,
    has_decoder: bool,
    has_language_model: bool,
    symbols: Symbols,
    options: JointOptions,
    least: usize,
    most: usize,
    /// None: it is over.
    live: Vec<Live>,
    complete: Vec<Scored>,
}

impl Search {
    fn new(
        utterance: Utterance<'_>,
        [has_decoder, has_language_model]: [bool; 2],
        symbols: Symbols,
        options: &JointOptions,
    ) -> Result<Self> {
        let Utterance { frames, ctc } = utterance;
        let wrong = |problem: &str, remedy: &str| Err(Error::operation(NAME, problem).remedy(remedy));
        if frames == 0 {
            return wrong("the utterance has no frames", "Leave it out");
        }
        if symbols.count < 2 || symbols.end == BLANK || symbols.end as usize >= symbols.count {
            return wrong("the end symbol is none of the symbols", "Give one that is above 0 and below their number");
        }
        let weight = options.ctc_weight;
        let ctc = match ctc.filter(|_| weight > 0.0) {
            Some(scores) => {
                check_shape(NAME, scores, symbols.count)?;
                if scores.len() != frames * symbols.count {
                    return wrong(
                        "the scores of CTC are of another number of frames",
                        "Give those of the same utterance",
                    );
                }
                Some(PrefixScore::new(scores, symbols)?)
            }
            None if weight > 0.0 => return wrong("there are no scores of CTC", "Use --ctc-weight 0: attention alone"),
            None => None,
        };
        let most = match options.max_length_ratio {
            0.0 => frames,
            ratio => ((ratio * frames as f64) as usize).max(1),
        };
        let least = ((options.min_length_ratio * frames as f64) as usize).min(most);
        let state = ctc.as_ref().map(PrefixScore::initial);
        let live = vec![Live { tokens: vec![symbols.end], parts: Parts::default(), state }];
        let complete = Vec::new();
        Ok(Search { ctc, has_decoder, has_language_model, symbols, options: *options, least, most, live, complete })
    }

    /// Goes on by one symbol; gives the parent of every hypothesis that is live then.
    fn advance(&mut self, length: usize, attention: Option<Rows>, fluency: Option<Rows>) -> Vec<usize> {
        let candidates = self.extend(length, attention, fluency);
        let (mut next, mut parents) = (Vec::new(), Vec::new());
        for Candidate { parent, token, parts } in candidates {
            let Live { tokens, state, .. } = &self.live[parent];
            if token == self.symbols.end {
                let complete = self.completed(tokens[1..].to_vec(), parts);
                self.complete.push(complete);
                continue;
            }
            let state = self.ctc.as_ref().zip(state.as_ref());
            let state = state.map(|(ctc, state)| ctc.extended(state, &tokens[1..], token));
            next.push(Live { tokens: tokens.iter().copied().chain([token]).collect(), parts, state });
            parents.push(parent);
        }
        if self.options.max_length_ratio == 0.0 && is_hopeless(&self.complete, length) {
            (next, parents) = (Vec::new(), Vec::new());
        }
        self.live = next;
        parents
    }

    fn finish(self) -> Vec<Scored> {
        let mut complete = self.complete;
        complete.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.tokens.cmp(&b.tokens)));
        complete.truncate(self.options.n_best);
        complete
    }

    fn completed(&self, tokens: Vec<u32>, parts: Parts) -> Scored {
        Scored {
            score: parts.score + self.options.penalty * (tokens.len() + 1) as f64,
            tokens,
            attention: self.has_decoder.then_some(parts.attention),
            ctc: self.ctc.is_some().then_some(parts.ctc),
            language_model: self.has_language_model.then_some(parts.language_model),
        }
    }

    /// The best `beam` extensions of all hypotheses, which have `length` labels.
    fn extend(&self, length: usize, attention: Option<Rows>, fluency: Option<Rows>) -> Vec<Candidate> {
        let is_pruned = self.has_decoder && self.ctc.is_some();
        let mut found = self.candidates(length, attention, fluency, is_pruned);
        if found.is_empty() && is_pruned {
            // What the decoder likes best may have no room left in the frames; something else has.
            found = self.candidates(length, attention, fluency, false);
        }
        keep_best(&mut found, self.options.beam, Candidate::rank);
        found
    }

    /// Every extension that has a probability, of those that are proposed.
    fn candidates(
        &self,
        length: usize,
        attention: Option<Rows>,
        language_model: Option<Rows>,
        is_pruned: bool,
    ) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (parent, hypothesis) in self.live.iter().enumerate() {
            let row = |rows: Option<Rows>, token: u32| rows.map_or(0.0, |rows| rows.at(parent, token));
            let tokens = self.proposed(length, is_pruned, |token| row(attention, token));
            let heard_by_ctc = self.ctc.as_ref().zip(hypothesis.state.as_ref());
            let heard_by_ctc = heard_by_ctc.map(|(ctc, state)| ctc.scores(state, &hypothesis.tokens[1..], &tokens));
            let weight = self.options.ctc_weight;
            for (place, &token) in tokens.iter().enumerate() {
                let Parts { score, attention: so_far, ctc: before, language_model: fluency } = hypothesis.parts;
                let (heard, fluent) = (row(attention, token), row(language_model, token));
                let ctc = heard_by_ctc.as_ref().map_or(0.0, |scores| scores[place]);
                // Nothing times minus infinity would not be a number.
                let weighted = |weight: f64, part: f64| if weight == 0.0 { 0.0 } else { weight * part };
                let score = score
                    + weighted(1.0 - weight, heard)
                    + weighted(weight, ctc - before)
                    + weighted(self.options.language_model_weight, fluent);
                if score > NEVER {
                    let parts = Parts { score, attention: so_far + heard, ctc, language_model: fluency + fluent };
                    candidates.push(Candidate { parent, token, parts });
                }
            }
        }
        candidates
    }

    /// The symbols that a hypothesis with `length` labels is extended by, in the order of their ids.
    fn proposed(&self, length: usize, is_pruned: bool, attention: impl Fn(u32) -> f64) -> Vec<u32> {
        let end = self.symbols.end;
        if length == self.most {
            return vec![end];
        }
        let mut tokens: Vec<u32> =
            (1..self.symbols.count as u32).filter(|&token| token != end || length >= self.least).collect();
        if self.has_decoder {
            tokens.retain(|&token| attention(token) > NEVER);
            if is_pruned {
                let most = (3 * self.options.beam / 2).max(1);
                keep_best(&mut tokens, most, |&a, &b| attention(b).total_cmp(&attention(a)).then(a.cmp(&b)));
                tokens.sort_unstable();
            }
        }
        tokens
    }
}

/// The best `most` of all, best first.
fn keep_best<T>(all: &mut Vec<T>, most: usize, rank: impl Fn(&T, &T) -> Ordering) {
    if all.len() > most {
        all.select_nth_unstable_by(most - 1, &rank);
        all.truncate(most);
    }
    all.sort_unstable_by(rank);
}

/// ln p [hypotheses, symbols], if there is a model.
fn predicted(
    model: &mut Option<Box<dyn Predictor + '_>>,
    of: &[usize],
    hypotheses: &[&[u32]],
    symbols: usize,
) -> Result<Option<Vec<f32>>> {
    let Some(model) = model else { return Ok(None) };
    let scores = model.step(of, hypotheses)?;
    if scores.len() != hypotheses.len() * symbols {
        let problem = format!("{} scores are not those of {} hypotheses", scores.len(), hypotheses.len());
        return Err(Error::operation(NAME, problem).remedy("Give them as [hypotheses, symbols]"));
    }
    if scores.iter().any(|score| score.is_nan() || *score == f32::INFINITY) {
        let label = hypotheses.first().map_or(0, |hypothesis| hypothesis.len());
        return Err(Error::operation(NAME, format!("label {label} has scores that are not finite numbers"))
            .remedy("The network's weights or the features are not finite: look into the log of its training"));
    }
    Ok(Some(scores))
}

/// True if the best hypotheses of `length` labels and of the lengths before are all far behind the best of all.
fn is_hopeless(complete: &[Scored], length: usize) -> bool {
    let Some(best) = best_score(complete.iter()) else { return false };
    (length + 1).checked_sub(LENGTHS).is_some_and(|first| {
        (first..=length).all(|length| {
            let same = best_score(complete.iter().filter(|scored| scored.tokens.len() == length));
            same.is_some_and(|same| same - best < HOPELESS)
        })
    })
}

fn best_score<'a>(hypotheses: impl Iterator<Item = &'a Scored>) -> Option<f64> {
    hypotheses.map(|scored| scored.score).reduce(f64::max)
}

#[cfg(test)]
#[path = "joint_tests.rs"]
mod tests;
