//! Real roots of a polynomial in an interval: every sign change, bracketed, to the last bit or two.

/// `c[0] + c[1]·y + c[2]·y² + …` by Horner's rule.
pub(super) fn eval(c: &[f64], y: f64) -> f64 {
    c.iter().rev().copied().reduce(|acc, c| acc * y + c).unwrap_or(0.0)
}

/// Every point of `[lo, hi]` where the polynomial with coefficients `c` (lowest degree first)
/// changes sign or is zero, in ascending order.
///
/// Between neighbouring roots of its derivative a polynomial is monotone, so one sign test a piece
/// finds every root; the roots of the derivative come from the same rule, down to degree 1. A
/// double root may be found or not: at rounding level it is not decidable, and no caller depends on
/// it (a double root of `p'` is no extremum of `p`).
pub(super) fn in_interval(c: &[f64], lo: f64, hi: f64) -> Vec<f64> {
    let used = c.iter().rposition(|&c| c != 0.0).map_or(0, |last| last + 1);
    let c = &c[..used];
    if c.len() < 2 {
        return Vec::new();
    }
    let mut nodes = vec![lo];
    if c.len() > 2 {
        let mut power = 0.0;
        let derivative: Vec<f64> = c[1..]
            .iter()
            .map(|c| {
                power += 1.0;
                c * power
            })
            .collect();
        nodes.extend(in_interval(&derivative, lo, hi));
    }
    nodes.push(hi);
    let mut roots = Vec::new();
    for pair in nodes.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let (fa, fb) = (eval(c, a), eval(c, b));
        if fa == 0.0 {
            roots.push(a);
        } else if (fa < 0.0 && fb > 0.0) || (fa > 0.0 && fb < 0.0) {
            roots.push(bracketed(c, a, b, fa < 0.0));
        }
    }
    if eval(c, hi) == 0.0 {
        roots.push(hi);
    }
    roots.dedup();
    roots
}

/// The root between `a` and `b`, where the sign differs: Newton's step where it stays inside the
/// bracket and shrinks it, a halving where it does not.
fn bracketed(c: &[f64], mut a: f64, mut b: f64, rising: bool) -> f64 {
    let mut x = 0.5 * (a + b);
    let mut newton_steps = 0;
    while a < x && x < b {
        let (mut f, mut slope) = (0.0, 0.0);
        for c in c.iter().rev() {
            slope = slope * x + f;
            f = f * x + c;
        }
        if f == 0.0 {
            return x;
        }
        if (f < 0.0) == rising {
            a = x;
        } else {
            b = x;
        }
        let next = x - f / slope;
        let step = (next - x).abs();
        // Newton converges in a handful of steps or not at all; every fourth step halves, so that
        // the bracket cannot creep in from one end.
        newton_steps += 1;
        x = if newton_steps % 4 != 0 && a < next && next < b { next } else { 0.5 * (a + b) };
        if step <= f64::EPSILON * x.abs() && a < next && next < b {
            return next;
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_root_inside_and_none_outside() {
        // (y - 1e-6)(y - 0.25)(y - 0.5)(y - 3): expanded, so its own coefficients carry rounding;
        // the smallest root is then exact to about eps · (largest term)/(slope·root) = 1e-16/1e-6.
        let roots = [1e-6, 0.25, 0.5, 3.0];
        let mut c = vec![1.0];
        for r in roots {
            c.insert(0, 0.0);
            for i in 0..c.len() - 1 {
                c[i] -= r * c[i + 1];
            }
        }
        let found = in_interval(&c, 0.0, 4.0);
        assert_eq!(found.len(), 4, "{found:?}");
        for (found, exact) in found.iter().zip(roots) {
            assert!((found - exact).abs() < 1e-14 * exact.max(1e-1), "{found} for {exact}");
        }
        assert_eq!(in_interval(&c, 0.1, 1.0).len(), 2);
        assert_eq!(in_interval(&c, 0.6, 2.0), Vec::<f64>::new());
    }

    #[test]
    fn zero_coefficients_and_roots_at_the_ends() {
        assert_eq!(in_interval(&[0.0, 0.0, 0.0], 0.0, 1.0), Vec::<f64>::new());
        assert_eq!(in_interval(&[-1.0, 1.0, 0.0, 0.0], 0.0, 1.0), vec![1.0]);
        assert_eq!(in_interval(&[0.0, -1.0, 1.0], 0.0, 1.0), vec![0.0, 1.0]);
    }
}
