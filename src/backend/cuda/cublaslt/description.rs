//! What the library is told of a product: what one differs by from another, and the descriptions that it makes of that.

use super::super::driver::Pointer;
use super::super::matmul::{Arithmetic, Operand, Product, Storage};
use super::WORKSPACE;
use super::library::Library;
use cudarc::cublaslt::sys;
use std::mem::MaybeUninit;
use std::ptr;

/// The best alignment that the heuristic knows of.
const ALIGNMENT: u64 = 256;

/// All that the choice of an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) sizes: (usize, usize, usize),
    pub(super) a: Side,
    pub(super) b: Side,
    pub(super) c_row_stride: usize,
    pub(super) c_element: u32,
    pub(super) c_alignment: u32,
    pub(super) accumulate: bool,
    /// Of the bias, which is stored as c is; 0: there is none.
    pub(super) bias_alignment: u32,
    pub(super) compute: u32,
}

/// An operand in the library's eyes: a column-major matrix of `rows` and `columns`, `stride` from column to column, to be transposed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Side {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) stride: usize,
    pub(super) transposed: bool,
    pub(super) element: u32,
    pub(super) alignment: u32,
}

impl Side {
    /// Of a row-major operand [rows, columns]: its transpose in column-major order, which lies in memory as the operand does.
    pub(super) fn new(operand: &Operand, rows: usize, columns: usize) -> Side {
        let element = element(operand.storage);
        let transposed = operand.column_stride != 1;
        let (inner, outer, stride) =
            if transposed { (rows, columns, operand.column_stride) } else { (columns, rows, operand.row_stride) };
        let alignment = alignment(operand.pointer);
        // A single row may have any stride, which the library would find too short.
        Side { rows: inner, columns: outer, stride: stride.max(inner), transposed, element, alignment }
    }
}

fn element(storage: Storage) -> u32 {
    match storage {
        Storage::F32 => sys::cudaDataType::CUDA_R_32F as u32,
        Storage::Bf16 => sys::cudaDataType::CUDA_R_16BF as u32,
    }
}

fn alignment(pointer: Pointer) -> u32 {
    (1 << pointer.trailing_zeros().min(ALIGNMENT.trailing_zeros())) as u32
}

impl Shape {
    /// All of it, as a saved state names it.
    pub(super) fn key(&self) -> String {
        let Shape { sizes: (m, n, k), a, b, c_row_stride, c_element, c_alignment, accumulate, bias_alignment, compute } =
            self;
        let side = |side: &Side| {
            let Side { rows, columns, stride, transposed, element, alignment } = side;
            let transposed = if *transposed { "t" } else { "" };
            format!("{rows}x{columns}/{stride}{transposed}:{element}@{alignment}")
        };
        let add = if *accumulate { "+" } else { "" };
        format!(
            "{m}x{n}x{k} {} {} {c_row_stride}{add}:{c_element}@{c_alignment}+{bias_alignment} {compute}",
            side(a),
            side(b)
        )
    }

    pub(super) fn new(product: &Product) -> Shape {
        let Product { m, n, k, a, b, c, c_row_stride, c_storage, accumulate, bias, arithmetic } = *product;
        let compute = match arithmetic {
            Arithmetic::F32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            Arithmetic::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            // Of bf16 operands a product is exact, and so is the library's plain one of f32.
            Arithmetic::Bf16 if a.storage == Storage::Bf16 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            Arithmetic::Bf16 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_16BF,
        } as u32;
        Shape {
            sizes: (m, n, k),
            a: Side::new(&a, m, k),
            b: Side::new(&b, k, n),
            c_row_stride,
            c_element: element(c_storage),
            c_alignment: alignment(c),
            accumulate,
            bias_alignment: if bias == 0 { 0 } else { alignment(bias) },
            compute,
        }
    }
}

