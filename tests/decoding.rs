//! Decoding as a user asks for it, on small recognisers: what a beam search finds, how fast it says it was, what a language model adds, what is
//! scored, and what is refused. And weights that come from ESPnet.

use crate::corpus::{self, corpus, fresh_folder, ids};
use crate::program::{Ended, run_to_end};
use crate::tiny::Tiny;
use headfirst::audio::synthesis::write_wav;
use headfirst::device::Device;
use headfirst::models::recogniser::Recogniser;
use headfirst::train::learner::Batch;
use headfirst::train::loaded::LoadedModel;
use headfirst::train::progress::Mode;
use headfirst::train::weights::{NamedTensor, load_weights, save_weights};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const ATTENTION: &str = "model={kind=\"ctc-attention\", layers=1, units=16, projection=12, subsample=[2], attention=12, \
                         attention_channels=2, attention_reach=5, decoder_units=16}";
const TRANSFORMER: &str = "model={kind=\"transformer\", encoder_layers=1, decoder_layers=1, units=16, heads=2, feedforward=32, \
                           dropout=0.0, ctc_weight=0.5}";
const LANGUAGE_MODEL: &str = r#"
name = "letters"
data = { kind = "text", train = "letters.txt", valid = "letters.txt", tokens = "char" }
batch = { mode = "sentences", sequences = 4 }
model = { kind = "lstm-lm", layers = 2, embedding = 6, units = 8 }
optimizer = { kind = "adam", learning_rate = 0.02 }
training = { max_epochs = 2, patience = 0 }
"#;

/// Runs that have not learned everything, so that there is something to search: `attention`, `transformer`, `ctc`, and the language models `letters`
/// (the recognisers' symbols), `words` and `few` (without `c` and `d`). Not to be changed.
fn tiny() -> &'static Tiny {
    static TINY: OnceLock<Tiny> = OnceLock::new();
    TINY.get_or_init(|| {
        let tiny = Tiny::new();
        tiny.train("attention", &[ATTENTION, "training.max_epochs=12"]);
        let adam = "optimizer={kind=\"adam\", learning_rate=0.4, warmup=40}";
        tiny.train("transformer", &[TRANSFORMER, adam, "training.max_epochs=12"]);
        tiny.train("ctc", &["training.max_epochs=12"]);
        fs::write(tiny.path("letters.txt"), "abcd\nbca\ndda\ncab\nad\n".repeat(8)).unwrap();
        fs::write(tiny.path("words.txt"), "abcd bca dda\ncab ad\n".repeat(8)).unwrap();
        fs::write(tiny.path("few.txt"), "abba\nbab\n".repeat(8)).unwrap();
        fs::write(tiny.path("lm.toml"), LANGUAGE_MODEL).unwrap();
        for (run, text, tokens) in [("letters", "letters", "char"), ("words", "words", "word"), ("few", "few", "char")]
        {
            let sets = ["train", "valid"].map(|set| format!("data.{set}={text}.txt"));
            let tokens = format!("data.tokens={tokens}");
            let train =
                ["train", "lm.toml", "--out", run, "--quiet", "--set", &sets[0], "--set", &sets[1], "--set", &tokens];
            let ended = tiny.headfirst(&train);
            assert_eq!(ended.code, Some(0), "{}", ended.errors);
        }
        tiny
    })
}

fn json(ended: &Ended) -> Value {
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    serde_json::from_str(&ended.output).unwrap()
}

/// `evaluate RUN --json` with these options: the scores, and the n-best lists.
fn evaluated(run: &str, name: &str, options: &[&str]) -> (Value, Vec<Value>) {
    let lists = format!("{run}-{name}.json");
    let arguments = [&["evaluate", run, "--json", "--n-best-json", &lists], options].concat();
    let scores = json(&tiny().headfirst(&arguments));
    (scores, serde_json::from_slice(&fs::read(tiny().path(&lists)).unwrap()).unwrap())
}

fn refuses(arguments: &[&str], parts: &[&str]) {
    let ended = tiny().headfirst(arguments);
    assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.errors);
    assert!(ended.output.is_empty() && ended.errors.contains("error: "), "{arguments:?}: {}", ended.errors);
    for part in parts {
        assert!(ended.errors.contains(part), "{arguments:?}: {part:?} is not in: {}", ended.errors);
    }
}

