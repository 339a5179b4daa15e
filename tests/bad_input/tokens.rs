use super::{edit, refuses, refuses_data, refuses_to_train};
use crate::corpus::{copy_of, corpus, fresh_folder, ids, setting, train, trained};
use crate::program::{headfirst, run_to_end};
use headfirst::data::{PieceKind, Pieces};
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Byte-pair pieces of the corpus.
fn pieces() -> &'static PathBuf {
    static PIECES: OnceLock<PathBuf> = OnceLock::new();
    PIECES.get_or_init(|| {
        let folder = fresh_folder("pieces");
        fs::create_dir_all(&folder).unwrap();
        let text = fs::read_to_string(corpus().join("train/text")).unwrap();
        let transcripts = text.lines().map(|line| line.split_once(' ').unwrap().1);
        let pieces = Pieces::train(PieceKind::Bpe, 40, &[], transcripts).unwrap();
        pieces.save(folder.join("pieces.json")).unwrap();
        folder.join("pieces.json")
    })
}

fn quoted(path: &std::path::Path) -> String {
    format!("{:?}", path.to_str().unwrap())
}

#[test]
fn a_run_on_pieces_keeps_them_and_writes_words() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let settings = ["data.tokens=bpe".to_string(), format!("data.pieces={}", quoted(pieces()))];
    let settings: Vec<&str> = settings.iter().map(String::as_str).chain(["training.max_epochs=1"]).collect();
    let ended = run_to_end(train(&run, &settings));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    let list = fs::read_to_string(run.join("tokens.txt")).unwrap();
    assert!(list.starts_with("<blank>\n<unk>\n") && list.contains('\u{2581}'), "{list}");
    assert!(run.join("pieces.json").is_file());
    let mut evaluate = headfirst(["evaluate".as_ref(), run.as_os_str()]);
    evaluate.arg("--json");
    let ended = run_to_end(evaluate);
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    assert!(!ended.output.contains('\u{2581}'));

    // A classifier of these pieces goes with these pieces alone.
    let other = folder.path().join("other.json");
    let text = ["AND ANY OTHER WORDS OF SO MANY LETTERS"];
    Pieces::train(PieceKind::Bpe, 20, &[], text.into_iter()).unwrap().save(&other).unwrap();
    let from = format!("cascade.classifier_from={}", quoted(&run));
    let with_pieces = |path: &std::path::Path| format!("data.pieces={}", quoted(path));
    refuses_to_train(
        &["data.tokens=bpe", &from, &with_pieces(&other)],
        &["data.pieces", "other.json", "has not the pieces of", "Leave it out"],
    );
    let below = folder.path().join("below");
    let ended = run_to_end(train(&below, &["data.tokens=bpe", &from, &with_pieces(pieces()), "training.max_epochs=1"]));
    assert_eq!(ended.code, Some(0), "{}", ended.errors);

    // Its folder without them is no whole run.
    fs::remove_file(run.join("pieces.json")).unwrap();
    refuses(headfirst(["evaluate".as_ref(), run.as_os_str()]), &["pieces.json", "cannot be read"]);
}

#[test]
fn tokens_of_pieces_need_pieces_and_other_tokens_need_none() {
    refuses_to_train(&["data.tokens=bpe"], &["data.pieces", "is missing", "data-tools pieces"]);
    let named = format!("data.pieces={}", quoted(pieces()));
    refuses_to_train(&[&named], &["data.pieces", "only with data.tokens = \"bpe\""]);
    let no_pieces = format!("data.pieces={}", quoted(&corpus().join("recipe.toml")));
    refuses_to_train(&["data.tokens=bpe", &no_pieces], &["recipe.toml", "no file of pieces", "data-tools pieces"]);
}

#[test]
fn a_list_of_other_tokens_than_pieces_is_named() {
    let list = format!("data.token_list={}", quoted(&trained().join("tokens.txt")));
    let named = format!("data.pieces={}", quoted(pieces()));
    refuses_to_train(&["data.tokens=bpe", &named, &list], &["data.token_list", "begins a word", "Leave it out"]);
}

#[test]
fn absent_tokens_are_named_with_their_utterance() {
    let folder = copy_of("train");
    let list = folder.path().join("tokens.txt");
    let all = fs::read_to_string(trained().join("tokens.txt")).unwrap();
    let (first, last) = all.trim_end().rsplit_once('\n').unwrap();
    fs::write(&list, format!("{first}\n")).unwrap();
    let parts = ["utterance", &format!("character \"{last}\""), "not in the token list", "<unk>"];
    refuses_to_train(&[&format!("data.token_list={}", quoted(&list))], &parts);

    // A symbol that is never split is absent as a whole.
    let folder = copy_of("valid");
    edit(&folder.path().join("text"), |lines| lines[1] += " <NOISE>");
    let noise = "data.non_linguistic=['<NOISE>']";
    let id = &ids("valid")[1];
    let parts = [id.as_str(), "the symbol \"<NOISE>\"", "data.token_list"];
    refuses_to_train(&[noise, &setting("valid", folder.path())], &parts);
    refuses_to_train(&["data.non_linguistic=['a b']"], &["data.non_linguistic", "list of different symbols"]);
    refuses_to_train(&["data.non_linguistic=absent.txt"], &["absent.txt", "cannot be read"]);
    // Words are no characters.
    edit(&folder.path().join("text"), |lines| lines[0] = format!("{} NEVERHEARD", ids("valid")[0]));
    refuses_to_train(&["data.tokens=word", &setting("valid", folder.path())], &["the word \"NEVERHEARD\""]);
    refuses_data("valid", &folder.path().join("absent"), &["absent"]);
}

#[test]
fn a_classifier_of_another_kind_of_tokens_is_refused() {
    let from = format!("cascade.classifier_from={}", quoted(trained()));
    let parts = ["data.tokens: is \"word\"", "has \"char\"", "Write tokens = \"char\""];
    refuses_to_train(&["data.tokens=word", &from], &parts);
}
