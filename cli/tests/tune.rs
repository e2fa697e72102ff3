//! Tuning: what it writes, that it is reproducible and resumable, and what it refuses.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use muon_cuda::MatrixShape;
use muon_cuda::checkpoint::TensorFileWriter;
use muon_cuda::spectrum::SpectrumRecord;
use serde_json::Value;
use support::{command, muon, ok};

/// A study of a second.
const TINY: &[&str] = &[
    "tune",
    "--quiet",
    "--size",
    "32",
    "--aspect",
    "2",
    "--iterations",
    "2,3",
    "--degrees",
    "3,5",
    "--polish",
    "3",
    "--evaluations",
    "120",
    "--spectrum",
    "gaussian",
    "--spectrum",
    "power:1",
];

fn tiny<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [TINY, more].concat()
}

fn record(dir: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join("record.json")).unwrap()).unwrap()
}

#[test]
fn a_study_writes_its_record_schedules_and_charts_and_is_reproducible() {
    let dir = tempfile::tempdir().unwrap();
    let out = ok(dir.path(), &tiny(&["--out", "a", "--jobs", "1"])).out;
    assert!(out.contains("tuned_bf16_a2_") && out.contains("gram_newton_schulz"), "{out}");
    let a = dir.path().join("a");
    let found = record(&a);
    let tuned = found["tuned"].as_array().unwrap();
    assert_eq!(found["complete"], true);
    // A front: each costs more and errs less than the one before.
    for pair in tuned.windows(2) {
        assert!(pair[0]["cost"].as_f64() < pair[1]["cost"].as_f64());
        assert!(pair[0]["score"].as_f64() > pair[1]["score"].as_f64());
    }
    let error = |e: &Value| -> f64 {
        let each = e["measured"]["to_polar"].as_array().unwrap();
        each.iter().map(|x| x.as_f64().unwrap()).sum::<f64>() / each.len() as f64
    };
    for e in tuned {
        // Predicted from singular values, measured on matrices; 6 % is the noise of two small ones.
        let ratio = error(e) / e["score"].as_f64().unwrap();
        assert!((ratio - 1.0).abs() < 0.06, "{ratio} {e}");
        let name = e["name"].as_str().unwrap();
        for ending in ["svg", "png"] {
            assert!(a.join(format!("{name}.{ending}")).is_file(), "{name}.{ending}");
        }
        // The schedule is taken wherever one is.
        let file = format!("a/{name}.toml");
        let page = ok(dir.path(), &["schedules", &file, "--json"]).out;
        let page: Value = serde_json::from_str(&page).unwrap();
        assert_eq!(page["polynomials"][0]["coefficients"], e["coefficients"][0], "{name}");
    }
    // Three iterations of at most 21 n³ beat five cubics of 30.
    let published = found["published"].as_array().unwrap();
    let classical = published.iter().find(|p| p["name"] == "classical_cubic").unwrap();
    let best = tuned.last().unwrap();
    assert!(best["cost"].as_f64() < classical["cost"].as_f64());
    assert!(best["score"].as_f64().unwrap() < 0.5 * classical["score"].as_f64().unwrap());
    let svg = fs::read_to_string(a.join("pareto.svg")).unwrap();
    assert!(
        svg.contains("jordan") && svg.contains("polar_express_5"),
        "published sets are drawn in"
    );
    assert!(fs::read_to_string(a.join("errors.svg")).unwrap().contains("share"));

    // The legend explains the columns that are there, and no other.
    let out = ok(dir.path(), &tiny(&["--out", "b", "--jobs", "3"])).out;
    assert!(out.contains("n³: ") && !out.contains("held out") && !out.contains("µs"), "{out}");
    assert_eq!(record(&dir.path().join("b")), found);
    ok(dir.path(), &tiny(&["--out", "c", "--seed", "1"]));
    assert_ne!(record(&dir.path().join("c"))["tuned"], found["tuned"]);
    ok(dir.path(), &["tune", "--check", "a/record.json"]);

    // Families that are held out are reported and change nothing else.
    fs::write(dir.path().join("held"), "# judged on\nlognormal:1\nproduct:2\n").unwrap();
    let out = ok(dir.path(), &tiny(&["--out", "d", "--held-out", "held"])).out;
    assert!(out.contains("┆ held out") || out.contains("held out ┆"), "{out}");
    assert!(out.contains("held out: the worst"), "{out}");
    let mut held = record(&dir.path().join("d"));
    for e in ["tuned", "published"].iter().flat_map(|k| held[*k].as_array().unwrap().clone()) {
        let errors = e["held_out"]["to_polar"].as_array();
        assert!(errors.is_none_or(|e| e.len() == 2), "{e}");
    }
    for e in held["tuned"].as_array_mut().unwrap() {
        assert!(e["held_out"].is_object());
        e["held_out"] = Value::Null;
    }
    assert_eq!(held["tuned"], found["tuned"]);
}

