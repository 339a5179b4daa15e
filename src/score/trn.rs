//! NIST's transcript format `trn`, which `sclite` scores: one utterance a line, its symbols, then its id in parentheses.
//!
//! ```text
//! ENTER SIX TWO (fash-an251-b)
//! E N T E R <space> S I X <space> T W O (fash-an251-b)
//! ```
//!
//! `sclite` gives some characters a meaning inside a transcript: `{ a / b }` are alternatives, `(a)` may be missing, `@` is no word at
//! all, and a line that begins with `;;` is a comment. There is no way to quote them, so they are written as `%` and two
//! hexadecimal digits, and so is `%` itself: `(` as `%28`, `)` as `%29`, `{` as `%7B`, `}` as `%7D`, `@` as `%40`, `%` as
//! `%25`, and `;` at the beginning of a line as `%3B`. References and hypotheses are written alike, so the counts do not
//! change. A symbol stays one symbol.

use std::fmt::Write as _;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::write_bytes;

/// What counts as a symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Words between white space, for WER.
    Words,
    /// Characters, a space being `<space>`, for CER.
    Characters,
}

/// An utterance's id and what was said or recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    pub utterance: &'a str,
    pub text: &'a str,
}

/// True if a `trn` file can hold this utterance id.
pub fn can_hold(id: &str) -> bool {
    let unfit = |c: char| c.is_whitespace() || c.is_control() || c == '(' || c == ')';
    !id.is_empty() && !id.contains(unfit)
}

/// The contents of a `trn` file.
///
/// # Errors
/// An id that is empty or has white space or parentheses cannot be written, and neither can a text with a line break.
pub fn render<'a>(lines: impl IntoIterator<Item = Line<'a>>, unit: Unit) -> Result<String> {
    let mut contents = String::new();
    for Line { utterance, text } in lines {
        if !can_hold(utterance) {
            return Err(Error::utterance(
                utterance,
                "its id is empty or has white space or parentheses, which a trn file cannot hold",
            )
            .remedy("Rename the utterance in the data folder"));
        }
        if text.contains(['\n', '\r']) {
            return Err(Error::utterance(utterance, "its text has a line break, which a trn file cannot hold")
                .remedy("Put the text on one line"));
        }
        let begin = contents.len();
        match unit {
            Unit::Words => text.split_whitespace().for_each(|word| push_symbol(&mut contents, begin, word.chars())),
            Unit::Characters => text.chars().for_each(|character| match character {
                ' ' => contents.push_str("<space> "),
                other => push_symbol(&mut contents, begin, std::iter::once(other)),
            }),
        }
        // Writing to a String cannot fail.
        let _ = writeln!(contents, "({utterance})");
    }
    Ok(contents)
}

fn push_symbol(contents: &mut String, line_begin: usize, characters: impl Iterator<Item = char>) {
    for character in characters {
        let comment = character == ';' && contents.len() == line_begin;
        if comment || matches!(character, '(' | ')' | '{' | '}' | '@' | '%') {
            let _ = write!(contents, "%{:02X}", character as u32);
        } else if character.is_whitespace() {
            // White space other than a plain space, as a character of its own, would fall between the symbols.
            let _ = write!(contents, "<U+{:04X}>", character as u32);
        } else {
            contents.push(character);
        }
    }
    contents.push(' ');
}

/// Writes a `trn` file, whole or not at all: a crash leaves the old file or the new one.
///
/// # Errors
/// As [`render`], and where the file cannot be written.
pub fn write<'a>(path: &Path, lines: impl IntoIterator<Item = Line<'a>>, unit: Unit) -> Result<()> {
    write_bytes(path, render(lines, unit)?.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn one(text: &str, unit: Unit) -> String {
        render([Line { utterance: "spk-1", text }], unit).unwrap()
    }

    #[test]
    fn words_and_characters_end_with_the_id() {
        assert_eq!(one("ENTER  SIX", Unit::Words), "ENTER SIX (spk-1)\n");
        assert_eq!(one("GO ON", Unit::Characters), "G O <space> O N (spk-1)\n");
        assert_eq!(one("", Unit::Words), "(spk-1)\n");
    }

    #[test]
    fn characters_with_a_meaning_are_escaped() {
        assert_eq!(one("(UH) {A/@} 5%", Unit::Words), "%28UH%29 %7BA/%40%7D 5%25 (spk-1)\n");
        assert_eq!(one(";;NO ;;YES", Unit::Words), "%3B;NO ;;YES (spk-1)\n");
        assert_eq!(one(";;", Unit::Characters), "%3B ; (spk-1)\n");
    }

    #[test]
    fn an_unusual_space_stays_one_symbol() {
        assert_eq!(one("A\u{a0}B\tC", Unit::Characters), "A <U+00A0> B <U+0009> C (spk-1)\n");
    }

    #[test]
    fn an_id_that_cannot_be_written_is_an_error_naming_the_utterance() {
        for id in ["", "a b", "a(1)"] {
            let error = render([Line { utterance: id, text: "X" }], Unit::Words).unwrap_err();
            assert!(error.to_string().starts_with(&format!("utterance {id}:")), "{error}");
        }
        let error = render([Line { utterance: "spk-1", text: "A\nB" }], Unit::Words).unwrap_err();
        assert!(error.to_string().contains("spk-1"), "{error}");
    }

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hyp.trn");
        write(&path, [Line { utterance: "spk-1", text: "A VERY LONG LINE" }], Unit::Words).unwrap();
        write(&path, [Line { utterance: "spk-2", text: "B" }], Unit::Words).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "B (spk-2)\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_missing_is_an_error_naming_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("hyp.trn");
        let error = write(&path, [], Unit::Words).unwrap_err();
        assert!(error.to_string().contains("missing/hyp.trn"), "{error}");
    }
}
