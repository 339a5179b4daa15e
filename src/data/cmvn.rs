//! Normalisation of features to zero mean and unit variance, per dimension: over the training set, or over each utterance.
//!
//! As Kaldi's `apply-cmvn --norm-vars`: the variance is E[x^2] - E[x]^2 and not below [`VARIANCE_FLOOR`]. The arithmetic is f64, so that a
//! constant dimension becomes (almost) zero instead of its rounding error blown up.

use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::files::write_bytes;

/// Kaldi's.
pub const VARIANCE_FLOOR: f64 = 1e-20;

/// What to normalise by (the recipe's `data.cmvn`).
#[derive(Debug, Clone, PartialEq)]
pub enum Normalization {
    None,
    /// Each utterance by its own statistics.
    Utterance,
    Global(Cmvn),
}

/// Mean and variance of each dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Cmvn {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

/// Sums over frames, from which [`Cmvn`] is made.
#[derive(Debug, Clone, PartialEq)]
struct Sums {
    frames: usize,
    /// Of x, then of x^2: [2, dimension].
    sums: Vec<f64>,
}

impl Sums {
    fn of(features: &[f32], dimension: usize) -> Self {
        let mut sums = vec![0.0; 2 * dimension];
        let (first, second) = sums.split_at_mut(dimension);
        for frame in features.chunks_exact(dimension) {
            for ((sum, square), &value) in first.iter_mut().zip(second.iter_mut()).zip(frame) {
                let value = f64::from(value);
                *sum += value;
                *square += value * value;
            }
        }
        Sums { frames: features.len() / dimension, sums }
    }

    fn into_cmvn(self, dimension: usize) -> Cmvn {
        let count = self.frames.max(1) as f64;
        let mean: Vec<f64> = self.sums[..dimension].iter().map(|sum| sum / count).collect();
        let variance = mean.iter().zip(&self.sums[dimension..]).map(|(mean, square)| square / count - mean * mean);
        Cmvn { variance: variance.map(|variance| variance.max(VARIANCE_FLOOR)).collect(), mean }
    }
}

impl Cmvn {
    /// The statistics of `utterances` utterances, which `read` gives as [frames, dimension].
    ///
    /// Each utterance is summed for itself and the sums are added in their order, so the bits do not depend on the number of threads.
    ///
    /// # Errors
    /// The first, in the order of the utterances, that `read` reports.
    pub fn over(utterances: usize, dimension: usize, read: impl Fn(usize) -> Result<Vec<f32>> + Sync) -> Result<Self> {
        // Collected in blocks: memory stays small however many utterances there are.
        const BLOCK: usize = 1024;
        let mut total = Sums { frames: 0, sums: vec![0.0; 2 * dimension] };
        for start in (0..utterances).step_by(BLOCK) {
            let end = utterances.min(start + BLOCK);
            let block: Vec<Result<Sums>> =
                (start..end).into_par_iter().map(|k| Ok(Sums::of(&read(k)?, dimension))).collect();
            for sums in block {
                let sums = sums?;
                total.frames += sums.frames;
                total.sums.iter_mut().zip(&sums.sums).for_each(|(total, sum)| *total += sum);
            }
        }
        Ok(total.into_cmvn(dimension))
    }

    pub fn dimension(&self) -> usize {
        self.mean.len()
    }

    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Not below [`VARIANCE_FLOOR`].
    pub fn variance(&self) -> &[f64] {
        &self.variance
    }

    /// Normalises `features`: [frames, dimension], in place.
    pub fn apply(&self, features: &mut [f32]) {
        let scales: Vec<f64> = self.variance.iter().map(|variance| 1.0 / variance.sqrt()).collect();
        for frame in features.chunks_exact_mut(self.dimension()) {
            for ((value, mean), scale) in frame.iter_mut().zip(&self.mean).zip(&scales) {
                *value = ((f64::from(*value) - mean) * scale) as f32;
            }
        }
    }

    /// Writes the statistics as safetensors: `mean` and `variance`, f64 [dimension].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_bytes(path.as_ref(), &self.to_bytes()?)
    }

    /// The contents of such a file.
    ///
    /// # Errors
    /// None that statistics of a real data set can cause.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let bytes = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let (mean, variance) = (bytes(&self.mean), bytes(&self.variance));
        let view = |data| TensorView::new(Dtype::F64, vec![self.dimension()], data);
        view(&mean)
            .and_then(|mean| Ok([("mean", mean), ("variance", view(&variance)?)]))
            .and_then(|tensors| safetensors::serialize(tensors, None))
            .map_err(|error| Error::program(format!("the statistics cannot be written: {error}")))
    }

    /// Reads what [`save`](Self::save) wrote, bit for bit.
    ///
    /// # Errors
    /// A file that cannot be read, is no safetensors file, or has other tensors; a value that no statistics can have.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, "be read", &error))?;
        let problem = |text: String| {
            Error::file(path, text).remedy("Name the CMVN file of a run, or let the statistics be computed again")
        };
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|error| problem(format!("it is no safetensors file: {error}")))?;
        let read = |name: &str| -> Result<Vec<f64>> {
            let tensor = tensors.tensor(name).map_err(|_| problem(format!("it has no tensor \"{name}\"")))?;
            if tensor.dtype() != Dtype::F64 || tensor.shape().len() != 1 {
                return Err(problem(format!(
                    "\"{name}\" is {:?} {:?}, not a list of F64",
                    tensor.dtype(),
                    tensor.shape()
                )));
            }
            let numbers = tensor
                .data()
                .chunks_exact(8)
                .map(|chunk| chunk.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte)));
            Ok(numbers.map(f64::from_bits).collect())
        };
        let (mean, variance) = (read("mean")?, read("variance")?);
        let sane = mean.len() == variance.len()
            && !mean.is_empty()
            && mean.iter().all(|mean| mean.is_finite())
            && variance.iter().all(|variance| variance.is_finite() && *variance >= VARIANCE_FLOOR);
        if !sane {
            return Err(problem("its mean and variance do not fit together or are not finite".into()));
        }
        Ok(Cmvn { mean, variance })
    }
}

