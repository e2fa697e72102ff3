//! Paired comparison of two schedules over seeds: Student's t, one-sided.

use serde::Serialize;

/// How sure a bound must be.
pub(crate) const CONFIDENCE: f64 = 0.95;

/// Differences of paired losses (this one's minus the baseline's) and what they say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Paired {
    /// Number of pairs.
    pub(crate) pairs: usize,
    /// Mean difference, nats; negative where this one is better.
    pub(crate) mean: f64,
    /// Sample standard deviation of the differences.
    pub(crate) deviation: f64,
    /// One-sided 95 % upper bound of the mean difference.
    pub(crate) upper: f64,
    /// Probability of a mean this low or lower if the true difference were the margin.
    pub(crate) p_value: f64,
    /// Whether the bound lies below the margin.
    pub(crate) non_inferior: bool,
}

impl Paired {
    /// Compares losses of the same seeds; `None` for fewer than two pairs or a loss that is not finite.
    pub(crate) fn of(losses: &[f64], baseline: &[f64], margin: f64) -> Option<Self> {
        let pairs = losses.len().min(baseline.len());
        let differences: Vec<f64> = losses.iter().zip(baseline).map(|(a, b)| a - b).collect();
        if pairs < 2 || differences.iter().any(|d| !d.is_finite()) {
            return None;
        }
        let n = pairs as f64;
        let mean = differences.iter().sum::<f64>() / n;
        let squares: f64 = differences.iter().map(|d| (d - mean) * (d - mean)).sum();
        let deviation = (squares / (n - 1.0)).sqrt();
        let error = deviation / n.sqrt();
        let upper = mean + t_quantile(CONFIDENCE, n - 1.0) * error;
        let p_value = if error > 0.0 {
            t_cdf((mean - margin) / error, n - 1.0)
        } else {
            f64::from(u8::from(mean >= margin))
        };
        Some(Self { pairs, mean, deviation, upper, p_value, non_inferior: upper < margin })
    }
}

/// Distribution function of Student's t.
pub(crate) fn t_cdf(t: f64, freedom: f64) -> f64 {
    let tail = 0.5 * incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t));
    if t > 0.0 { 1.0 - tail } else { tail }
}

/// The t that a share `p` in (0, 1) of the distribution lies below, by bisection.
pub(crate) fn t_quantile(p: f64, freedom: f64) -> f64 {
    let (mut low, mut high) = (-1.0, 1.0);
    while t_cdf(low, freedom) > p && low > -1e12 {
        low *= 2.0;
    }
    while t_cdf(high, freedom) < p && high < 1e12 {
        high *= 2.0;
    }
    // Until the bracket is as narrow as f64 allows.
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if t_cdf(middle, freedom) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Regularised incomplete beta function `I_x(a, b)`: the continued fraction (DLMF 8.17.22) on the side where
/// it converges fast, evaluated by Lentz's algorithm.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    const TINY: f64 = 1e-300;
    let guard = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut d = 1.0 / guard(1.0 - (a + b) * x / (a + 1.0));
    let (mut c, mut fraction) = (1.0, d);
    for i in 1..500u32 {
        let m = f64::from(i);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / guard(1.0 + even * d);
        c = guard(1.0 + even / c);
        fraction *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / guard(1.0 + odd * d);
        c = guard(1.0 + odd / c);
        fraction *= d * c;
        if (d * c - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    let front = ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln();
    front.exp() * fraction / a
}

/// `ln Γ(x)` for positive x: Stirling's series (DLMF 5.11.1) after shifting x above 15.
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 15.0 {
        shift += x.ln();
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series =
        (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r * (1.0 / 1680.0 - r / 1188.0)))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_gamma_at_integers_and_halves() {
        // Γ(n) = (n−1)!, Γ(1/2) = √π.
        let mut factorial = 1.0f64;
        for n in 1..20u32 {
            assert!((ln_gamma(f64::from(n)) - factorial.ln()).abs() < 1e-13 * 40.0, "{n}");
            factorial *= f64::from(n);
        }
        assert!((ln_gamma(0.5) - 0.5 * std::f64::consts::PI.ln()).abs() < 1e-13);
    }

    #[test]
    fn student_t_is_that_of_closed_forms_and_scipy() {
        // One degree of freedom is Cauchy's distribution, two have an algebraic one.
        for t in [-30.0f64, -2.0, -0.3, 0.0, 0.7, 1.0, 12.0] {
            let cauchy = 0.5 + t.atan() / std::f64::consts::PI;
            assert!((t_cdf(t, 1.0) - cauchy).abs() < 1e-14, "{t}");
            let two = 0.5 + t / (2.0 * (2.0 + t * t).sqrt());
            assert!((t_cdf(t, 2.0) - two).abs() < 1e-14, "{t}");
        }
        // scipy.stats.t.ppf(0.95, n), scipy 1.17.1.
        for (n, exact) in SCIPY_QUANTILES {
            let found = t_quantile(0.95, n);
            assert!((found - exact).abs() < 1e-12 * exact, "{n}: {found} {exact}");
        }
        assert!((t_quantile(0.05, 7.0) + t_quantile(0.95, 7.0)).abs() < 1e-12);
    }

    const SCIPY_QUANTILES: [(f64, f64); 7] = [
        (1.0, 6.313_751_514_675_037),
        (2.0, 2.919_985_580_353_724_2),
        (4.0, 2.131_846_786_326_649_5),
        (7.0, 1.894_578_605_090_006_2),
        (15.0, 1.753_050_355_692_572),
        (30.0, 1.697_260_886_593_957),
        (100.0, 1.660_234_326_085_339_2),
    ];

    #[test]
    fn a_paired_comparison_is_that_of_scipy() {
        let a = [0.512, 0.498, 0.530, 0.521, 0.507, 0.515, 0.525, 0.503];
        let b = [0.509, 0.500, 0.522, 0.518, 0.509, 0.511, 0.520, 0.506];
        let p = Paired::of(&a, &b, 0.01).unwrap();
        // ttest_rel(a − 0.01, b, alternative='less'), and mean + t.ppf(0.95, 7)·deviation/√8, scipy 1.17.1.
        let close = |found: f64, exact: f64| (found - exact).abs() < 1e-11 * exact;
        assert!(close(p.p_value, 0.000_345_406_206_087_965_4), "{p:?}");
        assert!(close(p.mean, 0.002) && close(p.deviation, 0.003_927_922_024_247_866), "{p:?}");
        assert!(close(p.upper, 0.004_631_058_429_787_060_5), "{p:?}");
        assert!(p.non_inferior && p.pairs == 8);
        assert!(!Paired::of(&a, &b, 0.0046).unwrap().non_inferior);
        // Losses without spread, and losses that are none.
        let same = Paired::of(&a, &a, 0.01).unwrap();
        assert_eq!((same.mean, same.upper, same.p_value), (0.0, 0.0, 0.0));
        assert_eq!(Paired::of(&a, &a, 0.0).unwrap().p_value, 1.0);
        assert_eq!(Paired::of(&a[..1], &b[..1], 0.01), None);
        assert_eq!(Paired::of(&[0.1, f64::NAN], &[0.1, 0.2], 0.01), None);
    }
}
