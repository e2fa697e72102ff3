//! The output directory of a job: who may write to it, and which of its files are ours.
//!
//! A directory is ours by its marker, `muon-files.json`, which lists every file that we write before we write it. A file that it
//! does not list is never replaced and never removed. One process at a time works in a directory; its lock ends with it,
//! however it ends.

mod lock;
mod marker;
mod names;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};

use self::lock::{LOCK, Lock};
use self::marker::{MARKER, Marker};
use crate::exit::usage;
use crate::files::write_atomically;
use crate::terminal::Notes;

pub(crate) use self::marker::Kind;

/// How the library names files that it is about to put in another's place.
const TEMPORARY: &str = ".muon-cuda-tmp-";

/// Where the user wants the output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out<'a> {
    /// `--out`.
    pub(crate) named: Option<&'a Path>,
    /// The name without `--out`; a number is added where it is taken.
    pub(crate) default: &'static str,
    /// `--force`: replace what an earlier job left, or write beside what is not ours.
    pub(crate) force: bool,
}

/// An output directory that no other process writes to.
#[derive(Debug)]
pub(crate) struct OutDirectory {
    path: PathBuf,
    marker: Mutex<Marker>,
    _lock: Lock,
}

/// What is where a directory is wanted.
#[derive(Debug)]
enum Found {
    /// Nothing, or nothing that anybody would miss.
    Free,
    /// Something that we did not write, in words.
    Foreign(String),
    /// A job of ours.
    Ours { kind: Kind, begun: bool, finished: bool },
}

impl OutDirectory {
    /// For a new job. `files` are those that it will write; more can be claimed later.
    ///
    /// # Errors
    /// It cannot be made or written to; another process works in it; it holds something that may not be replaced.
    pub(crate) fn start(out: Out<'_>, kind: Kind, files: &[String], notes: &Notes) -> Result<Self> {
        if let Some(path) = out.named {
            if let Found::Foreign(what) = inspect(path)?
                && !out.force
            {
                return Err(foreign(path, &what));
            }
            let lock = Lock::take(path)?;
            // Looked at again, now that nobody else changes it.
            refuse(path, inspect(path)?, out.force)?;
            return Self::begin(path, lock, kind, files);
        }
        let mut number = names::last(out.default)?.max(1);
        loop {
            let path = names::numbered(out.default, number);
            // Another process may take the name between the look and the lock.
            if matches!(inspect(&path)?, Found::Free)
                && let Some(lock) = Lock::try_take(&path)?
                && matches!(inspect(&path)?, Found::Free)
            {
                if number > 1 {
                    let name = path.display();
                    notes.say(&format!("{} is taken; this job writes to {name}", out.default));
                }
                return Self::begin(&path, lock, kind, files);
            }
            number += 1;
        }
    }

    /// For a job that is gone on with by the command that started it: the directory of that job, or one for a new job.
    /// `same` tells whether the job that began with this file is the same one.
    ///
    /// # Errors
    /// As [`OutDirectory::start`].
    pub(crate) fn start_or_go_on(
        out: Out<'_>,
        kind: Kind,
        files: &[String],
        same: impl Fn(&Path) -> bool,
        notes: &Notes,
    ) -> Result<Self> {
        let ours = |path: &Path| {
            Ok::<_, anyhow::Error>(match inspect(path)? {
                Found::Ours { kind: found, begun, .. } => found == kind && begun,
                _ => false,
            })
        };
        let begun = match out.named {
            _ if out.force => None,
            Some(path) => ours(path)?.then(|| path.to_owned()),
            None => {
                let mut found = None;
                for path in names::all(out.default)? {
                    if ours(&path)? && same(&path.join(kind.begins())) {
                        found = Some(path);
                    }
                }
                found
            }
        };
        let Some(path) = begun else { return Self::start(out, kind, files, notes) };
        let this = Self::open(&path)?;
        this.claim(files)?;
        Ok(this)
    }

