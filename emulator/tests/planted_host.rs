//! Host programs with one planted bug each, and beside each its repaired twin.
//!
//! A bug must be found under every seed listed for it, or under some seed where it depends on the
//! order of independent work; its twin must be free of findings and give the same bits under 20
//! seeds. Sizes are above one warp and one block.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(unsafe_code, reason = "the bugs are planted below cudarc's safe layer")]

mod seeded;

use cuda_emulator::Class;
use cudarc::{
    cublas::{CudaBlas, sys as blas},
    driver::{CudaContext, result, sys},
};
use seeded::{SEEDS, Twin, check, context, free, read_back};
use std::ffi::c_void;

const N: usize = 3000;

fn stream(ctx: &CudaContext) -> sys::CUstream {
    ctx.bind_to_thread().unwrap();
    result::stream::create(result::stream::StreamKind::NonBlocking).unwrap()
}

fn destroy(streams: &[sys::CUstream]) {
    for stream in streams {
        // SAFETY: made by `stream` above and destroyed once.
        unsafe { result::stream::destroy(*stream) }.unwrap();
    }
}

/// A device buffer of N floats, all written.
fn filled(value: u8) -> sys::CUdeviceptr {
    // SAFETY: a fresh allocation, filled to its size.
    unsafe {
        let buffer = result::malloc_sync(4 * N).unwrap();
        result::memset_d8_sync(buffer, value, 4 * N).unwrap();
        result::ctx::synchronize().unwrap();
        buffer
    }
}

/// Bytes of pinned host memory.
fn pinned(value: u8) -> &'static mut [u8] {
    // SAFETY: a fresh allocation of this size; every program gives it back with `unpin`.
    unsafe {
        let memory = result::malloc_host(4 * N, 0).unwrap();
        let slice = std::slice::from_raw_parts_mut(memory.cast::<u8>(), 4 * N);
        slice.fill(value);
        slice
    }
}

fn unpin(memory: &mut [u8]) {
    // SAFETY: made by `pinned`; no program touches it afterwards.
    unsafe { result::free_host(memory.as_mut_ptr().cast::<c_void>()) }.unwrap();
}

fn event() -> sys::CUevent {
    result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).unwrap()
}

#[test]
fn pinned_buffer_dropped_before_its_copy_ran() {
    check(&[Class::HostMemory], |twin| {
        let ctx = context();
        let s = stream(&ctx);
        let buffer = filled(0);
        let host = pinned(7);
        // SAFETY: sizes agree; in the buggy program the source dies before the copy runs.
        unsafe { result::memcpy_htod_async(buffer, host, s) }.unwrap();
        if twin == Twin::Fixed {
            // SAFETY: a live stream.
            unsafe { result::stream::synchronize(s) }.unwrap();
        }
        unpin(host);
        let got = read_back(buffer, 4 * N);
        free(&[buffer]);
        destroy(&[s]);
        got
    });
}

#[test]
fn pinned_source_overwritten_while_the_copy_is_queued() {
    check(&[Class::HostMemory], |twin| {
        let ctx = context();
        let s = stream(&ctx);
        let buffer = filled(0);
        let host = pinned(7);
        // SAFETY: sizes agree.
        unsafe { result::memcpy_htod_async(buffer, host, s) }.unwrap();
        if twin == Twin::Fixed {
            // SAFETY: a live stream.
            unsafe { result::stream::synchronize(s) }.unwrap();
        }
        host.fill(9);
        // SAFETY: a live stream.
        unsafe { result::stream::synchronize(s) }.unwrap();
        let got = read_back(buffer, 4 * N);
        unpin(host);
        free(&[buffer]);
        destroy(&[s]);
        got
    });
}

