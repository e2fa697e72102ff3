//! What a study is: everything its result depends on.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use muon_cuda::spectrum::{self, SpectrumFamily};
use muon_cuda::{MatrixShape, Precision, Spectrum};
use serde::{Deserialize, Serialize};

use super::cost::CostModel;
use super::layers::param_of;
use crate::args::{
    AggregateName, ObjectiveName, TuneArgs, TuneMethodName, TunePrecisionName, take,
};
use crate::exit::usage;
use crate::files::{MOST_OF_A_LIST, read_text};

/// Format of journals and records; raised when an old one no longer means the same.
pub(crate) const VERSION: u32 = 1;

/// Spectra that stand for what gradients and momenta look like, where the user names none.
pub(crate) const DEFAULT_SPECTRA: [&str; 9] = [
    "gaussian",
    "power:0.5",
    "power:1",
    "exponential:3",
    "exponential:5",
    "linear",
    "outliers:1:10",
    "two-level:0.5:0",
    "rank:0.3",
];

/// A study, as its journal and its record keep it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) version: u32,
    pub(crate) precision: TunePrecisionName,
    /// Long side over short side.
    pub(crate) aspect: f64,
    /// Short side of analytic spectra and of the matrices that finalists are measured on.
    pub(crate) short: usize,
    pub(crate) families: Vec<String>,
    pub(crate) files: Vec<String>,
    /// The parameter whose spectra of `files` count; all of them without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layer: Option<String>,
    /// Of the values in `files`: a file that has changed is found out.
    pub(crate) fingerprint: u64,
    pub(crate) iterations: Vec<usize>,
    pub(crate) degrees: Vec<usize>,
    pub(crate) method: TuneMethodName,
    /// Absent in records that are older than the choice.
    #[serde(default)]
    pub(crate) cost: CostModel,
    /// In the unit of `cost`.
    pub(crate) max_cost: Option<f64>,
    pub(crate) objective: ObjectiveName,
    pub(crate) aggregate: AggregateName,
    /// Lower end of the interval of `band` and of the worst case.
    pub(crate) lower: f64,
    pub(crate) band: Option<(f64, f64)>,
    pub(crate) min_safe_sigma: f64,
    pub(crate) max_slope: Option<f64>,
    /// Whether rounding may not carry a single row out of (0, 1.5).
    pub(crate) rounding_safe: bool,
    pub(crate) seed: u64,
    pub(crate) polish: usize,
    pub(crate) evaluations: usize,
    /// Families that finalists are judged on and that the search does not see.
    pub(crate) held_out: Vec<String>,
}

