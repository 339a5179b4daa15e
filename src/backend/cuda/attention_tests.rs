use super::*;
use crate::backend::cpu::testing::{assert_close, random};
use crate::backend::cuda::testing::{BOTH_ALIGNMENTS, Device, OnDevice, for_all_orders};
use crate::ops::sequences::Sequences;
use crate::random::MaskKey;
use std::cell::RefCell;

const ARITHMETICS: [Arithmetic; 3] = [Arithmetic::F32, Arithmetic::Tf32, Arithmetic::Bf16];

/// Half a unit in the last place of f32, relative.
const F32_UNIT: f64 = 1.0 / 16_777_216.0;

/// The same of what the products read: 2^-n for n bits of mantissa, the leading one among them.
fn unit(arithmetic: Arithmetic) -> f64 {
    match arithmetic {
        Arithmetic::F32 => F32_UNIT,
        Arithmetic::Tf32 => 2.0_f64.powi(-11),
        Arithmetic::Bf16 => 2.0_f64.powi(-8),
    }
}

fn rounded(x: f32, arithmetic: Arithmetic) -> f32 {
    match arithmetic {
        Arithmetic::F32 => x,
        Arithmetic::Tf32 => f32::from_bits((x.to_bits() + 0x1000) & !0x1fff),
        Arithmetic::Bf16 => half::bf16::from_f32(x).to_f32(),
    }
}

struct Case {
    queries: Vec<usize>,
    keys: Vec<usize>,
    of: Vec<usize>,
    heads: usize,
    width: usize,
    causal: bool,
    dropped: f64,
}

impl Case {
    fn within(lengths: &[usize], heads: usize, width: usize, causal: bool, dropped: f64) -> Case {
        let (queries, of) = (lengths.to_vec(), (0..lengths.len()).collect());
        Case { keys: queries.clone(), queries, of, heads, width, causal, dropped }
    }

    fn mask(&self) -> Option<Mask> {
        let key = MaskKey { seed: 3, stage: "joint".into(), step: 5 };
        (self.dropped > 0.0).then(|| Mask::new(&key, "self_attn", self.dropped).unwrap())
    }

    fn packings(&self) -> [Sequences; 2] {
        [&self.queries, &self.keys].map(|lengths| Sequences::new(lengths).unwrap())
    }

    fn columns(&self) -> usize {
        self.heads * self.width
    }

    /// q, k, v and the output's gradient.
    fn inputs(&self) -> [Vec<f32>; 4] {
        let [queries, keys] = self.packings().map(|sequences| sequences.rows() * self.columns());
        [(queries, 1), (keys, 2), (keys, 3), (queries, 4)].map(|(count, seed)| random(count, seed))
    }

    fn name(&self, arithmetic: Arithmetic) -> String {
        let Case { queries, keys, heads, width, causal, dropped, .. } = self;
        format!("{queries:?} to {keys:?}, {heads} x {width}, causal {causal}, drop {dropped}, {arithmetic:?}")
    }
}

/// Output and gradients of q, k, v in f64, from operands rounded as the products read them; and how far off an element of each may be: what
/// the later roundings can add up to, to first order. Those are of f32 and, of probabilities and slopes, the operands'.
struct Expected {
    values: [Vec<f64>; 4],
    most: [f64; 4],
}

