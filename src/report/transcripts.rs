//! Decoded validation utterances, each stage's below the reference, with the errors of a word alignment marked. A mark is never
//! a colour alone: a substituted word stands before the word it replaces, struck out; a deleted word is struck out behind a minus
//! sign; an inserted word is underlined behind a plus sign.

use crate::score::edit::{Alignment, Edit, align};
use crate::train::record::Transcript;

use super::html::escape;
use super::view::{RunView, StageView};

/// So many utterances are open; the others are folded away.
const OPEN: usize = 6;
/// Of more stages than these, only the best and joint training are open.
const OPEN_STAGES: usize = 6;

/// Those with the most errors come first: where nothing went wrong there is nothing to see. `None` if no stage kept samples.
pub fn section(run: &RunView) -> Option<String> {
    let mut utterances: Vec<&Transcript> = Vec::new();
    for sample in run.finished_stages().flat_map(|(_, result)| &result.samples) {
        if !utterances.iter().any(|other| other.utterance == sample.utterance) {
            utterances.push(sample);
        }
    }
    if utterances.is_empty() {
        return None;
    }
    // The sort is stable: equally bad ones stay in the order of their ids.
    utterances.sort_by_key(|utterance| std::cmp::Reverse(errors(run, utterance)));
    let legend = "<p class=\"legend marks\"><span><b class=\"sub\">heard</b><del class=\"was\">said</del> substituted</span>\
        <span><span class=\"del\">−<del>word</del></span> left out</span><span><span class=\"ins\">+<ins>word</ins></span> put in</span><span>most errors first</span></p>\n";
    let blocks: Vec<String> = utterances.iter().map(|sample| utterance(run, sample)).collect();
    let (open, folded) = blocks.split_at(blocks.len().min(OPEN));
    let folded = match folded.len() {
        0 => String::new(),
        number => format!("<details><summary>{number} more utterances</summary>\n{}</details>\n", folded.concat()),
    };
    Some(format!("{legend}{}{folded}", open.concat()))
}

/// Of all stages together.
fn errors(run: &RunView, utterance: &Transcript) -> usize {
    let samples = run.finished_stages().flat_map(|(_, result)| &result.samples);
    samples.filter(|sample| sample.utterance == utterance.utterance).map(|sample| aligned(sample).2.distance()).sum()
}

fn utterance(run: &RunView, sample: &Transcript) -> String {
    let mut rows = format!(
        "<dt>reference</dt><dd class=\"reference\" dir=\"auto\">{}</dd>\n",
        if sample.reference.trim().is_empty() {
            "<i>nothing is said</i>".to_string()
        } else {
            escape(&sample.reference)
        }
    );
    let joint = run.baseline().map(|(stage, _)| stage.id);
    let (mut folded, mut number) = (String::new(), 0);
    for (stage, result) in run.finished_stages() {
        let Some(own) = result.samples.iter().find(|other| other.utterance == sample.utterance) else { continue };
        if run.stages.len() <= OPEN_STAGES || stage.is_best || Some(stage.id) == joint {
            rows.push_str(&hypothesis(stage, own));
        } else {
            folded.push_str(&hypothesis(stage, own));
            number += 1;
        }
    }
    if number > 0 {
        folded = format!("<details><summary>{number} other stages</summary>\n<dl>\n{folded}</dl></details>\n");
    }
    format!("<div class=\"utterance\"><h4>{}</h4><dl>\n{rows}</dl>{folded}</div>\n", escape(&sample.utterance))
}

/// The words of the reference and of the hypothesis, and how the one becomes the other.
fn aligned(sample: &Transcript) -> (Vec<&str>, Vec<&str>, Alignment) {
    let reference: Vec<&str> = sample.reference.split_whitespace().collect();
    let heard: Vec<&str> = sample.hypothesis.split_whitespace().collect();
    let alignment = align(&reference, &heard);
    (reference, heard, alignment)
}

fn hypothesis(stage: &StageView, sample: &Transcript) -> String {
    let (reference, heard, alignment) = aligned(sample);
    let errors = match alignment.distance() {
        0 => "<span class=\"right\">✓ no error</span>".to_string(),
        1 => "1 error".to_string(),
        many => format!("{many} errors"),
    };
    let star = if stage.is_best { " ★" } else { "" };
    format!(
        "<dt>{}{star}<small>{errors}</small></dt><dd dir=\"auto\">{}</dd>\n",
        stage.title,
        mark_errors(&reference, &heard, &alignment)
    )
}

fn mark_errors(reference: &[&str], heard: &[&str], alignment: &Alignment) -> String {
    let (mut reference, mut heard) = (reference.iter(), heard.iter());
    let mut words = Vec::with_capacity(alignment.edits.len());
    let mut said = || reference.next().map_or(String::new(), |word| escape(word));
    let mut word = || heard.next().map_or(String::new(), |word| escape(word));
    for edit in &alignment.edits {
        words.push(match edit {
            Edit::Match => {
                said();
                word()
            }
            Edit::Substitution => format!("<b class=\"sub\">{}</b><del class=\"was\">{}</del>", word(), said()),
            Edit::Deletion => format!("<span class=\"del\">−<del>{}</del></span>", said()),
            Edit::Insertion => format!("<span class=\"ins\">+<ins>{}</ins></span>", word()),
        });
    }
    if words.is_empty() { "<i>nothing</i>".to_string() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(reference: &str, hypothesis: &str) -> String {
        let reference: Vec<&str> = reference.split_whitespace().collect();
        let heard: Vec<&str> = hypothesis.split_whitespace().collect();
        mark_errors(&reference, &heard, &align(&reference, &heard))
    }

    #[test]
    fn each_kind_of_error_has_its_mark() {
        assert_eq!(marked("A B C", "A B C"), "A B C");
        assert_eq!(marked("A B C", "A X C"), "A <b class=\"sub\">X</b><del class=\"was\">B</del> C");
        assert_eq!(marked("A B C", "A C"), "A <span class=\"del\">−<del>B</del></span> C");
        assert_eq!(marked("A C", "A B C"), "A <span class=\"ins\">+<ins>B</ins></span> C");
        assert_eq!(marked("", ""), "<i>nothing</i>");
    }

    #[test]
    fn words_that_look_like_markup_are_text() {
        assert_eq!(marked("<b>", "&amp;"), "<b class=\"sub\">&amp;amp;</b><del class=\"was\">&lt;b&gt;</del>");
    }
}
