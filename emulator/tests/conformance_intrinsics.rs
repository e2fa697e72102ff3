//! The functions of CUDA C through real NVRTC: all of them load and run, and the mathematical ones
//! are as accurate as the CUDA manual promises.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail loudly")]

#[path = "nvrtc/device.rs"]
mod device;
#[path = "nvrtc/driver.rs"]
mod driver;
mod nvrtc;

use cuda_emulator::exec::LaunchOptions;
use device::{Arg, Device};
use half::{bf16, f16};
use nvrtc::{Cuda, nvrtc};

const SOURCE: &str = include_str!("../kernels/intrinsics.cu");
const THREADS: u32 = 64;

fn inputs() -> Vec<f64> {
    (0..=THREADS).map(|i| 0.03 + f64::from(i * i) * 0.0021 + f64::from(i) * 0.01).collect()
}

/// Runs every kernel once, on initialised input; panics on a finding.
fn run_all(device: &Device) {
    let x = inputs();
    let single: Vec<f32> = x.iter().map(|v| *v as f32).collect();
    let half: Vec<u16> = x.iter().flat_map(|v| [f16::from_f64(*v).to_bits(); 2]).collect();
    let brain: Vec<u16> = x.iter().flat_map(|v| [bf16::from_f64(*v).to_bits(); 2]).collect();
    let whole: Vec<i32> = (0..4 * 65).map(|i| i * 7919 - 100_000).collect();
    let (single, half) = (device.upload("single", &single), device.upload("half", &half));
    let (brain, whole) = (device.upload("brain", &brain), device.upload("whole", &whole));
    let double = device.upload("double", &[x.clone(), x].concat());
    let long: Vec<i64> = (0..65).map(|i| i * 123_456_789_123 - 999).collect();
    let long = device.upload("long", &long);
    let output = |bytes: usize| device.alloc::<u8>("output", bytes);
    let run = |kernel: &str, args: &[Arg]| {
        device.run(kernel, 1, THREADS, args);
    };
    run("math_f32", &[single, output(20 * 256)]);
    run("math_f64", &[double, output(12 * 512)]);
    run("half_functions", &[output(128), half]);
    run("half2_functions", &[output(256), half]);
    run("bfloat16_functions", &[output(128), brain]);
    run("bfloat162_functions", &[output(256), brain]);
    // One thread: for 16-bit atomics the compiler emits a loop that starts with a plain read, which
    // with several threads is the race it looks like.
    let zero: Vec<Arg> = (0..8).map(|_| device.upload("zero", &[0u64; 2])).collect();
    device.run("atomics", 1, 1, &zero);
    assert_eq!(device.download::<f32>(zero[1], 1), [2.0]);
    assert_eq!(device.download::<f64>(zero[2], 1), [1.0]);
    assert_eq!(device.download::<u64>(zero[5], 1), [2]);
    assert_eq!(device.download::<u16>(zero[6], 1), [f16::ONE.to_bits()]);
    run("cache_operators", &[output(1024), single, whole, double, whole, whole]);
    run("bit_functions", &[output(256), whole, long]);
    run("wide_integers", &[output(512), long]);
    let y = output(256);
    run("warp_and_block_votes", &[y]);
    // 1 (or) + 1 (and) − 1 (all lanes match) + 1 (predicate).
    assert_eq!(device.download::<i32>(y, 64), [2; 64]);
}

#[test]
fn every_function_loads_and_runs_for_every_target() {
    for cuda in [Cuda::V13, Cuda::V12] {
        for arch in ["80", "90a", "100", "120"] {
            for options in [&[][..], &["-use_fast_math"]] {
                let Some(compiler) = nvrtc(cuda) else { return };
                let ptx = compiler.compile("intrinsics.cu", SOURCE, arch, options);
                run_all(&Device::new(&ptx));
            }
        }
    }
}

#[test]
fn parameters_can_be_addressed() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    let device = Device::new(&compiler.compile("intrinsics.cu", SOURCE, "90", &[]));
    let y = device.alloc::<i32>("y", 20);
    let Arg::Ptr(address) = y else { panic!() };
    let mut params: Vec<u8> = (100..120i32).flat_map(i32::to_le_bytes).collect();
    params.extend(address.to_le_bytes());
    device.launch_raw("grid_constant", [1; 3], [20, 1, 1], &params).unwrap();
    assert_eq!(device.download::<i32>(y, 20), (100..120).collect::<Vec<_>>());
}

