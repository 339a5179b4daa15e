//! What a run came to, as text for a terminal.

use crate::table::columns;
use crate::train::record::{RunResult, Scores, StageResult};
use crate::train::seeds::{self, Spread};

/// A line about a finished stage.
pub fn stage_summary(result: &StageResult) -> String {
    let measure = Measure::of(result);
    let score = |scores: &Scores| {
        let unit = if matches!(measure, Measure::Perplexity) { "" } else { " %" };
        let value = measure.of_scores(scores).map_or_else(String::new, |value| format!("{value:.2}{unit}"));
        format!("{} {value}", measure.name())
    };
    let mut line = format!(
        "{}: best epoch {} of {}, valid loss {:.3}, {}",
        result.title,
        result.best_epoch,
        result.epochs,
        result.valid.loss,
        score(&result.valid)
    );
    if let Some(test) = &result.test {
        line.push_str(&format!(", test {}", score(test)));
    }
    line
}

/// What a change of how long to train leaves as it is; `None` if no stage is finished.
pub fn kept_epochs(finished: &[StageResult]) -> Option<String> {
    let stages: Vec<_> = finished.iter().map(|stage| format!("{} ({})", stage.stage, stage.epochs)).collect();
    let others = "training.max_epochs and training.patience are for the others";
    (!stages.is_empty()).then(|| format!("finished stages keep their epochs: {}; {others}", stages.join(", ")))
}

/// The stages of a run as a table; below it, of several seeds, their mean and spread.
pub fn stage_table(result: &RunResult) -> String {
    let percent = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2}"));
    let measure = Measure::of_run(result);
    let [valid, test] = measure.heads();
    let head = ["stage", "frozen", "epochs", "best", "valid loss", &valid, &test, "seconds", ""];
    let mut rows = vec![head.map(String::from).to_vec()];
    for stage in &result.stages {
        let mark = match (result.best.as_deref() == Some(stage.stage.as_str()), stage.accepted) {
            (true, _) => "best",
            (false, _) if result.bests.contains(&stage.stage) => "best of its seed",
            (false, false) => "not accepted",
            (false, true) => "",
        };
        rows.push(vec![
            stage.title.clone(),
            format!("{}/{}", stage.frozen_groups.len(), result.groups.len()),
            stage.epochs.to_string(),
            stage.best_epoch.to_string(),
            format!("{:.3}", stage.valid.loss),
            percent(measure.of_scores(&stage.valid)),
            percent(measure.of_test(stage)),
            format!("{:.0}", stage.seconds),
            mark.into(),
        ]);
    }
    columns(&rows) + &seed_table(result).unwrap_or_default()
}

/// Mean and standard deviation over the seeds.
fn seed_table(result: &RunResult) -> Option<String> {
    let groups = seeds::groups(result);
    let measure = Measure::of_run(result);
    let [valid, test] = measure.heads();
    let head = ["mean ± standard deviation", "seeds", "valid loss", &valid, &test];
    let mut rows = vec![head.map(String::from).to_vec()];
    for group in &groups {
        let spread = |of: &dyn Fn(&StageResult) -> Option<f64>, digits| {
            let spread = Spread::over(group.stages.iter().filter_map(|stage| of(stage)));
            spread.map_or("-".to_string(), |spread| spread.written(digits))
        };
        rows.push(vec![
            group.title.clone(),
            group.stages.len().to_string(),
            spread(&|stage| Some(stage.valid.loss), 3),
            spread(&|stage| measure.of_scores(&stage.valid), 2),
            spread(&|stage| measure.of_test(stage), 2),
        ]);
    }
    (!groups.is_empty()).then(|| format!("\n{}", columns(&rows)))
}

/// The error that is shown beside the loss.
#[derive(Debug, Clone, Copy)]
enum Measure {
    Perplexity,
    Cer,
    Wer,
}

impl Measure {
    /// Perplexity of text; of speech WER if that decides the cascade, else CER.
    fn of(stage: &StageResult) -> Self {
        match (stage.valid.perplexity, stage.criterion.as_str()) {
            (Some(_), _) => Measure::Perplexity,
            (None, "wer") => Measure::Wer,
            (None, _) => Measure::Cer,
        }
    }

    fn of_run(result: &RunResult) -> Self {
        result.stages.first().map_or(Measure::Cer, Self::of)
    }

    fn name(self) -> &'static str {
        match self {
            Measure::Perplexity => "perplexity",
            Measure::Cer => "CER",
            Measure::Wer => "WER",
        }
    }

    fn heads(self) -> [String; 2] {
        ["valid", "test"].map(|set| format!("{set} {}", self.name()))
    }

    fn of_scores(self, scores: &Scores) -> Option<f64> {
        match self {
            Measure::Perplexity => scores.perplexity,
            Measure::Cer => scores.cer,
            Measure::Wer => scores.wer,
        }
    }

    fn of_test(self, stage: &StageResult) -> Option<f64> {
        stage.test.as_ref().and_then(|test| self.of_scores(test))
    }
}
