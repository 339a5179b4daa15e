use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use nvcc::{Built, build};

#[path = "../build/nvcc.rs"]
mod nvcc;

/// A folder of kernels, an nvcc (`tests/fixtures/nvcc`), and the environment of a build.
struct Workshop {
    root: TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Workshop {
    /// Three kernels, of which `ctc` and `lstm` include a header, and no nvcc.
    fn new() -> Workshop {
        let root = TempDir::new().unwrap();
        let mut workshop = Workshop { root, environment: vec![("NUM_JOBS", "2".into())] };
        for folder in ["kernels/emulator", "out"] {
            fs::create_dir_all(workshop.path(folder)).unwrap();
        }
        workshop.write("kernels/fill.cu", "kernel\n");
        workshop.write("kernels/lstm.cu", "#include \"common.cuh\"\nkernel\n");
        workshop.write("kernels/ctc.cu", "#include \"common.cuh\"\nkernel\n");
        workshop.write("kernels/common.cuh", "#include \"emulator/device.h\"\n#include \"tile.cuh\"\n");
        workshop.write("kernels/tile.cuh", "tile\n");
        workshop.write("kernels/emulator/device.h", "device\n");
        workshop.write("kernels/emulator/test.cu", "not a kernel of the engine\n");
        workshop.set("HEADFIRST_CUDA_CACHE", workshop.path("cache").display().to_string());
        workshop
    }

    /// One with an nvcc of `release` that knows `codes`, at `place`/nvcc.
    fn with_nvcc(place: &str, release: &str, codes: &str) -> Workshop {
        let workshop = Workshop::new();
        workshop.install(place, release, codes);
        workshop
    }

    /// One with an nvcc 13.0 where `kernels/toolchain.sh` puts it.
    fn with_toolchain() -> Workshop {
        Workshop::with_nvcc("cache/bin", "13.0", "75 80 86 89 90 100 110 120")
    }

    fn install(&self, place: &str, release: &str, codes: &str) {
        fs::create_dir_all(self.path(place)).unwrap();
        self.write(&format!("{place}/release"), release);
        self.write(&format!("{place}/codes"), &codes.split(' ').map(|code| format!("sm_{code}\n")).collect::<String>());
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nvcc");
        symlink(fixture, self.path(place).join("nvcc")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.environment.push((name, value.into()));
    }

    /// Builds. The test's own PATH finds the shell, not an nvcc.
    fn build(&self) -> Result<Built, String> {
        let environment = |name: &str| {
            let set = self.environment.iter().rev().find(|(set, _)| *set == name);
            set.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        build(&self.path("kernels"), &self.path("out"), &environment)
    }

    /// Builds, and gives the names of the kernels that were compiled, sorted.
    fn compiled(&self) -> Vec<String> {
        let mut compiled = self.build().unwrap().compiled;
        compiled.sort();
        compiled
    }

    fn table(&self) -> String {
        fs::read_to_string(self.path("out/embedded.rs")).unwrap()
    }
}

#[test]
fn every_kernel_file_is_compiled_once_and_the_next_build_compiles_none() {
    let workshop = Workshop::with_toolchain();
    assert_eq!(workshop.compiled(), ["ctc", "fill", "lstm"]);
    let table = workshop.table();
    assert!(table.contains("Some(\"nvcc 13.0.7\")"), "{table}");
    assert!(
        table.contains("[\"sm_80\", \"sm_86\", \"sm_89\", \"sm_90a\", \"sm_100\", \"sm_120\", \"compute_100\"]"),
        "{table}"
    );
    assert!(table.contains("/lstm.fatbin") && !table.contains("/test.fatbin"), "{table}");
    let calls = fs::read_to_string(workshop.path("cache/bin/calls")).unwrap();
    assert_eq!(calls.lines().count(), 3, "{calls}");
    for call in calls.lines() {
        for option in [
            "-std=c++17",
            "-O3",
            "--fatbin",
            "--compress-mode=size",
            "-gencode=arch=compute_90a,code=sm_90a",
            "compute_100,code=compute_100",
        ] {
            assert!(call.contains(option), "{option} is missing: {call}");
        }
    }
    assert_eq!(workshop.compiled(), [""; 0]);
}

#[test]
fn only_what_changed_is_compiled_again() {
    let mut workshop = Workshop::with_toolchain();
    workshop.build().unwrap();
    workshop.write("kernels/fill.cu", "another kernel\n");
    assert_eq!(workshop.compiled(), ["fill"]);
    workshop.write("kernels/tile.cuh", "another tile\n");
    assert_eq!(workshop.compiled(), ["ctc", "lstm"]);
    workshop.write("kernels/emulator/device.h", "nvcc never sees it\n");
    assert_eq!(workshop.compiled(), [""; 0]);
    fs::remove_file(workshop.path("out/ctc.fatbin")).unwrap();
    assert_eq!(workshop.compiled(), ["ctc"]);
    workshop.set("HEADFIRST_CUDA_ARCHS", "90a");
    assert_eq!(workshop.compiled(), ["ctc", "fill", "lstm"]);
    workshop.write("cache/bin/release", "13.1");
    assert_eq!(workshop.compiled(), ["ctc", "fill", "lstm"]);
    workshop.set("NVCC_APPEND_FLAGS", "--use_fast_math");
    assert_eq!(workshop.compiled(), ["ctc", "fill", "lstm"]);
}

#[test]
fn a_kernel_that_is_gone_leaves_the_table() {
    let workshop = Workshop::with_toolchain();
    workshop.build().unwrap();
    fs::remove_file(workshop.path("kernels/ctc.cu")).unwrap();
    assert_eq!(workshop.compiled(), [""; 0]);
    assert!(!workshop.table().contains("ctc"), "{}", workshop.table());
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error_until_it_does() {
    let workshop = Workshop::with_toolchain();
    workshop.build().unwrap();
    workshop.write("kernels/fill.cu", "SYNTAX\n");
    for _ in 0..2 {
        let error = workshop.build().unwrap_err();
        assert!(error.contains("kernels/fill.cu") && error.contains("expected a declaration"), "{error}");
    }
    workshop.write("kernels/fill.cu", "kernel\n");
    // It is what the kept fatbin was made of.
    assert_eq!(workshop.compiled(), [""; 0]);
}

#[test]
fn without_nvcc_the_binary_is_for_the_cpu_and_a_warning_says_how_to_get_it() {
    let mut workshop = Workshop::new();
    let built = workshop.build().unwrap();
    assert_eq!(built.warnings.len(), 1);
    assert!(built.warnings[0].contains("kernels/toolchain.sh"), "{}", built.warnings[0]);
    assert!(built.nvcc.is_none() && !workshop.table().contains("fatbin\")"), "{}", workshop.table());
    workshop.set("HEADFIRST_REQUIRE_CUDA", "1");
    let error = workshop.build().unwrap_err();
    assert!(error.contains("HEADFIRST_REQUIRE_CUDA=1") && error.contains("kernels/toolchain.sh"), "{error}");
    workshop.set("HEADFIRST_REQUIRE_CUDA", "0");
    assert!(workshop.build().is_ok());
}

#[test]
fn a_binary_for_the_cpu_can_be_asked_for() {
    let mut workshop = Workshop::with_toolchain();
    workshop.set("HEADFIRST_CUDA_ARCHS", "none");
    let built = workshop.build().unwrap();
    assert!(built.compiled.is_empty() && built.warnings.is_empty() && built.nvcc.is_none());
    workshop.set("HEADFIRST_REQUIRE_CUDA", "1");
    assert!(workshop.build().unwrap_err().contains("contradicts"));
}

#[test]
fn nvcc_is_taken_from_its_variable_then_cuda_home_then_the_path_then_the_cache() {
    let mut workshop = Workshop::with_toolchain();
    let found = |workshop: &Workshop| workshop.build().unwrap().nvcc.unwrap();
    let places = [("path", "path"), ("home/bin", "home"), ("own", "own/nvcc")];
    for ((place, value), name) in places.into_iter().zip(["PATH", "CUDA_HOME", "HEADFIRST_NVCC"]) {
        workshop.install(place, "13.0", "80 90");
        workshop.set(name, workshop.path(value).display().to_string());
        assert_eq!(found(&workshop), workshop.path(place).join("nvcc"));
    }
    workshop.set("HEADFIRST_REQUIRE_CUDA", "1");
    workshop.set("HEADFIRST_NVCC", "/nowhere/nvcc");
    let error = workshop.build().unwrap_err();
    assert!(error.contains("there is no /nowhere/nvcc"), "{error}");
}

#[test]
fn an_older_nvcc_leaves_out_what_it_does_not_know() {
    let workshop = Workshop::with_nvcc("cache/bin", "12.4", "70 80 86 89 90");
    let built = workshop.build().unwrap();
    assert!(built.warnings[0].contains("sm_100, sm_120"), "{:?}", built.warnings);
    // Drivers of its age may not read what a newer one compresses.
    let calls = fs::read_to_string(workshop.path("cache/bin/calls")).unwrap();
    assert!(calls.contains("sm_90a") && !calls.contains("--compress-mode"), "{calls}");
    // The newest PTX it makes is what later GPUs will start from.
    assert!(
        workshop.table().contains("[\"sm_80\", \"sm_86\", \"sm_89\", \"sm_90a\", \"compute_90\"]"),
        "{}",
        workshop.table()
    );
}

#[test]
fn an_nvcc_that_is_too_old_is_passed_over() {
    let mut workshop = Workshop::with_toolchain();
    workshop.install("old/bin", "11.8", "80 86 89 90");
    workshop.set("CUDA_HOME", workshop.path("old").display().to_string());
    assert_eq!(workshop.build().unwrap().nvcc.unwrap(), workshop.path("cache/bin/nvcc"));
    fs::remove_dir_all(workshop.path("cache")).unwrap();
    let warning = workshop.build().unwrap().warnings.remove(0);
    assert!(warning.contains("release 11.8") && warning.contains("12.0 or newer"), "{warning}");
}

#[test]
fn the_architectures_can_be_narrowed() {
    let mut workshop = Workshop::with_toolchain();
    for (wanted, names) in
        [("90a", "[\"sm_90a\"]"), ("80,90a", "[\"sm_80\", \"sm_90a\"]"), ("sm_86 110", "[\"sm_86\", \"sm_110\"]")]
    {
        workshop.set("HEADFIRST_CUDA_ARCHS", wanted);
        workshop.build().unwrap();
        assert!(workshop.table().contains(names), "{wanted}: {}", workshop.table());
    }
    for wanted in ["35", "hopper", ","] {
        workshop.set("HEADFIRST_CUDA_ARCHS", wanted);
        let error = workshop.build().unwrap_err();
        assert!(error.contains("HEADFIRST_CUDA_ARCHS") && error.contains("80,90a"), "{error}");
    }
}

#[test]
fn cargo_is_told_of_every_variable_that_the_build_reads() {
    let asked = RefCell::new(BTreeSet::new());
    for root in [Workshop::new(), Workshop::with_toolchain()] {
        let environment = |name: &str| {
            asked.borrow_mut().insert(name.to_string());
            let set = root.environment.iter().find(|(set, _)| *set == name);
            set.map(|(_, value)| value.clone())
        };
        build(&root.path("kernels"), &root.path("out"), &environment).unwrap();
    }
    // NUM_JOBS is cargo's own, and PATH is watched where no nvcc was found.
    let asked = asked.into_inner();
    let asked: BTreeSet<&str> =
        asked.iter().map(String::as_str).filter(|name| !["NUM_JOBS", "PATH"].contains(name)).collect();
    assert_eq!(asked, BTreeSet::from(nvcc::VARIABLES));
}
