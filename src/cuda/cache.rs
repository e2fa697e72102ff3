//! Compiled kernels on disk, so that only the first start on a machine compiles.
//!
//! One file per kernel file, architecture and compiler. An entry counts only if it is exactly what was
//! written for exactly this key: anything else is as good as absent, and is overwritten. The directory
//! is `MUON_CUDA_CACHE_DIR`, else `muon-cuda` in `XDG_CACHE_HOME` or `~/.cache`; set but empty,
//! `MUON_CUDA_CACHE_DIR` turns the cache off. A directory that cannot be read or written is no error:
//! kernels are then compiled each time.
//!
//! The digest guards against damage, not against forgery: who may write the directory decides what
//! runs on the device. It is created readable and writable by its owner alone.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::nvrtc::Image;
use super::sources::KernelSource;
use crate::error::Error;
use crate::trace;

/// First line of every entry. A change of the format changes it.
const MAGIC: &str = "muon-cuda kernel 1";

/// What an entry was compiled from and by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Key {
    file_name: String,
    digest: String,
}

impl Key {
    /// The key of a kernel file under these options (which name the architecture), compiled by this
    /// version of NVRTC.
    pub(crate) fn new(
        source: &KernelSource,
        options: &[String],
        image: Image,
        nvrtc: (i32, i32),
    ) -> Self {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            // Each part with its length, so that no two lists of parts read the same.
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        };
        add(MAGIC);
        add(source.file);
        add(source.digest);
        add(match image {
            Image::Ptx => "ptx",
            Image::Cubin => "cubin",
        });
        add(&format!("{}.{}", nvrtc.0, nvrtc.1));
        options.iter().for_each(|option| add(option));
        let digest = hex(&hash.finalize());
        let stem = source.file.trim_end_matches(".cu");
        let short = digest.get(..16).unwrap_or_default();
        Self { file_name: format!("{stem}-{short}.kernel"), digest }
    }
}

/// The directory of compiled kernels, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cache(Option<PathBuf>);

impl Cache {
    /// The directory that the environment names.
    pub(crate) fn from_env() -> Self {
        let get = |name| std::env::var_os(name);
        Self(directory(get("MUON_CUDA_CACHE_DIR"), get("XDG_CACHE_HOME"), get("HOME")))
    }

    /// No directory: nothing is kept.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    /// A directory of the caller's choice.
    #[cfg(test)]
    pub(crate) fn at(directory: &Path) -> Self {
        Self(Some(directory.to_owned()))
    }

    /// Where entries are kept; `None` when the cache is off.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.0.as_deref()
    }

    /// Why no entry can be kept, if none can: makes a file there and removes it.
    pub(crate) fn problem(&self) -> Option<String> {
        let directory = self.0.as_deref()?;
        // What is not there yet would be made in the nearest directory that is.
        let there = directory.ancestors().find(|path| fs::symlink_metadata(path).is_ok());
        let there = there.unwrap_or(Path::new("."));
        let probe = there.join(format!(".muon-cuda-probe-{}", std::process::id()));
        let made = fs::OpenOptions::new().write(true).create_new(true).open(&probe);
        let error = made.and_then(|_| fs::remove_file(&probe)).err()?;
        Some(format!(
            "nothing can be written to {}: {error}; kernels are compiled at every start; make it writable, or name \
             another directory in MUON_CUDA_CACHE_DIR",
            there.display()
        ))
    }

    /// The image of a key, if an undamaged one is there.
    pub(crate) fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let entry = fs::read(self.0.as_ref()?.join(&key.file_name)).ok()?;
        decode(&entry, key).map(<[u8]>::to_vec)
    }

    /// Keeps an image. A failure is an event and no error: the cache is an optimisation.
    pub(crate) fn put(&self, key: &Key, image: &[u8]) {
        let Some(directory) = &self.0 else { return };
        let made = create_private(directory)
            .map_err(|e| Error::io(directory, "make the directory of kernels", e));
        let written = made.and_then(|()| {
            crate::checkpoint::replace_file(directory.join(&key.file_name), &encode(image, key))
        });
        if let Err(error) = written {
            trace::cache_not_written(directory, &error);
        }
    }
}

fn directory(
    own: Option<OsString>,
    xdg: Option<OsString>,
    home: Option<OsString>,
) -> Option<PathBuf> {
    if let Some(own) = own {
        return (!own.is_empty()).then(|| PathBuf::from(own));
    }
    // The XDG specification: a relative path is to be ignored.
    let base = xdg.map(PathBuf::from).filter(|path| path.is_absolute()).or_else(|| {
        home.filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(".cache"))
    });
    base.map(|base| base.join("muon-cuda"))
}

fn create_private(directory: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

fn encode(image: &[u8], key: &Key) -> Vec<u8> {
    let mut entry =
        format!("{MAGIC}\n{}\n{}\n{}\n", key.digest, hex(&Sha256::digest(image)), image.len())
            .into_bytes();
    entry.extend_from_slice(image);
    entry
}

fn decode<'a>(entry: &'a [u8], key: &Key) -> Option<&'a [u8]> {
    let mut parts = entry.splitn(5, |byte| *byte == b'\n');
    let mut line = || parts.next();
    let (magic, owner, digest, length) = (line()?, line()?, line()?, line()?);
    let image = parts.next()?;
    let valid = magic == MAGIC.as_bytes()
        && owner == key.digest.as_bytes()
        && length == image.len().to_string().as_bytes()
        && digest == hex(&Sha256::digest(image)).as_bytes();
    valid.then_some(image)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
