//! The optimizer: parameters and groups ([`param`], [`registry`]), the plan made for them, and the order of
//! operations of a step ([`step`]).

mod options;
mod param;
mod registry;
mod scalars;
mod step;

use crate::config::{MuonConfig, Rule, WithoutMuon};
use crate::device::{Counters, Device, StateData};
use crate::error::{Error, Result, ResultExt};
use crate::plan::{Plan, PlanInput};
use crate::routing_report::{Route, RoutingReport};
use crate::trace;

pub use options::{FoundNonFinite, StepOptions, StepReport};
use param::Group;
pub(crate) use param::Param;
pub use param::{GroupId, ParamId, ParamSpec};
pub use scalars::GroupScalars;
use step::{Last, Scratch};

/// The Muon optimizer on a device.
///
/// Parameters and gradients stay the caller's and come with each step; the optimizer owns momentum and
/// everything else that must outlive a step.
///
/// # Example
/// ```
/// use muon_cuda::{AdamWRule, Cpu, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor};
///
/// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
/// let hidden = muon.add_group("hidden", MuonRule { lr: 0.02, ..MuonRule::default() })?;
/// let rest = muon.add_group("rest", AdamWRule { lr: 3e-3, ..AdamWRule::default() })?;
/// let w = muon.add_param(hidden, ParamSpec::new("layer.weight", &[2, 3]))?;
/// let b = muon.add_param(rest, ParamSpec::new("layer.bias", &[2]))?;
///
/// let (mut weight, mut bias) = (vec![0.1f32; 6], vec![0.0f32; 2]);
/// let (weight_grad, bias_grad) = (vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], vec![0.5, -0.5]);
/// muon.step(
///     &StepOptions::default(),
///     &mut [StepTensor::new(w, &mut weight, &weight_grad), StepTensor::new(b, &mut bias, &bias_grad)],
/// )?;
/// println!("{}{}", muon.routing(), muon.plan()?);
/// # Ok::<(), muon_cuda::Error>(())
/// ```
#[derive(Debug)]
pub struct Muon<D: Device> {
    /// Part of every id this optimizer hands out.
    owner: u64,
    config: MuonConfig,
    groups: Vec<Group>,
    params: Vec<Param>,
    /// One per parameter, in the same order.
    states: Vec<D::State>,
    /// Position of each id among the parameters; `None` once removed.
    positions: Vec<Option<usize>>,
    planned: Option<Planned<D>>,
    /// Behind states and workspace, which are dropped before it.
    device: D,
    scratch: Scratch,
    /// The report of the step that was taken last.
    last: Option<Last>,
    /// Set by a step that was interrupted half-way.
    torn: Option<String>,
    /// Counts the plans that were made.
    generation: u64,
}

#[derive(Debug)]
struct Planned<D: Device> {
    plan: Plan,
    workspace: D::Workspace,
}

impl<D: Device> Muon<D> {
    /// An optimizer without parameters.
    ///
    /// # Errors
    /// A configuration that contradicts itself.
    pub fn new(device: D, mut config: MuonConfig) -> Result<Self> {
        config.validate()?;
        config.precision.get_or_insert(D::DEFAULT_PRECISION);
        Ok(Self {
            owner: param::new_owner(),
            device,
            config,
            groups: Vec::new(),
            params: Vec::new(),
            states: Vec::new(),
            positions: Vec::new(),
            planned: None,
            scratch: Scratch::default(),
            last: None,
            torn: None,
            generation: 0,
        })
    }

    /// The plan of a step with every parameter; made on first use and when parameters change.
    ///
    /// # Errors
    /// As [`Muon::step`]: nothing under the Muon rule (unless [`WithoutMuon::Allow`]), or a schedule that cannot be run safely.
    pub fn plan(&mut self) -> Result<&Plan> {
        self.prepare_plan()?;
        self.planned
            .as_ref()
            .map(|p| &p.plan)
            .ok_or_else(|| Error::invalid_config("the plan could not be made"))
    }

