//! The six strategies, each a pure function from the results of finished trainings to what can be trained next.
//!
//! They speak of compositions alone; [`Plan`](super::Plan) gives the stages their sources, seeds and ids. In all of them:
//! a lower result is better; a result that is not finite counts as worse than anything; and nothing is built on such a result,
//! because the weights behind it are no classifier.

use std::collections::VecDeque;

use super::composition::Composition;
use super::id::StageKind;
use crate::error::{Error, Result};

/// When cut-search may answer a failure by freezing one group more (the inner loop of ICLR 2020, Algorithm 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Inner {
    /// Only until the first cut is accepted: "the inner while loop is only performed when i = n", as the authors ran it.
    #[default]
    First,
    /// In every round, as the algorithm is printed.
    Always,
}

impl Inner {
    pub const NAMES: [&str; 2] = ["first", "always"];
}

/// How a cascade decides what to train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Strategy {
    /// Joint training only.
    None,
    /// ICASSP 2021, Algorithm 1: freeze the top 1, 2, ... groups; stop when the validation error rises. A tie goes on.
    Greedy,
    /// ICLR 2020, Algorithm 1: accept a strict improvement only; on failure freeze one group more and try again.
    CutSearch(Inner),
    /// Every ordered composition of the groups.
    Exhaustive,
    /// These compositions, each with the stages on the way to it.
    Fixed(Vec<Vec<usize>>),
    /// The papers' control: freeze the lowest group of the joint network, reinitialise and retrain the rest.
    FreezeBottom,
}

impl Strategy {
    pub const NAMES: [&str; 6] = ["none", "greedy", "cut-search", "exhaustive", "fixed", "freeze-bottom"];

    /// From the recipe's keys `cascade.strategy`, `cascade.inner` and `cascade.compositions`.
    ///
    /// # Errors
    /// Names the key if a word is unknown, if `fixed` has no compositions, or if another strategy has some, which it would ignore.
    pub fn from_recipe(strategy: &str, inner: &str, compositions: &[Vec<usize>]) -> Result<Self> {
        let inner = match inner {
            "first" => Inner::First,
            "always" => Inner::Always,
            other => return Err(unknown("cascade.inner", other, &Inner::NAMES)),
        };
        let strategy = match strategy {
            "none" => Strategy::None,
            "greedy" => Strategy::Greedy,
            "cut-search" => Strategy::CutSearch(inner),
            "exhaustive" => Strategy::Exhaustive,
            "fixed" => Strategy::Fixed(compositions.to_vec()),
            "freeze-bottom" => Strategy::FreezeBottom,
            other => return Err(unknown("cascade.strategy", other, &Self::NAMES)),
        };
        match (&strategy, compositions.is_empty()) {
            (Strategy::Fixed(_), true) => {
                Err(Error::key("cascade.compositions", "is empty, but cascade.strategy is \"fixed\"")
                    .remedy("List what to train, for example [[1, 1, 3]]"))
            }
            (Strategy::Fixed(_), false) | (_, true) => Ok(strategy),
            (other, false) => {
                let problem = format!("is given, but cascade.strategy is \"{}\", which does not read it", other.name());
                Err(Error::key("cascade.compositions", problem)
                    .remedy("Set cascade.strategy = \"fixed\", or leave it out"))
            }
        }
    }

    /// As it stands in a recipe.
    pub fn name(&self) -> &'static str {
        match self {
            Strategy::None => "none",
            Strategy::Greedy => "greedy",
            Strategy::CutSearch(_) => "cut-search",
            Strategy::Exhaustive => "exhaustive",
            Strategy::Fixed(_) => "fixed",
            Strategy::FreezeBottom => "freeze-bottom",
        }
    }

    /// Walks from `root` as far as the results reach.
    pub(super) fn walk(&self, root: &Composition, result: &dyn Fn(&StageKind) -> Option<f64>) -> Walk {
        match self {
            Strategy::None => tree(root, result, &|_| false),
            Strategy::Greedy => greedy(root, result),
            Strategy::CutSearch(inner) => cut_search(root, result, *inner),
            Strategy::Exhaustive => tree(root, result, &|_| true),
            Strategy::Fixed(compositions) => {
                let listed = |next: &Composition| compositions.iter().any(|parts| is_on_the_way(next, parts));
                tree(root, result, &listed)
            }
            Strategy::FreezeBottom => freeze_bottom(root, result),
        }
    }
}

fn unknown(key: &str, word: &str, names: &[&str]) -> Error {
    let nearest = names.iter().min_by_key(|name| strsim::damerau_levenshtein(name, word)).copied().unwrap_or_default();
    Error::key(key, format!("does not know \"{word}\""))
        .remedy(format!("Use one of {}; \"{nearest}\" is the nearest", names.join(", ")))
}

/// How far a walk has come.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Walk {
    /// What can be trained now. Empty: the walk is over.
    pub ready: Vec<StageKind>,
    /// What has been trained, in the walk's order, and whether the strategy takes it as something to build on.
    pub judged: Vec<(StageKind, bool)>,
    /// What the algorithm would give out now.
    pub output: Option<StageKind>,
}

