//! Statements to the interpreter's form: names, scopes, labels and calls are resolved here.

use std::collections::HashMap;

use super::ir::{
    Address, Code, Guard, Instr, LaneMask, Op, Reg, SINK, SharedArray, Space, Special, Src,
};
use super::module::LoadError;
use super::tree::{Declaration, Function, Instruction, Literal, Operand, Source, Statement};
use crate::exec::alu::{Format, Kind, Rounding, Ty, narrow};

/// Least number of bytes between shared arrays, so that running over the end of one is not the next
/// one's data; there are at least as many as the array has. A multiple of the bank row, so that bank
/// conflicts come out as if there were no gap.
const SHARED_GAP: u32 = 1024;
/// Registers of one entry, calls expanded.
const MAX_REGISTERS: u32 = 1 << 18;
/// Largest shared array, and most local memory; a device allows 512 KiB of it per thread.
const MAX_VARIABLE: u32 = 1 << 20;
/// Largest shared window, gaps included.
const MAX_WINDOW: u32 = 8 << 20;
/// Deepest nesting of device functions; deeper is recursion.
const MAX_DEPTH: usize = 64;
/// Largest expansion; calls are copied into their callers.
const MAX_INSTRUCTIONS: usize = 4_000_000;

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
enum Binding {
    Register(Reg),
    /// `%r<n>`: first register and count.
    Registers(Reg, u32),
    Shared(u32),
    Local(u32),
    Frame(u32),
    Param(u32),
}

/// Everything an operand can be resolved to besides a vector.
#[derive(Debug, Clone, Copy)]
pub(super) enum Resolved {
    Value(Src),
    Memory(Space, Src),
}

struct Fixup {
    instr: usize,
    /// Position in a branch table.
    slot: usize,
    label: String,
    scopes: Vec<u32>,
    line: u32,
}

/// Lowers one entry.
pub(super) struct Lowerer<'a> {
    pub(super) code: Code,
    source: &'a Source<'a>,
    text: &'a [&'a str],
    variables: &'a HashMap<&'a str, u32>,
    scopes: Vec<(u32, HashMap<&'a str, Binding>)>,
    next_scope: u32,
    labels: HashMap<(u32, String), u32>,
    fixups: Vec<Fixup>,
    tables: HashMap<String, Vec<&'a str>>,
    calls: Vec<&'a str>,
    /// Instructions that jump to the end of the function being expanded.
    returns: Vec<usize>,
    carry: Reg,
    location: u32,
    pub(super) line: u32,
}

pub(super) type Lowered<T> = Result<T, LoadError>;

/// The code of an entry whose parameters lie at `offsets`.
pub(super) fn lower(
    source: &Source<'_>,
    text: &[&str],
    variables: &HashMap<&str, u32>,
    entry: &Function<'_>,
    offsets: &[u32],
) -> Lowered<Code> {
    let mut lowerer = Lowerer {
        code: Code { registers: 2, ..Code::default() },
        source,
        text,
        variables,
        scopes: Vec::new(),
        next_scope: 0,
        labels: HashMap::new(),
        fixups: Vec::new(),
        tables: HashMap::new(),
        calls: vec![entry.name],
        returns: Vec::new(),
        carry: 1,
        location: 0,
        line: entry.line,
    };
    let params = entry.params.iter().zip(offsets);
    let bindings = params.map(|(param, offset)| (param.name, Binding::Param(*offset))).collect();
    lowerer.open(bindings);
    lowerer.body(entry)?;
    lowerer.scopes.pop();
    lowerer.push(None, Op::Exit);
    if lowerer.code.shared_window > MAX_WINDOW {
        lowerer.line = entry.line;
        return lowerer.error("too much shared memory");
    }
    lowerer.resolve_labels()?;
    Ok(lowerer.code)
}

