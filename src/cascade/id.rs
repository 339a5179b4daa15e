//! The names of stages. An id is the name of the stage's folder, its key in `result.json`, and what a user writes after `RUN/`.
//!
//! ```text
//! joint    1-4    1-1-3    bottom-1        what is frozen: the papers' M(1,1,3) without its brackets
//! 2-3.from2                                the second of several classifiers of other runs
//! 1-4.reinit7                              the trained groups start from seed 7
//! 1-4.reinit7.seed2                        ... in the cascade of the run's seed 2
//! ```
//! A suffix stands only where it tells stages of one run apart: `.from` if `classifier_from` lists more than one, `.reinit` if
//! there are several reinitialisation seeds or a single one other than the run's own, `.seed` if the recipe has several `seeds`.

use std::fmt;
use std::str::FromStr;

use super::composition::Composition;
use crate::error::{Error, Subject};

/// What a stage freezes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StageKind {
    /// Nothing.
    Joint,
    /// The groups of all parts but the last, counted from the top. At least two parts.
    Cut(Vec<usize>),
    /// The lowest groups, this many: the papers' control.
    Bottom(usize),
}

impl From<&Composition> for StageKind {
    fn from(composition: &Composition) -> Self {
        match composition.parts() {
            [_] => StageKind::Joint,
            parts => StageKind::Cut(parts.to_vec()),
        }
    }
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StageKind::Joint => write!(f, "joint"),
            StageKind::Cut(parts) => {
                write!(f, "{}", parts.iter().map(usize::to_string).collect::<Vec<_>>().join("-"))
            }
            StageKind::Bottom(groups) => write!(f, "bottom-{groups}"),
        }
    }
}

/// The name of a stage within its run; safe as a folder's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageId {
    pub kind: StageKind,
    /// Which of several external classifiers the walk began with; counts from 1.
    pub classifier: Option<usize>,
    /// The seed from which the trained groups start, if it has to be told.
    pub reinit: Option<u64>,
    /// The seed of the whole cascade, if the run has several.
    pub seed: Option<u64>,
}

impl StageId {
    /// An id without suffixes.
    pub fn plain(kind: StageKind) -> Self {
        StageId { kind, classifier: None, reinit: None, seed: None }
    }

    /// For people: the papers' notation, with what tells the stage apart behind it. `M(1,4), reinit 7, seed 2`.
    pub fn title(&self) -> String {
        let mut title = match &self.kind {
            StageKind::Joint => "joint".to_string(),
            StageKind::Cut(parts) => format!("M({})", parts.iter().map(usize::to_string).collect::<Vec<_>>().join(",")),
            StageKind::Bottom(_) => "freeze-bottom".to_string(),
        };
        let classifier = self.classifier.map(|number| number as u64);
        for (word, number) in [("classifier", classifier), ("reinit", self.reinit), ("seed", self.seed)] {
            if let Some(number) = number {
                title.push_str(&format!(", {word} {number}"));
            }
        }
        title
    }
}

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(number) = self.classifier {
            write!(f, ".from{number}")?;
        }
        if let Some(seed) = self.reinit {
            write!(f, ".reinit{seed}")?;
        }
        if let Some(seed) = self.seed {
            write!(f, ".seed{seed}")?;
        }
        Ok(())
    }
}

impl FromStr for StageId {
    type Err = Error;

    /// # Errors
    /// If `text` is not exactly what [`Display`](fmt::Display) writes for some id.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || {
            Error::new(Subject::Stage(text.to_string()), "is not the id of a stage")
                .remedy("Ids read like joint, 1-4, 1-1-3 or bottom-1, followed by .from2, .reinit7 or .seed2 where a run has several")
        };
        let mut pieces = text.split('.');
        let kind = pieces.next().and_then(parse_kind).ok_or_else(refused)?;
        let mut id = StageId::plain(kind);
        for piece in pieces {
            if let Some(number) = piece.strip_prefix("from") {
                id.classifier = Some(number.parse().map_err(|_| refused())?);
            } else if let Some(seed) = piece.strip_prefix("reinit") {
                id.reinit = Some(seed.parse().map_err(|_| refused())?);
            } else if let Some(seed) = piece.strip_prefix("seed") {
                id.seed = Some(seed.parse().map_err(|_| refused())?);
            } else {
                return Err(refused());
            }
        }
        // One stage has one folder: `01-4` or suffixes in another order would be a second name for it.
        if id.to_string() == text { Ok(id) } else { Err(refused()) }
    }
}

fn parse_kind(text: &str) -> Option<StageKind> {
    if text == "joint" {
        return Some(StageKind::Joint);
    }
    if let Some(groups) = text.strip_prefix("bottom-") {
        return groups.parse().ok().filter(|groups| *groups > 0).map(StageKind::Bottom);
    }
    let parts =
        text.split('-').map(|part| part.parse().ok().filter(|part| *part > 0)).collect::<Option<Vec<usize>>>()?;
    (parts.len() >= 2).then_some(StageKind::Cut(parts))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for text in [
            "joint",
            "joint.seed3",
            "1-4",
            "1-1-3",
            "bottom-1",
            "2-3.from2",
            "1-4.reinit7.seed2",
            "12-1.from1.reinit0.seed9",
        ] {
            assert_eq!(text.parse::<StageId>().expect("an id").to_string(), text);
        }
        let id = "1-1-3.reinit7.seed2".parse::<StageId>().expect("an id");
        assert_eq!(id.kind, StageKind::Cut(vec![1, 1, 3]));
        assert_eq!((id.classifier, id.reinit, id.seed), (None, Some(7), Some(2)));
        assert_eq!(id.title(), "M(1,1,3), reinit 7, seed 2");
    }

    #[test]
    fn what_is_no_id_is_refused_by_name() {
        for text in [
            "",
            "Joint",
            "5",
            "0-5",
            "1-",
            "01-4",
            "+1-4",
            "1-4.seed",
            "1-4.seed2.reinit7",
            "1-4.seed1.seed2",
            "bottom-0",
            "../joint",
            "1-4@3",
        ] {
            let error = text.parse::<StageId>().expect_err(text);
            assert_eq!(error.subject, Subject::Stage(text.to_string()));
        }
    }

    proptest! {
        #[test]
        fn every_id_is_its_own_and_safe_as_a_folder(
            parts in prop::collection::vec(1usize..40, 2..9),
            classifier in prop::option::of(1usize..9),
            reinit in prop::option::of(any::<u64>()),
            seed in prop::option::of(any::<u64>()),
        ) {
            let id = StageId { kind: StageKind::Cut(parts), classifier, reinit, seed };
            let text = id.to_string();
            prop_assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.'));
            prop_assert_eq!(text.parse::<StageId>().expect("reads its own text"), id);
        }
    }
}
