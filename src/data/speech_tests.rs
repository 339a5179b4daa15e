//! Tests of `speech`: small folders from end to end.

use super::*;
use crate::data::ark::ArkWriter;
use crate::data::tokens::Unit;
use std::fs;

/// A folder with features of the given (id, transcript, frames); value of utterance n, frame t, column d: 100 n + t + d / 10.
fn folder(utterances: &[(&str, &str, usize)], dimension: impl Fn(usize) -> usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut writer = ArkWriter::create(path("feats.ark"), path("feats.scp")).unwrap();
    let mut text = String::new();
    for (n, (id, transcript, frames)) in utterances.iter().enumerate() {
        let columns = dimension(n);
        let values: Vec<f32> = (0..frames * columns).map(|k| value(n, k / columns, k % columns)).collect();
        writer.write(id, *frames, columns, &values).unwrap();
        text += &format!("{id} {transcript}\n");
    }
    writer.finish().unwrap();
    fs::write(path("text"), text).unwrap();
    folder
}

fn value(n: usize, t: usize, d: usize) -> f32 {
    (100 * n + t) as f32 + d as f32 / 10.0
}

fn open(folder: &tempfile::TempDir) -> Result<SpeechData> {
    let folder = DataFolder::open(folder.path())?;
    let tokens = TokenList::from_transcripts(Unit::Character, &[], folder.transcripts())?;
    SpeechData::open(folder, &tokens, None, None)
}

fn error(folder: &tempfile::TempDir) -> String {
    open(folder).err().expect("the data are bad").to_string()
}

const FOUR: [(&str, &str, usize); 4] = [("a", "A B", 2), ("b", "B", 5), ("c", "", 2), ("d", "AA", 3)];

#[test]
fn a_batch_is_packed_by_falling_length_with_ties_by_id() {
    let folder = folder(&FOUR, |_| 2);
    let data = open(&folder).unwrap();
    let batch = data.assemble(&[2, 0, 3, 1]).unwrap();
    assert_eq!(batch.ids, ["b", "d", "a", "c"]);
    assert_eq!(batch.utterance_indices, [1, 3, 0, 2]);
    assert_eq!(batch.lengths, [5, 3, 2, 2]);
    assert_eq!(batch.labels, [vec![3], vec![2, 2], vec![2, 1, 3], vec![]]);
    let rows = [(1, 0), (3, 0), (0, 0), (2, 0), (1, 1), (3, 1), (0, 1), (2, 1), (1, 2), (3, 2), (1, 3), (1, 4)];
    let expected: Vec<f32> = rows.iter().flat_map(|&(n, t)| [value(n, t, 0), value(n, t, 1)]).collect();
    assert_eq!(batch.features, expected);
}

#[test]
fn global_normalisation_is_applied_to_batches() {
    let folder = folder(&FOUR, |_| 2);
    let mut data = open(&folder).unwrap();
    let cmvn = data.global_cmvn().unwrap();
    data.normalize(Normalization::Global(cmvn)).unwrap();
    let batch = data.assemble(&[0, 1, 2, 3]).unwrap();
    let column: Vec<f64> = batch.features.iter().step_by(2).map(|&x| f64::from(x)).collect();
    let mean = column.iter().sum::<f64>() / 12.0;
    let variance = column.iter().map(|x| x * x).sum::<f64>() / 12.0;
    assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-5, "{mean} {variance}");

    let other = Cmvn::over(1, 3, |_| Ok(vec![1.0, 2.0, 3.0])).unwrap();
    let error = data.normalize(Normalization::Global(other)).unwrap_err().to_string();
    assert!(error.contains("dimension 2, but the normalisation has 3"), "{error}");
}

#[test]
fn prefetched_batches_are_those_assembled_by_hand_from_any_batch_on() {
    let folder = folder(&FOUR, |_| 1);
    let data = Arc::new(open(&folder).unwrap());
    let plan = data.plan(BatchLimits { utterances: 2, max_frames: 4, max_labels: 9 }).unwrap();
    assert_eq!(plan.batches(), [vec![1], vec![3, 0], vec![2]]);
    let batches = plan.epoch(1, 1);
    for first in 0..=3 {
        let ahead: Vec<SpeechBatch> =
            data.prefetch(batches.clone(), first).unwrap().map(|batch| batch.unwrap()).collect();
        let by_hand: Vec<SpeechBatch> = batches[first..].iter().map(|batch| data.assemble(batch).unwrap()).collect();
        assert_eq!(ahead, by_hand);
    }
}

