//! Several seeds in one run: the stages that differ by seeds alone, and their mean and spread.

use crate::cascade::StageId;
use crate::train::record::{RunResult, StageResult};

/// What every seed made of the same thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<'a> {
    /// `M(1,4)`, or what the stages have in common.
    pub title: String,
    /// In the order in which they were trained.
    pub stages: Vec<&'a StageResult>,
}

/// The stages that differ by seeds alone, together, and the best of each seed last. Nothing where seeds play no part.
pub fn groups(result: &RunResult) -> Vec<Group<'_>> {
    let mut groups = by_kind(result);
    if groups.iter().all(|group| group.stages.len() < 2) {
        return Vec::new();
    }
    groups.extend(Some(bests(result)).filter(|bests| bests.stages.len() > 1));
    groups
}

/// The stages that differ by seeds alone, together; every stage is in a group.
pub fn by_kind(result: &RunResult) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for stage in &result.stages {
        let title = match stage.stage.parse::<StageId>() {
            Ok(id) => StageId { reinit: None, seed: None, ..id }.title(),
            Err(_) => stage.title.clone(),
        };
        match groups.iter_mut().find(|group| group.title == title) {
            Some(group) => group.stages.push(stage),
            None => groups.push(Group { title, stages: vec![stage] }),
        }
    }
    groups
}

/// The best stage of each of the run's seeds that has a finite result.
pub fn bests(result: &RunResult) -> Group<'_> {
    let stage = |id: &String| result.stages.iter().find(|stage| stage.stage == *id);
    Group { title: "best of each seed".to_string(), stages: result.bests.iter().filter_map(stage).collect() }
}

/// Of the values of several seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub mean: f64,
    /// A sample's, with n - 1; none for one value.
    pub deviation: Option<f64>,
    /// How many values there were beside; they are in neither number.
    pub not_finite: usize,
}

impl Spread {
    /// None without a finite value.
    pub fn over(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (finite, others): (Vec<f64>, Vec<f64>) = values.into_iter().partition(|value| value.is_finite());
        let number = finite.len() as f64;
        let mean = finite.iter().sum::<f64>() / number;
        let squares: f64 = finite.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (finite.len() > 1).then(|| (squares / (number - 1.0)).sqrt());
        (!finite.is_empty()).then_some(Spread { mean, deviation, not_finite: others.len() })
    }

    /// `17.30 ± 0.56, 1 not finite`
    pub fn written(&self, digits: usize) -> String {
        let mut text = format!("{:.digits$}", self.mean);
        if let Some(deviation) = self.deviation {
            text += &format!(" ± {deviation:.digits$}");
        }
        if self.not_finite > 0 {
            text += &format!(", {} not finite", self.not_finite);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_spread_are_those_of_a_sample() {
        let spread = Spread::over([12.4, 12.6, 12.8]).unwrap();
        assert!((spread.mean - 12.6).abs() < 1e-12 && (spread.deviation.unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(spread.written(2), "12.60 ± 0.20");
        assert_eq!(Spread::over([3.0]).unwrap().written(1), "3.0");
    }

    #[test]
    fn a_seed_that_diverged_is_counted_and_not_averaged() {
        assert_eq!(Spread::over([2.0, f64::NAN, 4.0, f64::INFINITY]).unwrap().written(1), "3.0 ± 1.4, 2 not finite");
        assert_eq!(Spread::over([f64::NAN]), None);
        assert_eq!(Spread::over([]), None);
    }
}
