//! The promises that Headfirst keeps, one file per promise. This file is their index.

/// Whatever is wrong with what a user gives, the program ends with exit code 1 and names the place and the remedy.
mod bad_input;
/// The command line: help, exit codes, JSON, and what is never overwritten.
mod cli;
/// A small spoken corpus, for the tests that need features and recordings.
mod corpus;
/// Kernels are compiled when they changed and only then; without nvcc the build says so.
mod cuda_build;
/// Decoding: beam searches, n-best lists, language models beside a recogniser, real-time factors, scores; weights that come from ESPnet.
mod decoding;
/// A stopped, killed or starved run goes on to the bits of one that never stopped, and no run is overwritten.
mod durability;
/// The CUDA backend, on the emulator or on a GPU, trains as the CPU does.
mod emulated;
/// So it does with a language model.
mod emulated_text;
/// Frozen groups keep their bits, and cost neither gradients, optimiser state, kept inputs nor weight-gradient products.
mod freezing;
/// What `tests/gpu.sh` makes of checks that fail, skip or test nothing, and that docs/results/h200.md has its rows.
mod gpu_script;
/// A tiny corpus is learned to zero error, and every strategy trains what it promises.
mod learning;
/// The checks of the kernels catch faults.
#[cfg(feature = "emulator")]
mod mutations;
/// Every operation: right against a naive f64 reference, its gradients against central differences, and frozen inputs cost nothing.
mod ops;
/// A plan's bytes are those that training then allocates; its operations are counted, not estimated.
mod plan;
/// The program as a user starts it, how it ends, and what a run leaves behind.
mod program;
/// Recognisers with a decoder learn a tiny corpus to zero error, jointly and cut.
mod recognisers;
/// The operations written down naively, in f64, for the tests to compare with.
mod reference;
/// A tiny text: learned, evaluated exactly, resumed to the same bits, and what is refused.
mod text;
/// A corpus of features small enough to be learned by heart in seconds, for the tests of what is learned.
mod tiny;
/// The model against PyTorch: outputs, gradients, and ten steps of every optimiser, joint and with frozen groups.
mod torch;
/// CTC with attention against PyTorch: outputs, gradients, ten steps, and its decoder step by step.
mod torch_attention;
/// The language model against PyTorch with every mask fixed: losses, gradients, ten steps with carried states, NT-ASGD's average.
mod torch_text;
/// The Transformer against PyTorch: outputs, gradients, ten updates, and its decoder step by step.
mod torch_transformer;
/// The VGG front end against PyTorch: outputs and gradients.
mod torch_vgg;
