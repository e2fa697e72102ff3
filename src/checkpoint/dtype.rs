//! Element types of tensors in a file, and the little-endian bytes of the ones we compute with.

use std::fmt;

use half::{bf16, f16};
use safetensors::Dtype as Stored;

use crate::precision::Dtype;

/// Element type of a tensor in a safetensors file, named as the format names it.
///
/// Wider than [`Dtype`], which lists what the optimizer computes with: a file may also hold
/// integers, f64 and formats that this crate lists but does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorDtype(pub(super) Stored);

impl TensorDtype {
    /// IEEE binary64.
    pub const F64: Self = Self(Stored::F64);
    /// IEEE binary32.
    pub const F32: Self = Self(Stored::F32);
    /// bfloat16.
    pub const BF16: Self = Self(Stored::BF16);
    /// IEEE binary16.
    pub const F16: Self = Self(Stored::F16);
    /// Signed 64-bit integer.
    pub const I64: Self = Self(Stored::I64);
    /// Unsigned 64-bit integer.
    pub const U64: Self = Self(Stored::U64);

    /// By the name that files use.
    #[cfg(test)]
    pub(crate) fn named(name: &str) -> Self {
        Self(serde_json::from_value(name.into()).unwrap())
    }

    /// Bits per element; 4 or 6 for the packed formats.
    #[must_use]
    pub fn bits(self) -> usize {
        self.0.bitsize()
    }

    /// Whether a parameter can be stored in it: floating-point numbers of 8 bits or more, real and with a mantissa.
    #[must_use]
    pub fn is_trainable(self) -> bool {
        matches!(
            self.0,
            Stored::F64
                | Stored::F32
                | Stored::F16
                | Stored::BF16
                | Stored::F8_E5M2
                | Stored::F8_E4M3
                | Stored::F8_E5M2FNUZ
                | Stored::F8_E4M3FNUZ
        )
    }

    /// Bytes of a tensor of this type, `None` on overflow or where it is not a whole number.
    pub(super) fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        let elements = shape.iter().try_fold(1_usize, |product, &d| product.checked_mul(d))?;
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl From<Dtype> for TensorDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
            Dtype::F16 => Self::F16,
        }
    }
}

impl fmt::Display for TensorDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A type whose values can be stored: f64, f32, bf16, f16, i64 and u64.
pub trait Element: Encoding {
    /// Its name in the file.
    const DTYPE: TensorDtype;
}

pub(super) use encoding::Encoding;

mod encoding {
    use std::borrow::Cow;

    /// The little-endian bytes of a type's values; private, so that nobody else implements `Element`.
    pub trait Encoding: bytemuck::NoUninit {
        /// The bytes of one element, least significant first.
        fn push_le(self, bytes: &mut Vec<u8>);

        /// Decodes whole elements; bytes of an incomplete last one are left out, which a parsed header
        /// rules out.
        fn from_le(bytes: &[u8]) -> Vec<Self>;

        /// Bytes as stored: borrowed where memory is little-endian already.
        fn le_bytes(values: &[Self]) -> Cow<'_, [u8]> {
            if cfg!(target_endian = "little") {
                return Cow::Borrowed(bytemuck::cast_slice(values));
            }
            let mut bytes = Vec::with_capacity(size_of_val(values));
            values.iter().for_each(|value| value.push_le(&mut bytes));
            Cow::Owned(bytes)
        }
    }
}

macro_rules! element {
    ($type:ty, $dtype:ident, $size:literal) => {
        impl Element for $type {
            const DTYPE: TensorDtype = TensorDtype::$dtype;
        }

        impl Encoding for $type {
            fn push_le(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }

            fn from_le(bytes: &[u8]) -> Vec<Self> {
                bytes.as_chunks::<$size>().0.iter().map(|&b| Self::from_le_bytes(b)).collect()
            }
        }
    };
}

element!(f64, F64, 8);
element!(f32, F32, 4);
element!(bf16, BF16, 2);
element!(f16, F16, 2);
element!(i64, I64, 8);
element!(u64, U64, 8);
