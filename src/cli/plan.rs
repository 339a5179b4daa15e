//! `headfirst plan`.

use crate::cli::Common;
use crate::cli::output::{print, print_json};
use crate::error::Result;
use crate::recipe::Recipe;
use crate::table::columns;
use crate::train::plan::{RunForecast, StageForecast, forecast};
use crate::train::progress::Mode;
use clap::Args;
use std::path::PathBuf;

/// Say what every stage of a recipe will take: parameters, memory, operations
///
/// Before anything is allocated: the training's own code is run with tensors that have no elements, so the bytes are those that
/// training will have.
#[derive(Args)]
pub struct Plan {
    /// The recipe, a TOML file (see `headfirst train --help`)
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// Change a key of the recipe, for example --set batch.utterances=15
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Plan {
    pub fn run(self, common: &Common) -> Result<()> {
        let recipe = Recipe::load(&self.recipe, &self.set)?;
        let forecast = forecast(&recipe, &common.open_device()?, Mode::choose(common.quiet))?;
        if self.json { print_json(&forecast) } else { print(&describe(&forecast)) }
    }
}

fn describe(forecast: &RunForecast) -> String {
    let RunForecast { name, symbols, training_frames, batches, .. } = forecast;
    let training = match forecast.training_utterances {
        Some(utterances) => format!("{utterances} training utterances, {training_frames} frames"),
        None => format!("{training_frames} training tokens"),
    };
    let groups: Vec<String> =
        forecast.groups.iter().map(|group| format!("{} ({})", group.name, group.parameters)).collect();
    let mut text = format!(
        "{name}: {training}, {batches} batches, {symbols} symbols\n\
         groups and their parameters: {}\n\nMemory in MiB\n",
        groups.join(", ")
    );
    let head = ["stage", "frozen", "trainable", "parameters", "gradients", "optimiser", "kept", "peak"];
    text += &table(&head, &forecast.stages, |stage| {
        let memory = &stage.needs.memory;
        let bytes = [memory.parameters, memory.gradients, memory.optimizer_state, memory.kept_activations, memory.peak];
        let frozen = format!("{}/{}", stage.frozen_groups.len(), forecast.groups.len());
        [frozen, stage.needs.trainable_parameters.to_string()].into_iter().chain(bytes.map(mebibytes)).collect()
    });
    text += "\nFloating-point operations\n";
    let head = ["stage", "forward", "backward", "validation", "epoch", "largest batch"];
    text += &table(&head, &forecast.stages, |stage| {
        let needs = &stage.needs;
        let epoch = [needs.epoch.forward, needs.epoch.backward, needs.validation_operations];
        let total = [needs.operations_of_an_epoch(), needs.largest_batch.work.total()];
        epoch.into_iter().chain(total).map(operations).collect()
    });
    text += "\n";
    if let Some(batch) = forecast.stages.first().map(|stage| &stage.needs.largest_batch) {
        text += &match forecast.training_utterances {
            Some(_) => format!(
                "Largest batch: {} utterances with {} frames and {} labels, the longest is {} with {} frames\n",
                batch.utterances, batch.frames, batch.labels, batch.longest_utterance, batch.longest_frames
            ),
            None => format!(
                "Largest batch: {} sequences with {} tokens, the longest has {}\n",
                batch.utterances, batch.frames, batch.longest_frames
            ),
        };
    }
    text += &format!(
        "At most {} stages of at most {} epochs; one epoch of each: {}\n",
        forecast.most_stages,
        forecast.max_epochs,
        operations(forecast.operations_of_an_epoch_of_each)
    );
    text
}

fn table(head: &[&str], stages: &[StageForecast], cells: impl Fn(&StageForecast) -> Vec<String>) -> String {
    let mut rows = vec![head.iter().map(|&cell| cell.to_string()).collect()];
    rows.extend(stages.iter().map(|stage| {
        let mut row = vec![stage.title.clone()];
        row.extend(cells(stage));
        row
    }));
    columns(&rows)
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / f64::from(1 << 20))
}

/// `3.81 TFLOP`, `127.5 GFLOP`.
fn operations(count: u64) -> String {
    let count = count as f64;
    if count < 1e12 { format!("{:.2} GFLOP", count / 1e9) } else { format!("{:.2} TFLOP", count / 1e12) }
}
