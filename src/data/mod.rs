//! Data that the engine reads: Kaldi data folders and archives, tokens, normalisation, subsets and batches.

pub mod ark;
pub mod files;
