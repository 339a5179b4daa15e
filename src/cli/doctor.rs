//! `headfirst doctor`.

use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::interface::version_text;
use crate::backend::cuda::{cublaslt, embedded, gpu, libraries};
use crate::cli::Common;
use crate::cli::output::{print, print_json};
use crate::device;
use crate::error;
use crate::table::columns;
use clap::Args;
use serde::Serialize;
use std::fmt;

/// Say which devices there are, and what `auto` chooses and why
///
/// cuBLASLt computes matrix products where it is found: by the dynamic linker, below CUDA_HOME, CUDA_PATH or /usr/local/cuda, or in the active Python
/// environment. HEADFIRST_CUBLASLT names its file instead, or says `none`: the engine's own kernels compute them then. HEADFIRST_NCCL does the same
/// for NCCL, which nothing uses yet.
#[derive(Args)]
pub struct Doctor {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Findings {
    version: &'static str,
    cpu: Cpu,
    cuda: Cuda,
    auto: Auto,
}

#[derive(Serialize)]
struct Cpu {
    threads: usize,
    instructions: String,
}

#[derive(Serialize)]
struct Cuda {
    /// What made the embedded kernels, and for which architectures; none in a binary without them.
    compiler: Option<&'static str>,
    architectures: &'static [&'static str],
    kernels: Vec<&'static str>,
    /// The CUDA version that the driver serves, or why there is none.
    driver: Option<String>,
    /// The driver's own, whether it works or not.
    driver_release: Option<String>,
    problem: Option<String>,
    gpus: Vec<Gpu>,
    cublaslt: String,
    nccl: String,
}

#[derive(Serialize)]
struct Gpu {
    device: String,
    /// Why it cannot be used; if it cannot even be opened, nothing follows.
    problem: Option<String>,
    #[serde(flatten)]
    properties: Option<GpuProperties>,
}

#[derive(Serialize)]
struct GpuProperties {
    name: String,
    capability: String,
    multiprocessors: u32,
    memory_mib: u64,
    free_mib: Option<u64>,
}

#[derive(Serialize)]
struct Auto {
    device: String,
    reason: String,
}

impl Doctor {
    pub fn run(self, _common: &Common) -> error::Result<()> {
        let auto = match device::open("auto") {
            Ok((device, reason)) => Auto { device: device.to_string(), reason },
            Err(error) => Auto { device: "none".into(), reason: error.to_string() },
        };
        let findings = Findings {
            version: env!("CARGO_PKG_VERSION"),
            cpu: Cpu {
                threads: rayon::current_num_threads(),
                instructions: crate::backend::cpu::simd::instruction_set().into(),
            },
            cuda: cuda(),
            auto,
        };
        if self.json {
            return print_json(&findings);
        }
        let line = |name: &str, value: String| vec![format!("{name}: {value}")];
        let cuda = &findings.cuda;
        let kernels = match cuda.compiler {
            Some(compiler) => {
                format!("{} by {compiler}, for {}", cuda.kernels.join(", "), cuda.architectures.join(", "))
            }
            None => "none: this binary was built without CUDA kernels".into(),
        };
        let release = cuda.driver_release.as_deref();
        let driver = match (&cuda.driver, &cuda.problem) {
            (Some(version), _) => {
                release.map_or(String::new(), |release| format!("{release}, ")) + "serves CUDA " + version
            }
            (None, problem) => {
                problem.clone().unwrap_or_default()
                    + &release.map_or(String::new(), |release| format!("; its release is {release}"))
            }
        };
        let mut lines = vec![
            line("headfirst", findings.version.into()),
            line("CPU", format!("{} threads, {}", findings.cpu.threads, findings.cpu.instructions)),
            line("CUDA kernels", kernels),
            line("NVIDIA driver", driver),
        ];
        for gpu in &cuda.gpus {
            let properties = gpu.properties.as_ref().map(ToString::to_string);
            let problem = gpu.problem.as_ref().map(|problem| match properties {
                Some(_) => format!("cannot be used: {problem}"),
                None => problem.clone(),
            });
            let parts: Vec<String> = properties.into_iter().chain(problem).collect();
            lines.push(line(&gpu.device, parts.join("; ")));
        }
        lines.push(line("cuBLASLt", cuda.cublaslt.clone()));
        lines.push(line("NCCL", cuda.nccl.clone()));
        lines.push(line("--device auto", format!("{}, because {}", findings.auto.device, findings.auto.reason)));
        print(&columns(&lines))
    }
}

impl fmt::Display for GpuProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GpuProperties { name, capability, multiprocessors, memory_mib, free_mib } = self;
        write!(f, "{name}, compute capability {capability}, {multiprocessors} multiprocessors, {memory_mib} MiB")?;
        free_mib.map_or(Ok(()), |free| write!(f, ", {free} MiB free"))
    }
}

fn cuda() -> Cuda {
    let driver = gpu::driver_version();
    let found = |found: Result<(String, String), String>| match found {
        Ok((place, version)) => format!("{version} from {place}"),
        Err(why) => why,
    };
    Cuda {
        compiler: embedded::compiler(),
        architectures: embedded::architectures(),
        kernels: embedded::files().iter().map(|file| file.name).collect(),
        driver: driver.as_ref().ok().map(|version| version_text(*version)),
        driver_release: gpu::driver_release(),
        problem: driver.err(),
        gpus: (0..gpu::count()).map(gpu).collect(),
        cublaslt: found(cublaslt::find()),
        nccl: found(libraries::find_nccl()),
    }
}

fn gpu(ordinal: u32) -> Gpu {
    let opened = gpu::Gpu::open(ordinal);
    let properties = opened.as_ref().ok().map(|gpu| {
        let properties = gpu.properties();
        let (major, minor) = properties.capability;
        GpuProperties {
            name: properties.name.clone(),
            capability: format!("{major}.{minor}"),
            multiprocessors: properties.multiprocessors,
            memory_mib: properties.memory >> 20,
            free_mib: gpu.free_memory().ok().map(|bytes| bytes >> 20),
        }
    });
    let problem = opened.and_then(|gpu| gpu.check_usable()).err().map(|error| error.to_string());
    Gpu { device: format!("cuda:{ordinal}"), problem, properties }
}
