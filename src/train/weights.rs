//! Weights as safetensors files: the format of the crate `safetensors`, read through it, written by us so that equal
//! content gives equal bytes (names sorted, metadata too) and so that the file is durable. Files from PyTorch in f16, bf16
//! and f64 are read as f32.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde_json::{Map, json};

use crate::error::{Error, Result};
use crate::files::{ChecksumWriter, sha256, write_atomically};

/// One tensor to be written. `data` is row-major and has as many elements as `shape` says.
#[derive(Debug, Clone, Copy)]
pub struct NamedTensor<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    pub data: &'a [f32],
}

/// Writes the tensors to `path`, durably. `metadata` are words about the file as a whole (`epoch`, `stage`, ...);
/// `format = "pt"`, which PyTorch's readers look for, is added.
///
/// # Errors
/// The file cannot be written; a name occurs twice; data and shape disagree. An old file is then intact.
pub fn save_weights(path: impl AsRef<Path>, tensors: &[NamedTensor], metadata: &[(&str, &str)]) -> Result<()> {
    write_atomically(path, |writer| write_weights(writer, tensors, metadata))
}

/// Writes the tensors in order of their names. The same content gives the same bytes.
pub(crate) fn write_weights(
    writer: &mut dyn Write,
    tensors: &[NamedTensor],
    metadata: &[(&str, &str)],
) -> io::Result<()> {
    let mut tensors: Vec<_> = tensors.iter().collect();
    tensors.sort_by_key(|tensor| tensor.name);
    let metadata: BTreeMap<_, _> = metadata.iter().copied().chain([("format", "pt")]).collect();
    let mut header = Map::from_iter([("__metadata__".to_string(), json!(metadata))]);
    let mut offset = 0;
    for tensor in &tensors {
        let elements: usize = tensor.shape.iter().product();
        if elements != tensor.data.len() {
            let (name, shape, found) = (tensor.name, tensor.shape, tensor.data.len());
            return Err(invalid(format!("the tensor {name} of shape {shape:?} has {found} elements")));
        }
        let end = offset + elements * size_of::<f32>();
        let entry = json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]});
        if header.insert(tensor.name.to_string(), entry).is_some() {
            return Err(invalid(format!("two tensors have the name {}", tensor.name)));
        }
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    // The data then starts at a multiple of 8 bytes and can be read in place.
    header.resize(header.len().next_multiple_of(8), b' ');
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(&header)?;
    for tensor in &tensors {
        write_little_endian(writer, tensor.data)?;
    }
    Ok(())
}

/// The SHA-256 checksum of the file that [`save_weights`] would write of these tensors, without metadata.
///
/// # Errors
/// A name occurs twice; data and shape disagree.
pub fn weights_checksum(tensors: &[NamedTensor]) -> Result<String> {
    let mut nowhere = io::sink();
    let mut checksum = ChecksumWriter::new(&mut nowhere);
    write_weights(&mut checksum, tensors, &[])
        .map_err(|error| Error::program(format!("weights have no checksum: {error}")))?;
    Ok(checksum.finish().0)
}

fn invalid(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}

fn write_little_endian(writer: &mut dyn Write, data: &[f32]) -> io::Result<()> {
    if cfg!(target_endian = "little") {
        return writer.write_all(bytemuck::cast_slice(data));
    }
    data.iter().try_for_each(|value| writer.write_all(&value.to_le_bytes()))
}

/// A safetensors file, mapped into memory: tensors are read where they are used.
///
/// Files written by this program are replaced, never changed in place, so a map stays whole while a run goes on.
pub struct Weights {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry>,
    /// Of the whole file, once it was asked for.
    sha256: OnceLock<String>,
}

struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// In bytes from the file's start.
    start: usize,
    end: usize,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({}, {} tensors)", self.path.display(), self.tensors.len())
    }
}

