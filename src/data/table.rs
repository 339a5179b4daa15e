//! Kaldi's text tables: one line for each utterance, its id first. `text`, `utt2spk`, and the indices `feats.scp` and `wav.scp`.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::read_text;

/// One line of a table. `value` is what stands behind the id, without the white space around it; it may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: String,
    pub value: String,
    /// Counts from 1.
    pub line: usize,
}

/// Reads a table in the order of its lines, which need not be sorted. Lines with nothing but white space are passed over.
///
/// # Errors
/// A file that cannot be read or is not UTF-8; an id that occurs a second time, naming its line.
pub fn read_table(path: &Path) -> Result<Vec<Row>> {
    let text = read_text(path)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut first_lines: HashMap<&str, usize> = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_matches(|c: char| c.is_ascii_whitespace());
        if line.is_empty() {
            continue;
        }
        let (id, value) = line.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((line, ""));
        if let Some(first) = first_lines.insert(id, number + 1) {
            return Err(Error::line(
                path,
                number + 1,
                format!("the id \"{id}\" occurs a second time; it stands in line {first} already"),
            )
            .remedy("Keep one line for each id"));
        }
        let value = value.trim_matches(|c: char| c.is_ascii_whitespace());
        rows.push(Row { id: id.to_string(), value: value.to_string(), line: number + 1 });
    }
    Ok(rows)
}

/// A line of an index: where an utterance's data lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub id: String,
    /// Exists, and starts at the current folder or at the root.
    pub path: PathBuf,
    /// Bytes before the data, for one of several in an archive.
    pub offset: Option<u64>,
    /// The rows to take (`[first:last]` in the index, both included; here the end is excluded). `None`: all.
    pub rows: Option<Range<usize>>,
    pub line: usize,
}

/// Reads an index (`id path`, `id path:offset`, either with `[first:last]` behind it).
///
/// A relative path is tried from the current folder, then from the index's own folder.
///
/// # Errors
/// As [`read_table`]; a line without a file; a file that does not exist; a pipe, which is never run; a range of columns.
pub fn read_index(path: &Path) -> Result<Vec<Location>> {
    read_table(path)?.into_iter().map(|row| parse_location(path, row)).collect()
}

fn parse_location(index: &Path, row: Row) -> Result<Location> {
    let problem = |text: String| Error::line(index, row.line, format!("utterance {}: {text}", row.id));
    let mut value = row.value.as_str();
    if value.is_empty() {
        return Err(problem("there is no file behind the id".into())
            .remedy("Write the path of its data there, or delete the line"));
    }
    if value.starts_with('|') || value.ends_with('|') {
        return Err(problem(format!("\"{value}\" is a pipe, and commands in an index are not run"))
            .remedy("Run the command yourself and write the path of what it made"));
    }
    if value == "-" {
        return Err(
            problem("standard input (\"-\") cannot be read from an index".into()).remedy("Write the path of a file")
        );
    }
    let mut rows = None;
    if let Some(inside) = value.strip_suffix(']')
        && let Some((before, range)) = inside.rsplit_once('[')
    {
        rows = parse_rows(range)
            .map_err(|text| problem(format!("the range [{range}] {text}")).remedy("Write [first:last]"))?;
        value = before;
    }
    let (name, offset) = match value.rsplit_once(':') {
        Some((name, digits)) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            let offset = digits.parse().map_err(|_| problem(format!("the offset {digits} is beyond any file")))?;
            (name, Some(offset))
        }
        _ => (value, None),
    };
    let resolved = resolve(index, name).ok_or_else(|| {
        let where_else = if Path::new(name).is_absolute() {
            ""
        } else {
            ", neither from the current folder nor from the index's own"
        };
        problem(format!("there is no file {name}{where_else}"))
            .remedy("Correct the path, or run from the folder that the paths in the index start at")
    })?;
    Ok(Location { path: resolved, offset, rows, line: row.line, id: row.id })
}

