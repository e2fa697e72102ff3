//! From the command line to a job: names resolved, defaults filled in, nonsense refused.

use std::path::Path;

use anyhow::{Context, Result};
use muon_cuda::CoefficientSchedule;

use super::config::{Config, Kind, MuonMethod, OptimizerConfig, Task};
use super::defaults;
use super::layer_schedules;
use super::optimizer::Stepper;
use super::size;
use super::text;
use super::transformer::TransformerShape;
use super::workload::{Source, Workload};
use crate::args::{OptimizerName, PrecisionName, TaskName, TrainArgs};
use crate::devices::DeviceName;
use crate::exit::usage;

/// Steps between evaluations: often enough for the curve, seldom enough not to dominate the time.
fn evaluate_every(task: &Task) -> usize {
    match task {
        Task::Digits { .. } => 5,
        Task::Text { .. } => 25,
    }
}

/// The job that the arguments ask for.
///
/// # Errors
/// A name that is not known, a schedule that cannot be had in that length, a hyper-parameter outside its range.
pub(crate) fn config(args: &TrainArgs) -> Result<Config> {
    let kinds = kinds(args)?;
    let task = task(args)?;
    let lr = match args.lr.as_slice() {
        [] => None,
        [lr] => Some(*lr),
        // A sweep replaces it by each one in turn.
        [first, ..] if args.sweep => Some(*first),
        several => {
            return Err(usage(format!(
                "--lr: expected one learning rate, found {}; --sweep compares several",
                several.len()
            )));
        }
    };
    let optimizers = kinds
        .into_iter()
        .map(|kind| {
            let d = defaults::of(&kind, &task);
            OptimizerConfig {
                lr: lr.unwrap_or(d.lr),
                momentum: args.momentum.unwrap_or(d.momentum),
                weight_decay: args.weight_decay.unwrap_or(d.weight_decay),
                adamw_lr: args.head_lr.unwrap_or(defaults::HEAD_LR),
                kind,
            }
        })
        .collect();
    let last = args.seed.checked_add(args.seeds as u64 - 1);
    let last = last.ok_or_else(|| usage("--seed and --seeds: the last seed is too large"))?;
    let config = Config {
        steps: args.steps,
        batch_size: args.batch_size.unwrap_or(defaults::batch_size(&task)),
        seeds: (args.seed..=last).collect(),
        lr_schedule: args.lr_schedule,
        evaluate_every: evaluate_every(&task),
        task,
        device: args.device,
        precision: precision(args),
        threads: args.threads,
        optimizers,
    };
    check(&config, &args.lr)?;
    Ok(config)
}

/// What the iterate is stored in: as asked, else as the device does it.
fn precision(args: &TrainArgs) -> PrecisionName {
    args.precision.unwrap_or(args.device.default_precision())
}

/// The task, with what its own options say about it.
fn task(args: &TrainArgs) -> Result<Task> {
    let asked = args.task.unwrap_or(match args.text {
        Some(_) => TaskName::Text,
        None => TaskName::Digits,
    });
    let set = |name: &'static str, given: bool| given.then_some(name);
    match asked {
        TaskName::Digits => {
            let foreign = [
                set("--text", args.text.is_some()),
                set("--width", args.width.is_some()),
                set("--layers", args.layers.is_some()),
                set("--heads", args.heads.is_some()),
                set("--context", args.context.is_some()),
            ];
            if let Some(name) = foreign.into_iter().flatten().next() {
                return Err(usage(format!("{name} belongs to `--task text`")));
            }
            let hidden = if args.hidden.is_empty() {
                defaults::HIDDEN.to_vec()
            } else {
                args.hidden.clone()
            };
            Ok(Task::Digits { hidden })
        }
        TaskName::Text => {
            if !args.hidden.is_empty() {
                return Err(usage("--hidden belongs to `--task digits`"));
            }
            let d = defaults::TRANSFORMER;
            let model = TransformerShape {
                width: args.width.unwrap_or(d.width),
                layers: args.layers.unwrap_or(d.layers),
                heads: args.heads.unwrap_or(d.heads),
                context: args.context.unwrap_or(d.context),
            };
            if !model.width.is_multiple_of(model.heads) {
                return Err(usage(format!(
                    "--heads: expected a divisor of the width {}, found {}",
                    model.width, model.heads
                )));
            }
            let text = text::identify(args.text.as_deref(), model.context.saturating_add(1))?;
            Ok(Task::Text { text, model })
        }
    }
}

