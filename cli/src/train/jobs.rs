//! All runs of a job, some at a time, each on its own.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Builder;

use anyhow::{Context, Result};

use super::config::{Config, OptimizerConfig};
use super::run::{self, Checkpoints, Outcome, Record, Surroundings};
use super::spectra::SpectraFile;
use super::workload::Source;
use crate::terminal::{Notes, stop_requested};

/// Whether a run is to end: the user wants to stop, or a run beside it failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop<'a> {
    user: &'a AtomicBool,
    failed: &'a AtomicBool,
}

impl Stop<'_> {
    /// Asked before each step.
    pub(crate) fn requested(self) -> bool {
        self.user.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }
}

/// What to run.
pub(crate) struct Job<'a> {
    pub(crate) config: &'a Config,
    /// Rows of the job, or of its grid.
    pub(crate) rows: &'a [OptimizerConfig],
    pub(crate) checkpoints: Option<Checkpoints<'a>>,
    /// Where singular values of the directions go.
    pub(crate) spectra: Option<&'a SpectraFile>,
    /// Where the trained parameters go.
    pub(crate) models: Option<&'a Path>,
    /// Runs at the same time; no result depends on it.
    pub(crate) jobs: usize,
    pub(crate) notes: &'a Notes,
}

impl Job<'_> {
    /// For each row, one record a seed; `None` if stopped on request.
    ///
    /// # Errors
    /// The first error of any run; the others stop at their next step.
    pub(crate) fn run(&self) -> Result<Option<Vec<Vec<Record>>>> {
        let source = Source::load(&self.config.task)?;
        let seeds = &self.config.seeds;
        let records = in_parallel(self.rows.len() * seeds.len(), self.jobs, |i, stop| {
            let row = &self.rows[i / seeds.len()];
            match self.one(row, seeds[i % seeds.len()], &source, stop)? {
                Outcome::Finished(record) => Ok(Some(record)),
                Outcome::Stopped => Ok(None),
            }
        })?;
        let Some(records) = records else { return Ok(None) };
        let mut records = records.into_iter();
        Ok(Some(self.rows.iter().map(|_| records.by_ref().take(seeds.len()).collect()).collect()))
    }

    /// One run.
    ///
    /// # Errors
    /// Of the run, with its name.
    pub(crate) fn one(
        &self,
        row: &OptimizerConfig,
        seed: u64,
        source: &Source,
        stop: Stop<'_>,
    ) -> Result<Outcome> {
        let around = Surroundings {
            config: self.config,
            checkpoints: self.checkpoints,
            spectra: self.spectra,
            models: self.models,
            stop,
        };
        let name = if self.config.seeds.len() > 1 {
            format!("{row}, lr {}, seed {seed}", row.lr)
        } else {
            format!("{row}, lr {}", row.lr)
        };
        let bar = self.notes.bar(&name, self.config.steps as u64);
        let outcome = run::run(&around, row, seed, source, |step, loss| {
            bar.set_position(step as u64);
            if !loss.is_nan() {
                bar.set_message(format!("loss {loss:.1e}"));
            }
        });
        bar.finish_and_clear();
        outcome.with_context(|| format!("{row}, seed {seed}"))
    }
}

/// Results of `work` on `0..count`, in that order, some at a time; `None` if stopped on request.
///
/// # Errors
/// The first error, or a thread that the system does not give; what runs beside it is told to stop.
pub(crate) fn in_parallel<T: Send>(
    count: usize,
    at_a_time: usize,
    work: impl Fn(usize, Stop<'_>) -> Result<Option<T>> + Sync,
) -> Result<Option<Vec<T>>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let stop = Stop { user: stop_requested(), failed: &failed };
    let slots: Vec<Mutex<Option<Result<Option<T>>>>> =
        (0..count).map(|_| Mutex::new(None)).collect();
    let worker = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(slot) = slots.get(i) else { break };
            if stop.requested() {
                break;
            }
            let result = work(i, stop);
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            if let Ok(mut slot) = slot.lock() {
                *slot = Some(result);
            }
        }
    };
    let threads = at_a_time.clamp(1, count.max(1));
    std::thread::scope(|scope| {
        // This thread works too.
        for i in 1..threads {
            if let Err(e) = Builder::new().spawn_scoped(scope, worker) {
                failed.store(true, Ordering::Relaxed);
                return Err(e).with_context(|| {
                    format!("the system gives {i} of {threads} threads; ask for fewer with --jobs")
                });
            }
        }
        worker();
        Ok(())
    })?;
    let mut results = Vec::with_capacity(count);
    let mut stopped = false;
    for slot in slots {
        match slot.into_inner().ok().flatten() {
            Some(Ok(Some(result))) => results.push(result),
            Some(Err(e)) => return Err(e),
            Some(Ok(None)) | None => stopped = true,
        }
    }
    Ok((!stopped).then_some(results))
}

/// What there is to train on and what is held out; the same for every seed.
///
/// # Errors
/// Of the task's data.
pub(crate) fn data_sizes(config: &Config) -> Result<(usize, usize)> {
    let source = Source::load(&config.task)?;
    let seed = config.seeds.first().copied().unwrap_or(0);
    Ok(super::workload::Workload::new(&source, config.batch_size, seed)?.sizes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_run_stops_the_others_and_is_what_is_reported() {
        // The second fails once the first waits for the wish to stop: the first would never end otherwise.
        let waits = AtomicBool::new(false);
        let e = in_parallel(2, 2, |i, stop| {
            if i == 1 {
                while !waits.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                anyhow::bail!("the second");
            }
            waits.store(true, Ordering::Relaxed);
            while !stop.requested() {
                std::thread::yield_now();
            }
            Ok(None::<usize>)
        });
        assert_eq!(e.unwrap_err().to_string(), "the second");
        assert_eq!(in_parallel(3, 2, |i, _| Ok(Some(i))).unwrap(), Some(vec![0, 1, 2]));
        assert_eq!(in_parallel(0, 9, |i, _| Ok(Some(i))).unwrap(), Some(vec![]));
    }
}
