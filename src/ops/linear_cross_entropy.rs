//! The top of a language model: a linear layer, the softmax, and the cross entropy of the next tokens, `-ln softmax(x W^T + b)[target]`.
//!
//! The logits of all rows would be the largest tensor of a step (700 rows of 33,278: 93 MB), so they exist for some rows at a time: the
//! logits, their losses, the gradient in the logits' place, what goes to x, W and b, and the next rows. This is the end of every forward
//! pass and the beginning of its backward pass, both at once; nothing is computed twice and nothing is kept. So it is no record on a tape:
//! it takes the gradient buffers, and gives the gradient with which [`crate::tape::Tape::backward_from_all`] goes on.

use crate::backend::cpu::activation::Activation;
use crate::backend::cpu::cross_entropy::{CrossEntropy, Targets};
use crate::backend::cuda::context::Buffer;
use crate::backend::cuda::elementwise;
use crate::backend::cuda::matmul::{Arithmetic, Operand, Storage};
use crate::backend::cuda::softmax::{self, Scale};
use crate::device::{Backend, Category, Device};
use crate::error::{Error, Result};
pub use crate::ops::ctc::Losses;
use crate::ops::{expect_shape, matrix};
use crate::primitives::{Factor, Output, affine, column_sums, product};
use crate::tape::{GradientBuffers, Place, Var};
use crate::tensor::Tensor;

/// Logits that exist at a time, at least one row of them: 48 MiB. With fewer rows the weights would be packed, and their gradient be read and
/// written, too often: 350 rows of 33,278 make 175 operations of every byte of them.
const MOST_LOGITS: usize = 12 << 20;
/// On a GPU, bytes: there a part's products take less time than what they read and write of the weight's gradient.
const MOST_BYTES_ON_GPU: usize = 256 << 20;

/// The operands.
#[derive(Clone, Copy)]
pub struct Top<'a> {
    /// `[R, C]`
    pub x: &'a Var,
    /// `[V, C]`
    pub weight: &'a Var,
    /// `[V]`
    pub bias: &'a Var,
    /// `[R]`, below V.
    pub targets: &'a [u32],
}

/// The loss of every row, natural log; zeros on the device `plan`.
///
/// # Errors
/// If the shapes do not fit or a target is out of range.
pub fn losses(top: Top) -> Result<Losses> {
    run(top, None).map(|(losses, _)| losses)
}

/// The same, and the gradient of `scale` times the sum of the losses: to `weight` and `bias` in their buffers, if they are trainable, and, if
/// `x` has a place, to `x`, `[R, C]`.
///
/// # Errors
/// As [`losses`].
pub fn losses_and_gradients(top: Top, scale: f32, gradients: &mut GradientBuffers) -> Result<(Losses, Option<Tensor>)> {
    run(top, Some((scale, gradients)))
}

fn run(top: Top, gradients: Option<(f32, &mut GradientBuffers)>) -> Result<(Losses, Option<Tensor>)> {
    let sizes = Sizes::check(&top)?;
    let device = top.x.tensor().device().clone();
    let wanted = gradients.filter(|_| [top.x, top.weight, top.bias].iter().any(|input| input.place().is_some()));
    let mut losses = all_losses(&device, sizes.rows);
    let form = match wanted {
        Some(_) => Form::of_training(&device, sizes.vocabulary),
        None => Form::of_evaluation(&device, sizes.vocabulary),
    };
    // Parts as equal as they can be.
    let most = match device.backend() {
        Backend::Cuda(_) => MOST_BYTES_ON_GPU / form.storage.bytes(),
        Backend::Cpu | Backend::Plan => MOST_LOGITS,
    };
    let most = (most / form.row_stride.max(1)).max(1);
    let rows = sizes.rows.div_ceil(sizes.rows.div_ceil(most).max(1)).max(1);
    let (weight, bias) = (top.weight.tensor(), top.bias.tensor());
    let operands = Operands {
        form,
        weight: form.operand(weight, 0, weight.len()),
        bias: form.operand(bias, 0, bias.len()),
        targets: Uploaded::new(&device, top.targets),
    };
    match wanted {
        None => {
            for first in (0..sizes.rows).step_by(rows) {
                let part = Part { first, rows: rows.min(sizes.rows - first) };
                let x = form.operand(top.x.tensor(), first * sizes.inputs, part.rows * sizes.inputs);
                drop(part_losses(&operands, &sizes, &x, part, &mut losses, None));
            }
            Ok((losses.fetch(), None))
        }
        Some((scale, buffers)) => {
            let mut dx = top.x.place().map(|_| Parts::new(&device, sizes.rows, sizes.inputs));
            for first in (0..sizes.rows).step_by(rows) {
                let part = Part { first, rows: rows.min(sizes.rows - first) };
                let x = form.operand(top.x.tensor(), first * sizes.inputs, part.rows * sizes.inputs);
                let dlogits = part_losses(&operands, &sizes, &x, part, &mut losses, Some(scale));
                let of_logits = form.factor(&dlogits, form.row_stride);
                if let Some(Place::Parameter(index)) = top.weight.place() {
                    let sink = buffers.sink(index);
                    let shape = (sizes.vocabulary, sizes.inputs, part.rows);
                    product(shape, of_logits.transposed(), form.factor(&x, sizes.inputs), sink.tensor, sink.add);
                }
                if let Some(Place::Parameter(index)) = top.bias.place() {
                    let sink = buffers.sink(index);
                    column_sums(of_logits, part.rows, sink.tensor, sink.add);
                }
                if let Some(dx) = &mut dx {
                    let weight = form.factor(&operands.weight, sizes.inputs);
                    let mut to_x = Tensor::uninitialized(&device, &[part.rows, sizes.inputs], Category::Workspace);
                    product((part.rows, sizes.inputs, sizes.vocabulary), of_logits, weight, &mut to_x, false);
                    dx.place(part, &to_x);
                }
            }
            Ok((losses.fetch(), dx.map(|dx| dx.tensor)))
        }
    }
}

