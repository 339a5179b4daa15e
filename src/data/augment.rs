//! Training data made richer: masked and warped features (SpecAugment: Park et al., Interspeech 2019), and recordings at other speeds (Ko et al.,
//! "Audio augmentation for speech recognition", Interspeech 2015).
//!
//! SpecAugment is drawn anew in every epoch, by the thread that reads ahead, while the device computes. What is drawn follows from data seed, epoch
//! and utterance alone, so a resumed epoch has the masks of one that never stopped. Copies at other speeds are utterances of their own.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::data::kaldi::{DataFolder, Source, Utterance};
use crate::data::subset::Subset;
use crate::error::{Error, Result};
use crate::random::{Philox, Stream};

/// How the width of a mask is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskRule {
    /// From 0 to the greatest width, both allowed, then its place.
    Paper,
    /// As ESPnet version 1 (`transform/spec_augment.py`): a first width below the greatest one decides the place (and, being 0, that there is no
    /// mask), a second one the end.
    Espnet,
}

/// What stands in a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// The mean of the whole utterance, as it is by then.
    Mean,
    Zero,
}

/// The recipe's `[augment]`, without the speeds. All numbers 0: nothing is done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpecAugment {
    /// The most frames by which a point in time is moved.
    pub time_warp: usize,
    pub frequency_masks: usize,
    /// The most features that one masks.
    pub frequency_mask_width: usize,
    pub time_masks: usize,
    /// The most frames that one masks.
    pub time_mask_width: usize,
    /// The most that one masks, as a part of the utterance.
    pub time_mask_limit: f64,
    pub mask_rule: MaskRule,
    pub fill: Fill,
}

/// What an epoch draws from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    pub seed: u64,
    /// Counted from 1.
    pub epoch: usize,
}

impl SpecAugment {
    /// False if it leaves everything as it is.
    pub fn is_active(&self) -> bool {
        self.time_warp + self.frequency_masks + self.time_masks > 0
    }

    /// Warps and masks the normalised features of an utterance: [frames, dimension].
    pub fn apply(&self, utterance: &str, draw: Draw, values: &mut [f32], dimension: usize) {
        if values.is_empty() || dimension == 0 {
            return;
        }
        let mut random = Philox::named(draw.seed, &format!("augment, epoch {}, {utterance}", draw.epoch)).stream();
        let frames = values.len() / dimension;
        self.warp(&mut random, values, dimension);
        for _ in 0..self.frequency_masks {
            let widest = self.frequency_mask_width.min(dimension);
            let Some((begin, end)) = self.mask(&mut random, widest, dimension) else { continue };
            let fill = self.fill_of(values);
            values.chunks_exact_mut(dimension).for_each(|frame| frame[begin..end].fill(fill));
        }
        let allowed = (self.time_mask_limit * frames as f64) as usize;
        for _ in 0..self.time_masks {
            let Some((begin, end)) = self.mask(&mut random, self.time_mask_width.min(allowed), frames) else {
                continue;
            };
            let fill = self.fill_of(values);
            values[begin * dimension..end * dimension].fill(fill);
        }
    }

    /// Where a mask of at most `widest` among `all` begins and ends; None for an empty one.
    fn mask(&self, random: &mut Stream, widest: usize, all: usize) -> Option<(usize, usize)> {
        let mut below = |bound: usize| random.below(bound.clamp(1, u32::MAX as usize) as u32) as usize;
        let (begin, end) = match self.mask_rule {
            MaskRule::Paper => {
                let width = below(widest + 1);
                let begin = below(all - width + 1);
                (begin, begin + width)
            }
            MaskRule::Espnet => {
                let (first, second) = (below(widest), below(widest));
                let begin = below(all - first);
                (begin, if first == 0 { begin } else { (begin + second).min(all) })
            }
        };
        (begin < end).then_some((begin, end))
    }

    fn fill_of(&self, values: &[f32]) -> f32 {
        match self.fill {
            Fill::Zero => 0.0,
            Fill::Mean => (values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64) as f32,
        }
    }

    /// ESPnet's time warp: what lies before a random point is stretched or shortened by up to W frames, the rest the other way, each by bicubic
    /// interpolation. The length stays.
    fn warp(&self, random: &mut Stream, values: &mut [f32], dimension: usize) {
        let (frames, window) = (values.len() / dimension, self.time_warp);
        if window == 0 || frames <= 2 * window {
            return;
        }
        let point = window + random.below((frames - 2 * window) as u32) as usize + 1;
        let moved = point - window + random.below(2 * window as u32) as usize + 1;
        // ESPnet fails where nothing is left behind the point.
        let moved = moved.min(frames - 1);
        let (left, right) = values.split_at(point * dimension);
        let mut warped = resize(left, dimension, moved);
        warped.extend(resize(right, dimension, frames - moved));
        values.copy_from_slice(&warped);
    }
}

