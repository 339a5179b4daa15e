//! The promises of `kernels/tile.cuh`, on the emulator or a GPU: that a lane's registers are where PTX says, and what the products round.

use super::context::{Buffer, Context};
use super::driver::{Argument, Launch};
use super::emulator::Order;
use super::testing::Device;
use crate::backend::cpu::testing::random;
use std::sync::Arc;

fn context() -> Option<Arc<Context>> {
    Device::in_order(Order::Shuffled(3)).map(|device| device.context)
}

fn uploaded<T: bytemuck::NoUninit>(context: &Arc<Context>, values: &[T]) -> Buffer {
    let buffer = context.allocate(size_of_val(values));
    context.upload(&buffer, values);
    buffer
}

/// Runs a kernel of one warp on buffers.
fn run(context: &Arc<Context>, kernel: &'static str, buffers: &[&Buffer], rest: &[Argument]) {
    let mut arguments: Vec<Argument> = buffers.iter().map(|buffer| Argument::Pointer(buffer.pointer())).collect();
    arguments.extend(rest);
    // SAFETY: the kernels of tile.cu, with buffers of the sizes that they say.
    unsafe { context.launch("tile", kernel, &Launch::blocks(1, 32).shared(512), &arguments) };
    context.check().unwrap();
}

// The tables of PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type" and "... for mma.m16n8k8": in lane l, of the group
// l / 4, its member l % 4.

/// (row, column) of c's and d's element i.
fn place_c(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i < 2 { 0 } else { 8 }, lane % 4 * 2 + (i & 1))
}

/// Of a's element i (0 to 7) in bf16.
fn place_a_bf16(lane: usize, i: usize) -> (usize, usize) {
    let row = lane / 4 + if matches!(i, 0 | 1 | 4 | 5) { 0 } else { 8 };
    (row, lane % 4 * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
}

/// Of b's element i (0 to 3) in bf16.
fn place_b_bf16(lane: usize, i: usize) -> (usize, usize) {
    (lane % 4 * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, lane / 4)
}

/// Of a's element i (0 to 3) in tf32.
fn place_a_tf32(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i == 0 || i == 2 { 0 } else { 8 }, lane % 4 + if i < 2 { 0 } else { 4 })
}

/// Of b's element i (0, 1) in tf32.
fn place_b_tf32(lane: usize, i: usize) -> (usize, usize) {
    (lane % 4 + 4 * i, lane / 4)
}

fn bf16_pair(low: f32, high: f32) -> u32 {
    let bits = |x| u32::from(half::bf16::from_f32(x).to_bits());
    bits(low) | bits(high) << 16
}

/// d = c + a b, dealt out and collected by those tables, against f64.
fn check_product(
    k: usize,
    kernel: &'static str,
    a_word: impl Fn(&[f32], usize, usize) -> u32,
    b_word: impl Fn(&[f32], usize, usize) -> u32,
    exact: impl Fn(f32) -> f32,
) {
    let Some(context) = context() else { return };
    let (a, b, c) = (random(16 * k, 1), random(k * 8, 2), random(16 * 8, 3));
    let lanes = |registers: usize, word: &dyn Fn(usize, usize) -> u32| -> Vec<u32> {
        (0..32 * registers).map(|place| word(place / registers, place % registers)).collect()
    };
    let a_words = uploaded(&context, &lanes(4, &|lane, i| a_word(&a, lane, i)));
    let b_words = uploaded(&context, &lanes(2, &|lane, i| b_word(&b, lane, i)));
    let c_words = uploaded(
        &context,
        &lanes(4, &|lane, i| {
            let (row, column) = place_c(lane, i);
            c[row * 8 + column].to_bits()
        }),
    );
    let d_words = context.allocate(32 * 4 * 4);
    run(&context, kernel, &[&a_words, &b_words, &c_words, &d_words], &[]);
    let d: Vec<f32> = context.download(&d_words, 32 * 4);
    for (place, &d) in d.iter().enumerate() {
        let (row, column) = place_c(place / 4, place % 4);
        let products = (0..k).map(|l| f64::from(exact(a[row * k + l])) * f64::from(exact(b[l * 8 + column])));
        let expected = f64::from(c[row * 8 + column]) + products.sum::<f64>();
        // k sums of at most k + 1, each rounded.
        let bound = (k * (k + 1)) as f64 * 6e-8;
        assert!((f64::from(d) - expected).abs() <= bound, "({row}, {column}): {d} for {expected}");
    }
}

#[test]
fn a_bf16_product_of_fragments_dealt_out_by_the_tables_is_the_product() {
    check_product(
        16,
        "tile_mma_bf16",
        |a, lane, i| {
            let at = |element| {
                let (row, column) = place_a_bf16(lane, element);
                a[row * 16 + column]
            };
            bf16_pair(at(2 * i), at(2 * i + 1))
        },
        |b, lane, i| {
            let at = |element| {
                let (row, column) = place_b_bf16(lane, element);
                b[row * 8 + column]
            };
            bf16_pair(at(2 * i), at(2 * i + 1))
        },
        |x| half::bf16::from_f32(x).to_f32(),
    );
}

