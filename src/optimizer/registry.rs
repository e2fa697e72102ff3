//! Registration: groups and parameters come, change and go.

use super::Muon;
use super::param::{Group, GroupId, Param, ParamId, ParamSpec, position_of};
use crate::config::Rule;
use crate::device::{Device, StateRule, StateSpec};
use crate::error::{Error, Result, ResultExt};
use crate::plan::{Plan, PlanInput};
use crate::precision::Dtype;
use crate::shape;
impl<D: Device> Muon<D> {
    /// Adds a parameter group.
    ///
    /// # Errors
    /// A name that exists, or a hyper-parameter outside its range.
    pub fn add_group(&mut self, name: impl Into<String>, rule: impl Into<Rule>) -> Result<GroupId> {
        let (name, rule) = (name.into(), rule.into());
        if self.groups.iter().any(|g| g.name == name) {
            return Err(Error::duplicate_name(name).context("add group"));
        }
        rule.validate().context(|| format!("group `{name}`"))?;
        self.groups.push(Group { name, rule });
        Ok(GroupId { owner: self.owner, index: self.groups.len() - 1 })
    }

    /// Registers a parameter and allocates its state; it is stepped from the next step on. One with a zero dimension is
    /// stepped as nothing.
    ///
    /// # Cost
    /// [`StateSpec::bytes`] on the device, zeroed.
    ///
    /// # Errors
    /// A name that exists; a dtype that is neither f32 nor bf16; under the Muon rule a shape that is not a
    /// matrix, a stack of them or a convolution, or a split that does not add up; no memory.
    pub fn add_param(&mut self, group: GroupId, spec: ParamSpec) -> Result<ParamId> {
        self.add_param_checked(group, &spec).context(|| format!("register `{}`", spec.name))
    }

    fn add_param_checked(&mut self, group: GroupId, spec: &ParamSpec) -> Result<ParamId> {
        let group_index = self.group_index(group)?;
        let rule = &self.groups[group_index].rule;
        if self.params.iter().any(|p| p.spec.name == spec.name) {
            return Err(Error::duplicate_name(&spec.name));
        }
        if !matches!(spec.dtype, Dtype::F32 | Dtype::Bf16) {
            return Err(Error::dtype_mismatch("parameter", "f32 or bf16", spec.dtype));
        }
        let len = shape::element_count(&spec.shape)?;
        let (blocks, state_rule) = match rule {
            Rule::Muon(rule) => {
                let blocks = shape::blocks(&spec.shape, spec.layout, &spec.split)?;
                // A schedule that this precision makes unsafe is refused now, not at the first step.
                Plan::new(
                    &self.config,
                    [PlanInput { param: 0, rule, blocks: &blocks, name: &spec.name }],
                )?;
                let matrices = blocks.len();
                (blocks, StateRule::Muon { momentum_dtype: self.config.momentum_dtype, matrices })
            }
            Rule::AdamW(_) => (Vec::new(), StateRule::AdamW),
        };
        let state = StateSpec {
            len,
            param_dtype: spec.dtype,
            bf16_params: self.config.bf16_params,
            rule: state_rule,
            salt: name_salt(&spec.name),
        };
        self.states.push(self.device.new_state(&state)?);
        let id = ParamId { owner: self.owner, index: self.positions.len() };
        self.positions.push(Some(self.params.len()));
        self.params.push(Param {
            id,
            spec: spec.clone(),
            group: group_index,
            blocks,
            len,
            state,
            frozen: false,
        });
        self.planned = None;
        Ok(id)
    }

