//! Bad input: a typed error that says what to do, and nothing changed; and the policies for what is not finite.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "tests stop at the first surprise, print what they measured, and narrow on purpose"
)]

#[path = "refusals/numbers.rs"]
mod numbers;
mod support;

use std::num::NonZeroUsize;

use half::{bf16, f16};
use muon_cuda::{
    AdamWRule, CoefficientSchedule, Cpu, CpuGrad, CpuParamMut, Dtype, FoundNonFinite, MatrixShape,
    Muon, MuonConfig, MuonRule, NonFinite, Normalization, OddPolynomial, OrthogonalizeOptions,
    Orthogonalizer, ParamSpec, Precision, Split, StepOptions, StepTensor, Tail, orthogonalize,
};
use support::{Random, bits, rule, single};

fn muon(config: MuonConfig) -> Muon<Cpu> {
    Muon::new(Cpu::with_threads(2).unwrap(), config).unwrap()
}

#[test]
fn shapes_names_and_numbers_that_cannot_be_honoured() {
    let mut m = muon(MuonConfig::default());
    let hidden = m.add_group("hidden", rule("jordan")).unwrap();
    for shape in [&[][..], &[5], &[0], &[1, 1, 1, 1, 1]] {
        let e = m.add_param(hidden, ParamSpec::new("w", shape)).unwrap_err();
        assert!(e.is_shape_mismatch() && e.to_string().starts_with("register `w`"), "{e}");
    }
    assert!(
        m.add_param(hidden, ParamSpec::new("w", &[4, 4]).dtype(Dtype::F16))
            .unwrap_err()
            .is_dtype_mismatch()
    );
    assert_eq!(m.param_names().count(), 0);
    m.add_param(hidden, ParamSpec::new("w", &[4, 4])).unwrap();
    let e = m.add_param(hidden, ParamSpec::new("w", &[4, 4])).unwrap_err();
    assert!(e.is_duplicate_name(), "{e}");
    assert!(m.add_group("hidden", rule("jordan")).unwrap_err().is_duplicate_name());
    for bad in [
        MuonRule { lr: -0.1, ..rule("jordan") },
        MuonRule { lr: f64::NAN, ..rule("jordan") },
        MuonRule { momentum: 1.0, ..rule("jordan") },
    ] {
        assert!(m.add_group("bad", bad.clone()).unwrap_err().is_invalid_config());
        assert!(m.set_rule(hidden, bad).unwrap_err().is_invalid_config());
    }
    assert!(m.set_lr(hidden, f64::NAN).unwrap_err().is_invalid_config());
    assert_eq!(m.rule(hidden).unwrap().lr(), rule("jordan").lr, "a refused rule changes nothing");
    let e = m.set_rule(hidden, AdamWRule::default()).unwrap_err();
    assert!(e.to_string().contains("state was made under muon"), "{e}");
    let e = Orthogonalizer::preset("polar_expres_5").unwrap_err();
    assert!(e.to_string().contains("did you mean `polar_express_5`"), "{e}");
    assert!(Cpu::with_threads(0).unwrap_err().is_invalid_config());
    // Ids of one optimizer mean nothing to another.
    let mut other = muon(MuonConfig::default());
    assert!(other.add_param(hidden, ParamSpec::new("w", &[4, 4])).unwrap_err().is_invalid_config());
}