fn expected(case: &Case, arithmetic: Arithmetic) -> Expected {
    let [queries, keys] = case.packings();
    let [q, k, v, dy] = case.inputs().map(|x| x.into_iter().map(|x| rounded(x, arithmetic)).collect::<Vec<_>>());
    let (columns, width, scale) = (case.columns(), case.width, 1.0 / (case.width as f64).sqrt());
    let (mask, unit) = (case.mask(), unit(arithmetic));
    // Terms of the longest sums: of f32, one after the other.
    let terms = (case.queries[0].max(case.keys[0]) * case.queries.len() + width) as f64;
    let mut values = [q.len(), q.len(), k.len(), k.len()].map(|count| vec![0.0; count]);
    let mut bounds = values.clone();
    for (sequence, &length) in case.queries.iter().enumerate() {
        let of = case.of[sequence];
        for (head, time) in (0..case.heads).flat_map(|head| (0..length).map(move |time| (head, time))) {
            let here = queries.row(sequence, time) * columns + head * width;
            let seen = if case.causal { time + 1 } else { case.keys[of] };
            let there = |key: usize| keys.row(of, key) * columns + head * width;
            // The product, and that of the absolute values.
            let dot = |a: &[f32], b: &[f32], key: usize| -> [f64; 2] {
                let product = |n: usize| f64::from(a[here + n]) * f64::from(b[there(key) + n]);
                [(0..width).map(product).sum(), (0..width).map(|n| product(n).abs()).sum()]
            };
            let factor = |key: usize| {
                let Some(mask) = &mask else { return 1.0 };
                let counter = [key as u32 / 4, time as u32, (sequence * case.heads + head) as u32, mask.step];
                if mask.philox.block(counter)[key % 4] >= mask.threshold { f64::from(mask.scale) } else { 0.0 }
            };
            let scores: Vec<[f64; 2]> = (0..seen).map(|key| dot(&q, &k, key).map(|x| scale * x)).collect();
            // Of a probability: the scores' sums, what is subtracted, the exponential, the sum of all.
            let largest_sum = scores.iter().map(|score| score[1]).fold(0.0, f64::max);
            let off = F32_UNIT * (2.0 * (width as f64 + 4.0) * largest_sum + 16.0 + seen as f64);
            let largest = scores.iter().map(|score| score[0]).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score[0] - largest).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|score| (score[0] - largest).exp() / total).collect();
            let slopes: Vec<[f64; 2]> = (0..seen).map(|key| dot(&dy, &v, key).map(|x| factor(key) * x)).collect();
            let mean = |i: usize| p.iter().zip(&slopes).map(|(p, slope)| p * slope[i]).sum::<f64>();
            let (mean, mean_size) = (mean(0), mean(1));
            for key in 0..seen {
                let (kept, slope) = (p[key] * factor(key), p[key] * (slopes[key][0] - mean) * scale);
                // It is rounded once more as an operand.
                let off_kept = kept * (off + unit + F32_UNIT * terms);
                // So is a slope. Its mean is a sum over dy and y, of which the one was not rounded and the other has probabilities that were.
                let size = p[key] * (slopes[key][1] + mean_size) * scale;
                let of_mean = 3.0 * unit * p[key] * mean_size * scale;
                let off_slope = slope.abs() * unit + of_mean + size * (2.0 * off + F32_UNIT * (terms + 8.0));
                for n in 0..width {
                    let (here, there) = (here + n, there(key) + n);
                    let [q, k, v, dy] = [q[here], k[there], v[there], dy[here]].map(f64::from);
                    let add = [(0, here, v, kept, off_kept), (1, here, k, slope, off_slope)];
                    let others = [(2, there, q, slope, off_slope), (3, there, dy, kept, off_kept)];
                    for (result, place, operand, factor, off) in add.into_iter().chain(others) {
                        values[result][place] += factor * operand;
                        bounds[result][place] += off * operand.abs();
                    }
                }
            }
        }
    }
    Expected { most: bounds.map(|bounds| bounds.into_iter().fold(0.0, f64::max)), values }
}

/// Output and gradients of q, k, v, those that are wanted. `behind`: rows of no sequence.
fn run_case(
    device: &Device,
    case: &Case,
    arithmetic: Arithmetic,
    (shift, behind, warps): (usize, usize, Option<usize>),
    wanted: [bool; 3],
) -> [Option<Vec<f32>>; 4] {
    let context = &device.context;
    let columns = case.columns();
    let sequences = case.packings();
    let packings = sequences.each_ref().map(|sequences| {
        let packing = sequences.on(context);
        Packing { rows: packing.rows + behind, ..packing }
    });
    let of: Vec<i32> = case.of.iter().map(|&of| of as i32).collect();
    let own = case.of.iter().enumerate().all(|(sequence, &of)| sequence == of);
    let of = (!own).then(|| device.upload(&of));
    let [queries, keys] = packings;
    let attention = Attention {
        heads: case.heads,
        width: case.width,
        queries,
        keys,
        of: of.as_ref().map(OnDevice::pointer),
        causal: case.causal,
        mask: case.mask(),
        arithmetic,
    };
    let more = |mut x: Vec<f32>| {
        x.resize(x.len() + behind * columns, 0.0);
        device.shifted(&x, shift)
    };
    let [q, k, v, dy] = case.inputs().map(more);
    let room = |rows: usize| device.poisoned::<f32>(rows * columns, shift);
    let (output, log_sums) = (room(queries.rows), device.poisoned::<f32>(queries.rows * case.heads, 0));
    let workspace = device.poisoned_bytes(attention.forward_workspace());
    let inputs = [q.pointer(), k.pointer(), v.pointer()];
    attention.forward_by(context, inputs, output.pointer(), log_sums.pointer(), workspace.pointer(), warps);
    let workspace = device.poisoned_bytes(attention.backward_workspace());
    let rooms = [queries.rows, keys.rows, keys.rows].map(room);
    let pointer = |i: usize| wanted[i].then(|| rooms[i].pointer());
    let gradients = Gradients { queries: pointer(0), keys: pointer(1), values: pointer(2) };
    let scored = (wanted[0] || wanted[1]).then(|| (v.pointer(), output.pointer()));
    let kept = Kept { q: q.pointer(), k: k.pointer(), scored, log_sums: log_sums.pointer() };
    attention.backward_by(context, &kept, dy.pointer(), &gradients, workspace.pointer(), warps);
    let [dq, dk, dv] = [0, 1, 2].map(|i| wanted[i].then(|| rooms[i].values()));
    [Some(output.values()), dq, dk, dv]
}

