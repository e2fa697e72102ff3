//! The checkpoint container: named tensors, the caller's JSON, and a digest over every byte.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::atomic::replace;
use super::digest::sha256;
use super::dtype::{Element, TensorDtype};
use super::encode::{TensorSet, joined};
use super::file::RawFile;
use super::layout::listed;
use crate::error::{Error, Result, ResultExt};

/// The version of the container this release writes, and the newest it reads.
pub const VERSION: u64 = 1;

/// Where the digest's 64 hexadecimal digits start in a file of version 1, in bytes.
pub const DIGEST_OFFSET: usize = 102;

const METADATA_KEY: &str = "muon_cuda";
const FORMAT: &str = "muon-cuda-checkpoint";
const DIGEST_DIGITS: usize = 64;
const NO_DIGEST: [u8; DIGEST_DIGITS] = [b'0'; DIGEST_DIGITS];

/// Collects the tensors of a checkpoint and writes it.
///
/// # Example
///
/// ```
/// use muon_cuda::checkpoint::{Reader, Writer};
///
/// let momentum = [0.5_f32, -1.0, 0.25, 0.0, 2.0, 4.0];
/// let mut writer = Writer::new(&("ema".to_owned(), 17_u64))?;
/// writer.values::<f32>("w1.momentum", &[2, 3], &momentum)?;
/// let bytes = writer.to_bytes()?; // or writer.save("run.safetensors")?
///
/// let reader = Reader::from_bytes(bytes)?;
/// let (mode, step): (String, u64) = reader.content()?;
/// assert_eq!((mode.as_str(), step), ("ema", 17));
/// assert_eq!(reader.values::<f32>("w1.momentum", &[2, 3])?, momentum);
/// # Ok::<(), muon_cuda::Error>(())
/// ```
#[derive(Debug)]
pub struct Writer<'a> {
    content: String,
    tensors: TensorSet<'a>,
}

impl<'a> Writer<'a> {
    /// A checkpoint with this content and no tensors yet.
    ///
    /// The content is read back at once: what cannot be loaded is refused before it replaces
    /// anything. JSON knows neither NaN nor infinities: a number that may be one belongs into a
    /// tensor. (`Option<f64>` hides such a number: it would come back as `None`.)
    ///
    /// # Errors
    ///
    /// `is_invalid_config` if the content is no JSON or does not come back from it as it was.
    pub fn new<T: Serialize + DeserializeOwned>(content: &T) -> Result<Self> {
        let refused = |e: serde_json::Error| {
            Error::invalid_config(format!("the content would not survive being stored: {e}"))
                .with_source(e)
        };
        let stored = sorted(content).map_err(refused)?;
        let back = serde_json::from_str::<T>(&stored).map_err(refused)?;
        if sorted(&back).map_err(refused)? != stored {
            return Err(Error::invalid_config(
                "the content would not survive being stored: it is read back as another value",
            ));
        }
        Ok(Self { content: stored, tensors: TensorSet::default() })
    }

    /// Adds a tensor.
    ///
    /// # Errors
    ///
    /// As [`Writer::tensor`].
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
        let (header, data) = self.sealed_parts()?;
        Ok(joined(header, &data))
    }

    /// Writes the file, replacing `path` atomically as [`replace_file`](super::replace_file) does.
    ///
    /// # Errors
    ///
    /// As [`Writer::to_bytes`] and [`replace_file`](super::replace_file).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let (header, data) = self.sealed_parts().context(|| path.display())?;
        let parts: Vec<&[u8]> = std::iter::once(header.as_slice()).chain(data).collect();
        replace(path, &parts)
    }

    /// The file's parts with the digest in place.
    fn sealed_parts(&self) -> Result<(Vec<u8>, Vec<&[u8]>)> {
        let no_digest = String::from_utf8_lossy(&NO_DIGEST);
        let envelope = format!(
            r#"{{"format":"{FORMAT}","version":{VERSION},"digest":"{no_digest}","content":{}}}"#,
            self.content
        );
        let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), envelope)]);
        let (mut header, data) = self.tensors.parts(&metadata)?;
        let digest = sha256(std::iter::once(header.as_slice()).chain(data.iter().copied()));
        match header.get_mut(DIGEST_OFFSET..DIGEST_OFFSET + DIGEST_DIGITS) {
            Some(place) if *place == NO_DIGEST => place.copy_from_slice(digest.as_bytes()),
            // Only a change of the envelope's wording that forgot DIGEST_OFFSET gets here.
            _ => return Err(Error::checkpoint("the digest has no place in the header")),
        }
        Ok((header, data))
    }
}

/// A checkpoint in memory, verified.
#[derive(Clone)]
pub struct Reader {
    file: RawFile,
    envelope: String,
}

/// What the `muon_cuda` key holds in version 1.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<C> {
    #[serde(rename = "format")]
    _format: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    digest: String,
    content: C,
}

/// The part of the envelope that every version has.
#[derive(Deserialize)]
struct Probe {
    format: Option<String>,
    version: Option<u64>,
}

