//! Exact rounding: every result is first formed in f64, rounded to odd when inexact, then rounded
//! once to its format in the direction asked for.
//!
//! Rounding to odd keeps enough of what was cut off that the second rounding is correct whenever
//! f64 has at least two more bits than the target (S. Boldo, G. Melquiond, "Emulation of FMA and
//! correctly rounded sums: proved algorithms using rounding to odd", IEEE Trans. Computers 57(4),
//! 2008). It has: 53 bits against 24.

/// A binary floating-point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    F16,
    BF16,
    TF32,
    F32,
    F64,
}

impl Format {
    /// Stored mantissa bits and exponent bits.
    const fn layout(self) -> (u32, u32) {
        match self {
            Self::F16 => (10, 5),
            Self::BF16 => (7, 8),
            Self::TF32 => (10, 8),
            Self::F32 => (23, 8),
            Self::F64 => (52, 11),
        }
    }

    /// The NaN that arithmetic produces.
    pub(crate) const fn nan(self) -> u64 {
        match self {
            Self::F16 | Self::BF16 => 0x7fff,
            Self::TF32 | Self::F32 => 0x7fff_ffff,
            Self::F64 => 0x7ff8_0000_0000_0000,
        }
    }

    /// The value of `bits`, exactly.
    pub(crate) fn widen(self, bits: u64) -> f64 {
        match self {
            Self::F16 => half::f16::from_bits(bits as u16).to_f64(),
            Self::BF16 => f64::from(f32::from_bits((bits as u32) << 16)),
            Self::TF32 | Self::F32 => f64::from(f32::from_bits(bits as u32)),
            Self::F64 => f64::from_bits(bits),
        }
    }

    /// `bits` with a subnormal replaced by a zero of its sign.
    pub(crate) fn flush(self, bits: u64) -> u64 {
        let (mantissa, exponent) = self.layout();
        let width = if self == Self::TF32 { 18 } else { mantissa + exponent };
        let exponent_mask = ((1u64 << exponent) - 1) << (width - exponent);
        if bits & exponent_mask == 0 { bits & (1 << width) } else { bits }
    }
}

/// A rounding direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    NearestAway,
    Zero,
    Down,
    Up,
}

/// Rounds `value` to `format` and returns the bits.
pub(crate) fn narrow(value: f64, format: Format, rounding: Rounding) -> u64 {
    if format == Format::F64 {
        return if value.is_nan() { format.nan() } else { value.to_bits() };
    }
    if value.is_nan() {
        return format.nan();
    }
    let (mantissa, exponent) = format.layout();
    let bias = (1i64 << (exponent - 1)) - 1;
    let infinity = ((1u64 << exponent) - 1) << mantissa;
    let negative = value.is_sign_negative();
    let bits = value.to_bits() & !(1 << 63);
    let magnitude = if bits == 0 {
        0
    } else if value.is_infinite() {
        infinity
    } else {
        let raw_exponent = (bits >> 52) as i64;
        // A subnormal f64 is far below every target; its exponent only has to be small.
        let e = if raw_exponent == 0 { -1022 } else { raw_exponent - 1023 };
        let m = bits & ((1 << 52) - 1) | u64::from(raw_exponent != 0) << 52;
        let normal = e >= 1 - bias;
        let quantum = if normal { e } else { 1 - bias } - i64::from(mantissa);
        let shift = (quantum - (e - 52)).clamp(0, 60) as u32;
        let kept = m >> shift;
        let rest = m & ((1u64 << shift) - 1);
        let half = 1u64 << (shift - u32::from(shift > 0));
        let up = rest != 0
            && match rounding {
                Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
                Rounding::NearestAway => rest >= half,
                Rounding::Zero => false,
                Rounding::Down => negative,
                Rounding::Up => !negative,
            };
        let significand = kept + u64::from(up);
        let packed =
            if normal { (((e + bias - 1) as u64) << mantissa) + significand } else { significand };
        let away = match rounding {
            Rounding::Nearest | Rounding::NearestAway => true,
            Rounding::Zero => false,
            Rounding::Down => negative,
            Rounding::Up => !negative,
        };
        match packed >= infinity {
            true if away => infinity,
            true => infinity - 1,
            false => packed,
        }
    };
    let packed = magnitude | u64::from(negative) << (mantissa + exponent);
    // TF32 lives in the high bits of an f32.
    if format == Format::TF32 { packed << 13 } else { packed }
}

/// The rounded sum and its exact error.
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let part = sum - a;
    (sum, (a - (sum - part)) + (b - part))
}

/// `sum + error`, rounded to odd.
#[inline]
fn to_odd(sum: f64, error: f64) -> f64 {
    let bits = sum.to_bits();
    // A NaN error (infinite operands) compares false and leaves the sum alone.
    let adjust = u64::from(error.abs() > 0.0) & !bits & 1;
    let opposite = (bits ^ error.to_bits()) >> 63;
    f64::from_bits(bits.wrapping_add(adjust).wrapping_sub(2 * (adjust & opposite)))
}

/// `a + b` rounded to odd.
#[inline]
pub(crate) fn add_odd(a: f64, b: f64) -> f64 {
    let (sum, error) = two_sum(a, b);
    to_odd(sum, error)
}

