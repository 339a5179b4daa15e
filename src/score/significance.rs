//! Is one system better than another, or luckier? Two tests over the utterances that both have recognised.
//!
//! - [`matched_pairs`]: Gillick and Cox, "Some statistical issues in the comparison of speech recognition algorithms", ICASSP
//!   1989. The differences of the numbers of edits, segment by segment, are averaged and held against their own spread. The segments
//!   here are whole utterances; `sclite` takes the smaller stretches between words that both systems have right.
//! - [`bootstrap`]: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
//!   The utterances are drawn again, with replacement and for both systems alike, as many as there are, and the difference of
//!   the two error rates is computed anew; its percentiles are a confidence interval.
//!
//! Differences are second minus first: negative where the second system is better.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::random::Philox;

/// What two systems made of one utterance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Symbols of the reference.
    pub reference: u64,
    /// Edits of the first system.
    pub first: u64,
    /// Edits of the second system.
    pub second: u64,
}

impl Pair {
    fn difference(&self) -> i64 {
        self.second as i64 - self.first as i64
    }
}

/// What the matched pairs test says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MatchedPairs {
    /// Mean over utterances of the difference of edits.
    pub mean_difference: f64,
    /// The standard error of that mean; 0 if all differences are equal.
    pub standard_error: f64,
    /// How probable a difference this large, either way, would be between equally good systems. Rests on the mean being normally
    /// distributed: trust it from some 50 utterances on.
    pub p_value: f64,
}

/// How the bootstrap draws.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BootstrapOptions {
    /// How often the set is drawn again.
    pub replicates: u32,
    /// The share of the replicates that the interval holds, 0.95 for instance.
    pub confidence: f64,
    pub seed: u64,
}

impl Default for BootstrapOptions {
    fn default() -> Self {
        BootstrapOptions { replicates: 10_000, confidence: 0.95, seed: 1 }
    }
}

/// What the bootstrap says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The second system's error rate minus the first's on the set as it is, per cent absolute.
    pub difference: f64,
    /// The confidence interval of that difference, per cent absolute.
    pub low: f64,
    pub high: f64,
    /// The share of replicates in which the second system is better (a tie counts half).
    pub probability_of_improvement: f64,
    /// Two-sided: twice the smaller share of replicates on the one or the other side of zero, zero included. Never 0: the set
    /// itself counts as one replicate more.
    pub p_value: f64,
}

/// Gillick and Cox's matched pairs test with utterances as segments.
///
/// # Errors
/// Fewer than two utterances have no spread.
pub fn matched_pairs(pairs: &[Pair]) -> Result<MatchedPairs> {
    let n = enough(pairs)? as f64;
    let mean_difference = pairs.iter().map(|pair| pair.difference() as f64).sum::<f64>() / n;
    let squares: f64 = pairs.iter().map(|pair| (pair.difference() as f64 - mean_difference).powi(2)).sum();
    let standard_error = (squares / (n - 1.0) / n).sqrt();
    let p_value = match (mean_difference == 0.0, standard_error == 0.0) {
        (true, _) => 1.0,
        (false, true) => 0.0,
        (false, false) => complementary_error_function((mean_difference / standard_error).abs() / 2_f64.sqrt()),
    };
    Ok(MatchedPairs { mean_difference, standard_error, p_value })
}

