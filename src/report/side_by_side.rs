//! Several runs side by side: a column per run, a row per stage.

use super::headline::{gain, relative};
use super::html::{escape, score};
use super::view::RunView;

/// The head of a report of several runs: a column per run, a row per stage.
pub fn section(runs: &[RunView]) -> String {
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
