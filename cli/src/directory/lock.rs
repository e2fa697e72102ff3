//! One process at a time in a directory: a lock on a file in it, which the system releases when the process ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};

use super::unwritable;

/// The file that is locked. It stays when its process has ended: removing it would let two others each lock one of its name.
pub(super) const LOCK: &str = ".muon-lock";

/// Held as long as it lives.
#[derive(Debug)]
pub(super) struct Lock(
    #[expect(dead_code, reason = "the lock lasts as long as the file is open")] File,
);

impl Lock {
    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// It cannot be made or written to; another process has it.
    pub(super) fn take(directory: &Path) -> Result<Self> {
        Self::try_take(directory)?.ok_or_else(|| {
            anyhow!(
                "another process is working in {}; wait for it, stop it, or choose another --out",
                directory.display()
            )
        })
    }

    /// The same; `None` if another process has it.
    ///
    /// # Errors
    /// It cannot be made or written to.
    pub(super) fn try_take(directory: &Path) -> Result<Option<Self>> {
        let context = || unwritable(directory);
        fs::create_dir_all(directory).with_context(context)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(LOCK))
            .with_context(context)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks: nothing to protect with.
            Err(TryLockError::Error(_)) => Ok(Some(Self(file))),
        }
    }
}
