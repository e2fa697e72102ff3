//! The figures that schedules are compared by, computed by the library.

use anyhow::Result;
use muon_cuda::recipe::Method;
use muon_cuda::{CoefficientSchedule, Normalization, OddPolynomial, Tail};
use serde::Serialize;

/// What the columns mean.
pub(crate) const LEGEND: &str = "\
slope: gain of tiny singular values. band: smallest and largest result for σ in the range. safe σ: largest\n\
start that neither flips its sign nor ends above 1.5. lifts from: smallest σ from which up to 1 everything ends\n\
at 0.7 or more. n³: floating-point operations of the matrix products over (short side)³, for long:short = 1:1\n\
and 4:1, standard form, one triangle of each symmetric product.";

/// Everything about one schedule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) iterations: usize,
    pub(crate) polynomials: Vec<Step>,
    pub(crate) slope: f64,
    pub(crate) band_from_1e_3: (f64, f64),
    pub(crate) band_from_1e_2: (f64, f64),
    pub(crate) safe_sigma: f64,
    pub(crate) lift_threshold: Option<f64>,
    pub(crate) normalization: String,
    /// FLOPs over n³ for a square matrix.
    pub(crate) flops_square: Flops,
    /// FLOPs over n³ for a long side of four times the short one.
    pub(crate) flops_four_to_one: Flops,
    pub(crate) tail: &'static str,
    pub(crate) source: String,
}

/// FLOPs of all matrix products over n³.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Flops {
    /// Symmetric products in full.
    pub(crate) full: f64,
    /// One triangle of them.
    pub(crate) symmetric: f64,
}

/// One polynomial and what the composition has become with it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Step {
    pub(crate) degree: usize,
    /// Odd coefficients from the lowest degree.
    pub(crate) coefficients: Vec<f64>,
    /// For people.
    #[serde(skip)]
    pub(crate) text: String,
    pub(crate) slope_so_far: f64,
    /// On [1e-3, 1].
    pub(crate) band_so_far: (f64, f64),
}

impl Facts {
    /// Asks the library.
    ///
    /// # Errors
    /// None in practice: the ranges are fixed and valid.
    pub(crate) fn of(schedule: &CoefficientSchedule) -> Result<Self> {
        let flops = |aspect| -> Result<Flops> {
            let cost = schedule.gemm_cost(&Method::Standard, aspect)?;
            Ok(Flops { full: cost.full, symmetric: cost.symmetric })
        };
        let (mut slope, mut band) = (1.0, (1e-3, 1.0));
        let polynomials = schedule
            .polynomials()
            .iter()
            .map(|p| {
                slope *= p.slope();
                band = p.image(band.0, band.1);
                Step {
                    degree: p.degree(),
                    coefficients: p.coefficients().to_vec(),
                    text: text(p),
                    slope_so_far: slope,
                    band_so_far: band,
                }
            })
            .collect();
        Ok(Self {
            name: schedule.name().to_owned(),
            iterations: schedule.polynomials().len(),
            polynomials,
            slope: schedule.slope(),
            band_from_1e_3: schedule.image(1e-3, 1.0),
            band_from_1e_2: schedule.image(1e-2, 1.0),
            safe_sigma: schedule.safe_sigma(),
            lift_threshold: schedule.lift_threshold(0.7),
            normalization: match schedule.normalization() {
                Normalization::Frobenius { safety: 1.0 } => "X / ‖X‖_F".into(),
                Normalization::Frobenius { safety } => format!("X / ({safety} · ‖X‖_F)"),
                Normalization::Aol => "X / ‖X‖_F, then almost-orthogonal rows (AOL)".into(),
            },
            flops_square: flops(1.0)?,
            flops_four_to_one: flops(4.0)?,
            tail: match schedule.tail() {
                Tail::Exact => "exact",
                Tail::RepeatLast => "repeats",
            },
            source: schedule.source().to_owned(),
        })
    }

    /// `5 × 5` for five of degree 5; the degrees one by one where they differ.
    pub(crate) fn degrees_in_short(&self) -> String {
        let degrees: Vec<usize> = self.polynomials.iter().map(|p| p.degree).collect();
        match degrees.as_slice() {
            [first, rest @ ..] if rest.iter().all(|d| d == first) => {
                format!("{} × {first}", degrees.len())
            }
            _ => degrees.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        }
    }

    /// Name and value, for the page of one schedule.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let flops = |f: Flops| {
            format!(
                "{} n³ (symmetric products in full: {} n³)",
                number(f.symmetric),
                number(f.full)
            )
        };
        vec![
            ("slope", number(self.slope)),
            ("band on [10⁻³, 1]", band(self.band_from_1e_3)),
            ("band on [10⁻², 1]", band(self.band_from_1e_2)),
            ("safe σ", number(self.safe_sigma)),
            ("lifts from", self.lift_threshold.map_or("never".into(), |x| format!("{x:.2e}"))),
            ("normalisation", self.normalization.clone()),
            ("cost, square", flops(self.flops_square)),
            ("cost, 4:1", flops(self.flops_four_to_one)),
            (
                "tail",
                match self.tail {
                    "exact" => format!("exact: {} iterations and no other number", self.iterations),
                    _ => "repeats the last polynomial for more iterations".to_owned(),
                },
            ),
        ]
    }
}

/// `3.4445σ − 4.775σ³ + 2.0315σ⁵`.
fn text(p: &OddPolynomial) -> String {
    let powers = ["σ", "σ³", "σ⁵", "σ⁷", "σ⁹"];
    let mut out = String::new();
    for (c, power) in p.coefficients().iter().zip(powers) {
        let sign = match (out.is_empty(), *c < 0.0) {
            (true, false) => "",
            (true, true) => "−",
            (false, false) => " + ",
            (false, true) => " − ",
        };
        let digits = format!("{:.6}", c.abs());
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        out.push_str(&format!("{sign}{digits}{power}"));
    }
    out
}

/// Four significant digits, more for whole numbers.
pub(crate) fn number(x: f64) -> String {
    match x.abs() {
        a if !a.is_finite() => "unbounded".into(),
        a if a >= 1e7 => format!("{x:.3e}"),
        a if a >= 1000.0 => format!("{x:.0}"),
        a if a >= 100.0 => format!("{x:.1}"),
        a if a >= 10.0 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

/// From … to.
pub(crate) fn band((low, high): (f64, f64)) -> String {
    let end = |x: f64| if x.abs() < 1e7 { format!("{x:.3}") } else { number(x) };
    format!("{}–{}", end(low), end(high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use muon_cuda::coefficients::presets;

    #[test]
    fn jordan_has_its_published_figures() {
        let f = Facts::of(&presets::preset("jordan").unwrap()).unwrap();
        assert_eq!(f.degrees_in_short(), "5 × 5");
        assert_eq!(f.polynomials[0].text, "3.4445σ − 4.775σ³ + 2.0315σ⁵");
        // The product of five slopes; bands as computed for the documentation, to three digits.
        assert!((f.slope - 3.4445f64.powi(5)).abs() < 1e-9);
        assert_eq!(band(f.band_from_1e_2), "0.682–1.134");
        assert_eq!(band(f.band_from_1e_3), "0.471–1.202");
        assert!((f.safe_sigma - 1.263).abs() < 2e-3, "{}", f.safe_sigma);
        // 3α + 1 an iteration.
        assert_eq!((f.flops_square.symmetric, f.flops_four_to_one.symmetric), (20.0, 65.0));
        assert_eq!(f.tail, "repeats");
    }
}
