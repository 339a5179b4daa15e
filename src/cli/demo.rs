//! `headfirst demo`.

use crate::cli::Common;
use crate::cli::output::print;
use crate::error::Result;
use crate::train::demo;
use crate::train::progress::{Mode, Progress};
use crate::train::run;
use crate::train::run_folder::RunFolder;
use crate::train::signals::{StopRequest, command_line};
use crate::train::summary::stage_table;
use clap::Args;
use std::cell::RefCell;
use std::path::PathBuf;

/// Generate a small spoken corpus and train a whole cascade on it, in about a minute
///
/// First all layers are trained together, then stage by stage with more of the top frozen and the rest reinitialised. It ends with a
/// table of the stages and a report. Needs no data; Ctrl-C saves the state first and says how to go on.
#[derive(Args)]
pub struct Demo {
    /// The run's folder; where it is taken, the next free of DIR-2, DIR-3, ...
    #[arg(long, value_name = "DIR", default_value = "runs/demo")]
    out: PathBuf,
}

impl Demo {
    pub fn run(self, common: &Common) -> Result<()> {
        let device = common.open_device()?;
        let folder = RunFolder::create_next_free(&self.out)?;
        let mut progress = Progress::new(Mode::choose(common.quiet));
        let prepared = demo::prepare(folder.path())?;
        progress.message(&format!(
            "{} utterances of 12 generated voices, {:.0} s, in {}",
            prepared.utterances,
            prepared.seconds,
            folder.path().join("data").display()
        ));
        let result = run::train(&prepared.recipe, &folder, &device, &RefCell::new(progress), StopRequest::watch)?;
        if common.quiet {
            return Ok(());
        }
        let run = folder.path().display().to_string();
        let (wav, said) = &prepared.example;
        let best = result.stages.iter().find(|stage| result.best.as_ref() == Some(&stage.stage));
        let mut text = format!("\n{}\n", stage_table(&result));
        if let Some(best) = best {
            let percent = |cer: Option<f64>| cer.map_or("none".into(), |cer| format!("{cer:.2} %"));
            text += &format!(
                "Best: {}, CER {} on the validation set, {} on the test set\n",
                best.title,
                percent(best.valid.cer),
                percent(best.test.as_ref().and_then(|test| test.cer))
            );
        }
        text += &format!("Report: {}\n\nTry next:\n", folder.report().display());
        text += &format!("  {}\n", command_line(&["transcribe", &run, &wav.display().to_string()]));
        text += &format!("      ({said:?} was said there)\n");
        text += &format!("  {}\n", command_line(&["evaluate", &run, "--beam", "10"]));
        print(&text)
    }
}
