//! The backward pass, in the reverse order of the steps: the gates' activations become the gradients of their sums, in place.
//!
//! ```text
//! dh_t = dy_t + W_hh^T dgates_{t+1}                 do = dh tanh(c) o (1 - o)
//! dc_t = dc' + dh o (1 - tanh(c)^2)                 di = dc g i (1 - i),  df = dc c_{t-1} f (1 - f),  dg = dc i (1 - g^2)
//! dc'_{t-1} = dc f
//! ```

use super::forward::{load, store};
use super::product::{Ahead, SCRATCH_ROWS, Scratch, VECTORS, product};
use super::team;
use super::{Shape, Shared, State};
use crate::backend::cpu::simd::{WithSimd, apply, tanh};
use pulp::Simd;

/// One direction's operands.
pub struct Backward<'a> {
    /// W_hh as [`super::pack_backward`] left it.
    pub weights: &'a [f32],
    /// [R, 4H]: the activations i, f, g, o on entry, the gradients of their sums on exit.
    pub gates: &'a mut [f32],
    /// [R, H], from the forward pass.
    pub cells: &'a [f32],
    /// The initial state of the forward pass (its cell is read), if there was one.
    pub initial: Option<State<'a>>,
    /// [N, H]: the gradient of each sequence's final cell on entry (zeros if nobody reads that), of its initial cell on exit.
    pub cell_gradient: &'a mut [f32],
    /// [N, H]: the gradient of each sequence's final h, beside what the output's gradient says.
    pub final_hidden_gradient: Option<&'a [f32]>,
    /// [N, H]: on exit the gradient of each sequence's initial h.
    pub initial_hidden_gradient: Option<&'a mut [f32]>,
}

/// Runs all directions from `output_gradient` [R, D H].
///
/// # Panics
/// If a slice has not the length that the shape asks for.
pub fn backward(shape: &Shape, directions: &mut [Backward], output_gradient: &[f32]) {
    let workers = team::size(shape, rayon::current_num_threads());
    apply(Run { shape, directions, output_gradient, workers });
}

pub(super) struct Run<'a, 'b> {
    pub shape: &'a Shape<'a>,
    pub directions: &'a mut [Backward<'b>],
    pub output_gradient: &'a [f32],
    pub workers: usize,
}

impl WithSimd for Run<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Run { shape, directions, output_gradient, workers } = self;
        let layers = check(shape, directions, output_gradient);
        team::run_layers(simd, shape, &layers, workers);
    }
}

/// [`Backward`] as pointers; ownership as in the forward pass: a panel's units are written by its owner alone.
#[derive(Clone, Copy)]
struct Layer {
    weights: Shared<f32>,
    gates: Shared<f32>,
    cells: Shared<f32>,
    initial_cell: Option<Shared<f32>>,
    cell_gradient: Shared<f32>,
    final_hidden_gradient: Option<Shared<f32>>,
    initial_hidden_gradient: Option<Shared<f32>>,
    /// Column 0 of this direction.
    output_gradient: Shared<f32>,
}

/// Holds every slice against the shape; from here on the kernels trust it.
fn check(shape: &Shape, directions: &mut [Backward], output_gradient: &[f32]) -> Vec<Layer> {
    shape.check();
    let (rows, hidden) = (shape.rows(), shape.hidden);
    let state = shape.sequences() * hidden;
    assert_eq!(directions.len(), shape.directions, "operands for every direction");
    assert_eq!(output_gradient.len(), rows * shape.output_width(), "gradient of the LSTM output: [R, D H]");
    let layer = |(direction, operands): (usize, &mut Backward)| {
        assert!(operands.weights.len() >= super::packed_length(hidden), "packed recurrent weights");
        assert_eq!(operands.gates.len(), rows * 4 * hidden, "LSTM gates: [R, 4H]");
        assert_eq!(operands.cells.len(), rows * hidden, "LSTM cells: [R, H]");
        assert!(operands.initial.is_none_or(|initial| initial.cell.len() == state), "LSTM initial state: [N, H]");
        assert_eq!(operands.cell_gradient.len(), state, "gradient of the LSTM cells: [N, H]");
        assert!(operands.final_hidden_gradient.is_none_or(|gradient| gradient.len() == state), "gradient of h: [N, H]");
        let initial = operands.initial_hidden_gradient.as_deref_mut();
        assert!(initial.as_ref().is_none_or(|gradient| gradient.len() == state), "gradient of the initial h: [N, H]");
        Layer {
            weights: Shared::of(operands.weights),
            gates: Shared(operands.gates.as_mut_ptr()),
            cells: Shared::of(operands.cells),
            initial_cell: operands.initial.map(|initial| Shared::of(initial.cell)),
            cell_gradient: Shared(operands.cell_gradient.as_mut_ptr()),
            final_hidden_gradient: operands.final_hidden_gradient.map(Shared::of),
            initial_hidden_gradient: initial.map(|gradient| Shared(gradient.as_mut_ptr())),
            output_gradient: Shared(output_gradient.as_ptr().cast_mut().wrapping_add(direction * hidden)),
        }
    };
    directions.iter_mut().enumerate().map(layer).collect()
}

