//! Stop and resume, refuse what does not belong, exchange with PyTorch's form.
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
use muon_cuda::checkpoint::{TensorFile, TensorFileWriter};
use muon_cuda::{
    AdamWRule, Bf16Params, Checkpoint, Cpu, Dtype, HostBuffer, MomentumMode, Muon, MuonConfig,
    MuonRule, ParamId, ParamSpec, Precision, StepOptions, StepTensor,
};
use support::{Random, bits, rule};

struct Model {
    muon: Muon<Cpu>,
    ids: [ParamId; 3],
    w: Vec<f32>,
    h: Vec<bf16>,
    b: Vec<f32>,
}

impl Model {
    fn new(config: MuonConfig, rule: MuonRule) -> Self {
        let mut muon = Muon::new(Cpu::with_threads(2).unwrap(), config).unwrap();
        let hidden = muon.add_group("hidden", rule).unwrap();
        let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
        let ids = [
            muon.add_param(hidden, ParamSpec::new("w", &[12, 20])).unwrap(),
            muon.add_param(hidden, ParamSpec::new("h", &[16, 8]).dtype(Dtype::Bf16)).unwrap(),
            muon.add_param(rest, ParamSpec::new("b", &[12])).unwrap(),
        ];
        let mut random = Random::new(8);
        let h = random.normals(128).iter().map(|x| bf16::from_f32(*x)).collect();
        Self { muon, ids, w: random.normals(240), h, b: random.normals(12) }
    }

    fn steps(&mut self, range: std::ops::Range<u64>) {
        for step in range {
            let mut random = Random::new(1000 + step);
            let (gw, gh, gb) = (random.normals(240), random.normals(128), random.normals(12));
            let mut tensors = [
                StepTensor::new(self.ids[0], &mut self.w, &gw),
                StepTensor::new(self.ids[1], &mut self.h, &gh),
                StepTensor::new(self.ids[2], &mut self.b, &gb),
            ];
            self.muon.step(&StepOptions::default(), &mut tensors).unwrap();
        }
    }

    fn all_bits(&self) -> Vec<u32> {
        let mut out = bits(&self.w);
        out.extend(bits(&self.b));
        out.extend(self.h.iter().map(|x| u32::from(x.to_bits())));
        out
    }
}

fn configs() -> Vec<MuonConfig> {
    let base = MuonConfig::default();
    vec![
        base.clone(),
        MuonConfig {
            precision: Some(Precision::Bf16),
            momentum_dtype: Dtype::Bf16,
            ..base.clone()
        },
        MuonConfig { bf16_params: Bf16Params::Stochastic { seed: 5 }, ..base.clone() },
        MuonConfig { bf16_params: Bf16Params::Nearest, ..base },
    ]
}

#[test]
fn resuming_is_bitwise_never_having_stopped() {
    let dir = tempfile::tempdir().unwrap();
    for (i, config) in configs().into_iter().enumerate() {
        let mut whole = Model::new(config.clone(), rule("jordan"));
        whole.steps(0..7);

        let path = dir.path().join(format!("{i}.safetensors"));
        let mut first = Model::new(config.clone(), rule("jordan"));
        first.steps(0..3);
        let mut checkpoint = first.muon.checkpoint().unwrap();
        checkpoint.insert("w", &[12, 20], HostBuffer::F32(first.w.clone()));
        checkpoint.insert("h", &[16, 8], HostBuffer::Bf16(first.h.clone()));
        checkpoint.insert("b", &[12], HostBuffer::F32(first.b.clone()));
        checkpoint.note = serde_json::json!({ "step": 3 });
        checkpoint.save(&path).unwrap();
        drop(first);

        let loaded = Checkpoint::load(&path).unwrap();
        assert_eq!(loaded, checkpoint);
        let mut second = Model::new(config, rule("jordan"));
        second.muon.restore(&loaded).unwrap();
        let HostBuffer::F32(w) = loaded.tensor("w", &[12, 20]).unwrap() else { panic!("f32") };
        let HostBuffer::Bf16(h) = loaded.tensor("h", &[16, 8]).unwrap() else { panic!("bf16") };
        let HostBuffer::F32(b) = loaded.tensor("b", &[12]).unwrap() else { panic!("f32") };
        (second.w, second.h, second.b) = (w.clone(), h.clone(), b.clone());
        second.steps(loaded.note["step"].as_u64().unwrap()..7);
        assert_eq!(second.all_bits(), whole.all_bits(), "configuration {i}");
        assert_eq!(second.muon.counters(second.ids[0]).unwrap().steps, 7);
    }
}

