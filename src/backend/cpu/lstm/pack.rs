//! W_hh in panels: what the product kernel reads, in the order in which it reads it.
//!
//! A panel is [K, 4, LANES], one group of four vectors for each k. Forward, the four vectors are the gates i, f, g, o of the
//! same LANES units and K = H; backward (the transpose), they are 4 LANES consecutive units and K = 4H. Units beyond H are zeros.
//! LANES is the machine's own (8 with AVX2, 16 with AVX-512): packed weights live as long as a step, never in a file.

use super::product::VECTORS;
use crate::backend::cpu::simd::{WithSimd, apply};
use pulp::Simd;
use rayon::prelude::*;

/// Widest vectors that any machine has, in f32 lanes.
const MAX_LANES: usize = 16;

/// Floats that either packed form of a [4H, H] matrix needs at most, on any machine.
pub fn packed_length(hidden: usize) -> usize {
    // Backward, the last panel may be all but empty: 4 vectors of units for one unit.
    4 * hidden * hidden.next_multiple_of(VECTORS * MAX_LANES)
}

/// Packs `weights` W_hh [4H, H] for [`super::forward`]. packed: at least [`packed_length`].
pub fn pack_forward(weights: &[f32], hidden: usize, packed: &mut [f32]) {
    check(weights, hidden, packed);
    apply(Pack { weights, hidden, packed, transposed: false });
}

/// Packs `weights` W_hh [4H, H] for [`super::backward`]. packed: at least [`packed_length`].
pub fn pack_backward(weights: &[f32], hidden: usize, packed: &mut [f32]) {
    check(weights, hidden, packed);
    apply(Pack { weights, hidden, packed, transposed: true });
}

fn check(weights: &[f32], hidden: usize, packed: &[f32]) {
    assert_eq!(weights.len(), 4 * hidden * hidden, "recurrent weights are [4H, H] with H = {hidden}");
    assert!(packed.len() >= packed_length(hidden), "the buffer for packed weights is too short");
}

pub(super) struct Pack<'a> {
    pub weights: &'a [f32],
    pub hidden: usize,
    pub packed: &'a mut [f32],
    pub transposed: bool,
}

impl WithSimd for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Pack { weights, hidden, packed, transposed } = self;
        let lanes = S::F32_LANES;
        if hidden == 0 {
            return;
        }
        if transposed {
            let width = VECTORS * lanes;
            let panel_length = 4 * hidden * width;
            let panels = hidden.div_ceil(width);
            packed[..panels * panel_length].par_chunks_exact_mut(panel_length).enumerate().for_each(
                |(panel, packed)| {
                    let first = panel * width;
                    let units = width.min(hidden - first);
                    for (group, row) in packed.chunks_exact_mut(width).zip(weights.chunks_exact(hidden)) {
                        group[..units].copy_from_slice(&row[first..first + units]);
                        group[units..].fill(0.0);
                    }
                },
            );
        } else {
            let panel_length = hidden * VECTORS * lanes;
            let panels = hidden.div_ceil(lanes);
            packed[..panels * panel_length].par_chunks_exact_mut(panel_length).enumerate().for_each(
                |(panel, packed)| {
                    let first = panel * lanes;
                    for gate in 0..VECTORS {
                        for lane in 0..lanes {
                            let place = gate * lanes + lane;
                            let column = packed[place..].iter_mut().step_by(VECTORS * lanes);
                            match weights
                                .get((gate * hidden + first + lane) * hidden..)
                                .filter(|_| first + lane < hidden)
                            {
                                Some(row) => column.zip(row).for_each(|(to, from)| *to = *from),
                                None => column.for_each(|to| *to = 0.0),
                            }
                        }
                    }
                },
            );
        }
    }
}
