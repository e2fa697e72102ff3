//! Findings of the whole emulator in the form the Rust API hands out.

use serde::{Deserialize, Serialize};

/// What kind of mistake a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Class {
    /// An access outside every live allocation, or past the end of one.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// An access to memory that was freed, or a free while work still uses it.
    UseAfterFree,
    /// A second free of the same memory.
    DoubleFree,
    /// A free of an address that no allocation starts at.
    InvalidFree,
    /// A read of memory that nothing has written.
    Uninitialized,
    /// Two accesses that nothing orders, at least one of them a write.
    Race,
    /// Lanes of one instruction store the same value to the same bytes. Harmless: nothing fails by it,
    /// and each instruction is reported once.
    SameValue,
    /// A barrier, shuffle or vote that not all named threads reach.
    Synchronization,
    /// Pinned host memory freed or changed while queued work uses it.
    HostMemory,
    /// Launch dimensions, shared memory or registers over the device's limits.
    LaunchLimit,
    /// A call that is not allowed while a stream is being captured.
    Capture,
    /// A destroyed or foreign handle.
    InvalidHandle,
    /// An argument the manual forbids.
    InvalidArgument,
    /// An input and an output that overlap.
    Aliasing,
    /// Memory, streams, events, modules or cuBLAS handles still alive when their context ends,
    /// cublasLt objects when the program does.
    Leak,
    /// An instruction or entry point the emulator does not have.
    Unsupported,
    /// A launch that executed more instructions than its budget, or a deadlock.
    Progress,
    /// Any other mistake found while a kernel ran.
    Kernel,
}

/// One mistake, where it was made and what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The kind of mistake.
    pub class: Class,
    /// One sentence with addresses, sizes and names.
    pub message: String,
    /// The entry point that was called or the operation that ran.
    pub operation: String,
    /// The kernel, for mistakes inside a launch.
    pub kernel: Option<String>,
    /// Block coordinates, for mistakes inside a launch.
    pub block: Option<[u32; 3]>,
    /// Thread coordinates, for mistakes inside a launch.
    pub thread: Option<[u32; 3]>,
    /// Line of the PTX text, counted from 1.
    pub ptx_line: Option<u32>,
    /// `file:line` of the CUDA source, where the PTX carries it.
    pub source: Option<String>,
    /// The scheduling seed under which it was found.
    pub seed: u64,
}

impl Report {
    /// A finding about a host call or a queued operation.
    #[must_use]
    pub fn host(class: Class, operation: impl Into<String>, message: impl Into<String>) -> Self {
        Report {
            class,
            message: message.into(),
            operation: operation.into(),
            kernel: None,
            block: None,
            thread: None,
            ptx_line: None,
            source: None,
            seed: 0,
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} in {}: {}", self.class, self.operation, self.message)?;
        if let Some(kernel) = &self.kernel {
            write!(f, "; kernel `{kernel}`")?;
        }
        if let (Some(block), Some(thread)) = (self.block, self.thread) {
            write!(f, ", block {block:?}, thread {thread:?}")?;
        }
        if let Some(line) = self.ptx_line {
            write!(f, ", PTX line {line}")?;
        }
        if let Some(source) = &self.source {
            write!(f, ", {source}")?;
        }
        write!(f, " (seed {})", self.seed)
    }
}
