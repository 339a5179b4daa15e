//! A bar on a terminal, plain lines when piped, nothing when quiet.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two plain lines of one folder.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

pub struct Progress {
    name: String,
    total: usize,
    done: usize,
    quiet: bool,
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// For `total` utterances of what the user knows as `name`.
    pub fn new(name: &str, total: usize, quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{prefix} [{bar:40}] {pos} of {len} utterances, {eta} left")
                .expect("the template is a constant");
            ProgressBar::new(total as u64).with_style(style).with_prefix(name.to_string())
        });
        let now = Instant::now();
        Progress { name: name.to_string(), total, done: 0, quiet, bar, started: now, last_line: now }
    }

    /// So many utterances more are done.
    pub fn advance(&mut self, utterances: usize) {
        self.done += utterances;
        match &self.bar {
            Some(bar) => bar.inc(utterances as u64),
            None if self.last_line.elapsed() >= BETWEEN_LINES => {
                self.last_line = Instant::now();
                self.say(&format!("{}: {} of {} utterances", self.name, self.done, self.total));
            }
            None => {}
        }
    }

    /// All is done: leaves one line that says what came out, `what` and the time.
    pub fn finish(self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.say(&format!("{}: {what} in {:.1} s", self.name, self.started.elapsed().as_secs_f64()));
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            // A closed standard error is no reason to stop the work.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}
