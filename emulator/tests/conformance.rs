//! Kernels in CUDA C through the real NVRTC, checked against the host.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail loudly")]
#![allow(clippy::indexing_slicing, reason = "tests fail loudly")]

#[path = "nvrtc/device.rs"]
mod device;
#[path = "nvrtc/driver.rs"]
mod driver;
mod nvrtc;

use std::sync::OnceLock;

use cuda_emulator::exec::LaunchOptions;
use device::{Arg, Device};
use half::{bf16, f16};
use nvrtc::{Cuda, nvrtc};

const SOURCE: &str = include_str!("../kernels/conformance.cu");

/// Compiles for a compute capability, or `None` when NVRTC is to be skipped.
fn compile(cuda: Cuda, arch: &str) -> Option<String> {
    Some(nvrtc(cuda)?.compile("conformance.cu", SOURCE, arch, &[]))
}

/// The PTX that most tests share.
fn usual() -> Option<&'static str> {
    static PTX: OnceLock<Option<String>> = OnceLock::new();
    PTX.get_or_init(|| compile(Cuda::V13, "90")).as_deref()
}

fn device() -> Option<Device> {
    Some(Device::new(usual()?))
}

/// Tests that run by the interpreter alone, and again through cudarc and the emulated driver.
macro_rules! both {
    ($($name:ident)*) => {
        mod interpreter {
            $(#[test]
            fn $name() {
                if let Some(ptx) = super::usual() {
                    super::$name(&mut super::Device::new(ptx));
                }
            })*
        }
        mod cudarc {
            $(#[test]
            fn $name() {
                if let Some(ptx) = super::usual() {
                    super::$name(&mut super::Device::of_driver(ptx));
                }
            })*
        }
    };
}

both! {
    saxpy
    block_sum
    halves
    votes
    calls
    a_double_buffered_product_is_exact
    scans_and_transposes_move_every_element
    histograms_count_with_integer_atomics
    narrowing_matches_half_and_truncation
    pairs_of_halves_round_once
    floats_become_integers_in_four_ways
    integer_instructions_match_the_host
    divergent_threads_each_follow_their_own_path
    threads_that_have_exited_hold_no_barrier_up
    threads_that_returned_ahead_of_a_shuffle_are_not_missed
    grids_have_three_dimensions_and_addresses_64_bits
    module_variables_vectors_and_local_arrays_hold_their_values
}

fn random(count: usize) -> impl Iterator<Item = u32> {
    let mut state = 12345u64;
    std::iter::repeat_with(move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    })
    .take(count)
}

fn floats(count: usize) -> Vec<f32> {
    random(count).map(|bits| (bits as f32 / 4e9 - 0.5) * 4.0).collect()
}

#[test]
fn every_target_of_both_compilers_loads_and_runs() {
    let cases = [
        (Cuda::V13, "80"),
        (Cuda::V13, "90"),
        (Cuda::V13, "90a"),
        (Cuda::V13, "100"),
        (Cuda::V13, "120"),
        (Cuda::V12, "80"),
        (Cuda::V12, "90"),
        (Cuda::V12, "90a"),
        (Cuda::V12, "100"),
        (Cuda::V12, "120"),
    ];
    for (cuda, arch) in cases {
        let Some(ptx) = compile(cuda, arch) else { return };
        let device = Device::new(&ptx);
        assert_eq!(device.module.module().target(), format!("sm_{arch}"));
        assert_eq!(device.module.module().entries().len(), 22, "{arch}");
        saxpy(&device);
        block_sum(&device);
        halves(&device);
        votes(&device);
        gemm(&device, 70, 45, 100);
        calls(&device);
    }
}

