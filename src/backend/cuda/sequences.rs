//! What has to know which sequence and time a row belongs to: `kernels/sequences.cu`.

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::{THREADS, run};
use crate::random::Mask;

const FILE: &str = "sequences";
/// Accesses of four elements that a block makes: four for each of its threads.
const QUADS_PER_BLOCK: usize = 1024;

/// How sequences are packed ([`crate::ops::sequences`]), in device memory. Rows beyond the last offset belong to no sequence: a graph for
/// rounded-up sizes has them, with offsets that repeat the last.
#[derive(Debug, Clone, Copy)]
pub struct Packing {
    /// `[steps + 1]`, i32: the first row of every time, then the number of rows that sequences have.
    pub offsets: Pointer,
    /// `[sequences]`, i32: longest first.
    pub lengths: Pointer,
    pub steps: usize,
    /// Of the packed tensors: at least the last offset.
    pub rows: usize,
    pub sequences: usize,
}

/// Rows that a block takes, and the launch for all of them; each row of the block has `bytes` of shared memory.
fn by_rows(rows: usize, columns: usize, bytes: usize) -> (Launch, usize) {
    let rows_per_block = (QUADS_PER_BLOCK / columns.div_ceil(4)).clamp(1, THREADS as usize);
    let blocks = u32::try_from(rows.div_ceil(rows_per_block)).unwrap_or(u32::MAX);
    (Launch::blocks(blocks, THREADS).shared(rows_per_block * bytes), rows_per_block)
}

/// y = mask x, with the bits of `backend::cpu::dropout`; both `[rows, columns]`, and they may be the same: backward is this with
/// gradients. Rows of no sequence become zero.
pub fn dropout(context: &Context, x: Pointer, y: Pointer, packing: &Packing, columns: usize, mask: &Mask) {
    dropout_at(context, x, y, packing, columns, mask, false, None);
}

/// [`dropout`] at the step that the u64 at `counter` says (its lower 32 bits) when the kernel runs, instead of the mask's: for graphs.
/// `locked`: the mask of time 0 at all times.
#[allow(clippy::too_many_arguments)] // Two tensors with their packing, and what the mask depends on.
pub fn dropout_at(
    context: &Context,
    x: Pointer,
    y: Pointer,
    packing: &Packing,
    columns: usize,
    mask: &Mask,
    locked: bool,
    counter: Option<Pointer>,
) {
    if packing.rows == 0 || columns == 0 {
        return;
    }
    let (launch, rows_per_block) = by_rows(packing.rows, columns, 2 * size_of::<i32>());
    let [low, high, threshold, scale, step, counter] = mask_arguments(context, mask, counter);
    let arguments = [
        Argument::Pointer(y),
        Argument::Pointer(x),
        Argument::Pointer(packing.offsets),
        Argument::int(packing.steps),
        Argument::int(packing.rows),
        Argument::int(columns),
        Argument::int(rows_per_block),
        Argument::flag(locked),
        low,
        high,
        threshold,
        scale,
        step,
        counter,
    ];
    run(context, FILE, "sequences_dropout", &launch, &arguments);
}

/// A mask as kernels take it: key, threshold, scale, step, counter. In a recorded step the counter is what was brought in for it.
pub(super) fn mask_arguments(context: &Context, mask: &Mask, counter: Option<Pointer>) -> [Argument; 6] {
    let [low, high] = mask.philox.key();
    let counter = counter.or_else(|| context.bring_number(u64::from(mask.step)));
    [
        Argument::Unsigned(low),
        Argument::Unsigned(high),
        Argument::Unsigned(mask.threshold),
        Argument::Float(mask.scale),
        Argument::Unsigned(if counter.is_some() { 0 } else { mask.step }),
        Argument::Pointer(counter.unwrap_or(0)),
    ]
}

/// y = scale x + p(first + time), the sines and cosines of `ops::positions`; both `[rows, columns]`. Rows of no sequence become zero.
pub fn positions(
    context: &Context,
    x: Pointer,
    y: Pointer,
    packing: &Packing,
    columns: usize,
    scale: f32,
    first: usize,
) {
    if packing.rows == 0 || columns == 0 {
        return;
    }
    let threads = columns.div_ceil(2).next_multiple_of(32).min(THREADS as usize) as u32;
    let launch = Launch::blocks(u32::try_from(packing.steps + 1).unwrap_or(u32::MAX), threads);
    let arguments = [
        Argument::Pointer(y),
        Argument::Pointer(x),
        Argument::Pointer(packing.offsets),
        Argument::int(packing.steps),
        Argument::int(packing.rows),
        Argument::int(columns),
        Argument::Float(scale),
        Argument::int(first),
    ];
    run(context, FILE, "sequences_positions", &launch, &arguments);
}

