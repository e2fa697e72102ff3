//! One study: from its settings, or its journal, to record, schedules and charts in a directory.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Result;
use muon_cuda::CoefficientSchedule;

use super::candidate::candidates;
use super::journal::{Journal, Resumed};
use super::objective::Objective;
use super::record::{Benches, Entry, Record};
use super::report;
use super::search::{Found, Limits, Outcome, Searched, front, search};
use super::settings::{Settings, analytic};
use crate::directory::OutDirectory;
use crate::files::write_atomically;
use crate::schedules::{composition_chart, published};
use crate::terminal::{Notes, stop_requested};

pub(super) const JOURNAL: &str = "journal.jsonl";
pub(super) const RECORD: &str = "record.json";

/// Where a study begins.
#[derive(Debug)]
pub(super) enum Begin {
    /// Afresh; what can be wrong with the settings has been looked for.
    New(Box<Settings>),
    /// Where its journal ends.
    Resume,
}

/// A study's part of an output directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) directory: &'a OutDirectory,
    /// A layer's folder with a `/` behind it; empty for a study alone.
    pub(super) folder: &'a str,
}

impl Place<'_> {
    /// Where the study has a file of that name.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path(&self.name(name))
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.folder)
    }
}

/// Files of a study whose names are known before it is done.
pub(super) fn files(folder: &str) -> Vec<String> {
    [JOURNAL, RECORD, "pareto.svg", "pareto.png", "errors.svg", "errors.png"]
        .map(|name| format!("{folder}{name}"))
        .to_vec()
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Studied {
    /// Everything is written; the record says whether all work was done.
    Recorded(Box<Record>),
    /// The user asked to stop.
    Stopped,
    /// No schedule keeps the constraints, in words.
    Infeasible(String),
}

/// Runs or finishes the study of a directory and writes its results.
///
/// # Errors
/// Of the settings, the files, or the search; no time for the first candidate.
pub(super) fn run(
    begin: Begin,
    place: Place<'_>,
    jobs: usize,
    deadline: Option<Instant>,
    notes: &Notes,
) -> Result<Studied> {
    let path = place.path(JOURNAL);
    let (journal, settings, before) = match begin {
        Begin::Resume => {
            let Resumed { journal, settings, lines, cut } = Journal::resume(&path)?;
            if cut {
                notes.say(
                    "the journal ended in half a line, which is removed; its work is done again",
                );
            }
            (journal, settings, lines)
        }
        Begin::New(settings) => (Journal::create(&path, &settings)?, *settings, Vec::new()),
    };
    let spectra = settings.spectra()?;
    let held_out = analytic(&settings.held_out, settings.shape())?;
    let all = candidates(&settings)?;
    let objective = Objective::new(&settings, &spectra);
    let limits = Limits { jobs, deadline, stop: stop_requested() };
    notes.say(&format!("{} candidates, {} spectra", all.len(), spectra.len()));
    let outcome = match search(&settings, &objective, &all, &journal, before, limits, notes)? {
        Searched::Found(outcome) => outcome,
        Searched::Infeasible(why) => return Ok(Studied::Infeasible(why)),
    };
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
    write(&record, &spectra, place)?;
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
fn write(record: &Record, spectra: &[muon_cuda::Spectrum], place: Place<'_>) -> Result<()> {
    let json = serde_json::to_string_pretty(record)? + "\n";
    let schedules = record
        .tuned
        .iter()
        .map(|e| e.schedule(&record.settings))
        .collect::<Result<Vec<CoefficientSchedule>>>()?;
    let endings = ["toml", "svg", "png"];
    let names: Vec<String> = schedules
        .iter()
        .flat_map(|s| endings.map(|ending| place.name(&format!("{}.{ending}", s.name()))))
        .collect();
    place.directory.claim(&names)?;
    for schedule in &schedules {
        let file = |ending: &str| place.path(&format!("{}.{ending}", schedule.name()));
        write_atomically(&file("toml"), schedule.to_toml_string()?.as_bytes())?;
        for ending in ["svg", "png"] {
            composition_chart(schedule)?.write(&file(ending))?;
        }
    }
    let (chart, marks) = report::pareto(record);
    let mut compared: Vec<CoefficientSchedule> = schedules.last().cloned().into_iter().collect();
    for name in ["jordan", "you", "polar_express_5"] {
        compared.push(muon_cuda::coefficients::presets::preset(name)?);
    }
    let errors = report::errors(&compared, spectra);
    for ending in ["svg", "png"] {
        chart.write_with(&marks, &place.path(&format!("pareto.{ending}")))?;
        errors.write(&place.path(&format!("errors.{ending}")))?;
    }
    // Last: where there is a record, everything else is there too.
    place.directory.write(&place.name(RECORD), json.as_bytes())
}
