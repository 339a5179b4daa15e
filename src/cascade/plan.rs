//! A plan: a strategy over a model's groups, with its seeds and the classifiers it starts from. It names the stages that can be
//! trained next and says which one is the best.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::composition::Composition;
use super::id::{StageId, StageKind};
use super::stage::{Source, Stage};
use super::strategy::{Strategy, Walk};
use crate::error::{Error, Result};

/// More groups than this make an exhaustive search of more than 32,768 trainings, which nobody means.
const MOST_EXHAUSTIVE_GROUPS: usize = 16;

/// The validation results of finished stages: per stage, the value of the criterion. Lower is better; a value that is not finite
/// counts as worse than anything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results(BTreeMap<StageId, f64>);

impl Results {
    pub fn new() -> Self {
        Self::default()
    }

    /// A later value for the same stage replaces the earlier one.
    pub fn insert(&mut self, stage: StageId, criterion: f64) {
        self.0.insert(stage, criterion);
    }

    pub fn get(&self, stage: &StageId) -> Option<f64> {
        self.0.get(stage).copied()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(StageId, f64)> for Results {
    fn from_iter<I: IntoIterator<Item = (StageId, f64)>>(results: I) -> Self {
        Results(results.into_iter().collect())
    }
}

/// Orders two results, the better one first. All that are not finite are equal, and last.
pub fn better(one: f64, other: f64) -> Ordering {
    match (one.is_finite(), other.is_finite()) {
        (true, true) => one.total_cmp(&other),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => Ordering::Equal,
    }
}

/// The key with the lowest finite value; of equals the first. `None` if there is none.
pub fn best<K>(results: impl IntoIterator<Item = (K, f64)>) -> Option<K> {
    let finite = results.into_iter().filter(|(_, value)| value.is_finite());
    finite.min_by(|one, other| better(one.1, other.1)).map(|(key, _)| key)
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// These stages can be trained now, in any order or side by side. Never empty.
    Ready(Vec<Stage>),
    /// Nothing more is to be trained. `best` is `None` if no stage has a finite result.
    Finished { best: Option<StageId> },
}

/// What a [`Plan`] is made from, beside the strategy and the number of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanOptions {
    /// The seed of this cascade.
    pub seed: u64,
    /// True if the run has other cascades with other seeds: the ids then carry the seed.
    pub several_seeds: bool,
    /// The seeds of reinitialised groups. Each has a cascade of its own below the joint stage, which they share. Empty: `seed`.
    pub reinit_seeds: Vec<u64>,
    /// How many classifiers of other runs there are (`cascade.classifier_from`). Each has a cascade of its own.
    pub external_classifiers: usize,
    /// How many groups, counted from the top, an external classifier has. Not read without one.
    pub classifier_groups: usize,
}

impl PlanOptions {
    /// One seed, no external classifier.
    pub fn new(seed: u64) -> Self {
        PlanOptions { seed, several_seeds: false, reinit_seeds: vec![], external_classifiers: 0, classifier_groups: 0 }
    }
}

/// A cascade: everything that decides which stages it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    strategy: Strategy,
    /// Where every walk begins: joint training, or training below an external classifier.
    root: Composition,
    seed: u64,
    several_seeds: bool,
    reinit_seeds: Vec<u64>,
    external_classifiers: usize,
}

/// One of the walks that a plan unites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lane {
    classifier: Option<usize>,
    reinit_seed: u64,
}

