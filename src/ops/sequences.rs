//! How sequences of unequal lengths share a tensor: packed, time-major, longest first.
//!
//! The rows of time step t are the sequences 0..active(t), which have not ended by then. There is no padding, so nothing is ever
//! computed for it, and everything that treats frames alike (products, activations, dropout) sees one matrix of `rows()` rows.
//!
//! ```text
//! lengths 3, 2, 1      row  0 1 2 | 3 4 | 5
//!                      time 0 0 0 | 1 1 | 2
//!                  sequence 0 1 2 | 0 1 | 0
//! ```

use crate::backend::cuda::context::{Buffer, Context};
use crate::backend::cuda::sequences::Packing;
use crate::error::{Error, Result};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Clone)]
pub struct Sequences(Arc<Inner>);

struct Inner {
    lengths: Vec<usize>,
    /// The first row of every time step, and the number of rows at the end.
    offsets: Vec<usize>,
    /// Offsets, then lengths, as 32-bit integers in the memory of a GPU, and the recording of its that they were brought in for.
    on_device: Mutex<Option<(u64, Buffer)>>,
}

impl PartialEq for Sequences {
    fn eq(&self, other: &Self) -> bool {
        self.0.lengths == other.0.lengths
    }
}

impl Eq for Sequences {}

impl fmt::Debug for Sequences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sequences {:?}", self.0.lengths)
    }
}

impl Sequences {
    /// # Errors
    /// If a sequence is empty or longer than the one before it.
    pub fn new(lengths: &[usize]) -> Result<Self> {
        if lengths.contains(&0) || !lengths.is_sorted_by(|a, b| a >= b) {
            let problem =
                format!("sequences must be sorted, longest first, and none empty, but have lengths {lengths:?}");
            return Err(Error::operation("sequences", problem));
        }
        let steps = lengths.first().copied().unwrap_or(0);
        let mut offsets = Vec::with_capacity(steps + 1);
        let (mut row, mut active) = (0, lengths.len());
        for time in 0..steps {
            offsets.push(row);
            while active > 0 && lengths[active - 1] <= time {
                active -= 1;
            }
            row += active;
        }
        offsets.push(row);
        Ok(Sequences(Arc::new(Inner { lengths: lengths.to_vec(), offsets, on_device: Mutex::default() })))
    }

    /// Longest first.
    pub fn lengths(&self) -> &[usize] {
        &self.0.lengths
    }

    /// The number of sequences.
    pub fn count(&self) -> usize {
        self.0.lengths.len()
    }

    /// The number of time steps: the longest length.
    pub fn steps(&self) -> usize {
        self.0.offsets.len() - 1
    }

    /// The sum of the lengths.
    pub fn rows(&self) -> usize {
        self.0.offsets[self.steps()]
    }

    /// The first row of every time step, then the number of rows.
    pub fn offsets(&self) -> &[usize] {
        &self.0.offsets
    }

    /// The same for kernels; brought to the device when a step first asks for it.
    pub(crate) fn on(&self, context: &Arc<Context>) -> Packing {
        let recording = context.recording();
        let mut on_device = self.0.on_device.lock().unwrap_or_else(PoisonError::into_inner);
        on_device.take_if(|(of, buffer)| *of != recording || !Arc::ptr_eq(buffer.context(), context));
        let (_, buffer) = on_device.get_or_insert_with(|| {
            // A tensor's dimensions are below 2^31, and rows are one of them.
            let integers: Vec<i32> = self.0.offsets.iter().chain(&self.0.lengths).map(|&x| x as i32).collect();
            (recording, context.bring(&integers))
        });
        Packing {
            offsets: buffer.pointer(),
            lengths: buffer.pointer() + (self.0.offsets.len() * size_of::<i32>()) as u64,
            steps: self.steps(),
            rows: self.rows(),
            sequences: self.count(),
        }
    }

    /// How many sequences have a frame at this time.
    pub fn active(&self, time: usize) -> usize {
        self.0.offsets[time + 1] - self.0.offsets[time]
    }

    /// The row of a sequence's frame at a time within its length.
    pub fn row(&self, sequence: usize, time: usize) -> usize {
        self.0.offsets[time] + sequence
    }

    /// The sequences that remain when every `factor`-th frame is kept, the first always.
    pub fn subsample(&self, factor: usize) -> Self {
        let lengths: Vec<usize> = self.lengths().iter().map(|length| length.div_ceil(factor)).collect();
        Self::new(&lengths).expect("dividing keeps the order, and rounding up keeps every sequence")
    }

    /// Copies one sequence's frames out of packed `rows` of `columns` elements each.
    pub fn unpack(&self, sequence: usize, rows: &[f32], columns: usize) -> Vec<f32> {
        (0..self.lengths()[sequence])
            .flat_map(|time| {
                let row = self.row(sequence, time);
                &rows[row * columns..(row + 1) * columns]
            })
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_a_time_step_are_the_sequences_that_have_not_ended() {
        let sequences = Sequences::new(&[4, 2, 2, 1]).unwrap();
        assert_eq!(sequences.offsets(), [0, 4, 7, 8, 9]);
        assert_eq!((sequences.count(), sequences.steps(), sequences.rows()), (4, 4, 9));
        assert_eq!(sequences.active(1), 3);
        assert_eq!(sequences.row(2, 1), 6);
        assert_eq!(sequences.unpack(0, &[0., 1., 2., 3., 4., 5., 6., 7., 8.], 1), [0., 4., 7., 8.]);
    }

    #[test]
    fn subsampling_keeps_the_first_frame_of_every_sequence() {
        let sequences = Sequences::new(&[5, 4, 1]).unwrap().subsample(2);
        assert_eq!(sequences.lengths(), [3, 2, 1]);
    }

    #[test]
    fn unsorted_and_empty_sequences_are_errors() {
        assert!(Sequences::new(&[1, 2]).is_err());
        assert!(Sequences::new(&[2, 0]).is_err());
        assert_eq!(Sequences::new(&[]).unwrap().rows(), 0);
    }
}
