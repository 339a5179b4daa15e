//! Pieces of words: byte-pair encoding (Sennrich et al., "Neural machine translation of rare words with subword units", ACL 2016) and unigram
//! pieces (Kudo, "Subword regularization", ACL 2018).
//!
//! Training, splitting and the file format (`tokenizer.json`) are the `tokenizers` library's; SentencePiece's `.model` files are read too. A word
//! is split by itself, and its first piece begins with ▁, so that pieces put together are words with spaces again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use prost::Message;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder, Vocab};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::normalizers::Precompiled;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, Model, ModelWrapper, Tokenizer, Trainer};

use crate::data::tokens::{BLANK, UNKNOWN};
use crate::error::{Error, Result};
use crate::files::write_bytes;

/// Begins the first piece of a word: U+2581.
pub const WORD_BEGIN: char = '\u{2581}';

/// How pieces are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceKind {
    /// Byte-pair encoding: the most frequent neighbours are merged, again and again.
    Bpe,
    /// The pieces under which the training text is most probable.
    Unigram,
}

/// A trained splitter of words.
#[derive(Clone)]
pub struct Pieces {
    tokenizer: Tokenizer,
    /// As [`Pieces::save`] writes it.
    json: String,
    /// The pieces by their number, `<unk>` among them, without the symbols that only mark beginnings and ends of texts.
    symbols: Vec<String>,
    /// The library's number of each piece -> its place in `symbols`.
    places: HashMap<u32, usize>,
    /// Symbols of its own that are never split, such as [laughter].
    whole: BTreeSet<String>,
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pieces({} symbols)", self.symbols.len())
    }
}

/// Equal files split equally.
impl PartialEq for Pieces {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

impl Eq for Pieces {}

type LibraryError = tokenizers::Error;

impl Pieces {
    /// Finds `vocabulary` pieces (`<unk>` included, never fewer than there are characters) in transcripts. The `non_linguistic` symbols, where they
    /// stand as words, are left out: they are never split. The same transcripts give the same pieces, whatever their order.
    ///
    /// # Errors
    /// Transcripts without a word; more pieces than can be found, or fewer than there are characters.
    pub fn train<'a>(
        kind: PieceKind,
        vocabulary: usize,
        non_linguistic: &[String],
        transcripts: impl Iterator<Item = &'a str>,
    ) -> Result<Self> {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for word in transcripts.flat_map(str::split_ascii_whitespace) {
            if !non_linguistic.iter().any(|symbol| symbol == word) {
                *counts.entry(format!("{WORD_BEGIN}{word}")).or_insert(0) += 1;
            }
        }
        if counts.is_empty() {
            return Err(Error::program("the transcripts have no words to find pieces in").remedy("Check the file text"));
        }
        let characters: BTreeSet<char> = counts.keys().flat_map(|word| word.chars()).collect();
        let least = characters.len() + 1;
        if vocabulary < least {
            let problem = format!("is {vocabulary}, but the transcripts have {} characters", characters.len());
            return Err(Error::key("--vocab", problem)
                .remedy(format!("Ask for {least} pieces or more: each character is one, and so is {UNKNOWN}")));
        }
        let failed = |error: LibraryError| Error::program(format!("no pieces can be found: {error}"));
        let model: ModelWrapper = match kind {
            PieceKind::Bpe => bpe(vocabulary, &counts).map_err(failed)?.into(),
            PieceKind::Unigram => unigram(vocabulary, counts).map_err(failed)?.into(),
        };
        let found = model.get_vocab_size();
        // The unigram trainer stops near the number, and adds the characters that it had pruned.
        if found < vocabulary {
            return Err(Error::key("--vocab", format!("is {vocabulary}, but only {found} pieces can be found"))
                .remedy(format!("Ask for {found} or fewer, or give more text")));
        }
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(Metaspace::new(WORD_BEGIN, PrependScheme::Always, true)));
        tokenizer.with_decoder(Some(Metaspace::new(WORD_BEGIN, PrependScheme::Always, true)));
        Self::of_tokenizer(tokenizer).map_err(Error::program)
    }

    /// Reads a `tokenizer.json` of the library, or a SentencePiece `.model` of kind bpe or unigram.
    ///
    /// # Errors
    /// A file that cannot be read or is neither; one whose pieces do not mark the beginnings of words with ▁, or that drops unknown characters.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, "be read", &error))?;
        let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        let tokenizer = match is_json {
            true => Tokenizer::from_bytes(&bytes).map_err(|error| error.to_string()),
            false => of_sentencepiece(&bytes),
        };
        tokenizer.and_then(Self::of_tokenizer).map_err(|problem| {
            Error::file(path, format!("this is no file of pieces that can be used: {problem}"))
                .remedy("Name a tokenizer.json of data-tools pieces, or a SentencePiece .model of kind bpe or unigram")
        })
    }

    fn of_tokenizer(tokenizer: Tokenizer) -> std::result::Result<Self, String> {
        let json = tokenizer.to_string(false).map_err(|error| error.to_string())?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut numbered: Vec<(u32, String)> =
            tokenizer.get_vocab(true).into_iter().map(|(symbol, id)| (id, symbol)).collect();
        numbered.sort();
        let unknown = unknown_of(&tokenizer);
        let is_mark = |id: u32, symbol: &str| {
            symbol == BLANK || (added.get(&id).is_some_and(|token| token.special) && Some(symbol) != unknown.as_deref())
        };
        let (mut symbols, mut places) = (Vec::new(), HashMap::new());
        for (id, symbol) in numbered {
            if !is_mark(id, &symbol) {
                places.insert(id, symbols.len());
                symbols.push(if Some(&symbol) == unknown.as_ref() { UNKNOWN.to_string() } else { symbol });
            }
        }
        if let Some(bad) = symbols.iter().find(|s| s.is_empty() || s.contains(|c: char| c.is_ascii_whitespace())) {
            return Err(format!("its piece {bad:?} has white space"));
        }
        let whole = added.values().filter(|token| !token.special).map(|token| token.content.clone()).collect();
        let pieces = Pieces { tokenizer, json, symbols, places, whole };
        let begins = |word: &str| pieces.split(word).and_then(|split| split.first().cloned());
        if !begins("a").is_some_and(|piece| piece.starts_with(WORD_BEGIN)) {
            return Err(format!("it does not mark the beginning of a word with {WORD_BEGIN}"));
        }
        // A character of private use, which no list has: it must become <unk>, or bytes.
        if pieces
            .split("\u{10fffd}")
            .is_none_or(|split| split.iter().all(|piece| piece.chars().all(|c| c == WORD_BEGIN)))
        {
            return Err(format!("it drops the characters that it does not know; it has no {UNKNOWN}"));
        }
        Ok(pieces)
    }

    /// Writes the `tokenizer.json` that [`load`](Self::load) reads.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_bytes(path.as_ref(), self.json.as_bytes())
    }

    /// The text of the file.
    pub fn to_json(&self) -> &str {
        &self.json
    }

    /// The pieces in the order of their numbers, and `<unk>`.
    pub fn symbols(&self) -> &[String] {
        &self.symbols
    }

    /// The symbols that it never splits, such as [laughter].
    pub fn whole(&self) -> impl Iterator<Item = &str> {
        self.whole.iter().map(String::as_str)
    }

    /// The pieces of one word, the first with its ▁; None if the library cannot split it.
    pub fn split(&self, word: &str) -> Option<Vec<String>> {
        let encoding = self.tokenizer.encode_fast(word, false).ok()?;
        let place = |id: &u32| self.places.get(id).map(|&place| self.symbols[place].clone());
        encoding.get_ids().iter().map(place).collect()
    }
}

