//! `headfirst demo`.
use crate::cli::Common;
use crate::error::Result;
use clap::Args;

#[derive(Args)]
pub struct Demo {}
impl Demo {
    pub fn run(self, _: &Common) -> Result<()> {
        Ok(())
    }
}
