//! Spectra of directions: what the next step orthogonalizes, without a trace in the training; and a schedule
//! for each parameter group.
#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

mod support;

use muon_cuda::spectrum::{BINS_PER_OCTAVE, SpectrumRecord};
use muon_cuda::{
    AdamWRule, Cpu, Dtype, MatrixShape, Muon, MuonConfig, MuonRule, Nesterov, NonFinite,
    OrthogonalizeOptions, Orthogonalizer, ParamId, ParamSpec, Precision, Split, StepOptions,
    StepTensor, orthogonalize,
};
use support::{Random, bits};

struct Loop {
    muon: Muon<Cpu>,
    ids: [ParamId; 3],
    params: [Vec<f32>; 3],
    random: Random,
}

/// A wide matrix, a stack of two tall ones, and a vector under AdamW.
fn training(precision: Precision) -> Loop {
    let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
    let mut muon = Muon::new(Cpu::with_threads(2).unwrap(), config).unwrap();
    let hidden = muon.add_group("hidden", MuonRule::default()).unwrap();
    let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
    let ids = [
        muon.add_param(hidden, ParamSpec::new("wide", &[6, 20])).unwrap(),
        muon.add_param(hidden, ParamSpec::new("experts", &[2, 9, 5])).unwrap(),
        muon.add_param(rest, ParamSpec::new("bias", &[7])).unwrap(),
    ];
    let mut random = Random::new(5);
    let params = [120, 90, 7].map(|n| random.normals(n));
    Loop { muon, ids, params, random }
}

/// Trains some steps; `record` of them with the spectra taken first.
fn train(l: &mut Loop, steps: usize, options: &StepOptions, record: bool) -> Vec<SpectrumRecord> {
    let mut records = Vec::new();
    for _ in 0..steps {
        let grads = [120, 90, 7].map(|n| l.random.normals(n));
        let mut tensors: Vec<StepTensor<'_, Cpu>> = l
            .params
            .iter_mut()
            .zip(&grads)
            .zip(l.ids)
            .map(|((p, g), id)| StepTensor::new(id, p, g))
            .collect();
        if record {
            records.extend(l.muon.direction_spectra(options, &tensors).unwrap());
        }
        l.muon.step(options, &mut tensors).unwrap();
    }
    records
}

#[test]
fn recording_does_not_change_a_bit_of_the_training() {
    let options = StepOptions { clip_norm: Some(3.0), ..StepOptions::default() };
    for precision in [Precision::F32, Precision::Bf16, Precision::Fp16] {
        let (mut with, mut without) = (training(precision), training(precision));
        let records = train(&mut with, 4, &options, true);
        train(&mut without, 4, &options, false);
        for i in 0..3 {
            assert_eq!(bits(&with.params[i]), bits(&without.params[i]), "{precision:?} {i}");
            let state = |l: &mut Loop| l.muon.export_state(l.ids[i]).unwrap();
            assert_eq!(state(&mut with), state(&mut without), "{precision:?} {i}");
        }
        let named: Vec<(u64, &str)> =
            records.iter().map(|r| (r.step, r.name.as_str())).take(6).collect();
        let mut of_step_1 = named[3..].to_vec();
        of_step_1.sort_unstable();
        assert_eq!(of_step_1, [(1, "experts[0]"), (1, "experts[1]"), (1, "wide")]);
        assert_eq!(records.len(), 12);
    }
}

