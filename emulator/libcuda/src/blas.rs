//! cuBLAS: handles and the Gemm family, under the prefix `cuda_emulator_` for the thin libcublas.

use std::ffi::{c_int, c_longlong};

use cuda_emulator::blas::{Batching, BlasOutcome, BlasStatus, Gemm, GroupedGemm};

use crate::abi::{In, Out, blas_entries, rt};

pub(crate) const INVALID: BlasStatus = BlasStatus::INVALID_VALUE;

/// Hands a result over; a null place is an invalid argument.
pub(crate) fn give<T>(place: Out<T>, value: T) -> BlasOutcome<()> {
    place.set(value).map_err(|_| INVALID)
}

const F32: c_int = 0;
const F64: c_int = 1;
const COMPUTE_F32: c_int = 68;
const COMPUTE_F64: c_int = 70;

blas_entries! {
    cuda_emulator_cublasCreate_v2(handle: Out<u64>) { give(handle, rt(|rt| rt.blas_create())?) }
    cuda_emulator_cublasDestroy_v2(handle: u64) { rt(|rt| rt.blas_destroy(handle)) }
    cuda_emulator_cublasSetStream_v2(handle: u64, stream: u64) { rt(|rt| rt.blas_set_stream(handle, stream)) }
    cuda_emulator_cublasGetStream_v2(handle: u64, stream: Out<u64>) {
        give(stream, rt(|rt| rt.blas_stream(handle))?)
    }
    cuda_emulator_cublasSetWorkspace_v2(handle: u64, address: u64, bytes: usize) {
        rt(|rt| rt.blas_set_workspace(handle, address, bytes as u64))
    }
    cuda_emulator_cublasSetPointerMode_v2(handle: u64, mode: c_int) {
        rt(|rt| rt.blas_pointer_mode(handle, Some(mode)).map(drop))
    }
    cuda_emulator_cublasGetPointerMode_v2(handle: u64, mode: Out<c_int>) {
        give(mode, rt(|rt| rt.blas_pointer_mode(handle, None))?)
    }
    cuda_emulator_cublasSetMathMode(handle: u64, mode: c_int) {
        rt(|rt| rt.blas_math_mode(handle, Some(mode)).map(drop))
    }
    cuda_emulator_cublasGetMathMode(handle: u64, mode: Out<c_int>) {
        give(mode, rt(|rt| rt.blas_math_mode(handle, None))?)
    }
    cuda_emulator_cublasSetAtomicsMode(handle: u64, mode: c_int) {
        rt(|rt| rt.blas_setting(handle, "atomics mode", Some(mode)).map(drop))
    }
    cuda_emulator_cublasGetAtomicsMode(handle: u64, mode: Out<c_int>) {
        give(mode, rt(|rt| rt.blas_setting(handle, "atomics mode", None))?)
    }
    cuda_emulator_cublasSetSmCountTarget(handle: u64, count: c_int) {
        rt(|rt| rt.blas_setting(handle, "SM count target", Some(count)).map(drop))
    }
    cuda_emulator_cublasGetSmCountTarget(handle: u64, count: Out<c_int>) {
        give(count, rt(|rt| rt.blas_setting(handle, "SM count target", None))?)
    }
    cuda_emulator_cublasGetVersion_v2(_handle: u64, version: Out<c_int>) { give(version, 131_000) }
    cuda_emulator_cublasGetProperty(property: c_int, value: Out<c_int>) {
        let found = match property {
            0 => 13,
            1 => 10,
            2 => 0,
            _ => return Err(INVALID),
        };
        give(value, found)
    }
    cuda_emulator_cublasGemmEx(handle: u64, trans_a: c_int, trans_b: c_int, m: c_int, n: c_int, k: c_int, alpha: u64, a: u64, a_type: c_int, lda: c_int, b: u64, b_type: c_int, ldb: c_int, beta: u64, c: u64, c_type: c_int, ldc: c_int, compute: c_int, _algo: c_int) {
        let call = Gemm {
            name: "cublasGemmEx",
            trans: [trans_a, trans_b],
            shape: [m, n, k].map(i64::from),
            scalars: [alpha, beta],
            types: [a_type, b_type, c_type],
            ld: [lda, ldb, ldc].map(i64::from),
            compute,
            batching: Batching::Single([a, b, c]),
        };
        rt(|rt| rt.gemm(handle, &call))
    }
    cuda_emulator_cublasGemmStridedBatchedEx(handle: u64, trans_a: c_int, trans_b: c_int, m: c_int, n: c_int, k: c_int, alpha: u64, a: u64, a_type: c_int, lda: c_int, stride_a: c_longlong, b: u64, b_type: c_int, ldb: c_int, stride_b: c_longlong, beta: u64, c: u64, c_type: c_int, ldc: c_int, stride_c: c_longlong, count: c_int, compute: c_int, _algo: c_int) {
        let call = Gemm {
            name: "cublasGemmStridedBatchedEx",
            trans: [trans_a, trans_b],
            shape: [m, n, k].map(i64::from),
            scalars: [alpha, beta],
            types: [a_type, b_type, c_type],
            ld: [lda, ldb, ldc].map(i64::from),
            compute,
            batching: Batching::Strided([a, b, c], [stride_a, stride_b, stride_c], count),
        };
        rt(|rt| rt.gemm(handle, &call))
    }
    cuda_emulator_cublasGemmBatchedEx(handle: u64, trans_a: c_int, trans_b: c_int, m: c_int, n: c_int, k: c_int, alpha: u64, a: u64, a_type: c_int, lda: c_int, b: u64, b_type: c_int, ldb: c_int, beta: u64, c: u64, c_type: c_int, ldc: c_int, count: c_int, compute: c_int, _algo: c_int) {
        let call = Gemm {
            name: "cublasGemmBatchedEx",
            trans: [trans_a, trans_b],
            shape: [m, n, k].map(i64::from),
            scalars: [alpha, beta],
            types: [a_type, b_type, c_type],
            ld: [lda, ldb, ldc].map(i64::from),
            compute,
            batching: Batching::Arrays([a, b, c], count),
        };
        rt(|rt| rt.gemm(handle, &call))
    }
    cuda_emulator_cublasGemmGroupedBatchedEx(handle: u64, trans_a: In<c_int>, trans_b: In<c_int>, m: In<c_int>, n: In<c_int>, k: In<c_int>, alpha: u64, a: u64, a_type: c_int, lda: In<c_int>, b: u64, b_type: c_int, ldb: In<c_int>, beta: u64, c: u64, c_type: c_int, ldc: In<c_int>, groups: c_int, sizes: In<c_int>, compute: c_int) {
        let groups = usize::try_from(groups).map_err(|_| INVALID)?;
        let list = |of: &In<c_int>| of.list(groups).map_err(|_| INVALID);
        let (trans_a, trans_b) = (list(&trans_a)?, list(&trans_b)?);
        let (m, n, k) = (list(&m)?, list(&n)?, list(&k)?);
        let (lda, ldb, ldc) = (list(&lda)?, list(&ldb)?, list(&ldc)?);
        let sizes = list(&sizes)?;
        let width = if compute == COMPUTE_F64 { 8 } else { 4 };
        let mut first = 0_u64;
        let mut calls = Vec::with_capacity(groups);
        for group in 0..groups {
            let skip = 8 * first;
            first += u64::try_from(sizes[group]).map_err(|_| INVALID)?;
            let scalar = |base: u64| if base == 0 { 0 } else { base + width * group as u64 };
            calls.push(Gemm {
                name: "cublasGemmGroupedBatchedEx",
                trans: [trans_a[group], trans_b[group]],
                shape: [m[group], n[group], k[group]].map(i64::from),
                scalars: [scalar(alpha), scalar(beta)],
                types: [a_type, b_type, c_type],
                ld: [lda[group], ldb[group], ldc[group]].map(i64::from),
                compute,
                batching: Batching::Arrays([a + skip, b + skip, c + skip], sizes[group]),
            });
        }
        rt(|rt| rt.gemm_grouped(handle, &GroupedGemm { groups: calls }))
    }
    cuda_emulator_cublasSgemm_v2(handle: u64, trans_a: c_int, trans_b: c_int, m: c_int, n: c_int, k: c_int, alpha: u64, a: u64, lda: c_int, b: u64, ldb: c_int, beta: u64, c: u64, ldc: c_int) {
        let call = Gemm {
            name: "cublasSgemm",
            trans: [trans_a, trans_b],
            shape: [m, n, k].map(i64::from),
            scalars: [alpha, beta],
            types: [F32; 3],
            ld: [lda, ldb, ldc].map(i64::from),
            compute: COMPUTE_F32,
            batching: Batching::Single([a, b, c]),
        };
        rt(|rt| rt.gemm(handle, &call))
    }
    cuda_emulator_cublasDgemm_v2(handle: u64, trans_a: c_int, trans_b: c_int, m: c_int, n: c_int, k: c_int, alpha: u64, a: u64, lda: c_int, b: u64, ldb: c_int, beta: u64, c: u64, ldc: c_int) {
        let call = Gemm {
            name: "cublasDgemm",
            trans: [trans_a, trans_b],
            shape: [m, n, k].map(i64::from),
            scalars: [alpha, beta],
            types: [F64; 3],
            ld: [lda, ldb, ldc].map(i64::from),
            compute: COMPUTE_F64,
            batching: Batching::Single([a, b, c]),
        };
        rt(|rt| rt.gemm(handle, &call))
    }
    cuda_emulator_cublasSgemmStridedBatched(handle: u64, trans_a: c_int, trans_b: c_int, m: c_int, n: c_int, k: c_int, alpha: u64, a: u64, lda: c_int, stride_a: c_longlong, b: u64, ldb: c_int, stride_b: c_longlong, beta: u64, c: u64, ldc: c_int, stride_c: c_longlong, count: c_int) {
        let call = Gemm {
            name: "cublasSgemmStridedBatched",
            trans: [trans_a, trans_b],
            shape: [m, n, k].map(i64::from),
            scalars: [alpha, beta],
            types: [F32; 3],
            ld: [lda, ldb, ldc].map(i64::from),
            compute: COMPUTE_F32,
            batching: Batching::Strided([a, b, c], [stride_a, stride_b, stride_c], count),
        };
        rt(|rt| rt.gemm(handle, &call))
    }
    cuda_emulator_cublasDgemmStridedBatched(handle: u64, trans_a: c_int, trans_b: c_int, m: c_int, n: c_int, k: c_int, alpha: u64, a: u64, lda: c_int, stride_a: c_longlong, b: u64, ldb: c_int, stride_b: c_longlong, beta: u64, c: u64, ldc: c_int, stride_c: c_longlong, count: c_int) {
        let call = Gemm {
            name: "cublasDgemmStridedBatched",
            trans: [trans_a, trans_b],
            shape: [m, n, k].map(i64::from),
            scalars: [alpha, beta],
            types: [F64; 3],
            ld: [lda, ldb, ldc].map(i64::from),
            compute: COMPUTE_F64,
            batching: Batching::Strided([a, b, c], [stride_a, stride_b, stride_c], count),
        };
        rt(|rt| rt.gemm(handle, &call))
    }
}

/// Records that a program called a cuBLAS or cublasLt entry that is not implemented.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_emulator_blas_unsupported(name: *const std::ffi::c_char) -> i32 {
    if name.is_null() {
        return BlasStatus::NOT_SUPPORTED.0;
    }
    // SAFETY: the thin libraries pass a NUL-terminated literal.
    let name = unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned();
    crate::abi::blas_entry(&name, || Err(rt(|rt| rt.blas_unsupported(&name))))
}
