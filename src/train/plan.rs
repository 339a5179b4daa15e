//! What a recipe will take, before anything is allocated: the memory and the work of every stage.
//!
//! Nothing is estimated. The stages run the very steps that train them, over all their batches, on a device that counts what the chosen one
//! would do, and whose tensors have shapes and no elements: its ledger then has the bytes that training will have, and its counter the operations. Of the
//! data only the sizes are read, but for folders with audio and no features, whose frames are known once they are computed.

use crate::device::{Category, Device};
use crate::error::Result;
use crate::models::Network;
use crate::nn::{Parameters, Scheme};
use crate::optim::{Average, Method};
use crate::random::MaskKey;
use crate::recipe::{Cmvn, Recipe};
use crate::train::learner::{Learner, Work};
use crate::train::prepare::{AnyTask, prepare};
use crate::train::progress::Mode;
use crate::train::record::GroupRecord;
use crate::train::run;
use crate::train::stage::update_options;
use crate::train::task::{Set, Task};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a run will take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunForecast {
    pub name: String,
    pub strategy: String,
    pub symbols: usize,
    /// Speech.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_utterances: Option<usize>,
    /// Of a text, tokens.
    pub training_frames: u64,
    /// Of the training set, in an epoch.
    pub batches: usize,
    /// Of each stage.
    pub max_epochs: usize,
    /// Bottom to top.
    pub groups: Vec<GroupRecord>,
    /// The most stages that the strategy can train; fewer if one of them is no improvement, and then perhaps others, which freeze as many groups as
    /// one of these and take as much.
    pub most_stages: usize,
    /// Floating-point operations of one epoch of each of the stages, training and validation.
    pub operations_of_an_epoch_of_each: u64,
    pub stages: Vec<StageForecast>,
}

/// What a stage will take. Bytes are those of `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageForecast {
    pub stage: String,
    pub title: String,
    /// Indices of the frozen groups, 0 is the lowest.
    pub frozen_groups: Vec<usize>,
    #[serde(flatten)]
    pub needs: Needs,
}

/// What training with some groups frozen takes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Needs {
    pub parameters: u64,
    pub trainable_parameters: u64,
    pub memory: Memory,
    /// Of an epoch: all batches of the training set.
    pub epoch: Work,
    /// Of an epoch: the validation set.
    pub validation_operations: u64,
    /// Bytes that have to be free: on a GPU more than the peak, for the arena's gaps, what crosses, what the optimiser knows of its
    /// tensors, and the library of products. Kernels, graphs and what the driver rounds up come on top.
    pub device_memory: u64,
    /// Of those, what the arena has to have in one piece.
    #[serde(skip)]
    pub arena_reach: u64,
    /// The batch with the largest peak; with it training finds out soonest if the memory is enough.
    pub largest_batch: BatchForecast,
}

/// Bytes. The same fields as [`crate::train::record::MemoryRecord`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub parameters: u64,
    pub gradients: u64,
    pub optimizer_state: u64,
    /// Kept between forward and backward, for the batch that keeps most.
    pub kept_activations: u64,
    /// The largest sum of everything at one instant of training or evaluation.
    pub peak: u64,
    /// The most bytes that the arena of a GPU held, which has the tensors that live within a step; 0 on a CPU.
    pub arena: u64,
}

/// A training step on one batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BatchForecast {
    /// From 0, the batch with the longest utterance first.
    pub batch: usize,
    /// The id of its longest utterance; empty for text.
    pub longest_utterance: String,
    /// Of a text, streams or sentences.
    pub utterances: usize,
    /// Of the longest utterance.
    pub longest_frames: usize,
    /// Of a text, tokens.
    pub frames: usize,
    pub labels: usize,
    pub kept_activations: u64,
    pub peak: u64,
    pub work: Work,
}

/// Forecasts a training with this recipe on `device`. `mode` is how it is shown that features are computed.
///
/// # Errors
/// Those of a training: recipe, data or classifiers that are bad or do not fit together.
pub fn forecast(recipe: &Recipe, device: &Device, mode: Mode) -> Result<RunForecast> {
    let mut without_statistics = recipe.clone();
    if recipe.data.cmvn == Cmvn::Global {
        // They would take a pass over all features, none of which is read here.
        without_statistics.data.cmvn = Cmvn::None;
    }
    match prepare(&without_statistics, device, None, mode)?.task {
        AnyTask::Speech(task) => forecast_task(recipe, &task, device),
        AnyTask::Text(task) => forecast_task(recipe, &task, device),
    }
}

