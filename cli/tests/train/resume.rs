//! Resumed jobs are the jobs that were started: what they record, what they save, and what is refused.

use std::fs;
use std::path::Path;

use muon_cuda::checkpoint::TensorFile;
use muon_cuda::spectrum;

use crate::support::{metrics, muon, ok, tiny};

fn config(dir: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(dir.join("config.json")).unwrap()).unwrap()
}

#[test]
fn spectra_are_appended_and_never_truncated_and_a_resumed_job_goes_on_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let record = ["--schedule", "jordan", "--record-spectra", "s.jsonl", "--spectra-every", "10"];
    let run = |out: &str| ok(dir, &tiny(&[&record[..], &["--out", out]].concat()));
    run("a");
    let path = dir.join("s.jsonl");
    let first = fs::read_to_string(&path).unwrap();
    // Steps 0, 10, 20 and 30 of two matrices.
    assert_eq!(first.lines().count(), 8);
    run("b");
    // The same job again says the same again.
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{first}{first}"));

    // Killed in the middle of a line of its records.
    let kept = &first[..first.len() / 2 + 7];
    fs::write(&path, format!("{first}{kept}")).unwrap();
    fs::remove_file(dir.join("b/checkpoints/muon_jordan_5-seed0.safetensors")).unwrap();
    let said = ok(dir, &["train", "--resume", "--out", "b"]);
    assert!(said.err.contains("s.jsonl ended in half a line, which is removed"), "{}", said.err);
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{first}{first}"));
    assert_eq!(spectrum::read_records(&path).unwrap().records.len(), 16);

    // From another working directory too: the record has the whole path.
    fs::write(&path, &first).unwrap();
    fs::remove_file(dir.join("b/checkpoints/muon_jordan_5-seed0.safetensors")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let out = dir.join("b").display().to_string();
    ok(elsewhere.path(), &["train", "--resume", "--out", &out, "-q"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{first}{first}"));

    // Said again it must be the same; what differs is named.
    ok(dir, &["train", "--resume", "--out", "a", "-q", "--record-spectra", "s.jsonl"]);
    for more in [
        &["--record-spectra", "t.jsonl"][..],
        &["--record-spectra", "s.jsonl", "--spectra-every", "9"],
    ] {
        let said = muon(dir, &[&["train", "--resume", "--out", "a"], more].concat());
        assert_eq!(said.code, Some(2), "{}", said.err);
        assert!(said.err.contains("as it was started, with --record-spectra /"), "{}", said.err);
        assert!(said.err.contains("--spectra-every 10"), "{}", said.err);
    }
    ok(dir, &tiny(&["--schedule", "jordan", "--out", "none"]));
    let said = muon(dir, &["train", "--resume", "--out", "none", "--record-spectra", "s.jsonl"]);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("without --record-spectra"), "{}", said.err);

    // A file of something else stays what it is; a last record without its newline is one.
    fs::write(dir.join("thesis.txt"), "years of work\n").unwrap();
    let said =
        muon(dir, &tiny(&["--schedule", "jordan", "--record-spectra", "thesis.txt", "--out", "x"]));
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("which holds something else"), "{}", said.err);
    assert_eq!(fs::read_to_string(dir.join("thesis.txt")).unwrap(), "years of work\n");
    assert!(!dir.join("x").exists());
    fs::write(&path, first.trim_end()).unwrap();
    run("c");
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{first}{first}"));
}

#[test]
fn a_resumed_job_keeps_its_checkpoints_as_often_as_it_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    ok(dir, &tiny(&["--optimizer", "adamw", "--out", "a"]));
    assert_eq!(config(&dir.join("a"))["kept"]["checkpoint_every"], 10);
    ok(dir, &["train", "--resume", "--out", "a", "-q"]);
    assert_eq!(config(&dir.join("a"))["kept"]["checkpoint_every"], 10);
    ok(dir, &["train", "--resume", "--out", "a", "-q", "--checkpoint-every", "7"]);
    assert_eq!(config(&dir.join("a"))["kept"]["checkpoint_every"], 7);
}

