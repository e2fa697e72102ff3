//! Replays recorded optimizer trajectories and compares: a user's proof that a port from PyTorch is faithful.
//!
//! A recording is a JSON file and a safetensors file of the same name beside it; `tests/data/` holds two made
//! with PyTorch, and docs/trajectories.md describes the form.

mod fields;
mod judge;
mod matrices;
mod recording;
mod replay;

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::checkpoint::{TensorFile, read_text_file};
use crate::error::{Error, Result, ResultExt};
use crate::precision::{Dtype, Precision};
use crate::reference;
use judge::{BF16_MOMENTUM, Found};
use matrices::Matrices;
use recording::{Case, Header};
use replay::{Inputs, replay};

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

    /// The documented tolerance for the error of an update against f64, before what a case adds: a steep schedule, a thin
    /// matrix, a framework's own distance, bf16 parameters ([`CaseResult::tolerance`]; NUMERICS.md has the reasons).
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
    /// `‖param − param_f64‖_F / ‖param_f64 − param0‖_F`; against the framework's own result where the recording has none in
    /// f64.
    pub error: f64,
    /// What `error` may be at most.
    pub tolerance: f64,
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

/// Which optimizer a recording is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Muon.
    Muon,
    /// AdamW.
    AdamW,
}

/// A case takes less than a kilobyte of JSON; a file of more than this is something else.
const MOST_BYTES: u64 = 64 << 20;

/// A recording.
#[derive(Debug)]
pub struct Trajectories {
    header: Header,
    tensors: TensorFile,
}

