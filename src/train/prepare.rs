//! Before a run: what its recipe names is opened, and checked to fit together.

use crate::backend::cpu::ctc;
use crate::backend::cuda::matmul::Arithmetic;
use crate::data::speech::{SpeechData, SpeechUtterance};
use crate::data::tokens::TokenList;
use crate::data::{Pieces, Vocabulary};
use crate::device::{Device, DeviceKind};
use crate::error::{Error, Result};
use crate::models::Network;
use crate::models::Structure;
use crate::models::any::AnyRecogniser;
use crate::models::blstm_ctc::{BlstmCtc, Sizes};
use crate::models::blstm_encoder::EncoderSizes;
use crate::models::ctc_attention::{self, CtcAttention};
use crate::models::lstm_lm::{self, Dropouts, LstmLm};
use crate::models::recogniser::Recogniser;
use crate::models::transformer::{self, Transformer};
use crate::ops::dropout::Sharing;
use crate::recipe::{self, DataKind, Model, Precision, Recipe};
use crate::train::corpus::{Corpus, Frontend};
use crate::train::progress::Mode;
use crate::train::run_folder::{self, RunFolder};
use crate::train::task::{SpeechTask, token_unit, token_word};
use crate::train::text_corpus::{TextCorpus, TextTask, vocabulary_of};
use crate::train::weights_reference::{WeightsReference, resolve_reference};

/// What a recipe names, opened and found to fit together.
pub struct Prepared {
    pub task: AnyTask,
    /// The weights of other runs that the cascade begins with.
    pub classifiers: Vec<WeightsReference>,
}

/// The kinds of data there are, each with its model.
pub enum AnyTask {
    Speech(SpeechTask),
    Text(TextTask),
}

/// Opens what the recipe names. A run that goes on brings its folder: its tokens and normalisation are used again. `mode` is how it is
/// shown that features are computed.
///
/// # Errors
/// Whatever makes a training with this recipe impossible.
pub fn prepare(recipe: &Recipe, device: &Device, resumed: Option<&RunFolder>, mode: Mode) -> Result<Prepared> {
    choose_arithmetic(recipe, device)?;
    let classifiers = classifiers(recipe)?;
    if recipe.data.kind == DataKind::Text {
        let task = prepare_text(recipe, resumed, &classifiers)?;
        return Ok(Prepared { task: AnyTask::Text(task), classifiers });
    }
    let (frontend, keep_normalization) = frontend_from(recipe, resumed, &classifiers)?;
    let corpus = Corpus::open(recipe, frontend, keep_normalization, mode)?;
    let model = model_of_sizes(recipe, corpus.train.dimension(), &corpus.frontend.tokens)?;
    let model = with_unigrams(model, &corpus.train);
    for set in [&corpus.train, &corpus.valid] {
        check_feasible(set, &model)?;
    }
    for classifier in &classifiers {
        check_classifier(classifier, &corpus, &model, recipe.cascade.classifier_groups)?;
    }
    Ok(Prepared { task: AnyTask::Speech(SpeechTask { corpus, model: Box::new(model) }), classifiers })
}

/// What the run that goes on, or else the first classifier's run, brings to the model; and whether its normalisation stays.
fn frontend_from(
    recipe: &Recipe,
    resumed: Option<&RunFolder>,
    classifiers: &[WeightsReference],
) -> Result<(Option<Frontend>, bool)> {
    let takes_theirs = recipe.data.cmvn == recipe::Cmvn::Classifier;
    let (frontend, keep_normalization) = match (resumed, classifiers.first()) {
        (Some(folder), _) => (Frontend::of_run(folder, recipe)?, true),
        (None, Some(classifier)) => {
            let other = RunFolder::open(&classifier.run)?;
            let theirs = recipe_of(&other)?;
            check_token_kind(recipe, &theirs, classifier)?;
            let frontend = Frontend::of_run(&other, &theirs)?;
            check_token_list(recipe, classifier, &frontend.tokens)?;
            (frontend, takes_theirs)
        }
        (None, None) => return Ok((None, false)),
    };
    if takes_theirs && frontend.cmvn().is_none() {
        let problem = "is \"classifier\", but the classifier's run has no statistics over its training set";
        return Err(Error::key("data.cmvn", problem).remedy("Use \"utterance\" or \"none\", as that run does"));
    }
    Ok((Some(frontend), keep_normalization))
}

