//! Compositions: ordered sums of the number of layer groups, the papers' `M(i, j, ..., r)` (ICASSP 2021, section 4).

use crate::error::{Error, Result};

/// The parts of an ordered sum, from the top of the network down. All parts but the last are frozen, one after the other; the
/// last part is what is reinitialised and trained. `[5]` is joint training of five groups.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Composition(Vec<usize>);

impl Composition {
    /// All groups in one part: joint training. A network has at least one group, so `groups` counts as 1 if it is 0.
    pub fn joint(groups: usize) -> Self {
        Composition(vec![groups.max(1)])
    }

    /// Checks `parts` against the model.
    ///
    /// # Errors
    /// Names `cascade.compositions` if a part is 0, or if the parts do not add up to `groups`. What passes leaves at least one
    /// group to train: the last part.
    pub fn new(parts: &[usize], groups: usize) -> Result<Self> {
        let shown = || format!("{parts:?}");
        if parts.contains(&0) {
            return Err(Error::key("cascade.compositions", format!("{} has a part of 0 layer groups", shown()))
                .remedy("Every part is at least 1; the last one is the part that is trained"));
        }
        let sum = parts.iter().fold(0usize, |sum, part| sum.saturating_add(*part));
        if sum != groups {
            let problem = format!("{} adds up to {sum}, but the model has {groups} layer groups", shown());
            let remedy = match groups {
                0 | 1 => "A model of one layer group can only be trained jointly".to_string(),
                _ => format!("Let the parts add up to {groups}, for example [1, {}]", groups - 1),
            };
            return Err(Error::key("cascade.compositions", problem).remedy(remedy));
        }
        match groups {
            0 => Err(Error::key("model", "has no layer groups, so there is nothing to train")),
            _ => Ok(Composition(parts.to_vec())),
        }
    }

    pub fn parts(&self) -> &[usize] {
        &self.0
    }

    /// Number of groups of the network.
    pub fn groups(&self) -> usize {
        self.0.iter().sum()
    }

    /// Number of groups that are reinitialised and trained: the last part.
    pub fn trained(&self) -> usize {
        self.0[self.0.len() - 1]
    }

    /// Number of groups, counted from the top, that are frozen.
    pub fn frozen(&self) -> usize {
        self.groups() - self.trained()
    }

    /// The frozen parts, from the top.
    pub fn prefix(&self) -> &[usize] {
        &self.0[..self.0.len() - 1]
    }

    /// Freezes `more` groups below those frozen already: `M(1,4).cut(2)` is `M(1,2,2)`. `None` if that would freeze none or would
    /// leave nothing to train.
    pub fn cut(&self, more: usize) -> Option<Composition> {
        let rest = self.trained().checked_sub(more).filter(|rest| *rest > 0 && more > 0)?;
        let mut parts = self.prefix().to_vec();
        parts.extend([more, rest]);
        Some(Composition(parts))
    }

    /// The composition whose training gave the frozen groups their weights: `M(1,1,3)` comes from `M(1,4)`. `None` for joint
    /// training.
    pub fn parent(&self) -> Option<Composition> {
        let (last, before) = (self.trained(), self.prefix());
        let (frozen_last, prefix) = before.split_last()?;
        let mut parts = prefix.to_vec();
        parts.push(frozen_last + last);
        Some(Composition(parts))
    }

    /// Whether the way to `self` leads through `other`: true for itself, its parent, its parent's parent, ...
    pub fn passes(&self, other: &Composition) -> bool {
        self.groups() == other.groups() && self.0.len() >= other.0.len() && self.0.starts_with(other.prefix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[usize]) -> Composition {
        Composition::new(parts, parts.iter().sum()).expect("a valid composition")
    }

    #[test]
    fn a_stage_takes_its_classifier_from_the_composition_before_the_last_cut() {
        assert_eq!(of(&[1, 1, 3]).parent(), Some(of(&[1, 4])));
        assert_eq!(of(&[1, 4]).parent(), Some(of(&[5])));
        assert_eq!(of(&[5]).parent(), None);
        assert_eq!(of(&[2, 1, 2]).parent(), Some(of(&[2, 3])));
    }

    #[test]
    fn a_cut_leaves_at_least_one_group_to_train() {
        assert_eq!(of(&[1, 4]).cut(2), Some(of(&[1, 2, 2])));
        assert_eq!(of(&[1, 4]).cut(3), Some(of(&[1, 3, 1])));
        assert_eq!(of(&[1, 4]).cut(4), None);
        assert_eq!(of(&[1, 4]).cut(9), None);
        assert_eq!(of(&[1, 4]).cut(0), None);
    }

    #[test]
    fn the_way_to_a_composition_passes_its_prefixes_only() {
        let end = of(&[1, 1, 1, 2]);
        assert!(end.passes(&of(&[5])) && end.passes(&of(&[1, 4])) && end.passes(&of(&[1, 1, 3])) && end.passes(&end));
        assert!(!end.passes(&of(&[2, 3])) && !end.passes(&of(&[1, 2, 2])) && !end.passes(&of(&[1, 1, 1, 1, 1])));
        assert!(!of(&[1, 4]).passes(&of(&[1, 3])), "a composition of another network");
    }

    #[test]
    fn a_composition_that_does_not_fit_the_model_is_an_error_naming_the_key_and_the_remedy() {
        let message = Composition::new(&[1, 1, 2], 5).expect_err("sums to 4").to_string();
        assert_eq!(
            message,
            "cascade.compositions: [1, 1, 2] adds up to 4, but the model has 5 layer groups. Let the parts add up to 5, for \
             example [1, 4]."
        );
        let message = Composition::new(&[1, 4, 0], 5).expect_err("nothing to train").to_string();
        assert!(message.contains("cascade.compositions: [1, 4, 0] has a part of 0"), "{message}");
        let message = Composition::new(&[], 5).expect_err("empty").to_string();
        assert!(message.contains("[] adds up to 0"), "{message}");
        assert!(Composition::new(&[usize::MAX, 2], 1).is_err(), "a sum that overflows");
        assert!(Composition::new(&[], 0).is_err(), "a model without groups");
    }
}
