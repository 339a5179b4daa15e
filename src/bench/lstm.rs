//! The LSTM: a layer through the tape, and the recurrence by itself at the backend.

use super::table::{Kind, Spec};
use super::work::{Bench, EXCHANGE, Prepared, floats};
use crate::backend::{cpu, cuda};
use crate::device::{Backend, Category, Device};
use crate::error::Result;
use crate::nn::{Blstm, Parameters, Scheme};
use crate::ops;
use crate::ops::lstm::Direction;
use crate::ops::sequences::Sequences;
use crate::primitives::{add_to, workspace};
use crate::tape::{GradientBuffers, Tape, Var};
use crate::tensor::Tensor;
use std::cell::RefCell;
use std::rc::Rc;

/// # Errors
/// If the sizes cannot be.
pub fn prepare(bench: &Bench, spec: &Spec) -> Result<Prepared> {
    let (units, directions) = (spec.size("H"), spec.size("directions"));
    let sequences = Sequences::new(&vec![spec.size("T"); spec.size("B")])?;
    let steps = sequences.steps();
    Ok(match spec.kind {
        Kind::LstmForward => recurrence(bench, units, directions, &sequences, false).waiting(steps, EXCHANGE),
        Kind::LstmBackward => recurrence(bench, units, directions, &sequences, true).waiting(steps, EXCHANGE),
        Kind::LstmLayer => layer(bench, units, directions, &sequences, false).waiting(steps, EXCHANGE),
        _ => layer(bench, units, directions, &sequences, true).waiting(2 * steps, EXCHANGE),
    })
}

/// A layer with as many inputs as units; with `backward` also the gradients of all weights and of the input.
fn layer(bench: &Bench, units: usize, directions: usize, sequences: &Sequences, backward: bool) -> Prepared {
    let mut specs = Vec::new();
    Blstm::declare(&mut specs, "layer", units, units);
    specs.truncate(4 * directions);
    let count = specs.len();
    let parameter_elements: usize = specs.iter().map(|spec| spec.len()).sum();
    let (input_elements, row) = (sequences.rows() * units, directions * units);
    // Forward: x in; gates, cells and h out, the gates once more in between, since their product is complete before the recurrence.
    let forward = floats(parameter_elements + input_elements + sequences.rows() * (3 * 4 + 1 + 1) * row);
    // Backward: gates in and out and into three products, cells, dy; x and h into products; the gradients out.
    let back = floats(2 * parameter_elements + 2 * input_elements + sequences.rows() * (5 * 4 + 1 + 2) * row);
    let bytes = if backward { forward + back } else { forward };
    let shape = [sequences.rows(), units];
    let operands = bench.copies(bytes, |bench| {
        let mut parameters = Parameters::initialize(&bench.device, &specs, Scheme::Pytorch, 1);
        parameters.set_trainable(&bench.device, vec![true; count]);
        // The input counts as one more parameter, so that its gradient is formed too.
        let shapes = specs.iter().map(|spec| Some(&spec.shape[..])).chain([Some(&shape[..])]);
        parameters.gradients = GradientBuffers::allocate(&bench.device, shapes);
        Layer {
            parameters,
            input: bench.normal(&shape, "input"),
            output_gradient: bench.normal(&[sequences.rows(), directions * units], "output gradient"),
        }
    });
    let (device, sequences) = (bench.device.clone(), sequences.clone());
    Prepared::recorded(&bench.device, bytes, operands, move |layer| {
        let mut tape = Tape::new(&device);
        let x = Var::parameter(layer.input.clone(), count);
        let output = ops::lstm::lstm(&mut tape, &x, &sequences, &all_directions(&layer.parameters))?;
        if !backward {
            return Ok(());
        }
        layer.parameters.gradients.clear();
        tape.backward_from(&output, layer.output_gradient.clone(), &mut layer.parameters.gradients)
    })
}

struct Layer {
    parameters: Parameters,
    input: Tensor,
    output_gradient: Tensor,
}

