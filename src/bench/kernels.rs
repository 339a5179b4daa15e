//! The kernels by themselves: each at the backend that the device has, on operands that are already there.

use super::table::{Kind, Spec};
use super::work::{BARRIER, Bench, Prepared, floats};
use crate::backend::cpu::cross_entropy::{CrossEntropy, Targets};
use crate::backend::cuda;
use crate::backend::cuda::context::{Buffer, Context};
use crate::backend::cuda::matmul::{Operand, Storage};
use crate::backend::cuda::optim::{Hyperparameters, Plan, StepState, Trainable};
use crate::backend::cuda::softmax::{self, Scale};
use crate::backend::{cpu, cpu::activation::Activation};
use crate::device::Backend;
use crate::error::Result;
use crate::ops::convolution::{Patches, convolution as convolution_operation};
use crate::ops::ctc::ctc as ctc_operation;
use crate::ops::linear_cross_entropy::{Form, Top, losses_and_gradients};
use crate::ops::sequences::Sequences;
use crate::optim::{Hyper, Method, clip_coefficient, gradient_norm};
use crate::primitives::{self, Factor, workspace};
use crate::random::{Mask, MaskKey};
use crate::tape::{GradientBuffers, Tape, Var};
use crate::tensor::Tensor;
use std::sync::Arc;

/// The work of a row that is one kernel, or the few that belong together.
///
/// # Errors
/// If the sizes cannot be.
pub fn prepare(bench: &Bench, spec: &Spec) -> Result<Prepared> {
    let size = |name| spec.size(name);
    let (rows, columns) = (size("R"), size("H"));
    let sequences = || Sequences::new(&vec![size("T"); size("B")]);
    Ok(match spec.kind {
        Kind::Product => product(bench, size("M"), size("N"), size("K"), false),
        Kind::WeightGradient => product(bench, size("M"), size("N"), size("K"), true),
        Kind::CrossEntropy => cross_entropy(bench, rows, size("V")),
        Kind::LinearCrossEntropy => linear_cross_entropy(bench, rows, size("C"), size("V")),
        Kind::LogSoftmax => log_softmax(bench, rows, size("V")),
        Kind::LayerNormForward => layer_norm(bench, rows, columns, false),
        Kind::LayerNormBackward => layer_norm(bench, rows, columns, true),
        Kind::EmbeddingForward => embedding_forward(bench, rows, columns, size("V")),
        Kind::EmbeddingBackward => embedding_backward(bench, rows, columns, size("V")),
        Kind::Convolution => convolution(bench, spec, &sequences()?)?,
        Kind::Dropout => dropout(bench, &sequences()?, columns)?,
        Kind::Subsample => subsample(bench, &sequences()?, columns, size("factor")),
        Kind::Sgd => optimizer(bench, Method::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false }, size("P")),
        Kind::Adam => optimizer(bench, Method::Adam { beta1: 0.9, beta2: 0.999 }, size("P")),
        Kind::Adadelta => optimizer(bench, Method::Adadelta { rho: 0.95 }, size("P")),
        Kind::Ctc => ctc(bench, &sequences()?, size("L"), size("V"))?,
        _ => elementwise(bench, spec.kind, rows, columns),
    })
}

/// `[m, n] = [m, k] [n, k]^T`, or `[m, n] = [k, m]^T [k, n]`.
fn product(bench: &Bench, m: usize, n: usize, k: usize, gradient: bool) -> Prepared {
    let bytes = floats(m * k + k * n + m * n);
    let operands = bench.copies(bytes, |b| [b.normal(&[m * k], "a"), b.normal(&[k * n], "b"), b.room(&[m, n])]);
    Prepared::kernel(bytes, operands, move |[a, b, c]| {
        let (a, b) = match gradient {
            false => (Factor::rows(a, k), Factor::rows(b, k).transposed()),
            true => (Factor::rows(a, m).transposed(), Factor::rows(b, n)),
        };
        primitives::product((m, n, k), a, b, c, false);
    })
}

