//! The decoder on the emulated device against the CPU's, which tests/ops.rs holds against its definition in f64.

use super::super::testing::{Device, OnDevice, for_all_orders};
use super::*;
use crate::backend::cpu::attention::Packing as HostPacking;
use crate::backend::cpu::attention_decoder as cpu;
use crate::backend::cpu::testing::{offsets, random};

/// Frames, symbols, of which utterance, then D, E, A, C, K, H.
type Case = (&'static [usize], &'static [usize], &'static [usize], [usize; 6]);

/// More frames and units than a block takes, more columns, taps beyond both ends, channels that are and are no multiple of four.
const CASES: [Case; 5] = [
    (&[1], &[1], &[0], [1, 1, 1, 1, 1, 1]),
    (&[70, 33, 20], &[4, 2], &[2, 0], [3, 70, 150, 5, 21, 6]),
    (&[34, 7, 7], &[3, 3, 1], &[1, 2, 0], [5, 9, 12, 4, 101, 7]),
    (&[300, 2], &[2, 1], &[0, 1], [2, 5, 3, 2, 3, 4]),
    // More rows than a product takes at a time, and more depth.
    (&[5; 18], &[2; 18], &[17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0], [2, 3, 6, 1, 3, 70]),
];

struct Sizes {
    frames: Vec<usize>,
    tokens: Vec<usize>,
    of: Vec<usize>,
    sizes: [usize; 6],
    offsets: [Vec<usize>; 2],
}

/// What the device holds of them.
struct There {
    offsets: [OnDevice<i32>; 2],
    lengths: [OnDevice<i32>; 2],
    readers: [OnDevice<i32>; 3],
}

fn integers(device: &Device, values: &[usize]) -> OnDevice<i32> {
    device.upload(&values.iter().map(|&x| x as i32).collect::<Vec<_>>())
}

impl Sizes {
    fn new(frames: &[usize], tokens: &[usize], of: &[usize], sizes: [usize; 6]) -> Self {
        let offsets = [offsets(frames), offsets(tokens)];
        Sizes { frames: frames.to_vec(), tokens: tokens.to_vec(), of: of.to_vec(), sizes, offsets }
    }

    fn on_host(&self) -> cpu::Decoder<'_> {
        let [embedding, frame, attention, channels, taps, hidden] = self.sizes;
        cpu::Decoder {
            tokens: HostPacking { offsets: &self.offsets[1], lengths: &self.tokens },
            frames: HostPacking { offsets: &self.offsets[0], lengths: &self.frames },
            of: &self.of,
            embedding,
            frame,
            attention,
            channels,
            taps,
            hidden,
        }
    }

    fn upload(&self, device: &Device) -> There {
        let mut starts = vec![0];
        for (n, length) in self.tokens.iter().enumerate() {
            starts.push(starts[n] + length * self.frames[self.of[n]]);
        }
        let reader = |utterance| self.of.iter().position(|&of| of == utterance).map_or(-1, |n| n as i32);
        let readers: Vec<i32> = (0..self.frames.len()).map(reader).collect();
        There {
            offsets: [integers(device, &self.offsets[0]), integers(device, &self.offsets[1])],
            lengths: [integers(device, &self.frames), integers(device, &self.tokens)],
            readers: [integers(device, &self.of), integers(device, &starts), device.upload(&readers)],
        }
    }

    fn on_device(&self, there: &There) -> Decoder<'_> {
        let [embedding, frame, attention, channels, taps, hidden] = self.sizes;
        let packing = |k: usize, lengths: &[usize]| Packing {
            offsets: there.offsets[k].pointer(),
            lengths: there.lengths[k].pointer(),
            steps: lengths[0],
            rows: lengths.iter().sum(),
            sequences: lengths.len(),
        };
        Decoder {
            tokens: packing(1, &self.tokens),
            frames: packing(0, &self.frames),
            token_offsets: &self.offsets[1],
            utterances: there.readers[0].pointer(),
            starts: there.readers[1].pointer(),
            readers: there.readers[2].pointer(),
            embedding,
            frame,
            attention,
            channels,
            taps,
            hidden,
            arithmetic: Arithmetic::F32,
        }
    }

    /// Elements of the operands, in the order of ops::attention_decoder::Operands.
    fn operands(&self) -> [usize; 11] {
        let [d, e, a, c, k, h] = self.sizes;
        let (rows, symbols) = (self.frames.iter().sum::<usize>(), self.tokens.iter().sum::<usize>());
        [rows * e, rows * a, symbols * d, a * h, c * k, a * c, a, 4 * h * (d + e), 4 * h * h, 4 * h, 4 * h]
    }

    /// Elements of z, cells, gates, what is read on the device, attention.
    fn results(&self) -> [usize; 5] {
        let (symbols, [_, e, _, _, _, h]) = (self.tokens.iter().sum::<usize>(), self.sizes);
        [symbols * h, symbols * h, symbols * 4 * h, symbols * (e + h), self.on_host().attention_length()]
    }

    /// Roundings that stand behind an element, about.
    fn depth(&self) -> usize {
        let [d, e, a, _, k, h] = self.sizes;
        (self.tokens[0] + 1) * (self.frames[0] + a + e + d + 4 * h + k + 40)
    }
}

