//! A schedule for each layer, from a recording of training to training with it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{metrics, muon, ok, tiny};

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Records the tiny job: two hidden matrices, 16 × 64 and 12 × 16, at steps 0 and 20.
fn recording(dir: &Path) {
    let record = ["--schedule", "jordan", "--record-spectra", "s.jsonl", "--spectra-every", "20"];
    ok(dir, &tiny(&[&record[..], &["--out", "recorded"]].concat()));
    let text = fs::read_to_string(dir.join("s.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
}

const TUNE: &[&str] = &[
    "tune",
    "--quiet",
    "--spectra",
    "s.jsonl",
    "--per-layer",
    "--iterations",
    "2,3",
    "--degrees",
    "3,5",
    "--polish",
    "12",
    "--evaluations",
    "40",
    "--precision",
    "f32",
];

fn tune<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [TUNE, more].concat()
}

#[test]
fn recorded_spectra_become_schedules_that_the_layers_train_with() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    recording(dir);
    let said = ok(dir, &tune(&["--out", "t"]));
    assert!(said.out.contains("hidden1.weight") && said.out.contains("16x64"), "{}", said.out);

    // A study for each parameter: of its own shape, on its own spectra.
    for (directory, param, aspect) in [
        ("01-hidden1.weight", "hidden1.weight", 4.0),
        ("02-hidden2.weight", "hidden2.weight", 16.0 / 12.0),
    ] {
        let record = json(&dir.join("t").join(directory).join("record.json"));
        assert_eq!(record["settings"]["aspect"].as_f64(), Some(aspect));
        let spectra: Vec<String> =
            [0, 20].iter().map(|step| format!("muon_jordan_5-seed0/{param}@{step}")).collect();
        assert_eq!(record["spectra"], serde_json::json!(spectra));
        let check = format!("t/{directory}/record.json");
        ok(dir, &["tune", "--check", &check]);
    }

    // The table leads from each parameter to a schedule of its study's front: the cheapest within 2 % of the least error.
    let table = fs::read_to_string(dir.join("t/schedules.toml")).unwrap();
    let table: toml::Table = table.parse().unwrap();
    let rows = table["schedule"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    let mut used = Vec::new();
    for row in rows {
        let (param, file) = (row["param"].as_str().unwrap(), row["use"].as_str().unwrap());
        let (directory, name) = file.split_once('/').unwrap();
        assert!(directory.ends_with(param), "{param} {file}");
        let record = json(&dir.join("t").join(directory).join("record.json"));
        let front = record["tuned"].as_array().unwrap();
        let score = |e: &Value| e["score"].as_f64().unwrap();
        let least = front.iter().map(score).fold(f64::INFINITY, f64::min);
        let first = front.iter().find(|e| score(e) <= 1.02 * least).unwrap();
        assert_eq!(name.strip_suffix(".toml"), first["name"].as_str());
        used.push(first["coefficients"].clone());
    }
    assert_ne!(used[0], used[1]);

    // And training takes it: the record of the job has both, written out.
    ok(
        dir,
        &tiny(&["--schedules", "t/schedules.toml", "--schedule", "jordan", "--out", "trained"]),
    );
    let config = json(&dir.join("trained/config.json"));
    let text = config.to_string();
    for coefficients in &used {
        assert!(text.contains(&coefficients.to_string()), "{coefficients} is not in {text}");
    }
    let trained = metrics(&dir.join("trained"));
    let summary = trained["summary"].as_array().unwrap();
    assert_eq!(summary[1]["optimizer"], "muon_schedules_layers");
    // Guessing costs ln 10 = 2.303.
    assert!(summary[1]["training_loss"]["mean"].as_f64().unwrap() < 2.2, "{}", summary[1]);
    // A job with a table is gone on with from its own record.
    fs::remove_file(dir.join("t/schedules.toml")).unwrap();
    ok(dir, &["train", "--resume", "--out", "trained", "--quiet"]);
    assert_eq!(metrics(&dir.join("trained")), trained);
}

#[test]
fn every_layer_gets_the_schedule_of_its_row() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let losses = |name: &str, args: &[&str]| {
        ok(dir, &tiny(&[args, &["--out", name]].concat()));
        metrics(&dir.join(name))["runs"][0]["batch_losses"].clone()
    };
    let table = |rows: &[(&str, &str)]| {
        let text: String = rows
            .iter()
            .map(|(param, schedule)| {
                format!("[[schedule]]\nparam = \"{param}\"\nuse = \"{schedule}\"\n")
            })
            .collect();
        fs::write(dir.join("by.toml"), text).unwrap();
    };
    let jordan = losses("jordan", &["--schedule", "jordan"]);
    let cubic = losses("cubic", &["--schedule", "cubic5"]);
    // The first row that matches decides.
    table(&[("hidden?.weight", "jordan")]);
    assert_eq!(losses("all", &["--schedules", "by.toml"]), jordan);
    table(&[("hidden1.*", "jordan"), ("*", "cubic5")]);
    let one = losses("one", &["--schedules", "by.toml"]);
    table(&[("hidden2.*", "jordan"), ("*", "cubic5")]);
    let other = losses("other", &["--schedules", "by.toml"]);
    assert!(one != jordan && one != cubic && other != jordan && other != cubic && one != other);
    // The reference optimizer goes by the same rows.
    let reference = losses("reference", &["--schedules", "by.toml", "--device", "reference"]);
    let pairs = reference.as_array().unwrap().iter().zip(other.as_array().unwrap());
    for (a, b) in pairs {
        // f64 against f32 over 40 steps.
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-3, "{a} {b}");
    }
    for (rows, message) in [
        (&[("hidden1.*", "jordan")][..], "no pattern matches the hidden matrix `hidden2.weight`"),
        (&[("*", "jordan"), ("hidden1.*", "cubic5")], "decides about no hidden matrix"),
        (&[("hiden1.*", "jordan"), ("*", "cubic5")], "`hiden1.*` decides about no hidden matrix"),
        (&[("*", "jordon")], "did you mean `jordan`"),
    ] {
        table(rows);
        let said = muon(dir, &tiny(&["--schedules", "by.toml", "--out", "never"]));
        assert_eq!(said.code, Some(2), "{rows:?}: {}", said.err);
        assert!(said.err.contains(message), "{rows:?}: {}", said.err);
        assert!(!dir.join("never").exists());
    }
    for (args, message) in [
        (&["--schedules", "by.toml", "--iterations", "3"][..], "cannot be used with"),
        (
            &["--schedules", "by.toml", "--optimizer", "adamw"],
            "--schedules is not used by this job",
        ),
        (&["--schedules", "none.toml"], "none.toml"),
    ] {
        let said = muon(dir, &tiny(args));
        assert!(said.code != Some(0) && said.err.contains(message), "{args:?}: {}", said.err);
    }
}

