//! `muon doctor`: whether the CUDA device can be used here, and what is missing.

use anyhow::Result;

use crate::args::DoctorArgs;
use crate::exit::Ended;

/// Runs the command.
///
/// # Errors
/// Standard output that cannot be written. What is missing is no error: it is the answer.
#[cfg(feature = "cuda")]
pub(crate) fn doctor(args: &DoctorArgs) -> Result<Ended> {
    use std::io::Write as _;

    let diagnosis = muon_cuda::diagnosis::diagnose();
    let usable = diagnosis.is_usable();
    let mut out = crate::output::stdout();
    if args.json {
        let mut value = serde_json::to_value(&diagnosis)?;
        value["usable"] = usable.into();
        writeln!(out, "{value:#}")?;
    } else {
        write!(out, "{}", text(&diagnosis))?;
    }
    Ok(if usable { Ended::Well } else { Ended::CheckFailed })
}

/// Runs the command in a build without the CUDA device.
///
/// # Errors
/// Standard output that cannot be written.
#[cfg(not(feature = "cuda"))]
pub(crate) fn doctor(args: &DoctorArgs) -> Result<Ended> {
    use std::io::Write as _;

    let problem = "this program was built without the feature `cuda`";
    let mut out = crate::output::stdout();
    if args.json {
        writeln!(out, "{:#}", serde_json::json!({ "usable": false, "problem": problem }))?;
    } else {
        writeln!(out, "CUDA device: cannot be used: {problem}")?;
    }
    Ok(Ended::CheckFailed)
}

#[cfg(feature = "cuda")]
fn text(diagnosis: &muon_cuda::diagnosis::Diagnosis) -> String {
    let mut lines = Vec::new();
    let parts = [
        ("driver", &diagnosis.driver),
        ("NVRTC", &diagnosis.nvrtc),
        ("cublasLt", &diagnosis.cublas_lt),
    ];
    for (name, part) in parts {
        let mut line = format!("{name:<13}");
        let version = part.version.as_deref();
        if let Some(version) = version {
            let what = if name == "driver" { "CUDA " } else { "" };
            line.push_str(&format!("{what}{version}"));
        }
        if let Some(path) = &part.path {
            line.push_str(&format!("  {}", path.display()));
        }
        if let Some(problem) = &part.problem {
            let separator = if version.is_some() { "\n             " } else { "" };
            line.push_str(&format!("{separator}MISSING: {problem}"));
        }
        lines.push(line);
    }
    if diagnosis.devices.is_empty() {
        lines.push(format!("{:<13}none", "devices"));
    }
    for device in &diagnosis.devices {
        let gib = device.memory_bytes as f64 / f64::from(1 << 30);
        let mut line = format!(
            "{:<13}{}, compute capability {}, {gib:.1} GiB",
            format!("cuda:{}", device.ordinal),
            device.name,
            device.compute_capability,
        );
        for product in &device.products {
            line.push_str(&format!(
                "\n             cublasLt multiplies {} ({} bytes of workspace, {:.2} waves)",
                product.precision, product.workspace_bytes, product.waves
            ));
        }
        if let Some(problem) = &device.problem {
            line.push_str(&format!("\n             NOT USABLE: {problem}"));
        }
        lines.push(line);
    }
    let cache = &diagnosis.kernel_cache;
    let mut line = match &cache.directory {
        Some(directory) => {
            format!("{:<13}{} ({} entries)", "kernel cache", directory.display(), cache.entries)
        }
        None => format!("{:<13}off: kernels are compiled at every start", "kernel cache"),
    };
    if let Some(problem) = &cache.problem {
        line.push_str(&format!("\n             NOT WRITABLE: {problem}"));
    }
    lines.push(line);
    for warning in &diagnosis.warnings {
        let (variable, value) = (warning.variable, warning.value.escape_debug());
        lines.push(format!("{:<13}{variable}={value} is set: {}", "warning", warning.effect));
    }
    let usable = diagnosis.devices.iter().filter(|device| device.problem.is_none());
    let usable: Vec<String> = usable.map(|device| format!("cuda:{}", device.ordinal)).collect();
    lines.push(if !diagnosis.is_usable() {
        "The CUDA device cannot be used; the CPU device can.".to_owned()
    } else if usable.len() < diagnosis.devices.len() {
        format!("Of the CUDA devices {} can be used.", usable.join(", "))
    } else {
        "The CUDA device can be used.".to_owned()
    });
    lines.join("\n") + "\n"
}