#[test]
fn equal_state_gives_equal_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str| {
        let mut model = Model::new(MuonConfig::default(), rule("jordan"));
        model.steps(0..2);
        model.muon.checkpoint().unwrap().save(dir.path().join(name)).unwrap();
        std::fs::read(dir.path().join(name)).unwrap()
    };
    assert_eq!(save("a"), save("b"));
}

#[test]
fn what_does_not_belong_is_refused_and_nothing_changes() {
    let mut model = Model::new(MuonConfig::default(), rule("jordan"));
    model.steps(0..2);
    let good = model.muon.checkpoint().unwrap();

    let with = |build: &dyn Fn(&mut Muon<Cpu>)| {
        let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), MuonConfig::default()).unwrap();
        build(&mut muon);
        muon
    };
    let register = |muon: &mut Muon<Cpu>, rule: MuonRule, w: &[usize], extra: bool| {
        let hidden = muon.add_group("hidden", rule).unwrap();
        let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
        muon.add_param(hidden, ParamSpec::new("w", w)).unwrap();
        muon.add_param(hidden, ParamSpec::new("h", &[16, 8]).dtype(Dtype::Bf16)).unwrap();
        muon.add_param(rest, ParamSpec::new("b", &[12])).unwrap();
        if extra {
            muon.add_param(hidden, ParamSpec::new("extra", &[2, 2])).unwrap();
        }
    };
    let sum = MuonRule { momentum_mode: MomentumMode::Sum, ..rule("jordan") };
    type Case<'a> = (&'a str, Box<dyn Fn(&mut Muon<Cpu>) + 'a>);
    let cases: [Case<'_>; 5] = [
        ("modes", Box::new(|m| register(m, sum.clone(), &[12, 20], false))),
        ("shape", Box::new(|m| register(m, rule("jordan"), &[20, 12], false))),
        ("`extra`", Box::new(|m| register(m, rule("jordan"), &[12, 20], true))),
        (
            "`w`",
            Box::new(|m| {
                let hidden = m.add_group("hidden", rule("jordan")).unwrap();
                m.add_param(hidden, ParamSpec::new("h", &[16, 8]).dtype(Dtype::Bf16)).unwrap();
            }),
        ),
        (
            "dtype",
            Box::new(|m| {
                let hidden = m.add_group("hidden", rule("jordan")).unwrap();
                let rest = m.add_group("rest", AdamWRule::default()).unwrap();
                m.add_param(hidden, ParamSpec::new("w", &[12, 20]).dtype(Dtype::Bf16)).unwrap();
                m.add_param(hidden, ParamSpec::new("h", &[16, 8]).dtype(Dtype::Bf16)).unwrap();
                m.add_param(rest, ParamSpec::new("b", &[12])).unwrap();
            }),
        ),
    ];
    for (what, build) in cases {
        let mut muon = with(&*build);
        let before = muon.checkpoint().unwrap();
        let e = muon.restore(&good).unwrap_err();
        assert!(e.to_string().contains(what), "{what}: {e}");
        assert_eq!(muon.checkpoint().unwrap(), before, "{what}: the state moved");
    }

    // bf16 momentum is not f32 momentum.
    let config = MuonConfig { momentum_dtype: Dtype::Bf16, ..MuonConfig::default() };
    let e = Model::new(config, rule("jordan")).muon.restore(&good).unwrap_err();
    assert!(e.is_dtype_mismatch(), "{e}");
}

