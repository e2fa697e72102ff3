//! The record of a study: what was found, how it compares, and everything needed to make it again.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use muon_cuda::prediction::rounded_image;
use muon_cuda::recipe::Method;
use muon_cuda::{CoefficientSchedule, Spectrum, Tail};
use serde::{Deserialize, Serialize};

use super::candidate::{Candidate, Start};
use super::measure::{Bench, Measured};
use super::objective::Objective;
use super::search::{Found, from_rows};
use super::settings::Settings;
use crate::files::{MOST_OF_A_RECORD, read_text};

/// Scores of a record are computed again to this relative accuracy: another processor may sum in another
/// order, and a digit changed anywhere shows.
const AGREEMENT: f64 = 1e-6;

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) settings: Settings,
    /// Program and version.
    pub(crate) made_by: String,
    /// Whether all work was done; else the same command with more time may find more.
    pub(crate) complete: bool,
    pub(crate) spectra: Vec<String>,
    /// The Pareto front, cheapest first.
    pub(crate) tuned: Vec<Entry>,
    pub(crate) published: Vec<Entry>,
}

/// One schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Divisor of the Frobenius norm; absent for almost-orthogonal-layer scaling.
    pub(crate) norm_safety: Option<f64>,
    pub(crate) candidate: Candidate,
    /// In the unit of the study's cost model.
    pub(crate) cost: f64,
    /// Objective of the study; absent where it cannot be predicted (almost-orthogonal-layer scaling).
    pub(crate) score: Option<f64>,
    pub(crate) slope: f64,
    pub(crate) safe_sigma: f64,
    /// What rounding can make of a single row, at the study's precision; absent for f64, and for no bound.
    pub(crate) rounded_image: Option<(f64, f64)>,
    /// Where the search began; absent for published sets.
    pub(crate) start: Option<Start>,
    pub(crate) evaluations: usize,
    pub(crate) coefficients: Vec<Vec<f64>>,
    /// On one matrix for each spectrum; absent for f64.
    pub(crate) measured: Option<Measured>,
    /// On one matrix for each family held out.
    pub(crate) held_out: Option<Measured>,
}

impl Entry {
    /// Of something found.
    ///
    /// # Errors
    /// A matrix that cannot be orthogonalized.
    pub(crate) fn tuned(
        settings: &Settings,
        found: &Found,
        name: String,
        benches: &Benches,
    ) -> Result<Self> {
        let schedule = &found.schedule;
        let mut entry = Self::of(
            settings,
            name,
            schedule,
            found.candidate.clone(),
            Some(found.score),
            benches,
        )?;
        entry.start = Some(found.start);
        entry.evaluations = found.evaluations;
        Ok(entry)
    }

    /// Of a published set, in standard form.
    ///
    /// # Errors
    /// A matrix that cannot be orthogonalized.
    pub(crate) fn published(
        settings: &Settings,
        objective: &Objective<'_>,
        schedule: &CoefficientSchedule,
        benches: &Benches,
    ) -> Result<Self> {
        let degrees = schedule.polynomials().iter().map(|p| p.degree()).collect();
        let candidate = Candidate { degrees, groups: Vec::new() };
        let score = objective.value(schedule, &Method::Standard).ok();
        Self::of(settings, schedule.name().to_owned(), schedule, candidate, score, benches)
    }

    fn of(
        settings: &Settings,
        name: String,
        schedule: &CoefficientSchedule,
        candidate: Candidate,
        score: Option<f64>,
        benches: &Benches,
    ) -> Result<Self> {
        let method = candidate.method();
        let image = match settings.precision.of() {
            Some(precision) => {
                let (min, max) = rounded_image(schedule, &method, precision)?;
                max.is_finite().then_some((min, max))
            }
            None => None,
        };
        let measure = |bench: &Option<Bench>| {
            bench.as_ref().map(|b| b.measure(schedule, &method)).transpose()
        };
        Ok(Self {
            cost: settings.cost.of(settings, &candidate.degrees, &method)?,
            score: score.filter(|s| s.is_finite()),
            slope: schedule.slope(),
            safe_sigma: schedule.safe_sigma(),
            rounded_image: image,
            start: None,
            evaluations: 0,
            coefficients: schedule
                .polynomials()
                .iter()
                .map(|p| p.coefficients().to_vec())
                .collect(),
            // A published set may not survive the precision on some matrix: that is a result.
            measured: measure(&benches.training)
                .with_context(|| format!("measure {name}"))
                .ok()
                .flatten(),
            held_out: measure(&benches.held_out)
                .with_context(|| format!("measure {name}"))
                .ok()
                .flatten(),
            norm_safety: match schedule.normalization() {
                muon_cuda::Normalization::Frobenius { safety } => Some(safety),
                muon_cuda::Normalization::Aol => None,
            },
            candidate,
            name,
        })
    }

