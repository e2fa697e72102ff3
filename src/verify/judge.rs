//! How closely a result must be met: each limit with its reason. NUMERICS.md has the table.

use super::recording::{Arithmetic, Case};
use super::{Against, CaseResult, Check, OptimizerKind, VerifyOptions};
use crate::config::Bf16Params;
use crate::error::{Error, Result};
use crate::precision::{Dtype, Precision};

/// Tolerance where the momentum is rounded to bf16.
pub(super) const BF16_MOMENTUM: f64 = 0.01;

/// Tolerance for the distance between two bf16 iterations with different store points.
const AGAINST_BF16: f64 = 0.03;

/// An emulated bf16 iteration must err about as much as the framework's: rounding that is not there is a
/// mistake as well. Measured 0.91 to 1.20 over the cases of `tests/data/torch_muon.json`.
const BF16_RATIO: f64 = 2.0;

/// Rounding amplified by the steepest part of the composition stays below this many units of it.
const UNITS_OF_SLOPE: f64 = 8.0;

/// A matrix of short side m errs by up to this many `u/√m` in 16 bit and tf32: its m singular values err on their own, and
/// few of them do not average. Measured over 12 to 200 trajectories of 5 steps (200 for single rows) for each shape from 1 × 1 to 12 × 20 in bf16: at most
/// 0.047 at 1 × 5, 0.030 at 2 × 24, 0.022 at 4 × 24, 0.012 at 8 × 24, which is 12.2, 10.9, 11.3 and 8.7 of these.
const THIN: f64 = 13.0;

/// An unfused iteration rounds eight times where a fused one rounds three times, and `b·A` and `c·(A·A)`, which nearly cancel, before
/// they do. Measured over the same trajectories: 2.0 to 2.8 times the error.
const UNFUSED: f64 = 3.0;

/// What was found in a case, and against what it was measured.
pub(super) struct Found<'a> {
    /// The smallest short side among its matrices; `None` under AdamW.
    pub short: Option<usize>,
    pub steps: usize,
    /// The parameter that should have come out.
    pub expected: &'a [f64],
    /// Whether that is the framework's own result, for want of one in f64, and then its precision.
    pub framework: Option<Precision>,
    /// `‖expected − param0‖_F`.
    pub update: f64,
}

/// The largest error that rounding alone explains.
pub(super) fn tolerance(
    case: &Case,
    found: &Found<'_>,
    optimizer: OptimizerKind,
    options: &VerifyOptions,
) -> f64 {
    if let Some(tolerance) = options.tolerance {
        return tolerance;
    }
    let own = options.default_tolerance(optimizer);
    let own = match options.target.precision() {
        None => own.max(UNITS_OF_SLOPE * f64::EPSILON / 2.0 * case.steepest),
        Some(p) => own.max(of_iteration(p, case, found)),
    };
    // The framework's bf16 iteration says how far rounding carries on this trajectory.
    let own = match (options.target.precision(), case.recorded_distance) {
        (Some(Precision::Bf16), Some(recorded)) => own.max(BF16_RATIO * recorded),
        _ => own,
    };
    let both = match found.framework {
        None => own,
        Some(precision) => own + framework_tolerance(precision, case, found, optimizer),
    };
    let rounding = rounding_of_parameter(case, found, both);
    both + rounding
}

/// What an iteration in that precision may err by beyond its flat tolerance.
fn of_iteration(precision: Precision, case: &Case, found: &Found<'_>) -> f64 {
    match (precision, found.short) {
        (Precision::F32, _) => UNITS_OF_SLOPE * precision.unit_roundoff() * case.steepest,
        (_, None) => 0.0,
        (_, Some(short)) => THIN * precision.unit_roundoff() / (short as f64).sqrt(),
    }
}

/// How far a framework's own result may lie from f64.
fn framework_tolerance(
    precision: Precision,
    case: &Case,
    found: &Found<'_>,
    optimizer: OptimizerKind,
) -> f64 {
    let flat: f64 = match (optimizer, precision) {
        (OptimizerKind::AdamW, _) => 1e-5,
        (OptimizerKind::Muon, Precision::F32) => 1e-4,
        (OptimizerKind::Muon, _) => 0.02,
    };
    let fused = flat.max(of_iteration(precision, case, found));
    let recorded = case.recorded_distance.filter(|_| precision == Precision::Bf16);
    // PyTorch rounds a bf16 parameter after the decay and after the update, this crate once.
    let twice = match (case.param_dtype, case.bf16_params) {
        (Dtype::Bf16, Bf16Params::Nearest) => {
            let squares = found.expected.iter().map(|x| spacing(*x).powi(2)).sum::<f64>();
            0.5 * found.steps as f64 * ratio(squares.sqrt(), found.update)
        }
        _ => 0.0,
    };
    recorded.unwrap_or(match case.arithmetic {
        Arithmetic::Fused => fused,
        Arithmetic::Unfused => UNFUSED * fused,
    }) + twice
}