impl Plan {
    /// A plan for a model of so many layer groups.
    ///
    /// # Errors
    /// If the model has no groups; a composition does not fit it or does not begin with the external classifier; an external
    /// classifier leaves nothing to train or goes with `freeze-bottom`, which trains the classifier; there is nothing above the
    /// lowest group to retrain; a seed is listed twice; or an exhaustive search is out of reach.
    pub fn new(strategy: Strategy, groups: usize, options: PlanOptions) -> Result<Self> {
        let PlanOptions { seed, several_seeds, mut reinit_seeds, external_classifiers, classifier_groups } = options;
        if groups == 0 {
            return Err(Error::key("model", "has no layer groups, so there is nothing to train"));
        }
        let root = match external_classifiers {
            0 => Composition::joint(groups),
            _ => below_external_classifier(groups, classifier_groups)?,
        };
        match &strategy {
            Strategy::Fixed(compositions) => check_compositions(compositions, &root)?,
            Strategy::Exhaustive if root.trained() > MOST_EXHAUSTIVE_GROUPS => {
                let problem =
                    format!("\"exhaustive\" over {} layer groups is more than 2^15 trainings", root.trained());
                return Err(Error::key("cascade.strategy", problem)
                    .remedy("Use \"cut-search\", or \"fixed\" with the compositions you want to see"));
            }
            Strategy::FreezeBottom if external_classifiers > 0 => {
                return Err(Error::key(
                    "cascade.classifier_from",
                    "is given, but \"freeze-bottom\" trains the classifier anew",
                )
                .remedy("Leave it out, or choose another cascade.strategy"));
            }
            Strategy::FreezeBottom if groups == 1 => {
                return Err(Error::key(
                    "cascade.strategy",
                    "\"freeze-bottom\" would freeze the model's only layer group",
                )
                .remedy("Use a model of at least two groups, or \"none\""));
            }
            _ => {}
        }
        if let Some(twice) = reinit_seeds.iter().enumerate().find(|(at, seed)| reinit_seeds[..*at].contains(seed)) {
            return Err(
                Error::key("cascade.reinit_seeds", format!("lists {} twice", twice.1)).remedy("List each seed once")
            );
        }
        if reinit_seeds.is_empty() {
            reinit_seeds.push(seed);
        }
        Ok(Plan { strategy, root, seed, several_seeds, reinit_seeds, external_classifiers })
    }

    /// The stages that can be trained after these results, or the end. Results of stages that this plan does not have are ignored.
    pub fn next(&self, results: &Results) -> Next {
        let mut ready = Vec::<Stage>::new();
        for lane in self.lanes() {
            for kind in self.walk(lane, results).ready {
                let stage = self.stage(lane, &kind);
                // The joint stage begins the lanes of all reinitialisation seeds.
                if !ready.iter().any(|other| other.id == stage.id) {
                    ready.push(stage);
                }
            }
        }
        if ready.is_empty() { Next::Finished { best: self.best(results) } } else { Next::Ready(ready) }
    }

    /// The best stage so far: what the strategy's algorithm would give out, the lowest over all seeds and classifiers.
    pub fn best(&self, results: &Results) -> Option<StageId> {
        let outputs = self.lanes().filter_map(|lane| self.walk(lane, results).output.map(|kind| self.id(lane, &kind)));
        best(outputs.filter_map(|id| results.get(&id).map(|value| (id, value))))
    }

    /// Whether the strategy takes a trained stage as something to build on. `None` if it has not been trained, or is none of the
    /// plan's. Exhaustive, fixed and freeze-bottom turn down results that are not finite and no others.
    pub fn accepted(&self, stage: &StageId, results: &Results) -> Option<bool> {
        self.lanes().find_map(|lane| {
            let judged = self.walk(lane, results).judged;
            judged.into_iter().find(|(kind, _)| self.id(lane, kind) == *stage).map(|(_, accepted)| accepted)
        })
    }

    /// Every stage that this plan trains if each one turns out better than those before it: all there are for none, exhaustive,
    /// fixed and freeze-bottom, the longest way for greedy and cut-search.
    pub fn outline(&self) -> Vec<Stage> {
        self.run_on(&Results::new())
    }

    /// The most stages that can still be trained after these results. Greedy and cut-search never train more than when every
    /// stage succeeds, since each training freezes at least one group more than the one before it.
    pub fn most_left(&self, results: &Results) -> usize {
        self.run_on(results).len()
    }