fn tokens(hypothesis: &Value) -> Vec<u32> {
    hypothesis["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

/// What the decoder of `run` says if it is asked for its likeliest symbol again and again, each utterance by itself.
fn greedily(run: &str) -> Vec<Vec<u32>> {
    let model = LoadedModel::of_run(&Device::cpu(), tiny().path(run).to_str().unwrap()).unwrap();
    let data = model.frontend.open_set(&tiny().path("valid"), Mode::Quiet).unwrap();
    let learner = model.learner();
    let end = learner.model().sentence_end().unwrap();
    let greedily = |utterance: usize| {
        let encoded = learner.encode(&Batch::from(data.assemble(&[utterance]).unwrap())).unwrap();
        let parameters = &learner.parameters;
        let decoder = learner.model().predictor(parameters, &encoded.hidden, &encoded.sequences).unwrap();
        let (mut decoder, mut read) = (decoder.unwrap(), vec![end]);
        while read.len() <= encoded.sequences.lengths()[0] {
            let scores = decoder.step(&[0], &[&read]).unwrap();
            let best =
                (1..scores.len()).reduce(|best, symbol| if scores[symbol] > scores[best] { symbol } else { best });
            let best = best.unwrap() as u32;
            if best == end {
                break;
            }
            read.push(best);
            decoder.select(&[0]).unwrap();
        }
        read[1..].to_vec()
    };
    (0..data.utterances().len()).map(greedily).collect()
}

#[test]
fn a_beam_of_one_is_the_decoders_own_choice_whatever_is_decoded_beside_it() {
    for run in ["attention", "transformer"] {
        let (_, lists) = evaluated(run, "greedy", &["--beam", "1", "--ctc-weight", "0"]);
        let found: Vec<Vec<u32>> = lists.iter().map(|list| tokens(&list["hypotheses"][0])).collect();
        assert_eq!(found, greedily(run), "{run}");
        assert_eq!(lists.iter().map(|list| list["hypotheses"].as_array().unwrap().len()).max(), Some(1));
    }
}

#[test]
fn an_n_best_list_has_every_part_of_every_score_best_first() {
    for run in ["attention", "transformer"] {
        let options = ["--beam", "6", "--n-best", "4", "--ctc-weight", "0.4", "--penalty", "-0.25"];
        let (scores, lists) = evaluated(run, "lists", &options);
        assert_eq!(lists.len(), 5);
        let names: Vec<&str> = lists.iter().map(|list| list["utterance"].as_str().unwrap()).collect();
        assert!(names.is_sorted(), "{names:?}");
        let mut edits = 0;
        for (list, reference) in lists.iter().zip(fs::read_to_string(tiny().path("valid/text")).unwrap().lines()) {
            let hypotheses = list["hypotheses"].as_array().unwrap();
            assert!((1..=4).contains(&hypotheses.len()));
            let number = |hypothesis: &Value, part: &str| hypothesis[part].as_f64().unwrap();
            assert!(hypotheses.windows(2).all(|pair| number(&pair[0], "score") >= number(&pair[1], "score")));
            for hypothesis in hypotheses {
                let symbols = tokens(hypothesis);
                let text: String = symbols.iter().map(|&token| "_abcd".chars().nth(token as usize).unwrap()).collect();
                assert_eq!(hypothesis["text"], text);
                let score = 0.6 * number(hypothesis, "attention") + 0.4 * number(hypothesis, "ctc")
                    - 0.25 * (symbols.len() + 1) as f64;
                assert!((number(hypothesis, "score") - score).abs() < 1e-9, "{hypothesis}");
                assert!(hypothesis["language_model"].is_null() && list.get("seconds").is_none());
            }
            let reference = reference.split_once(' ').unwrap().1.chars().collect::<Vec<_>>();
            let best = hypotheses[0]["text"].as_str().unwrap().chars().collect::<Vec<_>>();
            edits += headfirst::score::rate::ErrorCounts::between(&reference, &best).edits();
        }
        let counts = &scores["characters"];
        let counted = ["substitutions", "deletions", "insertions"].map(|kind| counts[kind].as_u64().unwrap());
        assert_eq!(counted.iter().sum::<u64>(), edits, "the rate is that of the first of each list");
    }
    // CTC's own beam search has lists too, and a model of CTC alone scores by CTC alone.
    let (_, lists) = evaluated("ctc", "lists", &["--beam", "6", "--n-best", "3"]);
    let hypotheses = lists[0]["hypotheses"].as_array().unwrap();
    assert_eq!(hypotheses.len(), 3);
    assert!(hypotheses.iter().all(|one| one["ctc"] == one["score"] && one["attention"].is_null()), "{hypotheses:?}");
}

#[test]
fn decoding_is_greedy_unless_asked_and_says_how_fast_it_was() {
    let greedy = json(&tiny().headfirst(&["evaluate", "attention", "--json"]));
    let by_ctc = json(&tiny().headfirst(&["evaluate", "ctc", "--json", "--beam", "4"]));
    let model = LoadedModel::of_run(&Device::cpu(), tiny().path("ctc").to_str().unwrap()).unwrap();
    let data = model.frontend.open_set(&tiny().path("valid"), Mode::Quiet).unwrap();
    // Nothing says how long a frame is: 10 ms.
    let seconds = data.utterances().iter().map(|utterance| utterance.frames).sum::<usize>() as f64 * 0.01;
    for scores in [&greedy, &by_ctc] {
        let number = |key: &str| scores[key].as_f64().unwrap();
        assert!((number("audio_seconds") - seconds).abs() < 1e-9);
        assert!(number("decoding_seconds") > 0.0);
        assert!((number("real_time_factor") - number("decoding_seconds") / seconds).abs() < 1e-12);
    }
    let run = fs::read_to_string(tiny().path("attention/result.json")).unwrap();
    let run: Value = serde_json::from_str(&run).unwrap();
    assert_eq!(run["stages"][0]["valid"]["cer"], greedy["cer"], "the validation of a training is greedy too");
    let text = tiny().headfirst(&["evaluate", "transformer", "--beam", "2"]);
    assert!(text.output.contains("real-time factor 0."), "{}", text.output);
}

/// -ln p of a line by itself, as `evaluate` finds it for a language model of sentences.
fn negative_log_likelihood(line: &str) -> f64 {
    let file = format!("line-{line}.txt");
    fs::write(tiny().path(&file), format!("{line}\n")).unwrap();
    let scores = json(&tiny().headfirst(&["evaluate", "letters", "--data", &file, "--json"]));
    assert_eq!(scores["tokens"].as_u64().unwrap() as usize, line.len() + 1);
    scores["loss"].as_f64().unwrap() * (line.len() + 1) as f64
}

#[test]
fn a_language_model_adds_its_weighted_log_probability_of_the_whole_sentence() {
    for run in ["attention", "transformer"] {
        let options = ["--beam", "3", "--n-best", "2", "--lm", "letters", "--lm-weight", "0.7"];
        let (_, lists) = evaluated(run, "fused", &options);
        for hypothesis in lists.iter().take(2).flat_map(|list| list["hypotheses"].as_array().unwrap()) {
            let number = |part: &str| hypothesis[part].as_f64().unwrap();
            let expected = -negative_log_likelihood(hypothesis["text"].as_str().unwrap());
            // A softmax of f32 for each symbol.
            let rounding =
                (1 + tokens(hypothesis).len()) as f64 * 8.0 * f64::from(f32::EPSILON) * expected.abs().max(1.0);
            assert!((number("language_model") - expected).abs() < rounding, "{hypothesis}: {expected}");
            let score = 0.7 * number("attention") + 0.3 * number("ctc") + 0.7 * number("language_model");
            assert!((number("score") - score).abs() < 1e-9, "{hypothesis}");
        }
        // A weight of 0 is none.
        let (_, without) = evaluated(run, "without", &["--beam", "3", "--n-best", "2"]);
        let (_, of_weight_0) = evaluated(run, "zero", &[&options[..7], &["0"]].concat());
        assert_eq!(of_weight_0, without);
    }
}

#[test]
fn a_language_model_of_other_symbols_is_refused_with_what_differs() {
    let fuse = |run: &str, parts: &[&str]| {
        refuses(&["evaluate", "attention", "--lm", run, "--lm-weight", "0.5"], parts);
    };
    fuse("words", &["--lm: is a language model of words, and the recogniser writes characters", "tokens = \"char\""]);
    fuse("few", &["--lm: lacks \"c\" and 1 more of the recogniser's 5 symbols", "data.token_list"]);
    fuse("ctc", &["is a run on speech, not on text"]);
    fuse("absent", &["absent"]);
    refuses(
        &["evaluate", "attention", "--lm", "letters", "--lm-weight", "-1"],
        &["--lm-weight: is -1", "Use a number from 0"],
    );
    for half in [["--lm", "letters"], ["--lm-weight", "0.5"]] {
        let ended = tiny().headfirst(&[&["evaluate", "attention"][..], &half].concat());
        assert_eq!(ended.code, Some(2), "{}", ended.errors);
    }
}

#[test]
fn options_that_cannot_be_are_refused_by_name() {
    for run in ["attention", "transformer", "ctc"] {
        refuses(&["evaluate", run, "--beam", "0"], &["--beam: is 0", "Use 1 or more"]);
        refuses(
            &["evaluate", run, "--beam", "2", "--n-best", "3"],
            &["--n-best: is 3, but a beam of 2 keeps at most 2", "or a wider --beam"],
        );
        refuses(&["evaluate", run, "--n-best", "0"], &["--n-best: is 0"]);
    }
    refuses(&["evaluate", "attention", "--ctc-weight", "1.5"], &["--ctc-weight: is 1.5", "from 0"]);
    refuses(
        &["evaluate", "attention", "--min-length-ratio", "0.9", "--max-length-ratio", "0.5"],
        &["--min-length-ratio", "more than --max-length-ratio 0.5"],
    );
    refuses(&["evaluate", "letters", "--beam", "2"], &["--beam: is for speech", "Leave"]);
}

#[test]
fn a_decoders_options_are_refused_for_a_model_of_ctc_alone() {
    for option in ["--ctc-weight", "--penalty", "--min-length-ratio", "--max-length-ratio"] {
        let parts = [&format!("{option}: is for models with a decoder"), "blstm-ctc has none", "--beam N alone"];
        refuses(&["evaluate", "ctc", "--beam", "2", option, "0.5"], &parts);
        refuses(&["transcribe", "ctc", "absent.wav", option, "0.5"], &parts);
    }
    let parts = ["--lm: is for models with a decoder", "blstm-ctc has none"];
    refuses(&["evaluate", "ctc", "--lm", "letters", "--lm-weight", "0.5"], &parts);
}

#[test]
fn a_transcript_longer_than_its_frames_is_named_and_decoded_all_the_same() {
    let folder = tiny().path("too-long");
    corpus::copy_folder(&tiny().path("valid"), &folder);
    let text = fs::read_to_string(folder.join("text")).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    fs::write(folder.join("text"), format!("{first}{}\n{rest}", "abcd".repeat(30))).unwrap();
    for run in ["attention", "transformer"] {
        let scores = json(&tiny().headfirst(&["evaluate", run, "--data", "too-long", "--beam", "3", "--json"]));
        assert_eq!(scores["infeasible_utterances"], serde_json::json!(["speaker-000"]), "{run}");
        assert_eq!(scores["utterances"], 5);
        assert!(scores["loss"].is_number() && scores["cer"].as_f64().unwrap() > 0.0, "{scores}");
    }
}

#[test]
fn a_cut_that_would_freeze_everything_is_refused() {
    let tiny = tiny();
    let refuses = |changes: &[&str], parts: &[&str]| {
        let ended = tiny.try_train("refused", changes);
        assert_eq!(ended.code, Some(1), "{}", ended.errors);
        parts.iter().for_each(|part| assert!(ended.errors.contains(part), "{part}: {}", ended.errors));
        assert!(!tiny.path("refused").exists());
    };
    let compositions = |list: &str| format!("cascade={{strategy=\"fixed\", compositions={list}}}");
    refuses(&[ATTENTION, &compositions("[[3, 1]]")], &["[3, 1], which adds up to 4; the model has 3 groups"]);
    refuses(&[ATTENTION, &compositions("[[1, 2, 0]]")], &["compositions"]);
    refuses(
        &[ATTENTION, "cascade={classifier_from=\"attention\", classifier_groups=3}"],
        &["cascade.classifier_groups is 3; the model has 3 groups", "so that something is left to train"],
    );
}

/// A run of a model with a decoder on recordings, hardly trained.
fn on_recordings() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = fresh_folder("attention-on-recordings");
        let model = ATTENTION.replace("subsample=[2]", "subsample=[4]");
        let ended = run_to_end(corpus::train(&run, &[&model, "training.max_epochs=1"]));
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        run
    })
}

