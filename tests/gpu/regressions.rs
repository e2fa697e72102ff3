//! Bugs that other implementations of Muon had and that live on a device, one test each.
//!
//! | bug | seen in | test |
//! |---|---|---|
//! | normalising in place what aliases the gradient or the momentum, when it is bf16 already | PyTorch's Muon | `gradients_and_momentum_are_what_the_blend_made` |
//! | an eps that ends scale invariance for tiny gradients | Emerging-Optimizers | `hostile::powers_of_two_change_no_bit_and_the_ends_of_f32_give_the_direction` |
//! | NaN from a zero gradient or row | dion | `degenerate_gradients_give_finite_updates`, `hostile::a_nan_and_a_zero_matrix_leave_their_batch_alone` |
//! | offsets that overflow 32 bits | dion | `src/cuda/index_tests.rs` |
//! | a crash when dtypes differ | muon-clip | `every_pair_of_dtypes_is_orthogonalized` |
//! | the default path orthogonalizes nothing | DeepSpeed | `the_applied_update_is_orthogonal_in_every_mode` |
//! | rates and decays of groups are lost | DeepSpeed | `each_group_has_its_rate_and_decay` |
//! | a parameter without a gradient decays | Keller Jordan's Muon | `a_parameter_without_a_gradient_keeps_its_bits` |
//! | convolutions are left out without a word | WatChMaL | `convolutions_and_heads_are_stepped_as_on_the_cpu` |
//! | state is cast when it is loaded | OpenTau | `restored_state_has_its_bits_and_its_dtype` |
//! | the rate is read once, when a graph is captured | burn, dion | `graph::replays_with_changing_rates_and_addresses_are_the_eager_steps` |
//! | an alignment is promised that the second matrix of a batch does not have | ours | `every_matrix_of_a_batch_is_as_aligned_as_cublaslt_is_told` |
//! | results change when a handle's workspace is shared between streams | cuBLAS under PyTorch | `two_optimizers_on_two_streams_have_a_workspace_each` |

use std::num::NonZeroUsize;

use half::{bf16, f16};
use muon_cuda::reference::Matrix;
use muon_cuda::{
    AdamWRule, Bf16Params, Cpu, Dtype, HostBuffer, MethodChoice, Muon, MuonConfig, MuonRule,
    Nesterov, ParamSpec, Precision, Split, StepOptions, StepTensor, UpdateScale,
};

use crate::device::{Offset, Session, muon, stream, with_device};
use crate::support::{Random, bits, rule, run};

/// Singular values of a row-major matrix.
fn singular_values(rows: usize, cols: usize, x: &[f32]) -> Vec<f64> {
    muon_cuda::reference::singular_values(&Matrix::from_f32(rows, cols, x).unwrap())
}

fn to_bf16(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|x| bf16::from_f32(*x)).collect()
}

fn to_f16(x: &[f32]) -> Vec<f16> {
    x.iter().map(|x| f16::from_f32(*x)).collect()
}

