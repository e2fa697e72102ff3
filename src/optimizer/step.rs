//! A step: checks, stages in order, and what an interruption means.

use super::Muon;
use super::options::{FoundNonFinite, StepOptions, StepReport};
use super::param::{Group, Param, ParamSpec, position_of};
use crate::config::{AdamWRule, MuonRule, NonFinite, Rule, WeightDecayMode};
use crate::cpu::narrow;
use crate::device::{
    AdamWJob, BufferInfo, Device, GradientUnit, MatrixJob, MuonScalars, StepTensor,
};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::limits::{self, largest_update};
use crate::plan::Plan;
use crate::shape::{Block, MatrixShape};
use crate::spectrum::SpectrumRecord;
use crate::trace;

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

/// Lists of a step, kept so that a step allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// For each parameter, its position among the step's tensors if it has a gradient.
    tensor_of_param: Vec<Option<usize>>,
    /// For each parameter, its position among the step's tensors, with a gradient or without.
    given: Vec<Option<usize>>,
    ranges: Vec<(usize, usize, usize)>,
    jobs: Vec<MatrixJob>,
    adamw: Vec<AdamWJob>,
    muon_params: Vec<usize>,
    /// What counts in the norm of the gradients as a whole.
    units: Vec<GradientUnit>,
    stage: Stage,
}

/// The report of a step, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Last {
    report: StepReport,
    /// Whether the gradients were clipped.
    clipped: bool,
}

