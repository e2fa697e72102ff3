//! The tables of a sweep.

use super::report::Sweep;
use super::statistics::Paired;
use crate::tables::{Cell, table};
use crate::train::metrics::Spread;
use crate::train::table::{loss, percent};

/// One row a learning rate, the best of each optimizer marked.
pub(crate) fn points(sweep: &Sweep<'_>) -> String {
    let mut table = table(["optimizer", "lr", "held-out loss", "training loss", "accuracy", ""]);
    for row in &sweep.rows {
        for (i, point) in row.points.iter().enumerate() {
            table.add_row([
                Cell::new(if i == 0 { row.label.as_str() } else { "" }),
                Cell::new(point.lr),
                Cell::new(nats(point.held_out_loss)),
                Cell::new(loss(point.training_loss)),
                Cell::new(percent(point.accuracy)),
                Cell::new(if Some(point.lr) == row.best_lr { "best" } else { "" }),
            ]);
        }
    }
    table.to_string()
}

/// One row an optimizer: at its best learning rate against the baseline at its own.
pub(crate) fn comparison(sweep: &Sweep<'_>) -> String {
    let mut table = table([
        "optimizer",
        "best lr",
        "held-out loss",
        "minus baseline",
        "95 % bound",
        "p",
        "bound, lr cross-validated",
        "verdict",
    ]);
    for row in &sweep.rows {
        let number = |x: f64| format!("{x:+.4}");
        let cell = |f: &dyn Fn(&Paired) -> String, p: &Option<Paired>| {
            Cell::new(p.as_ref().map_or_else(|| "–".to_owned(), f))
        };
        let (all, cross) = (&row.against_baseline, &row.against_baseline_cross_validated);
        table.add_row([
            Cell::new(&row.label),
            Cell::new(row.best_lr.map_or("none".into(), |lr| lr.to_string())),
            Cell::new(row.best().map_or("diverged".into(), |p| nats(p.held_out_loss))),
            cell(&|p| format!("{:+.4} ± {:.4}", p.mean, p.deviation), all),
            cell(&|p| number(p.upper), all),
            cell(&|p| format!("{:.1e}", p.p_value), all),
            cell(&|p| number(p.upper), cross),
            match all {
                _ if row.optimizer == sweep.baseline => Cell::new("baseline"),
                None => Cell::new("not comparable"),
                Some(p) if p.non_inferior => Cell::new("not inferior"),
                Some(_) => Cell::new("not shown"),
            },
        ]);
    }
    format!(
        "{table}\nminus baseline: mean ± deviation of the paired differences, nats. 95 % bound: one-sided upper bound of \
         their mean (paired t).\np: of a mean this low if the true difference were the margin, {} nats.",
        sweep.margin
    )
}

fn nats(s: Spread) -> String {
    match (s.mean.is_finite(), s.deviation) {
        (false, _) => "diverged".into(),
        (true, Some(d)) => format!("{:.4} ± {d:.4}", s.mean),
        (true, None) => format!("{:.4}", s.mean),
    }
}
