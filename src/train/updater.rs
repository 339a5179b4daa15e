//! Turns gradients into an update: global norm, clipping, the optimiser and its state, which exists for trainable parameters only.

use crate::backend::cuda::context::{Buffer, Context, Fetched};
use crate::backend::cuda::optim::{self, Hyperparameters, Plan, StepState, Trainable};
use crate::device::{Backend, Category, Device};
use crate::nn::Parameters;
use crate::optim::{Average, EpsilonDecay, Hyper, Method, Noam, clip_coefficient, gradient_norm};
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
    /// The learning rate's schedule, if it has one.
    pub noam: Option<Noam>,
    /// The factor on the next update's learning rate, and that of the update before.
    rate_factor: (f64, f64),
    /// NT-ASGD's, once it has begun.
    averaging: Option<Averaging>,
    on_device: Option<OnDevice>,
}

/// The averages of all trainable parameters.
struct Averaging {
    average: Average,
    /// The updates made before.
    begun_at: u64,
    /// Each with its parameter's index.
    averages: Vec<(usize, Tensor)>,
    /// Of a GPU, made for its first update.
    plan: Option<Plan>,
}

/// What a GPU needs for its updates, made for the first of them.
struct OnDevice {
    plan: Plan,
    /// The parameters that had a gradient then, in the plan's order.
    moved: Arc<[usize]>,
    /// A [`StepState`].
    state: Buffer,
}

/// What one update came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Before clipping.
    pub gradient_norm: f64,
    /// The parameter with the first gradient that is not finite: nothing was updated.
    pub non_finite: Option<usize>,
    /// Updates made since the stage began, this one included.
    pub updates: u64,
    /// No update was made: the gradient waits for those of the batches to come.
    pub waits: bool,
}

/// An update that may be under way.
#[derive(Debug)]
pub enum Updating {
    Done(Update),
    /// Until other batches have added their gradients.
    Waits,
    OnDevice {
        state: Fetched<StepState>,
        /// Parameters by their place in the plan.
        moved: Arc<[usize]>,
    },
}

