//! Muon for candle models (feature `candle`; on a GPU `candle-cuda`): built from a `VarMap`, whose names decide the routing.

use std::fmt;

use candle_core::backprop::GradStore;
use candle_core::{Storage, Tensor, Var};
use candle_nn::VarMap;

use crate::config::MuonConfig;
use crate::cpu::Cpu;
#[cfg(feature = "candle-cuda")]
use crate::cuda::Cuda;
use crate::error::{Error, Result, ResultExt};
use crate::optimizer::{GroupId, Muon, ParamId, ParamSpec, StepOptions, StepReport};
use crate::plan::Plan;
use crate::precision::Dtype;
use crate::routing::RoutingRule;
use crate::routing_report::RoutingReport;

/// Muon over the variables of a candle model.
///
/// It runs where the variables are: on the CPU, or with feature `candle-cuda` on candle's CUDA device, whose context and
/// stream it shares.
///
/// # Stream
/// On a GPU steps are enqueued on candle's stream, in the order of the calls. The stream of `Device::new_cuda` is the
/// default stream of each thread: step on the thread that trains.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Module, Optimizer, VarBuilder, VarMap};
/// use muon_cuda::candle::CandleMuon;
/// use muon_cuda::{MuonConfig, RoutingRule};
///
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let hidden = candle_nn::linear(8, 16, vb.pp("hidden"))?;
/// let head = candle_nn::linear(16, 2, vb.pp("head"))?;
/// let mut muon = CandleMuon::new_from_varmap(&varmap, MuonConfig::default(), &RoutingRule::default())?;
/// print!("{}", muon.routing());
///
/// let x = Tensor::randn(0f32, 1.0, (4, 8), &Device::Cpu)?;
/// let loss = head.forward(&hidden.forward(&x)?.relu()?)?.sqr()?.mean_all()?;
/// muon.backward_step(&loss)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CandleMuon {
    muon: Inner,
    vars: Vec<NamedVar>,
    muon_group: GroupId,
    /// With AdamW's learning rate as a multiple of Muon's, until it is set on its own.
    adamw_group: Option<(GroupId, Option<f64>)>,
    options: StepOptions,
    /// A learning rate that was refused; candle's interface reports it at the next step.
    refused_lr: Option<f64>,
}

/// The optimizer, on the device that the variables are on.
#[derive(Debug)]
enum Inner {
    Cpu(Box<Muon<Cpu>>),
    #[cfg(feature = "candle-cuda")]
    Cuda(Box<Muon<Cuda>>),
}

/// The same on whichever device.
macro_rules! on {
    ($inner:expr, $muon:ident => $body:expr) => {
        match $inner {
            Inner::Cpu($muon) => $body,
            #[cfg(feature = "candle-cuda")]
            Inner::Cuda($muon) => $body,
        }
    };
}

mod checkpoint;
mod cpu;

pub(crate) struct NamedVar {
    pub(crate) id: ParamId,
    pub(crate) name: String,
    pub(crate) var: Var,
}

impl fmt::Debug for NamedVar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.var.shape())
    }
}

/// Configuration for [`candle_nn::Optimizer::new`], which gets variables without names.
#[derive(Debug, Clone, PartialEq)]
pub struct CandleConfig {
    /// What holds for the whole optimizer.
    pub config: MuonConfig,
    /// Hyper-parameters and routing.
    pub routing: RoutingRule,
    /// What to do about missing names. Default refuse.
    pub unnamed: Unnamed,
}

/// Routing of variables that have no names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unnamed {
    /// An error: shapes do not tell an embedding from a hidden matrix (default).
    #[default]
    Refuse,
    /// Every variable with 2 to 4 dimensions goes to Muon, under the name `var.<position>`. Right only if the list
    /// holds no embedding and no output head.
    ByShape,
}

