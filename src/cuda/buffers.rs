//! Parameters and gradients as callers hand them to the CUDA device.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice as _,
    SyncOnDrop,
};
use half::{bf16, f16};

use crate::device::BufferInfo;
use crate::precision::Dtype;

/// A parameter in device memory, row-major and contiguous.
///
/// Made `From` a mutable cudarc slice or view of f32 or bf16, or from a raw address.
#[derive(Debug)]
pub struct CudaParamMut<'a> {
    pub(super) info: BufferInfo,
    pub(super) view: ViewMut<'a>,
}

pub(super) enum ViewMut<'a> {
    F32(CudaViewMut<'a, f32>),
    Bf16(CudaViewMut<'a, bf16>),
    #[cfg(feature = "cust")]
    Cust(PhantomData<&'a mut ()>),
    Raw(PhantomData<&'a mut ()>),
}

/// A gradient in device memory, row-major and contiguous; never written.
///
/// Made `From` a cudarc slice or view of f32, bf16 or f16, or from a raw address.
#[derive(Debug)]
pub struct CudaGrad<'a> {
    pub(super) info: BufferInfo,
    pub(super) view: View<'a>,
}

pub(super) enum View<'a> {
    F32(CudaView<'a, f32>),
    Bf16(CudaView<'a, bf16>),
    F16(CudaView<'a, f16>),
    #[cfg(feature = "cust")]
    Cust(PhantomData<&'a ()>),
    Raw(PhantomData<&'a ()>),
}

impl std::fmt::Debug for ViewMut<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw(_) => "raw",
            #[cfg(feature = "cust")]
            Self::Cust(_) => "cust",
            _ => "cudarc",
        })
    }
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw(_) => "raw",
            #[cfg(feature = "cust")]
            Self::Cust(_) => "cust",
            _ => "cudarc",
        })
    }
}

/// Address and length; the guard that would record an event is dropped unrecorded, since nothing is enqueued.
fn info<T>(memory: &(impl DevicePtr<T> + ?Sized), dtype: Dtype) -> BufferInfo {
    let (address, guard) = memory.device_ptr(memory.stream());
    std::mem::forget(guard);
    BufferInfo { address: usize::try_from(address).unwrap_or(usize::MAX), len: memory.len(), dtype }
}

impl CudaParamMut<'_> {
    /// A parameter at a device address, for memory that cudarc does not own.
    ///
    /// # Safety
    /// From here until the work of the step is done on the device's stream:
    /// 1. `address` is that of `len` elements of `dtype` (f32 or bf16) in memory of the device's context;
    /// 2. it is a multiple of the element's size;
    /// 3. nothing else reads or writes them, on any stream, except in an order that events or the same
    ///    stream give.
    #[must_use]
    pub unsafe fn from_raw(address: u64, len: usize, dtype: Dtype) -> Self {
        let address = usize::try_from(address).unwrap_or(usize::MAX);
        Self { info: BufferInfo { address, len, dtype }, view: ViewMut::Raw(PhantomData) }
    }

    pub(super) fn info(&self) -> BufferInfo {
        self.info
    }

    /// The stream that allocated the slice, of memory that cudarc owns.
    pub(super) fn stream(&self) -> Option<&Arc<CudaStream>> {
        match &self.view {
            ViewMut::F32(v) => Some(v.stream()),
            ViewMut::Bf16(v) => Some(v.stream()),
            #[cfg(feature = "cust")]
            ViewMut::Cust(_) => None,
            ViewMut::Raw(_) => None,
        }
    }

    /// As [`CudaParamMut::fence`], to read.
    pub(super) fn fence_read<'s>(&'s self, stream: &'s CudaStream) -> Option<SyncOnDrop<'s>> {
        match &self.view {
            ViewMut::F32(v) => Some(v.device_ptr(stream).1),
            ViewMut::Bf16(v) => Some(v.device_ptr(stream).1),
            #[cfg(feature = "cust")]
            ViewMut::Cust(_) => None,
            ViewMut::Raw(_) => None,
        }
    }

    /// Makes the stream wait for earlier users of the memory; the guard tells later ones when it is dropped.
    pub(super) fn fence<'s>(&'s mut self, stream: &'s CudaStream) -> Option<SyncOnDrop<'s>> {
        match &mut self.view {
            ViewMut::F32(v) => Some(v.device_ptr_mut(stream).1),
            ViewMut::Bf16(v) => Some(v.device_ptr_mut(stream).1),
            #[cfg(feature = "cust")]
            ViewMut::Cust(_) => None,
            ViewMut::Raw(_) => None,
        }
    }
}

