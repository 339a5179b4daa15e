//! What several operations share, on whichever device their tensors are: products, sums of columns, elementwise passes.
//!
//! Each function runs the backend's own of the same name; on the device `plan` it makes the same workspaces and computes nothing.

use crate::backend::cpu;
use crate::backend::cpu::activation::Activation;
use crate::backend::cpu::matmul::Matrix;
use crate::backend::cuda;
use crate::backend::cuda::matmul::Storage;
use crate::device::{Backend, Category, Device};
use crate::tensor::Tensor;

/// A tensor read as a strided matrix.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    tensor: &'a Tensor,
    row_stride: usize,
    column_stride: usize,
    storage: Storage,
}

impl<'a> Factor<'a> {
    /// Rows one behind the other, each of `columns` elements.
    pub fn rows(tensor: &'a Tensor, columns: usize) -> Self {
        Factor { tensor, row_stride: columns, column_stride: 1, storage: Storage::F32 }
    }

    /// The same places, where other elements may be stored.
    pub fn stored_as(self, storage: Storage) -> Self {
        Factor { storage, ..self }
    }

    /// The transpose, without moving anything.
    pub fn transposed(self) -> Self {
        Factor { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn host(self) -> Matrix<'a> {
        debug_assert_eq!(self.storage, Storage::F32, "the CPU computes with f32");
        Matrix { data: self.tensor.data(), row_stride: self.row_stride, column_stride: self.column_stride }
    }

    fn device(self) -> cuda::matmul::Operand {
        cuda::matmul::Operand {
            pointer: self.tensor.pointer(),
            row_stride: self.row_stride,
            column_stride: self.column_stride,
            storage: self.storage,
        }
    }
}

/// Where a product's rows go: `row_stride` elements apart in a tensor that is room for them. On the CPU one behind the other, and f32.
pub struct Output<'a> {
    pub tensor: &'a mut Tensor,
    pub row_stride: usize,
    pub storage: Storage,
}

impl<'a> Output<'a> {
    /// One behind the other, each of `columns` elements.
    pub fn rows(tensor: &'a mut Tensor, columns: usize) -> Self {
        Output { tensor, row_stride: columns, storage: Storage::F32 }
    }
}

/// c = a b, or c += a b: a `[m, k]`, b `[k, n]`, c `[m, n]`. Counts its work.
pub fn product((m, n, k): (usize, usize, usize), a: Factor, b: Factor, c: &mut Tensor, accumulate: bool) {
    let device = c.device().clone();
    device.count_operations((2 * m * n * k) as u64);
    match device.backend() {
        Backend::Cpu => cpu::matmul::matmul(m, n, k, a.host(), b.host(), c.data_mut(), n, accumulate),
        Backend::Cuda(context) => {
            let arithmetic = device.arithmetic();
            let workspace = workspace(&device, cuda::matmul::workspace(m, n, k, arithmetic));
            let (a, b, c) = (a.device(), b.device(), c.pointer_mut());
            cuda::matmul::matmul(context, m, n, k, a, b, c, n, accumulate, arithmetic, workspace.pointer());
        }
        Backend::Plan => {}
    }
}

/// `function(y + bias)` in every row, in place: y `[rows, columns]`, bias `[columns]` if there is one.
pub fn bias_activation(y: &mut Tensor, bias: Option<&Tensor>, columns: usize, function: Activation) {
    let device = y.device().clone();
    match device.backend() {
        Backend::Cpu => cpu::activation::bias_activation(y.data_mut(), bias.map(Tensor::data), columns, function),
        Backend::Cuda(context) => {
            let (count, bias) = (y.len(), bias.map(Tensor::pointer));
            cuda::elementwise::bias_activation(context, y.pointer_mut(), bias, count, columns, function);
        }
        Backend::Plan => {}
    }
}

/// y = `function(x w^T + bias)`: x `[rows, inputs]`, w `[outputs, inputs]`, bias `[outputs]`, stored as y is, y `[rows, outputs]`. Counts its work.
pub fn affine(
    (rows, outputs, inputs): (usize, usize, usize),
    x: Factor,
    weight: Factor,
    bias: &Tensor,
    function: Activation,
    y: Output<'_>,
) {
    let weight = weight.transposed();
    let device = y.tensor.device().clone();
    let Backend::Cuda(context) = device.backend() else {
        product((rows, outputs, inputs), x, weight, y.tensor, false);
        return bias_activation(y.tensor, Some(bias), outputs, function);
    };
    device.count_operations((2 * rows * outputs * inputs) as u64);
    let arithmetic = device.arithmetic();
    let workspace = workspace(&device, cuda::matmul::workspace(rows, outputs, inputs, arithmetic));
    let product = cuda::matmul::Product {
        m: rows,
        n: outputs,
        k: inputs,
        a: x.device(),
        b: weight.device(),
        c: y.tensor.pointer_mut(),
        c_row_stride: y.row_stride,
        c_storage: y.storage,
        accumulate: false,
        bias: bias.pointer(),
        arithmetic,
    };
    cuda::matmul::matmul_with(context, product, function, workspace.pointer());
}

