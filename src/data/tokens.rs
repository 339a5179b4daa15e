//! The symbols that a recogniser writes: characters, words or pieces of words, numbered by their line in a token list.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use crate::data::pieces::{Pieces, WORD_BEGIN};
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
    /// A piece of a word: see [`Pieces`].
    Piece,
}

impl Unit {
    /// From the recipe's `data.tokens`.
    ///
    /// # Errors
    /// Anything but "char", "word" and "bpe".
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "char" => Ok(Unit::Character),
            "word" => Ok(Unit::Word),
            "bpe" => Ok(Unit::Piece),
            other => Err(Error::key("data.tokens", format!("\"{other}\" is no kind of token"))
                .remedy("Use \"char\", \"word\" or \"bpe\"")),
        }
    }
}

/// A token list and the way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenList {
    unit: Unit,
    symbols: Vec<String>,
    ids: HashMap<String, u32>,
    /// Symbols that are one token in a transcript, longest first. Characters: those of several characters (`<NOISE>`), anywhere. Pieces: those
    /// that are no pieces, where they stand as words.
    whole: Vec<String>,
    /// Those of them that are no speech, longest first: scores leave them out.
    non_linguistic: Vec<String>,
    /// What splits words, if units are pieces.
    pieces: Option<Arc<Pieces>>,
}

