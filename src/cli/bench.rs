//! `headfirst bench`.

use crate::backend::cuda::matmul::Arithmetic;
use crate::bench::compare::{Change, Earlier};
use crate::bench::limits::Limits;
use crate::bench::nvtx::Nvtx;
use crate::bench::table::{Spec, select};
use crate::bench::{self, Bound, Options, Row, Saving, measure};
use crate::cli::Common;
use crate::cli::output::{print, print_json};
use crate::device::{Backend, Device};
use crate::error::{Error, Result};
use crate::table::{bytes, columns};
use crate::train::signals::write_standard_error;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

/// Measure kernels and whole training steps on this device, against what it can do at best
///
/// First the device's copy bandwidth and matrix rate, then the rows, each of a named size. A row's time is the median of its repetitions; "floor"
/// is how much of that the limits ask for at least: its bytes over the bandwidth, its products' operations over the matrix rate or, for time
/// steps that wait for one another, 0.6 microseconds each on a GPU. At 100 % nothing is left to gain.
///
/// For profilers: `nsys profile headfirst bench NAME --once`. Every row is then an NVTX range of its name, if CUDA's libnvToolsExt is found.
#[derive(Args)]
pub struct Bench {
    /// Rows, or the beginnings of their names (default: all but the epochs `wsj-epoch`)
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Change sizes of the rows: B sequences, T time steps, H units, ...; the names say which they have
    #[arg(long, value_name = "B=N,T=N,...", value_delimiter = ',')]
    set: Vec<String>,
    /// Arithmetic of products on a GPU
    #[arg(long, value_enum, value_name = "PRECISION", default_value = "f32")]
    precision: Precision,
    /// Lay an earlier result, of --json, beside this one
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Run each row a single time, without an untimed run and without measuring the limits: for profilers and for peak memory
    #[arg(long)]
    once: bool,
    /// Take every row at a few units and frames: to see that all work, or for tools that make them slow
    #[arg(long, conflicts_with = "set")]
    small: bool,
    /// Print what training steps ask of a GPU, counted without one, as docs/results/counts.md has it, and end
    #[arg(long, conflicts_with_all = ["names", "set", "small", "json"])]
    counts: bool,
    /// Print the names of the rows, and end
    #[arg(long)]
    list: bool,
    /// Repeat each row for about so many seconds
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS", allow_negative_numbers = true)]
    seconds: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Precision {
    F32,
    Tf32,
    Bf16,
}

impl From<Precision> for Arithmetic {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Arithmetic::F32,
            Precision::Tf32 => Arithmetic::Tf32,
            Precision::Bf16 => Arithmetic::Bf16,
        }
    }
}

#[derive(Serialize)]
struct Measured {
    device: String,
    /// The GPU's own name.
    gpu: Option<String>,
    threads: usize,
    limits: Option<Limits>,
    rows: Vec<Row>,
    savings: Vec<Saving>,
    /// With --compare.
    changes: Vec<Change>,
    /// The most that the device's memory held for this program, as the program asked for it.
    arena_bytes: Option<u64>,
}

/// The rows of --list, as those of a measurement are called.
#[derive(Serialize)]
struct List {
    rows: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    name: String,
}

impl Bench {
    pub fn run(self, common: &Common) -> Result<()> {
        if self.counts {
            return print(&bench::counts::report()?);
        }
        let specs = Spec::resize(select(&self.names)?, &self.set)?;
        let specs = if self.small { Spec::all_small(&specs) } else { specs };
        if self.list {
            let rows: Vec<Listed> = specs.iter().map(|spec| Listed { name: spec.name() }).collect();
            return match self.json {
                true => print_json(&List { rows }),
                false => print(&rows.into_iter().map(|row| row.name + "\n").collect::<String>()),
            };
        }
        let duration = self.duration()?;
        let earlier = self.compare.as_deref().map(Earlier::read).transpose()?;
        let device = common.open_device()?;
        self.set_precision(&device)?;
        let say = |what: &str| {
            if !common.quiet && !self.json {
                write_standard_error(what);
            }
        };
        let limits = if self.once {
            None
        } else {
            say("limits");
            Some(Limits::measure(&device)?)
        };
        let options = Options { duration, once: self.once };
        let nvtx = Nvtx::load();
        let mut rows = Vec::new();
        for spec in &specs {
            say(&spec.name());
            rows.push(measure(&device, spec, options, limits.as_ref(), &nvtx)?);
        }
        let changes = rows.iter().filter_map(|row| earlier.as_ref()?.change(row)).collect();
        let context = match device.backend() {
            Backend::Cuda(context) => Some(context),
            _ => None,
        };
        let measured = Measured {
            device: device.to_string(),
            gpu: context.map(|context| context.properties().name.clone()),
            threads: rayon::current_num_threads(),
            limits,
            savings: bench::savings(&specs, &rows),
            rows,
            changes,
            arena_bytes: context.map(|context| context.counters().arena_capacity),
        };
        if self.json {
            return print_json(&measured);
        }
        print(&measured.text(earlier.as_ref()))
    }

    fn duration(&self) -> Result<Duration> {
        Duration::try_from_secs_f64(self.seconds).map_err(|_| {
            Error::key("--seconds", format!("{} is no time to repeat a row for", self.seconds))
                .remedy("Use a number from 0, for example 3")
        })
    }

    fn set_precision(&self, device: &Device) -> Result<()> {
        match (device.backend(), self.precision) {
            (Backend::Cuda(_), precision) => device.set_arithmetic(precision.into()),
            (_, Precision::F32) => {}
            _ => {
                return Err(Error::key("--precision", format!("{device} computes in f32 alone"))
                    .remedy("Leave it out, or use --device cuda"));
            }
        }
        Ok(())
    }
}