fn all_directions(parameters: &Parameters) -> Vec<Direction> {
    let direction = |first: usize| Direction {
        input_weight: parameters.var(first),
        recurrent_weight: parameters.var(first + 1),
        input_bias: parameters.var(first + 2),
        recurrent_bias: parameters.var(first + 3),
    };
    (0..parameters.len()).step_by(4).map(direction).collect()
}

/// What the recurrence reads and writes, of one direction.
struct Operands {
    gates: Tensor,
    /// What `gates` holds before backward overwrites it.
    activations: Option<Tensor>,
    cells: Tensor,
    cell_gradient: Tensor,
    weight: Tensor,
    /// Twice: as the input's and as the recurrence's.
    bias: Tensor,
    /// As the CPU wants the weights.
    packed: Option<Tensor>,
}

struct Recurrence {
    directions: Vec<Operands>,
    /// h; its gradient backward.
    output: Tensor,
}

fn recurrence(bench: &Bench, hidden: usize, count: usize, sequences: &Sequences, backward: bool) -> Prepared {
    let rows = sequences.rows();
    // Forward: gates in and out, c and h out. Backward: gates in and out, c and dh in. Weights once.
    let bytes = floats(count * (rows * hidden * (2 * 4 + 2) + 4 * hidden * hidden));
    let fewest = if backward { 4 } else { 1 };
    let operands = bench.copies_at_least(fewest, bytes, |b| Recurrence::new(b, hidden, count, sequences, backward));
    let recurrences = Rc::new(RefCell::new(operands));
    let copies = recurrences.borrow().len();
    let (device, sequences) = (bench.device.clone(), sequences.clone());
    let shared = recurrences.clone();
    let run = move |copy: usize| {
        let recurrence = &mut shared.borrow_mut()[copy];
        device.count_operations((8 * rows * hidden * hidden * count) as u64);
        if backward {
            recurrence.backward(&device, hidden, &sequences);
        } else {
            recurrence.forward(&device, hidden, &sequences);
        }
        Ok(())
    };
    let restore = move || {
        for operands in recurrences.borrow_mut().iter_mut().flat_map(|recurrence| &mut recurrence.directions) {
            if let Some(activations) = &operands.activations {
                add_to(&mut operands.gates, activations, false);
            }
        }
    };
    let restore: Option<Box<dyn FnMut()>> = if backward { Some(Box::new(restore)) } else { None };
    Prepared { copies, restore, launches_only: true, ..Prepared::new(bytes, run) }
}

impl Recurrence {
    fn new(bench: &Bench, hidden: usize, count: usize, sequences: &Sequences, backward: bool) -> Self {
        let (rows, device) = (sequences.rows(), &bench.device);
        let scale = 1.0 / (hidden as f32).sqrt();
        let operands = |_: usize| {
            let numbers = bench.numbers("weight", 4 * hidden * hidden).into_iter().map(|w| scale * w).collect();
            let weight = Tensor::from_vec(device, &[4 * hidden, hidden], numbers, Category::Parameter);
            let packed = matches!(device.backend(), Backend::Cpu).then(|| {
                let mut packed = bench.room(&[cpu::lstm::packed_length(hidden)]);
                let pack = if backward { cpu::lstm::pack_backward } else { cpu::lstm::pack_forward };
                pack(weight.data(), hidden, packed.data_mut());
                packed
            });
            Operands {
                gates: bench.normal(&[rows, 4 * hidden], "projections"),
                activations: None,
                cells: bench.room(&[rows, hidden]),
                cell_gradient: bench.room(&[sequences.count(), hidden]),
                weight,
                bias: bench.normal(&[4 * hidden], "bias"),
                packed,
            }
        };
        let directions = (0..count).map(operands).collect();
        let mut recurrence = Recurrence { directions, output: bench.room(&[rows, count * hidden]) };
        if backward {
            // The activations that backward starts from are within (0, 1), as every gate but g is; cells are zero.
            for operands in &mut recurrence.directions {
                let numbers =
                    bench.numbers("activations", rows * 4 * hidden).into_iter().map(|x| 1.0 / (1.0 + x.abs()));
                operands.gates.write(&numbers.collect::<Vec<_>>());
                let mut copy = bench.room(&[rows, 4 * hidden]);
                add_to(&mut copy, &operands.gates, false);
                operands.activations = Some(copy);
            }
            recurrence.output = bench.normal(&[rows, count * hidden], "output gradient");
        }
        recurrence
    }

