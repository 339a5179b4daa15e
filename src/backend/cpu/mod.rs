//! The CPU: vectorised with pulp (AVX2, AVX-512, portable), parallel with rayon.
//!
//! Kernels know slices, not tensors. A batch of sequences is packed, time-major, sorted by descending length: the rows of time `t`
//! are `offsets[t]..offsets[t + 1]`, one for each sequence still running, so no kernel works on padding.
//!
//! Bits never depend on the number of threads: work is split by output element, and every sum runs in an order fixed by the shapes.

pub mod activation;
pub mod attention;
pub mod attention_decoder;
pub mod convolution;
pub mod cross_entropy;
pub mod ctc;
pub mod dropout;
pub mod embedding;
pub mod layer_norm;
pub mod lstm;
pub mod matmul;
pub mod simd;
pub mod softmax;
pub mod subsample;

#[cfg(test)]
pub(crate) mod testing;