/// The library's descriptions of a product, and its algorithm.
pub(super) struct Prepared {
    pub(super) product: sys::cublasLtMatmulDesc_t,
    /// Of b, a, c: the library's first operand is our second.
    pub(super) layouts: [sys::cublasLtMatrixLayout_t; 3],
    pub(super) algorithm: sys::cublasLtMatmulAlgo_t,
    library: Library,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: made by the library, released once; null where making it failed, which the library ignores or refuses.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = (self.library.destroy_layout)(layout);
            }
            if !self.product.is_null() {
                let _ = (self.library.destroy_product)(self.product);
            }
        }
    }
}

impl Prepared {
    /// All but the algorithm.
    pub(super) fn describe(library: &Library, shape: &Shape) -> Result<Prepared, String> {
        use sys::cublasLtMatmulDescAttributes_t as OfProduct;
        let float = sys::cudaDataType::CUDA_R_32F as u32;
        // SAFETY: an algorithm is plain numbers; it is set below.
        let algorithm = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut prepared =
            Prepared { product: ptr::null_mut(), layouts: [ptr::null_mut(); 3], algorithm, library: *library };
        // SAFETY: writes one handle.
        let status = unsafe { (library.create_product)(&raw mut prepared.product, shape.compute, float) };
        library.check("describing a product", status)?;
        // CUBLAS_OP_N and CUBLAS_OP_T.
        prepared.set(OfProduct::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(shape.b.transposed))?;
        prepared.set(OfProduct::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(shape.a.transposed))?;
        if shape.bias_alignment > 0 {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            prepared.set(OfProduct::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        }
        let (m, n, _) = shape.sizes;
        let c = (shape.c_element, n, m, shape.c_row_stride);
        let side = |side: Side| (side.element, side.rows, side.columns, side.stride);
        let matrices = [side(shape.b), side(shape.a), c];
        for (layout, (element, rows, columns, stride)) in prepared.layouts.iter_mut().zip(matrices) {
            // SAFETY: writes one handle.
            let status =
                unsafe { (library.create_layout)(layout, element, rows as u64, columns as u64, stride as i64) };
            library.check("describing a matrix", status)?;
        }
        Ok(prepared)
    }

    /// Where the bias is, if there is one.
    pub(super) fn set_bias(&self, bias: Pointer) -> Result<(), String> {
        if bias == 0 {
            return Ok(());
        }
        self.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<(), String> {
        // SAFETY: the callers give values of the attributes' sizes.
        let status = unsafe {
            (self.library.set_product)(self.product, attribute as u32, (&raw const value).cast(), size_of::<T>())
        };
        self.library.check("describing a product", status)
    }
}

/// What an algorithm has to keep to.
pub(super) struct Preference<'a> {
    pub(super) preference: sys::cublasLtMatmulPreference_t,
    library: &'a Library,
}

impl<'a> Preference<'a> {
    pub(super) fn new(library: &'a Library, shape: &Shape) -> Result<Preference<'a>, String> {
        use sys::cublasLtMatmulPreferenceAttributes_t as OfPreference;
        let mut preference = ptr::null_mut();
        // SAFETY: writes one handle.
        library.check("choosing an algorithm", unsafe { (library.create_preference)(&raw mut preference) })?;
        let preference = Preference { preference, library };
        // Sums of splits in the workspace, in order; and no splits at all, which no mask forbids.
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(OfPreference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        preference.set(OfPreference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes)?;
        preference.set(OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.b.alignment)?;
        preference.set(OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.a.alignment)?;
        preference.set(OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.c_alignment)?;
        preference.set(OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.c_alignment)?;
        Ok(preference)
    }

    pub(super) fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<(), String> {
        let size = size_of::<T>();
        // SAFETY: the callers give numbers of the attributes' sizes.
        let status = unsafe {
            (self.library.set_preference)(self.preference, attribute as u32, (&raw const value).cast(), size)
        };
        self.library.check("choosing an algorithm", status)
    }
}

impl Drop for Preference<'_> {
    fn drop(&mut self) {
        // SAFETY: made by the library, released once.
        let _ = unsafe { (self.library.destroy_preference)(self.preference) };
    }
}
