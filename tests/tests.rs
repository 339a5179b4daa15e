//! The promises that Headfirst keeps, one file per promise. This file is their index.

/// The command line: help, exit codes, JSON, and what is never overwritten.
mod cli;
/// Every operation: right against a naive f64 reference, its gradients against central differences, and frozen inputs cost nothing.
mod ops;
/// The operations written down naively, in f64, for the tests to compare with.
mod reference;
