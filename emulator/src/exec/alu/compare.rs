//! Comparisons and selections. A predicate is 0 or 1 in its register.

use super::{Format, Function, Kind, Meaning, Opcode, Ty, many, one, three};

/// A comparison by name and type, on the bits of two elements.
fn comparison(
    name: &str,
    ty: Ty,
    ftz: bool,
) -> Option<Box<dyn Fn(u64, u64) -> bool + Send + Sync>> {
    let Kind::Float(format) = ty.kind else { return integer_comparison(name, ty) };
    let mask = ty.mask();
    let value = move |bits: u64| {
        let bits = bits & mask;
        format.widen(if ftz { format.flush(bits) } else { bits })
    };
    let (name, unordered) = match name.strip_suffix('u') {
        Some(ordered) => (ordered, true),
        None => (name, false),
    };
    let test: fn(f64, f64) -> bool = match name {
        "eq" => |a, b| a == b,
        "ne" => |a, b| a != b && !a.is_nan() && !b.is_nan(),
        "lt" => |a, b| a < b,
        "le" => |a, b| a <= b,
        "gt" => |a, b| a > b,
        "ge" => |a, b| a >= b,
        "num" => |a, b| !a.is_nan() && !b.is_nan(),
        "nan" => |a, b| a.is_nan() || b.is_nan(),
        _ => return None,
    };
    Some(Box::new(move |a, b| {
        let (a, b) = (value(a), value(b));
        test(a, b) || unordered && (a.is_nan() || b.is_nan())
    }))
}

fn integer_comparison(name: &str, ty: Ty) -> Option<Box<dyn Fn(u64, u64) -> bool + Send + Sync>> {
    let mask = ty.mask();
    let test: fn(i64, i64) -> bool = match name {
        "eq" => |a, b| a == b,
        "ne" => |a, b| a != b,
        "lt" | "lo" => |a, b| a < b,
        "le" | "ls" => |a, b| a <= b,
        "gt" | "hi" => |a, b| a > b,
        "ge" | "hs" => |a, b| a >= b,
        _ => return None,
    };
    // Unsigned order is signed order with the top bit flipped.
    let flip = if ty.signed() { 0 } else { 1u64 << 63 };
    Some(Box::new(move |a, b| {
        let prepare = |x: u64| if flip == 0 { ty.extend(x) } else { ((x & mask) ^ flip) as i64 };
        test(prepare(a), prepare(b))
    }))
}

const COMPARISONS: [&str; 20] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu",
    "geu", "num", "nan", "ftz", "and",
];

/// How a comparison's result is combined with the boolean operand.
type Combine = fn(bool, bool) -> bool;

/// The comparison's name, how to combine it, and whether there is something to combine with.
fn parts(opcode: &Opcode<'_>, ty: Ty) -> Option<(String, Combine, bool)> {
    let combine: (Combine, bool) = match () {
        () if opcode.has("and") => (|a, b| a && b, true),
        () if opcode.has("or") => (|a, b| a || b, true),
        () if opcode.has("xor") => (|a, b| a ^ b, true),
        () => (|a, _| a, false),
    };
    let known = |m: &&&str| COMPARISONS.contains(*m) && !matches!(**m, "ftz" | "and");
    let name = (*opcode.modifiers.iter().find(known)?).to_owned();
    let all_known = opcode
        .modifiers
        .iter()
        .all(|m| Ty::parse(m).is_some() || COMPARISONS.contains(m) || matches!(*m, "or" | "xor"));
    // A packed comparison yields two predicates, and has no boolean operand in NVRTC's output.
    (all_known && !(ty.packed && combine.1)).then_some((name, combine.0, combine.1))
}

/// `setp`: predicate results, the second the comparison's complement (for pairs: the high half).
pub(crate) fn setp(opcode: &Opcode<'_>, pair: bool) -> Option<Meaning> {
    let ty = opcode.ty(0)?;
    let (name, combine, boolean) = parts(opcode, ty)?;
    let test = comparison(&name, ty, opcode.has("ftz"))?;
    let function = if ty.packed {
        many(move |[a, b, ..]| [u64::from(test(a, b)), u64::from(test(a >> 16, b >> 16)), 0, 0])
    } else if !boolean && !pair {
        super::two(move |a, b| u64::from(test(a, b)))
    } else {
        many(move |[a, b, c, _]| {
            let (result, c) = (test(a, b), c & 1 != 0);
            [u64::from(combine(result, c)), u64::from(combine(!result, c)), 0, 0]
        })
    };
    Some(Meaning::new(function, if boolean { 3 } else { 2 }, ty))
}

/// `set`: all ones or 1.0 in the destination type.
pub(crate) fn set(opcode: &Opcode<'_>) -> Option<Meaning> {
    let (to, from) = (opcode.ty(0)?, opcode.ty(1)?);
    let (name, combine, boolean) = parts(opcode, from)?;
    let test = comparison(&name, from, opcode.has("ftz"))?;
    let yes = match to.kind {
        Kind::Float(Format::F16) => 0x3c00,
        Kind::Float(Format::BF16) => 0x3f80,
        Kind::Float(Format::F32) => 0x3f80_0000,
        _ => to.mask(),
    };
    let select = move |on: bool| if on { yes } else { 0 };
    let function = if from.packed {
        many(move |[a, b, ..]| {
            [select(test(a, b)) & 0xffff | (select(test(a >> 16, b >> 16)) & 0xffff) << 16, 0, 0, 0]
        })
    } else {
        many(move |[a, b, c, _]| [select(combine(test(a, b), c & 1 != 0)), 0, 0, 0])
    };
    Some(Meaning::new(function, if boolean { 3 } else { 2 }, from))
}

/// `selp` and `slct`.
pub(crate) fn select(opcode: &Opcode<'_>) -> Option<Meaning> {
    if !opcode.only(&["ftz"]) {
        return None;
    }
    let ty = opcode.ty(0)?;
    if opcode.base == "selp" {
        return Some(Meaning::new(Function::Select, 3, ty));
    }
    let decide = opcode.ty(1)?;
    let function: Function = if decide.is_float() {
        three(|a, b, c| if f32::from_bits(c as u32) >= 0.0 { a } else { b })
    } else {
        three(|a, b, c| if c as i32 >= 0 { a } else { b })
    };
    Some(Meaning::new(function, 3, ty))
}

/// `testp`: a property of one float.
pub(crate) fn testp(opcode: &Opcode<'_>) -> Option<Meaning> {
    let ty = opcode.ty(0)?;
    let Kind::Float(format @ (Format::F32 | Format::F64)) = ty.kind else { return None };
    let test: fn(f64, bool) -> bool = match *opcode.modifiers.first()? {
        "finite" => |x, _| x.is_finite(),
        "infinite" => |x, _| x.is_infinite(),
        "number" => |x, _| !x.is_nan(),
        "notanumber" => |x, _| x.is_nan(),
        "normal" => |x, subnormal| x.is_finite() && x != 0.0 && !subnormal,
        "subnormal" => |_, subnormal| subnormal,
        _ => return None,
    };
    let mask = ty.mask();
    let function = one(move |a| {
        let a = a & mask;
        let subnormal = format.flush(a) != a;
        u64::from(test(format.widen(a), subnormal))
    });
    Some(Meaning::new(function, 1, ty))
}
