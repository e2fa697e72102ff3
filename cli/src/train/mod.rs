//! `muon train`: some optimizers, some seeds, one budget; then a table, curves and a record.

pub(crate) mod config;
mod data;
mod defaults;
mod device_stepper;
mod grid;
mod jobs;
pub(crate) mod layer_schedules;
mod metrics;
mod model;
mod optimizer;
#[cfg(test)]
mod options_tests;
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

use std::io::Write;

use anyhow::{Context, Result};

use self::config::{Config, Job};
use self::metrics::{Metrics, RowResults};
use self::plan::Planned;
use self::spectra::SpectraFile;
use crate::args::{TrainArgs, take, take_given};
use crate::directory::{Kind, Out, OutDirectory};
use crate::exit::{Ended, usage};
use crate::files::{MOST_OF_A_RECORD, read_text};
use crate::terminal::Notes;

const CONFIG: &str = "config.json";
const CHECKPOINTS: &str = "checkpoints";
const MODELS: &str = "models";

/// Runs the command.
///
/// # Errors
/// Of the arguments, the file system, or the library.
pub(crate) fn train(args: &TrainArgs) -> Result<Ended> {
    let notes = Notes::new(args.quiet);
    if *take!(args, resume) {
        let (directory, job) = resume(args, &notes)?;
        let session = job.config.device.open()?;
        let opening = opening(&job.config)?;
        return session.close(compare(args, &job, &directory, &opening, &notes)?);
    }
    // Everything that can be wrong with the request or the device is found before anything is written.
    let planned = plan::job(args)?;
    parallel(args, planned.config(), true)?;
    let session = planned.config().device.open()?;
    let opening = opening(planned.config())?;
    session.close(match &planned {
        Planned::Compare(job) => {
            let directory = start(args, job, &notes)?;
            compare(args, job, &directory, &opening, &notes)?
        }
        Planned::Grid(config) => lr_grid(args, config, &notes)?,
        Planned::Sweep(config, comparison) => sweep::sweep(args, config, comparison, &notes)?,
    })
}

/// A directory for a new job, with its configuration.
fn start(args: &TrainArgs, job: &Job, notes: &Notes) -> Result<OutDirectory> {
    let directory = OutDirectory::start(out(args), Kind::Train, &files(job), notes)?;
    record(job, &directory)?;
    Ok(directory)
}

fn record(job: &Job, directory: &OutDirectory) -> Result<()> {
    let json = serde_json::to_string_pretty(job).context("the configuration")?;
    directory.write(CONFIG, json.as_bytes())
}

/// The job that is recorded in a directory.
fn resume(args: &TrainArgs, notes: &Notes) -> Result<(OutDirectory, Job)> {
    plan::take_manners(args);
    let checkpoint_every = take_given!(args, checkpoint_every);
    let (spectra, every) = (take!(args, record_spectra), take_given!(args, spectra_every));
    let save_model = *take!(args, save_model);
    // What would replace files contradicts going on with them.
    if args.force {
        return Err(usage("--force starts afresh and --resume goes on: only one of them is meant"));
    }
    args.given.refuse_the_rest("--resume, which goes on with a job exactly as it was started")?;
    let directory = OutDirectory::resume(out(args), &[Kind::Train], notes)?;
    let file = directory.path(CONFIG);
    let text = read_text(&file, MOST_OF_A_RECORD)?;
    let recorded: Job = serde_json::from_str(&text).with_context(|| {
        format!(
            "{} is not the record of a training job; put its original back, or start afresh with --force",
            file.display()
        )
    })?;
    // The record is a file that anyone can edit.
    size::check(&recorded.config.task, recorded.config.batch_size)?;
    if let Some(file) = spectra {
        let same = match &recorded.kept.spectra {
            Some(r) => {
                std::path::absolute(file).is_ok_and(|file| r.file == file)
                    && every.is_none_or(|every| r.every == *every)
            }
            None => false,
        };
        if !same {
            let started = match &recorded.kept.spectra {
                Some(r) => format!(
                    "with --record-spectra {} --spectra-every {}",
                    r.file.display(),
                    r.every
                ),
                None => "without --record-spectra".to_owned(),
            };
            return Err(usage(format!(
                "--resume goes on with the job as it was started, {started}; leave these options out"
            )));
        }
    }
    let mut job = recorded.clone();
    if let Some(every) = checkpoint_every {
        job.kept.checkpoint_every = *every;
    }
    job.kept.save_model |= save_model;
    if job != recorded {
        directory.claim(&files(&job))?;
        record(&job, &directory)?;
    }
    Ok((directory, job))
}

/// Everything that a job writes to its directory.
fn files(job: &Job) -> Vec<String> {
    let mut files =
        [CONFIG, "loss.svg", "loss.png", Kind::Train.ends()].map(str::to_owned).to_vec();
    let folders = [(CHECKPOINTS, true), (MODELS, job.kept.save_model)];
    for (folder, _) in folders.into_iter().filter(|f| f.1) {
        for row in &job.config.optimizers {
            let of = |seed: &u64| format!("{folder}/{}.safetensors", run::name(row, *seed));
            files.extend(job.config.seeds.iter().map(of));
        }
    }
    files
}

/// Where the output goes.
pub(crate) fn out(args: &TrainArgs) -> Out<'_> {
    Out { named: args.out.as_deref(), default: "muon-run", force: args.force }
}

