//! The C ABI of the CUDA driver on `cuda-emulator`: a shared library with the SONAME
//! `libcuda.so.1` whose entry points lock the process's one runtime and call it.
//!
//! The library also exports `cuda_emulator_control`, through which the Rust API of the core
//! package configures it and reads findings and counters, and the cuBLAS entry points under the
//! prefix `cuda_emulator_`, to which the thin libcublas and libcublasLt forward.
//!
//! Entries that are not implemented return `CUDA_ERROR_NOT_SUPPORTED` and record a finding that
//! names them.
#![allow(unsafe_code, reason = "every item here is part of a C ABI")]
#![allow(unreachable_pub, reason = "the dynamic linker reaches the exports")]
#![allow(clippy::too_many_arguments, reason = "the signatures are the driver's")]
#![allow(non_snake_case, reason = "the names are the driver's")]
#![allow(clippy::missing_safety_doc, reason = "the contract of each entry is the driver manual's")]

mod abi;
mod blas;
mod blas_lt;
mod context;
mod control;
mod device;
mod graph;
mod memory;
mod module;
mod procedure;
mod stream;
pub mod unsupported;
