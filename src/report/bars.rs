//! A bar per stage for error, time and memory.

use crate::train::record::{MemoryRecord, StageResult};

use super::html::{bytes, score, seconds, width};
use super::view::{RunView, StageView};

/// A part of a stage's memory: its class in `style.css`, its name, its bytes.
type Part = (&'static str, &'static str, fn(&MemoryRecord) -> u64);

/// In the order in which they are stacked.
const PARTS: [Part; 5] = [
    ("m0", "parameters", |memory| memory.parameters),
    ("m1", "gradients", |memory| memory.gradients),
    ("m2", "optimiser state", |memory| memory.optimizer_state),
    ("m3", "kept activations", |memory| memory.kept_activations),
    ("m4", "temporary", |memory| memory.peak.saturating_sub(held(memory))),
];

/// What is on the device between forward and backward.
fn held(memory: &MemoryRecord) -> u64 {
    let parts = [memory.parameters, memory.gradients, memory.optimizer_state, memory.kept_activations];
    parts.into_iter().fold(0, u64::saturating_add)
}

/// `None` for a run without finished stages.
pub fn section(run: &RunView) -> Option<String> {
    let stages: Vec<_> = run.finished_stages().collect();
    if stages.is_empty() {
        return None;
    }
    Some(format!("<div class=\"panels\">\n{}{}{}</div>\n", errors(run, &stages), times(&stages), memory(&stages)))
}

type Finished<'a> = [(&'a StageView<'a>, &'a StageResult)];

/// One row: the stage's name, its bars, what they say.
fn row(stage: &StageView, bars: &str, text: &str) -> String {
    let star = if stage.is_best { " <span aria-label=\"best\">★</span>" } else { "" };
    format!(
        "<div class=\"bar-row\"><div class=\"bar-head\"><span>{}{star}</span><span class=\"n\">{text}</span></div><div class=\"track\">{bars}</div></div>\n",
        stage.title
    )
}

fn errors(run: &RunView, stages: &Finished) -> String {
    let (name, unit) = (&run.criterion.name, run.criterion.unit);
    let test_of = |result: &StageResult| result.test.as_ref().and_then(|test| run.criterion.of(test));
    let all = stages.iter().flat_map(|(_, result)| [Some(result.criterion_value), test_of(result)]).flatten();
    let full = all.filter(|value| value.is_finite()).fold(0.0, f64::max);
    let has_test = stages.iter().any(|(_, result)| test_of(result).is_some());
    let (mut rows, mut has_mark) = (String::new(), false);
    for (stage, result) in stages {
        let bar = |class: &str, value: f64| {
            format!("<i class=\"bar {class}{}\" style=\"width:{}\"></i>", stage.colour, width(value, full))
        };
        let mut bars = bar("", result.criterion_value);
        let mut text = format!("<b>{}</b>{unit}", score(result.criterion_value));
        if let Some(test) = test_of(result) {
            bars.push_str(&bar("thin ", test));
            text.push_str(&format!(" <small>test {}</small>", score(test)));
        }
        let joint = run.baseline_of(stage.seed()).map(|(_, joint)| joint.criterion_value);
        if let Some(joint) = joint.filter(|value| value.is_finite()) {
            bars.push_str(&format!("<i class=\"mark\" style=\"left:{}\"></i>", width(joint, full)));
            has_mark = true;
        }
        rows.push_str(&row(stage, &bars, &text));
    }
    let mut legend = String::new();
    if has_test {
        legend.push_str("<span><i class=\"key\"></i>validation</span><span><i class=\"key thin\"></i>test</span>");
    }
    if has_mark {
        legend.push_str("<span><i class=\"key mark\"></i>joint training</span>");
    }
    let of = if has_test { "" } else { ", validation" };
    format!(
        "<div class=\"panel\"><h4>Error <small>{name}{of}</small></h4>\n{rows}<p class=\"legend small\">{legend}</p></div>\n"
    )
}

fn times(stages: &Finished) -> String {
    let full = stages.iter().map(|(_, result)| result.seconds).filter(|value| value.is_finite()).fold(0.0, f64::max);
    let mut rows = String::new();
    for (stage, result) in stages {
        let bar = format!("<i class=\"bar {}\" style=\"width:{}\"></i>", stage.colour, width(result.seconds, full));
        let each = if result.epochs > 0 { seconds(result.seconds / result.epochs as f64) } else { "–".to_string() };
        let epochs =
            if result.epochs == 1 { "1 epoch".to_string() } else { format!("{} epochs of {each}", result.epochs) };
        rows.push_str(&row(stage, &bar, &format!("<b>{}</b> <small>{epochs}</small>", seconds(result.seconds))));
    }
    format!("<div class=\"panel\"><h4>Time <small>training and validation</small></h4>\n{rows}</div>\n")
}

fn memory(stages: &Finished) -> String {
    let total = |memory: &MemoryRecord| held(memory).max(memory.peak);
    let full = stages.iter().map(|(_, result)| total(&result.memory)).max().unwrap_or(0) as f64;
    let mut rows = String::new();
    for (stage, result) in stages {
        let bars: String = PARTS
            .iter()
            .map(|(class, name, of)| {
                let value = of(&result.memory);
                format!(
                    "<i class=\"part {class}\" style=\"width:{}\" title=\"{name}: {}\"></i>",
                    width(value as f64, full),
                    bytes(value)
                )
            })
            .collect();
        rows.push_str(&row(stage, &bars, &format!("<b>{}</b>", bytes(total(&result.memory)))));
    }
    let legend: String =
        PARTS.iter().map(|(class, name, _)| format!("<span><i class=\"part {class}\"></i>{name}</span>")).collect();
    format!(
        "<div class=\"panel\"><h4>Memory <small>at its peak, for the largest batch</small></h4>\n{rows}<p class=\"legend small\">{legend}</p></div>\n"
    )
}
