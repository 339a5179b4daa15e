//! Layer normalisation of rows (Ba, Kiros, Hinton, 2016): `gamma (x - mean) / sqrt(variance + epsilon) + beta`.

use crate::backend::{cpu, cuda};
use crate::device::{Backend, Category, Device};
use crate::error::Result;
use crate::ops::{expect_shape, matrix};
use crate::primitives::workspace;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x: [R, C]`, `gamma, beta: [C]`; gives `[R, C]`.
///
/// Backward keeps `x`, mean and deviation of every row, and gamma if the gradient of `x` is wanted.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(tape: &mut Tape, x: &Var, gamma: &Var, beta: &Var, epsilon: f32) -> Result<Var> {
    let (rows, columns) = matrix("layer_norm", "the input", x.shape())?;
    expect_shape("layer_norm", "the scale", gamma.shape(), &[columns])?;
    expect_shape("layer_norm", "the shift", beta.shape(), &[columns])?;
    let device = tape.device().clone();
    let new = |shape: &[usize]| Tensor::uninitialized(&device, shape, Category::Activation);
    let (mut output, mut means, mut inverses) = (new(x.shape()), new(&[rows]), new(&[rows]));
    match device.backend() {
        Backend::Cpu => {
            let (x, gamma, beta) = (x.tensor().data(), gamma.tensor().data(), beta.tensor().data());
            let (means, inverses) = (means.data_mut(), inverses.data_mut());
            cpu::layer_norm::forward(x, gamma, beta, epsilon, output.data_mut(), means, inverses, columns);
        }
        Backend::Cuda(context) => {
            let statistics =
                cuda::layer_norm::Statistics { means: means.pointer_mut(), inverse_deviations: inverses.pointer_mut() };
            let (x, gamma, beta) = (x.tensor().pointer(), gamma.tensor().pointer(), beta.tensor().pointer());
            let y = output.pointer_mut();
            cuda::layer_norm::forward(context, x, gamma, beta, epsilon, y, statistics, rows, columns);
        }
        Backend::Plan => {}
    }
    let [x_place, gamma_place, beta_place] = [x, gamma, beta].map(|input| tape.wants(input));
    let kept = [x_place, gamma_place, beta_place].iter().any(Option::is_some);
    let kept = kept.then(|| Kept { x: x.tensor().clone(), means, inverses });
    let kept_gamma = x_place.map(|place| (place, gamma.tensor().clone()));
    Ok(tape.record(&[x, gamma, beta], output, move |gradient, backward| {
        let Some(kept) = kept else { return Ok(()) };
        if gamma_place.is_some() || beta_place.is_some() {
            let (dgamma, dbeta) = parameter_gradients(&device, &kept, &gradient, columns);
            for (place, gradient) in [(gamma_place, dgamma), (beta_place, dbeta)] {
                if let Some(place) = place {
                    backward.give(place, gradient);
                }
            }
        }
        if let Some((place, gamma)) = kept_gamma {
            let sink = backward.sink(place);
            match device.backend() {
                Backend::Cpu => {
                    let dx = sink.tensor.data_mut();
                    let (x, gamma, dy) = (kept.x.data(), gamma.data(), gradient.data());
                    cpu::layer_norm::backward(x, gamma, kept.on_host(), dy, dx, sink.add);
                }
                Backend::Cuda(context) => {
                    let (x, gamma, dy) = (kept.x.pointer(), gamma.pointer(), gradient.pointer());
                    let dx = sink.tensor.pointer_mut();
                    let (statistics, add) = (kept.on_device(), sink.add);
                    cuda::layer_norm::backward(context, x, gamma, statistics, dy, dx, rows, columns, add);
                }
                Backend::Plan => {}
            }
        }
        Ok(())
    }))
}

struct Kept {
    x: Tensor,
    means: Tensor,
    /// 1 / deviation.
    inverses: Tensor,
}

impl Kept {
    fn on_host(&self) -> cpu::layer_norm::Statistics<'_> {
        cpu::layer_norm::Statistics { means: self.means.data(), inverse_deviations: self.inverses.data() }
    }

    fn on_device(&self) -> cuda::layer_norm::Statistics {
        cuda::layer_norm::Statistics { means: self.means.pointer(), inverse_deviations: self.inverses.pointer() }
    }
}

/// Those of gamma and beta, which are summed in one pass.
fn parameter_gradients(device: &Device, kept: &Kept, dy: &Tensor, columns: usize) -> (Tensor, Tensor) {
    let new = || Tensor::uninitialized(device, &[columns], Category::Activation);
    let (mut dgamma, mut dbeta) = (new(), new());
    match device.backend() {
        Backend::Cpu => {
            let (x, dy) = (kept.x.data(), dy.data());
            let sums = (dgamma.data_mut(), dbeta.data_mut());
            cpu::layer_norm::backward_parameters(x, kept.on_host(), dy, sums.0, sums.1, false);
        }
        Backend::Cuda(context) => {
            let rows = kept.means.len();
            let workspace = workspace(device, cuda::layer_norm::parameters_workspace(rows, columns));
            let (x, dy, statistics) = (kept.x.pointer(), dy.pointer(), kept.on_device());
            let (sums, workspace) = ((dgamma.pointer_mut(), dbeta.pointer_mut()), workspace.pointer());
            cuda::layer_norm::backward_parameters(
                context, x, statistics, dy, sums.0, sums.1, rows, columns, false, workspace,
            );
        }
        Backend::Plan => {}
    }
    (dgamma, dbeta)
}
