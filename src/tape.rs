//! The tape: records operations, runs them backward.
//!
//! A [`Var`] is a tensor and, only if a gradient will be wanted, a [`Place`]. Data and frozen parameters have none, so a gradient
//! buffer for them cannot exist. An operation asks its inputs once, when it is recorded, and its backward closure owns just the
//! tensors it will read; an operation none of whose inputs has a place is not recorded at all, so that backward ends there.
//!
//! The first writer of a gradient overwrites, later ones add, always in reverse recording order: the same program gives the same bits.

use crate::device::{Category, Device};
use crate::error::Result;
use crate::primitives::{add_to, fill};
use crate::tensor::Tensor;

/// Where a gradient goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A result of a recorded operation; its gradient lives from its first reader's backward to its own.
    Activation(usize),
    /// A trainable parameter; its gradient lives as long as its stage.
    Parameter(usize),
}

/// A tensor that operations take and give.
#[derive(Debug, Clone)]
pub struct Var {
    tensor: Tensor,
    place: Option<Place>,
}

impl Var {
    /// Data, or a frozen parameter: nobody will ever want its gradient.
    pub fn constant(tensor: Tensor) -> Self {
        Var { tensor, place: None }
    }

    /// The trainable parameter with this index in the [`GradientBuffers`].
    pub fn parameter(tensor: Tensor, index: usize) -> Self {
        Var { tensor, place: Some(Place::Parameter(index)) }
    }

    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    pub fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    pub fn place(&self) -> Option<Place> {
        self.place
    }
}

type BackwardFunction = Box<dyn FnOnce(Tensor, &mut Backward<'_>) -> Result<()>>;

struct Record {
    /// The activation whose gradient the function takes.
    output: usize,
    backward: BackwardFunction,
}

/// The operations of one forward pass.
pub struct Tape {
    device: Device,
    recording: bool,
    /// By activation place.
    shapes: Vec<Vec<usize>>,
    records: Vec<Record>,
}

impl Tape {
    /// For training.
    pub fn new(device: &Device) -> Self {
        Tape { device: device.clone(), recording: true, shapes: Vec::new(), records: Vec::new() }
    }

    /// For evaluation: keeps nothing.
    pub fn without_gradients(device: &Device) -> Self {
        Tape { recording: false, ..Self::new(device) }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The place of this input's gradient, if one will be wanted. Operations ask this when they are recorded.
    pub fn wants(&self, input: &Var) -> Option<Place> {
        input.place.filter(|_| self.recording)
    }

    /// Takes an operation's result, and how its gradient goes back to its inputs: a function of the result's gradient. The
    /// function is dropped, with all that it keeps, if no input wants a gradient.
    pub fn record(
        &mut self,
        inputs: &[&Var],
        output: Tensor,
        backward: impl FnOnce(Tensor, &mut Backward<'_>) -> Result<()> + 'static,
    ) -> Var {
        if !inputs.iter().any(|input| self.wants(input).is_some()) {
            return Var::constant(output);
        }
        let place = self.shapes.len();
        self.shapes.push(output.shape().to_vec());
        self.records.push(Record { output: place, backward: Box::new(backward) });
        Var { tensor: output, place: Some(Place::Activation(place)) }
    }

    /// Sends `scale` back from every element of `loss`, a scalar, to every trainable parameter it depends on.
    ///
    /// # Errors
    /// What an operation's backward reports.
    pub fn backward(self, loss: &Var, scale: f32, parameters: &mut GradientBuffers) -> Result<()> {
        let seed = self.seed(loss, scale);
        self.backward_from(loss, seed, parameters)
    }

    /// A gradient with which [`Tape::backward_from_all`] can begin: the same number for every element of `output`.
    pub fn seed(&self, output: &Var, value: f32) -> Tensor {
        let mut seed = Tensor::uninitialized(&self.device, output.shape(), Category::Activation);
        fill(&mut seed, value);
        seed
    }

    /// Sends the gradient of `output` back, whatever its shape.
    ///
    /// # Errors
    /// What an operation's backward reports.
    pub fn backward_from(self, output: &Var, gradient: Tensor, parameters: &mut GradientBuffers) -> Result<()> {
        self.backward_from_all(vec![(output, gradient)], parameters)
    }

    /// Sends the gradients of several results back together, in one pass.
    ///
    /// # Errors
    /// What an operation's backward reports.
    pub fn backward_from_all(self, seeds: Vec<(&Var, Tensor)>, parameters: &mut GradientBuffers) -> Result<()> {
        let mut activations = Vec::new();
        activations.resize_with(self.shapes.len(), || None);
        let mut backward = Backward { device: self.device, shapes: self.shapes, activations, parameters };
        for (output, gradient) in seeds {
            assert_eq!(output.shape(), gradient.shape(), "a gradient has its tensor's shape");
            if let Some(place) = output.place {
                backward.give(place, gradient);
            }
        }
        for record in self.records.into_iter().rev() {
            // A result that nothing led to the loss has no gradient: its operation is skipped.
            if let Some(gradient) = backward.activations[record.output].take() {
                (record.backward)(gradient, &mut backward)?;
            }
        }
        Ok(())
    }
}

/// A gradient buffer on its way to being complete.
pub struct Sink<'a> {
    pub tensor: &'a mut Tensor,
    /// False for the first writer, who overwrites; true for those who add to what is there.
    pub add: bool,
}

/// The state of a backward pass, as the operations' functions see it.
pub struct Backward<'a> {
    device: Device,
    shapes: Vec<Vec<usize>>,
    activations: Vec<Option<Tensor>>,
    parameters: &'a mut GradientBuffers,
}

impl Backward<'_> {
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The buffer to write or add a gradient to.
    pub fn sink(&mut self, place: Place) -> Sink<'_> {
        match place {
            Place::Activation(index) => {
                let slot = &mut self.activations[index];
                let add = slot.is_some();
                let tensor = slot.get_or_insert_with(|| {
                    Tensor::uninitialized(&self.device, &self.shapes[index], Category::Activation)
                });
                Sink { tensor, add }
            }
            Place::Parameter(index) => self.parameters.sink(index),
        }
    }

    /// Adds a gradient that already stands in a tensor of its own; the first one is taken over without a copy.
    pub fn give(&mut self, place: Place, gradient: Tensor) {
        if let Place::Activation(index) = place
            && self.activations[index].is_none()
        {
            self.activations[index] = Some(gradient);
            return;
        }
        self.give_copy(place, &gradient);
    }

    /// Adds a gradient that the caller goes on using.
    pub fn give_copy(&mut self, place: Place, gradient: &Tensor) {
        let sink = self.sink(place);
        add_to(sink.tensor, gradient, sink.add);
    }
}

