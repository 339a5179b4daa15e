use super::*;
use proptest::prelude::*;
use std::fs;

const TEXT: [&str; 6] = [
    "THE CAT SAT ON THE MAT",
    "THE RAT SAT ON THE HAT",
    "<NOISE> THAT CAT ATE THE FAT RAT",
    "A BAT AND A CAT",
    "SHE SANG IN THE RAIN",
    "HE RAN AND RAN AND ATE",
];

fn trained(kind: PieceKind, vocabulary: usize) -> Pieces {
    Pieces::train(kind, vocabulary, &["<NOISE>".to_string()], TEXT.into_iter()).unwrap()
}

#[test]
fn pieces_put_together_are_the_word_behind_its_mark() {
    for kind in [PieceKind::Bpe, PieceKind::Unigram] {
        let pieces = trained(kind, 24);
        assert!(!pieces.symbols().iter().any(|symbol| symbol.contains('<') && symbol != UNKNOWN));
        assert!(pieces.symbols().len() >= 24, "{:?}", pieces.symbols());
        assert_eq!(pieces.split("THE").unwrap().concat(), "\u{2581}THE");
        assert!(pieces.split("THE").unwrap().len() < 4, "a frequent word is not split into characters");
        assert_eq!(pieces.split("TÄT").unwrap().iter().filter(|piece| *piece == UNKNOWN).count(), 1);
    }
}

#[test]
fn the_same_transcripts_in_another_order_give_the_same_pieces() {
    for kind in [PieceKind::Bpe, PieceKind::Unigram] {
        let one = trained(kind, 24);
        let other = Pieces::train(kind, 24, &["<NOISE>".to_string()], TEXT.into_iter().rev()).unwrap();
        assert_eq!(one.to_json(), other.to_json());
    }
}

#[test]
fn saved_pieces_are_the_same_pieces() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [PieceKind::Bpe, PieceKind::Unigram] {
        let path = folder.path().join("pieces.json");
        let pieces = trained(kind, 24);
        pieces.save(&path).unwrap();
        let again = Pieces::load(&path).unwrap();
        assert_eq!(again, pieces);
        assert_eq!(again.symbols(), pieces.symbols());
    }
}

#[test]
fn sentencepieces_own_models_split_as_sentencepiece_does() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pieces"));
    let splits: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("splits.json")).unwrap()).unwrap();
    for kind in ["bpe", "unigram"] {
        let pieces = Pieces::load(folder.join(format!("{kind}.model"))).unwrap();
        assert_eq!(pieces.whole().collect::<Vec<_>>(), ["[laughter]"]);
        assert!(!pieces.symbols().contains(&"<s>".to_string()));
        for (word, expected) in splits[kind].as_object().unwrap() {
            let expected: Vec<&str> =
                expected.as_array().unwrap().iter().map(|piece| piece.as_str().unwrap()).collect();
            let mut found = pieces.split(word).unwrap();
            if word == "[laughter]" {
                found.insert(0, WORD_BEGIN.to_string());
            }
            assert_eq!(found, expected, "{kind}: {word}");
        }
        let copy = tempfile::tempdir().unwrap();
        pieces.save(copy.path().join("pieces.json")).unwrap();
        assert_eq!(Pieces::load(copy.path().join("pieces.json")).unwrap().symbols(), pieces.symbols());
    }
}

#[test]
fn impossible_numbers_and_files_are_errors_with_a_remedy() {
    let train = |vocabulary, text: &str| {
        let pieces = Pieces::train(PieceKind::Bpe, vocabulary, &[], [text].into_iter());
        pieces.unwrap_err().to_string()
    };
    assert!(train(5, "").contains("no words"));
    let error = train(3, "ABC AB");
    assert!(
        error.contains("--vocab: is 3, but the transcripts have 4 characters. Ask for 5 pieces or more"),
        "{error}"
    );
    let error = train(900, "ABC AB");
    assert!(error.contains("--vocab: is 900, but only") && error.contains("or fewer"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pieces.json");
    let no_unknown = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true},
        "post_processor":null,"decoder":null,
        "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
        "fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"▁":0,"a":1},"merges":[]}}"#;
    let no_marks =
        no_unknown.replace(r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}"#, "null");
    for (content, part) in [
        ("", "no file of pieces"),
        ("{\"version\": 1}", "no file of pieces"),
        ("<blank>\nA\n", "no file of pieces"),
        (no_unknown, "drops the characters"),
        (&no_marks, "beginning of a word"),
    ] {
        fs::write(&path, content).unwrap();
        let error = Pieces::load(&path).unwrap_err().to_string();
        assert!(
            error.contains("pieces.json") && error.contains(part) && error.contains("data-tools pieces"),
            "{error}"
        );
    }
    assert!(Pieces::load(folder.path().join("absent")).unwrap_err().to_string().contains("cannot be read"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_word_of_known_characters_comes_back(word in "[ABCDEHIMNORST]{1,12}") {
        for kind in [PieceKind::Bpe, PieceKind::Unigram] {
            let text = "A B C D E H I M N O R S T THE CAT SAT";
            let pieces = Pieces::train(kind, 18, &[], [text].into_iter()).unwrap();
            prop_assert_eq!(pieces.split(&word).unwrap().concat(), format!("{WORD_BEGIN}{word}"));
        }
    }
}