#[test]
fn gradients_and_momentum_are_what_the_blend_made() {
    with_device(1, |_| {
        let shape = [40, 24];
        for momentum_dtype in [Dtype::F32, Dtype::Bf16] {
            for nesterov in [Nesterov::On, Nesterov::Off] {
                let config = MuonConfig {
                    momentum_dtype,
                    precision: Some(Precision::Bf16),
                    ..MuonConfig::default()
                };
                let mut muon = muon(config);
                let rule = MuonRule { momentum: 0.75, nesterov, ..rule("jordan") };
                let group = muon.add_group("hidden", rule).unwrap();
                let id = muon.add_param(group, ParamSpec::new("w", &shape)).unwrap();
                let stream = stream(&muon);
                let mut random = Random::new(3);
                let mut p = Offset::new(&stream, &random.normals(960), 0);
                // Of the iterate's own type, so that nothing need be converted.
                let host = to_bf16(&random.normals(960));
                let grad = Offset::new(&stream, &host, 0);
                for _ in 0..2 {
                    let mut tensors = [StepTensor::new(id, p.param(), grad.grad())];
                    muon.step(&StepOptions::default(), &mut tensors).unwrap();
                }
                assert_eq!(grad.download(), host, "a gradient is never written");
                // Powers of two: 0.25·g, then 0.75·(0.25·g) + 0.25·g = 0.4375·g, each product exact in f32.
                let expected: Vec<f32> = host
                    .iter()
                    .map(|g| {
                        let g = g.to_f32();
                        match momentum_dtype {
                            Dtype::F32 => 0.75 * (0.25 * g) + 0.25 * g,
                            _ => {
                                bf16::from_f32(0.75 * bf16::from_f32(0.25 * g).to_f32() + 0.25 * g)
                                    .to_f32()
                            }
                        }
                    })
                    .collect();
                let found: Vec<f32> = match &muon.export_state(id).unwrap().buffers[0].1 {
                    HostBuffer::F32(x) => x.clone(),
                    HostBuffer::Bf16(x) => x.iter().map(|x| x.to_f32()).collect(),
                };
                assert_eq!(bits(&found), bits(&expected), "{momentum_dtype} {nesterov:?}");
            }
        }
    });
}

#[test]
fn degenerate_gradients_give_finite_updates() {
    with_device(2, |_| {
        let (rows, cols) = (24, 36);
        let mut random = Random::new(9);
        let full = random.normals(rows * cols);
        let (u, v) = (random.normals(rows), random.normals(cols));
        let zero_row: Vec<f32> =
            full.iter().enumerate().map(|(i, x)| if i / cols == 5 { 0.0 } else { *x }).collect();
        let zero_column: Vec<f32> =
            full.iter().enumerate().map(|(i, x)| if i % cols == 7 { 0.0 } else { *x }).collect();
        let rank_one: Vec<f32> = (0..rows * cols).map(|i| u[i / cols] * v[i % cols]).collect();
        let mut single = vec![0.0f32; rows * cols];
        single[17] = 3.0;
        let cases = [
            ("a zero row", zero_row),
            ("a zero column", zero_column),
            ("rank one", rank_one),
            ("all equal", vec![0.125; rows * cols]),
            ("one element", single),
        ];
        for precision in [Precision::F32, Precision::Bf16, Precision::Fp16] {
            for (what, grad) in &cases {
                let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
                let rule = MuonRule {
                    update_scale: UpdateScale::None,
                    lr: 1.0,
                    weight_decay: 0.0,
                    ..rule("jordan")
                };
                let mut muon = muon(config.clone());
                let group = muon.add_group("hidden", rule.clone()).unwrap();
                let id = muon.add_param(group, ParamSpec::new("w", &[rows, cols])).unwrap();
                let stream = stream(&muon);
                let mut p = Offset::new(&stream, &vec![0.0f32; rows * cols], 0);
                let g = Offset::new(&stream, grad, 0);
                muon.step(&StepOptions::default(), &mut [StepTensor::new(id, p.param(), g.grad())])
                    .unwrap();
                assert_eq!(muon.counters(id).unwrap().skipped, [0], "{what} {precision}");
                let update = p.download();
                let zeros = vec![0.0f32; rows * cols];
                let cpu = run(&config, &rule, &[rows, cols], &zeros, std::slice::from_ref(grad), 1);
                let largest = singular_values(rows, cols, &update)[0];
                // Jordan's five quintics keep every singular value below 1.3.
                assert!(largest > 0.6 && largest < 1.3, "{what} {precision}: {largest}");
                // What rounding noise the polynomials lift differs with the order of sums; the matrix's own part does not.
                for (i, (a, b)) in update.iter().zip(&cpu).enumerate() {
                    assert!((a - b).abs() < 0.3, "{what} {precision} at {i}: {a} {b}");
                }
                // A row of zeros stays one to the bit: its products are sums of zeros.
                if *what == "a zero row" {
                    assert!(update[5 * cols..6 * cols].iter().all(|x| *x == 0.0), "{precision}");
                }
            }
        }
    });
}

