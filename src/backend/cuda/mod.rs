//! The CUDA backend. [`embedded`]: the compiled kernels in this binary.

pub mod embedded;
