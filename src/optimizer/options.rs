//! What a step takes besides the tensors, and what it reports.

use serde::{Deserialize, Serialize};

use crate::device::StepRecord;
use crate::error::Result;
use crate::limits;

/// Inputs of one step besides the tensors. In a file the names are those of the fields; what is absent is the default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepOptions {
    /// Multiplies every group's learning rate; see [`LrSchedule`](crate::LrSchedule). Default 1.
    pub lr_factor: f64,
    /// Multiplies every gradient, for trainers that scale their loss; a positive normal f32. Default 1.
    pub inverse_loss_scale: f64,
    /// Whether the trainer found an overflow: the whole step is skipped before any state is touched. Default false.
    pub found_non_finite: FoundNonFinite,
    /// Scales all gradients down so that their global norm is at most this. The norm is that of all matrices under the Muon
    /// rule and all tensors under AdamW whose gradient is finite; the others are left out, and skipped. `f64::MAX` measures the norm and
    /// clips nothing. Default none.
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
        limits::rate("lr_factor", self.lr_factor)?;
        limits::positive("inverse_loss_scale", self.inverse_loss_scale)?;
        self.clip_norm.map_or(Ok(()), |norm| limits::limit("clip_norm", norm))
    }
}

/// What a step did. A device that works on after [`Muon::step`](crate::Muon::step) has returned knows some of it later:
/// [`Muon::last_step`](crate::Muon::last_step) waits for it and gives the whole report.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepReport {
    /// Matrices that were orthogonalized and added to their parameters. As long as `skipped_matrices` is `None`: those that
    /// the device was given.
    pub orthogonalized: usize,
    /// Tensors that AdamW stepped. As long as `skipped_adamw` is `None`: those that the device was given.
    pub adamw: usize,
    /// Registered parameters without a gradient in this step, left untouched.
    pub untouched: usize,
    /// Whether the loss scaler's verdict skipped the whole step.
    pub skipped: bool,
    /// Matrices that were skipped: their gradient, direction or update was not finite. [`Muon::counters`](crate::Muon::counters)
    /// tells which. `None` until the device has finished.
    pub skipped_matrices: Option<usize>,
    /// Tensors under AdamW that were skipped. `None` until the device has finished.
    pub skipped_adamw: Option<usize>,
    /// Norm of the gradients before they were clipped, after the inverse loss scale, of what
    /// [`StepOptions::clip_norm`] says. `None` without it, since nothing else needs the norm, and until the device has finished.
    pub gradient_norm: Option<f64>,
    /// What clipping multiplied the gradients with, at most 1; 1 without [`StepOptions::clip_norm`]. `None` until the device
    /// has finished.
    pub clip_factor: Option<f64>,
}

impl StepReport {
    /// Whether nothing in it waits for the device.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.skipped_matrices.is_some()
    }

    /// A step that the loss scaler's verdict skipped.
    pub(crate) fn of_skipped_step(untouched: usize) -> Self {
        Self { skipped: true, untouched, ..Self::default() }
            .completed(&StepRecord::default(), false)
    }

    /// With what the device found out; `clipped` says whether the gradients were.
    pub(crate) fn completed(self, record: &StepRecord, clipped: bool) -> Self {
        // A device does not count what it was given nothing of.
        let skipped =
            |given: usize, counted: u64| usize::try_from(counted).unwrap_or(usize::MAX).min(given);
        let skipped_matrices = skipped(self.orthogonalized, record.skipped_matrices);
        let skipped_adamw = skipped(self.adamw, record.skipped_adamw);
        Self {
            orthogonalized: self.orthogonalized - skipped_matrices,
            adamw: self.adamw - skipped_adamw,
            skipped_matrices: Some(skipped_matrices),
            skipped_adamw: Some(skipped_adamw),
            gradient_norm: clipped.then_some(record.gradient_norm),
            clip_factor: Some(if clipped { record.clip_factor } else { 1.0 }),
            ..self
        }
    }
}
