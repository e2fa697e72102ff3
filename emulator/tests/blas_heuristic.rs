//! cublasLt's heuristic: what it may choose, and when it may be asked.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(unsafe_code, reason = "the cuBLAS C API is unsafe")]

mod seeded;

use std::{ffi::c_void, sync::Arc};

use cuda_emulator::{Class, Emulator, Fault, FaultSite};
use cudarc::{
    cublaslt::{result as lt_result, sys as lt},
    driver::{CudaContext, CudaStream, DevicePtr, sys::CUstreamCaptureMode},
};
use half::bf16;
use lt::cublasLtMatmulPreferenceAttributes_t as Attribute;
use lt::cudaDataType_t as Type;

const SIDE: usize = 16;
const INNER: usize = 64;
const WORKSPACE: usize = 1 << 20;

/// A product of two bf16 matrices, described.
struct Problem {
    handle: lt::cublasLtHandle_t,
    desc: lt::cublasLtMatmulDesc_t,
    layouts: [lt::cublasLtMatrixLayout_t; 3],
    preference: lt::cublasLtMatmulPreference_t,
}

impl Problem {
    fn new(output: Type, schemes: Option<u32>) -> Self {
        let layout = |dtype, rows: usize, cols: usize| {
            lt_result::create_matrix_layout(dtype, rows as u64, cols as u64, rows as i64).unwrap()
        };
        let input = Type::CUDA_R_16BF;
        let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let made = Self {
            handle: lt_result::create_handle().unwrap(),
            desc: lt_result::create_matmul_desc(compute, Type::CUDA_R_32F).unwrap(),
            layouts: [
                layout(input, SIDE, INNER),
                layout(input, INNER, SIDE),
                layout(output, SIDE, SIDE),
            ],
            preference: lt_result::create_matmul_pref().unwrap(),
        };
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the preference is alive, and the value has the attribute's size.
            unsafe {
                lt_result::set_matmul_pref_attribute(made.preference, attribute, value, size)
                    .unwrap();
            }
        };
        let limit = WORKSPACE as u64;
        set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const limit).cast(), 8);
        if let Some(schemes) = schemes {
            set(
                Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                (&raw const schemes).cast(),
                4,
            );
        }
        made
    }

    fn ask(&self) -> Result<lt::cublasLtMatmulAlgo_t, i32> {
        let [a, b, c] = self.layouts;
        // SAFETY: all are alive.
        unsafe {
            lt_result::get_matmul_algo_heuristic(
                self.handle,
                self.desc,
                a,
                b,
                c,
                c,
                self.preference,
            )
        }
        .map(|found| found.algo)
        .map_err(|error| error.0 as i32)
    }
}

impl Drop for Problem {
    fn drop(&mut self) {
        // SAFETY: each was made once.
        unsafe {
            lt_result::destroy_matmul_pref(self.preference).unwrap();
            for layout in self.layouts {
                lt_result::destroy_matrix_layout(layout).unwrap();
            }
            lt_result::destroy_matmul_desc(self.desc).unwrap();
            lt_result::destroy_handle(self.handle).unwrap();
        }
    }
}

