//! The program as a user meets it: exit codes, and what goes where.

use std::process::{Command, Output};

fn data_tools(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_data-tools")).args(arguments).output().expect("the program starts")
}

#[test]
fn wrong_usage_ends_with_2_and_bad_data_with_1() {
    for arguments in
        [&["an4"][..], &["an4", "a", "b", "--bins", "3"], &["corpus"], &["features", "a", "b", "--threads", "0"]]
    {
        let output = data_tools(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    let output = data_tools(&["an4", "absent", "out"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("error: ") && text.contains("an4_train.transcription"), "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn help_names_every_corpus_and_every_option_has_a_line() {
    let output = data_tools(&["--help"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("an4") && text.contains("features"), "{text}");
    let text = String::from_utf8(data_tools(&["features", "--help"]).stdout).unwrap();
    for option in
        ["--num-mel-bins", "--pitch", "--dither", "--sample-frequency", "--channel", "--delta-pitch", "--snip-edges"]
    {
        assert!(text.contains(option), "{option}");
    }
}

#[test]
fn a_small_folder_is_done_in_plain_lines_and_in_silence_when_quiet() {
    let folder = tempfile::tempdir().unwrap();
    // 1000 samples of silence: a header of 44 bytes says so.
    let mut wav =
        b"RIFF\xf4\x07\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x80\x3e\0\0\x02\0\x10\0data\xd0\x07\0\0".to_vec();
    wav.resize(44 + 2000, 0);
    std::fs::write(folder.path().join("a.wav"), wav).unwrap();
    std::fs::write(folder.path().join("wav.scp"), "a a.wav\n").unwrap();
    let (source, out) = (folder.path().to_str().unwrap(), folder.path().join("out"));
    let output = data_tools(&["features", source, out.to_str().unwrap(), "--threads", "1"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{text}");
    assert!(text.contains("1 utterances, 11 frames of 23 features") && text.lines().count() == 1, "{text}");
    let output = data_tools(&["features", source, out.to_str().unwrap(), "--quiet"]);
    assert!(output.status.success() && output.stderr.is_empty());
}

#[test]
fn pieces_of_a_folder_are_found_and_impossible_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    std::fs::write(path("text"), "u1 THE CAT SAT <NOISE>\nu2 THE MAT SAT\n").unwrap();
    std::fs::write(path("symbols"), "<NOISE>\n").unwrap();
    let (source, out, symbols) = (path(""), path("pieces.json"), path("symbols"));
    for kind in ["bpe", "unigram"] {
        let arguments =
            ["pieces", &source, &out, "--vocab", "9", "--kind", kind, "--non-linguistic", &symbols, "--quiet"];
        let output = data_tools(&arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && output.stdout.is_empty() && errors.is_empty(), "{errors}");
        let text = std::fs::read_to_string(&out).unwrap();
        assert!(text.contains("\u{2581}") && !text.contains("NOISE"), "{text}");
    }
    for (vocab, part) in [("2", "--vocab: is 2, but the transcripts have"), ("5000", "only")] {
        let output = data_tools(&["pieces", &source, &out, "--vocab", vocab]);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && errors.contains(part), "{errors}");
    }
    let output = data_tools(&["pieces", &path("absent"), &out, "--vocab", "9"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("has no file text"));
}