fn saxpy(device: &Device) {
    let n = 10_007;
    let (x, y) = (floats(n), floats(n + 1)[1..].to_vec());
    let (dx, dy) = (device.upload("x", &x), device.upload("y", &y));
    let args = [dy, dx, Arg::F32(1.7), Arg::U32(n as u32)];
    let report = device.run("saxpy", 13, 256, &args);
    let out = device.download::<f32>(dy, n);
    for i in 0..n {
        assert_eq!(out[i].to_bits(), 1.7f32.mul_add(x[i], y[i]).to_bits(), "{i}");
    }
    assert_eq!(report.counters.flops, 2 * n as u64);
    assert_eq!(report.counters.global_bytes_loaded, 8 * n as u64);
    assert_eq!(report.counters.global_bytes_stored, 4 * n as u64);
    assert_eq!(report.counters.threads, 13 * 256);
    assert!(report.approximate.is_empty());
}

fn block_sum(device: &Device) {
    let n = 5000;
    let x: Vec<f32> = (0..n).map(|i| (i % 17) as f32).collect();
    let (dx, partial) = (device.upload("x", &x), device.alloc::<f32>("partial", 6));
    let report = device.run("block_sum", 6, 256, &[dx, partial, Arg::U32(n as u32)]);
    let sums = device.download::<f32>(partial, 6);
    assert_eq!(sums.iter().sum::<f32>(), x.iter().sum::<f32>());
    assert_eq!(report.counters.barriers, 6 * 8);
}

fn halves(device: &Device) {
    let (h, b) = (device.alloc::<u32>("f16", 65_536), device.alloc::<u32>("bf16", 65_536));
    device.run("widen_halves", 256, 256, &[h, b]);
    let (h, b) = (device.download::<u32>(h, 65_536), device.download::<u32>(b, 65_536));
    for bits in 0..=u16::MAX {
        let expected = f16::from_bits(bits).to_f32();
        let found = f32::from_bits(h[usize::from(bits)]);
        assert!(
            found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
            "f16 {bits:04x}"
        );
        let expected = bf16::from_bits(bits).to_f32();
        let found = f32::from_bits(b[usize::from(bits)]);
        assert!(
            found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
            "bf16 {bits:04x}: {found} {expected}"
        );
    }
}

fn gemm(device: &Device, m: usize, n: usize, k: usize) {
    let (a, b) = (floats(m * k), floats(k * n));
    let (da, db) = (device.upload("a", &a), device.upload("b", &b));
    let dc = device.alloc::<f32>("c", m * n);
    let grid = [n.div_ceil(32) as u32, m.div_ceil(32) as u32, 1];
    let sizes = [m, n, k].map(|size| Arg::U32(size as u32));
    let args = [da, db, dc, sizes[0], sizes[1], sizes[2]];
    let report = device
        .launch("gemm", grid, [256, 1, 1], &args, &LaunchOptions::default())
        .unwrap_or_else(|finding| panic!("{finding}"));
    let c = device.download::<f32>(dc, m * n);
    for row in 0..m {
        for col in 0..n {
            let mut sum = 0f32;
            for q in 0..k {
                sum = a[row * k + q].mul_add(b[q * n + col], sum);
            }
            assert_eq!(c[row * n + col].to_bits(), sum.to_bits(), "{row} {col}");
        }
    }
    assert_eq!(report.counters.bank_conflicts, 0);
}

fn votes(device: &Device) {
    let n = 96u32;
    let out = device.alloc::<u32>("out", 6 * n as usize);
    device.run("votes", 1, n, &[out, Arg::U32(n)]);
    let out = device.download::<u32>(out, 6 * n as usize);
    let odd = |i: u32| (i * 7) % 3 == 1;
    let total = (0..n).filter(|i| odd(*i)).count() as u32;
    for i in 0..n {
        let (warp, lane) = (i / 32, i % 32);
        let lanes = 32 * warp..32 * warp + 32;
        let ballot = lanes.clone().filter(|j| odd(*j)).fold(0, |mask, j| mask | 1 << (j % 32));
        let same = (0..32).filter(|other| other % 5 == lane % 5).fold(0, |mask, j| mask | 1 << j);
        let at = 6 * i as usize;
        assert_eq!(out[at], ballot);
        assert_eq!(out[at + 1], u32::from(warp == 1) + 2 * u32::from(warp < 2));
        assert_eq!(out[at + 2], same, "match, lane {lane}");
        assert_eq!(out[at + 3], lanes.clone().sum::<u32>() ^ (lanes.end - 1));
        assert_eq!(out[at + 4], total);
        assert_eq!(out[at + 5], i ^ 3);
    }
}