/// `a * b + c` rounded to odd, for `a` and `b` of at most 24 significant bits.
#[inline]
pub(crate) fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    add_odd(a * b, c)
}

/// `a / b` rounded to odd.
pub(crate) fn div_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    if !quotient.is_finite() || quotient == 0.0 {
        return quotient;
    }
    let remainder = (-quotient).mul_add(b, a);
    to_odd(quotient, if b.is_sign_negative() { -remainder } else { remainder })
}

/// `√a` rounded to odd.
pub(crate) fn sqrt_odd(a: f64) -> f64 {
    let root = a.sqrt();
    if !root.is_finite() || root == 0.0 {
        return root;
    }
    to_odd(root, (-root).mul_add(root, a))
}

/// A zero sum has the sign IEEE 754 gives it in this direction: minus only when rounding down,
/// unless both terms are zeros of one sign.
pub(crate) fn zero_sign(sum: f64, a: f64, b: f64, rounding: Rounding) -> f64 {
    if sum == 0.0 && rounding == Rounding::Down && (a != 0.0 || a.to_bits() != b.to_bits()) {
        -0.0
    } else {
        sum
    }
}

/// The f64 next to the nearest one, given on which side of it the exact value lies.
pub(crate) fn direct(nearest: f64, error: f64, rounding: Rounding) -> f64 {
    if nearest.is_nan() || error.is_nan() && nearest.is_finite() {
        return nearest;
    }
    if nearest.is_infinite() {
        // Reached by overflow only: the callers handle infinite operands.
        let keep = match rounding {
            Rounding::Nearest | Rounding::NearestAway => true,
            Rounding::Zero => false,
            Rounding::Down => nearest < 0.0,
            Rounding::Up => nearest > 0.0,
        };
        return if keep { nearest } else { f64::MAX.copysign(nearest) };
    }
    let down = match rounding {
        Rounding::Nearest | Rounding::NearestAway => return nearest,
        Rounding::Zero => nearest > 0.0 || nearest == 0.0 && error > 0.0,
        Rounding::Down => true,
        Rounding::Up => false,
    };
    if down && error < 0.0 {
        nearest.next_down()
    } else if !down && error > 0.0 {
        nearest.next_up()
    } else {
        nearest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrowing_agrees_with_native_conversion_and_with_half() {
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let exponent = 800 + (state >> 40) % 450;
            let value = f64::from_bits(state & !(0x7ff << 52) | exponent << 52);
            let rn = narrow(value, Format::F32, Rounding::Nearest) as u32;
            assert_eq!(rn, (value as f32).to_bits(), "{value:e}");
            let single = value as f32;
            let bf16 = narrow(f64::from(single), Format::BF16, Rounding::Nearest) as u16;
            assert_eq!(bf16, half::bf16::from_f32(single).to_bits(), "{single:e}");
            let f16 = narrow(f64::from(single), Format::F16, Rounding::Nearest) as u16;
            assert_eq!(f16, half::f16::from_f32(single).to_bits(), "{single:e}");
        }
    }

    #[test]
    fn directions_bracket_the_value() {
        let third = 1.0 / 3.0;
        let up = f32::from_bits(narrow(third, Format::F32, Rounding::Up) as u32);
        let down = f32::from_bits(narrow(third, Format::F32, Rounding::Down) as u32);
        assert!(f64::from(down) < third && third < f64::from(up));
        assert_eq!(up.to_bits(), down.to_bits() + 1);
        let zero = narrow(-third, Format::F32, Rounding::Zero) as u32;
        assert_eq!(zero, down.to_bits() | 0x8000_0000);
        assert_eq!(narrow(1e300, Format::F16, Rounding::Zero), 0x7bff);
        assert_eq!(narrow(1e300, Format::F16, Rounding::Nearest), 0x7c00);
        assert_eq!(narrow(-1e300, Format::BF16, Rounding::Up), 0xff7f);
        assert_eq!(narrow(1e-300, Format::F32, Rounding::Up), 1);
        assert_eq!(narrow(1e-300, Format::F32, Rounding::Down), 0);
    }

    #[test]
    fn odd_rounding_makes_fma_single_rounded() {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let bits = (state >> 32) as u32;
            // Exponents close together, so that cancellation and ties occur.
            f32::from_bits(bits & 0x807f_ffff | (120 + (bits >> 26) % 14) << 23)
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next());
            let ours = fma_odd(f64::from(a), f64::from(b), f64::from(c)) as f32;
            assert_eq!(ours.to_bits(), a.mul_add(b, c).to_bits(), "{a} {b} {c}");
            let quotient = div_odd(f64::from(a), f64::from(b)) as f32;
            assert_eq!(quotient.to_bits(), (a / b).to_bits());
            let root = sqrt_odd(f64::from(a.abs())) as f32;
            assert_eq!(root.to_bits(), a.abs().sqrt().to_bits());
        }
    }

    #[test]
    fn subnormals_flush_by_format() {
        assert_eq!(Format::F16.flush(0x83ff), 0x8000);
        assert_eq!(Format::F16.flush(0x0400), 0x0400);
        assert_eq!(Format::F32.flush(0x807f_ffff), 0x8000_0000);
        assert_eq!(Format::BF16.flush(0x0001), 0);
    }
}
