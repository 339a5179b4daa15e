//! One sequence: softmax, alpha, beta and the gradient's rows. See [`super`] for the recursions and the numbers.

use super::Rows;
use crate::backend::cpu::simd::{ROUND, WithSimd, reduced_exp};
use crate::backend::cpu::softmax::row_max;
use pulp::Simd;

/// The exponent of zero: far below any other, far from overflow when two are added.
const ZERO: i32 = -(1 << 29);
/// Exponents that all emissions of a sequence may add up to, and that one may have.
const LOWEST_PATH: usize = 1 << 28;
const LOWEST_EMISSION: usize = 1 << 20;
/// Widest vectors that any machine has, in f32 lanes.
const MAX_LANES: usize = 16;

/// Length of an array of L or L + 1 states: whole vectors, and one more to read past the end.
fn states_length(labels: usize) -> usize {
    (labels + 1).next_multiple_of(MAX_LANES) + MAX_LANES
}

/// Floats that a sequence needs.
pub fn workspace_length(frames: usize, labels: usize, symbols: usize) -> usize {
    // Mantissas and exponents: b, a and the labels' emissions for every frame; b, a of beta twice, skip; a frame's symbols.
    2 * ((3 * frames + 5) * states_length(labels) + symbols.next_multiple_of(MAX_LANES))
}

/// The rows of one sequence.
#[derive(Clone, Copy)]
pub struct Frames<'a> {
    pub logits: &'a [f32],
    pub gradient: Option<Rows>,
    pub symbols: usize,
    /// One for each frame of this sequence.
    pub offsets: &'a [usize],
    pub sequence: usize,
}

impl<'a> Frames<'a> {
    fn row(&self, t: usize) -> usize {
        (self.offsets[t] + self.sequence) * self.symbols
    }

    fn logits(&self, t: usize) -> &'a [f32] {
        &self.logits[self.row(t)..][..self.symbols]
    }

    /// The gradient's row, to be dropped before it is asked for again.
    fn gradient(&mut self, t: usize) -> Option<&mut [f32]> {
        let row = self.row(t);
        // SAFETY: `super::check` found the gradient as long as the logits and this row to be this sequence's alone.
        self.gradient.map(|rows| unsafe { std::slice::from_raw_parts_mut(rows.0.add(row), self.symbols) })
    }

    pub fn clear_gradient(mut self) {
        for t in 0..self.offsets.len() {
            if let Some(row) = self.gradient(t) {
                row.fill(0.0);
            }
        }
    }
}

/// Loss (and gradient) of one feasible sequence of at least one frame; its output is the loss.
pub struct Alignment<'a> {
    pub frames: Frames<'a>,
    pub labels: &'a [u32],
    pub blank: usize,
    pub workspace: &'a mut [f32],
}

/// Vectors of numbers mantissa x 2^exponent.
#[derive(Clone, Copy)]
struct Number<S: Simd> {
    mantissa: S::f32s,
    exponent: S::i32s,
}

/// Arrays of such numbers.
struct Numbers<'a> {
    mantissas: &'a mut [f32],
    exponents: &'a mut [i32],
}

impl<'a> Numbers<'a> {
    /// Takes `length` numbers from the front of `workspace`.
    fn take(workspace: &mut &'a mut [f32], length: usize) -> Self {
        let (mantissas, rest) = std::mem::take(workspace).split_at_mut(length);
        let (exponents, rest) = rest.split_at_mut(length);
        *workspace = rest;
        Numbers { mantissas, exponents: bytemuck::cast_slice_mut(exponents) }
    }

