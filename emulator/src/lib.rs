//! A strict CUDA device on the CPU: device memory with a record of every written byte, a parser for
//! the PTX that NVRTC emits, and a warp interpreter that reports what a GPU would let pass.
//!
//! * [`memory`]: allocations, copies, and the checks on both.
//! * [`ptx`]: PTX text to a [`ptx::Module`].
//! * [`exec`]: runs an entry of a module over a grid.
//! * [`finding`]: what the checks report.
//! * [`load`] and [`fetch`]: the emulated libraries, and NVRTC, into a test process.

pub mod blas;
pub mod exec;
pub mod fetch;
pub mod finding;
pub mod load;
pub mod memory;
pub mod ptx;
pub mod runtime;
pub mod thin;

pub use fetch::{FetchError, NvrtcDirectories, fetch_nvrtc};
pub use finding::{Checked, Finding, FindingKind, SourceLine};
pub use load::{Emulator, LoadError};
pub use memory::{AllocationInfo, DeviceMemory, OutOfMemory, ReadPolicy};
pub use runtime::{
    config::{Config, Fault, FaultSite, Log, OnFinding},
    counters::{Counters, KernelCounters, Transfer},
    profile::DeviceProfile,
    report::{Class, Report},
};

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
