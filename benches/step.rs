//! Whole optimizer steps on the CPU at the shapes of GPT-2 small: error first, then time and FLOP rate.
//!
//! One transformer layer by default (4 of 768×768, 768×3072, 3072×768); `MUON_BENCH_LAYERS=12` for the model.
//! The ceiling is the time the step's GEMM FLOPs take at the speed of a 768³ f32 product on every core.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a bench prints")]

#[path = "cpu/ceiling.rs"]
mod ceiling;

use std::time::{Duration, Instant};

use criterion::Criterion;
use muon_cuda::reference::{Matrix, newton_schulz};
use muon_cuda::{
    Cpu, Muon, MuonConfig, MuonRule, Orthogonalizer, ParamSpec, StepOptions, StepTensor,
};

const LAYER: [[usize; 2]; 6] =
    [[768, 768], [768, 768], [768, 768], [768, 768], [768, 3072], [3072, 768]];

/// Uniform numbers in (−1, 1).
fn numbers(len: usize, mut state: u64) -> Vec<f32> {
    (0..len)
        .map(|_| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let bits = u16::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 48).unwrap();
            f32::from(bits) / 32768.0 - 1.0
        })
        .collect()
}

/// Relative error of one small step against the f64 oracle's polynomials.
fn error(preset: &str) -> f64 {
    let Orthogonalizer::Polynomial { schedule, .. } = Orthogonalizer::preset(preset).unwrap()
    else {
        return f64::NAN;
    };
    let input = numbers(96 * 192, 3);
    let expected = newton_schulz(&schedule, &Matrix::from_f32(96, 192, &input).unwrap(), 1e-30);
    let mut output = vec![0.0f32; input.len()];
    let options = muon_cuda::OrthogonalizeOptions {
        orthogonalizer: Orthogonalizer::preset(preset).unwrap(),
        ..muon_cuda::OrthogonalizeOptions::default()
    };
    let shape = muon_cuda::MatrixShape { rows: 96, cols: 192 };
    muon_cuda::orthogonalize(
        &mut Cpu::new().unwrap(),
        shape,
        &input[..],
        &mut output[..],
        &options,
    )
    .unwrap();
    let (mut difference, mut norm) = (0.0, 0.0);
    for (x, e) in output.iter().zip(expected.data()) {
        difference += (f64::from(*x) - e).powi(2);
        norm += e * e;
    }
    f64::sqrt(difference / norm)
}

fn main() {
    let layers = std::env::var("MUON_BENCH_LAYERS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(5))
        .configure_from_args();
    for preset in ["jordan", "polar_express_5", "nonic3_band12"] {
        let cpu = Cpu::new().unwrap();
        let peak = ceiling::ceiling(768, cpu.threads());
        let mut muon = Muon::new(cpu, MuonConfig::default()).unwrap();
        let rule = MuonRule {
            orthogonalizer: Orthogonalizer::preset(preset).unwrap(),
            ..MuonRule::default()
        };
        let group = muon.add_group("hidden", rule).unwrap();
        let mut ids = Vec::new();
        let (mut params, mut grads) = (Vec::new(), Vec::new());
        for layer in 0..layers {
            for (i, shape) in LAYER.iter().enumerate() {
                let name = format!("layer{layer}.w{i}");
                ids.push(muon.add_param(group, ParamSpec::new(name, shape)).unwrap());
                params.push(numbers(shape[0] * shape[1], 1 + i as u64));
                grads.push(numbers(shape[0] * shape[1], 100 + i as u64));
            }
        }
        let flops = muon.plan().unwrap().flops() as f64;
        print!(
            "{layers} layer(s), {preset}: error against f64 {:.1e}\n{}",
            error(preset),
            muon.plan().unwrap()
        );
        let mut step = || {
            let mut tensors: Vec<_> = ids
                .iter()
                .zip(params.iter_mut().zip(&grads))
                .map(|(id, (p, g))| StepTensor::new(*id, p, g))
                .collect();
            muon.step(&StepOptions::default(), &mut tensors).unwrap();
        };
        step();
        let start = Instant::now();
        step();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{:.1} ms a step, {:.0} GFLOP/s; the products alone at the ceiling of {:.0} GFLOP/s: {:.1} ms ({:.0} %)",
            seconds * 1e3,
            flops / seconds / 1e9,
            peak / 1e9,
            flops / peak * 1e3,
            100.0 * flops / peak / seconds
        );
        criterion.bench_function(&format!("step/{layers}-layer/{preset}"), |b| b.iter(&mut step));
    }
    criterion.final_summary();
}
