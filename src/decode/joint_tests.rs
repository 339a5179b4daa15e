use super::super::testing::{labellings, logits};
use super::*;
use crate::random::Philox;

const COUNT: usize = 5;
const END: u32 = 4;
const SYMBOLS: Symbols = Symbols { count: COUNT, end: END };

/// ln p of what follows a prefix: random, but the same for the same prefix. The blank has a share, as an attention decoder's softmax gives it one.
fn following(seed: u64, prefix: &[u32]) -> Vec<f32> {
    let mut random = Philox::named(seed, &format!("{prefix:?}")).stream();
    let logits: Vec<f64> = (0..COUNT).map(|_| 1.5 * random.normal()).collect();
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| (logit - sum.ln()) as f32).collect()
}

/// A decoder with states of its own, which fails if they are not those of the hypotheses that it is given. Every utterance has its own seed.
struct Toy {
    seeds: Vec<u64>,
    states: Vec<(usize, Vec<u32>)>,
}

fn toys<'a>(seeds: impl IntoIterator<Item = u64>) -> Option<Box<dyn Predictor + 'a>> {
    let seeds: Vec<u64> = seeds.into_iter().collect();
    let states = (0..seeds.len()).map(|utterance| (utterance, Vec::new())).collect();
    Some(Box::new(Toy { seeds, states }))
}

fn toy<'a>(seed: u64) -> Option<Box<dyn Predictor + 'a>> {
    toys([seed])
}

impl Predictor for Toy {
    fn step(&mut self, of: &[usize], hypotheses: &[&[u32]]) -> Result<Vec<f32>> {
        assert_eq!(self.states.len(), hypotheses.len());
        for (((utterance, state), hypothesis), of) in self.states.iter_mut().zip(hypotheses).zip(of) {
            state.push(*hypothesis.last().unwrap());
            assert_eq!((&*state, &*utterance), (&hypothesis.to_vec(), of));
        }
        let seeds = of.iter().map(|&utterance| self.seeds[utterance]);
        Ok(seeds.zip(hypotheses).flat_map(|(seed, hypothesis)| following(seed, hypothesis)).collect())
    }

    fn select(&mut self, parents: &[usize]) -> Result<()> {
        self.states = parents.iter().map(|&parent| self.states[parent].clone()).collect();
        Ok(())
    }
}

/// The search of one utterance.
fn joint_beam(utterance: Utterance, models: Models, options: &JointOptions) -> Result<Vec<Scored>> {
    Ok(joint_beams(&[utterance], models, SYMBOLS, options)?.remove(0))
}

/// Every sequence of at most `most` labels, with ln p of the toy.
fn all_sequences(seed: u64, most: usize) -> Vec<(Vec<u32>, f64)> {
    let mut done = Vec::new();
    let mut open = vec![(vec![END], 0.0)];
    while let Some((prefix, log)) = open.pop() {
        let next = following(seed, &prefix);
        done.push((prefix[1..].to_vec(), log + f64::from(next[END as usize])));
        if prefix.len() <= most {
            for label in 1..END {
                open.push(([prefix.as_slice(), &[label]].concat(), log + f64::from(next[label as usize])));
            }
        }
    }
    done
}

fn wide() -> JointOptions {
    JointOptions { beam: 100_000, n_best: 5, max_length_ratio: 1.0, ..JointOptions::default() }
}

fn decode(seed: u64, frames: usize, scores: &[f32], options: &JointOptions) -> Result<Vec<Scored>> {
    let models = Models { decoder: toy(seed), language_model: toy(seed + 100) };
    joint_beam(Utterance { frames, ctc: Some(scores) }, models, options)
}

