//! `muon train --lr-grid`: every optimizer at every learning rate of its grid.

use serde::Serialize;

use super::config::{Config, OptimizerConfig};
use super::defaults;
use super::metrics::Spread;
use super::sweep::journal::Final;

/// What one learning rate gave.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GridPoint {
    pub(crate) lr: f64,
    pub(crate) training_loss: Spread,
    pub(crate) accuracy: Spread,
}

/// One optimizer's grid.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GridRow {
    pub(crate) optimizer: String,
    pub(crate) label: String,
    /// Lowest mean training loss; absent if every learning rate diverged.
    pub(crate) best_lr: Option<f64>,
    pub(crate) points: Vec<GridPoint>,
}

/// The whole grid, as `lr-grid.json` has it.
#[derive(Debug, Serialize)]
pub(crate) struct Grid<'a> {
    pub(crate) format: &'static str,
    pub(crate) criterion: &'static str,
    pub(crate) config: &'a Config,
    pub(crate) optimizers: Vec<GridRow>,
}

/// Every row of the job at each of these learning rates, or without any at every one of its own grid.
pub(crate) fn rows(config: &Config, lrs: &[f64]) -> Vec<OptimizerConfig> {
    config
        .optimizers
        .iter()
        .flat_map(|row| {
            let own = defaults::of(&row.kind, &config.task).lr_grid;
            let grid = if lrs.is_empty() { own } else { lrs };
            grid.iter().map(|lr| OptimizerConfig { lr: *lr, ..row.clone() })
        })
        .collect()
}

impl<'a> Grid<'a> {
    /// Puts the record together from the results of [`rows`], in the same order.
    pub(crate) fn new(config: &'a Config, results: &[(OptimizerConfig, Vec<Final>)]) -> Self {
        let mut optimizers: Vec<GridRow> = Vec::new();
        for (row, records) in results {
            let point = GridPoint {
                lr: row.lr,
                training_loss: Spread::of(records.iter().map(Final::training_loss)),
                accuracy: Spread::of(records.iter().map(Final::accuracy)),
            };
            match optimizers.last_mut().filter(|r| r.optimizer == row.id()) {
                Some(r) => r.points.push(point),
                None => optimizers.push(GridRow {
                    optimizer: row.id(),
                    label: row.to_string(),
                    best_lr: None,
                    points: vec![point],
                }),
            }
        }
        for row in &mut optimizers {
            let finite = row.points.iter().filter(|p| p.training_loss.mean.is_finite());
            row.best_lr = finite
                .min_by(|a, b| a.training_loss.mean.total_cmp(&b.training_loss.mean))
                .map(|p| p.lr);
        }
        Self {
            format: "muon train learning-rate grid, version 1",
            criterion: "lowest mean training loss at the end over the seeds",
            config,
            optimizers,
        }
    }
}