impl<'a> Lowerer<'a> {
    pub(super) fn error<T>(&self, message: impl Into<String>) -> Lowered<T> {
        let text = self.text.get(self.line as usize - 1).unwrap_or(&"").trim().to_owned();
        Err(LoadError { line: self.line, text, message: message.into() })
    }

    fn open(&mut self, bindings: HashMap<&'a str, Binding>) {
        self.scopes.push((self.next_scope, bindings));
        self.next_scope += 1;
    }

    fn bind(&mut self, name: &'a str, binding: Binding) {
        if let Some((_, names)) = self.scopes.last_mut() {
            names.insert(name, binding);
        }
    }

    pub(super) fn push(&mut self, guard: Option<Guard>, op: Op) {
        let (line, location) = (self.line, self.location);
        self.code.instrs.push(Instr { guard, op, line, location });
    }

    pub(super) fn carry(&self) -> Reg {
        self.carry
    }

    fn body(&mut self, function: &'a Function<'a>) -> Lowered<()> {
        let Some(body) = &function.body else {
            return self.error(format!("function `{}` has no body in this module", function.name));
        };
        for statement in body {
            match statement {
                Statement::Open => self.open(HashMap::new()),
                Statement::Close => {
                    self.scopes.pop();
                }
                Statement::Label(name) => {
                    let scope = self.scopes.last().map_or(0, |scope| scope.0);
                    let at = self.code.instrs.len() as u32;
                    self.labels.insert((scope, (*name).to_owned()), at);
                }
                Statement::Registers(line, names) => {
                    self.line = *line;
                    for (name, count) in names {
                        let first = self.code.registers;
                        let binding = match count {
                            Some(count) => Binding::Registers(first, *count),
                            None => Binding::Register(first),
                        };
                        let total = first.saturating_add(count.unwrap_or(1));
                        if total > MAX_REGISTERS {
                            return self.error("too many registers");
                        }
                        self.code.registers = total;
                        self.bind(name, binding);
                    }
                }
                Statement::Variable(declaration) => self.variable(declaration)?,
                Statement::Location(file, line) => {
                    self.code.locations.push((*file, *line));
                    self.location = self.code.locations.len() as u32;
                }
                Statement::BranchTargets(name, targets) => {
                    self.tables.insert((*name).to_owned(), targets.clone());
                }
                Statement::Instruction(instruction) => {
                    self.line = instruction.line;
                    if self.code.instrs.len() > MAX_INSTRUCTIONS {
                        return self.error("the expanded kernel is too large");
                    }
                    self.instruction(instruction)?;
                }
            }
        }
        Ok(())
    }

