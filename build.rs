//! Compiles the kernels for the emulator, when the feature `emulator` is on (`build/emulator.rs`).

#[path = "build/emulator.rs"]
mod emulator;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs, io};

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    if env::var_os("CARGO_FEATURE_EMULATOR").is_none() {
        return Ok(());
    }
    let out_dir = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this program")?;
    let kernels = kernels().map_err(|error| format!("cannot read kernels: {error}"))?;
    emulator::build(&kernels, Path::new(&out_dir))
}

fn kernels() -> io::Result<Vec<PathBuf>> {
    let mut kernels: Vec<PathBuf> =
        fs::read_dir("kernels")?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    kernels.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    kernels.sort();
    Ok(kernels)
}
