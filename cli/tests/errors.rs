//! Every mistake has one clear line and the right exit code, and nothing is written.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::fs;

use support::{muon, tiny};

#[test]
fn nonsense_is_refused_before_anything_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["schedules", "jordon"], 2, "`jordon` is not known; did you mean `jordan`?"),
        (&["schedules", "--plot", "a.svg"], 2, "--plot shows one schedule"),
        (&["schedules", "jordan", "--plot", "a.gif"], 2, "a plot ends in .svg or .png"),
        (&["schedules", "missing.toml"], 1, "missing.toml"),
        (&["train", "--schedule", "polar_expres_5"], 2, "did you mean `polar_express_5`?"),
        (&["train", "--schedule", "you", "--iterations", "4"], 2, "exactly 5 iterations"),
        (&["train", "--schedule", "jordan", "--iterations", "0"], 2, "at least one iteration"),
        (
            &["train", "--optimizer", "adamw", "--schedule", "jordan"],
            2,
            "--schedule is not used by this job",
        ),
        (&["train", "--schedule", "you", "--schedule", "you"], 2, "asked for twice"),
        (&["train", "--optimizer", "muno"], 2, "muno"),
        (
            &["train", "--lr=-1"],
            2,
            "lr: expected a number of at least 0 and at most 2^64 (1.8e19), found `-1`",
        ),
        (&["train", "--lr", "NaN"], 2, "found `NaN`"),
        (&["train", "--momentum", "1"], 2, "momentum: expected a number in [0, 1)"),
        (&["train", "--weight-decay=-0.1"], 2, "weight_decay"),
        (&["train", "--lr=-1", "--device", "reference"], 2, "found `-1`"),
        (
            &["train", "--lr", "-1"],
            2,
            "lr: expected a number of at least 0 and at most 2^64 (1.8e19), found `-1`",
        ),
        (
            &["train", "--head-lr", "-1e-3"],
            2,
            "lr: expected a number of at least 0 and at most 2^64 (1.8e19), found `-0.001`",
        ),
        (&["train", "--weight-decay", "-0.1"], 2, "weight_decay"),
        (&["train", "--momentum", "-1"], 2, "momentum: expected a number in [0, 1)"),
        (
            &["train", "--lr", "-inf"],
            2,
            "lr: expected a number of at least 0 and at most 2^64 (1.8e19), found `-inf`",
        ),
        (&["train", "--steps", "-1"], 2, "expected a whole number"),
        (
            &["train", "--sweep", "--seeds", "2", "--margin", "-1"],
            2,
            "--margin: expected a finite number of at least 0",
        ),
        (&["train", "--sweep", "--seeds", "2", "--lr", "-1,0.1"], 2, "found `-1`"),
        (&["tune", "--aspect", "-4"], 2, "--aspect must be finite and at least 1"),
        (&["tune", "--max-cost", "-4"], 2, "--max-cost must be finite and at least 0"),
        (&["verify", "a.json", "--tolerance", "-1"], 2, "expected a positive number"),
        (
            &["train", "--device", "reference", "--precision", "bf16"],
            2,
            "--precision is not used by this job",
        ),
        (&["train", "--head-lr", "inf"], 2, "lr: expected a number of at least 0 and at most 2^64"),
        (
            &["train", "--optimizer", "adamw", "--lr", "1000"],
            2,
            "would multiply parameters by less than -1",
        ),
        (&["train", "--steps", "0"], 2, "expected at least 1"),
        (&["train", "--hidden", "8,0"], 2, "expected at least 1"),
        (&["train", "--lr", "0.1", "--lr-grid"], 2, "cannot be used with"),
        (&["train", "--resume", "--steps", "5"], 2, "--steps is not used by --resume"),
        (&["train", "--resume"], 2, "nothing to resume"),
        (&["train", "--device", "gpu"], 2, "gpu"),
        (&["train", "--precision", "fp8"], 2, "fp8"),
        (&["orthogonalize", "a.safetensors"], 2, "OUT"),
        (&["orthogonalize", "a.safetensors", "b.safetensors"], 1, "a.safetensors"),
        (&["orthogonalize", "a", "b", "--exact", "--schedule", "you"], 2, "cannot be used with"),
        (&["orthogonalize", "a", "b", "--schedule", "yo"], 2, "did you mean `you`?"),
        (
            &["orthogonalize", "a", "b", "--device", "reference", "--precision", "bf16"],
            2,
            "computes in f64",
        ),
        (&["verify", "missing.json"], 1, "missing.json"),
        (
            &["verify", "a.json", "--device", "reference", "--precision", "bf16"],
            2,
            "computes in f64",
        ),
        (&["verify", "a.json", "--tolerance", "0"], 2, "expected a positive number"),
    ];
    for (args, code, message) in cases {
        let said = muon(dir.path(), args);
        assert_eq!(said.code, Some(*code), "{args:?}: {}", said.err);
        assert!(said.err.contains(message), "{args:?}: no `{message}` in\n{}", said.err);
        assert!(said.out.is_empty(), "{args:?}: {}", said.out);
        assert!(!said.err.contains("panicked"), "{}", said.err);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing may be written");
}

#[test]
fn an_unwritable_output_directory_is_found_before_training() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("taken"), "a file").unwrap();
    for more in
        [&["--out", "taken"][..], &["--out", "taken/below"], &["--out", "taken", "--lr-grid"]]
    {
        // A budget of hours: only a check before training ends in time.
        let args = [&["train", "--steps", "100000000"], more].concat();
        let said = muon(dir.path(), &args);
        assert_eq!(said.code, Some(1), "{}", said.err);
        assert!(said.err.contains("is not writable"), "{}", said.err);
        assert!(said.err.contains("because:"), "{}", said.err);
    }
    assert_eq!(fs::read_to_string(dir.path().join("taken")).unwrap(), "a file");
}

#[test]
fn damaged_and_foreign_checkpoints_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = tiny(&["--optimizer", "adamw", "--optimizer", "gradient-descent", "--out", "run"]);
    support::ok(dir.path(), &run);
    let checkpoint = |name: &str| dir.path().join("run/checkpoints").join(name);
    let good = fs::read(checkpoint("adamw-seed0.safetensors")).unwrap();
    let resume = ["train", "--resume", "--out", "run", "--quiet"];

    let mut flipped = good.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    for (bytes, message) in [
        (&good[..good.len() / 2], "truncated"),
        (&flipped[..], "damaged"),
        (&fs::read(checkpoint("gradient_descent-seed0.safetensors")).unwrap(), "another run"),
    ] {
        fs::write(checkpoint("adamw-seed0.safetensors"), bytes).unwrap();
        let said = muon(dir.path(), &resume);
        assert_eq!(said.code, Some(1), "{}", said.err);
        assert!(said.err.contains("adamw-seed0.safetensors"), "{}", said.err);
        assert!(said.err.contains(message), "no `{message}` in {}", said.err);
        let help = "remove it, and --resume trains this run again from its first step and keeps the others";
        assert!(said.err.contains(help), "{}", said.err);
    }
    // Which is so.
    let before = support::metrics(&dir.path().join("run"));
    fs::remove_file(checkpoint("adamw-seed0.safetensors")).unwrap();
    support::ok(dir.path(), &resume);
    assert_eq!(support::metrics(&dir.path().join("run")), before);
    fs::write(dir.path().join("run/config.json"), "{}").unwrap();
    let said = muon(dir.path(), &resume);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("not the record of a training job"), "{}", said.err);
}
