//! Products against sums in f64, of every tile, layout and split, and of operands that are rounded.

use super::super::context::Buffer;
use super::super::emulator::Order;
use super::super::testing::Device;
use super::*;
use crate::backend::cpu::testing::random;

const ARITHMETICS: [Arithmetic; 3] = [Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16];
const ORDERS: [Order; 3] = [Order::Forward, Order::Reversed, Order::Shuffled(5)];

/// How an operand lies in memory.
#[derive(Debug, Clone, Copy, Default)]
struct Layout {
    transposed: bool,
    /// Elements between the end of a row and the next, and before the first.
    gap: usize,
    offset: usize,
    bf16: bool,
}

/// A product and all that it is made of; `output` is c before, [m, n + gap].
#[derive(Debug, Clone)]
struct Case {
    shape: (usize, usize, usize),
    a: Layout,
    b: Layout,
    c_gap: usize,
    c_bf16: bool,
    accumulate: bool,
    arithmetic: Arithmetic,
    bias: bool,
    activation: Activation,
    order: Order,
    /// Number of the tile and the splits; chosen by the sizes if not given.
    plan: Option<(usize, usize)>,
    /// On a GPU, whether NVIDIA's library computes it if there is one.
    library: bool,
}

impl Case {
    fn new(shape: (usize, usize, usize), arithmetic: Arithmetic) -> Self {
        Case {
            shape,
            a: Layout::default(),
            b: Layout::default(),
            c_gap: 0,
            c_bf16: false,
            accumulate: false,
            arithmetic,
            bias: false,
            activation: Activation::Identity,
            order: Order::Forward,
            plan: None,
            library: false,
        }
    }

    fn plan(&self) -> Plan {
        let (m, n, k) = self.shape;
        match self.plan {
            None => Plan::new(m, n, k, self.arithmetic),
            Some((tile, splits)) => Plan::with(&self.arithmetic.tiles()[tile], k, splits),
        }
    }

    fn values(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<f32>) {
        let (m, n, k) = self.shape;
        (random(m * k, 1), random(k * n, 2), random(m * (n + self.c_gap), 3), random(n, 4))
    }

    /// c, with what is between its rows.
    fn run(&self) -> Vec<f32> {
        let (a, b, c, bias) = self.values();
        self.run_on(&a, &b, &c, &bias)
    }

    fn run_on(&self, a: &[f32], b: &[f32], c: &[f32], bias: &[f32]) -> Vec<f32> {
        let (m, n, k) = self.shape;
        let context = Device::shared(self.order).expect("tests are skipped where there is none").context;
        let (a, _a) = operand(&context, a, m, k, self.a);
        let (b, _b) = operand(&context, b, k, n, self.b);
        let bias = if self.c_bf16 { uploaded(&context, &to_bf16(bias)) } else { uploaded(&context, bias) };
        let output = if self.c_bf16 { uploaded(&context, &to_bf16(c)) } else { uploaded(&context, c) };
        let plan = self.plan();
        let workspace = context.allocate(plan.workspace(m, n, k, self.arithmetic).iter().sum());
        let bias = if self.bias { bias.pointer() } else { 0 };
        let product = Product {
            m,
            n,
            k,
            a,
            b,
            c: output.pointer(),
            c_row_stride: n + self.c_gap,
            c_storage: if self.c_bf16 { Storage::Bf16 } else { Storage::F32 },
            accumulate: self.accumulate,
            bias,
            arithmetic: self.arithmetic,
        };
        compute(&context, product, self.activation, plan, workspace.pointer(), self.library);
        let result = if self.c_bf16 {
            let halves: Vec<u16> = context.download(&output, c.len());
            halves.into_iter().map(|bits| half::bf16::from_bits(bits).to_f32()).collect()
        } else {
            context.download(&output, c.len())
        };
        context.check().unwrap();
        result
    }

