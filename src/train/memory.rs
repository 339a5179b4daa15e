//! Whether the memory of the device is enough, said before training begins, with what would fit.

use crate::cascade::Stage;
use crate::device::Device;
use crate::error::{Error, Result, Subject};
use crate::models::Network;
use crate::recipe::Recipe;
use crate::train::plan::needs;
use crate::train::task::Task;

/// The bytes that the arena of a GPU has to have for this stage, in one piece.
///
/// # Errors
/// If the data does not fit the model.
pub fn arena<T: Task>(recipe: &Recipe, task: &T, device: &Device, stage: &Stage) -> Result<Option<u64>> {
    device.memory_on_gpu().map(|_| Ok(needs(recipe, task, &stage.frozen, device)?.arena_reach)).transpose()
}

/// Checks the stage that is trained next, and gives the bytes that the arena of a GPU has to have.
///
/// # Errors
/// If the memory that is free is not enough for its largest batch: says how much is needed, and which batch, or what frozen, would fit.
pub fn check<T: Task>(recipe: &Recipe, task: &T, device: &Device, stage: &Stage) -> Result<Option<u64>> {
    // Asked for first, so that the library of products is there, and what it holds is no longer among what is free.
    let held = device.memory_on_gpu();
    let free = match &held {
        Some(held) => device.free_memory()?.unwrap_or(0) + held.library,
        None => match free_of_host() {
            Some(free) => free,
            None => return Ok(None),
        },
    };
    let needed = needs(recipe, task, &stage.frozen, device)?;
    if needed.device_memory <= free {
        return Ok(held.map(|_| needed.arena_reach));
    }
    let (key, mut size) = task.batch_size();
    let mut fits = false;
    while !fits && size > 1 {
        size /= 2;
        fits = needs(recipe, &task.with_batch_size(size), &stage.frozen, device)?.device_memory <= free;
    }
    let advice = match fits {
        true => format!("{key} = {size} would fit"),
        false => "No batch would fit: leave long utterances out, or make the model smaller".into(),
    };
    let head = task.model().structure().groups.len() - 1;
    let with_frozen_head = needs(recipe, task, &[head], device)?.device_memory;
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let batch = &needed.largest_batch;
    let mut problem = format!(
        "the stage {} needs {} MiB, and {} MiB are free; its largest batch has {} sequences with {} frames or tokens",
        stage.title,
        mib(needed.device_memory),
        mib(free),
        batch.utterances,
        batch.frames,
    );
    if !batch.longest_utterance.is_empty() {
        problem += &format!(", the longest is {} with {}", batch.longest_utterance, batch.longest_frames);
    }
    let advice = format!("{advice}; a stage with its top group frozen needs {} MiB", mib(with_frozen_head));
    Err(Error::new(Subject::Device(device.to_string()), problem).remedy(advice))
}

/// Bytes that Linux can give to programs, its swap included; `None` where that is not known.
fn free_of_host() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
    };
    Some((kib("MemAvailable:")? + kib("SwapFree:").unwrap_or(0)) << 10)
}
