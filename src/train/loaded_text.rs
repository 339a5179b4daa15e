//! A trained language model, ready to score a text or to write one: weights and tokens, from a run or from files.

use crate::data::streams::{Sentences, Streams};
use crate::data::tokens::{TokenList, UNKNOWN, Unit};
use crate::data::{TextData, Vocabulary};
use crate::decode::{Predictor, Symbols};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::Network;
use crate::models::predictors::LanguageModelPredictor;
use crate::nn::Parameters;
use crate::random::Philox;
use crate::recipe::{Batch as BatchSection, Recipe, TextMode};
use crate::score::perplexity::{bits_per_character, perplexity};
use crate::train::checkpoint::load_weights;
use crate::train::learner::Learner;
use crate::train::number;
use crate::train::prepare::{language_model, recipe_of, vocabulary_of_recipe, vocabulary_of_run};
use crate::train::progress::{Counted, Mode};
use crate::train::run_folder::RunFolder;
use crate::train::stage::update_options;
use crate::train::text_corpus::{score_sentences, score_streams};
use crate::train::text_learner::Carried;
use crate::train::weights::Weights;
use crate::train::weights_reference::parse_reference;
use serde::Serialize;
use std::path::{Path, PathBuf};

pub struct LoadedText {
    pub recipe: Recipe,
    pub vocabulary: Vocabulary,
    learner: Learner<crate::models::lstm_lm::LstmLm>,
}

/// What a text is worth under a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TextEvaluation {
    /// Mean over the predicted tokens of -ln p.
    #[serde(with = "number::float")]
    pub loss: f64,
    pub tokens: u64,
    #[serde(with = "number::float")]
    pub perplexity: f64,
    #[serde(with = "number::float")]
    pub bits_per_character: f64,
}

impl TextEvaluation {
    /// A line for people.
    pub fn describe(&self, data: &Path) -> String {
        let TextEvaluation { loss, tokens, perplexity, bits_per_character } = self;
        let scores = format!("loss {loss:.4}, perplexity {perplexity:.2}, {bits_per_character:.4} bits per character");
        format!("{}: {tokens} tokens, {scores}\n", data.display())
    }
}

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0: the most likely token always.
    pub temperature: f64,
    /// Only from so many of the most likely tokens; 0: from all.
    pub top_k: usize,
    pub seed: u64,
}

/// The recipe of the run that `RUN`, `RUN/STAGE` or `RUN/STAGE@EPOCH` names.
///
/// # Errors
/// If there is no such run.
pub fn recipe_of_run(reference: &str) -> Result<Recipe> {
    recipe_of(&RunFolder::open(&parse_reference(reference)?.run)?)
}

impl LoadedText {
    /// The weights that `RUN`, `RUN/STAGE` or `RUN/STAGE@EPOCH` names.
    ///
    /// # Errors
    /// If there is no such run, it is damaged, or it is not about text.
    pub fn of_run(device: &Device, reference: &str) -> Result<Self> {
        let reference = parse_reference(reference)?;
        let folder = RunFolder::open(&reference.run)?;
        let recipe = recipe_of(&folder)?;
        let vocabulary = vocabulary_of_run(&folder, &recipe)?;
        Self::new(device, recipe, vocabulary, &reference.load()?)
    }

    /// Weights from a file, in the model that a recipe describes, with the token list that a training with it would take.
    ///
    /// # Errors
    /// If the recipe's list cannot be had, or the weights are of another model.
    pub fn of_files(device: &Device, recipe: &Path, weights: &Path) -> Result<Self> {
        let recipe = Recipe::load(recipe, &[])?;
        let vocabulary = vocabulary_of_recipe(&recipe)?;
        Self::new(device, recipe, vocabulary, &load_weights(weights)?)
    }

    fn new(device: &Device, recipe: Recipe, vocabulary: Vocabulary, weights: &Weights) -> Result<Self> {
        let model = language_model(&recipe, vocabulary.len())?;
        let structure = model.structure();
        weights.expect(structure.specs.iter().map(|spec| (spec.name.as_str(), spec.shape.as_slice())))?;
        let parameters = Parameters::read(device, &structure.specs, |spec| weights.get(&spec.name, &spec.shape))?;
        // Everything frozen: no gradient buffer and no optimiser state exists.
        let groups: Vec<usize> = (0..structure.groups.len()).collect();
        let learner = Learner::with_parameters(device, model, parameters, &groups, update_options(&recipe));
        Ok(LoadedText { recipe, vocabulary, learner })
    }

    /// `data`, or the recipe's test set, or its validation set.
    ///
    /// # Errors
    /// If there is none of these.
    pub fn data(&self, data: Option<PathBuf>) -> Result<PathBuf> {
        let named = || self.recipe.data.test.clone().or_else(|| self.recipe.data.valid.clone());
        data.or_else(named)
            .ok_or_else(|| Error::key("--data", "is missing, and the recipe names neither test nor valid"))
    }

