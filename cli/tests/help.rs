//! What a newcomer reads: help, version, completions.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failed test")]

mod support;

use std::path::Path;

use support::{muon, ok};

const COMMANDS: [&str; 9] = [
    "train",
    "schedules",
    "tune",
    "orthogonalize",
    "compare",
    "verify",
    "plan",
    "doctor",
    "completions",
];

#[test]
fn every_command_explains_itself_with_examples_and_exit_codes() {
    let here = Path::new(".");
    let top = ok(here, &["--help"]).out;
    assert!(top.contains("Exit codes:") && top.contains("Start here:"), "{top}");
    for command in COMMANDS {
        assert!(top.contains(command), "{command} is missing from\n{top}");
        let help = ok(here, &[command, "--help"]).out;
        for part in ["Examples:", "Exit codes:", "Usage: muon", &format!("muon {command}")] {
            assert!(help.contains(part), "{command}: no {part} in\n{help}");
        }
        // A paragraph before the usage line, not a stub.
        let usage = help.find("Usage:").expect("usage");
        assert!(help[..usage].split_whitespace().count() > 15, "{help}");
        // -h is the short form.
        assert!(ok(here, &[command, "-h"]).out.len() < help.len(), "{command}");
    }
}

#[test]
fn version_and_missing_or_unknown_commands() {
    let here = Path::new(".");
    assert_eq!(ok(here, &["--version"]).out.trim(), concat!("muon ", env!("CARGO_PKG_VERSION")));
    let nothing = muon(here, &[]);
    assert_eq!(nothing.code, Some(2));
    assert!(nothing.err.contains("muon train"), "{}", nothing.err);
    let typo = muon(here, &["trian"]);
    assert_eq!(typo.code, Some(2));
    assert!(typo.err.contains("train"), "{}", typo.err);
}

#[test]
fn completions_for_every_shell_know_the_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = ok(Path::new("."), &["completions", shell]).out;
        for word in ["train", "orthogonalize", "lr-grid"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert_eq!(muon(Path::new("."), &["completions", "tcsh"]).code, Some(2));
}
