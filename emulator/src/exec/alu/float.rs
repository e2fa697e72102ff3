//! f32 and f64 arithmetic.

use super::rounding::{
    Format, Rounding, add_odd, direct, div_odd, fma_odd, narrow, sqrt_odd, two_sum, zero_sign,
};
use super::{Function, Meaning, Opcode, Ty, one, three, two};

/// The f32 and f64 forms of an arithmetic opcode.
pub(crate) fn arithmetic(opcode: &Opcode<'_>, ty: Ty) -> Option<Meaning> {
    let known = ["rn", "rz", "rm", "rp", "ftz", "sat", "approx", "full", "NaN"];
    if !opcode.only(&known) || ty.packed {
        return None;
    }
    match ty.bits {
        32 => single(opcode, ty),
        _ => double(opcode, ty),
    }
}

/// Modifiers of an f32 instruction, applied around its exact core.
#[derive(Clone, Copy)]
struct Mode {
    ftz: bool,
    sat: bool,
    rounding: Rounding,
}

impl Mode {
    fn input(self, bits: u64) -> f32 {
        let bits = if self.ftz { Format::F32.flush(bits) } else { bits };
        f32::from_bits(bits as u32)
    }

    fn output(self, value: f32) -> u64 {
        if self.sat {
            // NaN saturates to +0.
            return u64::from(if value > 0.0 { value.min(1.0) } else { 0.0 }.to_bits());
        }
        let bits = canonical(value);
        if self.ftz { Format::F32.flush(bits) } else { bits }
    }

    /// A value formed in f64 and rounded to odd.
    fn round(self, value: f64) -> f32 {
        if self.rounding == Rounding::Nearest {
            return value as f32;
        }
        f32::from_bits(narrow(value, Format::F32, self.rounding) as u32)
    }

    fn plain(self) -> bool {
        !self.ftz && !self.sat && self.rounding == Rounding::Nearest
    }
}

/// The bits, with the NaN the hardware makes.
#[inline]
fn canonical(value: f32) -> u64 {
    u64::from(if value.is_nan() { 0x7fff_ffff } else { value.to_bits() })
}

#[inline]
fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn wide(value: f32) -> f64 {
    f64::from(value)
}

fn single(opcode: &Opcode<'_>, ty: Ty) -> Option<Meaning> {
    let mode = Mode {
        ftz: opcode.has("ftz"),
        sat: opcode.has("sat"),
        rounding: opcode.rounding(Rounding::Nearest),
    };
    let approximate = opcode.has("approx") || opcode.has("full");
    let unary = |g: fn(f64) -> f64| {
        let function = one(move |a| mode.output(g(wide(mode.input(a))) as f32));
        Some(Meaning::new(function, 1, ty).flops(1).approximate())
    };
    let meaning = match opcode.base {
        "add" | "sub" => {
            let flip = if opcode.base == "sub" { 0x8000_0000 } else { 0 };
            let function = if mode.plain() {
                two(move |a, b| canonical(f(a) + f(b ^ flip)))
            } else {
                two(move |a, b| {
                    let (a, b) = (wide(mode.input(a)), wide(mode.input(b ^ flip)));
                    let sum = zero_sign(add_odd(a, b), a, b, mode.rounding);
                    mode.output(mode.round(sum))
                })
            };
            Meaning::new(function, 2, ty).flops(1)
        }
        "mul" => {
            let function = if mode.plain() {
                two(|a, b| canonical(f(a) * f(b)))
            } else {
                two(move |a, b| mode.output(mode.round(wide(mode.input(a)) * wide(mode.input(b)))))
            };
            Meaning::new(function, 2, ty).flops(1)
        }
        "fma" | "mad" => {
            let function = if mode.plain() {
                three(|a, b, c| canonical(fma_odd(wide(f(a)), wide(f(b)), wide(f(c))) as f32))
            } else {
                three(move |a, b, c| {
                    let (a, b, c) = (wide(mode.input(a)), wide(mode.input(b)), wide(mode.input(c)));
                    let sum = zero_sign(fma_odd(a, b, c), a * b, c, mode.rounding);
                    mode.output(mode.round(sum))
                })
            };
            Meaning::new(function, 3, ty).flops(2)
        }
        "div" => {
            let function = two(move |a, b| {
                let (a, b) = (wide(mode.input(a)), wide(mode.input(b)));
                mode.output(mode.round(div_odd(a, b)))
            });
            Meaning::new(function, 2, ty).flops(1)
        }
        "rcp" if !approximate => {
            let function = one(move |a| mode.output(mode.round(div_odd(1.0, wide(mode.input(a))))));
            Meaning::new(function, 1, ty).flops(1)
        }
        "sqrt" if !approximate => {
            let function = one(move |a| mode.output(mode.round(sqrt_odd(wide(mode.input(a))))));
            Meaning::new(function, 1, ty).flops(1)
        }
        "rcp" => return unary(|a| 1.0 / a),
        "sqrt" => return unary(f64::sqrt),
        "rsqrt" => return unary(|a| 1.0 / a.sqrt()),
        "ex2" => return unary(f64::exp2),
        "lg2" => return unary(f64::log2),
        "sin" => return unary(f64::sin),
        "cos" => return unary(f64::cos),
        "tanh" => return unary(f64::tanh),
        "min" | "max" => Meaning::new(
            extremum(Format::F32, opcode.base == "max", opcode.has("NaN"), mode.ftz),
            2,
            ty,
        )
        .flops(1),
        "abs" | "neg" => Meaning::new(sign(opcode.base, Format::F32, mode.ftz), 1, ty),
        "copysign" => Meaning::new(two(|a, b| a & 0x8000_0000 | b & 0x7fff_ffff), 2, ty),
        _ => return None,
    };
    Some(if approximate { meaning.approximate() } else { meaning })
}

