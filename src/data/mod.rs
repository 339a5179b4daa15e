//! Data that the engine reads: Kaldi data folders and archives, texts, tokens, normalisation, subsets and batches.
//!
//! From a folder to batches:
//!
//! ```text
//! DataFolder::open -> TokenList::from_transcripts or load -> SpeechData::open (with a Subset or not)
//!     -> SpeechData::global_cmvn, normalize -> SpeechData::plan -> BatchPlan::epoch -> SpeechData::prefetch -> SpeechBatch
//! ```

pub mod ark;
pub mod augment;
pub mod batch;
pub mod cmvn;
pub mod kaldi;
pub mod pieces;
pub mod prefetch;
pub mod speech;
pub mod streams;
pub mod subset;
pub mod table;
pub mod text;
pub mod tokens;
pub mod vocabulary;

pub use ark::{ArkWriter, FeatureArchive};
pub use augment::{Draw, SpecAugment};
pub use batch::{BatchLimits, BatchPlan, SpeechBatch};
pub use cmvn::{Cmvn, Normalization};
pub use kaldi::{DataFolder, Source};
pub use pieces::{PieceKind, Pieces};
pub use prefetch::Prefetch;
pub use speech::{FeatureMatrix, FeatureProvider, SpeechData, SpeechUtterance};
pub use subset::Subset;
pub use text::TextData;
pub use tokens::{TokenList, Unit};
pub use vocabulary::Vocabulary;