/// A time with three digits, in its unit.
fn time(milliseconds: f64) -> String {
    let (value, unit) = if milliseconds < 1.0 { (milliseconds * 1e3, "us") } else { (milliseconds, "ms") };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

/// A bar of `share`, in eighths of a character.
fn bar(share: f64) -> String {
    const WIDTH: usize = 10;
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (share.clamp(0.0, 1.0) * (8 * WIDTH) as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(EIGHTHS[eighths % 8]);
    }
    format!("{bar:<WIDTH$}")
}

impl Measured {
    fn text(&self, earlier: Option<&Earlier>) -> String {
        let mut text = format!("{}{}, {} threads\n", self.device, self.gpu_name(), self.threads);
        if let Some(limits) = &self.limits {
            let rates = limits.tflops_per_second.iter().map(|rate| match rate.tflops_per_second {
                tera if tera < 1.0 => format!("{} {:.0} GFLOP/s", rate.precision, 1e3 * tera),
                tera => format!("{} {tera:.1} TFLOP/s", rate.precision),
            });
            let rates = rates.collect::<Vec<_>>().join(", ");
            let _ = writeln!(text, "copies {:.1} GB/s; products {rates}", limits.copy_gb_per_second);
        }
        text += "\n";
        text += &columns(&self.lines(earlier.is_some()));
        for Saving { name, saved_ms, work_ms, share } in &self.savings {
            let _ = writeln!(
                text,
                "{name} saves {} of the joint step: {:.0} % of the {} that its weight gradients, clipping and optimiser take",
                time(*saved_ms),
                100.0 * share,
                time(*work_ms)
            );
        }
        if let Some(earlier) = earlier.filter(|earlier| earlier.device != self.device) {
            let _ = writeln!(text, "the earlier result is of {}", earlier.device);
        }
        text
    }

    fn gpu_name(&self) -> String {
        self.gpu.as_ref().map_or(String::new(), |gpu| format!(" ({gpu})"))
    }

    fn lines(&self, compared: bool) -> Vec<Vec<String>> {
        let bars = std::io::stdout().is_terminal();
        let tera = self.in_teraflops();
        let rate = if tera { "TFLOP/s" } else { "GFLOP/s" };
        let mut head = vec!["name", "median", "spread", "n", "GB/s", rate, "of floor", "bound", "peak"];
        if bars {
            head.insert(7, "");
        }
        if compared {
            head.extend(["before", "change"]);
        }
        let mut lines = vec![head.into_iter().map(String::from).collect()];
        lines.extend(self.rows.iter().map(|row| self.line(row, tera, bars, compared)));
        lines
    }

    /// On a GPU, or where the numbers would be long.
    fn in_teraflops(&self) -> bool {
        const LONG: f64 = 1e4;
        self.gpu.is_some() || self.rows.iter().any(|row| row.gflops_per_second >= LONG)
    }

    fn line(&self, row: &Row, tera: bool, bars: bool, compared: bool) -> Vec<String> {
        let number = |value: f64| if value > 0.0 { format!("{value:.1}") } else { "-".into() };
        let rate = match row.gflops_per_second {
            rate if tera && rate > 0.0 => format!("{:.2}", rate / 1e3),
            rate => number(rate),
        };
        let floor = row.floor.as_ref();
        let mut line = vec![
            row.name.clone(),
            time(row.median_ms),
            if row.repetitions > 1 { format!("{:.1} %", row.spread_percent) } else { "-".into() },
            row.repetitions.to_string(),
            number(row.gb_per_second),
            rate,
            floor.map_or("-".into(), |floor| format!("{:.0} %", 100.0 * floor.share)),
        ];
        if bars {
            line.push(floor.map_or(String::new(), |floor| bar(floor.share)));
        }
        let bound = floor.map_or("-", |floor| match floor.bound {
            Bound::Memory => "memory",
            Bound::Arithmetic => "arithmetic",
            Bound::Latency => "latency",
        });
        line.extend([bound.into(), bytes(row.peak_bytes)]);
        if compared {
            let change = self.changes.iter().find(|change| change.name == row.name);
            line.extend([
                change.map_or("-".into(), |change| time(change.before_ms)),
                change.map_or("-".into(), |change| {
                    let mark = if change.beyond_noise { "" } else { " ~" };
                    format!("{:+.1} %{mark}", 100.0 * (change.ratio - 1.0))
                }),
            ]);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(gpu: Option<&str>, gflops_per_second: f64) -> String {
        let row = Row {
            name: "matmul".into(),
            median_ms: 1.0,
            minimum_ms: 1.0,
            maximum_ms: 1.0,
            spread_percent: 0.0,
            repetitions: 3,
            runs: 1,
            precision: "f32",
            operations: 1,
            gflops_per_second,
            bytes: 1,
            gb_per_second: 1.0,
            floor: None,
            launches: 0,
            graphs: 0,
            replays: 0,
            peak_bytes: 0,
            held_bytes: 0,
        };
        let measured = Measured {
            device: "device".into(),
            gpu: gpu.map(String::from),
            threads: 1,
            limits: None,
            rows: vec![row],
            savings: vec![],
            changes: vec![],
            arena_bytes: None,
        };
        measured.text(None)
    }

    #[test]
    fn rates_of_a_gpu_and_long_ones_are_in_teraflops() {
        for (gpu, gflops, head, cell) in [
            (None, 338.2, "GFLOP/s", "338.2"),
            (None, 12_345.0, "TFLOP/s", "12.35"),
            (Some("H200"), 612_345.0, "TFLOP/s", "612.35"),
            (Some("H200"), 0.0, "TFLOP/s", "-"),
        ] {
            let text = measured(gpu, gflops);
            assert!(text.contains(head) && text.contains(cell), "{text}");
        }
    }
}
