//! The seam between the optimizer, which owns the order of operations, and a device, which owns buffers
//! and arithmetic.

use std::fmt;

use half::bf16;
use serde::{Deserialize, Serialize};

use crate::config::{Bf16Params, MomentumMode, Nesterov, WeightDecayMode};
use crate::error::{Error, Result};
use crate::optimizer::ParamId;
use crate::plan::Plan;
use crate::precision::{Dtype, Precision};
use crate::shape::Block;

/// Where the optimizer's state lives and its arithmetic runs.
///
/// Few, large operations: [`Muon`](crate::Muon) calls them in the order `gradient_scale`, then per chunk
/// `pass_a`, `orthogonalize` (once a bucket), `pass_b`, then `adamw` and `finish_step`. Implementations are
/// [`Cpu`](crate::Cpu) and, in the CUDA build, a GPU; the trait is public to be read, not to be
/// implemented elsewhere: it grows without notice.
pub trait Device: fmt::Debug + Sized {
    /// What the iterate is stored in where the configuration does not say.
    const DEFAULT_PRECISION: Precision;

    /// A parameter as the caller hands it over for one step.
    type ParamMut<'a>: fmt::Debug;
    /// A gradient as the caller hands it over for one step; never written.
    type Grad<'a>: fmt::Debug;
    /// State of one parameter.
    type State: fmt::Debug;
    /// Buffers shared by all parameters of a step.
    type Workspace: fmt::Debug;

    /// One line for reports.
    fn describe(&self) -> String;