    /// Scores a text: as one stream, or, if the model was trained on sentences, line by line.
    ///
    /// # Errors
    /// If the text cannot be read, or has tokens that the list lacks.
    pub fn evaluate(&self, path: &Path, mode: Mode) -> Result<TextEvaluation> {
        let data = TextData::open(path, &self.vocabulary)?;
        let BatchSection::Text(batching) = &self.recipe.batch else {
            return Err(Error::key("batch", "has no streams for text"));
        };
        let is_stream = batching.mode == TextMode::Stream;
        let scores = if is_stream {
            let progress = Counted::new(mode, &path.display().to_string(), data.ids().len() - 1);
            let after = |done| {
                progress.advance(done);
                Ok(())
            };
            score_streams(&self.learner, &Streams::whole(data.ids(), 1), after)?
        } else {
            let end = self.vocabulary.end();
            score_sentences(&self.learner, &Sentences::new(data.sentences(end), end), batching, &|| Ok(()))?
        };
        let sum = scores.negative_log_likelihood;
        // A model of sentences predicts the first token too.
        let first = if is_stream { 0 } else { data.ids().first().map_or(0, |&id| self.vocabulary.characters(id)) };
        Ok(TextEvaluation {
            loss: scores.loss(),
            tokens: scores.tokens,
            perplexity: perplexity(sum, scores.tokens),
            bits_per_character: bits_per_character(sum, data.characters() + first),
        })
    }

    /// As a search for a recogniser with these tokens asks it: symbols are the same if they have the same name. `<unk>` may be missing here.
    ///
    /// # Errors
    /// A language model of another kind of token, or one that lacks a symbol.
    pub fn predictor(&self, tokens: &TokenList, symbols: Symbols) -> Result<Box<dyn Predictor + '_>> {
        let kind = |unit: Unit| match unit {
            Unit::Character => "characters",
            Unit::Word => "words",
            Unit::Piece => "pieces",
        };
        let remedy = match tokens.unit() {
            Unit::Character => "Train one with data.tokens = \"char\"",
            Unit::Word => "Train one with data.tokens = \"word\"",
            Unit::Piece => "Train one on text that is split into the recogniser's pieces, with data.tokens = \"word\"",
        };
        let (ours, theirs) = (tokens.unit(), self.vocabulary.unit());
        // A text of pieces has them as words.
        if ours != theirs && (ours, theirs) != (Unit::Piece, Unit::Word) {
            let problem = format!("is a language model of {}, and the recogniser writes {}", kind(theirs), kind(ours));
            return Err(Error::key("--lm", problem).remedy(remedy));
        }
        let mut known = vec![None; symbols.count];
        let mut lacks = Vec::new();
        for (id, symbol) in tokens.symbols().iter().enumerate().skip(1) {
            known[id] = self.vocabulary.id(symbol);
            if known[id].is_none() && symbol != UNKNOWN {
                lacks.push(symbol.as_str());
            }
        }
        known[symbols.end as usize] = Some(self.vocabulary.end());
        if let [first, others @ ..] = &lacks[..] {
            let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            let problem = format!("lacks {first:?}{more} of the recogniser's {} symbols", tokens.len());
            return Err(Error::key("--lm", problem)
                .remedy(format!("{remedy}, on text that has them all or with a data.token_list that has them")));
        }
        Ok(Box::new(LanguageModelPredictor::new(self.learner.model(), &self.learner.parameters, known)))
    }

    /// `length` tokens that follow `prompt` (a line's end, if it is empty), as text with the prompt before them.
    ///
    /// # Errors
    /// If the prompt has tokens that the list lacks; if the model's output is not finite.
    pub fn generate(&self, prompt: &str, length: usize, sampling: &Sampling) -> Result<String> {
        let prompt = self.vocabulary.encode_prompt(prompt)?;
        let mut carried = Carried::zeros(self.learner.device(), self.learner.model(), 1);
        let mut stream = Philox::named(sampling.seed, "generate").stream();
        let mut tokens = prompt.clone();
        let mut unread = if prompt.is_empty() { vec![self.vocabulary.end()] } else { prompt };
        for _ in 0..length {
            let logits = self.learner.next_logits(&unread, &mut carried)?;
            if !logits.iter().all(|logit| logit.is_finite()) {
                return Err(Error::program("the model's output is not finite, so nothing can be written")
                    .remedy("The weights are those of a training that diverged: look into its log.jsonl"));
            }
            let token = sampling.choose(&logits, stream.uniform());
            tokens.push(token);
            unread = vec![token];
        }
        Ok(self.vocabulary.decode(&tokens))
    }
}

impl Sampling {
    /// The token in whose share of [0, 1) the number `uniform` lies, shares in falling order of the logits.
    pub fn choose(&self, logits: &[f32], uniform: f64) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        // Stable, so that ties are decided by number.
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let Some(&first) = order.first() else { return 0 };
        if self.temperature == 0.0 {
            return first;
        }
        let highest = f64::from(logits[first as usize]);
        let weight = |&token: &u32| ((f64::from(logits[token as usize]) - highest) / self.temperature).exp();
        let mut left = uniform * order.iter().map(weight).sum::<f64>();
        for token in &order {
            left -= weight(token);
            if left < 0.0 {
                return *token;
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_by_their_probability_among_the_most_likely() {
        let logits = [0.0, 2.0_f32.ln(), f32::ln(5.0)];
        let sampling = |temperature, top_k| Sampling { temperature, top_k, seed: 1 };
        let drawn = |sampling: Sampling| -> Vec<u32> {
            [0.0, 0.6, 0.63, 0.87, 0.99].iter().map(|&uniform| sampling.choose(&logits, uniform)).collect()
        };
        // 5 of 8, 2 of 8, 1 of 8.
        assert_eq!(drawn(sampling(1.0, 0)), [2, 2, 1, 1, 0]);
        assert_eq!(drawn(sampling(1.0, 2)), [2, 2, 2, 1, 1], "5 of 7, 2 of 7");
        assert_eq!(drawn(sampling(0.0, 0)), [2; 5]);
        assert_eq!(drawn(sampling(0.01, 0)), [2; 5]);
        // 25 of 30, 4 of 30, 1 of 30.
        assert_eq!(drawn(sampling(0.5, 0)), [2, 2, 2, 1, 0]);
    }
}
