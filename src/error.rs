//! The one error type of Headfirst. An error is data: what it is about, what is wrong with it, and what to do.
//!
//! ```text
//! text:17: the utterance "fash-an251-b" occurs a second time. Keep one line for each utterance.
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A file or a folder.
    File(PathBuf),
    /// A line of a text file, counted from 1.
    Line(PathBuf, usize),
    /// An utterance, by its id.
    Utterance(String),
    /// A recipe key (`optimizer.learning_rate`) or a command-line option (`--beam`).
    Key(String),
    /// An operation of the engine, by its name (`linear`).
    Operation(&'static str),
    /// A stage of a run, by its id.
    Stage(String),
    /// A device, by the name a user would give it (`cuda:0`).
    Device(String),
    /// The program as a whole.
    Program,
}

/// What an error of a device leaves to whoever goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The device works, and its memory is not enough.
    OutOfMemory,
    /// Nothing runs on it any more before the program is started again.
    Lost,
}

/// Says what is wrong with its subject and, where there is one, the remedy. Both are whole clauses without a
/// full stop; [`fmt::Display`] joins them.
#[derive(Debug)]
pub struct Error {
    pub subject: Subject,
    pub problem: String,
    pub remedy: Option<String>,
    /// The signal that stopped the work, if one did: the process then ends with that signal's exit code.
    pub interrupted_by: Option<i32>,
    /// Of a device's error: what it leaves, so that a command that knows more than the device can say what to do.
    pub fault: Option<Fault>,
}

impl Error {
    pub fn new(subject: Subject, problem: impl Into<String>) -> Self {
        Error { subject, problem: problem.into(), remedy: None, interrupted_by: None, fault: None }
    }

    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::new(Subject::File(path.as_ref().to_path_buf()), problem)
    }

    /// `line` counts from 1.
    pub fn line(path: impl AsRef<Path>, line: usize, problem: impl Into<String>) -> Self {
        Self::new(Subject::Line(path.as_ref().to_path_buf(), line), problem)
    }

    pub fn utterance(id: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Subject::Utterance(id.into()), problem)
    }

    pub fn key(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Subject::Key(key.into()), problem)
    }

    pub fn operation(name: &'static str, problem: impl Into<String>) -> Self {
        Self::new(Subject::Operation(name), problem)
    }

    pub fn program(problem: impl Into<String>) -> Self {
        Self::new(Subject::Program, problem)
    }

    /// An input or output error on `path`, while doing `action` ("be read", "be written"): the text reads "cannot be read: ...".
    pub fn io(path: impl AsRef<Path>, action: &str, source: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let error = Self::file(path, format!("cannot {action}: {source}"));
        match source.kind() {
            ErrorKind::NotFound => error.remedy("Check the path"),
            ErrorKind::PermissionDenied => error.remedy("Check who may read and write there"),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                error.remedy("Free some space on that disk; what was written before is intact")
            }
            _ => error,
        }
    }

    pub fn fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Says what to do about it.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::File(path) => write!(f, "{}", path.display()),
            Subject::Line(path, line) => write!(f, "{}:{line}", path.display()),
            Subject::Utterance(id) => write!(f, "utterance {id}"),
            Subject::Key(key) => write!(f, "{key}"),
            Subject::Operation(name) => write!(f, "operation {name}"),
            Subject::Stage(id) => write!(f, "stage {id}"),
            Subject::Device(name) => write!(f, "device {name}"),
            Subject::Program => write!(f, "headfirst"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}.", self.subject, self.problem)?;
        match &self.remedy {
            Some(remedy) => write!(f, " {remedy}."),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