#[test]
fn what_no_memory_holds_is_an_error_and_the_optimizer_goes_on() {
    let mut m = muon(MuonConfig::default());
    let rest = m.add_group("rest", AdamWRule::default()).unwrap();
    let hidden = m.add_group("hidden", rule("jordan")).unwrap();
    let plain = MuonRule { orthogonalizer: Orthogonalizer::Identity, ..MuonRule::default() };
    let plain = m.add_group("plain", plain).unwrap();
    let million = 1_000_000;
    for (group, shape) in [
        (rest, &[million, million][..]),
        (plain, &[million, million]),
        (plain, &[100, million, million / 100]),
        (rest, &[usize::MAX / 16]),
    ] {
        let e = m.add_param(group, ParamSpec::new("w", shape)).unwrap_err();
        assert!(e.is_out_of_memory() && e.to_string().contains("register `w`"), "{shape:?}: {e}");
    }
    // More than 64 bits count: FLOPs, elements, matrices.
    for (group, shape) in [
        (hidden, &[million, million][..]),
        (plain, &[usize::MAX / 16, 1]),
        (plain, &[1 << 40, 2, 2]),
        (rest, &[usize::MAX, 2]),
    ] {
        let e = m.add_param(group, ParamSpec::new("w", shape)).unwrap_err();
        assert!(e.is_shape_mismatch(), "{shape:?}: {e}");
    }
    let heads = Split::Heads(NonZeroUsize::new(1 << 40).unwrap());
    let spec = ParamSpec::new("w", &[1 << 40, 1]).split(heads);
    assert!(m.add_param(plain, spec).unwrap_err().is_shape_mismatch());
    let shape = MatrixShape { rows: usize::MAX, cols: 2 };
    let options = OrthogonalizeOptions::default();
    let (input, mut output) = ([1.0f32; 2], [0.0f32; 2]);
    let mut cpu = Cpu::with_threads(1).unwrap();
    let e = orthogonalize(&mut cpu, shape, &input[..], &mut output[..], &options).unwrap_err();
    assert!(e.is_shape_mismatch(), "{e}");

    assert_eq!(m.param_names().count(), 0);
    m.add_param(plain, ParamSpec::new("p", &[2, 2])).unwrap();
    let id = m.add_param(hidden, ParamSpec::new("w", &[2, 2])).unwrap();
    let (mut w, g) = ([0.0f32; 4], [1.0f32, 0.0, 0.0, 1.0]);
    m.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut w[..], &g[..])]).unwrap();
    assert_ne!(w, [0.0; 4]);
}

#[test]
fn schedules_that_cannot_be_run_safely_are_refused_at_registration() {
    let exact = MuonRule {
        orthogonalizer: Orthogonalizer::Polynomial {
            schedule: muon_cuda::coefficients::presets::preset("polar_express_5").unwrap(),
            iterations: Some(4),
        },
        ..MuonRule::default()
    };
    let e = muon(MuonConfig::default()).add_group("hidden", exact).unwrap_err();
    assert!(e.to_string().contains("exactly 5 iterations"), "{e}");

    // The published AOL set flips signs above σ = 0.884, which neither normalisation excludes.
    let rows = [
        [4.0098, -7.0585, 2.4635],
        [3.4585, -5.5479, 2.5959],
        [2.7573, -3.2939, 1.4254],
        [2.7215, -3.0494, 1.3169],
    ];
    for normalization in [Normalization::Frobenius { safety: 1.0 }, Normalization::Aol] {
        let polynomials = rows.iter().map(|r| OddPolynomial::new(r).unwrap()).collect();
        let schedule =
            CoefficientSchedule::new("aol4", polynomials, normalization, Tail::Exact, "published")
                .unwrap();
        let rule = MuonRule {
            orthogonalizer: Orthogonalizer::Polynomial { schedule, iterations: None },
            ..MuonRule::default()
        };
        let mut m = muon(MuonConfig::default());
        let hidden = m.add_group("hidden", rule).unwrap();
        let e = m.add_param(hidden, ParamSpec::new("w", &[4, 4])).unwrap_err();
        assert!(e.is_invalid_config() && e.to_string().contains("aol4"), "{e}");
        assert_eq!(m.param_names().count(), 0);
    }
    // A preset without headroom runs in 16 bit with a safety, and the plan says so.
    let config = MuonConfig { precision: Some(Precision::Bf16), ..MuonConfig::default() };
    let (mut m, _) = single(config, rule("cans"), ParamSpec::new("w", &[4, 8]), 1);
    let reason = m.plan().unwrap().buckets()[0].reason.clone();
    assert!(reason.contains("safety 1.01"), "{reason}");
}