fn calls(device: &Device) {
    let n = 100u32;
    let out = device.alloc::<f64>("out", 128);
    device.run("calls", 2, 64, &[out, Arg::U32(n)]);
    let found = device.download::<f64>(out, n as usize);
    for i in 0..n {
        let (a, b, c) = (i as f32, 0.5 * f64::from(i), f64::from(i % 100));
        let weigh = |k: u32| if k & 1 == 1 { f64::from(a) * b } else { b + c };
        let expected = if i % 3 != 0 { weigh(i) + weigh(i + 1) } else { weigh(1) };
        assert_eq!(found[i as usize], expected, "{i}");
    }
}

fn a_double_buffered_product_is_exact(device: &Device) {
    gemm(device, 97, 130, 161);
    gemm(device, 128, 128, 64);
}

fn scans_and_transposes_move_every_element(device: &mut Device) {
    let n = 1000u32;
    let x: Vec<u32> = random(n as usize).map(|bits| bits % 100).collect();
    let (dx, dy) = (device.upload("x", &x), device.alloc::<u32>("y", n as usize));
    device.dynamic_shared = 4 * 256;
    device.run("scan", 4, 256, &[dx, dy, Arg::U32(n)]);
    let y = device.download::<u32>(dy, n as usize);
    for (i, value) in y.iter().enumerate() {
        assert_eq!(*value, x[i / 256 * 256..=i].iter().sum::<u32>(), "{i}");
    }

    device.dynamic_shared = 0;
    let (rows, cols) = (77u32, 101u32);
    let x = floats((rows * cols) as usize);
    let (dx, dy) = (device.upload("x", &x), device.alloc::<f32>("y", x.len()));
    let grid = [cols.div_ceil(32), rows.div_ceil(32), 1];
    let args = [dx, dy, Arg::U32(rows), Arg::U32(cols)];
    let report = device.launch("transpose", grid, [32, 8, 1], &args, &LaunchOptions::default());
    assert_eq!(report.unwrap().counters.bank_conflicts, 0);
    let y = device.download::<f32>(dy, x.len());
    for r in 0..rows as usize {
        for c in 0..cols as usize {
            assert_eq!(y[c * rows as usize + r], x[r * cols as usize + c]);
        }
    }
}

fn histograms_count_with_integer_atomics(device: &Device) {
    let n = 20_000;
    let x: Vec<u8> = random(n).map(|bits| (bits >> 7) as u8 & (bits >> 20) as u8).collect();
    let (dx, bins) = (device.upload("x", &x), device.upload("bins", &[0u32; 256]));
    let report = device.run("histogram", 5, 128, &[dx, bins, Arg::U32(n as u32)]);
    let mut expected = [0u32; 256];
    x.iter().for_each(|value| expected[usize::from(*value)] += 1);
    assert_eq!(device.download::<u32>(bins, 256), expected);
    assert!(report.counters.atomics > n as u64);
}

/// Values at every exponent, with ties, subnormals, infinities and NaN.
fn corner_floats() -> Vec<f32> {
    let mut out: Vec<f32> = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX];
    for bits in random(6000) {
        out.push(f32::from_bits(bits));
        // Halfway between neighbours of bf16 and f16, and next to it.
        out.push(f32::from_bits(bits & 0xffff_8000));
        out.push(f32::from_bits(bits & 0xffff_f000));
        out.push(f32::from_bits((bits & 0xffff_8000).wrapping_add(1)));
        // In f16's range, subnormals included.
        let scaled = bits & 0x807f_ffff | (97 + (bits >> 23) % 50) << 23;
        out.push(f32::from_bits(scaled & 0xffff_f000));
        out.push(f32::from_bits(scaled));
    }
    out
}

