//! Files that a crash cannot leave half written, and text files that name the line of their first bad byte.
//!
//! A file is written under the name `NAME.partial` beside its place, synced, renamed, and its folder synced. So a crash at any
//! instant leaves the old file or the new one; a `.partial` that a crash left over is overwritten by the next attempt.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The name under which `path` is written until it is complete.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".partial");
    PathBuf::from(name)
}

/// Syncs the folder that holds `path`, so that a rename in it survives a power cut.
pub fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| Error::io(folder, "be synced", &error))
}

/// Puts `bytes` at `path` as a whole or not at all.
///
/// # Errors
/// Whatever the file system reports, naming `path`; what was there before is then still there.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial_path(path);
    let written = File::create(&partial).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&partial, path)) {
        // The attempt has failed already; that the leftover cannot be removed either would add nothing.
        let _ = fs::remove_file(&partial);
        return Err(Error::io(path, "be written", &error));
    }
    sync_folder_of(path)
}

/// The text of a UTF-8 file.
///
/// # Errors
/// A file that cannot be read; bytes that are no UTF-8, naming their line and their byte offset.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, "be read", &error))?;
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count();
        Error::line(path, line, format!("the byte at offset {offset} of the file is not UTF-8"))
            .remedy("Convert the file, for example with iconv -f latin1 -t utf-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_no_partial_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.txt");
        replace_file(&path, b"old").unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_an_error_naming_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = replace_file(&folder.path().join("absent/tokens.txt"), b"x").unwrap_err().to_string();
        assert!(error.contains("absent/tokens.txt") && error.contains("Check the path"), "{error}");
    }

    #[test]
    fn text_that_is_not_utf8_is_an_error_naming_line_and_offset() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        fs::write(&path, b"a one\nb tw\xff\n").unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("text:2:") && error.contains("offset 10"), "{error}");
    }
}
