//! The checks of the kernels catch faults: copies of kernels with one fault each are compiled into libraries that take the emulator's place,
//! and the checks, run by this very binary, must fail. What the faults are put into must still be there, else the test fails too.

use headfirst::backend::cuda::emulator::AVAILABLE;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// What `build/emulator.rs` left: an object of every kernel file, and the command that it compiled them with.
const OBJECTS: &str = concat!(env!("OUT_DIR"), "/emulator");
const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
/// The checks that are named here, in `tests/ops.rs`.
const VALUES: &str = "ops::every_operation_agrees_with_its_definition";
const ORDER: &str = "ops::the_order_of_a_kernels_threads_does_not_change_a_bit";

/// A fault in one place of one file.
struct Fault {
    name: &'static str,
    /// `kernels/KERNEL.cu` is compiled; the fault is in `kernels/FILE`.
    kernel: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// The checks that must fail, and the case that they must name.
    caught_by: &'static [&'static str],
    case: &'static str,
}

const FAULTS: [Fault; 5] = [
    Fault {
        name: "a barrier is gone: the equations are applied before all warps have their sums",
        kernel: "lstm",
        file: "lstm_forward.cuh",
        right: "copy_async_wait<0>();\n                barrier();\n                apply(",
        wrong: "copy_async_wait<0>();\n                apply(",
        caught_by: &[VALUES, ORDER],
        case: "lstm of lengths",
    },
    Fault {
        name: "an index is shifted: a state takes the emission of its right neighbour",
        kernel: "ctc",
        file: "ctc.cu",
        right: "places[p] = utterance.emissions + place;",
        wrong: "places[p] = utterance.emissions + place + 1;",
        caught_by: &[VALUES],
        case: "ctc of lengths",
    },
    Fault {
        name: "a mask is gone: the second of four neighbours is never dropped",
        kernel: "sequences",
        file: "sequences.cu",
        right: "y[begin + 1] = mask.apply(drawn.y, x[begin + 1]);",
        wrong: "y[begin + 1] = x[begin + 1];",
        caught_by: &[VALUES],
        case: "dropout",
    },
    Fault {
        name: "a barrier is gone: keys are read that other threads still bring in",
        kernel: "attention",
        file: "attention.cu",
        right: "barrier(); // all have this stage, and nobody reads the other one any more",
        wrong: "",
        caught_by: &[VALUES],
        case: "attention of lengths",
    },
    Fault {
        name: "an exchange is gone: a lane keeps what was drawn for another query",
        kernel: "attention",
        file: "attention.cu",
        right: "return exchange(bits, 1, 0x33333333u, 2);",
        wrong: "return bits;",
        caught_by: &[VALUES],
        case: "attention of lengths",
    },
];

/// Copies of kernels, and the command that compiles them.
struct Workshop {
    root: TempDir,
    command: Vec<String>,
}

impl Workshop {
    fn new(command: &str) -> Workshop {
        let workshop = Workshop {
            root: TempDir::new().unwrap(),
            // What is run for a moment need not be fast.
            command: command.split_whitespace().chain(["-O1", "-g0"]).map(String::from).collect(),
        };
        for folder in ["kernels", "kernels/emulator"] {
            fs::create_dir(workshop.path(folder)).unwrap();
            for entry in fs::read_dir(Path::new(KERNELS).parent().unwrap().join(folder)).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_file() {
                    fs::copy(entry.path(), workshop.path(folder).join(entry.file_name())).unwrap();
                }
            }
        }
        workshop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn compile(&self, arguments: &[&Path]) {
        let mut command = Command::new(&self.command[0]);
        let output = command.args(&self.command[1..]).args(arguments).current_dir(self.root.path()).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The emulator as a library, with these kernels compiled anew and the others as they were built.
    fn library(&self, kernels: &[&str]) -> PathBuf {
        let fresh: Vec<PathBuf> = kernels.iter().map(|kernel| self.path(&format!("kernels-{kernel}.cu.o"))).collect();
        for (kernel, object) in kernels.iter().zip(&fresh) {
            let source = PathBuf::from(format!("kernels/{kernel}.cu"));
            self.compile(
                &["-x", "c++", "-c", "-o"].map(Path::new).into_iter().chain([&**object, &*source]).collect::<Vec<_>>(),
            );
        }
        let built = fs::read_dir(OBJECTS).unwrap().map(|entry| entry.unwrap().path());
        let is_kept = |object: &PathBuf| {
            // emulator.o is all of them in one.
            let name = object.file_name().unwrap().to_string_lossy();
            name.starts_with("kernels-")
                && name.ends_with(".o")
                && !fresh.iter().any(|f| f.file_name() == object.file_name())
        };
        let kept: Vec<PathBuf> = built.filter(is_kept).collect();
        let library = self.path("emulator.so");
        let mut arguments = ["-shared", "-pthread", "-Wl,-Bsymbolic", "-o"].map(Path::new).to_vec();
        arguments.push(&library);
        arguments.extend(fresh.iter().chain(&kept).map(PathBuf::as_path));
        self.compile(&arguments);
        library
    }
}

fn check(name: &str, library: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--test-threads=1"]).env("HEADFIRST_EMULATOR_LIBRARY", library).output().unwrap()
}

#[test]
fn the_checks_of_the_kernels_fail_where_a_barrier_an_index_or_a_mask_is_wrong() {
    if !AVAILABLE {
        println!("skipped: there is no C++ compiler, so no emulator");
        return;
    }
    let command = fs::read_to_string(Path::new(OBJECTS).join("command")).unwrap();

    let whole = Workshop::new(&command);
    // Those of one kernel stand together.
    let mut kernels = FAULTS.each_ref().map(|fault| fault.kernel).to_vec();
    kernels.dedup();
    let library = whole.library(&kernels);
    for name in [VALUES, ORDER] {
        let output = check(name, &library);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "without a fault, {name} passes: {text}");
    }

    for fault in &FAULTS {
        let faulty = Workshop::new(&command);
        let file = faulty.path("kernels").join(fault.file);
        let text = fs::read_to_string(&file).unwrap();
        let places = text.matches(fault.right).count();
        assert_eq!(places, 1, "{}: \"{}\" is there {places} times; adapt this test", fault.file, fault.right);
        fs::write(&file, text.replace(fault.right, fault.wrong)).unwrap();
        let library = faulty.library(&[fault.kernel]);
        for name in fault.caught_by {
            let output = check(name, &library);
            let text = String::from_utf8_lossy(&output.stdout);
            let caught = !output.status.success() && text.contains("1 failed") && text.contains(fault.case);
            assert!(caught, "{}, and {name} does not say so: {text}", fault.name);
        }
    }
}