/// Whole numbers where the device has its operands.
pub(super) struct Integers {
    host: Vec<u32>,
    device: Option<Buffer>,
}

impl Integers {
    pub fn new(bench: &Bench, host: Vec<u32>) -> Self {
        let device = match bench.device.backend() {
            Backend::Cuda(context) => {
                let buffer = context.allocate(size_of_val(&host[..]));
                context.upload(&buffer, &host);
                Some(buffer)
            }
            _ => None,
        };
        Integers { host, device }
    }

    fn pointer(&self) -> cuda::driver::Pointer {
        self.device.as_ref().map_or(0, Buffer::pointer)
    }
}

/// Softmax and cross entropy of logits `[rows, symbols]`, in place, which lie as a language model's do in training.
fn cross_entropy(bench: &Bench, rows: usize, symbols: usize) -> Prepared {
    let form = Form::of_training(&bench.device, symbols);
    let bytes = 2 * rows * symbols * form.storage.bytes() + floats(2 * rows);
    let labels = Integers::new(bench, bench.below("labels", rows, 0, symbols));
    let operands =
        bench.copies(bytes / 2, |b| (stored(b, form.storage, rows * form.row_stride, "logits"), b.room(&[rows])));
    Prepared::kernel(bytes, operands, move |(logits, losses)| {
        in_place_cross_entropy(logits, losses, &labels, (rows, symbols), form);
    })
}

/// So many normal numbers, bf16 in the room of half as many floats.
pub(super) fn stored(bench: &Bench, storage: Storage, count: usize, name: &str) -> Tensor {
    if storage == Storage::F32 {
        return bench.normal(&[count], name);
    }
    let pairs = count.div_ceil(2);
    let mut halves = bench.room(&[pairs]);
    if let Backend::Cuda(context) = bench.device.backend() {
        let whole = bench.normal(&[2 * pairs], name);
        cuda::elementwise::to_bf16(context, whole.pointer(), halves.pointer_mut(), 2 * pairs);
    }
    halves
}

fn in_place_cross_entropy(
    logits: &mut Tensor,
    losses: &mut Tensor,
    labels: &Integers,
    (rows, columns): (usize, usize),
    form: Form,
) {
    let device = logits.device().clone();
    let scale = 1.0 / rows as f32;
    match device.backend() {
        Backend::Cpu => {
            let targets = Targets::Labels { labels: &labels.host, smoothing: 0.0, prior: None };
            let batch = CrossEntropy { columns, targets };
            batch.losses_and_gradient(logits.data_mut(), &mut vec![0.0; rows], scale);
        }
        Backend::Cuda(context) => {
            let logits = Operand { storage: form.storage, ..Operand::rows(logits.pointer_mut(), form.row_stride) };
            let targets = softmax::Targets::Labels { labels: labels.pointer(), smoothing: 0.0, prior: None };
            let batch = softmax::CrossEntropy { logits, rows, columns, targets };
            let scale = Scale { value: scale, factor: None };
            softmax::cross_entropy(context, &batch, losses.pointer_mut(), Some(scale));
        }
        Backend::Plan => {}
    }
}

/// The engine's own operation, with the logits of some rows at a time.
fn linear_cross_entropy(bench: &Bench, rows: usize, inputs: usize, symbols: usize) -> Prepared {
    // Operands and their gradients; the logits leave, come back as gradients, and are read twice more.
    let logits = 5 * rows * symbols * Form::of_training(&bench.device, symbols).storage.bytes();
    let bytes = floats(2 * rows * inputs + 2 * symbols * inputs + 2 * symbols) + logits;
    let targets = bench.below("labels", rows, 0, symbols);
    let (weight, bias) = ([symbols, inputs], [symbols]);
    let operands = bench.copies(bytes, |bench| {
        let inputs = [
            Var::parameter(bench.normal(&weight, "weight"), 0),
            Var::parameter(bench.normal(&bias, "bias"), 1),
            // Its gradient is handed back and has no buffer.
            Var::parameter(bench.normal(&[rows, inputs], "x"), 2),
        ];
        (inputs, GradientBuffers::allocate(&bench.device, [Some(&weight[..]), Some(&bias[..])]))
    });
    Prepared::recorded(&bench.device, bytes, operands, move |([weight, bias, x], gradients)| {
        gradients.clear();
        losses_and_gradients(Top { x, weight, bias, targets: &targets }, 1.0 / rows as f32, gradients).map(drop)
    })
}

