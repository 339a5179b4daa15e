//! All stages in numbers, and how far each layer moved.

use crate::train::record::{Scores, StageResult};

use super::curves::line_sample;
use super::html::{bytes, decimal, escape, score, seconds, whole};
use super::view::{RunView, StageView};

/// A column of scores, shown if any stage has it.
struct Column {
    head: &'static str,
    of: fn(&Scores) -> Option<f64>,
}

const COLUMNS: [Column; 4] = [
    Column { head: "loss", of: |scores| Some(scores.loss) },
    Column { head: "CER", of: |scores| scores.cer },
    Column { head: "WER", of: |scores| scores.wer },
    Column { head: "perplexity", of: |scores| scores.perplexity },
];

/// The columns of one data set: those that any stage has a score for. The test loss gives way to what it stands for.
fn columns(run: &RunView, of: &dyn Fn(&StageResult) -> Option<&Scores>) -> Vec<&'static Column> {
    let has = |column: &&Column| {
        run.finished_stages().any(|(_, result)| of(result).is_some_and(|scores| (column.of)(scores).is_some()))
    };
    COLUMNS.iter().filter(has).collect()
}

/// `None` for a run without stages.
pub fn stages(run: &RunView) -> Option<String> {
    if run.stages.is_empty() {
        return None;
    }
    let valid = columns(run, &|result| Some(&result.valid));
    let mut test = columns(run, &|result| result.test.as_ref());
    if test.len() > 1 {
        test.retain(|column| column.head != "loss");
    }
    let heads = |columns: &[&Column]| -> String {
        columns.iter().map(|column| format!("<th class=\"n\">{}</th>", column.head)).collect()
    };
    let over = |columns: &[&Column], name: &str| match columns.len() {
        0 => String::new(),
        number => format!("<th class=\"over\" colspan=\"{number}\">{name}</th>"),
    };
    let rows: String = run.stages.iter().map(|stage| stage_row(run, stage, &valid, &test)).collect();
    Some(format!(
        "<div class=\"scroll\"><table class=\"stages\"><thead><tr><th></th><td colspan=\"{}\"></td>{}{}<td></td>\
         <th class=\"over\" colspan=\"2\">peak memory</th></tr>\
         <tr><th>stage</th><th></th><th>frozen</th>{}<th class=\"n\">epochs</th>\
         <th class=\"n\">best</th>{}{}<th class=\"n\">time</th><th class=\"n\">device</th><th class=\"n\">process</th></tr></thead>\n\
         <tbody>{rows}</tbody></table></div>\n\
         <p class=\"hint\">best: the epoch with the lowest validation loss{}. Memory: the most that the stage \
         held on its device at one instant, and the most that the whole program had held by then.</p>\n",
        4 + usize::from(seeds_differ(run)),
        over(&valid, "validation"),
        over(&test, "test"),
        if seeds_differ(run) { "<th class=\"n\">seed</th>" } else { "" },
        heads(&valid),
        heads(&test),
        kept_weights(run),
    ))
}

/// Which weights the scores are of, after the words about the best epoch.
fn kept_weights(run: &RunView) -> String {
    match run.averaged_epochs() {
        None => ", whose weights were kept".into(),
        Some(epochs) => {
            format!("; the weights that were kept, and scored, are the average of the last {epochs} epochs")
        }
    }
}

/// One seed for all stages needs no column; the head of the report names it.
fn seeds_differ(run: &RunView) -> bool {
    let mut seeds = run.finished_stages().map(|(_, result)| result.seed);
    let first = seeds.next();
    seeds.any(|seed| Some(seed) != first)
}

