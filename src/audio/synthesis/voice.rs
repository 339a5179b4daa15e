//! A source-filter synthesiser: pulses and breath, shaped by a cascade of formants, and noise shaped by one resonance of its own.
//!
//! After Klatt, "Software for a cascade/parallel formant synthesizer", JASA 1980 (resonators in cascade for what the larynx sends
//! through the whole tract, in parallel for noise made near the lips), with the glottal pulse of Klatt and Klatt, JASA 1990: the flow is a
//! cubic while the folds are open, so its derivative rises gently and breaks off as they shut.

use std::f64::consts::{PI, TAU};

use super::Speaker;
use super::phones::{Segment, Target};
use crate::random::Stream;

/// Targets become tracks with one value per control step.
const STEPS_PER_SECOND: f64 = 1000.0;
/// Formants take this many steps to move, as tongue and lips do; the voice sets in and ends faster, noise so fast that bursts stay
/// bursts.
const FORMANT_SMOOTHING: usize = 40;
const VOICE_SMOOTHING: usize = 20;
const NOISE_SMOOTHING: usize = 8;
/// The share of a period in which the glottis is open.
const OPEN_QUOTIENT: f64 = 0.6;
/// Bandwidths of the formants in hertz; the fourth and fifth hardly move in speech and are fixed at the frequencies beside them.
const BANDWIDTHS: [f64; 5] = [70.0, 100.0, 150.0, 220.0, 280.0];
const FIXED_FORMANTS: [f64; 2] = [3500.0, 4500.0];
/// Resonances above this share of the sample rate would fold back; a formant there is left out, a hiss is moved down to it.
const HIGHEST: f64 = 0.45;

/// Uniform in [-1, 1).
pub(super) fn white(random: &mut Stream) -> f64 {
    f64::from(random.next_u32() as i32) / 2_147_483_648.0
}

/// Speaks the segments; a vowel's amplitude is of the order of one.
pub(super) fn synthesise(segments: &[Segment], speaker: &Speaker, sample_rate: f64, random: &mut Stream) -> Vec<f64> {
    let track = track(segments);
    let samples = (track.len() as f64 / STEPS_PER_SECOND * sample_rate) as usize;
    let mut glottis = Glottis::new(speaker.pitch, random);
    let mut tract = [Resonator::default(); 5];
    let mut constriction = BandPass::default();
    let mut step = usize::MAX;
    let mut speech = Vec::with_capacity(samples);
    for sample in 0..samples {
        let seconds = sample as f64 / sample_rate;
        let now = ((seconds * STEPS_PER_SECOND) as usize).min(track.len() - 1);
        let target = &track[now];
        if now != step {
            step = now;
            for (formant, resonator) in tract.iter_mut().enumerate() {
                let hertz = if formant < 3 { target.formants[formant] } else { FIXED_FORMANTS[formant - 3] };
                resonator.tune(hertz * speaker.formant_scale, BANDWIDTHS[formant], sample_rate);
            }
            constriction.tune(target.frication_centre, target.frication_bandwidth, sample_rate);
            glottis.aim(speaker.pitch, now as f64 / track.len() as f64, seconds);
        }
        let pulse = glottis.next(sample_rate, random);
        let noise = white(random);
        // Breath flows while the glottis is open.
        let voice = target.voicing * (pulse + speaker.breath * noise * glottis.openness());
        let source = voice + 0.3 * target.aspiration * noise;
        let through_tract = tract.iter_mut().fold(source, |signal, resonator| resonator.next(signal));
        speech.push(through_tract + target.frication * constriction.next(noise));
    }
    speech
}

/// The targets step by step, smoothed.
fn track(segments: &[Segment]) -> Vec<Target> {
    let mut steps = Vec::new();
    let mut until = 0.0;
    for segment in segments {
        until += segment.milliseconds / 1000.0 * STEPS_PER_SECOND;
        // Ends, not lengths, are rounded: errors do not add up.
        steps.resize(until.round() as usize, segment.target);
    }
    let smoothed = |width, value: fn(&Target) -> f64| moving_average(&steps, width, value);
    let voicing = smoothed(VOICE_SMOOTHING, |target| target.voicing);
    let aspiration = smoothed(NOISE_SMOOTHING, |target| target.aspiration);
    let frication = smoothed(NOISE_SMOOTHING, |target| target.frication);
    let formants = [
        smoothed(FORMANT_SMOOTHING, |target| target.formants[0]),
        smoothed(FORMANT_SMOOTHING, |target| target.formants[1]),
        smoothed(FORMANT_SMOOTHING, |target| target.formants[2]),
    ];
    for (step, target) in steps.iter_mut().enumerate() {
        target.voicing = voicing[step];
        target.aspiration = aspiration[step];
        target.frication = frication[step];
        target.formants = [formants[0][step], formants[1][step], formants[2][step]];
    }
    steps
}

