//! The CUDA device: state and workspace in device memory, kernels compiled by NVRTC, products by cublasLt.
//!
//! Data flow of a step: `passes` builds the tables of a chunk ([`table`]) and launches pass A; `execute` runs the recipes;
//! `passes` launches pass B; `tensors` does AdamW and the step counts. All of it goes to one stream.
#![allow(unsafe_code, reason = "launches, cublasLt calls and foreign pointers")]

mod buffers;
pub(crate) mod cache;
#[cfg(feature = "candle-cuda")]
pub(crate) mod candle;
pub(crate) mod compile;
#[cfg(feature = "cust")]
mod cust;
pub mod diagnosis;
mod direction;
mod execute;
mod fence;
mod gemm;
mod graph;
#[cfg(test)]
mod index_tests;
mod launch;
pub(crate) mod library;
mod memory;
pub(crate) mod nvrtc;
pub(crate) mod options;
mod passes;
pub(crate) mod preflight;
pub(crate) mod sources;
mod state;
pub(crate) mod status;
mod table;
mod tensors;
mod transfer;
mod workspace;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cudarc::driver::{CudaContext, CudaStream};

pub use buffers::{CudaGrad, CudaParamMut};
pub use cudarc;
pub use graph::CapturedStep;
pub use state::CudaState;
pub use workspace::CudaWorkspace;

use compile::Kernels;
use fence::Fences;
use gemm::Gemm;
use launch::{Launcher, Mode};
use memory::Buffer;
use status::driver_error;
use table::Record;
use tensors::{AdamWTables, FinishTables, GradScale, Spans};

use crate::cpu::narrow;
use crate::device::{
    AdamWJob, BufferInfo, Counters, Device, GradientUnit, MatrixJob, StateData, StateSpec,
    StepRecord, StepTensor,
};
use crate::error::{Error, Result};
use crate::plan::{Commit, Plan, Treatment};
use crate::precision::Precision;

/// An NVIDIA GPU.
///
/// # Stream
/// Everything is enqueued on one stream, the device's own or the caller's; calls return before the work is
/// done, and a failure of the work shows in a later call or in [`Muon::synchronize`](crate::Muon::synchronize). Slices and
/// views of cudarc are ordered with other streams by cudarc's events, those of another `CudaContext` object of the device
/// with the stream that allocated them; raw addresses are the caller's to order.
///
/// # Numerics
/// Passes A and B and AdamW produce the same bits as the CPU device, but for the order in which squares are summed
/// (f64). Products sum in f32 in cublasLt's order and round where the recipe stores.
///
/// # Errors
/// A failure that ends the CUDA context (an illegal address, an uncorrectable ECC error) is returned by the call that meets
/// it and, with its first cause, by every later one.
pub struct Cuda {
    launcher: Launcher,
    gemm: Gemm,
    grad_scale: GradScale,
    /// 1, the factor under which gradients are summed to be clipped, and looked through by the strict policy.
    one: GradScale,
    /// What the step reports.
    record: Buffer<Record>,
    gradients: Spans,
    adamw: AdamWTables,
    finish: FinishTables,
    /// Position of the chunk that pass A builds next, and of the one that pass B finishes.
    chunk: usize,
    description: String,
    failed: Option<(String, i32)>,
    /// The stream, where it is one of cust, so that cust's memory may be used. Last: dropped when nothing else of the device is left.
    #[cfg(feature = "cust")]
    cust_stream: Option<cust::Kept>,
}

impl Cuda {
    /// The GPU of that number, on a new stream of its primary context.
    ///
    /// # Errors
    /// `is_cuda_unavailable`: a library that is missing or too old, or no such device, with what to install;
    /// `is_kernel_compile`: kernels that NVRTC refuses; out of memory.
    pub fn new(ordinal: usize) -> Result<Self> {
        preflight::check()?;
        let context = CudaContext::new(ordinal)
            .map_err(|e| driver_error(e, format_args!("opening CUDA device {ordinal}")))?;
        let stream = context.new_stream().map_err(|e| driver_error(e, "making a stream"))?;
        Self::with_stream(stream)
    }

