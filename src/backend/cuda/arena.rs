//! Where in the arena a tensor goes: a first-fit list of free ranges, deterministic, so that the same step takes the same addresses
//! each time. That is what lets a captured graph run again: between steps the arena is empty, and the step's tensors come back to
//! where the graph knows them. It hands out offsets and touches no memory.

use std::collections::BTreeMap;

/// Every range starts at a multiple of this: the widest loads and the alignment that cuBLASLt likes.
const ALIGNMENT: usize = 256;

#[derive(Debug, Default)]
pub struct Arena {
    /// Free ranges by their start; no two touch.
    free: BTreeMap<usize, usize>,
    capacity: usize,
    used: usize,
    peak: usize,
    reach: usize,
}

impl Arena {
    pub fn rounded(bytes: usize) -> usize {
        bytes.max(1).next_multiple_of(ALIGNMENT)
    }

    /// Adds `bytes` (a multiple of the alignment) that start at `start`, beyond everything added before. A gap may lie between.
    pub fn extend(&mut self, start: usize, bytes: usize) {
        self.capacity += bytes;
        self.put_free(start, bytes);
    }

    /// The lowest free range that holds `bytes`; none if all are too short.
    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let bytes = Self::rounded(bytes);
        let (&start, &length) = self.free.iter().find(|&(_, &length)| length >= bytes)?;
        self.free.remove(&start);
        if length > bytes {
            self.free.insert(start + bytes, length - bytes);
        }
        self.used += bytes;
        self.peak = self.peak.max(self.used);
        self.reach = self.reach.max(start + bytes);
        Some(start)
    }

    /// Gives back what [`Arena::take`] gave for as many bytes.
    pub fn put(&mut self, start: usize, bytes: usize) {
        let bytes = Self::rounded(bytes);
        self.used -= bytes;
        self.put_free(start, bytes);
    }

    fn put_free(&mut self, mut start: usize, mut bytes: usize) {
        if let Some(&behind) = self.free.get(&(start + bytes)) {
            self.free.remove(&(start + bytes));
            bytes += behind;
        }
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.free.remove(&before);
            start = before;
            bytes += length;
        }
        self.free.insert(start, bytes);
    }

    /// Bytes taken now.
    pub fn used(&self) -> usize {
        self.used
    }

    /// The most bytes ever taken at the same time.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// The highest end of anything ever taken: with the gaps that were below it, more than the peak.
    pub fn reach(&self) -> usize {
        self.reach
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn freed_neighbours_become_one_range_again() {
        let mut arena = Arena::default();
        arena.extend(0, 4096);
        let places: Vec<usize> = (0..4).map(|_| arena.take(1000).unwrap()).collect();
        assert_eq!(places, [0, 1024, 2048, 3072]);
        assert_eq!(arena.take(1), None);
        for place in [1024, 3072, 0, 2048] {
            arena.put(place, 1000);
        }
        assert_eq!(arena.take(4096), Some(0));
        assert_eq!(arena.peak(), 4096);
    }

    #[test]
    fn an_arena_as_large_as_another_reached_takes_the_same_tensors() {
        let takes = |arena: &mut Arena| -> Vec<Option<usize>> {
            let first = arena.take(1000);
            let second = arena.take(1000);
            first.into_iter().for_each(|place| arena.put(place, 1000));
            // Does not fit where the first was.
            vec![first, second, arena.take(2000)]
        };
        let mut large = Arena::default();
        large.extend(0, 1 << 20);
        let places = takes(&mut large);
        assert_eq!((large.peak(), large.reach()), (3072, 4096));
        let mut exact = Arena::default();
        exact.extend(0, large.reach());
        assert_eq!(takes(&mut exact), places);
        let mut short = Arena::default();
        short.extend(0, large.reach() - ALIGNMENT);
        assert_eq!(takes(&mut short)[2], None);
    }

    proptest! {
        #[test]
        fn ranges_in_use_never_overlap_and_all_memory_comes_back(
            steps in prop::collection::vec((any::<bool>(), 1_usize..3000, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut arena = Arena::default();
            arena.extend(512, 16 * 1024);
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for (take, bytes, index) in steps {
                if take || taken.is_empty() {
                    if let Some(start) = arena.take(bytes) {
                        let end = start + Arena::rounded(bytes);
                        prop_assert!(start >= 512 && end <= 512 + 16 * 1024);
                        prop_assert!(taken.iter().all(|&(s, b)| end <= s || s + Arena::rounded(b) <= start));
                        taken.push((start, bytes));
                    }
                } else {
                    let (start, bytes) = taken.swap_remove(index.index(taken.len()));
                    arena.put(start, bytes);
                }
            }
            for (start, bytes) in taken {
                arena.put(start, bytes);
            }
            prop_assert_eq!(arena.used(), 0);
            prop_assert_eq!(arena.take(16 * 1024), Some(512));
        }
    }
}
