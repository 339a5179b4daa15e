//! Turns gradients into an update: global norm, clipping, the optimiser and its state, which exists for trainable parameters only.

use crate::backend::cuda::context::{Buffer, Context};
use crate::backend::cuda::optim::{self, Hyperparameters, Plan, StepState, Trainable};
use crate::device::{Backend, Category, Device};
use crate::nn::Parameters;
use crate::optim::{Average, EpsilonDecay, Hyper, Method, clip_coefficient, gradient_norm};
use crate::primitives::{add_to, scale};
use crate::tensor::Tensor;
use std::sync::Arc;

/// What stays the same over a stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateOptions {
    pub method: Method,
    pub learning_rate: f64,
    pub epsilon: f64,
    /// ESPnet's factor on epsilon where validation got worse; 1: none.
    pub epsilon_decay: f64,
    pub weight_decay: f64,
    /// The largest global gradient norm; 0: no limit.
    pub clip: f64,
}

pub struct Updater {
    options: UpdateOptions,
    pub epsilon: EpsilonDecay,
    /// The optimiser's buffers of every trainable parameter, with its index.
    states: Vec<(usize, Vec<Tensor>)>,
    /// Updates made since the stage began; skipped ones do not count.
    pub updates: u64,
    /// From one update to the next: what `learning_rate` decays to.
    pub learning_rate: f64,
    /// The factor on the next update's learning rate, and that of the update before.
    rate_factor: (f64, f64),
    /// NT-ASGD's average of every trainable parameter, once it has begun.
    averages: Option<(Average, Vec<(usize, Tensor)>)>,
    on_device: Option<OnDevice>,
}

/// What a GPU needs for its updates, made for the first of them.
struct OnDevice {
    plan: Plan,
    /// The parameters that had a gradient then, in the plan's order.
    moved: Vec<usize>,
    /// A [`StepState`].
    state: Buffer,
    hyperparameters: Hyperparameters,
}

/// What one update came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Before clipping.
    pub gradient_norm: f64,
    /// The parameter with the first gradient that is not finite: nothing was updated.
    pub non_finite: Option<usize>,
}

impl Updater {
    /// Fresh state for the trainable parameters.
    pub fn new(device: &Device, parameters: &Parameters, options: UpdateOptions) -> Self {
        let buffer = |index: usize| Tensor::zeros(device, &parameters.specs()[index].shape, Category::OptimizerState);
        let buffers = |index| options.method.state_names().iter().map(|_| buffer(index)).collect();
        Updater {
            options,
            epsilon: EpsilonDecay::new(options.epsilon, options.epsilon_decay),
            states: parameters.trainable().map(|index| (index, buffers(index))).collect(),
            updates: 0,
            learning_rate: options.learning_rate,
            rate_factor: (1.0, 1.0),
            averages: None,
            on_device: None,
        }
    }

    pub fn learning_rate(&self) -> f64 {
        self.learning_rate
    }

    /// Multiplies the learning rate of the next update.
    pub fn set_rate_factor(&mut self, factor: f64) {
        self.rate_factor = (factor, self.rate_factor.0);
    }

    /// The two factors, for the saved state.
    pub fn rate_factors(&self) -> (f64, f64) {
        self.rate_factor
    }

    pub fn restore_rate_factors(&mut self, factors: (f64, f64)) {
        self.rate_factor = factors;
    }

    fn rate_of_this_update(&self) -> f64 {
        // torch.optim.ASGD computes the rate of an update at the end of the one before; its first takes the rate of the moment.
        let lags = self.averages.as_ref().is_some_and(|(average, _)| average.original && average.updates > 0);
        self.learning_rate * if lags { self.rate_factor.1 } else { self.rate_factor.0 }
    }

    /// Whether [`Updater::swap_averages`] has something to swap.
    pub fn average(&self) -> Option<Average> {
        self.averages.as_ref().map(|(average, _)| *average)
    }

    /// The averages, each with its parameter's index; none before the first update that is averaged.
    pub fn averages(&self) -> Option<impl Iterator<Item = (usize, &Tensor)>> {
        let (_, averages) = self.averages.as_ref().filter(|(average, _)| average.updates > 0)?;
        Some(averages.iter().map(|(index, average)| (*index, average)))
    }

    /// From the next update on, the trainable parameters are averaged. A frozen one has no average: it is its own.
    pub fn begin_average(&mut self, device: &Device, parameters: &Parameters, average: Average) {
        let room = |index: usize| Tensor::zeros(device, &parameters.specs()[index].shape, Category::OptimizerState);
        self.averages = Some((average, parameters.trainable().map(|index| (index, room(index))).collect()));
    }

    /// Swaps every averaged parameter with its average: before an evaluation, and after it.
    pub fn swap_averages(&mut self, parameters: &mut Parameters) {
        let Some((average, averages)) = &mut self.averages else { return };
        // Before the first update there is no average.
        if average.updates > 0 {
            averages.iter_mut().for_each(|(index, average)| std::mem::swap(parameters.value_mut(*index), average));
        }
    }

    /// Takes the values after an update into the averages.
    fn take_average(&mut self, device: &Device, parameters: &Parameters) {
        let Some((average, averages)) = &mut self.averages else { return };
        let weight = average.weigh() as f32;
        for (index, average) in averages {
            let value = parameters.value(*index);
            if weight == 1.0 {
                add_to(average, value, false);
                continue;
            }
            if let Backend::Cpu = device.backend() {
                crate::optim::average_into(average.data_mut(), value.data(), weight);
                continue;
            }
            // average (1 - weight) + value weight; the workspaces are those of one parameter.
            let mut part = Tensor::uninitialized(device, value.shape(), Category::Workspace);
            scale(value, weight, &mut part);
            let mut kept = Tensor::uninitialized(device, value.shape(), Category::Workspace);
            scale(average, 1.0 - weight, &mut kept);
            add_to(&mut part, &kept, true);
            add_to(average, &part, false);
        }
    }

