//! Tensors of programs that keep their own on the host, whatever device the optimizer runs on.

use std::fmt;

use half::bf16;

use crate::cpu::Cpu;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory;

/// A device that can own f32 tensors and bf16 parameters and copy them from and to the host.
///
/// For programs that make gradients on the host and want to step on any device, as `muon train` and
/// [`verify`](crate::verify) do. A trainer whose tensors are on the device hands them over as they are instead.
///
/// # Example
/// ```
/// use muon_cuda::{Cpu, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor, Transfer};
///
/// fn one_step<D: Transfer>(device: D, param: &mut [f32], grad: &[f32]) -> muon_cuda::Result<()> {
///     let mut muon = Muon::new(device, MuonConfig::default())?;
///     let hidden = muon.add_group("hidden", MuonRule::default())?;
///     let id = muon.add_param(hidden, ParamSpec::new("w", &[2, 2]))?;
///     let (mut w, g) = (muon.device().upload(param)?, muon.device().upload(grad)?);
///     muon.step(&StepOptions::default(), &mut [StepTensor::new(id, D::param(&mut w), D::grad(&g))])?;
///     muon.device().read(&w, param)
/// }
/// let mut param = [0.0f32; 4];
/// one_step(Cpu::new()?, &mut param, &[1.0, 0.0, 0.0, -1.0])?;
/// assert!(param[0] < 0.0 && param[3] > 0.0);
/// # Ok::<(), muon_cuda::Error>(())
/// ```
pub trait Transfer: Device {
    /// f32 elements in the device's memory.
    type Tensor: fmt::Debug;

    /// bf16 elements in the device's memory.
    type Bf16Tensor: fmt::Debug;

    /// A new tensor with these elements.
    ///
    /// # Errors
    /// Out of memory, a failed device.
    fn upload(&self, elements: &[f32]) -> Result<Self::Tensor>;

    /// Replaces all elements; ordered after the steps before and before those that follow.
    ///
    /// # Errors
    /// Another number of elements, a failed device.
    fn write(&self, tensor: &mut Self::Tensor, elements: &[f32]) -> Result<()>;

    /// Copies all elements to the host; waits for the device.
    ///
    /// # Errors
    /// Another number of elements; a failed device, that of earlier steps included.
    fn read(&self, tensor: &Self::Tensor, elements: &mut [f32]) -> Result<()>;

    /// As [`Transfer::upload`], for a bf16 parameter.
    ///
    /// # Errors
    /// Out of memory, a failed device.
    fn upload_bf16(&self, elements: &[bf16]) -> Result<Self::Bf16Tensor>;

    /// As [`Transfer::read`], for a bf16 parameter.
    ///
    /// # Errors
    /// Another number of elements; a failed device, that of earlier steps included.
    fn read_bf16(&self, tensor: &Self::Bf16Tensor, elements: &mut [bf16]) -> Result<()>;

    /// The bf16 tensor as the parameter of a step.
    fn param_bf16(tensor: &mut Self::Bf16Tensor) -> Self::ParamMut<'_>;

    /// The tensor as the parameter of a step.
    fn param(tensor: &mut Self::Tensor) -> Self::ParamMut<'_>;

    /// The tensor as the gradient of a step.
    fn grad(tensor: &Self::Tensor) -> Self::Grad<'_>;
}

/// Refuses copies between lengths that differ.
///
/// # Errors
/// They differ.
pub(crate) fn check_length(tensor: usize, elements: usize) -> Result<()> {
    if tensor == elements {
        return Ok(());
    }
    Err(Error::shape_mismatch("elements of a tensor on the host", tensor, elements))
}

impl Transfer for Cpu {
    type Tensor = Vec<f32>;
    type Bf16Tensor = Vec<bf16>;

    fn upload(&self, elements: &[f32]) -> Result<Vec<f32>> {
        memory::copied(elements, "a tensor")
    }

    fn write(&self, tensor: &mut Vec<f32>, elements: &[f32]) -> Result<()> {
        check_length(tensor.len(), elements.len())?;
        tensor.copy_from_slice(elements);
        Ok(())
    }

    fn read(&self, tensor: &Vec<f32>, elements: &mut [f32]) -> Result<()> {
        check_length(tensor.len(), elements.len())?;
        elements.copy_from_slice(tensor);
        Ok(())
    }

    fn upload_bf16(&self, elements: &[bf16]) -> Result<Vec<bf16>> {
        Ok(elements.to_vec())
    }

    fn read_bf16(&self, tensor: &Vec<bf16>, elements: &mut [bf16]) -> Result<()> {
        check_length(tensor.len(), elements.len())?;
        elements.copy_from_slice(tensor);
        Ok(())
    }

    fn param_bf16(tensor: &mut Vec<bf16>) -> Self::ParamMut<'_> {
        tensor.into()
    }

    fn param(tensor: &mut Vec<f32>) -> Self::ParamMut<'_> {
        tensor.into()
    }

    fn grad(tensor: &Vec<f32>) -> Self::Grad<'_> {
        tensor.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole_or_refused() {
        let cpu = Cpu::with_threads(1).unwrap();
        let mut tensor = cpu.upload(&[1.0, 2.0]).unwrap();
        cpu.write(&mut tensor, &[3.0, 4.0]).unwrap();
        let mut out = [0.0; 2];
        cpu.read(&tensor, &mut out).unwrap();
        assert_eq!(out, [3.0, 4.0]);
        assert!(cpu.write(&mut tensor, &[5.0]).unwrap_err().is_shape_mismatch());
        assert!(cpu.read(&tensor, &mut [0.0; 3]).unwrap_err().is_shape_mismatch());
        assert_eq!(tensor, [3.0, 4.0]);
    }
}
