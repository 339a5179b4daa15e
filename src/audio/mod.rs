//! From a recording to what a network reads: WAV, FLAC and NIST SPHERE in, log mel energies and pitch out, as Kaldi computes them.
//!
//! | file | what it owns |
//! |---|---|
//! | `reader` | which kind of file it is, which channel is read |
//! | `sphere`, `containers` | NIST SPHERE; WAV and FLAC |
//! | `resample` | another sample rate |
//! | `options` | [`FeatureOptions`]: the `[features]` of a recipe, `features.toml`, the options of `data-tools` |
//! | `difference` | in which option two sets of them differ |
//! | `validation` | which values of them are possible |
//! | `window` | frames: how many, where they begin, their window |
//! | `fbank` | log mel energies |
//! | `pauses` | where a long recording is cut |
//! | `pitch/` | Kaldi's pitch tracker and the features made of it |
//! | `features` | all of it for one utterance |
//! | `synthesis/` | a spoken corpus made by a machine, for the demo |

pub mod containers;
mod difference;
pub mod fbank;
pub mod features;
pub mod options;
pub mod pauses;
pub mod pitch;
pub mod reader;
pub mod resample;
pub mod sphere;
pub mod synthesis;
mod validation;
pub mod window;

#[cfg(test)]
mod kaldi_reference;

pub use features::{FeatureExtractor, Features};
pub use options::{FeatureOptions, WindowType};
pub use reader::{Audio, read_audio};
pub use resample::resample;