/// Distance in units of the last place of `expected`.
fn ulps32(found: f32, expected: f64) -> f64 {
    let nearest = expected as f32;
    let ulp = f64::from(nearest.abs().next_up()) - f64::from(nearest.abs());
    (f64::from(found) - expected).abs() / ulp
}

fn ulps64(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / (expected.abs().next_up() - expected.abs())
}

#[test]
fn mathematical_functions_keep_the_manual_s_error_bounds() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    let device = Device::new(&compiler.compile("intrinsics.cu", SOURCE, "90", &[]));
    let x = inputs();
    let single: Vec<f32> = x.iter().map(|v| *v as f32).collect();
    let (dx, out) = (device.upload("x", &single), device.alloc::<f32>("y", 20 * 64));
    let report = device.run("math_f32", 1, THREADS, &[dx, out]);
    assert!(report.approximate.iter().any(|name| name.starts_with("ex2.approx")), "{report:?}");
    let out = device.download::<f32>(out, 20 * 64);
    for (i, value) in single.iter().take(64).enumerate() {
        let (a, s) = (f64::from(*value), *value);
        // Bounds in ulp: CUDA C++ Programming Guide, "Mathematical Functions". `erff` has no
        // counterpart in the standard library and is left out.
        let cases = [
            (0, a.exp(), 2.0),
            (1, a.ln(), 1.0),
            (2, a.powf(2.5), 4.0),
            (3, a.sin(), 2.0),
            (4, a.cos(), 2.0),
            (5, a.tanh(), 2.0),
            (7, a.cbrt(), 1.0),
            (8, 1.0 / a.sqrt(), 2.0),
            (9, a.ln_1p(), 1.0),
            (10, a.exp_m1(), 1.0),
            (11, a.atan2(3.0), 3.0),
            (12, f64::from(s % 0.7), 0.0),
            (13, a.exp2(), 2.0),
            (14, a.log2(), 1.0),
            (15, a.hypot(2.0), 3.0),
            (16, f64::from(s.sqrt()), 0.0),
            (17, f64::from(1.0 / s), 0.0),
            (18, f64::from(s.round()), 0.0),
            (19, f64::from(s.trunc() + s.floor() + s.ceil() + s.round_ties_even()), 0.0),
        ];
        for (k, expected, bound) in cases {
            let error = ulps32(out[20 * i + k], expected);
            // The manual's bounds are against the exact value; half an ulp is its rounding.
            let allowed = if bound == 0.0 { 0.0 } else { bound + 0.5 };
            assert!(error <= allowed, "result {k} of {a}: {} {expected}: {error}", out[20 * i + k]);
        }
    }

    let (dx, out) = (device.upload("x", &x), device.alloc::<f64>("y", 12 * 64));
    device.run("math_f64", 1, THREADS, &[dx, out]);
    let out = device.download::<f64>(out, 12 * 64);
    for (i, a) in x.iter().copied().take(64).enumerate() {
        let cases = [
            (0, a.exp(), 1.0),
            (1, a.ln(), 1.0),
            (2, a.powf(2.5), 2.0),
            (3, a.sin(), 2.0),
            (4, a.cos(), 2.0),
            (5, a.tanh(), 2.0),
            (6, a.cbrt(), 1.0),
            (7, 1.0 / a.sqrt(), 1.0),
            (8, a.sqrt(), 0.0),
            (9, 1.0 / a, 0.0),
            (10, a / 3.0, 0.0),
            (11, a % 0.7, 0.0),
        ];
        for (k, expected, bound) in cases {
            let error = ulps64(out[12 * i + k], expected);
            // The host's own function is off by up to one ulp.
            let allowed = if bound == 0.0 { 0.0 } else { bound + 1.0 };
            assert!(error <= allowed, "result {k} of {a}: {} {expected}", out[12 * i + k]);
        }
    }
    let options = LaunchOptions { seed: 1, ..LaunchOptions::default() };
    let again = device.alloc::<f64>("y", 12 * 64);
    device.launch("math_f64", [1; 3], [THREADS, 1, 1], &[dx, again], &options).unwrap();
    assert_eq!(device.download::<f64>(again, 12 * 64), out);
}
