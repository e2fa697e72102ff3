//! What the register-to-register instructions compute: opcode text to a function on 32 lanes.
//!
//! Registers hold their value in the low bits of a `u64`; every function takes the bits its type
//! names and ignores the rest, so a narrow value may sit in a wide register with any extension.

mod carry;
mod compare;
mod convert;
mod float;
mod half_types;
mod integer;
mod rounding;
mod types;

use std::fmt;

pub(crate) use rounding::{Format, Rounding, add_odd, narrow};
pub(crate) use types::{Kind, Ty};

/// One value per lane of a warp.
pub(crate) type Lanes = [u64; 32];

type One = dyn Fn(&Lanes, &mut Lanes) + Send + Sync;
type Two = dyn Fn(&Lanes, &Lanes, &mut Lanes) + Send + Sync;
type Three = dyn Fn(&Lanes, &Lanes, &Lanes, &mut Lanes) + Send + Sync;
type Many = dyn Fn(&[Lanes; 4], &mut [Lanes; 4]) + Send + Sync;

/// A lane-wise function by its number of operands.
pub(crate) enum Function {
    One(Box<One>),
    Two(Box<Two>),
    Three(Box<Three>),
    /// The first operand where the third is true, else the second.
    Select,
    /// Any number of operands and results up to four.
    Many(Box<Many>),
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One(_) => "One",
            Self::Two(_) => "Two",
            Self::Three(_) => "Three",
            Self::Select => "Select",
            Self::Many(_) => "Many",
        })
    }
}

/// The lanes of a one-operand function.
pub(crate) fn one(f: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Function {
    Function::One(Box::new(move |a, d| {
        for i in 0..32 {
            d[i] = f(a[i]);
        }
    }))
}

/// The lanes of a two-operand function.
pub(crate) fn two(f: impl Fn(u64, u64) -> u64 + Send + Sync + 'static) -> Function {
    Function::Two(Box::new(move |a, b, d| {
        for i in 0..32 {
            d[i] = f(a[i], b[i]);
        }
    }))
}

/// The lanes of a three-operand function.
pub(crate) fn three(f: impl Fn(u64, u64, u64) -> u64 + Send + Sync + 'static) -> Function {
    Function::Three(Box::new(move |a, b, c, d| {
        for i in 0..32 {
            d[i] = f(a[i], b[i], c[i]);
        }
    }))
}

/// The lanes of a function with several results.
pub(crate) fn many(f: impl Fn([u64; 4]) -> [u64; 4] + Send + Sync + 'static) -> Function {
    Function::Many(Box::new(move |s, d| {
        for i in 0..32 {
            let out = f([s[0][i], s[1][i], s[2][i], s[3][i]]);
            for (k, value) in out.into_iter().enumerate() {
                d[k][i] = value;
            }
        }
    }))
}

/// An instruction's function and what must be known to encode and account for it.
#[derive(Debug)]
pub(crate) struct Meaning {
    pub(crate) function: Function,
    /// Operands, without the destinations.
    pub(crate) sources: usize,
    /// Floating-point operations per lane.
    pub(crate) flops: u8,
    /// Whether the result may differ from the hardware's in the last bits.
    pub(crate) approximate: bool,
    /// Type in which literals are read.
    pub(crate) literal: Ty,
    /// Whether the carry flag is read as an additional operand, and written as one more result.
    pub(crate) carry_in: bool,
    pub(crate) carry_out: bool,
    /// Whether it only moves bits.
    pub(crate) bitwise: bool,
}

impl Meaning {
    fn new(function: Function, sources: usize, literal: Ty) -> Self {
        Self {
            function,
            sources,
            flops: 0,
            approximate: false,
            literal,
            carry_in: false,
            carry_out: false,
            bitwise: false,
        }
    }

    fn flops(mut self, flops: u8) -> Self {
        self.flops = flops;
        self
    }

    fn approximate(mut self) -> Self {
        self.approximate = true;
        self
    }
}

/// An opcode's parts.
#[derive(Debug, Clone)]
pub(crate) struct Opcode<'a> {
    pub(crate) base: &'a str,
    pub(crate) modifiers: Vec<&'a str>,
}

impl<'a> Opcode<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let mut parts = text.split('.');
        Self { base: parts.next().unwrap_or(""), modifiers: parts.collect() }
    }

    pub(crate) fn has(&self, modifier: &str) -> bool {
        self.modifiers.contains(&modifier)
    }

    /// The `n`-th type among the modifiers.
    pub(crate) fn ty(&self, n: usize) -> Option<Ty> {
        self.modifiers.iter().filter_map(|modifier| Ty::parse(modifier)).nth(n)
    }

    /// Whether all modifiers are types or in `known`.
    fn only(&self, known: &[&str]) -> bool {
        self.modifiers.iter().all(|m| Ty::parse(m).is_some() || known.contains(m))
    }

    /// The rounding modifier, or `default`.
    fn rounding(&self, default: Rounding) -> Rounding {
        let named = self.modifiers.iter().find_map(|modifier| match *modifier {
            "rn" => Some(Rounding::Nearest),
            "rz" => Some(Rounding::Zero),
            "rm" => Some(Rounding::Down),
            "rp" => Some(Rounding::Up),
            "rna" => Some(Rounding::NearestAway),
            _ => None,
        });
        named.unwrap_or(default)
    }
}

/// What the opcode computes; `None` when no register-to-register instruction is known by it.
/// `pair` says that it has two destinations.
pub(crate) fn meaning(opcode: &Opcode<'_>, pair: bool) -> Option<Meaning> {
    let mut meaning = lookup(opcode, pair)?;
    let whole = |n| opcode.ty(n).is_some_and(|ty| !ty.is_float());
    meaning.bitwise = match opcode.base {
        "mov" | "and" | "or" | "xor" | "not" | "shl" | "shr" | "shf" | "prmt" | "bfe" | "bfi"
        | "lop3" => whole(0) || opcode.base == "mov",
        "cvt" => whole(0) && whole(1) && !opcode.has("sat"),
        _ => false,
    };
    Some(meaning)
}

fn lookup(opcode: &Opcode<'_>, pair: bool) -> Option<Meaning> {
    let float = opcode.ty(0).is_some_and(|ty| matches!(ty.kind, Kind::Float(_)));
    match opcode.base {
        "cvt" => convert::cvt(opcode),
        "setp" => compare::setp(opcode, pair),
        "set" => compare::set(opcode),
        "selp" | "slct" => compare::select(opcode),
        "testp" => compare::testp(opcode),
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "min" | "max" | "abs" | "neg" | "sqrt"
        | "rsqrt" | "rcp" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "copysign"
            if float =>
        {
            let ty = opcode.ty(0)?;
            match ty.kind {
                Kind::Float(Format::F16 | Format::BF16) => half_types::arithmetic(opcode, ty),
                _ => float::arithmetic(opcode, ty),
            }
        }
        "add" | "sub" | "mad" if opcode.has("cc") => carry::arithmetic(opcode),
        "addc" | "subc" | "madc" => carry::arithmetic(opcode),
        _ => integer::arithmetic(opcode),
    }
}
