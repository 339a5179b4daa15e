//! 3 x 3 convolution of packed sequences, pooling and channels first: `kernels/convolution.cu`.

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::{THREADS, run};
use super::matmul::Arithmetic;
use super::sequences::Packing;

const FILE: &str = "convolution";
// As in the kernels.
const SIDE: usize = 3;
const TAPS: usize = SIDE * SIDE;
const ROW_BYTES: usize = 64;
const STRIP_ROWS: usize = 16;
/// Positions of a block's tile of a product, and its threads.
const HEIGHT: usize = 128;
/// What rows of weights are padded to, and splits of positions are multiples of: whole stages in any arithmetic.
const DEPTH_UNIT: usize = 32;
/// The machine that splits are chosen for, an H200, so that they depend on the sizes alone.
const MULTIPROCESSORS: usize = 132;
/// Positions of a split at least, and bytes of all splits' sums at most.
const SHORTEST_SPLIT: usize = 512;
const LARGEST_SUMS: usize = 64 << 20;

/// The sizes of a convolution, as [`crate::backend::cpu::convolution::Convolution`] has them. A packing's rows all belong to sequences.
#[derive(Debug, Clone, Copy)]
pub struct Convolution {
    pub input: Packing,
    pub output: Packing,
    /// Of a frame of the input and of the output.
    pub bins: usize,
    pub output_bins: usize,
    pub channels: usize,
    pub output_channels: usize,
    pub stride: usize,
    /// Zeros around.
    pub padding: usize,
    pub arithmetic: Arithmetic,
}

/// One product of patches: those of the input, or of the output's gradient.
struct Product {
    /// Whose rows and bins the result has, and what patches are taken of.
    own: (Packing, usize),
    source: (Packing, usize, usize),
    columns: usize,
    backward: bool,
}

impl Convolution {
    fn forward_product(&self) -> Product {
        Product {
            own: (self.output, self.output_bins),
            source: (self.input, self.bins, self.channels),
            columns: self.output_channels,
            backward: false,
        }
    }

    fn backward_product(&self) -> Product {
        Product {
            own: (self.input, self.bins),
            source: (self.output, self.output_bins, self.output_channels),
            columns: self.channels,
            backward: true,
        }
    }

    fn bytes(&self) -> usize {
        if self.arithmetic == Arithmetic::Bf16 { 2 } else { 4 }
    }

    fn suffix(&self) -> &'static str {
        match self.arithmetic {
            Arithmetic::F32 => "f32",
            Arithmetic::Tf32 => "tf32",
            Arithmetic::Bf16 => "bf16",
        }
    }

    /// Bytes of the table of rows, and of the weights.
    fn product_workspace(&self, product: &Product) -> [usize; 2] {
        [table_bytes(&product.own.0), product.columns * product.padded() * self.bytes()]
    }

    /// The gradient of the weights: its tile, and splits of so many positions each.
    fn splits(&self) -> (usize, usize, usize) {
        let columns = TAPS * self.channels;
        let large = self.arithmetic != Arithmetic::F32
            && self.channels.is_multiple_of(4)
            && self.output_channels >= 128
            && columns >= 128;
        let (side, resident) = match (large, self.arithmetic) {
            (true, _) => (128, 2),
            (false, Arithmetic::F32) => (64, 6),
            (false, _) => (64, 4),
        };
        let tiles = self.output_channels.div_ceil(side) * columns.div_ceil(side);
        let positions = self.output.rows * self.output_bins;
        let sums = self.output_channels * columns * size_of::<f32>();
        let most = (positions / SHORTEST_SPLIT).min(LARGEST_SUMS / sums.max(1)).max(1);
        let splits = (MULTIPROCESSORS * resident / tiles.max(1)).clamp(1, most);
        let length = positions.div_ceil(splits).next_multiple_of(DEPTH_UNIT).max(DEPTH_UNIT);
        (side, positions.div_ceil(length).max(1), length)
    }
}

impl Product {
    fn padded(&self) -> usize {
        (TAPS * self.source.2).next_multiple_of(DEPTH_UNIT)
    }
}