#[test]
fn saving_fails_without_harm() {
    let mut model = Model::new(MuonConfig::default(), rule("jordan"));
    let checkpoint = model.muon.checkpoint().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let e = checkpoint.save(dir.path().join("missing/ck.safetensors")).unwrap_err();
    assert!(e.is_io() && e.to_string().contains("missing"), "{e}");
    let mut wrong = checkpoint.clone();
    wrong.insert("x", &[3, 3], HostBuffer::F32(vec![0.0; 8]));
    let path = dir.path().join("ck.safetensors");
    checkpoint.save(&path).unwrap();
    let before = std::fs::read(&path).unwrap();
    let e = wrong.save(&path).unwrap_err();
    assert!(e.is_shape_mismatch(), "{e}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary is left");
}

#[test]
fn pytorch_state_goes_out_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("torch.safetensors");
    let mut model = Model::new(MuonConfig::default(), rule("jordan"));
    model.steps(0..3);
    model.muon.export_torch_state(&path).unwrap();
    let file = TensorFile::load(&path).unwrap();
    let mut names: Vec<_> = file.names().collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["b.exp_avg", "b.exp_avg_sq", "b.step", "h.momentum_buffer", "w.momentum_buffer"]
    );
    assert_eq!(file.f32("b.step").unwrap(), [3.0]);

    // AdamW's step count must come along, or the bias correction starts over.
    let mut other = Model::new(MuonConfig::default(), rule("jordan"));
    other.muon.import_torch_state(&path).unwrap();
    assert_eq!(other.muon.counters(other.ids[2]).unwrap().steps, 3);
    (other.w, other.b, other.h) = (model.w.clone(), model.b.clone(), model.h.clone());
    model.steps(3..5);
    other.steps(3..5);
    assert_eq!((bits(&model.w), bits(&model.b)), (bits(&other.w), bits(&other.b)));

    let sum = MuonRule { momentum_mode: MomentumMode::Sum, ..rule("jordan") };
    let mut summed = Model::new(MuonConfig::default(), sum);
    assert!(summed.muon.export_torch_state(&path).unwrap_err().is_unsupported());
    assert!(summed.muon.import_torch_state(&path).unwrap_err().is_unsupported());
    let config = MuonConfig { momentum_dtype: Dtype::Bf16, ..MuonConfig::default() };
    let e = Model::new(config, rule("jordan")).muon.import_torch_state(&path).unwrap_err();
    assert!(e.is_dtype_mismatch(), "a momentum must not be rounded in silence: {e}");
}

