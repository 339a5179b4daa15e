//! The CUDA backend. Kernels are in `kernels/`, one file per family of operations; here, one file per operation, is what launches them.
//!
//! - [`driver`]: what is asked of a GPU. [`gpu`]: a real one, through NVIDIA's driver ([`interface`]), if it is [`usable`]. `emulated`: the kernels on the CPU, thread by thread, for tests.
//! - [`arena`], [`context`]: memory of a step, sticky errors, counters. `step`: steps as lists of work and as graphs. [`counted`]: a device that
//!   does nothing, for `headfirst plan` and for counts. [`embedded`]: the compiled kernels in this binary. [`libraries`]: NVIDIA's own, where they
//!   are found. [`products`]: what a saved state keeps of who multiplied.

pub mod arena;
pub mod attention;
pub mod attention_decoder;
pub mod context;
pub mod convolution;
pub mod counted;
pub mod ctc;
pub mod cublaslt;
pub mod driver;
pub mod elementwise;
pub mod embedded;
pub mod embedding;
#[cfg(feature = "emulator")]
pub mod emulated;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod gpu;
pub mod interface;
pub mod layer_norm;
pub mod libraries;
pub mod lstm;
pub mod matmul;
pub mod optim;
pub mod products;
pub mod sequences;
pub mod softmax;
mod step;
#[cfg(all(test, feature = "emulator"))]
pub(crate) mod testing;
#[cfg(all(test, feature = "emulator"))]
mod tile;
pub mod usable;
