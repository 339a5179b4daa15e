//! The forward pass: recurrent product, gates, cell and output of one panel of units at a time.

use super::product::{Ahead, SCRATCH_ROWS, Scratch, VECTORS, product};
use super::team;
use super::{Shape, Shared, State};
use crate::backend::cpu::simd::{WithSimd, apply, sigmoid, tanh};
use pulp::Simd;

/// One direction's operands. R rows are packed as [`Shape`] says.
pub struct Forward<'a> {
    /// W_hh as [`super::pack_forward`] left it.
    pub weights: &'a [f32],
    /// b_ih + b_hh, [4H], if the input projections do not have it yet.
    pub bias: Option<&'a [f32]>,
    /// [R, 4H]: holds W_ih x on entry, the activations i, f, g, o on exit (what backward reads).
    pub gates: &'a mut [f32],
    /// [R, H]: c_t on exit.
    pub cells: &'a mut [f32],
    /// h and c before each sequence's first step; zeros if absent.
    pub initial: Option<State<'a>>,
}

/// Runs all directions; direction d's h goes to columns d H..(d + 1) H of `output` [R, D H].
///
/// # Panics
/// If a slice has not the length that the shape asks for.
pub fn forward(shape: &Shape, directions: &mut [Forward], output: &mut [f32]) {
    let workers = team::size(shape, rayon::current_num_threads());
    apply(Run { shape, directions, output, workers });
}

pub(super) struct Run<'a, 'b> {
    pub shape: &'a Shape<'a>,
    pub directions: &'a mut [Forward<'b>],
    pub output: &'a mut [f32],
    pub workers: usize,
}

impl WithSimd for Run<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Run { shape, directions, output, workers } = self;
        let layers = check(shape, directions, output);
        team::run_layers(simd, shape, &layers, workers);
    }
}

/// [`Forward`] as pointers, for threads that write interleaved columns. Every write goes to (row, unit) of a panel, each panel has one
/// owner, and another thread's (row, unit) is read only in the step after a barrier.
#[derive(Clone, Copy)]
struct Layer {
    weights: Shared<f32>,
    bias: Option<Shared<f32>>,
    gates: Shared<f32>,
    cells: Shared<f32>,
    /// Column 0 of this direction.
    output: Shared<f32>,
    initial: Option<(Shared<f32>, Shared<f32>)>,
}

/// Holds every slice against the shape; from here on the kernels trust it.
fn check(shape: &Shape, directions: &mut [Forward], output: &mut [f32]) -> Vec<Layer> {
    shape.check();
    let (rows, hidden) = (shape.rows(), shape.hidden);
    assert_eq!(directions.len(), shape.directions, "operands for every direction");
    assert_eq!(output.len(), rows * shape.output_width(), "LSTM output: [R, D H]");
    let output = output.as_mut_ptr();
    let layer = |(direction, operands): (usize, &mut Forward)| {
        assert!(operands.weights.len() >= super::packed_length(hidden), "packed recurrent weights");
        assert_eq!(operands.gates.len(), rows * 4 * hidden, "LSTM gates: [R, 4H]");
        assert_eq!(operands.cells.len(), rows * hidden, "LSTM cells: [R, H]");
        assert!(operands.bias.is_none_or(|bias| bias.len() == 4 * hidden), "LSTM bias: [4H]");
        let state = shape.sequences() * hidden;
        assert!(
            operands.initial.is_none_or(|initial| initial.hidden.len() == state && initial.cell.len() == state),
            "LSTM initial state: [N, H]"
        );
        Layer {
            weights: Shared::of(operands.weights),
            bias: operands.bias.map(Shared::of),
            gates: Shared(operands.gates.as_mut_ptr()),
            cells: Shared(operands.cells.as_mut_ptr()),
            output: Shared(output.wrapping_add(direction * hidden)),
            initial: operands.initial.map(|initial| (Shared::of(initial.hidden), Shared::of(initial.cell))),
        }
    };
    directions.iter_mut().enumerate().map(layer).collect()
}

impl team::Layer for Layer {
    /// The four gates of one vector of units.
    const UNIT_VECTORS: usize = 1;

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
        let (hidden, width) = (shape.hidden, shape.output_width());
        let step = shape.step(direction, number);
        // SAFETY: see the caller; row and unit stay inside what the shape names.
        unsafe {
            let weights = self.weights.0.add(panel * hidden * VECTORS * S::F32_LANES);
            let pointwise = Pointwise { simd, layer: self, hidden, width, unit: panel * S::F32_LANES };
            for first in (0..step.continuing).step_by(SCRATCH_ROWS) {
                let rows = SCRATCH_ROWS.min(step.continuing - first);
                let previous = step.previous_row + first;
                let ahead = pointwise.ahead(step.first_row + first);
                product(simd, scratch, rows, self.output.0.add(previous * width), width, weights, hidden, &ahead);
                let cells = self.cells.0.add(previous * hidden);
                pointwise.rows(step.first_row + first, rows, Some(scratch), Some(cells));
            }
            for first in (step.continuing..step.active).step_by(SCRATCH_ROWS) {
                let rows = SCRATCH_ROWS.min(step.active - first);
                if let Some((h, c)) = self.initial {
                    product(simd, scratch, rows, h.0.add(first * hidden), hidden, weights, hidden, &[]);
                    pointwise.rows(step.first_row + first, rows, Some(scratch), Some(c.0.add(first * hidden)));
                } else {
                    pointwise.rows(step.first_row + first, rows, None, None);
                }
            }
        }
    }
}

