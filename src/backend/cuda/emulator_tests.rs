//! The emulator's promises, kept by the kernels of `kernels/emulator/selftest.cu`.

use super::*;
use crate::random::Philox;
use std::fmt::Debug;

const ORDERS: [Order; 4] = [Order::Forward, Order::Reversed, Order::Shuffled(1), Order::Shuffled(2)];

/// How a kernel is launched; the tests name what differs from one block without shared memory.
#[derive(Clone, Copy)]
struct Launch {
    blocks: [u32; 3],
    threads: [u32; 3],
    shared: u32,
    cooperative: bool,
}

impl Launch {
    fn of(blocks: u32, threads: u32) -> Self {
        Launch { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared: 0, cooperative: false }
    }

    fn shared(self, bytes: usize) -> Self {
        Launch { shared: bytes as u32, ..self }
    }

    fn cooperative(self) -> Self {
        Launch { cooperative: true, ..self }
    }

    fn run(self, name: &str, slots: &[u64], order: Order) -> Result<(), String> {
        let kernel = find(name).ok_or_else(|| format!("no kernel {name}"))?;
        // SAFETY: the pointers are those of vectors as large as the kernels of this file need, mistakes included.
        unsafe { launch(kernel, self.blocks, self.threads, self.shared, self.cooperative, slots, order) }
    }
}

/// Without a compiler there is nothing to test, and the test says so.
fn skipped() -> bool {
    if !AVAILABLE {
        eprintln!("skipped: the emulator was not built, since no C++ compiler was found");
    }
    !AVAILABLE
}

fn pointer<T>(values: &mut [T]) -> u64 {
    values.as_mut_ptr() as u64
}

fn int(value: i32) -> u64 {
    u64::from(value as u32)
}

/// What `run` gives in each order: the same, as it asserts.
fn in_all_orders<T: PartialEq + Debug>(mut run: impl FnMut(Order) -> T) -> T {
    let first = run(ORDERS[0]);
    for order in &ORDERS[1..] {
        assert_eq!(run(*order), first, "{order:?}");
    }
    first
}

/// The reason for which a launch fails, in all orders; each holds all of `words`.
fn fails(launch: Launch, name: &str, mut slots: impl FnMut() -> Vec<u64>, words: &[&str]) {
    for order in ORDERS {
        let error = launch.run(name, &slots(), order).unwrap_err();
        assert!(error.contains(&format!("kernel {name}")), "{error}");
        for word in words {
            assert!(error.contains(word), "{order:?}: {error:?} lacks {word:?}");
        }
    }
}

#[test]
fn every_thread_knows_its_place() {
    if skipped() {
        return;
    }
    let (blocks, threads) = ([3, 4, 2], [5, 2, 3]);
    let places = in_all_orders(|order| {
        let mut places = vec![u32::MAX; 24 * 30];
        let launch = Launch { blocks, threads, ..Launch::of(1, 1) };
        launch.run("selftest_places", &[pointer(&mut places)], order).unwrap();
        places
    });
    let mut expected = Vec::new();
    for block in 0..24 {
        for thread in 0..30 {
            expected.push(
                thread % 5
                    + 10 * (thread / 5 % 2)
                    + 100 * (thread / 10)
                    + 1000 * (block % 3)
                    + 10_000 * (block / 3 % 4)
                    + 100_000 * (block / 12),
            );
        }
    }
    assert_eq!(places, expected);
}

