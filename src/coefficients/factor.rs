//! The factored form of a degree-9 polynomial: two real quadratics in `y = x²`.

use super::OddPolynomial;
use crate::error::{Error, Result};

/// A degree-9 polynomial as `x·(Z₁ + a₁)·(Z₂ + a₂)` with `Zᵢ` quadratics in `y = x²` without
/// constant term.
///
/// `Z₁ = s·(y² + p₁·y)`, `Z₂ = s·sign·(y² + p₂·y)`. The constants `a₁`, `a₂` multiply an identity
/// that is never formed. Recipes complete the square instead, which rounds better (NUMERICS.md).
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

const TOO_SMALL: &str = "its leading coefficient is too small beside the others to factor \
                         accurately; write it at its real degree, 3 or 5";

/// Largest accepted error of a coefficient of the expanded product, relative to the sum of the
/// absolute values of its terms: far below one rounding of the f32 constants a device multiplies
/// with (2⁻²⁴ = 6e-8), far above what the iteration reaches (4e-16). Where the quadratics share a
/// root the factors are determined to half the digits only, but their product to all.
const FACTOR_TOLERANCE: f64 = 1e-12;

impl NonicFactors {
    /// `x·(Z₁ + a₁)·(Z₂ + a₂)`.
    #[must_use]
    pub fn eval(&self, x: f64) -> f64 {
        let y = x * x;
        let z1 = self.s * (y * y + self.p1 * y);
        let z2 = self.s * self.sign * (y * y + self.p2 * y);
        x * (z1 + self.a1) * (z2 + self.a2)
    }
}

impl OddPolynomial {
    /// The factored form of a degree-9 polynomial.
    ///
    /// Any real quartic splits into two real quadratics: complex roots pair with their conjugates,
    /// real ones with each other, in order. Roots by simultaneous (Durand–Kerner) iteration, then
    /// Newton's method on the two quadratics; the product is expanded and compared before it is
    /// returned.
    ///
    /// # Errors
    /// Another degree, a leading coefficient that is zero, or one so small beside the others that
    /// the factors are not accurate in f64: such a polynomial is to be written at its real degree.
    pub fn nonic_factors(&self) -> Result<NonicFactors> {
        let refuse = |why: &str| {
            Err(Error::invalid_config(format!(
                "the factored form needs a polynomial of degree 9, found {:?}: {why}",
                self.coefficients()
            )))
        };
        let &[b0, b1, b2, b3, lead] = self.coefficients() else {
            return refuse("another number of coefficients than 5");
        };
        if lead == 0.0 {
            return refuse("the leading coefficient is zero; write it at its real degree, 3 or 5");
        }
        let monic = [b0 / lead, b1 / lead, b2 / lead, b3 / lead];
        let Some([(p1, q1), (p2, q2)]) = quadratics(monic) else {
            return refuse(TOO_SMALL);
        };
        let (s, sign) = (lead.abs().sqrt(), lead.signum());
        let factors = NonicFactors { s, sign, p1, p2, a1: s * q1, a2: s * sign * q2 };
        if [factors.a1, factors.a2, s * p1, s * p2].iter().all(|c| c.is_finite()) {
            Ok(factors)
        } else {
            refuse(TOO_SMALL)
        }
    }
}

/// `(p, q)` of the two factors `y² + p·y + q` of a monic quartic without its leading 1, or `None`
/// where they cannot be had to [`FACTOR_TOLERANCE`].
fn quadratics(monic: [f64; 4]) -> Option<[(f64, f64); 2]> {
    if monic.iter().any(|c| !c.is_finite()) {
        return None;
    }
    // Two equal quadratics: a multiple root is not found accurately, this is.
    let half = 0.5 * monic[3];
    let square = (half, 0.5 * (monic[2] - half * half));
    let mut best = (expansion_error(monic, [square; 2]), [square; 2]);
    if best.0 < 2.0 * f64::EPSILON {
        return Some(best.1);
    }
    let roots = quartic_roots(monic);
    let size = roots.iter().fold(0.0, |size: f64, z| size.max(z.0.hypot(z.1)));
    // A double root is found as two a distance √2⁻⁵³ apart, in any direction: where "real" ends is
    // tried at several places, and Newton's method repairs what the choice got wrong.
    for threshold in [1e-12, 1e-7, 1e-4, 1.0] {
        let candidates = [
            pair_up(&roots, |z| z.1.abs() > threshold * z.0.hypot(z.1)),
            pair_up(&roots, |z| z.1.abs() > threshold * size),
        ];
        for mut factors in candidates.into_iter().flatten() {
            let mut error = expansion_error(monic, factors);
            for _ in 0..20 {
                let Some(next) = newton(monic, factors) else { break };
                let next_error = expansion_error(monic, next);
                if next_error >= error {
                    break;
                }
                (error, factors) = (next_error, next);
            }
            if error < best.0 {
                best = (error, factors);
            }
        }
        if best.0 < 2.0 * f64::EPSILON {
            break;
        }
    }
    (best.0 <= FACTOR_TOLERANCE).then_some(best.1)
}