fn table_bytes(packing: &Packing) -> usize {
    (SIDE * packing.rows * size_of::<i32>()).next_multiple_of(16)
}

/// Which rows of `source` lie at the three places in time of each row's patches, to `table`.
fn find_rows(
    context: &Context,
    table: Pointer,
    own: &Packing,
    source: &Packing,
    (stride, padding, backward): (usize, usize, bool),
) {
    let launch = Launch::over(own.rows, THREADS, 8 * MULTIPROCESSORS as u32);
    let arguments = [
        Argument::Pointer(table),
        Argument::Pointer(own.offsets),
        Argument::int(own.steps),
        Argument::int(own.rows),
        Argument::Pointer(source.offsets),
        Argument::int(source.steps),
        Argument::int(stride),
        Argument::int(padding),
        Argument::flag(backward),
    ];
    run(context, FILE, "convolution_rows", &launch, &arguments);
}

/// Bytes of workspace of [`forward`], aligned to 16 bytes.
pub fn forward_workspace(of: &Convolution) -> usize {
    of.product_workspace(&of.forward_product()).iter().sum()
}

/// y = relu(patches of x times the weights + bias); x: `[rows, bins, channels]`, weight: `[output_channels, channels, 3, 3]`, bias:
/// `[output_channels]`, y: `[output.rows, output_bins, output_channels]`.
pub fn forward(
    context: &Context,
    of: &Convolution,
    x: Pointer,
    weight: Pointer,
    bias: Pointer,
    y: Pointer,
    workspace: Pointer,
) {
    const RELU: i32 = 3;
    multiply(context, of, &of.forward_product(), [x, weight, y], (bias, RELU, false), workspace);
}

/// Bytes of workspace of [`backward_input`].
pub fn backward_input_workspace(of: &Convolution) -> usize {
    of.product_workspace(&of.backward_product()).iter().sum()
}

/// dx = (or, accumulating, +=) the gradient of the input; dy is that of what [`forward`] took the relu of.
pub fn backward_input(
    context: &Context,
    of: &Convolution,
    weight: Pointer,
    dy: Pointer,
    dx: Pointer,
    accumulate: bool,
    workspace: Pointer,
) {
    multiply(context, of, &of.backward_product(), [dy, weight, dx], (0, 0, accumulate), workspace);
}

