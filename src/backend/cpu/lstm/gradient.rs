//! States moved between the packed layout and its neighbours.

use super::Shape;
use rayon::prelude::*;

/// h_{t-1} of every row of one direction, for dW_hh = dgates^T h_{t-1} (one product over all R rows): `previous` [R, H] from
/// `output` [R, D H]; the rows where a sequence starts take its initial h, or zeros.
pub fn previous_hidden(shape: &Shape, direction: usize, output: &[f32], initial: Option<&[f32]>, previous: &mut [f32]) {
    let (hidden, width) = (shape.hidden, shape.output_width());
    assert_eq!(output.len(), shape.rows() * width, "LSTM output: [R, D H]");
    assert_eq!(previous.len(), shape.rows() * hidden, "h of the previous steps: [R, H]");
    assert!(initial.is_none_or(|initial| initial.len() == shape.sequences() * hidden), "LSTM initial state: [N, H]");
    if hidden == 0 {
        return;
    }
    let steps = shape.steps();
    let mut rest = previous;
    let mut blocks = Vec::with_capacity(steps);
    for t in 0..steps {
        let (block, behind) = rest.split_at_mut(shape.active(t) * hidden);
        blocks.push((t, block));
        rest = behind;
    }
    blocks.into_par_iter().with_min_len(16).for_each(|(t, block)| {
        let step = shape.step(direction, if direction == 0 { t } else { steps - 1 - t });
        for (sequence, row) in block.chunks_exact_mut(hidden).enumerate() {
            if sequence < step.continuing {
                let place = (step.previous_row + sequence) * width + direction * hidden;
                row.copy_from_slice(&output[place..place + hidden]);
            } else if let Some(initial) = initial {
                row.copy_from_slice(&initial[sequence * hidden..][..hidden]);
            } else {
                row.fill(0.0);
            }
        }
    });
}

/// Copies the state of every sequence after its last step of `direction` into `hidden` and `cell`, both [N, H].
/// `cells` [R, H] are the direction's own, `output` is [R, D H].
pub fn final_state(
    shape: &Shape,
    direction: usize,
    output: &[f32],
    cells: &[f32],
    hidden: &mut [f32],
    cell: &mut [f32],
) {
    let (units, width) = (shape.hidden, shape.output_width());
    for number in 0..shape.steps() {
        let step = shape.step(direction, number);
        let (_, going_on) = shape.following(direction, number);
        for sequence in going_on..step.active {
            let row = step.first_row + sequence;
            let to = sequence * units..(sequence + 1) * units;
            hidden[to.clone()].copy_from_slice(&output[row * width + direction * units..][..units]);
            cell[to].copy_from_slice(&cells[row * units..][..units]);
        }
    }
}