fn transcribe(audio: &[&Path], options: &[&str]) -> Command {
    let mut command = crate::program::headfirst(["transcribe".as_ref(), on_recordings().as_os_str()]);
    command.args(audio).args(["--threads", "1", "--max-length-ratio", "0.05"]).args(options);
    command
}

#[test]
fn recordings_are_transcribed_by_the_decoder_with_lists_and_speed() {
    let folder = tempfile::tempdir().unwrap();
    let recordings: Vec<PathBuf> = ids("test").iter().map(|id| corpus().join(format!("test/audio/{id}.wav"))).collect();
    let recordings: Vec<&Path> = recordings.iter().map(PathBuf::as_path).collect();
    let lists = folder.path().join("lists.json");
    let options = ["--json", "--beam", "3", "--n-best", "2", "--n-best-json", lists.to_str().unwrap()];
    let found = json(&run_to_end(transcribe(&recordings, &options)));
    let lists: Vec<Value> = serde_json::from_slice(&fs::read(lists).unwrap()).unwrap();
    let transcripts = found["transcripts"].as_array().unwrap();
    assert_eq!((transcripts.len(), lists.len()), (recordings.len(), recordings.len()));
    let mut seconds = 0.0;
    for ((transcript, list), recording) in transcripts.iter().zip(&lists).zip(&recordings) {
        assert_eq!(transcript["audio"], recording.to_str().unwrap());
        assert_eq!(list["utterance"], transcript["audio"]);
        assert_eq!(list["hypotheses"][0]["text"], transcript["text"]);
        let length = transcript["audio_seconds"].as_f64().unwrap();
        assert_eq!(list["seconds"], serde_json::json!([0.0, length]));
        assert!(transcript["real_time_factor"].as_f64().unwrap() > 0.0);
        seconds += length;
    }
    assert!((found["audio_seconds"].as_f64().unwrap() - seconds).abs() < 1e-9);
    assert!(found["real_time_factor"].as_f64().unwrap() > 0.0);
    let ended = run_to_end(transcribe(&recordings[..1], &["--beam", "3"]));
    assert_eq!(ended.output.trim_end(), transcripts[0]["text"].as_str().unwrap().trim_end());
    assert!(ended.errors.contains("real-time factor"), "{}", ended.errors);
    assert_eq!(run_to_end(transcribe(&recordings[..1], &["--beam", "3", "--quiet"])).errors, "");
}

