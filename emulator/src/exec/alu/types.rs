//! Scalar types of PTX instructions.

use super::rounding::Format;

/// What the bits of a value mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Pred,
    Bits,
    Unsigned,
    Signed,
    Float(Format),
}

/// A scalar (or packed pair of) type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ty {
    pub(crate) kind: Kind,
    /// Bits of one element.
    pub(crate) bits: u32,
    /// Whether the register holds two elements.
    pub(crate) packed: bool,
}

impl Ty {
    pub(crate) const B32: Self = Self { kind: Kind::Bits, bits: 32, packed: false };

    /// A type by its PTX name without the dot.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (kind, bits, packed) = match name {
            "pred" => (Kind::Pred, 1, false),
            "b8" => (Kind::Bits, 8, false),
            "b16" => (Kind::Bits, 16, false),
            "b32" => (Kind::Bits, 32, false),
            "b64" => (Kind::Bits, 64, false),
            "u8" => (Kind::Unsigned, 8, false),
            "u16" => (Kind::Unsigned, 16, false),
            "u32" => (Kind::Unsigned, 32, false),
            "u64" => (Kind::Unsigned, 64, false),
            "s8" => (Kind::Signed, 8, false),
            "s16" => (Kind::Signed, 16, false),
            "s32" => (Kind::Signed, 32, false),
            "s64" => (Kind::Signed, 64, false),
            "f16" => (Kind::Float(Format::F16), 16, false),
            "bf16" => (Kind::Float(Format::BF16), 16, false),
            "f16x2" => (Kind::Float(Format::F16), 16, true),
            "bf16x2" => (Kind::Float(Format::BF16), 16, true),
            "f32" => (Kind::Float(Format::F32), 32, false),
            "tf32" => (Kind::Float(Format::TF32), 32, false),
            "f64" => (Kind::Float(Format::F64), 64, false),
            "u16x2" => (Kind::Unsigned, 16, true),
            "s16x2" => (Kind::Signed, 16, true),
            _ => return None,
        };
        Some(Self { kind, bits, packed })
    }

    pub(crate) fn signed(self) -> bool {
        self.kind == Kind::Signed
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self.kind, Kind::Float(_))
    }

    /// Ones in the bits of one element.
    pub(crate) fn mask(self) -> u64 {
        if self.bits >= 64 { u64::MAX } else { (1u64 << self.bits) - 1 }
    }

    /// The element as an integer, extended by its signedness.
    pub(crate) fn extend(self, value: u64) -> i64 {
        let shift = 64 - self.bits;
        if self.signed() {
            ((value << shift) as i64) >> shift
        } else {
            ((value << shift) >> shift) as i64
        }
    }
}
