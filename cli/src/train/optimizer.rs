//! From a row of the comparison to steps: which rule each parameter gets, and who carries it out.

use anyhow::{Context as _, Result, anyhow};
use muon_cuda::reference::{self, Matrix};
use muon_cuda::spectrum::SpectrumRecord;
use muon_cuda::{
    AdamWRule, Cpu, Layout, MomentumMode, MuonConfig, MuonRule, Orthogonalizer, RoutingRule, Rule,
    UpdateScale,
};

use super::config::{Config, Kind, MuonMethod, OptimizerConfig};
use super::device_stepper::{DeviceStepper, Steps};
use super::param::Param;
use super::store::{Numbers, Stored, Tensors};
use crate::devices::DeviceName;
use crate::exit::usage;

/// The rule of one parameter.
pub(crate) struct Assignment {
    pub(crate) group: String,
    pub(crate) rule: Rule,
    /// Two dimensions; a bias is a matrix of one row.
    pub(crate) shape: Vec<usize>,
}

fn assignments(row: &OptimizerConfig, params: &[Param]) -> Result<Vec<Assignment>> {
    let adamw = |lr, beta1| {
        Rule::from(AdamWRule { lr, beta1, weight_decay: row.weight_decay, ..AdamWRule::default() })
    };
    let routing = RoutingRule::default();
    if let Kind::Muon { method } = &row.kind {
        check_layers(method, params, &routing)?;
    }
    params
        .iter()
        .map(|p| {
            let hidden = routing.route(&p.name, &p.shape).is_muon();
            let (group, rule) = match &row.kind {
                Kind::GradientDescent => ("all".to_owned(), Rule::from(gradient_descent(row))),
                Kind::AdamW => ("all".to_owned(), adamw(row.lr, row.momentum)),
                Kind::Muon { method } if hidden => {
                    let (pattern, method) =
                        method.of_param(&p.name).ok_or_else(|| undecided(&p.name))?;
                    let orthogonalizer = method.orthogonalizer()?;
                    let rule = MuonRule {
                        lr: row.lr,
                        momentum: row.momentum,
                        weight_decay: row.weight_decay,
                        orthogonalizer,
                        ..MuonRule::default()
                    };
                    let group = pattern.map_or("hidden".to_owned(), |p| format!("hidden, {p}"));
                    (group, Rule::from(rule))
                }
                Kind::Muon { .. } => {
                    ("rest".to_owned(), adamw(row.adamw_lr, AdamWRule::default().beta1))
                }
            };
            let shape = match *p.shape.as_slice() {
                [n] if rule.is_muon() => vec![1, n],
                _ => p.shape.clone(),
            };
            Ok(Assignment { group, rule, shape })
        })
        .collect()
}

/// Every hidden matrix has a pattern, and every pattern decides about one: what decides nothing is a misspelling.
///
/// # Errors
/// Otherwise, with the names.
fn check_layers(method: &MuonMethod, params: &[Param], routing: &RoutingRule) -> Result<()> {
    let MuonMethod::PerLayer { name, layers } = method else { return Ok(()) };
    let hidden: Vec<&str> = params
        .iter()
        .filter(|p| routing.route(&p.name, &p.shape).is_muon())
        .map(|p| p.name.as_str())
        .collect();
    if let Some(param) = hidden.iter().find(|p| method.of_param(p).is_none()) {
        return Err(undecided(param)).with_context(|| format!("schedules `{name}`"));
    }
    let decides = |pattern: &str| {
        hidden.iter().any(|p| method.of_param(p).is_some_and(|(by, _)| by == Some(pattern)))
    };
    match layers.iter().find(|l| !decides(&l.param)) {
        Some(layer) => Err(usage(format!(
            "schedules `{name}`: the pattern `{}` decides about no hidden matrix; they are {}",
            layer.param,
            hidden.join(", ")
        ))),
        None => Ok(()),
    }
}

fn undecided(param: &str) -> anyhow::Error {
    usage(format!(
        "no pattern matches the hidden matrix `{param}`; add a row for it, or a last one for `*`"
    ))
}

/// Plain gradient descent is Muon with the identity for an orthogonalizer and a sum for a momentum.
fn gradient_descent(row: &OptimizerConfig) -> MuonRule {
    MuonRule {
        lr: row.lr,
        momentum: row.momentum,
        momentum_mode: MomentumMode::Sum,
        weight_decay: row.weight_decay,
        update_scale: UpdateScale::None,
        orthogonalizer: Orthogonalizer::Identity,
        ..MuonRule::default()
    }
}

/// Steps all parameters of a model and can tell and take its state.
pub(crate) enum Stepper {
    /// The library's optimizer on a device.
    Device(Box<dyn Steps>),
    /// The library's f64 oracle: slow, independent of the rest.
    Reference(Vec<ReferenceParam>),
}

pub(crate) struct ReferenceParam {
    name: String,
    rule: Rule,
    rows: usize,
    cols: usize,
    /// The parameter in f64; the model has its rounding.
    param: Vec<f64>,
    /// Momentum, or first moment.
    first: Vec<f64>,
    /// Second moment; empty under the Muon rule.
    second: Vec<f64>,
    steps: u64,
}

