//! The report: one self-contained HTML file about one run or several, side by side. It needs no script, no network and no fonts;
//! it follows the reader's light or dark theme and fits a phone.
//!
//! | file | draws |
//! |---|---|
//! | `view.rs` | nothing: works out from the records what there is to show |
//! | `headline.rs` | the best stage against joint training, and what kind of run it was |
//! | `seeds.rs` | several seeds of a run as mean and spread |
//! | `side_by_side.rs` | several runs, a column each |
//! | `picture.rs` | the cascade: a column per stage, its groups as boxes |
//! | `curves.rs` | loss and error rates, epoch by epoch |
//! | `bars.rs` | error, time and memory per stage |
//! | `tables.rs` | all stages in numbers, and how far each layer moved |
//! | `transcripts.rs` | decoded samples with their errors marked |
//! | `html.rs` | escaping and number formats |
//!
//! Everything that comes from a record passes [`html::escape`] on its way into the page.

mod bars;
mod curves;
mod headline;
mod html;
mod picture;
mod seeds;
mod side_by_side;
mod tables;
mod transcripts;
mod view;

use crate::train::record::{EpochRecord, RunResult};
use html::escape;
use view::RunView;

/// What the report reads of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunData {
    pub result: RunResult,
    /// The lines of `log.jsonl`, of finished stages and of the one that is being trained.
    pub epochs: Vec<EpochRecord>,
    /// The run's folder, as the user wrote it.
    pub path: String,
}

const STYLE: &str = include_str!("style.css");

/// The whole file. Any records make a page: an empty run, an unfinished one, losses that are not finite.
pub fn render(runs: &[RunData]) -> String {
    let views: Vec<RunView> = runs.iter().map(RunView::new).collect();
    let title = match views.as_slice() {
        [] => "Headfirst report".to_string(),
        [run] => format!("{} · Headfirst", escape(run.name())),
        many => format!("{} runs · Headfirst", many.len()),
    };
    let mut body = String::new();
    if views.is_empty() {
        body.push_str(
            "<header class=\"run\"><h1>Headfirst report</h1><p class=\"empty\">There is no run to report.</p></header>",
        );
    }
    if views.len() > 1 {
        body.push_str(&side_by_side::section(&views));
    }
    for (index, run) in views.iter().enumerate() {
        body.push_str(&render_run(run, index, views.len() > 1));
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         {svg_definitions}\n<main>\n{body}</main>\n{FOOTER}\n</body>\n</html>\n",
        svg_definitions = picture::DEFINITIONS,
    )
}

fn render_run(run: &RunView, index: usize, among_others: bool) -> String {
    let sections = [
        ("The cascade", picture::section(run)),
        ("Learning curves", curves::section(run)),
        ("What each stage cost and gave", bars::section(run)),
        ("All stages in numbers", tables::stages(run)),
        ("How far the layers moved", tables::movement(run)),
        ("Transcripts", transcripts::section(run)),
    ];
    let heading = if among_others { "h3" } else { "h2" };
    let mut page = format!("<article id=\"run-{}\">\n{}", index + 1, headline::header(run, among_others));
    for (title, content) in sections {
        if let Some(content) = content {
            page.push_str(&format!("<section>\n<{heading}>{title}</{heading}>\n{content}</section>\n"));
        }
    }
    page.push_str("</article>\n");
    page
}

const FOOTER: &str = "<footer><p>Written by Headfirst. A stage is one training: <b>frozen</b> groups keep the weights of the stage that \
    they come from, the others are initialised anew and trained. M(1,1,3) means: train all jointly; freeze the top group and retrain; \
    freeze the next group too, as just retrained, and retrain the lowest three. Loss is the mean of -ln p; CER and WER are edits \
    in per cent of the reference.</p></footer>";

#[cfg(test)]
mod tests;
