//! How each letter sounds: one or more segments, each with a target for the voice to move to.
//!
//! Formants are those of an average adult, after the tables of Peterson and Barney, "Control methods used in a study of the
//! vowels", JASA 1952, and Klatt, "Software for a cascade/parallel formant synthesizer", JASA 1980, rounded and spread a little
//! further apart: the aim is speech that is told apart easily.

use crate::random::Stream;

/// What the voice aims at for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    /// Amplitude of the glottal pulses; 1 for a vowel.
    pub voicing: f64,
    /// Amplitude of the breath that passes through the whole tract.
    pub aspiration: f64,
    /// Amplitude of the noise made at a narrow place near the lips, which only that place's own resonance shapes.
    pub frication: f64,
    /// Centre and bandwidth of that resonance, in hertz.
    pub frication_centre: f64,
    pub frication_bandwidth: f64,
    /// The first three formants in hertz.
    pub formants: [f64; 3],
}

/// A target and how long it holds, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Segment {
    pub milliseconds: f64,
    pub target: Target,
}

/// The tract at rest.
const REST: Target = Target {
    voicing: 0.0,
    aspiration: 0.0,
    frication: 0.0,
    frication_centre: 2500.0,
    frication_bandwidth: 2000.0,
    formants: [500.0, 1500.0, 2500.0],
};

/// Appends the phone of `letter`, or the pause of a space. `duration` multiplies the usual lengths.
pub(super) fn speak(letter: char, duration: f64, random: &mut Stream, segments: &mut Vec<Segment>) {
    // Six per cent of freedom up and down for each formant.
    let mut loose = |formants: [f64; 3]| formants.map(|hertz| hertz * (1.0 + 0.12 * (random.uniform() - 0.5)));
    let mut push = |milliseconds: f64, target: Target| {
        segments.push(Segment { milliseconds: milliseconds * duration, target });
    };
    let vowel = |formants| Target { voicing: 1.0, formants, ..REST };
    let sonorant = |voicing, formants| Target { voicing, formants, ..REST };
    let hiss = |frication, centre, bandwidth, formants| Target {
        frication,
        frication_centre: centre,
        frication_bandwidth: bandwidth,
        formants,
        ..REST
    };
    match letter {
        'A' => push(115.0, vowel(loose([750.0, 1200.0, 2500.0]))),
        'E' => push(115.0, vowel(loose([520.0, 1850.0, 2500.0]))),
        'I' => push(115.0, vowel(loose([280.0, 2300.0, 3000.0]))),
        'O' => push(115.0, vowel(loose([520.0, 880.0, 2450.0]))),
        'U' => push(115.0, vowel(loose([310.0, 750.0, 2250.0]))),
        'L' => push(90.0, sonorant(0.45, loose([350.0, 1050.0, 2800.0]))),
        'M' => push(90.0, sonorant(0.30, loose([250.0, 950.0, 2200.0]))),
        'N' => push(90.0, sonorant(0.30, loose([250.0, 1700.0, 2600.0]))),
        'R' => push(90.0, sonorant(0.50, loose([420.0, 1250.0, 1600.0]))),
        'S' => push(100.0, hiss(0.50, 5500.0, 1800.0, loose([350.0, 1700.0, 2600.0]))),
        'F' => push(100.0, hiss(0.20, 3200.0, 5000.0, loose([350.0, 1000.0, 2200.0]))),
        'P' | 'T' | 'K' | 'B' | 'D' | 'G' => {
            // Where the tract is shut decides which noise bursts out and where the neighbours' formants bend to.
            let (centre, bandwidth, strength, locus) = match letter {
                'P' | 'B' => (900.0, 900.0, 0.5, [250.0, 850.0, 2200.0]),
                'T' | 'D' => (4500.0, 2500.0, 0.7, [250.0, 1750.0, 2700.0]),
                _ => (1900.0, 500.0, 0.8, [250.0, 2000.0, 2300.0]),
            };
            let locus = loose(locus);
            let burst = hiss(strength, centre, bandwidth, locus);
            if matches!(letter, 'P' | 'T' | 'K') {
                push(45.0, Target { formants: locus, ..REST });
                push(15.0, burst);
                push(30.0, Target { aspiration: 1.0, formants: locus, ..REST });
            } else {
                // The voice goes on behind the closure, dull and low.
                push(60.0, Target { voicing: 0.12, formants: [180.0, locus[1], locus[2]], ..REST });
                push(12.0, Target { voicing: 0.3, frication: 0.7 * burst.frication, ..burst });
                push(15.0, Target { voicing: 0.7, formants: locus, ..REST });
            }
        }
        // A space, the only other character of a text.
        _ => push(130.0, REST),
    }
}

/// Appends a silence.
pub(super) fn silence(milliseconds: f64, segments: &mut Vec<Segment>) {
    segments.push(Segment { milliseconds, target: REST });
}