/// Mean over `width` steps around each, fewer at the ends.
fn moving_average(steps: &[Target], width: usize, value: fn(&Target) -> f64) -> Vec<f64> {
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(steps.iter().scan(0.0, |sum, target| {
            *sum += value(target);
            Some(*sum)
        }))
        .collect();
    (0..steps.len())
        .map(|step| {
            let (begin, end) = (step.saturating_sub(width / 2), (step + width / 2 + 1).min(steps.len()));
            (sums[end] - sums[begin]) / (end - begin) as f64
        })
        .collect()
}

/// The vocal folds: a pulse per period, each a little early or late, a little loud or soft.
struct Glottis {
    /// Hertz, before jitter.
    frequency: f64,
    /// 0 where the folds open, 1 where they open again.
    phase: f64,
    jitter: f64,
    shimmer: f64,
}

impl Glottis {
    fn new(frequency: f64, random: &mut Stream) -> Self {
        Glottis { frequency, phase: random.uniform(), jitter: 1.0, shimmer: 1.0 }
    }

    /// The melody of a statement: down by a sixth from begin to end, and a slow swing.
    fn aim(&mut self, pitch: f64, position: f64, seconds: f64) {
        self.frequency = pitch * (1.08 - 0.17 * position) * (1.0 + 0.03 * (TAU * 2.5 * seconds).sin());
    }

    /// The derivative of the flow: from 0 up, down to -1 where the folds shut, 0 until they open.
    fn next(&mut self, sample_rate: f64, random: &mut Stream) -> f64 {
        self.phase += self.frequency * self.jitter / sample_rate;
        if self.phase >= 1.0 {
            self.phase -= 1.0;
            self.jitter = 1.0 + 0.01 * random.normal();
            self.shimmer = 1.0 + 0.04 * random.normal();
        }
        let open = self.phase / OPEN_QUOTIENT;
        if open < 1.0 { self.shimmer * open * (2.0 - 3.0 * open) } else { 0.0 }
    }

    /// How far the folds are open, 0 to 1.
    fn openness(&self) -> f64 {
        let open = self.phase / OPEN_QUOTIENT;
        if open < 1.0 { 6.75 * open * open * (1.0 - open) } else { 0.0 }
    }
}

/// A formant: two poles, gain one at 0 Hz.
#[derive(Clone, Copy, Default)]
struct Resonator {
    a: f64,
    b: f64,
    c: f64,
    previous: [f64; 2],
}

impl Resonator {
    fn tune(&mut self, hertz: f64, bandwidth: f64, sample_rate: f64) {
        if hertz > HIGHEST * sample_rate {
            // Lets everything through.
            (self.a, self.b, self.c) = (1.0, 0.0, 0.0);
            return;
        }
        let radius = (-PI * bandwidth / sample_rate).exp();
        self.b = 2.0 * radius * (TAU * hertz / sample_rate).cos();
        self.c = -radius * radius;
        self.a = 1.0 - self.b - self.c;
    }

    fn next(&mut self, signal: f64) -> f64 {
        let out = self.a * signal + self.b * self.previous[0] + self.c * self.previous[1];
        self.previous = [out, self.previous[0]];
        out
    }
}

/// The resonance of a constriction: two poles, and zeros at 0 Hz and at half the sample rate; gain about one at its centre.
#[derive(Default)]
struct BandPass {
    gain: f64,
    b: f64,
    c: f64,
    inputs: [f64; 2],
    outputs: [f64; 2],
}

impl BandPass {
    fn tune(&mut self, hertz: f64, bandwidth: f64, sample_rate: f64) {
        let hertz = hertz.min(HIGHEST * sample_rate);
        let radius = (-PI * bandwidth / sample_rate).exp();
        self.b = 2.0 * radius * (TAU * hertz / sample_rate).cos();
        self.c = -radius * radius;
        self.gain = (1.0 - radius * radius) / 2.0;
    }

