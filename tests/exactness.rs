//! Equalities without tolerances: integers against hand-written SGD, powers of two, threads, batches, runs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "tests stop at the first surprise, print what they measured, and narrow on purpose"
)]

mod support;

use half::bf16;
use muon_cuda::reference::{self, Matrix};
use muon_cuda::{
    AdamWRule, Bf16Params, Cpu, Dtype, Layout, MomentumMode, Muon, MuonConfig, MuonRule, Nesterov,
    NonFinite, Orthogonalizer, ParamSpec, Precision, StepOptions, StepTensor, UpdateScale,
    WeightDecayMode,
};
use support::{Random, bits, degree_nine, rule, run};

/// Every number is a short binary fraction, so f32 is exact and what is left is one rounding to nearest a step.
#[test]
fn bf16_parameters_without_a_master_copy_round_to_nearest_bit_for_bit() {
    for weight_decay_mode in [WeightDecayMode::Decoupled, WeightDecayMode::L2] {
        let rule = MuonRule {
            lr: 0.25,
            momentum: 0.5,
            weight_decay: 0.25,
            weight_decay_mode,
            update_scale: UpdateScale::None,
            orthogonalizer: Orthogonalizer::Identity,
            ..MuonRule::default()
        };
        let adamw = AdamWRule { lr: 0.25, beta1: 0.0, beta2: 0.0, eps: 1.0, weight_decay: 0.25 };
        let config = MuonConfig { bf16_params: Bf16Params::Nearest, ..MuonConfig::default() };
        let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), config).unwrap();
        let hidden = muon.add_group("hidden", rule.clone()).unwrap();
        let rest = muon.add_group("rest", adamw).unwrap();
        let spec = |name: &str| ParamSpec::new(name, &[6, 10]).dtype(Dtype::Bf16);
        let w = muon.add_param(hidden, spec("w")).unwrap();
        let b = muon.add_param(rest, spec("b")).unwrap();
        let mut random = Random::new(41);
        let start = random.integers(60, 250);
        let to_bf16 = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>();
        let (mut p, mut q) = (to_bf16(&start), to_bf16(&start));
        let mut expected = Matrix::from_f32(6, 10, &start).unwrap();
        let mut momentum = Matrix::zeros(6, 10);
        let (mut of_adamw, mut m, mut v) = (expected.data().to_vec(), vec![0.0; 60], vec![0.0; 60]);
        let mut rounded = 0;
        for step in 1..=4 {
            // 0, ±1 and ±3: |g| + eps is a power of two, so AdamW's division is exact as well.
            let grad: Vec<f32> = random
                .integers(60, 2)
                .iter()
                .map(|x| if x.abs() == 2.0 { 1.5 * x } else { *x })
                .collect();
            muon.step(
                &StepOptions::default(),
                &mut [StepTensor::new(w, &mut p, &grad), StepTensor::new(b, &mut q, &grad)],
            )
            .unwrap();
            let g = Matrix::from_f32(6, 10, &grad).unwrap();
            reference::muon_step(&rule, Layout::OutIn, rule.lr, &mut expected, &mut momentum, &g);
            reference::adamw_step(&adamw, adamw.lr, step, &mut of_adamw, &mut m, &mut v, g.data());
            for x in expected.data_mut().iter_mut().chain(&mut of_adamw) {
                let exact = *x;
                *x = reference::round_to_bf16(exact);
                rounded += usize::from(*x != exact);
            }
            let widen = |x: &[bf16]| x.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
            assert_eq!(widen(&p), expected.data(), "Muon, {weight_decay_mode:?}, step {step}");
            assert_eq!(widen(&q), of_adamw, "AdamW, step {step}");
        }
        assert!(rounded > 100, "only {rounded} roundings");
        let names: Vec<_> =
            muon.export_state(w).unwrap().buffers.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["momentum_buffer"], "no master copy");
    }
}

