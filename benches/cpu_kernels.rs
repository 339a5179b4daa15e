//! The CPU's kernels, alone and put together to the rows `lstm/*` and `ctc/*` of the benchmark table.
//!
//! `cargo bench --bench cpu_kernels -- lstm/320`; RAYON_NUM_THREADS sets the threads.

use criterion::{Criterion, criterion_group, criterion_main};
use headfirst::backend::cpu::lstm::{self, Backward, Forward, Shape};
use headfirst::backend::cpu::matmul::{Matrix, add_bias, column_sums, matmul};
use headfirst::backend::cpu::{activation, ctc, softmax};
use std::time::Duration;

/// Numbers in [-1, 1), the same every time.
fn numbers(length: usize) -> Vec<f32> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}

/// A whole layer: products, recurrence, and all gradients, as an operation of the engine performs them.
struct Layer {
    inputs: usize,
    hidden: usize,
    directions: usize,
    offsets: Vec<usize>,
    x: Vec<f32>,
    dx: Vec<f32>,
    weights: Vec<(Vec<f32>, Vec<f32>)>,
    bias: Vec<f32>,
    gradients: Vec<(Vec<f32>, Vec<f32>, Vec<f32>)>,
    packed: Vec<Vec<f32>>,
    gates: Vec<Vec<f32>>,
    cells: Vec<Vec<f32>>,
    cell_gradients: Vec<Vec<f32>>,
    previous: Vec<f32>,
    output: Vec<f32>,
    output_gradient: Vec<f32>,
}

impl Layer {
    fn new(inputs: usize, hidden: usize, directions: usize, sequences: usize, steps: usize) -> Self {
        let offsets: Vec<usize> = (0..=steps).map(|t| t * sequences).collect();
        let rows = sequences * steps;
        let scale = 1.0 / (hidden as f32).sqrt();
        let scaled = |length| numbers(length).iter().map(|x| x * scale).collect::<Vec<_>>();
        let (input_weights, recurrent_weights) = (4 * hidden * inputs, 4 * hidden * hidden);
        let each = |length: usize| vec![vec![0.0; length]; directions];
        Layer {
            x: numbers(rows * inputs),
            dx: vec![0.0; rows * inputs],
            weights: vec![(scaled(input_weights), scaled(recurrent_weights)); directions],
            bias: scaled(4 * hidden),
            gradients: vec![
                (vec![0.0; input_weights], vec![0.0; recurrent_weights], vec![0.0; 4 * hidden]);
                directions
            ],
            packed: each(lstm::packed_length(hidden)),
            gates: each(rows * 4 * hidden),
            cells: each(rows * hidden),
            cell_gradients: each(sequences * hidden),
            previous: vec![0.0; rows * hidden],
            output: vec![0.0; rows * directions * hidden],
            output_gradient: numbers(rows * directions * hidden),
            inputs,
            hidden,
            directions,
            offsets,
        }
    }

    fn forward(&mut self) {
        let (inputs, width, rows) = (self.inputs, 4 * self.hidden, self.offsets[self.offsets.len() - 1]);
        for ((gates, packed), (input_weights, recurrent_weights)) in
            self.gates.iter_mut().zip(&mut self.packed).zip(&self.weights)
        {
            let transposed = Matrix::rows(input_weights, inputs).transposed();
            matmul(rows, width, inputs, Matrix::rows(&self.x, inputs), transposed, gates, width, false);
            lstm::pack_forward(recurrent_weights, self.hidden, packed);
        }
        self.recurrence();
    }

    fn recurrence(&mut self) {
        let shape = Shape { hidden: self.hidden, directions: self.directions, offsets: &self.offsets };
        let mut operands: Vec<_> = (self.gates.iter_mut().zip(&mut self.cells).zip(&self.packed))
            .map(|((gates, cells), packed)| Forward {
                weights: packed,
                bias: Some(&self.bias),
                gates,
                cells,
                initial: None,
            })
            .collect();
        lstm::forward(&shape, &mut operands, &mut self.output);
    }

    fn backward_recurrence(&mut self) {
        let shape = Shape { hidden: self.hidden, directions: self.directions, offsets: &self.offsets };
        let mut operands = vec![];
        for (((gates, cells), packed), cell_gradient) in
            self.gates.iter_mut().zip(&self.cells).zip(&self.packed).zip(&mut self.cell_gradients)
        {
            cell_gradient.fill(0.0);
            operands.push(Backward {
                weights: packed,
                gates,
                cells,
                initial: None,
                cell_gradient,
                final_hidden_gradient: None,
                initial_hidden_gradient: None,
            });
        }
        lstm::backward(&shape, &mut operands, &self.output_gradient);
    }

