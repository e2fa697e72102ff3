//! `muon train --sweep`: optimizers × learning rates × seeds, journaled, compared pair by pair.

pub(crate) mod journal;
mod plot;
pub(crate) mod report;
mod statistics;
mod table;

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use self::journal::{Final, Journal};
use self::report::Sweep;
use super::config::{Config, OptimizerConfig};
use super::jobs::{Job, in_parallel};
use super::plan::Comparison;
use super::run::Outcome;
use super::workload::Source;
use super::{grid, parallel};
use crate::args::TrainArgs;
use crate::directory::{Kind, OutDirectory};
use crate::exit::{Ended, usage};
use crate::terminal::Notes;

const JOURNAL: &str = "sweep.jsonl";
/// The optimizer that others are compared with, where it is among them.
const BASELINE: &str = "jordan";

/// Runs the command.
///
/// # Errors
/// Of the journal, the file system, or a run.
pub(crate) fn sweep(
    args: &TrainArgs,
    config: &Config,
    comparison: &Comparison,
    notes: &Notes,
) -> Result<Ended> {
    let files = [JOURNAL, "sweep.svg", "sweep.png", "sweep.json"].map(str::to_owned);
    let same = |journal: &Path| Journal::is_of(journal, config);
    let directory =
        OutDirectory::start_or_go_on(super::out(args), Kind::Sweep, &files, same, notes)?;
    let rows = grid::rows(config, &comparison.lrs);
    let jobs = parallel(args, config, true)?;
    let Some(results) = journaled(config, &rows, &directory, JOURNAL, jobs, notes)? else {
        notes.say("stopped; the same command goes on from here");
        return Ok(Ended::Interrupted);
    };
    let results: Vec<_> = rows.into_iter().zip(results).collect();
    let sweep = Sweep::new(config, &results, &comparison.baseline, comparison.margin);
    let json = serde_json::to_string_pretty(&sweep).context("sweep")?;
    let drawn = sweep.rows.iter().any(|r| r.best_lr.is_some());
    if drawn {
        let chart = plot::chart(&sweep, config);
        directory.write("sweep.svg", chart.svg()?.as_bytes())?;
        directory.write("sweep.png", &chart.png()?)?;
    }
    directory.write("sweep.json", json.as_bytes())?;
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{json}")?;
    } else {
        writeln!(stdout, "{}\n{}", table::points(&sweep), table::comparison(&sweep))?;
    }
    let wrote = if drawn { "sweep.svg, sweep.png and sweep.json" } else { "sweep.json" };
    notes.say(&format!("wrote {wrote} to {}", directory.display()));
    let failed = sweep.rows.iter().filter(|r| r.best_lr.is_none()).map(|r| r.label.as_str());
    super::all_diverged(&failed.collect::<Vec<_>>(), &mut stdout, args.json)
}

/// For each row, the end of one run a seed: from the journal where it is there, and noted there where it is
/// run now; `None` if stopped on request.
///
/// # Errors
/// Of the journal or a run.
pub(crate) fn journaled(
    config: &Config,
    rows: &[OptimizerConfig],
    directory: &OutDirectory,
    journal: &str,
    jobs: usize,
    notes: &Notes,
) -> Result<Option<Vec<Vec<Final>>>> {
    let (journal, cut) = Journal::open(&directory.path(journal), config)?;
    let seeds = &config.seeds;
    // All optimizers of a seed before the next seed: a sweep that is stopped early has whole seeds.
    let pending: Vec<(&OptimizerConfig, u64)> = seeds
        .iter()
        .flat_map(|seed| rows.iter().map(|row| (row, *seed)))
        .filter(|(row, seed)| journal.find(row, *seed).is_none())
        .collect();
    let total = rows.len() * seeds.len();
    if cut {
        notes.say("the journal ended in half a line, which is removed; that run is repeated");
    }
    notes.say(&format!(
        "{} learning rates in all, {} seeds, {} steps; {}: {} of {total} runs are done",
        rows.len(),
        seeds.len(),
        config.steps,
        config.task.describe(),
        total - pending.len()
    ));
    let source = Source::load(&config.task)?;
    let overall = notes.bar("all runs", total as u64);
    overall.set_position((total - pending.len()) as u64);
    let job = Job { config, rows, checkpoints: None, spectra: None, models: None, jobs, notes };
    let finals = in_parallel(pending.len(), jobs, |i, stop| {
        let (row, seed) = pending[i];
        let Outcome::Finished(record) = job.one(row, seed, &source, stop)? else {
            return Ok(None);
        };
        let result = Final::of(&record);
        journal.record(row, seed, result)?;
        overall.inc(1);
        Ok(Some(result))
    })?;
    overall.finish_and_clear();
    let Some(finals) = finals else { return Ok(None) };
    let of = |row: &OptimizerConfig, seed: u64| {
        let new = pending.iter().zip(&finals).find(|((r, s), _)| *s == seed && *r == row);
        journal.find(row, seed).or(new.map(|(_, result)| *result)).context("a run is missing")
    };
    rows.iter()
        .map(|row| seeds.iter().map(|seed| of(row, *seed)).collect::<Result<Vec<_>>>())
        .collect::<Result<Vec<_>>>()
        .map(Some)
}

/// The id of the optimizer that the others are compared with.
pub(crate) fn baseline(config: &Config, asked: Option<&str>) -> Result<String> {
    let named = |name: &str| {
        config.optimizers.iter().find(|o| o.id() == name || o.schedule() == Some(name))
    };
    match asked {
        Some(name) => named(name).map(OptimizerConfig::id).ok_or_else(|| {
            let known: Vec<String> = config.optimizers.iter().map(OptimizerConfig::id).collect();
            usage(format!(
                "--baseline `{name}` is not in the sweep; expected one of {}",
                known.join(", ")
            ))
        }),
        None => named(BASELINE)
            .or(config.optimizers.first())
            .map(OptimizerConfig::id)
            .context("nothing to sweep"),
    }
}
