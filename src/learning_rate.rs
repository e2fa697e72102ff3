//! Ready-made learning-rate schedules: the factor a step multiplies every group's lr with.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A learning-rate schedule as a factor of the step number; pass it as [`StepOptions::lr_factor`](crate::StepOptions).
///
/// With `t` the step from 0, `w` the warm-up steps, `s` the step at which the decay starts, `T` the total and `f` the floor:
///
/// ```text
/// t < w        (t + 1)/w
/// w ≤ t < s    1
/// s ≤ t        f + (1 − f)·d((t − s)/(T − s)),  and f from step T on
///
/// d(x) = 1 − x (linear),  (1 + cos πx)/2 (cosine),  1 − √x (one_minus_sqrt)
/// ```
///
/// [`linear`](Self::linear) and [`cosine`](Self::cosine) decay from the end of the warm-up on (`s = w`),
/// [`warmup_stable_decay`](Self::warmup_stable_decay) over its last steps.
///
/// ```
/// use muon_cuda::{AdamWRule, Cpu, LrSchedule, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor};
/// let schedule = LrSchedule::warmup_stable_decay(10, 20, 100)?;
/// assert_eq!(schedule.factor(4), 0.5);    // fifth of ten warm-up steps
/// assert_eq!(schedule.factor(79), 1.0);
/// assert_eq!(schedule.factor(90), 0.5);   // half-way down
/// assert_eq!(schedule.factor(100), 0.0);
/// assert_eq!(
///     schedule.to_string(),
///     "linear warm-up over 10 steps, constant to step 80, linear decay to 0 at step 100"
/// );
///
/// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
/// let hidden = muon.add_group("hidden", MuonRule::default())?;
/// let id = muon.add_param(hidden, ParamSpec::new("w", &[2, 3]))?;
/// let (mut param, grad) = (vec![1.0f32; 6], vec![0.5f32; 6]);
/// for step in 0..3 {
///     let options = StepOptions { lr_factor: schedule.factor(step), ..StepOptions::default() };
///     muon.step(&options, &mut [StepTensor::new(id, &mut param, &grad)])?;
/// }
/// # Ok::<(), muon_cuda::Error>(())
/// ```
///
/// In files it is a table with its `kind`, and is checked as by hand when it is read; a function cannot be written:
///
/// ```
/// use muon_cuda::LrSchedule;
/// let text = r#"{"kind": "warmup_stable_decay", "warmup": 10, "decay": 20, "total": 100}"#;
/// let schedule: LrSchedule = serde_json::from_str(text)?;
/// assert_eq!(schedule, LrSchedule::warmup_stable_decay(10, 20, 100)?);
/// assert!(serde_json::from_str::<LrSchedule>(&text.replace("20", "95")).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Written")]
pub struct LrSchedule(Shape);

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Constant,
    Ramps(Ramps),
    Points { course: Course, points: Vec<(u64, f64)> },
    Function(Function),
}

/// Up, along, and down.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ramps {
    warmup: u64,
    /// Step at which the decay starts; at least `warmup`, below `total`.
    start: u64,
    total: u64,
    decay: Decay,
    /// Factor at the end.
    floor: f64,
}

/// How a schedule falls; `x` from 0 at the start of the decay to 1 at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// `1 − x` (default).
    #[default]
    Linear,
    /// `(1 + cos πx)/2`.
    Cosine,
    /// `1 − √x`: steep at first (arXiv 2405.18392).
    OneMinusSqrt,
}

impl Decay {
    fn left(self, x: f64) -> f64 {
        match self {
            Self::Linear => 1.0 - x,
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
            Self::OneMinusSqrt => 1.0 - x.sqrt(),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Linear => "linear decay",
            Self::Cosine => "cosine decay",
            Self::OneMinusSqrt => "1 - sqrt decay",
        }
    }
}

/// What a schedule of points does between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Linear,
    Constant,
}

/// The caller's function, with a name for people.
#[derive(Clone)]
struct Function {
    name: String,
    call: Arc<dyn Fn(u64) -> f64 + Send + Sync>,
}

impl PartialEq for Function {
    /// Whether it is the same function, not one like it.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.call, &other.call)
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An error about schedules.
fn refused(message: impl fmt::Display) -> Error {
    Error::invalid_config(format!("learning-rate schedule: {message}"))
}

impl LrSchedule {
    /// Factor 1 at every step.
    #[must_use]
    pub fn constant() -> Self {
        Self(Shape::Constant)
    }