/// [`activation_backward`], and the [`column_sums`] of what dy becomes: on a GPU in one pass.
pub fn activation_backward_with_sums(
    y: &Tensor,
    dy: &mut Tensor,
    function: Activation,
    rows: usize,
    sums: &mut Tensor,
    accumulate: bool,
) {
    let device = y.device().clone();
    let Backend::Cuda(context) = device.backend() else {
        activation_backward(y, dy, function);
        return column_sums(Factor::rows(dy, sums.len()), rows, sums, accumulate);
    };
    let columns = sums.len();
    let workspace = workspace(&device, cuda::elementwise::column_sums_workspace(rows, columns));
    let (y, dy, sums, workspace) = (y.pointer(), dy.pointer_mut(), sums.pointer_mut(), workspace.pointer());
    cuda::elementwise::activation_backward_with_sums(
        context, y, dy, rows, columns, function, sums, accumulate, workspace,
    );
}

/// dy becomes dy times the activation's derivative, which follows from its result y.
pub fn activation_backward(y: &Tensor, dy: &mut Tensor, function: Activation) {
    let device = y.device().clone();
    match device.backend() {
        Backend::Cpu => cpu::activation::activation_backward(y.data(), dy.data_mut(), function),
        Backend::Cuda(context) => {
            cuda::elementwise::activation_backward(context, y.pointer(), dy.pointer_mut(), y.len(), function);
        }
        Backend::Plan => {}
    }
}

/// sums `[columns]` = (or, accumulating, +=) the sum over the rows of a `[rows, columns]`.
pub fn column_sums(a: Factor, rows: usize, sums: &mut Tensor, accumulate: bool) {
    let columns = sums.len();
    let device = sums.device().clone();
    match device.backend() {
        Backend::Cpu => {
            let Matrix { data, row_stride, .. } = a.host();
            cpu::matmul::column_sums(data, rows, row_stride, sums.data_mut(), accumulate);
        }
        Backend::Cuda(context) => {
            let workspace = workspace(&device, cuda::elementwise::column_sums_workspace(rows, columns));
            let (sums, workspace) = (sums.pointer_mut(), workspace.pointer());
            cuda::elementwise::column_sums(context, a.device(), rows, columns, sums, accumulate, workspace);
        }
        Backend::Plan => {}
    }
}

pub fn fill(x: &mut Tensor, value: f32) {
    let device = x.device().clone();
    match device.backend() {
        Backend::Cpu => x.data_mut().fill(value),
        Backend::Cuda(context) => cuda::elementwise::fill(context, x.pointer_mut(), value, x.len()),
        Backend::Plan => {}
    }
}

/// to = factor x.
pub fn scale(x: &Tensor, factor: f32, to: &mut Tensor) {
    let device = x.device().clone();
    match device.backend() {
        Backend::Cpu => to.data_mut().iter_mut().zip(x.data()).for_each(|(to, x)| *to = factor * x),
        Backend::Cuda(context) => {
            cuda::elementwise::scale(context, x.pointer(), factor, to.pointer_mut(), x.len());
        }
        Backend::Plan => {}
    }
}

/// x = factor scalar x, where the scalar is on the device.
pub fn scale_by(x: &mut Tensor, scalar: &Tensor, factor: f32) {
    let device = x.device().clone();
    match device.backend() {
        Backend::Cpu => {
            let factor = scalar.data().first().map_or(0.0, |scalar| scalar * factor);
            x.data_mut().iter_mut().for_each(|x| *x *= factor);
        }
        Backend::Cuda(context) => {
            cuda::elementwise::scale_by(context, x.pointer_mut(), scalar.pointer(), factor, x.len());
        }
        Backend::Plan => {}
    }
}

/// sum = x, or sum += x.
pub fn add_to(sum: &mut Tensor, x: &Tensor, accumulate: bool) {
    let device = x.device().clone();
    match device.backend() {
        Backend::Cpu if accumulate => sum.data_mut().iter_mut().zip(x.data()).for_each(|(sum, x)| *sum += x),
        Backend::Cpu => sum.data_mut().copy_from_slice(x.data()),
        Backend::Cuda(context) if accumulate => {
            cuda::elementwise::accumulate(context, sum.pointer_mut(), x.pointer(), x.len());
        }
        Backend::Cuda(context) => context.copy(sum.buffer(), x.buffer(), x.len() * size_of::<f32>()),
        Backend::Plan => {}
    }
}

/// A workspace of so many bytes, whose elements are arbitrary.
pub fn workspace(device: &Device, bytes: usize) -> Tensor {
    Tensor::uninitialized(device, &[bytes.div_ceil(size_of::<f32>())], Category::Workspace)
}
