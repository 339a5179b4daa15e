//! The cascade as a picture: a column per stage in the order of training, the layer groups as boxes from the input at the bottom
//! to the output at the top. Frozen boxes are hatched and carry a snowflake; an arrow leads to them from the stage whose weights
//! they have. A run with several seeds has a picture for each.

use crate::train::record::StageResult;

use super::html::{count, escape, score};
use super::view::{RunView, StageView, Verdict};

/// All lengths are CSS pixels at the picture's natural size.
const BOX_WIDTH: usize = 100;
const BOX_HEIGHT: usize = 32;
const BOX_GAP: usize = 7;
const COLUMN_GAP: usize = 40;
/// Of a card.
const CARD_WIDTH: usize = 112;
const CARD_BOX_HEIGHT: usize = 22;
/// Left of the first column: the words "output" and "input".
const GUTTER: usize = 56;
/// Title and result above the boxes.
const HEAD: usize = 45;
/// A line more, where stages have variants.
const VARIANT: usize = 14;
/// The verdict below them.
const FOOT: usize = 34;
/// Of more stages than these, arrows would be a tangle: each stage is a card that says where its frozen groups come from.
const MANY: usize = 8;
/// Characters that fit a box beside the snowflake.
const NAME_LENGTH: usize = 11;
const TITLE_LENGTH: usize = 16;

/// What the pictures refer to: the hatching of frozen boxes, the snowflake, the arrow's head.
pub const DEFINITIONS: &str = r##"<svg class="definitions" width="0" height="0" aria-hidden="true"><defs>
<pattern id="ice" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="ice-ground" width="7" height="7"/><rect class="ice-stripe" width="2" height="7"/></pattern>
<symbol id="flake" viewBox="-8 -8 16 16"><g class="flake"><path d="M0-7V7M-6.1-3.5 6.1 3.5M-6.1 3.5 6.1-3.5"/><path d="M-2-6 0-4 2-6M-2 6 0 4 2 6M4.2-4.7 3.5-2 6.2-1.3M-4.2 4.7-3.5 2-6.2 1.3M-4.2-4.7-3.5-2-6.2-1.3M4.2 4.7 3.5 2 6.2 1.3"/></g></symbol>
<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path class="arrow-head" d="M0 0 8 4 0 8z"/></marker>
</defs></svg>"##;

/// `None` for a run without stages or groups.
pub fn section(run: &RunView) -> Option<String> {
    if run.groups().is_empty() || run.finished_stages().next().is_none() {
        return None;
    }
    let seeds = run.seeds();
    let of_seed =
        |seed: &Option<u64>| run.finished_stages().filter(|(stage, _)| stage.seed() == *seed).collect::<Vec<_>>();
    let cards = seeds.iter().any(|seed| of_seed(seed).len() > MANY);
    let nothing_frozen = run.finished_stages().all(|(_, result)| result.frozen_groups.is_empty());
    let arrow = if cards || nothing_frozen {
        ""
    } else {
        "<span><i class=\"line arrow\"></i>where the frozen weights come from</span>"
    };
    let mut html = format!(
        "<p class=\"legend\"><span><i class=\"box trained\"></i>initialised anew and trained</span>\
         <span><i class=\"box frozen\"><svg class=\"flake-icon\"><use href=\"#flake\"/></svg></i>frozen</span>{arrow}</p>\n"
    );
    let pictures = seeds.iter().filter_map(|seed| {
        let stages = of_seed(seed);
        let picture = match stages.is_empty() {
            true => return None,
            false if cards => stages.iter().map(|(stage, result)| card(run, stage, result)).collect::<String>(),
            false => draw(run, &stages),
        };
        let picture = format!("<div class=\"{}\">{picture}</div>\n", if cards { "cards" } else { "scroll" });
        match seed {
            Some(seed) if seeds.len() > 1 => Some(format!("<div><h4>Seed {seed}</h4>{picture}</div>\n")),
            _ => Some(picture),
        }
    });
    let pictures: String = pictures.collect();
    html.push_str(&if seeds.len() > 1 && !cards {
        format!("<div class=\"pictures\">{pictures}</div>\n")
    } else {
        pictures
    });
    let external = external_sources(run);
    if !external.is_empty() {
        html.push_str(&format!("<p class=\"hint\">From outside this run: {}.</p>\n", external.join("; ")));
    }
    Some(html)
}

/// Stages whose classifier is not of this run.
fn external_sources(run: &RunView) -> Vec<String> {
    let outside = |from: &&str| !run.stages.iter().any(|stage| stage.id == *from);
    run.finished_stages()
        .filter_map(|(stage, result)| {
            let from = result.classifier_from.as_deref().filter(outside)?;
            Some(format!("the frozen groups of {} are those of <code>{}</code>", stage.title, escape(from)))
        })
        .collect()
}

