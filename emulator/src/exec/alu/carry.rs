//! Extended-precision integer arithmetic through the carry flag.

use super::{Meaning, Opcode, many};

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.{lo,hi}.cc` and `madc`. The flag is the last operand
/// when it is read and the second result when it is written.
pub(crate) fn arithmetic(opcode: &Opcode<'_>) -> Option<Meaning> {
    if !opcode.only(&["cc", "lo", "hi"]) {
        return None;
    }
    let ty = opcode.ty(0)?;
    let (mask, bits) = (ty.mask(), ty.bits);
    if ty.packed || bits < 32 {
        return None;
    }
    let carry_in = opcode.base.ends_with('c');
    let subtract = opcode.base.starts_with("sub");
    let multiply = opcode.base.starts_with("mad");
    let high = opcode.has("hi");
    let function = many(move |[a, b, c, d]| {
        let (a, b) = (a & mask, b & mask);
        let (x, y, flag) = if multiply {
            let product = if ty.signed() {
                (i128::from(ty.extend(a)) * i128::from(ty.extend(b))) as u128
            } else {
                u128::from(a) * u128::from(b)
            };
            let part = if high { product >> bits } else { product } as u64 & mask;
            (part, c & mask, d)
        } else {
            (a, b, c)
        };
        let flag = if carry_in { flag & 1 } else { 0 };
        if subtract {
            let total = i128::from(x) - i128::from(y) - i128::from(flag);
            [total as u64 & mask, u64::from(total < 0), 0, 0]
        } else {
            let total = u128::from(x) + u128::from(y) + u128::from(flag);
            [total as u64 & mask, (total >> bits) as u64 & 1, 0, 0]
        }
    });
    let mut meaning = Meaning::new(function, if multiply { 3 } else { 2 }, ty);
    meaning.carry_in = carry_in;
    meaning.carry_out = opcode.has("cc");
    Some(meaning)
}
