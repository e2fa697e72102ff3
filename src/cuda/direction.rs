//! The direction of one matrix on the host: gradient and momentum (with L2 decay the parameter too) are copied there and blended as the CPU device does,
//! whose bits pass A has.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DeviceRepr, result};
use half::{bf16, f16};

use super::Cuda;
use super::state::CudaState;
use super::status::driver_error;
use crate::cpu::{CpuGrad, Weights, direction_of};
use crate::device::{HostBuffer, MatrixJob, StepTensor};
use crate::error::Result;
use crate::precision::Dtype;
use crate::shape::Block;

/// Writes the direction of a job to `out` and returns its Frobenius norm; waits for the stream. `grad_scale` is the
/// address of the factor of the gradients.
///
/// # Errors
/// A failed device.
pub(super) fn direction(
    stream: &Arc<CudaStream>,
    grad_scale: u64,
    job: &MatrixJob,
    tensors: &[StepTensor<'_, Cuda>],
    states: &[CudaState],
    out: &mut Vec<f32>,
) -> Result<f64> {
    let (tensor, state) = (&tensors[job.tensor], &states[job.param]);
    let Some(grad) = &tensor.grad else {
        out.clear();
        return Ok(0.0);
    };
    let grad = grad.info();
    let scale = read::<f32>(stream, grad_scale, 1, "the factor of the gradients")?;
    // From the matrix's first element to its last: what lies between its rows comes along.
    let block = &job.block;
    let len = (block.shape.rows - 1) * block.row_stride + block.shape.cols;
    let at = |address: u64, dtype: Dtype| address + block.offset as u64 * dtype.bytes() as u64;
    let momentum_dtype = state.momentum_dtype();
    let momentum_at = at(state.buffer(0), momentum_dtype);
    let momentum = match momentum_dtype {
        Dtype::Bf16 => HostBuffer::Bf16(read(stream, momentum_at, len, "momentum")?),
        _ => HostBuffer::F32(read(stream, momentum_at, len, "momentum")?),
    };
    // The weights that L2 decay adds: the master copy once it is there, as in pass A.
    let (param, decays) = (tensor.param.info(), job.scalars.l2 != 0.0);
    let (master, none) = (state.master() != 0 && !state.lacks_master(), Weights::None);
    let (wide, narrow): (Vec<f32>, Vec<bf16>);
    let weights = match param.dtype {
        _ if !decays => none,
        _ if master => {
            wide = read(stream, at(state.master(), Dtype::F32), len, "a master copy")?;
            Weights::F32(&wide)
        }
        Dtype::Bf16 => {
            narrow = read(stream, at(param.address as u64, param.dtype), len, "a parameter")?;
            Weights::Bf16(&narrow)
        }
        _ => {
            wide = read(stream, at(param.address as u64, param.dtype), len, "a parameter")?;
            Weights::F32(&wide)
        }
    };
    let block = Block { offset: 0, ..*block };
    let scale = scale.first().copied().unwrap_or(0.0);
    let mut run = |grad: CpuGrad<'_>| {
        direction_of(&block, &job.scalars, grad, &momentum, weights, scale, out)
    };
    let grad_at = at(grad.address as u64, grad.dtype);
    let sum = match grad.dtype {
        Dtype::F32 => run(CpuGrad::F32(&read::<f32>(stream, grad_at, len, "a gradient")?)),
        Dtype::Bf16 => run(CpuGrad::Bf16(&read::<bf16>(stream, grad_at, len, "a gradient")?)),
        Dtype::F16 => run(CpuGrad::F16(&read::<f16>(stream, grad_at, len, "a gradient")?)),
    };
    Ok(sum.sqrt())
}

/// Elements at an address, on the host.
///
/// # Errors
/// A failed device.
fn read<T: DeviceRepr + Clone + Default>(
    stream: &Arc<CudaStream>,
    address: u64,
    len: usize,
    what: &str,
) -> Result<Vec<T>> {
    let mut out = vec![T::default(); len];
    let failed = |e| driver_error(e, format_args!("copying {what} to the host"));
    // SAFETY: (1) the address is that of `len` elements: a block of a gradient or momentum that the optimizer checked against
    // its registered shape, or the factor's buffer; (2) `out` holds as many and outlives the copy, for which the
    // stream is waited for below; (3) work that writes them is on this stream or was fenced by the caller.
    let copied = unsafe { result::memcpy_dtoh_async(&mut out, address, stream.cu_stream()) };
    // Waited for even if the copy failed: nothing may write to `out` afterwards.
    let waited = stream.synchronize();
    copied.map_err(failed)?;
    waited.map_err(failed)?;
    Ok(out)
}