/// A stage alone, with the name of its source in words.
fn card(run: &RunView, stage: &StageView, result: &StageResult) -> String {
    let groups = run.groups().len();
    let (pitch, top, width) = (CARD_BOX_HEIGHT + 3, HEAD + VARIANT, CARD_WIDTH);
    let bottom = top + groups * pitch - 3;
    let height = bottom + FOOT;
    let (class, ..) = stage.verdict(true).shown();
    let mut svg = format!(
        "<svg class=\"picture\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"{}\"><g class=\"column {class}\">\n",
        stage.title
    );
    let source = result.classifier_from.as_deref().map(|from| {
        let other = run.stages.iter().find(|other| other.id == from);
        other.map_or("another run", |other| other.title.split(", ").next().unwrap_or_default())
    });
    let source = source.map(|title| format!("from {}", shorten(title, TITLE_LENGTH)));
    let note: Vec<String> =
        [variant(stage), source.unwrap_or_default()].into_iter().filter(|text| !text.is_empty()).collect();
    svg.push_str(&head(run, stage, result, &note.join(", "), width / 2, 0));
    for (group, record) in run.groups().iter().enumerate() {
        let frozen = result.frozen_groups.contains(&group);
        let place = Place { x: 1, y: top + (groups - 1 - group) * pitch, width: width - 2, height: CARD_BOX_HEIGHT };
        svg.push_str(&group_box(&record.name, record.parameters, frozen, place));
    }
    svg.push_str(&foot(stage.verdict(true), width / 2, bottom));
    svg.push_str("</g></svg>\n");
    svg
}

fn column_x(index: usize) -> usize {
    GUTTER + index * (BOX_WIDTH + COLUMN_GAP)
}

fn draw(run: &RunView, stages: &[(&StageView, &StageResult)]) -> String {
    let groups = run.groups().len();
    let source_of = |result: &StageResult| {
        result.classifier_from.as_deref().and_then(|from| stages.iter().position(|(stage, _)| stage.id == from))
    };
    let spans: Vec<usize> = stages
        .iter()
        .enumerate()
        .filter_map(|(at, (_, result))| source_of(result).map(|from| at.abs_diff(from)))
        .collect();
    let arcs = match spans.iter().max() {
        Some(longest) if *longest > 1 => arc_height(*longest) + 4,
        _ => 0,
    };
    let variants = stages.iter().any(|(stage, _)| !variant(stage).is_empty());
    let top = arcs + HEAD + if variants { VARIANT } else { 0 };
    let box_y = |group: usize| top + (groups - 1 - group) * (BOX_HEIGHT + BOX_GAP);
    let bottom = top + groups * (BOX_HEIGHT + BOX_GAP) - BOX_GAP;
    let (width, height) = (column_x(stages.len()) - COLUMN_GAP + 2, bottom + FOOT);

    let mut svg = format!(
        "<svg class=\"picture\" viewBox=\"0 0 {width} {height}\" style=\"min-width:{width}px;max-width:{}px\" role=\"img\" \
         aria-label=\"The cascade of {} stages\">\n",
        width + width / 2,
        stages.len(),
    );
    svg.push_str(&gutter(top, bottom));
    for (index, (stage, result)) in stages.iter().enumerate() {
        let x = column_x(index);
        svg.push_str(&format!("<g class=\"column {}\">\n", stage.verdict(true).shown().0));
        svg.push_str(&head(run, stage, result, &variant(stage), x + BOX_WIDTH / 2, arcs));
        for (group, record) in run.groups().iter().enumerate() {
            let frozen = result.frozen_groups.contains(&group);
            let place = Place { x, y: box_y(group), width: BOX_WIDTH, height: BOX_HEIGHT };
            svg.push_str(&group_box(&record.name, record.parameters, frozen, place));
        }
        svg.push_str(&foot(stage.verdict(true), x + BOX_WIDTH / 2, bottom));
        svg.push_str("</g>\n");
        let frozen = result.frozen_groups.iter().filter(|group| **group < groups);
        let middles = frozen.map(|group| box_y(*group) + BOX_HEIGHT / 2);
        svg.push_str(&arrows(source_of(result), index, arcs, middles));
    }
    svg.push_str("</svg>");
    svg
}

