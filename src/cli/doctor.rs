//! `headfirst doctor`.

use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::{cublaslt, embedded, gpu};
use crate::cli::Common;
use crate::cli::output::{print, print_json};
use crate::device;
use crate::error::Result;
use crate::table::columns;
use clap::Args;
use serde::Serialize;

/// Say which devices there are, and what `auto` chooses and why
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
    problem: Option<String>,
    gpus: Vec<Gpu>,
    cublaslt: String,
}

#[derive(Serialize)]
struct Gpu {
    device: String,
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
    pub fn run(self, _common: &Common) -> Result<()> {
        let (auto, reason) = device::open("auto")?;
        let findings = Findings {
            version: env!("CARGO_PKG_VERSION"),
            cpu: Cpu {
                threads: rayon::current_num_threads(),
                instructions: crate::backend::cpu::simd::instruction_set().into(),
            },
            cuda: cuda()?,
            auto: Auto { device: auto.to_string(), reason },
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
        let driver = match (&cuda.driver, &cuda.problem) {
            (Some(version), _) => format!("serves CUDA {version}"),
            (None, problem) => problem.clone().unwrap_or_default(),
        };
        let mut lines = vec![
            line("headfirst", findings.version.into()),
            line("CPU", format!("{} threads, {}", findings.cpu.threads, findings.cpu.instructions)),
            line("CUDA kernels", kernels),
            line("NVIDIA driver", driver),
        ];
        for gpu in &cuda.gpus {
            let free = gpu.free_mib.map_or(String::new(), |free| format!(", {free} MiB free"));
            let Gpu { name, capability, multiprocessors, memory_mib, .. } = gpu;
            let text = format!(
                "{name}, compute capability {capability}, {multiprocessors} multiprocessors, {memory_mib} MiB{free}"
            );
            lines.push(line(&gpu.device, text));
        }
        lines.push(line("cuBLASLt", cuda.cublaslt.clone()));
        lines.push(line("--device auto", format!("{}, because {}", findings.auto.device, findings.auto.reason)));
        print(&columns(&lines))
    }
}

fn cuda() -> Result<Cuda> {
    let driver = gpu::driver_version();
    let gpus = (0..gpu::count()).map(|ordinal| {
        let gpu = gpu::Gpu::open(ordinal)?;
        let properties = gpu.properties();
        let (major, minor) = properties.capability;
        Ok(Gpu {
            device: format!("cuda:{ordinal}"),
            name: properties.name.clone(),
            capability: format!("{major}.{minor}"),
            multiprocessors: properties.multiprocessors,
            memory_mib: properties.memory >> 20,
            free_mib: gpu.free_memory().ok().map(|bytes| bytes >> 20),
        })
    });
    Ok(Cuda {
        compiler: embedded::compiler(),
        architectures: embedded::architectures(),
        kernels: embedded::files().iter().map(|file| file.name).collect(),
        driver: driver.as_ref().ok().map(|version| format!("{}.{}", version / 1000, version % 1000 / 10)),
        problem: driver.err(),
        gpus: gpus.collect::<Result<_>>()?,
        cublaslt: match cublaslt::find() {
            Ok((place, version)) => format!("{version} from {place}"),
            Err(why) => why,
        },
    })
}
