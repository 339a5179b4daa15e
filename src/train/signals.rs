//! How the process is asked to stop, and how it ends.
//!
//! | signal | what happens | exit code |
//! |---|---|---|
//! | SIGINT (Ctrl-C) | the trainer saves its state and stops; a second one ends at once | 130 |
//! | SIGTERM | the trainer saves its state and stops | 143 |
//! | SIGUSR1 (a cluster's warning before it takes the machine away) | the trainer saves its state and stops | 128 + SIGUSR1 (138 on Linux) |
//!
//! Otherwise 0, or 1 after an error (2 for wrong usage, which the argument parser sees to). A reader of standard output that goes
//! away (`headfirst ... | head`) is no error.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::error::{Error, Result};

/// Whether a signal has asked the process to stop. Cheap to ask, after every batch, of validation too.
#[derive(Debug, Clone, Default)]
pub struct StopRequest {
    /// The signal's number, 0 before any.
    signal: Arc<AtomicUsize>,
}

impl StopRequest {
    /// Watches for SIGINT, SIGTERM and SIGUSR1 from now on. For `train` and `demo`; other commands are better ended at once.
    ///
    /// # Errors
    /// The system refuses.
    pub fn watch() -> Result<Self> {
        let request = StopRequest::default();
        let interrupted = Arc::new(AtomicBool::new(false));
        let register = || -> io::Result<()> {
            // Asked before the flag is set: it acts from the second Ctrl-C on.
            flag::register_conditional_shutdown(SIGINT, exit_code_of(SIGINT), Arc::clone(&interrupted))?;
            flag::register(SIGINT, interrupted)?;
            for signal in [SIGINT, SIGTERM, SIGUSR1] {
                flag::register_usize(signal, Arc::clone(&request.signal), signal as usize)?;
            }
            Ok(())
        };
        register().map_err(|error| Error::program(format!("signals cannot be watched: {error}")))?;
        Ok(request)
    }

    /// One that no signal reaches, only [`StopRequest::request`]; for tests.
    pub fn never() -> Self {
        StopRequest::default()
    }

    /// Asks to stop as `signal` would.
    pub fn request(&self, signal: i32) {
        self.signal.store(signal as usize, Ordering::SeqCst);
    }

    /// The number of the signal that asked to stop.
    pub fn signal(&self) -> Option<i32> {
        match self.signal.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal as i32),
        }
    }
}

/// The error with which a training ends after `signal`, its state saved. `go_on` is the command that continues it.
pub fn stopped_by(signal: i32, go_on: &str) -> Error {
    let name = match signal {
        SIGINT => "Ctrl-C".to_string(),
        SIGTERM => "SIGTERM".to_string(),
        SIGUSR1 => "SIGUSR1".to_string(),
        other => format!("signal {other}"),
    };
    let mut error =
        Error::program(format!("stopped by {name}, the state is saved")).remedy(format!("Go on with: {go_on}"));
    error.interrupted_by = Some(signal);
    error
}

/// A command line of this program that a user can paste: named as the process was started, words quoted where a shell needs it.
pub fn command_line(arguments: &[&str]) -> String {
    let started_as = std::env::args().next().filter(|name| name.contains('/'));
    let program = started_as.as_deref().unwrap_or("headfirst");
    let words: Vec<String> = [program].iter().chain(arguments).map(|word| quoted(word)).collect();
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "/._-+=:,@%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// The exit code of a process that ends with `error`.
pub fn exit_code(error: &Error) -> i32 {
    error.interrupted_by.map_or(1, exit_code_of)
}

fn exit_code_of(signal: i32) -> i32 {
    128 + signal
}

/// Writes to standard output. That its reader went away is no error: there is nobody left to tell.
///
/// # Errors
/// It cannot be written for another reason: a full disk behind it, say.
pub fn write_standard_output(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut output = io::stdout().lock();
    unless_closed(write(&mut output).and_then(|()| output.flush()))
}

fn unless_closed(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("standard output", "be written", &error))
        }
        _ => Ok(()),
    }
}

/// Writes a line to standard error, where nobody may be listening; unlike `eprintln!` it never panics.
pub fn write_standard_error(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, ExitStatus, Stdio};
    use std::time::Duration;

    const ROLE: &str = "HEADFIRST_TEST_SIGNAL_ROLE";

    /// Runs the named test of this module again as a process of its own; returns once that has printed `ready`.
    fn spawn(test: &str, role: &str) -> (Child, impl Iterator<Item = String>) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", &format!("train::signals::tests::{test}")])
            .env(ROLE, role)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line == "ready"));
        (child, lines)
    }

    fn send(child: &Child, signal: i32) {
        // SAFETY: a plain system call on a process of ours that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    }

    fn end(mut child: Child) -> ExitStatus {
        child.wait().unwrap()
    }

    #[test]
    fn each_signal_asks_to_stop_and_has_its_exit_code() {
        if std::env::var_os(ROLE).is_some() {
            let request = StopRequest::watch().unwrap();
            println!("\nready");
            loop {
                if let Some(signal) = request.signal() {
                    std::process::exit(exit_code(&stopped_by(signal, "headfirst train r.toml --resume")));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for (signal, code) in [(SIGINT, 130), (SIGTERM, 143), (SIGUSR1, 128 + SIGUSR1)] {
            let (child, _lines) = spawn("each_signal_asks_to_stop_and_has_its_exit_code", "poll");
            send(&child, signal);
            assert_eq!(end(child).code(), Some(code));
        }
    }

    #[test]
    fn a_second_ctrl_c_ends_at_once() {
        if std::env::var_os(ROLE).is_some() {
            let request = StopRequest::watch().unwrap();
            println!("\nready");
            while request.signal().is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            println!("saving");
            // A save that takes longer than anybody waits.
            std::thread::sleep(Duration::from_secs(60));
            std::process::exit(3);
        }
        let (child, mut lines) = spawn("a_second_ctrl_c_ends_at_once", "save slowly");
        send(&child, SIGINT);
        assert!(lines.any(|line| line == "saving"));
        send(&child, SIGINT);
        assert_eq!(end(child).code(), Some(130));
    }

    #[test]
    fn the_error_says_how_to_go_on() {
        let error = stopped_by(SIGTERM, "headfirst train r.toml --resume");
        assert_eq!(
            error.to_string(),
            "headfirst: stopped by SIGTERM, the state is saved. Go on with: headfirst train r.toml --resume."
        );
        assert_eq!((exit_code(&error), exit_code(&Error::program("failed"))), (143, 1));
    }

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        assert!(command_line(&["train", "my run/recipe.toml"]).ends_with(" train 'my run/recipe.toml'"));
        assert_eq!([quoted("runs/demo-2"), quoted(""), quoted("it's")], ["runs/demo-2", "''", r"'it'\''s'"]);
    }

    #[test]
    fn a_closed_pipe_is_no_error_but_a_full_disk_is() {
        assert!(unless_closed(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        let error = unless_closed(Err(io::ErrorKind::StorageFull.into())).unwrap_err().to_string();
        assert!(error.contains("standard output: cannot be written"), "{error}");
    }

    #[test]
    fn a_request_can_be_made_without_a_signal() {
        let request = StopRequest::never();
        assert_eq!(request.signal(), None);
        request.clone().request(SIGTERM);
        assert_eq!(request.signal(), Some(SIGTERM));
    }
}
