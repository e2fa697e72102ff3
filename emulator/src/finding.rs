//! What a check reports: one [`Finding`] says what went wrong, where, and in whose memory.

use std::fmt;

use serde::Serialize;

/// `Result` of a checked operation; findings are boxed because they are large and rare.
pub type Checked<T> = Result<T, Box<Finding>>;

/// The class of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum FindingKind {
    /// An access outside every live allocation, shared array or local frame.
    OutOfBounds,
    /// An address that is not a multiple of the access width.
    Misaligned,
    /// An access to memory that was freed.
    UseAfterFree,
    /// A second free of the same address.
    DoubleFree,
    /// A free of an address that no allocation starts at.
    InvalidFree,
    /// A read of bytes that nothing has written.
    Uninitialised,
    /// A register that was never written decides an address.
    UndefinedAddress,
    /// A register that was never written decides a predicate or branch.
    UndefinedPredicate,
    /// A register that was never written is stored to memory.
    UndefinedStore,
    /// Two threads of a block touch the same shared byte without an ordering barrier.
    SharedRace,
    /// Two threads of one launch touch the same global byte without ordering.
    GlobalRace,
    /// Lanes of one instruction store the same value to the same bytes: one store is performed (CUDA
    /// C++ Programming Guide, SIMT architecture), and it does not matter whose.
    SameValue,
    /// Threads of one warp wait at a barrier that others of it cannot reach.
    BarrierDivergence,
    /// A warp-wide instruction whose mask does not fit the threads that execute it.
    WarpMask,
    /// A launch or kernel exceeds a limit of the device.
    LimitExceeded,
    /// A launch whose parameters do not fit the kernel.
    InvalidLaunch,
    /// All remaining threads of a block wait for something that cannot happen.
    Deadlock,
    /// The launch executed more instructions than its budget.
    InstructionBudget,
    /// A write to constant memory or kernel parameters.
    ReadOnlyWrite,
    /// The kernel executed `trap`.
    Trap,
    /// An instruction was used in a way that has no defined result.
    InvalidInstruction,
    /// An allocation was still live when its context ended.
    Leak,
}

/// A line of CUDA source, from the PTX's `.loc` directives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceLine {
    /// File name as the compiler recorded it.
    pub file: String,
    /// 1-based line.
    pub line: u32,
}

/// One violation, with everything known about where it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The class.
    pub kind: FindingKind,
    /// Entry point, when a kernel was running.
    pub kernel: Option<String>,
    /// `blockIdx` of the offending thread.
    pub block: Option<[u32; 3]>,
    /// `threadIdx` of the offending thread (the lowest lane, when several offend at once).
    pub thread: Option<[u32; 3]>,
    /// 1-based line of the instruction in the PTX text.
    pub ptx_line: Option<u32>,
    /// The instruction's text.
    pub ptx_text: Option<String>,
    /// CUDA source line, where the PTX carries line information.
    pub source: Option<SourceLine>,
    /// The address accessed.
    pub address: Option<u64>,
    /// The allocation concerned, or the nearest one, in words.
    pub allocation: Option<String>,
    /// What happened, in one sentence.
    pub message: String,
}

impl Finding {
    /// A finding with a message and nothing else known.
    #[must_use]
    pub fn new(kind: FindingKind, message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            kind,
            kernel: None,
            block: None,
            thread: None,
            ptx_line: None,
            ptx_text: None,
            source: None,
            address: None,
            allocation: None,
            message: message.into(),
        })
    }

    /// The same finding with an address.
    #[must_use]
    pub fn at(mut self: Box<Self>, address: u64) -> Box<Self> {
        self.address = Some(address);
        self
    }

    /// The same finding with an allocation's description.
    #[must_use]
    pub fn in_allocation(mut self: Box<Self>, description: impl Into<String>) -> Box<Self> {
        self.allocation = Some(description.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)?;
        if let Some(kernel) = &self.kernel {
            write!(f, "\n  kernel      {kernel}")?;
        }
        if let Some([x, y, z]) = self.block {
            write!(f, "\n  block       ({x}, {y}, {z})")?;
        }
        if let Some([x, y, z]) = self.thread {
            write!(f, "\n  thread      ({x}, {y}, {z})")?;
        }
        if let Some(line) = self.ptx_line {
            write!(f, "\n  ptx line    {line}: {}", self.ptx_text.as_deref().unwrap_or(""))?;
        }
        if let Some(source) = &self.source {
            write!(f, "\n  source      {}:{}", source.file, source.line)?;
        }
        if let Some(address) = self.address {
            write!(f, "\n  address     0x{address:x}")?;
        }
        if let Some(allocation) = &self.allocation {
            write!(f, "\n  allocation  {allocation}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Finding {}