    /// The GPU of that stream; everything is enqueued there.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn with_stream(stream: Arc<CudaStream>) -> Result<Self> {
        preflight::check()?;
        let context = stream.context();
        let failed = |e| driver_error(e, "asking the device what it is");
        let (major, minor) = context.compute_capability().map_err(failed)?;
        let name = context.name().map_err(failed)?;
        let kernels = Kernels::load(context)?;
        let description = format!(
            "cuda:{}, {name} (compute capability {major}.{minor}), {kernels}",
            context.ordinal()
        );
        let gemm = Gemm::new(&stream, major)?;
        let mut one = GradScale::new(&stream)?;
        one.set(&stream, 1.0)?;
        Ok(Self {
            grad_scale: GradScale::new(&stream)?,
            record: Buffer::zeroed(&stream, 1, "the record of a step")?,
            one,
            gemm,
            launcher: Launcher {
                kernels,
                stream,
                mode: Mode::Enqueue,
                left_out: AtomicU64::new(0),
            },
            gradients: Spans::new(),
            adamw: AdamWTables::new(),
            finish: FinishTables::new(),
            chunk: 0,
            description,
            failed: None,
            #[cfg(feature = "cust")]
            cust_stream: None,
        })
    }

    /// The stream everything is enqueued on.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.launcher.stream
    }

    /// Matrix products enqueued so far, and their FLOPs, a multiply-add counted as two.
    #[must_use]
    pub fn gemm_totals(&self) -> (u64, u64) {
        self.gemm.totals()
    }

    /// Refuses to go on after the context has ended, with the first cause.
    fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some((cause, status)) => {
                Err(Error::cuda(format!("the CUDA context ended earlier: {cause}"), *status, false))
            }
        }
    }

    /// Notes a failure that ends the context.
    fn note<R>(&mut self, result: Result<R>) -> Result<R> {
        if let Err(e) = &result
            && self.failed.is_none()
            && let Some(status) = e.cuda_status().filter(|s| ends_context(*s))
        {
            self.failed = Some((e.to_string(), status));
        }
        result
    }

    /// Runs work on the device unless its context has ended, with the context current.
    fn run<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R>) -> Result<R> {
        self.check()?;
        let bound = self
            .launcher
            .stream
            .context()
            .bind_to_thread()
            .map_err(|e| driver_error(e, "making the context current"));
        let result = bound.and_then(|()| work(self));
        self.note(result)
    }

    /// What pass A reads: the gradients and, where L2 decay adds them, the parameters.
    fn fence_pass_a<'s>(
        &self,
        stream: &'s Arc<CudaStream>,
        jobs: &[MatrixJob],
        tensors: &'s [StepTensor<'_, Self>],
    ) -> Result<Fences<'s>> {
        let mut fences = self.fence_grads(stream, tensors)?;
        jobs.iter()
            .filter(|job| job.scalars.l2 != 0.0)
            .try_for_each(|job| fences.read_param(&tensors[job.tensor].param))?;
        Ok(fences)
    }

    fn fence_grads<'s>(
        &self,
        stream: &'s Arc<CudaStream>,
        tensors: &'s [StepTensor<'_, Self>],
    ) -> Result<Fences<'s>> {
        let mut fences = Fences::new(&self.launcher, stream);
        tensors.iter().filter_map(|t| t.grad.as_ref()).try_for_each(|g| fences.read(g))?;
        Ok(fences)
    }
}

impl Drop for Cuda {
    /// Waits for the stream: kernels must not be unloaded while they are queued. A failure has nowhere to go.
    fn drop(&mut self) {
        let _ = self.launcher.stream.synchronize();
    }
}

/// Whether a status of the driver leaves the context unusable.
fn ends_context(status: i32) -> bool {
    matches!(status, 214 | 219 | 220 | 226 | 700 | 702 | 710 | 714..=719 | 721)
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda").field("description", &self.description).finish_non_exhaustive()
    }
}

impl Device for Cuda {
    const DEFAULT_PRECISION: Precision = Precision::Bf16;

    type ParamMut<'a> = CudaParamMut<'a>;
    type Grad<'a> = CudaGrad<'a>;
    type State = CudaState;
    type Workspace = CudaWorkspace;

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn param_buffer(param: &CudaParamMut<'_>) -> BufferInfo {
        param.info()
    }

    fn grad_buffer(grad: &CudaGrad<'_>) -> BufferInfo {
        grad.info()
    }

    fn new_state(&mut self, spec: &StateSpec) -> Result<CudaState> {
        self.run(|d| CudaState::new(&d.launcher.stream, spec))
    }

    fn export_state(&mut self, state: &CudaState) -> Result<StateData> {
        self.run(|d| state.export(&d.launcher.stream))
    }

