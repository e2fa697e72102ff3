//! A safetensors file in memory: read from disk in bounded steps, checked, and cut into tensors.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::dtype::{Element, TensorDtype};
use super::layout::{Entry, LENGTH_BYTES, Layout, header_len};
use super::read::refuse_irregular;
use crate::error::{Error, Result, ResultExt};

/// The bytes of a file and the layout its header describes.
#[derive(Clone)]
pub(super) struct RawFile {
    pub(super) bytes: Vec<u8>,
    data_start: usize,
    pub(super) layout: Layout,
}

impl RawFile {
    pub(super) fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        let data_start = LENGTH_BYTES + header_len(&bytes, bytes.len())?;
        let (start, data) = bytes.split_at(data_start);
        let header = start.get(LENGTH_BYTES..).unwrap_or_default();
        let layout = Layout::parse(header, data.len())?;
        Ok(Self { bytes, data_start, layout })
    }

    /// Reads `path` and hands it to `check` with the path as context of any error.
    pub(super) fn load<T>(path: &Path, check: impl FnOnce(Self) -> Result<T>) -> Result<T> {
        Self::read(path).and_then(|file| check(file).context(|| path.display()))
    }

    /// Reads the header first: what a lying one announces is neither allocated nor read.
    fn read(path: &Path) -> Result<Self> {
        let Opened { mut file, len, mut bytes, layout } = Opened::open(path)?;
        let data_start = bytes.len();
        fill(&mut file, &mut bytes, len, path)?;
        Ok(Self { bytes, data_start, layout })
    }

    /// The bytes of an entry of this file's own layout.
    pub(super) fn data(&self, entry: &Entry) -> &[u8] {
        self.bytes
            .get(self.data_start..)
            .and_then(|data| data.get(entry.range.clone()))
            .unwrap_or_default()
    }

    /// The bytes of `name`, which must have this dtype and shape.
    pub(super) fn expect(&self, name: &str, dtype: TensorDtype, shape: &[usize]) -> Result<&[u8]> {
        let entry = self.layout.get(name)?;
        if entry.dtype != dtype {
            return Err(Error::dtype_mismatch(format!("tensor `{name}`"), dtype, entry.dtype));
        }
        if entry.shape != shape {
            return Err(Error::shape_mismatch(
                format!("tensor `{name}`"),
                format!("{shape:?}"),
                format!("{:?}", entry.shape),
            ));
        }
        Ok(self.data(entry))
    }

    pub(super) fn values<T: Element>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        Ok(T::from_le(self.expect(name, T::DTYPE, shape)?))
    }
}

/// A file of which the header was read and compared with the file's length; the tensors were not.
pub(super) struct Opened {
    file: File,
    /// Of the whole file, in bytes.
    len: usize,
    /// From the first byte to the end of the header.
    bytes: Vec<u8>,
    pub(super) layout: Layout,
}

impl Opened {
    pub(super) fn open(path: &Path) -> Result<Self> {
        refuse_irregular(path)?;
        let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let len = file.metadata().map_err(|e| Error::io(path, "read", e))?.len();
        let len = usize::try_from(len).map_err(|_| {
            Error::checkpoint(format!("the file has {len} bytes, more than this machine addresses"))
                .context(path.display())
        })?;
        let mut bytes = Vec::new();
        fill(&mut file, &mut bytes, LENGTH_BYTES.min(len), path)?;
        let data_start = LENGTH_BYTES + header_len(&bytes, len).context(|| path.display())?;
        fill(&mut file, &mut bytes, data_start, path)?;
        let header = bytes.get(LENGTH_BYTES..).unwrap_or_default();
        let layout = Layout::parse(header, len - data_start).context(|| path.display())?;
        Ok(Self { file, len, bytes, layout })
    }
}

/// Reads until `bytes` holds `len` bytes.
fn fill(file: &mut File, bytes: &mut Vec<u8>, len: usize, path: &Path) -> Result<()> {
    let missing = len.saturating_sub(bytes.len());
    bytes.try_reserve_exact(missing).map_err(|e| {
        Error::checkpoint(format!("no memory for the file's {len} bytes"))
            .with_source(e)
            .context(path.display())
    })?;
    let read = file
        .by_ref()
        .take(missing as u64)
        .read_to_end(bytes)
        .map_err(|e| Error::io(path, "read", e))?;
    if read < missing {
        return Err(
            Error::checkpoint("the file became shorter while it was read").context(path.display())
        );
    }
    Ok(())
}
