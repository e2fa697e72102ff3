//! Files that grow by whole lines and survive a kill: of the last line a part may be there, which is removed before more is
//! appended.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use serde::Serialize;

use crate::files::MOST_OF_A_RECORD;

/// What is in such a file.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    /// Whole lines, each with its newline.
    pub(crate) text: String,
    /// Whether a part of a line follows.
    pub(crate) cut: bool,
}

/// Reads the whole lines of a file; a file that is not there has none.
///
/// # Errors
/// The file system's; lines that are not UTF-8.
pub(crate) fn read(path: &Path) -> Result<Whole> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Whole::default()),
        _ => {}
    }
    let mut bytes = muon_cuda::checkpoint::read_file(path, MOST_OF_A_RECORD)?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let cut = whole < bytes.len();
    bytes.truncate(whole);
    let text = String::from_utf8(bytes)
        .map_err(|e| anyhow!("{} is not UTF-8: {}", path.display(), e.utf8_error()))?;
    Ok(Whole { text, cut })
}

/// A file open for appending.
#[derive(Debug)]
pub(crate) struct Lines {
    path: PathBuf,
    file: Mutex<File>,
}

impl Lines {
    /// Goes on after what was read, without the part of a line; makes the file if it is not there.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn after(path: &Path, whole: &Whole) -> Result<Self> {
        let context = || format!("write to {}", path.display());
        if whole.cut {
            let file = OpenOptions::new().write(true).open(path).with_context(context)?;
            file.set_len(u64::try_from(whole.text.len())?).with_context(context)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path).with_context(context)?;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file) })
    }

    /// One line of JSON.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn append(&self, what: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(what)?;
        line.push('\n');
        self.append_text(&line)
    }

    /// Whole lines, handed to the system in one piece and to the disk before this returns.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn append_text(&self, lines: &str) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file.write_all(lines.as_bytes()).and_then(|()| file.sync_data());
        written.with_context(|| format!("write to {}", self.path.display()))
    }
}