    /// As a schedule with name and source.
    ///
    /// # Errors
    /// Coefficients that are none.
    pub(crate) fn schedule(&self, settings: &Settings) -> Result<CoefficientSchedule> {
        let nameless = from_rows(&self.coefficients)?;
        let source = format!(
            "muon tune: {}, {} method, aspect {}, {} {}, seed {}; objective {:.4}",
            settings.precision.name(),
            self.candidate.method(),
            settings.aspect,
            self.cost,
            settings.cost.unit(),
            settings.seed,
            self.score.unwrap_or(f64::NAN),
        );
        let norm = self.norm_safety.map_or(muon_cuda::Normalization::Aol, |safety| {
            muon_cuda::Normalization::Frobenius { safety }
        });
        let polynomials = nameless.polynomials().to_vec();
        Ok(CoefficientSchedule::new(&self.name, polynomials, norm, Tail::Exact, source)?)
    }
}

/// Matrices to measure on.
#[derive(Debug)]
pub(crate) struct Benches {
    pub(crate) training: Option<Bench>,
    pub(crate) held_out: Option<Bench>,
}

impl Benches {
    /// Of the spectra of a study; none for f64, which no device stores.
    pub(crate) fn new(settings: &Settings, spectra: &[Spectrum], held_out: &[Spectrum]) -> Self {
        let bench = |spectra: &[Spectrum], seed| {
            let precision = settings.precision.of()?;
            (!spectra.is_empty()).then(|| Bench::new(spectra, precision, seed))
        };
        Self { training: bench(spectra, 1), held_out: bench(held_out, 1001) }
    }
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// The file system's; a file that is no record.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = read_text(path, MOST_OF_A_RECORD).context("record of a study")?;
        let record: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not the record of a study", path.display()))?;
        record.settings.check().with_context(|| path.display().to_string())?;
        ensure!(!record.tuned.is_empty(), "{} holds no schedule", path.display());
        Ok(record)
    }

    /// Computes every score again and returns what differs, in words.
    ///
    /// # Errors
    /// Spectra that do not read, coefficients that are none.
    pub(crate) fn differences(&self) -> Result<Vec<String>> {
        let spectra = self.settings.spectra()?;
        let objective = Objective::new(&self.settings, &spectra);
        let mut out = Vec::new();
        for entry in self.tuned.iter().chain(&self.published) {
            let schedule = entry.schedule(&self.settings)?;
            let method = entry.candidate.method();
            let mut compare = |what: &str, recorded: f64, found: f64| {
                if (recorded - found).abs() > AGREEMENT * recorded.abs() {
                    out.push(format!(
                        "{}: {what} is {found:.9}, recorded {recorded:.9}",
                        entry.name
                    ));
                }
            };
            if let Some(score) = entry.score {
                compare("score", score, objective.value(&schedule, &method)?);
            }
            let cost = self.settings.cost.of(&self.settings, &entry.candidate.degrees, &method)?;
            compare("cost", entry.cost, cost);
            compare("slope", entry.slope, schedule.slope());
            compare("safe sigma", entry.safe_sigma, schedule.safe_sigma());
        }
        for entry in &self.tuned {
            let schedule = entry.schedule(&self.settings)?;
            let score = objective.score(&schedule, &entry.candidate.method())?;
            if !score.feasible() {
                out.push(format!(
                    "{}: the study's constraints are missed: {}",
                    entry.name, score.missed
                ));
            }
        }
        Ok(out)
    }
}
