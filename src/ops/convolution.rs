//! Convolution and pooling over time and frequency: what the front ends of ESPnet's recognisers are made of.
//!
//! A frame of `[R, F * C]` has F bins with their C channels together; [`channels_first`] gives what a linear layer of ESPnet reads. Whatever lies
//! outside a sequence is zero, whichever batch it is in, and a sequence that is shorter than a patch still has one frame.

use crate::backend::cpu::convolution::{Convolution, Pooling, exchange};
use crate::device::{Backend, Category, Device};
use crate::error::{Error, Result};
use crate::ops::linear::Activation;
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix, not_on_gpu};
use crate::primitives::{activation_backward, bias_activation, column_sums};
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

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

    fn workspace(&self, device: &Device) -> Tensor {
        Tensor::uninitialized(device, &[self.on_host().workspace()], Category::Workspace)
    }
}

/// `relu(x * weight + bias)`; `x: [R, F * C]` packed as `sequences`, `weight: [O, C, 3, 3]`, `bias: [O]`; gives `[R', F' * O]` and how it is packed.
///
/// Backward keeps the output; `x` if the weight is trainable, the weight if the gradient of `x` is wanted.
///
/// # Errors
/// If the shapes do not fit; on a GPU, which has no kernel for it yet.
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
    if let Backend::Cuda(_) = device.backend() {
        return Err(not_on_gpu(NAME));
    }
    let outputs = map_lengths(sequences, |length| patches.count(length));
    let bins = columns / channels;
    let sizes = Sizes { sequences: sequences.clone(), outputs, bins, channels, output_channels, patches };
    let shape = [sizes.outputs.rows(), sizes.output_bins() * output_channels];
    let mut output = Tensor::uninitialized(&device, &shape, Category::Activation);
    let mut workspace = sizes.workspace(&device);
    device.count_operations(sizes.operations());
    if let Backend::Cpu = device.backend() {
        let (x, weight) = (x.tensor().data(), weight.tensor().data());
        sizes.on_host().forward(x, weight, output.data_mut(), workspace.data_mut());
    }
    drop(workspace);
    bias_activation(&mut output, Some(bias.tensor()), output_channels, Activation::Relu);
    let outputs = sizes.outputs.clone();
    let [x_place, weight_place, bias_place] = [x, weight, bias].map(|input| tape.wants(input));
    let kept_output = output.clone();
    let kept_weight = x_place.map(|place| (place, weight.tensor().clone()));
    let kept_x = weight_place.map(|place| (place, x.tensor().clone()));
    let output = tape.record(&[x, weight, bias], output, move |mut gradient, backward| {
        activation_backward(&kept_output, &mut gradient, Activation::Relu);
        if let Some(place) = bias_place {
            let sink = backward.sink(place);
            column_sums(&gradient, sizes.outputs.rows() * sizes.output_bins(), sink.tensor, sink.add);
        }
        if kept_x.is_none() && kept_weight.is_none() {
            return Ok(());
        }
        let mut workspace = sizes.workspace(&device);
        if let Some((place, x)) = kept_x {
            let sink = backward.sink(place);
            device.count_operations(sizes.operations());
            if let Backend::Cpu = device.backend() {
                let (dweight, workspace) = (sink.tensor.data_mut(), workspace.data_mut());
                sizes.on_host().backward_weight(x.data(), gradient.data(), dweight, sink.add, workspace);
            }
        }
        if let Some((place, weight)) = kept_weight {
            let sink = backward.sink(place);
            device.count_operations(sizes.operations());
            if let Backend::Cpu = device.backend() {
                let dx = sink.tensor.data_mut();
                if !sink.add {
                    dx.fill(0.0);
                }
                sizes.on_host().backward_input(weight.data(), gradient.data(), dx, workspace.data_mut());
            }
        }
        Ok(())
    });
    Ok((output, outputs))
}

