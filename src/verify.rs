//! Replays recorded optimizer trajectories and compares: a user's proof that a port from PyTorch is faithful.
//!
//! A recording is a JSON file and a safetensors file of the same name beside it; `tests/data/` holds two made
//! with PyTorch, and docs/trajectories.md describes the form.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;

use crate::checkpoint::TensorFile;
use crate::coefficients::{CoefficientSchedule, Normalization, OddPolynomial, Tail};
use crate::config::{
    AdamWRule, MethodChoice, MomentumMode, MuonConfig, MuonRule, Nesterov, Orthogonalizer, Rule,
    WeightDecayMode,
};
use crate::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::cuda::Cuda;
use crate::device::{HostBuffer, StepTensor};
use crate::error::{Error, Result, ResultExt};
use crate::optimizer::{Muon, ParamSpec, StepOptions};
use crate::precision::{Dtype, Precision};
use crate::reference::{self, Matrix};
use crate::scale::UpdateScale;
use crate::shape::Layout;
use crate::transfer::Transfer;

/// Where a recording is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The f64 oracle.
    Reference,
    /// The CPU device.
    Cpu {
        /// What the iterate is stored in.
        precision: Precision,
        /// Number of threads, at least 1.
        threads: usize,
    },
    /// The CUDA device.
    #[cfg(feature = "cuda")]
    Cuda {
        /// What the iterate is stored in.
        precision: Precision,
        /// Number of the device.
        ordinal: usize,
    },
}

impl Target {
    /// What the iterate is stored in; `None` for the oracle, which is f64 throughout.
    #[must_use]
    pub fn precision(&self) -> Option<Precision> {
        match *self {
            Self::Reference => None,
            Self::Cpu { precision, .. } => Some(precision),
            #[cfg(feature = "cuda")]
            Self::Cuda { precision, .. } => Some(precision),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference => f.write_str("reference"),
            Self::Cpu { precision, .. } => write!(f, "cpu, {precision}"),
            #[cfg(feature = "cuda")]
            Self::Cuda { precision, ordinal } => write!(f, "cuda:{ordinal}, {precision}"),
        }
    }
}

/// Which recorded result must be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Against {
    /// The algorithm in f64 throughout (default).
    #[default]
    F64,
    /// The framework's own result with its bf16 iteration; the distance to f64 is checked as well.
    Bf16,
}

/// What to check, and how closely.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VerifyOptions {
    /// Where to replay.
    pub target: Target,
    /// What to compare with.
    pub against: Against,
    /// What the momentum is stored in: f32 or bf16. The oracle's is f64 and takes f32 for an answer alone.
    pub momentum_dtype: Dtype,
    /// Largest relative error of the update; `None` for [`VerifyOptions::default_tolerance`].
    pub tolerance: Option<f64>,
}

impl VerifyOptions {
    /// Compares with f64 under the documented tolerance, momentum in f32.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self { target, against: Against::F64, momentum_dtype: Dtype::F32, tolerance: None }
    }

    /// The documented tolerance for the error of an update against f64.
    ///
    /// * `reference`: 1e-12, rounding of f64.
    /// * f32: 1e-4 for Muon (five iterations amplify f32 rounding by slopes of a few hundred), 1e-5 for AdamW.
    /// * tf32: 5e-3, fp16: 4e-3, bf16: 0.02: 10 or 7 bits of mantissa under the same amplification.
    /// * bf16 momentum: 0.01 at least, since the direction then has errors of up to 2⁻⁹ at each of five steps.
    #[must_use]
    pub fn default_tolerance(&self, optimizer: OptimizerKind) -> f64 {
        let iterate = match (self.target.precision(), optimizer) {
            (None, _) => return 1e-12,
            (Some(_), OptimizerKind::AdamW) => return 1e-5,
            (Some(Precision::F32), OptimizerKind::Muon) => 1e-4,
            (Some(Precision::Tf32), OptimizerKind::Muon) => 0.005,
            (Some(Precision::Bf16), OptimizerKind::Muon) => 0.02,
            (Some(Precision::Fp16), OptimizerKind::Muon) => 0.004,
        };
        if self.momentum_dtype == Dtype::F32 { iterate } else { BF16_MOMENTUM.max(iterate) }
    }
}

