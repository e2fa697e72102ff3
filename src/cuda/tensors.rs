//! AdamW tensors, gradients as wholes, and step counts: their tables and launches.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::fence::Fences;
use super::launch::{Launcher, count};
use super::memory::{Buffer, Room, Table};
use super::state::CudaState;
use super::table::{self, AdamWScalars, AdamWStep, Span, TILE, Tensor};
use super::{Cuda, passes};
use crate::cpu::narrow;
use crate::device::{AdamWJob, BufferInfo, StepTensor};
use crate::error::Result;
use crate::shape::{Block, MatrixShape};

/// A gradient as one row.
pub(super) fn whole(grad: BufferInfo) -> (BufferInfo, Block) {
    let shape = MatrixShape { rows: 1, cols: grad.len };
    (grad, Block { offset: 0, shape, row_stride: grad.len })
}

/// Tables over gradients and matrices of them.
#[derive(Debug)]
pub(super) struct Spans {
    spans: Table<Span>,
    tile_span: Table<u32>,
    partial: Room<f64>,
    sums: Room<f64>,
}

impl Spans {
    pub(super) fn new() -> Self {
        Self {
            spans: Table::new("the gradient table"),
            tile_span: Table::new("the tile table of gradients"),
            partial: Room::new("partial sums of gradients"),
            sums: Room::new("sums of gradients"),
        }
    }

    /// Enqueues the sum of squares of every gradient, or matrix of one, times the factor at `factor`; how many, and the
    /// address of the sums.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn sums(
        &mut self,
        launcher: &Launcher,
        gradients: impl Iterator<Item = (BufferInfo, Block)>,
        factor: u64,
    ) -> Result<(usize, u64)> {
        let stream = &launcher.stream;
        let (mut spans, mut tiles) = (Vec::new(), Vec::new());
        for (grad, block) in gradients {
            let (first_tile, index) =
                (count("tiles", tiles.len())?, count("gradients", spans.len())?);
            let own = block.shape.len().div_ceil(TILE);
            tiles.resize(tiles.len() + own, index);
            let kind = table::dtype_code(grad.dtype) << table::GRAD_SHIFT;
            let cols = block.shape.cols as u64;
            spans.push(Span {
                grad: grad.address as u64 + block.offset as u64 * grad.dtype.bytes() as u64,
                rows: block.shape.rows as u64,
                cols,
                row_stride: if block.is_contiguous() { cols } else { block.row_stride as u64 },
                first_tile,
                tiles: count("tiles", own)?,
                kind,
                reserved: 0,
            });
        }
        let sums = self.sums.reserve(stream, spans.len())?;
        if spans.is_empty() {
            return Ok((0, sums));
        }
        let table = self.spans.set(stream, &spans)?;
        let tile_span = self.tile_span.set(stream, &tiles)?;
        let partial = self.partial.reserve(stream, tiles.len())?;
        launcher.gradient_sum(tiles.len(), tile_span, table, factor, partial)?;
        launcher.span_finish(spans.len(), table, partial, sums)?;
        Ok((spans.len(), sums))
    }

    /// The sums on the host; waits for the stream.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn download(&self, stream: &Arc<CudaStream>, len: usize) -> Result<Vec<f64>> {
        self.sums.buffer().map_or(Ok(Vec::new()), |b| b.download(stream, len, "sums of gradients"))
    }
}

/// Tables of AdamW.
#[derive(Debug)]
pub(super) struct AdamWTables {
    spans: Spans,
    tensors: Table<Tensor>,
    tile_tensor: Table<u32>,
    scalars: Table<AdamWScalars>,
    steps: Room<AdamWStep>,
}

impl AdamWTables {
    pub(super) fn new() -> Self {
        Self {
            spans: Spans::new(),
            tensors: Table::new("the tensor table"),
            tile_tensor: Table::new("the tile table of tensors"),
            scalars: Table::new("the scalars of AdamW"),
            steps: Room::new("the step of AdamW"),
        }
    }
}