#[test]
fn a_tf32_product_drops_thirteen_bits_of_its_operands() {
    check_product(
        8,
        "tile_mma_tf32",
        |a, lane, i| {
            let (row, column) = place_a_tf32(lane, i);
            a[row * 8 + column].to_bits()
        },
        |b, lane, i| {
            let (row, column) = place_b_tf32(lane, i);
            b[row * 8 + column].to_bits()
        },
        |x| f32::from_bits(x.to_bits() & !0x1fff),
    );
}

#[test]
fn fragments_know_the_places_of_the_tables() {
    let Some(context) = context() else { return };
    let (rows, columns) = (context.allocate(32 * 16 * 4), context.allocate(32 * 16 * 4));
    run(&context, "tile_places", &[&rows, &columns], &[]);
    let rows: Vec<i32> = context.download(&rows, 32 * 16);
    let columns: Vec<i32> = context.download(&columns, 32 * 16);
    for place in 0..32 * 16 {
        let (lane, i) = (place / 16, place % 16);
        let expected = match i {
            0..4 => place_c(lane, i),
            4..8 => place_a_bf16(lane, 2 * (i - 4)),
            8..12 => place_a_tf32(lane, i - 8),
            12..14 => place_b_bf16(lane, 2 * (i - 12)),
            _ => place_b_tf32(lane, i - 14),
        };
        assert_eq!((rows[place] as usize, columns[place] as usize), expected, "lane {lane}, number {i}");
    }
}

#[test]
fn matrices_are_loaded_as_documented_plain_and_transposed() {
    let Some(context) = context() else { return };
    // Element (row, column) of 16 bits is its own number.
    let element = |row: usize, column: usize| (row * 8 + column) as u32;
    let words: Vec<u32> =
        (0..32 * 4).map(|i| element(i / 4, i % 4 * 2) | element(i / 4, i % 4 * 2 + 1) << 16).collect();
    let (words, registers) = (uploaded(&context, &words), context.allocate(32 * 12 * 4));
    run(&context, "tile_ldmatrix", &[&words, &registers], &[]);
    let registers: Vec<u32> = context.download(&registers, 32 * 12);
    for lane in 0..32 {
        for i in 0..12 {
            let (matrix, transposed) = match i {
                0..4 => (i, false),
                4..8 => (i - 4, true),
                8..10 => (i - 8, false),
                _ => (i - 10, true),
            };
            let (line, first) = (lane / 4, lane % 4 * 2);
            let at = |j| if transposed { element(8 * matrix + j, line) } else { element(8 * matrix + line, j) };
            assert_eq!(registers[lane * 12 + i], at(first) | at(first + 1) << 16, "lane {lane}, register {i}");
        }
    }
}

#[test]
fn conversions_round_to_nearest_and_keep_what_is_not_finite() {
    let Some(context) = context() else { return };
    let mut values = random(200, 9);
    // Ties, a carry into the exponent, the largest, the smallest, and what is not finite.
    let ties =
        [0x3f80_1000, 0x3f80_3000, 0x3f80_0fff, 0xbf80_1000, 0x3f80_8000, 0x3f81_8000, 0x3fff_ffff, 0x7f7f_ffff, 1, 0];
    values.extend(ties.map(f32::from_bits));
    values.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    let input = uploaded(&context, &values);
    let (tf32, bf16) = (context.allocate(values.len() * 4), context.allocate(values.len() * 4));
    run(&context, "tile_conversions", &[&input, &tf32, &bf16], &[Argument::int(values.len())]);
    let tf32: Vec<u32> = context.download(&tf32, values.len());
    let bf16: Vec<u32> = context.download(&bf16, values.len());
    for ((value, tf32), bf16) in values.into_iter().zip(tf32).zip(bf16) {
        if value.is_nan() {
            // What the tensor cores see of it is still none.
            assert!(f32::from_bits(tf32 & !0x1fff).is_nan());
            assert!(f32::from_bits(bf16 << 16).is_nan() && f32::from_bits(bf16 & 0xffff_0000).is_nan());
            continue;
        }
        assert_eq!(bf16, bf16_pair(value, -value), "{value}");
        // In units of the last of 11 bits; a division by a power of two is exact.
        let unit = 2.0_f64.powi(((value.to_bits() >> 23 & 0xff) as i32).max(1) - 127 - 10);
        let nearest = (f64::from(value) / unit).round() * unit;
        let expected = if value.is_infinite() { f64::from(value) } else { nearest };
        let rounded = f64::from(f32::from_bits(tf32));
        assert!(rounded == expected || (rounded.is_infinite() && expected >= 2.0_f64.powi(128)), "{value}: {rounded}");
    }
}