#[test]
fn without_orthogonalization_integers_equal_sgd_with_momentum_bit_for_bit() {
    for mode in [MomentumMode::Ema, MomentumMode::Sum] {
        for nesterov in [Nesterov::On, Nesterov::Off] {
            let rule = MuonRule {
                lr: 0.25,
                momentum: 0.5,
                momentum_mode: mode,
                nesterov,
                weight_decay: 0.5, // lr · decay = 1/8: exact
                orthogonalizer: Orthogonalizer::Identity,
                update_scale: UpdateScale::Custom(2.0),
                ..MuonRule::default()
            };
            for (rows, cols) in [(1, 1), (3, 5), (31, 33), (127, 257)] {
                let n = rows * cols;
                let mut random = Random::new(n as u64);
                let start = random.integers(n, 8);
                let grads: Vec<_> = (0..4).map(|_| random.integers(n, 8)).collect();
                let found = run(&MuonConfig::default(), &rule, &[rows, cols], &start, &grads, 2);

                let mut expected = start.clone();
                let mut m = vec![0.0f32; n];
                for g in &grads {
                    for i in 0..n {
                        let fresh = if mode == MomentumMode::Ema { 0.5 } else { 1.0 };
                        m[i] = 0.5 * m[i] + fresh * g[i];
                        let d =
                            if nesterov == Nesterov::On { fresh * g[i] + 0.5 * m[i] } else { m[i] };
                        expected[i] = expected[i] * 0.875 - 0.5 * d;
                    }
                }
                assert_eq!(bits(&found), bits(&expected), "{mode:?} {nesterov:?} {rows}x{cols}");
            }
        }
    }
}

/// Gradients × 2^k: the same parameters bit for bit.
fn scaled_runs(
    shape: [usize; 2],
    magnitude: f32,
    rule: &MuonRule,
    precision: Precision,
    exponents: &[i32],
) {
    let n = shape[0] * shape[1];
    let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
    let mut random = Random::new(5);
    let start = random.normals(n);
    let grads: Vec<Vec<f32>> =
        (0..2).map(|_| random.normals(n).iter().map(|g| g * magnitude).collect()).collect();
    let expected = run(&config, rule, &shape, &start, &grads, 2);
    assert!(expected.iter().all(|x| x.is_finite()) && expected != start);
    for &k in exponents {
        let factor = 2f32.powi(k);
        let scaled: Vec<Vec<f32>> =
            grads.iter().map(|g| g.iter().map(|g| g * factor).collect()).collect();
        let found = run(&config, rule, &shape, &start, &scaled, 2);
        assert_eq!(bits(&found), bits(&expected), "{shape:?} {magnitude} {precision} 2^{k}");
    }
}

#[test]
fn scaling_gradients_by_a_power_of_two_changes_no_bit() {
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16, Precision::Fp16] {
        for preset in ["jordan", "polar_express_5", degree_nine(precision), "turbo_muon"] {
            for shape in [[17, 33], [33, 17], [64, 64]] {
                for magnitude in [1.0, 1e-2] {
                    scaled_runs(shape, magnitude, &rule(preset), precision, &[-60, -7, 1, 60]);
                }
            }
        }
        let svd = MuonRule { orthogonalizer: Orthogonalizer::ExactSvd, ..MuonRule::default() };
        scaled_runs([9, 14], 1.0, &svd, precision, &[-60, 60]);
        let gradient_descent =
            MuonRule { orthogonalizer: Orthogonalizer::Frobenius, ..MuonRule::default() };
        scaled_runs([9, 14], 1.0, &gradient_descent, precision, &[-60, 60]);
    }
}

#[test]
fn scaling_a_gpt2_sized_gradient_changes_no_bit() {
    for magnitude in [1.0, 1e-2] {
        scaled_runs([768, 3072], magnitude, &rule("nonic3_band12"), Precision::F32, &[-60, 60]);
    }
}

#[test]
fn gradients_near_the_ends_of_f32_give_the_right_direction() {
    let mut random = Random::new(11);
    let (start, grad) = (random.normals(24 * 40), random.normals(24 * 40));
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16, Precision::Fp16] {
        let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
        let expected =
            run(&config, &rule("jordan"), &[24, 40], &start, std::slice::from_ref(&grad), 1);
        for k in [-100, 100] {
            let scaled: Vec<f32> = grad.iter().map(|g| g * 2f32.powi(k)).collect();
            let found = run(&config, &rule("jordan"), &[24, 40], &start, &[scaled], 1);
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                let steps = a.iter().zip(b).zip(&start);
                steps.map(|((a, b), s)| f64::from(a - s) * f64::from(b - s)).sum()
            };
            let cosine =
                dot(&found, &expected) / (dot(&found, &found) * dot(&expected, &expected)).sqrt();
            // 2^-100 times the smallest normals are subnormal and lose bits; the direction stays.
            assert!(cosine > 1.0 - 1e-4, "{precision} 2^{k}: {cosine}");
        }
    }
}

