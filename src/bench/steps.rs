//! Whole training steps, what a frozen group saves of one, and an epoch of utterances as long as WSJ's.

use super::kernels::stored;
use super::table::{Kind, Spec};
use super::work::{Bench, EXCHANGE, Prepared};
use crate::backend::cuda::context::Recording;
use crate::backend::cuda::matmul::Storage;
use crate::data::streams::TextBatch;
use crate::data::{BatchLimits, BatchPlan};
use crate::device::{Category, Device};
use crate::error::Result;
use crate::models::blstm_ctc::{BlstmCtc, Sizes};
use crate::models::blstm_encoder::EncoderSizes;
use crate::models::ctc_attention::{self, CtcAttention};
use crate::models::lstm_lm::{self as text, Dropouts, LstmLm};
use crate::models::recogniser::Recogniser;
use crate::models::transformer::{self, Transformer};
use crate::models::{Network, Structure};
use crate::nn::{ParameterSpec, Parameters, Scheme};
use crate::ops::arithmetic::mean_square;
use crate::ops::dropout::Sharing;
use crate::ops::linear_cross_entropy::Form;
use crate::ops::sequences::Sequences;
use crate::optim::Method;
use crate::primitives::{Factor, column_sums, product};
use crate::random::MaskKey;
use crate::tape::{Place, Tape, Var};
use crate::tensor::Tensor;
use crate::train::learner::{Batch, Learner};
use crate::train::text_learner::{Carried, Objective};
use crate::train::updater::{UpdateOptions, Updater, Updating};
use std::rc::Rc;

const INPUTS: usize = 43;
const SYMBOLS: usize = 50;
const LABELS: usize = 40;
/// Features of a `transformer`: 80 filters and 3 of pitch.
const FILTERS: usize = 83;

const UPDATE: UpdateOptions = UpdateOptions {
    method: Method::Adadelta { rho: 0.95 },
    learning_rate: 1.0,
    epsilon: 1e-8,
    epsilon_decay: 1.0,
    weight_decay: 0.0,
    clip: 5.0,
};

/// awd-lstm-lm's, before its averaging.
const TEXT_UPDATE: UpdateOptions = UpdateOptions {
    method: Method::Sgd { momentum: 0.0, dampening: 0.0, nesterov: false },
    learning_rate: 30.0,
    weight_decay: 1.2e-6,
    clip: 0.25,
    ..UPDATE
};

const PLAIN: Objective = Objective { activation: 0.0, temporal: 0.0, per_sequence: false };

/// # Errors
/// If the sizes cannot be.
pub fn prepare(bench: &Bench, spec: &Spec) -> Result<Prepared> {
    match spec.kind {
        Kind::Saved | Kind::AwdSaved => saved(bench, spec),
        Kind::AwdLstm => text_step(bench, spec),
        Kind::TransformerEncoder => encoder_step(bench, spec),
        Kind::Epoch => epoch(bench, spec),
        Kind::CtcAttention => {
            // The decoder's steps wait for one another too: one for every label and the end.
            let labels = LABELS.min(spec.size("T") / 2) + 1;
            let steps = spec.size("layers") * spec.size("T") + labels;
            Ok(step(bench, spec, attention_model(spec), UPDATE)?.waiting(2 * steps, EXCHANGE))
        }
        Kind::Transformer => {
            step(bench, spec, Transformer::new(transformer_sizes(spec, spec.size("decoders"))), TRANSFORMER_UPDATE)
        }
        _ => {
            let model = model(spec, vec![1; spec.size("layers")]);
            let steps = spec.size("layers") * model.frames_after_subsampling(spec.size("T"));
            Ok(step(bench, spec, model, UPDATE)?.waiting(2 * steps, EXCHANGE))
        }
    }
}