fn weights_on_host<'a>(operands: &'a [Vec<f32>]) -> cpu::Weights<'a> {
    let weight = |k: usize| &operands[k][..];
    cpu::Weights {
        query: weight(3),
        taps: weight(4),
        location: weight(5),
        energy: weight(6),
        input: weight(7),
        recurrent: weight(8),
        biases: [weight(9), weight(10)],
    }
}

fn weights_on_device(operands: &[OnDevice<f32>]) -> Weights {
    let weight = |k: usize| operands[k].pointer();
    Weights {
        query: weight(3),
        taps: weight(4),
        location: weight(5),
        energy: weight(6),
        input: weight(7),
        recurrent: weight(8),
        biases: [weight(9), weight(10)],
    }
}

fn close(what: &str, found: &[f32], expected: &[f32], depth: usize) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let bound = f32::EPSILON * depth as f32 * largest.max(f32::MIN_POSITIVE);
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() <= bound,
            "{what}[{index}] is {found}, not {expected}, by more than {bound:e}"
        );
    }
}

fn forward_on_host(sizes: &Sizes, operands: &[Vec<f32>], initial: Option<&[Vec<f32>; 3]>) -> [Vec<f32>; 5] {
    let [hidden, cells, gates, read, attention] = sizes.results();
    let e = sizes.sizes[1];
    let mut results = [hidden, cells, gates, read / (e + sizes.sizes[5]) * e, attention].map(|count| vec![0.0; count]);
    let [z, c, g, contexts, a] = &mut results;
    let initial = initial.map(|[h, c, a]| cpu::Initial { hidden: h, cell: c, attention: a });
    let results_there = cpu::Results { hidden: z, cells: c, gates: g, contexts, attention: a };
    let inputs = [&operands[0][..], &operands[1], &operands[2]];
    sizes.on_host().forward(inputs, &weights_on_host(operands), initial, results_there);
    results
}

fn inputs_on_device(operands: &[OnDevice<f32>]) -> Inputs {
    Inputs { frames: operands[0].pointer(), encoded: operands[1].pointer(), embedded: operands[2].pointer() }
}

fn forward_on_device(
    device: &Device,
    of: &Decoder,
    counts: [usize; 5],
    operands: &[OnDevice<f32>],
    initial: Option<Initial>,
) -> ([OnDevice<f32>; 5], Results) {
    let tensors = counts.map(|count| device.poisoned::<f32>(count, 0));
    let [hidden, cells, gates, read, attention] = [0, 1, 2, 3, 4].map(|k: usize| tensors[k].pointer());
    let results = Results { hidden, cells, gates, read, attention };
    let workspace = device.poisoned_bytes(forward_workspace(of));
    let (inputs, weights) = (inputs_on_device(operands), weights_on_device(operands));
    forward(&device.context, of, inputs, &weights, initial, results, workspace.pointer());
    (tensors, results)
}

