//! What a run has to show: its stages in order, how each is called and drawn, which one is the baseline and which the best.

use crate::cascade::{self, StageId, StageKind};
use crate::train::record::{EpochRecord, GroupRecord, Scores, StageResult};

use super::RunData;
use super::html::escape;

/// Colours in `style.css`: `c0` is the baseline's, the others follow in order and then stay at the last.
const COLOURS: usize = 8;
/// Line patterns, one per seed; patterns tell apart what colours cannot.
const DASHES: [&str; 4] = ["", "7 4", "2 4", "10 3 2 3"];

/// A stage as the report shows it.
pub struct StageView<'a> {
    pub id: &'a str,
    /// Of the id, if it is one of ours.
    pub parsed: Option<StageId>,
    /// Escaped.
    pub title: String,
    /// `None` while it is being trained.
    pub result: Option<&'a StageResult>,
    pub epochs: Vec<&'a EpochRecord>,
    /// A class of `style.css`: stages that differ only by seed share it.
    pub colour: String,
    pub dash: &'static str,
    pub is_best: bool,
}

impl StageView<'_> {
    /// Nothing is frozen.
    pub fn is_baseline(&self) -> bool {
        self.result.is_some_and(|result| result.frozen_groups.is_empty())
            || self.parsed.as_ref().is_some_and(|id| id.kind == StageKind::Joint)
    }

    /// The run's seed that the id names.
    pub fn seed(&self) -> Option<u64> {
        self.parsed.as_ref().and_then(|id| id.seed)
    }

    /// What is told for this stage beside its title: `best`, `rejected`, ...
    pub fn verdict(&self, finished: bool) -> Verdict {
        match self.result {
            None if finished => Verdict::Stopped,
            None => Verdict::Running,
            Some(_) if self.is_best => Verdict::Best,
            Some(result) if !result.accepted => Verdict::Rejected,
            Some(_) if self.is_baseline() => Verdict::Baseline,
            Some(_) if matches!(&self.parsed, Some(StageId { kind: StageKind::Bottom(_), .. })) => Verdict::Control,
            Some(_) => Verdict::Accepted,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Baseline,
    Accepted,
    Rejected,
    /// Frozen from below: trained to compare with, whatever comes out.
    Control,
    Best,
    Running,
    /// In the log, but not in the results of a finished run.
    Stopped,
}

impl Verdict {
    /// A class of `style.css`, a mark that needs no colour, and the word.
    pub fn shown(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Verdict::Baseline => ("baseline", "○", "baseline"),
            Verdict::Accepted => ("accepted", "✓", "accepted"),
            Verdict::Rejected => ("rejected", "✕", "rejected"),
            Verdict::Control => ("control", "◇", "control"),
            Verdict::Best => ("best", "★", "best"),
            Verdict::Running => ("running", "…", "in training"),
            Verdict::Stopped => ("running", "–", "not finished"),
        }
    }

    /// As a small label.
    pub fn badge(self) -> String {
        let (class, mark, word) = self.shown();
        format!("<span class=\"badge {class}\"><span aria-hidden=\"true\">{mark}</span> {word}</span>")
    }
}

/// What a stage was judged by.
#[derive(Debug, Clone, PartialEq)]
pub struct Criterion {
    /// For people, escaped: `CER`, `WER`, `loss`, `perplexity`.
    pub name: String,
    /// `" %"` or nothing.
    pub unit: &'static str,
    key: String,
}

impl Criterion {
    fn new(key: &str) -> Self {
        match key {
            "cer" | "wer" => Criterion { name: key.to_uppercase(), unit: " %", key: key.to_string() },
            other => Criterion { name: escape(other), unit: "", key: other.to_string() },
        }
    }

    /// The same measure in a set of scores.
    pub fn of(&self, scores: &Scores) -> Option<f64> {
        match self.key.as_str() {
            "cer" => scores.cer,
            "wer" => scores.wer,
            "perplexity" => scores.perplexity,
            "loss" => Some(scores.loss),
            _ => None,
        }
    }
}

/// A run as the report shows it.
pub struct RunView<'a> {
    pub data: &'a RunData,
    /// Finished stages in the order of training, then what is being trained.
    pub stages: Vec<StageView<'a>>,
    pub criterion: Criterion,
}

