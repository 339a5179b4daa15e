//! The tokens of a language model: words or characters, numbered by their line in a token list, and `<eos>` at every line's end.
//!
//! Unlike the list of a recogniser ([`super::tokens`]) it has no blank, and it gives every text a meaning: a line is its tokens and `<eos>`, an
//! empty line is one `<eos>`, and what the list lacks is `<unk>`.

use super::tokens::{SPACE, UNKNOWN, Unit};
use crate::error::{Error, Result};
use crate::files::{read_text, write_bytes};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;

/// Ends every line.
pub const END: &str = "<eos>";

/// A token list and the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    unit: Unit,
    symbols: Vec<String>,
    ids: HashMap<String, u32>,
}

/// A text as tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Characters (Unicode scalar values) of the text that all tokens but the first stand for, which nothing predicts. A word counts with the
    /// space or the line's end behind it, `<eos>` of an empty line as that line's end.
    pub characters: u64,
}

impl Vocabulary {
    /// All symbols of `texts` in the order of their first appearance, `<eos>` where the first line ends: awd-lstm-lm's `Corpus`.
    ///
    /// # Errors
    /// Texts without a single line.
    pub fn by_first_appearance<'a>(unit: Unit, texts: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut vocabulary = Vocabulary { unit, symbols: Vec::new(), ids: HashMap::new() };
        for line in texts.into_iter().flat_map(str::lines) {
            pieces(unit, line).for_each(|symbol| vocabulary.add(symbol));
            vocabulary.add(END);
        }
        vocabulary.checked("data.train")
    }

    /// `<eos>`, `<unk>`, and the `most` most frequent symbols of `text`, equally frequent ones in the order of their first appearance.
    ///
    /// # Errors
    /// A text without a single line.
    pub fn by_count(unit: Unit, text: &str, most: usize) -> Result<Self> {
        let mut counts: Vec<(&str, u64)> = Vec::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        for symbol in
            text.lines().flat_map(|line| pieces(unit, line)).filter(|&symbol| symbol != UNKNOWN && symbol != END)
        {
            match places.entry(symbol) {
                Entry::Occupied(place) => counts[*place.get()].1 += 1,
                Entry::Vacant(place) => {
                    place.insert(counts.len());
                    counts.push((symbol, 1));
                }
            }
        }
        if counts.is_empty() {
            return Vocabulary { unit, symbols: Vec::new(), ids: HashMap::new() }.checked("--vocab");
        }
        // The sort is stable: ties keep their order.
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let mut vocabulary = Vocabulary { unit, symbols: Vec::new(), ids: HashMap::new() };
        let frequent = counts.iter().take(most).map(|&(symbol, _)| symbol);
        [END, UNKNOWN].into_iter().chain(frequent).for_each(|symbol| vocabulary.add(symbol));
        Ok(vocabulary)
    }

    /// Reads a list: one symbol a line, its line, counted from 0, is its id.
    ///
    /// # Errors
    /// A file that cannot be read or is not UTF-8; an empty line, a symbol with white space or one that occurs twice: each naming its line; a
    /// list without `<eos>`.
    pub fn load(unit: Unit, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut vocabulary = Vocabulary { unit, symbols: Vec::new(), ids: HashMap::new() };
        for (number, symbol) in read_text(path)?.lines().enumerate() {
            let problem = |text: String| Error::line(path, number + 1, text);
            if symbol.is_empty() || symbol.contains(char::is_whitespace) {
                return Err(problem(format!("\"{symbol}\" is not one symbol"))
                    .remedy(format!("Write one symbol a line and nothing behind it; a space is written {SPACE}")));
            }
            if let Some(first) = vocabulary.id(symbol) {
                return Err(problem(format!("the symbol \"{symbol}\" stands in line {} already", first + 1))
                    .remedy("Keep one of the lines"));
            }
            vocabulary.add(symbol);
        }
        if vocabulary.id(END).is_none() {
            return Err(Error::file(path, format!("has no {END}, which ends every line of a text"))
                .remedy(format!("Add a line with {END}")));
        }
        Ok(vocabulary)
    }

    fn checked(self, key: &str) -> Result<Self> {
        if self.symbols.is_empty() {
            return Err(Error::key(key, "the text has no symbols to make a token list from")
                .remedy("Name a text with at least one line"));
        }
        Ok(self)
    }

    fn add(&mut self, symbol: &str) {
        if !self.ids.contains_key(symbol) {
            self.ids.insert(symbol.to_string(), self.symbols.len() as u32);
            self.symbols.push(symbol.to_string());
        }
    }

    /// Writes the list as [`load`](Self::load) reads it.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_bytes(path.as_ref(), self.to_text().as_bytes())
    }

    /// One symbol a line.
    pub fn to_text(&self) -> String {
        self.symbols.join("\n") + "\n"
    }

    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// A model's outputs.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Never: a list has `<eos>` at least.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    pub fn symbols(&self) -> &[String] {
        &self.symbols
    }

    pub fn id(&self, symbol: &str) -> Option<u32> {
        self.ids.get(symbol).copied()
    }

    /// The token that ends a line.
    pub fn end(&self) -> u32 {
        self.id(END).unwrap_or(0)
    }

    /// The characters that a token stands for where a line begins, counted as in [`Encoded`]; those of its symbol for one that the list lacks.
    pub fn characters(&self, id: u32) -> u64 {
        let symbol = self.symbols.get(id as usize).map_or("", String::as_str);
        let is_word = self.unit == Unit::Word && id != self.end();
        if is_word { symbol.chars().count() as u64 + 1 } else { 1 }
    }

    /// The tokens of a text, every line ended by `<eos>`. `path` names the text in errors.
    ///
    /// # Errors
    /// A symbol that the list lacks, naming its line, if it has no `<unk>` either.
    pub fn encode(&self, path: &Path, text: &str) -> Result<Encoded> {
        let mut encoded = Encoded::default();
        for (number, line) in text.lines().enumerate() {
            let mut characters = 0;
            for symbol in pieces(self.unit, line) {
                encoded.ids.push(self.known(symbol).ok_or_else(|| self.lacks(path, number + 1, symbol))?);
                let length = if self.unit == Unit::Word { symbol.chars().count() + 1 } else { 1 };
                if encoded.ids.len() > 1 {
                    characters += length;
                }
            }
            encoded.ids.push(self.end());
            // The line's end is the character behind its last word; after characters, or alone, it is one of its own.
            let alone = self.unit == Unit::Character || pieces(self.unit, line).next().is_none();
            if alone && encoded.ids.len() > 1 {
                characters += 1;
            }
            encoded.characters += characters as u64;
        }
        Ok(encoded)
    }

    /// The tokens of the beginning of a line, which nothing ends yet.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for (number, line) in text.split('\n').enumerate() {
            if number > 0 {
                ids.push(self.end());
            }
            for symbol in pieces(self.unit, line) {
                ids.push(self.known(symbol).ok_or_else(|| self.lacks(Path::new("--prompt"), number + 1, symbol))?);
            }
        }
        Ok(ids)
    }

    fn known(&self, symbol: &str) -> Option<u32> {
        self.id(symbol).or_else(|| self.id(UNKNOWN))
    }

    fn lacks(&self, path: &Path, line: usize, symbol: &str) -> Error {
        let kind = if self.unit == Unit::Word { "word" } else { "character" };
        Error::line(path, line, format!("the {kind} \"{symbol}\" is not in the token list"))
            .remedy(format!("Name a data.token_list that has it or has {UNKNOWN}"))
    }

    /// The text that tokens stand for: words joined by spaces, lines where `<eos>` ends them.
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut text = String::new();
        for &token in tokens {
            match self.symbols.get(token as usize).map_or(UNKNOWN, String::as_str) {
                END => text.push('\n'),
                symbol if self.unit == Unit::Character => text.push_str(if symbol == SPACE { " " } else { symbol }),
                symbol => {
                    if !text.is_empty() && !text.ends_with('\n') {
                        text.push(' ');
                    }
                    text.push_str(symbol);
                }
            }
        }
        text
    }
}

