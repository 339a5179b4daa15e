//! Texts for language models: id files and their token list.
//!
//! ```text
//! OUT/tokens.txt   OUT/train.ids   OUT/valid.ids   OUT/test.ids
//! ```

use std::path::{Path, PathBuf};

use clap::Args;
use headfirst::data::text::{TOKENS, write_ids};
use headfirst::data::{Unit, Vocabulary};
use headfirst::error::{Error, Result};
use headfirst::files::{create_folder, read_text};

/// Any text, one sentence or paragraph a line: its tokens as ids
///
/// SOURCE is a text file, which becomes train.ids, or a folder with train.txt and, if they are there, valid.txt and test.txt. The token list has
/// <eos> (at every line's end), <unk> (for all that the list lacks) and the most frequent words of the training text.
#[derive(Args)]
pub struct Arguments {
    /// A text file in UTF-8, or a folder with train.txt, valid.txt, test.txt
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// The folder to write the id files and tokens.txt to
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Words of the training text in the token list, the most frequent ones, beside <eos> and <unk>
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vocab: u32,
    /// Characters are the tokens, not words
    #[arg(long)]
    characters: bool,
}

pub fn run(arguments: &Arguments, quiet: bool) -> Result<()> {
    let unit = if arguments.characters { Unit::Character } else { Unit::Word };
    let sets = if arguments.source.is_dir() {
        read_sets(&arguments.source, |set| vec![format!("{set}.txt")])?
    } else {
        vec![Set { name: "train", text: read_text(&arguments.source)?, path: arguments.source.clone() }]
    };
    let vocabulary = Vocabulary::by_count(unit, &sets[0].text, arguments.vocab as usize)?;
    write(&sets, &vocabulary, &arguments.out, quiet)
}

/// A text, what it is called, and where it was read.
pub struct Set {
    pub name: &'static str,
    pub path: PathBuf,
    pub text: String,
}

/// The training text and, if they are there, the others, each under one of its `names`.
pub fn read_sets(source: &Path, names: impl Fn(&str) -> Vec<String>) -> Result<Vec<Set>> {
    let mut sets = Vec::new();
    for name in ["train", "valid", "test"] {
        let paths: Vec<PathBuf> = names(name).iter().map(|file| source.join(file)).collect();
        match paths.iter().find(|path| path.is_file()) {
            Some(path) => sets.push(Set { name, text: read_text(path)?, path: path.clone() }),
            None if name == "train" => {
                let expected = names(name).join(" nor ");
                return Err(Error::file(source, format!("has no {expected}"))
                    .remedy("Name the folder in which the downloaded archive was unpacked"));
            }
            None => {}
        }
    }
    Ok(sets)
}

/// Writes the id files and their token list, which comes last: without it nothing is read.
pub fn write(sets: &[Set], vocabulary: &Vocabulary, out: &Path, quiet: bool) -> Result<()> {
    create_folder(out)?;
    for set in sets {
        let encoded = vocabulary.encode(&set.path, &set.text)?;
        write_ids(&out.join(format!("{}.ids", set.name)), &encoded, vocabulary.len())?;
        if !quiet {
            eprintln!("{}: {} tokens, {} characters", set.name, encoded.ids.len(), encoded.characters);
        }
    }
    vocabulary.save(out.join(TOKENS))?;
    if !quiet {
        eprintln!("{}: {} symbols", TOKENS, vocabulary.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use headfirst::data::TextData;
    use std::fs;

    fn arguments(source: &Path, out: &Path, vocab: u32) -> Arguments {
        Arguments { source: source.into(), out: out.into(), vocab, characters: false }
    }

    #[test]
    fn a_folder_becomes_id_files_with_one_list() {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (folder.path().join("in"), folder.path().join("out"));
        fs::create_dir(&source).unwrap();
        fs::write(source.join("train.txt"), "b a b\nb\n").unwrap();
        fs::write(source.join("valid.txt"), "a x\n").unwrap();
        run(&arguments(&source, &out, 1), true).unwrap();
        let vocabulary = Vocabulary::load(Unit::Word, out.join(TOKENS)).unwrap();
        assert_eq!(vocabulary.symbols(), ["<eos>", "<unk>", "b"]);
        let ids = |name: &str| TextData::open(&out.join(name), &vocabulary).unwrap().ids().to_vec();
        assert_eq!((ids("train.ids"), ids("valid.ids")), (vec![2, 1, 2, 0, 2, 0], vec![1, 1, 0]));
        assert!(!out.join("test.ids").exists());
    }

    #[test]
    fn another_encoding_is_an_error_with_the_byte_offset_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (source, out) = (folder.path().join("latin1.txt"), folder.path().join("out"));
        fs::write(&source, b"na\xEFve\n").unwrap();
        let error = run(&arguments(&source, &out, 9), true).unwrap_err().to_string();
        assert!(error.contains("offset 2"), "{error}");
        assert!(!out.exists());
        let error = run(&arguments(folder.path(), &out, 9), true).unwrap_err().to_string();
        assert!(error.contains("train.txt"), "{error}");
    }
}
