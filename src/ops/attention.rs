//! Multi-head attention (Vaswani et al., 2017) over packed sequences, within one batch or from one to another.
//!
//! Keys behind a sequence's end do not exist, so nothing is masked for them. Backward keeps the inputs, the output and one number for every
//! query and head, and computes the probabilities again: no T x T matrix is kept.

use crate::backend::cpu::attention::{Attention, Gradients, Packing};
use crate::backend::cuda;
use crate::backend::cuda::context::{Buffer, Context};
use crate::backend::cuda::matmul::Arithmetic;
use crate::device::{Backend, Category};
use crate::error::{Error, Result};
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix};
use crate::primitives::workspace;
use crate::random::Mask;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use std::sync::Arc;

/// Who attends to whom, and how.
#[derive(Debug, Clone)]
pub struct Heads {
    /// They share the columns equally.
    pub count: usize,
    /// How the queries are packed.
    pub queries: Sequences,
    /// How keys and values are packed.
    pub keys: Sequences,
    /// The sequence of keys that each sequence of queries attends to.
    pub of: Arc<[usize]>,
    /// A query sees no key behind its own time.
    pub causal: bool,
    /// Dropout of the probabilities, drawn at (key, query, sequence of queries * heads + head).
    pub mask: Option<Mask>,
}

impl Heads {
    /// Of sequences to themselves.
    pub fn within(count: usize, sequences: &Sequences, causal: bool, mask: Option<Mask>) -> Self {
        let of = (0..sequences.count()).collect();
        Heads { count, queries: sequences.clone(), keys: sequences.clone(), of, causal, mask }
    }

    fn on_host(&self, columns: usize) -> Attention<'_> {
        Attention {
            heads: self.count,
            width: columns / self.count,
            queries: Packing { offsets: self.queries.offsets(), lengths: self.queries.lengths() },
            keys: Packing { offsets: self.keys.offsets(), lengths: self.keys.lengths() },
            of: &self.of,
            causal: self.causal,
            mask: self.mask.as_ref(),
        }
    }

    /// `of` came from [`Heads::bring`].
    fn on_device(
        &self,
        columns: usize,
        of: Option<&Buffer>,
        context: &Arc<Context>,
        arithmetic: Arithmetic,
    ) -> cuda::attention::Attention {
        cuda::attention::Attention {
            heads: self.count,
            width: columns / self.count,
            queries: self.queries.on(context),
            keys: self.keys.on(context),
            of: of.map(Buffer::pointer),
            causal: self.causal,
            mask: self.mask,
            arithmetic,
        }
    }

    /// The sequences of keys in device memory, unless each sequence of queries has its own.
    fn bring(&self, context: &Arc<Context>) -> Option<Buffer> {
        let own = self.of.iter().enumerate().all(|(sequence, &of)| sequence == of);
        (!own).then(|| context.bring(&self.of.iter().map(|&of| of as i32).collect::<Vec<_>>()))
    }

    fn check(&self, columns: usize) -> Result<()> {
        let refuse = |problem: String| Err(Error::operation(NAME, problem));
        if self.count == 0 || !columns.is_multiple_of(self.count) {
            return refuse(format!("{} heads cannot share {columns} columns", self.count));
        }
        if self.of.len() != self.queries.count() || self.of.iter().any(|&of| of >= self.keys.count()) {
            let problem = "each sequence of queries needs a sequence of keys";
            return refuse(format!("{problem}: {:?} of {}", self.of, self.keys.count()));
        }
        let longer = |(&queries, &of): (&usize, &usize)| queries > self.keys.lengths()[of];
        if self.causal && self.queries.lengths().iter().zip(&*self.of).any(longer) {
            return refuse("there are fewer keys than queries, which see those up to their own time".into());
        }
        Ok(())
    }
}

const NAME: &str = "attention";

