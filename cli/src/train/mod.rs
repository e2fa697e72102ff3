//! `muon train`: some optimizers, some seeds, one budget; then a table, curves and a record.

pub(crate) mod config;
mod data;
mod defaults;
mod directory;
mod grid;
mod jobs;
mod metrics;
mod model;
mod optimizer;
mod plan;
mod plot;
mod rng;
mod run;
mod store;
mod table;

use std::io::Write as _;

use anyhow::{Context, Result};

use self::config::Config;
use self::directory::RunDirectory;
use self::jobs::{Job, Results};
use self::metrics::{Metrics, RowResults};
use crate::args::TrainArgs;
use crate::exit::Ended;
use crate::terminal::Notes;

/// Runs the command.
///
/// # Errors
/// Of the arguments, the file system, or the library.
pub(crate) fn train(args: &TrainArgs) -> Result<Ended> {
    let notes = Notes::new(args.quiet);
    if args.lr_grid {
        return lr_grid(args, &notes);
    }
    let (directory, config) = if args.resume {
        RunDirectory::resume(&args.out)?
    } else {
        let config = plan::config(args)?;
        (RunDirectory::start(&args.out, &config, &notes)?, config)
    };
    let rows = config.optimizers.clone();
    let jobs = parallel(args, config.seeds.len() > 1);
    notes.say(&opening(&config, &rows)?);
    let checkpoints =
        run::Checkpoints { directory: &directory.checkpoints(), every: args.checkpoint_every };
    let job =
        Job { config: &config, rows: &rows, checkpoints: Some(checkpoints), jobs, notes: &notes };
    let results = match job.run()? {
        Results::Finished(results) => results,
        Results::Stopped => {
            notes.say(&format!(
                "stopped; `muon train --resume{}` goes on from here",
                directory.out_argument()
            ));
            return Ok(Ended::Interrupted);
        }
    };
    let results: Vec<RowResults<'_>> =
        rows.iter().zip(results).map(|(row, records)| RowResults { row, records }).collect();
    let metrics = Metrics::new(&config, jobs::sample_counts(&config)?, &results, jobs);
    let json = serde_json::to_string_pretty(&metrics).context("metrics")?;
    directory.write("metrics.json", json.as_bytes())?;
    let chart = plot::chart(&metrics, &results, config.seeds.len());
    directory.write("loss.svg", chart.svg()?.as_bytes())?;
    directory.write("loss.png", &chart.png()?)?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{json}")?;
    } else {
        writeln!(stdout, "{}\n{}.", table::comparison(&metrics), metrics.finding)?;
    }
    notes.say(&format!("wrote loss.svg, loss.png and metrics.json to {}", directory.display()));
    Ok(Ended::Well)
}

/// Tries every learning rate of every grid.
fn lr_grid(args: &TrainArgs, notes: &Notes) -> Result<Ended> {
    let config = plan::config(args)?;
    let directory = RunDirectory::for_grid(&args.out)?;
    let rows = grid::rows(&config);
    let jobs = parallel(args, true);
    notes.say(&format!("{} learning rates, {} seeds", rows.len(), config.seeds.len()));
    let job = Job { config: &config, rows: &rows, checkpoints: None, jobs, notes };
    let Results::Finished(results) = job.run()? else {
        notes.say("stopped; a grid is not resumable");
        return Ok(Ended::Interrupted);
    };
    let results: Vec<_> = rows.into_iter().zip(results).collect();
    let grid = grid::Grid::new(&config, &results);
    let json = serde_json::to_string_pretty(&grid).context("grid")?;
    directory.write("lr-grid.json", json.as_bytes())?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{json}")?;
    } else {
        writeln!(stdout, "{}", table::grid(&grid.optimizers))?;
    }
    notes.say(&format!("wrote lr-grid.json to {}", directory.display()));
    Ok(Ended::Well)
}

fn parallel(args: &TrainArgs, many: bool) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    args.jobs.unwrap_or(if many { cores.div_ceil(args.threads) } else { 1 })
}

/// What is about to happen, and which parameters Muon gets.
fn opening(config: &Config, rows: &[config::OptimizerConfig]) -> Result<String> {
    let mut text = format!(
        "{} optimizers, {} seed(s), {} steps of {} samples; perceptron 64 → {} → 10",
        rows.len(),
        config.seeds.len(),
        config.steps,
        config.batch_size,
        config.hidden.iter().map(ToString::to_string).collect::<Vec<_>>().join(" → "),
    );
    if let Some(row) = rows.iter().find(|r| r.is_muon()) {
        let model = model::Mlp::new(&config.hidden, 0);
        let stepper = optimizer::Stepper::new(config, row, &model.params)?;
        text.push_str("\nrouting under ");
        text.push_str(&stepper.routing());
    }
    Ok(text.trim_end().to_owned())
}
