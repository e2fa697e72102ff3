//! Verifying recordings: the true ones hold, broken ones do not.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::fs;
use std::path::Path;

use support::{muon, ok};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data");

fn data(name: &str) -> String {
    format!("{DATA}/{name}")
}

#[test]
fn recordings_of_pytorch_hold_on_every_device_and_precision() {
    let here = Path::new(".");
    let (muon_file, adamw_file) = (data("torch_muon.json"), data("torch_adamw.json"));
    let cases: [(&str, &[&str]); 7] = [
        (&muon_file, &[]),
        (&muon_file, &["--device", "reference"]),
        (&muon_file, &["--precision", "tf32"]),
        (&muon_file, &["--precision", "bf16"]),
        (&muon_file, &["--precision", "bf16", "--against", "bf16ns"]),
        (&adamw_file, &[]),
        (&adamw_file, &["--device", "reference"]),
    ];
    for (file, more) in cases {
        let table = ok(here, &[&["verify", file], more].concat()).out;
        assert!(table.contains("cases hold") && !table.contains("FAILED"), "{table}");
        let json = ok(here, &[&["verify", file, "--json"], more].concat()).out;
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["passed"], true);
        assert!(value["cases"].as_array().unwrap().iter().all(|c| c["passed"] == true));
    }
}

#[test]
fn options_that_a_recording_of_adamw_does_not_use_are_refused() {
    let file = data("torch_adamw.json");
    for more in [["--precision", "bf16"], ["--momentum-dtype", "bf16"], ["--against", "bf16ns"]] {
        let said = muon(Path::new("."), &[&["verify", &file], &more[..]].concat());
        assert_eq!(said.code, Some(2), "{more:?} {}{}", said.out, said.err);
        assert!(
            said.err.contains(more[0]) && said.err.contains("a recording of AdamW"),
            "{}",
            said.err
        );
    }
}

#[test]
fn a_tolerance_that_is_missed_is_a_failed_check_that_says_which() {
    let said = muon(Path::new("."), &["verify", &data("torch_muon.json"), "--tolerance", "1e-9"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(
        said.out.contains("FAILED") && said.out.contains("does not hold: error"),
        "{}",
        said.out
    );
    assert!(said.err.is_empty(), "{}", said.err);
}

#[test]
fn each_wrong_hyper_parameter_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(data("torch_muon.safetensors"), dir.path().join("wrong.safetensors")).unwrap();
    let text = fs::read_to_string(data("torch_muon.json")).unwrap();
    let break_case = |key: &str, from: serde_json::Value, to: serde_json::Value| {
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        for case in value["cases"].as_array_mut().unwrap() {
            if case[key] == from {
                case[key] = to.clone();
            }
        }
        value
    };
    let mut coefficient: serde_json::Value = serde_json::from_str(&text).unwrap();
    coefficient["ns_coefficients"][1] = (-4.785).into();
    for (what, broken) in [
        ("coefficient", coefficient),
        ("decay", break_case("weight_decay", 0.1.into(), 0.0.into())),
        ("scale rule", break_case("adjust_lr_fn", "original".into(), "match_rms_adamw".into())),
        ("Nesterov blend", break_case("nesterov", true.into(), false.into())),
        ("momentum", break_case("momentum", 0.95.into(), 0.9.into())),
    ] {
        fs::write(dir.path().join("wrong.json"), broken.to_string()).unwrap();
        let said = muon(dir.path(), &["verify", "wrong.json"]);
        assert_eq!(said.code, Some(1), "{what}: {}{}", said.out, said.err);
        assert!(said.out.contains("FAILED"), "{what}: {}", said.out);
    }
}

#[test]
fn a_recording_without_its_tensors_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(data("torch_adamw.json"), dir.path().join("alone.json")).unwrap();
    let said = muon(dir.path(), &["verify", "alone.json"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("alone.safetensors"), "{}", said.err);
    fs::write(dir.path().join("other.json"), "[1, 2]").unwrap();
    fs::copy(data("torch_adamw.safetensors"), dir.path().join("other.safetensors")).unwrap();
    let said = muon(dir.path(), &["verify", "other.json"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("not a recording"), "{}", said.err);
}

#[test]
fn degenerate_matrices_hold_by_the_tolerance_of_the_schedule() {
    let file = data("degenerate_trajectories.json");
    for device in ["reference", "cpu"] {
        let said = ok(Path::new("."), &["verify", &file, "--device", device]).out;
        assert!(said.contains("12 of 12 cases hold"), "{said}");
    }
    // The tolerance that judges is the one that is shown.
    let said = ok(Path::new("."), &["verify", &file]).out;
    assert!(said.contains("tolerance") && said.contains("2.3e-4"), "{said}");
    let json = ok(Path::new("."), &["verify", &file, "--json"]).out;
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["tolerance"], 1e-4);
    let judged = value["cases"][8]["tolerance"].as_f64().unwrap();
    assert!((judged / 2.312e-4 - 1.0).abs() < 1e-3, "{judged}");
}

#[test]
fn a_field_that_nobody_knows_ends_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(data("torch_muon.safetensors"), dir.path().join("more.safetensors")).unwrap();
    let text = fs::read_to_string(data("torch_muon.json")).unwrap();
    let more = text.replacen("\"lr\": 0.02", "\"lr\": 0.02, \"weight_decay_kind\": \"l2\"", 1);
    fs::write(dir.path().join("more.json"), more).unwrap();
    let said = muon(dir.path(), &["verify", "more.json"]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("`weight_decay_kind`") && said.out.is_empty(), "{}", said.err);
    assert!(said.err.contains("case `square`"), "{}", said.err);
}

#[test]
fn help_says_what_a_recording_can_say() {
    let help = ok(Path::new("."), &["verify", "--help"]).out;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for said in [
        "docs/trajectories.md lists every field",
        "A field that the command does not know is an error",
    ] {
        assert!(help.contains(said), "{help}");
    }
}