/// One gradient buffer per trainable parameter, none for a frozen one. Allocated once per stage.
#[derive(Debug, Default)]
pub struct GradientBuffers {
    buffers: Vec<Option<GradientBuffer>>,
}

#[derive(Debug)]
struct GradientBuffer {
    tensor: Tensor,
    /// False until the first writer of this step.
    written: bool,
}

impl GradientBuffers {
    /// A buffer of its shape for every parameter that is `Some`.
    pub fn allocate<'a>(device: &Device, shapes: impl IntoIterator<Item = Option<&'a [usize]>>) -> Self {
        let allocate = |shape: &[usize]| GradientBuffer {
            tensor: Tensor::uninitialized(device, shape, Category::Gradient),
            written: false,
        };
        GradientBuffers { buffers: shapes.into_iter().map(|shape| shape.map(allocate)).collect() }
    }

    /// The sum of all gradients since [`GradientBuffers::clear`]; none for a frozen parameter, or if nothing was written.
    pub fn get(&self, parameter: usize) -> Option<&Tensor> {
        let buffer = self.buffers.get(parameter)?.as_ref()?;
        buffer.written.then_some(&buffer.tensor)
    }

    /// Begins a new step: whoever writes next overwrites.
    pub fn clear(&mut self) {
        self.buffers.iter_mut().flatten().for_each(|buffer| buffer.written = false);
    }

    /// The buffer of a trainable parameter, to be written or added to.
    pub(crate) fn sink(&mut self, parameter: usize) -> Sink<'_> {
        let buffer = self.buffers[parameter].as_mut().expect("only a trainable parameter has a place");
        let add = std::mem::replace(&mut buffer.written, true);
        Sink { tensor: &mut buffer.tensor, add }
    }
}