/// From column `source` to the frozen boxes of column `column`, whose middles are at these heights: one arc over the columns between, or
/// an arrow into each box from the column before or from outside the run.
fn arrows(source: Option<usize>, column: usize, arcs: usize, middles: impl Iterator<Item = usize>) -> String {
    let centre = |column: usize| column_x(column) + BOX_WIDTH / 2;
    if let Some(source) = source.filter(|source| source.abs_diff(column) > 1) {
        return arc(centre(source), centre(column), arcs, arc_height(source.abs_diff(column)));
    }
    let (class, length) = if source.is_some() { ("arrow", COLUMN_GAP - 3) } else { ("arrow outside", 20) };
    let (from, to) = (column_x(column) - length - 1, column_x(column) - 2);
    let arrow = |y: usize| format!("<path class=\"{class}\" marker-end=\"url(#head)\" d=\"M{from} {y}H{to}\"/>\n");
    middles.map(arrow).collect()
}

fn arc_height(span: usize) -> usize {
    (12 + 9 * span).min(90)
}

/// Over the columns between, from the head of one to the head of another.
fn arc(from: usize, to: usize, base: usize, height: usize) -> String {
    // A cubic curve rises to three quarters of its control points.
    let (base, lift) = (base + 2, base as i64 - (height * 4 / 3) as i64);
    format!(
        "<path class=\"arrow\" marker-end=\"url(#head)\" d=\"M{from} {base}C{from} {lift} {to} {lift} {to} {base}\"/>\n"
    )
}

/// Which end is up.
fn gutter(top: usize, bottom: usize) -> String {
    let (x, upper, lower) = (GUTTER - 34, top + 20, bottom - 10);
    format!(
        "<text class=\"side\" x=\"0\" y=\"{upper}\">output</text><text class=\"side\" x=\"0\" y=\"{lower}\">input</text>\
         <path class=\"side\" marker-end=\"url(#head)\" d=\"M{x} {}V{}\"/>\n",
        lower.saturating_sub(16),
        upper + 8,
    )
}

fn head(run: &RunView, stage: &StageView, result: &StageResult, note: &str, centre: usize, top: usize) -> String {
    let title = shorten(stage.title.split(", ").next().unwrap_or_default(), TITLE_LENGTH);
    let value = format!("{}{}", score(result.criterion_value), run.criterion.unit);
    format!(
        "<text class=\"title\" x=\"{centre}\" y=\"{}\">{title}<title>{}</title></text>\
         <text class=\"value\" x=\"{centre}\" y=\"{}\">{value}</text><text class=\"variant\" x=\"{centre}\" y=\"{}\">{note}</text>\n",
        top + 18,
        stage.title,
        top + 35,
        top + 49,
    )
}

/// A classifier's or reinitialisation's number, of a stage that has one; the seed of the run stands above the whole picture.
fn variant(stage: &StageView) -> String {
    stage.title.split(", ").skip(1).filter(|piece| !piece.starts_with("seed ")).collect::<Vec<_>>().join(", ")
}

/// Of a box.
struct Place {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

fn group_box(name: &str, parameters: u64, frozen: bool, place: Place) -> String {
    let Place { x, y, width, height } = place;
    let class = if frozen { "frozen" } else { "trained" };
    let flake = match frozen {
        true => {
            let (x, y) = (x + width - 20, y + height / 2 - 7);
            format!("<use href=\"#flake\" x=\"{x}\" y=\"{y}\" width=\"13\" height=\"13\"/>")
        }
        false => String::new(),
    };
    format!(
        "<g><title>{}, {} parameters, {class}</title><rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" \
         height=\"{height}\" rx=\"5\"/><text class=\"name {class}\" x=\"{}\" y=\"{}\">{}</text>{flake}</g>\n",
        escape(name),
        count(parameters),
        x + 10,
        y + height / 2 + 5,
        escape(&first_characters(name)),
    )
}

fn foot(verdict: Verdict, centre: usize, bottom: usize) -> String {
    let (class, mark, word) = verdict.shown();
    format!("<text class=\"verdict {class}\" x=\"{centre}\" y=\"{}\">{mark} {word}</text>\n", bottom + 22)
}

/// A name that fits its box.
fn first_characters(name: &str) -> String {
    match name.char_indices().nth(NAME_LENGTH) {
        None => name.to_string(),
        Some(_) => name.chars().take(NAME_LENGTH - 1).chain(['…']).collect(),
    }
}

/// Cuts text that is already escaped: only where no character is written as a reference, which a cut could split.
fn shorten(escaped: &str, length: usize) -> String {
    if escaped.contains('&') || escaped.chars().count() <= length {
        return escaped.to_string();
    }
    escaped.chars().take(length.saturating_sub(1)).chain(['…']).collect()
}
