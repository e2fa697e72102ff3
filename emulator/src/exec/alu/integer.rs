//! Integer, bit and predicate instructions.

use super::{Kind, Meaning, Opcode, Ty, many, one, three, two};

/// The integer forms of an opcode.
pub(crate) fn arithmetic(opcode: &Opcode<'_>) -> Option<Meaning> {
    let ty = opcode.ty(0)?;
    if ty.packed {
        return packed(opcode, ty);
    }
    let (mask, bits, signed) = (ty.mask(), ty.bits, ty.signed());
    let known: &[&str] = match opcode.base {
        "add" | "sub" => &["sat"],
        "mul" | "mad" | "mul24" | "mad24" => &["lo", "hi", "wide"],
        "shf" => &["l", "r", "wrap", "clamp"],
        "lop3" | "prmt" => &[],
        "bfind" => &["shiftamt"],
        _ => &[],
    };
    if !opcode.only(known) {
        return None;
    }
    let meaning = match opcode.base {
        "mov" => Meaning::new(one(move |a| a & mask), 1, ty),
        "add" | "sub" if opcode.has("sat") => {
            let subtract = opcode.base == "sub";
            let function = two(move |a, b| {
                let (a, b) = (ty.extend(a), ty.extend(b));
                let total = if subtract { a - b } else { a + b };
                total.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u64 & mask
            });
            Meaning::new(function, 2, ty)
        }
        "add" => Meaning::new(two(move |a, b| a.wrapping_add(b) & mask), 2, ty),
        "sub" => Meaning::new(two(move |a, b| a.wrapping_sub(b) & mask), 2, ty),
        "mul" | "mul24" => Meaning::new(multiply(opcode, ty)?, 2, ty),
        "mad" | "mad24" => Meaning::new(multiply_add(opcode, ty)?, 3, ty),
        "div" | "rem" => {
            let remainder = opcode.base == "rem";
            let function = two(move |a, b| divide(ty, a, b, remainder));
            Meaning::new(function, 2, ty)
        }
        "min" | "max" => {
            let max = opcode.base == "max";
            let flip = if signed { 0 } else { 1u64 << 63 };
            let function = two(move |a, b| {
                let key = |x: u64| if signed { ty.extend(x) } else { ((x & mask) ^ flip) as i64 };
                if (key(a) < key(b)) == max { b & mask } else { a & mask }
            });
            Meaning::new(function, 2, ty)
        }
        "abs" => Meaning::new(one(move |a| ty.extend(a).wrapping_abs() as u64 & mask), 1, ty),
        "neg" => Meaning::new(one(move |a| a.wrapping_neg() & mask), 1, ty),
        "sad" => {
            let function = three(move |a, b, c| {
                let distance = if signed {
                    ty.extend(a).abs_diff(ty.extend(b))
                } else {
                    (a & mask).abs_diff(b & mask)
                };
                distance.wrapping_add(c) & mask
            });
            Meaning::new(function, 3, ty)
        }
        "and" => Meaning::new(two(move |a, b| a & b & mask), 2, ty),
        "or" => Meaning::new(two(move |a, b| (a | b) & mask), 2, ty),
        "xor" => Meaning::new(two(move |a, b| (a ^ b) & mask), 2, ty),
        "not" => Meaning::new(one(move |a| !a & mask), 1, ty),
        "cnot" => Meaning::new(one(move |a| u64::from(a & mask == 0)), 1, ty),
        "shl" => {
            let function = two(move |a, n| {
                let n = n & 0xffff_ffff;
                if n >= u64::from(bits) { 0 } else { a << n & mask }
            });
            Meaning::new(function, 2, ty)
        }
        "shr" => {
            let function = two(move |a, n| {
                let n = (n & 0xffff_ffff).min(u64::from(bits)) as u32;
                let value = ty.extend(a);
                if signed {
                    (value >> n.min(63)) as u64 & mask
                } else if n >= 64 {
                    0
                } else {
                    (value as u64) >> n
                }
            });
            Meaning::new(function, 2, ty)
        }
        "shf" => Meaning::new(funnel(opcode), 3, ty),
        "lop3" => {
            let function = many(move |[a, b, c, table]| {
                let mut out = 0;
                for k in 0..8u32 {
                    if table >> k & 1 == 1 {
                        let pick = |x: u64, bit: u32| if k >> bit & 1 == 1 { x } else { !x };
                        out |= pick(a, 2) & pick(b, 1) & pick(c, 0);
                    }
                }
                [out & mask, 0, 0, 0]
            });
            Meaning::new(function, 4, ty)
        }
        "prmt" => Meaning::new(three(permute), 3, ty),
        "popc" => Meaning::new(one(move |a| u64::from((a & mask).count_ones())), 1, ty),
        "clz" => {
            let function = one(move |a| u64::from((a & mask).leading_zeros() - (64 - bits)));
            Meaning::new(function, 1, ty)
        }
        "brev" => Meaning::new(one(move |a| (a & mask).reverse_bits() >> (64 - bits)), 1, ty),
        "bfind" => {
            let shift_amount = opcode.has("shiftamt");
            let function = one(move |a| {
                let value = if signed && ty.extend(a) < 0 { !a & mask } else { a & mask };
                if value == 0 {
                    return 0xffff_ffff;
                }
                let top = 63 - value.leading_zeros();
                u64::from(if shift_amount { bits - 1 - top } else { top })
            });
            Meaning::new(function, 1, ty)
        }
        "bfe" => {
            let function = three(move |a, position, length| {
                let (position, length) = (position as u32 & 0xff, length as u32 & 0xff);
                let length = length.min(bits);
                if length == 0 {
                    return 0;
                }
                // Bits beyond the value are its sign for signed types, zero otherwise.
                let value = i128::from(ty.extend(a)) & if signed { -1 } else { i128::from(mask) };
                let field = (value >> position.min(64)) as u64;
                let part = Ty { bits: length, ..ty };
                part.extend(field) as u64 & mask
            });
            Meaning::new(function, 3, ty)
        }
        "bfi" => {
            let function = many(move |[a, b, position, length]| {
                let (position, length) = (position as u32 & 0xff, length as u32 & 0xff);
                if position >= bits || length == 0 {
                    return [b & mask, 0, 0, 0];
                }
                let ones = if length >= 64 { u64::MAX } else { (1u64 << length) - 1 };
                let field = ones << position & mask;
                [b & mask & !field | a << position & field, 0, 0, 0]
            });
            Meaning::new(function, 4, ty)
        }
        "dp4a" => {
            let second = opcode.ty(1)?;
            let function = three(move |a, b, c| {
                let byte = |x: u64, i: u32, ty: Ty| Ty { bits: 8, ..ty }.extend(x >> (8 * i));
                let dot: i64 = (0..4).map(|i| byte(a, i, ty) * byte(b, i, second)).sum();
                c.wrapping_add(dot as u64) & 0xffff_ffff
            });
            Meaning::new(function, 3, ty)
        }
        _ => return None,
    };
    // Signed and unsigned forms only; a float type here is an instruction nobody has.
    (!matches!(ty.kind, Kind::Float(_)) || opcode.base == "mov").then_some(meaning)
}

