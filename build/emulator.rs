//! The kernels for the emulator (`kernels/emulator/`): compiled as plain C++ and linked in, when the feature `emulator` is on.
//!
//! CXX names the compiler, g++ by default; without one the build warns and sets the cfg `emulator_missing`. CXXFLAGS are added to its
//! options. The objects and the command that made them stay in `OUT_DIR/emulator`, where `tests/mutations.rs` and `kernels/emulator/test.sh` (the pass
//! under AddressSanitizer) find them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use std::{env, fs, io, thread};

/// The folder that headers are included from; the emulator is in its `emulator/`.
const KERNELS: &str = "kernels";

/// -ffp-contract=off: a product and a sum are rounded apart unless a kernel writes fmaf, so that the bits depend on no optimiser.
/// -fno-strict-aliasing: kernels load halves of floats and fours of bfloat16 through pointers of other types, as CUDA code does.
const FLAGS: [&str; 10] = [
    "-std=c++20",
    "-O2",
    "-g",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-DHEADFIRST_EMULATOR",
    "-Ikernels",
];

/// Compiles `kernels` and the emulator into `out_dir/libheadfirst_emulator.a`, what has changed only, and tells cargo to link it.
///
/// # Errors
/// What the compiler says. That there is no compiler is a warning.
pub fn build(kernels: &[PathBuf], out_dir: &Path) -> Result<(), String> {
    println!("cargo::rustc-check-cfg=cfg(emulator_missing)");
    println!("cargo::rerun-if-changed={KERNELS}");
    for name in ["CXX", "CXXFLAGS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let compiler = variable("CXX").unwrap_or_else(|| "g++".into());
    if let Err(error) = Command::new(&compiler).arg("--version").output() {
        println!(
            "cargo::warning=no emulator, its tests will be skipped: {compiler} does not run ({error}); install g++ or set CXX"
        );
        println!("cargo::rustc-cfg=emulator_missing");
        return Ok(());
    }
    let mut flags: Vec<String> = FLAGS.map(String::from).to_vec();
    flags.extend(variable("CXXFLAGS").unwrap_or_default().split_whitespace().map(String::from));
    if has_fma() {
        // Else fmaf is a call. The bits are the same.
        flags.push("-mfma".into());
    }

    let folder = out_dir.join("emulator");
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    let emulator = Path::new(KERNELS).join("emulator");
    let own = ["fiber.cpp", "block.cpp", "emulator.cpp", "selftest.cu"].map(|name| emulator.join(name));
    let sources: Vec<&Path> = kernels.iter().chain(&own).map(PathBuf::as_path).collect();
    let objects: Vec<PathBuf> = sources.iter().map(|source| object(&folder, source)).collect();
    let headers =
        newest_header(&[Path::new(KERNELS), &emulator]).map_err(|error| format!("cannot read {KERNELS}: {error}"))?;

    // Flags of another build make all objects stale.
    let command = format!("{compiler} {}", flags.join(" "));
    let stamp = folder.join("command");
    let same_command = fs::read_to_string(&stamp).is_ok_and(|before| before == command);
    let stale: Vec<usize> = (0..sources.len())
        .filter(|&i| !same_command || modified(&objects[i]) <= headers.max(modified(sources[i])))
        .collect();
    if !same_command {
        let _ = fs::remove_file(&stamp);
    }
    in_parallel(&stale, |&i| compile(&compiler, &flags, sources[i], &objects[i]))?;
    fs::write(&stamp, command).map_err(|error| format!("cannot write {}: {error}", stamp.display()))?;

    // One object of all: a kernel is known by a constructor, which a linker would leave behind in an archive's member that nobody names.
    let whole = folder.join("emulator.o");
    let library = out_dir.join("libheadfirst_emulator.a");
    run(Command::new(&compiler).args(["-r", "-nostdlib", "-o"]).arg(&whole).args(&objects))?;
    let _ = fs::remove_file(&library);
    run(Command::new("ar").arg("crs").arg(&library).arg(&whole))?;
    println!("cargo::rustc-link-search=native={}", out_dir.display());
    println!("cargo::rustc-link-lib=static=headfirst_emulator");
    println!("cargo::rustc-link-lib=stdc++");
    Ok(())
}

/// Whether the tests will run on a processor with fused products, which this one is unless a cross compiler is at work.
fn has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    let fma = std::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let fma = false;
    fma && env::var("HOST").ok() == env::var("TARGET").ok()
}

/// Where the object of `source` goes. Its folder is part of the name: a kernel file may be called as one of the emulator is.
fn object(folder: &Path, source: &Path) -> PathBuf {
    folder.join(source.to_string_lossy().replace('/', "-") + ".o")
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn newest_header(folders: &[&Path]) -> io::Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for folder in folders {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "h" || extension == "cuh") {
                newest = newest.max(modified(&path));
            }
        }
    }
    Ok(newest)
}

fn compile(compiler: &str, flags: &[String], source: &Path, object: &Path) -> Result<(), String> {
    // Renamed when it is whole: a build that is interrupted leaves no half object behind.
    let unfinished = object.with_extension("new");
    let mut command = Command::new(compiler);
    command.args(flags).args(["-x", "c++", "-c", "-o"]).arg(&unfinished).arg(source);
    for line in run(&mut command)?.lines() {
        println!("cargo::warning={line}");
    }
    fs::rename(&unfinished, object).map_err(|error| format!("cannot write {}: {error}", object.display()))
}

/// Runs to the end; gives what the program wrote to standard error.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?} does not run: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(messages) } else { Err(format!("{command:?} failed\n{messages}")) }
}

/// Does `work` on each item, with as many threads as cargo grants; gives the errors, one after the other.
fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<(), String> + Sync) -> Result<(), String> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1_usize);
    let next = AtomicUsize::new(0);
    let errors = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let (Err(error), Ok(mut errors)) = (work(item), errors.lock()) {
                        errors.push(error);
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().unwrap_or_default();
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\n")) }
}