const ALL: [bool; 3] = [true; 3];

/// Lengths below, at and beyond a strip, a stage and a block; every depth, with zeros behind a head's columns and without.
fn cases() -> Vec<Case> {
    vec![
        Case::within(&[1], 1, 1, false, 0.0),
        Case::within(&[5, 3, 3, 1], 2, 3, false, 0.0),
        Case::within(&[16, 15], 1, 16, true, 0.0),
        Case::within(&[130, 64, 17], 2, 32, false, 0.2),
        Case::within(&[129, 65, 64], 1, 33, true, 0.3),
        Case::within(&[140, 32], 1, 64, true, 0.0),
        Case::within(&[70, 33, 2], 2, 64, false, 0.5),
        Case::within(&[67, 40], 1, 128, true, 0.1),
        Case::within(&[33], 1, 100, false, 0.0),
        // One of the keys has two readers and one none; more keys than queries and the reverse.
        Case {
            queries: vec![40, 9, 1],
            keys: vec![75, 20, 3],
            of: vec![2, 0, 0],
            heads: 2,
            width: 20,
            causal: false,
            dropped: 0.4,
        },
        Case {
            queries: vec![33, 20],
            keys: vec![50, 40],
            of: vec![1, 0],
            heads: 1,
            width: 64,
            causal: true,
            dropped: 0.0,
        },
    ]
}

#[test]
fn attention_and_its_gradients_agree_with_f64_in_every_arithmetic() {
    for case in cases() {
        for arithmetic in ARITHMETICS {
            let expected = expected(&case, arithmetic);
            let first = RefCell::new(None);
            for_all_orders(|device| {
                let found = run_case(device, &case, arithmetic, (0, 0, None), ALL).map(Option::unwrap);
                let parts = ["output", "dq", "dk", "dv"];
                for (((part, found), values), most) in parts.iter().zip(&found).zip(&expected.values).zip(expected.most)
                {
                    assert_close(found, values, most + 1e-30, 0.0, &format!("{part} of {}", case.name(arithmetic)));
                }
                let bits = found.map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>());
                let mut first = first.borrow_mut();
                let before = first.get_or_insert_with(|| bits.clone());
                assert!(*before == bits, "the order of the threads shows in {}", case.name(arithmetic));
            });
        }
    }
}

#[test]
fn neither_alignment_nor_the_warps_of_a_block_nor_rows_behind_change_a_bit() {
    let Some(device) = Device::new() else { return println!("skipped: the emulator was not built") };
    for case in [Case::within(&[70, 33, 2], 2, 32, true, 0.3), Case::within(&[40, 9], 1, 7, false, 0.0)] {
        for arithmetic in ARITHMETICS {
            let as_usual = run_case(&device, &case, arithmetic, (0, 0, None), ALL).map(Option::unwrap);
            for (shift, behind, warps) in
                BOTH_ALIGNMENTS.into_iter().flat_map(|shift| [1, 2, 4].map(|warps| (shift, warps, Some(warps))))
            {
                let found = run_case(&device, &case, arithmetic, (shift, behind, warps), ALL).map(Option::unwrap);
                for (found, usual) in found.iter().zip(&as_usual) {
                    let (rows, rest) = found.split_at(usual.len());
                    assert_eq!(rows, usual, "shift {shift}, {warps:?} warps of {}", case.name(arithmetic));
                    assert!(rest.iter().all(|&x| x == 0.0), "rows of no sequence are zero");
                }
            }
        }
    }
    device.context.check().unwrap();
}