fn log_softmax(bench: &Bench, rows: usize, columns: usize) -> Prepared {
    let bytes = floats(2 * rows * columns);
    let operands = bench.copies(bytes, |b| [b.normal(&[rows, columns], "x"), b.room(&[rows, columns])]);
    Prepared::kernel(bytes, operands, move |[x, y]| {
        let device = x.device().clone();
        match device.backend() {
            Backend::Cpu => cpu::softmax::log_softmax(x.data(), y.data_mut(), columns),
            Backend::Cuda(context) => softmax::log_softmax(context, x.pointer(), y.pointer_mut(), rows, columns),
            Backend::Plan => {}
        }
    })
}

struct LayerNorm {
    x: Tensor,
    y: Tensor,
    dy: Tensor,
    gamma: Tensor,
    beta: Tensor,
    means: Tensor,
    inverse_deviations: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
}

impl LayerNorm {
    fn new(bench: &Bench, rows: usize, columns: usize) -> Self {
        let mut norm = LayerNorm {
            x: bench.normal(&[rows, columns], "x"),
            y: bench.room(&[rows, columns]),
            dy: bench.normal(&[rows, columns], "dy"),
            gamma: bench.normal(&[columns], "gamma"),
            beta: bench.normal(&[columns], "beta"),
            means: bench.room(&[rows]),
            inverse_deviations: bench.room(&[rows]),
            dgamma: bench.room(&[columns]),
            dbeta: bench.room(&[columns]),
        };
        norm.forward();
        norm
    }

    fn forward(&mut self) {
        const EPSILON: f32 = 1e-5;
        let (rows, columns) = (self.means.len(), self.gamma.len());
        let LayerNorm { x, y, gamma, beta, means, inverse_deviations, .. } = self;
        let device = x.device().clone();
        match device.backend() {
            Backend::Cpu => {
                let (means, inverse_deviations) = (means.data_mut(), inverse_deviations.data_mut());
                let (x, gamma, beta) = (x.data(), gamma.data(), beta.data());
                cpu::layer_norm::forward(x, gamma, beta, EPSILON, y.data_mut(), means, inverse_deviations, columns);
            }
            Backend::Cuda(context) => {
                let (means, inverse_deviations) = (means.pointer_mut(), inverse_deviations.pointer_mut());
                let statistics = cuda::layer_norm::Statistics { means, inverse_deviations };
                let (x, gamma, beta, y) = (x.pointer(), gamma.pointer(), beta.pointer(), y.pointer_mut());
                cuda::layer_norm::forward(context, x, gamma, beta, EPSILON, y, statistics, rows, columns);
            }
            Backend::Plan => {}
        }
    }

    /// `y` takes the input's gradient.
    fn backward(&mut self) {
        let (rows, columns) = (self.means.len(), self.gamma.len());
        let LayerNorm { x, y: dx, dy, gamma, means, inverse_deviations, dgamma, dbeta, .. } = self;
        let device = x.device().clone();
        match device.backend() {
            Backend::Cpu => {
                let (means, inverse_deviations) = (means.data(), inverse_deviations.data());
                let statistics = cpu::layer_norm::Statistics { means, inverse_deviations };
                cpu::layer_norm::backward(x.data(), gamma.data(), statistics, dy.data(), dx.data_mut(), false);
                let (dgamma, dbeta) = (dgamma.data_mut(), dbeta.data_mut());
                cpu::layer_norm::backward_parameters(x.data(), statistics, dy.data(), dgamma, dbeta, false);
            }
            Backend::Cuda(context) => {
                let (means, inverse_deviations) = (means.pointer(), inverse_deviations.pointer());
                let statistics = cuda::layer_norm::Statistics { means, inverse_deviations };
                let (x, dy, dx, gamma) = (x.pointer(), dy.pointer(), dx.pointer_mut(), gamma.pointer());
                cuda::layer_norm::backward(context, x, gamma, statistics, dy, dx, rows, columns, false);
                let room = workspace(&device, cuda::layer_norm::parameters_workspace(rows, columns));
                let (dgamma, dbeta, room) = (dgamma.pointer_mut(), dbeta.pointer_mut(), room.pointer());
                cuda::layer_norm::backward_parameters(
                    context, x, statistics, dy, dgamma, dbeta, rows, columns, false, room,
                );
            }
            Backend::Plan => {}
        }
    }
}

