//! The benchmark: kernels and whole training steps at named sizes, on the data that a shape alone determines, against what the device can do
//! at best. One code path for the CPU, for a GPU and for the emulated one.
//!
//! - [`table`]: the rows, their sizes and names. `kernels`, `lstm`, `attention`, `steps`: their work. `work`: what that is made of.
//! - [`limits`]: the device's copy bandwidth and matrix rate. [`compare`]: an earlier result beside this one.
//! - [`counts`]: what can be counted without a GPU. `nvtx`: names for profilers.
//!
//! A time is that of many runs between two waits, divided by their number: on a GPU, whose launches run on their own, a run alone would be
//! measured with the wait. Operands rotate there, so that no run finds those of the one before in a cache.

mod attention;
pub mod compare;
pub mod counts;
mod kernels;
pub mod limits;
mod lstm;
pub mod nvtx;
mod steps;
pub mod table;
mod work;

use crate::backend::cuda::context::Context;
use crate::backend::cuda::driver::Graph;
use crate::backend::cuda::matmul::Arithmetic;
use crate::device::{Backend, Device};
use crate::error::Result;
use limits::{Limits, precision};
use nvtx::Nvtx;
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::{Kind, Spec};
use work::{Bench, Prepared};

/// A measured row.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub name: String,
    pub median_ms: f64,
    pub minimum_ms: f64,
    pub maximum_ms: f64,
    /// Half of the times are within so much, in per cent of the median.
    pub spread_percent: f64,
    /// Timed repetitions, after the untimed first ones; each of so many runs.
    pub repetitions: usize,
    pub runs: usize,
    pub precision: &'static str,
    /// Floating-point operations of the products, per run.
    pub operations: u64,
    pub gflops_per_second: f64,
    /// The least that must move between memory and processor, per run.
    pub bytes: u64,
    pub gb_per_second: f64,
    /// The shortest time that the device's limits allow; none where they were not measured.
    pub floor: Option<Floor>,
    /// Kernels that a GPU was given, per run.
    pub launches: u64,
    /// Steps that became graphs on a GPU, and how often one was run, of all runs of the row.
    pub graphs: u64,
    pub replays: u64,
    /// The largest sum of tensors on the device at one instant.
    pub peak_bytes: u64,
    /// What a GPU's memory held for that, as it was asked for: the arena, and what lasts. 0 on a CPU.
    pub held_bytes: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Floor {
    pub milliseconds: f64,
    pub bound: Bound,
    /// Of the median; 1 is the floor itself.
    pub share: f64,
}

/// Which limit makes the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Bytes over the copy bandwidth.
    Memory,
    /// Operations over the matrix rate.
    Arithmetic,
    /// Time steps that wait for one another, on a GPU.
    Latency,
}

/// How to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Repeat each row for about as long.
    pub duration: Duration,
    /// Run each row a single time, untimed ones left out: for profilers and for peak memory.
    pub once: bool,
}

/// Measures one row. Its floor wants the device's limits.
///
/// # Errors
/// If its sizes cannot be, or the device fails.
pub fn measure(device: &Device, spec: &Spec, options: Options, limits: Option<&Limits>, nvtx: &Nvtx) -> Result<Row> {
    // What an earlier row left is not this one's.
    device.trim();
    device.ledger().reset_peaks();
    let bench = Bench { device: device.clone(), rotate: !options.once };
    let mut prepared = prepare(&bench, spec)?;
    wait(device)?;
    let once = options.once || spec.kind == Kind::Epoch;
    let before = (device.operations(), launches(device));
    let graphs_before = graphs(device);
    let first = {
        let _range = nvtx.range(&spec.name());
        elapsed(device, || (prepared.run)(0))?
    };
    let operations = device.operations() - before.0;
    let launches = launches(device) - before.1;
    let (mut times, runs) = if once { (vec![first], 1) } else { repeat(device, &mut prepared, options, nvtx, spec)? };
    let (graphs, replays) = graphs(device);
    times.sort_by(f64::total_cmp);
    let at = |quarters: usize| times[(times.len() - 1) * quarters / 4] * 1e3;
    let median_ms = median(&times) * 1e3;
    let floor = limits.map(|limits| floor(device, &prepared, operations, limits, median_ms));
    Ok(Row {
        name: spec.name(),
        median_ms,
        minimum_ms: at(0),
        maximum_ms: at(4),
        spread_percent: (at(3) - at(1)) / median_ms * 100.0,
        repetitions: times.len(),
        runs,
        precision: precision(device.arithmetic()),
        operations,
        gflops_per_second: operations as f64 / median_ms / 1e6,
        bytes: prepared.bytes,
        gb_per_second: prepared.bytes as f64 / median_ms / 1e6,
        floor,
        launches,
        graphs: graphs - graphs_before.0,
        replays: replays - graphs_before.1,
        peak_bytes: device.ledger().peak_total(),
        held_bytes: held(device),
    })
}