/// What the rounding of a bf16 parameter adds: an error of `tolerance` carries that share of the elements over the tie between
/// two numbers, and one that is carried over is a whole spacing away. One element a step is always allowed.
fn rounding_of_parameter(case: &Case, found: &Found<'_>, tolerance: f64) -> f64 {
    if case.param_dtype != Dtype::Bf16 {
        return 0.0;
    }
    let roundings = match case.bf16_params {
        Bf16Params::Master => 1.0,
        _ => found.steps as f64,
    };
    let each = tolerance * found.update / (found.expected.len() as f64).sqrt();
    let spacings = found.expected.iter().map(|x| spacing(*x));
    let (largest, sum) = spacings.fold((0.0f64, 0.0), |(l, s), x| (l.max(x), s + x));
    ratio((roundings * (largest * largest + each * sum)).sqrt(), found.update)
}

/// From a bf16 number to the next one further from zero.
fn spacing(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { 2f64.powf(x.abs().log2().floor() - 7.0) }
}

fn ratio(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a / b }
}

/// How many times the recorded distance an error may be, above or below.
///
/// Two bf16 iterations of one matrix of short side m err by ν = m(m + 1)/2 independent roundings of its Gram matrix each, so the
/// logarithm of the ratio of their errors has a standard deviation of about 1/√ν; four of them. From a short side of 8 on that is within
/// a factor of two. A single row has one rounding, and its ratio says next to nothing.
fn ratio_limit(short: usize) -> f64 {
    let short = short as f64;
    BF16_RATIO.max((4.0 / (short * (short + 1.0) / 2.0).sqrt()).exp())
}

/// Everything that must hold for a result.
pub(super) fn checks(
    result: &CaseResult,
    case: &Case,
    found: &Found<'_>,
    options: &VerifyOptions,
) -> Result<Vec<Check>> {
    let at_most = |what: &str, x: f64, limit: f64| Check {
        what: format!("{what} {x:.3e} <= {limit:.1e}"),
        held: x <= limit,
    };
    let what = match found.framework {
        None => "error",
        Some(_) => "distance to the framework's own result",
    };
    let mut checks = vec![at_most(what, result.error, result.tolerance)];
    if let Some(error) = result.momentum_error {
        checks.push(at_most("momentum error", error, result.tolerance));
    }
    // The recorded distance is that of a bf16 iterate under f32 momentum.
    let is_comparable = options.target.precision() == Some(Precision::Bf16)
        && options.momentum_dtype == Dtype::F32
        && found.framework.is_none();
    if let (true, Some(recorded), Some(short)) =
        (is_comparable, result.recorded_distance, found.short)
    {
        let ratio = if result.error == recorded { 1.0 } else { result.error / recorded };
        let above = ratio_limit(short);
        let below = match case.arithmetic {
            Arithmetic::Fused => 1.0 / above,
            Arithmetic::Unfused => 1.0 / (UNFUSED * above),
        };
        checks.push(Check {
            what: format!("error over recorded distance {ratio:.2} in {below:.2}..{above:.2}"),
            held: (below..=above).contains(&ratio),
        });
    }
    if options.against == Against::Bf16 && found.framework != Some(Precision::Bf16) {
        let error = result.error_bf16.ok_or_else(|| {
            Error::invalid_config("the recording has no `param_bf16ns` to compare with")
        })?;
        let limit = options.tolerance.unwrap_or_else(|| against_bf16(case, found));
        checks.push(at_most("distance to recorded bf16", error, limit));
    }
    Ok(checks)
}

/// Limit for the distance to the framework's bf16 result.
fn against_bf16(case: &Case, found: &Found<'_>) -> f64 {
    let thin = of_iteration(Precision::Bf16, case, found);
    let recorded = case.recorded_distance.unwrap_or(0.0);
    let limit = AGAINST_BF16.max(2.0 * thin).max(1.5 * BF16_RATIO * recorded);
    let limit = match case.arithmetic {
        Arithmetic::Fused => limit,
        // Ours is fused, theirs is not.
        Arithmetic::Unfused => limit * (1.0 + UNFUSED) / 2.0,
    };
    limit + rounding_of_parameter(case, found, limit)
}
