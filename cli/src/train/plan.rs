//! From the command line to a job: names resolved, defaults filled in, nonsense refused.

use std::path::Path;

use anyhow::{Context, Result};
use muon_cuda::CoefficientSchedule;

use super::config::{Config, Kind, MuonMethod, OptimizerConfig};
use super::defaults;
use super::model::Mlp;
use super::optimizer::Stepper;
use crate::args::{DeviceName, OptimizerName, PrecisionName, TrainArgs};
use crate::exit::usage;

/// Steps between evaluations: often enough for the curve, seldom enough not to dominate the time.
const EVALUATE_EVERY: usize = 5;

/// The job that the arguments ask for.
///
/// # Errors
/// A name that is not known, a schedule that cannot be had in that length, a hyper-parameter outside its range.
pub(crate) fn config(args: &TrainArgs) -> Result<Config> {
    let optimizers = kinds(args)?
        .into_iter()
        .map(|kind| {
            let d = defaults::of(&kind);
            OptimizerConfig {
                lr: args.lr.unwrap_or(d.lr),
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
        batch_size: args.batch_size,
        hidden: args.hidden.clone(),
        seeds: (args.seed..=last).collect(),
        lr_schedule: args.lr_schedule,
        evaluate_every: EVALUATE_EVERY,
        device: args.device,
        precision: args.precision,
        threads: args.threads,
        optimizers,
    };
    check(&config)?;
    Ok(config)
}

/// Builds every optimizer once, so that nothing is found out after minutes of training.
fn check(config: &Config) -> Result<()> {
    if config.device == DeviceName::Reference && config.precision != PrecisionName::F32 {
        return Err(usage("device `reference` computes in f64; --precision belongs to `cpu`"));
    }
    // The oracle takes any number it is given; the optimizer says which are out of range.
    let on_cpu = Config { device: DeviceName::Cpu, ..config.clone() };
    for (i, row) in config.optimizers.iter().enumerate() {
        if config.optimizers[..i].iter().any(|other| other.id() == row.id()) {
            return Err(usage(format!("`{row}` is asked for twice")));
        }
        let model = Mlp::new(&config.hidden, 0);
        Stepper::new(&on_cpu, row, &model.params).with_context(|| row.to_string())?;
    }
    config.lr_schedule()?;
    Ok(())
}

fn kinds(args: &TrainArgs) -> Result<Vec<Kind>> {
    let all = [OptimizerName::GradientDescent, OptimizerName::Adamw, OptimizerName::Muon];
    let muon_only = [OptimizerName::Muon];
    let wanted: &[OptimizerName] = match args.optimizer.as_slice() {
        [] if args.schedule.is_empty() && args.iterations.is_none() => &all,
        // Who names a schedule means Muon.
        [] => &muon_only,
        some => some,
    };
    if !wanted.contains(&OptimizerName::Muon)
        && (!args.schedule.is_empty() || args.iterations.is_some())
    {
        return Err(usage("--schedule and --iterations belong to `--optimizer muon`"));
    }
    let mut kinds = Vec::new();
    for name in wanted {
        match name {
            OptimizerName::GradientDescent => kinds.push(Kind::GradientDescent),
            OptimizerName::Adamw => kinds.push(Kind::AdamW),
            OptimizerName::Muon => {
                let named: Vec<&str> = if args.schedule.is_empty() {
                    defaults::SCHEDULES.to_vec()
                } else {
                    args.schedule.iter().map(String::as_str).collect()
                };
                for schedule in named {
                    kinds.push(Kind::Muon { method: method(schedule, args.iterations)? });
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
