//! Names for the profilers of NVIDIA: a range around every row, shown by Nsight Systems and usable as a filter by Nsight Compute.
//!
//! They come from NVIDIA's own library, which is part of CUDA's toolkit and not of the driver; where it is not found, there are no ranges.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

/// The classic library, then the one that CUDA 12 brings for programs that cannot include NVTX 3's headers.
const LIBRARIES: [&CStr; 4] =
    [c"libnvToolsExt.so.1", c"libnvToolsExt.so", c"libnvtx3interop.so.1", c"libnvtx3interop.so"];

type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

/// The library, if there is one. It stays loaded until the program ends.
pub struct Nvtx {
    functions: Option<(Push, Pop)>,
}

/// Ends when dropped.
pub struct Range<'a>(&'a Nvtx);

impl Nvtx {
    pub fn load() -> Self {
        let functions = LIBRARIES.iter().find_map(|library| {
            // SAFETY: loads a library, or not; NVIDIA's does nothing when it is loaded but to look for a profiler.
            let library = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_LAZY) };
            let symbol = |name: &CStr| -> Option<*mut c_void> {
                // SAFETY: a library that is there, a name that ends with zero.
                let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
                (!symbol.is_null()).then_some(symbol)
            };
            if library.is_null() {
                return None;
            }
            let (push, pop) = (symbol(c"nvtxRangePushA")?, symbol(c"nvtxRangePop")?);
            // SAFETY: these are their declarations in nvToolsExt.h.
            unsafe {
                Some((std::mem::transmute::<*mut c_void, Push>(push), std::mem::transmute::<*mut c_void, Pop>(pop)))
            }
        });
        Nvtx { functions }
    }

    /// No ranges.
    pub fn none() -> Self {
        Nvtx { functions: None }
    }

    pub fn is_loaded(&self) -> bool {
        self.functions.is_some()
    }

    pub fn range(&self, name: &str) -> Range<'_> {
        if let (Some((push, _)), Ok(name)) = (self.functions, CString::new(name)) {
            // SAFETY: the library copies the name.
            unsafe { push(name.as_ptr()) };
        }
        Range(self)
    }
}

impl Drop for Range<'_> {
    fn drop(&mut self) {
        if let Some((_, pop)) = self.0.functions {
            // SAFETY: takes nothing.
            unsafe { pop() };
        }
    }
}
