//! Texts as a language model reads them: one stream of token ids, from a text file or, memory-mapped, from an id file.
//!
//! An id file (`data-tools wikitext`, `data-tools text`) is little-endian: eight bytes [`MAGIC`], then as u64 the number of ids, the size of the
//! token list that they are from and the characters of [`Encoded`], then the ids as u32. Its token list lies beside it as `tokens.txt`.

use super::vocabulary::{Encoded, Vocabulary};
use crate::error::{Error, Result};
use crate::files::{read_text, write_atomically};
use memmap2::Mmap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"HFTEXT1\n";
const HEADER: usize = 32;
/// The token list of the id files in a folder.
pub const TOKENS: &str = "tokens.txt";

/// A text as one stream of tokens.
#[derive(Debug, Clone)]
pub struct TextData {
    path: PathBuf,
    ids: Ids,
    characters: u64,
}

#[derive(Debug, Clone)]
enum Ids {
    Memory(Arc<[u32]>),
    Mapped(Arc<Mmap>),
}

/// Writes an id file, durably.
///
/// # Errors
/// A file that cannot be written.
pub fn write_ids(path: &Path, encoded: &Encoded, vocabulary: usize) -> Result<()> {
    write_atomically(path, |writer| {
        writer.write_all(MAGIC)?;
        for number in [encoded.ids.len() as u64, vocabulary as u64, encoded.characters] {
            writer.write_all(&number.to_le_bytes())?;
        }
        if cfg!(target_endian = "little") {
            return writer.write_all(bytemuck::cast_slice(&encoded.ids));
        }
        encoded.ids.iter().try_for_each(|id| writer.write_all(&id.to_le_bytes()))
    })
}

/// Whether the file begins as an id file does.
///
/// # Errors
/// A file that cannot be read.
pub fn is_id_file(path: &Path) -> Result<bool> {
    let cannot_read = |error| Error::io(path, "be read", &error);
    let mut begin = Vec::new();
    File::open(path).map_err(cannot_read)?.take(MAGIC.len() as u64).read_to_end(&mut begin).map_err(cannot_read)?;
    Ok(begin == MAGIC)
}

impl TextData {
    /// Opens a text file, or an id file that was made with a list of the same length.
    ///
    /// # Errors
    /// A file that cannot be read, is not UTF-8 (with the byte offset), or is damaged; a text of fewer than two tokens, in which nothing is
    /// predicted; tokens that the list lacks.
    pub fn open(path: &Path, vocabulary: &Vocabulary) -> Result<Self> {
        let data = if is_id_file(path)? {
            Self::map(path, vocabulary.len())?
        } else {
            let Encoded { ids, characters } = vocabulary.encode(path, &read_text(path)?)?;
            TextData { path: path.to_path_buf(), ids: Ids::Memory(ids.into()), characters }
        };
        if data.ids().len() < 2 {
            return Err(Error::file(path, format!("has {} tokens, so nothing in it is predicted", data.ids().len()))
                .remedy("Name a text of at least two tokens; the end of a line is one"));
        }
        Ok(data)
    }