impl Updating {
    /// Waits for the work of a GPU.
    pub fn read(self) -> Update {
        match self {
            Updating::Done(update) => update,
            Updating::Waits => Update { gradient_norm: 0.0, non_finite: None, updates: 0, waits: true },
            Updating::OnDevice { state, moved } => {
                let state = state.read()[0];
                let place = usize::try_from(state.non_finite).ok();
                let non_finite = place.and_then(|place| moved.get(place).copied());
                Update { gradient_norm: state.norm, non_finite, updates: state.updates, waits: false }
            }
        }
    }
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
            noam: None,
            rate_factor: (1.0, 1.0),
            averaging: None,
            on_device: None,
        }
    }

    /// That of the last update, but for [`Updater::set_rate_factor`].
    pub fn learning_rate(&self) -> f64 {
        self.learning_rate * self.noam.map_or(1.0, |noam| noam.factor(self.updates))
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

    /// Without the schedule: the rate of the moment and that of the batch before, which is taken where more than so many updates were made.
    /// (torch.optim.ASGD computes the rate of an update at the end of the one before; its first takes the rate of the moment.)
    fn rates(&self) -> (f64, f64, Option<u64>) {
        let (factor, before) = self.rate_factor;
        let lags_after = self.averaging.as_ref().filter(|it| it.average.original).map(|it| it.begun_at);
        (self.learning_rate * factor, self.learning_rate * before, lags_after)
    }

    /// Whether [`Updater::swap_averages`] has something to swap.
    pub fn average(&self) -> Option<Average> {
        self.averaging.as_ref().map(|averaging| averaging.average)
    }

    /// The averages, each with its parameter's index; none before the first update that is averaged.
    pub fn averages(&self) -> Option<impl Iterator<Item = (usize, &Tensor)>> {
        let averaging = self.averaging.as_ref().filter(|averaging| averaging.average.updates > 0)?;
        Some(averaging.averages.iter().map(|(index, average)| (*index, average)))
    }

    /// From the next update on, the trainable parameters are averaged. A frozen one has no average: it is its own.
    pub fn begin_average(&mut self, device: &Device, parameters: &Parameters, average: Average) {
        let room = |index: usize| Tensor::zeros(device, &parameters.specs()[index].shape, Category::OptimizerState);
        let averages = parameters.trainable().map(|index| (index, room(index))).collect();
        let begun_at = self.updates.saturating_sub(average.updates);
        self.averaging = Some(Averaging { average, begun_at, averages, plan: None });
    }

    /// Swaps every averaged parameter with its average: before an evaluation, and after it.
    pub fn swap_averages(&mut self, parameters: &mut Parameters) {
        let Some(Averaging { average, averages, .. }) = &mut self.averaging else { return };
        // Before the first update there is no average.
        if average.updates > 0 {
            averages.iter_mut().for_each(|(index, average)| std::mem::swap(parameters.value_mut(*index), average));
        }
    }

    /// Moves every trainable parameter that has a gradient, unless a gradient is not finite. On a GPU, whoever reads what it came to
    /// tells [`Updater::updates`].
    pub fn update(&mut self, device: &Device, parameters: &mut Parameters) -> Updating {
        let written: Vec<usize> =
            parameters.trainable().filter(|&index| parameters.gradients.get(index).is_some()).collect();
        match device.backend() {
            Backend::Cpu => Updating::Done(self.update_on_host(parameters, &written)),
            Backend::Cuda(context) => self.update_on_device(context, parameters, &written),
            Backend::Plan => {
                Updating::Done(Update { gradient_norm: 0.0, non_finite: None, updates: self.updates, waits: false })
            }
        }
    }

    /// What an update came to that may have been made while the next was started.
    pub fn settle(&mut self, update: &Update) {
        self.updates = self.updates.max(update.updates);
        if let Some(averaging) = &mut self.averaging {
            averaging.average.updates = self.updates.saturating_sub(averaging.begun_at);
        }
    }

    fn update_on_host(&mut self, parameters: &mut Parameters, written: &[usize]) -> Update {
        let gradients: Vec<&[f32]> =
            written.iter().filter_map(|&index| parameters.gradients.get(index)).map(Tensor::data).collect();
        let norm = gradient_norm(&gradients);
        if let Some(first) = norm.first_non_finite {
            let non_finite = Some(written[first]);
            return Update { gradient_norm: norm.norm, non_finite, updates: self.updates, waits: false };
        }
        let (rate, lagging_rate, lags_after) = self.rates();
        let rate = if lags_after.is_some_and(|updates| self.updates > updates) { lagging_rate } else { rate };
        self.updates += 1;
        let hyper = Hyper {
            learning_rate: rate * self.noam.map_or(1.0, |noam| noam.factor(self.updates)),
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
        if let Some(Averaging { average, begun_at, averages, .. }) = &mut self.averaging {
            average.updates = self.updates - *begun_at;
            let weight = average.weight() as f32;
            for (index, average) in averages {
                crate::optim::average_into(average.data_mut(), parameters.value(*index).data(), weight);
            }
        }
        Update { gradient_norm: norm.norm, non_finite: None, updates: self.updates, waits: false }
    }

    fn update_on_device(&mut self, context: &Arc<Context>, parameters: &mut Parameters, written: &[usize]) -> Updating {
        // How many updates were made the device alone knows: the step before may still be under way.
        let (learning_rate, lagging_rate, lags_after) = self.rates();
        let hyperparameters = Hyperparameters {
            learning_rate,
            lagging_rate,
            lags_after: lags_after.map_or(f64::INFINITY, |updates| updates as f64),
            epsilon: self.epsilon.epsilon(),
            weight_decay: self.options.weight_decay,
            clip: self.options.clip,
            warmup: self.noam.map_or(0.0, |noam| noam.warmup as f64),
            width: self.noam.map_or(0.0, |noam| noam.width as f64),
        };
        if self.on_device.as_ref().is_none_or(|on_device| *on_device.moved != *written) {
            if let Some(before) = &self.on_device {
                self.updates = context.download::<StepState>(&before.state, 1)[0].updates;
            }
            let trainable: Vec<Trainable> = written.iter().map(|&index| self.trainable(parameters, index)).collect();
            let state = context.allocate(size_of::<StepState>());
            context.upload(&state, &[StepState::new(hyperparameters, self.updates, self.updates)]);
            let plan = Plan::new(context, self.options.method, &trainable);
            self.on_device = Some(OnDevice { plan, moved: written.into(), state });
        }
        let on_device = self.on_device.as_ref().expect("made above");
        // Each time, so that steps do not differ in that.
        context.upload(&on_device.state, &[hyperparameters]);
        optim::update(context, &on_device.plan, on_device.state.pointer());
        if let Some(Averaging { average, begun_at, averages, plan }) = &mut self.averaging {
            let plan = plan.get_or_insert_with(|| average_plan(context, parameters, averages));
            optim::average(context, plan, on_device.state.pointer(), *begun_at, average.original);
        }
        Updating::OnDevice { state: context.fetch(&on_device.state, 1), moved: on_device.moved.clone() }
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
        Trainable { values: values.pointer_mut(), gradient, states, length }
    }

    /// Every buffer with its name, `PARAMETER.STATE`, for the resumable state.
    pub fn named_states<'a>(&'a self, parameters: &'a Parameters) -> impl Iterator<Item = (String, &'a Tensor)> + 'a {
        let states = self.states.iter().flat_map(move |(index, buffers)| {
            let names = self.options.method.state_names().iter().zip(buffers);
            names.map(move |(name, buffer)| (format!("{}.{name}", parameters.specs()[*index].name), buffer))
        });
        let averages = self.averaging.iter().flat_map(|averaging| &averaging.averages);
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
        let averages = self.averaging.iter_mut().flat_map(|averaging| &mut averaging.averages);
        let averages =
            averages.map(|(index, average)| (format!("{}.average", parameters.specs()[*index].name), average));
        states.chain(averages)
    }
}

fn average_plan(context: &Arc<Context>, parameters: &mut Parameters, averages: &mut [(usize, Tensor)]) -> Plan {
    let averaged: Vec<Trainable> = averages
        .iter_mut()
        .map(|(index, average)| {
            let value = parameters.value_mut(*index);
            let (length, values) = (value.len(), value.pointer_mut());
            Trainable { values, states: [average.pointer_mut(), 0], length, ..Trainable::default() }
        })
        .collect();
    Plan::new(context, Method::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false }, &averaged)
}
