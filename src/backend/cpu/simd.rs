//! Vector mathematics: exp, log, sigmoid and tanh of f32, generic over the vector width through [`pulp::Simd`].
//!
//! Errors against f64 (ulp of the exact result; `cargo test --release simd -- --nocapture` measures and prints them): see [`MAX_ULP`]. NaN gives NaN, infinities give the limit.
//!
//! Vector instructions reach a function only by inlining it into the dispatched one, and a closure is a function too. Within a kernel of [`WithSimd`] no
//! closure takes vectors (the recurrent product was 60 times slower with one); [`vectorized`] is for closures of plain loops.
//!
//! exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln 2 / 2; exp(r) - 1 = r + r^2 q(r), where q is the polynomial of degree 5 with the
//! least relative error on that interval (Remez, 2.4e-10). The same reduction serves all of them.

use pulp::Simd;

/// The error that the tests allow, in units of the last place: exp, log, sigmoid, tanh (measured: 0.98, 0.89, 2.37, 2.49). By count of
/// roundings: exp and log end in one (0.5) after a reduced argument that is off by as much; the sigmoid adds a sum and a quotient, each
/// up to one unit where the result lies just above a power of two; tanh also passes through exp - 1 close to -1, whose unit is
/// half that of m + 2.
pub const MAX_ULP: [f64; 4] = [1.0, 1.0, 2.5, 3.0];

/// ln 2 in two parts; the first has ten significant bits, so its products with |n| < 2^14 are exact even without a fused multiply-add.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Adding 1.5 * 2^23 + 127 to n rounds it to an integer and leaves n + 127 in the low bits: shifted to the exponent's place, 2^n.
pub const ROUND: f32 = 12_582_912.0 + 127.0;
/// The same for 2^(n - 1).
const ROUND_HALVED: f32 = ROUND - 1.0;
/// exp of less than this is no normal number any more (ln 2^-126 = -87.3365).
const SMALLEST_NORMAL: f32 = -87.336;

/// An expression over vectors that [`apply`] runs with the widest instruction set of this machine.
pub use pulp::WithSimd;

/// Runs `operation` with the widest instruction set that this machine has.
#[inline]
pub fn apply<Operation: WithSimd>(operation: Operation) -> Operation::Output {
    pulp::Arch::new().dispatch(operation)
}

/// Runs a closure with the widest instruction set that this machine has: for loops of which the compiler makes vectors by itself. Mark the closure
/// `#[inline(always)]`. Widths change no bits: nothing is contracted or reordered.
#[inline]
pub fn vectorized<Output>(work: impl FnMut() -> Output) -> Output {
    apply(Vectorized(work))
}

/// Called as `FnMut`, a closure is inlined; between a `FnOnce` and a closure that is none the compiler puts a function without vector instructions.
struct Vectorized<Work>(Work);

impl<Output, Work: FnMut() -> Output> WithSimd for Vectorized<Work> {
    type Output = Output;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> Output {
        (self.0)()
    }
}

/// min(max(x, low), high), and NaN for NaN.
#[inline(always)]
pub fn clamp<S: Simd>(simd: S, x: S::f32s, low: f32, high: f32) -> S::f32s {
    let (low, high) = (simd.splat_f32s(low), simd.splat_f32s(high));
    if cfg!(target_arch = "x86_64") && is_native::<S>() {
        // These return their second operand if one is NaN.
        return simd.min_f32s(high, simd.max_f32s(low, x));
    }
    let x = simd.select_f32s(simd.less_than_f32s(x, low), low, x);
    simd.select_f32s(simd.greater_than_f32s(x, high), high, x)
}

/// True if vectors of S are the machine's own, not arrays.
#[inline(always)]
fn is_native<S: Simd>() -> bool {
    use std::any::TypeId;
    let portable = [
        TypeId::of::<pulp::Scalar>(),
        TypeId::of::<pulp::Scalar128b>(),
        TypeId::of::<pulp::Scalar256b>(),
        TypeId::of::<pulp::Scalar512b>(),
    ];
    !portable.contains(&TypeId::of::<S>())
}

/// (exp(r) - 1, bits) of x = n ln 2 + r, for |x| < 2^21 ln 2; n is the difference of the bits to those of [`ROUND`].
#[inline(always)]
pub fn reduced_exp<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::u32s) {
    reduced_exp_by(simd, x, ROUND)
}

