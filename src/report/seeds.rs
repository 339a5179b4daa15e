//! Several seeds of one run, as mean and spread.

use crate::cascade::StageId;
use crate::train::record::StageResult;

use super::headline::{gain, relative};
use super::html::score;
use super::view::RunView;

/// The head of a run of several seeds: each seed's joint stage and each seed's best, as mean and standard deviation. `None` for a
/// run of one seed, or if a seed has no finite joint result yet.
pub fn headline(run: &RunView) -> Option<String> {
    let seeds = run.seeds();
    let pairs: Vec<(&StageResult, &StageResult)> = seeds.iter().filter_map(|seed| of_seed(run, *seed)).collect();
    if pairs.len() < 2 || pairs.len() < seeds.len() {
        return None;
    }
    let criterion = &run.criterion;
    let values = pairs.iter().map(|(joint, best)| (joint.criterion_value, best.criterion_value));
    let (joint, best): (Vec<f64>, Vec<f64>) = values.unzip();
    let test_of = |result: &StageResult| result.test.as_ref().and_then(|test| criterion.of(test));
    let on_test: Option<Vec<(f64, f64)>> =
        pairs.iter().map(|(joint, best)| test_of(joint).zip(test_of(best))).collect();
    let (joint_test, best_test): (Vec<f64>, Vec<f64>) = on_test.unwrap_or_default().into_iter().unzip();
    let number = pairs.len();
    let figure = |label: &str, values: &[f64], test: &[f64], class: &str| {
        let (mean, spread) = mean_and_spread(values);
        let spread =
            spread.map_or(String::new(), |spread| format!("<small class=\"spread\">± {}</small>", score(spread)));
        let test =
            if test.is_empty() { String::new() } else { format!(" · test {}{}", spread_text(test), criterion.unit) };
        format!(
            "<div class=\"figure {class}\"><span class=\"label\">{label}, validation {}</span><b>{}<small>{}</small>{spread}</b>\
             <span class=\"note\">mean of {number} seeds{test}</span></div>",
            criterion.name,
            score(mean),
            criterion.unit,
        )
    };
    let mean_gain = |joint: &[f64], best: &[f64]| gain(mean_and_spread(joint).0, mean_and_spread(best).0).map(relative);
    let change = mean_gain(&joint, &best).unwrap_or("no relative change".to_string());
    let test = mean_gain(&joint_test, &best_test);
    let test = test.map_or(String::new(), |change| format!("<span class=\"note\">on test: {change}</span>"));
    Some(format!(
        "<div class=\"headline\">{}<span class=\"arrow\" aria-hidden=\"true\"></span>{}<div class=\"verdict\"><b>{change}</b>\
         <span class=\"note\">relative, means of {number} seeds</span>{test}</div></div>",
        figure("Joint training", &joint, &joint_test, ""),
        figure("Best stage of each seed", &best, &best_test, "winner"),
    ))
}

/// A seed's joint stage and its best one; both have finite results.
fn of_seed<'a>(run: &RunView<'a>, seed: Option<u64>) -> Option<(&'a StageResult, &'a StageResult)> {
    let stages = || run.finished_stages().filter(|(stage, _)| stage.seed() == seed);
    let (_, joint) = run.baseline_of(seed)?;
    let best = crate::cascade::best(stages().map(|(_, result)| (result, result.criterion_value)))?;
    joint.criterion_value.is_finite().then_some((joint, best))
}

/// A sample's mean and standard deviation (n - 1); the latter needs two values.
fn mean_and_spread(values: &[f64]) -> (f64, Option<f64>) {
    let number = values.len() as f64;
    let mean = values.iter().sum::<f64>() / number;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (squares / (number - 1.0)).sqrt()))
}

fn spread_text(values: &[f64]) -> String {
    match mean_and_spread(values) {
        _ if values.is_empty() => "–".to_string(),
        (mean, Some(spread)) => format!("{} <small>± {}</small>", score(mean), score(spread)),
        (mean, None) => score(mean),
    }
}

