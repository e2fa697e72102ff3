//! What a step takes besides the tensors, and what it reports.

use serde::{Deserialize, Serialize};

use crate::config::validate_lr;
use crate::error::{Error, Result, ResultExt};

/// Inputs of one step besides the tensors. In a file the names are those of the fields; what is absent is the default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepOptions {
    /// Multiplies every group's learning rate; see [`LrSchedule`](crate::LrSchedule). Default 1.
    pub lr_factor: f64,
    /// Multiplies every gradient, for trainers that scale their loss. Default 1.
    pub inverse_loss_scale: f64,
    /// Whether the trainer found an overflow: the whole step is skipped before any state is touched. Default false.
    pub found_non_finite: FoundNonFinite,
    /// Scales all gradients down so that their global norm is at most this. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
}

/// The loss scaler's verdict about a step's gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundNonFinite {
    /// The step is taken (default).
    #[default]
    No,
    /// The whole step is skipped: nothing changes, step counts included.
    Yes,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self {
            lr_factor: 1.0,
            inverse_loss_scale: 1.0,
            found_non_finite: FoundNonFinite::No,
            clip_norm: None,
        }
    }
}

impl StepOptions {
    pub(super) fn validate(&self) -> Result<()> {
        validate_lr(self.lr_factor).context(|| "lr_factor")?;
        let positive = |name: &str, x: f64| {
            if x > 0.0 && x.is_finite() {
                return Ok(());
            }
            Err(Error::invalid_config(format!(
                "{name}: expected a positive finite number, found `{x}`"
            )))
        };
        positive("inverse_loss_scale", self.inverse_loss_scale)?;
        self.clip_norm.map_or(Ok(()), |norm| positive("clip_norm", norm))
    }
}

/// What a step did, as far as the host knows when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepReport {
    /// Matrices that went through orthogonalization. A device may still skip those that are not finite: see
    /// [`Muon::counters`](crate::Muon::counters).
    pub orthogonalized: usize,
    /// Tensors under the AdamW rule.
    pub adamw: usize,
    /// Registered parameters without a gradient in this step, left untouched.
    pub untouched: usize,
    /// Whether the loss scaler's verdict skipped the whole step.
    pub skipped: bool,
}
