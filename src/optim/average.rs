//! The average of NT-ASGD (Merity, Keskar, Socher, "Regularizing and Optimizing LSTM Language Models", 2018, Algorithm 1).

use serde::{Deserialize, Serialize};

/// How many parameter values an average is over; with `original` as torch.optim.ASGD (t0 = 0) counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Average {
    /// Updates since averaging began.
    pub updates: u64,
    pub original: bool,
}

impl Average {
    /// The weight of the values of the update counted last: average += weight (values - average).
    ///
    /// After n updates the average is that of all n values. PyTorch's weight lags one update: its second is 1 again, so that its average
    /// is over all values but the first.
    pub fn weight(&self) -> f64 {
        let values = if self.original { self.updates.saturating_sub(1) } else { self.updates };
        1.0 / values.max(1) as f64
    }
}

/// Whether averaging begins after an epoch with this validation loss: it is above the best of the epochs `before`, the last `nonmono` of
/// them left out (awd-lstm-lm: `val_loss > min(best_val_loss[:-nonmono])`). A loss that is not finite is above any.
pub fn is_triggered(before: &[f64], nonmono: usize, loss: f64) -> bool {
    let considered = &before[..before.len().saturating_sub(nonmono)];
    let best = considered.iter().copied().fold(f64::INFINITY, f64::min);
    !considered.is_empty() && (loss > best || !loss.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averaging_begins_when_an_epoch_is_worse_than_the_best_but_the_last_few() {
        let losses = [5.0, 4.0, 3.0, 3.5, 3.6, 3.1, 2.9];
        // With nonmono = 2: epoch 3 compares with 5; epoch 4 with 5, 4; 5 with 5, 4, 3, which 3.6 exceeds.
        let triggered: Vec<bool> = (0..losses.len()).map(|k| is_triggered(&losses[..k], 2, losses[k])).collect();
        assert_eq!(triggered, [false, false, false, false, false, true, false]);
        assert!(!is_triggered(&[1.0, 1.0], 2, 9.0), "there is nothing to compare with");
        assert!(!is_triggered(&[1.0], 0, 1.0), "a tie is not worse");
        assert!(is_triggered(&[1.0], 0, f64::NAN));
    }

    #[test]
    fn the_average_is_that_of_the_values_since_it_began() {
        for (original, expected) in [(false, [2.0, 3.0, 4.0, 6.0]), (true, [2.0, 4.0, 5.0, 22.0 / 3.0])] {
            let mut average = Average { updates: 0, original };
            let mut mean = 100.0;
            for (value, expected) in [2.0, 4.0, 6.0, 12.0].into_iter().zip(expected) {
                average.updates += 1;
                mean += average.weight() * (value - mean);
                assert!((mean - expected).abs() < 1e-12, "{original}: {mean} for {expected}");
            }
        }
    }
}
