//! Replacing a file so that a crash leaves the old one or the new one: the order of operations.
//!
//! The operations themselves are behind [`FileSystem`], which tests implement with one that fails
//! or crashes at the n-th of them. `tempfile` was not used for this: its `persist` syncs neither
//! file nor directory, gives no hook between the steps, and leaves the temporaries of a killed
//! process behind for good.

use std::io;
use std::path::Path;

use super::disk::{Disk, Target};
use crate::error::{Error, Result};

/// The file operations of a replacement.
pub(super) trait FileSystem {
    type File;
    type Directory;

    /// Opens the directory for [`FileSystem::sync_dir`].
    fn open_dir(&self, dir: &Path) -> io::Result<Self::Directory>;

    /// Removes temporaries of this target whose writers are gone. Never fails: what cannot be
    /// removed stays.
    fn remove_stale(&self, target: &Target);

    /// Creates a temporary for this target, with the target's mode, under a name used by nobody.
    fn create(&self, target: &Target) -> io::Result<(Self::File, std::path::PathBuf)>;

    /// Writes some of the bytes, as [`io::Write::write`] does.
    fn write(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<usize>;

    /// Returns when the file's bytes and length are on stable storage.
    fn sync(&self, file: &mut Self::File) -> io::Result<()>;

    /// Puts `from` in the place of `to` in one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Returns when the names in the directory are on stable storage.
    fn sync_dir(&self, dir: &Self::Directory) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// Replaces the contents of a file, or creates it, atomically.
///
/// The bytes go into a temporary in the same directory, are synced, and take the target's place in
/// one rename, after which the directory is synced too. A reader sees the old file or the new one,
/// complete, also after a crash of the process or the machine; one who has the old file open or
/// mapped keeps the old bytes. Of several writers at once the last one wins.
///
/// - An existing file's mode is kept. It does not protect the file: what counts is the directory's.
///   A new file has the mode that the process's umask gives. Owner, extended attributes and other
///   hard links are not carried over.
/// - A symbolic link stays a link; the file it points to is replaced.
/// - A killed process leaves its temporary, `.muon-cuda-tmp-…`, in the directory. Nothing reads it,
///   and the next replacement of the same file removes it; a lock tells it from one in use.
///
/// # Errors
///
/// `is_io`, with the path: a directory that is missing, unwritable or unreadable, a full disk, a
/// target that is a directory or a device. The old file is untouched and the temporary removed; if
/// removing fails too, the message names what was left behind and still reports the first cause.
/// The one exception is a failure to sync the directory after the rename: the new file is then in
/// place, and the message says that a power failure may still bring back the old one.
pub fn replace_file(path: impl AsRef<Path>, contents: &[u8]) -> Result<()> {
    replace(path.as_ref(), &[contents])
}

/// [`replace_file`] for contents in several parts.
pub(super) fn replace(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let target = Target::find(path).map_err(|e| Error::io(path, "save", e))?;
    replace_on(&Disk, &target, parts)
}

pub(super) fn replace_on<F: FileSystem>(fs: &F, target: &Target, parts: &[&[u8]]) -> Result<()> {
    // Opened first: a directory that cannot be synced is found out while nothing has changed.
    let dir = fs
        .open_dir(&target.dir)
        .map_err(|e| Error::io(&target.dir, "open the directory to save in it", e))?;
    fs.remove_stale(target);
    let (mut file, temporary) = fs
        .create(target)
        .map_err(|e| Error::io(&target.path, "create a temporary file beside it", e))?;

    let written = write_all(fs, &mut file, parts)
        .map_err(|e| Error::io(&target.path, "write the new contents (the old file is kept)", e))
        .and_then(|()| {
            // Before the rename, or a crash could show the new name with the data missing.
            fs.sync(&mut file).map_err(|e| {
                Error::io(&target.path, "sync the new contents (the old file is kept)", e)
            })
        })
        .and_then(|()| {
            fs.rename(&temporary, &target.path).map_err(|e| {
                Error::io(&target.path, "rename the new file over it (the old file is kept)", e)
            })
        });
    if let Err(cause) = written {
        return Err(match fs.remove(&temporary) {
            Ok(()) => cause,
            Err(e) => cause.context(format_args!(
                "the temporary file {} was left behind ({e})",
                temporary.display()
            )),
        });
    }
    fs.sync_dir(&dir).map_err(|e| {
        Error::io(
            &target.path,
            "sync the directory (the new file is in place, but a power failure may bring back the \
             old one)",
            e,
        )
    })
}

fn write_all<F: FileSystem>(fs: &F, file: &mut F::File, parts: &[&[u8]]) -> io::Result<()> {
    for part in parts {
        let mut left = *part;
        while !left.is_empty() {
            match fs.write(file, left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => left = left.get(n..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}
