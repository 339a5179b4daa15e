//! What the kernels' tests share: random numbers, pools of a given size, comparisons.

/// `length` numbers uniform in [-1, 1) (SplitMix64 from `seed`).
pub fn random(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    (0..length)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// Runs `work` inside a rayon pool of `threads`.
pub fn in_pool<Output: Send>(threads: usize, work: impl FnOnce() -> Output + Send) -> Output {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool").install(work)
}

/// Requires |got - expected| <= absolute + relative |expected| for all elements.
pub fn assert_close(got: &[f32], expected: &[f64], absolute: f64, relative: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        assert!(error <= absolute + relative * expected.abs(), "{what}[{i}]: {got} for {expected}");
    }
}

/// The offsets of a packed batch of sequences, `lengths` descending.
pub fn offsets(lengths: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0];
    for t in 0..lengths.first().copied().unwrap_or(0) {
        offsets.push(offsets[t] + lengths.iter().filter(|&&length| length > t).count());
    }
    offsets
}
