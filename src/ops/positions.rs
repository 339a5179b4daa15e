//! Sinusoidal positions (Vaswani et al., 2017): `y = scale x + p(t)` with `p(t)[2i] = sin(t / 10000^(2i / C))` and the cosine in `[2i + 1]`.

use crate::backend::cuda;
use crate::device::{Backend, Category};
use crate::error::Result;
use crate::ops::sequences::Sequences;
use crate::ops::{expect_shape, matrix};
use crate::primitives;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;

/// `x: [R, C]` packed as `sequences`, whose first frames are at position `first`. Backward keeps nothing.
///
/// # Errors
/// If the rows of `x` are not those of `sequences`.
pub fn positions(tape: &mut Tape, x: &Var, sequences: &Sequences, scale: f32, first: usize) -> Result<Var> {
    const NAME: &str = "positions";
    let (_, columns) = matrix(NAME, "the input", x.shape())?;
    expect_shape(NAME, "the input", x.shape(), &[sequences.rows(), columns])?;
    let mut output = Tensor::uninitialized(tape.device(), x.shape(), Category::Activation);
    match tape.device().backend() {
        Backend::Cpu => {
            let (x, y) = (x.tensor().data(), output.data_mut());
            for (time, rows) in sequences.offsets().windows(2).enumerate() {
                let position = position(first + time, columns);
                let range = rows[0] * columns..rows[1] * columns;
                let rows = y[range.clone()].chunks_exact_mut(columns).zip(x[range].chunks_exact(columns));
                for (y, x) in rows {
                    y.iter_mut().zip(x).zip(&position).for_each(|((y, x), p)| *y = scale * x + p);
                }
            }
        }
        Backend::Cuda(context) => {
            let (x, y, packing) = (x.tensor().pointer(), output.pointer_mut(), sequences.on(context));
            cuda::sequences::positions(context, x, y, &packing, columns, scale, first);
        }
        Backend::Plan => {}
    }
    let place = tape.wants(x);
    Ok(tape.record(&[x], output, move |gradient, backward| {
        let Some(place) = place else { return Ok(()) };
        let mut back = Tensor::uninitialized(backward.device(), gradient.shape(), Category::Activation);
        primitives::scale(&gradient, scale, &mut back);
        backward.give(place, back);
        Ok(())
    }))
}

/// In f64, since an angle of thousands has lost its last digits in f32.
fn position(time: usize, columns: usize) -> Vec<f32> {
    (0..columns)
        .map(|column| {
            let angle = time as f64 / 10_000_f64.powf((column / 2 * 2) as f64 / columns as f64);
            (if column % 2 == 0 { angle.sin() } else { angle.cos() }) as f32
        })
        .collect()
}
