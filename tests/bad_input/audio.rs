use super::{edit, refuses, refuses_data};
use crate::corpus::{SAMPLE_RATE, corpus, ids, recordings_of, setting, train, trained};
use crate::program::{headfirst, limit_memory, run_to_end};
use headfirst::audio::synthesis::write_wav;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn transcribe(audio: &Path, options: &[&str]) -> Command {
    let mut command = headfirst(["transcribe".as_ref(), trained().as_os_str(), audio.as_os_str()]);
    command.arg("--quiet").args(options);
    command
}

/// One spoilt recording in a data folder, and given to `transcribe`: `content` of it, and what both errors say.
fn refuses_audio(content: &[u8], parts: &[&str]) {
    let folder = recordings_of("train");
    let audio = folder.path().join("audio").join(format!("{}.wav", ids("train")[3]));
    fs::write(&audio, content).unwrap();
    let name = audio.to_str().unwrap();
    let parts: Vec<&str> = parts.iter().copied().chain([name]).collect();
    refuses_data("train", folder.path(), &parts);
    refuses(transcribe(&audio, &[]), &parts);
}

fn good_audio() -> (PathBuf, Vec<u8>) {
    let path = corpus().join("train/audio").join(format!("{}.wav", ids("train")[3]));
    let content = fs::read(&path).unwrap();
    (path, content)
}

#[test]
fn recordings_that_cannot_be_read_are_named() {
    let (_, content) = good_audio();
    refuses_audio(&content[..content.len() / 2], &["truncated", "Copy or download it again"]);
    refuses_audio(&content[..20], &["no samples", "Copy or download it again"]);
    refuses_audio(b"", &["the file is empty", "leave the utterance out"]);
    refuses_audio(b"OggS\0 of another kind", &["no WAV, FLAC or NIST SPHERE file", "Convert it"]);
    // Says that it has no channel.
    let mut wrong_header = content.clone();
    wrong_header[22..24].fill(0);
    refuses_audio(&wrong_header, &["onvert it"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    write_wav(&path, SAMPLE_RATE, &[]).unwrap();
    refuses_audio(&fs::read(&path).unwrap(), &["length of zero", "Leave the utterance out"]);
    // A window has 25 ms, 200 samples.
    write_wav(&path, SAMPLE_RATE, &[1; 199]).unwrap();
    refuses_audio(&fs::read(&path).unwrap(), &["199 samples", "shorter than one window", "Leave the utterance out"]);
}

#[test]
fn a_missing_recording_is_named_with_its_line() {
    let folder = recordings_of("train");
    let id = &ids("train")[1];
    fs::remove_file(folder.path().join(format!("audio/{id}.wav"))).unwrap();
    refuses_data("train", folder.path(), &["wav.scp:2", id, &format!("no file audio/{id}.wav"), "Correct the path"]);
    let absent = folder.path().join("absent.wav");
    for options in [&[][..], &["--json"]] {
        refuses(transcribe(&absent, options), &["absent.wav", "cannot be read", "Check the path"]);
    }
}

#[test]
fn recordings_of_two_sample_rates_are_refused_unless_the_recipe_names_one() {
    let folder = recordings_of("train");
    fs::remove_file(folder.path().join("features.toml")).unwrap();
    let other = folder.path().join("audio").join(format!("{}.wav", ids("train")[3]));
    write_wav(&other, 2 * SAMPLE_RATE, &[100; 8000]).unwrap();
    let named = [other.to_str().unwrap(), "16000 samples a second", "features.sample_frequency = 8000.0"];
    refuses_data("train", folder.path(), &named);

    let run = folder.path().join("run");
    let train_on = |rate: &str| train(&run, &[&setting("train", folder.path()), "training.max_epochs=1", rate]);
    let ended = run_to_end(train_on("features.sample_frequency=8000.0"));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
}

#[test]
fn a_recording_that_was_made_otherwise_is_transcribed_or_refused_with_the_option_that_helps() {
    let (mono, content) = good_audio();
    let ended = run_to_end(transcribe(&mono, &[]));
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""));
    let samples: Vec<i16> = content[44..].chunks(2).map(|bytes| i16::from_le_bytes([bytes[0], bytes[1]])).collect();
    let folder = tempfile::tempdir().unwrap();

    // Silence on the left, speech on the right.
    let stereo = folder.path().join("stereo.wav");
    let interleaved: Vec<i16> = samples.iter().flat_map(|&sample| [0, sample]).collect();
    write_wav(&stereo, SAMPLE_RATE, &interleaved).unwrap();
    let mut bytes = fs::read(&stereo).unwrap();
    (bytes[22], bytes[32]) = (2, 4);
    bytes[28..32].copy_from_slice(&(4 * SAMPLE_RATE).to_le_bytes());
    fs::write(&stereo, bytes).unwrap();
    refuses(transcribe(&stereo, &[]), &["stereo.wav", "2 channels", "Choose one, from 0 to 1: --channel N"]);
    refuses(transcribe(&stereo, &["--channel", "2"]), &["stereo.wav", "--channel a number from 0 to 1"]);
    assert_eq!(run_to_end(transcribe(&stereo, &["--channel", "1"])).output, ended.output);

    // Twice the rate, every sample between two others.
    let fast = folder.path().join("fast.wav");
    let between = samples.windows(2).flat_map(|pair| [pair[0], ((i32::from(pair[0]) + i32::from(pair[1])) / 2) as i16]);
    write_wav(&fast, 2 * SAMPLE_RATE, &between.collect::<Vec<_>>()).unwrap();
    let resampled = run_to_end(transcribe(&fast, &[]));
    assert_eq!((resampled.code, resampled.errors.as_str()), (Some(0), ""));
    assert_eq!(resampled.output.lines().count(), 1);

    // One bad file does not keep the others from being transcribed.
    let mut both = transcribe(&stereo, &[]);
    both.arg(&mono);
    let both = run_to_end(both);
    assert_eq!(both.code, Some(1));
    assert!(both.output.contains(mono.to_str().unwrap()) && both.errors.contains("--channel"), "{}", both.errors);
}

