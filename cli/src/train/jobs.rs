//! All runs of a job, some at a time, each on its own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};

use super::config::{Config, OptimizerConfig};
use super::data::{self, Samples};
use super::run::{self, Checkpoints, Outcome, Record, Surroundings};
use crate::terminal::{Notes, stop_requested};

/// What to run.
pub(crate) struct Job<'a> {
    pub(crate) config: &'a Config,
    /// Rows of the job, or of its grid.
    pub(crate) rows: &'a [OptimizerConfig],
    pub(crate) checkpoints: Option<Checkpoints<'a>>,
    /// Runs at the same time; no result depends on it.
    pub(crate) jobs: usize,
    pub(crate) notes: &'a Notes,
}

/// How a job ended.
pub(crate) enum Results {
    /// For each row, one record a seed.
    Finished(Vec<Vec<Record>>),
    /// Stopped on request.
    Stopped,
}

impl Job<'_> {
    /// Runs every row under every seed.
    ///
    /// # Errors
    /// The first error of any run; the others stop at their next step.
    pub(crate) fn run(&self) -> Result<Results> {
        let all = data::digits()?;
        let seeds = &self.config.seeds;
        let stop = stop_requested();
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Result<Outcome>>>> =
            (0..self.rows.len() * seeds.len()).map(|_| Mutex::new(None)).collect();
        let failed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.clamp(1, results.len().max(1)) {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(slot) = results.get(i) else { break };
                        if stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed) > 0 {
                            break;
                        }
                        let (row, seed) = (&self.rows[i / seeds.len()], seeds[i % seeds.len()]);
                        let result = self.one(row, seed, &all);
                        if result.is_err() {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                        if let Ok(mut slot) = slot.lock() {
                            *slot = Some(result);
                        }
                    }
                });
            }
        });
        let mut records = Vec::with_capacity(results.len());
        let mut stopped = false;
        for slot in results {
            match slot.into_inner().ok().flatten() {
                Some(Ok(Outcome::Finished(record))) => records.push(record),
                Some(Err(e)) => return Err(e),
                Some(Ok(Outcome::Stopped)) | None => stopped = true,
            }
        }
        if stopped {
            return Ok(Results::Stopped);
        }
        let mut records = records.into_iter();
        Ok(Results::Finished(
            self.rows.iter().map(|_| records.by_ref().take(seeds.len()).collect()).collect(),
        ))
    }

    fn one(&self, row: &OptimizerConfig, seed: u64, all: &Samples) -> Result<Outcome> {
        let split = data::split(all, seed);
        let around = Surroundings {
            config: self.config,
            checkpoints: self.checkpoints,
            stop: stop_requested(),
        };
        let name = if self.config.seeds.len() > 1 {
            format!("{row}, lr {}, seed {seed}", row.lr)
        } else {
            format!("{row}, lr {}", row.lr)
        };
        let bar = self.notes.bar(&name, self.config.steps as u64);
        let outcome = run::run(&around, row, seed, &split, |step, loss| {
            bar.set_position(step as u64);
            if !loss.is_nan() {
                bar.set_message(format!("loss {loss:.1e}"));
            }
        });
        bar.finish_and_clear();
        outcome.with_context(|| format!("{row}, seed {seed}"))
    }
}

/// Training and held-out samples of a split; the same for every seed.
///
/// # Errors
/// The embedded data are not what they should be.
pub(crate) fn sample_counts(config: &Config) -> Result<(usize, usize)> {
    let split = data::split(&data::digits()?, config.seeds.first().copied().unwrap_or(0));
    Ok((split.train.len(), split.held_out.len()))
}