/// The cost of a study by a roofline is the bound that `muon plan` prints for the schedule it found.
#[test]
fn a_roofline_is_the_bound_of_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let cost = ["--cost", "roofline:a100", "--method", "any", "--precision", "f32", "--out", "a"];
    let out = ok(dir.path(), &tiny(&cost)).out;
    assert!(out.contains("µs on a100") && !out.contains("n³: "), "{out}");
    let found = record(&dir.path().join("a"));
    assert_eq!(found["settings"]["cost"], "roofline:a100");
    for e in found["tuned"].as_array().unwrap() {
        let file = format!("a/{}.toml", e["name"].as_str().unwrap());
        let groups: Vec<String> =
            e["candidate"]["groups"].as_array().unwrap().iter().map(ToString::to_string).collect();
        let groups = groups.join(",");
        let form = if groups.is_empty() { vec!["--standard"] } else { vec!["--gram", &groups] };
        let plan = ["plan", "--matrix", "32x64", "--schedule", &file, "--precision", "f32"];
        let more = ["--profile", "a100", "--json"];
        let plan = ok(dir.path(), &[&plan[..], &more, &form].concat()).out;
        let plan: Value = serde_json::from_str(&plan).unwrap();
        let bound = 1e3 * plan["bound"]["step_ms"].as_f64().unwrap();
        let cost = e["cost"].as_f64().unwrap();
        assert!((bound / cost - 1.0).abs() < 1e-12, "{bound} {e}");
    }
    ok(dir.path(), &["tune", "--check", "a/record.json"]);
    // A record of another device does not hold: its costs are others.
    let text = fs::read_to_string(dir.path().join("a/record.json")).unwrap();
    fs::write(dir.path().join("b.json"), text.replace("roofline:a100", "roofline:h100")).unwrap();
    let said = muon(dir.path(), &["tune", "--check", "b.json"]);
    assert!(said.code == Some(1) && said.out.contains("cost is"), "{}{}", said.out, said.err);
}

#[test]
fn a_study_cut_off_at_any_byte_ends_as_if_it_had_not_been() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &tiny(&["--out", "a"]));
    let a = dir.path().join("a");
    let (whole, journal) = (record(&a), fs::read(a.join("journal.jsonl")).unwrap());
    let first = journal.iter().position(|b| *b == b'\n').unwrap() + 1;
    // The end of the study's line, inside lines, at a line's end, and nothing missing.
    let line = first + journal[first..].iter().position(|b| *b == b'\n').unwrap() + 1;
    for cut in
        [first, first + 1, line - 1, line, journal.len() - 20, journal.len() - 1, journal.len()]
    {
        fs::write(a.join("journal.jsonl"), &journal[..cut]).unwrap();
        fs::remove_file(a.join("record.json")).unwrap();
        ok(dir.path(), &["tune", "--resume", "--out", "a", "--quiet"]);
        assert_eq!(record(&a), whole, "cut at {cut} of {}", journal.len());
        assert_eq!(fs::read(a.join("journal.jsonl")).unwrap().len(), journal.len(), "cut at {cut}");
    }
    fs::write(a.join("journal.jsonl"), &journal[..first - 1]).unwrap();
    let said = muon(dir.path(), &["tune", "--resume", "--out", "a"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("does not begin with a study"), "{}", said.err);
    let mut damaged = journal.clone();
    damaged[first + 3] = b'#';
    fs::write(a.join("journal.jsonl"), &damaged).unwrap();
    let said = muon(dir.path(), &["tune", "--resume", "--out", "a"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("line 2"), "{}", said.err);
}

#[test]
fn a_killed_study_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    // Long enough to be killed in the middle of it.
    let long: Vec<&str> = TINY.iter().map(|a| if *a == "120" { "1500" } else { a }).collect();
    ok(dir.path(), &[&long[..], &["--out", "whole"]].concat());
    let mut child =
        command(dir.path(), &[&long[..], &["--out", "killed"]].concat()).spawn().unwrap();
    let journal = dir.path().join("killed/journal.jsonl");
    let lines = || fs::read_to_string(&journal).map_or(0, |t| t.lines().count());
    let start = Instant::now();
    // The study, twelve starts, and the first of three polishes.
    while lines() < 14 && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(2));
    }
    // SIGKILL on Unix: the program can do nothing about it.
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.path().join("killed/record.json").exists(), "it was killed too late to tell");
    ok(dir.path(), &["tune", "--resume", "--out", "killed", "--quiet"]);
    assert_eq!(record(&dir.path().join("killed")), record(&dir.path().join("whole")));
}

