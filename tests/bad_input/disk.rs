use super::refuses;
use crate::corpus::{corpus, train, trained};
use crate::program::headfirst;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

#[test]
fn a_full_disk_is_an_error_that_says_what_to_do() {
    if !Path::new("/dev/full").exists() {
        eprintln!("skipped: this system has no /dev/full");
        return;
    }
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for arguments in [&["doctor"][..], &["doctor", "--json"], &["--generate", "man"]] {
        let mut command = headfirst(arguments);
        command.stdout(full());
        refuses(command, &["standard output: cannot be written", "Free some space"]);
    }
    let mut report = headfirst(["report".as_ref(), trained().as_os_str()]);
    report.args(["--out", "/dev/full"]);
    refuses(report, &["/dev/full: cannot be written", "Free some space"]);
    // A disk of 60 KiB, where the user may make one: the weights with their state take more.
    let folder = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size=60k tmpfs {}", folder.path().display());
    let in_namespace = |script: String| {
        let mut command = Command::new("unshare");
        command
            .args(["-rm", "sh", "-c", &script])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        command
    };
    if !in_namespace(mount.clone()).output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped in part: this user cannot mount a small disk");
        return;
    }
    let training = train(&folder.path().join("run"), &[]);
    let words: Vec<String> = std::iter::once(training.get_program())
        .chain(training.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let words = words.join(" ");
    refuses(in_namespace(format!("{mount} && {words}")), &["cannot be written", "Free some space"]);
    let read_only = format!("{mount} && mount -o remount,ro {} && {words}", folder.path().display());
    refuses(in_namespace(read_only), &["cannot be written", "mounted for reading only"]);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    refuses(train(&file.join("run"), &[]), &["file/run: cannot be written", "A file stands where a folder is needed"]);
    refuses(train(&file, &[]), &["file", "A file stands where a folder is needed"]);
    let mut report = headfirst(["report".as_ref(), trained().as_os_str()]);
    report.arg("--out").arg(folder.path().join("absent/report.html"));
    refuses(report, &["absent/report.html: cannot be written", "Create its folder first"]);

    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut training = train(&locked.join("run"), &[]);
    // Root may write anywhere: it becomes nobody, if nobody may read what the test needs.
    // SAFETY: a system call that only asks.
    if unsafe { libc::geteuid() } == 0 {
        const NOBODY: u32 = 65534;
        let recipe = corpus().join("recipe.toml");
        let mut probe = Command::new("cat");
        probe.arg(recipe).arg(env!("CARGO_BIN_EXE_headfirst")).stdout(std::process::Stdio::null()).uid(NOBODY);
        if !probe.status().is_ok_and(|status| status.success()) {
            eprintln!("skipped in part: root may write in any folder, and nobody may not read this one");
            return;
        }
        training.uid(NOBODY);
    }
    refuses(training, &["locked/run: cannot be written", "Check who may read and write there"]);
}