fn model(spec: &Spec, subsample: Vec<usize>) -> BlstmCtc {
    let (units, channels) = (spec.size("H"), spec.size("C"));
    let vgg = (spec.kind == Kind::VggBlstmCtc).then_some([channels, 2 * channels]);
    BlstmCtc::new(Sizes {
        inputs: if vgg.is_some() { spec.size("F") } else { INPUTS },
        vgg,
        units,
        projection: units,
        subsample,
        dropout: 0.0,
        symbols: SYMBOLS,
    })
}

/// ESPnet v1's filters over the attention, and its weight of the CTC loss.
fn attention_model(spec: &Spec) -> CtcAttention {
    let units = spec.size("H");
    let subsample = vec![1; spec.size("layers")];
    CtcAttention::new(ctc_attention::Sizes {
        encoder: EncoderSizes { inputs: INPUTS, vgg: None, units, projection: units, subsample, dropout: 0.0 },
        attention: spec.size("A"),
        channels: 10,
        reach: 100,
        decoder_units: spec.size("D"),
        ctc_weight: 0.5,
        label_smoothing: 0.0,
        unigrams: None,
        scheduled_sampling: 0.0,
        symbols: SYMBOLS,
    })
}

fn text_model(spec: &Spec) -> LstmLm {
    let dropouts =
        Dropouts { embedding: 0.0, input: 0.0, hidden: 0.0, output: 0.0, recurrent: 0.0, sharing: Sharing::Locked };
    let [vocabulary, embedding, units, layers] = ["V", "E", "H", "layers"].map(|name| spec.size(name));
    LstmLm::new(text::Sizes { vocabulary, embedding, units, layers, tied: true, dropouts })
}

fn learner<M: Network>(device: &Device, model: M, frozen: usize, update: UpdateOptions) -> Learner<M> {
    let parameters = Parameters::initialize(device, &model.structure().specs, Scheme::Espnet, 1);
    let groups = model.structure().groups.len();
    let frozen_groups: Vec<usize> = (groups - frozen..groups).collect();
    Learner::with_parameters(device, model, parameters, &frozen_groups, update)
}

fn masks() -> MaskKey {
    MaskKey { seed: 1, stage: "bench".into(), step: 0 }
}

fn step<M>(bench: &Bench, spec: &Spec, model: M, update: UpdateOptions) -> Result<Prepared>
where
    M: Recogniser + Clone + 'static,
{
    let (steps, count) = (spec.size("T"), spec.size("B"));
    let sequences = Sequences::new(&vec![steps; count])?;
    // The last symbol may be a transcript's end.
    let labels = bench.labels(count, LABELS.min(model.frames_after_subsampling(steps) / 2), SYMBOLS - 1);
    let features = bench.numbers("features", sequences.rows() * model.inputs());
    let batch = Batch { sequences, features, labels };
    let on = |device: &Device| learner(device, model.clone(), spec.size("frozen"), update);
    let bytes = least_bytes(&mut on(&Device::plan()), |learner| Ok(learner.train(&batch, &masks())?.kept))?;
    let mut learner = on(&bench.device);
    let masks = masks();
    let mut pending = None;
    let run = move |_| {
        // As the trainer does: a step is settled when the next one has been started.
        let running = learner.start(&batch, &masks)?;
        pending.replace(running).map_or(Ok(()), |before| learner.settle(before).map(|_| ()))
    };
    Ok(Prepared::new(bytes, run))
}

/// What a step moves at least: parameters into forward and backward, what backward keeps out and in again, gradients out, into their norm and
/// into the update, values and states into and out of that. As the device that only counts has it.
fn least_bytes<M: Network>(
    learner: &mut Learner<M>,
    kept: impl FnOnce(&mut Learner<M>) -> Result<u64>,
) -> Result<usize> {
    let kept = kept(learner)?;
    let device = learner.device().clone();
    let live = |category| device.ledger().live(category);
    let (gradients, states) = (live(Category::Gradient), live(Category::OptimizerState));
    let bytes = 2 * live(Category::Parameter) + 2 * kept + 3 * gradients + 2 * gradients + 2 * states;
    Ok(bytes as usize)
}

