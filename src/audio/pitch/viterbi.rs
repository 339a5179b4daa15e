//! One step of the search for the cheapest path through the lags.
//!
//! To go from lag j to lag i costs (i - j)^2 `factor`. The cheapest predecessor of i never lies below that of a smaller i (the cost
//! is a convex function of i - j), so the predecessors of the middle state bound those of either half: S log S comparisons for S states.

/// The search of one frame.
pub(super) struct Step<'a> {
    /// The cost of the cheapest path to each state of the previous frame.
    pub previous: &'a [f32],
    pub factor: f32,
    /// The cheapest predecessor of each state.
    pub predecessors: &'a mut [u16],
    /// The cost of the cheapest path to each state, without the state's own cost.
    pub costs: &'a mut [f32],
}

impl Step<'_> {
    pub fn run(&mut self) {
        let last = self.previous.len() - 1;
        self.solve(0, self.previous.len(), 0, last);
    }

    /// Fills the states `begin..end`, whose predecessors lie in `low..=high`. Of equal costs the smallest predecessor is taken.
    fn solve(&mut self, begin: usize, end: usize, low: usize, high: usize) {
        if begin == end {
            return;
        }
        let middle = begin + (end - begin) / 2;
        let (mut best, mut best_cost) = (low, f32::INFINITY);
        for predecessor in low..=high {
            let distance = predecessor.abs_diff(middle);
            let cost = (distance * distance) as f32 * self.factor + self.previous[predecessor];
            if cost < best_cost {
                (best, best_cost) = (predecessor, cost);
            }
        }
        self.predecessors[middle] = best as u16;
        self.costs[middle] = best_cost;
        self.solve(begin, middle, low, best);
        self.solve(middle + 1, end, best, high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Philox;

    #[test]
    fn the_divided_search_finds_what_the_exhaustive_one_finds() {
        let mut stream = Philox::named(3, "costs").stream();
        for states in [1, 2, 7, 100, 417] {
            for factor in [0.0, 2.5e-6, 0.01, 1.0] {
                let previous: Vec<f32> = (0..states).map(|_| stream.uniform() as f32).collect();
                let (mut predecessors, mut costs) = (vec![0; states], vec![0.0; states]);
                Step { previous: &previous, factor, predecessors: &mut predecessors, costs: &mut costs }.run();
                for state in 0..states {
                    let cost = |j: usize| (j.abs_diff(state).pow(2)) as f32 * factor + previous[j];
                    let cheapest = (0..states).map(cost).fold(f32::INFINITY, f32::min);
                    assert_eq!(costs[state], cheapest, "{states} {factor} {state}");
                    assert_eq!(cost(predecessors[state].into()), cheapest);
                }
            }
        }
    }
}
