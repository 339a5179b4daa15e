//! An NVIDIA GPU, through the driver's [interface](super::interface).

use super::cublaslt::{CublasLt, WORKSPACE};
use super::driver::{Argument, Driver, Event, Function, Graph, HostPointer, Lane, Launch, Pointer, Properties};
use super::embedded;
use super::interface::{Functions, SUCCESS, Status, interface};
use super::matmul::Product;
use super::products::Products;
use super::usable::{self, Found, Unusable};
use crate::error::{Error, Fault, Result, Subject};
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The driver's interface version (13000 for 13.0), or why there is none to speak to.
///
/// # Errors
/// In words for a user, without naming a device.
pub fn driver_version() -> Result<i32, String> {
    interface().map(|interface| interface.version)
}

/// The driver's own release, as `580.65.06`; none if the kernel has no NVIDIA driver.
pub fn driver_release() -> Option<String> {
    release_in(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?)
}

/// `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build ...`
fn release_in(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let is_release = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    line.split_whitespace().find(is_release).map(String::from)
}

/// How many GPUs the driver sees; 0 if there is no driver.
pub fn count() -> u32 {
    let mut count = 0;
    // SAFETY: the driver is started; it writes one int.
    let status = interface().map(|driver| unsafe { (driver.functions.cuDeviceGetCount)(&raw mut count) });
    if status == Ok(SUCCESS) { u32::try_from(count).unwrap_or(0) } else { 0 }
}

/// A GPU with a context and two streams of its own.
#[derive(Debug)]
pub struct Gpu {
    name: String,
    driver: &'static Functions,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    copies: sys::CUstream,
    properties: Properties,
    /// By file: loaded when its first kernel is wanted.
    modules: Mutex<HashMap<&'static str, Module>>,
    /// NVIDIA's library of products, looked for when the first product is wanted.
    library: OnceLock<Option<CublasLt>>,
}

#[derive(Debug, Clone, Copy)]
struct Module(sys::CUmodule);

// SAFETY: the driver's handles may be used from any thread that has made the context current, which every method does first.
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver serialises calls on one stream, the table of modules has a lock.
unsafe impl Sync for Gpu {}
// SAFETY: a handle.
unsafe impl Send for Module {}

impl Gpu {
    /// Opens the GPU with this number, one of [`count`].
    ///
    /// # Errors
    /// If the driver does not let us.
    pub fn open(ordinal: u32) -> Result<Self> {
        let name = format!("cuda:{ordinal}");
        let error = |problem: String| Error::new(Subject::Device(name.clone()), problem);
        let driver = &interface().map_err(error)?.functions;
        let check = |status| check(driver, &name, "opening the GPU", status);
        let mut device = 0;
        let mut context = ptr::null_mut();
        let [mut stream, mut copies] = [ptr::null_mut(); 2];
        // SAFETY: the driver is initialised, and each call writes one handle.
        unsafe {
            check((driver.cuDeviceGet)(&raw mut device, ordinal as i32))?;
            check((driver.cuDevicePrimaryCtxRetain)(&raw mut context, device))?;
            check((driver.cuCtxSetCurrent)(context))?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check((driver.cuStreamCreate)(&raw mut stream, flags))?;
            check((driver.cuStreamCreate)(&raw mut copies, flags))?;
        }
        let properties = properties(driver, &name, device)?;
        Ok(Gpu {
            name,
            driver,
            device,
            context,
            stream,
            copies,
            properties,
            modules: Mutex::default(),
            library: OnceLock::new(),
        })
    }

    /// Whether this binary's kernels run here: the smallest file of them is loaded, which a later step may need anyway.
    ///
    /// # Errors
    /// Why not, and what would help.
    pub fn check_usable(&self) -> Result<()> {
        let Some(smallest) = embedded::files().iter().min_by_key(|file| file.fatbin.len()) else {
            return Err(Error::new(Subject::Device(self.name.clone()), "this binary was built without CUDA kernels")
                .remedy("Build it where nvcc is found (kernels/toolchain.sh installs it), or use --device cpu"));
        };
        usable::before_loading(&self.found()).map_err(|unusable| self.unusable(unusable))?;
        self.make_current()?;
        self.module(smallest.name).map(|_| ())
    }

