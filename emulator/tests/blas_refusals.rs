//! cuBLAS arguments that must be refused, and what cublasLt allows for C and D.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(unsafe_code, reason = "the cuBLAS C API is unsafe")]

#[path = "blas_refusals/answers.rs"]
mod answers;
mod seeded;

use std::ffi::c_void;

use cuda_emulator::{Class, Emulator, Fault, FaultSite};
use cudarc::{
    cublas::{CudaBlas, sys as blas},
    cublaslt::{result as lt_result, sys as lt},
    driver::{CudaContext, result},
};

const SIDE: usize = 64;

struct Call {
    shape: [i32; 3],
    ld: [i32; 3],
    /// Byte offsets of A, B, C in a buffer of four matrices.
    at: [u64; 3],
    compute: blas::cublasComputeType_t,
}

const GOOD: Call = Call {
    shape: [SIDE as i32; 3],
    ld: [SIDE as i32; 3],
    at: [0, MATRIX, 2 * MATRIX],
    compute: blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
};
const MATRIX: u64 = (4 * SIDE * SIDE) as u64;

/// Status of an f32 product, and the findings.
fn gemm(call: &Call, faults: Vec<Fault>, written: bool) -> (i32, Vec<Class>) {
    let mut config = seeded::config(2);
    config.faults = faults;
    let emulator = Emulator::load(config).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.new_stream().unwrap();
    let handle = CudaBlas::new(stream.clone()).unwrap();
    let (alpha, beta) = (1.0_f32, 1.0_f32);
    // SAFETY: the buffer holds four matrices; the arguments are what the tests are about.
    let status = unsafe {
        let buffer = result::malloc_sync(4 * MATRIX as usize).unwrap();
        let bytes = 4 * MATRIX as usize - usize::from(!written) * (MATRIX as usize + 4);
        result::memset_d8_sync(buffer, 0, bytes).unwrap();
        result::ctx::synchronize().unwrap();
        let status = blas::cublasGemmEx(
            *handle.handle(),
            blas::cublasOperation_t::CUBLAS_OP_N,
            blas::cublasOperation_t::CUBLAS_OP_N,
            call.shape[0],
            call.shape[1],
            call.shape[2],
            (&raw const alpha).cast(),
            (buffer + call.at[0]) as *const c_void,
            blas::cudaDataType_t::CUDA_R_32F,
            call.ld[0],
            (buffer + call.at[1]) as *const c_void,
            blas::cudaDataType_t::CUDA_R_32F,
            call.ld[1],
            (&raw const beta).cast(),
            (buffer + call.at[2]) as *mut c_void,
            blas::cudaDataType_t::CUDA_R_32F,
            call.ld[2],
            call.compute,
            blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        );
        // A finding at run time leaves the context unusable; the next load starts over.
        if result::ctx::synchronize().is_ok() {
            result::free_sync(buffer).unwrap();
        }
        status
    };
    drop((handle, stream, ctx));
    let classes = emulator.finish().unwrap().iter().map(|finding| finding.class).collect();
    (status as i32, classes)
}

#[test]
fn wrong_arguments_are_refused_with_the_reason() {
    assert_eq!(gemm(&GOOD, vec![], true), (0, vec![]));
    let negative = Call { shape: [-1, 64, 64], ..GOOD };
    assert_eq!(gemm(&negative, vec![], true), (7, vec![Class::InvalidArgument]));
    let short = Call { ld: [64, 63, 64], ..GOOD };
    assert_eq!(gemm(&short, vec![], true), (7, vec![Class::InvalidArgument]));
    let odd = Call { at: [2, MATRIX, 2 * MATRIX], ..GOOD };
    assert_eq!(gemm(&odd, vec![], true), (7, vec![Class::Misaligned]));
    let beyond = Call { at: [0, MATRIX, 3 * MATRIX + 4], ..GOOD };
    assert_eq!(gemm(&beyond, vec![], true), (7, vec![Class::OutOfBounds]));
    let overlapping = Call { at: [0, MATRIX, 2 * MATRIX - 4], ..GOOD };
    assert_eq!(gemm(&overlapping, vec![], true), (7, vec![Class::Aliasing]));
    let half = Call { compute: blas::cublasComputeType_t::CUBLAS_COMPUTE_16F, ..GOOD };
    assert_eq!(gemm(&half, vec![], true), (15, vec![Class::Unsupported]));
}

#[test]
fn nothing_to_do_is_not_an_error_and_inputs_must_be_written() {
    let empty = Call { shape: [0, 64, 64], ..GOOD };
    assert_eq!(gemm(&empty, vec![], true), (0, vec![]));
    // The last element of C was never written, and beta is not 0.
    let (status, classes) = gemm(&GOOD, vec![], false);
    assert_eq!((status, &classes[..]), (0, &[Class::Uninitialized][..]));
}

