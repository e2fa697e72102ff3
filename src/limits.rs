//! What numbers must be after a device has rounded them to f32, so that finite parameters stay finite.
//!
//! Every bound is a power of two with room to spare. A learning rate, update or gradient beyond one of them is a mistake in
//! the caller's numbers, never a training that goes well.

use crate::cpu::narrow;
use crate::error::{Error, Result};

/// The largest step: learning rate times its factor, times the update scale, or over `1 − beta1` under AdamW. 2⁶⁴ ≈ 1.8e19.
pub(crate) const LARGEST_STEP: f64 = 18_446_744_073_709_551_616.0;

/// The largest change of an element in one step, 2¹⁰² ≈ 5.1e30. It is less than half the spacing of f32 from 2¹²⁷ on, so an
/// element that large stays what it is, and smaller ones cannot overflow: a finite parameter stays finite. bf16 parameters too.
const LARGEST_CHANGE: f64 = 5_070_602_400_912_917_605_986_812_821_504.0;

/// A tensor under AdamW is skipped unless the sum of squares of its scaled gradient is below 2¹²⁶ ≈ 8.5e37: below it no square
/// overflows f32, and neither does the second moment, which is a mean of squares.
pub(crate) const LARGEST_SQUARE: f64 = 85_070_591_730_234_615_865_843_651_857_942_052_864.0;

/// The largest magnitude of an element that may be multiplied with `step` and added to a parameter.
pub(crate) fn largest_update(step: f64) -> f32 {
    narrow(LARGEST_CHANGE / step.abs())
}

/// `value` must satisfy `ok`, a test that a NaN fails.
fn require(ok: bool, what: &str, range: &str, value: f64) -> Result<()> {
    if ok {
        return Ok(());
    }
    let found = match value.abs() {
        // Without hundreds of zeros.
        x if x != 0.0 && !(1e-9..1e16).contains(&x) && x.is_finite() => format!("{value:e}"),
        _ => value.to_string(),
    };
    Err(Error::invalid_config(format!("{what}: expected {range}, found `{found}`")))
}

/// A rate that may be 0. One that f32 rounds to 0 is 0.
pub(crate) fn rate(what: &str, value: f64) -> Result<()> {
    require(
        (0.0..=LARGEST_STEP).contains(&value),
        what,
        "a number of at least 0 and at most 2^64 (1.8e19)",
        value,
    )
}

/// A share that f32 tells from 1.
pub(crate) fn share(what: &str, value: f64) -> Result<()> {
    require(
        (0.0..1.0).contains(&value) && narrow(value) < 1.0,
        what,
        "a number in [0, 1) that f32 does not round to 1 (at most 0.99999997)",
        value,
    )
}

/// A factor that must be positive. f32 keeps fewer digits of what is below its smallest normal number, so that is refused.
pub(crate) fn positive(what: &str, value: f64) -> Result<()> {
    require(
        value >= f64::from(f32::MIN_POSITIVE) && narrow(value).is_finite(),
        what,
        "a positive number that f32 holds (1.2e-38 to 3.4e38)",
        value,
    )
}

/// A limit that is used in f64 and must be positive.
pub(crate) fn limit(what: &str, value: f64) -> Result<()> {
    require(
        value >= f64::from(f32::MIN_POSITIVE) && value.is_finite(),
        what,
        "a positive finite number of at least 1.2e-38",
        value,
    )
}

/// A weight decay by itself.
pub(crate) fn weight_decay(value: f64) -> Result<()> {
    require(
        value >= 0.0 && narrow(value).is_finite(),
        "weight_decay",
        "a number of at least 0 that f32 holds (at most 3.4e38)",
        value,
    )
}

/// What decay leaves of a parameter.
pub(crate) fn keep(value: f64) -> Result<()> {
    require(
        (-1.0..=1.0).contains(&value),
        "what weight_decay leaves of a parameter in a step (1 - lr * lr_factor * weight_decay)",
        "a number in [-1, 1], beyond which parameters grow by decay",
        value,
    )
}

/// The step of a matrix or tensor, of which `what` says the factors.
pub(crate) fn step(what: &str, value: f64) -> Result<()> {
    require(value.abs() <= LARGEST_STEP, what, "at most 2^64 (1.8e19)", value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_powers_of_two() {
        assert_eq!(LARGEST_STEP, 2f64.powi(64));
        assert_eq!(LARGEST_CHANGE, 2f64.powi(102));
        assert_eq!(LARGEST_SQUARE, 2f64.powi(126));
    }

    #[test]
    fn a_finite_parameter_stays_finite_under_the_largest_change() {
        let change = narrow(LARGEST_CHANGE);
        for start in [f32::MAX, 1.7014119e38, 1.7014117e38, 8.5e37, 1.0, 0.0, -f32::MAX] {
            for keep in [1.0, -1.0, 0.5] {
                let mut p = start;
                for _ in 0..100 {
                    p = p * keep + change;
                }
                assert!(p.is_finite(), "{start} {keep}");
            }
        }
        // From 2^127 on nothing moves.
        assert_eq!(2f32.powi(127) + change, 2f32.powi(127));
        assert_eq!(half::bf16::from_f32(half::bf16::MAX.to_f32() + change), half::bf16::MAX);
    }

    #[test]
    fn second_moments_stay_finite_under_the_largest_square() {
        let g = narrow(LARGEST_SQUARE.sqrt());
        for beta in [0.0f32, 0.5, 0.999, 0.999_999_9] {
            let mut v = 0.0f32;
            for _ in 0..10_000 {
                v = beta * v + (1.0 - beta) * (g * g);
            }
            assert!(v.is_finite(), "{beta}");
        }
    }
}