/// `values` [frames, dimension] at another number of frames (at least 1), as the Python Imaging Library's bicubic filter (a = -1/2) resizes an
/// image: widened where it shortens, so that no frame is passed over.
fn resize(values: &[f32], dimension: usize, frames: usize) -> Vec<f32> {
    let given = values.len() / dimension;
    if given == frames {
        return values.to_vec();
    }
    let scale = given as f64 / frames as f64;
    let widening = scale.max(1.0);
    let mut resized = Vec::with_capacity(frames * dimension);
    let mut sums = vec![0.0_f64; dimension];
    for frame in 0..frames {
        let centre = (frame as f64 + 0.5) * scale;
        let first = (centre - 2.0 * widening + 0.5).max(0.0) as usize;
        let last = ((centre + 2.0 * widening + 0.5) as usize).min(given);
        let weights: Vec<f64> =
            (first..last).map(|source| bicubic((source as f64 - centre + 0.5) / widening)).collect();
        let total: f64 = weights.iter().sum();
        sums.fill(0.0);
        for (weight, source) in weights.iter().zip(values[first * dimension..].chunks_exact(dimension)) {
            sums.iter_mut().zip(source).for_each(|(sum, &value)| *sum += weight / total * f64::from(value));
        }
        resized.extend(sums.iter().map(|&sum| sum as f32));
    }
    resized
}

