//! The tables that kernels read, field for field as in `kernels/prelude.cuh` and `kernels/adamw.cu`.

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use crate::precision::{Dtype, Precision};

/// Elements of a tile: the unit of work of one block, and of one partial sum.
pub(super) const TILE: usize = 8192;

/// Element types as the kernels number them.
pub(super) const F32: u32 = 0;
pub(super) const BF16: u32 = 1;
pub(super) const F16: u32 = 2;

/// Bits of `kind`.
pub(super) const GRAD_SHIFT: u32 = 0;
pub(super) const MOMENTUM_SHIFT: u32 = 2;
pub(super) const PARAM_SHIFT: u32 = 4;
pub(super) const ITERATE_SHIFT: u32 = 6;
pub(super) const NESTEROV: u32 = 1 << 8;
pub(super) const CAUTIOUS: u32 = 1 << 9;
pub(super) const NORMALIZE: u32 = 1 << 10;
pub(super) const STOCHASTIC: u32 = 1 << 11;
/// The update is looked at before anything is committed.
pub(super) const CHECKED: u32 = 1 << 12;
/// The parameter is added to the gradient.
pub(super) const L2: u32 = 1 << 13;
/// ... or its master copy, once it was made.
pub(super) const L2_MASTER: u32 = 1 << 14;

/// An element type's number.
pub(super) fn dtype_code(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => F32,
        Dtype::Bf16 => BF16,
        Dtype::F16 => F16,
    }
}

/// The number of what an iterate is stored in.
pub(super) fn precision_code(precision: Precision) -> u32 {
    match precision {
        Precision::F32 | Precision::Tf32 => F32,
        Precision::Bf16 => BF16,
        Precision::Fp16 => F16,
    }
}

/// Bytes of an element of that number.
pub(super) fn element_bytes(dtype: u32) -> u64 {
    if dtype == F32 { 4 } else { 2 }
}

/// One matrix of a step; see the struct of that name in `kernels/prelude.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Matrix {
    pub(super) grad: u64,
    pub(super) momentum: u64,
    pub(super) param: u64,
    pub(super) master: u64,
    pub(super) iterate: u64,
    pub(super) result: u64,
    pub(super) counters: u64,
    pub(super) rows: u64,
    pub(super) cols: u64,
    pub(super) row_stride: u64,
    pub(super) offset: u64,
    pub(super) random_key: u64,
    pub(super) safety: f64,
    pub(super) norm_floor: f64,
    pub(super) first_tile: u32,
    pub(super) tiles: u32,
    pub(super) kind: u32,
    pub(super) matrix: u32,
    pub(super) matrices: u32,
    pub(super) reserved: u32,
}

/// The scalars of one matrix in one step.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scalars {
    pub(super) momentum: f32,
    pub(super) gain: f32,
    pub(super) keep: f32,
    pub(super) step: f32,
    pub(super) l2: f32,
    pub(super) largest: f32,
}

/// What a matrix is multiplied with, and whether it takes part.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Norm {
    pub(super) power: f32,
    pub(super) factor: f32,
    pub(super) finite: u32,
    pub(super) reserved: u32,
}

/// A gradient as a whole, or a matrix of one.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) grad: u64,
    pub(super) rows: u64,
    pub(super) cols: u64,
    pub(super) row_stride: u64,
    pub(super) first_tile: u32,
    pub(super) tiles: u32,
    pub(super) kind: u32,
    pub(super) reserved: u32,
}

/// One tensor under AdamW.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tensor {
    pub(super) grad: u64,
    pub(super) exp_avg: u64,
    pub(super) exp_avg_sq: u64,
    pub(super) param: u64,
    pub(super) master: u64,
    pub(super) counters: u64,
    pub(super) len: u64,
    pub(super) random_key: u64,
    pub(super) first_tile: u32,
    pub(super) tiles: u32,
    pub(super) kind: u32,
    pub(super) reserved: u32,
}

/// The scalars of one tensor under AdamW in one step.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AdamWScalars {
    pub(super) lr: f64,
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) eps: f32,
    pub(super) keep: f32,
}

/// What `adamw_prepare` makes of them; the host only reserves room.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AdamWStep {
    pub(super) random_key: u64,
    pub(super) factors: [f32; 8],
    pub(super) finite: u32,
    pub(super) reserved: u32,
}

/// What a step reports.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Record {
    pub(super) gradient_norm: f64,
    pub(super) clip_factor: f64,
    pub(super) skipped_matrices: u64,
    pub(super) skipped_adamw: u64,
}

macro_rules! plain_on_the_device {
    ($($table:ty),*) => {$(
        // SAFETY: `repr(C)` of integers and floats without padding (the test below adds the sizes up), read by
        // kernels as the struct of the same fields; every bit pattern, zero included, is a value.
        unsafe impl DeviceRepr for $table {}
        // SAFETY: as above.
        unsafe impl ValidAsZeroBits for $table {}
    )*};
}
plain_on_the_device!(Record, Matrix, Scalars, Norm, Span, Tensor, AdamWScalars, AdamWStep);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_offsets_are_those_of_the_kernels() {
        // Sums of the fields' sizes: no padding. The order is checked by every test that runs a kernel.
        assert_eq!(size_of::<Matrix>(), 14 * 8 + 6 * 4);
        assert_eq!(size_of::<Scalars>(), 6 * 4);
        assert_eq!(size_of::<Norm>(), 4 * 4);
        assert_eq!(size_of::<Span>(), 4 * 8 + 4 * 4);
        assert_eq!(size_of::<Record>(), 4 * 8);
        assert_eq!(size_of::<Tensor>(), 8 * 8 + 4 * 4);
        assert_eq!(size_of::<AdamWScalars>(), 3 * 8 + 2 * 4);
        assert_eq!(size_of::<AdamWStep>(), 8 + 10 * 4);
        assert_eq!(std::mem::offset_of!(Matrix, first_tile), 112);
        assert_eq!(std::mem::offset_of!(Tensor, first_tile), 64);
    }
}