#[inline(always)]
fn reduced_exp_by<S: Simd>(simd: S, x: S::f32s, round: f32) -> (S::f32s, S::u32s) {
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(round));
    let n = simd.sub_f32s(shifted, simd.splat_f32s(round));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN2_HIGH), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN2_LOW), r);
    // Estrin's scheme: three steps deep where Horner's takes five, and the kernels wait for this chain.
    let r2 = simd.mul_f32s(r, r);
    let q0 = simd.mul_add_e_f32s(r, simd.splat_f32s(0.166_666_67), simd.splat_f32s(0.5));
    let q2 = simd.mul_add_e_f32s(r, simd.splat_f32s(8.333_273e-3), simd.splat_f32s(4.166_635_5e-2));
    let q4 = simd.mul_add_e_f32s(r, simd.splat_f32s(1.991_417_2e-4), simd.splat_f32s(1.394_100_8e-3));
    let q = simd.mul_add_e_f32s(simd.mul_add_e_f32s(q4, r2, q2), r2, q0);
    (simd.mul_add_e_f32s(r2, q, r), simd.transmute_u32s_f32s(shifted))
}

/// 2^n for the bits that [`reduced_exp`] gives, where 2^n is a normal number: the bits of ROUND above n + 127 vanish in the shift.
#[inline(always)]
fn power<S: Simd>(simd: S, bits: S::u32s) -> S::f32s {
    simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23)))
}

/// exp(x) over the whole range: infinity above 88.72, gradual underflow down to 0 at -103.97.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = clamp(simd, x, -105.0, 90.0);
    // 2^n may be out of range although the result is not, so it comes in two factors of about half its exponent.
    let (expm1, bits) = reduced_exp(simd, x);
    let half = simd.splat_f32s(0.5 * std::f32::consts::LOG2_E);
    let half = simd.transmute_u32s_f32s(simd.mul_add_e_f32s(x, half, simd.splat_f32s(ROUND)));
    let other = simd.add_u32s(simd.sub_u32s(bits, half), simd.splat_u32s(127));
    let scale = power(simd, half);
    simd.mul_f32s(simd.mul_add_e_f32s(expm1, scale, scale), power(simd, other))
}

/// exp(x) for x <= 0; results below the smallest normal number (x < -87.336) are 0.
#[inline(always)]
pub fn exp_nonpositive<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let low = simd.splat_f32s(SMALLEST_NORMAL);
    let vanishes = simd.less_than_f32s(x, low);
    let (expm1, bits) = reduced_exp(simd, simd.select_f32s(vanishes, low, x));
    let scale = power(simd, bits);
    simd.select_f32s(vanishes, simd.splat_f32s(0.0), simd.mul_add_e_f32s(expm1, scale, scale))
}

/// 1 / (1 + exp(-x)).
#[inline(always)]
pub fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (expm1, bits) = reduced_exp_by(simd, clamp(simd, simd.neg_f32s(x), -87.0, 89.0), ROUND_HALVED);
    // Half of exp(-x), finite up to the limit of 89 where exp(-x) is not: then the denominator is infinite, the result 0.
    let scale = power(simd, bits);
    let half = simd.mul_add_e_f32s(expm1, scale, scale);
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.mul_add_e_f32s(half, simd.splat_f32s(2.0), one))
}

/// tanh(x) = m / (m + 2) with m = exp(2x) - 1, which loses nothing near 0. (The sign of a zero is lost.)
#[inline(always)]
pub fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // From 9.02 on tanh rounds to 1.
    let (expm1, bits) = reduced_exp(simd, clamp(simd, simd.add_f32s(x, x), -19.0, 19.0));
    let scale = power(simd, bits);
    let m = simd.mul_add_e_f32s(expm1, scale, simd.sub_f32s(scale, simd.splat_f32s(1.0)));
    simd.div_f32s(m, simd.add_f32s(m, simd.splat_f32s(2.0)))
}

