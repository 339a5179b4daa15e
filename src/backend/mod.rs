//! What the operations run on. Backends know slices, not tensors.

pub mod cpu;
pub mod cuda;
