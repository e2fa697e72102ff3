//! Minimax odd polynomials for the constant 1 on `[l, u]`, by Remez exchange.

use super::super::{OddPolynomial, linear, roots};
use crate::error::{Error, Result};

/// A minimax polynomial and its error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Minimax {
    /// The polynomial `p` with the smallest `max |1 − p(x)|` on the interval.
    pub polynomial: OddPolynomial,
    /// That maximum; `p` maps the interval to `[1 − error, 1 + error]`.
    pub error: f64,
}

/// Smallest ratio of the ends: below, an odd polynomial of these degrees is useless (error 1 −
/// 1e-11).
const MIN_RATIO: f64 = 1e-12;

/// The ratio of the ends above which degree 5 is the Taylor polynomial at `u`: the rule of the
/// released Polar Express code, `1 − 5e-6 ≤ l/u`. Other degrees are cut where their error is as
/// small.
const TAYLOR_GAP: f64 = 5e-6;

/// Error at which an exchange that has lost its extrema is accepted: of the size of the rounding.
const NOISE: f64 = 1e-12;

/// The odd polynomial of degree 3, 5 or 9 closest to 1 on `[lower, upper]`, and its error.
///
/// # Errors
/// Another degree; ends that are not finite, not positive or not in order, or a ratio below 1e-12;
/// an exchange that does not converge.
pub fn minimax(degree: usize, lower: f64, upper: f64) -> Result<Minimax> {
    if !matches!(degree, 3 | 5 | 9) {
        return Err(Error::invalid_config(format!(
            "a polynomial of a schedule has degree 3, 5 or 9, found `{degree}`"
        )));
    }
    let (coefficients, error) = minimax_coefficients(degree, lower, upper)?;
    Ok(Minimax { polynomial: OddPolynomial::new(&coefficients)?, error })
}

/// The odd coefficients (lowest degree first) of the minimax polynomial of any odd degree from 3 to
/// 17, and its error.
///
/// The polynomial with `k` coefficients equioscillates: at `k + 1` points `l = x₀ < … < x_k = u`,
/// `p(x_j) = 1 − (−1)^j·E`. Solving for given points and moving the inner ones to the extrema of
/// the result converges quadratically: `p − 1` has `k` zeros between the points, so all `k − 1`
/// roots of `p'` lie between them, and none has to be searched for elsewhere. Cubics have the
/// closed form
///
/// ```text
/// α = √(3/(u² + lu + l²)),  β = 4/(2 + lu(l + u)α³),  p(x) = β·(3αx − α³x³)/2,  E = β − 1
/// ```
///
/// # Errors
/// See [`minimax`], with any odd degree from 3 to 17.
///
/// # Sources
/// arXiv 2505.16932, `optimal_quintic` of the authors' code; the cubic also in arXiv 2506.10935.
pub fn minimax_coefficients(degree: usize, lower: f64, upper: f64) -> Result<(Vec<f64>, f64)> {
    if degree.is_multiple_of(2) || !(3..=17).contains(&degree) {
        return Err(Error::invalid_config(format!(
            "a minimax odd polynomial has an odd degree from 3 to 17, found `{degree}`"
        )));
    }
    if !(lower > 0.0 && lower <= upper && upper.is_finite()) || lower / upper < MIN_RATIO {
        return Err(Error::invalid_config(format!(
            "the ends of the interval must be positive, finite, in order and not more than a \
             factor 1e12 apart, found [{lower}, {upper}]"
        )));
    }
    let terms = degree.div_ceil(2);
    if terms == 2 {
        return Ok(cubic(lower, upper));
    }
    let (mut coefficients, error) = unit_minimax(terms, lower / upper)?;
    let mut power = upper;
    for c in &mut coefficients {
        *c /= power;
        power *= upper * upper;
    }
    Ok((coefficients, error))
}

/// The ratio `l/u` at which the minimax error of that degree is `error`.
pub(super) fn ratio_for_error(degree: usize, error: f64) -> Result<f64> {
    let (mut lo, mut hi) = (MIN_RATIO, 1.0);
    if minimax_coefficients(degree, lo, 1.0)?.1 < error {
        return Err(Error::invalid_config(format!(
            "the composition would begin below {MIN_RATIO}; take fewer polynomials or a wider \
             final band"
        )));
    }
    loop {
        // Geometric while the ends are far apart: a first interval begins at 1e-3 or below.
        let mid = if lo < 0.25 * hi { (lo * hi).sqrt() } else { 0.5 * (lo + hi) };
        if mid <= lo || mid >= hi {
            return Ok(lo);
        }
        if minimax_coefficients(degree, mid, 1.0)?.1 > error {
            lo = mid;
        } else {
            hi = mid;
        }
    }
}