#[test]
fn a_tenth_of_a_second_and_several_minutes_are_transcribed_by_the_decoder() {
    let folder = tempfile::tempdir().unwrap();
    let content = fs::read(corpus().join(format!("test/audio/{}.wav", ids("test")[0]))).unwrap();
    let samples: Vec<i16> = content[44..].chunks(2).map(|bytes| i16::from_le_bytes([bytes[0], bytes[1]])).collect();
    let short = folder.path().join("short.wav");
    write_wav(&short, corpus::SAMPLE_RATE, &samples[..corpus::SAMPLE_RATE as usize / 10]).unwrap();
    let long = folder.path().join("long.wav");
    let once: Vec<i16> = samples.iter().copied().chain([0; corpus::SAMPLE_RATE as usize / 2]).collect();
    let times = 150 * corpus::SAMPLE_RATE as usize / once.len();
    write_wav(&long, corpus::SAMPLE_RATE, &once.repeat(times)).unwrap();
    let lists = folder.path().join("lists.json");
    let options = ["--beam", "2", "--n-best-json", lists.to_str().unwrap(), "--json"];
    let mut command = transcribe(&[&short, &long], &options);
    // Of a minute, what a beam search keeps beside the frames is small, however many minutes there are.
    crate::program::limit_memory(&mut command, 320 << 20);
    let found = json(&run_to_end(command));
    assert_eq!(found["transcripts"].as_array().unwrap().len(), 2);
    let lists: Vec<Value> = serde_json::from_slice(&fs::read(lists).unwrap()).unwrap();
    let of_long: Vec<&Value> = lists.iter().filter(|list| list["utterance"] == long.to_str().unwrap()).collect();
    assert_eq!(lists.len(), of_long.len() + 1);
    let ends: Vec<f64> = of_long.iter().map(|list| list["seconds"][1].as_f64().unwrap()).collect();
    assert!(ends.len() >= 3 && ends.is_sorted() && of_long[1]["seconds"][0] == ends[0], "{ends:?}");
    assert_eq!(*ends.last().unwrap(), found["transcripts"][1]["audio_seconds"]);
}

