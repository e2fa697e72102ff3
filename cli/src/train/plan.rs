//! From the command line to a job: names resolved, defaults filled in, nonsense refused.

use std::path::Path;

use anyhow::{Context, Result};
use muon_cuda::CoefficientSchedule;

use super::config::{Config, Job, Kept, Kind, MuonMethod, OptimizerConfig, Task};
use super::defaults;
use super::layer_schedules;
use super::optimizer::Stepper;
use super::size;
use super::spectra;
use super::sweep;
use super::text;
use super::transformer::TransformerShape;
use super::workload::{Source, Workload};
use crate::args::{OptimizerName, PrecisionName, TaskName, TrainArgs, take};
use crate::devices::DeviceName;
use crate::exit::usage;

/// Steps between evaluations: often enough for the curve, seldom enough not to dominate the time.
fn evaluate_every(task: &Task) -> usize {
    match task {
        Task::Digits { .. } => 5,
        Task::Text { .. } => 25,
    }
}

/// What the arguments ask for.
#[derive(Debug)]
pub(crate) enum Planned {
    /// Every optimizer once for each seed.
    Compare(Job),
    /// Every learning rate of every grid.
    Grid(Config),
    /// Optimizers × learning rates × seeds.
    Sweep(Config, Comparison),
}

/// What a sweep compares.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// For every optimizer; without any each one's grid.
    pub(crate) lrs: Vec<f64>,
    /// The id of the optimizer that the others are compared with.
    pub(crate) baseline: String,
    /// Nats.
    pub(crate) margin: f64,
}

/// The job that the arguments ask for.
///
/// # Errors
/// A name that is not known, a schedule that cannot be had in that length, a hyper-parameter outside its range, an
/// option that the job does not use.
pub(crate) fn job(args: &TrainArgs) -> Result<Planned> {
    let (grid, sweep) = (*take!(args, lr_grid), *take!(args, sweep));
    take_manners(args);
    // A grid has learning rates of its own.
    let lrs: &[f64] = if grid { &[] } else { take!(args, lr) };
    let config = config(args, lrs, sweep)?;
    let name = if sweep {
        "this sweep"
    } else if grid {
        "this grid"
    } else {
        "this job"
    };
    let job = format!("{name} ({})", describe(&config));
    let planned = if sweep {
        let comparison = comparison(args, &config, lrs)?;
        Planned::Sweep(only_ends(config), comparison)
    } else if grid {
        Planned::Grid(only_ends(config))
    } else {
        let kept = kept(args, &config)?;
        Planned::Compare(Job { config, kept })
    };
    args.given.refuse_the_rest(&job)?;
    check(planned.config(), lrs)?;
    Ok(planned)
}

/// Options of every job: where its output goes, how much it says, and how many runs there are at a time.
pub(crate) fn take_manners(args: &TrainArgs) {
    for (id, _) in MANNERS {
        args.given.take(id);
    }
}

/// Options that change no run and are not recorded, with the reason.
pub(crate) const MANNERS: [(&str, &str); 5] = [
    ("out", "says where the output is, which may be moved"),
    ("force", "says what may be replaced, once"),
    ("json", "says how the results are printed"),
    ("quiet", "says how much is printed"),
    ("jobs", "runs at the same time do not know of one another"),
];

/// Only the end of a run is compared.
fn only_ends(config: Config) -> Config {
    Config { evaluate_every: config.steps, ..config }
}

impl Planned {
    /// What decides its numbers.
    pub(crate) fn config(&self) -> &Config {
        match self {
            Self::Compare(Job { config, .. }) | Self::Grid(config) | Self::Sweep(config, _) => {
                config
            }
        }
    }
}

