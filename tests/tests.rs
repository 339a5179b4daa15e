//! The promises that Headfirst keeps, one file per promise. This file is their index.

/// The command line: help, exit codes, JSON, and what is never overwritten.
mod cli;
/// Frozen groups keep their bits, and cost neither gradients, optimiser state, kept inputs nor weight-gradient products.
mod freezing;
/// A tiny corpus is learned to zero error, and every strategy trains what it promises.
mod learning;
/// Every operation: right against a naive f64 reference, its gradients against central differences, and frozen inputs cost nothing.
mod ops;
/// A plan's bytes are those that training then allocates; its operations are counted, not estimated.
mod plan;
/// The operations written down naively, in f64, for the tests to compare with.
mod reference;
/// A corpus small enough to be learned by heart in seconds.
mod tiny;
/// The model against PyTorch: outputs, gradients, and ten steps of every optimiser, joint and with frozen groups.
mod torch;
