//! What an optimizer's step asks of the driver, in one program: kernels and cuBLAS products over two
//! streams, scalars in device memory, staged gradients, a workspace of its own, captured once and
//! replayed; and the counters and faults by which its tests judge it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(
    unsafe_code,
    reason = "launches, cuBLAS and the driver API below the safe layer are unsafe"
)]

mod seeded;

use std::{
    ffi::c_void,
    sync::{Arc, OnceLock},
};

use cuda_emulator::{Emulator, Fault, FaultSite};
use cudarc::{
    cublas::{CudaBlas, sys as blas},
    driver::{
        CudaContext, CudaEvent, CudaFunction, CudaSlice, CudaStream, DevicePtr as _, LaunchConfig,
        PinnedHostSlice, PushKernelArg, result, sys,
    },
};
use half::bf16;

const SOURCE: &str = r#"
#include <cuda_bf16.h>
extern "C" __global__ void blend(float *m, const float *g, __nv_bfloat16 *x, float beta, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { m[i] = beta * m[i] + (1 - beta) * g[i]; x[i] = __float2bfloat16(m[i]); }
}
extern "C" __global__ void apply(float *w, const __nv_bfloat16 *u, const float *lr, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) w[i] -= lr[0] * __bfloat162float(u[i]);
}
"#;
const SIDE: usize = 48;
const BATCH: usize = 3;
const N: usize = SIDE * SIDE * BATCH;
const MODE: sys::CUstreamCaptureMode =
    sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

fn compile() -> cudarc::nvrtc::Ptx {
    static PTX: OnceLock<cudarc::nvrtc::Ptx> = OnceLock::new();
    PTX.get_or_init(compile_once).clone()
}

fn compile_once() -> cudarc::nvrtc::Ptx {
    let library = cuda_emulator::fetch_nvrtc().unwrap().cuda_13;
    let options = cudarc::nvrtc::CompileOptions {
        arch: Some("sm_90"),
        include_paths: vec![format!("{}/../include", library.display())],
        ..Default::default()
    };
    cudarc::nvrtc::compile_ptx_with_opts(SOURCE, options).unwrap()
}

/// One parameter batch and everything a step of it needs.
struct Program {
    main: Arc<CudaStream>,
    side: Arc<CudaStream>,
    fork: CudaEvent,
    join: CudaEvent,
    blas: CudaBlas,
    blend: CudaFunction,
    apply: CudaFunction,
    staged: PinnedHostSlice<f32>,
    grad: CudaSlice<f32>,
    momentum: CudaSlice<f32>,
    iterate: CudaSlice<bf16>,
    gram: CudaSlice<bf16>,
    update: CudaSlice<bf16>,
    weights: CudaSlice<f32>,
    /// lr, then alpha and beta of the products.
    scalars: CudaSlice<f32>,
    _workspace: CudaSlice<u8>,
}

impl Program {
    fn new() -> Self {
        let ctx = CudaContext::new(0).unwrap();
        // SAFETY: events below order the two streams.
        unsafe { ctx.disable_event_tracking() };
        let (main, side) = (ctx.new_stream().unwrap(), ctx.new_stream().unwrap());
        let module = ctx.load_module(compile()).unwrap();
        let blas = CudaBlas::new(main.clone()).unwrap();
        let workspace = main.alloc_zeros::<u8>(1 << 16).unwrap();
        let mode = blas::cublasPointerMode_t::CUBLAS_POINTER_MODE_DEVICE;
        // SAFETY: the workspace outlives the handle's use of it.
        unsafe {
            let address = workspace.device_ptr(&main).0;
            let handle = *blas.handle();
            blas::cublasSetPointerMode_v2(handle, mode).result().unwrap();
            blas::cublasSetWorkspace_v2(handle, address as *mut c_void, 1 << 16).result().unwrap();
            let mut found = blas::cublasPointerMode_t::CUBLAS_POINTER_MODE_HOST;
            blas::cublasGetPointerMode_v2(handle, &raw mut found).result().unwrap();
            assert_eq!(found, mode);
        }
        let event = || ctx.new_event(None).unwrap();
        Self {
            fork: event(),
            join: event(),
            blend: module.load_function("blend").unwrap(),
            apply: module.load_function("apply").unwrap(),
            // SAFETY: written before every use.
            staged: unsafe { ctx.alloc_pinned::<f32>(N) }.unwrap(),
            grad: main.alloc_zeros(N).unwrap(),
            momentum: main.alloc_zeros(N).unwrap(),
            iterate: main.alloc_zeros(N).unwrap(),
            gram: main.alloc_zeros(N).unwrap(),
            update: main.alloc_zeros(N).unwrap(),
            weights: main.clone_htod(&vec![1.0; N]).unwrap(),
            scalars: main.alloc_zeros(3).unwrap(),
            _workspace: workspace,
            blas,
            main,
            side,
        }
    }

