//! One stage: a training run with some groups frozen, from its first batch or from a saved state, to its result.
//!
//! `mod.rs` has the flow: batches, epochs, when it is over. `state` saves and reads where it stands, `result` says what it came to, `classifier`
//! sees to it that what is frozen stays what it is.

mod classifier;
mod result;
mod state;

pub use result::process_peak;

use crate::cascade::Stage;
use crate::data::augment::Draw;
use crate::device::{Device, DeviceKind};
use crate::error::{Error, Result};
use crate::models::Network;
use crate::nn::{Parameters, Scheme};
use crate::optim::{Average, Method, Noam, is_triggered};
use crate::primitives::fill;
use crate::random::{MaskKey, derive};
use crate::recipe::{Criterion, Model, Recipe, Seeds};
use crate::train::checkpoint::{self, State};
use crate::train::evaluate::Evaluated;
use crate::train::learner::Learner;
use crate::train::position::{Best, Position};
use crate::train::progress::{EpochPlan, Progress};
use crate::train::record::{EpochRecord, Scores, StageResult};
use crate::train::run_folder::{RunFolder, StageFolder};
use crate::train::signals::{StopRequest, stopped_by};
use crate::train::task::{Set, Task};
use crate::train::tensorboard::{TensorBoard, wall_time};
use crate::train::updater::UpdateOptions;
use crate::train::weights::Weights;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Instant;

/// What the stages of a run share.
pub struct Session<'a, T> {
    pub device: &'a Device,
    pub recipe: &'a Recipe,
    pub task: &'a T,
    pub folder: &'a RunFolder,
    pub progress: &'a RefCell<Progress>,
    pub stop: &'a StopRequest,
}

/// A stage and where it starts.
pub struct StageStart<'a> {
    pub stage: &'a Stage,
    pub seeds: Seeds,
    /// Has the weights of the frozen groups; none for joint training.
    pub classifier: Option<&'a Weights>,
    /// What the result says about where the classifier is from.
    pub classifier_name: Option<String>,
    /// Who computed the products of the run's stage before this one, on a GPU.
    pub products_before: Option<&'a str>,
}

/// Trains a stage, going on from its saved state if there is one.
///
/// # Errors
/// Bad data, a disk that cannot be written, or a signal: then the state has been saved first.
pub fn train_stage<T: Task>(session: &Session<'_, T>, start: &StageStart<'_>) -> Result<StageResult> {
    let mut run = StageRun::begin(session, start)?;
    while !run.is_over() {
        run.epoch()?;
    }
    run.finish()
}

struct StageRun<'a, T: Task> {
    session: &'a Session<'a, T>,
    start: &'a StageStart<'a>,
    id: String,
    folder: StageFolder,
    learner: Learner<T::Model>,
    position: Position,
    /// Where it stood after the last update: what is saved while gradients wait for those of other batches.
    updated: Position,
    /// The names of the batches whose gradients wait.
    waiting: Vec<String>,
    /// What the last batch of the epoch handed on.
    carried: T::Carried,
    board: Option<TensorBoard>,
    /// Values at the end of epoch 1, of the trainable parameters: what movement is measured from.
    after_first_epoch: Option<Weights>,
    best: Option<Weights>,
    /// Utterances that were already reported as infeasible.
    reported: BTreeSet<String>,
    last_save: Instant,
    /// The step that a GPU may still be busy with, and its number. It is settled when the next one has been started, and before anything is saved.
    under_way: Option<(T::Running, u32)>,
}

