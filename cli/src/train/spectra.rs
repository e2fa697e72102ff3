//! `--record-spectra`: singular values of the directions of a job, appended to a file that may hold others already.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, absolute};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use muon_cuda::spectrum::{SpectrumRecord, read_records};

use super::config::RecordedSpectra;
use crate::exit::usage;
use crate::journal::{self, Lines, Whole};
use crate::terminal::Notes;

/// A file of spectra that runs of a job write to in turn.
#[derive(Debug)]
pub(crate) struct SpectraFile {
    lines: Lines,
    every: usize,
    /// Lines of this job that are there already: a run that is resumed from a checkpoint repeats some, to the byte.
    written: Mutex<BTreeSet<String>>,
    _lock: File,
}

/// What a file holds.
#[derive(Default)]
struct Found {
    whole: Whole,
    /// The last record lacks its newline in the file.
    unended: bool,
}

/// Where a new job's records will go; nothing is written yet.
///
/// # Errors
/// A file that holds something else than spectra, or cannot be read.
pub(crate) fn plan(file: &Path, every: usize) -> Result<RecordedSpectra> {
    let from = u64::try_from(look(file)?.whole.text.len())?;
    let file = absolute(file).with_context(|| unwritable(file))?;
    Ok(RecordedSpectra { file, every, from })
}

fn look(path: &Path) -> Result<Found> {
    match fs::metadata(path) {
        Err(_) => return Ok(Found::default()),
        Ok(found) if !found.is_file() => {
            return Err(usage(format!(
                "--record-spectra: {} is no regular file; records are appended, and read again on --resume",
                path.display()
            )));
        }
        Ok(_) => {}
    }
    let recording = read_records(path).map_err(|e| {
        usage(format!(
            "--record-spectra appends to {}, which holds something else: {e}; name another file",
            path.display()
        ))
    })?;
    let mut whole = journal::read(path)?;
    // What follows the last newline is a record, or it is a part of one.
    let unended = whole.cut && !recording.truncated;
    if unended {
        whole = Whole { text: fs::read_to_string(path)? + "\n", cut: false };
    }
    Ok(Found { whole, unended })
}

impl SpectraFile {
    /// The file of a job that begins or goes on. A line that was cut off is removed, which is said.
    ///
    /// # Errors
    /// It cannot be written, or holds something else than spectra; another process appends to it.
    pub(crate) fn open(recorded: &RecordedSpectra, notes: &Notes) -> Result<Self> {
        let path = &recorded.file;
        let context = || unwritable(path);
        // Before it is opened: opening some things that are no files waits for ever.
        look(path)?;
        let lock = OpenOptions::new().append(true).create(true).open(path).with_context(context)?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            bail!(
                "another process is appending to {}; wait for it, stop it, or name another file",
                path.display()
            );
        }
        let Found { whole, unended } = look(path)?;
        if whole.cut {
            notes.say(&format!("{} ended in half a line, which is removed", path.display()));
        }
        let lines = Lines::after(path, &whole).with_context(context)?;
        if unended {
            lines.append_text("\n")?;
        }
        // A file that is shorter than it was is another one: everything in it may be this job's.
        let own = usize::try_from(recorded.from).ok().and_then(|from| whole.text.get(from..));
        let own = own.unwrap_or(&whole.text).split_inclusive('\n');
        let written = own.map(str::to_owned).collect();
        Ok(Self { lines, every: recorded.every, written: Mutex::new(written), _lock: lock })
    }

    /// Whether that step's directions are recorded.
    pub(crate) fn due(&self, step: usize) -> bool {
        step.is_multiple_of(self.every)
    }

    /// Appends the records of one run and step, each as `run/parameter`.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn append(&self, run: &str, records: Vec<SpectrumRecord>) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = String::new();
        for mut record in records {
            record.name = format!("{run}/{}", record.name);
            let line = record.to_line()?;
            if written.insert(line.clone()) {
                lines.push_str(&line);
            }
        }
        self.lines.append_text(&lines)
    }
}

fn unwritable(path: &Path) -> String {
    format!("the spectra file {} is not writable", path.display())
}
