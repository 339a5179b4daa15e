//! Error rates over a whole set: the edits of all utterances over the reference symbols of all utterances, never a mean of
//! utterances' rates.

use std::iter::Sum;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

use super::edit;

/// Edits and reference symbols, summed over utterances. `reference` = `correct` + `substitutions` + `deletions`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCounts {
    /// Symbols of the reference.
    pub reference: u64,
    pub correct: u64,
    pub substitutions: u64,
    pub deletions: u64,
    pub insertions: u64,
}

impl ErrorCounts {
    /// Counts over any symbols: for CER, those of [`TokenList::characters`](crate::data::tokens::TokenList::characters).
    pub fn between<T: Eq>(reference: &[T], hypothesis: &[T]) -> Self {
        let counts = edit::count(reference, hypothesis);
        ErrorCounts {
            reference: reference.len() as u64,
            correct: counts.matches as u64,
            substitutions: counts.substitutions as u64,
            deletions: counts.deletions as u64,
            insertions: counts.insertions as u64,
        }
    }

    /// For WER. Words are what stands between white space, however much of it.
    pub fn words(reference: &str, hypothesis: &str) -> Self {
        let reference: Vec<&str> = reference.split_whitespace().collect();
        let hypothesis: Vec<&str> = hypothesis.split_whitespace().collect();
        Self::between(&reference, &hypothesis)
    }

    pub fn edits(&self) -> u64 {
        self.substitutions + self.deletions + self.insertions
    }

    /// Per cent; above 100 where there are many insertions. An utterance with an empty reference adds its insertions and no
    /// symbols. A set without any reference symbol has rate 0 if nothing was inserted, else infinity, which a cascade takes for worse
    /// than any other.
    pub fn rate(&self) -> f64 {
        match (self.edits(), self.reference) {
            (0, _) => 0.0,
            (_, 0) => f64::INFINITY,
            (edits, reference) => 100.0 * edits as f64 / reference as f64,
        }
    }
}

impl AddAssign for ErrorCounts {
    fn add_assign(&mut self, other: Self) {
        self.reference += other.reference;
        self.correct += other.correct;
        self.substitutions += other.substitutions;
        self.deletions += other.deletions;
        self.insertions += other.insertions;
    }
}

impl Add for ErrorCounts {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl Sum for ErrorCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn characters(reference: &str, hypothesis: &str) -> ErrorCounts {
        let symbols = |text: &str| text.chars().collect::<Vec<char>>();
        ErrorCounts::between(&symbols(reference), &symbols(hypothesis))
    }

    #[test]
    fn spaces_are_symbols_of_the_character_error_rate() {
        let counts = characters("GO ON", "GOON");
        assert_eq!(counts, ErrorCounts { reference: 5, correct: 4, deletions: 1, ..Default::default() });
        assert_eq!(counts.rate(), 20.0);
        assert_eq!(characters("A B", "A  B ").insertions, 2);
    }

    #[test]
    fn words_are_split_at_any_white_space() {
        let counts = ErrorCounts::words("ENTER  SIX\tTWO", " ENTER SIX TEN TWO ");
        assert_eq!(counts, ErrorCounts { reference: 3, correct: 3, insertions: 1, ..Default::default() });
    }

    #[test]
    fn the_rate_is_over_the_symbols_of_the_whole_set() {
        let set: ErrorCounts =
            [ErrorCounts::words("A", "B"), ErrorCounts::words("A B C D E F G H I", "A B C D E F G H I")]
                .into_iter()
                .sum();
        assert_eq!(set.rate(), 10.0);
        assert_eq!(set.reference, set.correct + set.substitutions + set.deletions);
    }

    #[test]
    fn an_empty_reference_counts_its_insertions() {
        assert_eq!(ErrorCounts::words("", "").rate(), 0.0);
        assert_eq!(ErrorCounts::words("", "A").rate(), f64::INFINITY);
        assert_eq!((ErrorCounts::words("", "A") + ErrorCounts::words("A B", "A B")).rate(), 50.0);
    }

    #[test]
    fn a_character_outside_ascii_is_one_symbol() {
        assert_eq!(characters("ÄÖ", "AÖ").rate(), 50.0);
    }
}
