//! The marker of a directory of ours: what kind of job it holds, and every file that we wrote or are about to write.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::files::write_atomically;

/// Its name.
pub(super) const MARKER: &str = "muon-files.json";
const FORMAT: &str = "muon output directory, version 1";

/// What a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// `muon train`.
    Train,
    /// `muon train --lr-grid`.
    LrGrid,
    /// `muon train --sweep`.
    Sweep,
    /// `muon tune`.
    Tune,
    /// `muon tune --per-layer`.
    TunePerLayer,
}

impl Kind {
    /// The file that says what the job is: without it there is nothing to go on with.
    pub(crate) fn begins(self) -> &'static str {
        match self {
            Self::Train => "config.json",
            Self::LrGrid => "lr-grid.jsonl",
            Self::Sweep => "sweep.jsonl",
            Self::Tune => "journal.jsonl",
            Self::TunePerLayer => "layers.json",
        }
    }

    /// The file that is written last.
    pub(crate) fn ends(self) -> &'static str {
        match self {
            Self::Train => "metrics.json",
            Self::LrGrid => "lr-grid.json",
            Self::Sweep => "sweep.json",
            Self::Tune => "record.json",
            Self::TunePerLayer => "schedules.toml",
        }
    }

    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Train => "a training job",
            Self::LrGrid => "a grid of learning rates",
            Self::Sweep => "a sweep",
            Self::Tune => "a study of schedules",
            Self::TunePerLayer => "a set of studies, one for each layer,",
        }
    }

    /// What the user does to go on with the job there.
    pub(super) fn how_to_go_on(self, path: &Path) -> String {
        let command = match self {
            Self::Train => "train --resume",
            Self::Tune | Self::TunePerLayer => "tune --resume",
            Self::LrGrid | Self::Sweep => {
                return "the command that started it goes on with it".to_owned();
            }
        };
        format!("go on with `muon {command} --out {}`", path.display())
    }
}

/// The marker's contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marker {
    format: String,
    pub(super) kind: Kind,
    /// Relative to the directory, with `/` between names.
    pub(super) files: BTreeSet<String>,
}

impl Marker {
    pub(super) fn new(kind: Kind) -> Self {
        Self { format: FORMAT.to_owned(), kind, files: BTreeSet::new() }
    }

    /// The marker of a directory, if it has one.
    ///
    /// # Errors
    /// One that we cannot have written: another format, or a file outside the directory.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(directory.join(MARKER)) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let marker: Self = serde_json::from_str(&text)?;
        ensure!(marker.format == FORMAT, "expected `{FORMAT}`, found `{}`", marker.format);
        for file in &marker.files {
            let mut parts = Path::new(file).components();
            let inside = !file.is_empty() && parts.all(|c| matches!(c, Component::Normal(_)));
            ensure!(inside, "it lists `{file}`, which is not in the directory");
        }
        Ok(Some(marker))
    }

    /// # Errors
    /// The file system's.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).context("the list of files")?;
        write_atomically(&directory.join(MARKER), json.as_bytes())
    }

    /// Removes every file that it lists, and the directories that are empty then. What the job began with goes first: a job
    /// whose files are half removed is not to be gone on with.
    pub(super) fn remove_files(&self, directory: &Path) -> io::Result<()> {
        let first = [self.kind.begins(), self.kind.ends()];
        let rest = self.files.iter().map(String::as_str).filter(|f| !first.contains(f));
        let mut parents = BTreeSet::new();
        for file in first.into_iter().filter(|f| self.files.contains(*f)).chain(rest) {
            let path = directory.join(file);
            match fs::remove_file(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                result => result?,
            }
            parents.extend(path.parent().map(Path::to_owned));
        }
        // The innermost first; what holds files of others stays.
        for parent in parents.iter().rev().filter(|p| *p != directory) {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}