/// The symbols of a line, without its end.
fn pieces(unit: Unit, line: &str) -> Box<dyn Iterator<Item = &str> + '_> {
    match unit {
        // Pieces are written as words.
        Unit::Word | Unit::Piece => Box::new(line.split_whitespace()),
        Unit::Character => Box::new(line.char_indices().map(move |(place, character)| match character {
            ' ' => SPACE,
            _ => &line[place..place + character.len_utf8()],
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn words(text: &str) -> Vocabulary {
        Vocabulary::by_first_appearance(Unit::Word, [text]).unwrap()
    }

    fn encode(vocabulary: &Vocabulary, text: &str) -> Result<Encoded> {
        vocabulary.encode(Path::new("text.txt"), text)
    }

    #[test]
    fn symbols_are_numbered_by_their_first_appearance_as_in_awd_lstm_lm() {
        let vocabulary = words(" \n = A =\nb A\n");
        assert_eq!(vocabulary.symbols(), ["<eos>", "=", "A", "b"]);
        assert_eq!(encode(&vocabulary, " \n = A =\nb A").unwrap().ids, [0, 1, 2, 1, 0, 3, 2, 0]);
    }

    #[test]
    fn a_list_by_count_has_the_most_frequent_first_and_ties_as_they_came() {
        let vocabulary = Vocabulary::by_count(Unit::Word, "c b a b\na <unk> d\n", 3).unwrap();
        assert_eq!(vocabulary.symbols(), ["<eos>", "<unk>", "b", "a", "c"]);
        assert_eq!(encode(&vocabulary, "a d").unwrap().ids, [3, 1, 0], "what the list lacks is <unk>");
    }

    #[test]
    fn characters_are_those_of_the_text_behind_its_first_token() {
        let vocabulary = Vocabulary::by_count(Unit::Word, "one two\n", 1).unwrap();
        // Behind "one ": "two\n" as it stands, though its token is <unk>; the empty line; "one\n".
        assert_eq!(encode(&vocabulary, "one two\n\none\n").unwrap().characters, 4 + 1 + 4);
        assert_eq!(["one", "<eos>"].map(|symbol| vocabulary.characters(vocabulary.id(symbol).unwrap())), [4, 1]);
        let letters = Vocabulary::by_first_appearance(Unit::Character, ["äb c\n"]).unwrap();
        assert_eq!(letters.symbols(), ["ä", "b", "<space>", "c", "<eos>"]);
        let encoded = encode(&letters, "äb c\n").unwrap();
        assert_eq!((encoded.ids.len(), encoded.characters), (5, 4));
        assert_eq!(letters.decode(&encoded.ids), "äb c\n");
    }

    #[test]
    fn decoding_brings_words_and_lines_back() {
        let vocabulary = words("to be\nor not\n");
        let ids = encode(&vocabulary, "to be\n\nor not").unwrap().ids;
        assert_eq!(vocabulary.decode(&ids), "to be\n\nor not\n");
        assert_eq!(
            vocabulary.encode_prompt("to be\nor").unwrap(),
            ids[..3].iter().copied().chain([ids[4]]).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_word_that_is_missing_is_an_error_with_its_line() {
        let error = encode(&words("a b\n"), "a\nb x\n").unwrap_err().to_string();
        assert!(error.contains("text.txt:2") && error.contains("\"x\""), "{error}");
    }

    #[test]
    fn a_list_is_read_as_it_was_written_and_a_bad_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.txt");
        words("a b\n").save(&path).unwrap();
        assert_eq!(Vocabulary::load(Unit::Word, &path).unwrap(), words("a b\n"));
        for (content, expected) in
            [("a\nb\n", "<eos>"), ("a\n<eos>\na\n", "line 1"), ("a b\n<eos>\n", "not one symbol")]
        {
            fs::write(&path, content).unwrap();
            let error = Vocabulary::load(Unit::Word, &path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(Vocabulary::by_first_appearance(Unit::Word, [""]).is_err());
    }
}
