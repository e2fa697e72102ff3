//! Restoring: the whole state of an optimizer, or what of a checkpoint fits it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Checkpoint, SavedParam};
use crate::device::{Device, StateData};
use crate::error::{Error, Result, ResultExt};
use crate::optimizer::{Muon, Param};

/// What [`Muon::restore_matching`] did with each parameter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestoreReport {
    /// They have the checkpoint's state.
    pub restored: Vec<String>,
    /// Registered and not in the checkpoint: they keep the state that they had.
    pub missing: Vec<String>,
    /// In the checkpoint and not registered.
    pub unexpected: Vec<String>,
    /// In both, and not alike: they keep the state that they had.
    pub mismatched: Vec<Mismatch>,
}

/// A parameter whose state in a checkpoint does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mismatch {
    /// Which one.
    pub name: String,
    /// What was expected, and what the checkpoint holds: shape, dtype, rule, momentum mode, buffers.
    pub reason: String,
}

impl RestoreReport {
    /// Whether every parameter was restored and nothing of the checkpoint is left.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for RestoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "restored {} parameters", self.restored.len())?;
        for (what, names) in
            [("not in the checkpoint", &self.missing), ("not registered", &self.unexpected)]
        {
            for name in names {
                writeln!(f, "  `{name}`: {what}")?;
            }
        }
        for Mismatch { name, reason } in &self.mismatched {
            writeln!(f, "  `{name}`: {reason}")?;
        }
        Ok(())
    }
}

impl<D: Device> Muon<D> {
    /// Replaces the state of every parameter by the checkpoint's.
    ///
    /// The steps that follow are bit for bit those of a run that never stopped, on any device, where the parameters are
    /// loaded too. Hyper-parameters are the configuration's, not the checkpoint's. A master copy that the checkpoint does
    /// not hold is made from the parameter at its next step.
    ///
    /// # Errors
    /// A parameter on one side only, another shape, dtype, rule or momentum mode, a master copy where the configuration keeps
    /// none; the state stays as it was. [`Muon::restore_matching`] takes what fits.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        for name in checkpoint.param_names() {
            if !self.param_names().any(|n| n == name) {
                return Err(Error::checkpoint(format!(
                    "the checkpoint has state for `{name}`, which is not registered; register it, remove it from the run \
                     that wrote the checkpoint, or restore what matches"
                )));
            }
        }
        let mut states = Vec::with_capacity(self.params().len());
        for position in 0..self.params().len() {
            let param = &self.params()[position];
            let name = &param.spec.name;
            let Some((saved, state)) = checkpoint.find(name) else {
                return Err(Error::checkpoint(format!(
                    "the checkpoint has no state for `{name}`; it holds {} parameters",
                    checkpoint.params.len()
                )));
            };
            check(param, &self.modes(param), saved, state)
                .context(|| format!("restore `{name}`"))?;
            states.push(self.import_at(position, state)?);
        }
        self.replace_states(states);
        Ok(())
    }

    /// Replaces the state of those parameters that the checkpoint has fitting state for, and reports every other.
    ///
    /// For a model that grew, lost or changed layers since. Parameters that are not restored keep the state that they have;
    /// call it before the first step and that is zero. [`Checkpoint::rename`] comes first where names changed.
    ///
    /// # Errors
    /// No parameter fits; a failed device; a torn optimizer of which any parameter would not be restored. The state stays as
    /// it was.
    ///
    /// # Example
    /// ```
    /// use muon_cuda::{Cpu, Muon, MuonConfig, MuonRule, ParamSpec};
    ///
    /// let optimizer = |shapes: &[(&str, [usize; 2])]| {
    ///     let mut muon = Muon::new(Cpu::with_threads(1)?, MuonConfig::default())?;
    ///     let hidden = muon.add_group("hidden", MuonRule::default())?;
    ///     for (name, shape) in shapes {
    ///         muon.add_param(hidden, ParamSpec::new(*name, shape))?;
    ///     }
    ///     Ok::<_, muon_cuda::Error>(muon)
    /// };
    /// let checkpoint = optimizer(&[("a", [2, 3]), ("b", [4, 4]), ("old", [5, 5])])?.checkpoint()?;
    /// let report = optimizer(&[("a", [2, 3]), ("b", [4, 8]), ("new", [5, 5])])?.restore_matching(&checkpoint)?;
    /// assert_eq!((&report.restored[..], &report.missing[..]), (&["a".to_owned()][..], &["new".to_owned()][..]));
    /// assert_eq!((&report.unexpected[..], &report.mismatched[0].name[..]), (&["old".to_owned()][..], "b"));
    /// print!("{report}");     // … `b`: shape in the checkpoint: expected [4, 8], found [4, 4]
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn restore_matching(&mut self, checkpoint: &Checkpoint) -> Result<RestoreReport> {
        let mut report = RestoreReport::default();
        let mut fitting = Vec::new();
        for (position, param) in self.params().iter().enumerate() {
            let name = param.spec.name.clone();
            match checkpoint.find(&name) {
                None => report.missing.push(name),
                Some((saved, state)) => match check(param, &self.modes(param), saved, state) {
                    Ok(()) => {
                        report.restored.push(name);
                        fitting.push((position, state));
                    }
                    Err(e) => report.mismatched.push(Mismatch { name, reason: e.to_string() }),
                },
            }
        }
        let known = |name: &&str| self.param_names().any(|n| n == *name);
        report.unexpected =
            checkpoint.param_names().filter(|n| !known(n)).map(str::to_owned).collect();
        if report.restored.is_empty() {
            return Err(Error::checkpoint(format!(
                "nothing in the checkpoint fits: of {} registered parameters {} are not in it and {} are not alike; \
                 rename its parameters if they have other names. {}",
                self.params().len(),
                report.missing.len(),
                report.mismatched.len(),
                report.to_string().trim_end().replace('\n', ";")
            )));
        }
        let whole = report.restored.len() == self.params().len();
        if !whole {
            self.refuse_torn().context(|| "restore what matches")?;
        }
        let mut states = Vec::with_capacity(fitting.len());
        for (position, state) in fitting {
            states.push((position, self.import_at(position, state)?));
        }
        if whole {
            self.replace_states(states.into_iter().map(|(_, state)| state).collect());
        } else {
            self.replace_some(states);
        }
        Ok(report)
    }

    /// A new state for the parameter at that position.
    fn import_at(&mut self, position: usize, state: &StateData) -> Result<D::State> {
        let (device, params, _) = self.parts();
        let param = &params[position];
        device
            .import_state(&param.state, state)
            .context(|| format!("restore `{}`", param.spec.name))
    }
}

impl Checkpoint {
    fn find(&self, name: &str) -> Option<(&SavedParam, &StateData)> {
        let i = self.params.iter().position(|p| p.name == name)?;
        Some((self.params.get(i)?, self.states.get(i)?))
    }
}

/// Whether saved state is that of a parameter.
fn check(param: &Param, modes: &str, saved: &SavedParam, state: &StateData) -> Result<()> {
    if saved.shape != param.spec.shape {
        return Err(Error::shape_mismatch(
            "shape in the checkpoint",
            format!("{:?}", param.spec.shape),
            format!("{:?}", saved.shape),
        ));
    }
    if saved.dtype != param.spec.dtype.to_string() {
        return Err(Error::dtype_mismatch(
            "parameter in the checkpoint",
            param.spec.dtype,
            &saved.dtype,
        ));
    }
    if saved.modes != modes {
        return Err(Error::checkpoint(format!(
            "its state was made under other modes: expected `{modes}`, found `{}`",
            saved.modes
        )));
    }
    param.state.check(state)
}