impl Walk {
    /// Begins with `root`. `Err` is a walk that is already at its end: the root is yet to be trained, or is no classifier.
    fn begin(root: &Composition, result: &dyn Fn(&StageKind) -> Option<f64>) -> Result<(Walk, f64), Walk> {
        let kind = StageKind::from(root);
        match result(&kind) {
            None => Err(Walk { ready: vec![kind], judged: vec![], output: None }),
            Some(error) if !error.is_finite() => Err(Walk { ready: vec![], judged: vec![(kind, false)], output: None }),
            Some(error) => Ok((Walk { ready: vec![], judged: vec![(kind.clone(), true)], output: Some(kind) }, error)),
        }
    }

    fn accept(&mut self, kind: StageKind) {
        self.judged.push((kind.clone(), true));
        self.output = Some(kind);
    }

    fn reject(&mut self, kind: StageKind) {
        self.judged.push((kind, false));
    }
}

/// ICASSP 2021, Algorithm 1. The printed test is `if e' > e then BREAK`, so a tie goes on.
fn greedy(root: &Composition, result: &dyn Fn(&StageKind) -> Option<f64>) -> Walk {
    let (mut walk, mut error) = match Walk::begin(root, result) {
        Ok(begun) => begun,
        Err(ended) => return ended,
    };
    let mut current = root.clone();
    while let Some(next) = current.cut(1) {
        let kind = StageKind::from(&next);
        match result(&kind) {
            None => {
                walk.ready.push(kind);
                break;
            }
            // Written this way round so that NaN, which compares as neither, does not go on.
            Some(retrained) if retrained.is_finite() && retrained <= error => {
                walk.accept(kind);
                (current, error) = (next, retrained);
            }
            Some(_) => {
                walk.reject(kind);
                break;
            }
        }
    }
    walk
}

/// ICLR 2020, Algorithm 1. `current` is A_i, with i = `current.trained()`; the cut C_j freezes all above the lowest j groups, and
/// the classifier always comes from A_i, the network accepted last. A failure is followed by C_{j-1}: one group more is frozen.
fn cut_search(root: &Composition, result: &dyn Fn(&StageKind) -> Option<f64>, inner: Inner) -> Walk {
    let (mut walk, mut error) = match Walk::begin(root, result) {
        Ok(begun) => begun,
        Err(ended) => return ended,
    };
    let mut current = root.clone();
    'rounds: loop {
        let first_round = current == *root;
        for more in 1..current.trained() {
            let Some(next) = current.cut(more) else { break };
            let kind = StageKind::from(&next);
            match result(&kind) {
                None => {
                    walk.ready.push(kind);
                    return walk;
                }
                Some(retrained) if retrained.is_finite() && retrained < error => {
                    walk.accept(kind);
                    (current, error) = (next, retrained);
                    continue 'rounds;
                }
                Some(_) => walk.reject(kind),
            }
            if inner == Inner::First && !first_round {
                break;
            }
        }
        return walk;
    }
}

/// Trains every composition below `root` that is `wanted`, each as soon as its parent is there; the lowest result wins, and of
/// equals the one with the fewest cuts. No stage is turned down for being worse.
fn tree(root: &Composition, result: &dyn Fn(&StageKind) -> Option<f64>, wanted: &dyn Fn(&Composition) -> bool) -> Walk {
    let mut walk = Walk { ready: vec![], judged: vec![], output: None };
    let mut lowest = f64::INFINITY;
    let mut queue = VecDeque::from([root.clone()]);
    while let Some(current) = queue.pop_front() {
        let kind = StageKind::from(&current);
        match result(&kind) {
            None => walk.ready.push(kind),
            Some(error) if error.is_finite() => {
                walk.judged.push((kind.clone(), true));
                if walk.output.is_none() || error < lowest {
                    (lowest, walk.output) = (error, Some(kind));
                }
                queue.extend((1..current.trained()).filter_map(|more| current.cut(more)).filter(wanted));
            }
            Some(_) => walk.reject(kind),
        }
    }
    walk
}

/// Whether `stage` lies on the way to the composition with these `parts`. Parts that do not fit the network fit no stage.
fn is_on_the_way(stage: &Composition, parts: &[usize]) -> bool {
    Composition::new(parts, stage.groups()).is_ok_and(|listed| listed.passes(stage))
}

/// The control of ICASSP 2021, section 5.1, and ICLR 2020, section 4: the joint network's lowest group stands still, the others
/// are reinitialised and retrained.
fn freeze_bottom(root: &Composition, result: &dyn Fn(&StageKind) -> Option<f64>) -> Walk {
    let (mut walk, joint) = match Walk::begin(root, result) {
        Ok(begun) => begun,
        Err(ended) => return ended,
    };
    let control = StageKind::Bottom(1);
    match result(&control) {
        None => walk.ready.push(control),
        Some(error) if error.is_finite() => {
            walk.judged.push((control.clone(), true));
            if error < joint {
                walk.output = Some(control);
            }
        }
        Some(_) => walk.reject(control),
    }
    walk
}
