//! A layer of LSTM over whole sequences, in one or both directions (Hochreiter and Schmidhuber, 1997, with forget gates), as
//! PyTorch defines it: gate order i, f, g, o, two biases. The initial state is zero unless one is given ([`lstm_from`]: one direction, for
//! language models). The reverse direction starts at each sequence's own end.
//!
//! ```text
//! i, f, o = sigmoid(x W_ih^T + b_ih + h' W_hh^T + b_hh)    g = tanh(likewise)    c = f c' + i g    h = o tanh(c)
//! ```
//!
//! The input projections of all steps are one product before the recurrence, the weight gradients products after it.
//!
//! DropConnect (Wan et al., 2013; Merity, Keskar, Socher, 2018) masks the recurrent weights for the whole batch: a weight is zero with
//! probability p, the others are divided by 1 - p. The mask is that of dropout on one sequence of 4H frames of H units, so the weight in row
//! r and column k has the counter (k / 4, r, 0, step). On the CPU masked weights exist while they are packed, on a GPU the mask is drawn as the
//! weights are brought onto the chip; backward draws it again, and masks the weights' gradient where it is formed.

use crate::backend::cuda::context::Context;
use crate::backend::cuda::matmul::Arithmetic;
use crate::backend::{cpu, cuda};
use crate::device::{Backend as On, Category, Device};
use crate::error::{Error, Result};
use crate::ops::dropout::{Sharing, masked, masked_in_place};
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix};
use crate::primitives::{Factor, add_to, column_sums, product, workspace};
use crate::random::Mask;
use crate::tape::{Backward, Place, Tape, Var};
use crate::tensor::Tensor;
use std::sync::Arc;

/// The parameters of one direction; H hidden units, C inputs.
#[derive(Debug, Clone)]
pub struct Direction {
    /// `[4H, C]`
    pub input_weight: Var,
    /// `[4H, H]`
    pub recurrent_weight: Var,
    /// `[4H]`
    pub input_bias: Var,
    /// `[4H]`
    pub recurrent_bias: Var,
}

/// h and c of every sequence, both `[N, H]`, in packed order. No gradient goes through them.
#[derive(Debug, Clone)]
pub struct State {
    pub hidden: Tensor,
    pub cell: Tensor,
}

/// What backward keeps of one direction.
struct Kept {
    /// Gate activations, `[R, 4H]`; backward overwrites them with the gradients before the activations.
    gates: Tensor,
    /// `[R, H]`
    cells: Tensor,
    recurrent_weight: Tensor,
    /// Only if the gradient of the input is wanted.
    input_weight: Option<Tensor>,
    input_weight_place: Option<Place>,
    recurrent_weight_place: Option<Place>,
    bias_places: [Option<Place>; 2],
}

/// `x: [R, C]` packed as `sequences`; gives `[R, D * H]`: the forward direction's hidden states, then the reverse one's.
///
/// Backward keeps gate activations, cells and recurrent weights; the input only if an input weight is trainable, the output only if a
/// recurrent weight is. If no gradient is wanted it keeps nothing.
///
/// # Errors
/// If the shapes do not fit.
pub fn lstm(tape: &mut Tape, x: &Var, sequences: &Sequences, directions: &[Direction]) -> Result<Var> {
    run(tape, x, sequences, directions, Extras { initial: None, last: None, mask: None })
}

/// One direction, from `initial` (zeros without one) and with `mask` on its recurrent weights; gives the output and the state after each
/// sequence's last step. Gradients end at the initial state (truncated backpropagation through time).
///
/// # Errors
/// If the shapes do not fit.
pub fn lstm_from(
    tape: &mut Tape,
    x: &Var,
    sequences: &Sequences,
    direction: &Direction,
    initial: Option<&State>,
    mask: Option<Mask>,
) -> Result<(Var, State)> {
    let (_, hidden) = matrix("lstm", "the recurrent weight", direction.recurrent_weight.shape())?;
    let shape = [sequences.count(), hidden];
    if let Some(state) = initial {
        expect_shape("lstm", "the initial h", state.hidden.shape(), &shape)?;
        expect_shape("lstm", "the initial c", state.cell.shape(), &shape)?;
    }
    let room = || Tensor::uninitialized(tape.device(), &shape, Category::Activation);
    let mut last = State { hidden: room(), cell: room() };
    let extras = Extras { initial: initial.cloned(), last: Some(&mut last), mask };
    let output = run(tape, x, sequences, std::slice::from_ref(direction), extras)?;
    Ok((output, last))
}

