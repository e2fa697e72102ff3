//! A program on cust owns context, stream and buffers; the optimizer steps on them, with the bits of the cudarc path, under
//! every order that the emulator's scheduler takes. `emulator/toolkit` says how to run it.
#![allow(unsafe_code, reason = "launching a kernel is unsafe in cust and in cudarc")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and narrows on purpose"
)]

mod support;

use std::sync::{Arc, Once};

use cuda_emulator::{Config, Emulator, Log};
use cust::event::{Event, EventFlags};
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags, StreamWaitEventFlags};
use half::bf16;
use muon_cuda::cudarc::driver::{LaunchConfig, PushKernelArg};
use muon_cuda::cudarc::nvrtc::Ptx;
use muon_cuda::{
    AdamWRule, Cuda, CudaGrad, CudaParamMut, Dtype, Muon, MuonConfig, ParamId, ParamSpec,
    Precision, StepOptions, StepTensor,
};
use support::{Random, bits, rule};

/// y[i] += a * x[i].
const SAXPY: &str = include_str!("../emulator/cust-program/saxpy.ptx");
const SEEDS: u64 = 12;
const STEPS: usize = 3;
/// Lengths of the matrix f32, the matrix bf16, and the vector under AdamW.
const LENGTHS: [usize; 3] = [24 * 40, 40 * 24, 33];

fn load(config: Config) -> Emulator {
    static FETCHED: Once = Once::new();
    FETCHED.call_once(|| {
        cuda_emulator::fetch_nvrtc().unwrap();
        // SAFETY: the first thing that every test of this binary does.
        unsafe {
            std::env::set_var(
                "MUON_CUDA_CACHE_DIR",
                concat!(env!("CARGO_TARGET_TMPDIR"), "/muon-kernels"),
            );
        }
    });
    Emulator::load(config).unwrap()
}

/// Runs a test on the emulator, which must find nothing in it.
fn clean<R>(seed: u64, test: impl FnOnce(&Emulator) -> R) -> R {
    let emulator = load(Config::with_seed(seed));
    let result = test(&emulator);
    assert_eq!(emulator.finish().unwrap(), [], "seed {seed}");
    result
}

struct Inputs {
    params: Vec<Vec<f32>>,
    grads: Vec<Vec<f32>>,
}

fn inputs() -> Inputs {
    let mut random = Random::new(7);
    let mut draw = || LENGTHS.iter().map(|n| random.normals(*n)).collect();
    Inputs { params: draw(), grads: draw() }
}

fn to_bits(x: &[f32]) -> Vec<u16> {
    x.iter().map(|x| bf16::from_f32(*x).to_bits()).collect()
}

/// A matrix f32, a matrix bf16 and a vector.
fn optimizer(device: Cuda) -> (Muon<Cuda>, [ParamId; 3]) {
    let config = MuonConfig { precision: Some(Precision::Bf16), ..MuonConfig::default() };
    let mut muon = Muon::new(device, config).unwrap();
    let hidden = muon.add_group("hidden", rule("jordan")).unwrap();
    let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
    let ids = [
        muon.add_param(hidden, ParamSpec::new("w", &[24, 40])).unwrap(),
        muon.add_param(hidden, ParamSpec::new("v", &[40, 24]).dtype(Dtype::Bf16)).unwrap(),
        muon.add_param(rest, ParamSpec::new("b", &[33])).unwrap(),
    ];
    (muon, ids)
}

/// Bits of the parameters after each step.
type Trace = Vec<[Vec<u32>; 3]>;

/// The same program on cudarc, on a stream of the device's own.
fn on_cudarc() -> Trace {
    clean(0, |_| {
        let (mut muon, ids) = optimizer(Cuda::new(0).unwrap());
        let stream = muon.device().stream().clone();
        let saxpy = stream.context().load_module(Ptx::from_src(SAXPY)).unwrap();
        let saxpy = saxpy.load_function("saxpy").unwrap();
        let Inputs { params, grads } = inputs();
        let mut w = stream.clone_htod(&params[0]).unwrap();
        let mut v = stream
            .clone_htod(&params[1].iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>())
            .unwrap();
        let mut b = stream.clone_htod(&params[2]).unwrap();
        let mut g: Vec<_> = grads.iter().map(|g| stream.clone_htod(g).unwrap()).collect();
        let mut trace = Vec::new();
        for _ in 0..STEPS {
            // The gradient of the first matrix follows its parameter.
            let config = LaunchConfig::for_num_elems(LENGTHS[0] as u32);
            // SAFETY: the arguments are those of `saxpy`, and both slices hold so many elements.
            unsafe {
                stream
                    .launch_builder(&saxpy)
                    .arg(&mut g[0])
                    .arg(&w)
                    .arg(&0.5f32)
                    .arg(&(LENGTHS[0] as u32))
                    .launch(config)
            }
            .unwrap();
            let mut tensors = [
                StepTensor::new(ids[0], &mut w, &g[0]),
                StepTensor::new(ids[1], &mut v, &g[1]),
                StepTensor::new(ids[2], &mut b, &g[2]),
            ];
            muon.step(&StepOptions::default(), &mut tensors).unwrap();
            let wide: Vec<u32> =
                stream.clone_dtoh(&v).unwrap().iter().map(|x| u32::from(x.to_bits())).collect();
            trace.push([
                bits(&stream.clone_dtoh(&w).unwrap()),
                wide,
                bits(&stream.clone_dtoh(&b).unwrap()),
            ]);
        }
        trace
    })
}

