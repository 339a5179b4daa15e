//! Rows of a table by token. With embedding dropout a word is zero in the whole batch with probability p, else it is divided by 1 - p
//! (Merity, Keskar, Socher, 2018): the mask of a single frame of V units.

use crate::backend::cpu::embedding::Grouping;
use crate::backend::{cpu, cuda};
use crate::device::{Backend, Category, Device};
use crate::error::{Error, Result};
use crate::ops::matrix;
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
    match device.backend() {
        Backend::Cpu => {
            let scales = scales.as_ref().map(Tensor::data);
            cpu::embedding::gather(weight.tensor().data(), columns, tokens, scales, output.data_mut());
        }
        Backend::Cuda(context) => {
            let uploaded = context.bring(tokens);
            let (weight, scales) = (weight.tensor().pointer(), scales.as_ref().map(Tensor::pointer));
            let (tokens, y) = (uploaded.pointer(), output.pointer_mut());
            cuda::embedding::gather(context, weight, tokens, scales, y, rows, columns, vocabulary);
        }
        Backend::Plan => {}
    }
    drop(scales);
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