/// What stands for the characters that a model does not know.
fn unknown_of(tokenizer: &Tokenizer) -> Option<String> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(bpe) => bpe.get_unk_token().clone(),
        ModelWrapper::Unigram(unigram) => {
            // The model does not tell, so it is asked: whatever a character of private use becomes.
            let tokens = unigram.tokenize("\u{10fffd}").ok()?;
            tokens.first().filter(|_| !unigram.byte_fallback()).and_then(|token| unigram.id_to_token(token.id))
        }
        ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => None,
    }
}

fn unknown_token() -> AddedToken {
    AddedToken::from(UNKNOWN, true)
}

fn bpe(vocabulary: usize, counts: &BTreeMap<String, u32>) -> std::result::Result<BPE, LibraryError> {
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocabulary)
        .special_tokens(vec![unknown_token()])
        .build();
    let words = counts.iter().flat_map(|(word, &count)| std::iter::repeat_n(word, count as usize));
    trainer.feed(words, |word| Ok(vec![word.to_string()]))?;
    let mut model = BPE::builder().unk_token(UNKNOWN.into()).fuse_unk(true).build()?;
    trainer.train(&mut model)?;
    Ok(model)
}

fn unigram(vocabulary: usize, counts: BTreeMap<String, u32>) -> std::result::Result<Unigram, LibraryError> {
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(vocabulary as u32)
        .special_tokens(vec![unknown_token()])
        .unk_token(Some(UNKNOWN.into()))
        .build()?;
    let mut model = Unigram::default();
    // Sums over words in an order of the threads' choice would give other pieces on another day. The switch is the whole process's, so it stays.
    tokenizers::parallelism::set_parallelism(false);
    trainer.do_train(counts.into_iter().collect(), &mut model)?;
    Unigram::from(in_order(model.iter().cloned().collect()), Some(0), false)
}

