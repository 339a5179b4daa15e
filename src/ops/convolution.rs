//! Convolution and pooling over time and frequency: what the front ends of ESPnet's recognisers are made of.
//!
//! A frame of `[R, F * C]` has F bins with their C channels together; [`channels_first`] gives what a linear layer of ESPnet reads. Whatever lies
//! outside a sequence is zero, whichever batch it is in, and a sequence that is shorter than a patch still has one frame.

use crate::backend::cpu::convolution::{Convolution, Pooling, exchange};
use crate::backend::cuda;
use crate::backend::cuda::context::Context;
use crate::device::{Backend, Category, Device};
use crate::error::{Error, Result};
use crate::ops::linear::Activation;
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix};
use crate::primitives::{activation_backward, activation_backward_with_sums, bias_activation, workspace};
use crate::tape::{Sink, Tape, Var};
use crate::tensor::Tensor;
use std::sync::Arc;

/// How 3 x 3 patches are laid over a sequence, in time and in frequency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patches {
    /// One for every frame and bin, zeros around (VGG).
    All,
    /// One for every second, none over the edges (ESPnet's `Conv2dSubsampling`).
    EverySecond,
}

impl Patches {
    /// How many patches lie over so many frames or bins.
    pub fn count(self, length: usize) -> usize {
        match self {
            Patches::All => length,
            Patches::EverySecond => (length.saturating_sub(1) / 2).max(1),
        }
    }

    fn stride_and_padding(self) -> (usize, usize) {
        match self {
            Patches::All => (1, 1),
            Patches::EverySecond => (2, 0),
        }
    }
}

struct Sizes {
    sequences: Sequences,
    outputs: Sequences,
    bins: usize,
    channels: usize,
    output_channels: usize,
    patches: Patches,
}

impl Sizes {
    fn output_bins(&self) -> usize {
        self.patches.count(self.bins)
    }

    fn on_host(&self) -> Convolution<'_> {
        let (stride, padding) = self.patches.stride_and_padding();
        Convolution {
            offsets: self.sequences.offsets(),
            output_offsets: self.outputs.offsets(),
            bins: self.bins,
            output_bins: self.output_bins(),
            channels: self.channels,
            output_channels: self.output_channels,
            stride,
            padding,
        }
    }

    fn operations(&self) -> u64 {
        (2 * 9 * self.channels * self.output_channels * self.outputs.rows() * self.output_bins()) as u64
    }

    fn on_device(&self, context: &Arc<Context>, device: &Device) -> cuda::convolution::Convolution {
        let (stride, padding) = self.patches.stride_and_padding();
        cuda::convolution::Convolution {
            input: self.sequences.on(context),
            output: self.outputs.on(context),
            bins: self.bins,
            output_bins: self.output_bins(),
            channels: self.channels,
            output_channels: self.output_channels,
            stride,
            padding,
            arithmetic: device.arithmetic(),
        }
    }

    /// What a pass on the CPU works in, or the device `plan` in its stead.
    fn workspace(&self, device: &Device) -> Tensor {
        Tensor::uninitialized(device, &[self.on_host().workspace()], Category::Workspace)
    }

    /// relu(x * weight + bias).
    fn forward(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, output: &mut Tensor) {
        let device = x.device().clone();
        device.count_operations(self.operations());
        if let Backend::Cuda(context) = device.backend() {
            let of = self.on_device(context, &device);
            let workspace = workspace(&device, cuda::convolution::forward_workspace(&of));
            let (x, weight, bias) = (x.pointer(), weight.pointer(), bias.pointer());
            cuda::convolution::forward(context, &of, x, weight, bias, output.pointer_mut(), workspace.pointer());
            return;
        }
        let mut workspace = self.workspace(&device);
        if let Backend::Cpu = device.backend() {
            self.on_host().forward(x.data(), weight.data(), output.data_mut(), workspace.data_mut());
        }
        drop(workspace);
        bias_activation(output, Some(bias), self.output_channels, Activation::Relu);
    }

    /// The gradient of the weight, from that of the sums.
    fn backward_weight(&self, x: &Tensor, gradient: &Tensor, sink: Sink) {
        let device = x.device().clone();
        device.count_operations(self.operations());
        if let Backend::Cuda(context) = device.backend() {
            let of = self.on_device(context, &device);
            let workspace = workspace(&device, cuda::convolution::backward_weight_workspace(&of));
            let (x, dy, dweight) = (x.pointer(), gradient.pointer(), sink.tensor.pointer_mut());
            cuda::convolution::backward_weight(context, &of, x, dy, dweight, sink.add, workspace.pointer());
            return;
        }
        let mut workspace = self.workspace(&device);
        if let Backend::Cpu = device.backend() {
            let (dweight, workspace) = (sink.tensor.data_mut(), workspace.data_mut());
            self.on_host().backward_weight(x.data(), gradient.data(), dweight, sink.add, workspace);
        }
    }

    /// The gradient of the input, from that of the sums.
    fn backward_input(&self, weight: &Tensor, gradient: &Tensor, sink: Sink) {
        let device = weight.device().clone();
        device.count_operations(self.operations());
        if let Backend::Cuda(context) = device.backend() {
            let of = self.on_device(context, &device);
            let workspace = workspace(&device, cuda::convolution::backward_input_workspace(&of));
            let (weight, dy, dx) = (weight.pointer(), gradient.pointer(), sink.tensor.pointer_mut());
            cuda::convolution::backward_input(context, &of, weight, dy, dx, sink.add, workspace.pointer());
            return;
        }
        let mut workspace = self.workspace(&device);
        if let Backend::Cpu = device.backend() {
            let dx = sink.tensor.data_mut();
            if !sink.add {
                dx.fill(0.0);
            }
            self.on_host().backward_input(weight.data(), gradient.data(), dx, workspace.data_mut());
        }
    }
}