#[test]
fn a_beam_that_holds_everything_finds_the_best_of_all_sequences() {
    let weights = [(0.0, 0.0), (1.0, 0.0), (0.3, 0.0), (0.5, 0.4), (0.0, 0.7), (1.0, 0.3)];
    for (case, (ctc_weight, language_model_weight)) in weights.into_iter().cycle().take(18).enumerate() {
        let (seed, frames) = (case as u64, 1 + case % 4);
        let scores = logits(seed, frames, COUNT, case % 2 == 1);
        let penalty = [0.0, 0.8, -0.5][case % 3];
        let options = JointOptions { ctc_weight, language_model_weight, penalty, ..wide() };
        let heard = labellings(&scores, COUNT);
        let fluency: std::collections::HashMap<Vec<u32>, f64> = all_sequences(seed + 100, frames).into_iter().collect();
        let weighted = |weight: f64, log: f64| if weight == 0.0 { 0.0 } else { weight * log };
        let mut expected: Vec<(f64, Vec<u32>)> = all_sequences(seed, frames)
            .into_iter()
            .map(|(labels, attention)| {
                let ctc = heard.get(&labels).map_or(NEVER, |p| p.ln());
                let score = weighted(1.0 - ctc_weight, attention)
                    + weighted(ctc_weight, ctc)
                    + weighted(language_model_weight, fluency[&labels])
                    + penalty * (labels.len() + 1) as f64;
                (score, labels)
            })
            .filter(|(score, _)| *score > NEVER)
            .collect();
        expected.sort_by(|a, b| b.0.total_cmp(&a.0));
        let found = decode(seed, frames, &scores, &options).unwrap();
        assert_eq!(found.len(), expected.len().min(5));
        for (found, (score, labels)) in found.iter().zip(&expected) {
            assert_eq!(&found.tokens, labels, "case {case}");
            assert!((found.score - score).abs() < 1e-5, "case {case}: {} {score}", found.score);
            assert_eq!(found.attention.is_some(), ctc_weight < 1.0);
            assert_eq!(found.ctc.is_some(), ctc_weight > 0.0);
            assert_eq!(found.language_model.is_some(), language_model_weight > 0.0);
            if let Some(ctc) = found.ctc {
                assert!((ctc - heard[labels].ln()).abs() < 1e-9);
            }
        }
    }
}

#[test]
fn a_beam_of_one_is_greedy() {
    for seed in 0..20 {
        let frames = 6;
        let scores = logits(seed, frames, COUNT, false);
        let mut expected = vec![END];
        while expected.len() <= frames {
            let next = following(seed, &expected);
            let best = (1..COUNT).reduce(|best, token| if next[token] > next[best] { token } else { best }).unwrap();
            if best as u32 == END {
                break;
            }
            expected.push(best as u32);
        }
        let options = JointOptions { beam: 1, ctc_weight: 0.0, max_length_ratio: 1.0, ..JointOptions::default() };
        assert_eq!(decode(seed, frames, &scores, &options).unwrap()[0].tokens, expected[1..], "seed {seed}");
    }
}

#[test]
fn a_narrow_beam_is_never_better_than_one_that_holds_everything() {
    for seed in 0..10 {
        let scores = logits(seed, 4, COUNT, false);
        let best = |beam| decode(seed, 4, &scores, &JointOptions { beam, n_best: 1, ..wide() }).unwrap()[0].score;
        assert!(best(1) <= best(100_000) + 1e-12 && best(3) <= best(100_000) + 1e-12);
    }
}

#[test]
fn lengths_are_within_their_ratios() {
    for seed in 0..10 {
        let scores = logits(seed, 8, COUNT, false);
        let options = JointOptions {
            beam: 6,
            n_best: 6,
            min_length_ratio: 0.25,
            max_length_ratio: 0.5,
            ctc_weight: 0.2,
            ..JointOptions::default()
        };
        let found = decode(seed, 8, &scores, &options).unwrap();
        assert!(found.iter().all(|scored| (2..=4).contains(&scored.tokens.len())), "{found:?}");
        assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
        let all: std::collections::BTreeSet<_> = found.iter().map(|scored| &scored.tokens).collect();
        assert_eq!(all.len(), found.len(), "no hypothesis is listed twice");
        assert!(found.iter().all(|scored| scored.tokens.iter().all(|&token| token != BLANK && token != END)));
    }
}

