//! Clipping and the optimisers, over all trainable tensors at once: `kernels/optim.cu`. A [`Plan`] is made once a stage; [`update`] is three
//! launches, which a graph may capture: what changes from step to step is in device memory, in a [`StepState`].
//!
//! The arithmetic is that of [`crate::optim`], to the bit but for two scalars: see the kernels' head.

use super::context::{Buffer, Context};
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::{THREADS, run};
use crate::optim::Method;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const FILE: &str = "optim";
/// Elements of a tensor that one block takes.
const SLICE: usize = 4096;
const PREPARE_THREADS: u32 = 1024;
/// Scratch memory with which a block sums in f64.
const SCRATCH: usize = 32 * size_of::<f64>();

/// A trainable tensor of `length` f32 elements, by its addresses; 0 where there is none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trainable {
    pub values: Pointer,
    /// Without one nothing happens to the tensor.
    pub gradient: Pointer,
    /// In the order of [`Method::state_names`]; as many as the method has.
    pub states: [Pointer; 2],
    pub length: usize,
}

/// What the host may change between two steps: the first bytes of a [`StepState`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Hyperparameters {
    pub learning_rate: f64,
    /// Adadelta and Adam.
    pub epsilon: f64,
    /// Times the parameter, added to the (scaled) gradient.
    pub weight_decay: f64,
    /// The largest norm of all gradients together; 0: no limit.
    pub clip: f64,
    /// Multiply the learning rate by [`crate::optim::Noam`]'s factor, which follows from the updates made: only the device knows these in time. 0: do not.
    pub warmup: f64,
    pub width: f64,
    /// The learning rate instead, once more than `lags_after` updates were made before (infinity: never): the host may not know yet how many they are.
    pub lagging_rate: f64,
    pub lags_after: f64,
}

/// Read and written by the kernels.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct StepState {
    pub hyperparameters: Hyperparameters,
    /// Calls of [`update`] since the stage began: the counter of dropout masks.
    pub steps: u64,
    /// Those that moved the parameters.
    pub updates: u64,
    /// Of the last call, before clipping.
    pub norm: f64,
    /// Of the last call: the first tensor, by its place in the plan, with a gradient that is not finite, and then nothing has moved; else -1.
    pub non_finite: i32,
    gradient_scale: f32,
    /// What else follows from the above, in f32.
    scalars: [f32; 5],
    reserved: i32,
}

// SAFETY: f64 only.
unsafe impl Zeroable for Hyperparameters {}
// SAFETY: f64 only, so without padding.
unsafe impl Pod for Hyperparameters {}
// SAFETY: numbers only.
unsafe impl Zeroable for StepState {}
// SAFETY: numbers only; eleven of eight bytes, then eight of four: no padding.
unsafe impl Pod for StepState {}

impl StepState {
    /// Before the first step of a stage, or where a resumed stage goes on.
    pub fn new(hyperparameters: Hyperparameters, steps: u64, updates: u64) -> Self {
        StepState { hyperparameters, steps, updates, non_finite: -1, ..Self::zeroed() }
    }

    /// Whether the last call moved the parameters.
    pub fn updated(&self) -> bool {
        self.non_finite < 0
    }
}

/// Which tensors move, how, and in which slices.
pub struct Plan {
    method: Method,
    parameters: Buffer,
    slices: Buffer,
    partials: Buffer,
    slice_count: usize,
}

impl Plan {
    /// # Panics
    /// If a state that the method has is missing: that is a fault of the caller, no file or user can cause it.
    pub fn new(context: &Arc<Context>, method: Method, trainable: &[Trainable]) -> Self {
        let states = method.state_names().len();
        assert!(
            trainable
                .iter()
                .all(|tensor| tensor.length == 0 || tensor.states[..states].iter().all(|&state| state != 0)),
            "{method:?} has {states} states for every tensor"
        );
        let parameters: Vec<[u64; 5]> = trainable
            .iter()
            .map(|tensor| {
                let [first, second] = tensor.states;
                [tensor.values, tensor.gradient, first, second, tensor.length as u64]
            })
            .collect();
        let slices: Vec<[u32; 2]> = (0..)
            .zip(trainable)
            .flat_map(|(index, tensor)| (0..tensor.length.div_ceil(SLICE) as u32).map(move |number| [index, number]))
            .collect();
        let plan = Plan {
            method,
            parameters: context.allocate(size_of_val(&parameters[..])),
            slices: context.allocate(size_of_val(&slices[..])),
            partials: context.allocate(slices.len() * size_of::<f64>()),
            slice_count: slices.len(),
        };
        context.upload(&plan.parameters, &parameters);
        context.upload(&plan.slices, &slices);
        plan
    }
}