fn layer_norm(bench: &Bench, rows: usize, columns: usize, backward: bool) -> Prepared {
    let elements = rows * columns;
    let bytes = if backward {
        // x and dy are read by both of the passes, which sum over different directions.
        floats(5 * elements + 2 * rows + 3 * columns)
    } else {
        floats(2 * elements + 2 * rows + 2 * columns)
    };
    let operands = bench.copies(bytes, |b| LayerNorm::new(b, rows, columns));
    Prepared::kernel(bytes, operands, move |norm| if backward { norm.backward() } else { norm.forward() })
}

fn embedding_forward(bench: &Bench, rows: usize, columns: usize, words: usize) -> Prepared {
    let bytes = floats(2 * rows * columns + rows);
    let tokens = Integers::new(bench, bench.below("tokens", rows, 0, words));
    let operands = bench.copies(bytes, |b| [b.normal(&[words, columns], "weight"), b.room(&[rows, columns])]);
    Prepared::kernel(bytes, operands, move |[weight, y]| {
        let device = weight.device().clone();
        match device.backend() {
            Backend::Cpu => cpu::embedding::gather(weight.data(), columns, &tokens.host, None, y.data_mut()),
            Backend::Cuda(context) => {
                let (weight, tokens, y) = (weight.pointer(), tokens.pointer(), y.pointer_mut());
                cuda::embedding::gather(context, weight, tokens, None, y, rows, columns, words);
            }
            Backend::Plan => {}
        }
    })
}

fn embedding_backward(bench: &Bench, rows: usize, columns: usize, words: usize) -> Prepared {
    let bytes = floats(rows * columns + words * columns);
    let tokens = bench.below("tokens", rows, 0, words);
    let grouping = cpu::embedding::Grouping::new(&tokens, words);
    let groups: Vec<u32> = match bench.device.backend() {
        Backend::Cuda(_) => {
            cuda::embedding::group(&tokens, words, rows).into_iter().map(|group| group as u32).collect()
        }
        _ => Vec::new(),
    };
    let groups = Integers::new(bench, groups);
    let operands = bench.copies(bytes, |b| [b.normal(&[rows, columns], "dy"), b.room(&[words, columns])]);
    Prepared::kernel(bytes, operands, move |[dy, dweight]| {
        let device = dy.device().clone();
        match device.backend() {
            Backend::Cpu => {
                cpu::embedding::gradient(dy.data(), columns, &grouping, None, dweight.data_mut(), false);
            }
            Backend::Cuda(context) => {
                let room = workspace(&device, cuda::embedding::gradient_workspace(rows, columns));
                let (dy, groups, dweight, room) =
                    (dy.pointer(), groups.pointer(), dweight.pointer_mut(), room.pointer());
                cuda::embedding::gradient(context, dy, groups, None, dweight, rows, columns, words, false, room);
            }
            Backend::Plan => {}
        }
    })
}