fn text_step(bench: &Bench, spec: &Spec) -> Result<Prepared> {
    let (streams, steps, layers) = (spec.size("B"), spec.size("T"), spec.size("layers"));
    let tokens = |name| bench.below(name, streams * steps, 0, spec.size("V"));
    let sequences = Sequences::new(&vec![steps; streams])?;
    let batch = TextBatch { sequences, tokens: tokens("tokens"), targets: tokens("targets") };
    let on = |device: &Device| learner(device, text_model(spec), spec.size("frozen"), TEXT_UPDATE);
    let masks = masks();
    let counted = |learner: &mut Learner<LstmLm>| {
        let mut carried = Carried::zeros(learner.device(), &text_model(spec), streams);
        Ok(learner.train_text(&batch, Some(&mut carried), &PLAIN, &masks)?.kept)
    };
    let bytes = least_bytes(&mut on(&Device::plan()), counted)?;
    let mut learner = on(&bench.device);
    let mut carried = Carried::zeros(&bench.device, &text_model(spec), streams);
    let mut pending = None;
    let run = move |_| {
        let running = learner.start_text(&batch, Some(&mut carried), &PLAIN, &masks)?;
        pending.replace(running).map_or(Ok(()), |before| learner.settle_text(before).map(|_| ()))
    };
    Ok(Prepared::new(bytes, run).waiting(2 * layers * steps, EXCHANGE))
}

const TRANSFORMER_UPDATE: UpdateOptions =
    UpdateOptions { method: Method::Adam { beta1: 0.9, beta2: 0.999 }, learning_rate: 1e-3, ..UPDATE };

/// The shape of ESPnet v1's for Switchboard.
fn transformer_sizes(spec: &Spec, decoders: usize) -> transformer::Sizes {
    transformer::Sizes {
        inputs: FILTERS,
        encoder_layers: spec.size("layers"),
        decoder_layers: decoders,
        units: spec.size("H"),
        heads: spec.size("heads"),
        feedforward: spec.size("F"),
        dropout: 0.1,
        attention_dropout: 0.0,
        ctc_weight: 0.3,
        label_smoothing: 0.1,
        symbols: SYMBOLS,
    }
}

/// A `transformer` of which only encoder layers are trained and run, so that little is above and below them.
fn encoder(device: &Device, spec: &Spec) -> Learner<Transformer> {
    // Fewer inputs leave the convolutions nothing.
    let sizes = transformer::Sizes { inputs: 7, attention_dropout: 0.1, symbols: 3, ..transformer_sizes(spec, 1) };
    let (layers, frozen) = (sizes.encoder_layers, spec.size("frozen"));
    let model = Transformer::new(sizes);
    let parameters = Parameters::initialize(device, &model.structure().specs, Scheme::Espnet, 1);
    // The front end is the lowest group; above the encoder layers are the decoder's and the softmax.
    let frozen_groups: Vec<usize> =
        (0..model.structure().groups.len()).filter(|&group| group == 0 || group > layers - frozen).collect();
    Learner::with_parameters(device, model, parameters, &frozen_groups, TRANSFORMER_UPDATE)
}

/// Starts a step on frames `[R, H]`; gives the bytes kept for backward too.
fn encode_and_update(
    learner: &mut Learner<Transformer>,
    frames: &Tensor,
    sequences: &Sequences,
    masks: &MaskKey,
) -> Result<(u64, Updating)> {
    let device = learner.device().clone();
    let recording = device.record();
    let mut tape = Tape::new(&device);
    let (parameters, frames) = (&learner.parameters, Var::constant(frames.clone()));
    let hidden = learner.model().encode_frames(&mut tape, parameters, frames, sequences, Some(masks))?;
    let loss = mean_square(&mut tape, &hidden)?;
    drop(hidden);
    let kept = device.ledger().live(Category::Activation);
    learner.parameters.gradients.clear();
    tape.backward(&loss, 1.0, &mut learner.parameters.gradients)?;
    drop(loss);
    let update = learner.updater.update(&device, &mut learner.parameters);
    recording.into_iter().for_each(Recording::run);
    device.check()?;
    Ok((kept, update))
}