#[test]
fn all_steps_and_their_gradients_are_those_of_the_cpu() {
    for_all_orders(|device| {
        for case in CASES {
            let sizes = Sizes::new(case.0, case.1, case.2, case.3);
            let operands: Vec<Vec<f32>> =
                sizes.operands().iter().enumerate().map(|(k, &count)| random(count, k as u64)).collect();
            let expected = forward_on_host(&sizes, &operands, None);
            let there = sizes.upload(device);
            let of = sizes.on_device(&there);
            let uploaded: Vec<OnDevice<f32>> = operands.iter().map(|values| device.upload(values)).collect();
            let (tensors, results) = forward_on_device(device, &of, sizes.results(), &uploaded, None);
            for (name, k) in [("z", 0), ("cells", 1), ("gates", 2), ("attention", 4)] {
                close(&format!("{name} of {case:?}"), &tensors[k].values(), &expected[k], sizes.depth());
            }

            let dy = random(sizes.results()[0], 20);
            let mut there: Vec<Vec<f32>> = operands.iter().map(|values| vec![0.0; values.len()]).collect();
            let mut places = there.iter_mut().map(|gradient| Some(&mut gradient[..]));
            let [frames, encoded, embedded, query, taps, location, energy, input, recurrent, bias] =
                std::array::from_fn(|_| places.next().expect("eleven operands"));
            let gradients =
                cpu::Gradients { frames, encoded, embedded, query, taps, location, energy, input, recurrent, bias };
            let [hidden, cells, gates, contexts, attention] = &expected;
            let kept = cpu::Kept { hidden, cells, gates, contexts, attention };
            let inputs = [&operands[0][..], &operands[1], &operands[2]];
            sizes.on_host().backward(inputs, &weights_on_host(&operands), kept, &dy, gradients);

            let to: Vec<OnDevice<f32>> =
                operands.iter().map(|values| device.poisoned::<f32>(values.len(), 0)).collect();
            let place = |k: usize| Some(to[k].pointer());
            let gradients = Gradients {
                frames: place(0),
                encoded: place(1),
                embedded: place(2),
                query: place(3),
                taps: place(4),
                location: place(5),
                energy: place(6),
                input: place(7),
                recurrent: place(8),
                bias: place(9),
            };
            let workspace = device.poisoned_bytes(backward_workspace(&of));
            let (inputs, weights) = (inputs_on_device(&uploaded), weights_on_device(&uploaded));
            let dy = device.upload(&dy);
            let context = &device.context;
            backward(context, &of, inputs, &weights, results, dy.pointer(), &gradients, workspace.pointer());
            for k in 0..10 {
                let what = format!("gradient {k} of {case:?}");
                close(&what, &to[k].values(), &there[k], 4 * sizes.depth());
            }
        }
    });
}

#[test]
fn a_step_from_a_state_is_that_of_the_cpu_with_several_hypotheses_of_an_utterance() {
    for_all_orders(|device| {
        let sizes = Sizes::new(&[40, 9], &[1; 4], &[1, 0, 0, 1], [3, 6, 5, 3, 7, 4]);
        let operands: Vec<Vec<f32>> =
            sizes.operands().iter().enumerate().map(|(k, &count)| random(count, k as u64)).collect();
        let mut state = [random(16, 30), random(16, 31), random(98, 32)];
        state[2].iter_mut().for_each(|weight| *weight = weight.abs() / 30.0);
        let expected = forward_on_host(&sizes, &operands, Some(&state));
        let there = sizes.upload(device);
        let of = sizes.on_device(&there);
        let uploaded: Vec<OnDevice<f32>> = operands.iter().map(|values| device.upload(values)).collect();
        let state = state.map(|values| device.upload(&values));
        let initial = Initial { hidden: state[0].pointer(), cell: state[1].pointer(), attention: state[2].pointer() };
        let (tensors, _) = forward_on_device(device, &of, sizes.results(), &uploaded, Some(initial));
        for (name, k) in [("z", 0), ("cells", 1), ("attention", 4)] {
            close(name, &tensors[k].values(), &expected[k], sizes.depth());
        }
    });
}
