//! `headfirst train`.

use crate::cli::Common;
use crate::cli::output::print;
use crate::error::Result;
use crate::recipe::{self, Recipe};
use crate::train::progress::{Mode, Progress};
use crate::train::run;
use crate::train::run_folder::RunFolder;
use crate::train::signals::StopRequest;
use crate::train::summary::stage_table;
use clap::Args;
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// Train what a recipe describes: joint training, then its cascade
///
/// A run has a folder of its own. Ctrl-C, SIGTERM and SIGUSR1 save the state first; --resume goes on with the very next batch and ends
/// with the same weights, to the bit.
#[derive(Args)]
#[command(after_long_help = recipe::help())]
pub struct Train {
    /// The recipe, a TOML file; its keys are listed below by --help
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,
    /// The run's folder (default: ./runs/NAME)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Change a key of the recipe, for example --set optimizer.clip=1
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Go on with a run that was stopped
    #[arg(long)]
    resume: bool,
}

impl Train {
    pub fn run(self, common: &Common) -> Result<()> {
        let recipe = Recipe::load(&self.recipe, &self.set)?;
        let device = common.open_device()?;
        let path = self.out.unwrap_or_else(|| Path::new("runs").join(&recipe.name));
        let progress = RefCell::new(Progress::new(Mode::choose(common.quiet)));
        let folder = if self.resume {
            let folder = RunFolder::resume(&path)?;
            if let Some(note) = folder.adopt_recipe(&recipe.filled()?)? {
                progress.borrow_mut().message(&note);
            }
            folder
        } else {
            RunFolder::create(&path)?
        };
        let result = run::train(&recipe, &folder, &device, &progress, StopRequest::watch)?;
        if common.quiet {
            return Ok(());
        }
        print(&format!("\n{}\nReport: {}\n", stage_table(&result), folder.report().display()))
    }
}