/// Tokens, normalisation and feature options as a new training with this recipe would have them: those of its classifier's run, where the
/// recipe names one.
///
/// # Errors
/// A classifier's run that is missing or does not fit; data that cannot be read.
pub fn frontend_of_recipe(recipe: &Recipe, mode: Mode) -> Result<Frontend> {
    let (frontend, keep_normalization) = frontend_from(recipe, None, &classifiers(recipe)?)?;
    Frontend::of_recipe(recipe, frontend, keep_normalization, mode)
}

/// The token list that a new training of a language model with this recipe would have: that of its classifier's run, where the recipe names one.
///
/// # Errors
/// A classifier's run that is missing or is on speech; a list that cannot be had.
pub fn vocabulary_of_recipe(recipe: &Recipe) -> Result<Vocabulary> {
    vocabulary_from(recipe, None, &classifiers(recipe)?)
}

fn vocabulary_from(
    recipe: &Recipe,
    resumed: Option<&RunFolder>,
    classifiers: &[WeightsReference],
) -> Result<Vocabulary> {
    match (resumed, classifiers.first()) {
        (Some(folder), _) => vocabulary_of_run(folder, recipe),
        (None, Some(classifier)) => {
            let other = RunFolder::open(&classifier.run)?;
            vocabulary_of_run(&other, &recipe_of(&other)?)
        }
        (None, None) => vocabulary_of(&recipe.data),
    }
}

fn prepare_text(recipe: &Recipe, resumed: Option<&RunFolder>, classifiers: &[WeightsReference]) -> Result<TextTask> {
    let vocabulary = vocabulary_from(recipe, resumed, classifiers)?;
    let corpus = TextCorpus::open(recipe, vocabulary)?;
    let model = language_model(recipe, corpus.vocabulary.len())?;
    for classifier in classifiers {
        let other = RunFolder::open(&classifier.run)?;
        let tokens = vocabulary_of_run(&other, &recipe_of(&other)?)?;
        check_same_tokens(classifier, tokens.symbols(), corpus.vocabulary.symbols())?;
        check_shapes(classifier, model.structure(), recipe.cascade.classifier_groups)?;
    }
    TextTask::new(recipe, corpus, model)
}

/// The token list that a run of a language model keeps.
///
/// # Errors
/// If it is missing or damaged.
pub fn vocabulary_of_run(folder: &RunFolder, recipe: &Recipe) -> Result<Vocabulary> {
    if recipe.data.kind != DataKind::Text {
        return Err(
            Error::file(folder.path(), "is a run on speech, not on text").remedy("Name a run of a language model")
        );
    }
    folder.check_start()?;
    Vocabulary::load(token_unit(recipe.data.tokens)?, folder.path().join(run_folder::TOKENS))
}

/// The language model that the recipe asks for, with so many symbols.
///
/// # Errors
/// If it asks for another kind of model.
pub fn language_model(recipe: &Recipe, vocabulary: usize) -> Result<LstmLm> {
    let Model::LstmLm(sizes) = &recipe.model else {
        return Err(Error::key("model.kind", "is no language model"));
    };
    let sharing = if sizes.locked_dropout { Sharing::Locked } else { Sharing::Elementwise };
    let dropouts = Dropouts {
        embedding: sizes.dropout_embedding,
        input: sizes.dropout_input,
        hidden: sizes.dropout_hidden,
        output: sizes.dropout,
        recurrent: sizes.dropout_recurrent,
        sharing,
    };
    let recipe::LstmLm { embedding, units, layers, tied, .. } = *sizes;
    Ok(LstmLm::new(lstm_lm::Sizes { vocabulary, embedding, units, layers, tied, dropouts }))
}

