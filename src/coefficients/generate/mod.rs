//! Generators: minimax odd polynomials, greedy compositions of them, and the record each result is
//! regenerated from.

mod remez;

use serde::{Deserialize, Serialize};

pub use remez::{Minimax, minimax, minimax_coefficients};

use super::{CoefficientSchedule, Normalization, OddPolynomial, Tail};
use crate::error::{Error, Result};

/// The cushion of the Polar Express paper's table (arXiv 2505.16932, released code).
pub const POLAR_EXPRESS_CUSHION: f64 = 0.024_073_274_241_827_61;

/// Most polynomials one composition may have: twice what the slowest published set has, and a bound
/// on what a record read from a file can cost.
const MAX_POLYNOMIALS: usize = 32;

/// Smallest final band: below, the last polynomial differs from the Taylor limit by rounding only.
const MIN_BAND: f64 = 1e-9;

/// How a schedule's polynomials were computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Generator {
    /// Each polynomial is the minimax one for the interval the previous ones leave; see
    /// [`compose`].
    Composition {
        /// Degree of each polynomial, first to last.
        degrees: Vec<usize>,
        /// Lower end of the first interval `[lower, 1]`.
        lower: f64,
        /// Smallest ratio of the ends of the interval a polynomial is made for; 0 for none.
        cushion: f64,
        /// Divisor of the input of every polynomial but the last, inside the recursion; 1 for none.
        safety: f64,
    },
    /// The composition without cushion or safety whose last image is `[1 − band, 1 + band]`; see
    /// [`for_band`].
    FinalBand {
        /// Degree of each polynomial, first to last.
        degrees: Vec<usize>,
        /// Half width of the final band, in `(0, 1)`.
        band: f64,
    },
}

/// A generated schedule's record: enough to compute its polynomials again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The safeties given to [`CoefficientSchedule::with_safety`] afterwards, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub input_safety: Vec<f64>,
    /// What computed the polynomials.
    pub generator: Generator,
}

impl Provenance {
    /// The polynomials, computed again.
    ///
    /// # Errors
    /// Degrees, ends, cushion or safety that [`compose`] or [`for_band`] refuses.
    pub fn polynomials(&self) -> Result<Vec<OddPolynomial>> {
        let polynomials = self.generator.polynomials()?;
        let mut schedule = CoefficientSchedule::new(
            "regenerated",
            polynomials,
            Normalization::Frobenius { safety: 1.0 },
            Tail::Exact,
            "",
        )?;
        for &s in &self.input_safety {
            schedule = schedule.with_safety(s)?;
        }
        Ok(schedule.polynomials().to_vec())
    }
}

impl Generator {
    /// The polynomials it describes.
    ///
    /// # Errors
    /// See [`compose`] and [`for_band`].
    pub fn polynomials(&self) -> Result<Vec<OddPolynomial>> {
        match self {
            Self::Composition { degrees, lower, cushion, safety } => {
                compose(degrees, *lower, *cushion, *safety)
            }
            Self::FinalBand { degrees, band } => Ok(for_band(degrees, *band)?.polynomials),
        }
    }

    /// A schedule of that name with its polynomials and record; `Tail::Exact`.
    ///
    /// # Errors
    /// See [`compose`], [`for_band`] and [`CoefficientSchedule::new`].
    pub fn schedule(
        self,
        name: impl Into<String>,
        normalization: Normalization,
    ) -> Result<CoefficientSchedule> {
        let polynomials = self.polynomials()?;
        let source = match &self {
            Self::Composition { degrees, lower, cushion, safety } => format!(
                "generated: greedy minimax composition of degrees {degrees:?} on [{lower}, 1], \
                 cushion {cushion}, safety {safety}"
            ),
            Self::FinalBand { degrees, band } => format!(
                "generated: greedy minimax composition of degrees {degrees:?}, final band 1 ± \
                 {band}"
            ),
        };
        let schedule =
            CoefficientSchedule::new(name, polynomials, normalization, Tail::Exact, source)?;
        Ok(schedule.with_provenance(Provenance { input_safety: Vec::new(), generator: self }))
    }
}

