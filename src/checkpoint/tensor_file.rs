//! Plain safetensors files of any origin: the checkpoint's strictness without its envelope.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use half::{bf16, f16};

use super::atomic::replace;
use super::dtype::{Element, Encoding, TensorDtype};
use super::encode::{TensorSet, joined};
use super::file::RawFile;
use crate::error::{Error, Result, ResultExt};

/// The tensors of a safetensors file, whoever wrote it.
///
/// Such files carry no digest: damage within the data goes unnoticed. Read a checkpoint with
/// [`Reader`](super::Reader).
///
/// # Example
///
/// ```
/// use muon_cuda::checkpoint::{TensorFile, TensorFileWriter};
///
/// let mut writer = TensorFileWriter::new();
/// writer.values::<f64>("matrix", &[1, 2], &[0.5, 0.25])?;
/// let file = TensorFile::from_bytes(writer.to_bytes()?)?;
/// assert_eq!(file.shape("matrix")?, [1, 2]);
/// assert_eq!(file.f32("matrix")?, [0.5, 0.25]);
/// # Ok::<(), muon_cuda::Error>(())
/// ```
#[derive(Clone)]
pub struct TensorFile {
    file: RawFile,
}

impl TensorFile {
    /// Reads a file and checks its header.
    ///
    /// # Errors
    ///
    /// `is_io` if the file cannot be read or is no regular file, else as
    /// [`TensorFile::from_bytes`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        RawFile::load(path.as_ref(), |file| Ok(Self { file }))
    }

    /// Checks the header of a file in memory.
    ///
    /// # Errors
    ///
    /// `is_checkpoint` if the bytes are no safetensors, are truncated, or have a header with a
    /// hole, an overlap, a repeated key, or sizes that do not fit; the message says which.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Ok(Self { file: RawFile::from_bytes(bytes)? })
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.file.layout.names()
    }

    /// The file's metadata; empty where it has none.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.file.layout.metadata
    }

    /// Element type of a tensor.
    ///
    /// # Errors
    ///
    /// `is_checkpoint` if there is none of this name.
    pub fn dtype(&self, name: &str) -> Result<TensorDtype> {
        Ok(self.file.layout.get(name)?.dtype)
    }

    /// Shape of a tensor; empty for a scalar.
    ///
    /// # Errors
    ///
    /// `is_checkpoint` if there is none of this name.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.file.layout.get(name)?.shape)
    }

    /// The little-endian bytes of a tensor, in place.
    ///
    /// # Errors
    ///
    /// `is_checkpoint` if there is none of this name.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        Ok(self.file.data(self.file.layout.get(name)?))
    }

    /// The elements of an f32, bf16, f16 or f64 tensor as f32.
    ///
    /// # Numerics
    ///
    /// f64 is rounded to nearest; the others are exact. NaN and infinities stay what they are.
    ///
    /// # Errors
    ///
    /// `is_checkpoint` if there is none of this name, `is_dtype_mismatch` if it holds no
    /// floating-point numbers of these types, `is_non_finite` if a finite f64 overflows f32.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        let (bytes, dtype) = self.data(name)?;
        match dtype {
            TensorDtype::F32 => Ok(f32::from_le(bytes)),
            TensorDtype::BF16 => Ok(bf16::from_le(bytes).into_iter().map(bf16::to_f32).collect()),
            TensorDtype::F16 => Ok(f16::from_le(bytes).into_iter().map(f16::to_f32).collect()),
            TensorDtype::F64 => f64::from_le(bytes)
                .into_iter()
                .enumerate()
                .map(|(index, x)| narrowed(x).ok_or_else(|| overflow(name, index, x)))
                .collect(),
            other => Err(not_a_float(name, other)),
        }
    }

    /// The elements of an f32, bf16, f16 or f64 tensor as f64: exact.
    ///
    /// # Errors
    ///
    /// `is_checkpoint` if there is none of this name, `is_dtype_mismatch` if it holds no
    /// floating-point numbers of these types.
    pub fn f64(&self, name: &str) -> Result<Vec<f64>> {
        let (bytes, dtype) = self.data(name)?;
        match dtype {
            TensorDtype::F64 => Ok(f64::from_le(bytes)),
            TensorDtype::F32 => Ok(f32::from_le(bytes).into_iter().map(f64::from).collect()),
            TensorDtype::BF16 => Ok(bf16::from_le(bytes).into_iter().map(bf16::to_f64).collect()),
            TensorDtype::F16 => Ok(f16::from_le(bytes).into_iter().map(f16::to_f64).collect()),
            other => Err(not_a_float(name, other)),
        }
    }

    fn data(&self, name: &str) -> Result<(&[u8], TensorDtype)> {
        let entry = self.file.layout.get(name)?;
        Ok((self.file.data(entry), entry.dtype))
    }
}