/// ln(x); -infinity at 0, NaN below.
#[inline(always)]
pub fn log<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const SQRT_HALF_BITS: u32 = 0x3f35_04f3;
    const ONE_BITS: u32 = 127 << 23;
    let subnormal = simd.less_than_f32s(x, simd.splat_f32s(f32::MIN_POSITIVE));
    let scaled = simd.select_f32s(subnormal, simd.mul_f32s(x, simd.splat_f32s(8_388_608.0)), x);
    let bits = simd.transmute_u32s_f32s(scaled);
    // x = 2^k m with m in [sqrt(1/2), sqrt(2)).
    let biased = simd.add_u32s(bits, simd.splat_u32s(ONE_BITS - SQRT_HALF_BITS));
    let biased = simd.wrapping_dyn_shr_u32s(biased, simd.splat_u32s(23));
    let m = simd.sub_u32s(bits, simd.wrapping_dyn_shl_u32s(biased, simd.splat_u32s(23)));
    let m = simd.transmute_f32s_u32s(simd.add_u32s(m, simd.splat_u32s(ONE_BITS)));
    let k = simd.transmute_f32s_u32s(simd.or_u32s(biased, simd.splat_u32s(0x4b00_0000)));
    let bias = simd.select_f32s(subnormal, simd.splat_f32s(8_388_608.0 + 150.0), simd.splat_f32s(8_388_608.0 + 127.0));
    let k = simd.sub_f32s(k, bias);
    let f = simd.sub_f32s(m, simd.splat_f32s(1.0));
    let mut q = simd.splat_f32s(-7.823_381e-2);
    for coefficient in [
        0.130_048_32,
        -0.132_087_95,
        0.141_634_69,
        -0.166_111_5,
        0.200_030_16,
        -0.250_015_23,
        0.333_333_08,
        -0.499_999_88,
    ] {
        q = simd.mul_add_e_f32s(q, f, simd.splat_f32s(coefficient));
    }
    let tail = simd.mul_add_e_f32s(simd.mul_f32s(f, f), q, simd.mul_f32s(k, simd.splat_f32s(LN2_LOW)));
    let result = simd.mul_add_e_f32s(k, simd.splat_f32s(LN2_HIGH), simd.add_f32s(f, tail));
    let result = simd.select_f32s(simd.less_than_f32s(x, simd.splat_f32s(f32::INFINITY)), result, x);
    let result = simd.select_f32s(simd.less_than_f32s(x, simd.splat_f32s(0.0)), simd.splat_f32s(f32::NAN), result);
    simd.select_f32s(simd.equal_f32s(x, simd.splat_f32s(0.0)), simd.splat_f32s(f32::NEG_INFINITY), result)
}

