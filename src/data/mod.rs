//! Data that the engine reads: Kaldi data folders and archives, tokens, normalisation, subsets and batches.

pub mod ark;
pub mod cmvn;
pub mod files;
pub mod kaldi;
pub mod subset;
pub mod table;
pub mod tokens;
