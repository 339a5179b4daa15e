//! The functions of NVIDIA's driver that are called here. Their statuses are numbers.
//!
//! cudarc's own wrappers hand a status out as an enumeration of those that its version of the driver has. A newer driver may answer with another,
//! and a Rust enumeration that holds one it lacks is undefined behaviour, whatever is done with it. They also panic where the library or a function is
//! missing. So the functions are looked up here; types and constants are cudarc's, and the compiler holds the declarations against cudarc's.

use super::libraries::{Loaded, text};
use cudarc::driver::sys;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::ptr;
use std::sync::OnceLock;

/// A `CUresult`.
pub type Status = u32;

pub const SUCCESS: Status = sys::CUresult::CUDA_SUCCESS as Status;

/// The oldest driver interface that has every function called here: CUDA 12.0, driver 525.
const OLDEST: i32 = 12_000;

/// Declares functions as cuda.h does, but for the status: those whose arguments have no status either are held against cudarc's declarations.
macro_rules! functions {
    (
        as in cudarc { $($name:ident($($type:ty),*);)* }
        with statuses { $($other:ident($($other_type:ty),*);)* }
    ) => {
        #[derive(Debug, Clone, Copy)]
        #[allow(non_snake_case, reason = "the driver's own names")]
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($type),*) -> Status,)*
            $($other: unsafe extern "C" fn($($other_type),*) -> Status,)*
        }

        $(const _: unsafe fn($($type),*) -> sys::CUresult = sys::$name;)*

        impl Functions {
            fn of(library: Loaded) -> Result<Self, String> {
                // SAFETY: the fields' types are those that cuda.h declares.
                unsafe {
                    Ok(Functions {
                        $($name: function(library, concat!(stringify!($name), "\0"))?,)*
                        $($other: function(library, concat!(stringify!($other), "\0"))?,)*
                    })
                }
            }
        }
    };
}

functions! {
    as in cudarc {
        cuInit(c_uint);
        cuDeviceGetCount(*mut c_int);
        cuDeviceGet(*mut sys::CUdevice, c_int);
        cuDeviceGetName(*mut c_char, c_int, sys::CUdevice);
        cuDeviceTotalMem_v2(*mut usize, sys::CUdevice);
        cuDeviceGetAttribute(*mut c_int, sys::CUdevice_attribute, sys::CUdevice);
        cuDevicePrimaryCtxRetain(*mut sys::CUcontext, sys::CUdevice);
        cuDevicePrimaryCtxRelease_v2(sys::CUdevice);
        cuCtxSetCurrent(sys::CUcontext);
        cuStreamCreate(*mut sys::CUstream, c_uint);
        cuStreamDestroy_v2(sys::CUstream);
        cuStreamSynchronize(sys::CUstream);
        cuStreamWaitEvent(sys::CUstream, sys::CUevent, c_uint);
        cuStreamBeginCapture_v2(sys::CUstream, sys::CUstreamCaptureMode);
        cuStreamEndCapture(sys::CUstream, *mut sys::CUgraph);
        cuEventCreate(*mut sys::CUevent, c_uint);
        cuEventDestroy_v2(sys::CUevent);
        cuEventRecord(sys::CUevent, sys::CUstream);
        cuEventSynchronize(sys::CUevent);
        cuMemGetInfo_v2(*mut usize, *mut usize);
        cuMemAlloc_v2(*mut sys::CUdeviceptr, usize);
        cuMemFree_v2(sys::CUdeviceptr);
        cuMemAllocHost_v2(*mut *mut c_void, usize);
        cuMemFreeHost(*mut c_void);
        cuMemcpyHtoDAsync_v2(sys::CUdeviceptr, *const c_void, usize, sys::CUstream);
        cuMemcpyDtoHAsync_v2(*mut c_void, sys::CUdeviceptr, usize, sys::CUstream);
        cuMemcpyDtoDAsync_v2(sys::CUdeviceptr, sys::CUdeviceptr, usize, sys::CUstream);
        cuMemsetD8Async(sys::CUdeviceptr, u8, usize, sys::CUstream);
        cuModuleLoadData(*mut sys::CUmodule, *const c_void);
        cuModuleUnload(sys::CUmodule);
        cuModuleGetFunction(*mut sys::CUfunction, sys::CUmodule, *const c_char);
        cuFuncSetAttribute(sys::CUfunction, sys::CUfunction_attribute, c_int);
        cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, sys::CUfunction, c_int, usize);
        cuLaunchKernel(
            sys::CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, sys::CUstream, *mut *mut c_void, *mut *mut c_void
        );
        cuLaunchCooperativeKernel(
            sys::CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, sys::CUstream, *mut *mut c_void
        );
        cuGraphInstantiateWithFlags(*mut sys::CUgraphExec, sys::CUgraph, c_ulonglong);
        cuGraphDestroy(sys::CUgraph);
        cuGraphLaunch(sys::CUgraphExec, sys::CUstream);
        cuGraphExecDestroy(sys::CUgraphExec);
    }
    with statuses {
        cuGetErrorString(Status, *mut *const c_char);
        cuGetErrorName(Status, *mut *const c_char);
    }
}

