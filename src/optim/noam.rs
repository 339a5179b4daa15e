//! The learning rate of the Transformer (Vaswani et al., 2017, section 5.3), called Noam after one of them.

/// Rises as the updates up to `warmup`, then falls as the root of their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noam {
    /// D of the Transformer.
    pub width: usize,
    pub warmup: usize,
}

impl Noam {
    /// The factor on the learning rate of an update, counted from 1.
    pub fn factor(&self, update: u64) -> f64 {
        let (update, warmup) = (update.max(1) as f64, self.warmup as f64);
        update.powf(-0.5).min(update * warmup.powf(-1.5)) / (self.width as f64).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_to_its_highest_at_the_end_of_the_warmup_and_falls_as_a_root() {
        let noam = Noam { width: 256, warmup: 25_000 };
        // ESPnet's 5.0 * 256^-0.5 * 25000^-0.5.
        assert!((5.0 * noam.factor(25_000) - 0.001_976_4).abs() < 1e-7);
        assert!((noam.factor(100) / noam.factor(1) - 100.0).abs() < 1e-9);
        assert!((noam.factor(100_000) / noam.factor(25_000) - 0.5).abs() < 1e-12);
    }
}