#[test]
fn the_nth_call_fails_with_the_chosen_status() {
    let fault = |nth| vec![Fault { site: FaultSite::Blas, nth, status: 13 }];
    assert_eq!(gemm(&GOOD, fault(1), true), (13, vec![]));
    assert_eq!(gemm(&GOOD, fault(2), true), (0, vec![]));
}

/// D = A · B + C in bf16 through cublasLt, with the four matrices at these slots of a buffer.
fn matmul(slots: [u64; 4]) -> (bool, Vec<Class>) {
    matmul_at(slots, 0, None)
}

/// The same with A `shift` bytes further, or for two matrices with A, B, C and D this many elements apart.
fn matmul_at(slots: [u64; 4], shift: u64, stride: Option<i64>) -> (bool, Vec<Class>) {
    let emulator = Emulator::load(seeded::config(2)).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.new_stream().unwrap();
    let matrix = (2 * SIDE * SIDE) as u64;
    let one = 1.0_f32;
    // SAFETY: the buffer holds twelve matrices; overlaps are what the test is about.
    let done = unsafe {
        let buffer = result::malloc_sync(12 * matrix as usize).unwrap();
        result::memset_d8_sync(buffer, 0, 12 * matrix as usize).unwrap();
        result::ctx::synchronize().unwrap();
        let handle = lt_result::create_handle().unwrap();
        let bf16 = lt::cudaDataType_t::CUDA_R_16BF;
        let layout =
            lt_result::create_matrix_layout(bf16, SIDE as u64, SIDE as u64, SIDE as i64).unwrap();
        if let Some(stride) = stride {
            use lt::cublasLtMatrixLayoutAttribute_t as Attribute;
            let count = 2_i32;
            for (attribute, value, bytes) in [
                (Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (&raw const count).cast(), 4),
                (
                    Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                    (&raw const stride).cast::<c_void>(),
                    8,
                ),
            ] {
                lt_result::set_matrix_layout_attribute(layout, attribute, value, bytes).unwrap();
            }
        }
        let desc = lt_result::create_matmul_desc(
            lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            lt::cudaDataType_t::CUDA_R_32F,
        )
        .unwrap();
        let preference = lt_result::create_matmul_pref().unwrap();
        let heuristic = lt_result::get_matmul_algo_heuristic(
            handle, desc, layout, layout, layout, layout, preference,
        )
        .unwrap();
        let at = slots.map(|slot| buffer + slot * matrix / 2);
        let done = lt_result::matmul(
            handle,
            desc,
            (&raw const one).cast(),
            (&raw const one).cast(),
            (at[0] + shift) as *const c_void,
            layout,
            at[1] as *const c_void,
            layout,
            at[2] as *const c_void,
            layout,
            at[3] as *mut c_void,
            layout,
            &raw const heuristic.algo,
            std::ptr::null_mut(),
            0,
            stream.cu_stream() as *mut _,
        )
        .is_ok();
        result::ctx::synchronize().unwrap();
        lt_result::destroy_matmul_pref(preference).unwrap();
        lt_result::destroy_matrix_layout(layout).unwrap();
        lt_result::destroy_matmul_desc(desc).unwrap();
        lt_result::destroy_handle(handle).unwrap();
        result::free_sync(buffer).unwrap();
        done
    };
    drop((stream, ctx));
    (done, emulator.finish().unwrap().iter().map(|finding| finding.class).collect())
}

#[test]
fn every_matrix_of_a_batch_is_as_aligned_as_the_heuristic_was_told() {
    let slots = [0, 6, 12, 18];
    let matrix = (SIDE * SIDE) as i64;
    assert_eq!(matmul_at(slots, 0, Some(matrix + 128)), (true, vec![]));
    // 16 bytes beyond a multiple of 256, which is what the heuristic assumes by default.
    assert_eq!(matmul_at(slots, 0, Some(matrix + 8)), (false, vec![Class::Misaligned]));
}

#[test]
fn the_output_may_be_c_and_c_may_be_an_input() {
    // An address that is not a multiple of the 256 bytes which the heuristic assumes by default.
    assert_eq!(matmul_at([0, 2, 4, 6], 2, None), (false, vec![Class::Misaligned]));
    // Slots count half matrices, so that partial overlaps can be written down.
    assert_eq!(matmul([0, 2, 4, 6]), (true, vec![]));
    assert_eq!(matmul([0, 2, 4, 4]), (true, vec![]));
    assert_eq!(matmul([0, 2, 0, 6]), (true, vec![]));
    assert_eq!(matmul([0, 0, 0, 6]), (true, vec![]));
    assert_eq!(matmul([0, 2, 4, 0]), (false, vec![Class::Aliasing]));
    assert_eq!(matmul([0, 2, 4, 3]), (false, vec![Class::Aliasing]));
    assert_eq!(matmul([0, 2, 4, 5]), (false, vec![Class::Aliasing]));
}
