//! One study: from its settings, or its journal, to record, schedules and charts in a directory.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, Result};
use muon_cuda::CoefficientSchedule;

use super::candidate::candidates;
use super::journal::Journal;
use super::objective::Objective;
use super::record::{Benches, Entry, Record};
use super::report;
use super::search::{Found, Limits, Outcome, front, search};
use super::settings::{Settings, analytic};
use crate::files::write_atomically;
use crate::schedules::{composition_chart, published};
use crate::terminal::{Notes, stop_requested};

pub(super) const JOURNAL: &str = "journal.jsonl";
pub(super) const RECORD: &str = "record.json";

/// Where a study begins.
#[derive(Debug)]
pub(super) enum Begin {
    /// Afresh, over what is in the directory.
    New(Box<Settings>),
    /// Where its journal ends.
    Resume,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Studied {
    /// Everything is written; the record says whether all work was done.
    Recorded(Box<Record>),
    /// The user asked to stop.
    Stopped,
}

/// Runs or finishes the study of a directory and writes its results.
///
/// # Errors
/// Of the settings, the files, or the search; no time for the first candidate.
pub(super) fn run(
    begin: Begin,
    out: &Path,
    jobs: usize,
    deadline: Option<Instant>,
    notes: &Notes,
) -> Result<Studied> {
    let path = out.join(JOURNAL);
    let (mut journal, settings, before) = match begin {
        Begin::Resume => Journal::resume(&path)?,
        Begin::New(settings) => {
            let settings = *settings;
            // What is wrong with the spectra or the constraints is found before anything is written.
            settings.spectra()?;
            candidates(&settings)?;
            std::fs::create_dir_all(out).with_context(|| {
                format!("the output directory {} cannot be made", out.display())
            })?;
            if path.exists() && !out.join(RECORD).exists() {
                notes.say(&format!(
                    "{} holds a study that was not finished; it is started afresh (to go on with it: --resume)",
                    out.display()
                ));
            }
            (Journal::create(&path, &settings)?, settings, Vec::new())
        }
    };
    let spectra = settings.spectra()?;
    let held_out = analytic(&settings.held_out, settings.shape())?;
    let all = candidates(&settings)?;
    let objective = Objective::new(&settings, &spectra);
    let limits = Limits { jobs, deadline, stop: stop_requested() };
    notes.say(&format!("{} candidates, {} spectra", all.len(), spectra.len()));
    let outcome = search(&settings, &objective, &all, &mut journal, before, limits, notes)?;
    if outcome.stopped {
        return Ok(Studied::Stopped);
    }
    if outcome.found.is_empty() {
        anyhow::bail!("the time was over before the first candidate was done; go on with --resume");
    }
    notes.say("measuring on matrices …");
    // Each matrix is left out once the user wants to stop, so nothing of what follows is written then.
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
    if limits.stop.load(Ordering::Relaxed) {
        return Ok(Studied::Stopped);
    }
    write(&record, &spectra, out)?;
    Ok(Studied::Recorded(Box::new(record)))
}

/// The Pareto front of what was found, measured.
fn tuned(settings: &Settings, outcome: &Outcome, benches: &Benches) -> Result<Vec<Entry>> {
    let points: Vec<(f64, f64)> = outcome.found.iter().map(|f| (f.cost, f.score)).collect();
    let name = |f: &Found| {
        let cost = settings.cost.in_names(f.cost);
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