fn dropout(bench: &Bench, sequences: &Sequences, columns: usize) -> Result<Prepared> {
    let shape = [sequences.rows(), columns];
    let bytes = floats(2 * sequences.rows() * columns);
    let mask = Mask::new(&MaskKey { seed: 1, stage: "bench".into(), step: 0 }, "dropout", 0.5)?;
    let sequences = sequences.clone();
    let operands = bench.copies(bytes, |b| [b.normal(&shape, "x"), b.room(&shape)]);
    Ok(Prepared::kernel(bytes, operands, move |[x, y]| {
        let device = x.device().clone();
        match device.backend() {
            Backend::Cpu => cpu::dropout::apply(x.data(), y.data_mut(), sequences.offsets(), columns, &mask),
            Backend::Cuda(context) => {
                let packing = sequences.on(context);
                cuda::sequences::dropout(context, x.pointer(), y.pointer_mut(), &packing, columns, &mask);
            }
            Backend::Plan => {}
        }
    }))
}

fn subsample(bench: &Bench, all: &Sequences, columns: usize, factor: usize) -> Prepared {
    let kept = all.subsample(factor);
    let bytes = floats(2 * kept.rows() * columns);
    let all = all.clone();
    let operands = bench.copies(bytes, |b| [b.normal(&[all.rows(), columns], "x"), b.room(&[kept.rows(), columns])]);
    Prepared::kernel(bytes, operands, move |[x, y]| {
        let device = x.device().clone();
        match device.backend() {
            Backend::Cpu => {
                let (all, kept) = (all.offsets(), kept.offsets());
                cpu::subsample::subsample(x.data(), y.data_mut(), all, kept, factor, columns);
            }
            Backend::Cuda(context) => {
                let (all, kept) = (all.on(context), kept.on(context));
                cuda::sequences::subsample(context, x.pointer(), y.pointer_mut(), &all, &kept, factor, columns);
            }
            Backend::Plan => {}
        }
    })
}

fn convolution(bench: &Bench, spec: &Spec, sequences: &Sequences) -> Result<Prepared> {
    let [bins, channels, filters] = ["F", "C", "O"].map(|name| spec.size(name));
    let patches = if spec.size("stride") == 2 { Patches::EverySecond } else { Patches::All };
    let shapes = [vec![sequences.rows(), bins * channels], vec![filters, channels, 3, 3], vec![filters]];
    let trainable = [channels > 1, true, true];
    let rows: usize = sequences.lengths().iter().map(|&length| patches.count(length)).sum();
    // x and y forward; y and dy, x again, and dx backward.
    let passes_of_x = if channels > 1 { 3 } else { 2 };
    let bytes = floats(passes_of_x * sequences.rows() * bins * channels + 3 * rows * patches.count(bins) * filters);
    let operands = bench.copies(bytes, |bench| {
        let wanted = shapes.iter().zip(trainable).map(|(shape, trainable)| trainable.then_some(&shape[..]));
        let gradients = GradientBuffers::allocate(&bench.device, wanted);
        (shapes.each_ref().map(|shape| bench.normal(shape, "convolution")), gradients)
    });
    let (sequences, device) = (sequences.clone(), bench.device.clone());
    Ok(Prepared::recorded(&bench.device, bytes, operands, move |(inputs, gradients)| {
        let mut tape = Tape::new(&device);
        let [x, weight, bias] = [0, 1, 2].map(|index| match trainable[index] {
            true => Var::parameter(inputs[index].clone(), index),
            false => Var::constant(inputs[index].clone()),
        });
        let (y, _) = convolution_operation(&mut tape, &x, &sequences, &weight, &bias, patches)?;
        gradients.clear();
        let seed = tape.seed(&y, 1.0);
        tape.backward_from(&y, seed, gradients)
    }))
}