#[test]
fn every_pair_of_dtypes_is_orthogonalized() {
    with_device(3, |_| {
        let shape = [24, 40];
        let mut random = Random::new(4);
        // Values that f16 and bf16 hold, so that every pair sees the same gradient.
        let grad: Vec<f32> =
            random.normals(960).iter().map(|x| (x * 16.0).round() / 16.0).collect();
        let start: Vec<f32> = to_bf16(&random.normals(960)).iter().map(|x| x.to_f32()).collect();
        for precision in [Precision::F32, Precision::Bf16, Precision::Fp16] {
            let mut updates: Vec<Vec<f32>> = Vec::new();
            for param in [Dtype::F32, Dtype::Bf16] {
                for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                    for momentum_dtype in [Dtype::F32, Dtype::Bf16] {
                        let config = MuonConfig {
                            precision: Some(precision),
                            momentum_dtype,
                            ..MuonConfig::default()
                        };
                        let mut muon = muon(config);
                        let rule = MuonRule { lr: 0.5, momentum: 0.5, ..rule("jordan") };
                        let group = muon.add_group("hidden", rule).unwrap();
                        let spec = ParamSpec::new("w", &shape).dtype(param);
                        let id = muon.add_param(group, spec).unwrap();
                        let stream = stream(&muon);
                        let (mut wide, mut narrow) = (
                            Offset::new(&stream, &start, 0),
                            Offset::new(&stream, &to_bf16(&start), 0),
                        );
                        let g32 = Offset::new(&stream, &grad, 0);
                        let g16 = Offset::new(&stream, &to_f16(&grad), 0);
                        let gb16 = Offset::new(&stream, &to_bf16(&grad), 0);
                        let grad = match dtype {
                            Dtype::F32 => g32.grad(),
                            Dtype::Bf16 => gb16.grad(),
                            _ => g16.grad(),
                        };
                        let p = if param == Dtype::F32 { wide.param() } else { narrow.param() };
                        muon.step(&StepOptions::default(), &mut [StepTensor::new(id, p, grad)])
                            .unwrap();
                        // The master of a bf16 parameter is what was stepped.
                        let after: Vec<f32> = if param == Dtype::F32 {
                            wide.download()
                        } else {
                            match muon.export_state(id).unwrap().buffers.remove(1).1 {
                                HostBuffer::F32(master) => master,
                                HostBuffer::Bf16(_) => panic!("a master is f32"),
                            }
                        };
                        updates.push(after);
                    }
                }
            }
            // Halves of the gradient are exact in every dtype, so all pairs take the same step.
            for (i, update) in updates.iter().enumerate() {
                assert_eq!(bits(update), bits(&updates[0]), "{precision}, pair {i}");
            }
        }
    });
}