/// What a single direction may have beside its parameters.
struct Extras<'a> {
    initial: Option<State>,
    last: Option<&'a mut State>,
    mask: Option<Mask>,
}

fn run(tape: &mut Tape, x: &Var, sequences: &Sequences, directions: &[Direction], extras: Extras<'_>) -> Result<Var> {
    let (hidden, inputs) = check_shapes(x, sequences, directions)?;
    let rows = sequences.rows();
    let device = tape.device().clone();
    let mut output = Tensor::uninitialized(&device, &[rows, directions.len() * hidden], Category::Activation);
    let mut kept = Vec::with_capacity(directions.len());
    for direction in directions {
        let mut gates = Tensor::uninitialized(&device, &[rows, 4 * hidden], Category::Activation);
        let weight = Factor::rows(direction.input_weight.tensor(), inputs).transposed();
        product((rows, 4 * hidden, inputs), Factor::rows(x.tensor(), inputs), weight, &mut gates, false);
        let cells = Tensor::uninitialized(&device, &[rows, hidden], Category::Activation);
        kept.push(Kept {
            gates,
            cells,
            recurrent_weight: direction.recurrent_weight.tensor().clone(),
            input_weight: tape.wants(x).map(|_| direction.input_weight.tensor().clone()),
            input_weight_place: tape.wants(&direction.input_weight),
            recurrent_weight_place: tape.wants(&direction.recurrent_weight),
            bias_places: [tape.wants(&direction.input_bias), tape.wants(&direction.recurrent_bias)],
        });
    }
    let Extras { initial, last, mask } = extras;
    let mask = mask.map(|mask| Ok((mask, Sequences::new(&[4 * hidden])?))).transpose()?;
    let sizes = Sizes { hidden, inputs, sequences: sequences.clone(), initial, mask };
    recur(&device, &sizes, directions, &mut kept, &mut output, last);

    let x_place = tape.wants(x);
    let kept_x = kept.iter().any(|kept| kept.input_weight_place.is_some()).then(|| x.tensor().clone());
    let kept_output = kept.iter().any(|kept| kept.recurrent_weight_place.is_some()).then(|| output.clone());
    let variables: Vec<&Var> = std::iter::once(x).chain(directions.iter().flat_map(Direction::variables)).collect();
    Ok(tape.record(&variables, output, move |gradient, backward| {
        run_backward(gradient, backward, sizes, kept, x_place, kept_x, kept_output)
    }))
}

impl Direction {
    /// The sum of both biases, `[4H]`.
    fn bias(&self) -> Vec<f32> {
        let both = self.input_bias.tensor().data().iter().zip(self.recurrent_bias.tensor().data());
        both.map(|(a, b)| a + b).collect()
    }

    fn variables(&self) -> [&Var; 4] {
        [&self.input_weight, &self.recurrent_weight, &self.input_bias, &self.recurrent_bias]
    }
}

struct Sizes {
    hidden: usize,
    inputs: usize,
    sequences: Sequences,
    initial: Option<State>,
    /// With the recurrent weights' rows as the frames of one sequence.
    mask: Option<(Mask, Sequences)>,
}

impl Sizes {
    /// The recurrent weights as the CPU packs them.
    fn masked(&self, weight: &Tensor) -> Tensor {
        let Some((mask, rows)) = &self.mask else { return weight.clone() };
        let mut output = Tensor::uninitialized(weight.device(), weight.shape(), Category::Workspace);
        masked(weight, &mut output, rows, self.hidden, mask, Sharing::Elementwise);
        output
    }