#[test]
fn arguments_are_counted_sized_and_passed_at_their_own_size() {
    if skipped() {
        return;
    }
    let kernel = find("selftest_arguments").unwrap();
    let kinds: Vec<_> = parameters(kernel).iter().map(|parameter| (parameter.kind, parameter.bytes)).collect();
    let pointer_kind = (Kind::Pointer, 8);
    let values = [(Kind::Integer, 4), (Kind::Integer, 4), (Kind::Integer, 8), (Kind::Integer, 8), (Kind::Float, 4)];
    let expected: Vec<_> = values.into_iter().flat_map(|value| [pointer_kind, value]).collect();
    assert_eq!(kinds, expected);

    let sizes = [8, 4, 8, 4, 8, 8, 8, 8, 8, 4];
    assert_eq!(check_arguments(kernel, &sizes), Ok(()));
    assert_eq!(check_arguments(kernel, &sizes[1..]).unwrap_err(), "9 arguments for a kernel that takes 10");
    let swapped = [8, 8, 4, 4, 8, 8, 8, 8, 8, 4];
    assert_eq!(check_arguments(kernel, &swapped).unwrap_err(), "argument 1 has 8 bytes, the kernel's has 4");

    let (mut i, mut u, mut l, mut ul, mut f) = ([0_i32], [0_u32], [0_i64], [0_u64], [0_f32]);
    // What stands behind a small argument in its slot plays no part.
    let garbage = 0xdead_beef_0000_0000;
    let slots = [
        pointer(&mut i),
        garbage | int(-7),
        pointer(&mut u),
        garbage | 0xffff_fff0,
        pointer(&mut l),
        i64::MIN as u64,
        pointer(&mut ul),
        u64::MAX - 1,
        pointer(&mut f),
        garbage | u64::from(1.5_f32.to_bits()),
    ];
    Launch::of(1, 1).run("selftest_arguments", &slots, Order::Forward).unwrap();
    assert_eq!((i, u, l, ul, f), ([-7], [0xffff_fff0], [i64::MIN], [u64::MAX - 1], [1.5]));
    let error = Launch::of(1, 1).run("selftest_arguments", &slots[1..], Order::Forward).unwrap_err();
    assert_eq!(error, "9 arguments for a kernel that takes 10");
    assert_eq!(find("no_such_kernel"), None);
    assert_eq!((parameters(-1), threads(1_000_000)), (vec![], None));
}

#[test]
fn a_reduction_has_the_same_bits_in_every_order() {
    if skipped() {
        return;
    }
    let (blocks, threads, count) = (7, 96, 10_000);
    let mut values: Vec<f32> = (0..count).map(|i| (i as f32).sin()).collect();
    let sums = in_all_orders(|order| {
        let mut sums = vec![f32::NAN; blocks];
        Launch::of(blocks as u32, threads as u32)
            .shared(32 * 4)
            .run("selftest_sum", &[pointer(&mut values), pointer(&mut sums), int(count)], order)
            .unwrap();
        sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>()
    });
    for (block, bits) in sums.iter().enumerate() {
        let mine = (0..count as usize).filter(|i| i / threads % blocks == block);
        let (sum, size) =
            mine.fold((0.0, 0.0), |(sum, size), i| (sum + f64::from(values[i]), size + f64::from(values[i]).abs()));
        // Each value passes through at most 15 + 5 + 3 sums (its thread's, its warp's, its block's), each of which rounds by 2^-24.
        let bound = size * 23.0 * f64::from(f32::EPSILON) / 2.0;
        assert!((f64::from(f32::from_bits(*bits)) - sum).abs() <= bound, "block {block}");
    }
}

fn scan(name: &str, order: Order) -> Vec<i32> {
    let mut values: Vec<i32> = (0..256).map(|i| i * i % 17 - 5).collect();
    Launch::of(1, 256).shared(256 * 4).run(name, &[pointer(&mut values)], order).unwrap();
    values
}

#[test]
fn a_missing_barrier_gives_other_bits_in_another_order() {
    if skipped() {
        return;
    }
    let mut sum = 0;
    let expected: Vec<i32> = (0..256)
        .map(|i| {
            sum += i * i % 17 - 5;
            sum
        })
        .collect();
    assert_eq!(in_all_orders(|order| scan("selftest_scan", order)), expected);
    let racy = |order| scan("selftest_scan_without_barrier", order);
    assert_ne!(racy(Order::Forward), racy(Order::Reversed));
    assert_ne!(racy(Order::Forward), racy(Order::Shuffled(1)));
    assert_ne!(racy(Order::Shuffled(1)), racy(Order::Shuffled(2)));
}