    /// New gradients and learning rate, before a step.
    fn feed(&mut self, step: usize) {
        self.main.synchronize().unwrap();
        for (i, value) in self.staged.as_mut_slice().unwrap().iter_mut().enumerate() {
            *value = ((i * 7 + step * 13) % 31) as f32 / 64.0 - 0.2;
        }
        let scalars = [0.125 / (step + 1) as f32, 0.5, 0.25];
        self.main.memcpy_htod(&scalars, &mut self.scalars).unwrap();
    }

    /// The gram of every matrix, and the update `0.5·gram·x + 0.25·x`-like from it.
    fn product(&self, a: u64, b: u64, c: u64, trans: bool) -> Result<(), i32> {
        let kind = blas::cudaDataType_t::CUDA_R_16BF;
        let op = if trans {
            blas::cublasOperation_t::CUBLAS_OP_T
        } else {
            blas::cublasOperation_t::CUBLAS_OP_N
        };
        let (side, stride) = (SIDE as i32, (SIDE * SIDE) as i64);
        let scalars = self.scalars.device_ptr(&self.main).0;
        // SAFETY: every buffer holds BATCH matrices of SIDE × SIDE; the scalars are two floats.
        let status = unsafe {
            blas::cublasGemmStridedBatchedEx(
                *self.blas.handle(),
                op,
                blas::cublasOperation_t::CUBLAS_OP_N,
                side,
                side,
                side,
                (scalars + 4) as *const c_void,
                a as *const c_void,
                kind,
                side,
                stride,
                b as *const c_void,
                kind,
                side,
                stride,
                (scalars + 8) as *const c_void,
                c as *mut c_void,
                kind,
                side,
                stride,
                BATCH as i32,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        if status as i32 == 0 { Ok(()) } else { Err(status as i32) }
    }

    fn enqueue(&mut self) -> Result<(), i32> {
        let shape = LaunchConfig {
            grid_dim: (N.div_ceil(256) as u32, 1, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: 0,
        };
        let (beta, n) = (0.9_f32, N as u32);
        // The side stream clears the update while the main stream takes the gradients in.
        self.fork.record(&self.main).unwrap();
        self.side.wait(&self.fork).unwrap();
        self.side.memset_zeros(&mut self.update).unwrap();
        self.side.memset_zeros(&mut self.gram).unwrap();
        self.join.record(&self.side).unwrap();
        self.main.memcpy_htod(&self.staged, &mut self.grad).unwrap();
        let mut launch = self.main.launch_builder(&self.blend);
        launch.arg(&mut self.momentum).arg(&self.grad).arg(&mut self.iterate).arg(&beta).arg(&n);
        // SAFETY: the arguments are those of `blend`.
        unsafe { launch.launch(shape) }.unwrap();
        self.main.wait(&self.join).unwrap();
        let at = |slice: &CudaSlice<bf16>| slice.device_ptr(&self.main).0;
        let (x, gram, update) = (at(&self.iterate), at(&self.gram), at(&self.update));
        self.product(x, x, gram, true)?;
        self.product(x, gram, update, false)?;
        let mut launch = self.main.launch_builder(&self.apply);
        launch.arg(&mut self.weights).arg(&self.update).arg(&self.scalars).arg(&n);
        // SAFETY: the arguments are those of `apply`.
        unsafe { launch.launch(shape) }.unwrap();
        Ok(())
    }

    fn weights(&self) -> Vec<u32> {
        self.main.clone_dtoh(&self.weights).unwrap().iter().map(|w| w.to_bits()).collect()
    }
}

fn load(seed: u64) -> Option<Emulator> {
    seeded::fetch_nvrtc().then(|| Emulator::load(seeded::config(seed)).unwrap())
}

#[test]
fn a_captured_step_replays_to_the_bits_of_eager_steps_under_every_seed() {
    let mut expected = None;
    for seed in seeded::SEEDS {
        let Some(emulator) = load(seed) else { return };
        let mut eager = Program::new();
        for step in 0..3 {
            eager.feed(step);
            eager.enqueue().unwrap();
        }
        let weights = eager.weights();
        assert_eq!(*expected.get_or_insert_with(|| weights.clone()), weights, "seed {seed}");
        assert_ne!(weights[0], 1.0_f32.to_bits());
        drop(eager);
        assert_eq!(emulator.finish().unwrap(), []);
        drop(emulator);

        let Some(emulator) = load(seed) else { return };
        let mut graphed = Program::new();
        graphed.main.synchronize().unwrap();
        let stream = graphed.main.clone();
        stream.begin_capture(MODE).unwrap();
        graphed.enqueue().unwrap();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
        emulator.reset_counters().unwrap();
        for step in 0..3 {
            graphed.feed(step);
            graph.launch().unwrap();
        }
        assert_eq!(graphed.weights(), weights, "seed {seed}");
        let counters = emulator.counters().unwrap();
        assert_eq!((counters.allocations, counters.frees), (0, 0), "steps allocate nothing");
        assert_eq!((counters.blas_calls, counters.gemms), (6, 6 * BATCH as u64));
        assert_eq!(counters.gemm_flops, 6 * BATCH as u64 * 2 * (SIDE as u64).pow(3));
        let blend = counters.kernels["blend"];
        // Three launches read m and g and write m, 4 bytes each, and write x, 2 bytes.
        assert_eq!((blend.launches, blend.threads), (3, 3 * N as u64));
        assert_eq!(blend.global_load_bytes, 3 * 8 * N as u64);
        assert_eq!(blend.global_store_bytes, 3 * 6 * N as u64);
        assert_eq!(blend.global_load_sectors, 3 * 8 * N as u64 / 32);
        assert_eq!(blend.global_store_sectors, 3 * 6 * N as u64 / 32);
        let apply = counters.kernels["apply"];
        // One sector of the learning rate for every warp.
        assert_eq!(apply.global_load_sectors, 3 * (6 * N as u64 / 32 + N as u64 / 32));
        drop((graph, graphed, stream));
        assert_eq!(emulator.finish().unwrap(), []);
    }
}

#[test]
fn an_executable_graph_takes_new_kernel_arguments() {
    let Some(emulator) = load(3) else { return };
    let mut program = Program::new();
    let mut other = program.main.clone_htod(&vec![5.0_f32; N]).unwrap();
    program.feed(0);
    program.main.synchronize().unwrap();
    let main = program.main.clone();
    let stream = main.cu_stream();
    let capture = |program: &mut Program| {
        main.begin_capture(MODE).unwrap();
        program.enqueue().unwrap();
        // SAFETY: the stream is capturing; the graph is destroyed below.
        unsafe { result::stream::end_capture(stream) }.unwrap()
    };
    let first = capture(&mut program);
    std::mem::swap(&mut program.weights, &mut other);
    let second = capture(&mut program);
    // SAFETY: handles are live until they are destroyed, once.
    unsafe {
        let exec = result::graph::instantiate(first, sys::CUgraphInstantiate_flags(0)).unwrap();
        result::graph::launch(exec, stream).unwrap();
        assert_eq!(program.weights(), vec![5.0_f32.to_bits(); N], "not in the first graph");
        let mut info = std::mem::zeroed();
        assert_eq!(sys::cuGraphExecUpdate_v2(exec, second, &raw mut info) as i32, 0);
        result::graph::launch(exec, stream).unwrap();
        assert_ne!(program.weights(), vec![5.0_f32.to_bits(); N]);
        for graph in [first, second] {
            result::graph::destroy(graph).unwrap();
        }
        result::graph::exec_destroy(exec).unwrap();
    }
    drop((other, program, main));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn the_nth_product_copy_or_launch_of_a_step_fails() {
    if !seeded::fetch_nvrtc() {
        return;
    }
    // Copies count memsets: eight before the step, two in it, then the gradients.
    for (site, nth, status) in
        [(FaultSite::Blas, 2, 13), (FaultSite::Launch, 2, 719), (FaultSite::Copy, 11, 700)]
    {
        let mut config = seeded::config(1);
        config.faults = vec![Fault { site, nth, status }];
        let emulator = Emulator::load(config).unwrap();
        let mut program = Program::new();
        program.main.synchronize().unwrap();
        let enqueued = program.enqueue();
        let waited = program.main.synchronize();
        match site {
            FaultSite::Blas => {
                assert_eq!((enqueued, waited.is_ok()), (Err(13), true));
                assert_eq!(emulator.counters().unwrap().gemms, BATCH as u64);
            }
            _ => {
                assert_eq!(enqueued, Ok(()));
                assert_eq!(waited.unwrap_err().0 as i32, status);
            }
        }
        drop(program);
        assert_eq!(emulator.findings().unwrap(), []);
    }
}

#[test]
fn a_function_tells_its_resources() {
    let Some(emulator) = load(0) else { return };
    let program = Program::new();
    let blend = &program.blend;
    // Registers are PTX's, an upper bound that a device's compiler stays below.
    assert!((16..=255).contains(&blend.num_regs().unwrap()));
    assert_eq!(blend.local_size_bytes().unwrap(), 0);
    assert_eq!(blend.shared_size_bytes().unwrap(), 0);
    assert_eq!(blend.max_threads_per_block().unwrap(), 1024);
    assert_eq!(blend.binary_version().unwrap(), 90);
    let blocks = blend.occupancy_max_active_blocks_per_multiprocessor(256, 0, None).unwrap();
    assert!((1..=8).contains(&blocks), "{blocks}");
    drop(program);
    assert_eq!(emulator.finish().unwrap(), []);
}
