//! What a step reports on CUDA: nothing of it waits, `last_step` has it all, and the numbers are those of the CPU device.

use std::num::NonZeroUsize;

use half::bf16;
use muon_cuda::{
    AdamWRule, Cpu, Dtype, Layout, Muon, MuonConfig, MuonRule, Nesterov, Orthogonalizer, ParamId,
    ParamSpec, Split, StepOptions, StepReport, StepTensor, UpdateScale,
};

use crate::device::{Offset, muon, stream, with_device};
use crate::support::{Random, bits, rule};

/// Stacks, strided heads, a convolution and tensors under AdamW; nothing goes through a product, so every bit can be compared.
const SHAPES: [&[usize]; 5] = [&[3, 4, 5], &[9, 12], &[3, 2, 2, 2], &[7], &[9000]];

fn register<D: muon_cuda::Device>(
    muon: &mut Muon<D>,
    orthogonalizer: &Orthogonalizer,
    lr: f64,
) -> Vec<ParamId> {
    let rule = MuonRule {
        lr,
        nesterov: Nesterov::Off,
        weight_decay: 0.0,
        update_scale: UpdateScale::None,
        orthogonalizer: orthogonalizer.clone(),
        ..MuonRule::default()
    };
    let hidden = muon.add_group("hidden", rule).unwrap();
    let rest = muon.add_group("rest", AdamWRule { lr: 0.1, ..AdamWRule::default() }).unwrap();
    let heads = Split::Heads(NonZeroUsize::new(4).unwrap());
    SHAPES
        .iter()
        .enumerate()
        .map(|(i, shape)| {
            let spec = ParamSpec::new(format!("p{i}"), shape);
            let spec = if i == 1 { spec.layout(Layout::InOut).split(heads.clone()) } else { spec };
            muon.add_param(if i < 3 { hidden } else { rest }, spec).unwrap()
        })
        .collect()
}

/// The gradients of a step, of which some have a NaN or an element that is too large.
fn gradients(step: usize) -> Vec<Vec<f32>> {
    let mut random = Random::new(40 + step as u64);
    let mut all: Vec<Vec<f32>> =
        SHAPES.iter().map(|s| random.normals(s.iter().product())).collect();
    if step % 2 == 1 {
        all[0][27] = f32::NAN; // the second of three
        all[1][5 * 12 + 4] = f32::INFINITY; // the second of four heads
        all[1][8 * 12 + 11] = f32::NAN; // and the last
        all[4][8999] = f32::NEG_INFINITY;
    }
    if step == 2 {
        all[3][6] = 1e21;
    }
    all
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Eager,
    Replayed,
}

/// Parameters and reports of four steps on the GPU, and on the CPU.
type Run = (Vec<Vec<u32>>, Vec<StepReport>, Vec<Vec<u64>>);

fn on_cuda(how: How, options: &StepOptions, orthogonalizer: &Orthogonalizer, lr: f64) -> Run {
    let mut muon = muon(MuonConfig::default());
    let ids = register(&mut muon, orthogonalizer, lr);
    let stream = stream(&muon);
    let mut random = Random::new(9);
    let mut params: Vec<_> = SHAPES
        .iter()
        .enumerate()
        .map(|(i, s)| Offset::new(&stream, &random.normals(s.iter().product()), i))
        .collect();
    let mut reports = Vec::new();
    let mut graph = None;
    for step in 0..4 {
        let grads: Vec<_> = gradients(step)
            .iter()
            .enumerate()
            .map(|(i, g)| Offset::new(&stream, g, (i + 1) % 4))
            .collect();
        stream.synchronize().unwrap();
        let mut tensors: Vec<_> = params
            .iter_mut()
            .zip(&grads)
            .zip(&ids)
            .map(|((p, g), id)| StepTensor::new(*id, p.param(), g.grad()))
            .collect();
        let report = if how == How::Replayed && step > 0 {
            if graph.is_none() {
                let before = muon.last_step().unwrap();
                graph = Some(muon.capture_step(options, &mut tensors).unwrap());
                assert_eq!(muon.last_step().unwrap(), before, "a capture is no step");
            }
            muon.replay_step(graph.as_ref().unwrap(), options, &mut tensors).unwrap()
        } else {
            muon.step(options, &mut tensors).unwrap()
        };
        drop(tensors);
        assert!(!report.is_complete(), "nothing has waited for the device");
        assert_eq!((report.orthogonalized, report.adamw), (8, 2), "what it was given");
        assert_eq!(report.gradient_norm, None);
        let report = muon.last_step().unwrap().unwrap();
        assert!(report.is_complete());
        assert_eq!(muon.last_step().unwrap(), Some(report));
        reports.push(report);
        stream.synchronize().unwrap();
    }
    let counters = ids
        .iter()
        .map(|id| muon.counters(*id).unwrap())
        .map(|c| [c.skipped, vec![c.steps]].concat())
        .collect();
    (params.iter().map(|p| bits(&p.download())).collect(), reports, counters)
}

