//! cuBLAS and cublasLt products against a naive f64 product, through the C ABI.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(unsafe_code, reason = "the cuBLAS C API is unsafe")]

#[path = "blas_products/matmul.rs"]
mod matmul;
mod seeded;

use std::ffi::c_void;

use cuda_emulator::Emulator;
use cudarc::{
    cublas::{CudaBlas, sys as blas},
    driver::{CudaContext, result, sys},
};
use half::{bf16, f16};
use proptest::prelude::*;

use blas::{cublasComputeType_t as Compute, cublasOperation_t as Op, cudaDataType_t as Type};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Route {
    GemmEx,
    Strided,
    Batched,
    Grouped,
    Lt,
}

#[derive(Clone, Debug)]
struct Case {
    route: Route,
    input: Type,
    output: Type,
    tf32: bool,
    trans: [bool; 2],
    shape: [usize; 3],
    /// Added to the smallest leading dimension of A, B, C, D.
    pad: [usize; 4],
    batch: usize,
    alpha: f32,
    beta: f32,
    device_scalars: bool,
    seed: u64,
}

fn size(dtype: Type) -> usize {
    if dtype == Type::CUDA_R_32F { 4 } else { 2 }
}

fn encode(dtype: Type, value: f32) -> Vec<u8> {
    match dtype {
        Type::CUDA_R_16F => f16::from_f32(value).to_le_bytes().to_vec(),
        Type::CUDA_R_16BF => bf16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

fn decode(dtype: Type, bytes: &[u8]) -> f64 {
    match dtype {
        Type::CUDA_R_16F => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        Type::CUDA_R_16BF => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
        _ => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
    }
}

/// Round to nearest with ties away on 10 bits of mantissa, in exact arithmetic.
fn tf32(value: f64) -> f64 {
    if value == 0.0 {
        return value;
    }
    let scale = 2.0_f64.powi(value.abs().log2().floor() as i32 - 10);
    (value.abs() / scale + 0.5).floor() * scale * value.signum()
}

/// Stored rows and columns, leading dimension, and elements from one matrix to the next.
struct Layout {
    rows: usize,
    cols: usize,
    ld: usize,
    stride: usize,
}

impl Layout {
    fn new(rows: usize, cols: usize, pad: usize) -> Self {
        let ld = rows.max(1) + pad;
        // Matrices of a batch do not touch: an odd gap, except in front of the first.
        Layout { rows, cols, ld, stride: ld * cols.max(1) + 3 }
    }

    fn elements(&self, batch: usize) -> usize {
        self.stride * batch
    }

    fn at(&self, item: usize, row: usize, col: usize) -> usize {
        item * self.stride + col * self.ld + row
    }
}

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0) * 3.0
    }
}

/// Bytes of a batch of matrices; what is not in a matrix is NaN (inputs) or a mark (outputs).
fn fill(layout: &Layout, batch: usize, dtype: Type, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = vec![0xFF; layout.elements(batch) * size(dtype)];
    for item in 0..batch {
        for col in 0..layout.cols {
            for row in 0..layout.rows {
                let at = layout.at(item, row, col) * size(dtype);
                bytes[at..at + size(dtype)].copy_from_slice(&encode(dtype, numbers.next()));
            }
        }
    }
    bytes
}

fn upload(bytes: &[u8]) -> sys::CUdeviceptr {
    // SAFETY: a fresh allocation of exactly these bytes.
    unsafe {
        let buffer = result::malloc_sync(bytes.len().max(1)).unwrap();
        result::memcpy_htod_sync(buffer, bytes).unwrap();
        result::ctx::synchronize().unwrap();
        buffer
    }
}

