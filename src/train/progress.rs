//! What a user sees of a training while it runs, on standard error: a bar per epoch on a terminal, plain lines when piped,
//! nothing with `--quiet`. NO_COLOR is honoured. `counted` shows what is counted in utterances alone.

mod counted;

pub use counted::Counted;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::record::EpochRecord;

/// When piped, an epoch that takes long says so this often.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
/// On a terminal the text beside the bar changes this often.
const BAR_INTERVAL: Duration = Duration::from_millis(200);
/// Behind the bar of an epoch.
const EPOCH_NUMBERS: &str = "{pos}/{len} {wide_msg}";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For a terminal.
    Bar,
    /// For a pipe or a file: one line per epoch, and one every 30 seconds within an epoch.
    Lines,
    Quiet,
}

impl Mode {
    /// The mode for standard error as it is; `quiet` is the option `--quiet`.
    pub fn choose(quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
        match (quiet, io::stderr().is_terminal() && !dumb) {
            (true, _) => Mode::Quiet,
            (false, true) => Mode::Bar,
            (false, false) => Mode::Lines,
        }
    }
}

/// What a speed is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Utterances,
    Tokens,
}

/// An epoch that begins or, after a resume, goes on.
#[derive(Debug, Clone, Copy)]
pub struct EpochPlan<'a> {
    /// `joint`, `M(1,4)`.
    pub stage_title: &'a str,
    /// Counts from 1.
    pub epoch: usize,
    pub max_epochs: usize,
    pub batches: usize,
    /// Batches that were trained before a resume.
    pub batches_done: usize,
    /// Frames (or tokens) of all batches, and of those done before a resume: time left follows them, since batches of long
    /// utterances take longer. 0 if they are not known: then it follows the batches.
    pub frames: u64,
    pub frames_done: u64,
    pub unit: Unit,
}

/// Shows how a training goes. It writes where nobody may be listening and ignores that.
pub struct Progress {
    mode: Mode,
    /// Where lines go: standard error, but in tests.
    lines: Box<dyn Write + Send>,
    line_interval: Duration,
    bar: Option<ProgressBar>,
    now: Option<Running>,
    /// Of this stage's epochs so far: their number and the seconds they took, validation included.
    past_epochs: (usize, f64),
}

/// The epoch that is being trained.
struct Running {
    stage_title: String,
    epoch: usize,
    max_epochs: usize,
    unit: Unit,
    batches: usize,
    batches_done: usize,
    frames: u64,
    frames_done: u64,
    started: Instant,
    last_shown: Instant,
    /// Since `started`.
    utterances_seen: u64,
    frames_seen: u64,
    batches_seen: usize,
}

impl Progress {
    pub fn new(mode: Mode) -> Self {
        Self::with_lines(mode, Box::new(io::stderr()), LINE_INTERVAL)
    }

    fn with_lines(mode: Mode, lines: Box<dyn Write + Send>, line_interval: Duration) -> Self {
        Progress { mode, lines, line_interval, bar: None, now: None, past_epochs: (0, 0.0) }
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// An epoch begins.
    pub fn epoch(&mut self, plan: &EpochPlan) {
        if self.now.as_ref().is_none_or(|before| before.stage_title != plan.stage_title) {
            self.past_epochs = (0, 0.0);
        }
        let started = Instant::now();
        self.now = Some(Running {
            stage_title: plan.stage_title.to_string(),
            epoch: plan.epoch,
            max_epochs: plan.max_epochs,
            unit: plan.unit,
            batches: plan.batches,
            batches_done: plan.batches_done,
            frames: plan.frames,
            frames_done: plan.frames_done,
            started,
            last_shown: started,
            utterances_seen: 0,
            frames_seen: 0,
            batches_seen: 0,
        });
        if self.mode == Mode::Bar {
            self.clear_bar();
            let bar = bar(plan.batches, EPOCH_NUMBERS);
            bar.set_prefix(format!("{} epoch {}/{}", plan.stage_title, plan.epoch, plan.max_epochs));
            bar.set_position(plan.batches_done as u64);
            self.bar = Some(bar);
        }
    }

    /// A batch was trained. `loss` is the epoch's mean so far; text has no utterances and counts tokens as frames.
    pub fn tick(&mut self, loss: f64, utterances: usize, frames: usize) {
        let Some(now) = &mut self.now else { return };
        now.batches_seen += 1;
        now.utterances_seen += utterances as u64;
        now.frames_seen += frames as u64;
        let interval = if self.mode == Mode::Bar { BAR_INTERVAL } else { self.line_interval };
        let due = now.last_shown.elapsed() >= interval;
        if due {
            now.last_shown = Instant::now();
        }
        let status = due.then(|| now.status(loss, now.started.elapsed().as_secs_f64(), self.past_epochs));
        if let Some(bar) = &self.bar {
            bar.set_position((now.batches_done + now.batches_seen) as u64);
            if let Some(status) = status {
                bar.set_message(status);
            }
        } else if let (Mode::Lines, Some(status)) = (self.mode, status) {
            let line =
                format!("{} epoch {}/{}: {:.0} %, {status}", now.stage_title, now.epoch, now.max_epochs, now.percent());
            self.line(&line);
        }
    }

    /// The epoch was validated: one line stays.
    pub fn finish_epoch(&mut self, record: &EpochRecord) {
        self.clear_bar();
        self.past_epochs.0 += 1;
        self.past_epochs.1 += record.train_seconds + record.valid_seconds;
        let (title, max_epochs) = match &self.now {
            Some(now) => (now.stage_title.clone(), now.max_epochs),
            None => (record.stage.clone(), record.epoch),
        };
        self.message(&format!("{title} epoch {}/{max_epochs}: {}", record.epoch, summary(record)));
    }

    /// Says something that is not about an epoch.
    pub fn message(&mut self, text: &str) {
        match (&self.bar, self.mode) {
            (_, Mode::Quiet) => {}
            // Above the bar, which stays.
            (Some(bar), _) => bar.suspend(|| drop(writeln!(self.lines, "{text}"))),
            (None, _) => self.line(text),
        }
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.lines, "{text}");
        let _ = self.lines.flush();
    }

