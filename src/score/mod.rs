//! How good is a result: edit distance, error rates over a whole set, perplexity, whether a difference is significant, and the
//! files with which NIST's `sclite` checks the same counts.

pub mod edit;
pub mod perplexity;
pub mod rate;
pub mod significance;
pub mod trn;
