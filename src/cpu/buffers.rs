//! Parameters and gradients as callers hand them to the CPU device.

use half::{bf16, f16};

use crate::device::BufferInfo;
use crate::precision::Dtype;

/// A parameter in host memory, row-major and contiguous.
#[derive(Debug)]
#[non_exhaustive]
pub enum CpuParamMut<'a> {
    /// f32 elements.
    F32(&'a mut [f32]),
    /// bf16 elements; how they absorb small updates is [`Bf16Params`](crate::Bf16Params).
    Bf16(&'a mut [bf16]),
}

/// A gradient in host memory, row-major and contiguous; never written.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum CpuGrad<'a> {
    /// f32 elements.
    F32(&'a [f32]),
    /// bf16 elements.
    Bf16(&'a [bf16]),
    /// fp16 elements.
    F16(&'a [f16]),
}

fn info<T>(slice: &[T], dtype: Dtype) -> BufferInfo {
    BufferInfo { address: slice.as_ptr().addr(), len: slice.len(), dtype }
}

impl CpuParamMut<'_> {
    pub(super) fn info(&self) -> BufferInfo {
        match self {
            Self::F32(s) => info(s, Dtype::F32),
            Self::Bf16(s) => info(s, Dtype::Bf16),
        }
    }
}

impl CpuGrad<'_> {
    pub(super) fn info(&self) -> BufferInfo {
        match self {
            Self::F32(s) => info(s, Dtype::F32),
            Self::Bf16(s) => info(s, Dtype::Bf16),
            Self::F16(s) => info(s, Dtype::F16),
        }
    }
}

impl<'a> From<&'a mut [f32]> for CpuParamMut<'a> {
    fn from(slice: &'a mut [f32]) -> Self {
        Self::F32(slice)
    }
}

impl<'a> From<&'a mut Vec<f32>> for CpuParamMut<'a> {
    fn from(vec: &'a mut Vec<f32>) -> Self {
        Self::F32(vec)
    }
}

impl<'a> From<&'a mut [bf16]> for CpuParamMut<'a> {
    fn from(slice: &'a mut [bf16]) -> Self {
        Self::Bf16(slice)
    }
}

impl<'a> From<&'a mut Vec<bf16>> for CpuParamMut<'a> {
    fn from(vec: &'a mut Vec<bf16>) -> Self {
        Self::Bf16(vec)
    }
}

macro_rules! grad_from {
    ($($element:ty => $variant:ident),*) => {$(
        impl<'a> From<&'a [$element]> for CpuGrad<'a> {
            fn from(slice: &'a [$element]) -> Self {
                Self::$variant(slice)
            }
        }
        impl<'a> From<&'a Vec<$element>> for CpuGrad<'a> {
            fn from(vec: &'a Vec<$element>) -> Self {
                Self::$variant(vec)
            }
        }
    )*};
}
grad_from!(f32 => F32, bf16 => Bf16, f16 => F16);
