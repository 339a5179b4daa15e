//! Several runs side by side: a column per run, a row per stage.

use crate::train::record::StageResult;
use crate::train::seeds::{self, Group};

use super::headline::{gain, relative};
use super::html::escape;
use super::seeds::{Values, shown};
use super::view::RunView;

/// The head of a report of several runs: a column per run, a row per stage; stages that differ by seeds alone are one.
pub fn section(runs: &[RunView]) -> String {
    let groups: Vec<Vec<Group>> = runs.iter().map(|run| seeds::by_kind(&run.data.result)).collect();
    let mut titles: Vec<&str> = Vec::new();
    for group in groups.iter().flatten() {
        if !titles.contains(&group.title.as_str()) {
            titles.push(&group.title);
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
        let cells = runs.iter().zip(&groups).map(|(run, groups)| {
            stage_cell(run, groups.iter().find(|group| group.title == title).map_or(&[], |group| &group.stages))
        });
        rows.push_str(&format!("<tr><th scope=\"row\">{}</th>{}</tr>", escape(title), cells.collect::<String>()));
    }
    rows.push_str(&format!(
        "<tr class=\"best\"><th scope=\"row\">best against joint</th>{}</tr>",
        column(&|run| format!("<td>{}</td>", best_against_joint(run)))
    ));
    format!(
        "<header class=\"run\"><h1>{} runs side by side</h1>\n<div class=\"scroll\"><table class=\"runs\"><thead><tr><th></th>{heads}</tr></thead>\
         <tbody>{rows}</tbody></table></div><p class=\"hint\">Validation, and test where there is one. ★ is a run's best stage.</p></header>\n",
        runs.len(),
    )
}

/// Of the run's best stage against joint training of the same seed; of several seeds, of their means.
fn best_against_joint(run: &RunView) -> String {
    let Some((best, best_result)) = run.best() else { return "–".to_string() };
    let joint: Vec<&StageResult> =
        run.seeds().into_iter().filter_map(|seed| run.baseline_of(seed)).map(|(_, joint)| joint).collect();
    let bests = seeds::bests(&run.data.result);
    let mean = |stages: &[&StageResult]| Values::of(run, stages).valid.map(|valid| valid.mean);
    let (joint, after, title) = match bests.stages.len() {
        0 | 1 => (
            run.baseline().map(|(_, joint)| joint.criterion_value),
            Some(best_result.criterion_value),
            best.title.clone(),
        ),
        _ => (mean(&joint), mean(&bests.stages), escape(&bests.title)),
    };
    match joint.zip(after).and_then(|(joint, after)| gain(joint, after)) {
        Some(change) if change != 0.0 => format!("<b>{}</b> <small>{title}</small>", relative(change)),
        _ => title,
    }
}

fn stage_cell(run: &RunView, stages: &[&StageResult]) -> String {
    if stages.is_empty() {
        return "<td class=\"dim\">–</td>".to_string();
    }
    let Values { valid, test } = Values::of(run, stages);
    let valid =
        valid.map_or("not finite".to_string(), |valid| format!("<b>{}</b>{}", shown(Some(valid)), run.criterion.unit));
    let test = test.map_or(String::new(), |test| format!(" <small>test {}</small>", shown(Some(test))));
    let is_best = stages.iter().any(|stage| run.best().is_some_and(|(best, _)| best.id == stage.stage));
    let star = if is_best { " ★" } else { "" };
    format!("<td>{valid}{star}{test}</td>")
}
