//! The output directory of a job: made and tried before training, and what `--resume` reads.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::config::Config;
use crate::exit::usage;
use crate::files::write_atomically;
use crate::terminal::Notes;

const CONFIG: &str = "config.json";
const CHECKPOINTS: &str = "checkpoints";
const METRICS: &str = "metrics.json";
/// Outputs that belong to the job before this one until they are written anew.
const STALE: [&str; 3] = [METRICS, "loss.svg", "loss.png"];

/// An output directory that can be written to.
#[derive(Debug)]
pub(crate) struct RunDirectory(PathBuf);

impl RunDirectory {
    /// For a new job: makes it, removes what an earlier job of this program left, records the configuration.
    ///
    /// # Errors
    /// It cannot be made or written to.
    pub(crate) fn start(path: &Path, config: &Config, notes: &Notes) -> Result<Self> {
        let this = Self(path.to_owned());
        if path.join(CONFIG).exists() && !path.join(METRICS).exists() {
            notes.say(&format!(
                "{} holds a job that was not finished; it is started afresh (to go on with it: --resume)",
                path.display()
            ));
        }
        let context = || unwritable(path);
        fs::create_dir_all(this.checkpoints()).with_context(context)?;
        for entry in fs::read_dir(this.checkpoints()).with_context(context)? {
            let file = entry.with_context(context)?.path();
            if file.extension().is_some_and(|e| e == "safetensors") {
                fs::remove_file(&file).with_context(context)?;
            }
        }
        for name in STALE {
            match fs::remove_file(path.join(name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(context);
                }
                _ => {}
            }
        }
        let json = serde_json::to_string_pretty(config)?;
        write_atomically(&path.join(CONFIG), json.as_bytes()).with_context(context)?;
        Ok(this)
    }

    /// For the job that is recorded there.
    ///
    /// # Errors
    /// None is, or its record does not read.
    pub(crate) fn resume(path: &Path) -> Result<(Self, Config)> {
        let file = path.join(CONFIG);
        if !file.exists() {
            return Err(usage(format!(
                "nothing to resume: {} does not exist; start a job with `muon train`{}",
                file.display(),
                Self(path.to_owned()).out_argument()
            )));
        }
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let config = serde_json::from_str(&text)
            .with_context(|| format!("{} is not the record of a training job", file.display()))?;
        fs::create_dir_all(path.join(CHECKPOINTS)).with_context(|| unwritable(path))?;
        Ok((Self(path.to_owned()), config))
    }

    /// For a grid or a sweep: makes it and tries to write.
    ///
    /// # Errors
    /// It cannot be made or written to.
    pub(crate) fn for_grid(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| unwritable(path))?;
        let probe = path.join("lr-grid.json.partial");
        fs::write(&probe, []).with_context(|| unwritable(path))?;
        fs::remove_file(&probe).with_context(|| unwritable(path))?;
        Ok(Self(path.to_owned()))
    }

    /// A file of that name in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where checkpoints go.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.0.join(CHECKPOINTS)
    }

    /// Writes one output.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if !self.0.is_dir() {
            bail!("{} is gone", self.0.display());
        }
        write_atomically(&self.0.join(name), bytes)
    }

    /// ` --out DIR` where it is not the default.
    pub(crate) fn out_argument(&self) -> String {
        match self.0.as_os_str() {
            p if p == "muon-run" => String::new(),
            _ => format!(" --out {}", self.0.display()),
        }
    }

    /// For messages.
    pub(crate) fn display(&self) -> impl fmt::Display + '_ {
        self.0.display()
    }
}

fn unwritable(path: &Path) -> String {
    format!("the output directory {} is not writable", path.display())
}
