//! LSTM over whole packed sequences: `kernels/lstm.cu`, with the equations of `backend::cpu::lstm`.
//!
//! The caller forms W_ih x of all rows before, and the gradients of the weights after; here is what is sequential. [`plan`] decides how the
//! steps are shared out among multiprocessors. H hidden units, D directions, N sequences, R rows, T steps.

mod plan;

pub use plan::{Core, Obstacle, Plan, Problem};

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::{self, run};
use super::matmul::Arithmetic;
use super::sequences::{Packing, mask_arguments};
use crate::random::Mask;
use plan::Chip;

const FILE: &str = "lstm";
/// Threads of a block that moves hidden states, and elements for each.
const THREADS: u32 = 256;
const ELEMENTS: usize = 4;

/// The geometry of a layer. The number of weights of a direction, 4 H^2, is below 2^31.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// H.
    pub hidden: usize,
    /// D: 1 (time runs forward), or 2 (the second runs backward).
    pub directions: usize,
    pub packing: Packing,
    /// Of the recurrent product. Everything else is f32.
    pub arithmetic: Arithmetic,
    /// DropConnect: of the recurrent weights of all directions, whose rows are the frames of one sequence.
    pub mask: Option<Mask>,
}

/// One direction's operands of [`forward`].
#[derive(Debug, Clone, Copy)]
pub struct Forward {
    /// `[R, 4H]`: holds W_ih x on entry, the activations i, f, g, o on exit (what backward reads).
    pub gates: Pointer,
    /// `[R, H]`: c_t on exit.
    pub cells: Pointer,
    /// `[4H, H]`
    pub weight: Pointer,
    /// `[4H]`
    pub input_bias: Pointer,
    /// `[4H]`
    pub recurrent_bias: Pointer,
    /// h and c before each sequence's first step, both `[N, H]`; zeros if absent.
    pub initial: Option<(Pointer, Pointer)>,
    /// Takes h and c after each sequence's last step, both `[N, H]`. They may be those of `initial`.
    pub last: Option<(Pointer, Pointer)>,
}

/// One direction's operands of [`backward`].
#[derive(Debug, Clone, Copy)]
pub struct Backward {
    /// `[R, 4H]`: the activations on entry, the gradients of their sums on exit.
    pub gates: Pointer,
    /// `[R, H]`, from the forward pass.
    pub cells: Pointer,
    /// `[4H, H]`
    pub weight: Pointer,
    /// `[N, H]`, if the forward pass had an initial state.
    pub initial_cell: Option<Pointer>,
    /// `[N, H]`: the gradient of each sequence's last cell on entry (zeros if nobody reads that), of its initial cell on exit.
    pub cell_gradient: Pointer,
    /// `[N, H]`: the gradient of each sequence's last h, beside what the output's gradient says.
    pub final_hidden_gradient: Option<Pointer>,
    /// `[N, H]`: on exit the gradient of each sequence's initial h.
    pub initial_hidden_gradient: Option<Pointer>,
}

/// How [`forward`] runs on this device.
pub fn forward_plan(context: &Context, shape: &Shape) -> Plan {
    plan_for(context, shape, false)
}

/// How [`backward`] runs on this device.
pub fn backward_plan(context: &Context, shape: &Shape) -> Plan {
    plan_for(context, shape, true)
}

fn plan_for(context: &Context, shape: &Shape, backward: bool) -> Plan {
    let properties = context.properties();
    let chip = Chip {
        multiprocessors: properties.multiprocessors as usize,
        shared: properties.shared_per_block as usize,
        cooperative: properties.cooperative,
        resident: &|kernel, launch| context.resident_blocks(FILE, kernel, launch) as usize,
    };
    Plan::new(plan::cores(backward, shape.arithmetic), &chip, shape.problem())
}

/// Bytes of the workspace of [`forward`].
pub fn forward_workspace(context: &Context, shape: &Shape) -> usize {
    forward_plan(context, shape).workspace()
}

/// Bytes of the workspace of [`backward`].
pub fn backward_workspace(context: &Context, shape: &Shape) -> usize {
    backward_plan(context, shape).workspace()
}

/// Runs all directions; direction d's h goes to columns d H..(d + 1) H of `output` `[R, D H]`. Rows of no sequence become zero in all results.
/// `workspace` has [`forward_workspace`] bytes.
pub fn forward(context: &Context, shape: &Shape, directions: &[Forward], output: Pointer, workspace: Pointer) {
    forward_as(context, shape, &forward_plan(context, shape), directions, output, workspace);
}

/// Runs all directions from `output_gradient` `[R, D H]`. Rows of no sequence become zero. `workspace` has [`backward_workspace`] bytes.
pub fn backward(
    context: &Context,
    shape: &Shape,
    directions: &[Backward],
    output_gradient: Pointer,
    workspace: Pointer,
) {
    backward_as(context, shape, &backward_plan(context, shape), directions, output_gradient, workspace);
}

/// h of the step before in each row of one direction, zeros or `initial` `[N, H]` where a sequence begins: `previous` `[R, H]` from `output`
/// `[R, D H]`, for dW_hh = dgates^T previous.
pub fn previous_hidden(
    context: &Context,
    shape: &Shape,
    direction: usize,
    output: Pointer,
    initial: Option<Pointer>,
    previous: Pointer,
) {
    let Packing { offsets, steps, rows, sequences, .. } = shape.packing;
    if rows == 0 || shape.hidden == 0 {
        return;
    }
    let slices = (sequences * shape.hidden).div_ceil(THREADS as usize * ELEMENTS).clamp(1, 64);
    let mut launch = Launch::blocks(u32::try_from(steps + 1).unwrap_or(u32::MAX), THREADS);
    launch.blocks[1] = slices as u32;
    let arguments = [
        Argument::Pointer(output),
        optional(initial),
        Argument::Pointer(previous),
        Argument::Pointer(offsets),
        Argument::int(steps),
        Argument::int(rows),
        Argument::int(shape.hidden),
        Argument::int(shape.directions),
        Argument::int(direction),
    ];
    run(context, FILE, "lstm_previous_hidden", &launch, &arguments);
}

