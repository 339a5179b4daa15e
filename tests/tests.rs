//! The promises that Headfirst keeps, one file per promise. This file is their index.

/// Whatever is wrong with what a user gives, the program ends with exit code 1 and names the place and the remedy.
mod bad_input;
/// The tiny spoken corpus and the program as a user starts it, for the tests that need them.
mod corpus;
/// A stopped, killed or starved run goes on to the bits of one that never stopped, and no run is overwritten.
mod durability;
/// Every operation: right against a naive f64 reference, its gradients against central differences, and frozen inputs cost nothing.
mod ops;
/// The operations written down naively, in f64, for the tests to compare with.
mod reference;