fn check(case: &Case) -> Result<(), TestCaseError> {
    let emulator = Emulator::load(seeded::config(case.seed)).unwrap();
    let [m, n, k] = case.shape;
    let mut numbers = Numbers(case.seed);
    let stored = |rows, cols, trans: bool| if trans { (cols, rows) } else { (rows, cols) };
    let (ar, ac) = stored(m, k, case.trans[0]);
    let (br, bc) = stored(k, n, case.trans[1]);
    let la = Layout::new(ar, ac, case.pad[0]);
    let lb = Layout::new(br, bc, case.pad[1]);
    let lc = Layout::new(m, n, case.pad[2]);
    let ld = if case.route == Route::Lt {
        Layout::new(m, n, case.pad[3])
    } else {
        Layout::new(m, n, case.pad[2])
    };
    let batch = if case.route == Route::GemmEx { 1 } else { case.batch };
    let a = fill(&la, batch, case.input, &mut numbers);
    let b = fill(&lb, batch, case.input, &mut numbers);
    let c = fill(&lc, batch, case.output, &mut numbers);

    let ctx = CudaContext::new(0).unwrap();
    // SAFETY: one stream does everything.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    let handle = CudaBlas::new(stream.clone()).unwrap();
    let device = [upload(&a), upload(&b), upload(&c)];
    let separate = case.route == Route::Lt;
    let d_bytes = ld.elements(batch) * size(case.output);
    let d = if separate { upload(&vec![0xFF; d_bytes]) } else { device[2] };
    let scalars = upload(&[case.alpha.to_le_bytes(), case.beta.to_le_bytes()].concat());
    let (host_alpha, host_beta) = (case.alpha, case.beta);
    let (alpha, beta): (*const c_void, *const c_void) = if case.device_scalars {
        (scalars as *const c_void, (scalars + 4) as *const c_void)
    } else {
        ((&raw const host_alpha).cast(), (&raw const host_beta).cast())
    };
    let op = |trans| if trans { Op::CUBLAS_OP_T } else { Op::CUBLAS_OP_N };
    let compute =
        if case.tf32 { Compute::CUBLAS_COMPUTE_32F_FAST_TF32 } else { Compute::CUBLAS_COMPUTE_32F };
    let pointers = |base: u64, layout: &Layout, dtype| -> Vec<u8> {
        (0..batch)
            .flat_map(|item| (base + (item * layout.stride * size(dtype)) as u64).to_le_bytes())
            .collect()
    };
    let arrays = [
        upload(&pointers(device[0], &la, case.input)),
        upload(&pointers(device[1], &lb, case.input)),
        upload(&pointers(device[2], &lc, case.output)),
    ];
    let (mi, ni, ki) = (m as i32, n as i32, k as i32);
    let (lda, ldb, ldc) = (la.ld as i32, lb.ld as i32, lc.ld as i32);
    let algo = blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT;
    let mode = if case.device_scalars {
        blas::cublasPointerMode_t::CUBLAS_POINTER_MODE_DEVICE
    } else {
        blas::cublasPointerMode_t::CUBLAS_POINTER_MODE_HOST
    };
    let pair = |v: i32| [v];
    // SAFETY: every buffer holds what its layout says; the arguments agree with the layouts.
    unsafe {
        let h = *handle.handle();
        blas::cublasSetPointerMode_v2(h, mode).result().unwrap();
        match case.route {
            Route::GemmEx => blas::cublasGemmEx(
                h,
                op(case.trans[0]),
                op(case.trans[1]),
                mi,
                ni,
                ki,
                alpha,
                device[0] as *const c_void,
                case.input,
                lda,
                device[1] as *const c_void,
                case.input,
                ldb,
                beta,
                device[2] as *mut c_void,
                case.output,
                ldc,
                compute,
                algo,
            )
            .result()
            .unwrap(),
            Route::Strided => blas::cublasGemmStridedBatchedEx(
                h,
                op(case.trans[0]),
                op(case.trans[1]),
                mi,
                ni,
                ki,
                alpha,
                device[0] as *const c_void,
                case.input,
                lda,
                la.stride as i64,
                device[1] as *const c_void,
                case.input,
                ldb,
                lb.stride as i64,
                beta,
                device[2] as *mut c_void,
                case.output,
                ldc,
                lc.stride as i64,
                batch as i32,
                compute,
                algo,
            )
            .result()
            .unwrap(),
            Route::Batched => blas::cublasGemmBatchedEx(
                h,
                op(case.trans[0]),
                op(case.trans[1]),
                mi,
                ni,
                ki,
                alpha,
                arrays[0] as *const *const c_void,
                case.input,
                lda,
                arrays[1] as *const *const c_void,
                case.input,
                ldb,
                beta,
                arrays[2] as *const *mut c_void,
                case.output,
                ldc,
                batch as i32,
                compute,
                algo,
            )
            .result()
            .unwrap(),
            Route::Grouped => blas::cublasGemmGroupedBatchedEx(
                h,
                [op(case.trans[0])].as_ptr(),
                [op(case.trans[1])].as_ptr(),
                pair(mi).as_ptr(),
                pair(ni).as_ptr(),
                pair(ki).as_ptr(),
                alpha,
                arrays[0] as *const *const c_void,
                case.input,
                pair(lda).as_ptr(),
                arrays[1] as *const *const c_void,
                case.input,
                pair(ldb).as_ptr(),
                beta,
                arrays[2] as *const *mut c_void,
                case.output,
                pair(ldc).as_ptr(),
                1,
                pair(batch as i32).as_ptr(),
                compute,
            )
            .result()
            .unwrap(),
            Route::Lt => matmul::matmul(
                case,
                [&la, &lb, &lc, &ld],
                [device[0], device[1], device[2], d],
                alpha,
                beta,
                batch,
                &stream,
            ),
        }
        result::stream::synchronize(stream.cu_stream()).unwrap();
    }
    let mut got = vec![0_u8; d_bytes];
    // SAFETY: the output has this many bytes.
    unsafe { result::memcpy_dtoh_sync(&mut got, d) }.unwrap();

    let width = size(case.output);
    let value = |bytes: &[u8], dtype, at: usize| {
        decode(dtype, &bytes[at * size(dtype)..(at + 1) * size(dtype)])
    };
    let round = |v: f64| if case.tf32 && case.input == Type::CUDA_R_32F { tf32(v) } else { v };
    let unit = match case.output {
        Type::CUDA_R_16F => 2.0_f64.powi(-11),
        Type::CUDA_R_16BF => 2.0_f64.powi(-8),
        _ => 2.0_f64.powi(-24),
    };
    let mut inside = vec![false; ld.elements(batch)];
    let mut worst = 0.0_f64;
    for item in 0..batch {
        for row in 0..m {
            for col in 0..n {
                let (mut sum, mut size_of_sum) = (0.0, 0.0);
                for p in 0..k {
                    let (r, s) = if case.trans[0] { (p, row) } else { (row, p) };
                    let left = round(value(&a, case.input, la.at(item, r, s)));
                    let (r, s) = if case.trans[1] { (col, p) } else { (p, col) };
                    let right = round(value(&b, case.input, lb.at(item, r, s)));
                    sum += left * right;
                    size_of_sum += (left * right).abs();
                }
                let old = if case.beta == 0.0 {
                    0.0
                } else {
                    value(&c, case.output, lc.at(item, row, col))
                };
                let exact = f64::from(case.alpha) * sum + f64::from(case.beta) * old;
                let at = ld.at(item, row, col);
                inside[at] = true;
                let found = value(&got, case.output, at);
                // Each of k products and sums, the scaling and the final sum round in f32; the
                // result rounds once to the output format (f16 has subnormals below 2^-14).
                let bound = unit * exact.abs()
                    + (k + 3) as f64
                        * 2.0_f64.powi(-24)
                        * 1.01
                        * (f64::from(case.alpha.abs()) * size_of_sum
                            + f64::from(case.beta.abs()) * old.abs())
                    + if case.output == Type::CUDA_R_16F { 2.0_f64.powi(-25) } else { 1e-30 };
                let error = (found - exact).abs();
                worst = worst.max(error / bound);
                prop_assert!(
                    error <= bound,
                    "{case:?}: [{item}, {row}, {col}] is {found}, exact {exact}, bound {bound:e}"
                );
            }
        }
    }
    for (at, inside) in inside.iter().enumerate() {
        let untouched = separate
            || at * width >= c.len()
            || got[at * width..(at + 1) * width] == c[at * width..(at + 1) * width];
        if !inside {
            prop_assert!(untouched, "{case:?}: element {at} outside the matrix was written");
        }
    }
    // SAFETY: allocated above, freed once, after the synchronisations.
    unsafe {
        for buffer in device.into_iter().chain(arrays).chain([scalars]) {
            result::free_sync(buffer).unwrap();
        }
        if separate {
            result::free_sync(d).unwrap();
        }
    }
    drop((handle, stream, ctx));
    let counters = emulator.counters().unwrap();
    prop_assert_eq!(counters.gemm_flops, (2 * m * n * k * batch) as u64);
    prop_assert_eq!(emulator.finish().unwrap(), vec![]);
    Ok(())
}

