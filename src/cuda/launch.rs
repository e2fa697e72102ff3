//! All kernel launches. A launcher takes addresses that its caller's tables and buffers keep valid, and
//! checks what can be checked: counts, grids.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{CudaStream, LaunchConfig, PushKernelArg};

use super::compile::Kernels;
use super::status::driver_error;
use crate::error::{Error, Result};

/// Threads of a block, as in `kernels/prelude.cuh`.
const BLOCK: u32 = 256;
/// Side of the squares of `kernels/symmetric.cu`.
const SIDE: usize = 64;
/// Blocks of a grid-stride kernel at most: a few waves on the largest devices.
const MOST_BLOCKS: usize = 1 << 12;

/// A count as a kernel takes it.
///
/// # Errors
/// More than 2³² − 1.
pub(super) fn count(what: &str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::shape_mismatch(what, "at most 4294967295", n))
}

/// What becomes of the work of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It is enqueued.
    Enqueue,
    /// It is recorded into a graph: enqueued, but without the fences of callers' slices.
    Capture,
    /// Nothing is enqueued but the tables that differ: a graph that was recorded reads them.
    TablesOnly,
    /// Nothing is enqueued but the products, on what the workspace holds: what cublasLt chooses and loads at a product's first
    /// call must be there before a capture, during which CUDA 13.3's heuristic fails.
    Rehearse,
}

/// Kernels and the stream they are launched on.
#[derive(Debug)]
pub(super) struct Launcher {
    pub(super) kernels: Kernels,
    pub(super) stream: Arc<CudaStream>,
    pub(super) mode: Mode,
    /// Digest of the launches that were left out under [`Mode::TablesOnly`]: what a graph of them holds.
    pub(super) left_out: AtomicU64,
}

/// An argument of a kernel as a number that differs where its bits do.
trait Argument {
    fn number(self) -> u64;
}

impl Argument for u64 {
    fn number(self) -> u64 {
        self
    }
}

impl Argument for u32 {
    fn number(self) -> u64 {
        self.into()
    }
}

impl Argument for f32 {
    fn number(self) -> u64 {
        self.to_bits().into()
    }
}

impl Argument for f64 {
    fn number(self) -> u64 {
        self.to_bits()
    }
}

/// A batch of symmetric matrices: `n × n` row-major, `stride` elements apart, of element type `dtype`.
#[derive(Debug, Clone, Copy)]
pub(super) struct SymmetricBatch {
    pub(super) n: usize,
    pub(super) stride: usize,
    pub(super) batch: usize,
    pub(super) dtype: u32,
}

