//! The score of a schedule, and what it violates.

use std::fmt;

use anyhow::Result;
use muon_cuda::coefficients::SAFE_IMAGE;
use muon_cuda::prediction::{Predictor, rounded_image};
use muon_cuda::recipe::{Method, Recipe};
use muon_cuda::{CoefficientSchedule, Precision, Spectrum};
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::args::{AggregateName, ObjectiveName};

/// Added to the score of schedules that violate something, so that any that does not is better.
const INFEASIBLE: f64 = 10.0;

/// What schedules are compared by.
#[derive(Debug)]
pub(crate) struct Objective<'a> {
    settings: &'a Settings,
    precision: Option<Precision>,
    predictors: Vec<Predictor>,
}

/// One schedule's score: less is better.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    /// Without penalty.
    pub(crate) value: f64,
    /// How far each constraint is missed, relative to its limit; zero where it is kept.
    pub(crate) missed: Missed,
}

/// Constraints in the order of [`Missed::NAMES`], with the amount each is missed by.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Missed([f64; 4]);

impl Missed {
    const NAMES: [&'static str; 4] = [
        "safe sigma (--min-safe-sigma)",
        "band (--band, --lower)",
        "slope of a Gram group (--max-slope)",
        "room for rounding (--no-rounding-safety lifts it)",
    ];

    fn total(self) -> f64 {
        self.0.iter().sum()
    }

    /// The smaller of each.
    pub(crate) fn least(self, other: Self) -> Self {
        let mut out = self;
        out.0.iter_mut().zip(other.0).for_each(|(a, b)| *a = a.min(b));
        out
    }

    /// The room for rounding was not looked at.
    pub(crate) fn before_rounding(mut self) -> Self {
        self.0[3] = f64::MAX;
        self
    }

    /// With the room for rounding of another one, if that has more.
    pub(crate) fn with_rounding(mut self, other: Self) -> Self {
        self.0[3] = self.0[3].min(other.0[3]);
        self
    }

    pub(crate) const WORST: Self = Self([f64::MAX; 4]);
}

/// The constraints that are missed.
impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Self::NAMES
            .iter()
            .zip(self.0)
            .filter(|(_, x)| (0.0..f64::MAX).contains(x) && *x > 0.0)
            .map(|(n, _)| *n)
            .collect();
        if names.is_empty() {
            return f.write_str("each alone can be kept, but not all of them at once");
        }
        f.write_str(&names.join(", "))
    }
}

impl Score {
    /// What a search minimises.
    pub(crate) fn penalised(&self) -> f64 {
        if self.feasible() { self.value } else { INFEASIBLE + self.missed.total().min(1e6) }
    }

    pub(crate) fn feasible(&self) -> bool {
        self.missed.total() == 0.0 && self.value.is_finite()
    }
}

impl<'a> Objective<'a> {
    /// Prepares the spectra.
    pub(crate) fn new(settings: &'a Settings, spectra: &[Spectrum]) -> Self {
        Self {
            settings,
            precision: settings.precision.of(),
            predictors: spectra.iter().map(Predictor::new).collect(),
        }
    }

    /// The score under rounding.
    ///
    /// # Errors
    /// A method that does not fit the schedule.
    pub(crate) fn score(&self, schedule: &CoefficientSchedule, method: &Method) -> Result<Score> {
        let missed = self.missed(schedule, method)?;
        // Its score would not be looked at.
        let value =
            if missed.total() > 0.0 { f64::INFINITY } else { self.value(schedule, method)? };
        Ok(Score { value, missed })
    }

    /// The score without rounding, for choosing among many starts.
    ///
    /// # Errors
    /// As [`Objective::score`].
    pub(crate) fn quick_score(
        &self,
        schedule: &CoefficientSchedule,
        method: &Method,
    ) -> Result<Score> {
        let missed = self.missed_exactly(schedule, method);
        let value = if self.settings.objective == ObjectiveName::WorstCase {
            self.worst_case(schedule)
        } else {
            let each = self.predictors.iter().map(|p| Ok(self.of(p.exact(schedule)?)));
            self.aggregate(&each.collect::<Result<Vec<_>>>()?)
        };
        Ok(Score { value, missed })
    }