    /// Forgets a parameter and frees its state; other parameters keep theirs.
    ///
    /// [`Muon::export_state`] first, if it may come back: [`Muon::add_param`] and [`Muon::import_state`] then go on where it
    /// left. A checkpoint that was written with it is restored by [`Muon::restore_matching`](crate::Muon::restore_matching).
    ///
    /// # Errors
    /// An id that was removed already or belongs to another optimizer.
    ///
    /// # Example
    /// ```
    /// use muon_cuda::{Cpu, Muon, MuonConfig, MuonRule, ParamSpec};
    ///
    /// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
    /// let hidden = muon.add_group("hidden", MuonRule::default())?;
    /// let w = muon.add_param(hidden, ParamSpec::new("w", &[2, 3]))?;
    /// let kept = muon.export_state(w)?;
    /// muon.remove_param(w)?;
    /// assert!(muon.counters(w).is_err());
    /// let w = muon.add_param(hidden, ParamSpec::new("w", &[2, 3]))?;      // another id
    /// muon.import_state(w, &kept)?;
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn remove_param(&mut self, id: ParamId) -> Result<()> {
        let position = self.position(id)?;
        self.params.remove(position);
        self.states.remove(position);
        self.positions[id.index] = None;
        for p in self.positions.iter_mut().flatten() {
            *p -= usize::from(*p > position);
        }
        self.planned = None;
        Ok(())
    }

    /// Moves a parameter to another group of the same kind of rule and momentum mode; its state goes along.
    ///
    /// From the next step on it follows that group's hyper-parameters. Under the Muon rule that step makes a new plan.
    ///
    /// # Errors
    /// An unknown id, a group of another optimizer, a rule under which the state would mean something else, or one that
    /// cannot be planned for the parameter's shape. Nothing changes.
    ///
    /// # Example
    /// ```
    /// use muon_cuda::{AdamWRule, Cpu, Muon, MuonConfig, MuonRule, ParamSpec};
    ///
    /// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
    /// let slow = muon.add_group("slow", MuonRule { lr: 0.002, ..MuonRule::default() })?;
    /// let fast = muon.add_group("fast", MuonRule { lr: 0.02, ..MuonRule::default() })?;
    /// let rest = muon.add_group("rest", AdamWRule::default())?;
    /// let w = muon.add_param(slow, ParamSpec::new("w", &[2, 3]))?;
    /// muon.move_param(w, fast)?;
    /// assert_eq!(muon.routing().routes[0].group, "fast");
    /// assert!(muon.move_param(w, rest).unwrap_err().is_invalid_config());      // momentum is not two moments
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn move_param(&mut self, id: ParamId, group: GroupId) -> Result<()> {
        let position = self.position(id)?;
        let index = self.group_index(group)?;
        let param = &self.params[position];
        let (from, to) = (&self.groups[param.group], &self.groups[index]);
        let context =
            || format!("move `{}` from `{}` to `{}`", param.spec.name, from.name, to.name);
        if from.rule.modes() != to.rule.modes() {
            return Err(Error::invalid_config(format!(
                "its state was made under {}; expected a group of that kind, found {}; to start anew, remove the \
                 parameter and register it there",
                from.rule.modes(),
                to.rule.modes()
            )))
            .context(context);
        }
        if let Rule::Muon(rule) = &to.rule {
            let input = PlanInput { param: 0, rule, blocks: &param.blocks, name: &param.spec.name };
            Plan::new(&self.config, [input]).context(context)?;
            self.planned = None;
        }
        self.params[position].group = index;
        Ok(())
    }

    /// Freezes a parameter: it keeps its state and is left out of plan and steps until [`Muon::unfreeze`].
    ///
    /// Pass it without a gradient or not at all: a step with a gradient for it is refused, because ignoring one in silence
    /// would also change the norm that gradients are clipped to. Being frozen is not part of a checkpoint; its state is.
    ///
    /// # Errors
    /// An unknown id.
    ///
    /// # Example
    /// ```
    /// use muon_cuda::{Cpu, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor};
    ///
    /// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
    /// let hidden = muon.add_group("hidden", MuonRule::default())?;
    /// let w = muon.add_param(hidden, ParamSpec::new("w", &[2, 2]))?;
    /// let (mut weight, grad) = (vec![0.0f32; 4], vec![1.0f32, 0.0, 0.0, 1.0]);
    /// muon.freeze(w)?;
    /// let refused = muon.step(&StepOptions::default(), &mut [StepTensor::new(w, &mut weight, &grad)]);
    /// assert!(refused.unwrap_err().to_string().contains("frozen"));
    /// muon.unfreeze(w)?;
    /// muon.step(&StepOptions::default(), &mut [StepTensor::new(w, &mut weight, &grad)])?;
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn freeze(&mut self, id: ParamId) -> Result<()> {
        self.set_frozen(id, true)
    }