    /// What is trained after `results` if each stage is better than all before it.
    fn run_on(&self, results: &Results) -> Vec<Stage> {
        let mut results = results.clone();
        let lowest = results.0.values().copied().filter(|value| value.is_finite()).fold(0.0, f64::min);
        let mut trained = Vec::new();
        while let Next::Ready(stages) = self.next(&results) {
            for stage in stages {
                trained.push(stage.clone());
                results.insert(stage.id, lowest - trained.len() as f64);
            }
        }
        trained
    }

    fn lanes(&self) -> impl Iterator<Item = Lane> + '_ {
        let classifiers = match self.external_classifiers {
            0 => vec![None],
            number => (0..number).map(Some).collect(),
        };
        let seeds = &self.reinit_seeds;
        classifiers
            .into_iter()
            .flat_map(move |classifier| seeds.iter().map(move |seed| Lane { classifier, reinit_seed: *seed }))
    }

    fn walk(&self, lane: Lane, results: &Results) -> Walk {
        self.strategy.walk(&self.root, &|kind| results.get(&self.id(lane, kind)))
    }

    fn id(&self, lane: Lane, kind: &StageKind) -> StageId {
        let reinit_is_told = self.reinit_seeds.len() > 1 || lane.reinit_seed != self.seed;
        StageId {
            kind: kind.clone(),
            classifier: lane.classifier.filter(|_| self.external_classifiers > 1).map(|index| index + 1),
            reinit: (reinit_is_told && *kind != StageKind::Joint).then_some(lane.reinit_seed),
            seed: self.several_seeds.then_some(self.seed),
        }
    }

    fn stage(&self, lane: Lane, kind: &StageKind) -> Stage {
        let groups = self.root.groups();
        let composition = match kind {
            StageKind::Joint => Some(Composition::joint(groups)),
            // A strategy makes its cuts from the root, so they fit.
            StageKind::Cut(parts) => Composition::new(parts, groups).ok(),
            StageKind::Bottom(_) => None,
        };
        let (frozen, trained) = match (&composition, kind) {
            (None, StageKind::Bottom(number)) => ((0..*number).collect(), (*number..groups).collect()),
            (Some(composition), _) => ((composition.trained()..groups).collect(), (0..composition.trained()).collect()),
            (None, _) => (vec![], (0..groups).collect()),
        };
        let source = match (&composition, kind, lane.classifier) {
            (_, StageKind::Joint, _) => Source::Nothing,
            (Some(composition), _, Some(index)) if *composition == self.root => Source::External(index),
            (Some(composition), ..) => match composition.parent() {
                Some(parent) => Source::Stage(self.id(lane, &StageKind::from(&parent))),
                None => Source::Nothing,
            },
            (None, ..) => Source::Stage(self.id(lane, &StageKind::Joint)),
        };
        let id = self.id(lane, kind);
        let reinit_seed = (*kind != StageKind::Joint).then_some(lane.reinit_seed);
        Stage { title: id.title(), id, composition, frozen, trained, source, reinit_seed }
    }
}

fn below_external_classifier(groups: usize, classifier_groups: usize) -> Result<Composition> {
    Composition::joint(groups).cut(classifier_groups).ok_or_else(|| {
        let problem = format!("is {classifier_groups}, but the model has {groups} layer groups");
        let remedy = match groups {
            1 => "A model of one layer group has nothing below a classifier".to_string(),
            _ => format!("Choose 1 to {}, so that there is a classifier and something below it to train", groups - 1),
        };
        Error::key("cascade.classifier_groups", problem).remedy(remedy)
    })
}

fn check_compositions(compositions: &[Vec<usize>], root: &Composition) -> Result<()> {
    if compositions.is_empty() {
        return Err(
            Error::key("cascade.compositions", "is empty").remedy("List what to train, for example [[1, 1, 3]]")
        );
    }
    for parts in compositions {
        let composition = Composition::new(parts, root.groups())?;
        if !composition.passes(root) {
            let frozen = root.frozen();
            return Err(Error::key(
                "cascade.compositions",
                format!("{parts:?} does not begin with the external classifier"),
            )
            .remedy(format!("Its first part must be {frozen}, as cascade.classifier_groups says")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
