//! A tensor: a shape and a shared buffer on a device. Row-major, contiguous, 32-bit floats.
//!
//! Tensors are shared by cloning. Only a tensor whose buffer nobody else holds can be written, so an operation writes its result
//! once, and what the tape keeps cannot change underneath it.

use crate::device::{Category, Device};
use std::fmt;
use std::sync::Arc;

#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Arc<Storage>,
}

struct Storage {
    /// Empty on the device `plan`.
    elements: Vec<f32>,
    bytes: u64,
    category: Category,
    device: Device,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.device.ledger().close(self.category, self.bytes);
        self.device.return_buffer(std::mem::take(&mut self.elements));
    }
}

impl Tensor {
    /// A tensor whose elements are arbitrary: the caller writes every one before anyone reads it.
    pub fn uninitialized(device: &Device, shape: &[usize], category: Category) -> Self {
        let count: usize = shape.iter().product();
        let elements = if device.computes() { device.take_buffer(count) } else { Vec::new() };
        Self::with_storage(device, shape, elements, category)
    }

    pub fn zeros(device: &Device, shape: &[usize], category: Category) -> Self {
        let mut tensor = Self::uninitialized(device, shape, category);
        tensor.data_mut().fill(0.0);
        tensor
    }

    /// Brings `elements` to the device; on the device `plan` only their shape.
    ///
    /// # Panics
    /// If the shape does not hold as many elements.
    pub fn from_vec(device: &Device, shape: &[usize], elements: Vec<f32>, category: Category) -> Self {
        assert_eq!(shape.iter().product::<usize>(), elements.len(), "elements of a tensor of shape {shape:?}");
        let elements = if device.computes() { elements } else { Vec::new() };
        Self::with_storage(device, shape, elements, category)
    }

    fn with_storage(device: &Device, shape: &[usize], elements: Vec<f32>, category: Category) -> Self {
        let bytes = (shape.iter().product::<usize>() * size_of::<f32>()) as u64;
        device.ledger().open(category, bytes);
        let storage = Storage { elements, bytes, category, device: device.clone() };
        Tensor { shape: shape.to_vec(), storage: Arc::new(storage) }
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn bytes(&self) -> u64 {
        self.storage.bytes
    }

    pub fn device(&self) -> &Device {
        &self.storage.device
    }

    /// The elements, row by row; none on the device `plan`.
    pub fn data(&self) -> &[f32] {
        &self.storage.elements
    }

    /// The elements, to be written.
    ///
    /// # Panics
    /// If another tensor or the tape shares the buffer: writing would change what they see.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut Arc::get_mut(&mut self.storage).expect("a tensor that is written has no other owner").elements
    }

    /// True if both are the same buffer.
    pub fn is_same(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor {:?} on {}", self.shape, self.storage.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_counts_a_buffer_once_however_many_tensors_share_it() {
        let device = Device::cpu();
        let tensor = Tensor::zeros(&device, &[3, 5], Category::Activation);
        let shared = tensor.clone();
        assert_eq!(device.ledger().live(Category::Activation), 60);
        drop(tensor);
        assert_eq!(device.ledger().live(Category::Activation), 60);
        drop(shared);
        assert_eq!(device.ledger().live(Category::Activation), 0);
        assert_eq!(device.ledger().peak(Category::Activation), 60);
    }

    #[test]
    fn a_planned_tensor_has_bytes_in_the_ledger_and_no_elements() {
        let device = Device::plan();
        let tensor = Tensor::zeros(&device, &[1_000_000, 1_000_000], Category::Parameter);
        assert_eq!(device.ledger().live(Category::Parameter), 4_000_000_000_000);
        assert!(tensor.data().is_empty());
        assert_eq!(tensor.len(), 1_000_000_000_000);
    }

    #[test]
    #[should_panic(expected = "no other owner")]
    fn a_shared_tensor_cannot_be_written() {
        let mut tensor = Tensor::zeros(&Device::cpu(), &[2], Category::Activation);
        let _shared = tensor.clone();
        tensor.data_mut();
    }
}