    /// For a job of one of these kinds that was begun there; without a name, in the last directory that holds one.
    ///
    /// # Errors
    /// None was begun there; another process works in it.
    pub(crate) fn resume(out: Out<'_>, kinds: &[Kind], notes: &Notes) -> Result<Self> {
        let path = match out.named {
            Some(path) => path.to_owned(),
            None => {
                let mut last = None;
                for path in names::all(out.default)? {
                    if let Found::Ours { kind, begun: true, .. } = inspect(&path)?
                        && kinds.contains(&kind)
                    {
                        last = Some(path);
                    }
                }
                let path = last.unwrap_or_else(|| out.default.into());
                if path.as_os_str() != out.default {
                    notes.say(&format!("going on in {}", path.display()));
                }
                path
            }
        };
        let nothing = |why: &str| {
            usage(format!(
                "nothing to resume: {} {why}; start a job without --resume",
                path.display()
            ))
        };
        match inspect(&path)? {
            Found::Free if !path.exists() => Err(nothing("does not exist")),
            Found::Free => Err(nothing("holds no job")),
            Found::Foreign(what) => Err(nothing(&format!("holds no job of ours: {what}"))),
            Found::Ours { kind, .. } if !kinds.contains(&kind) => Err(usage(format!(
                "nothing to resume: {} holds {}; {}",
                path.display(),
                kind.in_words(),
                kind.how_to_go_on(&path)
            ))),
            Found::Ours { kind, begun: false, .. } => {
                Err(nothing(&format!("has no {}", kind.begins())))
            }
            Found::Ours { .. } => Self::open(&path),
        }
    }

    /// A directory that is ours, as it is.
    fn open(path: &Path) -> Result<Self> {
        let lock = Lock::take(path)?;
        let marker =
            Marker::read(path)?.ok_or_else(|| anyhow!("{} has lost {MARKER}", path.display()))?;
        Ok(Self { path: path.to_owned(), marker: Mutex::new(marker), _lock: lock })
    }

    /// Takes away what an earlier job of ours left and lists what this one will write.
    fn begin(path: &Path, lock: Lock, kind: Kind, files: &[String]) -> Result<Self> {
        let old = match Marker::read(path) {
            Ok(old) => old,
            // Not ours to replace.
            Err(_) => return Err(in_the_way(path, MARKER)),
        };
        let listed = |file: &str| old.as_ref().is_some_and(|old| old.files.contains(file));
        if let Some(file) = files.iter().find(|f| !listed(f) && is_there(&path.join(f))) {
            return Err(in_the_way(path, file));
        }
        if let Some(old) = &old {
            old.remove_files(path).with_context(|| unwritable(path))?;
        }
        let marker = Marker::new(kind);
        let this = Self { path: path.to_owned(), marker: Mutex::new(marker), _lock: lock };
        this.claim(files)?;
        Ok(this)
    }

    /// Lists further files before they are written, and makes the directories they lie in.
    ///
    /// # Errors
    /// Something that we did not write has one of these names; the directory cannot be written to.
    pub(crate) fn claim(&self, files: &[String]) -> Result<()> {
        let mut marker = self.marker.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<&String> = files.iter().filter(|f| !marker.files.contains(*f)).collect();
        if let Some(file) = new.iter().find(|f| is_there(&self.path.join(f))) {
            return Err(in_the_way(&self.path, file));
        }
        let context = || unwritable(&self.path);
        if !self.path.is_dir() {
            bail!("{} is gone", self.path.display());
        }
        if !new.is_empty() || !is_there(&self.path.join(MARKER)) {
            marker.files.extend(new.into_iter().cloned());
            marker.write(&self.path).with_context(context)?;
        }
        for file in files {
            if let Some(parent) = self.path.join(file).parent() {
                fs::create_dir_all(parent).with_context(context)?;
            }
        }
        Ok(())
    }

