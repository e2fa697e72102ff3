//! Exchange of optimizer state with PyTorch, by plain safetensors.

use std::path::Path;

use half::bf16;

use crate::checkpoint::{TensorFile, TensorFileWriter};
use crate::config::{MomentumMode, Rule};
use crate::device::{Counters, Device, HostBuffer, StateData, StateRule, StateSpec, coordinates};
use crate::error::{Error, Result, ResultExt};
use crate::optimizer::Muon;
use crate::precision::Dtype;

/// PyTorch counts steps in f32, which is exact below this.
const LARGEST_STEP: u64 = 1 << 24;

/// What `torch.optim.Muon` and `AdamW` keep for a parameter, the maximum of AMSGrad included, which has no counterpart here.
const KEYS: [&str; 5] = ["momentum_buffer", "exp_avg", "exp_avg_sq", "step", "max_exp_avg_sq"];

/// One tensor of the file.
type Tensor = (String, Vec<usize>, HostBuffer);

impl<D: Device> Muon<D> {
    /// Writes momentum and AdamW moments as plain safetensors, named, shaped and typed as PyTorch's optimizers hold
    /// them: `<param>.momentum_buffer`, or `<param>.exp_avg`, `<param>.exp_avg_sq` and `<param>.step`.
    ///
    /// PyTorch's steps need state of the parameter's own dtype, to which its `load_state_dict` casts as well. So the state
    /// of bf16 parameters is rounded to bf16, and bf16 momentum of f32 parameters is written as f32. A parameter whose state
    /// is zero, as before its first step, has no tensor: PyTorch makes state at the first step. Master copies are not
    /// written. A [`Checkpoint`](crate::Checkpoint) keeps everything.
    ///
    /// `tools/torch_state.py` turns the file into the `state_dict` of `torch.optim.Muon` and `AdamW`.
    ///
    /// # Errors
    /// A group whose momentum is a sum (PyTorch keeps the EMA), a number that is not finite, in the parameter's dtype
    /// neither, 2²⁴ steps or more, a torn optimizer, or a failed file-system call.
    pub fn export_torch_state(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.refuse_torn_checkpoint()?;
        let mut tensors = Vec::new();
        for position in 0..self.params().len() {
            refuse_sum(self.rule_at(position), &self.params()[position].spec.name)?;
            let (device, params, states) = self.parts();
            let spec = &params[position].spec;
            let state = device.export_state(&states[position])?;
            tensors.extend(
                exported(&spec.name, &spec.shape, spec.dtype, &state)
                    .context(|| "export PyTorch state")?,
            );
        }
        let mut writer = TensorFileWriter::new();
        for (name, shape, data) in &tensors {
            match data {
                HostBuffer::F32(x) => writer.values(name, shape, x)?,
                HostBuffer::Bf16(x) => writer.values(name, shape, x)?,
            };
        }
        writer.save(path).context(|| "export PyTorch state")
    }

    /// Replaces the state of every parameter by PyTorch's, as [`Muon::export_torch_state`] writes it.
    ///
    /// A parameter without state in the file gets zeros, as in PyTorch before its first step. Other tensors of the file are
    /// left alone. Master copies of bf16 parameters are made anew from the parameters at the next step.
    ///
    /// # Errors
    /// A part of a parameter's state that is missing, another shape or dtype; state of the other rule; a number that is not
    /// finite, or a negative second moment; a parameter without state while the file has state under a name that is not
    /// registered; a file without any state among its tensors; a group whose momentum is a sum; a torn optimizer. The state
    /// stays as it was.
    pub fn import_torch_state(&mut self, path: impl AsRef<Path>) -> Result<()> {
        self.refuse_torn_checkpoint().map_err(|e| e.context("import PyTorch state"))?;
        let file = TensorFile::load(path)?;
        let mut states = Vec::with_capacity(self.params().len());
        let mut absent = None;
        for position in 0..self.params().len() {
            refuse_sum(self.rule_at(position), &self.params()[position].spec.name)?;
            let (device, params, _) = self.parts();
            let (spec, param) = (&params[position].state, &params[position].spec);
            let data = imported(&file, &param.name, &param.shape, spec)
                .context(|| format!("import `{}`", param.name))?;
            states.push(match data {
                Some(data) => device
                    .import_state(spec, &data)
                    .context(|| format!("import `{}`", param.name))?,
                None => {
                    absent.get_or_insert_with(|| param.name.clone());
                    device.new_state(spec)?
                }
            });
        }
        if let Some(absent) = absent {
            self.refuse_other_names(&file, &absent)?;
        }
        self.replace_states(states);
        Ok(())
    }

    /// Absent state means zero, but not where the file has some that nothing takes: that is a name that differs.
    fn refuse_other_names(&self, file: &TensorFile, absent: &str) -> Result<()> {
        let owners = || {
            file.names().filter_map(|n| n.rsplit_once('.')).filter(|(_, key)| KEYS.contains(key))
        };
        if let Some((other, _)) =
            owners().find(|(owner, _)| !self.param_names().any(|n| n == *owner))
        {
            return Err(Error::checkpoint(format!(
                "the file has no state for `{absent}`, and has state for `{other}`, which is not registered; give the \
                 tensors the names of the registered parameters"
            )));
        }
        if owners().next().is_none() && file.names().len() > 0 {
            return Err(Error::checkpoint(format!(
                "none of the file's {} tensors is optimizer state, such as `{absent}.momentum_buffer` or \
                 `{absent}.exp_avg`",
                file.names().len()
            )));
        }
        Ok(())
    }
}

