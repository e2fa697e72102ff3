//! A strict CUDA device on the CPU: device memory with a record of every written byte, a parser for
//! the PTX that NVRTC emits, and a warp interpreter that reports what a GPU would let pass.
//!
//! * [`memory`]: allocations, copies, and the checks on both.
//! * [`ptx`]: PTX text to a [`ptx::Module`].
//! * [`exec`]: runs an entry of a module over a grid.
//! * [`finding`]: what the checks report.

pub mod exec;
pub mod finding;
pub mod memory;
pub mod ptx;

pub use finding::{Checked, Finding, FindingKind, SourceLine};
pub use memory::{AllocationInfo, DeviceMemory, OutOfMemory, ReadPolicy};
