//! Sweeps and grids: every run once, killed and taken up again or not, and errors that say what to do.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use support::{command, muon, ok};

/// Two schedules, two learning rates, three seeds: twelve runs of a few milliseconds.
fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let base = "train --sweep --schedule jordan --schedule nonic3_band12 --lr 0.02,0.05 --seeds 3 --steps 20 \
                --batch-size 32 --hidden 16,12 --quiet";
    base.split_whitespace().chain(more.iter().copied()).collect()
}

fn read(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_sweep_says_what_its_runs_say() {
    let dir = tempfile::tempdir().unwrap();
    let said = ok(dir.path(), &small(&["--out", "s"]));
    for part in ["held-out loss", "best", "95 % bound", "baseline", "0.01 nats"] {
        assert!(said.out.contains(part), "no {part} in {}", said.out);
    }
    let sweep = read(&dir.path().join("s/sweep.json"));
    assert_eq!(sweep["baseline"], "muon_jordan_5");
    assert_eq!(sweep["rows"].as_array().unwrap().len(), 2);
    assert!(sweep["rows"][0]["against_baseline"].is_null());

    // The same runs by plain `train` have the same losses; mean, deviation and bound by hand.
    let mut losses = Vec::new();
    for (schedule, lr) in [("jordan", "0.02"), ("nonic3_band12", "0.05")] {
        let args = format!(
            "train --schedule {schedule} --lr {lr} --seeds 3 --steps 20 --batch-size 32 --hidden 16,12 -q --out {schedule}"
        );
        ok(dir.path(), &args.split_whitespace().collect::<Vec<_>>());
        let m = support::metrics(&dir.path().join(schedule));
        let of = |i: usize| m["runs"][i]["final_held_out_loss"].as_f64().unwrap();
        losses.push([of(0), of(1), of(2)]);
    }
    let mean = |x: [f64; 3]| x.iter().sum::<f64>() / 3.0;
    let point = |row: usize, lr: usize| &sweep["rows"][row]["points"][lr]["held_out_loss"];
    assert_eq!(point(0, 0)["mean"].as_f64().unwrap(), mean(losses[0]));
    assert_eq!(point(1, 1)["mean"].as_f64().unwrap(), mean(losses[1]));
    let paired = &sweep["rows"][1]["against_baseline"];
    let best = |row: usize| {
        let points = sweep["rows"][row]["points"].as_array().unwrap();
        let at = points.iter().position(|p| p["lr"] == sweep["rows"][row]["best_lr"]).unwrap();
        let mean = |i: usize| point(row, i)["mean"].as_f64().unwrap();
        assert!(mean(at) <= mean(1 - at));
        mean(at)
    };
    assert!((paired["mean"].as_f64().unwrap() - (best(1) - best(0))).abs() < 1e-12);
    let (mean, deviation) =
        (paired["mean"].as_f64().unwrap(), paired["deviation"].as_f64().unwrap());
    // Student's t with two degrees of freedom: 2.91999 at 95 %.
    let upper = mean + 2.919_985_580_353_724 * deviation / 3f64.sqrt();
    assert!((paired["upper"].as_f64().unwrap() - upper).abs() < 1e-12, "{paired}");
    assert_eq!(paired["non_inferior"], upper < 0.01);

    let svg = fs::read_to_string(dir.path().join("s/sweep.svg")).unwrap();
    for text in ["peak learning rate", "0.02", "0.05"] {
        assert!(svg.lines().any(|l| l.trim() == text), "{text}");
    }
    assert!(svg.contains("Muon (jordan)") && svg.contains("Muon (nonic3_band12)"));
    assert!(fs::read(dir.path().join("s/sweep.png")).unwrap().starts_with(b"\x89PNG"));
    // A baseline and a margin of one's own.
    let other = ["--out", "s", "--baseline", "nonic3_band12", "--margin", "5", "--json"];
    let json: serde_json::Value =
        serde_json::from_str(&ok(dir.path(), &small(&other)).out).unwrap();
    assert_eq!(json["baseline"], "muon_nonic3_band12_3");
    assert_eq!(json["rows"][0]["against_baseline"]["non_inferior"], true);
}

#[test]
fn a_journal_cut_anywhere_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &small(&["--out", "s", "--jobs", "1"]));
    let (journal, result) = (dir.path().join("s/sweep.jsonl"), dir.path().join("s/sweep.json"));
    let (lines, whole) = (fs::read(&journal).unwrap(), fs::read(&result).unwrap());
    assert_eq!(lines.iter().filter(|b| **b == b'\n').count(), 13);
    // In the header, at its end, in the middle of an entry, at the end of one, before the last newline.
    let header = lines.iter().position(|b| *b == b'\n').unwrap();
    let after = |n: usize| lines.iter().enumerate().filter(|l| *l.1 == b'\n').nth(n).unwrap().0;
    for cut in
        [0, 20, header, header + 1, after(4) + 30, after(7) + 1, lines.len() - 1, lines.len()]
    {
        fs::write(&journal, &lines[..cut]).unwrap();
        fs::remove_file(&result).unwrap();
        ok(dir.path(), &small(&["--out", "s", "--jobs", "1"]));
        assert_eq!(fs::read(&journal).unwrap(), lines, "cut at {cut}");
        assert_eq!(fs::read(&result).unwrap(), whole, "cut at {cut}");
    }
    // In parallel the journal's order may differ, the result does not.
    fs::write(&journal, &lines[..after(2) + 1]).unwrap();
    ok(dir.path(), &small(&["--out", "s", "--jobs", "4"]));
    assert_eq!(fs::read(&result).unwrap(), whole);
    // What is journaled is not run again.
    let doctored =
        String::from_utf8(lines.clone()).unwrap().replace("\"accuracy\":0.", "\"accuracy\":1.");
    fs::write(&journal, doctored).unwrap();
    ok(dir.path(), &small(&["--out", "s"]));
    assert!(read(&result)["rows"][0]["points"][0]["accuracy"]["mean"].as_f64().unwrap() > 1.0);
}