fn packed(opcode: &Opcode<'_>, ty: Ty) -> Option<Meaning> {
    if opcode.base == "mov" {
        return Some(Meaning::new(one(|a| a & 0xffff_ffff), 1, Ty::B32));
    }
    if ty.is_float() || opcode.modifiers.len() != 1 {
        return None;
    }
    let f: fn(i64, i64) -> i64 = match opcode.base {
        "add" => |a, b| a + b,
        "min" => |a, b| a.min(b),
        "max" => |a, b| a.max(b),
        _ => return None,
    };
    let function = two(move |a, b| {
        let half = |shift: u32| f(ty.extend(a >> shift), ty.extend(b >> shift)) as u64 & 0xffff;
        half(0) | half(16) << 16
    });
    Some(Meaning::new(function, 2, ty))
}

fn multiply(opcode: &Opcode<'_>, ty: Ty) -> Option<super::Function> {
    let (mask, bits) = (ty.mask(), ty.bits);
    if opcode.base == "mul24" {
        let part = Ty { bits: 24, ..ty };
        let high = opcode.has("hi");
        return Some(two(move |a, b| {
            let product = part.extend(a).wrapping_mul(part.extend(b));
            (if high { product >> 16 } else { product }) as u64 & mask
        }));
    }
    if opcode.has("wide") {
        let wide = if bits >= 32 { u64::MAX } else { (1u64 << (2 * bits)) - 1 };
        return (bits <= 32)
            .then(|| two(move |a, b| ty.extend(a).wrapping_mul(ty.extend(b)) as u64 & wide));
    }
    if opcode.has("hi") {
        return Some(two(move |a, b| high_product(ty, a, b)));
    }
    Some(two(move |a, b| a.wrapping_mul(b) & mask))
}