impl<'a, T: Task> StageRun<'a, T> {
    fn begin(session: &'a Session<'a, T>, start: &'a StageStart<'a>) -> Result<Self> {
        let id = start.stage.id.to_string();
        let folder = session.folder.create_stage(&id)?;
        session.device.ledger().reset_peaks();
        let mut parameters = initial_parameters(session, start)?;
        let state: Option<State<Position>> = checkpoint::load_state(&folder.path)?;
        if let Some(state) = &state {
            start.classifier.map_or(Ok(()), |weights| classifier::check_unchanged(&state.rest, weights, &folder))?;
            let weights = state.part("weights")?;
            read_parameters(&mut parameters, weights, |_| true)?;
        }
        let options = update_options(session.recipe);
        let mut learner = Learner::with_parameters(
            session.device,
            session.task.model().clone(),
            parameters,
            &start.stage.frozen,
            options,
        );
        learner.accumulate(session.recipe.training.accumulate);
        learner.updater.noam = noam(session.recipe);
        let mut carried = session.task.carried(session.device);
        let mut run_parts = (None, None);
        let position = match state {
            None => {
                let note = start.products_before.and_then(|before| session.device.other_products(before));
                note.iter().for_each(|note| session.progress.borrow_mut().message(note));
                let classifier = start.classifier.map(|weights| weights.checksum().0);
                Position { classifier, ..Position::default() }
            }
            Some(state) => {
                if let Some(note) =
                    state.rest.products.as_ref().and_then(|products| session.device.recall_products(products))
                {
                    session.progress.borrow_mut().message(&note);
                }
                state::restore_updater(&mut learner, &state.rest);
                state::read_optimizer(&mut learner, state.part("optimizer")?)?;
                if let Some(weights) = state.parts.get("carried") {
                    state::read_tensors(session.task.named_carried_mut(&mut carried), weights)?;
                }
                let State { rest, mut parts } = state;
                run_parts = (parts.remove("after-first-epoch"), parts.remove("best"));
                rest
            }
        };
        session.folder.cut_skipped(&id, position.step)?;
        let board = match session.recipe.training.tensorboard {
            true => Some(TensorBoard::create(folder.path.join("tensorboard"), position.epochs_done as u64 + 1)?),
            false => None,
        };
        let mut run = StageRun {
            session,
            start,
            id,
            folder,
            learner,
            updated: position.clone(),
            waiting: Vec::new(),
            position,
            carried,
            board,
            after_first_epoch: run_parts.0,
            best: run_parts.1,
            reported: BTreeSet::new(),
            last_save: Instant::now(),
            under_way: None,
        };
        // What a crash between saving a state and naming its parts may have missed.
        if run.position.epochs_done > 0 && run.position.batch == 0 {
            run.publish()?;
        }
        Ok(run)
    }

    fn is_over(&self) -> bool {
        let training = &self.session.recipe.training;
        let Position { epochs_done, epochs_without_improvement, batch, .. } = self.position;
        let patience_is_over = training.patience > 0 && epochs_without_improvement >= training.patience;
        batch == 0 && (epochs_done >= training.max_epochs || patience_is_over)
    }

    /// The rest of the epoch, from the first batch that was not trained on yet, then validation and a saved state.
    fn epoch(&mut self) -> Result<()> {
        let epoch = self.position.epochs_done + 1;
        let seed = derive(self.start.seeds.data, &self.draws());
        let task = self.session.task;
        let batches = task.epoch(seed, epoch)?;
        let first = self.position.batch;
        let frames = |batches: &[T::Piece]| -> u64 { batches.iter().map(|piece| task.size(piece)).sum() };
        self.updated = self.position.clone();
        if first == 0 {
            // In place, so that the states keep their addresses.
            task.named_carried_mut(&mut self.carried).into_iter().for_each(|(_, state)| fill(state, 0.0));
        }
        self.session.progress.borrow_mut().epoch(&EpochPlan {
            stage_title: &self.start.stage.title,
            epoch,
            max_epochs: self.session.recipe.training.max_epochs,
            batches: batches.len(),
            batches_done: first,
            frames: frames(&batches),
            frames_done: frames(&batches[..first.min(batches.len())]),
            unit: task.unit(),
        });
        // Waiting for a batch is a part of training.
        let mut begin = Instant::now();
        for (number, batch) in (first + 1..).zip(task.batches(&batches, first, Draw { seed, epoch })?) {
            if number == batches.len() {
                self.learner.end_update();
            }
            self.train_batch(batch?)?;
            self.position.sums.train_seconds += begin.elapsed().as_secs_f64();
            if let Err(stopped) = self.go_on() {
                self.settle()?;
                self.save(false, false)?;
                return Err(stopped);
            }
            let minutes = self.session.recipe.training.save_minutes;
            if minutes > 0.0 && self.last_save.elapsed().as_secs_f64() > 60.0 * minutes {
                self.settle()?;
                self.save(false, false)?;
            }
            begin = Instant::now();
        }
        self.settle()?;
        self.position.sums.train_seconds += begin.elapsed().as_secs_f64();
        self.end_epoch()
    }

