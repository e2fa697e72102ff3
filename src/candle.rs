//! Muon for candle models on the CPU (feature `candle`): built from a `VarMap`, whose names decide the routing.

use std::cell::RefCell;
use std::fmt;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Storage, Tensor, Var};
use candle_nn::VarMap;
use half::bf16;

use crate::config::MuonConfig;
use crate::cpu::{Cpu, CpuGrad, CpuParamMut};
use crate::device::StepTensor;
use crate::error::{Error, Result, ResultExt};
use crate::optimizer::{GroupId, Muon, ParamId, ParamSpec, StepOptions, StepReport};
use crate::plan::Plan;
use crate::precision::Dtype;
use crate::routing::RoutingRule;
use crate::routing_report::RoutingReport;

/// Muon over the variables of a candle model.
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
    muon: Muon<Cpu>,
    vars: Vec<NamedVar>,
    muon_group: GroupId,
    /// With AdamW's learning rate as a multiple of Muon's.
    adamw_group: Option<(GroupId, f64)>,
    options: StepOptions,
    /// A learning rate that was refused; candle's interface reports it at the next step.
    refused_lr: Option<f64>,
}

struct NamedVar {
    id: ParamId,
    name: String,
    var: Var,
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
    /// No hidden matrix among them, an override that matches none, two names for one variable, a variable that is not
    /// on the CPU, not contiguous, or neither f32 nor bf16, a hyper-parameter outside its range.
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
        routing.check(named.iter().map(|(name, var)| (name.as_str(), var.dims())))?;
        let mut muon = Muon::new(Cpu::new()?, config)?;
        let muon_group = muon.add_group("hidden", routing.muon.clone())?;
        let rest = named.iter().any(|(name, var)| !routing.route(name, var.dims()).muon);
        let adamw_group = match rest {
            true => Some((
                muon.add_group("rest", routing.adamw)?,
                if routing.muon.lr > 0.0 { routing.adamw.lr / routing.muon.lr } else { 1.0 },
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
            let group = match (routing.route(&name, var.dims()).muon, adamw_group) {
                (false, Some((group, _))) => group,
                _ => muon_group,
            };
            let id = muon.add_param(group, ParamSpec::new(&name, var.dims()).dtype(dtype))?;
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

    /// What is orthogonalized and what is not.
    #[must_use]
    pub fn routing(&self) -> RoutingReport {
        self.muon.routing()
    }

    /// The plan of a step.
    ///
    /// # Errors
    /// As [`Muon::plan`].
    pub fn plan(&mut self) -> Result<&Plan> {
        self.muon.plan()
    }

    /// The optimizer itself: checkpoints, counters, groups.
    pub fn inner(&mut self) -> &mut Muon<Cpu> {
        &mut self.muon
    }

    /// One step from the gradients of a backward pass; variables without a gradient are left untouched.
    ///
    /// # Cost
    /// Parameters are lent to the optimizer, not copied.
    ///
    /// # Errors
    /// As [`Muon::step`]; a gradient that is not on the CPU or is neither f32, bf16 nor fp16.
    pub fn step_with(&mut self, grads: &GradStore) -> Result<StepReport> {
        if let Some(lr) = self.refused_lr {
            return Err(Error::invalid_config(format!(
                "set_learning_rate: expected a finite number of at least 0, found `{lr}`; nothing was stepped"
            )));
        }
        let candle = |e: candle_core::Error| Error::device(format!("candle: {e}"));
        let mut held: Vec<(usize, Tensor)> = Vec::new();
        for (i, v) in self.vars.iter().enumerate() {
            if let Some(grad) = grads.get(v.var.as_tensor()) {
                if grad.dims() != v.var.dims() {
                    return Err(Error::shape_mismatch(
                        format!("gradient of `{}`", v.name),
                        format!("{:?}", v.var.dims()),
                        format!("{:?}", grad.dims()),
                    ));
                }
                held.push((i, grad.contiguous().map_err(candle)?));
            }
        }
        let guards: Vec<_> = held.iter().map(|(i, g)| (*i, g.storage_and_layout())).collect();
        let mut borrowed = Vec::with_capacity(guards.len());
        for (i, (storage, layout)) in &guards {
            let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
            borrowed.push((*i, cpu_grad(&self.vars[*i].name, storage, range)?));
        }
        let mut lent: Vec<Lent> = Vec::with_capacity(borrowed.len());
        for (i, _) in &borrowed {
            let v = &self.vars[*i];
            lent.push(Lent::take(v).map_err(|e| candle(e).context(format!("param `{}`", v.name)))?);
        }
        let outcome = {
            let mut tensors: Vec<_> = lent
                .iter_mut()
                .zip(&borrowed)
                .map(|(lent, (i, grad))| {
                    StepTensor::<Cpu>::new(self.vars[*i].id, lent.buffer.as_param(), *grad)
                })
                .collect();
            self.muon.step(&self.options, &mut tensors)
        };
        for lent in lent {
            lent.give_back().map_err(candle)?;
        }
        outcome
    }
}

/// Equal for variables that share their memory, whatever their names and views.
fn storage_address(var: &Var) -> usize {
    let (storage, _) = var.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

fn dtype(name: &str, var: &Var) -> Result<Dtype> {
    if !var.device().is_cpu() {
        return Err(Error::unsupported(format!(
            "`{name}` is on {:?}; this build trains candle models on the CPU",
            var.device().location()
        )));
    }
    match var.dtype() {
        candle_core::DType::F32 => Ok(Dtype::F32),
        candle_core::DType::BF16 => Ok(Dtype::Bf16),
        other => {
            Err(Error::dtype_mismatch(format!("param `{name}`"), "f32 or bf16", other.as_str()))
        }
    }
}

fn cpu_grad<'a>(
    name: &str,
    storage: &'a Storage,
    range: std::ops::Range<usize>,
) -> Result<CpuGrad<'a>> {
    match storage {
        Storage::Cpu(CpuStorage::F32(x)) => Ok(CpuGrad::F32(&x[range])),
        Storage::Cpu(CpuStorage::BF16(x)) => Ok(CpuGrad::Bf16(&x[range])),
        Storage::Cpu(CpuStorage::F16(x)) => Ok(CpuGrad::F16(&x[range])),
        _ => Err(Error::dtype_mismatch(
            format!("gradient of `{name}`"),
            "f32, bf16 or fp16 on the CPU",
            "another",
        )),
    }
}

/// The elements of a variable while they are lent to the optimizer.
enum Buffer {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Buffer {
    fn as_param(&mut self) -> CpuParamMut<'_> {
        match self {
            Self::F32(x) => CpuParamMut::F32(x),
            Self::Bf16(x) => CpuParamMut::Bf16(x),
        }
    }
}

/// A variable whose elements were taken out; they go back when it is dropped, whatever happens in between.
struct Lent {
    var: Var,
    buffer: Buffer,
    returned: bool,
}

/// Exchanges a variable's elements with a vector.
struct Swap(RefCell<Buffer>);

impl InplaceOp1 for Swap {
    fn name(&self) -> &'static str {
        "muon-swap"
    }

    fn cpu_fwd(
        &self,
        storage: &mut CpuStorage,
        layout: &candle_core::Layout,
    ) -> candle_core::Result<()> {
        if !layout.is_contiguous() || layout.start_offset() != 0 {
            candle_core::bail!("a variable must be contiguous and own its storage from the start");
        }
        match (storage, &mut *self.0.borrow_mut()) {
            (CpuStorage::F32(theirs), Buffer::F32(ours)) => std::mem::swap(theirs, ours),
            (CpuStorage::BF16(theirs), Buffer::Bf16(ours)) => std::mem::swap(theirs, ours),
            _ => candle_core::bail!("the variable's dtype changed since it was registered"),
        }
        Ok(())
    }
}

impl Lent {
    fn take(v: &NamedVar) -> candle_core::Result<Self> {
        let empty = match v.var.dtype() {
            candle_core::DType::BF16 => Buffer::Bf16(Vec::new()),
            _ => Buffer::F32(Vec::new()),
        };
        let swap = Swap(RefCell::new(empty));
        v.var.inplace_op1(&swap)?;
        Ok(Self { var: v.var.clone(), buffer: swap.0.into_inner(), returned: false })
    }

    fn put(&mut self) -> candle_core::Result<()> {
        let empty = match self.buffer {
            Buffer::F32(_) => Buffer::F32(Vec::new()),
            Buffer::Bf16(_) => Buffer::Bf16(Vec::new()),
        };
        let swap = Swap(RefCell::new(std::mem::replace(&mut self.buffer, empty)));
        self.var.inplace_op1(&swap)
    }

    fn give_back(mut self) -> candle_core::Result<()> {
        self.returned = true;
        self.put()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Only on an early return: the elements must not stay lost. An error here has one already above it.
        if !self.returned {
            let _ = self.put();
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
        self.muon.rule(self.muon_group).map_or(0.0, crate::config::Rule::lr)
    }

    /// Sets the learning rate of the hidden matrices; AdamW's keeps its ratio to it. A value that is negative or
    /// not finite makes every step an error until a valid one is set: candle's interface has no other way.
    fn set_learning_rate(&mut self, lr: f64) {
        let mut outcome = self.muon.set_lr(self.muon_group, lr);
        if let Some((group, ratio)) = self.adamw_group {
            outcome = outcome.and_then(|()| self.muon.set_lr(group, lr * ratio));
        }
        self.refused_lr = outcome.is_err().then_some(lr);
    }
}
