//! Whether this binary's kernels run on a GPU, and which of several GPUs is taken: decisions on what was found, which open nothing.

use super::interface::{Status, version_text};
use cudarc::driver::sys::CUresult;

/// What the kernels need at least: bf16, asynchronous copies, a matrix product of tf32.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

/// All that the verdict depends on.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The GPU's compute capability.
    pub capability: (u32, u32),
    /// What the kernels were compiled for, as [`super::embedded::architectures`] has it.
    pub architectures: &'a [&'a str],
    /// What compiled them, `nvcc 13.0.88`.
    pub compiler: &'a str,
    /// The version that the driver serves, 12040 for CUDA 12.4.
    pub driver: i32,
}

/// Why a GPU cannot be used, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    pub problem: String,
    pub remedy: String,
}

/// How the kernels come to a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    /// There is machine code for it.
    Machine,
    /// The driver compiles PTX for it.
    Ptx,
    None,
}

/// What can be said before anything is loaded.
///
/// # Errors
/// If the GPU is too old, or the kernels were not compiled for it.
pub fn before_loading(found: &Found<'_>) -> Result<(), Unusable> {
    let (major, minor) = found.capability;
    if found.capability < OLDEST_CAPABILITY {
        let (oldest, point) = OLDEST_CAPABILITY;
        return Err(Unusable {
            problem: format!("has compute capability {major}.{minor}, and {oldest}.{point} or newer is needed"),
            remedy: "Use another GPU, or --device cpu".into(),
        });
    }
    if code_for(found) == Code::None {
        return Err(Unusable {
            problem: format!(
                "has compute capability {major}.{minor}, and this binary's kernels were compiled for {}",
                found.architectures.join(", ")
            ),
            remedy: format!(
                "Build it anew without HEADFIRST_CUDA_ARCHS, or with {major}{minor} in it; or use --device cpu"
            ),
        });
    }
    Ok(())
}

/// What it means that the driver refuses the kernels with this status; none if the status says nothing about them.
pub fn when_refused(found: &Found<'_>, status: Status) -> Option<Unusable> {
    let is = |known: CUresult| status == known as Status;
    let driver = version_text(found.driver);
    let (major, minor) = found.capability;
    let of_compiler = found.compiler.strip_prefix("nvcc ").unwrap_or(found.compiler);
    let is_older = of_compiler
        .split('.')
        .next()
        .and_then(|it| it.parse::<i32>().ok())
        .is_some_and(|of_compiler| found.driver / 1000 < of_compiler);
    let old_driver = || Unusable {
        problem: format!(
            "has a driver that serves CUDA {driver}, and the kernels by {} need a newer one",
            found.compiler
        ),
        remedy:
            "Update the NVIDIA driver, or build the binary with an nvcc of the driver's version; or use --device cpu"
                .into(),
    };
    if is(CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND) {
        return Some(Unusable {
            problem: "needs kernels that its driver compiles, and the driver's compiler (libnvidia-ptxjitcompiler) was not found".into(),
            remedy: format!("Install the whole driver, or build the binary with HEADFIRST_CUDA_ARCHS={major}{minor}; or use --device cpu"),
        });
    }
    if is(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION) {
        return Some(old_driver());
    }
    let refused =
        [CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU, CUresult::CUDA_ERROR_INVALID_IMAGE, CUresult::CUDA_ERROR_INVALID_PTX];
    if !refused.into_iter().any(is) {
        return None;
    }
    if is_older || code_for(found) == Code::Ptx {
        return Some(old_driver());
    }
    let architectures = found.architectures.join(", ");
    Some(Unusable {
        problem: format!(
            "refuses the kernels by {} for {architectures}, with a driver that serves CUDA {driver}",
            found.compiler
        ),
        remedy: format!(
            "Build the binary anew, with HEADFIRST_CUDA_ARCHS={major}{minor}, or update the driver; or use --device cpu"
        ),
    })
}

/// Machine code runs on its own major version from its minor version on, `sm_90a` on 9.0 alone, `sm_100f` as `sm_100`; PTX is compiled for its
/// version and all later ones.
fn code_for(found: &Found<'_>) -> Code {
    let wanted = found.capability;
    let mut best = Code::None;
    for architecture in found.architectures {
        let Some((kind, version)) = architecture.split_once('_') else { continue };
        let digits = version.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let Ok(number) = digits.parse::<u32>() else { continue };
        let of_code = (number / 10, number % 10);
        let reaches = if version.ends_with('a') { of_code == wanted } else { of_code <= wanted };
        match kind {
            "sm" if reaches && of_code.0 == wanted.0 => return Code::Machine,
            "compute" if reaches => best = Code::Ptx,
            _ => {}
        }
    }
    best
}

