//! `headfirst bench`.

use crate::bench::{self, Options, Row};
use crate::cli::Common;
use crate::cli::output::{print, print_json};
use crate::error::Result;
use crate::table::{bytes, columns};
use crate::train::signals::write_standard_error;
use clap::Args;
use serde::Serialize;
use std::time::Duration;

/// Measure operations and whole training steps on this device
///
/// The rows are of named sizes; a row's time is the median of its repetitions.
#[derive(Args)]
pub struct Bench {
    /// Rows, or the beginnings of their names (default: all)
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Run each row a single time, without a first untimed run: for profilers and for peak memory
    #[arg(long)]
    once: bool,
    /// Repeat each row for about so many seconds
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    seconds: f64,
}

#[derive(Serialize)]
struct Measured {
    device: String,
    threads: usize,
    rows: Vec<Row>,
}

impl Bench {
    pub fn run(self, common: &Common) -> Result<()> {
        let device = common.open_device()?;
        let duration = Duration::try_from_secs_f64(self.seconds).unwrap_or(Duration::from_secs(3));
        let mut rows = Vec::new();
        for name in bench::select(&self.names)? {
            if !common.quiet && !self.json {
                write_standard_error(name);
            }
            rows.push(bench::measure(&device, name, Options { duration, once: self.once })?);
        }
        let threads = rayon::current_num_threads();
        if self.json {
            return print_json(&Measured { device: device.to_string(), threads, rows });
        }
        let mut lines = vec![["name", "median ms", "min", "max", "n", "GFLOP/s", "peak"].map(String::from).to_vec()];
        lines.extend(rows.iter().map(|row| {
            vec![
                row.name.clone(),
                format!("{:.2}", row.median_ms),
                format!("{:.2}", row.minimum_ms),
                format!("{:.2}", row.maximum_ms),
                row.repetitions.to_string(),
                format!("{:.1}", row.gflops_per_second),
                bytes(row.peak_bytes),
            ]
        }));
        print(&format!("{device}, {threads} threads\n{}", columns(&lines)))
    }
}
