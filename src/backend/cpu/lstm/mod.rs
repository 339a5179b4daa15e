//! LSTM over whole packed sequences, one or two directions; equations and gate order of PyTorch:
//!
//! ```text
//! i, f, g, o = sigmoid, sigmoid, tanh, sigmoid of  W_ih x_t + W_hh h_{t-1} + b        each [H]
//! c_t = f c_{t-1} + i g          h_t = o tanh(c_t)
//! ```
//!
//! The caller forms W_ih x_t for all rows in one product; this file owns what is sequential. H hidden units, D directions,
//! N sequences, T time steps, R packed rows (`offsets[T]`); rows of time t are `offsets[t]..offsets[t + 1]`. The
//! reverse direction runs t downwards: a sequence enters at its own last frame, with the initial state.
//!
//! - `pack`: W_hh in panels, once per optimiser step. - `product`: the recurrent product's kernel. - `forward`, `backward`: one time step,
//!   product and the pointwise part on a scratch block that never leaves the first-level cache. - `team`: who does which
//!   panels, what both passes do with them, and the barrier between time steps. - `gradient`: h_{t-1} of every row, for the product that gives dW_hh.
//!
//! # Work and bytes, counted and measured
//! A time step multiplies [n, H] by [H, 4H] forward and [n, 4H] by [4H, H] backward: 8 n H^2 operations each, on 16 H^2 bytes of weights, so
//! n / 2 operations a byte. At n = 16 and 85 GFLOP/s a core asks for 11 GB/s: the last-level cache gives that, memory need not
//! (two directions of H = 320 are 3.3 MB; H = 1150 is 21 MB). The sums run over k in a fixed order, whatever the split.
//!
//! Measured in processor time of a busy two-core Zen 4 with AVX2 (86 to 90 GFLOP/s a core at most): 2 x 320, 16 x 200: 5.24e9 operations
//! each way, 61 ms at the limit; 73 to 76 ms forward (the products run at 82 to 87 GFLOP/s, a tenth is sigmoid and tanh, the rest
//! waits for memory), 74 to 76 ms backward. H = 1150, 20 x 35: 7.4e9, 92 ms forward and backward, 80 GFLOP/s.

mod backward;
mod forward;
mod gradient;
mod pack;
mod product;
mod team;
#[cfg(test)]
mod tests;

pub use backward::{Backward, backward};
pub use forward::{Forward, forward};
pub use gradient::{final_state, previous_hidden};
pub use pack::{pack_backward, pack_forward, packed_length};

/// The geometry that every part shares.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    /// H.
    pub hidden: usize,
    /// D: 1 (time runs forward), or 2 (the second runs backward).
    pub directions: usize,
    /// T + 1 row numbers; their differences, the sequences active at each time, never grow.
    pub offsets: &'a [usize],
}

impl Shape<'_> {
    /// T.
    pub fn steps(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// R.
    pub fn rows(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// N.
    pub fn sequences(&self) -> usize {
        if self.steps() == 0 { 0 } else { self.active(0) }
    }

    /// Sequences that run at time `t`.
    pub fn active(&self, t: usize) -> usize {
        self.offsets[t + 1] - self.offsets[t]
    }

    /// Row length of the layer's output: D H.
    pub fn output_width(&self) -> usize {
        self.directions * self.hidden
    }

    fn check(&self) {
        assert!(matches!(self.directions, 1 | 2), "an LSTM has one direction or two, not {}", self.directions);
        assert!(self.offsets.first().is_none_or(|&first| first == 0), "packed rows start at 0");
        let mut last = usize::MAX;
        for t in 0..self.steps() {
            assert!(
                self.offsets[t] < self.offsets[t + 1] && self.active(t) <= last,
                "sequences are not sorted by length"
            );
            last = self.active(t);
        }
    }

    /// The step that a direction takes `number`-th.
    fn step(&self, direction: usize, number: usize) -> Step {
        let steps = self.steps();
        let t = if direction == 0 { number } else { steps - 1 - number };
        let neighbour = if direction == 0 { t.checked_sub(1) } else { Some(t + 1).filter(|&t| t < steps) };
        let continuing = neighbour.map_or(0, |other| self.active(other).min(self.active(t)));
        Step {
            first_row: self.offsets[t],
            active: self.active(t),
            continuing,
            previous_row: neighbour.map_or(0, |other| self.offsets[other]),
        }
    }

    /// The rows of the step after `number` in the same direction, and how many of this step's sequences go on into it.
    fn following(&self, direction: usize, number: usize) -> (usize, usize) {
        if number + 1 == self.steps() {
            return (0, 0);
        }
        let next = self.step(direction, number + 1);
        (next.first_row, next.continuing)
    }
}

/// One time step of one direction: the rows `first_row..first_row + active`. The first `continuing` of its sequences have their
/// previous state in the rows from `previous_row`; the others start here.
#[derive(Debug, Clone, Copy)]
struct Step {
    first_row: usize,
    active: usize,
    continuing: usize,
    previous_row: usize,
}

/// States of all sequences: h and c, both [N, H], in packed (descending length) order.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    pub hidden: &'a [f32],
    pub cell: &'a [f32],
}

/// A pointer that a team of threads shares. Whoever dereferences it answers for disjoint writes.
#[derive(Debug, Clone, Copy)]
struct Shared<T>(*mut T);

impl Shared<f32> {
    fn of(slice: &[f32]) -> Self {
        Shared(slice.as_ptr().cast_mut())
    }
}

// SAFETY: only the pointer moves between threads; each use of it states who writes where.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}