/// y = every `factor`-th frame of every sequence, the first always; x: `[all.rows, columns]`, y: `[kept.rows, columns]`. Rows of no
/// sequence become zero.
pub fn subsample(
    context: &Context,
    x: Pointer,
    y: Pointer,
    all: &Packing,
    kept: &Packing,
    factor: usize,
    columns: usize,
) {
    if kept.rows == 0 || columns == 0 {
        return;
    }
    let (launch, rows_per_block) = by_rows(kept.rows, columns, size_of::<i32>());
    let arguments = [
        Argument::Pointer(y),
        Argument::Pointer(x),
        Argument::Pointer(all.offsets),
        Argument::Pointer(kept.offsets),
        Argument::int(kept.steps),
        Argument::int(kept.rows),
        Argument::int(columns),
        Argument::int(rows_per_block),
        Argument::int(factor),
    ];
    run(context, FILE, "sequences_subsample", &launch, &arguments);
}

/// dx = dy where a frame was kept and zero elsewhere, or, accumulating, dx += that; dx: `[all.rows, columns]`, dy: `[kept.rows, columns]`.
#[allow(clippy::too_many_arguments)] // Two tensors, each with its packing.
pub fn subsample_backward(
    context: &Context,
    dy: Pointer,
    dx: Pointer,
    all: &Packing,
    kept: &Packing,
    factor: usize,
    columns: usize,
    accumulate: bool,
) {
    if all.rows == 0 || columns == 0 {
        return;
    }
    let (launch, rows_per_block) = by_rows(all.rows, columns, size_of::<i32>());
    let arguments = [
        Argument::Pointer(dx),
        Argument::Pointer(dy),
        Argument::Pointer(all.offsets),
        Argument::Pointer(kept.offsets),
        Argument::int(all.steps),
        Argument::int(all.rows),
        Argument::int(columns),
        Argument::int(rows_per_block),
        Argument::int(factor),
        Argument::flag(accumulate),
    ];
    run(context, FILE, "sequences_subsample_backward", &launch, &arguments);
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::testing::{BOTH_ALIGNMENTS, Device, OnDevice, for_all_orders};
    use super::*;
    use crate::backend::cpu;
    use crate::backend::cpu::testing::{offsets, random};
    use crate::random::Philox;

    const LENGTHS: [&[usize]; 5] = [&[1], &[5, 4, 1], &[40, 33, 33, 7, 2, 1], &[300, 150], &[]];
    const COLUMNS: [usize; 6] = [1, 3, 4, 50, 320, 1301];

    /// A packing whose steps and rows are rounded up, as a graph has it; its offsets live in `.1`.
    fn packed(device: &Device, lengths: &[usize], round: bool) -> (Packing, OnDevice<i32>) {
        let mut offsets: Vec<i32> = offsets(lengths).into_iter().map(|offset| offset as i32).collect();
        let rows = offsets[offsets.len() - 1];
        if round {
            offsets.extend([rows; 3]);
        }
        let (steps, rows) = (offsets.len() - 1, rows as usize + if round { 5 } else { 0 });
        let offsets = device.upload(&offsets);
        (Packing { offsets: offsets.pointer(), lengths: 0, steps, rows, sequences: lengths.len() }, offsets)
    }

    fn mask(step: u32) -> Mask {
        Mask { philox: Philox::new(0x0123_4567_89ab_cdef), step, threshold: 0x6000_0000, scale: 1.6 }
    }

    /// `x` with rows of no sequence behind, which hold numbers.
    fn extended(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        let mut x = x.to_vec();
        x.resize(rows * columns, 7.5);
        x
    }

    #[test]
    fn dropout_draws_the_masks_of_the_cpu_to_the_bit() {
        for_all_orders(|device| {
            for (lengths, columns) in LENGTHS.into_iter().flat_map(|lengths| COLUMNS.map(|columns| (lengths, columns)))
            {
                let rows = lengths.iter().sum::<usize>();
                let x = random(rows * columns, 3);
                let mut expected = vec![0.0; x.len()];
                cpu::dropout::apply(&x, &mut expected, &offsets(lengths), columns, &mask(17));
                for (round, shift) in [(false, 0), (true, 0), (false, 1)] {
                    let (packing, _offsets) = packed(device, lengths, round);
                    let input = device.shifted(&extended(&x, packing.rows, columns), shift);
                    let output = device.poisoned::<f32>(packing.rows * columns, shift);
                    dropout(&device.context, input.pointer(), output.pointer(), &packing, columns, &mask(17));
                    let result = output.values();
                    assert_eq!(result[..x.len()], expected, "{lengths:?} x {columns}");
                    assert!(result[x.len()..].iter().all(|&x| x == 0.0), "rows of no sequence become zero");
                    // In place, as backward does it.
                    dropout(&device.context, input.pointer(), input.pointer(), &packing, columns, &mask(17));
                    assert_eq!(input.values(), result);
                }
            }
        });
    }

    #[test]
    fn a_captured_dropout_draws_the_mask_of_the_step_that_the_counter_says() {
        let Some(device) = Device::new() else { return };
        let (lengths, columns) = ([9, 4, 4], 21);
        let x = random(17 * columns, 1);
        let (packing, _offsets) = packed(&device, &lengths, true);
        let input = device.upload(&extended(&x, packing.rows, columns));
        let output = device.poisoned::<f32>(packing.rows * columns, 0);
        let counter = device.upload(&[0_u64]);
        let driver = device.context.driver();
        let (from, to, at) = (input.pointer(), output.pointer(), Some(counter.pointer()));
        let drop = || dropout_at(&device.context, from, to, &packing, columns, &mask(0), false, at);
        // A kernel's first use loads it, which a GPU refuses while a graph is captured.
        drop();
        output.write(&vec![f32::NAN; packing.rows * columns]);
        driver.begin_capture().unwrap();
        drop();
        let graph = driver.end_capture().unwrap();
        // Only the lower half counts: masks repeat after 2^32 steps.
        for step in [0_u64, 1, 5, (1 << 32) + 5] {
            counter.write(&[step]);
            // SAFETY: all that the graph names is still there.
            unsafe { driver.replay(graph) }.unwrap();
            let mut expected = vec![0.0; x.len()];
            cpu::dropout::apply(&x, &mut expected, &offsets(&lengths), columns, &mask(step as u32));
            assert_eq!(output.values()[..x.len()], expected, "step {step}");
        }
        driver.release_graph(graph);
    }

    #[test]
    fn dropout_with_probability_zero_changes_nothing() {
        let Some(device) = Device::new() else { return };
        let (packing, _offsets) = packed(&device, &[3, 2], false);
        let x = random(5 * 7, 1);
        let buffer = device.upload(&x);
        let none = Mask { threshold: 0, scale: 1.0, ..mask(0) };
        dropout(&device.context, buffer.pointer(), buffer.pointer(), &packing, 7, &none);
        assert_eq!(buffer.values(), x);
    }

    #[test]
    fn subsampling_moves_the_rows_that_the_cpu_moves_and_its_backward_moves_them_back() {
        for_all_orders(|device| {
            for (lengths, columns) in LENGTHS.into_iter().flat_map(|lengths| COLUMNS.map(|columns| (lengths, columns)))
            {
                for (factor, round) in [(1, false), (2, false), (2, true), (3, true), (1000, false)] {
                    let kept_lengths: Vec<usize> = lengths.iter().map(|length| length.div_ceil(factor)).collect();
                    let (from, to) = (offsets(lengths), offsets(&kept_lengths));
                    let ((all, _all), (kept, _kept)) =
                        (packed(device, lengths, round), packed(device, &kept_lengths, round));
                    // The row before subsampling of every row behind it.
                    let sources: Vec<usize> = (0..to.len() - 1)
                        .flat_map(|time| (0..to[time + 1] - to[time]).map(move |sequence| (time, sequence)))
                        .map(|(time, sequence)| from[time * factor] + sequence)
                        .collect();
                    let shift = BOTH_ALIGNMENTS[usize::from(round)];

                    let x = random(all.rows * columns, 1);
                    let (input, output) =
                        (device.shifted(&x, shift), device.poisoned::<f32>(kept.rows * columns, shift));
                    subsample(&device.context, input.pointer(), output.pointer(), &all, &kept, factor, columns);
                    let mut expected = vec![0.0; kept.rows * columns];
                    for (row, source) in sources.iter().enumerate() {
                        expected[row * columns..][..columns].copy_from_slice(&x[source * columns..][..columns]);
                    }
                    assert_eq!(output.values(), expected, "{lengths:?} x {columns} by {factor}");

                    let (dy, before) = (random(kept.rows * columns, 2), random(all.rows * columns, 3));
                    let gradient = device.shifted(&dy, shift);
                    for accumulate in [false, true] {
                        let result = device.shifted(&before, shift);
                        let (dy_pointer, dx) = (gradient.pointer(), result.pointer());
                        subsample_backward(&device.context, dy_pointer, dx, &all, &kept, factor, columns, accumulate);
                        let mut expected = if accumulate { before.clone() } else { vec![0.0; before.len()] };
                        for (row, source) in sources.iter().enumerate() {
                            let sums = expected[source * columns..][..columns].iter_mut();
                            sums.zip(&dy[row * columns..]).for_each(|(sum, dy)| *sum += dy);
                        }
                        assert_eq!(result.values(), expected, "backward of {lengths:?} x {columns} by {factor}");
                    }
                }
            }
        });
    }
}