impl<'a> RunView<'a> {
    pub fn new(data: &'a RunData) -> Self {
        let result = &data.result;
        let criterion = Criterion::new(result.stages.first().map_or("cer", |stage| stage.criterion.as_str()));
        let mut stages: Vec<StageView> =
            result.stages.iter().map(|stage| stage_view(&stage.stage, Some(stage), &data.epochs)).collect();
        for epoch in &data.epochs {
            if !stages.iter().any(|stage| stage.id == epoch.stage) {
                stages.push(stage_view(&epoch.stage, None, &data.epochs));
            }
        }
        if let Some(best) = best_index(data) {
            stages[best].is_best = true;
        }
        colour(&mut stages);
        RunView { data, stages, criterion }
    }

    pub fn name(&self) -> &str {
        if self.data.result.name.is_empty() { &self.data.path } else { &self.data.result.name }
    }

    /// Bottom to top.
    pub fn groups(&self) -> &[GroupRecord] {
        &self.data.result.groups
    }

    pub fn finished_stages(&self) -> impl Iterator<Item = (&StageView<'a>, &'a StageResult)> {
        self.stages.iter().filter_map(|stage| stage.result.map(|result| (stage, result)))
    }

    /// Of how many last epochs the weights that were kept are the average, in the stage with most; none: they are the best epoch's.
    pub fn averaged_epochs(&self) -> Option<usize> {
        self.finished_stages().filter_map(|(_, result)| result.averaged_epochs).max()
    }

    pub fn best(&self) -> Option<(&StageView<'a>, &'a StageResult)> {
        self.finished_stages().find(|(stage, _)| stage.is_best)
    }

    /// Joint training of this seed.
    pub fn baseline_of(&self, seed: Option<u64>) -> Option<(&StageView<'a>, &'a StageResult)> {
        self.finished_stages().find(|(stage, _)| stage.is_baseline() && stage.seed() == seed)
    }

    /// Joint training; of the seed of the best stage, where there are several.
    pub fn baseline(&self) -> Option<(&StageView<'a>, &'a StageResult)> {
        self.baseline_of(self.best().and_then(|(stage, _)| stage.seed()))
    }

    /// The seeds of the run's cascades, in order; a run of one seed has the one entry `None`.
    pub fn seeds(&self) -> Vec<Option<u64>> {
        let mut seeds = Vec::new();
        for stage in &self.stages {
            if !seeds.contains(&stage.seed()) {
                seeds.push(stage.seed());
            }
        }
        seeds
    }
}

fn stage_view<'a>(id: &'a str, result: Option<&'a StageResult>, epochs: &'a [EpochRecord]) -> StageView<'a> {
    let parsed: Option<StageId> = id.parse().ok();
    let title = match result {
        Some(result) if !result.title.is_empty() => result.title.clone(),
        _ => parsed.as_ref().map_or(id.to_string(), StageId::title),
    };
    StageView {
        id,
        parsed,
        title: escape(&title),
        result,
        epochs: epochs.iter().filter(|epoch| epoch.stage == id).collect(),
        colour: String::new(),
        dash: "",
        is_best: false,
    }
}

/// The stage that the run names, else the lowest finite result.
fn best_index(data: &RunData) -> Option<usize> {
    let stages = &data.result.stages;
    let named = data.result.best.as_ref().and_then(|best| stages.iter().position(|stage| stage.stage == *best));
    named.or_else(|| cascade::best(stages.iter().enumerate().map(|(index, stage)| (index, stage.criterion_value))))
}

/// One colour for what is frozen, one line pattern for each seed.
fn colour(stages: &mut [StageView]) {
    let mut kinds: Vec<String> = Vec::new();
    let mut variants: Vec<(Option<usize>, Option<u64>, Option<u64>)> = Vec::new();
    for stage in stages {
        let (kind, variant) = match &stage.parsed {
            Some(id) => (id.kind.to_string(), (id.classifier, id.reinit, id.seed)),
            None => (stage.id.to_string(), (None, None, None)),
        };
        // Joint training below seeds of reinitialisation has no variant of its own.
        let dash = match variant {
            (None, None, None) => 0,
            variant => position(&mut variants, variant),
        };
        stage.dash = DASHES[dash % DASHES.len()];
        stage.colour = match stage.is_baseline() {
            true => "c0".to_string(),
            false => format!("c{}", (position(&mut kinds, kind) + 1).min(COLOURS - 1)),
        };
    }
}

fn position<T: PartialEq>(known: &mut Vec<T>, item: T) -> usize {
    known.iter().position(|other| *other == item).unwrap_or_else(|| {
        known.push(item);
        known.len() - 1
    })
}