    /// What the order of batches and the masks are drawn for, beside their seeds: what the stage trains. Stages that differ in a seed or in whose
    /// classifier they have, and are to be compared, do not differ in this, and no stage changes when a recipe lists more of them.
    fn draws(&self) -> String {
        self.start.stage.id.kind.to_string()
    }

    /// An error once a signal has asked to stop; the state is to be saved before it is returned.
    fn go_on(&self) -> Result<()> {
        let Some(signal) = self.session.stop.signal() else { return Ok(()) };
        // On a machine with a GPU, `auto` would go on there, with other roundings.
        let device: &[&str] = if self.session.device.kind() == DeviceKind::Cpu { &["--device", "cpu"] } else { &[] };
        Err(stopped_by(signal, &self.session.folder.go_on(device)))
    }

    fn train_batch(&mut self, batch: T::Batch) -> Result<()> {
        let masks = MaskKey { seed: self.start.seeds.dropout, stage: self.draws(), step: self.position.step };
        let running = self.session.task.start(&mut self.learner, batch, &mut self.carried, &masks)?;
        self.settle()?;
        self.under_way = Some((running, self.position.step));
        self.position.step += 1;
        self.position.batch += 1;
        Ok(())
    }

    /// Takes the step that is under way into account.
    fn settle(&mut self) -> Result<()> {
        let Some((running, number)) = self.under_way.take() else { return Ok(()) };
        let step = self.session.task.settle(&mut self.learner, running)?;
        step.infeasible.iter().for_each(|id| self.report_infeasible(id, "it is left out of the gradient"));
        let sums = &mut self.position.sums;
        sums.infeasible += step.infeasible.len() as u64;
        sums.loss += step.loss;
        sums.utterances += step.counted as u64;
        match step.update.non_finite {
            _ if step.update.waits => self.waiting.extend(step.names),
            None => {
                sums.gradient_norm += step.update.gradient_norm;
                sums.updates += 1;
            }
            Some(parameter) => {
                sums.skipped += 1;
                let layer = &self.learner.parameters.specs()[parameter].name;
                let names = [std::mem::take(&mut self.waiting), step.names].concat();
                self.session.progress.borrow_mut().message(&format!(
                    "update skipped: the gradient of {layer} is not finite; the batch is kept in skipped.jsonl: {}",
                    names.join(" ")
                ));
                self.session.folder.append_skipped(&self.id, number, layer, &names)?;
            }
        }
        self.position.kept_activations = self.position.kept_activations.max(step.kept);
        let mean = sums.loss / sums.utterances.max(1) as f64;
        self.session.progress.borrow_mut().tick(mean, step.items, step.frames);
        if !step.update.waits {
            self.waiting.clear();
            self.updated = self.position.clone();
        }
        Ok(())
    }

    /// Names an utterance whose labels do not fit its frames, once.
    fn report_infeasible(&mut self, id: &str, consequence: &str) {
        if self.reported.insert(id.to_string()) {
            let text = format!("utterance {id}: its labels do not fit its frames after subsampling; {consequence}");
            self.session.progress.borrow_mut().message(&text);
        }
    }

