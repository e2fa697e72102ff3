//! The C ABI of cublasLt on `cuda-emulator`: every entry forwards to the emulated libcuda, which holds all state.
//!
//! Entries that are not implemented return `CUBLAS_STATUS_NOT_SUPPORTED` and record a finding that
//! names them. Without the emulated libcuda in the process every entry returns
//! `CUBLAS_STATUS_NOT_INITIALIZED`.
#![allow(unsafe_code, reason = "every item here is part of a C ABI")]
#![allow(clippy::too_many_arguments, reason = "the signatures are cuBLAS's")]
#![allow(non_snake_case, reason = "the names are cuBLAS's")]
#![allow(clippy::missing_safety_doc, reason = "the contract of each entry is the cuBLAS manual's")]

use std::ffi::{CStr, c_char, c_int};

/// Tells the loader that this is the emulator's library.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_emulator_thin() -> c_int {
    1
}

/// `CUBLAS_STATUS_NOT_INITIALIZED`.
const NOT_INITIALIZED: c_int = 1;

/// An export of the emulated libcuda; 0 when another libcuda, or none, is loaded.
fn export(name: &CStr) -> usize {
    // SAFETY: NUL-terminated names; `RTLD_NOLOAD` only finds what is loaded, and the handle's
    // reference is kept for the life of the process, so the address stays valid.
    unsafe {
        let handle = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        if handle.is_null() { 0 } else { libc::dlsym(handle, name.as_ptr()) as usize }
    }
}

macro_rules! forward {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?);)*) => {$(
        #[doc = concat!("`", stringify!($name), "`: forwarded.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> c_int {
            static TARGET: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
            const NAME: &str = concat!("cuda_emulator_", stringify!($name), "\0");
            let target = *TARGET.get_or_init(|| {
                CStr::from_bytes_with_nul(NAME.as_bytes()).map_or(0, export)
            });
            if target == 0 {
                return NOT_INITIALIZED;
            }
            // SAFETY: the emulated libcuda exports this name with exactly this C signature, and the
            // arguments are passed on under the caller's contract.
            unsafe {
                let target: unsafe extern "C" fn($($ty),*) -> c_int = std::mem::transmute(target);
                target($($arg),*)
            }
        }
    )*};
}

macro_rules! unsupported {
    ($($name:ident)*) => {
        /// Names of the entries that are exported only to refuse.
        pub const UNSUPPORTED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[doc = concat!("`", stringify!($name), "`: not implemented.")]
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() -> c_int {
                refuse(concat!(stringify!($name), "\0"))
            }
        )*
    };
}

fn refuse(name: &str) -> c_int {
    let target = export(c"cuda_emulator_blas_unsupported");
    let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) else { return NOT_INITIALIZED };
    if target == 0 {
        return NOT_INITIALIZED;
    }
    // SAFETY: the emulated libcuda exports this function with this signature; the name is
    // NUL-terminated.
    unsafe {
        let target: unsafe extern "C" fn(*const c_char) -> c_int = std::mem::transmute(target);
        target(name.as_ptr())
    }
}

/// The library version: 13.0.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    130_000
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
    cublasLtEmulationDescInit_internal cublasLtEmulationDescSetAttribute cublasLtGetCudartVersion
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