/// One step: the norm of all gradients, clipping, and an update of every tensor, unless the norm is not finite. `state` names a [`StepState`].
pub fn update(context: &Context, plan: &Plan, state: Pointer) {
    let (parameters, slices) = (Argument::Pointer(plan.parameters.pointer()), Argument::Pointer(plan.slices.pointer()));
    let (partials, state) = (Argument::Pointer(plan.partials.pointer()), Argument::Pointer(state));
    let by_slice = Launch::blocks(u32::try_from(plan.slice_count).unwrap_or(u32::MAX), THREADS);
    if plan.slice_count > 0 {
        run(context, FILE, "optim_norm", &by_slice.shared(SCRATCH), &[parameters, slices, partials]);
    }
    let bits = |beta: f64| Argument::Long(beta.to_bits() as i64);
    let [beta1, beta2] = match plan.method {
        Method::Adam { beta1, beta2 } => [bits(beta1), bits(beta2)],
        Method::Adadelta { .. } | Method::Sgd { .. } | Method::NtAsgd { .. } => [bits(0.0); 2],
    };
    let prepare = Launch::blocks(1, PREPARE_THREADS).shared(SCRATCH);
    let arguments = [state, partials, slices, Argument::int(plan.slice_count), beta1, beta2];
    run(context, FILE, "optim_prepare", &prepare, &arguments);
    if plan.slice_count == 0 {
        return;
    }
    // Rounded to f32 as the CPU does it.
    let float = |value: f64| Argument::Float(value as f32);
    let common = [parameters, slices, state];
    let launch = |kernel, own: &[Argument]| run(context, FILE, kernel, &by_slice, &[&common[..], own].concat());
    match plan.method {
        Method::Adadelta { rho } => launch("optim_adadelta", &[float(rho), float(1.0 - rho)]),
        Method::Sgd { momentum, dampening, nesterov } if momentum != 0.0 => {
            launch("optim_momentum", &[float(momentum), float(1.0 - dampening), Argument::flag(nesterov)]);
        }
        Method::Sgd { .. } | Method::NtAsgd { .. } => launch("optim_sgd", &[]),
        Method::Adam { beta1, beta2 } => {
            launch("optim_adam", &[float(1.0 - beta1), float(beta2), float(1.0 - beta2)]);
        }
    }
}