/// State that PyTorch wrote (`tools/torch_state.py --record`) goes in, the next step is PyTorch's, and what goes
/// out has PyTorch's names, types, shapes and values.
#[test]
fn pytorch_goes_on_here_and_back() {
    let recorded = format!("{}/tests/data/torch_state.safetensors", env!("CARGO_MANIFEST_DIR"));
    let torch = TensorFile::load(&recorded).unwrap();
    let mut muon = Muon::new(Cpu::with_threads(2).unwrap(), MuonConfig::default()).unwrap();
    let hidden = muon
        .add_group("hidden", MuonRule { lr: 0.02, weight_decay: 0.01, ..rule("jordan") })
        .unwrap();
    let rest = muon
        .add_group("rest", AdamWRule { lr: 0.02, weight_decay: 0.01, ..AdamWRule::default() })
        .unwrap();
    let w_id = muon.add_param(hidden, ParamSpec::new("w", &[6, 4])).unwrap();
    let b_id = muon.add_param(rest, ParamSpec::new("b", &[6])).unwrap();
    muon.import_torch_state(&recorded).unwrap();

    let read = |name: &str| torch.f32(name).unwrap();
    let (mut w, mut b) = (read("w.param"), read("b.param"));
    let (w_grad, b_grad) = (read("w.grad"), read("b.grad"));
    let mut tensors =
        [StepTensor::new(w_id, &mut w, &w_grad), StepTensor::new(b_id, &mut b, &b_grad)];
    muon.step(&StepOptions::default(), &mut tensors).unwrap();

    // PyTorch orthogonalizes in bf16 here and we in f32: 0.03 of the update is what `verify` allows as well.
    let (before, expected) = (read("w.param"), read("w.expected"));
    let distance = |x: &[f32], y: &[f32]| {
        x.iter().zip(y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>().sqrt()
    };
    let relative = distance(&w, &expected) / distance(&before, &expected);
    assert!(relative < 0.03, "{relative}");
    // AdamW in f32 on both sides: a few roundings of numbers near 1.
    assert!(distance(&b, &read("b.expected")) < 1e-6);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    muon.export_torch_state(&path).unwrap();
    let ours = TensorFile::load(&path).unwrap();
    let theirs: Vec<&str> = torch.names().filter_map(|n| n.strip_prefix("after.")).collect();
    assert_eq!(ours.names().collect::<Vec<_>>(), theirs);
    for name in theirs {
        let after = format!("after.{name}");
        assert_eq!(ours.dtype(name).unwrap(), torch.dtype(&after).unwrap(), "{name}");
        assert_eq!(ours.shape(name).unwrap(), torch.shape(&after).unwrap(), "{name}");
        // Two roundings of a blend whose order differs.
        let apart = distance(&ours.f32(name).unwrap(), &read(&after));
        assert!(apart < 1e-6, "{name}: {apart}");
    }
}

/// A file of tensors, f32.
fn write(path: &std::path::Path, tensors: &[(&str, &[usize], Vec<f32>)]) {
    let mut writer = TensorFileWriter::new();
    for (name, shape, values) in tensors {
        writer.values(name, shape, values).unwrap();
    }
    writer.save(path).unwrap();
}

#[test]
fn a_parameter_that_never_stepped_has_no_state_in_pytorch_and_zeros_here() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("torch.safetensors");
    let mut fresh = Model::new(MuonConfig::default(), rule("jordan"));
    fresh.muon.export_torch_state(&path).unwrap();
    assert_eq!(TensorFile::load(&path).unwrap().names().len(), 0);

    // Only the first matrix has a gradient; a step that was skipped leaves no state either.
    let mut model = Model::new(MuonConfig::default(), rule("jordan"));
    let grad = Random::new(3).normals(240);
    let bad = vec![f32::NAN; 12];
    let mut tensors = [
        StepTensor::new(model.ids[0], &mut model.w, &grad),
        StepTensor::new(model.ids[2], &mut model.b, &bad),
    ];
    model.muon.step(&StepOptions::default(), &mut tensors).unwrap();
    model.muon.export_torch_state(&path).unwrap();
    let file = TensorFile::load(&path).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["w.momentum_buffer"]);

    // What had state before has none after the import, and goes on as from the start.
    let mut other = Model::new(MuonConfig::default(), rule("jordan"));
    other.steps(5..7);
    other.muon.import_torch_state(&path).unwrap();
    for id in [other.ids[1], other.ids[2]] {
        let state = other.muon.export_state(id).unwrap();
        assert_eq!(state.counters.steps, 0);
        for (name, buffer) in state.buffers {
            let HostBuffer::F32(values) = buffer else { panic!("{name}: f32") };
            assert!(name != "master" && values.iter().all(|x| x.to_bits() == 0), "{name}");
        }
    }
    (other.w, other.b, other.h) = (model.w.clone(), model.b.clone(), model.h.clone());
    model.steps(1..4);
    other.steps(1..4);
    assert_eq!(model.all_bits(), other.all_bits());

    // A step count is state, even where both moments are zero.
    let zeros = vec![0.0f32; 12];
    let mut still = Model::new(MuonConfig::default(), rule("jordan"));
    let mut tensors = [StepTensor::new(still.ids[2], &mut still.b, &zeros)];
    still.muon.step(&StepOptions::default(), &mut tensors).unwrap();
    still.muon.export_torch_state(&path).unwrap();
    let file = TensorFile::load(&path).unwrap();
    assert_eq!(file.names().collect::<Vec<_>>(), ["b.exp_avg", "b.exp_avg_sq", "b.step"]);
}

