use super::*;

const RECIPE_TEXT: &str = "name = \"r\"\n[optimizer]\nlearning_rate = 1.0\n[training]\nmax_epochs = 3\n";

fn started(folder: &Path) -> RunFolder {
    let run = RunFolder::create(folder.join("run")).unwrap();
    run.write_start(&StartFiles {
        recipe: RECIPE_TEXT,
        tokens: Some("<blank>\na\n"),
        features: None,
        cmvn: Some(b"BFM"),
        pieces: None,
    })
    .unwrap();
    run
}

fn record(stage: &str, epoch: usize) -> EpochRecord {
    EpochRecord {
        stage: stage.into(),
        epoch,
        train_loss: 0.1 + epoch as f64,
        valid_loss: f64::INFINITY,
        valid_cer: Some(17.2),
        valid_wer: None,
        valid_perplexity: None,
        best: false,
        kept_sha256: None,
        step: 29 * epoch as u64,
        learning_rate: 1.0,
        gradient_norm: f64::INFINITY,
        skipped_updates: 0,
        infeasible_utterances: 0,
        train_seconds: 1.0,
        valid_seconds: 0.5,
    }
}

#[test]
fn an_existing_run_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    drop(started(folder.path()));
    let error = RunFolder::create(folder.path().join("run")).unwrap_err().to_string();
    assert!(error.contains("--resume") && error.contains("--out"), "{error}");
    let next = RunFolder::create_next_free(folder.path().join("run")).unwrap();
    assert_eq!(next.path(), folder.path().join("run-2"));
    assert_eq!(RunFolder::create_next_free(folder.path().join("run")).unwrap().path(), folder.path().join("run-3"));
}

#[test]
fn another_folder_is_left_alone_but_a_start_that_was_killed_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("thesis.tex"), "").unwrap();
    let error = RunFolder::create(folder.path()).unwrap_err().to_string();
    assert!(error.contains("it holds thesis.tex") && error.contains("--out"), "{error}");
    let killed = folder.path().join("killed");
    fs::create_dir(&killed).unwrap();
    for name in [TOKENS, LOCK, ".recipe.toml.12-3.tmp"] {
        fs::write(killed.join(name), "").unwrap();
    }
    let run = RunFolder::create(&killed).unwrap();
    assert_eq!(names_in(run.path()), [LOCK, TOKENS]);
}

#[test]
fn a_start_takes_nothing_over_from_one_that_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let killed = folder.path().join("run");
    fs::create_dir(&killed).unwrap();
    for name in [TOKENS, FEATURES, PIECES, CMVN] {
        fs::write(killed.join(name), "of another recipe").unwrap();
    }
    // `started` writes neither feature options nor pieces.
    let run = started(folder.path());
    assert_eq!(names_in(run.path()), [LOCK, CMVN, RECIPE, TOKENS]);
    assert_eq!(fs::read(run.path().join(CMVN)).unwrap(), b"BFM");
}

#[test]
fn only_one_process_trains_in_a_folder_but_others_may_read() {
    let folder = tempfile::tempdir().unwrap();
    let run = started(folder.path());
    let error = RunFolder::resume(run.path()).unwrap_err().to_string();
    assert!(error.contains("another process is training"), "{error}");
    assert!(RunFolder::open(run.path()).is_ok());
    let path = run.path().to_path_buf();
    drop(run);
    assert!(RunFolder::resume(path).is_ok());
}

#[test]
fn resuming_what_is_no_run_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = RunFolder::resume(folder.path()).unwrap_err().to_string();
    assert!(error.contains("holds no run") && error.contains("without --resume"), "{error}");
    assert!(RunFolder::resume(folder.path().join("none")).unwrap_err().to_string().contains("no such run"));
    assert_eq!(names_in(folder.path()), [""; 0]);
}

#[test]
fn a_file_in_the_way_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("runs"), "").unwrap();
    let error = RunFolder::create(folder.path().join("runs/an4")).unwrap_err().to_string();
    assert!(error.contains("A file stands where a folder is needed"), "{error}");
    let error = RunFolder::create(folder.path().join("runs")).unwrap_err().to_string();
    assert!(error.contains("A file stands where a folder is needed"), "{error}");
}