    /// Address, length and element type of a parameter.
    fn param_buffer(param: &Self::ParamMut<'_>) -> BufferInfo;

    /// Address, length and element type of a gradient.
    fn grad_buffer(grad: &Self::Grad<'_>) -> BufferInfo;

    /// Zeroed state for a parameter.
    ///
    /// # Errors
    /// Out of memory, a failed device.
    fn new_state(&mut self, spec: &StateSpec) -> Result<Self::State>;

    /// Copies a parameter's state to the host; waits for the device.
    ///
    /// # Errors
    /// A failed device.
    fn export_state(&mut self, state: &Self::State) -> Result<StateData>;

    /// State for a parameter from host buffers.
    ///
    /// # Errors
    /// Buffers whose number, dtype or length is not what the specification asks; a failed device.
    fn import_state(&mut self, spec: &StateSpec, data: &StateData) -> Result<Self::State>;

    /// Whether the parameter's master copy has been made; `false` where the state keeps none.
    fn has_master(state: &Self::State) -> bool;

    /// Forgets the master copy: the next step makes it from the parameter.
    fn forget_master(state: &mut Self::State);

    /// Whether the caller has certainly written the parameter since its last step: it is not the rounding of its master
    /// copy. A device looks where that costs nothing, and says `false` where it does not look.
    fn master_is_stale(param: &Self::ParamMut<'_>, state: &Self::State) -> bool;

    /// Steps and skips of a parameter so far; waits for the device.
    ///
    /// # Errors
    /// A failed device.
    fn counters(&mut self, state: &Self::State) -> Result<Counters>;

    /// Workspace for every bucket of a plan.
    ///
    /// # Errors
    /// Out of memory, a failed device.
    fn new_workspace(&mut self, plan: &Plan) -> Result<Self::Workspace>;

    /// Sets the factor every gradient of this step is multiplied with: the inverse loss scale, and if
    /// `clip_norm` is given, what brings the global norm of the finite units down to it. Their squares are summed in f64, so no
    /// finite gradient is too large to count. Begins a step.
    ///
    /// # Errors
    /// A failed device.
    fn gradient_scale(
        &mut self,
        tensors: &[StepTensor<'_, Self>],
        units: &[GradientUnit],
        inverse_loss_scale: f64,
        clip_norm: Option<f64>,
    ) -> Result<()>;

    /// The first tensor whose gradient has a NaN or an infinity; waits for the device.
    ///
    /// # Errors
    /// A failed device.
    fn find_non_finite(&mut self, tensors: &[StepTensor<'_, Self>]) -> Result<Option<usize>>;

    /// Blends each gradient with its momentum into a direction, writes it to the workspace as the iterate,
    /// normalised as the bucket asks and rounded once, and notes which matrices are not finite. The momentum of
    /// the finite ones may be committed here or in `pass_b`.
    ///
    /// # Errors
    /// A failed device.
    fn pass_a(
        &mut self,
        plan: &Plan,
        jobs: &[MatrixJob],
        tensors: &[StepTensor<'_, Self>],
        states: &mut [Self::State],
        workspace: &mut Self::Workspace,
    ) -> Result<()>;

    /// Writes the direction that pass A would make for a job to host memory, row-major, before it is normalised
    /// or rounded, and returns its Frobenius norm, which is not finite where the direction is not. Nothing else is
    /// written; waits for the device.
    ///
    /// # Errors
    /// A failed device.
    fn direction(
        &mut self,
        job: &MatrixJob,
        tensors: &[StepTensor<'_, Self>],
        states: &[Self::State],
        out: &mut Vec<f32>,
    ) -> Result<f64>;

    /// Orthogonalizes the first `active` matrices of a bucket's workspace.
    ///
    /// # Errors
    /// A failed device.
    fn orthogonalize(
        &mut self,
        plan: &Plan,
        bucket: usize,
        active: usize,
        workspace: &mut Self::Workspace,
    ) -> Result<()>;

    /// Adds the scaled update to the parameter and commits the momentum where that has not happened, matrix by
    /// matrix; one that is not finite, or larger than its scalars allow, is skipped whole and counted.
    ///
    /// # Errors
    /// A failed device.
    fn pass_b(
        &mut self,
        plan: &Plan,
        jobs: &[MatrixJob],
        tensors: &mut [StepTensor<'_, Self>],
        states: &mut [Self::State],
        workspace: &Self::Workspace,
    ) -> Result<()>;

    /// AdamW on whole tensors; one whose second moment might not stay finite is skipped and counted.
    ///
    /// # Errors
    /// A failed device.
    fn adamw(
        &mut self,
        jobs: &[AdamWJob],
        tensors: &mut [StepTensor<'_, Self>],
        states: &mut [Self::State],
    ) -> Result<()>;

    /// Counts one step for each of these parameters of which a matrix was updated.
    ///
    /// # Errors
    /// A failed device.
    fn finish_step(&mut self, params: &[usize], states: &mut [Self::State]) -> Result<()>;

    /// What the last step that was begun found out, if that is known without waiting.
    fn record_now(&self) -> Option<StepRecord>;

    /// What the last step found out; waits for the device. A number that the step had no use for is any.
    ///
    /// # Errors
    /// A failed device.
    fn record(&mut self) -> Result<StepRecord>;

    /// Waits until everything enqueued has happened.
    ///
    /// # Errors
    /// A failure of earlier, asynchronous work.
    fn synchronize(&mut self) -> Result<()>;
}

/// One parameter and its gradient, for one step.
pub struct StepTensor<'a, D: Device> {
    /// Which parameter it is.
    pub id: ParamId,
    /// Its memory, row-major and contiguous, of the registered shape and dtype.
    pub param: D::ParamMut<'a>,
    /// Its gradient in the same order, or `None` to leave the parameter and its state untouched.
    pub grad: Option<D::Grad<'a>>,
}

impl<'a, D: Device> StepTensor<'a, D> {
    /// A parameter that has a gradient.
    pub fn new(
        id: ParamId,
        param: impl Into<D::ParamMut<'a>>,
        grad: impl Into<D::Grad<'a>>,
    ) -> Self {
        Self { id, param: param.into(), grad: Some(grad.into()) }
    }

    /// A parameter without one: nothing of it changes.
    pub fn without_grad(id: ParamId, param: impl Into<D::ParamMut<'a>>) -> Self {
        Self { id, param: param.into(), grad: None }
    }
}

impl<D: Device> fmt::Debug for StepTensor<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepTensor")
            .field("id", &self.id)
            .field("param", &self.param)
            .field("grad", &self.grad)
            .finish()
    }
}

/// What counts in the norm of the gradients, or is left out of it, as a whole, and is skipped as a whole: a matrix under the Muon rule,
/// a tensor under AdamW.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradientUnit {
    /// Position in the step's tensors.
    pub tensor: usize,
    /// Where it lies in the gradient; a tensor is one row.
    pub block: Block,
}

/// What a device finds out in a step.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepRecord {
    /// Norm of the finite units, after the inverse loss scale, before clipping.
    pub gradient_norm: f64,
    /// What clipping multiplied the gradients with.
    pub clip_factor: f64,
    /// Matrices that were skipped.
    pub skipped_matrices: u64,
    /// Tensors under AdamW that were skipped.
    pub skipped_adamw: u64,
}

/// What the optimizer checks about a caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferInfo {
    /// Address of the first element.
    pub address: usize,
    /// Number of elements.
    pub len: usize,
    /// Element type.
    pub dtype: Dtype,
}

/// What a parameter's state must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSpec {
    /// Elements of the parameter.
    pub len: usize,
    /// Element type of the parameter.
    pub param_dtype: Dtype,
    /// Policy for bf16 parameters.
    pub bf16_params: Bf16Params,
    /// Buffers of the rule.
    pub rule: StateRule,
    /// Mixed into the seed of stochastic rounding, so that parameters round independently.
    pub salt: u64,
}

/// Which buffers a rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateRule {
    /// One momentum buffer.
    Muon {
        /// f32 or bf16.
        momentum_dtype: Dtype,
        /// Number of matrices, each with its own skip counter.
        matrices: usize,
    },
    /// First and second moment, f32.
    AdamW,
}

impl StateSpec {
    /// Whether an f32 master copy is kept.
    #[must_use]
    pub fn has_master(&self) -> bool {
        self.param_dtype == Dtype::Bf16 && self.bf16_params == Bf16Params::Master
    }

    /// Name and element type of each buffer, in the order of [`StateData::buffers`].
    #[must_use]
    pub fn buffers(&self) -> Vec<(&'static str, Dtype)> {
        let mut out = match self.rule {
            StateRule::Muon { momentum_dtype, .. } => vec![("momentum_buffer", momentum_dtype)],
            StateRule::AdamW => vec![("exp_avg", Dtype::F32), ("exp_avg_sq", Dtype::F32)],
        };
        if self.has_master() {
            out.push(("master", Dtype::F32));
        }
        out
    }

    /// Number of skip counters.
    #[must_use]
    pub fn matrices(&self) -> usize {
        match self.rule {
            StateRule::Muon { matrices, .. } => matrices,
            StateRule::AdamW => 1,
        }
    }

    /// Whether host buffers are what a state of this specification is made of; only the master copy may be absent.
    ///
    /// # Errors
    /// Buffers or skip counters whose number, name, dtype or length is another.
    pub fn check(&self, data: &StateData) -> Result<()> {
        let mut found = data.buffers.iter();
        for (name, dtype) in self.buffers() {
            let buffer = match found.next() {
                Some((found, buffer)) if *found == name => buffer,
                None if name == "master" => continue,
                other => {
                    return Err(Error::checkpoint(format!(
                        "state buffer: expected `{name}`, found {}",
                        other.map_or("none".into(), |(n, _)| format!("`{n}`"))
                    )));
                }
            };
            if buffer.dtype() != dtype {
                let what = format!("state buffer `{name}`");
                return Err(Error::dtype_mismatch(what, dtype, buffer.dtype()));
            }
            if buffer.len() != self.len {
                let what = format!("elements of state buffer `{name}`");
                return Err(Error::shape_mismatch(what, self.len, buffer.len()));
            }
        }
        match found.next() {
            None => {}
            Some(("master", _)) => {
                return Err(Error::checkpoint(format!(
                    "state buffer: expected no further one, found `master`: the state was made under \
                     `Bf16Params::Master`, and under `Bf16Params::{:?}` a {} parameter has no place for the bits of a \
                     master copy; keep `Bf16Params::Master`, or take `master` out of the `StateData` to give them up",
                    self.bf16_params, self.param_dtype
                )));
            }
            Some((name, _)) => {
                return Err(Error::checkpoint(format!(
                    "state buffer: expected no further one, found `{name}`"
                )));
            }
        }
        if data.counters.skipped.len() != self.matrices() {
            let found = data.counters.skipped.len();
            return Err(Error::shape_mismatch("skip counters", self.matrices(), found));
        }
        Ok(())
    }

    /// Bytes of the buffers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffers().iter().map(|(_, dtype)| dtype.bytes() * self.len).sum()
    }
}

/// A state buffer on the host.
#[derive(Debug, Clone, PartialEq)]
pub enum HostBuffer {
    /// f32 elements.
    F32(Vec<f32>),
    /// bf16 elements.
    Bf16(Vec<bf16>),
}

impl HostBuffer {
    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
        }
    }

    /// Whether it has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A parameter's state on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct StateData {
    /// In the order of [`StateSpec::buffers`]. A master copy may be absent: the next step makes it from the
    /// parameter.
    pub buffers: Vec<(&'static str, HostBuffer)>,
    /// Steps and skips.
    pub counters: Counters,
}