fn forward_as(
    context: &Context,
    shape: &Shape,
    plan: &Plan,
    directions: &[Forward],
    output: Pointer,
    workspace: Pointer,
) {
    let operands = |direction: &Forward| {
        let (initial, last) = (direction.initial.unzip(), direction.last.unzip());
        vec![
            Argument::Pointer(direction.gates),
            Argument::Pointer(direction.cells),
            Argument::Pointer(direction.weight),
            Argument::Pointer(direction.input_bias),
            Argument::Pointer(direction.recurrent_bias),
            optional(initial.0),
            optional(initial.1),
            optional(last.0),
            optional(last.1),
        ]
    };
    let mut arguments = both(directions, operands);
    arguments.push(Argument::Pointer(output));
    // Before the first step, sequences hand their initial states to the group.
    Pass { context, shape, plan, workspace, first_step: -1, steps: shape.packing.steps }.run(&arguments, false);
}

fn backward_as(
    context: &Context,
    shape: &Shape,
    plan: &Plan,
    directions: &[Backward],
    output_gradient: Pointer,
    workspace: Pointer,
) {
    let operands = |direction: &Backward| {
        vec![
            Argument::Pointer(direction.gates),
            Argument::Pointer(direction.cells),
            Argument::Pointer(direction.weight),
            optional(direction.initial_cell),
            Argument::Pointer(direction.cell_gradient),
            optional(direction.final_hidden_gradient),
            optional(direction.initial_hidden_gradient),
        ]
    };
    let mut arguments = both(directions, operands);
    arguments.push(Argument::Pointer(output_gradient));
    // One step more gives the gradient of the initial h.
    let wanted = directions.iter().any(|direction| direction.initial_hidden_gradient.is_some());
    let steps = shape.packing.steps + usize::from(wanted);
    Pass { context, shape, plan, workspace, first_step: 0, steps }.run(&arguments, true);
}

/// The operands of two directions; a single one stands for both.
fn both<T>(directions: &[T], operands: impl Fn(&T) -> Vec<Argument>) -> Vec<Argument> {
    let last = directions.last();
    directions.first().into_iter().chain(last).flat_map(operands).collect()
}

fn optional(pointer: Option<Pointer>) -> Argument {
    Argument::Pointer(pointer.unwrap_or(0))
}

/// The launches of one pass.
struct Pass<'a> {
    context: &'a Context,
    shape: &'a Shape,
    plan: &'a Plan,
    workspace: Pointer,
    first_step: i32,
    steps: usize,
}

impl Pass<'_> {
    /// `operands` come first among the kernel's arguments.
    fn run(&self, operands: &[Argument], with_parts: bool) {
        let Pass { shape, plan, .. } = *self;
        if shape.packing.rows == 0 || shape.hidden == 0 {
            return;
        }
        for first_direction in (0..shape.directions).step_by(plan.launched) {
            // Without a sequence there still are rows to be cleared.
            for first_sequence in (0..shape.packing.sequences.max(1)).step_by(plan.launch_sequences()) {
                self.launch(operands, with_parts, first_direction, first_sequence);
            }
        }
    }

    fn launch(&self, operands: &[Argument], with_parts: bool, first_direction: usize, first_sequence: usize) {
        let Pass { context, shape, plan, workspace, first_step, steps } = *self;
        let exchange = workspace + plan.counter_bytes() as u64;
        // No block has arrived, and what lies behind H in the buffers is zero.
        let clear = plan.counter_bytes() + plan.exchange_bytes();
        elementwise::fill(context, workspace, 0.0, clear / size_of::<f32>());

        let end = i32::try_from(steps).unwrap_or(i32::MAX);
        let connections = shape.connections(context);
        let launches = match plan.obstacle {
            None => vec![(first_step, end)],
            Some(_) => (first_step..end).map(|step| (step, step + 1)).collect(),
        };
        for (first, last) in launches {
            let mut arguments = operands.to_vec();
            arguments.push(Argument::Pointer(shape.packing.offsets));
            arguments.extend(connections);
            arguments.extend([
                Argument::int(shape.packing.steps),
                Argument::int(shape.packing.rows),
                Argument::int(shape.hidden),
                Argument::int(shape.packing.sequences),
                Argument::int(shape.directions),
                Argument::int(first_direction),
                Argument::int(plan.launched),
                Argument::int(first_sequence),
                Argument::int(plan.slices),
                Argument::int(plan.columns),
                Argument::int(plan.tile),
                Argument::int(plan.weight_slots),
                Argument::Int(first),
                Argument::Int(last),
                Argument::Pointer(workspace),
                Argument::Pointer(exchange),
            ]);
            if with_parts {
                arguments.push(Argument::Pointer(exchange + plan.exchange_bytes() as u64));
            }
            run(context, FILE, plan.core.kernel, &plan.launch(), &arguments);
        }
    }
}

impl Shape {
    fn connections(&self, context: &Context) -> [Argument; 6] {
        let (none, zero) = (Argument::Pointer(0), Argument::Unsigned(0));
        self.mask
            .as_ref()
            .map_or([zero, zero, zero, Argument::Float(1.0), zero, none], |mask| mask_arguments(context, mask, None))
    }

    fn problem(&self) -> Problem {
        let Shape { hidden, directions, packing, .. } = *self;
        Problem { hidden, directions, sequences: packing.sequences }
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests;
