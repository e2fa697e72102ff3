//! What changes while training: scalars, groups of parameters, freezing, removing, restoring what matches. On the CPU and on CUDA,
//! to the same bits.

use cuda_emulator::{Config, Fault, FaultSite};
use half::bf16;
use muon_cuda::{
    AdamWRule, Checkpoint, Cpu, Cuda, Dtype, GroupId, GroupScalars, MomentumMode, Muon, MuonConfig,
    MuonRule, Nesterov, Orthogonalizer, ParamId, ParamSpec, Rule, StepOptions, StepTensor,
    WeightDecayMode, WithoutMuon,
};

use crate::device::{Offset, Session, only_on_the_emulator, stream, with_device};
use crate::resume::{Target, Values};
use crate::support::Random;

const SHAPE: [usize; 2] = [4, 6];
const LEN: usize = 24;

/// Directions that are not orthogonalized, so that devices agree to the bit.
fn plain() -> MuonRule {
    MuonRule { orthogonalizer: Orthogonalizer::Identity, ..MuonRule::default() }
}

/// An optimizer whose groups and parameters a test names.
struct Named<D: Target> {
    muon: Muon<D>,
    groups: Vec<GroupId>,
    params: Vec<(String, ParamId, Values)>,
}

impl<D: Target> Named<D> {
    /// Groups by rule, and parameters by name, group and dtype.
    fn new(config: MuonConfig, rules: &[Rule], params: &[(&str, usize, Dtype)]) -> Self {
        let mut muon = D::open(config);
        let groups: Vec<_> = rules
            .iter()
            .enumerate()
            .map(|(i, rule)| muon.add_group(format!("group {i}"), rule.clone()).unwrap())
            .collect();
        let mut new = Self { muon, groups, params: Vec::new() };
        for (name, group, dtype) in params {
            new.add(name, *group, *dtype);
        }
        new
    }

    fn add(&mut self, name: &str, group: usize, dtype: Dtype) -> ParamId {
        let spec = ParamSpec::new(name, &SHAPE).dtype(dtype);
        let id = self.muon.add_param(self.groups[group], spec).unwrap();
        let start = Random::new(name.len() as u64).normals(LEN);
        let values = match dtype {
            Dtype::F32 => Values::F32(start),
            _ => Values::Bf16(start.into_iter().map(bf16::from_f32).collect()),
        };
        self.params.push((name.to_owned(), id, values));
        id
    }

    fn id(&self, name: &str) -> ParamId {
        self.muon.param_id(name).unwrap()
    }

    /// One step with gradients for these parameters; a gradient depends on seed and name alone.
    fn try_step(&mut self, seed: u64, with_grad: &[&str]) -> muon_cuda::Result<()> {
        let mut tensors: Vec<_> = self
            .params
            .iter_mut()
            .map(|(name, id, values)| {
                let salt: u64 = name.bytes().map(u64::from).sum();
                let grad = Random::new(1000 * seed + salt).normals(LEN);
                (*id, values, with_grad.contains(&name.as_str()).then_some(grad))
            })
            .collect();
        D::step(&mut self.muon, &mut tensors)
    }

    fn step(&mut self, seed: u64, with_grad: &[&str]) {
        self.try_step(seed, with_grad).unwrap();
    }

    /// State and parameters of another optimizer, as a resume takes them over.
    fn resume_from(&mut self, other: &mut Self) {
        self.muon.restore(&through_a_file(&other.muon.checkpoint().unwrap())).unwrap();
        for (name, _, values) in &mut self.params {
            *values = other.params.iter().find(|(n, ..)| n == name).unwrap().2.clone();
        }
    }

    fn bits(&self) -> Vec<(String, Vec<u32>)> {
        self.params.iter().map(|(name, _, values)| (name.clone(), values.bits())).collect()
    }
}

fn through_a_file(checkpoint: &Checkpoint) -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    checkpoint.save(&path).unwrap();
    Checkpoint::load(&path).unwrap()
}

/// The same on both devices, to the same bits.
macro_rules! on_both {
    ($test:ident) => {{
        let cpu = $test::<Cpu>();
        let cuda = with_device(7, |_| $test::<Cuda>());
        assert_eq!(cpu, cuda);
    }};
}