#[test]
fn what_an_order_finds_it_finds_again() {
    if skipped() {
        return;
    }
    for order in [Order::Reversed, Order::Shuffled(3)] {
        let first = scan("selftest_scan_without_barrier", order);
        // Another launch between them leaves no trace.
        scan("selftest_scan", Order::Shuffled(4));
        assert_eq!(scan("selftest_scan_without_barrier", order), first, "{order:?}");
        let first = ring("selftest_ring_without_barrier", 20, order).unwrap();
        assert_eq!(ring("selftest_ring_without_barrier", 20, order).unwrap(), first, "{order:?}");
    }
}

#[test]
fn tiles_pass_through_shared_memory() {
    if skipped() {
        return;
    }
    let (rows, columns) = (45, 70);
    let mut from: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
    let to = in_all_orders(|order| {
        let mut to = vec![f32::NAN; rows * columns];
        let launch = Launch { blocks: [3, 2, 1], threads: [32, 8, 1], shared: 32 * 33 * 4, cooperative: false };
        let slots = [pointer(&mut from), pointer(&mut to), int(rows as i32), int(columns as i32)];
        launch.run("selftest_transpose", &slots, order).unwrap();
        to
    });
    assert!((0..rows * columns).all(|i| to[i % columns * rows + i / columns] == i as f32));
}

#[test]
fn shuffles_and_votes_do_what_ptx_says() {
    if skipped() {
        return;
    }
    let results = in_all_orders(|order| {
        let mut results = vec![-1; 9 * 64];
        Launch::of(1, 64).run("selftest_shuffles", &[pointer(&mut results)], order).unwrap();
        results
    });
    for thread in 0..64_i32 {
        let (lane, first) = (thread % 32, thread / 32 * 32);
        let expected = [
            first + (lane + 5) % 32,
            if lane < 3 { thread } else { thread - 3 },
            if lane % 8 + 3 > 7 { thread } else { thread + 3 },
            first + (lane ^ 16),
            0b0100_1001_0010_0100_1001_0010_0100_1001,
            i32::from(first == 32),
            i32::from(first == 0),
            (first + 30) / 2,
            if lane % 2 == 1 { 0xaaaa } else { 0x5555_0000 },
        ];
        let got: Vec<i32> = (0..9).map(|row| results[row * 64 + thread as usize]).collect();
        assert_eq!(got, expected, "thread {thread}");
    }
}

#[test]
fn a_missing_syncwarp_shows() {
    if skipped() {
        return;
    }
    let run = |name: &str, order| {
        let mut results = vec![0; 64];
        Launch::of(1, 64).shared(2 * 4).run(name, &[pointer(&mut results)], order).unwrap();
        results
    };
    let expected: Vec<i32> = (0..64).map(|thread| thread / 32 + 1).collect();
    assert_eq!(in_all_orders(|order| run("selftest_broadcast", order)), expected);
    for order in ORDERS {
        assert_ne!(run("selftest_broadcast_without_syncwarp", order), expected, "{order:?}");
    }
}

fn ring(name: &str, blocks: usize, order: Order) -> Result<Vec<u32>, String> {
    let rounds = 5;
    let mut boxes: Vec<u32> = (0..2 * blocks as u32).collect();
    let mut state = [0_u32];
    Launch::of(blocks as u32, 64).cooperative().run(
        name,
        &[pointer(&mut boxes), pointer(&mut state), int(rounds)],
        order,
    )?;
    if name == "selftest_ring" {
        assert_eq!(state, [rounds as u32 * blocks as u32], "the counter is left at a multiple of the blocks");
    }
    Ok(boxes)
}

#[test]
fn all_blocks_meet_in_a_grid_barrier() {
    if skipped() {
        return;
    }
    // Many more blocks than processors.
    for blocks in [1, 2, 150] {
        let mut expected: Vec<u32> = (0..blocks as u32).collect();
        for _ in 0..5 {
            expected =
                (0..blocks).map(|i| expected[i].wrapping_add(3_u32.wrapping_mul(expected[(i + 1) % blocks]))).collect();
        }
        let boxes = in_all_orders(|order| ring("selftest_ring", blocks, order).unwrap());
        assert_eq!(boxes[blocks..], expected, "{blocks} blocks");
    }
    let racy = |order| ring("selftest_ring_without_barrier", 20, order).unwrap();
    assert_ne!(racy(Order::Reversed), racy(Order::Shuffled(1)));
}