    fn host_initial(&self) -> Option<cpu::lstm::State<'_>> {
        let state = self.initial.as_ref();
        state.map(|state| cpu::lstm::State { hidden: state.hidden.data(), cell: state.cell.data() })
    }

    fn shape(&self, directions: usize) -> cpu::lstm::Shape<'_> {
        cpu::lstm::Shape { hidden: self.hidden, directions, offsets: self.sequences.offsets() }
    }

    fn device_shape(&self, context: &Arc<Context>, arithmetic: Arithmetic, directions: usize) -> cuda::lstm::Shape {
        let mask = self.mask.as_ref().map(|(mask, _)| *mask);
        cuda::lstm::Shape { hidden: self.hidden, directions, packing: self.sequences.on(context), arithmetic, mask }
    }
}

/// The recurrence of all directions over all steps: gates from input projections to activations, cells, hidden states.
fn recur(
    device: &Device,
    sizes: &Sizes,
    directions: &[Direction],
    kept: &mut [Kept],
    output: &mut Tensor,
    last: Option<&mut State>,
) {
    let (hidden, rows) = (sizes.hidden, sizes.sequences.rows());
    device.count_operations(recurrent_operations(rows, hidden, directions.len()));
    match device.backend() {
        On::Cpu => {
            let mut packed = packed_weights(device, hidden, directions.len());
            let biases: Vec<Vec<f32>> = directions.iter().map(Direction::bias).collect();
            let mut operands = Vec::with_capacity(kept.len());
            for (((kept, packed), direction), bias) in kept.iter_mut().zip(&mut packed).zip(directions).zip(&biases) {
                let weight = sizes.masked(direction.recurrent_weight.tensor());
                cpu::lstm::pack_forward(weight.data(), hidden, packed.data_mut());
                operands.push(cpu::lstm::Forward {
                    weights: packed.data(),
                    bias: Some(bias),
                    gates: kept.gates.data_mut(),
                    cells: kept.cells.data_mut(),
                    initial: sizes.host_initial(),
                });
            }
            let shape = sizes.shape(directions.len());
            cpu::lstm::forward(&shape, &mut operands, output.data_mut());
            drop(operands);
            if let (Some(last), [kept, ..]) = (last, &*kept) {
                let (hidden, cell) = (last.hidden.data_mut(), last.cell.data_mut());
                cpu::lstm::final_state(&shape, 0, output.data(), kept.cells.data(), hidden, cell);
            }
        }
        On::Cuda(context) => {
            let shape = sizes.device_shape(context, device.arithmetic(), directions.len());
            let workspace = workspace(device, cuda::lstm::forward_workspace(context, &shape));
            let initial = sizes.initial.as_ref().map(|state| (state.hidden.pointer(), state.cell.pointer()));
            let last = last.map(|state| (state.hidden.pointer_mut(), state.cell.pointer_mut()));
            let operands: Vec<cuda::lstm::Forward> = directions
                .iter()
                .zip(kept)
                .map(|(direction, kept)| cuda::lstm::Forward {
                    gates: kept.gates.pointer_mut(),
                    cells: kept.cells.pointer_mut(),
                    weight: direction.recurrent_weight.tensor().pointer(),
                    input_bias: direction.input_bias.tensor().pointer(),
                    recurrent_bias: direction.recurrent_bias.tensor().pointer(),
                    initial,
                    last,
                })
                .collect();
            cuda::lstm::forward(context, &shape, &operands, output.pointer_mut(), workspace.pointer());
        }
        On::Plan => plan_packing(device, sizes, directions.iter().map(|direction| direction.recurrent_weight.tensor())),
    }
}

/// What packing takes on the CPU, on the device `plan`.
fn plan_packing<'a>(device: &Device, sizes: &Sizes, weights: impl ExactSizeIterator<Item = &'a Tensor>) {
    let _packed = packed_weights(device, sizes.hidden, weights.len());
    weights.for_each(|weight| drop(sizes.masked(weight)));
}