type Bits = Vec<(String, Vec<u32>)>;

const BOTH: [(&str, usize, Dtype); 3] =
    [("w", 0, Dtype::F32), ("h", 0, Dtype::Bf16), ("b", 1, Dtype::F32)];
const ALL: [&str; 3] = ["w", "h", "b"];

/// Momentum, decay, look-ahead, rates and β of step `i`.
fn scalars_of(i: u64) -> (MuonRule, AdamWRule) {
    let t = i as f64 / 4.0;
    let muon = MuonRule {
        lr: 0.1 - 0.02 * t,
        momentum: 0.85 + 0.1 * t,
        nesterov: if i.is_multiple_of(2) { Nesterov::On } else { Nesterov::Off },
        weight_decay: 0.3 * t,
        ..plain()
    };
    let adamw = AdamWRule {
        lr: 0.01 + 0.01 * t,
        beta1: 0.8 + 0.1 * t,
        beta2: 0.9 + 0.05 * t,
        eps: 1e-8 * (1.0 + t),
        weight_decay: 0.1 * t,
    };
    (muon, adamw)
}

fn set(muon: &mut Muon<impl Target>, groups: &[GroupId], i: u64) {
    let (rule, adamw) = scalars_of(i);
    let scalars = GroupScalars {
        lr: Some(rule.lr),
        weight_decay: Some(rule.weight_decay),
        momentum: Some(rule.momentum),
        nesterov: Some(rule.nesterov),
        ..GroupScalars::default()
    };
    muon.set_scalars(groups[0], scalars).unwrap();
    let scalars = GroupScalars {
        lr: Some(adamw.lr),
        weight_decay: Some(adamw.weight_decay),
        betas: Some((adamw.beta1, adamw.beta2)),
        eps: Some(adamw.eps),
        ..GroupScalars::default()
    };
    muon.set_scalars(groups[1], scalars).unwrap();
}

fn scalars<D: Target>() -> Bits {
    let rules = |i| {
        let (muon, adamw) = scalars_of(i);
        [Rule::from(muon), Rule::from(adamw)]
    };
    let config = MuonConfig::default();
    let mut scheduled = Named::<D>::new(config.clone(), &rules(0), &BOTH);
    let mut ruled = Named::<D>::new(config.clone(), &rules(0), &BOTH);
    let mut previous = Named::<D>::new(config.clone(), &rules(0), &BOTH);
    for i in 0..4 {
        set(&mut scheduled.muon, &scheduled.groups.clone(), i);
        for (group, rule) in ruled.groups.clone().into_iter().zip(rules(i)) {
            ruled.muon.set_rule(group, rule).unwrap();
        }
        // Registered under the rule of this step from the start.
        let mut fresh = Named::<D>::new(config.clone(), &rules(i), &BOTH);
        fresh.resume_from(&mut previous);
        for model in [&mut scheduled, &mut ruled, &mut fresh] {
            model.step(i, &ALL);
        }
        assert_eq!(scheduled.bits(), fresh.bits(), "step {i}");
        assert_eq!(ruled.bits(), fresh.bits(), "step {i}, by rule");
        previous = fresh;
    }
    // A resume: state by checkpoint, scalars by the schedule.
    let mut resumed = Named::<D>::new(config, &rules(0), &BOTH);
    resumed.resume_from(&mut scheduled);
    for model in [&mut scheduled, &mut resumed] {
        let groups = model.groups.clone();
        set(&mut model.muon, &groups, 4);
        model.step(4, &ALL);
    }
    assert_eq!(scheduled.bits(), resumed.bits());
    scheduled.bits()
}

#[test]
fn scalars_set_between_steps_are_those_of_the_steps_that_follow() {
    on_both!(scalars);
}