#[test]
fn groups_of_blocks_meet_apart() {
    if skipped() {
        return;
    }
    let sums = in_all_orders(|order| {
        let (mut sums, mut states) = ([0_u32; 2], [0_u32; 2]);
        let slots = [pointer(&mut sums), pointer(&mut states), int(9)];
        Launch::of(8, 64).cooperative().run("selftest_two_rings", &slots, order).unwrap();
        sums
    });
    assert_eq!(sums, [4 * 9, 4 * 18]);
}

#[test]
fn blocks_that_never_come_are_an_error() {
    if skipped() {
        return;
    }
    let mut state = [0_u32];
    let mut slots = |start: u32| {
        state = [start];
        vec![pointer(&mut state), int(6)]
    };
    let words = [
        "block (",
        "waits in vain in grid_barrier at selftest.cu:",
        "for its counter to reach 7, it is at 6",
        "6 of 7 blocks wait in a grid_barrier, 1 ended without reaching it",
    ];
    fails(Launch::of(7, 32).cooperative(), "selftest_lost_blocks", || slots(0), &words);
    fails(Launch::of(7, 32), "selftest_lost_blocks", || slots(0), &["in a launch that is not cooperative"]);
    // The counter begins wrong: some find the barrier open too early, and the others wait.
    let words = ["for its counter to reach 14, it is at 9", "2 of 7 blocks wait"];
    fails(Launch::of(7, 32).cooperative(), "selftest_lost_blocks", || slots(3), &words);
}

#[test]
fn bfloat16_rounds_to_nearest_even() {
    if skipped() {
        return;
    }
    // Every exponent with ties, their neighbours, and the carry into the next one; then numbers at random.
    let mut values = vec![f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001)];
    for top in 0..=0xffff_u32 {
        if top % 128 < 3 || top % 128 > 125 {
            values.extend([0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(top << 16 | low)));
        }
    }
    let random = Philox::new(1);
    values.extend((0..10_000).map(|i| f32::from_bits(random.block([i, 0, 0, 0])[0])));
    let (mut bits, mut back) = (vec![0_u32; values.len()], vec![0_f32; values.len()]);
    let slots = [pointer(&mut values), pointer(&mut bits), pointer(&mut back), int(bits.len() as i32)];
    Launch::of(1, 256).run("selftest_bfloat16", &slots, Order::Forward).unwrap();
    for (i, &value) in values.iter().enumerate() {
        // A NaN becomes the one that a GPU makes of it.
        let expected = if value.is_nan() { 0x7fff } else { half::bf16::from_f32(value).to_bits() };
        assert_eq!(bits[i], u32::from(expected), "{value:e}");
        assert_eq!(back[i].to_bits(), u32::from(expected) << 16, "{value:e}");
    }
}

#[test]
fn a_barrier_that_some_threads_miss_is_an_error() {
    if skipped() {
        return;
    }
    let words = ["200 of 256 threads wait at the barrier at selftest.cu:", "56 ended without reaching it", "block ("];
    fails(Launch::of(3, 256), "selftest_lost_threads", || vec![int(200)], &words);
    let words = ["thread (", "waits at the barrier at selftest.cu:", "while others wait at the one at selftest.cu:"];
    fails(Launch::of(1, 256), "selftest_divergent", Vec::new, &words);
    // Nobody misses it, everybody does.
    for threads in [256, 0] {
        for order in ORDERS {
            Launch::of(3, 256).run("selftest_lost_threads", &[int(threads)], order).unwrap();
        }
    }
}