    fn map(path: &Path, vocabulary: usize) -> Result<Self> {
        let cannot_read = |error| Error::io(path, "be read", &error);
        let damaged = |problem: String| {
            Error::file(path, problem).remedy("Make it again with data-tools, together with its tokens.txt")
        };
        let file = File::open(path).map_err(cannot_read)?;
        // SAFETY: sound as long as nobody truncates the file while it is mapped; `write_ids` replaces files and never changes them.
        let map = unsafe { Mmap::map(&file) }.map_err(cannot_read)?;
        let number = |place: usize| {
            let bytes = map.get(place..place + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_le_bytes).ok_or_else(|| damaged("is cut short".into()))
        };
        let (count, symbols, characters) = (number(8)?, number(16)?, number(24)?);
        if map.len() as u64 != (HEADER as u64).saturating_add(count.saturating_mul(4)) {
            return Err(damaged(format!("is cut short or damaged: {count} ids do not take {} bytes", map.len())));
        }
        if symbols != vocabulary as u64 {
            let problem = format!("was made with a token list of {symbols} symbols, not of {vocabulary}");
            return Err(damaged(problem));
        }
        let ids = if cfg!(target_endian = "little") {
            Ids::Mapped(Arc::new(map))
        } else {
            let bytes = map[HEADER..].chunks_exact(4);
            Ids::Memory(bytes.map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]])).collect())
        };
        let data = TextData { path: path.to_path_buf(), ids, characters };
        if let Some(place) = data.ids().iter().position(|&id| id as usize >= vocabulary) {
            let problem = format!("id {place} is {}, but the token list has {vocabulary} symbols", data.ids()[place]);
            return Err(damaged(problem));
        }
        Ok(data)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn ids(&self) -> &[u32] {
        match &self.ids {
            Ids::Memory(ids) => ids,
            // A map begins at a page, and the header is a multiple of four bytes.
            Ids::Mapped(map) => bytemuck::cast_slice(&map[HEADER..]),
        }
    }

    /// Of the text behind its first token: see [`Encoded`].
    pub fn characters(&self) -> u64 {
        self.characters
    }

    /// The sentences, each with its `<eos>`; what follows the last one is a sentence too.
    pub fn sentences(&self, end: u32) -> Vec<&[u32]> {
        self.ids().split_inclusive(|&id| id == end).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Unit;
    use std::fs;

    const TEXT: &str = "a b\n\nb c a\n";

    fn vocabulary() -> Vocabulary {
        Vocabulary::by_first_appearance(Unit::Word, [TEXT]).unwrap()
    }

    #[test]
    fn an_id_file_is_the_text_that_it_was_made_from() {
        let folder = tempfile::tempdir().unwrap();
        let (text, ids) = (folder.path().join("a.txt"), folder.path().join("a.ids"));
        fs::write(&text, TEXT).unwrap();
        write_ids(&ids, &vocabulary().encode(&text, TEXT).unwrap(), vocabulary().len()).unwrap();
        let (read, mapped) =
            (TextData::open(&text, &vocabulary()).unwrap(), TextData::open(&ids, &vocabulary()).unwrap());
        assert_eq!((read.ids(), read.characters()), (mapped.ids(), mapped.characters()));
        let end = vocabulary().end();
        assert_eq!(read.sentences(end).concat(), read.ids());
        assert_eq!(read.sentences(end).len(), 3);
    }

    #[test]
    fn an_id_file_cut_anywhere_is_an_error_and_never_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ids");
        write_ids(&path, &vocabulary().encode(&path, TEXT).unwrap(), vocabulary().len()).unwrap();
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(TextData::open(&path, &vocabulary()).is_err(), "{length}");
        }
        fs::write(&path, [&bytes[..bytes.len() - 1], &[0xFF]].concat()).unwrap();
        assert!(TextData::open(&path, &vocabulary()).unwrap_err().to_string().contains("tokens.txt"));
        let other = Vocabulary::by_first_appearance(Unit::Word, ["a\n"]).unwrap();
        fs::write(&path, &bytes).unwrap();
        assert!(TextData::open(&path, &other).unwrap_err().to_string().contains("4 symbols, not of 2"));
    }

    #[test]
    fn a_text_in_another_encoding_is_an_error_with_the_byte_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin1.txt");
        fs::write(&path, b"a b\nb \xE4\n").unwrap();
        let error = TextData::open(&path, &vocabulary()).unwrap_err().to_string();
        assert!(error.contains("offset 6") && error.contains("UTF-8"), "{error}");
        fs::write(&path, "\n").unwrap();
        assert!(TextData::open(&path, &vocabulary()).unwrap_err().to_string().contains("has 1 tokens"));
    }
}