#[test]
fn a_tenth_of_a_second_is_transcribed_and_trained_on() {
    let (_, content) = good_audio();
    let samples: Vec<i16> = content[44..].chunks(2).map(|bytes| i16::from_le_bytes([bytes[0], bytes[1]])).collect();
    let folder = recordings_of("train");
    let id = &ids("train")[3];
    let short = folder.path().join(format!("audio/{id}.wav"));
    write_wav(&short, SAMPLE_RATE, &samples[..SAMPLE_RATE as usize / 10]).unwrap();
    let ended = run_to_end(transcribe(&short, &[]));
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""));
    edit(&folder.path().join("text"), |lines| {
        let words = lines[3].split_once(' ').unwrap().1.to_string();
        lines[3] += &format!(" {words} {words}");
    });
    let run = folder.path().join("run");
    let ended = run_to_end(train(&run, &[&setting("train", folder.path()), "training.max_epochs=1"]));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    // Its labels do not fit: it is named, and the others are trained on.
    assert!(ended.errors.contains(&format!("utterance {id}: its labels do not fit its frames")), "{}", ended.errors);
}

#[test]
fn an_hour_is_transcribed_in_bounded_memory() {
    let (mono, content) = good_audio();
    let samples: Vec<i16> = content[44..].chunks(2).map(|bytes| i16::from_le_bytes([bytes[0], bytes[1]])).collect();
    let folder = tempfile::tempdir().unwrap();
    let long = folder.path().join("long.wav");
    let once: Vec<i16> = samples.iter().copied().chain([0; SAMPLE_RATE as usize / 2]).collect();
    let times = 3600 * SAMPLE_RATE as usize / once.len();
    write_wav(&long, SAMPLE_RATE, &once.repeat(times)).unwrap();
    // The file has 58 MB, its samples have 115; as one utterance the gates of the first layer alone would have 180.
    let mut command = transcribe(&long, &["--threads", "1"]);
    limit_memory(&mut command, 320 << 20);
    let ended = run_to_end(command);
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""));
    let short = run_to_end(transcribe(&mono, &[]));
    assert!(ended.output.len() >= short.output.len(), "{} {}", ended.output, short.output);
}

#[test]
fn a_beam_of_0_is_refused() {
    let (mono, _) = good_audio();
    refuses(transcribe(&mono, &["--beam", "0"]), &["--beam: is 0", "Use 1 or more"]);
    let mut evaluate = headfirst(["evaluate".as_ref(), trained().as_os_str()]);
    evaluate.args(["--beam", "0"]);
    refuses(evaluate, &["--beam: is 0", "Use 1 or more"]);
}