/// Bisani and Ney's bootstrap of the difference of two error rates. The same pairs, in the same order, and the same options give the same
/// bits on any number of threads.
///
/// # Errors
/// Fewer than two utterances, no reference symbols, no replicates, or a confidence that is not between 0 and 1.
pub fn bootstrap(pairs: &[Pair], options: &BootstrapOptions) -> Result<Bootstrap> {
    enough(pairs)?;
    if pairs.iter().all(|pair| pair.reference == 0) {
        return Err(Error::program("two systems cannot be compared where every reference is empty"));
    }
    if options.replicates == 0 || !(options.confidence > 0.0 && options.confidence < 1.0) {
        return Err(Error::program(format!(
            "a bootstrap with {} replicates and confidence {} has no interval",
            options.replicates, options.confidence
        ))
        .remedy("Ask for at least one replicate and a confidence between 0 and 1"));
    }
    let random = Philox::named(options.seed, "bootstrap");
    let mut differences: Vec<f64> = (0..options.replicates)
        .into_par_iter()
        .map(|replicate| redrawn_difference(pairs, &random, replicate))
        .collect();
    let below = differences.iter().filter(|&&difference| difference < 0.0).count() as f64;
    let above = differences.iter().filter(|&&difference| difference > 0.0).count() as f64;
    let replicates = f64::from(options.replicates);
    let ties = replicates - below - above;
    differences.sort_unstable_by(f64::total_cmp);
    let percentile = |share: f64| differences[((share * replicates) as usize).min(differences.len() - 1)];
    let tail = (1.0 - options.confidence) / 2.0;
    Ok(Bootstrap {
        difference: rate_difference(pairs.iter()),
        low: percentile(tail),
        // The mirror image of `low`: as many replicates lie above as below.
        high: differences[differences.len() - 1 - ((tail * replicates) as usize).min(differences.len() - 1)],
        probability_of_improvement: (below + ties / 2.0) / replicates,
        p_value: (2.0 * (below.min(above) + ties + 1.0) / (replicates + 1.0)).min(1.0),
    })
}

fn enough(pairs: &[Pair]) -> Result<usize> {
    if pairs.len() < 2 {
        return Err(Error::program(format!("two systems cannot be compared over {} utterance(s)", pairs.len()))
            .remedy("Compare them over at least two utterances that both have recognised"));
    }
    Ok(pairs.len())
}

/// The difference of error rates in one replicate. Draw i of replicate r is word i % 4 of the block at (i / 4, r): a
/// scaled 32-bit number, whose bias (utterances / 2^32) is far below what any number of replicates could show.
fn redrawn_difference(pairs: &[Pair], random: &Philox, replicate: u32) -> f64 {
    let n = pairs.len() as u64;
    let draws = (0..n.div_ceil(4)).flat_map(|block| random.block([block as u32, (block >> 32) as u32, replicate, 0]));
    rate_difference(draws.take(pairs.len()).map(|number| &pairs[((u64::from(number) * n) >> 32) as usize]))
}

/// Per cent. A replicate that happened to draw empty references only counts them as one symbol.
fn rate_difference<'a>(pairs: impl Iterator<Item = &'a Pair>) -> f64 {
    let (reference, difference) = pairs
        .fold((0, 0), |(reference, difference), pair| (reference + pair.reference, difference + pair.difference()));
    100.0 * difference as f64 / reference.max(1) as f64
}

