//! `muon train --sweep`: optimizers × learning rates × seeds, journaled, compared pair by pair.

pub(crate) mod journal;
mod plot;
mod report;
mod statistics;
mod table;

use std::io::Write as _;

use anyhow::{Context, Result};

use self::journal::{Final, Journal};
use self::report::Sweep;
use super::config::{Config, OptimizerConfig};
use super::directory::RunDirectory;
use super::jobs::{Job, in_parallel};
use super::run::Outcome;
use super::workload::Source;
use super::{grid, parallel, plan};
use crate::args::TrainArgs;
use crate::exit::{Ended, usage};
use crate::terminal::Notes;

const JOURNAL: &str = "sweep.jsonl";
/// The optimizer that others are compared with, where it is among them.
const BASELINE: &str = "jordan";

/// Runs the command.
///
/// # Errors
/// Of the arguments, the journal, the file system, or a run.
pub(crate) fn sweep(args: &TrainArgs, notes: &Notes) -> Result<Ended> {
    let mut config = plan::config(args)?;
    // Only the end of a run is compared.
    config.evaluate_every = config.steps;
    if config.seeds.len() < 2 {
        return Err(usage("--sweep compares pairs over seeds; ask for at least 2 with --seeds"));
    }
    if !(args.margin.is_finite() && args.margin >= 0.0) {
        return Err(usage(format!(
            "--margin: expected a finite number of at least 0, found `{}`",
            args.margin
        )));
    }
    let baseline = baseline(&config, args.baseline.as_deref())?;
    let directory = RunDirectory::for_grid(&args.out)?;
    let rows = grid::rows(&config, &args.lr);
    let jobs = parallel(args, true)?;
    let Some(results) = journaled(&config, &rows, &directory, JOURNAL, jobs, notes)? else {
        notes.say("stopped; the same command goes on from here");
        return Ok(Ended::Interrupted);
    };
    let results: Vec<_> = rows.into_iter().zip(results).collect();
    let sweep = Sweep::new(&config, &results, &baseline, args.margin);
    let json = serde_json::to_string_pretty(&sweep).context("sweep")?;
    directory.write("sweep.json", json.as_bytes())?;
    let chart = plot::chart(&sweep, &config);
    directory.write("sweep.svg", chart.svg()?.as_bytes())?;
    directory.write("sweep.png", &chart.png()?)?;
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{json}")?;
    } else {
        writeln!(stdout, "{}\n{}", table::points(&sweep), table::comparison(&sweep))?;
    }
    notes.say(&format!("wrote sweep.svg, sweep.png and sweep.json to {}", directory.display()));
    Ok(Ended::Well)
}

/// For each row, the end of one run a seed: from the journal where it is there, and noted there where it is
/// run now; `None` if stopped on request.
///
/// # Errors
/// Of the journal or a run.
pub(crate) fn journaled(
    config: &Config,
    rows: &[OptimizerConfig],
    directory: &RunDirectory,
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
        notes.say("the journal ended in half a line; that run is repeated");
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
    let job = Job { config, rows, checkpoints: None, spectra: None, jobs, notes };
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
fn baseline(config: &Config, asked: Option<&str>) -> Result<String> {
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
