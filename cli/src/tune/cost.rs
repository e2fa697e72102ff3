//! What a candidate costs: FLOPs of its products, or the bound on a step that `muon plan` computes for a device.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use muon_cuda::recipe::Method;
use muon_cuda::{
    CoefficientSchedule, MethodChoice, Normalization, OddPolynomial, Orthogonalizer, Tail,
};
use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::exit::usage;
use crate::plan::{Profile, bound_of_one};

/// How schedules are priced.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum CostModel {
    /// FLOPs of the products in n³ at the aspect ratio, one triangle of symmetric ones.
    #[default]
    Flops,
    /// Microseconds below which a step on one matrix of the study's shape cannot be on that device: the products as
    /// they are executed, and the passes.
    Roofline(&'static Profile),
}

impl CostModel {
    /// The unit, for tables and charts.
    pub(crate) fn unit(self) -> String {
        match self {
            Self::Flops => "n³".into(),
            Self::Roofline(profile) => format!("µs on {}", profile.name),
        }
    }

    /// A cost as part of a schedule's name: letters, digits and `_`.
    pub(crate) fn in_names(self, cost: f64) -> String {
        match self {
            Self::Flops => cost.to_string(),
            Self::Roofline(profile) => format!("{}_{cost:.6}", profile.name),
        }
        .replace('.', "p")
    }

    /// The cost of polynomials of those degrees; no coefficient has a part in it.
    ///
    /// # Errors
    /// A degree other than 3, 5 and 9; groups that do not add up; f64 on a device.
    pub(crate) fn of(self, settings: &Settings, degrees: &[usize], method: &Method) -> Result<f64> {
        let schedule = tame(degrees)?;
        match self {
            Self::Flops => Ok(schedule.gemm_cost(method, settings.aspect)?.symmetric),
            Self::Roofline(profile) => {
                let precision = settings.precision.of().ok_or_else(|| {
                    usage("--cost roofline needs a precision that a device has: f32, bf16 or fp16")
                })?;
                let orthogonalizer = Orthogonalizer::Polynomial { schedule, iterations: None };
                let method = match method {
                    Method::Standard => MethodChoice::Standard,
                    Method::Gram { groups } => MethodChoice::Gram(groups.clone()),
                };
                let seconds =
                    bound_of_one(settings.shape(), orthogonalizer, method, precision, profile)?;
                Ok(1e6 * seconds)
            }
        }
    }
}

/// A schedule of those degrees that every precision takes: the Taylor polynomials of the sign at 1, which map [0, 1]
/// into itself.
fn tame(degrees: &[usize]) -> Result<CoefficientSchedule> {
    let polynomials = degrees
        .iter()
        .map(|degree| {
            Ok(match degree {
                3 => OddPolynomial::new(&[1.5, -0.5])?,
                5 => OddPolynomial::new(&[1.875, -1.25, 0.375])?,
                9 => OddPolynomial::new(&[
                    2.460_937_5,
                    -3.281_25,
                    2.953_125,
                    -1.406_25,
                    0.273_437_5,
                ])?,
                other => return Err(usage(format!("degrees are 3, 5 and 9, found `{other}`"))),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let norm = Normalization::Frobenius { safety: 1.0 };
    Ok(CoefficientSchedule::new("tame", polynomials, norm, Tail::Exact, "")?)
}

impl fmt::Display for CostModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flops => f.write_str("flops"),
            Self::Roofline(profile) => write!(f, "roofline:{}", profile.name),
        }
    }
}

impl FromStr for CostModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("roofline:") {
            Some(name) => Profile::named(name).map(Self::Roofline),
            None if text == "flops" => Ok(Self::Flops),
            None => Err("expected flops or roofline:PROFILE, such as roofline:h100".into()),
        }
    }
}

impl TryFrom<String> for CostModel {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<CostModel> for String {
    fn from(model: CostModel) -> Self {
        model.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::TunePrecisionName;
    use crate::tune::tests::settings;

    fn roofline() -> CostModel {
        "roofline:h100".parse().unwrap()
    }

    #[test]
    fn flops_are_those_of_the_formulas() {
        let mut s = settings();
        s.aspect = 4.0;
        let cost = |degrees: &[usize], groups: &[usize]| {
            let method = match groups {
                [] => Method::Standard,
                _ => Method::Gram { groups: groups.to_vec() },
            };
            CostModel::Flops.of(&s, degrees, &method).unwrap()
        };
        // 3α, 3α + 1, 3α + 2 for an iteration; 3 to 5 more for each further one of a group.
        assert_eq!(cost(&[3, 5, 9], &[]), 12.0 + 13.0 + 14.0);
        assert_eq!(cost(&[9, 9, 9], &[2, 1]), 6.0 * 4.0 + 9.0);
    }

    /// By hand, from the profile's ceilings: three products of full size a quintic, 12 + 4 bytes an element and pass.
    #[test]
    fn a_roofline_is_the_products_and_the_passes() {
        let mut s = settings();
        (s.short, s.aspect, s.precision) = (1024, 4.0, TunePrecisionName::Bf16);
        let (n, m) = (1024.0f64, 4096.0f64);
        let CostModel::Roofline(profile) = roofline() else { panic!() };
        // bf16 gradient read twice, f32 momentum read twice and written, bf16 iterate written; iterate read, f32
        // parameter read and written.
        let passes = n * m * f64::from((2 * 2 + 3 * 4 + 2) + (2 + 8)) / profile.bandwidth;
        let quintic = 2.0 * n * n * (2.0 * m + n) / profile.half_flops;
        let of = |degrees: &[usize]| roofline().of(&s, degrees, &Method::Standard).unwrap();
        let one = of(&[5]);
        assert!((one / (1e6 * (passes + quintic)) - 1.0).abs() < 1e-12, "{one}");
        let five = of(&[5; 5]);
        assert!((five / (1e6 * (passes + 5.0 * quintic)) - 1.0).abs() < 1e-12, "{five}");
        // As executed, a product more in each iteration of degree 9: two of the short side.
        assert!(of(&[9]) > of(&[5]) && of(&[5]) > of(&[3]));
        s.precision = TunePrecisionName::F32;
        assert!(roofline().of(&s, &[5], &Method::Standard).unwrap() > 2.0 * one);
        s.precision = TunePrecisionName::F64;
        let e = roofline().of(&s, &[5], &Method::Standard).unwrap_err();
        assert!(e.to_string().contains("f32, bf16 or fp16"), "{e}");
    }

    #[test]
    fn spellings() {
        for text in ["flops", "roofline:h100", "roofline:a100"] {
            assert_eq!(text.parse::<CostModel>().unwrap().to_string(), text);
        }
        assert!("roofline".parse::<CostModel>().unwrap_err().contains("roofline:PROFILE"));
        assert!("roofline:h1000".parse::<CostModel>().unwrap_err().contains("known are h100"));
        assert_eq!(CostModel::Flops.in_names(42.5), "42p5");
        assert_eq!(roofline().in_names(1.23456), "h100_1p234560");
    }
}