    /// Ends [`Muon::freeze`]; the state goes on where it was.
    ///
    /// # Errors
    /// An unknown id.
    pub fn unfreeze(&mut self, id: ParamId) -> Result<()> {
        self.set_frozen(id, false)
    }

    fn set_frozen(&mut self, id: ParamId, frozen: bool) -> Result<()> {
        let position = self.position(id)?;
        let param = &mut self.params[position];
        if param.frozen != frozen {
            param.frozen = frozen;
            self.planned = None;
        }
        Ok(())
    }

    /// Whether a parameter is frozen.
    ///
    /// # Errors
    /// An unknown id.
    pub fn is_frozen(&self, id: ParamId) -> Result<bool> {
        Ok(self.params[self.position(id)?].frozen)
    }

    /// The id of the parameter of that name.
    ///
    /// # Errors
    /// An unknown name; the message suggests the nearest.
    pub fn param_id(&self, name: &str) -> Result<ParamId> {
        self.params.iter().find(|p| p.spec.name == name).map(|p| p.id).ok_or_else(|| {
            Error::unknown_name("parameter", name, self.params.iter().map(|p| p.spec.name.as_str()))
        })
    }

    /// Names of the registered parameters, in order.
    pub fn param_names(&self) -> impl Iterator<Item = &str> {
        self.params.iter().map(|p| p.spec.name.as_str())
    }

    pub(crate) fn position(&self, id: ParamId) -> Result<usize> {
        position_of(self.owner, &self.positions, id)
    }

    pub(super) fn group_index(&self, group: GroupId) -> Result<usize> {
        if group.owner == self.owner {
            return Ok(group.index);
        }
        Err(Error::invalid_config("the group belongs to another optimizer"))
    }

    /// The rule of a group as it stands.
    #[must_use]
    pub fn rule(&self, group: GroupId) -> Option<&Rule> {
        self.group_index(group).ok().map(|i| &self.groups[i].rule)
    }

    /// The id of the group of that name.
    ///
    /// # Errors
    /// An unknown name; the message suggests the nearest.
    pub fn group_id(&self, name: &str) -> Result<GroupId> {
        self.groups
            .iter()
            .position(|g| g.name == name)
            .map(|index| GroupId { owner: self.owner, index })
            .ok_or_else(|| {
                Error::unknown_name("group", name, self.groups.iter().map(|g| g.name.as_str()))
            })
    }

    /// Replaces a group's hyper-parameters; the kind of rule, the momentum mode and with them the meaning of
    /// the state stay.
    ///
    /// # Cost
    /// A new plan and workspace at the next step if orthogonalizer, method or norm floor change; else as
    /// [`Muon::set_scalars`], which needs no copy of the rule.
    ///
    /// # Errors
    /// A hyper-parameter outside its range, or another kind of rule or momentum mode. The old rule stays.
    pub fn set_rule(&mut self, group: GroupId, rule: impl Into<Rule>) -> Result<()> {
        let rule = rule.into();
        let index = self.group_index(group)?;
        let Group { name, rule: old } = &self.groups[index];
        rule.validate().context(|| format!("group `{name}`"))?;
        if rule.modes() != old.modes() {
            return Err(Error::invalid_config(format!(
                "group `{name}`: its state was made under {}; expected a rule of that kind, found {}",
                old.modes(),
                rule.modes()
            )));
        }
        if rule.plans_as(old) {
            self.groups[index].rule = rule;
            return Ok(());
        }
        if let Rule::Muon(rule) = &rule {
            let inputs =
                self.params.iter().enumerate().filter(|(_, p)| p.group == index).map(
                    |(param, p)| PlanInput { param, rule, blocks: &p.blocks, name: &p.spec.name },
                );
            Plan::new(&self.config, inputs).context(|| format!("group `{name}`"))?;
        }
        self.groups[index].rule = rule;
        self.planned = None;
        Ok(())
    }
}

/// FNV-1a of the name: stochastic rounding is independent between parameters and the same across runs.
fn name_salt(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