impl team::Layer for Layer {
    /// One product for four vectors of units.
    const UNIT_VECTORS: usize = VECTORS;

    #[inline(always)]
    unsafe fn step<S: Simd>(
        &self,
        simd: S,
        shape: &Shape,
        direction: usize,
        number: usize,
        panel: usize,
        scratch: &mut Scratch,
    ) {
        let number = shape.steps() - 1 - number;
        let hidden = shape.hidden;
        let width = VECTORS * S::F32_LANES;
        let step = shape.step(direction, number);
        let (following_row, going_on) = shape.following(direction, number);
        // SAFETY: see the caller; row and unit stay inside what the shape names.
        unsafe {
            let weights = self.weights.0.add(panel * 4 * hidden * width);
            let mut first = 0;
            while first < step.active {
                // Rows that go on into the following step take their gradient from there, the others (their sequence ends here) from outside.
                let goes_on = first < going_on;
                let rows = SCRATCH_ROWS.min(if goes_on { going_on - first } else { step.active - first });
                if goes_on {
                    let dgates = self.gates.0.add((following_row + first) * 4 * hidden);
                    let row = step.first_row + first;
                    let gates = Ahead {
                        place: self.gates.0.wrapping_add(row * 4 * hidden + (panel + 1) * width),
                        stride: 4 * hidden,
                        floats: width,
                    };
                    let gate = |gate: usize| Ahead { place: gates.place.wrapping_add(gate * hidden), ..gates };
                    let cells = self.cells.0.wrapping_add(row * hidden + (panel + 1) * width);
                    let cells = Ahead { place: cells, stride: hidden, ..gates };
                    let output = self.output_gradient.0.wrapping_add(row * shape.output_width() + (panel + 1) * width);
                    let output = Ahead { place: output, stride: shape.output_width(), ..gates };
                    let ahead = [gate(0), gate(1), gate(2), gate(3), cells, output];
                    product(simd, scratch, rows, dgates, 4 * hidden, weights, 4 * hidden, &ahead);
                }
                for index in 0..rows {
                    let sequence = first + index;
                    let previous_cell = if sequence < step.continuing {
                        Some(self.cells.0.add((step.previous_row + sequence) * hidden))
                    } else {
                        self.initial_cell.map(|cell| cell.0.add(sequence * hidden))
                    };
                    let recurrent = if goes_on {
                        Some(scratch.0.as_ptr().add(index * width))
                    } else {
                        self.final_hidden_gradient.map(|dh| dh.0.add(sequence * hidden + panel * width).cast_const())
                    };
                    let row = Row {
                        gates: self.gates.0.add((step.first_row + sequence) * 4 * hidden),
                        cells: self.cells.0.add((step.first_row + sequence) * hidden),
                        previous_cell: previous_cell.map(|cell| cell.cast_const()),
                        cell_gradient: self.cell_gradient.0.add(sequence * hidden),
                        output_gradient: self.output_gradient.0.add((step.first_row + sequence) * shape.output_width()),
                        recurrent,
                    };
                    for vector in 0..VECTORS {
                        let unit = panel * width + vector * S::F32_LANES;
                        if unit < hidden {
                            row.units(simd, hidden, unit, vector * S::F32_LANES);
                        }
                    }
                }
                first += rows;
            }
        }
    }

