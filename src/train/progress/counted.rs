//! Work that is counted in utterances: features that are computed, a data set that is scored.

use super::{Mode, bar};
use indicatif::ProgressBar;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When piped, work that takes long says so this often.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Behind the bar.
pub(super) const NUMBERS: &str = "{pos} of {len} utterances, {eta} left";

/// Shows how far a piece of work is; any thread may say that it has done some. A bar on a terminal, lines when piped.
pub struct Counted {
    /// What the user knows it as: a data folder.
    name: String,
    utterances: usize,
    mode: Mode,
    started: Instant,
    line_interval: Duration,
    now: Mutex<Now>,
}

struct Now {
    done: usize,
    last_line: Instant,
    bar: Option<ProgressBar>,
    /// Where lines go: standard error, but in tests.
    lines: Box<dyn Write + Send>,
}

impl Counted {
    pub fn new(mode: Mode, name: &str, utterances: usize) -> Self {
        Self::with_lines(mode, name, utterances, Box::new(io::stderr()), LINE_INTERVAL)
    }

    fn with_lines(
        mode: Mode,
        name: &str,
        utterances: usize,
        lines: Box<dyn Write + Send>,
        line_interval: Duration,
    ) -> Self {
        let started = Instant::now();
        let bar = (mode == Mode::Bar).then(|| bar(utterances, NUMBERS).with_prefix(name.to_string()));
        let now = Mutex::new(Now { done: 0, last_line: started, bar, lines });
        Counted { name: name.to_string(), utterances, mode, started, line_interval, now }
    }

    /// So many utterances more are done.
    pub fn advance(&self, utterances: usize) {
        let mut now = self.now();
        now.done += utterances;
        match &now.bar {
            Some(bar) => bar.set_position(now.done as u64),
            None if now.last_line.elapsed() >= self.line_interval => {
                now.last_line = Instant::now();
                let line = format!("{}: {} of {} utterances", self.name, now.done, self.utterances);
                self.say(&mut now, &line);
            }
            None => {}
        }
    }

    /// All is done: one line stays that says `what`, and how long it took. Without it nothing stays.
    pub fn finish(self, what: &str) {
        let mut now = self.now();
        clear(&mut now);
        self.say(&mut now, &format!("{}: {what} in {:.1} s", self.name, self.started.elapsed().as_secs_f64()));
    }

    fn say(&self, now: &mut Now, line: &str) {
        if self.mode != Mode::Quiet {
            // Nobody may be listening, which is no reason to stop the work.
            let _ = writeln!(now.lines, "{line}");
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // A thread that panicked leaves numbers that are good enough to be shown.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    /// An error message must not be written into a bar.
    fn drop(&mut self) {
        clear(&mut self.now());
    }
}

fn clear(now: &mut Now) {
    if let Some(bar) = now.bar.take() {
        bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Closed, Collected};
    use super::*;

    fn counted(mode: Mode, line_interval: Duration) -> String {
        let collected = Collected::default();
        let counted = Counted::with_lines(mode, "data/train", 120, Box::new(collected.clone()), line_interval);
        std::thread::scope(|scope| {
            let work = || (0..30).for_each(|_| counted.advance(1));
            (0..4).for_each(|_| drop(scope.spawn(work)));
        });
        counted.finish("features of 120 utterances");
        collected.text()
    }

    #[test]
    fn piped_there_is_one_line_and_more_where_it_takes_long() {
        let text = counted(Mode::Lines, LINE_INTERVAL);
        assert!(
            text.starts_with("data/train: features of 120 utterances in 0.") && text.lines().count() == 1,
            "{text}"
        );
        let text = counted(Mode::Lines, Duration::ZERO);
        assert_eq!(text.lines().count(), 121);
        assert_eq!(text.lines().nth(119), Some("data/train: 120 of 120 utterances"));
    }

    #[test]
    fn quiet_is_silent_and_nobody_listening_is_no_panic() {
        assert_eq!(counted(Mode::Quiet, Duration::ZERO), "");
        let counted = Counted::with_lines(Mode::Lines, "a", 1, Box::new(Closed), Duration::ZERO);
        counted.advance(1);
        counted.finish("done");
    }
}
