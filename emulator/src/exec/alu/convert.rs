//! `cvt` in all forms between integers, f16, bf16, tf32, f32 and f64.

use super::rounding::{Format, Rounding, add_odd, narrow};
use super::{Kind, Meaning, Opcode, Ty, one, two};

const KNOWN: [&str; 14] = [
    "rn",
    "rz",
    "rm",
    "rp",
    "rna",
    "rni",
    "rzi",
    "rmi",
    "rpi",
    "ftz",
    "sat",
    "relu",
    "satfinite",
    "pack",
];

/// How a float becomes a whole number.
fn integral(opcode: &Opcode<'_>) -> Option<fn(f64) -> f64> {
    opcode.modifiers.iter().find_map(|modifier| {
        Some(match *modifier {
            "rni" => f64::round_ties_even as fn(f64) -> f64,
            "rzi" => f64::trunc,
            "rmi" => f64::floor,
            "rpi" => f64::ceil,
            _ => return None,
        })
    })
}

/// The conversion an opcode asks for.
pub(crate) fn cvt(opcode: &Opcode<'_>) -> Option<Meaning> {
    if !opcode.only(&KNOWN) || opcode.has("pack") || opcode.has("satfinite") {
        return None;
    }
    let (to, from) = (opcode.ty(0)?, opcode.ty(1)?);
    match (to.kind, from.kind) {
        (Kind::Float(format), Kind::Float(Format::F32)) if to.packed && !from.packed => {
            Some(pair(opcode, format, from))
        }
        _ if to.packed || from.packed => None,
        (Kind::Float(_), Kind::Float(_)) => float_to_float(opcode, to, from),
        (Kind::Float(format), _) => integer_to_float(opcode, format, from),
        (_, Kind::Float(format)) => float_to_integer(opcode, to, format, from),
        _ => Some(integer_to_integer(opcode, to, from)),
    }
}

fn finish(value: f64, format: Format, rounding: Rounding, sat: bool, relu: bool) -> u64 {
    let value = match (sat, relu) {
        (true, _) if value > 0.0 => value.min(1.0),
        (true, _) => 0.0,
        (_, true) if value < 0.0 => 0.0,
        _ => value,
    };
    narrow(value, format, rounding)
}

/// `cvt.rn.f16x2.f32 d, a, b`: `a` into the high half.
fn pair(opcode: &Opcode<'_>, format: Format, from: Ty) -> Meaning {
    let rounding = opcode.rounding(Rounding::Nearest);
    let relu = opcode.has("relu");
    let function = two(move |a, b| {
        let half = |bits: u64| finish(Format::F32.widen(bits), format, rounding, false, relu);
        half(a) << 16 | half(b)
    });
    Meaning::new(function, 2, from)
}

fn float_to_float(opcode: &Opcode<'_>, to: Ty, from: Ty) -> Option<Meaning> {
    let (Kind::Float(target), Kind::Float(source)) = (to.kind, from.kind) else { return None };
    let rounding = opcode.rounding(Rounding::Nearest);
    let whole = integral(opcode);
    let (ftz, sat, relu) = (opcode.has("ftz"), opcode.has("sat"), opcode.has("relu"));
    let mask = from.mask();
    let function = one(move |a| {
        let a = if ftz { source.flush(a & mask) } else { a & mask };
        let value = source.widen(a);
        let value = whole.map_or(value, |f| f(value).copysign(value));
        let bits = finish(value, target, rounding, sat, relu);
        if ftz { target.flush(bits) } else { bits }
    });
    Some(Meaning::new(function, 1, from))
}

fn integer_to_float(opcode: &Opcode<'_>, format: Format, from: Ty) -> Option<Meaning> {
    let rounding = opcode.rounding(Rounding::Nearest);
    let sat = opcode.has("sat");
    let (mask, signed) = (from.mask(), from.signed());
    let function = one(move |a| {
        // The two halves are exact in f64, their sum is rounded to odd.
        let (high, low) = if signed {
            let value = from.extend(a);
            ((value >> 32) as f64, (value & 0xffff_ffff) as f64)
        } else {
            (((a & mask) >> 32) as f64, (a & mask & 0xffff_ffff) as f64)
        };
        let high = high * 4_294_967_296.0;
        if format == Format::F64 {
            let nearest = high + low;
            let (_, error) = super::rounding::two_sum(high, low);
            return super::rounding::direct(nearest, error, rounding).to_bits();
        }
        finish(add_odd(high, low), format, rounding, sat, false)
    });
    Some(Meaning::new(function, 1, from))
}

fn float_to_integer(opcode: &Opcode<'_>, to: Ty, format: Format, from: Ty) -> Option<Meaning> {
    let whole = integral(opcode)?;
    let ftz = opcode.has("ftz");
    let mask = from.mask();
    let (low, high) = if to.signed() {
        (-(1i128 << (to.bits - 1)), (1i128 << (to.bits - 1)) - 1)
    } else {
        (0, (1i128 << to.bits) - 1)
    };
    let function = one(move |a| {
        let a = if ftz { format.flush(a & mask) } else { a & mask };
        let value = format.widen(a);
        // NaN becomes 0 in narrow targets and the integer indefinite in 64-bit ones.
        if value.is_nan() {
            return if to.bits == 64 { 1 << 63 } else { 0 };
        }
        (whole(value) as i128).clamp(low, high) as u64
    });
    Some(Meaning::new(function, 1, from))
}

fn integer_to_integer(opcode: &Opcode<'_>, to: Ty, from: Ty) -> Meaning {
    let sat = opcode.has("sat");
    let mask = from.mask();
    let function = one(move |a| {
        let value = if from.signed() { i128::from(from.extend(a)) } else { i128::from(a & mask) };
        let value = if sat {
            let (low, high) = if to.signed() {
                (-(1i128 << (to.bits - 1)), (1i128 << (to.bits - 1)) - 1)
            } else {
                (0, (1i128 << to.bits) - 1)
            };
            value.clamp(low, high)
        } else {
            value
        };
        // A narrow result fills its register: extended by its own signedness.
        to.extend(value as u64) as u64
    });
    Meaning::new(function, 1, from)
}