fn narrowing_matches_half_and_truncation(device: &Device) {
    let x = corner_floats();
    let n = x.len();
    let dx = device.upload("x", &x);
    let (h, b) = (device.alloc::<u16>("f16", 2 * n), device.alloc::<u16>("bf16", 2 * n));
    device.run("narrow_floats", n.div_ceil(128) as u32, 128, &[dx, h, b, Arg::U32(n as u32)]);
    let (h, b) = (device.download::<u16>(h, 2 * n), device.download::<u16>(b, 2 * n));
    for (i, value) in x.iter().enumerate() {
        if value.is_nan() {
            assert_eq!((h[i], b[i], h[n + i], b[n + i]), (0x7fff, 0x7fff, 0x7fff, 0x7fff));
            continue;
        }
        assert_eq!(h[i], f16::from_f32(*value).to_bits(), "f16 rn {value:e}");
        assert_eq!(b[i], bf16::from_f32(*value).to_bits(), "bf16 rn {value:e}");
        assert_eq!(b[n + i], (value.to_bits() >> 16) as u16, "bf16 rz {value:e}");
        let truncated = f16::from_bits(h[n + i]).to_f32();
        assert!(truncated.abs() <= value.abs(), "f16 rz {value:e}");
        let next = f16::from_bits(h[n + i] + 1).to_f32();
        assert!(
            value.is_infinite() || next.abs() > value.abs() || next.is_infinite(),
            "f16 rz {value:e}"
        );
    }
}

fn pairs_of_halves_round_once(device: &Device) {
    let n = 8192;
    let x: Vec<u32> = random(n).collect();
    let y: Vec<u32> = random(2 * n).skip(n).collect();
    let (dx, dy) = (device.upload("x", &x), device.upload("y", &y));
    let (h, b) = (device.alloc::<u32>("f16", 3 * n), device.alloc::<u32>("bf16", 3 * n));
    device.run("half_arithmetic", 64, 128, &[dx, dy, h, b, Arg::U32(n as u32)]);
    let (h, b) = (device.download::<u32>(h, 3 * n), device.download::<u32>(b, 3 * n));
    for i in 0..2 * n {
        let (word, shift) = (i / 2, 16 * (i % 2));
        let part = |value: u32| (value >> shift) as u16;
        let (a, c) = (f16::from_bits(part(x[word])), f16::from_bits(part(y[word])));
        // f16 sums and products are exact in f64; f64 to f16 through half 2 goes over f32, so the
        // expected value comes from comparing neighbours instead.
        let exact = [
            a.to_f64() + c.to_f64(),
            a.to_f64() * c.to_f64(),
            a.to_f64().mul_add(c.to_f64(), a.to_f64()),
        ];
        for (k, exact) in exact.into_iter().enumerate() {
            let found = f16::from_bits(part(h[3 * word + k]));
            check_nearest(
                exact,
                found.to_f64(),
                f16::from_bits(found.to_bits() ^ 1).to_f64(),
                65_520.0,
            );
        }
        let (a, c) = (bf16::from_bits(part(x[word])), bf16::from_bits(part(y[word])));
        let product = a.to_f64() * c.to_f64();
        let found = bf16::from_bits(part(b[3 * word + 1]));
        check_nearest(
            product,
            found.to_f64(),
            bf16::from_bits(found.to_bits() ^ 1).to_f64(),
            3.396e38,
        );
    }
}

/// `found` is at least as near to `exact` as `other`, its neighbour.
fn check_nearest(exact: f64, found: f64, other: f64, overflow: f64) {
    if exact.is_nan() {
        assert!(found.is_nan());
    } else if exact.abs() >= overflow {
        assert!(found.is_infinite(), "{exact:e} {found:e}");
    } else if !other.is_nan() && !other.is_infinite() {
        assert!((found - exact).abs() <= (other - exact).abs(), "{exact:e} {found:e} {other:e}");
    }
}

