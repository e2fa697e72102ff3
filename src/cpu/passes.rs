//! Passes A and B and AdamW over matrices and tensors: which ranges, in which order, on which threads.

use half::bf16;
use rayon::iter::{
    IndexedParallelIterator, IntoParallelRefIterator, IntoParallelRefMutIterator, ParallelIterator,
};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::elementwise::{
    self, AdamWParam, AdamWScalars, Decay, Element, InverseNorm, L2, StochasticBits, narrow,
};
use super::{Cpu, CpuGrad, CpuParamMut, CpuState, Slot, StateBuffers, execute};
use crate::config::Bf16Params;
use crate::device::{AdamWJob, HostBuffer, MatrixJob, MuonScalars, StepTensor};
use crate::limits::LARGEST_SQUARE;
use crate::plan::{Bucket, Treatment};
use crate::precision::Precision;
use crate::recipe::Iterate;
use crate::shape::{Block, MatrixShape};

/// Elements of one range: the unit of parallel work and of partial sums, so it must not depend on the
/// number of threads. 64 KiB of f32 stay in the first two cache levels.
const RANGE: usize = 1 << 14;

/// Number of ranges, hence of partial sums, of a matrix.
pub(super) fn ranges(shape: MatrixShape) -> usize {
    shape.len().div_ceil(RANGE)
}

/// Runs `work` on pairs, in parallel if there is a pool.
pub(super) fn for_each<A: Sync, B: Send>(
    parallel: bool,
    a: &[A],
    b: &mut [B],
    work: impl Fn(&A, &mut B) + Sync,
) {
    if parallel && a.len() > 1 {
        a.par_iter().zip(b.par_iter_mut()).for_each(|(a, b)| work(a, b));
    } else {
        a.iter().zip(b).for_each(|(a, b)| work(a, b));
    }
}

/// The parameters that L2 decay adds to a gradient; nothing with the other modes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weights<'a> {
    None,
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> Weights<'a> {
    pub(super) fn new(
        s: &MuonScalars,
        master: Option<&'a Vec<f32>>,
        param: &'a CpuParamMut<'_>,
    ) -> Self {
        match (param, master) {
            _ if s.l2 == 0.0 => Self::None,
            (_, Some(master)) => Self::F32(master),
            (CpuParamMut::F32(p), None) => Self::F32(p),
            (CpuParamMut::Bf16(p), None) => Self::Bf16(p),
        }
    }
}

/// Runs an expression on the buffers of a matrix by their element types, with what L2 decay adds.
macro_rules! by_type {
    (@decay $weights:expr, $factor:expr, $decay:ident, $run:expr) => {
        match $weights {
            Weights::None => {
                let $decay = ();
                $run
            }
            Weights::F32(w) => {
                let $decay = L2($factor, w);
                $run
            }
            Weights::Bf16(w) => {
                let $decay = L2($factor, w);
                $run
            }
        }
    };
    ($grad:expr, $momentum:expr, $weights:expr, $factor:expr, |$g:ident, $m:ident, $decay:ident| $run:expr) => {
        match ($grad, $momentum) {
            (CpuGrad::F32($g), HostBuffer::F32($m)) => by_type!(@decay $weights, $factor, $decay, $run),
            (CpuGrad::F32($g), HostBuffer::Bf16($m)) => by_type!(@decay $weights, $factor, $decay, $run),
            (CpuGrad::Bf16($g), HostBuffer::F32($m)) => by_type!(@decay $weights, $factor, $decay, $run),
            (CpuGrad::Bf16($g), HostBuffer::Bf16($m)) => by_type!(@decay $weights, $factor, $decay, $run),
            (CpuGrad::F16($g), HostBuffer::F32($m)) => by_type!(@decay $weights, $factor, $decay, $run),
            (CpuGrad::F16($g), HostBuffer::Bf16($m)) => by_type!(@decay $weights, $factor, $decay, $run),
        }
    };
}

