//! A small spoken corpus made by a machine, so that a whole training can be shown where there is no recording: a dozen words, any number of
//! speakers, some background noise.
//!
//! | file | what it owns |
//! |---|---|
//! | `synthesis` | words, speakers, sentences, WAV files |
//! | `phones` | how each letter sounds |
//! | `voice` | the source-filter synthesiser |
//!
//! The words are spelt as they sound: every letter is one phone of about a tenth of a second, so that ten frames of 10 ms stand for a
//! character and CTC has room after a subsampling by four; no word has a letter twice in a row. A speaker is known by number: who speaks
//! with which voice depends on the seed and that number alone, so that training, validation and test sets take disjoint ranges and stay as
//! they are when another set grows.
//!
//! Everything follows from the seed. The arithmetic is f64 and ends in 16-bit samples, so that equal bits can be expected
//! wherever sine, exponential and logarithm are those of the same library.

mod phones;
mod voice;

use std::ops::{Range, RangeInclusive};
use std::path::Path;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::files::write_bytes;
use crate::random::{Philox, Stream};

/// The lexicon: 17 letters, and pairs that differ in one.
pub const WORDS: [&str; 24] = [
    "DRAMA", "KILO", "LAMA", "LEMON", "LIMA", "MANGO", "MELON", "MENU", "METRO", "OPERA", "PANDA", "PASTA", "PIANO",
    "POLO", "RADIO", "ROBOT", "SALSA", "SILO", "SOFA", "SOLO", "TANGO", "TOMATO", "TUBA", "TUNA",
];

/// The lowest sample rate, in hertz, that holds the formants of a vowel.
pub const LOWEST_SAMPLE_RATE: u32 = 8000;

/// What a corpus is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusOptions {
    /// The speakers' numbers, below 1000. Sets with disjoint ranges have no voice in common.
    pub speakers: Range<usize>,
    pub utterances_per_speaker: usize,
    pub words_per_utterance: RangeInclusive<usize>,
    /// In hertz.
    pub sample_rate: u32,
}

/// One utterance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spoken {
    /// Begins with the speaker, so that sorting by utterance sorts by speaker: `spk003-0017`.
    pub utterance: String,
    /// For example `spk003`.
    pub speaker: String,
    /// Words of [`WORDS`], one space between them.
    pub text: String,
    /// One channel.
    pub samples: Vec<i16>,
}

/// How one speaker speaks.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Speaker {
    /// Mean fundamental frequency in hertz.
    pitch: f64,
    /// What the formants of [`phones`] are multiplied by: short vocal tracts have high formants.
    formant_scale: f64,
    /// What durations are divided by.
    speed: f64,
    /// Root mean square of the speech, as a fraction of full scale.
    level: f64,
    /// Breath in the voice, relative to its pulses.
    breath: f64,
    /// Amplitude of the background noise over the root mean square of the speech: from 23 dB to 11 dB below it, roughly.
    noise: f64,
}

impl Speaker {
    /// Speaker `number` of this seed. Voices are spread evenly by multiples of the golden ratio instead of drawn: a speaker never heard in
    /// training then lies between two who were, however few they are.
    fn new(seed: u64, number: usize) -> Self {
        let mut random = Philox::named(seed, &format!("speaker {number}")).stream();
        let golden = 0.618_033_988_749_894_9;
        let start = Philox::named(seed, "speakers").stream().uniform();
        // 0: a long vocal tract and a low voice; 1: a short one and a high voice.
        let height = (start + golden * number as f64).fract();
        Speaker {
            pitch: 95.0 * (220.0_f64 / 95.0).powf(height) * (1.0 + 0.06 * (random.uniform() - 0.5)),
            formant_scale: 0.92 + 0.22 * height + 0.02 * (random.uniform() - 0.5),
            speed: 0.9 + 0.22 * random.uniform(),
            level: 0.03 * 3_f64.powf(random.uniform()),
            breath: 0.02 + 0.06 * random.uniform(),
            noise: 0.05 * 4_f64.powf(random.uniform()),
        }
    }
}

