//! A trained model, ready to recognise: weights, tokens, normalisation and feature options, from a run or from files.

use crate::audio::pauses::parts;
use crate::audio::{FeatureExtractor, FeatureOptions, read_audio, resample};
use crate::data::BatchLimits;
use crate::data::batch::pack;
use crate::data::cmvn::Cmvn;
use crate::decode::{NBest, Scored, Symbols};
use crate::device::Device;
use crate::error::{Error, Result, Subject};
use crate::models::Network;
use crate::models::any::AnyRecogniser;
use crate::models::recogniser::Recogniser;
use crate::nn::Parameters;
use crate::ops::sequences::Sequences;
use crate::recipe::{Batch as BatchSection, DataKind, FrontEnd, Model, Recipe};
use crate::train::checkpoint::load_weights;
use crate::train::corpus::Frontend;
use crate::train::evaluate::{Evaluated, evaluate};
use crate::train::learner::{Batch, Learner};
use crate::train::loaded_text::LoadedText;
use crate::train::prepare::{frontend_of_recipe, model_of_sizes, recipe_of};
use crate::train::progress::{Counted, Mode};
use crate::train::recognise::{Asked, Decoder, Speed, recognise, transcript_of};
use crate::train::run_folder::RunFolder;
use crate::train::stage::update_options;
use crate::train::weights::Weights;
use crate::train::weights_reference::parse_reference;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Recordings longer than this, in seconds, are cut.
const LONGEST_PART: f64 = 60.0;

pub struct LoadedModel {
    pub recipe: Recipe,
    pub frontend: Frontend,
    learner: Learner<AnyRecogniser>,
}

impl LoadedModel {
    /// The weights that `RUN`, `RUN/STAGE` or `RUN/STAGE@EPOCH` names.
    ///
    /// # Errors
    /// If there is no such run or it is damaged.
    pub fn of_run(device: &Device, reference: &str) -> Result<Self> {
        let reference = parse_reference(reference)?;
        let folder = RunFolder::open(&reference.run)?;
        let recipe = recipe_of(&folder)?;
        if recipe.data.kind != DataKind::Speech {
            return Err(Error::file(folder.path(), "is a run on text, not on speech")
                .remedy("Name a run of a speech recogniser; see headfirst generate for language models"));
        }
        let frontend = Frontend::of_run(&folder, &recipe)?;
        let weights = reference.load()?;
        Self::new(device, recipe, frontend, &weights)
    }

    /// Weights from a file, in the model that a recipe describes; tokens and normalisation as training with that recipe would find them.
    /// `mode` is how it is shown that features are computed for that.
    ///
    /// # Errors
    /// If the recipe's data cannot be read, or the weights are of another model.
    pub fn of_files(device: &Device, recipe: &Path, weights: &Path, mode: Mode) -> Result<Self> {
        let recipe = Recipe::load(recipe, &[])?;
        let frontend = frontend_of_recipe(&recipe, mode)?;
        Self::new(device, recipe, frontend, &load_weights(weights)?)
    }

    fn new(device: &Device, recipe: Recipe, frontend: Frontend, weights: &Weights) -> Result<Self> {
        let inputs = inputs_of(&recipe, &frontend, weights.path(), |name| weights.shape(name))?;
        let model = model_of_sizes(&recipe, inputs, &frontend.tokens)?;
        let structure = model.structure();
        weights.expect(structure.specs.iter().map(|spec| (spec.name.as_str(), spec.shape.as_slice())))?;
        let parameters = Parameters::read(device, &structure.specs, |spec| weights.get(&spec.name, &spec.shape))?;
        let learner = frozen(device, model, parameters, &recipe);
        Ok(LoadedModel { recipe, frontend, learner })
    }

    /// The model with its weights, all frozen.
    pub fn learner(&self) -> &Learner<AnyRecogniser> {
        &self.learner
    }

    /// The sets of the recipe that have a name: `valid` and `test`.
    pub fn sets(&self) -> Vec<(&'static str, PathBuf)> {
        let data = &self.recipe.data;
        let sets = [("valid", &data.valid), ("test", &data.test)];
        sets.into_iter().filter_map(|(name, path)| path.clone().map(|path| (name, path))).collect()
    }

