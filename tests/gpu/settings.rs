//! What a user sets: rules from files, learning-rate schedules and update scales mean the same on every device.

use muon_cuda::{
    Cpu, Cuda, LrSchedule, Muon, MuonConfig, MuonRule, ParamId, ParamSpec, Precision, Result, Rule,
    StepOptions, StepTensor, Transfer, UpdateScale,
};

use crate::device::with_device;
use crate::support::{Random, bits, rule};

const SHAPE: [usize; 2] = [6, 9];

/// A parameter of ones under a rule, stepped by the same gradients each time.
struct Run<D: Transfer> {
    muon: Muon<D>,
    id: ParamId,
    param: D::Tensor,
    grads: Vec<D::Tensor>,
    len: usize,
}

impl<D: Transfer> Run<D> {
    fn new(
        device: D,
        config: MuonConfig,
        rule: impl Into<Rule>,
        spec: ParamSpec,
        len: usize,
    ) -> Self {
        let mut muon = Muon::new(device, config).unwrap();
        let group = muon.add_group("hidden", rule).unwrap();
        let id = muon.add_param(group, spec).unwrap();
        let mut random = Random::new(9);
        let param = muon.device().upload(&vec![1.0; len]).unwrap();
        let grads = (0..3).map(|_| muon.device().upload(&random.normals(len)).unwrap()).collect();
        Self { muon, id, param, grads, len }
    }

    fn plain(device: D, config: MuonConfig, rule: impl Into<Rule>) -> Self {
        Self::new(device, config, rule, ParamSpec::new("w", &SHAPE), SHAPE[0] * SHAPE[1])
    }

    fn step(&mut self, number: usize, options: &StepOptions) -> Result<()> {
        let grad = &self.grads[number % self.grads.len()];
        let tensor = StepTensor::new(self.id, D::param(&mut self.param), D::grad(grad));
        self.muon.step(options, &mut [tensor]).map(drop)
    }

    fn read(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len];
        self.muon.device().read(&self.param, &mut out).unwrap();
        out
    }
}

/// The same on the CPU and on the GPU.
fn on_both(test: impl Fn(&dyn Fn(MuonConfig, Rule) -> Box<dyn Steps>)) {
    test(&|config, rule| Box::new(Run::plain(Cpu::new().unwrap(), config, rule)));
    with_device(1, |_| {
        test(&|config, rule| Box::new(Run::plain(Cuda::new(0).unwrap(), config, rule)));
    });
}

/// A run on some device.
trait Steps {
    fn step(&mut self, number: usize, options: &StepOptions) -> Result<()>;
    fn set_lr(&mut self, lr: f64);
    fn read(&self) -> Vec<f32>;
}

impl<D: Transfer> Steps for Run<D> {
    fn step(&mut self, number: usize, options: &StepOptions) -> Result<()> {
        Run::step(self, number, options)
    }

    fn set_lr(&mut self, lr: f64) {
        let group = self.muon.group_id("hidden").unwrap();
        self.muon.set_lr(group, lr).unwrap();
    }

    fn read(&self) -> Vec<f32> {
        Run::read(self)
    }
}