#[test]
fn users_own_spectra_are_taken_from_matrices_and_recordings() {
    let dir = tempfile::tempdir().unwrap();
    let shape = MatrixShape { rows: 6, cols: 4 };
    let matrix: Vec<f32> = (0..24u8).map(|i| f32::from(i % 7) - 2.5 + f32::from(i % 5)).collect();
    let mut writer = TensorFileWriter::new();
    writer.values::<f32>("h.w", &[6, 4], &matrix).unwrap();
    writer.save(dir.path().join("momentum.safetensors")).unwrap();
    let line = SpectrumRecord::measure(10, "h.w", shape, &matrix).unwrap().to_line().unwrap();
    // The recording's writer was killed in its second line.
    fs::write(dir.path().join("run.jsonl"), format!("{line}{}", &line[..30])).unwrap();
    for file in ["momentum.safetensors", "run.jsonl"] {
        let args = [
            "tune",
            "--quiet",
            "--spectra",
            file,
            "--iterations",
            "2",
            "--degrees",
            "5",
            "--evaluations",
            "20",
            "--polish",
            "1",
            "--force",
            "--out",
            "out",
        ];
        ok(dir.path(), &args);
        let found = record(&dir.path().join("out"));
        let name = if file.ends_with("jsonl") { "h.w@10" } else { "h.w" };
        assert_eq!(found["spectra"], serde_json::json!([name]));
        ok(dir.path(), &["tune", "--check", "out/record.json"]);
    }
    // A record is about the spectra it was made with.
    fs::write(dir.path().join("run.jsonl"), line.replace("\"step\":10", "\"step\":11")).unwrap();
    let said = muon(dir.path(), &["tune", "--check", "out/record.json"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("no longer those"), "{}", said.err);
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("empty.jsonl"), "\n").unwrap();
    let nan = r#"{"step":1,"name":"w","rows":2,"cols":2,"norm":1.0,"zeros":3,"bins":{}}"#;
    fs::write(dir.path().join("short.jsonl"), format!("{nan}\n")).unwrap();
    let mut writer = TensorFileWriter::new();
    writer.values::<f32>("w", &[2, 2], &[1.0, f32::NAN, 0.0, 1.0]).unwrap();
    writer.save(dir.path().join("nan.safetensors")).unwrap();
    for (args, code, message) in [
        (&["--spectra", "empty.jsonl"][..], 2, "no spectrum"),
        (&["--spectra", "short.jsonl"], 1, "expected 2, found 3"),
        (&["--spectra", "nan.safetensors"], 1, "element 1 is `NaN`"),
        (&["--spectra", "none.safetensors"], 1, "none.safetensors"),
        (&["--spectrum", "gausian"], 2, "did you mean `gaussian`"),
        (&["--spectrum", "power:-1"], 2, "the exponent"),
        (&["--time", "0"], 2, "expected at least 1"),
        (&["--evaluations", "0"], 2, "expected at least 1"),
        (&["--max-cost", "3"], 2, "--max-cost"),
        (&["--cost", "roofline:h1000"], 2, "known are h100"),
        (&["--cost", "time"], 2, "roofline:PROFILE"),
        (&["--cost", "roofline:h100", "--precision", "f64"], 2, "f32, bf16 or fp16"),
        (&["--aspect", "0.5"], 2, "--aspect"),
        (&["--band", "0.9"], 2, "--band takes two numbers"),
        (&["--resume", "--seed", "1"], 2, "--seed is not used by --resume"),
        (&["--resume"], 2, "nothing to resume"),
    ] {
        let said = muon(dir.path(), &[&["tune", "--quiet", "--out", "never"], args].concat());
        assert_eq!(said.code, Some(code), "{args:?}: {}", said.err);
        assert!(said.err.contains(message), "{args:?}: {}", said.err);
        assert!(!dir.path().join("never").exists(), "{args:?}");
    }
    // Constraints that only the search can find to be infeasible: it says which.
    for (args, which) in [
        (&["--min-safe-sigma", "3"][..], "safe sigma"),
        (&["--band", "0.99,1.01"], "band"),
        (&["--max-slope", "1.01"], "slope"),
    ] {
        let said = muon(dir.path(), &tiny(&[&["--out", "tried"], args].concat()));
        assert_eq!(said.code, Some(2), "{args:?}: {}{}", said.out, said.err);
        assert!(
            said.err.contains("infeasible") && said.err.contains(which),
            "{args:?}: {}",
            said.err
        );
        assert!(!dir.path().join("tried").exists(), "there is nothing in it to go on with");
    }
}

#[test]
fn a_record_that_was_changed_does_not_hold() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &tiny(&["--out", "a"]));
    let text = fs::read_to_string(dir.path().join("a/record.json")).unwrap();
    let check = |text: &str| {
        fs::write(dir.path().join("r.json"), text).unwrap();
        muon(dir.path(), &["tune", "--check", "r.json"])
    };
    assert_eq!(check(&text).code, Some(0));
    // A coefficient in its fourth digit.
    let mut value: Value = serde_json::from_str(&text).unwrap();
    let c = &mut value["tuned"][0]["coefficients"][1][0];
    *c = Value::from(c.as_f64().unwrap() * 1.0003);
    let said = check(&value.to_string());
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("score is") && said.out.contains("does not hold"), "{}", said.out);
    for (damaged, message) in [
        (&text[..text.len() / 2], "not the record of a study"),
        ("{}", "not the record of a study"),
        (&text.replace("\"version\": 1", "\"version\": 9"), "format 9"),
        (&text.replace("\"seed\": 0", "\"sed\": 0"), "not the record of a study"),
    ] {
        let said = check(damaged);
        assert_eq!(said.code, Some(1), "{}", said.err);
        assert!(said.err.contains(message), "{}", said.err);
    }
}