#[test]
fn a_warp_primitive_that_a_lane_misses_is_an_error() {
    if skipped() {
        return;
    }
    let missing = |how: i32, words: &[&str]| {
        fails(Launch::of(2, 64), "selftest_missing_lane", || vec![int(37), int(how)], words);
    };
    missing(0, &["waits in __shfl_xor_sync at selftest.cu:", "for lane 5 of its warp, which has ended"]);
    // The other warp waits in the barrier behind it, so this is a barrier in a branch as well, and found as such.
    missing(1, &["waits at the barrier at selftest.cu:"]);
    missing(2, &["for lane 5 of its warp, which waits in __any_sync"]);
    missing(3, &["for lane 5 of its warp, which waits in __syncwarp"]);
    missing(4, &["thread (37, 0, 0): is not in the mask that it gives to __syncwarp"]);
    // The only warp there is: nobody is at another barrier.
    let barrier = |order| Launch::of(1, 32).run("selftest_missing_lane", &[int(5), int(1)], order).unwrap_err();
    let words = "for lane 5 of its warp, which waits at the barrier at selftest.cu:";
    assert!(barrier(Order::Forward).contains(words), "{}", barrier(Order::Forward));
    // A full mask on less than a warp.
    let error = Launch::of(1, 40).run("selftest_missing_lane", &[int(-1), int(0)], Order::Forward).unwrap_err();
    assert!(error.contains("for lane 8 of its warp, which does not exist: the block has 40 threads"), "{error}");
    let words = ["__shfl_down_sync at selftest.cu:", "lane 15 reads lane 16, which is not in the mask"];
    fails(Launch::of(1, 32), "selftest_stray_source", Vec::new, &words);
}

/// AddressSanitizer, of which `kernels/emulator/test.sh` tells, ends the process at a write that these tests let the guard zones find.
fn is_sanitized() -> bool {
    std::env::var_os("HEADFIRST_EMULATOR_SANITIZE").is_some()
}

#[test]
fn a_write_beside_the_shared_memory_is_an_error() {
    if skipped() {
        return;
    }
    let launch = Launch::of(2, 32).shared(100);
    for order in ORDERS {
        launch.run("selftest_write", &[int(24), int(1)], order).unwrap();
        launch.run("selftest_write", &[int(0), int(1)], order).unwrap();
    }
    if is_sanitized() {
        return;
    }
    for value in [0, -1] {
        let write = |index: i32, at: &str| {
            let at = format!("wrote outside its 100 bytes of shared memory, at byte {at}");
            fails(launch, "selftest_write", || vec![int(index), int(value)], &["block (", &at]);
        };
        write(25, "100");
        write(-1, "-4");
        write(25 + 255, "1120");
    }
}

#[test]
fn shared_memory_begins_as_nan() {
    if skipped() {
        return;
    }
    // Again and again, also where a kernel wrote before.
    for order in ORDERS {
        scan("selftest_scan", order);
        let mut bits = vec![0_u32; 256];
        Launch::of(1, 256).shared(1024).run("selftest_poison", &[pointer(&mut bits)], order).unwrap();
        assert_eq!(bits, vec![0xffff_ffff; 256]);
    }
}

#[test]
fn a_trap_names_its_thread() {
    if skipped() {
        return;
    }
    fails(Launch::of(2, 64), "selftest_trap", || vec![int(5)], &["thread (5, 0, 0): __trap() at selftest.cu:"]);
}

#[test]
fn a_launch_that_a_gpu_would_refuse_is_refused() {
    if skipped() {
        return;
    }
    let refused = |launch: Launch, name: &str, slots: &[u64], words: &str| {
        let error = launch.run(name, slots, Order::Forward).unwrap_err();
        assert!(error.contains(words) && error.contains(name), "{error}");
    };
    assert_eq!(threads(find("selftest_trap").unwrap()), Some(64));
    refused(Launch::of(1, 65), "selftest_trap", &[0], "65 threads a block, its bound is 64");
    refused(Launch::of(1, 2048), "selftest_places", &[0], "a block larger than 1024 x 1024 x 64");
    let square = Launch { threads: [64, 32, 1], ..Launch::of(1, 1) };
    refused(square, "selftest_places", &[0], "2048 threads a block, at most 1024");
    refused(Launch::of(0, 32), "selftest_trap", &[0], "of size 0");
    refused(Launch::of(1, 0), "selftest_trap", &[0], "of size 0");
    let tall = Launch { blocks: [1, 65_536, 1], ..Launch::of(1, 1) };
    refused(tall, "selftest_trap", &[0], "a grid larger than 2147483647 x 65535 x 65535");
    let large = 227 * 1024;
    Launch::of(1, 32).shared(large).run("selftest_trap", &[int(-1)], Order::Forward).unwrap();
    refused(
        Launch::of(1, 32).shared(large + 1),
        "selftest_trap",
        &[0],
        "232449 bytes of shared memory, at most 232448",
    );
}