fn on_cpu(options: &StepOptions, orthogonalizer: &Orthogonalizer, lr: f64) -> Run {
    let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), MuonConfig::default()).unwrap();
    let ids = register(&mut muon, orthogonalizer, lr);
    let mut random = Random::new(9);
    let mut params: Vec<Vec<f32>> =
        SHAPES.iter().map(|s| random.normals(s.iter().product())).collect();
    let mut reports = Vec::new();
    for step in 0..4 {
        let grads = gradients(step);
        let mut tensors: Vec<StepTensor<'_, Cpu>> = params
            .iter_mut()
            .zip(&grads)
            .zip(&ids)
            .map(|((p, g), id)| StepTensor::new(*id, p, g))
            .collect();
        reports.push(muon.step(options, &mut tensors).unwrap());
    }
    let counters = ids
        .iter()
        .map(|id| muon.counters(*id).unwrap())
        .map(|c| [c.skipped, vec![c.steps]].concat())
        .collect();
    (params.iter().map(|p| bits(p)).collect(), reports, counters)
}

fn agree(how: How, options: &StepOptions, orthogonalizer: &Orthogonalizer, lr: f64) -> Run {
    let cpu = on_cpu(options, orthogonalizer, lr);
    let cuda = with_device(3, |_| on_cuda(how, options, orthogonalizer, lr));
    for (step, (a, b)) in cpu.1.iter().zip(&cuda.1).enumerate() {
        let counts = |r: &StepReport| {
            (r.orthogonalized, r.skipped_matrices, r.adamw, r.skipped_adamw, r.untouched, r.skipped)
        };
        assert_eq!(counts(a), counts(b), "step {step}");
        // f64 sums in another order.
        let near = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => (a / b - 1.0).abs() < 1e-12,
            (a, b) => a == b,
        };
        assert!(near(a.gradient_norm, b.gradient_norm), "step {step}: {a:?} {b:?}");
        assert!(near(a.clip_factor, b.clip_factor), "step {step}: {a:?} {b:?}");
    }
    assert_eq!(cpu.2, cuda.2, "counters");
    for (i, (a, b)) in cpu.0.iter().zip(&cuda.0).enumerate() {
        assert!(a == b, "p{i}");
    }
    cpu
}

#[test]
fn reports_and_norms_are_those_of_the_cpu_device_eager_and_replayed() {
    for clip_norm in [None, Some(1.0), Some(f64::MAX)] {
        let options = StepOptions { clip_norm, inverse_loss_scale: 0.5, ..StepOptions::default() };
        for orthogonalizer in [Orthogonalizer::Identity, Orthogonalizer::Frobenius] {
            let (_, reports, counters) = agree(How::Eager, &options, &orthogonalizer, 0.1);
            agree(How::Replayed, &options, &orthogonalizer, 0.1);
            let skipped: Vec<_> =
                reports.iter().map(|r| (r.skipped_matrices, r.skipped_adamw)).collect();
            // With a clipped gradient of norm 1 the large element of step 2 is no longer too large.
            let large = usize::from(clip_norm != Some(1.0));
            assert_eq!(
                skipped,
                [
                    (Some(0), Some(0)),
                    (Some(3), Some(1)),
                    (Some(0), Some(large)),
                    (Some(3), Some(1))
                ]
            );
            assert_eq!(counters[0], [0, 2, 0, 4]);
            assert_eq!(counters[1], [0, 2, 0, 2, 4]);
        }
    }
}

