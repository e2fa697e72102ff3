//! Analytic families of spectra, each with one short spelling.

use std::fmt;
use std::str::FromStr;

use super::Spectrum;
use crate::error::{Error, Result};
use crate::shape::MatrixShape;

/// A rule that gives the singular values of a matrix of any shape, up to a common factor.
///
/// Its spelling, which [`FromStr`] reads and [`fmt::Display`] writes, is in the first column.
///
/// | spelling | singular values, k = 0, 1, … n − 1 with n the short side |
/// |---|---|
/// | `gaussian` | those of a matrix of independent normal numbers |
/// | `power:E` | `(k + 1)^−E` |
/// | `exponential:D` | even in the logarithm, over D decades |
/// | `linear` | `1 − k/n` |
/// | `outliers:C:S` | gaussian, the first C of them S times the largest |
/// | `two-level:F:R` | a fraction F of them 1, the others R |
/// | `rank:F` | gaussian of a matrix with a fraction F of the rows, the others 0 |
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum SpectrumFamily {
    /// Quantiles of the Marchenko–Pastur law for the shape.
    Gaussian,
    /// `(k + 1)^−exponent`.
    Power {
        /// At least 0.
        exponent: f64,
    },
    /// `10^(−decades·k/(n − 1))`.
    Exponential {
        /// At least 0.
        decades: f64,
    },
    /// `1 − k/n`.
    Linear,
    /// The first values of a gaussian spectrum replaced.
    Outliers {
        /// How many, at least 1; at most the short side takes effect.
        count: usize,
        /// How many times the largest gaussian one, at least 1.
        strength: f64,
    },
    /// Two different values.
    TwoLevel {
        /// Share of the ones, in (0, 1]; at least one of them.
        fraction: f64,
        /// The others, in [0, 1].
        ratio: f64,
    },
    /// A gaussian matrix of lower rank.
    Rank {
        /// Rank over short side, in (0, 1]; at least rank 1.
        fraction: f64,
    },
}

impl SpectrumFamily {
    /// The spectrum for that shape.
    ///
    /// # Errors
    /// A parameter outside its range, an empty shape.
    pub fn spectrum(&self, shape: MatrixShape) -> Result<Spectrum> {
        self.check()?;
        let n = shape.short();
        let index = |k: usize| k as f64;
        let values = match *self {
            Self::Gaussian => gaussian(n, shape.long()),
            Self::Power { exponent } => (0..n).map(|k| index(k + 1).powf(-exponent)).collect(),
            Self::Exponential { decades } => {
                let last = index(n.saturating_sub(1).max(1));
                (0..n).map(|k| 10f64.powf(-decades * index(k) / last)).collect()
            }
            Self::Linear => (0..n).map(|k| 1.0 - index(k) / index(n)).collect(),
            Self::Outliers { count, strength } => {
                let mut values = gaussian(n, shape.long());
                let largest = values.first().copied().unwrap_or(0.0);
                values.iter_mut().take(count).for_each(|x| *x = strength * largest);
                values
            }
            Self::TwoLevel { fraction, ratio } => {
                let ones = share(fraction, n);
                (0..n).map(|k| if k < ones { 1.0 } else { ratio }).collect()
            }
            Self::Rank { fraction } => {
                let rank = share(fraction, n);
                let mut values = gaussian(rank, shape.long());
                values.resize(n, 0.0);
                values
            }
        };
        Spectrum::new(self.to_string(), shape, values)
    }

