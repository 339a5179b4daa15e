//! Bad input of every kind, given to the program as a user would: exit code 1, no panic, and a text that names the file, line or
//! utterance and what to do. What stood in the folder before is still there.

use headfirst::audio::synthesis::write_wav;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A data folder with two recordings of a second.
fn source() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("audio")).unwrap();
    for id in ["u1", "u2"] {
        let samples: Vec<i16> = (0..8000).map(|sample| (sample * 37 % 2001 - 1000) as i16).collect();
        write_wav(&folder.path().join(format!("audio/{id}.wav")), 8000, &samples).unwrap();
    }
    fs::write(folder.path().join("wav.scp"), "u1 audio/u1.wav\nu2 audio/u2.wav\n").unwrap();
    fs::write(folder.path().join("text"), "u1 YES\nu2 NO\n").unwrap();
    folder
}

fn features(source: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_data-tools"));
    command.arg("features").arg(source).arg(out).args(["--threads", "1"]);
    command
}

fn refuses(mut command: Command, parts: &[&str]) {
    let output = command.output().expect("the program starts");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(output.stdout.is_empty() && text.contains("error: ") && !text.contains("panicked"), "{text}");
    parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in: {text}"));
}

/// Puts `content` in the place of the second recording; the features that were there stay.
fn refuses_audio(content: &[u8], parts: &[&str]) {
    let folder = source();
    fs::write(folder.path().join("feats.ark"), "old").unwrap();
    let audio = folder.path().join("audio/u2.wav");
    fs::write(&audio, content).unwrap();
    let parts: Vec<&str> = parts.iter().copied().chain([audio.to_str().unwrap()]).collect();
    refuses(features(folder.path(), folder.path()), &parts);
    assert_eq!(fs::read(folder.path().join("feats.ark")).unwrap(), b"old");
    assert!(!folder.path().join("feats.scp").exists());
}

#[test]
fn recordings_that_cannot_be_read_are_named() {
    let good = fs::read(source().path().join("audio/u1.wav")).unwrap();
    refuses_audio(&good[..9000], &["truncated", "Copy or download it again"]);
    refuses_audio(b"", &["the file is empty", "leave the utterance out"]);
    refuses_audio(b"OggS\0 of another kind", &["no WAV, FLAC or NIST SPHERE file", "Convert it"]);
    let mut wrong_header = good.clone();
    wrong_header[22..24].fill(0);
    refuses_audio(&wrong_header, &["onvert it"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    write_wav(&path, 8000, &[]).unwrap();
    refuses_audio(&fs::read(&path).unwrap(), &["length of zero", "Leave the utterance out"]);
    write_wav(&path, 8000, &[1; 199]).unwrap();
    refuses_audio(&fs::read(&path).unwrap(), &["shorter than one window", "u2", "Leave the utterance out"]);
    let mut stereo = good;
    (stereo[22], stereo[32]) = (2, 4);
    refuses_audio(&stereo, &["2 channels", "--channel N"]);
}

#[test]
fn tables_that_do_not_agree_are_named_by_line() {
    let spoilt = |name: &str, content: &str, parts: &[&str]| {
        let folder = source();
        fs::write(folder.path().join(name), content).unwrap();
        refuses(features(folder.path(), &folder.path().join("out")), parts);
    };
    spoilt("wav.scp", "u1 audio/u1.wav\nu2\n", &["wav.scp:2", "u2", "no file behind the id"]);
    spoilt("wav.scp", "u1 audio/u1.wav\nu2 audio/u3.wav\n", &["wav.scp:2", "u2", "audio/u3.wav", "Correct the path"]);
    spoilt("wav.scp", "", &["wav.scp", "no lines"]);
    spoilt("text", "u1 YES\nu2 NO\nu3 GO\n", &["text:3", "u3", "not in wav.scp"]);
    spoilt("text", "u1 YES\n", &["text", "u2 of wav.scp has no line"]);
    spoilt("text", "u1 YES\nu1 NO\n", &["text:2", "u1", "a second time"]);
    let empty = tempfile::tempdir().unwrap();
    refuses(features(empty.path(), &empty.path().join("out")), &[empty.path().to_str().unwrap(), "no wav.scp"]);
}

#[test]
fn an_impossible_option_is_named() {
    let folder = source();
    for (option, value) in [("--num-mel-bins", "1"), ("--frame-length", "0"), ("--sample-frequency", "-8000")] {
        let mut command = features(folder.path(), &folder.path().join("out"));
        command.arg(format!("{option}={value}"));
        refuses(command, &[&option[2..].replace('-', "_")]);
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = source();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    for out in [file.clone(), file.join("out")] {
        refuses(features(folder.path(), &out), &[out.to_str().unwrap(), "A file stands where a folder is needed"]);
    }
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    let folder = source();
    fs::write(folder.path().join("feats.ark"), "old").unwrap();
    // No file can grow beyond 8 blocks, as if the disk were full.
    let plain = features(folder.path(), folder.path());
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 8; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    refuses(limited, &["feats.ark: cannot be written", "ulimit -f"]);
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["audio", "feats.ark", "text", "wav.scp"]);
    assert_eq!(fs::read(folder.path().join("feats.ark")).unwrap(), b"old");
}