    fn import_state(&mut self, spec: &StateSpec, data: &StateData) -> Result<CudaState> {
        self.run(|d| CudaState::import(&d.launcher.stream, spec, data))
    }

    fn has_master(state: &CudaState) -> bool {
        state.master_ready
    }

    fn forget_master(state: &mut CudaState) {
        state.master_ready = false;
    }

    /// Never looks: a step writes a bf16 parameter from its master copy without reading it. Reading it costs 2 bytes an
    /// element more, and the answer a wait for the stream.
    fn master_is_stale(_: &CudaParamMut<'_>, _: &CudaState) -> bool {
        false
    }

    fn counters(&mut self, state: &CudaState) -> Result<Counters> {
        self.run(|d| state.counters(&d.launcher.stream))
    }

    /// Also runs every recipe once on zeros: a product that cublasLt does not support shows here, before any state
    /// was touched, and everything that is loaded lazily is loaded before a capture.
    fn new_workspace(&mut self, plan: &Plan) -> Result<CudaWorkspace> {
        self.run(|d| {
            let workspace = CudaWorkspace::new(&d.launcher.stream, plan)?;
            for (bucket, slots) in plan.buckets().iter().zip(&workspace.buckets) {
                if let Treatment::Polynomial { recipe, .. } = &bucket.treatment {
                    let batch = bucket.slots.max(1);
                    execute::execute(
                        recipe,
                        &bucket.symmetric,
                        bucket.shape,
                        slots,
                        batch,
                        &d.launcher,
                        &mut d.gemm,
                    )
                    .map_err(|e| e.context(format_args!("rehearsing matrices {}", bucket.shape)))?;
                }
            }
            Ok(workspace)
        })
    }

