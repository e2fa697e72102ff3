//! cuBLAS and cublasLt: handles, argument checks and the arithmetic of matrix products.

mod arithmetic;
mod classic;
mod lt;
pub(crate) mod product;
mod run;

use std::collections::BTreeMap;

pub use classic::{Batching, Gemm, GroupedGemm};
pub use lt::{LtAttribute, Matmul};

/// A `cublasStatus_t` other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlasStatus(pub i32);

impl BlasStatus {
    /// `CUBLAS_STATUS_NOT_INITIALIZED`.
    pub const NOT_INITIALIZED: BlasStatus = BlasStatus(1);
    /// `CUBLAS_STATUS_ALLOC_FAILED`.
    pub const ALLOC_FAILED: BlasStatus = BlasStatus(3);
    /// `CUBLAS_STATUS_INVALID_VALUE`.
    pub const INVALID_VALUE: BlasStatus = BlasStatus(7);
    /// `CUBLAS_STATUS_MAPPING_ERROR`.
    pub const MAPPING_ERROR: BlasStatus = BlasStatus(11);
    /// `CUBLAS_STATUS_EXECUTION_FAILED`.
    pub const EXECUTION_FAILED: BlasStatus = BlasStatus(13);
    /// `CUBLAS_STATUS_INTERNAL_ERROR`.
    pub const INTERNAL_ERROR: BlasStatus = BlasStatus(14);
    /// `CUBLAS_STATUS_NOT_SUPPORTED`.
    pub const NOT_SUPPORTED: BlasStatus = BlasStatus(15);

    /// The constant's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "CUBLAS_STATUS_SUCCESS",
            1 => "CUBLAS_STATUS_NOT_INITIALIZED",
            3 => "CUBLAS_STATUS_ALLOC_FAILED",
            7 => "CUBLAS_STATUS_INVALID_VALUE",
            8 => "CUBLAS_STATUS_ARCH_MISMATCH",
            11 => "CUBLAS_STATUS_MAPPING_ERROR",
            13 => "CUBLAS_STATUS_EXECUTION_FAILED",
            14 => "CUBLAS_STATUS_INTERNAL_ERROR",
            15 => "CUBLAS_STATUS_NOT_SUPPORTED",
            16 => "CUBLAS_STATUS_LICENSE_ERROR",
            _ => "unknown cublasStatus_t",
        }
    }
}

/// What the cuBLAS entry points return.
pub type BlasOutcome<T> = Result<T, BlasStatus>;

/// All live cuBLAS and cublasLt objects.
#[derive(Debug, Default)]
pub(crate) struct BlasState {
    pub(crate) handles: BTreeMap<u64, classic::Handle>,
    pub(crate) lt: lt::LtState,
}
