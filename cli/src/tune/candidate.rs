//! What is searched over: degrees and method of a schedule, and the numbers within one.

use anyhow::Result;
use muon_cuda::coefficients::generate::compose;
use muon_cuda::recipe::Method;
use muon_cuda::{CoefficientSchedule, Normalization, OddPolynomial, Tail};
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::args::TuneMethodName;
use crate::exit::usage;

/// Most candidates of one study: each takes some ten milliseconds to begin with.
const MOST: usize = 20_000;

/// Degrees of the polynomials, and how they are evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Candidate {
    pub(crate) degrees: Vec<usize>,
    /// Gram groups; empty for the standard form.
    pub(crate) groups: Vec<usize>,
}

impl Candidate {
    pub(crate) fn method(&self) -> Method {
        if self.groups.is_empty() {
            Method::Standard
        } else {
            Method::Gram { groups: self.groups.clone() }
        }
    }

    /// The greedy minimax composition with those parameters.
    ///
    /// # Errors
    /// Parameters outside their range.
    pub(crate) fn start(&self, start: &Start) -> Result<CoefficientSchedule> {
        schedule(compose(&self.degrees, start.lower, start.cushion, start.safety)?)
    }
}

/// Parameters of the greedy composition a search starts from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) lower: f64,
    pub(crate) cushion: f64,
    pub(crate) safety: f64,
}

impl Start {
    /// All of them: twelve to the decade would be finer than the polish needs.
    pub(crate) fn grid() -> impl Iterator<Item = Self> {
        let lowers = (0..15).map(|i| 1e-4 * 10f64.powf(f64::from(i) / 5.0));
        lowers.flat_map(|lower| {
            [0.0, 0.02, 0.1].into_iter().flat_map(move |cushion| {
                [1.0, 1.01, 1.02, 1.04, 1.07, 1.1, 1.15, 1.25].into_iter().map(move |safety| Self {
                    lower,
                    cushion,
                    safety,
                })
            })
        })
    }
}

/// A nameless schedule of those polynomials, normalised by the Frobenius norm as it is.
///
/// # Errors
/// No polynomial.
pub(crate) fn schedule(polynomials: Vec<OddPolynomial>) -> Result<CoefficientSchedule> {
    let norm = Normalization::Frobenius { safety: 1.0 };
    Ok(CoefficientSchedule::new("candidate", polynomials, norm, Tail::Exact, "")?)
}

/// Every candidate of a study, cheapest first.
///
/// # Errors
/// None below the largest cost, or too many.
pub(crate) fn candidates(settings: &Settings) -> Result<Vec<(f64, Candidate)>> {
    let mut out = Vec::new();
    for &length in &settings.iterations {
        let sequences = settings.degrees.len().pow(u32::try_from(length)?);
        for code in 0..sequences {
            let mut rest = code;
            let degrees: Vec<usize> = (0..length)
                .map(|_| {
                    let d = settings.degrees[rest % settings.degrees.len()];
                    rest /= settings.degrees.len();
                    d
                })
                .collect();
            for groups in groupings(length, settings.method) {
                let candidate = Candidate { degrees: degrees.clone(), groups };
                let cost = settings.cost.of(settings, &candidate.degrees, &candidate.method())?;
                if settings.max_cost.is_none_or(|most| cost <= most) {
                    out.push((cost, candidate));
                }
            }
            if out.len() > MOST {
                return Err(usage(format!(
                    "more than {MOST} combinations of degrees and groups; restrict --iterations, --degrees or --method"
                )));
            }
        }
    }
    if out.is_empty() {
        return Err(usage(format!(
            "infeasible: no combination of these degrees, iterations and methods costs at most {} {} at aspect {} \
             (--max-cost)",
            settings.max_cost.unwrap_or(f64::INFINITY),
            settings.cost.unit(),
            settings.aspect
        )));
    }
    out.sort_by(|a, b| a.0.total_cmp(&b.0));
    out.dedup();
    Ok(out)
}

/// Empty for the standard form; else sizes with at least one above 1.
fn groupings(length: usize, method: TuneMethodName) -> Vec<Vec<usize>> {
    let standard = (method != TuneMethodName::Gram).then(Vec::new);
    let gram = (method != TuneMethodName::Standard).then(|| {
        (0..(1usize << (length - 1)) - 1).map(move |cuts| {
            let mut groups = vec![1];
            for i in 0..length - 1 {
                match groups.last_mut() {
                    Some(last) if cuts >> i & 1 == 0 => *last += 1,
                    _ => groups.push(1),
                }
            }
            groups
        })
    });
    standard.into_iter().chain(gram.into_iter().flatten()).collect()
}

