//! Optimisers: how a parameter moves along its gradient. Each follows torch.optim's definition, operation by operation, in f32.
//!
//! An optimiser owns no memory. Its state is one f32 buffer per name in [`Method::state_names`], each as long as the
//! parameter and zero before the first update; the caller keeps them (in tensors, for trainable parameters only) and
//! saves them. The gradient's scale from clipping is multiplied in on the way, so that clipping costs no pass of its own.

mod average;
mod epsilon_decay;
mod noam;
mod norm;
#[cfg(test)]
mod tests;

pub use average::{Average, is_triggered};
pub use epsilon_decay::EpsilonDecay;
pub use noam::Noam;
pub use norm::{GradientNorm, clip_coefficient, gradient_norm};

use crate::backend::cpu::simd::vectorized;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Elements per parallel task. A step is elementwise, so the bits depend neither on this nor on the number of threads; 16,384
/// elements of the four f32 streams of Adadelta are 256 KiB: they fit a core's second-level cache and amortise a task's start.
const CHUNK: usize = 16_384;

/// An optimiser and what stays constant over a stage. The names and defaults of its numbers are torch.optim's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Method {
    /// Zeiler, "ADADELTA: an adaptive learning rate method", 2012; torch.optim.Adadelta.
    Adadelta { rho: f64 },
    /// torch.optim.SGD: with `momentum` the first update takes the gradient undamped. Nesterov is defined for a momentum above 0
    /// and a dampening of 0 only.
    Sgd { momentum: f64, dampening: f64, nesterov: bool },
    /// Non-monotonically triggered ASGD (Merity, Keskar, Socher, 2018): plain SGD, and from an epoch on, whose validation loss is above the
    /// best of all but the last `nonmono` before it, the average of the parameters, which is what validation and the best weights take.
    /// `original`: the two quirks of awd-lstm-lm and torch.optim.ASGD. While averaging, an update takes the factor on the learning rate of
    /// the batch before, and the first update is not in the average.
    NtAsgd { nonmono: usize, original: bool },
    /// Kingma and Ba, "Adam", 2015; torch.optim.Adam without AMSGrad. Weight decay is added to the gradient.
    Adam { beta1: f64, beta2: f64 },
}

/// What may change from one update to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hyper {
    pub learning_rate: f64,
    /// Adadelta and Adam; SGD has none and ignores it.
    pub epsilon: f64,
    /// Times the parameter, added to the (scaled) gradient.
    pub weight_decay: f64,
    /// Updates made since the stage began, this one included: 1 for the first. Skipped updates do not count.
    pub step: u64,
    /// The factor on every gradient, see [`clip_coefficient`]; 1 leaves it alone.
    pub gradient_scale: f32,
}

