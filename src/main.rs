//! The command `headfirst`: parses, runs, and ends with an exit code. All else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    headfirst::cli::main()
}
