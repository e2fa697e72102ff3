//! Steps of candle models on the GPU: variables and gradients where candle has them.

use std::cell::Cell;

use candle_core::cuda::{CudaStorage, CudaStorageSlice};
use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};

use super::{Cuda, CudaGrad, CudaParamMut};
use crate::candle::{NamedVar, candle_error};
use crate::device::StepTensor;
use crate::error::{Error, Result};
use crate::optimizer::{Muon, StepOptions, StepReport};
use crate::precision::Dtype;

/// A step of the variables that have gradients; `held` has their positions.
///
/// # Errors
/// As [`Muon::step`]; a gradient of another dtype or device, a variable that is not contiguous or changed its dtype.
pub(crate) fn step(
    muon: &mut Muon<Cuda>,
    options: &StepOptions,
    vars: &[NamedVar],
    held: &[(usize, Tensor)],
) -> Result<StepReport> {
    let stream = muon.device().stream().clone();
    let touch = |i: usize, when: When| {
        let v = &vars[i];
        let access = Access { stream: &stream, when, found: Cell::new(None) };
        v.var
            .inplace_op1(&access)
            .map_err(|e| candle_error(e).context(format!("param `{}`", v.name)))?;
        access.found.get().ok_or_else(|| {
            Error::device(format!("candle gave no access to the variable `{}`", v.name))
        })
    };
    let params = held.iter().map(|(i, _)| touch(*i, When::Before)).collect::<Result<Vec<_>>>()?;
    let outcome = {
        let guards: Vec<_> = held.iter().map(|(i, g)| (*i, g.storage_and_layout())).collect();
        let mut tensors = Vec::with_capacity(guards.len());
        for ((i, (storage, layout)), param) in guards.iter().zip(&params) {
            let elements = layout.shape().elem_count();
            let grad = gradient(&vars[*i].name, storage, layout.start_offset(), elements)?;
            // SAFETY: (1) candle told address and length under its write lock, and `vars` keeps the variable's storage alive;
            // candle allocates variables once and updates them in place; (2) candle's allocations are aligned; (3) candle's own
            // work goes to the same stream, and users on others were waited for and are told by events.
            let param = unsafe { CudaParamMut::from_raw(param.address, param.len, param.dtype) };
            tensors.push(StepTensor::<Cuda>::new(vars[*i].id, param, grad));
        }
        muon.step(options, &mut tensors)
    };
    for (i, _) in held {
        touch(*i, When::After)?;
    }
    outcome
}

/// A gradient as candle holds it.
fn gradient<'a>(
    name: &str,
    storage: &'a Storage,
    start: usize,
    len: usize,
) -> Result<CudaGrad<'a>> {
    let view = match storage {
        Storage::Cuda(storage) => match &storage.slice {
            CudaStorageSlice::F32(x) => x.try_slice(start..start + len).map(CudaGrad::from),
            CudaStorageSlice::BF16(x) => x.try_slice(start..start + len).map(CudaGrad::from),
            CudaStorageSlice::F16(x) => x.try_slice(start..start + len).map(CudaGrad::from),
            _ => None,
        },
        _ => None,
    };
    view.ok_or_else(|| {
        Error::dtype_mismatch(
            format!("gradient of `{name}`"),
            "f32, bf16 or fp16 on the GPU of its variable",
            "another",
        )
    })
}

/// Which side of the step an access is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Work that others enqueued comes first.
    Before,
    /// Work that others enqueue comes later.
    After,
}

/// Where a variable's elements are.
#[derive(Debug, Clone, Copy)]
struct Found {
    address: u64,
    len: usize,
    dtype: Dtype,
}

/// Takes the address of a variable through candle's interface for operations in place, which has the only mutable access.
struct Access<'a> {
    stream: &'a CudaStream,
    when: When,
    found: Cell<Option<Found>>,
}

impl Access<'_> {
    fn note<T>(&self, slice: &mut CudaSlice<T>, layout: &Layout, dtype: Dtype) {
        let (address, guard) = slice.device_ptr_mut(self.stream);
        if self.when == When::Before {
            // The guard would tell others that the work is enqueued, which it is not yet.
            std::mem::forget(guard);
        }
        let offset = layout.start_offset() * dtype.bytes();
        let address = address + offset as u64;
        self.found.set(Some(Found { address, len: layout.shape().elem_count(), dtype }));
    }
}

impl InplaceOp1 for Access<'_> {
    fn name(&self) -> &'static str {
        "muon-step"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("the variable moved to the CPU since it was registered")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        if !layout.is_contiguous() {
            candle_core::bail!("a variable must be contiguous");
        }
        match &mut storage.slice {
            CudaStorageSlice::F32(x) => self.note(x, layout, Dtype::F32),
            CudaStorageSlice::BF16(x) => self.note(x, layout, Dtype::Bf16),
            _ => candle_core::bail!("the variable's dtype changed since it was registered"),
        }
        Ok(())
    }
}
