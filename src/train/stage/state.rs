//! The saved state of a stage that is under way.

use super::StageRun;
use crate::error::Result;
use crate::nn::Parameters;
use crate::recipe::Keep;
use crate::tensor::Tensor;
use crate::train::checkpoint::{self, Content, NamedTensor, Part, State};
use crate::train::learner::Learner;
use crate::train::position::Position;
use crate::train::weights::{Weights, save_weights};
use std::borrow::Cow;
use std::time::Instant;

impl StageRun<'_> {
    /// Saves where the stage stands. At the end of an epoch the weights may be the best so far, or those after the first one.
    pub(super) fn save(&mut self, is_best: bool, is_first: bool) -> Result<()> {
        self.position.updates = self.learner.updater.updates;
        self.position.epsilon = Some(self.learner.updater.epsilon);
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
        if is_best {
            parts.push(Part { name: "best", content: Content::SameAs("weights") });
        } else if self.best.is_some() {
            parts.push(Part { name: "best", content: Content::Kept });
        }
        if is_first {
            parts.push(Part { name: "after-first-epoch", content: Content::SameAs("weights") });
        } else if self.after_first_epoch.is_some() {
            parts.push(Part { name: "after-first-epoch", content: Content::Kept });
        }
        checkpoint::save_state(&self.folder.path, &parts, &self.position)?;
        self.last_save = Instant::now();
        Ok(())
    }

    /// Keeps the weights that an epoch ended with, if every epoch's are kept: before the best ones come back and are what is saved.
    pub(super) fn keep_epoch(&self, epoch: usize) -> Result<()> {
        if self.session.recipe.training.keep == Keep::All {
            let parameters = &self.learner.parameters;
            save_weights(self.folder.epoch(epoch), &named_parameters(parameters, &host_values(parameters)), &[])?;
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
        if self.session.recipe.training.keep == Keep::All && !self.position.went_back {
            checkpoint::publish_part(&self.folder.path, "weights", &self.folder.epoch(epoch))?;
        }
        if epoch == 1 {
            let state: Option<State<Position>> = checkpoint::load_state(&self.folder.path)?;
            self.after_first_epoch = state.and_then(|mut state| state.parts.remove("after-first-epoch"));
        }
        Ok(())
    }
}

pub(super) fn read_optimizer(learner: &mut Learner, weights: &Weights) -> Result<()> {
    let Learner { parameters, updater, .. } = learner;
    for (name, tensor) in updater.named_states_mut(parameters) {
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
