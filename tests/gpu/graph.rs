//! A captured step is the eager step, bit for bit.

use muon_cuda::{
    AdamWRule, LrSchedule, MuonConfig, MuonRule, ParamSpec, Precision, StepOptions, StepTensor,
};

use crate::device::{Offset, muon, stream, with_device};
use crate::support::{Random, bits, rule};

/// Six steps under a learning-rate schedule; from the second on by replay if `captured`.
fn run(captured: bool, clip_norm: Option<f64>) -> Vec<Vec<u32>> {
    let config = MuonConfig {
        precision: Some(Precision::Bf16),
        workspace_limit: 6000,
        ..MuonConfig::default()
    };
    let mut muon = muon(config);
    let hidden = MuonRule { weight_decay: 0.2, ..rule("jordan") };
    let hidden = muon.add_group("hidden", hidden).unwrap();
    let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
    let stream = stream(&muon);
    let mut random = Random::new(3);
    let shapes: [&[usize]; 4] = [&[24, 40], &[40, 24], &[24, 40], &[33]];
    let mut params: Vec<_> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| {
            let group = if shape.len() == 2 { hidden } else { rest };
            let len = shape.iter().product();
            let id = muon.add_param(group, ParamSpec::new(format!("p{i}"), shape)).unwrap();
            (id, Offset::new(&stream, &random.normals(len), 0), len)
        })
        .collect();
    let schedule = LrSchedule::linear(2, 6).unwrap();
    let mut graph = None;
    for step in 0..6 {
        let options =
            StepOptions { lr_factor: schedule.factor(step), clip_norm, ..StepOptions::default() };
        // New memory in every step, as frameworks allocate gradients.
        let grads: Vec<_> = params
            .iter()
            .map(|(_, _, len)| Offset::new(&stream, &random.normals(*len), 0))
            .collect();
        let mut tensors: Vec<_> = params
            .iter_mut()
            .zip(&grads)
            .map(|((id, p, _), g)| StepTensor::new(*id, p.param(), g.grad()))
            .collect();
        if captured && step == 1 {
            graph = Some(muon.capture_step(&options, &mut tensors).unwrap());
        }
        match &graph {
            Some(graph) => {
                let report = muon.replay_step(graph, &options, &mut tensors).unwrap();
                assert_eq!((report.orthogonalized, report.adamw), (3, 1));
            }
            None => {
                muon.step(&options, &mut tensors).unwrap();
            }
        }
        drop(tensors);
        stream.synchronize().unwrap();
    }
    if let Some(graph) = &graph {
        // Without a gradient, and after a change of rules, the recorded step is another one.
        let (id, p, _) = &mut params[0];
        let error = muon
            .replay_step(
                graph,
                &StepOptions { clip_norm, ..StepOptions::default() },
                &mut [StepTensor::without_grad(*id, p.param())],
            )
            .unwrap_err();
        assert!(error.is_invalid_config(), "{error}");
    }
    for (id, ..) in &params {
        assert_eq!(muon.counters(*id).unwrap().steps, 6);
    }
    params.iter().map(|(_, p, _)| bits(&p.download())).collect()
}

#[test]
fn replays_with_changing_rates_and_addresses_are_the_eager_steps() {
    for clip_norm in [None, Some(0.5)] {
        let eager = with_device(1, |_| run(false, clip_norm));
        for seed in 0..5 {
            let captured = with_device(seed, |_| run(true, clip_norm));
            assert!(captured == eager, "seed {seed}, clip {clip_norm:?}");
        }
    }
}

/// Tables that a larger step moved are not the ones that the graph reads.
#[test]
fn a_graph_whose_tables_moved_is_refused_and_captured_again() {
    with_device(1, |_| {
        let mut muon =
            muon(MuonConfig { precision: Some(Precision::Bf16), ..MuonConfig::default() });
        let hidden = muon.add_group("hidden", rule("jordan")).unwrap();
        let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
        let stream = stream(&muon);
        let mut random = Random::new(4);
        let options = StepOptions::default();
        let mut params: Vec<_> =
            [(hidden, vec![24, 40]), (rest, vec![33]), (hidden, vec![24, 40]), (rest, vec![17])]
                .into_iter()
                .enumerate()
                .map(|(i, (group, shape))| {
                    let len = shape.iter().product();
                    let id =
                        muon.add_param(group, ParamSpec::new(format!("p{i}"), &shape)).unwrap();
                    let values = random.normals(len);
                    (id, Offset::new(&stream, &values, 0), Offset::new(&stream, &values, 0))
                })
                .collect();
        let mut step = |muon: &mut muon_cuda::Muon<muon_cuda::Cuda>,
                        some: &[usize],
                        graph: Option<&muon_cuda::CapturedStep>| {
            let mut tensors: Vec<_> = params
                .iter_mut()
                .enumerate()
                .filter(|(i, _)| some.contains(i))
                .map(|(_, (id, p, g))| StepTensor::new(*id, p.param(), g.grad()))
                .collect();
            match graph {
                Some(graph) => muon.replay_step(graph, &options, &mut tensors).map(|_| None),
                None if some.len() == 4 => muon.step(&options, &mut tensors).map(|_| None),
                None => muon.capture_step(&options, &mut tensors).map(Some),
            }
        };
        // One matrix or one tensor of AdamW at first, then two of each: their tables grow.
        for some in [[0].as_slice(), &[0, 1]] {
            let graph = step(&mut muon, some, None).unwrap().unwrap();
            step(&mut muon, some, Some(&graph)).unwrap();
            stream.synchronize().unwrap();
        }
        let graph = step(&mut muon, &[0, 1], None).unwrap().unwrap();
        step(&mut muon, &[0, 1, 2, 3], None).unwrap();
        let error = step(&mut muon, &[0, 1], Some(&graph)).unwrap_err();
        assert!(error.is_invalid_config() && error.to_string().contains("moved"), "{error}");
        let graph = step(&mut muon, &[0, 1], None).unwrap().unwrap();
        step(&mut muon, &[0, 1], Some(&graph)).unwrap();
        stream.synchronize().unwrap();
    });
}