/// The largest of every 2 x 2 frames and bins, those that there are at the ends; `x: [R, F * C]`; gives `[R', ceil(F / 2) * C]` and how it is
/// packed. Backward keeps `x`.
///
/// # Errors
/// If the shapes do not fit; on a GPU, which has no kernel for it yet.
pub fn max_pool(tape: &mut Tape, x: &Var, sequences: &Sequences, channels: usize) -> Result<(Var, Sequences)> {
    const NAME: &str = "max_pool";
    let (_, columns) = matrix(NAME, "the input", x.shape())?;
    expect_shape(NAME, "the input", x.shape(), &[sequences.rows(), columns])?;
    if channels == 0 || columns == 0 || !columns.is_multiple_of(channels) {
        return Err(Error::operation(NAME, format!("{columns} columns are no bins of {channels} channels")));
    }
    let device = tape.device().clone();
    if let Backend::Cuda(_) = device.backend() {
        return Err(not_on_gpu(NAME));
    }
    let (bins, outputs) = (columns / channels, sequences.subsample(2));
    let shape = [outputs.rows(), bins.div_ceil(2) * channels];
    let mut output = Tensor::uninitialized(&device, &shape, Category::Activation);
    let sequences = sequences.clone();
    let kept_outputs = outputs.clone();
    let pooling = move |sequences: &Sequences, outputs: &Sequences, work: &mut dyn FnMut(Pooling)| {
        work(Pooling { offsets: sequences.offsets(), output_offsets: outputs.offsets(), bins, channels });
    };
    if let Backend::Cpu = device.backend() {
        pooling(&sequences, &outputs, &mut |it| it.forward(x.tensor().data(), output.data_mut()));
    }
    let kept = tape.wants(x).map(|place| (place, x.tensor().clone()));
    let output = tape.record(&[x], output, move |gradient, backward| {
        let Some((place, x)) = kept else { return Ok(()) };
        let mut back = Tensor::uninitialized(&device, x.shape(), Category::Activation);
        if let Backend::Cpu = device.backend() {
            let back = &mut back;
            pooling(&sequences, &kept_outputs, &mut |it| it.backward(x.data(), gradient.data(), back.data_mut()));
        }
        backward.give(place, back);
        Ok(())
    });
    Ok((output, outputs))
}

/// `[R, F * C]` with the channels of a bin together becomes `[R, C * F]` with the bins of a channel together. Backward keeps nothing.
///
/// # Errors
/// If the columns are no bins of so many channels; on a GPU, which has no kernel for it yet.
pub fn channels_first(tape: &mut Tape, x: &Var, channels: usize) -> Result<Var> {
    const NAME: &str = "channels_first";
    let (_, columns) = matrix(NAME, "the input", x.shape())?;
    if channels == 0 || !columns.is_multiple_of(channels) {
        return Err(Error::operation(NAME, format!("{columns} columns are no bins of {channels} channels")));
    }
    let device = tape.device().clone();
    if let Backend::Cuda(_) = device.backend() {
        return Err(not_on_gpu(NAME));
    }
    let bins = columns / channels;
    let mut output = Tensor::uninitialized(&device, x.shape(), Category::Activation);
    if let Backend::Cpu = device.backend() {
        exchange(x.tensor().data(), output.data_mut(), bins, channels);
    }
    let place = tape.wants(x);
    Ok(tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let mut back = Tensor::uninitialized(&device, gradient.shape(), Category::Activation);
        if let Backend::Cpu = device.backend() {
            exchange(gradient.data(), back.data_mut(), channels, bins);
        }
        backward.give(place, back);
        Ok(())
    }))
}

/// Sequences of other lengths, which must not change their order.
fn map_lengths(sequences: &Sequences, length: impl Fn(usize) -> usize) -> Sequences {
    let lengths: Vec<usize> = sequences.lengths().iter().map(|&frames| length(frames)).collect();
    Sequences::new(&lengths).expect("patches keep the order, and leave every sequence a frame")
}
