//! cust's buffers and streams (feature `cust`), borrowed where they are.
//!
//! cust links libcuda when the program is built, cudarc loads it when it runs; both get the same library and, through the
//! primary context of the device, the same memory.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use cust::memory::{DeviceBuffer, DeviceCopy, DeviceSlice};
use cust::stream::{Stream, StreamFlags};

use super::buffers::{CudaGrad, CudaParamMut, View, ViewMut};
use super::status::driver_error;
use super::{Cuda, preflight};
use crate::device::{BufferInfo, StepTensor};
use crate::error::{Error, Result};
use crate::precision::Dtype;

impl Cuda {
    /// The GPU of a cust stream; everything is enqueued there.
    ///
    /// Parameters and gradients may then be cust's `DeviceBuffer<f32>` and `DeviceSlice<f32>` (`into()`), 16-bit ones
    /// ([`CudaParamMut::from_cust_bf16`] and alike), and a `DevicePointer` through [`CudaParamMut::from_raw`] of its `as_raw()`.
    ///
    /// # Stream
    /// Kernels launched on the stream and cust's own copies and memsets, which go to the legacy default stream, are ordered
    /// with steps as they are called. Work on another stream of cust must be ordered by events. Slices that [`Cuda::stream`] allocates
    /// hold the stream's handle alone: where some are left when the device is dropped, the stream is never destroyed.
    ///
    /// # Errors
    /// As [`Cuda::new`]; a stream of another context than the device's primary one (`cust::context::legacy`), or one that does
    /// not follow the default stream.
    ///
    /// # Example
    /// ```no_run
    /// use std::sync::Arc;
    /// use cust::memory::{CopyDestination, DeviceBuffer};
    /// use cust::stream::{Stream, StreamFlags};
    /// use muon_cuda::{Cuda, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor};
    ///
    /// let _context = cust::quick_init()?;
    /// let stream = Arc::new(Stream::new(StreamFlags::DEFAULT, None)?);
    /// let mut muon = Muon::new(Cuda::with_cust_stream(&stream)?, MuonConfig::default())?;
    /// let hidden = muon.add_group("hidden", MuonRule::default())?;
    /// let id = muon.add_param(hidden, ParamSpec::new("w", &[64, 32]))?;
    ///
    /// let mut param = DeviceBuffer::from_slice(&[0.1f32; 64 * 32])?;
    /// let grad = DeviceBuffer::from_slice(&[1.0f32; 64 * 32])?;   // or written by kernels on `stream`
    /// muon.step(&StepOptions::default(), &mut [StepTensor::new(id, &mut param, &grad)])?;
    /// let mut host = [0.0f32; 64 * 32];
    /// param.copy_to(&mut host)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_cust_stream(stream: &Arc<Stream>) -> Result<Self> {
        preflight::check()?;
        let flags = stream
            .get_flags()
            .map_err(|e| Error::device(format!("asking a cust stream for its flags: {e}")))?;
        if flags.contains(StreamFlags::NON_BLOCKING) {
            return Err(Error::unsupported(
                "a cust stream that does not follow the default stream, to which cust's copies go; \
                 make it without StreamFlags::NON_BLOCKING",
            ));
        }
        let context = context_of(stream)?;
        // SAFETY: the stream belongs to the context, as was just checked, and `kept` holds it until nobody else has the handle.
        let wrapped = unsafe { context.wrap_borrowed_stream(stream.as_inner().cast()) };
        let kept = Kept { wrapped: Arc::clone(&wrapped), stream: Some(Arc::clone(stream)) };
        let mut device = Self::with_stream(wrapped)?;
        device.cust_stream = Some(kept);
        Ok(device)
    }

    /// Refuses cust's memory on a stream that cust's copies and frees are not ordered with.
    ///
    /// # Errors
    /// There is such memory.
    pub(super) fn check_cust(&self, tensors: &[StepTensor<'_, Self>]) -> Result<()> {
        let is_cust = |t: &StepTensor<'_, Self>| {
            t.param.is_cust() || t.grad.as_ref().is_some_and(CudaGrad::is_cust)
        };
        match tensors.iter().position(is_cust) {
            Some(i) if self.cust_stream.is_none() => Err(Error::unsupported(format!(
                "tensor {i} of the step: cust's memory on a stream that is not cust's, with which nothing orders it; \
                 make the device by Cuda::with_cust_stream"
            ))),
            _ => Ok(()),
        }
    }
}

/// A stream of cust, kept while cudarc's wrapper has its handle.
pub(super) struct Kept {
    wrapped: Arc<CudaStream>,
    stream: Option<Arc<Stream>>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let stream = self.stream.take();
        if Arc::strong_count(&self.wrapped) > 1 {
            // A slice or a graph outlives the device.
            std::mem::forget(stream);
        }
        // Else it may be destroyed here, before the wrapper lets its context go.
    }
}

