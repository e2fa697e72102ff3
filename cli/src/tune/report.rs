//! A study for people: the table, and the charts.

use muon_cuda::{CoefficientSchedule, Spectrum};

use super::cost::CostModel;
use super::measure::Measured;
use super::record::{Entry, Record};
use super::search::front;
use crate::args::ObjectiveName;
use crate::chart::{Axis, Chart, Line, Mark, PALETTE, Scale, Side, Weight, blend};
use crate::tables::table;

/// A column of the table: its title, what it means, and its entry for a schedule.
struct Column<'a> {
    title: String,
    meaning: &'static str,
    of: Box<dyn Fn(&Entry) -> String + 'a>,
}

/// The columns that this study fills.
fn columns(record: &Record) -> Vec<Column<'_>> {
    let optional = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.4}"));
    let settings = &record.settings;
    let mut columns = Vec::new();
    let mut column = |title: &str, meaning: &'static str, of: Box<dyn Fn(&Entry) -> String>| {
        columns.push(Column { title: title.to_owned(), meaning, of });
    };
    column("schedule", "", Box::new(|e| e.name.clone()));
    column(
        "degrees",
        "",
        Box::new(|e| {
            e.candidate.degrees.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        }),
    );
    column("method", "", Box::new(|e| e.candidate.method().to_string()));
    let (meaning, decimals) = match settings.cost {
        CostModel::Flops => (
            "n³: floating-point operations over (short side)³, one triangle of each symmetric product.",
            1,
        ),
        CostModel::Roofline(_) => (
            "µs: the bound of `muon plan` on a step on one matrix, products as executed and passes.",
            4,
        ),
    };
    column(&settings.cost.unit(), meaning, Box::new(move |e| format!("{:.decimals$}", e.cost)));
    column(
        "predicted",
        "predicted: the study's objective under rounding.",
        Box::new(move |e| optional(e.score)),
    );
    // f64 is rounded nowhere: nothing is measured.
    if settings.precision.of().is_some() {
        column(
            "polar mean",
            "polar mean, worst: relative Frobenius distance to UVᵀ, measured on one matrix for each spectrum, rounded at \
             every store.",
            Box::new(move |e| optional(e.measured.as_ref().map(Measured::mean))),
        );
        column(
            "polar worst",
            "",
            Box::new(move |e| optional(e.measured.as_ref().map(Measured::worst))),
        );
        if !settings.held_out.is_empty() {
            column(
                "held out",
                "held out: the worst on families that the search did not see.",
                Box::new(move |e| optional(e.held_out.as_ref().map(Measured::worst))),
            );
        }
    }
    column(
        "safe σ",
        "safe σ: largest start that neither flips its sign nor ends above 1.5.",
        Box::new(|e| format!("{:.3}", e.safe_sigma)),
    );
    if settings.precision.of().is_some() {
        column(
            "one row",
            "one row: what rounding can make of a single dominant row.",
            Box::new(|e| {
                e.rounded_image
                    .filter(|r| r.1 < 100.0)
                    .map_or("-".to_owned(), |(low, high)| format!("{low:.2} to {high:.2}"))
            }),
        );
    }
    columns
}

/// Tuned schedules and published ones, and what the columns mean.
pub(crate) fn print(record: &Record) -> String {
    let columns = columns(record);
    let mut table = table(columns.iter().map(|c| c.title.as_str()));
    for e in record.tuned.iter().chain(&record.published) {
        table.add_row(columns.iter().map(|c| (c.of)(e)));
    }
    let mut out = table.to_string();
    for column in columns.iter().filter(|c| !c.meaning.is_empty()) {
        out.push('\n');
        out.push_str(column.meaning);
    }
    out + "\nA dash: does not apply, or the set does not survive this precision."
}