#[test]
fn a_step_checks_everything_before_it_touches_anything() {
    let mut m = muon(MuonConfig::default());
    let hidden = m.add_group("hidden", rule("jordan")).unwrap();
    let e = m.step(&StepOptions::default(), &mut []).unwrap_err();
    assert!(e.to_string().contains("nothing would be orthogonalized"), "{e}");
    let w = m.add_param(hidden, ParamSpec::new("w", &[2, 3])).unwrap();
    let v = m.add_param(hidden, ParamSpec::new("v", &[2, 3])).unwrap();
    let gone = m.add_param(hidden, ParamSpec::new("gone", &[2, 3])).unwrap();
    m.remove_param(gone).unwrap();
    assert!(m.remove_param(gone).unwrap_err().is_invalid_config());

    let start: Vec<f32> = (0..6).map(|i| i as f32).collect();
    let (mut a, mut b) = (start.clone(), start.clone());
    let grad = vec![1.0f32; 6];
    let before = m.checkpoint().unwrap();
    let options = StepOptions::default();
    let nan = f64::NAN;
    for (what, bad) in [
        ("lr_factor", StepOptions { lr_factor: -1.0, ..options }),
        ("lr_factor", StepOptions { lr_factor: nan, ..options }),
        ("inverse_loss_scale", StepOptions { inverse_loss_scale: 0.0, ..options }),
        ("clip_norm", StepOptions { clip_norm: Some(nan), ..options }),
    ] {
        let e = m.step(&bad, &mut [StepTensor::new(w, &mut a, &grad)]).unwrap_err();
        assert!(e.to_string().contains(what), "{e}");
    }
    let short = vec![1.0f32; 5];
    let e = m.step(&options, &mut [StepTensor::new(w, &mut a, &short)]).unwrap_err();
    assert!(e.is_shape_mismatch() && e.to_string().contains("grad of `w`"), "{e}");
    let e = m.step(&options, &mut [StepTensor::new(w, &mut a[..5], &grad)]).unwrap_err();
    assert!(e.is_shape_mismatch() && e.to_string().contains("param `w`"), "{e}");
    let mut half = vec![bf16::ONE; 6];
    let e = m.step(&options, &mut [StepTensor::new(w, &mut half, &grad)]).unwrap_err();
    assert!(e.is_dtype_mismatch(), "{e}");
    let e = m
        .step(&options, &mut [StepTensor::new(w, &mut a, &grad), StepTensor::new(w, &mut b, &grad)])
        .unwrap_err();
    assert!(e.is_duplicate_name(), "{e}");
    assert!(
        e.to_string().contains("param `w` is given twice, as tensors 0 and 1 of the step"),
        "{e}"
    );
    let e = m
        .step(
            &options,
            &mut [StepTensor::without_grad(w, &mut a[..]), StepTensor::without_grad(w, &mut b[..])],
        )
        .unwrap_err();
    assert!(e.is_duplicate_name(), "{e}");
    let e = m.step(&options, &mut [StepTensor::new(gone, &mut a, &grad)]).unwrap_err();
    assert!(e.is_invalid_config(), "{e}");
    // An optimizer that has nothing to step says that the tensor is foreign, not that a matrix is missing.
    let e = muon(MuonConfig::default())
        .step(&options, &mut [StepTensor::new(w, &mut a, &grad)])
        .unwrap_err();
    let foreign = "tensor 0 of the step: the parameter was removed or belongs to another optimizer";
    assert_eq!(e.to_string(), foreign);
    assert_eq!((&a, &b), (&start, &start));
    assert_eq!(m.checkpoint().unwrap(), before);
    // And it still works.
    m.step(&options, &mut [StepTensor::new(v, &mut a, &grad)]).unwrap();
    assert_ne!(a, start);

    // A Muon group without a parameter is a routing mistake.
    m.add_group("forgotten", rule("jordan")).unwrap();
    m.add_param(hidden, ParamSpec::new("late", &[2, 2])).unwrap();
    let e = m.step(&options, &mut [StepTensor::new(v, &mut a, &grad)]).unwrap_err();
    assert!(e.to_string().contains("`forgotten`"), "{e}");
}