#[test]
fn every_block_runs_once_and_atomics_lose_nothing() {
    if skipped() {
        return;
    }
    let counts = in_all_orders(|order| {
        let mut counts = [0_u32; 3];
        Launch::of(500, 96).run("selftest_atomics", &[pointer(&mut counts)], order).unwrap();
        counts
    });
    assert_eq!(counts, [48_000, 47_999, u32::MAX]);
}

#[test]
fn vectors_load_four_at_a_time() {
    if skipped() {
        return;
    }
    // The kernel reads float4: the vectors begin at multiples of 16 bytes.
    let sum = in_all_orders(|order| {
        let mut x = vec![0_u128; 251];
        let mut y = x.clone();
        let (from, to): (&mut [f32], &mut [f32]) = (bytemuck::cast_slice_mut(&mut x), bytemuck::cast_slice_mut(&mut y));
        for i in 0..1003 {
            (from[i], to[i]) = (i as f32, 0.5);
        }
        Launch::of(4, 64).run("selftest_add", &[pointer(from), pointer(to), int(1002)], order).unwrap();
        to[..1003].to_vec()
    });
    assert!((0..1002).all(|i| sum[i] == i as f32 + 0.5) && sum[1002] == 0.5);
}

#[test]
fn copies_arrive_when_they_are_waited_for_and_not_before() {
    if skipped() {
        return;
    }
    let (steps, threads) = (7, 64);
    let mut from: Vec<f32> = (0..steps * threads * 4).map(|i| i as f32 + 1.0).collect();
    let mut run = |mistake: i32, order| {
        let mut to = vec![0_f32; from.len()];
        let last = 12;
        Launch::of(1, threads as u32)
            .shared(2 * threads * 16)
            .run(
                "selftest_pipeline",
                &[pointer(&mut from), pointer(&mut to), int(steps as i32), int(last), int(mistake)],
                order,
            )
            .unwrap();
        to
    };
    let expected: Vec<f32> = (0..steps * threads * 4)
        .map(|i| {
            let (step, thread, element) = (i / (threads * 4), i / 4 % threads, i % 4);
            let copied = (step * threads + (thread + 1) % threads) * 4 + element;
            if step == steps - 1 && element == 3 { 0.0 } else { copied as f32 + 1.0 }
        })
        .collect();
    for order in ORDERS {
        assert_eq!(run(0, order), expected, "{order:?}");
        assert!(run(1, order).iter().any(|value| value.is_nan()), "a missing wait, {order:?}");
        assert!(run(2, order).iter().any(|value| value.is_nan()), "a buffer filled too early, {order:?}");
    }
}

#[test]
fn launches_of_several_threads_do_not_meet() {
    if skipped() {
        return;
    }
    std::thread::scope(|scope| {
        for thread in 0..6 {
            scope.spawn(move || {
                for turn in 0..20 {
                    let order = ORDERS[(thread + turn) % 4];
                    match thread {
                        // Errors stay with who made them.
                        0 => fails(Launch::of(3, 64), "selftest_lost_threads", || vec![int(1)], &["63 ended"]),
                        1 => fails(Launch::of(9, 64), "selftest_trap", || vec![int(1)], &["__trap()"]),
                        2 => _ = scan("selftest_scan", order),
                        _ => {
                            let boxes = ring("selftest_ring", 10, order).unwrap();
                            assert_eq!(boxes, ring("selftest_ring", 10, Order::Reversed).unwrap());
                        }
                    }
                }
            });
        }
    });
}