/// Opens a safetensors file and checks its header.
///
/// # Errors
/// The file cannot be read, is no safetensors file, or is cut short.
pub fn load_weights(path: impl AsRef<Path>) -> Result<Weights> {
    let path = path.as_ref();
    let cannot_read = |error| Error::io(path, "be read", &error);
    let file = File::open(path).map_err(cannot_read)?;
    if !file.metadata().map_err(cannot_read)?.is_file() {
        return Err(Error::file(path, "is not a file").remedy("Name a .safetensors file"));
    }
    // SAFETY: sound as long as nobody truncates the file while it is mapped; this program never does, it renames.
    let map = unsafe { Mmap::map(&file) }.map_err(cannot_read)?;
    let (header_bytes, header) = SafeTensors::read_metadata(&map).map_err(|error| corrupt(path, &error))?;
    let data_start = header_bytes + size_of::<u64>();
    let tensors = header.tensors().into_iter().map(|(name, info)| {
        let (start, end) = (data_start + info.data_offsets.0, data_start + info.data_offsets.1);
        (name, Entry { dtype: info.dtype, shape: info.shape.clone(), start, end })
    });
    let tensors = tensors.collect();
    let metadata = header.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Weights { path: path.to_path_buf(), map, metadata, tensors, sha256: OnceLock::new() })
}

fn corrupt(path: &Path, error: &SafeTensorError) -> Error {
    let problem = match error {
        SafeTensorError::MetadataIncompleteBuffer | SafeTensorError::InvalidHeaderLength => {
            "is cut short or damaged: its length is not what its header says".to_string()
        }
        SafeTensorError::HeaderTooSmall => "is too short for a safetensors file".to_string(),
        other => format!("is no safetensors file or is damaged: {other}"),
    };
    Error::file(path, problem).remedy("Copy it anew, or name another checkpoint")
}

impl Weights {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the tensors, sorted bytewise.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// A word about the file as a whole.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The SHA-256 checksum of the whole file, and its length in bytes. The file is read for it once.
    pub fn checksum(&self) -> (String, u64) {
        (self.sha256.get_or_init(|| sha256(&self.map)).clone(), self.map.len() as u64)
    }