#[test]
fn the_search_ends_when_three_lengths_are_hopeless() {
    let scored = |length: usize, score: f64| Scored {
        tokens: vec![1; length],
        score,
        attention: None,
        ctc: None,
        language_model: None,
    };
    let mut complete = vec![scored(1, -2.0), scored(2, -13.0), scored(3, -14.0)];
    assert!(!is_hopeless(&complete, 3));
    complete.push(scored(4, -11.0));
    assert!(!is_hopeless(&complete, 4), "one that is behind by less than ten");
    complete.push(scored(5, -30.0));
    complete.extend([scored(6, -30.0), scored(7, -40.0)]);
    assert!(is_hopeless(&complete, 7));
    assert!(!is_hopeless(&complete, 8), "none of this length");
    assert!(!is_hopeless(&[], 5));

    // A decoder that is sure to end at once stops after a few steps, not after as many as there are frames.
    struct Sure(usize);
    impl Predictor for &mut Sure {
        fn step(&mut self, _: &[usize], hypotheses: &[&[u32]]) -> Result<Vec<f32>> {
            self.0 += 1;
            Ok(hypotheses.iter().flat_map(|_| [-99.0, -20.0, -20.0, -20.0, 0.0]).collect())
        }
        fn select(&mut self, _: &[usize]) -> Result<()> {
            Ok(())
        }
    }
    let mut sure = Sure(0);
    let models = Models { decoder: Some(Box::new(&mut sure)), language_model: None };
    let options = JointOptions { ctc_weight: 0.0, ..JointOptions::default() };
    assert!(joint_beam(Utterance { frames: 500, ctc: None }, models, &options).unwrap()[0].tokens.is_empty());
    assert!(sure.0 < 6, "{} steps", sure.0);
}

#[test]
fn many_utterances_have_the_results_that_each_has_alone_in_one_step_for_each_label() {
    let scores: Vec<Vec<f32>> = (0..9).map(|seed| logits(seed, 1 + seed as usize, COUNT, false)).collect();
    let options = JointOptions { beam: 4, n_best: 3, ..JointOptions::default() };
    let utterance = |seed: usize| Utterance { frames: 1 + seed, ctc: Some(&scores[seed]) };
    struct Counted<'a>(Box<dyn Predictor + 'a>, &'a std::cell::Cell<usize>);
    impl Predictor for Counted<'_> {
        fn step(&mut self, of: &[usize], hypotheses: &[&[u32]]) -> Result<Vec<f32>> {
            self.1.set(self.1.get() + 1);
            self.0.step(of, hypotheses)
        }
        fn select(&mut self, parents: &[usize]) -> Result<()> {
            self.0.select(parents)
        }
    }
    let steps = std::cell::Cell::new(0);
    let utterances: Vec<Utterance> = (0..9).map(utterance).collect();
    let decoder = Box::new(Counted(toys(0..9).unwrap(), &steps));
    let models = Models { decoder: Some(decoder), language_model: None };
    let together = joint_beams(&utterances, models, SYMBOLS, &options).unwrap();
    // As many as the longest has labels, and one for its end, at most.
    assert!(steps.get() <= 10, "{}", steps.get());
    for (seed, found) in together.into_iter().enumerate() {
        let models = Models { decoder: toy(seed as u64), language_model: None };
        assert_eq!(found, joint_beam(utterance(seed), models, &options).unwrap());
    }
}

#[test]
fn one_frame_is_decoded_and_none_is_refused() {
    let scores = logits(3, 1, COUNT, false);
    let found = decode(3, 1, &scores, &JointOptions::default()).unwrap();
    assert!(found[0].tokens.len() <= 1);
    let error = decode(3, 0, &[], &JointOptions::default()).unwrap_err().to_string();
    assert!(error.contains("has no frames. Leave it out"), "{error}");
}