fn elementwise(bench: &Bench, kind: Kind, rows: usize, columns: usize) -> Prepared {
    let elements = rows * columns;
    let passes = match kind {
        Kind::ColumnSums | Kind::Sum => 1,
        Kind::BiasTanh => 2,
        _ => 3,
    };
    let bytes = floats(passes * elements + columns);
    let operands = bench.copies(bytes, |b| {
        let names = &["x", "y", "z"][..passes];
        let operands: Vec<Tensor> = names.iter().map(|name| b.normal(&[rows, columns], name)).collect();
        (operands, b.normal(&[columns], "bias"))
    });
    Prepared::kernel(bytes, operands, move |(operands, bias)| {
        let device = bias.device().clone();
        match (kind, &mut operands[..]) {
            (Kind::ColumnSums, [x]) => primitives::column_sums(Factor::rows(x, columns), rows, bias, false),
            (Kind::BiasTanh, [x, ..]) => primitives::bias_activation(x, Some(bias), columns, Activation::Tanh),
            (Kind::TanhBackward, [x, y, ..]) => primitives::activation_backward(x, y, Activation::Tanh),
            (Kind::Sum, [x]) => sum(x, bias),
            (_, [x, y, z]) => match device.backend() {
                Backend::Cpu => {
                    let elements = z.data_mut().iter_mut().zip(x.data()).zip(y.data());
                    match kind {
                        Kind::Add => elements.for_each(|((z, x), y)| *z = x + y),
                        _ => elements.for_each(|((z, x), y)| *z = x * y),
                    }
                }
                Backend::Cuda(context) => {
                    let (x, y, z, count) = (x.pointer(), y.pointer(), z.pointer_mut(), z.len());
                    match kind {
                        Kind::Add => cuda::elementwise::add(context, x, y, z, count),
                        _ => cuda::elementwise::multiply(context, x, y, z, count),
                    }
                }
                Backend::Plan => {}
            },
            _ => {}
        }
    })
}

/// As `ops::arithmetic::sum`: the first element of `result` takes the sum.
fn sum(x: &Tensor, result: &mut Tensor) {
    let device = x.device().clone();
    match device.backend() {
        Backend::Cpu => result.data_mut()[0] = x.data().iter().map(|&x| f64::from(x)).sum::<f64>() as f32,
        Backend::Cuda(context) => {
            let room = workspace(&device, cuda::elementwise::sum_workspace(x.len()));
            cuda::elementwise::sum(context, x.pointer(), x.len(), result.pointer_mut(), room.pointer());
        }
        Backend::Plan => {}
    }
}

struct Optimized {
    values: Tensor,
    gradient: Tensor,
    states: Vec<Tensor>,
    /// On a GPU.
    plan: Option<(Plan, Buffer)>,
}

impl Optimized {
    fn new(bench: &Bench, method: Method, count: usize) -> Self {
        let (mut values, gradient) = (bench.normal(&[count], "values"), bench.normal(&[count], "gradient"));
        let mut states: Vec<Tensor> = method.state_names().iter().map(|_| bench.room(&[count])).collect();
        let plan = match bench.device.backend() {
            Backend::Cuda(context) => {
                let mut pointers = [0; 2];
                pointers.iter_mut().zip(&mut states).for_each(|(pointer, state)| *pointer = state.pointer_mut());
                let (values, gradient) = (values.pointer_mut(), gradient.pointer());
                let trainable = Trainable { values, gradient, states: pointers, length: count };
                Some(Self::on_device(context, method, trainable))
            }
            _ => None,
        };
        Optimized { values, gradient, states, plan }
    }

    fn on_device(context: &Arc<Context>, method: Method, trainable: Trainable) -> (Plan, Buffer) {
        let hyperparameters = Hyperparameters {
            learning_rate: 0.1,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: CLIP,
            warmup: 0.0,
            width: 0.0,
            lagging_rate: 0.0,
            lags_after: f64::INFINITY,
        };
        let state = context.allocate(size_of::<StepState>());
        context.upload(&state, &[StepState::new(hyperparameters, 0, 0)]);
        (Plan::new(context, method, &[trainable]), state)
    }

    fn update(&mut self, method: Method) {
        let device = self.values.device().clone();
        match (device.backend(), &self.plan) {
            (Backend::Cuda(context), Some((plan, state))) => cuda::optim::update(context, plan, state.pointer()),
            (Backend::Cpu, _) => {
                let norm = gradient_norm(&[self.gradient.data()]);
                let hyper = Hyper {
                    learning_rate: 0.1,
                    epsilon: 1e-8,
                    weight_decay: 0.0,
                    step: 1,
                    gradient_scale: clip_coefficient(norm.norm, CLIP),
                };
                let mut states: Vec<&mut [f32]> = self.states.iter_mut().map(Tensor::data_mut).collect();
                method.step(&hyper, self.values.data_mut(), self.gradient.data(), &mut states);
            }
            _ => {}
        }
    }
}

