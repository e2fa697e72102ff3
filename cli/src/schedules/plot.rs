//! p∘…∘p over log σ: one line for every number of iterations so far.

use muon_cuda::CoefficientSchedule;

use super::facts::{Facts, band, number};
use crate::chart::{Axis, Chart, Line, PALETTE, Scale, Weight, blend};

/// Highest result shown: what diverges runs along the upper edge.
const HIGHEST: f64 = 100.0;
/// Points of each line; the chart is about 800 units wide.
const POINTS: u32 = 1200;

/// Every partial composition from σ = 10⁻⁴ to 1.
pub(crate) fn chart(schedule: &CoefficientSchedule, facts: &Facts) -> Chart {
    let count = schedule.polynomials().len();
    let mut values: Vec<f64> =
        (0..=POINTS).map(|i| 10f64.powf(-4.0 + 4.0 * f64::from(i) / f64::from(POINTS))).collect();
    let sigmas = values.clone();
    let mut lines = Vec::new();
    for (i, p) in schedule.polynomials().iter().enumerate() {
        values.iter_mut().for_each(|x| *x = p.eval(*x));
        let last = i + 1 == count;
        let shade = (i + 1) as f64 / count as f64;
        lines.push(Line {
            label: if last { format!("after {count}") } else { (i + 1).to_string() },
            // From pale to full along the iterations, so that the order is visible without a legend.
            color: if last { PALETTE[0] } else { blend(PALETTE[3], 0.25 + 0.75 * shade) },
            weight: if last { Weight::Strong } else { Weight::Thin },
            points: sigmas.iter().copied().zip(values.iter().copied()).collect(),
        });
    }
    let top = lines.iter().flat_map(|l| &l.points).map(|p| p.1).fold(1.0, f64::max).min(HIGHEST);
    let lift = facts
        .lift_threshold
        .map_or("never all above 0.7".into(), |s| format!("above 0.7 from σ = {s:.1e}"));
    Chart {
        title: format!("{}: σ in [10⁻³, 1] ends in {}", facts.name, band(facts.band_from_1e_3)),
        subtitle: format!(
            "Composition of the first 1, 2, … polynomials; slope {} at 0; {lift}; shaded: 0.7 to 1.3",
            number(facts.slope)
        ),
        x: Axis::new("singular value σ after normalisation", (1e-4, 1.0), Scale::Log),
        y: Axis::new("result", (0.0, (1.05 * top).max(1.35)), Scale::Linear),
        band: Some((0.7, 1.3)),
        lines,
    }
}