#[test]
fn trained_parameters_are_saved_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let two =
        ["--optimizer", "adamw", "--optimizer", "muon", "--schedule", "jordan", "--seeds", "2"];
    ok(dir, &tiny(&[&two[..], &["--out", "a", "--save-model"]].concat()));
    let names = ["adamw-seed0", "adamw-seed1", "muon_jordan_5-seed0", "muon_jordan_5-seed1"];
    for name in names {
        let model = TensorFile::load(dir.join(format!("a/models/{name}.safetensors"))).unwrap();
        // What training ended with, by the names that routing and records use.
        let checkpoint =
            TensorFile::load(dir.join(format!("a/checkpoints/{name}.safetensors"))).unwrap();
        let tensors: Vec<&str> = model.names().collect();
        assert_eq!(tensors.len(), 6, "{tensors:?}");
        for tensor in tensors {
            let saved = model.f64(tensor).unwrap();
            assert_eq!(saved, checkpoint.f64(&format!("model.{tensor}")).unwrap(), "{tensor}");
            assert!(saved.iter().any(|x| *x != 0.0), "{tensor}");
        }
        assert_eq!(model.shape("hidden1.weight").unwrap(), [16, 64]);
        assert_eq!(model.shape("head.bias").unwrap(), [10]);
        let about = model.metadata();
        assert_eq!((about["task"].as_str(), about["steps"].as_str()), ("digits", "40"));
        assert_eq!(format!("{}-seed{}", about["optimizer"], about["seed"]), name);
    }
    let bytes = |out: &str| {
        names.map(|n| fs::read(dir.join(format!("{out}/models/{n}.safetensors"))).unwrap())
    };
    // A resumed job has them too, and a job that was started without can be told so later.
    let whole = bytes("a");
    fs::remove_dir_all(dir.join("a/models")).unwrap();
    fs::remove_file(dir.join("a/checkpoints/adamw-seed1.safetensors")).unwrap();
    ok(dir, &["train", "--resume", "--out", "a", "-q"]);
    assert_eq!(bytes("a"), whole);
    ok(dir, &tiny(&[&two[..], &["--out", "b"]].concat()));
    assert!(!dir.join("b/models").exists());
    fs::create_dir(dir.join("b/models")).unwrap();
    fs::write(dir.join("b/models/adamw-seed0.safetensors"), "mine").unwrap();
    let later = ["train", "--resume", "--out", "b", "-q", "--save-model"];
    let said = muon(dir, &later);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("models/adamw-seed0.safetensors was not written by"), "{}", said.err);
    fs::remove_file(dir.join("b/models/adamw-seed0.safetensors")).unwrap();
    ok(dir, &later);
    assert_eq!(bytes("b"), whole);
    assert_eq!(metrics(&dir.join("a"))["runs"], metrics(&dir.join("b"))["runs"]);
}

#[test]
fn divergence_is_a_finding_and_no_empty_chart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let run = |args: &str, out: &str| {
        let args = format!("train --steps 12 --batch-size 16 --hidden 12,8 --out {out} {args}");
        muon(dir, &args.split(' ').collect::<Vec<_>>())
    };
    // Numbers that are none after the first step: one point a line, nothing to draw.
    let said = run("--optimizer gradient-descent --lr 1e19", "a");
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(said.out.contains("gradient descent diverged at step 2."), "{}", said.out);
    assert!(
        said.err.contains("no chart is drawn") && said.err.contains("wrote metrics.json to a"),
        "{}",
        said.err
    );
    assert!(!dir.join("a/loss.svg").exists() && !dir.join("a/loss.png").exists());
    assert_eq!(metrics(&dir.join("a"))["summary"][0]["diverged"][0]["step"], 2);
    // Finite and out of all proportion, beside one that is not.
    let said = run(
        "--optimizer adamw --optimizer gradient-descent --lr 1000 --weight-decay 0 --seeds 2",
        "b",
    );
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(
        said.out.contains("AdamW with seed 0 diverged at step 2; AdamW with seed 1 diverged"),
        "{}",
        said.out
    );
    assert!(dir.join("b/loss.svg").exists());
    // A bad learning rate that is no divergence.
    assert_eq!(run("--optimizer gradient-descent --lr 10", "c").code, Some(0));
    // A search is there to find what diverges; it fails where nothing else is found.
    let said = run(
        "--sweep --schedule jordan --schedule you --seeds 2 --weight-decay 0 --lr 0.02,1e19",
        "s",
    );
    assert_eq!(said.code, Some(0), "{}{}", said.out, said.err);
    let said = run(
        "--sweep --schedule jordan --schedule you --seeds 2 --weight-decay 0 --head-lr 1e18 --lr 1e18,1e19",
        "t",
    );
    assert_eq!(said.code, Some(1), "{}{}", said.out, said.err);
    assert!(
        said.out.contains("Diverged at every learning rate: Muon (jordan), Muon (you)."),
        "{}",
        said.out
    );
    assert!(dir.join("t/sweep.json").exists() && !dir.join("t/sweep.svg").exists());
}
