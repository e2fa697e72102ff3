//! Whole steps against the CPU device, which the other tests hold to the oracle and to PyTorch.

use half::{bf16, f16};
use muon_cuda::{
    AdamWRule, Bf16Params, Cpu, Dtype, Layout, MethodChoice, MomentumMode, Muon, MuonConfig,
    MuonRule, Nesterov, Orthogonalizer, ParamSpec, Precision, StepOptions, StepTensor,
    WeightDecayMode,
};

use crate::device::{Offset, muon, only_on_the_emulator, stream, with_device};
use crate::support::{Random, bits, oracle, rule, run, update_error};

/// One f32 parameter through a few steps on the GPU.
fn gpu(
    config: &MuonConfig,
    rule: &MuonRule,
    shape: [usize; 2],
    param: &[f32],
    grads: &[Vec<f32>],
    offset: usize,
) -> Vec<f32> {
    let mut muon = muon(config.clone());
    let group = muon.add_group("hidden", rule.clone()).unwrap();
    let id = muon.add_param(group, ParamSpec::new("w", &shape)).unwrap();
    let stream = stream(&muon);
    let mut p = Offset::new(&stream, param, offset);
    for grad in grads {
        let grad = Offset::new(&stream, grad, offset);
        muon.step(&StepOptions::default(), &mut [StepTensor::new(id, p.param(), grad.grad())])
            .unwrap();
    }
    p.download()
}

fn inputs(shape: [usize; 2], steps: usize, seed: u64) -> (Vec<f32>, Vec<Vec<f32>>) {
    let mut random = Random::new(seed);
    let len = shape[0] * shape[1];
    let param = random.normals(len);
    let grads = (0..steps).map(|_| random.normals(len)).collect();
    (param, grads)
}

#[test]
fn steps_meet_the_oracle_in_every_precision_at_every_shape_and_alignment() {
    with_device(1, |_| {
        for (i, shape) in
            [[1, 1], [1, 7], [7, 1], [31, 33], [33, 31], [64, 64], [127, 257], [96, 40]]
                .into_iter()
                .enumerate()
        {
            let (param, grads) = inputs(shape, 2, 3 + i as u64);
            // Degree 5 and degree 9; nonic3_band12 has no room for 16-bit rounding.
            for (preset, precision) in [
                ("jordan", Precision::F32),
                ("jordan", Precision::Bf16),
                ("jordan", Precision::Fp16),
                ("jordan", Precision::Tf32),
                ("tuned_bf16", Precision::Tf32),
                ("nonic3_band12", Precision::F32),
                ("tuned_bf16", Precision::Bf16),
                ("tuned_fp16", Precision::Fp16),
            ] {
                let rule = MuonRule { weight_decay: 0.1, ..rule(preset) };
                let expected = oracle(&rule, Layout::OutIn, shape[0], shape[1], &param, &grads);
                {
                    let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
                    let found = gpu(&config, &rule, shape, &param, &grads, i % 5);
                    let error = update_error(&found, &expected, &param);
                    // The CPU device rounds at the same stores, in another order of summation.
                    let cpu = run(&config, &rule, &shape, &param, &grads, 1);
                    let limit = 2.0 * update_error(&cpu, &expected, &param) + 1e-6;
                    assert!(
                        error <= limit,
                        "{preset} {shape:?} {precision}: {error:e} > {limit:e}"
                    );
                }
            }
        }
    });
}

/// Products of operands with at most 12 bits of mantissa are exact in f32, so a fused sum is no other than one of
/// products and sums apart, and the emulator adds in the order of the CPU device. A GPU adds in its own.
#[test]
fn products_of_short_operands_have_the_bits_of_the_cpu_device_on_the_emulator() {
    if !only_on_the_emulator("it adds in an order of its own") {
        return;
    }
    with_device(5, |_| {
        for (preset, precision) in [
            ("jordan", Precision::Tf32),
            ("tuned_bf16", Precision::Tf32),
            ("jordan", Precision::Bf16),
            ("tuned_bf16", Precision::Bf16),
            ("jordan", Precision::Fp16),
        ] {
            for shape in [[31, 33], [33, 31], [64, 64], [127, 257]] {
                let (param, grads) = inputs(shape, 2, 21);
                let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
                let found = gpu(&config, &rule(preset), shape, &param, &grads, 0);
                let cpu = run(&config, &rule(preset), &shape, &param, &grads, 1);
                assert!(bits(&found) == bits(&cpu), "{preset} {shape:?} {precision}");
                let f32 = MuonConfig { precision: Some(Precision::F32), ..MuonConfig::default() };
                let other = gpu(&f32, &rule(preset), shape, &param, &grads, 0);
                let distance = update_error(&found, &widened(&other), &param);
                // Rounding that is not there would be f32's: some 1e-6.
                assert!(distance > 1e-5, "{preset} {shape:?} {precision}: {distance:e}");
            }
        }
    });
}

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// One step on both devices without products, where every bit can be compared.
struct Case {
    param: Dtype,
    grad: Dtype,
    config: MuonConfig,
    rule: MuonRule,
}

