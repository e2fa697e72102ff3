//! Numbers at the ends of f32, and what a step reports of them: nothing becomes infinite, and nothing is skipped in silence.

use half::bf16;
use muon_cuda::{
    AdamWRule, Bf16Params, Checkpoint, Cpu, Dtype, HostBuffer, Layout, Muon, MuonConfig, MuonRule,
    Nesterov, Orthogonalizer, ParamSpec, Split, StepOptions, StepTensor, UpdateScale,
    WeightDecayMode,
};

use crate::support::{Random, bits, rule, single};

/// Gradient descent with rate 1 and no momentum: the update is the gradient as it was clipped.
fn plain() -> MuonRule {
    MuonRule {
        lr: 1.0,
        momentum: 0.0,
        nesterov: Nesterov::Off,
        weight_decay: 0.0,
        update_scale: UpdateScale::None,
        orthogonalizer: Orthogonalizer::Identity,
        ..MuonRule::default()
    }
}

/// What is skipped is the matrix, so what the clipping norm leaves out is the matrix, wherever its rows lie.
#[test]
fn a_matrix_that_is_not_finite_leaves_the_norm_and_its_siblings_stay_in_it() {
    let heads = Split::Heads(2.try_into().unwrap());
    let cases: [(&[usize], Layout, Split, usize); 5] = [
        (&[3, 4, 5], Layout::OutIn, Split::Whole, 3),
        (&[12, 5], Layout::OutIn, Split::FanOut(vec![2, 4, 6]), 3),
        (&[5, 12], Layout::InOut, Split::FanOut(vec![2, 4, 6]), 3),
        (&[2, 6, 5], Layout::InOut, Split::Whole, 2),
        (&[2, 5, 6], Layout::InOut, heads, 4),
    ];
    for (shape, layout, split, matrices) in cases {
        let len: usize = shape.iter().product();
        let mut muon = Muon::new(Cpu::with_threads(2).unwrap(), MuonConfig::default()).unwrap();
        let group = muon.add_group("hidden", plain()).unwrap();
        let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
        let spec = ParamSpec::new("w", shape).layout(layout).split(split);
        let w = muon.add_param(group, spec).unwrap();
        let conv = muon.add_param(group, ParamSpec::new("conv", &[3, 2, 2, 2])).unwrap();
        let b = muon.add_param(rest, ParamSpec::new("b", &[7])).unwrap();
        let blocks: Vec<_> = muon
            .plan()
            .unwrap()
            .buckets()
            .iter()
            .flat_map(|b| &b.matrices)
            .filter(|m| m.param == 0)
            .map(|m| (m.matrix, m.block))
            .collect();
        assert_eq!(blocks.len(), matrices);
        for bad in 0..matrices {
            for what in [f32::NAN, f32::INFINITY] {
                let mut random = Random::new(7);
                let mut g: Vec<f32> = random.normals(len).iter().map(|x| 1000.0 * x).collect();
                let h = random.normals(24);
                let gb = random.normals(7);
                let (_, block) = *blocks.iter().find(|(matrix, _)| *matrix == bad).unwrap();
                let inside: Vec<usize> = (0..block.shape.rows).flat_map(|i| block.row(i)).collect();
                g[*inside.last().unwrap()] = what;
                let sum: f64 = g
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| !inside.contains(i))
                    .map(|(_, x)| *x)
                    .chain(h.iter().copied())
                    .chain(gb.iter().copied())
                    .map(|x| f64::from(x) * f64::from(x))
                    .sum();
                let norm = sum.sqrt();
                let (mut p, mut q, mut r) = (vec![0.0f32; len], vec![0.0f32; 24], vec![0.0f32; 7]);
                let options = StepOptions { clip_norm: Some(1.0), ..StepOptions::default() };
                let report = muon
                    .step(
                        &options,
                        &mut [
                            StepTensor::new(w, &mut p, &g),
                            StepTensor::new(conv, &mut q, &h),
                            StepTensor::new(b, &mut r, &gb),
                        ],
                    )
                    .unwrap();
                // f64 sums in another order.
                assert!((report.gradient_norm.unwrap() / norm - 1.0).abs() < 1e-12, "{shape:?}");
                assert_eq!(report.clip_factor, Some(1.0 / report.gradient_norm.unwrap()));
                assert_eq!((report.orthogonalized, report.skipped_matrices), (matrices, Some(1)));
                assert_eq!((report.adamw, report.skipped_adamw), (1, Some(0)));
                for (i, (p, g)) in p.iter().zip(&g).enumerate() {
                    let right = if inside.contains(&i) { 0.0 } else { -f64::from(*g) / norm };
                    // Two f32 roundings.
                    assert!((f64::from(*p) - right).abs() <= 2e-7 * right.abs(), "{shape:?} {i}");
                }
                assert!((f64::from(q[0]) + f64::from(h[0]) / norm).abs() < 1e-6 / norm);
            }
        }
    }
}