impl Method {
    /// The state buffers that [`Method::step`] wants, in its order; PyTorch's `square_avg` and its kin, written out.
    pub fn state_names(&self) -> &'static [&'static str] {
        match self {
            Method::Adadelta { .. } => &["square_average", "accumulated_delta"],
            Method::Sgd { momentum, .. } if *momentum != 0.0 => &["momentum_buffer"],
            Method::Sgd { .. } | Method::NtAsgd { .. } => &[],
            Method::Adam { .. } => &["average", "square_average"],
        }
    }

    /// One update of one parameter, in place. `gradient` and every state are as long as `parameter`; the states are those of
    /// [`Method::state_names`], zero before the first update.
    ///
    /// # Panics
    /// If a length or the number of states differs: that is a fault of the caller, no file or user can cause it.
    pub fn step(&self, hyper: &Hyper, parameter: &mut [f32], gradient: &[f32], states: &mut [&mut [f32]]) {
        assert_eq!(states.len(), self.state_names().len(), "the states are those of state_names");
        assert_eq!(gradient.len(), parameter.len(), "a gradient is as long as its parameter");
        assert!(states.iter().all(|state| state.len() == parameter.len()), "a state is as long as its parameter");
        let scale = hyper.gradient_scale;
        // PyTorch multiplies f32 tensors by its Python floats rounded to f32: the rounding happens here, once.
        let weight_decay = hyper.weight_decay as f32;
        let learning_rate = hyper.learning_rate as f32;
        let epsilon = hyper.epsilon as f32;

        match (*self, states) {
            (Method::Adadelta { rho }, [square_average, accumulated_delta]) => {
                let (keep, take) = (rho as f32, (1.0 - rho) as f32);
                over_two_states(parameter, gradient, square_average, accumulated_delta, |p, g, square, accumulated| {
                    let g = g * scale + weight_decay * *p;
                    *square = *square * keep + take * g * g;
                    let delta = (*accumulated + epsilon).sqrt() / (*square + epsilon).sqrt() * g;
                    *accumulated = *accumulated * keep + take * delta * delta;
                    *p -= learning_rate * delta;
                });
            }
            (Method::Sgd { momentum, dampening, nesterov }, [buffer]) => {
                // The first update copies the gradient into the buffer: it starts at zero, so taking all of it is the same.
                let take = if hyper.step <= 1 { 1.0 } else { (1.0 - dampening) as f32 };
                let momentum = momentum as f32;
                over_one_state(parameter, gradient, buffer, |p, g, buffer| {
                    let g = g * scale + weight_decay * *p;
                    *buffer = *buffer * momentum + take * g;
                    let direction = if nesterov { g + momentum * *buffer } else { *buffer };
                    *p -= learning_rate * direction;
                });
            }
            (Method::Sgd { .. } | Method::NtAsgd { .. }, _) => {
                over_no_state(parameter, gradient, |p, g| {
                    *p -= learning_rate * (g * scale + weight_decay * *p);
                });
            }
            (Method::Adam { beta1, beta2 }, [average, square_average]) => {
                let (take1, keep2, take2) = ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
                // Both corrections for the averages' start at zero are scalars, in f64 as in PyTorch.
                let step = hyper.step.max(1) as f64;
                let step_size = (hyper.learning_rate / (1.0 - beta1.powf(step))) as f32;
                let correction = (1.0 - beta2.powf(step)).sqrt() as f32;
                over_two_states(parameter, gradient, average, square_average, |p, g, average, square| {
                    let g = g * scale + weight_decay * *p;
                    // torch.lerp measures from the nearer end.
                    *average = if take1 < 0.5 {
                        *average + take1 * (g - *average)
                    } else {
                        g - (g - *average) * (1.0 - take1)
                    };
                    *square = *square * keep2 + take2 * g * g;
                    *p -= step_size * *average / (square.sqrt() / correction + epsilon);
                });
            }
            (method, states) => unreachable!("{} states for {method:?}, checked above", states.len()),
        }
    }
}

/// average += weight (value - average).
pub fn average_into(average: &mut [f32], value: &[f32], weight: f32) {
    over_no_state(average, value, |average, value| *average += weight * (value - *average));
}

fn over_no_state(parameter: &mut [f32], gradient: &[f32], update: impl Fn(&mut f32, f32) + Sync) {
    parameter.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).for_each(|(parameter, gradient)| {
        vectorized(
            #[inline(always)]
            || parameter.iter_mut().zip(gradient).for_each(|(p, &g)| update(p, g)),
        );
    });
}

fn over_one_state(
    parameter: &mut [f32],
    gradient: &[f32],
    state: &mut [f32],
    update: impl Fn(&mut f32, f32, &mut f32) + Sync,
) {
    let chunks = parameter.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK)).zip(state.par_chunks_mut(CHUNK));
    chunks.for_each(|((parameter, gradient), state)| {
        vectorized(
            #[inline(always)]
            || parameter.iter_mut().zip(gradient).zip(&mut *state).for_each(|((p, &g), s)| update(p, g, s)),
        );
    });
}

fn over_two_states(
    parameter: &mut [f32],
    gradient: &[f32],
    first: &mut [f32],
    second: &mut [f32],
    update: impl Fn(&mut f32, f32, &mut f32, &mut f32) + Sync,
) {
    let chunks = parameter.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
    let chunks = chunks.zip(first.par_chunks_mut(CHUNK)).zip(second.par_chunks_mut(CHUNK));
    chunks.for_each(|(((parameter, gradient), first), second)| {
        vectorized(
            #[inline(always)]
            || {
                let elements = parameter.iter_mut().zip(gradient).zip(&mut *first).zip(&mut *second);
                elements.for_each(|(((p, &g), a), b)| update(p, g, a, b));
            },
        );
    });
}