    /// Makes plan and workspace if parameters or groups changed; refuses an optimizer that would orthogonalize nothing, unless
    /// the configuration allows it.
    fn prepare_plan(&mut self) -> Result<()> {
        if self.planned.is_some() {
            return Ok(());
        }
        if self.config.without_muon == WithoutMuon::Refuse {
            self.refuse_without_muon()?;
        }
        let inputs = self.params.iter().enumerate().filter_map(|(position, p)| {
            match &self.groups[p.group].rule {
                Rule::Muon(rule) if !p.frozen => {
                    Some(PlanInput { param: position, rule, blocks: &p.blocks, name: &p.spec.name })
                }
                _ => None,
            }
        });
        let plan = Plan::new(&self.config, inputs)?;
        let workspace = self.device.new_workspace(&plan)?;
        trace::planned(&plan);
        self.planned = Some(Planned { plan, workspace });
        self.generation += 1;
        Ok(())
    }

    /// What most likely is a mistake of names or shapes. A frozen parameter counts: it may come back.
    fn refuse_without_muon(&self) -> Result<()> {
        let meant = "or set `MuonConfig::without_muon` to `Allow` if that is meant";
        if !self.params.iter().any(|p| self.groups[p.group].rule.is_muon()) {
            return Err(Error::invalid_config(format!(
                "no parameter is under the Muon rule, so nothing would be orthogonalized; register the hidden matrices in \
                 a group with a `MuonRule`, {meant}"
            )));
        }
        for (i, group) in self.groups.iter().enumerate() {
            if group.rule.is_muon() && !self.params.iter().any(|p| p.group == i) {
                return Err(Error::invalid_config(format!(
                    "group `{}` has the Muon rule but no parameter; register one, do not add the group, {meant}",
                    group.name
                )));
            }
        }
        Ok(())
    }

    /// Which plan is in force: changes whenever parameters or rules did.
    #[cfg(feature = "cuda")]
    pub(crate) fn generation(&self) -> (u64, u64) {
        (self.owner, self.generation)
    }

    /// What is orthogonalized and what is not.
    #[must_use]
    pub fn routing(&self) -> RoutingReport {
        let routes = self
            .params
            .iter()
            .map(|p| {
                let group = &self.groups[p.group];
                Route {
                    name: p.spec.name.clone(),
                    shape: p.spec.shape.clone(),
                    group: group.name.clone(),
                    orthogonalizer: match &group.rule {
                        Rule::Muon(rule) => Some(rule.orthogonalizer.name()),
                        Rule::AdamW(_) => None,
                    },
                    matrices: p.blocks.len(),
                    elements: p.len,
                }
            })
            .collect();
        RoutingReport { routes }
    }

    /// Steps taken by a parameter and skips of its matrices; waits for the device.
    ///
    /// # Errors
    /// An unknown id, or a failed device.
    pub fn counters(&mut self, id: ParamId) -> Result<Counters> {
        let position = self.position(id)?;
        let counters = self.device.counters(&self.states[position])?;
        trace::counted(&self.params[position].spec.name, &counters);
        Ok(counters)
    }

    /// Copies a parameter's state to the host; waits for the device.
    ///
    /// # Errors
    /// An unknown id, or a failed device.
    pub fn export_state(&mut self, id: ParamId) -> Result<StateData> {
        self.refuse_torn()?;
        let position = self.position(id)?;
        self.device.export_state(&self.states[position])
    }

    /// Replaces a parameter's state, such as by one from another framework.
    ///
    /// # Errors
    /// An unknown id; buffers whose number, dtype or length is not the parameter's; a moment that is not finite, or a
    /// negative second moment. The old state stays.
    pub fn import_state(&mut self, id: ParamId, data: &StateData) -> Result<()> {
        let position = self.position(id)?;
        let param = &self.params[position];
        self.states[position] = data
            .check_values(&param.spec.shape)
            .and_then(|()| self.device.import_state(&param.state, data))
            .context(|| format!("state of `{}`", param.spec.name))?;
        Ok(())
    }