/// One replayed trajectory.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseResult {
    /// Name in the recording.
    pub name: String,
    /// Shape of the parameter.
    pub shape: Vec<usize>,
    /// `‖param − param_f64‖_F / ‖param_f64 − param0‖_F`.
    pub error: f64,
    /// The same against the framework's bf16 result, where the recording has one.
    pub error_bf16: Option<f64>,
    /// How far the framework's own bf16 result lies from f64, where the recording has one.
    pub recorded_distance: Option<f64>,
    /// Relative error of the momentum buffer after the last step, where the recording has one.
    pub momentum_error: Option<f64>,
    /// What had to hold, each with its outcome.
    pub checks: Vec<Check>,
}

impl CaseResult {
    /// Whether every check held.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.held)
    }
}

/// One condition on a case.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The condition in words, with its numbers.
    pub what: String,
    /// Whether it held.
    pub held: bool,
}

/// Tolerance where the momentum is rounded to bf16.
const BF16_MOMENTUM: f64 = 0.01;

/// Tolerance for the distance between two bf16 iterations with different store points.
const AGAINST_BF16: f64 = 0.03;

/// An emulated bf16 iteration must err about as much as the framework's: rounding that is not there is a
/// mistake as well. Measured 0.91 to 1.20 over the cases of `tests/data/torch_muon.json`.
const BF16_RATIO: std::ops::RangeInclusive<f64> = 0.5..=2.0;

/// Which optimizer a recording is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Muon.
    Muon,
    /// AdamW.
    AdamW,
}

/// A recording.
#[derive(Debug)]
pub struct Trajectories {
    header: Header,
    tensors: TensorFile,
}

#[derive(Debug, Deserialize)]
struct Header {
    optimizer: OptimizerKind,
    #[serde(default)]
    framework: String,
    #[serde(default)]
    ns_coefficients: Vec<f64>,
    ns_steps: Option<usize>,
    eps: Option<f64>,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    rows: Option<usize>,
    cols: Option<usize>,
    shape: Option<Vec<usize>>,
    lr: f64,
    weight_decay: f64,
    momentum: Option<f64>,
    nesterov: Option<bool>,
    adjust_lr_fn: Option<String>,
    betas: Option<(f64, f64)>,
    eps: Option<f64>,
    #[serde(default = "five")]
    steps: usize,
    rel_bf16_vs_f64_of_update: Option<f64>,
    #[serde(flatten)]
    _other: BTreeMap<String, serde_json::Value>,
}

fn five() -> usize {
    5
}

