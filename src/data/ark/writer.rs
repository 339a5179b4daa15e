//! Writes an archive of uncompressed float matrices (FM) and its index.

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::{self, Temporary, write_error};

/// One of the two files: a temporary until [`ArkWriter::finish`].
struct Output {
    path: PathBuf,
    writer: BufWriter<Temporary>,
}

impl Output {
    fn create(path: &Path) -> Result<Self> {
        let temporary = Temporary::create(path).map_err(|error| write_error(path, &error))?;
        Ok(Output { path: path.to_path_buf(), writer: BufWriter::with_capacity(1 << 20, temporary) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|error| write_error(&self.path, &error))
    }

    fn sync(&mut self) -> Result<()> {
        let synced = self.writer.flush().and_then(|()| self.writer.get_ref().sync());
        synced.map_err(|error| write_error(&self.path, &error))
    }

    /// A whole file that waits for its place.
    fn of(path: &Path, content: &[u8]) -> Result<Self> {
        let mut output = Self::create(path)?;
        output.write(content)?;
        output.sync()?;
        Ok(output)
    }

    fn place(self) -> Result<()> {
        let Output { path, writer } = self;
        let placed = writer.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.place(&path));
        placed.map_err(|error| write_error(&path, &error))
    }
}

/// Writes `feats.ark` and `feats.scp`. Nothing stands at either place until [`finish`](Self::finish); a writer that is dropped before
/// removes what it wrote.
pub struct ArkWriter {
    ark: Output,
    scp: Output,
    /// The archive's absolute path as the index names it: it then serves from any current folder, in Kaldi too.
    ark_name: String,
    /// Bytes written to the archive so far.
    offset: u64,
    ids: HashSet<String>,
    encoded: Vec<u8>,
}

impl ArkWriter {
    /// Starts an archive at `ark_path` and its index at `scp_path`. Their folders must exist.
    ///
    /// # Errors
    /// A folder that cannot be written to; a path that an index cannot hold (not UTF-8, or with a line break).
    pub fn create(ark_path: impl AsRef<Path>, scp_path: impl AsRef<Path>) -> Result<Self> {
        let (ark_path, scp_path) = (ark_path.as_ref(), scp_path.as_ref());
        if ark_path == scp_path {
            return Err(Error::file(ark_path, "the archive and its index have the same path").remedy("Name them apart"));
        }
        let absolute = std::path::absolute(ark_path).map_err(|error| Error::io(ark_path, "be written", &error))?;
        let ark_name = match absolute.to_str() {
            Some(name) if !name.contains(['\n', '\r']) && name.trim() == name && !name.ends_with(['|', ']']) => {
                name.to_string()
            }
            _ => {
                return Err(Error::file(ark_path, "the path cannot stand in an index: it is not UTF-8, has a line break, or ends in a space, '|' or ']'")
                    .remedy("Choose another name for the archive or its folder"));
            }
        };
        let (ark, scp) = (Output::create(ark_path)?, Output::create(scp_path)?);
        Ok(ArkWriter { ark, scp, ark_name, offset: 0, ids: HashSet::new(), encoded: Vec::new() })
    }

    /// Appends one matrix.
    ///
    /// `values`: [rows, columns], row by row; a row is a frame.
    ///
    /// # Errors
    /// An id that is empty, has white space or occurs a second time; sizes that do not fit `values`; a full disk.
    pub fn write(&mut self, id: &str, rows: usize, columns: usize, values: &[f32]) -> Result<()> {
        if id.is_empty() || id.contains(char::is_whitespace) {
            return Err(Error::utterance(format!("{id:?}"), "an id in an archive must be one word")
                .remedy("Give it a name without white space"));
        }
        if rows.checked_mul(columns) != Some(values.len()) {
            return Err(Error::utterance(id, format!("{} values do not make {rows} rows of {columns}", values.len())));
        }
        let (Ok(row_count), Ok(column_count)) = (i32::try_from(rows), i32::try_from(columns)) else {
            return Err(Error::utterance(
                id,
                format!("{rows} x {columns} is more than an archive's header can say (2^31 - 1 each)"),
            )
            .remedy("Split the utterance"));
        };
        if !self.ids.insert(id.to_string()) {
            return Err(Error::utterance(id, format!("it is written to {} a second time", self.ark.path.display()))
                .remedy("Give every utterance an id of its own"));
        }

        self.encoded.clear();
        self.encoded.extend_from_slice(id.as_bytes());
        self.encoded.push(b' ');
        let matrix_offset = self.offset + self.encoded.len() as u64;
        self.encoded.extend_from_slice(b"\0BFM \x04");
        self.encoded.extend_from_slice(&row_count.to_le_bytes());
        self.encoded.push(4);
        self.encoded.extend_from_slice(&column_count.to_le_bytes());
        self.encoded.extend(values.iter().flat_map(|value| value.to_le_bytes()));

        self.ark.write(&self.encoded)?;
        self.offset += self.encoded.len() as u64;
        self.scp.write(format!("{id} {}:{matrix_offset}\n", self.ark_name).as_bytes())
    }