macro_rules! launch {
    ($self:ident, $entry:literal, $grid:expr, $block:expr, [$($arg:expr),* $(,)?]) => {{
        if $self.mode == Mode::TablesOnly {
            $self.leave_out($entry, $grid, &[$(Argument::number($arg)),*]);
            return Ok(());
        }
        if $self.mode == Mode::Rehearse {
            return Ok(());
        }
        let (x, y): (u32, u32) = $grid;
        // Parameters without elements have no tile.
        if x == 0 {
            return Ok(());
        }
        let function = $self.kernels.function($entry)?;
        let mut builder = $self.stream.launch_builder(function);
        $(builder.arg(&$arg);)*
        let config = LaunchConfig { grid_dim: (x, y, 1), block_dim: ($block, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: (1) the arguments are those of the entry's signature, in its order and types (tests/kernels
        // compares the contract with the signature, and every launcher is executed by the tests); (2) addresses are
        // those of buffers or tables that the caller holds and sized for this grid; (3) they are allocations or slots
        // aligned to 16 bytes, or callers' memory of which kernels check the alignment; (4, 5) kernels write what
        // their contract says, none of which overlaps; (6) the buffers are freed on the same stream.
        let launched = unsafe { builder.launch(config) };
        launched
            .map(|_| ())
            .map_err(|e| driver_error(e, concat!("launching `", $entry, "`")))
    }};
}

impl Launcher {
    /// Notes a launch that is left out.
    fn leave_out(&self, entry: &str, grid: (u32, u32), arguments: &[u64]) {
        let mut hasher = DefaultHasher::new();
        (self.left_out.load(Ordering::Relaxed), entry, grid, arguments).hash(&mut hasher);
        self.left_out.store(hasher.finish(), Ordering::Relaxed);
    }

    /// Partial sums of squares of the directions; one block per tile.
    pub(super) fn direction_scan(
        &self,
        tiles: usize,
        tile_matrix: u64,
        matrices: u64,
        scalars: u64,
        grad_scale: u64,
        partial: u64,
    ) -> Result<()> {
        let grid = (count("tiles", tiles)?, 1);
        launch!(
            self,
            "direction_scan",
            grid,
            BLOCK,
            [tile_matrix, matrices, scalars, grad_scale, partial]
        )
    }

    /// Momentum and normalised iterate; one block per tile.
    pub(super) fn momentum_blend(
        &self,
        tiles: usize,
        tile_matrix: u64,
        matrices: u64,
        scalars: u64,
        norms: u64,
        grad_scale: u64,
    ) -> Result<()> {
        let grid = (count("tiles", tiles)?, 1);
        launch!(
            self,
            "momentum_blend",
            grid,
            BLOCK,
            [tile_matrix, matrices, scalars, norms, grad_scale]
        )
    }

    /// Momentum of the checked matrices; one block per tile.
    pub(super) fn momentum_commit(
        &self,
        tiles: usize,
        tile_matrix: u64,
        matrices: u64,
        scalars: u64,
        norms: u64,
        grad_scale: u64,
    ) -> Result<()> {
        let grid = (count("tiles", tiles)?, 1);
        launch!(
            self,
            "momentum_commit",
            grid,
            BLOCK,
            [tile_matrix, matrices, scalars, norms, grad_scale]
        )
    }

    /// Partial sums into norms; one warp per matrix.
    pub(super) fn norm_finish(
        &self,
        jobs: usize,
        matrices: u64,
        scalars: u64,
        partial: u64,
        norms: u64,
    ) -> Result<()> {
        let grid = (count("matrices", jobs)?, 1);
        launch!(self, "norm_finish", grid, 32, [matrices, scalars, partial, norms])
    }

    /// Largest magnitudes of results, tile by tile.
    pub(super) fn update_check(
        &self,
        tiles: usize,
        tile_matrix: u64,
        matrices: u64,
        partial: u64,
    ) -> Result<()> {
        let grid = (count("tiles", tiles)?, 1);
        launch!(self, "update_check", grid, BLOCK, [tile_matrix, matrices, partial])
    }

    /// Takes matrices whose result is not finite, or too large, out of the step.
    pub(super) fn update_verdict(
        &self,
        jobs: usize,
        matrices: u64,
        scalars: u64,
        partial: u64,
        norms: u64,
    ) -> Result<()> {
        let grid = (count("matrices", jobs)?, 1);
        launch!(self, "update_verdict", grid, 32, [matrices, scalars, partial, norms])
    }

    /// Partial sums of squares of gradients; one block per tile.
    pub(super) fn gradient_sum(
        &self,
        tiles: usize,
        tile_span: u64,
        spans: u64,
        factor: u64,
        partial: u64,
    ) -> Result<()> {
        let grid = (count("tiles", tiles)?, 1);
        launch!(self, "gradient_sum", grid, BLOCK, [tile_span, spans, factor, partial])
    }

    /// Partial sums into sums; one warp per span.
    pub(super) fn span_finish(
        &self,
        spans: usize,
        table: u64,
        partial: u64,
        sums: u64,
    ) -> Result<()> {
        let grid = (count("spans", spans)?, 1);
        launch!(self, "span_finish", grid, 32, [table, partial, sums])
    }

    /// The factor of every gradient under a limit on the global norm.
    pub(super) fn clip_factor(
        &self,
        spans: usize,
        sums: u64,
        inverse_loss_scale: f64,
        clip_norm: f64,
        grad_scale: u64,
        record: u64,
    ) -> Result<()> {
        let spans = count("spans", spans)?;
        launch!(
            self,
            "clip_factor",
            (1, 1),
            32,
            [sums, spans, inverse_loss_scale, clip_norm, grad_scale, record]
        )
    }

    /// `out ← product + beta·c + gamma·d` from the lower triangle, mirrored.
    #[expect(clippy::too_many_arguments, reason = "the arguments of the kernel")]
    pub(super) fn symmetric_complete(
        &self,
        batch: SymmetricBatch,
        product: u64,
        product_stride: usize,
        c: u64,
        d: u64,
        out: u64,
        beta: f32,
        gamma: f32,
    ) -> Result<()> {
        let n = count("rows", batch.n)?;
        let (stride, product_stride) = (batch.stride as u64, product_stride as u64);
        for (first, grid) in batches(batch)? {
            let offset = |address: u64, stride: u64, bytes: u64| address + first * stride * bytes;
            let size = super::table::element_bytes(batch.dtype);
            let product = offset(product, product_stride, 4);
            let [c, d, out] = [c, d, out].map(|a| offset(a, stride, size));
            launch!(
                self,
                "symmetric_complete",
                grid,
                BLOCK,
                [product, c, d, out, n, product_stride, stride, beta, gamma, batch.dtype]
            )?;
        }
        Ok(())
    }

    /// Mirrors the lower triangle.
    pub(super) fn symmetric_mirror(&self, batch: SymmetricBatch, out: u64) -> Result<()> {
        let n = count("rows", batch.n)?;
        let stride = batch.stride as u64;
        let size = super::table::element_bytes(batch.dtype);
        for (first, grid) in batches(batch)? {
            let out = out + first * stride * size;
            launch!(self, "symmetric_mirror", grid, BLOCK, [out, n, stride, batch.dtype])?;
        }
        Ok(())
    }

    /// `1/√(row sums of magnitudes)`.
    pub(super) fn aol_factors(&self, batch: SymmetricBatch, r: u64, factor: u64) -> Result<()> {
        let n = count("rows", batch.n)?;
        let grid = (n, grid_y(batch.batch)?);
        let stride = batch.stride as u64;
        launch!(self, "aol_factors", grid, BLOCK, [r, factor, n, stride, batch.dtype])
    }

    /// Scales rows (1), columns (2) or both (3) of a batch of `rows × cols` matrices by factors of the short side `n`.
    #[expect(clippy::too_many_arguments, reason = "the arguments of the kernel")]
    pub(super) fn aol_scale(
        &self,
        a: u64,
        factor: u64,
        (rows, cols): (usize, usize),
        n: usize,
        stride: usize,
        batch: usize,
        by: u32,
        dtype: u32,
    ) -> Result<()> {
        let n = count("rows", n)?;
        let grid = (blocks(rows * cols)?, grid_y(batch)?);
        let (rows, cols, stride) = (rows as u64, cols as u64, stride as u64);
        launch!(self, "aol_scale", grid, BLOCK, [a, factor, rows, cols, n, stride, by, dtype])
    }

    /// Pass B; one block per tile.
    pub(super) fn update_apply(
        &self,
        tiles: usize,
        tile_matrix: u64,
        matrices: u64,
        scalars: u64,
        norms: u64,
    ) -> Result<()> {
        let grid = (count("tiles", tiles)?, 1);
        launch!(self, "update_apply", grid, BLOCK, [tile_matrix, matrices, scalars, norms])
    }

    /// Counts the step of each parameter, and all skips; one block.
    pub(super) fn step_finish(
        &self,
        params: usize,
        counters: u64,
        matrices: u64,
        record: u64,
    ) -> Result<()> {
        let params = count("parameters", params)?;
        launch!(self, "step_finish", (1, 1), BLOCK, [counters, matrices, params, record])
    }

    /// Makes a master copy.
    pub(super) fn master_fill(&self, param: u64, master: u64, len: usize) -> Result<()> {
        let grid = (blocks(len)?, 1);
        let len = len as u64;
        launch!(self, "master_fill", grid, BLOCK, [param, master, len])
    }

    /// Scalars of AdamW with their bias corrections, and the skips; one block.
    pub(super) fn adamw_prepare(
        &self,
        tensors: usize,
        table: u64,
        scalars: u64,
        sums: u64,
        steps: u64,
        record: u64,
    ) -> Result<()> {
        let tensors = count("tensors", tensors)?;
        launch!(
            self,
            "adamw_prepare",
            (1, 1),
            BLOCK,
            [table, scalars, sums, steps, tensors, record]
        )
    }

    /// AdamW; one block per tile.
    pub(super) fn adamw_apply(
        &self,
        tiles: usize,
        tile_tensor: u64,
        tensors: u64,
        steps: u64,
        grad_scale: u64,
    ) -> Result<()> {
        let grid = (count("tiles", tiles)?, 1);
        launch!(self, "adamw_apply", grid, BLOCK, [tile_tensor, tensors, steps, grad_scale])
    }
}

/// Blocks of a grid-stride kernel over that many elements.
fn blocks(elements: usize) -> Result<u32> {
    count("blocks", elements.div_ceil(BLOCK as usize).clamp(1, MOST_BLOCKS))
}

/// The second dimension of a grid holds 65535 blocks at most.
fn grid_y(batch: usize) -> Result<u32> {
    match u32::try_from(batch) {
        Ok(y) if y <= 65_535 => Ok(y),
        _ => Err(Error::shape_mismatch("matrices of one shape in a chunk", "at most 65535", batch)),
    }
}

/// First matrix and grid of each launch over a batch: squares of the lower triangle, by matrices.
fn batches(batch: SymmetricBatch) -> Result<impl Iterator<Item = (u64, (u32, u32))>> {
    let side = batch.n.div_ceil(SIDE);
    let squares = count("squares", side * (side + 1) / 2)?;
    let total = count("matrices", batch.batch)?;
    Ok((0..total)
        .step_by(65_535)
        .map(move |first| (u64::from(first), (squares, (total - first).min(65_535)))))
}
