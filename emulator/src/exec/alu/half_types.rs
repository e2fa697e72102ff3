//! f16 and bf16 arithmetic, scalar and in pairs: formed exactly in f64, rounded once.

use super::float::{extreme, sign};
use super::rounding::{Format, Rounding, add_odd, fma_odd, narrow};
use super::{Function, Kind, Meaning, Opcode, Ty, one, three, two};

#[derive(Clone, Copy)]
struct Mode {
    format: Format,
    ftz: bool,
    sat: bool,
    relu: bool,
}

impl Mode {
    fn input(self, bits: u64) -> f64 {
        let bits = bits & 0xffff;
        self.format.widen(if self.ftz { self.format.flush(bits) } else { bits })
    }

    fn output(self, value: f64) -> u64 {
        let value = match (self.sat, self.relu) {
            (true, _) if value > 0.0 => value.min(1.0),
            (true, _) => 0.0,
            (_, true) if value < 0.0 => 0.0,
            _ => value,
        };
        let bits = narrow(value, self.format, Rounding::Nearest);
        if self.ftz { self.format.flush(bits) } else { bits }
    }
}

fn lift_one(packed: bool, f: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Function {
    if packed {
        one(move |a| f(a & 0xffff) | f(a >> 16 & 0xffff) << 16)
    } else {
        one(move |a| f(a & 0xffff))
    }
}

fn lift_two(packed: bool, f: impl Fn(u64, u64) -> u64 + Send + Sync + 'static) -> Function {
    if packed {
        two(move |a, b| f(a & 0xffff, b & 0xffff) | f(a >> 16 & 0xffff, b >> 16 & 0xffff) << 16)
    } else {
        two(move |a, b| f(a & 0xffff, b & 0xffff))
    }
}

/// The f16 and bf16 forms of an arithmetic opcode.
pub(crate) fn arithmetic(opcode: &Opcode<'_>, ty: Ty) -> Option<Meaning> {
    let Kind::Float(format) = ty.kind else { return None };
    if !opcode.only(&["rn", "ftz", "sat", "relu", "NaN", "approx"]) {
        return None;
    }
    let mode =
        Mode { format, ftz: opcode.has("ftz"), sat: opcode.has("sat"), relu: opcode.has("relu") };
    let flops = if ty.packed { 2 } else { 1 };
    let unary = |g: fn(f64) -> f64| {
        let function = lift_one(ty.packed, move |a| mode.output(g(mode.input(a))));
        Some(Meaning::new(function, 1, ty).flops(flops).approximate())
    };
    let meaning = match opcode.base {
        "add" | "sub" => {
            let flip = if opcode.base == "sub" { 0x8000 } else { 0 };
            let function = lift_two(ty.packed, move |a, b| {
                mode.output(add_odd(mode.input(a), mode.input(b ^ flip)))
            });
            Meaning::new(function, 2, ty).flops(flops)
        }
        "mul" => {
            let function =
                lift_two(ty.packed, move |a, b| mode.output(mode.input(a) * mode.input(b)));
            Meaning::new(function, 2, ty).flops(flops)
        }
        "fma" => {
            let f = move |a: u64, b: u64, c: u64| {
                mode.output(fma_odd(mode.input(a), mode.input(b), mode.input(c)))
            };
            let function = if ty.packed {
                three(move |a, b, c| f(a, b, c) | f(a >> 16, b >> 16, c >> 16) << 16)
            } else {
                three(f)
            };
            Meaning::new(function, 3, ty).flops(2 * flops)
        }
        "min" | "max" => {
            let (max, propagate) = (opcode.base == "max", opcode.has("NaN"));
            let function =
                lift_two(ty.packed, move |a, b| extreme(format, max, propagate, mode.ftz, a, b));
            Meaning::new(function, 2, ty).flops(flops)
        }
        "abs" | "neg" if ty.packed => {
            let is_abs = opcode.base == "abs";
            let function = lift_one(true, move |a| {
                let a = if mode.ftz { format.flush(a) } else { a };
                if is_abs { a & 0x7fff } else { a ^ 0x8000 }
            });
            Meaning::new(function, 1, ty)
        }
        "abs" | "neg" => Meaning::new(sign(opcode.base, format, mode.ftz), 1, ty),
        "ex2" => return unary(f64::exp2),
        "tanh" => return unary(f64::tanh),
        _ => return None,
    };
    Some(meaning)
}
