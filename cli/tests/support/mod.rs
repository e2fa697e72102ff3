//! Runs the built program and looks at what it said.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test binary uses a part of it, and a failure here is a failed test"
)]

use std::path::Path;
use std::process::{Command, Output};

/// The program with these arguments, in that directory.
pub(crate) fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muon"));
    command.current_dir(dir).args(args).env_remove("COLUMNS");
    command
}

/// What a finished program said.
pub(crate) struct Said {
    /// Exit code.
    pub(crate) code: Option<i32>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

/// Runs the program to its end.
pub(crate) fn muon(dir: &Path, args: &[&str]) -> Said {
    said(command(dir, args).output().unwrap())
}

/// Runs the program and expects success.
pub(crate) fn ok(dir: &Path, args: &[&str]) -> Said {
    let said = muon(dir, args);
    assert_eq!(said.code, Some(0), "{args:?}: {}{}", said.out, said.err);
    said
}

pub(crate) fn said(output: Output) -> Said {
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A small deterministic training job, a second long at most.
pub(crate) const TINY: &[&str] = &[
    "--steps",
    "40",
    "--batch-size",
    "32",
    "--hidden",
    "16,12",
    "--checkpoint-every",
    "10",
    "--quiet",
];

/// `train` with the tiny job's options and more.
pub(crate) fn tiny<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["train"], TINY, more].concat()
}

/// The same for `--lr-grid` and `--sweep`, which have no checkpoints.
pub(crate) fn tiny_search<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let of_checkpoints = TINY.iter().position(|a| *a == "--checkpoint-every").unwrap();
    let mut args = tiny(more);
    args.drain(1 + of_checkpoints..3 + of_checkpoints);
    args
}

/// `metrics.json` of a directory without the part that differs between executions.
pub(crate) fn metrics(dir: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(dir.join("metrics.json")).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(value.as_object_mut().unwrap().remove("timing").is_some());
    value
}
