//! Graphs: capture over streams, replay, update, cuBLAS inside, faults; and the seeded order.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(unsafe_code, reason = "the driver API below the safe layer is unsafe")]

mod seeded;

use std::{collections::BTreeSet, ffi::c_void, sync::Arc};

use cuda_emulator::{Class, Emulator, Fault, FaultSite, OnFinding};
use cudarc::{
    cublas::{CudaBlas, sys as blas},
    driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg, result, sys},
};

const SOURCE: &str = r#"
extern "C" __global__ void add(float *y, const float *x, const float *scale, unsigned int n) {
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += scale[0] * x[i];
}
"#;
const N: usize = 1000;
const MODE: sys::CUstreamCaptureMode =
    sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

fn start() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let ctx = CudaContext::new(0).unwrap();
    // SAFETY: the programs below order their streams themselves.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    (ctx, stream)
}

fn add(ctx: &Arc<CudaContext>) -> CudaFunction {
    let options = cudarc::nvrtc::CompileOptions { arch: Some("sm_90"), ..Default::default() };
    let ptx = cudarc::nvrtc::compile_ptx_with_opts(SOURCE, options).unwrap();
    ctx.load_module(ptx).unwrap().load_function("add").unwrap()
}

fn config() -> LaunchConfig {
    LaunchConfig { grid_dim: (4, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 }
}

#[test]
fn replay_equals_eager_with_a_scalar_that_changes_between_launches() {
    if !seeded::fetch_nvrtc() {
        return;
    }
    for seed in 0..5 {
        let emulator = Emulator::load(seeded::config(seed)).unwrap();
        let (ctx, stream) = start();
        let add = add(&ctx);
        let x = stream.clone_htod(&[1.0_f32; N]).unwrap();
        let mut scale = stream.alloc_zeros::<f32>(1).unwrap();
        let mut eager = stream.alloc_zeros::<f32>(N).unwrap();
        let mut replayed = stream.alloc_zeros::<f32>(N).unwrap();
        let n = N as u32;
        for step in 0..3 {
            stream.memcpy_htod(&[step as f32 + 0.5], &mut scale).unwrap();
            // SAFETY: the arguments are those of `add`.
            unsafe {
                stream
                    .launch_builder(&add)
                    .arg(&mut eager)
                    .arg(&x)
                    .arg(&scale)
                    .arg(&n)
                    .launch(config())
            }
            .unwrap();
        }
        stream.begin_capture(MODE).unwrap();
        // SAFETY: the arguments are those of `add`.
        unsafe {
            stream
                .launch_builder(&add)
                .arg(&mut replayed)
                .arg(&x)
                .arg(&scale)
                .arg(&n)
                .launch(config())
        }
        .unwrap();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
        for step in 0..3 {
            stream.memcpy_htod(&[step as f32 + 0.5], &mut scale).unwrap();
            graph.launch().unwrap();
        }
        let (eager_bits, replayed_bits) =
            (stream.clone_dtoh(&eager).unwrap(), stream.clone_dtoh(&replayed).unwrap());
        assert_eq!(eager_bits, replayed_bits);
        assert_eq!(eager_bits[N - 1], 4.5);
        let counters = emulator.counters().unwrap();
        assert_eq!(
            (counters.total.launches, counters.launch_calls, counters.graph_launches),
            (6, 4, 3)
        );
        drop((graph, eager, replayed, x, scale, add, stream, ctx));
        assert_eq!(emulator.finish().unwrap(), []);
    }
}

#[test]
fn the_nth_launch_fails_inside_a_graph_too() {
    if !seeded::fetch_nvrtc() {
        return;
    }
    for (nth, status, at_call) in [(2, 701, true), (2, 719, false), (1, 716, false)] {
        let mut settings = seeded::config(1);
        settings.faults = vec![Fault { site: FaultSite::Launch, nth, status }];
        let emulator = Emulator::load(settings).unwrap();
        let (ctx, stream) = start();
        let add = add(&ctx);
        let x = stream.clone_htod(&[1.0_f32; N]).unwrap();
        let mut y = stream.alloc_zeros::<f32>(N).unwrap();
        let n = N as u32;
        stream.begin_capture(MODE).unwrap();
        for _ in 0..2 {
            // SAFETY: the arguments are those of `add`; one scale is enough.
            unsafe {
                stream.launch_builder(&add).arg(&mut y).arg(&x).arg(&x).arg(&n).launch(config())
            }
            .unwrap();
        }
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
        let launched = graph.launch();
        assert_eq!(launched.is_err(), at_call);
        let synchronised = stream.synchronize();
        assert_eq!(synchronised.is_err(), !at_call);
        let error = launched.err().or(synchronised.err()).unwrap();
        assert_eq!(error.0 as i32, status);
        if !at_call {
            // Sticky: every later call returns the first cause.
            assert_eq!(stream.clone_dtoh(&y).unwrap_err().0 as i32, status);
        }
        drop((graph, x, y, add, stream, ctx));
        assert_eq!(emulator.findings().unwrap(), []);
    }
}

#[test]
fn an_executable_graph_takes_the_parameters_of_another() {
    let emulator = Emulator::load(seeded::config(2)).unwrap();
    let (ctx, stream) = start();
    ctx.bind_to_thread().unwrap();
    let s = stream.cu_stream();
    // SAFETY: sizes agree; every handle is live until it is destroyed, once.
    unsafe {
        let buffer = result::malloc_sync(4096).unwrap();
        let capture = |value: u8, parts: u64| {
            result::stream::begin_capture(s, MODE).unwrap();
            for part in 0..parts {
                let bytes = 4096 / parts;
                result::memset_d8_async(buffer + part * bytes, value, bytes as usize, s).unwrap();
            }
            result::stream::end_capture(s).unwrap()
        };
        let (first, second, longer) = (capture(1, 2), capture(2, 2), capture(3, 4));
        let exec = result::graph::instantiate(first, sys::CUgraphInstantiate_flags(0)).unwrap();
        let read = || {
            result::graph::launch(exec, s).unwrap();
            let mut host = vec![0_u8; 4096];
            result::memcpy_dtoh_async(&mut host, buffer, s).unwrap();
            host
        };
        assert_eq!(read(), [1; 4096]);
        let mut info = std::mem::zeroed();
        assert_eq!(sys::cuGraphExecUpdate_v2(exec, second, &raw mut info) as i32, 0);
        assert_eq!(read(), [2; 4096]);
        assert_eq!(sys::cuGraphExecUpdate_v2(exec, longer, &raw mut info) as i32, 910);
        assert_eq!(
            info.result,
            sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED
        );
        assert_eq!(read(), [2; 4096]);
        for graph in [first, second, longer] {
            result::graph::destroy(graph).unwrap();
        }
        result::graph::exec_destroy(exec).unwrap();
        result::ctx::synchronize().unwrap();
        result::free_sync(buffer).unwrap();
    }
    drop((stream, ctx));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn products_and_copies_are_captured_with_branches() {
    for seed in seeded::SEEDS {
        let emulator = Emulator::load(seeded::config(seed)).unwrap();
        let (ctx, stream) = start();
        let side = ctx.new_stream().unwrap();
        let handle = CudaBlas::new(stream.clone()).unwrap();
        let a = stream.clone_htod(&[1.0_f32; 64 * 64]).unwrap();
        let mut b = stream.alloc_zeros::<f32>(64 * 64).unwrap();
        let mut c = stream.alloc_zeros::<f32>(64 * 64).unwrap();
        let (alpha, beta) = (1.0_f32, 0.0_f32);
        stream.begin_capture(MODE).unwrap();
        // The side stream prepares B while the main stream clears C.
        side.join(&stream).unwrap();
        side.memcpy_dtod(&a, &mut b).unwrap();
        stream.memset_zeros(&mut c).unwrap();
        stream.join(&side).unwrap();
        {
            use cudarc::driver::{DevicePtr as _, DevicePtrMut as _};
            let ((a, _ra), (b, _rb)) = (a.device_ptr(&stream), b.device_ptr(&stream));
            let (c, _rc) = c.device_ptr_mut(&stream);
            let f32_type = blas::cudaDataType_t::CUDA_R_32F;
            // SAFETY: three matrices of 64 × 64.
            unsafe {
                blas::cublasGemmEx(
                    *handle.handle(),
                    blas::cublasOperation_t::CUBLAS_OP_N,
                    blas::cublasOperation_t::CUBLAS_OP_N,
                    64,
                    64,
                    64,
                    (&raw const alpha).cast(),
                    a as *const c_void,
                    f32_type,
                    64,
                    b as *const c_void,
                    f32_type,
                    64,
                    (&raw const beta).cast(),
                    c as *mut c_void,
                    f32_type,
                    64,
                    blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
                .result()
                .unwrap();
            }
        }
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
        assert_eq!(emulator.counters().unwrap().gemms, 0);
        graph.launch().unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&c).unwrap(), [64.0; 64 * 64]);
        assert_eq!(emulator.counters().unwrap().gemm_flops, 2 * 2 * 64 * 64 * 64);
        drop((graph, handle, a, b, c, side, stream, ctx));
        assert_eq!(emulator.finish().unwrap(), []);
    }
}

#[test]
fn seeds_permute_independent_work_and_repeat_it() {
    let outcome = |seed: u64| {
        let mut settings = seeded::config(seed);
        settings.on_finding = OnFinding::Record;
        let emulator = Emulator::load(settings).unwrap();
        let (ctx, first) = start();
        let second = ctx.new_stream().unwrap();
        let third = ctx.new_stream().unwrap();
        // SAFETY: sizes agree; that nothing orders the streams is the point.
        let order = unsafe {
            let buffer = result::malloc_sync(1024).unwrap();
            for (value, stream) in [(1, &first), (2, &second), (3, &third)] {
                result::memset_d8_async(buffer, value, 1024, stream.cu_stream()).unwrap();
            }
            ctx.synchronize().unwrap();
            let mut host = vec![0_u8; 1024];
            result::memcpy_dtoh_sync(&mut host, buffer).unwrap();
            result::free_sync(buffer).unwrap();
            host[17]
        };
        drop((first, second, third, ctx));
        let races = emulator.finish().unwrap();
        assert!(!races.is_empty() && races.iter().all(|found| found.class == Class::Race));
        order
    };
    let last: Vec<u8> = seeded::SEEDS.map(outcome).collect();
    assert_eq!(last, seeded::SEEDS.map(outcome).collect::<Vec<_>>());
    assert_eq!(last.iter().collect::<BTreeSet<_>>().len(), 3, "{last:?}");
}