/// Trains every optimizer once for each seed.
fn compare(
    args: &TrainArgs,
    job: &Job,
    directory: &OutDirectory,
    opening: &str,
    notes: &Notes,
) -> Result<Ended> {
    let (config, kept) = (&job.config, &job.kept);
    let rows = &config.optimizers;
    let jobs = parallel(args, config, config.seeds.len() > 1)?;
    notes.say(opening);
    let spectra = kept.spectra.as_ref().map(|s| SpectraFile::open(s, notes)).transpose()?;
    let checkpoints = directory.path(CHECKPOINTS);
    let models = kept.save_model.then(|| directory.path(MODELS));
    // A folder that somebody removed meanwhile is made again.
    directory.claim(&files(job))?;
    let all = jobs::Job {
        config,
        rows,
        checkpoints: Some(run::Checkpoints {
            directory: &checkpoints,
            every: kept.checkpoint_every,
        }),
        spectra: spectra.as_ref(),
        models: models.as_deref(),
        jobs,
        notes,
    };
    let Some(results) = all.run()? else {
        notes.say(&format!(
            "stopped; `muon train --resume{}` goes on from here",
            directory.out_argument()
        ));
        return Ok(Ended::Interrupted);
    };
    let results: Vec<RowResults<'_>> =
        rows.iter().zip(results).map(|(row, records)| RowResults { row, records }).collect();
    let metrics = Metrics::new(config, jobs::data_sizes(config)?, &results, jobs);
    let mut wrote = Vec::new();
    match plot::chart(&metrics, &results, config.seeds.len(), &config.task) {
        Some(chart) => {
            directory.write("loss.svg", chart.svg()?.as_bytes())?;
            directory.write("loss.png", &chart.png()?)?;
            wrote.extend(["loss.svg", "loss.png"]);
        }
        None => notes.say("no chart is drawn: no run has two finite losses"),
    }
    // Last: where it is, everything else is there too.
    let json = serde_json::to_string_pretty(&metrics).context("metrics")?;
    directory.write(Kind::Train.ends(), json.as_bytes())?;
    wrote.push(Kind::Train.ends());
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
    if let Some(models) = &models {
        let names = rows.iter().flat_map(|r| config.seeds.iter().map(|s| run::name(r, *s)));
        for name in names.filter(|n| !models.join(format!("{n}.safetensors")).exists()) {
            notes.say(&format!("the model of {name} is not written: it is not finite"));
        }
        wrote.push(MODELS);
    }
    notes.say(&format!("wrote {} to {}", wrote.join(", "), directory.display()));
    Ok(if metrics.diverged() { Ended::CheckFailed } else { Ended::Well })
}

/// Tries every learning rate of every grid.
fn lr_grid(args: &TrainArgs, config: &Config, notes: &Notes) -> Result<Ended> {
    const JOURNAL: &str = "lr-grid.jsonl";
    let files = [JOURNAL, Kind::LrGrid.ends()].map(str::to_owned);
    let same = |journal: &std::path::Path| sweep::journal::Journal::is_of(journal, config);
    let directory = OutDirectory::start_or_go_on(out(args), Kind::LrGrid, &files, same, notes)?;
    let rows = grid::rows(config, &[]);
    let jobs = parallel(args, config, true)?;
    let results = sweep::journaled(config, &rows, &directory, JOURNAL, jobs, notes)?;
    let Some(results) = results else {
        notes.say("stopped; the same command goes on from here");
        return Ok(Ended::Interrupted);
    };
    let results: Vec<_> = rows.into_iter().zip(results).collect();
    let grid = grid::Grid::new(config, &results);
    let json = serde_json::to_string_pretty(&grid).context("grid")?;
    directory.write(Kind::LrGrid.ends(), json.as_bytes())?;
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{json}")?;
    } else {
        writeln!(stdout, "{}", table::grid(&grid.optimizers))?;
    }
    notes.say(&format!("wrote {} to {}", Kind::LrGrid.ends(), directory.display()));
    let failed = grid.optimizers.iter().filter(|r| r.best_lr.is_none()).map(|r| r.label.as_str());
    all_diverged(&failed.collect::<Vec<_>>(), &mut stdout, args.json)
}

/// The finding about optimizers that diverged at every learning rate, which a search is there to avoid.
fn all_diverged(failed: &[&str], stdout: &mut impl Write, json: bool) -> Result<Ended> {
    if failed.is_empty() {
        return Ok(Ended::Well);
    }
    if !json {
        writeln!(stdout, "Diverged at every learning rate: {}.", failed.join(", "))?;
    }
    Ok(Ended::CheckFailed)
}

/// Most threads of all runs at the same time.
const MOST_THREADS: usize = 1024;

/// Runs at the same time.
fn parallel(args: &TrainArgs, config: &Config, many: bool) -> Result<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = config.threads.max(1);
    let jobs = args.jobs.unwrap_or(if many { cores.div_ceil(threads) } else { 1 });
    if jobs.saturating_mul(threads) > MOST_THREADS {
        return Err(usage(format!(
            "--jobs times --threads: expected at most {MOST_THREADS}, found {jobs} times {threads}"
        )));
    }
    Ok(jobs)
}

/// What is about to happen, and which parameters Muon gets. Makes an optimizer on the device, so that a device that
/// cannot be used is found here.
fn opening(config: &Config) -> Result<String> {
    let rows = &config.optimizers;
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
    if let Some(row) = rows.iter().find(|r| r.is_muon()).or(rows.first()) {
        let source = workload::Source::load(&config.task)?;
        let workload = workload::Workload::new(&source, config.batch_size, 0)?;
        let stepper = optimizer::Stepper::new(config, row, workload.params())?;
        if row.is_muon() {
            text.push_str("\nrouting under ");
            text.push_str(&stepper.routing());
        }
    }
    Ok(text.trim_end().to_owned())
}