/// `softmax(q k^T / sqrt(d)) v` for every head of d columns; q: `[Rq, D]`, k, v: `[Rk, D]`; gives `[Rq, D]`.
///
/// Backward keeps q and k; v and the output if a gradient of q or k is wanted.
///
/// # Errors
/// If the shapes do not fit; on a GPU, if a head has more than 128 columns.
pub fn attention(tape: &mut Tape, q: &Var, k: &Var, v: &Var, heads: Heads) -> Result<Var> {
    let (_, columns) = matrix(NAME, "the queries", q.shape())?;
    heads.check(columns)?;
    expect_shape(NAME, "the queries", q.shape(), &[heads.queries.rows(), columns])?;
    expect_shape(NAME, "the keys", k.shape(), &[heads.keys.rows(), columns])?;
    expect_shape(NAME, "the values", v.shape(), &[heads.keys.rows(), columns])?;
    let device = tape.device().clone();
    let new = |length: usize, category| Tensor::uninitialized(&device, &[length], category);
    let mut output = Tensor::uninitialized(&device, q.shape(), Category::Activation);
    let mut log_sums = new(heads.queries.rows() * heads.count, Category::Activation);
    let attention = heads.on_host(columns);
    // Two products of 2 d operations for every pair.
    device.count_operations((4 * columns * attention.pairs()) as u64);
    let inputs = [q, k, v].map(Var::tensor);
    let mut of = None;
    match device.backend() {
        Backend::Cpu => {
            let mut workspace = new(attention.forward_workspace(), Category::Workspace);
            let inputs = inputs.map(Tensor::data);
            attention.forward(inputs, output.data_mut(), log_sums.data_mut(), workspace.data_mut());
        }
        Backend::Cuda(context) => {
            cuda::attention::check(columns / heads.count)?;
            of = heads.bring(context);
            let attention = heads.on_device(columns, of.as_ref(), context, device.arithmetic());
            let workspace = workspace(&device, attention.forward_workspace());
            let (output, log_sums) = (output.pointer_mut(), log_sums.pointer_mut());
            attention.forward(context, inputs.map(Tensor::pointer), output, log_sums, workspace.pointer());
        }
        Backend::Plan => drop(new(attention.forward_workspace(), Category::Workspace)),
    }
    let places = [q, k, v].map(|input| tape.wants(input));
    let for_scores = places[0].is_some() || places[1].is_some();
    let kept = (for_scores || places[2].is_some()).then(|| Kept {
        q: q.tensor().clone(),
        k: k.tensor().clone(),
        scored: for_scores.then(|| (v.tensor().clone(), output.clone())),
        log_sums,
        of,
    });
    Ok(tape.record(&[q, k, v], output, move |gradient, backward| {
        let Some(kept) = kept else { return Ok(()) };
        let attention = heads.on_host(columns);
        // The scores again and the gradient of the values; those of probabilities, queries and keys.
        let products = 1 + usize::from(places[2].is_some()) + if for_scores { 3 } else { 0 };
        device.count_operations((2 * columns * attention.pairs() * products) as u64);
        let of = |tensor: &Tensor| Tensor::uninitialized(&device, tensor.shape(), Category::Activation);
        let (q, k) = (&kept.q, &kept.k);
        let mut results = [places[0].map(|_| of(q)), places[1].map(|_| of(k)), places[2].map(|_| of(k))];
        match device.backend() {
            Backend::Cpu => kept.backward(&attention, &gradient, &mut results),
            Backend::Cuda(context) => {
                let attention = heads.on_device(columns, kept.of.as_ref(), context, device.arithmetic());
                kept.backward_on_device(context, &attention, &gradient, &mut results);
            }
            Backend::Plan => {
                let length = attention.backward_workspace();
                drop(Tensor::uninitialized(&device, &[length], Category::Workspace));
            }
        }
        for (place, result) in places.into_iter().zip(results) {
            if let (Some(place), Some(result)) = (place, result) {
                backward.give(place, result);
            }
        }
        Ok(())
    }))
}

/// Of queries, keys and values, those that are wanted.
type Results = [Option<Tensor>; 3];

struct Kept {
    q: Tensor,
    k: Tensor,
    /// v and the output.
    scored: Option<(Tensor, Tensor)>,
    /// `[Rq * heads]`, in an order of the backend's.
    log_sums: Tensor,
    /// As [`Heads::bring`] brought it.
    of: Option<Buffer>,
}

impl Kept {
    fn backward(&self, attention: &Attention, dy: &Tensor, results: &mut Results) {
        let length = attention.backward_workspace();
        let mut workspace = Tensor::uninitialized(dy.device(), &[length], Category::Workspace);
        let [queries, keys, values] =
            results.each_mut().map(|result| result.as_mut().map(|result| (result.data_mut(), false)));
        let (v, output) = self.scored.as_ref().map_or((&[][..], &[][..]), |(v, output)| (v.data(), output.data()));
        let inputs = [self.q.data(), self.k.data(), v];
        let gradients = Gradients { queries, keys, values };
        attention.backward(inputs, output, self.log_sums.data(), dy.data(), gradients, workspace.data_mut());
    }

    fn backward_on_device(
        &self,
        context: &Context,
        attention: &cuda::attention::Attention,
        dy: &Tensor,
        results: &mut Results,
    ) {
        let workspace = workspace(dy.device(), attention.backward_workspace());
        let [queries, keys, values] = results.each_mut().map(|result| result.as_mut().map(Tensor::pointer_mut));
        let kept = cuda::attention::Kept {
            q: self.q.pointer(),
            k: self.k.pointer(),
            scored: self.scored.as_ref().map(|(v, output)| (v.pointer(), output.pointer())),
            log_sums: self.log_sums.pointer(),
        };
        let gradients = cuda::attention::Gradients { queries, keys, values };
        attention.backward(context, &kept, dy.pointer(), &gradients, workspace.pointer());
    }
}