/// `abs` and `neg` of any format: they touch the sign bit alone.
pub(crate) fn sign(base: &str, format: Format, ftz: bool) -> Function {
    let top = match format {
        Format::F16 | Format::BF16 => 1u64 << 15,
        Format::TF32 | Format::F32 => 1 << 31,
        Format::F64 => 1 << 63,
    };
    let low = top | (top - 1);
    let is_abs = base == "abs";
    one(move |a| {
        let a = if ftz { format.flush(a & low) } else { a & low };
        if is_abs { a & !top } else { a ^ top }
    })
}

/// `min` and `max` of any format: a NaN loses unless `.NaN` is asked for; −0 is below +0.
pub(crate) fn extremum(format: Format, max: bool, propagate: bool, ftz: bool) -> Function {
    two(move |a, b| extreme(format, max, propagate, ftz, a, b))
}

/// One lane of [`extremum`].
pub(crate) fn extreme(
    format: Format,
    max: bool,
    propagate: bool,
    ftz: bool,
    a: u64,
    b: u64,
) -> u64 {
    let low = match format {
        Format::F16 | Format::BF16 => 0xffff,
        Format::TF32 | Format::F32 => 0xffff_ffff,
        Format::F64 => u64::MAX,
    };
    let prepare = |bits: u64| if ftz { format.flush(bits & low) } else { bits & low };
    let (a, b) = (prepare(a), prepare(b));
    let (x, y) = (format.widen(a), format.widen(b));
    match (x.is_nan(), y.is_nan()) {
        (true, true) => format.nan(),
        (true, false) | (false, true) if propagate => format.nan(),
        (true, false) => b,
        (false, true) => a,
        (false, false) => {
            let a_below = x < y || x == y && x.is_sign_negative();
            if a_below == max { b } else { a }
        }
    }
}

fn double(opcode: &Opcode<'_>, ty: Ty) -> Option<Meaning> {
    let rounding = opcode.rounding(Rounding::Nearest);
    let nearest = rounding == Rounding::Nearest;
    let d = f64::from_bits;
    let approximate = opcode.has("approx");
    let meaning = match opcode.base {
        "add" | "sub" => {
            let flip = if opcode.base == "sub" { 1u64 << 63 } else { 0 };
            let function = two(move |a, b| {
                let (a, b) = (d(a), d(b ^ flip));
                if nearest || a.is_infinite() || b.is_infinite() {
                    return (a + b).to_bits();
                }
                let (sum, error) = two_sum(a, b);
                direct(zero_sign(sum, a, b, rounding), error, rounding).to_bits()
            });
            Meaning::new(function, 2, ty).flops(1)
        }
        "mul" => {
            let function = two(move |a, b| {
                let (a, b) = (d(a), d(b));
                let product = a * b;
                if nearest || a.is_infinite() || b.is_infinite() {
                    return product.to_bits();
                }
                direct(product, a.mul_add(b, -product), rounding).to_bits()
            });
            Meaning::new(function, 2, ty).flops(1)
        }
        "fma" | "mad" => {
            let function = three(move |a, b, c| {
                let (a, b, c) = (d(a), d(b), d(c));
                if nearest || a.is_infinite() || b.is_infinite() || c.is_infinite() {
                    return a.mul_add(b, c).to_bits();
                }
                let product = a * b;
                let (sum, rest) = two_sum(product, c);
                let (tail, last) = two_sum(rest, a.mul_add(b, -product));
                let (sum, error) = two_sum(sum, tail);
                let sum = zero_sign(sum, product, c, rounding);
                direct(sum, error + last, rounding).to_bits()
            });
            Meaning::new(function, 3, ty).flops(2)
        }
        "div" | "rcp" if !approximate => {
            let quotient = move |a: f64, b: f64| {
                let q = a / b;
                if nearest || !a.is_finite() || !b.is_finite() || b == 0.0 || a == 0.0 {
                    return q.to_bits();
                }
                let remainder = (-q).mul_add(b, a);
                direct(q, if b < 0.0 { -remainder } else { remainder }, rounding).to_bits()
            };
            if opcode.base == "div" {
                Meaning::new(two(move |a, b| quotient(d(a), d(b))), 2, ty).flops(1)
            } else {
                Meaning::new(one(move |a| quotient(1.0, d(a))), 1, ty).flops(1)
            }
        }
        "sqrt" => {
            let function = one(move |a| {
                let root = d(a).sqrt();
                if nearest || !root.is_finite() || root == 0.0 {
                    return root.to_bits();
                }
                direct(root, (-root).mul_add(root, d(a)), rounding).to_bits()
            });
            Meaning::new(function, 1, ty).flops(1)
        }
        "rcp" => {
            // `rcp.approx.ftz.f64` keeps the upper half of the result only.
            let function = one(move |a| (1.0 / d(a)).to_bits() & !0xffff_ffff);
            Meaning::new(function, 1, ty).flops(1).approximate()
        }
        "rsqrt" => {
            let function = one(move |a| (1.0 / d(a).sqrt()).to_bits());
            Meaning::new(function, 1, ty).flops(1).approximate()
        }
        "min" | "max" => {
            Meaning::new(extremum(Format::F64, opcode.base == "max", false, false), 2, ty).flops(1)
        }
        "abs" | "neg" => Meaning::new(sign(opcode.base, Format::F64, false), 1, ty),
        "copysign" => {
            let top = 1u64 << 63;
            Meaning::new(two(move |a, b| a & top | b & !top), 2, ty)
        }
        _ => return None,
    };
    Some(meaning)
}