/// What decides the numbers of the job. Every option is taken where it decides some of them, and only there.
fn config(args: &TrainArgs, lrs: &[f64], sweep: bool) -> Result<Config> {
    let device = *take!(args, device);
    let kinds = kinds(args)?;
    let task = task(args)?;
    let lr = match lrs {
        [] => None,
        [lr] => Some(*lr),
        // A sweep replaces it by each one in turn.
        [first, ..] if sweep => Some(*first),
        several => {
            return Err(usage(format!(
                "--lr: expected one learning rate, found {}; --sweep compares several",
                several.len()
            )));
        }
    };
    let (momentum, weight_decay) = (take!(args, momentum), take!(args, weight_decay));
    let stores_an_iterate = kinds.iter().any(Kind::stores_an_iterate);
    let optimizers = kinds
        .into_iter()
        .map(|kind| {
            let d = defaults::of(&kind, &task);
            let head_lr = match kind {
                Kind::Muon { .. } => *take!(args, head_lr),
                Kind::GradientDescent | Kind::AdamW => None,
            };
            OptimizerConfig {
                lr: lr.unwrap_or(d.lr),
                momentum: momentum.unwrap_or(d.momentum),
                weight_decay: weight_decay.unwrap_or(d.weight_decay),
                adamw_lr: head_lr.unwrap_or(defaults::HEAD_LR),
                kind,
            }
        })
        .collect();
    let (seed, seeds) = (*take!(args, seed), *take!(args, seeds));
    let last = seed.checked_add(seeds as u64 - 1);
    let last = last.ok_or_else(|| usage("--seed and --seeds: the last seed is too large"))?;
    Ok(Config {
        steps: *take!(args, steps),
        batch_size: take!(args, batch_size).unwrap_or(defaults::batch_size(&task)),
        seeds: (seed..=last).collect(),
        lr_schedule: *take!(args, lr_schedule),
        evaluate_every: evaluate_every(&task),
        task,
        device,
        precision: if stores_an_iterate { precision(args) } else { device.default_precision() },
        threads: match device {
            DeviceName::Cpu => *take!(args, threads),
            _ => args.threads,
        },
        optimizers,
    })
}

/// What an iterate is stored in: as asked, else as the device does it. The oracle computes in f64 whatever is asked.
fn precision(args: &TrainArgs) -> PrecisionName {
    let asked = match args.device {
        DeviceName::Reference => None,
        _ => *take!(args, precision),
    };
    asked.unwrap_or(args.device.default_precision())
}

/// What the job leaves behind.
fn kept(args: &TrainArgs, config: &Config) -> Result<Kept> {
    let orthogonalizes = config.optimizers.iter().any(OptimizerConfig::is_muon);
    let spectra = if orthogonalizes && config.device != DeviceName::Reference {
        take!(args, record_spectra).as_deref()
    } else {
        None
    };
    let spectra =
        spectra.map(|file| spectra::plan(file, *take!(args, spectra_every))).transpose()?;
    Ok(Kept {
        checkpoint_every: *take!(args, checkpoint_every),
        spectra,
        save_model: *take!(args, save_model),
    })
}

fn comparison(args: &TrainArgs, config: &Config, lrs: &[f64]) -> Result<Comparison> {
    let margin = *take!(args, margin);
    if config.seeds.len() < 2 {
        return Err(usage("--sweep compares pairs over seeds; ask for at least 2 with --seeds"));
    }
    if !(margin.is_finite() && margin >= 0.0) {
        return Err(usage(format!(
            "--margin: expected a finite number of at least 0, found `{margin}`"
        )));
    }
    let baseline = sweep::baseline(config, take!(args, baseline).as_deref())?;
    Ok(Comparison { lrs: lrs.to_vec(), baseline, margin })
}

/// The job in a few words, for the refusal of what it does not use.
fn describe(config: &Config) -> String {
    let task = match config.task {
        Task::Digits { .. } => "digits",
        Task::Text { .. } => "text",
    };
    let rows: Vec<String> = config.optimizers.iter().map(ToString::to_string).collect();
    format!("task {task}, device {}, {}", config.device, rows.join(", "))
}