fn forecast_task<T: Task>(recipe: &Recipe, task: &T, device: &Device) -> Result<RunForecast> {
    let structure = task.model().structure();
    let group = |group: &crate::models::Group| GroupRecord {
        name: group.name.clone(),
        parameters: structure.count(group.parameters.clone()),
    };
    // What a stage takes depends on what it freezes alone.
    let mut known: BTreeMap<Vec<usize>, Needs> = BTreeMap::new();
    let mut stages = Vec::new();
    for (_, plan) in run::plans(recipe, structure.groups.len())? {
        for stage in plan.outline() {
            let needs = match known.get(&stage.frozen) {
                Some(needs) => needs.clone(),
                None => {
                    known.entry(stage.frozen.clone()).or_insert(needs(recipe, task, &stage.frozen, device)?).clone()
                }
            };
            stages.push(StageForecast {
                stage: stage.id.to_string(),
                title: stage.title,
                frozen_groups: stage.frozen,
                needs,
            });
        }
    }
    let pieces = task.planned()?;
    Ok(RunForecast {
        name: recipe.name.clone(),
        strategy: run::strategy_name(recipe.cascade.strategy).into(),
        symbols: task.symbols(),
        training_utterances: task.utterances(),
        training_frames: pieces.iter().map(|piece| task.describe(piece).frames as u64).sum(),
        batches: pieces.len(),
        max_epochs: recipe.training.max_epochs,
        groups: structure.groups.iter().map(group).collect(),
        most_stages: stages.len(),
        operations_of_an_epoch_of_each: stages.iter().map(|stage| stage.needs.operations_of_an_epoch()).sum(),
        stages,
    })
}

impl Needs {
    /// Training and validation.
    pub fn operations_of_an_epoch(&self) -> u64 {
        self.epoch.total() + self.validation_operations
    }
}

/// Runs an epoch of a stage with these groups frozen, validation and test on a device that counts what `device` would do.
///
/// # Errors
/// If the data does not fit the model.
pub fn needs<T: Task>(recipe: &Recipe, task: &T, frozen_groups: &[usize], device: &Device) -> Result<Needs> {
    let device = device.counting();
    let ledger = device.ledger();
    // Which values the parameters begin with does not matter here: none is made.
    let parameters = Parameters::initialize(&device, &task.model().structure().specs, Scheme::Espnet, 0);
    let options = update_options(recipe);
    let mut learner = Learner::with_parameters(&device, task.model().clone(), parameters, frozen_groups, options);
    if let Method::NtAsgd { original, .. } = recipe.optimizer.method {
        // Averaging may begin after any epoch.
        let Learner { updater, parameters, .. } = &mut learner;
        updater.begin_average(&device, parameters, Average { updates: 0, original });
    }
    let count = |indices: &mut dyn Iterator<Item = usize>| -> u64 {
        indices.map(|index| learner.parameters.specs()[index].len() as u64).sum()
    };
    let mut needs = Needs {
        parameters: count(&mut (0..learner.parameters.len())),
        trainable_parameters: count(&mut learner.parameters.trainable()),
        ..Needs::default()
    };
    needs.memory.parameters = ledger.live(Category::Parameter);
    needs.memory.gradients = ledger.live(Category::Gradient);
    needs.memory.optimizer_state = ledger.live(Category::OptimizerState);
    let masks = MaskKey { seed: 0, stage: String::new(), step: 0 };
    let mut carried = task.carried(&device);
    for (number, piece) in task.planned()?.iter().enumerate() {
        let batch = task.outline(piece)?;
        ledger.reset_peaks();
        let running = task.start(&mut learner, batch, &mut carried, &masks)?;
        let step = task.settle(&mut learner, running)?;
        needs.epoch += step.work;
        needs.memory.kept_activations = needs.memory.kept_activations.max(step.kept);
        let peak = ledger.peak_total();
        if peak > needs.largest_batch.peak {
            let described = task.describe(piece);
            needs.largest_batch =
                BatchForecast { batch: number, kept_activations: step.kept, peak, work: step.work, ..described };
        }
    }
    needs.memory.peak = needs.largest_batch.peak;
    // A held-out set may have longer utterances than the training set.
    for set in [Set::Valid, Set::Test] {
        ledger.reset_peaks();
        let before = device.operations();
        if !task.evaluate_outline(&learner, set)? {
            continue;
        }
        needs.memory.peak = needs.memory.peak.max(ledger.peak_total());
        if set == Set::Valid {
            needs.validation_operations = device.operations() - before;
        }
    }
    needs.device_memory = needs.memory.peak;
    if let Some(memory) = device.memory_on_gpu() {
        (needs.memory.arena, needs.arena_reach, needs.device_memory) = (memory.arena, memory.reach, memory.needed());
    }
    Ok(needs)
}