/// Builds every optimizer once, so that nothing is found out after minutes of training.
fn check(config: &Config, lrs: &[f64]) -> Result<()> {
    if config.device == DeviceName::Reference && config.precision != PrecisionName::F32 {
        return Err(usage("device `reference` computes in f64; --precision belongs to the others"));
    }
    // The oracle takes any number it is given; the optimizer says which are out of range.
    size::check(&config.task, config.batch_size)?;
    let workload = Workload::new(&Source::load(&config.task)?, config.batch_size, 0)?;
    let (samples, _) = workload.sizes();
    if matches!(config.task, Task::Digits { .. }) && config.batch_size > samples {
        return Err(usage(format!(
            "--batch-size: expected at most the {samples} samples that there are to train on, found {}",
            config.batch_size
        )));
    }
    let on_cpu = Config { device: DeviceName::Cpu, ..config.clone() };
    for (i, row) in config.optimizers.iter().enumerate() {
        if config.optimizers[..i].iter().any(|other| other.id() == row.id()) {
            return Err(usage(format!("`{row}` is asked for twice")));
        }
        Stepper::new(&on_cpu, row, workload.params()).with_context(|| row.to_string())?;
    }
    let Some(first) = config.optimizers.first() else { return Ok(()) };
    for (i, lr) in lrs.iter().enumerate() {
        if lrs[..i].contains(lr) {
            return Err(usage(format!("--lr names `{lr}` twice")));
        }
        let row = OptimizerConfig { lr: *lr, ..first.clone() };
        Stepper::new(&on_cpu, &row, workload.params()).with_context(|| row.to_string())?;
    }
    config.lr_schedule()?;
    Ok(())
}

fn kinds(args: &TrainArgs) -> Result<Vec<Kind>> {
    let all = [OptimizerName::GradientDescent, OptimizerName::Adamw, OptimizerName::Muon];
    let muon_only = [OptimizerName::Muon];
    let named =
        !args.schedule.is_empty() || !args.schedules.is_empty() || args.iterations.is_some();
    let wanted: &[OptimizerName] = match args.optimizer.as_slice() {
        [] if !named => &all,
        // Who names a schedule means Muon.
        [] => &muon_only,
        some => some,
    };
    if named && !wanted.contains(&OptimizerName::Muon) {
        return Err(usage("--schedule, --schedules and --iterations belong to `--optimizer muon`"));
    }
    let mut kinds = Vec::new();
    for name in wanted {
        match name {
            OptimizerName::GradientDescent => kinds.push(Kind::GradientDescent),
            OptimizerName::Adamw => kinds.push(Kind::AdamW),
            OptimizerName::Muon => {
                let named: Vec<&str> = if args.schedule.is_empty() && args.schedules.is_empty() {
                    defaults::schedules(precision(args).into()).to_vec()
                } else {
                    args.schedule.iter().map(String::as_str).collect()
                };
                for schedule in named {
                    kinds.push(Kind::Muon { method: method(schedule, args.iterations)? });
                }
                for table in &args.schedules {
                    kinds.push(Kind::Muon { method: layer_schedules::load(table)? });
                }
            }
        }
    }
    Ok(kinds)
}

fn method(schedule: &str, iterations: Option<usize>) -> Result<MuonMethod> {
    if schedule == "exact" && !Path::new(schedule).exists() {
        return Ok(MuonMethod::ExactSvd);
    }
    let schedule = CoefficientSchedule::preset_or_file(schedule)?;
    let schedule = match iterations {
        Some(n) => schedule.with_iterations(n)?,
        None => schedule,
    };
    Ok(MuonMethod::from_schedule(&schedule))
}