impl Stepper {
    /// The optimizer of a row for the parameters of a model.
    ///
    /// # Errors
    /// Hyper-parameters outside their range, or a schedule that is not safe in the precision.
    pub(crate) fn new(config: &Config, row: &OptimizerConfig, params: &[Param]) -> Result<Self> {
        let assignments = assignments(row, params)?;
        let muon_config =
            MuonConfig { precision: Some(config.precision.into()), ..MuonConfig::default() };
        match config.device {
            DeviceName::Cpu => {
                let device = Cpu::with_threads(config.threads)?;
                let stepper = DeviceStepper::new(device, muon_config, params, assignments)?;
                Ok(Self::Device(Box::new(stepper)))
            }
            DeviceName::Reference => Ok(Self::Reference(
                params.iter().zip(assignments).map(|(p, a)| ReferenceParam::new(p, a)).collect(),
            )),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(gpu) => {
                let device = muon_cuda::Cuda::new(gpu.ordinal())?;
                let stepper = DeviceStepper::new(device, muon_config, params, assignments)?;
                Ok(Self::Device(Box::new(stepper)))
            }
        }
    }

    /// What is orthogonalized and what is not, for people.
    pub(crate) fn routing(&self) -> String {
        match self {
            Self::Device(s) => s.routing(),
            Self::Reference(all) => {
                let muon = all.iter().filter(|r| r.rule.is_muon()).count();
                format!("the oracle: {muon} of {} parameters under the Muon rule", all.len())
            }
        }
    }

    /// One step with the gradients that lie in the parameters.
    ///
    /// # Errors
    /// Of the library.
    pub(crate) fn step(&mut self, lr_factor: f64, params: &mut [Param]) -> Result<()> {
        match self {
            Self::Device(s) => s.step(lr_factor, params),
            Self::Reference(all) => {
                all.iter_mut().zip(params).try_for_each(|(r, p)| r.step(lr_factor, p))
            }
        }
    }

    /// Singular values of what the next step will orthogonalize; changes nothing. Empty for the oracle.
    ///
    /// # Errors
    /// Of the library.
    pub(crate) fn spectra(
        &mut self,
        lr_factor: f64,
        params: &mut [Param],
    ) -> Result<Vec<SpectrumRecord>> {
        match self {
            Self::Device(s) => s.spectra(lr_factor, params),
            Self::Reference(_) => Ok(Vec::new()),
        }
    }

    /// Everything that must outlive a step, by name.
    ///
    /// # Errors
    /// Of the device.
    pub(crate) fn save(&mut self, tensors: &mut Tensors) -> Result<()> {
        match self {
            Self::Device(s) => s.save(tensors),
            Self::Reference(all) => {
                for r in all {
                    tensors.insert(&key(&r.name, "param_f64"), Numbers::F64(r.param.clone()));
                    tensors.insert(&key(&r.name, "first"), Numbers::F64(r.first.clone()));
                    tensors.insert(&key(&r.name, "second"), Numbers::F64(r.second.clone()));
                    tensors.insert(&key(&r.name, "steps"), Numbers::U64(vec![r.steps]));
                }
                Ok(())
            }
        }
    }

    /// The counterpart of [`Stepper::save`].
    ///
    /// # Errors
    /// A missing buffer, or one of another type or length.
    pub(crate) fn load(&mut self, tensors: &Stored) -> Result<()> {
        match self {
            Self::Device(s) => s.load(tensors),
            Self::Reference(all) => {
                for r in all {
                    r.param = tensors.f64(&key(&r.name, "param_f64"), r.param.len())?;
                    r.first = tensors.f64(&key(&r.name, "first"), r.first.len())?;
                    r.second = tensors.f64(&key(&r.name, "second"), r.second.len())?;
                    r.steps = tensors.scalar(&key(&r.name, "steps"))?;
                }
                Ok(())
            }
        }
    }
}

pub(crate) fn key(param: &str, buffer: &str) -> String {
    format!("optimizer.{param}.{buffer}")
}

impl ReferenceParam {
    fn new(p: &Param, a: Assignment) -> Self {
        let (rows, cols) = match *a.shape.as_slice() {
            [rows, cols] => (rows, cols),
            _ => (1, p.data.len()),
        };
        let second = if a.rule.is_muon() { 0 } else { p.data.len() };
        Self {
            name: p.name.clone(),
            rule: a.rule,
            rows,
            cols,
            param: p.data.iter().map(|x| f64::from(*x)).collect(),
            first: vec![0.0; p.data.len()],
            second: vec![0.0; second],
            steps: 0,
        }
    }

    fn step(&mut self, lr_factor: f64, p: &mut Param) -> Result<()> {
        self.steps += 1;
        let lr = self.rule.lr() * lr_factor;
        match &self.rule {
            Rule::Muon(rule) => {
                let matrix = |v: Vec<f64>| Matrix::new(self.rows, self.cols, v);
                let grad = Matrix::from_f32(self.rows, self.cols, &p.grad)?;
                let mut param = matrix(std::mem::take(&mut self.param))?;
                let mut momentum = matrix(std::mem::take(&mut self.first))?;
                reference::muon_step(rule, Layout::OutIn, lr, &mut param, &mut momentum, &grad);
                self.param = param.data().to_vec();
                self.first = momentum.data().to_vec();
            }
            Rule::AdamW(rule) => {
                let grad: Vec<f64> = p.grad.iter().map(|g| f64::from(*g)).collect();
                reference::adamw_step(
                    rule,
                    lr,
                    self.steps,
                    &mut self.param,
                    &mut self.first,
                    &mut self.second,
                    &grad,
                );
            }
        }
        for (x, exact) in p.data.iter_mut().zip(&self.param) {
            *x = narrow(*exact);
        }
        if p.data.len() != self.param.len() {
            return Err(anyhow!(
                "`{}`: {} elements became {}",
                p.name,
                p.data.len(),
                self.param.len()
            ));
        }
        Ok(())
    }
}

/// The nearest f32.
#[expect(clippy::cast_possible_truncation, reason = "rounding to the model's precision is meant")]
fn narrow(x: f64) -> f32 {
    x as f32
}