/// One row of the table of seeds: a stage under all its seeds, or the best of each seed.
struct SeedRow {
    title: String,
    /// The seeds that reached this stage.
    reached: usize,
    valid: Vec<f64>,
    test: Vec<f64>,
    class: &'static str,
}

impl SeedRow {
    fn new(title: String, class: &'static str) -> Self {
        SeedRow { title, reached: 0, valid: vec![], test: vec![], class }
    }

    fn add(&mut self, run: &RunView, result: &StageResult) {
        self.reached += 1;
        self.valid.extend(Some(result.criterion_value).filter(|value| value.is_finite()));
        self.test
            .extend(result.test.as_ref().and_then(|test| run.criterion.of(test)).filter(|value| value.is_finite()));
    }

    fn render(&self, has_test: bool) -> String {
        let listed = self.valid.iter().map(|value| score(*value)).collect::<Vec<_>>().join(", ");
        let test = if has_test { format!("<td class=\"n\">{}</td>", spread_text(&self.test)) } else { String::new() };
        format!(
            "<tr class=\"{}\"><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td>{test}<td class=\"dim\">{listed}</td></tr>",
            self.class,
            self.title,
            self.reached,
            spread_text(&self.valid),
        )
    }
}

/// Stages that several seeds reached, as mean and standard deviation; `None` for a run in which seeds play no part.
pub fn table(run: &RunView) -> Option<String> {
    let mut rows: Vec<(StageId, SeedRow)> = Vec::new();
    for (stage, result) in run.finished_stages() {
        let Some(id) = &stage.parsed else { continue };
        // What two stages that differ by seeds only have in common.
        let same = StageId { reinit: None, seed: None, ..id.clone() };
        let index = rows.iter().position(|(other, _)| *other == same).unwrap_or_else(|| {
            // A title carries its seeds behind a comma; the papers' notation has no blank behind its commas.
            let title = stage.title.split(", ").next().unwrap_or_default().to_string();
            rows.push((same, SeedRow::new(title, "")));
            rows.len() - 1
        });
        rows[index].1.add(run, result);
    }
    let seeded =
        run.stages.iter().filter_map(|stage| stage.parsed.as_ref()).any(|id| id.seed.is_some() || id.reinit.is_some());
    if !seeded {
        return None;
    }
    let mut rows: Vec<SeedRow> = rows.into_iter().map(|(_, row)| row).collect();
    if run.seeds().len() > 1 {
        let mut best = SeedRow::new("best stage of each seed".to_string(), "best");
        for seed in run.seeds() {
            if let Some((_, result)) = of_seed(run, seed) {
                best.add(run, result);
            }
        }
        rows.push(best);
    }
    let has_test = rows.iter().any(|row| !row.test.is_empty());
    let test_head = if has_test { format!("<th class=\"n\">test {}</th>", run.criterion.name) } else { String::new() };
    Some(format!(
        "<div class=\"scroll\"><table class=\"seeds\"><caption>Seeds: mean ± standard deviation</caption><thead><tr><th>stage</th>\
         <th class=\"n\">seeds</th><th class=\"n\">validation {}</th>{test_head}<th>validation, one by one</th></tr></thead>\
         <tbody>{}</tbody></table></div>\n",
        run.criterion.name,
        rows.iter().map(|row| row.render(has_test)).collect::<String>(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_spread_of_three_seeds_are_those_of_a_sample() {
        let (mean, spread) = mean_and_spread(&[12.4, 12.6, 12.8]);
        assert!((mean - 12.6).abs() < 1e-12 && (spread.expect("three values") - 0.2).abs() < 1e-12);
        assert_eq!(mean_and_spread(&[3.0]), (3.0, None));
        assert_eq!(spread_text(&[]), "–");
    }
}
