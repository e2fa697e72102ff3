//! `muon schedules --table`: every published set, with what rounding does to it.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use muon_cuda::prediction::{Predictor, rounded_image};
use muon_cuda::recipe::{Method, Recipe};
use muon_cuda::spectrum::SpectrumFamily;
use muon_cuda::{CoefficientSchedule, MatrixShape, Precision};
use serde::Serialize;

use super::{facts, published};
use crate::args::SchedulesArgs;
use crate::tables::table;
use crate::tune::{Bench, analytic, families_of};

/// The spectra that the rounding errors of this project are quoted on.
const SPECTRA: [&str; 8] = [
    "gaussian",
    "exponential:3",
    "exponential:5",
    "exponential:9",
    "linear",
    "two-level:0.5:0",
    // One of 1, the others 0.003: a fraction below one singular value is one of them.
    "two-level:0.001:0.003",
    "power:1",
];

/// Their shape.
const SHAPE: MatrixShape = MatrixShape { rows: 384, cols: 1536 };

/// Short side of the matrices that schedules are judged on, and their aspects.
const JUDGED: (usize, [usize; 3]) = (256, [1, 4, 16]);

const LEGEND: &str = "\
slope: gain of tiny singular values. lifts: smallest σ that reaches 0.7. runs: as published (raw), with an input\n\
safety, or refused, in bf16. one row: what rounding in bf16 can make of a matrix with one dominant row, as it runs. bf16,\n\
fp16: relative distance to the exact composition, worst of eight spectra at 384 × 1536, standard form, predicted as\n\
it runs; a dash where that is not predicted (AOL) or nothing runs.";

/// One set.
#[derive(Debug, Serialize)]
struct Compared {
    name: String,
    degrees: String,
    slope: f64,
    reach: Option<f64>,
    band_from_1e_3: (f64, f64),
    band_from_1e_2: (f64, f64),
    safe_sigma: f64,
    runs: String,
    one_row_bf16: Option<(f64, f64)>,
    error_bf16: Option<f64>,
    error_fp16: Option<f64>,
    /// Worst measured distance to the polar factor over the families judged on, by precision and aspect.
    judged: Vec<Judged>,
    source: String,
}

/// Errors on held-out families.
#[derive(Debug, Serialize)]
struct Judged {
    precision: &'static str,
    aspect: usize,
    cost: f64,
    worst: Option<f64>,
    mean: Option<f64>,
}