impl CudaGrad<'_> {
    /// A gradient at a device address, for memory that cudarc does not own.
    ///
    /// # Safety
    /// From here until the work of the step is done on the device's stream:
    /// 1. `address` is that of `len` elements of `dtype` in memory of the device's context;
    /// 2. it is a multiple of the element's size;
    /// 3. nothing writes them, on any stream, except in an order that events or the same stream give.
    #[must_use]
    pub unsafe fn from_raw(address: u64, len: usize, dtype: Dtype) -> Self {
        let address = usize::try_from(address).unwrap_or(usize::MAX);
        Self { info: BufferInfo { address, len, dtype }, view: View::Raw(PhantomData) }
    }

    pub(super) fn info(&self) -> BufferInfo {
        self.info
    }

    /// The stream that allocated the slice, of memory that cudarc owns.
    pub(super) fn stream(&self) -> Option<&Arc<CudaStream>> {
        match &self.view {
            View::F32(v) => Some(v.stream()),
            View::Bf16(v) => Some(v.stream()),
            View::F16(v) => Some(v.stream()),
            #[cfg(feature = "cust")]
            View::Cust(_) => None,
            View::Raw(_) => None,
        }
    }

    /// Makes the stream wait for earlier writers of the memory; the guard tells later ones when it is dropped.
    pub(super) fn fence<'s>(&'s self, stream: &'s CudaStream) -> Option<SyncOnDrop<'s>> {
        match &self.view {
            View::F32(v) => Some(v.device_ptr(stream).1),
            View::Bf16(v) => Some(v.device_ptr(stream).1),
            View::F16(v) => Some(v.device_ptr(stream).1),
            #[cfg(feature = "cust")]
            View::Cust(_) => None,
            View::Raw(_) => None,
        }
    }
}

macro_rules! param_from {
    ($($element:ty => $variant:ident, $dtype:ident);*) => {$(
        impl<'a> From<CudaViewMut<'a, $element>> for CudaParamMut<'a> {
            fn from(view: CudaViewMut<'a, $element>) -> Self {
                Self { info: info(&view, Dtype::$dtype), view: ViewMut::$variant(view) }
            }
        }
        impl<'a> From<&'a mut CudaSlice<$element>> for CudaParamMut<'a> {
            fn from(slice: &'a mut CudaSlice<$element>) -> Self {
                slice.as_view_mut().into()
            }
        }
    )*};
}
param_from!(f32 => F32, F32; bf16 => Bf16, Bf16);

macro_rules! grad_from {
    ($($element:ty => $variant:ident, $dtype:ident);*) => {$(
        impl<'a> From<CudaView<'a, $element>> for CudaGrad<'a> {
            fn from(view: CudaView<'a, $element>) -> Self {
                Self { info: info(&view, Dtype::$dtype), view: View::$variant(view) }
            }
        }
        impl<'a> From<&'a CudaSlice<$element>> for CudaGrad<'a> {
            fn from(slice: &'a CudaSlice<$element>) -> Self {
                slice.as_view().into()
            }
        }
    )*};
}
grad_from!(f32 => F32, F32; bf16 => Bf16, Bf16; f16 => F16, F16);
