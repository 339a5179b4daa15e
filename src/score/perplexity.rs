//! Perplexity and bits per character, from summed negative log likelihoods.

/// exp of the mean negative log likelihood. `negative_log_likelihood` is the sum over all predicted tokens, in nats. NaN if nothing was
/// predicted; infinity if the mean exceeds what an f64 can raise e to, or if a token had probability zero.
pub fn perplexity(negative_log_likelihood: f64, tokens: u64) -> f64 {
    (negative_log_likelihood / tokens as f64).exp()
}

/// Bits that a model spends on one character: the summed negative log likelihood (nats) of all tokens, over ln 2 and the number of
/// characters, so that models with different tokens compare. NaN if there are no characters and no likelihood.
pub fn bits_per_character(negative_log_likelihood: f64, characters: u64) -> f64 {
    negative_log_likelihood / std::f64::consts::LN_2 / characters as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uniform_choice_has_the_perplexity_of_its_size() {
        let likelihood = 1000.0 * (33_278_f64).ln();
        assert!((perplexity(likelihood, 1000) / 33_278.0 - 1.0).abs() < 1e-12);
    }

    #[test]
    fn four_equal_characters_take_two_bits() {
        assert!((bits_per_character(7.0 * 4_f64.ln(), 7) - 2.0).abs() < 1e-14);
    }

    #[test]
    fn nothing_predicted_has_no_perplexity_and_an_impossible_token_an_infinite_one() {
        assert!(perplexity(0.0, 0).is_nan());
        assert_eq!(perplexity(f64::INFINITY, 3), f64::INFINITY);
    }
}
