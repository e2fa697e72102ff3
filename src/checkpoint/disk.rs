//! The real file system under a replacement: where the target is, and each operation on it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::atomic::FileSystem;
use super::digest::sha256;

/// Links followed before a chain of them counts as a loop; Linux's own limit.
const MAX_LINKS: usize = 40;

/// Attempts at a temporary name. A second is needed only if another process saves the same target
/// and takes the fresh file for a stale one in the instant before it is locked.
const MAX_ATTEMPTS: usize = 16;

/// The file to be replaced, links followed.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    pub(super) dir: PathBuf,
    /// Start of the temporaries' names: fixed length, so that a target with the longest legal name
    /// has temporaries too.
    temporary_prefix: String,
    /// Those of the existing file.
    permissions: Option<Permissions>,
}

impl Target {
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        let mut path = path.to_path_buf();
        let mut links = 0;
        let permissions = loop {
            let found = match fs::symlink_metadata(&path) {
                Ok(found) => found,
                Err(e) if e.kind() == io::ErrorKind::NotFound => break None,
                Err(e) => return Err(e),
            };
            if found.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("too many symbolic links"));
                }
                let to = fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new("")).join(to);
            } else if found.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            } else if found.is_file() {
                break Some(found.permissions());
            } else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the path is a device, pipe or socket, not a regular file",
                ));
            }
        };
        Self::new(path, permissions)
    }

    pub(super) fn new(path: PathBuf, permissions: Option<Permissions>) -> io::Result<Self> {
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
        };
        let id = sha256([name.as_encoded_bytes()]);
        let temporary_prefix = format!(".muon-cuda-tmp-{}-", id.get(..16).unwrap_or_default());
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Ok(Self { path, dir, temporary_prefix, permissions })
    }

    /// A path that no other process and no earlier call was given.
    pub(super) fn fresh_temporary(&self) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // A clock before 1970 costs nothing: the name is still tried with `create_new`.
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let id = std::process::id();
        self.dir.join(format!("{}{id}-{time:x}-{count}", self.temporary_prefix))
    }

    fn is_temporary(&self, name: &OsString) -> bool {
        name.as_encoded_bytes().starts_with(self.temporary_prefix.as_bytes())
    }
}

/// The operating system's files.
pub(super) struct Disk;

impl FileSystem for Disk {
    type File = File;
    type Directory = Option<File>;

    fn open_dir(&self, dir: &Path) -> io::Result<Option<File>> {
        // Elsewhere directories cannot be opened as files, and renames are the journal's business.
        if cfg!(unix) { File::open(dir).map(Some) } else { Ok(None) }
    }

    fn remove_stale(&self, target: &Target) {
        let Ok(names) = fs::read_dir(&target.dir) else { return };
        for entry in names.flatten().filter(|entry| target.is_temporary(&entry.file_name())) {
            let path = entry.path();
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            // It has the target's mode, so either way of opening it may be forbidden.
            let file = OpenOptions::new().write(true).open(&path).or_else(|_| File::open(&path));
            // A writer holds its lock until it has renamed or removed the file, and a lock ends
            // with its process. Where locks are not supported nothing is removed. A failure to
            // remove is left to the next save.
            if let Ok(file) = file
                && file.try_lock().is_ok()
            {
                // Still locked here: a writer that has just created it cannot lock it, and takes
                // another.
                let _ = fs::remove_file(&path);
            }
        }
    }

    fn create(&self, target: &Target) -> io::Result<(File, PathBuf)> {
        for _ in 0..MAX_ATTEMPTS {
            let path = target.fresh_temporary();
            let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            let ours = match file.try_lock() {
                // Looked for again: it may have been removed as stale before it was locked.
                Ok(()) => fs::exists(&path)?,
                Err(TryLockError::WouldBlock) => false,
                // No locks on this file system: then nobody takes it for stale either.
                Err(TryLockError::Error(_)) => true,
            };
            if !ours {
                continue;
            }
            // Before the first byte, so that a private file's contents are never readable.
            if let Some(permissions) = &target.permissions
                && let Err(e) = file.set_permissions(permissions.clone())
            {
                let _ = fs::remove_file(&path);
                return Err(e);
            }
            return Ok((file, path));
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "no free name for a temporary file"))
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<usize> {
        file.write(bytes)
    }

    fn sync(&self, file: &mut File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Option<File>) -> io::Result<()> {
        let Some(dir) = dir else { return Ok(()) };
        match dir.sync_all() {
            // Some network and user-space file systems know no sync of a directory.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}