/// A model of three matrices of one shape and a vector, gradients with one bad element each time.
#[test]
fn a_gradient_that_is_not_finite_skips_its_matrix_and_no_other() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Fp16] {
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
            let run = |poisoned: bool| {
                let mut m = muon(config.clone());
                let hidden = m.add_group("hidden", rule("polar_express_5")).unwrap();
                let rest = m.add_group("rest", AdamWRule::default()).unwrap();
                let ids: Vec<_> = (0..3)
                    .map(|i| {
                        m.add_param(hidden, ParamSpec::new(format!("w{i}"), &[2, 9, 14])).unwrap()
                    })
                    .collect();
                let bias = m.add_param(rest, ParamSpec::new("b", &[9])).unwrap();
                let mut random = Random::new(6);
                let mut params: Vec<_> = (0..3).map(|_| random.normals(252)).collect();
                let mut b = random.normals(9);
                let mut history = vec![params.clone()];
                for step in 0..3 {
                    let mut grads: Vec<_> = (0..3).map(|_| random.normals(252)).collect();
                    let mut grad_b = random.normals(9);
                    if poisoned && step == 1 {
                        grads[1][126 + 40] = poison; // the second matrix of w1
                        grad_b[3] = poison;
                    }
                    let mut tensors: Vec<_> = ids
                        .iter()
                        .zip(params.iter_mut().zip(&grads))
                        .map(|(id, (p, g))| StepTensor::new(*id, p, g))
                        .collect();
                    tensors.push(StepTensor::new(bias, &mut b, &grad_b));
                    m.step(&StepOptions::default(), &mut tensors).unwrap();
                    history.push(params.clone());
                }
                let counters: Vec<_> =
                    ids.iter().chain([&bias]).map(|id| m.counters(*id).unwrap()).collect();
                (history, counters)
            };
            let (clean, _) = run(false);
            let (dirty, counters) = run(true);
            for step in 0..=3 {
                assert_eq!(bits(&dirty[step][0]), bits(&clean[step][0]), "{precision} {poison}");
                assert_eq!(bits(&dirty[step][2]), bits(&clean[step][2]), "{precision} {poison}");
                // The good half of the poisoned parameter goes on as well.
                assert_eq!(bits(&dirty[step][1][..126]), bits(&clean[step][1][..126]));
            }
            assert_eq!(bits(&dirty[2][1][126..]), bits(&dirty[1][1][126..]), "no decay, no update");
            assert_ne!(bits(&dirty[3][1][126..]), bits(&dirty[2][1][126..]), "and it recovers");
            assert!(dirty[3].iter().flatten().all(|x| x.is_finite()));
            let skipped: Vec<_> = counters.iter().map(|c| c.skipped.clone()).collect();
            assert_eq!(skipped, [vec![0, 0], vec![0, 1], vec![0, 0], vec![1]]);
            assert_eq!(counters.iter().map(|c| c.steps).collect::<Vec<_>>(), [3, 3, 3, 2]);
        }
    }
}