fn multiply(
    context: &Context,
    of: &Convolution,
    product: &Product,
    [x, weight, y]: [Pointer; 3],
    (bias, activation, accumulate): (Pointer, i32, bool),
    workspace: Pointer,
) {
    let ((own, bins), (source, source_bins, channels)) = (product.own, product.source);
    let (columns, padded) = (product.columns, product.padded());
    if own.rows * bins * columns == 0 {
        return;
    }
    find_rows(context, workspace, &own, &source, (of.stride, of.padding, product.backward));
    let weights = workspace + of.product_workspace(product)[0] as u64;
    let kernel = match of.arithmetic {
        Arithmetic::F32 => "convolution_weights_f32",
        Arithmetic::Tf32 => "convolution_weights_tf32",
        Arithmetic::Bf16 => "convolution_weights_bf16",
    };
    let arguments = [
        Argument::Pointer(weight),
        Argument::Pointer(weights),
        Argument::int(of.output_channels),
        Argument::int(of.channels),
        Argument::int(padded),
        Argument::flag(product.backward),
    ];
    let launch = Launch::over(columns * padded, THREADS, 8 * MULTIPROCESSORS as u32);
    run(context, FILE, kernel, &launch, &arguments);

    let elements = !channels.is_multiple_of(4) || !x.is_multiple_of(16);
    let (kernel, width, warp_width) = match (of.suffix(), elements, columns > 64) {
        ("f32", false, _) => ("convolution_product_f32_128x64", 64, 64),
        ("f32", true, _) => ("convolution_product_f32_128x64_elements", 64, 64),
        ("tf32", false, false) => ("convolution_product_tf32_128x64", 64, 32),
        ("tf32", false, true) => ("convolution_product_tf32_128x128", 128, 64),
        ("tf32", true, _) => ("convolution_product_tf32_128x64_elements", 64, 32),
        (_, false, false) => ("convolution_product_bf16_128x64", 64, 32),
        (_, false, true) => ("convolution_product_bf16_128x128", 128, 64),
        (_, true, _) => ("convolution_product_bf16_128x64_elements", 64, 32),
    };
    let stages = 2 * (HEIGHT + width) * ROW_BYTES;
    let strips = HEIGHT / 32 * STRIP_ROWS * (warp_width + 8) * size_of::<f32>();
    let places = ((SIDE + 2) * HEIGHT + HEIGHT / 32) * size_of::<i32>();
    let tiles = (own.rows * bins).div_ceil(HEIGHT) * columns.div_ceil(width);
    let launch = Launch::blocks(u32::try_from(tiles).unwrap_or(u32::MAX), HEIGHT as u32);
    let wide = columns.is_multiple_of(4) && y.is_multiple_of(16);
    let arguments = [
        Argument::Pointer(x),
        Argument::Pointer(workspace),
        Argument::int(source_bins),
        Argument::int(channels),
        Argument::int(of.stride),
        Argument::int(of.padding),
        Argument::flag(product.backward),
        Argument::int(own.rows),
        Argument::int(bins),
        Argument::Pointer(weights),
        Argument::int(padded),
        Argument::Pointer(y),
        Argument::int(columns),
        Argument::flag(wide),
        Argument::Pointer(bias),
        Argument::Int(activation),
        Argument::flag(accumulate),
    ];
    run(context, FILE, kernel, &launch.shared(stages.max(strips) + places), &arguments);
}

/// Bytes of workspace of [`backward_weight`].
pub fn backward_weight_workspace(of: &Convolution) -> usize {
    let (_, splits, _) = of.splits();
    table_bytes(&of.output) + splits * of.output_channels * TAPS * of.channels * size_of::<f32>()
}

/// dweight = (or, accumulating, +=) the gradient of the weights; dy as in [`backward_input`].
pub fn backward_weight(
    context: &Context,
    of: &Convolution,
    x: Pointer,
    dy: Pointer,
    dweight: Pointer,
    accumulate: bool,
    workspace: Pointer,
) {
    let (outputs, columns) = (of.output_channels, TAPS * of.channels);
    if outputs * columns == 0 {
        return;
    }
    find_rows(context, workspace, &of.output, &of.input, (of.stride, of.padding, false));
    let partial_sums = workspace + table_bytes(&of.output) as u64;
    let (side, splits, split_length) = of.splits();
    let elements = !of.channels.is_multiple_of(4) || !x.is_multiple_of(16);
    let kernel = match (of.suffix(), elements, side) {
        ("f32", false, _) => "convolution_weight_gradient_f32_64x64",
        ("f32", true, _) => "convolution_weight_gradient_f32_64x64_elements",
        ("tf32", false, 64) => "convolution_weight_gradient_tf32_64x64",
        ("tf32", false, _) => "convolution_weight_gradient_tf32_128x128",
        ("tf32", true, _) => "convolution_weight_gradient_tf32_64x64_elements",
        (_, false, 64) => "convolution_weight_gradient_bf16_64x64",
        (_, false, _) => "convolution_weight_gradient_bf16_128x128",
        (_, true, _) => "convolution_weight_gradient_bf16_64x64_elements",
    };
    let side = if elements { 64 } else { side };
    let threads = if of.arithmetic == Arithmetic::F32 { 64 } else { 128 };
    let warp_width = if side == 64 && of.arithmetic != Arithmetic::F32 { 32 } else { 64 };
    let strips = threads / 32 * STRIP_ROWS * (warp_width + 8) * size_of::<f32>();
    let blocks = [outputs.div_ceil(side) as u32, columns.div_ceil(side) as u32, splits as u32];
    let launch = Launch { blocks, ..Launch::blocks(1, threads as u32) }.shared((4 * side * ROW_BYTES).max(strips));
    let arguments = [
        Argument::Pointer(x),
        Argument::Pointer(workspace),
        Argument::int(of.bins),
        Argument::int(of.channels),
        Argument::int(of.stride),
        Argument::int(of.padding),
        Argument::int(of.output.rows),
        Argument::int(of.output_bins),
        Argument::Pointer(dy),
        Argument::int(outputs),
        Argument::int(split_length),
        Argument::Pointer(partial_sums),
    ];
    run(context, FILE, kernel, &launch, &arguments);
    let arguments = [
        Argument::Pointer(partial_sums),
        Argument::int(splits),
        Argument::Pointer(dweight),
        Argument::int(outputs),
        Argument::int(of.channels),
        Argument::flag(accumulate),
    ];
    let launch = Launch::over(outputs * columns, THREADS, 8 * MULTIPROCESSORS as u32);
    run(context, FILE, "convolution_sum", &launch, &arguments);
}