    fn clear_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    /// An error message must not be written into a bar.
    fn drop(&mut self) {
        self.clear_bar();
    }
}

impl Running {
    /// The part of the epoch that is done, and the part of it that was done since `started`.
    fn parts(&self) -> (f64, f64) {
        let part = |of: f64| if of.is_finite() { of.clamp(0.0, 1.0) } else { 0.0 };
        if self.frames > 0 {
            let (all, seen) = (self.frames as f64, self.frames_seen as f64);
            return (part((self.frames_done as f64 + seen) / all), part(seen / all));
        }
        let (all, seen) = (self.batches as f64, self.batches_seen as f64);
        (part((self.batches_done as f64 + seen) / all), part(seen / all))
    }

    fn percent(&self) -> f64 {
        100.0 * self.parts().0
    }

    /// Loss, time left in this epoch and (at most) in this stage, speed.
    fn status(&self, loss: f64, elapsed: f64, past_epochs: (usize, f64)) -> String {
        let speed = |count: u64| count as f64 / elapsed.max(1e-9);
        let speed = match self.unit {
            Unit::Utterances => {
                format!("{:.1} utterances/s, {:.0} frames/s", speed(self.utterances_seen), speed(self.frames_seen))
            }
            Unit::Tokens => format!("{:.0} tokens/s", speed(self.frames_seen)),
        };
        let (done, seen) = self.parts();
        if seen == 0.0 {
            return format!("loss {loss:.3}, {speed}");
        }
        // The pace of this epoch; of whole epochs that of those before it, which has validation in it.
        let epoch_seconds = elapsed / seen;
        let whole_epoch = if past_epochs.0 > 0 { past_epochs.1 / past_epochs.0 as f64 } else { epoch_seconds };
        let epoch_left = epoch_seconds * (1.0 - done);
        let stage_left = epoch_left + whole_epoch * self.max_epochs.saturating_sub(self.epoch) as f64;
        let (epoch_left, stage_left) = (clock(epoch_left), clock(stage_left));
        // What matters most comes first: a narrow terminal cuts the end off.
        format!("loss {loss:.3}, {epoch_left} left (stage {stage_left}), {speed}")
    }
}

/// A bar over `length` things on standard error, behind its prefix; `numbers` is the template of what stands behind it.
fn bar(length: usize, numbers: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(&template(numbers, std::env::var_os("NO_COLOR").is_some()));
    // The templates are constants, which a test parses.
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "))
}

fn template(numbers: &str, no_color: bool) -> String {
    let color = if no_color { "" } else { ".cyan/blue" };
    format!("{{prefix}} [{{bar:10{color}}}] {numbers}")
}

/// An epoch's result in one line.
fn summary(record: &EpochRecord) -> String {
    let mut text = format!("loss {:.4}, validation {:.4}", record.train_loss, record.valid_loss);
    let scores =
        [("CER", record.valid_cer, " %"), ("WER", record.valid_wer, " %"), ("perplexity", record.valid_perplexity, "")];
    for (name, score, unit) in scores {
        text += &score.map_or(String::new(), |score| format!(", {name} {score:.2}{unit}"));
    }
    if record.skipped_updates > 0 {
        text += &format!(", {} updates skipped", record.skipped_updates);
    }
    text += &format!(", {}", clock(record.train_seconds + record.valid_seconds));
    if record.best { text + ", best so far" } else { text }
}

