//! WikiText-2 and WikiText-103 (Merity et al., 2016), the tokenised versions.
//!
//! ```text
//! SOURCE/wiki.train.tokens   SOURCE/wiki.valid.tokens   SOURCE/wiki.test.tokens       or train.txt, valid.txt, test.txt
//! ```

use std::path::PathBuf;

use clap::Args;
use headfirst::data::{Unit, Vocabulary};
use headfirst::error::Result;

use crate::text::{read_sets, write};

/// WikiText: its words as ids, numbered by first appearance
///
/// SOURCE is the folder with wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens (or train.txt, valid.txt, test.txt). The token list has
/// all words of the three in the order of their first appearance, and <eos> at every line's end, as awd-lstm-lm numbers them: WikiText-2 has
/// 33,278 symbols and 2,088,628, 217,646 and 245,569 tokens.
#[derive(Args)]
pub struct Arguments {
    /// The folder with the three texts
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// The folder to write the id files and tokens.txt to
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

pub fn run(arguments: &Arguments, quiet: bool) -> Result<()> {
    let sets = read_sets(&arguments.source, |set| vec![format!("wiki.{set}.tokens"), format!("{set}.txt")])?;
    let vocabulary = Vocabulary::by_first_appearance(Unit::Word, sets.iter().map(|set| set.text.as_str()))?;
    write(&sets, &vocabulary, &arguments.out, quiet)
}
