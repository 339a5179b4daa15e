//! CTC: `kernels/ctc.cu`, the same mathematics as `backend::cpu::ctc`. Losses and gradient in three launches.

use super::context::Context;
use super::driver::{Argument, Launch, Pointer};
use super::elementwise::run;
use super::sequences::Packing;
use super::softmax::Scale;
pub use super::softmax::total;
use crate::error::{Error, Result};

const FILE: &str = "ctc";
const WARP: usize = 32;

/// The most labels of an utterance: 8191 states. A block's warps hold that many, and the gradient's block their occupations.
pub const MAX_LABELS: usize = 4095;
/// The most frames: with emissions above 2^-1023, exponents stay above that of zero, -2^29.
pub const MAX_STEPS: usize = 1 << 18;

/// A batch of logits with its transcripts, in device memory.
#[derive(Debug, Clone, Copy)]
pub struct Batch {
    /// `[rows, symbols]`, f32, packed. Symbol 0 is the blank.
    pub logits: Pointer,
    pub symbols: usize,
    pub packing: Packing,
    /// `[sequences + 1]`, i32: where each transcript starts in `labels`, and the end of the last.
    pub starts: Pointer,
    /// i32, all transcripts one behind the other: symbols from 1 to `symbols` - 1, which the caller has checked.
    pub labels: Pointer,
    /// At least the labels of the longest transcript.
    pub longest: usize,
}

/// What suits transcripts of some length: the template arguments of the kernels.
struct Variant {
    recursion: &'static str,
    gradient: &'static str,
    /// Frames between checkpoints: K.
    segment: usize,
    /// Pairs of states that a warp of the recursion advances, and those that are its left neighbour's.
    useful: usize,
    halo: usize,
    /// The same of the gradient's warps.
    gradient_useful: usize,
}

/// P = 2, K = 8: up to 16 warps.
const SHORT: Variant = Variant {
    recursion: "ctc_recursion_short",
    gradient: "ctc_gradient_short",
    segment: 8,
    useful: 2 * WARP - 8,
    halo: 8,
    gradient_useful: 2 * WARP - 8,
};
const SHORT_WARPS: usize = 16;

/// P = 6, K = 4: up to 24 warps. (The gradient's warps have P = 2.)
const LONG: Variant = Variant {
    recursion: "ctc_recursion_long",
    gradient: "ctc_gradient_long",
    segment: 4,
    useful: 6 * WARP - 6,
    halo: 6,
    gradient_useful: 2 * WARP - 4,
};

/// Bytes of a pair of states, blank and label: each a mantissa and an exponent.
const PAIR: usize = 16;
/// Warps of a block of `ctc_prepare`, and the most of one of the gradient's.
const WARPS: usize = 8;

/// Where things lie in the workspace, in bytes.
struct Layout {
    emissions: usize,
    norms: usize,
    first_places: usize,
    totals: usize,
    feasible: usize,
    checkpoints: usize,
    end: usize,
}

impl Batch {
    fn variant(&self) -> &'static Variant {
        if self.longest < SHORT_WARPS * SHORT.useful { &SHORT } else { &LONG }
    }

    /// Labels and the blank.
    fn width(&self) -> usize {
        self.longest + 1
    }

    /// Checkpoints of each direction: one more for every sequence, since each starts a segment of its own.
    fn checkpoints(&self) -> usize {
        self.packing.rows / self.variant().segment + self.packing.sequences
    }

    fn layout(&self, with_gradient: bool) -> Layout {
        let (rows, sequences) = (self.packing.rows, self.packing.sequences);
        let mut end = 0;
        let mut take = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(256);
            start
        };
        Layout {
            emissions: take(rows * self.width() * size_of::<u32>()),
            norms: take(rows * 2 * size_of::<f32>()),
            first_places: take(sequences * self.width() * size_of::<i32>()),
            totals: take(sequences * PAIR / 2),
            feasible: take(sequences * size_of::<i32>()),
            checkpoints: take(if with_gradient { 2 * self.checkpoints() * self.width() * PAIR } else { 0 }),
            end,
        }
    }

    /// That the kernels can hold it.
    ///
    /// # Errors
    /// Names the limit.
    fn check(&self) -> Result<()> {
        let limit = |what: &str, value: usize, most: usize| {
            let problem = format!("{what}: {value}, on a GPU at most {most}");
            Err(Error::operation("ctc", problem)
                .remedy("Leave such utterances out (batch.max_labels, batch.max_frames), or train on the CPU"))
        };
        if self.longest > MAX_LABELS {
            return limit("labels of an utterance", self.longest, MAX_LABELS);
        }
        if self.packing.steps > MAX_STEPS {
            return limit("frames of an utterance", self.packing.steps, MAX_STEPS);
        }
        let emissions = self.packing.rows.saturating_mul(self.width());
        if u32::try_from(emissions).is_err() {
            return limit("frames of a batch times its most labels", emissions, u32::MAX as usize);
        }
        Ok(())
    }
}