/// Room for the packed recurrent weights of every direction.
fn packed_weights(device: &Device, hidden: usize, directions: usize) -> Vec<Tensor> {
    let length = cpu::lstm::packed_length(hidden);
    (0..directions).map(|_| Tensor::uninitialized(device, &[length], Category::Workspace)).collect()
}

fn recurrent_operations(rows: usize, hidden: usize, directions: usize) -> u64 {
    (2 * rows * hidden * 4 * hidden * directions) as u64
}

fn check_shapes(x: &Var, sequences: &Sequences, directions: &[Direction]) -> Result<(usize, usize)> {
    let (_, inputs) = matrix("lstm", "the input", x.shape())?;
    expect_shape("lstm", "the input", x.shape(), &[sequences.rows(), inputs])?;
    let Some(first) = directions.first().filter(|_| directions.len() <= 2) else {
        return Err(Error::operation("lstm", format!("{} directions where one or two are needed", directions.len())));
    };
    let (_, hidden) = matrix("lstm", "the recurrent weight", first.recurrent_weight.shape())?;
    for direction in directions {
        expect_shape("lstm", "the input weight", direction.input_weight.shape(), &[4 * hidden, inputs])?;
        expect_shape("lstm", "the recurrent weight", direction.recurrent_weight.shape(), &[4 * hidden, hidden])?;
        expect_shape("lstm", "the input bias", direction.input_bias.shape(), &[4 * hidden])?;
        expect_shape("lstm", "the recurrent bias", direction.recurrent_bias.shape(), &[4 * hidden])?;
    }
    Ok((hidden, inputs))
}

fn run_backward(
    gradient: Tensor,
    backward: &mut Backward<'_>,
    sizes: Sizes,
    mut kept: Vec<Kept>,
    x_place: Option<Place>,
    x: Option<Tensor>,
    output: Option<Tensor>,
) -> Result<()> {
    let (hidden, inputs, count) = (sizes.hidden, sizes.inputs, kept.len());
    let rows = sizes.sequences.rows();
    let device = backward.device().clone();
    recur_backward(&device, &sizes, &mut kept, &gradient);
    drop(gradient);

    for (index, kept) in kept.into_iter().enumerate() {
        drop(kept.cells);
        let gates = kept.gates;
        if let Some(place) = kept.recurrent_weight_place {
            let output = output.as_ref().expect("kept because a recurrent weight is trainable");
            let previous = previous_hidden(&device, &sizes, count, index, output);
            let sink = backward.sink(place);
            let (gates, previous) = (Factor::rows(&gates, 4 * hidden), Factor::rows(&previous, hidden));
            let (shape, gates) = ((4 * hidden, hidden, rows), gates.transposed());
            match &sizes.mask {
                // What is there already is not to be masked.
                Some((mask, weight_rows)) if sink.add => {
                    let mut own = Tensor::uninitialized(&device, sink.tensor.shape(), Category::Workspace);
                    product(shape, gates, previous, &mut own, false);
                    masked_in_place(&mut own, weight_rows, hidden, mask, Sharing::Elementwise);
                    add_to(sink.tensor, &own, true);
                }
                mask => {
                    product(shape, gates, previous, sink.tensor, sink.add);
                    if let Some((mask, weight_rows)) = mask {
                        masked_in_place(sink.tensor, weight_rows, hidden, mask, Sharing::Elementwise);
                    }
                }
            }
        }
        if let Some(place) = kept.input_weight_place {
            let x = x.as_ref().expect("kept because an input weight is trainable");
            let sink = backward.sink(place);
            let (gates, x) = (Factor::rows(&gates, 4 * hidden), Factor::rows(x, inputs));
            product((4 * hidden, inputs, rows), gates.transposed(), x, sink.tensor, sink.add);
        }
        if kept.bias_places.iter().any(Option::is_some) {
            // Both biases have the same gradient.
            let mut sums = Tensor::uninitialized(&device, &[4 * hidden], Category::Workspace);
            column_sums(Factor::rows(&gates, 4 * hidden), rows, &mut sums, false);
            for place in kept.bias_places.into_iter().flatten() {
                backward.give_copy(place, &sums);
            }
        }
        if let (Some(place), Some(weight)) = (x_place, kept.input_weight) {
            let sink = backward.sink(place);
            let (gates, weight) = (Factor::rows(&gates, 4 * hidden), Factor::rows(&weight, inputs));
            product((rows, inputs, 4 * hidden), gates, weight, sink.tensor, sink.add);
        }
    }
    Ok(())
}

