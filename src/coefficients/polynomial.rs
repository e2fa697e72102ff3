//! One odd polynomial of degree 3, 5 or 9: evaluation, derivative, and the exact image of an
//! interval.

use super::roots;
use crate::error::{Error, Result};

/// An odd polynomial `p(x) = c1·x + c3·x³ + c5·x⁵ (+ c7·x⁷ + c9·x⁹)`.
///
/// Applied to a matrix it acts on each singular value: `p(U Σ Vᵀ) = U p(Σ) Vᵀ`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OddPolynomial {
    /// Lowest degree first; unused ones are zero.
    coefficients: [f64; 5],
    /// Number of coefficients in use: 2, 3 or 5.
    len: usize,
}

impl OddPolynomial {
    /// A polynomial from its odd coefficients, lowest degree first: 2, 3 or 5 of them.
    ///
    /// # Errors
    /// Another number of coefficients, or one that is not finite.
    pub fn new(coefficients: &[f64]) -> Result<Self> {
        if !matches!(coefficients.len(), 2 | 3 | 5) {
            return Err(Error::invalid_config(format!(
                "an odd polynomial has 2, 3 or 5 coefficients (degree 3, 5 or 9), found {}",
                coefficients.len()
            )));
        }
        if let Some(c) = coefficients.iter().find(|c| !c.is_finite()) {
            return Err(Error::invalid_config(format!(
                "polynomial coefficients must be finite, found `{c}`"
            )));
        }
        let mut all = [0.0; 5];
        all[..coefficients.len()].copy_from_slice(coefficients);
        Ok(Self { coefficients: all, len: coefficients.len() })
    }

    /// A row of this crate's own tables, which a test checks.
    pub(super) fn published(row: &'static [f64]) -> Self {
        let mut coefficients = [0.0; 5];
        let len = row.len().min(5);
        coefficients[..len].copy_from_slice(&row[..len]);
        Self { coefficients, len }
    }

    /// The odd coefficients, lowest degree first.
    #[must_use]
    pub fn coefficients(&self) -> &[f64] {
        &self.coefficients[..self.len]
    }

    /// 3, 5 or 9.
    #[must_use]
    pub fn degree(&self) -> usize {
        2 * self.len - 1
    }

    /// `p(x)`, by Horner's rule in `x²`.
    #[must_use]
    pub fn eval(&self, x: f64) -> f64 {
        roots::eval(self.coefficients(), x * x) * x
    }

    /// `p'(x) = c1 + 3·c3·x² + 5·c5·x⁴ + …`.
    #[must_use]
    pub fn derivative(&self, x: f64) -> f64 {
        roots::eval(&self.derivative_in_square()[..self.len], x * x)
    }

    /// Derivative at zero: the gain of small singular values.
    #[must_use]
    pub fn slope(&self) -> f64 {
        self.coefficients[0]
    }

    /// `(min, max)` of `p` over the interval between `lo` and `hi`, exact up to rounding of `p`
    /// itself.
    ///
    /// Extrema are at the ends or at roots of `p'`, which is a polynomial in `y = x²`; all its
    /// roots in the interval are isolated, none is sampled for. The image of an interval under a
    /// continuous map is an interval, so images compose exactly. An end that is not finite, or so
    /// large that `p` is not a number there, gives `(−∞, ∞)`.
    #[must_use]
    pub fn image(&self, lo: f64, hi: f64) -> (f64, f64) {
        if !(lo.is_finite() && hi.is_finite()) {
            return (f64::NEG_INFINITY, f64::INFINITY);
        }
        let (lo, hi) = (lo.min(hi), lo.max(hi));
        let (at_lo, at_hi) = (self.eval(lo), self.eval(hi));
        if at_lo.is_nan() || at_hi.is_nan() {
            return (f64::NEG_INFINITY, f64::INFINITY);
        }
        let mut image = (at_lo.min(at_hi), at_lo.max(at_hi));
        let outer = lo.abs().max(hi.abs());
        let inner = if lo <= 0.0 && hi >= 0.0 { 0.0 } else { lo.abs().min(hi.abs()) };
        let slopes = self.derivative_in_square();
        for y in roots::in_interval(&slopes[..self.len], inner * inner, outer * outer) {
            let x = y.sqrt();
            for x in [-x, x] {
                if lo < x && x < hi {
                    let value = self.eval(x);
                    image = (image.0.min(value), image.1.max(value));
                }
            }
        }
        image
    }

    /// `x ↦ p(x / s)`: the polynomial for an input that is `s` times larger.
    #[must_use]
    pub fn with_input_scale(&self, s: f64) -> Self {
        let mut out = *self;
        let mut power = s;
        for c in &mut out.coefficients {
            *c /= power;
            power *= s * s;
        }
        out
    }

    /// `x ↦ s·p(x)`.
    #[must_use]
    pub fn with_output_scale(&self, s: f64) -> Self {
        let mut out = *self;
        for c in &mut out.coefficients {
            *c *= s;
        }
        out
    }