#[test]
fn symbols_that_are_no_speech_are_recognised_but_not_scored() {
    let tiny = Tiny::new();
    for set in ["train", "valid"] {
        let text = fs::read_to_string(tiny.path(set).join("text")).unwrap();
        fs::write(tiny.path(set).join("text"), text.replace('\n', "<N>\n")).unwrap();
    }
    fs::write(tiny.path("symbols.txt"), "<N>\n").unwrap();
    tiny.train("run", &["data.non_linguistic=symbols.txt", "training.max_epochs=40"]);
    // A run keeps them, whatever becomes of the file.
    fs::remove_file(tiny.path("symbols.txt")).unwrap();
    let arguments = ["evaluate", "run", "--json", "--beam", "4", "--n-best-json", "lists.json"];
    let scores = json(&tiny.headfirst(&arguments));
    let text = fs::read_to_string(tiny.path("valid/text")).unwrap();
    let letters: usize = text.lines().map(|line| line.split_once(' ').unwrap().1.len() - "<N>".len()).sum();
    assert_eq!(scores["characters"]["reference"], letters);
    let lists = fs::read_to_string(tiny.path("lists.json")).unwrap();
    assert!(lists.contains("<N>\""), "what is recognised is shown: {lists}");
    let trn = fs::read_to_string(tiny.path("run/joint/valid.ref.trn")).unwrap();
    assert!(!trn.contains('<') && trn.lines().count() == 5, "{trn}");
    // Scored as a symbol like any other, it is one more in each utterance.
    tiny.train("scored", &["data.token_list=run/tokens.txt", "training.max_epochs=1"]);
    let scores = json(&tiny.headfirst(&["evaluate", "scored", "--json"]));
    assert_eq!(scores["characters"]["reference"], letters + 5);
}

