//! The journal of a sweep or a grid: what was finished, one line of JSON a run, so that nothing is run twice.
//!
//! The first line says under which configuration the runs were made. Lines are appended whole; a program
//! that is killed leaves at most the last one cut off, and that one is removed when the journal is opened.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::exit::usage;
use crate::journal::{self, Lines};
use crate::train::config::{Config, OptimizerConfig};
use crate::train::run::Record;

const FORMAT: &str = "muon train journal, version 1";

/// What a run ended with; numbers that are not finite are absent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Final {
    training_loss: Option<f64>,
    held_out_loss: Option<f64>,
    accuracy: Option<f64>,
}

impl Final {
    /// The end of a finished run.
    pub(crate) fn of(record: &Record) -> Self {
        let finite = |x: f64| x.is_finite().then_some(x);
        Self {
            training_loss: finite(record.final_loss()),
            held_out_loss: finite(record.final_held_out_loss()),
            accuracy: finite(record.final_accuracy()),
        }
    }

    /// Mean cross-entropy over the training data, nats; NaN if the run diverged.
    pub(crate) fn training_loss(&self) -> f64 {
        self.training_loss.unwrap_or(f64::NAN)
    }

    /// Mean cross-entropy over the held-out data, nats; NaN if the run diverged.
    pub(crate) fn held_out_loss(&self) -> f64 {
        self.held_out_loss.unwrap_or(f64::NAN)
    }

    /// Fraction of held-out answers that are right.
    pub(crate) fn accuracy(&self) -> f64 {
        self.accuracy.unwrap_or(f64::NAN)
    }
}

/// One finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    optimizer: OptimizerConfig,
    seed: u64,
    result: Final,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    config: serde_json::Value,
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    lines: Lines,
    entries: Vec<Entry>,
}

impl Journal {
    /// Opens the journal of that configuration, or starts one; says whether a cut line was removed.
    ///
    /// Seeds and optimizers are not part of what must agree: more of them can be added later.
    ///
    /// # Errors
    /// It cannot be read or written; a line (other than a cut last one) is no entry; it was made under another
    /// configuration.
    pub(crate) fn open(path: &Path, config: &Config) -> Result<(Self, bool)> {
        let whole = journal::read(path)?;
        let identity = identity(config)?;
        let mut lines = whole.text.lines().enumerate();
        let mut entries = Vec::new();
        if let Some((_, first)) = lines.next() {
            check_header(path, first, &identity)?;
            for (i, line) in lines {
                entries.push(serde_json::from_str(line).map_err(|e| {
                    anyhow!(
                        "{}, line {}, column {}: not an entry of a journal: {e}; \
                         remove the line to have its run repeated",
                        path.display(),
                        i + 1,
                        e.column()
                    )
                })?);
            }
        }
        let this = Self { lines: Lines::after(path, &whole)?, entries };
        if whole.text.is_empty() {
            this.lines.append(&Header { format: FORMAT.into(), config: identity })?;
        }
        Ok((this, whole.cut))
    }

    /// Whether that file is the journal of that configuration.
    pub(crate) fn is_of(path: &Path, config: &Config) -> bool {
        let same = |first: &str| check_header(path, first, &identity(config)?);
        journal::read(path).is_ok_and(|w| w.text.lines().next().is_none_or(|l| same(l).is_ok()))
    }

    /// The end of a run, if it is among the finished ones.
    pub(crate) fn find(&self, optimizer: &OptimizerConfig, seed: u64) -> Option<Final> {
        let same = |e: &&Entry| e.seed == seed && e.optimizer == *optimizer;
        self.entries.iter().find(same).map(|e| e.result)
    }

    /// Notes a finished run.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn record(
        &self,
        optimizer: &OptimizerConfig,
        seed: u64,
        result: Final,
    ) -> Result<()> {
        self.lines.append(&Entry { optimizer: optimizer.clone(), seed, result })
    }
}

/// What decides the numbers of every run, besides its optimizer and its seed.
fn identity(config: &Config) -> Result<serde_json::Value> {
    let common = Config { seeds: Vec::new(), optimizers: Vec::new(), threads: 1, ..config.clone() };
    let mut value = serde_json::to_value(common)?;
    if let Some(fields) = value.as_object_mut() {
        for name in ["seeds", "optimizers", "threads"] {
            fields.remove(name);
        }
    }
    Ok(value)
}

fn check_header(path: &Path, line: &str, wanted: &serde_json::Value) -> Result<()> {
    let header: Header = serde_json::from_str(line)
        .map_err(|e| anyhow!("{} is not a journal of `muon train`: {e}", path.display()))?;
    if header.format != FORMAT {
        bail!("{}: expected the format `{FORMAT}`, found `{}`", path.display(), header.format);
    }
    let mut differences = Vec::new();
    differing("", wanted, &header.config, &mut differences);
    if differences.is_empty() {
        return Ok(());
    }
    Err(usage(format!(
        "{} belongs to another configuration ({}); choose another --out, or replace it with --force",
        path.display(),
        differences.join("; ")
    )))
}

/// Names what differs between two configurations, innermost fields.
fn differing(
    name: &str,
    wanted: &serde_json::Value,
    found: &serde_json::Value,
    out: &mut Vec<String>,
) {
    let null = serde_json::Value::Null;
    match (wanted.as_object(), found.as_object()) {
        (Some(w), Some(f)) => {
            let names: std::collections::BTreeSet<&String> = w.keys().chain(f.keys()).collect();
            for key in names {
                let inner = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                differing(&inner, w.get(key).unwrap_or(&null), f.get(key).unwrap_or(&null), out);
            }
        }
        _ if wanted == found => {}
        _ => out.push(format!("{name}: expected {wanted}, found {found}")),
    }
}
