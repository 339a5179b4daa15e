//! The saved state of a stage that is under way.

use super::StageRun;
use crate::error::Result;
use crate::models::Network;
use crate::nn::Parameters;
use crate::recipe::Keep;
use crate::tensor::Tensor;
use crate::train::checkpoint::{self, Content, NamedTensor, Part, State};
use crate::train::learner::Learner;
use crate::train::position::Position;
use crate::train::task::Task;
use crate::train::weights::{Weights, save_weights, weights_checksum};
use std::borrow::Cow;
use std::time::Instant;

/// The part of a state that has the averaged weights, where they are wanted.
const AVERAGED: &str = "averaged";

impl<T: Task> StageRun<'_, T> {
    /// Saves where the stage stands. At the end of an epoch the weights may be the best so far, or those after the first one.
    pub(super) fn save(&mut self, is_best: bool, is_first: bool) -> Result<()> {
        self.position.updates = self.learner.updater.updates;
        self.position.epsilon = Some(self.learner.updater.epsilon);
        self.position.learning_rate = Some(self.learner.updater.learning_rate);
        self.position.rate_factors = Some(self.learner.updater.rate_factors());
        self.position.average = self.learner.updater.average();
        self.position.products = self.session.device.products();
        self.position.peak = self.position.peak.max(self.session.device.ledger().peak_total());
        self.position.arena = self.position.arena.max(self.arena());
        let waits = self.learner.waiting() > 0;
        if waits && self.updated.batch == 0 {
            // The epoch began with what was saved last, and nothing was updated since.
            return Ok(());
        }
        let parameters = &self.learner.parameters;
        let values = host_values(parameters);
        let weights = named_parameters(parameters, &values);
        let states: Vec<(String, &Tensor)> = self.learner.updater.named_states(parameters).collect();
        let buffers: Vec<Cow<'_, [f32]>> = states.iter().map(|(_, tensor)| tensor.host()).collect();
        let optimizer: Vec<NamedTensor<'_>> = states
            .iter()
            .zip(&buffers)
            .map(|((name, tensor), data)| NamedTensor { name, shape: tensor.shape(), data })
            .collect();
        let tensors = |tensors| Content::Tensors { tensors, metadata: &[] };
        let mut parts = vec![
            Part { name: "weights", content: tensors(&weights) },
            Part { name: "optimizer", content: tensors(&optimizer) },
        ];
        let averaged = self.averaged_values();
        let averaged = averaged.as_ref().map(|values| named_parameters(parameters, values));
        let epoch_weights = match &averaged {
            Some(averaged) if self.position.batch == 0 && (is_best || self.keeps_all_epochs()) => {
                parts.push(Part { name: AVERAGED, content: tensors(averaged) });
                AVERAGED
            }
            _ => "weights",
        };
        let carried = self.session.task.named_carried(&self.carried);
        let states: Vec<Cow<'_, [f32]>> = carried.iter().map(|(_, tensor)| tensor.host()).collect();
        let named = carried.iter().zip(&states);
        let carried: Vec<NamedTensor<'_>> =
            named.map(|((name, tensor), data)| NamedTensor { name, shape: tensor.shape(), data }).collect();
        // The next epoch begins anew.
        if self.position.batch > 0 && !carried.is_empty() {
            parts.push(Part { name: "carried", content: tensors(&carried) });
        }
        if is_best {
            parts.push(Part { name: "best", content: Content::SameAs(epoch_weights) });
        } else if self.best.is_some() {
            parts.push(Part { name: "best", content: Content::Kept });
        }
        if is_first {
            parts.push(Part { name: "after-first-epoch", content: Content::SameAs("weights") });
        } else if self.after_first_epoch.is_some() {
            parts.push(Part { name: "after-first-epoch", content: Content::Kept });
        }
        // Gradients that wait are not saved: a resumed stage computes them again.
        let Position { updates, epsilon, learning_rate, rate_factors, average, products, .. } = &self.position;
        let updated = Position {
            updates: *updates,
            epsilon: *epsilon,
            learning_rate: *learning_rate,
            rate_factors: *rate_factors,
            average: *average,
            products: products.clone(),
            ..self.updated.clone()
        };
        let position = if waits { &updated } else { &self.position };
        // What a device that failed hands out is zeros: they must not take the place of the state before.
        self.session.device.check()?;
        checkpoint::save_state(&self.folder.path, &parts, position)?;
        self.last_save = Instant::now();
        Ok(())
    }

    fn keeps_all_epochs(&self) -> bool {
        self.session.recipe.training.keep == Keep::All
    }

    /// The values that are validated, if they are averages: those of the frozen parameters are their own.
    fn averaged_values(&self) -> Option<Vec<Cow<'_, [f32]>>> {
        let Learner { updater, parameters, .. } = &self.learner;
        let mut averages = updater.averages()?.peekable();
        averages.peek()?;
        let mut values = host_values(parameters);
        averages.for_each(|(index, average)| values[index] = average.host());
        Some(values)
    }

    /// The checksum of the file that the weights of the epoch that ends will be kept in, if every epoch's are. It is taken of what is in memory: the log,
    /// which has it, is written before the state, and that before the file.
    pub(super) fn kept_checksum(&self) -> Result<Option<String>> {
        if !self.keeps_all_epochs() {
            return Ok(None);
        }
        let parameters = &self.learner.parameters;
        let values = self.averaged_values().unwrap_or_else(|| host_values(parameters));
        self.session.device.check()?;
        weights_checksum(&named_parameters(parameters, &values)).map(Some)
    }

    /// Keeps the weights that an epoch ended with, if every epoch's are kept: before the best ones come back and are what is saved.
    pub(super) fn keep_epoch(&self, epoch: usize) -> Result<()> {
        if self.keeps_all_epochs() {
            let parameters = &self.learner.parameters;
            let values = host_values(parameters);
            self.session.device.check()?;
            save_weights(self.folder.epoch(epoch), &named_parameters(parameters, &values), &[])?;
        }
        Ok(())
    }

    /// Gives the parts of the state that was just saved at an epoch's end their lasting names, and maps those that are needed later.
    pub(super) fn publish(&mut self) -> Result<()> {
        let epoch = self.position.epochs_done;
        if self.position.best.as_ref().is_some_and(|best| best.epoch == epoch) {
            checkpoint::publish_part(&self.folder.path, "best", &self.folder.best())?;
            self.best = Some(checkpoint::load_weights(self.folder.best())?);
        }
        if self.keeps_all_epochs() && !self.position.went_back {
            // Averaging begins after an epoch: with the first update of the next one there are averages to be kept.
            let part = match self.position.average.filter(|average| average.updates > 0) {
                Some(_) => AVERAGED,
                None => "weights",
            };
            checkpoint::publish_part(&self.folder.path, part, &self.folder.epoch(epoch))?;
        }
        if epoch == 1 {
            let state: Option<State<Position>> = checkpoint::load_state(&self.folder.path)?;
            self.after_first_epoch = state.and_then(|mut state| state.parts.remove("after-first-epoch"));
        }
        Ok(())
    }
}