fn elementwise_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for orthogonalizer in [Orthogonalizer::Identity, Orthogonalizer::Frobenius] {
        for (param, bf16_params) in [
            (Dtype::F32, Bf16Params::Master),
            (Dtype::Bf16, Bf16Params::Master),
            (Dtype::Bf16, Bf16Params::Stochastic { seed: 7 }),
            (Dtype::Bf16, Bf16Params::Nearest),
        ] {
            for grad in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                for momentum_dtype in [Dtype::F32, Dtype::Bf16] {
                    for (momentum_mode, nesterov, weight_decay_mode) in [
                        (MomentumMode::Ema, Nesterov::On, WeightDecayMode::Decoupled),
                        (MomentumMode::Sum, Nesterov::On, WeightDecayMode::Cautious),
                        (MomentumMode::Ema, Nesterov::Off, WeightDecayMode::Cautious),
                        (MomentumMode::Sum, Nesterov::Off, WeightDecayMode::Independent),
                        (MomentumMode::Ema, Nesterov::On, WeightDecayMode::L2),
                        (MomentumMode::Sum, Nesterov::Off, WeightDecayMode::L2),
                    ] {
                        cases.push(Case {
                            param,
                            grad,
                            config: MuonConfig {
                                momentum_dtype,
                                bf16_params,
                                ..MuonConfig::default()
                            },
                            rule: MuonRule {
                                orthogonalizer: orthogonalizer.clone(),
                                momentum_mode,
                                nesterov,
                                weight_decay_mode,
                                weight_decay: 0.1,
                                ..MuonRule::default()
                            },
                        });
                    }
                }
            }
        }
    }
    cases
}

fn to_bf16(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|x| bf16::from_f32(*x)).collect()
}

/// Two steps of one `shape` parameter on both devices; parameter and exported state must agree to the bit.
fn same_bits(case: &Case, shape: [usize; 2], offset: usize) {
    let (param, grads) = inputs(shape, 2, 11);
    let spec = || ParamSpec::new("w", &shape).dtype(case.param);
    let mut cpu = Muon::new(Cpu::with_threads(1).unwrap(), case.config.clone()).unwrap();
    let mut gpu = muon(case.config.clone());
    let group = cpu.add_group("hidden", case.rule.clone()).unwrap();
    let cpu_id = cpu.add_param(group, spec()).unwrap();
    let group = gpu.add_group("hidden", case.rule.clone()).unwrap();
    let gpu_id = gpu.add_param(group, spec()).unwrap();
    let stream = stream(&gpu);
    let options = StepOptions { inverse_loss_scale: 0.5, ..StepOptions::default() };
    macro_rules! both {
        ($param:expr, $grad:expr) => {{
            let start = $param;
            let mut host = start.clone();
            let mut device = Offset::new(&stream, &start, offset);
            for grad in &grads {
                let grad = $grad(grad);
                let on_device = Offset::new(&stream, &grad, offset + 1);
                cpu.step(&options, &mut [StepTensor::new(cpu_id, &mut host, &grad)]).unwrap();
                gpu.step(
                    &options,
                    &mut [StepTensor::new(gpu_id, device.param(), on_device.grad())],
                )
                .unwrap();
            }
            let found = device.download();
            let differs = host.iter().zip(&found).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs, None, "{:?} {:?} {:?} {shape:?}", case.param, case.grad, case.rule);
        }};
    }
    match (case.param, case.grad) {
        (Dtype::F32, Dtype::F32) => both!(param, |g: &Vec<f32>| g.clone()),
        (Dtype::F32, Dtype::Bf16) => both!(param, |g: &Vec<f32>| to_bf16(g)),
        (Dtype::F32, _) => {
            both!(param, |g: &Vec<f32>| g.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>())
        }
        (_, Dtype::F32) => both!(to_bf16(&param), |g: &Vec<f32>| g.clone()),
        (_, Dtype::Bf16) => both!(to_bf16(&param), |g: &Vec<f32>| to_bf16(g)),
        _ => both!(to_bf16(&param), |g: &Vec<f32>| g
            .iter()
            .map(|x| f16::from_f32(*x))
            .collect::<Vec<_>>()),
    }
    let (cpu_state, gpu_state) =
        (cpu.export_state(cpu_id).unwrap(), gpu.export_state(gpu_id).unwrap());
    assert_eq!(cpu_state, gpu_state, "{:?} {:?} {:?}", case.param, case.grad, case.rule);
}

