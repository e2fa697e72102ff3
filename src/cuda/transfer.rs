//! Tensors that the device owns for programs on the host.

use cudarc::driver::CudaSlice;

use super::status::driver_error;
use super::{Cuda, CudaGrad, CudaParamMut};
use crate::error::Result;
use crate::transfer::{Transfer, check_length};

impl Transfer for Cuda {
    type Tensor = CudaSlice<f32>;

    fn upload(&self, elements: &[f32]) -> Result<CudaSlice<f32>> {
        self.check()?;
        let bytes = size_of_val(elements);
        self.stream().clone_htod(elements).map_err(|e| {
            driver_error(e, format_args!("copying {bytes} bytes to new device memory"))
        })
    }

    fn write(&self, tensor: &mut CudaSlice<f32>, elements: &[f32]) -> Result<()> {
        self.check()?;
        check_length(tensor.len(), elements.len())?;
        self.stream()
            .memcpy_htod(elements, tensor)
            .map_err(|e| driver_error(e, "copying a tensor to the device"))
    }

    fn read(&self, tensor: &CudaSlice<f32>, elements: &mut [f32]) -> Result<()> {
        self.check()?;
        check_length(tensor.len(), elements.len())?;
        let failed = |e| driver_error(e, "copying a tensor to the host");
        self.stream().memcpy_dtoh(tensor, elements).map_err(failed)?;
        self.stream().synchronize().map_err(failed)
    }

    fn param(tensor: &mut CudaSlice<f32>) -> CudaParamMut<'_> {
        tensor.into()
    }

    fn grad(tensor: &CudaSlice<f32>) -> CudaGrad<'_> {
        tensor.into()
    }
}