fn encoder_step(bench: &Bench, spec: &Spec) -> Result<Prepared> {
    let sequences = Sequences::new(&vec![spec.size("T"); spec.size("B")])?;
    let (shape, masks) = ([sequences.rows(), spec.size("H")], masks());
    let counted = |learner: &mut Learner<Transformer>| {
        let frames = Tensor::zeros(learner.device(), &shape, Category::Parameter);
        encode_and_update(learner, &frames, &sequences, &masks).map(|(kept, _)| kept)
    };
    let bytes = least_bytes(&mut encoder(&Device::plan(), spec), counted)?;
    let mut learner = encoder(&bench.device, spec);
    // The rest of the model is there and nobody reads it.
    let Structure { specs, groups, .. } = learner.model().structure();
    let read = groups[1].parameters.start..groups[spec.size("layers")].parameters.end;
    let idle: usize =
        specs.iter().map(ParameterSpec::len).sum::<usize>() - specs[read].iter().map(ParameterSpec::len).sum::<usize>();
    let bytes = bytes - 2 * size_of::<f32>() * idle;
    let frames = bench.normal(&shape, "frames");
    let mut pending = None;
    Ok(Prepared::new(bytes, move |_| {
        let (_, update) = encode_and_update(&mut learner, &frames, &sequences, &masks)?;
        pending.replace(update).map(Updating::read);
        learner.device().check()
    }))
}

/// What freezing a group saves: these, for all its weights, at the sizes of the step.
struct WeightGradient {
    /// Gradient of the layer's output `[rows, outputs]`, and its input `[rows, inputs]`, both stored as `form` says.
    factors: (Tensor, Tensor),
    /// Of the first factor.
    form: Form,
    outputs: usize,
    inputs: usize,
    weight: usize,
    /// Whose gradients are the sums of the columns of the first factor.
    biases: Vec<usize>,
}

impl WeightGradient {
    /// Of a row of both factors.
    fn bytes(&self) -> usize {
        (self.outputs + self.inputs) * self.form.storage.bytes()
    }
}

fn saved(bench: &Bench, spec: &Spec) -> Result<Prepared> {
    let (layers, rows, frozen) = (spec.size("layers"), spec.size("B") * spec.size("T"), spec.size("frozen"));
    let device = bench.device.clone();
    let (structure, update) = match spec.kind {
        Kind::AwdSaved => (text_model(spec).structure().clone(), TEXT_UPDATE),
        _ => (model(spec, vec![1; layers]).structure().clone(), UPDATE),
    };
    let first = structure.groups[structure.groups.len() - frozen].parameters.start;
    let specs: Vec<ParameterSpec> = structure.specs[first..].to_vec();
    let mut parameters = Parameters::initialize(&device, &specs, Scheme::Espnet, 1);
    parameters.set_trainable(&device, vec![true; specs.len()]);
    let mut updater = Updater::new(&device, &parameters, update);
    let vocabulary = (spec.kind == Kind::AwdSaved).then(|| spec.size("V"));
    let gradients = Rc::new(weight_gradients(bench, &specs, rows, vocabulary));
    // Beside what the products read and write: gradients into their norm and the update, values and states in and out.
    let elements: usize = specs.iter().map(ParameterSpec::len).sum();
    let factors: usize = gradients.iter().map(WeightGradient::bytes).sum::<usize>() * rows;
    let states = update.method.state_names().len();
    let bytes = factors + elements * (1 + 2 + 2 + 2 * states) * size_of::<f32>();
    let mut pending = None;
    Ok(Prepared::new(bytes, move |_| {
        let recording = device.record();
        let mut tape = Tape::new(&device);
        let variables: Vec<_> = (0..parameters.len()).map(|index| parameters.var(index)).collect();
        let output = Tensor::zeros(&device, &[1], Category::Activation);
        let work = gradients.clone();
        let output = tape.record(&variables.iter().collect::<Vec<_>>(), output, move |_, backward| {
            for WeightGradient { factors: (dy, x), form, outputs, inputs, weight, biases } in &work[..] {
                let sink = backward.sink(Place::Parameter(*weight));
                let dy = Factor::rows(dy, form.row_stride).stored_as(form.storage);
                let x = Factor::rows(x, *inputs).stored_as(form.storage);
                product((*outputs, *inputs, rows), dy.transposed(), x, sink.tensor, sink.add);
                if let Some((&bias, others)) = biases.split_first() {
                    let mut sums = Tensor::uninitialized(backward.device(), &[*outputs], Category::Workspace);
                    column_sums(dy, rows, &mut sums, false);
                    backward.give_copy(Place::Parameter(bias), &sums);
                    others.iter().for_each(|&bias| backward.give_copy(Place::Parameter(bias), &sums));
                }
            }
            Ok(())
        });
        drop(variables);
        parameters.gradients.clear();
        tape.backward(&output, 1.0, &mut parameters.gradients)?;
        let update = updater.update(&device, &mut parameters);
        recording.into_iter().for_each(Recording::run);
        pending.replace(update).map(Updating::read);
        device.check()
    }))
}