#[test]
fn a_run_from_files_is_the_run_by_hand() {
    let by_hand = MuonRule {
        lr: 0.05,
        weight_decay: 0.2,
        update_scale: UpdateScale::MatchRmsAdamW,
        ..rule("jordan")
    };
    let config = MuonConfig { precision: Some(Precision::Bf16), ..MuonConfig::default() };
    on_both(|make| {
        let file = toml::from_str(
            "rule = 'muon'\nlr = 0.05\nweight_decay = 0.2\nupdate_scale = 'match_rms_adamw'\northogonalizer = 'jordan'",
        )
        .unwrap();
        let mut read = make(toml::from_str("precision = 'bf16'").unwrap(), file);
        let mut written = make(
            serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap(),
            toml::from_str(&toml::to_string(&Rule::from(by_hand.clone())).unwrap()).unwrap(),
        );
        let mut expected = make(config.clone(), by_hand.clone().into());
        let options: StepOptions = serde_json::from_str(r#"{"clip_norm": 0.5}"#).unwrap();
        for number in 0..3 {
            read.step(number, &options).unwrap();
            written.step(number, &options).unwrap();
            let options = StepOptions { clip_norm: Some(0.5), ..StepOptions::default() };
            expected.step(number, &options).unwrap();
        }
        assert_ne!(expected.read(), vec![1.0; 54]);
        assert_eq!(bits(&read.read()), bits(&expected.read()));
        assert_eq!(bits(&written.read()), bits(&expected.read()));
    });
}

#[test]
fn a_schedule_is_the_rates_that_it_says() {
    let schedules = [
        LrSchedule::warmup_stable_decay(2, 3, 9).unwrap(),
        LrSchedule::piecewise_linear([(0, 0.0), (4, 2.0), (8, 0.5)]).unwrap(),
        LrSchedule::piecewise_constant([(0, 1.0), (3, 0.25)]).unwrap(),
        LrSchedule::from_fn("powers of two", |step| f64::powi(0.5, step as i32)),
    ];
    on_both(|make| {
        for schedule in &schedules {
            let start = MuonRule { lr: 0.5, ..rule("jordan") };
            let mut scheduled = make(MuonConfig::default(), start.clone().into());
            let mut by_hand = make(MuonConfig::default(), start.into());
            for number in 0..10 {
                let lr_factor = schedule.factor(number);
                let options = StepOptions { lr_factor, ..StepOptions::default() };
                scheduled.step(number as usize, &options).unwrap();
                by_hand.set_lr(0.5 * lr_factor);
                by_hand.step(number as usize, &StepOptions::default()).unwrap();
            }
            assert_eq!(bits(&scheduled.read()), bits(&by_hand.read()), "{schedule}");
        }
    });
}

#[test]
fn a_function_that_returns_no_rate_is_refused_and_nothing_steps() {
    on_both(|make| {
        let mut run = make(MuonConfig::default(), rule("jordan").into());
        run.step(0, &StepOptions::default()).unwrap();
        let before = run.read();
        for bad in [f64::NAN, f64::INFINITY, -0.5] {
            let schedule = LrSchedule::from_fn("bad", move |_| bad);
            let options = StepOptions { lr_factor: schedule.factor(1), ..StepOptions::default() };
            let e = run.step(1, &options).unwrap_err();
            assert!(e.is_invalid_config() && e.to_string().contains("lr_factor"), "{e}");
        }
        assert_eq!(bits(&run.read()), bits(&before));
    });
}

/// KellerJordan/Muon scales a convolution by the height and width of its kernel; see [`UpdateScale::Original`].
#[test]
fn convolutions_step_by_fan_in_of_all_inputs_and_as_keller_jordan_without_a_scale() {
    fn updates<D: Transfer>(make: impl Fn() -> D) -> [Vec<f32>; 2] {
        [UpdateScale::Original, UpdateScale::None].map(|update_scale| {
            let rule = MuonRule { lr: 1.0, weight_decay: 0.0, update_scale, ..rule("jordan") };
            let spec = ParamSpec::new("conv", &[64, 3, 3, 3]);
            let mut run = Run::new(make(), MuonConfig::default(), rule, spec, 64 * 27);
            run.step(0, &StepOptions::default()).unwrap();
            run.read().iter().map(|x| x - 1.0).collect()
        })
    }
    let check = |[ours, his]: [Vec<f32>; 2]| {
        let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let difference: Vec<f32> = ours.iter().zip(&his).map(|(a, b)| a - b).collect();
        let away = norm(&difference) / norm(&his);
        // √(64/27) − 1, up to the rounding of parameters near 1.
        assert!((away - 0.539_600_717).abs() < 1e-5, "{away}");
    };
    check(updates(|| Cpu::new().unwrap()));
    with_device(1, |_| check(updates(|| Cuda::new(0).unwrap())));
}