#[test]
fn a_scalar_that_the_rule_does_not_have_or_allow_is_refused_and_changes_nothing() {
    let rules = [Rule::from(plain()), Rule::from(AdamWRule::default())];
    let mut model = Named::<Cpu>::new(MuonConfig::default(), &rules, &BOTH);
    let none = GroupScalars::default();
    for (group, what, scalars) in [
        (0, "`betas`", GroupScalars { betas: Some((0.9, 0.99)), lr: Some(0.5), ..none }),
        (0, "`eps`", GroupScalars { eps: Some(1e-8), lr: Some(0.5), ..none }),
        (1, "`momentum`", GroupScalars { momentum: Some(0.9), lr: Some(0.5), ..none }),
        (1, "`nesterov`", GroupScalars { nesterov: Some(Nesterov::Off), lr: Some(0.5), ..none }),
        (0, "momentum", GroupScalars { momentum: Some(1.0), lr: Some(0.5), ..none }),
        (0, "lr", GroupScalars { lr: Some(f64::NAN), momentum: Some(0.5), ..none }),
        (0, "weight_decay", GroupScalars { weight_decay: Some(-1.0), lr: Some(0.5), ..none }),
        (1, "beta2", GroupScalars { betas: Some((0.5, 1.0)), lr: Some(0.5), ..none }),
        (1, "eps", GroupScalars { eps: Some(0.0), lr: Some(0.5), ..none }),
    ] {
        let e = model.muon.set_scalars(model.groups[group], scalars).unwrap_err();
        let text = e.to_string();
        assert!(e.is_invalid_config() && text.contains(what), "{what}: {e}");
        assert!(text.starts_with(&format!("group `group {group}`")), "{e}");
        assert_eq!(*model.muon.rule(model.groups[group]).unwrap(), rules[group], "{what}");
    }
    let mut other = Named::<Cpu>::new(MuonConfig::default(), &rules, &BOTH);
    assert!(other.muon.set_scalars(model.groups[0], none).unwrap_err().is_invalid_config());
}