#[test]
fn seeds_and_schedules_can_be_added_later() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &small(&["--out", "s", "--jobs", "1"]));
    let journal = dir.path().join("s/sweep.jsonl");
    let before = fs::read_to_string(&journal).unwrap();
    let mut more = small(&["--out", "s", "--jobs", "1", "--schedule", "you"]);
    let seeds = more.iter().position(|a| *a == "3").unwrap();
    more[seeds] = "4";
    ok(dir.path(), &more);
    let after = fs::read_to_string(&journal).unwrap();
    assert!(after.starts_with(&before));
    // Three schedules at two learning rates under four seeds, and the header.
    assert_eq!(after.lines().count(), 3 * 2 * 4 + 1);
}

#[test]
fn a_killed_sweep_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let long = |out: &'static str| -> Vec<&str> {
        let mut args = small(&["--out", out]);
        let steps = args.iter().position(|a| *a == "20").unwrap();
        args[steps] = "400";
        args
    };
    ok(dir.path(), &long("whole"));
    let result = |out: &str| dir.path().join(out).join("sweep.json");
    for runs in [1, 5] {
        let mut child = command(dir.path(), &long("killed")).spawn().unwrap();
        let start = Instant::now();
        let journal = dir.path().join("killed/sweep.jsonl");
        while fs::read_to_string(&journal).map_or(0, |t| t.lines().count()) <= runs {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!result("killed").exists(), "killed too late to test anything");
    }
    ok(dir.path(), &long("killed"));
    assert_eq!(fs::read(result("killed")).unwrap(), fs::read(result("whole")).unwrap());
}

#[test]
fn a_grid_is_resumed_by_the_same_journal() {
    let dir = tempfile::tempdir().unwrap();
    let args =
        support::tiny_search(&["--lr-grid", "--optimizer", "gradient-descent", "--out", "g"]);
    ok(dir.path(), &args);
    let journal = dir.path().join("g/lr-grid.jsonl");
    let lines = fs::read(&journal).unwrap();
    let grid = fs::read(dir.path().join("g/lr-grid.json")).unwrap();
    fs::write(&journal, &lines[..lines.len() * 2 / 3]).unwrap();
    ok(dir.path(), &args);
    assert_eq!(fs::read(dir.path().join("g/lr-grid.json")).unwrap(), grid);
}

