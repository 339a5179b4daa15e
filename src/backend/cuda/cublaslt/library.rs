//! The library's functions, looked up in its file; types are cudarc's, enumerations are numbers.

use super::super::libraries::{Loaded, text};
use cudarc::cublaslt::sys::{
    self, cublasLtHandle_t as Handle, cublasLtMatmulAlgo_t as Algorithm, cublasLtMatmulDesc_t as Product,
    cublasLtMatmulPreference_t as Preference, cublasLtMatrixLayout_t as Layout,
};
use std::ffi::{c_char, c_int, c_void};

/// A status as a number: an enumeration of Rust's must not hold one that a newer library adds.
pub(super) type Status = u32;
pub(super) const SUCCESS: Status = sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS as Status;
pub(super) const NOT_SUPPORTED: Status = sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED as Status;

/// `cublasLtMatmulHeuristicResult_t`, with its state as a number.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Heuristic {
    pub(super) algorithm: Algorithm,
    pub(super) workspace: usize,
    pub(super) state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Heuristic>() == size_of::<sys::cublasLtMatmulHeuristicResult_t>());

type SetAttribute<Object> = unsafe extern "C" fn(Object, u32, *const c_void, usize) -> Status;
/// `cublasLtMatmulAlgoGetHeuristic`: at most `wanted` algorithms, and how many were found.
type Choose = unsafe extern "C" fn(
    library: Handle,
    product: Product,
    a: Layout,
    b: Layout,
    c: Layout,
    d: Layout,
    preference: Preference,
    wanted: c_int,
    results: *mut Heuristic,
    found: *mut c_int,
) -> Status;
/// `cublasLtMatmulAlgoCheck`.
type Check = unsafe extern "C" fn(
    library: Handle,
    product: Product,
    a: Layout,
    b: Layout,
    c: Layout,
    d: Layout,
    algorithm: *const Algorithm,
    result: *mut Heuristic,
) -> Status;
/// `cublasLtMatmul`: d = alpha a b + beta c, and the bias.
type Compute = unsafe extern "C" fn(
    library: Handle,
    product: Product,
    alpha: *const c_void,
    a: *const c_void,
    a_layout: Layout,
    b: *const c_void,
    b_layout: Layout,
    beta: *const c_void,
    c: *const c_void,
    c_layout: Layout,
    d: *mut c_void,
    d_layout: Layout,
    algorithm: *const Algorithm,
    workspace: *mut c_void,
    workspace_bytes: usize,
    stream: sys::cudaStream_t,
) -> Status;

/// The functions called here, as cublasLt.h declares them; enumerations are numbers of 32 bits.
#[derive(Clone, Copy)]
pub(super) struct Library {
    pub(super) version: unsafe extern "C" fn() -> usize,
    pub(super) status_name: unsafe extern "C" fn(Status) -> *const c_char,
    pub(super) create: unsafe extern "C" fn(*mut Handle) -> Status,
    pub(super) destroy: unsafe extern "C" fn(Handle) -> Status,
    pub(super) create_product: unsafe extern "C" fn(*mut Product, u32, u32) -> Status,
    pub(super) set_product: SetAttribute<Product>,
    pub(super) destroy_product: unsafe extern "C" fn(Product) -> Status,
    pub(super) create_layout: unsafe extern "C" fn(*mut Layout, u32, u64, u64, i64) -> Status,
    pub(super) destroy_layout: unsafe extern "C" fn(Layout) -> Status,
    pub(super) create_preference: unsafe extern "C" fn(*mut Preference) -> Status,
    pub(super) set_preference: SetAttribute<Preference>,
    pub(super) destroy_preference: unsafe extern "C" fn(Preference) -> Status,
    pub(super) heuristic: Choose,
    pub(super) check_algorithm: Check,
    pub(super) product: Compute,
}

impl Library {
    /// Loads the library for as long as the program runs.
    pub(super) fn load(path: &str) -> Result<Library, String> {
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

    pub(super) fn version(&self) -> usize {
        // SAFETY: needs nothing.
        unsafe { (self.version)() }
    }

    pub(super) fn check(&self, doing: &str, status: Status) -> Result<(), String> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: gives a constant string for any number.
        let name = unsafe { (self.status_name)(status) };
        Err(format!("cuBLASLt failed while {doing}: {}", if name.is_null() { status.to_string() } else { text(name) }))
    }
}