    fn found(&self) -> Found<'static> {
        Found {
            capability: self.properties.capability,
            architectures: embedded::architectures(),
            compiler: embedded::compiler().unwrap_or("nvcc"),
            driver: driver_version().unwrap_or(0),
        }
    }

    fn unusable(&self, Unusable { problem, remedy }: Unusable) -> Error {
        let problem = format!("{} {problem}", self.properties.name);
        Error::new(Subject::Device(self.name.clone()), problem).remedy(remedy)
    }

    fn check(&self, doing: &str, status: Status) -> Result<()> {
        check(self.driver, &self.name, doing, status)
    }

    fn make_current(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        self.check("making the context current", unsafe { (self.driver.cuCtxSetCurrent)(self.context) })
    }

    /// The stream, for libraries that launch on it.
    pub fn stream(&self) -> sys::CUstream {
        self.stream
    }

    /// NVIDIA's library of products, if there is one that works here.
    pub fn library(&self) -> Option<&CublasLt> {
        let open = || CublasLt::open(self.stream.cast(), |bytes| self.allocate(bytes)).ok();
        self.library.get_or_init(|| self.make_current().ok().and_then(|()| open())).as_ref()
    }

    fn lane(&self, lane: Lane) -> sys::CUstream {
        match lane {
            Lane::Kernels => self.stream,
            Lane::Copies => self.copies,
        }
    }

    fn module(&self, file: &'static str) -> Result<Module> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&module) = modules.get(file) {
            return Ok(module);
        }
        let error = |problem: String| Error::new(Subject::Device(self.name.clone()), problem);
        let Some(embedded) = embedded::files().iter().find(|embedded| embedded.name == file) else {
            return Err(error(format!("this binary has no CUDA kernels {file:?}"))
                .remedy("Build it where nvcc is found (kernels/toolchain.sh installs it), or use --device cpu"));
        };
        let mut module = ptr::null_mut();
        // SAFETY: a fat binary is what the call takes; it is embedded whole.
        let status = unsafe { (self.driver.cuModuleLoadData)(&raw mut module, embedded.fatbin.as_ptr().cast()) };
        if let Some(refused) = usable::when_refused(&self.found(), status) {
            return Err(self.unusable(refused));
        }
        self.check("loading kernels", status)?;
        modules.insert(file, Module(module));
        Ok(Module(module))
    }
}

impl Driver for Gpu {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_memory(&self) -> Result<u64> {
        self.make_current()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two sizes.
        self.check("asking for free memory", unsafe { (self.driver.cuMemGetInfo_v2)(&raw mut free, &raw mut total) })?;
        Ok(free as u64)
    }

    fn allocate(&self, bytes: usize) -> Result<Pointer> {
        self.make_current()?;
        let mut pointer = 0;
        // SAFETY: writes one address.
        let status = unsafe { (self.driver.cuMemAlloc_v2)(&raw mut pointer, bytes) };
        if status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as Status {
            let free = self.free_memory().unwrap_or(0);
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            let problem = format!(
                "out of memory: {} MiB more are needed, {} MiB of {} MiB are free",
                mib(bytes as u64),
                mib(free),
                mib(self.properties.memory)
            );
            return Err(Error::new(Subject::Device(self.name.clone()), problem).fault(Fault::OutOfMemory).remedy(
                "Free memory that other programs hold there (nvidia-smi lists them), or take a smaller batch or model",
            ));
        }
        self.check("allocating memory", status)?;
        Ok(pointer)
    }

    unsafe fn release(&self, pointer: Pointer) {
        if self.make_current().is_ok() {
            // SAFETY: the caller's. An error here belongs to earlier work, which reports it itself.
            let _ = unsafe { (self.driver.cuMemFree_v2)(pointer) };
        }
    }

    unsafe fn upload(&self, to: Pointer, from: &[u8]) -> Result<()> {
        self.make_current()?;
        // SAFETY: the caller's; from pageable memory the call returns once the bytes are staged.
        let status = unsafe { (self.driver.cuMemcpyHtoDAsync_v2)(to, from.as_ptr().cast(), from.len(), self.stream) };
        self.check("copying to the GPU", status)
    }

    unsafe fn download(&self, to: &mut [u8], from: Pointer) -> Result<()> {
        self.make_current()?;
        // SAFETY: the caller's; waited for below, so `to` is written while it is borrowed.
        let status = unsafe { (self.driver.cuMemcpyDtoHAsync_v2)(to.as_mut_ptr().cast(), from, to.len(), self.stream) };
        self.check("copying from the GPU", status)?;
        self.synchronize()
    }

    unsafe fn fill(&self, to: Pointer, byte: u8, bytes: usize) -> Result<()> {
        self.make_current()?;
        // SAFETY: the caller's.
        self.check("filling memory", unsafe { (self.driver.cuMemsetD8Async)(to, byte, bytes, self.stream) })
    }