/// A captured step takes every scalar at its next replay: they are in tables that it reads.
#[test]
fn a_captured_step_takes_the_scalars_of_its_replay() {
    let run = |captured: bool| {
        with_device(8, |_| {
            let mut muon = Cuda::open(MuonConfig::default());
            let (rule, adamw) = scalars_of(0);
            let groups =
                [muon.add_group("hidden", rule).unwrap(), muon.add_group("rest", adamw).unwrap()];
            let stream = stream(&muon);
            let mut random = Random::new(5);
            let mut params: Vec<_> = groups
                .iter()
                .enumerate()
                .map(|(i, group)| {
                    let spec = ParamSpec::new(format!("p{i}"), &SHAPE);
                    let id = muon.add_param(*group, spec).unwrap();
                    let (p, g) = (random.normals(LEN), random.normals(LEN));
                    (id, Offset::new(&stream, &p, 0), Offset::new(&stream, &g, 0))
                })
                .collect();
            let options = StepOptions::default();
            let mut graph = None;
            for i in 0..5 {
                set(&mut muon, &groups, i);
                let mut tensors: Vec<_> = params
                    .iter_mut()
                    .map(|(id, p, g)| StepTensor::new(*id, p.param(), g.grad()))
                    .collect();
                if captured && i == 1 {
                    graph = Some(muon.capture_step(&options, &mut tensors).unwrap());
                }
                match &graph {
                    Some(graph) => muon.replay_step(graph, &options, &mut tensors).map(|_| ()),
                    None => muon.step(&options, &mut tensors).map(|_| ()),
                }
                .unwrap();
                drop(tensors);
                stream.synchronize().unwrap();
            }
            if let Some(graph) = &graph {
                // A plan that changed is another step, and so is a frozen parameter.
                muon.set_rule(groups[0], MuonRule { norm_floor: 1e-7, ..scalars_of(4).0 }).unwrap();
                let mut tensors: Vec<_> = params
                    .iter_mut()
                    .map(|(id, p, g)| StepTensor::new(*id, p.param(), g.grad()))
                    .collect();
                let e = muon.replay_step(graph, &options, &mut tensors).unwrap_err();
                assert!(e.to_string().contains("parameters or rules changed"), "{e}");
                drop(tensors);
                muon.freeze(params[0].0).unwrap();
                let mut tensors: Vec<_> = params
                    .iter_mut()
                    .map(|(id, p, g)| StepTensor::new(*id, p.param(), g.grad()))
                    .collect();
                let e = muon.replay_step(graph, &options, &mut tensors).unwrap_err();
                assert!(e.to_string().contains("`p0` is frozen"), "{e}");
            }
            params
                .iter()
                .map(|(_, p, _)| p.download().iter().map(|x| x.to_bits()).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(run(true), run(false));
}

fn moves<D: Target>() -> Bits {
    let fast = MuonRule { lr: 0.3, weight_decay_mode: WeightDecayMode::Independent, ..plain() };
    let rules = [
        Rule::from(plain()),
        Rule::from(fast),
        Rule::from(AdamWRule::default()),
        Rule::from(AdamWRule { lr: 0.1, beta1: 0.5, ..AdamWRule::default() }),
        Rule::from(MuonRule { momentum_mode: MomentumMode::Sum, ..plain() }),
    ];
    let before = [
        ("w", 0, Dtype::F32),
        ("h", 0, Dtype::Bf16),
        ("stays", 1, Dtype::F32),
        ("b", 2, Dtype::F32),
    ];
    let after = [
        ("w", 1, Dtype::F32),
        ("h", 1, Dtype::Bf16),
        ("stays", 1, Dtype::F32),
        ("b", 3, Dtype::F32),
    ];
    let all = ["w", "h", "stays", "b"];
    // A group that is empty after the move, or was before, is meant here.
    let config = MuonConfig { without_muon: WithoutMuon::Allow, ..MuonConfig::default() };
    let mut moved = Named::<D>::new(config.clone(), &rules, &before);
    moved.step(1, &all);
    let mut registered = Named::<D>::new(config, &rules, &after);
    registered.resume_from(&mut moved);
    for (name, group) in [("w", 1), ("h", 1), ("b", 3)] {
        let (id, group) = (moved.id(name), moved.groups[group]);
        moved.muon.move_param(id, group).unwrap();
    }
    let refused = [("w", 2, "adamw"), ("w", 4, "momentum sum"), ("b", 0, "momentum ema")];
    for (name, group, what) in refused {
        let e = moved.muon.move_param(moved.id(name), moved.groups[group]).unwrap_err();
        assert!(e.is_invalid_config() && e.to_string().contains(what), "{e}");
        assert!(e.to_string().starts_with(&format!("move `{name}` from")), "{e}");
    }
    for seed in 2..4 {
        moved.step(seed, &all);
        registered.step(seed, &all);
        assert_eq!(moved.bits(), registered.bits(), "step {seed}");
    }
    assert_eq!(moved.muon.checkpoint().unwrap(), registered.muon.checkpoint().unwrap());
    assert_eq!(moved.muon.routing().routes[0].group, "group 1");
    moved.bits()
}

#[test]
fn a_parameter_moves_to_another_group_with_its_state() {
    on_both!(moves);
}

fn freezes<D: Target>() -> Bits {
    let rules = [Rule::from(plain()), Rule::from(AdamWRule::default())];
    let mut model = Named::<D>::new(MuonConfig::default(), &rules, &BOTH);
    let mut other = Named::<D>::new(MuonConfig::default(), &rules, &BOTH);
    for m in [&mut model, &mut other] {
        m.step(1, &ALL);
    }
    let matrices = |m: &mut Named<D>| -> usize {
        m.muon.plan().unwrap().buckets().iter().map(|b| b.matrices.len()).sum()
    };
    assert_eq!(matrices(&mut model), 2);
    let (h, b) = (model.id("h"), model.id("b"));
    model.muon.freeze(h).unwrap();
    model.muon.freeze(b).unwrap();
    assert!(model.muon.is_frozen(h).unwrap() && !model.muon.is_frozen(model.id("w")).unwrap());
    assert_eq!(matrices(&mut model), 1, "no workspace for what is frozen");
    let (state, before) = (model.muon.checkpoint().unwrap(), model.bits());
    for with_grad in [["w", "h"], ["w", "b"]] {
        let e = model.try_step(2, &with_grad).unwrap_err();
        let text = format!("`{}` is frozen", with_grad[1]);
        assert!(e.is_invalid_config() && e.to_string().contains(&text), "{e}");
    }
    assert_eq!((model.muon.checkpoint().unwrap(), model.bits()), (state, before));
    model.step(2, &["w"]);
    other.step(2, &["w"]);
    // Its state is in the checkpoint; being frozen is not.
    let mut resumed = Named::<D>::new(MuonConfig::default(), &rules, &BOTH);
    resumed.resume_from(&mut model);
    model.muon.unfreeze(h).unwrap();
    model.muon.unfreeze(b).unwrap();
    for m in [&mut model, &mut other, &mut resumed] {
        m.step(3, &ALL);
    }
    assert_eq!(model.bits(), other.bits());
    assert_eq!(resumed.bits(), other.bits());
    // All matrices frozen: what was registered may come back, so this is not an optimizer without any.
    let w = model.id("w");
    model.muon.freeze(w).unwrap();
    model.muon.freeze(h).unwrap();
    model.step(4, &["b"]);
    model.bits()
}

#[test]
fn a_frozen_parameter_keeps_its_state_and_refuses_gradients() {
    on_both!(freezes);
}

fn removes<D: Target>() -> Bits {
    let rules = [Rule::from(plain()), Rule::from(AdamWRule::default())];
    let mut model = Named::<D>::new(MuonConfig::default(), &rules, &BOTH);
    let mut other = Named::<D>::new(MuonConfig::default(), &rules, &BOTH);
    for m in [&mut model, &mut other] {
        m.step(1, &ALL);
    }
    let whole = model.muon.checkpoint().unwrap();
    let w = model.id("w");
    let kept = model.muon.export_state(w).unwrap();
    model.muon.remove_param(w).unwrap();
    let (_, _, values) = model.params.remove(0);
    for outcome in [model.muon.remove_param(w), model.muon.freeze(w), model.muon.refresh_master(w)]
    {
        assert!(outcome.unwrap_err().is_invalid_config());
    }
    model.step(2, &ALL);
    other.step(2, &["h", "b"]);
    assert_eq!(model.bits(), other.bits()[1..]);

    // A checkpoint from before is refused by name, unless what matches is asked for.
    let e = model.muon.restore(&whole).unwrap_err();
    assert!(e.is_checkpoint() && e.to_string().contains("`w`"), "{e}");
    let mut fewer = Named::<D>::new(MuonConfig::default(), &rules, &BOTH[1..]);
    let report = fewer.muon.restore_matching(&whole).unwrap();
    assert_eq!((report.restored.len(), &report.unexpected[..]), (2, &["w".to_owned()][..]));
    let e = fewer.muon.restore(&model.muon.checkpoint().unwrap()).map(|()| fewer.bits().len());
    assert_eq!(e.unwrap(), 2);

    // It comes back where it left.
    let id = model.add("w", 0, Dtype::F32);
    model.muon.import_state(id, &kept).unwrap();
    model.params.last_mut().unwrap().2 = values;
    model.step(3, &ALL);
    other.step(3, &ALL);
    let sorted = |m: &Named<D>| {
        let mut bits = m.bits();
        bits.sort();
        bits
    };
    assert_eq!(sorted(&model), sorted(&other));
    model.bits()
}

#[test]
fn a_parameter_is_removed_and_comes_back_where_it_left() {
    on_both!(removes);
}

fn restores_what_matches<D: Target>() -> Bits {
    let rules = [
        Rule::from(plain()),
        Rule::from(AdamWRule::default()),
        Rule::from(MuonRule { momentum_mode: MomentumMode::Sum, ..plain() }),
    ];
    let config = MuonConfig { without_muon: WithoutMuon::Allow, ..MuonConfig::default() };
    let saved = [
        ("module.w", 0, Dtype::F32),
        ("module.h", 0, Dtype::Bf16),
        ("module.b", 1, Dtype::F32),
        ("module.gone", 0, Dtype::F32),
        ("module.dtype", 0, Dtype::F32),
        ("module.rule", 0, Dtype::F32),
        ("module.mode", 0, Dtype::F32),
    ];
    let here = [
        ("w", 0, Dtype::F32),
        ("h", 0, Dtype::Bf16),
        ("b", 1, Dtype::F32),
        ("new", 0, Dtype::F32),
        ("dtype", 0, Dtype::Bf16),
        ("rule", 1, Dtype::F32),
        ("mode", 2, Dtype::F32),
    ];
    let mut from = Named::<D>::new(config.clone(), &rules, &saved);
    from.step(1, &saved.map(|p| p.0));
    let mut checkpoint = through_a_file(&from.muon.checkpoint().unwrap());

    let mut to = Named::<D>::new(config, &rules, &here);
    to.step(2, &here.map(|p| p.0));
    let before = to.muon.checkpoint().unwrap();
    let e = to.muon.restore_matching(&checkpoint).unwrap_err();
    for part in ["nothing in the checkpoint fits", "`module.w`: not registered", "rename"] {
        assert!(e.is_checkpoint() && e.to_string().contains(part), "{part}: {e}");
    }
    assert_eq!(to.muon.checkpoint().unwrap(), before);

    let e = checkpoint.rename(|_| "one".into()).unwrap_err();
    assert!(e.is_checkpoint() && e.to_string().contains("one name, `one`"), "{e}");
    checkpoint.rename(|name| name.trim_start_matches("module.").into()).unwrap();
    let report = to.muon.restore_matching(&checkpoint).unwrap();
    assert_eq!(report.restored, ["w", "h", "b"]);
    assert_eq!(report.missing, ["new"]);
    assert_eq!(report.unexpected, ["gone"]);
    let reasons: Vec<_> =
        report.mismatched.iter().map(|m| (m.name.as_str(), m.reason.as_str())).collect();
    for ((name, reason), (expected, part)) in reasons.iter().zip([
        ("dtype", "expected dtype bf16, found f32"),
        ("rule", "expected `adamw`, found `muon, momentum ema`"),
        ("mode", "expected `muon, momentum sum`, found `muon, momentum ema`"),
    ]) {
        assert!(*name == expected && reason.contains(part), "{name}: {reason}");
    }
    assert_eq!(reasons.len(), 3);
    assert!(!report.is_complete() && report.to_string().contains("`gone`: not registered"));
    // Restored is what the checkpoint has, and the rest is what it was.
    for (name, here_id) in here.map(|p| p.0).map(|name| (name, to.id(name))) {
        let found = to.muon.export_state(here_id).unwrap();
        if report.restored.iter().any(|n| n == name) {
            let id = from.id(&format!("module.{name}"));
            assert_eq!(found, from.muon.export_state(id).unwrap(), "{name}");
        } else {
            let mut unchanged = Named::<D>::new(
                MuonConfig { without_muon: WithoutMuon::Allow, ..MuonConfig::default() },
                &rules,
                &here,
            );
            unchanged.muon.restore(&before).unwrap();
            let id = unchanged.id(name);
            assert_eq!(found, unchanged.muon.export_state(id).unwrap(), "{name}");
        }
    }
    // The masters that came along are of other parameters than these.
    to.muon.refresh_masters();
    to.step(3, &here.map(|p| p.0));
    to.bits()
}

#[test]
fn what_matches_is_restored_under_new_names_and_the_rest_is_reported() {
    on_both!(restores_what_matches);
}

/// Half a restore does not make a torn optimizer whole.
#[test]
fn a_torn_optimizer_is_not_mended_by_a_part() {
    if !only_on_the_emulator("faults are planted in the emulator") {
        return;
    }
    let mut torn = false;
    for nth in 1..60 {
        let mut config = Config::with_seed(1);
        config.faults = vec![Fault { site: FaultSite::Launch, nth, status: 701 }];
        let _session = Session::with_config(config);
        let rules = [Rule::from(plain()), Rule::from(AdamWRule::default())];
        let opened = std::panic::catch_unwind(|| {
            let mut model = Named::<Cuda>::new(MuonConfig::default(), &rules, &BOTH);
            let checkpoint = model.muon.checkpoint().unwrap();
            (model, checkpoint)
        });
        let Ok((mut model, checkpoint)) = opened else { continue };
        if model.try_step(1, &ALL).is_ok() || model.muon.torn().is_none() {
            continue;
        }
        torn = true;
        let mut part = Named::<Cuda>::new(MuonConfig::default(), &rules, &BOTH[..1]);
        let part = part.muon.checkpoint().unwrap();
        let e = model.muon.restore_matching(&part).unwrap_err();
        assert!(e.is_torn() && model.muon.torn().is_some(), "{e}");
        let report = model.muon.restore_matching(&checkpoint).unwrap();
        assert!(report.is_complete() && model.muon.torn().is_none());
        break;
    }
    assert!(torn);
}

fn steps_without_muon<D: Target>() -> Bits {
    let adamw = [Rule::from(AdamWRule::default())];
    let params = [("b", 0, Dtype::F32), ("e", 0, Dtype::Bf16)];
    let mut refused = Named::<D>::new(MuonConfig::default(), &adamw, &params);
    let before = refused.bits();
    let e = refused.try_step(1, &["b", "e"]).unwrap_err();
    assert!(e.is_invalid_config() && e.to_string().contains("MuonConfig::without_muon"), "{e}");
    assert_eq!(refused.bits(), before);
    let empty = [Rule::from(plain()), Rule::from(plain())];
    let mut refused = Named::<D>::new(MuonConfig::default(), &empty, &BOTH[..1]);
    let e = refused.try_step(1, &["w"]).unwrap_err();
    assert!(
        e.to_string().contains("group `group 1`") && e.to_string().contains("without_muon"),
        "{e}"
    );

    // AdamW alone steps as beside a matrix, resumes, and takes a matrix later.
    let config = MuonConfig { without_muon: WithoutMuon::Allow, ..MuonConfig::default() };
    let rules = [Rule::from(AdamWRule::default()), Rule::from(plain())];
    let mut alone = Named::<D>::new(config.clone(), &rules, &params);
    let beside = [params[0], params[1], ("w", 1, Dtype::F32)];
    let mut mixed = Named::<D>::new(MuonConfig::default(), &rules, &beside);
    for seed in 1..3 {
        alone.step(seed, &["b", "e"]);
        mixed.step(seed, &["b", "e"]);
        assert_eq!(alone.bits(), mixed.bits()[..2]);
    }
    assert!(alone.muon.plan().unwrap().buckets().is_empty());
    let mut resumed = Named::<D>::new(config.clone(), &rules, &params);
    resumed.resume_from(&mut alone);
    resumed.add("w", 1, Dtype::F32);
    resumed.step(3, &["b", "e", "w"]);
    mixed.step(3, &["b", "e", "w"]);
    assert_eq!(resumed.bits(), mixed.bits());
    // Nothing at all, too.
    let mut nothing = Named::<D>::new(config, &rules, &[]);
    nothing.step(1, &[]);
    nothing.muon.checkpoint().unwrap();
    resumed.bits()
}

#[test]
fn an_optimizer_without_a_matrix_steps_where_the_caller_says_so() {
    on_both!(steps_without_muon);
}

#[test]
fn adamw_alone_is_captured_and_replayed() {
    let run = |captured: bool| {
        with_device(9, |_| {
            let config = MuonConfig { without_muon: WithoutMuon::Allow, ..MuonConfig::default() };
            let mut muon = Cuda::open(config);
            let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
            let id = muon.add_param(rest, ParamSpec::new("b", &[33])).unwrap();
            let stream = stream(&muon);
            let mut p = Offset::new(&stream, &Random::new(1).normals(33), 0);
            let g = Offset::new(&stream, &Random::new(2).normals(33), 0);
            let options = StepOptions { clip_norm: Some(0.5), ..StepOptions::default() };
            let mut graph = None;
            for i in 0..3 {
                let tensors = &mut [StepTensor::new(id, p.param(), g.grad())];
                if captured && i == 1 {
                    graph = Some(muon.capture_step(&options, tensors).unwrap());
                }
                match &graph {
                    Some(graph) => muon.replay_step(graph, &options, tensors).unwrap(),
                    None => muon.step(&options, tensors).unwrap(),
                };
                stream.synchronize().unwrap();
            }
            p.download().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        })
    };
    assert_eq!(run(true), run(false));
}