fn multiply_add(opcode: &Opcode<'_>, ty: Ty) -> Option<super::Function> {
    let (mask, bits) = (ty.mask(), ty.bits);
    if opcode.base == "mad24" {
        let part = Ty { bits: 24, ..ty };
        let high = opcode.has("hi");
        return Some(three(move |a, b, c| {
            let product = part.extend(a).wrapping_mul(part.extend(b));
            ((if high { product >> 16 } else { product }) as u64).wrapping_add(c) & mask
        }));
    }
    if opcode.has("wide") {
        let wide = if bits >= 32 { u64::MAX } else { (1u64 << (2 * bits)) - 1 };
        return (bits <= 32).then(|| {
            three(move |a, b, c| {
                (ty.extend(a).wrapping_mul(ty.extend(b)) as u64).wrapping_add(c) & wide
            })
        });
    }
    if opcode.has("hi") {
        return Some(three(move |a, b, c| high_product(ty, a, b).wrapping_add(c) & mask));
    }
    Some(three(move |a, b, c| a.wrapping_mul(b).wrapping_add(c) & mask))
}

fn high_product(ty: Ty, a: u64, b: u64) -> u64 {
    let mask = ty.mask();
    if ty.signed() {
        let product = i128::from(ty.extend(a)) * i128::from(ty.extend(b));
        (product >> ty.bits) as u64 & mask
    } else {
        let product = u128::from(a & mask) * u128::from(b & mask);
        (product >> ty.bits) as u64 & mask
    }
}

/// Division by zero has no defined result; the hardware gives all ones (and `a` as remainder).
fn divide(ty: Ty, a: u64, b: u64, remainder: bool) -> u64 {
    let mask = ty.mask();
    if b & mask == 0 {
        return if remainder { a & mask } else { mask };
    }
    let result = match (ty.signed(), remainder) {
        (true, false) => ty.extend(a).wrapping_div(ty.extend(b)) as u64,
        (true, true) => ty.extend(a).wrapping_rem(ty.extend(b)) as u64,
        (false, false) => (a & mask) / (b & mask),
        (false, true) => (a & mask) % (b & mask),
    };
    result & mask
}

fn funnel(opcode: &Opcode<'_>) -> super::Function {
    let (left, clamp) = (opcode.has("l"), opcode.has("clamp"));
    three(move |a, b, n| {
        let n = n & 0xffff_ffff;
        let n = if clamp { n.min(32) } else { n & 31 };
        let value = (b & 0xffff_ffff) << 32 | a & 0xffff_ffff;
        if left {
            // The upper word of the pair shifted left.
            ((u128::from(value) << n) >> 32) as u64 & 0xffff_ffff
        } else {
            value >> n & 0xffff_ffff
        }
    })
}

/// `prmt` in its default mode.
fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let bytes = (b & 0xffff_ffff) << 32 | a & 0xffff_ffff;
    let mut out = 0;
    for i in 0..4 {
        let nibble = selector >> (4 * i) & 0xf;
        let byte = bytes >> (8 * (nibble & 7)) & 0xff;
        let byte = if nibble & 8 == 0 {
            byte
        } else if byte & 0x80 == 0 {
            0
        } else {
            0xff
        };
        out |= byte << (8 * i);
    }
    out
}
