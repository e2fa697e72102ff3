//! Checkpoint, restore, next step: the same bits from every device to every device, whatever had happened to a parameter before.

use half::bf16;
use muon_cuda::{
    AdamWRule, Bf16Params, Checkpoint, Cpu, Cuda, Device, Dtype, HostBuffer, Muon, MuonConfig,
    MuonRule, Orthogonalizer, ParamId, ParamSpec, Result, StateData, StepOptions, StepTensor,
};

use crate::device::{Offset, stream, with_device};
use crate::support::Random;

/// A stack of two matrices.
const SHAPE: [usize; 3] = [2, 3, 5];
const LEN: usize = 30;

/// A parameter as the caller holds it, on the host.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Values {
    pub fn bits(&self) -> Vec<u32> {
        match self {
            Self::F32(x) => x.iter().map(|x| x.to_bits()).collect(),
            Self::Bf16(x) => x.iter().map(|x| x.to_bits().into()).collect(),
        }
    }
}

/// A device that steps tensors which the test holds on the host.
pub trait Target: Device {
    fn open(config: MuonConfig) -> Muon<Self>;
    fn step(muon: &mut Muon<Self>, tensors: &mut [Lent<'_>]) -> Result<()>;
}

/// A parameter and its gradient, for one step.
pub type Lent<'a> = (ParamId, &'a mut Values, Option<Vec<f32>>);

impl Target for Cpu {
    fn open(config: MuonConfig) -> Muon<Self> {
        Muon::new(Self::with_threads(1).unwrap(), config).unwrap()
    }

    fn step(muon: &mut Muon<Self>, tensors: &mut [Lent<'_>]) -> Result<()> {
        let mut tensors: Vec<_> = tensors
            .iter_mut()
            .map(|(id, values, grad)| {
                let mut tensor = match values {
                    Values::F32(x) => StepTensor::<Self>::without_grad(*id, x.as_mut_slice()),
                    Values::Bf16(x) => StepTensor::<Self>::without_grad(*id, x.as_mut_slice()),
                };
                tensor.grad = grad.as_deref().map(Into::into);
                tensor
            })
            .collect();
        muon.step(&StepOptions::default(), &mut tensors).map(|_| ())
    }
}

impl Target for Cuda {
    fn open(config: MuonConfig) -> Muon<Self> {
        Muon::new(Self::new(0).unwrap(), config).unwrap()
    }

    fn step(muon: &mut Muon<Self>, tensors: &mut [Lent<'_>]) -> Result<()> {
        enum There {
            F32(Offset<f32>),
            Bf16(Offset<bf16>),
        }
        let stream = stream(muon);
        let mut there: Vec<_> = tensors
            .iter()
            .map(|(id, values, grad)| {
                let param = match values {
                    Values::F32(x) => There::F32(Offset::new(&stream, x, 0)),
                    Values::Bf16(x) => There::Bf16(Offset::new(&stream, x, 0)),
                };
                (*id, param, grad.as_ref().map(|g| Offset::new(&stream, g, 0)))
            })
            .collect();
        let mut lent: Vec<_> = there
            .iter_mut()
            .map(|(id, param, grad)| {
                let mut tensor = match param {
                    There::F32(x) => StepTensor::<Self>::without_grad(*id, x.param()),
                    There::Bf16(x) => StepTensor::<Self>::without_grad(*id, x.param()),
                };
                tensor.grad = grad.as_ref().map(Offset::grad);
                tensor
            })
            .collect();
        let outcome = muon.step(&StepOptions::default(), &mut lent).map(|_| ());
        drop(lent);
        for ((_, values, _), (_, param, _)) in tensors.iter_mut().zip(&there) {
            **values = match param {
                There::F32(x) => Values::F32(x.download()),
                There::Bf16(x) => Values::Bf16(x.download()),
            };
        }
        outcome
    }
}

/// One parameter under each rule in each dtype; directions are not orthogonalized, so devices agree to the bit.
pub struct Model<D: Target> {
    pub muon: Muon<D>,
    pub params: Vec<(ParamId, Values)>,
}

impl<D: Target> Model<D> {
    pub fn new(config: MuonConfig) -> Self {
        let mut muon = D::open(config);
        let rule = MuonRule { orthogonalizer: Orthogonalizer::Identity, ..MuonRule::default() };
        let hidden = muon.add_group("hidden", rule).unwrap();
        let rest = muon.add_group("rest", AdamWRule { lr: 0.02, ..AdamWRule::default() }).unwrap();
        let mut random = Random::new(11);
        let mut params = Vec::new();
        for (name, group) in [("muon", hidden), ("adamw", rest)] {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let spec = ParamSpec::new(format!("{name}.{dtype}"), &SHAPE).dtype(dtype);
                let id = muon.add_param(group, spec).unwrap();
                let values = random.normals(LEN);
                let values = match dtype {
                    Dtype::F32 => Values::F32(values),
                    _ => Values::Bf16(values.into_iter().map(bf16::from_f32).collect()),
                };
                params.push((id, values));
            }
        }
        Self { muon, params }
    }