    fn part(&mut self, start: usize, length: usize) -> Numbers<'_> {
        Numbers {
            mantissas: &mut self.mantissas[start..start + length],
            exponents: &mut self.exponents[start..start + length],
        }
    }

    /// Frame `t` of rows of 3 `width` numbers, and the one before.
    fn frames(&mut self, t: usize, width: usize) -> (Option<Frame<'_>>, Frame<'_>) {
        let start = t.saturating_sub(1) * 3 * width;
        let length = 3 * width;
        let mut both = self.part(start, (t.min(1) + 1) * length);
        if t == 0 {
            return (None, Frame { numbers: both, width });
        }
        let before = Numbers::cut(&mut both, length);
        (Some(Frame { numbers: before, width }), Frame { numbers: both, width })
    }

    /// Cuts the first `length` numbers off.
    fn cut(from: &mut Self, length: usize) -> Self {
        let (mantissas, exponents) = (std::mem::take(&mut from.mantissas), std::mem::take(&mut from.exponents));
        let ((mantissas, behind), (exponents, exponents_behind)) =
            (mantissas.split_at_mut(length), exponents.split_at_mut(length));
        *from = Numbers { mantissas: behind, exponents: exponents_behind };
        Numbers { mantissas, exponents }
    }

    fn set(&mut self, index: usize, (mantissa, exponent): (f32, i32)) {
        (self.mantissas[index], self.exponents[index]) = (mantissa, exponent);
    }

    fn get(&self, index: usize) -> (f32, i32) {
        (self.mantissas[index], self.exponents[index])
    }

    fn clear(&mut self) {
        self.mantissas.fill(1.0);
        self.exponents.fill(ZERO);
    }

    #[inline(always)]
    fn load<S: Simd>(&self, index: usize) -> Number<S> {
        let (mantissas, exponents) =
            (&self.mantissas[index..][..S::F32_LANES], &self.exponents[index..][..S::F32_LANES]);
        // SAFETY: both slices were just cut to a vector's length.
        unsafe {
            Number {
                mantissa: mantissas.as_ptr().cast::<S::f32s>().read_unaligned(),
                exponent: exponents.as_ptr().cast::<S::i32s>().read_unaligned(),
            }
        }
    }

    #[inline(always)]
    fn store<S: Simd>(&mut self, index: usize, number: Number<S>) {
        let mantissas = &mut self.mantissas[index..][..S::F32_LANES];
        let exponents = &mut self.exponents[index..][..S::F32_LANES];
        // SAFETY: as above.
        unsafe {
            mantissas.as_mut_ptr().cast::<S::f32s>().write_unaligned(number.mantissa);
            exponents.as_mut_ptr().cast::<S::i32s>().write_unaligned(number.exponent);
        }
    }
}

/// 2^d for d <= 127; 0 for d <= -127.
#[inline(always)]
fn power<S: Simd>(simd: S, d: S::i32s) -> S::f32s {
    let biased = simd.add_i32s(simd.max_i32s(d, simd.splat_i32s(-127)), simd.splat_i32s(127));
    simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_i32s(biased), simd.splat_u32s(23)))
}

impl<S: Simd> Number<S> {
    #[inline(always)]
    fn times(self, simd: S, other: Self) -> Self {
        Number {
            mantissa: simd.mul_f32s(self.mantissa, other.mantissa),
            exponent: simd.add_i32s(self.exponent, other.exponent),
        }
    }

    #[inline(always)]
    fn plus(self, simd: S, other: Self) -> Self {
        let exponent = simd.max_i32s(self.exponent, other.exponent);
        let scale = |number: Self| power(simd, simd.sub_i32s(number.exponent, exponent));
        let mantissa = simd.mul_f32s(other.mantissa, scale(other));
        Number { mantissa: simd.mul_add_e_f32s(self.mantissa, scale(self), mantissa), exponent }
    }

    /// The mantissa back in [1, 2), the exponent not below ZERO. The mantissa is a positive normal number.
    #[inline(always)]
    fn normal(self, simd: S) -> Self {
        let bits = simd.transmute_u32s_f32s(self.mantissa);
        let shift = simd.wrapping_dyn_shr_u32s(bits, simd.splat_u32s(23));
        let shift = simd.sub_i32s(simd.transmute_i32s_u32s(shift), simd.splat_i32s(127));
        let mantissa = simd.or_u32s(simd.and_u32s(bits, simd.splat_u32s(0x007f_ffff)), simd.splat_u32s(0x3f80_0000));
        Number {
            mantissa: simd.transmute_f32s_u32s(mantissa),
            exponent: simd.max_i32s(simd.add_i32s(self.exponent, shift), simd.splat_i32s(ZERO)),
        }
    }

    #[inline(always)]
    fn splat(simd: S, (mantissa, exponent): (f32, i32)) -> Self {
        Number { mantissa: simd.splat_f32s(mantissa), exponent: simd.splat_i32s(exponent) }
    }
}

/// What a frame keeps, in three parts of `width` numbers: b; a, shifted by one so that a[-1] = 0 is in place; the labels' emissions,
/// and in their last place, which no vector reads, the blank's.
struct Frame<'a> {
    numbers: Numbers<'a>,
    width: usize,
}