    fn forward(&mut self, device: &Device, hidden: usize, sequences: &Sequences) {
        let count = self.directions.len();
        match device.backend() {
            Backend::Cpu => {
                let shape = cpu::lstm::Shape { hidden, directions: count, offsets: sequences.offsets() };
                let operands = self.directions.iter_mut().map(|operands| cpu::lstm::Forward {
                    weights: operands.packed.as_ref().map_or(&[], Tensor::data),
                    bias: Some(operands.bias.data()),
                    gates: operands.gates.data_mut(),
                    cells: operands.cells.data_mut(),
                    initial: None,
                });
                cpu::lstm::forward(&shape, &mut operands.collect::<Vec<_>>(), self.output.data_mut());
            }
            Backend::Cuda(context) => {
                let (packing, arithmetic) = (sequences.on(context), device.arithmetic());
                let shape = cuda::lstm::Shape { hidden, directions: count, packing, arithmetic, mask: None };
                let room = workspace(device, cuda::lstm::forward_workspace(context, &shape));
                let operands = self.directions.iter_mut().map(|operands| cuda::lstm::Forward {
                    gates: operands.gates.pointer_mut(),
                    cells: operands.cells.pointer_mut(),
                    weight: operands.weight.pointer(),
                    input_bias: operands.bias.pointer(),
                    recurrent_bias: operands.bias.pointer(),
                    initial: None,
                    last: None,
                });
                let operands: Vec<_> = operands.collect();
                cuda::lstm::forward(context, &shape, &operands, self.output.pointer_mut(), room.pointer());
            }
            Backend::Plan => {}
        }
    }

    fn backward(&mut self, device: &Device, hidden: usize, sequences: &Sequences) {
        let count = self.directions.len();
        match device.backend() {
            Backend::Cpu => {
                let shape = cpu::lstm::Shape { hidden, directions: count, offsets: sequences.offsets() };
                let operands = self.directions.iter_mut().map(|operands| cpu::lstm::Backward {
                    weights: operands.packed.as_ref().map_or(&[], Tensor::data),
                    gates: operands.gates.data_mut(),
                    cells: operands.cells.data(),
                    initial: None,
                    cell_gradient: operands.cell_gradient.data_mut(),
                    final_hidden_gradient: None,
                    initial_hidden_gradient: None,
                });
                cpu::lstm::backward(&shape, &mut operands.collect::<Vec<_>>(), self.output.data());
            }
            Backend::Cuda(context) => {
                let (packing, arithmetic) = (sequences.on(context), device.arithmetic());
                let shape = cuda::lstm::Shape { hidden, directions: count, packing, arithmetic, mask: None };
                let room = workspace(device, cuda::lstm::backward_workspace(context, &shape));
                let operands = self.directions.iter_mut().map(|operands| cuda::lstm::Backward {
                    gates: operands.gates.pointer_mut(),
                    cells: operands.cells.pointer(),
                    weight: operands.weight.pointer(),
                    initial_cell: None,
                    cell_gradient: operands.cell_gradient.pointer_mut(),
                    final_hidden_gradient: None,
                    initial_hidden_gradient: None,
                });
                let operands: Vec<_> = operands.collect();
                cuda::lstm::backward(context, &shape, &operands, self.output.pointer(), room.pointer());
            }
            Backend::Plan => {}
        }
    }
}
