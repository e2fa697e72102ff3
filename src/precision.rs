//! Number formats: what the iterate is stored in, and rounding to it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// bfloat16: 8 bits of significand, the exponent range of f32.
    Bf16,
    /// IEEE binary16: 11 bits of significand, largest finite value 65504.
    F16,
}

impl Dtype {
    /// Bytes per element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// What the iterate and its products are stored in; sums are f32 in every precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// f32 throughout: the default of the CPU device.
    #[default]
    F32,
    /// f32 at every store; products read 10 bits of mantissa: tensor cores on CUDA; emulated on the CPU.
    Tf32,
    /// bf16 at every store: the default on CUDA; emulated on the CPU.
    Bf16,
    /// fp16 at every store, after normalisation in f32.
    Fp16,
}

impl Precision {
    /// Largest relative error of one rounding to nearest, of tf32 that of what products read: 2⁻²⁴, 2⁻⁸ or 2⁻¹¹.
    #[must_use]
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => f64::powi(2.0, -24),
            Self::Bf16 => f64::powi(2.0, -8),
            Self::Fp16 | Self::Tf32 => f64::powi(2.0, -11),
        }
    }

    /// Bytes per element as a GPU stores it.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::Tf32 => 4,
            Self::Bf16 | Self::Fp16 => 2,
        }
    }

    /// Rounds as a store does: to the nearest number of this format, ties to even; overflow gives an infinity.
    /// tf32 is stored as f32.
    #[must_use]
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 | Self::Tf32 => x,
            Self::Bf16 => round_bf16(x),
            Self::Fp16 => round_fp16(x),
        }
    }

    /// What a product reads of a stored number: in tf32 the nearest one with 10 bits of mantissa, ties away from
    /// zero; elsewhere the number itself.
    ///
    /// # Sources
    /// PTX ISA, `cvt.rna.tf32.f32`; how far products on a GPU keep to it is in NUMERICS.md.
    #[must_use]
    #[inline(always)]
    pub fn round_operand(self, x: f32) -> f32 {
        match self {
            Self::Tf32 => round_tf32(x),
            Self::F32 | Self::Bf16 | Self::Fp16 => x,
        }
    }

    /// The format of a store: f32 for tf32.
    #[must_use]
    pub(crate) fn stored(self) -> Self {
        match self {
            Self::Tf32 => Self::F32,
            other => other,
        }
    }

    /// The name on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Rounds to bf16 and back in plain bit arithmetic, which vectorises.
#[inline(always)]
fn round_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A NaN must not round into an infinity: its quiet bit lies in the part that is kept.
    let rounded = if x.is_nan() { bits | 0x0040_0000 } else { nearest };
    f32::from_bits(rounded & 0xffff_0000)
}

/// Rounds to 10 bits of mantissa: half a unit is added to the magnitude and the rest cut off. The largest f32 give an
/// infinity.
#[inline(always)]
fn round_tf32(x: f32) -> f32 {
    let rounded = f32::from_bits(x.to_bits().wrapping_add(0x1000) & 0xffff_e000);
    if x.is_finite() { rounded } else { x }
}