/// What all parts read; weight and bias are stored as the logits are.
struct Operands<'a> {
    form: Form,
    weight: Tensor,
    bias: Tensor,
    targets: Uploaded<'a>,
}

struct Sizes {
    rows: usize,
    inputs: usize,
    vocabulary: usize,
}

impl Sizes {
    fn check(top: &Top) -> Result<Self> {
        const NAME: &str = "linear_cross_entropy";
        let (rows, inputs) = matrix(NAME, "the input", top.x.shape())?;
        let (vocabulary, _) = matrix(NAME, "the weight", top.weight.shape())?;
        expect_shape(NAME, "the weight", top.weight.shape(), &[vocabulary, inputs])?;
        expect_shape(NAME, "the bias", top.bias.shape(), &[vocabulary])?;
        if top.targets.len() != rows {
            return Err(Error::operation(NAME, format!("{} targets for {rows} rows", top.targets.len())));
        }
        if let Some(target) = top.targets.iter().find(|&&target| target as usize >= vocabulary) {
            return Err(Error::operation(NAME, format!("the target {target} is not below {vocabulary}")));
        }
        Ok(Sizes { rows, inputs, vocabulary })
    }
}

/// How the logits of some rows lie: on the CPU as f32, one row behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    pub storage: Storage,
    /// Of elements. On a GPU every row begins at a multiple of 16 bytes, whatever the vocabulary: for the products, which read it twice more.
    pub row_stride: usize,
}

impl Form {
    /// Where products are of bf16, so are the logits and, in their place, their gradient: half as many bytes move. The losses are those of rounded
    /// logits, the bias's gradient is the sum of rounded ones; both are computed in f32.
    pub fn of_training(device: &Device, vocabulary: usize) -> Self {
        match device.backend() {
            Backend::Cuda(_) if device.arithmetic() == Arithmetic::Bf16 => Self::on_gpu(Storage::Bf16, vocabulary),
            _ => Self::of_evaluation(device, vocabulary),
        }
    }

    /// Losses without a gradient are those of logits as they were summed.
    fn of_evaluation(device: &Device, vocabulary: usize) -> Self {
        match device.backend() {
            Backend::Cuda(_) => Self::on_gpu(Storage::F32, vocabulary),
            Backend::Cpu | Backend::Plan => Form { storage: Storage::F32, row_stride: vocabulary },
        }
    }

    fn on_gpu(storage: Storage, vocabulary: usize) -> Self {
        Form { storage, row_stride: vocabulary.next_multiple_of(16 / storage.bytes()) }
    }

    /// Room for so many elements.
    fn room(self, device: &Device, count: usize) -> Tensor {
        let floats = (count * self.storage.bytes()).div_ceil(size_of::<f32>());
        Tensor::uninitialized(device, &[floats], Category::Workspace)
    }

    /// Rows of so many elements, one behind the other.
    fn factor(self, rows: &Tensor, columns: usize) -> Factor<'_> {
        Factor::rows(rows, columns).stored_as(self.storage)
    }

    /// `count` elements of x from `first` on, stored as the logits are: NVIDIA's library does not mix operands.
    fn operand(self, x: &Tensor, first: usize, count: usize) -> Tensor {
        if self.storage == Storage::F32 && count == x.len() {
            return x.clone();
        }
        let mut operand = self.room(x.device(), count);
        match x.device().backend() {
            Backend::Cpu => operand.data_mut().copy_from_slice(&x.data()[first..first + count]),
            Backend::Cuda(context) => {
                let from = x.pointer() + (first * size_of::<f32>()) as u64;
                match self.storage {
                    Storage::F32 => elementwise::scale(context, from, 1.0, operand.pointer_mut(), count),
                    Storage::Bf16 => elementwise::to_bf16(context, from, operand.pointer_mut(), count),
                }
            }
            Backend::Plan => {}
        }
        operand
    }
}

