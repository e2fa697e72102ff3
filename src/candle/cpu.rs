//! Steps of candle models on the CPU: a variable's elements are taken out, stepped and put back.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Storage, Tensor, Var};
use half::bf16;

use super::{NamedVar, candle_error};
use crate::cpu::{Cpu, CpuGrad, CpuParamMut};
use crate::device::StepTensor;
use crate::error::{Error, Result};
use crate::optimizer::{Muon, StepOptions, StepReport};

/// A step of the variables that have gradients; `held` has their positions.
///
/// # Errors
/// As [`Muon::step`]; a gradient of another dtype or device.
pub(super) fn step(
    muon: &mut Muon<Cpu>,
    options: &StepOptions,
    vars: &[NamedVar],
    held: &[(usize, Tensor)],
) -> Result<StepReport> {
    let guards: Vec<_> = held.iter().map(|(i, g)| (*i, g.storage_and_layout())).collect();
    let mut borrowed = Vec::with_capacity(guards.len());
    for (i, (storage, layout)) in &guards {
        let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        borrowed.push((*i, cpu_grad(&vars[*i].name, storage, range)?));
    }
    let mut lent: Vec<Lent> = Vec::with_capacity(borrowed.len());
    for (i, _) in &borrowed {
        let v = &vars[*i];
        let taken = Lent::take(v);
        lent.push(taken.map_err(|e| candle_error(e).context(format!("param `{}`", v.name)))?);
    }
    let outcome = {
        let mut tensors: Vec<_> = lent
            .iter_mut()
            .zip(&borrowed)
            .map(|(lent, (i, grad))| {
                StepTensor::<Cpu>::new(vars[*i].id, lent.buffer.as_param(), *grad)
            })
            .collect();
        muon.step(options, &mut tensors)
    };
    for lent in lent {
        lent.give_back().map_err(candle_error)?;
    }
    outcome
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
