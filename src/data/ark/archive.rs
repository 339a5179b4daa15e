//! Reads matrices by utterance id, through an index.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::matrix::Header;
use crate::data::table::{Location, read_index};
use crate::error::{Error, Result};

/// The matrices that an index (`feats.scp`) names, ready to be read from any thread.
///
/// Archives stay mapped, so what was read once comes from the page cache. A file that holds one matrix alone is mapped for each
/// reading only: an index may name more of them than a process may map.
pub struct FeatureArchive {
    index: PathBuf,
    locations: Vec<Location>,
    by_id: HashMap<String, usize>,
    archives: HashMap<PathBuf, Mmap>,
}

/// The bytes of a file, from the first of a matrix on.
enum Bytes<'a> {
    Archive(&'a [u8]),
    Single(Mmap),
}

impl std::ops::Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Archive(bytes) => bytes,
            Bytes::Single(map) => map,
        }
    }
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|error| Error::io(path, "be read", &error))?;
    // SAFETY: the map is only ever read, as bytes, for which every value is valid. A program that rewrites the file in place while it is
    // mapped could still change or cut what we read; all of ours replace files by renaming, which leaves the mapped one whole.
    unsafe { Mmap::map(&file) }.map_err(|error| Error::io(path, "be mapped into memory", &error))
}

impl FeatureArchive {
    /// Reads the index and maps the archives it names; no matrix is read yet.
    ///
    /// # Errors
    /// Those of [`read_index`]; an archive that cannot be opened.
    pub fn open(index: impl AsRef<Path>) -> Result<Self> {
        let index = index.as_ref();
        let locations = read_index(index)?;
        let mut archives = HashMap::new();
        for location in locations.iter().filter(|location| location.offset.is_some()) {
            if !archives.contains_key(&location.path) {
                archives.insert(location.path.clone(), map(&location.path)?);
            }
        }
        let by_id = locations.iter().enumerate().map(|(place, location)| (location.id.clone(), place)).collect();
        Ok(FeatureArchive { index: index.to_path_buf(), locations, by_id, archives })
    }

    /// The ids in the order of the index.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.locations.iter().map(|location| location.id.as_str())
    }

    pub fn contains(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    /// (frames, dimension) of an utterance, from its header alone (a text matrix has to be read through).
    ///
    /// # Errors
    /// An id that the index lacks; an offset beyond the file; a malformed or truncated matrix; a range beyond its rows.
    pub fn shape(&self, id: &str) -> Result<(usize, usize)> {
        let location = self.location(id)?;
        let (_, header, rows) = self.find(location)?;
        Ok((rows.len(), header.columns))
    }

    /// Copies an utterance's features to `into`: [frames, dimension], as [`shape`](Self::shape) gave them.
    ///
    /// # Errors
    /// As [`shape`](Self::shape); a size of `into` that is not that of the utterance.
    pub fn read_into(&self, id: &str, into: &mut [f32]) -> Result<()> {
        let location = self.location(id)?;
        let (bytes, header, rows) = self.find(location)?;
        if into.len() != rows.len() * header.columns {
            let found = format!("{} x {}", rows.len(), header.columns);
            return Err(self.problem(location, &format!("it is {found}, but {} numbers were expected", into.len())));
        }
        header.decode(&bytes, rows, into).map_err(|text| self.problem(location, &text))
    }

    fn location(&self, id: &str) -> Result<&Location> {
        self.by_id.get(id).map(|&place| &self.locations[place]).ok_or_else(|| {
            Error::file(&self.index, format!("it has no utterance {id}"))
                .remedy("Compute its features, or remove it from the other files")
        })
    }

    /// The bytes from the matrix's first on, its header, and the rows that the index asks for.
    fn find(&self, location: &Location) -> Result<(Bytes<'_>, Header, Range<usize>)> {
        let bytes = match (location.offset, self.archives.get(&location.path)) {
            (Some(offset), Some(archive)) => {
                let rest = usize::try_from(offset)
                    .ok()
                    .and_then(|offset| archive.get(offset..))
                    .filter(|rest| !rest.is_empty());
                Bytes::Archive(rest.ok_or_else(|| {
                    self.problem(
                        location,
                        &format!("its offset {offset} lies beyond the file's {} bytes", archive.len()),
                    )
                })?)
            }
            _ => Bytes::Single(map(&location.path)?),
        };
        let header = Header::parse(&bytes).map_err(|text| self.problem(location, &text))?;
        let rows = match &location.rows {
            None => 0..header.rows,
            // Kaldi, too, lets a range end a few frames late: its ends were computed from times, whose last frames may be cut.
            Some(rows) if rows.end <= header.rows + ROWS_BEYOND_THE_END && rows.start < header.rows => {
                rows.start..rows.end.min(header.rows)
            }
            Some(rows) => {
                let text = format!("the range [{}:{}] lies beyond its {} rows", rows.start, rows.end - 1, header.rows);
                return Err(self.problem(location, &text));
            }
        };
        Ok((bytes, header, rows))
    }

    fn problem(&self, location: &Location, text: &str) -> Error {
        let place = match location.offset {
            Some(offset) => Cow::Owned(format!(" at offset {offset}")),
            None => Cow::Borrowed(""),
        };
        let index = self.index.display();
        Error::file(&location.path, format!("the matrix of utterance {}{place} cannot be read: {text}", location.id))
            .remedy(format!(
                "Make the archive and its index again (line {} of {index}), or take the utterance out of both",
                location.line
            ))
    }
}