impl CandleMuon {
    /// An optimizer over all variables of a map, in the order of their names.
    ///
    /// # Errors
    /// No hidden matrix among them, a shape that can be two things (the message says how to say which), an override that matches none, two names for one variable, variables on several devices or on one that
    /// this build does not train on, a variable that is neither f32 nor bf16, a hyper-parameter outside its range; on a GPU what
    /// `Cuda::with_stream` fails with.
    pub fn new_from_varmap(
        varmap: &VarMap,
        config: MuonConfig,
        routing: &RoutingRule,
    ) -> Result<Self> {
        let mut named: Vec<(String, Var)> = {
            let vars = varmap.data().lock().map_err(|_| {
                Error::invalid_config(
                    "the VarMap's lock is poisoned: a thread panicked while it held it",
                )
            })?;
            vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
        };
        // The map iterates in random order; names make runs and checkpoints repeatable.
        named.sort_by(|a, b| a.0.cmp(&b.0));
        Self::new_from_named(named, config, routing)
    }

    /// An optimizer over named variables.
    ///
    /// # Errors
    /// As [`CandleMuon::new_from_varmap`], and a name that comes twice.
    pub fn new_from_named(
        named: Vec<(String, Var)>,
        config: MuonConfig,
        routing: &RoutingRule,
    ) -> Result<Self> {
        let params = named.iter().map(|(name, var)| (name.as_str(), var.dims()));
        routing.check_for(params, config.without_muon)?;
        let mut muon = Inner::new(&named, config)?;
        let muon_group = on!(&mut muon, m => m.add_group("hidden", routing.muon.clone()))?;
        let rest = named.iter().any(|(name, var)| !routing.route(name, var.dims()).is_muon());
        let adamw_group = match rest {
            true => Some((
                on!(&mut muon, m => m.add_group("rest", routing.adamw))?,
                Some(if routing.muon.lr > 0.0 { routing.adamw.lr / routing.muon.lr } else { 1.0 }),
            )),
            false => None,
        };
        let mut vars: Vec<NamedVar> = Vec::with_capacity(named.len());
        for (name, var) in named {
            if let Some(first) =
                vars.iter().find(|v| storage_address(&v.var) == storage_address(&var))
            {
                return Err(Error::new(crate::error::ErrorKind::Aliasing {
                    first: first.name.clone(),
                    second: name,
                }));
            }
            let dtype = dtype(&name, &var)?;
            let decision = routing.route(&name, var.dims());
            let group = match (decision.is_muon(), adamw_group) {
                (false, Some((group, _))) => group,
                _ => muon_group,
            };
            let spec = ParamSpec::new(&name, &decision.registered_shape(var.dims())).dtype(dtype);
            let id = on!(&mut muon, m => m.add_param(group, spec))?;
            vars.push(NamedVar { id, name, var });
        }
        Ok(Self {
            muon,
            vars,
            muon_group,
            adamw_group,
            options: StepOptions::default(),
            refused_lr: None,
        })
    }

    /// Sets clipping, loss scale and lr factor of the steps to come.
    pub fn set_step_options(&mut self, options: StepOptions) {
        self.options = options;
    }

    /// The learning rate of what is not a hidden matrix; `None` where everything is one.
    #[must_use]
    pub fn adamw_learning_rate(&self) -> Option<f64> {
        let (group, _) = self.adamw_group?;
        on!(&self.muon, m => m.rule(group)).map(crate::config::Rule::lr)
    }

