//! Number formats: what the iterate is stored in, and rounding to it.

use std::fmt;

use half::{bf16, f16};

/// Element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Precision {
    /// f32 throughout: the default of the CPU device.
    #[default]
    F32,
    /// bf16 at every store: the default on CUDA; emulated on the CPU.
    Bf16,
    /// fp16 at every store, after normalisation in f32.
    Fp16,
}

impl Precision {
    /// Largest relative error of one rounding to nearest: 2⁻²⁴, 2⁻⁸ or 2⁻¹¹.
    #[must_use]
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => f64::powi(2.0, -24),
            Self::Bf16 => f64::powi(2.0, -8),
            Self::Fp16 => f64::powi(2.0, -11),
        }
    }

    /// Bytes per element as a GPU stores it.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::Fp16 => 2,
        }
    }

    /// Rounds to the nearest number of this format, ties to even; overflow gives an infinity.
    #[must_use]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => bf16::from_f32(x).to_f32(),
            Self::Fp16 => f16::from_f32(x).to_f32(),
        }
    }

    /// The name on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
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