impl Frame<'_> {
    fn emission_of_blank(&self) -> (f32, i32) {
        self.numbers.get(3 * self.width - 1)
    }

    /// Copies the emissions of `labels` and the blank out of a frame's table of symbols.
    fn gather(&mut self, table: &Numbers, labels: &[u32], blank: usize) {
        let first = 2 * self.width;
        for (l, &label) in labels.iter().enumerate() {
            self.numbers.set(first + l, table.get(label as usize));
        }
        self.numbers.part(first + labels.len(), self.width - labels.len()).clear();
        self.numbers.set(3 * self.width - 1, table.get(blank));
    }

    /// Alpha of the first frame.
    fn start(&mut self) {
        self.numbers.part(0, 2 * self.width).clear();
        self.numbers.set(0, self.emission_of_blank());
        // Without labels this is the zero that fills the emissions.
        self.numbers.set(self.width + 1, self.numbers.get(2 * self.width));
    }

    /// Alpha from that of the frame before.
    #[inline(always)]
    fn advance<S: Simd>(&mut self, simd: S, before: &Frame, skip: &Numbers, labels: usize) {
        let width = self.width;
        let blank = Number::<S>::splat(simd, self.emission_of_blank());
        self.numbers.set(width, (1.0, ZERO));
        for l in (0..=labels).step_by(S::F32_LANES) {
            let b: Number<S> = before.numbers.load(l);
            let previous: Number<S> = before.numbers.load(width + l);
            let a: Number<S> = before.numbers.load(width + l + 1);
            let emission = self.numbers.load(2 * width + l);
            self.numbers.store(l, b.plus(simd, previous).times(simd, blank).normal(simd));
            let skipped = Number {
                mantissa: previous.mantissa,
                exponent: simd.add_i32s(previous.exponent, skip.load::<S>(l).exponent),
            };
            let sum = a.plus(simd, b).plus(simd, skipped);
            self.numbers.store(width + l + 1, sum.times(simd, emission).normal(simd));
        }
    }
}

/// Beta of one frame, the emissions of that frame left out: b and a, `width` numbers each, not shifted.
struct Beta<'a> {
    numbers: Numbers<'a>,
    /// Room for beta times the emissions, and for the posteriors.
    scratch: Numbers<'a>,
    width: usize,
}

impl Beta<'_> {
    /// Beta of the last frame: a path ends in the last label or the blank behind it.
    fn start(&mut self, labels: usize) {
        self.numbers.clear();
        self.scratch.clear();
        self.numbers.set(labels, (1.0, 0));
        if labels > 0 {
            self.numbers.set(self.width + labels - 1, (1.0, 0));
        }
    }

    /// Beta from that of the frame behind, `next`.
    #[inline(always)]
    fn retreat<S: Simd>(&mut self, simd: S, next: &Frame, skip: &Numbers, labels: usize) {
        let width = self.width;
        let blank = Number::<S>::splat(simd, next.emission_of_blank());
        for l in (0..=labels).step_by(S::F32_LANES) {
            self.scratch.store(l, self.numbers.load::<S>(l).times(simd, blank));
            let emission = next.numbers.load::<S>(2 * width + l);
            self.scratch.store(width + l, self.numbers.load(width + l).times(simd, emission));
        }
        for l in (0..=labels).step_by(S::F32_LANES) {
            let (b, a): (Number<S>, Number<S>) = (self.scratch.load(l), self.scratch.load(width + l));
            let (b_behind, a_behind): (Number<S>, Number<S>) =
                (self.scratch.load(l + 1), self.scratch.load(width + l + 1));
            let skipped = Number {
                mantissa: a_behind.mantissa,
                exponent: simd.add_i32s(a_behind.exponent, skip.load::<S>(l + 1).exponent),
            };
            self.numbers.store(l, b.plus(simd, a).normal(simd));
            self.numbers.store(width + l, a.plus(simd, b_behind).plus(simd, skipped).normal(simd));
        }
    }

    /// Posteriors of the states of `frame`, up to a common factor near 1, left in the mantissas of `scratch`; returns the sums over
    /// blanks and over all. `exponent` is that of the whole probability.
    #[inline(always)]
    fn posteriors<S: Simd>(&mut self, simd: S, frame: &Frame, exponent: i32, labels: usize) -> (f32, f32) {
        let width = self.width;
        let one = Number::<S>::splat(simd, (1.0, exponent.wrapping_neg()));
        let (mut blanks, mut all) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
        for l in (0..=labels).step_by(S::F32_LANES) {
            let value = |alpha: Number<S>, beta: Number<S>| {
                let product = alpha.times(simd, beta).times(simd, one);
                simd.mul_f32s(product.mantissa, power(simd, product.exponent))
            };
            let b = value(frame.numbers.load(l), self.numbers.load(l));
            let a = value(frame.numbers.load(width + l + 1), self.numbers.load(width + l));
            self.scratch.store(l, Number::<S> { mantissa: b, exponent: simd.splat_i32s(0) });
            self.scratch.store(width + l, Number::<S> { mantissa: a, exponent: simd.splat_i32s(0) });
            blanks = simd.add_f32s(blanks, b);
            all = simd.add_f32s(all, a);
        }
        let blanks = simd.reduce_sum_f32s(blanks);
        (blanks, blanks + simd.reduce_sum_f32s(all))
    }
}

