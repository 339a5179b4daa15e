//! What a finished stage came to.

use super::{StageRun, criterion_value, read_parameters};
use crate::device::Category;
use crate::error::{Error, Result};
use crate::models::Network;
use crate::recipe::Criterion;
use crate::score::trn;
use crate::train::evaluate::Evaluated;
use crate::train::record::{LayerMovement, MemoryRecord, StageResult};
use crate::train::task::{Set, Task};
use crate::train::weights::{NamedTensor, Weights, load_weights, save_weights};
use crate::train::weights_reference::WeightsReference;

/// How many decoded utterances a result keeps for the report.
const SAMPLES: usize = 12;

impl<T: Task> StageRun<'_, T> {
    /// Scores the best weights, and says what the stage came to.
    pub(super) fn finish(mut self) -> Result<StageResult> {
        let best = match self.average_of_epochs()? {
            Some(average) => Some(average),
            None => self.best.take(),
        };
        let best = best.ok_or_else(|| {
            Error::key("training.max_epochs", "the stage has no epoch").remedy("Train for at least one epoch")
        })?;
        read_parameters(&mut self.learner.parameters, &best, |_| true)?;
        self.check_frozen()?;
        let movement = self.movement(&best)?;
        let valid = self.evaluate(Set::Valid)?;
        self.write_trn("valid", &valid)?;
        let test = self.session.task.evaluate(&self.learner, Set::Test, &|| self.go_on())?;
        if let Some(test) = &test {
            self.write_trn("test", test)?;
        }
        let criterion = self.session.recipe.cascade.criterion;
        let ledger = self.session.device.ledger();
        let stage = self.start.stage;
        Ok(StageResult {
            stage: self.id.clone(),
            title: stage.title.clone(),
            frozen_groups: stage.frozen.clone(),
            classifier_from: self.start.classifier_name.clone(),
            seed: stage.reinit_seed.unwrap_or(self.start.seeds.init),
            epochs: self.position.epochs_done,
            best_epoch: self.position.best.as_ref().map_or(0, |best| best.epoch),
            best_sha256: Some(best.checksum().0),
            averaged_epochs: self.averaged_epochs(),
            criterion: criterion_name(criterion).into(),
            criterion_value: criterion_value(criterion, &valid.scores),
            samples: valid.transcripts.iter().take(SAMPLES).cloned().collect(),
            valid: valid.scores,
            test: test.map(|test| test.scores),
            accepted: true,
            seconds: self.position.seconds,
            memory: MemoryRecord {
                parameters: ledger.live(Category::Parameter),
                gradients: ledger.live(Category::Gradient),
                optimizer_state: ledger.live(Category::OptimizerState),
                kept_activations: self.position.kept_activations,
                peak: self.position.peak.max(ledger.peak_total()),
                arena: self.position.arena.max(self.arena()),
                process_peak: process_peak(),
            },
            device: Some(self.session.device.to_string()),
            products: self.session.device.products().map(|products| products.by),
            movement,
        })
    }

    /// Of a GPU: the most bytes that its arena held.
    pub(super) fn arena(&self) -> u64 {
        self.session.device.memory_on_gpu().map_or(0, |memory| memory.arena)
    }

    /// Of how many epochs the average is kept; none: the best epoch's weights are.
    fn averaged_epochs(&self) -> Option<usize> {
        let epochs = self.session.recipe.training.average_epochs.min(self.position.epochs_done);
        (epochs > 1).then_some(epochs)
    }

    /// The average of the weights of the last epochs, if the recipe asks for it; it takes the place of the best epoch's. Summed in f64, so that what
    /// is the same in all epochs stays what it is.
    fn average_of_epochs(&self) -> Result<Option<Weights>> {
        let Some(epochs) = self.averaged_epochs() else { return Ok(None) };
        let last = self.position.epochs_done;
        let kept = |epoch| WeightsReference {
            run: self.session.folder.path().to_path_buf(),
            stage: self.id.clone(),
            epoch: Some(epoch),
        };
        let files = (last + 1 - epochs..=last).map(|epoch| kept(epoch).load());
        let files: Vec<Weights> = files.collect::<Result<_>>()?;
        let specs = self.learner.parameters.specs();
        let mut averages = Vec::with_capacity(specs.len());
        for spec in specs {
            let mut sums = vec![0.0_f64; spec.len()];
            for weights in &files {
                let values = weights.get(&spec.name, &spec.shape)?;
                sums.iter_mut().zip(&*values).for_each(|(sum, &value)| *sum += f64::from(value));
            }
            averages.push(sums.into_iter().map(|sum| (sum / epochs as f64) as f32).collect::<Vec<f32>>());
        }
        let named = specs.iter().zip(&averages);
        let named: Vec<NamedTensor> =
            named.map(|(spec, data)| NamedTensor { name: &spec.name, shape: &spec.shape, data }).collect();
        save_weights(self.folder.best(), &named, &[])?;
        load_weights(self.folder.best()).map(Some)
    }

    fn movement(&self, best: &Weights) -> Result<Vec<LayerMovement>> {
        let Some(first) = &self.after_first_epoch else { return Ok(Vec::new()) };
        let structure = self.session.task.model().structure();
        let trained = |parameter: &usize| self.learner.parameters.is_trainable(*parameter);
        let layers = structure.layers.iter().filter(|layer| layer.parameters.clone().any(|p| trained(&p)));
        let of_layer = |layer: &crate::models::Layer| {
            let mut sum = 0.0;
            for spec in &structure.specs[layer.parameters.clone()] {
                let (from, to) = (first.get(&spec.name, &spec.shape)?, best.get(&spec.name, &spec.shape)?);
                sum += from.iter().zip(&*to).map(|(a, b)| f64::from((b - a).abs())).sum::<f64>();
            }
            Ok(LayerMovement { layer: layer.name.clone(), sum_absolute_change: sum })
        };
        layers.map(of_layer).collect()
    }

    fn write_trn(&self, set: &str, evaluated: &Evaluated) -> Result<()> {
        if evaluated.transcripts.is_empty() {
            return Ok(());
        }
        for (path, hypothesis) in [(self.folder.hypotheses(set), true), (self.folder.references(set), false)] {
            let lines = evaluated.transcripts.iter().map(|transcript| trn::Line {
                text: if hypothesis { &transcript.hypothesis } else { &transcript.reference },
                utterance: &transcript.utterance,
            });
            trn::write(&path, lines, trn::Unit::Words)?;
        }
        Ok(())
    }
}

fn criterion_name(criterion: Criterion) -> &'static str {
    match criterion {
        Criterion::Loss => "loss",
        Criterion::Cer => "cer",
        Criterion::Wer => "wer",
        Criterion::Perplexity => "perplexity",
    }
}

/// The peak resident memory of this process, in bytes.
pub fn process_peak() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage fills the structure it is given; zeroed bytes are a valid rusage even if it fails.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    // Linux counts in KiB.
    usage.ru_maxrss as u64 * 1024
}