/// Gates, cell and output of one panel's units.
struct Pointwise<'a, S> {
    simd: S,
    layer: &'a Layer,
    hidden: usize,
    width: usize,
    /// The panel's first unit.
    unit: usize,
}

impl<S: Simd> Pointwise<'_, S> {
    /// What the next panel's `rows` will touch first: the projections, the places of c and h.
    #[inline(always)]
    fn ahead(&self, row: usize) -> [Ahead; VECTORS + 2] {
        let Pointwise { layer, hidden, width, .. } = *self;
        // Behind the last panel these are units of other gates: no harm in asking.
        let unit = self.unit + S::F32_LANES;
        let gates = Ahead {
            place: layer.gates.0.wrapping_add(row * 4 * hidden + unit),
            stride: 4 * hidden,
            floats: S::F32_LANES,
        };
        let gate = |gate: usize| Ahead { place: gates.place.wrapping_add(gate * hidden), ..gates };
        let cells = Ahead { place: layer.cells.0.wrapping_add(row * hidden + unit), stride: hidden, ..gates };
        let output = Ahead { place: layer.output.0.wrapping_add(row * width + unit), stride: width, ..gates };
        [gate(0), gate(1), gate(2), gate(3), cells, output]
    }

    /// `sums` are the recurrent products of `rows` rows from `row` on, `previous` their earlier cells [rows, H]; absent means zeros.
    #[inline(always)]
    unsafe fn rows(&self, row: usize, rows: usize, sums: Option<&Scratch>, previous: Option<*const f32>) {
        let Pointwise { simd, layer, hidden, width, unit } = *self;
        let lanes = S::F32_LANES;
        let units = lanes.min(hidden - unit);
        // SAFETY: `unit + units <= H`; rows as the caller states them.
        unsafe {
            for index in 0..rows {
                let gates = layer.gates.0.add((row + index) * 4 * hidden + unit);
                let mut x = [simd.splat_f32s(0.0); VECTORS];
                for (gate, x) in x.iter_mut().enumerate() {
                    *x = load(simd, gates.add(gate * hidden), units);
                    if let Some(bias) = layer.bias {
                        *x = simd.add_f32s(*x, load(simd, bias.0.add(gate * hidden + unit), units));
                    }
                    if let Some(sums) = sums {
                        let place = sums.0.as_ptr().add((index * VECTORS + gate) * lanes);
                        *x = simd.add_f32s(*x, place.cast::<S::f32s>().read_unaligned());
                    }
                }
                let [i, f, g, o] = [sigmoid(simd, x[0]), sigmoid(simd, x[1]), tanh(simd, x[2]), sigmoid(simd, x[3])];
                let mut c = simd.mul_f32s(i, g);
                if let Some(previous) = previous {
                    c = simd.mul_add_e_f32s(f, load(simd, previous.add(index * hidden + unit), units), c);
                }
                for (gate, value) in [i, f, g, o].into_iter().enumerate() {
                    store(simd, gates.add(gate * hidden), units, value);
                }
                store(simd, layer.cells.0.add((row + index) * hidden + unit), units, c);
            }
            // A loop of its own: the tanh of c would wait for all of the above, while four gates of several rows overlap.
            for index in 0..rows {
                let o = load(simd, layer.gates.0.add(((row + index) * 4 + 3) * hidden + unit), units);
                let c = load(simd, layer.cells.0.add((row + index) * hidden + unit), units);
                let h = simd.mul_f32s(o, tanh(simd, c));
                store(simd, layer.output.0.add((row + index) * width + unit), units, h);
            }
        }
    }
}

/// Loads `units` floats, zeros behind.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(simd: S, place: *const f32, units: usize) -> S::f32s {
    // SAFETY: the caller's: `units` floats at `place`.
    unsafe {
        if units == S::F32_LANES {
            place.cast::<S::f32s>().read_unaligned()
        } else {
            simd.partial_load_f32s(std::slice::from_raw_parts(place, units))
        }
    }
}

/// Stores the first `units` floats.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(simd: S, place: *mut f32, units: usize, value: S::f32s) {
    // SAFETY: the caller's: `units` floats at `place`, nobody else's.
    unsafe {
        if units == S::F32_LANES {
            place.cast::<S::f32s>().write_unaligned(value);
        } else {
            simd.partial_store_f32s(std::slice::from_raw_parts_mut(place, units), value);
        }
    }
}