impl Normalization {
    /// Normalises one utterance: [frames, dimension], in place.
    pub fn apply(&self, features: &mut [f32], dimension: usize) {
        match self {
            Normalization::None => {}
            Normalization::Utterance => Sums::of(features, dimension).into_cmvn(dimension).apply(features),
            Normalization::Global(cmvn) => cmvn.apply(features),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utterances() -> Vec<Vec<f32>> {
        let value = |k: usize| ((k * 7919 % 101) as f32).sin() * 3.0 + 10.0;
        (0..50).map(|u| (0..(u % 5 + 1) * 3).map(|k| value(u * 40 + k)).collect()).collect()
    }

    #[test]
    fn statistics_are_those_of_the_hand_worked_example() {
        // Dimension 0: 1, 3, 5, 7 has mean 4 and variance 5; dimension 1 is constant.
        let data = [vec![1.0, 0.1, 3.0, 0.1], vec![5.0, 0.1, 7.0, 0.1]];
        let cmvn = Cmvn::over(2, 2, |k| Ok(data[k].clone())).unwrap();
        assert_eq!(cmvn.mean()[0], 4.0);
        assert_eq!(cmvn.variance()[0], 5.0);
        let mut features = data[0].clone();
        cmvn.apply(&mut features);
        assert_eq!(features[0], (-3.0 / 5.0_f64.sqrt()) as f32);
        assert!(features[1].abs() < 1e-5 && features[3].abs() < 1e-5, "{features:?}");
    }

    #[test]
    fn normalised_features_have_mean_zero_and_variance_one() {
        let mut data = utterances();
        let cmvn = Cmvn::over(data.len(), 3, |k| Ok(data[k].clone())).unwrap();
        data.iter_mut().for_each(|features| cmvn.apply(features));
        let after = Cmvn::over(data.len(), 3, |k| Ok(data[k].clone())).unwrap();
        // Every value is rounded to f32 once: an error of 2^-24 relative to values below 4.
        assert!(after.mean().iter().all(|mean| mean.abs() < 4.0 * f64::from(f32::EPSILON)), "{after:?}");
        assert!(
            after.variance().iter().all(|variance| (variance - 1.0).abs() < 16.0 * f64::from(f32::EPSILON)),
            "{after:?}"
        );
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let data = utterances();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Cmvn::over(data.len(), 3, |k| Ok(data[k].clone())).unwrap())
        };
        assert_eq!(with(1), with(4));
    }

    #[test]
    fn an_utterance_of_one_frame_becomes_zero() {
        let mut features = [3.25, -1.5];
        Normalization::Utterance.apply(&mut features, 2);
        assert_eq!(features, [0.0, 0.0]);
        let mut features = [1.0, 3.0];
        Normalization::Utterance.apply(&mut features, 1);
        assert_eq!(features, [-1.0, 1.0]);
        Normalization::None.apply(&mut features, 1);
        assert_eq!(features, [-1.0, 1.0]);
    }

    #[test]
    fn statistics_survive_a_file_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cmvn.safetensors");
        let data = utterances();
        let cmvn = Cmvn::over(data.len(), 3, |k| Ok(data[k].clone())).unwrap();
        cmvn.save(&path).unwrap();
        assert_eq!(Cmvn::load(&path).unwrap(), cmvn);
    }

    #[test]
    fn a_file_that_is_no_cmvn_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cmvn.safetensors");
        std::fs::write(&path, b"junk").unwrap();
        assert!(Cmvn::load(&path).unwrap_err().to_string().contains("no safetensors file"));
        Cmvn { mean: vec![0.0], variance: vec![f64::NAN] }.save(&path).unwrap();
        assert!(Cmvn::load(&path).unwrap_err().to_string().contains("not finite"));
    }

    #[test]
    fn the_first_error_in_order_is_the_one_reported() {
        let error =
            Cmvn::over(9, 1, |k| if k < 3 { Ok(vec![1.0]) } else { Err(Error::utterance(format!("u{k}"), "bad")) });
        assert!(error.unwrap_err().to_string().contains("u3"));
    }
}