impl TokenList {
    /// Makes a list of characters or words from training transcripts: `<blank>`, `<space>` (if units are characters and a space occurs), then
    /// what occurs, sorted by code point. The `non_linguistic` symbols (`<NOISE>`) are characters by themselves.
    ///
    /// # Errors
    /// Transcripts without a single symbol; units that are pieces, which [`of_pieces`](Self::of_pieces) takes.
    pub fn from_transcripts<'a>(
        unit: Unit,
        non_linguistic: &[String],
        transcripts: impl Iterator<Item = &'a str>,
    ) -> Result<Self> {
        let whole = longest_first(non_linguistic.iter());
        let mut found = BTreeSet::new();
        for transcript in transcripts {
            match unit {
                Unit::Character => found.extend(characters(transcript, &whole).map(String::from)),
                Unit::Word => found.extend(transcript.split_ascii_whitespace().map(String::from)),
                Unit::Piece => return Err(Error::program("pieces are not made from transcripts alone")),
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
        let mut list = Self::from_symbols(unit, symbols);
        list.keep_whole(non_linguistic);
        Ok(list)
    }

    /// The list of all `pieces`: `<blank>`, the pieces in the order of their numbers, and the `non_linguistic` symbols.
    pub fn of_pieces(pieces: Arc<Pieces>, non_linguistic: &[String]) -> Self {
        let mut symbols = vec![BLANK.to_string()];
        for symbol in pieces.symbols().iter().chain(non_linguistic) {
            if symbols[0] != *symbol && !symbols[1..].contains(symbol) {
                symbols.push(symbol.clone());
            }
        }
        let mut list = Self::from_symbols(Unit::Piece, symbols);
        list.keep_pieces(pieces);
        list
    }

    /// What splits words into the symbols of this list; all other symbols of the list are then kept whole.
    ///
    /// # Errors
    /// If the list has no piece that begins a word, so that it is a list of something else.
    pub fn with_pieces(mut self, pieces: Arc<Pieces>) -> Result<Self> {
        if !self.symbols.iter().any(|symbol| symbol.starts_with(WORD_BEGIN)) {
            let problem = format!("none of its {} symbols begins a word ({WORD_BEGIN}), as pieces do", self.len());
            return Err(Error::key("data.token_list", problem)
                .remedy("Leave it out: the list is made of data.pieces. Or choose other data.tokens"));
        }
        self.keep_pieces(pieces);
        Ok(self)
    }

    fn keep_pieces(&mut self, pieces: Arc<Pieces>) {
        let known: std::collections::HashSet<&str> = pieces.symbols().iter().map(String::as_str).collect();
        let others = self.symbols.iter().filter(|symbol| !is_special(symbol) && !known.contains(symbol.as_str()));
        self.whole = longest_first(others);
        self.pieces = Some(pieces);
    }

    /// Never splits these in a transcript, whether the list has them or not, and leaves them out of what is scored.
    pub fn keep_whole(&mut self, non_linguistic: &[String]) {
        self.whole = longest_first(self.whole.iter().chain(non_linguistic));
        self.non_linguistic = longest_first(non_linguistic.iter());
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
        let whole =
            longest_first(symbols.iter().filter(|symbol| symbol.chars().nth(1).is_some() && !is_special(symbol)));
        TokenList { unit, symbols, ids, whole, non_linguistic: Vec::new(), pieces: None }
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

    pub fn pieces(&self) -> Option<&Pieces> {
        self.pieces.as_deref()
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
            Unit::Character => characters(transcript, &self.whole)
                .map(|symbol| self.known(utterance, if symbol == " " { SPACE } else { symbol }))
                .collect(),
            Unit::Piece => self.encode_pieces(utterance, transcript),
        }
    }

    fn encode_pieces(&self, utterance: &str, transcript: &str) -> Result<Vec<u32>> {
        let pieces = self.pieces.as_deref().ok_or_else(|| Error::program("there are no pieces to split words into"))?;
        let mut tokens = Vec::new();
        for word in transcript.split_ascii_whitespace() {
            if self.whole.iter().any(|symbol| symbol == word) {
                tokens.push(self.known(utterance, word)?);
                continue;
            }
            // SentencePiece puts the mark before symbols of its own too.
            if pieces.whole().any(|symbol| symbol == word) {
                tokens.extend(self.id(&WORD_BEGIN.to_string()));
            }
            let split = pieces.split(word).ok_or_else(|| {
                Error::utterance(
                    utterance,
                    format!("the word \"{word}\" of its transcript cannot be split into pieces"),
                )
                .remedy("Correct the transcript, or train pieces on text that has its characters")
            })?;
            for piece in split {
                tokens.push(self.known(utterance, &piece)?);
            }
        }
        Ok(tokens)
    }

    fn known(&self, utterance: &str, symbol: &str) -> Result<u32> {
        self.id(symbol).filter(|&id| id != 0).or_else(|| self.id(UNKNOWN)).ok_or_else(|| {
            let kind = match self.unit {
                _ if self.whole.iter().any(|whole| whole == symbol) => "symbol",
                Unit::Word => "word",
                Unit::Character => "character",
                Unit::Piece => "piece",
            };
            Error::utterance(utterance, format!("the {kind} \"{symbol}\" of its transcript is not in the token list"))
                .remedy(format!(
                    "Correct the transcript or leave the utterance out; a training can name a data.token_list that has it or has {UNKNOWN}"
                ))
        })
    }

    /// The text that tokens stand for: characters joined, `<space>` as a space; words joined by spaces; pieces joined, ▁ as a space, and a space
    /// before a symbol that is no piece. So rates of words and characters do not depend on where pieces begin.
    ///
    /// # Panics
    /// If a token is not below [`len`](Self::len).
    pub fn decode(&self, tokens: &[u32]) -> String {
        let symbols = tokens.iter().map(|&token| self.symbols[token as usize].as_str());
        match self.unit {
            Unit::Word => symbols.collect::<Vec<_>>().join(" "),
            Unit::Character => symbols.map(|symbol| if symbol == SPACE { " " } else { symbol }).collect(),
            Unit::Piece => {
                let own =
                    |symbol: &str| self.pieces().is_some_and(|pieces| pieces.whole().any(|whole| whole == symbol));
                let mut text = String::new();
                for symbol in symbols {
                    if own(symbol) || self.whole.iter().any(|whole| whole == symbol) {
                        text.push(' ');
                    }
                    text.push_str(symbol);
                }
                let text = text.replace(WORD_BEGIN, " ");
                text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
            }
        }
    }
}

/// Scores.
impl TokenList {
    /// The text that is scored: without non-linguistic symbols, as ESPnet's `score_sclite.sh --nlsyms` takes them out. The spaces around them stay.
    pub fn scored(&self, text: &str) -> String {
        match self.unit {
            Unit::Character => characters(text, &self.whole).filter(|symbol| !self.is_non_linguistic(symbol)).collect(),
            // There they stand as words.
            Unit::Word | Unit::Piece => {
                text.split(' ').filter(|word| !self.is_non_linguistic(word)).collect::<Vec<_>>().join(" ")
            }
        }
    }

    /// What the character error rate counts of a text: its characters, each space among them, and as one the symbols of several characters that
    /// are tokens of a list of characters.
    pub fn characters<'a>(&'a self, text: &'a str) -> Vec<&'a str> {
        let whole = if self.unit == Unit::Character { self.whole.as_slice() } else { &[] };
        characters(text, whole).collect()
    }

    fn is_non_linguistic(&self, symbol: &str) -> bool {
        self.non_linguistic.iter().any(|other| other == symbol)
    }
}

fn is_special(symbol: &str) -> bool {
    [BLANK, SPACE, UNKNOWN].contains(&symbol)
}

/// Without repetitions; equally long ones in their order.
fn longest_first<'a>(symbols: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut whole: Vec<String> = symbols.collect::<BTreeSet<_>>().into_iter().cloned().collect();
    whole.sort_by_key(|symbol| std::cmp::Reverse(symbol.len()));
    whole
}