/// Squares are summed in f64, and the loss scale is multiplied there: no finite gradient is too large to count.
#[test]
fn the_norm_of_finite_gradients_is_finite() {
    for (scale, large) in [(1.0, 3e38f32), (1e10, 3e38), (1e-30, 3e38), (1e30, 1e-10)] {
        let (mut muon, id) =
            single(MuonConfig::default(), plain(), ParamSpec::new("w", &[2, 2]), 1);
        let mut p = vec![0.0f32; 4];
        let g = vec![large, 0.0, 0.0, -large];
        let options = StepOptions {
            inverse_loss_scale: scale,
            clip_norm: Some(1.0),
            ..StepOptions::default()
        };
        let report = muon.step(&options, &mut [StepTensor::new(id, &mut p, &g)]).unwrap();
        let norm = scale * f64::from(large) * 2f64.sqrt();
        assert!((report.gradient_norm.unwrap() / norm - 1.0).abs() < 1e-12, "{scale} {large}");
        if norm > 1.0 {
            assert_eq!(report.skipped_matrices, Some(0));
            // The factor is a subnormal f32 for the largest norms.
            assert!((p[0] + 0.5f32.sqrt()).abs() < 1e-5, "{scale} {large}: {p:?}");
        }
    }
    // It can be measured without clipping.
    let (mut muon, id) = single(MuonConfig::default(), plain(), ParamSpec::new("w", &[1, 2]), 1);
    let mut p = vec![0.0f32; 2];
    let measure = StepOptions { clip_norm: Some(f64::MAX), ..StepOptions::default() };
    let report =
        muon.step(&measure, &mut [StepTensor::new(id, &mut p, &vec![3.0f32, 4.0])]).unwrap();
    assert_eq!((report.gradient_norm, report.clip_factor), (Some(5.0), Some(1.0)));
    assert_eq!(p, [-3.0, -4.0]);
    let step = StepOptions::default();
    let report = muon.step(&step, &mut [StepTensor::new(id, &mut p, &vec![3.0f32, 4.0])]).unwrap();
    assert_eq!((report.gradient_norm, report.clip_factor), (None, Some(1.0)));
    assert_eq!(muon.last_step().unwrap(), Some(report));
}

