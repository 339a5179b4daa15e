//! Whether the memory of a GPU is enough, said before training begins, with what would fit.

use crate::cascade::Stage;
use crate::device::Device;
use crate::error::{Error, Result, Subject};
use crate::models::blstm_ctc::BlstmCtc;
use crate::recipe::Recipe;
use crate::train::corpus::Corpus;
use crate::train::plan::{Needs, needs};

/// Checks the stage that is trained next; a CPU is not asked.
///
/// # Errors
/// If the memory that is free is not enough for its largest batch: says how much is needed, and which batch, or what frozen, would fit.
pub fn check(recipe: &Recipe, corpus: &mut Corpus, model: &BlstmCtc, device: &Device, stage: &Stage) -> Result<()> {
    let Some(free) = device.free_memory()? else { return Ok(()) };
    let needs = |corpus: &Corpus, frozen: &[usize]| needs(recipe, corpus, model, frozen, device);
    let needed = needs(corpus, &stage.frozen)?;
    if needed.device_memory <= free {
        return Ok(());
    }
    let limits = corpus.limits;
    let mut smaller = None;
    while smaller.is_none() && corpus.limits.utterances > 1 {
        corpus.limits.utterances /= 2;
        let fits = needs(corpus, &stage.frozen)?.device_memory <= free;
        smaller = fits.then_some(corpus.limits.utterances);
    }
    corpus.limits = limits;
    let head = model.structure().groups.len() - 1;
    let with_frozen_head = needs(corpus, &[head])?.device_memory;
    Err(not_enough(device, stage, &needed, free, smaller, with_frozen_head))
}

fn not_enough(
    device: &Device,
    stage: &Stage,
    needed: &Needs,
    free: u64,
    smaller: Option<usize>,
    with_frozen_head: u64,
) -> Error {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let batch = &needed.largest_batch;
    let problem = format!(
        "the stage {} needs {} MiB, and {} MiB are free; its largest batch has {} utterances with {} frames, the longest is {} with {}",
        stage.title,
        mib(needed.device_memory),
        mib(free),
        batch.utterances,
        batch.frames,
        batch.longest_utterance,
        batch.longest_frames,
    );
    let advice = match smaller {
        Some(utterances) => format!("batch.utterances = {utterances} would fit"),
        None => "No batch would fit: leave long utterances out, or make the model smaller".into(),
    };
    let advice = format!("{advice}; a stage with its top group frozen needs {} MiB", mib(with_frozen_head));
    Error::new(Subject::Device(device.to_string()), problem).remedy(advice)
}