/// 2/sqrt(pi) times the integral of exp(-t^2) from x >= 0 to infinity: by the Taylor series of its complement for small x, by Laplace's
/// continued fraction for large x. Relative error below 1e-12 (the test knows).
fn complementary_error_function(x: f64) -> f64 {
    if x < 2.0 {
        // erf(x) = 2/sqrt(pi) exp(-x^2) sum of 2^k x^(2k+1) / (1 3 5 ... (2k+1)): no terms cancel.
        let (mut term, mut sum, mut k) = (x, x, 0.0);
        while term > 1e-17 * sum {
            k += 1.0;
            term *= 2.0 * x * x / (2.0 * k + 1.0);
            sum += term;
        }
        return 1.0 - std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum;
    }
    // erfc(x) = exp(-x^2)/sqrt(pi) / (x + (1/2)/(x + (2/2)/(x + (3/2)/(x + ...)))), from the inside out.
    let fraction = (1..=120).rev().fold(x, |inner, k| x + f64::from(k) / 2.0 / inner);
    (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI / 2.0 / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` utterances of 20 symbols; the second system makes `better` fewer edits in every other one.
    fn pairs(n: u64, better: u64) -> Vec<Pair> {
        (0..n)
            .map(|i| Pair {
                reference: 20,
                first: 5 + i % 3,
                second: 5 + (i * 7) % 3 - if i % 2 == 0 { better } else { 0 },
            })
            .collect()
    }

    #[test]
    fn the_error_function_has_its_known_values() {
        // Abramowitz and Stegun, tables 7.1 and 7.3, and the 5 per cent point of the normal distribution.
        for (x, value) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 0.004_677_734_981_047_266),
            (3.0, 2.209_049_699_858_544e-5),
            (1.959_963_984_540_054 / std::f64::consts::SQRT_2, 0.05),
        ] {
            let got = complementary_error_function(x);
            assert!((got - value).abs() <= 1e-12 * value, "erfc({x}) = {got}, not {value}");
        }
        let (below, above) = (complementary_error_function(2.0 - 1e-13), complementary_error_function(2.0));
        assert!((below / above - 1.0).abs() < 1e-11, "the two branches do not meet: {below}, {above}");
    }

    #[test]
    fn a_clear_improvement_is_significant_in_both_tests() {
        let pairs = pairs(200, 3);
        let matched = matched_pairs(&pairs).unwrap();
        assert!(matched.mean_difference < -1.0 && matched.p_value < 1e-6, "{matched:?}");
        let bootstrap = bootstrap(&pairs, &BootstrapOptions::default()).unwrap();
        assert!(bootstrap.high < 0.0 && bootstrap.low < bootstrap.difference && bootstrap.difference < bootstrap.high);
        assert_eq!(bootstrap.probability_of_improvement, 1.0);
        assert!(bootstrap.p_value <= 2.0 / 10_001.0 && bootstrap.p_value > 0.0);
    }

    #[test]
    fn equal_systems_do_not_differ() {
        let pairs: Vec<Pair> = (0..100).map(|i| Pair { reference: 10, first: i % 4, second: i % 4 }).collect();
        assert_eq!(matched_pairs(&pairs).unwrap().p_value, 1.0);
        let bootstrap = bootstrap(&pairs, &BootstrapOptions::default()).unwrap();
        assert_eq!((bootstrap.low, bootstrap.high, bootstrap.p_value), (0.0, 0.0, 1.0));
        assert_eq!(bootstrap.probability_of_improvement, 0.5);
    }

    #[test]
    fn the_interval_has_the_width_that_the_normal_distribution_predicts() {
        // With equal references the difference of rates is the mean difference over the reference's length.
        let pairs = pairs(400, 1);
        let matched = matched_pairs(&pairs).unwrap();
        let bootstrap = bootstrap(&pairs, &BootstrapOptions::default()).unwrap();
        let expected = 2.0 * 1.959_964 * 100.0 * matched.standard_error / 20.0;
        let width = bootstrap.high - bootstrap.low;
        // The percentile of 10,000 replicates is known to a few per cent.
        assert!((width / expected - 1.0).abs() < 0.05, "{width} against {expected}");
        assert!((bootstrap.difference - 100.0 * matched.mean_difference / 20.0).abs() < 1e-9);
    }

    #[test]
    fn exchanging_the_systems_mirrors_the_matched_pairs_test() {
        let forward = pairs(51, 1);
        let backward: Vec<Pair> =
            forward.iter().map(|p| Pair { reference: p.reference, first: p.second, second: p.first }).collect();
        let (forward, backward) = (matched_pairs(&forward).unwrap(), matched_pairs(&backward).unwrap());
        assert_eq!(forward.mean_difference, -backward.mean_difference);
        assert_eq!(forward.p_value, backward.p_value);
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
        let pairs = pairs(33, 1);
        let options = BootstrapOptions { replicates: 500, ..Default::default() };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bootstrap(&pairs, &options).unwrap())
        };
        assert_eq!(on(1), on(3));
        let other = BootstrapOptions { seed: 2, ..options };
        assert_ne!(bootstrap(&pairs, &other).unwrap(), on(1));
    }

    #[test]
    fn what_cannot_be_compared_is_an_error() {
        assert!(matched_pairs(&pairs(1, 0)).is_err());
        assert!(bootstrap(&[], &BootstrapOptions::default()).is_err());
        let silent = [Pair { reference: 0, first: 0, second: 1 }; 3];
        assert!(bootstrap(&silent, &BootstrapOptions::default()).is_err());
        for (replicates, confidence) in [(0, 0.95), (10, 1.0), (10, f64::NAN)] {
            assert!(bootstrap(&pairs(5, 1), &BootstrapOptions { replicates, confidence, seed: 1 }).is_err());
        }
    }
}