/// Two quadratics from four roots: one of each conjugate pair stands for both, real roots pair in
/// order.
fn pair_up(
    roots: &[(f64, f64); 4],
    is_complex: impl Fn(&(f64, f64)) -> bool,
) -> Option<[(f64, f64); 2]> {
    let (complex, mut real): (Vec<_>, Vec<_>) = roots.iter().copied().partition(is_complex);
    let mut pairs: Vec<(f64, f64)> =
        complex.iter().filter(|z| z.1 > 0.0).map(|z| (-2.0 * z.0, z.0 * z.0 + z.1 * z.1)).collect();
    real.sort_by(|a, b| a.0.total_cmp(&b.0));
    pairs.extend(real.chunks_exact(2).map(|r| (-(r[0].0 + r[1].0), r[0].0 * r[1].0)));
    <[(f64, f64); 2]>::try_from(pairs).ok()
}

/// Largest error of a coefficient of the product, relative to the sum of its absolute terms, with
/// each `|p|` counted as at least `2√|q|`, twice the geometric mean of the two roots: a coefficient
/// that vanishes because its terms cancel, or because `p` does, is not held to a relative error.
fn expansion_error(m: [f64; 4], [(p1, q1), (p2, q2)]: [(f64, f64); 2]) -> f64 {
    let sums = [q1 * q2, p1 * q2 + p2 * q1, q1 + q2 + p1 * p2, p1 + p2];
    let size = |p: f64, q: f64| (p.abs().max(2.0 * q.abs().sqrt()), q.abs());
    let ((p1, q1), (p2, q2)) = (size(p1, q1), size(p2, q2));
    let scales = [q1 * q2, p1 * q2 + p2 * q1, q1 + q2 + p1 * p2, p1 + p2];
    let mut worst = 0.0f64;
    for ((m, sum), scale) in m.iter().zip(sums).zip(scales) {
        if sum != *m {
            let error = (sum - m).abs() / (scale + m.abs());
            worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
        }
    }
    worst
}

/// One Newton step for `p₁ + p₂ = m₃`, `q₁ + q₂ + p₁p₂ = m₂`, `p₁q₂ + p₂q₁ = m₁`, `q₁q₂ = m₀`.
fn newton(m: [f64; 4], [(p1, q1), (p2, q2)]: [(f64, f64); 2]) -> Option<[(f64, f64); 2]> {
    let mut a = [
        [1.0, 0.0, 1.0, 0.0, m[3] - (p1 + p2)],
        [p2, 1.0, p1, 1.0, m[2] - (q1 + q2 + p1 * p2)],
        [q2, p2, q1, p1, m[1] - (p1 * q2 + p2 * q1)],
        [0.0, q2, 0.0, q1, m[0] - q1 * q2],
    ];
    let d = super::linear::solve(&mut a)?;
    Some([(p1 + d[0], q1 + d[1]), (p2 + d[2], q2 + d[3])])
}