/// The mantissas and exponents of exp(x - max) for all symbols of a frame, none below 2^-lowest; returns their sum.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, logits: &[f32], table: &mut Numbers, lowest: usize) -> f32 {
    let lanes = S::F32_LANES;
    let max = simd.splat_f32s(row_max(simd, logits));
    let low = simd.splat_f32s(-(lowest as f32) * std::f32::consts::LN_2);
    let mut sum = simd.splat_f32s(0.0);
    let mut rest = 0.0;
    for (chunk, x) in logits.chunks(lanes).enumerate() {
        let x = simd.sub_f32s(simd.partial_load_f32s(x), max);
        let (expm1, n) = reduced_exp(simd, simd.select_f32s(simd.less_than_f32s(x, low), low, x));
        let exponent = simd.transmute_i32s_u32s(simd.sub_u32s(n, simd.splat_u32s(ROUND.to_bits())));
        let number = Number::<S> { mantissa: simd.add_f32s(simd.splat_f32s(1.0), expm1), exponent };
        table.store(chunk * lanes, number);
        if (chunk + 1) * lanes <= logits.len() {
            sum = simd.mul_add_e_f32s(number.mantissa, power(simd, number.exponent), sum);
        } else {
            for index in chunk * lanes..logits.len() {
                let (mantissa, exponent) = table.get(index);
                rest += mantissa * f32::from_bits((exponent.clamp(-127, 127) + 127).cast_unsigned() << 23);
            }
        }
    }
    simd.reduce_sum_f32s(sum) + rest
}

/// The softmax of a frame into its row of the gradient.
#[inline(always)]
fn softmax<S: Simd>(simd: S, table: &Numbers, sum: f32, row: &mut [f32]) {
    let scale = simd.splat_f32s(1.0 / sum);
    for (chunk, row) in row.chunks_mut(S::F32_LANES).enumerate() {
        let Number { mantissa, exponent } = table.load::<S>(chunk * S::F32_LANES);
        simd.partial_store_f32s(row, simd.mul_f32s(simd.mul_f32s(mantissa, power(simd, exponent)), scale));
    }
}

impl WithSimd for Alignment<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Alignment { mut frames, labels, blank, workspace } = self;
        let (steps, symbols, count) = (frames.offsets.len(), frames.symbols, labels.len());
        let width = states_length(count);
        let mut rest = workspace;
        let mut rows = Numbers::take(&mut rest, 3 * steps * width);
        let mut table = Numbers::take(&mut rest, symbols.next_multiple_of(MAX_LANES));
        let mut skip = Numbers::take(&mut rest, width);
        let (numbers, scratch) = (Numbers::take(&mut rest, 2 * width), Numbers::take(&mut rest, 2 * width));
        let mut beta = Beta { numbers, scratch, width };
        skip.clear();
        for (l, pair) in labels.windows(2).enumerate() {
            if pair[0] != pair[1] {
                skip.exponents[l + 1] = 0;
            }
        }

        let lowest = (LOWEST_PATH / steps).min(LOWEST_EMISSION);
        let mut log_sums = 0.0;
        for t in 0..steps {
            let sum = exponentials(simd, frames.logits(t), &mut table, lowest);
            log_sums += f64::from(sum).ln();
            if let Some(gradient) = frames.gradient(t) {
                softmax(simd, &table, sum, gradient);
            }
            let (before, mut now) = rows.frames(t, width);
            now.gather(&table, labels, blank);
            match before {
                Some(before) => now.advance(simd, &before, &skip, count),
                None => now.start(),
            }
        }

        // p = b[L] + a[L - 1] of the last frame; a is shifted by one, and a[-1] is zero.
        let (_, last) = rows.frames(steps - 1, width);
        let (b, a) = (last.numbers.get(count), last.numbers.get(width + count));
        let exponent = b.1.max(a.1);
        let scaled = |(mantissa, own): (f32, i32)| f64::from(mantissa) * f64::from((own - exponent).max(-1000)).exp2();
        let log_probability = (scaled(b) + scaled(a)).ln() + f64::from(exponent) * std::f64::consts::LN_2;

        if frames.gradient.is_some() {
            beta.start(count);
            for t in (0..steps).rev() {
                if t + 1 < steps {
                    beta.retreat(simd, &rows.frames(t + 1, width).1, &skip, count);
                }
                let (blanks, all) = beta.posteriors(simd, &rows.frames(t, width).1, exponent, count);
                let Some(row) = frames.gradient(t) else { break };
                // All posteriors of a frame add up to 1: dividing by their own sum takes out what rounding is common to them.
                let scale = 1.0 / all;
                row[blank] -= blanks * scale;
                for (&label, posterior) in labels.iter().zip(&beta.scratch.mantissas[width..]) {
                    row[label as usize] -= posterior * scale;
                }
            }
        }
        log_sums - log_probability
    }
}
