//! The CPU device: f32 arithmetic on all cores, 16-bit precisions emulated by rounding at every store.

mod buffers;
mod elementwise;
mod execute;
mod passes;
mod tile;

#[cfg(test)]
mod execute_tests;
#[cfg(test)]
mod nonic_tests;

use std::fmt;

use rayon::ThreadPool;

use crate::device::{
    AdamWJob, BufferInfo, Counters, Device, GradientUnit, HostBuffer, MatrixJob, StateData,
    StateRule, StateSpec, StepRecord, StepTensor,
};
use crate::error::{Error, Result};
use crate::memory;
use crate::plan::{Plan, Treatment};
use crate::precision::{Dtype, Precision};
use crate::trace;

pub use buffers::{CpuGrad, CpuParamMut};
#[cfg(feature = "cuda")]
pub(crate) use elementwise::mix;
pub(crate) use elementwise::narrow;
use elementwise::sum_of_squares;
use execute::MatrixBuffers;
#[cfg(feature = "cuda")]
pub(crate) use execute::polar_factor_svd;
#[cfg(feature = "cuda")]
pub(crate) use passes::{Weights, direction_of};

/// The CPU device.
///
/// # Numerics
/// f32 with f64 norms; results are the same bits for every number of threads, batched or one by one. With
/// [`Precision::Bf16`](crate::Precision::Bf16) or [`Precision::Fp16`](crate::Precision::Fp16) every store of the iterate is rounded where a GPU rounds;
/// with [`Precision::Tf32`](crate::Precision::Tf32) every operand of a product is.
///
/// # Cost
/// Workspace in f32 whatever the precision. After the first step nothing is allocated outside the matrix
/// products.
pub struct Cpu {
    /// `None` runs on the calling thread alone.
    pool: Option<ThreadPool>,
    threads: usize,
    grad_scale: f32,
    /// Of the step that is going on, or of the last one.
    record: StepRecord,
}

