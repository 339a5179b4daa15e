//! The symbols that a recogniser writes: characters or words, numbered by their line in a token list.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::{read_text, write_bytes};

/// Line 0 of every list: what CTC writes when it writes nothing.
pub const BLANK: &str = "<blank>";
/// The space between words, as it is written in a list.
pub const SPACE: &str = "<space>";
/// What stands for everything that a list lacks, if the list has it.
pub const UNKNOWN: &str = "<unk>";

/// What one token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Character,
    Word,
}

impl Unit {
    /// From the recipe's `data.tokens`.
    ///
    /// # Errors
    /// Anything but "char" and "word".
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "char" => Ok(Unit::Character),
            "word" => Ok(Unit::Word),
            "bpe" => Err(Error::key("data.tokens", "\"bpe\" is not available yet").remedy("Use \"char\" or \"word\"")),
            other => Err(Error::key("data.tokens", format!("\"{other}\" is no kind of token"))
                .remedy("Use \"char\" or \"word\"")),
        }
    }
}

/// A token list and the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenList {
    unit: Unit,
    symbols: Vec<String>,
    ids: HashMap<String, u32>,
    /// Symbols of several characters (`<NOISE>`), longest first: in a transcript they are one token.
    whole: Vec<String>,
}

impl TokenList {
    /// Makes a list from training transcripts: `<blank>`, `<space>` (if units are characters and a space occurs), then what occurs,
    /// sorted by code point.
    ///
    /// # Errors
    /// Transcripts without a single symbol.
    pub fn from_transcripts<'a>(unit: Unit, transcripts: impl Iterator<Item = &'a str>) -> Result<Self> {
        let mut found = BTreeSet::new();
        for transcript in transcripts {
            match unit {
                Unit::Character => found.extend(transcript.chars().map(String::from)),
                Unit::Word => found.extend(transcript.split_ascii_whitespace().map(String::from)),
            }
        }
        let space = found.remove(" ");
        if found.is_empty() {
            return Err(Error::key("data.train", "its transcripts have no symbols to make a token list from")
                .remedy("Check the file text, or name a list in data.token_list"));
        }
        let mut symbols = vec![BLANK.to_string()];
        if space {
            symbols.push(SPACE.to_string());
        }
        // A word may look like a special symbol; it then is that symbol.
        symbols.extend(found.into_iter().filter(|symbol| symbol != BLANK));
        Ok(Self::from_symbols(unit, symbols))
    }

    /// Reads a list: one symbol a line, its number is its id, line 0 is `<blank>`.
    ///
    /// # Errors
    /// A file that cannot be read or is not UTF-8; another symbol in line 0; an empty line, a symbol with white space, a symbol that
    /// occurs twice: each naming its line.
    pub fn load(unit: Unit, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_text(path)?;
        let mut lines: HashMap<&str, usize> = HashMap::new();
        for (number, symbol) in text.lines().enumerate() {
            let problem = |text: String| Error::line(path, number + 1, text);
            if number == 0 && symbol != BLANK {
                return Err(problem(format!("the first symbol is \"{symbol}\""))
                    .remedy(format!("Write {BLANK} in the first line")));
            }
            if symbol.is_empty() || symbol.contains(|c: char| c.is_ascii_whitespace()) {
                return Err(problem(format!("\"{symbol}\" is not one symbol"))
                    .remedy(format!("Write one symbol a line and nothing behind it; a space is written {SPACE}")));
            }
            if let Some(first) = lines.insert(symbol, number + 1) {
                return Err(problem(format!("the symbol \"{symbol}\" stands in line {first} already"))
                    .remedy("Keep one of the lines"));
            }
        }
        if lines.len() < 2 {
            return Err(Error::file(path, format!("it has {} symbols", lines.len()))
                .remedy("Write one symbol a line, <blank> first"));
        }
        Ok(Self::from_symbols(unit, text.lines().map(String::from).collect()))
    }

    fn from_symbols(unit: Unit, symbols: Vec<String>) -> Self {
        let ids = symbols.iter().enumerate().map(|(id, symbol)| (symbol.clone(), id as u32)).collect();
        let special = |symbol: &str| [BLANK, SPACE, UNKNOWN].contains(&symbol);
        let mut whole: Vec<String> =
            symbols.iter().filter(|symbol| symbol.chars().nth(1).is_some() && !special(symbol)).cloned().collect();
        whole.sort_by_key(|symbol| std::cmp::Reverse(symbol.len()));
        TokenList { unit, symbols, ids, whole }
    }

    /// Writes the list as [`load`](Self::load) reads it.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_bytes(path.as_ref(), self.to_text().as_bytes())
    }

    /// One symbol a line, as [`load`](Self::load) reads it.
    pub fn to_text(&self) -> String {
        self.symbols.join("\n") + "\n"
    }

    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// The number of symbols with `<blank>`: a model's outputs.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Never: a list has `<blank>` at least.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    pub fn symbols(&self) -> &[String] {
        &self.symbols
    }

    pub fn id(&self, symbol: &str) -> Option<u32> {
        self.ids.get(symbol).copied()
    }

    /// The tokens of an utterance's transcript.
    ///
    /// # Errors
    /// A character or word that the list lacks, if it has no `<unk>` either.
    pub fn encode(&self, utterance: &str, transcript: &str) -> Result<Vec<u32>> {
        match self.unit {
            Unit::Word => transcript.split_ascii_whitespace().map(|word| self.known(utterance, word)).collect(),
            Unit::Character => self.encode_characters(utterance, transcript),
        }
    }

    fn encode_characters(&self, utterance: &str, transcript: &str) -> Result<Vec<u32>> {
        let mut tokens = Vec::with_capacity(transcript.len());
        let mut rest = transcript;
        while let Some(character) = rest.chars().next() {
            let whole = self.whole.iter().find(|symbol| rest.starts_with(symbol.as_str()));
            let length = whole.map_or(character.len_utf8(), String::len);
            let (symbol, tail) = rest.split_at(length);
            tokens.push(self.known(utterance, if symbol == " " { SPACE } else { symbol })?);
            rest = tail;
        }
        Ok(tokens)
    }

    fn known(&self, utterance: &str, symbol: &str) -> Result<u32> {
        self.id(symbol).filter(|&id| id != 0).or_else(|| self.id(UNKNOWN)).ok_or_else(|| {
            let kind = if self.unit == Unit::Word { "word" } else { "character" };
            Error::utterance(utterance, format!("the {kind} \"{symbol}\" of its transcript is not in the token list"))
                .remedy(format!("Correct the transcript, or name a data.token_list that has it or has {UNKNOWN}"))
        })
    }

    /// The text that tokens stand for: characters joined, `<space>` as a space; words joined by spaces.
    ///
    /// # Panics
    /// If a token is not below [`len`](Self::len).
    pub fn decode(&self, tokens: &[u32]) -> String {
        let symbols = tokens.iter().map(|&token| self.symbols[token as usize].as_str());
        match self.unit {
            Unit::Word => symbols.collect::<Vec<_>>().join(" "),
            Unit::Character => symbols.map(|symbol| if symbol == SPACE { " " } else { symbol }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn characters(transcripts: &[&str]) -> TokenList {
        TokenList::from_transcripts(Unit::Character, transcripts.iter().copied()).unwrap()
    }

    fn loaded(unit: Unit, content: &str) -> Result<TokenList> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.txt");
        fs::write(&path, content).unwrap();
        TokenList::load(unit, path)
    }

    #[test]
    fn a_list_from_transcripts_is_blank_space_and_the_sorted_characters() {
        let tokens = characters(&["B A", "ÄA"]);
        assert_eq!(tokens.symbols(), ["<blank>", "<space>", "A", "B", "Ä"]);
        assert_eq!(tokens.encode("u", "A BÄ").unwrap(), [2, 1, 3, 4]);
        assert_eq!(tokens.decode(&[2, 1, 3, 4]), "A BÄ");
        assert!(tokens.encode("u", "").unwrap().is_empty());
    }

    #[test]
    fn words_are_tokens_if_the_recipe_says_so() {
        let tokens = TokenList::from_transcripts(Unit::Word, ["TWO ONE", "ONE"].into_iter()).unwrap();
        assert_eq!(tokens.symbols(), ["<blank>", "ONE", "TWO"]);
        assert_eq!(tokens.encode("u", "ONE  TWO").unwrap(), [1, 2]);
        assert_eq!(tokens.decode(&[2, 1]), "TWO ONE");
    }

    #[test]
    fn an_unknown_character_is_an_error_naming_utterance_and_character() {
        let error = characters(&["AB"]).encode("fash-an251-b", "A?B").unwrap_err().to_string();
        assert!(
            error.contains("utterance fash-an251-b: the character \"?\"") && error.contains("token_list"),
            "{error}"
        );
        let error = characters(&["AB"]).encode("u", "A B").unwrap_err().to_string();
        assert!(error.contains("\"<space>\""), "{error}");
        let tokens = loaded(Unit::Character, "<blank>\n<unk>\nA\n").unwrap();
        assert_eq!(tokens.encode("u", "A?").unwrap(), [2, 1]);
    }

    #[test]
    fn a_symbol_of_several_characters_is_one_token() {
        let tokens = loaded(Unit::Character, "<blank>\n<space>\n<NOISE>\n<\nA\n").unwrap();
        assert_eq!(tokens.encode("u", "A <NOISE><").unwrap(), [4, 1, 2, 3]);
        assert_eq!(tokens.decode(&[4, 1, 2, 3]), "A <NOISE><");
    }

    #[test]
    fn the_transcript_cannot_say_blank() {
        let tokens = TokenList::from_transcripts(Unit::Word, ["A <blank>"].into_iter()).unwrap();
        assert_eq!(tokens.symbols(), ["<blank>", "A"]);
        assert!(tokens.encode("u", "A <blank>").is_err());
    }

    #[test]
    fn bpe_and_misspelt_units_are_errors_naming_the_key() {
        assert!(Unit::parse("bpe").unwrap_err().to_string().contains("data.tokens: \"bpe\" is not available yet. Use"));
        assert!(Unit::parse("chars").unwrap_err().to_string().contains("data.tokens: \"chars\""));
        assert_eq!(Unit::parse("char").unwrap(), Unit::Character);
    }

    #[test]
    fn malformed_lists_are_errors_naming_the_line() {
        let cases = [
            ("", "0 symbols"),
            ("<blank>\n", "1 symbols"),
            ("A\n<blank>\n", ":1: the first symbol is \"A\""),
            ("<blank>\nA\n\nB\n", ":3: \"\" is not one symbol"),
            ("<blank>\n \n", ":2: \" \" is not one symbol"),
            ("<blank>\nA 1\n", ":2: \"A 1\" is not one symbol"),
            ("<blank>\nA\nB\nA\n", ":4: the symbol \"A\" stands in line 2"),
        ];
        for (content, expected) in cases {
            let error = loaded(Unit::Character, content).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = TokenList::from_transcripts(Unit::Character, ["", ""].into_iter()).unwrap_err().to_string();
        assert!(error.contains("data.train: its transcripts have no symbols"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_encoded_is_decoded_and_a_saved_list_is_the_same_list(words in proptest::collection::vec("[a-zé'<>.]{1,5}", 1..6)) {
            let transcript = words.join(" ");
            for unit in [Unit::Character, Unit::Word] {
                let tokens = TokenList::from_transcripts(unit, [transcript.as_str()].into_iter()).unwrap();
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("tokens.txt");
                tokens.save(&path).unwrap();
                let tokens_again = TokenList::load(unit, &path).unwrap();
                prop_assert_eq!(&tokens_again, &tokens);
                let encoded = tokens.encode("u", &transcript).unwrap();
                prop_assert!(encoded.iter().all(|&token| token > 0 && (token as usize) < tokens.len()));
                prop_assert_eq!(tokens.decode(&encoded), transcript.clone());
            }
        }
    }

    #[test]
    fn an4_has_28_symbols() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/an4/etc/an4_train.transcription"));
        let Ok(text) = fs::read_to_string(path) else {
            eprintln!("skipped: {} is not there", path.display());
            return;
        };
        let transcripts: Vec<String> = text
            .lines()
            .map(|line| {
                let words = line
                    .split_ascii_whitespace()
                    .filter(|word| !["<s>", "</s>"].contains(word) && !word.starts_with('('));
                words.collect::<Vec<_>>().join(" ")
            })
            .collect();
        let tokens = TokenList::from_transcripts(Unit::Character, transcripts.iter().map(String::as_str)).unwrap();
        assert_eq!(tokens.len(), 28, "{:?}", tokens.symbols());
    }
}
