//! The CUDA kernels, compiled: finds nvcc, asks what it knows, makes one fatbin of every `kernels/*.cu`, and writes the table of them that
//! `src/backend/cuda/embedded.rs` includes.
//!
//! Cargo reruns a build script as a whole, so what changed is found here: beside every fatbin lies the text it was made from (the file, the
//! headers it includes, the compiler and its options), and only where that differs nvcc runs again.
//!
//! `build.rs` calls `build`, and so does `tests/cuda_build.rs`, with an nvcc that is a shell script.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

/// The architectures that get machine code. A GPU of the same major and a higher minor version runs it too (8.7 runs 8.6's, 10.3 runs 10.0's,
/// 12.1 runs 12.0's); 90a has Hopper's warpgroup products, which no other generation has.
const ARCHITECTURES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];

/// The oldest release whose code the kernels are: it is the first that knows 90a.
const OLDEST: (u32, u32) = (12, 0);

/// From here on a fatbin is compressed well, to a quarter of what nvcc does by default. Drivers that run the code of older releases may not
/// know how to read it.
const COMPRESSES: (u32, u32) = (13, 0);

/// The variables that `build` reads: cargo reruns the build script when one changes.
pub const VARIABLES: [&str; 8] = [
    "HEADFIRST_NVCC",
    "HEADFIRST_CUDA_ARCHS",
    "HEADFIRST_CUDA_CACHE",
    "HEADFIRST_REQUIRE_CUDA",
    "CUDA_HOME",
    NVCC_VARIABLES[0],
    NVCC_VARIABLES[1],
    NVCC_VARIABLES[2],
];

/// The variables that nvcc itself reads.
const NVCC_VARIABLES: [&str; 3] = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"];

/// The environment: a variable's value, if it is set and not empty.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// What was built, for the build script to tell cargo and for the tests to look at.
#[derive(Debug, Default)]
pub struct Built {
    /// The nvcc that was used; without one the table is empty.
    pub nvcc: Option<PathBuf>,
    /// The kernel files that were compiled now; the others were up to date.
    pub compiled: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Compiles the kernels in `folder` into `out_dir` and writes `out_dir/embedded.rs`.
///
/// Without nvcc the table is empty and a warning says how to get one; that is an error if HEADFIRST_REQUIRE_CUDA is 1. A kernel that does not
/// compile is always one.
pub fn build(folder: &Path, out_dir: &Path, environment: &Environment) -> Result<Built, String> {
    let require = environment("HEADFIRST_REQUIRE_CUDA").is_some_and(|value| value != "0");
    let wanted = environment("HEADFIRST_CUDA_ARCHS");
    if wanted.as_deref() == Some("none") {
        return match require {
            true => Err("HEADFIRST_CUDA_ARCHS=none contradicts HEADFIRST_REQUIRE_CUDA=1".into()),
            false => write_table(out_dir, None, &[], &[]).map(|()| Built::default()),
        };
    }
    let nvcc = match Nvcc::find(environment) {
        Ok(nvcc) => nvcc,
        Err(reason) if require => return Err(format!("HEADFIRST_REQUIRE_CUDA=1, but {reason}")),
        Err(reason) => {
            write_table(out_dir, None, &[], &[])?;
            return Ok(Built {
                warnings: vec![format!("this binary computes on the CPU only: {reason}")],
                ..Built::default()
            });
        }
    };
    let targets = Targets::choose(&nvcc, wanted.as_deref())?;
    let kernels = kernel_files(folder)?;
    let mut stale = Vec::new();
    let mut compiler = format!("{} {}", nvcc.name, targets.options.join(" "));
    for name in NVCC_VARIABLES {
        compiler.extend(environment(name).map(|value| format!(" {name}={value}")));
    }
    for kernel in &kernels {
        let recipe = recipe(folder, kernel, &compiler)?;
        let current = fs::read_to_string(out_dir.join(format!("{kernel}.recipe"))).is_ok_and(|old| old == recipe);
        if !(current && out_dir.join(format!("{kernel}.fatbin")).is_file()) {
            stale.push((kernel.as_str(), recipe));
        }
    }
    // The longest first, so that none is left alone at the end.
    stale.sort_by_key(|(_, recipe)| std::cmp::Reverse(recipe.len()));
    let jobs = environment("NUM_JOBS").and_then(|jobs| jobs.parse().ok()).unwrap_or(1).max(1);
    compile_all(folder, out_dir, &nvcc, &targets.options, &stale, jobs)?;
    write_table(out_dir, Some(&nvcc), &targets.names, &kernels)?;
    let compiled = stale.iter().map(|(kernel, _)| kernel.to_string()).collect();
    Ok(Built { nvcc: Some(nvcc.path), compiled, warnings: targets.warnings })
}

/// The names of the kernel files in `folder`, without `.cu`, sorted. Its subfolders hold none of the engine's.
pub fn kernel_files(folder: &Path) -> Result<Vec<String>, String> {
    let failed = |error: io::Error| format!("cannot read the folder {}: {error}", folder.display());
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            let name = path.file_stem().and_then(|name| name.to_str());
            names.insert(name.ok_or_else(|| format!("{} is not a name in UTF-8", path.display()))?.to_string());
        }
    }
    Ok(names.into_iter().collect())
}