    unsafe fn copy(&self, to: Pointer, from: Pointer, bytes: usize) -> Result<()> {
        self.make_current()?;
        // SAFETY: the caller's.
        self.check("copying on the GPU", unsafe { (self.driver.cuMemcpyDtoDAsync_v2)(to, from, bytes, self.stream) })
    }

    fn function(&self, file: &'static str, name: &'static str) -> Result<Function> {
        self.make_current()?;
        let module = self.module(file)?;
        let symbol = CString::new(name).expect("a kernel's name has no zero byte");
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends with a zero.
        let status = unsafe { (self.driver.cuModuleGetFunction)(&raw mut function, module.0, symbol.as_ptr()) };
        self.check(&format!("finding the kernel {name}"), status)?;
        // Beyond 48 KiB a kernel has to ask; asking for all that there is costs nothing until a launch takes it.
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a function just found.
        let status =
            unsafe { (self.driver.cuFuncSetAttribute)(function, attribute, self.properties.shared_per_block as i32) };
        self.check(&format!("preparing the kernel {name}"), status)?;
        // For tests/gpu.sh, which says what no run under compute-sanitizer reached.
        if std::env::var_os("HEADFIRST_SHOW_KERNELS").is_some() {
            eprintln!("launches kernel {name}");
        }
        Ok(Function(function as u64))
    }

    fn resident_blocks(&self, function: Function, launch: &Launch) -> Result<u32> {
        self.make_current()?;
        let mut blocks = 0;
        let threads: u32 = launch.threads.iter().product();
        // SAFETY: a function of this context; writes one int.
        let status = unsafe {
            (self.driver.cuOccupancyMaxActiveBlocksPerMultiprocessor)(
                &raw mut blocks,
                function.0 as sys::CUfunction,
                threads as i32,
                launch.shared as usize,
            )
        };
        self.check("asking how many blocks fit", status)?;
        Ok(u32::try_from(blocks).unwrap_or(0) * self.properties.multiprocessors)
    }

    unsafe fn launch(&self, function: Function, launch: &Launch, arguments: &[Argument]) -> Result<()> {
        self.make_current()?;
        let mut slots: Vec<u64> = arguments.iter().map(|argument| argument.slot()).collect();
        let mut places: Vec<*mut std::ffi::c_void> = slots.iter_mut().map(|slot| ptr::from_mut(slot).cast()).collect();
        let ([x, y, z], [i, j, k]) = (launch.blocks, launch.threads);
        let (function, shared, places) = (function.0 as sys::CUfunction, launch.shared, places.as_mut_ptr());
        // SAFETY: the caller's; the driver copies the arguments before it returns.
        let status = unsafe {
            if launch.cooperative {
                (self.driver.cuLaunchCooperativeKernel)(function, x, y, z, i, j, k, shared, self.stream, places)
            } else {
                (self.driver.cuLaunchKernel)(function, x, y, z, i, j, k, shared, self.stream, places, ptr::null_mut())
            }
        };
        self.check("launching a kernel", status)
    }

    fn library_takes(&self, product: &Product) -> Result<bool> {
        let Some(library) = self.library() else { return Ok(false) };
        self.make_current()?;
        Ok(library.takes(product))
    }

    unsafe fn library_product(&self, product: &Product) -> Result<()> {
        self.make_current()?;
        let library = self.library().ok_or("the library is gone".to_string());
        // SAFETY: the caller's; the context is current.
        let done = library.and_then(|library| unsafe { library.product(product) });
        done.map_err(|problem| Error::new(Subject::Device(self.name.clone()), problem))
    }

    fn library_memory(&self) -> u64 {
        self.library().map_or(0, |_| WORKSPACE as u64)
    }

    fn products(&self) -> Products {
        self.library().map_or_else(Products::of_kernels, |library| library.products(&self.properties.name))
    }

    fn recall_products(&self, earlier: &Products) {
        if let Some(library) = self.library() {
            library.recall(earlier, &self.properties.name);
        }
    }

    fn take_note(&self) -> Option<String> {
        self.library.get()?.as_ref()?.take_note()
    }

    fn allocate_host(&self, bytes: usize) -> Result<HostPointer> {
        self.make_current()?;
        let mut pointer = ptr::null_mut();
        // SAFETY: writes one address.
        self.check("allocating memory of the host", unsafe {
            (self.driver.cuMemAllocHost_v2)(&raw mut pointer, bytes)
        })?;
        Ok(pointer as HostPointer)
    }

