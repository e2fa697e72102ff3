//! The driver's behaviour around the work: profiles, faults, sticky errors, counters, waiting.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]
#![allow(unsafe_code, reason = "the driver API below the safe layer is unsafe")]

mod seeded;

use cuda_emulator::{Class, Config, DeviceProfile, Emulator, Fault, FaultSite};
use cudarc::driver::{CudaContext, DevicePtr, LaunchConfig, PushKernelArg, result, sys};

fn code(error: &cudarc::driver::DriverError) -> i32 {
    error.0 as i32
}

#[test]
fn several_devices_have_their_own_profiles_and_memory() {
    let mut config = seeded::config(0);
    config.devices = vec![DeviceProfile::a100(), DeviceProfile::rtx4090(), DeviceProfile::b200()];
    let emulator = Emulator::load(config).unwrap();
    assert_eq!(CudaContext::device_count().unwrap(), 3);
    let contexts: Vec<_> = (0..3).map(|ordinal| CudaContext::new(ordinal).unwrap()).collect();
    let capabilities: Vec<_> =
        contexts.iter().map(|ctx| ctx.compute_capability().unwrap()).collect();
    assert_eq!(capabilities, [(8, 0), (8, 9), (10, 0)]);
    let optin = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    assert_eq!(contexts[1].attribute(optin).unwrap(), 99 << 10);
    let uuids: Vec<_> = contexts.iter().map(|ctx| ctx.uuid().unwrap().bytes).collect();
    assert!(uuids[0] != uuids[1] && uuids[1] != uuids[2]);
    // Not the default streams: across devices cudarc 0.19.10's `memcpy_dtod` drops its event with
    // the source's context current, and then names the null stream, which is the source's.
    let streams: Vec<_> = contexts.iter().map(|ctx| ctx.new_stream().unwrap()).collect();
    let data: Vec<_> = streams.iter().map(|s| s.clone_htod(&[1_u8; 1 << 20]).unwrap()).collect();
    let (free, total) = contexts[2].mem_get_info().unwrap();
    assert_eq!(total - free, 1 << 20);
    assert!(CudaContext::new(3).is_err());
    // Between devices, through the peer copy.
    let mut far = streams[1].alloc_zeros::<u8>(1 << 20).unwrap();
    streams[1].memcpy_dtod(&data[0], &mut far).unwrap();
    let got = streams[1].clone_dtoh(&far).unwrap();
    assert!(
        got.iter().all(|byte| *byte == 1),
        "{:?} {:?}",
        got.len(),
        emulator.findings().unwrap()
    );
    drop((data, far, streams, contexts));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn memory_limit_and_out_of_memory() {
    let mut config = seeded::config(0);
    config.memory_limit = Some(1 << 20);
    let emulator = Emulator::load(config).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let half = stream.alloc_zeros::<u8>(1 << 19).unwrap();
    let error = stream.alloc_zeros::<u8>((1 << 19) + 1).unwrap_err();
    assert_eq!(code(&error), 2);
    assert!(error.to_string().contains("out of memory"), "{error}");
    // The free is only queued, but an allocation that needs its memory makes it happen.
    drop(half);
    drop(stream.alloc_zeros::<u8>(1 << 20).unwrap());
    stream.synchronize().unwrap();
    drop((stream, ctx));
    let counters = emulator.counters().unwrap();
    assert_eq!((counters.live_bytes, counters.peak_bytes), (0, 1 << 20));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn the_nth_allocation_or_copy_fails_with_the_chosen_status() {
    let mut config = seeded::config(0);
    config.faults = vec![
        Fault { site: FaultSite::Allocation, nth: 2, status: 2 },
        Fault { site: FaultSite::Copy, nth: 3, status: 1 },
    ];
    let emulator = Emulator::load(config).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let a = stream.clone_htod(&[1_u32; 64]).unwrap();
    assert_eq!(code(&stream.clone_htod(&[1_u32; 64]).unwrap_err()), 2);
    assert_eq!(stream.clone_dtoh(&a).unwrap(), [1; 64]);
    assert_eq!(code(&stream.clone_dtoh(&a).unwrap_err()), 1);
    assert_eq!(stream.clone_dtoh(&a).unwrap(), [1; 64]);
    drop((a, stream, ctx));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn a_sticky_error_shows_at_the_synchronisation_and_stays() {
    let mut config = seeded::config(0);
    config.faults = vec![Fault { site: FaultSite::Copy, nth: 2, status: 700 }];
    let emulator = Emulator::load(config).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    // SAFETY: one stream does everything.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    let mut data = stream.clone_htod(&[1_u32; 64]).unwrap();
    // The call itself succeeds: on a device the fault happens later.
    stream.memset_zeros(&mut data).unwrap();
    assert_eq!(code(&stream.synchronize().unwrap_err()), 700);
    assert_eq!(code(&stream.synchronize().unwrap_err()), 700);
    assert_eq!(code(&stream.clone_htod(&[1_u8]).unwrap_err()), 700);
    assert_eq!(code(&ctx.mem_get_info().unwrap_err()), 700);
    drop((data, stream, ctx));
    // The end of the context clears it: a new one works.
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    assert_eq!(stream.clone_dtoh(&stream.clone_htod(&[5_u8; 9]).unwrap()).unwrap(), [5; 9]);
    drop((stream, ctx));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn counters_count_calls_and_bytes_and_can_be_reset() {
    let emulator = Emulator::load(seeded::config(3)).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let a = stream.clone_htod(&[1.0_f32; 1000]).unwrap();
    let b = stream.clone_dtod(&a).unwrap();
    stream.clone_dtoh(&b).unwrap();
    stream.synchronize().unwrap();
    let counters = emulator.counters().unwrap();
    assert_eq!((counters.allocations, counters.allocated_bytes), (2, 8000));
    assert_eq!((counters.host_to_device.calls, counters.host_to_device.bytes), (1, 4000));
    assert_eq!((counters.device_to_device.calls, counters.device_to_device.bytes), (1, 4000));
    assert_eq!((counters.device_to_host.calls, counters.device_to_host.bytes), (1, 4000));
    assert!(emulator.counters_json().unwrap().contains("\"allocated_bytes\": 8000"));
    emulator.reset_counters().unwrap();
    stream.synchronize().unwrap();
    let counters = emulator.counters().unwrap();
    assert_eq!(
        (counters.synchronisations, counters.allocations, counters.live_bytes),
        (1, 0, 8000)
    );
    drop((a, b, stream, ctx));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn unimplemented_entries_are_refused_by_name() {
    let emulator = Emulator::load(seeded::config(0)).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    ctx.bind_to_thread().unwrap();
    // SAFETY: the entry refuses before it looks at its arguments.
    let status = unsafe {
        let mut address = 0;
        sys::cuMemAllocManaged(&raw mut address, 64, 1)
    };
    assert_eq!(status as i32, 801);
    let findings = emulator.take_findings().unwrap();
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].class, Class::Unsupported);
    assert!(findings[0].message.contains("`cuMemAllocManaged`"), "{}", findings[0]);
    drop(ctx);
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn a_run_tells_what_was_not_exact() {
    if !seeded::fetch_nvrtc() {
        return;
    }
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("fidelity.json");
    let mut config = seeded::config(0);
    config.counters_file = Some(file.clone());
    let emulator = Emulator::load(config).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    ctx.bind_to_thread().unwrap();
    let stream = ctx.default_stream();
    let source = r#"
        extern "C" __global__ void exact(float *x) { x[threadIdx.x] = sqrtf(x[threadIdx.x]); }
        extern "C" __global__ void fast(float *x) { x[threadIdx.x] = __sinf(x[threadIdx.x]); }
    "#;
    let options = cudarc::nvrtc::CompileOptions { arch: Some("sm_90"), ..Default::default() };
    let ptx = cudarc::nvrtc::compile_ptx_with_opts(source, options).unwrap();
    let module = ctx.load_module(ptx).unwrap();
    let mut x = stream.clone_htod(&[0.25_f32; 32]).unwrap();
    let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
    let mut run = |name: &str| {
        let function = module.load_function(name).unwrap();
        // SAFETY: one argument, 32 floats.
        unsafe { stream.launch_builder(&function).arg(&mut x).launch(shape) }.unwrap();
        stream.synchronize().unwrap();
        emulator.fidelity().unwrap()
    };
    assert_eq!(run("exact"), "fidelity: approximate: none; unsupported: none");
    assert_eq!(run("fast"), "fidelity: approximate: sin.approx.f32; unsupported: none");
    // SAFETY: the entry refuses before it looks at its arguments.
    unsafe { sys::cuProfilerInitialize(std::ptr::null(), std::ptr::null(), std::mem::zeroed()) };
    let line = emulator.fidelity().unwrap();
    assert!(line.ends_with("unsupported: cuProfilerInitialize"), "{line}");
    drop((x, module, stream, ctx));
    assert_eq!(emulator.finish().unwrap().len(), 1);
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(json["fidelity"]["approximate"][0], "sin.approx.f32");
    assert_eq!(json["total"]["launches"], 2);
}

#[test]
fn kernel_arguments_that_cannot_be_read_are_refused() {
    let emulator = Emulator::load(seeded::config(0)).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    ctx.bind_to_thread().unwrap();
    let text = c".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u32 b)\n{\nret;\n}";
    // SAFETY: the arguments are wrong on purpose; the emulator looks before it reads.
    unsafe {
        let module = result::module::load_data(text.as_ptr().cast()).unwrap();
        let function = result::module::get_function(module, c"k".to_owned()).unwrap();
        let value = 7_u64;
        let good: *mut std::ffi::c_void = (&raw const value).cast_mut().cast();
        for (second, fine) in [(good, true), (std::ptr::null_mut(), false), (16 as *mut _, false)] {
            let mut arguments = [good, second];
            let (one, stream) = ((1, 1, 1), std::ptr::null_mut());
            let launched = result::launch_kernel(function, one, one, 0, stream, &mut arguments);
            assert_eq!(launched.is_ok(), fine);
            let findings = emulator.take_findings().unwrap();
            assert_eq!(findings.is_empty(), fine);
            if let Some(found) = findings.first() {
                assert!(found.message.contains("argument 1 (`b`, 4 bytes)"), "{found}");
            }
        }
        result::ctx::synchronize().unwrap();
        result::module::unload(module).unwrap();
    }
    drop(ctx);
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn a_polling_host_gets_on() {
    for seed in seeded::SEEDS {
        let emulator = Emulator::load(seeded::config(seed)).unwrap();
        let ctx = CudaContext::new(0).unwrap();
        let stream = ctx.new_stream().unwrap();
        let mut data = stream.alloc_zeros::<u8>(1 << 16).unwrap();
        stream.memset_zeros(&mut data).unwrap();
        let event = stream.record_event(None).unwrap();
        let mut polls = 0;
        while !event.is_complete() {
            polls += 1;
            assert!(polls < 1000, "seed {seed}");
        }
        drop((data, event, stream, ctx));
        assert_eq!(emulator.finish().unwrap(), []);
    }
}

#[test]
fn nothing_runs_before_it_must() {
    let emulator = Emulator::load(seeded::config(0)).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    // SAFETY: one stream does everything.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    let data = stream.clone_htod(&[7_u8; 4096]).unwrap();
    let copy = stream.clone_dtod(&data).unwrap();
    assert_eq!(emulator.counters().unwrap().host_to_device.calls, 0);
    assert_eq!(emulator.counters().unwrap().device_to_device.calls, 0);
    stream.synchronize().unwrap();
    assert_eq!(emulator.counters().unwrap().host_to_device.calls, 1);
    assert_eq!(emulator.counters().unwrap().device_to_device.calls, 1);
    drop((data, copy, stream, ctx));
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn the_legacy_stream_orders_blocking_streams_and_not_the_others() {
    for ordered in [true, false] {
        let run = seeded::run_failing(4, || {
            let ctx = CudaContext::new(0).unwrap();
            ctx.bind_to_thread().unwrap();
            // SAFETY: sizes agree and all handles are live.
            unsafe {
                let kind = if ordered {
                    result::stream::StreamKind::Default
                } else {
                    result::stream::StreamKind::NonBlocking
                };
                let stream = result::stream::create(kind).unwrap();
                let buffer = result::malloc_sync(5000).unwrap();
                result::memset_d8_async(buffer, 1, 5000, std::ptr::null_mut()).unwrap();
                result::memset_d8_async(buffer, 2, 5000, stream).unwrap();
                result::memset_d8_async(buffer + 100, 3, 100, std::ptr::null_mut()).unwrap();
                result::ctx::synchronize().unwrap();
                let mut host = vec![0; 5000];
                result::memcpy_dtoh_sync(&mut host, buffer).unwrap();
                result::free_sync(buffer).unwrap();
                result::stream::destroy(stream).unwrap();
                host
            }
        });
        let races = run.findings.iter().filter(|finding| finding.class == Class::Race).count();
        assert_eq!(races == 0, ordered, "{:#?}", run.findings);
    }
}

#[test]
fn the_work_of_a_destroyed_stream_goes_on_and_is_waited_for() {
    for seed in seeded::SEEDS {
        for kind in [true, false] {
            let emulator = Emulator::load(seeded::config(seed)).unwrap();
            let ctx = CudaContext::new(0).unwrap();
            ctx.bind_to_thread().unwrap();
            // SAFETY: sizes agree; the streams are destroyed once, with work queued.
            unsafe {
                let make = || {
                    let kind = if kind {
                        result::stream::StreamKind::Default
                    } else {
                        result::stream::StreamKind::NonBlocking
                    };
                    result::stream::create(kind).unwrap()
                };
                let (first, second) = (make(), make());
                let (a, b) = (result::malloc_sync(512).unwrap(), result::malloc_sync(512).unwrap());
                result::memset_d8_async(a, 1, 512, first).unwrap();
                result::memset_d8_async(b, 2, 512, second).unwrap();
                result::stream::destroy(first).unwrap();
                result::stream::synchronize(second).unwrap();
                result::stream::destroy(second).unwrap();
                if !kind {
                    result::ctx::synchronize().unwrap();
                }
                // With blocking streams the legacy stream follows by itself.
                result::memcpy_dtod_sync(b, a, 512).unwrap();
                let mut host = [0_u8; 512];
                result::memcpy_dtoh_sync(&mut host, b).unwrap();
                assert_eq!(host, [1; 512]);
                result::free_sync(a).unwrap();
                result::free_sync(b).unwrap();
            }
            drop(ctx);
            assert_eq!(emulator.finish().unwrap(), []);
        }
    }
}

#[test]
fn own_contexts_event_tracking_and_views() {
    for seed in seeded::SEEDS {
        let emulator = Emulator::load(seeded::config(seed)).unwrap();
        let ctx = CudaContext::new(0).unwrap();
        let (a, b) = (ctx.new_stream().unwrap(), ctx.new_stream().unwrap());
        let mut data = a.clone_htod(&(0..4096_u32).collect::<Vec<_>>()).unwrap();
        // cudarc's event tracking orders the two streams.
        let mut copy = b.alloc_zeros::<u32>(2048).unwrap();
        b.memcpy_dtod(&data.slice(1024..3072), &mut copy).unwrap();
        a.memset_zeros(&mut data).unwrap();
        let got = b.clone_dtoh(&copy).unwrap();
        assert!(got.iter().zip(1024..).all(|(got, expected)| *got == expected), "seed {seed}");
        let mut pinned = {
            // SAFETY: written below before it is read.
            unsafe { ctx.alloc_pinned::<u32>(2048) }.unwrap()
        };
        b.memcpy_dtoh(&copy, &mut pinned).unwrap();
        assert_eq!(pinned.as_slice().unwrap(), got);
        let (address, _record) = copy.device_ptr(&b);
        assert_eq!(address % 256, 0);
        drop(_record);
        drop((data, copy, pinned, a, b, ctx));
        assert_eq!(emulator.finish().unwrap(), []);
    }
}

#[test]
fn a_cubin_gets_the_error_of_a_foreign_architecture() {
    let emulator = Emulator::load(seeded::config(0)).unwrap();
    let ctx = CudaContext::new(0).unwrap();
    ctx.bind_to_thread().unwrap();
    let image = b"\x7fELF then machine code";
    // SAFETY: the image's magic ends the driver's look at it.
    let error = unsafe { result::module::load_data(image.as_ptr().cast()) }.unwrap_err();
    assert_eq!(code(&error), 209);
    let findings = emulator.take_findings().unwrap();
    assert!(findings[0].message.contains("cubin"), "{}", findings[0]);
    drop(ctx);
    assert_eq!(emulator.finish().unwrap(), []);
}

#[test]
fn the_environment_configures_a_run() {
    let config = Config::from_lookup(|name| {
        (name == "CUDA_EMULATOR_DEVICES").then(|| "rtx4090, h100".to_owned())
    })
    .unwrap();
    let emulator = Emulator::load(config).unwrap();
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    assert_eq!(CudaContext::new(0).unwrap().name().unwrap(), "Emulated RTX 4090");
    assert_eq!(emulator.finish().unwrap(), []);
}
