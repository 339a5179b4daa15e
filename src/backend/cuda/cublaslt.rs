//! NVIDIA's library of matrix products, cuBLASLt, where one is found; types and constants are cudarc's, the loading is our own.
//!
//! The library computes in column-major order: c = a b of rows is c^T = b^T a^T of columns, without moving anything. An algorithm is what its
//! heuristic names first, never timed, so a product's bits depend on the library's version and the GPU alone: one workspace, one stream, and
//! splits of k are summed out of place, in order. A saved state keeps the choices, and a resumed stage takes them over. Not yet run on a GPU.
//!
//! Source: cuBLAS Library User Guide, "Using the cuBLASLt API".

use super::driver::Pointer;
use super::libraries::{Loaded, Wanted, file_of, text};
use super::matmul::{Arithmetic, Operand, Product, Storage};
use super::products::{Algorithm, Products};
use crate::error::Result as DeviceResult;
use cudarc::cublaslt::sys;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Mutex, PoisonError};

const WANTED: Wanted = Wanted {
    name: "cuBLASLt",
    variable: "HEADFIRST_CUBLASLT",
    files: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
    packages: &["cu13", "cublas"],
};
/// What NVIDIA recommends for Hopper.
pub const WORKSPACE: usize = 32 << 20;
/// The best alignment that the heuristic knows of.
const ALIGNMENT: u64 = 256;

/// A status as a number: an enumeration of Rust's must not hold one that a newer library adds.
type Status = u32;
const SUCCESS: Status = sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS as Status;
const NOT_SUPPORTED: Status = sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED as Status;

/// `cublasLtMatmulHeuristicResult_t`, with its state as a number.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Heuristic>() == size_of::<sys::cublasLtMatmulHeuristicResult_t>());

type SetAttribute<Object> = unsafe extern "C" fn(Object, u32, *const c_void, usize) -> Status;

/// The functions called here, as cublasLt.h declares them; enumerations are numbers of 32 bits.
#[derive(Clone, Copy)]
struct Library {
    version: unsafe extern "C" fn() -> usize,
    status_name: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(*mut sys::cublasLtHandle_t) -> Status,
    destroy: unsafe extern "C" fn(sys::cublasLtHandle_t) -> Status,
    create_product: unsafe extern "C" fn(*mut sys::cublasLtMatmulDesc_t, u32, u32) -> Status,
    set_product: SetAttribute<sys::cublasLtMatmulDesc_t>,
    destroy_product: unsafe extern "C" fn(sys::cublasLtMatmulDesc_t) -> Status,
    create_layout: unsafe extern "C" fn(*mut sys::cublasLtMatrixLayout_t, u32, u64, u64, i64) -> Status,
    destroy_layout: unsafe extern "C" fn(sys::cublasLtMatrixLayout_t) -> Status,
    create_preference: unsafe extern "C" fn(*mut sys::cublasLtMatmulPreference_t) -> Status,
    set_preference: SetAttribute<sys::cublasLtMatmulPreference_t>,
    destroy_preference: unsafe extern "C" fn(sys::cublasLtMatmulPreference_t) -> Status,
    #[allow(clippy::type_complexity)] // As declared.
    heuristic: unsafe extern "C" fn(
        sys::cublasLtHandle_t,
        sys::cublasLtMatmulDesc_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatmulPreference_t,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> Status,
    #[allow(clippy::type_complexity)] // As declared.
    check_algorithm: unsafe extern "C" fn(
        sys::cublasLtHandle_t,
        sys::cublasLtMatmulDesc_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t,
        sys::cublasLtMatrixLayout_t,
        *const sys::cublasLtMatmulAlgo_t,
        *mut Heuristic,
    ) -> Status,
    #[allow(clippy::type_complexity)] // As declared.
    product: unsafe extern "C" fn(
        sys::cublasLtHandle_t,
        sys::cublasLtMatmulDesc_t,
        *const c_void,
        *const c_void,
        sys::cublasLtMatrixLayout_t,
        *const c_void,
        sys::cublasLtMatrixLayout_t,
        *const c_void,
        *const c_void,
        sys::cublasLtMatrixLayout_t,
        *mut c_void,
        sys::cublasLtMatrixLayout_t,
        *const sys::cublasLtMatmulAlgo_t,
        *mut c_void,
        usize,
        sys::cudaStream_t,
    ) -> Status,
}

impl Library {
    /// Loads the library for as long as the program runs.
    fn load(path: &str) -> Result<Library, String> {
        let library = Loaded::load(path)?;
        // SAFETY: the types of the fields are those of cublasLt.h.
        unsafe {
            Ok(Library {
                version: library.function(c"cublasLtGetVersion")?,
                status_name: library.function(c"cublasLtGetStatusName")?,
                create: library.function(c"cublasLtCreate")?,
                destroy: library.function(c"cublasLtDestroy")?,
                create_product: library.function(c"cublasLtMatmulDescCreate")?,
                set_product: library.function(c"cublasLtMatmulDescSetAttribute")?,
                destroy_product: library.function(c"cublasLtMatmulDescDestroy")?,
                create_layout: library.function(c"cublasLtMatrixLayoutCreate")?,
                destroy_layout: library.function(c"cublasLtMatrixLayoutDestroy")?,
                create_preference: library.function(c"cublasLtMatmulPreferenceCreate")?,
                set_preference: library.function(c"cublasLtMatmulPreferenceSetAttribute")?,
                destroy_preference: library.function(c"cublasLtMatmulPreferenceDestroy")?,
                heuristic: library.function(c"cublasLtMatmulAlgoGetHeuristic")?,
                check_algorithm: library.function(c"cublasLtMatmulAlgoCheck")?,
                product: library.function(c"cublasLtMatmul")?,
            })
        }
    }

