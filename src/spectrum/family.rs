//! Analytic families of spectra, each with one short spelling.

use std::fmt;
use std::str::FromStr;

use super::Spectrum;
use super::quantiles::{gaussian, lognormal, product};
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
/// | `lognormal:S` | their logarithms normal with standard deviation S |
/// | `product:S` | those of a product of S square matrices of independent normal numbers |
/// | `elbow:F:E` | `1/√(1 + (q/F)^(2E))` at `q = (k + ½)/n`: flat for a fraction F, then a power law |
/// | `staircase:L:D` | L levels of equal size, even in the logarithm over D decades |
/// | `noisy:E:R` | `√((k + 1)^(−2E) + gaussian²)`, the largest gaussian one R: a signal on a floor of noise |
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
    /// Logarithms that are normal.
    Lognormal {
        /// Standard deviation of the natural logarithm, in [0, 10].
        deviation: f64,
    },
    /// A product of square Gaussian matrices: the Fuss–Catalan law.
    Product {
        /// How many, 1 to 16.
        factors: u32,
    },
    /// Flat, then a power law.
    Elbow {
        /// Where it bends, as a fraction of the short side, in (0, 1].
        fraction: f64,
        /// Of the power law, at least 0.
        exponent: f64,
    },
    /// Several levels of equal size.
    Staircase {
        /// How many, at least 2; at most the short side takes effect.
        levels: u32,
        /// Between the first and the last, at least 0.
        decades: f64,
    },
    /// A power law on a Gaussian floor.
    Noisy {
        /// Of the power law, at least 0.
        exponent: f64,
        /// Largest value of the floor over that of the power law, in [0, 1].
        floor: f64,
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
            Self::Lognormal { deviation } => lognormal(n, deviation),
            Self::Product { factors } => product(n, factors),
            Self::Elbow { fraction, exponent } => (0..n)
                .map(|k| {
                    let quantile = (index(k) + 0.5) / index(n);
                    (1.0 + (quantile / fraction).powf(2.0 * exponent)).sqrt().recip()
                })
                .collect(),
            Self::Staircase { levels, decades } => {
                let last = f64::from(levels - 1);
                let level = |k: usize| (index(k) * f64::from(levels) / index(n)).floor().min(last);
                (0..n).map(|k| 10f64.powf(-decades * level(k) / last)).collect()
            }
            Self::Noisy { exponent, floor } => {
                let noise = gaussian(n, shape.long());
                let largest = noise.first().copied().unwrap_or(1.0);
                (0..n)
                    .zip(noise)
                    .map(|(k, x)| index(k + 1).powf(-exponent).hypot(floor * x / largest))
                    .collect()
            }
        };
        Spectrum::new(self.to_string(), shape, values)
    }

    fn check(&self) -> Result<()> {
        let (what, value, valid) = match *self {
            Self::Gaussian | Self::Linear => return Ok(()),
            Self::Power { exponent: x } => ("the exponent", x, x >= 0.0),
            Self::Exponential { decades: x } => ("the number of decades", x, x >= 0.0),
            Self::Product { factors: x } => {
                ("the number of factors, 1 to 16,", f64::from(x), (1..=16).contains(&x))
            }
            Self::Lognormal { deviation: x } => {
                ("the deviation, in [0, 10],", x, (0.0..=10.0).contains(&x))
            }
            Self::Elbow { exponent: x, .. } if x < 0.0 || !x.is_finite() => {
                ("the exponent", x, false)
            }
            Self::Staircase { levels: x, .. } if x < 2 => {
                ("the number of levels, at least 2,", f64::from(x), false)
            }
            Self::Staircase { decades: x, .. } => ("the number of decades", x, x >= 0.0),
            Self::Noisy { floor: x, .. } if !(0.0..=1.0).contains(&x) => {
                ("the floor, in [0, 1],", x, false)
            }
            Self::Noisy { exponent: x, .. } => ("the exponent", x, x >= 0.0),
            Self::Outliers { count: 0, .. } => ("the number of outliers", 0.0, false),
            Self::Outliers { strength: x, .. } => ("the strength, at least 1,", x, x >= 1.0),
            Self::TwoLevel { ratio: x, .. } if !(0.0..=1.0).contains(&x) => {
                ("the ratio, in [0, 1],", x, false)
            }
            Self::TwoLevel { fraction: x, .. }
            | Self::Rank { fraction: x }
            | Self::Elbow { fraction: x, .. } => {
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
            Self::Lognormal { deviation } => write!(f, "lognormal:{deviation}"),
            Self::Product { factors } => write!(f, "product:{factors}"),
            Self::Elbow { fraction, exponent } => write!(f, "elbow:{fraction}:{exponent}"),
            Self::Staircase { levels, decades } => write!(f, "staircase:{levels}:{decades}"),
            Self::Noisy { exponent, floor } => write!(f, "noisy:{exponent}:{floor}"),
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
                let count =
                    whole(text, "the number of outliers", number("the number of outliers")?)?;
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                Self::Outliers { count, strength: number("the strength")? }
            }
            "two-level" => {
                Self::TwoLevel { fraction: number("the fraction")?, ratio: number("the ratio")? }
            }
            "rank" => Self::Rank { fraction: number("the fraction")? },
            "lognormal" => Self::Lognormal { deviation: number("the deviation")? },
            "product" => {
                let what = "the number of factors";
                Self::Product { factors: whole(text, what, number(what)?)? }
            }
            "elbow" => {
                Self::Elbow { fraction: number("the fraction")?, exponent: number("the exponent")? }
            }
            "staircase" => {
                let what = "the number of levels";
                let levels = whole(text, what, number(what)?)?;
                Self::Staircase { levels, decades: number("the number of decades")? }
            }
            "noisy" => {
                Self::Noisy { exponent: number("the exponent")?, floor: number("the floor")? }
            }
            _ => {
                const KNOWN: [&str; 12] = [
                    "gaussian",
                    "power",
                    "exponential",
                    "linear",
                    "outliers",
                    "two-level",
                    "rank",
                    "lognormal",
                    "product",
                    "elbow",
                    "staircase",
                    "noisy",
                ];
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

/// A parameter that counts something.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, 1 to 1e9")]
fn whole(text: &str, what: &str, number: f64) -> Result<u32> {
    if (1.0..=1e9).contains(&number) && number.fract() == 0.0 {
        return Ok(number as u32);
    }
    Err(Error::invalid_config(format!("spectrum `{text}`: {what} is a whole number of at least 1")))
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
            "lognormal:1.5",
            "product:2",
            "elbow:0.1:2",
            "staircase:3:2",
            "noisy:1:0.03",
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
            "lognormal:-1",
            "product:0",
            "product:1.5",
            "product:17",
            "elbow:0:1",
            "elbow:0.1:-1",
            "staircase:1:2",
            "staircase:3:-1",
            "noisy:-1:0.1",
            "noisy:1:1.5",
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
        // q/F is 1/16/0.1 and 15/16/0.1 at the ends.
        let elbow = values("elbow:0.1:2");
        let end = |q: f64| (1.0 + (q / 1.6f64).powi(4)).sqrt();
        assert!((ratio(&elbow, 0, 7) - end(15.0) / end(1.0)).abs() < 1e-9);
        let stairs = values("staircase:3:2");
        // Eight values in three levels: 3, 3 and 2.
        assert_eq!(
            (ratio(&stairs, 0, 2), ratio(&stairs, 3, 5), ratio(&stairs, 6, 7)),
            (1.0, 1.0, 1.0)
        );
        assert!(
            (ratio(&stairs, 0, 3) - 10.0).abs() < 1e-9
                && (ratio(&stairs, 0, 7) - 100.0).abs() < 1e-9
        );
        let noisy = values("noisy:1:0.5");
        let last = (1.0f64 / 8.0).hypot(0.5 / ratio(&plain, 0, 7));
        assert!((ratio(&noisy, 0, 7) - 1.25f64.sqrt() / last).abs() < 1e-9);
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
