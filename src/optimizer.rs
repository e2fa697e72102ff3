//! The optimizer: groups and parameters, the plan, and the order of operations of a step.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::{
    AdamWRule, MuonConfig, MuonRule, NonFinite, Rule, WeightDecayMode, validate_lr,
};
use crate::cpu::narrow;
use crate::device::{
    AdamWJob, BufferInfo, Counters, Device, MatrixJob, MuonScalars, StateData, StateRule,
    StateSpec, StepTensor,
};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::plan::{Plan, PlanInput};
use crate::precision::Dtype;
use crate::routing_report::{Route, RoutingReport};
use crate::shape::{self, Block, Layout, Split};
use crate::spectrum::SpectrumRecord;

/// Names a parameter group of one optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GroupId {
    owner: u64,
    index: usize,
}

/// Names a registered parameter of one optimizer; never reused after [`Muon::remove_param`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamId {
    owner: u64,
    index: usize,
}

impl ParamId {
    /// For a matrix that belongs to no optimizer.
    pub(crate) fn standalone() -> Self {
        Self { owner: u64::MAX, index: 0 }
    }
}

/// Source of the numbers that tell the ids of different optimizers apart.
static OWNERS: AtomicU64 = AtomicU64::new(0);

/// What is registered about a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: Dtype,
    layout: Layout,
    split: Split,
}

impl ParamSpec {
    /// An f32 parameter of that shape, one matrix, stored `[fan_out, fan_in]`.
    #[must_use]
    pub fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            dtype: Dtype::F32,
            layout: Layout::OutIn,
            split: Split::Whole,
        }
    }

    /// Element type of the parameter: f32 or bf16.
    #[must_use]
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Which axis is fan-out.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// How it divides into matrices.
    #[must_use]
    pub fn split(mut self, split: Split) -> Self {
        self.split = split;
        self
    }
}

#[derive(Debug)]
struct Group {
    name: String,
    rule: Rule,
}

#[derive(Debug)]
pub(crate) struct Param {
    pub(crate) id: ParamId,
    pub(crate) spec: ParamSpec,
    pub(crate) group: usize,
    /// Empty under the AdamW rule.
    blocks: Vec<Block>,
    len: usize,
    pub(crate) state: StateSpec,
}

/// Inputs of one step besides the tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOptions {
    /// Multiplies every group's learning rate; see [`LrSchedule`](crate::LrSchedule). Default 1.
    pub lr_factor: f64,
    /// Multiplies every gradient, for trainers that scale their loss. Default 1.
    pub inverse_loss_scale: f64,
    /// Whether the trainer found an overflow: the whole step is skipped before any state is touched. Default false.
    pub found_non_finite: FoundNonFinite,
    /// Scales all gradients down so that their global norm is at most this. Default none.
    pub clip_norm: Option<f64>,
}

/// The loss scaler's verdict about a step's gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FoundNonFinite {
    /// The step is taken (default).
    #[default]
    No,
    /// The whole step is skipped: nothing changes, step counts included.
    Yes,
}

impl Default for StepOptions {
    fn default() -> Self {
        Self {
            lr_factor: 1.0,
            inverse_loss_scale: 1.0,
            found_non_finite: FoundNonFinite::No,
            clip_norm: None,
        }
    }
}

impl StepOptions {
    fn validate(&self) -> Result<()> {
        validate_lr(self.lr_factor).context(|| "lr_factor")?;
        let positive = |name: &str, x: f64| {
            if x > 0.0 && x.is_finite() {
                return Ok(());
            }
            Err(Error::invalid_config(format!(
                "{name}: expected a positive finite number, found `{x}`"
            )))
        };
        positive("inverse_loss_scale", self.inverse_loss_scale)?;
        self.clip_norm.map_or(Ok(()), |norm| positive("clip_norm", norm))
    }
}

/// What a step did, as far as the host knows when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepReport {
    /// Matrices that went through orthogonalization. A device may still skip those that are not finite: see
    /// [`Muon::counters`].
    pub orthogonalized: usize,
    /// Tensors under the AdamW rule.
    pub adamw: usize,
    /// Registered parameters without a gradient in this step, left untouched.
    pub untouched: usize,
    /// Whether the loss scaler's verdict skipped the whole step.
    pub skipped: bool,
}

