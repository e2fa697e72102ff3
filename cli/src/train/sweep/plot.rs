//! Held-out loss over the learning rate, a line for each optimizer.

use super::report::Sweep;
use crate::chart::{Axis, Chart, Line, PALETTE, Scale, Weight};
use crate::train::config::Config;

/// Highest loss shown, as a multiple of the lowest: what diverges runs along the upper edge.
const HIGHEST: f64 = 2.0;

/// Means over the seeds; whiskers are one standard deviation to either side.
pub(crate) fn chart(sweep: &Sweep<'_>, config: &Config) -> Chart {
    let points = || sweep.rows.iter().flat_map(|r| &r.points);
    let extreme = |pick: fn(f64, f64) -> f64, start: f64| {
        move |values: Vec<f64>| values.into_iter().filter(|v| v.is_finite()).fold(start, pick)
    };
    let (lowest, highest) = (extreme(f64::min, f64::INFINITY), extreme(f64::max, 0.0));
    // On a logarithmic axis there is no place for 0.
    let mut lrs: Vec<f64> = points().map(|p| p.lr).filter(|lr| *lr > 0.0).collect();
    lrs.sort_by(f64::total_cmp);
    lrs.dedup();
    let ends = match lrs[..] {
        [] => (0.5, 2.0),
        [first, .., last] => (first, last),
        [only] => (only, only),
    };
    let deviation = |p: &super::report::Point| p.held_out_loss.deviation.unwrap_or(0.0);
    let low = lowest(points().map(|p| p.held_out_loss.mean - deviation(p)).collect());
    let high = highest(points().map(|p| p.held_out_loss.mean + deviation(p)).collect());
    let low = if low.is_finite() { low } else { 0.0 };
    let high = high.min(HIGHEST * low.max(f64::MIN_POSITIVE)).max(low + 1e-3);
    let mut lines = Vec::new();
    for (i, row) in sweep.rows.iter().enumerate() {
        let color = PALETTE[i % PALETTE.len()];
        // A little to the side, so that whiskers at one learning rate do not hide one another.
        let aside = 1.0 + 0.012 * (i as f64 - (sweep.rows.len() as f64 - 1.0) / 2.0);
        for p in &row.points {
            let ends = [-1.0, 1.0].map(|s| (p.lr * aside, p.held_out_loss.mean + s * deviation(p)));
            let weight = Weight::Thin;
            lines.push(Line { label: String::new(), color, weight, points: ends.to_vec() });
        }
        let best = row.best().map_or("diverged".into(), |p| format!("{:.4}", p.held_out_loss.mean));
        lines.push(Line {
            label: format!("{}  {best}", row.label),
            color,
            weight: if row.optimizer == sweep.baseline { Weight::Strong } else { Weight::Normal },
            points: row.points.iter().map(|p| (p.lr * aside, p.held_out_loss.mean)).collect(),
        });
    }
    let margin = 0.05 * (high - low);
    Chart {
        title: format!("Held-out loss after {} steps", config.steps),
        subtitle: format!(
            "{}; mean ± standard deviation of {} seeds; label: at the best learning rate",
            config.task.describe(),
            config.seeds.len()
        ),
        // Every rate that was tried is named.
        x: Axis {
            named: lrs,
            ..Axis::new("peak learning rate", (ends.0 / 1.1, ends.1 * 1.1), Scale::Log)
        },
        y: Axis::new(
            "held-out loss (cross-entropy, nats)",
            (low - margin, high + margin),
            Scale::Linear,
        ),
        band: None,
        lines,
    }
}
