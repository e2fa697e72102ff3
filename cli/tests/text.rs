//! The language model and recorded spectra, from the command line.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::fs;

use muon_cuda::spectrum;
use support::{metrics, muon, ok};

/// A tiny transformer for a few steps.
fn tiny<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let base = "train --task text --width 16 --layers 1 --heads 2 --context 16 --steps 30 --batch-size 8 \
                --checkpoint-every 10 --quiet";
    base.split_whitespace().chain(more.iter().copied()).collect()
}

#[test]
fn the_language_model_learns_repeatably_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let some =
        ["--optimizer", "adamw", "--optimizer", "muon", "--schedule", "jordan", "--seeds", "2"];
    ok(dir.path(), &tiny(&[&some[..], &["--out", "a"]].concat()));
    ok(dir.path(), &tiny(&[&some[..], &["--out", "b", "--jobs", "3"]].concat()));
    let a = metrics(&dir.path().join("a"));
    assert_eq!(a, metrics(&dir.path().join("b")));
    assert_eq!(a["runs"].as_array().unwrap().len(), 4);
    // A tenth of 49 068 bytes is held out.
    assert_eq!(a["data"]["training_samples"], 44_162);
    assert_eq!(a["data"]["held_out_samples"], 4906);
    for run in a["runs"].as_array().unwrap() {
        let first = run["batch_losses"][0].as_f64().unwrap();
        // Small initial logits: near the uniform guess of 256 bytes.
        assert!((first - 256f64.ln()).abs() < 0.1, "{first}");
        // 30 steps teach at least that few bytes occur: below half of it.
        assert!(run["final_held_out_loss"].as_f64().unwrap() < 4.5, "{run}");
    }
    // A job resumed after its end gives the same.
    fs::remove_file(dir.path().join("a/metrics.json")).unwrap();
    ok(dir.path(), &["train", "--resume", "--out", "a", "--quiet"]);
    assert_eq!(metrics(&dir.path().join("a")), a);
}

#[test]
fn a_text_of_ones_own_is_learned_and_must_not_change() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("t.txt"), "all work and no play ".repeat(50)).unwrap();
    let args = "train --text t.txt --width 16 --layers 1 --context 16 --steps 150 --batch-size 8 --schedule you \
                --lr 0.05 -q --out t";
    ok(dir.path(), &args.split_whitespace().collect::<Vec<_>>());
    let m = metrics(&dir.path().join("t"));
    assert!(m["data"]["source"].as_str().unwrap().contains("t.txt (1050 bytes)"), "{}", m["data"]);
    // Frequencies of the 21 bytes alone give 2.22 nats and a space each time, one in four.
    let run = &m["runs"][0];
    assert!(run["final_held_out_loss"].as_f64().unwrap() < 1.9, "{}", m["summary"]);
    assert!(run["final_accuracy"].as_f64().unwrap() > 0.7, "{}", m["summary"]);

    fs::write(dir.path().join("t.txt"), "all play and no work ".repeat(50)).unwrap();
    let said = muon(dir.path(), &["train", "--resume", "--out", "t"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("the text has changed"), "{}", said.err);
}

#[test]
fn the_tuner_reads_the_spectra_that_training_records_and_training_does_not_notice() {
    let dir = tempfile::tempdir().unwrap();
    let train = |out: &str, more: &[&str]| {
        ok(dir.path(), &tiny(&[&["--schedule", "jordan", "--out", out], more].concat()));
        metrics(&dir.path().join(out))
    };
    let without = train("without", &[]);
    let record = ["--record-spectra", "s.jsonl", "--spectra-every", "10"];
    assert_eq!(train("with", &record), without);
    let path = dir.path().join("s.jsonl");
    let recording = spectrum::read_records(&path).unwrap();
    // Steps 0, 10, 20 of six hidden matrices.
    assert_eq!((recording.records.len(), recording.truncated), (18, false));
    let steps: Vec<u64> = recording.records.iter().map(|r| r.step).collect();
    assert_eq!((steps[0], steps[6], steps[12]), (0, 10, 20));
    for r in &recording.records {
        assert!(r.name.starts_with("muon_jordan_5-seed0/blocks.0."), "{}", r.name);
        assert_eq!(r.rows.min(r.cols), 16);
        assert!(r.norm > 0.0 && r.norm.is_finite());
    }
    assert_eq!(spectrum::load(&path).unwrap().len(), 18);

    // A line cut off by a kill is repeated by the resumed job, and no other is written twice.
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    fs::remove_file(dir.path().join("with/checkpoints/muon_jordan_5-seed0.safetensors")).unwrap();
    ok(
        dir.path(),
        &["train", "--resume", "--out", "with", "-q", record[0], record[1], record[2], record[3]],
    );
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert_eq!(metrics(&dir.path().join("with")), without);
}

#[test]
fn nonsense_is_refused_before_anything_is_run() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("empty.txt"), "").unwrap();
    fs::write(dir.path().join("short.txt"), "x".repeat(649)).unwrap();
    for (args, code, message) in [
        ("--text empty.txt", 2, "empty.txt is empty: expected a text of at least 650 bytes"),
        ("--text short.txt", 2, "at least 650 bytes for a context of 64, found 649"),
        ("--text missing.txt", 1, "read the text missing.txt"),
        ("--task digits --text short.txt", 2, "--text is not used by this job"),
        ("--width 64", 2, "--width is: Width of the transformer (--task text)"),
        ("--task text --hidden 8", 2, "--hidden is not used by this job"),
        ("--task text --heads 3", 2, "expected a divisor of the width 64, found 3"),
        ("--task text --context 0", 2, "expected at least 1"),
        ("--task text --resume", 2, "--task is not used by --resume"),
        ("--record-spectra s --optimizer adamw", 2, "--record-spectra is not used by this job"),
        ("--record-spectra s --device reference", 2, "device reference"),
        ("--spectra-every 5", 2, "--record-spectra"),
        ("--record-spectra s --spectra-every 0", 2, "expected at least 1"),
    ] {
        let args: Vec<&str> = ["train"].into_iter().chain(args.split_whitespace()).collect();
        let said = muon(dir.path(), &args);
        assert_eq!(said.code, Some(code), "{args:?}: {}", said.err);
        assert!(said.err.contains(message), "{args:?}: no `{message}` in\n{}", said.err);
    }
    let mut left: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["empty.txt", "short.txt"], "nothing may be written");
}