/// Direction into the slot's iterate, sum of squares, normalisation.
#[expect(clippy::too_many_arguments, reason = "one matrix of a step, called from one place")]
pub(super) fn pass_a(
    job: &MatrixJob,
    bucket: &Bucket,
    precision: Precision,
    tensors: &[StepTensor<'_, Cpu>],
    states: &[CpuState],
    slot: &mut Slot,
    grad_scale: f32,
    parallel: bool,
) {
    let StateBuffers::Momentum(momentum) = &states[job.param].buffers else { return };
    let Some(grad) = &tensors[job.tensor].grad else { return };
    let s = &job.scalars;
    let weights = Weights::new(s, states[job.param].ready_master(), &tensors[job.tensor].param);
    let input = PassA { job, grad_scale, parallel };
    by_type!(grad, momentum, weights, s.l2, |g, m, decay| input.run(g, m, decay, slot));
    // Where the direction is the update, its norm bounds every element; the others are looked at in pass B.
    let is_update = matches!(bucket.treatment, Treatment::Identity);
    if is_update && slot.sum_of_squares.sqrt() > f64::from(job.scalars.largest) {
        slot.sum_of_squares = f64::INFINITY;
    }
    if !slot.sum_of_squares.is_finite() {
        // The batch goes on with a zero matrix in its place; pass B skips it.
        slot.buffers.x[0].fill(0.0);
        return;
    }
    let safety = match &bucket.treatment {
        Treatment::Frobenius => 1.0,
        Treatment::Polynomial { safety, .. } => *safety,
        Treatment::Identity | Treatment::ExactSvd => return,
    };
    let inverse = InverseNorm::new(slot.sum_of_squares, safety, bucket.norm_floor);
    let precision = bucket.treatment.stored_in(precision);
    let x = &mut slot.buffers.x[0];
    if parallel && x.len() > RANGE {
        x.par_chunks_mut(RANGE).for_each(|x| inverse.apply(x, precision));
    } else {
        inverse.apply(x, precision);
    }
}

/// The direction of one matrix alone, as pass A makes it; returns the sum of its squares. `block` is where the matrix
/// lies in gradient, momentum and weights.
pub(crate) fn direction_of(
    block: &Block,
    scalars: &MuonScalars,
    grad: CpuGrad<'_>,
    momentum: &HostBuffer,
    weights: Weights<'_>,
    grad_scale: f32,
    out: &mut Vec<f32>,
) -> f64 {
    out.clear();
    out.resize(block.shape.len(), 0.0);
    let input = Direction { block, scalars, grad_scale };
    by_type!(grad, momentum, weights, scalars.l2, |g, m, decay| input.rows(g, m, decay, out))
}

struct Direction<'a> {
    block: &'a Block,
    scalars: &'a MuonScalars,
    grad_scale: f32,
}

impl Direction<'_> {
    fn rows<G: Element, M: Element>(
        &self,
        grad: &[G],
        momentum: &[M],
        decay: impl Decay,
        out: &mut [f32],
    ) -> f64 {
        let rows = out.chunks_mut(self.block.shape.cols).enumerate();
        rows.map(|(i, x)| {
            let row = self.block.row(i);
            let decay = decay.skip(row.start);
            let (grad, momentum) = (&grad[row.clone()], &momentum[row]);
            elementwise::write_direction(grad, momentum, decay, x, self.grad_scale, self.scalars)
        })
        .sum()
    }
}

struct PassA<'a> {
    job: &'a MatrixJob,
    grad_scale: f32,
    parallel: bool,
}

impl PassA<'_> {
    fn run<G: Element, M: Element>(
        &self,
        grad: &[G],
        momentum: &[M],
        decay: impl Decay,
        slot: &mut Slot,
    ) {
        let block = &self.job.block;
        // `start` is that of the range in the parameter.
        let write = |g: &[G], m: &[M], start: usize, x: &mut [f32]| {
            let decay = decay.skip(start);
            elementwise::write_direction(g, m, decay, x, self.grad_scale, &self.job.scalars)
        };
        let x = &mut slot.buffers.x[0];
        slot.partials.clear();
        if block.is_contiguous() {
            let range = contiguous(block);
            let (grad, momentum) = (&grad[range.clone()], &momentum[range]);
            slot.partials.resize(ranges(block.shape), 0.0);
            if self.parallel && x.len() > RANGE {
                grad.par_chunks(RANGE)
                    .zip(momentum.par_chunks(RANGE))
                    .zip(x.par_chunks_mut(RANGE))
                    .zip(&mut slot.partials)
                    .enumerate()
                    .for_each(|(i, (((g, m), x), sum))| {
                        *sum = write(g, m, block.offset + i * RANGE, x);
                    });
            } else {
                let parts = grad.chunks(RANGE).zip(momentum.chunks(RANGE)).zip(x.chunks_mut(RANGE));
                for (i, (((g, m), x), sum)) in parts.zip(&mut slot.partials).enumerate() {
                    *sum = write(g, m, block.offset + i * RANGE, x);
                }
            }
            slot.sum_of_squares = slot.partials.iter().sum();
        } else {
            slot.sum_of_squares = x
                .chunks_mut(block.shape.cols)
                .enumerate()
                .map(|(i, x)| {
                    let row = block.row(i);
                    write(&grad[row.clone()], &momentum[row.clone()], row.start, x)
                })
                .sum();
        }
    }
}

fn contiguous(block: &Block) -> std::ops::Range<usize> {
    block.offset..block.offset + block.shape.len()
}

