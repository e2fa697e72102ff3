//! The library's optimizer on a device, for a model whose numbers are on the host.

use anyhow::{Context, Result, bail};
use muon_cuda::spectrum::SpectrumRecord;
use muon_cuda::{
    Counters, HostBuffer, Muon, MuonConfig, MuonRule, ParamId, ParamSpec, StateData, StepOptions,
    StepTensor, Transfer,
};

use super::optimizer::{Assignment, key};
use super::param::Param;
use super::store::{Numbers, Stored, Tensors};

/// What a run asks of an optimizer, whatever its device.
pub(crate) trait Steps {
    /// What is orthogonalized and what is not, for people.
    fn routing(&self) -> String;

    /// One step with the gradients that lie in the parameters.
    ///
    /// # Errors
    /// Of the library.
    fn step(&mut self, lr_factor: f64, params: &mut [Param]) -> Result<()>;

    /// Singular values of what the next step will orthogonalize; changes nothing.
    ///
    /// # Errors
    /// Of the library.
    fn spectra(&mut self, lr_factor: f64, params: &[Param]) -> Result<Vec<SpectrumRecord>>;

    /// Everything that must outlive a step, by name.
    ///
    /// # Errors
    /// Of the device.
    fn save(&mut self, tensors: &mut Tensors) -> Result<()>;

    /// The counterpart of [`Steps::save`].
    ///
    /// # Errors
    /// A missing buffer, or one of another type or length.
    fn load(&mut self, tensors: &Stored) -> Result<()>;
}

/// A parameter on the device; the model's own numbers are copied there and back around a step.
struct OnDevice<D: Transfer> {
    name: String,
    id: ParamId,
    param: D::Tensor,
    grad: D::Tensor,
}

/// The optimizer of a model.
pub(crate) struct DeviceStepper<D: Transfer> {
    muon: Muon<D>,
    params: Vec<OnDevice<D>>,
    routing: String,
}

/// What a step is called with, and on what.
type Inputs<'s, D> = (&'s mut Muon<D>, StepOptions, Vec<StepTensor<'s, D>>);

impl<D: Transfer> DeviceStepper<D> {
    /// # Errors
    /// Hyper-parameters outside their range, a schedule that is not safe in the precision, no memory.
    pub(crate) fn new(
        device: D,
        config: MuonConfig,
        params: &[Param],
        assignments: Vec<Assignment>,
    ) -> Result<Self> {
        let mut muon = Muon::new(device, config)?;
        let mut on_device = Vec::with_capacity(params.len());
        let orthogonalizes = assignments.iter().any(|a| a.rule.is_muon());
        let mut groups: Vec<(String, muon_cuda::GroupId)> = Vec::new();
        for (p, a) in params.iter().zip(assignments) {
            let group = match groups.iter().find(|(name, _)| *name == a.group) {
                Some((_, id)) => *id,
                None => {
                    let id = muon.add_group(&a.group, a.rule)?;
                    groups.push((a.group, id));
                    id
                }
            };
            on_device.push(OnDevice {
                name: p.name.clone(),
                id: muon.add_param(group, ParamSpec::new(&p.name, &a.shape))?,
                param: muon.device().upload(&p.data)?,
                grad: muon.device().upload(&p.grad)?,
            });
        }
        let routing = muon.routing().to_string();
        if !orthogonalizes {
            // A Muon that orthogonalizes nothing is refused as a mistake; AdamW alone is meant here, so a
            // parameter that never has a gradient stands in.
            let group = muon.add_group("stand-in", MuonRule::default())?;
            muon.add_param(group, ParamSpec::new("stand-in", &[1, 1]))?;
        }
        Ok(Self { muon, params: on_device, routing })
    }

    /// Copies parameters and gradients to the device.
    fn inputs(&mut self, lr_factor: f64, params: &[Param]) -> Result<Inputs<'_, D>> {
        let mut tensors = Vec::with_capacity(params.len());
        for (p, d) in params.iter().zip(&mut self.params) {
            self.muon.device().write(&mut d.param, &p.data)?;
            self.muon.device().write(&mut d.grad, &p.grad)?;
            tensors.push(StepTensor::new(d.id, D::param(&mut d.param), D::grad(&d.grad)));
        }
        Ok((&mut self.muon, StepOptions { lr_factor, ..StepOptions::default() }, tensors))
    }
}

impl<D: Transfer> Steps for DeviceStepper<D> {
    fn routing(&self) -> String {
        self.routing.clone()
    }

    fn step(&mut self, lr_factor: f64, params: &mut [Param]) -> Result<()> {
        let (muon, options, mut tensors) = self.inputs(lr_factor, params)?;
        muon.step(&options, &mut tensors)?;
        drop(tensors);
        for (p, d) in params.iter_mut().zip(&self.params) {
            self.muon.device().read(&d.param, &mut p.data)?;
        }
        Ok(())
    }

    fn spectra(&mut self, lr_factor: f64, params: &[Param]) -> Result<Vec<SpectrumRecord>> {
        let (muon, options, tensors) = self.inputs(lr_factor, params)?;
        Ok(muon.direction_spectra(&options, &tensors)?)
    }

    fn save(&mut self, tensors: &mut Tensors) -> Result<()> {
        for OnDevice { name, id, .. } in &self.params {
            let state = self.muon.export_state(*id)?;
            for (buffer, data) in state.buffers {
                match data {
                    HostBuffer::F32(v) => tensors.insert(&key(name, buffer), Numbers::F32(v)),
                    HostBuffer::Bf16(_) => bail!("`{name}`: bf16 state in an f32 run"),
                }
            }
            let Counters { steps, skipped } = state.counters;
            tensors.insert(&key(name, "steps"), Numbers::U64(vec![steps]));
            tensors.insert(&key(name, "skipped"), Numbers::U64(skipped));
        }
        Ok(())
    }

    fn load(&mut self, tensors: &Stored) -> Result<()> {
        for OnDevice { name, id, .. } in &self.params {
            // The state as it is now has the names and lengths that the file must have.
            let fresh = self.muon.export_state(*id)?;
            let buffers = fresh
                .buffers
                .iter()
                .map(|(b, data)| Ok((*b, HostBuffer::F32(tensors.f32(&key(name, b), data.len())?))))
                .collect::<Result<Vec<_>>>()?;
            let counters = Counters {
                steps: tensors.scalar(&key(name, "steps"))?,
                skipped: tensors.u64(&key(name, "skipped"), fresh.counters.skipped.len())?,
            };
            self.muon
                .import_state(*id, &StateData { buffers, counters })
                .with_context(|| format!("optimizer state of `{name}`"))?;
        }
        Ok(())
    }
}