/// Of sorted times, at least one: the middle one, or the mean of the two in the middle.
fn median(times: &[f64]) -> f64 {
    (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0
}

fn prepare(bench: &Bench, spec: &Spec) -> Result<Prepared> {
    match spec.kind {
        Kind::BlstmCtc
        | Kind::VggBlstmCtc
        | Kind::CtcAttention
        | Kind::Transformer
        | Kind::Saved
        | Kind::Epoch
        | Kind::AwdLstm
        | Kind::AwdSaved
        | Kind::TransformerEncoder => steps::prepare(bench, spec),
        Kind::Attention | Kind::AttentionForward | Kind::AttentionBackward => attention::prepare(bench, spec),
        Kind::Lstm | Kind::LstmLayer | Kind::LstmForward | Kind::LstmBackward => lstm::prepare(bench, spec),
        _ => kernels::prepare(bench, spec),
    }
}

/// Seconds of a run, once for every repetition, and how many runs each repetition is the mean of.
fn repeat(
    device: &Device,
    prepared: &mut Prepared,
    options: Options,
    nvtx: &Nvtx,
    spec: &Spec,
) -> Result<(Vec<f64>, usize)> {
    const FEWEST: usize = 3;
    const MOST: usize = 1000;
    let restore = |prepared: &mut Prepared| -> Result<()> {
        if let Some(restore) = &mut prepared.restore {
            restore();
        }
        wait(device)
    };
    if !prepared.launches_only && prepared.copies > 1 {
        // Recorded work is a graph from its second run on, on each copy.
        (0..2 * prepared.copies).try_for_each(|run| (prepared.run)(run % prepared.copies))?;
    }
    // The second untimed run: all caches are warm, and everything that is made once is there.
    restore(prepared)?;
    let second = elapsed(device, || (prepared.run)(prepared.copies - 1))?;
    let runs = runs(device, prepared, second);
    let copies = prepared.copies;
    let graph = match device.backend() {
        Backend::Cuda(context) if prepared.launches_only => Some(CapturedRuns::new(context, prepared, runs)?),
        _ => None,
    };
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < FEWEST || begin.elapsed() < options.duration && times.len() < MOST {
        restore(prepared)?;
        let _range = nvtx.range(&spec.name());
        let seconds = elapsed(device, || match &graph {
            Some(graph) => graph.replay(),
            None => (0..runs).try_for_each(|run| (prepared.run)(run % copies)),
        })?;
        times.push(seconds / runs as f64);
    }
    Ok((times, runs))
}

/// Runs between two waits: on a GPU enough for the wait to be lost among them, and no more than there are copies if each is spoilt by its run.
fn runs(device: &Device, prepared: &Prepared, seconds: f64) -> usize {
    const LONG: f64 = 5e-3;
    let Backend::Cuda(_) = device.backend() else { return 1 };
    let wanted = ((LONG / seconds.max(1e-6)).ceil() as usize).clamp(1, 512);
    if prepared.restore.is_some() { prepared.copies } else { wanted.next_multiple_of(prepared.copies) }
}

/// Many runs as one graph: what is timed is what the kernels take, not how fast a host launches them.
struct CapturedRuns {
    context: Arc<Context>,
    graph: Graph,
}

impl CapturedRuns {
    fn new(context: &Arc<Context>, prepared: &mut Prepared, runs: usize) -> Result<Self> {
        context.driver().begin_capture()?;
        let captured = (0..runs).try_for_each(|run| (prepared.run)(run % prepared.copies));
        let graph = context.driver().end_capture()?;
        let graph = CapturedRuns { context: context.clone(), graph };
        captured?;
        context.check()?;
        Ok(graph)
    }

    fn replay(&self) -> Result<()> {
        // SAFETY: the operands live in the prepared work, the arena's memory in the context, and neither moves before the graph is dropped.
        unsafe { self.context.driver().replay(self.graph) }
    }
}

impl Drop for CapturedRuns {
    fn drop(&mut self) {
        self.context.driver().release_graph(self.graph);
    }
}

/// Bytes of a GPU's memory that are in use for this program's tensors, and for what crosses.
fn held(device: &Device) -> u64 {
    match device.backend() {
        Backend::Cuda(context) => {
            let counters = context.counters();
            counters.arena_capacity + counters.lasting
        }
        _ => 0,
    }
}

/// Kernels launched on a GPU so far.
fn graphs(device: &Device) -> (u64, u64) {
    match device.backend() {
        Backend::Cuda(context) => {
            let counters = context.counters();
            (counters.graphs, counters.replays)
        }
        _ => (0, 0),
    }
}

fn launches(device: &Device) -> u64 {
    match device.backend() {
        Backend::Cuda(context) => context.counters().launches,
        _ => 0,
    }
}

/// Until all work is done.
fn wait(device: &Device) -> Result<()> {
    if let Backend::Cuda(context) = device.backend() {
        context.driver().synchronize()?;
    }
    device.check()
}

/// Seconds of some work, until it is done.
fn elapsed(device: &Device, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    wait(device)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Memory and processor can work at the same time; a step that waits for another cannot yet multiply.
fn floor(device: &Device, prepared: &Prepared, operations: u64, limits: &Limits, median_ms: f64) -> Floor {
    let arithmetic = operations as f64 / limits.rate(effective(device)).max(1.0) * 1e3;
    let memory = prepared.bytes as f64 / limits.copy_gb_per_second.max(1e-9) / 1e6;
    let waits = if matches!(device.backend(), Backend::Cuda(_)) { prepared.waits * 1e3 } else { 0.0 };
    let milliseconds = memory.max(arithmetic + waits);
    let bound = match () {
        () if memory >= arithmetic + waits => Bound::Memory,
        () if arithmetic >= waits => Bound::Arithmetic,
        () => Bound::Latency,
    };
    Floor { milliseconds, bound, share: milliseconds / median_ms }
}

fn effective(device: &Device) -> Arithmetic {
    match device.backend() {
        Backend::Cuda(_) => device.arithmetic(),
        _ => Arithmetic::F32,
    }
}

/// What frozen groups save of a step, beside what their weight gradients, clipping and optimiser take by themselves.
#[derive(Debug, Clone, Serialize)]
pub struct Saving {
    /// The frozen row.
    pub name: String,
    pub saved_ms: f64,
    pub work_ms: f64,
    /// 1: all of it.
    pub share: f64,
}

/// The savings that the rows show: of each frozen row whose joint row and saved row are there too.
pub fn savings(specs: &[Spec], rows: &[Row]) -> Vec<Saving> {
    let median = |name: &str| rows.iter().find(|row| row.name == name).map(|row| row.median_ms);
    let frozen = specs.iter().filter(|spec| spec.size("frozen") > 0);
    let saving = |spec: &Spec| {
        let saved = match spec.kind {
            Kind::BlstmCtc => Kind::Saved,
            Kind::AwdLstm => Kind::AwdSaved,
            _ => return None,
        };
        let joint = median(&spec.sibling(spec.kind, 0))?;
        let work_ms = median(&spec.sibling(saved, spec.size("frozen")))?;
        let saved_ms = joint - median(&spec.name())?;
        Some(Saving { name: spec.name(), saved_ms, work_ms, share: saved_ms / work_ms })
    };
    frozen.filter_map(saving).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure_small(device: &Device, spec: &Spec) -> Row {
        let options = Options { duration: Duration::ZERO, once: false };
        let limits = Limits {
            copy_gb_per_second: 100.0,
            tflops_per_second: vec![limits::Rate { precision: "f32".into(), tflops_per_second: 0.3, size: 1 }],
        };
        measure(device, spec, options, Some(&limits), &Nvtx::none()).unwrap()
    }

    #[test]
    fn the_median_of_an_even_number_of_times_is_the_mean_of_both_in_the_middle() {
        assert_eq!(median(&[1.0]), 1.0);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }

    fn small_rows() -> Vec<Spec> {
        Spec::all_small(&table::rows())
    }

    #[test]
    fn every_row_runs_on_the_cpu_and_has_a_floor() {
        let device = Device::cpu();
        for spec in small_rows() {
            let row = measure_small(&device, &spec);
            assert!(row.median_ms > 0.0 && row.repetitions >= 3, "{row:?}");
            assert!(row.floor.is_some_and(|floor| floor.milliseconds > 0.0), "{row:?}");
        }
    }

    #[cfg(feature = "emulator")]
    #[test]
    fn every_row_runs_on_the_emulated_gpu() {
        use crate::backend::cuda::emulator::{AVAILABLE, Order};
        if !AVAILABLE {
            println!("skipped: there is no C++ compiler, so no emulator");
            return;
        }
        let device = Device::emulator(Order::Forward);
        for spec in small_rows() {
            let row = measure_small(&device, &spec);
            assert!(row.median_ms > 0.0 && row.launches > 0 && row.held_bytes > 0, "{row:?}");
        }
    }

    #[test]
    fn the_step_counts_the_operations_that_the_reference_names() {
        // 1.275e11 for the joint step of 4x320 at B=16, T=200.
        let spec = &table::select(&["blstm-ctc/4x320/B16-T200/joint".into()]).unwrap()[0];
        let options = Options { duration: Duration::ZERO, once: true };
        let row = measure(&Device::plan(), spec, options, None, &Nvtx::none()).unwrap();
        let operations = row.operations as f64;
        assert!((operations / 1.275e11 - 1.0).abs() < 0.01, "{operations:e}");
    }

    #[test]
    fn what_frozen_groups_save_is_what_their_weight_gradients_take() {
        // Operations of the products: those of the joint step that a frozen one leaves out.
        let operations = |name: String| {
            let spec = &table::select(&[name]).unwrap()[0];
            let options = Options { duration: Duration::ZERO, once: true };
            measure(&Device::plan(), spec, options, None, &Nvtx::none()).unwrap().operations
        };
        let step = |stage: &str| operations(format!("blstm-ctc/4x320/B16-T200/{stage}"));
        let joint = step("joint");
        for frozen in 1..=4 {
            let saved = step(&format!("saved-{frozen}"));
            assert_eq!(joint - step(&format!("frozen-{frozen}")), saved, "{frozen} frozen groups");
        }
    }

    #[test]
    fn the_floor_is_the_slowest_of_what_must_happen() {
        let row = measure_small(&Device::cpu(), &table::select(&["add".into()]).unwrap()[0].small());
        // Three times 33 x 20 floats and 20 more at 100 GB/s.
        let floor = row.floor.unwrap();
        assert_eq!(floor.bound, Bound::Memory);
        assert!((floor.milliseconds - (3 * 33 * 20 + 20) as f64 * 4.0 / 1e8).abs() < 1e-12, "{floor:?}");
    }
}