/// Orthogonalizes the iterates of a bucket's slots.
pub(super) fn orthogonalize(
    bucket: &Bucket,
    precision: Precision,
    slots: &mut [Slot],
    parallel: bool,
) {
    match &bucket.treatment {
        Treatment::Identity | Treatment::Frobenius => {}
        Treatment::ExactSvd => {
            let one = |slot: &mut Slot| {
                let x = &mut slot.buffers.x[0];
                if execute::polar_factor_svd(bucket.shape, x).is_err() {
                    // No convergence: the matrix is skipped and counted, as one that is not finite.
                    slot.sum_of_squares = f64::NAN;
                }
            };
            if parallel {
                slots.par_iter_mut().for_each(one);
            } else {
                slots.iter_mut().for_each(one);
            }
        }
        Treatment::Polynomial { recipe, .. } => {
            let one = |slot: &mut Slot| {
                execute::execute(recipe, bucket.shape, precision, &mut slot.buffers, parallel);
            };
            if parallel {
                slots.par_iter_mut().for_each(one);
            } else {
                slots.iter_mut().for_each(one);
            }
        }
    }
}

/// Commits one matrix, or skips and counts it; whether it was skipped.
pub(super) fn pass_b(
    job: &MatrixJob,
    bucket: &Bucket,
    slot: &Slot,
    tensor: &mut StepTensor<'_, Cpu>,
    state: &mut CpuState,
    grad_scale: f32,
    parallel: bool,
) -> bool {
    fill_master(tensor, state);
    let update = match &bucket.treatment {
        Treatment::Polynomial { recipe, .. } if recipe.result() == Iterate::X1 => {
            &slot.buffers.x[1]
        }
        _ => &slot.buffers.x[0],
    };
    // The orthogonalization itself may have overflowed (a forced method in 16 bit): its result is checked,
    // not only the gradient, before anything is written.
    let largest = job.scalars.largest;
    let finite = if parallel && update.len() > RANGE {
        update.par_chunks(RANGE).all(|x| elementwise::all_within(x, largest))
    } else {
        elementwise::all_within(update, largest)
    };
    if !(slot.sum_of_squares.is_finite() && finite) {
        state.counters.skipped[job.matrix] += 1;
        return true;
    }
    let (Some(grad), StateBuffers::Momentum(momentum)) = (&tensor.grad, &mut state.buffers) else {
        return false;
    };
    state.updated = true;
    let s = &job.scalars;
    let master = state.master.as_ref().filter(|_| state.master_ready);
    let weights = Weights::new(s, master, &tensor.param);
    let commit = Commit { job, grad_scale, parallel };
    by_type!(grad, momentum, weights, s.l2, |g, m, decay| commit.momentum(g, m, decay));
    match (&mut tensor.param, state.spec.bf16_params) {
        (CpuParamMut::F32(p), _) => {
            commit.rows(p, update, |p, u, _| elementwise::update_f32(p, u, s));
        }
        (CpuParamMut::Bf16(p), Bf16Params::Master) => {
            let Some(master) = &mut state.master else { return false };
            for (i, u) in update.chunks(job.block.shape.cols).enumerate() {
                let row = job.block.row(i);
                elementwise::update_master(&mut p[row.clone()], &mut master[row], u, s);
            }
        }
        (CpuParamMut::Bf16(p), Bf16Params::Nearest) => {
            commit.rows(p, update, |p, u, _| elementwise::update_nearest(p, u, s));
        }
        (CpuParamMut::Bf16(p), Bf16Params::Stochastic { seed }) => {
            let random = StochasticBits::new(seed, state.spec.salt, state.counters.steps);
            commit.rows(p, update, |p, u, index| {
                elementwise::update_stochastic(p, u, s, random, index);
            });
        }
    }
    false
}

/// Makes the master copy from the parameter where there should be one and is not.
fn fill_master(tensor: &StepTensor<'_, Cpu>, state: &mut CpuState) {
    if let (CpuParamMut::Bf16(param), Some(master), false) =
        (&tensor.param, &mut state.master, state.master_ready)
    {
        master.iter_mut().zip(param.iter()).for_each(|(m, p)| *m = Element::to_f32(*p));
        state.master_ready = true;
    }
}

struct Commit<'a> {
    job: &'a MatrixJob,
    grad_scale: f32,
    parallel: bool,
}

