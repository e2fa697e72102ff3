//! One run: an optimizer, a seed, a budget; stoppable and resumable at any step.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use muon_cuda::checkpoint::TensorFileWriter;
use serde::Serialize;

use super::config::{Config, OptimizerConfig, Task};
use super::jobs::Stop;
use super::optimizer::Stepper;
use super::spectra::SpectraFile;
use super::store::{Numbers, Stored, Tensors};
use super::workload::{Scores, Source, Workload};

/// A run that ends with so many times the loss of the untrained model has diverged.
const DIVERGED: f64 = 100.0;

/// Losses and accuracy after some steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Evaluation {
    /// Steps taken.
    pub(crate) step: usize,
    /// Mean cross-entropy over the training data, nats.
    pub(crate) training_loss: f64,
    /// Mean cross-entropy over the held-out data, nats.
    pub(crate) held_out_loss: f64,
    /// Fraction of held-out answers that are right.
    pub(crate) accuracy: f64,
}

/// What a run has measured so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Record {
    /// Loss of the batch before each step.
    pub(crate) batch_losses: Vec<f64>,
    /// At step 0, every `evaluate_every` steps, and at the end.
    pub(crate) evaluations: Vec<Evaluation>,
    /// Seconds in steps, without evaluations and checkpoints.
    pub(crate) step_seconds: f64,
    /// Seconds of those in the optimizer.
    pub(crate) optimizer_seconds: f64,
}

impl Record {
    /// Loss on the training data at the end.
    pub(crate) fn final_loss(&self) -> f64 {
        self.evaluations.last().map_or(f64::NAN, |e| e.training_loss)
    }

    /// Loss on the held-out data at the end.
    pub(crate) fn final_held_out_loss(&self) -> f64 {
        self.evaluations.last().map_or(f64::NAN, |e| e.held_out_loss)
    }

    /// Accuracy on the held-out data at the end.
    pub(crate) fn final_accuracy(&self) -> f64 {
        self.evaluations.last().map_or(f64::NAN, |e| e.accuracy)
    }

    /// The first step whose loss was out of all proportion to the untrained model's, if the run ended like that.
    pub(crate) fn diverged(&self) -> Option<usize> {
        let first = self.evaluations.first().map_or(f64::NAN, |e| e.training_loss);
        // An untrained model guesses: its loss is the logarithm of the number of classes. A hundred times that is no
        // model that is still learning. NaN compares as diverged.
        let sane = |loss: f64| loss <= DIVERGED * first;
        if sane(self.final_loss()) {
            return None;
        }
        let step = self.batch_losses.iter().position(|loss| !sane(*loss));
        Some(step.map_or(self.batch_losses.len(), |i| i + 1))
    }

    /// First evaluated step whose training loss is at most `target`.
    pub(crate) fn steps_to(&self, target: f64) -> Option<usize> {
        self.evaluations.iter().find(|e| e.training_loss <= target).map(|e| e.step)
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// All steps are done.
    Finished(Record),
    /// Stopped on request; its checkpoint is on the disk.
    Stopped,
}

/// What a run needs besides its own configuration.
pub(crate) struct Surroundings<'a> {
    /// The job.
    pub(crate) config: &'a Config,
    /// Where checkpoints go; none are kept without it.
    pub(crate) checkpoints: Option<Checkpoints<'a>>,
    /// Where singular values of the directions go.
    pub(crate) spectra: Option<&'a SpectraFile>,
    /// Where the trained parameters go.
    pub(crate) models: Option<&'a Path>,
    /// Whether to stop.
    pub(crate) stop: Stop<'a>,
}

/// Checkpoint policy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoints<'a> {
    /// Directory.
    pub(crate) directory: &'a Path,
    /// Steps between them.
    pub(crate) every: usize,
}

/// Trains from the start, or from the run's checkpoint if there is one; tells `progress` the steps taken and
/// the last batch loss.
///
/// # Errors
/// Of the optimizer or the file system; a checkpoint that does not belong to this run.
pub(crate) fn run(
    around: &Surroundings<'_>,
    row: &OptimizerConfig,
    seed: u64,
    source: &Source,
    mut progress: impl FnMut(usize, f64),
) -> Result<Outcome> {
    let config = around.config;
    let mut state = State::new(config, row, seed, source)?;
    let name = name(row, seed);
    let path = around.checkpoints.map(|c| c.directory.join(format!("{name}.safetensors")));
    if let Some(path) = path.as_ref().filter(|p| p.exists()) {
        state.load(path).with_context(|| {
            format!(
                "the checkpoint {} cannot be gone on with; remove it, and --resume trains this run again from its first \
                 step and keeps the others",
                path.display()
            )
        })?;
    }
    let lr_schedule = config.lr_schedule()?;
    progress(state.step, f64::NAN);
    if state.step == 0 && state.record.evaluations.is_empty() {
        state.evaluate();
    }
    while state.step < config.steps {
        if around.stop.requested() {
            state.save(path.as_deref())?;
            return Ok(Outcome::Stopped);
        }
        let start = Instant::now();
        let loss = state.workload.learn(state.step);
        let learned = start.elapsed().as_secs_f64();
        let lr_factor = lr_schedule.factor(state.step as u64);
        if let Some(spectra) = around.spectra.filter(|s| row.is_muon() && s.due(state.step)) {
            spectra
                .append(&name, state.stepper.spectra(lr_factor, state.workload.params_mut())?)?;
        }
        let before_optimizer = Instant::now();
        state
            .stepper
            .step(lr_factor, state.workload.params_mut())
            .with_context(|| format!("step {}", state.step + 1))?;
        let stepped = before_optimizer.elapsed().as_secs_f64();
        state.record.optimizer_seconds += stepped;
        state.record.step_seconds += learned + stepped;
        state.record.batch_losses.push(loss);
        state.step += 1;
        let last = state.step == config.steps;
        if last || state.step.is_multiple_of(config.evaluate_every) {
            state.evaluate();
        }
        let due = around.checkpoints.is_some_and(|c| state.step.is_multiple_of(c.every));
        if last || due {
            state.save(path.as_deref())?;
        }
        progress(state.step, loss);
    }
    if let Some(models) = around.models {
        state.save_model(&models.join(format!("{name}.safetensors")))?;
    }
    Ok(Outcome::Finished(state.record))
}