#[test]
fn threads_and_repetition_change_no_bit() {
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
        for shape in [[7, 13], [127, 257], [300, 200], [1, 40], [40, 1]] {
            for preset in ["jordan", degree_nine(precision)] {
                let mut random = Random::new(3);
                let n = shape[0] * shape[1];
                let start = random.normals(n);
                let grads: Vec<_> = (0..3).map(|_| random.normals(n)).collect();
                let expected = run(&config, &rule(preset), &shape, &start, &grads, 1);
                for threads in [1, 2, 3] {
                    let found = run(&config, &rule(preset), &shape, &start, &grads, threads);
                    assert_eq!(
                        bits(&found),
                        bits(&expected),
                        "{shape:?} {preset} {threads} threads"
                    );
                }
            }
        }
    }
}

#[test]
fn a_batch_equals_its_matrices_one_by_one() {
    let shapes: Vec<[usize; 2]> =
        [[48, 80]; 5].into_iter().chain([[80, 48]; 2]).chain([[33, 33]; 3]).collect();
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
        for workspace_limit in [1 << 30, 1] {
            let config = MuonConfig {
                precision: Some(precision),
                workspace_limit,
                non_finite: NonFinite::Skip,
                ..MuonConfig::default()
            };
            let mut random = Random::new(17);
            let mut params: Vec<_> = shapes.iter().map(|s| random.normals(s[0] * s[1])).collect();
            let grads: Vec<_> = shapes.iter().map(|s| random.normals(s[0] * s[1])).collect();
            let alone: Vec<_> = shapes
                .iter()
                .zip(params.iter().zip(&grads))
                .map(|(s, (p, g))| {
                    run(&config, &rule("polar_express_5"), s, p, std::slice::from_ref(g), 1)
                })
                .collect();

            let mut muon = Muon::new(Cpu::with_threads(3).unwrap(), config).unwrap();
            let group = muon.add_group("hidden", rule("polar_express_5")).unwrap();
            let ids: Vec<_> = shapes
                .iter()
                .enumerate()
                .map(|(i, s)| muon.add_param(group, ParamSpec::new(format!("w{i}"), s)).unwrap())
                .collect();
            let mut tensors: Vec<_> = ids
                .iter()
                .zip(params.iter_mut().zip(&grads))
                .map(|(id, (p, g))| StepTensor::new(*id, p, g))
                .collect();
            // The order in which tensors come must not matter.
            tensors.reverse();
            let report = muon.step(&StepOptions::default(), &mut tensors).unwrap();
            assert_eq!(report.orthogonalized, shapes.len());
            let chunks = muon.plan().unwrap().chunks();
            assert_eq!(chunks, if workspace_limit == 1 { 5 } else { 1 });
            for (i, (found, expected)) in params.iter().zip(&alone).enumerate() {
                assert_eq!(bits(found), bits(expected), "matrix {i}, {precision}, {chunks} chunks");
            }
        }
    }
}

#[test]
fn a_step_never_writes_a_gradient_or_normalises_the_momentum() {
    // Nesterov off and an equal dtype make direction and momentum the same numbers: PyTorch's bf16 path once
    // normalised the buffer itself (pytorch#190597).
    let rule = MuonRule { nesterov: Nesterov::Off, momentum: 0.0, ..rule("jordan") };
    let mut random = Random::new(23);
    let (mut param, grad) = (random.normals(12 * 20), random.normals(12 * 20));
    let before = grad.clone();
    let (mut muon, id) =
        support::single(MuonConfig::default(), rule, ParamSpec::new("w", &[12, 20]), 1);
    muon.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut param, &grad)]).unwrap();
    assert_eq!(bits(&grad), bits(&before));
    let state = muon.export_state(id).unwrap();
    let muon_cuda::HostBuffer::F32(momentum) = &state.buffers[0].1 else { panic!("f32 momentum") };
    assert_eq!(bits(momentum), bits(&grad), "β = 0: the buffer is the gradient itself");
}
