//! The tables that people read.

use super::grid::GridRow;
use super::metrics::{Metrics, Spread};
use crate::tables::{Cell, table};

/// One row an optimizer.
pub(crate) fn comparison(metrics: &Metrics<'_>, target_loss: f64) -> String {
    let mut table = table([
        "optimizer",
        "lr",
        "training loss",
        "held-out loss",
        "held-out accuracy",
        &format!("steps to loss {target_loss}"),
        "ms/step",
        "of it optimizer",
    ]);
    for (s, time) in metrics.summary.iter().zip(&metrics.timing.milliseconds_per_step) {
        table.add_row([
            Cell::new(&s.label),
            Cell::new(s.lr),
            Cell::new(loss(s.training_loss)),
            Cell::new(loss(s.held_out_loss)),
            Cell::new(percent(s.accuracy)),
            Cell::new(s.steps_to_target.map_or("not reached".into(), |n| n.to_string())),
            Cell::new(format!("{:.2}", time.step)),
            Cell::new(format!("{:.2}", time.optimizer)),
        ]);
    }
    table.to_string()
}

/// One row a learning rate, the chosen one of each optimizer marked.
pub(crate) fn grid(rows: &[GridRow]) -> String {
    let mut table = table(["optimizer", "lr", "training loss", "held-out accuracy", ""]);
    for row in rows {
        for (i, point) in row.points.iter().enumerate() {
            table.add_row([
                Cell::new(if i == 0 { row.label.as_str() } else { "" }),
                Cell::new(point.lr),
                Cell::new(loss(point.training_loss)),
                Cell::new(percent(point.accuracy)),
                Cell::new(if Some(point.lr) == row.best_lr { "best" } else { "" }),
            ]);
        }
    }
    table.to_string()
}

/// A loss with its deviation, in powers of ten.
pub(crate) fn loss(s: Spread) -> String {
    match (s.mean.is_finite(), s.deviation) {
        (false, _) => "diverged".into(),
        (true, Some(d)) => format!("{:.2e} ± {d:.1e}", s.mean),
        (true, None) => format!("{:.2e}", s.mean),
    }
}

/// A fraction with its deviation, in per cent.
pub(crate) fn percent(s: Spread) -> String {
    let mean = 100.0 * s.mean;
    s.deviation.map_or(format!("{mean:.2} %"), |d| format!("{mean:.2} ± {:.2} %", 100.0 * d))
}
