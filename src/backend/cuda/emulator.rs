//! The emulator: runs the CUDA kernels on the CPU, thread by thread, for tests. The work is done in `kernels/emulator/`, built by
//! `build/emulator.rs`; here are its functions, and its promises as tests.
//!
//! Where no C++ compiler was found ([`AVAILABLE`] is false), no kernel exists. HEADFIRST_EMULATOR_LIBRARY names a shared library to take instead
//! of what is linked in: kernels with faults (`tests/mutations.rs`), or with AddressSanitizer (`kernels/emulator/test.sh`).

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

/// Whether the kernels were built. If not, tests say that they are skipped.
pub const AVAILABLE: bool = cfg!(not(emulator_missing));

/// In which order threads run between two barriers, and blocks. No result may depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Blocks are shared out among several processors, in about this order.
    #[default]
    Forward,
    /// On one processor, as is `Shuffled`: what it finds it finds again.
    Reversed,
    /// By this seed; another order after every barrier.
    Shuffled(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pointer,
    Integer,
    Float,
}

/// An argument as the kernel declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    pub kind: Kind,
    pub bytes: usize,
}

/// The number of the kernel called `name`.
pub fn find(name: &str) -> Option<i32> {
    let name = CString::new(name).ok()?;
    // SAFETY: a string that ends in 0.
    let kernel = unsafe { (library().find)(name.as_ptr()) };
    (kernel >= 0).then_some(kernel)
}

/// What the kernel takes; nothing if it does not exist.
pub fn parameters(kernel: i32) -> Vec<Parameter> {
    // SAFETY: these functions take any numbers and give -1 for what does not exist.
    unsafe {
        let parameter = |index| Parameter {
            kind: match (library().argument_kind)(kernel, index) {
                0 => Kind::Pointer,
                1 => Kind::Integer,
                _ => Kind::Float,
            },
            bytes: usize::try_from((library().argument_size)(kernel, index)).unwrap_or(0),
        };
        (0..(library().argument_count)(kernel)).map(parameter).collect()
    }
}

/// The most threads that a block of the kernel may have.
pub fn threads(kernel: i32) -> Option<u32> {
    // SAFETY: takes any number.
    u32::try_from(unsafe { (library().threads)(kernel) }).ok()
}

/// That the kernel takes as many arguments, of as many bytes each.
///
/// # Errors
/// Names the first that differs.
pub fn check_arguments(kernel: i32, bytes: &[usize]) -> Result<(), String> {
    let parameters = parameters(kernel);
    if parameters.len() != bytes.len() {
        return Err(format!("{} arguments for a kernel that takes {}", bytes.len(), parameters.len()));
    }
    for (index, (parameter, &bytes)) in parameters.iter().zip(bytes).enumerate() {
        if parameter.bytes != bytes {
            return Err(format!("argument {index} has {bytes} bytes, the kernel's has {}", parameter.bytes));
        }
    }
    Ok(())
}

/// Runs a kernel to its end. Each argument stands in the first bytes of a slot; `shared` counts bytes.
///
/// # Errors
/// What a GPU would refuse, and what went wrong in the kernel: with its name, block and thread. Memory may then be half written.
///
/// # Safety
/// Pointers among the arguments hold what the kernel reads and writes, and nobody else touches it meanwhile.
pub unsafe fn launch(
    kernel: i32,
    blocks: [u32; 3],
    threads: [u32; 3],
    shared: u32,
    cooperative: bool,
    slots: &[u64],
    order: Order,
) -> Result<(), String> {
    let taken = parameters(kernel).len();
    if taken != slots.len() {
        return Err(format!("{} arguments for a kernel that takes {taken}", slots.len()));
    }
    let arguments: Vec<*const c_void> = slots.iter().map(|slot| std::ptr::from_ref(slot).cast()).collect();
    let (order, seed) = match order {
        Order::Forward => (0, 0),
        Order::Reversed => (1, 0),
        Order::Shuffled(seed) => (2, seed),
    };
    // SAFETY: three sizes each, as many slots as the kernel takes; the pointers in them are the caller's.
    let status = unsafe {
        (library().launch)(
            kernel,
            blocks.as_ptr(),
            threads.as_ptr(),
            shared,
            c_int::from(cooperative),
            arguments.as_ptr(),
            order,
            seed,
        )
    };
    if status == 0 { Ok(()) } else { Err(error()) }
}

/// Whether the kernels are under AddressSanitizer, which then ends the program where one touches what is forbidden.
pub fn sanitizes() -> bool {
    // SAFETY: no bytes.
    unsafe { (library().guard)(std::ptr::null(), 0, 1) != 0 }
}

/// Forbids kernels to touch this memory.
pub fn forbid(begin: *const u8, bytes: usize) {
    // SAFETY: marks addresses, and touches no memory.
    unsafe { (library().guard)(begin.cast(), bytes as c_ulonglong, 1) };
}

/// Takes [`forbid`] back.
pub fn permit(begin: *const u8, bytes: usize) {
    // SAFETY: as above.
    unsafe { (library().guard)(begin.cast(), bytes as c_ulonglong, 0) };
}

fn error() -> String {
    // SAFETY: a string that ends in 0, which lives until this thread's next call.
    unsafe { CStr::from_ptr((library().error)()) }.to_string_lossy().into_owned()
}