    /// Holds c against sums in f64 of operands rounded as the arithmetic rounds them.
    fn check(&self) {
        let (_, n, k) = self.shape;
        let (a, b, mut before, mut bias) = self.values();
        if self.c_bf16 {
            before.iter_mut().chain(&mut bias).for_each(|x| *x = rounded(*x, Arithmetic::Bf16));
        }
        let result = self.run();
        // How the library rounds is not said: each operand is off by a unit of its last place at most.
        let exact = self.library && self.arithmetic != Arithmetic::F32;
        let kept = if exact { Arithmetic::F32 } else { self.arithmetic };
        let rounded = |x: &[f32]| x.iter().map(|&x| f64::from(rounded(x, kept))).collect::<Vec<f64>>();
        let (a, b) = (rounded(&a), rounded(&b));
        let rounding = match (exact, self.arithmetic) {
            (true, Arithmetic::Tf32) => 2.0_f64.powi(-10),
            (true, Arithmetic::Bf16) => 2.0_f64.powi(-8),
            _ => 0.0,
        };
        let stride = n + self.c_gap;
        for (place, (&result, &before)) in result.iter().zip(&before).enumerate() {
            let (i, j) = (place / stride, place % stride);
            if j >= n {
                assert_eq!(result, before, "{self:?} wrote between its rows, at ({i}, {j})");
                continue;
            }
            let (mut sum, mut magnitude) = (0.0, 2.0);
            for l in 0..k {
                let product = a[i * k + l] * b[l * n + j];
                sum += product;
                magnitude += product.abs();
            }
            sum += if self.accumulate { f64::from(before) } else { 0.0 };
            sum += if self.bias { f64::from(bias[j]) } else { 0.0 };
            let expected = match self.activation {
                Activation::Identity => sum,
                Activation::Tanh => sum.tanh(),
                Activation::Sigmoid => 1.0 / (1.0 + (-sum).exp()),
                Activation::Relu => sum.max(0.0),
            };
            // Half an ulp for each of k products, k sums and what follows, each of at most the sum of magnitudes; no activation is steeper
            // than the identity, and each is right to a few ulp of 1.
            let mut bound = magnitude * ((2 * k + 8) as f64 * 6e-8 + rounding * (2.0 + rounding));
            if self.c_bf16 {
                // Half a unit of the last place.
                bound += (expected.abs() + bound) / 256.0;
            }
            assert!((f64::from(result) - expected).abs() <= bound, "{self:?} ({i}, {j}): {result} for {expected}");
        }
    }
}

fn rounded(x: f32, arithmetic: Arithmetic) -> f32 {
    match arithmetic {
        Arithmetic::F32 => x,
        // To a multiple of 2^13 in the last place, halves away from zero: the sign is apart in a float.
        Arithmetic::Tf32 => f32::from_bits((x.to_bits() + 0x1000) & !0x1fff),
        Arithmetic::Bf16 => half::bf16::from_f32(x).to_f32(),
    }
}

fn to_bf16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect()
}

fn uploaded<T: bytemuck::NoUninit>(context: &Arc<Context>, values: &[T]) -> Buffer {
    let buffer = context.allocate(size_of_val(values));
    context.upload(&buffer, values);
    buffer
}

