//! The parameters of a model: names, values, which are trainable, and the gradient buffers of those that are.

use crate::device::{Category, Device};
use crate::error::{Error, Result};
use crate::nn::initialization::{Role, Scheme, initial_values};
use crate::tape::{GradientBuffers, Var};
use crate::tensor::Tensor;
use std::borrow::Cow;

/// A parameter as a layer declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterSpec {
    /// The name in a weights file, for example `encoder.blstm.0.weight_ih_l0`.
    pub name: String,
    pub shape: Vec<usize>,
    pub role: Role,
    /// PyTorch's default initial values are within 1 / sqrt of this.
    pub pytorch_fan: usize,
}

impl ParameterSpec {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Values and gradient buffers of all parameters, by their index in the model's list.
#[derive(Debug)]
pub struct Parameters {
    specs: Vec<ParameterSpec>,
    values: Vec<Tensor>,
    trainable: Vec<bool>,
    pub gradients: GradientBuffers,
}

impl Parameters {
    /// Initial values for every parameter; none is trainable until [`Parameters::set_trainable`].
    pub fn initialize(device: &Device, specs: &[ParameterSpec], scheme: Scheme, seed: u64) -> Self {
        let value = |spec: &ParameterSpec| {
            let values = if device.computes() { initial_values(spec, scheme, seed) } else { Vec::new() };
            tensor(device, spec, values)
        };
        Self::of_values(specs, specs.iter().map(value).collect())
    }

    /// These values, which `read` gives for every parameter; none is trainable.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<'a>(
        device: &Device,
        specs: &[ParameterSpec],
        read: impl Fn(&ParameterSpec) -> Result<Cow<'a, [f32]>>,
    ) -> Result<Self> {
        let values = specs.iter().map(|spec| Ok(tensor(device, spec, read(spec)?.into_owned())));
        Ok(Self::of_values(specs, values.collect::<Result<_>>()?))
    }

    fn of_values(specs: &[ParameterSpec], values: Vec<Tensor>) -> Self {
        let (specs, trainable) = (specs.to_vec(), vec![false; specs.len()]);
        Parameters { specs, values, trainable, gradients: GradientBuffers::default() }
    }

    /// Says which parameters are trainable, and allocates gradient buffers for just these.
    pub fn set_trainable(&mut self, device: &Device, trainable: Vec<bool>) {
        assert_eq!(trainable.len(), self.specs.len());
        self.gradients = GradientBuffers::default();
        let shapes = self.specs.iter().zip(&trainable).map(|(spec, &trainable)| trainable.then_some(&spec.shape[..]));
        self.gradients = GradientBuffers::allocate(device, shapes);
        self.trainable = trainable;
    }

    pub fn len(&self) -> usize {
        self.specs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    pub fn is_trainable(&self, index: usize) -> bool {
        self.trainable[index]
    }

    pub fn trainable(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).filter(|&index| self.trainable[index])
    }

    pub fn value(&self, index: usize) -> &Tensor {
        &self.values[index]
    }

    /// For whoever swaps it with another of the same shape.
    pub(crate) fn value_mut(&mut self, index: usize) -> &mut Tensor {
        &mut self.values[index]
    }

    /// A trainable parameter, to be updated, and its gradient: only between two forward passes, when no tape holds them.
    pub fn value_and_gradient(&mut self, index: usize) -> Option<(&mut Tensor, &Tensor)> {
        let gradient = self.gradients.get(index)?;
        Some((&mut self.values[index], gradient))
    }

    /// The parameter as operations take it: with a place for its gradient if it is trainable.
    pub fn var(&self, index: usize) -> Var {
        let value = self.values[index].clone();
        if self.trainable[index] { Var::parameter(value, index) } else { Var::constant(value) }
    }

    /// Replaces a parameter's values.
    ///
    /// # Errors
    /// If there are not as many as the parameter has.
    pub fn set(&mut self, index: usize, values: &[f32]) -> Result<()> {
        let spec = &self.specs[index];
        if values.len() != spec.len() {
            let problem = format!("{} has {} elements where {} are needed", spec.name, values.len(), spec.len());
            return Err(Error::program(problem));
        }
        self.values[index].write(values);
        Ok(())
    }
}

fn tensor(device: &Device, spec: &ParameterSpec, values: Vec<f32>) -> Tensor {
    if device.computes() {
        Tensor::from_vec(device, &spec.shape, values, Category::Parameter)
    } else {
        Tensor::uninitialized(device, &spec.shape, Category::Parameter)
    }
}
