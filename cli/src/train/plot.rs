//! The loss curves.

use super::config::Task;
use super::metrics::{Metrics, RowResults};
use crate::chart::{Axis, Chart, Line, PALETTE, Scale, Weight};

/// Training loss over steps: faint the loss of each batch (first seed), strong the loss on all training
/// samples (mean over seeds, as in the table). None where no line has two points to draw.
pub(crate) fn chart(
    metrics: &Metrics<'_>,
    rows: &[RowResults<'_>],
    seeds: usize,
    task: &Task,
) -> Option<Chart> {
    let steps = rows
        .iter()
        .flat_map(|r| &r.records)
        .map(|r| r.batch_losses.len())
        .max()
        .unwrap_or(1)
        .max(1);
    let mut faint = Vec::new();
    let mut strong = Vec::new();
    for (i, (row, summary)) in rows.iter().zip(&metrics.summary).enumerate() {
        let color = PALETTE[i % PALETTE.len()];
        let Some(first) = row.records.first() else { continue };
        faint.push(Line {
            label: String::new(),
            color,
            weight: Weight::Faint,
            points: indexed(&first.batch_losses),
        });
        let points = (0..first.evaluations.len())
            .map(|e| {
                let losses = row.records.iter().map(|r| r.evaluations[e].training_loss);
                let mean = losses.sum::<f64>() / row.records.len() as f64;
                (first.evaluations[e].step as f64, mean)
            })
            .collect();
        strong.push(Line {
            label: format!("{}  {:.1e}", summary.label, summary.training_loss.mean),
            color,
            weight: if summary.is_muon { Weight::Strong } else { Weight::Normal },
            points,
        });
    }
    let positive = |lines: &[Line]| -> Vec<f64> {
        let ys = lines.iter().flat_map(|l| &l.points).map(|p| p.1);
        ys.filter(|y| y.is_finite() && *y > 0.0).collect()
    };
    if !strong.iter().any(|line| positive(std::slice::from_ref(line)).len() > 1) {
        return None;
    }
    // The strong lines decide the range; a batch loss below it runs along the edge.
    let ys = positive(&strong);
    let low = ys.iter().copied().fold(f64::INFINITY, f64::min).clamp(1e-12, 1.0);
    let high = ys.iter().copied().fold(0.0, f64::max).clamp(10.0 * low, 1e3);
    let average = if seeds == 1 {
        "strong: all training data".to_owned()
    } else {
        format!("strong: all training data, mean of {seeds} seeds")
    };
    faint.extend(strong);
    Some(Chart {
        title: metrics.finding.clone(),
        subtitle: format!(
            "{}, same split, initialisation and batches; {average}; faint: each batch",
            match task {
                Task::Digits { .. } => "Handwritten digits",
                Task::Text { .. } => "Next byte of a text",
            }
        ),
        x: Axis::new("step", (0.0, steps as f64), Scale::Linear),
        y: Axis::new("training loss (cross-entropy, nats)", (0.7 * low, 1.3 * high), Scale::Log),
        band: None,
        lines: faint,
    })
}

fn indexed(values: &[f64]) -> Vec<(f64, f64)> {
    values.iter().enumerate().map(|(i, v)| (i as f64, *v)).collect()
}
