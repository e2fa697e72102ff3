//! The compact form that the interpreter runs: registers numbered, branch targets resolved, device
//! functions expanded in place.

use crate::exec::alu::{Function, Ty};

/// A register number within an entry.
pub(crate) type Reg = u32;

/// The register that no instruction reads: where unwanted results go.
pub(crate) const SINK: Reg = 0;

/// A value that depends on the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    WarpCount,
    SmId,
    SmCount,
    GridId,
    LaneMask(LaneMask),
    Clock,
    DynamicShared,
    TotalShared,
    /// Cluster registers of a launch without clusters.
    Constant(u32),
}

/// Which lanes a `%lanemask_*` names, relative to the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneMask {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// An operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Src {
    Reg(Reg),
    Imm(u64),
    /// Address of a module variable plus an offset.
    Variable(u32, i64),
    Special(Special),
}

/// `@p` or `@!p`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard {
    pub(crate) reg: Reg,
    pub(crate) negated: bool,
}

/// State spaces of memory instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    /// Kernel parameters.
    Param,
    /// Parameters of expanded device functions; in local memory, and allowed to hold padding.
    Frame,
}

/// For whom a fence or an atomic is one: threads of the block, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Block,
    Device,
}

/// What an atomic access or a fence orders, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) scope: Scope,
    pub(crate) acquires: bool,
    pub(crate) releases: bool,
}

/// How an access orders with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// `.weak` and `.volatile`.
    Plain,
    /// `.relaxed`, `.acquire`, `.release` and atomics.
    Atomic(Order),
}

impl Access {
    /// The scope of an atomic access.
    pub(crate) fn scope(self) -> Option<Scope> {
        match self {
            Self::Plain => None,
            Self::Atomic(order) => Some(order.scope),
        }
    }
}

/// `[base + offset]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) base: Src,
    pub(crate) offset: i64,
}

/// The read-modify-write of an atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Update {
    Add,
    And,
    Or,
    Xor,
    Min,
    Max,
    Inc,
    Dec,
    Exchange,
    CompareAndSwap,
}

/// What a barrier does beyond waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    Count,
    All,
    Any,
}

/// Source lane of a shuffle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// A warp-wide reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// An operation that all threads named in a mask execute together.
#[derive(Debug)]
pub(crate) enum Collective {
    Sync,
    Shuffle { mode: Shuffle, dst: Reg, in_range: Reg, value: Src, lane: Src, clamp: Src },
    Vote { vote: Vote, dst: Reg, predicate: Src, negated: bool },
    Match { all: bool, dst: Reg, uniform: Reg, value: Src, ty: Ty },
    Reduce { reduction: Reduction, dst: Reg, value: Src, ty: Ty },
    Elect { dst: Reg, elected: Reg },
}

/// One operation.
#[derive(Debug)]
pub(crate) enum Op {
    Alu {
        function: Function,
        dst: [Reg; 4],
        results: u8,
        src: [Src; 4],
        flops: u8,
        /// 1 + index into [`Code::approximate`], or 0.
        approximate: u16,
        /// Whether it only moves bits, so that undefined ones can be followed singly.
        bitwise: bool,
    },
    Load {
        space: Space,
        access: Access,
        bytes: u8,
        signed: bool,
        dst: Vec<Reg>,
        address: Address,
    },
    Store {
        space: Space,
        access: Access,
        bytes: u8,
        src: Vec<Src>,
        address: Address,
    },
    Atomic {
        space: Space,
        order: Order,
        update: Update,
        ty: Ty,
        dst: Option<Reg>,
        address: Address,
        operand: Src,
        swap: Src,
    },
    Branch {
        target: u32,
    },
    BranchIndexed {
        index: Src,
        targets: Vec<u32>,
    },
    Barrier {
        kind: BarrierKind,
        id: Src,
        threads: Option<Src>,
        aligned: bool,
        dst: Reg,
        predicate: Src,
        negated: bool,
    },
    Collective {
        collective: Collective,
        mask: Src,
    },
    ActiveMask {
        dst: Reg,
    },
    Fence(Order),
    Nothing,
    Exit,
    Trap(&'static str),
}

/// An operation with its guard and where it came from.
#[derive(Debug)]
pub(crate) struct Instr {
    pub(crate) guard: Option<Guard>,
    pub(crate) op: Op,
    pub(crate) line: u32,
    /// 1 + index into [`Code::locations`], or 0.
    pub(crate) location: u32,
}

/// A shared array and where it lies in the block's shared window.
#[derive(Debug, Clone)]
pub(crate) struct SharedArray {
    pub(crate) name: String,
    pub(crate) offset: u32,
    pub(crate) bytes: u32,
    /// Sized by the launch.
    pub(crate) dynamic: bool,
}

/// An entry's instructions and the memory they need.
#[derive(Debug, Default)]
pub(crate) struct Code {
    pub(crate) instrs: Vec<Instr>,
    pub(crate) registers: u32,
    pub(crate) local_bytes: u32,
    pub(crate) shared: Vec<SharedArray>,
    /// Bytes of the window, gaps included, without dynamic memory.
    pub(crate) shared_window: u32,
    /// File index and line of `.loc` directives.
    pub(crate) locations: Vec<(u32, u32)>,
    /// Opcodes whose results are approximate.
    pub(crate) approximate: Vec<String>,
}

impl Code {
    /// Whether a block may learn what others of its launch have done so far: through atomics on
    /// memory that may be global.
    pub(crate) fn communicates(&self) -> bool {
        let far = |space: Space| matches!(space, Space::Global | Space::Generic);
        self.instrs.iter().any(|instr| match &instr.op {
            Op::Atomic { space, .. } => far(*space),
            Op::Load { space, access: Access::Atomic(_), .. }
            | Op::Store { space, access: Access::Atomic(_), .. } => far(*space),
            _ => false,
        })
    }