#[test]
fn directed_rounding_brackets_the_exact_result() {
    for options in [&[][..], &["-ftz=true"]] {
        let Some(compiler) = nvrtc(Cuda::V13) else { return };
        let device = Device::new(&compiler.compile("conformance.cu", SOURCE, "90", options));
        let ftz = !options.is_empty();
        let x: Vec<f32> = corner_floats().into_iter().filter(|x| x.is_finite()).collect();
        let y: Vec<f32> = x.iter().skip(1).chain(&x[..1]).copied().collect();
        let n = x.len();
        let (dx, dy) = (device.upload("x", &x), device.upload("y", &y));
        let out = device.alloc::<f32>("out", 20 * n);
        device.run("rounding", n.div_ceil(256) as u32, 256, &[dx, dy, out, Arg::U32(n as u32)]);
        let out = device.download::<f32>(out, 20 * n);
        for i in 0..n {
            let flush = |v: f32| if ftz && v.is_subnormal() { 0f32.copysign(v) } else { v };
            let (a, b) = (flush(x[i]), flush(y[i]));
            let o = &out[20 * i..20 * i + 20];
            let nearest = [a + b, a * b, a / b, a.mul_add(b, a), a.abs().sqrt()];
            for (op, nearest) in nearest.into_iter().enumerate() {
                let [rn, rz, rd, ru] = [o[4 * op], o[4 * op + 1], o[4 * op + 2], o[4 * op + 3]];
                if nearest.is_nan() {
                    assert!([rn, rz, rd, ru].iter().all(|v| v.to_bits() == 0x7fff_ffff));
                    continue;
                }
                assert_eq!(rn.to_bits(), flush(nearest).to_bits(), "op {op}: {a:e} {b:e}");
                if ftz && (nearest.abs() <= 2.0 * f32::MIN_POSITIVE) {
                    continue;
                }
                assert!(rd <= rn && rn <= ru, "op {op}: {a:e} {b:e}: {rd:e} {rn:e} {ru:e}");
                assert!(ru == rd || ru.to_bits() == rd.next_up().to_bits() || ru == 0.0, "op {op}");
                let toward_zero = if rn > 0.0 || rd >= 0.0 && ru > 0.0 { rd } else { ru };
                assert_eq!(rz, toward_zero, "op {op}: {a:e} {b:e}");
                // The exact product tells which side the rounded ones must lie on.
                if op == 1 {
                    let exact = f64::from(a) * f64::from(b);
                    assert!(f64::from(rd) <= exact && exact <= f64::from(ru), "{a:e} {b:e}");
                }
            }
        }
    }
}

fn floats_become_integers_in_four_ways(device: &Device) {
    let x = corner_floats();
    let n = x.len();
    let (dx, out) = (device.upload("x", &x), device.alloc::<i32>("out", 4 * n));
    device.run("float_to_int", n.div_ceil(96) as u32, 96, &[dx, out, Arg::U32(n as u32)]);
    let out = device.download::<i32>(out, 4 * n);
    for (i, value) in x.iter().enumerate() {
        let wide = f64::from(*value);
        let expected =
            [wide.round_ties_even(), wide.trunc(), wide.floor(), wide.ceil()].map(|v| v as i32);
        assert_eq!(out[4 * i..4 * i + 4], expected, "{value:e}");
    }
}

