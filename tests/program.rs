//! The program as a user starts it, how it ends, and what a run leaves behind.

use serde_json::Value;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program with these arguments, its output and its errors to be read, and nothing of the tester's terminal. HEADFIRST_TEST_BINARY names it
/// where the tests run on another machine than they were built on.
pub fn headfirst<A: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let binary = std::env::var_os("HEADFIRST_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_headfirst").into());
    let mut command = Command::new(binary);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["NO_COLOR", "CLICOLOR_FORCE", "CLICOLOR"] {
        command.env_remove(name);
    }
    command
}

/// How a process ended, and what it said.
pub struct Ended {
    /// None: killed by a signal.
    pub code: Option<i32>,
    pub output: String,
    pub errors: String,
}

/// Starts a process and waits for it.
pub fn run_to_end(mut command: Command) -> Ended {
    end(command.spawn().expect("the program starts"))
}

/// Waits for a process, and checks what holds for all of them: it does not panic.
pub fn end(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let ended = Ended { code: output.status.code(), output: text(output.stdout), errors: text(output.stderr) };
    assert!(!ended.errors.contains("panicked"), "{}", ended.errors);
    ended
}

/// Waits until `condition` holds or the process has ended; true if it has not.
pub fn wait_until(child: &mut Child, condition: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if condition() {
            return true;
        }
        assert!(begin.elapsed() < PATIENCE, "nothing happened in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// The records of `log.jsonl` without what the clock says; none before the first epoch has ended. A torn last line is left out.
pub fn log(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
    let records = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        let fields = record.as_object_mut().unwrap();
        assert!(fields.remove("train_seconds").is_some() && fields.remove("valid_seconds").is_some());
        record
    });
    records.collect()
}

/// What `result.json` says.
pub fn result(run: &Path) -> Value {
    serde_json::from_slice(&fs::read(run.join("result.json")).unwrap()).unwrap()
}

/// No file that the program writes can grow beyond `bytes`: works everywhere, and for the program it is a disk that is full.
pub fn limit_file_size(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: between fork and exec only two system calls are made, both of which may be made there.
    unsafe {
        command.pre_exec(move || {
            // As a shell starts a program: whether the signal that comes with the limit ends it, is up to the program.
            libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// The program cannot have more than `bytes` of data in memory.
pub fn limit_memory(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: between fork and exec only one system call is made, which may be made there.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_DATA, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}
