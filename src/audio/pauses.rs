//! Cuts a long recording at its pauses, so that what a network takes for it is bounded.

use std::ops::Range;

/// A place to cut is looked for this far before a part would be too long, in seconds.
const SEARCHED: f64 = 10.0;
/// A pause is a stretch of this length, in seconds.
const PAUSE: f64 = 0.2;

/// The recording as parts of at most `longest` seconds, one after the other: each ends in the middle of the quietest 0.2 s of the last 10 s that it may
/// have (of the second half, if that is less). A recording that is short enough is one part.
pub fn parts(samples: &[f32], sample_rate: u32, longest: f64) -> Vec<Range<usize>> {
    let count = |seconds: f64| ((seconds * f64::from(sample_rate)) as usize).max(1);
    let (most, pause) = (count(longest), count(PAUSE));
    let searched = count(SEARCHED).min(most / 2);
    let mut parts = Vec::new();
    let mut begin = 0;
    while samples.len() - begin > most {
        let first = begin + most - searched;
        // What is left behind is long enough to be recognised.
        let window = &samples[first..(begin + most).min(samples.len() - searched)];
        let end = (first + quietest(window, pause.min(window.len()))).max(begin + 1);
        parts.push(begin..end);
        begin = end;
    }
    parts.push(begin..samples.len());
    parts
}

/// The middle of the quietest stretch of `length` samples: the first of equally quiet ones.
fn quietest(samples: &[f32], length: usize) -> usize {
    let energy = |sample: f32| f64::from(sample).powi(2);
    let mut sum: f64 = samples.iter().take(length).map(|&sample| energy(sample)).sum();
    let (mut least, mut best) = (sum, 0);
    for (begin, (&leaves, &enters)) in samples.iter().zip(samples.iter().skip(length)).enumerate() {
        sum += energy(enters) - energy(leaves);
        // Rounding must not make one silence quieter than another.
        if sum < least - 1e-3 {
            (least, best) = (sum, begin + 1);
        }
    }
    best + length / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_recording_is_one_part() {
        let whole = |samples: &[f32]| {
            parts(samples, 10, 10.0).into_iter().map(|part| (part.start, part.end)).collect::<Vec<_>>()
        };
        assert_eq!(whole(&[1.0; 100]), [(0, 100)]);
        assert_eq!(whole(&[]), [(0, 0)]);
    }

    #[test]
    fn a_long_one_is_cut_in_the_middle_of_a_pause() {
        let mut samples = vec![100.0; 5000];
        samples[2450..2500].fill(0.0);
        samples[4800..4900].fill(0.0);
        let cut = parts(&samples, 100, 30.0);
        assert_eq!(cut[0].start, 0);
        assert!((2450..2500).contains(&cut[0].end), "{cut:?}");
        assert_eq!(cut.last().unwrap().end, 5000);
        // Where nothing is quiet, it is cut all the same.
        assert!(parts(&[5.0; 5000], 100, 30.0).len() == 2);
    }

    #[test]
    fn an_hour_is_cut_into_parts_that_are_short_enough_and_lose_nothing() {
        let samples: Vec<f32> = (0..3600 * 200).map(|index| ((index * 37) % 2001) as f32 - 1000.0).collect();
        let cut = parts(&samples, 200, 30.0);
        assert!(cut.iter().all(|part| part.len() <= 30 * 200));
        for length in 30 * 200 + 1..30 * 200 + 50 {
            assert!(parts(&samples[..length], 200, 30.0).iter().all(|part| part.len() >= 10 * 200));
        }
        assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!((cut[0].start, cut.last().unwrap().end), (0, samples.len()));
        assert!(cut.len() < 3600 / 19);
    }
}