impl Trajectories {
    /// Reads `path` (JSON) and the safetensors file beside it.
    ///
    /// # Errors
    /// A file that cannot be read, JSON of another form, a safetensors file that is damaged.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::io(path, "read trajectories", e))?;
        let header = Header::parse(&text).context(|| path.display())?;
        let tensors = TensorFile::load(path.with_extension("safetensors"))
            .context(|| format!("tensors of {}", path.display()))?;
        Ok(Self { header, tensors })
    }

    /// A recording from its two parts.
    ///
    /// # Errors
    /// JSON of another form, or without a case.
    pub fn new(json: &str, tensors: TensorFile) -> Result<Self> {
        Ok(Self { header: Header::parse(json)?, tensors })
    }

    /// Which optimizer was recorded.
    #[must_use]
    pub fn optimizer(&self) -> OptimizerKind {
        self.header.optimizer
    }

    /// The framework and its version, as the recording says.
    #[must_use]
    pub fn framework(&self) -> &str {
        &self.header.framework
    }

    /// Replays every case.
    ///
    /// # Errors
    /// A case whose tensors are missing or of another shape, or whose hyper-parameters are out of range. A
    /// case that misses its tolerance is not an error: see [`CaseResult::passed`].
    pub fn verify(&self, options: &VerifyOptions) -> Result<Vec<CaseResult>> {
        self.header
            .cases
            .iter()
            .map(|case| self.verify_case(case, options).context(|| format!("case `{}`", case.name)))
            .collect()
    }

    fn verify_case(&self, case: &Case, options: &VerifyOptions) -> Result<CaseResult> {
        let shape = case.shape()?;
        let tensor = |what: &str| self.tensor(case, what, &shape);
        let param0 = self.narrow(case, "param0", &shape)?;
        let grads = (0..case.steps)
            .map(|i| self.narrow(case, &format!("grad{i}"), &shape))
            .collect::<Result<Vec<_>>>()?;
        let rule = self.rule(case)?;
        rule.validate()?;
        let replayed = replay(&rule, options, &shape, &param0, &grads)?;

        let expected = tensor("param_f64")?;
        let error = update_error(&replayed.param, &expected, &param0);
        let optional = |what: &str| -> Result<Option<Vec<f64>>> {
            let name = format!("{}.{what}", case.name);
            if self.tensors.names().any(|n| n == name) { tensor(what).map(Some) } else { Ok(None) }
        };
        let error_bf16 =
            optional("param_bf16ns")?.map(|e| update_error(&replayed.param, &e, &param0));
        let zeros = vec![0.0; param0.len()];
        let momentum_error = match (&replayed.momentum, optional("momentum_f64")?) {
            (Some(found), Some(expected)) => Some(update_error(found, &expected, &zeros)),
            _ => None,
        };
        let mut result = CaseResult {
            name: case.name.clone(),
            shape,
            error,
            error_bf16,
            recorded_distance: case.rel_bf16_vs_f64_of_update,
            momentum_error,
            checks: Vec::new(),
        };
        result.checks = self.checks(&result, options)?;
        Ok(result)
    }

    fn checks(&self, case: &CaseResult, options: &VerifyOptions) -> Result<Vec<Check>> {
        let tolerance =
            options.tolerance.unwrap_or(options.default_tolerance(self.header.optimizer));
        let at_most = |what: &str, x: f64, limit: f64| Check {
            what: format!("{what} {x:.3e} <= {limit:.1e}"),
            held: x <= limit,
        };
        let mut checks = vec![at_most("error", case.error, tolerance)];
        if let Some(error) = case.momentum_error {
            checks.push(at_most("momentum error", error, tolerance));
        }
        // The recorded distance is that of a bf16 iterate under f32 momentum.
        let is_comparable = options.target.precision() == Some(Precision::Bf16)
            && options.momentum_dtype == Dtype::F32;
        if let (true, Some(recorded)) = (is_comparable, case.recorded_distance) {
            let ratio = case.error / recorded;
            checks.push(Check {
                what: format!(
                    "error over recorded distance {ratio:.2} in {}..{}",
                    BF16_RATIO.start(),
                    BF16_RATIO.end()
                ),
                held: BF16_RATIO.contains(&ratio),
            });
        }
        if options.against == Against::Bf16 {
            let error = case.error_bf16.ok_or_else(|| {
                Error::invalid_config("the recording has no `param_bf16ns` to compare with")
                    .context(format!("case `{}`", case.name))
            })?;
            let limit = options.tolerance.unwrap_or(AGAINST_BF16);
            checks.push(at_most("distance to recorded bf16", error, limit));
        }
        Ok(checks)
    }

    fn tensor(&self, case: &Case, what: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let name = format!("{}.{what}", case.name);
        let found = self.tensors.shape(&name)?;
        if found != shape {
            return Err(Error::shape_mismatch(
                format!("tensor `{name}`"),
                format!("{shape:?}"),
                format!("{found:?}"),
            ));
        }
        self.tensors.f64(&name)
    }

    fn narrow(&self, case: &Case, what: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.tensor(case, what, shape)?;
        self.tensors.f32(&format!("{}.{what}", case.name))
    }

    fn rule(&self, case: &Case) -> Result<Rule> {
        let missing = |what: &str| {
            Error::parse(format!(
                "the recording does not give `{what}`, which this optimizer needs"
            ))
        };
        match self.header.optimizer {
            OptimizerKind::AdamW => {
                let (beta1, beta2) = case.betas.ok_or_else(|| missing("betas"))?;
                let eps = case.eps.ok_or_else(|| missing("eps"))?;
                Ok(AdamWRule { lr: case.lr, beta1, beta2, eps, weight_decay: case.weight_decay }
                    .into())
            }
            OptimizerKind::Muon => {
                let polynomial = OddPolynomial::new(&self.header.ns_coefficients)?;
                let iterations = self.header.ns_steps.ok_or_else(|| missing("ns_steps"))?;
                let schedule = CoefficientSchedule::new(
                    "recorded",
                    vec![polynomial],
                    Normalization::Frobenius { safety: 1.0 },
                    Tail::RepeatLast,
                    self.header.framework.clone(),
                )?;
                let update_scale = match case.adjust_lr_fn.as_deref() {
                    None | Some("original") => UpdateScale::Original,
                    Some("match_rms_adamw") => UpdateScale::MatchRmsAdamW,
                    Some(other) => {
                        return Err(Error::unknown_name(
                            "adjust_lr_fn",
                            other,
                            ["original", "match_rms_adamw"],
                        ));
                    }
                };
                let nesterov = case.nesterov.ok_or_else(|| missing("nesterov"))?;
                Ok(MuonRule {
                    lr: case.lr,
                    momentum: case.momentum.ok_or_else(|| missing("momentum"))?,
                    momentum_mode: MomentumMode::Ema,
                    nesterov: if nesterov { Nesterov::On } else { Nesterov::Off },
                    weight_decay: case.weight_decay,
                    weight_decay_mode: WeightDecayMode::Decoupled,
                    update_scale,
                    orthogonalizer: Orthogonalizer::Polynomial {
                        schedule,
                        iterations: Some(iterations),
                    },
                    method: MethodChoice::Auto,
                    norm_floor: self.header.eps.ok_or_else(|| missing("eps"))?,
                }
                .into())
            }
        }
    }
}