/// D(0, 0) by the algorithm that is found where the preference allows these reduction schemes.
///
/// It is 31·8 + 9 = 257, of the first half of the inner dimension, and 1, of the second: 258, which bf16 holds. 257 it rounds to
/// 256, and then 256 + 1 to 256.
fn product(stream: &Arc<CudaStream>, output: Type, schemes: Option<u32>) -> f32 {
    let mut column = [8.0; INNER];
    column[0] = 9.0;
    column[INNER / 2..].fill(0.0);
    column[INNER - 1] = 1.0;
    let columns: Vec<_> = (0..SIDE).flat_map(|_| column.map(bf16::from_f32)).collect();
    let a = stream.clone_htod(&vec![bf16::ONE; SIDE * INNER]).unwrap();
    let b = stream.clone_htod(&columns).unwrap();
    let d = stream.alloc_zeros::<f32>(SIDE * SIDE).unwrap();
    let workspace = stream.alloc_zeros::<u8>(WORKSPACE).unwrap();
    let problem = Problem::new(output, schemes);
    let algorithm = problem.ask().unwrap();
    let [one, zero] = [1.0_f32, 0.0];
    let d_at = d.device_ptr(stream).0 as *mut c_void;
    // SAFETY: the buffers hold what the layouts say, D whichever its type.
    unsafe {
        lt_result::matmul(
            problem.handle,
            problem.desc,
            (&raw const one).cast(),
            (&raw const zero).cast(),
            a.device_ptr(stream).0 as *const c_void,
            problem.layouts[0],
            b.device_ptr(stream).0 as *const c_void,
            problem.layouts[1],
            d_at,
            problem.layouts[2],
            d_at,
            problem.layouts[2],
            &raw const algorithm,
            workspace.device_ptr(stream).0 as *mut c_void,
            WORKSPACE,
            stream.cu_stream().cast(),
        )
        .unwrap();
    }
    let first = stream.clone_dtoh(&d).unwrap()[0];
    stream.synchronize().unwrap();
    if output == Type::CUDA_R_32F {
        first
    } else {
        bf16::from_bits(first.to_bits() as u16).to_f32()
    }
}

#[test]
fn parts_of_a_product_are_added_in_the_type_of_d_unless_that_is_masked_out() {
    let emulator = Emulator::load(seeded::config(2)).unwrap();
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    // All schemes by default, in place, in the type of D; in the compute type, none.
    for (schemes, sum) in
        [(None, 256.0), (Some(1), 256.0), (Some(4), 256.0), (Some(2), 258.0), (Some(0), 258.0)]
    {
        assert_eq!(product(&stream, Type::CUDA_R_16BF, schemes), sum, "{schemes:?}");
        assert_eq!(product(&stream, Type::CUDA_R_32F, schemes), 258.0, "{schemes:?}");
    }
    drop(stream);
    let found = emulator.finish().unwrap();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn it_fails_while_a_stream_is_captured() {
    let emulator = Emulator::load(seeded::config(2)).unwrap();
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let problem = Problem::new(Type::CUDA_R_16BF, None);
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    assert_eq!(problem.ask().map(drop), Err(14));
    assert!(stream.end_capture(cudarc::driver::sys::CUgraphInstantiate_flags(0)).is_err());
    problem.ask().unwrap();
    drop((problem, stream));
    let found = emulator.finish().unwrap();
    assert_eq!(found.iter().map(|finding| finding.class).collect::<Vec<_>>(), [Class::Capture]);
}

#[test]
fn an_attribute_that_is_not_modelled_is_refused_where_it_is_used() {
    let emulator = Emulator::load(seeded::config(2)).unwrap();
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let problem = Problem::new(Type::CUDA_R_16BF, None);
    let set = |target: i32| {
        let attribute = lt::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE;
        // SAFETY: the descriptor is alive, and the value has the attribute's size.
        unsafe {
            lt_result::set_matmul_desc_attribute(
                problem.desc,
                attribute,
                (&raw const target).cast(),
                4,
            )
        }
    };
    // cublasLt looks at values when it is asked for an algorithm, and so the emulator does.
    set(14).unwrap();
    assert_eq!(problem.ask().map(drop), Err(15));
    set(-1).unwrap();
    problem.ask().unwrap();
    drop((problem, stream));
    let found = emulator.finish().unwrap();
    assert_eq!(found.iter().map(|finding| finding.class).collect::<Vec<_>>(), [Class::Unsupported]);
}

#[test]
fn the_nth_handle_and_the_nth_heuristic_fail_with_the_chosen_status() {
    let mut config = seeded::config(2);
    config.faults = vec![
        Fault { site: FaultSite::BlasHandle, nth: 2, status: 1 },
        Fault { site: FaultSite::Heuristic, nth: 2, status: 15 },
    ];
    let emulator = Emulator::load(config).unwrap();
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let problem = Problem::new(Type::CUDA_R_16BF, None);
    assert_eq!(lt_result::create_handle().map_err(|e| e.0 as i32), Err(1));
    problem.ask().unwrap();
    assert_eq!(problem.ask().map(drop), Err(15));
    problem.ask().unwrap();
    drop((problem, stream));
    assert_eq!(emulator.finish().unwrap(), []);
}