/// Names, shapes and elements.
type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

/// The weights of a run under ESPnet's names, as `change` leaves them.
fn as_espnets(run: &str, file: &str, change: impl FnOnce(&mut Tensors)) {
    let weights = load_weights(tiny().path(run).join("joint/best.safetensors")).unwrap();
    let mut tensors: Tensors = Vec::new();
    for name in weights.names() {
        let shape = weights.shape(name).unwrap().to_vec();
        let values = weights.get(name, &shape).unwrap().to_vec();
        let theirs = match run {
            "attention" => match name.strip_prefix("att.") {
                Some(rest) => format!("att.0.{rest}"),
                None => {
                    name.replace("encoder.blstm.0.", "enc.enc.0.birnn0.").replace("encoder.proj.0.", "enc.enc.0.bt0.")
                }
            },
            _ => name.to_string(),
        };
        // The decoder has the attention as a part of its own too.
        if theirs.starts_with("att.") {
            tensors.push((format!("dec.{theirs}"), shape.clone(), values.clone()));
        }
        tensors.push((theirs, shape, values));
    }
    change(&mut tensors);
    let named: Vec<NamedTensor> = tensors.iter().map(|(name, shape, data)| NamedTensor { name, shape, data }).collect();
    save_weights(tiny().path(file), &named, &[]).unwrap();
}

