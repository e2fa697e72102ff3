//! Seeded inputs and a small harness that steps an optimizer and the f64 oracle side by side.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "each test binary uses a part of it"
)]

use muon_cuda::reference::{self, Matrix};
use muon_cuda::{
    Cpu, Layout, Muon, MuonConfig, MuonRule, Orthogonalizer, ParamId, ParamSpec, Precision,
    StepOptions, StepTensor,
};

/// xorshift64*, enough for test inputs.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / f64::powi(2.0, 53)
    }

    /// Standard normal (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal() as f32).collect()
    }

    /// Integers in `-limit..=limit`.
    pub fn integers(&mut self, n: usize, limit: u64) -> Vec<f32> {
        (0..n).map(|_| (self.bits() % (2 * limit + 1)) as f32 - limit as f32).collect()
    }
}

/// A rule with an orthogonalizer by preset name.
pub fn rule(preset: &str) -> MuonRule {
    MuonRule { orthogonalizer: Orthogonalizer::preset(preset).unwrap(), ..MuonRule::default() }
}

/// A schedule with polynomials of degree 9 that has room for the rounding of that precision.
pub fn degree_nine(precision: Precision) -> &'static str {
    match precision {
        Precision::Bf16 | Precision::Tf32 => "tuned_bf16",
        Precision::Fp16 => "tuned_fp16",
        _ => "nonic3_band12",
    }
}

/// An optimizer with one parameter `w` of that shape under that rule.
pub fn single(
    config: MuonConfig,
    rule: MuonRule,
    spec: ParamSpec,
    threads: usize,
) -> (Muon<Cpu>, ParamId) {
    let mut muon = Muon::new(Cpu::with_threads(threads).unwrap(), config).unwrap();
    let group = muon.add_group("hidden", rule).unwrap();
    let id = muon.add_param(group, spec).unwrap();
    (muon, id)
}

/// Steps one parameter through all gradients; returns it.
pub fn run(
    config: &MuonConfig,
    rule: &MuonRule,
    shape: &[usize],
    param: &[f32],
    grads: &[Vec<f32>],
    threads: usize,
) -> Vec<f32> {
    let (mut muon, id) = single(config.clone(), rule.clone(), ParamSpec::new("w", shape), threads);
    let mut param = param.to_vec();
    for grad in grads {
        muon.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut param, grad)]).unwrap();
    }
    param
}

/// The oracle's result for one matrix.
pub fn oracle(
    rule: &MuonRule,
    layout: Layout,
    rows: usize,
    cols: usize,
    param: &[f32],
    grads: &[Vec<f32>],
) -> Vec<f64> {
    let mut p = Matrix::from_f32(rows, cols, param).unwrap();
    let mut m = Matrix::zeros(rows, cols);
    for grad in grads {
        let g = Matrix::from_f32(rows, cols, grad).unwrap();
        reference::muon_step(rule, layout, rule.lr, &mut p, &mut m, &g);
    }
    p.data().to_vec()
}

/// `‖found − expected‖_F / ‖expected − start‖_F`: the error of the whole update.
pub fn update_error(found: &[f32], expected: &[f64], start: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let error: f64 = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    let update: f64 = expected.iter().zip(start).map(|(a, b)| (a - f64::from(*b)).powi(2)).sum();
    (error / update).sqrt()
}

/// Bits, so that signed zeros and NaN payloads count.
pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
