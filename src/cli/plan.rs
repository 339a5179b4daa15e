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
///
/// The stages are those of the straight path, on which each is an improvement. A retry of cut-search freezes one group more than the stage that
/// failed, and takes what the listed stage takes that freezes as many.
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
    let on_gpu = forecast.stages.iter().any(|stage| stage.needs.memory.arena > 0);
    let mut head = vec!["stage", "frozen", "trainable", "parameters", "gradients", "optimiser", "kept", "peak"];
    if on_gpu {
        head.extend(["arena", "device"]);
    }
    text += &table(&head, &forecast.stages, |stage| {
        let memory = &stage.needs.memory;
        let bytes = [memory.parameters, memory.gradients, memory.optimizer_state, memory.kept_activations, memory.peak];
        let of_gpu = on_gpu.then_some([memory.arena, stage.needs.device_memory]);
        let frozen = format!("{}/{}", stage.frozen_groups.len(), forecast.groups.len());
        let bytes = bytes.into_iter().chain(of_gpu.into_iter().flatten());
        [frozen, stage.needs.trainable_parameters.to_string()].into_iter().chain(bytes.map(mebibytes)).collect()
    });
    if on_gpu {
        text += "arena: for what lives within a step; device: what has to be free on the GPU\n";
    }
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
    if forecast.strategy == "cut-search" {
        text += "The stages are those of the straight path. A retry, after a stage that is no improvement, freezes one group more and takes what the \
                 stage above takes that freezes as many\n";
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::plan::{Memory, Needs};

    #[test]
    fn a_plan_for_a_gpu_shows_its_arena_and_what_has_to_be_free() {
        let shown = |arena: u64| {
            let memory = Memory { arena, peak: 1 << 20, ..Memory::default() };
            let needs = Needs { memory, device_memory: 7 << 20, ..Needs::default() };
            describe(&RunForecast {
                name: "run".into(),
                strategy: "none".into(),
                symbols: 5,
                training_utterances: Some(1),
                training_frames: 1,
                batches: 1,
                max_epochs: 1,
                groups: vec![],
                most_stages: 1,
                operations_of_an_epoch_of_each: 0,
                stages: vec![StageForecast {
                    stage: "joint".into(),
                    title: "joint".into(),
                    frozen_groups: vec![],
                    needs,
                }],
            })
        };
        let on_gpu = shown(3 << 20);
        assert!(["arena", "device", "3.00", "7.00"].iter().all(|part| on_gpu.contains(part)), "{on_gpu}");
        assert!(!shown(0).contains("arena"));
    }
}
