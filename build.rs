//! Compiles the CUDA kernels into the binary (`build/nvcc.rs`).

#[path = "build/nvcc.rs"]
mod nvcc;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
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
    for path in ["build.rs", "build", "kernels"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let out_dir = environment("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this program")?;
    let built = nvcc::build(Path::new("kernels"), Path::new(&out_dir), &environment)?;
    for name in nvcc::VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    match &built.nvcc {
        Some(nvcc) => println!("cargo::rerun-if-changed={}", nvcc.display()),
        None => println!("cargo::rerun-if-env-changed=PATH"),
    }
    for warning in &built.warnings {
        println!("cargo::warning={warning}");
    }
    Ok(())
}