impl Commit<'_> {
    fn momentum<G: Element, M: Element>(&self, grad: &[G], momentum: &mut [M], decay: impl Decay) {
        let block = &self.job.block;
        let commit = |g: &[G], m: &mut [M], start: usize| {
            let decay = decay.skip(start);
            elementwise::commit_momentum(g, m, decay, self.grad_scale, &self.job.scalars);
        };
        if !block.is_contiguous() {
            for i in 0..block.shape.rows {
                let row = block.row(i);
                commit(&grad[row.clone()], &mut momentum[row.clone()], row.start);
            }
            return;
        }
        let (grad, momentum) = (&grad[contiguous(block)], &mut momentum[contiguous(block)]);
        if self.parallel && grad.len() > RANGE {
            let parts = grad.par_chunks(RANGE).zip(momentum.par_chunks_mut(RANGE));
            parts.enumerate().for_each(|(i, (g, m))| commit(g, m, block.offset + i * RANGE));
        } else {
            commit(grad, momentum, block.offset);
        }
    }

    /// Calls `write` with ranges of the parameter, the update for them, and the index of their first element.
    fn rows<P: Element>(
        &self,
        param: &mut [P],
        update: &[f32],
        write: impl Fn(&mut [P], &[f32], usize) + Sync,
    ) {
        let block = &self.job.block;
        if !block.is_contiguous() {
            for (i, u) in update.chunks(block.shape.cols).enumerate() {
                let row = block.row(i);
                write(&mut param[row.clone()], u, row.start);
            }
            return;
        }
        let param = &mut param[contiguous(block)];
        if self.parallel && param.len() > RANGE {
            let parts = param.par_chunks_mut(RANGE).zip(update.par_chunks(RANGE)).enumerate();
            parts.for_each(|(i, (p, u))| write(p, u, block.offset + i * RANGE));
        } else {
            write(param, update, block.offset);
        }
    }
}

/// AdamW on one tensor, or skips and counts it; whether it was skipped.
pub(super) fn adamw(
    job: &AdamWJob,
    tensor: &mut StepTensor<'_, Cpu>,
    state: &mut CpuState,
    grad_scale: f32,
) -> bool {
    let Some(grad) = tensor.grad else { return false };
    fill_master(tensor, state);
    let sum = match grad {
        CpuGrad::F32(g) => elementwise::sum_of_squares(g, grad_scale),
        CpuGrad::Bf16(g) => elementwise::sum_of_squares(g, grad_scale),
        CpuGrad::F16(g) => elementwise::sum_of_squares(g, grad_scale),
    };
    // False for a NaN.
    let fits = sum < LARGEST_SQUARE;
    if !fits {
        state.counters.skipped[0] += 1;
        return true;
    }
    let random = |seed| StochasticBits::new(seed, state.spec.salt, state.counters.steps);
    let param = match (&mut tensor.param, state.spec.bf16_params) {
        (CpuParamMut::F32(p), _) => AdamWParam::F32(p),
        (CpuParamMut::Bf16(p), Bf16Params::Master) => {
            let Some(master) = &mut state.master else { return false };
            AdamWParam::Master(p, master)
        }
        (CpuParamMut::Bf16(p), Bf16Params::Stochastic { seed }) => {
            AdamWParam::Stochastic(p, random(seed))
        }
        (CpuParamMut::Bf16(p), Bf16Params::Nearest) => AdamWParam::Nearest(p),
    };
    state.counters.steps += 1;
    let t = i32::try_from(state.counters.steps).unwrap_or(i32::MAX);
    let s = AdamWScalars {
        beta1: narrow(job.beta1),
        one_minus_beta1: narrow(1.0 - job.beta1),
        beta2: narrow(job.beta2),
        one_minus_beta2: narrow(1.0 - job.beta2),
        step: narrow(job.lr / (1.0 - job.beta1.powi(t))),
        root_correction: narrow(1.0 / (1.0 - job.beta2.powi(t)).sqrt()),
        eps: narrow(job.eps),
        keep: job.keep,
    };
    let StateBuffers::AdamW { exp_avg, exp_avg_sq } = &mut state.buffers else { return false };
    match grad {
        CpuGrad::F32(g) => elementwise::adamw(param, g, exp_avg, exp_avg_sq, grad_scale, &s),
        CpuGrad::Bf16(g) => elementwise::adamw(param, g, exp_avg, exp_avg_sq, grad_scale, &s),
        CpuGrad::F16(g) => elementwise::adamw(param, g, exp_avg, exp_avg_sq, grad_scale, &s),
    }
    false
}

/// Sum of squares of a matrix of a gradient, or of the whole of it; not finite if an element is not.
pub(super) fn unit_sum(grad: &CpuGrad<'_>, block: &Block) -> f64 {
    fn sum<G: Element>(grad: &[G], block: &Block) -> f64 {
        if block.is_contiguous() {
            return elementwise::sum_of_squares(&grad[contiguous(block)], 1.0);
        }
        let rows = 0..block.shape.rows;
        rows.map(|i| elementwise::sum_of_squares(&grad[block.row(i)], 1.0)).sum()
    }
    match grad {
        CpuGrad::F32(g) => sum(g, block),
        CpuGrad::Bf16(g) => sum(g, block),
        CpuGrad::F16(g) => sum(g, block),
    }
}
