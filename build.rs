//! Compiles the CUDA kernels into the binary (`build/nvcc.rs`) and, with the feature `emulator`, for tests on the CPU (`build/emulator.rs`).

#[cfg(feature = "emulator")]
#[path = "build/emulator.rs"]
mod emulator;
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
    for name in nvcc::VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let out_dir = environment("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this program")?;
    let (folder, out_dir) = (Path::new("kernels"), Path::new(&out_dir));
    let built = nvcc::build(folder, out_dir, &environment)?;
    match &built.nvcc {
        Some(nvcc) => println!("cargo::rerun-if-changed={}", nvcc.display()),
        None => println!("cargo::rerun-if-env-changed=PATH"),
    }
    // Kept by cargo in the script's output, for who wonders what took so long.
    println!("compiled now: {}", built.compiled.join(", "));
    for warning in &built.warnings {
        println!("cargo::warning={warning}");
    }
    #[cfg(feature = "emulator")]
    {
        let kernels = nvcc::kernel_files(folder)?;
        let kernels: Vec<_> = kernels.iter().map(|kernel| folder.join(format!("{kernel}.cu"))).collect();
        emulator::build(&kernels, out_dir)?;
    }
    Ok(())
}
