//! Several seeds of one run, as mean and spread.

use crate::train::record::StageResult;
use crate::train::seeds::{self, Group, Spread};

use super::headline::{gain, relative};
use super::html::{escape, score};
use super::view::RunView;

/// The head of a run of several seeds: each seed's joint stage, if there is one, and each seed's best. `None` for a run of one seed, or
/// while a seed has no finite result yet.
pub fn headline(run: &RunView) -> Option<String> {
    let seeds = run.seeds();
    let bests = seeds::bests(&run.data.result).stages;
    if bests.len() < 2 || bests.len() < seeds.len() {
        return None;
    }
    let joint: Vec<&StageResult> =
        seeds.iter().filter_map(|seed| run.baseline_of(*seed)).map(|(_, result)| result).collect();
    let figure = |label: &str, stages: &[&StageResult], class: &str| {
        let Values { valid, test } = Values::of(run, stages);
        let deviation = valid.and_then(|valid| valid.deviation);
        let deviation =
            deviation.map_or(String::new(), |value| format!("<small class=\"spread\">± {}</small>", score(value)));
        let test = test.map_or(String::new(), |test| format!(" · test {}{}", shown(Some(test)), run.criterion.unit));
        format!(
            "<div class=\"figure {class}\"><span class=\"label\">{label}, validation {}</span><b>{}<small>{}</small>{deviation}</b>\
             <span class=\"note\">mean of {} seeds{test}</span></div>",
            run.criterion.name,
            valid.map_or("–".to_string(), |valid| score(valid.mean)),
            run.criterion.unit,
            stages.len(),
        )
    };
    let best_figure = figure("Best stage of each seed", &bests, "winner");
    if joint.len() < seeds.len() {
        return Some(format!("<div class=\"headline\">{best_figure}</div>"));
    }
    let (before, after) = (Values::of(run, &joint), Values::of(run, &bests));
    let mean_gain = |before: Option<Spread>, after: Option<Spread>| gain(before?.mean, after?.mean).map(relative);
    let change = mean_gain(before.valid, after.valid).unwrap_or("no relative change".to_string());
    let test = mean_gain(before.test, after.test);
    let test = test.map_or(String::new(), |change| format!("<span class=\"note\">on test: {change}</span>"));
    Some(format!(
        "<div class=\"headline\">{}<span class=\"arrow\" aria-hidden=\"true\"></span>{best_figure}<div class=\"verdict\"><b>{change}</b>\
         <span class=\"note\">relative, means of {} seeds</span>{test}</div></div>",
        figure("Joint training", &joint, ""),
        seeds.len(),
    ))
}

/// What several stages have of the run's criterion.
pub struct Values {
    pub valid: Option<Spread>,
    pub test: Option<Spread>,
}

impl Values {
    pub fn of(run: &RunView, stages: &[&StageResult]) -> Self {
        let test = |stage: &&StageResult| stage.test.as_ref().and_then(|test| run.criterion.of(test));
        Values {
            valid: Spread::over(stages.iter().map(|stage| stage.criterion_value)),
            test: Spread::over(stages.iter().filter_map(test)),
        }
    }
}

/// `17.30 ± 0.56`, the spread in small print.
pub fn shown(spread: Option<Spread>) -> String {
    let Some(Spread { mean, deviation, not_finite }) = spread else { return "–".to_string() };
    let deviation = deviation.map_or(String::new(), |deviation| format!(" <small>± {}</small>", score(deviation)));
    let lost = match not_finite {
        0 => String::new(),
        number => format!(" <small>{number} not finite</small>"),
    };
    format!("{}{deviation}{lost}", score(mean))
}

/// Stages that several seeds reached, as mean and standard deviation; `None` for a run in which seeds play no part.
pub fn table(run: &RunView) -> Option<String> {
    let groups = seeds::groups(&run.data.result);
    if groups.is_empty() {
        return None;
    }
    let has_test = groups.iter().any(|group| Values::of(run, &group.stages).test.is_some());
    let test_head = if has_test { format!("<th class=\"n\">test {}</th>", run.criterion.name) } else { String::new() };
    let bests = seeds::bests(&run.data.result);
    let rows: String =
        groups.iter().map(|group| row(run, group, has_test, if *group == bests { "best" } else { "" })).collect();
    Some(format!(
        "<div class=\"scroll\"><table class=\"seeds\"><caption>Seeds: mean ± standard deviation</caption><thead><tr><th>stage</th>\
         <th class=\"n\">seeds</th><th class=\"n\">validation {}</th>{test_head}<th>validation, one by one</th></tr></thead>\
         <tbody>{rows}</tbody></table></div>\n",
        run.criterion.name,
    ))
}

fn row(run: &RunView, group: &Group, has_test: bool, class: &str) -> String {
    let Values { valid, test } = Values::of(run, &group.stages);
    let listed: Vec<String> = group.stages.iter().map(|stage| score(stage.criterion_value)).collect();
    format!(
        "<tr class=\"{class}\"><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td>{}<td class=\"dim\">{}</td></tr>",
        escape(&group.title),
        group.stages.len(),
        shown(valid),
        if has_test { format!("<td class=\"n\">{}</td>", shown(test)) } else { String::new() },
        listed.join(", "),
    )
}
