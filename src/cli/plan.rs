//! `headfirst plan`.
use crate::cli::Common;
use crate::error::Result;
use clap::Args;

#[derive(Args)]
pub struct Plan {}
impl Plan {
    pub fn run(self, _: &Common) -> Result<()> {
        Ok(())
    }
}
