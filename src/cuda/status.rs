//! Failed calls of the CUDA libraries as errors of this crate.
//!
//! cudarc's `DriverError` must not be printed: its `Display` and `Debug` ask the driver for a text and
//! panic where the driver is missing. The enumeration inside is safe to print.

use std::fmt::Display;

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::error::Error;

/// A failed driver call; `doing` names the operation.
pub(crate) fn driver_error(error: DriverError, doing: impl Display) -> Error {
    let status = error.0;
    let hint = match status {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => "; free device memory, or lower the workspace limit",
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_ASSERT
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => {
            "; some earlier kernel failed, and this process cannot use the device any more: start \
             it anew (compute-sanitizer finds the kernel)"
        }
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE => {
            "; the hardware reports a fault: see `nvidia-smi -q` and the system log"
        }
        _ => "",
    };
    // `CUresult` is `#[repr(u32)]`; CUDA's own type for it is an `int`.
    let number = i32::try_from(status as u32).unwrap_or(i32::MAX);
    Error::cuda(
        format!("{doing}: CUDA driver: {status:?} ({number}){hint}"),
        number,
        status == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
    )
}

/// A failed cublasLt call; `doing` names the operation.
pub(crate) fn cublas_error(error: CublasError, doing: impl Display) -> Error {
    use cudarc::cublaslt::sys::cublasStatus_t;
    let status = error.0;
    let number = i32::try_from(status as u32).unwrap_or(i32::MAX);
    Error::cuda(
        format!("{doing}: cublasLt: {status:?} ({number})"),
        number,
        status == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED,
    )
}