    unsafe fn release_host(&self, pointer: HostPointer) {
        if self.make_current().is_ok() {
            // SAFETY: the caller's. An error here belongs to earlier work, which reports it itself.
            let _ = unsafe { (self.driver.cuMemFreeHost)(pointer as *mut std::ffi::c_void) };
        }
    }

    unsafe fn send(&self, to: Pointer, from: HostPointer, bytes: usize) -> Result<()> {
        self.make_current()?;
        // SAFETY: the caller's.
        let status =
            unsafe { (self.driver.cuMemcpyHtoDAsync_v2)(to, from as *const std::ffi::c_void, bytes, self.copies) };
        self.check("copying to the GPU", status)
    }

    unsafe fn receive(&self, to: HostPointer, from: Pointer, bytes: usize) -> Result<()> {
        self.make_current()?;
        // SAFETY: the caller's.
        let status =
            unsafe { (self.driver.cuMemcpyDtoHAsync_v2)(to as *mut std::ffi::c_void, from, bytes, self.stream) };
        self.check("copying from the GPU", status)
    }

    fn event(&self) -> Result<Event> {
        self.make_current()?;
        let mut event = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: writes one handle.
        self.check("making an event", unsafe { (self.driver.cuEventCreate)(&raw mut event, flags) })?;
        Ok(Event(event as u64))
    }

    fn release_event(&self, event: Event) {
        if self.make_current().is_ok() {
            // SAFETY: made by `event`, released once.
            let _ = unsafe { (self.driver.cuEventDestroy_v2)(event.0 as sys::CUevent) };
        }
    }

    fn signal(&self, event: Event, lane: Lane) -> Result<()> {
        self.make_current()?;
        // SAFETY: an event and a stream of this context.
        let status = unsafe { (self.driver.cuEventRecord)(event.0 as sys::CUevent, self.lane(lane)) };
        self.check("recording an event", status)
    }

    fn await_signal(&self, event: Event, lane: Lane) -> Result<()> {
        self.make_current()?;
        // SAFETY: as above.
        let status = unsafe { (self.driver.cuStreamWaitEvent)(self.lane(lane), event.0 as sys::CUevent, 0) };
        self.check("ordering two streams", status)
    }

    fn wait_for(&self, event: Event) -> Result<()> {
        self.make_current()?;
        // SAFETY: as above.
        self.check("waiting for the GPU", unsafe { (self.driver.cuEventSynchronize)(event.0 as sys::CUevent) })
    }

    fn synchronize(&self) -> Result<()> {
        self.make_current()?;
        // SAFETY: the stream lives as long as `self`.
        self.check("waiting for the GPU", unsafe { (self.driver.cuStreamSynchronize)(self.stream) })
    }

    fn begin_capture(&self) -> Result<()> {
        self.make_current()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: our own stream.
        self.check("beginning a graph", unsafe { (self.driver.cuStreamBeginCapture_v2)(self.stream, mode) })
    }

    fn end_capture(&self) -> Result<Graph> {
        self.make_current()?;
        let (mut graph, mut executable) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: our own stream; each call writes one handle, and the captured graph is not needed once it is instantiated.
        unsafe {
            self.check("ending a graph", (self.driver.cuStreamEndCapture)(self.stream, &raw mut graph))?;
            let status = (self.driver.cuGraphInstantiateWithFlags)(&raw mut executable, graph, 0);
            let _ = (self.driver.cuGraphDestroy)(graph);
            self.check("instantiating a graph", status)?;
        }
        Ok(Graph(executable as u64))
    }

    unsafe fn replay(&self, graph: Graph) -> Result<()> {
        self.make_current()?;
        // SAFETY: the caller's.
        self.check("running a graph", unsafe { (self.driver.cuGraphLaunch)(graph.0 as sys::CUgraphExec, self.stream) })
    }

