//! `headfirst doctor`.

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
    kernels_embedded: bool,
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
            cuda: Cuda { kernels_embedded: false },
            auto: Auto { device: auto.to_string(), reason },
        };
        if self.json {
            return print_json(&findings);
        }
        let line = |name: &str, value: String| vec![format!("{name}: {value}")];
        print(&columns(&[
            line("headfirst", findings.version.into()),
            line("CPU", format!("{} threads, {}", findings.cpu.threads, findings.cpu.instructions)),
            line("CUDA", "this binary was built without CUDA kernels".into()),
            line("--device auto", format!("{}, because {}", findings.auto.device, findings.auto.reason)),
        ]))
    }
}
