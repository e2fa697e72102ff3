//! A program on cust 0.3.2, which links libcuda when it is built: built against the emulated library,
//! run under many seeds, with the environment as its only contact with the emulator.
//!
//! `CUDA_EMULATOR_SKIP_CUST=1` skips it where cust cannot be downloaded.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::panic,
    reason = "a test fails by panicking and reports what it measured"
)]

mod seeded;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Builds the program; its path and that of the directory with libcuda.
fn build() -> Option<(PathBuf, PathBuf)> {
    if std::env::var_os("CUDA_EMULATOR_SKIP_CUST").is_some() {
        return None;
    }
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cust");
    let libraries = root.join("toolkit/lib64");
    std::fs::create_dir_all(&libraries).unwrap();
    let executable = std::env::current_exe().unwrap();
    let built = executable.ancestors().skip(1).take(2).find_map(|directory| {
        let file = directory.join("libcuda_emulator_libcuda.so");
        file.is_file().then_some(file)
    });
    for name in ["libcuda.so", "libcuda.so.1"] {
        let link = libraries.join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(built.as_ref().unwrap(), link).unwrap();
    }
    let output = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/cust-program/Cargo.toml"))
        .arg("--target-dir")
        .arg(root.join("target"))
        .env("CUDA_LIBRARY_PATH", root.join("toolkit"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some((root.join("target/debug/cust-program"), libraries))
}

fn run(program: &Path, libraries: &Path, variables: &[(&str, &str)]) -> (Output, String) {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let text = text.into_owned();
    (output, text)
}

#[test]
fn a_cust_program_runs_under_every_seed_and_its_environment_decides() {
    let Some((program, libraries)) = build() else { return };
    let counters = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cust/counters.json");
    for seed in seeded::SEEDS {
        let (seed, file) = (seed.to_string(), counters.to_str().unwrap());
        let variables = [("CUDA_EMULATOR_SEED", seed.as_str()), ("CUDA_EMULATOR_COUNTERS", file)];
        let (output, text) = run(&program, &libraries, &variables);
        assert!(output.status.success() && output.stderr.is_empty(), "seed {seed}: {text}");
        assert!(text.contains("Emulated H100") && text.ends_with("ok\n"), "{text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&counters).unwrap()).unwrap();
    assert_eq!(json["kernels"]["saxpy"]["launches"], 1);
    assert_eq!(json["live_bytes"], 0);
    let (output, text) = run(&program, &libraries, &[("CUDA_EMULATOR_FAIL", "launch:1:719")]);
    assert!(!output.status.success(), "{text}");
    let (output, text) = run(&program, &libraries, &[("CUDA_EMULATOR_MEMORY_LIMIT", "4000")]);
    assert!(!output.status.success() && text.contains("OutOfMemory"), "{text}");
    let (_, text) = run(&program, &libraries, &[("CUDA_EMULATOR_DEVICES", "a100")]);
    assert!(text.contains("Emulated A100"), "{text}");
}
