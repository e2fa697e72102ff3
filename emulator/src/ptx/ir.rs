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

/// How an access orders with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Plain,
    /// `.relaxed`, `.acquire`, `.release` and atomics; none of them orders anything here.
    Atomic,
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
            Op::Load { space, access: Access::Atomic, .. }
            | Op::Store { space, access: Access::Atomic, .. } => far(*space),
            _ => false,
        })
    }

    /// For each instruction, whether a thread that goes on from `pc` can come to it without jumping
    /// back.
    pub(crate) fn ahead_of(&self, pc: u32) -> Vec<bool> {
        let mut ahead = vec![false; self.instrs.len()];
        let mark = |ahead: &mut Vec<bool>, from: usize, to: usize| {
            if to > from
                && let Some(slot) = ahead.get_mut(to)
            {
                *slot = true;
            }
        };
        for (at, instr) in self.instrs.iter().enumerate().skip(pc as usize) {
            if at != pc as usize && !ahead[at] {
                continue;
            }
            let mut falls_through = instr.guard.is_some();
            match &instr.op {
                Op::Branch { target } => mark(&mut ahead, at, *target as usize),
                Op::BranchIndexed { targets, .. } => {
                    targets.iter().for_each(|target| mark(&mut ahead, at, *target as usize));
                }
                Op::Exit | Op::Trap(_) => {}
                _ => falls_through = true,
            }
            if falls_through {
                mark(&mut ahead, at, at + 1);
            }
        }
        ahead
    }
}