/// Bytes that [`ctc`] works in.
pub fn workspace(batch: &Batch, with_gradient: bool) -> usize {
    batch.layout(with_gradient).end
}

/// Where in the workspace [`ctc`] leaves, `[sequences]`, i32, whether the labels of each utterance fit its frames.
pub fn feasible(batch: &Batch, workspace: Pointer) -> Pointer {
    workspace + batch.layout(false).feasible as u64
}

/// -ln p(labels | logits) of every utterance into `losses`, `[sequences]`, f32, and the gradient of their sum, times a scale, into
/// `gradient`, `[rows, symbols]`, f32, which may be the logits; rows behind the last frame's become 0. Where the labels do not fit the frames, the
/// loss and the rows of the gradient are 0. Finite logits give finite losses and gradients: an emission below 2^-1022 of its frame's
/// largest counts as that.
///
/// # Errors
/// If the batch is beyond [`MAX_LABELS`] or [`MAX_STEPS`]; nothing is launched then.
pub fn ctc(
    context: &Context,
    batch: &Batch,
    losses: Pointer,
    gradient: Option<(Pointer, Scale)>,
    workspace: Pointer,
) -> Result<()> {
    batch.check()?;
    let (packing, variant, layout) = (&batch.packing, batch.variant(), batch.layout(gradient.is_some()));
    let at = |offset: usize| Argument::Pointer(workspace + offset as u64);
    let utterances = packing.sequences as u32;
    let [offsets, lengths, labels, starts] =
        [packing.offsets, packing.lengths, batch.labels, batch.starts].map(Argument::Pointer);
    let [emissions, norms, feasible, totals] = [layout.emissions, layout.norms, layout.feasible, layout.totals].map(at);
    let checkpoints = if gradient.is_some() { at(layout.checkpoints) } else { Argument::NONE };
    let (symbols, width) = (Argument::int(batch.symbols), Argument::int(batch.width()));
    let checkpoint_count = Argument::int(batch.checkpoints());

    if utterances > 0 {
        let blocks = [1 + packing.steps.div_ceil(WARPS) as u32, utterances, 1];
        let launch = Launch { blocks, ..Launch::blocks(1, (WARPS * WARP) as u32).shared(WARP * size_of::<i32>()) };
        let arguments = [
            Argument::Pointer(batch.logits),
            offsets,
            lengths,
            labels,
            starts,
            emissions,
            norms,
            feasible,
            at(layout.first_places),
            symbols,
            width,
        ];
        run(context, FILE, "ctc_prepare", &launch, &arguments);

        let warps = batch.width().div_ceil(variant.useful);
        let shared = 2 * warps * variant.halo * PAIR + PAIR + WARP * size_of::<f64>();
        let blocks = [utterances, if gradient.is_some() { 2 } else { 1 }, 1];
        let launch = Launch { blocks, ..Launch::blocks(1, (warps * WARP) as u32).shared(shared) };
        let losses = Argument::Pointer(losses);
        let arguments =
            [lengths, labels, starts, emissions, norms, feasible, losses, totals, checkpoints, width, checkpoint_count];
        run(context, FILE, variant.recursion, &launch, &arguments);
    }

    let Some((gradient, scale)) = gradient else { return Ok(()) };
    if packing.rows == 0 || batch.symbols == 0 {
        return Ok(());
    }
    let warps = batch.width().div_ceil(variant.gradient_useful).min(WARPS);
    let numbers = variant.segment * (2 * warps * variant.gradient_useful + 1);
    let shared = numbers * PAIR / 2 + variant.segment * batch.width() * size_of::<u32>();
    let blocks = [packing.steps.div_ceil(variant.segment).max(1) as u32, utterances.max(1), 1];
    let launch = Launch { blocks, ..Launch::blocks(1, (warps * WARP) as u32).shared(shared) };
    let [scale, factor] = scale.arguments();
    let arguments = [
        Argument::Pointer(batch.logits),
        offsets,
        lengths,
        labels,
        starts,
        emissions,
        norms,
        feasible,
        at(layout.first_places),
        totals,
        checkpoints,
        Argument::Pointer(gradient),
        scale,
        factor,
        Argument::int(packing.steps),
        Argument::int(packing.sequences),
        Argument::int(packing.rows),
        symbols,
        width,
        checkpoint_count,
    ];
    run(context, FILE, variant.gradient, &launch, &arguments);
    Ok(())
}

#[cfg(all(test, feature = "emulator"))]
#[path = "ctc_tests.rs"]
mod tests;