/// The sizes of pooling two by two, as [`crate::backend::cpu::convolution::Pooling`] has them.
#[derive(Debug, Clone, Copy)]
pub struct Pooling {
    pub input: Packing,
    pub output: Packing,
    pub bins: usize,
    pub channels: usize,
}

/// Bytes of workspace of both passes.
pub fn pool_workspace(of: &Pooling) -> usize {
    table_bytes(&of.output)
}

/// y = the largest of every 2 x 2 frames and bins; x: `[input.rows, bins, channels]`, y: `[output.rows, ceil(bins / 2), channels]`.
pub fn pool(context: &Context, of: &Pooling, x: Pointer, y: Pointer, workspace: Pointer) {
    let tensors = [Argument::Pointer(y), Argument::Pointer(x)];
    launch_pool(context, of, "convolution_pool", &tensors, workspace);
}

/// dx = dy where x is the largest, the first of equals, else 0.
pub fn pool_backward(context: &Context, of: &Pooling, x: Pointer, dy: Pointer, dx: Pointer, workspace: Pointer) {
    let tensors = [dx, x, dy].map(Argument::Pointer);
    launch_pool(context, of, "convolution_pool_backward", &tensors, workspace);
}

fn launch_pool(context: &Context, of: &Pooling, kernel: &'static str, tensors: &[Argument], workspace: Pointer) {
    if of.output.rows * of.bins * of.channels == 0 {
        return;
    }
    find_rows(context, workspace, &of.output, &of.input, (2, 0, false));
    let sizes = [Argument::Pointer(workspace), Argument::int(of.bins), Argument::int(of.channels)];
    let blocks = u32::try_from(of.output.rows).unwrap_or(u32::MAX);
    run(context, FILE, kernel, &Launch::blocks(blocks, THREADS), &[tensors, &sizes].concat());
}

