//! `muon tune --per-layer`: a study for each parameter whose spectra a file holds, and the table of schedules that
//! `muon train --schedules` takes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result};
use muon_cuda::MatrixShape;
use serde::{Deserialize, Serialize};

use super::candidate::candidates;
use super::record::{Entry, Record};
use super::settings::Settings;
use super::study::{self, Begin, JOURNAL, Place, RECORD, Studied, run};
use crate::args::TuneArgs;
use crate::directory::{Kind, OutDirectory};
use crate::exit::{Ended, usage};
use crate::files::{MOST_OF_A_RECORD, read_text};
use crate::tables::table;
use crate::terminal::Notes;
use crate::train::layer_schedules;

/// What the studies are: written first, so that they can be gone on with.
const LAYERS: &str = "layers.json";
/// The table of schedules.
const SCHEDULES: &str = "schedules.toml";

/// A cheaper schedule is taken where it errs by at most this part more than the best.
const WORTH_PAYING: f64 = 0.02;

/// One study.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    param: String,
    directory: String,
    settings: Settings,
}

/// The parameter that a spectrum belongs to: its name without the run that `muon train` puts before it
/// (`muon_jordan_5-seed0/`), the matrix of several (`[3]`), and the step (`@100`).
pub(super) fn param_of(spectrum: &str) -> &str {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let without_step = match spectrum.rsplit_once('@') {
        Some((name, step)) if digits(step) => name,
        _ => spectrum,
    };
    let without_matrix = match without_step.strip_suffix(']').and_then(|s| s.rsplit_once('[')) {
        Some((name, matrix)) if digits(matrix) => name,
        _ => without_step,
    };
    match without_matrix.split_once('/') {
        Some((run, name)) if run.rsplit_once("-seed").is_some_and(|(_, seed)| digits(seed)) => name,
        _ => without_matrix,
    }
}

/// Begins the studies of all layers in a directory of their own.
///
/// # Errors
/// Of the arguments, or the files.
pub(super) fn start(args: &TuneArgs, base: &Settings, notes: &Notes) -> Result<OutDirectory> {
    let layers = layers(base)?;
    let mut files = [LAYERS, SCHEDULES].map(str::to_owned).to_vec();
    files.extend(layers.iter().flat_map(|l| study::files(&l.folder())));
    let directory = OutDirectory::start(super::out(args), Kind::TunePerLayer, &files, notes)?;
    let json = serde_json::to_string_pretty(&layers)? + "\n";
    directory.write(LAYERS, json.as_bytes())?;
    Ok(directory)
}

/// Runs or finishes the studies of all layers.
///
/// # Errors
/// Of the files, or a search, with its layer.
pub(super) fn tune(
    args: &TuneArgs,
    directory: &OutDirectory,
    deadline: Option<Instant>,
    notes: &Notes,
) -> Result<Ended> {
    let index = directory.path(LAYERS);
    let text = read_text(&index, MOST_OF_A_RECORD).context("list of layers")?;
    let layers: Vec<Layer> = serde_json::from_str(&text).with_context(|| {
        format!("{} is not a list of layers; start afresh with --force", index.display())
    })?;
    let mut done = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        notes.say(&format!("{} of {}: {}", i + 1, layers.len(), layer.param));
        let left = u32::try_from(layers.len() - i)?;
        // What time is left is shared by the layers that are left.
        let until = deadline.map(|t| {
            let now = Instant::now();
            now + t.saturating_duration_since(now) / left
        });
        let studied = one(layer, directory, super::jobs(args), until, notes)
            .with_context(|| format!("layer `{}`", layer.param))?;
        match studied {
            Studied::Recorded(record) => done.push((layer, *record)),
            Studied::Stopped => {
                let out = directory.out_argument();
                notes.say(&format!("stopped; go on with: muon tune --resume{out}"));
                return Ok(Ended::Interrupted);
            }
            Studied::Infeasible(why) => {
                return Err(usage(why)).with_context(|| format!("layer `{}`", layer.param));
            }
        }
    }
    let rows: Vec<(&Layer, &Record, &Entry)> =
        done.iter().filter_map(|(l, r)| Some((*l, r, worth_it(r)?))).collect();
    let path = directory.path(SCHEDULES);
    let text = layer_schedules::to_toml(
        "Made by muon tune --per-layer; for muon train --schedules.",
        rows.iter().map(|(l, _, e)| (l.param.clone(), format!("{}/{}.toml", l.directory, e.name))),
    );
    directory.write(SCHEDULES, text.as_bytes())?;
    let mut stdout = crate::output::stdout();
    if args.json {
        let records: BTreeMap<&str, &Record> =
            rows.iter().map(|(l, r, _)| (l.param.as_str(), *r)).collect();
        writeln!(stdout, "{}", serde_json::to_string_pretty(&records)?)?;
    } else {
        writeln!(stdout, "{}", print(&rows))?;
        if !done.iter().all(|(_, r)| r.complete) {
            writeln!(stdout, "time was over before all work was done; go on with --resume")?;
        }
    }
    notes.say(&format!("wrote {}; train with: muon train --schedules {0}", path.display()));
    Ok(Ended::Well)
}

