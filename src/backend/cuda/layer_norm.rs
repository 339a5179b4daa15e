//! Layer normalisation of rows: `kernels/layer_norm.cu`, the same mathematics as `backend::cpu::layer_norm`.

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::{THREADS, fill, run, slabs, totals};

const FILE: &str = "layer_norm";
/// A warp has a row of up to this many columns, a block a longer one.
const COLUMNS_OF_WARP: usize = 1024;
const ROWS_OF_BLOCK: usize = THREADS as usize / 32;
/// Scratch memory with which a block sums in f32.
const SCRATCH: usize = 32 * size_of::<f32>();

/// What forward finds of every row and backward needs: both `[rows]`.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    pub means: Pointer,
    pub inverse_deviations: Pointer,
}

impl Statistics {
    fn arguments(self) -> [Argument; 2] {
        [Argument::Pointer(self.means), Argument::Pointer(self.inverse_deviations)]
    }
}

/// Who has a row: the launch, and which of the two kernels.
fn by_rows(rows: usize, columns: usize, kernels: [&'static str; 2]) -> (Launch, &'static str) {
    let blocks = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    if columns <= COLUMNS_OF_WARP {
        (Launch::blocks(blocks(rows.div_ceil(ROWS_OF_BLOCK)), THREADS), kernels[0])
    } else {
        (Launch::blocks(blocks(rows), THREADS).shared(SCRATCH), kernels[1])
    }
}

/// y = gamma n + beta in every row, n = (x - mean) / sqrt(variance + epsilon); x, y: `[rows, columns]`, and they may be the same; gamma, beta:
/// `[columns]`. Writes the statistics.
#[allow(clippy::too_many_arguments)] // What goes in and what comes out: a struct would only rename them.
pub fn forward(
    context: &Context,
    x: Pointer,
    gamma: Pointer,
    beta: Pointer,
    epsilon: f32,
    y: Pointer,
    statistics: Statistics,
    rows: usize,
    columns: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let (launch, kernel) = by_rows(rows, columns, ["layer_norm_forward", "layer_norm_forward_long"]);
    let [means, inverse_deviations] = statistics.arguments();
    let arguments = [
        Argument::Pointer(y),
        means,
        inverse_deviations,
        Argument::Pointer(x),
        Argument::Pointer(gamma),
        Argument::Pointer(beta),
        Argument::int(rows),
        Argument::int(columns),
        Argument::Float(epsilon),
    ];
    run(context, FILE, kernel, &launch, &arguments);
}

/// dx = or, accumulating, += the gradient to x; x, dy, dx: `[rows, columns]`; dx may be dy.
#[allow(clippy::too_many_arguments)] // As above.
pub fn backward(
    context: &Context,
    x: Pointer,
    gamma: Pointer,
    statistics: Statistics,
    dy: Pointer,
    dx: Pointer,
    rows: usize,
    columns: usize,
    accumulate: bool,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let (launch, kernel) = by_rows(rows, columns, ["layer_norm_backward", "layer_norm_backward_long"]);
    let [means, inverse_deviations] = statistics.arguments();
    let arguments = [
        Argument::Pointer(dx),
        Argument::Pointer(dy),
        Argument::Pointer(x),
        Argument::Pointer(gamma),
        means,
        inverse_deviations,
        Argument::int(rows),
        Argument::int(columns),
        Argument::flag(accumulate),
    ];
    run(context, FILE, kernel, &launch, &arguments);
}

/// Bytes that [`backward_parameters`] works in.
pub fn parameters_workspace(rows: usize, columns: usize) -> usize {
    super::elementwise::column_sums_workspace(rows, 2 * columns)
}

/// dgamma = or, accumulating, += the sum over the rows of dy n, dbeta that of dy; x, dy: `[rows, columns]`, dgamma, dbeta: `[columns]`.
#[allow(clippy::too_many_arguments)] // As above.
pub fn backward_parameters(
    context: &Context,
    x: Pointer,
    statistics: Statistics,
    dy: Pointer,
    dgamma: Pointer,
    dbeta: Pointer,
    rows: usize,
    columns: usize,
    accumulate: bool,
    workspace: Pointer,
) {
    if columns == 0 || (rows == 0 && accumulate) {
        return;
    }
    if rows == 0 {
        fill(context, dgamma, 0.0, columns);
        return fill(context, dbeta, 0.0, columns);
    }
    let (launch, slabs) = slabs(rows, columns, 2);
    let [means, inverse_deviations] = statistics.arguments();
    let arguments = [
        Argument::Pointer(dy),
        Argument::Pointer(x),
        means,
        inverse_deviations,
        Argument::int(rows),
        Argument::int(columns),
        Argument::Pointer(workspace),
    ];
    run(context, FILE, "layer_norm_column_sums", &launch, &arguments);
    let arguments = [
        Argument::Pointer(workspace),
        Argument::int(slabs),
        Argument::int(columns),
        Argument::Pointer(dgamma),
        Argument::Pointer(dbeta),
        Argument::flag(accumulate),
    ];
    run(context, FILE, "layer_norm_column_totals", &totals(2 * columns), &arguments);
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::testing::{BOTH_ALIGNMENTS, for_all_orders};
    use super::*;
    use crate::backend::cpu;
    use crate::backend::cpu::testing::{assert_close, random};

    const EPSILON: f32 = 1e-5;
    /// One column; a tail; a warp's row and a block's, each at its limit; several slabs and tiles.
    const SHAPES: [(usize, usize); 9] =
        [(1, 1), (3, 2), (5, 13), (9, 256), (2, 1024), (3, 1025), (2, 2600), (300, 132), (0, 4)];

    fn widened(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    #[test]
    fn forward_and_backward_agree_with_the_cpu_and_do_not_depend_on_alignment() {
        for_all_orders(|device| {
            for (rows, columns) in SHAPES {
                let [x, dy, before] = [1, 2, 3].map(|seed| random(rows * columns, seed));
                let [gamma, beta] = [4, 5].map(|seed| random(columns, seed));
                let mut y = vec![0.0; x.len()];
                let (mut means, mut inverse_deviations) = (vec![0.0; rows], vec![0.0; rows]);
                let (m, i) = (&mut means[..], &mut inverse_deviations[..]);
                cpu::layer_norm::forward(&x, &gamma, &beta, EPSILON, &mut y, m, i, columns);
                let statistics = cpu::layer_norm::Statistics { means: &means, inverse_deviations: &inverse_deviations };
                // Two f32 sums of a row in different orders, each within a few roundings of values of order 1; n may be 1 / deviation times as far.
                let largest = inverse_deviations.iter().fold(1.0, |largest: f32, &i| largest.max(i));
                let tolerance = 1e-6 * f64::from(largest);

                let mut results = Vec::new();
                for shift in BOTH_ALIGNMENTS {
                    let [x_there, dy_there] = [&x, &dy].map(|data| device.shifted(data, shift));
                    let [gamma_there, beta_there] = [&gamma, &beta].map(|data| device.shifted(data, shift));
                    let output = device.poisoned::<f32>(x.len(), shift);
                    let kept = [(); 2].map(|()| device.poisoned::<f32>(rows, 0));
                    let there = Statistics { means: kept[0].pointer(), inverse_deviations: kept[1].pointer() };
                    let (context, gamma_pointer) = (&device.context, gamma_there.pointer());
                    let (x_pointer, beta_pointer, to) = (x_there.pointer(), beta_there.pointer(), output.pointer());
                    forward(context, x_pointer, gamma_pointer, beta_pointer, EPSILON, to, there, rows, columns);
                    assert_close(&output.values(), &widened(&y), tolerance, 1e-6, "layer norm");
                    assert_close(&kept[0].values(), &widened(&means), 3e-7, 0.0, "means");
                    // The variance's relative error, and the root's.
                    let inverse_tolerance = if columns < 3 { 1e-3 } else { 4e-6 };
                    let expected = widened(&inverse_deviations);
                    assert_close(&kept[1].values(), &expected, 0.0, inverse_tolerance, "1 / deviation");
                    results.push(output.values());

                    // Backward from the same statistics, so that its own errors show.
                    let kept = [&means, &inverse_deviations].map(|data| device.upload(data));
                    let there = Statistics { means: kept[0].pointer(), inverse_deviations: kept[1].pointer() };
                    for accumulate in [false, true] {
                        let mut expected = before.clone();
                        cpu::layer_norm::backward(&x, &gamma, statistics, &dy, &mut expected, accumulate);
                        let gradient = device.shifted(&before, shift);
                        let (dy_pointer, dx) = (dy_there.pointer(), gradient.pointer());
                        backward(context, x_pointer, gamma_pointer, there, dy_pointer, dx, rows, columns, accumulate);
                        assert_close(&gradient.values(), &widened(&expected), 2.0 * tolerance, 1e-6, "dx");
                        results.push(gradient.values());

                        let (mut dgamma, mut dbeta) = (gamma.clone(), beta.clone());
                        let (g, b) = (&mut dgamma[..], &mut dbeta[..]);
                        cpu::layer_norm::backward_parameters(&x, statistics, &dy, g, b, accumulate);
                        let sums = [&gamma, &beta].map(|data| device.shifted(data, shift));
                        let workspace = device.poisoned_bytes(parameters_workspace(rows, columns));
                        backward_parameters(
                            context,
                            x_pointer,
                            there,
                            dy_pointer,
                            sums[0].pointer(),
                            sums[1].pointer(),
                            rows,
                            columns,
                            accumulate,
                            workspace.pointer(),
                        );
                        // Terms of order 1, some 60 roundings on either side.
                        let tolerance = rows as f64 * 60.0 * f64::from(f32::EPSILON);
                        assert_close(&sums[0].values(), &widened(&dgamma), 2.0 * tolerance, 0.0, "dgamma");
                        assert_close(&sums[1].values(), &widened(&dbeta), tolerance, 0.0, "dbeta");
                        results.extend(sums.map(|sums| sums.values()));
                    }
                }
                let (aligned, shifted) = results.split_at(results.len() / 2);
                assert!(aligned == shifted, "{rows} x {columns}: alignment changed bits");
            }
        });
    }

    #[test]
    fn forward_works_in_place() {
        for_all_orders(|device| {
            for columns in [33, 1500] {
                let (x, gamma, beta) = (random(3 * columns, 1), random(columns, 2), random(columns, 3));
                let [input, output] = [(); 2].map(|()| device.upload(&x));
                let [gamma, beta] = [gamma, beta].map(|data| device.upload(&data));
                let kept = [(); 2].map(|()| device.poisoned::<f32>(3, 0));
                let statistics = Statistics { means: kept[0].pointer(), inverse_deviations: kept[1].pointer() };
                let (gamma, beta) = (gamma.pointer(), beta.pointer());
                let separate = device.poisoned::<f32>(3 * columns, 0);
                for (from, to) in [(&input, &separate), (&output, &output)] {
                    let (from, to) = (from.pointer(), to.pointer());
                    forward(&device.context, from, gamma, beta, EPSILON, to, statistics, 3, columns);
                }
                assert_eq!(separate.values(), output.values());
            }
        });
    }
}