    fn end_epoch(&mut self) -> Result<()> {
        let begin = Instant::now();
        let evaluated = match self.evaluate_averaged() {
            Err(stopped) if stopped.interrupted_by.is_some() => {
                // Behind the epoch's last batch, where a resumed stage validates first.
                self.save(false, false)?;
                return Err(stopped);
            }
            evaluated => evaluated?,
        };
        evaluated.infeasible.iter().for_each(|id| self.report_infeasible(id, "it has no validation loss"));
        let valid_seconds = begin.elapsed().as_secs_f64();
        let scores = &evaluated.scores;
        let judged = criterion_value(self.session.recipe.training.criterion, scores);
        let kept_sha256 = self.kept_checksum()?;
        let position = &mut self.position;
        let epoch = position.epochs_done + 1;
        let is_best = position.best.as_ref().is_none_or(|best| is_better(judged, best.value));
        let sums = std::mem::take(&mut position.sums);
        let record = EpochRecord {
            stage: self.id.clone(),
            epoch,
            train_loss: sums.loss / sums.utterances.max(1) as f64,
            valid_loss: scores.loss,
            valid_cer: scores.cer,
            valid_wer: scores.wer,
            valid_perplexity: scores.perplexity,
            best: is_best,
            kept_sha256,
            step: u64::from(position.step),
            learning_rate: self.learner.updater.learning_rate(),
            gradient_norm: sums.gradient_norm / sums.updates.max(1) as f64,
            skipped_updates: sums.skipped,
            infeasible_utterances: sums.infeasible,
            train_seconds: sums.train_seconds,
            valid_seconds,
        };
        position.epochs_done = epoch;
        position.batch = 0;
        position.seconds += sums.train_seconds + valid_seconds;
        if is_best {
            position.best = Some(Best { epoch, value: judged });
            position.epochs_without_improvement = 0;
        } else {
            position.epochs_without_improvement += 1;
        }
        self.schedule(is_best, scores.loss);
        let decayed = self.learner.updater.epsilon.after_validation(scores.loss);
        self.position.went_back = decayed && self.session.recipe.optimizer.epsilon_decay_restores_best && !is_best;
        if self.position.went_back {
            self.keep_epoch(epoch)?;
            let best = self.best.as_ref().ok_or_else(|| Error::program("no best weights to go back to"))?;
            read_parameters(&mut self.learner.parameters, best, |_| true)?;
        }
        for note in self.session.device.take_notes() {
            self.session.progress.borrow_mut().message(&note);
        }
        self.session.progress.borrow_mut().finish_epoch(&record);
        self.write_board(&record)?;
        self.session.folder.append_log(&record)?;
        self.save(is_best, epoch == 1)?;
        self.publish()?;
        self.go_on()
    }

    /// What follows from a validation for the epochs to come: a lower learning rate, or averaging.
    fn schedule(&mut self, is_best: bool, loss: f64) {
        let optimizer = &self.session.recipe.optimizer;
        let updater = &mut self.learner.updater;
        if !is_best {
            updater.learning_rate *= optimizer.learning_rate_decay;
        }
        let Method::NtAsgd { nonmono, original } = optimizer.method else { return };
        if updater.average().is_some() {
            return;
        }
        if is_triggered(&self.position.losses_before_averaging, nonmono, loss) {
            let average = Average { updates: 0, original };
            updater.begin_average(self.session.device, &self.learner.parameters, average);
            self.session.progress.borrow_mut().message("the weights are averaged from now on");
        }
        // JSON has no infinity; this is as bad.
        self.position.losses_before_averaging.push(if loss.is_finite() { loss } else { f64::MAX });
    }

    /// The validation set, with the averaged weights if there are any.
    fn evaluate_averaged(&mut self) -> Result<Evaluated> {
        let Learner { updater, parameters, .. } = &mut self.learner;
        updater.swap_averages(parameters);
        let evaluated = self.evaluate(Set::Valid);
        let Learner { updater, parameters, .. } = &mut self.learner;
        updater.swap_averages(parameters);
        evaluated
    }