/// The recogniser that the recipe asks for, with so many features a frame and these tokens. A model with a decoder has one symbol more, which
/// begins and ends a transcript, unless the list ends with it (`<eos>`), as lists of ESPnet do.
///
/// # Errors
/// If it asks for another kind of model.
pub fn model_of_sizes(recipe: &Recipe, inputs: usize, tokens: &TokenList) -> Result<AnyRecogniser> {
    let has_end = tokens.symbols().last().is_some_and(|symbol| symbol == "<eos>");
    let with_end = tokens.len() + usize::from(!has_end);
    match &recipe.model {
        Model::BlstmCtc(sizes) => Ok(AnyRecogniser::BlstmCtc(BlstmCtc::new(Sizes {
            inputs,
            vgg: vgg(sizes.front_end),
            units: sizes.units,
            projection: sizes.projection,
            subsample: sizes.subsample.clone(),
            dropout: sizes.dropout,
            symbols: tokens.len(),
        }))),
        Model::CtcAttention(sizes) => Ok(AnyRecogniser::CtcAttention(CtcAttention::new(ctc_attention::Sizes {
            encoder: EncoderSizes {
                inputs,
                vgg: vgg(sizes.encoder.front_end),
                units: sizes.encoder.units,
                projection: sizes.encoder.projection,
                subsample: sizes.encoder.subsample.clone(),
                dropout: sizes.encoder.dropout,
            },
            attention: sizes.attention,
            channels: sizes.attention_channels,
            reach: sizes.attention_reach,
            decoder_units: sizes.decoder_units,
            ctc_weight: sizes.ctc_weight,
            label_smoothing: sizes.label_smoothing,
            scheduled_sampling: sizes.scheduled_sampling,
            unigrams: None,
            symbols: with_end,
        }))),
        Model::Transformer(sizes) => Ok(AnyRecogniser::Transformer(Transformer::new(transformer::Sizes {
            inputs,
            encoder_layers: sizes.encoder_layers,
            decoder_layers: sizes.decoder_layers,
            units: sizes.units,
            heads: sizes.heads,
            feedforward: sizes.feedforward,
            dropout: sizes.dropout,
            attention_dropout: sizes.attention_dropout,
            ctc_weight: sizes.ctc_weight,
            label_smoothing: sizes.label_smoothing,
            symbols: with_end,
        }))),
        Model::LstmLm(_) => Err(Error::key("model.kind", "is no speech recogniser")),
    }
}

/// Labels are smoothed towards how frequent the symbols are in the training set, the end of a transcript with them; as in ESPnet one that never
/// occurs counts once, and the blank not at all.
fn with_unigrams(model: AnyRecogniser, train: &SpeechData) -> AnyRecogniser {
    let AnyRecogniser::CtcAttention(model) = model else { return model };
    let mut sizes = model.sizes().clone();
    let mut counts = vec![0_u64; sizes.symbols];
    for utterance in train.utterances() {
        utterance.labels.iter().for_each(|&label| counts[label as usize] += 1);
    }
    *counts.last_mut().expect("there is a symbol") = train.utterances().len() as u64;
    counts.iter_mut().for_each(|count| *count = (*count).max(1));
    counts[0] = 0;
    let total: u64 = counts.iter().sum();
    sizes.unigrams = Some(counts.iter().map(|&count| (count as f64 / total as f64) as f32).collect());
    AnyRecogniser::CtcAttention(CtcAttention::new(sizes))
}

/// The channels of ESPnet's.
fn vgg(front_end: recipe::FrontEnd) -> Option<[usize; 2]> {
    (front_end == recipe::FrontEnd::Vgg).then_some([64, 128])
}

/// The recipe that a run keeps.
///
/// # Errors
/// If it is missing or no recipe.
pub fn recipe_of(folder: &RunFolder) -> Result<Recipe> {
    let path = folder.path().join(crate::train::run_folder::RECIPE);
    Recipe::load(path, &[])
}

fn choose_arithmetic(recipe: &Recipe, device: &Device) -> Result<()> {
    let arithmetic = match recipe.training.precision {
        Precision::F32 => Arithmetic::F32,
        Precision::Tf32 => Arithmetic::Tf32,
        Precision::Bf16 => Arithmetic::Bf16,
    };
    if arithmetic == Arithmetic::F32 || device.kind() == DeviceKind::Cuda {
        device.set_arithmetic(arithmetic);
        return Ok(());
    }
    let problem = format!("only \"f32\" is computed on {device}");
    Err(Error::key("training.precision", problem).remedy("Use precision = \"f32\""))
}

fn classifiers(recipe: &Recipe) -> Result<Vec<WeightsReference>> {
    recipe.cascade.classifier_from.iter().map(|source| resolve_reference(&source.path, source.epoch)).collect()
}