/// `relu(x * weight + bias)`; `x: [R, F * C]` packed as `sequences`, `weight: [O, C, 3, 3]`, `bias: [O]`; gives `[R', F' * O]` and how it is packed.
///
/// Backward keeps the output; `x` if the weight is trainable, the weight if the gradient of `x` is wanted.
///
/// # Errors
/// If the shapes do not fit.
pub fn convolution(
    tape: &mut Tape,
    x: &Var,
    sequences: &Sequences,
    weight: &Var,
    bias: &Var,
    patches: Patches,
) -> Result<(Var, Sequences)> {
    const NAME: &str = "convolution";
    let (_, columns) = matrix(NAME, "the input", x.shape())?;
    let [output_channels, channels, 3, 3] = *weight.shape() else {
        let problem = format!("the weight has shape {:?} where [O, C, 3, 3] is needed", weight.shape());
        return Err(Error::operation(NAME, problem));
    };
    if channels == 0 || columns == 0 || !columns.is_multiple_of(channels) {
        return Err(Error::operation(NAME, format!("{columns} columns are no bins of {channels} channels")));
    }
    expect_shape(NAME, "the input", x.shape(), &[sequences.rows(), columns])?;
    expect_shape(NAME, "the bias", bias.shape(), &[output_channels])?;
    let device = tape.device().clone();
    let outputs = map_lengths(sequences, |length| patches.count(length));
    let bins = columns / channels;
    let sizes = Sizes { sequences: sequences.clone(), outputs, bins, channels, output_channels, patches };
    let shape = [sizes.outputs.rows(), sizes.output_bins() * output_channels];
    let mut output = Tensor::uninitialized(&device, &shape, Category::Activation);
    sizes.forward(x.tensor(), weight.tensor(), bias.tensor(), &mut output);
    let outputs = sizes.outputs.clone();
    let [x_place, weight_place, bias_place] = [x, weight, bias].map(|input| tape.wants(input));
    let kept_output = output.clone();
    let kept_weight = x_place.map(|place| (place, weight.tensor().clone()));
    let kept_x = weight_place.map(|place| (place, x.tensor().clone()));
    let output = tape.record(&[x, weight, bias], output, move |mut gradient, backward| {
        match bias_place {
            Some(place) => {
                let (sink, rows) = (backward.sink(place), sizes.outputs.rows() * sizes.output_bins());
                let (output, gradient) = (&kept_output, &mut gradient);
                activation_backward_with_sums(output, gradient, Activation::Relu, rows, sink.tensor, sink.add);
            }
            None => activation_backward(&kept_output, &mut gradient, Activation::Relu),
        }
        drop(kept_output);
        if let Some((place, x)) = kept_x {
            sizes.backward_weight(&x, &gradient, backward.sink(place));
        }
        if let Some((place, weight)) = kept_weight {
            sizes.backward_input(&weight, &gradient, backward.sink(place));
        }
        Ok(())
    });
    Ok((output, outputs))
}