#[test]
fn the_applied_update_is_orthogonal_in_every_mode() {
    with_device(4, |_| {
        let (rows, cols) = (32, 136);
        let mut random = Random::new(6);
        let grad = random.normals(rows * cols);
        for precision in [Precision::F32, Precision::Bf16, Precision::Fp16] {
            for method in
                [MethodChoice::Auto, MethodChoice::Standard, MethodChoice::Gram(vec![2, 2, 1])]
            {
                for tall in [false, true] {
                    for (clip_norm, workspace_limit) in [(None, usize::MAX), (Some(0.5), 1)] {
                        let config = MuonConfig {
                            precision: Some(precision),
                            workspace_limit,
                            ..MuonConfig::default()
                        };
                        let mut muon = muon(config);
                        let rule = MuonRule {
                            method: method.clone(),
                            update_scale: UpdateScale::None,
                            lr: 1.0,
                            weight_decay: 0.0,
                            ..rule("polar_express_5")
                        };
                        let group = muon.add_group("hidden", rule).unwrap();
                        let (r, c) = if tall { (cols, rows) } else { (rows, cols) };
                        let id = muon.add_param(group, ParamSpec::new("w", &[r, c])).unwrap();
                        let stream = stream(&muon);
                        let mut p = Offset::new(&stream, &vec![0.0f32; r * c], 0);
                        let g = Offset::new(&stream, &grad, 0);
                        let options = StepOptions { clip_norm, ..StepOptions::default() };
                        muon.step(&options, &mut [StepTensor::new(id, p.param(), g.grad())])
                            .unwrap();
                        let s = singular_values(r, c, &p.download());
                        // A Gaussian matrix of this shape has a condition of about 3; the schedule's band there is 0.85 to 1.15,
                        // and forced Gram forms in 16 bit add noise. A gradient that was only normalised has values near 0.18.
                        assert!(
                            s[rows - 1] > 0.7 && s[0] < 1.3,
                            "{precision} {method:?} tall {tall} clip {clip_norm:?}: {} to {}",
                            s[rows - 1],
                            s[0]
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn each_group_has_its_rate_and_decay() {
    with_device(5, |_| {
        // Two groups whose matrices share a bucket, and two of AdamW.
        let build = |split: bool| {
            let mut muon = muon(MuonConfig::default());
            let muon_rule = |lr, weight_decay| MuonRule { lr, weight_decay, ..rule("jordan") };
            let adamw_rule =
                |lr, weight_decay| AdamWRule { lr, weight_decay, ..AdamWRule::default() };
            let (a, c) = (
                muon.add_group("a", muon_rule(0.5, 0.0)).unwrap(),
                muon.add_group("c", adamw_rule(0.25, 0.0)).unwrap(),
            );
            let (b, d) = if split {
                (
                    muon.add_group("b", muon_rule(0.125, 0.5)).unwrap(),
                    muon.add_group("d", adamw_rule(0.0625, 0.5)).unwrap(),
                )
            } else {
                (a, c)
            };
            let shapes: [(_, &[usize]); 4] =
                [(a, &[16, 24]), (b, &[16, 24]), (c, &[40]), (d, &[40])];
            let stream = stream(&muon);
            let mut params = Vec::new();
            for (i, (group, shape)) in shapes.into_iter().enumerate() {
                let len = shape.iter().product();
                let id = muon.add_param(group, ParamSpec::new(format!("p{i}"), shape)).unwrap();
                // The same parameter and gradient for both of a kind.
                let mut random = Random::new(if shape.len() == 2 { 1 } else { 2 });
                let (p, g) = (random.normals(len), random.normals(len));
                params.push((id, Offset::new(&stream, &p, 0), Offset::new(&stream, &g, 0), p));
            }
            let mut tensors: Vec<_> = params
                .iter_mut()
                .map(|(id, p, g, _)| StepTensor::new(*id, p.param(), g.grad()))
                .collect();
            muon.step(&StepOptions::default(), &mut tensors).unwrap();
            drop(tensors);
            params.iter().map(|(_, p, _, start)| (start.clone(), p.download())).collect::<Vec<_>>()
        };
        let (together, apart) = (build(false), build(true));
        for (first, second, lr_ratio, keep) in
            [(0, 1, 0.25f32, 1.0 - 0.125 * 0.5), (2, 3, 0.25, 1.0 - 0.0625 * 0.5)]
        {
            assert_eq!(bits(&together[first].1), bits(&together[second].1));
            assert_eq!(
                bits(&together[first].1),
                bits(&apart[first].1),
                "the first group's rule stays"
            );
            let (start, whole) = (&apart[first].0, &apart[first].1);
            for (i, found) in apart[second].1.iter().enumerate() {
                // p·keep − lr·u, with the update u read off the group of another rate.
                let expected = start[i] * keep + (whole[i] - start[i]) * lr_ratio;
                assert!((found - expected).abs() <= 1e-5, "{second} at {i}: {found} {expected}");
            }
        }
    });
}

#[test]
fn a_parameter_without_a_gradient_keeps_its_bits() {
    with_device(6, |_| {
        for (dtype, bf16_params) in
            [(Dtype::F32, Bf16Params::Master), (Dtype::Bf16, Bf16Params::Stochastic { seed: 1 })]
        {
            let mut muon = muon(MuonConfig { bf16_params, ..MuonConfig::default() });
            let decayed = MuonRule { weight_decay: 0.5, lr: 0.5, ..rule("jordan") };
            let hidden = muon.add_group("hidden", decayed).unwrap();
            let rest = AdamWRule { weight_decay: 0.5, lr: 0.5, ..AdamWRule::default() };
            let rest = muon.add_group("rest", rest).unwrap();
            let shapes: [(_, &[usize]); 4] =
                [(hidden, &[16, 24]), (hidden, &[16, 24]), (rest, &[33]), (rest, &[33])];
            let stream = stream(&muon);
            let mut random = Random::new(2);
            let mut wide = Vec::new();
            let mut narrow = Vec::new();
            let mut grads = Vec::new();
            let mut ids = Vec::new();
            for (i, (group, shape)) in shapes.into_iter().enumerate() {
                let len = shape.iter().product();
                let spec = ParamSpec::new(format!("p{i}"), shape).dtype(dtype);
                ids.push(muon.add_param(group, spec).unwrap());
                let p = random.normals(len);
                wide.push(Offset::new(&stream, &p, 0));
                narrow.push(Offset::new(&stream, &to_bf16(&p), 0));
                grads.push(Offset::new(&stream, &random.normals(len), 0));
            }
            let mut step = |muon: &mut Muon<_>, without: &[usize]| {
                let mut tensors: Vec<_> = wide
                    .iter_mut()
                    .zip(&mut narrow)
                    .enumerate()
                    .map(|(i, (w, n))| {
                        let param = if dtype == Dtype::F32 { w.param() } else { n.param() };
                        if without.contains(&i) {
                            StepTensor::without_grad(ids[i], param)
                        } else {
                            StepTensor::new(ids[i], param, grads[i].grad())
                        }
                    })
                    .collect();
                muon.step(&StepOptions::default(), &mut tensors).unwrap();
                drop(tensors);
                wide.iter()
                    .zip(&narrow)
                    .map(|(w, n)| {
                        let narrow = n.download().iter().map(|x| u32::from(x.to_bits())).collect();
                        (bits(&w.download()), narrow)
                    })
                    .collect::<Vec<(Vec<u32>, Vec<u32>)>>()
            };
            let first = step(&mut muon, &[]);
            let states: Vec<_> = ids.iter().map(|id| muon.export_state(*id).unwrap()).collect();
            let second = step(&mut muon, &[0, 2]);
            for i in 0..4 {
                let kept = i == 0 || i == 2;
                assert_eq!(first[i] == second[i], kept, "{dtype} param {i}");
                assert_eq!(
                    muon.export_state(ids[i]).unwrap() == states[i],
                    kept,
                    "{dtype} state {i}"
                );
            }
        }
    });
}

#[test]
fn convolutions_and_heads_are_stepped_as_on_the_cpu() {
    with_device(7, |_| {
        let heads = Split::Heads(NonZeroUsize::new(3).unwrap());
        for (shape, split, matrices) in [
            (vec![8, 4, 3, 3], Split::Whole, 1),
            (vec![2, 12, 20], Split::Whole, 2),
            (vec![24, 20], heads, 3),
        ] {
            let len = shape.iter().product();
            let spec = || ParamSpec::new("w", &shape).split(split.clone());
            let config = MuonConfig { precision: Some(Precision::F32), ..MuonConfig::default() };
            let mut cpu = Muon::new(Cpu::with_threads(1).unwrap(), config.clone()).unwrap();
            let mut gpu = muon(config);
            let group = cpu.add_group("hidden", rule("jordan")).unwrap();
            let cpu_id = cpu.add_param(group, spec()).unwrap();
            let group = gpu.add_group("hidden", rule("jordan")).unwrap();
            let gpu_id = gpu.add_param(group, spec()).unwrap();
            let stream = stream(&gpu);
            let mut random = Random::new(8);
            let (start, grad) = (random.normals(len), random.normals(len));
            let mut host = start.clone();
            let mut device = Offset::new(&stream, &start, 0);
            let on_device = Offset::new(&stream, &grad, 0);
            let options = StepOptions::default();
            let report = gpu
                .step(&options, &mut [StepTensor::new(gpu_id, device.param(), on_device.grad())])
                .unwrap();
            cpu.step(&options, &mut [StepTensor::new(cpu_id, &mut host, &grad)]).unwrap();
            assert_eq!(report.orthogonalized, matrices, "{shape:?}");
            let found = device.download();
            assert_ne!(bits(&found), bits(&start));
            for (a, b) in found.iter().zip(&host) {
                // f32 products summed in another order.
                assert!((a - b).abs() <= 1e-6, "{shape:?}: {a} {b}");
            }
        }
    });
}

#[test]
fn restored_state_has_its_bits_and_its_dtype() {
    with_device(8, |_| {
        let config = |momentum_dtype| MuonConfig {
            momentum_dtype,
            bf16_params: Bf16Params::Master,
            ..MuonConfig::default()
        };
        let build = |config: MuonConfig| {
            let mut muon = muon(config);
            let hidden = muon.add_group("hidden", rule("jordan")).unwrap();
            let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
            let spec = ParamSpec::new("w", &[16, 24]).dtype(Dtype::Bf16);
            let w = muon.add_param(hidden, spec).unwrap();
            let b = muon.add_param(rest, ParamSpec::new("b", &[33])).unwrap();
            (muon, w, b)
        };
        let mut random = Random::new(5);
        let (w0, b0) = (to_bf16(&random.normals(384)), random.normals(33));
        let grads: Vec<_> = (0..4).map(|_| (random.normals(384), random.normals(33))).collect();
        let trained = |resume_after: Option<usize>| {
            let (mut muon, mut w, mut b) = build(config(Dtype::Bf16));
            let stream = stream(&muon);
            let (mut dw, mut db) = (Offset::new(&stream, &w0, 0), Offset::new(&stream, &b0, 0));
            for (i, (gw, gb)) in grads.iter().enumerate() {
                if Some(i) == resume_after {
                    let checkpoint = muon.checkpoint().unwrap();
                    let (mut fresh, fresh_w, fresh_b) = build(config(Dtype::Bf16));
                    fresh.restore(&checkpoint).unwrap();
                    assert_eq!(fresh.export_state(fresh_w).unwrap(), muon.export_state(w).unwrap());
                    assert_eq!(fresh.export_state(fresh_b).unwrap(), muon.export_state(b).unwrap());
                    // Momentum of another dtype is refused, not converted.
                    let (mut other, other_w, _) = build(config(Dtype::F32));
                    let before = other.export_state(other_w).unwrap();
                    let error = other.restore(&checkpoint).unwrap_err();
                    assert!(error.is_dtype_mismatch(), "{error}");
                    assert_eq!(other.export_state(other_w).unwrap(), before);
                    drop(other);
                    muon.synchronize().unwrap();
                    (muon, w, b) = (fresh, fresh_w, fresh_b);
                }
                let (gw, gb) = (Offset::new(&stream, gw, 0), Offset::new(&stream, gb, 0));
                let mut tensors = [
                    StepTensor::new(w, dw.param(), gw.grad()),
                    StepTensor::new(b, db.param(), gb.grad()),
                ];
                muon.step(&StepOptions::default(), &mut tensors).unwrap();
                muon.synchronize().unwrap();
            }
            (dw.download(), bits(&db.download()))
        };
        assert_eq!(trained(Some(2)), trained(None));
    });
}

#[test]
fn two_optimizers_on_two_streams_have_a_workspace_each() {
    // One matrix and its bits after three steps, of each optimizer; both together or one alone.
    let run = |session: &Session, which: &[usize]| {
        let mut made: Vec<_> = which
            .iter()
            .map(|&k| {
                let before = session.counters().map(|c| c.live_bytes);
                let mut muon =
                    muon(MuonConfig { precision: Some(Precision::Bf16), ..MuonConfig::default() });
                if let Some((before, after)) = before.zip(session.counters().map(|c| c.live_bytes))
                {
                    // 32 MiB from capability 9.0 on, which the emulated H100 has.
                    assert!(after - before >= 32 << 20, "{} bytes for a device", after - before);
                }
                let group = muon.add_group("hidden", rule("jordan")).unwrap();
                let id = muon.add_param(group, ParamSpec::new("w", &[48, 64])).unwrap();
                let stream = stream(&muon);
                let mut random = Random::new(k as u64);
                let p = Offset::new(&stream, &random.normals(48 * 64), 0);
                let g = Offset::new(&stream, &random.normals(48 * 64), 0);
                (muon, id, p, g)
            })
            .collect();
        for _ in 0..3 {
            for (muon, id, p, g) in &mut made {
                muon.step(
                    &StepOptions::default(),
                    &mut [StepTensor::new(*id, p.param(), g.grad())],
                )
                .unwrap();
            }
        }
        made.iter().map(|(_, _, p, _)| bits(&p.download())).collect::<Vec<_>>()
    };
    let alone = [1, 2].map(|k| with_device(0, |session| run(session, &[k]).remove(0)));
    for seed in 0..6 {
        // The emulator finds a race if the products of both use one workspace.
        let together = with_device(seed, |session| run(session, &[1, 2]));
        assert!(together == alone, "seed {seed}");
    }
}

/// A configuration that names no precision means the device's own.
#[test]
fn the_default_precision_is_bf16_here_and_f32_on_the_cpu() {
    with_device(9, |_| {
        let mut gpu = muon(MuonConfig::default());
        let mut cpu = Muon::new(Cpu::with_threads(1).unwrap(), MuonConfig::default()).unwrap();
        assert_eq!(gpu.config().precision, Some(Precision::Bf16));
        let group = gpu.add_group("hidden", rule("jordan")).unwrap();
        gpu.add_param(group, ParamSpec::new("w", &[8, 8])).unwrap();
        assert_eq!(gpu.plan().unwrap().precision(), Precision::Bf16);
        let group = cpu.add_group("hidden", rule("jordan")).unwrap();
        cpu.add_param(group, ParamSpec::new("w", &[8, 8])).unwrap();
        assert_eq!(cpu.plan().unwrap().precision(), Precision::F32);
        assert_eq!(cpu.config().precision, Some(Precision::F32));
    });
}

#[test]
fn every_matrix_of_a_batch_is_as_aligned_as_cublaslt_is_told() {
    // 54 elements are padded to 56: 112 bytes of bf16, 224 of f32, 16 and 32 bytes of alignment.
    for (precision, orthogonalizer) in
        [(Precision::Bf16, "jordan"), (Precision::F32, "jordan"), (Precision::F32, "nonic3_band12")]
    {
        with_device(1, |_| {
            let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
            let mut muon = muon(config);
            let group = muon.add_group("hidden", rule(orthogonalizer)).unwrap();
            let split = Split::FanOut(vec![6, 6, 6]);
            let id = muon.add_param(group, ParamSpec::new("w", &[18, 9]).split(split)).unwrap();
            let stream = stream(&muon);
            let mut random = Random::new(5);
            let mut p = Offset::new(&stream, &random.normals(162), 0);
            let g = Offset::new(&stream, &random.normals(162), 0);
            muon.step(&StepOptions::default(), &mut [StepTensor::new(id, p.param(), g.grad())])
                .unwrap();
            muon.synchronize().unwrap();
        });
    }
}