/// One product for every weight. The biases that follow a weight have their gradient from the sums of its first factor's columns; those of an
/// LSTM direction, which has two weights, belong to the second. The gradient of a vocabulary's logits lies as they do in training.
fn weight_gradients(
    bench: &Bench,
    specs: &[ParameterSpec],
    rows: usize,
    vocabulary: Option<usize>,
) -> Vec<WeightGradient> {
    let mut work: Vec<WeightGradient> = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        match (&spec.shape[..], work.last_mut()) {
            (&[outputs, inputs], _) => {
                let form = match vocabulary {
                    Some(vocabulary) if vocabulary == outputs => Form::of_training(&bench.device, vocabulary),
                    _ => Form { storage: Storage::F32, row_stride: outputs },
                };
                let dy = stored(bench, form.storage, rows * form.row_stride, "gradient");
                let factors = (dy, stored(bench, form.storage, rows * inputs, "input"));
                work.push(WeightGradient { factors, form, outputs, inputs, weight: index, biases: Vec::new() });
            }
            (_, Some(last)) => last.biases.push(index),
            (_, None) => {}
        }
    }
    work
}

/// Lengths in frames of so many utterances, longest first: between these quantiles of utterances read from a newspaper, as WSJ si284's are (37,416
/// utterances in 81 hours, 7.8 seconds on average). Generated; no length is one of the corpus. `benches/torch_rows.py` has the same table.
pub fn wsj_lengths(count: usize) -> Vec<usize> {
    const QUANTILES: [(f64, f64); 9] = [
        (0.0, 80.0),
        (0.05, 300.0),
        (0.1, 390.0),
        (0.25, 570.0),
        (0.5, 780.0),
        (0.75, 955.0),
        (0.9, 1150.0),
        (0.99, 1560.0),
        (1.0, 2430.0),
    ];
    let length = |place: f64| {
        let above = QUANTILES.iter().position(|&(share, _)| share >= place).unwrap_or(QUANTILES.len() - 1).max(1);
        let ((low, shortest), (high, longest)) = (QUANTILES[above - 1], QUANTILES[above]);
        (shortest + (longest - shortest) * (place - low) / (high - low)) as usize
    };
    (0..count).rev().map(|k| length((k as f64 + 0.5) / count as f64)).collect()
}

/// An utterance of so many frames has about so many characters: 12.5 a second.
fn wsj_labels(frames: usize) -> usize {
    frames / 8
}