/// `0:07`, `12:30`, `3:05:00`.
fn clock(seconds: f64) -> String {
    // A cast of what is too large or not a number saturates.
    let seconds = seconds.round().max(0.0) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, minutes, seconds) => format!("{minutes}:{seconds:02}"),
        (hours, minutes, seconds) => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const PLAN: EpochPlan = EpochPlan {
        stage_title: "M(1,4)",
        epoch: 2,
        max_epochs: 20,
        batches: 4,
        batches_done: 0,
        frames: 4000,
        frames_done: 0,
        unit: Unit::Utterances,
    };

    #[derive(Clone, Default)]
    pub struct Collected(Arc<Mutex<Vec<u8>>>);

    impl Collected {
        pub fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Collected {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    fn record() -> EpochRecord {
        EpochRecord {
            stage: "1-4".into(),
            epoch: 2,
            train_loss: 12.5,
            valid_loss: 14.25,
            valid_cer: Some(17.2),
            valid_wer: Some(40.0),
            valid_perplexity: None,
            best: true,
            kept_sha256: None,
            step: 8,
            learning_rate: 1.0,
            gradient_norm: 3.0,
            skipped_updates: 1,
            infeasible_utterances: 0,
            train_seconds: 60.0,
            valid_seconds: 7.0,
        }
    }

    fn trained(mode: Mode, line_interval: Duration) -> String {
        let collected = Collected::default();
        let mut progress = Progress::with_lines(mode, Box::new(collected.clone()), line_interval);
        progress.message("training on the CPU");
        progress.epoch(&PLAN);
        (0..4).for_each(|_| progress.tick(12.5, 30, 1000));
        progress.finish_epoch(&record());
        collected.text()
    }

    #[test]
    fn piped_there_is_one_line_per_epoch() {
        assert_eq!(
            trained(Mode::Lines, LINE_INTERVAL),
            "training on the CPU\nM(1,4) epoch 2/20: loss 12.5000, validation 14.2500, CER 17.20 %, WER 40.00 %, 1 updates skipped, 1:07, best so far\n"
        );
    }

    #[test]
    fn a_long_epoch_says_how_far_it_is() {
        let text = trained(Mode::Lines, Duration::ZERO);
        assert_eq!(text.lines().count(), 6);
        assert!(text.lines().nth(1).unwrap().starts_with("M(1,4) epoch 2/20: 25 %, loss 12.500, "), "{text}");
    }

    #[test]
    fn quiet_is_silent() {
        assert_eq!(trained(Mode::Quiet, Duration::ZERO), "");
    }

    #[test]
    fn nobody_listening_is_no_panic() {
        let mut progress = Progress::with_lines(Mode::Lines, Box::new(Closed), Duration::ZERO);
        progress.epoch(&PLAN);
        progress.tick(1.0, 1, 1);
        progress.finish_epoch(&record());
        progress.message("done");
    }

    #[test]
    fn time_left_follows_the_frames_that_are_left() {
        let mut progress = Progress::new(Mode::Quiet);
        progress.epoch(&EpochPlan { batches_done: 1, frames_done: 1000, ..PLAN });
        let now = progress.now.as_mut().unwrap();
        (now.batches_seen, now.utterances_seen, now.frames_seen) = (2, 60, 1000);
        assert_eq!(now.percent(), 50.0);
        // A quarter in 15 s: half an epoch is left, then 18 epochs of a minute, or of 67 s if one took that.
        let status = now.status(12.5, 15.0, (0, 0.0));
        assert_eq!(status, "loss 12.500, 0:30 left (stage 18:30), 4.0 utterances/s, 67 frames/s");
        assert!(now.status(12.5, 15.0, (2, 134.0)).contains("(stage 20:36)"));
        // Without frames it follows the batches.
        now.frames = 0;
        assert_eq!(now.percent(), 75.0);
        now.unit = Unit::Tokens;
        assert!(now.status(f64::NAN, 15.0, (0, 0.0)).starts_with("loss NaN, 0:08 left (stage 9:08), 67 tokens/s"));
    }

    #[test]
    fn an_epoch_without_batches_is_no_panic() {
        let mut progress = Progress::new(Mode::Quiet);
        progress.epoch(&EpochPlan { batches: 0, frames: 0, ..PLAN });
        progress.tick(f64::INFINITY, 0, 0);
        assert_eq!(
            progress.now.as_ref().unwrap().status(0.0, 0.0, (0, 0.0)),
            "loss 0.000, 0.0 utterances/s, 0 frames/s"
        );
    }

    #[test]
    fn the_bars_templates_are_valid_and_one_is_without_color() {
        for numbers in [EPOCH_NUMBERS, counted::NUMBERS] {
            for no_color in [true, false] {
                ProgressStyle::with_template(&template(numbers, no_color)).unwrap();
            }
            assert_eq!(template(numbers, false).replace(".cyan/blue", ""), template(numbers, true));
        }
    }

    #[test]
    fn clocks_have_hours_only_when_needed() {
        assert_eq!([clock(6.6), clock(750.0), clock(11100.0), clock(f64::NAN)], ["0:07", "12:30", "3:05:00", "0:00"]);
    }
}