    fn check(&self) -> Result<()> {
        let (what, value, valid) = match *self {
            Self::Gaussian | Self::Linear => return Ok(()),
            Self::Power { exponent: x } => ("the exponent", x, x >= 0.0),
            Self::Exponential { decades: x } => ("the number of decades", x, x >= 0.0),
            Self::Outliers { count: 0, .. } => ("the number of outliers", 0.0, false),
            Self::Outliers { strength: x, .. } => ("the strength, at least 1,", x, x >= 1.0),
            Self::TwoLevel { ratio: x, .. } if !(0.0..=1.0).contains(&x) => {
                ("the ratio, in [0, 1],", x, false)
            }
            Self::TwoLevel { fraction: x, .. } | Self::Rank { fraction: x } => {
                ("the fraction, in (0, 1],", x, x > 0.0 && x <= 1.0)
            }
        };
        if valid && value.is_finite() {
            return Ok(());
        }
        Err(Error::invalid_config(format!("spectrum `{self}`: {what} cannot be `{value}`")))
    }
}

/// That part of `n`, rounded, at least 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and n: the fraction was checked"
)]
fn share(fraction: f64, n: usize) -> usize {
    ((fraction * n as f64).round() as usize).clamp(1.min(n), n)
}

/// Quantiles at `(k + ½)/n` of the singular values of an `n × m` matrix of normal numbers of variance
/// `1/m`, descending.
///
/// With `y = n/m` the squares follow the Marchenko–Pastur law on `[(1 − √y)², (1 + √y)²]`; at
/// `λ = 1 + y − 2√y·cos θ` its density in `θ` is `2·sin²θ/(πλ)`, which is smooth, and `(1 + cos θ)/π` for
/// a square matrix.
fn gaussian(n: usize, m: usize) -> Vec<f64> {
    const STEPS: u32 = 8192;
    let y = n as f64 / m as f64;
    let lambda = |theta: f64| {
        // 1 + y − 2√y·cos θ without the cancellation near θ = 0.
        let half = (0.5 * theta).sin();
        (1.0 - y.sqrt()).powi(2) + 4.0 * y.sqrt() * half * half
    };
    let density = |theta: f64| {
        let l = lambda(theta);
        if l < 1e-300 { 2.0 } else { theta.sin().powi(2) / l }
    };
    let step = std::f64::consts::PI / f64::from(STEPS);
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
            let i = cumulative.partition_point(|c| *c < wanted).max(1);
            let (low, high) = (cumulative[i - 1], cumulative[i.min(cumulative.len() - 1)]);
            let part = if high > low { (wanted - low) / (high - low) } else { 0.0 };
            lambda(((i - 1) as f64 + part) * step).sqrt()
        })
        .collect();
    values.reverse();
    values
}

impl fmt::Display for SpectrumFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Gaussian => f.write_str("gaussian"),
            Self::Power { exponent } => write!(f, "power:{exponent}"),
            Self::Exponential { decades } => write!(f, "exponential:{decades}"),
            Self::Linear => f.write_str("linear"),
            Self::Outliers { count, strength } => write!(f, "outliers:{count}:{strength}"),
            Self::TwoLevel { fraction, ratio } => write!(f, "two-level:{fraction}:{ratio}"),
            Self::Rank { fraction } => write!(f, "rank:{fraction}"),
        }
    }
}