/// The first of so many GPUs that opens, and why those before it did not.
///
/// # Errors
/// Why none of them did.
pub fn first_usable<T, E: ToString>(
    count: u32,
    mut open: impl FnMut(u32) -> Result<T, E>,
) -> Result<(T, Vec<String>), Vec<String>> {
    let mut reasons = Vec::new();
    for ordinal in 0..count {
        match open(ordinal) {
            Ok(opened) => return Ok((opened, reasons)),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[&str] = &["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_120"];
    const HOPPER: Found<'_> =
        Found { capability: (9, 0), architectures: ALL, compiler: "nvcc 13.0.88", driver: 13_000 };

    #[test]
    fn a_gpu_that_is_too_old_is_told_so_and_not_to_update_its_driver() {
        let turing = Found { capability: (7, 5), ..HOPPER };
        let Unusable { problem, remedy } = before_loading(&turing).unwrap_err();
        assert!(problem.contains("7.5") && problem.contains("8.0"), "{problem}");
        assert!(remedy.contains("--device cpu") && !remedy.contains("driver"), "{remedy}");
        for capability in [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1), (13, 0)] {
            assert_eq!(before_loading(&Found { capability, ..HOPPER }), Ok(()), "{capability:?}");
        }
    }

    #[test]
    fn kernels_that_were_built_for_other_gpus_are_to_be_built_anew() {
        for (architectures, capability) in [
            (&["sm_80"][..], (9, 0)),
            (&["sm_90a"], (8, 9)),
            (&["sm_89"], (8, 6)),
            (&["sm_90a", "compute_90a"], (10, 0)),
        ] {
            let Unusable { problem, remedy } =
                before_loading(&Found { architectures, capability, ..HOPPER }).unwrap_err();
            assert!(problem.contains(architectures[0]), "{problem}");
            let wanted = format!("{}{}", capability.0, capability.1);
            assert!(remedy.contains("HEADFIRST_CUDA_ARCHS") && remedy.contains(&wanted), "{remedy}");
        }
        for (architectures, capability) in
            [(&["compute_80"][..], (9, 0)), (&["sm_80"], (8, 6)), (&["sm_100f"], (10, 3))]
        {
            assert_eq!(before_loading(&Found { architectures, capability, ..HOPPER }), Ok(()));
        }
    }

    #[test]
    fn what_the_driver_refuses_has_a_remedy_of_its_own_for_each_cause() {
        let remedy = |found: Found<'_>, status: CUresult| when_refused(&found, status as Status).unwrap().remedy;
        let old = Found { driver: 12_040, ..HOPPER };
        for status in [
            CUresult::CUDA_ERROR_INVALID_IMAGE,
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
            CUresult::CUDA_ERROR_INVALID_PTX,
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        ] {
            assert!(remedy(old, status).starts_with("Update the NVIDIA driver"), "{status:?}");
            assert!(when_refused(&old, status as Status).unwrap().problem.contains("12.4"));
        }
        assert!(remedy(HOPPER, CUresult::CUDA_ERROR_INVALID_IMAGE).starts_with("Build the binary anew"));
        let newer = Found { capability: (13, 0), ..HOPPER };
        assert!(remedy(newer, CUresult::CUDA_ERROR_INVALID_PTX).starts_with("Update the NVIDIA driver"));
        assert!(remedy(newer, CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND).contains("whole driver"));
        assert_eq!(when_refused(&HOPPER, CUresult::CUDA_ERROR_OUT_OF_MEMORY as Status), None);
    }

    #[test]
    fn the_first_gpu_that_opens_is_taken_and_the_others_say_why_not() {
        let open = |usable: u32| {
            move |ordinal: u32| match ordinal == usable {
                true => Ok(ordinal),
                false => Err(format!("cuda:{ordinal} is too old")),
            }
        };
        assert_eq!(first_usable(3, open(1)), Ok((1, vec!["cuda:0 is too old".to_string()])));
        assert_eq!(first_usable(2, open(2)), Err(vec!["cuda:0 is too old".into(), "cuda:1 is too old".into()]));
        assert_eq!(first_usable(0, open(0)), Err(Vec::new()));
    }
}
