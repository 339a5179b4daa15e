//! A run: the stages of a cascade, one after the other, as the strategy asks for them. Here, and only here, the cascade meets the trainer.

use crate::cascade::{Next, Plan, PlanOptions, Results, Source, Stage, StageId, Strategy};
use crate::device::Device;
use crate::error::{Error, Fault, Result};
use crate::files::write_bytes;
use crate::models::Network;
use crate::recipe::{self, Recipe};
use crate::report::{self, RunData};
use crate::train::checkpoint;
use crate::train::memory;
use crate::train::prepare::{AnyTask, Prepared, prepare};
use crate::train::progress::Progress;
use crate::train::record::{GroupRecord, RunResult, StageResult};
use crate::train::run_folder::{RESULT, RunFolder, StartFiles};
use crate::train::signals::StopRequest;
use crate::train::stage::{Session, StageStart, train_stage};
use crate::train::summary::stage_summary;
use crate::train::task::{Kept, Task};
use crate::train::weights::Weights;
use crate::train::weights_reference::WeightsReference;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Trains everything that the recipe asks for, in `folder`: a new one, or one that is resumed. `stop` is asked for once the data is open: until then
/// there is nothing to be saved, and a signal ends the process as it ends any other.
///
/// # Errors
/// Bad data or recipe, a disk that cannot be written, or a signal; what was saved before is intact.
pub fn train(
    recipe: &Recipe,
    folder: &RunFolder,
    device: &Device,
    progress: &RefCell<Progress>,
    stop: impl FnOnce() -> Result<StopRequest>,
) -> Result<RunResult> {
    let is_new = folder.recipe().is_err();
    let mode = progress.borrow().mode();
    let Prepared { task, classifiers } = prepare(recipe, device, (!is_new).then_some(folder), mode)?;
    let place = Place { recipe, folder, device, progress, stop: &stop()?, is_new };
    match task {
        AnyTask::Speech(task) => train_task(&task, &place, classifiers),
        AnyTask::Text(task) => train_task(&task, &place, classifiers),
    }
}

/// Where and how a run is trained.
struct Place<'a> {
    recipe: &'a Recipe,
    folder: &'a RunFolder,
    device: &'a Device,
    progress: &'a RefCell<Progress>,
    stop: &'a StopRequest,
    is_new: bool,
}

fn train_task<T: Task>(task: &T, place: &Place<'_>, classifiers: Vec<WeightsReference>) -> Result<RunResult> {
    let Place { recipe, folder, device, progress, stop, is_new } = *place;
    let mut run = Run::open(recipe, folder, device, task, classifiers)?;
    let mut arena = match run.next_stage() {
        Some((_, stage)) => memory::check(recipe, task, device, &stage)?,
        None => None,
    };
    if is_new {
        write_start(recipe, folder, task.kept()?)?;
    }
    if run.result.start_sha256.is_empty() {
        run.result.start_sha256 = folder.start_checksums()?;
    }
    run.save()?;
    let session = Session { device, recipe, task, folder, progress, stop };
    while let Some(stage) = run.next_stage() {
        // Of the first one it is known already.
        let bytes =
            arena.take().map_or_else(|| memory::arena(recipe, task, device, &stage.1), |bytes| Ok(Some(bytes)))?;
        bytes.into_iter().for_each(|bytes| device.prepare_arena(bytes));
        run.train(&session, &stage).map_err(|error| advise(error, task.batch_size().0))?;
    }
    run.result.finished = true;
    run.save()?;
    Ok(run.result)
}

/// A device's error with what is to be done about it in a training: only here it is known that states are saved, and which key makes batches
/// smaller.
fn advise(error: Error, batch_key: &str) -> Error {
    match error.fault {
        None => error,
        Some(Fault::OutOfMemory) => {
            error.remedy(format!("Lower {batch_key}; `headfirst plan` says what a batch and each frozen stage need"))
        }
        Some(Fault::Lost) => {
            error.remedy("The last saved state is intact: go on with --resume, on this or on another device")
        }
    }
}