    fn evaluate(&self, set: Set) -> Result<Evaluated> {
        let evaluated = self.session.task.evaluate(&self.learner, set, &|| self.go_on())?;
        evaluated.ok_or_else(|| Error::program("there is no validation set"))
    }

    fn write_board(&mut self, record: &EpochRecord) -> Result<()> {
        let Some(board) = &mut self.board else { return Ok(()) };
        let scalars = [
            ("loss/train", Some(record.train_loss)),
            ("loss/valid", Some(record.valid_loss)),
            ("cer/valid", record.valid_cer),
            ("wer/valid", record.valid_wer),
            ("perplexity/valid", record.valid_perplexity),
            ("gradient_norm", Some(record.gradient_norm)),
        ];
        for (tag, value) in scalars {
            if let Some(value) = value {
                board.scalar(tag, record.epoch as u64, wall_time(), value)?;
            }
        }
        board.flush()
    }
}

/// Anything finite is better than what is not; so a stage that diverged in its first epoch runs out of patience like any other.
fn is_better(judged: f64, best: f64) -> bool {
    judged < best || (judged.is_finite() && !best.is_finite())
}

/// The optimiser that the recipe describes.
pub fn update_options(recipe: &Recipe) -> UpdateOptions {
    let optimizer = &recipe.optimizer;
    UpdateOptions {
        method: optimizer.method,
        learning_rate: optimizer.learning_rate,
        epsilon: optimizer.epsilon,
        epsilon_decay: optimizer.epsilon_decay,
        weight_decay: optimizer.weight_decay,
        clip: optimizer.clip,
    }
}

/// The schedule of the learning rate, if the recipe has one.
fn noam(recipe: &Recipe) -> Option<Noam> {
    let warmup = recipe.optimizer.warmup;
    match &recipe.model {
        Model::Transformer(sizes) if warmup > 0 => Some(Noam { width: sizes.units, warmup }),
        _ => None,
    }
}

/// New values for the trained groups, the classifier's for the frozen ones.
fn initial_parameters<T: Task>(session: &Session<'_, T>, start: &StageStart<'_>) -> Result<Parameters> {
    let structure = session.task.model().structure();
    let seed = start.stage.reinit_seed.unwrap_or(start.seeds.init);
    let scheme = model_scheme(session.recipe);
    let mut parameters = Parameters::initialize(session.device, &structure.specs, scheme, seed);
    if let Some(classifier) = start.classifier {
        let frozen: BTreeSet<usize> =
            start.stage.frozen.iter().flat_map(|&group| structure.groups[group].parameters.clone()).collect();
        read_parameters(&mut parameters, classifier, |index| frozen.contains(&index))?;
    }
    Ok(parameters)
}

fn model_scheme(recipe: &Recipe) -> Scheme {
    match &recipe.model {
        Model::BlstmCtc(sizes) => sizes.init,
        Model::CtcAttention(sizes) => sizes.encoder.init,
        Model::Transformer(sizes) => sizes.init,
        Model::LstmLm(sizes) => sizes.init,
    }
}

fn read_parameters(parameters: &mut Parameters, weights: &Weights, which: impl Fn(usize) -> bool) -> Result<()> {
    for index in (0..parameters.len()).filter(|&index| which(index)) {
        let spec = parameters.specs()[index].clone();
        parameters.set(index, &weights.get(&spec.name, &spec.shape)?)?;
    }
    Ok(())
}

/// The value that is compared; infinity where the data has no such score.
pub fn criterion_value(criterion: Criterion, scores: &Scores) -> f64 {
    match criterion {
        Criterion::Loss => Some(scores.loss),
        Criterion::Cer => scores.cer,
        Criterion::Wer => scores.wer,
        Criterion::Perplexity => scores.perplexity,
    }
    .unwrap_or(f64::INFINITY)
}