/// Rounds to fp16 and back in plain arithmetic, which vectorises.
#[inline(always)]
fn round_fp16(x: f32) -> f32 {
    let bits = x.to_bits();
    let normal = f32::from_bits(bits.wrapping_add(0x0fff + ((bits >> 13) & 1)) & 0xffff_e000);
    // Subnormals of fp16 are multiples of 2⁻²⁴, the spacing of f32 just above one half.
    let magnitude = x.abs();
    let subnormal = (magnitude + 0.5) - 0.5;
    let rounded = if magnitude < 6.103_515_6e-5 { subnormal.copysign(x) } else { normal };
    // 65520 lies half-way between the largest fp16 and the next power of two's grid, and ties go to even: up.
    let rounded = if magnitude >= 65520.0 { f32::INFINITY.copysign(x) } else { rounded };
    if x.is_nan() { x } else { rounded }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Every 16-bit value, its neighbours in f32, and the midpoint to the next value with its neighbours.
    #[test]
    fn rounding_equals_the_half_crate_at_every_boundary() {
        let check = |x: f32| {
            let (b, h) = (Precision::Bf16.round(x), Precision::Fp16.round(x));
            let (eb, eh) = (bf16::from_f32(x).to_f32(), f16::from_f32(x).to_f32());
            assert!(
                b.to_bits() == eb.to_bits() || (b.is_nan() && eb.is_nan()),
                "bf16 {x:e}: {b:e} {eb:e}"
            );
            assert!(
                h.to_bits() == eh.to_bits() || (h.is_nan() && eh.is_nan()),
                "fp16 {x:e}: {h:e} {eh:e}"
            );
        };
        for pattern in 0..=u16::MAX {
            for x in [bf16::from_bits(pattern).to_f32(), f16::from_bits(pattern).to_f32()] {
                for half_spacing in [0u32, 1 << 15, 1 << 12] {
                    for offset in [-1i32, 0, 1] {
                        check(f32::from_bits(
                            x.to_bits().wrapping_add(half_spacing).wrapping_add_signed(offset),
                        ));
                    }
                }
            }
        }
        for x in [
            65504.0,
            65519.99,
            65520.0,
            1e6,
            2.98e-8,
            2.9802322e-8,
            8.9e-8,
            f32::MAX,
            f32::MIN_POSITIVE,
        ] {
            check(x);
            check(-x);
        }
    }

    #[test]
    fn tf32_operands_are_the_nearest_ten_bits_and_ties_go_away_from_zero() {
        // In exact arithmetic: a number of units of the last place that is kept, and half of one added.
        let nearest = |x: f64| {
            let power = f64::from_bits(x.to_bits() & (0x7ff << 52));
            let unit = power * f64::powi(2.0, -10);
            ((x.abs() / unit + 0.5).floor() * unit).copysign(x)
        };
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        for i in 0..200_000u32 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Ends of the cut-off part, where it is decided, and anything.
            let low = [0x0000, 0x0001, 0x0fff, 0x1000, 0x1001, 0x1fff, (random & 0x1fff) as u32];
            let bits = (random >> 32) as u32 & 0xffff_e000 | low[i as usize % 7];
            let x = f32::from_bits(bits);
            let found = Precision::Tf32.round_operand(x);
            if x.is_nan() {
                assert!(found.is_nan());
            } else if x.is_normal() && x.abs() < f32::MAX / 2.0 {
                assert_eq!(f64::from(found), nearest(f64::from(x)), "{x:e}");
            }
            // A store is f32, and nothing else is cut on its way into a product.
            assert_eq!(Precision::Tf32.round(x).to_bits(), bits);
            assert_eq!(Precision::F32.round_operand(x).to_bits(), bits);
        }
        for (x, expected) in [
            (0.0, 0.0),
            (-0.0, -0.0),
            (f32::INFINITY, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            (f32::MAX, f32::INFINITY),
            (1.0 + f32::powi(2.0, -11), 1.0 + f32::powi(2.0, -10)),
            (-1.0 - f32::powi(2.0, -11), -1.0 - f32::powi(2.0, -10)),
        ] {
            assert_eq!(Precision::Tf32.round_operand(x).to_bits(), f32::to_bits(expected), "{x}");
        }
        assert!(Precision::Tf32.round_operand(f32::from_bits(0x7f80_0001)).is_nan());
    }

    #[test]
    fn unit_roundoff_is_the_largest_relative_error() {
        for p in [Precision::Bf16, Precision::Fp16, Precision::Tf32] {
            let mut worst = 0.0f64;
            for i in 0..100_000 {
                let x = 1.0 + i as f32 * 1e-5;
                let rounded = p.round_operand(p.round(x));
                worst = worst.max((f64::from(rounded) / f64::from(x) - 1.0).abs());
            }
            // The bound u is approached just above a power of two, u/(1+u).
            assert!(worst <= p.unit_roundoff() && worst > 0.9 * p.unit_roundoff(), "{p} {worst}");
        }
    }
}