/// The strategy of each seed, with its plan.
///
/// # Errors
/// If the cascade does not fit the model.
pub fn plans(recipe: &Recipe, groups: usize) -> Result<Vec<(u64, Plan)>> {
    let cascade = &recipe.cascade;
    let inner = match cascade.inner {
        recipe::Inner::First => "first",
        recipe::Inner::Always => "always",
    };
    let strategy = Strategy::from_recipe(strategy_name(cascade.strategy), inner, &cascade.compositions)?;
    let plan = |&seed: &u64| {
        let mut reinit_seeds = cascade.reinit_seeds.clone();
        if reinit_seeds.is_empty() {
            reinit_seeds.push(recipe.seeds_for(seed).reinit);
        }
        let options = PlanOptions {
            seed,
            several_seeds: recipe.seeds.len() > 1,
            reinit_seeds,
            external_classifiers: cascade.classifier_from.len(),
            classifier_groups: cascade.classifier_groups,
        };
        Ok((seed, Plan::new(strategy.clone(), groups, options)?))
    };
    recipe.seeds.iter().map(plan).collect()
}

/// A strategy as recipes write it.
pub fn strategy_name(strategy: recipe::Strategy) -> &'static str {
    match strategy {
        recipe::Strategy::None => "none",
        recipe::Strategy::Greedy => "greedy",
        recipe::Strategy::CutSearch => "cut-search",
        recipe::Strategy::Exhaustive => "exhaustive",
        recipe::Strategy::Fixed => "fixed",
        recipe::Strategy::FreezeBottom => "freeze-bottom",
    }
}

/// Where these stages were trained, each device once; `now` if none of them says.
fn devices(stages: &[StageResult], now: &Device) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in stages.iter().filter_map(|stage| stage.device.as_deref()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() { now.to_string() } else { names.join(" and ") }
}

struct Run<'a> {
    recipe: &'a Recipe,
    folder: &'a RunFolder,
    plans: Vec<(u64, Plan)>,
    classifiers: Vec<WeightsReference>,
    result: RunResult,
}

impl<'a> Run<'a> {
    fn open(
        recipe: &'a Recipe,
        folder: &'a RunFolder,
        device: &Device,
        task: &impl Task,
        classifiers: Vec<WeightsReference>,
    ) -> Result<Self> {
        let structure = task.model().structure();
        let group = |group: &crate::models::Group| GroupRecord {
            name: group.name.clone(),
            parameters: structure.count(group.parameters.clone()),
        };
        let before = folder.read_result()?;
        if let (None, [_, ..]) = (&before, folder.stages().as_slice()) {
            let problem = "is missing, but stages of the run have weights: it says which of them are finished";
            return Err(Error::file(folder.path().join(RESULT), problem)
                .remedy("Restore it from a copy, or train anew in another folder: --out FOLDER"));
        }
        let (stages, start_sha256) = before.map(|before| (before.stages, before.start_sha256)).unwrap_or_default();
        let result = RunResult {
            name: recipe.name.clone(),
            model: task.model_name(),
            strategy: strategy_name(recipe.cascade.strategy).into(),
            device: devices(&stages, device),
            groups: structure.groups.iter().map(group).collect(),
            stages,
            best: None,
            bests: Vec::new(),
            start_sha256,
            finished: false,
        };
        let plans = plans(recipe, structure.groups.len())?;
        let run = Run { recipe, folder, plans, classifiers, result };
        run.forget_what_no_state_knows()?;
        Ok(run)
    }

    /// Cuts the log back to the epochs that a result or a saved state knows.
    fn forget_what_no_state_knows(&self) -> Result<()> {
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        for stage in &self.result.stages {
            known.insert(stage.stage.clone(), stage.epochs);
            checkpoint::remove_state(&self.folder.stage(&stage.stage).path)?;
        }
        let results = self.results();
        for (_, plan) in &self.plans {
            // Only what can be trained next can have been begun, which may be a retry that no outline of the plan has.
            let Next::Ready(stages) = plan.next(&results) else { continue };
            for stage in stages {
                let id = stage.id.to_string();
                let state = checkpoint::load_state::<crate::train::position::Position>(&self.folder.stage(&id).path)?;
                known.insert(id, state.map_or(0, |state| state.rest.epochs_done));
            }
        }
        self.folder.cut_log(&known)
    }

