//! The fault layer of the durability tests: it stops the process (for the calling thread) before any one operation on
//! the file system, fills the disk after a number of bytes, and keeps a trace from which the disk's content after a power
//! cut is worked out, where only what was synced is sure to be there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::Operation;

const CRASH: &str = "the process ends here (a test's fault)";

/// An operation that took place.
#[derive(Debug, Clone)]
pub(crate) enum Happened {
    Create(PathBuf),
    CreateFolder(PathBuf),
    Write(PathBuf, Vec<u8>),
    SyncFile(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Delete(PathBuf),
    SyncFolder,
}

#[derive(Default)]
struct Plan {
    crash_before: Option<usize>,
    bytes_left: Option<usize>,
    trace: Vec<Happened>,
}

thread_local! {
    static PLAN: RefCell<Option<Plan>> = const { RefCell::new(None) };
}

/// Runs `action`; the process "ends" before operation number `crash_before` (from 0): that operation and all later ones
/// fail and change nothing, but a write at that point is torn in half. Gives what came out and the operations that took place.
pub(crate) fn with_crash<T>(crash_before: Option<usize>, action: impl FnOnce() -> T) -> (T, Vec<Happened>) {
    run(Plan { crash_before, ..Plan::default() }, action)
}

/// Runs `action` on a disk that is full after `bytes` bytes.
pub(crate) fn with_disk_of<T>(bytes: usize, action: impl FnOnce() -> T) -> T {
    run(Plan { bytes_left: Some(bytes), ..Plan::default() }, action).0
}

fn run<T>(plan: Plan, action: impl FnOnce() -> T) -> (T, Vec<Happened>) {
    PLAN.set(Some(plan));
    let outcome = action();
    (outcome, PLAN.take().map(|plan| plan.trace).unwrap_or_default())
}

pub(crate) fn is_crash(error: &io::Error) -> bool {
    error.to_string() == CRASH
}

pub(super) fn before(operation: &Operation<'_>) -> io::Result<()> {
    PLAN.with_borrow_mut(|plan| plan.as_mut().map_or(Ok(()), |plan| plan.before(operation)))
}

impl Plan {
    fn before(&mut self, operation: &Operation<'_>) -> io::Result<()> {
        if self.crash_before.is_some_and(|at| self.trace.len() >= at) {
            if let Operation::Write(path, bytes) = operation
                && self.crash_before == Some(self.trace.len())
            {
                OpenOptions::new().append(true).open(path)?.write_all(&bytes[..bytes.len() / 2])?;
                // Nothing comes after it.
                self.crash_before = Some(0);
            }
            return Err(io::Error::other(CRASH));
        }
        if let (Some(left), Operation::Write(_, bytes)) = (&mut self.bytes_left, operation) {
            *left = left.checked_sub(bytes.len()).ok_or(ErrorKind::StorageFull)?;
        }
        self.trace.push(match *operation {
            Operation::Create(path) => Happened::Create(path.into()),
            Operation::CreateFolder(path) => Happened::CreateFolder(path.into()),
            Operation::Write(path, bytes) => Happened::Write(path.into(), bytes.into()),
            Operation::SyncFile(path) => Happened::SyncFile(path.into()),
            Operation::Rename(from, to) => Happened::Rename(from.into(), to.into()),
            Operation::Link(from, to) => Happened::Link(from.into(), to.into()),
            Operation::Delete(path) => Happened::Delete(path.into()),
            Operation::SyncFolder => Happened::SyncFolder,
        });
        Ok(())
    }
}

/// One folder on a disk that may lose everything that was not synced.
#[derive(Default, Clone)]
pub(crate) struct Disk {
    /// Per file: its content, and as much of it as was synced.
    files: Vec<(Vec<u8>, Vec<u8>)>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    /// Changes of names since the folder was synced: each may or may not be on the disk.
    pending: Vec<Vec<(PathBuf, Option<usize>)>>,
}

impl Disk {
    /// What `folder` holds now, all of it durable.
    pub(crate) fn of(folder: &Path) -> Self {
        let mut disk = Disk::default();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let content = fs::read(&path).unwrap();
            disk.names.insert(path, disk.files.len());
            disk.files.push((content.clone(), content));
        }
        disk.durable_names = disk.names.clone();
        disk
    }

    pub(crate) fn apply(&mut self, happened: &Happened) {
        match happened {
            Happened::CreateFolder(path) => panic!("{} is a folder within the one that is looked at", path.display()),
            Happened::Create(path) => {
                self.files.push(Default::default());
                self.change(vec![(path.clone(), Some(self.files.len() - 1))]);
            }
            Happened::Write(path, bytes) => self.files[self.names[path]].0.extend(bytes),
            Happened::SyncFile(path) => {
                let file = &mut self.files[self.names[path]];
                file.1 = file.0.clone();
            }
            Happened::Rename(from, to) => self.change(vec![(to.clone(), Some(self.names[from])), (from.clone(), None)]),
            Happened::Link(from, to) => self.change(vec![(to.clone(), Some(self.names[from]))]),
            Happened::Delete(path) => self.change(vec![(path.clone(), None)]),
            Happened::SyncFolder => {
                self.durable_names = self.names.clone();
                self.pending.clear();
            }
        }
    }

    fn change(&mut self, names: Vec<(PathBuf, Option<usize>)>) {
        set_names(&mut self.names, &names);
        self.pending.push(names);
    }

    /// Every content the folder can have after a power cut: any selection of the pending changes of names, and of a file
    /// only what was synced.
    pub(crate) fn after_power_cut(&self) -> Vec<BTreeMap<PathBuf, Vec<u8>>> {
        let selections = 0..1u32 << self.pending.len();
        selections
            .map(|selection| {
                let mut names = self.durable_names.clone();
                for (index, change) in self.pending.iter().enumerate() {
                    if selection >> index & 1 == 1 {
                        set_names(&mut names, change);
                    }
                }
                names.into_iter().map(|(path, file)| (path, self.files[file].1.clone())).collect()
            })
            .collect()
    }
}

fn set_names(names: &mut BTreeMap<PathBuf, usize>, change: &[(PathBuf, Option<usize>)]) {
    for (path, file) in change {
        match file {
            Some(file) => names.insert(path.clone(), *file),
            None => names.remove(path),
        };
    }
}