    /// Rises linearly to 1 over `warmup` steps, then falls linearly to 0 at step `total`.
    ///
    /// # Errors
    /// `warmup >= total`.
    pub fn linear(warmup: u64, total: u64) -> Result<Self> {
        Self::ramps(warmup, None, total, Decay::Linear)
    }

    /// Rises linearly to 1 over `warmup` steps, then falls along half a cosine to 0 at step `total`.
    ///
    /// # Errors
    /// `warmup >= total`.
    pub fn cosine(warmup: u64, total: u64) -> Result<Self> {
        Self::ramps(warmup, None, total, Decay::Cosine)
    }

    /// Rises linearly to 1 over `warmup` steps, stays there, and falls linearly to 0 over the last `decay` of `total` steps.
    ///
    /// A run can be made longer before its decay has begun: take the schedule of the new total.
    ///
    /// # Errors
    /// No step of decay; warm-up and decay that are longer than `total` together.
    ///
    /// # Sources
    /// MiniCPM, arXiv 2404.06395.
    pub fn warmup_stable_decay(warmup: u64, decay: u64, total: u64) -> Result<Self> {
        if decay == 0 {
            return Err(refused(
                "the decay of warmup_stable_decay takes at least 1 step, found 0; without one use `piecewise_linear`",
            ));
        }
        Self::ramps(warmup, Some(decay), total, Decay::Linear)
    }

    /// `decay`: its steps, or all that the warm-up leaves.
    fn ramps(warmup: u64, steps: Option<u64>, total: u64, decay: Decay) -> Result<Self> {
        if warmup >= total {
            return Err(refused(format!(
                "warm-up must end before the total of {total} steps, found {warmup}"
            )));
        }
        let start = match steps {
            None => warmup,
            Some(steps) => total.checked_sub(steps).filter(|start| *start >= warmup).ok_or_else(
                || {
                    refused(format!(
                        "warm-up and decay must fit into the total of {total} steps, found {warmup} and {steps}"
                    ))
                },
            )?,
        };
        Ok(Self(Shape::Ramps(Ramps { warmup, start, total, decay, floor: 0.0 })))
    }

    /// Straight lines between points of step and factor; the first factor before them, the last behind them.
    ///
    /// ```
    /// use muon_cuda::LrSchedule;
    /// let schedule = LrSchedule::piecewise_linear([(0, 0.1), (10, 1.0), (60, 1.0), (100, 0.0)])?;
    /// assert_eq!((schedule.factor(0), schedule.factor(30), schedule.factor(80)), (0.1, 1.0, 0.5));
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    ///
    /// # Errors
    /// No point; steps that do not increase; a factor that is negative or not finite.
    pub fn piecewise_linear(points: impl IntoIterator<Item = (u64, f64)>) -> Result<Self> {
        Self::points(Course::Linear, points)
    }

    /// The factor of the latest point of step and factor; the first factor before them.
    ///
    /// ```
    /// use muon_cuda::LrSchedule;
    /// let schedule = LrSchedule::piecewise_constant([(0, 1.0), (60, 0.1), (80, 0.01)])?;
    /// assert_eq!((schedule.factor(59), schedule.factor(60), schedule.factor(1000)), (1.0, 0.1, 0.01));
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    ///
    /// # Errors
    /// No point; steps that do not increase; a factor that is negative or not finite.
    pub fn piecewise_constant(points: impl IntoIterator<Item = (u64, f64)>) -> Result<Self> {
        Self::points(Course::Constant, points)
    }

    fn points(course: Course, points: impl IntoIterator<Item = (u64, f64)>) -> Result<Self> {
        let points: Vec<_> = points.into_iter().collect();
        if points.is_empty() {
            return Err(refused("expected at least one point of step and factor, found none"));
        }
        for pair in points.windows(2) {
            if pair[0].0 >= pair[1].0 {
                return Err(refused(format!(
                    "the steps of its points must increase, found {} and then {}",
                    pair[0].0, pair[1].0
                )));
            }
        }
        if let Some((step, factor)) = points.iter().find(|(_, f)| !(f.is_finite() && *f >= 0.0)) {
            return Err(refused(format!(
                "expected finite factors of at least 0, found `{factor}` at step {step}"
            )));
        }
        Ok(Self(Shape::Points { course, points }))
    }

