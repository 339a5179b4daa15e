//! Random numbers that depend on what they are for, never on the order in which they are drawn.
//!
//! The generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a keyed bijection of a
//! counter. The key is hashed from a seed and a name (`stage 1-4, step 17, dropout encoder.2`), the counter is the logical place of an
//! element, so CPU, GPU and emulator draw the same numbers, in any order and on any number of threads.

use crate::error::{Error, Result};

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// A keyed Philox 4x32-10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    pub fn new(key: u64) -> Self {
        Philox { key: [key as u32, (key >> 32) as u32] }
    }

    /// A generator for one purpose: equal seeds with different names give unrelated numbers.
    pub fn named(seed: u64, name: &str) -> Self {
        Self::new(derive(seed, name))
    }

    /// The four numbers at `counter`.
    #[inline]
    pub fn block(&self, counter: [u32; 4]) -> [u32; 4] {
        let [block] = self.blocks(counter);
        block
    }

    /// The numbers at N counters one after the other, from `first` on; only the first word counts on, and wraps.
    ///
    /// Every word is held in 64 bits whose upper half is arbitrary: a product's lower half is the next round's word as it is, and the compiler makes
    /// two multiplications, two shifts and four exclusive ors of a round, each of as many counters as a vector has words of 64 bits.
    #[inline(always)]
    pub fn blocks<const N: usize>(&self, first: [u32; 4]) -> [[u32; 4]; N] {
        const LOWER: u64 = u32::MAX as u64;
        let mut x0: [u64; N] = std::array::from_fn(|lane| u64::from(first[0].wrapping_add(lane as u32)));
        let [mut x1, mut x2, mut x3] = [1, 2, 3].map(|word: usize| [u64::from(first[word]); N]);
        let mut key = self.key;
        for round in 0..ROUNDS {
            if round > 0 {
                key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
            }
            for (((x0, x1), x2), x3) in x0.iter_mut().zip(&mut x1).zip(&mut x2).zip(&mut x3) {
                let first = u64::from(MULTIPLIERS[0]) * (*x0 & LOWER);
                let second = u64::from(MULTIPLIERS[1]) * (*x2 & LOWER);
                *x0 = (second >> 32) ^ *x1 ^ u64::from(key[0]);
                *x1 = second;
                *x2 = (first >> 32) ^ *x3 ^ u64::from(key[1]);
                *x3 = first;
            }
        }
        std::array::from_fn(|lane| [x0[lane], x1[lane], x2[lane], x3[lane]].map(|word| word as u32))
    }

    /// The generator's numbers one after the other, from counter zero.
    pub fn stream(self) -> Stream {
        Stream { philox: self, counter: 0, block: [0; 4], used: 4 }
    }

    /// The two halves of the key as kernels receive them.
    pub fn key(&self) -> [u32; 2] {
        self.key
    }
}

/// A sequence of numbers from one generator.
#[derive(Debug, Clone)]
pub struct Stream {
    philox: Philox,
    counter: u64,
    block: [u32; 4],
    used: usize,
}

impl Stream {
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = self.philox.block([self.counter as u32, (self.counter >> 32) as u32, 0, 0]);
            self.counter += 1;
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// Uniform in [0, 1), on a grid of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        let high = u64::from(self.next_u32() >> 5);
        let low = u64::from(self.next_u32() >> 6);
        (high * (1 << 26) + low) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal (Box and Muller; one number per pair of uniforms, so that the n-th number is easy to find).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Uniform in 0..bound, without bias (Lemire's method with rejection). `bound` must not be zero.
    pub fn below(&mut self, bound: u32) -> u32 {
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(bound);
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }
}

/// A new seed for one purpose: FNV-1a of the name, mixed with the seed by the finaliser of SplitMix64.
pub fn derive(seed: u64, name: &str) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    }
    mix(mix(seed.wrapping_add(0x9E37_79B9_7F4A_7C15)) ^ hash)
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A random order of 0..n (Fisher and Yates). `name` says what for: `epoch 3`.
///
/// # Panics
/// If n does not fit 32 bits.
pub fn permutation(seed: u64, name: &str, n: usize) -> Vec<usize> {
    assert!(u32::try_from(n).is_ok(), "a permutation of more than 2^32 elements");
    let mut stream = Philox::named(seed, name).stream();
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, stream.below(last as u32 + 1) as usize);
    }
    order
}

/// Which masks a training step draws; each layer derives its own by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskKey {
    pub seed: u64,
    /// What is trained: `joint`, `1-4`.
    pub stage: String,
    /// Batches of the stage before this one.
    pub step: u32,
}

impl MaskKey {
    pub fn generator(&self, layer: &str) -> Philox {
        Philox::named(self.seed, &format!("dropout {} {layer}", self.stage))
    }
}

/// One layer's mask at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mask {
    pub philox: Philox,
    pub step: u32,
    /// An element is kept where its random number is at least this: p * 2^32.
    pub threshold: u32,
    /// 1 / (1 - p).
    pub scale: f32,
}

impl Mask {
    /// # Errors
    /// Unless 0 <= p < 1.
    pub fn new(key: &MaskKey, layer: &str, probability: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&probability) {
            return Err(Error::operation("dropout", format!("the probability is {probability}, not in [0, 1)")));
        }
        Ok(Mask {
            philox: key.generator(layer),
            step: key.step,
            threshold: (probability * 4_294_967_296.0) as u32,
            scale: (1.0 / (1.0 - probability)) as f32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_known_answers_of_its_authors() {
        // From the known-answer file of Random123 (kat_vectors: philox4x32 10).
        assert_eq!(Philox::new(0).block([0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(Philox::new(u64::MAX).block([u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = Philox::new(0x299f_31d0_a409_3822);
        let counter = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(pi.block(counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn a_permutation_holds_every_number_once_and_depends_on_seed_and_name() {
        let order = permutation(1, "epoch 1", 1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_eq!(order, permutation(1, "epoch 1", 1000));
        assert_ne!(order, permutation(1, "epoch 2", 1000));
        assert_ne!(order, permutation(2, "epoch 1", 1000));
        assert!(permutation(1, "none", 0).is_empty());
    }

    #[test]
    fn normal_numbers_have_mean_zero_and_variance_one() {
        let mut stream = Philox::named(7, "moments").stream();
        let n = 100_000;
        let values: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
        // Five standard errors: 5 / sqrt(n) for the mean, 5 sqrt(2 / n) for the variance.
        assert!(mean.abs() < 0.016, "{mean}");
        assert!((variance - 1.0).abs() < 0.023, "{variance}");
    }

    #[test]
    fn below_reaches_every_number_about_equally_often() {
        let mut stream = Philox::named(3, "dice").stream();
        let mut counts = [0_u32; 6];
        for _ in 0..60_000 {
            counts[stream.below(6) as usize] += 1;
        }
        // Five standard deviations of a binomial count: 5 sqrt(60000 * 1/6 * 5/6).
        assert!(counts.iter().all(|&count| (9_544..=10_456).contains(&count)), "{counts:?}");
    }
}