#[test]
fn another_recipe_is_refused_with_the_keys_that_differ() {
    let folder = tempfile::tempdir().unwrap();
    let run = started(folder.path());
    let other = RECIPE_TEXT.replace("1.0", "0.5") + "[model]\nkind = \"blstm-ctc\"\n";
    let error = run.adopt_recipe(&other).unwrap_err().to_string();
    assert!(error.contains("optimizer.learning_rate (run: 1.0, now: 0.5)"), "{error}");
    assert!(error.contains("model.kind (run: not set, now: \"blstm-ctc\")"), "{error}");
    assert_eq!(run.recipe().unwrap(), RECIPE_TEXT);
    let longer = RECIPE_TEXT.replace("max_epochs = 3", "max_epochs = 30");
    assert_eq!(run.adopt_recipe(&longer).unwrap(), None);
    assert_eq!(run.recipe().unwrap(), longer);
}

#[test]
fn the_log_comes_back_with_losses_that_are_not_finite() {
    let folder = tempfile::tempdir().unwrap();
    let run = started(folder.path());
    assert_eq!(run.read_log().unwrap(), []);
    let records = [record("joint", 1), record("joint", 2)];
    records.iter().for_each(|record| run.append_log(record).unwrap());
    assert_eq!(run.read_log().unwrap(), records);
}

#[test]
fn a_torn_last_line_is_left_out_and_cut_off_on_resume() {
    let folder = tempfile::tempdir().unwrap();
    let run = started(folder.path());
    run.append_log(&record("joint", 1)).unwrap();
    let whole = fs::read(run.log()).unwrap();
    run.append_log(&record("joint", 2)).unwrap();
    let both = fs::read(run.log()).unwrap();
    let path = run.path().to_path_buf();
    drop(run);
    for length in whole.len()..both.len() {
        fs::write(path.join(LOG), &both[..length]).unwrap();
        assert_eq!(RunFolder::open(&path).unwrap().read_log().unwrap(), [record("joint", 1)]);
        let run = RunFolder::resume(&path).unwrap();
        assert_eq!(fs::read(run.log()).unwrap(), whole);
        run.append_log(&record("joint", 2)).unwrap();
        assert_eq!(fs::read(run.log()).unwrap(), both);
    }
}

#[test]
fn the_log_is_cut_back_to_what_the_states_know() {
    let folder = tempfile::tempdir().unwrap();
    let run = started(folder.path());
    for (stage, epoch) in [("joint", 1), ("joint", 2), ("1-4", 1), ("1-4", 2), ("1-1-3", 1)] {
        run.append_log(&record(stage, epoch)).unwrap();
    }
    run.cut_log(&BTreeMap::from([("joint".into(), 2), ("1-4".into(), 1)])).unwrap();
    assert_eq!(run.read_log().unwrap(), [record("joint", 1), record("joint", 2), record("1-4", 1)]);
}

#[test]
fn a_damaged_line_within_the_log_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let run = started(folder.path());
    run.append_log(&record("joint", 1)).unwrap();
    fs::write(run.log(), [fs::read(run.log()).unwrap(), b"{\"stage\n".to_vec()].concat()).unwrap();
    let error = run.read_log().unwrap_err().to_string();
    assert!(error.contains("log.jsonl:2: is no record"), "{error}");
}

#[test]
fn stages_and_kept_epochs_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let run = started(folder.path());
    for stage in ["joint", "1-4", "empty", "joint.seed2"] {
        run.create_stage(stage).unwrap();
    }
    for path in [run.stage("joint").best(), run.stage("1-4").epoch(10), run.stage("1-4").epoch(9)] {
        fs::write(path, "").unwrap();
    }
    fs::write(run.stage("joint.seed2").best(), "").unwrap();
    assert_eq!(run.stages(), ["1-4", "joint", "joint.seed2"]);
    assert_eq!(run.stage("1-4").kept_epochs(), [9, 10]);
}

#[test]
fn a_damaged_result_is_an_error_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let run = started(folder.path());
    assert_eq!(run.read_result().unwrap(), None);
    fs::write(run.path().join(RESULT), "{\"name\":").unwrap();
    assert!(run.read_result().unwrap_err().to_string().contains("result.json: is damaged"));
}

#[test]
fn skipped_batches_that_the_state_does_not_know_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunFolder::create(folder.path().join("run")).unwrap();
    run.cut_skipped("joint", 0).unwrap();
    let path = run.path().join(SKIPPED);
    assert!(!path.exists());
    for (stage, step) in [("joint", 3), ("joint", 4), ("1-2", 9)] {
        run.append_skipped(stage, step, "ctc.bias", &["a".into()]).unwrap();
    }
    append(&path, b"{\"stage\": \"join").unwrap();
    run.cut_skipped("joint", 4).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let steps: Vec<_> =
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].clone()).collect();
    assert_eq!(steps, [3, 9]);
}
