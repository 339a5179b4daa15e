//! The data of a run, as its recipe names it: training, validation and test sets, tokens, normalisation, feature options.

use crate::audio::{FeatureExtractor, FeatureOptions, Features};
use crate::data::augment::{SpecAugment, at_speeds};
use crate::data::batch::BatchLimits;
use crate::data::cmvn::{Cmvn, Normalization};
use crate::data::kaldi::{DataFolder, Source};
use crate::data::pieces::Pieces;
use crate::data::speech::{FeatureMatrix, SpeechData};
use crate::data::subset::Subset;
use crate::data::tokens::{TokenList, Unit};
use crate::error::{Error, Result};
use crate::recipe::{self, Batch, Recipe};
use crate::train::progress::{Counted, Mode};
use crate::train::run_folder::{self, RunFolder};
use crate::train::task::token_unit as unit;
use std::path::Path;
use std::sync::Arc;

/// What belongs to a model beside its weights: without it, nothing can be recognised.
#[derive(Debug, Clone)]
pub struct Frontend {
    pub tokens: TokenList,
    pub normalization: Normalization,
    /// None if the data folder does not say how its features were made: then audio cannot be transcribed.
    pub features: Option<FeatureOptions>,
}

#[derive(Clone)]
pub struct Corpus {
    pub train: Arc<SpeechData>,
    pub valid: Arc<SpeechData>,
    pub test: Option<Arc<SpeechData>>,
    pub frontend: Frontend,
    pub limits: BatchLimits,
    /// Of the training set alone, while it is trained on.
    pub augment: Arc<SpecAugment>,
}

impl Corpus {
    /// Opens what the recipe names. A run that goes on, or that takes its classifier from another run, brings that run's `frontend`; its
    /// normalisation is replaced by a new one only if the recipe asks for one. `mode` is how it is shown that features of recordings
    /// are computed, here and below.
    ///
    /// # Errors
    /// Data that is missing, inconsistent, or not what the token list and the feature options say.
    pub fn open(recipe: &Recipe, frontend: Option<Frontend>, keep_normalization: bool, mode: Mode) -> Result<Self> {
        let (train, frontend) = open_training_set(recipe, frontend, keep_normalization, mode)?;
        let Batch::Speech { utterances, max_frames, max_labels } = recipe.batch else {
            return Err(
                Error::key("batch", "has no limits for speech").remedy("Give utterances, max_frames, max_labels")
            );
        };
        let train = Arc::new(train);
        let held_out = |path: &Path| frontend.open_set(path, mode).map(Arc::new);
        let valid = match &recipe.data.valid {
            Some(path) => held_out(path)?,
            None => Arc::clone(&train),
        };
        let test = recipe.data.test.as_deref().map(held_out).transpose()?;
        for set in [Some(&valid), test.as_ref()].into_iter().flatten() {
            check_dimension(set, &train)?;
        }
        let limits = BatchLimits { utterances, max_frames, max_labels };
        Ok(Corpus { train, valid, test, frontend, limits, augment: Arc::new(recipe.augment.features.clone()) })
    }
}

/// The training set, normalised, and what goes with a model that is trained on it.
fn open_training_set(
    recipe: &Recipe,
    frontend: Option<Frontend>,
    keep_normalization: bool,
    mode: Mode,
) -> Result<(SpeechData, Frontend)> {
    let data = &recipe.data;
    let folder = DataFolder::open(&data.train)?;
    let mut tokens = match &frontend {
        Some(frontend) => frontend.tokens.clone(),
        None => token_list(data, &folder)?,
    };
    tokens.keep_whole(&data.non_linguistic);
    let features = feature_options(recipe, &folder, frontend.as_ref().and_then(|frontend| frontend.features.as_ref()))?;
    let extractor = extractor(features.as_ref(), &folder)?;
    // The rate of the recordings is the model's from now on: others are resampled.
    let features = extractor.as_ref().map(FeatureExtractor::options).or(features);
    let (speeds, subset) = (&recipe.augment.speeds, subset(&data.subset));
    let mut train = match speeds.as_slice() {
        [1.0] => open_set(folder, &tokens, subset.as_ref(), extractor.as_ref(), mode, |_| 1.0)?,
        speeds => {
            let (copies, speed_of) = at_speeds(folder, speeds, subset.as_ref())?;
            let speed_of = |id: &str| speed_of.get(id).copied().unwrap_or(1.0);
            open_set(copies, &tokens, None, extractor.as_ref(), mode, speed_of)?
        }
    };
    // A model that is trained on other features than it knows of could never transcribe.
    if let Some(options) = &features
        && options.dimension() != train.dimension()
    {
        let (found, named) = (train.dimension(), options.dimension());
        let problem = format!("its features have {found} numbers a frame, but those of the options make {named}");
        return Err(Error::file(&data.train, problem).remedy(
            "The options are those of features.toml beside feats.scp or else of [features] in the recipe: correct them, \
             leave them out, or compute the features again with data-tools features",
        ));
    }
    let normalization = match frontend {
        Some(frontend) if keep_normalization => frontend.normalization,
        _ => match data.cmvn {
            recipe::Cmvn::Global => Normalization::Global(train.global_cmvn()?),
            recipe::Cmvn::Utterance => Normalization::Utterance,
            recipe::Cmvn::None | recipe::Cmvn::Classifier => Normalization::None,
        },
    };
    train.normalize(normalization.clone())?;
    Ok((train, Frontend { tokens, normalization, features }))
}