/// # Safety
/// As [`Loaded::function`]; `name` ends in a zero.
unsafe fn function<F: Copy>(library: Loaded, name: &str) -> Result<F, String> {
    let name = CStr::from_bytes_with_nul(name.as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: the caller's.
    unsafe { library.function(name) }
}

impl Functions {
    /// A status in the driver's words.
    pub fn describe(&self, status: Status) -> String {
        let words = |of: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
            let mut words = ptr::null();
            // SAFETY: writes a pointer to a constant text, or null, for any number.
            let known = unsafe { of(status, &raw mut words) } == SUCCESS && !words.is_null();
            known.then(|| text(words))
        };
        match (words(self.cuGetErrorString), words(self.cuGetErrorName)) {
            (Some(meaning), Some(name)) => format!("{meaning} ({name})"),
            _ => format!("status {status}"),
        }
    }
}

/// A driver that was started.
#[derive(Debug)]
pub struct Interface {
    /// What it serves: 13000 for CUDA 13.0.
    pub version: i32,
    pub functions: Functions,
}

/// The driver, started when this is first asked; or why there is none to speak to.
///
/// # Errors
/// In words for a user, without naming a device.
pub fn interface() -> Result<&'static Interface, String> {
    static INTERFACE: OnceLock<Result<Interface, String>> = OnceLock::new();
    INTERFACE.get_or_init(start).as_ref().map_err(Clone::clone)
}

fn start() -> Result<Interface, String> {
    let library = Loaded::load("libcuda.so.1").or_else(|first| Loaded::load("libcuda.so").map_err(|_| first));
    let library = library.map_err(|reason| format!("no NVIDIA driver is installed ({reason})"))?;
    let mut version = 0;
    // SAFETY: as cuda.h declares it; it is in every driver, writes one int and needs no initialisation.
    let status = unsafe {
        let get_version = library.function::<unsafe extern "C" fn(*mut c_int) -> Status>(c"cuDriverGetVersion")?;
        get_version(&raw mut version)
    };
    if status != SUCCESS {
        return Err(format!("the NVIDIA driver does not answer (status {status})"));
    }
    if version < OLDEST {
        let served = version_text(version);
        return Err(format!("the NVIDIA driver is too old: it serves CUDA {served}, and 12.0 (driver 525) is needed"));
    }
    let functions = Functions::of(library).map_err(|lack| format!("the NVIDIA driver {lack}"))?;
    // SAFETY: as its documentation asks, before any other call.
    let status = unsafe { (functions.cuInit)(0) };
    if status == sys::CUresult::CUDA_ERROR_NO_DEVICE as Status {
        return Err("the NVIDIA driver sees no GPU".into());
    }
    if status != SUCCESS {
        return Err(format!("the NVIDIA driver does not start: {}", functions.describe(status)));
    }
    Ok(Interface { version, functions })
}

/// 12040 is 12.4.
pub fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_no_driver_is_refused_by_what_it_lacks() {
        let reason = Functions::of(Loaded::load("libc.so.6").unwrap()).unwrap_err();
        assert!(reason.contains("cuInit"), "{reason}");
        assert_eq!(version_text(12_040), "12.4");
    }

    /// Stands for a driver of a later version: it has a status that nobody here has heard of.
    #[test]
    fn a_status_that_is_not_known_is_told_by_its_number() {
        let Ok(interface) = interface() else {
            println!("skipped: there is no NVIDIA driver");
            return;
        };
        assert!(interface.functions.describe(u32::MAX).contains(&u32::MAX.to_string()));
        let known = sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as Status;
        assert!(interface.functions.describe(known).contains("CUDA_ERROR_OUT_OF_MEMORY"));
    }
}