/// Speaks a whole corpus, in parallel; sorted by utterance.
///
/// # Errors
/// A sample rate below [`LOWEST_SAMPLE_RATE`], an empty range of words, or numbers that the ids have no digits for.
pub fn corpus(seed: u64, options: &CorpusOptions) -> Result<Vec<Spoken>> {
    let CorpusOptions { speakers, utterances_per_speaker, words_per_utterance: words, sample_rate } = options;
    let refused = |problem: String| Err(Error::program(format!("no corpus can be generated {problem}")));
    if *sample_rate < LOWEST_SAMPLE_RATE {
        return refused(format!("at {sample_rate} Hz: at least {LOWEST_SAMPLE_RATE} Hz are needed"));
    }
    if words.is_empty() || *words.start() == 0 {
        return refused(format!(
            "with {} to {} words an utterance: at least one is needed",
            words.start(),
            words.end()
        ));
    }
    if speakers.end > 1000 || *utterances_per_speaker > 10_000 {
        return refused(format!(
            "with speakers up to {} and {utterances_per_speaker} utterances each: up to 1000 and 10000 have ids",
            speakers.end
        ));
    }
    let each: Vec<(usize, usize)> =
        speakers.clone().flat_map(|speaker| (0..*utterances_per_speaker).map(move |index| (speaker, index))).collect();
    Ok(each.into_par_iter().map(|(speaker, index)| utter(seed, options, speaker, index)).collect())
}

/// Speaks one utterance; nothing but the seed, the options' words and rate, and the two numbers decide how.
fn utter(seed: u64, options: &CorpusOptions, number: usize, index: usize) -> Spoken {
    let speaker = format!("spk{number:03}");
    let utterance = format!("{speaker}-{index:04}");
    let mut random = Philox::named(seed, &utterance).stream();
    let words = &options.words_per_utterance;
    let count = words.start() + random.below((words.end() - words.start() + 1) as u32) as usize;
    let text: Vec<&str> = (0..count).map(|_| WORDS[random.below(WORDS.len() as u32) as usize]).collect();
    let text = text.join(" ");
    let samples = say(&text, &Speaker::new(seed, number), options.sample_rate, &mut random);
    Spoken { utterance, speaker, text, samples }
}

fn say(text: &str, speaker: &Speaker, sample_rate: u32, random: &mut Stream) -> Vec<i16> {
    let mut segments = Vec::new();
    phones::silence(100.0 + 80.0 * random.uniform(), &mut segments);
    for letter in text.chars() {
        // No two phones are equally long, no two of one letter sound quite alike.
        let duration = (1.0 + 0.2 * (random.uniform() - 0.5)) / speaker.speed;
        phones::speak(letter, duration, random, &mut segments);
    }
    phones::silence(100.0 + 80.0 * random.uniform(), &mut segments);
    let speech = voice::synthesise(&segments, speaker, f64::from(sample_rate), random);
    let power = speech.iter().map(|sample| sample * sample).sum::<f64>() / speech.len() as f64;
    let gain = speaker.level / power.sqrt().max(f64::MIN_POSITIVE);
    let noise_level = speaker.level * speaker.noise;
    let mut hum = 0.0;
    speech
        .iter()
        .map(|sample| {
            // White noise and a slow wander in equal parts, much like a room with a fan in it.
            let white = voice::white(random);
            hum = 0.95 * hum + 0.3 * voice::white(random);
            let heard = sample * gain + noise_level * (white + hum);
            // Full scale is never reached by design; clipping is for the improbable peak.
            (heard * 32_768.0).round().clamp(-32_768.0, 32_767.0) as i16
        })
        .collect()
}

