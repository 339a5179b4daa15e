//! `headfirst report`.

use crate::cli::Common;
use crate::cli::output::print;
use crate::error::{Error, Result};
use crate::files::write_bytes;
use crate::report;
use crate::train::run;
use crate::train::run_folder::RunFolder;
use clap::Args;
use std::path::PathBuf;

/// Draw one or several runs as one self-contained HTML file
///
/// It has the cascade as a picture, the curves of every stage, and its error, time and memory.
#[derive(Args)]
pub struct Report {
    /// The runs' folders
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where to write it (default: report.html in the first run's folder)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Report {
    pub fn run(self, common: &Common) -> Result<()> {
        let mut runs = Vec::new();
        for path in &self.runs {
            let folder = RunFolder::open(path)?;
            let data = run::run_data(&folder)?;
            runs.push(data.ok_or_else(|| {
                Error::file(path, "has no result yet").remedy(format!("Train it first: {}", folder.go_on(&[])))
            })?);
        }
        let out = match self.out {
            Some(out) => out,
            None => RunFolder::open(&self.runs[0])?.report(),
        };
        write_bytes(&out, report::render(&runs))?;
        if common.quiet { Ok(()) } else { print(&format!("{}\n", out.display())) }
    }
}