/// The largest of every 2 x 2 frames and bins, those that there are at the ends; `x: [R, F * C]`; gives `[R', ceil(F / 2) * C]` and how it is
/// packed. Backward keeps `x`.
///
/// # Errors
/// If the shapes do not fit.
pub fn max_pool(tape: &mut Tape, x: &Var, sequences: &Sequences, channels: usize) -> Result<(Var, Sequences)> {
    const NAME: &str = "max_pool";
    let (_, columns) = matrix(NAME, "the input", x.shape())?;
    expect_shape(NAME, "the input", x.shape(), &[sequences.rows(), columns])?;
    if channels == 0 || columns == 0 || !columns.is_multiple_of(channels) {
        return Err(Error::operation(NAME, format!("{columns} columns are no bins of {channels} channels")));
    }
    let device = tape.device().clone();
    let (bins, outputs) = (columns / channels, sequences.subsample(2));
    let shape = [outputs.rows(), bins.div_ceil(2) * channels];
    let mut output = Tensor::uninitialized(&device, &shape, Category::Activation);
    let pools = Pools { sequences: sequences.clone(), outputs: outputs.clone(), bins, channels };
    pools.forward(x.tensor(), &mut output);
    let kept = tape.wants(x).map(|place| (place, x.tensor().clone()));
    let output = tape.record(&[x], output, move |gradient, backward| {
        let Some((place, x)) = kept else { return Ok(()) };
        let mut back = Tensor::uninitialized(&device, x.shape(), Category::Activation);
        pools.backward(&x, &gradient, &mut back);
        backward.give(place, back);
        Ok(())
    });
    Ok((output, outputs))
}

/// The sizes of a pooling.
struct Pools {
    sequences: Sequences,
    outputs: Sequences,
    bins: usize,
    channels: usize,
}

impl Pools {
    fn on_host(&self) -> Pooling<'_> {
        let Pools { sequences, outputs, bins, channels } = self;
        let (offsets, output_offsets) = (sequences.offsets(), outputs.offsets());
        Pooling { offsets, output_offsets, bins: *bins, channels: *channels }
    }

    fn on_device(&self, context: &Arc<Context>) -> cuda::convolution::Pooling {
        let (input, output) = (self.sequences.on(context), self.outputs.on(context));
        cuda::convolution::Pooling { input, output, bins: self.bins, channels: self.channels }
    }

    fn forward(&self, x: &Tensor, output: &mut Tensor) {
        let device = x.device().clone();
        match device.backend() {
            Backend::Cpu => self.on_host().forward(x.data(), output.data_mut()),
            Backend::Cuda(context) => {
                let of = self.on_device(context);
                let workspace = workspace(&device, cuda::convolution::pool_workspace(&of));
                cuda::convolution::pool(context, &of, x.pointer(), output.pointer_mut(), workspace.pointer());
            }
            Backend::Plan => {}
        }
    }

    fn backward(&self, x: &Tensor, gradient: &Tensor, back: &mut Tensor) {
        let device = x.device().clone();
        match device.backend() {
            Backend::Cpu => self.on_host().backward(x.data(), gradient.data(), back.data_mut()),
            Backend::Cuda(context) => {
                let of = self.on_device(context);
                let workspace = workspace(&device, cuda::convolution::pool_workspace(&of));
                let (x, dy, dx) = (x.pointer(), gradient.pointer(), back.pointer_mut());
                cuda::convolution::pool_backward(context, &of, x, dy, dx, workspace.pointer());
            }
            Backend::Plan => {}
        }
    }
}

/// `[R, F * C]` with the channels of a bin together becomes `[R, C * F]` with the bins of a channel together. Backward keeps nothing.
///
/// # Errors
/// If the columns are no bins of so many channels.
pub fn channels_first(tape: &mut Tape, x: &Var, channels: usize) -> Result<Var> {
    const NAME: &str = "channels_first";
    let (_, columns) = matrix(NAME, "the input", x.shape())?;
    if channels == 0 || !columns.is_multiple_of(channels) {
        return Err(Error::operation(NAME, format!("{columns} columns are no bins of {channels} channels")));
    }
    let device = tape.device().clone();
    let bins = columns / channels;
    let mut output = Tensor::uninitialized(&device, x.shape(), Category::Activation);
    exchanged(x.tensor(), &mut output, bins, channels);
    let place = tape.wants(x);
    Ok(tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let mut back = Tensor::uninitialized(&device, gradient.shape(), Category::Activation);
        exchanged(&gradient, &mut back, channels, bins);
        backward.give(place, back);
        Ok(())
    }))
}

/// Every row, `[rows, columns]`, transposed.
fn exchanged(x: &Tensor, to: &mut Tensor, rows: usize, columns: usize) {
    match x.device().backend() {
        Backend::Cpu => exchange(x.data(), to.data_mut(), rows, columns),
        Backend::Cuda(context) => {
            let frames = x.len().checked_div(rows * columns).unwrap_or(0);
            cuda::convolution::exchange(context, x.pointer(), to.pointer_mut(), frames, rows, columns);
        }
        Backend::Plan => {}
    }
}

/// Sequences of other lengths, which must not change their order.
fn map_lengths(sequences: &Sequences, length: impl Fn(usize) -> usize) -> Sequences {
    let lengths: Vec<usize> = sequences.lengths().iter().map(|&frames| length(frames)).collect();
    Sequences::new(&lengths).expect("patches keep the order, and leave every sequence a frame")
}
