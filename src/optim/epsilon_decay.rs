//! ESPnet's epsilon decay for Adadelta: a smaller epsilon makes smaller steps, so it plays the part of a learning-rate schedule.

use serde::{Deserialize, Serialize};

/// Adadelta's epsilon, multiplied by `factor` after each validation that is worse than the best so far (ESPnet v1, `eps_decay`
/// with its `CompareValueTrigger`; its factor is 0.01). A tie is not worse. A loss that is not finite is; ESPnet lets a NaN pass and then
/// compares with it for ever.
///
/// The whole of it belongs to a stage's saved state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpsilonDecay {
    epsilon: f64,
    factor: f64,
    best: Option<f64>,
}

/// Where the decay ends. With an epsilon of 0 in f32 Adadelta would divide 0 by 0 for a weight that never had a gradient.
const SMALLEST_EPSILON: f64 = f32::MIN_POSITIVE as f64;

impl EpsilonDecay {
    /// A `factor` of 1 never changes epsilon.
    pub fn new(epsilon: f64, factor: f64) -> Self {
        EpsilonDecay { epsilon, factor, best: None }
    }

    /// Epsilon for the next update.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// Takes a validation loss in. True if epsilon was decayed: ESPnet then also goes back to the best weights (not the best
    /// optimiser state), which is the caller's to do.
    pub fn after_validation(&mut self, loss: f64) -> bool {
        let worse = !loss.is_finite() || self.best.is_some_and(|best| loss > best);
        if !worse {
            self.best = Some(loss);
            return false;
        }
        if self.factor == 1.0 {
            return false;
        }
        self.epsilon = (self.epsilon * self.factor).max(SMALLEST_EPSILON.min(self.epsilon));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epsilon_falls_when_validation_worsens_and_only_then() {
        let mut decay = EpsilonDecay::new(1e-8, 0.01);
        let decayed: Vec<bool> = [3.0, 2.0, 2.5, 2.0, 2.1, 1.9].map(|loss| decay.after_validation(loss)).into();
        assert_eq!(decayed, [false, false, true, false, true, false]);
        assert!((decay.epsilon() / 1e-12 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_worse_and_is_not_remembered() {
        let mut decay = EpsilonDecay::new(1e-8, 0.1);
        assert!(decay.after_validation(f64::NAN));
        assert!(!decay.after_validation(2.0));
        assert!(decay.after_validation(f64::INFINITY));
        assert!(decay.after_validation(2.5), "2 is still the best");
    }

    #[test]
    fn a_factor_of_one_means_no_decay() {
        let mut decay = EpsilonDecay::new(1e-6, 1.0);
        assert!(!decay.after_validation(1.0));
        assert!(!decay.after_validation(2.0));
        assert_eq!(decay.epsilon(), 1e-6);
    }

    #[test]
    fn epsilon_never_becomes_zero_in_f32() {
        let mut decay = EpsilonDecay::new(1e-8, 0.01);
        decay.after_validation(1.0);
        (0..50).for_each(|_| assert!(decay.after_validation(2.0)));
        assert!(decay.epsilon() as f32 > 0.0);
    }
}
