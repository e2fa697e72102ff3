//! A recorded trajectory taken again, by the oracle or on a device.

use half::bf16;

use super::matrices::Matrices;
use super::recording::Case;
use super::{Target, VerifyOptions};
use crate::config::{Bf16Params, MuonConfig, MuonRule, Rule, WithoutMuon};
use crate::cpu::{Cpu, narrow};
#[cfg(feature = "cuda")]
use crate::cuda::Cuda;
use crate::device::{Counters, HostBuffer, StateData, StepTensor};
use crate::error::{Error, Result};
use crate::optimizer::{GroupId, Muon, ParamId, ParamSpec, StepOptions};
use crate::precision::Dtype;
use crate::reference::{self, Matrix, round_to_bf16};
use crate::transfer::Transfer;

/// What a trajectory starts from and is driven by, in the order in which the parameter is registered.
pub(super) struct Inputs {
    pub param0: Vec<f32>,
    pub momentum0: Option<Vec<f64>>,
    /// One a step; `None` is a step without a gradient.
    pub grads: Vec<Option<Vec<f32>>>,
}

/// Where it ended, in the same order.
pub(super) struct Replayed {
    pub param: Vec<f64>,
    pub momentum: Option<Vec<f64>>,
}

/// Takes the steps of a case. `matrices` is `None` under AdamW.
pub(super) fn replay(
    case: &Case,
    matrices: Option<&Matrices>,
    inputs: &Inputs,
    options: &VerifyOptions,
) -> Result<Replayed> {
    let config = |precision| MuonConfig {
        precision: Some(precision),
        momentum_dtype: options.momentum_dtype,
        bf16_params: case.bf16_params,
        ..MuonConfig::default()
    };
    match options.target {
        Target::Reference if options.momentum_dtype != Dtype::F32 => Err(Error::invalid_config(
            "the oracle keeps its momentum in f64: leave its dtype as it is",
        )),
        Target::Reference => by_the_oracle(case, matrices, inputs),
        Target::Cpu { precision, threads } => {
            OnDevice::new(Cpu::with_threads(threads)?, config(precision), case, matrices)?
                .replay(case, inputs)
        }
        #[cfg(feature = "cuda")]
        Target::Cuda { precision, ordinal } => {
            OnDevice::new(Cuda::new(ordinal)?, config(precision), case, matrices)?
                .replay(case, inputs)
        }
    }
}

/// An optimizer with the one parameter of a case.
struct OnDevice<D: Transfer> {
    muon: Muon<D>,
    group: GroupId,
    id: ParamId,
    matrices: usize,
    momentum_dtype: Dtype,
}

/// The parameter in the device's memory.
enum Param<D: Transfer> {
    F32(D::Tensor),
    Bf16(D::Bf16Tensor),
}

impl<D: Transfer> Param<D> {
    fn borrow(&mut self) -> D::ParamMut<'_> {
        match self {
            Self::F32(tensor) => D::param(tensor),
            Self::Bf16(tensor) => D::param_bf16(tensor),
        }
    }
}

impl<D: Transfer> OnDevice<D> {
    fn new(
        device: D,
        config: MuonConfig,
        case: &Case,
        matrices: Option<&Matrices>,
    ) -> Result<Self> {
        let momentum_dtype = config.momentum_dtype;
        // A recording of AdamW has nothing to orthogonalize.
        let config = MuonConfig { without_muon: WithoutMuon::Allow, ..config };
        let mut muon = Muon::new(device, config)?;
        let group = muon.add_group("recorded", case.rules[0].clone())?;
        let spec = match matrices {
            None => ParamSpec::new("param", &case.shape),
            Some(m) => ParamSpec::new("param", &m.shape).layout(m.layout).split(m.split.clone()),
        };
        let id = muon.add_param(group, spec.dtype(case.param_dtype))?;
        let matrices = matrices.map_or(0, |m| m.blocks.len());
        Ok(Self { muon, group, id, matrices, momentum_dtype })
    }