/// Cost against score: the front of the tuned ones, all others as marks.
pub(crate) fn pareto(record: &Record) -> (Chart, Vec<Mark>) {
    let scored = |e: &Entry| e.score.filter(|s| *s > 0.0).map(|s| (e.cost, s));
    let tuned: Vec<(f64, f64)> = record.tuned.iter().filter_map(scored).collect();
    let published: Vec<(&Entry, (f64, f64))> =
        record.published.iter().filter_map(|e| Some((e, scored(e)?))).collect();
    let all = || tuned.iter().copied().chain(published.iter().map(|p| p.1));
    let most = all().map(|p| p.0).fold(1.0, f64::max);
    let (low, high) = all().fold((f64::INFINITY, 0.0f64), |(l, h), p| (l.min(p.1), h.max(p.1)));
    // A step line: with that cost to spend, this error.
    let order = front(&tuned);
    let mut points: Vec<(f64, f64)> = Vec::new();
    for i in order {
        if let Some(last) = points.last().copied() {
            points.push((tuned[i].0, last.1));
        }
        points.push(tuned[i]);
    }
    if let Some(last) = points.last().copied() {
        points.push((1.05 * most, last.1));
    }
    let mut marks: Vec<Mark> = published
        .iter()
        .map(|(e, at)| Mark {
            label: e.name.clone(),
            side: Side::Right,
            color: PALETTE[3],
            at: *at,
        })
        .collect();
    let tuned_marks = record.tuned.iter().filter_map(|e| {
        let degrees: Vec<String> = e.candidate.degrees.iter().map(ToString::to_string).collect();
        Some(Mark {
            label: degrees.join(","),
            side: Side::LowerLeft,
            color: PALETTE[0],
            at: scored(e)?,
        })
    });
    marks.extend(tuned_marks);
    let s = &record.settings;
    let chart = Chart {
        title: format!(
            "Tuned for {}, long side {} times the short one",
            s.precision.name(),
            s.aspect
        ),
        subtitle: format!(
            "Predicted {} over {} spectra against the cost of the matrix products; orange: tuned (degrees), blue: published",
            objective_in_words(s.objective),
            record.spectra.len()
        ),
        x: Axis::new(
            match s.cost {
                CostModel::Flops => "FLOPs in n³".into(),
                CostModel::Roofline(_) => {
                    format!("a step on one matrix, at least, in {}", s.cost.unit())
                }
            },
            (0.0, 1.05 * most),
            Scale::Linear,
        ),
        // Room for labels below the line.
        y: Axis::new(
            objective_in_words(s.objective),
            (low / 2.2, (high * 1.3).max(low * 1.4)),
            Scale::Log,
        ),
        band: None,
        lines: vec![Line {
            label: "tuned".into(),
            color: PALETTE[0],
            weight: Weight::Strong,
            points,
        }],
    };
    (chart, marks)
}

fn objective_in_words(objective: ObjectiveName) -> &'static str {
    match objective {
        ObjectiveName::Error => "error to the polar factor",
        ObjectiveName::Alignment => "1 − cosine with the polar factor",
        ObjectiveName::WorstCase => "worst error on the interval",
    }
}

/// Where the singular values of all spectra end, without rounding: one distribution for each schedule.
pub(crate) fn errors(schedules: &[CoefficientSchedule], spectra: &[Spectrum]) -> Chart {
    const BINS: u32 = 60;
    const RANGE: (f64, f64) = (0.0, 1.5);
    let width = (RANGE.1 - RANGE.0) / f64::from(BINS);
    let total: f64 = spectra.iter().map(|s| s.rank() as f64).sum();
    let mut highest = 0.0f64;
    let lines = schedules
        .iter()
        .enumerate()
        .map(|(i, schedule)| {
            let safety = match schedule.normalization() {
                muon_cuda::Normalization::Frobenius { safety } => safety,
                muon_cuda::Normalization::Aol => 1.0,
            };
            let mut values: Vec<f64> = spectra
                .iter()
                .flat_map(|s| s.values().iter().filter(|x| **x > 0.0))
                .map(|x| schedule.eval(x / safety))
                .collect();
            values.sort_by(f64::total_cmp);
            let mut points = Vec::new();
            let mut before = 0;
            for bin in 0..BINS {
                let end = RANGE.0 + width * f64::from(bin + 1);
                let upto = values.partition_point(|x| *x < end);
                let share = (upto - before) as f64 / total;
                before = upto;
                highest = highest.max(share);
                points.push((end - width, share));
                points.push((end, share));
            }
            Line {
                label: schedule.name().to_owned(),
                color: if i == 0 { PALETTE[0] } else { blend(PALETTE[i % PALETTE.len()], 0.8) },
                weight: if i == 0 { Weight::Strong } else { Weight::Thin },
                points,
            }
        })
        .collect();
    Chart {
        title: "Where singular values end".into(),
        subtitle: "Share of all nonzero singular values of the study's spectra, by result; exact composition".into(),
        x: Axis::new("result", RANGE, Scale::Linear),
        y: Axis::new("share", (0.0, (1.1 * highest).max(1e-3)), Scale::Linear),
        band: None,
        lines,
    }
}