    /// The decoder that was asked for.
    ///
    /// # Errors
    /// Options that cannot be, or that are for another kind of model; a language model with other symbols.
    pub fn decoder<'a>(&self, asked: &Asked, language_model: Option<&'a LoadedText>) -> Result<Decoder<'a>> {
        let model = self.learner.model();
        let decoder = asked.decoder(model.kind(), model.sentence_end().is_some(), language_model)?;
        if let (Some(language_model), Some(end)) = (language_model, model.sentence_end()) {
            language_model.predictor(&self.frontend.tokens, Symbols { count: model.symbols(), end })?;
        }
        Ok(decoder)
    }

    /// Scores a data folder; `mode` is how it is shown.
    ///
    /// # Errors
    /// If the folder cannot be read or does not fit the model; if the model's output is not finite.
    pub fn evaluate(&self, folder: &Path, decoder: Decoder<'_>, mode: Mode) -> Result<Evaluated> {
        let data = Arc::new(self.frontend.open_set(folder, mode)?);
        let inputs = self.learner.model().inputs();
        if data.dimension() != inputs {
            let problem = format!("has features of {} numbers a frame, the model takes {inputs}", data.dimension());
            return Err(Error::file(folder, problem)
                .remedy("Compute them with data-tools features and the options in the run's features.toml"));
        }
        let BatchSection::Speech { utterances, max_frames, max_labels } = self.recipe.batch else {
            return Err(Error::key("batch", "has no limits for speech"));
        };
        let limits = BatchLimits { utterances, max_frames, max_labels };
        let progress = Counted::new(mode, &folder.display().to_string(), data.utterances().len());
        let tokens = &self.frontend.tokens;
        let after_batch = |done| {
            progress.advance(done);
            Ok(())
        };
        let evaluated = evaluate(&self.learner, &data, tokens, limits, decoder, after_batch)?;
        match evaluated.not_finite.first() {
            Some(id) => Err(Error::utterance(id, "the model's output is not finite, so nothing can be decoded")
                .remedy("The weights are those of a training that diverged: look into its log.jsonl")),
            None => Ok(evaluated),
        }
    }

    /// How long so many frames are; a frame of a model that does not know how its features were made has Kaldi's 10 ms.
    pub fn audio_seconds(&self, frames: u64) -> f64 {
        let shift = self.frontend.features.as_ref().map_or(FeatureOptions::default().frame_shift, |f| f.frame_shift);
        frames as f64 * shift / 1000.0
    }

    /// What is said in an audio file; another sample rate than the training data's is resampled. A file of more than a minute is cut at its pauses
    /// and recognised part by part, so that an hour takes no more memory than a minute, but for its samples.
    ///
    /// # Errors
    /// If the file cannot be read, or the run does not know how its features were made.
    pub fn transcribe(&self, path: &Path, channel: Option<usize>, decoder: Decoder<'_>) -> Result<Transcription> {
        let Some(options) = &self.frontend.features else {
            return Err(Error::new(Subject::Program, "the run does not know how the features of its data were made")
                .remedy("Put features.toml beside feats.scp (data-tools features writes it) and train again"));
        };
        let (made, taken) = (options.dimension(), self.learner.model().inputs());
        if made != taken {
            let problem = format!("the run's features.toml makes {made} numbers a frame, and the model takes {taken}");
            return Err(Error::new(Subject::Program, problem)
                .remedy("Correct its options to those of the features that the model was trained on"));
        }
        let mut audio = read_audio(path, channel)?;
        let began = Instant::now();
        let rate = options.wanted_rate()?.unwrap_or(audio.sample_rate);
        if rate != audio.sample_rate {
            audio = resample(&audio, rate)?;
        }
        let name = path.display().to_string();
        let extractor = FeatureExtractor::new(options, rate)?;
        let seconds = |samples: usize| samples as f64 / f64::from(rate);
        let mut texts = Vec::new();
        let mut n_best = Vec::new();
        for part in parts(&audio.samples, rate, LONGEST_PART) {
            let found = self.transcribe_part(&extractor, &audio.samples[part.clone()], &name, path, decoder)?;
            let text = |decoded: &[u32]| transcript_of(decoded, &self.frontend.tokens);
            texts.extend(found.first().map(|best| text(&best.tokens)).filter(|text| !text.is_empty()));
            if !matches!(decoder, Decoder::Greedy) {
                let mut list = NBest::new(&name, found, text);
                list.seconds = Some([seconds(part.start), seconds(part.end)]);
                n_best.push(list);
            }
        }
        let speed = Speed::new(seconds(audio.samples.len()), began.elapsed());
        Ok(Transcription { text: texts.join(" "), n_best, speed })
    }

    fn transcribe_part(
        &self,
        extractor: &FeatureExtractor,
        samples: &[f32],
        name: &str,
        path: &Path,
        decoder: Decoder<'_>,
    ) -> Result<Vec<Scored>> {
        let features = extractor.compute(samples, name)?;
        let mut values = features.values;
        self.frontend.normalization.apply(&mut values, features.dimension);
        let batch = Batch {
            sequences: Sequences::new(&[features.frames])?,
            features: pack(&[values], features.dimension),
            labels: vec![Vec::new()],
        };
        let encoded = self.learner.encode(&batch)?;
        let found = recognise(&self.learner, &encoded, &[name.to_string()], &self.frontend.tokens, decoder).map_err(
            |error| match error.subject {
                // That is no fault of the file.
                Subject::Device(_) => error,
                _ => Error { subject: Subject::File(path.into()), ..error },
            },
        )?;
        found.into_iter().next().flatten().ok_or_else(|| {
            Error::file(path, "the model's output for it is not finite, so nothing can be decoded")
                .remedy("The weights are those of a training that diverged: look into its log.jsonl")
        })
    }
}