    fn variable(&mut self, declaration: &Declaration<'a>) -> Lowered<()> {
        self.line = declaration.line;
        let bytes = declaration.count.unwrap_or(0).saturating_mul(u64::from(declaration.element));
        let Some(bytes) = u32::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_VARIABLE) else {
            return self.error("the variable is too large");
        };
        let binding = match declaration.space {
            ".shared" => Binding::Shared(self.shared_array(declaration, bytes)),
            ".local" | ".param" => {
                let align = declaration.align.max(1);
                let offset = self.code.local_bytes.next_multiple_of(align);
                let end = offset + bytes;
                if end > MAX_VARIABLE {
                    return self.error("too much local memory");
                }
                self.code.local_bytes = end;
                if declaration.space == ".local" {
                    Binding::Local(offset)
                } else {
                    Binding::Frame(offset)
                }
            }
            other => return self.error(format!("`{other}` variables in a body are not modelled")),
        };
        self.bind(declaration.name, binding);
        Ok(())
    }

    /// Places an array in the shared window once and returns its offset.
    fn shared_array(&mut self, declaration: &Declaration<'_>, bytes: u32) -> u32 {
        let dynamic = declaration.count.is_none();
        let known =
            |array: &&SharedArray| array.name == declaration.name || dynamic && array.dynamic;
        if let Some(array) = self.code.shared.iter().find(known) {
            return array.offset;
        }
        // Dynamic memory comes last on a device; here its place is fixed when the launch is.
        let align = declaration.align.max(16);
        let offset = self.code.shared_window.next_multiple_of(align);
        if offset > MAX_WINDOW {
            // Refused when the entry is complete.
            return offset;
        }
        let name = declaration.name.to_owned();
        self.code.shared.push(SharedArray { name, offset, bytes, dynamic });
        let gap = if dynamic { DYNAMIC_SPAN } else { bytes.saturating_add(bytes.max(SHARED_GAP)) };
        self.code.shared_window = offset.saturating_add(gap) / SHARED_GAP * SHARED_GAP + SHARED_GAP;
        offset
    }

    fn resolve_labels(&mut self) -> Lowered<()> {
        for fixup in std::mem::take(&mut self.fixups) {
            let find = |scope: &u32| self.labels.get(&(*scope, fixup.label.clone())).copied();
            let Some(at) = fixup.scopes.iter().rev().find_map(find) else {
                self.line = fixup.line;
                return self.error(format!("label `{}` is not defined", fixup.label));
            };
            match &mut self.code.instrs[fixup.instr].op {
                Op::Branch { target } => *target = at,
                Op::BranchIndexed { targets, .. } => targets[fixup.slot] = at,
                _ => {}
            }
        }
        Ok(())
    }

    fn fixup(&mut self, slot: usize, label: &str) {
        self.fixups.push(Fixup {
            instr: self.code.instrs.len(),
            slot,
            label: label.to_owned(),
            scopes: self.scopes.iter().map(|scope| scope.0).collect(),
            line: self.line,
        });
    }

    pub(super) fn branch(&mut self, guard: Option<Guard>, label: &str) {
        self.fixup(0, label);
        self.push(guard, Op::Branch { target: 0 });
    }

    pub(super) fn branch_indexed(
        &mut self,
        guard: Option<Guard>,
        index: Src,
        table: &str,
    ) -> Lowered<()> {
        let Some(labels) = self.tables.get(table).cloned() else {
            return self.error(format!("branch table `{table}` is not defined"));
        };
        for (slot, label) in labels.iter().enumerate() {
            self.fixup(slot, label);
        }
        self.push(guard, Op::BranchIndexed { index, targets: vec![0; labels.len()] });
        Ok(())
    }

    /// `ret`: the end of a kernel, or a jump behind the expanded function.
    pub(super) fn ret(&mut self, guard: Option<Guard>) {
        if self.calls.len() == 1 {
            self.push(guard, Op::Exit);
        } else {
            self.returns.push(self.code.instrs.len());
            self.push(guard, Op::Branch { target: 0 });
        }
    }

    /// Expands a call in place.
    pub(super) fn call(&mut self, instruction: &Instruction<'a>) -> Lowered<()> {
        let (results, name, arguments): (&[Operand<'a>], _, &[Operand<'a>]) =
            match instruction.operands.as_slice() {
                [Operand::List(results), Operand::Name(name), Operand::List(arguments)] => {
                    (results, *name, arguments)
                }
                [Operand::List(results), Operand::Name(name)] => (results, *name, &[]),
                [Operand::Name(name), Operand::List(arguments)] => (&[], *name, arguments),
                [Operand::Name(name)] => (&[], *name, &[]),
                _ => return self.error("indirect calls are not modelled"),
            };
        if name == "__assertfail" {
            self.push(None, Op::Trap("an `assert` of the kernel failed"));
            return Ok(());
        }
        let source = self.source;
        let callee = source.functions.iter().find(|f| f.name == name && f.body.is_some());
        let Some(callee) = callee else {
            return self.error(format!("call of `{name}` is not modelled: it has no body here"));
        };
        if self.calls.contains(&name) || self.calls.len() >= MAX_DEPTH {
            return self.error(format!("recursion through `{name}` is not modelled"));
        }
        if callee.params.len() != arguments.len() || callee.results.len() != results.len() {
            return self.error(format!("call of `{name}` with the wrong number of arguments"));
        }
        let mut bindings = HashMap::new();
        let formal = callee.results.iter().chain(&callee.params);
        for (declaration, actual) in formal.zip(results.iter().chain(arguments)) {
            let Operand::Name(actual) = actual else {
                return self.error("an argument that is not a `.param` variable is not modelled");
            };
            match self.lookup(actual) {
                Some(binding @ Binding::Frame(_)) => bindings.insert(declaration.name, binding),
                _ => return self.error(format!("argument `{actual}` is not a `.param` variable")),
            };
        }
        let scopes = std::mem::take(&mut self.scopes);
        let returns = std::mem::take(&mut self.returns);
        let (line, location) = (self.line, self.location);
        self.open(bindings);
        self.calls.push(name);
        self.body(callee)?;
        self.calls.pop();
        self.scopes = scopes;
        let end = self.code.instrs.len() as u32;
        for at in std::mem::replace(&mut self.returns, returns) {
            self.code.instrs[at].op = Op::Branch { target: end };
        }
        (self.line, self.location) = (line, location);
        // A branch target behind the last instruction needs something to land on.
        self.push(None, Op::Nothing);
        Ok(())
    }

    fn lookup(&mut self, name: &str) -> Option<Binding> {
        for (_, names) in self.scopes.iter().rev() {
            if let Some(binding) = names.get(name)
                && !matches!(binding, Binding::Registers(..))
            {
                return Some(*binding);
            }
            let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
            if digits < name.len()
                && let Some(Binding::Registers(first, count)) = names.get(&name[..digits])
                && let Ok(index) = name[digits..].parse::<u32>()
                && index < *count
            {
                return Some(Binding::Register(first + index));
            }
        }
        let source = self.source;
        let shared = source.variables.iter().find(|v| v.space == ".shared" && v.name == name)?;
        let bytes = shared.count.unwrap_or(0).saturating_mul(u64::from(shared.element));
        let bytes = u32::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_VARIABLE)?;
        Some(Binding::Shared(self.shared_array(shared, bytes)))
    }

    /// What a name means as a value or as the base of an address.
    pub(super) fn name(&mut self, name: &str) -> Lowered<Resolved> {
        if let Some(binding) = self.lookup(name) {
            return Ok(match binding {
                Binding::Register(reg) | Binding::Registers(reg, _) => {
                    Resolved::Value(Src::Reg(reg))
                }
                Binding::Shared(at) => Resolved::Memory(Space::Shared, Src::Imm(at.into())),
                Binding::Local(at) => Resolved::Memory(Space::Local, Src::Imm(at.into())),
                Binding::Frame(at) => Resolved::Memory(Space::Frame, Src::Imm(at.into())),
                Binding::Param(at) => Resolved::Memory(Space::Param, Src::Imm(at.into())),
            });
        }
        if let Some(index) = self.variables.get(name) {
            return Ok(Resolved::Memory(Space::Global, Src::Variable(*index, 0)));
        }
        if let Some(special) = special(name) {
            return Ok(Resolved::Value(Src::Special(special)));
        }
        match name {
            "WARP_SZ" => Ok(Resolved::Value(Src::Imm(32))),
            _ => self.error(format!("`{name}` is not defined or not modelled")),
        }
    }

    /// A source operand whose literals are read as `ty`.
    pub(super) fn source(&mut self, operand: &Operand<'_>, ty: Ty) -> Lowered<Src> {
        match operand {
            Operand::Name(name) => Ok(match self.name(name)? {
                Resolved::Value(src) | Resolved::Memory(_, src) => src,
            }),
            Operand::Offset(name, offset) => match self.name(name)? {
                Resolved::Memory(_, Src::Imm(base)) => {
                    Ok(Src::Imm(base.wrapping_add_signed(*offset)))
                }
                Resolved::Memory(_, Src::Variable(index, _)) => Ok(Src::Variable(index, *offset)),
                _ => self.error("an offset on something that is not a variable"),
            },
            Operand::Literal(literal) => Ok(Src::Imm(literal_bits(*literal, ty))),
            _ => self.error("this operand is not understood"),
        }
    }

    /// A destination register; `_` is the sink.
    pub(super) fn destination(&mut self, operand: &Operand<'_>) -> Lowered<Reg> {
        let Operand::Name(name) = operand else {
            return self.error("the destination is not a register");
        };
        if *name == "_" {
            return Ok(SINK);
        }
        match self.name(name)? {
            Resolved::Value(Src::Reg(reg)) => Ok(reg),
            _ => self.error(format!("`{name}` is not a register")),
        }
    }

    /// An address, and the space its base variable lies in.
    pub(super) fn address(&mut self, operand: &Operand<'_>) -> Lowered<(Address, Option<Space>)> {
        let Operand::Address { base, offset } = operand else {
            return self.error("expected an address in brackets");
        };
        let Some(base) = base else {
            return Ok((Address { base: Src::Imm(0), offset: *offset }, None));
        };
        Ok(match self.name(base)? {
            Resolved::Value(base) => (Address { base, offset: *offset }, None),
            Resolved::Memory(space, base) => (Address { base, offset: *offset }, Some(space)),
        })
    }

    pub(super) fn guard(&mut self, instruction: &Instruction<'_>) -> Lowered<Option<Guard>> {
        let Some((name, negated)) = instruction.guard else { return Ok(None) };
        let reg = self.destination(&Operand::Name(name))?;
        Ok(Some(Guard { reg, negated }))
    }
}

