//! What the tests of the CUDA backend share: emulated devices, and tensors on them. With HEADFIRST_TEST_DEVICE=cuda it is a GPU.

use super::context::{Buffer, Context};
use super::driver::Pointer;
use super::emulated::Emulated;
use super::emulator::{self, Order};
use crate::device::Backend;
use bytemuck::Pod;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

/// Elements before a tensor's start: none, and one, so that no access of 16 bytes fits.
pub const BOTH_ALIGNMENTS: [usize; 2] = [0, 1];

/// An emulated device. Its memory starts as NaN.
pub struct Device {
    pub context: Arc<Context>,
}

/// A tensor on it.
pub struct OnDevice<T> {
    buffer: Buffer,
    shift: usize,
    count: usize,
    element: PhantomData<T>,
}

/// Runs `test` with threads in each order: whatever it compares must hold in all of them.
pub fn for_all_orders(test: impl Fn(&Device)) {
    if let Some(device) = Device::of_the_environment() {
        test(&device);
        return device.context.check().unwrap_or_else(|error| panic!("{error}"));
    }
    if !emulator::AVAILABLE {
        println!("skipped: the emulator was not built");
        return;
    }
    for order in [Order::Forward, Order::Reversed, Order::Shuffled(7)] {
        let device = Device::with(order);
        test(&device);
        device.context.check().unwrap_or_else(|error| panic!("{order:?}: {error}"));
    }
}

impl Device {
    /// Threads run forward; none if the emulator was not built.
    pub fn new() -> Option<Self> {
        Self::in_order(Order::Forward)
    }

    /// Threads run in this order, if it is the emulator's to say.
    pub fn in_order(order: Order) -> Option<Self> {
        let device = Self::of_the_environment().or_else(|| emulator::AVAILABLE.then(|| Self::with(order)));
        if device.is_none() {
            println!("skipped: the emulator was not built");
        }
        device
    }

    /// As [`Device::in_order`], but one GPU for all who ask: a test of many small cases need not open it, and load its kernels, for each.
    pub fn shared(order: Order) -> Option<Self> {
        static GPU: OnceLock<Option<Arc<Context>>> = OnceLock::new();
        let gpu = GPU.get_or_init(|| Self::of_the_environment().map(|device| device.context));
        gpu.clone().map(|context| Device { context }).or_else(|| Self::in_order(order))
    }

    /// What HEADFIRST_TEST_DEVICE names, if it is set.
    fn of_the_environment() -> Option<Self> {
        let name = std::env::var("HEADFIRST_TEST_DEVICE").ok()?;
        let (device, _) = crate::device::open(&name).unwrap_or_else(|error| panic!("{error}"));
        match device.backend() {
            Backend::Cuda(context) => Some(Device { context: context.clone() }),
            _ => panic!("HEADFIRST_TEST_DEVICE={name} is no GPU"),
        }
    }

    fn with(order: Order) -> Self {
        Device { context: Context::new("emulator", Box::new(Emulated::new(order))) }
    }

    pub fn upload<T: Pod>(&self, data: &[T]) -> OnDevice<T> {
        self.shifted(data, 0)
    }

    /// `data`, starting `shift` elements behind an aligned address.
    pub fn shifted<T: Pod>(&self, data: &[T], shift: usize) -> OnDevice<T> {
        let tensor = self.poisoned(data.len(), shift);
        tensor.write(data);
        tensor
    }

    /// Room for an output, all bits set: NaN.
    pub fn poisoned<T: Pod>(&self, count: usize, shift: usize) -> OnDevice<T> {
        let buffer = self.poisoned_bytes((count + shift) * size_of::<T>());
        OnDevice { buffer, shift, count, element: PhantomData }
    }

    /// A workspace, all NaN.
    pub fn poisoned_bytes(&self, bytes: usize) -> Buffer {
        let buffer = self.context.allocate(bytes);
        if bytes > 0 {
            // SAFETY: the buffer's own length.
            unsafe { self.context.driver().fill(buffer.pointer(), 0xff, bytes) }.unwrap();
        }
        buffer
    }
}

impl<T: Pod> OnDevice<T> {
    pub fn pointer(&self) -> Pointer {
        self.buffer.pointer() + (self.shift * size_of::<T>()) as u64
    }

    pub fn values(&self) -> Vec<T> {
        let all = self.buffer.context().download::<T>(&self.buffer, self.shift + self.count);
        all[self.shift..].to_vec()
    }

    /// Replaces the first bytes.
    pub fn write_bytes(&self, bytes: &[u8]) {
        assert!(self.shift == 0, "a buffer is written from its start");
        self.buffer.context().upload(&self.buffer, bytes);
    }

    /// Replaces all elements. What lies before the tensor stays poisoned.
    pub fn write(&self, data: &[T]) {
        assert_eq!(data.len(), self.count, "as many elements as the tensor has");
        let mut all = vec![0xff_u8; self.shift * size_of::<T>()];
        all.extend_from_slice(bytemuck::cast_slice(data));
        self.buffer.context().upload(&self.buffer, &all);
    }
}