    fn release_graph(&self, graph: Graph) {
        if self.make_current().is_ok() {
            // SAFETY: made by `end_capture`, released once.
            let _ = unsafe { (self.driver.cuGraphExecDestroy)(graph.0 as sys::CUgraphExec) };
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        let modules = std::mem::take(self.modules.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: nothing of this GPU is used any more. Errors belong to earlier work.
        unsafe {
            let _ = (self.driver.cuCtxSetCurrent)(self.context);
            if let Some(library) = self.library.take().flatten() {
                let workspace = library.workspace();
                drop(library);
                let _ = (self.driver.cuMemFree_v2)(workspace);
            }
            for module in modules.into_values() {
                let _ = (self.driver.cuModuleUnload)(module.0);
            }
            let _ = (self.driver.cuStreamDestroy_v2)(self.stream);
            let _ = (self.driver.cuStreamDestroy_v2)(self.copies);
            let _ = (self.driver.cuDevicePrimaryCtxRelease_v2)(self.device);
        }
    }
}

fn properties(driver: &Functions, name: &str, device: sys::CUdevice) -> Result<Properties> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |attribute: Attribute| {
        let mut value = 0;
        // SAFETY: a device just found; writes one int.
        let status = unsafe { (driver.cuDeviceGetAttribute)(&raw mut value, attribute, device) };
        check(driver, name, "asking for the GPU's properties", status).map(|()| u32::try_from(value).unwrap_or(0))
    };
    let mut text = [0; 256];
    let mut memory = 0;
    // SAFETY: writes at most 256 bytes with a zero behind, and one size.
    unsafe {
        check(driver, name, "asking for the GPU's name", (driver.cuDeviceGetName)(text.as_mut_ptr(), 256, device))?;
        check(driver, name, "asking for the GPU's memory", (driver.cuDeviceTotalMem_v2)(&raw mut memory, device))?;
    }
    // SAFETY: the driver ended it with a zero.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    Ok(Properties {
        name: text.to_string_lossy().into_owned(),
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        memory: memory as u64,
        cooperative: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? != 0,
    })
}

fn check(driver: &Functions, device: &str, doing: &str, status: Status) -> Result<()> {
    if status == SUCCESS {
        return Ok(());
    }
    let problem = format!("failed while {doing}: {}", driver.describe(status));
    let error = Error::new(Subject::Device(device.into()), problem);
    Err(match is_lost(status) {
        true => error.fault(Fault::Lost).remedy(
            "Nothing more runs there before the program is started again; `headfirst doctor` shows what is there",
        ),
        false => error,
    })
}

/// Whether the driver says of this status that the process has to be started again, or the GPU is gone.
fn is_lost(status: Status) -> bool {
    use sys::CUresult as Known;
    let known = [
        Known::CUDA_ERROR_DEINITIALIZED,
        Known::CUDA_ERROR_DEVICE_UNAVAILABLE,
        Known::CUDA_ERROR_ECC_UNCORRECTABLE,
        Known::CUDA_ERROR_NVLINK_UNCORRECTABLE,
        Known::CUDA_ERROR_ILLEGAL_ADDRESS,
        Known::CUDA_ERROR_LAUNCH_TIMEOUT,
        Known::CUDA_ERROR_CONTEXT_IS_DESTROYED,
        Known::CUDA_ERROR_ASSERT,
        Known::CUDA_ERROR_HARDWARE_STACK_ERROR,
        Known::CUDA_ERROR_ILLEGAL_INSTRUCTION,
        Known::CUDA_ERROR_MISALIGNED_ADDRESS,
        Known::CUDA_ERROR_INVALID_ADDRESS_SPACE,
        Known::CUDA_ERROR_INVALID_PC,
        Known::CUDA_ERROR_LAUNCH_FAILED,
        Known::CUDA_ERROR_EXTERNAL_DEVICE,
        Known::CUDA_ERROR_UNKNOWN,
    ];
    known.into_iter().any(|known| status == known as Status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_lost_by_what_ends_its_context_and_not_by_what_can_be_asked_again() {
        use sys::CUresult as Known;
        for status in [Known::CUDA_ERROR_UNKNOWN, Known::CUDA_ERROR_INVALID_PC, Known::CUDA_ERROR_EXTERNAL_DEVICE] {
            assert!(is_lost(status as Status), "{status:?}");
        }
        for status in [Known::CUDA_SUCCESS, Known::CUDA_ERROR_OUT_OF_MEMORY, Known::CUDA_ERROR_INVALID_VALUE] {
            assert!(!is_lost(status as Status), "{status:?}");
        }
        assert!(!is_lost(u32::MAX));
    }

    #[test]
    fn the_drivers_release_is_read_from_what_the_kernel_says() {
        for line in [
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder@host)  Sun Jul 27",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:08:52 UTC 2025",
        ] {
            let text = format!("{line}\nGCC version:  gcc version 12.3.0 (Ubuntu 12.3.0)\n");
            assert_eq!(release_in(&text).as_deref(), Some("580.65.06"), "{line}");
        }
        assert_eq!(release_in("GCC version:  gcc version 12.3.0"), None);
    }
}