fn cubic(l: f64, u: f64) -> (Vec<f64>, f64) {
    let square = 3.0 / (u * u + l * u + l * l);
    let alpha = square.sqrt();
    let cube = square * alpha;
    let beta = 4.0 / (2.0 + l * u * (l + u) * cube);
    (vec![1.5 * beta * alpha, -0.5 * beta * cube], beta - 1.0)
}

/// Taylor coefficients of the sign function at 1: `x·Σ_{i<k} C(2i, i)/4^i·(1 − x²)^i`.
fn taylor(terms: usize) -> Vec<f64> {
    let mut coefficients = vec![0.0; terms];
    let mut power = vec![1.0];
    let mut factor = 1.0;
    let mut i = 0.0;
    while power.len() <= terms {
        for (c, p) in coefficients.iter_mut().zip(&power) {
            *c += factor * p;
        }
        // power ← power·(1 − y)
        let mut next = power.clone();
        next.push(0.0);
        for (n, p) in next[1..].iter_mut().zip(&power) {
            *n -= p;
        }
        power = next;
        factor *= (2.0 * i + 1.0) / (2.0 * i + 2.0);
        i += 1.0;
    }
    coefficients
}

/// The minimax polynomial on `[l, 1]` with that many coefficients, at least 3.
fn unit_minimax(terms: usize, l: f64) -> Result<(Vec<f64>, f64)> {
    let count = exact(terms);
    if 1.0 - l <= TAYLOR_GAP.powf(3.0 / count) {
        let coefficients = taylor(terms);
        let error = 1.0 - roots::eval(&coefficients, l * l) * l;
        return Ok((coefficients, error.abs()));
    }
    // Extrema of the Chebyshev polynomial on [l, 1]; the start of the published code, at any
    // degree.
    let mut nodes: Vec<f64> = (0..=terms)
        .map(|j| {
            let angle = std::f64::consts::PI * exact(j) / count;
            0.5 * (1.0 + l) - 0.5 * (1.0 - l) * angle.cos()
        })
        .collect();
    (nodes[0], nodes[terms]) = (l, 1.0);
    let mut last: Option<(Vec<f64>, f64)> = None;
    let mut last_change = f64::INFINITY;
    for round in 0..100 {
        let Some((coefficients, error)) = levelled(&nodes) else { break };
        let inner = extrema(&coefficients, l);
        let change = last.as_ref().map_or(f64::INFINITY, |(_, e)| (e - error).abs());
        // Converged, or as far as the rounding of its terms lets it (they reach 1e5 at degree 17):
        // quadratic convergence halts where the change stops shrinking.
        let rounding = 32.0 * f64::EPSILON * coefficients.iter().map(|c| c.abs()).sum::<f64>();
        let settled = change <= 1e-15 || (round > 3 && change >= last_change && change < rounding);
        if settled && inner.len() + 2 == nodes.len() {
            return Ok((coefficients, error));
        }
        last_change = change;
        let found = inner.len();
        last = Some((coefficients, error));
        if found + 2 != nodes.len() {
            break;
        }
        nodes[1..=found].copy_from_slice(&inner);
    }
    match last {
        // So close to Taylor's polynomial that rounding decides where its extrema are.
        Some((coefficients, error)) if error.abs() < NOISE => Ok((coefficients, error.abs())),
        _ => Err(Error::invalid_config(format!(
            "the minimax polynomial of degree {} on [{l}, 1] did not converge",
            2 * terms - 1
        ))),
    }
}

/// The polynomial and `E` with `p(x_j) + (−1)^j·E = 1` at every node.
fn levelled(nodes: &[f64]) -> Option<(Vec<f64>, f64)> {
    let terms = nodes.len() - 1;
    let mut sign = -1.0;
    let mut rows: Vec<Vec<f64>> = nodes
        .iter()
        .map(|&x| {
            let mut row = Vec::with_capacity(terms + 2);
            let mut power = x;
            for _ in 0..terms {
                row.push(power);
                power *= x * x;
            }
            sign = -sign;
            row.extend([sign, 1.0]);
            row
        })
        .collect();
    let mut solution = linear::solve(&mut rows)?;
    let error = solution.pop()?;
    Some((solution, error))
}