/// Complex roots `(re, im)` of `y⁴ + m[3]·y³ + m[2]·y² + m[1]·y + m[0]`.
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
    // Fujiwara's bound: every root lies within 2·max |m[4−k]|^(1/k).
    let bound = [m[3].abs(), m[2].abs().sqrt(), m[1].abs().cbrt(), m[0].abs().sqrt().sqrt()];
    let radius = 2.0 * bound.into_iter().fold(0.0, f64::max);
    // Four directions without symmetry about the real axis, so that conjugate roots can separate.
    let mut z: [C; 4] = [(1.0, 0.0), (0.4, 0.9), (-0.65, 0.72), (-0.908, -0.297)]
        .map(|(re, im)| (re * radius * 0.5, im * radius * 0.5));
    for _ in 0..500 {
        let mut moved = 0.0f64;
        for i in 0..4 {
            let mut denominator = (1.0, 0.0);
            for j in 0..4 {
                if j != i {
                    denominator = mul(denominator, sub(z[i], z[j]));
                }
            }
            if denominator != (0.0, 0.0) {
                let step = div(eval(z[i]), denominator);
                z[i] = sub(z[i], step);
                moved = moved.max(step.0.hypot(step.1) / z[i].0.hypot(z[i].1).max(1e-300));
            }
        }
        if moved < 1e-16 {
            break;
        }
    }
    z
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coefficients::presets;
    use proptest::prelude::*;

    /// Largest error of the factored form on `[0, 1.2]`, relative to the sum of the monomials'
    /// absolute values: what a backward-stable evaluation is judged by.
    fn worst_error(row: &[f64]) -> f64 {
        let p = OddPolynomial::new(row).unwrap();
        let f = p.nonic_factors().unwrap_or_else(|e| panic!("{row:?}: {e}"));
        (0..=240)
            .map(|i| {
                let x = f64::from(i) / 200.0;
                let y = x * x;
                let scale = row.iter().rev().fold(0.0, |acc, c| acc * y + c.abs()) * x;
                (f.eval(x) - p.eval(x)).abs() / scale.max(f64::MIN_POSITIVE)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn factored_nonic_is_the_polynomial() {
        for row in [
            // four real roots: 1/4, 1/3, 1/2, 1
            vec![1.0, -10.0, 35.0, -50.0, 24.0],
            // negative lead, two real roots
            vec![-2.0, 1.0, 0.5, 3.0, -1.0],
            // roots at zero
            vec![0.0, 0.0, 0.0, 0.0, 1.0],
            vec![0.0, 0.0, 1.0, -2.0, 1.0],
            // two double roots, one in each quadratic
            vec![4.0, -12.0, 13.0, -6.0, 1.0],
            // a double complex pair: both quadratics are equal, (y² + 1)²
            vec![1.0, 0.0, 2.0, 0.0, 1.0],
            // a fourfold root, (y − 1)⁴
            vec![1.0, -4.0, 6.0, -4.0, 1.0],
            // widely spread roots
            vec![1e-3, -10.0, 35.0, -50.0, 1e-5],
            // Taylor coefficients of the sign function at 1: (315, −420, 378, −180, 35)/128
            vec![2.4609375, -3.28125, 2.953125, -1.40625, 0.2734375],
        ] {
            let error = worst_error(&row);
            // A dozen roundings of relative size 2⁻⁵³ each, and the factors to FACTOR_TOLERANCE.
            assert!(error < 1e-11, "{row:?}: {error:e}");
        }
    }

    #[test]
    fn published_nonics_factor_to_rounding_and_stay_positive() {
        for name in ["nonic3_band25", "nonic3_band12"] {
            let schedule = presets::preset(name).unwrap();
            for p in schedule.polynomials() {
                // Measured 3.3e-16 to 3.9e-16; a dozen roundings of half an epsilon are the bound.
                let error = worst_error(p.coefficients());
                assert!(error < 6.0 * f64::EPSILON, "{:?}: {error:e}", p.coefficients());
                // Both factors positive where singular values live: neither amplifies rounding of
                // the other by cancellation.
                let f = p.nonic_factors().unwrap();
                for i in 0..=1000 {
                    let y = (f64::from(i) * 1e-3).powi(2);
                    assert!(f.s * (y * y + f.p1 * y) + f.a1 > 0.0);
                    assert!(f.s * f.sign * (y * y + f.p2 * y) + f.a2 > 0.0);
                }
            }
        }
    }

    #[test]
    fn a_vanishing_leading_coefficient_is_refused_not_divided_by() {
        for row in [
            [1.5, -0.5, 0.0, 0.0, 0.0],
            [3.4445, -4.775, 2.0315, 0.0, 0.0],
            [1.0, -10.0, 35.0, -50.0, 0.0],
            [1.0, -10.0, 35.0, -50.0, 1e-300],
            [1.0, -10.0, 35.0, -50.0, f64::MIN_POSITIVE],
        ] {
            let e = OddPolynomial::new(&row).unwrap().nonic_factors().unwrap_err();
            assert!(e.is_invalid_config() && e.to_string().contains("real degree"), "{row:?}: {e}");
        }
        let quintic = OddPolynomial::new(&[1.0, 2.0, 3.0]).unwrap();
        assert!(quintic.nonic_factors().unwrap_err().to_string().contains("degree 9"));
    }

    proptest! {
        /// Any quartic with coefficients in a range factors to the stated accuracy or is refused;
        /// the result is never NaN.
        #[test]
        fn factors_are_accurate_or_refused(
            c in proptest::array::uniform5(-700.0f64..700.0), tiny in -12i32..1,
        ) {
            let mut c = c;
            c[4] *= 10f64.powi(tiny);
            if let Ok(f) = OddPolynomial::new(&c).unwrap().nonic_factors() {
                prop_assert!(f.a1.is_finite() && f.a2.is_finite());
                prop_assert!(worst_error(&c) < 1e-11, "{c:?}: {}", worst_error(&c));
            } else {
                // Generic coefficients of comparable size always factor.
                prop_assert!(c[4].abs() < 1e-3, "{c:?} was refused");
            }
        }
    }
}