/// The Muon optimizer on a device.
///
/// Parameters and gradients stay the caller's and come with each step; the optimizer owns momentum and
/// everything else that must outlive a step.
///
/// # Example
/// ```
/// use muon_cuda::{AdamWRule, Cpu, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor};
///
/// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
/// let hidden = muon.add_group("hidden", MuonRule { lr: 0.02, ..MuonRule::default() })?;
/// let rest = muon.add_group("rest", AdamWRule { lr: 3e-3, ..AdamWRule::default() })?;
/// let w = muon.add_param(hidden, ParamSpec::new("layer.weight", &[2, 3]))?;
/// let b = muon.add_param(rest, ParamSpec::new("layer.bias", &[2]))?;
///
/// let (mut weight, mut bias) = (vec![0.1f32; 6], vec![0.0f32; 2]);
/// let (weight_grad, bias_grad) = (vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0], vec![0.5, -0.5]);
/// muon.step(
///     &StepOptions::default(),
///     &mut [StepTensor::new(w, &mut weight, &weight_grad), StepTensor::new(b, &mut bias, &bias_grad)],
/// )?;
/// println!("{}{}", muon.routing(), muon.plan()?);
/// # Ok::<(), muon_cuda::Error>(())
/// ```
#[derive(Debug)]
pub struct Muon<D: Device> {
    /// Part of every id this optimizer hands out.
    owner: u64,
    device: D,
    config: MuonConfig,
    groups: Vec<Group>,
    params: Vec<Param>,
    /// One per parameter, in the same order.
    states: Vec<D::State>,
    /// Position of each id among the parameters; `None` once removed.
    positions: Vec<Option<usize>>,
    planned: Option<Planned<D>>,
    scratch: Scratch,
    /// Set by a step that was interrupted half-way.
    torn: Option<String>,
    /// Counts the plans that were made.
    generation: u64,
}

/// How far a step came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// Nothing was committed.
    #[default]
    Clean,
    /// Between pass A and pass B of a chunk.
    Within {
        /// Which one.
        chunk: usize,
    },
    /// Pass B of a chunk is enqueued, the steps are not counted.
    After {
        /// Which one.
        chunk: usize,
    },
    /// Every matrix has stepped and was counted; AdamW comes next.
    Counted,
}

/// Up to eight names, and how many more.
fn listed(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        [..] if names.len() <= 8 => format!("`{}`", names.join("`, `")),
        [..] => format!("`{}` and {} more", names[..8].join("`, `"), names.len() - 8),
    }
}

#[derive(Debug)]
struct Planned<D: Device> {
    plan: Plan,
    workspace: D::Workspace,
}

/// Lists of a step, kept so that a step allocates nothing.
#[derive(Debug, Default)]
struct Scratch {
    /// For each parameter, its position among the step's tensors if it has a gradient.
    tensor_of_param: Vec<Option<usize>>,
    ranges: Vec<(usize, usize, usize)>,
    jobs: Vec<MatrixJob>,
    adamw: Vec<AdamWJob>,
    muon_params: Vec<usize>,
    stage: Stage,
}