/// How the program on cust orders its own kernel with the step.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Producer {
    /// On the stream of the optimizer.
    SameStream,
    /// On another one, with events both ways.
    OtherStream,
    /// On another one, without.
    OtherStreamUnordered,
    /// As the first, and every step but the first is replayed from a graph.
    Captured,
}

/// The program on cust. Returns early where a call fails, as it does after a finding.
fn on_cust(producer: Producer, emulator: &Emulator) -> Option<Trace> {
    let _context = cust::quick_init().unwrap();
    let stream = Arc::new(Stream::new(StreamFlags::DEFAULT, None).unwrap());
    let other = Stream::new(StreamFlags::DEFAULT, None).unwrap();
    let module = Module::from_ptx(SAXPY, &[]).unwrap();
    let saxpy = module.get_function("saxpy").unwrap();
    let (mut muon, ids) = optimizer(Cuda::with_cust_stream(&stream).unwrap());
    let Inputs { params, grads } = inputs();
    let mut w = DeviceBuffer::from_slice(&params[0]).unwrap();
    let mut v = DeviceBuffer::from_slice(&to_bits(&params[1])).unwrap();
    let b = DeviceBuffer::from_slice(&params[2]).unwrap();
    let g: Vec<_> = grads.iter().map(|g| DeviceBuffer::from_slice(g).unwrap()).collect();
    let mut trace = Vec::new();
    let mut graph = None;
    for step in 0..STEPS {
        let n = LENGTHS[0] as u32;
        let producing = if producer == Producer::SameStream || producer == Producer::Captured {
            &*stream
        } else {
            &other
        };
        let order = |from: &Stream, to: &Stream| {
            if producer == Producer::OtherStream {
                let event = Event::new(EventFlags::DISABLE_TIMING).unwrap();
                event.record(from).unwrap();
                to.wait_event(event, StreamWaitEventFlags::DEFAULT).unwrap();
            }
        };
        order(&stream, producing);
        // SAFETY: the arguments are those of `saxpy`, and both buffers hold so many elements.
        unsafe {
            cust::launch!(saxpy<<<n.div_ceil(256), 256, 0, producing>>>(
                g[0].as_device_ptr(), w.as_device_ptr(), 0.5f32, n
            ))
        }
        .unwrap();
        order(producing, &stream);
        let before = emulator.counters().unwrap();
        {
            let v = CudaParamMut::from_cust_bf16(&mut v).unwrap();
            // SAFETY: `b` holds 33 elements, and everything happens on cust's stream.
            let b = unsafe { CudaParamMut::from_raw(b.as_device_ptr().as_raw(), 33, Dtype::F32) };
            let mut tensors = [
                StepTensor::new(ids[0], &mut w, &g[0]),
                StepTensor::new(ids[1], v, &g[1]),
                StepTensor::new(ids[2], b, &g[2]),
            ];
            let options = StepOptions::default();
            if producer == Producer::Captured && step == 1 {
                graph = Some(muon.capture_step(&options, &mut tensors).unwrap());
            }
            let stepped = match &graph {
                Some(graph) => muon.replay_step(graph, &options, &mut tensors),
                None => muon.step(&options, &mut tensors),
            };
            if stepped.is_err() {
                return None;
            }
        }
        let after = emulator.counters().unwrap();
        assert_eq!(before.device_to_device, after.device_to_device, "borrowed, not copied");
        if step > 0 {
            assert_eq!(before.synchronisations, after.synchronisations);
            assert!(graph.is_some() || before.allocations == after.allocations);
        }
        let (mut hw, mut hv, mut hb) =
            (vec![0.0f32; LENGTHS[0]], vec![0u16; LENGTHS[1]], vec![0.0f32; LENGTHS[2]]);
        // cust's copies: to the default stream, which waits for the step.
        let copied = w.copy_to(&mut hw).and(v.copy_to(&mut hv)).and(b.copy_to(&mut hb));
        if copied.is_err() {
            return None;
        }
        trace.push([bits(&hw), hv.iter().map(|x| u32::from(*x)).collect(), bits(&hb)]);
    }
    Some(trace)
}

