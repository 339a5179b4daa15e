//! How a model lists its parameters, layer by layer and group by group.

use crate::models::{Group, Layer, Structure};
use crate::nn::ParameterSpec;

#[derive(Default)]
pub(super) struct Declaring {
    pub specs: Vec<ParameterSpec>,
    groups: Vec<Group>,
    layers: Vec<Layer>,
    group_start: usize,
    layer_start: usize,
}

impl Declaring {
    /// What was declared since the layer before is a layer.
    pub fn end_layer(&mut self, name: &str) {
        self.layers.push(Layer { name: name.into(), parameters: self.layer_start..self.specs.len() });
        self.layer_start = self.specs.len();
    }

    /// The same for a group.
    pub fn end_group(&mut self, name: impl Into<String>) {
        self.groups.push(Group { name: name.into(), parameters: self.group_start..self.specs.len() });
        self.group_start = self.specs.len();
    }

    pub fn structure(self) -> Structure {
        Structure { specs: self.specs, groups: self.groups, layers: self.layers }
    }
}