impl Reader {
    /// Reads and verifies a checkpoint.
    ///
    /// # Errors
    ///
    /// `is_io` if the file cannot be read or is no regular file, else as [`Reader::from_bytes`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        RawFile::load(path.as_ref(), Self::verified)
    }

    /// Verifies the bytes of a checkpoint.
    ///
    /// # Errors
    ///
    /// `is_checkpoint` if the bytes are truncated or damaged, are no safetensors, have no
    /// `muon_cuda` metadata, or are of a newer version; the message says which.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        RawFile::from_bytes(bytes).and_then(Self::verified)
    }

    fn verified(mut file: RawFile) -> Result<Self> {
        let Some(envelope) = file.layout.metadata.remove(METADATA_KEY) else {
            let keys = file.layout.metadata.keys().map(String::as_str);
            return Err(Error::checkpoint(format!(
                "a safetensors file, but not a muon-cuda checkpoint: its metadata lacks the key \
                 `{METADATA_KEY}` and has {}",
                listed(keys, "no keys")
            )));
        };
        let damaged = |e: serde_json::Error| {
            Error::checkpoint(format!("the metadata `{METADATA_KEY}` is damaged: {e}"))
                .with_source(e)
        };
        let probe: Probe = serde_json::from_str(&envelope).map_err(damaged)?;
        if probe.format.as_deref() != Some(FORMAT) {
            return Err(Error::checkpoint(format!(
                "not a muon-cuda checkpoint: expected format `{FORMAT}`, found {}",
                probe.format.map_or("none".to_owned(), |f| format!("`{f}`"))
            )));
        }
        match probe.version {
            Some(VERSION) => {}
            Some(newer) if newer > VERSION => {
                return Err(Error::checkpoint(format!(
                    "the checkpoint has version {newer}, newer than the {VERSION} that this \
                     release reads: update muon-cuda"
                )));
            }
            found => {
                return Err(Error::checkpoint(format!(
                    "expected checkpoint version {VERSION}, found {}",
                    found.map_or("none".to_owned(), |v| v.to_string())
                )));
            }
        }
        let strict: Envelope<IgnoredAny> = serde_json::from_str(&envelope).map_err(damaged)?;
        check_digest(&file.bytes, &strict.digest)?;
        if let Some(key) = file.layout.metadata.keys().next() {
            return Err(Error::checkpoint(format!(
                "metadata key `{key}` stands beside `{METADATA_KEY}`, which must be the only one"
            )));
        }
        Ok(Self { file, envelope })
    }

    /// The caller's JSON.
    ///
    /// # Errors
    ///
    /// `is_checkpoint` if it is not a `T`.
    pub fn content<T: DeserializeOwned>(&self) -> Result<T> {
        let envelope: Envelope<T> = serde_json::from_str(&self.envelope).map_err(|e| {
            Error::checkpoint(format!("the checkpoint's content is not what was expected: {e}"))
                .with_source(e)
        })?;
        Ok(envelope.content)
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.file.layout.names()
    }

    /// Refuses a checkpoint that lacks one of these tensors or has another one.
    ///
    /// # Errors
    ///
    /// `is_checkpoint`, listing what is missing and what is unexpected.
    pub fn check_names<'n>(&self, expected: impl IntoIterator<Item = &'n str>) -> Result<()> {
        let expected: std::collections::BTreeSet<&str> = expected.into_iter().collect();
        let missing: Vec<&str> =
            expected.iter().copied().filter(|n| self.file.layout.find(n).is_none()).collect();
        let unexpected: Vec<&str> = self.names().filter(|n| !expected.contains(n)).collect();
        if missing.is_empty() && unexpected.is_empty() {
            return Ok(());
        }
        Err(Error::checkpoint(format!(
            "the checkpoint holds other tensors than expected: missing {}; unexpected {}",
            listed(missing.into_iter(), "none"),
            listed(unexpected.into_iter(), "none")
        )))
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
    /// `is_checkpoint` if there is none of this name, `is_dtype_mismatch` and `is_shape_mismatch`
    /// if it is of another type or shape; the message has both.
    pub fn bytes(&self, name: &str, dtype: TensorDtype, shape: &[usize]) -> Result<&[u8]> {
        self.file.expect(name, dtype, shape)
    }

    /// The elements of a tensor, every bit as stored.
    ///
    /// # Errors
    ///
    /// As [`Reader::bytes`].
    pub fn values<T: Element>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        self.file.values(name, shape)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("bytes", &self.file.bytes.len())
            .field("tensors", &self.names().len())
            .finish_non_exhaustive()
    }
}

/// JSON with the keys of every object sorted, whatever order the value iterates in.
fn sorted<T: Serialize>(content: &T) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(content)?;
    value.sort_all_objects();
    serde_json::to_string(&value)
}

/// Compares the digest stored at its place with the one of all other bytes.
fn check_digest(bytes: &[u8], expected: &str) -> Result<()> {
    let place = DIGEST_OFFSET..DIGEST_OFFSET + DIGEST_DIGITS;
    if bytes.get(place.clone()) != Some(expected.as_bytes()) {
        return Err(Error::checkpoint(format!(
            "the header is not laid out as muon-cuda writes it: the digest does not stand at byte \
             {DIGEST_OFFSET}; was the file rewritten by another tool?"
        )));
    }
    let before = bytes.get(..place.start).unwrap_or_default();
    let after = bytes.get(place.end..).unwrap_or_default();
    let found = sha256([before, &NO_DIGEST, after]);
    if found != expected {
        return Err(Error::checkpoint(format!(
            "the checkpoint is damaged: its digest is `{expected}`, its bytes have `{found}`"
        )));
    }
    Ok(())
}
