//! Rows of a table by token, and the table's gradient: `kernels/embedding.cu`, to the bits of `backend::cpu::embedding`.

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::{THREADS, fill, over, run};
use super::sequences::mask_arguments;
use crate::backend::cpu::embedding::{Grouping, PIECE};
use crate::random::Mask;

const FILE: &str = "embedding";
/// Columns that a warp takes, and warps of a block.
const WIDTH: usize = 128;
const WARPS: usize = THREADS as usize / 32;
/// No token.
const NONE: i32 = -1;

/// y = scales\[token\] weight\[token\] in every row; y: `[rows, columns]`, weight: `[vocabulary, columns]`, tokens: `[rows]`, 32-bit, scales:
/// `[vocabulary]`. A token that is not below `vocabulary` gives a row of zeros.
#[allow(clippy::too_many_arguments)] // A table, what is asked of it, and the answer.
pub fn gather(
    context: &Context,
    weight: Pointer,
    tokens: Pointer,
    scales: Option<Pointer>,
    y: Pointer,
    rows: usize,
    columns: usize,
    vocabulary: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let arguments = [
        Argument::Pointer(y),
        Argument::Pointer(weight),
        Argument::Pointer(tokens),
        Argument::Pointer(scales.unwrap_or(0)),
        Argument::int(rows),
        Argument::int(columns),
        Argument::int(vocabulary),
    ];
    run(context, FILE, "embedding_gather", &over(context, rows * columns), &arguments);
}

/// Embedding dropout: scales = the mask of a single frame of `vocabulary` units; scales: `[vocabulary]`. The step is the mask's, or the one
/// that the u64 at `counter` says when the kernel runs.
pub fn draw_scales(context: &Context, mask: &Mask, counter: Option<Pointer>, scales: Pointer, vocabulary: usize) {
    if vocabulary > 0 {
        let mut arguments = vec![Argument::Pointer(scales), Argument::int(vocabulary)];
        arguments.extend(mask_arguments(context, mask, counter));
        run(context, FILE, "embedding_mask", &over(context, vocabulary), &arguments);
    }
}

/// Tokens with more than one piece: each has more rows than a piece.
fn most_totals(rows: usize) -> usize {
    rows / (PIECE + 1)
}

/// The rows of each token, for [`gradient`], to be uploaded: `5 rows + 4 most_totals(rows)` integers, where `rows`, at least as many as
/// there are tokens, is the number that a graph was captured for.
///
/// # Panics
/// If there are more tokens than rows.
pub fn group(tokens: &[u32], vocabulary: usize, rows: usize) -> Vec<i32> {
    assert!(tokens.len() <= rows, "a batch of more tokens than rows");
    let grouping = Grouping::new(tokens, vocabulary);
    let mut pieces = Vec::with_capacity(rows);
    let mut totals = Vec::with_capacity(most_totals(rows));
    let (mut begin, mut partials) = (0, 0);
    for (token, group) in grouping.groups() {
        let count = group.len().div_ceil(PIECE);
        for (number, piece) in group.chunks(PIECE).enumerate() {
            let partial = if count == 1 { NONE } else { (partials + number) as i32 };
            pieces.push([token as i32, begin as i32, piece.len() as i32, partial]);
            begin += piece.len();
        }
        if count > 1 {
            totals.push([token as i32, partials as i32, count as i32, 0]);
            partials += count;
        }
    }
    pieces.resize(rows, [NONE; 4]);
    totals.resize(most_totals(rows), [NONE; 4]);
    let mut order: Vec<i32> = grouping.order.iter().map(|&row| row as i32).collect();
    order.resize(rows, NONE);
    [pieces.as_flattened(), totals.as_flattened(), &order].concat()
}

/// Bytes that [`gradient`] works in: a row for every piece of a token with several, fewer than 1 / 32 + 1 / 33 of all rows.
pub fn gradient_workspace(rows: usize, columns: usize) -> usize {
    rows / (PIECE / 2) * columns * size_of::<f32>()
}

/// dweight\[token\] = or, accumulating, += scales\[token\] times the sum of its rows of dy; dy: `[rows, columns]`, dweight: `[vocabulary,
/// columns]`, groups: what [`group`] gave for `rows`, aligned to 16 bytes. Without accumulating, words that do not occur get zero.
#[allow(clippy::too_many_arguments)] // As above.
pub fn gradient(
    context: &Context,
    dy: Pointer,
    groups: Pointer,
    scales: Option<Pointer>,
    dweight: Pointer,
    rows: usize,
    columns: usize,
    vocabulary: usize,
    accumulate: bool,
    workspace: Pointer,
) {
    if !accumulate {
        fill(context, dweight, 0.0, vocabulary * columns);
    }
    if rows == 0 || columns == 0 {
        return;
    }
    let totals = groups + (4 * rows * size_of::<i32>()) as u64;
    let order = totals + (4 * most_totals(rows) * size_of::<i32>()) as u64;
    // A warp for every strip of columns of every piece.
    let launch = |count: usize| {
        let warps = count * columns.div_ceil(WIDTH);
        Launch::blocks(u32::try_from(warps.div_ceil(WARPS)).unwrap_or(u32::MAX), THREADS)
    };
    let (dweight, scales) = (Argument::Pointer(dweight), Argument::Pointer(scales.unwrap_or(0)));
    let (partials, columns) = (Argument::Pointer(workspace), Argument::int(columns));
    let arguments = [
        dweight,
        Argument::Pointer(dy),
        Argument::Pointer(groups),
        Argument::Pointer(order),
        scales,
        partials,
        Argument::int(rows),
        columns,
        Argument::flag(accumulate),
    ];
    run(context, FILE, "embedding_gradient", &launch(rows), &arguments);
    let count = most_totals(rows);
    if count > 0 {
        let totals = Argument::Pointer(totals);
        let arguments = [dweight, partials, totals, scales, Argument::int(count), columns, Argument::flag(accumulate)];
        run(context, FILE, "embedding_totals", &launch(count), &arguments);
    }
}

