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
        if let Some(file) = path_of(self.variable) {
            return if file.as_os_str() == "none" { vec![] } else { vec![file.to_string_lossy().into_owned()] };
        }
        let folders = self.folders();
        let files = folders.iter().flat_map(|folder| self.in_folder(folder));
        let files = files.map(|file| file.to_string_lossy().into_owned());
        self.files.iter().map(ToString::to_string).chain(files).collect()
    }

    /// Where it is looked for beside the dynamic linker's places, whether there is such a folder or not.
    fn folders(&self) -> Vec<PathBuf> {
        let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(path_of).chain(["/usr/local/cuda".into()]);
        let toolkits = homes.flat_map(|home| ["lib64", "lib"].map(|lib| home.join(lib)));
        let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(path_of);
        toolkits.chain(environments.flat_map(|environment| self.of_python(&environment))).collect()
    }

    fn in_folder(&self, folder: &Path) -> Vec<PathBuf> {
        self.files.iter().map(|name| folder.join(name)).filter(|file| file.exists()).collect()
    }

    /// Where a Python environment has what PyTorch brings; Conda's lie in `lib` itself.
    fn of_python(&self, environment: &Path) -> Vec<PathBuf> {
        let lib = environment.join("lib");
        let entries = std::fs::read_dir(&lib).into_iter().flatten().flatten();
        let pythons = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("python"));
        let packages = pythons.map(|python| python.path().join("site-packages/nvidia"));
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
        let tried = match tried {
            [] => return format!("{} was not looked for ({} says so)", self.name, self.variable),
            tried => tried.join("; "),
        };
        let without = match path_of(self.variable) {
            Some(_) => vec![],
            None => self.folders().into_iter().filter(|folder| self.in_folder(folder).is_empty()).collect(),
        };
        if without.is_empty() {
            return format!("{} was not found ({tried})", self.name);
        }
        let without: Vec<String> = without.iter().map(|folder| folder.display().to_string()).collect();
        let (name, variable) = (self.name, self.variable);
        format!("{name} was not found ({tried}; none in {}; {variable} can name the file)", without.join(", "))
    }
}

/// A path in the environment.
fn path_of(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
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

/// The file that a loaded function lies in, with its folder; none if the dynamic linker does not say.
pub(super) fn file_of(function: *const c_void) -> Option<String> {
    let mut found = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; the structure is written by the call, and zeroed bytes are a valid one.
    let (known, found) = unsafe { (libc::dladdr(function, found.as_mut_ptr()), found.assume_init()) };
    (known != 0 && !found.dli_fname.is_null()).then(|| text(found.dli_fname))
}

/// # Panics
/// Never: what is no UTF-8 is replaced. The callers have a string that ends in 0.
pub(super) fn text(string: *const c_char) -> String {
    // SAFETY: see above.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

/// NCCL's file, and its version.
///
/// # Errors
/// Where it was looked for, and why it did not do.
pub fn find_nccl() -> Result<(String, String), String> {
    let (place, (version, file)) = NCCL.first(|place| {
        // SAFETY: as nccl.h declares it.
        let version =
            unsafe { Loaded::load(place)?.function::<unsafe extern "C" fn(*mut c_int) -> c_int>(c"ncclGetVersion")? };
        let mut number = 0;
        // SAFETY: writes one int.
        match unsafe { version(&raw mut number) } {
            0 => {
                let text = format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100);
                Ok((text, file_of(version as *const c_void)))
            }
            status => Err(format!("does not say its version (status {status})")),
        }
    })?;
    Ok((file.unwrap_or(place), version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_answer_that_names_what_was_tried() {
        let wanted = Wanted { variable: "HEADFIRST_NO_SUCH_VARIABLE", files: &["libno-such.so.1"], ..NCCL };
        let reason = wanted.first(Loaded::load).unwrap_err();
        assert!(reason.contains("NCCL was not found (libno-such.so.1: "), "{reason}");
        // A folder that is not there was looked at all the same.
        assert!(reason.contains("/usr/local/cuda/lib64") && reason.contains(wanted.variable), "{reason}");
        assert!(wanted.not_found(&[]).contains(wanted.variable));
        let another = Loaded::load("libc.so.6").unwrap();
        // SAFETY: there is no such function.
        let reason = unsafe { another.function::<unsafe extern "C" fn()>(c"ncclGetVersion") }.unwrap_err();
        assert!(reason.contains("ncclGetVersion"), "{reason}");
    }

    #[test]
    fn a_library_that_the_dynamic_linker_found_is_named_with_its_folder() {
        let library = Loaded::load("libc.so.6").unwrap();
        // SAFETY: as unistd.h declares it.
        let function = unsafe { library.function::<unsafe extern "C" fn() -> c_int>(c"getpid") }.unwrap();
        let file = file_of(function as *const c_void).unwrap();
        assert!(file.starts_with('/') && file.ends_with("/libc.so.6"), "{file}");
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