impl Cpu {
    /// A device on all cores this process may use.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn new() -> Result<Self> {
        Self::with_threads(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// A device on that many threads; 1 uses the calling thread and starts none.
    ///
    /// # Errors
    /// Zero threads, or they cannot be started.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let pool = match threads {
            0 => {
                return Err(Error::invalid_config(
                    "cpu device: at least one thread is needed, found `0`",
                ));
            }
            1 => None,
            _ => Some(
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|i| format!("muon-cpu-{i}"))
                    .build()
                    .map_err(|e| {
                        Error::device(format!("cpu device: {threads} threads: {e}")).with_source(e)
                    })?,
            ),
        };
        Ok(Self { pool, threads, grad_scale: 1.0, record: StepRecord::default() })
    }

    /// Number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs on the pool, or here if there is none.
    fn run<R: Send>(&self, work: impl FnOnce(bool) -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(|| work(true)),
            None => work(false),
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu").field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// Elements of a parameter that a step compares with its master copy.
const LOOKED_AT: usize = 64;

/// State of one parameter on the CPU.
#[derive(Debug)]
pub struct CpuState {
    buffers: StateBuffers,
    /// f32 copy of a bf16 parameter, where the policy keeps one.
    master: Option<Vec<f32>>,
    /// Whether the master copy was made from the parameter, which happens at the first step with a gradient.
    master_ready: bool,
    spec: StateSpec,
    counters: Counters,
    /// Whether a matrix was updated in the step that is going on.
    updated: bool,
}

impl CpuState {
    /// The master copy, once it was made.
    fn ready_master(&self) -> Option<&Vec<f32>> {
        self.master.as_ref().filter(|_| self.master_ready)
    }
}

#[derive(Debug)]
enum StateBuffers {
    Momentum(HostBuffer),
    AdamW { exp_avg: Vec<f32>, exp_avg_sq: Vec<f32> },
}

/// Workspace of one plan on the CPU.
#[derive(Debug)]
pub struct CpuWorkspace {
    buckets: Vec<Vec<Slot>>,
}

/// Workspace of one matrix.
#[derive(Debug)]
struct Slot {
    buffers: MatrixBuffers,
    /// Sum of squares of the direction; not finite if the matrix must be skipped.
    sum_of_squares: f64,
    /// One partial sum per range of pass A.
    partials: Vec<f64>,
}

impl Device for Cpu {
    const DEFAULT_PRECISION: Precision = Precision::F32;

    type ParamMut<'a> = CpuParamMut<'a>;
    type Grad<'a> = CpuGrad<'a>;
    type State = CpuState;
    type Workspace = CpuWorkspace;

    fn describe(&self) -> String {
        format!("cpu, {} thread(s)", self.threads)
    }

    fn param_buffer(param: &CpuParamMut<'_>) -> BufferInfo {
        param.info()
    }

    fn grad_buffer(grad: &CpuGrad<'_>) -> BufferInfo {
        grad.info()
    }

    fn new_state(&mut self, spec: &StateSpec) -> Result<CpuState> {
        let buffers = match spec.rule {
            StateRule::Muon { momentum_dtype: Dtype::Bf16, .. } => {
                StateBuffers::Momentum(HostBuffer::Bf16(memory::zeros(spec.len, "momentum")?))
            }
            StateRule::Muon { .. } => {
                StateBuffers::Momentum(HostBuffer::F32(memory::zeros(spec.len, "momentum")?))
            }
            StateRule::AdamW => StateBuffers::AdamW {
                exp_avg: memory::zeros(spec.len, "the first moment")?,
                exp_avg_sq: memory::zeros(spec.len, "the second moment")?,
            },
        };
        let skipped = memory::zeros(spec.matrices(), "a counter for each matrix")?;
        let counters = Counters { steps: 0, skipped };
        let master = spec.has_master().then(|| memory::zeros(spec.len, "a master copy"));
        Ok(CpuState {
            buffers,
            master: master.transpose()?,
            master_ready: false,
            spec: spec.clone(),
            counters,
            updated: false,
        })
    }

    fn export_state(&mut self, state: &CpuState) -> Result<StateData> {
        let f32s = |x: &[f32]| memory::copied(x, "a copy of the state").map(HostBuffer::F32);
        let mut buffers = match &state.buffers {
            StateBuffers::Momentum(HostBuffer::F32(m)) => vec![("momentum_buffer", f32s(m)?)],
            StateBuffers::Momentum(HostBuffer::Bf16(m)) => vec![(
                "momentum_buffer",
                HostBuffer::Bf16(memory::copied(m, "a copy of the state")?),
            )],
            StateBuffers::AdamW { exp_avg, exp_avg_sq } => {
                vec![("exp_avg", f32s(exp_avg)?), ("exp_avg_sq", f32s(exp_avg_sq)?)]
            }
        };
        if let Some(master) = state.ready_master() {
            buffers.push(("master", f32s(master)?));
        }
        Ok(StateData { buffers, counters: state.counters.clone() })
    }

    fn import_state(&mut self, spec: &StateSpec, data: &StateData) -> Result<CpuState> {
        spec.check(data)?;
        let mut state = self.new_state(spec)?;
        for (name, buffer) in &data.buffers {
            match (*name, &mut state.buffers, buffer) {
                (
                    "momentum_buffer",
                    StateBuffers::Momentum(HostBuffer::F32(m)),
                    HostBuffer::F32(b),
                ) => m.copy_from_slice(b),
                (
                    "momentum_buffer",
                    StateBuffers::Momentum(HostBuffer::Bf16(m)),
                    HostBuffer::Bf16(b),
                ) => m.copy_from_slice(b),
                ("exp_avg", StateBuffers::AdamW { exp_avg, .. }, HostBuffer::F32(b)) => {
                    exp_avg.copy_from_slice(b);
                }
                ("exp_avg_sq", StateBuffers::AdamW { exp_avg_sq, .. }, HostBuffer::F32(b)) => {
                    exp_avg_sq.copy_from_slice(b);
                }
                (_, _, HostBuffer::F32(b)) => {
                    state.master = Some(memory::copied(b, "a master copy")?);
                    state.master_ready = true;
                }
                (_, _, HostBuffer::Bf16(_)) => {
                    return Err(Error::dtype_mismatch(
                        format!("state buffer `{name}`"),
                        Dtype::F32,
                        Dtype::Bf16,
                    ));
                }
            }
        }
        state.counters = data.counters.clone();
        Ok(state)
    }

    fn has_master(state: &CpuState) -> bool {
        state.master_ready
    }

    fn forget_master(state: &mut CpuState) {
        state.master_ready = false;
    }

    /// Looks at 64 elements spread over the parameter.
    fn master_is_stale(param: &CpuParamMut<'_>, state: &CpuState) -> bool {
        let (CpuParamMut::Bf16(param), Some(master), true) =
            (param, &state.master, state.master_ready)
        else {
            return false;
        };
        let stride = (param.len() / LOOKED_AT).max(1);
        param.iter().zip(master).step_by(stride).any(|(p, m)| {
            let rounded = half::bf16::from_f32(*m);
            p != &rounded && !(p.is_nan() && rounded.is_nan())
        })
    }

    fn counters(&mut self, state: &CpuState) -> Result<Counters> {
        Ok(state.counters.clone())
    }

    fn new_workspace(&mut self, plan: &Plan) -> Result<CpuWorkspace> {
        let mut buckets = Vec::with_capacity(plan.buckets().len());
        for bucket in plan.buckets() {
            let shape = bucket.shape;
            let mut slots = memory::with_room(bucket.slots, "a workspace for each matrix")?;
            for _ in 0..bucket.slots {
                let buffers = match &bucket.treatment {
                    Treatment::Polynomial { recipe, .. } => {
                        MatrixBuffers::new(recipe, shape, plan.precision())?
                    }
                    Treatment::ExactSvd => {
                        // The decomposition has copies, and its own allocations abort: ask while there is time.
                        let copies = shape.len().saturating_mul(4);
                        memory::with_room::<f64>(
                            copies,
                            format_args!("the SVD of a {shape} matrix"),
                        )?;
                        MatrixBuffers::direction_only(shape)?
                    }
                    _ => MatrixBuffers::direction_only(shape)?,
                };
                let partials = memory::with_room(passes::ranges(shape), "sums of squares")?;
                slots.push(Slot { buffers, sum_of_squares: 0.0, partials });
            }
            buckets.push(slots);
        }
        Ok(CpuWorkspace { buckets })
    }

    fn gradient_scale(
        &mut self,
        tensors: &[StepTensor<'_, Self>],
        units: &[GradientUnit],
        inverse_loss_scale: f64,
        clip_norm: Option<f64>,
    ) -> Result<()> {
        self.record = StepRecord { clip_factor: 1.0, ..StepRecord::default() };
        if let Some(limit) = clip_norm {
            let sum: f64 = units
                .iter()
                .filter_map(|u| Some(passes::unit_sum(tensors[u.tensor].grad.as_ref()?, &u.block)))
                // What is not finite is skipped by its own pass and must not silence the others.
                .filter(|s| s.is_finite())
                .sum();
            let norm = inverse_loss_scale * sum.sqrt();
            self.record.gradient_norm = norm;
            if norm > limit {
                self.record.clip_factor = limit / norm;
            }
        }
        self.grad_scale = narrow(inverse_loss_scale * self.record.clip_factor);
        Ok(())
    }

    fn find_non_finite(&mut self, tensors: &[StepTensor<'_, Self>]) -> Result<Option<usize>> {
        Ok(tensors.iter().position(|t| {
            let sum = match &t.grad {
                None => 0.0,
                Some(CpuGrad::F32(g)) => sum_of_squares(g, 1.0),
                Some(CpuGrad::Bf16(g)) => sum_of_squares(g, 1.0),
                Some(CpuGrad::F16(g)) => sum_of_squares(g, 1.0),
            };
            !sum.is_finite()
        }))
    }

    fn pass_a(
        &mut self,
        plan: &Plan,
        jobs: &[MatrixJob],
        tensors: &[StepTensor<'_, Self>],
        states: &mut [CpuState],
        workspace: &mut CpuWorkspace,
    ) -> Result<()> {
        let (grad_scale, states) = (self.grad_scale, &*states);
        self.run(|parallel| {
            for jobs in jobs.chunk_by(|a, b| a.bucket == b.bucket) {
                let Some(first) = jobs.first() else { continue };
                let bucket = &plan.buckets()[first.bucket];
                let slots = &mut workspace.buckets[first.bucket][..jobs.len()];
                passes::for_each(parallel, jobs, slots, |job, slot| {
                    passes::pass_a(
                        job,
                        bucket,
                        plan.precision(),
                        tensors,
                        states,
                        slot,
                        grad_scale,
                        parallel,
                    );
                });
            }
        });
        Ok(())
    }

    fn direction(
        &mut self,
        job: &MatrixJob,
        tensors: &[StepTensor<'_, Self>],
        states: &[CpuState],
        out: &mut Vec<f32>,
    ) -> Result<f64> {
        let StateBuffers::Momentum(momentum) = &states[job.param].buffers else { return Ok(0.0) };
        let Some(grad) = tensors[job.tensor].grad else { return Ok(0.0) };
        let (block, s) = (&job.block, &job.scalars);
        let weights =
            passes::Weights::new(s, states[job.param].ready_master(), &tensors[job.tensor].param);
        let sum = passes::direction_of(block, s, grad, momentum, weights, self.grad_scale, out);
        Ok(sum.sqrt())
    }

    fn orthogonalize(
        &mut self,
        plan: &Plan,
        bucket: usize,
        active: usize,
        workspace: &mut CpuWorkspace,
    ) -> Result<()> {
        let slots = &mut workspace.buckets[bucket][..active];
        let bucket = &plan.buckets()[bucket];
        self.run(|parallel| passes::orthogonalize(bucket, plan.precision(), slots, parallel));
        Ok(())
    }

    fn pass_b(
        &mut self,
        plan: &Plan,
        jobs: &[MatrixJob],
        tensors: &mut [StepTensor<'_, Self>],
        states: &mut [CpuState],
        workspace: &CpuWorkspace,
    ) -> Result<()> {
        let grad_scale = self.grad_scale;
        // Told by the caller's thread, whose subscriber it is.
        let mut skipped = Vec::new();
        self.run(|parallel| {
            for job in jobs {
                let bucket = &plan.buckets()[job.bucket];
                let slot = &workspace.buckets[job.bucket][job.slot];
                let (tensor, state) = (&mut tensors[job.tensor], &mut states[job.param]);
                if passes::pass_b(job, bucket, slot, tensor, state, grad_scale, parallel) {
                    skipped.push((job.param, job.matrix));
                }
            }
        });
        self.record.skipped_matrices += skipped.len() as u64;
        skipped.into_iter().for_each(|(param, matrix)| trace::matrix_skipped(param, matrix));
        Ok(())
    }

    fn adamw(
        &mut self,
        jobs: &[AdamWJob],
        tensors: &mut [StepTensor<'_, Self>],
        states: &mut [CpuState],
    ) -> Result<()> {
        for job in jobs {
            let (tensor, state) = (&mut tensors[job.tensor], &mut states[job.param]);
            if passes::adamw(job, tensor, state, self.grad_scale) {
                self.record.skipped_adamw += 1;
                trace::matrix_skipped(job.param, 0);
            }
        }
        Ok(())
    }

    fn finish_step(&mut self, params: &[usize], states: &mut [CpuState]) -> Result<()> {
        for &param in params {
            let state = &mut states[param];
            state.counters.steps += u64::from(std::mem::take(&mut state.updated));
        }
        Ok(())
    }

    fn record_now(&self) -> Option<StepRecord> {
        Some(self.record)
    }

    fn record(&mut self) -> Result<StepRecord> {
        Ok(self.record)
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}