#[test]
fn foreign_and_damaged_journals_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &small(&["--out", "s"]));
    let journal = dir.path().join("s/sweep.jsonl");
    let good = fs::read(&journal).unwrap();

    let mut other = small(&["--out", "s", "--batch-size", "16"]);
    let first = other.iter().position(|a| *a == "--batch-size").unwrap();
    other.drain(first..first + 2);
    let said = muon(dir.path(), &other);
    assert_eq!(said.code, Some(2), "{}", said.err);
    let wanted = "belongs to another configuration (batch_size: expected 16, found 32); choose another --out";
    assert!(said.err.contains(wanted), "{}", said.err);
    let text =
        ["train", "--sweep", "--task", "text", "--schedule", "you", "--seeds", "2", "--out", "s"];
    let said = muon(dir.path(), &text);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(said.err.contains("task.name: expected \"text\", found \"digits\""), "{}", said.err);

    let text = String::from_utf8(good.clone()).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let (second, rest) = rest.split_once('\n').unwrap();
    for (bytes, message) in [
        (
            format!("{first}\n{}\n{rest}", &second[..second.len() / 2]).into_bytes(),
            "line 2, column",
        ),
        (format!("{first}\n{second}\n\n{rest}").into_bytes(), "line 3"),
        (b"something else\n".to_vec(), "is not a journal of `muon train`"),
        (
            text.replacen("version 1", "version 9", 1).into_bytes(),
            "found `muon train journal, version 9`",
        ),
        ([&good[..], b"\xff\xfe\n"].concat(), "not UTF-8"),
    ] {
        fs::write(&journal, &bytes).unwrap();
        let said = muon(dir.path(), &small(&["--out", "s"]));
        assert_eq!(said.code, Some(1), "{}", said.err);
        assert!(said.err.contains(message), "no `{message}` in {}", said.err);
        assert_eq!(fs::read(&journal).unwrap(), bytes, "left as it was");
    }
}

#[test]
fn two_sweeps_do_not_write_to_one_journal() {
    let dir = tempfile::tempdir().unwrap();
    let args = "train --sweep --schedule you --lr 0.02 --seeds 2 --steps 100000000 -q --out s";
    let mut child =
        command(dir.path(), &args.split_whitespace().collect::<Vec<_>>()).spawn().unwrap();
    let start = Instant::now();
    while fs::read(dir.path().join("s/sweep.jsonl")).map_or(0, |b| b.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    let said = muon(dir.path(), &small(&["--out", "s"]));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("another process is working in s;"), "{}", said.err);
}

#[test]
fn nonsense_is_refused_before_anything_is_run() {
    let dir = tempfile::tempdir().unwrap();
    for (args, message) in [
        ("--sweep", "ask for at least 2 with --seeds"),
        ("--sweep --seeds 2 --schedule jordon", "did you mean `jordan`?"),
        ("--sweep --seeds 2 --lr 0.1,-1", "found `-1`"),
        ("--sweep --seeds 2 --lr 0.1,x", "x"),
        ("--sweep --seeds 2 --baseline you --schedule jordan", "expected one of muon_jordan_5"),
        (
            "--sweep --seeds 2 --margin=-1",
            "--margin: expected a finite number of at least 0, found `-1`",
        ),
        ("--sweep --seeds 2 --margin nan", "found `NaN`"),
        ("--sweep --lr-grid", "cannot be used with"),
        ("--sweep --resume", "--sweep is not used by --resume"),
        ("--sweep --seeds 2 --record-spectra x", "--record-spectra is not used by this sweep"),
        ("--lr-grid --record-spectra x", "--record-spectra is not used by this grid"),
        ("--sweep --seeds 2 --save-model", "--save-model is not used by this sweep"),
        ("--lr-grid --checkpoint-every 5", "--checkpoint-every is not used by this grid"),
        ("--lr 0.1,0.2", "--sweep compares several"),
        ("--baseline you", "--sweep"),
    ] {
        let args: Vec<&str> = ["train"].into_iter().chain(args.split_whitespace()).collect();
        let said = muon(dir.path(), &args);
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        assert!(said.err.contains(message), "{args:?}: no `{message}` in\n{}", said.err);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing may be written");
}