    fn replay(mut self, case: &Case, inputs: &Inputs) -> Result<Replayed> {
        if let Some(momentum) = &inputs.momentum0 {
            self.start_from(momentum)?;
        }
        let device = self.muon.device();
        let mut param: Param<D> = match case.param_dtype {
            Dtype::Bf16 => {
                let narrow: Vec<_> = inputs.param0.iter().map(|x| bf16::from_f32(*x)).collect();
                Param::Bf16(device.upload_bf16(&narrow)?)
            }
            _ => Param::F32(device.upload(&inputs.param0)?),
        };
        let mut in_force = &case.rules[0];
        for (rule, grad) in case.rules.iter().zip(&inputs.grads) {
            if rule != in_force {
                self.muon.set_rule(self.group, rule.clone())?;
                in_force = rule;
            }
            let grad = grad.as_ref().map(|g| self.muon.device().upload(g)).transpose()?;
            let mut tensors = [match &grad {
                Some(grad) => StepTensor::new(self.id, param.borrow(), D::grad(grad)),
                None => StepTensor::without_grad(self.id, param.borrow()),
            }];
            self.muon.step(&StepOptions::default(), &mut tensors)?;
        }
        let stepped = match &param {
            Param::F32(tensor) => {
                let mut out = vec![0.0; inputs.param0.len()];
                self.muon.device().read(tensor, &mut out)?;
                widen(&out)
            }
            Param::Bf16(tensor) => {
                let mut out = vec![bf16::ZERO; inputs.param0.len()];
                self.muon.device().read_bf16(tensor, &mut out)?;
                widen(&out)
            }
        };
        let momentum = match &self.muon.export_state(self.id)?.buffers[..] {
            [("momentum_buffer", HostBuffer::F32(m)), ..] => Some(widen(m)),
            [("momentum_buffer", HostBuffer::Bf16(m)), ..] => Some(widen(m)),
            _ => None,
        };
        Ok(Replayed { param: stepped, momentum })
    }

    fn start_from(&mut self, momentum: &[f64]) -> Result<()> {
        let narrow = momentum.iter().map(|x| narrow(*x));
        let buffer = match self.momentum_dtype {
            Dtype::Bf16 => HostBuffer::Bf16(narrow.map(bf16::from_f32).collect()),
            _ => HostBuffer::F32(narrow.collect()),
        };
        let counters = Counters { steps: 0, skipped: vec![0; self.matrices] };
        let state = StateData { buffers: vec![("momentum_buffer", buffer)], counters };
        self.muon.import_state(self.id, &state)
    }
}

fn widen(x: &[impl Into<f64> + Copy]) -> Vec<f64> {
    x.iter().map(|x| (*x).into()).collect()
}

fn by_the_oracle(case: &Case, matrices: Option<&Matrices>, inputs: &Inputs) -> Result<Replayed> {
    let mut param = widen(&inputs.param0);
    let rounds = |how| case.param_dtype == Dtype::Bf16 && case.bf16_params == how;
    let round = |param: &mut [f64]| param.iter_mut().for_each(|x| *x = round_to_bf16(*x));
    let steps = case.rules.iter().zip(&inputs.grads);
    let momentum = match matrices {
        None => {
            let (mut m, mut v) = (vec![0.0; param.len()], vec![0.0; param.len()]);
            let mut taken = 0;
            for (rule, grad) in steps {
                let (Rule::AdamW(rule), Some(grad)) = (rule, grad) else { continue };
                taken += 1;
                let (lr, grad) = (rule.lr, widen(grad));
                reference::adamw_step(rule, lr, taken, &mut param, &mut m, &mut v, &grad);
                if rounds(Bf16Params::Nearest) {
                    round(&mut param);
                }
            }
            None
        }
        Some(matrices) => {
            let mut momentum = inputs.momentum0.clone().unwrap_or_else(|| vec![0.0; param.len()]);
            for (rule, grad) in steps {
                let (Rule::Muon(rule), Some(grad)) = (rule, grad) else { continue };
                oracle_step(rule, matrices, &mut param, &mut momentum, &widen(grad))?;
                if rounds(Bf16Params::Nearest) {
                    round(&mut param);
                }
            }
            Some(momentum)
        }
    };
    // What is seen of a master copy is its rounding.
    if rounds(Bf16Params::Master) {
        round(&mut param);
    }
    Ok(Replayed { param, momentum })
}

/// One step of every matrix of a parameter.
fn oracle_step(
    rule: &MuonRule,
    matrices: &Matrices,
    param: &mut [f64],
    momentum: &mut [f64],
    grad: &[f64],
) -> Result<()> {
    for block in &matrices.blocks {
        let (rows, cols) = (block.shape.rows, block.shape.cols);
        let take = |from: &[f64]| {
            let rows_of = (0..rows).flat_map(|i| from[block.row(i)].iter().copied());
            Matrix::new(rows, cols, rows_of.collect())
        };
        let (mut w, mut m) = (take(param)?, take(momentum)?);
        reference::muon_step(rule, matrices.layout, rule.lr, &mut w, &mut m, &take(grad)?);
        for i in 0..rows {
            let row = i * cols..(i + 1) * cols;
            param[block.row(i)].copy_from_slice(&w.data()[row.clone()]);
            momentum[block.row(i)].copy_from_slice(&m.data()[row]);
        }
    }
    Ok(())
}