    fn version(&self) -> usize {
        // SAFETY: needs nothing.
        unsafe { (self.version)() }
    }

    fn check(&self, doing: &str, status: Status) -> Result<(), String> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: gives a constant string for any number.
        let name = unsafe { (self.status_name)(status) };
        Err(format!("cuBLASLt failed while {doing}: {}", if name.is_null() { status.to_string() } else { text(name) }))
    }
}

/// A library that loads: its file and its version. Whether it works on the GPU shows when it is opened.
///
/// # Errors
/// Where it was looked for, and why it was not found there.
pub fn find() -> Result<(String, String), String> {
    let (place, library) = WANTED.first(Library::load)?;
    let file = file_of(library.version as *const c_void).unwrap_or(place);
    Ok((file, version_text(library.version())))
}

/// `120103` is 12.1.3.
fn version_text(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

/// The library in use on one GPU, on one stream.
pub struct CublasLt {
    library: Library,
    handle: sys::cublasLtHandle_t,
    place: String,
    workspace: Pointer,
    stream: *mut c_void,
    /// What a product needs, by its shape; none if the library has no algorithm for it.
    prepared: Mutex<HashMap<Shape, Option<Prepared>>>,
    /// Algorithms that were chosen before this stage was resumed, by [`Shape::key`].
    recalled: Mutex<BTreeMap<String, Algorithm>>,
    /// Why the library failed to choose an algorithm, until it is told.
    failed_choice: Mutex<FailedChoice>,
}

#[derive(Debug, Default)]
enum FailedChoice {
    #[default]
    None,
    First(String),
    Told,
}

// SAFETY: handles may be used from any thread that has made the GPU's context current; calls are serialised by the lock.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// All that the choice of an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    sizes: (usize, usize, usize),
    a: Side,
    b: Side,
    c_row_stride: usize,
    c_element: u32,
    c_alignment: u32,
    accumulate: bool,
    /// One stored as c is.
    has_bias: bool,
    compute: u32,
}

/// An operand in the library's eyes: a column-major matrix of `rows` and `columns`, `stride` from column to column, to be transposed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Side {
    rows: usize,
    columns: usize,
    stride: usize,
    transposed: bool,
    element: u32,
    alignment: u32,
}

impl Side {
    /// Of a row-major operand [rows, columns]: its transpose in column-major order, which lies in memory as the operand does.
    fn new(operand: &Operand, rows: usize, columns: usize) -> Side {
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
    fn key(&self) -> String {
        let Shape { sizes: (m, n, k), a, b, c_row_stride, c_element, c_alignment, accumulate, has_bias, compute } =
            self;
        let side = |side: &Side| {
            let Side { rows, columns, stride, transposed, element, alignment } = side;
            let transposed = if *transposed { "t" } else { "" };
            format!("{rows}x{columns}/{stride}{transposed}:{element}@{alignment}")
        };
        let add = if *accumulate { "+" } else { "" };
        let bias = if *has_bias { "b" } else { "" };
        format!("{m}x{n}x{k} {} {} {c_row_stride}{add}{bias}:{c_element}@{c_alignment} {compute}", side(a), side(b))
    }

    fn new(product: &Product) -> Shape {
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
            has_bias: bias != 0,
            compute,
        }
    }
}

