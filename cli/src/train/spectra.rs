//! `--record-spectra`: singular values of the directions of a job, appended to one file.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use muon_cuda::spectrum::{SpectrumRecord, read_records};

/// A file of spectra that runs of a job write to in turn.
#[derive(Debug)]
pub(crate) struct SpectraFile {
    path: PathBuf,
    every: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// Names and steps that are there already: a run that is resumed from a checkpoint repeats some.
    written: BTreeSet<(String, u64)>,
}

impl SpectraFile {
    /// An empty file for a new job.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn start(path: &Path, every: usize) -> Result<Self> {
        let file = File::create(path).with_context(|| unwritable(path))?;
        Ok(Self::new(path, every, file, BTreeSet::new()))
    }

    /// The file of a job that is resumed; a line that was cut off is removed.
    ///
    /// # Errors
    /// It cannot be written, or holds something else than spectra.
    pub(crate) fn resume(path: &Path, every: usize) -> Result<Self> {
        if !path.exists() {
            return Self::start(path, every);
        }
        let recording = read_records(path)?;
        let context = || unwritable(path);
        let mut file =
            OpenOptions::new().read(true).write(true).open(path).with_context(context)?;
        let mut whole = String::new();
        for record in &recording.records {
            whole.push_str(&record.to_line()?);
        }
        file.set_len(0).with_context(context)?;
        file.write_all(whole.as_bytes()).with_context(context)?;
        let written = recording.records.into_iter().map(|r| (r.name, r.step)).collect();
        Ok(Self::new(path, every, file, written))
    }

    fn new(path: &Path, every: usize, file: File, written: BTreeSet<(String, u64)>) -> Self {
        Self { path: path.to_owned(), every, inner: Mutex::new(Inner { file, written }) }
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
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = String::new();
        for mut record in records {
            record.name = format!("{run}/{}", record.name);
            if inner.written.insert((record.name.clone(), record.step)) {
                lines.push_str(&record.to_line()?);
            }
        }
        inner.file.seek(SeekFrom::End(0)).with_context(|| unwritable(&self.path))?;
        inner.file.write_all(lines.as_bytes()).with_context(|| unwritable(&self.path))
    }
}

fn unwritable(path: &Path) -> String {
    format!("the spectra file {} is not writable", path.display())
}