impl<D: Device> Muon<D> {
    /// An optimizer without parameters.
    ///
    /// # Errors
    /// A configuration that contradicts itself.
    pub fn new(device: D, config: MuonConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            owner: OWNERS.fetch_add(1, Ordering::Relaxed),
            device,
            config,
            groups: Vec::new(),
            params: Vec::new(),
            states: Vec::new(),
            positions: Vec::new(),
            planned: None,
            scratch: Scratch::default(),
            torn: None,
            generation: 0,
        })
    }

    /// Adds a parameter group.
    ///
    /// # Errors
    /// A name that exists, or a hyper-parameter outside its range.
    pub fn add_group(&mut self, name: impl Into<String>, rule: impl Into<Rule>) -> Result<GroupId> {
        let (name, rule) = (name.into(), rule.into());
        if self.groups.iter().any(|g| g.name == name) {
            return Err(Error::duplicate_name(name).context("add group"));
        }
        rule.validate().context(|| format!("group `{name}`"))?;
        self.groups.push(Group { name, rule });
        Ok(GroupId { owner: self.owner, index: self.groups.len() - 1 })
    }

    /// Registers a parameter and allocates its state; it is stepped from the next step on.
    ///
    /// # Cost
    /// [`StateSpec::bytes`] on the device, zeroed.
    ///
    /// # Errors
    /// A name that exists; a dtype that is neither f32 nor bf16; under the Muon rule a shape that is not a
    /// matrix, a stack of them or a convolution, a zero dimension, or a split that does not add up; no memory.
    pub fn add_param(&mut self, group: GroupId, spec: ParamSpec) -> Result<ParamId> {
        self.add_param_checked(group, &spec).context(|| format!("register `{}`", spec.name))
    }

    fn add_param_checked(&mut self, group: GroupId, spec: &ParamSpec) -> Result<ParamId> {
        let group_index = self.group_index(group)?;
        let rule = &self.groups[group_index].rule;
        if self.params.iter().any(|p| p.spec.name == spec.name) {
            return Err(Error::duplicate_name(&spec.name));
        }
        if !matches!(spec.dtype, Dtype::F32 | Dtype::Bf16) {
            return Err(Error::dtype_mismatch("parameter", "f32 or bf16", spec.dtype));
        }
        let len = shape::element_count(&spec.shape)?;
        let (blocks, state_rule) = match rule {
            Rule::Muon(rule) => {
                let blocks = shape::blocks(&spec.shape, spec.layout, &spec.split)?;
                // A schedule that this precision makes unsafe is refused now, not at the first step.
                Plan::new(
                    &self.config,
                    [PlanInput { param: 0, rule, blocks: &blocks, name: &spec.name }],
                )?;
                let matrices = blocks.len();
                (blocks, StateRule::Muon { momentum_dtype: self.config.momentum_dtype, matrices })
            }
            Rule::AdamW(_) => (Vec::new(), StateRule::AdamW),
        };
        let state = StateSpec {
            len,
            param_dtype: spec.dtype,
            bf16_params: self.config.bf16_params,
            rule: state_rule,
            salt: name_salt(&spec.name),
        };
        self.states.push(self.device.new_state(&state)?);
        let id = ParamId { owner: self.owner, index: self.positions.len() };
        self.positions.push(Some(self.params.len()));
        self.params.push(Param { id, spec: spec.clone(), group: group_index, blocks, len, state });
        self.planned = None;
        Ok(id)
    }

    /// Forgets a parameter and frees its state; other parameters keep theirs.
    ///
    /// # Errors
    /// An id that was removed already or belongs to another optimizer.
    pub fn remove_param(&mut self, id: ParamId) -> Result<()> {
        let position = self.position(id)?;
        self.params.remove(position);
        self.states.remove(position);
        self.positions[id.index] = None;
        for p in self.positions.iter_mut().flatten() {
            *p -= usize::from(*p > position);
        }
        self.planned = None;
        Ok(())
    }

    /// One step: momentum, orthogonalization, decay and update for every parameter that has a gradient.
    ///
    /// # Shapes
    /// Each tensor row-major and contiguous, of its registered length and dtype; gradients of the same
    /// length in any supported dtype. Tensors may come in any order; parameters that do not come, or come
    /// without a gradient, are left untouched together with their state.
    ///
    /// # Cost
    /// See [`Muon::plan`]. No allocation after the first step (on the CPU: outside the matrix products).
    ///
    /// # Errors
    /// Nothing changes when one of these is returned: an option outside its range, an unknown or repeated
    /// parameter, overlapping memory, a length or dtype that is not the registered one, no parameter (or a
    /// whole group of none) under the Muon rule, or, with [`NonFinite::Error`], a gradient that is not finite.
    /// When the device fails in the middle of a step, the error lists which parameters stepped and which took half a
    /// step; if there are any of those, [`Muon::torn`] says so and every later step and export is refused until
    /// [`Muon::restore`].
    pub fn step(
        &mut self,
        options: &StepOptions,
        tensors: &mut [StepTensor<'_, D>],
    ) -> Result<StepReport> {
        self.ready(options, tensors)?;
        if options.found_non_finite == FoundNonFinite::Yes {
            return Ok(StepReport {
                skipped: true,
                untouched: self.params.len(),
                ..StepReport::default()
            });
        }
        if self.config.non_finite == NonFinite::Error {
            self.refuse_non_finite(tensors)?;
        }
        let mut report = StepReport {
            untouched: self.scratch.tensor_of_param.iter().filter(|t| t.is_none()).count(),
            ..StepReport::default()
        };
        self.scratch.stage = Stage::Clean;
        let Err(error) = self.run_stages(options, tensors, &mut report) else { return Ok(report) };
        Err(self.interrupted(error))
    }

    /// The stages of a step, in order; `scratch.stage` says how far it came.
    pub(crate) fn run_stages(
        &mut self,
        options: &StepOptions,
        tensors: &mut [StepTensor<'_, D>],
        report: &mut StepReport,
    ) -> Result<()> {
        let Some(planned) = &mut self.planned else { return Ok(()) };
        let (plan, workspace) = (&planned.plan, &mut planned.workspace);
        let scratch = &mut self.scratch;

        self.device.gradient_scale(tensors, options.inverse_loss_scale, options.clip_norm)?;
        for chunk in 0..plan.chunks() {
            chunk_jobs(scratch, plan, &self.params, &self.groups, chunk, options.lr_factor);
            let jobs = &scratch.jobs;
            // A failed pass A has committed nothing: what commits is the last thing that it enqueues.
            self.device.pass_a(plan, jobs, tensors, &mut self.states, workspace)?;
            scratch.stage = Stage::Within { chunk };
            for same_bucket in jobs.chunk_by(|a, b| a.bucket == b.bucket) {
                let active = same_bucket.len();
                self.device.orthogonalize(plan, same_bucket[0].bucket, active, workspace)?;
            }
            self.device.pass_b(plan, jobs, tensors, &mut self.states, workspace)?;
            scratch.stage = Stage::After { chunk };
            report.orthogonalized += jobs.len();
        }

        scratch.adamw.clear();
        scratch.muon_params.clear();
        for (position, param) in self.params.iter().enumerate() {
            let Some(tensor) = scratch.tensor_of_param[position] else { continue };
            match &self.groups[param.group].rule {
                Rule::AdamW(rule) => {
                    scratch.adamw.push(adamw_job(rule, tensor, position, options.lr_factor));
                }
                Rule::Muon(_) => scratch.muon_params.push(position),
            }
        }
        self.device.finish_step(&scratch.muon_params, &mut self.states)?;
        scratch.stage = Stage::Counted;
        self.device.adamw(&scratch.adamw, tensors, &mut self.states)?;
        report.adamw = scratch.adamw.len();
        Ok(())
    }

    /// What a device failure in the middle of a step means: which parameters stepped, which did not, and which are
    /// torn. Those make the optimizer refuse to go on.
    fn interrupted(&mut self, error: Error) -> Error {
        let stage = self.scratch.stage;
        if stage == Stage::Clean {
            return error.context("step (no parameter and no state was changed)");
        }
        let mut stepped = Vec::new();
        let mut torn = Vec::new();
        for (position, param) in self.params.iter().enumerate() {
            if self.scratch.tensor_of_param[position].is_none() {
                continue;
            }
            let name = param.spec.name.as_str();
            match (&self.groups[param.group].rule, stage) {
                (Rule::Muon(_), Stage::Counted) => stepped.push(name),
                // The device may have applied AdamW to some tensors of its one launch, or counted steps.
                (Rule::AdamW(_), Stage::Counted) => torn.push(name),
                (Rule::AdamW(_), _) => {}
                (Rule::Muon(_), _) => {
                    // Step counts come last, so a parameter that is through its chunks is torn as well.
                    if self.was_touched(position, stage) {
                        torn.push(name);
                    }
                }
            }
        }
        let message = format!(
            "step interrupted; stepped: {}; half stepped: {}; the others did not step. Restore parameters and state \
             from a checkpoint",
            listed(&stepped),
            listed(&torn)
        );
        if !torn.is_empty() {
            self.torn = Some(format!("{message}. The cause was: {error}"));
        }
        error.context(message)
    }

    /// Whether a parameter has a matrix in a chunk that pass A committed.
    fn was_touched(&self, position: usize, stage: Stage) -> bool {
        let last = match stage {
            Stage::Clean => return false,
            Stage::Within { chunk } | Stage::After { chunk } => chunk,
            Stage::Counted => usize::MAX,
        };
        let Some(planned) = &self.planned else { return false };
        let chunks = planned.plan.chunks();
        planned.plan.buckets().iter().any(|bucket| {
            (0..chunks)
                .take_while(|chunk| *chunk <= last)
                .any(|chunk| Plan::segment(bucket, chunk).iter().any(|m| m.param == position))
        })
    }

    /// Why the optimizer refuses to go on, if an earlier step was interrupted: some parameters took half a step.
    /// [`Muon::restore`] ends it; restore the parameters too.
    #[must_use]
    pub fn torn(&self) -> Option<&str> {
        self.torn.as_deref()
    }

    fn refuse_torn(&self) -> Result<()> {
        match &self.torn {
            None => Ok(()),
            Some(why) => Err(Error::torn(why)),
        }
    }

    /// Singular values of what [`Muon::step`] with the same arguments would orthogonalize; changes nothing.
    ///
    /// One record for each matrix under the Muon rule that has a gradient, under its parameter's name (with its
    /// number where there are several), counted by the steps that parameter has taken. The values are those of the
    /// direction: momentum and gradient blended, after clipping and loss scale, before it is normalised and
    /// rounded. A direction that is not finite is left out. Steps that follow give the same bits as without the
    /// call.
    ///
    /// # Cost
    /// Each direction on the host, and a singular value decomposition in f64 of it there: far more than a step, so
    /// call it every so many steps.
    ///
    /// # Errors
    /// As [`Muon::step`]; a device that cannot copy directions to the host.
    ///
    /// # Example
    /// ```
    /// use muon_cuda::{Cpu, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor};
    ///
    /// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
    /// let hidden = muon.add_group("hidden", MuonRule::default())?;
    /// let w = muon.add_param(hidden, ParamSpec::new("w", &[2, 2]))?;
    /// let (mut weight, grad) = (vec![0.0f32; 4], vec![3.0f32, 0.0, 0.0, 4.0]);
    /// let mut tensors = [StepTensor::new(w, &mut weight, &grad)];
    /// let spectra = muon.direction_spectra(&StepOptions::default(), &tensors)?;
    /// let values = spectra[0].spectrum()?;
    /// assert!((values.values()[1] / values.values()[0] - 0.75).abs() < 0.1);    // 3/4, to the width of a bin
    /// muon.step(&StepOptions::default(), &mut tensors)?;
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn direction_spectra(
        &mut self,
        options: &StepOptions,
        tensors: &[StepTensor<'_, D>],
    ) -> Result<Vec<SpectrumRecord>> {
        options.validate().context(|| "step options")?;
        self.prepare_plan()?;
        self.match_tensors(tensors)?;
        let mut records = Vec::new();
        let Some(planned) = &self.planned else { return Ok(records) };
        let plan = &planned.plan;
        let scratch = &mut self.scratch;
        let mut direction = Vec::new();
        self.device.gradient_scale(tensors, options.inverse_loss_scale, options.clip_norm)?;
        for chunk in 0..plan.chunks() {
            chunk_jobs(scratch, plan, &self.params, &self.groups, chunk, options.lr_factor);
            for job in &scratch.jobs {
                let norm = self.device.direction(job, tensors, &self.states, &mut direction)?;
                if !norm.is_finite() {
                    continue;
                }
                let param = &self.params[job.param];
                let name = match param.blocks.len() {
                    1 => param.spec.name.clone(),
                    _ => format!("{}[{}]", param.spec.name, job.matrix),
                };
                let steps = self.device.counters(&self.states[job.param])?.steps;
                let measured = SpectrumRecord::measure(steps, name, job.block.shape, &direction)?;
                records.push(SpectrumRecord { norm, ..measured });
            }
        }
        Ok(records)
    }

    /// Makes plan and workspace if parameters or groups changed; refuses an optimizer that would orthogonalize nothing.
    fn prepare_plan(&mut self) -> Result<()> {
        if self.planned.is_some() {
            return Ok(());
        }
        if !self.params.iter().any(|p| self.groups[p.group].rule.is_muon()) {
            return Err(Error::invalid_config(
                "no parameter is under the Muon rule, so nothing would be orthogonalized; register the hidden \
                 matrices in a group with a `MuonRule`",
            ));
        }
        for (i, group) in self.groups.iter().enumerate() {
            if group.rule.is_muon() && !self.params.iter().any(|p| p.group == i) {
                return Err(Error::invalid_config(format!(
                    "group `{}` has the Muon rule but no parameter; register one or do not add the group",
                    group.name
                )));
            }
        }
        let inputs = self.params.iter().enumerate().filter_map(|(position, p)| {
            match &self.groups[p.group].rule {
                Rule::Muon(rule) => {
                    Some(PlanInput { param: position, rule, blocks: &p.blocks, name: &p.spec.name })
                }
                Rule::AdamW(_) => None,
            }
        });
        let plan = Plan::new(&self.config, inputs)?;
        let workspace = self.device.new_workspace(&plan)?;
        self.planned = Some(Planned { plan, workspace });
        self.generation += 1;
        Ok(())
    }

    /// Which plan is in force: changes whenever parameters or rules did.
    #[cfg(feature = "cuda")]
    pub(crate) fn generation(&self) -> (u64, u64) {
        (self.owner, self.generation)
    }

    /// Which parameters have a gradient among the tensors matched last.
    #[cfg(feature = "cuda")]
    pub(crate) fn present(&self) -> Vec<bool> {
        self.scratch.tensor_of_param.iter().map(Option::is_some).collect()
    }

    /// What [`Muon::step`] checks before it touches anything.
    pub(crate) fn ready(
        &mut self,
        options: &StepOptions,
        tensors: &[StepTensor<'_, D>],
    ) -> Result<()> {
        options.validate().context(|| "step options")?;
        self.refuse_torn()?;
        self.prepare_plan()?;
        self.match_tensors(tensors)
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Checks the tensors of a step and notes which parameter each one is.
    fn match_tensors(&mut self, tensors: &[StepTensor<'_, D>]) -> Result<()> {
        let scratch = &mut self.scratch;
        scratch.tensor_of_param.clear();
        scratch.tensor_of_param.resize(self.params.len(), None);
        scratch.ranges.clear();
        for (i, t) in tensors.iter().enumerate() {
            let position = position_of(self.owner, &self.positions, t.id)
                .context(|| format!("tensor {i} of the step"))?;
            let param = &self.params[position];
            let name = &param.spec.name;
            let buffer = D::param_buffer(&t.param);
            if buffer.dtype != param.spec.dtype {
                return Err(Error::dtype_mismatch(
                    format!("param `{name}`"),
                    param.spec.dtype,
                    buffer.dtype,
                ));
            }
            if buffer.len != param.len {
                return Err(Error::shape_mismatch(
                    format!("elements of param `{name}` {:?}", param.spec.shape),
                    param.len,
                    buffer.len,
                ));
            }
            scratch.ranges.push(byte_range(&buffer, i));
            let Some(grad) = &t.grad else { continue };
            let buffer = D::grad_buffer(grad);
            if buffer.len != param.len {
                return Err(Error::shape_mismatch(
                    format!("elements of grad of `{name}` {:?}", param.spec.shape),
                    param.len,
                    buffer.len,
                ));
            }
            if scratch.tensor_of_param[position].replace(i).is_some() {
                return Err(Error::duplicate_name(name).context("step"));
            }
        }
        // The same memory under two names would be stepped twice (tied weights are one parameter).
        scratch.ranges.sort_unstable();
        for pair in scratch.ranges.windows(2) {
            let [(_, end, first), (start, _, second)] = *pair else { continue };
            if start < end {
                let name = |i: usize| {
                    position_of(self.owner, &self.positions, tensors[i].id)
                        .map_or(String::new(), |p| self.params[p].spec.name.clone())
                };
                return Err(Error::new(ErrorKind::Aliasing {
                    first: name(first),
                    second: name(second),
                }));
            }
        }
        Ok(())
    }

    fn refuse_non_finite(&mut self, tensors: &[StepTensor<'_, D>]) -> Result<()> {
        let Some(i) = self.device.find_non_finite(tensors)? else { return Ok(()) };
        let name = self.position(tensors[i].id).map_or("", |p| &self.params[p].spec.name);
        Err(Error::non_finite(format!(
            "the gradient of `{name}` has a NaN or an infinity; nothing was changed (policy `NonFinite::Error`)"
        )))
    }

    pub(crate) fn position(&self, id: ParamId) -> Result<usize> {
        position_of(self.owner, &self.positions, id)
    }

    fn group_index(&self, group: GroupId) -> Result<usize> {
        if group.owner == self.owner {
            return Ok(group.index);
        }
        Err(Error::invalid_config("the group belongs to another optimizer"))
    }

    /// The plan of a step with every parameter; made on first use and when parameters change.
    ///
    /// # Errors
    /// As [`Muon::step`]: nothing under the Muon rule, or a schedule that cannot be run safely.
    pub fn plan(&mut self) -> Result<&Plan> {
        self.prepare_plan()?;
        self.planned
            .as_ref()
            .map(|p| &p.plan)
            .ok_or_else(|| Error::invalid_config("the plan could not be made"))
    }

    /// What is orthogonalized and what is not.
    #[must_use]
    pub fn routing(&self) -> RoutingReport {
        let routes = self
            .params
            .iter()
            .map(|p| {
                let group = &self.groups[p.group];
                Route {
                    name: p.spec.name.clone(),
                    shape: p.spec.shape.clone(),
                    group: group.name.clone(),
                    orthogonalizer: match &group.rule {
                        Rule::Muon(rule) => Some(rule.orthogonalizer.name()),
                        Rule::AdamW(_) => None,
                    },
                    matrices: p.blocks.len(),
                    elements: p.len,
                }
            })
            .collect();
        RoutingReport { routes }
    }

    /// Steps taken by a parameter and skips of its matrices; waits for the device.
    ///
    /// # Errors
    /// An unknown id, or a failed device.
    pub fn counters(&mut self, id: ParamId) -> Result<Counters> {
        let position = self.position(id)?;
        self.device.counters(&self.states[position])
    }

    /// Copies a parameter's state to the host; waits for the device.
    ///
    /// # Errors
    /// An unknown id, or a failed device.
    pub fn export_state(&mut self, id: ParamId) -> Result<StateData> {
        self.refuse_torn()?;
        let position = self.position(id)?;
        self.device.export_state(&self.states[position])
    }

    /// Replaces a parameter's state, such as by one from another framework.
    ///
    /// # Errors
    /// An unknown id, or buffers whose number, dtype or length is not the parameter's. The old state stays.
    pub fn import_state(&mut self, id: ParamId, data: &StateData) -> Result<()> {
        let position = self.position(id)?;
        let param = &self.params[position];
        self.states[position] = self
            .device
            .import_state(&param.state, data)
            .context(|| format!("state of `{}`", param.spec.name))?;
        Ok(())
    }

    /// The id of the parameter of that name.
    ///
    /// # Errors
    /// An unknown name; the message suggests the nearest.
    pub fn param_id(&self, name: &str) -> Result<ParamId> {
        self.params.iter().find(|p| p.spec.name == name).map(|p| p.id).ok_or_else(|| {
            Error::unknown_name("parameter", name, self.params.iter().map(|p| p.spec.name.as_str()))
        })
    }

    /// Names of the registered parameters, in order.
    pub fn param_names(&self) -> impl Iterator<Item = &str> {
        self.params.iter().map(|p| p.spec.name.as_str())
    }

    /// The rule of a group as it stands.
    #[must_use]
    pub fn rule(&self, group: GroupId) -> Option<&Rule> {
        self.group_index(group).ok().map(|i| &self.groups[i].rule)
    }

    /// The id of the group of that name.
    ///
    /// # Errors
    /// An unknown name; the message suggests the nearest.
    pub fn group_id(&self, name: &str) -> Result<GroupId> {
        self.groups
            .iter()
            .position(|g| g.name == name)
            .map(|index| GroupId { owner: self.owner, index })
            .ok_or_else(|| {
                Error::unknown_name("group", name, self.groups.iter().map(|g| g.name.as_str()))
            })
    }

    /// Replaces a group's hyper-parameters; the kind of rule, the momentum mode and with them the meaning of
    /// the state stay.
    ///
    /// # Errors
    /// A hyper-parameter outside its range, or another kind of rule or momentum mode. The old rule stays.
    pub fn set_rule(&mut self, group: GroupId, rule: impl Into<Rule>) -> Result<()> {
        let rule = rule.into();
        let index = self.group_index(group)?;
        let Group { name, rule: old } = &self.groups[index];
        rule.validate().context(|| format!("group `{name}`"))?;
        if rule.modes() != old.modes() {
            return Err(Error::invalid_config(format!(
                "group `{name}`: its state was made under {}; expected a rule of that kind, found {}",
                old.modes(),
                rule.modes()
            )));
        }
        if let Rule::Muon(rule) = &rule {
            let inputs =
                self.params.iter().enumerate().filter(|(_, p)| p.group == index).map(
                    |(param, p)| PlanInput { param, rule, blocks: &p.blocks, name: &p.spec.name },
                );
            Plan::new(&self.config, inputs).context(|| format!("group `{name}`"))?;
        }
        self.groups[index].rule = rule;
        self.planned = None;
        Ok(())
    }

    /// Sets a group's learning rate.
    ///
    /// # Errors
    /// A learning rate that is negative or not finite.
    pub fn set_lr(&mut self, group: GroupId, lr: f64) -> Result<()> {
        validate_lr(lr)?;
        let index = self.group_index(group)?;
        self.groups[index].rule.set_lr(lr);
        Ok(())
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &MuonConfig {
        &self.config
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Bytes of state on the device.
    #[must_use]
    pub fn state_bytes(&self) -> usize {
        self.params.iter().map(|p| p.state.bytes()).sum()
    }

    /// Waits for the device.
    ///
    /// # Errors
    /// A failure of earlier, asynchronous work.
    pub fn synchronize(&mut self) -> Result<()> {
        self.device.synchronize()
    }

    /// Replaces the state of every parameter, which ends being torn.
    pub(crate) fn replace_states(&mut self, states: Vec<D::State>) {
        self.states = states;
        self.torn = None;
    }

    pub(crate) fn refuse_torn_checkpoint(&self) -> Result<()> {
        self.refuse_torn().context(|| "checkpoint")
    }

    pub(crate) fn params(&self) -> &[Param] {
        &self.params
    }

    /// What [`crate::checkpoint`] needs: parameters, their modes, their states, and the device.
    pub(crate) fn parts(&mut self) -> (&mut D, &[Param], &mut Vec<D::State>) {
        (&mut self.device, &self.params, &mut self.states)
    }

    pub(crate) fn modes(&self, param: &Param) -> String {
        self.groups[param.group].rule.modes()
    }
}

/// The matrices of a chunk that have a gradient in this step, by bucket.
fn chunk_jobs(
    scratch: &mut Scratch,
    plan: &Plan,
    params: &[Param],
    groups: &[Group],
    chunk: usize,
    lr_factor: f64,
) {
    scratch.jobs.clear();
    for (b, bucket) in plan.buckets().iter().enumerate() {
        let mut slot = 0;
        for m in Plan::segment(bucket, chunk) {
            let Some(tensor) = scratch.tensor_of_param[m.param] else { continue };
            let param = &params[m.param];
            let Rule::Muon(rule) = &groups[param.group].rule else { continue };
            scratch.jobs.push(MatrixJob {
                tensor,
                param: m.param,
                matrix: m.matrix,
                block: m.block,
                bucket: b,
                slot,
                scalars: muon_scalars(rule, &param.spec, &m.block, lr_factor),
            });
            slot += 1;
        }
    }
}

fn position_of(owner: u64, positions: &[Option<usize>], id: ParamId) -> Result<usize> {
    (id.owner == owner).then(|| positions.get(id.index).copied().flatten()).flatten().ok_or_else(
        || Error::invalid_config("the parameter was removed or belongs to another optimizer"),
    )
}

fn byte_range(buffer: &BufferInfo, tensor: usize) -> (usize, usize, usize) {
    let end = buffer.address.saturating_add(buffer.len.saturating_mul(buffer.dtype.bytes()));
    (buffer.address, end, tensor)
}

/// FNV-1a of the name: stochastic rounding is independent between parameters and the same across runs.
fn name_salt(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn muon_scalars(rule: &MuonRule, spec: &ParamSpec, block: &Block, lr_factor: f64) -> MuonScalars {
    let lr = rule.lr * lr_factor;
    let scale = rule.update_scale.factor(block.shape, spec.layout);
    MuonScalars {
        momentum: narrow(rule.momentum),
        one_minus_momentum: narrow(1.0 - rule.momentum),
        keep: narrow(match rule.weight_decay_mode {
            WeightDecayMode::Independent => 1.0 - rule.weight_decay,
            WeightDecayMode::Decoupled | WeightDecayMode::Cautious => 1.0 - lr * rule.weight_decay,
        }),
        step: narrow(lr * scale),
        momentum_mode: rule.momentum_mode,
        nesterov: rule.nesterov,
        weight_decay_mode: rule.weight_decay_mode,
    }
}

fn adamw_job(rule: &AdamWRule, tensor: usize, param: usize, lr_factor: f64) -> AdamWJob {
    let lr = rule.lr * lr_factor;
    AdamWJob {
        tensor,
        param,
        lr,
        beta1: rule.beta1,
        beta2: rule.beta2,
        eps: rule.eps,
        keep: narrow(1.0 - lr * rule.weight_decay),
    }
}