/// Rows `first..first + rows`.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    rows: usize,
}

/// A tensor that is written some rows at a time.
struct Parts {
    tensor: Tensor,
    columns: usize,
}

impl Parts {
    fn new(device: &Device, rows: usize, columns: usize) -> Self {
        Parts { tensor: Tensor::uninitialized(device, &[rows, columns], Category::Activation), columns }
    }

    fn place(&mut self, part: Part, rows: &Tensor) {
        let (to, length) = (part.first * self.columns, part.rows * self.columns);
        let device = self.tensor.device().clone();
        match device.backend() {
            Backend::Cpu => self.tensor.data_mut()[to..to + length].copy_from_slice(rows.data()),
            Backend::Cuda(context) => {
                let to = self.tensor.pointer_mut() + (to * size_of::<f32>()) as u64;
                elementwise::scale(context, rows.pointer(), 1.0, to, length);
            }
            Backend::Plan => {}
        }
    }
}

/// The targets as the backend reads them.
enum Uploaded<'a> {
    Host(&'a [u32]),
    Device(Buffer),
}

impl<'a> Uploaded<'a> {
    fn new(device: &Device, targets: &'a [u32]) -> Self {
        match device.backend() {
            Backend::Cuda(context) => Uploaded::Device(context.bring(targets)),
            Backend::Cpu | Backend::Plan => Uploaded::Host(targets),
        }
    }
}

/// The losses while they are computed.
enum AllLosses {
    Host(Vec<f64>),
    Device(Tensor),
}

impl AllLosses {
    fn fetch(self) -> Losses {
        match self {
            AllLosses::Host(losses) => Losses::Host(losses),
            AllLosses::Device(losses) => {
                let buffer = losses.buffer();
                Losses::Device(buffer.context().fetch(buffer, losses.len()))
            }
        }
    }
}

fn all_losses(device: &Device, rows: usize) -> AllLosses {
    match device.backend() {
        Backend::Cuda(_) => AllLosses::Device(Tensor::uninitialized(device, &[rows], Category::Activation)),
        Backend::Cpu | Backend::Plan => AllLosses::Host(vec![0.0; rows]),
    }
}

/// The losses of some rows; gives their logits, or, with a scale, the gradient of the sum of the losses times that to the logits.
fn part_losses(
    operands: &Operands,
    sizes: &Sizes,
    x: &Tensor,
    part: Part,
    losses: &mut AllLosses,
    scale: Option<f32>,
) -> Tensor {
    let (columns, device) = (sizes.vocabulary, x.device().clone());
    let Operands { form, ref weight, ref bias, ref targets } = *operands;
    let mut logits = form.room(&device, part.rows * form.row_stride);
    let (x, weight) = (form.factor(x, sizes.inputs), form.factor(weight, sizes.inputs));
    let rows = Output { tensor: &mut logits, row_stride: form.row_stride, storage: form.storage };
    affine((part.rows, columns, sizes.inputs), x, weight, bias, Activation::Identity, rows);
    let range = part.first..part.first + part.rows;
    match (device.backend(), targets, losses) {
        (Backend::Cpu, Uploaded::Host(targets), AllLosses::Host(losses)) => {
            let labels = Targets::Labels { labels: &targets[range.clone()], smoothing: 0.0, prior: None };
            let batch = CrossEntropy { columns, targets: labels };
            match scale {
                Some(scale) => batch.losses_and_gradient(logits.data_mut(), &mut losses[range], scale),
                None => batch.losses(logits.data(), &mut losses[range]),
            }
        }
        (Backend::Cuda(context), Uploaded::Device(targets), AllLosses::Device(losses)) => {
            let place = (part.first * size_of::<f32>()) as u64;
            let labels = softmax::Targets::Labels { labels: targets.pointer() + place, smoothing: 0.0, prior: None };
            let rows = Operand { storage: form.storage, ..Operand::rows(logits.pointer_mut(), form.row_stride) };
            let batch = softmax::CrossEntropy { logits: rows, rows: part.rows, columns, targets: labels };
            let scale = scale.map(|value| Scale { value, factor: None });
            softmax::cross_entropy(context, &batch, losses.pointer_mut() + place, scale);
        }
        // Nothing is computed on the device `plan`.
        _ => {}
    }
    logits
}