/// The primary context of the device that a stream belongs to.
fn context_of(stream: &Stream) -> Result<Arc<CudaContext>> {
    let failed = |e| driver_error(e, "asking for the context of a cust stream");
    let mut context: sys::CUcontext = std::ptr::null_mut();
    // SAFETY: the stream is alive, and the result is written to a live variable.
    unsafe { sys::cuStreamGetCtx(stream.as_inner().cast(), &raw mut context) }
        .result()
        .map_err(failed)?;
    // SAFETY: the context of a live stream.
    unsafe { result::ctx::set_current(context) }.map_err(failed)?;
    let mut device = 0;
    // SAFETY: the result is written to a live variable.
    unsafe { sys::cuCtxGetDevice(&raw mut device) }.result().map_err(failed)?;
    for ordinal in 0..result::device::get_count().map_err(failed)? {
        if result::device::get(ordinal).map_err(failed)? != device {
            continue;
        }
        let primary =
            CudaContext::new(usize::try_from(ordinal).unwrap_or_default()).map_err(failed)?;
        if primary.cu_ctx() == context {
            return Ok(primary);
        }
    }
    Err(Error::unsupported(
        "a cust stream of a context that is not the device's primary one; make the context by cust::quick_init or \
         cust::context::Context::new instead of cust::context::legacy",
    ))
}

fn info<T: DeviceCopy>(slice: &DeviceSlice<T>, dtype: Dtype) -> BufferInfo {
    let address = usize::try_from(slice.as_device_ptr().as_raw()).unwrap_or(usize::MAX);
    BufferInfo { address, len: slice.len(), dtype }
}

/// As `info`, for elements that must be 16 bits.
fn info_16<T: DeviceCopy>(slice: &DeviceSlice<T>, dtype: Dtype) -> Result<BufferInfo> {
    if size_of::<T>() == dtype.bytes() {
        return Ok(info(slice, dtype));
    }
    Err(Error::shape_mismatch(
        format!("bytes of an element of a cust buffer of {dtype}"),
        dtype.bytes(),
        size_of::<T>(),
    ))
}

impl<'a> From<&'a mut DeviceSlice<f32>> for CudaParamMut<'a> {
    fn from(slice: &'a mut DeviceSlice<f32>) -> Self {
        Self { info: info(slice, Dtype::F32), view: ViewMut::Cust(PhantomData) }
    }
}

impl<'a> From<&'a mut DeviceBuffer<f32>> for CudaParamMut<'a> {
    fn from(buffer: &'a mut DeviceBuffer<f32>) -> Self {
        (&mut **buffer).into()
    }
}

impl<'a> From<&'a DeviceSlice<f32>> for CudaGrad<'a> {
    fn from(slice: &'a DeviceSlice<f32>) -> Self {
        Self { info: info(slice, Dtype::F32), view: View::Cust(PhantomData) }
    }
}

impl<'a> From<&'a DeviceBuffer<f32>> for CudaGrad<'a> {
    fn from(buffer: &'a DeviceBuffer<f32>) -> Self {
        (&**buffer).into()
    }
}

impl<'a> CudaParamMut<'a> {
    /// A bf16 parameter in cust's memory: elements are `u16`, `half` 1's `bf16`, or another plain type of 16 bits.
    ///
    /// # Errors
    /// Elements that are not 16 bits.
    pub fn from_cust_bf16<T: DeviceCopy + Pod>(slice: &'a mut DeviceSlice<T>) -> Result<Self> {
        Ok(Self { info: info_16(slice, Dtype::Bf16)?, view: ViewMut::Cust(PhantomData) })
    }

    fn is_cust(&self) -> bool {
        matches!(self.view, ViewMut::Cust(_))
    }
}

impl<'a> CudaGrad<'a> {
    /// A bf16 gradient in cust's memory; see [`CudaParamMut::from_cust_bf16`].
    ///
    /// # Errors
    /// Elements that are not 16 bits.
    pub fn from_cust_bf16<T: DeviceCopy + Pod>(slice: &'a DeviceSlice<T>) -> Result<Self> {
        Ok(Self { info: info_16(slice, Dtype::Bf16)?, view: View::Cust(PhantomData) })
    }

    /// An fp16 gradient in cust's memory; see [`CudaParamMut::from_cust_bf16`].
    ///
    /// # Errors
    /// Elements that are not 16 bits.
    pub fn from_cust_f16<T: DeviceCopy + Pod>(slice: &'a DeviceSlice<T>) -> Result<Self> {
        Ok(Self { info: info_16(slice, Dtype::F16)?, view: View::Cust(PhantomData) })
    }

    fn is_cust(&self) -> bool {
        matches!(self.view, View::Cust(_))
    }
}
