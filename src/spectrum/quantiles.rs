//! Quantiles of the laws that singular values of random matrices follow.

/// Intervals of the trapezoidal sums; the densities are smooth in their parameter.
const STEPS: u32 = 8192;

/// Values of a law at the quantiles `(k + ½)/n`, descending; `value` increases on `[0, end]`, where `density` is that
/// of its parameter, up to a factor.
fn quantiles(
    n: usize,
    end: f64,
    density: impl Fn(f64) -> f64,
    value: impl Fn(f64) -> f64,
) -> Vec<f64> {
    let step = end / f64::from(STEPS);
    let mut cumulative = Vec::with_capacity(STEPS as usize + 1);
    let (mut sum, mut before) = (0.0, density(0.0));
    cumulative.push(0.0);
    for i in 1..=STEPS {
        let now = density(f64::from(i) * step);
        sum += 0.5 * (before + now);
        before = now;
        cumulative.push(sum);
    }
    let mut values: Vec<f64> = (0..n)
        .map(|k| {
            let wanted = sum * (k as f64 + 0.5) / n as f64;
            let i = cumulative.partition_point(|c| *c < wanted).clamp(1, STEPS as usize);
            let (low, high) = (cumulative[i - 1], cumulative[i]);
            let part = if high > low { (wanted - low) / (high - low) } else { 0.0 };
            value(((i - 1) as f64 + part) * step)
        })
        .collect();
    values.reverse();
    values
}

/// Singular values of an `n × m` matrix of normal numbers of variance `1/m`.
///
/// With `y = n/m` the squares follow the Marchenko–Pastur law on `[(1 − √y)², (1 + √y)²]`; at
/// `λ = 1 + y − 2√y·cos θ` its density in `θ` is `2·sin²θ/(πλ)`, which is smooth, and `(1 + cos θ)/π` for
/// a square matrix.
pub(super) fn gaussian(n: usize, m: usize) -> Vec<f64> {
    let y = n as f64 / m as f64;
    let lambda = |theta: f64| {
        // 1 + y − 2√y·cos θ without the cancellation near θ = 0.
        let half = (0.5 * theta).sin();
        (1.0 - y.sqrt()).powi(2) + 4.0 * y.sqrt() * half * half
    };
    let density = |theta: f64| {
        let l = lambda(theta);
        // At the hard edge of a square matrix sin²θ/λ = cos²(θ/2) → 1.
        if l < 1e-300 { 1.0 } else { theta.sin().powi(2) / l }
    };
    quantiles(n, std::f64::consts::PI, density, |theta| lambda(theta).sqrt())
}

/// Singular values of a product of `factors` independent square matrices of normal numbers of variance `1/n`.
///
/// Their squares follow the Fuss–Catalan law: with `s` factors it has the density `sin²φ·sin^(s−1)(sφ)/(π·sin^s((s+1)φ))` at
/// `λ = sin^(s+1)((s+1)φ)/(sin φ·sin^s(sφ))`, φ in `(0, π/(s + 1))`.
///
/// Source: Biane 1998; Penson and Życzkowski, Physical Review E 83, 061118 (2011).
pub(super) fn product(n: usize, factors: u32) -> Vec<f64> {
    let s = f64::from(factors);
    let end = std::f64::consts::PI / (s + 1.0);
    // t runs from the hard edge at 0, where φ = end, to the largest value; sin((s + 1)φ) = sin((s + 1)t).
    let angles = |t: f64| {
        let phi = end - t;
        (phi.sin(), (s * phi).sin(), ((s + 1.0) * t).sin(), phi)
    };
    let log_lambda = |t: f64| {
        let (one, all, next, _) = angles(t);
        (s + 1.0) * next.ln() - one.ln() - s * all.ln()
    };
    // λ·ρ(λ) = sin φ·sin((s + 1)φ)/(π·sin(sφ)), which vanishes with λ at the hard edge, as −d ln λ/dφ diverges.
    let density = |t: f64| {
        if t <= 0.0 {
            // sin((s + 1)t)·(s + 1)²·cot((s + 1)t) → (s + 1)².
            return (s + 1.0).powi(2) * end.sin() / (s * end).sin();
        }
        // Every term cancels towards the soft edge.
        if end - t < 1e-9 * end {
            return 0.0;
        }
        let (one, all, next, phi) = angles(t);
        let slope = (s + 1.0).powi(2) * ((s + 1.0) * t).cos() / next
            + phi.cos() / one
            + s * s * (s * phi).cos() / all;
        slope * one * next / all
    };
    quantiles(n, end, density, |t| (0.5 * log_lambda(t)).exp())
}

/// Values whose logarithms are normal with that standard deviation.
pub(super) fn lognormal(n: usize, deviation: f64) -> Vec<f64> {
    // Nine deviations leave 1e-19 outside.
    const REACH: f64 = 9.0;
    let normal = |t: f64| t - REACH;
    quantiles(
        n,
        2.0 * REACH,
        |t| (-0.5 * normal(t).powi(2)).exp(),
        |t| (deviation * normal(t)).exp(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_of_one_is_a_square_gaussian() {
        for (a, b) in product(64, 1).into_iter().zip(gaussian(64, 64)) {
            // Two quadratures of one law with 8192 intervals.
            assert!((a - b).abs() < 1e-6 * a.max(1e-3), "{a} {b}");
        }
    }

    /// The moments of the Fuss–Catalan law: mean of `λ^k` is `binomial(sk + k, k)/(sk + 1)`.
    #[test]
    fn products_have_their_moments() {
        for (factors, second, largest) in [(2u32, 3.0, 6.75f64), (3, 4.0, 256.0 / 27.0)] {
            let values = product(4000, factors);
            let mean = |power: i32| {
                values.iter().map(|x| x.powi(power)).sum::<f64>() / values.len() as f64
            };
            // Midpoints of 4000 quantiles of a law with a hard edge and a soft one.
            assert!((mean(2) - 1.0).abs() < 2e-3, "{factors}: {}", mean(2));
            assert!((mean(4) / second - 1.0).abs() < 5e-3, "{factors}: {}", mean(4));
            assert!((values[0] / largest.sqrt() - 1.0).abs() < 0.01, "{factors}: {}", values[0]);
        }
    }

    /// Against the singular values of an actual product of two.
    #[test]
    fn products_are_those_of_matrices() {
        const N: usize = 200;
        let mut random = super::super::Normal::new(5);
        let mut matrix = || {
            let scale = (N as f64).sqrt();
            faer::Mat::<f64>::from_fn(N, N, |_, _| random.next() / scale)
        };
        let found = (matrix() * matrix()).singular_values().unwrap();
        let law = product(N, 2);
        for k in [10, 20, 50, 100, 150] {
            // Fluctuations of 1/n of the width 2.6 of the law, a few of them; the largest ones have more.
            assert!((found[k] - law[k]).abs() < 5.0 * 2.6 / 200.0, "{k}: {} {}", found[k], law[k]);
        }
    }

    #[test]
    fn lognormal_quantiles_are_symmetric_in_the_logarithm() {
        let values = lognormal(101, 1.5);
        assert!((values[50] - 1.0).abs() < 1e-9);
        assert!((values[10] * values[90] - 1.0).abs() < 1e-9);
        // 10.5/101 of them lie above: 1.2594 deviations.
        assert!((values[10].ln() / 1.5 - 1.2594).abs() < 1e-3, "{}", values[10].ln() / 1.5);
    }
}
