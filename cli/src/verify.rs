//! `muon verify`: replays recorded optimizer trajectories on a device and compares.

use std::io::Write as _;

use anyhow::Result;
use muon_cuda::verify::{Against, CaseResult, OptimizerKind, Target, Trajectories, VerifyOptions};
use serde_json::json;

use crate::args::{AgainstName, ElementName, PrecisionName, VerifyArgs};
use crate::devices::DeviceName;
use crate::exit::{Ended, usage};
use crate::tables::table;

/// Runs the command.
///
/// # Errors
/// Of the arguments, the recording, or the library; a case that misses its tolerance is no error.
pub(crate) fn verify(args: &VerifyArgs) -> Result<Ended> {
    if let Some(t) = args.tolerance.filter(|t| !(*t > 0.0 && t.is_finite())) {
        return Err(usage(format!("--tolerance: expected a positive number, found `{t}`")));
    }
    let target = target(args)?;
    let against = match args.against {
        AgainstName::F64 => Against::F64,
        AgainstName::Bf16ns => Against::Bf16,
    };
    let trajectories = Trajectories::load(&args.trajectories)?;
    if trajectories.optimizer() == OptimizerKind::AdamW {
        refuse_what_adamw_lacks(args)?;
    }
    let momentum_dtype = args.momentum_dtype.into();
    let options = VerifyOptions { target, against, momentum_dtype, tolerance: args.tolerance };
    let session = args.device.open()?;
    let cases = trajectories.verify(&options)?;
    let ended = session.close(Ended::Well)?;
    let failed = cases.iter().filter(|c| !c.passed()).count();
    if args.json {
        print_json(&trajectories, args, &options, &cases)?;
    } else {
        print_table(&trajectories, args, &options, &cases)?;
    }
    Ok(if failed == 0 { ended } else { Ended::CheckFailed })
}

/// AdamW orthogonalizes nothing and keeps its moments in f32.
fn refuse_what_adamw_lacks(args: &VerifyArgs) -> Result<()> {
    let given = [
        ("--precision", args.precision != PrecisionName::F32),
        ("--momentum-dtype", args.momentum_dtype != ElementName::F32),
        ("--against bf16ns", args.against != AgainstName::F64),
    ];
    match given.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => Err(usage(format!(
            "{} is a recording of AdamW, which {option} does not concern; leave it out",
            args.trajectories.display()
        ))),
    }
}

fn target(args: &VerifyArgs) -> Result<Target> {
    let precision = args.precision.into();
    match args.device {
        DeviceName::Reference if args.precision == PrecisionName::F32 => Ok(Target::Reference),
        DeviceName::Reference => {
            Err(usage("device `reference` computes in f64; --precision belongs to the others"))
        }
        DeviceName::Cpu => Ok(Target::Cpu {
            precision,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }),
        #[cfg(feature = "cuda")]
        DeviceName::Cuda(gpu) => Ok(Target::Cuda { precision, ordinal: gpu.ordinal() }),
    }
}

fn print_table(
    trajectories: &Trajectories,
    args: &VerifyArgs,
    options: &VerifyOptions,
    cases: &[CaseResult],
) -> Result<()> {
    let mut table = table(["case", "shape", "error", "tolerance", "to bf16", "recorded bf16", ""]);
    let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.2e}"));
    for c in cases {
        table.add_row([
            c.name.clone(),
            c.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × "),
            format!("{:.2e}", c.error),
            format!("{:.1e}", c.tolerance),
            number(c.error_bf16),
            number(c.recorded_distance),
            if c.passed() { "ok".into() } else { "FAILED".into() },
        ]);
    }
    let mut stdout = crate::output::stdout();
    writeln!(
        stdout,
        "{} recorded with {}, replayed on {}\n{table}",
        name(trajectories.optimizer()),
        trajectories.framework(),
        target_name(args, options)
    )?;
    for c in cases {
        for check in c.checks.iter().filter(|check| !check.held) {
            writeln!(stdout, "{}: does not hold: {}", c.name, check.what)?;
        }
    }
    let passed = cases.iter().filter(|c| c.passed()).count();
    writeln!(
        stdout,
        "{passed} of {} cases hold; relative errors of the whole update",
        cases.len(),
    )?;
    Ok(())
}

fn print_json(
    trajectories: &Trajectories,
    args: &VerifyArgs,
    options: &VerifyOptions,
    cases: &[CaseResult],
) -> Result<()> {
    let document = json!({
        "optimizer": name(trajectories.optimizer()),
        "framework": trajectories.framework(),
        "target": target_name(args, options),
        "tolerance": tolerance(trajectories, options),
        "passed": cases.iter().all(CaseResult::passed),
        "cases": cases.iter().map(|c| json!({
            "name": c.name,
            "shape": c.shape,
            "error": c.error,
            "tolerance": c.tolerance,
            "error_to_bf16": c.error_bf16,
            "recorded_bf16_distance": c.recorded_distance,
            "momentum_error": c.momentum_error,
            "passed": c.passed(),
            "checks": c.checks.iter().map(|k| json!({ "what": k.what, "held": k.held }))
                .collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    writeln!(crate::output::stdout(), "{}", serde_json::to_string_pretty(&document)?)?;
    Ok(())
}

/// The device as it was asked for: the library does not know that a GPU is emulated.
fn target_name(args: &VerifyArgs, options: &VerifyOptions) -> String {
    match options.target.precision() {
        Some(precision) => format!("{}, {precision}", args.device),
        None => args.device.to_string(),
    }
}

fn tolerance(trajectories: &Trajectories, options: &VerifyOptions) -> f64 {
    options.tolerance.unwrap_or_else(|| options.default_tolerance(trajectories.optimizer()))
}

fn name(kind: OptimizerKind) -> &'static str {
    match kind {
        OptimizerKind::Muon => "Muon",
        OptimizerKind::AdamW => "AdamW",
    }
}
