//! `muon tune`: searches coefficient schedules for spectra, a precision and a budget.

mod candidate;
mod cma;
mod journal;
mod measure;
mod objective;
mod record;
mod report;
mod search;
mod settings;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use muon_cuda::CoefficientSchedule;

use self::candidate::candidates;
use self::journal::Journal;
pub(crate) use self::measure::{Bench, Measured};
use self::objective::Objective;
use self::record::{Benches, Entry, Record};
use self::search::{Found, Limits, Outcome, front, search};
use self::settings::Settings;
pub(crate) use self::settings::{analytic, families_of};
use crate::args::TuneArgs;
use crate::exit::{Ended, usage};
use crate::files::write_atomically;
use crate::schedules::{composition_chart, published};
use crate::terminal::{Notes, stop_requested};

const JOURNAL: &str = "journal.jsonl";
const RECORD: &str = "record.json";

/// Runs the command.
///
/// # Errors
/// Of the arguments, the files, or the search.
pub(crate) fn tune(args: &TuneArgs) -> Result<Ended> {
    if let Some(path) = &args.check {
        return check(path, args.json);
    }
    if args.time == Some(0) {
        return Err(usage("a budget of 0 seconds finds nothing; --time is at least 1"));
    }
    let notes = Notes::new(args.quiet);
    let path = args.out.join(JOURNAL);
    let (mut journal, settings, before) = if args.resume {
        Journal::resume(&path)?
    } else {
        let settings = Settings::new(args)?;
        // What is wrong with the spectra or the constraints is found before anything is written.
        settings.spectra()?;
        candidates(&settings)?;
        std::fs::create_dir_all(&args.out)
            .with_context(|| format!("make {}", args.out.display()))?;
        if path.exists() && !args.out.join(RECORD).exists() {
            notes.say(&format!(
                "{} holds a study that was not finished; it is started afresh (to go on with it: --resume)",
                args.out.display()
            ));
        }
        (Journal::create(&path, &settings)?, settings, Vec::new())
    };
    let spectra = settings.spectra()?;
    let held_out = analytic(&settings.held_out, settings.shape())?;
    let all = candidates(&settings)?;
    let objective = Objective::new(&settings, &spectra);
    let limits = Limits {
        jobs: args
            .jobs
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into)),
        deadline: args.time.map(|s| Instant::now() + Duration::from_secs(s)),
        stop: stop_requested(),
    };
    notes.say(&format!("{} candidates, {} spectra", all.len(), spectra.len()));
    let outcome = search(&settings, &objective, &all, &mut journal, before, limits, &notes)?;
    if outcome.stopped {
        notes.say(&format!("stopped; go on with: muon tune --resume --out {}", args.out.display()));
        return Ok(Ended::Interrupted);
    }
    if outcome.found.is_empty() {
        anyhow::bail!("the time was over before the first candidate was done; go on with --resume");
    }
    notes.say("measuring on matrices …");
    let benches = Benches::new(&settings, &spectra, &held_out);
    let names: Vec<String> = spectra.iter().map(|s| s.name().to_owned()).collect();
    let record = Record {
        tuned: tuned(&settings, &outcome, &benches)?,
        published: published::runnable(settings.precision.of())?
            .iter()
            .map(|s| Entry::published(&settings, &objective, s, &benches))
            .collect::<Result<_>>()?,
        made_by: concat!("muon ", env!("CARGO_PKG_VERSION")).to_owned(),
        complete: outcome.complete,
        spectra: names,
        settings,
    };
    write(&record, &spectra, &args.out)?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&record)?)?;
    } else {
        writeln!(stdout, "{}\n{}", report::print(&record), report::LEGEND)?;
        if !record.complete {
            writeln!(stdout, "time was over before all work was done; go on with --resume")?;
        }
    }
    notes.say(&format!("wrote record, schedules and charts to {}", args.out.display()));
    Ok(Ended::Well)
}

/// The Pareto front of what was found, measured.
fn tuned(settings: &Settings, outcome: &Outcome, benches: &Benches) -> Result<Vec<Entry>> {
    let points: Vec<(f64, f64)> = outcome.found.iter().map(|f| (f.cost, f.score)).collect();
    let name = |f: &Found| {
        let cost = format!("{}", f.cost).replace('.', "p");
        format!("tuned_{}_a{}_{cost}", settings.precision.name(), settings.aspect).replace('.', "p")
    };
    front(&points)
        .into_iter()
        .map(|i| &outcome.found[i])
        .map(|f| Entry::tuned(settings, f, name(f), benches))
        .collect()
}

/// Every file of a finished study.
fn write(record: &Record, spectra: &[muon_cuda::Spectrum], out: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(record)? + "\n";
    let schedules = record
        .tuned
        .iter()
        .map(|e| e.schedule(&record.settings))
        .collect::<Result<Vec<CoefficientSchedule>>>()?;
    for schedule in &schedules {
        let file = out.join(format!("{}.toml", schedule.name()));
        write_atomically(&file, schedule.to_toml_string()?.as_bytes())?;
        for ending in ["svg", "png"] {
            let file = out.join(format!("{}.{ending}", schedule.name()));
            composition_chart(schedule)?.write(&file)?;
        }
    }
    let (chart, marks) = report::pareto(record);
    let mut compared: Vec<CoefficientSchedule> = schedules.last().cloned().into_iter().collect();
    for name in ["jordan", "you", "polar_express_5"] {
        compared.push(muon_cuda::coefficients::presets::preset(name)?);
    }
    let errors = report::errors(&compared, spectra);
    for ending in ["svg", "png"] {
        chart.write_with(&marks, &out.join(format!("pareto.{ending}")))?;
        errors.write(&out.join(format!("errors.{ending}")))?;
    }
    // Last: where there is a record, everything else is there too.
    write_atomically(&out.join(RECORD), json.as_bytes())
}

/// Computes the scores of a record again.
fn check(path: &Path, json: bool) -> Result<Ended> {
    let record = Record::load(path)?;
    let differences = record.differences()?;
    let mut stdout = std::io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&differences)?)?;
    } else {
        for line in &differences {
            writeln!(stdout, "{line}")?;
        }
        let verdict = if differences.is_empty() { "holds" } else { "does not hold" };
        writeln!(
            stdout,
            "{} {verdict}: {} tuned schedules, {} published",
            path.display(),
            record.tuned.len(),
            record.published.len()
        )?;
    }
    Ok(if differences.is_empty() { Ended::Well } else { Ended::CheckFailed })
}