fn stage_row(run: &RunView, stage: &StageView, valid: &[&Column], test: &[&Column]) -> String {
    let verdict = stage.verdict(run.data.result.finished);
    let head = format!(
        "<tr class=\"{}\"><th scope=\"row\">{}{}</th><td>{}</td>",
        verdict.shown().0,
        line_sample(stage),
        stage.title,
        verdict.badge(),
    );
    let number = |text: String| format!("<td class=\"n\">{text}</td>");
    let Some(result) = stage.result else {
        let epochs = stage.epochs.iter().map(|epoch| epoch.epoch).max().unwrap_or(0);
        let best = stage.epochs.iter().filter(|epoch| epoch.best).map(|epoch| epoch.epoch).next_back();
        let empty = "<td class=\"n dim\">–</td>".repeat(valid.len() + test.len() + 3);
        let best = best.map_or("–".to_string(), |best| best.to_string());
        return format!(
            "{head}<td class=\"dim\">–</td>{}{}{}{empty}</tr>\n",
            if seeds_differ(run) { number("–".to_string()) } else { String::new() },
            number(epochs.to_string()),
            number(best)
        );
    };
    let scores = |columns: &[&Column], scores: Option<&Scores>| -> String {
        columns.iter().map(|column| number(scores.and_then(column.of).map_or("–".to_string(), score))).collect()
    };
    format!(
        "{head}<td class=\"frozen\">{}</td>{}{}{}{}{}{}{}{}</tr>\n",
        frozen(run, result),
        if seeds_differ(run) { number(result.seed.to_string()) } else { String::new() },
        number(result.epochs.to_string()),
        number(result.best_epoch.to_string()),
        scores(valid, Some(&result.valid)),
        scores(test, result.test.as_ref()),
        number(seconds(result.seconds)),
        number(bytes(result.memory.peak)),
        number(bytes(result.memory.process_peak)),
    )
}

/// `softmax, blstm-4`: from the top, and of many the ends.
fn frozen(run: &RunView, result: &StageResult) -> String {
    let groups = run.groups();
    if result.frozen_groups.is_empty() {
        return "<span class=\"dim\">nothing</span>".to_string();
    }
    let mut indices = result.frozen_groups.clone();
    indices.sort_unstable_by(|one, other| other.cmp(one));
    let names: Vec<String> = indices
        .iter()
        .map(|index| groups.get(*index).map_or_else(|| format!("group {index}"), |group| escape(&group.name)))
        .collect();
    match names.as_slice() {
        [first, .., last] if names.len() > 3 => format!("{} groups: {first} to {last}", names.len()),
        few => few.join(", "),
    }
}

/// ICLR 2020, Table 1: per layer the sum of |change| of its parameters from the end of epoch 1 to the best epoch, the top layer
/// first. `None` if no stage has it.
pub fn movement(run: &RunView) -> Option<String> {
    let mut layers: Vec<&str> = Vec::new();
    for layer in run.finished_stages().flat_map(|(_, result)| &result.movement) {
        if !layers.contains(&layer.layer.as_str()) {
            layers.push(&layer.layer);
        }
    }
    if layers.is_empty() {
        return None;
    }
    // The joint stage, which moves every layer, comes first and lists them bottom to top.
    layers.reverse();
    let moved = |result: &StageResult, layer: &str| {
        result.movement.iter().find(|movement| movement.layer == layer).map(|movement| movement.sum_absolute_change)
    };
    // What all names begin with says nothing and makes the table too wide for the page.
    let short = |layer: &&str| escape(layer.strip_prefix("encoder.").unwrap_or(layer));
    let heads: String = layers.iter().map(|layer| format!("<th class=\"n\">{}</th>", short(layer))).collect();
    let mut rows = String::new();
    for (stage, result) in run.finished_stages() {
        // Against joint training of the same seed.
        let joint = run.baseline_of(stage.seed());
        let cells: String = layers
            .iter()
            .map(|layer| match moved(result, layer) {
                None => "<td class=\"n dim\">–</td>".to_string(),
                Some(change) => {
                    let before =
                        joint.filter(|(other, _)| other.id != stage.id).and_then(|(_, joint)| moved(joint, layer));
                    let ratio = before.map(|before| change / before).filter(|ratio| ratio.is_finite());
                    let ratio = ratio.map_or(String::new(), |ratio| format!("<small>×{}</small>", decimal(ratio, 2)));
                    format!("<td class=\"n\">{}{ratio}</td>", distance(change))
                }
            })
            .collect();
        rows.push_str(&format!("<tr><th scope=\"row\">{}{}</th>{cells}</tr>\n", line_sample(stage), stage.title));
    }
    let end = if run.averaged_epochs().is_some() { "the average that was kept" } else { "the best epoch" };
    Some(format!(
        "<p class=\"hint\">Sum of |change| of all parameters of a layer, from the end of epoch 1 to {end}; × against joint \
         training. A frozen layer does not move.</p>\n<div class=\"scroll\"><table class=\"movement\"><thead><tr><th>stage</th>{heads}</tr></thead>\
         <tbody>{rows}</tbody></table></div>\n"
    ))
}

fn distance(value: f64) -> String {
    match value {
        large if (100.0..1e15).contains(&large) => whole(large.round() as u64),
        other => score(other),
    }
}
