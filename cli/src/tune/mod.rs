//! `muon tune`: searches coefficient schedules for spectra, a precision and a budget.

mod candidate;
mod cma;
pub(crate) mod cost;
mod journal;
mod layers;
mod measure;
mod objective;
mod record;
mod report;
mod search;
mod settings;
mod study;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

pub(crate) use self::measure::{Bench, Measured};
use self::record::Record;
use self::settings::Settings;
pub(crate) use self::settings::{analytic, families_of};
use self::study::{Begin, Studied, run};
use crate::args::TuneArgs;
use crate::exit::{Ended, usage};
use crate::terminal::Notes;

/// Runs the command.
///
/// # Errors
/// Of the arguments, the files, or the search.
pub(crate) fn tune(args: &TuneArgs) -> Result<Ended> {
    if let Some(path) = &args.check {
        return check(path, args.json);
    }
    let notes = Notes::new(args.quiet);
    let deadline = args.time.map(|s| Instant::now() + Duration::from_secs(s));
    if args.per_layer || (args.resume && layers::in_directory(&args.out)) {
        return layers::tune(args, deadline, &notes);
    }
    if !args.resume && layers::in_directory(&args.out) {
        return Err(usage(format!(
            "{} holds the studies of several layers; choose another --out",
            args.out.display()
        )));
    }
    let begin =
        if args.resume { Begin::Resume } else { Begin::New(Box::new(Settings::new(args)?)) };
    let record = match run(begin, &args.out, jobs(args), deadline, &notes)? {
        Studied::Recorded(record) => *record,
        Studied::Stopped => {
            notes.say(&format!(
                "stopped; go on with: muon tune --resume --out {}",
                args.out.display()
            ));
            return Ok(Ended::Interrupted);
        }
    };
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&record)?)?;
    } else {
        writeln!(stdout, "{}", report::print(&record))?;
        if !record.complete {
            writeln!(stdout, "time was over before all work was done; go on with --resume")?;
        }
    }
    notes.say(&format!("wrote record, schedules and charts to {}", args.out.display()));
    Ok(Ended::Well)
}

fn jobs(args: &TuneArgs) -> usize {
    args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into))
}

/// Computes the scores of a record again.
fn check(path: &Path, json: bool) -> Result<Ended> {
    let record = Record::load(path)?;
    let differences = record.differences()?;
    let mut stdout = crate::output::stdout();
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
