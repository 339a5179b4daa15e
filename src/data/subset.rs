//! A part of the training set, chosen at random once and for all by its seed.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::random::permutation;

/// The recipe's `data.subset`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subset {
    /// Share of the training utterances, above 0 and up to 1.
    pub fraction: f64,
    pub seed: u64,
    /// True: one random order serves all fractions, so that a smaller subset of the same seed lies within a larger one.
    #[serde(default = "nested_by_default")]
    pub nested: bool,
    /// Choose only from what the subset of this fraction (with the same seed) leaves over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complement_of: Option<f64>,
}

fn nested_by_default() -> bool {
    true
}

impl Subset {
    /// Chooses from `n` utterances, numbered in the order of their sorted ids; the choice comes back ascending.
    ///
    /// The number chosen is `fraction * n`, rounded; with `complement_of` at most what is left over (rounding may cost one utterance).
    ///
    /// # Errors
    /// A fraction outside (0, 1]; two that add up to more than 1; a choice of none.
    pub fn choose(&self, n: usize) -> Result<Vec<usize>> {
        check_fraction("data.subset.fraction", self.fraction)?;
        let wanted = share(self.fraction, n);
        let mut chosen = match self.complement_of {
            None => self.order(self.fraction, n)[..wanted].to_vec(),
            Some(other) => {
                check_fraction("data.subset.complement_of", other)?;
                if self.fraction + other > 1.0 + 1e-9 {
                    return Err(Error::key(
                        "data.subset",
                        format!("fraction {} is more than complement_of = {other} leaves over", self.fraction),
                    )
                    .remedy(format!("Use a fraction up to {:.6}", 1.0 - other)));
                }
                let mut left = self.order(other, n).split_off(share(other, n));
                if !self.nested {
                    // Drawn anew, and from a sorted list: the order that cut the other subset off has no say in this one.
                    left.sort_unstable();
                    let name = format!("subset {} outside {other}", self.fraction);
                    left = permutation(self.seed, &name, left.len()).into_iter().map(|place| left[place]).collect();
                }
                left.truncate(wanted);
                left
            }
        };
        if chosen.is_empty() {
            return Err(Error::key("data.subset", format!("it chooses none of the {n} training utterances"))
                .remedy("Use a larger fraction"));
        }
        chosen.sort_unstable();
        Ok(chosen)
    }

    /// The random order of which the subset of `fraction` is the beginning.
    fn order(&self, fraction: f64, n: usize) -> Vec<usize> {
        let name = if self.nested { "subset".to_string() } else { format!("subset {fraction}") };
        permutation(self.seed, &name, n)
    }
}

fn share(fraction: f64, n: usize) -> usize {
    ((fraction * n as f64).round() as usize).min(n)
}

fn check_fraction(key: &str, fraction: f64) -> Result<()> {
    if fraction > 0.0 && fraction <= 1.0 {
        return Ok(());
    }
    Err(Error::key(key, format!("{fraction} is no share of the training set"))
        .remedy("Use a number above 0 and up to 1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subset(fraction: f64, nested: bool, complement_of: Option<f64>) -> Subset {
        Subset { fraction, seed: 1, nested, complement_of }
    }

    #[test]
    fn a_smaller_nested_subset_lies_within_a_larger_one() {
        let ten = subset(0.1, true, None).choose(1000).unwrap();
        let twenty = subset(0.2, true, None).choose(1000).unwrap();
        assert_eq!((ten.len(), twenty.len()), (100, 200));
        assert!(ten.iter().all(|k| twenty.binary_search(k).is_ok()));
        let apart = subset(0.1, false, None).choose(1000).unwrap();
        assert!(!apart.iter().all(|k| subset(0.2, false, None).choose(1000).unwrap().binary_search(k).is_ok()));
    }

    #[test]
    fn a_subset_depends_on_its_seed_alone() {
        let one = subset(0.3, true, None);
        assert_eq!(one.choose(100).unwrap(), one.choose(100).unwrap());
        assert_ne!(one.choose(100).unwrap(), Subset { seed: 2, ..one }.choose(100).unwrap());
    }

    proptest! {
        #[test]
        fn a_complement_shares_nothing_with_its_subset(
            n in 5_usize..400, percent in 1_u32..99, nested in any::<bool>(), seed in any::<u64>()
        ) {
            let other = f64::from(percent) / 100.0;
            let first = Subset { fraction: other, seed, nested, complement_of: None }.choose(n);
            let rest = Subset { fraction: 1.0 - other, seed, nested, complement_of: Some(other) }.choose(n);
            if let (Ok(first), Ok(rest)) = (first, rest) {
                prop_assert!(rest.iter().all(|k| first.binary_search(k).is_err()));
                prop_assert!(rest.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert_eq!(first.len() + rest.len(), n);
            }
        }
    }

    #[test]
    fn impossible_choices_are_errors_naming_the_key() {
        for fraction in [0.0, -0.1, 1.5, f64::NAN] {
            assert!(subset(fraction, true, None).choose(10).unwrap_err().to_string().contains("data.subset.fraction"));
        }
        assert!(subset(0.1, true, Some(2.0)).choose(10).unwrap_err().to_string().contains("data.subset.complement_of"));
        let error = subset(0.3, true, Some(0.8)).choose(10).unwrap_err().to_string();
        assert!(error.contains("more than complement_of = 0.8 leaves over") && error.contains("0.2"), "{error}");
        assert!(subset(0.01, true, None).choose(10).unwrap_err().to_string().contains("chooses none of the 10"));
    }
}