    /// Whatever a function of the step says.
    ///
    /// What it returns is checked where it is used: [`Muon::step`](crate::Muon::step) refuses a factor that is negative or not finite
    /// before anything is changed.
    ///
    /// ```
    /// use muon_cuda::LrSchedule;
    /// let schedule = LrSchedule::from_fn("inverse root", |step| 1.0 / (1.0 + step as f64).sqrt());
    /// assert_eq!(schedule.factor(3), 0.5);
    /// assert_eq!(schedule.to_string(), "inverse root");
    /// ```
    #[must_use]
    pub fn from_fn(
        name: impl Into<String>,
        factor: impl Fn(u64) -> f64 + Send + Sync + 'static,
    ) -> Self {
        Self(Shape::Function(Function { name: name.into(), call: Arc::new(factor) }))
    }

    /// The same schedule ending at `floor` (a fraction of the peak) instead of 0.
    ///
    /// # Errors
    /// `floor` outside `[0, 1]`; a schedule without a decay.
    pub fn with_floor(mut self, floor: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&floor) {
            return Err(refused(format!("floor must be in [0, 1], found `{floor}`")));
        }
        self.decaying("a floor")?.floor = floor;
        Ok(self)
    }

    /// The same schedule falling in another way.
    ///
    /// # Errors
    /// A schedule without a decay.
    pub fn with_decay(mut self, decay: Decay) -> Result<Self> {
        self.decaying("another decay")?.decay = decay;
        Ok(self)
    }

    fn decaying(&mut self, what: &str) -> Result<&mut Ramps> {
        let words = self.to_string();
        match &mut self.0 {
            Shape::Ramps(ramps) => Ok(ramps),
            _ => Err(refused(format!(
                "{what} is for linear, cosine and warmup_stable_decay, found `{words}`"
            ))),
        }
    }

    /// The factor for step `step`, counted from 0.
    #[must_use]
    pub fn factor(&self, step: u64) -> f64 {
        match &self.0 {
            Shape::Constant => 1.0,
            Shape::Ramps(ramps) => ramps.factor(step),
            Shape::Points { course, points } => between(*course, points, step),
            Shape::Function(function) => (function.call)(step),
        }
    }
}

impl Ramps {
    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let done = step.saturating_sub(self.start) as f64 / (self.total - self.start) as f64;
        self.floor + (1.0 - self.floor) * self.decay.left(done.min(1.0))
    }
}

/// The factor of points, of which there is at least one.
fn between(course: Course, points: &[(u64, f64)], step: u64) -> f64 {
    let next = points.partition_point(|(at, _)| *at <= step);
    let last = points.get(next.saturating_sub(1)).copied().unwrap_or((0, 1.0));
    match (course, points.get(next)) {
        (Course::Linear, Some(next)) if step > last.0 => {
            let part = (step - last.0) as f64 / (next.0 - last.0) as f64;
            last.1 + (next.1 - last.1) * part
        }
        _ => last.1,
    }
}

impl fmt::Display for LrSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Shape::Constant => f.write_str("constant"),
            Shape::Ramps(Ramps { warmup, start, total, decay, floor }) => {
                if *warmup > 0 {
                    write!(f, "linear warm-up over {warmup} steps, ")?;
                }
                if start > warmup {
                    write!(f, "constant to step {start}, ")?;
                }
                write!(f, "{} to {floor} at step {total}", decay.words())
            }
            Shape::Points { course, points } => {
                f.write_str(match course {
                    Course::Linear => "straight lines between",
                    Course::Constant => "steps of",
                })?;
                for (i, (step, factor)) in points.iter().enumerate() {
                    write!(f, "{} {factor} at step {step}", if i == 0 { "" } else { "," })?;
                }
                Ok(())
            }
            Shape::Function(function) => f.write_str(&function.name),
        }
    }
}

/// A schedule in a file.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Written {
    Constant {},
    Linear {
        warmup: u64,
        total: u64,
        #[serde(default)]
        floor: f64,
    },
    Cosine {
        warmup: u64,
        total: u64,
        #[serde(default)]
        floor: f64,
    },
    WarmupStableDecay {
        warmup: u64,
        decay: u64,
        total: u64,
        #[serde(default)]
        floor: f64,
        #[serde(default)]
        shape: Decay,
    },
    PiecewiseLinear {
        points: Vec<(u64, f64)>,
    },
    PiecewiseConstant {
        points: Vec<(u64, f64)>,
    },
}

