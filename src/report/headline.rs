//! The head of a run (the best stage against joint training, and what kind of run it was), its seeds as mean and spread, and
//! several runs side by side.

use crate::cascade::StageId;
use crate::train::record::StageResult;

use super::html::{count, decimal, escape, score, seconds, whole};
use super::view::{RunView, StageView};

/// The name, the result in large figures, and the facts.
pub fn header(run: &RunView, among_others: bool) -> String {
    let result = &run.data.result;
    let heading = if among_others { "h2" } else { "h1" };
    let (class, state) = match (result.finished, result.stages.len()) {
        (true, _) => ("done", "finished".to_string()),
        (false, 0) => ("open", "no stage finished yet".to_string()),
        (false, 1) => ("open", "unfinished: 1 stage so far".to_string()),
        (false, many) => ("open", format!("unfinished: {many} stages so far")),
    };
    let parameters: u64 = run.groups().iter().map(|group| group.parameters).sum();
    let time: f64 = result.stages.iter().map(|stage| stage.seconds).filter(|seconds| seconds.is_finite()).sum();
    let mut facts = vec![
        ("model", escape(&result.model)),
        ("strategy", escape(&result.strategy)),
        ("device", escape(&result.device)),
        ("layer groups", whole(run.groups().len() as u64)),
        ("parameters", count(parameters)),
        ("stages", whole(result.stages.len() as u64)),
        ("training time", seconds(time)),
    ];
    facts.retain(|(_, fact)| !fact.is_empty());
    let facts: String = facts.iter().map(|(name, fact)| format!("<div><dt>{name}</dt><dd>{fact}</dd></div>")).collect();
    format!(
        "<header class=\"run\">\n<p class=\"path\">{path} <span class=\"state {class}\">{state}</span></p>\n\
         <{heading}>{name}</{heading}>\n{result}\n<dl class=\"facts\">{facts}</dl>\n{seeds}</header>\n",
        path = escape(&run.data.path),
        name = escape(run.name()),
        result = result_line(run),
        seeds = seeds(run).unwrap_or_default(),
    )
}

/// `17.2 % joint -> 15.1 % M(1,1,3), 12.4 % lower`, or why there is no such comparison.
fn result_line(run: &RunView) -> String {
    let criterion = &run.criterion;
    let Some((best, best_result)) = run.best() else {
        let text = match run.stages.is_empty() {
            true => "No epoch has been trained yet.",
            false if run.data.result.stages.is_empty() => {
                "The first stage is still being trained; its curves are below."
            }
            false => "No stage has a finite result.",
        };
        return format!("<p class=\"empty\">{text}</p>");
    };
    let figure = |label: &str, stage: &StageView, result: &StageResult, class: &str| {
        let test = result.test.as_ref().and_then(|test| criterion.of(test));
        let test = test.map_or(String::new(), |value| format!(" · test {}{}", score(value), criterion.unit));
        format!(
            "<div class=\"figure {class}\"><span class=\"label\">{label}</span><b>{}<small>{}</small></b>\
             <span class=\"note\">{}{test}</span></div>",
            score(result.criterion_value),
            criterion.unit,
            stage.title,
        )
    };
    let name = &criterion.name;
    let sentence = match run.baseline() {
        Some((joint, _)) if joint.id == best.id => {
            let figures = figure(&format!("Joint training, validation {name}"), best, best_result, "winner");
            let others = run.finished_stages().filter(|(stage, _)| stage.id != best.id).count();
            let text = match others {
                0 => "Joint training is the only stage so far.".to_string(),
                1 => "The other stage did not improve on joint training.".to_string(),
                others => format!("None of the {others} other stages improved on joint training."),
            };
            format!("{figures}<div class=\"verdict\"><p>{text}</p></div>")
        }
        Some((joint, joint_result)) => {
            let change = gain(joint_result.criterion_value, best_result.criterion_value);
            let on_test = (joint_result.test.as_ref().and_then(|test| criterion.of(test)))
                .zip(best_result.test.as_ref().and_then(|test| criterion.of(test)))
                .and_then(|(joint, best)| gain(joint, best));
            let change = change.map_or("no relative change".to_string(), |gain| relative(gain));
            let on_test = on_test
                .map_or(String::new(), |gain| format!("<span class=\"note\">on test: {}</span>", relative(gain)));
            format!(
                "{}<span class=\"arrow\" aria-hidden=\"true\"></span>{}<div class=\"verdict\"><b>{change}</b>\
                 <span class=\"note\">relative, validation {name}</span>{on_test}</div>",
                figure(&format!("Joint training, validation {name}"), joint, joint_result, ""),
                figure(&format!("Best stage, validation {name}"), best, best_result, "winner"),
            )
        }
        None => {
            let figures = figure(&format!("Best stage, validation {name}"), best, best_result, "winner");
            let from =
                best_result.classifier_from.as_deref().filter(|from| !run.stages.iter().any(|stage| stage.id == *from));
            let text = from.map_or("This run has no joint stage to compare with.".to_string(), |from| {
                format!("This run has no joint stage: its classifier comes from <code>{}</code>.", escape(from))
            });
            format!("{figures}<div class=\"verdict\"><p>{text}</p></div>")
        }
    };
    format!("<div class=\"headline\">{sentence}</div>")
}