/// Asks for the cache line at `place`, which need not be a valid address.
#[inline(always)]
pub fn prefetch(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on caches; SSE belongs to the architecture.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Loads `slice[start..start + lanes]`, or what there is of it, zeros behind.
#[inline(always)]
pub fn load<S: Simd>(simd: S, slice: &[f32], start: usize) -> S::f32s {
    simd.partial_load_f32s(&slice[start..slice.len().min(start + S::F32_LANES)])
}

/// The instruction set that [`apply`] uses on this machine, in words.
pub fn instruction_set() -> &'static str {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    match apply(Lanes) {
        16 => "AVX-512",
        8 => "AVX2",
        4 => "128-bit vectors",
        _ => "no vectors",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies one of the four functions to a slice.
    struct Map<'a>(usize, &'a [f32], &'a mut [f32]);

    impl WithSimd for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Map(which, input, output) = self;
            for (x, y) in input.chunks(S::F32_LANES).zip(output.chunks_mut(S::F32_LANES)) {
                let x = simd.partial_load_f32s(x);
                let result = match which {
                    0 => exp(simd, x),
                    1 => log(simd, x),
                    2 => sigmoid(simd, x),
                    3 => tanh(simd, x),
                    _ => exp_nonpositive(simd, x),
                };
                simd.partial_store_f32s(y, result);
            }
        }
    }

    fn exact(which: usize, x: f64) -> f64 {
        match which {
            0 => x.exp(),
            1 => x.ln(),
            2 => {
                let e = (-x.abs()).exp();
                if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
            }
            _ => x.tanh(),
        }
    }

    /// The distance in units of the last place of the exact result; subnormal results are held against the smallest ulp.
    fn ulps(got: f32, exact: f64) -> f64 {
        if f64::from(got) == exact || (got.is_infinite() && exact.abs() > f64::from(f32::MAX) * (1.0 + 3e-8)) {
            return 0.0;
        }
        let exponent = exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
        (f64::from(got) - exact).abs() / (exponent - 23.0).exp2()
    }

    /// Bit patterns of which every so-manieth is tried.
    struct Sweep {
        from: u32,
        /// The last, if the steps meet it.
        to: u32,
        step: usize,
    }

    fn everywhere(step: usize) -> Sweep {
        Sweep { from: 0, to: u32::MAX, step }
    }

    /// The largest error of a function, and where it is.
    fn worst(which: usize, sweep: &Sweep, run: &impl Fn(Map)) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        let mut patterns = (sweep.from..=sweep.to).step_by(sweep.step).map(f32::from_bits);
        loop {
            let input: Vec<f32> = patterns.by_ref().take(1 << 16).collect();
            if input.is_empty() {
                return worst;
            }
            let mut output = vec![0.0; input.len()];
            run(Map(which, &input, &mut output));
            for (&x, &y) in input.iter().zip(&output) {
                let expected = exact(which, f64::from(x));
                if expected.is_nan() {
                    assert!(y.is_nan(), "function {which} of {x} gave {y}");
                    continue;
                }
                // Where exp(-x) is infinite the sigmoid is 0, not subnormal.
                if which == 2 && expected < 3e-39 {
                    assert!((0.0..3e-39).contains(&y), "sigmoid({x}) = {y}");
                    continue;
                }
                let error = ulps(y, expected);
                if error > worst.0 || error.is_nan() {
                    worst = (error, x);
                }
            }
        }
    }

    /// Densely where the errors are largest: exp and its relatives between 2^-14 and their limits, the logarithm around 1, where its two
    /// parts cancel. Everywhere else the argument is so small or so large that little is computed.
    #[test]
    fn errors_stay_within_the_stated_units_of_the_last_place_over_the_full_range() {
        let magnitudes =
            |low: f32, high: f32, sign: u32| Sweep { from: low.to_bits() | sign, to: high.to_bits() | sign, step: 61 };
        let around_zero = || vec![magnitudes(6e-5, 128.0, 0), magnitudes(6e-5, 128.0, 1 << 31)];
        let dense = [around_zero(), vec![magnitudes(0.25, 4.0, 0)], around_zero(), around_zero()];
        for (which, dense) in dense.into_iter().enumerate() {
            for sweep in dense.into_iter().chain([everywhere(9973)]) {
                let (error, at) = worst(which, &sweep, &|map| apply(map));
                println!("function {which}: {error:.3} ulp at {at:e}");
                assert!(error <= MAX_ULP[which], "{error} ulp at {at:e}, {} allowed", MAX_ULP[which]);
            }
        }
    }

    #[test]
    fn without_fused_multiply_add_the_errors_grow_by_less_than_one_unit() {
        for (which, allowed) in MAX_ULP.into_iter().enumerate() {
            let (error, at) = worst(which, &everywhere(99_991), &|map| map.with_simd(pulp::Scalar256b));
            assert!(error <= allowed + 1.0, "{error} ulp at {at:e}");
        }
    }

    #[test]
    fn limits_signs_and_nan_are_exact() {
        let input = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e4, -1e4, 1e-40];
        let run = |which| {
            let mut output = [0.0f32; 8];
            apply(Map(which, &input, &mut output));
            assert!(output[0].is_nan(), "function {which} loses NaN");
            output
        };
        assert_eq!(run(0)[1..], [f32::INFINITY, 0.0, 1.0, 1.0, f32::INFINITY, 0.0, 1.0]);
        assert_eq!(run(2)[1..], [1.0, 0.0, 0.5, 0.5, 1.0, 0.0, 0.5]);
        assert_eq!(run(4)[2..], [0.0, 1.0, 1.0, run(4)[5], 0.0, 1.0]);
        let tanh = run(3);
        assert_eq!(tanh[1..], [1.0, -1.0, 0.0, 0.0, 1.0, -1.0, 1e-40]);
        let log = run(1);
        assert_eq!(log[1..2], [f32::INFINITY]);
        assert!(log[2].is_nan() && log[6].is_nan());
        assert_eq!(log[3..5], [f32::NEG_INFINITY; 2]);
    }
}
