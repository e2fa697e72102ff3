//! Passes A and B: the tables of a chunk, and the launches over them.

use super::Cuda;
use super::launch::{Launcher, count};
use super::state::CudaState;
use super::table::{self, Matrix, Scalars, TILE};
use super::workspace::{Chunk, CudaWorkspace};
use crate::config::{Bf16Params, MomentumMode, Nesterov, WeightDecayMode};
use crate::cpu::mix;
use crate::device::{MatrixJob, StepTensor};
use crate::error::{Error, Result};
use crate::plan::{Commit, Plan, Treatment};
use crate::precision::Dtype;

/// Direction, norms, momentum and iterate of a chunk's matrices.
///
/// # Errors
/// A failed device.
#[expect(clippy::too_many_arguments, reason = "one chunk of a step, called from one place")]
pub(super) fn pass_a(
    launcher: &Launcher,
    grad_scale: u64,
    plan: &Plan,
    jobs: &[MatrixJob],
    tensors: &[StepTensor<'_, Cuda>],
    states: &[CudaState],
    workspace: &mut CudaWorkspace,
    chunk: usize,
) -> Result<()> {
    if jobs.is_empty() {
        return Ok(());
    }
    let Some(tables) = workspace.chunks.get_mut(chunk) else {
        return Err(Error::device(format!("chunk {chunk} of a plan of {} chunks", plan.chunks())));
    };
    let (mut matrices, mut tiles, mut scalars) = (Vec::new(), Vec::new(), Vec::new());
    for job in jobs {
        let (tensor, state) = (&tensors[job.tensor], &states[job.param]);
        let slots = &workspace.buckets[job.bucket];
        let bucket = &plan.buckets()[job.bucket];
        let Some(grad) = &tensor.grad else { continue };
        let (grad, param) = (grad.info(), tensor.param.info());
        let (first_tile, index) =
            (count("tiles", tiles.len())?, count("matrices", matrices.len())?);
        let own = job.block.shape.len().div_ceil(TILE);
        tiles.resize(tiles.len() + own, index);
        let s = &job.scalars;
        let (stochastic, random_key) = stochastic(state);
        let (safety, normalize) = match &bucket.treatment {
            Treatment::Identity | Treatment::ExactSvd => (1.0, 0),
            Treatment::Frobenius => (1.0, table::NORMALIZE),
            Treatment::Polynomial { safety, .. } => (*safety, table::NORMALIZE),
        };
        let offset = job.block.offset as u64;
        let at = |address: u64, dtype: Dtype| {
            if address == 0 { 0 } else { address + offset * dtype.bytes() as u64 }
        };
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        matrices.push(Matrix {
            grad: at(grad.address as u64, grad.dtype),
            momentum: at(state.buffer(0), state.momentum_dtype()),
            param: at(param.address as u64, param.dtype),
            master: at(state.master(), Dtype::F32),
            iterate: slots.direction(job.slot),
            result: slots.update(job.slot),
            counters: state.counters_address(),
            rows: job.block.shape.rows as u64,
            cols: job.block.shape.cols as u64,
            row_stride: if job.block.is_contiguous() {
                job.block.shape.cols as u64
            } else {
                job.block.row_stride as u64
            },
            offset,
            random_key,
            safety,
            norm_floor: bucket.norm_floor,
            first_tile,
            tiles: count("tiles", own)?,
            kind: table::dtype_code(grad.dtype) << table::GRAD_SHIFT
                | table::dtype_code(state.momentum_dtype()) << table::MOMENTUM_SHIFT
                | table::dtype_code(param.dtype) << table::PARAM_SHIFT
                | slots.dtype << table::ITERATE_SHIFT
                | flag(s.nesterov == Nesterov::On, table::NESTEROV)
                | flag(s.weight_decay_mode == WeightDecayMode::Cautious, table::CAUTIOUS)
                | flag(bucket.commit == Commit::AfterCheck, table::CHECKED)
                | flag(s.l2 != 0.0, table::L2)
                | flag(
                    s.l2 != 0.0 && state.master() != 0 && !state.lacks_master(),
                    table::L2_MASTER,
                )
                | normalize
                | stochastic,
            matrix: count("matrices of a parameter", job.matrix)?,
            matrices: count("matrices of a parameter", state.spec.matrices())?,
            reserved: 0,
        });
        scalars.push(Scalars {
            momentum: s.momentum,
            gain: match s.momentum_mode {
                MomentumMode::Ema => s.one_minus_momentum,
                MomentumMode::Sum => 1.0,
            },
            keep: s.keep,
            step: s.step,
            l2: s.l2,
            largest: s.largest,
        });
    }
    upload(tables, launcher, &matrices, &tiles, &scalars)?;
    let a = tables.addresses;
    launcher.direction_scan(
        a.tiles,
        a.tile_matrix,
        a.matrices,
        a.scalars,
        grad_scale,
        a.partial,
    )?;
    launcher.norm_finish(a.jobs, a.matrices, a.scalars, a.partial, a.norms)?;
    launcher.momentum_blend(a.tiles, a.tile_matrix, a.matrices, a.scalars, a.norms, grad_scale)
}

fn upload(
    tables: &mut Chunk,
    launcher: &Launcher,
    matrices: &[Matrix],
    tiles: &[u32],
    scalars: &[Scalars],
) -> Result<()> {
    let stream = &launcher.stream;
    tables.addresses.jobs = matrices.len();
    tables.addresses.tiles = tiles.len();
    tables.addresses.matrices = tables.matrices.set(stream, matrices)?;
    tables.addresses.tile_matrix = tables.tile_matrix.set(stream, tiles)?;
    tables.addresses.scalars = tables.scalars.set(stream, scalars)?;
    tables.addresses.norms = tables.norms.reserve(stream, matrices.len())?;
    tables.addresses.partial = tables.partial.reserve(stream, tiles.len())?;
    Ok(())
}

/// Decay and update of a chunk's parameters, after the check of those updates that can turn out not finite, and the
/// momentum that waited for it.
///
/// # Errors
/// A failed device.
pub(super) fn pass_b(
    launcher: &Launcher,
    grad_scale: u64,
    tables: &Chunk,
    checked: bool,
) -> Result<()> {
    let a = tables.addresses;
    if a.jobs == 0 {
        return Ok(());
    }
    if checked {
        launcher.update_check(a.tiles, a.tile_matrix, a.matrices, a.partial)?;
        launcher.update_verdict(a.jobs, a.matrices, a.scalars, a.partial, a.norms)?;
        launcher.momentum_commit(
            a.tiles,
            a.tile_matrix,
            a.matrices,
            a.scalars,
            a.norms,
            grad_scale,
        )?;
    }
    launcher.update_apply(a.tiles, a.tile_matrix, a.matrices, a.scalars, a.norms)
}

/// The bit of `kind` and the key of stochastic rounding, without the step.
pub(super) fn stochastic(state: &CudaState) -> (u32, u64) {
    match (state.spec.param_dtype, state.spec.bf16_params) {
        (Dtype::Bf16, Bf16Params::Stochastic { seed }) => {
            (table::STOCHASTIC, mix(seed ^ state.spec.salt))
        }
        _ => (0, 0),
    }
}

/// Parameters among the jobs, by state and tensor, whose master copy the step must make first.
pub(super) fn without_master(
    jobs: impl Iterator<Item = (usize, usize)>,
    tensors: &[StepTensor<'_, Cuda>],
    states: &[CudaState],
) -> Vec<(usize, u64)> {
    jobs.filter(|(param, _)| states[*param].lacks_master())
        .map(|(param, tensor)| (param, tensors[tensor].param.info().address as u64))
        .collect()
}

/// Makes those master copies from the parameters. No graph is recorded without them: see [`Muon::capture_step`](crate::Muon::capture_step).
///
/// # Errors
/// A failed device.
pub(super) fn fill_masters(
    launcher: &Launcher,
    missing: &[(usize, u64)],
    states: &mut [CudaState],
) -> Result<()> {
    for &(param, address) in missing {
        let state = &mut states[param];
        // One of several matrices of a parameter has made it for all.
        if state.lacks_master() {
            launcher.master_fill(address, state.master(), state.spec.len)?;
            state.master_ready = true;
        }
    }
    Ok(())
}