    /// Checks that the file has exactly the tensors that a model expects.
    ///
    /// # Errors
    /// Names what is missing, what is not expected, and the nearest name of each that is missing; or the tensor
    /// whose shape differs, with both shapes.
    pub fn expect<'a>(&self, expected: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Result<()> {
        let expected: BTreeMap<_, _> = expected.into_iter().collect();
        let missing: Vec<_> = expected.keys().filter(|name| !self.tensors.contains_key(**name)).collect();
        let unexpected: Vec<_> = self.names().filter(|name| !expected.contains_key(name)).collect();
        if !missing.is_empty() || !unexpected.is_empty() {
            return Err(self.other_names(&missing, &unexpected));
        }
        expected.iter().try_for_each(|(name, shape)| self.entry(name, shape).map(drop))
    }

    fn other_names(&self, missing: &[&&str], unexpected: &[&str]) -> Error {
        let mut problem = "holds another model's tensors".to_string();
        if !missing.is_empty() {
            let named = missing.iter().map(|name| match nearest(name, unexpected.iter().copied()) {
                Some(near) => format!("{name} (the file has {near})"),
                None => name.to_string(),
            });
            problem += &format!("; missing: {}", first_few(named.collect()));
        }
        if !unexpected.is_empty() {
            problem +=
                &format!("; not expected: {}", first_few(unexpected.iter().map(|name| name.to_string()).collect()));
        }
        Error::file(&self.path, problem).remedy("Use the recipe that these weights were trained with")
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry> {
        let Some(entry) = self.tensors.get(name) else {
            let error = Error::file(&self.path, format!("has no tensor {name}"));
            return Err(match nearest(name, self.names()) {
                Some(near) => error.remedy(format!("The nearest name in the file is {near}")),
                None => error.remedy("Use the recipe that these weights were trained with"),
            });
        };
        if entry.shape != shape {
            let problem = format!("the tensor {name} has the shape {:?}, expected {shape:?}", entry.shape);
            return Err(Error::file(&self.path, problem).remedy("Use the recipe that these weights were trained with"));
        }
        Ok(entry)
    }

    /// The tensor's elements, row-major, as f32: borrowed from the map where they are f32 there.
    ///
    /// # Errors
    /// There is no such tensor, it has another shape, or it does not hold floating-point numbers.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Cow<'_, [f32]>> {
        let entry = self.entry(name, shape)?;
        let bytes = &self.map[entry.start..entry.end];
        let converted = match entry.dtype {
            Dtype::F32 => match bytemuck::try_cast_slice(bytes) {
                Ok(borrowed) if cfg!(target_endian = "little") => return Ok(Cow::Borrowed(borrowed)),
                // Another program's header may leave the data unaligned.
                _ => convert(bytes, f32::from_le_bytes),
            },
            Dtype::F16 => convert(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => convert(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F64 => convert(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            other => {
                let problem = format!("the tensor {name} holds elements of type {other:?}");
                return Err(
                    Error::file(&self.path, problem).remedy("Convert it to F32 (F16, BF16 and F64 are read too)")
                );
            }
        };
        Ok(Cow::Owned(converted))
    }

    /// Copies a tensor's elements into `into`, whose length is the product of `shape`. Errors as [`Weights::get`].
    pub fn read_into(&self, name: &str, shape: &[usize], into: &mut [f32]) -> Result<()> {
        let data = self.get(name, shape)?;
        if data.len() != into.len() {
            let problem = format!("the tensor {name} has {} elements, expected {}", data.len(), into.len());
            return Err(Error::file(&self.path, problem));
        }
        into.copy_from_slice(&data);
        Ok(())
    }
}

fn convert<const SIZE: usize>(bytes: &[u8], to_f32: impl Fn([u8; SIZE]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&element| to_f32(element)).collect()
}

/// The name most like `name`, if any is like it at all.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |other: &str| strsim::jaro_winkler(name, other);
    names.filter(|other| likeness(other) > 0.8).max_by(|one, two| likeness(one).total_cmp(&likeness(two)))
}

fn first_few(names: Vec<String>) -> String {
    const SHOWN: usize = 6;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{TensorView, serialize};
    use std::fs;

    const WEIGHT: NamedTensor = NamedTensor { name: "ctc.weight", shape: &[2, 3], data: &[1., -2., 3., 0., -0., 6.] };
    const BIAS: NamedTensor = NamedTensor { name: "ctc.bias", shape: &[2], data: &[f32::MIN_POSITIVE, f32::INFINITY] };

    fn saved(tensors: &[NamedTensor]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("best.safetensors");
        save_weights(&path, tensors, &[("stage", "joint"), ("epoch", "3")]).unwrap();
        (folder, path)
    }

    #[test]
    fn weights_come_back_with_the_same_bits() {
        let (_folder, path) = saved(&[WEIGHT, BIAS]);
        let weights = load_weights(&path).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["ctc.bias", "ctc.weight"]);
        for tensor in [WEIGHT, BIAS] {
            let data = weights.get(tensor.name, tensor.shape).unwrap();
            assert!(matches!(data, Cow::Borrowed(_)));
            assert_eq!(bytemuck::cast_slice::<f32, u32>(&data), bytemuck::cast_slice::<f32, u32>(tensor.data));
        }
        assert_eq!((weights.metadata("epoch"), weights.metadata("format")), (Some("3"), Some("pt")));
    }

    #[test]
    fn the_same_content_gives_the_same_bytes_in_any_order() {
        let (_one, first) = saved(&[WEIGHT, BIAS]);
        let folder = tempfile::tempdir().unwrap();
        let second = folder.path().join("other");
        save_weights(&second, &[BIAS, WEIGHT], &[("epoch", "3"), ("stage", "joint")]).unwrap();
        assert_eq!(fs::read(first).unwrap(), fs::read(second).unwrap());
    }

    #[test]
    fn the_checksum_is_known_before_the_file_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epoch-1.safetensors");
        save_weights(&path, &[WEIGHT, BIAS], &[]).unwrap();
        let found = load_weights(&path).unwrap().checksum().0;
        assert_eq!(weights_checksum(&[BIAS, WEIGHT]).unwrap(), found);
        assert!(weights_checksum(&[BIAS, BIAS]).unwrap_err().to_string().contains("two tensors"));
    }

    #[test]
    fn the_library_reads_what_we_write() {
        let (_folder, path) = saved(&[WEIGHT, BIAS]);
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("ctc.weight").unwrap().shape(), [2, 3]);
        assert_eq!(tensors.tensor("ctc.weight").unwrap().data(), bytemuck::cast_slice::<f32, u8>(WEIGHT.data));
    }

    #[test]
    fn other_precisions_are_converted_and_integers_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half.safetensors");
        let values = [1.5f32, -0.25];
        let half: Vec<u8> = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        let brain: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        let double: Vec<u8> = values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
        let count = 7i64.to_le_bytes();
        let view = |dtype, bytes| TensorView::new(dtype, vec![2], bytes).unwrap();
        let tensors = [
            ("half", view(Dtype::F16, &half)),
            ("brain", view(Dtype::BF16, &brain)),
            ("double", view(Dtype::F64, &double)),
            ("count", TensorView::new(Dtype::I64, vec![], &count).unwrap()),
        ];
        fs::write(&path, serialize(tensors, None).unwrap()).unwrap();
        let weights = load_weights(&path).unwrap();
        for name in ["half", "brain", "double"] {
            assert_eq!(*weights.get(name, &[2]).unwrap(), values, "{name}");
        }
        let error = weights.get("count", &[]).unwrap_err().to_string();
        assert!(error.contains("count holds elements of type I64") && error.contains("Convert it"), "{error}");
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_and_never_a_panic() {
        let (_folder, path) = saved(&[WEIGHT, BIAS]);
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let error = load_weights(&path).unwrap_err().to_string();
            assert!(error.contains("best.safetensors: is") && error.contains("Copy it anew"), "{length}: {error}");
        }
        fs::write(&path, "[recipe]\nname = \"not weights at all\"\n").unwrap();
        assert!(load_weights(&path).unwrap_err().to_string().contains("is no safetensors file"));
        assert!(load_weights(path.with_extension("missing")).unwrap_err().to_string().contains("cannot be read"));
        assert!(load_weights(path.parent().unwrap()).unwrap_err().to_string().contains("is not a file"));
    }

    #[test]
    fn another_shape_is_an_error_with_both_shapes() {
        let (_folder, path) = saved(&[WEIGHT, BIAS]);
        let weights = load_weights(&path).unwrap();
        let expected = [("ctc.bias", &[2][..]), ("ctc.weight", &[3, 2][..])];
        for error in [weights.expect(expected).unwrap_err(), weights.get("ctc.weight", &[3, 2]).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("ctc.weight has the shape [2, 3], expected [3, 2]"), "{error}");
            assert!(error.contains("best.safetensors"), "{error}");
        }
        weights.expect([("ctc.bias", &[2][..]), ("ctc.weight", &[2, 3][..])]).unwrap();
    }

    #[test]
    fn missing_and_unexpected_names_are_listed_with_the_nearest() {
        let (_folder, path) = saved(&[WEIGHT, BIAS]);
        let weights = load_weights(&path).unwrap();
        let error = weights.expect([("ctc.bias", &[2][..]), ("ctc.weigth", &[2, 3][..])]).unwrap_err().to_string();
        assert!(error.contains("missing: ctc.weigth (the file has ctc.weight)"), "{error}");
        assert!(error.contains("not expected: ctc.weight"), "{error}");
        let error = weights.get("ctc.biass", &[2]).unwrap_err().to_string();
        assert!(error.contains("has no tensor ctc.biass") && error.contains("ctc.bias."), "{error}");
    }

    #[test]
    fn data_that_disagrees_with_its_shape_and_a_name_twice_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let short = NamedTensor { name: "ctc.bias", shape: &[3], data: &[0.; 2] };
        assert!(save_weights(&path, &[short], &[]).unwrap_err().to_string().contains("ctc.bias of shape [3]"));
        assert!(save_weights(&path, &[BIAS, BIAS], &[]).unwrap_err().to_string().contains("two tensors"));
        assert!(!path.exists());
    }
}
