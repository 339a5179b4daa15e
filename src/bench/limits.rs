//! What a device can do at best, measured on it: how fast it copies memory, and how fast it multiplies matrices.

use super::work::{Bench, floats};
use super::{elapsed, wait};
use crate::backend::cuda::matmul::Arithmetic;
use crate::device::{Backend, Device};
use crate::error::Result;
use crate::primitives::{self, Factor};
use crate::tensor::Tensor;
use rayon::prelude::*;
use serde::Serialize;
use std::time::Duration;

/// Long enough for a clock to be exact and a processor to be at its speed.
const LONG_ENOUGH: Duration = Duration::from_millis(25);
/// Beyond every cache, source and target together.
const LARGEST_COPY: usize = 1 << 30;
const LARGEST_SIDE: usize = 8192;

#[derive(Debug, Clone, Serialize)]
pub struct Limits {
    /// Bytes read and bytes written, in 10^9 a second.
    pub copy_gb_per_second: f64,
    /// Of products of square matrices, by arithmetic.
    pub tflops_per_second: Vec<Rate>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    pub precision: String,
    pub tflops_per_second: f64,
    /// Rows of the matrices.
    pub size: usize,
}

/// As `--precision` names it.
pub fn precision(arithmetic: Arithmetic) -> &'static str {
    match arithmetic {
        Arithmetic::F32 => "f32",
        Arithmetic::Tf32 => "tf32",
        Arithmetic::Bf16 => "bf16",
    }
}

impl Limits {
    /// Measures with growing sizes until a run takes long enough, so that an emulator has soon done and a GPU is filled.
    ///
    /// # Errors
    /// If the device fails.
    pub fn measure(device: &Device) -> Result<Self> {
        let chosen = device.arithmetic();
        let all: &[Arithmetic] = match device.backend() {
            Backend::Cuda(_) => &[Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16],
            _ => &[Arithmetic::F32],
        };
        let mut rates = Vec::new();
        for &arithmetic in all {
            device.set_arithmetic(arithmetic);
            let measured = matrix_rate(device);
            device.set_arithmetic(chosen);
            let (size, rate) = measured?;
            rates.push(Rate { precision: precision(arithmetic).into(), tflops_per_second: rate / 1e12, size });
        }
        Ok(Limits { copy_gb_per_second: copy_bandwidth(device)? / 1e9, tflops_per_second: rates })
    }

    /// Operations a second in this arithmetic.
    pub fn rate(&self, arithmetic: Arithmetic) -> f64 {
        let name = precision(arithmetic);
        self.tflops_per_second
            .iter()
            .find(|rate| rate.precision == name)
            .map_or(0.0, |rate| rate.tflops_per_second * 1e12)
    }
}

/// Seconds of a run, the shortest of some repetitions. Each is of several runs, so that the wait at its end is lost among them.
fn shortest(device: &Device, mut run: impl FnMut()) -> Result<f64> {
    const REPETITIONS: usize = 3;
    const RUNS: usize = 4;
    let mut best = f64::INFINITY;
    for _ in 0..REPETITIONS {
        let seconds = elapsed(device, || {
            (0..RUNS).for_each(|_| run());
            Ok(())
        })?;
        best = best.min(seconds / RUNS as f64);
    }
    Ok(best)
}

fn copy_bandwidth(device: &Device) -> Result<f64> {
    let mut bytes = 1 << 16;
    loop {
        let elements = bytes / floats(1);
        let bench = Bench { device: device.clone(), rotate: false };
        let (from, mut to) = (bench.normal(&[elements], "copy"), bench.room(&[elements]));
        let first = elapsed(device, || {
            copy(&from, &mut to);
            Ok(())
        })?;
        if bytes >= LARGEST_COPY || first > LONG_ENOUGH.as_secs_f64() {
            return Ok(2.0 * bytes as f64 / shortest(device, || copy(&from, &mut to))?);
        }
        bytes *= 2;
    }
}

fn copy(from: &Tensor, to: &mut Tensor) {
    const TASK: usize = 1 << 18;
    match from.device().clone().backend() {
        Backend::Cpu => {
            let tasks = to.data_mut().par_chunks_mut(TASK).zip(from.data().par_chunks(TASK));
            tasks.for_each(|(to, from)| to.copy_from_slice(from));
        }
        Backend::Cuda(context) => context.copy(to.buffer(), from.buffer(), floats(from.len())),
        Backend::Plan => {}
    }
}

/// The rows of square matrices, and operations a second with these.
fn matrix_rate(device: &Device) -> Result<(usize, f64)> {
    let mut side = 32;
    loop {
        let bench = Bench { device: device.clone(), rotate: false };
        let (a, b) = (bench.normal(&[side, side], "a"), bench.normal(&[side, side], "b"));
        let mut c = bench.room(&[side, side]);
        let mut run = || {
            let (a, b) = (Factor::rows(&a, side), Factor::rows(&b, side).transposed());
            primitives::product((side, side, side), a, b, &mut c, false);
        };
        run();
        wait(device)?;
        let first = elapsed(device, || {
            run();
            Ok(())
        })?;
        if side >= LARGEST_SIDE || first > LONG_ENOUGH.as_secs_f64() {
            let seconds = if first > 10.0 * LONG_ENOUGH.as_secs_f64() { first } else { shortest(device, &mut run)? };
            return Ok((side, 2.0 * (side as f64).powi(3) / seconds));
        }
        side *= 2;
    }
}