    /// A file of that name in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What kind of job it holds.
    pub(crate) fn kind(&self) -> Kind {
        self.marker.lock().unwrap_or_else(PoisonError::into_inner).kind
    }

    /// Writes one output; a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// Something that we did not write has that name; the file system's.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.claim(&[name.to_owned()])?;
        write_atomically(&self.path.join(name), bytes)
    }

    /// Takes everything away that was written here: a job that turned out to be impossible.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn discard(self) -> Result<()> {
        let context = || unwritable(&self.path);
        let marker = self.marker.lock().unwrap_or_else(PoisonError::into_inner);
        marker.remove_files(&self.path).with_context(context)?;
        fs::remove_file(self.path.join(MARKER)).with_context(context)?;
        fs::remove_file(self.path.join(LOCK)).with_context(context)?;
        // Other people's files keep it.
        let _ = fs::remove_dir(&self.path);
        Ok(())
    }

    /// ` --out DIR`, for commands in messages.
    pub(crate) fn out_argument(&self) -> String {
        format!(" --out {}", self.path.display())
    }

    /// For messages.
    pub(crate) fn display(&self) -> impl fmt::Display + '_ {
        self.path.display()
    }
}

fn inspect(path: &Path) -> Result<Found> {
    let context = || unwritable(path);
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => return Ok(Found::Foreign("it is a file".into())),
        Ok(_) => {}
        // A name in a directory that is none is found out when it is made.
        Err(_) => return Ok(Found::Free),
    }
    let marker = match Marker::read(path) {
        Ok(marker) => marker,
        Err(e) => return Ok(Found::Foreign(format!("{MARKER} does not read ({e:#})"))),
    };
    if let Some(Marker { kind, .. }) = marker {
        let [begun, finished] = [kind.begins(), kind.ends()].map(|f| is_there(&path.join(f)));
        // A job that was killed before its first file has left nothing to go on with.
        return Ok(if begun || finished {
            Found::Ours { kind, begun, finished }
        } else {
            Found::Free
        });
    }
    for entry in fs::read_dir(path).with_context(context)? {
        let name = entry.with_context(context)?.file_name();
        let ours = name == LOCK || name.to_string_lossy().starts_with(TEMPORARY);
        if !ours {
            return Ok(Found::Foreign(format!("it holds `{}`", name.to_string_lossy())));
        }
    }
    Ok(Found::Free)
}

/// What a new job may not take.
fn refuse(path: &Path, found: Found, force: bool) -> Result<()> {
    let name = path.display();
    match found {
        _ if force => Ok(()),
        Found::Free => Ok(()),
        Found::Foreign(what) => Err(foreign(path, &what)),
        Found::Ours { kind, finished: true, .. } => Err(usage(format!(
            "{name} holds {} with its results; choose another --out, replace it with --force, or write its results again: {}",
            kind.in_words(),
            kind.how_to_go_on(path)
        ))),
        Found::Ours { kind, .. } => Err(usage(format!(
            "{name} holds {} without results yet; {}; or choose another --out, or replace it with --force",
            kind.in_words(),
            kind.how_to_go_on(path)
        ))),
    }
}

fn foreign(path: &Path, what: &str) -> anyhow::Error {
    if path.is_dir() {
        return usage(format!(
            "{} is not a directory of ours: {what}; choose another --out, or write into it with --force, which replaces no \
             file that is there (--resume goes on with a job of ours)",
            path.display()
        ));
    }
    anyhow!(what.to_owned()).context(unwritable(path))
}

fn in_the_way(path: &Path, file: &str) -> anyhow::Error {
    usage(format!(
        "{} was not written by this program, and a job here needs that name; move it away or choose another --out (--force \
         does not replace it)",
        path.join(file).display()
    ))
}

/// Whether anything has that name, a link that leads nowhere too.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn unwritable(path: &Path) -> String {
    format!("the output directory {} is not writable", path.display())
}