/// The trainer's pieces in an order of their own. The first is `<unk>`; among equal scores, and among the characters that training has pruned and
/// that are put back with scores 0.0001 apart, the trainer's order is that of a hash map.
fn in_order(mut pieces: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let Some((_, found)) = pieces.split_first_mut() else { return pieces };
    let least = found.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let band = least + 1e-4 * found.len() as f64;
    let put_back = |(piece, score): &(String, f64)| piece.chars().count() == 1 && *score <= band;
    let (mut names, mut scores): (Vec<String>, Vec<f64>) =
        found.iter().filter(|entry| put_back(entry)).cloned().unzip();
    names.sort_unstable();
    scores.sort_unstable_by(|a, b| b.total_cmp(a));
    let entries = found.iter_mut().filter(|entry| put_back(entry));
    entries.zip(names.into_iter().zip(scores)).for_each(|(entry, again)| *entry = again);
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    pieces
}

/// What is read of SentencePiece's `sentencepiece_model.proto`.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerProto>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerProto>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceProto {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    /// 1 (the default): normal, 2: unknown, 3: control, 4: user-defined, 5: unused, 6: byte.
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerProto {
    /// 1 (the default): unigram, 2: bpe, 3: word, 4: char.
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerProto {
    #[prost(bytes = "vec", tag = "2")]
    precompiled_charsmap: Vec<u8>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
}

/// The library's form of a SentencePiece model.
fn of_sentencepiece(bytes: &[u8]) -> std::result::Result<Tokenizer, String> {
    const UNKNOWN_PIECE: i32 = 2;
    const CONTROL: i32 = 3;
    const USER_DEFINED: i32 = 4;
    const BYTE: i32 = 6;
    let proto =
        ModelProto::decode(bytes).map_err(|error| format!("it is neither JSON nor a SentencePiece model ({error})"))?;
    let kind = |piece: &PieceProto| piece.kind.unwrap_or(1);
    let unknown = proto.pieces.iter().position(|piece| kind(piece) == UNKNOWN_PIECE);
    let unknown = unknown.ok_or("it has no pieces, or none for unknown characters")?;
    let bytes_too = proto.pieces.iter().any(|piece| kind(piece) == BYTE);
    let text = |error: LibraryError| error.to_string();
    let model: ModelWrapper = match proto.trainer.as_ref().and_then(|trainer| trainer.model_type).unwrap_or(1) {
        1 => {
            let pieces = proto.pieces.iter().map(|piece| (piece.piece.clone(), f64::from(piece.score))).collect();
            Unigram::from(pieces, Some(unknown), bytes_too).map_err(text)?.into()
        }
        2 => {
            let ids: HashMap<&str, usize> =
                proto.pieces.iter().enumerate().map(|(id, piece)| (piece.piece.as_str(), id)).collect();
            let vocabulary: Vec<(String, u32)> =
                ids.iter().map(|(&piece, &id)| (piece.to_string(), id as u32)).collect();
            BPE::builder()
                .vocab_and_merges(vocabulary.into_iter().collect::<Vocab>(), merges(&proto.pieces, &ids))
                .unk_token(proto.pieces[unknown].piece.clone())
                .fuse_unk(true)
                .byte_fallback(bytes_too)
                .build()
                .map_err(text)?
                .into()
        }
        _ => return Err("its kind is neither bpe nor unigram".into()),
    };
    let mut tokenizer = Tokenizer::new(model);
    let normalizer = proto.normalizer.unwrap_or_default();
    if !normalizer.precompiled_charsmap.is_empty() {
        let map = Precompiled::from(&normalizer.precompiled_charsmap).map_err(|error| error.to_string())?;
        tokenizer.with_normalizer(Some(map));
    }
    let prefix = if normalizer.add_dummy_prefix.unwrap_or(true) { PrependScheme::Always } else { PrependScheme::Never };
    tokenizer.with_pre_tokenizer(Some(Metaspace::new(WORD_BEGIN, prefix, true)));
    tokenizer.with_decoder(Some(Metaspace::new(WORD_BEGIN, prefix, true)));
    let of_kind = |wanted: i32, special: bool| -> Vec<AddedToken> {
        let those = proto.pieces.iter().filter(|piece| kind(piece) == wanted);
        those.map(|piece| AddedToken::from(piece.piece.clone(), special).normalized(false)).collect()
    };
    tokenizer.add_special_tokens(&of_kind(CONTROL, true));
    tokenizer.add_tokens(&of_kind(USER_DEFINED, false));
    Ok(tokenizer)
}

/// SentencePiece merges the neighbours whose piece has the best score; the library wants the pairs in the order of their precedence.
fn merges(pieces: &[PieceProto], ids: &HashMap<&str, usize>) -> Vec<(String, String)> {
    let mut ranked = Vec::new();
    for piece in pieces {
        let splits = piece.piece.char_indices().skip(1).map(|(place, _)| piece.piece.split_at(place));
        for (left, right) in splits {
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                ranked.push((piece.score, l, r, (left.to_string(), right.to_string())));
            }
        }
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    ranked.into_iter().map(|(.., pair)| pair).collect()
}

#[cfg(test)]
#[path = "pieces_tests.rs"]
mod tests;