/// Prints the table.
///
/// # Errors
/// Unknown schedules or families, files that do not read.
pub(super) fn print(args: &SchedulesArgs) -> Result<()> {
    let mut schedules = published::all()?;
    for name in &args.with {
        schedules.push(CoefficientSchedule::preset_or_file(name)?);
    }
    let predictors = SPECTRA
        .iter()
        .map(|text| Ok(Predictor::new(&text.parse::<SpectrumFamily>()?.spectrum(SHAPE)?)))
        .collect::<Result<Vec<_>>>()?;
    let mut benches = Vec::new();
    if let Some(path) = &args.held_out {
        let families = families_of(path)?;
        for precision in [Precision::Bf16, Precision::Fp16] {
            for aspect in JUDGED.1 {
                let shape = MatrixShape { rows: JUDGED.0, cols: JUDGED.0 * aspect };
                let spectra =
                    analytic(&families, shape).with_context(|| path.display().to_string())?;
                benches.push((aspect, Bench::new(&spectra, precision, 1001), precision));
            }
        }
    }
    let compared =
        schedules.iter().map(|s| compare(s, &predictors, &benches)).collect::<Result<Vec<_>>>()?;
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&compared)?)?;
        return Ok(());
    }
    let mut figures = table([
        "set",
        "degrees",
        "slope",
        "lifts",
        "band [10⁻³, 1]",
        "band [10⁻², 1]",
        "safe σ",
        "runs",
        "one row",
        "bf16",
        "fp16",
    ]);
    let optional = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
    for c in &compared {
        figures.add_row([
            c.name.clone(),
            c.degrees.clone(),
            facts::number(c.slope),
            c.reach.map_or("never".into(), |x| format!("{x:.2e}")),
            facts::band(c.band_from_1e_3),
            facts::band(c.band_from_1e_2),
            facts::number(c.safe_sigma),
            c.runs.clone(),
            c.one_row_bf16.map_or("-".into(), |(low, high)| match high {
                h if h < 100.0 => format!("{low:.2} to {high:.2}"),
                _ => "diverges".into(),
            }),
            optional(c.error_bf16),
            optional(c.error_fp16),
        ]);
    }
    writeln!(stdout, "{figures}\n{LEGEND}")?;
    if !benches.is_empty() {
        let mut judged = table([
            "set",
            "n³ 1:1",
            "n³ 4:1",
            "n³ 16:1",
            "bf16 1:1",
            "bf16 4:1",
            "bf16 16:1",
            "fp16 1:1",
            "fp16 4:1",
            "fp16 16:1",
        ]);
        for c in &compared {
            let mut row = vec![c.name.clone()];
            row.extend(c.judged[..3].iter().map(|j| format!("{:.1}", j.cost)));
            row.extend(c.judged.iter().map(|j| optional(j.worst)));
            judged.add_row(row);
        }
        writeln!(
            stdout,
            "{judged}\nworst relative distance to the polar factor over the families held out, measured at short side {}, \
             standard form, rounded at every store",
            JUDGED.0
        )?;
    }
    Ok(())
}

fn compare(
    schedule: &CoefficientSchedule,
    predictors: &[Predictor],
    benches: &[(usize, Bench, Precision)],
) -> Result<Compared> {
    let runnable = |precision: Precision| schedule.for_precision(precision.unit_roundoff()).ok();
    let predicted = |precision: Precision| -> Result<Option<f64>> {
        let Some((schedule, _)) = runnable(precision) else { return Ok(None) };
        let recipe = Recipe::new(&schedule, &Method::Standard)?;
        let errors: Option<Vec<f64>> = predictors
            .iter()
            .map(|p| p.predict(&schedule, &recipe, Some(precision)).ok().map(|p| p.to_composition))
            .collect();
        Ok(errors.map(|e| e.into_iter().fold(0.0, f64::max)))
    };
    let bf16 = runnable(Precision::Bf16);
    let one_row = match &bf16 {
        Some((schedule, _)) => Some(rounded_image(schedule, &Method::Standard, Precision::Bf16)?),
        None => None,
    };
    let judged = benches
        .iter()
        .map(|(aspect, bench, precision)| {
            let measured = runnable(*precision)
                .and_then(|(schedule, _)| bench.measure(&schedule, &Method::Standard).ok());
            Ok(Judged {
                precision: precision.name(),
                aspect: *aspect,
                cost: schedule.gemm_cost(&Method::Standard, *aspect as f64)?.symmetric,
                worst: measured.as_ref().map(crate::tune::Measured::worst),
                mean: measured.as_ref().map(crate::tune::Measured::mean),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Compared {
        name: schedule.name().to_owned(),
        degrees: facts::Facts::of(schedule)?.degrees_in_short(),
        slope: schedule.slope(),
        reach: schedule.reach(0.7),
        band_from_1e_3: schedule.image(1e-3, 1.0),
        band_from_1e_2: schedule.image(1e-2, 1.0),
        safe_sigma: schedule.safe_sigma(),
        runs: match &bf16 {
            Some((_, None)) => "raw".into(),
            Some((_, Some(safety))) => safety.to_string(),
            None => "refused".into(),
        },
        one_row_bf16: one_row.map(|(low, high)| (low, high.min(f64::MAX))),
        error_bf16: predicted(Precision::Bf16)?,
        error_fp16: predicted(Precision::Fp16)?,
        judged,
        source: schedule.source().to_owned(),
    })
}