/// The tokens that a recipe names, or that are made from the training set.
fn token_list(data: &recipe::Data, folder: &DataFolder) -> Result<TokenList> {
    let unit = unit(data.tokens)?;
    let whole = &data.non_linguistic;
    let named = data.token_list.as_ref().map(|path| TokenList::load(unit, path)).transpose()?;
    match (named, &data.pieces) {
        (None, Some(pieces)) => Ok(TokenList::of_pieces(Arc::new(Pieces::load(pieces)?), whole)),
        (None, None) => TokenList::from_transcripts(unit, whole, folder.transcripts()),
        (Some(named), Some(pieces)) => named.with_pieces(Arc::new(Pieces::load(pieces)?)),
        (Some(named), None) => Ok(named),
    }
}

impl Frontend {
    /// As a training with this recipe would find it; `frontend` and the other arguments are those of [`Corpus::open`].
    ///
    /// # Errors
    /// Those of [`Corpus::open`] about the training set.
    pub fn of_recipe(
        recipe: &Recipe,
        frontend: Option<Frontend>,
        keep_normalization: bool,
        mode: Mode,
    ) -> Result<Self> {
        open_training_set(recipe, frontend, keep_normalization, mode).map(|(_, frontend)| frontend)
    }

    /// Opens a data folder as the model needs it.
    ///
    /// # Errors
    /// Those of [`DataFolder::open`] and [`SpeechData::open`]; features that were made otherwise than those the model is trained on.
    pub fn open_set(&self, path: &Path, mode: Mode) -> Result<SpeechData> {
        let folder = DataFolder::open(path)?;
        check_made_alike(&folder, self.features.as_ref())?;
        let extractor = extractor(self.features.as_ref(), &folder)?;
        let mut data = open_set(folder, &self.tokens, None, extractor.as_ref(), mode, |_| 1.0)?;
        data.normalize(self.normalization.clone())?;
        Ok(data)
    }

    /// Reads what a run keeps of it.
    ///
    /// # Errors
    /// A file of the run that is missing or damaged.
    pub fn of_run(folder: &RunFolder, recipe: &Recipe) -> Result<Self> {
        folder.check_start()?;
        let path = |name: &str| folder.path().join(name);
        let mut tokens = TokenList::load(unit(recipe.data.tokens)?, path(run_folder::TOKENS))?;
        if tokens.unit() == Unit::Piece {
            tokens = tokens.with_pieces(Arc::new(Pieces::load(path(run_folder::PIECES))?))?;
        }
        tokens.keep_whole(&recipe.data.non_linguistic);
        let normalization = match recipe.data.cmvn {
            _ if path(run_folder::CMVN).is_file() => Normalization::Global(Cmvn::load(path(run_folder::CMVN))?),
            recipe::Cmvn::Utterance => Normalization::Utterance,
            // A classifier's run without statistics left none.
            recipe::Cmvn::None | recipe::Cmvn::Classifier => Normalization::None,
            recipe::Cmvn::Global => {
                return Err(Error::file(
                    path(run_folder::CMVN),
                    "is missing, but the run's features are normalised with it",
                )
                .remedy("Copy the whole run folder, or train again"));
            }
        };
        let features = path(run_folder::FEATURES);
        let features = if features.is_file() { Some(FeatureOptions::read(&features)?) } else { None };
        Ok(Frontend { tokens, normalization, features })
    }

    /// The statistics that a run keeps.
    pub fn cmvn(&self) -> Option<&Cmvn> {
        match &self.normalization {
            Normalization::Global(cmvn) => Some(cmvn),
            Normalization::Utterance | Normalization::None => None,
        }
    }
}