/// AdamW on every tensor of the jobs; `record` is the address of what the step reports.
///
/// # Errors
/// A failed device.
pub(super) fn adamw(
    tables: &mut AdamWTables,
    launcher: &Launcher,
    grad_scale: u64,
    jobs: &[AdamWJob],
    tensors: &mut [StepTensor<'_, Cuda>],
    states: &mut [CudaState],
    record: u64,
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let stream = &launcher.stream;
    let (mut table, mut tiles, mut scalars) = (Vec::new(), Vec::new(), Vec::new());
    for job in jobs {
        let (tensor, state) = (&tensors[job.tensor], &states[job.param]);
        let Some(grad) = &tensor.grad else { continue };
        let (grad, param) = (grad.info(), tensor.param.info());
        let (first_tile, index) = (count("tiles", tiles.len())?, count("tensors", table.len())?);
        let own = param.len.div_ceil(TILE);
        tiles.resize(tiles.len() + own, index);
        let (stochastic, random_key) = passes::stochastic(state);
        table.push(Tensor {
            grad: grad.address as u64,
            exp_avg: state.buffer(0),
            exp_avg_sq: state.buffer(1),
            param: param.address as u64,
            master: state.master(),
            counters: state.counters_address(),
            len: param.len as u64,
            random_key,
            first_tile,
            tiles: count("tiles", own)?,
            kind: table::dtype_code(grad.dtype) << table::GRAD_SHIFT
                | table::dtype_code(param.dtype) << table::PARAM_SHIFT
                | stochastic,
            reserved: 0,
        });
        scalars.push(AdamWScalars {
            lr: job.lr,
            beta1: job.beta1,
            beta2: job.beta2,
            eps: narrow(job.eps),
            keep: job.keep,
        });
    }
    let missing = passes::without_master(jobs.iter().map(|j| (j.param, j.tensor)), tensors, states);
    let gradients: Vec<_> = jobs
        .iter()
        .filter_map(|job| tensors[job.tensor].grad.as_ref())
        .map(|g| whole(g.info()))
        .collect();
    let mut fences = Fences::new(launcher, stream);
    for t in tensors.iter_mut() {
        let Some(grad) = &t.grad else { continue };
        fences.read(grad)?;
        fences.write(&mut t.param)?;
    }
    passes::fill_masters(launcher, &missing, states)?;
    let (spans, sums) = tables.spans.sums(launcher, gradients.into_iter(), grad_scale)?;
    let device_table = tables.tensors.set(stream, &table)?;
    let tile_tensor = tables.tile_tensor.set(stream, &tiles)?;
    let device_scalars = tables.scalars.set(stream, &scalars)?;
    let steps = tables.steps.reserve(stream, table.len())?;
    launcher.adamw_prepare(spans, device_table, device_scalars, sums, steps, record)?;
    launcher.adamw_apply(tiles.len(), tile_tensor, device_table, steps, grad_scale)
}

/// Tables of the step counts.
#[derive(Debug)]
pub(super) struct FinishTables {
    counters: Table<u64>,
    matrices: Table<u64>,
}

impl FinishTables {
    pub(super) fn new() -> Self {
        Self {
            counters: Table::new("the counter table"),
            matrices: Table::new("the counts of matrices"),
        }
    }

    /// Counts the step of every parameter, and all skips into the record at that address.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn run(
        &mut self,
        launcher: &Launcher,
        params: &[usize],
        states: &[CudaState],
        record: u64,
    ) -> Result<()> {
        if params.is_empty() {
            return Ok(());
        }
        let counters: Vec<u64> = params.iter().map(|&p| states[p].counters_address()).collect();
        let matrices: Vec<u64> = params.iter().map(|&p| states[p].spec.matrices() as u64).collect();
        let stream = &launcher.stream;
        let counters = self.counters.set(stream, &counters)?;
        let matrices = self.matrices.set(stream, &matrices)?;
        launcher.step_finish(params.len(), counters, matrices, record)
    }
}

/// The factor of every gradient, on the device.
#[derive(Debug)]
pub(super) struct GradScale {
    device: Buffer<f32>,
    /// What the host wrote there last; `None` after the device wrote it.
    host: Option<f32>,
}

impl GradScale {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        Ok(Self { device: Buffer::zeroed(stream, 1, "the gradient factor")?, host: None })
    }

    pub(super) fn address(&self) -> u64 {
        self.device.address()
    }

    /// Sets it from the host, unless it is that already.
    ///
    /// # Errors
    /// A failed device.
    pub(super) fn set(&mut self, stream: &Arc<CudaStream>, scale: f32) -> Result<()> {
        if self.host.map(f32::to_bits) != Some(scale.to_bits()) {
            self.host = None;
            self.device.upload(stream, &[scale], "the gradient factor")?;
            self.host = Some(scale);
        }
        Ok(())
    }

    /// Notes that a kernel writes it.
    pub(super) fn written_by_device(&mut self) {
        self.host = None;
    }
}
