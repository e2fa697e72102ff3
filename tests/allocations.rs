//! Heap allocations of a step, counted on the calling thread: none outside matrix products.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "tests stop at the first surprise, print what they measured, and narrow on purpose"
)]

mod support;

use muon_cuda::{
    AdamWRule, Cpu, GroupScalars, Muon, MuonConfig, MuonRule, Orthogonalizer, ParamSpec, Precision,
    StepOptions, StepTensor,
};
use support::{Random, degree_nine, rule};

/// Allocations of each of five steps, after a first one.
fn count(rule: MuonRule, precision: Precision) -> Vec<u64> {
    let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
    let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), config).unwrap();
    let hidden = muon.add_group("hidden", rule).unwrap();
    let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
    let a = muon.add_param(hidden, ParamSpec::new("a", &[40, 72])).unwrap();
    let b = muon.add_param(hidden, ParamSpec::new("b", &[40, 72])).unwrap();
    let c = muon.add_param(hidden, ParamSpec::new("c", &[96, 33])).unwrap();
    let d = muon.add_param(rest, ParamSpec::new("d", &[40])).unwrap();
    let mut random = Random::new(1);
    let (mut pa, mut pb, mut pc, mut pd) =
        (random.normals(2880), random.normals(2880), random.normals(3168), random.normals(40));
    let (ga, gb, gc, gd) =
        (random.normals(2880), random.normals(2880), random.normals(3168), random.normals(40));
    let mut counts = Vec::new();
    for step in 0..6 {
        let options = StepOptions { clip_norm: Some(1.0), ..StepOptions::default() };
        let mut tensors = [
            StepTensor::new(a, &mut pa, &ga),
            StepTensor::new(b, &mut pb, &gb),
            StepTensor::new(c, &mut pc, &gc),
            StepTensor::new(d, &mut pd, &gd),
        ];
        let info = allocation_counter::measure(|| {
            muon.step(&options, &mut tensors).unwrap();
        });
        if step > 0 {
            counts.push(info.count_total);
        }
    }
    counts
}

#[test]
fn a_step_without_matrix_products_allocates_nothing() {
    for orthogonalizer in [Orthogonalizer::Identity, Orthogonalizer::Frobenius] {
        let rule = MuonRule { orthogonalizer, ..MuonRule::default() };
        assert_eq!(count(rule, Precision::F32), [0; 5]);
    }
}

#[test]
fn matrix_products_allocate_the_same_every_step() {
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        for preset in ["jordan", degree_nine(precision), "turbo_muon"] {
            let counts = count(rule(preset), precision);
            assert!(counts.iter().all(|c| *c == counts[0]), "{preset} {precision}: {counts:?}");
            println!(
                "{preset} {precision}: {} allocations a step, all inside matrix products",
                counts[0]
            );
        }
    }
}

/// Rates, decay, momentum and β that change every step keep plan and workspace.
#[test]
fn scalars_that_change_every_step_allocate_nothing() {
    let rule = MuonRule { orthogonalizer: Orthogonalizer::Identity, ..MuonRule::default() };
    let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), MuonConfig::default()).unwrap();
    let hidden = muon.add_group("hidden", rule).unwrap();
    let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
    let a = muon.add_param(hidden, ParamSpec::new("a", &[40, 72])).unwrap();
    let d = muon.add_param(rest, ParamSpec::new("d", &[40])).unwrap();
    let mut random = Random::new(1);
    let (mut pa, mut pd) = (random.normals(2880), random.normals(40));
    let (ga, gd) = (random.normals(2880), random.normals(40));
    for step in 0..6u32 {
        let t = f64::from(step) / 10.0;
        let mut tensors = [StepTensor::new(a, &mut pa, &ga), StepTensor::new(d, &mut pd, &gd)];
        let none = GroupScalars::default();
        let info = allocation_counter::measure(|| {
            let scalars = GroupScalars { lr: Some(t), momentum: Some(t), ..none };
            muon.set_scalars(hidden, scalars).unwrap();
            let scalars = GroupScalars { weight_decay: Some(t), betas: Some((t, t)), ..none };
            muon.set_scalars(rest, scalars).unwrap();
            muon.set_lr(rest, t).unwrap();
            muon.step(&StepOptions::default(), &mut tensors).unwrap();
        });
        assert!(
            step == 0 || info.count_total == 0,
            "step {step}: {} allocations",
            info.count_total
        );
    }
}