/// The task, with what its own options say about it.
fn task(args: &TrainArgs) -> Result<Task> {
    let asked = take!(args, task).unwrap_or(match args.text {
        Some(_) => TaskName::Text,
        None => TaskName::Digits,
    });
    match asked {
        TaskName::Digits => {
            let hidden = take!(args, hidden);
            let hidden = if hidden.is_empty() { defaults::HIDDEN.to_vec() } else { hidden.clone() };
            Ok(Task::Digits { hidden })
        }
        TaskName::Text => {
            let d = defaults::TRANSFORMER;
            let model = TransformerShape {
                width: take!(args, width).unwrap_or(d.width),
                layers: take!(args, layers).unwrap_or(d.layers),
                heads: take!(args, heads).unwrap_or(d.heads),
                context: take!(args, context).unwrap_or(d.context),
            };
            if !model.width.is_multiple_of(model.heads) {
                return Err(usage(format!(
                    "--heads: expected a divisor of the width {}, found {}",
                    model.width, model.heads
                )));
            }
            let text =
                text::identify(take!(args, text).as_deref(), model.context.saturating_add(1))?;
            Ok(Task::Text { text, model })
        }
    }
}

/// Builds every optimizer once, so that nothing is found out after minutes of training.
fn check(config: &Config, lrs: &[f64]) -> Result<()> {
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
        refuse_growth(row)?;
        Stepper::new(&on_cpu, row, workload.params()).with_context(|| row.to_string())?;
    }
    let Some(first) = config.optimizers.first() else { return Ok(()) };
    for (i, lr) in lrs.iter().enumerate() {
        if lrs[..i].contains(lr) {
            return Err(usage(format!("--lr names `{lr}` twice")));
        }
        let row = OptimizerConfig { lr: *lr, ..first.clone() };
        refuse_growth(&row)?;
        Stepper::new(&on_cpu, &row, workload.params()).with_context(|| row.to_string())?;
    }
    config.lr_schedule()?;
    Ok(())
}

/// A step refuses a decay that makes parameters grow. Here that is known before anything runs.
fn refuse_growth(row: &OptimizerConfig) -> Result<()> {
    if row.lr * row.weight_decay > 2.0 {
        return Err(usage(format!(
            "{row}: the learning rate {} times the weight decay {} is more than 2, so a step would multiply parameters by \
             less than -1, and they would grow; make one of the two smaller (--lr, --weight-decay)",
            row.lr, row.weight_decay
        )));
    }
    Ok(())
}

fn kinds(args: &TrainArgs) -> Result<Vec<Kind>> {
    let all = [OptimizerName::GradientDescent, OptimizerName::Adamw, OptimizerName::Muon];
    let muon_only = [OptimizerName::Muon];
    let named =
        !args.schedule.is_empty() || !args.schedules.is_empty() || args.iterations.is_some();
    let wanted: &[OptimizerName] = match take!(args, optimizer).as_slice() {
        [] if !named => &all,
        // Who names a schedule means Muon.
        [] => &muon_only,
        some => some,
    };
    let mut kinds = Vec::new();
    for name in wanted {
        match name {
            OptimizerName::GradientDescent => kinds.push(Kind::GradientDescent),
            OptimizerName::Adamw => kinds.push(Kind::AdamW),
            OptimizerName::Muon => {
                let (schedules, tables) = (take!(args, schedule), take!(args, schedules));
                let named: Vec<&str> = if schedules.is_empty() && tables.is_empty() {
                    defaults::schedules(precision(args).into()).to_vec()
                } else {
                    schedules.iter().map(String::as_str).collect()
                };
                for schedule in named {
                    kinds.push(Kind::Muon { method: method(schedule, args)? });
                }
                for table in tables {
                    kinds.push(Kind::Muon { method: layer_schedules::load(table)? });
                }
            }
        }
    }
    Ok(kinds)
}

fn method(schedule: &str, args: &TrainArgs) -> Result<MuonMethod> {
    if schedule == "exact" && !Path::new(schedule).exists() {
        return Ok(MuonMethod::ExactSvd);
    }
    let schedule = CoefficientSchedule::preset_or_file(schedule)?;
    let schedule = match take!(args, iterations) {
        Some(n) => schedule.with_iterations(*n)?,
        None => schedule,
    };
    Ok(MuonMethod::from_schedule(&schedule))
}
