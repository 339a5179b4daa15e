//! Tests: our features agree with Kaldi's own on four recordings. Both lie outside the project; without them the tests are skipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use crate::audio::fbank::Filterbank;
use crate::audio::options::FeatureOptions;
use crate::audio::pitch::{PitchExtractor, process};
use crate::audio::reader::{Audio, read_audio};

const RECORDINGS: [(&str, &str); 4] = [
    ("an406-fcaw-b", "an4test_clstk/fcaw"),
    ("cen3-mjwl-b", "an4test_clstk/mjwl"),
    ("an251-fash-b", "an4_clstk/fash"),
    ("cen5-mgah-b", "an4_clstk/mgah"),
];

/// A matrix of a text archive: its rows.
type Rows = Vec<Vec<f32>>;

fn shared() -> Option<PathBuf> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared"));
    let present = folder.join("reference/kaldi").is_dir() && folder.join("data/an4/wav").is_dir();
    if !present {
        eprintln!("skipped: ../shared has no reference/kaldi and data/an4");
    }
    present.then_some(folder)
}

/// The matrices of a text archive, by id.
fn matrices(text: &str) -> BTreeMap<String, Rows> {
    let mut matrices = BTreeMap::<String, Rows>::new();
    let mut id = String::new();
    for line in text.lines() {
        if let Some((name, _)) = line.split_once('[') {
            id = name.trim().to_string();
        }
        let numbers = line.rsplit('[').next().unwrap().trim_end_matches([']', ' ']);
        let row: Vec<f32> = numbers.split_whitespace().map(|number| number.parse().unwrap()).collect();
        if !row.is_empty() {
            matrices.entry(id.clone()).or_default().push(row);
        }
    }
    matrices
}

/// The four recordings with Kaldi's features of `name`; nothing where they are absent.
fn cases(name: &str) -> Vec<(&'static str, Audio, Rows)> {
    let Some(shared) = shared() else { return Vec::new() };
    let mut reference = matrices(&fs::read_to_string(shared.join("reference/kaldi").join(name)).unwrap());
    let case = |(id, folder): (&'static str, &str)| {
        let audio = read_audio(shared.join(format!("data/an4/wav/{folder}/{id}.sph")), None).unwrap();
        assert_eq!(audio.sample_rate, 16000);
        (id, audio, reference.remove(id).unwrap())
    };
    RECORDINGS.into_iter().map(case).collect()
}

fn worst_difference_of_energies(num_mel_bins: usize) {
    for (id, audio, expected) in cases(&format!("fbank{num_mel_bins}.ark.txt")) {
        let options = FeatureOptions { num_mel_bins, ..Default::default() };
        let values = Filterbank::new(&options, 16000).unwrap().compute(&audio.samples, id);
        assert_eq!(values.len(), expected.len() * num_mel_bins, "{id}");
        let pairs = values.iter().zip(expected.iter().flatten());
        let worst = pairs.map(|(ours, kaldi)| (ours - kaldi).abs()).fold(0.0, f32::max);
        println!("{id}: {num_mel_bins} bins, {} frames, largest difference {worst:.2e}", expected.len());
        assert!(worst < 2e-3, "{id}: {worst}");
    }
}

#[test]
fn forty_log_energies_agree_with_kaldi() {
    worst_difference_of_energies(40);
}

#[test]
fn eighty_log_energies_agree_with_kaldi() {
    worst_difference_of_energies(80);
}

/// Of 1000 frames, at least 995 must agree.
fn assert_nearly_all(what: &str, agreeing: usize, total: usize) {
    println!("{what}: {agreeing} of {total} frames agree");
    assert!(1000 * agreeing >= 995 * total, "{what}: {agreeing} of {total}");
}

#[test]
fn raw_pitch_agrees_with_kaldi() {
    let (mut pitch, mut nccf, mut total) = (0, 0, 0);
    for (id, audio, expected) in cases("pitch_raw.ark.txt") {
        let frames = PitchExtractor::new(&FeatureOptions::default(), 16000).unwrap().compute(&audio.samples);
        assert_eq!(frames.len(), expected.len(), "{id}");
        total += frames.len();
        for (ours, kaldi) in frames.iter().zip(&expected) {
            nccf += usize::from((ours.nccf - kaldi[0]).abs() <= 1e-3);
            pitch += usize::from((ours.pitch - kaldi[1]).abs() <= 1e-3 * kaldi[1]);
        }
    }
    assert_nearly_all("raw pitch", pitch, total);
    assert_nearly_all("nccf", nccf, total);
}

#[test]
fn processed_pitch_agrees_with_kaldi() {
    let (mut agreeing, mut total) = (0, 0);
    for (id, audio, expected) in cases("pitch.ark.txt") {
        let options = FeatureOptions::default();
        let frames = PitchExtractor::new(&options, 16000).unwrap().compute(&audio.samples);
        let values = process(&options, &frames, id);
        assert_eq!(values.len(), 3 * expected.len(), "{id}");
        total += expected.len();
        let near = |ours: &[f32], kaldi: &[f32]| ours.iter().zip(kaldi).all(|(a, b)| (a - b).abs() <= 1e-2);
        agreeing += values.chunks(3).zip(&expected).filter(|(ours, kaldi)| near(ours, kaldi)).count();
    }
    assert_nearly_all("processed pitch", agreeing, total);
}