#[test]
fn passes_a_and_b_produce_the_bits_of_the_cpu_device() {
    with_device(2, |_| {
        for (i, case) in elementwise_cases().iter().enumerate() {
            // Short rows, several tiles, and every alignment of both operands in turn.
            let shape = [[5, 7], [127, 131], [2, 3]][i % 3];
            same_bits(case, shape, i % 4);
        }
    });
}

#[test]
fn adamw_produces_the_bits_of_the_cpu_device() {
    with_device(3, |_| {
        for (i, (dtype, bf16_params)) in [
            (Dtype::F32, Bf16Params::Master),
            (Dtype::Bf16, Bf16Params::Master),
            (Dtype::Bf16, Bf16Params::Stochastic { seed: 3 }),
            (Dtype::Bf16, Bf16Params::Nearest),
        ]
        .into_iter()
        .enumerate()
        {
            let config = MuonConfig { bf16_params, ..MuonConfig::default() };
            let rule = AdamWRule { lr: 0.01, weight_decay: 0.1, ..AdamWRule::default() };
            let mut cpu = Muon::new(Cpu::with_threads(1).unwrap(), config.clone()).unwrap();
            let mut gpu = muon(config);
            let stream = stream(&gpu);
            let len = 9001;
            let (start, grads) = inputs([1, len], 3, 5);
            let (w, g) = inputs([3, 2], 1, 6);
            let mut ids = Vec::new();
            for step in 0..2 {
                let spec = |name: &str, shape: &[usize]| ParamSpec::new(name, shape);
                let (hidden, rest) = (MuonRule::default(), rule);
                if step == 0 {
                    let h = cpu.add_group("hidden", hidden).unwrap();
                    let r = cpu.add_group("rest", rest).unwrap();
                    ids.push(cpu.add_param(h, spec("w", &[3, 2])).unwrap());
                    ids.push(cpu.add_param(r, spec("b", &[len]).dtype(dtype)).unwrap());
                } else {
                    let h = gpu.add_group("hidden", hidden).unwrap();
                    let r = gpu.add_group("rest", rest).unwrap();
                    ids.push(gpu.add_param(h, spec("w", &[3, 2])).unwrap());
                    ids.push(gpu.add_param(r, spec("b", &[len]).dtype(dtype)).unwrap());
                }
            }
            let mut host_w = w.clone();
            let mut device_w = Offset::new(&stream, &w, 0);
            let device_g = Offset::new(&stream, &g[0], 0);
            let options = StepOptions::default();
            macro_rules! both {
                ($start:expr) => {{
                    let mut host = $start;
                    let mut device = Offset::new(&stream, &host, i);
                    for grad in &grads {
                        let on_device = Offset::new(&stream, grad, 1);
                        cpu.step(
                            &options,
                            &mut [
                                StepTensor::new(ids[0], &mut host_w, &g[0]),
                                StepTensor::new(ids[1], &mut host, grad),
                            ],
                        )
                        .unwrap();
                        gpu.step(
                            &options,
                            &mut [
                                StepTensor::new(ids[2], device_w.param(), device_g.grad()),
                                StepTensor::new(ids[3], device.param(), on_device.grad()),
                            ],
                        )
                        .unwrap();
                    }
                    let found = device.download();
                    let differs =
                        host.iter().zip(&found).position(|(a, b)| a.to_bits() != b.to_bits());
                    assert_eq!(differs, None, "{dtype} {bf16_params:?}");
                }};
            }
            match dtype {
                Dtype::F32 => both!(start),
                _ => both!(to_bf16(&start)),
            }
            assert_eq!(
                cpu.export_state(ids[1]).unwrap(),
                gpu.export_state(ids[3]).unwrap(),
                "{dtype}"
            );
        }
    });
}

#[test]
fn gram_forms_match_the_cpu_device() {
    with_device(4, |_| {
        let shape = [40, 136];
        let (param, grads) = inputs(shape, 1, 9);
        for (preset, groups) in [
            ("jordan", vec![3, 2]),
            ("polar_express_5", vec![2, 2, 1]),
            ("nonic3_band12", vec![2, 1]),
        ] {
            let rule = MuonRule { method: MethodChoice::Gram(groups), ..rule(preset) };
            for shape in [shape, [shape[1], shape[0]]] {
                let expected = oracle(&rule, Layout::OutIn, shape[0], shape[1], &param, &grads);
                let config =
                    MuonConfig { precision: Some(Precision::F32), ..MuonConfig::default() };
                let cpu = run(&config, &rule, &shape, &param, &grads, 1);
                let found = gpu(&config, &rule, shape, &param, &grads, 0);
                let (error, limit) = (
                    update_error(&found, &expected, &param),
                    2.0 * update_error(&cpu, &expected, &param) + 1e-6,
                );
                assert!(error <= limit, "{preset} {shape:?}: {error:e} > {limit:e}");
            }
        }
        let _ = bits(&param);
    });
}