#[test]
fn the_strict_policy_names_the_parameter_and_changes_nothing() {
    let config =
        MuonConfig { non_finite: NonFinite::Error, workspace_limit: 1, ..MuonConfig::default() };
    let mut m = muon(config);
    let hidden = m.add_group("hidden", rule("jordan")).unwrap();
    let first = m.add_param(hidden, ParamSpec::new("first", &[4, 4])).unwrap();
    let second = m.add_param(hidden, ParamSpec::new("second", &[4, 4])).unwrap();
    let mut random = Random::new(2);
    let (mut a, mut b) = (random.normals(16), random.normals(16));
    let good = random.normals(16);
    let mut bad = good.clone();
    bad[7] = f32::NAN;
    let (before, state) = (a.clone(), m.checkpoint().unwrap());
    let mut tensors =
        [StepTensor::new(first, &mut a, &good), StepTensor::new(second, &mut b, &bad)];
    let e = m.step(&StepOptions::default(), &mut tensors).unwrap_err();
    assert!(e.is_non_finite() && e.to_string().contains("`second`"), "{e}");
    assert_eq!(bits(&a), bits(&before), "the matrix before the bad one did not move either");
    assert_eq!(m.checkpoint().unwrap(), state);
}

#[test]
fn momentum_that_would_overflow_skips_instead_of_poisoning() {
    // The gradient is finite; β·m + g is not. The buffer must not become infinite for ever.
    let rule = MuonRule { momentum_mode: muon_cuda::MomentumMode::Sum, ..rule("jordan") };
    let (mut m, id) = single(MuonConfig::default(), rule, ParamSpec::new("w", &[2, 2]), 1);
    let huge = vec![3e38f32; 4];
    let mut w = vec![1.0f32; 4];
    for _ in 0..3 {
        m.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut w, &huge)]).unwrap();
    }
    assert!(w.iter().all(|x| x.is_finite()));
    let counters = m.counters(id).unwrap();
    assert_eq!(counters.skipped[0] + counters.steps, 3);
    assert!(counters.skipped[0] >= 1);
    let small = vec![1.0f32; 4];
    m.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut w, &small)]).unwrap();
    assert!(w.iter().all(|x| x.is_finite()));
}

#[test]
fn zero_gradients_decay_and_step_by_momentum_as_in_pytorch() {
    let decay_only = 1.0 - 0.02 * 0.1;
    for orthogonalizer in [
        Orthogonalizer::preset("jordan").unwrap(),
        Orthogonalizer::preset("turbo_muon").unwrap(),
        Orthogonalizer::ExactSvd,
        Orthogonalizer::Frobenius,
    ] {
        for precision in [Precision::F32, Precision::Bf16, Precision::Fp16] {
            let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
            let rule = MuonRule { orthogonalizer: orthogonalizer.clone(), ..MuonRule::default() };
            let (mut m, id) = single(config, rule, ParamSpec::new("w", &[3, 5]), 1);
            let mut w = vec![1.0f32; 15];
            let zero = vec![0.0f32; 15];
            m.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut w, &zero)]).unwrap();
            // One product: the decay factor rounded to f32, exactly.
            assert_eq!(
                w,
                vec![decay_only as f32; 15],
                "a zero direction decays and does nothing else"
            );
            let mut random = Random::new(1);
            let grad = random.normals(15);
            m.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut w, &grad)]).unwrap();
            let after = w.clone();
            m.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut w, &zero)]).unwrap();
            let moved = w.iter().zip(&after).any(|(a, b)| (a - b * decay_only as f32).abs() > 1e-4);
            assert!(moved, "momentum still moves a parameter whose gradient is zero");
            assert!(w.iter().all(|x| x.is_finite()));
            assert_eq!(m.counters(id).unwrap().skipped, [0]);
        }
    }
}