#[test]
fn steps_on_cust_s_memory_have_the_bits_of_cudarc_s_under_every_seed() {
    let expected = on_cudarc();
    assert_ne!(expected[0], expected[2]);
    for seed in 0..SEEDS {
        for producer in [Producer::SameStream, Producer::OtherStream, Producer::Captured] {
            let found = clean(seed, |emulator| on_cust(producer, emulator));
            assert!(found.as_ref() == Some(&expected), "seed {seed}, {producer:?}");
        }
    }
}

#[test]
fn a_gradient_that_no_event_orders_is_found() {
    // That the test above finds nothing means something.
    for seed in 0..SEEDS {
        let mut config = Config::with_seed(seed);
        config.log = Log::Quiet;
        let emulator = load(config);
        let _ = on_cust(Producer::OtherStreamUnordered, &emulator);
        let found = emulator.finish().unwrap();
        assert!(!found.is_empty(), "seed {seed}");
        assert!(found[0].to_string().starts_with("Race"), "seed {seed}: {}", found[0]);
    }
}

#[test]
fn what_cust_does_not_order_is_refused() {
    clean(1, |_| {
        let context = cust::quick_init().unwrap();
        let (mut muon, ids) = optimizer(Cuda::new(0).unwrap());
        let Inputs { params, grads } = inputs();
        let mut w = DeviceBuffer::from_slice(&params[0]).unwrap();
        let g = DeviceBuffer::from_slice(&grads[0]).unwrap();
        let device_stream = muon.device().stream().clone();
        let mut own = device_stream.clone_htod(&params[0]).unwrap();
        device_stream.synchronize().unwrap();
        for clip_norm in [None, Some(1.0)] {
            let options = StepOptions { clip_norm, ..StepOptions::default() };
            let error =
                muon.step(&options, &mut [StepTensor::new(ids[0], &mut w, &g)]).unwrap_err();
            assert!(error.is_unsupported(), "{error}");
            assert!(error.to_string().contains("with_cust_stream"), "{error}");
            let error =
                muon.step(&options, &mut [StepTensor::new(ids[0], &mut own, &g)]).unwrap_err();
            assert!(error.is_unsupported(), "{error}");
        }
        assert!(muon.torn().is_none());
        let mut after = vec![0.0f32; LENGTHS[0]];
        w.copy_to(&mut after).unwrap();
        assert_eq!(bits(&after), bits(&params[0]));

        let error = CudaParamMut::from_cust_bf16(&mut w).unwrap_err();
        assert!(error.is_shape_mismatch(), "{error}");
        assert!(CudaGrad::from_cust_bf16(&g).unwrap_err().is_shape_mismatch());
        assert!(CudaGrad::from_cust_f16(&g).unwrap_err().is_shape_mismatch());

        // A stream that does not follow the default one: cust 0.3 makes none.
        let other = device_stream.context().new_stream().unwrap();
        // SAFETY: cust's stream is its handle alone; it is not dropped, since `other` owns it.
        let lone = unsafe {
            std::mem::transmute::<*mut std::ffi::c_void, Stream>(other.cu_stream().cast())
        };
        let lone = Arc::new(lone);
        let error = Cuda::with_cust_stream(&lone).unwrap_err();
        assert!(error.is_unsupported() && error.to_string().contains("NON_BLOCKING"), "{error}");
        std::mem::forget(lone);

        // Streams belong to the context that is current: here one that is not the primary.
        {
            use cust::context::legacy::{Context, ContextFlags};
            let device = cust::device::Device::get_device(0).unwrap();
            let legacy = Context::create_and_push(ContextFlags::SCHED_AUTO, device).unwrap();
            let stream = Arc::new(Stream::new(StreamFlags::DEFAULT, None).unwrap());
            let error = Cuda::with_cust_stream(&stream).unwrap_err();
            assert!(error.is_unsupported() && error.to_string().contains("legacy"), "{error}");
            drop(stream);
            drop(legacy);
        }
        cust::context::CurrentContext::set_current(&context).unwrap();
    });
}
