//! A coefficient schedule: one odd polynomial per iteration, with its normalisation, tail rule and
//! source.

use serde::{Deserialize, Serialize};

use super::{OddPolynomial, Provenance};
use crate::error::{Error, Result};

/// How the iterate is scaled before the first polynomial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Normalization {
    /// Divide by `safety · ‖X‖_F`, which bounds the largest singular value by `1/safety`.
    Frobenius {
        /// ≥ 1, dimensionless.
        safety: f64,
    },
    /// Divide by `‖X‖_F`, then scale every row of the short side by `1/√Σⱼ|Aᵢⱼ|` with `A = XXᵀ`
    /// (almost-orthogonal layers): bounds the largest singular value by 1, tightly, but changes the
    /// polar factor unless the rows are nearly orthogonal.
    Aol,
}

/// What a schedule gives when asked for another number of iterations than it has polynomials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    /// Another number is an error: the polynomials were made for each other (default in files).
    #[default]
    Exact,
    /// The first polynomials, the last one repeated as often as needed.
    RepeatLast,
}

/// Most polynomials a schedule may have. The slowest published one, a slope of 1.5, lifts 2⁻⁵³ to 1 in 91 iterations:
/// more do nothing but cost.
pub const MOST_POLYNOMIALS: usize = 128;

/// One polynomial per iteration, and what must be known to use it safely.
#[derive(Debug, Clone, PartialEq)]
pub struct CoefficientSchedule {
    name: String,
    polynomials: Vec<OddPolynomial>,
    normalization: Normalization,
    tail: Tail,
    source: String,
    provenance: Option<Provenance>,
}

impl CoefficientSchedule {
    /// A schedule from its polynomials.
    ///
    /// # Errors
    /// No polynomial or more than [`MOST_POLYNOMIALS`], an empty name, or a safety that is not finite or below 1.
    pub fn new(
        name: impl Into<String>,
        polynomials: Vec<OddPolynomial>,
        normalization: Normalization,
        tail: Tail,
        source: impl Into<String>,
    ) -> Result<Self> {
        let name = name.into();
        if name.is_empty() {
            return Err(Error::invalid_config("a coefficient schedule needs a name"));
        }
        if polynomials.is_empty() {
            return Err(Error::invalid_config(format!(
                "coefficient schedule `{name}` has no polynomial"
            )));
        }
        refuse_too_many(&name, polynomials.len())?;
        if let Normalization::Frobenius { safety } = normalization
            && !(safety.is_finite() && safety >= 1.0)
        {
            return Err(Error::invalid_config(format!(
                "coefficient schedule `{name}`: safety must be finite and at least 1, found \
                 `{safety}`"
            )));
        }
        Ok(Self { name, polynomials, normalization, tail, source: source.into(), provenance: None })
    }

    /// A preset: the tables are this crate's own, and a test checks them.
    pub(super) fn published(
        name: &str,
        polynomials: Vec<OddPolynomial>,
        normalization: Normalization,
        tail: Tail,
        source: &str,
    ) -> Self {
        Self {
            name: name.into(),
            polynomials,
            normalization,
            tail,
            source: source.into(),
            provenance: None,
        }
    }

    /// The name it is known by in files, plans and checkpoints.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One polynomial per iteration.
    #[must_use]
    pub fn polynomials(&self) -> &[OddPolynomial] {
        &self.polynomials
    }

    /// How the iterate is scaled before the first polynomial.
    #[must_use]
    pub fn normalization(&self) -> Normalization {
        self.normalization
    }

    /// The rule for another number of iterations.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// Where the numbers come from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The record this schedule can be regenerated from, if it was generated.
    #[must_use]
    pub fn provenance(&self) -> Option<&Provenance> {
        self.provenance.as_ref()
    }

    /// The same schedule with that record.
    #[must_use]
    pub fn with_provenance(mut self, provenance: Provenance) -> Self {
        self.provenance = Some(provenance);
        self
    }

    /// The schedule with its polynomials computed again from its record; `None` without a record.
    ///
    /// Equal to the schedule itself bit for bit on the machine that made it.
    ///
    /// # Errors
    /// A record that cannot be carried out; see [`Provenance::polynomials`].
    pub fn regenerate(&self) -> Result<Option<Self>> {
        let Some(provenance) = &self.provenance else { return Ok(None) };
        let polynomials = provenance.polynomials()?;
        Ok(Some(Self { polynomials, ..self.clone() }))
    }

    /// The polynomial composition at `x`.
    #[must_use]
    pub fn eval(&self, x: f64) -> f64 {
        self.polynomials.iter().fold(x, |x, p| p.eval(x))
    }

    /// The schedule with exactly `iterations` polynomials.
    ///
    /// # Errors
    /// Zero iterations, more than [`MOST_POLYNOMIALS`], or another number than an [`Tail::Exact`] schedule has.
    pub fn with_iterations(&self, iterations: usize) -> Result<Self> {
        if iterations == 0 {
            return Err(Error::invalid_config(format!(
                "coefficient schedule `{}`: at least one iteration is needed, found `0`",
                self.name
            )));
        }
        refuse_too_many(&self.name, iterations)?;
        if self.tail == Tail::Exact && iterations != self.polynomials.len() {
            return Err(Error::invalid_config(format!(
                "coefficient schedule `{}` has exactly {} iterations (its polynomials were made \
                 for each other), found a request for `{iterations}`; use `polar_express_raw`, \
                 whose tail repeats, or generate a schedule of that length",
                self.name,
                self.polynomials.len()
            )));
        }
        let mut out = self.clone();
        let last = self.polynomials[self.polynomials.len() - 1];
        if iterations != out.polynomials.len() {
            out.polynomials.resize(iterations, last);
            // The record describes the schedule it was made with, not a part of it.
            out.provenance = None;
        }
        Ok(out)
    }

    /// Every polynomial but the last for an input `s` times larger: `(a/s, b/s³, c/s⁵)`, the rule
    /// of the Polar Express paper, which leaves room for rounding in every iteration.
    ///
    /// A schedule of one polynomial has that one guarded. Choose the number of iterations first: a
    /// repeated last polynomial is guarded where it is not the last.
    ///
    /// # Errors
    /// A safety that is not finite or below 1.
    ///
    /// # Sources
    /// arXiv 2505.16932, listing of the authors: `(a/1.01, b/1.01³, c/1.01⁵)` for all but the last
    /// row.
    pub fn with_safety(&self, s: f64) -> Result<Self> {
        if !(s.is_finite() && s >= 1.0) {
            return Err(Error::invalid_config(format!(
                "coefficient schedule `{}`: safety must be finite and at least 1, found `{s}`",
                self.name
            )));
        }
        let mut out = self.clone();
        let guarded = out.polynomials.len().saturating_sub(1).max(1);
        for p in &mut out.polynomials[..guarded] {
            *p = p.with_input_scale(s);
        }
        out.name = format!("{}/{s}", self.name);
        out.source = format!("{}; divided by (s, s³, …), s = {s}, but for the last", self.source);
        if let Some(provenance) = &mut out.provenance {
            provenance.input_safety.push(s);
        }
        Ok(out)
    }
}

fn refuse_too_many(name: &str, iterations: usize) -> Result<()> {
    if iterations <= MOST_POLYNOMIALS {
        return Ok(());
    }
    Err(Error::invalid_config(format!(
        "coefficient schedule `{name}`: expected at most {MOST_POLYNOMIALS} iterations, found `{iterations}`; no schedule \
         gains by more"
    )))
}