#[test]
fn espnets_weights_are_imported_and_have_the_loss_of_their_source() {
    for (run, extra) in
        [("attention", ("att.0.gvec.bias", vec![1])), ("transformer", ("encoder.embed.out.1.pe", vec![1, 2]))]
    {
        let file = format!("{run}-espnet.safetensors");
        let (name, shape) = extra;
        let count = shape.iter().product();
        as_espnets(run, &file, |tensors| tensors.push((name.into(), shape, vec![0.5; count])));
        let (recipe, out) = (format!("{run}/recipe.toml"), format!("{run}-imported.safetensors"));
        let import = ["import", &file, "--recipe", &recipe, "--out", &out, "--data", "valid", "--json"];
        let imported = json(&tiny().headfirst(&import));
        let source = json(&tiny().headfirst(&["evaluate", run, "--data", "valid", "--json"]));
        assert_eq!((&imported["loss"], &imported["cer"]), (&source["loss"], &source["cer"]), "{run}");
        assert!(source["loss"].as_f64().unwrap() > 0.0);
        let again = ["evaluate", "--recipe", &recipe, "--weights", &out, "--data", "valid", "--json", "--beam", "2"];
        assert_eq!(json(&tiny().headfirst(&again))["loss"], source["loss"]);
        // Without --json, and with the recipe's own test set.
        let text = tiny().headfirst(&["import", &file, "--recipe", &recipe, "--out", &out]);
        assert!(text.output.contains("CER") && text.output.contains("loss "), "{}{}", text.output, text.errors);
        // Without any data there is no loss, but still one object.
        let content = std::fs::read_to_string(tiny().path(&recipe)).unwrap();
        let held_out = |line: &&str| line.starts_with("valid =") || line.starts_with("test =");
        let lines: Vec<&str> = content.lines().filter(|line| !held_out(line)).collect();
        assert_eq!(lines.len() + 2, content.lines().count(), "{content}");
        let recipe = format!("{run}/without-data.toml");
        std::fs::write(tiny().path(&recipe), lines.join("\n")).unwrap();
        let imported = json(&tiny().headfirst(&["import", &file, "--recipe", &recipe, "--out", &out, "--json"]));
        assert!(imported["out"] == out.as_str() && imported["tensors"].as_u64() > Some(9), "{imported}");
    }
}

#[test]
fn espnets_weights_that_are_missing_or_do_not_fit_are_named() {
    let import = |name: &str, change: &dyn Fn(&mut Tensors), parts: &[&str]| {
        let file = format!("{name}.safetensors");
        as_espnets("attention", &file, |tensors| change(tensors));
        let arguments = ["import", &file, "--recipe", "attention/recipe.toml", "--out", "never.safetensors"];
        refuses(&arguments, &[parts, &[file.as_str()]].concat());
        assert!(!tiny().path("never.safetensors").exists());
    };
    import(
        "missing",
        &|tensors| tensors.retain(|one| one.0 != "enc.enc.0.bt0.bias"),
        &["has no tensor enc.enc.0.bt0.bias"],
    );
    import(
        "deeper",
        &|tensors| tensors.push(("enc.enc.0.birnn1.bias_ih_l0".into(), vec![2], vec![0.0; 2])),
        &["the tensor enc.enc.0.birnn1.bias_ih_l0, which the recipe's ctc-attention does not have", "the sizes"],
    );
    let wide = |tensors: &mut Tensors| {
        let one = tensors.iter_mut().find(|one| one.0 == "ctc.ctc_lo.bias").unwrap();
        (one.1, one.2) = (vec![9], vec![0.0; 9]);
    };
    import("wide", &wide, &["the tensor ctc.ctc_lo.bias has the shape [9], expected [6]"]);
    import("none", &|tensors| tensors.retain(|one| one.0.starts_with("dec.")), &["encoder.blstm.0.weight_ih_l0"]);
}