/// A parameter's state as PyTorch holds it; nothing where it is what PyTorch starts with.
fn exported(name: &str, shape: &[usize], dtype: Dtype, state: &StateData) -> Result<Vec<Tensor>> {
    let zero = |b: &HostBuffer| match b {
        HostBuffer::F32(x) => x.iter().all(|x| x.to_bits() == 0),
        HostBuffer::Bf16(x) => x.iter().all(|x| x.to_bits() == 0),
    };
    let moments = || state.buffers.iter().filter(|(buffer, _)| *buffer != "master");
    let steps = state.counters.steps;
    let adamw = moments().any(|(buffer, _)| *buffer == "exp_avg");
    if moments().all(|(_, data)| zero(data)) && !(adamw && steps > 0) {
        return Ok(Vec::new());
    }
    let mut out = Vec::new();
    for (buffer, data) in moments() {
        let tensor = format!("{name}.{buffer}");
        let data = in_dtype(&tensor, shape, dtype, data)?;
        out.push((tensor, shape.to_vec(), data));
    }
    if adamw {
        if steps >= LARGEST_STEP {
            return Err(Error::unsupported(format!(
                "`{name}` has taken {steps} steps; PyTorch counts in f32, expected fewer than {LARGEST_STEP}"
            )));
        }
        out.push((format!("{name}.step"), Vec::new(), HostBuffer::F32(vec![steps as f32])));
    }
    Ok(out)
}

/// The numbers in the dtype of their parameter.
fn in_dtype(tensor: &str, shape: &[usize], dtype: Dtype, data: &HostBuffer) -> Result<HostBuffer> {
    let wide: Vec<f32> = match data {
        HostBuffer::F32(x) => x.clone(),
        HostBuffer::Bf16(x) => x.iter().map(|x| x.to_f32()).collect(),
    };
    let (finite, data) = match dtype {
        Dtype::Bf16 => {
            let narrow: Vec<bf16> = wide.iter().map(|x| bf16::from_f32(*x)).collect();
            (narrow.iter().position(|x| !x.is_finite()), HostBuffer::Bf16(narrow))
        }
        _ => (wide.iter().position(|x| !x.is_finite()), HostBuffer::F32(wide.clone())),
    };
    match finite {
        None => Ok(data),
        Some(index) => Err(Error::non_finite(format!(
            "tensor `{tensor}`, element {:?}: `{:e}` is not a finite number in {dtype}, the dtype of the parameter and so of \
             its state in PyTorch",
            coordinates(index, shape),
            wide[index]
        ))),
    }
}

/// A parameter's state from the file; `None` where the file has nothing of it.
fn imported(
    file: &TensorFile,
    name: &str,
    shape: &[usize],
    spec: &StateSpec,
) -> Result<Option<StateData>> {
    let held = |key: &str| file.dtype(&format!("{name}.{key}")).is_ok();
    let adamw = spec.rule == StateRule::AdamW;
    let expected: &[&str] =
        if adamw { &["exp_avg", "exp_avg_sq", "step"] } else { &["momentum_buffer"] };
    if let Some(other) = KEYS.into_iter().find(|key| !expected.contains(key) && held(key)) {
        return Err(Error::checkpoint(format!(
            "expected state of the {} rule ({}), found `{name}.{other}`",
            if adamw { "AdamW" } else { "Muon" },
            expected.join(", ")
        )));
    }
    if !expected.iter().any(|key| held(key)) {
        return Ok(None);
    }
    let mut buffers = Vec::new();
    for (buffer, dtype) in spec.buffers().into_iter().filter(|(buffer, _)| *buffer != "master") {
        let tensor = format!("{name}.{buffer}");
        let found = file.shape(&tensor)?;
        if found != shape {
            return Err(Error::shape_mismatch(
                format!("tensor `{tensor}`"),
                format!("{shape:?}"),
                format!("{found:?}"),
            ));
        }
        let values = file.f32(&tensor)?;
        buffers.push((
            buffer,
            match dtype {
                Dtype::Bf16 => HostBuffer::Bf16(exact_bf16(&tensor, &values)?),
                _ => HostBuffer::F32(values),
            },
        ));
    }
    let steps = if adamw { step_count(file, &format!("{name}.step"))? } else { 0 };
    let counters = Counters { steps, skipped: vec![0; spec.matrices()] };
    let data = StateData { buffers, counters };
    data.check_values(shape)?;
    Ok(Some(data))
}

/// A state dtype is never narrowed in silence: values that bf16 cannot hold exactly are refused.
fn exact_bf16(name: &str, values: &[f32]) -> Result<Vec<bf16>> {
    let narrowed: Vec<_> = values.iter().map(|x| bf16::from_f32(*x)).collect();
    if narrowed.iter().zip(values).any(|(b, x)| b.to_f32() != *x && !x.is_nan()) {
        return Err(Error::dtype_mismatch(
            format!("tensor `{name}` (momentum is configured as bf16)"),
            "values that bf16 holds exactly",
            "f32 values that would be rounded",
        ));
    }
    Ok(narrowed)
}

fn step_count(file: &TensorFile, name: &str) -> Result<u64> {
    let values = file.f32(name)?;
    match values[..] {
        [step] if step >= 0.0 && step.fract() == 0.0 && step < LARGEST_STEP as f32 => {
            format!("{step}").parse().map_err(|e| Error::parse(format!("tensor `{name}`: {e}")))
        }
        _ => Err(Error::shape_mismatch(
            format!("tensor `{name}`"),
            "one whole number of steps",
            format!("{values:?}"),
        )),
    }
}

fn refuse_sum(rule: &Rule, name: &str) -> Result<()> {
    match rule {
        Rule::Muon(rule) if rule.momentum_mode == MomentumMode::Sum => {
            Err(Error::unsupported(format!(
                "`{name}` keeps its momentum as a sum; PyTorch keeps an exponential moving average ({:?})",
                MomentumMode::Ema
            )))
        }
        _ => Ok(()),
    }
}