#[test]
fn the_spectrum_is_that_of_the_blend_of_momentum_and_gradient() {
    // Diagonal gradients: the singular values of the blends can be written down.
    for (nesterov, clip_norm) in
        [(Nesterov::On, None), (Nesterov::Off, None), (Nesterov::On, Some(1.0))]
    {
        let mut muon = Muon::new(Cpu::new().unwrap(), MuonConfig::default()).unwrap();
        let rule = MuonRule { nesterov, momentum: 0.75, ..MuonRule::default() };
        let group = muon.add_group("hidden", rule).unwrap();
        let id = muon.add_param(group, ParamSpec::new("w", &[2, 3])).unwrap();
        let mut param = vec![0.0f32; 6];
        let options = StepOptions { clip_norm, ..StepOptions::default() };
        let (mut m, beta) = ([0.0f64; 2], 0.75);
        for step in 0..3u32 {
            let g = [8.0, 0.5 + f64::from(step)];
            let grad = [8.0, 0.0, 0.0, 0.0, 0.5 + step as f32, 0.0];
            let norm = (g[0] * g[0] + g[1] * g[1]).sqrt();
            let g = g.map(|g| clip_norm.map_or(g, |limit| g * limit / norm));
            let mut tensors = [StepTensor::<Cpu>::new(id, &mut param, &grad[..])];
            let record = muon.direction_spectra(&options, &tensors).unwrap().remove(0);
            muon.step(&options, &mut tensors).unwrap();
            let blend = |m: f64, g: f64| beta * m + (1.0 - beta) * g;
            let direction: [f64; 2] = std::array::from_fn(|i| {
                m[i] = blend(m[i], g[i]);
                if nesterov == Nesterov::On { blend(m[i], g[i]) } else { m[i] }
            });
            let size = (direction[0].powi(2) + direction[1].powi(2)).sqrt();
            // f32 products and sums: a few 2⁻²⁴.
            assert!((record.norm / size - 1.0).abs() < 1e-6, "{} {size}", record.norm);
            assert_eq!(record.step, u64::from(step));
            let bin = |x: f64| ((x / size).log2() * f64::from(BINS_PER_OCTAVE)).floor();
            let mut wanted = direction.map(bin).to_vec();
            wanted.sort_by(f64::total_cmp);
            let found: Vec<f64> = record.bins.keys().map(|k| f64::from(*k)).collect();
            assert_eq!(found, wanted, "{nesterov:?} {clip_norm:?} step {step}");
        }
    }
}

#[test]
fn directions_that_are_not_finite_are_left_out_and_zero_ones_have_no_spectrum() {
    let config = MuonConfig { non_finite: NonFinite::Skip, ..MuonConfig::default() };
    let mut muon = Muon::new(Cpu::new().unwrap(), config).unwrap();
    let group = muon.add_group("hidden", MuonRule::default()).unwrap();
    let id = muon.add_param(group, ParamSpec::new("w", &[2, 2, 2])).unwrap();
    let mut param = vec![0.0f32; 8];
    let grad = [0.0, 0.0, 0.0, 0.0, 1.0, f32::NAN, 0.0, 0.0];
    let tensors = [StepTensor::<Cpu>::new(id, &mut param, &grad[..])];
    let records = muon.direction_spectra(&StepOptions::default(), &tensors).unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].name.as_str(), records[0].norm, records[0].zeros), ("w[0]", 0.0, 2));
    // A wrong length is refused as in a step.
    let mut short = vec![0.0f32; 4];
    let tensors = [StepTensor::<Cpu>::new(id, &mut short, &grad[..])];
    let e = muon.direction_spectra(&StepOptions::default(), &tensors).unwrap_err();
    assert!(e.is_shape_mismatch(), "{e}");
}

#[test]
fn every_group_has_its_own_schedule() {
    let mut muon = Muon::new(Cpu::new().unwrap(), MuonConfig::default()).unwrap();
    let names = ["jordan", "nonic3_band12", "classical_cubic"];
    let mut ids = Vec::new();
    for name in names {
        let orthogonalizer = Orthogonalizer::preset(name).unwrap();
        // No decay, a unit step and no scale: the update is what was orthogonalized.
        let rule = MuonRule {
            lr: 1.0,
            momentum: 0.0,
            nesterov: Nesterov::Off,
            weight_decay: 0.0,
            update_scale: muon_cuda::UpdateScale::None,
            orthogonalizer,
            ..MuonRule::default()
        };
        let group = muon.add_group(name, rule).unwrap();
        let spec = ParamSpec::new(format!("w.{name}"), &[8, 12]).dtype(Dtype::F32);
        ids.push(muon.add_param(group, spec.split(Split::Whole)).unwrap());
    }
    let grad = Random::new(3).normals(96);
    let mut params = vec![vec![0.0f32; 96]; 3];
    let mut tensors: Vec<StepTensor<'_, Cpu>> =
        params.iter_mut().zip(&ids).map(|(p, id)| StepTensor::new(*id, p, &grad)).collect();
    muon.step(&StepOptions::default(), &mut tensors).unwrap();
    for (name, param) in names.iter().zip(&params) {
        let orthogonalizer = Orthogonalizer::preset(name).unwrap();
        let options = OrthogonalizeOptions { orthogonalizer, ..OrthogonalizeOptions::default() };
        let mut alone = vec![0.0f32; 96];
        let shape = MatrixShape { rows: 8, cols: 12 };
        orthogonalize(&mut Cpu::new().unwrap(), shape, &grad[..], &mut alone[..], &options)
            .unwrap();
        let negated: Vec<f32> = alone.iter().map(|x| -x).collect();
        assert_eq!(bits(param), bits(&negated), "{name}");
    }
    assert_ne!(params[0], params[1]);
}