#[test]
fn pytorch_gets_state_in_the_dtype_of_the_parameter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("torch.safetensors");
    for momentum_dtype in [Dtype::F32, Dtype::Bf16] {
        let config = MuonConfig { momentum_dtype, ..MuonConfig::default() };
        let mut muon = Muon::new(Cpu::with_threads(1).unwrap(), config).unwrap();
        let hidden = muon.add_group("hidden", rule("jordan")).unwrap();
        let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
        let mut kept = Vec::new();
        for (name, group, dtype) in [
            ("wide", hidden, Dtype::F32),
            ("narrow", hidden, Dtype::Bf16),
            ("adamw.wide", rest, Dtype::F32),
            ("adamw.narrow", rest, Dtype::Bf16),
        ] {
            let id = muon.add_param(group, ParamSpec::new(name, &[3, 4]).dtype(dtype)).unwrap();
            let grad = Random::new(4).normals(12);
            let (mut wide, mut narrow) = (vec![0.5f32; 12], vec![bf16::from_f32(0.5); 12]);
            let tensor = match dtype {
                Dtype::F32 => StepTensor::new(id, &mut wide, &grad),
                _ => StepTensor::new(id, &mut narrow, &grad),
            };
            muon.step(&StepOptions::default(), &mut [tensor]).unwrap();
            kept.push((name, dtype, muon.export_state(id).unwrap()));
        }
        muon.export_torch_state(&path).unwrap();
        let file = TensorFile::load(&path).unwrap();
        for (name, dtype, state) in kept {
            for (buffer, data) in state.buffers.iter().filter(|(b, _)| *b != "master") {
                let tensor = format!("{name}.{buffer}");
                let expected: Vec<f32> = match (data, dtype) {
                    (HostBuffer::F32(x), Dtype::F32) => x.clone(),
                    (HostBuffer::F32(x), _) => {
                        x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
                    }
                    (HostBuffer::Bf16(x), _) => x.iter().map(|x| x.to_f32()).collect(),
                };
                let found = file.dtype(&tensor).unwrap().to_string().to_lowercase();
                assert_eq!(found, dtype.to_string(), "{tensor}");
                assert_eq!(bits(&file.f32(&tensor).unwrap()), bits(&expected), "{tensor}");
            }
        }
        assert_eq!(file.dtype("adamw.narrow.step").unwrap().to_string().to_lowercase(), "f32");
    }

    // f32 reaches further than bf16.
    let mut model = Model::new(MuonConfig::default(), rule("jordan"));
    let mut state = model.muon.export_state(model.ids[1]).unwrap();
    let HostBuffer::F32(momentum) = &mut state.buffers[0].1 else { panic!("f32") };
    momentum[11] = f32::MAX;
    model.muon.import_state(model.ids[1], &state).unwrap();
    std::fs::remove_file(&path).unwrap();
    let e = model.muon.export_torch_state(&path).unwrap_err();
    assert!(
        e.is_non_finite() && e.to_string().contains("`h.momentum_buffer`, element [1, 3]"),
        "{e}"
    );
    assert!(!path.exists());
}

