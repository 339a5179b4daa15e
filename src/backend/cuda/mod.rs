//! The CUDA backend.

#[cfg(feature = "emulator")]
pub mod emulator;
