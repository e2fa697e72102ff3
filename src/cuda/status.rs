//! Failed calls of the CUDA libraries as errors of this crate.
//!
//! cudarc's `DriverError` must not be printed: its `Display` and `Debug` ask the driver for a text and
//! panic where the driver is missing. The enumeration inside is safe to print.

use std::fmt::Display;

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use crate::error::Error;

/// How to learn why cublasLt refuses.
const LOG_HINT: &str = "run again with CUBLASLT_LOG_LEVEL=1 in the environment: cublasLt then writes its reason to standard output";

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

/// A failed cublasLt call; `doing` names the operation. Its reasons cublasLt says in its log alone.
pub(crate) fn cublas_error(error: CublasError, doing: impl Display) -> Error {
    use cudarc::cublaslt::sys::cublasStatus_t;
    let status = error.0;
    let number = i32::try_from(status as u32).unwrap_or(i32::MAX);
    let out_of_memory = status == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED;
    let room = if out_of_memory { "; free device memory" } else { "" };
    Error::cuda(
        format!("{doing}: cublasLt: {status:?} ({number}){room}; {LOG_HINT}"),
        number,
        out_of_memory,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors print without a driver: cudarc's own printing would panic.
    #[test]
    fn errors_print_without_asking_the_driver() {
        use cudarc::cublaslt::sys::cublasStatus_t;
        let error =
            driver_error(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY), "allocating 3 bytes");
        assert!(error.is_out_of_memory() && error.is_device() && error.cuda_status() == Some(2));
        assert_eq!(
            error.to_string(),
            "allocating 3 bytes: CUDA driver: CUDA_ERROR_OUT_OF_MEMORY (2); free device memory, or lower \
             the workspace limit"
        );
        let error =
            driver_error(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS), "x").context("y");
        assert!(!error.is_out_of_memory() && error.cuda_status() == Some(700), "{error:?}");
        assert!(error.to_string().contains("start it anew"));
        let error = cublas_error(CublasError(cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED), "x");
        assert!(error.is_out_of_memory() && error.cuda_status() == Some(3));
        assert!(error.to_string().contains("free device memory"), "{error}");
        let error = cublas_error(CublasError(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED), "x");
        assert!(!error.is_out_of_memory() && error.cuda_status() == Some(15));
        assert_eq!(
            error.to_string(),
            "x: cublasLt: CUBLAS_STATUS_NOT_SUPPORTED (15); run again with CUBLASLT_LOG_LEVEL=1 in the \
             environment: cublasLt then writes its reason to standard output"
        );
    }
}