    /// W_hh^T dgates of every sequence's first step: the gradient of the initial h.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, simd: S, shape: &Shape, direction: usize, panel: usize, scratch: &mut Scratch) {
        let Some(gradient) = self.initial_hidden_gradient else { return };
        let hidden = shape.hidden;
        let width = VECTORS * S::F32_LANES;
        // SAFETY: see the caller; row and unit stay inside what the shape names.
        unsafe {
            let weights = self.weights.0.add(panel * 4 * hidden * width);
            let units = width.min(hidden - panel * width);
            for number in 0..shape.steps() {
                let step = shape.step(direction, number);
                for first in (step.continuing..step.active).step_by(SCRATCH_ROWS) {
                    let rows = SCRATCH_ROWS.min(step.active - first);
                    let dgates = self.gates.0.add((step.first_row + first) * 4 * hidden);
                    product(simd, scratch, rows, dgates, 4 * hidden, weights, 4 * hidden, &[]);
                    for index in 0..rows {
                        let to = gradient.0.add((first + index) * hidden + panel * width);
                        std::ptr::copy_nonoverlapping(scratch.0.as_ptr().add(index * width), to, units);
                    }
                }
            }
        }
    }
}

/// The places of one row, each at unit 0 but `recurrent`, which is at the panel's first unit.
struct Row {
    gates: *mut f32,
    cells: *const f32,
    previous_cell: Option<*const f32>,
    cell_gradient: *mut f32,
    output_gradient: *const f32,
    recurrent: Option<*const f32>,
}

impl Row {
    /// The equations at the head of this file for one vector of units.
    #[inline(always)]
    unsafe fn units<S: Simd>(&self, simd: S, hidden: usize, unit: usize, unit_in_panel: usize) {
        let units = S::F32_LANES.min(hidden - unit);
        let one = simd.splat_f32s(1.0);
        // SAFETY: `unit + units <= H`; rows as the caller states them.
        unsafe {
            let mut gates = [simd.splat_f32s(0.0); VECTORS];
            for (gate, value) in gates.iter_mut().enumerate() {
                *value = load(simd, self.gates.add(gate * hidden + unit), units);
            }
            let [i, f, g, o] = gates;
            let mut dh = load(simd, self.output_gradient.add(unit), units);
            if let Some(recurrent) = self.recurrent {
                dh = simd.add_f32s(dh, load(simd, recurrent.add(unit_in_panel), units));
            }
            let tanh_c = tanh(simd, load(simd, self.cells.add(unit), units));
            let through = simd.mul_f32s(dh, o);
            let through = simd.negate_mul_add_e_f32s(simd.mul_f32s(through, tanh_c), tanh_c, through);
            let dc = simd.add_f32s(load(simd, self.cell_gradient.add(unit), units), through);
            let di = simd.mul_f32s(simd.mul_f32s(dc, g), slope(simd, i));
            let df = match self.previous_cell {
                Some(cell) => simd.mul_f32s(simd.mul_f32s(dc, load(simd, cell.add(unit), units)), slope(simd, f)),
                None => simd.splat_f32s(0.0),
            };
            let dg = simd.mul_f32s(simd.mul_f32s(dc, i), simd.negate_mul_add_e_f32s(g, g, one));
            let d_o = simd.mul_f32s(simd.mul_f32s(dh, tanh_c), slope(simd, o));
            store(simd, self.cell_gradient.add(unit), units, simd.mul_f32s(dc, f));
            for (gate, value) in [di, df, dg, d_o].into_iter().enumerate() {
                store(simd, self.gates.add(gate * hidden + unit), units, value);
            }
        }
    }
}

/// a (1 - a), the derivative of the sigmoid.
#[inline(always)]
fn slope<S: Simd>(simd: S, a: S::f32s) -> S::f32s {
    simd.negate_mul_add_e_f32s(a, a, a)
}
