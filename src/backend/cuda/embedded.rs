//! The kernels in this binary: one fatbin for each `kernels/*.cu`, made by the build script (`build/nvcc.rs`).

/// The machine code of one kernel file, for several architectures.
#[derive(Clone, Copy)]
pub struct Embedded {
    /// The file's name without `.cu`.
    pub name: &'static str,
    /// What `cuModuleLoadData` takes; it starts at a multiple of 64 bytes.
    pub fatbin: &'static [u8],
}

/// The driver reads a fatbin's header in words of 8 bytes, and a plain array of bytes may start anywhere.
#[allow(dead_code, reason = "without nvcc there is nothing to align")]
#[repr(C, align(64))]
struct Aligned<const BYTES: usize>([u8; BYTES]);

/// The kernel files by name; none in a binary that was built without nvcc.
pub fn files() -> &'static [Embedded] {
    FILES
}

/// What the kernels were compiled for, as nvcc writes it: "sm_90a" is machine code, "compute_100" PTX, which the driver compiles for a GPU of
/// that version or a later one.
pub fn architectures() -> &'static [&'static str] {
    ARCHITECTURES
}

/// The compiler that made them, "nvcc 13.0.88"; `None` where there was none, or where it was not wanted.
pub fn compiler() -> Option<&'static str> {
    COMPILER
}

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_has_kernels_architectures_and_a_compiler_or_none_of_them() {
        assert_eq!(compiler().is_some(), !architectures().is_empty());
        assert_eq!(compiler().is_some(), !files().is_empty());
    }

    #[test]
    fn every_embedded_kernel_file_is_an_aligned_fatbin() {
        for file in files() {
            assert_eq!(file.fatbin.as_ptr() as usize % 64, 0, "{}", file.name);
            assert_eq!(file.fatbin.get(..4), Some(&0xba55_ed50_u32.to_le_bytes()[..]), "{} is no fatbin", file.name);
        }
    }

    #[test]
    fn the_embedded_kernel_files_are_those_of_the_source() {
        let entries = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels")).unwrap();
        let names =
            entries.filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".cu")?.to_string()));
        let mut names: Vec<String> = names.collect();
        names.sort();
        if compiler().is_some() {
            assert_eq!(files().iter().map(|file| file.name).collect::<Vec<_>>(), names);
        }
    }
}