/// `[first:last]`, both included; `[:]` is everything.
fn parse_rows(range: &str) -> Result<Option<Range<usize>>, String> {
    let (rows, columns) = range.split_once(',').unwrap_or((range, ":"));
    if columns != ":" {
        return Err("selects columns, which is not supported".into());
    }
    if rows == ":" {
        return Ok(None);
    }
    let bounds =
        rows.split_once(':').and_then(|(first, last)| Some((first.parse().ok()?, last.parse::<usize>().ok()?)));
    match bounds {
        Some((first, last)) if first <= last && last < usize::MAX => Ok(Some(first..last + 1)),
        _ => Err("is not a range of rows".into()),
    }
}

fn resolve(index: &Path, name: &str) -> Option<PathBuf> {
    let direct = PathBuf::from(name);
    if direct.is_file() {
        return Some(direct);
    }
    let beside = index.parent()?.join(name);
    beside.is_file().then_some(beside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn table(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("feats.scp");
        fs::write(&path, content).unwrap();
        fs::write(folder.path().join("a.ark"), "x").unwrap();
        (folder, path)
    }

    fn index_error(content: &str) -> String {
        let (_folder, path) = table(content.as_bytes());
        read_index(&path).unwrap_err().to_string()
    }

    #[test]
    fn a_table_need_not_be_sorted_and_may_have_empty_values() {
        let (_folder, path) = table(b"b  two words \r\n\na\n");
        let rows = read_table(&path).unwrap();
        assert_eq!(rows[0], Row { id: "b".into(), value: "two words".into(), line: 1 });
        assert_eq!(rows[1], Row { id: "a".into(), value: "".into(), line: 3 });
    }

    #[test]
    fn a_duplicate_id_is_an_error_naming_its_line() {
        let (_folder, path) = table(b"a x\nb y\na z\n");
        let error = read_table(&path).unwrap_err().to_string();
        assert!(error.contains("feats.scp:3: the id \"a\" occurs a second time; it stands in line 1"), "{error}");
    }

    #[test]
    fn a_relative_path_is_found_beside_the_index() {
        let (folder, path) = table(b"a a.ark:17\nb a.ark\nc a.ark:5[2:4]\nd a.ark[:,:]\n");
        let locations = read_index(&path).unwrap();
        assert!(locations.iter().all(|location| location.path == folder.path().join("a.ark")));
        let parts: Vec<_> = locations.into_iter().map(|location| (location.offset, location.rows)).collect();
        assert_eq!(parts, [(Some(17), None), (None, None), (Some(5), Some(2..5)), (None, None)]);
    }

    #[test]
    fn a_line_without_a_file_is_an_error() {
        let error = index_error("u1 a.ark:1\nu2\n");
        assert!(error.contains("feats.scp:2: utterance u2: there is no file behind the id"), "{error}");
    }

    #[test]
    fn a_file_that_does_not_exist_is_an_error_naming_it() {
        let error = index_error("u1 raw/absent.ark:1\n");
        assert!(error.contains(":1: utterance u1: there is no file raw/absent.ark, neither from"), "{error}");
        assert!(!index_error("u1 /absent/absent.ark:1\n").contains("neither"));
    }

    #[test]
    fn a_pipe_is_an_error_and_is_never_run() {
        let folder = tempfile::tempdir().unwrap();
        let witness = folder.path().join("witness");
        for pipe in [format!("touch {} |", witness.display()), format!("| touch {}", witness.display())] {
            assert!(index_error(&format!("u1 {pipe}\n")).contains("is a pipe"));
        }
        assert!(!witness.exists());
    }

    #[test]
    fn ranges_that_are_no_rows_are_errors() {
        for range in ["[0:1,0:3]", "[3:2]", "[x:2]", "[5]", "[-1:2]", "[0:18446744073709551615]"] {
            let error = index_error(&format!("u1 a.ark:1{range}\n"));
            assert!(error.contains("utterance u1: the range"), "{error}");
        }
        assert!(index_error("u1 a.ark:99999999999999999999999\n").contains("beyond any file"));
    }
}