/// The characters of a text, where each of `whole` (longest first) counts as one.
fn characters<'a>(text: &'a str, whole: &'a [String]) -> impl Iterator<Item = &'a str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let character = rest.chars().next()?;
        let whole = whole.iter().find(|symbol| rest.starts_with(symbol.as_str()));
        let (symbol, tail) = rest.split_at(whole.map_or(character.len_utf8(), String::len));
        rest = tail;
        Some(symbol)
    })
}

/// The symbols in the lines of a file, such as ESPnet's list of non-linguistic symbols.
///
/// # Errors
/// A file that cannot be read; white space within a line.
pub fn read_non_linguistic(path: &Path) -> Result<Vec<String>> {
    let text = read_text(path)?;
    let lines =
        text.lines().enumerate().map(|(number, line)| (number + 1, line.trim())).filter(|(_, line)| !line.is_empty());
    lines
        .map(|(number, line)| match line.contains(char::is_whitespace) {
            true => {
                Err(Error::line(path, number, format!("\"{line}\" is not one symbol"))
                    .remedy("Write one symbol a line"))
            }
            false => Ok(line.to_string()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn characters(transcripts: &[&str]) -> TokenList {
        TokenList::from_transcripts(Unit::Character, &[], transcripts.iter().copied()).unwrap()
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
        let tokens = TokenList::from_transcripts(Unit::Word, &[], ["TWO ONE", "ONE"].into_iter()).unwrap();
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
    fn non_linguistic_symbols_are_characters_of_their_own() {
        let noise = ["<NOISE>".to_string()];
        let tokens = TokenList::from_transcripts(Unit::Character, &noise, ["A <NOISE>B"].into_iter()).unwrap();
        assert_eq!(tokens.symbols(), ["<blank>", "<space>", "<NOISE>", "A", "B"]);
        assert_eq!(tokens.encode("u", "B<NOISE> A").unwrap(), [4, 2, 1, 3]);
        // Not a list's, but whole: it must not pass for seven characters.
        let mut tokens = characters(&["<NOISE>"]);
        tokens.keep_whole(&noise);
        let error = tokens.encode("u", "<NOISE>").unwrap_err().to_string();
        assert!(error.contains("the symbol \"<NOISE>\""), "{error}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nlsyms.txt");
        fs::write(&path, "<NOISE>\n\n[laughter]\n").unwrap();
        assert_eq!(read_non_linguistic(&path).unwrap(), ["<NOISE>", "[laughter]"]);
        fs::write(&path, "<NOISE>\n[a b]\n").unwrap();
        assert!(read_non_linguistic(&path).unwrap_err().to_string().contains("nlsyms.txt:2"));
    }

    #[test]
    fn non_linguistic_symbols_are_left_out_of_scores_and_other_symbols_count_as_one_character() {
        let noise = ["<NOISE>".to_string()];
        let named = TokenList::from_transcripts(Unit::Character, &noise, ["A <NOISE> B"].into_iter()).unwrap();
        // ESPnet takes out the token; its two spaces are tokens of their own.
        assert_eq!(named.scored("<NOISE> AB <NOISE>A"), " AB A");
        assert_eq!(named.scored("A <NOISE> B"), "A  B");
        assert_eq!(named.characters("A  B").len(), 4);
        // A symbol of the list that nobody calls non-linguistic is scored, and is one.
        let kept = loaded(Unit::Character, "<blank>\n<NOISE>\nA\n").unwrap();
        assert_eq!(kept.scored("A<NOISE>A"), "A<NOISE>A");
        assert_eq!(kept.characters("A<NOISE>A"), ["A", "<NOISE>", "A"]);
        let words = TokenList::from_transcripts(Unit::Word, &noise, ["AB <NOISE> B"].into_iter()).unwrap();
        assert_eq!(words.scored("AB <NOISE> B"), "AB B");
        assert_eq!(words.characters("AB B"), ["A", "B", " ", "B"]);
    }

    fn pieces() -> Arc<Pieces> {
        let text = "THE CAT SAT ON THE MAT THE RAT SAT ON THE HAT";
        let kind = crate::data::pieces::PieceKind::Bpe;
        Arc::new(Pieces::train(kind, 20, &[], [text].into_iter()).unwrap())
    }

    #[test]
    fn pieces_are_tokens_and_their_transcripts_are_words() {
        let tokens = TokenList::of_pieces(pieces(), &["<NOISE>".to_string()]);
        assert_eq!(&tokens.symbols()[..2], [BLANK, UNKNOWN]);
        assert_eq!((tokens.len(), tokens.id("<NOISE>")), (22, Some(21)));
        for transcript in ["THE CAT", "<NOISE> HATS <NOISE>", "", "THE <NOISE> MAT ON"] {
            let encoded = tokens.encode("u", transcript).unwrap();
            assert_eq!(tokens.decode(&encoded), transcript);
            assert!(encoded.len() < transcript.len().max(1));
        }
        assert_eq!(tokens.decode(&tokens.encode("u", "CÄT").unwrap()), "C<unk>T");
        // From its file, the list is the same.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.txt");
        tokens.save(&path).unwrap();
        assert_eq!(TokenList::load(Unit::Piece, &path).unwrap().with_pieces(pieces()).unwrap(), tokens);
    }

    #[test]
    fn a_list_of_other_tokens_or_without_a_piece_is_an_error() {
        let error = loaded(Unit::Piece, "<blank>\nA\nB\n").unwrap().with_pieces(pieces()).unwrap_err().to_string();
        assert!(error.contains("data.token_list: none of its 3 symbols begins a word"), "{error}");
        let few = loaded(Unit::Piece, "<blank>\n\u{2581}THE\n").unwrap().with_pieces(pieces()).unwrap();
        assert_eq!(few.encode("u", "THE").unwrap(), [1]);
        let error = few.encode("u-7", "THE CAT").unwrap_err().to_string();
        assert!(error.contains("utterance u-7: the piece \"") && error.contains("token_list"), "{error}");
    }

    #[test]
    fn sentencepieces_symbols_have_a_mark_before_them_as_in_its_own_lists() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pieces/bpe.model");
        let tokens = TokenList::of_pieces(Arc::new(Pieces::load(path).unwrap()), &[]);
        let encoded = tokens.encode("u", "THE [laughter] CAT").unwrap();
        let symbols: Vec<&str> = encoded.iter().map(|&token| tokens.symbols()[token as usize].as_str()).collect();
        assert_eq!(symbols, ["\u{2581}THE", "\u{2581}", "[laughter]", "\u{2581}CAT"]);
        assert_eq!(tokens.decode(&encoded), "THE [laughter] CAT");
    }

    #[test]
    fn the_transcript_cannot_say_blank() {
        let tokens = TokenList::from_transcripts(Unit::Word, &[], ["A <blank>"].into_iter()).unwrap();
        assert_eq!(tokens.symbols(), ["<blank>", "A"]);
        assert!(tokens.encode("u", "A <blank>").is_err());
    }

    #[test]
    fn misspelt_units_are_errors_naming_the_key() {
        assert_eq!(Unit::parse("bpe").unwrap(), Unit::Piece);
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
        let error = TokenList::from_transcripts(Unit::Character, &[], ["", ""].into_iter()).unwrap_err().to_string();
        assert!(error.contains("data.train: its transcripts have no symbols"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_encoded_is_decoded_and_a_saved_list_is_the_same_list(words in proptest::collection::vec("[a-zé'<>.]{1,5}", 1..6)) {
            let transcript = words.join(" ");
            for unit in [Unit::Character, Unit::Word] {
                let tokens = TokenList::from_transcripts(unit, &[], [transcript.as_str()].into_iter()).unwrap();
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
        let tokens = TokenList::from_transcripts(Unit::Character, &[], transcripts.iter().map(String::as_str)).unwrap();
        assert_eq!(tokens.len(), 28, "{:?}", tokens.symbols());
    }
}
