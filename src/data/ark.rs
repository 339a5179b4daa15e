//! Kaldi archives of float matrices: written uncompressed, read in every form that Kaldi writes.
//!
//! An archive (`feats.ark`) is a sequence of `id SPACE matrix`; its index (`feats.scp`) has a line `id path:offset` for each, where
//! the offset is that of the matrix, behind the id. A binary matrix starts with the two bytes `\0B` and a token:
//!
//! ```text
//! FM, DM          \4 rows:i32 \4 columns:i32, then rows * columns f32 or f64, row by row
//! CM, CM2, CM3    minimum:f32 range:f32 rows:i32 columns:i32, then 8- or 16-bit codes (`compressed`)
//! text            "[", one line of numbers for each row, "]"
//! ```
//!
//! All numbers are little-endian, as on every machine that Kaldi runs on.

mod archive;
mod compressed;
mod matrix;
mod writer;

pub use archive::FeatureArchive;
pub use writer::ArkWriter;
