//! What a schedule can tell about itself: slope, band, safe sigma, lift threshold and GEMM cost,
//! and whether its normalisation keeps it inside the range it is safe on.
//!
//! The image of an interval under a continuous map is an interval, so the image of `[lo, hi]` under
//! `p_T∘…∘p_1` is had by mapping the interval through one polynomial after the other
//! ([`OddPolynomial::image`](super::OddPolynomial::image)): exactly, without a grid.

use super::{CoefficientSchedule, Normalization, presets};
use crate::error::{Error, Result};
use crate::recipe::{Method, Op, Recipe};

/// Largest output a safe schedule may have: singular values of a useful result are near 1, and
/// every published set that diverges passes 1.5 on its way.
pub const SAFE_IMAGE: f64 = 1.5;

/// The safety a preset is run with where rounding can carry it past its own safe sigma: the factor
/// of the Polar Express paper (arXiv 2505.16932), more than the (1 + 2⁻⁸)² = 1.0078 bf16 asks for.
pub const PRESET_SAFETY: f64 = 1.01;

/// The output a singular value has to reach to count as lifted (tables of NUMERICS.md).
pub const LIFTED: f64 = 0.7;

/// Matrix products of one orthogonalization in n³ FLOPs, n the short side, a multiply-add being
/// two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GemmCost {
    /// With symmetric products formed in full.
    pub full: f64,
    /// With one triangle of symmetric products formed.
    pub symmetric: f64,
    /// Number of products.
    pub gemms: usize,
}

/// The figures a schedule is compared by; see the methods of [`CoefficientSchedule`] for each.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleProperties {
    /// Derivative of the composition at 0.
    pub slope: f64,
    /// The lower end `l` that `band` was asked for.
    pub lower: f64,
    /// Smallest and largest output on `[l, 1]`.
    pub band: (f64, f64),
    /// Largest input without a sign change and with an image of at most [`SAFE_IMAGE`].
    pub safe_sigma: f64,
    /// Smallest input that is mapped to [`LIFTED`] or more.
    pub reach: Option<f64>,
    /// Smallest input from which up to 1 the output stays at [`LIFTED`] or more.
    pub lift_threshold: Option<f64>,
}

impl CoefficientSchedule {
    /// Derivative of the composition at 0: the product of the polynomials' slopes.
    ///
    /// The gain of singular values far below the band.
    #[must_use]
    pub fn slope(&self) -> f64 {
        self.polynomials().iter().map(super::OddPolynomial::slope).product()
    }

    /// The largest absolute derivative of the composition on `[0, 1]`, at 20,001 points: how much it can amplify rounding.
    ///
    /// At least [`CoefficientSchedule::slope`]. Schedules without headroom at 1 are steeper there than at 0.
    #[must_use]
    pub fn steepest_slope(&self) -> f64 {
        (0..=20_000)
            .map(|i| {
                let at = f64::from(i) / 20_000.0;
                let (_, slope) = self
                    .polynomials()
                    .iter()
                    .fold((at, 1.0), |(x, slope), p| (p.eval(x), slope * p.derivative(x)));
                slope.abs()
            })
            .fold(0.0, f64::max)
    }

    /// `(min, max)` of the composition over the interval between `lo` and `hi`, exact up to
    /// rounding.
    #[must_use]
    pub fn image(&self, lo: f64, hi: f64) -> (f64, f64) {
        self.polynomials().iter().fold((lo, hi), |(lo, hi), p| p.image(lo, hi))
    }

    /// Largest `s` with no sign change on `(0, s]` and an image of at most [`SAFE_IMAGE`].
    ///
    /// The image of `[0, s]` grows with `s`, so bisection finds the end to the last bit. Zero if
    /// the composition falls at 0, infinite if it stays inside for every `s` up to 2⁶⁴.
    #[must_use]
    pub fn safe_sigma(&self) -> f64 {
        largest(|s| {
            let (min, max) = self.image(0.0, s);
            min >= 0.0 && max <= SAFE_IMAGE
        })
    }