    /// Moves every trainable parameter that has a gradient, unless a gradient is not finite.
    pub fn update(&mut self, device: &Device, parameters: &mut Parameters) -> Update {
        let written: Vec<usize> =
            parameters.trainable().filter(|&index| parameters.gradients.get(index).is_some()).collect();
        let update = match device.backend() {
            Backend::Cpu => self.update_on_host(parameters, &written),
            Backend::Cuda(context) => self.update_on_device(context, parameters, written),
            Backend::Plan => Update { gradient_norm: 0.0, non_finite: None },
        };
        if update.non_finite.is_none() {
            self.take_average(device, parameters);
        }
        update
    }

    fn update_on_host(&mut self, parameters: &mut Parameters, written: &[usize]) -> Update {
        let gradients: Vec<&[f32]> =
            written.iter().filter_map(|&index| parameters.gradients.get(index)).map(Tensor::data).collect();
        let norm = gradient_norm(&gradients);
        if let Some(first) = norm.first_non_finite {
            return Update { gradient_norm: norm.norm, non_finite: Some(written[first]) };
        }
        self.updates += 1;
        let hyper = Hyper {
            learning_rate: self.rate_of_this_update(),
            epsilon: self.epsilon.epsilon(),
            weight_decay: self.options.weight_decay,
            step: self.updates,
            gradient_scale: clip_coefficient(norm.norm, self.options.clip),
        };
        for (index, buffers) in &mut self.states {
            if let Some((value, gradient)) = parameters.value_and_gradient(*index) {
                let mut buffers: Vec<&mut [f32]> = buffers.iter_mut().map(Tensor::data_mut).collect();
                self.options.method.step(&hyper, value.data_mut(), gradient.data(), &mut buffers);
            }
        }
        Update { gradient_norm: norm.norm, non_finite: None }
    }

    fn update_on_device(&mut self, context: &Arc<Context>, parameters: &mut Parameters, written: Vec<usize>) -> Update {
        let hyperparameters = Hyperparameters {
            learning_rate: self.rate_of_this_update(),
            epsilon: self.epsilon.epsilon(),
            weight_decay: self.options.weight_decay,
            clip: self.options.clip,
        };
        if self.on_device.as_ref().is_none_or(|on_device| on_device.moved != written) {
            let trainable: Vec<Trainable> = written.iter().map(|&index| self.trainable(parameters, index)).collect();
            let state = context.allocate(size_of::<StepState>());
            context.upload(&state, &[StepState::new(hyperparameters, self.updates, self.updates)]);
            let plan = Plan::new(context, self.options.method, &trainable);
            self.on_device = Some(OnDevice { plan, moved: written, state, hyperparameters });
        }
        let on_device = self.on_device.as_mut().expect("made above");
        if on_device.hyperparameters != hyperparameters {
            context.upload(&on_device.state, &[hyperparameters]);
            on_device.hyperparameters = hyperparameters;
        }
        optim::update(context, &on_device.plan, on_device.state.pointer());
        let state: StepState = context.download(&on_device.state, 1)[0];
        self.updates = state.updates;
        let non_finite = usize::try_from(state.non_finite).ok().and_then(|place| on_device.moved.get(place).copied());
        Update { gradient_norm: state.norm, non_finite }
    }

    fn trainable(&mut self, parameters: &mut Parameters, index: usize) -> Trainable {
        let (_, buffers) =
            self.states.iter_mut().find(|(state, _)| *state == index).expect("a trainable parameter has states");
        let mut states = [0; 2];
        for (state, buffer) in states.iter_mut().zip(buffers) {
            *state = buffer.pointer_mut();
        }
        let (values, gradient) = parameters.value_and_gradient(index).expect("a parameter with a gradient");
        let (length, gradient) = (values.len(), gradient.pointer());
        Trainable { values: values.pointer_mut(), gradient, states, rounded: 0, length }
    }

    /// Every buffer with its name, `PARAMETER.STATE`, for the resumable state.
    pub fn named_states<'a>(&'a self, parameters: &'a Parameters) -> impl Iterator<Item = (String, &'a Tensor)> + 'a {
        let states = self.states.iter().flat_map(move |(index, buffers)| {
            let names = self.options.method.state_names().iter().zip(buffers);
            names.map(move |(name, buffer)| (format!("{}.{name}", parameters.specs()[*index].name), buffer))
        });
        let averages = self.averages.iter().flat_map(|(_, averages)| averages);
        let averages =
            averages.map(|(index, average)| (format!("{}.average", parameters.specs()[*index].name), average));
        states.chain(averages)
    }

    /// The same, to be overwritten when a stage is resumed.
    pub fn named_states_mut<'a>(
        &'a mut self,
        parameters: &'a Parameters,
    ) -> impl Iterator<Item = (String, &'a mut Tensor)> + 'a {
        let names = self.options.method.state_names();
        let states = self.states.iter_mut().flat_map(move |(index, buffers)| {
            let index = *index;
            let buffers = names.iter().zip(buffers);
            buffers.map(move |(name, buffer)| (format!("{}.{name}", parameters.specs()[index].name), buffer))
        });
        let averages = self.averages.iter_mut().flat_map(|(_, averages)| averages);
        let averages =
            averages.map(|(index, average)| (format!("{}.average", parameters.specs()[*index].name), average));
        states.chain(averages)
    }
}