fn cases() -> impl Strategy<Value = Case> {
    let route = prop::sample::select(vec![
        Route::GemmEx,
        Route::Strided,
        Route::Batched,
        Route::Grouped,
        Route::Lt,
    ]);
    let types = prop::sample::select(vec![
        (Type::CUDA_R_32F, Type::CUDA_R_32F, false),
        (Type::CUDA_R_32F, Type::CUDA_R_32F, true),
        (Type::CUDA_R_16F, Type::CUDA_R_16F, false),
        (Type::CUDA_R_16F, Type::CUDA_R_32F, false),
        (Type::CUDA_R_16BF, Type::CUDA_R_16BF, false),
        (Type::CUDA_R_16BF, Type::CUDA_R_32F, false),
    ]);
    let scalar = || prop::sample::select(vec![0.0_f32, 1.0, -0.5, 3.4445, -4.775]);
    (
        route,
        types,
        any::<[bool; 2]>(),
        [1..40_usize, 1..40, 0..70],
        [0..5_usize, 0..5, 0..5, 0..5],
        1..4_usize,
        (scalar(), scalar()),
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(
            |(
                route,
                (input, output, tf32),
                trans,
                shape,
                pad,
                batch,
                (alpha, beta),
                device,
                seed,
            )| Case {
                route,
                input,
                output,
                tf32,
                trans,
                // A cublasLt layout has at least one row and column.
                shape: if route == Route::Lt { shape.map(|side| side.max(1)) } else { shape },
                pad,
                batch,
                alpha,
                beta,
                // Device scalars of a grouped product are not modelled.
                device_scalars: device && route != Route::Grouped,
                seed,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn products_equal_the_naive_f64_product(case in cases()) {
        check(&case)?;
    }
}

#[test]
fn every_transposition_format_and_route_once() {
    let types = [
        (Type::CUDA_R_32F, Type::CUDA_R_32F),
        (Type::CUDA_R_16F, Type::CUDA_R_16F),
        (Type::CUDA_R_16BF, Type::CUDA_R_16BF),
        (Type::CUDA_R_16BF, Type::CUDA_R_32F),
    ];
    for route in [Route::GemmEx, Route::Strided, Route::Batched, Route::Grouped, Route::Lt] {
        for (input, output) in types {
            for trans in [[false, false], [true, false], [false, true], [true, true]] {
                let case = Case {
                    route,
                    input,
                    output,
                    tf32: false,
                    trans,
                    shape: [33, 31, 65],
                    pad: [1, 2, 3, 4],
                    batch: 3,
                    alpha: 3.4445,
                    beta: -4.775,
                    device_scalars: false,
                    seed: 5,
                };
                check(&case).unwrap();
            }
        }
    }
}