/// y `[frames, columns, rows]` = x `[frames, rows, columns]`.
pub fn exchange(context: &Context, x: Pointer, y: Pointer, frames: usize, rows: usize, columns: usize) {
    const TILE: usize = 32;
    let blocks = frames * rows.div_ceil(TILE) * columns.div_ceil(TILE);
    if blocks > 0 {
        let arguments = [Argument::Pointer(y), Argument::Pointer(x), Argument::int(rows), Argument::int(columns)];
        let launch = Launch::blocks(u32::try_from(blocks).unwrap_or(u32::MAX), THREADS);
        run(context, FILE, "convolution_exchange", &launch.shared(TILE * (TILE + 1) * size_of::<f32>()), &arguments);
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::testing::{Device, OnDevice, for_all_orders};
    use super::*;
    use crate::backend::cpu;
    use crate::backend::cpu::testing::{offsets, random};

    const ARITHMETICS: [Arithmetic; 3] = [Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16];

    /// Lengths, bins, channels, output channels, stride: every kernel, whole tiles and parts of them, several splits, taps that are skipped.
    const CASES: [(&[usize], usize, usize, usize, usize); 8] = [
        (&[1], 1, 1, 1, 1),
        (&[], 3, 2, 2, 1),
        (&[6, 5, 1], 4, 3, 5, 1),
        (&[9, 4, 2, 1], 7, 1, 6, 2),
        (&[7, 7, 3], 5, 32, 68, 1),
        (&[9, 8, 2], 6, 32, 32, 2),
        (&[40, 33, 30], 11, 4, 70, 1),
        (&[5, 3], 9, 20, 130, 2),
    ];

    struct Case {
        lengths: (Vec<usize>, Vec<usize>),
        sizes: [usize; 4],
        stride: usize,
        padding: usize,
    }

    impl Case {
        fn new((lengths, bins, channels, outputs, stride): (&[usize], usize, usize, usize, usize)) -> Self {
            let count = |length: usize| if stride == 1 { length } else { (length.saturating_sub(1) / 2).max(1) };
            let to = lengths.iter().map(|&length| count(length)).collect();
            let sizes = [bins, count(bins), channels, outputs];
            Case { lengths: (lengths.to_vec(), to), sizes, stride, padding: 2 - stride }
        }

        /// Elements of x, weight and y.
        fn elements(&self) -> [usize; 3] {
            let [bins, output_bins, channels, outputs] = self.sizes;
            let rows = |lengths: &[usize]| lengths.iter().sum::<usize>();
            let (from, to) = (rows(&self.lengths.0), rows(&self.lengths.1));
            [from * bins * channels, outputs * channels * TAPS, to * output_bins * outputs]
        }

        fn on_device(&self, device: &Device, arithmetic: Arithmetic) -> (Convolution, [OnDevice<i32>; 2]) {
            let ([input, output], kept) = packings(device, [&self.lengths.0, &self.lengths.1]);
            let [bins, output_bins, channels, output_channels] = self.sizes;
            let Case { stride, padding, .. } = *self;
            let of = Convolution {
                input,
                output,
                bins,
                output_bins,
                channels,
                output_channels,
                stride,
                padding,
                arithmetic,
            };
            (of, kept)
        }

        /// In f64, of operands rounded as the arithmetic does; y before bias and relu, dx, dweight. Beside each, the sum of absolute terms.
        fn reference(&self, x: &[f32], weight: &[f32], dy: &[f32], arithmetic: Arithmetic) -> [Vec<(f64, f64)>; 3] {
            let [bins, output_bins, channels, outputs] = self.sizes;
            let (from, to) = (offsets(&self.lengths.0), offsets(&self.lengths.1));
            let [of_x, of_weight, of_y] = self.elements();
            let mut results = [of_y, of_x, of_weight].map(|count| vec![(0.0, 0.0); count]);
            let round = |x: f32| f64::from(rounded(x, arithmetic));
            for (sequence, &length) in self.lengths.1.iter().enumerate() {
                for (step, bin) in (0..length).flat_map(|step| (0..output_bins).map(move |bin| (step, bin))) {
                    for (tap, channel) in (0..TAPS).flat_map(|tap| (0..channels).map(move |channel| (tap, channel))) {
                        let at = |index: usize, place: usize| (index * self.stride + place).checked_sub(self.padding);
                        let (Some(time), Some(source)) = (at(step, tap / 3), at(bin, tap % 3)) else { continue };
                        if time >= self.lengths.0[sequence] || source >= bins {
                            continue;
                        }
                        let i = ((from[time] + sequence) * bins + source) * channels + channel;
                        for output in 0..outputs {
                            let j = (output * channels + channel) * TAPS + tap;
                            let k = ((to[step] + sequence) * output_bins + bin) * outputs + output;
                            let (x, weight, dy) = (round(x[i]), round(weight[j]), round(dy[k]));
                            for (result, place, term) in [(0, k, x * weight), (1, i, dy * weight), (2, j, dy * x)] {
                                results[result][place].0 += term;
                                results[result][place].1 += term.abs();
                            }
                        }
                    }
                }
            }
            results
        }
    }

    fn packings(device: &Device, lengths: [&[usize]; 2]) -> ([Packing; 2], [OnDevice<i32>; 2]) {
        let kept = lengths.map(|lengths| {
            let offsets: Vec<i32> = offsets(lengths).into_iter().map(|offset| offset as i32).collect();
            device.upload(&offsets)
        });
        let packing = |k: usize| {
            let lengths: &[usize] = lengths[k];
            let (steps, rows) = (lengths.first().copied().unwrap_or(0), lengths.iter().sum());
            Packing { offsets: kept[k].pointer(), lengths: 0, steps, rows, sequences: lengths.len() }
        };
        ([packing(0), packing(1)], kept)
    }

    fn rounded(x: f32, arithmetic: Arithmetic) -> f32 {
        let bits = x.to_bits();
        match arithmetic {
            Arithmetic::F32 => x,
            Arithmetic::Tf32 => f32::from_bits((bits + 0x1000) & !0x1fff),
            Arithmetic::Bf16 => f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & !0xffff),
        }
    }

    /// Sums of n terms in f32 err by n epsilon of the sum of absolute terms at most, each term's product by half an epsilon.
    fn assert_close(what: &str, found: &[f32], expected: &[(f64, f64)], terms: usize) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (index, (&found, &(expected, size))) in found.iter().zip(expected).enumerate() {
            let bound = f64::from(f32::EPSILON) * (terms + 2) as f64 * (size + f64::from(f32::MIN_POSITIVE));
            let error = (f64::from(found) - expected).abs();
            assert!(error <= bound, "{what}[{index}] is {found}, not {expected}: {error:e} > {bound:e}");
        }
    }

    #[test]
    fn a_convolution_and_its_gradients_agree_with_sums_in_f64_in_every_arithmetic() {
        for_all_orders(|device| {
            for (case, arithmetic) in CASES.into_iter().flat_map(|case| ARITHMETICS.map(|it| (case, it))) {
                let name = format!("{case:?} in {arithmetic:?}");
                let case = Case::new(case);
                let (of, _kept) = case.on_device(device, arithmetic);
                let [of_x, of_weight, of_y] = case.elements();
                let (x, weight, dy) = (random(of_x, 1), random(of_weight, 2), random(of_y, 3));
                let bias = random(of.output_channels, 4);
                let [y_expected, dx_expected, dw_expected] = case.reference(&x, &weight, &dy, arithmetic);
                let [x, weight, dy, bias_there] = [&x, &weight, &dy, &bias].map(|values| device.upload(values));
                let context = &device.context;

                let y = device.poisoned::<f32>(of_y, 0);
                let workspace = device.poisoned_bytes(forward_workspace(&of));
                let pointers = (x.pointer(), weight.pointer(), bias_there.pointer(), y.pointer());
                forward(context, &of, pointers.0, pointers.1, pointers.2, pointers.3, workspace.pointer());
                let with_bias = y_expected.iter().enumerate().map(|(k, &(sum, size))| {
                    let bias = f64::from(bias[k % bias.len()]);
                    ((sum + bias).max(0.0), size + bias.abs())
                });
                let with_bias: Vec<(f64, f64)> = with_bias.collect();
                assert_close(&format!("y of {name}"), &y.values(), &with_bias, TAPS * of.channels + 1);

                for accumulate in [false, true] {
                    let added = |expected: &[(f64, f64)], before: &[f32]| -> Vec<(f64, f64)> {
                        let before = before.iter().map(|&x| if accumulate { f64::from(x) } else { 0.0 });
                        expected.iter().zip(before).map(|(&(sum, size), x)| (sum + x, size + x.abs())).collect()
                    };
                    let before = random(of_x, 5);
                    let dx = if accumulate { device.upload(&before) } else { device.poisoned(of_x, 0) };
                    let workspace = device.poisoned_bytes(backward_input_workspace(&of));
                    let (dy, weight, to) = (dy.pointer(), weight.pointer(), dx.pointer());
                    backward_input(context, &of, weight, dy, to, accumulate, workspace.pointer());
                    let terms = TAPS * of.output_channels + 1;
                    assert_close(&format!("dx of {name}"), &dx.values(), &added(&dx_expected, &before), terms);

                    let before = random(of_weight, 6);
                    let dweight = if accumulate { device.upload(&before) } else { device.poisoned(of_weight, 0) };
                    let workspace = device.poisoned_bytes(backward_weight_workspace(&of));
                    let to = dweight.pointer();
                    backward_weight(context, &of, x.pointer(), dy, to, accumulate, workspace.pointer());
                    let terms = of.output.rows * of.output_bins + of.splits().1 + 1;
                    assert_close(&format!("dw of {name}"), &dweight.values(), &added(&dw_expected, &before), terms);
                }
            }
        });
    }

    #[test]
    fn there_is_a_case_with_several_splits_and_one_of_each_tile() {
        let Some(device) = Device::new() else { return };
        let plans = CASES.into_iter().flat_map(|case| {
            let case = Case::new(case);
            ARITHMETICS.map(|arithmetic| case.on_device(&device, arithmetic).0.splits())
        });
        let plans: Vec<_> = plans.collect();
        assert!(plans.iter().any(|plan| plan.1 > 1));
        assert!(plans.iter().any(|plan| plan.0 == 64) && plans.iter().any(|plan| plan.0 == 128));
    }

    #[test]
    fn pooling_and_its_backward_have_the_bits_of_the_cpu_ties_too() {
        for_all_orders(|device| {
            for (lengths, bins, channels) in
                [(&[1][..], 1, 1), (&[6, 5, 5, 1], 5, 2), (&[7, 4], 4, 8), (&[2, 1], 3, 300), (&[], 2, 4)]
            {
                let to: Vec<usize> = lengths.iter().map(|length: &usize| length.div_ceil(2)).collect();
                let ([input, output], _kept) = packings(device, [lengths, &to]);
                let (from, to) = (offsets(lengths), offsets(&to));
                let host = cpu::convolution::Pooling { offsets: &from, output_offsets: &to, bins, channels };
                let of = Pooling { input, output, bins, channels };
                // Few values, so that many are equal.
                let x: Vec<f32> = random(input.rows * bins * channels, 1).iter().map(|x| (2.0 * x).round()).collect();
                let dy = random(output.rows * bins.div_ceil(2) * channels, 2);
                let (mut expected, mut gradient) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
                if !x.is_empty() {
                    host.forward(&x, &mut expected);
                    host.backward(&x, &dy, &mut gradient);
                }
                for shift in [0, 1] {
                    let (x, dy) = (device.shifted(&x, shift), device.shifted(&dy, shift));
                    let y = device.poisoned::<f32>(expected.len(), shift);
                    let dx = device.poisoned::<f32>(gradient.len(), shift);
                    let workspace = device.poisoned_bytes(pool_workspace(&of));
                    pool(&device.context, &of, x.pointer(), y.pointer(), workspace.pointer());
                    let (x, dy, to) = (x.pointer(), dy.pointer(), dx.pointer());
                    pool_backward(&device.context, &of, x, dy, to, workspace.pointer());
                    assert_eq!(y.values(), expected, "{lengths:?} {bins} {channels}");
                    assert_eq!(dx.values(), gradient, "backward of {lengths:?} {bins} {channels}");
                }
            }
        });
    }

    #[test]
    fn exchanging_rows_and_columns_moves_every_element_to_its_place() {
        for_all_orders(|device| {
            for (frames, rows, columns) in [(1, 1, 1), (3, 5, 70), (2, 40, 33), (4, 32, 64), (0, 3, 3)] {
                let x = random(frames * rows * columns, 1);
                let mut expected = vec![0.0; x.len()];
                cpu::convolution::exchange(&x, &mut expected, rows, columns);
                let (from, to) = (device.upload(&x), device.poisoned::<f32>(x.len(), 0));
                exchange(&device.context, from.pointer(), to.pointer(), frames, rows, columns);
                assert_eq!(to.values(), expected, "{frames} of {rows} x {columns}");
            }
        });
    }
}