/// What is trained on and what epochs are judged by needs an utterance with a loss: the mean of none would look like a perfect one.
fn check_feasible(set: &SpeechData, model: &AnyRecogniser) -> Result<()> {
    let fits = |utterance: &SpeechUtterance| {
        ctc::Batch::feasible(model.frames_after_subsampling(utterance.frames), &utterance.labels)
    };
    if set.utterances().iter().any(fits) {
        return Ok(());
    }
    let problem = "no utterance has labels that fit its frames after subsampling, so the set has no loss";
    Err(Error::file(set.path(), problem)
        .remedy("Check the transcripts against the recordings, or keep more frames (model.subsample)"))
}

/// Words and characters may look alike, but a model of one is none of the other.
fn check_token_kind(recipe: &Recipe, theirs: &Recipe, classifier: &WeightsReference) -> Result<()> {
    if recipe.data.tokens == theirs.data.tokens {
        return Ok(());
    }
    let problem = format!(
        "is \"{}\", but the classifier's run {} has \"{}\"",
        token_word(recipe.data.tokens),
        classifier.run.display(),
        token_word(theirs.data.tokens)
    );
    Err(Error::key("data.tokens", problem).remedy(format!(
        "Write tokens = \"{}\", or take the classifier from a run with your kind of tokens",
        token_word(theirs.data.tokens)
    )))
}

/// A token list that the recipe names must be that of the classifier, which decides.
fn check_token_list(recipe: &Recipe, classifier: &WeightsReference, tokens: &TokenList) -> Result<()> {
    if let Some(path) = &recipe.data.pieces
        && tokens.pieces() != Some(&Pieces::load(path)?)
    {
        let problem = format!("{} has not the pieces of {}", path.display(), classifier.run.display());
        return Err(Error::key("data.pieces", problem).remedy("Leave it out: the classifier's are used"));
    }
    let Some(path) = &recipe.data.token_list else { return Ok(()) };
    let named = TokenList::load(tokens.unit(), path)?;
    if let Some(difference) = difference(named.symbols(), tokens.symbols()) {
        let problem = format!("{} is not the token list of {}: {difference}", path.display(), classifier.run.display());
        return Err(Error::key("data.token_list", problem).remedy("Leave it out: the classifier's is used"));
    }
    Ok(())
}

/// The frozen groups must have the tokens and the shapes of the model that they go into.
fn check_classifier(reference: &WeightsReference, corpus: &Corpus, model: &AnyRecogniser, groups: usize) -> Result<()> {
    let folder = RunFolder::open(&reference.run)?;
    let tokens = Frontend::of_run(&folder, &recipe_of(&folder)?)?.tokens;
    check_same_tokens(reference, tokens.symbols(), corpus.frontend.tokens.symbols())?;
    if tokens.pieces() != corpus.frontend.tokens.pieces() {
        let problem = format!("{} splits words into the same pieces, but otherwise", reference.run.display());
        return Err(Error::key("cascade.classifier_from", problem)
            .remedy("Take classifiers from runs with the same pieces.json"));
    }
    check_shapes(reference, model.structure(), groups)
}

fn check_same_tokens(reference: &WeightsReference, theirs: &[String], ours: &[String]) -> Result<()> {
    let Some(difference) = difference(theirs, ours) else { return Ok(()) };
    let problem = format!("the token list of {} is not this run's: {difference}", reference.run.display());
    Err(Error::key("cascade.classifier_from", problem).remedy("Take classifiers from runs with the same tokens.txt"))
}

fn check_shapes(reference: &WeightsReference, structure: &Structure, groups: usize) -> Result<()> {
    let weights = reference.load()?;
    let frozen = structure.groups.iter().rev().take(groups).flat_map(|group| group.parameters.clone());
    for spec in frozen.map(|index| &structure.specs[index]) {
        weights.get(&spec.name, &spec.shape)?;
    }
    Ok(())
}

/// The first symbol in which two lists differ, in words.
fn difference(one: &[String], other: &[String]) -> Option<String> {
    if one == other {
        return None;
    }
    let symbol = |tokens: &[String], index: usize| match tokens.get(index) {
        Some(symbol) => format!("{symbol:?}"),
        None => "none".into(),
    };
    let index = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    Some(format!("symbol {index} is {}, not {}", symbol(one, index), symbol(other, index)))
}