/// Points of `(l, 1)` where `p'` changes sign.
fn extrema(coefficients: &[f64], l: f64) -> Vec<f64> {
    let mut odd = -1.0;
    let slopes: Vec<f64> = coefficients
        .iter()
        .map(|c| {
            odd += 2.0;
            c * odd
        })
        .collect();
    let mut points: Vec<f64> =
        roots::in_interval(&slopes, l * l, 1.0).into_iter().map(f64::sqrt).collect();
    points.retain(|&x| l < x && x < 1.0);
    points
}

/// A small count as a float.
fn exact(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubic_closed_form_is_the_exchange() {
        for (l, u) in [(1e-3, 1.0), (0.02, 1.0), (0.3, 1.7), (0.9, 1.1), (0.5, 0.6)] {
            let (found, error) = cubic(l, u);
            // One exchange at the closed form's own extremum is the fixed point of the exchange.
            let x = (found[0] / (-3.0 * found[1])).sqrt();
            let (exchanged, level) = levelled(&[l, x, u]).unwrap();
            for (a, b) in found.iter().zip(&exchanged) {
                // A 3 × 3 system on three points a distance (u − l)/2 apart: rounding over that
                // distance.
                let tolerance = 1e-14 * a.abs().max(1.0) / ((u - l) / u).min(1.0);
                assert!((a - b).abs() <= tolerance, "[{l}, {u}]: {found:?} {exchanged:?}");
            }
            assert!((error - level).abs() <= 1e-14, "[{l}, {u}]: {error} {level}");
            let p = OddPolynomial::new(&found).unwrap();
            for (at, value) in [(l, 1.0 - error), (x, 1.0 + error), (u, 1.0 - error)] {
                assert!((p.eval(at) - value).abs() <= 1e-14, "[{l}, {u}] at {at}");
            }
        }
        // l = 0 would give 3√3·(x − x³), the cubic of largest slope with p ≤ 2; β falls by 5.2·l.
        let (found, error) = cubic(1e-12, 1.0);
        assert!((found[0] - 27f64.sqrt()).abs() < 2e-11 && (error - 1.0).abs() < 1e-11);
    }

    #[test]
    fn taylor_rows_are_the_known_ones() {
        assert_eq!(taylor(2), [1.5, -0.5]);
        assert_eq!(taylor(3), [15.0 / 8.0, -10.0 / 8.0, 3.0 / 8.0]);
        assert_eq!(taylor(5), [315.0, -420.0, 378.0, -180.0, 35.0].map(|c| c / 128.0));
    }

    #[test]
    fn the_taylor_limit_continues_the_exchange() {
        for terms in 3..=9 {
            let gap = TAYLOR_GAP.powf(3.0 / f64::from(u32::try_from(terms).unwrap()));
            // Just above and just below the switch the polynomials agree where they are used.
            let (above, _) = unit_minimax(terms, 1.0 - 1.01 * gap).unwrap();
            let (below, _) = unit_minimax(terms, 1.0 - 0.99 * gap).unwrap();
            for i in 0..=10 {
                let x = 1.0 - gap * f64::from(i) / 10.0;
                let (a, b) = (roots::eval(&above, x * x) * x, roots::eval(&below, x * x) * x);
                // Both are 1 to rounding, of terms that add up to C(2k, k)-like sums below 1e4.
                assert!((a - b).abs() < 1e-12, "{terms} terms at {x}: {a} {b}");
            }
        }
    }

    #[test]
    fn ratio_for_error_inverts_the_error() {
        for degree in [3, 5, 9] {
            for error in [0.97, 0.25, 1e-3, 1e-6] {
                let ratio = ratio_for_error(degree, error).unwrap();
                let (_, found) = minimax_coefficients(degree, ratio, 1.0).unwrap();
                // The error is a difference from 1: absolute rounding, times the terms' size (600).
                assert!((found - error).abs() < 1e-13, "{degree}: {found} for {error}");
            }
        }
    }
}