const CLIP: f64 = 5.0;

fn optimizer(bench: &Bench, method: Method, count: usize) -> Prepared {
    // The gradient is read for its norm and again for the update; values and states are read and written.
    let bytes = floats(count * (4 + 2 * method.state_names().len()));
    let operands = bench.copies(bytes, |b| Optimized::new(b, method, count));
    Prepared::kernel(bytes, operands, move |optimized| optimized.update(method))
}

struct Aligned {
    logits: Tensor,
    gradient: Tensor,
    losses: Tensor,
    loss: Tensor,
}

/// Log-softmax and CTC of logits `[R, symbols]`: losses and gradient.
fn ctc(bench: &Bench, sequences: &Sequences, labels: usize, symbols: usize) -> Result<Prepared> {
    let (count, shape) = (sequences.count(), [sequences.rows(), symbols]);
    let bytes = floats(2 * sequences.rows() * symbols);
    let labels = bench.labels(count, labels, symbols);
    if !matches!(bench.device.backend(), Backend::Cuda(_)) {
        return Ok(ctc_on_host(bench, sequences, labels, symbols));
    }
    let starts = (0..=count as u32).map(|sequence| sequence * labels[0].len() as u32);
    let transcripts = Integers::new(bench, starts.chain(labels.iter().flatten().copied()).collect());
    let longest = labels[0].len();
    let operands = bench.copies(bytes, |b| Aligned {
        logits: b.normal(&shape, "logits"),
        gradient: b.room(&shape),
        losses: b.room(&[count]),
        loss: b.room(&[1]),
    });
    let (sequences, device) = (sequences.clone(), bench.device.clone());
    // Alpha and beta run at the same time, each in a block of its own.
    let steps = sequences.steps();
    let mut operands = operands;
    let copies = operands.len();
    let run = move |copy: usize| {
        let Backend::Cuda(context) = device.backend() else { return Ok(()) };
        let Aligned { logits, gradient, losses, loss } = &mut operands[copy];
        let batch = cuda::ctc::Batch {
            logits: logits.pointer(),
            symbols,
            packing: sequences.on(context),
            starts: transcripts.pointer(),
            labels: transcripts.pointer() + ((count + 1) * size_of::<u32>()) as u64,
            longest,
        };
        let room = workspace(&device, cuda::ctc::workspace(&batch, true));
        let gradient = Some((gradient.pointer_mut(), Scale { value: 1.0 / count as f32, factor: None }));
        cuda::ctc::ctc(context, &batch, losses.pointer_mut(), gradient, room.pointer())?;
        cuda::ctc::total(context, losses.pointer(), count, 1.0, loss.pointer_mut());
        Ok(())
    };
    Ok(Prepared { copies, launches_only: true, ..Prepared::new(bytes, run) }.waiting(steps, BARRIER))
}

fn ctc_on_host(bench: &Bench, sequences: &Sequences, labels: Vec<Vec<u32>>, symbols: usize) -> Prepared {
    let shape = [sequences.rows(), symbols];
    let logits = bench.normal(&shape, "logits");
    let mut gradients = GradientBuffers::allocate(&bench.device, [Some(&shape[..])]);
    let (sequences, device) = (sequences.clone(), bench.device.clone());
    Prepared::new(floats(2 * shape[0] * symbols), move |_| {
        let mut tape = Tape::new(&device);
        let logits = Var::parameter(logits.clone(), 0);
        let output = ctc_operation(&mut tape, &logits, &sequences, &labels, 1.0 / labels.len() as f32)?;
        gradients.clear();
        tape.backward(&output.loss, 1.0, &mut gradients)
    })
}