#[test]
fn impossible_options_are_errors_naming_the_option() {
    let good = JointOptions::default();
    let cases = [
        (JointOptions { beam: 0, ..good }, "--beam: is 0"),
        (JointOptions { n_best: 11, ..good }, "--n-best: is 11, but a beam of 10"),
        (JointOptions { n_best: 0, ..good }, "--n-best: is 0"),
        (JointOptions { ctc_weight: 1.5, ..good }, "--ctc-weight: is 1.5"),
        (JointOptions { ctc_weight: f64::NAN, ..good }, "--ctc-weight"),
        (JointOptions { min_length_ratio: -1.0, ..good }, "--min-length-ratio"),
        (JointOptions { min_length_ratio: 0.9, max_length_ratio: 0.5, ..good }, "--max-length-ratio 0.5"),
        (JointOptions { penalty: f64::INFINITY, ..good }, "--penalty"),
        (JointOptions { language_model_weight: -0.5, ..good }, "--lm-weight: is -0.5"),
    ];
    for (options, part) in cases {
        let error = decode(1, 2, &logits(1, 2, COUNT, false), &options).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("Use") || error.contains("Lower"), "{part}: {error}");
    }
}

#[test]
fn what_is_missing_or_is_no_number_is_an_error() {
    let scores = logits(1, 2, COUNT, false);
    let with = |ctc: Option<&[f32]>, decoder, ctc_weight| {
        let models = Models { decoder, language_model: None };
        let options = JointOptions { ctc_weight, ..JointOptions::default() };
        joint_beam(Utterance { frames: 2, ctc }, models, &options).map_err(|error| error.to_string())
    };
    assert!(with(None, toy(1), 0.5).unwrap_err().contains("no scores of CTC"));
    assert!(with(Some(&scores), None, 0.5).unwrap_err().contains("no attention decoder"));
    assert!(with(Some(&scores), None, 1.0).is_ok() && with(None, toy(1), 0.0).is_ok());
    assert!(with(Some(&scores[..COUNT]), toy(1), 0.5).unwrap_err().contains("another number of frames"));
    let mut broken = scores.clone();
    broken[COUNT] = f32::NAN;
    assert!(with(Some(&broken), toy(1), 0.5).unwrap_err().contains("frame 1"));

    struct Broken;
    impl Predictor for Broken {
        fn step(&mut self, _: &[usize], hypotheses: &[&[u32]]) -> Result<Vec<f32>> {
            Ok(vec![f32::NAN; hypotheses.len() * COUNT])
        }
        fn select(&mut self, _: &[usize]) -> Result<()> {
            Ok(())
        }
    }
    assert!(with(Some(&scores), Some(Box::new(Broken)), 0.5).unwrap_err().contains("not finite"));
    struct Impossible;
    impl Predictor for Impossible {
        fn step(&mut self, _: &[usize], hypotheses: &[&[u32]]) -> Result<Vec<f32>> {
            Ok(vec![f32::NEG_INFINITY; hypotheses.len() * COUNT])
        }
        fn select(&mut self, _: &[usize]) -> Result<()> {
            Ok(())
        }
    }
    assert_eq!(with(Some(&scores), Some(Box::new(Impossible)), 0.5).unwrap(), []);
}

#[test]
fn an_n_best_list_is_json_with_text_and_every_score() {
    let scores = logits(2, 4, COUNT, false);
    let options = JointOptions { n_best: 2, ..JointOptions::default() };
    let models = Models { decoder: toy(2), language_model: None };
    let found = joint_beam(Utterance { frames: 4, ctc: Some(&scores) }, models, &options).unwrap();
    let list =
        NBest::new("fash-an251-b", found.clone(), |tokens| "_ABC".get(..=tokens.len()).unwrap_or("").to_string());
    let json = serde_json::to_value(&list).unwrap();
    assert_eq!(json["utterance"], "fash-an251-b");
    let best = &json["hypotheses"][0];
    assert_eq!(json["hypotheses"].as_array().unwrap().len(), 2);
    assert_eq!(best["tokens"], serde_json::json!(found[0].tokens));
    assert_eq!(best["score"], found[0].score);
    assert!(best["attention"].is_number() && best["ctc"].is_number() && best["language_model"].is_null());
    assert!(best["text"].is_string());
}