impl fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorFile")
            .field("bytes", &self.file.bytes.len())
            .field("tensors", &self.names().len())
            .finish_non_exhaustive()
    }
}

/// The nearest f32, `None` where a finite number has none but infinity.
fn narrowed(x: f64) -> Option<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "the rounding is what is asked for")]
    let rounded = x as f32;
    (rounded.is_finite() || !x.is_finite()).then_some(rounded)
}

fn overflow(name: &str, index: usize, x: f64) -> Error {
    Error::non_finite(format!(
        "tensor `{name}`: element {index} is `{x:e}`, beyond the range of f32; read it as f64"
    ))
}

fn not_a_float(name: &str, found: TensorDtype) -> Error {
    Error::dtype_mismatch(format!("tensor `{name}`"), "F32, BF16, F16 or F64", found)
}

/// Collects tensors and metadata of a plain safetensors file and writes it.
#[derive(Debug, Default)]
pub struct TensorFileWriter<'a> {
    metadata: BTreeMap<String, String>,
    tensors: TensorSet<'a>,
}

impl<'a> TensorFileWriter<'a> {
    /// A file without tensors.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a metadata text; a later one under the same key replaces it.
    pub fn metadata(&mut self, key: &str, text: &str) -> &mut Self {
        self.metadata.insert(key.to_owned(), text.to_owned());
        self
    }

    /// Adds a tensor.
    ///
    /// # Errors
    ///
    /// As [`TensorFileWriter::tensor`].
    pub fn values<T: Element>(
        &mut self,
        name: &str,
        shape: &[usize],
        values: &'a [T],
    ) -> Result<&mut Self> {
        self.tensors.push(name, shape, values)?;
        Ok(self)
    }

    /// Adds a tensor from little-endian bytes, borrowed or owned.
    ///
    /// # Errors
    ///
    /// `is_duplicate_name` for a name given before, `is_shape_mismatch` if the bytes are not the
    /// shape's, `is_invalid_config` for the reserved name `__metadata__`. The writer is unchanged.
    pub fn tensor(
        &mut self,
        name: &str,
        dtype: TensorDtype,
        shape: &[usize],
        bytes: impl Into<Cow<'a, [u8]>>,
    ) -> Result<&mut Self> {
        self.tensors.push_bytes(name, dtype, shape, bytes.into())?;
        Ok(self)
    }

    /// The whole file.
    ///
    /// # Errors
    ///
    /// `is_checkpoint` if the header would exceed the format's limit of 100 000 000 bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let (header, data) = self.tensors.parts(&self.metadata)?;
        Ok(joined(header, &data))
    }

    /// Writes the file, replacing `path` atomically as [`replace_file`](super::replace_file) does.
    ///
    /// # Errors
    ///
    /// As [`TensorFileWriter::to_bytes`] and [`replace_file`](super::replace_file).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (header, data) = self.tensors.parts(&self.metadata).context(|| path.display())?;
        let parts: Vec<&[u8]> = std::iter::once(header.as_slice()).chain(data).collect();
        replace(path, &parts)
    }
}