    /// Puts both files in their places.
    ///
    /// An index that stood there before is removed first: at no instant does an index point into an archive that it was not made for.
    ///
    /// # Errors
    /// A full disk, or a folder that cannot be written to.
    pub fn finish(self) -> Result<()> {
        self.finish_with(&[])
    }

    /// [`finish`](Self::finish), with files beside the two, each a path and its text, that belong to them and are replaced with them: at no
    /// instant does an index stand beside what was not made for it.
    ///
    /// # Errors
    /// Those of [`finish`](Self::finish).
    pub fn finish_with(mut self, beside: &[(PathBuf, String)]) -> Result<()> {
        let beside = beside.iter().map(|(path, text)| Output::of(path, text.as_bytes()));
        let beside: Vec<Output> = beside.collect::<Result<_>>()?;
        self.ark.sync()?;
        self.scp.sync()?;
        let removed =
            files::remove_file(&self.scp.path).and_then(|()| files::sync_folder(files::folder_of(&self.scp.path)));
        removed.map_err(|error| write_error(&self.scp.path, &error))?;
        beside.into_iter().try_for_each(Output::place)?;
        self.ark.place()?;
        self.scp.place()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::faults::{with_crash, with_disk_of};
    use std::fs;

    fn write_one(ark: &Path, scp: &Path) -> Result<()> {
        let mut writer = ArkWriter::create(ark, scp)?;
        writer.write("a", 2, 2, &[1.0, 2.0, 3.0, 4.0])?;
        writer.finish()
    }

    #[test]
    fn the_bytes_are_those_of_kaldis_binary_float_matrices() {
        let folder = tempfile::tempdir().unwrap();
        let (ark, scp) = (folder.path().join("feats.ark"), folder.path().join("feats.scp"));
        let mut writer = ArkWriter::create(&ark, &scp).unwrap();
        writer.write("a", 1, 2, &[1.0, -2.0]).unwrap();
        writer.write("bc", 2, 1, &[0.5, 0.0]).unwrap();
        writer.finish().unwrap();

        let mut expected = b"a \0BFM \x04\x01\0\0\0\x04\x02\0\0\0\0\0\x80\x3f\0\0\0\xc0".to_vec();
        expected.extend_from_slice(b"bc \0BFM \x04\x02\0\0\0\x04\x01\0\0\0\0\0\0\x3f\0\0\0\0");
        assert_eq!(fs::read(&ark).unwrap(), expected);
        let name = ark.display();
        assert_eq!(fs::read_to_string(&scp).unwrap(), format!("a {name}:2\nbc {name}:28\n"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_writer_that_is_dropped_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let (ark, scp) = (folder.path().join("feats.ark"), folder.path().join("feats.scp"));
        fs::write(&ark, "old").unwrap();
        let mut writer = ArkWriter::create(&ark, &scp).unwrap();
        writer.write("a", 1, 1, &[1.0]).unwrap();
        drop(writer);
        assert_eq!(fs::read(&ark).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn ids_that_an_archive_cannot_hold_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ArkWriter::create(folder.path().join("f.ark"), folder.path().join("f.scp")).unwrap();
        for id in ["", "a b", "a\n"] {
            assert!(writer.write(id, 0, 0, &[]).unwrap_err().to_string().contains("one word"));
        }
        writer.write("a", 1, 1, &[1.0]).unwrap();
        assert!(writer.write("a", 1, 1, &[1.0]).unwrap_err().to_string().contains("second time"));
        assert!(writer.write("b", 2, 2, &[1.0]).unwrap_err().to_string().contains("1 values do not make 2 rows of 2"));
    }

    #[test]
    fn a_missing_folder_is_an_error_naming_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = ArkWriter::create(folder.path().join("absent/f.ark"), folder.path().join("f.scp"))
            .err()
            .expect("no folder");
        assert!(error.to_string().contains("absent/f.ark: cannot be written"), "{error}");
        let error = ArkWriter::create(folder.path().join("f.ark"), folder.path().join("absent/f.scp"))
            .err()
            .expect("no folder");
        assert!(error.to_string().contains("absent/f.scp: cannot be written"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_is_an_error_that_leaves_the_old_archive() {
        let folder = tempfile::tempdir().unwrap();
        let (ark, scp) = (folder.path().join("f.ark"), folder.path().join("f.scp"));
        fs::write(&ark, "old").unwrap();
        fs::write(&scp, "old").unwrap();
        let error = with_disk_of(20, || write_one(&ark, &scp)).unwrap_err().to_string();
        assert!(error.contains("f.ark: cannot be written") && error.contains("Free some space"), "{error}");
        assert_eq!((fs::read(&ark).unwrap(), fs::read(&scp).unwrap()), (b"old".to_vec(), b"old".to_vec()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn no_crash_leaves_an_index_beside_an_archive_that_it_was_not_made_for() {
        let finished = tempfile::tempdir().unwrap();
        let new_ark = {
            write_one(&finished.path().join("f.ark"), &finished.path().join("f.scp")).unwrap();
            fs::read(finished.path().join("f.ark")).unwrap()
        };
        let mut crashes = 0;
        loop {
            let folder = tempfile::tempdir().unwrap();
            let (ark, scp) = (folder.path().join("f.ark"), folder.path().join("f.scp"));
            fs::write(&ark, "old").unwrap();
            fs::write(&scp, "old").unwrap();
            let (outcome, _) = with_crash(Some(crashes), || write_one(&ark, &scp));
            let ark = fs::read(&ark).unwrap();
            match fs::read(&scp) {
                Ok(index) if index == b"old" => assert_eq!(ark, b"old", "crash {crashes}"),
                Ok(_) => assert_eq!(ark, new_ark, "crash {crashes}"),
                Err(_) => assert!(ark == b"old" || ark == new_ark, "crash {crashes}"),
            }
            if outcome.is_ok() {
                break;
            }
            crashes += 1;
        }
        // Two of each: create, write, sync, rename, sync of the folder; and the old index's removal with its sync.
        assert_eq!(crashes, 12);
    }

    #[test]
    fn no_crash_leaves_an_index_beside_a_description_that_it_was_not_made_for() {
        let write = |folder: &Path| {
            let mut writer = ArkWriter::create(folder.join("f.ark"), folder.join("f.scp"))?;
            writer.write("a", 1, 1, &[1.0])?;
            writer.finish_with(&[(folder.join("features.toml"), "new".to_string())])
        };
        let mut crashes = 0;
        loop {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            for name in ["f.ark", "f.scp", "features.toml"] {
                fs::write(path(name), "old").unwrap();
            }
            let (outcome, _) = with_crash(Some(crashes), || write(folder.path()));
            let description = fs::read(path("features.toml")).unwrap();
            if let Ok(index) = fs::read(path("f.scp")) {
                let is_old = index == b"old";
                assert_eq!(description, if is_old { b"old" } else { b"new" }, "crash {crashes}");
                assert_eq!(fs::read(path("f.ark")).unwrap() == b"old", is_old, "crash {crashes}");
            }
            if outcome.is_ok() {
                break;
            }
            crashes += 1;
        }
        // Three of each: create, write, sync, rename, sync of the folder; and the old index's removal with its sync.
        assert_eq!(crashes, 17);
    }
}