/// What the updater knows beside its tensors; makes room for averages.
pub(super) fn restore_updater<M: Network>(learner: &mut Learner<M>, position: &Position) {
    let device = learner.device().clone();
    let Learner { parameters, updater, .. } = learner;
    updater.updates = position.updates;
    if let Some(epsilon) = position.epsilon {
        updater.epsilon = epsilon;
    }
    if let Some(learning_rate) = position.learning_rate {
        updater.learning_rate = learning_rate;
    }
    if let Some(factors) = position.rate_factors {
        updater.restore_rate_factors(factors);
    }
    if let Some(average) = position.average {
        updater.begin_average(&device, parameters, average);
    }
}

pub(super) fn read_optimizer<M: Network>(learner: &mut Learner<M>, weights: &Weights) -> Result<()> {
    let Learner { parameters, updater, .. } = learner;
    read_tensors(updater.named_states_mut(parameters), weights)
}

pub(super) fn read_tensors<'a>(
    tensors: impl IntoIterator<Item = (String, &'a mut Tensor)>,
    weights: &Weights,
) -> Result<()> {
    for (name, tensor) in tensors {
        tensor.write(&weights.get(&name, tensor.shape())?);
    }
    Ok(())
}

fn host_values(parameters: &Parameters) -> Vec<Cow<'_, [f32]>> {
    (0..parameters.len()).map(|index| parameters.value(index).host()).collect()
}

fn named_parameters<'a>(parameters: &'a Parameters, values: &'a [Cow<'a, [f32]>]) -> Vec<NamedTensor<'a>> {
    let named = parameters.specs().iter().zip(values);
    named.map(|(spec, data)| NamedTensor { name: &spec.name, shape: &spec.shape, data }).collect()
}