impl StateData {
    /// Refuses what would freeze a parameter for good: a moment that is not finite, or a negative second moment.
    ///
    /// # Errors
    /// Otherwise, naming buffer and element.
    pub(crate) fn check_values(&self, shape: &[usize]) -> Result<()> {
        for (name, buffer) in self.buffers.iter().filter(|(name, _)| *name != "master") {
            let bad = |x: f32| !x.is_finite() || (*name == "exp_avg_sq" && x < 0.0);
            let found = match buffer {
                HostBuffer::F32(v) => v.iter().copied().enumerate().find(|(_, x)| bad(*x)),
                HostBuffer::Bf16(v) => {
                    v.iter().map(|x| x.to_f32()).enumerate().find(|(_, x)| bad(*x))
                }
            };
            if let Some((index, x)) = found {
                return Err(Error::non_finite(format!(
                    "`{name}`, element {:?}: expected a finite number{}, found `{x}`, with which the parameter would \
                     never step again; 0 starts the element anew",
                    coordinates(index, shape),
                    if *name == "exp_avg_sq" { " of at least 0" } else { "" }
                )));
            }
        }
        Ok(())
    }
}

/// Indices of an element, row-major.
pub(crate) fn coordinates(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for (at, side) in out.iter_mut().zip(shape).rev() {
        *at = index % side.max(&1);
        index /= side.max(&1);
    }
    out
}

