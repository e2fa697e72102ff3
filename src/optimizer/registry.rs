//! Registration: groups and parameters come, change and go.

use super::Muon;
use super::param::{Group, GroupId, Param, ParamId, ParamSpec, position_of};
use crate::config::{Rule, validate_lr};
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

    /// Registers a parameter and allocates its state; it is stepped from the next step on.
    ///
    /// # Cost
    /// [`StateSpec::bytes`] on the device, zeroed.
    ///
    /// # Errors
    /// A name that exists; a dtype that is neither f32 nor bf16; under the Muon rule a shape that is not a
    /// matrix, a stack of them or a convolution, a zero dimension, or a split that does not add up; no memory.
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
        self.params.push(Param { id, spec: spec.clone(), group: group_index, blocks, len, state });
        self.planned = None;
        Ok(id)
    }

    /// Forgets a parameter and frees its state; other parameters keep theirs.
    ///
    /// # Errors
    /// An id that was removed already or belongs to another optimizer.
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

    fn group_index(&self, group: GroupId) -> Result<usize> {
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

    /// Sets a group's learning rate.
    ///
    /// # Errors
    /// A learning rate that is negative or not finite.
    pub fn set_lr(&mut self, group: GroupId, lr: f64) -> Result<()> {
        validate_lr(lr)?;
        let index = self.group_index(group)?;
        self.groups[index].rule.set_lr(lr);
        Ok(())
    }
}

/// FNV-1a of the name: stochastic rounding is independent between parameters and the same across runs.
fn name_salt(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
