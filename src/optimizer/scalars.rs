//! Scalars of a group that change from step to step, without a new plan.

use super::{GroupId, Muon};
use serde::{Deserialize, Serialize};

use crate::config::{Nesterov, Rule};
use crate::device::Device;
use crate::error::{Error, Result, ResultExt};

/// Scalars of a group to set; `None` leaves one as it is. See [`Muon::set_scalars`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupScalars {
    /// Learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Dimensionless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// β of the Muon rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Of the Muon rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<Nesterov>,
    /// β₁ and β₂ of the AdamW rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<(f64, f64)>,
    /// Of the AdamW rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
}

impl GroupScalars {
    /// Writes them into a rule; the name of one that the rule does not have.
    fn write(&self, rule: &mut Rule) -> Option<&'static str> {
        match rule {
            Rule::Muon(rule) => {
                rule.lr = self.lr.unwrap_or(rule.lr);
                rule.weight_decay = self.weight_decay.unwrap_or(rule.weight_decay);
                rule.momentum = self.momentum.unwrap_or(rule.momentum);
                rule.nesterov = self.nesterov.unwrap_or(rule.nesterov);
                self.betas.map(|_| "betas").or(self.eps.map(|_| "eps"))
            }
            Rule::AdamW(rule) => {
                rule.lr = self.lr.unwrap_or(rule.lr);
                rule.weight_decay = self.weight_decay.unwrap_or(rule.weight_decay);
                (rule.beta1, rule.beta2) = self.betas.unwrap_or((rule.beta1, rule.beta2));
                rule.eps = self.eps.unwrap_or(rule.eps);
                self.momentum.map(|_| "momentum").or(self.nesterov.map(|_| "nesterov"))
            }
        }
    }

    /// All of a rule's.
    fn of(rule: &Rule) -> Self {
        match rule {
            Rule::Muon(rule) => Self {
                lr: Some(rule.lr),
                weight_decay: Some(rule.weight_decay),
                momentum: Some(rule.momentum),
                nesterov: Some(rule.nesterov),
                ..Self::default()
            },
            Rule::AdamW(rule) => Self {
                lr: Some(rule.lr),
                weight_decay: Some(rule.weight_decay),
                betas: Some((rule.beta1, rule.beta2)),
                eps: Some(rule.eps),
                ..Self::default()
            },
        }
    }
}

impl<D: Device> Muon<D> {
    /// Sets scalars of a group for the steps to come: schedules of learning rate and decay, a warm-up of momentum.
    ///
    /// Plan, workspace and state stay, and a captured step takes the new values at its next replay. Scalars are
    /// hyper-parameters: a checkpoint does not hold them, so set them again after a resume, as a schedule does.
    ///
    /// # Cost
    /// None. On CUDA the scalars that changed are copied with the next step.
    ///
    /// # Errors
    /// A group of another optimizer, a scalar outside its range, or one that the group's rule does not have. Nothing changes.
    ///
    /// # Example
    /// ```
    /// use muon_cuda::{Cpu, GroupScalars, Muon, MuonConfig, MuonRule};
    ///
    /// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
    /// let hidden = muon.add_group("hidden", MuonRule::default())?;
    /// for step in 0..300u32 {
    ///     // Momentum from 0.85 to 0.95 over 300 steps, as modded-nanogpt warms it up.
    ///     let momentum = 0.85 + 0.10 * f64::from(step) / 300.0;
    ///     muon.set_scalars(hidden, GroupScalars { momentum: Some(momentum), ..GroupScalars::default() })?;
    ///     // … muon.step(…)
    /// }
    /// let wrong = GroupScalars { betas: Some((0.9, 0.95)), ..GroupScalars::default() };
    /// assert!(muon.set_scalars(hidden, wrong).unwrap_err().to_string().contains("`betas`"));
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn set_scalars(&mut self, group: GroupId, scalars: GroupScalars) -> Result<()> {
        let index = self.group_index(group)?;
        let group = &mut self.groups[index];
        let before = GroupScalars::of(&group.rule);
        let outcome = match scalars.write(&mut group.rule) {
            Some(other) => Err(Error::invalid_config(format!(
                "its rule has no `{other}`: expected scalars of {}",
                group.rule.modes()
            ))),
            None => group.rule.validate(),
        };
        if outcome.is_err() {
            before.write(&mut group.rule);
        }
        outcome.context(|| format!("group `{}`", group.name))
    }

    /// Sets a group's learning rate; [`Muon::set_scalars`] sets the others.
    ///
    /// # Errors
    /// A learning rate that is negative or not finite.
    pub fn set_lr(&mut self, group: GroupId, lr: f64) -> Result<()> {
        self.set_scalars(group, GroupScalars { lr: Some(lr), ..GroupScalars::default() })
    }
}