#[cfg(all(test, feature = "emulator"))]
mod tests {
    use super::super::testing::{BOTH_ALIGNMENTS, for_all_orders};
    use super::*;
    use crate::backend::cpu;
    use crate::backend::cpu::testing::random;
    use crate::random::Philox;

    /// Tokens, words, columns: one of each; a word with many pieces; more columns than a warp; hardly a word twice; nothing.
    const SHAPES: [(usize, usize, usize); 6] =
        [(1, 1, 1), (200, 3, 5), (130, 2, 260), (700, 50, 36), (40, 900, 129), (0, 3, 4)];

    /// A skewed distribution, as of words; every thirteenth is no token.
    fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
        let skewed = |u: f32| ((u.abs().powi(4) * vocabulary as f32) as u32).min(vocabulary as u32 - 1);
        let all = random(count, 8).into_iter().map(skewed).enumerate();
        all.map(|(i, token)| if i % 13 == 12 { u32::MAX } else { token }).collect()
    }

    #[test]
    fn rows_are_gathered_as_on_the_cpu_and_no_token_gives_zeros() {
        for_all_orders(|device| {
            for ((count, vocabulary, columns), shift) in
                SHAPES.into_iter().flat_map(|s| BOTH_ALIGNMENTS.map(|a| (s, a)))
            {
                let (weight, scales) = (random(vocabulary * columns, 1), random(vocabulary, 2));
                let tokens = tokens(count, vocabulary);
                let [table, scales_there] = [&weight, &scales].map(|data| device.shifted(data, shift));
                let tokens_there = device.upload(&tokens);
                for scaled in [false, true] {
                    let mut expected = vec![f32::NAN; count * columns];
                    let on_host = scaled.then_some(&scales[..]);
                    cpu::embedding::gather(&weight, columns, &tokens, on_host, &mut expected);
                    let output = device.poisoned::<f32>(count * columns, shift);
                    let scales = scaled.then_some(scales_there.pointer());
                    let (table, tokens, to) = (table.pointer(), tokens_there.pointer(), output.pointer());
                    gather(&device.context, table, tokens, scales, to, count, columns, vocabulary);
                    assert_eq!(output.values(), expected);
                }
            }
        });
    }

    #[test]
    fn the_gradient_has_the_bits_of_the_cpu_for_rare_and_common_tokens() {
        for_all_orders(|device| {
            for ((count, vocabulary, columns), shift) in
                SHAPES.into_iter().flat_map(|s| BOTH_ALIGNMENTS.map(|a| (s, a)))
            {
                let tokens = tokens(count, vocabulary);
                // Rounded up, as for a graph: the rows behind are of no token and hold numbers.
                for rows in [count, count + 40] {
                    let (dy, before) = (random(rows * columns, 1), random(vocabulary * columns, 2));
                    let scales = random(vocabulary, 3);
                    let [gradient_there, scales_there] = [&dy, &scales].map(|data| device.shifted(data, shift));
                    let groups = device.upload(&group(&tokens, vocabulary, rows));
                    assert_eq!(groups.values().len(), 5 * rows + 4 * most_totals(rows));
                    let workspace = device.poisoned_bytes(gradient_workspace(rows, columns));
                    for (scaled, accumulate) in [(false, false), (true, true), (true, false)] {
                        let mut expected = before.clone();
                        let grouping = Grouping::new(&tokens, vocabulary);
                        let on_host = scaled.then_some(&scales[..]);
                        cpu::embedding::gradient(&dy, columns, &grouping, on_host, &mut expected, accumulate);
                        let sums = device.shifted(&before, shift);
                        gradient(
                            &device.context,
                            gradient_there.pointer(),
                            groups.pointer(),
                            scaled.then_some(scales_there.pointer()),
                            sums.pointer(),
                            rows,
                            columns,
                            vocabulary,
                            accumulate,
                            workspace.pointer(),
                        );
                        assert_eq!(sums.values(), expected, "{count} tokens, {rows} rows, {vocabulary} x {columns}");
                    }
                }
            }
        });
    }

    #[test]
    fn scales_are_those_of_the_cpu_at_the_step_of_the_mask_or_of_the_counter() {
        for_all_orders(|device| {
            for vocabulary in [1, 6, 1001] {
                let mask = |step| Mask { philox: Philox::new(77), step, threshold: 0x2000_0000, scale: 1.25 };
                let counter = device.upload(&[9_u64]);
                for (step, counter) in [(4, None), (9, Some(counter.pointer()))] {
                    let mut expected = vec![0.0; vocabulary];
                    cpu::embedding::draw_scales(&mask(step), &mut expected);
                    let scales = device.poisoned::<f32>(vocabulary, 0);
                    draw_scales(&device.context, &mask(4), counter, scales.pointer(), vocabulary);
                    assert_eq!(scales.values(), expected);
                }
            }
        });
    }
}