/// How often a parameter was stepped and its matrices skipped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Steps in which at least one matrix of the parameter was updated.
    pub steps: u64,
    /// For each matrix, how often it was skipped because it was not finite.
    pub skipped: Vec<u64>,
}

/// The scalars of one matrix in one step, as the device uses them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MuonScalars {
    /// β.
    pub momentum: f32,
    /// 1 − β, rounded once from f64.
    pub one_minus_momentum: f32,
    /// What decay leaves of a parameter: `1 − lr·weight_decay`, `1 − weight_decay` or `1 − lr²·weight_decay`; 1 with L2.
    pub keep: f32,
    /// What L2 multiplies the parameter with before it is added to the gradient; 0 with every other mode, and then the
    /// parameter is not read.
    pub l2: f32,
    /// The largest magnitude of an element of the update, before `step`, with which the matrix is not skipped.
    pub largest: f32,
    /// `lr · update scale`.
    pub step: f32,
    /// How the buffer absorbs a gradient.
    pub momentum_mode: MomentumMode,
    /// Whether the direction looks ahead.
    pub nesterov: Nesterov,
    /// Where decay applies.
    pub weight_decay_mode: WeightDecayMode,
}

/// One matrix of a chunk. Jobs come sorted by bucket, slots of a bucket counted from 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatrixJob {
    /// Position in the step's tensors.
    pub tensor: usize,
    /// Position among the states.
    pub param: usize,
    /// Which of the parameter's matrices.
    pub matrix: usize,
    /// Where it lies in the parameter.
    pub block: Block,
    /// Position among the plan's buckets.
    pub bucket: usize,
    /// Position in the bucket's workspace.
    pub slot: usize,
    /// Its scalars.
    pub scalars: MuonScalars,
}

/// One tensor under AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWJob {
    /// Position in the step's tensors.
    pub tensor: usize,
    /// Position among the states.
    pub param: usize,
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// `1 − lr·weight_decay`.
    pub keep: f32,
}
