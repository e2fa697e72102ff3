//! Reading files up to a limit, writing them whole or not at all.

use std::path::Path;

use anyhow::Result;

use crate::exit::usage;

/// Largest list of families or of schedules by layer that is read: a thousand times what anybody writes by hand.
pub(crate) const MOST_OF_A_LIST: u64 = 1 << 20;
/// Largest journal or record that is read: a hundred times that of the longest search.
pub(crate) const MOST_OF_A_RECORD: u64 = 1 << 28;

/// Refuses to replace a file that the user named, unless told to: asked before anything is computed.
///
/// # Errors
/// Something has that name.
pub(crate) fn refuse_to_replace(path: &Path, force: bool) -> Result<()> {
    if force || path.symlink_metadata().is_err() {
        return Ok(());
    }
    Err(usage(format!(
        "{} is there already; choose another name, or replace it with --force",
        path.display()
    )))
}

/// Replaces a file; a crash leaves the old one or the new one.
///
/// # Errors
/// The file system's.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    Ok(muon_cuda::checkpoint::replace_file(path, bytes)?)
}

/// The text of a regular file of at most that many bytes.
///
/// # Errors
/// The file system's; a pipe or a device, a larger file, text that is not UTF-8.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    Ok(muon_cuda::checkpoint::read_text_file(path, most)?)
}
