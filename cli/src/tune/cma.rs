//! CMA-ES: minimises a function of a few dozen variables without derivatives.
//!
//! The crates that implement it (cmaes, argmin's solvers) keep their state to themselves or bring a second
//! linear algebra; this one is what Hansen's tutorial (arXiv 1604.00772) describes, on faer.

use anyhow::{Result, anyhow};
use faer::{Mat, Side};

/// Normal numbers from a seed: SplitMix64, Box and Muller.
#[derive(Debug)]
pub(crate) struct Random {
    state: u64,
    spare: Option<f64>,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed, spare: None }
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f64 {
        if let Some(x) = self.spare.take() {
            return x;
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// The best point found and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Best {
    pub(crate) point: Vec<f64>,
    pub(crate) value: f64,
    pub(crate) evaluations: usize,
}

/// Minimises `f` from `start` with the first steps of length `sigma`, for at most that many evaluations;
/// `f` ends the search by `None`.
///
/// # Errors
/// An eigenvalue decomposition that does not converge.
pub(crate) fn minimise(
    start: &[f64],
    mut sigma: f64,
    evaluations: usize,
    random: &mut Random,
    mut f: impl FnMut(&[f64]) -> Option<f64>,
) -> Result<Best> {
    let n = start.len();
    let d = n as f64;
    let lambda = 4 + usize_floor(3.0 * d.ln());
    let mu = lambda / 2;
    let raw: Vec<f64> =
        (0..mu).map(|i| ((lambda + 1) as f64 / 2.0).ln() - ((i + 1) as f64).ln()).collect();
    let total: f64 = raw.iter().sum();
    let weights: Vec<f64> = raw.iter().map(|w| w / total).collect();
    let mu_eff = 1.0 / weights.iter().map(|w| w * w).sum::<f64>();
    let c_sigma = (mu_eff + 2.0) / (d + mu_eff + 5.0);
    let damping = 1.0 + 2.0 * (((mu_eff - 1.0) / (d + 1.0)).sqrt() - 1.0).max(0.0) + c_sigma;
    let c_c = (4.0 + mu_eff / d) / (d + 4.0 + 2.0 * mu_eff / d);
    let c_1 = 2.0 / ((d + 1.3).powi(2) + mu_eff);
    let c_mu = (1.0 - c_1).min(2.0 * (mu_eff - 2.0 + 1.0 / mu_eff) / ((d + 2.0).powi(2) + mu_eff));
    let expected = d.sqrt() * (1.0 - 1.0 / (4.0 * d) + 1.0 / (21.0 * d * d));

    let mut mean = start.to_vec();
    let mut covariance = Mat::<f64>::identity(n, n);
    let (mut path_sigma, mut path_c) = (vec![0.0; n], vec![0.0; n]);
    let mut used = 1;
    let Some(value) = f(start) else {
        return Ok(Best { point: start.to_vec(), value: f64::INFINITY, evaluations: 0 });
    };
    let mut best = Best { point: start.to_vec(), value, evaluations: 1 };
    let mut generation = 0i32;
    while used < evaluations && sigma > 1e-9 {
        let eigen = covariance
            .self_adjoint_eigen(Side::Lower)
            .map_err(|e| anyhow!("eigenvalues of the search covariance: {e:?}"))?;
        let (basis, values) = (eigen.U(), eigen.S().column_vector());
        let lengths: Vec<f64> = (0..n).map(|i| values[i].max(1e-20).sqrt()).collect();
        // Each offspring: the step in the covariance's metric, and its value.
        let mut offspring: Vec<(f64, Vec<f64>)> = Vec::with_capacity(lambda);
        for _ in 0..lambda.min(evaluations - used) {
            let z: Vec<f64> = lengths.iter().map(|l| l * random.normal()).collect();
            let y: Vec<f64> = (0..n).map(|i| (0..n).map(|k| basis[(i, k)] * z[k]).sum()).collect();
            let x: Vec<f64> = mean.iter().zip(&y).map(|(m, y)| m + sigma * y).collect();
            let Some(value) = f(&x) else { return Ok(best) };
            used += 1;
            // A NaN is worse than anything.
            let value = if value.is_nan() { f64::INFINITY } else { value };
            if value < best.value {
                best = Best { point: x, value, evaluations: used };
            }
            offspring.push((value, y));
        }
        best.evaluations = used;
        if offspring.len() < lambda {
            break;
        }
        offspring.sort_by(|a, b| a.0.total_cmp(&b.0));
        let step: Vec<f64> =
            (0..n).map(|i| weights.iter().zip(&offspring).map(|(w, o)| w * o.1[i]).sum()).collect();
        mean.iter_mut().zip(&step).for_each(|(m, s)| *m += sigma * s);
        // C^(−1/2)·step.
        let whitened: Vec<f64> = (0..n)
            .map(|k| (0..n).map(|i| basis[(i, k)] * step[i]).sum::<f64>() / lengths[k])
            .collect();
        let gain = (c_sigma * (2.0 - c_sigma) * mu_eff).sqrt();
        for (i, p) in path_sigma.iter_mut().enumerate() {
            let w: f64 = (0..n).map(|k| basis[(i, k)] * whitened[k]).sum();
            *p = (1.0 - c_sigma) * *p + gain * w;
        }
        let length = path_sigma.iter().map(|p| p * p).sum::<f64>().sqrt();
        generation += 1;
        let bias = (1.0 - (1.0 - c_sigma).powi(2 * generation)).sqrt();
        let stalled = length / bias / expected >= 1.4 + 2.0 / (d + 1.0);
        let gain = if stalled { 0.0 } else { (c_c * (2.0 - c_c) * mu_eff).sqrt() };
        path_c.iter_mut().zip(&step).for_each(|(p, s)| *p = (1.0 - c_c) * *p + gain * s);
        let lost = if stalled { c_1 * c_c * (2.0 - c_c) } else { 0.0 };
        for i in 0..n {
            for j in 0..n {
                let rank_mu: f64 =
                    weights.iter().zip(&offspring).map(|(w, o)| w * o.1[i] * o.1[j]).sum();
                covariance[(i, j)] = (1.0 - c_1 - c_mu + lost) * covariance[(i, j)]
                    + c_1 * path_c[i] * path_c[j]
                    + c_mu * rank_mu;
            }
        }
        sigma *= ((c_sigma / damping) * (length / expected - 1.0)).exp();
    }
    Ok(best)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a small positive number"
)]
fn usize_floor(x: f64) -> usize {
    x.max(0.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_valley_is_followed_to_its_end() {
        // Rosenbrock in 5 dimensions from (−1, …): minimum 0 at (1, …); needs the covariance to turn.
        let rosenbrock = |x: &[f64]| {
            Some(
                x.windows(2)
                    .map(|p| 100.0 * (p[1] - p[0] * p[0]).powi(2) + (1.0 - p[0]).powi(2))
                    .sum::<f64>(),
            )
        };
        let run =
            |seed| minimise(&[0.0; 5], 0.3, 6000, &mut Random::new(seed), rosenbrock).unwrap();
        let best = run(1);
        assert!(best.value < 1e-9 && best.point.iter().all(|x| (x - 1.0).abs() < 1e-4), "{best:?}");
        assert_eq!(best, run(1));
        assert_ne!(best.point, run(2).point);
    }

    #[test]
    fn random_numbers_are_normal_and_those_of_their_seed() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..20_000).map(|_| random.normal()).collect::<Vec<f64>>()
        };
        let x = draw(7);
        let moment = |k: i32| x.iter().map(|x| x.powi(k)).sum::<f64>() / x.len() as f64;
        // Deviations of these means are at most √96/√20000 = 0.07 (the fourth), 0.01 and 0.007 (second and first).
        assert!(
            moment(1).abs() < 0.03 && (moment(2) - 1.0).abs() < 0.04,
            "{} {}",
            moment(1),
            moment(2)
        );
        assert!((moment(4) - 3.0).abs() < 0.3, "{}", moment(4));
        assert!(x == draw(7) && x[..4] != draw(8)[..4]);
    }

    #[test]
    fn budgets_and_stops_are_kept() {
        let mut calls = 0;
        let best = minimise(&[1.0, 2.0], 0.1, 50, &mut Random::new(3), |x| {
            calls += 1;
            Some(x[0] * x[0] + x[1] * x[1])
        });
        assert_eq!((calls, best.unwrap().evaluations), (50, 50));
        let mut left = 10;
        let best = minimise(&[1.0], 0.1, 50, &mut Random::new(3), |x| {
            left -= 1;
            (left >= 0).then_some(x[0])
        });
        assert!(best.unwrap().value < 1.0);
        // NaN everywhere but at the start.
        let best = minimise(&[0.0], 0.1, 50, &mut Random::new(3), |x| {
            Some(if x[0] == 0.0 { 5.0 } else { f64::NAN })
        });
        assert_eq!(best.unwrap().value, 5.0);
    }
}