impl Settings {
    /// From the command line.
    ///
    /// # Errors
    /// Arguments that contradict each other or cannot be met; files that do not read.
    pub(crate) fn new(args: &TuneArgs) -> Result<Self> {
        let (spectrum, spectra) = (take!(args, spectrum), take!(args, spectra));
        let per_layer = *take!(args, per_layer);
        if per_layer && spectra.is_empty() {
            return Err(usage(
                "--per-layer tunes for spectra of parameters; name their file with --spectra",
            ));
        }
        let families = match (&spectrum[..], &spectra[..]) {
            ([], []) => DEFAULT_SPECTRA.map(str::to_owned).to_vec(),
            (families, _) => families.to_vec(),
        };
        let precision = *take!(args, precision);
        let (cost, objective, band_given) =
            (*take!(args, cost), *take!(args, objective), take!(args, band));
        let of_interval = objective == ObjectiveName::WorstCase || band_given.is_some();
        // What f64 would round is not looked at, and nothing is measured in it.
        let rounds = precision != TunePrecisionName::F64;
        let held_out = if rounds { take!(args, held_out).as_deref() } else { None };
        let held_out = held_out.map(families_of).transpose()?.unwrap_or_default();
        // Each layer has a shape of its own. Without, the aspect ratio decides costs; the size only what is made of it.
        let of_a_size = !families.is_empty() || !held_out.is_empty() || cost != CostModel::Flops;
        let u = precision.of().map_or(f64::EPSILON, Precision::unit_roundoff);
        let mut settings = Self {
            version: VERSION,
            precision,
            aspect: if per_layer { args.aspect } else { *take!(args, aspect) },
            short: if of_a_size && !per_layer { *take!(args, size) } else { args.size },
            families,
            files: spectra.iter().map(|p| p.display().to_string()).collect(),
            layer: None,
            fingerprint: 0,
            iterations: take!(args, iterations).clone(),
            degrees: take!(args, degrees).clone(),
            method: *take!(args, method),
            cost,
            max_cost: *take!(args, max_cost),
            objective,
            aggregate: match objective {
                ObjectiveName::WorstCase => args.aggregate,
                _ => *take!(args, aggregate),
            },
            lower: if of_interval { *take!(args, lower) } else { args.lower },
            band: band_given.as_deref().map(band).transpose()?,
            min_safe_sigma: take!(args, min_safe_sigma).unwrap_or((1.0 + u) * (1.0 + u)),
            max_slope: *take!(args, max_slope),
            rounding_safe: if rounds { !*take!(args, no_rounding_safety) } else { true },
            seed: args.seed,
            polish: *take!(args, polish),
            evaluations: args.evaluations,
            held_out,
        };
        // Without a polish there is nothing to draw and nothing to evaluate.
        if settings.polish > 0 {
            settings.seed = *take!(args, seed);
            settings.evaluations = *take!(args, evaluations);
        }
        args.given.refuse_the_rest(&settings.in_words(per_layer))?;
        settings.check()?;
        let lists = [("--degrees", &settings.degrees), ("--iterations", &settings.iterations)];
        for (what, list) in lists {
            if let Some((_, n)) = list.iter().enumerate().find(|(i, n)| list[..*i].contains(n)) {
                return Err(usage(format!("{what} names `{n}` twice")));
            }
        }
        for family in &settings.families {
            // What does not read here is a mistake of the command line, not of a file.
            family.parse::<SpectrumFamily>().map_err(|e| usage(format!("--spectrum: {e}")))?;
        }
        settings.fingerprint = fingerprint(&settings.spectra_of_files()?);
        Ok(settings)
    }

