//! What is done to every element by itself, and sums over all elements or down columns: `kernels/elementwise.cu`.
//!
//! Here and in the other files of operations, a [`Pointer`] names device memory that holds as many f32 elements as the documentation says,
//! and lives until the work is done; operands may be the same memory only where it says so. Work is put in order behind what was launched
//! before; nothing waits, and nothing allocates: workspaces come from the caller, of as many bytes as the function beside it says.

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::matmul::{Operand, Storage};
use crate::backend::cpu::activation::Activation;

const FILE: &str = "elementwise";
/// Threads of a block, here and in the kernels.
pub(super) const THREADS: u32 = 256;
/// Blocks for each multiprocessor, of which 5 to 8 run at the same time; beyond, threads stride. Several rounds of blocks, so that the last one,
/// which leaves multiprocessors idle, is a small part.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 32;

/// Elements that one block sums.
const SUM_SLICE: usize = 8192;
/// The threads of a block that sums partial sums, and bytes of the scratch memory with which a block sums in f64.
const TOTAL_THREADS: u32 = 1024;
const SUM_SCRATCH: usize = 32 * size_of::<f64>();

/// Columns and rows that one block of column sums takes, and its threads (`kernels/column_sums.cuh`).
const TILE_COLUMNS: usize = 128;
const TILE_ROWS: usize = 128;
const TILE_THREADS: u32 = 256;
/// Columns of a block that sums over the slabs.
const TOTAL_COLUMNS: usize = 32;

/// Runs a kernel of this backend.
pub(super) fn run(
    context: &Context,
    file: &'static str,
    kernel: &'static str,
    launch: &Launch,
    arguments: &[Argument],
) {
    // SAFETY: the arguments are the kernel's (the emulator checks their sizes, tests their meaning); what the pointers hold is promised
    // by whoever called the operation, see the head of this file.
    unsafe { context.launch(file, kernel, launch, arguments) };
}

/// Enough threads for `elements` in accesses of four, up to a few rounds of what a device runs at the same time.
pub(super) fn over(context: &Context, elements: usize) -> Launch {
    Launch::over(elements.div_ceil(4), THREADS, BLOCKS_PER_MULTIPROCESSOR * context.properties().multiprocessors)
}

/// x = value; x: `[count]`.
pub fn fill(context: &Context, x: Pointer, value: f32, count: usize) {
    if count > 0 {
        let arguments = [Argument::Pointer(x), Argument::Float(value), Argument::long(count)];
        run(context, FILE, "elementwise_fill", &over(context, count), &arguments);
    }
}

/// to = factor x; both `[count]`. They may be the same.
pub fn scale(context: &Context, x: Pointer, factor: f32, to: Pointer, count: usize) {
    scaled(context, x, factor, 0, to, count);
}

/// x = factor scalar x; x: `[count]`, scalar: `[1]`.
pub fn scale_by(context: &Context, x: Pointer, scalar: Pointer, factor: f32, count: usize) {
    scaled(context, x, factor, scalar, x, count);
}

fn scaled(context: &Context, x: Pointer, factor: f32, scalar: Pointer, to: Pointer, count: usize) {
    if count > 0 {
        let (to, x, scalar) = (Argument::Pointer(to), Argument::Pointer(x), Argument::Pointer(scalar));
        let arguments = [to, x, Argument::Float(factor), scalar, Argument::long(count)];
        run(context, FILE, "elementwise_scale", &over(context, count), &arguments);
    }
}

/// c = a + b; all `[count]`. They may be the same.
pub fn add(context: &Context, a: Pointer, b: Pointer, c: Pointer, count: usize) {
    if count > 0 {
        let arguments = [Argument::Pointer(c), Argument::Pointer(a), Argument::Pointer(b), Argument::long(count)];
        run(context, FILE, "elementwise_add", &over(context, count), &arguments);
    }
}

/// sum += x; both `[count]`.
pub fn accumulate(context: &Context, sum: Pointer, x: Pointer, count: usize) {
    add(context, sum, x, sum, count);
}

/// c = a b, element by element; all `[count]`. They may be the same.
pub fn multiply(context: &Context, a: Pointer, b: Pointer, c: Pointer, count: usize) {
    if count > 0 {
        let arguments = [Argument::Pointer(c), Argument::Pointer(a), Argument::Pointer(b), Argument::long(count)];
        run(context, FILE, "elementwise_multiply", &over(context, count), &arguments);
    }
}