#[test]
fn missing_gradients_and_overflow_verdicts_leave_everything_untouched() {
    let mut m = muon(MuonConfig::default());
    let hidden = m.add_group("hidden", rule("jordan")).unwrap();
    let rest = m.add_group("rest", AdamWRule::default()).unwrap();
    let w = m.add_param(hidden, ParamSpec::new("w", &[3, 4])).unwrap();
    let b = m.add_param(rest, ParamSpec::new("b", &[3])).unwrap();
    let mut random = Random::new(3);
    let (mut pw, mut pb) = (random.normals(12), random.normals(3));
    let (gw, gb) = (random.normals(12), random.normals(3));
    let mut both = [StepTensor::new(w, &mut pw, &gw), StepTensor::new(b, &mut pb, &gb)];
    m.step(&StepOptions::default(), &mut both).unwrap();
    let (before_w, before_b, state) = (pw.clone(), pb.clone(), m.checkpoint().unwrap());

    let skip = StepOptions { found_non_finite: FoundNonFinite::Yes, ..StepOptions::default() };
    let report = m.step(&skip, &mut [StepTensor::new(w, &mut pw, &gw)]).unwrap();
    assert!(report.skipped && report.orthogonalized == 0);
    let report =
        m.step(&StepOptions::default(), &mut [StepTensor::without_grad(w, &mut pw)]).unwrap();
    assert_eq!((report.untouched, report.orthogonalized, report.adamw), (2, 0, 0));
    m.step(&StepOptions::default(), &mut []).unwrap();
    assert_eq!((bits(&pw), bits(&pb)), (bits(&before_w), bits(&before_b)));
    assert_eq!(m.checkpoint().unwrap(), state);
}

#[test]
fn loss_scale_and_clipping_act_on_the_gradients_they_should() {
    // Under AdamW with a large eps the step is linear in the gradient, so scales show in the update.
    let adamw = AdamWRule { lr: 1.0, beta1: 0.0, beta2: 0.0, eps: 1e6, weight_decay: 0.0 };
    let run = |options: StepOptions, grad: &[f32]| {
        let mut m = muon(MuonConfig::default());
        let hidden = m.add_group("hidden", rule("jordan")).unwrap();
        let rest = m.add_group("rest", adamw).unwrap();
        m.add_param(hidden, ParamSpec::new("w", &[2, 2])).unwrap();
        let b = m.add_param(rest, ParamSpec::new("b", &[2])).unwrap();
        let mut p = vec![0.0f32; 2];
        m.step(&options, &mut [StepTensor::new(b, &mut p, &grad.to_vec())]).unwrap();
        p
    };
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a / b - 1.0).abs() < 1e-4);
    let plain = run(StepOptions::default(), &[3.0, 4.0]);
    let scaled = StepOptions { inverse_loss_scale: 0.125, ..StepOptions::default() };
    assert_eq!(run(scaled, &[24.0, 32.0]), plain);
    // Norm 5 clipped to 2.5 halves the gradient; a norm below the limit stays.
    let clipped = StepOptions { clip_norm: Some(2.5), ..StepOptions::default() };
    assert!(close(&run(clipped, &[3.0, 4.0]), &[plain[0] / 2.0, plain[1] / 2.0]));
    let loose = StepOptions { clip_norm: Some(5.5), ..StepOptions::default() };
    assert_eq!(run(loose, &[3.0, 4.0]), plain);
    // The norm is that of the unscaled gradients.
    let both =
        StepOptions { inverse_loss_scale: 0.125, clip_norm: Some(2.5), ..StepOptions::default() };
    assert!(close(&run(both, &[24.0, 32.0]), &[plain[0] / 2.0, plain[1] / 2.0]));
}

