//! What emulation costs: launches, modules, products, shown by `--nocapture`. Nothing is asserted about time.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(unsafe_code, reason = "launches and the driver API below the safe layer are unsafe")]

mod seeded;

use std::{ffi::c_void, sync::Arc, time::Instant};

use cuda_emulator::Emulator;
use cudarc::{
    cublas::{CudaBlas, sys as blas},
    driver::{CudaContext, CudaFunction, CudaStream, LaunchConfig, PushKernelArg, result},
};

const SOURCE: &str = r#"
extern "C" __global__ void add(float *y, const float *x, const float *scale, unsigned int n) {
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += scale[0] * x[i];
}
"#;

fn start() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let ctx = CudaContext::new(0).unwrap();
    // SAFETY: one stream does everything.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    (ctx, stream)
}

fn ptx() -> cudarc::nvrtc::Ptx {
    let options = cudarc::nvrtc::CompileOptions { arch: Some("sm_90"), ..Default::default() };
    cudarc::nvrtc::compile_ptx_with_opts(SOURCE, options).unwrap()
}

fn function(ctx: &Arc<CudaContext>) -> CudaFunction {
    ctx.load_module(ptx()).unwrap().load_function("add").unwrap()
}

fn shape(n: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (n.div_ceil(256) as u32, 1, 1),
        block_dim: (256, 1, 1),
        shared_mem_bytes: 0,
    }
}

#[test]
fn a_launch_over_a_million_elements() {
    if !seeded::fetch_nvrtc() {
        return;
    }
    let emulator = Emulator::load(seeded::config(0)).unwrap();
    let (ctx, stream) = start();
    let add = function(&ctx);
    let count = 1_usize << 20;
    let x = stream.clone_htod(&vec![1.0_f32; count]).unwrap();
    let mut y = stream.alloc_zeros::<f32>(count).unwrap();
    stream.synchronize().unwrap();
    let n = count as u32;
    let begin = Instant::now();
    // SAFETY: the arguments are those of `add`; one scale is enough.
    unsafe { stream.launch_builder(&add).arg(&mut y).arg(&x).arg(&x).arg(&n).launch(shape(count)) }
        .unwrap();
    stream.synchronize().unwrap();
    let took = begin.elapsed();
    let counters = emulator.counters().unwrap().total;
    eprintln!(
        "1 Mi elements: {took:?}, {:.0} M thread-instructions/s",
        counters.instructions as f64 / took.as_secs_f64() / 1e6
    );
    assert_eq!(counters.global_store_sectors, count as u64 * 4 / 32);
    drop((x, y, add, stream, ctx));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn many_small_launches_in_a_program_with_much_memory() {
    if !seeded::fetch_nvrtc() {
        return;
    }
    let emulator = Emulator::load(seeded::config(1)).unwrap();
    let (ctx, stream) = start();
    let add = function(&ctx);
    // A model's worth of allocations, one of them large and used in part.
    let weights: Vec<_> = (0..200).map(|_| stream.alloc_zeros::<f32>(4096).unwrap()).collect();
    let mut arena = stream.alloc_zeros::<f32>(16 << 20).unwrap();
    let x = stream.clone_htod(&[1.0_f32; 300]).unwrap();
    stream.synchronize().unwrap();
    let n = 300_u32;
    for per_wait in [1, 100] {
        let begin = Instant::now();
        for _ in 0..1000 / per_wait {
            for _ in 0..per_wait {
                // SAFETY: the arguments are those of `add`; one scale is enough.
                unsafe {
                    stream
                        .launch_builder(&add)
                        .arg(&mut arena)
                        .arg(&x)
                        .arg(&x)
                        .arg(&n)
                        .launch(shape(300))
                }
                .unwrap();
            }
            stream.synchronize().unwrap();
        }
        let each = begin.elapsed() / 1000;
        eprintln!("a launch of 300 threads, waited for every {per_wait}: {each:?}");
    }
    drop((weights, arena, x, add, stream, ctx));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn a_module_loaded_again() {
    if !seeded::fetch_nvrtc() {
        return;
    }
    // Loading brings NVRTC in.
    drop(Emulator::load(seeded::config(0)).unwrap());
    let image = ptx();
    let mut took = Vec::new();
    for seed in 0..10 {
        let begin = Instant::now();
        let emulator = Emulator::load(seeded::config(seed)).unwrap();
        let (ctx, stream) = start();
        drop(ctx.load_module(image.clone()).unwrap().load_function("add").unwrap());
        drop((stream, ctx));
        assert_eq!(emulator.finish().unwrap(), []);
        took.push(begin.elapsed());
    }
    let again = took[1..].iter().max().unwrap();
    eprintln!("emulator, context and module: first {:?}, then at most {again:?}", took[0]);
}

#[test]
fn a_product_of_512() {
    let emulator = Emulator::load(seeded::config(0)).unwrap();
    let (ctx, stream) = start();
    let handle = CudaBlas::new(stream.clone()).unwrap();
    let values: Vec<half::bf16> =
        (0..512 * 512).map(|i| half::bf16::from_f32((i % 251) as f32 / 97.0 - 1.3)).collect();
    let a = stream.clone_htod(&values).unwrap();
    let c = stream.alloc_zeros::<half::bf16>(512 * 512).unwrap();
    stream.synchronize().unwrap();
    let (alpha, beta) = (1.0_f32, 0.0_f32);
    let bf16 = blas::cudaDataType_t::CUDA_R_16BF;
    use cudarc::driver::DevicePtr as _;
    let (at_a, at_c) = (a.device_ptr(&stream).0, c.device_ptr(&stream).0);
    for _ in 0..3 {
        let begin = Instant::now();
        // SAFETY: both buffers hold a 512 × 512 matrix.
        unsafe {
            blas::cublasGemmEx(
                *handle.handle(),
                blas::cublasOperation_t::CUBLAS_OP_N,
                blas::cublasOperation_t::CUBLAS_OP_T,
                512,
                512,
                512,
                (&raw const alpha).cast(),
                at_a as *const c_void,
                bf16,
                512,
                at_a as *const c_void,
                bf16,
                512,
                (&raw const beta).cast(),
                at_c as *mut c_void,
                bf16,
                512,
                blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
            .result()
            .unwrap();
            result::stream::synchronize(stream.cu_stream()).unwrap();
        }
        let took = begin.elapsed();
        eprintln!("512 x 512 x 512 bf16 product: {took:?}");
    }
    drop((a, c, handle, stream, ctx));
    assert_eq!(emulator.finish().unwrap(), []);
}