/// The recurrence backward: gates from activations to the gradients before them.
fn recur_backward(device: &Device, sizes: &Sizes, kept: &mut [Kept], gradient: &Tensor) {
    let (hidden, count) = (sizes.hidden, kept.len());
    device.count_operations(recurrent_operations(sizes.sequences.rows(), hidden, count));
    let states = [sizes.sequences.count(), hidden];
    let mut cell_gradients: Vec<Tensor> =
        (0..count).map(|_| Tensor::zeros(device, &states, Category::Workspace)).collect();
    match device.backend() {
        On::Cpu => {
            let mut packed = packed_weights(device, hidden, count);
            let mut operands = Vec::with_capacity(count);
            for ((kept, packed), cell_gradient) in kept.iter_mut().zip(&mut packed).zip(&mut cell_gradients) {
                let weight = sizes.masked(&kept.recurrent_weight);
                cpu::lstm::pack_backward(weight.data(), hidden, packed.data_mut());
                operands.push(cpu::lstm::Backward {
                    weights: packed.data(),
                    gates: kept.gates.data_mut(),
                    cells: kept.cells.data(),
                    initial: sizes.host_initial(),
                    cell_gradient: cell_gradient.data_mut(),
                    final_hidden_gradient: None,
                    initial_hidden_gradient: None,
                });
            }
            cpu::lstm::backward(&sizes.shape(count), &mut operands, gradient.data());
        }
        On::Cuda(context) => {
            let shape = sizes.device_shape(context, device.arithmetic(), count);
            let workspace = workspace(device, cuda::lstm::backward_workspace(context, &shape));
            let initial_cell = sizes.initial.as_ref().map(|state| state.cell.pointer());
            let operands: Vec<cuda::lstm::Backward> = kept
                .iter_mut()
                .zip(&mut cell_gradients)
                .map(|(kept, cell_gradient)| cuda::lstm::Backward {
                    gates: kept.gates.pointer_mut(),
                    cells: kept.cells.pointer(),
                    weight: kept.recurrent_weight.pointer(),
                    initial_cell,
                    cell_gradient: cell_gradient.pointer_mut(),
                    final_hidden_gradient: None,
                    initial_hidden_gradient: None,
                })
                .collect();
            cuda::lstm::backward(context, &shape, &operands, gradient.pointer(), workspace.pointer());
        }
        On::Plan => plan_packing(device, sizes, kept.iter().map(|kept| &kept.recurrent_weight)),
    }
}

/// h_{t-1} of every row, `[R, H]`.
fn previous_hidden(device: &Device, sizes: &Sizes, directions: usize, direction: usize, output: &Tensor) -> Tensor {
    let shape = [sizes.sequences.rows(), sizes.hidden];
    let mut previous = Tensor::uninitialized(device, &shape, Category::Workspace);
    match device.backend() {
        On::Cpu => {
            let shape = sizes.shape(directions);
            let initial = sizes.host_initial().map(|state| state.hidden);
            cpu::lstm::previous_hidden(&shape, direction, output.data(), initial, previous.data_mut());
        }
        On::Cuda(context) => {
            let shape = sizes.device_shape(context, device.arithmetic(), directions);
            let (output, previous) = (output.pointer(), previous.pointer_mut());
            let initial = sizes.initial.as_ref().map(|state| state.hidden.pointer());
            cuda::lstm::previous_hidden(context, &shape, direction, output, initial, previous);
        }
        On::Plan => {}
    }
    previous
}
