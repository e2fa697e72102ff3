//! A whole cudarc program on the emulator: context, memory, NVRTC, launches, events, a graph.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(unsafe_code, reason = "launching a kernel is unsafe")]

mod seeded;

use cuda_emulator::Emulator;
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};

const SAXPY: &str = r#"
extern "C" __global__ void saxpy(float *y, const float *x, float a, unsigned long long n) {
    unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x;
    if (i < n) y[i] = fmaf(a, x[i], y[i]);
}
"#;

#[test]
fn a_program_runs_from_context_to_graph() {
    if !seeded::fetch_nvrtc() {
        return;
    }
    for seed in 0..3 {
        let emulator = Emulator::load(seeded::config(seed)).unwrap();
        run();
        let counters = emulator.counters().unwrap();
        assert_eq!(counters.total.launches, 4);
        assert_eq!(counters.kernels["saxpy"].threads, 4 * 1024);
        assert_eq!(counters.allocations, counters.frees);
        assert_eq!(emulator.finish().unwrap(), []);
    }
}

fn run() {
    let n = 1000_usize;
    let ctx = CudaContext::new(0).unwrap();
    assert!(ctx.name().unwrap().contains("H100"));
    assert_eq!(ctx.compute_capability().unwrap(), (9, 0));
    // A captured stream must not wait for events from before the capture.
    // SAFETY: one stream does all the work, so nothing needs ordering by events.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    let ptx = cudarc::nvrtc::compile_ptx_with_opts(
        SAXPY,
        cudarc::nvrtc::CompileOptions { arch: Some("sm_90"), ..Default::default() },
    )
    .unwrap();
    let module = ctx.load_module(ptx).unwrap();
    let saxpy = module.load_function("saxpy").unwrap();

    let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let x = stream.clone_htod(&x).unwrap();
    let mut y = stream.alloc_zeros::<f32>(n).unwrap();
    let config = LaunchConfig { grid_dim: (4, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
    let (a, count) = (2.0_f32, n as u64);
    let start = stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    // SAFETY: the arguments are those of `saxpy`.
    unsafe { stream.launch_builder(&saxpy).arg(&mut y).arg(&x).arg(&a).arg(&count).launch(config) }
        .unwrap();
    let end = stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    end.synchronize().unwrap();
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
    let got = stream.clone_dtoh(&y).unwrap();
    assert!(got.iter().enumerate().all(|(i, v)| *v == 2.0 * i as f32));

    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    // SAFETY: as above.
    unsafe { stream.launch_builder(&saxpy).arg(&mut y).arg(&x).arg(&a).arg(&count).launch(config) }
        .unwrap();
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    let got = stream.clone_dtoh(&y).unwrap();
    assert!(got.iter().enumerate().all(|(i, v)| *v == 8.0 * i as f32));
}
