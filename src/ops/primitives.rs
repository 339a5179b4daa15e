//! What several operations share, on whichever device their tensors are: products, sums of columns, elementwise passes.
//!
//! Each function runs the backend's own of the same name; on the device `plan` it makes the same workspaces and computes nothing.

use crate::backend::cpu;
use crate::backend::cpu::activation::Activation;
use crate::backend::cpu::matmul::Matrix;
use crate::backend::cuda;
use crate::backend::cuda::driver::Pointer;
use crate::device::{Backend, Category, Device};
use crate::tensor::Tensor;

/// A tensor read as a strided matrix.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    tensor: &'a Tensor,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Factor<'a> {
    /// Rows one behind the other, each of `columns` elements.
    pub fn rows(tensor: &'a Tensor, columns: usize) -> Self {
        Factor { tensor, row_stride: columns, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn transposed(self) -> Self {
        Factor { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn host(self) -> Matrix<'a> {
        Matrix { data: self.tensor.data(), row_stride: self.row_stride, column_stride: self.column_stride }
    }

    fn device(self) -> cuda::matmul::Operand {
        cuda::matmul::Operand {
            pointer: self.tensor.pointer(),
            row_stride: self.row_stride,
            column_stride: self.column_stride,
        }
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

/// A workspace of so many bytes, whose elements are arbitrary.
pub fn workspace(device: &Device, bytes: usize) -> Tensor {
    Tensor::uninitialized(device, &[bytes.div_ceil(size_of::<f32>())], Category::Workspace)
}