fn integer_instructions_match_the_host(device: &Device) {
    let n = 4096;
    let mut x: Vec<i32> = random(n).map(|bits| bits as i32).collect();
    let mut y: Vec<i32> = random(2 * n).skip(n).map(|b| (b as i32) >> (b % 32)).collect();
    (x[0], y[0], x[1], y[1]) = (i32::MIN, 3, 0, -7);
    let (dx, dy) = (device.upload("x", &x), device.upload("y", &y));
    let out = device.alloc::<i64>("out", 24 * n);
    device.run("integers", 32, 128, &[dx, dy, out, Arg::U32(n as u32)]);
    let out = device.download::<i64>(out, 24 * n);
    for i in 0..n {
        let (a, b) = (x[i], y[i]);
        let (ua, ub) = (a as u32, b as u32);
        let wide = u64::from(ua) << 32 | u64::from(ub);
        let bytes = [ua.to_le_bytes(), ub.to_le_bytes()].concat();
        let expected: [i64; 24] = [
            if b != 0 { i64::from(a.wrapping_div(b)) } else { 0 },
            if b != 0 { i64::from(a.wrapping_rem(b)) } else { 0 },
            ua.checked_div(ub).map_or(0, i64::from),
            ua.checked_rem(ub).map_or(0, i64::from),
            (i64::from(a) * i64::from(b)) >> 32,
            ((u64::from(ua) * u64::from(ub)) >> 32) as i64,
            i64::from(a) * i64::from(b),
            i64::from(a.leading_zeros()),
            i64::from(ua.count_ones()),
            if ua == 0 { 0 } else { i64::from(ua.trailing_zeros()) + 1 },
            i64::from(ua.reverse_bits()),
            i64::from(u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]])),
            i64::from(ub << 7 | ua >> 25),
            i64::from(a.abs_diff(b).wrapping_add(5)),
            i64::from(a.min(b)),
            i64::from(ua.max(ub)),
            i64::from(a >> (ub & 31)),
            i64::from(ua >> (ub & 31)),
            i64::from(a.wrapping_abs()),
            ((u128::from(wide) * u128::from(wide.wrapping_add(12345))) >> 64) as i64,
            (wide / u64::from(ua | 1)) as i64,
            i64::from(wide.leading_zeros()),
            ((wide >> (ub & 63)) & 0xfff) as i64,
            ((wide as i64) >> 3).wrapping_mul(7),
        ];
        for k in 0..24 {
            assert_eq!(out[24 * i + k], expected[k], "result {k} of {a} {b}");
        }
    }
}

fn divergent_threads_each_follow_their_own_path(device: &Device) {
    let n = 3000usize;
    let x: Vec<i32> = (1..=n as i32).collect();
    let (dx, dy) = (device.upload("x", &x), device.alloc::<i32>("y", n));
    device.run("divergent", 24, 128, &[dx, dy, Arg::U32(n as u32)]);
    let y = device.download::<i32>(dy, n);
    for i in 0..n {
        let (mut v, mut steps) = (x[i], 0);
        while v != 1 && steps < 1000 {
            if v % 2 == 0 {
                v /= 2;
            } else {
                v = 3 * v + 1;
                steps += if v % 5 == 0 { 2 } else { 0 };
            }
            steps += 1;
        }
        let expected = match i % 9 {
            0 => steps + 100,
            1 => steps * 3,
            2 => steps - 7,
            3 => steps ^ 0x55,
            4 => steps << 2,
            5 => -steps,
            6 => steps % 11,
            7 => steps | 0x80,
            _ => steps,
        };
        assert_eq!(y[i], expected, "{i}");
    }
}

fn threads_that_have_exited_hold_no_barrier_up(device: &Device) {
    let x: Vec<f32> = (0..300).map(|i| i as f32).collect();
    // Inside a warp, at its edge, and a whole warp and more.
    for n in [300u32, 288, 257, 256] {
        for seed in 0..20 {
            let (input, output) = (device.upload("x", &x), device.alloc::<f32>("y", 300));
            let options = LaunchOptions { seed, ..LaunchOptions::default() };
            let args = [input, output, Arg::U32(n)];
            device
                .launch("early_exit", [3, 1, 1], [128, 1, 1], &args, &options)
                .unwrap_or_else(|finding| panic!("{finding}"));
            let found = device.download::<f32>(output, n as usize);
            let expected = (0..n).map(|i| (if i % 128 > 0 { 2 * i - 1 } else { i }) as f32);
            assert_eq!(found, expected.collect::<Vec<_>>(), "{n} {seed}");
        }
    }
}

