//! `tests/gpu.sh` on binaries that only say that they tested something.

use crate::program::{headfirst, run_to_end};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Writes a program of the shell.
fn program(folder: &TempDir, name: &str, script: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn gpu_script(headfirst: &Path, tests: &Path) -> Output {
    let mut command = Command::new("bash");
    command.arg(Path::new(ROOT).join("tests/gpu.sh")).arg("--quick");
    for (option, path) in [("--headfirst", headfirst), ("--tests", tests), ("--unit-tests", tests)] {
        command.arg(option).arg(path);
    }
    command.output().unwrap()
}

/// What the script prints for tests that print this and end so.
fn outcome(tests: &str) -> (Option<i32>, String) {
    let folder = TempDir::new().unwrap();
    let (headfirst, tests) = (program(&folder, "headfirst", "echo '{}'"), program(&folder, "tests", tests));
    let output = gpu_script(&headfirst, &tests);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

const PASSED: &str = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out'";

#[test]
fn tests_that_fail_or_skip_or_are_none_are_a_failed_check_on_a_gpu() {
    let (code, table) = outcome(PASSED);
    assert!(code == Some(0) && table.contains("passed in") && !table.contains("failed"), "{table}");
    for (tests, reason) in [
        (format!("{PASSED}; exit 7"), "**failed** (exit code 7)"),
        (PASSED.replace("2 passed", "0 passed"), "**failed** (no test passed)"),
        (format!("echo 'test a_step ... skipped: there is none'; {PASSED}"), "**failed** (a test was skipped)"),
        (format!("echo 'skipped on the emulator'; {PASSED}"), "**failed** (a test was skipped)"),
    ] {
        let (code, table) = outcome(&tests);
        assert!(code == Some(1) && table.contains(reason), "{tests}: {table}");
        // The benchmark's rows are no tests.
        assert!(table.contains("passed in"), "{table}");
    }
}

#[test]
fn the_engines_products_are_checked_without_nvidias_library() {
    let (code, table) = outcome(&format!("[ \"$HEADFIRST_CUBLASLT\" = none ] || exit 1; {PASSED}"));
    assert_eq!(code, Some(1));
    let row = |name: &str| table.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {table}"));
    assert!(row("own tests, the engine's products").contains("passed"), "{table}");
    assert!(row("own tests, cuBLASLt").contains("failed"), "{table}");
    // And `none` is what the program understands.
    let mut doctor = headfirst(["doctor", "--json"]);
    doctor.env("HEADFIRST_CUBLASLT", "none");
    let ended = run_to_end(doctor);
    assert!(ended.output.contains("cuBLASLt was not looked for (HEADFIRST_CUBLASLT says so)"), "{}", ended.output);
}

#[test]
fn the_results_have_the_rows_that_the_script_prints() {
    let mut command = Command::new("bash");
    command.arg(Path::new(ROOT).join("tests/gpu.sh"));
    let output = command.args(["--headfirst", "/nowhere", "--tests", "/nowhere", "--unit-tests", "/nowhere"]).output();
    let printed = String::from_utf8(output.unwrap().stdout).unwrap();
    let results = fs::read_to_string(Path::new(ROOT).join("docs/results/h200.md")).unwrap();
    let right = results.split("\n## ").find(|part| part.starts_with("Right")).unwrap();
    let checks = |text: &str| -> Vec<String> {
        let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
        rows.filter_map(|row| Some(row.split_once(" | ")?.0.to_string())).collect()
    };
    assert!(checks(&printed).len() > 20, "{printed}");
    assert_eq!(checks(right), checks(&printed));
}
