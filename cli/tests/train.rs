//! Training: the same numbers every time, killed and resumed or not, and outputs that can be used.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed test")]

#[path = "train/directories.rs"]
mod directories;
#[path = "train/resume.rs"]
mod resume;
mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use support::{command, metrics, muon, ok, tiny};

const ROWS: [&str; 7] = [
    "gradient_descent",
    "adamw",
    "muon_classical_cubic_5",
    "muon_jordan_5",
    "muon_polar_express_5_5",
    "muon_nonic3_band12_3",
    "muon_exact_svd",
];

#[test]
fn the_comparison_is_bitwise_repeatable_whatever_runs_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &tiny(&["--out", "a", "--seeds", "2"]));
    ok(dir.path(), &tiny(&["--out", "b", "--seeds", "2", "--jobs", "5"]));
    let a = metrics(&dir.path().join("a"));
    assert_eq!(a, metrics(&dir.path().join("b")));

    let optimizers: Vec<&str> =
        a["summary"].as_array().unwrap().iter().map(|s| s["optimizer"].as_str().unwrap()).collect();
    assert_eq!(optimizers, ROWS);
    assert_eq!(a["runs"].as_array().unwrap().len(), 14);
    assert_eq!(a["data"]["training_samples"].as_u64().unwrap(), 1438);
    assert_eq!(a["data"]["held_out_samples"].as_u64().unwrap(), 359);
    for run in a["runs"].as_array().unwrap() {
        let losses = run["batch_losses"].as_array().unwrap();
        assert_eq!(losses.len(), 40);
        // Everything learns something in 40 steps.
        let evaluations = run["evaluations"].as_array().unwrap();
        let loss = |e: &serde_json::Value| e["training_loss"].as_f64().unwrap();
        assert!(loss(evaluations.last().unwrap()) < 0.9 * loss(&evaluations[0]), "{run}");
        assert_eq!(evaluations.last().unwrap()["step"], 40);
    }
    // The first batch is the same for every optimizer of a seed, and another one for another seed.
    let first = |i: usize| a["runs"][i]["batch_losses"][0].as_f64().unwrap();
    assert!((0..14).all(|i| first(i).to_bits() == first(i % 2).to_bits()));
    assert_ne!(first(0).to_bits(), first(1).to_bits());
}

#[test]
fn threads_do_not_change_the_numbers_and_precision_does() {
    let dir = tempfile::tempdir().unwrap();
    let run = |out: &str, more: &[&str]| {
        let base = ["--optimizer", "muon", "--schedule", "jordan", "--out", out];
        ok(dir.path(), &tiny(&[&base, more].concat()));
        metrics(&dir.path().join(out))["runs"].clone()
    };
    let one = run("one", &[]);
    assert_eq!(one, run("three", &["--threads", "3"]));
    assert_ne!(one, run("bf16", &["--precision", "bf16"]));
}

#[test]
fn the_oracle_trains_to_the_same_loss() {
    let dir = tempfile::tempdir().unwrap();
    let run = |device: &str| {
        ok(dir.path(), &tiny(&["--device", device, "--out", device]));
        metrics(&dir.path().join(device))["summary"].clone()
    };
    let (cpu, reference) = (run("cpu"), run("reference"));
    for (c, r) in cpu.as_array().unwrap().iter().zip(reference.as_array().unwrap()) {
        let loss = |s: &serde_json::Value| s["training_loss"]["mean"].as_f64().unwrap();
        // f32 against f64 over 40 steps of a smooth loss; measured below 1e-3.
        assert!((loss(c) / loss(r) - 1.0).abs() < 0.02, "{c} {r}");
    }
}

/// A job of a few thousand steps with many checkpoints, so that there is something to interrupt.
fn long(out: &str) -> Vec<&str> {
    vec![
        "train",
        "--optimizer",
        "adamw",
        "--optimizer",
        "muon",
        "--schedule",
        "jordan",
        "--steps",
        "1000",
        "--batch-size",
        "16",
        "--hidden",
        "12,8",
        "--checkpoint-every",
        "20",
        "--quiet",
        "--out",
        out,
    ]
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "no {}", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_job_resumes_bitwise() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &long("whole"));
    let whole = metrics(&dir.path().join("whole"));

    // Killed twice: in the first run of the job and in the second.
    let mut child = command(dir.path(), &long("killed")).spawn().unwrap();
    for (i, name) in
        ["adamw-seed0.safetensors", "muon_jordan_5-seed0.safetensors"].iter().enumerate()
    {
        wait_for(&dir.path().join("killed/checkpoints").join(name));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !dir.path().join("killed/metrics.json").exists(),
            "killed too late to test anything"
        );
        if i == 0 {
            let resume = ["train", "--resume", "--out", "killed", "--checkpoint-every", "20", "-q"];
            child = command(dir.path(), &resume).spawn().unwrap();
        }
    }
    ok(dir.path(), &["train", "--resume", "--out", "killed", "--quiet"]);
    assert_eq!(metrics(&dir.path().join("killed")), whole);
    // A finished job that is resumed writes the same again.
    fs::remove_file(dir.path().join("killed/metrics.json")).unwrap();
    ok(dir.path(), &["train", "--resume", "--out", "killed", "--quiet"]);
    assert_eq!(metrics(&dir.path().join("killed")), whole);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_cleanly_and_the_job_resumes_bitwise() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &long("whole"));
    let mut args = long("stopped");
    args.retain(|a| *a != "--quiet");
    let child = command(dir.path(), &args)
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&dir.path().join("stopped/checkpoints/adamw-seed0.safetensors"));
    let status = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
    let said = support::said(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(130), "{}", said.err);
    assert!(
        said.err.contains("`muon train --resume --out stopped` goes on from here"),
        "{}",
        said.err
    );
    assert!(!dir.path().join("stopped/metrics.json").exists());
    ok(dir.path(), &["train", "--resume", "--out", "stopped", "--quiet"]);
    assert_eq!(metrics(&dir.path().join("stopped")), metrics(&dir.path().join("whole")));
}