    fn next(&mut self, signal: f64) -> f64 {
        let out = self.gain * (signal - self.inputs[1]) + self.b * self.outputs[0] + self.c * self.outputs[1];
        self.inputs = [signal, self.inputs[0]];
        self.outputs = [out, self.outputs[0]];
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::phones::{silence, speak};
    use super::*;
    use crate::random::Philox;

    const RATE: f64 = 16_000.0;
    const SPEAKER: Speaker =
        Speaker { pitch: 100.0, formant_scale: 1.0, speed: 1.0, level: 0.1, breath: 0.03, noise: 0.0 };

    /// A letter held for `times` its usual length, without its beginning and its end.
    fn held(letter: char, times: f64, speaker: &Speaker, rate: f64) -> Vec<f64> {
        let mut random = Philox::new(1).stream();
        let mut segments = Vec::new();
        speak(letter, times, &mut random, &mut segments);
        let speech = synthesise(&segments, speaker, rate, &mut random);
        let edge = (0.04 * rate) as usize;
        speech[edge..speech.len() - edge].to_vec()
    }

    /// Mean power in decibels within each of the bands that `edges` bound, from frequencies 20 Hz apart (50 ms Hann windows).
    fn bands(speech: &[f64], edges: &[f64], rate: f64) -> Vec<f64> {
        let window = (0.05 * rate) as usize;
        let power = |hertz: f64| -> f64 {
            let windows = speech.chunks_exact(window);
            let number = windows.len() as f64;
            let one = |samples: &[f64]| {
                let sum = samples.iter().enumerate().fold((0.0, 0.0), |(re, im), (n, &sample)| {
                    let weighted = sample * (0.5 - 0.5 * (TAU * n as f64 / window as f64).cos());
                    let (sin, cos) = (TAU * hertz * n as f64 / rate).sin_cos();
                    (re + weighted * cos, im + weighted * sin)
                });
                sum.0 * sum.0 + sum.1 * sum.1
            };
            windows.map(one).sum::<f64>() / number
        };
        edges
            .windows(2)
            .map(|edge| {
                let steps = ((edge[1] - edge[0]) / 20.0) as usize;
                let mean = (0..steps).map(|step| power(edge[0] + 20.0 * step as f64)).sum::<f64>() / steps as f64;
                10.0 * mean.log10()
            })
            .collect()
    }

    #[test]
    fn vowels_have_their_energy_where_their_formants_are() {
        // First formant of A near 750 Hz and of I near 280; second formant of I near 2300 and of O near 880.
        let edges = [150.0, 450.0, 1000.0, 1900.0, 2700.0];
        let [a, i, o] = ['A', 'I', 'O'].map(|vowel| bands(&held(vowel, 5.0, &SPEAKER, RATE), &edges, RATE));
        assert!(a[1] > a[0] + 6.0 && i[0] > i[1] + 10.0, "A {a:?}, I {i:?}");
        assert!(i[3] > i[2] + 3.0 && o[1] > o[3] + 25.0, "I {i:?}, O {o:?}");
    }

    #[test]
    fn no_two_sounds_that_last_have_the_same_spectrum() {
        let edges: Vec<f64> = (0..=12).map(|band| 100.0 * 1.4_f64.powi(band)).collect();
        let letters: Vec<char> = "AEIOULMNRSF".chars().collect();
        let spectra: Vec<Vec<f64>> =
            letters.iter().map(|&letter| bands(&held(letter, 4.0, &SPEAKER, RATE), &edges, RATE)).collect();
        for (first, a) in letters.iter().zip(&spectra) {
            for (second, b) in letters.iter().zip(&spectra).filter(|(second, _)| *second > first) {
                // Loudness apart: the spread of the differences about their mean.
                let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
                let mean = differences.iter().sum::<f64>() / differences.len() as f64;
                let spread = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / differences.len() as f64;
                assert!(spread.sqrt() > 3.0, "{first} and {second} differ by {:.1} dB only", spread.sqrt());
            }
        }
    }

    #[test]
    fn the_pulses_come_at_the_speakers_pitch() {
        for pitch in [100.0, 200.0] {
            let speech = held('A', 5.0, &Speaker { pitch, ..SPEAKER }, RATE);
            let similarity = |lag: usize| speech.iter().zip(&speech[lag..]).map(|(a, b)| a * b).sum::<f64>();
            // 70 to 300 Hz, the melody moves by a tenth.
            let best = (53..230).max_by(|&a, &b| similarity(a).total_cmp(&similarity(b))).unwrap();
            let found = RATE / best as f64;
            assert!((found / pitch - 1.0).abs() < 0.12, "{found} Hz instead of {pitch}");
        }
    }

    #[test]
    fn a_stop_is_shut_before_it_bursts() {
        let mut random = Philox::new(1).stream();
        let mut segments = Vec::new();
        silence(20.0, &mut segments);
        speak('T', 1.0, &mut random, &mut segments);
        let speech = synthesise(&segments, &SPEAKER, RATE, &mut random);
        let power = |milliseconds: std::ops::Range<usize>| {
            let samples = &speech[milliseconds.start * 16..milliseconds.end * 16];
            samples.iter().map(|sample| sample * sample).sum::<f64>() / samples.len() as f64
        };
        assert!(power(20..55) < 1e-4 * power(67..77), "{} {}", power(20..55), power(67..77));
    }

    #[test]
    fn every_letter_stays_finite_at_telephone_rate() {
        let tall = Speaker { formant_scale: 1.2, ..SPEAKER };
        for letter in "ABDEFGIKLMNOPRSTU".chars() {
            let speech = held(letter, 3.0, &tall, 8000.0);
            assert!(speech.iter().all(|sample| sample.is_finite() && sample.abs() < 50.0), "{letter}");
            assert!(speech.iter().any(|sample| sample.abs() > 1e-3), "{letter}");
        }
    }
}