/// The name of a run: of its files and its records.
pub(crate) fn name(row: &OptimizerConfig, seed: u64) -> String {
    format!("{}-seed{seed}", row.id())
}

/// Everything that changes during a run.
struct State {
    /// The job, cut down to this run: a checkpoint of another one is refused.
    identity: Config,
    workload: Workload,
    stepper: Stepper,
    step: usize,
    record: Record,
}

impl State {
    fn new(config: &Config, row: &OptimizerConfig, seed: u64, source: &Source) -> Result<Self> {
        let workload = Workload::new(source, config.batch_size, seed)?;
        let stepper = Stepper::new(config, row, workload.params())?;
        let identity =
            Config { seeds: vec![seed], optimizers: vec![row.clone()], ..config.clone() };
        Ok(Self { identity, workload, stepper, step: 0, record: Record::default() })
    }

    fn evaluate(&mut self) {
        let Scores { training_loss, held_out_loss, accuracy } = self.workload.evaluate();
        let step = self.step;
        self.record.evaluations.push(Evaluation { step, training_loss, held_out_loss, accuracy });
    }

    fn save(&mut self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        let mut tensors = Tensors::default();
        for p in self.workload.params() {
            tensors.insert(&format!("model.{}", p.name), Numbers::F32(p.data.clone()));
        }
        self.stepper.save(&mut tensors)?;
        let r = &self.record;
        let of = |f: fn(&Evaluation) -> f64| r.evaluations.iter().map(f).collect();
        tensors.insert("record.step", Numbers::U64(vec![self.step as u64]));
        tensors.insert("record.batch_losses", Numbers::F64(r.batch_losses.clone()));
        let steps = r.evaluations.iter().map(|e| e.step as u64).collect();
        tensors.insert("record.evaluation_steps", Numbers::U64(steps));
        tensors.insert("record.training_losses", Numbers::F64(of(|e| e.training_loss)));
        tensors.insert("record.held_out_losses", Numbers::F64(of(|e| e.held_out_loss)));
        tensors.insert("record.accuracies", Numbers::F64(of(|e| e.accuracy)));
        let seconds = vec![r.step_seconds, r.optimizer_seconds];
        tensors.insert("record.seconds", Numbers::F64(seconds));
        tensors.save(path, &self.identity)
    }

    /// The parameters alone, by the model's names; not of a run that ended in numbers that are none.
    fn save_model(&self, path: &Path) -> Result<()> {
        let params = self.workload.params();
        if !params.iter().flat_map(|p| &p.data).all(|x| x.is_finite()) {
            return Ok(());
        }
        let mut writer = TensorFileWriter::new();
        for p in params {
            writer.values::<f32>(&p.name, &p.shape, &p.data)?;
        }
        let task = match self.identity.task {
            Task::Digits { .. } => "digits",
            Task::Text { .. } => "text",
        };
        writer.metadata("task", task);
        writer.metadata("steps", &self.step.to_string());
        writer.metadata("made_by", concat!("muon ", env!("CARGO_PKG_VERSION")));
        for (row, seed) in self.identity.optimizers.iter().zip(&self.identity.seeds) {
            writer.metadata("optimizer", &row.id());
            writer.metadata("seed", &seed.to_string());
        }
        Ok(writer.save(path)?)
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let tensors = Stored::load(path, &self.identity)?;
        for p in self.workload.params_mut() {
            p.data = tensors.f32(&format!("model.{}", p.name), p.data.len())?;
        }
        self.stepper.load(&tensors)?;
        self.step = usize::try_from(tensors.scalar("record.step")?)?;
        let losses = tensors.any_f64("record.training_losses")?;
        let held_out = tensors.f64("record.held_out_losses", losses.len())?;
        let accuracies = tensors.f64("record.accuracies", losses.len())?;
        let steps = tensors.u64("record.evaluation_steps", losses.len())?;
        let seconds = tensors.f64("record.seconds", 2)?;
        self.record = Record {
            batch_losses: tensors.f64("record.batch_losses", self.step)?,
            evaluations: steps
                .iter()
                .zip(losses.iter().zip(held_out).zip(accuracies))
                .map(|(&step, ((&training_loss, held_out_loss), accuracy))| {
                    let step = usize::try_from(step)?;
                    Ok(Evaluation { step, training_loss, held_out_loss, accuracy })
                })
                .collect::<Result<_>>()?,
            step_seconds: seconds[0],
            optimizer_seconds: seconds[1],
        };
        ensure!(!self.record.evaluations.is_empty(), "it has no evaluation");
        Ok(())
    }
}