    /// Smallest `σ` in `(0, 1]` that is mapped to `threshold` or more, if any is.
    ///
    /// The schedule may dip below again further up (Jordan's does: 0.68); see
    /// [`CoefficientSchedule::lift_threshold`].
    #[must_use]
    pub fn reach(&self, threshold: f64) -> Option<f64> {
        let below = |s: f64| self.image(0.0, s).1 < threshold;
        if below(1.0) { None } else { Some(bisect(0.0, 1.0, below).1) }
    }

    /// Smallest `σ` from which up to 1 the output stays at `threshold` or more, if it ends there.
    #[must_use]
    pub fn lift_threshold(&self, threshold: f64) -> Option<f64> {
        let stays = |s: f64| self.image(s, 1.0).0 >= threshold;
        if stays(1.0) { Some(bisect(0.0, 1.0, |s| !stays(s)).1) } else { None }
    }

    /// FLOPs of the matrix products in n³, for a matrix whose long side is `aspect` times the short
    /// one.
    ///
    /// `3α + 1`, `3α` and `3α + 2` for one standard iteration of degree 5, 3 and 9 (symmetric
    /// counting).
    ///
    /// # Errors
    /// An aspect ratio below 1 or not finite, or a method that [`Recipe::new`] refuses.
    pub fn gemm_cost(&self, method: &Method, aspect: f64) -> Result<GemmCost> {
        if !(aspect.is_finite() && aspect >= 1.0) {
            return Err(Error::invalid_config(format!(
                "the aspect ratio (long side over short side) must be finite and at least 1, found \
                 `{aspect}`"
            )));
        }
        let recipe = Recipe::new(self, method)?;
        let mut cost = GemmCost { full: 0.0, symmetric: 0.0, gemms: recipe.gemms() };
        for op in recipe.ops() {
            let (full, symmetric) = match op {
                Op::Gram { .. } => (2.0 * aspect, aspect),
                Op::Symmetric { .. } => (2.0, 1.0),
                Op::Apply { .. } => (2.0 * aspect, 2.0 * aspect),
                Op::AolScale { .. } => (0.0, 0.0),
            };
            cost.full += full;
            cost.symmetric += symmetric;
        }
        Ok(cost)
    }

    /// All scalar figures at once, the band on `[lower, 1]`.
    ///
    /// # Errors
    /// A lower end outside `(0, 1]`.
    pub fn properties(&self, lower: f64) -> Result<ScheduleProperties> {
        if !(lower > 0.0 && lower <= 1.0) {
            return Err(Error::invalid_config(format!(
                "the lower end of the band must lie in (0, 1], found `{lower}`"
            )));
        }
        Ok(ScheduleProperties {
            slope: self.slope(),
            lower,
            band: self.image(lower, 1.0),
            safe_sigma: self.safe_sigma(),
            reach: self.reach(LIFTED),
            lift_threshold: self.lift_threshold(LIFTED),
        })
    }

