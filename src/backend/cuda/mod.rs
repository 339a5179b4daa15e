//! The CUDA backend. [`embedded`]: the compiled kernels in this binary. `emulator`: the kernels on the CPU, thread by thread, for tests.

pub mod embedded;
#[cfg(feature = "emulator")]
pub mod emulator;