/// The greedy composition on `[lower, 1]`: each polynomial is the minimax one for the image of the
/// interval before it.
///
/// ```text
/// u ← 1;  l ← lower
/// for each degree:
///     p ← minimax(degree, max(l, cushion·u), u)
///     if cushion·u > l:  p ← p·2/(p(l) + max p)         # recentred: the image's ends around 1
///     if not the last:   p ← p(x/safety)
///     l ← p(l);  u ← 2 − l
/// ```
///
/// The maximum on `[l, u]` is `p(u)` at degrees 5 and 9, where the published code has it, and the
/// interior extremum at degree 3.
///
/// With degree 5 throughout this is Polar Express as published: `lower` 1e-3, the cushion
/// [`POLAR_EXPRESS_CUSHION`] and no safety give the paper's table; cushion 0.02 and safety 1.02
/// over five polynomials give the set of modded-nanogpt and dion. Without a cushion it is CANS.
///
/// # Errors
/// No degree, more than 32, or one that is not 3, 5 or 9; a lower end outside `(0, 1)`; a cushion
/// outside `[0, 1)`; a safety below 1; a minimax problem that
/// [`minimax`] refuses.
///
/// # Sources
/// arXiv 2505.16932, `optimal_composition` of the authors' code; arXiv 2506.10935 (CANS).
pub fn compose(
    degrees: &[usize],
    lower: f64,
    cushion: f64,
    safety: f64,
) -> Result<Vec<OddPolynomial>> {
    check_degrees(degrees)?;
    if !(lower > 0.0 && lower < 1.0) {
        return Err(Error::invalid_config(format!(
            "the lower end of a composition must lie in (0, 1), found `{lower}`"
        )));
    }
    if !(0.0..1.0).contains(&cushion) {
        return Err(Error::invalid_config(format!(
            "the cushion of a composition must lie in [0, 1), found `{cushion}`"
        )));
    }
    if !(safety.is_finite() && safety >= 1.0) {
        return Err(Error::invalid_config(format!(
            "the safety of a composition must be finite and at least 1, found `{safety}`"
        )));
    }
    let (mut l, mut u) = (lower, 1.0);
    let mut polynomials = Vec::with_capacity(degrees.len());
    for (i, &degree) in degrees.iter().enumerate() {
        let mut p = minimax(degree, l.max(cushion * u), u)?.polynomial;
        if cushion * u > l {
            p = p.with_output_scale(2.0 / (p.eval(l) + p.image(l, u).1));
        }
        if i + 1 < degrees.len() {
            p = p.with_input_scale(safety);
        }
        l = p.eval(l);
        u = 2.0 - l;
        polynomials.push(p);
        // Past the fixed point of its own rounding the interval is a point: [1, 1] or a bit off it.
        l = l.min(1.0);
        u = u.max(1.0);
    }
    Ok(polynomials)
}

/// A composition made for its final band.
#[derive(Debug, Clone, PartialEq)]
pub struct BandComposition {
    /// First to last.
    pub polynomials: Vec<OddPolynomial>,
    /// Lower end of `[lower, 1]`, the interval that is mapped to the band.
    pub lower: f64,
}

/// The greedy composition whose image of `[lower, 1]` is `[1 − band, 1 + band]`, and that `lower`.
///
/// From the back: the last polynomial is the minimax one for the interval `[1 − E, 1 + E]` whose
/// error is `band` (bisection on the ratio of the ends), the one before it has the error `E`, and
/// so on; the first is scaled to `[lower, 1]`. Compositions for the same band are therefore nested:
/// one more polynomial in front changes only the one that was first. No composition of these
/// degrees maps a wider interval `[l, 1]` into the band: the greedy one is optimal (arXiv
/// 2505.16932).
///
/// # Errors
/// No degree, more than 32, or one that is not 3, 5 or 9; a band outside `[1e-9, 1)`; a band so
/// small or a composition so long that the first interval would begin below 1e-12.
pub fn for_band(degrees: &[usize], band: f64) -> Result<BandComposition> {
    check_degrees(degrees)?;
    if !(MIN_BAND..1.0).contains(&band) {
        return Err(Error::invalid_config(format!(
            "the final band must lie in [{MIN_BAND}, 1), found `{band}`"
        )));
    }
    let mut polynomials = Vec::with_capacity(degrees.len());
    let mut error = band;
    let mut lower = 1.0;
    for (i, &degree) in degrees.iter().enumerate().rev() {
        let ratio = remez::ratio_for_error(degree, error)?;
        // The interval around 1 with this ratio of its ends; the first polynomial's ends at 1.
        error = (1.0 - ratio) / (1.0 + ratio);
        let upper = if i == 0 { 1.0 } else { 1.0 + error };
        lower = ratio * upper;
        polynomials.push(minimax(degree, lower, upper)?.polynomial);
    }
    polynomials.reverse();
    Ok(BandComposition { polynomials, lower })
}

fn check_degrees(degrees: &[usize]) -> Result<()> {
    if degrees.is_empty() || degrees.len() > MAX_POLYNOMIALS {
        return Err(Error::invalid_config(format!(
            "a composition has 1 to {MAX_POLYNOMIALS} polynomials, found {}",
            degrees.len()
        )));
    }
    match degrees.iter().find(|d| !matches!(d, 3 | 5 | 9)) {
        Some(d) => Err(Error::invalid_config(format!(
            "the degrees of a composition are 3, 5 and 9, found `{d}`"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
