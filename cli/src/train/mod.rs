//! `muon train`: some optimizers, some seeds, one budget; then a table, curves and a record.

pub(crate) mod config;
mod data;
mod defaults;
mod device_stepper;
mod directory;
mod grid;
mod jobs;
pub(crate) mod layer_schedules;
mod metrics;
mod model;
mod optimizer;
mod param;
mod plan;
mod plot;
mod rng;
mod run;
mod size;
mod spectra;
mod store;
mod sweep;
mod table;
mod text;
mod transformer;
mod workload;

use std::io::Write as _;

use anyhow::{Context, Result};

use self::config::{Config, OptimizerConfig};
use self::directory::RunDirectory;
use self::jobs::Job;
use self::metrics::{Metrics, RowResults};
use self::spectra::SpectraFile;
use crate::args::TrainArgs;
use crate::devices::DeviceName;
use crate::exit::{Ended, usage};
use crate::terminal::Notes;

/// Runs the command.
///
/// # Errors
/// Of the arguments, the file system, or the library.
pub(crate) fn train(args: &TrainArgs) -> Result<Ended> {
    let notes = Notes::new(args.quiet);
    parallel(args, true)?;
    let resumed = if args.resume { Some(RunDirectory::resume(&args.out)?) } else { None };
    let device = resumed.as_ref().map_or(args.device, |(_, config)| config.device);
    let session = device.open()?;
    let ended = if args.lr_grid {
        lr_grid(args, &notes)?
    } else if args.sweep {
        sweep::sweep(args, &notes)?
    } else {
        compare(args, resumed, &notes)?
    };
    session.close(ended)
}

/// Trains every optimizer once for each seed.
fn compare(
    args: &TrainArgs,
    resumed: Option<(RunDirectory, Config)>,
    notes: &Notes,
) -> Result<Ended> {
    let (directory, config) = match resumed {
        Some(resumed) => resumed,
        None => {
            let config = plan::config(args)?;
            check_spectra(args, &config)?;
            (RunDirectory::start(&args.out, &config, notes)?, config)
        }
    };
    let rows = config.optimizers.clone();
    let jobs = parallel(args, config.seeds.len() > 1)?;
    notes.say(&opening(&config, &rows)?);
    let spectra = spectra(args, &config)?;
    let checkpoints =
        run::Checkpoints { directory: &directory.checkpoints(), every: args.checkpoint_every };
    let job = Job {
        config: &config,
        rows: &rows,
        checkpoints: Some(checkpoints),
        spectra: spectra.as_ref(),
        jobs,
        notes,
    };
    let Some(results) = job.run()? else {
        notes.say(&format!(
            "stopped; `muon train --resume{}` goes on from here",
            directory.out_argument()
        ));
        return Ok(Ended::Interrupted);
    };
    let results: Vec<RowResults<'_>> =
        rows.iter().zip(results).map(|(row, records)| RowResults { row, records }).collect();
    let metrics = Metrics::new(&config, jobs::data_sizes(&config)?, &results, jobs);
    let json = serde_json::to_string_pretty(&metrics).context("metrics")?;
    directory.write("metrics.json", json.as_bytes())?;
    let chart = plot::chart(&metrics, &results, config.seeds.len(), &config.task);
    directory.write("loss.svg", chart.svg()?.as_bytes())?;
    directory.write("loss.png", &chart.png()?)?;
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{json}")?;
    } else {
        writeln!(
            stdout,
            "{}\n{}.",
            table::comparison(&metrics, config.task.target_loss()),
            metrics.finding
        )?;
    }
    notes.say(&format!("wrote loss.svg, loss.png and metrics.json to {}", directory.display()));
    Ok(Ended::Well)
}

/// Tries every learning rate of every grid.
fn lr_grid(args: &TrainArgs, notes: &Notes) -> Result<Ended> {
    let mut config = plan::config(args)?;
    // Only the end of a run is compared.
    config.evaluate_every = config.steps;
    let directory = RunDirectory::for_grid(&args.out)?;
    let rows = grid::rows(&config, &[]);
    let jobs = parallel(args, true)?;
    let results = sweep::journaled(&config, &rows, &directory, "lr-grid.jsonl", jobs, notes)?;
    let Some(results) = results else {
        notes.say("stopped; the same command goes on from here");
        return Ok(Ended::Interrupted);
    };
    let results: Vec<_> = rows.into_iter().zip(results).collect();
    let grid = grid::Grid::new(&config, &results);
    let json = serde_json::to_string_pretty(&grid).context("grid")?;
    directory.write("lr-grid.json", json.as_bytes())?;
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{json}")?;
    } else {
        writeln!(stdout, "{}", table::grid(&grid.optimizers))?;
    }
    notes.say(&format!("wrote lr-grid.json to {}", directory.display()));
    Ok(Ended::Well)
}

/// The file of spectra that the arguments ask for.
fn spectra(args: &TrainArgs, config: &Config) -> Result<Option<SpectraFile>> {
    check_spectra(args, config)?;
    let open = if args.resume { SpectraFile::resume } else { SpectraFile::start };
    args.record_spectra.as_ref().map(|path| open(path, args.spectra_every)).transpose()
}

fn check_spectra(args: &TrainArgs, config: &Config) -> Result<()> {
    if args.record_spectra.is_none() {
        return Ok(());
    }
    if config.device == DeviceName::Reference {
        return Err(usage("--record-spectra: device `reference` has no directions to record"));
    }
    if !config.optimizers.iter().any(OptimizerConfig::is_muon) {
        return Err(usage(
            "--record-spectra: no optimizer of the job is Muon, nothing is orthogonalized",
        ));
    }
    Ok(())
}

/// Most threads of all runs at the same time.
const MOST_THREADS: usize = 1024;

/// Runs at the same time.
fn parallel(args: &TrainArgs, many: bool) -> Result<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.unwrap_or(if many { cores.div_ceil(args.threads) } else { 1 });
    if jobs.saturating_mul(args.threads) > MOST_THREADS {
        return Err(usage(format!(
            "--jobs times --threads: expected at most {MOST_THREADS}, found {jobs} times {}",
            args.threads
        )));
    }
    Ok(jobs)
}

/// What is about to happen, and which parameters Muon gets.
fn opening(config: &Config, rows: &[OptimizerConfig]) -> Result<String> {
    let mut text = format!(
        "{} optimizers, {} seed(s), {} steps of {}; {}",
        rows.len(),
        config.seeds.len(),
        config.steps,
        match &config.task {
            config::Task::Digits { .. } => format!("{} samples", config.batch_size),
            config::Task::Text { .. } => format!("{} windows", config.batch_size),
        },
        config.task.describe(),
    );
    if let Some(row) = rows.iter().find(|r| r.is_muon()) {
        let source = workload::Source::load(&config.task)?;
        let workload = workload::Workload::new(&source, config.batch_size, 0)?;
        let stepper = optimizer::Stepper::new(config, row, workload.params())?;
        text.push_str("\nrouting under ");
        text.push_str(&stepper.routing());
    }
    Ok(text.trim_end().to_owned())
}
