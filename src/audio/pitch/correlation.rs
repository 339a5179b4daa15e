//! The normalised cross-correlation function (NCCF) of a frame with the signal a lag later.

use crate::audio::pitch::filters::dot;

/// The measured lags, in samples.
#[derive(Debug, Clone, Copy)]
pub(super) struct Correlator {
    /// Samples that are compared.
    pub window: usize,
    pub first_lag: usize,
    /// Included.
    pub last_lag: usize,
}

/// Products of one frame, for each lag.
#[derive(Default)]
pub(super) struct Products {
    inner: Vec<f32>,
    /// The product of both windows' energies.
    norm: Vec<f32>,
}

impl Correlator {
    /// Samples from a frame's begin that its correlation reads.
    pub fn reach(&self) -> usize {
        self.window + self.last_lag
    }

    /// `frame`: [`reach`](Self::reach) samples. The mean of the first window is subtracted from all of it, in place.
    pub fn products(&self, frame: &mut [f32], products: &mut Products) {
        let mean = frame[..self.window].iter().sum::<f32>() / self.window as f32;
        frame.iter_mut().for_each(|sample| *sample -= mean);
        let own = &frame[..self.window];
        let energy = dot(own, own);
        products.inner.clear();
        products.norm.clear();
        for lag in self.first_lag..=self.last_lag {
            let later = &frame[lag..lag + self.window];
            products.inner.push(dot(own, later));
            products.norm.push(energy * dot(later, later));
        }
    }
}

impl Products {
    /// The correlation at each lag; a `ballast` lowers it where the signal is quiet.
    pub fn nccf(&self, ballast: f32, output: &mut Vec<f32>) {
        output.clear();
        output.extend(self.inner.iter().zip(&self.norm).map(|(inner, norm)| {
            let denominator = f64::from(norm + ballast).sqrt() as f32;
            if denominator != 0.0 { inner / denominator } else { 0.0 }
        }));
    }

    pub fn mean_norm(&self) -> f32 {
        self.norm.iter().sum::<f32>() / self.norm.len() as f32
    }
}