/// A study for each parameter, in the order of the names.
fn layers(base: &Settings) -> Result<Vec<Layer>> {
    let mut shapes: BTreeMap<String, MatrixShape> = BTreeMap::new();
    for spectrum in base.spectra_of_files()? {
        let param = param_of(spectrum.name()).to_owned();
        let shape = spectrum.shape();
        let before = *shapes.entry(param.clone()).or_insert(shape);
        if before != shape {
            return Err(usage(format!(
                "--per-layer: `{param}` is {before} in one spectrum and {shape} in another; are the files of one model?"
            )));
        }
    }
    shapes
        .into_iter()
        .enumerate()
        .map(|(i, (param, shape))| {
            let settings = base.for_layer(&param, shape)?;
            settings
                .spectra()
                .and_then(|_| candidates(&settings))
                .with_context(|| param.clone())?;
            let safe =
                |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
            let directory = format!("{:02}-{}", i + 1, param.chars().map(safe).collect::<String>());
            Ok(Layer { param, directory, settings })
        })
        .collect()
}

/// The studies of all layers.
#[cfg(test)]
pub(super) fn settings(base: &Settings) -> Result<Vec<Settings>> {
    Ok(layers(base)?.into_iter().map(|l| l.settings).collect())
}

impl Layer {
    /// Its folder, as the start of file names.
    fn folder(&self) -> String {
        format!("{}/", self.directory)
    }
}

fn one(
    layer: &Layer,
    directory: &OutDirectory,
    jobs: usize,
    deadline: Option<Instant>,
    notes: &Notes,
) -> Result<Studied> {
    let place = Place { directory, folder: &layer.folder() };
    let record = place.path(RECORD);
    if record.exists() {
        let record = Record::load(&record).with_context(|| {
            format!("{} is damaged; remove it, and --resume writes it again", record.display())
        })?;
        if record.complete && record.settings == layer.settings {
            return Ok(Studied::Recorded(Box::new(record)));
        }
    }
    // Folders that were lost are made again.
    directory.claim(&study::files(place.folder))?;
    let journal = place.path(JOURNAL);
    let begun = match muon_cuda::checkpoint::read_file(&journal, MOST_OF_A_RECORD) {
        Ok(bytes) => bytes.contains(&b'\n'),
        // What does not read is not to be written over: going on with it says what is wrong.
        Err(_) => journal.exists(),
    };
    let begin = if begun { Begin::Resume } else { Begin::New(Box::new(layer.settings.clone())) };
    run(begin, place, jobs, deadline, notes)
}

/// The cheapest schedule of a front that errs by little more than the best.
fn worth_it(record: &Record) -> Option<&Entry> {
    let scored = || record.tuned.iter().filter_map(|e| Some((e, e.score?)));
    let least = scored().map(|(_, score)| score).fold(f64::INFINITY, f64::min);
    scored()
        .filter(|(_, score)| *score <= (1.0 + WORTH_PAYING) * least)
        .min_by(|a, b| a.0.cost.total_cmp(&b.0.cost))
        .map(|(e, _)| e)
}

fn print(rows: &[(&Layer, &Record, &Entry)]) -> String {
    let published = ["jordan", "polar_express_5"];
    let mut table = table([
        "parameter",
        "shape",
        "spectra",
        "degrees",
        "method",
        "cost",
        "predicted",
        published[0],
        published[1],
    ]);
    for (layer, record, entry) in rows {
        let degrees: Vec<String> =
            entry.candidate.degrees.iter().map(ToString::to_string).collect();
        let other = |name: &str| {
            let found = record.published.iter().find(|e| e.name == name);
            found.and_then(|e| e.score).map_or("-".to_owned(), |s| format!("{s:.4}"))
        };
        table.add_row([
            layer.param.clone(),
            layer.settings.shape().to_string(),
            record.spectra.len().to_string(),
            degrees.join(","),
            entry.candidate.method().to_string(),
            format!("{:.1} {}", entry.cost, record.settings.cost.unit()),
            entry.score.map_or("-".to_owned(), |s| format!("{s:.4}")),
            other(published[0]),
            other(published[1]),
        ]);
    }
    format!(
        "{table}\npredicted, and for the published sets beside it: the study's objective on the spectra of that parameter. Of each\n\
         front the cheapest schedule within {:.0} % of the least error is taken.",
        100.0 * WORTH_PAYING
    )
}

#[cfg(test)]
mod tests {
    use super::param_of;

    #[test]
    fn names_are_taken_apart() {
        for (spectrum, param) in [
            ("muon_jordan_5-seed0/hidden1.weight@100", "hidden1.weight"),
            ("hidden1.weight@100", "hidden1.weight"),
            ("experts.w1[3]@20", "experts.w1"),
            ("experts.w1[3]", "experts.w1"),
            ("encoder/layer0/w@5", "encoder/layer0/w"),
            ("a-seed7/encoder/w", "encoder/w"),
            ("w", "w"),
            ("odd@name", "odd@name"),
            ("odd[name]", "odd[name]"),
        ] {
            assert_eq!(param_of(spectrum), param, "{spectrum}");
        }
    }
}