impl TryFrom<Written> for LrSchedule {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Constant {} => Ok(Self::constant()),
            Written::Linear { warmup, total, floor } => {
                Self::linear(warmup, total)?.with_floor(floor)
            }
            Written::Cosine { warmup, total, floor } => {
                Self::cosine(warmup, total)?.with_floor(floor)
            }
            Written::WarmupStableDecay { warmup, decay, total, floor, shape } => {
                Self::warmup_stable_decay(warmup, decay, total)?
                    .with_floor(floor)?
                    .with_decay(shape)
            }
            Written::PiecewiseLinear { points } => Self::piecewise_linear(points),
            Written::PiecewiseConstant { points } => Self::piecewise_constant(points),
        }
    }
}

impl Serialize for LrSchedule {
    /// # Errors
    /// A function.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match &self.0 {
            Shape::Constant => Written::Constant {},
            Shape::Ramps(Ramps { warmup, start, total, decay: shape, floor }) => {
                let (warmup, start, total, floor) = (*warmup, *start, *total, *floor);
                match shape {
                    Decay::Linear if start == warmup => Written::Linear { warmup, total, floor },
                    Decay::Cosine if start == warmup => Written::Cosine { warmup, total, floor },
                    shape => Written::WarmupStableDecay {
                        warmup,
                        decay: total - start,
                        total,
                        floor,
                        shape: *shape,
                    },
                }
            }
            Shape::Points { course: Course::Linear, points } => {
                Written::PiecewiseLinear { points: points.clone() }
            }
            Shape::Points { course: Course::Constant, points } => {
                Written::PiecewiseConstant { points: points.clone() }
            }
            Shape::Function(function) => {
                return Err(serde::ser::Error::custom(refused(format!(
                    "`{}` is a function, which cannot be written; use points",
                    function.name
                ))));
            }
        };
        written.serialize(serializer)
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
    fn the_stable_part_lasts_until_the_decay_begins() {
        let wsd = LrSchedule::warmup_stable_decay(5, 20, 100).unwrap();
        assert_eq!((wsd.factor(0), wsd.factor(4)), (0.2, 1.0));
        assert!((4..=80).all(|step| wsd.factor(step) == 1.0));
        assert_eq!((wsd.factor(85), wsd.factor(95)), (0.75, 0.25));
        assert!([100, 101, u64::MAX].iter().all(|step| wsd.factor(*step) == 0.0));
        let root = wsd.clone().with_decay(Decay::OneMinusSqrt).unwrap().with_floor(0.5).unwrap();
        // A quarter of the way down half of it is gone, of the half above the floor.
        assert_eq!((root.factor(85), root.factor(100)), (0.75, 0.5));
        let cosine = wsd.with_decay(Decay::Cosine).unwrap();
        assert!((cosine.factor(90) - 0.5).abs() < 1e-15);
        // No stable part and no warm-up: the plain decay.
        let all = LrSchedule::warmup_stable_decay(0, 7, 7).unwrap();
        assert_eq!(all, LrSchedule::linear(0, 7).unwrap());
        // The ends of the numbers.
        let long = LrSchedule::warmup_stable_decay(0, 1, u64::MAX).unwrap();
        assert_eq!((long.factor(u64::MAX - 1), long.factor(u64::MAX)), (1.0, 0.0));
    }

    #[test]
    fn points_are_met_and_held_at_both_ends() {
        let points = [(3, 0.5), (5, 1.5), (9, 0.0)];
        let lines = LrSchedule::piecewise_linear(points).unwrap();
        let steps = LrSchedule::piecewise_constant(points).unwrap();
        for (step, line, constant) in [
            (0, 0.5, 0.5),
            (3, 0.5, 0.5),
            (4, 1.0, 0.5),
            (5, 1.5, 1.5),
            (7, 0.75, 1.5),
            (9, 0.0, 0.0),
            (u64::MAX, 0.0, 0.0),
        ] {
            assert_eq!((lines.factor(step), steps.factor(step)), (line, constant), "{step}");
        }
        let one = LrSchedule::piecewise_linear([(7, 0.25)]).unwrap();
        assert!([0, 7, 8].iter().all(|step| one.factor(*step) == 0.25));
    }

    #[test]
    fn refuses_schedules_that_cannot_be_followed() {
        let refuse = |result: Result<LrSchedule>, words: &str| {
            let e = result.unwrap_err();
            assert!(e.is_invalid_config() && e.to_string().contains(words), "{e}");
        };
        for (w, t) in [(0, 0), (5, 5), (6, 5)] {
            refuse(LrSchedule::linear(w, t), "warm-up must end before");
        }
        for floor in [-0.1, 1.1, f64::NAN] {
            refuse(LrSchedule::cosine(0, 1).unwrap().with_floor(floor), "in [0, 1]");
        }
        refuse(LrSchedule::warmup_stable_decay(5, 0, 10), "at least 1 step");
        refuse(LrSchedule::warmup_stable_decay(5, 6, 10), "found 5 and 6");
        refuse(LrSchedule::warmup_stable_decay(1, u64::MAX, 10), "must fit");
        refuse(LrSchedule::piecewise_linear([]), "found none");
        refuse(LrSchedule::piecewise_constant([(1, 1.0), (1, 2.0)]), "found 1 and then 1");
        refuse(LrSchedule::piecewise_linear([(2, 1.0), (1, 2.0)]), "found 2 and then 1");
        for factor in [-1e-9, f64::NAN, f64::INFINITY] {
            refuse(LrSchedule::piecewise_linear([(4, factor)]), "at step 4");
        }
        // What would do nothing.
        for schedule in [
            LrSchedule::constant(),
            LrSchedule::piecewise_linear([(0, 1.0)]).unwrap(),
            LrSchedule::from_fn("one", |_| 1.0),
        ] {
            refuse(schedule.clone().with_floor(0.5), "a floor is for linear");
            refuse(schedule.with_decay(Decay::Cosine), "another decay is for linear");
        }
    }

    #[test]
    fn a_function_is_equal_to_itself_alone_and_is_not_written() {
        let f = LrSchedule::from_fn("half", |_| 0.5);
        assert_eq!(f, f.clone());
        assert_ne!(f, LrSchedule::from_fn("half", |_| 0.5));
        let e = serde_json::to_string(&f).unwrap_err();
        assert!(e.to_string().contains("`half` is a function"), "{e}");
    }

    #[test]
    fn files_hold_schedules_and_are_checked_as_calls_are() {
        let wsd = LrSchedule::warmup_stable_decay(5, 20, 100).unwrap();
        for schedule in [
            LrSchedule::constant(),
            LrSchedule::linear(3, 10).unwrap(),
            LrSchedule::linear(3, 10).unwrap().with_decay(Decay::OneMinusSqrt).unwrap(),
            LrSchedule::cosine(0, 10).unwrap().with_floor(0.1).unwrap(),
            wsd.clone(),
            wsd.with_decay(Decay::Cosine).unwrap().with_floor(0.2).unwrap(),
            LrSchedule::piecewise_linear([(0, 0.1), (10, 1.0 / 3.0)]).unwrap(),
            LrSchedule::piecewise_constant([(0, 1.0), (u64::MAX >> 1, 0.0)]).unwrap(),
        ] {
            let json = serde_json::to_string(&schedule).unwrap();
            assert_eq!(serde_json::from_str::<LrSchedule>(&json).unwrap(), schedule, "{json}");
            let toml = toml::to_string(&schedule).unwrap();
            assert_eq!(toml::from_str::<LrSchedule>(&toml).unwrap(), schedule, "{toml}");
        }
        for (text, words) in [
            ("kind = 'constant'\nfloor = 1.0", "unknown field `floor`"),
            ("kind = 'cosine'\nwarmup = 0\ntotal = 10\nflor = 1.0", "unknown field `flor`"),
            ("kind = 'wsd'", "unknown variant `wsd`"),
            ("kind = 'linear'\nwarmup = 10\ntotal = 10", "warm-up must end before"),
            ("kind = 'linear'\nwarmup = -1\ntotal = 10", "-1"),
            ("kind = 'piecewise_linear'\npoints = [[0, -1.0]]", "at least 0"),
        ] {
            let e = toml::from_str::<LrSchedule>(text).unwrap_err();
            assert!(e.to_string().contains(words), "{text}: {e}");
        }
    }
}
