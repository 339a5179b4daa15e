//! What the emulated device refuses, and what it shows of a mistake that a GPU would make nothing of.

use super::super::context::Context;
use super::*;
use crate::backend::cuda::emulator::AVAILABLE;
use std::sync::Arc;

fn driver() -> Option<Emulated> {
    if !AVAILABLE {
        println!("skipped: the emulator was not built");
    }
    AVAILABLE.then(|| Emulated::new(Order::Forward))
}

/// Eight bytes of the host's memory and of the device's, the host's zero.
struct Crossing {
    driver: Emulated,
    host: HostPointer,
    device: Pointer,
    event: Event,
}

impl Crossing {
    fn new() -> Option<Self> {
        let driver = driver()?;
        let (host, device) = (driver.allocate_host(8).unwrap(), driver.allocate(8).unwrap());
        let event = driver.event().unwrap();
        let crossing = Crossing { driver, host, device, event };
        crossing.write([0; 8]);
        Some(crossing)
    }

    fn write(&self, bytes: [u8; 8]) {
        // SAFETY: eight bytes.
        unsafe { *(self.host as *mut [u8; 8]) = bytes };
    }

    /// Straight from memory: a download would wait.
    fn bytes(pointer: u64) -> [u8; 8] {
        // SAFETY: eight bytes.
        unsafe { *(pointer as *const [u8; 8]) }
    }

    fn send(&self) {
        // SAFETY: eight bytes each.
        unsafe { self.driver.send(self.device, self.host, 8) }.unwrap();
        self.driver.signal(self.event, Lane::Copies).unwrap();
    }
}

impl Drop for Crossing {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, and used no more.
        unsafe {
            self.driver.release_host(self.host);
            self.driver.release(self.device);
        }
    }
}

#[test]
fn what_is_sent_is_no_number_until_the_kernels_lane_awaits_it() {
    let Some(it) = Crossing::new() else { return };
    it.write([1; 8]);
    it.send();
    let second = it.driver.event().unwrap();
    // An event that was never signalled, and the wrong lane.
    it.driver.await_signal(second, Lane::Kernels).unwrap();
    it.driver.await_signal(it.event, Lane::Copies).unwrap();
    assert_eq!(Crossing::bytes(it.device), [0xff; 8]);
    it.driver.await_signal(it.event, Lane::Kernels).unwrap();
    assert_eq!(Crossing::bytes(it.device), [1; 8]);
    // What is sent after the signal is not what it stands for.
    it.send();
    unsafe { it.driver.send(it.device, it.host, 8) }.unwrap(); // SAFETY: eight bytes each.
    it.driver.await_signal(it.event, Lane::Kernels).unwrap();
    assert_eq!(Crossing::bytes(it.device), [1; 8]);
}

#[test]
fn what_is_received_is_no_number_until_the_host_waits_for_it() {
    let Some(it) = Crossing::new() else { return };
    // SAFETY: eight bytes.
    unsafe { it.driver.fill(it.device, 7, 8) }.unwrap();
    it.driver.signal(it.event, Lane::Kernels).unwrap();
    // SAFETY: eight bytes each.
    unsafe { it.driver.receive(it.host, it.device, 8) }.unwrap();
    it.driver.wait_for(it.event).unwrap();
    assert_eq!(Crossing::bytes(it.host), [0xff; 8], "the event was signalled before");
    it.driver.signal(it.event, Lane::Kernels).unwrap();
    // What the device's memory becomes later is not received.
    // SAFETY: eight bytes.
    unsafe { it.driver.fill(it.device, 8, 8) }.unwrap();
    it.driver.wait_for(it.event).unwrap();
    assert_eq!(Crossing::bytes(it.host), [7; 8]);
}

#[test]
fn memory_that_changes_before_the_host_has_waited_for_its_readers_is_an_error() {
    let Some(it) = Crossing::new() else { return };
    let done = it.driver.event().unwrap();
    for changes in [false, true] {
        it.write([1; 8]);
        it.send();
        it.driver.await_signal(it.event, Lane::Kernels).unwrap();
        it.driver.signal(done, Lane::Kernels).unwrap();
        if changes {
            it.write([2; 8]);
        }
        let waited = it.driver.wait_for(done);
        assert_eq!(waited.is_err(), changes);
        if let Err(error) = waited {
            assert!(error.to_string().contains("changed while it was being sent"), "{error}");
        }
    }
}

#[test]
fn loading_a_kernel_and_allocating_are_refused_while_a_graph_is_captured() {
    let Some(driver) = driver() else { return };
    driver.function("optim", "optim_norm").unwrap();
    driver.begin_capture().unwrap();
    driver.function("optim", "optim_norm").unwrap();
    for refused in
        [driver.function("optim", "optim_sgd").err(), driver.allocate(8).err(), driver.allocate_host(8).err()]
    {
        let error = refused.expect("a GPU refuses it").to_string();
        assert!(error.contains("while a graph is captured"), "{error}");
    }
    driver.end_capture().unwrap();
    driver.function("optim", "optim_sgd").unwrap();
}

/// What a kernel reads at `index` of a buffer of 256 numbers that begins `shift` bytes behind its start.
fn read(context: &Arc<Context>, shift: u64, index: i32) -> f32 {
    let (values, result) = (context.allocate(1024), context.allocate(4));
    context.upload(&values, &[1.5_f32; 256]);
    let begin = Argument::Pointer(values.pointer() + shift);
    let arguments = [begin, Argument::Int(index), Argument::Pointer(result.pointer())];
    // SAFETY: what the kernel declares; the guards around an allocation are there to be read here.
    unsafe { context.launch("selftest", "selftest_read", &Launch::blocks(1, 1), &arguments) };
    context.check().unwrap();
    context.download::<f32>(&result, 1)[0]
}

/// The sanitizers, of which `kernels/emulator/test.sh` tells, end the program where these tests do what a kernel must not.
fn is_sanitized() -> bool {
    std::env::var_os("HEADFIRST_EMULATOR_SANITIZE").is_some()
}

#[test]
fn a_read_beside_an_allocation_is_no_number() {
    let Some(driver) = driver() else { return };
    let context = Context::new("emulator", Box::new(driver));
    assert_eq!([0, 255].map(|index| read(&context, 0, index)), [1.5; 2]);
    for index in [-64, -1, 256, 319] {
        assert!(is_sanitized() || read(&context, 0, index).is_nan(), "{index}");
    }
}

#[test]
fn a_read_that_is_not_aligned_is_seen_by_a_sanitizer_alone() {
    let Some(driver) = driver() else { return };
    let context = Context::new("emulator", Box::new(driver));
    assert!(is_sanitized() || read(&context, 2, 0) != 1.5);
}

#[test]
fn memory_that_is_taken_again_is_no_number_until_it_is_written() {
    let Some(driver) = driver() else { return };
    let context = Context::new("emulator", Box::new(driver));
    for recorded in [false, true] {
        let recording = recorded.then(|| context.record());
        let before = context.take(8);
        context.clear(&before);
        let place = before.pointer();
        drop(before);
        let after = context.take(8);
        assert_eq!(after.pointer(), place);
        assert!(context.download::<f32>(&after, 2).iter().all(|x| x.is_nan()), "recorded: {recorded}");
        drop(recording);
    }
    context.check().unwrap();
}