fn threads_that_returned_ahead_of_a_shuffle_are_not_missed(device: &Device) {
    let y = device.upload("y", &[0f32; 1024]);
    device
        .launch("leave_one_by_one", [1, 1, 1], [32, 1, 1], &[y], &LaunchOptions::default())
        .unwrap_or_else(|finding| panic!("{finding}"));
    let left = |i| if i % 32 > i / 32 { i % 32 + i / 32 } else { 0 };
    let expected = (0..1024).map(|i| left(i) as f32);
    assert_eq!(device.download::<f32>(y, 1024), expected.collect::<Vec<_>>());
}

fn grids_have_three_dimensions_and_addresses_64_bits(device: &Device) {
    let (grid, block) = ([3u32, 2, 4], [5u32, 4, 3]);
    let [w, h, d] = [15usize, 8, 12];
    let out = device.alloc::<u32>("out", w * h * d);
    device.launch("grid3", grid, block, &[out], &LaunchOptions::default()).unwrap();
    let found = device.download::<u32>(out, w * h * d);
    for (i, value) in found.iter().enumerate() {
        let (x, y, z) = (i % w, i / w % h, i / (w * h));
        assert_eq!(*value as usize, x + 1000 * y + 1_000_000 * z);
    }

    let data: Vec<u8> = (0..64).collect();
    let (Arg::Ptr(address), out) = (device.upload("x", &data), device.alloc::<u8>("out", 64))
    else {
        panic!()
    };
    let far = 5u64 << 32;
    device.run("wide_index", 1, 64, &[Arg::Ptr(address - far), out, Arg::U64(far)]);
    assert_eq!(device.download::<u8>(out, 64), data);
}

fn module_variables_vectors_and_local_arrays_hold_their_values(device: &Device) {
    let out = device.alloc::<f32>("out", 100);
    device.run("module_variables", 4, 32, &[out, Arg::U32(100)]);
    let found = device.download::<f32>(out, 100);
    assert!((0..100).all(|i| found[i] == [3.4445, -4.7750, 2.0315][i % 3]));
    let (counter, bytes) = device.variable("counter");
    assert_eq!(bytes, 4);
    assert_eq!(device.download::<u32>(Arg::Ptr(counter), 1), [5 + 4 * 2]);

    let x = floats(4 * 100);
    let (dx, dy) = (device.upload("x", &x), device.alloc::<f32>("y", 400));
    let report = device.run("vectors", 4, 32, &[dx, dy, Arg::U32(100)]);
    let y = device.download::<f32>(dy, 400);
    for i in 0..100 {
        let v = &x[4 * i..4 * i + 4];
        assert_eq!(y[4 * i..4 * i + 4], [v[3], v[2], v[1] + 1.0, v[0] * 2.0]);
    }
    assert_eq!(report.counters.sectors_loaded, 1600 / 32);

    let x: Vec<u32> = random(100).collect();
    let (dx, dy) = (device.upload("x", &x), device.alloc::<u32>("y", 100));
    device.run("local_array", 4, 32, &[dx, dy, Arg::U32(100)]);
    let y = device.download::<u32>(dy, 100);
    assert!((0..100).all(|i| y[i] == x[i] % 16 * i as u32));
}

#[test]
fn results_and_counters_do_not_depend_on_threads_or_seed() {
    let Some(device) = device() else { return };
    let n = 5000;
    let x = floats(n);
    let dx = device.upload("x", &x);
    let mut seen = None;
    for (threads, seed) in [(1, 0), (2, 0), (3, 7), (1, 8)] {
        let partial = device.alloc::<u32>("partial", 6);
        let options = LaunchOptions { threads, seed, ..LaunchOptions::default() };
        let args = [dx, partial, Arg::U32(n as u32)];
        let report = device.launch("block_sum", [6, 1, 1], [256, 1, 1], &args, &options).unwrap();
        let outcome = (device.download::<u32>(partial, 6), report.counters, report.approximate);
        assert_eq!(*seen.get_or_insert(outcome.clone()), outcome, "threads {threads} seed {seed}");
    }
}