/// The library's descriptions of a product, and its algorithm.
struct Prepared {
    product: sys::cublasLtMatmulDesc_t,
    /// Of b, a, c: the library's first operand is our second.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
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

impl CublasLt {
    /// Opens the newest library that works with this driver and GPU, whose context is current. `allocate` gives its workspace, which
    /// stays the caller's. Before any capture: it may allocate on its own.
    ///
    /// # Errors
    /// Where it was looked for and what was wrong there; none of it keeps the engine from computing products itself.
    pub fn open(
        stream: *mut c_void,
        allocate: impl FnOnce(usize) -> DeviceResult<Pointer>,
    ) -> Result<CublasLt, String> {
        let (place, (library, handle)) = WANTED.first(|place| {
            let library = Library::load(place)?;
            let mut handle = ptr::null_mut();
            // SAFETY: writes one handle.
            library.check("starting", unsafe { (library.create)(&raw mut handle) })?;
            Ok((library, handle))
        })?;
        let mut opened = CublasLt {
            library,
            handle,
            place,
            workspace: 0,
            stream,
            prepared: Mutex::default(),
            recalled: Mutex::default(),
            failed_choice: Mutex::default(),
        };
        opened.workspace = allocate(WORKSPACE).map_err(|error| error.problem)?;
        Ok(opened)
    }

    fn version(&self) -> String {
        version_text(self.library.version())
    }

    /// For a saved state: the library with its version and the GPU's name, and the algorithms chosen so far.
    pub fn products(&self, gpu: &str) -> Products {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = |(shape, prepared): (&Shape, &Option<Prepared>)| {
            prepared.as_ref().map(|prepared| (shape.key(), Algorithm(prepared.algorithm.data)))
        };
        // What was recalled and not needed yet may be needed still.
        let mut algorithms = self.recalled.lock().unwrap_or_else(PoisonError::into_inner).clone();
        algorithms.extend(prepared.iter().filter_map(chosen));
        Products { by: format!("cuBLASLt {} on {gpu}", self.version()), algorithms }
    }

    /// Takes over what was chosen earlier, if it was by this version on such a GPU.
    pub fn recall(&self, earlier: &Products, gpu: &str) {
        if self.products(gpu).by == earlier.by {
            self.recalled.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&earlier.algorithms);
        }
    }

    /// The workspace, for its owner to release after the last product.
    pub fn workspace(&self) -> Pointer {
        self.workspace
    }

    /// Whether the library has an algorithm for this product. The first of a shape asks the heuristic; if it fails, the product is the engine's
    /// own kernel's from then on, as if there were none.
    pub fn takes(&self, product: &Product) -> bool {
        let Product { m, n, k, a, b, .. } = *product;
        // Nothing to compute with, or two types of operands, which the library does not mix.
        if m == 0 || n == 0 || k == 0 || a.storage != b.storage {
            return false;
        }
        let shape = Shape::new(product);
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let new =
            || self.prepare(&shape, product.bias).unwrap_or_else(|reason| self.note_failed_choice(&shape, reason));
        prepared.entry(shape).or_insert_with(new).is_some()
    }