#[test]
fn every_combination_of_dtypes_steps_alike() {
    let mut random = Random::new(12);
    // Values that bf16 and fp16 hold exactly, so that the dtype of the gradient cannot matter.
    let grad: Vec<f32> = random.integers(48, 100).iter().map(|x| x / 64.0).collect();
    let start: Vec<f32> = random.integers(48, 100).iter().map(|x| x / 64.0).collect();
    let grad_bf16: Vec<bf16> = grad.iter().map(|x| bf16::from_f32(*x)).collect();
    let grad_f16: Vec<f16> = grad.iter().map(|x| f16::from_f32(*x)).collect();
    for momentum_dtype in [Dtype::F32, Dtype::Bf16] {
        for param_dtype in [Dtype::F32, Dtype::Bf16] {
            let config = MuonConfig { momentum_dtype, ..MuonConfig::default() };
            let mut results = Vec::new();
            for grad in [CpuGrad::F32(&grad), CpuGrad::Bf16(&grad_bf16), CpuGrad::F16(&grad_f16)] {
                let spec = ParamSpec::new("w", &[6, 8]).dtype(param_dtype);
                let (mut m, id) = single(config.clone(), rule("jordan"), spec, 1);
                let mut wide = start.clone();
                let mut narrow: Vec<bf16> = start.iter().map(|x| bf16::from_f32(*x)).collect();
                for _ in 0..3 {
                    let param = match param_dtype {
                        Dtype::Bf16 => CpuParamMut::Bf16(&mut narrow),
                        _ => CpuParamMut::F32(&mut wide),
                    };
                    m.step(&StepOptions::default(), &mut [StepTensor::new(id, param, grad)])
                        .unwrap();
                }
                results.push(match param_dtype {
                    Dtype::Bf16 => narrow.iter().map(|x| x.to_f32()).collect(),
                    _ => wide,
                });
            }
            assert_eq!(bits(&results[0]), bits(&results[1]), "{momentum_dtype} {param_dtype}");
            assert_eq!(bits(&results[0]), bits(&results[2]), "{momentum_dtype} {param_dtype}");
            assert_ne!(results[0], start);
        }
    }
}

#[test]
fn a_master_copy_accumulates_what_bf16_alone_would_lose() {
    // 1000 updates of 1e-4 each: far below bf16's spacing of 2^-7 at 1, together 0.1.
    let rule = MuonRule {
        lr: 1e-4,
        weight_decay: 0.0,
        momentum: 0.0,
        orthogonalizer: Orthogonalizer::ExactSvd,
        ..MuonRule::default()
    };
    let spec = ParamSpec::new("w", &[1, 1]).dtype(Dtype::Bf16);
    let (mut m, id) = single(MuonConfig::default(), rule.clone(), spec.clone(), 1);
    let mut w = vec![bf16::from_f32(1.0)];
    let grad = vec![1.0f32];
    for _ in 0..1000 {
        m.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut w, &grad)]).unwrap();
    }
    assert_eq!(w[0], bf16::from_f32(0.9));

    let config = MuonConfig {
        bf16_params: muon_cuda::Bf16Params::Stochastic { seed: 3 },
        ..MuonConfig::default()
    };
    let (mut m, id) = single(config, rule, spec, 1);
    let mut w = vec![bf16::from_f32(1.0)];
    for _ in 0..1000 {
        m.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut w, &grad)]).unwrap();
    }
    // A random walk of 1000 roundings below 1 (spacing 2^-8, steps 1e-4): standard deviation
    // √(1000 · 1e-4 · 2^-8) = 0.02; four of them.
    assert!((w[0].to_f32() - 0.9).abs() < 0.08, "{}", w[0]);
}

#[test]
fn groups_carry_their_own_rules() {
    let mut m = muon(MuonConfig::default());
    let fast =
        m.add_group("fast", MuonRule { lr: 0.1, weight_decay: 0.0, ..rule("jordan") }).unwrap();
    let slow =
        m.add_group("slow", MuonRule { lr: 0.01, weight_decay: 0.0, ..rule("jordan") }).unwrap();
    let svd = m
        .add_group(
            "svd",
            MuonRule {
                lr: 0.1,
                weight_decay: 0.0,
                orthogonalizer: Orthogonalizer::ExactSvd,
                ..MuonRule::default()
            },
        )
        .unwrap();
    let ids = [fast, slow, svd].map(|g| {
        let name = format!("w{g:?}");
        m.add_param(g, ParamSpec::new(name, &[5, 6])).unwrap()
    });
    let mut random = Random::new(4);
    let grad = random.normals(30);
    let mut params = [vec![0.0f32; 30], vec![0.0; 30], vec![0.0; 30]];
    let [a, b, c] = &mut params;
    let mut tensors = [
        StepTensor::new(ids[0], a, &grad),
        StepTensor::new(ids[1], b, &grad),
        StepTensor::new(ids[2], c, &grad),
    ];
    m.step(&StepOptions::default(), &mut tensors).unwrap();
    for (x, y) in params[0].iter().zip(&params[1]) {
        assert!((x / y - 10.0).abs() < 1e-5, "lr of its own group: {x} {y}");
    }
    assert_ne!(params[0], params[2]);
    assert_eq!(
        m.plan().unwrap().buckets().len(),
        2,
        "same shape and schedule share a bucket, the SVD does not"
    );
    let report = m.routing();
    assert_eq!(report.muon_fraction(), 1.0);
    assert_eq!(report.routes[2].orthogonalizer.as_deref(), Some("exact_svd"));
}