    /// Makes the next step take the f32 master copy of a bf16 parameter anew from the parameter.
    ///
    /// Call it whenever the parameter was written by anyone but a step: weights loaded, averaged, pruned. With
    /// [`Bf16Params::Master`](crate::Bf16Params::Master) a step writes the parameter from its master copy and would undo such a write. It is not
    /// needed after [`Muon::restore`] where the parameters of the same checkpoint are loaded too, nor after
    /// [`Muon::import_torch_state`]. Nothing happens to a parameter that keeps no master copy.
    ///
    /// # Cost
    /// None here; at the next step of the parameter one pass that reads 2 and writes 4 bytes an element.
    ///
    /// # Errors
    /// An unknown id.
    ///
    /// # Example
    /// ```
    /// use half::bf16;
    /// use muon_cuda::{Cpu, Dtype, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor};
    ///
    /// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
    /// let hidden = muon.add_group("hidden", MuonRule::default())?;
    /// let w = muon.add_param(hidden, ParamSpec::new("w", &[2, 2]).dtype(Dtype::Bf16))?;
    /// let (mut weight, grad) = (vec![bf16::ONE; 4], vec![1.0f32, 0.0, 0.0, 1.0]);
    /// muon.step(&StepOptions::default(), &mut [StepTensor::new(w, &mut weight, &grad)])?;
    ///
    /// weight.fill(bf16::from_f32(5.0));   // loaded from somewhere
    /// let refused = muon.step(&StepOptions::default(), &mut [StepTensor::new(w, &mut weight, &grad)]);
    /// assert!(refused.unwrap_err().to_string().contains("refresh_master"));    // the CPU notices; CUDA does not look
    /// muon.refresh_master(w)?;
    /// muon.step(&StepOptions::default(), &mut [StepTensor::new(w, &mut weight, &grad)])?;
    /// assert!(weight[0] > bf16::from_f32(4.9));
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn refresh_master(&mut self, id: ParamId) -> Result<()> {
        let position = self.position(id)?;
        D::forget_master(&mut self.states[position]);
        Ok(())
    }

    /// [`Muon::refresh_master`] of every parameter.
    pub fn refresh_masters(&mut self) {
        self.states.iter_mut().for_each(D::forget_master);
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &MuonConfig {
        &self.config
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Bytes of state on the device.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        self.params.iter().map(|p| p.state.bytes()).sum()
    }

    /// Waits for the device.
    ///
    /// # Errors
    /// A failure of earlier, asynchronous work.
    pub fn synchronize(&mut self) -> Result<()> {
        self.device.synchronize()
    }

    /// Replaces the state of every parameter, which ends being torn.
    pub(crate) fn replace_states(&mut self, states: Vec<D::State>) {
        self.states = states;
        self.torn = None;
    }

    /// Replaces the state of some parameters, by their positions.
    pub(crate) fn replace_some(&mut self, states: Vec<(usize, D::State)>) {
        for (position, state) in states {
            self.states[position] = state;
        }
    }

    pub(crate) fn refuse_torn_checkpoint(&self) -> Result<()> {
        self.refuse_torn().context(|| "checkpoint")
    }

    pub(crate) fn params(&self) -> &[Param] {
        &self.params
    }

    /// What checkpoints need: parameters, their modes, their states, and the device.
    pub(crate) fn parts(&mut self) -> (&mut D, &[Param], &mut Vec<D::State>) {
        (&mut self.device, &self.params, &mut self.states)
    }

    /// The rule of the parameter at that position.
    pub(crate) fn rule_at(&self, position: usize) -> &Rule {
        &self.groups[self.params[position].group].rule
    }

    pub(crate) fn modes(&self, param: &Param) -> String {
        self.groups[param.group].rule.modes()
    }
}
