//! A tensor: a shape and a shared buffer on a device. Row-major, contiguous, 32-bit floats.
//!
//! Tensors are shared by cloning. Only a tensor whose buffer nobody else holds can be written, so an operation writes its result
//! once, and what the tape keeps cannot change underneath it.

use crate::backend::cuda::context::Buffer;
use crate::backend::cuda::driver::Pointer;
use crate::device::{Backend, Category, Device};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Arc<Storage>,
}

struct Storage {
    elements: Elements,
    bytes: u64,
    category: Category,
    device: Device,
}

enum Elements {
    /// Empty on the device `plan`.
    Host(Vec<f32>),
    Cuda(Buffer),
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.device.ledger().close(self.category, self.bytes);
        if let Elements::Host(elements) = &mut self.elements {
            self.device.return_buffer(std::mem::take(elements));
        }
    }
}

impl Tensor {
    /// A tensor whose elements are arbitrary: the caller writes every one before anyone reads it.
    pub fn uninitialized(device: &Device, shape: &[usize], category: Category) -> Self {
        let count: usize = shape.iter().product();
        let elements = match (device.backend(), category) {
            (Backend::Plan, _) => Elements::Host(Vec::new()),
            (Backend::Cpu, _) => Elements::Host(device.take_buffer(count)),
            (Backend::Cuda(context), Category::Activation | Category::Workspace) => {
                Elements::Cuda(context.take(count * size_of::<f32>()))
            }
            // What outlives a step stays out of the arena, so that every step finds that empty.
            (Backend::Cuda(context), _) => Elements::Cuda(context.allocate(count * size_of::<f32>())),
        };
        Self::with_storage(device, shape, elements, category)
    }

    pub fn zeros(device: &Device, shape: &[usize], category: Category) -> Self {
        let mut tensor = Self::uninitialized(device, shape, category);
        match tensor.elements_mut() {
            Elements::Host(elements) => elements.fill(0.0),
            Elements::Cuda(buffer) => buffer.context().clear(buffer),
        }
        tensor
    }

    /// Brings `elements` to the device; on the device `plan` only their shape.
    ///
    /// # Panics
    /// If the shape does not hold as many elements.
    pub fn from_vec(device: &Device, shape: &[usize], elements: Vec<f32>, category: Category) -> Self {
        let count: usize = shape.iter().product();
        let elements = match (device.backend(), category) {
            (Backend::Cuda(context), Category::Activation) if device.computes() => {
                assert_eq!(count, elements.len(), "elements of a tensor of shape {shape:?}");
                Elements::Cuda(context.bring(&elements))
            }
            (Backend::Cuda(context), Category::Activation) => Elements::Cuda(context.reserve(count * size_of::<f32>())),
            // On the CPU a copy, too: the pool, to which every tensor's memory goes, would grow by what never came from it.
            _ => {
                let mut tensor = Self::uninitialized(device, shape, category);
                tensor.write(&elements);
                return tensor;
            }
        };
        Self::with_storage(device, shape, elements, category)
    }

    fn with_storage(device: &Device, shape: &[usize], elements: Elements, category: Category) -> Self {
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
    ///
    /// # Panics
    /// If they are in the memory of a GPU: see [`Tensor::to_vec`].
    pub fn data(&self) -> &[f32] {
        match &self.storage.elements {
            Elements::Host(elements) => elements,
            Elements::Cuda(_) => panic!("the elements of {self:?} are not in the host's memory"),
        }
    }

    /// The elements, to be written.
    ///
    /// # Panics
    /// If another tensor or the tape shares the buffer: writing would change what they see. If they are in the memory of a GPU.
    pub fn data_mut(&mut self) -> &mut [f32] {
        match self.elements_mut() {
            Elements::Host(elements) => elements,
            Elements::Cuda(_) => panic!("elements to be written are not in the host's memory"),
        }
    }

    /// The elements, from whatever device: a copy only if they are in the memory of a GPU, whose work is then waited for.
    pub fn host(&self) -> Cow<'_, [f32]> {
        match &self.storage.elements {
            Elements::Host(elements) => Cow::Borrowed(elements),
            Elements::Cuda(_) => Cow::Owned(self.to_vec()),
        }
    }

    /// A copy of the elements, from whatever device; none from the device `plan`. Waits for the work of a GPU.
    pub fn to_vec(&self) -> Vec<f32> {
        match &self.storage.elements {
            Elements::Host(elements) => elements.clone(),
            Elements::Cuda(buffer) => buffer.context().download(buffer, self.len()),
        }
    }

    /// Replaces all elements; does nothing on the device `plan`.
    ///
    /// # Panics
    /// If there are not as many, or another tensor shares the buffer.
    pub fn write(&mut self, elements: &[f32]) {
        if !self.device().computes() {
            return;
        }
        assert_eq!(self.len(), elements.len(), "elements of a tensor of shape {:?}", self.shape);
        match self.elements_mut() {
            Elements::Host(to) => to.copy_from_slice(elements),
            Elements::Cuda(buffer) => buffer.context().upload(buffer, elements),
        }
    }

    /// Where the elements begin in the memory of a GPU.
    ///
    /// # Panics
    /// If they are not there.
    pub fn pointer(&self) -> Pointer {
        self.buffer().pointer()
    }

    /// The same for elements that will be written.
    ///
    /// # Panics
    /// If another tensor shares the buffer, or they are not in the memory of a GPU.
    pub fn pointer_mut(&mut self) -> Pointer {
        self.elements_mut();
        self.pointer()
    }

    /// The memory of a GPU that holds the elements.
    ///
    /// # Panics
    /// If they are not there.
    pub fn buffer(&self) -> &Buffer {
        match &self.storage.elements {
            Elements::Cuda(buffer) => buffer,
            Elements::Host(_) => panic!("the elements of {self:?} are not in the memory of a GPU"),
        }
    }

    fn elements_mut(&mut self) -> &mut Elements {
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