#[test]
fn standalone_orthogonalization_equals_the_optimizers() {
    let mut random = Random::new(21);
    let grad = random.normals(15 * 22);
    for preset in ["jordan", "nonic3_band12"] {
        let options = OrthogonalizeOptions {
            orthogonalizer: Orthogonalizer::preset(preset).unwrap(),
            ..OrthogonalizeOptions::default()
        };
        let shape = MatrixShape { rows: 15, cols: 22 };
        let mut out = vec![0.0f32; 330];
        let mut cpu = Cpu::with_threads(2).unwrap();
        let done = orthogonalize(&mut cpu, shape, &grad, &mut out, &options).unwrap();
        assert!(done.method.is_some() && done.flops > 0);
        let rule = MuonRule {
            lr: 1.0,
            momentum: 0.0,
            weight_decay: 0.0,
            update_scale: muon_cuda::UpdateScale::None,
            ..rule(preset)
        };
        let stepped = support::run(
            &MuonConfig::default(),
            &rule,
            &[15, 22],
            &vec![0.0; 330],
            std::slice::from_ref(&grad),
            1,
        );
        let negated: Vec<f32> = stepped.iter().map(|x| -x).collect();
        assert_eq!(bits(&out), bits(&negated));

        let mut poisoned = grad.clone();
        poisoned[5] = f32::NAN;
        let e = orthogonalize(&mut cpu, shape, &poisoned, &mut out, &options).unwrap_err();
        assert!(e.is_non_finite(), "{e}");
        assert_eq!(bits(&out), bits(&negated), "the output stays");
        let e = orthogonalize(&mut cpu, shape, &grad[1..], &mut out[..], &options).unwrap_err();
        assert!(e.is_shape_mismatch(), "{e}");
        let empty = MatrixShape { rows: 0, cols: 3 };
        assert!(
            orthogonalize(&mut cpu, empty, &[][..] as &[f32], &mut [][..] as &mut [f32], &options)
                .is_err()
        );
    }
}

#[test]
fn a_schedule_without_room_for_rounding_is_refused_in_that_precision() {
    for (preset, precision, refused) in [
        ("nonic3_band12", Precision::Bf16, true),
        ("nonic3_band25", Precision::Fp16, true),
        ("nonic3_band12", Precision::Tf32, true),
        ("tuned_bf16", Precision::Tf32, false),
        ("nonic3_band12", Precision::F32, false),
        ("tuned_bf16", Precision::Bf16, false),
        ("jordan", Precision::Bf16, false),
    ] {
        let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
        let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), config).unwrap();
        let rule = MuonRule {
            orthogonalizer: Orthogonalizer::preset(preset).unwrap(),
            ..MuonRule::default()
        };
        let group = muon.add_group("hidden", rule).unwrap();
        match muon.add_param(group, ParamSpec::new("w", &[4, 9])) {
            Err(e) => {
                assert!(refused && e.is_invalid_config(), "{preset} {precision}: {e}");
                assert!(e.to_string().contains("tuned_"), "says what to use instead: {e}");
            }
            Ok(_) => assert!(!refused, "{preset} in {precision} must be refused"),
        }
    }
}
