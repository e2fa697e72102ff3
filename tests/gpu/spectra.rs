//! Directions on the host, for their spectra: those of the CPU device, and no trace in the training.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use muon_cuda::spectrum::SpectrumRecord;
use muon_cuda::{
    Cpu, Dtype, Muon, MuonConfig, MuonRule, Nesterov, Orthogonalizer, ParamSpec, Split,
    StepOptions, StepTensor, WeightDecayMode,
};

use crate::device::{Offset, muon, stream, with_device};
use crate::support::{Random, bits, rule};

/// Spectra before each of three steps on both devices, of a wide matrix and of one whose blocks are not contiguous.
fn both(
    config: &MuonConfig,
    rule: &MuonRule,
    options: &StepOptions,
    grads: Dtype,
) -> [Vec<SpectrumRecord>; 2] {
    let shapes: [&[usize]; 2] = [&[7, 20], &[18, 12]];
    let spec = |i: usize| {
        let spec = ParamSpec::new(format!("w{i}"), shapes[i]);
        if i == 1 {
            spec.layout(muon_cuda::Layout::InOut).split(Split::Heads(NonZeroUsize::new(3).unwrap()))
        } else {
            spec
        }
    };
    let mut cpu = Muon::new(Cpu::with_threads(1).unwrap(), config.clone()).unwrap();
    let mut gpu = muon(config.clone());
    let stream = stream(&gpu);
    let cpu_group = cpu.add_group("hidden", rule.clone()).unwrap();
    let gpu_group = gpu.add_group("hidden", rule.clone()).unwrap();
    let cpu_ids = [0, 1].map(|i| cpu.add_param(cpu_group, spec(i)).unwrap());
    let gpu_ids = [0, 1].map(|i| gpu.add_param(gpu_group, spec(i)).unwrap());
    let mut random = Random::new(3);
    let mut host: Vec<Vec<f32>> = shapes.map(|s| random.normals(s.iter().product())).to_vec();
    let mut device: Vec<_> = host.iter().map(|p| Offset::new(&stream, p, 1)).collect();
    let mut found = [Vec::new(), Vec::new()];
    macro_rules! step {
        ($convert:expr) => {{
            let grads: Vec<Vec<_>> = host
                .iter()
                .map(|p| random.normals(p.len()).into_iter().map($convert).collect())
                .collect();
            let on_device: Vec<_> = grads.iter().map(|g| Offset::new(&stream, g, 3)).collect();
            let mut tensors: Vec<StepTensor<'_, Cpu>> = host
                .iter_mut()
                .zip(&grads)
                .zip(cpu_ids)
                .map(|((p, g), id)| StepTensor::new(id, p, g))
                .collect();
            found[0].extend(cpu.direction_spectra(options, &tensors).unwrap());
            cpu.step(options, &mut tensors).unwrap();
            let mut tensors: Vec<_> = device
                .iter_mut()
                .zip(&on_device)
                .zip(gpu_ids)
                .map(|((p, g), id)| StepTensor::new(id, p.param(), g.grad()))
                .collect();
            found[1].extend(gpu.direction_spectra(options, &tensors).unwrap());
            gpu.step(options, &mut tensors).unwrap();
        }};
    }
    for _ in 0..3 {
        match grads {
            Dtype::F32 => step!(|x: f32| x),
            Dtype::Bf16 => step!(bf16::from_f32),
            Dtype::F16 => step!(f16::from_f32),
            _ => unreachable!(),
        }
    }
    found
}

#[test]
fn directions_on_the_host_are_those_of_the_cpu_device() {
    with_device(1, |_| {
        for grads in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            for momentum_dtype in [Dtype::F32, Dtype::Bf16] {
                for nesterov in [Nesterov::On, Nesterov::Off] {
                    let config = MuonConfig { momentum_dtype, ..MuonConfig::default() };
                    let rule = MuonRule { nesterov, ..rule("jordan") };
                    let options =
                        StepOptions { inverse_loss_scale: 0.25, ..StepOptions::default() };
                    let [cpu, gpu] = both(&config, &rule, &options, grads);
                    assert_eq!(cpu.len(), 3 * 4);
                    assert_eq!(cpu, gpu, "{grads} {momentum_dtype} {nesterov:?}");
                }
            }
        }
        // With L2 decay the parameter is part of it; without products it has the same bits on both devices.
        for grads in [Dtype::F32, Dtype::Bf16] {
            let rule = MuonRule {
                weight_decay: 0.5,
                weight_decay_mode: WeightDecayMode::L2,
                orthogonalizer: Orthogonalizer::Identity,
                ..MuonRule::default()
            };
            let config = MuonConfig::default();
            let plain = both(
                &config,
                &MuonRule { weight_decay: 0.0, ..rule.clone() },
                &StepOptions::default(),
                grads,
            );
            let [cpu, gpu] = both(&config, &rule, &StepOptions::default(), grads);
            assert_eq!(cpu, gpu, "L2 {grads}");
            assert_ne!(cpu, plain[0], "L2 {grads}");
        }
        // The factor of clipping is made on the device, from sums of squares in another order.
        let options = StepOptions { clip_norm: Some(0.5), ..StepOptions::default() };
        let [cpu, gpu] = both(&MuonConfig::default(), &rule("jordan"), &options, Dtype::F32);
        for (c, g) in cpu.iter().zip(&gpu) {
            assert_eq!((c.step, &c.name), (g.step, &g.name));
            assert!((c.norm / g.norm - 1.0).abs() < 1e-6, "{} {}", c.norm, g.norm);
        }
        assert!(cpu[0].norm < 0.5);
    });
}

#[test]
fn recording_changes_no_bit_of_the_training() {
    with_device(2, |_| {
        let run = |record: bool| {
            let mut muon = muon(MuonConfig::default());
            let group = muon.add_group("hidden", rule("jordan")).unwrap();
            let id = muon.add_param(group, ParamSpec::new("w", &[9, 14])).unwrap();
            let stream = stream(&muon);
            let mut random = Random::new(8);
            let mut param = Offset::new(&stream, &random.normals(126), 0);
            for _ in 0..3 {
                let grad = Offset::new(&stream, &random.normals(126), 0);
                let mut tensors = [StepTensor::new(id, param.param(), grad.grad())];
                if record {
                    let records =
                        muon.direction_spectra(&StepOptions::default(), &tensors).unwrap();
                    assert_eq!(records.len(), 1);
                }
                muon.step(&StepOptions::default(), &mut tensors).unwrap();
            }
            (bits(&param.download()), muon.export_state(id).unwrap())
        };
        assert_eq!(run(true), run(false));
    });
}