/// The functions of `kernels/emulator/emulator.cpp`.
struct Library {
    error: unsafe extern "C" fn() -> *const c_char,
    find: unsafe extern "C" fn(name: *const c_char) -> c_int,
    argument_count: unsafe extern "C" fn(kernel: c_int) -> c_int,
    argument_size: unsafe extern "C" fn(kernel: c_int, index: c_int) -> c_int,
    argument_kind: unsafe extern "C" fn(kernel: c_int, index: c_int) -> c_int,
    threads: unsafe extern "C" fn(kernel: c_int) -> c_int,
    guard: unsafe extern "C" fn(begin: *const c_void, bytes: c_ulonglong, on: c_int) -> c_int,
    launch: LaunchFunction,
}

type LaunchFunction = unsafe extern "C" fn(
    kernel: c_int,
    grid: *const c_uint,
    block: *const c_uint,
    shared_bytes: c_uint,
    cooperative: c_int,
    arguments: *const *const c_void,
    order: c_int,
    seed: c_ulonglong,
) -> c_int;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| match std::env::var("HEADFIRST_EMULATOR_LIBRARY") {
        Ok(path) => Library::load(&path),
        Err(_) => LINKED,
    })
}

impl Library {
    /// # Panics
    /// If the library cannot be loaded: it was named to this test, so the test cannot be run.
    fn load(path: &str) -> Library {
        let name = CString::new(path).expect("a path has no zero byte");
        // SAFETY: a string that ends in 0; the library's initialisers enter its kernels into its own table, nothing else.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "HEADFIRST_EMULATOR_LIBRARY={path} cannot be loaded");
        // SAFETY: emulator.cpp defines these names with the types that the fields have.
        unsafe {
            Library {
                error: symbol(handle, c"headfirst_emulator_error"),
                find: symbol(handle, c"headfirst_emulator_find"),
                argument_count: symbol(handle, c"headfirst_emulator_argument_count"),
                argument_size: symbol(handle, c"headfirst_emulator_argument_size"),
                argument_kind: symbol(handle, c"headfirst_emulator_argument_kind"),
                threads: symbol(handle, c"headfirst_emulator_threads"),
                guard: symbol(handle, c"headfirst_emulator_guard"),
                launch: symbol(handle, c"headfirst_emulator_launch"),
            }
        }
    }
}

/// # Safety
/// `Function` is the type of a pointer to the function of this name; the library stays open.
unsafe fn symbol<Function: Copy>(library: *mut c_void, name: &CStr) -> Function {
    const { assert!(size_of::<Function>() == size_of::<*mut c_void>()) };
    // SAFETY: a handle from dlopen and a string that ends in 0; what is there has the type that the caller answers for.
    unsafe {
        let found = libc::dlsym(library, name.as_ptr());
        assert!(!found.is_null(), "HEADFIRST_EMULATOR_LIBRARY has no {}", name.to_string_lossy());
        std::mem::transmute_copy(&found)
    }
}

/// What `build/emulator.rs` built.
#[cfg(not(emulator_missing))]
const LINKED: Library = {
    unsafe extern "C" {
        fn headfirst_emulator_error() -> *const c_char;
        fn headfirst_emulator_find(name: *const c_char) -> c_int;
        fn headfirst_emulator_argument_count(kernel: c_int) -> c_int;
        fn headfirst_emulator_argument_size(kernel: c_int, index: c_int) -> c_int;
        fn headfirst_emulator_argument_kind(kernel: c_int, index: c_int) -> c_int;
        fn headfirst_emulator_threads(kernel: c_int) -> c_int;
        fn headfirst_emulator_guard(begin: *const c_void, bytes: c_ulonglong, on: c_int) -> c_int;
        fn headfirst_emulator_launch(
            kernel: c_int,
            grid: *const c_uint,
            block: *const c_uint,
            shared_bytes: c_uint,
            cooperative: c_int,
            arguments: *const *const c_void,
            order: c_int,
            seed: c_ulonglong,
        ) -> c_int;
    }
    Library {
        error: headfirst_emulator_error,
        find: headfirst_emulator_find,
        argument_count: headfirst_emulator_argument_count,
        argument_size: headfirst_emulator_argument_size,
        argument_kind: headfirst_emulator_argument_kind,
        threads: headfirst_emulator_threads,
        guard: headfirst_emulator_guard,
        launch: headfirst_emulator_launch,
    }
};

/// The same where there are no kernels.
#[cfg(emulator_missing)]
const LINKED: Library = {
    unsafe extern "C" fn error() -> *const c_char {
        c"the emulator was not built: no C++ compiler was found".as_ptr()
    }
    unsafe extern "C" fn find(_: *const c_char) -> c_int {
        -1
    }
    unsafe extern "C" fn of_kernel(_: c_int) -> c_int {
        -1
    }
    unsafe extern "C" fn guard(_: *const c_void, _: c_ulonglong, _: c_int) -> c_int {
        0
    }
    unsafe extern "C" fn of_argument(_: c_int, _: c_int) -> c_int {
        -1
    }
    #[expect(clippy::too_many_arguments)]
    unsafe extern "C" fn launch(
        _: c_int,
        _: *const c_uint,
        _: *const c_uint,
        _: c_uint,
        _: c_int,
        _: *const *const c_void,
        _: c_int,
        _: c_ulonglong,
    ) -> c_int {
        1
    }
    Library {
        error,
        find,
        argument_count: of_kernel,
        argument_size: of_argument,
        argument_kind: of_argument,
        threads: of_kernel,
        guard,
        launch,
    }
};

#[cfg(test)]
#[path = "emulator_tests.rs"]
mod tests;
