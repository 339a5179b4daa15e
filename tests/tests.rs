//! The promises that Headfirst keeps, one file per promise. This file is their index.

/// Frozen groups keep their bits, and cost neither gradients, optimiser state, kept inputs nor weight-gradient products.
mod freezing;
/// Every operation: right against a naive f64 reference, its gradients against central differences, and frozen inputs cost nothing.
mod ops;
/// The operations written down naively, in f64, for the tests to compare with.
mod reference;
/// The model against PyTorch: outputs, gradients, and ten steps of every optimiser, joint and with frozen groups.
mod torch;
