//! Tensors that the device owns for programs on the host.

use cudarc::driver::{CudaSlice, DeviceRepr};
use half::bf16;

use super::status::driver_error;
use super::{Cuda, CudaGrad, CudaParamMut};
use crate::error::Result;
use crate::transfer::{Transfer, check_length};

/// A new slice with these elements.
fn upload<T: DeviceRepr>(device: &Cuda, elements: &[T]) -> Result<CudaSlice<T>> {
    device.check()?;
    let bytes = size_of_val(elements);
    device
        .stream()
        .clone_htod(elements)
        .map_err(|e| driver_error(e, format_args!("copying {bytes} bytes to new device memory")))
}

/// Copies a whole slice to the host and waits for it.
fn read<T: DeviceRepr>(device: &Cuda, tensor: &CudaSlice<T>, elements: &mut [T]) -> Result<()> {
    device.check()?;
    check_length(tensor.len(), elements.len())?;
    let failed = |e| driver_error(e, "copying a tensor to the host");
    device.stream().memcpy_dtoh(tensor, elements).map_err(failed)?;
    device.stream().synchronize().map_err(failed)
}

impl Transfer for Cuda {
    type Tensor = CudaSlice<f32>;
    type Bf16Tensor = CudaSlice<bf16>;

    fn upload(&self, elements: &[f32]) -> Result<CudaSlice<f32>> {
        upload(self, elements)
    }

    fn write(&self, tensor: &mut CudaSlice<f32>, elements: &[f32]) -> Result<()> {
        self.check()?;
        check_length(tensor.len(), elements.len())?;
        self.stream()
            .memcpy_htod(elements, tensor)
            .map_err(|e| driver_error(e, "copying a tensor to the device"))
    }

    fn read(&self, tensor: &CudaSlice<f32>, elements: &mut [f32]) -> Result<()> {
        read(self, tensor, elements)
    }

    fn upload_bf16(&self, elements: &[bf16]) -> Result<CudaSlice<bf16>> {
        upload(self, elements)
    }

    fn read_bf16(&self, tensor: &CudaSlice<bf16>, elements: &mut [bf16]) -> Result<()> {
        read(self, tensor, elements)
    }

    fn param_bf16(tensor: &mut CudaSlice<bf16>) -> CudaParamMut<'_> {
        tensor.into()
    }

    fn param(tensor: &mut CudaSlice<f32>) -> CudaParamMut<'_> {
        tensor.into()
    }

    fn grad(tensor: &CudaSlice<f32>) -> CudaGrad<'_> {
        tensor.into()
    }
}