#[test]
fn table_json_and_plots_are_there_and_agree() {
    let dir = tempfile::tempdir().unwrap();
    let said = ok(dir.path(), &tiny(&["--out", "run"]));
    assert!(said.err.is_empty(), "--quiet: {}", said.err);
    for column in
        ["optimizer", "lr", "training loss", "held-out accuracy", "steps to loss 0.1", "ms/step"]
    {
        assert!(said.out.contains(column), "{}", said.out);
    }
    let m = metrics(&dir.path().join("run"));
    assert!(said.out.contains(m["finding"].as_str().unwrap()), "{}", said.out);

    let svg = fs::read_to_string(dir.path().join("run/loss.svg")).unwrap();
    assert!(svg.starts_with("<svg width=\"1100\" height=\"660\""), "{}", &svg[..80]);
    assert!(svg.trim_end().ends_with("</svg>"));
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    for s in m["summary"].as_array().unwrap() {
        assert!(svg.contains(s["label"].as_str().unwrap()), "{s}");
    }
    // Seven strong and seven faint lines, the grid and the leaders.
    assert!(svg.matches("<polyline").count() > 14 + 7);

    let file = fs::File::open(dir.path().join("run/loss.png")).unwrap();
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    assert_eq!((reader.info().width, reader.info().height), (2200, 1320));
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    // Paper, and every line's colour somewhere.
    for color in [[255, 255, 255], [213, 94, 0], [230, 159, 0], [0, 0, 0], [204, 121, 167]] {
        assert!(pixels.chunks_exact(3).any(|p| p == color), "{color:?} is nowhere");
    }

    let json = ok(dir.path(), &tiny(&["--out", "again", "--json"])).out;
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["runs"], m["runs"]);
    assert_eq!(value["timing"]["milliseconds_per_step"].as_array().unwrap().len(), 7);
}

#[test]
fn notes_say_what_muon_gets() {
    let dir = tempfile::tempdir().unwrap();
    let mut args = tiny(&["--optimizer", "muon", "--schedule", "you"]);
    args.retain(|a| *a != "--quiet");
    let said = ok(dir.path(), &args);
    assert!(said.err.contains("Muon: 2 of 6 parameters"), "{}", said.err);
    assert!(said.err.contains("adamw  head.weight [10, 12]"), "{}", said.err);
    assert!(dir.path().join("muon-run/loss.svg").exists());
    // No progress bars where standard error is no terminal.
    assert!(!said.err.contains('\u{1b}') && !said.err.contains('━'), "{}", said.err);
}

#[test]
fn a_grid_marks_the_best_learning_rate() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--lr-grid", "--optimizer", "gradient-descent", "--out", "grid"];
    let said = ok(dir.path(), &support::tiny_search(&args));
    assert_eq!(said.out.matches("best").count(), 1, "{}", said.out);
    let text = fs::read_to_string(dir.path().join("grid/lr-grid.json")).unwrap();
    let grid: serde_json::Value = serde_json::from_str(&text).unwrap();
    let row = &grid["optimizers"][0];
    let loss = |p: &serde_json::Value| p["training_loss"]["mean"].as_f64().unwrap_or(f64::INFINITY);
    let points = row["points"].as_array().unwrap();
    let best = points.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
    assert_eq!(row["best_lr"], best["lr"]);
    assert_eq!(points.len(), 8);
    assert_eq!(muon(dir.path(), &["train", "--resume", "--out", "grid"]).code, Some(2));
}

#[test]
fn a_warmup_stable_decay_schedule_stays_at_its_peak_until_the_last_fifth() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str| {
        let job =
            ["--optimizer", "muon", "--schedule", "jordan", "--lr-schedule", name, "--out", name];
        ok(dir.path(), &tiny(&job));
        let losses = metrics(&dir.path().join(name))["runs"][0]["batch_losses"].clone();
        losses.as_array().unwrap().iter().map(|l| l.as_f64().unwrap().to_bits()).collect::<Vec<_>>()
    };
    let (wsd, linear) = (run("wsd"), run("linear"));
    // Both warm up over 4 of 40 steps and step 4 is at the peak; from step 5 on the linear one is below it.
    assert_eq!(wsd[..=5], linear[..=5]);
    assert_ne!(wsd[6], linear[6]);
    let config = fs::read_to_string(dir.path().join("wsd/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["lr_schedule"], "wsd");
    let refused = muon(dir.path(), &tiny(&["--lr-schedule", "warm"]));
    assert_eq!(refused.code, Some(2), "{}", refused.err);
}