    /// Coefficients of `p'` in `y = x²`, lowest degree first.
    fn derivative_in_square(&self) -> [f64; 5] {
        let [c1, c3, c5, c7, c9] = self.coefficients;
        [c1, 3.0 * c3, 5.0 * c5, 7.0 * c7, 9.0 * c9]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classical_cubic_at_known_points() {
        let p = OddPolynomial::new(&[1.5, -0.5]).unwrap();
        // 1.5·x − 0.5·x³ in numbers that are exact in binary.
        assert_eq!(p.eval(1.0), 1.0);
        assert_eq!(p.eval(-0.5), -0.6875);
        assert_eq!(p.derivative(1.0), 0.0);
        assert_eq!(p.derivative(2.0), -4.5);
        // Maximum 1 at x = 1, sign change at √3: p(2) = −1.
        assert_eq!(p.image(0.0, 2.0), (-1.0, 1.0));
        assert_eq!(p.image(2.0, 0.0), (-1.0, 1.0));
        assert_eq!(p.image(-2.0, 0.5), (-1.0, 1.0));
        assert_eq!(p.image(0.25, 0.5), (0.375 - 0.0078125, 0.6875));
    }

    #[test]
    fn jordan_extrema_are_where_the_quadratic_formula_puts_them() {
        let (a, b, c) = (3.4445f64, -4.7750f64, 2.0315f64);
        let p = OddPolynomial::new(&[a, b, c]).unwrap();
        let root = (9.0 * b * b - 20.0 * a * c).sqrt();
        let low = ((-3.0 * b + root) / (10.0 * c)).sqrt();
        let high = ((-3.0 * b - root) / (10.0 * c)).sqrt();
        let (min, max) = p.image(high, 1.2);
        // Both extrema are flat, so the error of the point enters squared: rounding of p only.
        assert!((max - p.eval(high)).abs() < 4.0 * f64::EPSILON, "{max} {}", p.eval(high));
        assert!((min - p.eval(low)).abs() < 4.0 * f64::EPSILON, "{min} {}", p.eval(low));
    }

    #[test]
    fn degenerate_polynomials_and_ends() {
        let zero = OddPolynomial::new(&[0.0, 0.0, 0.0, 0.0, 0.0]).unwrap();
        assert_eq!(zero.image(-3.0, 2.0), (0.0, 0.0));
        let line = OddPolynomial::new(&[2.0, 0.0]).unwrap();
        assert_eq!(line.image(-3.0, 2.0), (-6.0, 4.0));
        assert_eq!(line.image(0.0, f64::NAN), (f64::NEG_INFINITY, f64::INFINITY));
        let p = OddPolynomial::new(&[1.0, -1.0, 1.0]).unwrap();
        let (min, max) = p.image(0.0, 1e200);
        assert_eq!((min, max), (0.0, f64::INFINITY));
        assert!(OddPolynomial::new(&[1.0]).is_err());
        assert!(OddPolynomial::new(&[1.0; 4]).is_err());
        assert!(OddPolynomial::new(&[1.0, f64::INFINITY]).unwrap_err().is_invalid_config());
    }

    fn any_polynomial() -> impl Strategy<Value = OddPolynomial> {
        (0usize..3, proptest::array::uniform5(-20.0f64..20.0))
            .prop_map(|(len, c)| OddPolynomial::new(&c[..[2, 3, 5][len]]).unwrap())
    }

    proptest! {
        /// The image holds every value and both its ends are taken (to the curvature of a 1e-4
        /// grid).
        #[test]
        fn image_is_the_range_on_a_fine_grid(
            p in any_polynomial(), a in -1.2f64..1.2, b in -1.2f64..1.2,
        ) {
            let (lo, hi) = (a.min(b), a.max(b));
            let (min, max) = p.image(lo, hi);
            let (mut seen_min, mut seen_max) = (f64::INFINITY, f64::NEG_INFINITY);
            let steps = 20_000;
            for i in 0..=steps {
                let v = p.eval(lo + (hi - lo) * f64::from(i) / f64::from(steps));
                seen_min = seen_min.min(v);
                seen_max = seen_max.max(v);
            }
            // Values reach 5·20·1.2⁹ = 516, roundings 1e-13; between grid points (h = 1.2e-4) a
            // value exceeds both neighbours by at most h²/8·|p''| with |p''| ≤ 20·Σ
            // k(k−1)·1.2^(k−2) = 9e3.
            prop_assert!(seen_min >= min - 1e-11 && seen_max <= max + 1e-11);
            prop_assert!(seen_min <= min + 2e-5 && seen_max >= max - 2e-5);
        }

        /// `p'` is the limit of the central difference; its error is h²/6·|p'''| + rounding/h.
        #[test]
        fn derivative_is_the_difference_quotient(p in any_polynomial(), x in -1.0f64..1.0) {
            let h = 1e-5;
            let quotient = (p.eval(x + h) - p.eval(x - h)) / (2.0 * h);
            // |p'''| ≤ 20·(6 + 60 + 210 + 504) = 15600, rounding 100·1e-16/1e-5.
            prop_assert!((p.derivative(x) - quotient).abs() < 1e-10 * 15600.0 / 6.0 + 1e-8);
        }

        #[test]
        fn input_scale_divides_the_argument(p in any_polynomial(), x in -1.0f64..1.0) {
            let scaled = p.with_input_scale(1.25);
            // Five terms of at most 20, a few roundings each.
            prop_assert!((scaled.eval(x) - p.eval(x / 1.25)).abs() < 100.0 * 8.0 * f64::EPSILON);
        }
    }
}
