//! NVIDIA's library of matrix products, cuBLASLt, where one is found; types and constants are cudarc's, the loading is our own.
//!
//! The library computes in column-major order: c = a b of rows is c^T = b^T a^T of columns, without moving anything. An algorithm is what its
//! heuristic names first, never timed, so a product's bits depend on the library's version and the GPU alone: one workspace, one stream, and
//! splits of k are summed out of place, in order. A saved state keeps the choices, and a resumed stage takes them over. Not yet run on a GPU.
//!
//! Source: cuBLAS Library User Guide, "Using the cuBLASLt API".

mod description;
mod library;

use super::driver::Pointer;
use super::libraries::{Wanted, file_of};
use super::matmul::Product;
use super::products::{Algorithm, Products};
use crate::error::Result as DeviceResult;
use cudarc::cublaslt::sys;
use description::{Preference, Prepared, Shape};
use library::{Heuristic, Library, NOT_SUPPORTED, SUCCESS};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
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
mod tests;
