//! The C ABI of cublasLt on `cuda-emulator`: every entry forwards to the emulated libcuda, which holds all state.
//!
//! Entries that are not implemented return `CUBLAS_STATUS_NOT_SUPPORTED` and record a finding that
//! names them. Without the emulated libcuda in the process every entry returns
//! `CUBLAS_STATUS_NOT_INITIALIZED`.
#![allow(unsafe_code, reason = "every item here is part of a C ABI")]
#![allow(clippy::too_many_arguments, reason = "the signatures are cuBLAS's")]
#![allow(non_snake_case, reason = "the names are cuBLAS's")]
#![allow(clippy::missing_safety_doc, reason = "the contract of each entry is the cuBLAS manual's")]

use std::ffi::c_int;

use cuda_emulator::{forward, unsupported};

/// The library version: 13.10.0.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    131_000
}

/// The version of the CUDA runtime in the library: 13.0.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetCudartVersion() -> usize {
    13_000
}

forward! {
    cublasLtCreate(handle: usize);
    cublasLtDestroy(handle: u64);
    cublasLtMatmulDescCreate(desc: usize, compute: c_int, scale: c_int);
    cublasLtMatmulDescDestroy(desc: u64);
    cublasLtMatmulDescSetAttribute(desc: u64, attribute: c_int, value: usize, size: usize);
    cublasLtMatmulDescGetAttribute(desc: u64, attribute: c_int, value: usize, size: usize, written: usize);
    cublasLtMatrixLayoutCreate(layout: usize, dtype: c_int, rows: u64, cols: u64, ld: i64);
    cublasLtMatrixLayoutDestroy(layout: u64);
    cublasLtMatrixLayoutSetAttribute(layout: u64, attribute: c_int, value: usize, size: usize);
    cublasLtMatrixLayoutGetAttribute(layout: u64, attribute: c_int, value: usize, size: usize, written: usize);
    cublasLtMatmulPreferenceCreate(preference: usize);
    cublasLtMatmulPreferenceDestroy(preference: u64);
    cublasLtMatmulPreferenceSetAttribute(preference: u64, attribute: c_int, value: usize, size: usize);
    cublasLtMatmulPreferenceGetAttribute(preference: u64, attribute: c_int, value: usize, size: usize, written: usize);
    cublasLtMatmulAlgoGetHeuristic(handle: u64, desc: u64, a: u64, b: u64, c: u64, d: u64, preference: u64, wanted: c_int, results: usize, found: usize);
    cublasLtMatmul(handle: u64, desc: u64, alpha: u64, a: u64, a_layout: u64, b: u64, b_layout: u64, beta: u64, c: u64, c_layout: u64, d: u64, d_layout: u64, algorithm: usize, workspace: u64, bytes: usize, stream: u64);
}

unsupported! {
    cublasLtEmulationDescCreate cublasLtEmulationDescDestroy cublasLtEmulationDescGetAttribute
    cublasLtEmulationDescInit_internal cublasLtEmulationDescSetAttribute
    cublasLtGetProperty cublasLtGetStatusName cublasLtGetStatusString
    cublasLtGroupedMatrixLayoutCreate cublasLtGroupedMatrixLayoutInit_internal
    cublasLtHeuristicsCacheGetCapacity cublasLtHeuristicsCacheSetCapacity
    cublasLtLoggerForceDisable cublasLtLoggerOpenFile cublasLtLoggerSetCallback
    cublasLtLoggerSetFile cublasLtLoggerSetLevel cublasLtLoggerSetMask
    cublasLtMatmulAlgoCapGetAttribute cublasLtMatmulAlgoCheck cublasLtMatmulAlgoCheckForStream
    cublasLtMatmulAlgoConfigGetAttribute cublasLtMatmulAlgoConfigSetAttribute
    cublasLtMatmulAlgoGetHeuristicForStream cublasLtMatmulAlgoGetIds cublasLtMatmulAlgoInit
    cublasLtMatmulDescInit_internal cublasLtMatmulPreferenceInit_internal
    cublasLtMatrixLayoutInit_internal cublasLtMatrixTransform cublasLtMatrixTransformDescCreate
    cublasLtMatrixTransformDescDestroy cublasLtMatrixTransformDescGetAttribute
    cublasLtMatrixTransformDescInit_internal cublasLtMatrixTransformDescSetAttribute
}
