use super::*;
use std::os::unix::fs::PermissionsExt;

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_and_nothing_else_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    write_bytes(&path, "old").unwrap();
    write_bytes(&path, "new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(names_in(folder.path()), ["log"]);
}

#[test]
fn a_full_disk_leaves_the_old_file_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    write_bytes(&path, "old").unwrap();
    let error = faults::with_disk_of(10, || write_bytes(&path, [7; 11])).unwrap_err().to_string();
    assert!(error.contains("weights: cannot be written") && error.contains("Free some space"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names_in(folder.path()), ["weights"]);
}

#[test]
fn a_device_is_written_to_and_never_replaced() {
    // The kernel's own full disk.
    if !Path::new("/dev/full").exists() {
        eprintln!("skipped: this system has no /dev/full");
        return;
    }
    let error = write_bytes("/dev/full", "text").unwrap_err().to_string();
    assert!(error.contains("/dev/full: cannot be written"), "{error}");
    write_bytes("/dev/null", "text").unwrap();
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

#[test]
fn a_writer_that_fails_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    write_bytes(&path, "old").unwrap();
    let failed = write_atomically(&path, |writer| {
        writer.write_all(b"half of the")?;
        Err(ErrorKind::UnexpectedEof.into())
    });
    assert!(failed.is_err());
    assert_eq!((fs::read(&path).unwrap(), names_in(folder.path())), (b"old".to_vec(), vec!["file".into()]));
}

#[test]
fn every_crash_leaves_the_old_file_or_the_new_one() {
    let mut crashes = 0;
    for crash_before in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_bytes(&path, "old").unwrap();
        let (outcome, trace) = faults::with_crash(Some(crash_before), || write_bytes(&path, "new"));
        let content = fs::read(&path).unwrap();
        assert!(content == b"old" || content == b"new");
        assert!(outcome.is_err() || content == b"new");
        // The next write clears away what the crash left.
        write_bytes(&path, "next").unwrap();
        assert_eq!(names_in(folder.path()), ["file"]);
        if trace.len() < crash_before {
            break;
        }
        crashes += usize::from(outcome.is_err());
    }
    // create, write, sync, rename, sync of the folder
    assert_eq!(crashes, 5);
}

#[test]
fn a_temporary_in_use_is_not_taken_for_a_stale_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(folder.path().join(".file.999999-3.tmp"), "left by a killed process").unwrap();
    fs::write(folder.path().join(".hidden.tmp"), "not ours").unwrap();
    let waiting = Temporary::write(&path, |writer| writer.write_all(b"slow")).unwrap();
    remove_stale_temporaries(folder.path());
    write_bytes(&path, "quick").unwrap();
    waiting.place(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"slow");
    assert_eq!(names_in(folder.path()), [".hidden.tmp", "file"]);
}

#[test]
fn a_symbolic_link_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    write_bytes(&target, "old").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    write_bytes(&link, "new").unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn a_folder_or_file_in_the_way_is_an_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let in_the_way = folder.path().join("name");
    fs::create_dir(&in_the_way).unwrap();
    let error = write_bytes(&in_the_way, "text").unwrap_err().to_string();
    assert!(error.contains("name: cannot be written") && error.contains("move it away"), "{error}");
    let file = folder.path().join("file");
    fs::write(&file, "text").unwrap();
    let error = create_folder(&file.join("below")).unwrap_err().to_string();
    assert!(error.contains("A file stands where a folder is needed"), "{error}");
    let error = write_bytes(folder.path().join("missing/file"), "text").unwrap_err().to_string();
    assert!(error.contains("Create its folder first"), "{error}");
}

#[test]
fn every_level_of_a_new_folder_is_durable_before_the_next_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs/an4/joint");
    let (created, trace) = faults::with_crash(None, || create_folder(&path));
    created.unwrap();
    let trace: Vec<String> = trace
        .iter()
        .map(|happened| match happened {
            faults::Happened::CreateFolder(path) => path.strip_prefix(folder.path()).unwrap().display().to_string(),
            faults::Happened::SyncFolder => "sync".to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(trace, ["runs", "sync", "runs/an4", "sync", "runs/an4/joint", "sync"]);
    // Whatever a crash leaves, the next try completes.
    for crash_before in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs/an4/joint");
        assert!(faults::with_crash(Some(crash_before), || create_folder(&path)).0.is_err());
        create_folder(&path).unwrap();
        assert!(path.is_dir());
    }
}

#[test]
fn an_unwritable_folder_is_an_error_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere.
    if fs::write(folder.path().join("probe"), "").is_ok() {
        eprintln!("skipped: this user may write in any folder");
        return;
    }
    let error = write_bytes(folder.path().join("file"), "text").unwrap_err().to_string();
    assert!(error.contains("cannot be written") && error.contains("who may read and write"), "{error}");
}

#[test]
fn a_link_replaces_what_stood_there_and_is_not_made_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    write_bytes(&first, "one").unwrap();
    write_bytes(&second, "two").unwrap();
    place_link(&first, &second).unwrap();
    assert_eq!(fs::read(&second).unwrap(), b"one");
    let (_, trace) = faults::with_crash(None, || place_link(&first, &second).unwrap());
    assert!(trace.is_empty());
    assert_eq!(names_in(folder.path()), ["first", "second"]);
}

#[test]
fn checksums_are_those_of_sha256() {
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(sha256(b"abc"), expected);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("abc");
    let mut finished = None;
    write_atomically(&path, |writer| {
        let mut checksum = ChecksumWriter::new(writer);
        checksum.write_all(b"abc")?;
        finished = Some(checksum.finish());
        Ok(())
    })
    .unwrap();
    assert_eq!(finished.unwrap(), (expected.to_string(), 3));
    assert_eq!(sha256_of_file(&path).unwrap(), expected);
}

#[test]
fn a_lock_is_held_by_one_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".lock");
    let first = Lock::take(&path).unwrap();
    assert!(first.is_some() && Lock::take(&path).unwrap().is_none());
    drop(first);
    assert!(Lock::take(&path).unwrap().is_some());
}

#[test]
fn text_that_is_not_utf8_is_an_error_naming_line_and_offset() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    fs::write(&path, b"a one\nb tw\xff\n").unwrap();
    let error = read_text(&path).unwrap_err().to_string();
    assert!(error.contains("text:2:") && error.contains("offset 10"), "{error}");
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    fs::write(&path, "\u{feff}a one\n").unwrap();
    assert_eq!(read_text(&path).unwrap(), "a one\n");
}

#[test]
fn a_link_to_nothing_is_an_error_and_no_missing_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    assert!(!exists(&path).unwrap());
    std::os::unix::fs::symlink(folder.path().join("absent"), &path).unwrap();
    assert!(exists(&path).unwrap_err().to_string().contains("text: cannot be looked at"));
    fs::write(folder.path().join("absent"), "").unwrap();
    assert!(exists(&path).unwrap());
}