/// Each value is finite in f64, and each would make every parameter infinite, NaN or frozen in f32.
#[test]
fn what_f32_cannot_hold_is_refused_before_anything_changes() {
    let spec = || ParamSpec::new("w", &[4, 3]);
    let grad = vec![1.0f32; 12];
    let refused = |rule: MuonRule, options: StepOptions, says: &[&str]| {
        let (mut muon, id) = single(MuonConfig::default(), rule, spec(), 1);
        let mut p = vec![0.5f32; 12];
        let e = muon.step(&options, &mut [StepTensor::new(id, &mut p, &grad)]).unwrap_err();
        assert!(e.is_invalid_config(), "{e}");
        for words in says {
            assert!(e.to_string().contains(words), "`{words}` in: {e}");
        }
        assert_eq!(p, [0.5; 12]);
        assert_eq!(muon.counters(id).unwrap().steps, 0);
        assert_eq!(muon.last_step().unwrap(), None);
    };
    let options = StepOptions::default();
    let factor = |lr_factor| StepOptions { lr_factor, ..options };
    let base = MuonRule::default();
    refused(base.clone(), factor(1e308), &["lr_factor", "1e308", "2^64"]);
    refused(base.clone(), factor(-1.0), &["lr_factor"]);
    refused(MuonRule { lr: 1e10, ..base.clone() }, factor(1e10), &["`w`", "update scale", "2^64"]);
    let scaled = MuonRule { lr: 1e15, update_scale: UpdateScale::Custom(1e30), ..base.clone() };
    refused(scaled, options, &["`w`", "update scale"]);
    let decay = MuonRule { lr: 1.0, weight_decay: 1e30, ..base.clone() };
    refused(decay, options, &["`w`", "weight_decay", "[-1, 1]"]);
    let decay = MuonRule { weight_decay: 1.0, ..base.clone() };
    refused(decay, factor(1000.0), &["weight_decay", "[-1, 1]"]);
    let independent = WeightDecayMode::Independent;
    let decay = MuonRule { weight_decay: 2.5, weight_decay_mode: independent, ..base.clone() };
    refused(decay, options, &["weight_decay", "[-1, 1]"]);
    for scale in [1e-46, 1e39, 1e-39, 0.0, f64::NAN] {
        let options = StepOptions { inverse_loss_scale: scale, ..options };
        refused(base.clone(), options, &["inverse_loss_scale", "3.4e38"]);
    }
    for norm in [1e-46, 0.0, f64::INFINITY, f64::NAN] {
        let options = StepOptions { clip_norm: Some(norm), ..options };
        refused(base.clone(), options, &["clip_norm", "positive finite"]);
    }
    // A rate that is set later, and AdamW's products.
    let (mut muon, id) = single(MuonConfig::default(), base, spec(), 1);
    let hidden = muon.group_id("hidden").unwrap();
    assert!(muon.set_lr(hidden, 1e39).unwrap_err().is_invalid_config());
    let adamw = AdamWRule { lr: 1e12, beta1: 0.999_999_9, ..AdamWRule::default() };
    let rest = muon.add_group("rest", adamw).unwrap();
    let b = muon.add_param(rest, ParamSpec::new("b", &[12])).unwrap();
    let (mut p, mut q) = (vec![0.5f32; 12], vec![0.5f32; 12]);
    for (lr, weight_decay, says) in [(1e13, 0.0, "1 - beta1"), (1e6, 1.0, "weight_decay")] {
        muon.set_rule(rest, AdamWRule { lr, weight_decay, ..adamw }).unwrap();
        let mut tensors = [StepTensor::new(id, &mut p, &grad), StepTensor::new(b, &mut q, &grad)];
        let e = muon.step(&StepOptions::default(), &mut tensors).unwrap_err();
        assert!(e.is_invalid_config() && e.to_string().contains(says), "{e}");
    }
    assert_eq!((&p, &q), (&vec![0.5; 12], &vec![0.5; 12]));
}

/// The largest step that is taken, from the largest parameters: they stay finite.
#[test]
fn a_finite_parameter_stays_finite() {
    for orthogonalizer in [
        Orthogonalizer::Identity,
        Orthogonalizer::Frobenius,
        Orthogonalizer::preset("jordan").unwrap(),
    ] {
        for mode in [WeightDecayMode::Decoupled, WeightDecayMode::Independent] {
            for (dtype, bf16_params) in [
                (Dtype::F32, Bf16Params::Master),
                (Dtype::Bf16, Bf16Params::Master),
                (Dtype::Bf16, Bf16Params::Nearest),
                (Dtype::Bf16, Bf16Params::Stochastic { seed: 1 }),
            ] {
                let rule = MuonRule {
                    lr: 1.8e19,
                    update_scale: UpdateScale::None,
                    weight_decay: if mode == WeightDecayMode::Independent { 2.0 } else { 0.0 },
                    weight_decay_mode: mode,
                    orthogonalizer: orthogonalizer.clone(),
                    ..MuonRule::default()
                };
                let config = MuonConfig { bf16_params, ..MuonConfig::default() };
                let spec = ParamSpec::new("w", &[2, 3]).dtype(dtype);
                let (mut muon, id) = single(config, rule, spec, 1);
                let start = [f32::MAX, -f32::MAX, 1.7e38, 1.0, 0.0, -1.7e38];
                let mut wide = start.to_vec();
                let mut narrow: Vec<bf16> = start
                    .iter()
                    .map(|x| bf16::from_f32(x.clamp(bf16::MIN.to_f32(), bf16::MAX.to_f32())))
                    .collect();
                // Just inside what is judged, and outside.
                for (size, skips) in [(1e11f32, false), (1e13, true)] {
                    let grad: Vec<f32> = start.iter().map(|x| -size * x.signum()).collect();
                    let mut skipped = 0;
                    for _ in 0..20 {
                        let tensor = match dtype {
                            Dtype::Bf16 => StepTensor::new(id, &mut narrow, &grad),
                            _ => StepTensor::new(id, &mut wide, &grad),
                        };
                        let report = muon.step(&StepOptions::default(), &mut [tensor]).unwrap();
                        skipped += report.skipped_matrices.unwrap();
                    }
                    // Momentum takes some steps until the direction is long enough.
                    let expected = skips && orthogonalizer == Orthogonalizer::Identity;
                    assert_eq!(skipped > 0, expected, "{orthogonalizer:?} {size} {dtype}");
                }
                assert!(wide.iter().all(|x| x.is_finite()), "{orthogonalizer:?} {mode:?} {wide:?}");
                assert!(
                    narrow.iter().all(|x| x.is_finite()),
                    "{orthogonalizer:?} {mode:?} {narrow:?}"
                );
            }
        }
    }
}