impl Trajectories {
    /// Reads `path` (JSON) and the safetensors file beside it.
    ///
    /// # Errors
    /// A file that cannot be read, JSON of another form, a safetensors file that is damaged.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_text_file(path, MOST_BYTES)?;
        let header = Header::parse(&text).context(|| path.display())?;
        let tensors = TensorFile::load(path.with_extension("safetensors"))
            .context(|| format!("tensors of {}", path.display()))?;
        Ok(Self { header, tensors })
    }

    /// A recording from its two parts.
    ///
    /// # Errors
    /// JSON of another form, without a case, or with a field that no recording has.
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
            .map(|(name, fields)| {
                self.verify_case(name, fields, options).context(|| format!("case `{name}`"))
            })
            .collect()
    }

    fn verify_case(
        &self,
        name: &str,
        fields: &Map<String, Value>,
        options: &VerifyOptions,
    ) -> Result<CaseResult> {
        let case = self.header.case(name, fields)?;
        let case = &case;
        let mut inputs = self.inputs(case)?;
        let param0 = inputs.param0.clone();
        let matrices = match self.header.optimizer {
            OptimizerKind::Muon => Some(Matrices::new(case)?),
            OptimizerKind::AdamW => None,
        };
        if let Some(matrices) = &matrices {
            inputs.param0 = matrices.gather(inputs.param0);
            inputs.momentum0 = inputs.momentum0.map(|m| matrices.gather(m));
            for grad in &mut inputs.grads {
                *grad = grad.take().map(|g| matrices.gather(g));
            }
        }
        let mut replayed = replay(case, matrices.as_ref(), &inputs, options)?;
        if let Some(matrices) = &matrices {
            replayed.param = matrices.scatter(replayed.param);
            replayed.momentum = replayed.momentum.map(|m| matrices.scatter(m));
        }

        // What a bf16 parameter can show of a result that is recorded with more digits.
        let shown = |mut param: Vec<f64>| {
            if case.param_dtype == Dtype::Bf16 {
                param.iter_mut().for_each(|x| *x = reference::round_to_bf16(*x));
            }
            param
        };
        let bf16 = self.optional(case, "param_bf16ns")?.map(shown);
        let error_bf16 = bf16.as_ref().map(|e| update_error(&replayed.param, e, &param0));
        let (expected, framework) = match self.optional(case, "param_f64")?.map(shown) {
            Some(expected) => (expected, None),
            None => match (bf16, self.optional(case, "param_f32")?.map(shown)) {
                (Some(own), _) => (own, Some(Precision::Bf16)),
                (None, Some(own)) => (own, Some(Precision::F32)),
                (None, None) => {
                    return Err(Error::checkpoint(format!(
                        "the recording has no result to compare with: expected tensor `{name}.param_f64`, \
                         `{name}.param_bf16ns` or `{name}.param_f32`"
                    )));
                }
            },
        };
        let momentum = self.optional(case, "momentum_f64")?;
        let zeros = vec![0.0; param0.len()];
        let found = Found {
            short: matrices.and_then(|m| m.blocks.iter().map(|b| b.shape.short()).min()),
            steps: case.rules.len(),
            expected: &expected,
            framework,
            update: distance(&expected, &param0),
        };
        let mut result = CaseResult {
            name: case.name.clone(),
            shape: case.shape.clone(),
            error: update_error(&replayed.param, &expected, &param0),
            tolerance: judge::tolerance(case, &found, self.header.optimizer, options),
            error_bf16,
            recorded_distance: case.recorded_distance,
            momentum_error: match (&replayed.momentum, momentum) {
                (Some(found), Some(expected)) => Some(update_error(found, &expected, &zeros)),
                _ => None,
            },
            checks: Vec::new(),
        };
        result.checks = judge::checks(&result, case, &found, options)?;
        Ok(result)
    }

    /// The tensors that a replay starts from.
    fn inputs(&self, case: &Case) -> Result<Inputs> {
        let param0 = self.narrow(case, "param0")?;
        if case.param_dtype == Dtype::Bf16
            && let Some(x) =
                param0.iter().find(|x| half::bf16::from_f32(**x).to_f32().to_bits() != x.to_bits())
        {
            return Err(Error::dtype_mismatch(
                format!("tensor `{}.param0` (`param_dtype` is bf16)", case.name),
                "values that bf16 holds exactly",
                x,
            ));
        }
        let grads = (0..case.rules.len())
            .map(|step| {
                let what = format!("grad{step}");
                if self.has(case, &what) { self.narrow(case, &what).map(Some) } else { Ok(None) }
            })
            .collect::<Result<Vec<_>>>()?;
        if grads.iter().all(Option::is_none) {
            return Err(Error::checkpoint(format!(
                "the recording has no gradient of this case, neither `{0}.grad0` nor a later one",
                case.name
            )));
        }
        // A gradient that no step takes is a wrong number of steps, or a name with a slip in it.
        let prefix = format!("{}.grad", case.name);
        let untaken = self.tensors.names().find(|name| {
            name.strip_prefix(&prefix)
                .is_some_and(|step| step.parse::<usize>().map_or(true, |step| step >= grads.len()))
        });
        if let Some(name) = untaken {
            return Err(Error::checkpoint(format!(
                "tensor `{name}` is the gradient of no step: the case has {} of them, from `{prefix}0` on",
                grads.len()
            )));
        }
        let momentum0 = self.optional(case, "momentum0")?;
        if momentum0.is_some() && self.header.optimizer == OptimizerKind::AdamW {
            return Err(Error::unsupported(format!(
                "tensor `{}.momentum0` belongs to recordings of Muon; AdamW starts from zeros here",
                case.name
            )));
        }
        Ok(Inputs { param0, momentum0, grads })
    }

    fn has(&self, case: &Case, what: &str) -> bool {
        self.tensors.shape(&format!("{}.{what}", case.name)).is_ok()
    }

    /// The tensor of a case, if it is there; it must then have the case's shape.
    fn optional(&self, case: &Case, what: &str) -> Result<Option<Vec<f64>>> {
        if self.has(case, what) { self.tensor(case, what).map(Some) } else { Ok(None) }
    }

    fn tensor(&self, case: &Case, what: &str) -> Result<Vec<f64>> {
        let name = format!("{}.{what}", case.name);
        let found = self.tensors.shape(&name)?;
        if found != case.shape {
            return Err(Error::shape_mismatch(
                format!("tensor `{name}`"),
                format!("{:?}", case.shape),
                format!("{found:?}"),
            ));
        }
        self.tensors.f64(&name)
    }

    fn narrow(&self, case: &Case, what: &str) -> Result<Vec<f32>> {
        self.tensor(case, what)?;
        self.tensors.f32(&format!("{}.{what}", case.name))
    }
}

/// `‖a − b‖_F`.
fn distance(a: &[f64], b: &[impl Into<f64> + Copy]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - (*b).into()).powi(2)).sum::<f64>().sqrt()
}

/// `‖found − expected‖_F / ‖expected − start‖_F`.
fn update_error(found: &[f64], expected: &[f64], start: &[impl Into<f64> + Copy]) -> f64 {
    let error = distance(found, expected);
    if error == 0.0 { 0.0 } else { error / distance(expected, start) }
}