fn epoch(bench: &Bench, spec: &Spec) -> Result<Prepared> {
    let lengths = wsj_lengths(spec.size("N"));
    let sizes: Vec<(usize, usize)> = lengths.iter().map(|&frames| (frames, wsj_labels(frames))).collect();
    let plan = BatchPlan::new(&sizes, BatchLimits::default())?;
    // Twice half the frames, as recipes/wsj-ctc.toml has it.
    let subsample = (0..spec.size("layers")).map(|layer| if layer < 2 { 2 } else { 1 }).collect();
    let mut learner = learner(&bench.device, model(spec, subsample), spec.size("frozen"), UPDATE);
    let layers = spec.size("layers");
    let (mut batches, mut steps) = (Vec::new(), 0);
    for batch in plan.epoch(1, 1) {
        let sequences = Sequences::new(&batch.iter().map(|&utterance| lengths[utterance]).collect::<Vec<_>>())?;
        let labels = batch.iter().map(|&utterance| {
            bench.below(&format!("labels of {utterance}"), wsj_labels(lengths[utterance]), 1, SYMBOLS)
        });
        // The lowest layer sees all frames, the second half of them, the others a quarter; forward and backward.
        let longest = sequences.steps();
        steps += 2 * (0..layers).map(|layer| longest >> layer.min(2)).sum::<usize>();
        batches.push((sequences, labels.collect::<Vec<_>>()));
    }
    let most = batches.iter().map(|(sequences, _)| sequences.rows()).max().unwrap_or(0);
    let features = bench.numbers("features", most * INPUTS);
    let masks = masks();
    let run = move |_| {
        let mut pending = None;
        for (sequences, labels) in &batches {
            let features = features[..sequences.rows() * INPUTS].to_vec();
            let batch = Batch { sequences: sequences.clone(), features, labels: labels.clone() };
            let running = learner.start(&batch, &masks)?;
            if let Some(before) = pending.replace(running) {
                learner.settle(before)?;
            }
        }
        pending.map_or(Ok(()), |last| learner.settle(last).map(|_| ()))
    };
    Ok(Prepared::new(0, run).waiting(steps, EXCHANGE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::select;

    #[test]
    fn generated_utterances_are_as_long_as_those_of_wsj() {
        let lengths = wsj_lengths(37_400);
        let mean = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        assert!((770.0..790.0).contains(&mean), "{mean} frames");
        assert!(lengths.is_sorted_by(|a, b| a >= b));
        assert!(lengths[0] <= 2430 && lengths[37_399] >= 80);
    }

    #[test]
    fn a_step_trains_as_many_parameters_as_the_same_step_in_pytorch() {
        // Counted in the models of benches/torch_rows.py.
        for (row, wanted) in [
            ("transformer/12+6x256/B8-T800/joint", 27_196_516),
            ("transformer/12+6x256/B8-T800/frozen-1", 27_170_816),
            ("transformer/12+6x256/B8-T800/frozen-7", 17_684_992),
            ("vgg-blstm-ctc/6x320/B16-T400/joint", 17_428_978),
            ("vgg-blstm-ctc/6x320/B16-T400/frozen-1", 17_412_928),
            ("vgg-blstm-ctc/6x320/B16-T400/frozen-7", 259_008),
        ] {
            let spec = &select(&[row.into()]).unwrap()[0];
            let structure = match spec.kind {
                Kind::Transformer => {
                    Transformer::new(transformer_sizes(spec, spec.size("decoders"))).structure().clone()
                }
                _ => model(spec, vec![1; spec.size("layers")]).structure().clone(),
            };
            let trained = &structure.groups[..structure.groups.len() - spec.size("frozen")];
            let parameters = trained.iter().flat_map(|group| &structure.specs[group.parameters.clone()]);
            assert_eq!(parameters.map(ParameterSpec::len).sum::<usize>(), wanted, "{row}");
        }
    }
}
