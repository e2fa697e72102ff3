//! Writing files whole or not at all.

use std::path::Path;

use anyhow::Result;

/// Replaces a file; a crash leaves the old one or the new one.
///
/// # Errors
/// The file system's.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(muon_cuda::checkpoint::replace_file(path, bytes)?)
}