/// to = x rounded to bf16 (nearest, ties to even), two bytes an element; both `[count]`.
pub fn to_bf16(context: &Context, x: Pointer, to: Pointer, count: usize) {
    if count > 0 {
        let arguments = [Argument::Pointer(to), Argument::Pointer(x), Argument::long(count)];
        run(context, FILE, "elementwise_to_bf16", &over(context, count), &arguments);
    }
}

/// As the kernels number them.
fn number(function: Activation) -> Argument {
    Argument::Int(match function {
        Activation::Identity => 0,
        Activation::Tanh => 1,
        Activation::Sigmoid => 2,
        Activation::Relu => 3,
    })
}

/// y = function(y + bias) in every row, in place; y: `[count / columns, columns]`, bias: `[columns]`.
pub fn bias_activation(
    context: &Context,
    y: Pointer,
    bias: Option<Pointer>,
    count: usize,
    columns: usize,
    function: Activation,
) {
    if count == 0 || (bias.is_none() && function == Activation::Identity) {
        return;
    }
    let (rows, columns) = (Argument::int(count / columns), Argument::int(columns));
    let arguments = [Argument::Pointer(y), Argument::Pointer(bias.unwrap_or(0)), rows, columns, number(function)];
    run(context, FILE, "elementwise_bias_activation", &over(context, count), &arguments);
}

/// dy becomes dy function', which follows from the function's result y; both `[count]`.
pub fn activation_backward(context: &Context, y: Pointer, dy: Pointer, count: usize, function: Activation) {
    if count == 0 || function == Activation::Identity {
        return;
    }
    let arguments = [Argument::Pointer(dy), Argument::Pointer(y), Argument::long(count), number(function)];
    run(context, FILE, "elementwise_activation_backward", &over(context, count), &arguments);
}

/// Bytes that [`sum`] works in.
pub fn sum_workspace(count: usize) -> usize {
    count.div_ceil(SUM_SLICE) * size_of::<f64>()
}

/// result = the sum of x, in f64 and then rounded; x: `[count]`, result: `[1]`.
pub fn sum(context: &Context, x: Pointer, count: usize, result: Pointer, workspace: Pointer) {
    let slices = count.div_ceil(SUM_SLICE).max(1);
    let blocks = u32::try_from(slices).unwrap_or(u32::MAX);
    let arguments =
        [Argument::Pointer(x), Argument::long(count), Argument::Pointer(workspace), Argument::Pointer(result)];
    run(context, FILE, "elementwise_sum", &Launch::blocks(blocks, THREADS).shared(SUM_SCRATCH), &arguments);
    if slices > 1 {
        let arguments = [Argument::Pointer(workspace), Argument::int(slices), Argument::Pointer(result)];
        run(context, FILE, "elementwise_total", &Launch::blocks(1, TOTAL_THREADS).shared(SUM_SCRATCH), &arguments);
    }
}

/// The launch that sums slabs of a `[rows, columns]` matrix, with scratch memory for `values` sums a column, and the number of slabs.
pub(super) fn slabs(rows: usize, columns: usize, values: usize) -> (Launch, usize) {
    let (slabs, tiles) = (rows.div_ceil(TILE_ROWS), columns.div_ceil(TILE_COLUMNS));
    let blocks = [slabs, tiles, 1].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    let shared = TILE_THREADS as usize * 4 * values * size_of::<f32>();
    (Launch { blocks, ..Launch::blocks(1, TILE_THREADS).shared(shared) }, slabs)
}

/// The launch that sums over the slabs of `columns`.
pub(super) fn totals(columns: usize) -> Launch {
    let blocks = u32::try_from(columns.div_ceil(TOTAL_COLUMNS)).unwrap_or(u32::MAX);
    Launch::blocks(blocks, TOTAL_THREADS).shared(TOTAL_THREADS as usize * size_of::<f32>())
}

/// Bytes that [`column_sums`] and [`activation_backward_with_sums`] work in.
pub fn column_sums_workspace(rows: usize, columns: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * columns * size_of::<f32>()
}

/// sums = or, accumulating, += the sum over the rows of a: `[rows, columns]`; sums: `[columns]`, f32.
pub fn column_sums(
    context: &Context,
    a: Operand,
    rows: usize,
    columns: usize,
    sums: Pointer,
    accumulate: bool,
    workspace: Pointer,
) {
    backward_with_sums(context, None, a, rows, columns, Activation::Identity, sums, accumulate, workspace);
}

