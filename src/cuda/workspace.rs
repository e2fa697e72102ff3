//! Workspace of a plan on the device: slots of every bucket, and the tables of every chunk.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::gemm::Compute;
use super::memory::{Buffer, Room, Table};
use super::table::{self, Matrix, Norm, Scalars};
use crate::error::{Error, Result};
use crate::plan::{Bucket, Plan, Treatment};
use crate::recipe::{Iterate, Op, Small};

/// Allocations of a bucket start at multiples of this many bytes, which is what cublasLt assumes.
const ALIGNMENT: usize = 256;
/// Matrices start at multiples of this many elements: 16 bytes of 16 bit, so that packs are aligned, and as cublasLt's kernels ask.
const PADDING: usize = 8;

/// Workspace of one plan on the device.
#[derive(Debug)]
pub struct CudaWorkspace {
    pub(super) buckets: Vec<Slots>,
    pub(super) chunks: Vec<Chunk>,
}

/// The slots of a bucket.
#[derive(Debug)]
pub(super) struct Slots {
    memory: Buffer<u8>,
    iterates: [u64; 2],
    small: Vec<u64>,
    /// f32 products that are completed before they are rounded; 0 where none is.
    pub(super) product: u64,
    /// Factors of the AOL preconditioner; 0 where there is none.
    pub(super) factors: u64,
    /// Elements from one matrix to the next, of the iterates and of the small buffers.
    pub(super) iterate_stride: usize,
    pub(super) small_stride: usize,
    /// Element type.
    pub(super) dtype: u32,
    /// How products read their operands.
    pub(super) compute: Compute,
    /// Where the update is after orthogonalization.
    result: Iterate,
}

impl Slots {
    fn new(stream: &Arc<CudaStream>, bucket: &Bucket, plan: &Plan) -> Result<Self> {
        let precision = bucket.treatment.stored_in(plan.precision());
        let (size, n) = (precision.bytes(), bucket.shape.short());
        let iterate_stride = bucket.shape.len().next_multiple_of(PADDING);
        let small_stride = n.saturating_mul(n).next_multiple_of(PADDING);
        let (iterates, small, result, completes, scales) = match &bucket.treatment {
            Treatment::Polynomial { recipe, .. } => (
                2,
                recipe.small_buffers(),
                recipe.result(),
                recipe
                    .ops()
                    .iter()
                    .any(|op| matches!(op, Op::Symmetric { gamma, .. } if *gamma != 0.0)),
                recipe.ops().iter().any(|op| matches!(op, Op::AolScale { .. })),
            ),
            _ => (1, 0, Iterate::X0, false, false),
        };
        let slots = bucket.slots.max(1);
        let mut total = 0usize;
        let mut region = |elements: usize, size: usize| {
            let start = total;
            let bytes = slots.checked_mul(elements).and_then(|n| n.checked_mul(size));
            total = bytes
                .and_then(|b| b.checked_next_multiple_of(ALIGNMENT))
                .and_then(|b| b.checked_add(total))
                .ok_or_else(|| {
                    Error::shape_mismatch(
                        "workspace of a bucket",
                        "fewer than 2^64 bytes",
                        bucket.shape,
                    )
                })?;
            Ok::<u64, Error>(start as u64)
        };
        let mut offsets = [0, 0];
        for offset in &mut offsets[..iterates] {
            *offset = region(iterate_stride, size)?;
        }
        let small: Vec<u64> =
            (0..small).map(|_| region(small_stride, size)).collect::<Result<_>>()?;
        let product = if completes { Some(region(small_stride, 4)?) } else { None };
        let factors = if scales { Some(region(n, 4)?) } else { None };
        let memory = Buffer::zeroed(
            stream,
            total,
            &format!("the workspace of {slots} matrices {}", bucket.shape),
        )?;
        let base = memory.address();
        Ok(Self {
            memory,
            iterates: offsets.map(|o| base + o),
            small: small.into_iter().map(|o| base + o).collect(),
            product: product.map_or(0, |o| base + o),
            factors: factors.map_or(0, |o| base + o),
            iterate_stride,
            small_stride,
            dtype: table::precision_code(precision),
            compute: Compute::of(precision),
            result,
        })
    }

    /// Address of an iterate of the first slot.
    pub(super) fn iterate(&self, x: Iterate) -> u64 {
        match x {
            Iterate::X0 => self.iterates[0],
            Iterate::X1 => self.iterates[1],
        }
    }

    /// Address of a small buffer of the first slot.
    pub(super) fn small(&self, s: Small) -> u64 {
        self.small.get(s.0).copied().unwrap_or(0)
    }

    /// The direction of one slot on the host, of a bucket that keeps f32; waits for the stream.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn download(
        &self,
        stream: &Arc<CudaStream>,
        slot: usize,
        out: &mut [f32],
    ) -> Result<()> {
        self.memory.download_f32(stream, self.f32_offset(slot), out)
    }

    /// Replaces the direction of one slot, of a bucket that keeps f32.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn upload(
        &mut self,
        stream: &Arc<CudaStream>,
        slot: usize,
        x: &[f32],
    ) -> Result<()> {
        let offset = self.f32_offset(slot);
        self.memory.upload_f32(stream, offset, x)
    }

    /// The first iterate starts the memory.
    fn f32_offset(&self, slot: usize) -> usize {
        slot * self.iterate_stride * size_of::<f32>()
    }

    /// Address of the iterate that pass A writes, of one slot.
    pub(super) fn direction(&self, slot: usize) -> u64 {
        self.iterates[0] + (slot * self.iterate_stride) as u64 * table::element_bytes(self.dtype)
    }

    /// Address of what pass B reads, of one slot.
    pub(super) fn update(&self, slot: usize) -> u64 {
        self.iterate(self.result)
            + (slot * self.iterate_stride) as u64 * table::element_bytes(self.dtype)
    }
}

/// Tables of one chunk of a step; kept between steps and renewed where they differ.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) matrices: Table<Matrix>,
    pub(super) tile_matrix: Table<u32>,
    pub(super) scalars: Table<Scalars>,
    pub(super) norms: Room<Norm>,
    pub(super) partial: Room<f64>,
    /// Of the tables as they are on the device.
    pub(super) addresses: Addresses,
}

/// Where the tables of a chunk are, and how long.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Addresses {
    pub(super) jobs: usize,
    pub(super) tiles: usize,
    pub(super) matrices: u64,
    pub(super) tile_matrix: u64,
    pub(super) scalars: u64,
    pub(super) norms: u64,
    pub(super) partial: u64,
}

impl Chunk {
    fn new() -> Self {
        Self {
            matrices: Table::new("the matrix table"),
            tile_matrix: Table::new("the tile table"),
            scalars: Table::new("the scalars of a step"),
            norms: Room::new("norms"),
            partial: Room::new("partial sums"),
            addresses: Addresses::default(),
        }
    }
}

impl CudaWorkspace {
    /// Slots for every bucket and tables for every chunk.
    ///
    /// # Errors
    /// Out of memory; a failed device.
    pub(super) fn new(stream: &Arc<CudaStream>, plan: &Plan) -> Result<Self> {
        let buckets =
            plan.buckets().iter().map(|b| Slots::new(stream, b, plan)).collect::<Result<_>>()?;
        Ok(Self { buckets, chunks: (0..plan.chunks()).map(|_| Chunk::new()).collect() })
    }
}
