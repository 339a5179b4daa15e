//! Pieces of words: the transcripts of a data folder in, a file for a recipe's `data.pieces` out.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use headfirst::data::table::read_table;
use headfirst::data::tokens::read_non_linguistic;
use headfirst::data::{PieceKind, Pieces};
use headfirst::error::{Error, Result};

/// Find byte-pair or unigram pieces in transcripts: text -> pieces.json
///
/// DATA_DIR is a Kaldi data folder, whose `text` is read. OUT is a tokenizer.json of the Hugging Face tokenizers library, which a recipe with
/// data.tokens = "bpe" names in data.pieces.
#[derive(Args)]
pub struct Arguments {
    /// The folder with text
    #[arg(value_name = "DATA_DIR")]
    source: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Pieces to find, <unk> and each character among them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vocab: u32,
    /// Which pieces: merged neighbours (bpe), or those under which the text is most probable (unigram)
    #[arg(long, value_enum, default_value = "bpe")]
    kind: Kind,
    /// A file with a symbol a line, such as <NOISE>, that are no words and are left out
    #[arg(long, value_name = "FILE")]
    non_linguistic: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Bpe,
    Unigram,
}

pub fn run(arguments: &Arguments, quiet: bool) -> Result<()> {
    let text = arguments.source.join("text");
    if !text.is_file() {
        return Err(Error::file(&arguments.source, "the folder has no file text")
            .remedy("Write it with a line \"id transcript\" for each utterance"));
    }
    let rows = read_table(&text)?;
    let whole = arguments.non_linguistic.as_deref().map(read_non_linguistic).transpose()?.unwrap_or_default();
    let kind = match arguments.kind {
        Kind::Bpe => PieceKind::Bpe,
        Kind::Unigram => PieceKind::Unigram,
    };
    let transcripts = rows.iter().map(|row| row.value.as_str());
    let pieces = Pieces::train(kind, arguments.vocab as usize, &whole, transcripts)?;
    pieces.save(&arguments.out)?;
    if !quiet {
        eprintln!("{}: {} pieces", arguments.out.display(), pieces.symbols().len());
    }
    Ok(())
}