/// Address span kept for dynamic shared memory; its true size comes with the launch.
pub(super) const DYNAMIC_SPAN: u32 = 256 << 10;

fn literal_bits(literal: Literal, ty: Ty) -> u64 {
    let double = matches!(ty.kind, Kind::Float(Format::F64));
    match (literal, ty.kind) {
        (Literal::Integer(value), _) => value as u64,
        (Literal::Single(bits), _) if double => f64::from(f32::from_bits(bits)).to_bits(),
        (Literal::Single(bits), _) => u64::from(bits),
        (Literal::Double(bits), Kind::Float(format)) => {
            narrow(f64::from_bits(bits), format, Rounding::Nearest)
        }
        (Literal::Double(bits), _) => bits,
    }
}

fn special(name: &str) -> Option<Special> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, "x")) => (base, 0),
        Some((base, "y")) => (base, 1),
        Some((base, "z")) => (base, 2),
        Some((_, _)) => return None,
        None => (name, 0),
    };
    Some(match base {
        "%tid" => Special::Tid(axis),
        "%ntid" => Special::Ntid(axis),
        "%ctaid" | "%clusterid" => Special::Ctaid(axis),
        "%nctaid" | "%nclusterid" => Special::Nctaid(axis),
        "%cluster_ctaid" | "%cluster_ctarank" | "%is_explicit_cluster" => Special::Constant(0),
        "%cluster_nctaid" | "%cluster_nctarank" => Special::Constant(1),
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::WarpCount,
        "%smid" => Special::SmId,
        "%nsmid" => Special::SmCount,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::LaneMask(LaneMask::Equal),
        "%lanemask_lt" => Special::LaneMask(LaneMask::Less),
        "%lanemask_le" => Special::LaneMask(LaneMask::LessEqual),
        "%lanemask_gt" => Special::LaneMask(LaneMask::Greater),
        "%lanemask_ge" => Special::LaneMask(LaneMask::GreaterEqual),
        "%clock" | "%clock64" | "%globaltimer" | "%globaltimer_lo" => Special::Clock,
        "%clock_hi" | "%globaltimer_hi" => Special::Constant(0),
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        _ => return None,
    })
}
