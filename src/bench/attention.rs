//! Attention: through the tape, and its two passes by themselves at the backend.

use super::table::{Kind, Spec};
use super::work::{Bench, Prepared, floats};
use crate::backend::cuda::context::Context;
use crate::backend::{cpu, cuda};
use crate::device::{Backend, Category, Device};
use crate::error::Result;
use crate::ops;
use crate::ops::attention::Heads;
use crate::ops::sequences::Sequences;
use crate::primitives::workspace;
use crate::tape::{GradientBuffers, Tape, Var};
use crate::tensor::Tensor;
use std::sync::Arc;

/// # Errors
/// If the sizes cannot be.
pub fn prepare(bench: &Bench, spec: &Spec) -> Result<Prepared> {
    let work = Work {
        heads: spec.size("heads"),
        width: spec.size("d"),
        sequences: Sequences::new(&vec![spec.size("T"); spec.size("B")])?,
        causal: spec.size("causal") == 1,
    };
    Ok(match spec.kind {
        Kind::AttentionForward => work.pass(bench, false),
        Kind::AttentionBackward => work.pass(bench, true),
        _ => work.both(bench),
    })
}

#[derive(Clone)]
struct Work {
    heads: usize,
    width: usize,
    sequences: Sequences,
    causal: bool,
}

/// What a pass reads and writes, `[R, heads * width]` each but for the logarithms.
struct Operands {
    inputs: [Tensor; 3],
    output: Tensor,
    log_sums: Tensor,
    dy: Tensor,
    gradients: [Tensor; 3],
}

impl Work {
    fn elements(&self) -> usize {
        self.sequences.rows() * self.heads * self.width
    }

    /// Of a product of every query with the keys that it sees.
    fn operations(&self) -> u64 {
        let steps = self.sequences.steps();
        let pairs = if self.causal { steps * (steps + 1) / 2 } else { steps * steps };
        (2 * self.width * self.heads * self.sequences.count() * pairs) as u64
    }

    /// Forward, and the gradients of queries, keys and values.
    fn both(&self, bench: &Bench) -> Prepared {
        let shape = [self.sequences.rows(), self.heads * self.width];
        // Three in and one out; those again with its gradient, and three out.
        let bytes = floats(12 * self.elements());
        let operands = bench.copies(bytes, |bench| {
            let inputs = ["queries", "keys", "values"].map(|name| bench.normal(&shape, name));
            let gradients = GradientBuffers::allocate(&bench.device, [Some(&shape[..]); 3]);
            (inputs, bench.normal(&shape, "gradient"), gradients)
        });
        let (device, work) = (bench.device.clone(), self.clone());
        Prepared::recorded(&bench.device, bytes, operands, move |(inputs, dy, gradients)| {
            let mut tape = Tape::new(&device);
            let [q, k, v] = [0, 1, 2].map(|index: usize| Var::parameter(inputs[index].clone(), index));
            let heads = Heads::within(work.heads, &work.sequences, work.causal, None);
            let output = ops::attention::attention(&mut tape, &q, &k, &v, heads)?;
            gradients.clear();
            tape.backward_from(&output, dy.clone(), gradients)
        })
    }

    fn pass(&self, bench: &Bench, backward: bool) -> Prepared {
        let bytes = floats((if backward { 8 } else { 4 }) * self.elements());
        let work = self.clone();
        let operands = bench.copies(bytes, |bench| work.operands(bench));
        let device = bench.device.clone();
        Prepared::kernel(bytes, operands, move |operands| {
            device.count_operations(if backward { 5 } else { 2 } * work.operations());
            if backward {
                work.backward(&device, operands);
            } else {
                work.forward(&device, operands);
            }
        })
    }

    fn operands(&self, bench: &Bench) -> Operands {
        let shape = [self.sequences.rows(), self.heads * self.width];
        let mut operands = Operands {
            inputs: ["queries", "keys", "values"].map(|name| bench.normal(&shape, name)),
            output: bench.room(&shape),
            log_sums: bench.room(&[shape[0] * self.heads]),
            dy: bench.normal(&shape, "gradient"),
            gradients: [(); 3].map(|()| bench.room(&shape)),
        };
        // What backward reads of it.
        self.forward(&bench.device, &mut operands);
        operands
    }

    fn forward(&self, device: &Device, operands: &mut Operands) {
        let Operands { inputs, output, log_sums, .. } = operands;
        match device.backend() {
            Backend::Cpu => {
                let of: Vec<usize> = (0..self.sequences.count()).collect();
                let attention = self.on_host(&of);
                let mut room = room(device, attention.forward_workspace());
                let inputs = inputs.each_ref().map(Tensor::data);
                attention.forward(inputs, output.data_mut(), log_sums.data_mut(), room.data_mut());
            }
            Backend::Cuda(context) => {
                let attention = self.on_device(device, context);
                let room = workspace(device, attention.forward_workspace());
                let inputs = inputs.each_ref().map(Tensor::pointer);
                attention.forward(context, inputs, output.pointer_mut(), log_sums.pointer_mut(), room.pointer());
            }
            Backend::Plan => {}
        }
    }

    fn backward(&self, device: &Device, operands: &mut Operands) {
        let Operands { inputs: [q, k, v], output, log_sums, dy, gradients } = operands;
        match device.backend() {
            Backend::Cpu => {
                let of: Vec<usize> = (0..self.sequences.count()).collect();
                let attention = self.on_host(&of);
                let mut room = room(device, attention.backward_workspace());
                let [queries, keys, values] = gradients.each_mut().map(|gradient| Some((gradient.data_mut(), false)));
                let gradients = cpu::attention::Gradients { queries, keys, values };
                let inputs = [q.data(), k.data(), v.data()];
                attention.backward(inputs, output.data(), log_sums.data(), dy.data(), gradients, room.data_mut());
            }
            Backend::Cuda(context) => {
                let attention = self.on_device(device, context);
                let room = workspace(device, attention.backward_workspace());
                let [queries, keys, values] = gradients.each_mut().map(|gradient| Some(gradient.pointer_mut()));
                let gradients = cuda::attention::Gradients { queries, keys, values };
                let kept = cuda::attention::Kept {
                    q: q.pointer(),
                    k: k.pointer(),
                    scored: Some((v.pointer(), output.pointer())),
                    log_sums: log_sums.pointer(),
                };
                attention.backward(context, &kept, dy.pointer(), &gradients, room.pointer());
            }
            Backend::Plan => {}
        }
    }

    fn on_host<'a>(&'a self, of: &'a [usize]) -> cpu::attention::Attention<'a> {
        let packing = cpu::attention::Packing { offsets: self.sequences.offsets(), lengths: self.sequences.lengths() };
        let (queries, keys) = (packing, packing);
        cpu::attention::Attention {
            heads: self.heads,
            width: self.width,
            queries,
            keys,
            of,
            causal: self.causal,
            mask: None,
        }
    }

    fn on_device(&self, device: &Device, context: &Arc<Context>) -> cuda::attention::Attention {
        let packing = self.sequences.on(context);
        cuda::attention::Attention {
            heads: self.heads,
            width: self.width,
            queries: packing,
            keys: packing,
            of: None,
            causal: self.causal,
            mask: None,
            arithmetic: device.arithmetic(),
        }
    }
}

fn room(device: &Device, length: usize) -> Tensor {
    Tensor::uninitialized(device, &[length], Category::Workspace)
}
