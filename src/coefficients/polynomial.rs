//! One odd polynomial of degree 3, 5 or 9: evaluation, range, and the factored form of degree 9.

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

/// A degree-9 polynomial as `x·((Z₁ + a₁)(Z₂ + a₂))` with `Zᵢ` quadratics in `y = x²` without constant term.
///
/// `Z₁ = s·(y² + p₁·y)`, `Z₂ = s·sign·(y² + p₂·y)`. The constants `a₁`, `a₂` multiply an identity that
/// is never formed: that is what keeps the evaluation accurate in 16 bit (NUMERICS.md).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NonicFactors {
    /// `√|c9|`.
    pub s: f64,
    /// Sign of `c9`.
    pub sign: f64,
    /// Linear coefficient of the first quadratic.
    pub p1: f64,
    /// Linear coefficient of the second quadratic.
    pub p2: f64,
    /// Constant of the first factor, `s·q₁`.
    pub a1: f64,
    /// Constant of the second factor, `s·sign·q₂`.
    pub a2: f64,
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
        let y = x * x;
        self.coefficients().iter().rev().fold(0.0, |acc, c| acc * y + c) * x
    }

    /// Derivative at zero: the gain of small singular values.
    #[must_use]
    pub fn slope(&self) -> f64 {
        self.coefficients[0]
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

    /// The factored form of a degree-9 polynomial; lower degrees are extended by zeros only in
    /// theory, so ask for it at degree 9.
    ///
    /// Any real quartic splits into two real quadratics: complex roots pair with their conjugates,
    /// real ones with each other. Roots by simultaneous (Durand–Kerner) iteration, exact to a few ulp.
    #[must_use]
    pub fn nonic_factors(&self) -> NonicFactors {
        let [b0, b1, b2, b3, lead] = self.coefficients;
        let monic = [b0 / lead, b1 / lead, b2 / lead, b3 / lead];
        let mut roots = quartic_roots(monic);
        // Complex pairs first (largest imaginary part), conjugates adjacent, then real roots in order.
        roots.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.total_cmp(&b.0)));
        let pair = |a: (f64, f64), b: (f64, f64)| (-(a.0 + b.0), a.0 * b.0 - a.1 * b.1);
        let (p1, q1) = pair(roots[0], roots[1]);
        let (p2, q2) = pair(roots[2], roots[3]);
        let (s, sign) = (lead.abs().sqrt(), lead.signum());
        NonicFactors { s, sign, p1, p2, a1: s * q1, a2: s * sign * q2 }
    }
}

/// Complex roots of `y⁴ + m[3]·y³ + m[2]·y² + m[1]·y + m[0]`.
fn quartic_roots(m: [f64; 4]) -> [(f64, f64); 4] {
    type C = (f64, f64);
    let mul = |a: C, b: C| (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0);
    let sub = |a: C, b: C| (a.0 - b.0, a.1 - b.1);
    let div = |a: C, b: C| {
        let n = b.0 * b.0 + b.1 * b.1;
        ((a.0 * b.0 + a.1 * b.1) / n, (a.1 * b.0 - a.0 * b.1) / n)
    };
    let eval = |y: C| {
        let mut acc = (1.0, 0.0);
        for c in m.iter().rev() {
            acc = mul(acc, y);
            acc.0 += c;
        }
        acc
    };
    let radius = 1.0 + m.iter().fold(0.0f64, |a, c| a.max(c.abs())).min(1e3);
    let mut z: [C; 4] = [(1.0, 0.0), (0.4, 0.9), (-0.65, 0.72), (-0.908, -0.297)]
        .map(|(re, im)| (re * radius * 0.5, im * radius * 0.5));
    for _ in 0..500 {
        for i in 0..4 {
            let mut denominator = (1.0, 0.0);
            for j in 0..4 {
                if j != i {
                    denominator = mul(denominator, sub(z[i], z[j]));
                }
            }
            if denominator != (0.0, 0.0) {
                z[i] = sub(z[i], div(eval(z[i]), denominator));
            }
        }
    }
    // Real coefficients: what is conjugate up to rounding is made exactly so, what is real, real.
    for i in 0..4 {
        if z[i].1.abs() < 1e-9 * z[i].0.abs() {
            z[i].1 = 0.0;
        }
    }
    z
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factored_nonic_is_the_polynomial() {
        for row in [
            [14.9589885, -146.534689, 487.681366, -626.885416, 272.752193],
            [6.81879633, -16.5177152, 13.9678397, -4.589376, 0.511560758],
            [4.31062191, -9.15352302, 8.25338589, -3.04534019, 0.389342493],
            [1.0, -10.0, 35.0, -50.0, 24.0],
            [-2.0, 1.0, 0.5, 3.0, -1.0],
        ] {
            let p = OddPolynomial::new(&row).unwrap();
            let f = p.nonic_factors();
            for i in 0..=100 {
                let x = f64::from(i) * 0.011;
                let y = x * x;
                let z1 = f.s * (y * y + f.p1 * y);
                let z2 = f.s * f.sign * (y * y + f.p2 * y);
                let found = x * (z1 + f.a1) * (z2 + f.a2);
                // The terms reach 1e3 at x = 1; eight significant digits below that are rounding.
                assert!(
                    (found - p.eval(x)).abs() < 1e-10 * 1e3,
                    "{row:?} at {x}: {found} {}",
                    p.eval(x)
                );
            }
        }
    }
}