/// The numbers of a schedule in coordinates that a search can move in: for each polynomial `p(x) = x·r(x²)`
/// the logarithms of `r` at Chebyshev points of its interval. Coefficients themselves are so correlated (a
/// part in a thousand of one of degree 9 changes p by one) that no step size suits them.
#[derive(Debug, Clone)]
pub(crate) struct Coordinates {
    /// Points in `y = x²` for each polynomial.
    nodes: Vec<Vec<f64>>,
    /// Logarithms of `r` there.
    pub(crate) origin: Vec<f64>,
}

impl Coordinates {
    /// Around a schedule whose `r` are positive where they are used; `None` for others.
    pub(crate) fn around(schedule: &CoefficientSchedule) -> Option<Self> {
        let (mut nodes, mut origin) = (Vec::new(), Vec::new());
        let mut upper = 1.0f64;
        for p in schedule.polynomials() {
            let k = p.coefficients().len();
            let points: Vec<f64> = (0..k)
                .map(|j| {
                    let angle = std::f64::consts::PI * (j as f64 + 0.5) / k as f64;
                    0.5 * upper * upper * (1.0 - angle.cos())
                })
                .collect();
            for &y in &points {
                let r = p.eval(y.sqrt()) / y.sqrt();
                if !(r.is_finite() && r > 0.0) {
                    return None;
                }
                origin.push(r.ln());
            }
            nodes.push(points);
            upper = p.image(0.0, upper).1;
        }
        Some(Self { nodes, origin })
    }

    /// The schedule at a point; `None` where its coefficients leave the range of numbers.
    pub(crate) fn schedule(&self, point: &[f64]) -> Option<CoefficientSchedule> {
        let mut rest = point;
        let mut polynomials = Vec::new();
        for nodes in &self.nodes {
            let (logs, after) = rest.split_at_checked(nodes.len())?;
            rest = after;
            let values: Vec<f64> = logs.iter().map(|x| x.exp()).collect();
            polynomials.push(OddPolynomial::new(&interpolate(nodes, &values)).ok()?);
        }
        schedule(polynomials).ok()
    }
}

/// Coefficients, lowest first, of the polynomial with those values: Newton's divided differences.
fn interpolate(nodes: &[f64], values: &[f64]) -> Vec<f64> {
    let n = nodes.len();
    let mut differences = values.to_vec();
    for order in 1..n {
        for i in (order..n).rev() {
            differences[i] = (differences[i] - differences[i - 1]) / (nodes[i] - nodes[i - order]);
        }
    }
    let mut out = vec![0.0; n];
    for i in (0..n).rev() {
        // out ← out·(y − nodes[i]) + differences[i].
        for k in (0..n).rev() {
            let lower = if k > 0 { out[k - 1] } else { 0.0 };
            out[k] = lower - nodes[i] * out[k];
        }
        out[0] += differences[i];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::tests::settings;
    use muon_cuda::coefficients::presets::preset;

    #[test]
    fn coordinates_give_the_schedule_back() {
        for name in ["jordan", "nonic3_band12", "cubic5", "polar_express_5"] {
            let s = preset(name).unwrap();
            let c = Coordinates::around(&s).unwrap();
            let again = c.schedule(&c.origin).unwrap();
            for (p, q) in s.polynomials().iter().zip(again.polynomials()) {
                for (a, b) in p.coefficients().iter().zip(q.coefficients()) {
                    // Interpolation at five points loses two or three digits.
                    assert!((a - b).abs() < 1e-11 * a.abs().max(1.0) * 100.0, "{name}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn candidates_are_all_combinations_below_the_cost() {
        let mut s = settings();
        (s.iterations, s.degrees, s.aspect) = (vec![2, 3], vec![5, 9], 4.0);
        s.method = TuneMethodName::Any;
        let all = candidates(&s).unwrap();
        // Two iterations: 4 × (standard, [2]); three: 8 × (standard, [3], [1,2], [2,1]).
        assert_eq!(all.len(), 4 * 2 + 8 * 4);
        assert!(all.windows(2).all(|w| w[0].0 <= w[1].0));
        let nonic = Candidate { degrees: vec![9; 3], groups: vec![2, 1] };
        assert!(all.contains(&(6.0 * 4.0 + 9.0, nonic)));
        s.max_cost = Some(20.0);
        assert!(candidates(&s).unwrap().iter().all(|c| c.0 <= 20.0));
        s.max_cost = Some(1.0);
        assert!(candidates(&s).unwrap_err().to_string().contains("--max-cost"));
        s.max_cost = None;
        (s.iterations, s.degrees) = (vec![8], vec![3, 5, 9]);
        assert!(candidates(&s).unwrap_err().to_string().contains("more than"));
    }
}
