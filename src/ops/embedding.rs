//! Rows of a table by token. With embedding dropout a word is zero in the whole batch with probability p, else it is divided by 1 - p
//! (Merity, Keskar, Socher, 2018): the mask of a single frame of V units.

use crate::backend::cpu::embedding::Grouping;
use crate::backend::cuda::context::Buffer;
use crate::backend::{cpu, cuda};
use crate::device::{Backend, Category, Device};
use crate::error::{Error, Result};
use crate::ops::{expect_shape, matrix};
use crate::primitives::workspace;
use crate::random::Mask;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `weight: [V, C]`, tokens below V; gives `[R, C]`. Backward keeps the tokens, and draws the mask again.
///
/// # Errors
/// If the weight is no matrix, or has no row for a token.
pub fn embedding(tape: &mut Tape, weight: &Var, tokens: &[u32], mask: Option<Mask>) -> Result<Var> {
    let (vocabulary, columns) = matrix("embedding", "the weight", weight.shape())?;
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
        return Err(Error::operation("embedding", format!("the token {token} is not below {vocabulary}")));
    }
    let device = tape.device().clone();
    let rows = tokens.len();
    let mut output = Tensor::uninitialized(&device, &[rows, columns], Category::Activation);
    let scales = scales(&device, vocabulary, mask.as_ref());
    Rows::new(&device, tokens).gather(weight.tensor(), scales, &mut output);
    let place = tape.wants(weight);
    let kept = place.map(|place| (place, tokens.to_vec()));
    Ok(tape.record(&[weight], output, move |gradient, backward| {
        let Some((place, tokens)) = kept else { return Ok(()) };
        let scales = self::scales(&device, vocabulary, mask.as_ref());
        let sink = backward.sink(place);
        match device.backend() {
            Backend::Cpu => {
                let grouping = Grouping::new(&tokens, vocabulary);
                let (scales, dweight) = (scales.as_ref().map(Tensor::data), sink.tensor.data_mut());
                cpu::embedding::gradient(gradient.data(), columns, &grouping, scales, dweight, sink.add);
            }
            Backend::Cuda(context) => {
                let groups = cuda::embedding::group(&tokens, vocabulary, rows);
                let uploaded = context.bring(&groups);
                let workspace = workspace(&device, cuda::embedding::gradient_workspace(rows, columns));
                let scales = scales.as_ref().map(Tensor::pointer);
                let (dy, dweight) = (gradient.pointer(), sink.tensor.pointer_mut());
                let (groups, workspace) = (uploaded.pointer(), workspace.pointer());
                cuda::embedding::gradient(
                    context, dy, groups, scales, dweight, rows, columns, vocabulary, sink.add, workspace,
                );
            }
            Backend::Plan => {}
        }
        Ok(())
    }))
}

/// Numbers of rows, where the device reads them: brought there once, for all tables that they are taken from in a step.
pub struct Rows<'a> {
    numbers: &'a [u32],
    on_device: Option<Buffer>,
}

impl<'a> Rows<'a> {
    pub fn new(device: &Device, numbers: &'a [u32]) -> Self {
        let on_device = match device.backend() {
            Backend::Cuda(context) => Some(context.bring(numbers)),
            Backend::Cpu | Backend::Plan => None,
        };
        Rows { numbers, on_device }
    }

    /// The rows of `table`, `[V, C]`, with these numbers, and behind them all of `then`, `[R, C]`, if there is any; without a gradient. What a decoder
    /// takes along from one step to the next.
    ///
    /// # Errors
    /// If the shapes do not fit, or there is no such row.
    pub fn of(&self, table: &Tensor, then: Option<&Tensor>) -> Result<Tensor> {
        let (count, columns) = matrix("rows", "the table", table.shape())?;
        if let Some(number) = self.numbers.iter().find(|&&number| number as usize >= count) {
            return Err(Error::operation("rows", format!("there is no row {number} of {count}")));
        }
        let behind = then.map_or(0, |then| then.len() / columns.max(1));
        if let Some(then) = then {
            expect_shape("rows", "what follows", then.shape(), &[behind, columns])?;
        }
        let device = table.device();
        let shape = [self.numbers.len() + behind, columns];
        let mut output = Tensor::uninitialized(device, &shape, Category::Activation);
        self.gather(table, None, &mut output);
        let place = self.numbers.len() * columns;
        match (then, device.backend()) {
            (Some(then), Backend::Cpu) => output.data_mut()[place..].copy_from_slice(then.data()),
            (Some(then), Backend::Cuda(context)) => {
                let to = output.pointer_mut() + (place * size_of::<f32>()) as u64;
                cuda::elementwise::scale(context, then.pointer(), 1.0, to, then.len());
            }
            (None, _) | (_, Backend::Plan) => {}
        }
        Ok(output)
    }

    /// The first rows of `y` are those of the table, times their scales.
    fn gather(&self, table: &Tensor, scales: Option<Tensor>, y: &mut Tensor) {
        let (count, columns) = (table.shape()[0], table.shape()[1]);
        match table.device().backend() {
            Backend::Cpu => {
                let scales = scales.as_ref().map(Tensor::data);
                let y = &mut y.data_mut()[..self.numbers.len() * columns];
                cpu::embedding::gather(table.data(), columns, self.numbers, scales, y);
            }
            Backend::Cuda(context) => {
                let numbers = self.on_device.as_ref().expect("the numbers are on the table's device").pointer();
                let (table, scales) = (table.pointer(), scales.as_ref().map(Tensor::pointer));
                let (y, rows) = (y.pointer_mut(), self.numbers.len());
                cuda::embedding::gather(context, table, numbers, scales, y, rows, columns, count);
            }
            Backend::Plan => {}
        }
    }
}

/// The factor on every word, `[V]`; none without a mask.
fn scales(device: &Device, vocabulary: usize, mask: Option<&Mask>) -> Option<Tensor> {
    let mask = mask?;
    let mut scales = Tensor::uninitialized(device, &[vocabulary], Category::Workspace);
    match device.backend() {
        Backend::Cpu => cpu::embedding::draw_scales(mask, scales.data_mut()),
        Backend::Cuda(context) => {
            cuda::embedding::draw_scales(context, mask, None, scales.pointer_mut(), vocabulary);
        }
        Backend::Plan => {}
    }
    Some(scales)
}