#[test]
fn a_gradient_has_the_same_bits_whichever_others_are_wanted() {
    let Some(device) = Device::new() else { return println!("skipped: the emulator was not built") };
    let case = Case::within(&[40, 33, 2], 2, 32, true, 0.3);
    for arithmetic in ARITHMETICS {
        let all = run_case(&device, &case, arithmetic, (0, 0, None), ALL);
        for combination in 0..8 {
            let wanted = [0, 1, 2].map(|k| combination >> k & 1 == 1);
            let found = run_case(&device, &case, arithmetic, (0, 0, None), wanted);
            for (k, wanted) in wanted.into_iter().enumerate() {
                assert_eq!(found[k + 1], all[k + 1].clone().filter(|_| wanted), "{wanted:?}, {arithmetic:?}");
            }
        }
    }
    device.context.check().unwrap();
}

/// With all scores equal and unit vectors as values, the output shows every probability by itself; with unit vectors as its gradients, so
/// does the values' gradient.
#[test]
fn an_element_is_dropped_where_the_cpu_drops_it_forward_and_backward() {
    const LENGTH: usize = 100;
    for_all_orders(|device| {
        let context = &device.context;
        let sequences = Sequences::new(&[LENGTH]).unwrap();
        let packing = sequences.on(context);
        let key = MaskKey { seed: 9, stage: "joint".into(), step: 77 };
        let mask = Mask::new(&key, "self_attn", 0.4).unwrap();
        // Of two heads, so that the second's counters are seen too.
        let columns = 2 * LENGTH;
        let unit = |i: usize| if i / columns == i % LENGTH { 1.0 } else { 0.0 };
        let identity = device.upload(&(0..LENGTH * columns).map(unit).collect::<Vec<f32>>());
        let zeros = device.upload(&vec![0.0_f32; LENGTH * columns]);
        for arithmetic in ARITHMETICS {
            let (queries, keys) = (packing, packing);
            let attention = Attention {
                heads: 2,
                width: LENGTH,
                queries,
                keys,
                of: None,
                causal: false,
                mask: Some(mask),
                arithmetic,
            };
            let (output, dv) = (device.poisoned::<f32>(LENGTH * columns, 0), device.poisoned(LENGTH * columns, 0));
            let log_sums = device.poisoned::<f32>(2 * LENGTH, 0);
            let workspace = device.poisoned_bytes(attention.backward_workspace());
            let inputs = [zeros.pointer(), zeros.pointer(), identity.pointer()];
            attention.forward(context, inputs, output.pointer(), log_sums.pointer(), workspace.pointer());
            let kept = Kept { q: inputs[0], k: inputs[1], scored: None, log_sums: log_sums.pointer() };
            let gradients = Gradients { queries: None, keys: None, values: Some(dv.pointer()) };
            attention.backward(context, &kept, identity.pointer(), &gradients, workspace.pointer());
            let (output, dv): (Vec<f32>, Vec<f32>) = (output.values(), dv.values());
            let p = mask.scale / LENGTH as f32;
            for (query, key, head) in (0..LENGTH)
                .flat_map(|query| (0..LENGTH).map(move |key| (query, key)))
                .flat_map(|(query, key)| [(query, key, 0), (query, key, 1)])
            {
                let drawn = mask.philox.block([key as u32 / 4, query as u32, head as u32, mask.step])[key % 4];
                let found = [output[query * columns + head * LENGTH + key], dv[key * columns + head * LENGTH + query]];
                for found in found {
                    if drawn >= mask.threshold {
                        assert!((found / p - 1.0).abs() < 0.01, "{found} for {p}");
                    } else {
                        assert_eq!(found, 0.0, "query {query}, key {key}, head {head}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_head_that_is_too_wide_is_an_error_that_says_so() {
    assert!(check(128).is_ok());
    let error = check(129).unwrap_err().to_string();
    assert!(error.contains("129") && error.contains("at most 128"), "{error}");
}