    /// The score alone, whatever is violated.
    ///
    /// # Errors
    /// As [`Objective::score`].
    pub(crate) fn value(&self, schedule: &CoefficientSchedule, method: &Method) -> Result<f64> {
        if self.settings.objective == ObjectiveName::WorstCase {
            return Ok(self.worst_case(schedule));
        }
        Ok(self.aggregate(&self.each(schedule, method)?))
    }

    /// The score on every spectrum.
    ///
    /// # Errors
    /// As [`Objective::score`].
    pub(crate) fn each(&self, schedule: &CoefficientSchedule, method: &Method) -> Result<Vec<f64>> {
        let recipe = Recipe::new(schedule, method)?;
        self.predictors
            .iter()
            .map(|p| Ok(self.of(p.predict(schedule, &recipe, self.precision)?)))
            .collect()
    }

    fn of(&self, p: muon_cuda::prediction::Prediction) -> f64 {
        match self.settings.objective {
            ObjectiveName::Alignment => 1.0 - p.cosine,
            ObjectiveName::Error | ObjectiveName::WorstCase => p.to_polar,
        }
    }

    fn aggregate(&self, each: &[f64]) -> f64 {
        match self.settings.aggregate {
            AggregateName::Mean => each.iter().sum::<f64>() / each.len() as f64,
            // A NaN must not pass for a small number.
            AggregateName::Worst => {
                each.iter().fold(0.0, |a: f64, x| if x.is_nan() { f64::NAN } else { a.max(*x) })
            }
        }
    }

    /// Largest `|φ(σ) − 1|` on `[lower, 1]`.
    fn worst_case(&self, schedule: &CoefficientSchedule) -> f64 {
        let (min, max) = schedule.image(self.settings.lower, 1.0);
        (1.0 - min).max(max - 1.0)
    }

    /// What rounding violates as well.
    fn missed(&self, schedule: &CoefficientSchedule, method: &Method) -> Result<Missed> {
        let mut missed = self.missed_exactly(schedule, method);
        // A schedule that fails the exact checks fails this one, which costs more.
        if self.settings.rounding_safe
            && missed.total() == 0.0
            && let Some(precision) = self.precision
        {
            let (min, max) = rounded_image(schedule, method, precision)?;
            missed.0[3] = below(min, 0.0) + over(max, SAFE_IMAGE);
        }
        Ok(missed)
    }

    fn missed_exactly(&self, schedule: &CoefficientSchedule, method: &Method) -> Missed {
        let s = self.settings;
        let mut missed = Missed::default();
        let (min, max) = schedule.image(0.0, s.min_safe_sigma);
        missed.0[0] = below(min, 0.0) + over(max, SAFE_IMAGE);
        if let Some((low, high)) = s.band {
            let (min, max) = schedule.image(s.lower, 1.0);
            missed.0[1] = below(min, low) + over(max, high);
        }
        if let Some(limit) = s.max_slope {
            let sizes = match method {
                Method::Standard => vec![1; schedule.polynomials().len()],
                Method::Gram { groups } => groups.clone(),
            };
            let mut rest = schedule.polynomials();
            for size in sizes {
                let (group, after) = rest.split_at(size.min(rest.len()));
                rest = after;
                let slope: f64 = group.iter().map(muon_cuda::OddPolynomial::slope).product();
                missed.0[2] += over(slope, limit);
            }
        }
        missed
    }
}

/// How far a number lies above a limit, relative to it; positive for a NaN.
fn over(x: f64, limit: f64) -> f64 {
    if x <= limit { 0.0 } else { ((x - limit) / limit.abs().max(1e-3)).min(1e3) }
}