#[test]
fn state_that_would_freeze_a_parameter_is_refused_with_its_element() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("torch.safetensors");
    let mut model = Model::new(MuonConfig::default(), rule("jordan"));
    model.steps(0..2);
    let before = model.muon.checkpoint().unwrap();
    let with = |n: usize, index: usize, x: f32| {
        let mut values = vec![0.0; n];
        values[index] = x;
        values
    };
    type File<'a> = Vec<(&'a str, &'a [usize], Vec<f32>)>;
    let adamw = |first: Vec<f32>, second: Vec<f32>| -> File<'_> {
        vec![
            ("b.exp_avg", &[12], first),
            ("b.exp_avg_sq", &[12], second),
            ("b.step", &[], vec![1.0]),
        ]
    };
    let zeros = || vec![0.0; 12];
    let cases: Vec<(&str, File<'_>)> = vec![
        (
            "`momentum_buffer`, element [2, 7]",
            vec![("w.momentum_buffer", &[12, 20], with(240, 47, f32::NAN))],
        ),
        (
            "`momentum_buffer`, element [15, 7]",
            vec![("h.momentum_buffer", &[16, 8], with(128, 127, f32::INFINITY))],
        ),
        ("`exp_avg`, element [3]", adamw(with(12, 3, f32::NEG_INFINITY), zeros())),
        ("`exp_avg_sq`, element [0]", adamw(zeros(), with(12, 0, f32::NAN))),
        ("of at least 0, found `-1`", adamw(zeros(), with(12, 0, -1.0))),
    ];
    for (what, tensors) in cases {
        write(&path, &tensors);
        let e = model.muon.import_torch_state(&path).unwrap_err();
        let name = tensors[0].0.split('.').next().unwrap();
        assert!(e.is_non_finite() && e.to_string().contains(what), "{what}: {e}");
        assert!(e.to_string().starts_with(&format!("import `{name}`")), "{e}");
        assert_eq!(model.muon.checkpoint().unwrap(), before, "{what}");
    }
    // The same through the state of one parameter, whatever its dtype; weights of a master copy are the caller's.
    let mut state = model.muon.export_state(model.ids[1]).unwrap();
    let HostBuffer::F32(momentum) = &mut state.buffers[0].1 else { panic!("f32") };
    momentum[9] = f32::NAN;
    let e = model.muon.import_state(model.ids[1], &state).unwrap_err();
    assert!(e.is_non_finite() && e.to_string().contains("state of `h`"), "{e}");
    assert!(e.to_string().contains("element [1, 1]"), "{e}");
    assert_eq!(model.muon.checkpoint().unwrap(), before);
}

#[test]
fn names_and_parts_that_do_not_belong_are_refused_at_import() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("torch.safetensors");
    let mut model = Model::new(MuonConfig::default(), rule("jordan"));
    model.steps(0..2);
    let before = model.muon.checkpoint().unwrap();
    let (w, b) = (vec![0.5f32; 240], vec![0.5f32; 12]);
    type File<'a> = Vec<(&'a str, &'a [usize], Vec<f32>)>;
    let cases: Vec<(&[&str], File<'_>)> = vec![
        (
            &["no state for `w`", "`layer.w`", "not registered"],
            vec![("layer.w.momentum_buffer", &[12, 20], w.clone())],
        ),
        (
            &["import `b`", "AdamW", "`b.momentum_buffer`"],
            vec![("b.momentum_buffer", &[12], b.clone())],
        ),
        (&["import `w`", "Muon rule", "`w.exp_avg`"], vec![("w.exp_avg", &[12, 20], w.clone())]),
        (
            &["import `b`", "`b.exp_avg_sq` is missing"],
            vec![("b.exp_avg", &[12], b.clone()), ("b.step", &[], vec![1.0])],
        ),
        (
            &["import `b`", "`b.step` is missing"],
            vec![("b.exp_avg", &[12], b.clone()), ("b.exp_avg_sq", &[12], b.clone())],
        ),
        (
            &["import `b`", "max_exp_avg_sq"],
            vec![
                ("b.exp_avg", &[12], b.clone()),
                ("b.exp_avg_sq", &[12], b.clone()),
                ("b.max_exp_avg_sq", &[12], b.clone()),
                ("b.step", &[], vec![1.0]),
            ],
        ),
        (&["none of the file's 1 tensors", "momentum_buffer"], vec![("w", &[12, 20], w.clone())]),
        (
            &["import `w`", "expected [12, 20], found [20, 12]"],
            vec![("w.momentum_buffer", &[20, 12], w.clone())],
        ),
    ];
    for (parts, tensors) in cases {
        write(&path, &tensors);
        let e = model.muon.import_torch_state(&path).unwrap_err();
        for part in parts {
            assert!(e.to_string().contains(part), "{part}: {e}");
        }
        assert_eq!(model.muon.checkpoint().unwrap(), before, "{parts:?}");
    }
}