    /// The study in a few words, for the refusal of what it does not use.
    fn in_words(&self, per_layer: bool) -> String {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map(|v| v.get_name().to_owned()).unwrap_or_default()
        };
        format!(
            "this study (objective {}, {}, cost {}, {} polishes{})",
            name(self.objective.to_possible_value()),
            self.precision.name(),
            self.cost,
            self.polish,
            if per_layer { ", for each layer" } else { "" }
        )
    }

    /// Refuses what no search can meet.
    ///
    /// # Errors
    /// Says which setting.
    pub(crate) fn check(&self) -> Result<()> {
        let finite = |what: &str, x: f64, low: f64| -> Result<()> {
            if x.is_finite() && x >= low {
                return Ok(());
            }
            Err(usage(format!("{what} must be finite and at least {low}, found `{x}`")))
        };
        ensure!(
            self.version == VERSION,
            "the study has format {}, this program reads {VERSION}",
            self.version
        );
        finite("--aspect", self.aspect, 1.0)?;
        finite("--min-safe-sigma", self.min_safe_sigma, 0.0)?;
        if let Some(cost) = self.max_cost {
            finite("--max-cost", cost, 0.0)?;
        }
        if let Some(slope) = self.max_slope {
            finite("--max-slope", slope, 1.0)?;
        }
        if !(self.lower > 0.0 && self.lower < 1.0) {
            return Err(usage(format!("--lower lies in (0, 1), found `{}`", self.lower)));
        }
        if self.short < 2 || self.short > 4096 {
            return Err(usage(format!("--size lies between 2 and 4096, found `{}`", self.short)));
        }
        if self.long() > 1 << 16 {
            return Err(usage("--size times --aspect is at most 65536"));
        }
        if let Some(d) = self.degrees.iter().find(|d| !matches!(d, 3 | 5 | 9)) {
            return Err(usage(format!("--degrees are 3, 5 and 9, found `{d}`")));
        }
        if let Some(t) = self.iterations.iter().find(|t| !(1..=8).contains(*t)) {
            return Err(usage(format!("--iterations lie between 1 and 8, found `{t}`")));
        }
        if self.iterations.is_empty() || self.degrees.is_empty() {
            return Err(usage("--iterations and --degrees need a value each"));
        }
        if self.evaluations == 0 {
            return Err(usage(
                "a budget of 0 evaluations finds nothing; --evaluations is at least 1",
            ));
        }
        Ok(())
    }

    /// Long side of analytic spectra and of matrices.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "both factors were checked; rounding to a whole side is meant"
    )]
    pub(crate) fn long(&self) -> usize {
        (self.short as f64 * self.aspect).round() as usize
    }

    /// The shape of analytic spectra and of matrices.
    pub(crate) fn shape(&self) -> MatrixShape {
        MatrixShape { rows: self.short, cols: self.long() }
    }

    /// Everything the search is scored on.
    ///
    /// # Errors
    /// Unknown families; files that do not read, are empty, or changed since the study began.
    pub(crate) fn spectra(&self) -> Result<Vec<Spectrum>> {
        let measured = self.spectra_of_files()?;
        ensure!(
            fingerprint(&measured) == self.fingerprint,
            "the spectra in {} are no longer those the study began with; start a new one",
            self.files.join(", ")
        );
        let mut spectra = analytic(&self.families, self.shape())?;
        spectra.extend(measured);
        Ok(spectra)
    }

    /// Of the layer, if there is one.
    ///
    /// # Errors
    /// Files that do not read or are empty.
    pub(crate) fn spectra_of_files(&self) -> Result<Vec<Spectrum>> {
        let mut spectra = Vec::new();
        for file in &self.files {
            spectra.extend(spectrum::load(file)?);
        }
        if let Some(layer) = &self.layer {
            spectra.retain(|s| param_of(s.name()) == layer);
        }
        Ok(spectra)
    }

    /// The same study for one parameter of that shape.
    ///
    /// # Errors
    /// A shape that no study takes; files that no longer read.
    pub(crate) fn for_layer(&self, param: &str, shape: MatrixShape) -> Result<Self> {
        let mut settings = Self {
            layer: Some(param.to_owned()),
            short: shape.short(),
            aspect: shape.long() as f64 / shape.short() as f64,
            ..self.clone()
        };
        settings.check().with_context(|| format!("`{param}`, {shape}"))?;
        settings.fingerprint = fingerprint(&settings.spectra_of_files()?);
        Ok(settings)
    }
}

/// The families of a file: one spelling a line, `#` begins a comment.
///
/// # Errors
/// A file that does not read or holds none.
pub(crate) fn families_of(path: &Path) -> Result<Vec<String>> {
    let families: Vec<String> = read_text(path, MOST_OF_A_LIST)
        .context("families of spectra")?
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    ensure!(!families.is_empty(), "{} names no family of spectra", path.display());
    Ok(families)
}

/// Spectra of that shape by their spelling.
///
/// # Errors
/// An unknown family or a parameter outside its range.
pub(crate) fn analytic(families: &[String], shape: MatrixShape) -> Result<Vec<Spectrum>> {
    families.iter().map(|text| Ok(text.parse::<SpectrumFamily>()?.spectrum(shape)?)).collect()
}

/// `LO,HI`.
fn band(text: &[f64]) -> Result<(f64, f64)> {
    match *text {
        [low, high] if low.is_finite() && high.is_finite() && low < high => Ok((low, high)),
        _ => Err(usage("--band takes two numbers, the lower one first: --band 0.7,1.3")),
    }
}

/// FNV-1a over names and values.
fn fingerprint(spectra: &[Spectrum]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for s in spectra {
        let values = s.values().iter().flat_map(|x| x.to_bits().to_le_bytes());
        for byte in s.name().bytes().chain(values) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}