/// Writes one channel of 16-bit samples as a WAV file, whole or not at all.
///
/// # Errors
/// A file that cannot be written, or more samples than a WAV header can count.
pub fn write_wav(path: &Path, sample_rate: u32, samples: &[i16]) -> Result<()> {
    const HEADER: u32 = 44;
    let Some(bytes) =
        u32::try_from(samples.len()).ok().and_then(|n| n.checked_mul(2)).filter(|n| *n <= u32::MAX - HEADER)
    else {
        return Err(Error::file(path, format!("{} samples are more than a WAV file can hold", samples.len()))
            .remedy("Split the recording"));
    };
    let mut contents = Vec::with_capacity((HEADER + bytes) as usize);
    contents.extend_from_slice(b"RIFF");
    contents.extend_from_slice(&(HEADER - 8 + bytes).to_le_bytes());
    contents.extend_from_slice(b"WAVEfmt ");
    contents.extend_from_slice(&16_u32.to_le_bytes());
    // PCM, one channel.
    contents.extend_from_slice(&1_u16.to_le_bytes());
    contents.extend_from_slice(&1_u16.to_le_bytes());
    contents.extend_from_slice(&sample_rate.to_le_bytes());
    // Bytes a second, bytes a sample, bits a sample.
    contents.extend_from_slice(&sample_rate.wrapping_mul(2).to_le_bytes());
    contents.extend_from_slice(&2_u16.to_le_bytes());
    contents.extend_from_slice(&16_u16.to_le_bytes());
    contents.extend_from_slice(b"data");
    contents.extend_from_slice(&bytes.to_le_bytes());
    contents.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    write_bytes(path, &contents)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::audio::{FeatureExtractor, FeatureOptions, read_audio};

    fn options() -> CorpusOptions {
        CorpusOptions { speakers: 0..3, utterances_per_speaker: 4, words_per_utterance: 2..=4, sample_rate: 16_000 }
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_on_any_number_of_threads() {
        let on = |threads, seed| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| corpus(seed, &options()).unwrap())
        };
        let first = on(1, 7);
        assert_eq!(first, on(3, 7));
        let other = on(1, 8);
        assert!(first.iter().zip(&other).all(|(a, b)| a.utterance == b.utterance && a.samples != b.samples));
    }

    #[test]
    fn a_speaker_stays_the_same_when_the_set_grows() {
        let small = corpus(1, &CorpusOptions { speakers: 1..2, utterances_per_speaker: 2, ..options() }).unwrap();
        let large = corpus(1, &options()).unwrap();
        for spoken in &small {
            assert!(large.contains(spoken), "{} differs", spoken.utterance);
        }
    }

    #[test]
    fn ids_begin_with_their_speaker_and_are_sorted_and_unique() {
        let corpus = corpus(1, &options()).unwrap();
        assert_eq!(corpus.len(), 12);
        assert!(corpus.is_sorted_by(|a, b| a.utterance < b.utterance));
        for spoken in &corpus {
            assert!(spoken.utterance.starts_with(&format!("{}-", spoken.speaker)));
            let words: Vec<&str> = spoken.text.split(' ').collect();
            assert!((2..=4).contains(&words.len()) && words.iter().all(|word| WORDS.contains(word)), "{}", spoken.text);
        }
    }

    #[test]
    fn every_letter_of_the_lexicon_makes_a_sound_and_none_is_doubled() {
        let mut random = Philox::new(1).stream();
        for word in WORDS {
            assert!(word.as_bytes().windows(2).all(|pair| pair[0] != pair[1]), "{word}");
            for letter in word.chars() {
                let mut segments = Vec::new();
                phones::speak(letter, 1.0, &mut random, &mut segments);
                let sounds =
                    |s: &phones::Segment| s.target.voicing.max(s.target.frication).max(s.target.aspiration) > 0.1;
                assert!(segments.iter().any(sounds), "{letter} is silent");
                let length: f64 = segments.iter().map(|segment| segment.milliseconds).sum();
                assert!((80.0..=120.0).contains(&length), "{letter} takes {length} ms");
            }
        }
    }

    #[test]
    fn every_utterance_has_room_for_its_letters_after_a_subsampling_by_four() {
        for spoken in corpus(3, &CorpusOptions { speakers: 0..12, ..options() }).unwrap() {
            // Windows of 25 ms, every 10 ms, whole ones only.
            let frames = (spoken.samples.len() - 400) / 160 + 1;
            let labels = spoken.text.len();
            assert!(frames.div_ceil(4) >= labels * 3 / 2, "{}: {frames} frames, {labels} labels", spoken.utterance);
        }
    }

    #[test]
    fn speech_has_its_speakers_level_and_is_never_clipped() {
        for spoken in corpus(1, &CorpusOptions { speakers: 0..12, ..options() }).unwrap() {
            let power: f64 = spoken.samples.iter().map(|&sample| f64::from(sample).powi(2)).sum();
            let level = (power / spoken.samples.len() as f64).sqrt() / 32_768.0;
            assert!((0.03..=0.1).contains(&level), "{}: {level}", spoken.utterance);
            assert!(spoken.samples.iter().all(|&sample| sample.unsigned_abs() < 32_767), "{}", spoken.utterance);
        }
    }

    #[test]
    fn twelve_speakers_spread_over_the_range_of_human_voices() {
        let mut pitches: Vec<f64> = (0..12).map(|number| Speaker::new(1, number).pitch).collect();
        pitches.sort_by(f64::total_cmp);
        assert!(pitches[0] > 85.0 && pitches[0] < 115.0 && pitches[11] > 180.0 && pitches[11] < 235.0, "{pitches:?}");
        assert!(pitches.windows(2).all(|pair| pair[1] / pair[0] < 1.25), "{pitches:?}");
    }

    #[test]
    fn impossible_options_are_errors_that_say_what_is_needed() {
        let says = |options: CorpusOptions, part: &str| {
            let error = corpus(1, &options).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        says(CorpusOptions { sample_rate: 4000, ..options() }, "8000 Hz");
        says(CorpusOptions { words_per_utterance: 0..=2, ..options() }, "at least one");
        #[expect(clippy::reversed_empty_ranges, reason = "that is the mistake")]
        says(CorpusOptions { words_per_utterance: 3..=2, ..options() }, "3 to 2 words");
        says(CorpusOptions { speakers: 999..1001, ..options() }, "up to 1001");
        assert!(corpus(1, &CorpusOptions { speakers: 5..5, ..options() }).unwrap().is_empty());
    }

    #[test]
    fn a_wav_file_has_the_header_of_pcm_and_its_samples() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.wav");
        write_wav(&path, 8000, &[9; 100]).unwrap();
        write_wav(&path, 16_000, &[1, -2, i16::MIN]).unwrap();
        let bytes = fs::read(&path).unwrap();
        let number = |at: usize, width: usize| {
            bytes[at..at + width].iter().rev().fold(0_u32, |number, &byte| number << 8 | u32::from(byte))
        };
        assert_eq!((&bytes[..4], number(4, 4), &bytes[8..16]), (&b"RIFF"[..], 42, &b"WAVEfmt "[..]));
        assert_eq!((number(16, 4), number(20, 2), number(22, 2), number(24, 4)), (16, 1, 1, 16_000));
        assert_eq!((number(28, 4), number(32, 2), number(34, 2)), (32_000, 2, 16));
        assert_eq!((&bytes[36..40], number(40, 4)), (&b"data"[..], 6));
        assert_eq!(bytes[44..], [1, 0, 0xFE, 0xFF, 0x00, 0x80]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "something was left beside the file");
    }

    #[test]
    fn a_recording_goes_the_way_of_real_ones_from_file_to_filterbanks() {
        let folder = tempfile::tempdir().unwrap();
        let spoken =
            corpus(1, &CorpusOptions { speakers: 2..3, utterances_per_speaker: 1, ..options() }).unwrap().remove(0);
        let path = folder.path().join("a.wav");
        write_wav(&path, 16_000, &spoken.samples).unwrap();
        let audio = read_audio(&path, None).unwrap();
        assert_eq!(audio.sample_rate, 16_000);
        assert!(audio.samples.iter().copied().eq(spoken.samples.iter().map(|&sample| f32::from(sample))));
        let options = FeatureOptions { num_mel_bins: 24, ..Default::default() };
        let features =
            FeatureExtractor::new(&options, 16_000).unwrap().compute(&audio.samples, &spoken.utterance).unwrap();
        assert_eq!((features.dimension, features.frames), (24, (spoken.samples.len() - 400) / 160 + 1));
        assert!(features.values.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn a_folder_that_is_missing_is_an_error_naming_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_wav(&folder.path().join("missing/a.wav"), 16_000, &[0]).unwrap_err();
        assert!(error.to_string().contains("missing/a.wav"), "{error}");
    }
}