    /// One step; `change` sees the number of each parameter and its gradient.
    pub fn try_step(
        &mut self,
        seed: u64,
        change: impl Fn(usize, Vec<f32>) -> Option<Vec<f32>>,
    ) -> Result<()> {
        let mut random = Random::new(seed);
        let mut tensors: Vec<_> = self
            .params
            .iter_mut()
            .enumerate()
            .map(|(i, (id, values))| (*id, values, change(i, random.normals(LEN))))
            .collect();
        D::step(&mut self.muon, &mut tensors)
    }

    pub fn step(&mut self, seed: u64, change: impl Fn(usize, Vec<f32>) -> Option<Vec<f32>>) {
        self.try_step(seed, change).unwrap();
    }

    fn bits(&self) -> Vec<Vec<u32>> {
        self.params.iter().map(|(_, values)| values.bits()).collect()
    }
}

pub fn good(_: usize, grad: Vec<f32>) -> Option<Vec<f32>> {
    Some(grad)
}

/// The first matrix of the stack is skipped under the Muon rule, the whole tensor under AdamW.
fn one_nan(_: usize, mut grad: Vec<f32>) -> Option<Vec<f32>> {
    grad[3] = f32::NAN;
    Some(grad)
}

fn all_nan(_: usize, grad: Vec<f32>) -> Option<Vec<f32>> {
    Some(vec![f32::NAN; grad.len()])
}

/// Every second parameter has a gradient.
fn half(i: usize, grad: Vec<f32>) -> Option<Vec<f32>> {
    (i % 2 == 1).then_some(grad)
}

const HISTORIES: [&str; 8] = [
    "never stepped",
    "only skipped",
    "one matrix skipped",
    "half stepped",
    "stepped",
    "imported from PyTorch",
    "imported and skipped",
    "restored and never stepped",
];

fn with_history<D: Target>(config: &MuonConfig, history: &str, dir: &std::path::Path) -> Model<D> {
    let mut model = Model::<D>::new(config.clone());
    let import = |model: Model<D>| {
        let path = dir.join("torch.safetensors");
        let Model { mut muon, params } = model;
        muon.export_torch_state(&path).unwrap();
        let mut other = Model::<D>::new(config.clone());
        other.muon.import_torch_state(&path).unwrap();
        let params = other.params.iter().zip(params).map(|((id, _), (_, v))| (*id, v)).collect();
        Model { params, ..other }
    };
    match history {
        "never stepped" => {}
        "only skipped" => model.step(1, all_nan),
        "one matrix skipped" => model.step(1, one_nan),
        "half stepped" => model.step(1, half),
        "stepped" => (1..4).for_each(|seed| model.step(seed, good)),
        "imported from PyTorch" => {
            (1..4).for_each(|seed| model.step(seed, good));
            model = import(model);
        }
        "imported and skipped" => {
            model.step(1, half);
            model = import(model);
            model.step(2, all_nan);
        }
        "restored and never stepped" => {
            model.step(1, half);
            let checkpoint = model.muon.checkpoint().unwrap();
            let mut other = Model::<D>::new(config.clone());
            other.muon.restore(&checkpoint).unwrap();
            other.params =
                other.params.iter().zip(model.params).map(|((id, _), (_, v))| (*id, v)).collect();
            model = other;
        }
        other => panic!("{other}"),
    }
    model
}

/// What a model becomes with one more step, whole and resumed on `To`.
fn resumes<From: Target, To: Target>(
    what: &str,
    config: &MuonConfig,
    saved: &Checkpoint,
    values: &[Values],
    whole: &(Vec<Vec<u32>>, Checkpoint),
) {
    let mut resumed = Model::<To>::new(config.clone());
    resumed.muon.restore(saved).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(resumed.muon.checkpoint().unwrap(), *saved, "{what}: what was restored is there");
    for ((_, to), from) in resumed.params.iter_mut().zip(values) {
        *to = from.clone();
    }
    resumed.step(9, good);
    assert_eq!(resumed.bits(), whole.0, "{what}: the next step");
    assert_eq!(resumed.muon.checkpoint().unwrap(), whole.1, "{what}: the next state");
}

fn configs() -> [(&'static str, MuonConfig); 4] {
    let base = MuonConfig::default();
    [
        ("master", base.clone()),
        ("master, bf16 momentum", MuonConfig { momentum_dtype: Dtype::Bf16, ..base.clone() }),
        ("nearest", MuonConfig { bf16_params: Bf16Params::Nearest, ..base.clone() }),
        ("stochastic", MuonConfig { bf16_params: Bf16Params::Stochastic { seed: 7 }, ..base }),
    ]
}

#[test]
fn what_the_optimizer_wrote_it_restores_on_every_device_with_the_bits_of_the_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("checkpoint.safetensors");
    with_device(2, |_| {
        for (name, config) in configs() {
            for history in HISTORIES {
                let what = format!("{name}, {history}");
                // With their state and their parameters after it, and after one more step.
                let saved_and_next = |what: &str, checkpoint: Checkpoint| {
                    checkpoint.save(&file).unwrap();
                    let loaded = Checkpoint::load(&file).unwrap();
                    assert_eq!(loaded, checkpoint, "{what}: the file");
                    loaded
                };
                let mut cpu = with_history::<Cpu>(&config, history, dir.path());
                let mut cuda = with_history::<Cuda>(&config, history, dir.path());
                let on_cpu = saved_and_next(&what, cpu.muon.checkpoint().unwrap());
                let on_cuda = saved_and_next(&what, cuda.muon.checkpoint().unwrap());
                assert_eq!(on_cpu, on_cuda, "{what}: CPU and CUDA hold the same state");
                let values: Vec<_> = cpu.params.iter().map(|(_, v)| v.clone()).collect();
                assert_eq!(cpu.bits(), cuda.bits(), "{what}: parameters");
                cpu.step(9, good);
                cuda.step(9, good);
                let whole = (cpu.bits(), cpu.muon.checkpoint().unwrap());
                assert_eq!(cuda.bits(), whole.0, "{what}: the next step");
                resumes::<Cpu, Cpu>(
                    &format!("{what}, CPU to CPU"),
                    &config,
                    &on_cpu,
                    &values,
                    &whole,
                );
                resumes::<Cpu, Cuda>(
                    &format!("{what}, CPU to CUDA"),
                    &config,
                    &on_cpu,
                    &values,
                    &whole,
                );
                resumes::<Cuda, Cpu>(
                    &format!("{what}, CUDA to CPU"),
                    &config,
                    &on_cuda,
                    &values,
                    &whole,
                );
                resumes::<Cuda, Cuda>(
                    &format!("{what}, CUDA to CUDA"),
                    &config,
                    &on_cuda,
                    &values,
                    &whole,
                );
            }
        }
    });
}

/// A configuration that keeps no master copy goes over to one that does; the other way would lose bits, and says so.
fn changes_configuration<D: Target>() {
    let [(_, master), _, _, (_, stochastic)] = configs();
    let mut plain = Model::<D>::new(stochastic.clone());
    plain.step(1, good);
    let without = plain.muon.checkpoint().unwrap();
    let mut kept = Model::<D>::new(master);
    kept.muon.restore(&without).unwrap();
    for ((_, to), (_, from)) in kept.params.iter_mut().zip(&plain.params) {
        *to = from.clone();
    }
    let before = kept.params.clone();
    kept.step(2, good);
    let id = kept.params[1].0;
    let state = kept.muon.export_state(id).unwrap();
    let Some(("master", HostBuffer::F32(master))) = state.buffers.last() else { panic!("master") };
    // Made from the parameter as it was: one step away from it, not from the start.
    let Values::Bf16(start) = &before[1].1 else { panic!("bf16") };
    let far = master.iter().zip(start).map(|(m, p)| (m - p.to_f32()).abs()).fold(0.0, f32::max);
    assert!(far < 0.1, "{far}");

    let with = kept.muon.checkpoint().unwrap();
    let unchanged = plain.muon.checkpoint().unwrap();
    let e = plain.muon.restore(&with).unwrap_err();
    assert!(e.is_checkpoint(), "{e}");
    for part in ["`muon.bf16`", "master", "Bf16Params::Master"] {
        assert!(e.to_string().contains(part), "{part}: {e}");
    }
    assert_eq!(plain.muon.checkpoint().unwrap(), unchanged);
}

#[test]
fn a_master_copy_may_be_made_at_a_resume_and_is_not_dropped_in_silence() {
    changes_configuration::<Cpu>();
    with_device(3, |_| changes_configuration::<Cuda>());
}

/// bf16 weights as a trainer loads them, for both bf16 parameters.
fn load<D: Target>(model: &mut Model<D>) {
    for (i, (_, values)) in model.params.iter_mut().enumerate() {
        if let Values::Bf16(x) = values {
            *x = Random::new(70 + i as u64).normals(LEN).into_iter().map(bf16::from_f32).collect();
        }
    }
}

/// The state of a model with its master copies taken out.
fn without_masters<D: Target>(model: &mut Model<D>) -> Vec<StateData> {
    let ids: Vec<_> = model.params.iter().map(|(id, _)| *id).collect();
    ids.into_iter()
        .map(|id| {
            let mut state = model.muon.export_state(id).unwrap();
            state.buffers.retain(|(name, _)| *name != "master");
            state
        })
        .collect()
}

fn keeps_loaded_weights<D: Target>(all_at_once: bool, from_checkpoint: bool) -> Vec<Vec<u32>> {
    let mut model = Model::<D>::new(MuonConfig::default());
    (1..3).for_each(|seed| model.step(seed, good));
    if from_checkpoint {
        // State restored into an optimizer whose parameters are others.
        let checkpoint = model.muon.checkpoint().unwrap();
        let params: Vec<_> = model.params.iter().map(|(_, v)| v.clone()).collect();
        model = Model::new(MuonConfig::default());
        model.muon.restore(&checkpoint).unwrap();
        model.params.iter_mut().zip(params).for_each(|((_, to), from)| *to = from);
    }
    // What it must become: the same state on the loaded weights, with copies made from them.
    let states = without_masters(&mut model);
    load(&mut model);
    let mut expected = Model::<D>::new(MuonConfig::default());
    for (((id, values), (_, from)), state) in
        expected.params.iter_mut().zip(&model.params).zip(&states)
    {
        expected.muon.import_state(*id, state).unwrap();
        *values = from.clone();
    }
    expected.step(3, good);

    if all_at_once {
        model.muon.refresh_masters();
    } else {
        let ids: Vec<_> = model.params.iter().map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| model.muon.refresh_master(id).unwrap());
    }
    let bf16 = model.params[1].0;
    let names: Vec<_> =
        model.muon.export_state(bf16).unwrap().buffers.iter().map(|b| b.0).collect();
    assert_eq!(names, ["momentum_buffer"], "an old copy is not written to a checkpoint");
    model.step(3, good);
    assert_eq!(model.bits(), expected.bits());
    assert_eq!(model.muon.checkpoint().unwrap(), expected.muon.checkpoint().unwrap());
    model.bits()
}

#[test]
fn weights_loaded_between_steps_stay_once_their_master_copies_are_refreshed() {
    let mut all = Vec::new();
    for (all_at_once, from_checkpoint) in [(false, false), (true, false), (true, true)] {
        all.push(keeps_loaded_weights::<Cpu>(all_at_once, from_checkpoint));
        with_device(4, |_| all.push(keeps_loaded_weights::<Cuda>(all_at_once, from_checkpoint)));
    }
    assert!(all.iter().all(|bits| *bits == all[0]));
}

#[test]
fn the_cpu_refuses_to_overwrite_loaded_weights_and_changes_nothing() {
    let mut model = Model::<Cpu>::new(MuonConfig::default());
    model.step(1, good);
    let (state, stepped) = (model.muon.checkpoint().unwrap(), model.params.clone());
    load(&mut model);
    let before = model.bits();
    let e = model.try_step(2, good).unwrap_err();
    for part in ["`muon.bf16`", "master copy", "refresh_master"] {
        assert!(e.is_invalid_config() && e.to_string().contains(part), "{part}: {e}");
    }
    assert_eq!(model.bits(), before);
    assert_eq!(model.muon.checkpoint().unwrap(), state);
    assert!(model.muon.torn().is_none());
    // Swapped back, as after an evaluation with averaged weights, nothing is amiss; and what was NaN counts as equal.
    model.params = stepped;
    model.step(2, good);
    let Values::Bf16(x) = &mut model.params[1].1 else { panic!("bf16") };
    x.fill(bf16::NAN);
    model.muon.refresh_masters();
    model.step(3, good);
    model.step(4, good);
    let mut other = Model::<Cpu>::new(MuonConfig::default());
    let foreign = other.params[0].0;
    assert!(model.muon.refresh_master(foreign).unwrap_err().is_invalid_config());
    other.muon.refresh_masters();
}

#[test]
fn a_recorded_step_is_not_replayed_without_a_master_copy() {
    with_device(5, |_| {
        let mut muon = Cuda::open(MuonConfig::default());
        let rule = MuonRule { orthogonalizer: Orthogonalizer::Identity, ..MuonRule::default() };
        let hidden = muon.add_group("hidden", rule).unwrap();
        let id = muon.add_param(hidden, ParamSpec::new("w", &[4, 4]).dtype(Dtype::Bf16)).unwrap();
        let stream = stream(&muon);
        let mut p = Offset::new(&stream, &[bf16::ONE; 16], 0);
        let g = Offset::new(&stream, &[1.0f32; 16], 0);
        let options = StepOptions::default();
        macro_rules! tensors {
            () => {
                &mut [StepTensor::new(id, p.param(), g.grad())]
            };
        }
        let e = muon.capture_step(&options, tensors!()).unwrap_err();
        assert!(
            e.is_invalid_config() && e.to_string().contains("capture: the bf16 parameter `w`"),
            "{e}"
        );
        muon.step(&options, tensors!()).unwrap();
        let graph = muon.capture_step(&options, tensors!()).unwrap();
        muon.replay_step(&graph, &options, tensors!()).unwrap();
        muon.refresh_master(id).unwrap();
        let e = muon.replay_step(&graph, &options, tensors!()).unwrap_err();
        assert!(
            e.is_invalid_config() && e.to_string().contains("replay: the bf16 parameter `w`"),
            "{e}"
        );
        muon.step(&options, tensors!()).unwrap();
        muon.replay_step(&graph, &options, tensors!()).unwrap();
        assert_eq!(muon.counters(id).unwrap().steps, 4);
    });
}