#[test]
fn studies_of_layers_go_on_where_they_were_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    recording(dir);
    ok(dir, &tune(&["--out", "t"]));
    let whole = ["01-hidden1.weight", "02-hidden2.weight"].map(|d| dir.join("t").join(d));
    let records = whole.each_ref().map(|d| json(&d.join("record.json")));
    let table = fs::read(dir.join("t/schedules.toml")).unwrap();
    // Killed in the second study, in the middle of a line; then before it had a line; then before its directory.
    let journal = fs::read(whole[1].join("journal.jsonl")).unwrap();
    for cut in [journal.len() - 9, 20, 0] {
        fs::remove_file(dir.join("t/schedules.toml")).unwrap();
        fs::remove_file(whole[1].join("record.json")).unwrap();
        fs::write(whole[1].join("journal.jsonl"), &journal[..cut]).unwrap();
        if cut == 0 {
            fs::remove_dir_all(&whole[1]).unwrap();
        }
        ok(dir, &["tune", "--resume", "--out", "t", "--quiet"]);
        assert_eq!(whole.each_ref().map(|d| json(&d.join("record.json"))), records, "{cut}");
        assert_eq!(fs::read(dir.join("t/schedules.toml")).unwrap(), table, "{cut}");
    }
    for (args, message) in [
        (&["tune", "--per-layer", "--quiet"][..], "--spectra"),
        (
            &["tune", "--quiet", "--out", "t"],
            "holds a set of studies, one for each layer, with its results",
        ),
        (
            &["tune", "--quiet", "--spectra", "s.jsonl", "--per-layer", "--max-cost", "1"],
            "hidden1.weight",
        ),
    ] {
        let said = muon(dir, args);
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        assert!(said.err.contains(message), "{args:?}: {}", said.err);
    }
    assert!(!dir.join("muon-tune").exists());
}