/// How much lower the second is, in per cent of the first.
fn gain(joint: f64, best: f64) -> Option<f64> {
    let gain = 100.0 * (joint - best) / joint;
    gain.is_finite().then_some(gain)
}

fn relative(gain: f64) -> String {
    if gain >= 0.0 { format!("{} % lower", decimal(gain, 1)) } else { format!("{} % higher", decimal(-gain, 1)) }
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
fn seeds(run: &RunView) -> Option<String> {
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
            let of_seed = run
                .finished_stages()
                .filter(|(stage, _)| stage.seed() == seed)
                .map(|(_, result)| (result, result.criterion_value));
            if let Some(result) = crate::cascade::best(of_seed) {
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

/// The head of a report of several runs: a column per run, a row per stage.
pub fn side_by_side(runs: &[RunView]) -> String {
    let mut titles: Vec<&str> = Vec::new();
    for (stage, _) in runs.iter().flat_map(RunView::finished_stages) {
        if !titles.contains(&stage.title.as_str()) {
            titles.push(&stage.title);
        }
    }
    let column = |content: &dyn Fn(&RunView) -> String| runs.iter().map(content).collect::<String>();
    let heads: String = runs
        .iter()
        .enumerate()
        .map(|(index, run)| {
            let (name, path) = (escape(run.name()), escape(&run.data.path));
            format!("<th scope=\"col\"><a href=\"#run-{}\">{name}</a><small>{path}</small></th>", index + 1)
        })
        .collect();
    let fact = |name: &str, content: &dyn Fn(&RunView) -> String| {
        format!("<tr><th scope=\"row\">{name}</th>{}</tr>", column(&|run| format!("<td>{}</td>", content(run))))
    };
    let mut rows = fact("model", &|run| escape(&run.data.result.model));
    rows.push_str(&fact("strategy", &|run| escape(&run.data.result.strategy)));
    rows.push_str(&fact("device", &|run| escape(&run.data.result.device)));
    rows.push_str(&fact("judged by", &|run| run.criterion.name.clone()));
    for title in titles {
        rows.push_str(&format!("<tr><th scope=\"row\">{title}</th>{}</tr>", column(&|run| stage_cell(run, title))));
    }
    rows.push_str(&format!(
        "<tr class=\"best\"><th scope=\"row\">best against joint</th>{}</tr>",
        column(&|run| {
            let change = run
                .baseline()
                .zip(run.best())
                .and_then(|((_, joint), (_, best))| gain(joint.criterion_value, best.criterion_value));
            let shown = match (run.best(), change) {
                (None, _) => "–".to_string(),
                (Some((best, _)), Some(change)) if change != 0.0 => {
                    format!("<b>{}</b> <small>{}</small>", relative(change), best.title)
                }
                (Some((best, _)), _) => best.title.clone(),
            };
            format!("<td>{shown}</td>")
        })
    ));
    format!(
        "<header class=\"run\"><h1>{} runs side by side</h1>\n<div class=\"scroll\"><table class=\"runs\"><thead><tr><th></th>{heads}</tr></thead>\
         <tbody>{rows}</tbody></table></div><p class=\"hint\">Validation, and test where there is one. ★ is a run's best stage.</p></header>\n",
        runs.len(),
    )
}

fn stage_cell(run: &RunView, title: &str) -> String {
    let Some((stage, result)) = run.finished_stages().find(|(stage, _)| stage.title == title) else {
        return "<td class=\"dim\">–</td>".to_string();
    };
    let test = result.test.as_ref().and_then(|test| run.criterion.of(test));
    let test = test.map_or(String::new(), |value| format!(" <small>test {}</small>", score(value)));
    let star = if stage.is_best { " ★" } else { "" };
    format!("<td><b>{}</b>{}{star}{test}</td>", score(result.criterion_value), run.criterion.unit)
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

    #[test]
    fn a_gain_is_told_in_per_cent_of_joint_training() {
        assert_eq!(gain(20.0, 15.0).map(relative), Some("25.0 % lower".into()));
        assert_eq!(gain(20.0, 21.0).map(relative), Some("5.0 % higher".into()));
        assert_eq!(gain(0.0, 0.0), None);
        assert_eq!(gain(f64::NAN, 1.0), None);
    }
}