#[test]
fn pinned_destination_read_before_the_copy_ran() {
    // Not a finding of the emulator: the host's own loads cannot be seen. What it reads is
    // scrambled, so the program's own check fails, under every seed.
    for seed in SEEDS {
        let wrong = seeded::run(seed, || {
            let ctx = context();
            let s = stream(&ctx);
            let buffer = filled(7);
            let host = pinned(7);
            // SAFETY: sizes agree.
            unsafe { result::memcpy_dtoh_async(host, buffer, s) }.unwrap();
            let early = host.to_vec();
            // SAFETY: a live stream.
            unsafe { result::stream::synchronize(s) }.unwrap();
            let late = host.to_vec();
            unpin(host);
            free(&[buffer]);
            destroy(&[s]);
            assert!(late.iter().all(|byte| *byte == 7));
            early
        });
        assert_eq!(wrong.findings, [], "seed {seed}");
        assert!(wrong.output.iter().all(|byte| *byte == 0xFF), "seed {seed}");
    }
}

#[test]
fn missing_stream_wait_between_two_streams() {
    check(&[Class::Race], |twin| {
        let ctx = context();
        let (a, b) = (stream(&ctx), stream(&ctx));
        let buffer = filled(0);
        let copy = filled(0);
        let done = event();
        // SAFETY: sizes agree; all handles are live.
        unsafe {
            result::memset_d8_async(buffer, 5, 4 * N, a).unwrap();
            result::event::record(done, a).unwrap();
            if twin == Twin::Fixed {
                result::stream::wait_event(b, done, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
                    .unwrap();
            }
            result::memcpy_dtod_async(copy, buffer, 4 * N, b).unwrap();
            result::stream::synchronize(b).unwrap();
            result::stream::synchronize(a).unwrap();
            result::event::destroy(done).unwrap();
        }
        let got = read_back(copy, 4 * N);
        free(&[buffer, copy]);
        destroy(&[a, b]);
        got
    });
}

#[test]
fn event_recorded_before_the_work_it_stands_for() {
    check(&[Class::Race], |twin| {
        let ctx = context();
        let (a, b) = (stream(&ctx), stream(&ctx));
        let buffer = filled(0);
        let copy = filled(0);
        let done = event();
        // SAFETY: sizes agree; all handles are live.
        unsafe {
            if twin == Twin::Buggy {
                result::event::record(done, a).unwrap();
            }
            result::memset_d8_async(buffer, 5, 4 * N, a).unwrap();
            if twin == Twin::Fixed {
                result::event::record(done, a).unwrap();
            }
            result::stream::wait_event(b, done, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
                .unwrap();
            result::memcpy_dtod_async(copy, buffer, 4 * N, b).unwrap();
            result::stream::synchronize(b).unwrap();
            result::stream::synchronize(a).unwrap();
            result::event::destroy(done).unwrap();
        }
        let got = read_back(copy, 4 * N);
        free(&[buffer, copy]);
        destroy(&[a, b]);
        got
    });
}

#[test]
fn the_wrong_stream_is_synchronised_before_reading_back() {
    check(&[Class::Race], |twin| {
        let ctx = context();
        let (a, b) = (stream(&ctx), stream(&ctx));
        let buffer = filled(0);
        // SAFETY: sizes agree; all handles are live.
        let got = unsafe {
            result::memset_d8_async(buffer, 5, 4 * N, a).unwrap();
            result::stream::synchronize(if twin == Twin::Fixed { a } else { b }).unwrap();
            let mut host = vec![0_u8; 4 * N];
            result::memcpy_dtoh_async(&mut host, buffer, b).unwrap();
            host
        };
        free(&[buffer]);
        destroy(&[a, b]);
        got
    });
}

#[test]
fn two_streams_write_overlapping_halves() {
    check(&[Class::Race], |twin| {
        let ctx = context();
        let (a, b) = (stream(&ctx), stream(&ctx));
        let buffer = filled(0);
        let half = 2 * N;
        // One byte too many: the halves meet.
        let first = half + usize::from(twin == Twin::Buggy);
        // SAFETY: both ranges lie in the buffer.
        unsafe {
            result::memset_d8_async(buffer, 1, first, a).unwrap();
            result::memset_d8_async(buffer + half as u64, 2, half, b).unwrap();
        }
        result::ctx::synchronize().unwrap();
        let got = read_back(buffer, 4 * N);
        free(&[buffer]);
        destroy(&[a, b]);
        got
    });
}

#[test]
fn memory_freed_while_another_stream_uses_it() {
    check(&[Class::UseAfterFree], |twin| {
        let ctx = context();
        let (a, b) = (stream(&ctx), stream(&ctx));
        let copy = filled(0);
        let done = event();
        // SAFETY: sizes agree; all handles are live; the order is what the test is about.
        unsafe {
            let buffer = result::malloc_async(a, 4 * N).unwrap();
            result::memset_d8_async(buffer, 5, 4 * N, a).unwrap();
            result::event::record(done, a).unwrap();
            result::stream::wait_event(b, done, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
                .unwrap();
            result::memcpy_dtod_async(copy, buffer, 4 * N, b).unwrap();
            if twin == Twin::Fixed {
                result::event::record(done, b).unwrap();
                result::stream::wait_event(a, done, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
                    .unwrap();
            }
            result::free_async(buffer, a).unwrap();
            result::stream::synchronize(a).unwrap();
            result::stream::synchronize(b).unwrap();
            result::event::destroy(done).unwrap();
        }
        let got = read_back(copy, 4 * N);
        free(&[copy]);
        destroy(&[a, b]);
        got
    });
}

#[test]
fn stream_ordered_memory_used_before_its_allocation() {
    check(&[Class::Race], |twin| {
        let ctx = context();
        let (a, b) = (stream(&ctx), stream(&ctx));
        let ready = event();
        // SAFETY: sizes agree; all handles are live; the order is what the test is about.
        let got = unsafe {
            let buffer = result::malloc_async(a, 4 * N).unwrap();
            result::event::record(ready, a).unwrap();
            if twin == Twin::Fixed {
                result::stream::wait_event(
                    b,
                    ready,
                    sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT,
                )
                .unwrap();
            }
            result::memset_d8_async(buffer, 5, 4 * N, b).unwrap();
            result::ctx::synchronize().unwrap();
            let got = read_back(buffer, 4 * N);
            result::free_async(buffer, a).unwrap();
            result::event::destroy(ready).unwrap();
            got
        };
        result::ctx::synchronize().unwrap();
        destroy(&[a, b]);
        got
    });
}

#[test]
fn plain_free_while_work_is_queued() {
    check(&[Class::UseAfterFree], |twin| {
        let ctx = context();
        let s = stream(&ctx);
        let (buffer, copy) = (filled(3), filled(0));
        // SAFETY: sizes agree; all handles are live; the order is what the test is about.
        unsafe {
            result::memcpy_dtod_async(copy, buffer, 4 * N, s).unwrap();
            if twin == Twin::Fixed {
                result::stream::synchronize(s).unwrap();
            }
            result::free_sync(buffer).unwrap();
        }
        let got = read_back(copy, 4 * N);
        free(&[copy]);
        destroy(&[s]);
        got
    });
}

#[test]
fn double_free() {
    check(&[Class::DoubleFree], |twin| {
        let _ctx = context();
        let (a, b) = (filled(1), filled(2));
        let got = read_back(b, 4 * N);
        free(&[a, if twin == Twin::Fixed { b } else { a }]);
        got
    });
}

#[test]
fn free_of_an_address_inside_an_allocation() {
    check(&[Class::InvalidFree], |twin| {
        let _ctx = context();
        let a = filled(1);
        let got = read_back(a, 4 * N);
        free(&[if twin == Twin::Fixed { a } else { a + 256 }]);
        got
    });
}

#[test]
fn leaked_device_and_host_memory() {
    check(&[Class::Leak, Class::Leak], |twin| {
        let _ctx = context();
        let a = filled(1);
        let host = pinned(4);
        let got = read_back(a, 4 * N);
        if twin == Twin::Fixed {
            free(&[a]);
            unpin(host);
        }
        got
    });
}

#[test]
fn leaked_cublas_handle() {
    check(&[Class::Leak], |twin| {
        let _ctx = context();
        let handle = cudarc::cublas::result::create_handle().unwrap();
        if twin == Twin::Fixed {
            // SAFETY: made above, destroyed once.
            unsafe { cudarc::cublas::result::destroy_handle(handle) }.unwrap();
        }
        Vec::new()
    });
}

#[test]
fn leaked_cublaslt_handle_and_layout() {
    use cudarc::cublaslt::{result as lt, sys};
    check(&[Class::Leak, Class::Leak], |twin| {
        let _ctx = context();
        let handle = lt::create_handle().unwrap();
        let layout = lt::create_matrix_layout(sys::cudaDataType_t::CUDA_R_32F, 4, 4, 4).unwrap();
        if twin == Twin::Fixed {
            // SAFETY: made above, destroyed once.
            unsafe {
                lt::destroy_matrix_layout(layout).unwrap();
                lt::destroy_handle(handle).unwrap();
            }
        }
        Vec::new()
    });
}

#[test]
fn uninitialised_output_read_back() {
    check(&[Class::Uninitialized], |twin| {
        let _ctx = context();
        // SAFETY: sizes agree; the last element is left unwritten in the buggy program.
        let buffer = unsafe {
            let buffer = result::malloc_sync(4 * N).unwrap();
            let written = if twin == Twin::Fixed { 4 * N } else { 4 * N - 1 };
            result::memset_d8_sync(buffer, 8, written).unwrap();
            buffer
        };
        let got = read_back(buffer, 4 * N);
        free(&[buffer]);
        got
    });
}

#[test]
fn copy_past_the_end_of_an_allocation() {
    check(&[Class::OutOfBounds], |twin| {
        let _ctx = context();
        let buffer = filled(0);
        let host = vec![6_u8; 4 * N + 4 * usize::from(twin == Twin::Buggy)];
        // SAFETY: in the buggy program the source is one element longer than the destination.
        unsafe { result::memcpy_htod_sync(buffer, &host) }.unwrap();
        let got = read_back(buffer, 4 * N);
        free(&[buffer]);
        got
    });
}

#[test]
fn synchronising_inside_a_capture() {
    check(&[Class::Capture], |twin| {
        let ctx = context();
        let s = stream(&ctx);
        let buffer = filled(0);
        // SAFETY: sizes agree; all handles are live.
        unsafe {
            result::stream::begin_capture(
                s,
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
            .unwrap();
            result::memset_d8_async(buffer, 5, 4 * N, s).unwrap();
            if twin == Twin::Buggy {
                result::stream::synchronize(s).unwrap();
            }
            let graph = result::stream::end_capture(s).unwrap();
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).unwrap();
            result::graph::launch(exec, s).unwrap();
            result::stream::synchronize(s).unwrap();
            result::graph::exec_destroy(exec).unwrap();
            result::graph::destroy(graph).unwrap();
        }
        let got = read_back(buffer, 4 * N);
        free(&[buffer]);
        destroy(&[s]);
        got
    });
}

#[test]
fn captured_fork_that_never_joins() {
    check(&[Class::Capture], |twin| {
        let ctx = context();
        let (a, b) = (stream(&ctx), stream(&ctx));
        let buffer = filled(0);
        let (fork, join) = (event(), event());
        // SAFETY: sizes agree; all handles are live.
        unsafe {
            let wait = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
            result::stream::begin_capture(
                a,
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
            .unwrap();
            result::memset_d8_async(buffer, 1, 2 * N, a).unwrap();
            result::event::record(fork, a).unwrap();
            result::stream::wait_event(b, fork, wait).unwrap();
            result::memset_d8_async(buffer + 2 * N as u64, 2, 2 * N, b).unwrap();
            if twin == Twin::Fixed {
                result::event::record(join, b).unwrap();
                result::stream::wait_event(a, join, wait).unwrap();
            }
            let graph = result::stream::end_capture(a).unwrap();
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).unwrap();
            result::graph::launch(exec, a).unwrap();
            result::stream::synchronize(a).unwrap();
            result::graph::exec_destroy(exec).unwrap();
            result::graph::destroy(graph).unwrap();
            result::event::destroy(fork).unwrap();
            result::event::destroy(join).unwrap();
        }
        let got = read_back(buffer, 4 * N);
        free(&[buffer]);
        destroy(&[a, b]);
        got
    });
}

#[test]
fn stream_used_after_it_was_destroyed() {
    check(&[Class::InvalidHandle], |twin| {
        let ctx = context();
        let s = stream(&ctx);
        let buffer = filled(0);
        if twin == Twin::Buggy {
            destroy(&[s]);
        }
        // SAFETY: sizes agree; the handle is dead in the buggy program.
        unsafe {
            result::memset_d8_async(buffer, 5, 4 * N, s).unwrap();
            result::stream::synchronize(s).unwrap();
        }
        let got = read_back(buffer, 4 * N);
        free(&[buffer]);
        destroy(&[s]);
        got
    });
}

/// A product of M × K and K × N2 in column-major f32, with the given leading dimension of A.
fn product(lda: i32, output: fn(u64, u64, u64) -> u64) -> Vec<u8> {
    let (m, n, k) = (48, 40, 56);
    let ctx = context();
    let stream = ctx.new_stream().unwrap();
    let handle = CudaBlas::new(stream.clone()).unwrap();
    let fill = |count: usize| -> Vec<f32> { (0..count).map(|i| (i % 17) as f32 - 8.0).collect() };
    let (alpha, beta) = (1.0_f32, 0.0_f32);
    let host = (fill(m * k), fill(k * n));
    // SAFETY: sizes agree; the leading dimension and the output are what the tests are about.
    let got = unsafe {
        let a = result::malloc_sync(4 * m * k).unwrap();
        let b = result::malloc_sync(4 * k * n).unwrap();
        let c = result::malloc_sync(4 * m * n).unwrap();
        result::memcpy_htod_sync(a, &host.0).unwrap();
        result::memcpy_htod_sync(b, &host.1).unwrap();
        result::ctx::synchronize().unwrap();
        let status = blas::cublasGemmEx(
            *handle.handle(),
            blas::cublasOperation_t::CUBLAS_OP_N,
            blas::cublasOperation_t::CUBLAS_OP_N,
            m as i32,
            n as i32,
            k as i32,
            (&raw const alpha).cast(),
            a as *const c_void,
            blas::cudaDataType_t::CUDA_R_32F,
            lda,
            b as *const c_void,
            blas::cudaDataType_t::CUDA_R_32F,
            k as i32,
            (&raw const beta).cast(),
            output(a, b, c) as *mut c_void,
            blas::cudaDataType_t::CUDA_R_32F,
            m as i32,
            blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        );
        status.result().unwrap();
        result::stream::synchronize(stream.cu_stream()).unwrap();
        let mut host = vec![0_u8; 4 * m * n];
        result::memcpy_dtoh_sync(&mut host, c).unwrap();
        result::free_sync(a).unwrap();
        result::free_sync(b).unwrap();
        result::free_sync(c).unwrap();
        host
    };
    drop(handle);
    got
}

#[test]
fn leading_dimension_of_the_transposed_matrix() {
    // 40 where 48 rows are stored: below the minimum, so the call is refused.
    check(&[Class::InvalidArgument], |twin| {
        product(if twin == Twin::Fixed { 48 } else { 40 }, |_, _, c| c)
    });
}

#[test]
fn leading_dimension_that_runs_past_the_matrix() {
    // 56, the number of columns, where 48 rows are stored: legal, but past the allocation's end.
    check(&[Class::OutOfBounds], |twin| {
        product(if twin == Twin::Fixed { 48 } else { 56 }, |_, _, c| c)
    });
}

#[test]
fn product_written_over_its_own_input() {
    check(&[Class::Aliasing], |twin| {
        product(48, if twin == Twin::Fixed { |_, _, c| c } else { |a, _, _| a })
    });
}