    fn gradient_scale(
        &mut self,
        tensors: &[StepTensor<'_, Self>],
        units: &[GradientUnit],
        inverse_loss_scale: f64,
        clip_norm: Option<f64>,
    ) -> Result<()> {
        #[cfg(feature = "cust")]
        self.check_cust(tensors)?;
        self.run(|d| {
            d.chunk = 0;
            let stream = Arc::clone(&d.launcher.stream);
            let Some(limit) = clip_norm else {
                return d.grad_scale.set(&stream, narrow(inverse_loss_scale));
            };
            let _fences = d.fence_grads(&stream, tensors)?;
            let (scale, record) = (d.grad_scale.address(), d.record.address());
            let gradients = units
                .iter()
                .filter_map(|u| Some((tensors[u.tensor].grad.as_ref()?.info(), u.block)));
            let (spans, sums) = d.gradients.sums(&d.launcher, gradients, d.one.address())?;
            d.launcher.clip_factor(spans, sums, inverse_loss_scale, limit, scale, record)?;
            d.grad_scale.written_by_device();
            Ok(())
        })
    }

    fn find_non_finite(&mut self, tensors: &[StepTensor<'_, Self>]) -> Result<Option<usize>> {
        #[cfg(feature = "cust")]
        self.check_cust(tensors)?;
        self.run(|d| {
            let stream = Arc::clone(&d.launcher.stream);
            let _fences = d.fence_grads(&stream, tensors)?;
            let positions: Vec<usize> = tensors
                .iter()
                .enumerate()
                .filter(|(_, t)| t.grad.is_some())
                .map(|(i, _)| i)
                .collect();
            let gradients = tensors.iter().filter_map(|t| t.grad.as_ref()).map(CudaGrad::info);
            let gradients = gradients.map(tensors::whole);
            let (spans, _) = d.gradients.sums(&d.launcher, gradients, d.one.address())?;
            let sums = d.gradients.download(&stream, spans)?;
            Ok(sums.iter().position(|s| !s.is_finite()).and_then(|i| positions.get(i).copied()))
        })
    }

    fn pass_a(
        &mut self,
        plan: &Plan,
        jobs: &[MatrixJob],
        tensors: &[StepTensor<'_, Self>],
        states: &mut [CudaState],
        workspace: &mut CudaWorkspace,
    ) -> Result<()> {
        self.run(|d| {
            let stream = Arc::clone(&d.launcher.stream);
            let _fences = d.fence_pass_a(&stream, jobs, tensors)?;
            let (scale, chunk) = (d.grad_scale.address(), d.chunk);
            d.chunk += 1;
            passes::pass_a(&d.launcher, scale, plan, jobs, tensors, states, workspace, chunk)
        })
    }

    fn direction(
        &mut self,
        job: &MatrixJob,
        tensors: &[StepTensor<'_, Self>],
        states: &[CudaState],
        out: &mut Vec<f32>,
    ) -> Result<f64> {
        self.run(|d| {
            let stream = Arc::clone(&d.launcher.stream);
            let _fences = d.fence_pass_a(&stream, std::slice::from_ref(job), tensors)?;
            direction::direction(&stream, d.grad_scale.address(), job, tensors, states, out)
        })
    }

    fn orthogonalize(
        &mut self,
        plan: &Plan,
        bucket: usize,
        active: usize,
        workspace: &mut CudaWorkspace,
    ) -> Result<()> {
        self.run(|d| {
            let slots = &mut workspace.buckets[bucket];
            let bucket = &plan.buckets()[bucket];
            match &bucket.treatment {
                Treatment::Identity | Treatment::Frobenius => Ok(()),
                Treatment::Polynomial { recipe, .. } => execute::execute(
                    recipe,
                    &bucket.symmetric,
                    bucket.shape,
                    slots,
                    active,
                    &d.launcher,
                    &mut d.gemm,
                ),
                Treatment::ExactSvd => {
                    let stream = &d.launcher.stream;
                    let mut x = vec![0.0; bucket.shape.len()];
                    for slot in 0..active {
                        slots.download(stream, slot, &mut x)?;
                        if crate::cpu::polar_factor_svd(bucket.shape, &mut x).is_err() {
                            // No convergence: pass B finds this and skips the matrix.
                            x.fill(f32::NAN);
                        }
                        slots.upload(stream, slot, &x)?;
                    }
                    Ok(())
                }
            }
        })
    }

    fn pass_b(
        &mut self,
        plan: &Plan,
        jobs: &[MatrixJob],
        tensors: &mut [StepTensor<'_, Self>],
        states: &mut [CudaState],
        workspace: &CudaWorkspace,
    ) -> Result<()> {
        self.run(|d| {
            let stream = Arc::clone(&d.launcher.stream);
            let checked = jobs
                .chunk_by(|a, b| a.bucket == b.bucket)
                .any(|j| plan.buckets()[j[0].bucket].commit == Commit::AfterCheck);
            let missing =
                passes::without_master(jobs.iter().map(|j| (j.param, j.tensor)), tensors, states);
            let mut fences = Fences::new(&d.launcher, &stream);
            for tensor in tensors.iter_mut().filter(|t| t.grad.is_some()) {
                // Gradients are read again where momentum waited.
                if let Some(grad) = tensor.grad.as_ref().filter(|_| checked) {
                    fences.read(grad)?;
                }
                fences.write(&mut tensor.param)?;
            }
            passes::fill_masters(&d.launcher, &missing, states)?;
            let scale = d.grad_scale.address();
            match workspace.chunks.get(d.chunk.wrapping_sub(1)) {
                Some(tables) if !jobs.is_empty() => {
                    passes::pass_b(&d.launcher, scale, tables, checked)
                }
                _ => Ok(()),
            }
        })
    }

    fn adamw(
        &mut self,
        jobs: &[AdamWJob],
        tensors: &mut [StepTensor<'_, Self>],
        states: &mut [CudaState],
    ) -> Result<()> {
        self.run(|d| {
            let (scale, record) = (d.grad_scale.address(), d.record.address());
            tensors::adamw(&mut d.adamw, &d.launcher, scale, jobs, tensors, states, record)
        })
    }

    fn finish_step(&mut self, params: &[usize], states: &mut [CudaState]) -> Result<()> {
        self.run(|d| d.finish.run(&d.launcher, params, states, d.record.address()))
    }

    fn record_now(&self) -> Option<StepRecord> {
        None
    }

    fn record(&mut self) -> Result<StepRecord> {
        self.run(|d| {
            let record = d.record.download(&d.launcher.stream, 1, "the record of a step")?;
            let Record { gradient_norm, clip_factor, skipped_matrices, skipped_adamw } =
                record.first().copied().unwrap_or_default();
            Ok(StepRecord { gradient_norm, clip_factor, skipped_matrices, skipped_adamw })
        })
    }

    fn synchronize(&mut self) -> Result<()> {
        self.run(|d| {
            d.launcher.stream.synchronize().map_err(|e| driver_error(e, "waiting for the stream"))
        })
    }
}