/// [`activation_backward`] of y, dy: `[rows, columns]`, and the [`column_sums`] of what dy becomes, the bias's gradient, in one pass.
#[allow(clippy::too_many_arguments)] // As above.
pub fn activation_backward_with_sums(
    context: &Context,
    y: Pointer,
    dy: Pointer,
    rows: usize,
    columns: usize,
    function: Activation,
    sums: Pointer,
    accumulate: bool,
    workspace: Pointer,
) {
    // The identity changes nothing, and its result need not be read.
    let y = (function != Activation::Identity).then_some(y);
    let dy = Operand::rows(dy, columns);
    backward_with_sums(context, y, dy, rows, columns, function, sums, accumulate, workspace);
}

#[allow(clippy::too_many_arguments)] // As above.
fn backward_with_sums(
    context: &Context,
    y: Option<Pointer>,
    dy: Operand,
    rows: usize,
    columns: usize,
    function: Activation,
    sums: Pointer,
    accumulate: bool,
    workspace: Pointer,
) {
    if columns == 0 || (rows == 0 && accumulate) {
        return;
    }
    if rows == 0 {
        return fill(context, sums, 0.0, columns);
    }
    let (launch, slabs) = slabs(rows, columns, 1);
    let (at, workspace) = (Argument::Pointer(dy.pointer), Argument::Pointer(workspace));
    let sizes = [Argument::int(rows), Argument::int(columns), Argument::long(dy.row_stride)];
    match dy.storage {
        Storage::F32 => {
            let y = Argument::Pointer(y.unwrap_or(0));
            let arguments = [&[at, y][..], &sizes, &[number(function), workspace]].concat();
            run(context, FILE, "elementwise_column_sums", &launch, &arguments);
        }
        Storage::Bf16 => {
            debug_assert!(y.is_none(), "an activation's gradient stored as bf16");
            let arguments = [&[at][..], &sizes, &[workspace]].concat();
            run(context, FILE, "elementwise_column_sums_bf16", &launch, &arguments);
        }
    }
    let (slabs, columns_argument) = (Argument::int(slabs), Argument::int(columns));
    let arguments = [workspace, slabs, columns_argument, Argument::Pointer(sums), Argument::flag(accumulate)];
    run(context, FILE, "elementwise_column_totals", &totals(columns), &arguments);
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::testing::{BOTH_ALIGNMENTS, for_all_orders};
    use super::*;
    use crate::backend::cpu;
    use crate::backend::cpu::testing::{assert_close, random};
    use half::bf16;

    const ACTIVATIONS: [Activation; 4] =
        [Activation::Identity, Activation::Tanh, Activation::Sigmoid, Activation::Relu];
    /// Nothing, less than an access, a tail of every length, more than a block, more than the largest launch has threads for.
    const COUNTS: [usize; 9] = [0, 1, 3, 4, 6, 31, 1025, 5000, 140_001];

    #[test]
    fn elementwise_results_are_those_of_the_host_to_the_bit_at_any_length_and_alignment() {
        for_all_orders(|device| {
            for (count, shift) in COUNTS.into_iter().flat_map(|count| BOTH_ALIGNMENTS.map(|shift| (count, shift))) {
                let (a, b) = (random(count, 1), random(count, 2));
                let [x, y] = [&a, &b].map(|data| device.shifted(data, shift));
                let result = |run: &dyn Fn(Pointer)| {
                    let output = device.poisoned::<f32>(count, shift);
                    run(output.pointer());
                    output.values()
                };
                let context = &device.context;
                let expect = |got: Vec<f32>, expected: &dyn Fn(f32, f32) -> f32, what: &str| {
                    let expected: Vec<f32> = a.iter().zip(&b).map(|(&a, &b)| expected(a, b)).collect();
                    assert_eq!(got, expected, "{what} of {count}");
                };
                expect(result(&|to| fill(context, to, -1.5, count)), &|_, _| -1.5, "fill");
                expect(result(&|to| scale(context, x.pointer(), 0.7, to, count)), &|a, _| 0.7 * a, "scale");
                expect(result(&|to| add(context, x.pointer(), y.pointer(), to, count)), &|a, b| a + b, "add");
                expect(result(&|to| multiply(context, x.pointer(), y.pointer(), to, count)), &|a, b| a * b, "multiply");

                // In place.
                let in_place = |run: &dyn Fn(Pointer)| {
                    let sum = device.shifted(&a, shift);
                    run(sum.pointer());
                    sum.values()
                };
                let scalar = device.upload(&[3.0_f32]);
                let by = |x| scale_by(context, x, scalar.pointer(), 0.5, count);
                expect(in_place(&by), &|a, _| (3.0 * 0.5) * a, "scale by a scalar");
                expect(in_place(&|to| accumulate(context, to, y.pointer(), count)), &|a, b| a + b, "accumulate");
            }
        });
    }

    #[test]
    fn conversions_round_to_the_nearest_bf16() {
        for_all_orders(|device| {
            for (count, shift) in [(1, 0), (7, 0), (1000, 0), (1000, 1)] {
                let mut x: Vec<f32> = random(count, 4).iter().map(|x| x * 1e3).collect();
                // A tie, the largest, what rounds beyond it, zeros, a subnormal.
                let special = [1.0 + 1.0 / 256.0, f32::MAX, -f32::INFINITY, -0.0, 0.0, 1e-40];
                x.iter_mut().zip(special).for_each(|(x, special)| *x = special);
                let (from, to) = (device.shifted(&x, shift), device.poisoned_bytes(2 * count));
                to_bf16(&device.context, from.pointer(), to.pointer(), count);
                let expected: Vec<u16> = x.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect();
                assert_eq!(device.context.download::<u16>(&to, count), expected);
            }
            let (nan, to) = (device.upload(&[f32::from_bits(0x7f80_0001)]), device.poisoned_bytes(2));
            to_bf16(&device.context, nan.pointer(), to.pointer(), 1);
            assert!(half::bf16::from_bits(device.context.download::<u16>(&to, 1)[0]).is_nan());
        });
    }

    #[test]
    fn activations_and_their_derivatives_agree_with_the_cpu() {
        for_all_orders(|device| {
            let shapes = [(1, 1), (5, 13), (3, 4), (30, 64), (2, 1300), (0, 7)];
            for ((rows, columns), function) in shapes.into_iter().flat_map(|shape| ACTIVATIONS.map(|f| (shape, f))) {
                let (x, bias, dy) = (random(rows * columns, 1), random(columns, 2), random(rows * columns, 3));
                for bias in [None, Some(&bias)] {
                    let mut expected: Vec<f32> = x.iter().map(|x| 3.0 * x).collect();
                    let y = device.upload(&expected);
                    let on_device = bias.map(|bias| device.upload(bias));
                    let pointer = on_device.as_ref().map(|bias| bias.pointer());
                    bias_activation(&device.context, y.pointer(), pointer, x.len(), columns, function);
                    cpu::activation::bias_activation(&mut expected, bias.map(Vec::as_slice), columns, function);
                    let expected: Vec<f64> = expected.iter().map(|&y| f64::from(y)).collect();
                    // Both within a few units of the last place of the exact value (src/backend/cpu/simd.rs: 3; CUDA's tanhf: 1, its
                    // expf in a quotient: 3; the C library's: 1).
                    assert_close(&y.values(), &expected, 1e-38, 6.0 * f64::from(f32::EPSILON), "activation");
                }
                let y: Vec<f32> = x.iter().map(|x| 0.5 + 0.49 * x).collect();
                let (on_device, gradient) = (device.upload(&y), device.upload(&dy));
                activation_backward(&device.context, on_device.pointer(), gradient.pointer(), dy.len(), function);
                let mut expected = dy.clone();
                cpu::activation::activation_backward(&y, &mut expected, function);
                let expected: Vec<f64> = expected.iter().map(|&d| f64::from(d)).collect();
                // Two or three roundings each, of factors that do not cancel.
                assert_close(&gradient.values(), &expected, 0.0, 3.0 * f64::from(f32::EPSILON), "derivative");
            }
            for function in ACTIVATIONS {
                let y = device.upload(&[f32::NAN; 9]);
                bias_activation(&device.context, y.pointer(), None, 9, 3, function);
                assert!(y.values().iter().all(|y| y.is_nan()), "{function:?} passes NaN on");
            }
        });
    }

    #[test]
    fn the_sum_of_all_elements_is_the_nearest_f32_and_does_not_depend_on_alignment() {
        for_all_orders(|device| {
            for count in [0, 1, 5, SUM_SLICE, SUM_SLICE + 1, 3 * SUM_SLICE + 77] {
                let x = random(count, 9);
                let exact: f64 = x.iter().map(|&x| f64::from(x)).sum();
                for shift in BOTH_ALIGNMENTS {
                    let (input, result) = (device.shifted(&x, shift), device.poisoned::<f32>(1, 0));
                    let workspace = device.poisoned_bytes(sum_workspace(count));
                    sum(&device.context, input.pointer(), count, result.pointer(), workspace.pointer());
                    // The f64 sums differ by roundings of 2^-53, which no rounding to f32 of these numbers sees.
                    assert_eq!(result.values(), [exact as f32], "{count} elements");
                }
            }
        });
    }

    /// Rows below, at and beyond a slab; columns below, at and beyond a tile, with and without four-element accesses.
    const SUM_SHAPES: [(usize, usize, usize); 8] =
        [(1, 1, 1), (0, 5, 5), (7, 13, 13), (128, 4, 4), (129, 50, 53), (300, 131, 131), (500, 260, 264), (4300, 3, 3)];

    #[test]
    fn column_sums_agree_with_f64_within_the_roundings_of_their_order() {
        for_all_orders(|device| {
            for (rows, columns, stride) in SUM_SHAPES {
                let (a, before) = (random(rows * stride, 5), random(columns, 6));
                for (accumulate, shift) in [(false, 0), (true, 0), (false, 1)] {
                    let (matrix, sums) = (device.shifted(&a, shift), device.upload(&before));
                    let workspace = device.poisoned_bytes(column_sums_workspace(rows, columns));
                    let input = Operand::rows(matrix.pointer(), stride);
                    let (output, workspace) = (sums.pointer(), workspace.pointer());
                    column_sums(&device.context, input, rows, columns, output, accumulate, workspace);
                    let column = |j: usize| (0..rows).map(move |row| row * stride + j);
                    let expected: Vec<f64> = (0..columns)
                        .map(|j| {
                            let start = if accumulate { f64::from(before[j]) } else { 0.0 };
                            column(j).map(|i| f64::from(a[i])).sum::<f64>() + start
                        })
                        .collect();
                    let largest = (0..columns).map(|j| column(j).map(|i| a[i].abs()).sum::<f32>()).fold(1.0, f32::max);
                    // The additions that an element passes through, see kernels/column_sums.cuh.
                    let roundings = (16 + 8 + rows / TILE_ROWS / 32 + 32) as f64;
                    let tolerance = roundings * f64::from(f32::EPSILON) / 2.0 * f64::from(largest);
                    assert_close(&sums.values(), &expected, tolerance, 0.0, "column sums");
                    assert_eq!(matrix.values(), a, "the matrix is only read");
                }
            }
        });
    }

    #[test]
    fn column_sums_of_bf16_have_the_bits_of_those_of_f32() {
        for_all_orders(|device| {
            for (rows, columns, stride) in SUM_SHAPES {
                let halves: Vec<bf16> = random(rows * stride, 5).into_iter().map(bf16::from_f32).collect();
                let whole: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
                let halves: Vec<u16> = halves.iter().map(|x| x.to_bits()).collect();
                for shift in [0, 1, 4] {
                    let (halves, whole) = (device.shifted(&halves, shift), device.upload(&whole));
                    let workspace = device.poisoned_bytes(column_sums_workspace(rows, columns));
                    let run = |matrix: Operand| {
                        let sums = device.poisoned::<f32>(columns, 0);
                        column_sums(&device.context, matrix, rows, columns, sums.pointer(), false, workspace.pointer());
                        sums.values()
                    };
                    let sums = run(Operand::rows(halves.pointer(), stride).bf16());
                    assert_eq!(sums, run(Operand::rows(whole.pointer(), stride)), "{rows} x {columns}");
                }
            }
        });
    }

    #[test]
    fn the_fused_backward_of_an_activation_has_the_bits_of_its_two_parts() {
        for_all_orders(|device| {
            for ((rows, columns, _), function) in SUM_SHAPES.into_iter().flat_map(|s| ACTIVATIONS.map(|f| (s, f))) {
                let (y, dy) = (random(rows * columns, 1), random(rows * columns, 2));
                let y = device.upload(&y);
                let workspace = device.poisoned_bytes(column_sums_workspace(rows, columns));
                let run = |fused: bool| {
                    let (gradient, sums) = (device.upload(&dy), device.poisoned::<f32>(columns, 0));
                    let (dy, to, workspace) = (gradient.pointer(), sums.pointer(), workspace.pointer());
                    let context = &device.context;
                    if fused {
                        let y = y.pointer();
                        activation_backward_with_sums(context, y, dy, rows, columns, function, to, false, workspace);
                    } else {
                        activation_backward(context, y.pointer(), dy, rows * columns, function);
                        column_sums(context, Operand::rows(dy, columns), rows, columns, to, false, workspace);
                    }
                    (gradient.values(), sums.values())
                };
                assert_eq!(run(true), run(false), "{rows} x {columns}, {function:?}");
            }
        });
    }
}