impl FromStr for SpectrumFamily {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let name = parts.next().unwrap_or_default();
        let mut number = |what: &str| -> Result<f64> {
            let part = parts.next().ok_or_else(|| {
                Error::parse(format!("spectrum `{text}`: {what} is missing after `{name}:`"))
            })?;
            part.parse().map_err(|_| {
                Error::parse(format!("spectrum `{text}`: {what} is a number, found `{part}`"))
            })
        };
        let family = match name {
            "gaussian" => Self::Gaussian,
            "power" => Self::Power { exponent: number("the exponent")? },
            "exponential" => Self::Exponential { decades: number("the number of decades")? },
            "linear" => Self::Linear,
            "outliers" => {
                let count = number("the number of outliers")?;
                if !(1.0..=1e9).contains(&count) || count.fract() != 0.0 {
                    return Err(Error::invalid_config(format!(
                        "spectrum `{text}`: the number of outliers is a whole number of at least 1"
                    )));
                }
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a whole number of at most 1e9"
                )]
                let count = count as usize;
                Self::Outliers { count, strength: number("the strength")? }
            }
            "two-level" => {
                Self::TwoLevel { fraction: number("the fraction")?, ratio: number("the ratio")? }
            }
            "rank" => Self::Rank { fraction: number("the fraction")? },
            _ => {
                const KNOWN: [&str; 7] =
                    ["gaussian", "power", "exponential", "linear", "outliers", "two-level", "rank"];
                return Err(Error::unknown_name("spectrum family", name, KNOWN));
            }
        };
        if let Some(more) = parts.next() {
            return Err(Error::parse(format!("spectrum `{text}`: `:{more}` is one part too many")));
        }
        family.check()?;
        Ok(family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: MatrixShape = MatrixShape { rows: 8, cols: 32 };

    fn values(text: &str) -> Vec<f64> {
        text.parse::<SpectrumFamily>().unwrap().spectrum(SHAPE).unwrap().values().to_vec()
    }

    #[test]
    fn spellings_are_read_and_written() {
        for text in [
            "gaussian",
            "power:0.5",
            "exponential:3",
            "linear",
            "outliers:2:10",
            "two-level:0.5:0",
            "rank:0.25",
        ] {
            let family: SpectrumFamily = text.parse().unwrap();
            assert_eq!(family.to_string(), text);
            assert_eq!(family.spectrum(SHAPE).unwrap().name(), text);
        }
        for wrong in [
            "power",
            "power:x",
            "power:-1",
            "power:nan",
            "exponential:inf",
            "linear:1",
            "outliers:0:2",
            "outliers:1.5:2",
            "outliers:1:0.5",
            "two-level:0:0",
            "two-level:0.5:2",
            "rank:2",
            "rank:0",
        ] {
            assert!(wrong.parse::<SpectrumFamily>().is_err(), "{wrong}");
        }
        let e = "gausian".parse::<SpectrumFamily>().unwrap_err();
        assert!(e.is_unknown_name() && e.to_string().contains("did you mean `gaussian`"), "{e}");
    }

    #[test]
    fn families_have_their_ratios() {
        let ratio = |v: &[f64], i: usize, j: usize| v[i] / v[j];
        assert!((ratio(&values("power:1"), 0, 7) - 8.0).abs() < 1e-12);
        assert!((ratio(&values("exponential:7"), 0, 7) / 1e7 - 1.0).abs() < 1e-12);
        assert!((ratio(&values("exponential:7"), 2, 3) - 10.0).abs() < 1e-12);
        assert!((ratio(&values("linear"), 0, 4) - 2.0).abs() < 1e-12);
        let half = values("two-level:0.5:0");
        assert!(half[..4].iter().all(|x| (x - 0.5).abs() < 1e-15) && half[4..] == [0.0; 4]);
        let low = values("rank:0.25");
        assert!(low[1] > 0.0 && low[2..] == [0.0; 6]);
        let (spiked, plain) = (values("outliers:1:10"), values("gaussian"));
        assert!((ratio(&spiked, 0, 1) / ratio(&plain, 0, 1) - 10.0).abs() < 1e-12);
    }

    /// Quantiles against the singular values of an actual Gaussian matrix.
    #[test]
    fn gaussian_quantiles_are_those_of_a_gaussian_matrix() {
        for (rows, cols) in [(200, 200), (200, 800)] {
            let shape = MatrixShape { rows, cols };
            let mut random = super::super::Normal::new(3);
            let matrix: Vec<f64> = (0..shape.len()).map(|_| random.next()).collect();
            let found = Spectrum::of_matrix("g", shape, &matrix).unwrap();
            let law = SpectrumFamily::Gaussian.spectrum(shape).unwrap();
            for k in [0, 20, 50, 100, 150, 180, 195] {
                let (a, b) = (found.values()[k], law.values()[k]);
                // Eigenvalues fluctuate by about 1/n of the width 2/√n·√2 of the law.
                assert!((a - b).abs() < 3.0 * 0.15 / 200.0, "{shape} {k}: {a} {b}");
            }
        }
    }
}