impl<D: Device> Muon<D> {
    /// One step: momentum, orthogonalization, decay and update for every parameter that has a gradient.
    ///
    /// # Shapes
    /// Each tensor row-major and contiguous, of its registered length and dtype; gradients of the same
    /// length in any supported dtype. Tensors may come in any order; parameters that do not come, or come
    /// without a gradient, are left untouched together with their state.
    ///
    /// # Cost
    /// See [`Muon::plan`]. No allocation after the first step (on the CPU: outside the matrix products). On CUDA nothing waits
    /// for the device, so the report lacks what only the device knows; see [`Muon::last_step`].
    ///
    /// # Errors
    /// Nothing changes when one of these is returned: an option outside its range, a learning rate or a decay that is outside
    /// its range once `lr_factor` and update scale are multiplied in, an unknown or repeated
    /// parameter, overlapping memory, a length or dtype that is not the registered one, a bf16 parameter that the CPU finds
    /// written since its last step ([`Muon::refresh_master`]), a gradient for a frozen one ([`Muon::freeze`]), no parameter (or a
    /// whole group of none) under the Muon rule unless the configuration allows it, or, with [`NonFinite::Error`], a gradient that is not finite.
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
            return Ok(self.skipped_step());
        }
        if self.config.non_finite == NonFinite::Error {
            self.refuse_non_finite(tensors)?;
        }
        let mut report = StepReport {
            untouched: self.scratch.tensor_of_param.iter().filter(|t| t.is_none()).count(),
            ..StepReport::default()
        };
        self.scratch.stage = Stage::Clean;
        self.last = None;
        match self.run_stages(options, tensors, &mut report) {
            Ok(()) => Ok(self.took_step(report, options)),
            Err(error) => Err(self.interrupted(error)),
        }
    }

    /// Notes the report of a step that the loss scaler's verdict skipped.
    pub(crate) fn skipped_step(&mut self) -> StepReport {
        trace::step_skipped(self.params.len());
        let report = StepReport::of_skipped_step(self.params.len());
        self.last = Some(Last { report, clipped: false });
        report
    }

    /// Notes the report of a step and completes it if that needs no waiting.
    pub(crate) fn took_step(&mut self, report: StepReport, options: &StepOptions) -> StepReport {
        let clipped = options.clip_norm.is_some();
        let report = match self.device.record_now() {
            Some(record) => report.completed(&record, clipped),
            None => report,
        };
        self.last = Some(Last { report, clipped });
        report
    }

    /// The whole report of the step that was taken last, eager or replayed; `None` before the first one and after one that failed.
    ///
    /// # Cost
    /// On the CPU none. On CUDA it waits for the device and copies 32 bytes.
    ///
    /// # Errors
    /// A failure of earlier, asynchronous work.
    ///
    /// # Example
    /// ```
    /// use muon_cuda::{Cpu, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor};
    ///
    /// let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
    /// let hidden = muon.add_group("hidden", MuonRule::default())?;
    /// let w = muon.add_param(hidden, ParamSpec::new("w", &[2, 2]))?;
    /// let (mut weight, grad) = (vec![0.0f32; 4], vec![3.0f32, 0.0, 0.0, 4.0]);
    /// let options = StepOptions { clip_norm: Some(2.5), ..StepOptions::default() };
    /// muon.step(&options, &mut [StepTensor::new(w, &mut weight, &grad)])?;
    /// let report = muon.last_step()?.expect("a step was taken");
    /// assert_eq!((report.gradient_norm, report.clip_factor), (Some(5.0), Some(0.5)));
    /// assert_eq!((report.orthogonalized, report.skipped_matrices), (1, Some(0)));
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn last_step(&mut self) -> Result<Option<StepReport>> {
        let Some(last) = &mut self.last else { return Ok(None) };
        if !last.report.is_complete() {
            last.report = last.report.completed(&self.device.record()?, last.clipped);
        }
        Ok(Some(last.report))
    }

    /// What [`Muon::step`] checks before it touches anything.
    pub(crate) fn ready(
        &mut self,
        options: &StepOptions,
        tensors: &[StepTensor<'_, D>],
    ) -> Result<()> {
        options.validate().context(|| "step options")?;
        self.refuse_torn()?;
        // Before the plan: what is wrong with the tensors is said as that.
        self.match_tensors(tensors)?;
        self.prepare_plan()?;
        self.check_scalars(options.lr_factor)
    }

    /// Refuses a step whose scalars, rounded to f32, could make a finite parameter infinite.
    fn check_scalars(&self, lr_factor: f64) -> Result<()> {
        for (param, tensor) in self.params.iter().zip(&self.scratch.tensor_of_param) {
            if tensor.is_none() {
                continue;
            }
            let checked = match &self.groups[param.group].rule {
                Rule::Muon(rule) => param.blocks.iter().try_for_each(|block| {
                    let lr = rule.lr * lr_factor;
                    limits::step(
                        "lr * lr_factor * update scale",
                        lr * rule.update_scale.factor(block.shape, param.spec.layout),
                    )?;
                    limits::keep(muon_keep(rule, lr))
                }),
                Rule::AdamW(rule) => {
                    let lr = rule.lr * lr_factor;
                    limits::step("lr * lr_factor / (1 - beta1)", lr / (1.0 - rule.beta1))
                        .and_then(|()| limits::keep(1.0 - lr * rule.weight_decay))
                }
            };
            checked.context(|| format!("`{}`", param.spec.name))?;
        }
        Ok(())
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

        gradient_units(scratch, &self.params, &self.groups, options);
        let (loss_scale, clip_norm) = (options.inverse_loss_scale, options.clip_norm);
        self.device.gradient_scale(tensors, &scratch.units, loss_scale, clip_norm)?;
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
            let why = format!("{message}. The cause was: {error}");
            trace::torn(&why);
            self.torn = Some(why);
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

    pub(crate) fn refuse_torn(&self) -> Result<()> {
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
    /// As [`Muon::step`].
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
        self.match_tensors(tensors)?;
        self.prepare_plan()?;
        self.check_scalars(options.lr_factor)?;
        // The device keeps one record, which the norm of these gradients replaces.
        self.last_step()?;
        let mut records = Vec::new();
        let Some(planned) = &self.planned else { return Ok(records) };
        let plan = &planned.plan;
        let scratch = &mut self.scratch;
        let mut direction = Vec::new();
        gradient_units(scratch, &self.params, &self.groups, options);
        let (loss_scale, clip_norm) = (options.inverse_loss_scale, options.clip_norm);
        self.device.gradient_scale(tensors, &scratch.units, loss_scale, clip_norm)?;
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

    /// Checks the tensors of a step and notes which parameter each one is.
    fn match_tensors(&mut self, tensors: &[StepTensor<'_, D>]) -> Result<()> {
        let scratch = &mut self.scratch;
        scratch.tensor_of_param.clear();
        scratch.tensor_of_param.resize(self.params.len(), None);
        scratch.given.clear();
        scratch.given.resize(self.params.len(), None);
        scratch.ranges.clear();
        for (i, t) in tensors.iter().enumerate() {
            let position = position_of(self.owner, &self.positions, t.id)
                .context(|| format!("tensor {i} of the step"))?;
            let param = &self.params[position];
            let name = &param.spec.name;
            if let Some(first) = scratch.given[position].replace(i) {
                return Err(Error::given_twice(name, first, i));
            }
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
            // Nothing overlaps what has no element.
            if buffer.len > 0 {
                scratch.ranges.push(byte_range(&buffer, i));
            }
            let Some(grad) = &t.grad else { continue };
            let buffer = D::grad_buffer(grad);
            if buffer.len != param.len {
                return Err(Error::shape_mismatch(
                    format!("elements of grad of `{name}` {:?}", param.spec.shape),
                    param.len,
                    buffer.len,
                ));
            }
            if param.frozen {
                return Err(Error::invalid_config(format!(
                    "`{name}` is frozen and has a gradient; pass it without one, or call `Muon::unfreeze`"
                )));
            }
            if D::master_is_stale(&t.param, &self.states[position]) {
                return Err(Error::invalid_config(format!(
                    "`{name}` was written since its last step: it is not the rounding of its f32 master copy, from which \
                     the step would overwrite it; call `Muon::refresh_master` after loading weights, or restore the \
                     state that belongs to them"
                )));
            }
            scratch.tensor_of_param[position] = Some(i);
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

    /// Which parameters have a gradient among the tensors matched last.
    #[cfg(feature = "cuda")]
    pub(crate) fn present(&self) -> Vec<bool> {
        self.scratch.tensor_of_param.iter().map(Option::is_some).collect()
    }
}

/// Up to eight names, and how many more.
fn listed(names: &[&str]) -> String {
    match names {
        [] => "none".to_owned(),
        [..] if names.len() <= 8 => format!("`{}`", names.join("`, `")),
        [..] => format!("`{}` and {} more", names[..8].join("`, `"), names.len() - 8),
    }
}

/// What counts in the norm of the gradients: every matrix, and every tensor under AdamW. Only clipping asks for it.
fn gradient_units(
    scratch: &mut Scratch,
    params: &[Param],
    groups: &[Group],
    options: &StepOptions,
) {
    scratch.units.clear();
    if options.clip_norm.is_none() {
        return;
    }
    for (param, tensor) in params.iter().zip(&scratch.tensor_of_param) {
        let Some(tensor) = *tensor else { continue };
        match &groups[param.group].rule {
            Rule::Muon(_) => {
                let units = param.blocks.iter().map(|&block| GradientUnit { tensor, block });
                scratch.units.extend(units);
            }
            Rule::AdamW(_) if param.len > 0 => {
                let shape = MatrixShape { rows: 1, cols: param.len };
                let block = Block { offset: 0, shape, row_stride: param.len };
                scratch.units.push(GradientUnit { tensor, block });
            }
            Rule::AdamW(_) => {}
        }
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

fn byte_range(buffer: &BufferInfo, tensor: usize) -> (usize, usize, usize) {
    let end = buffer.address.saturating_add(buffer.len.saturating_mul(buffer.dtype.bytes()));
    (buffer.address, end, tensor)
}

/// What decay leaves of a parameter.
fn muon_keep(rule: &MuonRule, lr: f64) -> f64 {
    match rule.weight_decay_mode {
        WeightDecayMode::Independent => 1.0 - rule.weight_decay,
        WeightDecayMode::Decoupled | WeightDecayMode::Cautious => 1.0 - lr * rule.weight_decay,
        WeightDecayMode::Palm => 1.0 - lr * lr * rule.weight_decay,
        WeightDecayMode::L2 => 1.0,
    }
}

fn muon_scalars(rule: &MuonRule, spec: &ParamSpec, block: &Block, lr_factor: f64) -> MuonScalars {
    let lr = rule.lr * lr_factor;
    let scale = rule.update_scale.factor(block.shape, spec.layout);
    MuonScalars {
        momentum: narrow(rule.momentum),
        one_minus_momentum: narrow(1.0 - rule.momentum),
        keep: narrow(muon_keep(rule, lr)),
        l2: match rule.weight_decay_mode {
            WeightDecayMode::L2 => narrow(rule.weight_decay),
            _ => 0.0,
        },
        largest: largest_update(lr * scale),
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
