//! A speech data set ready for training: folder, tokens, features and normalisation in one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::data::ark::FeatureArchive;
use crate::data::augment::{Draw, SpecAugment};
use crate::data::batch::{BatchLimits, BatchPlan, SpeechBatch, pack};
use crate::data::cmvn::{Cmvn, Normalization};
use crate::data::kaldi::{DataFolder, Source, Utterance};
use crate::data::prefetch::Prefetch;
use crate::data::subset::Subset;
use crate::data::tokens::TokenList;
use crate::error::{Error, Result};

/// The features of one utterance: `values` is [frames, dimension].
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureMatrix {
    pub frames: usize,
    pub dimension: usize,
    pub values: Vec<f32>,
}

/// Computes features from audio, for folders without `feats.scp`. Closures of the same form are providers.
pub trait FeatureProvider: Sync {
    fn features(&self, id: &str, audio: &Path) -> Result<FeatureMatrix>;
}

impl<F: Fn(&str, &Path) -> Result<FeatureMatrix> + Sync> FeatureProvider for F {
    fn features(&self, id: &str, audio: &Path) -> Result<FeatureMatrix> {
        self(id, audio)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpeechUtterance {
    pub id: String,
    /// Words with one space between them.
    pub transcript: String,
    /// At least one.
    pub frames: usize,
    /// The transcript's tokens; there may be none.
    pub labels: Vec<u32>,
}

enum Store {
    Archive(FeatureArchive),
    /// Computed from audio, in the order of the utterances.
    Memory(Vec<Vec<f32>>),
}

/// Utterances sorted by id, their labels, and their features on demand. Reading is safe from any thread.
pub struct SpeechData {
    path: PathBuf,
    utterances: Vec<SpeechUtterance>,
    dimension: usize,
    store: Store,
    normalization: Normalization,
}

impl SpeechData {
    /// Encodes the transcripts and reads the sizes of the features of a folder, or of a subset of it. Features from audio are
    /// computed here, in parallel, and kept in memory. Nothing is normalised until [`normalize`](Self::normalize).
    ///
    /// # Errors
    /// The first in the order of the utterances: a token that the list lacks, features that cannot be read, an utterance without frames
    /// or with another dimension than the first. A folder with audio only and no `provider`.
    pub fn open(
        folder: DataFolder,
        tokens: &TokenList,
        subset: Option<&Subset>,
        provider: Option<&dyn FeatureProvider>,
    ) -> Result<Self> {
        let DataFolder { path, utterances, source } = folder;
        let chosen = match subset {
            Some(subset) => subset.choose(utterances.len())?,
            None => (0..utterances.len()).collect(),
        };
        let labels = chosen
            .iter()
            .map(|&k| tokens.encode(&utterances[k].id, &utterances[k].transcript))
            .collect::<Result<Vec<_>>>()?;
        let (shapes, store) = match source {
            Source::Features(archive) => {
                let shapes = in_parallel(&chosen, |k| archive.shape(&utterances[k].id))?;
                (shapes, Store::Archive(archive))
            }
            Source::Audio(files) => {
                let provider = provider.ok_or_else(|| {
                    Error::file(&path, "the folder has audio (wav.scp) but no features (feats.scp)")
                        .remedy("Compute them with data-tools features")
                })?;
                let compute = |k: usize| provided(provider, &utterances[k].id, &files[k]);
                let matrices: Vec<FeatureMatrix> = in_parallel(&chosen, compute)?;
                let shapes = matrices.iter().map(|matrix| (matrix.frames, matrix.dimension)).collect();
                (shapes, Store::Memory(matrices.into_iter().map(|matrix| matrix.values).collect()))
            }
        };
        let dimension = common_dimension(&chosen, &utterances, &shapes)?;
        let mut all: Vec<Option<Utterance>> = utterances.into_iter().map(Some).collect();
        let utterances = chosen
            .into_iter()
            .zip(shapes)
            .zip(labels)
            .filter_map(|((k, (frames, _)), labels)| {
                // Each is chosen once, so none has been taken before.
                all[k].take().map(|Utterance { id, transcript, .. }| SpeechUtterance { id, transcript, frames, labels })
            })
            .collect();
        Ok(SpeechData { path, utterances, dimension, store, normalization: Normalization::None })
    }

    /// The data folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn utterances(&self) -> &[SpeechUtterance] {
        &self.utterances
    }

    /// Features per frame.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Mean and variance over this data set as it is read now (before [`normalize`](Self::normalize): of the features as they are).
    pub fn global_cmvn(&self) -> Result<Cmvn> {
        Cmvn::over(self.utterances.len(), self.dimension, |k| self.features(k))
    }

    /// Normalises every utterance from now on when it is read.
    ///
    /// # Errors
    /// Statistics of another dimension.
    pub fn normalize(&mut self, normalization: Normalization) -> Result<()> {
        if let Normalization::Global(cmvn) = &normalization
            && cmvn.dimension() != self.dimension
        {
            let text = format!(
                "its features have dimension {}, but the normalisation has {}",
                self.dimension,
                cmvn.dimension()
            );
            return Err(Error::file(&self.path, text)
                .remedy("Compute the features with the settings that the model was trained on"));
        }
        self.normalization = normalization;
        Ok(())
    }

    /// The features of an utterance, by its place: [frames, dimension], checked to be finite, then normalised.
    ///
    /// # Errors
    /// What reading reports; NaN or infinity, naming utterance and frame.
    pub fn features(&self, utterance: usize) -> Result<Vec<f32>> {
        let SpeechUtterance { id, frames, .. } = &self.utterances[utterance];
        let mut features = match &self.store {
            Store::Memory(matrices) => matrices[utterance].clone(),
            Store::Archive(archive) => {
                let mut features = vec![0.0; frames * self.dimension];
                archive.read_into(id, &mut features)?;
                features
            }
        };
        if let Some(place) = features.iter().position(|value| !value.is_finite()) {
            let (frame, column) = (place / self.dimension, place % self.dimension);
            return Err(Error::utterance(
                id,
                format!("its features have {} in frame {frame}, column {column} (from 0)", features[place]),
            )
            .remedy(format!("Compute them again, or take the utterance out of {}", self.path.display())));
        }
        self.normalization.apply(&mut features, self.dimension);
        Ok(features)
    }

    /// Reads utterances into a packed batch, sorted by falling length, equally long ones by id. It asks the pool for nothing: the thread
    /// that calls it may be the one that reads ahead while the pool computes.
    ///
    /// # Errors
    /// Those of [`features`](Self::features), for the first utterance in the batch's order.
    pub fn assemble(&self, indices: &[usize]) -> Result<SpeechBatch> {
        self.assemble_changed(indices, |_, _| ())
    }

    /// As [`assemble`](Self::assemble), after `change` has had the id and the normalised features of each utterance.
    fn assemble_changed(&self, indices: &[usize], change: impl Fn(&str, &mut [f32])) -> Result<SpeechBatch> {
        let mut indices = indices.to_vec();
        indices.sort_by_key(|&k| (std::cmp::Reverse(self.utterances[k].frames), k));
        let changed = |k: usize| {
            let mut features = self.features(k)?;
            change(&self.utterances[k].id, &mut features);
            Ok(features)
        };
        let sequences = indices.iter().map(|&k| changed(k)).collect::<Result<Vec<_>>>()?;
        let members: Vec<&SpeechUtterance> = indices.iter().map(|&k| &self.utterances[k]).collect();
        Ok(SpeechBatch {
            ids: members.iter().map(|utterance| utterance.id.clone()).collect(),
            lengths: members.iter().map(|utterance| utterance.frames).collect(),
            dimension: self.dimension,
            features: pack(&sequences, self.dimension),
            labels: members.iter().map(|utterance| utterance.labels.clone()).collect(),
            utterance_indices: indices,
        })
    }

    /// The batches of this data set.
    ///
    /// # Errors
    /// Those of [`BatchPlan::new`].
    pub fn plan(&self, limits: BatchLimits) -> Result<BatchPlan> {
        let sizes: Vec<(usize, usize)> =
            self.utterances.iter().map(|utterance| (utterance.frames, utterance.labels.len())).collect();
        BatchPlan::new(&sizes, limits)
    }

    /// Assembles `batches` ahead of the caller, in their order, from batch number `first` on (counted from 0; a resumed epoch goes on
    /// where it was).
    pub fn prefetch(self: &Arc<Self>, batches: Vec<Vec<usize>>, first: usize) -> Result<Prefetch<SpeechBatch>> {
        let data = Arc::clone(self);
        Prefetch::start(first, batches.len(), move |number| data.assemble(&batches[number]))
    }

    /// As [`prefetch`](Self::prefetch), warped and masked for one epoch of training.
    pub fn prefetch_augmented(
        self: &Arc<Self>,
        batches: Vec<Vec<usize>>,
        first: usize,
        augment: &Arc<SpecAugment>,
        draw: Draw,
    ) -> Result<Prefetch<SpeechBatch>> {
        let (data, augment, dimension) = (Arc::clone(self), Arc::clone(augment), self.dimension);
        let change = move |id: &str, values: &mut [f32]| augment.apply(id, draw, values, dimension);
        Prefetch::start(first, batches.len(), move |number| data.assemble_changed(&batches[number], &change))
    }
}

/// `work` for each of `items`, in parallel; the error is that of the first item that has one.
fn in_parallel<T: Send>(items: &[usize], work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let results: Vec<Result<T>> = items.par_iter().map(|&item| work(item)).collect();
    results.into_iter().collect()
}

fn provided(provider: &dyn FeatureProvider, id: &str, audio: &Path) -> Result<FeatureMatrix> {
    let matrix = provider.features(id, audio)?;
    if matrix.frames.checked_mul(matrix.dimension) != Some(matrix.values.len()) {
        let text =
            format!("its features are {} numbers, not {} x {}", matrix.values.len(), matrix.frames, matrix.dimension);
        return Err(Error::utterance(id, text));
    }
    Ok(matrix)
}

/// The dimension of all utterances. `shapes` are (frames, dimension) of the chosen ones.
fn common_dimension(chosen: &[usize], utterances: &[Utterance], shapes: &[(usize, usize)]) -> Result<usize> {
    let mut first: Option<(&str, usize)> = None;
    for (&k, &(frames, dimension)) in chosen.iter().zip(shapes) {
        let id = utterances[k].id.as_str();
        if frames == 0 || dimension == 0 {
            return Err(Error::utterance(id, format!("its features are empty ({frames} x {dimension})"))
                .remedy("Check its audio, or take the utterance out of the data folder"));
        }
        match first {
            None => first = Some((id, dimension)),
            Some((other, expected)) if expected != dimension => {
                let text =
                    format!("its features have dimension {dimension}, those of utterance {other} have {expected}");
                return Err(Error::utterance(id, text)
                    .remedy("Compute the features of the whole folder with the same settings"));
            }
            Some(_) => {}
        }
    }
    Ok(first.map_or(0, |(_, dimension)| dimension))
}

#[cfg(test)]
#[path = "speech_tests.rs"]
mod tests;
