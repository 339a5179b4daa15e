//! The head of a run: the best stage against joint training, and what kind of run it was.

use std::collections::BTreeSet;

use crate::train::record::StageResult;

use super::html::{count, decimal, escape, score, seconds, whole};
use super::seeds;
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
    let parameters = run.groups().iter().fold(0u64, |sum, group| sum.saturating_add(group.parameters));
    let time: f64 = result.stages.iter().map(|stage| stage.seconds).filter(|seconds| seconds.is_finite()).sum();
    let seeds: BTreeSet<u64> = result.stages.iter().map(|stage| stage.seed).collect();
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let mut facts = vec![
        ("model", escape(&result.model)),
        ("strategy", escape(&result.strategy)),
        ("device", escape(&result.device)),
        ("layer groups", whole(run.groups().len() as u64)),
        ("parameters", count(parameters)),
        ("stages", whole(result.stages.len() as u64)),
        (if seeds.len() == 1 { "seed" } else { "seeds" }, seeds.join(", ")),
        ("training time", seconds(time)),
    ];
    facts.retain(|(_, fact)| !fact.is_empty());
    let facts: String = facts.iter().map(|(name, fact)| format!("<div><dt>{name}</dt><dd>{fact}</dd></div>")).collect();
    format!(
        "<header class=\"run\">\n<p class=\"path\">{path} <span class=\"state {class}\">{state}</span></p>\n\
         <{heading}>{name}</{heading}>\n{result}\n<dl class=\"facts\">{facts}</dl>\n{seeds}</header>\n",
        path = escape(&run.data.path),
        name = escape(run.name()),
        result = seeds::headline(run).unwrap_or_else(|| result_line(run)),
        seeds = seeds::table(run).unwrap_or_default(),
    )
}

/// `17.2 % joint -> 15.1 % M(1,1,3), 12.4 % lower`, or why there is no such comparison.
fn result_line(run: &RunView) -> String {
    let Some(best) = run.best() else {
        let text = match run.stages.is_empty() {
            true => "No epoch has been trained yet.",
            false if run.data.result.stages.is_empty() => {
                "The first stage is still being trained; its curves are below."
            }
            false => "No stage has a finite result.",
        };
        return format!("<p class=\"empty\">{text}</p>");
    };
    let told = |figures: String, text: String| format!("{figures}<div class=\"verdict\"><p>{text}</p></div>");
    let line = match run.baseline() {
        Some((joint, _)) if joint.id == best.0.id => {
            let others = run.finished_stages().filter(|(stage, _)| stage.id != joint.id).count();
            let text = match others {
                0 => "Joint training is the only stage so far.".to_string(),
                1 => "The other stage did not improve on joint training.".to_string(),
                others => format!("None of the {others} other stages improved on joint training."),
            };
            told(figure(run, "Joint training", best, "winner"), text)
        }
        Some(joint) => comparison(run, joint, best),
        None => {
            let outside = |from: &&str| !run.stages.iter().any(|stage| stage.id == *from);
            let text = match best.1.classifier_from.as_deref().filter(outside) {
                None => "This run has no joint stage to compare with.".to_string(),
                Some(from) => {
                    format!("This run has no joint stage: its classifier comes from <code>{}</code>.", escape(from))
                }
            };
            told(figure(run, "Best stage", best, "winner"), text)
        }
    };
    format!("<div class=\"headline\">{line}</div>")
}

/// A finished stage.
type Finished<'a> = (&'a StageView<'a>, &'a StageResult);

/// The best stage against joint training.
fn comparison(run: &RunView, joint: Finished, best: Finished) -> String {
    let test = |(_, result): Finished| result.test.as_ref().and_then(|test| run.criterion.of(test));
    let change = gain(joint.1.criterion_value, best.1.criterion_value);
    let on_test = test(joint).zip(test(best)).and_then(|(joint, best)| gain(joint, best));
    format!(
        "{}<span class=\"arrow\" aria-hidden=\"true\"></span>{}<div class=\"verdict\"><b>{}</b>\
         <span class=\"note\">relative, validation {}</span>{}</div>",
        figure(run, "Joint training", joint, ""),
        figure(run, "Best stage", best, "winner"),
        change.map_or("no relative change".to_string(), relative),
        run.criterion.name,
        on_test.map_or(String::new(), |gain| format!("<span class=\"note\">on test: {}</span>", relative(gain))),
    )
}

fn figure(run: &RunView, label: &str, (stage, result): Finished, class: &str) -> String {
    let criterion = &run.criterion;
    let test = result.test.as_ref().and_then(|test| criterion.of(test));
    let test = test.map_or(String::new(), |value| format!(" · test {}{}", score(value), criterion.unit));
    format!(
        "<div class=\"figure {class}\"><span class=\"label\">{label}, validation {}</span><b>{}<small>{}</small></b>\
         <span class=\"note\">{}{test}</span></div>",
        criterion.name,
        score(result.criterion_value),
        criterion.unit,
        stage.title,
    )
}

/// How much lower the second is, in per cent of the first.
pub fn gain(joint: f64, best: f64) -> Option<f64> {
    let gain = 100.0 * (joint - best) / joint;
    gain.is_finite().then_some(gain)
}

/// `12.4 % lower`
pub fn relative(gain: f64) -> String {
    if gain >= 0.0 { format!("{} % lower", decimal(gain, 1)) } else { format!("{} % higher", decimal(-gain, 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_is_told_in_per_cent_of_joint_training() {
        assert_eq!(gain(20.0, 15.0).map(relative), Some("25.0 % lower".into()));
        assert_eq!(gain(20.0, 21.0).map(relative), Some("5.0 % higher".into()));
        assert_eq!(gain(0.0, 0.0), None);
        assert_eq!(gain(f64::NAN, 1.0), None);
    }
}
