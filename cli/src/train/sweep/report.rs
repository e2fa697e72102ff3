//! What a sweep found: every schedule at every learning rate, and each one's best against the baseline's.

use serde::Serialize;

use super::journal::Final;
use super::statistics::Paired;
use crate::train::config::{Config, OptimizerConfig};
use crate::train::metrics::Spread;

/// One optimizer at one learning rate.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Point {
    pub(crate) lr: f64,
    pub(crate) training_loss: Spread,
    pub(crate) held_out_loss: Spread,
    pub(crate) accuracy: Spread,
    /// For each seed.
    #[serde(skip)]
    pub(crate) held_out_losses: Vec<f64>,
}

/// One optimizer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) optimizer: String,
    pub(crate) label: String,
    /// Lowest mean held-out loss; absent if every learning rate diverged under some seed.
    pub(crate) best_lr: Option<f64>,
    /// At its best learning rate against the baseline at its own; absent for the baseline itself, and where
    /// one of them has none.
    pub(crate) against_baseline: Option<Paired>,
    /// The same, but with both learning rates chosen for each seed on the others, so that no loss is used to
    /// choose itself.
    pub(crate) against_baseline_cross_validated: Option<Paired>,
    pub(crate) points: Vec<Point>,
}

/// The whole sweep, as `sweep.json` has it.
#[derive(Debug, Serialize)]
pub(crate) struct Sweep<'a> {
    format: &'static str,
    criterion: &'static str,
    pub(crate) baseline: String,
    /// Nats.
    pub(crate) margin: f64,
    config: &'a Config,
    pub(crate) rows: Vec<Row>,
}

impl<'a> Sweep<'a> {
    /// Puts the record together; rows of one optimizer follow one another.
    pub(crate) fn new(
        config: &'a Config,
        results: &[(OptimizerConfig, Vec<Final>)],
        baseline: &str,
        margin: f64,
    ) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for (row, finals) in results {
            let point = Point {
                lr: row.lr,
                training_loss: Spread::of(finals.iter().map(Final::training_loss)),
                held_out_loss: Spread::of(finals.iter().map(Final::held_out_loss)),
                accuracy: Spread::of(finals.iter().map(Final::accuracy)),
                held_out_losses: finals.iter().map(Final::held_out_loss).collect(),
            };
            match rows.last_mut().filter(|r| r.optimizer == row.id()) {
                Some(r) => r.points.push(point),
                None => rows.push(Row {
                    optimizer: row.id(),
                    label: row.to_string(),
                    best_lr: None,
                    against_baseline: None,
                    against_baseline_cross_validated: None,
                    points: vec![point],
                }),
            }
        }
        for row in &mut rows {
            row.best_lr = row.best().map(|p| p.lr);
        }
        let reference = rows.iter().find(|r| r.optimizer == baseline).cloned();
        for row in rows.iter_mut().filter(|r| r.optimizer != baseline) {
            let Some(reference) = &reference else { continue };
            if let (Some(a), Some(b)) = (row.best(), reference.best()) {
                row.against_baseline = Paired::of(&a.held_out_losses, &b.held_out_losses, margin);
            }
            let (a, b) = (row.cross_validated(), reference.cross_validated());
            row.against_baseline_cross_validated = Paired::of(&a, &b, margin);
        }
        Self {
            format: "muon train sweep, version 1",
            criterion: "lowest mean held-out loss at the end over the seeds",
            baseline: baseline.to_owned(),
            margin,
            config,
            rows,
        }
    }
}

impl Row {
    /// The point of the best learning rate.
    pub(crate) fn best(&self) -> Option<&Point> {
        lowest(self.points.iter().map(|p| (p, p.held_out_loss.mean)))
    }

    /// For each seed, its loss at the learning rate that is best over the other seeds.
    fn cross_validated(&self) -> Vec<f64> {
        let seeds = self.points.first().map_or(0, |p| p.held_out_losses.len());
        (0..seeds)
            .map(|seed| {
                let others = |p: &Point| {
                    let kept = p.held_out_losses.iter().enumerate().filter(|(i, _)| *i != seed);
                    kept.map(|(_, loss)| loss).sum::<f64>()
                };
                lowest(self.points.iter().map(|p| (p, others(p))))
                    .map_or(f64::NAN, |p| p.held_out_losses[seed])
            })
            .collect()
    }
}

/// What has the lowest finite loss; the first of equals.
fn lowest<T>(items: impl Iterator<Item = (T, f64)>) -> Option<T> {
    items.filter(|i| i.1.is_finite()).min_by(|a, b| a.1.total_cmp(&b.1)).map(|i| i.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(losses: &[(f64, &[f64])]) -> Row {
        Row {
            optimizer: "x".into(),
            label: "x".into(),
            best_lr: None,
            against_baseline: None,
            against_baseline_cross_validated: None,
            points: losses
                .iter()
                .map(|(lr, losses)| {
                    let spread = Spread::of(losses.iter().copied());
                    Point {
                        lr: *lr,
                        training_loss: spread,
                        held_out_loss: spread,
                        accuracy: spread,
                        held_out_losses: losses.to_vec(),
                    }
                })
                .collect(),
        }
    }

    #[test]
    fn the_best_learning_rate_has_the_lowest_mean_and_diverges_under_no_seed() {
        let r = row(&[(0.1, &[1.0, 4.0]), (0.2, &[2.0, 2.0]), (0.3, &[0.1, f64::NAN])]);
        assert_eq!(r.best().unwrap().lr, 0.2);
        assert!(row(&[(0.1, &[f64::NAN, 1.0])]).best().is_none());
    }

    #[test]
    fn cross_validation_never_uses_a_loss_to_choose_itself() {
        // Sums over the other two, 0.1 against 0.2: without seed 0 8 and 3, without seed 1 5 and 4, without
        // seed 2 5 and 5, where the first is taken.
        let r = row(&[(0.1, &[1.0, 4.0, 4.0]), (0.2, &[3.0, 2.0, 1.0])]);
        assert_eq!(r.cross_validated(), [3.0, 2.0, 4.0]);
        // 4.5 and 3, 1.5 and 4, 5 and 5.
        let r = row(&[(0.1, &[1.0, 4.0, 0.5]), (0.2, &[3.0, 2.0, 1.0])]);
        assert_eq!(r.cross_validated(), [3.0, 4.0, 0.5]);
    }
}
