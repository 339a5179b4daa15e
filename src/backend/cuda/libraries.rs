//! NVIDIA's other libraries, which may be there: where they are looked for, and how they are loaded.
//!
//! cudarc's loader knows the file names of CUDA 12 and older only, looks nowhere but where the dynamic linker does, and panics where a library
//! or a symbol is missing. Here the newest that works is taken, and what was tried is told.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

/// What a library is called, and where it may lie.
pub struct Wanted {
    pub name: &'static str,
    /// Names a file to take instead of all others, or says `none`: then none is looked for.
    pub variable: &'static str,
    /// Newest first: one that is too new for the driver makes no handle, and the next is tried.
    pub files: &'static [&'static str],
    /// The folders of `site-packages/nvidia` that bring it.
    pub packages: &'static [&'static str],
}

/// For training on several GPUs, which does not exist yet.
const NCCL: Wanted =
    Wanted { name: "NCCL", variable: "HEADFIRST_NCCL", files: &["libnccl.so.2", "libnccl.so"], packages: &["nccl"] };

impl Wanted {
    /// In the order in which they are tried. A bare name is the dynamic linker's to find.
    pub fn places(&self) -> Vec<String> {
        let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = folder(self.variable) {
            return if file.as_os_str() == "none" { vec![] } else { vec![file.to_string_lossy().into_owned()] };
        }
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(folder).chain(["/usr/local/cuda".into()]);
        let toolkits = homes.flat_map(|home| ["lib64", "lib"].map(|lib| home.join(lib)));
        let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(folder);
        let folders = toolkits.chain(environments.flat_map(|environment| self.of_python(&environment)));
        let files = folders
            .filter(|folder| folder.is_dir())
            .flat_map(|folder| self.files.iter().map(move |name| folder.join(name)));
        let files = files.filter(|file| file.exists()).map(|file| file.to_string_lossy().into_owned());
        self.files.iter().map(ToString::to_string).chain(files).collect()
    }

    /// Where a Python environment has what PyTorch brings; Conda's lie in `lib` itself.
    fn of_python(&self, environment: &Path) -> Vec<PathBuf> {
        let lib = environment.join("lib");
        let entries = std::fs::read_dir(&lib).into_iter().flatten().flatten().map(|entry| entry.path());
        let packages = entries.map(|python| python.join("site-packages/nvidia")).filter(|packages| packages.is_dir());
        packages
            .flat_map(|packages| self.packages.iter().map(move |package| packages.join(package).join("lib")))
            .chain([lib])
            .collect()
    }

    /// The first place that `open` makes something of, with that.
    ///
    /// # Errors
    /// What was tried, and why it did not do.
    pub fn first<T>(&self, open: impl Fn(&str) -> Result<T, String>) -> Result<(String, T), String> {
        let mut tried = Vec::new();
        for place in self.places() {
            match open(&place) {
                Ok(found) => return Ok((place, found)),
                Err(reason) => tried.push(format!("{place}: {reason}")),
            }
        }
        Err(self.not_found(&tried))
    }

    fn not_found(&self, tried: &[String]) -> String {
        match tried {
            [] => format!("{} was not looked for ({} says so)", self.name, self.variable),
            tried => format!("{} was not found ({})", self.name, tried.join("; ")),
        }
    }
}

/// A library that is loaded for as long as the program runs.
#[derive(Debug, Clone, Copy)]
pub struct Loaded(*mut c_void);

impl Loaded {
    /// # Errors
    /// What the dynamic linker says.
    pub fn load(path: &str) -> Result<Self, String> {
        let name = CString::new(path).map_err(|_| "its name has a zero byte".to_string())?;
        // SAFETY: a string that ends in 0; what the library does when it is loaded is NVIDIA's to answer for.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            // SAFETY: a string that ends in 0, or null, until this thread's next call.
            let reason = unsafe { libc::dlerror() };
            return Err(if reason.is_null() { "does not load".into() } else { text(reason) });
        }
        Ok(Loaded(library))
    }

    /// A symbol as the function that it is.
    ///
    /// # Errors
    /// If the library does not have it.
    ///
    /// # Safety
    /// `F` is the function's type, as the library's header declares it.
    pub unsafe fn function<F: Copy>(self, name: &CStr) -> Result<F, String> {
        assert!(size_of::<F>() == size_of::<*mut c_void>(), "a symbol is as long as a pointer");
        // SAFETY: a library that is loaded, a string that ends in 0.
        let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if symbol.is_null() {
            return Err(format!("has no function {}", name.to_string_lossy()));
        }
        // SAFETY: of the same size; the caller names the type that the symbol is declared with.
        Ok(unsafe { std::mem::transmute_copy(&symbol) })
    }
}

/// # Panics
/// Never: what is no UTF-8 is replaced. The callers have a string that ends in 0.
pub(super) fn text(string: *const c_char) -> String {
    // SAFETY: see above.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

/// Where NCCL is, and its version.
///
/// # Errors
/// Where it was looked for, and why it did not do.
pub fn find_nccl() -> Result<(String, String), String> {
    NCCL.first(|place| {
        // SAFETY: as nccl.h declares it.
        let version =
            unsafe { Loaded::load(place)?.function::<unsafe extern "C" fn(*mut c_int) -> c_int>(c"ncclGetVersion")? };
        let mut number = 0;
        // SAFETY: writes one int.
        match unsafe { version(&raw mut number) } {
            0 => Ok(format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)),
            status => Err(format!("does not say its version (status {status})")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_answer_that_names_what_was_tried() {
        let wanted = Wanted { variable: "HEADFIRST_NO_SUCH_VARIABLE", files: &["libno-such.so.1"], ..NCCL };
        let reason = wanted.first(Loaded::load).unwrap_err();
        assert!(reason.contains("NCCL was not found (libno-such.so.1: "), "{reason}");
        assert!(wanted.not_found(&[]).contains(wanted.variable));
        let another = Loaded::load("libc.so.6").unwrap();
        // SAFETY: there is no such function.
        let reason = unsafe { another.function::<unsafe extern "C" fn()>(c"ncclGetVersion") }.unwrap_err();
        assert!(reason.contains("ncclGetVersion"), "{reason}");
    }

    #[test]
    fn an_active_python_environment_is_a_place_to_look() {
        let environment = tempfile::tempdir().unwrap();
        let folder = environment.path().join("lib/python3.11/site-packages/nvidia/nccl/lib");
        std::fs::create_dir_all(&folder).unwrap();
        assert!(NCCL.of_python(environment.path()).contains(&folder));
        assert!(NCCL.of_python(Path::new("/nowhere")) == [PathBuf::from("/nowhere/lib")]);
    }
}