    /// Whether anything but a barrier can order memory.
    pub(crate) fn has_fences(&self) -> bool {
        self.instrs.iter().any(|instr| match &instr.op {
            Op::Fence(_) => true,
            Op::Atomic { order, .. }
            | Op::Load { access: Access::Atomic(order), .. }
            | Op::Store { access: Access::Atomic(order), .. } => order.acquires || order.releases,
            _ => false,
        })
    }

    /// Where a thread can go from an instruction.
    fn successors(&self, at: usize) -> Vec<usize> {
        let Some(instr) = self.instrs.get(at) else { return Vec::new() };
        let (mut to, ends) = match &instr.op {
            Op::Branch { target } => (vec![*target as usize], true),
            Op::BranchIndexed { targets, .. } => {
                (targets.iter().map(|target| *target as usize).collect(), true)
            }
            Op::Exit | Op::Trap(_) => (Vec::new(), true),
            _ => (Vec::new(), false),
        };
        if !ends || instr.guard.is_some() {
            to.push(at + 1);
        }
        to
    }

    /// What lies behind an instruction, and from where threads come back to it.
    pub(crate) fn surroundings(&self, pc: u32) -> Surroundings {
        let (pc, count) = (pc as usize, self.instrs.len());
        let mut behind = vec![false; count];
        for at in pc..count {
            if at == pc || behind[at] {
                for to in self.successors(at) {
                    if let Some(slot) = behind.get_mut(to)
                        && to > at
                    {
                        *slot = true;
                    }
                }
            }
        }
        let mut returns = vec![false; count];
        let mut changed = true;
        while changed {
            changed = false;
            for at in (0..count).rev() {
                let comes = |to: &usize| *to == pc || returns.get(*to).is_some_and(|yes| *yes);
                if !returns[at] && self.successors(at).iter().any(comes) {
                    returns[at] = true;
                    changed = true;
                }
            }
        }
        Surroundings { pc: pc as u32, behind, returns }
    }
}

/// The instructions around one that threads wait at.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pc: u32,
    /// A thread that goes on from there can come here without jumping back.
    behind: Vec<bool>,
    /// A thread can come there from here.
    returns: Vec<bool>,
}

impl Surroundings {
    /// Whether a thread that exited had left the instruction behind: its last deed was at `deed`, and
    /// the last instruction of this kind that it executed since it last jumped back there was `met`.
    /// One that executed it, or one behind it, and could have come again did not: it exited ahead of
    /// the next time.
    pub(crate) fn left_behind(&self, deed: u32, met: u32) -> bool {
        let is = |list: &[bool], at: u32| list.get(at as usize).is_some_and(|yes| *yes);
        let took_part = met == self.pc || is(&self.behind, met);
        is(&self.behind, deed) && !(took_part && is(&self.returns, deed))
    }
}