/// Puts a matrix [rows, columns] on the device, NaN in the gaps.
fn operand(context: &Arc<Context>, values: &[f32], rows: usize, columns: usize, layout: Layout) -> (Operand, Buffer) {
    let Layout { transposed, gap, offset, bf16 } = layout;
    let (outer, inner) = if transposed { (columns, rows) } else { (rows, columns) };
    let stride = inner + gap;
    let mut memory = vec![f32::NAN; offset + outer * stride];
    for i in 0..rows {
        for j in 0..columns {
            let place = if transposed { j * stride + i } else { i * stride + j };
            memory[offset + place] = values[i * columns + j];
        }
    }
    let bytes = if bf16 { 2 } else { 4 };
    let buffer = if bf16 { uploaded(context, &to_bf16(&memory)) } else { uploaded(context, &memory) };
    let operand = Operand::rows(buffer.pointer() + (offset * bytes) as u64, stride);
    let operand = if transposed { operand.transposed() } else { operand };
    (if bf16 { operand.bf16() } else { operand }, buffer)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn skipped() -> bool {
    Device::shared(Order::Forward).is_none()
}

fn layouts() -> impl Iterator<Item = (Layout, Layout)> {
    // Gap and offset that leave 16, 8 and 4 bytes of alignment to even sizes.
    [(0, 0), (2, 2), (1, 3)].into_iter().flat_map(|(gap, offset)| {
        [(false, false), (false, true), (true, false), (true, true)].map(|(a, b)| {
            let layout = |transposed| Layout { transposed, gap, offset, bf16: false };
            (layout(a), layout(b))
        })
    })
}

#[test]
fn products_agree_with_sums_in_f64_for_every_arithmetic_layout_and_alignment() {
    if skipped() {
        return;
    }
    let shapes = [(1, 1, 1), (3, 5, 7), (20, 36, 48), (65, 67, 34), (70, 64, 36), (0, 4, 4), (4, 0, 4)];
    for arithmetic in ARITHMETICS {
        for shape in shapes {
            for (a, b) in layouts() {
                for (c_gap, accumulate) in [(0, false), (3, true)] {
                    Case { a, b, c_gap, accumulate, ..Case::new(shape, arithmetic) }.check();
                }
            }
        }
    }
}

#[test]
fn products_agree_with_sums_in_f64_whoever_computes_them() {
    if skipped() {
        return;
    }
    // Aligned for the library and not, one that is split, and, where operands can be, such as are packed first.
    for (shape, plan) in [
        ((64, 64, 64), None),
        ((35, 41, 37), None),
        ((16, 24, 1100), None),
        ((40, 44, 70), Some((3, 1))),
        ((40, 41, 70), Some((4, 2))),
    ] {
        for arithmetic in ARITHMETICS {
            let plan = plan.filter(|&(tile, _)| tile < arithmetic.tiles().len());
            for (a, b) in layouts().take(4) {
                for (accumulate, bias) in [(false, false), (false, true), (true, true)] {
                    let case = Case { a, b, accumulate, bias, plan, library: true, ..Case::new(shape, arithmetic) };
                    case.check();
                    // Rows as a language model's logits have them: each begins at a multiple of 16 bytes.
                    let c_gap = shape.1.next_multiple_of(8) - shape.1;
                    Case { c_gap, ..case.clone() }.check();
                    if arithmetic == Arithmetic::Bf16 {
                        let (a, b) = (Layout { bf16: true, ..a }, Layout { bf16: true, ..b });
                        for case in [Case { a, ..case.clone() }, Case { a, b, ..case.clone() }] {
                            Case { c_bf16: true, c_gap, ..case.clone() }.check();
                            case.check();
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_tile_covers_the_edges_of_an_output() {
    if skipped() {
        return;
    }
    for arithmetic in ARITHMETICS {
        for (tile, Tile { height, width, .. }) in arithmetic.tiles().iter().enumerate() {
            for shape in [(height + 3, width - 6, 40), (height - 1, width + 2, 20), (9 * height / 4, 4, 16)] {
                let a = Layout { transposed: shape.2 == 20, ..Layout::default() };
                let b = Layout { transposed: shape.2 == 40, ..Layout::default() };
                Case { a, b, plan: Some((tile, 1)), ..Case::new(shape, arithmetic) }.check();
            }
        }
    }
}

#[test]
fn nine_rows_of_tiles_are_two_bands() {
    if skipped() {
        return;
    }
    Case { plan: Some((1, 1)), ..Case::new((9 * 64 - 5, 70, 8), Arithmetic::F32) }.check();
}

#[test]
fn tiles_layouts_and_alignment_do_not_show_in_the_bits() {
    if skipped() {
        return;
    }
    for arithmetic in ARITHMETICS {
        let shape = (70, 66, 50);
        let reference = bits(&Case { plan: Some((0, 1)), ..Case::new(shape, arithmetic) }.run());
        for tile in 1..arithmetic.tiles().len() {
            let case = Case { plan: Some((tile, 1)), ..Case::new(shape, arithmetic) };
            assert_eq!(bits(&case.run()), reference, "{case:?}");
        }
        for (a, b) in layouts() {
            let case = Case { a, b, ..Case::new(shape, arithmetic) };
            assert_eq!(bits(&case.run()), reference, "{case:?}");
        }
    }
}

#[test]
fn the_order_of_threads_does_not_show_in_the_bits() {
    if skipped() {
        return;
    }
    for arithmetic in ARITHMETICS {
        for tile in 0..arithmetic.tiles().len() {
            for splits in [1, 3] {
                let results = ORDERS.map(|order| {
                    let plan = Some((tile, splits));
                    bits(
                        &Case { plan, order, accumulate: true, bias: true, ..Case::new((67, 70, 70), arithmetic) }
                            .run(),
                    )
                });
                assert_eq!(results[0], results[1], "{arithmetic:?} {tile} {splits}");
                assert_eq!(results[0], results[2], "{arithmetic:?} {tile} {splits}");
            }
        }
    }
}

#[test]
fn splits_of_k_are_added_up_with_what_follows() {
    if skipped() {
        return;
    }
    for arithmetic in ARITHMETICS {
        for (splits, k) in [(2, 64), (3, 65), (4, 97), (5, 1)] {
            for (c_gap, n) in [(0, 12), (1, 13)] {
                let plan = Some((arithmetic.tiles().len() - 1, splits));
                let transposed = Layout { transposed: true, ..Layout::default() };
                let case = Case { plan, c_gap, a: transposed, ..Case::new((66, n, k), arithmetic) };
                case.check();
                Case { accumulate: true, bias: true, activation: Activation::Tanh, ..case }.check();
            }
        }
    }
}

#[test]
fn bias_and_activation_follow_the_sum() {
    if skipped() {
        return;
    }
    for activation in [Activation::Identity, Activation::Tanh, Activation::Sigmoid, Activation::Relu] {
        for n in [8, 9] {
            for accumulate in [false, true] {
                let case = Case::new((17, n, 5), Arithmetic::F32);
                Case { bias: true, activation, accumulate, ..case.clone() }.check();
                Case { activation, accumulate, ..case }.check();
            }
        }
    }
}

#[test]
fn a_sum_of_nothing_is_zero_and_the_rest_follows() {
    if skipped() {
        return;
    }
    for (accumulate, bias) in [(false, false), (true, false), (false, true)] {
        for arithmetic in ARITHMETICS {
            Case { accumulate, bias, ..Case::new((5, 6, 0), arithmetic) }.check();
        }
    }
}

#[test]
fn operands_stored_as_bf16_give_the_bits_of_rounded_ones() {
    if skipped() {
        return;
    }
    for shape in [(36, 40, 44), (35, 41, 37)] {
        for (a, b) in layouts() {
            let case = Case { a, b, ..Case::new(shape, Arithmetic::Bf16) };
            let reference = bits(&case.run());
            for (a_bf16, b_bf16) in [(true, false), (false, true), (true, true)] {
                let a = Layout { bf16: a_bf16, ..a };
                let b = Layout { bf16: b_bf16, ..b };
                let case = Case { a, b, ..case.clone() };
                assert_eq!(bits(&case.run()), reference, "{case:?}");
            }
        }
    }
}

#[test]
fn an_output_stored_as_bf16_has_the_bits_of_the_rounded_one() {
    if skipped() {
        return;
    }
    // Rows that are whole vectors, that end within one, and that begin where no vector does; every tile, and splits.
    for (n, c_gap) in [(40, 0), (38, 2), (37, 3), (37, 0)] {
        for tile in 0..Arithmetic::Bf16.tiles().len() {
            for (splits, activation) in [(1, Activation::Identity), (1, Activation::Tanh), (2, Activation::Identity)] {
                let case = Case {
                    c_gap,
                    bias: true,
                    activation,
                    plan: Some((tile, splits)),
                    ..Case::new((35, n, 70), Arithmetic::Bf16)
                };
                let (a, b, c, mut bias) = case.values();
                bias.iter_mut().for_each(|x| *x = rounded(*x, Arithmetic::Bf16));
                let exact = case.run_on(&a, &b, &c, &bias);
                let exact: Vec<f32> = exact.iter().map(|&x| rounded(x, Arithmetic::Bf16)).collect();
                let case = Case { c_bf16: true, ..case };
                assert_eq!(bits(&case.run()), bits(&exact), "{case:?}");
                Case { accumulate: true, ..case }.check();
            }
        }
    }
}

#[test]
fn packed_operands_give_the_bits_of_others() {
    if skipped() {
        return;
    }
    for arithmetic in [Arithmetic::Tf32, Arithmetic::Bf16] {
        let tile = arithmetic.tiles().iter().position(|tile| tile.packed).unwrap();
        // Some stages and many, a padded k and none, an operand that lies as if packed.
        for (shape, splits) in [((36, 40, 44), 1), ((35, 41, 37), 2), ((70, 30, 161), 1), ((20, 12, 96), 2)] {
            for (a, b) in layouts() {
                let case = Case { a, b, plan: Some((2, splits)), ..Case::new(shape, arithmetic) };
                let reference = bits(&case.run());
                for (packed, bf16) in [(tile, false), (tile + 1, arithmetic == Arithmetic::Bf16)] {
                    let a = Layout { bf16, ..a };
                    let case = Case { plan: Some((packed, splits)), a, ..case.clone() };
                    assert_eq!(bits(&case.run()), reference, "{case:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row_and_column() {
    if skipped() {
        return;
    }
    for arithmetic in ARITHMETICS {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let case = Case::new((20, 24, 18), arithmetic);
            let (mut a, b, c, bias) = case.values();
            a[3 * 18 + 7] = value;
            let result = case.run_on(&a, &b, &c, &bias);
            for (place, x) in result.iter().enumerate() {
                assert_eq!(x.is_finite(), place / 24 != 3, "{arithmetic:?} {value} at {place}");
                assert!(place / 24 != 3 || value.is_nan() == x.is_nan());
            }
        }
    }
}

#[test]
fn the_plan_covers_k_once_and_splits_long_thin_products_only() {
    for arithmetic in ARITHMETICS {
        for m in [1, 30, 320, 1280, 12_000] {
            for n in [1, 50, 640, 2560, 33_278] {
                for k in [0, 1, 31, 320, 1150, 12_000, 1 << 20] {
                    let plan = Plan::new(m, n, k, arithmetic);
                    let Plan { splits, split_length, .. } = plan;
                    assert!(
                        splits * split_length >= k && (splits == 1 || (splits - 1) * split_length < k),
                        "{plan:?} {k}"
                    );
                    assert!(split_length % DEPTH_UNIT == 0 && splits >= 1);
                    assert_eq!(workspace(m, n, k, arithmetic) > 0, splits > 1 || plan.tile.packed);
                }
            }
        }
        // A gradient of weights is split, what has tiles enough is not, and the large one takes the large tiles.
        assert!(Plan::new(320, 640, 12_000, arithmetic).splits > 1);
        let logits = Plan::new(5600, 33_278, 400, arithmetic);
        assert!(logits.splits == 1 && (arithmetic == Arithmetic::F32 || logits.tile.height == 256));
        assert_eq!(Plan::new(12_000, 2560, 640, arithmetic).splits, 1);
    }
}