    /// Sets the learning rate of what is not a hidden matrix. From then on it is on its own:
    /// `set_learning_rate` moves that of the hidden matrices alone.
    ///
    /// # Errors
    /// No variable under the AdamW rule; a rate that is negative or not finite. The old one stays.
    ///
    /// # Example
    /// ```
    /// # use candle_core::{DType, Device};
    /// # use candle_nn::{Optimizer, VarBuilder, VarMap};
    /// # use muon_cuda::candle::CandleMuon;
    /// # use muon_cuda::{MuonConfig, RoutingRule};
    /// # let varmap = VarMap::new();
    /// # let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    /// # candle_nn::linear(8, 16, vb.pp("hidden"))?;
    /// let mut muon = CandleMuon::new_from_varmap(&varmap, MuonConfig::default(), &RoutingRule::default())?;
    /// muon.set_adamw_learning_rate(3e-4)?;
    /// muon.set_learning_rate(0.01);
    /// assert_eq!((muon.learning_rate(), muon.adamw_learning_rate()), (0.01, Some(3e-4)));
    /// assert!(muon.set_adamw_learning_rate(-1.0).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_adamw_learning_rate(&mut self, lr: f64) -> Result<()> {
        let Some((group, ratio)) = &mut self.adamw_group else {
            return Err(Error::invalid_config(
                "set_adamw_learning_rate: every variable is a hidden matrix, none is under the AdamW rule",
            ));
        };
        on!(&mut self.muon, m => m.set_lr(*group, lr))?;
        *ratio = None;
        Ok(())
    }

    /// Freezes a variable: steps leave it and its state alone, whatever gradient it has, and count none for clipping.
    ///
    /// # Errors
    /// A name that is no variable's; the message suggests the nearest.
    pub fn freeze(&mut self, name: &str) -> Result<()> {
        on!(&mut self.muon, m => m.param_id(name).and_then(|id| m.freeze(id)))
    }

    /// Ends [`CandleMuon::freeze`].
    ///
    /// # Errors
    /// A name that is no variable's; the message suggests the nearest.
    pub fn unfreeze(&mut self, name: &str) -> Result<()> {
        on!(&mut self.muon, m => m.param_id(name).and_then(|id| m.unfreeze(id)))
    }

    /// Takes the master copies of bf16 variables anew from the variables, after they were written by anyone but a step;
    /// see [`Muon::refresh_master`].
    pub fn refresh_masters(&mut self) {
        on!(&mut self.muon, m => m.refresh_masters());
    }

    /// What is orthogonalized and what is not.
    #[must_use]
    pub fn routing(&self) -> RoutingReport {
        on!(&self.muon, m => m.routing())
    }

    /// The plan of a step.
    ///
    /// # Errors
    /// As [`Muon::plan`].
    pub fn plan(&mut self) -> Result<&Plan> {
        on!(&mut self.muon, m => m.plan())
    }

    /// The optimizer itself: checkpoints, counters, groups; `None` where the variables are on a GPU.
    pub fn cpu(&mut self) -> Option<&mut Muon<Cpu>> {
        match &mut self.muon {
            Inner::Cpu(muon) => Some(muon),
            #[cfg(feature = "candle-cuda")]
            Inner::Cuda(_) => None,
        }
    }

    /// The optimizer itself, where the variables are on a GPU.
    #[cfg(feature = "candle-cuda")]
    pub fn cuda(&mut self) -> Option<&mut Muon<Cuda>> {
        match &mut self.muon {
            Inner::Cpu(_) => None,
            Inner::Cuda(muon) => Some(muon),
        }
    }

    /// One step from the gradients of a backward pass; variables without a gradient, and frozen ones, are left untouched.
    ///
    /// # Cost
    /// Parameters are lent to the optimizer, not copied.
    ///
    /// # Errors
    /// As [`Muon::step`]; a gradient that is not where its variable is, or neither f32, bf16 nor fp16.
    pub fn step_with(&mut self, grads: &GradStore) -> Result<StepReport> {
        if let Some(lr) = self.refused_lr {
            return Err(Error::invalid_config(format!(
                "set_learning_rate: expected a finite number of at least 0, found `{lr}`; nothing was stepped"
            )));
        }
        let mut held: Vec<(usize, Tensor)> = Vec::new();
        for (i, v) in self.vars.iter().enumerate() {
            if on!(&self.muon, m => m.is_frozen(v.id))? {
                continue;
            }
            if let Some(grad) = grads.get(v.var.as_tensor()) {
                if grad.dims() != v.var.dims() {
                    return Err(Error::shape_mismatch(
                        format!("gradient of `{}`", v.name),
                        format!("{:?}", v.var.dims()),
                        format!("{:?}", grad.dims()),
                    ));
                }
                held.push((i, grad.contiguous().map_err(candle_error)?));
            }
        }
        match &mut self.muon {
            Inner::Cpu(muon) => cpu::step(muon, &self.options, &self.vars, &held),
            #[cfg(feature = "candle-cuda")]
            Inner::Cuda(muon) => crate::cuda::candle::step(muon, &self.options, &self.vars, &held),
        }
    }
}