/// An nvcc that runs, and what it said of itself.
struct Nvcc {
    path: PathBuf,
    /// As `doctor` will name it: "nvcc 13.0.88".
    name: String,
    release: (u32, u32),
    /// The architectures it knows, as numbers without a letter: "90".
    known: BTreeSet<String>,
}

impl Nvcc {
    /// The first that is there and new enough: HEADFIRST_NVCC, CUDA_HOME, PATH, the folder of `kernels/toolchain.sh`. An error says where it looked.
    fn find(environment: &Environment) -> Result<Nvcc, String> {
        if let Some(path) = environment("HEADFIRST_NVCC") {
            return Nvcc::ask(Path::new(&path)).map_err(|error| format!("HEADFIRST_NVCC: {error}"));
        }
        let mut candidates: Vec<PathBuf> = Vec::new();
        candidates.extend(environment("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc")));
        let path = environment("PATH").unwrap_or_default();
        candidates.extend(env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file()));
        candidates.extend(cache(environment).map(|cache| cache.join("bin/nvcc")));

        let mut reasons = Vec::new();
        for candidate in &candidates {
            match Nvcc::ask(candidate) {
                Ok(nvcc) => return Ok(nvcc),
                Err(reason) => reasons.push(reason),
            }
        }
        let looked = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
        Err(format!(
            "nvcc was not found in CUDA_HOME, PATH or the cache{looked}. kernels/toolchain.sh installs it; then build again"
        ))
    }

    fn ask(path: &Path) -> Result<Nvcc, String> {
        if !path.is_file() {
            return Err(format!("there is no {}", path.display()));
        }
        let run = |option: &str| -> Result<String, String> {
            let output = Command::new(path).arg(option).output();
            let output = output.map_err(|error| format!("{} does not run: {error}", path.display()))?;
            match output.status.success() {
                true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
                false => Err(format!(
                    "{} {option} failed: {}",
                    path.display(),
                    String::from_utf8_lossy(&output.stderr).trim()
                )),
            }
        };
        // "Cuda compilation tools, release 13.0, V13.0.88"
        let text = run("--version")?;
        let word_after = |start: &str| {
            let word =
                text.split(start).nth(1)?.split(|letter: char| letter != '.' && !letter.is_ascii_digit()).next()?;
            Some(word.to_string())
        };
        let release = word_after("release ").and_then(|release| {
            let (major, minor) = release.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let release: (u32, u32) =
            release.ok_or_else(|| format!("{} --version names no release: {}", path.display(), text.trim()))?;
        if release < OLDEST {
            let (major, minor) = release;
            return Err(format!(
                "{} is release {major}.{minor}, {}.{} or newer is needed",
                path.display(),
                OLDEST.0,
                OLDEST.1
            ));
        }
        let version = word_after(", V").unwrap_or_else(|| format!("{}.{}", release.0, release.1));
        let known = run("--list-gpu-code")?;
        let known = known.lines().filter_map(|line| Some(line.trim().strip_prefix("sm_")?.to_string())).collect();
        Ok(Nvcc { path: path.to_path_buf(), name: format!("nvcc {version}"), release, known })
    }

    /// Whether it makes code for "90a". The list that it prints leaves the letter out.
    fn knows(&self, architecture: &str) -> bool {
        self.known.contains(number(architecture))
    }
}

/// "90" of "90a".
fn number(architecture: &str) -> &str {
    architecture.trim_end_matches(|letter: char| letter.is_ascii_alphabetic())
}

/// The folder of `kernels/toolchain.sh`, as that script finds it.
fn cache(environment: &Environment) -> Option<PathBuf> {
    let named = environment("HEADFIRST_CUDA_CACHE").map(PathBuf::from);
    let base = || environment("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || environment("HOME").map(|home| Path::new(&home).join(".cache"));
    named.or_else(|| Some(base().or_else(home)?.join("headfirst/cuda-13.0")))
}

/// What is compiled for.
struct Targets {
    /// As nvcc writes them: "sm_90a" is machine code, "compute_100" PTX.
    names: Vec<String>,
    options: Vec<String>,
    warnings: Vec<String>,
}

impl Targets {
    /// All that `nvcc` knows of `ARCHITECTURES`, and PTX for later ones; or just those that `wanted` (HEADFIRST_CUDA_ARCHS, "80, 90a") names.
    fn choose(nvcc: &Nvcc, wanted: Option<&str>) -> Result<Targets, String> {
        let mut machine: Vec<String> = Vec::new();
        let mut intermediate = None;
        let mut warnings = Vec::new();
        if let Some(wanted) = wanted {
            for word in wanted.split([',', ';', ' ']).filter(|word| !word.is_empty()) {
                let architecture = word.trim_start_matches("sm_");
                if !nvcc.knows(architecture) {
                    let known: Vec<&str> = nvcc.known.iter().map(String::as_str).collect();
                    return Err(format!(
                        "HEADFIRST_CUDA_ARCHS names {word:?}, and {} knows {}; write, for example, 80,90a, or none",
                        nvcc.name,
                        known.join(", ")
                    ));
                }
                machine.push(architecture.to_string());
            }
        } else {
            let (known, unknown): (Vec<&str>, Vec<&str>) =
                ARCHITECTURES.into_iter().partition(|architecture| nvcc.knows(architecture));
            machine = known.iter().map(|known| known.to_string()).collect();
            // PTX runs on its own version and every later one, so the lowest above Hopper serves all that have no machine code here.
            let later = known.iter().find(|known| number(known).len() > 2).or(known.last());
            intermediate = later.map(|later| number(later).to_string());
            if !unknown.is_empty() {
                warnings.push(format!(
                    "{} does not know sm_{}: GPUs of that kind will compile the kernels when they start; kernels/toolchain.sh installs an nvcc that knows them",
                    nvcc.name,
                    unknown.join(", sm_")
                ));
            }
        }
        if machine.is_empty() {
            return Err(match wanted {
                Some(_) => "HEADFIRST_CUDA_ARCHS names no architecture; write, for example, 80,90a, or none".into(),
                None => format!("{} knows none of sm_{}", nvcc.name, ARCHITECTURES.join(", sm_")),
            });
        }
        let mut names = Vec::new();
        let mut options = Vec::new();
        if nvcc.release >= COMPRESSES {
            options.push("--compress-mode=size".to_string());
        }
        for architecture in &machine {
            names.push(format!("sm_{architecture}"));
            options.push(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
        }
        if let Some(version) = intermediate {
            names.push(format!("compute_{version}"));
            options.push(format!("-gencode=arch=compute_{version},code=compute_{version}"));
        }
        Ok(Targets { names, options, warnings })
    }
}

/// All that decides what `kernel`'s fatbin holds, as one text: the compiler with its options, the file, and the headers it includes.
fn recipe(folder: &Path, kernel: &str, compiler: &str) -> Result<String, String> {
    let mut text = format!("// {compiler}\n");
    let mut seen = BTreeSet::new();
    let mut waiting = vec![format!("{kernel}.cu")];
    while let Some(name) = waiting.pop() {
        let path = folder.join(&name);
        if !seen.insert(name.clone()) || !path.is_file() {
            continue;
        }
        let source = fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        writeln!(text, "// {name}\n{source}").map_err(|error| error.to_string())?;
        // Headers stand in `folder`, or in one below it; nvcc never sees the emulator's.
        let included = source.lines().filter_map(|line| line.trim().strip_prefix("#include \"")?.split('"').next());
        waiting.extend(included.filter(|name| !name.starts_with("emulator/")).map(str::to_string));
    }
    Ok(text)
}

/// Compiles the `stale` kernels, `jobs` at a time; the first that fails is the error.
fn compile_all(
    folder: &Path,
    out_dir: &Path,
    nvcc: &Nvcc,
    options: &[String],
    stale: &[(&str, String)],
    jobs: usize,
) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let errors = Mutex::new(Vec::new());
    // Fewer files than processors: each nvcc compiles several architectures at once.
    let threads = (jobs / stale.len().max(1)).max(1);
    thread::scope(|scope| {
        for _ in 0..jobs.min(stale.len()) {
            scope.spawn(|| {
                while let Some((kernel, recipe)) = stale.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = compile(folder, out_dir, nvcc, options, kernel, recipe, threads) {
                        errors.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(error);
                        next.store(stale.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    match errors.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        errors if errors.is_empty() => Ok(()),
        errors => Err(errors.join("\n\n")),
    }
}

fn compile(
    folder: &Path,
    out_dir: &Path,
    nvcc: &Nvcc,
    options: &[String],
    kernel: &str,
    recipe: &str,
    threads: usize,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot compile kernels/{kernel}.cu: {error}");
    let fatbin = out_dir.join(format!("{kernel}.fatbin"));
    let fresh = out_dir.join(format!("{kernel}.fatbin.new"));
    let mut command = Command::new(&nvcc.path);
    command.args(["-std=c++17", "-O3", "--fatbin"]).arg("-I").arg(folder).args(options);
    if threads > 1 {
        command.arg(format!("--threads={threads}"));
    }
    command.arg("-o").arg(&fresh).arg(folder.join(format!("{kernel}.cu")));
    let output = command.output().map_err(failed)?;
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        if ["g++", "gcc", "cc1plus"].iter().any(|compiler| said.contains(compiler)) {
            said += "\nnvcc needs g++ beside it (Debian, Ubuntu: apt-get install g++); HEADFIRST_CUDA_ARCHS=none builds for the CPU only";
        }
        return Err(format!("{} could not compile kernels/{kernel}.cu\n{}", nvcc.path.display(), said.trim_end()));
    }
    fs::rename(&fresh, &fatbin).map_err(failed)?;
    fs::write(out_dir.join(format!("{kernel}.recipe")), recipe).map_err(failed)
}

/// Writes `embedded.rs`: what `src/backend/cuda/embedded.rs` promises, as constants.
fn write_table(
    out_dir: &Path,
    nvcc: Option<&Nvcc>,
    architectures: &[String],
    kernels: &[String],
) -> Result<(), String> {
    let mut text = String::from("// Written by the build script.\n\n");
    let compiler = nvcc.map(|nvcc| nvcc.name.as_str());
    text += &format!("const COMPILER: Option<&str> = {compiler:?};\n\n");
    text += &format!("const ARCHITECTURES: &[&str] = &{architectures:?};\n\nconst FILES: &[Embedded] = &[\n");
    for kernel in kernels {
        text += &format!(
            "    Embedded {{ name: {kernel:?}, fatbin: &Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{kernel}.fatbin\"))).0 }},\n"
        );
    }
    text += "];\n";
    let path = out_dir.join("embedded.rs");
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