    fn results(&self) -> Results {
        let value = |stage: &StageResult| Some((stage.stage.parse().ok()?, stage.criterion_value));
        self.result.stages.iter().filter_map(value).collect()
    }

    fn next_stage(&self) -> Option<(u64, Stage)> {
        let results = self.results();
        self.plans.iter().find_map(|(seed, plan)| match plan.next(&results) {
            Next::Ready(stages) => stages.into_iter().next().map(|stage| (*seed, stage)),
            Next::Finished { .. } => None,
        })
    }

    fn train<T: Task>(&mut self, session: &Session<'_, T>, (seed, stage): &(u64, Stage)) -> Result<()> {
        let (classifier, classifier_name) = self.classifier(stage)?;
        let start = StageStart {
            stage,
            seeds: self.recipe.seeds_for(*seed),
            classifier: classifier.as_ref(),
            classifier_name,
            products_before: self.result.stages.last().and_then(|before| before.products.as_deref()),
        };
        let result = train_stage(session, &start)?;
        session.progress.borrow_mut().message(&stage_summary(&result));
        session.device.trim();
        self.result.stages.push(result);
        self.result.device = devices(&self.result.stages, session.device);
        self.save()?;
        checkpoint::remove_state(&self.folder.stage(&stage.id.to_string()).path)
    }

    fn classifier(&self, stage: &Stage) -> Result<(Option<Weights>, Option<String>)> {
        match &stage.source {
            Source::Nothing => Ok((None, None)),
            Source::Stage(id) => {
                let run = self.folder.path().to_path_buf();
                let reference = WeightsReference { run, stage: id.to_string(), epoch: None };
                Ok((Some(reference.load()?), Some(reference.stage)))
            }
            Source::External(index) => {
                let weights = self.classifiers[*index].load()?;
                Ok((Some(weights), Some(self.recipe.cascade.classifier_from[*index].to_string())))
            }
        }
    }

    /// Writes `result.json` and the report.
    fn save(&mut self) -> Result<()> {
        let results = self.results();
        for stage in &mut self.result.stages {
            let Ok(id) = stage.stage.parse() else { continue };
            let judged = self.plans.iter().find_map(|(_, plan)| plan.accepted(&id, &results));
            stage.accepted = judged.unwrap_or(true);
        }
        let bests: Vec<StageId> = self.plans.iter().filter_map(|(_, plan)| plan.best(&results)).collect();
        let values = bests.iter().filter_map(|id| results.get(id).map(|value| (id, value)));
        self.result.best = crate::cascade::best(values).map(StageId::to_string);
        self.result.bests = bests.iter().map(StageId::to_string).collect();
        self.folder.write_result(&self.result)?;
        write_report(self.folder)
    }
}

/// Draws the run's report anew from its records.
///
/// # Errors
/// If the folder cannot be read or written.
pub fn write_report(folder: &RunFolder) -> Result<()> {
    let Some(data) = run_data(folder)? else { return Ok(()) };
    write_bytes(folder.report(), report::render(&[data]))
}

/// What the report needs of a run; nothing before its first stage has begun.
///
/// # Errors
/// If the records cannot be read.
pub fn run_data(folder: &RunFolder) -> Result<Option<RunData>> {
    let result = folder.read_result()?;
    let epochs = folder.read_log()?;
    Ok(result.map(|result| RunData { result, epochs, path: folder.path().display().to_string() }))
}

fn write_start(recipe: &Recipe, folder: &RunFolder, kept: Kept) -> Result<()> {
    folder.write_start(&StartFiles {
        recipe: &recipe.filled()?,
        tokens: Some(&kept.tokens),
        features: kept.features.as_deref(),
        pieces: kept.pieces.as_deref(),
        cmvn: kept.cmvn.as_deref(),
    })
}
