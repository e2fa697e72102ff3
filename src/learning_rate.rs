//! Ready-made learning-rate schedules: the factor a step multiplies every group's lr with.

use crate::error::{Error, Result};

/// A learning-rate schedule as a factor of the step number; pass it as [`StepOptions::lr_factor`](crate::StepOptions).
///
/// ```
/// use muon_cuda::LrSchedule;
/// let schedule = LrSchedule::linear(10, 100)?;
/// assert_eq!(schedule.factor(4), 0.5);    // fifth of ten warm-up steps
/// assert_eq!(schedule.factor(9), 1.0);
/// assert_eq!(schedule.factor(55), 0.5);   // half-way down
/// assert_eq!(schedule.factor(100), 0.0);
/// # Ok::<(), muon_cuda::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LrSchedule {
    shape: Shape,
    warmup: u64,
    total: u64,
    /// Factor at the end.
    floor: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Constant,
    Linear,
    Cosine,
}

impl LrSchedule {
    /// Factor 1 at every step.
    #[must_use]
    pub fn constant() -> Self {
        Self { shape: Shape::Constant, warmup: 0, total: 0, floor: 1.0 }
    }

    /// Rises linearly to 1 over `warmup` steps, then falls linearly to 0 at step `total`.
    ///
    /// # Errors
    /// `warmup >= total`.
    pub fn linear(warmup: u64, total: u64) -> Result<Self> {
        Self::new(Shape::Linear, warmup, total)
    }

    /// Rises linearly to 1 over `warmup` steps, then falls along half a cosine to 0 at step `total`.
    ///
    /// # Errors
    /// `warmup >= total`.
    pub fn cosine(warmup: u64, total: u64) -> Result<Self> {
        Self::new(Shape::Cosine, warmup, total)
    }

    fn new(shape: Shape, warmup: u64, total: u64) -> Result<Self> {
        if warmup >= total {
            return Err(Error::invalid_config(format!(
                "learning-rate schedule: warm-up must end before the total of {total} steps, found {warmup}"
            )));
        }
        Ok(Self { shape, warmup, total, floor: 0.0 })
    }

    /// The same schedule ending at `floor` (a fraction of the peak) instead of 0.
    ///
    /// # Errors
    /// `floor` outside `[0, 1]`.
    pub fn with_floor(mut self, floor: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&floor) {
            return Err(Error::invalid_config(format!(
                "learning-rate schedule: floor must be in [0, 1], found `{floor}`"
            )));
        }
        self.floor = floor;
        Ok(self)
    }

    /// The factor for step `step`, counted from 0; after the last step the floor.
    #[must_use]
    pub fn factor(&self, step: u64) -> f64 {
        if self.shape == Shape::Constant {
            return 1.0;
        }
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let done = (step - self.warmup) as f64 / (self.total - self.warmup) as f64;
        let left = match self.shape {
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
            _ => 1.0 - done.min(1.0),
        };
        self.floor + (1.0 - self.floor) * left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_at_the_corners() {
        assert_eq!(LrSchedule::constant().factor(u64::MAX), 1.0);
        let c = LrSchedule::cosine(4, 104).unwrap().with_floor(0.1).unwrap();
        assert_eq!(c.factor(0), 0.25);
        assert_eq!(c.factor(3), 1.0);
        assert_eq!(c.factor(4), 1.0);
        // Half-way: the cosine is zero up to the rounding of π/2.
        assert!((c.factor(54) - 0.55).abs() < 1e-15);
        assert!((c.factor(104) - 0.1).abs() < 1e-15 && (c.factor(u64::MAX) - 0.1).abs() < 1e-15);
        let l = LrSchedule::linear(0, 10).unwrap();
        assert_eq!((l.factor(0), l.factor(5), l.factor(11)), (1.0, 0.5, 0.0));
    }

    #[test]
    fn refuses_schedules_that_cannot_be_followed() {
        for (w, t) in [(0, 0), (5, 5), (6, 5)] {
            assert!(LrSchedule::linear(w, t).unwrap_err().is_invalid_config());
        }
        for floor in [-0.1, 1.1, f64::NAN] {
            assert!(LrSchedule::cosine(0, 1).unwrap().with_floor(floor).is_err());
        }
    }
}
