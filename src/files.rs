//! Durable files. Everything that is written goes through here: written beside its place under a temporary name, synced,
//! renamed, its folder synced. So a process killed at any instant, a full disk or a power cut leaves the old file or the
//! new one, never a part of one. Text files are read here too, so that a bad byte is named by its line.
//!
//! A temporary is called `.NAME.PID-COUNT.tmp` and is locked by the process that writes it. One that nobody has locked was
//! left by a process that was killed, and is removed by the next that writes the same file.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

#[cfg(test)]
#[path = "files_faults.rs"]
pub(crate) mod faults;

/// Large enough that a checkpoint is written in few calls.
const WRITE_BUFFER: usize = 1 << 18;

/// A single change to the file system. Tests stop the process before each of them in turn.
#[cfg_attr(not(test), allow(dead_code, reason = "only the tests' fault layer reads what an operation works on"))]
pub(crate) enum Operation<'a> {
    Create(&'a Path),
    CreateFolder(&'a Path),
    Write(&'a Path, &'a [u8]),
    SyncFile(&'a Path),
    Rename(&'a Path, &'a Path),
    Link(&'a Path, &'a Path),
    Delete(&'a Path),
    SyncFolder,
}

/// All changes to the file system pass here, so that tests can interrupt them.
fn perform<T>(operation: Operation<'_>, action: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    #[cfg(test)]
    faults::before(&operation)?;
    #[cfg(not(test))]
    let _ = operation;
    action()
}

/// Replaces the file at `path` by what `write` writes, or leaves it as it was.
///
/// A symbolic link is followed; a device or a pipe (`/dev/stdout`) is written to directly.
///
/// # Errors
/// The disk is full, the folder is missing or may not be written, or `write` itself fails: the old file is intact and the
/// temporary is gone.
pub fn write_atomically(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    if let Ok(metadata) = fs::metadata(path) {
        let kind = metadata.file_type();
        if kind.is_char_device() || kind.is_fifo() || kind.is_socket() || kind.is_block_device() {
            return write_through(path, write).map_err(|error| write_error(path, &error));
        }
    }
    // A file that does not exist yet, or whose link leads nowhere, keeps the name it was given.
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    Temporary::write(&place, write)
        .and_then(|temporary| temporary.place(&place))
        .map_err(|error| write_error(path, &error))
}

fn write_through(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut writer = BufWriter::new(OpenOptions::new().write(true).open(path)?);
    write(&mut writer)?;
    writer.flush()
}

/// [`write_atomically`] with bytes that are at hand.
pub fn write_bytes(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    write_atomically(path, |writer| writer.write_all(bytes.as_ref()))
}

/// The text of a UTF-8 file, without the byte order mark that some editors put before it.
///
/// # Errors
/// A file that cannot be read; bytes that are no UTF-8, naming their line and their byte offset.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, "be read", &error))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count();
        Error::line(path, line, format!("the byte at offset {offset} of the file is not UTF-8"))
            .remedy("Convert the file, for example with iconv -f latin1 -t utf-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}

/// Whether there is a file, or a link to one; other kinds of entries count too.
///
/// # Errors
/// It may not be looked at, or is a link to nothing.
pub fn exists(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(Error::io(path, "be looked at", &error)),
    }
}

/// A file that reaches the limit of the shell (`ulimit -f`) is then an error like a full disk, and does not end the process.
pub fn report_size_limits() {
    // SAFETY: the signal is ignored; no handler runs.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// A file that has only a temporary name yet. Dropped before it is placed, it is removed.
pub(crate) struct Temporary {
    path: PathBuf,
    /// Stays open, and locked, until the file has its place.
    file: File,
    placed: bool,
}

impl Temporary {
    /// Starts an empty temporary beside `beside`, whose name it borrows. For a file that grows bit by bit; it is to be
    /// [synced](Self::sync) before it is placed.
    pub(crate) fn create(beside: &Path) -> io::Result<Self> {
        remove_abandoned(folder_of(beside), |name| is_temporary_of(name, beside.file_name()));
        let (path, file) = create_locked(beside)?;
        // From here on every way out removes the temporary.
        Ok(Temporary { path, file, placed: false })
    }

    /// Writes a whole temporary beside `beside` and syncs it.
    pub(crate) fn write(beside: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Self> {
        let mut temporary = Self::create(beside)?;
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER, &mut temporary);
        write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        temporary.sync()?;
        Ok(temporary)
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        perform(Operation::SyncFile(&self.path), || self.file.sync_all())
    }

    /// Gives the file its place, replacing what stood there, and makes the change durable.
    pub(crate) fn place(mut self, path: &Path) -> io::Result<()> {
        perform(Operation::Rename(&self.path, path), || fs::rename(&self.path, path))?;
        self.placed = true;
        sync_folder(folder_of(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            // The error that led here is the one to report.
            let _ = perform(Operation::Delete(&self.path), || fs::remove_file(&self.path));
        }
        // As for a `Lock`: closing would not do.
        let _ = self.file.unlock();
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        perform(Operation::Write(&self.path, bytes), || (&self.file).write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A name beside `beside` that this process has not used yet.
fn temporary_path(beside: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = beside.file_name() else {
        return Err(io::Error::new(ErrorKind::InvalidInput, "a file name is expected"));
    };
    let mut temporary = OsStr::new(".").to_os_string();
    temporary.push(name);
    temporary.push(format!(".{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    Ok(folder_of(beside).join(temporary))
}

/// Creates and locks a temporary beside `beside`.
fn create_locked(beside: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let path = temporary_path(beside)?;
        let created = perform(Operation::Create(&path), || OpenOptions::new().write(true).create_new(true).open(&path));
        let file = match created {
            // Left by a process that had the same number.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            created => created?,
        };
        // On a file system without locks nobody else can lock it either, and so nobody takes it for abandoned.
        let _ = file.lock();
        // Another process may have found it in the instant before the lock and removed it as abandoned.
        if file.metadata()?.nlink() > 0 {
            return Ok((path, file));
        }
    }
}

/// Removes every temporary in `folder` that a killed process left; those that are being written now stay.
pub fn remove_stale_temporaries(folder: &Path) {
    remove_abandoned(folder, is_temporary);
}

fn remove_abandoned(folder: &Path, concerns: impl Fn(&str) -> bool) {
    // Cleaning is a courtesy: where it fails, the write that follows gives the error worth reading.
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_str().is_some_and(&concerns) {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        // Removed while the lock is held, so that its writer, if it comes just now, sees that it is gone.
        if file.try_lock().is_ok() {
            let _ = perform(Operation::Delete(&path), || fs::remove_file(&path));
        }
    }
}

/// True for `.NAME.PID-COUNT.tmp`.
pub(crate) fn is_temporary(name: &str) -> bool {
    temporary_target(name).is_some()
}

fn is_temporary_of(name: &str, target: Option<&OsStr>) -> bool {
    temporary_target(name).is_some_and(|found| Some(OsStr::new(found)) == target)
}

fn temporary_target(name: &str) -> Option<&str> {
    let (target, number) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (process, count) = number.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(process) && digits(count)).then_some(target)
}

/// Gives the file `existing` a second name, `path`, replacing what stood there: a hard link, or a copy where the file
/// system has none. Nothing is done if it is the same file already.
pub(crate) fn place_link(existing: &Path, path: &Path) -> Result<()> {
    let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    if let (Ok(one), Ok(other)) = (identity(existing), identity(path))
        && one == other
    {
        return Ok(());
    }
    link_and_rename(existing, path).map_err(|error| write_error(path, &error))
}

fn link_and_rename(existing: &Path, path: &Path) -> io::Result<()> {
    // Not locked as other temporaries are: only one process writes in a run folder, the only place where links are made.
    let link = temporary_path(path)?;
    match perform(Operation::Link(existing, &link), || fs::hard_link(existing, &link)) {
        Ok(()) => {
            perform(Operation::Rename(&link, path), || fs::rename(&link, path))?;
            sync_folder(folder_of(path))
        }
        Err(error) if is_crash(&error) => Err(error),
        Err(_) => {
            let mut source = File::open(existing)?;
            Temporary::write(path, |writer| io::copy(&mut source, writer).map(drop))?.place(path)
        }
    }
}

#[cfg(test)]
fn is_crash(error: &io::Error) -> bool {
    faults::is_crash(error)
}

#[cfg(not(test))]
fn is_crash(_: &io::Error) -> bool {
    false
}

/// Removes a file; that it was not there is no error.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match perform(Operation::Delete(path), || fs::remove_file(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the names in a folder durable: files created, renamed and deleted there.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    let synced = perform(Operation::SyncFolder, || File::open(folder)?.sync_all());
    match synced {
        // Some network file systems cannot sync a folder and do not need it.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        synced => synced,
    }
}

/// Creates a folder and those above it, durably.
pub fn create_folder(path: &Path) -> Result<()> {
    create_levels(path).map_err(|error| write_error(path, &error))
}

/// A folder's name lies in the one above it, so each level is synced there.
fn create_levels(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = folder_of(path);
    if above != path {
        create_levels(above)?;
    }
    match perform(Operation::CreateFolder(path), || fs::create_dir(path)) {
        // Another process may have made it in this instant.
        Err(error) if error.kind() != ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        _ => sync_folder(above),
    }
}

/// The folder in which `path` stands; `.` for a bare name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Says why `path` could not be written and what to do.
pub fn write_error(path: &Path, source: &io::Error) -> Error {
    let error = Error::io(path, "be written", source);
    match source.kind() {
        ErrorKind::NotFound => error.remedy("Create its folder first, or name another place"),
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            error.remedy("A file stands where a folder is needed: move it away, or name another place")
        }
        ErrorKind::IsADirectory => error.remedy("A folder stands in its place: move it away, or name another place"),
        ErrorKind::ReadOnlyFilesystem => error.remedy("This disk is mounted for reading only: name a place on another"),
        ErrorKind::FileTooLarge => {
            error.remedy("Raise the limit on file sizes (`ulimit -f`); what was written before is intact")
        }
        _ => error,
    }
}

/// A lock on a file; it ends when dropped, or with the process.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// `None`: another process (or another part of this one) holds it. On a file system without locks it is granted.
    pub(crate) fn take(path: &Path) -> Result<Option<Self>> {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = opened.map_err(|error| write_error(path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) if has_no_locks(&error) => Ok(Some(Lock(file))),
            Err(TryLockError::Error(error)) => Err(Error::io(path, "be locked", &error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would not do: a child process that is just being started has a copy of it for an instant.
        let _ = self.0.unlock();
    }
}

fn has_no_locks(error: &io::Error) -> bool {
    error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(libc::ENOLCK)
}

/// The SHA-256 checksum of `bytes`, as 64 hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

/// The SHA-256 checksum of a file, as 64 hexadecimal digits.
pub fn sha256_of_file(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let read = || -> io::Result<String> {
        let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
        let mut buffer = vec![0; WRITE_BUFFER];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hexadecimal(&hasher.finalize())),
                count => hasher.update(&buffer[..count]),
            }
        }
    };
    read().map_err(|error| Error::io(path, "be read", &error))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A writer that passes on what it is given and takes its checksum on the way.
pub(crate) struct ChecksumWriter<'a> {
    inner: &'a mut dyn Write,
    hasher: Sha256,
    bytes: u64,
}

impl<'a> ChecksumWriter<'a> {
    pub(crate) fn new(inner: &'a mut dyn Write) -> Self {
        ChecksumWriter { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// The checksum as 64 hexadecimal digits, and the number of bytes.
    pub(crate) fn finish(self) -> (String, u64) {
        (hexadecimal(&self.hasher.finalize()), self.bytes)
    }
}

impl Write for ChecksumWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