impl Header {
    fn parse(json: &str) -> Result<Self> {
        let header: Self = serde_json::from_str(json)
            .map_err(|e| Error::parse(format!("not a recording of trajectories: {e}")))?;
        if header.cases.is_empty() {
            return Err(Error::parse("not a recording of trajectories: it has no case"));
        }
        Ok(header)
    }
}

impl Case {
    fn shape(&self) -> Result<Vec<usize>> {
        match (&self.shape, self.rows, self.cols) {
            (Some(shape), _, _) => Ok(shape.clone()),
            (None, Some(rows), Some(cols)) => Ok(vec![rows, cols]),
            _ => Err(Error::parse("a case gives `shape`, or `rows` and `cols`")),
        }
    }
}

struct Replayed {
    param: Vec<f64>,
    momentum: Option<Vec<f64>>,
}

fn replay(
    rule: &Rule,
    options: &VerifyOptions,
    shape: &[usize],
    param0: &[f32],
    grads: &[Vec<f32>],
) -> Result<Replayed> {
    let config = |precision| MuonConfig {
        precision: Some(precision),
        momentum_dtype: options.momentum_dtype,
        ..MuonConfig::default()
    };
    match options.target {
        Target::Reference if options.momentum_dtype != Dtype::F32 => Err(Error::invalid_config(
            "the oracle keeps its momentum in f64: leave its dtype as it is",
        )),
        Target::Reference => replay_reference(rule, shape, param0, grads),
        Target::Cpu { precision, threads } => {
            replay_on(Cpu::with_threads(threads)?, config(precision), rule, shape, param0, grads)
        }
        #[cfg(feature = "cuda")]
        Target::Cuda { precision, ordinal } => {
            replay_on(Cuda::new(ordinal)?, config(precision), rule, shape, param0, grads)
        }
    }
}