/// A second moment that overflows would freeze its element for ever.
#[test]
fn a_gradient_whose_square_overflows_skips_its_tensor_under_adamw() {
    let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), MuonConfig::default()).unwrap();
    let hidden = muon.add_group("hidden", plain()).unwrap();
    let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
    let w = muon.add_param(hidden, ParamSpec::new("w", &[1, 3])).unwrap();
    let b = muon.add_param(rest, ParamSpec::new("b", &[3])).unwrap();
    let (mut p, mut q) = (vec![1.0f32; 3], vec![1.0f32; 3]);
    let mut step = |muon: &mut Muon<Cpu>, large: f32| {
        let g = vec![1.0, large, 0.0];
        let mut both = [StepTensor::new(w, &mut p, &g), StepTensor::new(b, &mut q, &g)];
        let report = muon.step(&StepOptions::default(), &mut both).unwrap();
        (report, q.clone())
    };
    let (report, first) = step(&mut muon, 1e18);
    assert_eq!((report.adamw, report.skipped_adamw), (1, Some(0)));
    let state = muon.export_state(b).unwrap();
    for large in [1e19, 1e21, f32::MAX, f32::INFINITY, f32::NAN] {
        let (report, found) = step(&mut muon, large);
        assert_eq!((report.adamw, report.skipped_adamw), (0, Some(1)), "{large}");
        assert_eq!(bits(&found), bits(&first), "{large}");
    }
    let after = muon.export_state(b).unwrap();
    assert_eq!((after.counters.steps, after.counters.skipped), (1, vec![5]));
    assert_eq!(after.buffers, state.buffers);
    let (_, found) = step(&mut muon, 1.0);
    assert!(found.iter().zip(&first).take(2).all(|(a, b)| a != b), "it goes on: {found:?}");
    let HostBuffer::F32(second) = &muon.export_state(b).unwrap().buffers[1].1 else {
        panic!("f32")
    };
    assert!(second.iter().all(|v| v.is_finite()));
}

#[test]
fn a_report_counts_what_was_and_last_step_repeats_it() {
    let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), MuonConfig::default()).unwrap();
    let hidden = muon.add_group("hidden", rule("jordan")).unwrap();
    let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
    let w = muon.add_param(hidden, ParamSpec::new("w", &[3, 2, 4])).unwrap();
    let b = muon.add_param(rest, ParamSpec::new("b", &[3])).unwrap();
    assert_eq!(muon.last_step().unwrap(), None);
    let (mut p, mut q) = (vec![0.0f32; 24], vec![0.0f32; 3]);
    let mut g = Random::new(1).normals(24);
    g[9] = f32::NAN;
    let h = vec![f32::NAN; 3];
    let mut both = [StepTensor::new(w, &mut p, &g), StepTensor::new(b, &mut q, &h)];
    let report = muon.step(&StepOptions::default(), &mut both).unwrap();
    assert!(report.is_complete());
    assert_eq!((report.orthogonalized, report.skipped_matrices), (2, Some(1)));
    assert_eq!((report.adamw, report.skipped_adamw), (0, Some(1)));
    assert_eq!(muon.last_step().unwrap(), Some(report));
    // Spectra of directions have a norm of their own, and do not touch the report.
    let clip = StepOptions { clip_norm: Some(1e-3), ..StepOptions::default() };
    let report = muon.step(&clip, &mut both).unwrap();
    muon.direction_spectra(&StepOptions { clip_norm: Some(9.0), ..clip }, &both).unwrap();
    assert_eq!(muon.last_step().unwrap(), Some(report));
    // The loss scaler's verdict, and a step that is refused.
    let skip = StepOptions { found_non_finite: muon_cuda::FoundNonFinite::Yes, ..clip };
    let report = muon.step(&skip, &mut both).unwrap();
    assert_eq!(
        (report.orthogonalized, report.skipped_matrices, report.skipped),
        (0, Some(0), true)
    );
    muon.step(&StepOptions { lr_factor: f64::NAN, ..clip }, &mut both).unwrap_err();
    assert_eq!(muon.last_step().unwrap(), Some(report), "nothing has happened since");
}

