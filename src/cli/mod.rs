//! The command line: one file a command, and no logic of its own.

mod bench;
mod completions;
mod decoding;
mod demo;
mod doctor;
mod evaluate;
mod generate;
mod import;
mod output;
mod plan;
mod report;
mod train;
mod transcribe;

use crate::device::{self, Device, DeviceKind};
use crate::error::{Error, Result};
use crate::files::report_size_limits;
use crate::train::signals::{exit_code, write_standard_error};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

const LONG_ABOUT: &str = "\
Trains neural networks from the top down: train all layers together, freeze the classifier at the top, reinitialise what lies \
below it, train that again, and go on down while the validation error falls.

New here? `headfirst demo` trains a small speech recogniser on speech that it generates, in about a minute, and writes a report. \
Then look at `headfirst train --help`.";

#[derive(Parser)]
#[command(name = "headfirst", version, about, long_about = LONG_ABOUT, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: Common,
    /// Print a shell's completions, or the man page, and end
    #[arg(long, value_name = "WHAT", value_enum)]
    generate: Option<completions::Completions>,
}

/// What every command takes.
#[derive(Args, Debug, Clone)]
pub(crate) struct Common {
    /// Where to compute: auto, cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    device: String,
    /// Threads of the CPU (default: all of its cores)
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Say nothing but errors
    #[arg(long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Train),
    Evaluate(evaluate::Evaluate),
    Transcribe(transcribe::Transcribe),
    Generate(generate::Generate),
    Import(import::Import),
    Plan(plan::Plan),
    Report(report::Report),
    Bench(bench::Bench),
    Doctor(doctor::Doctor),
    Demo(demo::Demo),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    report_size_limits();
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            write_standard_error(&format!("error: {error}"));
            ExitCode::from(u8::try_from(exit_code(&error)).unwrap_or(1))
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let Cli { command, common, generate } = cli;
    if let Some(what) = generate {
        return completions::run(what, &mut Cli::command());
    }
    let Some(command) = command else {
        Cli::command().error(clap::error::ErrorKind::MissingSubcommand, "a command is needed; see --help").exit()
    };
    common.start_threads()?;
    // Not every command computes, but none takes a device that is not there.
    device::check(&common.device)?;
    match command {
        Command::Train(command) => command.run(&common),
        Command::Evaluate(command) => command.run(&common),
        Command::Transcribe(command) => command.run(&common),
        Command::Generate(command) => command.run(&common),
        Command::Import(command) => command.run(&common),
        Command::Plan(command) => command.run(&common),
        Command::Report(command) => command.run(&common),
        Command::Bench(command) => command.run(&common),
        Command::Doctor(command) => command.run(&common),
        Command::Demo(command) => command.run(&common),
    }
}

impl Common {
    fn start_threads(&self) -> Result<()> {
        let threads = match self.threads {
            Some(threads @ (0 | 1025..)) => {
                return Err(Error::key("--threads", format!("is {threads}")).remedy("Use a number from 1 to 1024"));
            }
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        // This thread is one of them: what it hands to the pool then begins at once, without waking another thread first. It never
        // waits for work that only the pool could do (reading ahead has a thread of its own, which asks the pool for nothing).
        let started = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global();
        started.map_err(|error| Error::program(format!("{threads} threads cannot be started: {error}")))
    }

    fn open_device(&self) -> Result<Device> {
        let (device, reason) = device::open(&self.device)?;
        // Whoever has a GPU and asked for nothing expects it; on a machine without one there is nothing to tell.
        if !self.quiet && self.device == "auto" && device.kind() == DeviceKind::Cpu && device::cuda_available().is_ok()
        {
            write_standard_error(&format!("computing on the CPU: {reason}"));
        }
        Ok(device)
    }
}