    fn note_failed_choice(&self, shape: &Shape, reason: String) -> Option<Prepared> {
        let mut failed = self.failed_choice.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*failed, FailedChoice::None) {
            let (m, n, k) = shape.sizes;
            *failed = FailedChoice::First(format!(
                "{reason}; the product of {m} x {k} and {k} x {n}, and whatever else it fails for, is computed by the engine's kernels"
            ));
        }
        None
    }

    /// Why the library failed to choose an algorithm for the first time; told once.
    pub fn take_note(&self) -> Option<String> {
        let mut failed = self.failed_choice.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *failed, FailedChoice::Told) {
            FailedChoice::First(note) => Some(note),
            before => {
                *failed = before;
                None
            }
        }
    }

    /// Puts a product that the library [takes](Self::takes) on the stream.
    ///
    /// # Errors
    /// What the library says.
    ///
    /// # Safety
    /// The pointers hold what the product reads and writes, and the GPU's context is current.
    pub unsafe fn product(&self, product: &Product) -> Result<(), String> {
        let Product { a, b, c, accumulate, .. } = *product;
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = prepared.get(&Shape::new(product)).and_then(Option::as_ref);
        let prepared = prepared.ok_or("a product that was not asked for before")?;
        prepared.set_bias(product.bias)?;
        let (alpha, beta) = (1.0_f32, if accumulate { 1.0_f32 } else { 0.0 });
        let [b_layout, a_layout, c_layout] = prepared.layouts;
        // SAFETY: the layouts describe the operands; the caller's pointers; the scalars are read before the call returns.
        let status = unsafe {
            (self.library.product)(
                self.handle,
                prepared.product,
                (&raw const alpha).cast(),
                b.pointer as *const c_void,
                b_layout,
                a.pointer as *const c_void,
                a_layout,
                (&raw const beta).cast(),
                c as *const c_void,
                c_layout,
                c as *mut c_void,
                c_layout,
                &raw const prepared.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                self.stream.cast(),
            )
        };
        self.library.check("launching a product", status)
    }

    /// Describes a product and chooses its algorithm; none if the library has none.
    fn prepare(&self, shape: &Shape, bias: Pointer) -> Result<Option<Prepared>, String> {
        let library = &self.library;
        let mut prepared = Prepared::describe(library, shape)?;
        prepared.set_bias(bias)?;
        let recalled = self.recalled.lock().unwrap_or_else(PoisonError::into_inner).get(&shape.key()).copied();
        if let Some(Algorithm(data)) = recalled {
            prepared.algorithm = sys::cublasLtMatmulAlgo_t { data };
            // The library's own word that it still takes it, and with which workspace.
            if self.accepts(&prepared) {
                return Ok(Some(prepared));
            }
        }
        let preference = Preference::new(library, shape)?;
        let mut found = MaybeUninit::<Heuristic>::zeroed();
        let mut count = 0;
        let [b, a, c] = prepared.layouts;
        // SAFETY: at most one result is asked for and written.
        let status = unsafe {
            (library.heuristic)(
                self.handle,
                prepared.product,
                b,
                a,
                c,
                c,
                preference.preference,
                1,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        if status == NOT_SUPPORTED {
            return Ok(None);
        }
        library.check("choosing an algorithm", status)?;
        // SAFETY: plain numbers, zero where nothing was written.
        let found = unsafe { found.assume_init() };
        if count == 0 || found.state != SUCCESS || found.workspace > WORKSPACE {
            return Ok(None);
        }
        prepared.algorithm = found.algorithm;
        Ok(Some(prepared))
    }

    /// Whether the library computes this product by its algorithm within the workspace.
    fn accepts(&self, prepared: &Prepared) -> bool {
        let [b, a, c] = prepared.layouts;
        let mut found = MaybeUninit::<Heuristic>::zeroed();
        // SAFETY: the descriptions are the library's own; it writes one result.
        let (status, found) = unsafe {
            let algorithm = &raw const prepared.algorithm;
            let status = (self.library.check_algorithm)(
                self.handle,
                prepared.product,
                b,
                a,
                c,
                c,
                algorithm,
                found.as_mut_ptr(),
            );
            (status, found.assume_init())
        };
        status == SUCCESS && found.state == SUCCESS && found.workspace <= WORKSPACE
    }
}

impl Prepared {
    /// All but the algorithm.
    fn describe(library: &Library, shape: &Shape) -> Result<Prepared, String> {
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
        if shape.has_bias {
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
}

impl Prepared {
    /// Where the bias is, if there is one.
    fn set_bias(&self, bias: Pointer) -> Result<(), String> {
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
struct Preference<'a> {
    preference: sys::cublasLtMatmulPreference_t,
    library: &'a Library,
}

impl<'a> Preference<'a> {
    fn new(library: &'a Library, shape: &Shape) -> Result<Preference<'a>, String> {
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

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<(), String> {
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

impl Drop for CublasLt {
    fn drop(&mut self) {
        self.prepared.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: made by the library, released once. An error belongs to earlier work.
        let _ = unsafe { (self.library.destroy)(self.handle) };
    }
}

impl fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cuBLASLt {} ({})", self.version(), self.place)
    }
}

#[cfg(test)]
#[path = "cublaslt_tests.rs"]
mod tests;