/// Kaldi's tolerance for the end of a range of rows.
const ROWS_BEYOND_THE_END: usize = 3;

#[cfg(test)]
mod tests {
    use super::super::ArkWriter;
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn written(matrices: &[(usize, usize, Vec<f32>)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("feats.scp");
        let mut writer = ArkWriter::create(folder.path().join("feats.ark"), &index).unwrap();
        for (number, (rows, columns, values)) in matrices.iter().enumerate() {
            writer.write(&format!("u{number}"), *rows, *columns, values).unwrap();
        }
        writer.finish().unwrap();
        (folder, index)
    }

    fn read(archive: &FeatureArchive, id: &str) -> (usize, usize, Vec<f32>) {
        let (frames, dimension) = archive.shape(id).unwrap();
        let mut values = vec![f32::NAN; frames * dimension];
        archive.read_into(id, &mut values).unwrap();
        (frames, dimension, values)
    }

    fn with_index(ark: &[u8], index: &str) -> (tempfile::TempDir, FeatureArchive) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("feats.ark"), ark).unwrap();
        fs::write(folder.path().join("feats.scp"), index).unwrap();
        let archive = FeatureArchive::open(folder.path().join("feats.scp")).unwrap();
        (folder, archive)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_written_is_read_bit_for_bit(
            matrices in proptest::collection::vec((0_usize..6, 1_usize..5).prop_flat_map(|(rows, columns)| {
                (Just(rows), Just(columns), proptest::collection::vec(any::<u32>().prop_map(f32::from_bits), rows * columns))
            }), 0..6)
        ) {
            let (_folder, index) = written(&matrices);
            let archive = FeatureArchive::open(index).unwrap();
            prop_assert_eq!(archive.ids().len(), matrices.len());
            for (number, (rows, columns, values)) in matrices.iter().enumerate() {
                let (frames, dimension, found) = read(&archive, &format!("u{number}"));
                prop_assert_eq!((frames, dimension), (*rows, *columns));
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&found), bits(values));
            }
        }
    }

    #[test]
    fn many_threads_may_read_at_once() {
        let matrices: Vec<_> =
            (0..20).map(|k| (k + 1, 3, (0..3 * (k + 1)).map(|x| (x * k) as f32).collect())).collect();
        let (_folder, index) = written(&matrices);
        let archive = FeatureArchive::open(index).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20).for_each(|k| assert_eq!(read(&archive, &format!("u{k}")), matrices[k])));
            }
        });
    }

    #[test]
    fn text_archives_and_single_files_are_read_as_kaldi_reads_them() {
        let (_folder, archive) =
            with_index(b"a  [\n  1 2\n  3 4 ]\nb  [\n  5 6 ]\n", "b feats.ark:21\na feats.ark:2\n");
        assert_eq!(read(&archive, "a"), (2, 2, vec![1.0, 2.0, 3.0, 4.0]));
        assert_eq!(read(&archive, "b"), (1, 2, vec![5.0, 6.0]));
        let (_folder, archive) = with_index(b"\0BFM \x04\x01\0\0\0\x04\x01\0\0\0\0\0\x80\x3f", "single feats.ark\n");
        assert_eq!(read(&archive, "single"), (1, 1, vec![1.0]));
    }

    #[test]
    fn a_range_takes_its_rows_with_the_last() {
        let (_folder, archive) = with_index(
            b"[ 0\n1\n2\n3\n4 ]",
            "a feats.ark:0[1:3]\nb feats.ark[3:7]\nc feats.ark:0[3:8]\nd feats.ark:0[5:5]\n",
        );
        assert_eq!(read(&archive, "a").2, [1.0, 2.0, 3.0]);
        assert_eq!(read(&archive, "b").2, [3.0, 4.0]);
        for id in ["c", "d"] {
            let error = archive.shape(id).unwrap_err().to_string();
            assert!(error.contains("lies beyond its 5 rows"), "{error}");
        }
    }

    #[test]
    fn an_offset_beyond_the_file_is_an_error_naming_file_and_utterance() {
        let (_folder, archive) = with_index(b"[ 1 ]", "a feats.ark:5\nb feats.ark:18446744073709551615\n");
        for id in ["a", "b"] {
            let error = archive.shape(id).unwrap_err().to_string();
            assert!(error.contains("feats.ark") && error.contains(&format!("utterance {id} at offset")), "{error}");
            assert!(error.contains("beyond the file's 5 bytes") && error.contains("Make the archive"), "{error}");
        }
    }

    #[test]
    fn a_truncated_archive_is_an_error_naming_the_utterance() {
        let (folder, index) = written(&[(2, 2, vec![1.0; 4]), (3, 2, vec![2.0; 6])]);
        let ark = folder.path().join("feats.ark");
        let bytes = fs::read(&ark).unwrap();
        fs::write(&ark, &bytes[..bytes.len() - 3]).unwrap();
        let archive = FeatureArchive::open(index).unwrap();
        assert_eq!(read(&archive, "u0").2, [1.0; 4]);
        let error = archive.read_into("u1", &mut [0.0; 6]).unwrap_err().to_string();
        assert!(
            error.contains("utterance u1") && error.contains("3 x 2, which takes 24 bytes, but the file ends after 21"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_archive_file_and_an_unknown_id_are_errors() {
        let (_folder, archive) = with_index(b"", "a feats.ark:0\nb feats.ark\n");
        assert!(archive.shape("a").unwrap_err().to_string().contains("beyond the file's 0 bytes"));
        assert!(archive.shape("b").unwrap_err().to_string().contains("no matrix"));
        assert!(archive.shape("c").unwrap_err().to_string().contains("no utterance c"));
    }

    #[test]
    fn archives_that_kaldi_wrote_are_read() {
        let kaldi = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/reference/kaldi");
        for (name, dimension) in [("fbank40.ark.txt", 40), ("fbank80.ark.txt", 80), ("pitch.ark.txt", 3)] {
            let Ok(text) = fs::read_to_string(Path::new(kaldi).join(name)) else {
                eprintln!("skipped: {kaldi}/{name} is not there");
                return;
            };
            let mut index = String::new();
            let mut first_values = Vec::new();
            for (bracket, _) in text.match_indices('[') {
                let line = text[..bracket].rfind('\n').map_or(0, |end| end + 1);
                let id = text[line..bracket].trim();
                index += &format!("{id} feats.ark:{}\n", line + id.len() + 1);
                let first = text[bracket + 1..].split_ascii_whitespace().next().unwrap().parse::<f32>().unwrap();
                first_values.push((id.to_string(), first));
            }
            let (_folder, archive) = with_index(text.as_bytes(), &index);
            assert_eq!(archive.ids().len(), 4);
            for (id, first) in first_values {
                let (frames, found, values) = read(&archive, &id);
                assert!(frames > 50 && found == dimension && values[0] == first, "{id}: {frames} x {found}");
            }
        }
    }
}