/// As in PyTorch: registered, stepped, saved and restored as nothing.
#[test]
fn a_parameter_without_elements_steps_as_nothing() {
    let heads = Split::Heads(2.try_into().unwrap());
    let build = || {
        let mut muon = Muon::new(Cpu::with_threads(2).unwrap(), MuonConfig::default()).unwrap();
        let hidden = muon.add_group("hidden", rule("jordan")).unwrap();
        let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
        let mut ids = Vec::new();
        for (i, (shape, split)) in [
            (&[0usize, 4] as &[usize], Split::Whole),
            (&[4, 0], Split::FanOut(vec![3, 1])),
            (&[0, 3, 5], heads.clone()),
            (&[2, 0, 3, 3], Split::Whole),
        ]
        .into_iter()
        .enumerate()
        {
            let dtype = if i % 2 == 0 { Dtype::F32 } else { Dtype::Bf16 };
            let spec = ParamSpec::new(format!("h{i}"), shape).dtype(dtype);
            let e = ParamSpec::new(format!("r{i}"), shape).dtype(dtype);
            let spec = if i == 2 { spec } else { spec.split(split) };
            ids.push((muon.add_param(hidden, spec).unwrap(), dtype));
            ids.push((muon.add_param(rest, e).unwrap(), dtype));
        }
        (muon, hidden, ids)
    };
    let (mut muon, hidden, ids) = build();
    assert_eq!(muon.plan().unwrap().buckets().len(), 0);
    let w = muon.add_param(hidden, ParamSpec::new("w", &[2, 3])).unwrap();
    let mut alone = Muon::new(Cpu::with_threads(2).unwrap(), MuonConfig::default()).unwrap();
    let group = alone.add_group("hidden", rule("jordan")).unwrap();
    let other = alone.add_param(group, ParamSpec::new("w", &[2, 3])).unwrap();
    let grad = Random::new(2).normals(6);
    let (mut p, mut q) = (vec![0.5f32; 6], vec![0.5f32; 6]);
    let options = StepOptions { clip_norm: Some(0.5), ..StepOptions::default() };
    let step = |muon: &mut Muon<Cpu>, p: &mut Vec<f32>| {
        let mut wide: Vec<Vec<f32>> = vec![Vec::new(); ids.len()];
        let mut narrow: Vec<Vec<bf16>> = vec![Vec::new(); ids.len()];
        let none: Vec<f32> = Vec::new();
        let mut tensors: Vec<StepTensor<'_, Cpu>> = ids
            .iter()
            .zip(wide.iter_mut().zip(&mut narrow))
            .map(|((id, dtype), (wide, narrow))| match dtype {
                Dtype::Bf16 => StepTensor::new(*id, narrow, &none),
                _ => StepTensor::new(*id, wide, &none),
            })
            .collect();
        tensors.push(StepTensor::new(w, p, &grad));
        muon.step(&options, &mut tensors).unwrap()
    };
    let report = step(&mut muon, &mut p);
    let expected = alone.step(&options, &mut [StepTensor::new(other, &mut q, &grad)]).unwrap();
    assert_eq!(bits(&p), bits(&q));
    assert_eq!(report.gradient_norm, expected.gradient_norm);
    assert_eq!((report.orthogonalized, report.skipped_matrices), (1, Some(0)));
    assert_eq!(report.skipped_adamw, Some(0));
    for (id, _) in &ids {
        assert!(muon.counters(*id).unwrap().skipped.iter().all(|skips| *skips == 0));
        assert_eq!(muon.export_state(*id).unwrap().buffers[0].1.len(), 0);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.safetensors");
    let checkpoint = muon.checkpoint().unwrap();
    checkpoint.save(&path).unwrap();
    let (mut again, hidden, _) = build();
    let w = again.add_param(hidden, ParamSpec::new("w", &[2, 3])).unwrap();
    again.restore(&Checkpoint::load(&path).unwrap()).unwrap();
    assert_eq!(again.checkpoint().unwrap(), checkpoint);
    assert_eq!(again.counters(w).unwrap().steps, 1);
}