#[test]
fn updates_that_are_too_large_are_skipped_as_on_the_cpu_device() {
    // A direction of norm 1e11 and more times this rate is past 2^102, one of norm 3 is not.
    let options = StepOptions { inverse_loss_scale: 1e15, ..StepOptions::default() };
    let (_, reports, _) = agree(How::Eager, &options, &Orthogonalizer::Identity, 1e18);
    assert_eq!(reports[0].skipped_matrices, Some(8));
    let (_, reports, _) =
        agree(How::Eager, &StepOptions::default(), &Orthogonalizer::Identity, 1e18);
    assert_eq!(reports[0].skipped_matrices, Some(0));
    // Normalised, no direction is too long.
    let (_, reports, _) = agree(How::Eager, &options, &Orthogonalizer::Frobenius, 1e18);
    assert_eq!(reports[0].skipped_matrices, Some(0));
}

/// Parameters without elements, with and without others beside them.
#[test]
fn a_parameter_without_elements_steps_as_nothing_here_too() {
    with_device(6, |_| {
        for others in [false, true] {
            let build = || {
                let mut muon = muon(MuonConfig::default());
                let hidden = muon.add_group("hidden", rule("jordan")).unwrap();
                let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
                let spec = |name: &str, shape: &[usize]| ParamSpec::new(name, shape);
                let narrow = |name: &str, shape: &[usize]| spec(name, shape).dtype(Dtype::Bf16);
                let ids = [
                    muon.add_param(hidden, spec("h", &[0, 4])).unwrap(),
                    muon.add_param(hidden, narrow("hb", &[4, 0])).unwrap(),
                    muon.add_param(rest, spec("r", &[0])).unwrap(),
                    muon.add_param(rest, narrow("rb", &[3, 0])).unwrap(),
                ];
                let more = others.then(|| {
                    [
                        muon.add_param(hidden, spec("w", &[6, 4])).unwrap(),
                        muon.add_param(rest, spec("b", &[24])).unwrap(),
                    ]
                });
                (muon, ids, more)
            };
            let (mut muon, ids, more) = build();
            let stream = stream(&muon);
            let values = Random::new(1).normals(24);
            // One element each, of which the view is empty.
            let mut wide = [0, 1].map(|_| Offset::new(&stream, &[1.0f32], 0));
            let mut narrow = [0, 1].map(|_| Offset::new(&stream, &[bf16::ONE], 0));
            let mut p = [0, 1].map(|_| Offset::new(&stream, &values, 0));
            let g = Offset::new(&stream, &values, 0);
            let empty: Offset<f32> = Offset::new(&stream, &[], 1);
            let options = StepOptions { clip_norm: Some(1.0), ..StepOptions::default() };
            let [w0, w1] = &mut wide;
            let [n0, n1] = &mut narrow;
            let mut tensors = vec![
                StepTensor::new(ids[0], w0.empty_param(), empty.grad()),
                StepTensor::new(ids[1], n0.empty_param(), empty.grad()),
                StepTensor::new(ids[2], w1.empty_param(), empty.grad()),
                StepTensor::new(ids[3], n1.empty_param(), empty.grad()),
            ];
            if let Some(more) = more {
                for (id, p) in more.into_iter().zip(&mut p) {
                    tensors.push(StepTensor::new(id, p.param(), g.grad()));
                }
            }
            for _ in 0..2 {
                muon.step(&options, &mut tensors).unwrap();
            }
            drop(tensors);
            let report = muon.last_step().unwrap().unwrap();
            assert_eq!(report.orthogonalized, usize::from(others));
            assert_eq!((report.skipped_matrices, report.skipped_adamw), (Some(0), Some(0)));
            let checkpoint = muon.checkpoint().unwrap();
            let (mut again, ..) = build();
            again.restore(&checkpoint).unwrap();
            assert_eq!(again.checkpoint().unwrap(), checkpoint);
            if !others {
                continue;
            }
            assert!(p.iter().all(|p| bits(&p.download()) != bits(&values)));
        }
    });
}