/// How far a number lies below a limit; positive for a NaN.
fn below(x: f64, limit: f64) -> f64 {
    if x >= limit { 0.0 } else { (limit - x).min(1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::tests::settings;
    use muon_cuda::coefficients::presets::preset;

    #[test]
    fn constraints_are_told_apart() {
        let jordan = preset("jordan").unwrap();
        let missed = |change: &dyn Fn(&mut Settings)| {
            let mut s = settings();
            change(&mut s);
            let spectra = s.spectra().unwrap();
            let score = Objective::new(&s, &spectra).score(&jordan, &Method::Standard).unwrap();
            assert_eq!(score.feasible(), score.missed.total() == 0.0, "{score:?}");
            (score.feasible(), score.missed.to_string())
        };
        assert!(missed(&|_| ()).0);
        // Jordan is safe up to 1.264 and ends in [0.47, 1.20] from 1e-3; its slopes are 3.4445.
        assert!(missed(&|s| s.min_safe_sigma = 1.26).0);
        assert!(missed(&|s| s.min_safe_sigma = 1.27).1.starts_with("safe sigma"));
        assert!(missed(&|s| s.band = Some((0.47, 1.21))).0);
        assert!(missed(&|s| s.band = Some((0.7, 1.3))).1.starts_with("band"));
        assert!(missed(&|s| s.max_slope = Some(3.5)).0);
        assert!(missed(&|s| s.max_slope = Some(3.4)).1.starts_with("slope"));
        let cans = preset("cans").unwrap();
        let mut s = settings();
        (s.min_safe_sigma, s.precision) = (1.0, crate::args::TunePrecisionName::Bf16);
        let spectra = s.spectra().unwrap();
        let score = Objective::new(&s, &spectra).score(&cans, &Method::Standard).unwrap();
        assert!(score.missed.to_string().starts_with("room for rounding"), "{score:?}");
    }

    #[test]
    fn objectives_are_what_they_say() {
        let jordan = preset("jordan").unwrap();
        let mut s = settings();
        let spectra = s.spectra().unwrap();
        let value =
            |s: &Settings| Objective::new(s, &spectra).value(&jordan, &Method::Standard).unwrap();
        let each = Objective::new(&s, &spectra).each(&jordan, &Method::Standard).unwrap();
        assert!((value(&s) - each.iter().sum::<f64>() / each.len() as f64).abs() < 1e-15);
        s.aggregate = AggregateName::Worst;
        assert_eq!(value(&s), each.iter().copied().fold(0.0, f64::max));
        s.objective = ObjectiveName::WorstCase;
        // φ([1e-3, 1]) = [0.4712, 1.2020].
        assert!((value(&s) - 0.5288).abs() < 1e-3, "{}", value(&s));
        s.objective = ObjectiveName::Alignment;
        assert!(value(&s) > 0.0 && value(&s) < 1.0);
    }

    #[test]
    fn the_slope_of_a_gram_group_is_the_product_within_it() {
        let jordan = preset("jordan").unwrap();
        // 3.4445 to the third power is 40.87, to the fifth 484.9.
        for (groups, limit, kept) in [
            (&[2, 3][..], 41.0, true),
            (&[2, 3], 40.0, false),
            (&[3, 2], 40.0, false),
            (&[2, 2, 1], 12.0, true),
            (&[5], 485.0, true),
            (&[5], 484.0, false),
        ] {
            let mut s = settings();
            s.max_slope = Some(limit);
            let spectra = s.spectra().unwrap();
            let method = Method::Gram { groups: groups.to_vec() };
            let missed = Objective::new(&s, &spectra).missed_exactly(&jordan, &method);
            assert_eq!(missed.total() == 0.0, kept, "{groups:?} {limit}: {missed:?}");
        }
    }

    /// What is minimised has the rounding of the study's precision and method in it.
    #[test]
    fn scores_grow_with_the_rounding_errors() {
        use crate::args::TunePrecisionName::{Bf16, F64, Fp16};
        let schedule = preset("polar_express_5").unwrap();
        let mut s = settings();
        s.families = vec!["gaussian".into()];
        let spectra = s.spectra().unwrap();
        let value = |precision, method: &Method| {
            let s = Settings { precision, ..s.clone() };
            Objective::new(&s, &spectra).value(&schedule, method).unwrap()
        };
        let exact = value(F64, &Method::Standard);
        let noise = |precision, method| value(precision, method).powi(2) - exact.powi(2);
        let (bf16, fp16) = (noise(Bf16, &Method::Standard), noise(Fp16, &Method::Standard));
        // First order: the noise is proportional to the roundoff, of which bf16 has eight times as much.
        assert!(bf16 > 0.0 && (bf16 / fp16 / 64.0 - 1.0).abs() < 0.01, "{bf16} {fp16}");
        let gram = noise(Bf16, &Method::Gram { groups: vec![5] });
        assert!(gram > 2.0 * bf16, "one group rounds more: {gram} {bf16}");
    }
}