fn subset(subset: &recipe::Subset) -> Option<Subset> {
    let recipe::Subset { fraction, seed, nested, complement_of } = *subset;
    let all = fraction == 1.0 && complement_of == 0.0;
    let complement_of = (complement_of > 0.0).then_some(complement_of);
    (!all).then_some(Subset { fraction, seed, nested, complement_of })
}

/// Those of the model, if it brings any (`of_model`); else from the `features.toml` beside the features, if it is there; else from the recipe, whose folder
/// then has audio. Whichever it is, the other two may not say otherwise.
fn feature_options(
    recipe: &Recipe,
    folder: &DataFolder,
    of_model: Option<&FeatureOptions>,
) -> Result<Option<FeatureOptions>> {
    // A misspelt key is one, whatever is taken.
    let given: FeatureOptions = recipe.features_as()?;
    check_made_alike(folder, of_model)?;
    let path = folder.path.join(run_folder::FEATURES);
    let (mut options, source) = match of_model {
        Some(options) => (options.clone(), "the model's features have".to_string()),
        None if path.is_file() => (FeatureOptions::read(&path)?, format!("{} says", path.display())),
        None => {
            let is_audio = matches!(folder.source, Source::Audio(_));
            return Ok((is_audio || !recipe.features.is_empty()).then_some(given));
        }
    };
    let (ours, theirs) = (given.table()?, options.table()?);
    for key in recipe.features.keys() {
        if let (Some(value), Some(found)) = (ours.get(key), theirs.get(key))
            && value != found
        {
            let problem = format!("is {value} in the recipe, but {source} {found}");
            return Err(Error::key(format!("features.{key}"), problem)
                .remedy("Leave [features] out, or compute the features again with data-tools features"));
        }
    }
    options.sample_frequency = options.sample_frequency.or(given.sample_frequency);
    Ok(Some(options))
}

/// Features that were computed before must be those that the model takes, as far as both are known.
fn check_made_alike(folder: &DataFolder, of_model: Option<&FeatureOptions>) -> Result<()> {
    let path = folder.path.join(run_folder::FEATURES);
    let (Some(of_model), Source::Features(_), true) = (of_model, &folder.source, path.is_file()) else {
        return Ok(());
    };
    let Some((key, found, expected)) = FeatureOptions::read(&path)?.difference(of_model)? else { return Ok(()) };
    let problem =
        format!("says {key} = {found}, but the features that the model is trained on have {key} = {expected}");
    Err(Error::file(&path, problem)
        .remedy("Compute the features beside it again, with data-tools features and the options of the training set"))
}

/// For a folder of recordings.
fn extractor(options: Option<&FeatureOptions>, folder: &DataFolder) -> Result<Option<FeatureExtractor>> {
    let Source::Audio(recordings) = &folder.source else { return Ok(None) };
    let known = options.zip(recordings.first());
    known.map(|(options, first)| FeatureExtractor::for_recordings(options, first, None)).transpose()
}

fn open_set(
    folder: DataFolder,
    tokens: &TokenList,
    subset: Option<&Subset>,
    extractor: Option<&FeatureExtractor>,
    mode: Mode,
    speed_of: impl Fn(&str) -> f64 + Sync,
) -> Result<SpeechData> {
    let Some(extractor) = extractor else { return SpeechData::open(folder, tokens, subset, None) };
    let all = folder.utterances.len();
    let utterances = subset.map_or(Ok(all), |subset| subset.choose(all).map(|chosen| chosen.len()))?;
    let progress = Counted::new(mode, &folder.path.display().to_string(), utterances);
    let provider = |id: &str, path: &Path| {
        let Features { frames, dimension, values } = extractor.compute_file_at(path, None, id, speed_of(id))?;
        progress.advance(1);
        Ok(FeatureMatrix { frames, dimension, values })
    };
    let data = SpeechData::open(folder, tokens, subset, Some(&provider))?;
    progress.finish(&format!("features of {utterances} utterances"));
    Ok(data)
}

fn check_dimension(set: &SpeechData, train: &SpeechData) -> Result<()> {
    if set.dimension() == train.dimension() {
        return Ok(());
    }
    let problem = format!(
        "has features of {} numbers a frame, but the training set {} has {}",
        set.dimension(),
        train.path().display(),
        train.dimension()
    );
    Err(Error::file(set.path(), problem).remedy("Compute both with the same options of data-tools features"))
}