fn replay_on<D: Transfer>(
    device: D,
    config: MuonConfig,
    rule: &Rule,
    shape: &[usize],
    param0: &[f32],
    grads: &[Vec<f32>],
) -> Result<Replayed> {
    let mut muon = Muon::new(device, config)?;
    let group = muon.add_group("recorded", rule.clone())?;
    let id = muon.add_param(group, ParamSpec::new("param", shape))?;
    if !rule.is_muon() {
        // An optimizer that orthogonalizes nothing is refused; a placeholder makes this one whole.
        let muon_rule = muon.add_group("placeholder", MuonRule::default())?;
        muon.add_param(muon_rule, ParamSpec::new("placeholder", &[1, 1]))?;
    }
    let mut param = muon.device().upload(param0)?;
    for grad in grads {
        let grad = muon.device().upload(grad)?;
        let mut tensors = [StepTensor::new(id, D::param(&mut param), D::grad(&grad))];
        muon.step(&StepOptions::default(), &mut tensors)?;
    }
    let mut stepped = vec![0.0; param0.len()];
    muon.device().read(&param, &mut stepped)?;
    let momentum = match &muon.export_state(id)?.buffers[..] {
        [("momentum_buffer", HostBuffer::F32(m)), ..] => Some(widen(m)),
        [("momentum_buffer", HostBuffer::Bf16(m)), ..] => Some(widen(m)),
        _ => None,
    };
    Ok(Replayed { param: widen(&stepped), momentum })
}

fn widen(x: &[impl Into<f64> + Copy]) -> Vec<f64> {
    x.iter().map(|x| (*x).into()).collect()
}

fn replay_reference(
    rule: &Rule,
    shape: &[usize],
    param0: &[f32],
    grads: &[Vec<f32>],
) -> Result<Replayed> {
    match rule {
        Rule::AdamW(rule) => {
            let mut param: Vec<f64> = param0.iter().map(|x| f64::from(*x)).collect();
            let (mut m, mut v) = (vec![0.0; param.len()], vec![0.0; param.len()]);
            for (step, grad) in (1..).zip(grads) {
                let grad: Vec<f64> = grad.iter().map(|x| f64::from(*x)).collect();
                reference::adamw_step(rule, rule.lr, step, &mut param, &mut m, &mut v, &grad);
            }
            Ok(Replayed { param, momentum: None })
        }
        Rule::Muon(rule) => {
            let [rows, cols] = *shape else {
                return Err(Error::shape_mismatch(
                    "shape of a recorded Muon parameter",
                    "2 dimensions",
                    format!("{shape:?}"),
                ));
            };
            let mut param = Matrix::from_f32(rows, cols, param0)?;
            let mut momentum = Matrix::zeros(rows, cols);
            for grad in grads {
                let grad = Matrix::from_f32(rows, cols, grad)?;
                reference::muon_step(
                    rule,
                    Layout::OutIn,
                    rule.lr,
                    &mut param,
                    &mut momentum,
                    &grad,
                );
            }
            Ok(Replayed { param: param.data().to_vec(), momentum: Some(momentum.data().to_vec()) })
        }
    }
}

/// `‖found − expected‖_F / ‖expected − start‖_F`.
fn update_error(found: &[f64], expected: &[f64], start: &[impl Into<f64> + Copy]) -> f64 {
    let norm = |terms: &mut dyn Iterator<Item = f64>| terms.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let update = norm(&mut expected.iter().zip(start).map(|(a, b)| a - (*b).into()));
    if error == 0.0 { 0.0 } else { error / update }
}
