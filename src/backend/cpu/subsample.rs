//! Frame subsampling on packed rows. A time step's rows are one contiguous block, before and after, since the sequences keep their order.
//!
//! Both directions are copies and nothing else: 54 MB a batch of AN4 behind the lowest BLSTM, so threads share the time steps.

use rayon::prelude::*;

/// Time steps that a thread takes at least.
const STEPS: usize = 8;

/// The rows of every `factor`-th time step of x: `[R, columns]` packed at `all`, to `[R', columns]` packed at `kept`.
pub fn subsample(x: &[f32], output: &mut [f32], all: &[usize], kept: &[usize], factor: usize, columns: usize) {
    by_step(output, kept, columns).for_each(|(time, to)| {
        let from = all[time * factor] * columns;
        to.copy_from_slice(&x[from..from + to.len()]);
    });
}

/// Sends the gradient of the output back: to the kept rows, zeros to the others; or, accumulating, adds it to what is there.
pub fn subsample_backward(
    gradient: &[f32],
    input_gradient: &mut [f32],
    all: &[usize],
    kept: &[usize],
    factor: usize,
    columns: usize,
    accumulate: bool,
) {
    by_step(input_gradient, all, columns).for_each(|(time, sums)| {
        let from = if time % factor == 0 { kept[time / factor]..kept[time / factor + 1] } else { 0..0 };
        let gradient = &gradient[from.start * columns..from.end * columns];
        if accumulate {
            sums.iter_mut().zip(gradient).for_each(|(sum, x)| *sum += x);
        } else {
            let (kept, rest) = sums.split_at_mut(gradient.len());
            kept.copy_from_slice(gradient);
            rest.fill(0.0);
        }
    });
}

/// The rows of every time step, for several threads.
fn by_step<'a>(
    mut rows: &'a mut [f32],
    offsets: &[usize],
    columns: usize,
) -> impl IndexedParallelIterator<Item = (usize, &'a mut [f32])> {
    let mut steps = Vec::with_capacity(offsets.len());
    for pair in offsets.windows(2) {
        let (step, behind) = rows.split_at_mut((pair[1] - pair[0]) * columns);
        steps.push(step);
        rows = behind;
    }
    steps.into_par_iter().enumerate().with_min_len(STEPS)
}