/// Takes the values that [`update`] left into averages, unless nothing has moved: `plan` has each tensor's average as its first state.
/// `begun_at` are the updates made before averaging began. See [`crate::optim::Average`].
pub fn average(context: &Context, plan: &Plan, state: Pointer, begun_at: u64, original: bool) {
    if plan.slice_count == 0 {
        return;
    }
    let launch = Launch::blocks(u32::try_from(plan.slice_count).unwrap_or(u32::MAX), THREADS);
    let arguments = [
        Argument::Pointer(plan.parameters.pointer()),
        Argument::Pointer(plan.slices.pointer()),
        Argument::Pointer(state),
        Argument::Long(begun_at as i64),
        Argument::flag(original),
    ];
    run(context, FILE, "optim_average", &launch, &arguments);
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::testing::{Device, OnDevice, for_all_orders};
    use super::*;
    use crate::backend::cpu::testing::random;
    use crate::optim::{Hyper, Noam, clip_coefficient, gradient_norm};

    const METHODS: [Method; 6] = [
        Method::Adadelta { rho: 0.95 },
        Method::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false },
        Method::Sgd { momentum: 0.9, dampening: 0.1, nesterov: false },
        Method::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true },
        Method::Adam { beta1: 0.9, beta2: 0.999 },
        Method::Adam { beta1: 0.3, beta2: 0.9 },
    ];
    /// One element, none, a slice exactly and one more, a tail, several slices.
    const LENGTHS: [usize; 6] = [1, 0, SLICE, SLICE + 1, 37, 2 * SLICE + 77];

    /// The same tensors on the device and on the host.
    struct Both {
        device: Vec<[OnDevice<f32>; 4]>,
        host: Vec<[Vec<f32>; 4]>,
        plan: Plan,
        state: OnDevice<StepState>,
        method: Method,
    }

    impl Both {
        fn new(device: &Device, method: Method, hyperparameters: Hyperparameters, shift: usize) -> Self {
            // Values, gradient, states.
            let host: Vec<[Vec<f32>; 4]> = (0..)
                .zip(LENGTHS)
                .map(|(seed, length)| [random(length, seed), vec![0.0; length], vec![0.0; length], vec![0.0; length]])
                .collect();
            let on_device: Vec<_> =
                host.iter().map(|tensors| tensors.each_ref().map(|data| device.shifted(data, shift))).collect();
            let states = method.state_names().len();
            let trainable: Vec<Trainable> = on_device
                .iter()
                .map(|[values, gradient, first, second]| Trainable {
                    values: values.pointer(),
                    gradient: gradient.pointer(),
                    states: [
                        if states > 0 { first.pointer() } else { 0 },
                        if states > 1 { second.pointer() } else { 0 },
                    ],
                    length: values.values().len(),
                })
                .collect();
            let plan = Plan::new(&device.context, method, &trainable);
            let state = device.upload(&[StepState::new(hyperparameters, 0, 0)]);
            Both { device: on_device, host, plan, state, method }
        }

        fn set_gradients(&mut self, seed: u64) {
            for ((seed, on_device), host) in (seed..).zip(&self.device).zip(&mut self.host) {
                host[1] = random(host[1].len(), seed);
                on_device[1].write(&host[1]);
            }
        }

        fn state(&self) -> StepState {
            self.state.values()[0]
        }

        /// The update on the host, with the scale that the device came to.
        fn update_host(&mut self, hyperparameters: &Hyperparameters, step: u64, gradient_scale: f32) {
            let &Hyperparameters { learning_rate, epsilon, weight_decay, warmup, width, .. } = hyperparameters;
            let noam = (warmup > 0.0).then_some(Noam { width: width as usize, warmup: warmup as usize });
            let learning_rate = learning_rate * noam.map_or(1.0, |noam| noam.factor(step));
            let hyper = Hyper { learning_rate, epsilon, weight_decay, step, gradient_scale };
            for [values, gradient, first, second] in &mut self.host {
                let mut states = [&mut first[..], &mut second[..]];
                self.method.step(&hyper, values, gradient, &mut states[..self.method.state_names().len()]);
            }
        }

        fn assert_equal(&self) {
            for (on_device, host) in self.device.iter().zip(&self.host) {
                for (on_device, host) in on_device.iter().zip(host) {
                    assert!(on_device.values() == *host, "{:?}: a tensor of {}", self.method, host.len());
                }
            }
        }
    }

    const HYPERPARAMETERS: Hyperparameters = Hyperparameters {
        learning_rate: 0.1,
        epsilon: 1e-6,
        weight_decay: 0.01,
        clip: 5.0,
        warmup: 0.0,
        width: 0.0,
        lagging_rate: 0.0,
        lags_after: f64::INFINITY,
    };

    #[test]
    fn every_optimizer_moves_all_tensors_to_the_bits_of_the_cpu_over_several_steps() {
        for_all_orders(|device| {
            for (method, shift) in METHODS.into_iter().flat_map(|method| [(method, 0), (method, 1)]) {
                let mut hyperparameters = HYPERPARAMETERS;
                let mut both = Both::new(device, method, hyperparameters, shift);
                for step in 1..=4 {
                    // As a schedule would; the last step is not clipped.
                    hyperparameters.learning_rate /= 2.0;
                    hyperparameters.clip = if step == 4 { 0.0 } else { HYPERPARAMETERS.clip };
                    let state = both.state();
                    both.state.write(&[StepState { hyperparameters, ..state }]);
                    both.set_gradients(100 * step);
                    update(&device.context, &both.plan, both.state.pointer());

                    let gradients: Vec<&[f32]> = both.host.iter().map(|tensors| &tensors[1][..]).collect();
                    let expected = gradient_norm(&gradients).norm;
                    let state = both.state();
                    // Two orders of at most 20,000 additions in f64.
                    assert!((state.norm / expected - 1.0).abs() < 20_000.0 * f64::EPSILON, "{} {expected}", state.norm);
                    let scale = clip_coefficient(expected, hyperparameters.clip);
                    assert!((state.gradient_scale / scale - 1.0).abs() <= f32::EPSILON, "one unit of the last place");
                    assert!(if step == 4 { scale == 1.0 } else { scale < 1.0 });
                    assert_eq!((state.steps, state.updates, state.updated()), (step, step, true));
                    both.update_host(&hyperparameters, step, state.gradient_scale);
                    both.assert_equal();
                }
            }
        });
    }

    #[test]
    fn the_lagging_rate_is_taken_once_enough_updates_were_made_whatever_the_host_knows() {
        for_all_orders(|device| {
            let hyperparameters = Hyperparameters { lagging_rate: 0.03, lags_after: 2.0, ..HYPERPARAMETERS };
            let mut both = Both::new(device, METHODS[1], hyperparameters, 0);
            for step in 1..=5 {
                both.set_gradients(step);
                update(&device.context, &both.plan, both.state.pointer());
                let learning_rate = if step > 3 { 0.03 } else { 0.1 };
                let expected = Hyperparameters { learning_rate, ..hyperparameters };
                both.update_host(&expected, step, both.state().gradient_scale);
                both.assert_equal();
            }
        });
    }

    #[test]
    fn a_gradient_that_is_not_finite_moves_nothing_and_is_named() {
        for_all_orders(|device| {
            for method in METHODS {
                let mut both = Both::new(device, method, HYPERPARAMETERS, 0);
                both.set_gradients(1);
                update(&device.context, &both.plan, both.state.pointer());
                both.update_host(&HYPERPARAMETERS, 1, both.state().gradient_scale);
                let before = both.state();
                // In the second slice of one tensor and in a later tensor: the first counts.
                for bad in [f32::NAN, f32::NEG_INFINITY] {
                    both.set_gradients(2);
                    both.host[3][1][SLICE] = bad;
                    both.host[5][1][2 * SLICE + 76] = f32::NAN;
                    for tensor in [3, 5] {
                        both.device[tensor][1].write(&both.host[tensor][1]);
                    }
                    update(&device.context, &both.plan, both.state.pointer());
                    let state = both.state();
                    assert_eq!((state.non_finite, state.updated(), state.updates), (3, false, 1));
                    assert!(!state.norm.is_finite());
                    // NaN differs from itself: gradients aside.
                    both.set_gradients(3);
                    both.assert_equal();
                }
                assert_eq!(both.state().steps, before.steps + 2);
                update(&device.context, &both.plan, both.state.pointer());
                both.update_host(&HYPERPARAMETERS, 2, both.state().gradient_scale);
                both.assert_equal();
            }
        });
    }

    #[test]
    fn a_captured_update_follows_the_learning_rate_and_its_schedule_and_counts_its_steps() {
        let Some(device) = Device::new() else { return };
        let mut both = Both::new(&device, Method::Adam { beta1: 0.9, beta2: 0.999 }, HYPERPARAMETERS, 0);
        let driver = device.context.driver();
        // A kernel's first use loads it, which a GPU refuses while a graph is captured.
        let other = Both::new(&device, both.method, HYPERPARAMETERS, 0);
        update(&device.context, &other.plan, other.state.pointer());
        driver.begin_capture().unwrap();
        update(&device.context, &both.plan, both.state.pointer());
        let graph = driver.end_capture().unwrap();
        for step in 1..=4 {
            // Noam's rate rises to the second update and falls to the third, of itself; then the host gives another rate.
            let scheduled = Hyperparameters { learning_rate: 0.7, warmup: 2.0, width: 9.0, ..HYPERPARAMETERS };
            let hyperparameters = if step < 4 { scheduled } else { HYPERPARAMETERS };
            both.set_gradients(step);
            // The first bytes of the state alone: counts go on.
            both.state.write_bytes(bytemuck::bytes_of(&hyperparameters));
            // SAFETY: all that the graph names is still there.
            unsafe { driver.replay(graph) }.unwrap();
            both.update_host(&hyperparameters, step, both.state().gradient_scale);
            both.assert_equal();
        }
        assert_eq!(both.state().updates, 4);
        driver.release_graph(graph);
    }

    #[test]
    fn without_trainable_tensors_or_gradients_an_update_changes_counts_only() {
        let Some(device) = Device::new() else { return };
        let method = METHODS[0];
        let state = device.upload(&[StepState::new(HYPERPARAMETERS, 5, 4)]);
        update(&device.context, &Plan::new(&device.context, method, &[]), state.pointer());
        let [values, first, second] = [1, 2, 3].map(|seed| device.upload(&random(10, seed)));
        let states = [first.pointer(), second.pointer()];
        let without_gradient = Trainable { values: values.pointer(), gradient: 0, states, length: 10 };
        let plan = Plan::new(&device.context, method, &[without_gradient]);
        update(&device.context, &plan, state.pointer());
        assert_eq!(values.values(), random(10, 1));
        let state = state.values()[0];
        assert_eq!((state.steps, state.updates, state.norm), (7, 6, 0.0));
        device.context.check().unwrap();
    }
}