    /// Checks that the normalisation keeps every singular value inside `(0, safe_sigma]`.
    ///
    /// Dividing by `s·‖X‖_F` guarantees `σ₁ ≤ (1 + u)²/s` after two roundings with `unit_roundoff`
    /// u (the normalised iterate is rounded when it is stored, and so is the factor); AOL
    /// guarantees `σ₁ ≤ (1 + u)²` only: orthogonal rows keep `σ₁ = 1`.
    ///
    /// # Errors
    /// A safe sigma below the guarantee, with both numbers and the safety that would do; a
    /// `unit_roundoff` outside `[0, 1)`.
    pub fn check_safe(&self, unit_roundoff: f64) -> Result<()> {
        let guaranteed = guaranteed_sigma(self.normalization(), unit_roundoff)?;
        let safe = self.safe_sigma();
        if safe >= guaranteed {
            return Ok(());
        }
        let remedy = [1.01, 1.02, 1.03, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0]
            .into_iter()
            .find(|&s| {
                self.with_safety(s).is_ok_and(|schedule| schedule.safe_sigma() >= guaranteed)
            })
            .map_or_else(
                || "no input safety up to 2 helps; use other coefficients".to_owned(),
                |s| format!("use `with_safety({s})`, or other coefficients"),
            );
        let what = match self.normalization() {
            Normalization::Frobenius { safety } => {
                format!("dividing by {safety} times the Frobenius norm")
            }
            Normalization::Aol => "almost-orthogonal-layer scaling".to_owned(),
        };
        Err(Error::invalid_config(format!(
            "coefficient schedule `{}` is safe up to a singular value of {safe:.4} only (above, it \
             changes sign or exceeds {SAFE_IMAGE}), but {what} at unit roundoff \
             {unit_roundoff:.2e} guarantees {guaranteed:.4} at most; {remedy}",
            self.name()
        )))
    }

    /// The schedule to run at that `unit_roundoff`, and the safety it was given, if any.
    ///
    /// A safe schedule is returned as it is. A preset that falls short (the minimax families end at
    /// exactly 1, and 16 bit can round above it) is returned with [`PRESET_SAFETY`]; the caller
    /// names it in its plan. A schedule of the user's own is never changed.
    ///
    /// # Errors
    /// See [`CoefficientSchedule::check_safe`]: a schedule of the user's own that falls short, or a
    /// preset that does even with the safety.
    pub fn for_precision(&self, unit_roundoff: f64) -> Result<(Self, Option<f64>)> {
        match self.check_safe(unit_roundoff) {
            Ok(()) => Ok((self.clone(), None)),
            Err(e) if self.is_preset() => {
                let guarded = self.with_safety(PRESET_SAFETY)?;
                if guarded.check_safe(unit_roundoff).is_ok() {
                    Ok((guarded, Some(PRESET_SAFETY)))
                } else {
                    Err(e)
                }
            }
            Err(e) => Err(e),
        }
    }

    /// Whether this is the published preset of its name, at any length its tail allows.
    #[must_use]
    pub fn is_preset(&self) -> bool {
        presets::preset(self.name())
            .and_then(|p| p.with_iterations(self.polynomials().len()))
            .is_ok_and(|p| p == *self)
    }
}

/// Largest singular value after that normalisation and two roundings.
fn guaranteed_sigma(normalization: Normalization, unit_roundoff: f64) -> Result<f64> {
    if !(0.0..1.0).contains(&unit_roundoff) {
        return Err(Error::invalid_config(format!(
            "the unit roundoff must lie in [0, 1), found `{unit_roundoff}`"
        )));
    }
    let roundings = (1.0 + unit_roundoff) * (1.0 + unit_roundoff);
    Ok(match normalization {
        Normalization::Frobenius { safety } => roundings / safety,
        Normalization::Aol => roundings,
    })
}

/// Largest `s ≥ 0` with `holds(s)`, for a property that holds up to some point and fails above.
fn largest(holds: impl Fn(f64) -> bool) -> f64 {
    let mut hi = 1.0;
    while holds(hi) {
        hi *= 2.0;
        if hi > 18_446_744_073_709_551_616.0 {
            return f64::INFINITY;
        }
    }
    bisect(0.0, hi, holds).0
}

/// Narrows `[lo, hi]`, with `below(lo)` and `!below(hi)`, to neighbours or to a width of 1e-300.
fn bisect(mut lo: f64, mut hi: f64, below: impl Fn(f64) -> bool) -> (f64, f64) {
    loop {
        let mid = 0.5 * (lo + hi);
        if mid <= lo || mid >= hi || hi < 1e-300 {
            return (lo, hi);
        }
        if below(mid) {
            lo = mid;
        } else {
            hi = mid;
        }
    }
}

#[cfg(test)]
mod survey;
#[cfg(test)]
mod tests;