/// What was heard in an audio file.
#[derive(Debug, Clone)]
pub struct Transcription {
    pub text: String,
    /// What a beam search found, of each part that the file was cut into.
    pub n_best: Vec<NBest>,
    /// From samples to text.
    pub speed: Speed,
}

/// Features a frame that the weights in `file` were trained on: what the lowest weight takes, whose shape `shape` knows, or, under convolutions, which take
/// any number, what the normalisation or the feature options say.
///
/// # Errors
/// If nothing says it.
pub fn inputs_of<'a>(
    recipe: &Recipe,
    frontend: &Frontend,
    file: &Path,
    shape: impl Fn(&str) -> Option<&'a [usize]>,
) -> Result<usize> {
    let lowest = "encoder.blstm.0.weight_ih_l0";
    let takes_features = match &recipe.model {
        Model::BlstmCtc(model) => model.front_end == FrontEnd::None,
        Model::CtcAttention(model) => model.encoder.front_end == FrontEnd::None,
        Model::Transformer(_) | Model::LstmLm(_) => false,
    };
    if takes_features {
        return shape(lowest).and_then(|shape| shape.get(1).copied()).ok_or_else(|| {
            let problem = format!("has no tensor {lowest}, so it is not the model that the recipe describes");
            Error::file(file, problem).remedy("Name the weights of a model that the recipe describes")
        });
    }
    let made_with = frontend.features.as_ref().map(FeatureOptions::dimension);
    frontend.cmvn().map(Cmvn::dimension).or(made_with).ok_or_else(|| {
        Error::file(file, "does not say how many features a frame has")
            .remedy("Put features.toml beside feats.scp, or train with data.cmvn = \"global\"")
    })
}

/// Everything frozen: no gradient buffer and no optimiser state exists.
fn frozen(device: &Device, model: AnyRecogniser, parameters: Parameters, recipe: &Recipe) -> Learner<AnyRecogniser> {
    let groups: Vec<usize> = (0..model.structure().groups.len()).collect();
    Learner::with_parameters(device, model, parameters, &groups, update_options(recipe))
}