    fn backward(&mut self) {
        for (packed, (_, recurrent_weights)) in self.packed.iter_mut().zip(&self.weights) {
            lstm::pack_backward(recurrent_weights, self.hidden, packed);
        }
        self.backward_recurrence();
        let shape = Shape { hidden: self.hidden, directions: self.directions, offsets: &self.offsets };
        let (inputs, hidden, width, rows) = (self.inputs, self.hidden, 4 * self.hidden, shape.rows());
        for (d, gradients) in self.gradients.iter_mut().enumerate() {
            let gates = Matrix::rows(&self.gates[d], width);
            let (x, weights) = (Matrix::rows(&self.x, inputs), Matrix::rows(&self.weights[d].0, inputs));
            matmul(rows, inputs, width, gates, weights, &mut self.dx, inputs, d > 0);
            matmul(width, inputs, rows, gates.transposed(), x, &mut gradients.0, inputs, false);
            lstm::previous_hidden(&shape, d, &self.output, None, &mut self.previous);
            let previous = Matrix::rows(&self.previous, hidden);
            matmul(width, hidden, rows, gates.transposed(), previous, &mut gradients.1, hidden, false);
            column_sums(&self.gates[d], rows, width, &mut gradients.2, false);
        }
    }
}

fn lstm_rows(criterion: &mut Criterion) {
    for (name, inputs, hidden, directions, sequences, steps) in
        [("lstm/320/bidirectional/B16-T200", 320, 320, 2, 16, 200), ("lstm/1150/B20-T35", 1150, 1150, 1, 20, 35)]
    {
        let mut layer = Layer::new(inputs, hidden, directions, sequences, steps);
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).measurement_time(Duration::from_secs(4));
        group.bench_function("whole", |bencher| {
            bencher.iter(|| {
                layer.forward();
                layer.backward();
            });
        });
        group.bench_function("recurrence-forward", |bencher| bencher.iter(|| layer.recurrence()));
        group.bench_function("recurrence-backward", |bencher| bencher.iter(|| layer.backward_recurrence()));
        let recurrent = layer.weights[0].1.clone();
        group.bench_function("pack-forward", |b| {
            b.iter(|| lstm::pack_forward(&recurrent, hidden, &mut layer.packed[0]))
        });
        group.bench_function("pack-backward", |b| {
            b.iter(|| lstm::pack_backward(&recurrent, hidden, &mut layer.packed[0]))
        });
        group.finish();
    }
}

fn ctc_row(criterion: &mut Criterion) {
    let (sequences, steps, symbols) = (32, 400, 50);
    let offsets: Vec<usize> = (0..=steps).map(|t| t * sequences).collect();
    let lengths = vec![steps; sequences];
    let labels: Vec<Vec<u32>> =
        (0..sequences as u32).map(|n| (0..60).map(|l| 1 + (l * 7 + n * 13) % 49).collect()).collect();
    let labels: Vec<&[u32]> = labels.iter().map(Vec::as_slice).collect();
    let logits = numbers(sequences * steps * symbols);
    let batch =
        ctc::Batch { logits: &logits, symbols, offsets: &offsets, lengths: &lengths, labels: &labels, blank: 0 };
    let (mut losses, mut gradient) = (vec![0.0; sequences], vec![0.0; logits.len()]);
    let mut workspace = vec![0.0; batch.workspace_length()];
    criterion.bench_function("ctc/B32-T400", |bencher| {
        bencher.iter(|| ctc::ctc(&batch, &mut losses, Some(&mut gradient), &mut workspace).expect("legal labels"));
    });
}

fn row_operations(criterion: &mut Criterion) {
    let (rows, columns) = (3200, 320);
    let (mut y, x) = (numbers(rows * columns), numbers(rows * columns));
    let bias = numbers(columns);
    criterion.bench_function("add-bias/3200x320", |b| b.iter(|| add_bias(&mut y, &bias)));
    criterion.bench_function("bias-tanh/3200x320", |b| {
        b.iter(|| activation::bias_activation(&mut y, Some(&bias), columns, activation::Activation::Tanh));
    });
    criterion.bench_function("column-sums/3200x320", |b| {
        let mut sums = vec![0.0; columns];
        b.iter(|| column_sums(&x, rows, columns, &mut sums, false));
    });
    criterion.bench_function("log-softmax/20480x50", |b| b.iter(|| softmax::log_softmax(&x, &mut y, 50)));
    for (name, m, n, k) in [("x-w", 3200, 1280, 320), ("dgates-w", 3200, 320, 1280), ("dgates-x", 1280, 320, 3200)] {
        let (a, b) = (numbers(m * k), numbers(k * n));
        let mut c = vec![0.0; m * n];
        let a = if name == "dgates-x" { Matrix::rows(&a, m).transposed() } else { Matrix::rows(&a, k) };
        let b = if name == "x-w" { Matrix::rows(&b, k).transposed() } else { Matrix::rows(&b, n) };
        criterion.bench_function(&format!("matmul/{name}/{m}x{n}x{k}"), |bencher| {
            bencher.iter(|| matmul(m, n, k, a, b, &mut c, n, false));
        });
    }
}

criterion_group!(benches, lstm_rows, ctc_row, row_operations);
criterion_main!(benches);
