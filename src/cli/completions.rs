//! `headfirst --generate`: completions for a shell, or the man page.

use crate::cli::output::print;
use crate::error::{Error, Result};
use clap::{Command, ValueEnum};
use clap_complete::Shell;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Completions {
    Bash,
    Zsh,
    Fish,
    Elvish,
    Powershell,
    Man,
}

pub fn run(what: Completions, command: &mut Command) -> Result<()> {
    let mut text = Vec::new();
    let shell = match what {
        Completions::Bash => Shell::Bash,
        Completions::Zsh => Shell::Zsh,
        Completions::Fish => Shell::Fish,
        Completions::Elvish => Shell::Elvish,
        Completions::Powershell => Shell::PowerShell,
        Completions::Man => return man_page(command),
    };
    clap_complete::generate(shell, command, "headfirst", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// The page of the program, followed by those of its commands.
fn man_page(command: &mut Command) -> Result<()> {
    command.build();
    let mut text = Vec::new();
    let failed = |error: std::io::Error| Error::program(format!("the man page cannot be made: {error}"));
    clap_mangen::Man::new(command.clone()).render(&mut text).map_err(failed)?;
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("headfirst {}", command.get_name());
        let page = clap_mangen::Man::new(command.clone().display_name(name.clone()).bin_name(name));
        for section in [clap_mangen::Man::render_name_section, clap_mangen::Man::render_synopsis_section] {
            section(&page, &mut text).map_err(failed)?;
        }
        page.render_description_section(&mut text).map_err(failed)?;
        page.render_options_section(&mut text).map_err(failed)?;
    }
    print(&String::from_utf8_lossy(&text))
}