impl Inner {
    /// An optimizer on the device that all variables are on.
    fn new(named: &[(String, Var)], config: MuonConfig) -> Result<Self> {
        let cpu = |config| Ok(Self::Cpu(Box::new(Muon::new(Cpu::new()?, config)?)));
        let Some((first, var)) = named.first() else { return cpu(config) };
        let device = var.device();
        if let Some((other, var)) = named.iter().find(|(_, v)| !v.device().same_device(device)) {
            return Err(Error::unsupported(format!(
                "`{first}` is on {:?} and `{other}` on {:?}, another candle device; one optimizer has one",
                device.location(),
                var.device().location()
            )));
        }
        match device {
            candle_core::Device::Cpu => cpu(config),
            #[cfg(feature = "candle-cuda")]
            candle_core::Device::Cuda(device) => {
                let device = Cuda::with_stream(device.cuda_stream())?;
                Ok(Self::Cuda(Box::new(Muon::new(device, config)?)))
            }
            other => Err(Error::unsupported(format!(
                "`{first}` is on {:?}; this build trains candle models on the CPU{}",
                other.location(),
                if cfg!(feature = "candle-cuda") {
                    " and on CUDA devices"
                } else {
                    ", and on CUDA devices with feature `candle-cuda`"
                }
            ))),
        }
    }
}

pub(crate) fn candle_error(e: candle_core::Error) -> Error {
    Error::device(format!("candle: {e}"))
}

/// Equal for variables that share their memory, whatever their names and views.
fn storage_address(var: &Var) -> usize {
    let (storage, _) = var.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

fn dtype(name: &str, var: &Var) -> Result<Dtype> {
    match var.dtype() {
        candle_core::DType::F32 => Ok(Dtype::F32),
        candle_core::DType::BF16 => Ok(Dtype::Bf16),
        other => {
            Err(Error::dtype_mismatch(format!("param `{name}`"), "f32 or bf16", other.as_str()))
        }
    }
}

fn to_candle(e: Error) -> candle_core::Error {
    candle_core::Error::wrap(e)
}

impl candle_nn::Optimizer for CandleMuon {
    type Config = CandleConfig;

    /// # Errors
    /// Unless the configuration says otherwise: names are needed to tell embeddings and heads from hidden
    /// matrices; use [`CandleMuon::new_from_varmap`].
    fn new(vars: Vec<Var>, config: CandleConfig) -> candle_core::Result<Self> {
        if config.unnamed == Unnamed::Refuse {
            return Err(to_candle(Error::invalid_config(
                "variables without names cannot be routed: shapes do not tell an embedding or an output head from a \
                 hidden matrix; use `CandleMuon::new_from_varmap`, or `Unnamed::ByShape` if all matrices are hidden",
            )));
        }
        let named = vars.into_iter().enumerate().map(|(i, v)| (format!("var.{i}"), v)).collect();
        Self::new_from_named(named, config.config, &config.routing).map_err(to_candle)
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        self.step_with(grads).map(|_| ()).context(|| "muon step").map_err(to_candle)
    }

    /// The learning rate of the hidden matrices.
    fn learning_rate(&self) -> f64 {
        on!(&self.muon, m => m.rule(self.muon_group)).map_or(0.0, crate::config::Rule::lr)
    }

    /// Sets the learning rate of the hidden matrices; AdamW's keeps its ratio to it until
    /// [`CandleMuon::set_adamw_learning_rate`] is called. A value that is negative or
    /// not finite makes every step an error until a valid one is set: candle's interface has no other way.
    fn set_learning_rate(&mut self, lr: f64) {
        let mut outcome = on!(&mut self.muon, m => m.set_lr(self.muon_group, lr));
        if let Some((group, Some(ratio))) = self.adamw_group {
            outcome = outcome.and_then(|()| on!(&mut self.muon, m => m.set_lr(group, lr * ratio)));
        }
        self.refused_lr = outcome.is_err().then_some(lr);
    }
}
