//! Orthogonalization of single matrices on the CPU: error first, then time, then the part of a GEMM ceiling.
//!
//! The ceiling is faer's f32 product of square matrices of the same short side, on one thread for each core,
//! measured in the same run.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a bench prints")]

#[path = "cpu/ceiling.rs"]
mod ceiling;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use muon_cuda::{Cpu, MatrixShape, OrthogonalizeOptions, Orthogonalizer, Precision, orthogonalize};

const SHAPES: [(usize, usize); 5] =
    [(256, 256), (768, 768), (768, 3072), (1024, 4096), (3072, 768)];
const PRESETS: [&str; 4] = ["jordan", "polar_express_5", "nonic3_band12", "tuned_bf16"];

/// Standard normal numbers, near enough: sums of twelve uniform ones.
fn gaussian(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut uniform = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        f32::from(u16::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 48).unwrap()) / 65536.0
    };
    (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

fn options(orthogonalizer: Orthogonalizer, precision: Precision) -> OrthogonalizeOptions {
    OrthogonalizeOptions {
        orthogonalizer,
        precision: Some(precision),
        ..OrthogonalizeOptions::default()
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let mut cpu = Cpu::new().unwrap();
    for (rows, cols) in SHAPES {
        let shape = MatrixShape { rows, cols };
        let input = gaussian(shape.len());
        let mut exact = vec![0.0f32; shape.len()];
        let svd = options(Orthogonalizer::ExactSvd, Precision::F32);
        orthogonalize(&mut cpu, shape, &input[..], &mut exact[..], &svd).unwrap();
        let peak = ceiling::ceiling(shape.short(), cpu.threads()) / 1e9;
        println!("{shape}: ceiling {peak:.0} GFLOP/s on {} threads", cpu.threads());
        let mut group = criterion.benchmark_group(format!("orthogonalize/{shape}"));
        for preset in PRESETS {
            for precision in [Precision::F32, Precision::Bf16] {
                // It has no room for rounding: the plan refuses it in 16 bit.
                if preset == "nonic3_band12" && precision != Precision::F32 {
                    continue;
                }
                let options = options(Orthogonalizer::preset(preset).unwrap(), precision);
                let mut output = vec![0.0f32; shape.len()];
                let mut run = || {
                    orthogonalize(&mut cpu, shape, &input[..], &mut output[..], &options).unwrap()
                };
                let start = Instant::now();
                let done = run();
                let first = start.elapsed().as_secs_f64();
                let start = Instant::now();
                run();
                let seconds = start.elapsed().as_secs_f64().min(first);
                let (mut difference, mut norm) = (0.0f64, 0.0f64);
                for (&x, &e) in output.iter().zip(&exact) {
                    difference += f64::from(x - e).powi(2);
                    norm += f64::from(e).powi(2);
                }
                let gflops = done.flops as f64 / seconds / 1e9;
                println!(
                    "{shape} {preset} {precision} {}: error to the polar factor {:.4}, {:.2} ms, \
                     {gflops:.0} GFLOP/s, {:.0}% of the ceiling",
                    done.method.map(|m| m.to_string()).unwrap_or_default(),
                    (difference / norm).sqrt(),
                    seconds * 1e3,
                    100.0 * gflops / peak,
                );
                group.throughput(Throughput::Elements(done.flops));
                group.bench_function(BenchmarkId::new(preset, precision), |b| {
                    b.iter(|| {
                        orthogonalize(&mut cpu, shape, &input[..], &mut output[..], &options)
                            .unwrap()
                    });
                });
            }
        }
        group.finish();
    }
    criterion.final_summary();
}
