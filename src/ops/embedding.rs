//! Rows of a table by token. With embedding dropout a word is zero in the whole batch with probability p, else it is divided by 1 - p
//! (Merity, Keskar, Socher, 2018): the mask of a single frame of V units.

use crate::backend::cpu::embedding::Grouping;
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
    gather(weight.tensor(), tokens, scales(&device, vocabulary, mask.as_ref()), &mut output);
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

/// The rows of `table`, `[V, C]`, with these numbers, and behind them all of `then`, `[R, C]`, if there is any; without a gradient. What a decoder takes
/// along from one step to the next.
///
/// # Errors
/// If the shapes do not fit, or there is no such row.
pub fn rows(table: &Tensor, numbers: &[u32], then: Option<&Tensor>) -> Result<Tensor> {
    let (count, columns) = matrix("rows", "the table", table.shape())?;
    if let Some(number) = numbers.iter().find(|&&number| number as usize >= count) {
        return Err(Error::operation("rows", format!("there is no row {number} of {count}")));
    }
    let behind = then.map_or(0, |then| then.len() / columns.max(1));
    if let Some(then) = then {
        expect_shape("rows", "what follows", then.shape(), &[behind, columns])?;
    }
    let device = table.device();
    let shape = [numbers.len() + behind, columns];
    let mut output = Tensor::uninitialized(device, &shape, Category::Activation);
    gather(table, numbers, None, &mut output);
    let place = numbers.len() * columns;
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

/// The first rows of `y` are those of the table by token, times their scales.
fn gather(table: &Tensor, tokens: &[u32], scales: Option<Tensor>, y: &mut Tensor) {
    let (count, columns) = (table.shape()[0], table.shape()[1]);
    match table.device().backend() {
        Backend::Cpu => {
            let (scales, y) = (scales.as_ref().map(Tensor::data), &mut y.data_mut()[..tokens.len() * columns]);
            cpu::embedding::gather(table.data(), columns, tokens, scales, y);
        }
        Backend::Cuda(context) => {
            let uploaded = context.bring(tokens);
            let (table, scales) = (table.pointer(), scales.as_ref().map(Tensor::pointer));
            let (numbers, y) = (uploaded.pointer(), y.pointer_mut());
            cuda::embedding::gather(context, table, numbers, scales, y, tokens.len(), columns, count);
        }
        Backend::Plan => {}
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