fn bicubic(place: f64) -> f64 {
    const A: f64 = -0.5;
    match place.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

/// A folder of recordings with a copy of every utterance of `subset` for each of `speeds`, and how fast each utterance is.
///
/// The copy at speed 1 has the utterance's own id, others are called as Kaldi calls them (`sp0.9-ID`).
///
/// # Errors
/// A folder of features, whose speed cannot be changed; an id that the folder has already.
pub fn at_speeds(
    folder: DataFolder,
    speeds: &[f64],
    subset: Option<&Subset>,
) -> Result<(DataFolder, HashMap<String, f64>)> {
    let DataFolder { path, utterances, source } = folder;
    let Source::Audio(files) = source else {
        let problem = format!("change recordings, but {} has features (feats.scp)", path.display());
        return Err(Error::key("augment.speeds", problem).remedy(
            "Leave the key out, or name a folder with wav.scp and text alone, whose features are then computed at each speed",
        ));
    };
    let chosen = match subset {
        Some(subset) => subset.choose(utterances.len())?,
        None => (0..utterances.len()).collect(),
    };
    let mut speed_of = HashMap::new();
    let mut copies = Vec::with_capacity(chosen.len() * speeds.len());
    for &speed in speeds {
        for &index in &chosen {
            let Utterance { id, transcript, speaker } = &utterances[index];
            let id = if speed == 1.0 { id.clone() } else { format!("sp{speed}-{id}") };
            if speed_of.insert(id.clone(), speed).is_some() {
                return Err(Error::utterance(&id, "the folder has this id, which a copy at another speed would get")
                    .remedy("Rename it, or leave augment.speeds out: the folder has such copies already"));
            }
            let copy = Utterance { id, transcript: transcript.clone(), speaker: speaker.clone() };
            copies.push((copy, files[index].clone()));
        }
    }
    copies.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
    let (utterances, files) = copies.into_iter().unzip();
    Ok((DataFolder { path, utterances, source: Source::Audio(files) }, speed_of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DRAW: Draw = Draw { seed: 5, epoch: 3 };

    fn masks(rule: MaskRule) -> SpecAugment {
        SpecAugment {
            time_warp: 0,
            frequency_masks: 2,
            frequency_mask_width: 4,
            time_masks: 2,
            time_mask_width: 6,
            time_mask_limit: 0.5,
            mask_rule: rule,
            fill: Fill::Zero,
        }
    }

    fn augmented(augment: &SpecAugment, id: &str, draw: Draw, frames: usize, dimension: usize) -> Vec<f32> {
        let mut values: Vec<f32> = (1..=frames * dimension).map(|value| value as f32).collect();
        augment.apply(id, draw, &mut values, dimension);
        values
    }

    #[test]
    fn what_is_drawn_follows_from_seed_epoch_and_utterance() {
        let augment = SpecAugment { time_warp: 5, ..masks(MaskRule::Paper) };
        let one = |id, draw| augmented(&augment, id, draw, 60, 20);
        assert_eq!(one("a", DRAW), one("a", DRAW));
        assert_ne!(one("a", DRAW), one("b", DRAW));
        assert_ne!(one("a", DRAW), one("a", Draw { epoch: 4, ..DRAW }));
        assert_ne!(one("a", DRAW), one("a", Draw { seed: 6, ..DRAW }));
    }

    #[test]
    fn nothing_is_done_where_nothing_is_asked_for() {
        let idle = SpecAugment { frequency_masks: 0, time_masks: 0, ..masks(MaskRule::Paper) };
        assert!(!idle.is_active() && masks(MaskRule::Paper).is_active());
        let values = augmented(&idle, "a", DRAW, 9, 3);
        assert_eq!(values, (1..=27).map(|value| value as f32).collect::<Vec<_>>());
    }

    #[test]
    fn masks_are_filled_with_the_mean_of_the_utterance_if_so_asked() {
        let augment = SpecAugment { frequency_masks: 1, time_masks: 0, fill: Fill::Mean, ..masks(MaskRule::Paper) };
        let found: Vec<f32> = (0..20)
            .flat_map(|epoch| augmented(&augment, "a", Draw { seed: 1, epoch }, 4, 6))
            .filter(|value| value.fract() != 0.0)
            .collect();
        assert!(!found.is_empty() && found.iter().all(|&value| value == 12.5), "{found:?}");
    }

    #[test]
    fn the_warp_resizes_as_pillow_does() {
        let values = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 3.0];
        for (frames, expected) in PILLOW {
            let resized = resize(&values, 1, *frames);
            assert_eq!(resized.len(), *frames);
            for (found, expected) in resized.iter().zip(*expected) {
                assert!((found - expected).abs() < 1e-5, "{resized:?} {expected:?}");
            }
        }
    }

    /// `PIL.Image.fromarray([[1], [4], [2], [8], [5], [7], [3]]).resize((1, N), BICUBIC)`.
    const PILLOW: &[(usize, &[f32])] = &[
        (1, &[4.493_313_3]),
        (4, &[2.137_195_8, 4.179_479, 6.509_737_5, 4.700_714_6]),
        (7, &[1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 3.0]),
        (
            10,
            &[
                0.818_289_76,
                2.727_073_7,
                3.664_062_5,
                1.925_437_5,
                6.246_937,
                7.416_375,
                4.994_312_3,
                6.804_687_5,
                5.259_783_3,
                2.757_72,
            ],
        ),
    ];

    #[test]
    fn copies_at_other_speeds_are_utterances_of_their_own() {
        let utterance = |id: &str| Utterance { id: id.into(), transcript: format!("SAY {id}"), speaker: None };
        let folder = |ids: &[&str]| DataFolder {
            path: "data".into(),
            utterances: ids.iter().map(|id| utterance(id)).collect(),
            source: Source::Audio(ids.iter().map(|id| format!("{id}.wav").into()).collect()),
        };
        let (copies, speed_of) = at_speeds(folder(&["a", "t"]), &[0.9, 1.0, 1.1], None).unwrap();
        let ids: Vec<&str> = copies.utterances.iter().map(|utterance| utterance.id.as_str()).collect();
        assert_eq!(ids, ["a", "sp0.9-a", "sp0.9-t", "sp1.1-a", "sp1.1-t", "t"]);
        let Source::Audio(files) = copies.source else { panic!("recordings") };
        assert_eq!(files[2], std::path::Path::new("t.wav"));
        assert_eq!((speed_of["sp0.9-t"], speed_of["t"]), (0.9, 1.0));
        assert_eq!(copies.utterances[2].transcript, "SAY t");
        let half = Subset { fraction: 0.5, seed: 1, nested: true, complement_of: None };
        assert_eq!(at_speeds(folder(&["a", "t"]), &[0.9, 1.0], Some(&half)).unwrap().0.utterances.len(), 2);
        let error = at_speeds(folder(&["a", "sp0.9-a"]), &[0.9, 1.0], None).err().unwrap().to_string();
        assert!(error.contains("utterance sp0.9-a") && error.contains("Rename"), "{error}");
    }

    proptest! {
        #[test]
        fn masks_are_within_their_limits(
            frames in 1_usize..40, dimension in 1_usize..12, epoch in 1_usize..1000, espnet: bool
        ) {
            let augment = masks(if espnet { MaskRule::Espnet } else { MaskRule::Paper });
            let values = augmented(&augment, "a", Draw { seed: 2, epoch }, frames, dimension);
            let frame_is_masked = |frame: usize| values[frame * dimension..][..dimension].iter().all(|&v| v == 0.0);
            let column_is_masked = |column: usize| values[column..].iter().step_by(dimension).all(|&v| v == 0.0);
            let columns = (0..dimension).filter(|&column| column_is_masked(column)).count();
            let masked_frames = (0..frames).filter(|&frame| frame_is_masked(frame)).count();
            // Where one kind masks everything, the other cannot be told apart.
            if columns < dimension {
                prop_assert!(masked_frames <= 2 * 6.min(frames / 2));
            }
            if masked_frames < frames {
                prop_assert!(columns <= 2 * 4);
            }
            for (index, &value) in values.iter().enumerate() {
                let masked = frame_is_masked(index / dimension) || column_is_masked(index % dimension);
                prop_assert!(masked || value == (index + 1) as f32);
            }
        }

        #[test]
        fn a_warp_keeps_the_length_and_the_order_of_a_rising_line(frames in 1_usize..90, epoch in 1_usize..1000) {
            let augment = SpecAugment { time_warp: 5, frequency_masks: 0, time_masks: 0, ..masks(MaskRule::Paper) };
            let line: Vec<f32> = (0..frames).map(|frame| frame as f32).collect();
            let mut warped = line.clone();
            augment.apply("a", Draw { seed: 2, epoch }, &mut warped, 1);
            prop_assert!(warped.iter().zip(&line).all(|(warped, line)| (warped - line).abs() <= 6.0));
            prop_assert!(frames > 10 || warped == line);
        }
    }
}
