//! Default hyper-parameters and the learning-rate grids they were chosen from.
//!
//! Digits: the learning rates are the winners of
//! `muon train --lr-grid --seed 100 --seeds 5` (lowest mean training loss after 300 steps over seeds 100…104,
//! which the reported seeds 0…4 do not touch). Momentum and weight decay are on no grid, they were fixed by hand: 0.95 for gradient
//! descent and Muon alike, AdamW's and Muon's decay are PyTorch's defaults, gradient descent has none.
//! The whole grid is in docs/training.md.
//!
//! Text: Muon's learning rate is the winner of a sweep on seeds 100 and 101; the others' were fixed by hand.

use muon_cuda::Precision;

use super::config::{Kind, MuonMethod, Task};
use super::transformer::TransformerShape;

/// Coefficient schedules that are compared unless others are asked for; `exact` is the SVD. The cheapest one has
/// no room for rounding to 16 bit or tf32, where a tuned one takes its place.
pub(crate) fn schedules(precision: Precision) -> [&'static str; 5] {
    let cheapest = match precision {
        Precision::Bf16 | Precision::Tf32 => "tuned_bf16",
        Precision::Fp16 => "tuned_fp16",
        _ => "nonic3_band12",
    };
    ["classical_cubic", "jordan", "polar_express_5", cheapest, "exact"]
}

/// Learning rate of AdamW for the head and the biases under Muon; on no grid.
pub(crate) const HEAD_LR: f64 = 3e-3;

/// Default hyper-parameters of an optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Defaults {
    /// Winner of the grid.
    pub(crate) lr: f64,
    /// β, or AdamW's β₁.
    pub(crate) momentum: f64,
    /// Decoupled.
    pub(crate) weight_decay: f64,
    /// What the learning rate was chosen from.
    pub(crate) lr_grid: &'static [f64],
}

/// Widths of the perceptron's hidden layers.
pub(crate) const HIDDEN: [usize; 2] = [128, 128];

/// Dimensions of the transformer: 0.13 million parameters, some seconds a run on one core.
pub(crate) const TRANSFORMER: TransformerShape =
    TransformerShape { width: 64, layers: 2, heads: 2, context: 64 };

/// Samples, or windows of text, a step.
pub(crate) fn batch_size(task: &Task) -> usize {
    match task {
        Task::Digits { .. } => 128,
        Task::Text { .. } => 16,
    }
}

const MUON_GRID: &[f64] = &[0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2];

/// Defaults of an optimizer; a schedule of the user's own has those of the nearest relative.
pub(crate) fn of(kind: &Kind, task: &Task) -> Defaults {
    match task {
        Task::Digits { .. } => digits(kind),
        Task::Text { .. } => text(kind),
    }
}

fn digits(kind: &Kind) -> Defaults {
    let muon = |lr| Defaults { lr, momentum: 0.95, weight_decay: 0.1, lr_grid: MUON_GRID };
    match kind {
        Kind::GradientDescent => Defaults {
            lr: 0.2,
            momentum: 0.95,
            weight_decay: 0.0,
            lr_grid: &[0.02, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5],
        },
        Kind::AdamW => Defaults {
            lr: 0.07,
            momentum: 0.9,
            weight_decay: 0.01,
            lr_grid: &[0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2],
        },
        Kind::Muon { method: MuonMethod::Polynomials { name, .. } }
            if name == "classical_cubic" =>
        {
            muon(0.05)
        }
        Kind::Muon { .. } => muon(0.03),
    }
}

fn text(kind: &Kind) -> Defaults {
    match kind {
        Kind::GradientDescent => Defaults {
            lr: 0.1,
            momentum: 0.95,
            weight_decay: 0.0,
            lr_grid: &[0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
        },
        Kind::AdamW => Defaults {
            lr: 0.005,
            momentum: 0.9,
            weight_decay: 0.01,
            lr_grid: &[0.001, 0.002, 0.005, 0.01, 0.02],
        },
        Kind::Muon { .. } => Defaults {
            lr: 0.03,
            momentum: 0.95,
            weight_decay: 0.1,
            lr_grid: &[0.005, 0.01, 0.02, 0.03, 0.05],
        },
    }
}
