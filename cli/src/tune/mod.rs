//! `muon tune`: searches coefficient schedules for spectra, a precision and a budget.

mod candidate;
mod cma;
pub(crate) mod cost;
mod journal;
mod layers;
mod measure;
mod objective;
#[cfg(test)]
mod options_tests;
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
use self::study::{Begin, Place, Studied, run};
use crate::args::{TuneArgs, take};
use crate::directory::{Kind, Out, OutDirectory};
use crate::exit::{Ended, usage};
use crate::terminal::Notes;

/// Runs the command.
///
/// # Errors
/// Of the arguments, the files, or the search.
pub(crate) fn tune(args: &TuneArgs) -> Result<Ended> {
    if let Some(path) = take!(args, check) {
        args.given.take("json");
        args.given.refuse_the_rest("--check, which computes a record's scores again")?;
        return check(path, args.json);
    }
    for (id, _) in MANNERS {
        args.given.take(id);
    }
    let notes = Notes::new(args.quiet);
    let deadline = args.time.map(|s| Instant::now() + Duration::from_secs(s));
    let begun = if *take!(args, resume) { resume(args, &notes)? } else { start(args, &notes)? };
    let (begin, directory) = match begun {
        (Some(begin), directory) => (begin, directory),
        (None, directory) => return layers::tune(args, &directory, deadline, &notes),
    };
    let new = matches!(begin, Begin::New(_));
    let place = Place { directory: &directory, folder: "" };
    let record = match run(begin, place, jobs(args), deadline, &notes)? {
        Studied::Recorded(record) => *record,
        Studied::Stopped => {
            notes.say(&format!(
                "stopped; go on with: muon tune --resume{}",
                directory.out_argument()
            ));
            return Ok(Ended::Interrupted);
        }
        Studied::Infeasible(why) => {
            // There is nothing in it to go on with.
            if new {
                directory.discard()?;
            }
            return Err(usage(why));
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
    notes.say(&format!("wrote record, schedules and charts to {}", directory.display()));
    Ok(Ended::Well)
}

/// Options that change no result and are not recorded, with the reason.
const MANNERS: [(&str, &str); 6] = [
    ("out", "says where the output is, which may be moved"),
    ("force", "says what may be replaced, once"),
    ("json", "says how the results are printed"),
    ("quiet", "says how much is printed"),
    ("jobs", "the result does not depend on it"),
    ("time", "says how long is searched this time; --resume goes on"),
];

/// A directory, and how the study in it begins; studies of layers know it themselves.
type Begun = (Option<Begin>, OutDirectory);

fn resume(args: &TuneArgs, notes: &Notes) -> Result<Begun> {
    if args.force {
        return Err(usage("--force starts afresh and --resume goes on: only one of them is meant"));
    }
    args.given.refuse_the_rest("--resume, which goes on with a study exactly as it was started")?;
    let kinds = [Kind::Tune, Kind::TunePerLayer];
    let directory = OutDirectory::resume(out(args), &kinds, notes)?;
    let alone = directory.kind() == Kind::Tune;
    Ok((alone.then_some(Begin::Resume), directory))
}

/// What is wrong with the arguments, the spectra or the constraints is found before anything is written.
fn start(args: &TuneArgs, notes: &Notes) -> Result<Begun> {
    let settings = Settings::new(args)?;
    if *take!(args, per_layer) {
        return Ok((None, layers::start(args, &settings, notes)?));
    }
    settings.spectra()?;
    candidate::candidates(&settings)?;
    let directory = OutDirectory::start(out(args), Kind::Tune, &study::files(""), notes)?;
    Ok((Some(Begin::New(Box::new(settings))), directory))
}

/// Where the output goes.
fn out(args: &TuneArgs) -> Out<'_> {
    Out { named: args.out.as_deref(), default: "muon-tune", force: args.force }
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