#[test]
fn features_that_are_not_finite_are_an_error_naming_utterance_and_frame() {
    for bad in [f32::NAN, f32::INFINITY] {
        let folder = folder(&[("a", "A", 1)], |_| 2);
        let path = |name: &str| folder.path().join(name);
        let mut writer = ArkWriter::create(path("feats.ark"), path("feats.scp")).unwrap();
        writer.write("a", 2, 2, &[0.0, 0.0, 0.0, bad]).unwrap();
        writer.finish().unwrap();
        let data = Arc::new(open(&folder).unwrap());
        let error = data.assemble(&[0]).unwrap_err().to_string();
        assert!(error.contains(&format!("utterance a: its features have {bad} in frame 1, column 1")), "{error}");
        assert!(data.global_cmvn().is_err());
        assert!(data.prefetch(vec![vec![0]], 0).unwrap().next().unwrap().is_err());
    }
}

#[test]
fn utterances_of_two_dimensions_are_an_error_naming_both() {
    let error = error(&folder(&FOUR, |n| if n == 2 { 3 } else { 2 }));
    assert!(error.contains("utterance c: its features have dimension 3, those of utterance a have 2"), "{error}");
}

#[test]
fn an_utterance_without_frames_is_an_error() {
    let error = error(&folder(&[("a", "A", 3), ("b", "A", 0)], |_| 2));
    assert!(error.contains("utterance b: its features are empty (0 x 2)"), "{error}");
}

#[test]
fn an_unknown_token_is_an_error_naming_the_utterance() {
    let folder = DataFolder::open(folder(&FOUR, |_| 2).path()).unwrap();
    let tokens = TokenList::from_transcripts(Unit::Character, &[], ["A"].into_iter()).unwrap();
    let error = SpeechData::open(folder, &tokens, None, None).err().expect("B is unknown").to_string();
    assert!(error.contains("utterance a: the character \"<space>\""), "{error}");
}

#[test]
fn a_subset_keeps_its_utterances_with_their_features() {
    let folder = folder(&FOUR, |_| 2);
    let tokens = TokenList::from_transcripts(Unit::Character, &[], ["A B"].into_iter()).unwrap();
    let subset = Subset { fraction: 0.5, seed: 3, nested: true, complement_of: None };
    let data = SpeechData::open(DataFolder::open(folder.path()).unwrap(), &tokens, Some(&subset), None).unwrap();
    let chosen = subset.choose(4).unwrap();
    assert_eq!(data.utterances().len(), 2);
    for (place, &n) in chosen.iter().enumerate() {
        assert_eq!(data.utterances()[place].id, FOUR[n].0);
        assert_eq!(data.features(place).unwrap()[0], value(n, 0, 0));
    }
}

#[test]
fn audio_is_turned_into_features_by_the_provider() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("x.wav", "xxx"), ("y.wav", "y"), ("wav.scp", "b x.wav\na y.wav\n"), ("text", "a A\nb B\n")]
    {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let tokens = TokenList::from_transcripts(Unit::Character, &[], ["AB"].into_iter()).unwrap();
    let data_folder = || DataFolder::open(folder.path()).unwrap();
    let error = SpeechData::open(data_folder(), &tokens, None, None).err().expect("no provider").to_string();
    assert!(error.contains("has audio (wav.scp) but no features"), "{error}");

    let provider = |id: &str, audio: &Path| {
        let frames = fs::metadata(audio).unwrap().len() as usize;
        Ok(FeatureMatrix { frames, dimension: 1, values: vec![f32::from(id.as_bytes()[0]); frames] })
    };
    let data = SpeechData::open(data_folder(), &tokens, None, Some(&provider)).unwrap();
    let batch = data.assemble(&[0, 1]).unwrap();
    assert_eq!(batch.ids, ["b", "a"]);
    assert_eq!(batch.features, [98.0, 97.0, 98.0, 98.0]);

    let broken = |id: &str, _: &Path| -> Result<FeatureMatrix> { Err(Error::utterance(id, "no such sound")) };
    let error = SpeechData::open(data_folder(), &tokens, None, Some(&broken)).err().expect("broken").to_string();
    assert!(error.contains("utterance a: no such sound"), "{error}");
}

#[test]
fn the_bits_of_a_batch_do_not_depend_on_the_number_of_threads() {
    let folder = folder(&FOUR, |_| 3);
    let mut data = open(&folder).unwrap();
    data.normalize(Normalization::Utterance).unwrap();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| data.assemble(&[0, 1, 2, 3]).unwrap())
    };
    assert_eq!(with(1), with(4));
}
