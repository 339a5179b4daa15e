//! `data-tools`: from what a user downloads to what Headfirst reads. One file per corpus; each ends in Kaldi data folders or, for a text, in
//! id files.
//!
//! | file | what it owns |
//! |---|---|
//! | `an4` | CMU's AN4 |
//! | `features` | any Kaldi data folder with a `wav.scp` |
//! | `folder` | writing a data folder: its tables and its features |
//! | `pieces` | byte-pair and unigram pieces of transcripts |
//! | `text` | any text: id files and a token list |
//! | `wikitext` | WikiText-2 and WikiText-103 |

mod an4;
mod features;
mod folder;
mod pieces;
mod text;
mod wikitext;

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use headfirst::error::{Error, Result};

/// Turns what you downloaded into what Headfirst reads: Kaldi data folders with features, or texts as token ids.
///
/// An existing folder is brought up to date: each of its files is replaced as a whole when the new one is complete.
#[derive(Parser)]
#[command(name = "data-tools", version, propagate_version = true, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// What every command takes.
#[derive(Args, Clone)]
pub struct Common {
    /// Threads to work with [default: one for each core]
    #[arg(long, value_name = "N", global = true, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Say nothing but errors
    #[arg(long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    An4(an4::Arguments),
    Features(features::Arguments),
    Pieces(pieces::Arguments),
    Wikitext(wikitext::Arguments),
    Text(text::Arguments),
}

/// The command line, with the defaults of each corpus in its help.
fn command() -> clap::Command {
    Cli::command().mut_subcommand("an4", |command| {
        command
            .mut_arg("num_mel_bins", |argument| argument.default_value("40"))
            .mut_arg("pitch", |argument| argument.default_value("true"))
    })
}

fn run(cli: Cli) -> Result<()> {
    let threads = cli.common.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| {
        Error::key("--threads", format!("the threads cannot be started: {error}")).remedy("Ask for fewer threads")
    })?;
    pool.install(|| match &cli.command {
        Command::An4(arguments) => an4::run(arguments, cli.common.quiet),
        Command::Features(arguments) => features::run(arguments, cli.common.quiet),
        Command::Pieces(arguments) => pieces::run(arguments, cli.common.quiet),
        Command::Wikitext(arguments) => wikitext::run(arguments, cli.common.quiet),
        Command::Text(arguments) => text::run(arguments, cli.common.quiet),
    })
}

fn main() -> ExitCode {
    headfirst::files::report_size_limits();
    // Wrong usage ends here, with exit code 2.
    let cli = Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    fn parse(arguments: &[&str]) -> Cli {
        Cli::from_arg_matches(&command().try_get_matches_from(arguments).unwrap()).unwrap()
    }

    #[test]
    fn an4_has_forty_bins_and_pitch_unless_told_otherwise() {
        let Command::An4(an4) = parse(&["data-tools", "an4", "in", "out"]).command else { panic!("an4") };
        assert_eq!((an4.features.num_mel_bins, an4.features.pitch), (40, true));
        let cli = parse(&["data-tools", "an4", "in", "out", "--num-mel-bins", "80", "--pitch=false", "--threads", "3"]);
        let Command::An4(an4) = cli.command else { panic!("an4") };
        assert_eq!((an4.features.num_mel_bins, an4.features.pitch, cli.common.threads), (80, false, Some(3)));
    }

    #[test]
    fn features_have_kaldis_defaults_unless_told_otherwise() {
        let Command::Features(plain) = parse(&["data-tools", "features", "in", "out"]).command else {
            panic!("features")
        };
        assert_eq!(plain.features, headfirst::audio::FeatureOptions::default());
        let arguments = ["data-tools", "features", "in", "out", "--pitch", "--high-freq", "-400", "--snip-edges=false"];
        let Command::Features(told) = parse(&arguments).command else { panic!("features") };
        assert!(told.features.pitch && !told.features.snip_edges && told.features.high_freq == -400.0);
    }
}
